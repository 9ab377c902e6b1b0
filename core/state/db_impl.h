#pragma once
// What db.c and db_guard.c share of a connection. Nobody else includes it.
#include "state/db.h"
#include <sqlite3.h>

#define DB_STATEMENTS 96
#define DB_HINTS 256
#define DB_LIMITS 9
#define DB_PLUGIN_MAX 64

struct db_statement {
    sqlite3_stmt *handle;
    char *sql;
    size_t len;
    uint64_t hash, used;
    char plugin[DB_PLUGIN_MAX + 1]; // prepared under this restriction; "" trusted
};

struct db {
    sqlite3 *handle;
    struct db_statement statements[DB_STATEMENTS];
    uint8_t hints[DB_HINTS]; // by address of the text: where its statement probably is
    uint64_t uses;
    char error[256];
    // restriction
    char plugin[DB_PLUGIN_MAX + 1]; // "": none
    uint64_t deadline_ns;           // 0: none
    int limits[DB_LIMITS];          // the connection's own
};

// Installs authorizer, progress and busy handlers.
void db_guard_install(struct db *db);
