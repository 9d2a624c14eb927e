/* A device whose memory is the host's and that reads stored weights as a device does, a few units at a time, into the CPU's
 * layout: what it holds must be what the CPU's loader makes. */
#ifndef WALSH_TESTS_STORED_WEIGHTS_H
#define WALSH_TESTS_STORED_WEIGHTS_H

#include <string.h>

#include "base/memory.h"
#include "checkpoint/glq.h"
#include "formats/e8p_planes.h"
#include "formats/stored.h"
#include "kernels/device.h"

enum { STORED_PIECE = 3 }; /* units that are read at a time */

static struct {
    size_t allocations, allocated, placed, units; /* units: read */
    size_t available;                             /* what figures says */
} stored_seen;

static inline size_t stored_array_bytes(const struct walsh_weights *w, unsigned array)
{
    if (w->format == WALSH_FORMAT_E8P) return walsh_stage_bytes(w->stage[array].kind, w->rows, w->cols);
    if (!walsh_format_is_block(w->format))
        return (size_t)w->rows * w->cols * (w->format == WALSH_FORMAT_F32 ? 4 : 2);
    if (array == WALSH_STORED_CODES) return walsh_block_data_words(w) * 4;
    return walsh_block_scale_count(w) *
           (array == WALSH_STORED_SCALES ? walsh_scale_bytes(w->block.scale) : 1);
}

static inline const void *stored_array(const struct walsh_weights *w, unsigned array)
{
    return w->format == WALSH_FORMAT_E8P ? w->stage[array].data
           : array == 0                  ? w->data
           : array == 1                  ? w->scales
                                         : w->zeros;
}

/* `count` units from `first` on into the whole array at `to`. */
static inline void stored_lay_out(const struct walsh_weights *w, unsigned array, size_t first, size_t count,
                                  const uint8_t *units, uint8_t *to)
{
    const size_t unit = walsh_stored_unit_bytes(w, array);
    const bool codes = walsh_format_is_block(w->format) && array == WALSH_STORED_CODES;
    uint16_t plain[16 * 512 / 8]; /* of matrices of 512 columns at most */
    if (w->format == WALSH_FORMAT_E8P) assert_in_range(w->cols, 8, 512);
    for (size_t i = 0; i < count; i++, units += unit) {
        if (codes) {
            walsh_block_pack_codes(w, first + i, units, walsh_stored_row_bytes(w), w->stored->flip,
                                   (uint32_t *)(void *)to);
        } else if (w->format != WALSH_FORMAT_E8P) {
            memcpy(to + (first + i) * unit, units, unit);
        } else if (w->stage[array].kind == WALSH_STAGE_E8P) {
            walsh_glq_unpack_e8p(units, 16, w->cols, plain);
            walsh_e8p_pack(w->cols, plain, 0, 16,
                           to + walsh_stage_bytes(WALSH_STAGE_E8P, (uint32_t)(16 * (first + i)), w->cols));
        } else {
            walsh_e81b_pack(w->cols, units, 0, 16,
                            to + walsh_stage_bytes(WALSH_STAGE_E81B, (uint32_t)(16 * (first + i)), w->cols));
        }
    }
}

