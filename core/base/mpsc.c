// Vyukov's intrusive queue. The link store and the is_idle load of a push, and the is_idle store
// and the link load of mpsc_sleep, are sequentially consistent: of a push and a sleep that meet, at
// least one sees the other, so no wake-up is lost. A push that has swapped the head but not yet
// linked its node hides later nodes; it is that producer that finds is_idle set.
#include "base/mpsc.h"
#include <stddef.h>

void mpsc_init(struct mpsc *queue)
{
    atomic_init(&queue->stub.next, NULL);
    atomic_init(&queue->head, &queue->stub);
    queue->tail = &queue->stub;
    atomic_init(&queue->is_idle, true);
}

static void link_node(struct mpsc *queue, struct mpsc_node *node)
{
    atomic_store_explicit(&node->next, NULL, memory_order_relaxed);
    struct mpsc_node *prev = atomic_exchange_explicit(&queue->head, node, memory_order_acq_rel);
    atomic_store_explicit(&prev->next, node, memory_order_seq_cst);
}

bool mpsc_push(struct mpsc *queue, struct mpsc_node *node)
{
    link_node(queue, node);
    // The plain load keeps the line shared while the consumer is awake.
    return atomic_load_explicit(&queue->is_idle, memory_order_seq_cst) &&
           atomic_exchange_explicit(&queue->is_idle, false, memory_order_seq_cst);
}

struct mpsc_node *mpsc_pop(struct mpsc *queue)
{
    struct mpsc_node *tail = queue->tail;
    struct mpsc_node *next = atomic_load_explicit(&tail->next, memory_order_acquire);
    if (tail == &queue->stub) {
        if (!next)
            return NULL;
        queue->tail = tail = next;
        next = atomic_load_explicit(&tail->next, memory_order_acquire);
    }
    if (!next) {
        if (tail != atomic_load_explicit(&queue->head, memory_order_acquire))
            return NULL;
        // The last node can be given away only with the stub behind it.
        link_node(queue, &queue->stub);
        next = atomic_load_explicit(&tail->next, memory_order_acquire);
        if (!next)
            return NULL;
    }
    queue->tail = next;
    return tail;
}

bool mpsc_sleep(struct mpsc *queue)
{
    atomic_store_explicit(&queue->is_idle, true, memory_order_seq_cst);
    struct mpsc_node *tail = queue->tail;
    bool has_node = atomic_load_explicit(&tail->next, memory_order_seq_cst) != NULL;
    if (!has_node && tail != &queue->stub)
        has_node = tail == atomic_load_explicit(&queue->head, memory_order_seq_cst);
    if (!has_node)
        return true;
    atomic_store_explicit(&queue->is_idle, false, memory_order_seq_cst);
    return false;
}
