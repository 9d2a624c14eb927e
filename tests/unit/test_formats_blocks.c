/* The run-time layout of the block formats: codes, scales and zeros come back as they went in, whatever the
 * shape, and rows decode to what the format's formula says. E2M1's rounding against the nearest value. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include <math.h>

#include "base/random.h"
#include "formats/blocks.h"
#include "formats/e8p_planes.h"
#include "formats/mx.h"

#define SEED 20

static void *allocate(size_t bytes)
{
    struct walsh_error err;
    void *p;
    if (walsh_alloc_zero(bytes, 1, "test data", &p, &err) != WALSH_OK) fail_msg("%s", err.message);
    return p;
}

static const struct {
    enum walsh_format format;
    struct walsh_block_type block;
    bool zeros;
} types[] = {
    {WALSH_FORMAT_MXFP4, {WALSH_CODE_E2M1, WALSH_SCALE_E8M0, 32}, false},
    {WALSH_FORMAT_NVFP4, {WALSH_CODE_E2M1, WALSH_SCALE_E4M3, 16}, false},
    {WALSH_FORMAT_MXFP8, {WALSH_CODE_E4M3, WALSH_SCALE_E8M0, 32}, false},
    {WALSH_FORMAT_MXFP8, {WALSH_CODE_E5M2, WALSH_SCALE_E8M0, 32}, false},
    {WALSH_FORMAT_FP8, {WALSH_CODE_E4M3, WALSH_SCALE_F32, 0}, false},
    {WALSH_FORMAT_INT8, {WALSH_CODE_U8, WALSH_SCALE_BF16, 64}, true},
    {WALSH_FORMAT_INT4, {WALSH_CODE_U4, WALSH_SCALE_F32, 128}, true},
    {WALSH_FORMAT_INT4, {WALSH_CODE_U4, WALSH_SCALE_BF16, 32}, false},
};

/* Bits of a scale near 1, positive. */
static uint32_t scale_bits(enum walsh_scale type, struct walsh_random *random)
{
    const uint64_t u = walsh_random_u64(random);
    switch (type) {
    case WALSH_SCALE_E8M0:
        return 120 + (uint32_t)(u % 16);
    case WALSH_SCALE_E4M3:
        return 1 + (uint32_t)(u % 126);
    case WALSH_SCALE_BF16:
        return 0x3f00u + (uint32_t)(u % 256);
    case WALSH_SCALE_F32:
        break;
    }
    return walsh_bits_from_float(1 + (float)(u % 1000) / 777);
}

