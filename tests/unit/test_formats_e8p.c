/* E8P and E81B: tables against their checksums, encoders against exhaustive searches. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <float.h>
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/random.h"
#include "formats/e8p.h"
#include "unit/share.h"

#define SEED 8128u

/* CRC-32 of IEEE 802.3, bit by bit. */
static uint32_t crc32_bytes(uint32_t crc, const void *data, size_t size)
{
    const uint8_t *p = data;
    crc = ~crc;
    for (size_t i = 0; i < size; i++) {
        crc ^= p[i];
        for (int k = 0; k < 8; k++) crc = crc >> 1 ^ (0xedb88320u & -(crc & 1));
    }
    return ~crc;
}

static void test_checksums(void **state)
{
    (void)state;
    assert_int_equal(crc32_bytes(0, "123456789", 9), 0xcbf43926u);
    const struct walsh_e8p_tables *t = walsh_e8p_tables();
    assert_int_equal(crc32_bytes(0, t->packed, sizeof t->packed), WALSH_E8P_BASE_CRC);
    uint32_t grid = 0, shell = 0;
    double norm = 0;
    for (unsigned code = 0; code < 65536; code++) {
        float w[8];
        int8_t x4[8];
        walsh_e8p_decode((uint16_t)code, w);
        walsh_e8p_decode_x4((uint16_t)code, x4);
        grid = crc32_bytes(grid, w, sizeof w);
        for (int i = 0; i < 8; i++) {
            assert_true(x4[i] == (int8_t)(4 * w[i]) && x4[i] % 2 != 0 && x4[i] >= -11 && x4[i] <= 11);
            norm += (double)w[i] * (double)w[i];
        }
    }
    assert_int_equal(grid, WALSH_E8P_GRID_CRC);
    assert_true(fabs(norm / 65536 - 9.5703) < 5e-5);
    for (unsigned code = 0; code < 256; code++) {
        float w[8];
        walsh_e81b_decode((uint8_t)code, w);
        shell = crc32_bytes(shell, w, sizeof w);
        for (int i = 0; i < 8; i++) assert_true(t->e81b_x2[code][i] == (int8_t)(2 * w[i]));
    }
    assert_int_equal(shell, WALSH_E81B_CRC);

    static const float known[3][8] = {{.75f, .75f, .75f, .75f, .75f, .75f, .75f, .75f},
                                      {.25f, .25f, .25f, .25f, .25f, .25f, .25f, .25f},
                                      {-.75f, .25f, -.75f, .25f, .25f, .25f, .25f, -1.75f}};
    static const uint16_t codes[3] = {0, 1, 0x0102};
    for (int i = 0; i < 3; i++) {
        float w[8];
        walsh_e8p_decode(codes[i], w);
        assert_memory_equal(w, known[i], sizeof w);
    }
}

static void test_derived_tables(void **state)
{
    (void)state;
    const struct walsh_e8p_tables *t = walsh_e8p_tables();
    for (unsigned row = 0; row < 256; row++) {
        unsigned index = 0, sum = 0;
        for (int i = 0; i < 8; i++) {
            float w[8];
            walsh_e8p_decode((uint16_t)(row << 8), w); /* coset +1/4, no flips but the table's own */
            assert_true(fabsf(w[i] - .25f) == t->magnitude[row][i] + .5f);
            assert_int_equal(t->magnitude_bits[row] >> (2 * i) & 3, t->magnitude[row][i]);
            index = 3 * index + t->magnitude[row][i];
            sum += t->magnitude[row][i];
            if (row >= 227) assert_int_equal(t->last29[row - 227] >> i & 1, t->magnitude[row][i] == 0);
        }
        assert_int_equal(t->odd[row], sum & 1);
        assert_int_equal(t->row_of_magnitude[index], row);
    }
    for (unsigned code = 0; code < 113; code++) {
        unsigned index = 0;
        for (int i = 0; i < 8; i++) index = 3 * index + (unsigned)(t->e81b_x2[code][i] / 2 + 1);
        assert_int_equal(t->e81b_of_integer[index], code);
    }
}

enum kind { GRID, COARSE, WIDE, TINY, ON_CODE, RAW, KINDS };

