/* Linears of walsh_ops.h whose weights are numbers, or codes that share scales in groups. */
#include <math.h>
#include <string.h>

#include "api/ops_linear.h"
#include "base/memory.h"
#include "model/linear_parts.h"

static const char call_name[] = "walsh_ops_linear_open_weights";

/* What the codes and scales of a format are; group 0: as the scales' shape says. */
static const struct layout {
    enum walsh_format format;
    struct walsh_block_type block;
    bool zeros, tensor_scale;
} layouts[] = {
    [WALSH_OPS_MXFP4] = {WALSH_FORMAT_MXFP4, {WALSH_CODE_E2M1, WALSH_SCALE_E8M0, 32}, false, false},
    [WALSH_OPS_NVFP4] = {WALSH_FORMAT_NVFP4, {WALSH_CODE_E2M1, WALSH_SCALE_E4M3, 16}, false, true},
    [WALSH_OPS_MXFP8] = {WALSH_FORMAT_MXFP8, {WALSH_CODE_E4M3, WALSH_SCALE_E8M0, 32}, false, false},
    [WALSH_OPS_FP8] = {WALSH_FORMAT_FP8, {WALSH_CODE_E4M3, WALSH_SCALE_F32, 0}, false, false},
    [WALSH_OPS_INT8] = {WALSH_FORMAT_INT8, {WALSH_CODE_U8, WALSH_SCALE_F32, 0}, true, false},
    [WALSH_OPS_INT4] = {WALSH_FORMAT_INT4, {WALSH_CODE_U4, WALSH_SCALE_F32, 0}, true, false},
};

#define U8_ONLY (1u << WALSH_ELEMENT_U8)

/* Everything of a matrix that opening reads. */
struct weights {
    struct walsh_ops_weights given;
    struct walsh_ops_rows data;
    struct walsh_tensor codes, scales, zeros; /* of blocks */
    struct walsh_block_source blocks;
};

static enum walsh_status check_rows_and_columns(const struct walsh_ops_weights *w, struct walsh_error *err)
{
    const uint32_t columns =
        w->format == WALSH_OPS_DENSE ? WALSH_MAX_COLUMNS : (uint32_t)WALSH_BLOCK_MAX_COLUMNS;
    if (w->rows < 1 || w->rows > WALSH_MAX_COLUMNS || w->cols < 1 || w->cols > columns)
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "%s: %u x %u weights, expected 1 to %u rows of 1 to %u columns", call_name, w->rows,
                          w->cols, WALSH_MAX_COLUMNS, columns);
    return WALSH_OK;
}

static struct walsh_tensor tensor_of(const char *name, const struct walsh_ops_rows *rows)
{
    return (struct walsh_tensor){.file = "weights",
                                 .name = name,
                                 .data = rows->data,
                                 .dtype = rows->element == WALSH_ELEMENT_F32    ? WALSH_F32
                                          : rows->element == WALSH_ELEMENT_F16  ? WALSH_F16
                                          : rows->element == WALSH_ELEMENT_BF16 ? WALSH_BF16
                                                                                : WALSH_U8};
}

/* Columns of a group from the scales' shape: a format's own, one group for all, or a power of two. */
static enum walsh_status read_group(const struct walsh_ops_weights *w, const struct layout *layout,
                                    struct walsh_block_source *s, struct walsh_error *err)
{
    const int64_t groups = w->scales.rank == 2 ? w->scales.shape[1] : 0;
    s->block.group = layout->block.group;
    if (s->block.group == 0 && groups > 1 && groups <= w->cols && w->cols % groups == 0)
        s->block.group = w->cols / (uint32_t)groups;
    const uint32_t group = s->block.group;
    if ((group == 0 && groups != 1) || (group > 0 && (w->cols % group != 0 || w->cols / group != groups)) ||
        (group & (group - 1)) != 0 || (group > 0 && group < 16))
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "%s: scales: %lld groups of %u columns, expected groups of %s", call_name,
                          (long long)groups, w->cols,
                          layout->block.group == 16   ? "16"
                          : layout->block.group == 32 ? "32"
                                                      : "all columns, or of a power of two from 16 on");
    return WALSH_OK;
}

