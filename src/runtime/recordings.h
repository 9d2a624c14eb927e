/* runtime/recordings: a device's recordings of steps, each kept with all that it depends on. May use kernels. */
#ifndef WALSH_RUNTIME_RECORDINGS_H
#define WALSH_RUNTIME_RECORDINGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define WALSH_RECORDINGS 24

struct walsh_queue;
/* A key is bytes: what two steps have the same of makes them the same launches. */
struct walsh_recordings {
    struct walsh_recording {
        void *run; /* the module's; NULL: a free entry */
        uint8_t *key;
        size_t key_bytes;
        uint64_t used; /* the clock when it was last found or put */
    } entry[WALSH_RECORDINGS];
    uint64_t clock;
    /* the key that is built, and the last one that was not recorded */
    uint8_t *key, *seen;
    size_t key_bytes, key_room, seen_bytes, seen_room;
};

/* Begin a key, then say what it is made of. */
void walsh_recordings_begin(struct walsh_recordings *r);
enum walsh_status walsh_recordings_add(struct walsh_recordings *r, const void *bytes, size_t count,
                                       struct walsh_error *err);
/* The recording of the key; NULL: there is none. */
void *walsh_recordings_find(struct walsh_recordings *r);
/* True from the second time in a row on that this is asked for a key: a step that comes once is not worth its recording. */
enum walsh_status walsh_recordings_again(struct walsh_recordings *r, bool *again, struct walsh_error *err);
/* Keep `run` under the key, in the place of the one that was not used for longest where all are taken. */
enum walsh_status walsh_recordings_put(struct walsh_recordings *r, const struct walsh_queue *queue, void *run,
                                       struct walsh_error *err);
/* Forget all. */
void walsh_recordings_close(struct walsh_recordings *r, const struct walsh_queue *queue);

#endif
