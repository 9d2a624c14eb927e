/* Weights that stay in their file until a device asks for them (formats/stored.h). */
#include <string.h>

#include "base/file.h"
#include "formats/stored.h"
#include "model/linear_parts.h"

/* Nothing more to say than what was known when the tensors were taken. */
static enum walsh_status refuse(const struct walsh_stored_weights *stored, struct walsh_error *err)
{
    (void)stored;
    return walsh_fail(err, WALSH_E_INTERNAL, "stored weights were refused without reason");
}

/* --- E8P --- */

struct stored_glq {
    struct walsh_stored_weights stored;
    struct walsh_weights weights;
    const uint8_t *codes[WALSH_MAX_STAGES];
    bool mapped;
};

static bool read_glq(const struct walsh_stored_weights *stored, unsigned array, size_t begin, size_t end,
                     void *to)
{
    const struct stored_glq *s = (const struct stored_glq *)stored;
    const size_t unit = walsh_stored_unit_bytes(&s->weights, array);
    const uint8_t *from = s->codes[array] + begin * unit;
    memcpy(to, from, (end - begin) * unit);
    if (s->mapped) walsh_file_read_once(from, (end - begin) * unit);
    return true;
}

enum walsh_status walsh_linear_store_glq(struct walsh_linear *linear, const struct walsh_glq_linear *glq,
                                         bool mapped, struct walsh_arena *arena, struct walsh_error *err)
{
    struct stored_glq *s;
    struct walsh_weights *w = &linear->weights;
    WALSH_TRY(walsh_arena_alloc(arena, 1, sizeof *s, linear->name, &s, err));
    for (unsigned k = 0; k < glq->stages; k++) s->codes[k] = glq->stage[k].codes->data;
    w->stored = &s->stored;
    s->stored = (struct walsh_stored_weights){.read = read_glq, .refuse = refuse};
    s->weights = *w;
    s->mapped = mapped;
    return WALSH_OK;
}

/* --- block formats --- */

struct stored_blocks {
    struct walsh_stored_weights stored;
    struct walsh_block_source source;
    bool mapped;
};

static bool read_blocks(const struct walsh_stored_weights *stored, unsigned array, size_t begin, size_t end,
                        void *to)
{
    const struct stored_blocks *s = (const struct stored_blocks *)stored;
    const bool good = walsh_blocks_read(&s->source, array, begin, end, to);
    if (s->mapped) walsh_blocks_read_once(&s->source, array, begin, end);
    return good;
}

static enum walsh_status refuse_blocks(const struct walsh_stored_weights *stored, struct walsh_error *err)
{
    return walsh_blocks_fail(&((const struct stored_blocks *)stored)->source, err);
}

enum walsh_status walsh_linear_store_blocks(struct walsh_linear *linear,
                                            const struct walsh_block_source *source, bool mapped,
                                            struct walsh_arena *arena, struct walsh_error *err)
{
    struct stored_blocks *s;
    WALSH_TRY(walsh_arena_alloc(arena, 1, sizeof *s, linear->name, &s, err));
    s->stored =
        (struct walsh_stored_weights){.read = read_blocks, .refuse = refuse_blocks, .flip = source->flip};
    s->source = *source;
    s->mapped = mapped;
    linear->weights = walsh_blocks_weights(source);
    linear->weights.zeros = source->zeros ? source->zeros->data : NULL; /* there are some */
    linear->weights.stored = &s->stored;
    return WALSH_OK;
}

/* --- dense --- */

struct stored_dense {
    struct walsh_stored_weights stored;
    const uint8_t *data;
    size_t cols, row_step, col_step, size; /* of an element */
    bool mapped;
};

static bool read_dense(const struct walsh_stored_weights *stored, unsigned array, size_t begin, size_t end,
                       void *to)
{
    const struct stored_dense *s = (const struct stored_dense *)stored;
    const size_t row = s->cols * s->size, step = s->row_step * s->size;
    (void)array;
    if (s->col_step == 1) {
        for (size_t r = begin; r < end; r++)
            memcpy((uint8_t *)to + (r - begin) * row, s->data + r * step, row);
        if (s->mapped) walsh_file_read_once(s->data + begin * step, (end - begin) * step);
        return true;
    }
    for (size_t k = 0; k < s->cols; k++)
        for (size_t r = begin; r < end; r++)
            memcpy((uint8_t *)to + (r - begin) * row + k * s->size,
                   s->data + (k * s->col_step + r * s->row_step) * s->size, s->size);
    return true;
}

enum walsh_status walsh_linear_store_dense(struct walsh_linear *linear, const void *data, size_t row_step,
                                           size_t col_step, bool mapped, struct walsh_arena *arena,
                                           struct walsh_error *err)
{
    struct stored_dense *s;
    struct walsh_weights *w = &linear->weights;
    WALSH_TRY(walsh_arena_alloc(arena, 1, sizeof *s, linear->name, &s, err));
    *s = (struct stored_dense){.stored = {.read = read_dense, .refuse = refuse},
                               .data = data,
                               .cols = w->cols,
                               .row_step = row_step,
                               .col_step = col_step,
                               .size = w->format == WALSH_FORMAT_F32 ? 4 : 2,
                               .mapped = mapped};
    w->stored = &s->stored;
    return WALSH_OK;
}
