/* Every code of the small formats against the formula of its standard in double, and every encoder against
 * the nearest code found by comparing distances. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdbool.h>

#include "base/random.h"
#include "base/scalar.h"

/* Value of a sign-exponent-mantissa code, specials apart: m * 2^(1 - bias - bits) or (1 + m/2^bits) * 2^(e -
 * bias) */
static double code_value(unsigned code, int exponent_bits, int mantissa_bits)
{
    int bias = (1 << (exponent_bits - 1)) - 1;
    int e = (int)(code >> mantissa_bits) & ((1 << exponent_bits) - 1);
    double m = code & ((1u << mantissa_bits) - 1);
    double value =
        e == 0 ? ldexp(m, 1 - bias - mantissa_bits) : ldexp(1 + ldexp(m, -mantissa_bits), e - bias);
    return code >> (exponent_bits + mantissa_bits) & 1 ? -value : value;
}

static void test_f16_decode(void **state)
{
    (void)state;
    for (unsigned h = 0; h < 65536; h++) {
        float f = walsh_f32_from_f16((uint16_t)h);
        uint32_t bits = walsh_bits_from_float(f);
        assert_int_equal(bits >> 31, h >> 15);
        if ((h & 0x7fff) > 0x7c00) {
            assert_true(isnan(f));
            assert_int_equal((bits >> 13) & 0x3ff, h & 0x3ff);
        } else if ((h & 0x7fff) == 0x7c00) {
            assert_true(isinf(f));
        } else {
            assert_true((double)f == code_value(h, 5, 10));
        }
    }
}

static void test_f16_round_trip(void **state)
{
    (void)state;
    for (unsigned h = 0; h < 65536; h++) {
        unsigned expected = (h & 0x7fff) > 0x7c00 ? h | 0x200 : h; /* a NaN becomes quiet */
        assert_int_equal(walsh_f16_from_f32(walsh_f32_from_f16((uint16_t)h)), expected);
    }
}

/* Around each finite positive code: the midpoint to the next goes to the even one, its neighbours to the
 * nearer. */
static void check_midpoints(unsigned (*encode)(float), float (*decode)(unsigned), unsigned largest,
                            double beyond, unsigned sign_bit, unsigned above_largest)
{
    for (unsigned c = 0; c <= largest; c++) {
        double low = decode(c), high = c == largest ? beyond : decode(c + 1);
        unsigned next = c == largest ? above_largest : c + 1;
        float middle = (float)((low + high) / 2); /* exact: one more mantissa bit than the format */
        unsigned even = c % 2 == 0 ? c : next;
        if (c == largest && above_largest == largest) even = largest;
        assert_int_equal(encode(middle), even);
        assert_int_equal(encode(nextafterf(middle, INFINITY)), next);
        assert_int_equal(encode(nextafterf(middle, 0.0f)), c);
        assert_int_equal(encode(-middle), even | sign_bit);
        assert_int_equal(encode(nextafterf(-middle, -INFINITY)), next | sign_bit);
        assert_int_equal(encode(nextafterf(-middle, 0.0f)), c | sign_bit);
    }
}

static unsigned encode_f16(float f)
{
    return walsh_f16_from_f32(f);
}
static float decode_f16(unsigned h)
{
    return walsh_f32_from_f16((uint16_t)h);
}
static unsigned encode_bf16(float f)
{
    return walsh_bf16_from_f32(f);
}
static float decode_bf16(unsigned b)
{
    return walsh_f32_from_bf16((uint16_t)b);
}
static unsigned encode_e4m3(float f)
{
    return walsh_e4m3_from_f32(f);
}
static float decode_e4m3(unsigned b)
{
    return walsh_f32_from_e4m3((uint8_t)b);
}

