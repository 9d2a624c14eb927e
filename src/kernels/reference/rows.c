/* Norm, position, gate and routing of one row; sums in double. */
#include <math.h>

#include "kernels/table.h"

void walsh_add_f32_reference(float *x, const float *d, size_t n)
{
    for (size_t i = 0; i < n; i++) x[i] += d[i];
}

float walsh_rms_factor_f32_reference(const float *x, size_t n, float eps)
{
    double squares = 0;
    for (size_t i = 0; i < n; i++) squares += (double)x[i] * x[i];
    return (float)(1.0 / sqrt(squares / (double)n + (double)eps));
}

void walsh_rms_norm_f32_reference(float *y, const float *x, const float *weight, size_t n, float eps)
{
    const float factor = walsh_rms_factor_f32_reference(x, n, eps);
    for (size_t i = 0; i < n; i++) y[i] = x[i] * factor * weight[i];
}

void walsh_rms_norm_backward_f32_reference(float *dx, const float *dy, const float *x, const float *weight,
                                           size_t n, float eps, bool add)
{
    double squares = 0, products = 0;
    for (size_t i = 0; i < n; i++) {
        squares += (double)x[i] * (double)x[i];
        products += (double)weight[i] * (double)dy[i] * (double)x[i];
    }
    const double r = 1 / sqrt(squares / (double)n + (double)eps), along = r * r * r * products / (double)n;
    for (size_t i = 0; i < n; i++)
        dx[i] =
            (float)((add ? (double)dx[i] : 0) + r * (double)weight[i] * (double)dy[i] - along * (double)x[i]);
}

void walsh_rope_f32_reference(float *x, size_t heads, size_t half, const float *cosine, const float *sine)
{
    for (size_t h = 0; h < heads; h++, x += 2 * half)
        for (size_t i = 0; i < half; i++) {
            float a = x[i], b = x[i + half];
            x[i] = a * cosine[i] - b * sine[i];
            x[i + half] = b * cosine[i] + a * sine[i];
        }
}

void walsh_swiglu_f32_reference(float *y, const float *gate, const float *up, size_t n)
{
    for (size_t i = 0; i < n; i++) y[i] = (float)(gate[i] / (1.0 + exp(-(double)gate[i])) * up[i]);
}

void walsh_swiglu_backward_f32_reference(float *dgate, float *dup, const float *dy, const float *gate,
                                         const float *up, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const double g = (double)gate[i], u = (double)up[i], d = (double)dy[i], s = 1 / (1 + exp(-g));
        dgate[i] = (float)(d * u * s * (1 + g * (1 - s)));
        dup[i] = (float)(d * g * s);
    }
}

void walsh_geglu_f32_reference(float *y, const float *gate, const float *up, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const double x = gate[i], u = 0.79788456080286535588 * (x + 0.044715 * x * x * x); /* sqrt(2 / pi) */
        y[i] = (float)(x / (1.0 + exp(-2 * u)) * up[i]);
    }
}

void walsh_clamped_swiglu_f32_reference(float *y, const float *gate, const float *up, size_t n, float alpha,
                                        float limit)
{
    for (size_t i = 0; i < n; i++) {
        const double g = gate[i] > limit ? limit : gate[i];
        const double u = up[i] > limit ? limit : up[i] < -limit ? -limit : up[i];
        y[i] = (float)(g / (1.0 + exp(-(double)alpha * g)) * (u + 1));
    }
}

void walsh_scale_f32_reference(float *x, float factor, size_t n)
{
    for (size_t i = 0; i < n; i++) x[i] *= factor;
}

void walsh_soft_cap_f32_reference(float *x, size_t n, float scale, float cap)
{
    for (size_t i = 0; i < n; i++) x[i] = (float)(cap * tanh((double)scale * x[i] / cap));
}

void walsh_route_f32_reference(int32_t *index, float *weight, const float *logits, uint32_t experts,
                               uint32_t k, bool normalize)
{
    /* Insert each expert into the k best so far; an equal one stays behind. */
    uint32_t found = 0;
    for (uint32_t e = 0; e < experts; e++) {
        float x = isnan(logits[e]) ? -INFINITY : logits[e];
        uint32_t at = found < k ? found++ : k;
        while (at > 0 && weight[at - 1] < x) at--;
        if (at == k) continue;
        for (uint32_t j = found - 1; j > at; j--) {
            weight[j] = weight[j - 1];
            index[j] = index[j - 1];
        }
        weight[at] = x;
        index[at] = (int32_t)e;
    }
    /* No finite logit at all leaves no sensible choice: NaN weights say so. */
    double top = k > 0 ? (double)weight[0] : 0, sum = 0, chosen = 0;
    for (uint32_t e = 0; e < experts; e++)
        if (!isnan(logits[e])) sum += exp((double)logits[e] - top);
    for (uint32_t j = 0; j < k; j++) chosen += exp((double)weight[j] - top);
    for (uint32_t j = 0; j < k; j++)
        weight[j] = (float)(exp((double)weight[j] - top) / (normalize ? chosen : sum));
}
