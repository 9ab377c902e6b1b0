#pragma once
// Upgrade without a dropped request: `moongate upgrade` or SIGUSR2.
//
//   running process                          successor
//   starts the binary it was started as,
//   hands over sockets and lock          →   checks configuration, opens the files (migrations are
//   goes on serving                          additive), builds plugins, starts workers, listens
//   closes its listeners, ends its       ←   "ready"
//   applier, drains, exits                   serves; folds both journals
//
// Until "ready" nothing has changed for anybody: when the successor fails, crashes or is silent for
// upgrade_timeout, it is killed, the running process goes on, and whoever asked is told why. While
// a predecessor drains the successor may itself be upgraded (a chain): the ends of all who still
// drain are handed on, and the files are shared until the last of them has gone.
//
// Main thread, but for upgrade_ask.
#include "base/err.h"
#include "base/slice.h"

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct process;
struct loop;
struct flow_shared;

#define UPGRADE_PREDECESSORS 64
#define UPGRADE_POLLS (UPGRADE_PREDECESSORS + 2)

typedef void (*upgrade_done_cb)(void *arg, int err, struct slice text);

struct upgrade {
    int wake_fd;    // eventfd: somebody asked
    pid_t pid;      // the successor that starts, or serves; 0: none
    int channel;    // to it; -1: none
    int item_count; // that it was given
    uint64_t deadline_ms;
    atomic_bool is_handed_over; // it serves: this process drains

    struct upgrade_caller *caller; // who asked for the one under way; NULL: a signal
    pthread_mutex_t lock;          // guards asked and is_busy
    struct upgrade_caller *asked;
    bool is_busy; // under way, done, or too late

    struct {
        int channel;
        int64_t owner;
    } predecessors[UPGRADE_PREDECESSORS];
    size_t predecessor_count;
};

// First thing in main: keeps how this process was started.
void upgrade_remember(int argc, char **argv);
// Takes what a predecessor hands over into process->handed; without one does nothing.
GW_MUSTCHECK int upgrade_begin(struct process *process, char *error, size_t error_size);
// The lock's descriptor of the predecessor; -1: none. Taken.
int upgrade_take_lock(struct process *process);
// This process serves: tells the predecessor.
void upgrade_tell_ready(struct process *process);
// It could not start: tells the predecessor why.
void upgrade_tell_failure(struct process *process, const char *error);
void upgrade_end(struct process *process);

// Any thread: asks for an upgrade; done is called on loop. GW_EBUSY: one is under way, or this
// process drains. flow_shared.upgrade's signature.
int upgrade_ask(struct flow_shared *shared, struct loop *loop, upgrade_done_cb done, void *arg);
// SIGUSR2.
void upgrade_by_signal(struct process *process);
// The process is to stop: a successor that is not ready is killed, later ones are refused.
void upgrade_refuse(struct process *process);
// What the main thread waits for (at most UPGRADE_POLLS), for how long (-1: for ever), and what
// came.
size_t upgrade_polls(struct process *process, struct pollfd *fds, int *timeout_ms);
void upgrade_look(struct process *process);
