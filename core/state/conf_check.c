// Checks of the configuration that look at more than one key, and what is made from several: the
// secrets that must be there and must not be samples, the key ring, the database's path. Each
// reason begins with the variable's name.
#include "base/buf.h"
#include "codec/fernet.h"
#include "codec/url.h"
#include "state/conf.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#define KEY_FILE_MAX 4096
#define SECRET_MIN 32
#define TOKEN_MIN 16
#define PASSWORD_MIN 8

// From the Fernet specification, so known to everybody.
#define SPEC_KEY "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4="

static bool holds_nocase(struct slice text, const char *word)
{
    size_t len = strlen(word);
    for (size_t i = 0; i + len <= text.len; i++)
        if (strncasecmp(text.ptr + i, word, len) == 0)
            return true;
    return false;
}

static bool has_few_characters(struct slice text)
{
    bool seen[256] = {false};
    size_t count = 0;
    for (size_t i = 0; i < text.len; i++) {
        bool *place = &seen[(unsigned char)text.ptr[i]];
        count += !*place;
        *place = true;
    }
    return count < 8;
}

// Values that stand in examples and so are known to everybody.
static bool is_sample(struct slice text)
{
    static const char *const parts[] = {
        "changeme",    "change-me",  "change_me", "change-this",     "change_this", "your-secret",
        "your_secret", "yoursecret", "your-key",  "your_key",        "your-admin",  "your_admin",
        "secret-key",  "secret_key", "secretkey", "replace-me",      "replace_me",  "placeholder",
        "insecure",    "example",    "sample",    "encrypt_key_32b",
    };
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++)
        if (holds_nocase(text, parts[i]))
            return true;
    return has_few_characters(text);
}

static bool is_known_password(struct slice text)
{
    static const char *const known[] = {
        "admin",      "admin123",  "admin1234", "admin12345",  "admin123456", "administrator",
        "password",   "passw0rd",  "password1", "password123", "12345678",    "123456789",
        "1234567890", "qwerty123", "letmein1",  "root1234",    "test1234",    "moongate",
    };
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (slice_is_nocase(text, known[i]))
            return true;
    return holds_nocase(text, "changeme") || holds_nocase(text, "change-me");
}

static int read_key_file(const struct conf *conf, struct buf *out, char *why, size_t why_size)
{
    struct slice path;
    int err = conf_path(conf, conf->encryption_key_file, &path);
    if (err)
        return err;
    int fd = open(path.ptr, O_RDONLY | O_CLOEXEC);
    ssize_t len = -1;
    char *room = fd >= 0 ? buf_room(out, KEY_FILE_MAX) : NULL;
    if (room)
        len = read(fd, room, KEY_FILE_MAX);
    int saved = errno;
    if (fd >= 0)
        close(fd);
    if (len < 0) {
        snprintf(why, why_size, "ENCRYPTION_KEY_FILE: cannot read %.120s: %s", path.ptr,
                 strerror(saved));
        return GW_EIO;
    }
    buf_grew(out, (size_t)len);
    return 0;
}

static int check_samples(struct slice ring, const char *name, char *why, size_t why_size)
{
    while (ring.len) {
        const char *comma = memchr(ring.ptr, ',', ring.len);
        struct slice key = comma ? slice_of(ring.ptr, (size_t)(comma - ring.ptr)) : ring;
        ring = slice_from(ring, key.len + 1);
        key = slice_trim(key);
        if (slice_is(key, SPEC_KEY) || has_few_characters(key)) {
            snprintf(why, why_size, "%s: this is a sample key; make one of 32 random bytes", name);
            return GW_EINVAL;
        }
    }
    return 0;
}

int conf_make_fernet(const struct conf *conf, struct fernet **out, char *why, size_t why_size)
{
    struct fernet *fernet = NULL;
    struct buf from_file = BUF_INIT(0);
    struct slice ring = secret_reveal(conf->encryption_key);
    const char *name = "ENCRYPTION_KEY", *reason = NULL;
    int err = 0;
    if (ring.len == 0) {
        if (conf->encryption_key_file.len == 0) {
            snprintf(why, why_size,
                     "ENCRYPTION_KEY: not set; give it, or ENCRYPTION_KEY_FILE, a Fernet key");
            return GW_EINVAL;
        }
        name = "ENCRYPTION_KEY_FILE";
        err = read_key_file(conf, &from_file, why, why_size);
        if (err)
            goto out;
        ring = slice_trim(buf_slice(&from_file));
    }
    err = check_samples(ring, name, why, why_size);
    if (err)
        goto out;
    err = fernet_new(ring, &fernet, &reason);
    if (err) {
        snprintf(why, why_size, "%s: %s", name, reason);
        goto out;
    }
    if (conf->plugin_api_encryption_key) {
        err = fernet_add_key(fernet, secret_reveal(conf->plugin_api_encryption_key), false);
        if (err)
            snprintf(why, why_size, "PLUGIN_API_ENCRYPTION_KEY: not a Fernet key");
    }
    if (err == 0 && conf->token_encrypt_key) {
        err = fernet_add_key(fernet, secret_reveal(conf->token_encrypt_key), true);
        if (err)
            snprintf(why, why_size, "TOKEN_ENCRYPT_KEY: cannot be added to the key ring");
    }
out:
    buf_wipe(&from_file);
    if (err) {
        fernet_free(fernet);
        return err;
    }
    *out = fernet;
    return 0;
}

static int check_secret_key(const struct conf *conf, char *why, size_t why_size)
{
    struct slice key = secret_reveal(conf->secret_key);
    if (key.len == 0)
        snprintf(why, why_size, "SECRET_KEY: not set; give it at least %d random bytes",
                 SECRET_MIN);
    else if (key.len < SECRET_MIN)
        snprintf(why, why_size, "SECRET_KEY: shorter than %d bytes", SECRET_MIN);
    else if (is_sample(key))
        snprintf(why, why_size, "SECRET_KEY: this is a sample value; make a random one");
    else
        return 0;
    return GW_EINVAL;
}

