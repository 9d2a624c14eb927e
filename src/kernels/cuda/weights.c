/* Weights and rotations into the layouts of the kernels. Codes stream from where they are stored: threads of the queue's pool
 * read a piece into a pinned buffer while the piece before it is copied, and kernels lay it out. */
#include <stdatomic.h>
#include <string.h>

#include "base/memory.h"
#include "formats/e8p_planes.h"
#include "formats/stored.h"
#include "kernels/cuda/backend.h"

#define ALIGNMENT 256 /* of an array */
/* A thread reads about so much at a time; less of a small matrix, so that every thread has something, but not less than the least. */
#define READ_BYTES ((size_t)256 << 10)
#define LEAST_READ_BYTES ((size_t)16 << 10)

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

/* --- streams --- */

/* A matrix on its way: units of all its arrays are read together, sent, and laid out where they are not so already. */
struct stream {
    const struct walsh_weights *w;
    const struct walsh_stored_weights *stored;
    unsigned arrays;
    bool planes; /* E8P of the CPU's layout, not as it is stored */
    size_t units;
    size_t unit[WALSH_MAX_STAGES]; /* bytes */
    uint8_t *to[WALSH_MAX_STAGES];
    /* the piece at hand */
    size_t first;
    uint8_t *pinned[WALSH_MAX_STAGES];
    atomic_bool broken;
};

static void read_units(void *argument, size_t begin, size_t end, unsigned worker)
{
    struct stream *s = argument;
    (void)worker;
    for (unsigned k = 0; k < s->arrays; k++)
        if (!s->stored->read(s->stored, k, s->first + begin, s->first + end,
                             s->pinned[k] + begin * s->unit[k]))
            atomic_store_explicit(&s->broken, true, memory_order_relaxed);
}

static bool is_laid_out(const struct stream *s, unsigned array)
{
    return s->w->format < WALSH_FORMAT_E8P ||
           (walsh_format_is_block(s->w->format) && array != WALSH_STORED_CODES);
}

