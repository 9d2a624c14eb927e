/* Linears of GLQ's codebook e8_shell. Twice a point of E8 is eight small integers, and the residual scales
 * that GLQ chooses are reciprocals of small integers (1/2 behind 256 points, 1/3 behind all), so that a sum
 * of stages is an integer times a common step: a format of integers with one scale holds it as it is. */
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "checkpoint/shell.h"
#include "formats/blocks.h"
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

static void repack_tiles(void *argument, size_t begin, size_t end, unsigned worker)
{
    struct repack *r = argument;
    const struct walsh_weights *w = &r->weights;
    const size_t groups = w->cols / 8, group_bytes = walsh_code_bits(w->block.code);
    uint8_t *codes = r->codes + worker * WALSH_BLOCK_ROWS * r->row_bytes;
    bool good = true;
    for (size_t tile = begin; tile < end; tile++) {
        const size_t first = tile * WALSH_BLOCK_ROWS, rows = walsh_min(w->rows - first, WALSH_BLOCK_ROWS);
        for (size_t i = 0; i < rows * groups; i++) {
            const size_t row = i / groups, group = i % groups;
            int sum[8];
            if (r->dense) {
                good =
                    floats_of(r, first + row, group, r->dense + (first + row) * w->cols + 8 * group) && good;
                continue;
            }
            good = integers_of(r, first + row, group, sum) && good;
            if (good) put_codes(r, sum, codes + row * r->row_bytes + group * group_bytes);
        }
        if (!good || r->dense) continue;
        walsh_block_pack_codes(w, tile, codes, r->row_bytes, 0, r->data);
        for (size_t row = first; row < first + WALSH_BLOCK_ROWS; row++) {
            const float one = row < w->rows ? 1 : 0;
            walsh_block_put_scale(w, row, 0, walsh_bits_from_float(one), r->scales);
        }
    }
    if (!good) atomic_store_explicit(&r->broken, true, memory_order_relaxed);
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

static enum walsh_status repack(struct repack *r, struct walsh_linear *linear, struct walsh_pool *pool,
                                struct walsh_arena *arena, struct walsh_error *err)
{
    choose_format(r);
    linear->weights = r->weights;
    if (r->weights.format == WALSH_FORMAT_F16) {
        WALSH_TRY(walsh_arena_alloc(arena, (size_t)r->weights.rows * r->weights.cols, sizeof *r->dense,
                                    linear->name, &r->dense, err));
        linear->weights.data = r->dense;
    } else {
        r->row_bytes = r->weights.cols / 8 * walsh_code_bits(r->weights.block.code);
        WALSH_TRY(walsh_linear_alloc_blocks(linear, arena, &r->data, &r->scales, NULL, err));
        WALSH_TRY(walsh_alloc((size_t)walsh_pool_threads(pool) * WALSH_BLOCK_ROWS, r->row_bytes,
                              "codes while repacking", &r->codes, err));
    }
    walsh_pool_run(pool, walsh_block_tiles(&r->weights), 4, repack_tiles, r);
    walsh_free(r->codes);
    if (!atomic_load(&r->broken)) return WALSH_OK;
    return walsh_fail(err, WALSH_E_FORMAT,
                      "%s: tensor %s or a residual stage: a code is beyond the %u points of e8_codebook.pt",
                      r->stored->codes[0]->file, r->stored->codes[0]->name, r->points->count);
}

enum walsh_status walsh_linear_load_shell(struct walsh_linear *linear, const struct walsh_checkpoint *ck,
                                          struct walsh_pool *pool, struct walsh_arena *arena,
                                          struct walsh_error *err)
{
    struct walsh_shell_linear stored;
    if (ck->shell.count == 0)
        return walsh_fail(err, WALSH_E_FORMAT,
                          "%s: %s is stored in GLQ's codebook e8_shell, which config.json does not name",
                          ck->directory, linear->name);
    WALSH_TRY(walsh_shell_take(ck, linear->name, linear->out, linear->in, &stored, err));
    if (stored.n_pad > WALSH_BLOCK_MAX_COLUMNS)
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "%s: tensor %s: %u columns, expected at most %u",
                          stored.codes[0]->file, stored.codes[0]->name, stored.n_pad,
                          WALSH_BLOCK_MAX_COLUMNS);
    WALSH_TRY(walsh_linear_load_rotation(&linear->in_rotation, stored.sv, linear->in, stored.n_pad, 1, 1,
                                         arena, err));
    WALSH_TRY(walsh_linear_load_rotation(&linear->out_rotation, stored.su, linear->out, stored.m_pad, 1, 1,
                                         arena, err));
    struct repack r = {.stored = &stored, .points = &ck->shell};
    return repack(&r, linear, pool, arena, err);
}
