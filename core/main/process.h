#pragma once
// The running process: what the workers share, the order of start, reload, drain and stop.
// Internal to main. The main thread owns it; workers reach it for reloads only.
#include "base/epoch.h"
#include "base/pool.h"
#include "flow/flow.h"
#include "io/http1.h"
#include "io/resolver.h"
#include "main/home.h"
#include "script/script.h"
#include "state/conf.h"
#include "state/kv.h"
#include "state/stats.h"
#include "state/store.h"

#include <pthread.h>

#define PROCESS_MAX_WORKERS 256

struct worker;

struct process {
    struct conf *conf;
    const char *conf_path;
    struct fernet *fernet;
    struct epoch *epoch;
    struct store *store;
    struct kv *kv;
    struct stats *stats;
    struct flow_metrics *metrics;
    struct resolver *resolver;
    struct http1_ips *ips;
    struct pool *pool;
    struct flow_shared shared;
    struct worker *workers;
    uint32_t worker_count;
    bool has_started;            // said so in the log
    uint16_t port;               // of the public listener
    uint16_t admin_port;         // of ADMIN_LISTEN; 0: none
    bool has_control_socket;     // bound here: ours to unlink
    pthread_mutex_t reload_lock; // guards set and is_reloading
    struct plugin_set *set;
    bool is_reloading;
};

// Opens everything and starts the workers. error ≥ 512 bytes. Main thread.
GW_MUSTCHECK int process_start(struct process *process, const char *conf_path, char *error,
                               size_t error_size);
// Handles signals until the process has drained; returns the exit code.
int process_wait(struct process *process);
void process_stop(struct process *process);

// reload.c: builds a new plugin set and flips all workers to it, or leaves all as it was. done is
// called on `loop` (may be NULL: the result is only logged). GW_EBUSY: one is under way.
GW_MUSTCHECK int process_reload(struct process *process, struct loop *loop,
                                void (*done)(void *arg, int err, struct slice problems), void *arg);
// flow_shared.reload's signature.
int process_reload_from_flow(struct flow_shared *shared, struct loop *loop,
                             void (*done)(void *arg, int err, struct slice problems), void *arg);
