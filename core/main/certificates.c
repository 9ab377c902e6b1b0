#include "main/certificates.h"

#include "base/log.h"

#include <stdio.h>

#define DAYS_TO_WARN 14

static bool has_tls(const struct conf *conf)
{
    return conf->tls_cert.len > 0;
}

static void copy_paths(const struct conf *conf, char cert[1024], char key[1024])
{
    snprintf(cert, 1024, "%.*s", SLICE_FMT(conf->tls_cert));
    snprintf(key, 1024, "%.*s", SLICE_FMT(conf->tls_key));
}

static void tell(const struct conf *conf, int days_left)
{
    char cert[1024], key[1024];
    copy_paths(conf, cert, key);
    if (tls_is_key_exposed(key))
        log_event(LOG_WARN, "tls_key_exposed", LOG_STR("file", key),
                  LOG_STR("hint", "others than its owner may read it: chmod 600"));
    log_event(days_left < DAYS_TO_WARN ? LOG_WARN : LOG_INFO, "tls_certificate",
              LOG_STR("file", cert), LOG_INT("days_left", days_left));
}

int certificates_open(const struct conf *conf, struct tls_server **out, char *error, size_t size)
{
    char cert[1024], key[1024];
    *out = NULL;
    if (!has_tls(conf))
        return GW_OK;
    copy_paths(conf, cert, key);
    int err = tls_server_new(cert, key, out, error, size);
    if (!err)
        tell(conf, tls_server_days_left(*out));
    return err;
}

int certificates_prepare(const struct conf *conf, struct tls_server *server,
                         struct tls_context **out, struct buf *problems)
{
    char cert[1024], key[1024], error[512] = "";
    *out = NULL;
    if (!server)
        return GW_OK;
    copy_paths(conf, cert, key);
    int err = tls_server_prepare(server, cert, key, out, error, sizeof error);
    if (err)
        (void)!buf_printf(problems, "%s\n", error);
    return err;
}

void certificates_flip(const struct conf *conf, struct tls_server *server,
                       struct tls_context *fresh)
{
    if (!server || !fresh)
        return;
    tls_server_swap(server, fresh);
    tell(conf, tls_server_days_left(server));
}
