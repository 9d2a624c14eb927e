/* The encoders of the block formats against what torchao and compressed-tensors make of the same numbers
 * (tests/fixtures/formats, tools/format_fixtures.py): every byte. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "checkpoint/safetensors.h"
#include "formats/affine.h"
#include "formats/mx.h"

#define MOST_COLUMNS 256

static struct walsh_safetensors file;

static int open_file(void **state)
{
    (void)state;
    struct walsh_error err;
    if (walsh_safetensors_open(WALSH_SOURCE_DIR "/tests/fixtures/formats/encoded.safetensors", true, &file,
                               &err) == WALSH_OK)
        return 0;
    print_error("%s\n", err.message);
    return -1;
}

static int close_file(void **state)
{
    (void)state;
    walsh_safetensors_close(&file);
    return 0;
}

static const struct walsh_tensor *tensor(const char *prefix, const char *name)
{
    char full[64];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    const struct walsh_tensor *t = walsh_safetensors_find(&file, full);
    if (!t) fail_msg("the fixture lacks %s", full);
    return t;
}

/* Row r of a 2-d f32 tensor, aligned. */
static void read_row(const struct walsh_tensor *t, size_t r, float *out)
{
    const size_t n = t->shape[1];
    memcpy(out, (const uint8_t *)t->data + 4 * r * n, 4 * n);
}

static uint8_t byte_of(const struct walsh_tensor *t, size_t r, size_t k)
{
    return ((const uint8_t *)t->data)[r * t->shape[1] + k];
}

/* Code k of row r where there are two in a byte or one. */
static uint8_t code_of(const struct walsh_tensor *t, bool nibbles, size_t r, size_t k)
{
    if (!nibbles) return byte_of(t, r, k);
    return (unsigned)byte_of(t, r, k / 2) >> 4 * (k % 2) & 15u;
}

static void check_mx(const char *name, enum walsh_code code, enum walsh_mx_rounding rounding)
{
    const struct walsh_tensor *x = tensor("x", ""), *codes = tensor(name, ".codes"),
                              *scales = tensor(name, ".scales");
    float row[MOST_COLUMNS];
    uint8_t mine[WALSH_MX_GROUP];
    for (size_t r = 0; r < x->shape[0]; r++) {
        read_row(x, r, row);
        for (size_t g = 0; g < x->shape[1] / WALSH_MX_GROUP; g++) {
            const uint8_t scale =
                walsh_mx_encode(row + g * WALSH_MX_GROUP, WALSH_MX_GROUP, code, rounding, mine);
            if (scale != byte_of(scales, r, g))
                fail_msg("%s: row %zu, group %zu: scale %u, expected %u", name, r, g, scale,
                         byte_of(scales, r, g));
            for (size_t i = 0; i < WALSH_MX_GROUP; i++) {
                const uint8_t expected = code_of(codes, code == WALSH_CODE_E2M1, r, g * WALSH_MX_GROUP + i);
                if (mine[i] != expected)
                    fail_msg("%s: row %zu, group %zu: %a with scale %u is %02x, expected %02x", name, r, g,
                             (double)row[g * WALSH_MX_GROUP + i], scale, mine[i], expected);
            }
        }
    }
}

static void mx_is_that_of_torchao(void **state)
{
    (void)state;
    static const char *const modes[] = {"floor", "ceil", "even", "rceil"};
    for (unsigned m = 0; m < 4; m++) {
        char name[32];
        snprintf(name, sizeof name, "mxfp4.%s", modes[m]);
        check_mx(name, WALSH_CODE_E2M1, (enum walsh_mx_rounding)m);
        snprintf(name, sizeof name, "mxfp8-e4m3.%s", modes[m]);
        check_mx(name, WALSH_CODE_E4M3, (enum walsh_mx_rounding)m);
        snprintf(name, sizeof name, "mxfp8-e5m2.%s", modes[m]);
        check_mx(name, WALSH_CODE_E5M2, (enum walsh_mx_rounding)m);
    }
}