/* `count` units of an array from `first` on, from `staged` to their place. */
static void lay_out(struct cuda_device *d, const struct stream *s, unsigned array, const void *staged,
                    size_t count)
{
    const struct walsh_weights *w = s->w;
    const uint32_t rows =
        (uint32_t)walsh_min(w->rows - s->first * WALSH_BLOCK_ROWS, count * WALSH_BLOCK_ROWS);
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

/* What the threads read into `room`, `count` units of every array, goes to its places. */
static enum walsh_status send_units(struct cuda_device *d, const struct stream *s, struct cuda_room room,
                                    size_t count, struct walsh_error *err)
{
    for (unsigned k = 0; k < s->arrays; k++) {
        const bool done = is_laid_out(s, k);
        const size_t bytes = count * s->unit[k],
                     taken = walsh_min(walsh_round_up(bytes, ALIGNMENT), room.bytes);
        WALSH_TRY(cuda_send(d, done ? s->to[k] + s->first * s->unit[k] : room.device, &room, bytes, err));
        if (!done) lay_out(d, s, k, room.device, count);
        room = (struct cuda_room){(uint8_t *)room.pinned + taken, (uint8_t *)room.device + taken,
                                  room.bytes - taken};
    }
    return WALSH_OK;
}

static enum walsh_status run(const struct walsh_queue *q, struct stream *s, struct walsh_error *err)
{
    struct cuda_device *d = enter(q);
    const size_t together = s->w->format == WALSH_FORMAT_E8P ? CUDA_E8P_ROWS / WALSH_BLOCK_ROWS : 1,
                 gaps = s->arrays * ALIGNMENT;
    size_t all = 0; /* bytes of a unit of every array */
    for (unsigned k = 0; k < s->arrays; k++) all += s->unit[k];
    for (size_t count; s->first < s->units; s->first += count) {
        struct cuda_room room;
        const size_t rest = s->units - s->first,
                     least = walsh_min(rest * all, walsh_max(together * all, CUDA_PIECE_BYTES)) + gaps;
        WALSH_TRY(cuda_pinned_room(d, least, &room, err));
        count = walsh_min(rest, (room.bytes - gaps) / all);
        if (count < rest) count -= count % together;
        s->pinned[0] = room.pinned;
        for (unsigned k = 1; k < s->arrays; k++)
            s->pinned[k] = s->pinned[k - 1] + walsh_round_up(count * s->unit[k - 1], ALIGNMENT);
        const size_t share = count * all / walsh_pool_threads(q->pool),
                     bytes = walsh_min(READ_BYTES, walsh_max(share, LEAST_READ_BYTES));
        walsh_pool_run(q->pool, count, walsh_max(1, bytes / all), read_units, s);
        if (atomic_load(&s->broken)) return s->stored->refuse(s->stored, err);
        WALSH_TRY(send_units(d, s, room, count, err));
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

/* The stream of a matrix that has its place; the arrays' units are the caller's to say. */
static struct stream stream_of(const struct walsh_weights *from, const struct walsh_weights *to,
                               const struct walsh_stored_weights *stored)
{
    struct stream s = {
        .w = from, .stored = stored, .arrays = walsh_stored_arrays(from), .units = walsh_stored_units(from)};
    const void *const array[] = {to->data, to->scales, to->zeros};
    for (unsigned k = 0; k < s.arrays; k++)
        s.to[k] = (uint8_t *)(uintptr_t)(from->format == WALSH_FORMAT_E8P ? to->stage[k].data : array[k]);
    return s;
}

static enum walsh_status place_stored(const struct walsh_queue *q, const struct walsh_weights *from,
                                      const struct walsh_weights *to, struct walsh_error *err)
{
    struct stream s = stream_of(from, to, from->stored);
    for (unsigned k = 0; k < s.arrays; k++) s.unit[k] = walsh_stored_unit_bytes(from, k);
    return run(q, &s, err);
}

static enum walsh_status place_planes(const struct walsh_queue *q, const struct walsh_weights *from,
                                      const struct walsh_weights *to, struct walsh_error *err)
{
    const struct host_planes host = {.stored = {.read = read_planes}, .w = from};
    struct stream s = stream_of(from, to, &host.stored);
    s.planes = true;
    for (unsigned k = 0; k < s.arrays; k++)
        s.unit[k] = walsh_stage_bytes(from->stage[k].kind, WALSH_BLOCK_ROWS, from->cols);
    return run(q, &s, err);
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
    const enum walsh_status status = cuda_place_weights(q, host, what, room, out, err);
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

enum walsh_status cuda_rotation_bytes(const struct walsh_queue *q, const struct walsh_rotation *rotation,
                                      const char *what, size_t *out, struct walsh_error *err)
{
    (void)q;
    const struct walsh_blocks *blocks = &rotation->blocks;
    *out = 0;
    if (rotation->kind == WALSH_ROTATION_NONE) return WALSH_OK;
    if (rotation->kind != WALSH_ROTATION_BLOCKS)
        return walsh_fail(err, WALSH_E_UNSUPPORTED,
                          "%s: a rotation of overlapping blocks has no kernels on CUDA", what);
    if (blocks->padded > CUDA_MAX_ROTATED)
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "%s: a rotation of %u elements; the CUDA kernels hold %u",
                          what, blocks->padded, CUDA_MAX_ROTATED);
    if (blocks->uniform)
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "%s: Hadamard blocks of one size have no kernels on CUDA",
                          what);
    for (uint32_t b = 0; b < blocks->count; b++)
        if (blocks->block[b] < 1u << CUDA_MIN_LOG2)
            return walsh_fail(err, WALSH_E_UNSUPPORTED,
                              "%s: a Hadamard block of %u; the CUDA kernels know %u and more", what,
                              blocks->block[b], 1u << CUDA_MIN_LOG2);
    *out = ((size_t)blocks->padded + CUDA_SIGN_WORDS(blocks->padded)) * sizeof(uint32_t);
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
    WALSH_TRY(walsh_alloc(bytes, 1, what, &words, err));
    cuda_pack_signs(host->signs, host->blocks.padded, words);
    const enum walsh_status status = cuda_memory.upload(q, room, words, bytes, err);
    walsh_free(words);
    out->signs = room;
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