/* Stored weights as the CPU has them, in `room` of stored_bytes. */
static inline size_t stored_bytes(const struct walsh_queue *q, const struct walsh_weights *w)
{
    size_t bytes = 0;
    (void)q;
    for (unsigned k = 0; k < walsh_stored_arrays(w); k++)
        bytes += walsh_round_up(stored_array_bytes(w, k), 256);
    return bytes;
}
static inline enum walsh_status stored_place(const struct walsh_queue *q, const struct walsh_weights *from,
                                             const char *what, void *room, struct walsh_weights *out,
                                             struct walsh_error *err)
{
    uint8_t *to = room;
    const void *arrays[WALSH_MAX_STAGES] = {NULL};
    (void)q;
    stored_seen.placed++;
    for (unsigned k = 0; k < walsh_stored_arrays(from); k++) {
        const size_t units = walsh_stored_units(from), unit = walsh_stored_unit_bytes(from, k);
        uint8_t *piece;
        arrays[k] = to;
        WALSH_TRY(walsh_alloc(STORED_PIECE, unit, what, &piece, err));
        for (size_t at = 0; from->stored && at < units; at += STORED_PIECE) {
            const size_t count = walsh_min(STORED_PIECE, units - at);
            memset(piece, 0xa5, STORED_PIECE * unit); /* what is not written is not read */
            if (!from->stored->read(from->stored, k, at, at + count, piece)) {
                walsh_free(piece);
                return from->stored->refuse(from->stored, err);
            }
            stored_lay_out(from, k, at, count, piece, to);
            stored_seen.units += count;
        }
        if (!from->stored) memcpy(to, stored_array(from, k), stored_array_bytes(from, k));
        walsh_free(piece);
        to += walsh_round_up(stored_array_bytes(from, k), 256);
    }
    *out = *from;
    out->stored = NULL;
    out->data = out->scales = NULL;
    out->zeros = NULL;
    if (from->format == WALSH_FORMAT_E8P) {
        for (unsigned k = 0; k < from->stages; k++) out->stage[k].data = arrays[k];
    } else {
        out->data = arrays[0];
        out->scales = arrays[1];
        out->zeros = arrays[2];
    }
    return WALSH_OK;
}

static inline void stored_same(const char *name, const struct walsh_weights *a, const struct walsh_weights *b)
{
    assert_int_equal(a->format, b->format);
    assert_int_equal(a->rows, b->rows);
    assert_int_equal(a->cols, b->cols);
    assert_int_equal(walsh_stored_arrays(a), walsh_stored_arrays(b));
    assert_true(a->tensor_scale == b->tensor_scale);
    for (unsigned k = 0; k < walsh_stored_arrays(a); k++) {
        if (a->format == WALSH_FORMAT_E8P) assert_true(a->stage[k].scale == b->stage[k].scale);
        if (memcmp(stored_array(a, k), stored_array(b, k), stored_array_bytes(a, k)) != 0)
            fail_msg("%s: array %u of %s", name, k, walsh_format_name(a->format));
    }
}

/* The rest of a device. */
static inline enum walsh_status stored_alloc(const struct walsh_queue *q, size_t bytes, const char *what,
                                             void *out, struct walsh_error *err)
{
    (void)q;
    stored_seen.allocations++;
    stored_seen.allocated += bytes;
    return walsh_alloc(bytes, 1, what, out, err);
}
static inline void stored_free(const struct walsh_queue *q, void *p)
{
    (void)q;
    walsh_free(p);
}
static inline enum walsh_status stored_upload(const struct walsh_queue *q, void *to, const void *from,
                                              size_t bytes, struct walsh_error *err)
{
    (void)q, (void)err;
    memcpy(to, from, bytes);
    return WALSH_OK;
}
static inline enum walsh_status stored_synchronize(const struct walsh_queue *q, struct walsh_error *err)
{
    (void)q, (void)err;
    return WALSH_OK;
}
static inline enum walsh_status stored_rotation_bytes(const struct walsh_queue *q,
                                                      const struct walsh_rotation *r, const char *what,
                                                      size_t *out, struct walsh_error *err)
{
    (void)q, (void)what, (void)err;
    *out = walsh_rotation_signs(r) * sizeof(float);
    return WALSH_OK;
}
static inline enum walsh_status stored_place_rotation(const struct walsh_queue *q,
                                                      const struct walsh_rotation *r, const char *what,
                                                      void *room, struct walsh_rotation *out,
                                                      struct walsh_error *err)
{
    (void)q, (void)what, (void)err;
    memcpy(room, r->signs, walsh_rotation_signs(r) * sizeof(float));
    *out = *r;
    out->signs = room;
    return WALSH_OK;
}
static inline void stored_figures(const struct walsh_queue *q, size_t *available, size_t *total)
{
    (void)q;
    *available = *total = stored_seen.available;
}
static const struct walsh_memory stored_memory = {.alloc = stored_alloc,
                                                  .free = stored_free,
                                                  .upload = stored_upload,
                                                  .synchronize = stored_synchronize,
                                                  .weights_bytes = stored_bytes,
                                                  .place_weights = stored_place,
                                                  .rotation_bytes = stored_rotation_bytes,
                                                  .place_rotation = stored_place_rotation,
                                                  .figures = stored_figures};

#endif
