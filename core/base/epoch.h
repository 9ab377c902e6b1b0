#pragma once
// Epoch reclamation: readers (workers) use shared immutable entries without counting references;
// a replaced entry is freed when every reader has since passed the end of a turn.
//
//   worker:  epoch_enter(r) at the start of a turn … reads … epoch_leave(r) at its end
//   writer:  swap the pointer (release), then epoch_retire(e, old, free_fn)
//
// An idle reader (left, not entered) holds nothing back.
#include "base/err.h"
#include <stddef.h>
#include <stdint.h>

struct epoch;
struct epoch_reader;

struct epoch *epoch_new(size_t max_readers);
void epoch_destroy(struct epoch *epoch); // frees all that is retired; no reader may be inside
// One per thread that reads. NULL: too many.
struct epoch_reader *epoch_register(struct epoch *epoch);
void epoch_unregister(struct epoch_reader *reader);
void epoch_enter(struct epoch_reader *reader); // may nest
void epoch_leave(struct epoch_reader *reader);
// Any thread: frees later, on a thread that calls epoch_reclaim. GW_ENOMEM: not queued.
GW_MUSTCHECK int epoch_retire(struct epoch *epoch, void *object, void (*free_object)(void *object));
// Any thread (normally the writer): frees what no reader can see any more; returns how many remain.
size_t epoch_reclaim(struct epoch *epoch);
// Blocks until every reader has passed an end of turn since the call (not on a worker), at most
// timeout_ms; GW_ETIMEOUT.
GW_MUSTCHECK int epoch_synchronize(struct epoch *epoch, uint32_t timeout_ms);