static enum walsh_status read_scales(struct weights *t, const struct layout *layout, struct walsh_error *err)
{
    struct walsh_block_source *s = &t->blocks;
    const struct walsh_ops_argument a = {call_name, "scales", &t->given.scales, NULL};
    const bool floats = layout->block.scale == WALSH_SCALE_F32;
    struct walsh_ops_rows rows;
    WALSH_TRY(read_group(&t->given, layout, s, err));
    const int64_t shape[] = {t->given.rows, s->block.group ? t->given.cols / s->block.group : 1};
    WALSH_TRY(walsh_ops_dense(&a, floats ? WALSH_OPS_FLOATS : U8_ONLY, 2, shape, &rows, err));
    t->scales = tensor_of("scales", &rows);
    if (floats && rows.element == WALSH_ELEMENT_BF16) s->block.scale = WALSH_SCALE_BF16;
    s->scale_ld = (uint32_t)shape[1];
    s->scale_rows = 1;
    if (!layout->tensor_scale && t->given.tensor_scale != 1)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: tensor_scale is %g, expected 1 but for NVFP4",
                          call_name, (double)t->given.tensor_scale);
    if (!isfinite(t->given.tensor_scale))
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: tensor_scale is %g, expected a finite number",
                          call_name, (double)t->given.tensor_scale);
    s->tensor_scale = t->given.tensor_scale;
    return WALSH_OK;
}

/* One zero point per byte. */
static enum walsh_status read_zeros(struct weights *t, const struct layout *layout, struct walsh_error *err)
{
    if (!walsh_ops_given(&t->given.zeros)) return WALSH_OK;
    const struct walsh_ops_argument a = {call_name, "zeros", &t->given.zeros, NULL};
    const int64_t shape[] = {t->given.rows, t->blocks.scale_ld};
    struct walsh_ops_rows rows;
    if (!layout->zeros)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: zeros: only int8 and int4 have zero points", call_name);
    WALSH_TRY(walsh_ops_dense(&a, U8_ONLY, 2, shape, &rows, err));
    for (size_t i = 0; layout->block.code == WALSH_CODE_U4 && i < rows.cols; i++)
        if (rows.data[i] > 15)
            return walsh_fail(err, WALSH_E_ARGUMENT, "%s: zeros: element %zu is %u, expected 0 to 15",
                              call_name, i, rows.data[i]);
    t->zeros = tensor_of("zeros", &rows);
    return WALSH_OK;
}

static enum walsh_status read_blocks(struct weights *t, struct walsh_error *err)
{
    const struct layout *layout = &layouts[t->given.format];
    struct walsh_block_source *s = &t->blocks;
    const size_t in_byte = 8 / walsh_code_bits(layout->block.code);
    if (t->given.cols % in_byte != 0)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: %u columns of 4 bits, expected an even number",
                          call_name, t->given.cols);
    const struct walsh_ops_argument a = {call_name, "data", &t->given.data, NULL};
    const int64_t shape[] = {t->given.rows, (int64_t)(t->given.cols / in_byte)};
    WALSH_TRY(walsh_ops_dense(&a, U8_ONLY, 2, shape, &t->data, err));
    *s = (struct walsh_block_source){.format = layout->format,
                                     .block = layout->block,
                                     .rows = t->given.rows,
                                     .cols = t->given.cols,
                                     .step = 1,
                                     .matrix_rows = t->given.rows,
                                     .row_bytes = (size_t)shape[1]};
    t->codes = tensor_of("data", &t->data);
    s->codes = &t->codes;
    s->scales = &t->scales;
    WALSH_TRY(read_scales(t, layout, err));
    return read_zeros(t, layout, err);
}

