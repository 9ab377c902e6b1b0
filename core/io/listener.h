#pragma once
// Listening sockets: each worker has its own TCP socket with SO_REUSEPORT; one unix socket (the
// control socket, 0600) is served by worker 0. Accepting is bounded per turn; on EMFILE/ENFILE it
// pauses for 100 ms and uses a reserve descriptor to refuse, never spins. Worker thread only.
#include "base/err.h"
#include "io/http1.h"
#include "io/loop.h"

struct listener;

// Makes a bound, listening, non-blocking socket: before the workers start, so that errors
// ("address in use") stop the process with a message. host is a numeric address or a name; port 0
// chooses one (*bound_port). Gives the descriptor in *fd. With reuse_port it does not listen before
// listener_open: other sockets of the port may serve, and the kernel would give this one its share
// of the connections although nobody accepts them yet, or ever, should the start fail.
GW_MUSTCHECK int listener_bind_tcp(const char *host, uint16_t port, bool reuse_port, int *fd,
                                   uint16_t *bound_port, char *error, size_t error_size);
// Removes a stale socket file (nobody answers), refuses a living one with GW_EBUSY.
GW_MUSTCHECK int listener_bind_unix(const char *path, int *fd, char *error, size_t error_size);

// Starts accepting on fd for a server; takes fd. tag tells listeners apart in http1_request.
GW_MUSTCHECK int listener_open(struct loop *loop, int fd, bool is_unix, uint32_t tag,
                               struct http1_server *server, struct listener **out);
// Accepts what is queued (until EAGAIN), then closes (drain). Freed when uv is done with it.
void listener_close(struct listener *listener);
// Closes without accepting: another process has the same socket and takes what is queued.
void listener_leave(struct listener *listener);
// Sum over listeners: accepts refused for want of descriptors.
uint64_t listener_emfile_count(void);
// accept4, or what a test puts in its place (NULL: accept4 again). Before the workers start.
struct sockaddr;
typedef int (*listener_accept_fn)(int fd, struct sockaddr *peer, unsigned *len, int flags);
void listener_use_accept(listener_accept_fn accept);