static void nvfp4_is_that_of_torchao(void **state)
{
    (void)state;
    const struct walsh_tensor *x = tensor("x", ""), *codes = tensor("nvfp4", ".codes"),
                              *scales = tensor("nvfp4", ".scales"), *whole = tensor("nvfp4", ".tensor");
    float row[MOST_COLUMNS], expected, amax = 0;
    uint8_t mine[WALSH_NVFP4_GROUP];
    memcpy(&expected, whole->data, sizeof expected);
    for (size_t r = 0; r < codes->shape[0]; r++) {
        read_row(x, r, row);
        for (size_t k = 0; k < x->shape[1]; k++)
            if (row[k] > amax || -row[k] > amax) amax = row[k] < 0 ? -row[k] : row[k];
    }
    assert_true(walsh_nvfp4_tensor_scale(amax) == expected);
    for (size_t r = 0; r < codes->shape[0]; r++) {
        read_row(x, r, row);
        for (size_t g = 0; g < x->shape[1] / WALSH_NVFP4_GROUP; g++) {
            const uint8_t scale =
                walsh_nvfp4_encode(row + g * WALSH_NVFP4_GROUP, WALSH_NVFP4_GROUP, expected, mine);
            assert_int_equal(scale, byte_of(scales, r, g));
            for (size_t i = 0; i < WALSH_NVFP4_GROUP; i++)
                assert_int_equal(mine[i], code_of(codes, true, r, g * WALSH_NVFP4_GROUP + i));
        }
    }
}

static void fp8_rows_are_those_of_compressed_tensors(void **state)
{
    (void)state;
    const struct walsh_tensor *x = tensor("x", ""), *codes = tensor("fp8", ".codes"),
                              *scales = tensor("fp8", ".scales");
    float row[MOST_COLUMNS], expected, scale;
    uint8_t mine[MOST_COLUMNS];
    for (size_t r = 0; r < x->shape[0]; r++) {
        read_row(x, r, row);
        read_row(scales, r, &expected);
        walsh_fp8_encode(row, x->shape[1], mine, &scale);
        assert_memory_equal(&scale, &expected, sizeof scale);
        for (size_t k = 0; k < x->shape[1]; k++)
            if (mine[k] != byte_of(codes, r, k))
                fail_msg("row %zu: %a by %a is %02x, expected %02x", r, (double)row[k], (double)scale,
                         mine[k], byte_of(codes, r, k));
    }
}

static void check_affine(unsigned bits, unsigned group, bool symmetric)
{
    char name[40];
    snprintf(name, sizeof name, "int%u-g%u%s", bits, group, symmetric ? "" : "-asymmetric");
    const struct walsh_tensor *x = tensor("x", ""), *q = tensor(name, ".q"),
                              *scales = tensor(name, ".scales");
    const struct walsh_tensor *zeros = symmetric ? NULL : tensor(name, ".zeros");
    const size_t groups = x->shape[1] / group;
    float row[MOST_COLUMNS], row_scales[MOST_COLUMNS];
    int8_t mine[MOST_COLUMNS];
    for (size_t r = 0; r < q->shape[0]; r++) {
        read_row(x, symmetric ? r : r % 12, row);
        read_row(scales, r, row_scales);
        for (size_t g = 0; g < groups; g++) {
            float least = row[g * group], most = least;
            for (size_t i = g * group; i < (g + 1) * group; i++) {
                least = row[i] < least ? row[i] : least;
                most = row[i] > most ? row[i] : most;
            }
            const struct walsh_affine a = walsh_affine_scale(least, most, bits, symmetric, false);
            assert_memory_equal(&a.scale, &row_scales[g], sizeof a.scale);
            if (zeros) assert_int_equal(a.zero, (int8_t)byte_of(zeros, r, g));
            walsh_affine_encode(row + g * group, group, bits, &a, mine);
            for (size_t i = 0; i < group; i++)
                if (mine[i] != (int8_t)byte_of(q, r, g * group + i))
                    fail_msg("%s: row %zu: %a is %d, expected %d", name, r, (double)row[g * group + i],
                             mine[i], (int8_t)byte_of(q, r, g * group + i));
        }
    }
}

static void affine_is_that_of_compressed_tensors(void **state)
{
    (void)state;
    for (unsigned bits = 4; bits <= 8; bits += 4) {
        for (unsigned group = 32; group <= 128; group *= 2) {
            check_affine(bits, group, true);
            check_affine(bits, group, false);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mx_is_that_of_torchao),
        cmocka_unit_test(nvfp4_is_that_of_torchao),
        cmocka_unit_test(fp8_rows_are_those_of_compressed_tensors),
        cmocka_unit_test(affine_is_that_of_compressed_tensors),
    };
    return cmocka_run_group_tests(tests, open_file, close_file);
}
