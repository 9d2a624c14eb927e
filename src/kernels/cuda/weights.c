/* Weights and rotations into the layouts of the kernels. Codes stream from where they are stored: threads of the queue's pool
 * read pieces into a pinned buffer while the buffer before it is copied, and kernels lay them out. */
#include <stdatomic.h>
#include <string.h>

#include "base/memory.h"
#include "formats/e8p_planes.h"
#include "formats/stored.h"
#include "kernels/cuda/backend.h"

#define ALIGNMENT 256                  /* of an array */
#define READ_BYTES ((size_t)256 << 10) /* that a thread reads at a time, about */
#define MOST_READINGS 256

static struct cuda_device *enter(const struct walsh_queue *q)
{
    struct cuda_device *d = cuda_device_of(q);
    cudaSetDevice(d->number);
    return d;
}

/* --- places --- */

/* Bytes of array number k, where a matrix has it: stage k; or values or codes, scales, zero points. */
static size_t array_bytes(const struct walsh_weights *w, unsigned k)
{
    if (w->format == WALSH_FORMAT_E8P)
        return cuda_e8p_stage_bytes(w->rows, w->cols, w->stage[k].kind == WALSH_STAGE_E81B);
    if (!walsh_format_is_block(w->format)) return (size_t)w->rows * walsh_stored_unit_bytes(w, 0);
    return k == WALSH_STORED_CODES    ? walsh_block_data_words(w) * sizeof(uint32_t)
           : k == WALSH_STORED_SCALES ? walsh_block_scale_count(w) * walsh_scale_bytes(w->block.scale)
                                      : walsh_block_scale_count(w);
}

size_t cuda_weights_bytes(const struct walsh_queue *q, const struct walsh_weights *w)
{
    size_t bytes = 0;
    (void)q;
    for (unsigned k = 0; k < walsh_stored_arrays(w); k++)
        bytes += walsh_round_up(array_bytes(w, k), ALIGNMENT);
    return bytes;
}

/* The descriptor of the matrix in `room`. */
static struct walsh_weights placed(const struct walsh_weights *from, uint8_t *room)
{
    struct walsh_weights w = *from;
    void *array[WALSH_MAX_STAGES] = {NULL};
    for (unsigned k = 0; k < walsh_stored_arrays(from); k++) {
        array[k] = room;
        room += walsh_round_up(array_bytes(from, k), ALIGNMENT);
    }
    w.stored = NULL;
    w.data = w.scales = NULL;
    w.zeros = NULL;
    for (unsigned k = 0; k < WALSH_MAX_STAGES; k++) w.stage[k].data = NULL;
    if (w.format == WALSH_FORMAT_E8P) {
        for (unsigned k = 0; k < w.stages; k++) w.stage[k].data = array[k];
    } else {
        w.data = array[WALSH_STORED_CODES];
        w.scales = array[WALSH_STORED_SCALES];
        w.zeros = array[WALSH_STORED_ZEROS];
    }
    return w;
}

/* --- readings --- */

/* Units of all arrays of a matrix, which have their place in a pinned buffer. */
struct reading {
    struct walsh_weights w; /* where it comes from */
    const struct walsh_stored_weights *stored;
    unsigned arrays;
    bool planes; /* E8P of the CPU's layout, not as it is stored */
    size_t units, first, count;
    size_t unit[WALSH_MAX_STAGES]; /* bytes */
    uint8_t *to[WALSH_MAX_STAGES], *pinned[WALSH_MAX_STAGES];
    struct cuda_room room;
    /* Of every array: the number of its first task, and units of a task. A task reads one array only: what is read at
     * a time is then as large for each of them. */
    size_t task[WALSH_MAX_STAGES], at_once[WALSH_MAX_STAGES];
};
struct cuda_readings {
    struct walsh_pool *pool;
    size_t count, tasks;
    atomic_size_t broken; /* number of a reading that found what is no number; count: none */
    struct reading entry[MOST_READINGS];
};

static void read_units(void *argument, size_t begin, size_t end, unsigned worker)
{
    struct cuda_readings *r = argument;
    (void)worker;
    size_t i = 0;
    for (size_t task = begin; task < end; task++) {
        while (i + 1 < r->count && r->entry[i + 1].task[0] <= task) i++;
        const struct reading *e = &r->entry[i];
        unsigned k = 0;
        while (k + 1 < e->arrays && e->task[k + 1] <= task) k++;
        const size_t first = (task - e->task[k]) * e->at_once[k],
                     last = walsh_min(first + e->at_once[k], e->count);
        if (!e->stored->read(e->stored, k, e->first + first, e->first + last,
                             e->pinned[k] + first * e->unit[k]))
            atomic_store_explicit(&r->broken, i, memory_order_relaxed);
    }
}

