#include "runtime/recordings.h"

#include <string.h>

#include "base/memory.h"
#include "kernels/device.h"

/* Room for `bytes` at least; what it held is kept. */
static enum walsh_status grow(uint8_t **p, size_t *room, size_t bytes, struct walsh_error *err)
{
    if (bytes <= *room) return WALSH_OK;
    uint8_t *larger;
    WALSH_TRY(walsh_alloc(2 * bytes, 1, "the key of a recording", &larger, err));
    if (*room > 0) memcpy(larger, *p, *room);
    walsh_free(*p);
    *p = larger;
    *room = 2 * bytes;
    return WALSH_OK;
}

void walsh_recordings_begin(struct walsh_recordings *r)
{
    r->key_bytes = 0;
}

enum walsh_status walsh_recordings_add(struct walsh_recordings *r, const void *bytes, size_t count,
                                       struct walsh_error *err)
{
    WALSH_TRY(grow(&r->key, &r->key_room, r->key_bytes + count, err));
    if (count > 0) memcpy(r->key + r->key_bytes, bytes, count);
    r->key_bytes += count;
    return WALSH_OK;
}

static bool is_key(const struct walsh_recordings *r, const uint8_t *key, size_t bytes)
{
    return bytes == r->key_bytes && (bytes == 0 || memcmp(key, r->key, bytes) == 0);
}

void *walsh_recordings_find(struct walsh_recordings *r)
{
    for (size_t i = 0; i < WALSH_RECORDINGS; i++) {
        struct walsh_recording *e = &r->entry[i];
        if (!e->run || !is_key(r, e->key, e->key_bytes)) continue;
        e->used = ++r->clock;
        return e->run;
    }
    return NULL;
}

enum walsh_status walsh_recordings_again(struct walsh_recordings *r, bool *again, struct walsh_error *err)
{
    *again = r->seen_bytes > 0 && is_key(r, r->seen, r->seen_bytes);
    WALSH_TRY(grow(&r->seen, &r->seen_room, r->key_bytes, err));
    if (r->key_bytes > 0) memcpy(r->seen, r->key, r->key_bytes);
    r->seen_bytes = r->key_bytes;
    return WALSH_OK;
}

enum walsh_status walsh_recordings_put(struct walsh_recordings *r, const struct walsh_queue *queue, void *run,
                                       struct walsh_error *err)
{
    struct walsh_recording *e = &r->entry[0];
    for (size_t i = 1; i < WALSH_RECORDINGS && e->run; i++)
        if (!r->entry[i].run || r->entry[i].used < e->used) e = &r->entry[i];
    uint8_t *key;
    WALSH_TRY(walsh_alloc(r->key_bytes, 1, "the key of a recording", &key, err));
    if (r->key_bytes > 0) memcpy(key, r->key, r->key_bytes);
    queue->memory->forget(queue, e->run);
    walsh_free(e->key);
    *e = (struct walsh_recording){run, key, r->key_bytes, ++r->clock};
    return WALSH_OK;
}

void walsh_recordings_close(struct walsh_recordings *r, const struct walsh_queue *queue)
{
    for (size_t i = 0; i < WALSH_RECORDINGS; i++) {
        queue->memory->forget(queue, r->entry[i].run);
        walsh_free(r->entry[i].key);
    }
    walsh_free(r->key);
    walsh_free(r->seen);
    *r = (struct walsh_recordings){0};
}
