#pragma once
// TLS without sockets, for both sides: the HTTP server's connections and the upstream transport.
//
//   struct tls_context  an SSL_CTX: what connections share. Counted; any thread.
//   struct tls_server   what a listener of all workers holds: the context at hand, which a reload
//                       swaps under running connections (they keep theirs), and the ticket keys,
//                       which outlive a reload. Any thread.
//   struct tls_pipe     one connection: ciphertext in, plaintext out, and the other way round.
//                       Worker thread only; it knows no descriptor.
//
// The usual round of a connection:
//
//   client: tls_pipe_start(pipe, &out) and send out
//   recv → tls_pipe_read(pipe, &cipher, plain, size, &got, &out) → plaintext, and perhaps bytes in
//   out (handshake, alerts), which have to be sent also when the call failed
//   tls_pipe_is_established(pipe) → tls_pipe_write(pipe, plaintext, &out), send out
//   tls_pipe_close(pipe, &out), send out
//
// The pipe reads the caller's bytes where they are and appends to the caller's queue: no copy of
// its own, no buffer while nothing is under way. TLS 1.2 and 1.3; no renegotiation, no early data,
// no compression.
#include "base/buf.h"
#include "base/err.h"
#include "base/slice.h"

struct tls_context;
struct tls_server;
struct tls_pipe;

// What a plaintext buffer must hold so that one tls_pipe_read takes `size` bytes of ciphertext
// whole: a record begun earlier may be completed by them.
#define TLS_PLAIN_ROOM(size) ((size) + 17u * 1024u)

// ---- server side. Reads files: at start or on a helper thread, never on a worker. error ≥ 512
// bytes; it names the file and never tells what stands in it.
GW_MUSTCHECK int tls_server_new(const char *cert_file, const char *key_file,
                                struct tls_server **out, char *error, size_t error_size);
// A reload in two steps: reads the files into a context of its own, which then takes the place of
// the one at hand (swap takes fresh). On failure, and without a swap, all stays as it was.
GW_MUSTCHECK int tls_server_prepare(struct tls_server *server, const char *cert_file,
                                    const char *key_file, struct tls_context **fresh, char *error,
                                    size_t error_size);
void tls_server_swap(struct tls_server *server, struct tls_context *fresh);
// After the last worker has gone; pipes may outlive it no longer than their next call.
void tls_server_free(struct tls_server *server);
// Whether others than the owner may read the key file (start and reload warn of it).
bool tls_is_key_exposed(const char *key_file);
// Days until the certificate at hand ends; negative when it has.
int tls_server_days_left(struct tls_server *server);

// ---- client side. The authorities are those of one PEM file, or the system's (NULL). Reads that
// file. ALPN says http/1.1; an upstream that chooses another protocol fails its handshake.
GW_MUSTCHECK int tls_context_new_client(const char *ca_file, struct tls_context **out, char *error,
                                        size_t error_size);
struct tls_context *tls_context_ref(struct tls_context *context);
void tls_context_unref(struct tls_context *context); // NULL is fine

// ---- one connection
GW_MUSTCHECK int tls_pipe_new_server(struct tls_server *server, struct tls_pipe **out);
// host: the name to ask for and to verify, or an IP address (verified as such, not asked for).
GW_MUSTCHECK int tls_pipe_new_client(struct tls_context *context, const char *host,
                                     struct tls_pipe **out);
void tls_pipe_free(struct tls_pipe *pipe); // NULL is fine; sends nothing
// The client's first message. Servers need no start.
GW_MUSTCHECK int tls_pipe_start(struct tls_pipe *pipe, struct buf *out);
// Takes ciphertext from the front of *cipher and gives plaintext, *got bytes of it (also when the
// call fails: they came before). 0: when cipher is not empty, or *got == size, plain was full and
// the call has to be made again with what is left; else more ciphertext is needed, or the peer has
// closed (tls_pipe_is_closed). GW_ETLS: tls_pipe_error says why, and nothing works any more.
GW_MUSTCHECK int tls_pipe_read(struct tls_pipe *pipe, struct slice *cipher, char *plain,
                               size_t size, size_t *got, struct buf *out);
// All or nothing. GW_EAGAIN before the handshake is over; GW_ETLS when the pipe has failed, was
// closed, or out is at its cap.
GW_MUSTCHECK int tls_pipe_write(struct tls_pipe *pipe, struct slice plain, struct buf *out);
// Says close_notify, once; nothing before the handshake is over or after a failure.
void tls_pipe_close(struct tls_pipe *pipe, struct buf *out);
bool tls_pipe_is_established(const struct tls_pipe *pipe);
bool tls_pipe_is_closed(const struct tls_pipe *pipe);     // the peer said close_notify
bool tls_pipe_is_close_sent(const struct tls_pipe *pipe); // and we did
bool tls_pipe_is_resumed(const struct tls_pipe *pipe);
struct slice tls_pipe_alpn(const struct tls_pipe *pipe);   // empty: none was agreed upon
const char *tls_pipe_version(const struct tls_pipe *pipe); // "TLSv1.3"
const char *tls_pipe_error(const struct tls_pipe *pipe);   // constant text, never NULL
