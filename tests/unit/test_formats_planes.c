/* The run-time layouts: packing and unpacking are inverses, and the planes mean what the header derives. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "base/random.h"
#include "formats/e8p_planes.h"

static void *allocate(size_t bytes)
{
    struct walsh_error err;
    void *p;
    if (walsh_alloc(bytes, 1, "test data", &p, &err) != WALSH_OK) fail_msg("%s", err.message);
    return p;
}

static unsigned parity(unsigned x)
{
    return (unsigned)__builtin_parity(x);
}

/* The nibble of coordinate i from the stored bytes, by the header's formulas and nothing else. */
static unsigned nibble_by_formula(const struct walsh_plane_tables *t, unsigned label, unsigned sign_byte,
                                  unsigned i)
{
    unsigned p = parity(sign_byte), even = sign_byte ^ p;
    unsigned b = (label & 0x88u) == 8 ? 1u << (label & 7u) : 0, a = t->ones[label] & ~b, s = even ^ a;
    unsigned bit = 1u << i;
    return (s & bit ? 0u : 8u) | ((s ^ b) & bit ? 4u : 0u) | (even & bit ? 2u : 0u) | (p ? 0u : 1u);
}

static void every_e8p_code_survives(void **state)
{
    (void)state;
    const struct walsh_plane_tables *t = walsh_plane_tables();
    const uint32_t cols = 8 * 1024, rows = 64; /* each code once */
    size_t bytes = walsh_stage_bytes(WALSH_STAGE_E8P, rows, cols);
    assert_int_equal(bytes, rows * cols / 4);
    uint16_t *codes = allocate(65536 * sizeof *codes);
    uint8_t *packed = allocate(bytes);
    for (unsigned c = 0; c < 65536; c++) codes[c] = (uint16_t)c;
    walsh_e8p_pack(cols, codes, 0, rows, packed);
    for (unsigned c = 0; c < 65536; c++) {
        uint32_t r = c / 1024, g = c % 1024;
        assert_int_equal(walsh_e8p_unpack(cols, packed, r, g), c);
        const uint8_t *block = packed + ((size_t)(r / 2) * (cols / 256) + g / 32) * 128;
        unsigned at = walsh_plane_position(g % 32, r), label = block[at], signs = block[64 + at];
        int8_t x4[8];
        walsh_e8p_decode_x4((uint16_t)c, x4);
        for (unsigned i = 0; i < 8; i++) {
            unsigned u = (unsigned)(x4[i] + 15) / 2;
            assert_int_equal(nibble_by_formula(t, label, signs, i), u);
            unsigned even = (signs ^ parity(signs)) >> i & 1u;
            assert_int_equal((t->nibbles[label][i] ^ (even ? 14u : 0u)) | (parity(signs) ^ 1u), u);
        }
    }
    walsh_free(codes);
    walsh_free(packed);
}

static void every_e81b_code_survives(void **state)
{
    (void)state;
    const struct walsh_plane_tables *t = walsh_plane_tables();
    const uint32_t cols = 8 * 128, rows = 2;
    size_t bytes = walsh_stage_bytes(WALSH_STAGE_E81B, rows, cols);
    assert_int_equal(bytes, rows * cols / 8);
    uint8_t codes[256], *packed = allocate(bytes);
    for (unsigned c = 0; c < 256; c++) codes[c] = (uint8_t)(255 - c);
    walsh_e81b_pack(cols, codes, 0, rows, packed);
    for (unsigned c = 0; c < 256; c++) {
        uint32_t r = c / 128, g = c % 128;
        assert_int_equal(walsh_e81b_unpack(cols, packed, r, g), codes[c]);
        unsigned label = packed[(size_t)g / 32 * 64 + walsh_plane_position(g % 32, r)];
        const int8_t *x2 = walsh_e8p_tables()->e81b_x2[codes[c]];
        for (unsigned i = 0; i < 8; i++) {
            unsigned u = (unsigned)(x2[i] + 4), signs = (label & 127u) | parity(label & 127u) << 7, got;
            if (label < 128)
                got = (t->e81b[0][label] >> i & 1u) << 1 | (t->e81b[1][label] >> i & 1u) << 2 |
                      (t->e81b[2][label] >> i & 1u) << 3;
            else
                got = signs >> i & 1u ? 3u : 5u;
            assert_int_equal(got, u);
            assert_int_equal(t->e81b_nibbles[label][i], u);
        }
    }
    walsh_free(packed);
}

