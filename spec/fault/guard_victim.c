// Does one forbidden thing on a thread of the given name, before or after its first epoll_wait:
// guard_victim NAME before|after|renamed THING. renamed: after it, under another name. Exits 0 when
// nothing stopped it.
#include <fcntl.h>
#include <netdb.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

static char **words;

static void scrypt(void)
{
    unsigned char key[16];
    (void)EVP_PBE_scrypt("p", 1, (const unsigned char *)"s", 1, 2, 1, 1, 0, key, sizeof key);
}

static void sql(sqlite3 *db)
{
    sqlite3_stmt *statement = NULL;
    (void)sqlite3_prepare_v2(db, "select 1", -1, &statement, NULL);
    (void)sqlite3_finalize(statement);
}

static void do_it(const char *thing, int file, sqlite3 *db)
{
    char byte = 0;
    struct addrinfo *list = NULL;
    struct timespec short_time = {0, 1000};
    if (strcmp(thing, "open") == 0)
        close(open("/etc/hostname", O_RDONLY));
    else if (strcmp(thing, "device") == 0)
        close(open("/dev/null", O_RDONLY));
    else if (strcmp(thing, "read") == 0)
        (void)!read(file, &byte, 1);
    else if (strcmp(thing, "pipe") == 0)
        (void)!write(1, "", 0);
    else if (strcmp(thing, "fsync") == 0)
        (void)fsync(file);
    else if (strcmp(thing, "name") == 0)
        (void)!getaddrinfo("localhost", NULL, NULL, &list);
    else if (strcmp(thing, "sql") == 0)
        sql(db);
    else if (strcmp(thing, "hash") == 0)
        scrypt();
    else if (strcmp(thing, "sleep") == 0)
        nanosleep(&short_time, NULL);
    if (list)
        freeaddrinfo(list);
}

static void *run(void *arg)
{
    (void)arg;
    struct epoll_event event;
    int fd = epoll_create1(0), file = open("/etc/passwd", O_RDONLY);
    sqlite3 *db = NULL;
    (void)sqlite3_open(":memory:", &db);
    pthread_setname_np(pthread_self(), words[1]);
    if (strcmp(words[2], "before") != 0)
        (void)epoll_wait(fd, &event, 1, 0);
    if (strcmp(words[2], "renamed") == 0)
        pthread_setname_np(pthread_self(), "closing");
    do_it(words[3], file, db);
    // Left open: closing a database and files is no business of this test.
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t thread;
    if (argc != 4)
        return 2;
    words = argv;
    if (pthread_create(&thread, NULL, run, NULL) != 0)
        return 2;
    pthread_join(thread, NULL);
    return 0;
}