static void check_layout(unsigned t, uint32_t rows, uint32_t cols)
{
    struct walsh_random random;
    walsh_random_seed(&random, SEED + t);
    struct walsh_weights w = {.format = types[t].format,
                              .rows = rows,
                              .cols = cols,
                              .block = types[t].block,
                              .tensor_scale = types[t].format == WALSH_FORMAT_NVFP4 ? .75f : 1};
    const bool nibbles = walsh_code_bits(w.block.code) == 4;
    const size_t row_bytes = nibbles ? (cols + 1) / 2 : cols, groups = walsh_block_groups(&w);
    uint8_t *codes = allocate(rows * row_bytes);
    for (size_t i = 0; i < rows * row_bytes; i++) {
        codes[i] = (uint8_t)walsh_random_u64(&random);
        if (!walsh_code_is_number(w.block.code, codes[i])) codes[i] = 0;
    }
    uint32_t *data = allocate(walsh_block_data_words(&w) * 4);
    void *scales = allocate(walsh_block_scale_count(&w) * walsh_scale_bytes(w.block.scale));
    uint8_t *zeros = allocate(walsh_block_scale_count(&w));
    uint32_t *expected = allocate(rows * groups * sizeof *expected);
    w.data = data;
    w.scales = scales;
    w.zeros = types[t].zeros ? zeros : NULL;
    for (size_t tile = 0; tile < walsh_block_tiles(&w); tile++)
        walsh_block_pack_codes(&w, tile, codes + tile * 16 * row_bytes, row_bytes, 0, data);
    for (size_t r = 0; r < rows; r++) {
        for (size_t g = 0; g < groups; g++) {
            expected[r * groups + g] = scale_bits(w.block.scale, &random);
            walsh_block_put_scale(&w, r, g, expected[r * groups + g], scales);
            zeros[walsh_block_group_at(&w, r, g)] =
                (uint8_t)(walsh_random_u64(&random) & (nibbles ? 15u : 255u));
        }
    }
    float *f32 = allocate(rows * cols * sizeof *f32);
    uint16_t *bf16 = allocate(rows * cols * sizeof *bf16);
    walsh_weights_decode_f32(&w, 0, rows, f32, cols);
    walsh_weights_decode_bf16(&w, 0, rows, bf16, cols);
    for (size_t r = 0; r < rows; r++) {
        for (size_t k = 0; k < cols; k++) {
            const uint8_t byte = codes[r * row_bytes + (nibbles ? k / 2 : k)];
            const uint8_t code = (uint8_t)(nibbles ? byte >> 4 * (k % 2) & 15u : byte);
            const size_t g = w.block.group ? k / w.block.group : 0;
            assert_int_equal(walsh_block_code(&w, r, k), code);
            double value = (double)walsh_code_value(w.block.code, code);
            if (w.block.code == WALSH_CODE_U4 || w.block.code == WALSH_CODE_U8)
                value -= w.zeros ? zeros[walsh_block_group_at(&w, r, g)] : nibbles ? 8 : 128;
            value *= (double)walsh_scale_value(w.block.scale, expected[r * groups + g]);
            const float mine = (float)(value * (double)w.tensor_scale);
            assert_true(fabsf(f32[r * cols + k] - mine) <= 2e-7f * fabsf(mine));
            assert_int_equal(bf16[r * cols + k], walsh_bf16_from_f32(f32[r * cols + k]));
        }
    }
    /* what pads a tile is zero */
    const size_t columns = walsh_round_up(cols, WALSH_BLOCK_COLUMNS), last = walsh_round_up(rows, 16);
    for (size_t r = 0; r < last; r++)
        for (size_t k = r < rows ? cols : 0; k < columns; k++)
            assert_int_equal(walsh_block_code(&w, r, k), 0);
    const size_t bytes = last * columns * walsh_code_bits(w.block.code) / 8 +
                         last * groups * (walsh_scale_bytes(w.block.scale) + (w.zeros ? 1 : 0));
    assert_int_equal(walsh_weights_bytes(&w), bytes);
    walsh_free(codes);
    walsh_free(data);
    walsh_free(scales);
    walsh_free(zeros);
    walsh_free(expected);
    walsh_free(f32);
    walsh_free(bf16);
}

static void layout_keeps_every_code(void **state)
{
    (void)state;
    static const uint32_t shapes[][2] = {{16, 32}, {1, 1}, {17, 33}, {48, 256}, {35, 161}, {20, 320}};
    for (unsigned t = 0; t < sizeof types / sizeof *types; t++)
        for (unsigned s = 0; s < sizeof shapes / sizeof *shapes; s++)
            check_layout(t, shapes[s][0], shapes[s][1]);
}

/* Signed bytes come in with their top bit flipped. */
static void signed_bytes_become_unsigned(void **state)
{
    (void)state;
    const struct walsh_weights w = {
        .format = WALSH_FORMAT_INT8, .rows = 16, .cols = 32, .block = {WALSH_CODE_U8, WALSH_SCALE_F32, 32}};
    int8_t codes[16][32];
    uint32_t data[16 * 8];
    for (int r = 0; r < 16; r++)
        for (int k = 0; k < 32; k++) codes[r][k] = (int8_t)(r * 16 - 128 + k / 2);
    walsh_block_pack_codes(&w, 0, (const uint8_t *)codes, 32, 0x80, data);
    struct walsh_weights packed = w;
    packed.data = data;
    for (size_t r = 0; r < 16; r++)
        for (size_t k = 0; k < 32; k++) assert_int_equal(walsh_block_code(&packed, r, k), codes[r][k] + 128);
}