/* Widths that do not fill a block, rows packed in two shares: inverse, padded with code 0, nothing else
 * written. */
static void tails_and_shares(void **state)
{
    (void)state;
    const uint64_t seed = 20240611;
    print_message("seed %llu\n", (unsigned long long)seed);
    struct walsh_random random;
    walsh_random_seed(&random, seed);
    static const uint32_t shapes[][2] = {{2, 8}, {16, 64}, {18, 248}, {6, 256}, {10, 264}, {48, 1536 + 64}};
    for (size_t n = 0; n < sizeof shapes / sizeof *shapes; n++) {
        uint32_t rows = shapes[n][0], cols = shapes[n][1], groups = cols / 8;
        uint32_t padded = (uint32_t)walsh_stage_blocks(cols) * 32, middle = rows / 4 * 2;
        for (int kind = 0; kind < 2; kind++) {
            enum walsh_stage_kind stage = kind ? WALSH_STAGE_E81B : WALSH_STAGE_E8P;
            size_t bytes = walsh_stage_bytes(stage, rows, cols);
            assert_int_equal(bytes, (size_t)rows * padded * (kind ? 1 : 2));
            uint16_t *wide = allocate((size_t)rows * groups * 2);
            uint8_t *narrow = allocate((size_t)rows * groups), *packed = allocate(bytes + 64);
            for (size_t i = 0; i < (size_t)rows * groups; i++) {
                wide[i] = (uint16_t)walsh_random_u64(&random);
                narrow[i] = (uint8_t)wide[i];
            }
            memset(packed, 0xa5, bytes + 64);
            for (int share = 0; share < 2; share++) {
                uint32_t begin = share ? middle : 0, end = share ? rows : middle;
                if (kind)
                    walsh_e81b_pack(cols, narrow, begin, end, packed);
                else
                    walsh_e8p_pack(cols, wide, begin, end, packed);
            }
            for (size_t i = 0; i < 64; i++) assert_int_equal(packed[bytes + i], 0xa5);
            for (uint32_t r = 0; r < rows; r++) {
                for (uint32_t g = 0; g < padded; g++) {
                    unsigned code = g < groups ? wide[(size_t)r * groups + g] : 0;
                    if (kind)
                        assert_int_equal(walsh_e81b_unpack(cols, packed, r, g), code & 255u);
                    else
                        assert_int_equal(walsh_e8p_unpack(cols, packed, r, g), code);
                }
            }
            walsh_free(wide);
            walsh_free(narrow);
            walsh_free(packed);
        }
    }
}

static void weight_bytes(void **state)
{
    (void)state;
    struct walsh_weights w = {.format = WALSH_FORMAT_BF16, .rows = 48, .cols = 320};
    assert_int_equal(walsh_weights_bytes(&w), 48 * 320 * 2);
    w.format = WALSH_FORMAT_F32;
    assert_int_equal(walsh_weights_bytes(&w), 48 * 320 * 4);
    w.format = WALSH_FORMAT_E8P;
    w.stages = 2;
    w.stage[0].kind = WALSH_STAGE_E8P;
    w.stage[1].kind = WALSH_STAGE_E81B;
    assert_int_equal(walsh_weights_bytes(&w), 24 * 2 * (128 + 64)); /* 320 columns take two blocks */
    assert_string_equal(walsh_format_name(WALSH_FORMAT_E8P), "e8p");
    assert_string_equal(walsh_format_name(WALSH_FORMAT_COUNT), "unknown");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_e8p_code_survives),
        cmocka_unit_test(every_e81b_code_survives),
        cmocka_unit_test(tails_and_shares),
        cmocka_unit_test(weight_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
