/* Linears in the layouts of compressed-tensors, ModelOpt, DeepSeek and gpt-oss: every weight as the layout's
 * formula gives it, and errors that name the tensor. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "unit/temporary.h"

#include "base/file.h"
#include "base/random.h"
#include "checkpoint/blocks.h"
#include "unit/checkpoint_files.h"

#define ROWS 20
#define COLS 128
#define SEED 11

/* What a test stores. */
static uint8_t codes[2 * ROWS * COLS * 2], scales[ROWS * COLS];
static struct walsh_random random_state;

static void fill(uint8_t *p, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) p[i] = (uint8_t)walsh_random_u64(&random_state);
}

/* A checkpoint of these tensors. */
static void open_tensors(const char *name, const struct planned *tensors, size_t count,
                         struct walsh_checkpoint *ck)
{
    struct walsh_error err = {0};
    char path[512], file[600], json[700];
    snprintf(path, sizeof path, "%s", temporary_path(name));
    mkdir(path, 0777);
    snprintf(json, sizeof json, "%s/config.json", path);
    put_text(json, SMALL_CONFIG);
    snprintf(file, sizeof file, "%s/model.safetensors", path);
    put_tensors(file, tensors, count);
    if (walsh_checkpoint_open(path, true, ck, &err) != WALSH_OK) fail_msg("%s", err.message);
}

struct loaded {
    struct walsh_checkpoint ck;
    struct walsh_block_source source;
    struct walsh_weights w;
    uint32_t *data;
    void *scales;
    uint8_t *zeros;
    bool good;
};

/* What a device reads of the same rows, two units at a time, and lays out itself. */
static void check_read(const struct loaded *l)
{
    const struct walsh_weights *w = &l->w;
    struct walsh_error err = {0};
    const size_t units = walsh_stored_units(w);
    const struct walsh_file *file = &l->ck.files[0].file;
    atomic_int why[2] = {0, 0};
    const struct walsh_block_files files = {file, file, &why[0], &why[1]};
    for (unsigned array = 0; array < walsh_stored_arrays(w); array++) {
        const size_t unit = walsh_stored_unit_bytes(w, array);
        uint8_t *read;
        uint32_t *words;
        bool good = true;
        assert_int_equal(walsh_alloc_zero(units, unit, "units", &read, &err), WALSH_OK);
        assert_int_equal(walsh_alloc_zero(walsh_block_data_words(w), 4, "words", &words, &err), WALSH_OK);
        for (size_t i = 0; i < units; i += 2)
            good = walsh_blocks_read(&l->source, i % 4 ? NULL : &files, array, i, walsh_min(i + 2, units),
                                     read + i * unit) &&
                   good;
        if (array == WALSH_STORED_CODES) {
            for (size_t i = 0; i < units; i++)
                walsh_block_pack_codes(w, i, read + i * unit, walsh_stored_row_bytes(w), l->source.flip,
                                       words);
            assert_memory_equal(words, l->data, walsh_block_data_words(w) * 4);
        } else {
            assert_memory_equal(read, array == WALSH_STORED_SCALES ? l->scales : l->zeros, units * unit);
        }
        if (l->good) assert_true(good);
        walsh_free(read);
        walsh_free(words);
    }
}

static void load(const char *name, const struct planned *tensors, size_t count, const char *module,
                 const struct walsh_block_rows *part, uint32_t rows, uint32_t cols, struct loaded *l)
{
    struct walsh_error err = {0};
    open_tensors(name, tensors, count, &l->ck);
    assert_true(walsh_blocks_present(&l->ck, module, part && part->stack));
    if (walsh_blocks_take(&l->ck, module, rows, cols, part, &l->source, &err) != WALSH_OK)
        fail_msg("%s: %s", name, err.message);
    if (walsh_checkpoint_all_used(&l->ck, &err) != WALSH_OK) fail_msg("%s: %s", name, err.message);
    l->w = walsh_blocks_weights(&l->source);
    const size_t places = walsh_block_scale_count(&l->w);
    if (walsh_alloc_zero(walsh_block_data_words(&l->w), 4, "data", &l->data, &err) ||
        walsh_alloc_zero(places, 4, "scales", &l->scales, &err) ||
        walsh_alloc_zero(places, 1, "zeros", &l->zeros, &err))
        fail_msg("%s", err.message);
    l->good = walsh_blocks_pack(&l->source, 0, walsh_block_tiles(&l->w), l->data, l->scales,
                                l->source.zeros ? l->zeros : NULL);
    l->w.data = l->data;
    l->w.scales = l->scales;
    l->w.zeros = l->source.zeros ? l->zeros : NULL;
    check_read(l);
}