static bool is_laid_out(const struct reading *s, unsigned array)
{
    return s->w.format < WALSH_FORMAT_E8P ||
           (walsh_format_is_block(s->w.format) && array != WALSH_STORED_CODES);
}

/* An array's units from `staged` to their place. */
static void lay_out(struct cuda_device *d, const struct reading *s, unsigned array, const void *staged)
{
    const struct walsh_weights *w = &s->w;
    const uint32_t rows =
        (uint32_t)walsh_min(w->rows - s->first * WALSH_BLOCK_ROWS, s->count * WALSH_BLOCK_ROWS);
    if (w->format == WALSH_FORMAT_E8P) {
        const bool narrow = w->stage[array].kind == WALSH_STAGE_E81B;
        uint8_t *to =
            s->to[array] + cuda_e8p_stage_bytes((uint32_t)s->first * WALSH_BLOCK_ROWS, w->cols, narrow);
        if (s->planes)
            cuda_repack_stage(d->stream, d->plane_tables, rows, w->cols, narrow, staged, to);
        else
            cuda_lay_out_stage(d->stream, rows, w->cols, narrow, staged, to);
    } else {
        cuda_lay_out_codes(d->stream, walsh_code_bits(w->block.code), rows, w->cols, s->stored->flip, staged,
                           s->to[array] +
                               s->first * walsh_block_words(w) * WALSH_BLOCK_ROWS * sizeof(uint32_t));
    }
    cuda_note(d, "weights");
}

/* What was read goes to its places. */
static enum walsh_status send_units(struct cuda_device *d, const struct reading *s, struct walsh_error *err)
{
    for (unsigned k = 0; k < s->arrays; k++) {
        const bool done = is_laid_out(s, k);
        void *staged = (uint8_t *)s->room.device + (s->pinned[k] - (uint8_t *)s->room.pinned);
        const cudaError_t code =
            cudaMemcpyAsync(done ? s->to[k] + s->first * s->unit[k] : staged, s->pinned[k],
                            s->count * s->unit[k], cudaMemcpyHostToDevice, d->stream);
        if (code != cudaSuccess) return cuda_fail(err, code, "an upload");
        if (!done) lay_out(d, s, k, staged);
    }
    return WALSH_OK;
}

enum walsh_status cuda_read_pending(struct cuda_device *d, struct walsh_error *err)
{
    struct cuda_readings *r = d->readings;
    if (!r || r->count == 0) return WALSH_OK;
    const size_t count = r->count;
    atomic_store(&r->broken, count);
    walsh_pool_run(r->pool, r->tasks, 1, read_units, r);
    const size_t broken = atomic_load(&r->broken);
    enum walsh_status status = WALSH_OK;
    if (broken < count) status = r->entry[broken].stored->refuse(r->entry[broken].stored, err);
    for (size_t i = 0; i < count && status == WALSH_OK; i++) status = send_units(d, &r->entry[i], err);
    r->count = r->tasks = 0;
    return status;
}

/* The units of a matrix take their places in the pinned buffers, piece by piece. */
static enum walsh_status place_units(const struct walsh_queue *q, struct reading *s, struct walsh_error *err)
{
    struct cuda_device *d = enter(q);
    const size_t together = s->w.format == WALSH_FORMAT_E8P ? CUDA_E8P_ROWS / WALSH_BLOCK_ROWS : 1,
                 gaps = s->arrays * ALIGNMENT;
    size_t all = 0; /* bytes of a unit of every array */
    for (unsigned k = 0; k < s->arrays; k++) all += s->unit[k];
    if (!d->readings)
        WALSH_TRY(walsh_alloc_zero(1, sizeof *d->readings, "readings of weights", &d->readings, err));
    struct cuda_readings *r = d->readings;
    r->pool = q->pool;
    for (unsigned k = 0; k < s->arrays; k++) s->at_once[k] = walsh_max(1, READ_BYTES / s->unit[k]);
    for (; s->first < s->units; s->first += s->count) {
        const size_t rest = s->units - s->first,
                     least = walsh_min(rest * all, walsh_max(together * all, CUDA_PIECE_BYTES)) + gaps;
        if (r->count == MOST_READINGS) WALSH_TRY(cuda_read_pending(d, err));
        WALSH_TRY(cuda_pinned_room(d, least, &s->room, err));
        s->count = walsh_min(rest, (s->room.bytes - gaps) / all);
        if (s->count < rest) s->count -= s->count % together;
        uint8_t *at = s->room.pinned;
        for (unsigned k = 0; k < s->arrays; k++) {
            s->pinned[k] = at;
            at += walsh_round_up(s->count * s->unit[k], ALIGNMENT);
        }
        d->used += (size_t)(at - (uint8_t *)s->room.pinned);
        for (unsigned k = 0; k < s->arrays; k++) {
            s->task[k] = r->tasks;
            r->tasks += walsh_div_up(s->count, s->at_once[k]);
        }
        r->entry[r->count++] = *s;
    }
    return WALSH_OK;
}

