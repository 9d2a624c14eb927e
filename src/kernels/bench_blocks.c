/* Benchmark rows of the block formats: products by int8 activations in groups, and rows decoded. One thread;
 * decode walks through a ring of matrices that no cache holds. */
#include <stdio.h>

#include "formats/blocks.h"
#include "kernels/bench.h"

#define RING_BYTES ((size_t)192 << 20)
#define RING_MOST 64

typedef void product_kernel(const struct walsh_product_part *);

static const struct kind {
    const char *name;
    enum walsh_format format;
    struct walsh_block_type block;
    bool zeros;
} kinds[] = {
    {"mxfp4", WALSH_FORMAT_MXFP4, {WALSH_CODE_E2M1, WALSH_SCALE_E8M0, 32}, false},
    {"nvfp4", WALSH_FORMAT_NVFP4, {WALSH_CODE_E2M1, WALSH_SCALE_E4M3, 16}, false},
    {"int4", WALSH_FORMAT_INT4, {WALSH_CODE_U4, WALSH_SCALE_BF16, 128}, true},
    {"int8", WALSH_FORMAT_INT8, {WALSH_CODE_U8, WALSH_SCALE_BF16, 128}, true},
    {"mxfp8", WALSH_FORMAT_MXFP8, {WALSH_CODE_E4M3, WALSH_SCALE_E8M0, 32}, false},
};
#define KINDS (sizeof kinds / sizeof *kinds)
#define INTEGER_KINDS 4

struct block_case {
    product_kernel *product;
    walsh_kernel_decode_weights_f32 *f32;
    walsh_kernel_decode_weights_bf16 *bf16;
    struct walsh_weights ring[RING_MOST];
    size_t count, next;
    size_t outputs; /* 0: the rows of the weights */
    struct walsh_activations a;
    void *out;
    void *scratch;
};

/* Codes at random, scales of 2^-7..2^0. */
static bool make_weights(struct walsh_bench *b, const struct kind *kind, uint32_t rows, uint32_t cols,
                         struct walsh_weights *w)
{
    *w = (struct walsh_weights){
        .format = kind->format, .rows = rows, .cols = cols, .block = kind->block, .tensor_scale = 1};
    const size_t words = walsh_block_data_words(w), scales = walsh_block_scale_count(w);
    uint32_t *data = walsh_bench_alloc(b, words * sizeof *data);
    uint8_t *scale = walsh_bench_alloc(b, scales * walsh_scale_bytes(w->block.scale)),
            *zeros = walsh_bench_alloc(b, scales);
    if (data == NULL || scale == NULL || zeros == NULL) return false;
    const bool floats = w->block.code == WALSH_CODE_E4M3; /* numbers only */
    for (size_t i = 0; i < words; i++)
        data[i] = (uint32_t)walsh_mix64(i) & (floats ? 0xbfbfbfbfu : UINT32_MAX);
    for (size_t r = 0; r < rows; r++)
        for (size_t g = 0; g < walsh_block_groups(w); g++)
            walsh_block_put_scale(w, r, g,
                                  w->block.scale == WALSH_SCALE_BF16   ? 0x3c00u + (uint32_t)(r + g) % 256 * 4
                                  : w->block.scale == WALSH_SCALE_E4M3 ? 0x20u + (uint32_t)(r + g) % 32
                                                                       : 120u + (uint32_t)(r + g) % 8,
                                  scale);
    for (size_t i = 0; i < scales; i++) zeros[i] = (uint8_t)(5 + i % 6);
    w->data = data;
    w->scales = scale;
    if (kind->zeros) w->zeros = zeros;
    return true;
}

static bool make_activations(struct walsh_bench *b, size_t rows, size_t cols, struct walsh_activations *a)
{
    const size_t stride = walsh_activations_stride(cols);
    *a = (struct walsh_activations){
        .type = WALSH_ACTIVATION_INT8_GROUPS, .rows = rows, .cols = cols, .stride = stride};
    int8_t *q = walsh_bench_alloc(b, rows * stride);
    a->scale = walsh_bench_alloc(b, rows * walsh_activation_scales(a->type, stride) * sizeof *a->scale);
    a->sum = walsh_bench_alloc(b, rows * walsh_activation_sums(a->type, stride) * sizeof *a->sum);
    if (q == NULL || a->scale == NULL || a->sum == NULL) return false;
    a->data = q;
    for (size_t i = 0; i < rows * stride; i++) {
        q[i] = (int8_t)((int)(walsh_mix64(i) % 255) - 127);
        a->sum[i / WALSH_ACTIVATION_SUM] += q[i];
        a->scale[i / WALSH_ACTIVATION_GROUP] = 1;
    }
    return true;
}

static void run(void *argument)
{
    struct block_case *t = argument;
    const struct walsh_weights *w = &t->ring[t->next];
    t->next = (t->next + 1) % t->count;
    const size_t outputs = t->outputs ? t->outputs : w->rows;
    if (t->product)
        t->product(&(struct walsh_product_part){w, &t->a, 0, outputs, t->out, outputs, t->scratch, false});
    else if (t->f32)
        t->f32(w, 0, w->rows, 0, w->cols, t->out, w->cols);
    else
        t->bf16(w, 0, w->rows, 0, w->cols, t->out, w->cols);
}