static void unload(struct loaded *l)
{
    walsh_free(l->data);
    walsh_free(l->scales);
    walsh_free(l->zeros);
    walsh_checkpoint_close(&l->ck);
}

static float e2m1(size_t at)
{
    return walsh_code_value(WALSH_CODE_E2M1, (unsigned)codes[at / 2] >> 4 * (at % 2) & 15u);
}

#define WEIGHT(l, r, k) walsh_block_weight(&(l).w, r, k)
#define EXPECT(l, r, k, value)                                                                               \
    do {                                                                                                     \
        const float expected_ = (value), got_ = WEIGHT(l, r, k);                                             \
        if (got_ != expected_)                                                                               \
            fail_msg("row %zu, column %zu: %g, expected %g", (size_t)(r), (size_t)(k), (double)got_,         \
                     (double)expected_);                                                                     \
    } while (0)

static void mxfp4_of_compressed_tensors(void **state)
{
    (void)state;
    struct loaded l = {0};
    fill(codes, ROWS * COLS / 2);
    for (size_t i = 0; i < ROWS * COLS / 32; i++) scales[i] = (uint8_t)(110 + i % 30);
    const struct planned t[] = {{"m.weight_packed", WALSH_U8, 2, {ROWS, COLS / 2}, codes},
                                {"m.weight_scale", WALSH_U8, 2, {ROWS, COLS / 32}, scales}};
    load("ct-mxfp4", t, 2, "m", NULL, ROWS, COLS, &l);
    assert_true(l.good);
    assert_int_equal(l.w.format, WALSH_FORMAT_MXFP4);
    for (size_t r = 0; r < ROWS; r++)
        for (size_t k = 0; k < COLS; k++)
            EXPECT(l, r, k, e2m1(r * COLS + k) * walsh_f32_from_e8m0(scales[(r * COLS + k) / 32]));
    unload(&l);
}

/* compressed-tensors stores the reciprocal of what ModelOpt stores. */
static void nvfp4_of_both(void **state)
{
    (void)state;
    const float reciprocal = 640, tensor_scale = 1 / reciprocal;
    fill(codes, ROWS * COLS / 2);
    for (size_t i = 0; i < ROWS * COLS / 16; i++) scales[i] = (uint8_t)(1 + i % 126);
    const struct planned theirs[] = {{"m.weight_packed", WALSH_U8, 2, {ROWS, COLS / 2}, codes},
                                     {"m.weight_scale", WALSH_F8_E4M3, 2, {ROWS, COLS / 16}, scales},
                                     {"m.weight_global_scale", WALSH_F32, 1, {1}, &reciprocal},
                                     {"m.input_global_scale", WALSH_F32, 1, {1}, &reciprocal}};
    const struct planned modelopt[] = {{"m.weight", WALSH_U8, 2, {ROWS, COLS / 2}, codes},
                                       {"m.weight_scale", WALSH_F8_E4M3, 2, {ROWS, COLS / 16}, scales},
                                       {"m.weight_scale_2", WALSH_F32, 0, {0}, &tensor_scale},
                                       {"m.input_scale", WALSH_F32, 0, {0}, &tensor_scale}};
    for (unsigned i = 0; i < 2; i++) {
        struct loaded l = {0};
        load(i ? "modelopt" : "ct-nvfp4", i ? modelopt : theirs, 4, "m", NULL, ROWS, COLS, &l);
        assert_true(l.good);
        assert_int_equal(l.w.format, WALSH_FORMAT_NVFP4);
        for (size_t r = 0; r < ROWS; r++)
            for (size_t k = 0; k < COLS; k++)
                EXPECT(l, r, k,
                       e2m1(r * COLS + k) * walsh_f32_from_e4m3(scales[(r * COLS + k) / 16]) * tensor_scale);
        unload(&l);
    }
}

