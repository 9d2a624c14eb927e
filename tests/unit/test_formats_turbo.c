/* The TurboQuant codec: codebooks, one vector's encode and decode, packing. The test groups of the KV cache's
 * design are named in the tests: 1 inverse and forward, 2 bits, 5 head dimensions, 6 special vectors. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/random.h"
#include "base/scalar.h"
#include "formats/turbo.h"
#include "unit/share.h"

#define SEED 20250119u
#define MOST WALSH_TURBO_MAX_DIM

static const uint32_t dims[] = {64, 80, 96, 128, 192, 256, 320, 512, 576};
enum { DIMS = sizeof dims / sizeof *dims };

static struct walsh_random start(void)
{
    struct walsh_random r;
    print_message("seed %u\n", SEED);
    walsh_random_seed(&r, SEED);
    return r;
}

static struct walsh_turbo_codec *open_codec(uint32_t dim, unsigned bits, bool no_rotation, bool no_correction)
{
    const struct walsh_turbo_options options = {dim, bits, SEED, "key", no_rotation, no_correction};
    struct walsh_turbo_codec *codec;
    assert_int_equal(walsh_turbo_codec_open(&options, &codec, NULL), WALSH_OK);
    return codec;
}

static double norm_of(const float *x, uint32_t dim)
{
    double sum = 0;
    for (uint32_t i = 0; i < dim; i++) sum += (double)x[i] * (double)x[i];
    return sqrt(sum);
}

static double error_of(const float *x, const float *y, uint32_t dim)
{
    double sum = 0;
    for (uint32_t i = 0; i < dim; i++) sum += pow((double)x[i] - (double)y[i], 2);
    return sqrt(sum);
}

static void fill_normal(struct walsh_random *r, float *x, uint32_t dim)
{
    for (uint32_t i = 0; i < dim; i++) x[i] = (float)walsh_random_normal(r);
}

/* Mean of |x - x^|^2 / |x|^2 over Gaussian vectors with elements [begin, end) only. */
static double measured_distortion(struct walsh_random *random, const struct walsh_turbo_codec *codec,
                                  uint32_t begin, uint32_t end, int count)
{
    static float x[MOST], y[MOST];
    static uint8_t codes[MOST];
    const uint32_t dim = codec->book.dim;
    double sum = 0;
    for (int n = 0; n < count; n++) {
        memset(x, 0, sizeof x);
        fill_normal(random, x + begin, end - begin);
        uint16_t norm;
        walsh_turbo_encode(codec, x, codes, &norm);
        walsh_turbo_decode(codec, codes, norm, y);
        sum += pow(error_of(x, y, dim) / norm_of(x, dim), 2);
    }
    return sum / count;
}

/* --- codebooks --- */

static void test_group_2_optimum_distortions(void **state)
{
    (void)state;
    static const double optimum[] = {.3609, .1160, .03397, .00931, .00245, .000630, .000160, .0000403};
    static const double two[] = {.4523, 1.5049}, three[] = {.2440, .7521, 1.3352, 2.1302};
    static struct walsh_turbo_codebook book;
    for (unsigned bits = 1; bits <= 8; bits++) {
        assert_int_equal(walsh_turbo_codebook_build(128, bits, &book, NULL), WALSH_OK);
        assert_int_equal(book.levels, 1u << bits);
        assert_true(fabs(book.distortion / optimum[bits - 1] - 1) < 0.01);
        for (unsigned i = 0; i < 2 && bits == 2; i++)
            assert_true(fabs(book.optimum[2 + i] * sqrt(128) - two[i]) < 0.002);
        for (unsigned i = 0; i < 4 && bits == 3; i++)
            assert_true(fabs(book.optimum[4 + i] * sqrt(128) - three[i]) < 0.002);
    }
    /* exactly known: the mean of |t| is Gamma(d/2) / (sqrt(pi) Gamma((d+1)/2)) */
    assert_int_equal(walsh_turbo_codebook_build(128, 1, &book, NULL), WALSH_OK);
    assert_true(fabs(book.optimum[1] - exp(lgamma(64) - lgamma(64.5)) / sqrt(acos(-1))) < 1e-13);
}