static int check_admin(const struct conf *conf, char *why, size_t why_size)
{
    struct slice password = secret_reveal(conf->admin_password);
    struct slice token = secret_reveal(conf->admin_token);
    if (conf->admin_token && token.len < TOKEN_MIN)
        snprintf(why, why_size, "ADMIN_TOKEN: shorter than %d bytes", TOKEN_MIN);
    else if (conf->admin_token && is_sample(token))
        snprintf(why, why_size, "ADMIN_TOKEN: this is a sample value; make a random one");
    else if (conf->admin_username.len && !conf->admin_password)
        snprintf(why, why_size, "ADMIN_PASSWORD: not set, although ADMIN_USERNAME is");
    else if (conf->admin_password && password.len < PASSWORD_MIN)
        snprintf(why, why_size, "ADMIN_PASSWORD: shorter than %d characters", PASSWORD_MIN);
    else if (conf->admin_password &&
             (is_known_password(password) || slice_eq(password, conf->admin_username)))
        snprintf(why, why_size, "ADMIN_PASSWORD: everybody knows this one; choose another");
    else
        return 0;
    return GW_EINVAL;
}

static int check_urls(const struct conf *conf, char *why, size_t why_size)
{
    struct slice url = conf->upstream_url, origin = conf->public_url;
    if (conf->redis_url.len)
        snprintf(why, why_size,
                 "REDIS_URL: shared rate counters are not supported yet; leave it empty");
    else if (url.len && !slice_starts(url, "http://") && !slice_starts(url, "https://"))
        snprintf(why, why_size, "UPSTREAM_URL: must start with http:// or https://");
    else if (origin.len && !slice_starts(origin, "http://") && !slice_starts(origin, "https://"))
        snprintf(why, why_size, "PUBLIC_URL: must start with http:// or https://");
    else if (!slice_starts(conf->proxy_prefix, "/") || conf->proxy_prefix.len < 2 ||
             slice_ends(conf->proxy_prefix, "/"))
        snprintf(why, why_size, "PROXY_PREFIX: must start with / and not end with it");
    else
        return 0;
    return GW_EINVAL;
}

static int check_hosts(const struct conf *conf, char *why, size_t why_size)
{
    for (size_t i = 0; i < conf->allowed_private_hosts.count; i++) {
        struct slice rule = conf->allowed_private_hosts.items[i];
        if (url_rule_check(rule) == 0)
            continue;
        snprintf(why, why_size,
                 "ALLOWED_PRIVATE_HOSTS: \"%.*s\" is no host, host:port, CIDR or CIDR:port",
                 (int)(rule.len > 60 ? 60 : rule.len), rule.ptr);
        return GW_EINVAL;
    }
    return 0;
}

static int check_tls(const struct conf *conf, char *why, size_t why_size)
{
    if (conf->tls_cert.len && !conf->tls_key.len)
        snprintf(why, why_size, "TLS_KEY: not set, although TLS_CERT is");
    else if (conf->tls_key.len && !conf->tls_cert.len)
        snprintf(why, why_size, "TLS_CERT: not set, although TLS_KEY is");
    else if (conf->admin_tls && !conf->tls_cert.len)
        snprintf(why, why_size, "ADMIN_TLS: needs TLS_CERT and TLS_KEY");
    else
        return 0;
    return GW_EINVAL;
}

int conf_check(const struct conf *conf, char *why, size_t why_size)
{
    struct fernet *fernet = NULL;
    struct slice path;
    int err = conf_make_fernet(conf, &fernet, why, why_size);
    fernet_free(fernet);
    if (err == 0)
        err = check_secret_key(conf, why, why_size);
    if (err == 0)
        err = check_admin(conf, why, why_size);
    if (err == 0)
        err = check_urls(conf, why, why_size);
    if (err == 0)
        err = check_hosts(conf, why, why_size);
    if (err == 0)
        err = check_tls(conf, why, why_size);
    if (err == 0)
        err = conf_database_path(conf, &path, why, why_size);
    return err;
}

int conf_database_path(const struct conf *conf, struct slice *main_path, char *why, size_t why_size)
{
    struct slice url = conf->database_url;
    long colon = slice_find(url, SLICE_LIT("://"));
    struct slice scheme = slice_of(url.ptr, colon > 0 ? (size_t)colon : 0);
    const char *plus = scheme.len ? memchr(scheme.ptr, '+', scheme.len) : NULL;
    if (plus)
        scheme.len = (size_t)(plus - scheme.ptr);
    if (slice_is_nocase(scheme, "postgresql") || slice_is_nocase(scheme, "postgres")) {
        snprintf(why, why_size, "DATABASE_URL: PostgreSQL is not supported yet; use sqlite:///…");
        return GW_EINVAL;
    }
    struct slice path = slice_from(url, (size_t)(colon > 0 ? colon + 3 : 0));
    if (!slice_is_nocase(scheme, "sqlite") || !slice_starts(path, "/") || path.len < 2) {
        snprintf(why, why_size,
                 "DATABASE_URL: must be sqlite:///relative/path or sqlite:////absolute/path");
        return GW_EINVAL;
    }
    path = slice_from(path, 1); // the third slash ends the (empty) host
    if (memchr(path.ptr, '?', path.len) || memchr(path.ptr, '#', path.len) ||
        slice_is(path, ":memory:") || slice_ends(path, "/")) {
        snprintf(why, why_size, "DATABASE_URL: must name a file, without options");
        return GW_EINVAL;
    }
    return conf_path(conf, path, main_path);
}
