#pragma once
// Intrusive unbounded queue, many producers and one consumer (after D. Vyukov). Push is wait-free;
// it says when the queue was empty, so that the consumer is woken only on empty → non-empty.
// The node belongs to the queue until popped. FIFO per producer. A new queue counts as asleep, so
// its first push asks for a wake-up.
//
//   consumer:  for (;;) { while ((node = mpsc_pop(q))) …; if (mpsc_sleep(q)) wait for a wake-up; }
//   producer:  if (mpsc_push(q, node)) wake the consumer
#include <stdatomic.h>
#include <stdbool.h>

struct mpsc_node {
    _Atomic(struct mpsc_node *) next;
};
struct mpsc {
    _Atomic(struct mpsc_node *) head; // producers
    struct mpsc_node *tail;           // the consumer
    struct mpsc_node stub;
    atomic_bool is_idle; // the consumer found nothing and will wait
};

void mpsc_init(struct mpsc *queue);
// Any thread. True when the consumer has to be woken.
bool mpsc_push(struct mpsc *queue, struct mpsc_node *node);
// Consumer only. NULL: empty (or a push is half done; that producer will ask for a wake-up).
struct mpsc_node *mpsc_pop(struct mpsc *queue);
// Consumer only, before it sleeps: false when something arrived and it must pop again.
bool mpsc_sleep(struct mpsc *queue);
