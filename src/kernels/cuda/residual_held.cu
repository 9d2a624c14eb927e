// residual of fused.cu for int8 inputs with a row in the registers of 256 threads (held.cuh).
#include "held.cuh"

namespace {

struct held_residual {
    held_rotation d, to; // d of no z: nothing is added
    prepared out;
    const float *z, *bias, *d_norm, *weight;
    float *x, *normed;
    size_t ld, ldn;
    float eps;
};

template <int E> __global__ void __launch_bounds__(HELD_THREADS, 1) held_residual_kernel(const __grid_constant__ held_residual p)
{
    extern __shared__ __align__(16) float room[];
    __shared__ float part[2][8];
    __shared__ uint32_t reduce[2];
    const int t = (int)threadIdx.x, n = (int)p.to.units * HELD_THREADS;
    if (t < 2) reduce[t] = 0;
    bool d_units = true, to_units;
    const uint32_t d_negative = p.z ? held_signs<E>(p.d, &d_units) : 0, to_negative = held_signs<E>(p.to, &to_units);
    float weight[E];
#pragma unroll
    for (int e = 0; e < E; e++) weight[e] = e < (int)p.to.units ? __ldg(p.weight + t + HELD_THREADS * e) : 0.0f;
    if (p.z) let_next_start();
    wait_for_previous();
    if (!p.z) let_next_start(); // the first of a step: what the step was given is there for all that follow, before they wait
    float *x = p.x + blockIdx.x * (size_t)n;
    float v[E];
    if (p.z) {
        float old[E];
#pragma unroll
        for (int e = 0; e < E; e++) old[e] = e < (int)p.to.units ? x[t + HELD_THREADS * e] : 0.0f;
        const float *z = p.z + blockIdx.x * p.ld;
        held_inverse(p.d, room, v, [&](int unit) { return z + unit * HELD_THREADS; });
#pragma unroll
        for (int e = 0; e < E; e++) {
            v[e] = held_turned(p.d, d_units, d_negative, e, v[e]);
            if (p.bias && e < (int)p.d.units) v[e] = __fadd_rn(v[e], __ldg(p.bias + t + HELD_THREADS * e));
        }
        if (p.d_norm) {
            const float scale = norm_scale(held_squares(v, p.d.units, part[0]), (size_t)n, p.eps);
#pragma unroll
            for (int e = 0; e < E; e++)
                if (e < (int)p.d.units) v[e] = v[e] * scale * __ldg(p.d_norm + t + HELD_THREADS * e);
        }
#pragma unroll
        for (int e = 0; e < E; e++) {
            v[e] = __fadd_rn(old[e], v[e]);
            if (e < (int)p.to.units) x[t + HELD_THREADS * e] = v[e];
        }
    } else {
#pragma unroll
        for (int e = 0; e < E; e++) v[e] = e < (int)p.to.units ? x[t + HELD_THREADS * e] : 0.0f;
    }
    const float scale = norm_scale(held_squares(v, p.to.units, part[1]), (size_t)n, p.eps);
#pragma unroll
    for (int e = 0; e < E; e++) {
        const float y = v[e] * scale * weight[e];
        if (p.normed && e < (int)p.to.units) p.normed[blockIdx.x * p.ldn + (size_t)(t + HELD_THREADS * e)] = y;
        v[e] = held_turned(p.to, to_units, to_negative, e, y);
    }
    held_forward(p.to, room, v); // nobody reads what held_inverse left: the sum of squares has a barrier
    held_round(p.out, p.to.units, blockIdx.x, v, reduce);
}

} // namespace

bool cuda_residual_held_fits(const struct cuda_unrotated *d, const float *weight, const struct cuda_prepared *to, size_t n)
{
    if (!weight || !to || to->type != CUDA_TYPE_I8 || !held_fits(to->rotation, n)) return false;
    return !d || (held_fits(d->rotation, n) && (uintptr_t)d->z % 16 == 0 && d->ld % 4 == 0);
}

void cuda_residual_held(cudaStream_t stream, float *x, const struct cuda_unrotated *d, const float *d_norm, const float *weight,
                        float eps, float *normed, size_t ldn, const struct cuda_prepared *to, size_t rows)
{
    held_residual p = {};
    if (d) p.d = held_of(d->rotation), p.z = d->z, p.bias = d->bias, p.ld = d->ld;
    p.to = held_of(to->rotation), p.out = prepared_of(*to);
    p.d_norm = d_norm, p.weight = weight, p.x = x, p.normed = normed, p.ldn = ldn, p.eps = eps;
    const size_t shared = held_floats(p.to.units) * sizeof(float);
    auto start = [&](auto kernel) { launch_early(stream, kernel, dim3((unsigned)rows), HELD_THREADS, shared, p); };
    p.to.units <= 8 ? start(held_residual_kernel<8>) : p.to.units <= 16 ? start(held_residual_kernel<16>) : start(held_residual_kernel<32>);
}
