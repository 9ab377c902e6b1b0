#pragma once
// One worker: a thread with its own loop, fetcher, Lua state, flow, HTTP server and listening
// socket. Started and stopped by process.c; commands reach it as loop messages.
#include "main/process.h"

enum worker_command {
    WORKER_PREPARE, // build the plugin generation of `set`
    WORKER_FLIP,
    WORKER_DISCARD,
    WORKER_LISTEN,    // all workers are ready: accept
    WORKER_HAND_OVER, // a successor listens: stop to, finish what runs, then leave the loop. Idle
                      // connections are kept until they carried one more request or time out.
    WORKER_DRAIN,     // the same without a successor: idle connections get a moment only
    WORKER_END_ALL,   // the drain time is over: streams get their last error
    WORKER_STOP,      // leave the loop now
};

struct worker {
    struct process *process;
    uint32_t index;
    pthread_t thread;
    bool is_started; // the thread was created
    bool has_ended;  // and joined
    struct loop *loop;
    struct epoch_reader *reader;
    struct fetcher *fetcher;
    struct script *script;
    struct flow *flow;
    struct http1_server *server;
    struct worker_listener *listeners; // of the process's sockets those of this worker
    size_t listener_count;
    struct loop_timer drain_timer;
    uint64_t drain_until_ms;
    bool is_draining, is_ended;
    size_t reloads; // asked for here and not yet answered; its own thread only
    // Start-up hand-shake.
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool is_ready, has_stopped;
    bool takes_commands; // its loop is there
    int start_err;
    char error[512];
};

// Starts the thread and waits until it serves or has failed (worker->error).
GW_MUSTCHECK int worker_start(struct worker *worker);
void worker_join(struct worker *worker);
// After the last that may command it (a reload on a helper thread) is over.
void worker_dispose(struct worker *worker);
bool worker_has_stopped(struct worker *worker);
// Posts a command; for LISTEN, PREPARE, FLIP and DISCARD waits for its result (not from a worker).
// set and problems are for PREPARE.
int worker_command(struct worker *worker, enum worker_command command, struct plugin_set *set,
                   struct buf *problems);