static void bench(struct walsh_bench *b, struct block_case t, const struct kind *kind, uint32_t rows,
                  uint32_t cols, size_t batch, size_t ring)
{
    char size[96];
    const double elements = (double)rows * cols;
    t.out =
        walsh_bench_alloc(b, t.product ? batch * rows * sizeof(float) : (size_t)rows * cols * sizeof(float));
    t.scratch = walsh_bench_alloc(b, WALSH_PRODUCT_SCRATCH);
    if (t.out == NULL || t.scratch == NULL || !make_activations(b, batch, cols, &t.a)) return;
    do {
        if (!make_weights(b, kind, rows, cols, &t.ring[t.count])) return;
        t.count++;
    } while (t.count < RING_MOST && t.count * walsh_weights_bytes(&t.ring[0]) < ring);
    const double bytes = (double)walsh_weights_bytes(&t.ring[0]);
    if (t.product) {
        snprintf(size, sizeof size, "%s %ux%u rows=%zu", kind->name, rows, cols, batch);
        walsh_bench_run(b, size, bytes, 2.0 * (double)batch * elements, WALSH_CEILING_INT8, run, &t);
    } else {
        snprintf(size, sizeof size, "%s %ux%u", kind->name, rows, cols);
        walsh_bench_run(b, size, bytes + elements * (t.f32 ? 4 : 2), elements, WALSH_CEILING_F32, run, &t);
    }
}

void walsh_bench_product_block_decode(struct walsh_bench *b, product_kernel *f)
{
    for (size_t k = 0; k < INTEGER_KINDS; k++) {
        bench(b, (struct block_case){.product = f}, &kinds[k], 4096, 4096, 1, RING_BYTES);
        bench(b, (struct block_case){.product = f}, &kinds[k], 1024, 4096, 8, RING_BYTES);
    }
}

void walsh_bench_product_block_prefill(struct walsh_bench *b, product_kernel *f)
{
    for (size_t k = 0; k < INTEGER_KINDS; k++)
        bench(b, (struct block_case){.product = f}, &kinds[k], 192, 1024, 512, 0);
}

/* MXFP4 by bf16 activations, and back. */
static void bench_mxfp4(struct walsh_bench *b, product_kernel *f, bool transposed)
{
    for (size_t rows = 1; rows <= 256; rows *= 16) {
        char size[96];
        struct block_case t = {.product = f};
        const uint32_t outputs = 192, inner = 2048, w_rows = transposed ? inner : outputs,
                       w_cols = transposed ? outputs : inner;
        t.a = (struct walsh_activations){.type = WALSH_ACTIVATION_BF16,
                                         .rows = rows,
                                         .cols = inner,
                                         .stride = walsh_activations_stride(inner)};
        t.a.data = walsh_bench_alloc(b, rows * t.a.stride * sizeof(uint16_t));
        t.out = walsh_bench_alloc(b, rows * outputs * sizeof(float));
        t.scratch = walsh_bench_alloc(b, WALSH_PRODUCT_SCRATCH);
        if (!t.a.data || !t.out || !t.scratch || !make_weights(b, &kinds[0], w_rows, w_cols, &t.ring[0]))
            return;
        t.count = 1;
        t.outputs = outputs;
        snprintf(size, sizeof size, "%ux%u rows=%zu", w_rows, w_cols, rows);
        walsh_bench_run(b, size, (double)walsh_weights_bytes(&t.ring[0]),
                        2.0 * (double)rows * inner * outputs, WALSH_CEILING_BF16, run, &t);
    }
}

void walsh_bench_product_mxfp4_prefill(struct walsh_bench *b, product_kernel *f)
{
    bench_mxfp4(b, f, false);
}

void walsh_bench_product_mxfp4_transposed(struct walsh_bench *b, product_kernel *f)
{
    bench_mxfp4(b, f, true);
}

void walsh_bench_decode_weights_f32(struct walsh_bench *b, walsh_kernel_decode_weights_f32 *f)
{
    for (size_t k = 0; k < KINDS; k++) bench(b, (struct block_case){.f32 = f}, &kinds[k], 64, 2048, 1, 0);
}

void walsh_bench_decode_weights_bf16(struct walsh_bench *b, walsh_kernel_decode_weights_bf16 *f)
{
    for (size_t k = 0; k < KINDS; k++) bench(b, (struct block_case){.bf16 = f}, &kinds[k], 64, 2048, 1, 0);
}

struct group_case {
    walsh_kernel_quantize_groups_i8 *quantize;
    int8_t *q;
    float *scale;
    int32_t *sum;
    const float *x;
    size_t n;
};

static void run_groups(void *argument)
{
    const struct group_case *t = argument;
    t->quantize(t->q, t->scale, t->sum, t->x, t->n);
}

void walsh_bench_quantize_groups_i8(struct walsh_bench *b, walsh_kernel_quantize_groups_i8 *f)
{
    const size_t n = 4096;
    struct group_case t = {.quantize = f, .n = n};
    t.q = walsh_bench_alloc(b, n);
    t.scale = walsh_bench_alloc(b, n / WALSH_ACTIVATION_GROUP * sizeof *t.scale);
    t.sum = walsh_bench_alloc(b, n / WALSH_ACTIVATION_SUM * sizeof *t.sum);
    t.x = walsh_bench_normal(b, n);
    if (t.q == NULL || t.scale == NULL || t.sum == NULL || t.x == NULL) return;
    walsh_bench_run(b, "n=4096", 5.0 * (double)n, 2.0 * (double)n, WALSH_CEILING_F32, run_groups, &t);
}