static void test_f16_encode(void **state)
{
    (void)state;
    check_midpoints(encode_f16, decode_f16, 0x7bff, 65536.0, 0x8000, 0x7c00);
    assert_int_equal(walsh_f16_from_f32(INFINITY), 0x7c00);
    assert_int_equal(walsh_f16_from_f32(-INFINITY), 0xfc00);
    assert_int_equal(walsh_f16_from_f32(1e30f), 0x7c00);
    assert_int_equal(walsh_f16_from_f32(-0.0f), 0x8000);
    assert_int_equal(walsh_f16_from_f32(1e-40f), 0);
    assert_int_equal(walsh_f16_from_f32(walsh_float_from_bits(0x7f800001)) & 0x7e00,
                     0x7e00); /* payload lost: still NaN */
}

static void test_bf16(void **state)
{
    (void)state;
    for (unsigned b = 0; b < 65536; b++) {
        float f = walsh_f32_from_bf16((uint16_t)b);
        if ((b & 0x7fff) > 0x7f80) {
            assert_true(isnan(f));
            assert_int_equal(walsh_bf16_from_f32(f), b | 0x40);
        } else {
            if ((b & 0x7fff) == 0x7f80)
                assert_true(isinf(f));
            else
                assert_true((double)f == code_value(b, 8, 7));
            assert_int_equal(walsh_bf16_from_f32(f), b);
        }
    }
    assert_int_equal(walsh_bf16_from_f32(walsh_float_from_bits(0x7f800001)) & 0x7fc0, 0x7fc0);
    /* The last midpoint is representable, the number beyond it is not infinite in double. */
    check_midpoints(encode_bf16, decode_bf16, 0x7f7f, 0x1p128, 0x8000, 0x7f80);
}

static void test_e4m3(void **state)
{
    (void)state;
    for (unsigned b = 0; b < 256; b++) {
        float f = walsh_f32_from_e4m3((uint8_t)b);
        if ((b & 0x7f) == 0x7f)
            assert_true(isnan(f));
        else
            assert_true((double)f == code_value(b, 4, 3));
        assert_int_equal(walsh_bits_from_float(f) >> 31, b >> 7);
        assert_int_equal(walsh_e4m3_from_f32(f), b);
    }
    check_midpoints(encode_e4m3, decode_e4m3, 0x7e, 480.0, 0x80, 0x7e); /* beyond 448: saturates */
    assert_int_equal(walsh_e4m3_from_f32(INFINITY), 0x7e);
    assert_int_equal(walsh_e4m3_from_f32(-1e30f), 0xfe);
    assert_int_equal(walsh_e4m3_from_f32(1e-40f), 0);
}

static void test_e5m2_e8m0(void **state)
{
    (void)state;
    for (unsigned b = 0; b < 256; b++) {
        float f = walsh_f32_from_e5m2((uint8_t)b);
        if ((b & 0x7f) > 0x7c)
            assert_true(isnan(f));
        else if ((b & 0x7f) == 0x7c)
            assert_true(isinf(f) && !signbit(f) == !(b >> 7));
        else
            assert_true((double)f == code_value(b, 5, 2));
        float scale = walsh_f32_from_e8m0((uint8_t)b);
        if (b == 255)
            assert_true(isnan(scale));
        else
            assert_true((double)scale == ldexp(1, (int)b - 127));
    }
}

/* Random floats of every exponent: no other code is nearer. */
static void test_random_nearest(void **state)
{
    (void)state;
    const uint64_t seed = 20240611;
    print_message("seed %llu\n", (unsigned long long)seed);
    struct walsh_random r;
    walsh_random_seed(&r, seed);
    for (unsigned i = 0; i < 1000000; i++) {
        float f = walsh_float_from_bits((uint32_t)walsh_random_u64(&r));
        if (!isfinite(f) || fabsf(f) >= 65504.0f) continue;
        unsigned h = encode_f16(f) & 0x7fff;
        double error = fabs(fabs((double)f) - decode_f16(h));
        assert_true(error <= fabs(fabs((double)f) - decode_f16(h + 1)));
        if (h > 0) assert_true(error <= fabs(fabs((double)f) - decode_f16(h - 1)));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f16_decode),     cmocka_unit_test(test_f16_round_trip),
        cmocka_unit_test(test_f16_encode),     cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_e4m3),           cmocka_unit_test(test_e5m2_e8m0),
        cmocka_unit_test(test_random_nearest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