/* The bytes that compressed-tensors itself packed (tests/fixtures/formats): int4, groups of 32, zero points.
 */
static void int4_of_compressed_tensors(void **state)
{
    (void)state;
    struct walsh_safetensors fixture;
    struct walsh_error err = {0};
    if (walsh_safetensors_open(WALSH_SOURCE_DIR "/tests/fixtures/formats/encoded.safetensors", true, &fixture,
                               &err))
        fail_msg("%s", err.message);
    const struct walsh_tensor *packed = walsh_safetensors_find(&fixture, "int4-packed.weight"),
                              *packed_zero = walsh_safetensors_find(&fixture, "int4-packed.zero"),
                              *q = walsh_safetensors_find(&fixture, "int4-g32-asymmetric.q"),
                              *s = walsh_safetensors_find(&fixture, "int4-g32-asymmetric.scales"),
                              *z = walsh_safetensors_find(&fixture, "int4-g32-asymmetric.zeros");
    const uint32_t rows = (uint32_t)q->shape[0], cols = (uint32_t)q->shape[1];
    const int64_t shape[] = {rows, cols};
    const struct planned t[] = {
        {"m.weight_packed", WALSH_I32, 2, {rows, cols / 8}, packed->data},
        {"m.weight_scale", WALSH_F32, 2, {rows, cols / 32}, s->data},
        {"m.weight_zero_point", WALSH_I32, 2, {rows / 8, cols / 32}, packed_zero->data},
        {"m.weight_shape", WALSH_I64, 1, {2}, shape}};
    struct loaded l = {0};
    load("ct-int4", t, 4, "m", NULL, rows, cols, &l);
    assert_true(l.good);
    assert_int_equal(l.w.block.group, 32);
    for (size_t r = 0; r < rows; r++)
        for (size_t k = 0; k < cols; k++) {
            const size_t g = (r * cols + k) / 32;
            float scale;
            memcpy(&scale, (const uint8_t *)s->data + 4 * g, sizeof scale);
            EXPECT(l, r, k,
                   (float)(((const int8_t *)q->data)[r * cols + k] - ((const int8_t *)z->data)[g]) * scale);
        }
    unload(&l);
    walsh_safetensors_close(&fixture);
}

/* int8 with a scale per row, and fp8 with one for all. */
static void rows_and_tensors_with_one_scale(void **state)
{
    (void)state;
    struct loaded l = {0};
    uint16_t halves[ROWS];
    const float whole = .375f;
    fill(codes, ROWS * COLS);
    for (size_t r = 0; r < ROWS; r++) halves[r] = walsh_bf16_from_f32(.01f * (float)(r + 1));
    const struct planned t[] = {{"m.weight", WALSH_I8, 2, {ROWS, COLS}, codes},
                                {"m.weight_scale", WALSH_BF16, 2, {ROWS, 1}, halves}};
    load("ct-int8", t, 2, "m", NULL, ROWS, COLS, &l);
    for (size_t r = 0; r < ROWS; r++)
        for (size_t k = 0; k < COLS; k++)
            EXPECT(l, r, k, (float)(int8_t)codes[r * COLS + k] * walsh_f32_from_bf16(halves[r]));
    unload(&l);

    for (size_t i = 0; i < ROWS * COLS; i++) codes[i] &= 0x7b; /* numbers */
    const struct planned fp8[] = {{"m.weight", WALSH_F8_E5M2, 2, {ROWS, COLS}, codes},
                                  {"m.weight_scale", WALSH_F32, 1, {1}, &whole}};
    l = (struct loaded){0};
    load("fp8-tensor", fp8, 2, "m", NULL, ROWS, COLS, &l);
    assert_true(l.good);
    for (size_t r = 0; r < ROWS; r++)
        for (size_t k = 0; k < COLS; k++) EXPECT(l, r, k, walsh_f32_from_e5m2(codes[r * COLS + k]) * whole);
    unload(&l);
}

