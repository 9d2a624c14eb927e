/* Attention's kernels as formulas, in double. */
#include <math.h>

#include "base/scalar.h"
#include "kernels/table.h"

/* Element d of a token's key or value. */
static double element(const struct walsh_attend_chunk *t, void *const *pages, uint32_t token, uint32_t d)
{
    size_t at = walsh_kv_offset(t->kv, t->kv_head, token, t->head_dim) + d;
    const void *page = pages[token / t->kv->page_tokens];
    return (double)(t->kv->type == WALSH_KV_F32 ? ((const float *)page)[at]
                                                : walsh_f32_from_f16(((const uint16_t *)page)[at]));
}

void walsh_attend_chunk_reference(const struct walsh_attend_chunk *t)
{
    uint32_t keys = t->end - t->begin;
    for (uint32_t g = 0; g < t->group; g++) {
        const float *query = t->query + (size_t)g * t->head_dim;
        float *score = t->scores + (size_t)g * WALSH_ATTEND_CHUNK, *out = t->out + (size_t)g * t->head_dim;
        float maximum = -INFINITY;
        for (uint32_t j = 0; j < keys; j++) {
            double dot = 0;
            for (uint32_t d = 0; d < t->head_dim; d++)
                dot += query[d] * element(t, t->kv->k_pages, t->begin + j, d);
            score[j] = (float)(t->scale * dot);
            if (t->soft_cap != 0) score[j] = (float)(t->soft_cap * tanh((double)score[j] / t->soft_cap));
            if (score[j] > maximum) maximum = score[j];
        }
        double sum = 0;
        for (uint32_t j = 0; j < keys; j++) {
            score[j] = expf(score[j] - maximum);
            sum += (double)score[j];
        }
        for (uint32_t d = 0; d < t->head_dim; d++) {
            double value = 0;
            for (uint32_t j = 0; j < keys; j++)
                value += score[j] * element(t, t->kv->v_pages, t->begin + j, d);
            out[d] = (float)value;
        }
        t->maximum[g] = maximum;
        t->sum[g] = (float)sum;
    }
}

float walsh_softmax_step_f32_reference(float *s, size_t n, float scale, float *maximum, float *sum)
{
    if (n == 0) return 1.0f;
    float m = *maximum;
    for (size_t j = 0; j < n; j++)
        if (scale * s[j] > m) m = scale * s[j];
    double add = 0;
    for (size_t j = 0; j < n; j++) {
        s[j] = (float)exp((double)scale * s[j] - (double)m);
        add += (double)s[j];
    }
    float c = (float)exp((double)*maximum - (double)m);
    *sum = (float)(*sum * (double)c + add);
    *maximum = m;
    return c;
}

void walsh_multiply_tile_f32_reference(float *c, size_t ldc, const float *keep, const float *a, size_t lda,
                                       const float *b, size_t ldb, size_t m, size_t n, size_t k)
{
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            double sum = keep != NULL ? (double)keep[i] * (double)c[i * ldc + j] : 0.0;
            for (size_t p = 0; p < k; p++) sum += (double)a[i * lda + p] * (double)b[p * ldb + j];
            c[i * ldc + j] = (float)sum;
        }
}

void walsh_transpose_f32_reference(float *y, size_t ldy, const float *x, size_t ldx, size_t rows, size_t cols)
{
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < cols; j++) y[j * ldy + i] = x[i * ldx + j];
}

void walsh_multiply_tile_bf16_reference(float *c, size_t ldc, const float *keep, const uint16_t *a,
                                        size_t lda, const uint32_t *b, size_t ldb, size_t m, size_t n,
                                        size_t k)
{
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            double sum = keep != NULL ? (double)keep[i] * (double)c[i * ldc + j] : 0.0;
            for (size_t p = 0; p < k / 2; p++) {
                const uint32_t pair = b[p * ldb + j];
                sum += (double)walsh_f32_from_bf16(a[i * lda + 2 * p]) *
                       (double)walsh_f32_from_bf16((uint16_t)pair);
                sum += (double)walsh_f32_from_bf16(a[i * lda + 2 * p + 1]) *
                       (double)walsh_f32_from_bf16((uint16_t)(pair >> 16));
            }
            c[i * ldc + j] = (float)sum;
        }
}