/* A test vector: on the encoder's grid but for RAW; COARSE and ON_CODE are full of ties. */
static void make_vector(struct walsh_random *r, enum kind kind, float x[8])
{
    double sigma = kind == WIDE ? 4.0 : kind == TINY ? 1e-3 : 1.0;
    for (int i = 0; i < 8; i++) {
        double v = fmax(-16, fmin(16, sigma * walsh_random_normal(r)));
        double grid = kind == COARSE ? 4 : 2097152;
        x[i] = (float)(kind == RAW ? v : rint(v * grid) / grid);
    }
    if (kind == ON_CODE) { /* half way between two codes */
        float a[8], b[8];
        walsh_e8p_decode((uint16_t)walsh_random_u64(r), a);
        walsh_e8p_decode((uint16_t)walsh_random_u64(r), b);
        for (int i = 0; i < 8; i++) x[i] = 0.5f * (a[i] + b[i]);
    }
}

static double distance2(const float x[8], const float w[8])
{
    double d = 0;
    for (int i = 0; i < 8; i++) d += ((double)x[i] - (double)w[i]) * ((double)x[i] - (double)w[i]);
    return d;
}

/* The smallest squared distance to E8P by dynamic programming over the coordinates of each row and coset:
 * best[p] is the least cost of the coordinates so far whose signed sum (of m + 1/2, less 1/2 each) has parity
 * p. */
static double e8p_least_distance(const float x[8])
{
    const struct walsh_e8p_tables *t = walsh_e8p_tables();
    double least = DBL_MAX;
    for (int row = 0; row < 256; row++)
        for (int coset = 0; coset < 2; coset++) {
            double best[2] = {0, DBL_MAX};
            for (int i = 0; i < 8; i++) {
                double shift = coset ? -.25 : .25, next[2] = {DBL_MAX, DBL_MAX};
                for (int negative = 0; negative < 2; negative++) {
                    int m = t->magnitude[row][i]; /* value m + 1/2 or -(m + 1/2) = (-m - 1) + 1/2 */
                    double value = (negative ? -m - 1 : m) + .5 + shift;
                    double cost = ((double)x[i] - value) * ((double)x[i] - value);
                    for (int p = 0; p < 2; p++) {
                        int q = (p + m + negative) & 1;
                        if (best[p] < DBL_MAX && best[p] + cost < next[q]) next[q] = best[p] + cost;
                    }
                }
                best[0] = next[0];
                best[1] = next[1];
            }
            least = fmin(least, best[0]); /* eight halves add 4: the whole sum is even too */
        }
    return least;
}

static void test_e8p_encode_nearest(void **state)
{
    (void)state;
    struct walsh_random r;
    print_message("seed %u\n", SEED);
    walsh_random_seed(&r, SEED);
    for (int n = 0, cases = (int)test_cases(100000, KINDS); n < cases; n++) {
        float x[8], w[8], decoded[8];
        enum kind kind = (enum kind)(n % KINDS);
        make_vector(&r, kind, x);
        uint16_t code = walsh_e8p_encode(x, w);
        walsh_e8p_decode(code, decoded);
        assert_memory_equal(w, decoded, sizeof w);
        double found = distance2(x, w), least = e8p_least_distance(x);
        if (kind == RAW || kind == WIDE)
            assert_true(found <= least * (1 + 1e-6) + 1e-6);
        else
            assert_true(found ==
                        least); /* sums of squares of multiples of 2^-21 below 2^5: exact in double */
    }
}

/* Every code tried; the first of the nearest wins. */
static void test_e8p_encode_brute_force(void **state)
{
    (void)state;
    struct walsh_random r;
    print_message("seed %u\n", SEED + 1);
    walsh_random_seed(&r, SEED + 1);
    float(*grid)[8];
    assert_int_equal(walsh_alloc(65536, sizeof *grid, "test", &grid, NULL), WALSH_OK);
    for (unsigned code = 0; code < 65536; code++) walsh_e8p_decode((uint16_t)code, grid[code]);
    int ties = 0, cases = (int)test_cases(1500, 15);
    for (int n = 0; n < cases; n++) {
        static const enum kind kinds[5] = {GRID, COARSE, TINY, ON_CODE, COARSE};
        float x[8] = {0};
        if (n > 0) make_vector(&r, kinds[n % 5], x);
        double least = DBL_MAX;
        unsigned best = 0, count = 0;
        for (unsigned code = 0; code < 65536; code++) {
            double d = distance2(x, grid[code]);
            count = d < least ? 1 : count + (d == least);
            if (d < least) {
                least = d;
                best = code;
            }
        }
        ties += count > 1;
        assert_int_equal(walsh_e8p_encode(x, NULL), best);
    }
    assert_true(ties > cases / 5);
    walsh_free(grid);
}

