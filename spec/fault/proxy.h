#pragma once
// The fault proxy: sits between a client and a server on loopback and does to the bytes what bad
// networks and bad peers do. One thread, epoll, every random number from a seed. It links nothing
// of core/. Parts: proxy_rules.c reads rules, proxy_link.c moves bytes, proxy_control.c is the
// control port, proxy.c listens and turns the loop.
//
//   fault_proxy [--to HOST:PORT [--port N] [--rules "RULES"]] [--control-port N]
//
// prints `control N` and, with --to, `port N`. A *gate* is one listening port in front of one
// server; the control port opens more. Its lines, each answered by lines that end with `ok …` or
// `err why`:
//
//   open HOST:PORT        a new gate → ok PORT
//   set PORT RULES        for connections accepted from now on; without RULES: none
//   next PORT RULES       for the next connection only (may be queued, up to 64)
//   state PORT open|down|deaf|full
//         down: refuses; deaf: the kernel accepts, nobody answers; full: connecting hangs
//   cut PORT              closes all its connections;  close PORT  forgets the gate
//   stats PORT            → ok accepted=N open=N
//   log PORT              → a line for each ended connection, oldest first
//
// RULES are words. For one direction (`up.` = from client to server, `down.` = back):
//   latency=MS[,JITTER]   each piece that was read waits MS ± JITTER
//   bandwidth=BYTES       per second
//   slice=BYTES[,MS]      pieces of so many bytes, MS between them
//   slow_close=MS         the end of this direction is told so much later
//   timeout=N             after N bytes nothing passes any more, both sockets stay open
//   reset=N[,MS]          after N bytes, and MS (30) more, both sides are reset
//   limit=N[,MS]          … are closed cleanly (under TLS: without its goodbye)
//   half_close=N[,MS]     … this direction is closed cleanly, the other one goes on
//   garbage=N,COUNT       COUNT random bytes are put in at N
//   insert=N,HEX          these bytes are
//   flip=N,COUNT          COUNT bytes from N on have all their bits turned
// N counts bytes of the direction; what happens at 0 happens when its first byte has come.
// For the connection:
//   seed=S   mute (no server is asked, nothing is ever said)   drop, rst (closed, reset at once)
//   answer=HEX,close|hang|reset   said when the client's first bytes have come; no server is asked
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum fault_end { FAULT_NONE, FAULT_HANG, FAULT_RESET, FAULT_CLOSE, FAULT_HALF };

#define PROXY_INSERT_MAX 4096

struct fault_bytes {
    uint16_t len;
    char bytes[PROXY_INSERT_MAX];
};

struct fault_rules { // of one direction
    int latency_ms, jitter_ms, slow_close_ms, slice_ms, end_ms;
    uint64_t bytes_per_second;
    size_t slice;
    enum fault_end end;
    uint64_t end_at, insert_at, flip_at;
    uint64_t flip_count, garbage_count;
    struct fault_bytes insert;
};

enum fault_server { FAULT_SERVER_ASKED, FAULT_MUTE, FAULT_DROP, FAULT_RST, FAULT_ANSWER };

struct fault_plan { // of one connection
    struct fault_rules up, down;
    uint64_t seed;
    enum fault_server server;
    enum fault_end answer_end;
    struct fault_bytes answer;
};

// NULL, or why the rules are refused (static text).
const char *fault_plan_read(const char *text, struct fault_plan *out);
uint64_t fault_random(uint64_t *state);

enum gate_state { GATE_OPEN, GATE_DOWN, GATE_DEAF, GATE_FULL };
#define GATE_NEXT_MAX 64
#define GATE_FILLERS 4

struct watched { // what epoll points to: the first member of each kind
    enum { WATCH_GATE, WATCH_LINK, WATCH_CONTROL_PORT, WATCH_CONTROL } kind;
};

struct gate {
    struct watched watched;
    int listener, port, server_port;
    char server_host[64];
    enum gate_state state;
    int fillers[GATE_FILLERS];
    struct fault_plan plan;
    struct fault_plan *next_plans[GATE_NEXT_MAX];
    size_t next_count;
    uint64_t accepted, open;
    char *log;
    size_t log_len;
    struct gate *next;
};

struct piece {
    uint64_t due_us;
    size_t len, at;
    struct piece *next;
    char bytes[];
};

struct link;

struct end { // one socket of a link
    struct watched watched;
    struct link *link;
    int fd;
    uint32_t events;
    bool is_watched;
};

struct flow { // one direction of a link
    const struct fault_rules *rules;
    struct end *from, *to;
    struct piece *head, *tail;
    size_t queued;
    uint64_t taken, passed; // bytes read, bytes written
    uint64_t next_us;       // no piece before
    uint64_t end_us;        // when the ending is due; 0: not yet reached
    uint64_t eof_us;        // when the source ended; 0: not yet
    bool is_shut, is_hung, is_blocked;
};

struct link {
    struct gate *gate;
    struct fault_plan plan;
    uint64_t number, random, began_us;
    struct end client, server;
    struct flow up, down;
    bool is_connecting, has_server, is_answered, dies;
    uint64_t leave_us; // closing cleanly: reads on until then
    struct link *next;
};

// proxy.c
extern int proxy_epoll;
uint64_t proxy_now_us(void);
void *proxy_must(void *memory);
int proxy_listen(int *port, int backlog); // *port 0: any; < 0: it failed
struct gate *gate_open(const char *host, int server_port, int port);
const char *gate_set_state(struct gate *gate, enum gate_state state);
struct gate *gate_find(int port);
void gate_close(struct gate *gate);
void gate_log(struct gate *gate, const char *line, size_t len);

// proxy_link.c
void link_accept(struct gate *gate, int fd);
void link_on_event(struct end *end, uint32_t events);
void link_cut_all(const struct gate *gate);
void links_end_turn(void);   // moves what is due, frees what died
uint64_t links_due_us(void); // when something is due; UINT64_MAX: never

// proxy_control.c
int control_open(int port); // prints the port
void control_on_event(struct watched *watched, uint32_t events);
void control_end_turn(void);
