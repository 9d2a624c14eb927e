#include "block_data.h"

#include <math.h>
#include <string.h>

const struct block_kind block_kinds[BLOCK_KINDS] = {
    {"mxfp4", WALSH_FORMAT_MXFP4, {WALSH_CODE_E2M1, WALSH_SCALE_E8M0, 32}, false},
    {"nvfp4", WALSH_FORMAT_NVFP4, {WALSH_CODE_E2M1, WALSH_SCALE_E4M3, 16}, false},
    {"int4 bf16 zeros", WALSH_FORMAT_INT4, {WALSH_CODE_U4, WALSH_SCALE_BF16, 128}, true},
    {"int4 bf16", WALSH_FORMAT_INT4, {WALSH_CODE_U4, WALSH_SCALE_BF16, 32}, false},
    {"int4 f32 zeros", WALSH_FORMAT_INT4, {WALSH_CODE_U4, WALSH_SCALE_F32, 64}, true},
    {"int8 bf16 zeros", WALSH_FORMAT_INT8, {WALSH_CODE_U8, WALSH_SCALE_BF16, 64}, true},
    {"int8 f32 rows", WALSH_FORMAT_INT8, {WALSH_CODE_U8, WALSH_SCALE_F32, 0}, false},
    {"int8 bf16", WALSH_FORMAT_INT8, {WALSH_CODE_U8, WALSH_SCALE_BF16, 128}, false},
    {"mxfp8 e4m3", WALSH_FORMAT_MXFP8, {WALSH_CODE_E4M3, WALSH_SCALE_E8M0, 32}, false},
    {"mxfp8 e5m2", WALSH_FORMAT_MXFP8, {WALSH_CODE_E5M2, WALSH_SCALE_E8M0, 32}, false},
    {"fp8", WALSH_FORMAT_FP8, {WALSH_CODE_E4M3, WALSH_SCALE_F32, 0}, false},
};

static uint32_t scale_bits(struct check *c, enum walsh_scale type)
{
    const bool wide = c->round % 2 && check_below(c, 8) == 0;
    const float value = ldexpf(1 + (float)check_below(c, 1000) / 1000, (int)check_below(c, 20) - 10);
    switch (type) {
    case WALSH_SCALE_E8M0: /* 2^-127 is a subnormal; large ones would overflow the sums */
        return wide ? (uint32_t)check_below(c, 4) : 117 + (uint32_t)check_below(c, 20);
    case WALSH_SCALE_E4M3:
        return (uint32_t)check_below(c, 127);
    case WALSH_SCALE_BF16:
        return walsh_bf16_from_f32(value);
    case WALSH_SCALE_F32:
        break;
    }
    return walsh_bits_from_float(wide ? 0x1p-140f : value);
}

struct walsh_weights block_weights(struct check *c, const struct block_kind *kind, size_t rows, size_t cols)
{
    struct walsh_weights w = {.format = kind->format,
                              .rows = (uint32_t)rows,
                              .cols = (uint32_t)cols,
                              .block = kind->block,
                              .tensor_scale = kind->block.scale == WALSH_SCALE_E4M3 ? 0.0123f : 1};
    const bool nibbles = walsh_code_bits(w.block.code) == 4;
    const size_t row_bytes = nibbles ? (cols + 1) / 2 : cols;
    uint8_t *codes = check_alloc(c, rows * row_bytes, 0);
    for (size_t i = 0; i < rows * row_bytes; i++) do
            codes[i] = (uint8_t)walsh_random_u64(&c->random);
        while (!walsh_code_is_number(w.block.code, codes[i]));
    uint32_t *data = check_alloc(c, walsh_block_data_words(&w) * 4, 0);
    const size_t scales = walsh_block_scale_count(&w);
    uint8_t *scale = check_alloc(c, scales * walsh_scale_bytes(w.block.scale), 0);
    memset(scale, 0, scales * walsh_scale_bytes(w.block.scale));
    for (size_t tile = 0; tile < walsh_block_tiles(&w); tile++)
        walsh_block_pack_codes(&w, tile, codes + tile * WALSH_BLOCK_ROWS * row_bytes, row_bytes, 0, data);
    for (size_t r = 0; r < rows; r++)
        for (size_t g = 0; g < walsh_block_groups(&w); g++)
            walsh_block_put_scale(&w, r, g, scale_bits(c, w.block.scale), scale);
    w.data = data;
    w.scales = scale;
    if (!kind->zeros) return w;
    uint8_t *zeros = check_alloc(c, scales, 0);
    for (size_t i = 0; i < scales; i++) zeros[i] = (uint8_t)check_below(c, nibbles ? 16 : 256);
    w.zeros = zeros;
    return w;
}

struct walsh_activations block_activations(struct check *c, size_t rows, size_t cols)
{
    const size_t stride = walsh_activations_stride(cols), groups = stride / WALSH_ACTIVATION_GROUP,
                 sums = stride / WALSH_ACTIVATION_SUM;
    struct walsh_activations a = {
        .type = WALSH_ACTIVATION_INT8_GROUPS, .rows = rows, .cols = cols, .stride = stride};
    int8_t *q = check_alloc(c, rows * stride, 0);
    a.scale = check_alloc(c, rows * groups * sizeof *a.scale, 0);
    a.sum = check_alloc(c, rows * sums * sizeof *a.sum, 0);
    a.data = q;
    memset(q, 0, rows * stride);
    memset(a.sum, 0, rows * sums * sizeof *a.sum);
    for (size_t i = 0; i < rows * groups; i++) a.scale[i] = 0.01f + fabsf(check_normal(c));
    if (c->round == CHECK_ROUNDS - 1)
        a.scale[check_below(c, rows) * groups + check_below(c, walsh_div_up(cols, WALSH_ACTIVATION_GROUP))] =
            NAN;
    for (size_t i = 0; i < rows; i++) {
        for (size_t k = 0; k < cols; k++) {
            q[i * stride + k] = (int8_t)((int)check_below(c, 255) - 127);
            a.sum[i * sums + k / WALSH_ACTIVATION_SUM] += q[i * stride + k];
        }
    }
    return a;
}