#ifdef __SANITIZE_ADDRESS__ /* about a hundred times slower */
#define ALL_CODES_VECTORS 500
#else
#define ALL_CODES_VECTORS 100000
#endif
#define LANES 64

/* The largest x·w - |w|^2/2 over all codes, in f32: what the nearest code maximises. `grid` [8][65536],
 * `half` [65536]. Lanes of their own, so that the compiler needs no reordering to vectorise. */
static float best_score(const float x[8], const float *grid, const float *half)
{
    float best[LANES], most = -FLT_MAX;
    for (int j = 0; j < LANES; j++) best[j] = -FLT_MAX;
    for (size_t c = 0; c < 65536; c += LANES)
        for (size_t j = 0; j < LANES; j++) {
            float score = -half[c + j];
            for (size_t i = 0; i < 8; i++) score += x[i] * grid[i * 65536 + c + j];
            best[j] = score > best[j] ? score : best[j];
        }
    for (int j = 0; j < LANES; j++) most = fmaxf(most, best[j]);
    return most;
}

/* 100,000 normal vectors against all 65,536 codes each, to the rounding of f32 scores. */
static void test_e8p_encode_all_codes(void **state)
{
    (void)state;
    struct walsh_random r;
    print_message("seed %u\n", SEED + 4);
    walsh_random_seed(&r, SEED + 4);
    float *grid, *half;
    assert_int_equal(walsh_alloc(9 * 65536, sizeof *grid, "test", &grid, NULL), WALSH_OK);
    half = grid + 8 * 65536;
    for (unsigned code = 0; code < 65536; code++) {
        float w[8];
        walsh_e8p_decode((uint16_t)code, w);
        half[code] = 0;
        for (unsigned i = 0; i < 8; i++) {
            grid[i * 65536 + code] = w[i];
            half[code] += w[i] * w[i] / 2;
        }
    }
    for (int n = 0, cases = test_small() ? 50 : ALL_CODES_VECTORS; n < cases; n++) {
        float x[8];
        for (int i = 0; i < 8; i++) x[i] = (float)walsh_random_normal(&r);
        unsigned code = walsh_e8p_encode(x, NULL);
        float score = -half[code];
        for (size_t i = 0; i < 8; i++) score += x[i] * grid[i * 65536 + code];
        assert_true(score >= best_score(x, grid, half) - 2e-5f);
    }
    walsh_free(grid);
}

static void test_e81b_encode_brute_force(void **state)
{
    (void)state;
    struct walsh_random r;
    print_message("seed %u\n", SEED + 2);
    walsh_random_seed(&r, SEED + 2);
    for (int n = 0, cases = (int)test_cases(100000, 12 * KINDS); n < cases; n++) {
        float x[8], w[8];
        enum kind kind = (enum kind)(n % KINDS);
        make_vector(&r, kind, x);
        if (n % 12 == 0) /* exercise the long vectors, and the one that is missing */
            for (int i = 0; i < 8; i++) x[i] *= i == n / 12 % 8 ? 4 : .25f;
        double least = DBL_MAX, found = 0;
        unsigned best = 0, code = walsh_e81b_encode(x, w);
        for (unsigned c = 0; c < 256; c++) {
            float v[8];
            walsh_e81b_decode((uint8_t)c, v);
            double d = distance2(x, v);
            if (c == code) {
                found = d;
                assert_memory_equal(v, w, sizeof v);
            }
            if (d < least) {
                least = d;
                best = c;
            }
        }
        if (kind == RAW || kind == WIDE || n % 12 == 0)
            assert_true(found <= least * (1 + 1e-6) + 1e-6);
        else
            assert_int_equal(code, best);
    }
}

