#pragma once
// The listening sockets of the process: bound at start, handed over by a predecessor (an upgrade)
// or given by a service manager. Each belongs to one worker. With more workers than sockets of a
// predecessor further ones are bound to the same port (SO_REUSEPORT), or, where that is not
// possible, several workers listen on one; with fewer, a worker has several: a socket that nobody
// served would swallow connections. Main thread; workers read their own entries.
#include "main/handover.h"

#include <stdint.h>

struct process;

struct process_socket {
    enum handover_kind kind; // PUBLIC, ADMIN or CONTROL
    int fd;                  // closed by the listener once `is_taken`
    uint32_t worker;
    bool is_taken;  // a listener has it
    bool is_ours;   // control: ours to unlink
    bool is_given;  // by a service manager: never is
    bool is_handed; // a successor uses it: it is not emptied when this process closes it
    char name[HANDOVER_NAME];
};

// Makes process->sockets for process->worker_count workers; takes what is usable out of the handed
// items (their fd becomes -1) and of LISTEN_FDS, closes what is not.
GW_MUSTCHECK int sockets_open(struct process *process, char *error, size_t error_size);
// Closes what no listener has taken, unlinks the control socket's path unless a successor has it.
void sockets_close(struct process *process);
