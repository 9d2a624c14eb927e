/* Nearest-code searches: random vectors of many scales, and the ties, zeros and far vectors that the vector
 * code leaves to the reference's rule. */
#include <math.h>
#include <string.h>

#include "checker.h"
#include "formats/e8p.h"

/* Vectors whose kinds mix inside every group of lanes. */
static void fill_vectors(struct check *c, float *x, size_t count)
{
    check_fill_special(c, x, 8 * count);
    for (size_t i = 0; i < count; i++) {
        float *v = x + 8 * i, a[8], b[8];
        switch (check_below(c, 10)) {
        case 0: /* quarters: ties everywhere */
            for (int j = 0; j < 8; j++) v[j] = rintf(4 * v[j]) / 4;
            break;
        case 1: /* half way between two codes */
            walsh_e8p_decode((uint16_t)walsh_random_u64(&c->random), a);
            walsh_e8p_decode((uint16_t)walsh_random_u64(&c->random), b);
            for (int j = 0; j < 8; j++) v[j] = 0.5f * (a[j] + b[j]);
            break;
        case 2:
            for (int j = 0; j < 8; j++) v[j] *= 3.0f;
            break;
        case 3:
            for (int j = 0; j < 8; j++) v[j] *= 8.0f; /* some beyond the grid's limit of 16 */
            break;
        case 4:
            for (int j = 0; j < 8; j++) v[j] *= 1e-3f;
            break;
        case 5: /* one long axis */
            for (int j = 0; j < 8; j++) v[j] *= 0.2f;
            v[check_below(c, 8)] += check_below(c, 2) ? 2.0f : -2.0f;
            break;
        case 6: /* the limit itself and its neighbours */
            v[check_below(c, 8)] = nextafterf(16.0f, check_below(c, 2) ? 0.0f : 32.0f);
            v[check_below(c, 8)] = -16.0f;
            break;
        default:
            break;
        }
    }
    if (count > 3) memset(x + 8 * check_below(c, count), 0, 8 * sizeof *x);
}

/* A count per round: whole groups, every tail, one alone, none. */
static size_t vector_count(struct check *c)
{
    static const size_t fixed[CHECK_ROUNDS] = {4096, 1, 0, 0};
    return c->round < 2 ? fixed[c->round] : 16 + check_below(c, 2000);
}

void check_e8p_encode_f32(struct check *c, walsh_kernel_e8p_encode_f32 *reference,
                          walsh_kernel_e8p_encode_f32 *candidate)
{
    for (size_t part = 0; part < 18; part++) {
        size_t n = part == 0 ? vector_count(c) : part - 1;
        float *x = check_alloc(c, 8 * n * sizeof *x, check_misalign(c, sizeof *x));
        float *expected_w = check_alloc(c, 8 * n * sizeof *x, 0);
        float *w = check_alloc(c, 8 * n * sizeof *x, check_misalign(c, sizeof *x));
        uint16_t *expected = check_alloc(c, n * sizeof *expected, 0);
        uint16_t *codes = check_alloc(c, n * sizeof *codes, check_misalign(c, sizeof *codes));
        fill_vectors(c, x, n);
        reference(expected, expected_w, x, n);
        candidate(codes, w, x, n);
        check_exact_bytes(c, "codes", expected, codes, n * sizeof *codes);
        check_exact_f32(c, "values", expected_w, w, 8 * n);
        memset(codes, 0xA5, n * sizeof *codes);
        candidate(codes, NULL, x, n);
        check_exact_bytes(c, "codes alone", expected, codes, n * sizeof *codes);
    }
}

void check_e81b_encode_f32(struct check *c, walsh_kernel_e81b_encode_f32 *reference,
                           walsh_kernel_e81b_encode_f32 *candidate)
{
    for (size_t part = 0; part < 18; part++) {
        size_t n = part == 0 ? vector_count(c) : part - 1;
        float *x = check_alloc(c, 8 * n * sizeof *x, check_misalign(c, sizeof *x));
        float *expected_w = check_alloc(c, 8 * n * sizeof *x, 0);
        float *w = check_alloc(c, 8 * n * sizeof *x, check_misalign(c, sizeof *x));
        uint8_t *expected = check_alloc(c, n, 0), *codes = check_alloc(c, n, check_misalign(c, 1));
        fill_vectors(c, x, n);
        reference(expected, expected_w, x, n);
        candidate(codes, w, x, n);
        check_exact_bytes(c, "codes", expected, codes, n);
        check_exact_f32(c, "values", expected_w, w, 8 * n);
        memset(codes, 0xA5, n);
        candidate(codes, NULL, x, n);
        check_exact_bytes(c, "codes alone", expected, codes, n);
    }
}
