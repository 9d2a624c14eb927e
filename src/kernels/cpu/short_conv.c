/* The gated short convolution: products are stored token by token where a layer of attention has its keys,
 * and read back from there, so that a prompt and a step see the same values. */
#include <string.h>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/split.h"

enum { PIECE = 1024 }; /* columns at a time, on the stack */

struct short_conv {
    const struct walsh_queue *q;
    float *out;
    const float *x, *weight, *bias;
    size_t ldo, ldx;
    const struct walsh_attention_row *rows;
    uint32_t taps, width;
};

/* Element `at` of a token's u in its page. */
static void *stored(const struct walsh_kv_view *kv, uint32_t position, uint32_t width, size_t at)
{
    uint8_t *page = kv->k_pages[position / kv->page_tokens];
    const size_t element = (size_t)(position % kv->page_tokens) * width + at;
    return page + element * (kv->type == WALSH_KV_F32 ? sizeof(float) : sizeof(uint16_t));
}

static void store_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct short_conv *t = argument;
    float u[PIECE];
    for (size_t r = begin; r < end; r++)
        for (size_t at = 0; at < t->width; at += PIECE) {
            const size_t n = walsh_min(PIECE, t->width - at);
            const float *b = t->x + r * t->ldx + at, *v = b + 2 * (size_t)t->width;
            void *to = stored(t->rows[r].kv, t->rows[r].position, t->width, at);
            for (size_t i = 0; i < n; i++) u[i] = b[i] * v[i];
            if (t->rows[r].kv->type == WALSH_KV_F32)
                memcpy(to, u, n * sizeof *u);
            else
                t->q->kernels->f16_from_f32(to, u, n);
        }
}

/* out[at, at + n) of one row. */
static void convolve(const struct short_conv *t, size_t row, size_t at, size_t n)
{
    const struct walsh_kv_view *kv = t->rows[row].kv;
    const uint32_t position = t->rows[row].position;
    const float *c = t->x + row * t->ldx + t->width + at;
    float sum[PIECE], u[PIECE];
    for (size_t i = 0; i < n; i++) sum[i] = t->bias ? t->bias[at + i] : 0;
    for (uint32_t j = 0; j < t->taps; j++) {
        const uint32_t back = t->taps - 1 - j;
        if (back > position) continue;
        const void *from = stored(kv, position - back, t->width, at);
        const float *weight = t->weight + (size_t)j * t->width + at;
        if (kv->type == WALSH_KV_F32)
            memcpy(u, from, n * sizeof *u);
        else
            t->q->kernels->f32_from_f16(u, from, n);
        for (size_t i = 0; i < n; i++) sum[i] += weight[i] * u[i];
    }
    float *out = t->out + row * t->ldo + at;
    for (size_t i = 0; i < n; i++) out[i] = c[i] * sum[i];
}

static void convolve_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct short_conv *t = argument;
    for (size_t r = begin; r < end; r++)
        for (size_t at = 0; at < t->width; at += PIECE) convolve(t, r, at, walsh_min(PIECE, t->width - at));
}

void walsh_cpu_short_conv(const struct walsh_queue *q, float *out, size_t ldo, const float *x, size_t ldx,
                          const struct walsh_attention_row *rows, size_t count, const float *weight,
                          const float *bias, uint32_t taps, uint32_t width)
{
    struct short_conv t = {q, out, x, weight, bias, ldo, ldx, rows, taps, width};
    walsh_run_rows(q, count, width, store_rows, &t);
    walsh_run_rows(q, count, (size_t)width * taps, convolve_rows, &t);
}
