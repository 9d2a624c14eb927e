/* Pairs of bf16 and attention's tiles, as formulas. */
#include <math.h>

#include "base/scalar.h"
#include "kernels/table.h"

/* bf16 as the instructions round: to nearest even, subnormals to zero. */
static uint32_t narrow(float x)
{
    return walsh_bf16_from_f32(fabsf(x) < 0x1p-126f ? copysignf(0, x) : x);
}

static float wide(uint32_t bits)
{
    return walsh_float_from_bits(bits << 16);
}

void walsh_pair_rows_bf16_reference(uint32_t *y, size_t ldy, const float *x, size_t ldx, size_t rows,
                                    size_t cols)
{
    for (size_t i = 0; i < rows; i += 2)
        for (size_t j = 0; j < cols; j++)
            y[i / 2 * ldy + j] =
                narrow(x[i * ldx + j]) | (i + 1 < rows ? narrow(x[(i + 1) * ldx + j]) << 16 : 0);
}

void walsh_pair_narrow_rows_bf16_reference(uint32_t *y, size_t ldy, const uint16_t *x, size_t ldx,
                                           size_t rows, size_t cols)
{
    for (size_t i = 0; i < rows; i += 2)
        for (size_t j = 0; j < cols; j++)
            y[i / 2 * ldy + j] = x[i * ldx + j] | (i + 1 < rows ? (uint32_t)x[(i + 1) * ldx + j] << 16 : 0);
}

void walsh_pair_rows_turned_bf16_reference(uint32_t *y, size_t ldy, const float *x, size_t ldx, size_t rows,
                                           size_t cols)
{
    for (size_t i = 0; i < rows; i += 2)
        for (size_t j = 0; j < cols; j++)
            y[j * ldy + i / 2] =
                narrow(x[i * ldx + j]) | (i + 1 < rows ? narrow(x[(i + 1) * ldx + j]) << 16 : 0);
}

void walsh_pair_columns_turned_bf16_reference(uint32_t *y, size_t ldy, const float *x, size_t ldx,
                                              size_t rows, size_t cols)
{
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < cols; j += 2)
            y[j / 2 * ldy + i] =
                narrow(x[i * ldx + j]) | (j + 1 < cols ? narrow(x[i * ldx + j + 1]) << 16 : 0);
}

void walsh_multiply_pairs_bf16_reference(const struct walsh_pairs_product *p)
{
    for (size_t i = 0; i < p->m; i++)
        for (size_t j = 0; j < p->n; j++) {
            double sum = p->add ? (double)p->c[i * p->ldc + j] * (p->keep ? (double)p->keep[j] : 1) : 0;
            for (size_t s = 0; s < p->steps; s++) {
                const uint16_t *a = p->a + i * p->lda + 2 * s;
                const uint32_t b = p->b[s * p->ldb + j];
                sum += (double)wide(a[0]) * (double)wide(b & 0xffff) +
                       (double)wide(a[1]) * (double)wide(b >> 16);
            }
            p->c[i * p->ldc + j] = (float)sum;
        }
}

static bool visible(const struct walsh_tile_scores *t, size_t key, size_t query)
{
    const ptrdiff_t place = (ptrdiff_t)query + t->diagonal, j = (ptrdiff_t)key;
    return query < t->queries && j <= place && (t->window == 0 || j + (ptrdiff_t)t->window > place);
}

void walsh_softmax_columns_bf16_reference(const struct walsh_tile_softmax *t)
{
    const struct walsh_tile_scores *s = &t->scores;
    for (size_t i = 0; i < (s->queries + 15) / 16 * 16; i++) {
        float maximum = t->maximum[i];
        for (size_t j = 0; j < s->keys; j++)
            if (visible(s, j, i)) maximum = fmaxf(maximum, s->scale * s->s[j * s->lds + i]);
        double sum = 0;
        for (size_t j = 0; j < s->keys; j++) {
            double p = 0;
            if (visible(s, j, i)) p = exp((double)s->scale * (double)s->s[j * s->lds + i] - (double)maximum);
            sum += p;
            uint32_t *pair = &t->p[j / 2 * t->ldp + i];
            *pair = j % 2 ? *pair | narrow((float)p) << 16 : narrow((float)p);
        }
        t->keep[i] = maximum == -INFINITY ? 1 : (float)exp((double)t->maximum[i] - (double)maximum);
        t->sum[i] = (float)((double)t->sum[i] * (double)t->keep[i] + sum);
        t->maximum[i] = maximum;
    }
}

void walsh_slope_columns_bf16_reference(const struct walsh_tile_slopes *t)
{
    const struct walsh_tile_scores *s = &t->scores;
    for (size_t i = 0; i < (s->queries + 15) / 16 * 16; i++)
        for (size_t j = 0; j < s->keys; j++) {
            double p = 0, ds = 0;
            if (visible(s, j, i)) {
                p = exp((double)s->scale * (double)s->s[j * s->lds + i] - (double)t->lse[i]);
                ds = (double)s->scale * p * ((double)t->dp[j * s->lds + i] - (double)t->delta[i]);
            }
            t->p_rows[j * t->ld_rows + i] = (uint16_t)narrow((float)p);
            t->ds_rows[j * t->ld_rows + i] = (uint16_t)narrow((float)ds);
            uint32_t *pair = &t->ds_pairs[j / 2 * t->ld_pairs + i];
            *pair = j % 2 ? *pair | narrow((float)ds) << 16 : narrow((float)ds);
        }
}
