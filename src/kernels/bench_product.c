/* Benchmark rows of the product kernels, one thread. Operations are multiply-adds times 2, bytes those of the
 * weights. Decode walks through a ring of matrices that no cache holds; prefill takes 512 rows of
 * activations. */
#include <stdio.h>
#include <string.h>

#include "formats/e8p_planes.h"
#include "kernels/bench.h"

#define RING_BYTES ((size_t)192 << 20)
#define RING_MOST 64
#define DECODE_PIECE 64 /* outputs per call */

typedef void product_kernel(const struct walsh_product_part *);

struct product_case {
    product_kernel *kernel;
    struct walsh_weights ring[RING_MOST];
    size_t count, next;
    size_t piece; /* outputs per call */
    bool transposed;
    struct walsh_activations a;
    float *y;
    void *scratch;
};

struct product_shape {
    enum walsh_format format;
    const char *stages; /* E8P: 'P' and 'B' for E8P and E81B */
    const char *name;
    uint32_t rows, cols;
};

/* `bytes` random bytes: those under `mask` from the generator, the others from `fixed` (8 bytes repeated). */
static const void *random_data(struct walsh_bench *b, size_t bytes, uint64_t fixed, uint64_t mask)
{
    uint64_t *words = walsh_bench_alloc(b, walsh_round_up(bytes, 8));
    for (size_t i = 0; words != NULL && i < walsh_div_up(bytes, 8); i++)
        words[i] = fixed | (walsh_mix64(i) & mask);
    return words;
}

static bool make_weights(struct walsh_bench *b, const struct product_shape *s, struct walsh_weights *w)
{
    *w = (struct walsh_weights){.format = s->format, .rows = s->rows, .cols = s->cols};
    size_t n = (size_t)s->rows * s->cols;
    switch (s->format) { /* numbers of magnitude 1 to 2 */
    case WALSH_FORMAT_F32:
        w->data = random_data(b, n * 4, 0x3f8000003f800000u, 0x807fffff807fffffu);
        return w->data != NULL;
    case WALSH_FORMAT_F16:
        w->data = random_data(b, n * 2, 0x3c003c003c003c00u, 0x83ff83ff83ff83ffu);
        return w->data != NULL;
    case WALSH_FORMAT_BF16:
        w->data = random_data(b, n * 2, 0x3f803f803f803f80u, 0x807f807f807f807fu);
        return w->data != NULL;
    default:
        break;
    }
    struct walsh_e8p_plan plan;
    if (walsh_e8p_plan_bits(strcmp(s->stages, "PB") == 0 ? 3 : 2 * (unsigned)strlen(s->stages), &plan,
                            NULL) != WALSH_OK)
        return false;
    for (const char *stage = s->stages; *stage != 0; stage++) {
        enum walsh_stage_kind kind = *stage == 'P' ? WALSH_STAGE_E8P : WALSH_STAGE_E81B;
        const void *data = random_data(b, walsh_stage_bytes(kind, s->rows, s->cols), 0, UINT64_MAX);
        if (data == NULL) return false;
        w->stage[w->stages].kind = kind;
        w->stage[w->stages].data = data;
        w->stage[w->stages].scale = plan.cumulative_inverse[w->stages];
        w->stages++;
    }
    return true;
}

static bool make_activations(struct walsh_bench *b, enum walsh_activation_type type, size_t rows, size_t cols,
                             struct walsh_activations *a)
{
    size_t stride = walsh_activations_stride(cols);
    *a = (struct walsh_activations){.type = type, .rows = rows, .cols = cols, .stride = stride};
    a->data = walsh_bench_alloc(b, rows * stride * walsh_activation_size(type));
    a->scale = walsh_bench_alloc(b, rows * sizeof *a->scale);
    a->sum = walsh_bench_alloc(b, rows * sizeof *a->sum);
    if (a->data == NULL || a->scale == NULL || a->sum == NULL) return false;
    for (size_t i = 0; i < rows; i++) {
        a->scale[i] = 1;
        for (size_t k = 0; k < cols; k++) {
            size_t at = i * stride + k;
            int8_t q = (int8_t)((int)(walsh_mix64(at) % 255) - 127);
            if (type == WALSH_ACTIVATION_F32) ((float *)a->data)[at] = (float)q;
            if (type == WALSH_ACTIVATION_BF16)
                ((uint16_t *)a->data)[at] = (uint16_t)(0x3f80 | (walsh_mix64(at) & 0x807f));
            if (type == WALSH_ACTIVATION_INT8) a->sum[i] += ((int8_t *)a->data)[at] = q;
        }
    }
    return true;
}