/* Each level is the centroid of its cell by another quadrature; what is stored follows from the levels. */
static void test_group_2_optimality_and_structure(void **state)
{
    (void)state;
    static struct walsh_turbo_codebook book;
    for (size_t k = 0; k < DIMS; k++)
        for (unsigned bits = 1; bits <= 8; bits++) {
            const uint32_t dim = dims[k];
            assert_int_equal(walsh_turbo_codebook_build(dim, bits, &book, NULL), WALSH_OK);
            for (uint32_t i = book.levels / 2; i < book.levels; i++) {
                double low = i == book.levels / 2 ? 0 : (book.optimum[i - 1] + book.optimum[i]) / 2;
                double high = i + 1 == book.levels ? fmin(1, 16 / sqrt(dim))
                                                   : (book.optimum[i] + book.optimum[i + 1]) / 2;
                double mass = 0, first = 0;
                enum { POINTS = 4096 }; /* midpoint rule, second order */
                for (int p = 0; p < POINTS; p++) {
                    double t = low + (high - low) * (p + 0.5) / POINTS, f = pow(1 - t * t, (dim - 3) / 2.0);
                    mass += f;
                    first += f * t;
                }
                assert_true(fabs(first / mass - book.optimum[i]) * sqrt(dim) < 1e-5);
                assert_true(fabs((double)book.scale * book.value[i] - book.optimum[i]) <
                            0.5001 * (double)book.scale);
                assert_int_equal(book.value[i], -book.value[book.levels - 1 - i]);
            }
            assert_int_equal(book.limit, book.value[book.levels - 1]);
            for (uint32_t i = 0; i + 1 < book.levels; i++) {
                assert_true(book.value[i] < book.value[i + 1]);
                double middle = 0.5 * (book.value[i] + book.value[i + 1]) * (double)book.scale;
                assert_true(fabs((double)book.midpoint[i] - middle) <= 1e-7 * fabs(middle));
            }
            /* the tree finds the number of midpoints strictly below */
            for (uint32_t i = 0; i < 4 * book.levels; i++) {
                float y = i < book.levels - 1
                              ? book.midpoint[i]
                              : 2 * ((float)i / (float)(2 * book.levels) - 1) * book.scale * book.limit;
                uint32_t node = 1, below = 0;
                while (node < book.levels) node = 2 * node + (book.tree[node] < y);
                for (uint32_t m = 0; m + 1 < book.levels; m++) below += book.midpoint[m] < y;
                assert_int_equal(node - book.levels, below);
            }
        }
}

