#pragma once
// The listeners' certificate and key: read at start, and again with every reload, on the thread
// that starts the process or on the helper that reloads, never on a worker. Paths are those the
// process was started with; what stands in the files may change.
#include "base/buf.h"
#include "io/tls.h"
#include "state/conf.h"

// *out NULL: no TLS is configured. error names the file.
GW_MUSTCHECK int certificates_open(const struct conf *conf, struct tls_server **out, char *error,
                                   size_t size);
// Reads both files again; appends a line to problems when that fails. *out stays NULL without TLS.
GW_MUSTCHECK int certificates_prepare(const struct conf *conf, struct tls_server *server,
                                      struct tls_context **out, struct buf *problems);
// New connections get it from now on; takes fresh (NULL: nothing).
void certificates_flip(const struct conf *conf, struct tls_server *server,
                       struct tls_context *fresh);
