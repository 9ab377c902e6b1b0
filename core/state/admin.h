#pragma once
// The trusted writes behind gw.keys, gw.upstreams, gw.logs and the command line: client keys,
// upstreams, log queries. Each is a store_job to be filled and submitted; results lie in the
// job's arena. Plugins reach these tables only through here. Any thread submits; run on the lane.
#include "base/arena.h"
#include "state/store.h"

enum admin_verb {
    ADMIN_KEY_CREATE, // {name, description?, upstream_ids?: [uid], upstreams?: [name],
                      // expires_at_ms?,
                      //  scheme?, user_id?, allowed_models?, rpm?, rpd?} → row with key_value
    ADMIN_KEY_LIST,   // {page?, page_size?, search?, is_active?, user_id?} → {items, total}
    ADMIN_KEY_GET,    // {uid}
    ADMIN_KEY_UPDATE, // {uid, …any of create's, is_active}
    ADMIN_KEY_REVOKE, // {uid}
    ADMIN_UPSTREAM_CREATE, // {name, provider, base_url, api_key?, formats?, models?, is_default?,
                           //  timeout?, weight?, priority?, passthrough?, disconnect?, config?}
    ADMIN_UPSTREAM_LIST,   // {page, page_size}
    ADMIN_UPSTREAM_GET,    // {uid}
    ADMIN_UPSTREAM_UPDATE, // {uid, …}
    ADMIN_UPSTREAM_DELETE, // {uid} soft: is_active = false
    ADMIN_LOG_LIST,     // {page?, page_size?, key_uid?, upstream_uid?, user_id?, status?, model?,
                        //  start_ms?, end_ms?} (inclusive) → {items, total, is_total_capped}
    ADMIN_LOG_GET,      // {id}
    ADMIN_LOG_PRUNE,    // {before_ms} → {deleted}; in small steps, other jobs of the lane between
    ADMIN_PRICE_PUT,    // {model, input, output, …} decimals as text or numbers
    ADMIN_PRICE_LIST,   // {}
    ADMIN_PRICE_DELETE, // {model}
    ADMIN_ROLLUP_LIST, // {from_ms, to_ms, by?: "model"|"key"|"upstream"} → {items}: sums per hour,
                       //  or over the whole time per model, key (key_uid) or upstream
};

struct admin_job {
    struct store_job job; // job.done is the caller's
    struct arena *arena;  // the job's own, made by admin_job_new; freed by admin_job_free
    struct store *store;
    void *user; // the caller's
    int (*work)(struct db *db, struct admin_job *job);
    struct slice request_json;              // input (validated by the caller's schema), arena
    struct slice result_json;               // output on success
    struct slice error_code, error_message; // on GW_EINVAL, GW_EEXISTS, GW_ENOTFOUND
    enum admin_verb verb;
    // A verb in steps (log prune) is submitted again by itself; the caller's done runs at the end.
    void (*final_done)(struct store_job *job);
    int64_t step_sum;
    bool has_more;
};

// Gives a job for a verb; its lane is chosen. NULL: no memory.
struct admin_job *admin_job_new(struct store *store, enum admin_verb verb,
                                struct slice request_json);
void admin_job_free(struct admin_job *job);
// request_json is an object; unknown members are refused (GW_EINVAL). page_size is 1..1000,
// default 20. error_code: "invalid_request", "not_found". Lists item fields carry: ids as uid,
// money in nano as "…_nano" integers, times as "…_ms" integers.
