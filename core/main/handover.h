#pragma once
// What a process and its successor say to each other during an upgrade, over a socketpair that the
// successor inherits: descriptors one way (listening sockets with what each is, the lock of the
// data files, the ends of predecessors that still drain), one line of text the other way. The pair
// lives as long as both processes: its end tells that the other one has gone.
//
//   old → successor   items with their descriptors, then "end"
//   successor → old   "ready 1101" (which of the items it uses) or "failed TEXT"
//
// SOCK_SEQPACKET: one send is one message. Main thread.
#include "base/err.h"
#include <stdbool.h>
#include <stddef.h>

#define HANDOVER_ENV "MOONGATE_UPGRADE_FD"
#define HANDOVER_NAME 512
#define HANDOVER_TEXT 8192
#define HANDOVER_ITEMS 1024

enum handover_kind {
    HANDOVER_PUBLIC,  // listening sockets; name: "host:port" as configured, or the path
    HANDOVER_ADMIN,   //
    HANDOVER_CONTROL, //
    HANDOVER_LOCK,
    HANDOVER_PREDECESSOR, // its end of a pair; name: its owner number
};
struct handover_item {
    enum handover_kind kind;
    int fd;
    bool is_used;  // by the one that received it
    bool is_given; // control: its path is a service manager's (told by "given " before the name)
    char name[HANDOVER_NAME];
};

// The pair: own end non-blocking, both closed on exec.
GW_MUSTCHECK int handover_pair(int *own, int *others);
// Sends all items and the end; borrows the descriptors.
GW_MUSTCHECK int handover_send(int channel, const struct handover_item *items, size_t count);
// Waits for them (at most 10 s). Gives the items and their descriptors (closed on exec).
GW_MUSTCHECK int handover_receive(int channel, struct handover_item **items, size_t *count,
                                  char *error, size_t error_size);
GW_MUSTCHECK int handover_tell(int channel, const char *text);
// One message as text, without waiting. GW_EAGAIN: none; GW_ERESET: the other end is closed.
GW_MUSTCHECK int handover_read(int channel, char *text, size_t size);
// The channel of the process that this one succeeds, taken out of the environment; -1: none.
int handover_inherited(void);
