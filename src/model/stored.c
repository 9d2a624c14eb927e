/* Weights that stay in their file until a device asks for them (formats/stored.h). */
#include <string.h>

#include "base/file.h"
#include "formats/stored.h"
#include "model/linear_parts.h"

/* The mapped file that holds what is at `data`; NULL: memory. */
static const struct walsh_file *file_of(const struct walsh_checkpoint *ck, const void *data)
{
    for (size_t i = 0; i < ck->file_count; i++) {
        const struct walsh_file *file = &ck->files[i].file;
        if (file->mapped && walsh_file_holds(file, data, 1)) return file;
    }
    return NULL;
}

/* The first failure of a matrix's file. A file that was not read is NULL here. */
static enum walsh_status refuse(const struct walsh_file *file, const atomic_int *why, struct walsh_error *err)
{
    const int number = atomic_load(why);
    if (file && number != 0) return walsh_file_copy_fail(file, number, err);
    return walsh_fail(err, WALSH_E_INTERNAL, "stored weights were refused without reason");
}

/* --- E8P --- */

struct stored_glq {
    struct walsh_stored_weights stored;
    struct walsh_weights weights;
    const uint8_t *codes[WALSH_MAX_STAGES];
    const struct walsh_file *file[WALSH_MAX_STAGES];
    atomic_int *why; /* one of each array */
};

static bool read_glq(const struct walsh_stored_weights *stored, unsigned array, size_t begin, size_t end,
                     void *to)
{
    const struct stored_glq *s = (const struct stored_glq *)stored;
    const size_t unit = walsh_stored_unit_bytes(&s->weights, array);
    return walsh_file_copy(s->file[array], s->codes[array] + begin * unit, (end - begin) * unit, to,
                           &s->why[array]);
}

static enum walsh_status refuse_glq(const struct walsh_stored_weights *stored, struct walsh_error *err)
{
    const struct stored_glq *s = (const struct stored_glq *)stored;
    unsigned k = 0;
    while (k + 1 < s->weights.stages && atomic_load(&s->why[k]) == 0) k++;
    return refuse(s->file[k], &s->why[k], err);
}

enum walsh_status walsh_linear_store_glq(struct walsh_linear *linear, const struct walsh_glq_linear *glq,
                                         const struct walsh_checkpoint *ck, struct walsh_arena *arena,
                                         struct walsh_error *err)
{
    struct stored_glq *s;
    struct walsh_weights *w = &linear->weights;
    WALSH_TRY(walsh_arena_alloc(arena, 1, sizeof *s, linear->name, &s, err));
    WALSH_TRY(walsh_arena_alloc(arena, glq->stages, sizeof *s->why, linear->name, &s->why, err));
    for (unsigned k = 0; k < glq->stages; k++) {
        s->codes[k] = glq->stage[k].codes->data;
        s->file[k] = file_of(ck, s->codes[k]);
    }
    w->stored = &s->stored;
    s->stored = (struct walsh_stored_weights){.read = read_glq, .refuse = refuse_glq};
    s->weights = *w;
    return WALSH_OK;
}

/* --- block formats --- */

struct stored_blocks {
    struct walsh_stored_weights stored;
    struct walsh_block_source source;
    struct walsh_block_files files;
};

static bool read_blocks(const struct walsh_stored_weights *stored, unsigned array, size_t begin, size_t end,
                        void *to)
{
    const struct stored_blocks *s = (const struct stored_blocks *)stored;
    return walsh_blocks_read(&s->source, &s->files, array, begin, end, to);
}

static enum walsh_status refuse_blocks(const struct walsh_stored_weights *stored, struct walsh_error *err)
{
    const struct stored_blocks *s = (const struct stored_blocks *)stored;
    if (atomic_load(s->files.codes_why) != 0) return refuse(s->files.codes, s->files.codes_why, err);
    if (atomic_load(s->files.scales_why) != 0) return refuse(s->files.scales, s->files.scales_why, err);
    return walsh_blocks_fail(&s->source, err);
}

enum walsh_status walsh_linear_store_blocks(struct walsh_linear *linear,
                                            const struct walsh_block_source *source,
                                            const struct walsh_checkpoint *ck, struct walsh_arena *arena,
                                            struct walsh_error *err)
{
    struct stored_blocks *s;
    WALSH_TRY(walsh_arena_alloc(arena, 1, sizeof *s, linear->name, &s, err));
    atomic_int *why;
    WALSH_TRY(walsh_arena_alloc(arena, 2, sizeof *why, linear->name, &why, err));
    s->stored =
        (struct walsh_stored_weights){.read = read_blocks, .refuse = refuse_blocks, .flip = source->flip};
    s->source = *source;
    s->files.codes = file_of(ck, source->codes->data);
    s->files.scales = file_of(ck, source->scales->data);
    s->files.codes_why = why;
    s->files.scales_why = why + 1;
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
    const struct walsh_file *file;
    atomic_int *why;
};

static bool read_dense(const struct walsh_stored_weights *stored, unsigned array, size_t begin, size_t end,
                       void *to)
{
    const struct stored_dense *s = (const struct stored_dense *)stored;
    const size_t row = s->cols * s->size, step = s->row_step * s->size;
    (void)array;
    if (s->col_step == 1 && row == step)
        return walsh_file_copy(s->file, s->data + begin * row, (end - begin) * row, to, s->why);
    if (s->col_step == 1) {
        for (size_t r = begin; r < end; r++)
            memcpy((uint8_t *)to + (r - begin) * row, s->data + r * step, row);
        if (s->file) walsh_file_read_once(s->data + begin * step, (end - begin) * step);
        return true;
    }
    for (size_t k = 0; k < s->cols; k++)
        for (size_t r = begin; r < end; r++)
            memcpy((uint8_t *)to + (r - begin) * row + k * s->size,
                   s->data + (k * s->col_step + r * s->row_step) * s->size, s->size);
    return true;
}

static enum walsh_status refuse_dense(const struct walsh_stored_weights *stored, struct walsh_error *err)
{
    const struct stored_dense *s = (const struct stored_dense *)stored;
    return refuse(s->file, s->why, err);
}

enum walsh_status walsh_linear_store_dense(struct walsh_linear *linear, const void *data, size_t row_step,
                                           size_t col_step, const struct walsh_checkpoint *ck,
                                           struct walsh_arena *arena, struct walsh_error *err)
{
    struct stored_dense *s;
    struct walsh_weights *w = &linear->weights;
    WALSH_TRY(walsh_arena_alloc(arena, 1, sizeof *s, linear->name, &s, err));
    *s = (struct stored_dense){.stored = {.read = read_dense, .refuse = refuse_dense},
                               .data = data,
                               .cols = w->cols,
                               .row_step = row_step,
                               .col_step = col_step,
                               .size = w->format == WALSH_FORMAT_F32 ? 4 : 2,
                               .file = file_of(ck, data)};
    WALSH_TRY(walsh_arena_alloc(arena, 1, sizeof *s->why, linear->name, &s->why, err));
    w->stored = &s->stored;
    return WALSH_OK;
}