static void test_codebook_errors(void **state)
{
    (void)state;
    static struct walsh_turbo_codebook book;
    struct walsh_error err;
    assert_int_equal(walsh_turbo_codebook_build(72, 4, &book, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "turbo cache: head dimension 72, expected a multiple of 16 up to 1024");
    assert_int_equal(walsh_turbo_codebook_build(0, 4, &book, &err), WALSH_E_ARGUMENT);
    assert_int_equal(walsh_turbo_codebook_build(1040, 4, &book, &err), WALSH_E_ARGUMENT);
    assert_int_equal(walsh_turbo_codebook_build(64, 0, &book, &err), WALSH_E_ARGUMENT);
    assert_int_equal(walsh_turbo_codebook_build(64, 9, &book, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "turbo cache: 9 bits, expected 1 to 8");
    struct walsh_turbo_codec *codec = (void *)&book;
    const struct walsh_turbo_options options = {.dim = 72, .bits = 4, .stream = "key"};
    assert_int_equal(walsh_turbo_codec_open(&options, &codec, &err), WALSH_E_ARGUMENT);
    assert_null(codec);
    struct walsh_turbo_prod *prod = (void *)&book;
    assert_int_equal(walsh_turbo_prod_open(64, 1, 0, false, &prod, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message,
                        "turbo cache: the Prod codec takes 2 to 8 bits (one is the projection's), not 1");
    assert_null(prod);
}

/* --- vectors --- */

static void test_group_1_inverse_matches_forward(void **state)
{
    (void)state;
    struct walsh_random random = start();
    static float x[MOST], y[MOST], back[MOST];
    static double xd[MOST];
    static uint8_t codes[MOST];
    for (size_t k = 0; k < DIMS; k++) {
        const uint32_t dim = dims[k];
        struct walsh_turbo_codec *codec = open_codec(dim, 8, false, false);
        fill_normal(&random, x, dim);
        walsh_rotate_forward(&codec->rotation, x, y);
        for (uint32_t i = 0; i < dim; i++) xd[i] = (double)x[i];
        walsh_rotate_forward_f64(&codec->rotation, xd, xd);
        for (uint32_t i = 0; i < dim; i++) assert_true(fabs(xd[i] - (double)y[i]) < 4e-6);
        walsh_rotate_inverse(&codec->rotation, y, back);
        assert_true(error_of(x, back, dim) < 1e-6 * norm_of(x, dim));
        walsh_rotate_inverse_f64(&codec->rotation, xd, xd);
        for (uint32_t i = 0; i < dim; i++) assert_true(fabs(xd[i] - (double)x[i]) < 1e-12);

        /* decode undoes the rotation that encode did; the forward rotation in its place is far off */
        uint16_t norm;
        walsh_turbo_encode(codec, x, codes, &norm);
        walsh_turbo_decode(codec, codes, norm, back);
        assert_true(error_of(x, back, dim) < 0.01 * norm_of(x, dim));
        for (uint32_t i = 0; i < dim; i++)
            y[i] = walsh_f32_from_f16(norm) * codec->book.scale * (float)codec->book.value[codes[i]];
        walsh_rotate_forward(&codec->rotation, y, back);
        assert_true(error_of(x, back, dim) > 0.5 * norm_of(x, dim));
        walsh_turbo_codec_close(&codec);
        assert_null(codec);
    }
}

/* Are the codes those of y * stretch, but for elements so near to a midpoint that rounding decides? */
static bool codes_of(const struct walsh_turbo_codebook *book, const double *y, double stretch,
                     const uint8_t *codes)
{
    for (uint32_t i = 0; i < book->dim; i++) {
        uint32_t low = 0, high = 0;
        for (uint32_t m = 0; m + 1 < book->levels; m++) {
            low += (double)book->midpoint[m] < y[i] * stretch - 1e-6;
            high += (double)book->midpoint[m] < y[i] * stretch + 1e-6;
        }
        if (codes[i] < low || codes[i] > high) return false;
    }
    return true;
}

/* <y, c> / |c| of the codes of y * stretch. */
static double fit_of(const struct walsh_turbo_codebook *book, const double *y, double stretch)
{
    double along = 0, squares = 0;
    for (uint32_t i = 0; i < book->dim; i++) {
        uint32_t code = 0;
        while (code + 1 < book->levels && (double)book->midpoint[code] < y[i] * stretch) code++;
        along += y[i] * book->value[code];
        squares += (double)book->value[code] * book->value[code];
    }
    return along / sqrt(squares);
}

/* The rule in double precision; where two stretches are as good, either. */
static void test_encode_follows_the_rule(void **state)
{
    (void)state;
    static const double stretches[] = {1, .95, 1.05, .9, 1.1};
    struct walsh_random random = start();
    static float x[MOST];
    static double y[MOST];
    static uint8_t codes[MOST];
    int stretched = 0;
    for (size_t k = 0; k < DIMS; k++)
        for (unsigned bits = 1; bits <= 8; bits++) {
            const uint32_t dim = dims[k];
            struct walsh_turbo_codec *codec = open_codec(dim, bits, bits == 7, bits % 2 == 0);
            const struct walsh_turbo_codebook *book = &codec->book;
            const size_t count = codec->norm_correction ? 5 : 1;
            fill_normal(&random, x, dim);
            uint16_t norm;
            assert_false(walsh_turbo_encode(codec, x, codes, &norm));
            double g = norm_of(x, dim), squares = 0, best = 0;
            for (uint32_t i = 0; i < dim; i++) y[i] = (double)x[i] / g;
            walsh_rotate_forward_f64(&codec->rotation, y, y);
            for (size_t n = 0; n < count; n++) best = fmax(best, fit_of(book, y, stretches[n]));
            bool found = false;
            for (size_t n = 0; n < count && !found; n++) {
                found = fit_of(book, y, stretches[n]) > best - 1e-6 && codes_of(book, y, stretches[n], codes);
                stretched += found && n > 0;
            }
            assert_true(found);
            for (uint32_t i = 0; i < dim; i++) squares += pow((double)book->scale * book->value[codes[i]], 2);
            double expected = codec->norm_correction ? g / sqrt(squares) : g;
            assert_true(fabs((double)walsh_f32_from_f16(norm) / expected - 1) < 6e-4);
            walsh_turbo_codec_close(&codec);
        }
    assert_true(stretched > 5);
}

static void test_group_2_mse_falls_with_every_bit(void **state)
{
    (void)state;
    struct walsh_random random = start();
    for (size_t k = 0; k < DIMS; k++) {
        double before = 1;
        if (test_small() && k % 3 != 0) continue;
        for (unsigned bits = 1; bits <= 8; bits++) {
            struct walsh_turbo_codec *codec = open_codec(dims[k], bits, false, true);
            double d = measured_distortion(&random, codec, 0, dims[k], 2000);
            assert_true(d < 0.45 * before);
            /* Gaussian vectors have the codebook's distortion; much of its variance is that of rare tails */
            assert_true(fabs(d / codec->book.distortion - 1) < 0.06);
            before = d;
            walsh_turbo_codec_close(&codec);
        }
    }
}

/* What stretching takes off, against the distortions that the method has without (their simulation). */
static void test_group_2_stretching(void **state)
{
    (void)state;
    static const struct {
        uint32_t dim;
        unsigned bits;
        double plain, gain;
    } cases[] = {{64, 2, .1166, .010},  {64, 3, .03277, .06},   {64, 4, .00882, .13},
                 {128, 2, .1188, .005}, {128, 3, .03385, .035}, {128, 4, .00922, .09}};
    struct walsh_random random = start();
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        struct walsh_turbo_codec *codec = open_codec(cases[k].dim, cases[k].bits, false, false);
        double d = measured_distortion(&random, codec, 0, cases[k].dim, 6000);
        assert_true(d < cases[k].plain * (1 - cases[k].gain) && d > 0.8 * cases[k].plain);
        walsh_turbo_codec_close(&codec);
    }
}

/* Energy in any block of the dimension: what the overlap makes of it at 4 bits, against .0074 to .0094 where
 * it is everywhere. In the small block of m + m/2 elements it meets half of the dimension only. */
static void test_group_5_energy_in_each_block(void **state)
{
    (void)state;
    struct walsh_random random = start();
    static const double most[DIMS] = {.0102, .0112, .0162, .0102, .0172, .0102, .0135, .0102, .0112};
    for (size_t k = 0; k < DIMS; k++) {
        const uint32_t dim = dims[k];
        struct walsh_turbo_codec *codec = open_codec(dim, 4, false, false);
        struct walsh_blocks blocks;
        assert_int_equal(walsh_blocks_binary(dim, 16, &blocks, NULL), WALSH_OK);
        uint32_t begin = 0;
        for (uint32_t b = 0; b < blocks.count; begin += blocks.block[b++]) {
            double d = measured_distortion(&random, codec, begin, begin + blocks.block[b], 1500);
            assert_true(d > 0.0068 && d < most[k]);
        }
        walsh_turbo_codec_close(&codec);
    }
    /* what blocks in the overlap's place would do: this is what the bound above catches */
    struct walsh_turbo_codec *codec = open_codec(80, 4, false, false);
    struct walsh_rotation overlap = codec->rotation;
    codec->rotation.kind = WALSH_ROTATION_BLOCKS;
    assert_int_equal(walsh_blocks_binary(80, 16, &codec->rotation.blocks, NULL), WALSH_OK);
    double d = measured_distortion(&random, codec, 64, 80, 1000);
    assert_true(d > 0.06);
    codec->rotation = overlap;
    walsh_turbo_codec_close(&codec);
}

/* Requantizing what was dequantized: nearly nothing changes; without norm correction the length shrinks. */
static void test_requantizing_is_idempotent(void **state)
{
    (void)state;
    struct walsh_random random = start();
    static float x[MOST], y[MOST];
    static uint8_t codes[MOST], again[MOST];
    static const uint32_t some[] = {64, 80, 128};
    for (size_t k = 0; k < 3; k++)
        for (unsigned bits = 1; bits <= 8; bits++) {
            const uint32_t dim = some[k];
            struct walsh_turbo_codec *codec = open_codec(dim, bits, false, false);
            const int count = (int)test_cases(4000, 600);
            int changed = 0;
            for (int n = 0; n < count; n++) {
                uint16_t norm, second;
                fill_normal(&random, x, dim);
                walsh_turbo_encode(codec, x, codes, &norm);
                walsh_turbo_decode(codec, codes, norm, y);
                walsh_turbo_encode(codec, y, again, &second);
                changed += memcmp(codes, again, dim) != 0;
                if (memcmp(codes, again, dim) == 0) assert_in_range(second, norm - 1, norm + 1);
            }
            if (changed * 1000 > count)
                print_message("dim %u, %u bits: %d of %d change\n", dim, bits, changed, count);
            assert_true(changed * 500 < count);
            walsh_turbo_codec_close(&codec);
        }
    static const double shrink[] = {.940, .982, .995};
    for (unsigned bits = 2; bits <= 4; bits++) {
        struct walsh_turbo_codec *codec = open_codec(128, bits, false, true);
        double ratio = 0;
        for (int n = 0; n < 2000; n++) {
            uint16_t norm;
            fill_normal(&random, x, 128);
            walsh_turbo_encode(codec, x, codes, &norm);
            walsh_turbo_decode(codec, codes, norm, y);
            ratio += norm_of(y, 128) / norm_of(x, 128) / 2000;
        }
        assert_true(fabs(ratio - shrink[bits - 2]) < 0.002);
        walsh_turbo_codec_close(&codec);
    }
}

static void test_group_6_special_vectors(void **state)
{
    (void)state;
    struct walsh_random random = start();
    static float x[MOST], y[MOST];
    static uint8_t codes[MOST], other[MOST];
    for (size_t k = 0; k < DIMS; k++)
        for (unsigned bits = 1; bits <= 8; bits += 3) {
            const uint32_t dim = dims[k];
            struct walsh_turbo_codec *codec = open_codec(dim, bits, false, false);
            uint16_t norm, second;
            memset(x, 0, sizeof x);
            assert_false(walsh_turbo_encode(codec, x, codes, &norm));
            assert_int_equal(norm, 0);
            walsh_turbo_decode(codec, codes, norm, y);
            for (uint32_t i = 0; i < dim; i++) assert_true(y[i] == 0);

            /* |x| > 65504: the norm saturates and says so, the direction stays */
            fill_normal(&random, x, dim);
            walsh_turbo_encode(codec, x, codes, &norm);
            for (uint32_t i = 0; i < dim; i++) x[i] *= 0x1p20f;
            assert_true(walsh_turbo_encode(codec, x, other, &second));
            assert_int_equal(second, 0x7bff);
            assert_memory_equal(codes, other, dim);
            for (uint32_t i = 0; i < dim; i++) x[i] *= 0x1p-40f;
            assert_false(walsh_turbo_encode(codec, x, other, &second));
            assert_true(second < norm && (second > 0 || dim < 1));

            x[dim / 2] = 3e30f; /* |x|^2 overflows */
            assert_true(walsh_turbo_encode(codec, x, other, &second));
            assert_int_equal(second, 0x7bff);
            x[dim / 2] = INFINITY;
            assert_true(walsh_turbo_encode(codec, x, other, &second));
            assert_int_equal(second, 0x7bff);
            x[dim / 2] = NAN;
            assert_false(walsh_turbo_encode(codec, x, other, &second));
            assert_int_equal(second, 0x7e00); /* whatever NaN the sums end with */
            for (uint32_t i = 0; i < dim; i++) assert_int_equal(other[i], 0);
            walsh_turbo_codec_close(&codec);
        }
    /* just below and just above the largest norm, without correction */
    struct walsh_turbo_codec *codec = open_codec(64, 4, true, true);
    uint16_t norm;
    memset(x, 0, sizeof x);
    x[3] = 65504.0f;
    assert_false(walsh_turbo_encode(codec, x, codes, &norm));
    assert_int_equal(norm, 0x7bff);
    x[3] = 65505.0f;
    assert_true(walsh_turbo_encode(codec, x, codes, &norm));
    assert_int_equal(norm, 0x7bff);
    walsh_turbo_codec_close(&codec);
}

/* Codes follow from the seed and the stream's name alone. */
static void test_seeds(void **state)
{
    (void)state;
    struct walsh_random random = start();
    static float x[128];
    static uint8_t codes[4][128];
    static const struct walsh_turbo_options options[] = {
        {.dim = 128, .bits = 4, .seed = 1, .stream = "key"},
        {.dim = 128, .bits = 4, .seed = 1, .stream = "key"},
        {.dim = 128, .bits = 4, .seed = 2, .stream = "key"},
        {.dim = 128, .bits = 4, .seed = 1, .stream = "value"},
    };
    fill_normal(&random, x, 128);
    for (int i = 0; i < 4; i++) {
        struct walsh_turbo_codec *codec;
        uint16_t norm;
        assert_int_equal(walsh_turbo_codec_open(&options[i], &codec, NULL), WALSH_OK);
        walsh_turbo_encode(codec, x, codes[i], &norm);
        walsh_turbo_codec_close(&codec);
    }
    assert_memory_equal(codes[0], codes[1], 128);
    assert_memory_not_equal(codes[0], codes[2], 128);
    assert_memory_not_equal(codes[0], codes[3], 128);
}

static void test_sizes_and_packing(void **state)
{
    (void)state;
    struct walsh_random random = start();
    static const size_t at_128[] = {18, 34, 50, 66, 82, 98, 114, 130};
    static uint8_t codes[MOST], back[MOST], packed[MOST + 3];
    for (unsigned bits = 1; bits <= 8; bits++)
        assert_int_equal(walsh_turbo_bytes(128, bits), at_128[bits - 1]);
    for (size_t k = 0; k < DIMS; k++)
        for (unsigned bits = 1; bits <= 8; bits++) {
            const uint32_t dim = dims[k];
            const size_t bytes = walsh_turbo_bytes(dim, bits);
            for (uint32_t i = 0; i < dim; i++)
                codes[i] = (uint8_t)(walsh_random_u64(&random) & ((1u << bits) - 1));
            memset(packed, 0xA5, sizeof packed);
            walsh_turbo_pack(codes, dim, bits, 0x1234, packed);
            assert_int_equal(packed[bytes], 0xA5);
            assert_int_equal(packed[bytes - 2] | packed[bytes - 1] << 8, 0x1234);
            for (uint32_t i = 0; i < dim; i++)
                for (unsigned b = 0; b < bits; b++) {
                    uint32_t at = i * bits + b;
                    assert_int_equal(packed[at / 8] >> (at % 8) & 1, codes[i] >> b & 1);
                }
            uint16_t norm;
            walsh_turbo_unpack(packed, dim, bits, back, &norm);
            assert_memory_equal(codes, back, dim);
            assert_int_equal(norm, 0x1234);
        }
}

static void test_fractional_bits(void **state)
{
    (void)state;
    unsigned key, value;
    assert_true(walsh_turbo_split_bits(2.5, &key, &value));
    assert_int_equal(key * 10 + value, 23);
    assert_true(walsh_turbo_split_bits(3.5, &key, &value));
    assert_int_equal(key * 10 + value, 34);
    assert_true(walsh_turbo_split_bits(4, &key, &value));
    assert_int_equal(key * 10 + value, 44);
    static const double wrong[] = {0.5, 8.5, 3.25, -2, NAN, INFINITY};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_false(walsh_turbo_split_bits(wrong[i], &key, &value));
}

/* --- the Prod codec --- */

/* Errors of <q, x> for unit vectors, and its bias over projections, against the MSE codec's. */
static void test_prod_is_unbiased(void **state)
{
    (void)state;
    struct walsh_random random = start();
    enum { DIM = 128, VECTORS = 60, PROJECTIONS = 12 };
    static float x[DIM], q[DIM];
    static uint8_t codes[DIM], signs[DIM];
    static const double expected[2][3] = {{.556, .177, .054}, {.208, .066, .0195}};
    for (unsigned bits = 2; bits <= 4; bits++)
        for (int orthogonal = 0; orthogonal < 2; orthogonal++) {
            double squares = 0, along = 0;
            for (int p = 0; p < PROJECTIONS; p++) {
                struct walsh_turbo_prod *prod;
                assert_int_equal(
                    walsh_turbo_prod_open(DIM, bits, SEED + (unsigned)p, orthogonal != 0, &prod, NULL),
                    WALSH_OK);
                for (int n = 0; n < VECTORS; n++) {
                    uint16_t norm, residual;
                    fill_normal(&random, x, DIM);
                    fill_normal(&random, q, DIM);
                    double scale = norm_of(x, DIM) * norm_of(q, DIM), exact = 0;
                    for (int i = 0; i < DIM; i++) exact += (double)x[i] * (double)q[i];
                    walsh_turbo_prod_encode(prod, x, codes, signs, &norm, &residual);
                    double got = walsh_turbo_prod_dot(prod, q, codes, signs, norm, residual);
                    squares += pow((got - exact) / scale, 2) * DIM;
                    /* towards x itself, where the MSE codec's estimate falls short by its distortion */
                    got = walsh_turbo_prod_dot(prod, x, codes, signs, norm, residual);
                    along += got / pow(norm_of(x, DIM), 2) - 1;
                }
                walsh_turbo_prod_close(&prod);
            }
            double mean = squares / (VECTORS * PROJECTIONS), bias = along / (VECTORS * PROJECTIONS);
            print_message("%u bits%s: d E[err^2] %.4f, bias %.4f\n", bits, orthogonal ? ", orthogonal" : "",
                          mean, bias);
            assert_true(fabs(mean / expected[orthogonal][bits - 2] - 1) < 0.25);
            assert_true(fabs(bias) < 0.012);
        }
    assert_int_equal(walsh_turbo_prod_bytes(128, 4), 68);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_group_2_optimum_distortions),
        cmocka_unit_test(test_group_2_stretching),
        cmocka_unit_test(test_group_2_optimality_and_structure),
        cmocka_unit_test(test_codebook_errors),
        cmocka_unit_test(test_group_1_inverse_matches_forward),
        cmocka_unit_test(test_encode_follows_the_rule),
        cmocka_unit_test(test_group_2_mse_falls_with_every_bit),
        cmocka_unit_test(test_group_5_energy_in_each_block),
        cmocka_unit_test(test_requantizing_is_idempotent),
        cmocka_unit_test(test_group_6_special_vectors),
        cmocka_unit_test(test_seeds),
        cmocka_unit_test(test_sizes_and_packing),
        cmocka_unit_test(test_fractional_bits),
        cmocka_unit_test(test_prod_is_unbiased),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
