/* The ops of quantizing on a device (kernels/quantize.h) against plain loops. The CPU's queue has none: its searches are checked
 * in tests/unit/test_quantize_ldlq.c. The numbers are small multiples of powers of two, so that sums are exact in any order, and
 * with them codes and errors. */
#include <math.h>
#include <string.h>

#include "checker.h"
#include "formats/e8p.h"
#include "kernels/quantize.h"

enum { TILE = 32, PANEL = 64, GROUP = 8 };

/* A multiple of `unit` within +- most * unit. */
static float multiple(struct check *c, size_t most, float unit)
{
    return (float)((int)check_below(c, 2 * most + 1) - (int)most) * unit;
}

static void check_hessian(struct check *c, const struct walsh_queue *q, uint32_t n, size_t rows)
{
    const size_t ldx = n + check_below(c, 4);
    float *x = check_alloc(c, rows * ldx * sizeof *x, check_misalign(c, sizeof *x)),
          *sum = check_alloc(c, (size_t)n * n * sizeof *sum, 0),
          *expected = check_alloc_private(c, (size_t)n * n * sizeof *sum);
    for (size_t i = 0; i < rows * ldx; i++) x[i] = multiple(c, 40, 0.125f);
    for (size_t i = 0; i < (size_t)n * n; i++) sum[i] = expected[i] = multiple(c, 9, 1);
    q->ops->quantize->hessian_add(q, sum, n, x, ldx, rows);
    for (size_t i = 0; i < n; i++)
        for (size_t j = i; j < n; j++) {
            double s = (double)expected[i * n + j];
            for (size_t r = 0; r < rows; r++) s += (double)x[r * ldx + i] * (double)x[r * ldx + j];
            expected[i * n + j] = (float)s;
        }
    for (size_t i = 0; i < n; i++) /* what is below the diagonal is nobody's */
        check_exact_f32(c, "Hessian", expected + i * n + i, sum + i * n + i, n - i);
}

/* A linear under way, and what the loops make of it. */
struct problem {
    struct walsh_ldlq_rows r;
    size_t m;
    float *error;
    uint16_t *codes[WALSH_MAX_STAGES]; /* of either kind */
};

static size_t row_of(const struct problem *p, size_t i)
{
    return i / TILE * p->r.step * TILE + i % TILE;
}

/* All stages of a group; value[8]. */
static void encode(struct problem *p, size_t row, size_t at, const double target[GROUP], double value[GROUP],
                   bool keep, uint16_t found[WALSH_MAX_STAGES])
{
    memset(value, 0, GROUP * sizeof *value);
    for (unsigned k = 0; k < p->r.stages; k++) {
        float rest[GROUP], part[GROUP];
        for (size_t i = 0; i < GROUP; i++)
            rest[i] = (float)((target[i] - value[i]) / (double)p->r.stage[k].scale);
        found[k] = p->r.stage[k].kind == WALSH_STAGE_E8P ? walsh_e8p_encode(rest, part)
                                                         : walsh_e81b_encode(rest, part);
        for (size_t i = 0; i < GROUP; i++) value[i] += (double)p->r.stage[k].scale * (double)part[i];
        if (keep) p->codes[k][row * (p->r.n / GROUP) + at / GROUP] = found[k];
    }
}

static void sweep_row(struct problem *p, size_t row)
{
    const size_t n = p->r.n;
    for (size_t at = n; at > 0;) {
        double target[GROUP], value[GROUP];
        uint16_t found[WALSH_MAX_STAGES];
        at -= GROUP;
        for (size_t i = 0; i < GROUP; i++) {
            target[i] = (double)p->r.target[row * n + at + i];
            for (size_t j = at + GROUP; p->r.factor && j < n; j++)
                target[i] += (double)p->error[row * n + j] * (double)p->r.factor[j * n + at + i];
        }
        encode(p, row, at, target, value, true, found);
        for (size_t i = 0; i < GROUP; i++)
            p->error[row * n + at + i] = (float)((double)p->r.target[row * n + at + i] - value[i]);
    }
}

static double quadratic(const double d[GROUP], const float *h, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < GROUP; i++)
        for (size_t j = 0; j < GROUP; j++) sum += d[i] * (double)h[i * n + j] * d[j];
    return sum;
}

static uint32_t pass_row(struct problem *p, size_t row)
{
    const size_t n = p->r.n;
    uint32_t changed = 0;
    float *error = p->error + row * n;
    for (size_t at = n; at > 0;) {
        double gradient[GROUP] = {0}, best[GROUP], now[GROUP], value[GROUP], before[GROUP], after[GROUP];
        uint16_t found[WALSH_MAX_STAGES];
        at -= GROUP;
        for (size_t j = 0; j < n; j++)
            for (size_t i = 0; i < GROUP; i++)
                gradient[i] += (double)error[j] * (double)p->r.hessian[j * n + at + i];
        for (size_t i = 0; i < GROUP; i++) {
            best[i] = now[i] = (double)p->r.target[row * n + at + i] - (double)error[at + i];
            for (size_t j = 0; j < GROUP; j++)
                best[i] += gradient[j] * (double)p->r.inverse[at * GROUP + j * GROUP + i];
        }
        encode(p, row, at, best, value, false, found);
        for (size_t i = 0; i < GROUP; i++) {
            before[i] = best[i] - now[i];
            after[i] = best[i] - value[i];
        }
        const float *block = p->r.hessian + at * n + at;
        if (quadratic(after, block, n) >= quadratic(before, block, n)) continue;
        for (size_t i = 0; i < GROUP; i++) error[at + i] += (float)(now[i] - value[i]);
        for (unsigned k = 0; k < p->r.stages; k++) p->codes[k][row * (n / GROUP) + at / GROUP] = found[k];
        changed++;
    }
    return changed;
}