static enum walsh_status read_dense(struct weights *t, struct walsh_error *err)
{
    const struct walsh_ops_argument a = {call_name, "data", &t->given.data, NULL};
    const int64_t shape[] = {t->given.rows, t->given.cols};
    if (walsh_ops_given(&t->given.scales) || walsh_ops_given(&t->given.zeros) || t->given.tensor_scale != 1)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: dense weights have no scales and no zeros", call_name);
    return walsh_ops_dense(&a, WALSH_OPS_FLOATS, 2, shape, &t->data, err);
}

static enum walsh_status fill_dense(const struct walsh_queue *host, const void *source,
                                    struct walsh_ops_linear *l, struct walsh_error *err)
{
    const struct weights *t = source;
    (void)host;
    (void)err;
    l->linear.weights =
        (struct walsh_weights){.format = t->data.element == WALSH_ELEMENT_F32   ? WALSH_FORMAT_F32
                                         : t->data.element == WALSH_ELEMENT_F16 ? WALSH_FORMAT_F16
                                                                                : WALSH_FORMAT_BF16,
                               .rows = t->given.rows,
                               .cols = t->given.cols,
                               .data = t->data.data};
    return WALSH_OK;
}

/* The source keeps zero points of a byte as signed: 128 is 0. */
static enum walsh_status fill_blocks(const struct walsh_queue *host, const void *source,
                                     struct walsh_ops_linear *l, struct walsh_error *err)
{
    const struct weights *t = source;
    struct walsh_block_source s = t->blocks;
    struct walsh_tensor zeros = t->zeros;
    uint8_t *flipped = NULL;
    if (zeros.data) {
        const size_t count = (size_t)t->given.rows * s.scale_ld;
        WALSH_TRY(walsh_alloc(count, 1, "zero points", &flipped, err));
        for (size_t i = 0; i < count; i++) flipped[i] = ((const uint8_t *)zeros.data)[i] ^ 0x80;
        zeros.data = flipped;
        s.zeros = &zeros;
    }
    enum walsh_status status = walsh_linear_repack_blocks(&l->linear, &s, host->pool, &l->arena, err);
    walsh_free(flipped);
    return status == WALSH_E_FORMAT ? walsh_fail_within(err, WALSH_E_ARGUMENT, "%s", call_name) : status;
}

enum walsh_status walsh_ops_linear_open_weights(struct walsh_ops_queue *queue,
                                                const struct walsh_ops_weights *weights,
                                                const struct walsh_ops_linear_options *options,
                                                struct walsh_ops_linear **out, struct walsh_error *err)
{
    struct weights t = {.given = WALSH_OPS_WEIGHTS};
    WALSH_TRY(walsh_ops_need(call_name, "out", out, err));
    *out = NULL;
    WALSH_TRY(walsh_ops_need(call_name, "queue", queue, err));
    WALSH_TRY(walsh_ops_need(call_name, "weights", weights, err));
    WALSH_TRY(walsh_options_read(&t.given, sizeof t.given, weights, "walsh_ops_weights", err));
    if ((unsigned)t.given.format > WALSH_OPS_INT4)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: format is %u, expected 0 to %d", call_name,
                          (unsigned)t.given.format, WALSH_OPS_INT4);
    WALSH_TRY(check_rows_and_columns(&t.given, err));
    const bool dense = t.given.format == WALSH_OPS_DENSE;
    WALSH_TRY(dense ? read_dense(&t, err) : read_blocks(&t, err));
    const enum walsh_format format = !dense                                 ? t.blocks.format
                                     : t.data.element == WALSH_ELEMENT_BF16 ? WALSH_FORMAT_BF16
                                                                            : WALSH_FORMAT_F32;
    const struct walsh_ops_linear_plan plan = {
        call_name, t.given.rows, t.given.cols, format, dense ? fill_dense : fill_blocks, &t};
    return walsh_ops_linear_make(queue, &plan, options, out, err);
}