static void run(void *argument)
{
    struct product_case *t = argument;
    const struct walsh_weights *w = &t->ring[t->next];
    t->next = (t->next + 1) % t->count;
    const size_t outs = t->transposed ? w->cols : w->rows;
    for (size_t r = 0; r < outs; r += t->piece) {
        const struct walsh_product_part part = {w,    &t->a, r,          walsh_min(r + t->piece, outs),
                                                t->y, outs,  t->scratch, false};
        t->kernel(&part);
    }
}

/* One row of the table; `ring` bytes of weights. */
static void bench(struct walsh_bench *b, product_kernel *f, const struct product_shape *s,
                  enum walsh_activation_type type, size_t rows, size_t ring, size_t piece)
{
    struct product_case t = {.kernel = f, .piece = piece};
    t.y = walsh_bench_alloc(b, rows * s->rows * sizeof *t.y);
    t.scratch = walsh_bench_alloc(b, WALSH_PRODUCT_SCRATCH);
    if (t.y == NULL || t.scratch == NULL || !make_activations(b, type, rows, s->cols, &t.a)) return;
    do {
        if (!make_weights(b, s, &t.ring[t.count])) return;
        t.count++;
    } while (t.count < RING_MOST && t.count * walsh_weights_bytes(&t.ring[0]) < ring);
    struct walsh_merged_stages merged;
    const unsigned planes =
        piece != DECODE_PIECE && walsh_stages_merge(&t.ring[0], &merged) ? 1 : t.ring[0].stages;
    char size[96];
    snprintf(size, sizeof size, "%s %ux%u rows=%zu", s->name, s->rows, s->cols, rows);
    enum walsh_ceiling ceiling = type == WALSH_ACTIVATION_INT8   ? WALSH_CEILING_INT8
                                 : type == WALSH_ACTIVATION_BF16 ? WALSH_CEILING_BF16
                                                                 : WALSH_CEILING_F32;
    double operations = 2.0 * (double)rows * s->rows * s->cols *
                        (s->stages[0] != 0 && type == WALSH_ACTIVATION_INT8 ? (double)planes : 1.0);
    walsh_bench_run(b, size, (double)walsh_weights_bytes(&t.ring[0]), operations, ceiling, run, &t);
}

static void bench_decode(struct walsh_bench *b, product_kernel *f, enum walsh_format format,
                         const char *stages, const char *name, enum walsh_activation_type type)
{
    bench(b, f, &(struct product_shape){format, stages, name, 4096, 4096}, type, 1, RING_BYTES, DECODE_PIECE);
    bench(b, f, &(struct product_shape){format, stages, name, 8192, 3072}, type, 1, RING_BYTES, DECODE_PIECE);
    bench(b, f, &(struct product_shape){format, stages, name, 1024, 4096}, type, 8, RING_BYTES, DECODE_PIECE);
}

static void bench_prefill(struct walsh_bench *b, product_kernel *f, enum walsh_format format,
                          const char *stages, const char *name, enum walsh_activation_type type)
{
    bench(b, f, &(struct product_shape){format, stages, name, 192, 1024}, type, 512, 0, 192);
}

void walsh_bench_product_dense_decode(struct walsh_bench *b, product_kernel *f)
{
    bench_decode(b, f, WALSH_FORMAT_F32, "", "f32", WALSH_ACTIVATION_F32);
    bench_decode(b, f, WALSH_FORMAT_BF16, "", "bf16", WALSH_ACTIVATION_F32);
}

