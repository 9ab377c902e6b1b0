#pragma once
// What a service manager (systemd) is told and gives: sd_notify's datagrams to NOTIFY_SOCKET, and
// listening sockets in LISTEN_FDS. Without these variables everything here does nothing.
// notify_listen_fds: main thread, at start; the others: any thread.
#include <stddef.h>
#include <sys/types.h>

void notify_ready(void);
void notify_reloading(void);           // READY follows
void notify_stopping(void);            //
void notify_successor(pid_t main_pid); // this process is not the main one any more

// Descriptors 3 … of socket activation, when they are meant for this process: how many. They are
// closed on exec and do not block from then on; the variables are gone.
int notify_listen_fds(void);
#define NOTIFY_FIRST_FD 3