/* DeepSeek-V4: experts in MXFP4, other linears in E4M3 with a scale per 128 x 128. */
static void deepseek(void **state)
{
    (void)state;
    enum { TALL = 144, WIDE = 256 };
    static uint8_t square[TALL * WIDE];
    struct loaded l = {0};
    fill(codes, ROWS * COLS / 2);
    for (size_t i = 0; i < ROWS * COLS / 32; i++) scales[i] = (uint8_t)(120 + i % 10);
    const struct planned t[] = {
        {"layers.3.ffn.experts.7.w1.weight", WALSH_I8, 2, {ROWS, COLS / 2}, codes},
        {"layers.3.ffn.experts.7.w1.scale", WALSH_F8_E8M0, 2, {ROWS, COLS / 32}, scales}};
    load("deepseek", t, 2, "layers.3.ffn.experts.7.w1", NULL, ROWS, COLS, &l);
    assert_int_equal(l.w.format, WALSH_FORMAT_MXFP4);
    for (size_t r = 0; r < ROWS; r++)
        for (size_t k = 0; k < COLS; k++)
            EXPECT(l, r, k, e2m1(r * COLS + k) * walsh_f32_from_e8m0(scales[(r * COLS + k) / 32]));
    unload(&l);

    fill(square, sizeof square);
    for (size_t i = 0; i < sizeof square; i++) square[i] &= 0xf7; /* numbers */
    const uint8_t corners[] = {120, 125, 130, 118};
    const struct planned dense[] = {{"m.weight", WALSH_F8_E4M3, 2, {TALL, WIDE}, square},
                                    {"m.scale", WALSH_F8_E8M0, 2, {2, 2}, corners}};
    l = (struct loaded){0};
    load("deepseek-dense", dense, 2, "m", NULL, TALL, WIDE, &l);
    for (size_t r = 0; r < TALL; r++)
        for (size_t k = 0; k < WIDE; k++)
            EXPECT(l, r, k,
                   walsh_f32_from_e4m3(square[r * WIDE + k]) *
                       walsh_f32_from_e8m0(corners[r / 128 * 2 + k / 128]));
    unload(&l);
}

/* Expert 1 of 2: even rows are gate, odd ones up. */
static void gpt_oss_stacks(void **state)
{
    (void)state;
    fill(codes, 2 * 2 * ROWS * COLS / 2);
    for (size_t i = 0; i < 2 * 2 * ROWS * COLS / 32; i++) scales[i] = (uint8_t)(120 + i % 13);
    const struct planned t[] = {
        {"experts.gate_up_proj_blocks", WALSH_U8, 4, {2, 2 * ROWS, COLS / 32, 16}, codes},
        {"experts.gate_up_proj_scales", WALSH_U8, 3, {2, 2 * ROWS, COLS / 32}, scales}};
    for (uint32_t odd = 0; odd < 2; odd++) {
        struct loaded l = {0};
        const struct walsh_block_rows part = {odd, 2, 2 * ROWS, 2, 1};
        load(odd ? "up" : "gate", t, 2, "experts.gate_up_proj", &part, ROWS, COLS, &l);
        assert_true(l.good);
        for (size_t r = 0; r < ROWS; r++)
            for (size_t k = 0; k < COLS; k++) {
                const size_t at = (2 * ROWS + 2 * r + odd) * COLS + k;
                EXPECT(l, r, k, e2m1(at) * walsh_f32_from_e8m0(scales[at / 32]));
            }
        unload(&l);
    }
}

