#include "main/tool.h"

#include "base/clock.h"
#include "main/control_client.h"
#include "main/process.h"
#include "script/confload.h"

#include <stdio.h>
#include <stdlib.h>

const char *tool_option(const struct tool *tool, const char *name)
{
    for (int i = 0; i + 1 < tool->arg_count; i++) {
        if (strcmp(tool->args[i], name) == 0)
            return tool->args[i + 1];
    }
    return NULL;
}

bool tool_has_flag(const struct tool *tool, const char *name)
{
    for (int i = 0; i < tool->arg_count; i++) {
        if (strcmp(tool->args[i], name) == 0)
            return true;
    }
    return false;
}

// Every option but these takes a value.
static bool is_flag(const char *word)
{
    static const char *const FLAGS[] = {"--json", "--default", "--all", "--help"};
    for (size_t i = 0; i < sizeof FLAGS / sizeof *FLAGS; i++) {
        if (strcmp(word, FLAGS[i]) == 0)
            return true;
    }
    return false;
}

const char *tool_word(const struct tool *tool, int n)
{
    for (int i = 0; i < tool->arg_count; i++) {
        if (strncmp(tool->args[i], "--", 2) == 0) {
            if (!is_flag(tool->args[i]))
                i++;
            continue;
        }
        if (n-- == 0)
            return tool->args[i];
    }
    return NULL;
}

void tool_load(struct tool *tool)
{
    struct buf problems = BUF_INIT(64u << 10);
    if (confload_file(tool->conf_path, &tool->conf, &problems) != GW_OK) {
        fprintf(stderr, "%.*s", SLICE_FMT(buf_slice(&problems)));
        if (problems.len == 0)
            fprintf(stderr, "%s: cannot be read\n", tool->conf_path);
        exit(1);
    }
    buf_free(&problems);
}

void tool_control_path(const struct tool *tool, char *out, size_t size)
{
    snprintf(out, size, "%.*s", SLICE_FMT(tool->conf->control_path));
}

// {"error":{"message":…}} or any text, as one line on stderr.
static void print_error(struct slice answer)
{
    struct json_doc *doc = NULL;
    const char *why;
    size_t at;
    if (json_parse(answer, 1u << 20, &doc, &why, &at) == GW_OK) {
        yyjson_val *error = yyjson_obj_get(json_root(doc), "error");
        struct slice text = json_string_slice(yyjson_obj_get(error, "message"));
        if (text.ptr) {
            fprintf(stderr, "moongate: %.*s\n", SLICE_FMT(text));
            json_doc_free(doc);
            return;
        }
        json_doc_free(doc);
    }
    fprintf(stderr, "moongate: %.*s\n", SLICE_FMT(answer));
}

struct waiter {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool is_done;
};

static void on_done(struct store_job *job)
{
    struct waiter *waiter = ((struct admin_job *)job)->user;
    pthread_mutex_lock(&waiter->lock);
    waiter->is_done = true;
    pthread_cond_signal(&waiter->changed);
    pthread_mutex_unlock(&waiter->lock);
}

static bool run_job(struct store *store, enum admin_verb verb, struct slice request,
                    struct buf *answer)
{
    struct waiter waiter = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false};
    struct admin_job *job = admin_job_new(store, verb, request);
    if (!job)
        return false;
    job->user = &waiter;
    job->job.done = on_done;
    bool is_good = store_submit(store, &job->job) == GW_OK;
    if (is_good) {
        pthread_mutex_lock(&waiter.lock);
        while (!waiter.is_done)
            pthread_cond_wait(&waiter.changed, &waiter.lock);
        pthread_mutex_unlock(&waiter.lock);
        is_good = job->job.err == GW_OK;
        if (is_good)
            is_good = buf_append(answer, job->result_json) == GW_OK;
        else
            fprintf(
                stderr, "moongate: %.*s\n",
                SLICE_FMT(job->error_message.len ? job->error_message : slice_str(job->job.error)));
    }
    admin_job_free(job);
    return is_good;
}

// No gateway runs: the files are opened under the exclusive lock.
static bool run_offline(struct tool *tool, enum admin_verb verb, struct slice request,
                        struct buf *answer)
{
    char error[512] = "";
    struct fernet *fernet = NULL;
    struct store *store = NULL;
    bool is_good = false;
    if (conf_check(tool->conf, error, sizeof error) != GW_OK ||
        conf_make_fernet(tool->conf, &fernet, error, sizeof error) != GW_OK) {
        fprintf(stderr, "moongate: %s\n", error);
        return false;
    }
    struct epoch *epoch = epoch_new(8);
    struct store_options options = {.conf = tool->conf,
                                    .fernet = fernet,
                                    .epoch = epoch,
                                    .migrations_dir = home_path("schema")};
    if (epoch && store_open(&options, &store, error, sizeof error) == GW_OK) {
        is_good = run_job(store, verb, request, answer);
        store_close(store);
    } else {
        fprintf(stderr, "moongate: %s\n", error[0] ? error : "out of memory");
    }
    if (epoch)
        epoch_destroy(epoch);
    fernet_free(fernet);
    return is_good;
}

bool tool_run(struct tool *tool, const char *verb_name, enum admin_verb verb, struct slice request,
              struct buf *answer)
{
    char path[512];
    int status = 0;
    tool_control_path(tool, path, sizeof path);
    int err = control_ask(path, verb_name, request, &status, answer);
    if (err == GW_ECONNECT)
        return run_offline(tool, verb, request, answer);
    if (err) {
        fprintf(stderr, "moongate: control socket %s: %s\n", path, gw_err_name(err));
        return false;
    }
    if (status != 200)
        print_error(buf_slice(answer));
    return status == 200;
}

bool tool_ask(struct tool *tool, const char *verb_name, struct slice request, struct buf *answer)
{
    char path[512];
    int status = 0;
    tool_control_path(tool, path, sizeof path);
    int err = control_ask(path, verb_name, request, &status, answer);
    if (err) {
        fprintf(stderr, "moongate: no gateway answers at %s (%s)\n", path, gw_err_name(err));
        return false;
    }
    if (status != 200)
        print_error(buf_slice(answer));
    return status == 200;
}