/* Vectors far outside: the largest inner product decides. Non-finite elements have defined results. */
static void test_extreme_vectors(void **state)
{
    (void)state;
    struct walsh_random r;
    walsh_random_seed(&r, SEED + 3);
    for (int n = 0, cases = (int)test_cases(300, 3); n < cases; n++) {
        double size = pow(10, 2 + 36 * walsh_random_uniform(&r));
        float x[8], v[8], w[8];
        for (int i = 0; i < 8; i++) x[i] = (float)(size * (2 * walsh_random_uniform(&r) - 1));
        double best_p = -DBL_MAX, best_b = -DBL_MAX, p = 0, b = 0;
        for (unsigned code = 0; code < 65536 + 256; code++) {
            if (code < 65536)
                walsh_e8p_decode((uint16_t)code, v);
            else
                walsh_e81b_decode((uint8_t)(code - 65536), v);
            double score = 0;
            for (int i = 0; i < 8; i++) score += (double)v[i] * ((double)x[i] - .5 * (double)v[i]);
            if (code < 65536)
                best_p = fmax(best_p, score);
            else
                best_b = fmax(best_b, score);
        }
        walsh_e8p_encode(x, v);
        walsh_e81b_encode(x, w);
        for (int i = 0; i < 8; i++) {
            p += (double)v[i] * ((double)x[i] - .5 * (double)v[i]);
            b += (double)w[i] * ((double)x[i] - .5 * (double)w[i]);
        }
        assert_true(p >= best_p - 1e-12 * fabs(best_p));
        assert_true(b >= best_b - 1e-12 * fabs(best_b));
    }
    float zero[8] = {0}, strange[8] = {NAN, 0, 0, 0, 0, 0, 0, 0},
          infinite[8] = {INFINITY, 0, 0, 0, 0, 0, 0, 0};
    float largest[8] = {FLT_MAX, 0, 0, 0, 0, 0, 0, 0}, subnormal[8] = {1e-45f, 0, 0, 0, 0, 0, 0, -1e-45f};
    assert_int_equal(walsh_e8p_encode(zero, NULL),
                     1); /* +1/4 x 8 and -1/4 x 8 are as near; code 1 is the smaller */
    assert_int_equal(walsh_e81b_encode(zero, NULL), 56);
    assert_int_equal(walsh_e8p_encode(strange, NULL), 1);
    assert_int_equal(walsh_e81b_encode(strange, NULL), 56);
    assert_int_equal(walsh_e8p_encode(infinite, NULL), walsh_e8p_encode(largest, NULL));
    assert_int_equal(walsh_e81b_encode(infinite, NULL), walsh_e81b_encode(largest, NULL));
    assert_int_equal(walsh_e8p_encode(subnormal, NULL), 1);
    assert_int_equal(walsh_e81b_encode(subnormal, NULL), 56);
}

static void test_plans(void **state)
{
    (void)state;
    static const char *const stages[9] = {NULL, NULL, "P", "PB", "PP", "PPB", "PPP", "PPPB", "PPPP"};
    for (unsigned bits = 2; bits <= 8; bits++) {
        struct walsh_e8p_plan plan;
        assert_int_equal(walsh_e8p_plan_bits(bits, &plan, NULL), WALSH_OK);
        assert_int_equal(plan.stages, strlen(stages[bits]));
        double product = 1;
        for (unsigned k = 0; k < plan.stages; k++) {
            bool p = stages[bits][k] == 'P';
            assert_int_equal(plan.kind[k], p ? WALSH_STAGE_E8P : WALSH_STAGE_E81B);
            double scale = k == 0 ? 1 : p ? 3.45 : 2.04;
            assert_true(plan.residual_scale[k] == (float)scale);
            product *= scale;
            assert_true(fabs((double)plan.cumulative_inverse[k] * product - 1) < 2e-7);
        }
    }
    struct walsh_e8p_plan plan;
    struct walsh_error err;
    assert_int_equal(walsh_e8p_plan_bits(1, &plan, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "e8p has 2 to 8 bits per weight, not 1");
    assert_int_equal(walsh_e8p_plan_bits(9, &plan, &err), WALSH_E_ARGUMENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_checksums),
        cmocka_unit_test(test_derived_tables),
        cmocka_unit_test(test_e8p_encode_nearest),
        cmocka_unit_test(test_e8p_encode_brute_force),
        cmocka_unit_test(test_e8p_encode_all_codes),
        cmocka_unit_test(test_e81b_encode_brute_force),
        cmocka_unit_test(test_extreme_vectors),
        cmocka_unit_test(test_plans),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