void walsh_bench_product_dense_prefill(struct walsh_bench *b, product_kernel *f)
{
    bench_prefill(b, f, WALSH_FORMAT_F32, "", "f32", WALSH_ACTIVATION_F32);
    bench_prefill(b, f, WALSH_FORMAT_F16, "", "f16", WALSH_ACTIVATION_F32);
    bench_prefill(b, f, WALSH_FORMAT_BF16, "", "bf16", WALSH_ACTIVATION_F32);
}

void walsh_bench_product_bf16_decode(struct walsh_bench *b, product_kernel *f)
{
    bench_decode(b, f, WALSH_FORMAT_BF16, "", "bf16", WALSH_ACTIVATION_BF16);
}

void walsh_bench_product_bf16_prefill(struct walsh_bench *b, product_kernel *f)
{
    bench_prefill(b, f, WALSH_FORMAT_BF16, "", "bf16", WALSH_ACTIVATION_BF16);
}

/* The same work as prefill's case. */
static void bench_transposed(struct walsh_bench *b, product_kernel *f, enum walsh_format format,
                             const char *name, enum walsh_activation_type type)
{
    const struct product_shape s = {format, "", name, 1024, 192};
    const size_t rows = 512;
    struct product_case t = {.kernel = f, .piece = 192, .count = 1, .transposed = true};
    t.y = walsh_bench_alloc(b, rows * s.cols * sizeof *t.y);
    t.scratch = walsh_bench_alloc(b, WALSH_PRODUCT_SCRATCH);
    if (t.y == NULL || t.scratch == NULL || !make_activations(b, type, rows, s.rows, &t.a) ||
        !make_weights(b, &s, &t.ring[0]))
        return;
    char size[96];
    snprintf(size, sizeof size, "%s %ux%u rows=%zu", name, s.rows, s.cols, rows);
    walsh_bench_run(b, size, (double)walsh_weights_bytes(&t.ring[0]), 2.0 * (double)rows * s.rows * s.cols,
                    type == WALSH_ACTIVATION_BF16 ? WALSH_CEILING_BF16 : WALSH_CEILING_F32, run, &t);
}

void walsh_bench_product_dense_transposed(struct walsh_bench *b, product_kernel *f)
{
    bench_transposed(b, f, WALSH_FORMAT_F32, "f32", WALSH_ACTIVATION_F32);
    bench_transposed(b, f, WALSH_FORMAT_BF16, "bf16", WALSH_ACTIVATION_F32);
}

void walsh_bench_product_bf16_transposed(struct walsh_bench *b, product_kernel *f)
{
    bench_transposed(b, f, WALSH_FORMAT_BF16, "bf16", WALSH_ACTIVATION_BF16);
}

static const char *const stages[] = {"P", "PB", "PP"};
static const char *const stage_names[] = {"2bpw", "3bpw", "4bpw"};

void walsh_bench_product_e8p_decode(struct walsh_bench *b, product_kernel *f)
{
    for (int i = 0; i < 3; i++)
        bench_decode(b, f, WALSH_FORMAT_E8P, stages[i], stage_names[i], WALSH_ACTIVATION_F32);
}

void walsh_bench_product_e8p_prefill(struct walsh_bench *b, product_kernel *f)
{
    for (int i = 0; i < 3; i++)
        bench_prefill(b, f, WALSH_FORMAT_E8P, stages[i], stage_names[i], WALSH_ACTIVATION_F32);
}

void walsh_bench_product_int8_decode(struct walsh_bench *b, product_kernel *f)
{
    for (int i = 0; i < 3; i++)
        bench_decode(b, f, WALSH_FORMAT_E8P, stages[i], stage_names[i], WALSH_ACTIVATION_INT8);
}

void walsh_bench_product_int8_prefill(struct walsh_bench *b, product_kernel *f)
{
    for (int i = 0; i < 3; i++)
        bench_prefill(b, f, WALSH_FORMAT_E8P, stages[i], stage_names[i], WALSH_ACTIVATION_INT8);
}