/* Stages in the CPU's layout, as units of 16 rows, the last of which may have fewer. */
struct host_planes {
    struct walsh_stored_weights stored;
    const struct walsh_weights *w;
};

static bool read_planes(const struct walsh_stored_weights *stored, unsigned array, size_t begin, size_t end,
                        void *to)
{
    const struct walsh_weights *w = ((const struct host_planes *)stored)->w;
    const enum walsh_stage_kind kind = w->stage[array].kind;
    const size_t unit = walsh_stage_bytes(kind, WALSH_BLOCK_ROWS, w->cols),
                 bytes = walsh_stage_bytes(kind, w->rows, w->cols);
    memcpy(to, (const uint8_t *)w->stage[array].data + begin * unit,
           walsh_min(bytes, end * unit) - begin * unit);
    return true;
}

/* --- the calls --- */

/* The reading of a matrix that has its place; the arrays' units are the caller's to say. */
static struct reading reading_of(const struct walsh_weights *from, const struct walsh_weights *to,
                                 const struct walsh_stored_weights *stored)
{
    struct reading s = {
        .w = *from, .stored = stored, .arrays = walsh_stored_arrays(from), .units = walsh_stored_units(from)};
    const void *const array[] = {to->data, to->scales, to->zeros};
    for (unsigned k = 0; k < s.arrays; k++)
        s.to[k] = (uint8_t *)(uintptr_t)(from->format == WALSH_FORMAT_E8P ? to->stage[k].data : array[k]);
    return s;
}

static enum walsh_status place_stored(const struct walsh_queue *q, const struct walsh_weights *from,
                                      const struct walsh_weights *to, struct walsh_error *err)
{
    struct reading s = reading_of(from, to, from->stored);
    for (unsigned k = 0; k < s.arrays; k++) s.unit[k] = walsh_stored_unit_bytes(from, k);
    return place_units(q, &s, err);
}

static enum walsh_status place_planes(const struct walsh_queue *q, const struct walsh_weights *from,
                                      const struct walsh_weights *to, struct walsh_error *err)
{
    const struct host_planes host = {.stored = {.read = read_planes}, .w = from};
    struct reading s = reading_of(from, to, &host.stored);
    s.planes = true;
    for (unsigned k = 0; k < from->stages; k++)
        s.unit[k] = walsh_stage_bytes(from->stage[k].kind, WALSH_BLOCK_ROWS, from->cols);
    WALSH_TRY(place_units(q, &s, err));
    return cuda_read_pending(enter(q), err); /* `host` is this function's */
}

enum walsh_status cuda_place_weights(const struct walsh_queue *q, const struct walsh_weights *from,
                                     const char *what, void *room, struct walsh_weights *out,
                                     struct walsh_error *err)
{
    (void)what;
    *out = placed(from, room);
    if (from->stored) return place_stored(q, from, out, err);
    if (from->format == WALSH_FORMAT_E8P) return place_planes(q, from, out, err);
    const void *const host[] = {from->data, from->scales, from->zeros}; /* they are laid out already */
    const void *const array[] = {out->data, out->scales, out->zeros};
    for (unsigned k = 0; k < walsh_stored_arrays(from); k++)
        WALSH_TRY(cuda_memory.upload(q, (void *)(uintptr_t)array[k], host[k], array_bytes(from, k), err));
    return WALSH_OK;
}

void cuda_free_weights(const struct walsh_queue *q, struct walsh_weights *w)
{
    const void *first = w->format == WALSH_FORMAT_E8P ? w->stage[0].data : w->data;
    cuda_memory.free(q, (void *)(uintptr_t)first);
    memset(w, 0, sizeof *w);
}

