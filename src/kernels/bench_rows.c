/* Benchmark rows of the rotation, the conversions and the row kernels. Operations are f32 additions and
 * multiplications. */
#include <stdio.h>

#include "kernels/bench.h"

/* One case's function and data; which function is set says how `data` is used. */
struct row_case {
    walsh_kernel_hadamard_f32 *hadamard;
    walsh_kernel_rotate_forward_f32 *forward;
    walsh_kernel_rotate_inverse_f32 *inverse;
    walsh_kernel_quantize_i8 *quantize;
    walsh_kernel_rotate_i8 *rotate_i8;
    walsh_kernel_rms_factor_f32 *rms_factor;
    void (*narrow)(uint16_t *y, const float *x, size_t n);
    void (*widen)(float *y, const void *x, size_t n);
    walsh_kernel_add_f32 *add;
    walsh_kernel_rms_norm_f32 *rms_norm;
    walsh_kernel_rms_norm_backward_f32 *rms_norm_backward;
    walsh_kernel_swiglu_backward_f32 *swiglu_backward;
    walsh_kernel_rope_f32 *rope;
    walsh_kernel_swiglu_f32 *swiglu;
    walsh_kernel_clamped_swiglu_f32 *clamped;
    walsh_kernel_scale_f32 *scale;
    walsh_kernel_soft_cap_f32 *soft_cap;
    walsh_kernel_route_f32 *route;
    size_t n;
    float *x, *y, *z;
    void *narrowed;
};

static void run_hadamard(void *argument)
{
    const struct row_case *t = argument;
    t->hadamard(t->x, t->n);
}
static void run_forward(void *argument)
{
    const struct row_case *t = argument;
    t->forward(t->y, t->x, t->z, t->n, t->n);
}
static void run_inverse(void *argument)
{
    const struct row_case *t = argument;
    t->inverse(t->y, t->x, t->z, t->n, t->n);
}
static void run_quantize(void *argument)
{
    const struct row_case *t = argument;
    int32_t sum;
    t->quantize(t->narrowed, &sum, t->x, t->n);
}
static void run_rotate_i8(void *argument)
{
    const struct row_case *t = argument;
    const struct walsh_rotation r = {
        WALSH_ROTATION_BLOCKS, (uint32_t)t->n, {(uint32_t)t->n, 1, {(uint32_t)t->n}, 0}, t->z};
    int32_t sum;
    t->rotate_i8(t->narrowed, &sum, t->y, t->x, t->z, 0.5f, &r);
}
static void run_rms_factor(void *argument)
{
    const struct row_case *t = argument;
    t->y[0] = t->rms_factor(t->x, t->n, 1e-6f);
}
static void run_narrow(void *argument)
{
    const struct row_case *t = argument;
    t->narrow(t->narrowed, t->x, t->n);
}
static void run_widen(void *argument)
{
    const struct row_case *t = argument;
    t->widen(t->y, t->narrowed, t->n);
}
static void run_add(void *argument)
{
    const struct row_case *t = argument;
    t->add(t->y, t->z, t->n);
}
static void run_rms_norm(void *argument)
{
    const struct row_case *t = argument;
    t->rms_norm(t->y, t->x, t->z, t->n, 1e-6f);
}
static void run_rms_norm_backward(void *argument)
{
    const struct row_case *t = argument;
    t->rms_norm_backward(t->y, t->y, t->x, t->z, t->n, 1e-6f, false);
}
static void run_swiglu_backward(void *argument)
{
    const struct row_case *t = argument;
    t->swiglu_backward(t->y, t->x, t->y, t->x, t->z, t->n);
}
static void run_rope(void *argument)
{
    const struct row_case *t = argument;
    t->rope(t->y, t->n / 128, 64, t->z, t->z + 64);
}
static void run_swiglu(void *argument)
{
    const struct row_case *t = argument;
    t->swiglu(t->y, t->x, t->z, t->n);
}
static void run_clamped(void *argument)
{
    const struct row_case *t = argument;
    t->clamped(t->y, t->x, t->z, t->n, 1.702f, 7);
}
static void run_scale(void *argument)
{
    const struct row_case *t = argument;
    t->scale(t->y, -1.0f, t->n);
}
static void run_soft_cap(void *argument)
{
    const struct row_case *t = argument;
    t->soft_cap(t->y, t->n, 1.0f, 50.0f);
}
static void run_route(void *argument)
{
    const struct row_case *t = argument;
    t->route(t->narrowed, t->y, t->x, (uint32_t)t->n, 8, true);
}

/* A size with `bytes` and `operations` per element. The transforms keep the norm, so repeating them in place
 * is safe: x ends as
 * +-x; what adds z each time uses z = +-2^-20. */
static void run(struct walsh_bench *b, struct row_case t, size_t n, double bytes, double operations,
                void (*call)(void *))
{
    char size[32];
    t.n = n;
    t.x = walsh_bench_normal(b, n);
    t.y = walsh_bench_normal(b, n);
    t.z = walsh_bench_alloc(b, n * sizeof(float));
    t.narrowed = walsh_bench_alloc(b, n * sizeof(float));
    if (t.x == NULL || t.y == NULL || t.z == NULL || t.narrowed == NULL) return;
    for (size_t i = 0; i < n; i++) t.z[i] = (i % 3 ? 1.0f : -1.0f) * (call == run_add ? 0x1p-20f : 1.0f);
    snprintf(size, sizeof size, "n=%zu", n);
    walsh_bench_run(b, size, bytes * (double)n, operations * (double)n, WALSH_CEILING_F32, call, &t);
}

