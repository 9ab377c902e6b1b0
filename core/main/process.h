#pragma once
// The running process: what the workers share, the order of start, reload, drain and stop.
// Internal to main. The main thread owns it; workers reach it for reloads only.
#include "base/epoch.h"
#include "base/pool.h"
#include "flow/flow.h"
#include "io/http1.h"
#include "io/resolver.h"
#include "io/tls.h"
#include "main/home.h"
#include "main/sockets.h"
#include "main/upgrade.h"
#include "script/script.h"
#include "state/conf.h"
#include "state/kv.h"
#include "state/stats.h"
#include "state/store.h"

#include <pthread.h>

#define PROCESS_MAX_WORKERS 256
#define PROCESS_MAX_GIVEN 512 // sockets of a service manager

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
    struct tls_server *tls; // NULL: the listeners speak plain HTTP
    struct pool *pool;
    struct flow_shared shared;
    struct worker *workers;
    uint32_t worker_count;
    uint32_t client_connections, operator_connections; // caps, see share_descriptors
    bool has_started;                                  // said so in the log
    uint16_t port;                                     // of the public listener
    uint16_t admin_port;                               // of ADMIN_LISTEN; 0: none
    struct process_socket *sockets;
    size_t socket_count;
    struct handover_item *handed; // by a predecessor, until used
    size_t handed_count;
    struct upgrade upgrade;
    pthread_mutex_t reload_lock; // guards set, is_reloading and wants_reload
    struct plugin_set *set;
    bool is_reloading;
    bool wants_reload; // asked for by a signal while one was under way: another follows
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
// The worker whose loop this is; NULL: none.
struct worker *process_worker_of(struct process *process, const struct loop *loop);
// A successor serves: all workers drain.
void process_hand_over(struct process *process);
// flow_shared.reload's signature.
int process_reload_from_flow(struct flow_shared *shared, struct loop *loop,
                             void (*done)(void *arg, int err, struct slice problems), void *arg);
