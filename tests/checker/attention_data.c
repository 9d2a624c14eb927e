#include "attention_data.h"

#include <math.h>

#include "base/scalar.h"

void attention_define(const struct walsh_attention_shape *s, const float *query, const float *k,
                      const float *v, uint32_t head, uint32_t position, bool half, double *weight, float *out,
                      float *magnitude)
{
    uint32_t kv_head = head / (s->heads / s->kv_heads);
    uint32_t begin = s->window != 0 && position >= s->window ? position + 1 - s->window : 0,
             dim = s->head_dim;
    size_t ld = (size_t)s->kv_heads * dim;
    const double sink = s->sinks ? (double)s->sinks[head] : -INFINITY;
    double largest = sink, score_unit = 0, sum = 0;
    for (uint32_t j = begin; j <= position; j++) {
        double dot = 0, absolute = 0;
        for (uint32_t d = 0; d < dim; d++) {
            float x = k[j * ld + kv_head * dim + d];
            double product =
                (double)query[d] * (double)(half ? walsh_f32_from_f16(walsh_f16_from_f32(x)) : x);
            dot += product;
            absolute += fabs(product);
        }
        weight[j] = dot * (double)s->scale;
        if (s->soft_cap != 0) weight[j] = (double)s->soft_cap * tanh(weight[j] / (double)s->soft_cap);
        largest = fmax(largest, weight[j]);
        score_unit = fmax(score_unit, absolute * (double)s->scale + (double)s->soft_cap);
    }
    for (uint32_t j = begin; j <= position; j++) sum += weight[j] = exp(weight[j] - largest);
    sum += exp(sink - largest);
    for (uint32_t d = 0; d < dim; d++) {
        double value = 0, absolute = 0;
        for (uint32_t j = begin; j <= position; j++) {
            float x = v[j * ld + kv_head * dim + d];
            double product = weight[j] / sum * (double)(half ? walsh_f32_from_f16(walsh_f16_from_f32(x)) : x);
            value += product;
            absolute += fabs(product);
        }
        out[d] = (float)value;
        magnitude[d] = (float)((1 + score_unit) * absolute);
    }
}
