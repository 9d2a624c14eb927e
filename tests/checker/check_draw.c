/* Cases of the passes of a draw over the vocabulary. */
#include <math.h>

#include "checker.h"

static const size_t lengths[] = {1, 2, 7, 8, 15, 16, 17, 33, 100, 1000, 1031, 8192, 32001};
#define LENGTHS (sizeof lengths / sizeof lengths[0])

static float *row(struct check *c, size_t n)
{
    return check_alloc(c, n * sizeof(float), check_misalign(c, sizeof(float)));
}

void check_logit_range(struct check *c, walsh_kernel_logit_range *reference,
                       walsh_kernel_logit_range *candidate)
{
    for (size_t l = 0; l < LENGTHS; l++) {
        const size_t n = lengths[l];
        float *x = row(c, n);
        int32_t expected[2], got[2];
        check_fill_special(c, x, n);
        if (l % 2) /* all on one side of 0: what a vector has beyond the end must not count */
            for (size_t i = 0; i < n; i++) x[i] = copysignf(x[i], c->round % 2 ? 1 : -1);
        x[check_below(c, n)] *= 10;
        x[n - 1] *= 20;
        reference(x, n, &expected[0], &expected[1]);
        candidate(x, n, &got[0], &got[1]);
        check_exact_bytes(c, "range", expected, got, sizeof expected);
    }
}

static struct walsh_reach reach(struct check *c, size_t n)
{
    const size_t room = (n + WALSH_REACH_LANES - 1) / WALSH_REACH_LANES * WALSH_REACH_LANES;
    return (struct walsh_reach){
        .ids = check_alloc(c, room * sizeof(int32_t), 0), .depth = row(c, room), .decay = row(c, room)};
}

/* Rows of which few, some or all count, some with many logits of the largest mass, of -Inf, and as far apart that a depth
 * is NaN. */
void check_sum_masses(struct check *c, walsh_kernel_sum_masses *reference, walsh_kernel_sum_masses *candidate)
{
    static const float width[] = {3, 0.01f, 30, 1e30f}, deepest[] = {0, 1, 9, 28, INFINITY};
    for (size_t l = 0; l < LENGTHS; l++) {
        const size_t n = lengths[l];
        float *x = row(c, n), best = -INFINITY;
        struct walsh_reach expected = reach(c, n), got = reach(c, n);
        check_fill_normal(c, x, n);
        for (size_t i = 0; i < n; i++) {
            x[i] *= width[(c->round + l) % 4];
            if (c->round == 1 && l % 3 == 0) x[i] = i % 5 ? 2.5f : -INFINITY;
        }
        if (c->round == CHECK_ROUNDS - 1) x[check_below(c, n)] = -INFINITY;
        x[check_below(c, n)] = 2.5f;
        for (size_t i = 0; i < n; i++) best = x[i] > best ? x[i] : best;
        const float factor = c->round == 2 && l % 2 ? 0 : expf(check_normal(c));
        const float limit = deepest[check_below(c, sizeof deepest / sizeof deepest[0])];
        const uint64_t sums[2] = {reference(x, n, best, factor, limit, &expected),
                                  candidate(x, n, best, factor, limit, &got)};
        check_exact_bytes(c, "sum", &sums[0], &sums[1], sizeof sums[0]);
        check_exact_bytes(c, "count", &expected.count, &got.count, sizeof got.count);
        if (expected.count != got.count) continue;
        check_exact_bytes(c, "ids", expected.ids, got.ids, got.count * sizeof *got.ids);
        check_exact_f32(c, "depth", expected.depth, got.depth, got.count);
        check_exact_f32(c, "decay", expected.decay, got.decay, got.count);
    }
}