static const size_t blocks[] = {64, 256, 1024, 4096, 16384};
#define BLOCKS (sizeof blocks / sizeof blocks[0])

void walsh_bench_hadamard_f32(struct walsh_bench *b, walsh_kernel_hadamard_f32 *f)
{
    for (size_t i = 0; i < BLOCKS; i++)
        run(b, (struct row_case){.hadamard = f}, blocks[i], 8, __builtin_ctzll(blocks[i]) + 1, run_hadamard);
}

void walsh_bench_rotate_forward_f32(struct walsh_bench *b, walsh_kernel_rotate_forward_f32 *f)
{
    for (size_t i = 0; i < BLOCKS; i++)
        run(b, (struct row_case){.forward = f}, blocks[i], 12, __builtin_ctzll(blocks[i]) + 2, run_forward);
}

void walsh_bench_rotate_inverse_f32(struct walsh_bench *b, walsh_kernel_rotate_inverse_f32 *f)
{
    for (size_t i = 0; i < BLOCKS; i++)
        run(b, (struct row_case){.inverse = f}, blocks[i], 12, __builtin_ctzll(blocks[i]) + 2, run_inverse);
}

void walsh_bench_quantize_i8(struct walsh_bench *b, walsh_kernel_quantize_i8 *f)
{
    run(b, (struct row_case){.quantize = f}, 4096, 5, 4, run_quantize);
}

/* With a norm's weight: what stands between two products after rms_factor_f32. */
void walsh_bench_rotate_i8(struct walsh_bench *b, walsh_kernel_rotate_i8 *f)
{
    for (size_t i = 0; i < BLOCKS; i++)
        run(b, (struct row_case){.rotate_i8 = f}, blocks[i], 13, __builtin_ctzll(blocks[i]) + 7,
            run_rotate_i8);
}

void walsh_bench_rms_factor_f32(struct walsh_bench *b, walsh_kernel_rms_factor_f32 *f)
{
    for (size_t i = 0; i < BLOCKS; i++)
        run(b, (struct row_case){.rms_factor = f}, blocks[i], 4, 2, run_rms_factor);
}

void walsh_bench_bf16_from_f32(struct walsh_bench *b, walsh_kernel_bf16_from_f32 *f)
{
    run(b, (struct row_case){.narrow = f}, 4096, 6, 1, run_narrow);
}

void walsh_bench_f16_from_f32(struct walsh_bench *b, walsh_kernel_f16_from_f32 *f)
{
    run(b, (struct row_case){.narrow = f}, 4096, 6, 1, run_narrow);
}

void walsh_bench_f32_from_bf16(struct walsh_bench *b, walsh_kernel_f32_from_bf16 *f)
{
    run(b, (struct row_case){.widen = f}, 4096, 6, 1, run_widen);
}

void walsh_bench_f32_from_f16(struct walsh_bench *b, walsh_kernel_f32_from_f16 *f)
{
    run(b, (struct row_case){.widen = f}, 4096, 6, 1, run_widen);
}

void walsh_bench_add_f32(struct walsh_bench *b, walsh_kernel_add_f32 *f)
{
    run(b, (struct row_case){.add = f}, 4096, 12, 1, run_add);
}

void walsh_bench_rms_norm_f32(struct walsh_bench *b, walsh_kernel_rms_norm_f32 *f)
{
    run(b, (struct row_case){.rms_norm = f}, 4096, 12, 4, run_rms_norm);
}

void walsh_bench_rms_norm_backward_f32(struct walsh_bench *b, walsh_kernel_rms_norm_backward_f32 *f)
{
    run(b, (struct row_case){.rms_norm_backward = f}, 4096, 16, 10, run_rms_norm_backward);
}

void walsh_bench_swiglu_backward_f32(struct walsh_bench *b, walsh_kernel_swiglu_backward_f32 *f)
{
    run(b, (struct row_case){.swiglu_backward = f}, 11008, 16, 26, run_swiglu_backward);
}

void walsh_bench_rope_f32(struct walsh_bench *b, walsh_kernel_rope_f32 *f)
{
    run(b, (struct row_case){.rope = f}, 4096, 8, 3, run_rope);
}

void walsh_bench_swiglu_f32(struct walsh_bench *b, walsh_kernel_swiglu_f32 *f)
{
    run(b, (struct row_case){.swiglu = f}, 11008, 12, 20, run_swiglu);
}

void walsh_bench_geglu_f32(struct walsh_bench *b, walsh_kernel_geglu_f32 *f)
{
    run(b, (struct row_case){.swiglu = f}, 11008, 12, 24, run_swiglu);
}

void walsh_bench_clamped_swiglu_f32(struct walsh_bench *b, walsh_kernel_clamped_swiglu_f32 *f)
{
    run(b, (struct row_case){.clamped = f}, 11008, 12, 22, run_clamped);
}

void walsh_bench_scale_f32(struct walsh_bench *b, walsh_kernel_scale_f32 *f)
{
    run(b, (struct row_case){.scale = f}, 4096, 8, 1, run_scale);
}

void walsh_bench_soft_cap_f32(struct walsh_bench *b, walsh_kernel_soft_cap_f32 *f)
{
    run(b, (struct row_case){.soft_cap = f}, 4096, 8, 20, run_soft_cap);
}

void walsh_bench_route_f32(struct walsh_bench *b, walsh_kernel_route_f32 *f)
{
    run(b, (struct row_case){.route = f}, 64, 4, 20, run_route);
}
