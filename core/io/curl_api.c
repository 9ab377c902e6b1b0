#define CURL_API_PLAIN
#include "io/curl_api.h"

#include "base/err.h"
#include "base/log.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#define LIBRARY "libcurl.so.4" // its ABI since 7.16 (2006)

enum api_state { API_ABSENT, API_LOADING, API_READY, API_BROKEN };

struct curl_api curl_api;
static _Atomic int state = API_ABSENT;
static pthread_t loader;
static bool has_loader; // of the thread that made the first call; read after all have stopped
static void *library;

static const char *load(void)
{
    library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        return dlerror();
#define CURL_LOAD(name)                                                                            \
    {                                                                                              \
        void *symbol = dlsym(library, #name);                                                      \
        if (symbol == NULL)                                                                        \
            return "it lacks " #name;                                                              \
        memcpy(&curl_api.name, &symbol, sizeof symbol); /* POSIX: a function's address fits */     \
    }
    CURL_API(CURL_LOAD)
    return curl_api.curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK ? NULL : "it does not start";
}

static void *run(void *unused)
{
    (void)unused;
    pthread_setname_np(pthread_self(), "curl-loader");
    const char *why = load();
    if (why != NULL)
        log_event(LOG_ERROR, "no_libcurl", LOG_STR("reason", why),
                  LOG_STR("hint", "fetches through a proxy need " LIBRARY));
    atomic_store_explicit(&state, why == NULL ? API_READY : API_BROKEN, memory_order_release);
    return NULL;
}

int curl_api_want(void)
{
    int now = API_ABSENT;
    if (atomic_compare_exchange_strong(&state, &now, API_LOADING)) {
        has_loader = pthread_create(&loader, NULL, run, NULL) == 0;
        if (!has_loader)
            atomic_store(&state, API_ABSENT); // again with the next call
        return has_loader ? 0 : GW_ENOMEM;
    }
    return now == API_READY ? 1 : now == API_LOADING ? 0 : GW_EINTERNAL;
}

void curl_api_cleanup(void)
{
    if (has_loader)
        pthread_join(loader, NULL);
    has_loader = false;
    // The library stays: its threads' and exit handlers may still run. It may be wanted again.
    if (atomic_load(&state) == API_READY)
        curl_api.curl_global_cleanup();
    atomic_store(&state, API_ABSENT);
}