/* E8P through the same door. */
static void e8p_rows_decode(void **state)
{
    (void)state;
    struct walsh_random random;
    walsh_random_seed(&random, SEED);
    const uint32_t rows = 16, cols = 264;
    uint16_t codes[16 * 33];
    uint8_t small[16 * 33];
    for (unsigned i = 0; i < 16 * 33; i++) {
        codes[i] = (uint16_t)walsh_random_u64(&random);
        small[i] = (uint8_t)walsh_random_u64(&random);
    }
    uint8_t *first = allocate(walsh_stage_bytes(WALSH_STAGE_E8P, rows, cols)),
            *second = allocate(walsh_stage_bytes(WALSH_STAGE_E81B, rows, cols));
    walsh_e8p_pack(cols, codes, 0, rows, first);
    walsh_e81b_pack(cols, small, 0, rows, second);
    const struct walsh_weights w = {
        .format = WALSH_FORMAT_E8P,
        .rows = rows,
        .cols = cols,
        .stages = 2,
        .stage = {{WALSH_STAGE_E8P, first, .125f}, {WALSH_STAGE_E81B, second, .0625f}}};
    float out[3 * 300];
    uint16_t narrow[3 * 300];
    walsh_weights_decode_f32(&w, 5, 3, out, 300);
    walsh_weights_decode_bf16(&w, 5, 3, narrow, 300);
    for (unsigned r = 0; r < 3; r++) {
        for (unsigned g = 0; g < 33; g++) {
            float a[8], b[8];
            walsh_e8p_decode(codes[(5 + r) * 33 + g], a);
            walsh_e81b_decode(small[(5 + r) * 33 + g], b);
            for (unsigned n = 0; n < 8; n++) {
                assert_true(out[r * 300 + 8 * g + n] == .125f * a[n] + .0625f * b[n]);
                assert_int_equal(narrow[r * 300 + 8 * g + n], walsh_bf16_from_f32(out[r * 300 + 8 * g + n]));
            }
        }
    }
    walsh_free(first);
    walsh_free(second);
}

static void dense_rows_decode(void **state)
{
    (void)state;
    uint8_t bytes[1 + 4 * 6]; /* not aligned */
    const float values[6] = {1, -2, .5f, 3, 0, -7};
    float out[6];
    for (unsigned format = WALSH_FORMAT_F32; format <= WALSH_FORMAT_BF16; format++) {
        for (unsigned i = 0; i < 6; i++) {
            const uint16_t half =
                format == WALSH_FORMAT_F16 ? walsh_f16_from_f32(values[i]) : walsh_bf16_from_f32(values[i]);
            if (format == WALSH_FORMAT_F32)
                memcpy(bytes + 1 + 4 * i, &values[i], 4);
            else
                memcpy(bytes + 1 + 2 * i, &half, 2);
        }
        const struct walsh_weights w = {
            .format = (enum walsh_format)format, .rows = 2, .cols = 3, .data = bytes + 1};
        walsh_weights_decode_f32(&w, 0, 2, out, 3);
        assert_memory_equal(out, values, sizeof values);
    }
}

static void e2m1_takes_the_nearest(void **state)
{
    (void)state;
    for (int i = -8 * 64; i <= 8 * 64; i++) {
        const float x = (float)i / 64;
        unsigned best = 0;
        for (unsigned code = 1; code < 8; code++) {
            const double d = fabs(fabs((double)x) - (double)walsh_code_value(WALSH_CODE_E2M1, (uint8_t)code)),
                         b = fabs(fabs((double)x) - (double)walsh_code_value(WALSH_CODE_E2M1, (uint8_t)best));
            if (d < b || (d == b && code % 2 == 0)) best = code;
        }
        assert_int_equal(walsh_e2m1_from_f32(x), best | (x < 0 ? 8u : 0u));
    }
    assert_int_equal(walsh_e2m1_from_f32(-0.0f), 8);
    assert_int_equal(walsh_e2m1_from_f32(1e30f), 7);
}

static void what_is_no_number_is_seen(void **state)
{
    (void)state;
    assert_false(walsh_scale_is_number(WALSH_SCALE_E8M0, 255));
    assert_true(walsh_scale_is_number(WALSH_SCALE_E8M0, 254));
    assert_true(walsh_scale_is_number(WALSH_SCALE_E8M0, 0));
    assert_false(walsh_scale_is_number(WALSH_SCALE_E4M3, 0x7f));
    assert_false(walsh_scale_is_number(WALSH_SCALE_BF16, 0x7f80));
    assert_false(walsh_scale_is_number(WALSH_SCALE_F32, 0xff800000u));
    assert_false(walsh_code_is_number(WALSH_CODE_E4M3, 0xff));
    assert_true(walsh_code_is_number(WALSH_CODE_E4M3, 0x7e));
    assert_false(walsh_code_is_number(WALSH_CODE_E5M2, 0x7c));
    assert_true(walsh_code_is_number(WALSH_CODE_U4, 15));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layout_keeps_every_code), cmocka_unit_test(signed_bytes_become_unsigned),
        cmocka_unit_test(e8p_rows_decode),         cmocka_unit_test(dense_rows_decode),
        cmocka_unit_test(e2m1_takes_the_nearest),  cmocka_unit_test(what_is_no_number_is_seen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