static void compare(struct check *c, const char *what, const struct problem *p)
{
    const size_t groups = p->r.n / GROUP;
    for (size_t i = 0; i < p->r.rows; i++) {
        const size_t row = row_of(p, i);
        check_exact_f32(c, what, p->error + row * p->r.n, p->r.error + row * p->r.n, p->r.n);
        for (unsigned k = 0; k < p->r.stages; k++)
            for (size_t g = 0; g < groups; g++) {
                const unsigned expected = p->codes[k][row * groups + g],
                               got = p->r.stage[k].kind == WALSH_STAGE_E8P
                                         ? ((const uint16_t *)p->r.stage[k].codes)[row * groups + g]
                                         : ((const uint8_t *)p->r.stage[k].codes)[row * groups + g];
                if (got != expected)
                    check_fail(c, "%s: row %zu, group %zu, stage %u: code %x, expected %x", what, row, g, k,
                               got, expected);
            }
    }
}

static float *sparse(struct check *c, size_t n, float diagonal)
{
    float *x = check_alloc(c, n * n * sizeof *x, 0);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++) x[i * n + j] = check_below(c, 8) == 0 ? multiple(c, 1, 0.0625f) : 0;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j <= i; j++) x[j * n + i] = x[i * n + j]; /* symmetric */
    for (size_t i = 0; i < n; i++) x[i * n + i] = diagonal;
    return x;
}

static void check_search(struct check *c, const struct walsh_queue *q, uint32_t n, size_t m, uint32_t step,
                         unsigned bits)
{
    static const float scales[] = {0.125f, 0.03125f};
    struct problem p = {.m = m};
    struct walsh_e8p_plan plan;
    if (walsh_e8p_plan_bits(bits, &plan, NULL) != WALSH_OK) return;
    const size_t tiles = (m + TILE - 1) / TILE, chosen = (tiles + step - 1) / step,
                 last = m - (chosen - 1) * step * TILE;
    float *target = check_alloc(c, m * n * sizeof *target, 0),
          *error = check_alloc(c, m * n * sizeof *error, 0),
          *inverse = check_alloc(c, (size_t)n * GROUP * sizeof *inverse, 0);
    p.r = (struct walsh_ldlq_rows){.n = n,
                                   .rows = (uint32_t)((chosen - 1) * TILE + (last < TILE ? last : TILE)),
                                   .step = step,
                                   .target = target,
                                   .hessian = sparse(c, n, 1),
                                   .factor = c->round == 3 ? NULL : sparse(c, n, 1),
                                   .inverse = inverse,
                                   .error = error,
                                   .stages = plan.stages,
                                   .changed = check_alloc(c, sizeof *p.r.changed, 0)};
    p.r.panel = check_alloc(c, p.r.rows * PANEL * sizeof *p.r.panel, 0);
    for (size_t i = 0; i < m * n; i++) target[i] = multiple(c, 25, 0.015625f);
    for (size_t i = 0; i < m * n; i++) error[i] = 0;
    memset(p.r.panel, 0, p.r.rows * PANEL * sizeof *p.r.panel);
    for (size_t i = 0; i < (size_t)n * GROUP; i++)
        inverse[i] = i / GROUP % GROUP == i % GROUP ? 1 : multiple(c, 1, 0.125f);
    p.error = check_alloc_private(c, m * n * sizeof *p.error);
    memcpy(p.error, error, m * n * sizeof *error);
    for (unsigned k = 0; k < plan.stages; k++) {
        p.r.stage[k].kind = plan.kind[k];
        p.r.stage[k].scale = scales[k];
        p.r.stage[k].codes = check_alloc(c, m * (n / GROUP) * 2, 0);
        memset(p.r.stage[k].codes, 0, m * (n / GROUP) * 2);
        p.codes[k] = check_alloc_private(c, m * (n / GROUP) * 2);
    }
    q->ops->quantize->sweep(q, &p.r);
    for (size_t i = 0; i < p.r.rows; i++) sweep_row(&p, row_of(&p, i));
    compare(c, "a sweep", &p);
    uint32_t changed = *p.r.changed = 3;
    q->ops->quantize->pass(q, &p.r);
    for (size_t i = 0; i < p.r.rows; i++) changed += pass_row(&p, row_of(&p, i));
    compare(c, "a pass", &p);
    if (changed != *p.r.changed)
        check_fail(c, "a pass changed %u blocks, expected %u", *p.r.changed - 3, changed - 3);
    double *sums = check_alloc(c, p.r.rows * sizeof *sums, 0);
    q->ops->quantize->trace(q, &p.r, p.r.error, sums);
    for (size_t i = 0; i < p.r.rows; i++) {
        const float *e = p.error + row_of(&p, i) * n;
        double sum = 0;
        for (size_t j = 0; j < n; j++)
            for (size_t k = 0; k < n; k++)
                sum += (double)e[j] * (double)p.r.hessian[j * n + k] * (double)e[k];
        if (!(fabs(sums[i] - sum) <= 1e-6 * fabs(sum) + 1e-9))
            check_fail(c, "trace of row %zu: %g, expected %g", i, sums[i], sum);
    }
}

void check_op_quantize(struct check *c, const struct check_queues *queues)
{
    const struct walsh_queue *q = &queues->best[0];
    if (!q->ops->quantize) return;
    check_hessian(c, q, 1 + (uint32_t)check_below(c, 200), 1 + check_below(c, 150));
    check_hessian(c, q, 64, 16);
    check_search(c, q, 64, 16, 1, 2);
    check_search(c, q, 192, 16 * (1 + check_below(c, 6)), 1, 2 + c->round % 3);
    check_search(c, q, 128, 16 * (3 + check_below(c, 10)), 2, 3);
}
