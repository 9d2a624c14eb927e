/* Linears of GLQ's codebook e8_shell. Twice a point of E8 is eight small integers, and the residual scales
 * that GLQ chooses are reciprocals of small integers (1/2 behind 256 points, 1/3 behind all), so that a sum
 * of stages is an integer times a common step: a format of integers with one scale holds it as it is. */
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "checkpoint/shell.h"
#include "formats/stored.h"
#include "model/linear_parts.h"

#define MOST_DIVISOR 64

struct repack {
    const struct walsh_shell_linear *stored;
    const struct walsh_shell_points *points;
    struct walsh_weights weights;
    int factor[WALSH_MAX_STAGES]; /* of twice the points, for integers */
    uint8_t *codes;               /* [threads][WALSH_BLOCK_ROWS][row_bytes]: a tile as stored codes */
    size_t row_bytes;
    uint32_t *data;
    void *scales;
    uint16_t *dense;
    atomic_bool broken; /* a code without a point */
};

/* Twice the sum of stages of a group of eight; false: a code without a point. */
static bool integers_of(const struct repack *r, size_t row, size_t group, int sum[8])
{
    memset(sum, 0, 8 * sizeof *sum);
    for (unsigned k = 0; k < r->stored->stages; k++) {
        const uint32_t code = walsh_shell_code(r->stored, r->points, k, row, group);
        if (code == UINT32_MAX) return false;
        for (unsigned i = 0; i < 8; i++) sum[i] += r->factor[k] * r->points->twice[code][i];
    }
    return true;
}

static bool floats_of(const struct repack *r, size_t row, size_t group, uint16_t *out)
{
    double sum[8] = {0};
    for (unsigned k = 0; k < r->stored->stages; k++) {
        const uint32_t code = walsh_shell_code(r->stored, r->points, k, row, group);
        if (code == UINT32_MAX) return false;
        for (unsigned i = 0; i < 8; i++)
            sum[i] += (double)r->stored->inv_resid_scale[k] * r->points->twice[code][i] / 2;
    }
    for (unsigned i = 0; i < 8; i++) out[i] = walsh_f16_from_f32((float)((double)r->stored->wscale * sum[i]));
    return true;
}

static void put_codes(const struct repack *r, const int sum[8], uint8_t *at)
{
    for (unsigned i = 0; i < 8; i++) {
        if (r->weights.block.code == WALSH_CODE_U8)
            at[i] = (uint8_t)(sum[i] + 128);
        else if (i % 2 == 0)
            at[i / 2] = (uint8_t)((sum[i] + 8) | (sum[i + 1] + 8) << 4);
    }
}

/* A tile as stored codes, `codes` [rows][row_bytes]; or, where the sums are no integers, dense [rows][cols]. */
static bool read_tile(const struct repack *r, size_t tile, uint8_t *codes, uint16_t *dense)
{
    const struct walsh_weights *w = &r->weights;
    const size_t groups = w->cols / 8, group_bytes = walsh_code_bits(w->block.code);
    const size_t first = tile * WALSH_BLOCK_ROWS, rows = walsh_min(w->rows - first, WALSH_BLOCK_ROWS);
    for (size_t i = 0; i < rows * groups; i++) {
        const size_t row = i / groups, group = i % groups;
        int sum[8];
        if (dense ? !floats_of(r, first + row, group, dense + row * w->cols + 8 * group)
                  : !integers_of(r, first + row, group, sum))
            return false;
        if (!dense) put_codes(r, sum, codes + row * r->row_bytes + group * group_bytes);
    }
    return true;
}

/* Scales of a tile, at the beginning of `scales`: 1. */
static void put_scales(const struct walsh_weights *w, size_t tile, void *scales)
{
    for (size_t i = 0; i < WALSH_BLOCK_ROWS; i++) {
        const float one = tile * WALSH_BLOCK_ROWS + i < w->rows ? 1 : 0;
        walsh_block_put_scale(w, i, 0, walsh_bits_from_float(one), scales);
    }
}

static void repack_tiles(void *argument, size_t begin, size_t end, unsigned worker)
{
    struct repack *r = argument;
    const struct walsh_weights *w = &r->weights;
    uint8_t *codes = r->codes + worker * WALSH_BLOCK_ROWS * r->row_bytes;
    for (size_t tile = begin; tile < end; tile++) {
        if (!read_tile(r, tile, codes, r->dense ? r->dense + tile * WALSH_BLOCK_ROWS * w->cols : NULL)) {
            atomic_store_explicit(&r->broken, true, memory_order_relaxed);
            return;
        }
        if (r->dense) continue;
        walsh_block_pack_codes(w, tile, codes, r->row_bytes, 0, r->data);
        put_scales(w, tile, (float *)r->scales + tile * WALSH_BLOCK_ROWS);
    }
}

/* The least divisor of a common step of all stages, and the stages' factors in it; 0: there is none. */
static int common_step(const struct walsh_shell_linear *s, int factor[WALSH_MAX_STAGES])
{
    for (int divisor = 1; divisor <= MOST_DIVISOR; divisor++) {
        bool exact = true;
        for (unsigned k = 0; k < s->stages; k++) {
            const double wanted = (double)s->inv_resid_scale[k] * divisor;
            factor[k] = (int)fmin(fmax(rint(wanted), -128), 128);
            exact = exact && fabs(wanted - factor[k]) <= 1e-6 * divisor;
        }
        if (exact) return divisor;
    }
    return 0;
}