enum walsh_status cuda_upload_weights(const struct walsh_queue *q, const struct walsh_weights *host,
                                      const char *what, struct walsh_weights *out, struct walsh_error *err)
{
    void *room;
    memset(out, 0, sizeof *out);
    const size_t bytes = cuda_weights_bytes(q, host);
    WALSH_TRY(cuda_memory.alloc(q, bytes, what, &room, err));
    enum walsh_status status = cuda_place_weights(q, host, what, room, out, err);
    if (status == WALSH_OK) status = cuda_read_pending(cuda_device_of(q), err);
    if (status != WALSH_OK) cuda_free_weights(q, out);
    return status;
}

/* --- rotations --- */

void cuda_pack_signs(const float *signs, uint32_t padded, uint32_t *words)
{
    uint32_t *units = words + padded;
    memcpy(words, signs, padded * sizeof *words);
    memset(units, 0, CUDA_SIGN_WORDS(padded) * sizeof *units);
    units[0] = 1;
    for (uint32_t i = 0; i < padded; i++) {
        if (signs[i] != 1.0f && signs[i] != -1.0f) units[0] = 0;
        if (signs[i] < 0) units[1 + i / 32] |= 1u << i % 32;
    }
}

bool cuda_rotates_any(const struct walsh_rotation *r)
{
    const struct walsh_blocks *blocks = &r->blocks;
    if (r->kind == WALSH_ROTATION_OVERLAP || blocks->uniform || blocks->padded > CUDA_MAX_ROTATED)
        return true;
    uint32_t at = 0; /* a thread's 32 elements are of one block */
    for (uint32_t b = 0; b < blocks->count; at += blocks->block[b++])
        if (blocks->block[b] < 1u << CUDA_MIN_LOG2 || at % 32 != 0) return true;
    return false;
}

enum walsh_status cuda_rotation_bytes(const struct walsh_queue *q, const struct walsh_rotation *rotation,
                                      const char *what, size_t *out, struct walsh_error *err)
{
    const uint32_t padded = rotation->blocks.padded;
    *out = 0;
    if (rotation->kind == WALSH_ROTATION_NONE) return WALSH_OK;
    if (!cuda_rotates_any(rotation)) {
        *out = ((size_t)padded + CUDA_SIGN_WORDS(padded)) * sizeof(uint32_t);
        return WALSH_OK;
    }
    const uint32_t most = cuda_rotate_any_most(cuda_device_of(q)->number);
    if (padded > most)
        return walsh_fail(err, WALSH_E_UNSUPPORTED,
                          "%s: a rotation of %u elements; the CUDA kernels hold %u on this device", what,
                          padded, most);
    *out = walsh_rotation_signs(rotation) * sizeof(float);
    return WALSH_OK;
}

enum walsh_status cuda_place_rotation(const struct walsh_queue *q, const struct walsh_rotation *host,
                                      const char *what, void *room, struct walsh_rotation *out,
                                      struct walsh_error *err)
{
    size_t bytes;
    uint32_t *words;
    *out = *host;
    out->signs = NULL;
    WALSH_TRY(cuda_rotation_bytes(q, host, what, &bytes, err));
    if (bytes == 0) return WALSH_OK;
    out->signs = room;
    if (cuda_rotates_any(host)) return cuda_memory.upload(q, room, host->signs, bytes, err);
    WALSH_TRY(walsh_alloc(bytes, 1, what, &words, err));
    cuda_pack_signs(host->signs, host->blocks.padded, words);
    const enum walsh_status status = cuda_memory.upload(q, room, words, bytes, err);
    walsh_free(words);
    return status;
}

enum walsh_status cuda_upload_rotation(const struct walsh_queue *q, const struct walsh_rotation *host,
                                       const char *what, struct walsh_rotation *out, struct walsh_error *err)
{
    size_t bytes;
    void *room;
    *out = *host;
    out->signs = NULL;
    WALSH_TRY(cuda_rotation_bytes(q, host, what, &bytes, err));
    if (bytes == 0) return WALSH_OK;
    WALSH_TRY(cuda_memory.alloc(q, bytes, what, &room, err));
    const enum walsh_status status = cuda_place_rotation(q, host, what, room, out, err);
    if (status != WALSH_OK) {
        cuda_memory.free(q, room);
        out->signs = NULL;
    }
    return status;
}