static void what_is_no_number_is_refused(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    struct loaded l = {0};
    memset(codes, 0, sizeof codes);
    memset(scales, 120, sizeof scales);
    scales[5 * (COLS / 32) + 2] = 255;
    const struct planned t[] = {{"m.weight_packed", WALSH_U8, 2, {ROWS, COLS / 2}, codes},
                                {"m.weight_scale", WALSH_U8, 2, {ROWS, COLS / 32}, scales}};
    load("nan-scale", t, 2, "m", NULL, ROWS, COLS, &l);
    assert_false(l.good);
    assert_int_equal(walsh_blocks_fail(&l.source, &err), WALSH_E_FORMAT);
    assert_string_equal(
        without_directory(err.message),
        "DIR/nan-scale/model.safetensors: tensor m.weight_scale: the scale of row 5, group 2 is "
        "no number (bits 0xff)");
    unload(&l);
    const float whole = 1;
    codes[3 * COLS + 7] = 0x7f;
    const struct planned fp8[] = {{"m.weight", WALSH_F8_E4M3, 2, {ROWS, COLS}, codes},
                                  {"m.weight_scale", WALSH_F32, 1, {1}, &whole}};
    l = (struct loaded){0};
    load("nan-code", fp8, 2, "m", NULL, ROWS, COLS, &l);
    assert_false(l.good);
    assert_int_equal(walsh_blocks_fail(&l.source, &err), WALSH_E_FORMAT);
    assert_string_equal(without_directory(err.message),
                        "DIR/nan-code/model.safetensors: tensor m.weight: row 3 holds NaN or Inf");
    unload(&l);
}

static void refused(const char *name, const struct planned *tensors, size_t count, const char *message)
{
    struct walsh_checkpoint ck;
    struct walsh_block_source source;
    struct walsh_error err = {0};
    open_tensors(name, tensors, count, &ck);
    assert_int_not_equal(walsh_blocks_take(&ck, "m", ROWS, COLS, NULL, &source, &err), WALSH_OK);
    assert_string_equal(without_directory(err.message), message);
    walsh_checkpoint_close(&ck);
}

static void wrong_tensors_are_named(void **state)
{
    (void)state;
    const float zero = 0;
    const struct planned narrow[] = {{"m.weight_packed", WALSH_U8, 2, {ROWS, COLS / 4}, codes},
                                     {"m.weight_scale", WALSH_U8, 2, {ROWS, COLS / 32}, scales}};
    refused("narrow", narrow, 2,
            "DIR/narrow/model.safetensors: tensor m.weight_packed: shape [20, 32], expected [20, 64]");
    const struct planned scaleless[] = {{"m.weight_packed", WALSH_U8, 2, {ROWS, COLS / 2}, codes}};
    refused("scaleless", scaleless, 1, "DIR/scaleless: tensor m.weight_scale is missing");
    const struct planned zeroed[] = {{"m.weight_packed", WALSH_U8, 2, {ROWS, COLS / 2}, codes},
                                     {"m.weight_scale", WALSH_F8_E4M3, 2, {ROWS, COLS / 16}, scales},
                                     {"m.weight_global_scale", WALSH_F32, 1, {1}, &zero}};
    refused("zeroed", zeroed, 3,
            "DIR/zeroed/model.safetensors: tensor m.weight_global_scale is 0, expected a positive number");
    const struct planned odd[] = {{"m.weight", WALSH_I8, 2, {ROWS, COLS}, codes},
                                  {"m.weight_scale", WALSH_F32, 2, {ROWS, 8}, scales}};
    refused(
        "odd", odd, 2,
        "DIR/odd/model.safetensors: tensor m.weight_scale has groups of 16 columns, expected a power of two "
        "from 32 on");
}

static int setup(void **state)
{
    walsh_random_seed(&random_state, SEED);
    print_message("seed %d\n", SEED);
    return temporary_make(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mxfp4_of_compressed_tensors),
        cmocka_unit_test(nvfp4_of_both),
        cmocka_unit_test(int4_of_compressed_tensors),
        cmocka_unit_test(rows_and_tensors_with_one_scale),
        cmocka_unit_test(deepseek),
        cmocka_unit_test(gpt_oss_stacks),
        cmocka_unit_test(what_is_no_number_is_refused),
        cmocka_unit_test(wrong_tensors_are_named),
    };
    return cmocka_run_group_tests(tests, setup, temporary_remove);
}