/* The format; tensor_scale carries Wscale and the step. */
static void choose_format(struct repack *r)
{
    const int step = common_step(r->stored, r->factor);
    int most = 0;
    for (unsigned k = 0; k < r->stored->stages; k++)
        most += (r->factor[k] < 0 ? -r->factor[k] : r->factor[k]) * r->points->most;
    struct walsh_weights *w = &r->weights;
    w->rows = r->stored->m_pad;
    w->cols = r->stored->n_pad;
    w->format = step == 0 || most > 127 ? WALSH_FORMAT_F16 : most > 7 ? WALSH_FORMAT_INT8 : WALSH_FORMAT_INT4;
    if (w->format == WALSH_FORMAT_F16) return;
    w->block =
        (struct walsh_block_type){.code = most > 7 ? WALSH_CODE_U8 : WALSH_CODE_U4, .scale = WALSH_SCALE_F32};
    w->tensor_scale = r->stored->wscale / (float)(2 * step);
}

static enum walsh_status refuse(const struct repack *r, struct walsh_error *err)
{
    return walsh_fail(err, WALSH_E_FORMAT,
                      "%s: tensor %s or a residual stage: a code is beyond the %u points of e8_codebook.pt",
                      r->stored->codes[0]->file, r->stored->codes[0]->name, r->points->count);
}

static enum walsh_status repack(struct repack *r, struct walsh_linear *linear, struct walsh_pool *pool,
                                struct walsh_arena *arena, struct walsh_error *err)
{
    linear->weights = r->weights;
    if (r->weights.format == WALSH_FORMAT_F16) {
        WALSH_TRY(walsh_arena_alloc(arena, (size_t)r->weights.rows * r->weights.cols, sizeof *r->dense,
                                    linear->name, &r->dense, err));
        linear->weights.data = r->dense;
    } else {
        WALSH_TRY(walsh_linear_alloc_blocks(linear, arena, &r->data, &r->scales, NULL, err));
        WALSH_TRY(walsh_alloc((size_t)walsh_pool_threads(pool) * WALSH_BLOCK_ROWS, r->row_bytes,
                              "codes while repacking", &r->codes, err));
    }
    walsh_pool_run(pool, walsh_block_tiles(&r->weights), 4, repack_tiles, r);
    walsh_free(r->codes);
    return atomic_load(&r->broken) ? refuse(r, err) : WALSH_OK;
}

/* --- for a device --- */

struct stored_shell {
    struct walsh_stored_weights stored;
    struct walsh_shell_linear source;
    struct repack repack;
};

static bool read_units(const struct walsh_stored_weights *stored, unsigned array, size_t begin, size_t end,
                       void *to)
{
    const struct repack *r = &((const struct stored_shell *)stored)->repack;
    const struct walsh_weights *w = &r->weights;
    const size_t unit = walsh_stored_unit_bytes(w, array);
    for (size_t i = begin; i < end; i++, to = (uint8_t *)to + unit) {
        if (w->format == WALSH_FORMAT_F16) { /* a unit is a row */
            for (size_t g = 0; g < w->cols / 8; g++)
                if (!floats_of(r, i, g, (uint16_t *)to + 8 * g)) return false;
        } else if (array == WALSH_STORED_SCALES) {
            put_scales(w, i, to);
        } else if (!read_tile(r, i, to, NULL)) {
            return false;
        }
    }
    return true;
}

static enum walsh_status refuse_stored(const struct walsh_stored_weights *stored, struct walsh_error *err)
{
    return refuse(&((const struct stored_shell *)stored)->repack, err);
}

static enum walsh_status store(const struct repack *r, struct walsh_linear *linear, struct walsh_arena *arena,
                               struct walsh_error *err)
{
    struct stored_shell *s;
    WALSH_TRY(walsh_arena_alloc(arena, 1, sizeof *s, linear->name, &s, err));
    s->stored = (struct walsh_stored_weights){.read = read_units, .refuse = refuse_stored};
    s->source = *r->stored;
    s->repack = *r;
    s->repack.stored = &s->source;
    linear->weights = r->weights;
    linear->weights.stored = &s->stored;
    return WALSH_OK;
}

enum walsh_status walsh_linear_load_shell(struct walsh_linear *linear, const struct walsh_checkpoint *ck,
                                          bool stored, struct walsh_pool *pool, struct walsh_arena *arena,
                                          struct walsh_error *err)
{
    struct walsh_shell_linear taken;
    if (ck->shell.count == 0)
        return walsh_fail(err, WALSH_E_FORMAT,
                          "%s: %s is stored in GLQ's codebook e8_shell, which config.json does not name",
                          ck->directory, linear->name);
    WALSH_TRY(walsh_shell_take(ck, linear->name, linear->out, linear->in, &taken, err));
    if (taken.n_pad > WALSH_BLOCK_MAX_COLUMNS)
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "%s: tensor %s: %u columns, expected at most %u",
                          taken.codes[0]->file, taken.codes[0]->name, taken.n_pad, WALSH_BLOCK_MAX_COLUMNS);
    WALSH_TRY(walsh_linear_load_rotation(&linear->in_rotation, taken.sv, linear->in, taken.n_pad, 1, 1, arena,
                                         err));
    WALSH_TRY(walsh_linear_load_rotation(&linear->out_rotation, taken.su, linear->out, taken.m_pad, 1, 1,
                                         arena, err));
    struct repack r = {.stored = &taken, .points = &ck->shell};
    choose_format(&r);
    r.row_bytes = r.weights.cols / 8 * walsh_code_bits(r.weights.block.code);
    return stored ? store(&r, linear, arena, err) : repack(&r, linear, pool, arena, err);
}
