#pragma once
// libcurl, loaded when the first fetch needs it. It serves only proxied fetches, and it and what it
// pulls in (GnuTLS, Kerberos, LDAP, …) hold over 4 MB of an idle gateway's memory. Loading reads
// files, so a thread of its own does it. Includes curl.h; its functions are called through a table.
// Private to fetch.c and transport_*.c.
#define CURL_DISABLE_TYPECHECK
#include <curl/curl.h>

#define CURL_API(X)                                                                                \
    X(curl_easy_cleanup)                                                                           \
    X(curl_easy_getinfo)                                                                           \
    X(curl_easy_init)                                                                              \
    X(curl_easy_pause)                                                                             \
    X(curl_easy_setopt)                                                                            \
    X(curl_easy_strerror)                                                                          \
    X(curl_global_cleanup)                                                                         \
    X(curl_global_init)                                                                            \
    X(curl_multi_add_handle)                                                                       \
    X(curl_multi_cleanup)                                                                          \
    X(curl_multi_info_read)                                                                        \
    X(curl_multi_init)                                                                             \
    X(curl_multi_remove_handle)                                                                    \
    X(curl_multi_setopt)                                                                           \
    X(curl_multi_socket_action)                                                                    \
    X(curl_multi_timeout)                                                                          \
    X(curl_url)                                                                                    \
    X(curl_url_cleanup)                                                                            \
    X(curl_url_set)                                                                                \
    X(curl_version_info)

// curl.h's own macros of these names only count arguments.
#undef curl_easy_setopt
#undef curl_easy_getinfo
#undef curl_multi_setopt

struct curl_api {
#define CURL_MEMBER(name) __typeof__(&(name)) name;
    CURL_API(CURL_MEMBER)
#undef CURL_MEMBER
};
extern struct curl_api curl_api; // filled once curl_api_want has given 1

// 1: ready; 0: being loaded, ask again later; GW_EINTERNAL: there is no libcurl here (the log says
// why). The first call starts the loading. Any thread.
int curl_api_want(void);
void curl_api_cleanup(void); // after the last fetcher; before that it waits for the loading

#ifndef CURL_API_PLAIN // curl_api.c itself wants the names
#define curl_easy_cleanup curl_api.curl_easy_cleanup
#define curl_easy_getinfo curl_api.curl_easy_getinfo
#define curl_easy_init curl_api.curl_easy_init
#define curl_easy_pause curl_api.curl_easy_pause
#define curl_easy_setopt curl_api.curl_easy_setopt
#define curl_easy_strerror curl_api.curl_easy_strerror
#define curl_multi_add_handle curl_api.curl_multi_add_handle
#define curl_multi_cleanup curl_api.curl_multi_cleanup
#define curl_multi_info_read curl_api.curl_multi_info_read
#define curl_multi_init curl_api.curl_multi_init
#define curl_multi_remove_handle curl_api.curl_multi_remove_handle
#define curl_multi_setopt curl_api.curl_multi_setopt
#define curl_multi_socket_action curl_api.curl_multi_socket_action
#define curl_multi_timeout curl_api.curl_multi_timeout
#define curl_url curl_api.curl_url
#define curl_url_cleanup curl_api.curl_url_cleanup
#define curl_url_set curl_api.curl_url_set
#define curl_version_info curl_api.curl_version_info
#endif
