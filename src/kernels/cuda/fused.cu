// Fusions of what stands between two products: each gives the bits of its parts.
#include "fused.cuh"

namespace {

// --- x += inverse(z); norm; prepare ---

constexpr unsigned LEAST_THREADS = 256; // what sum_of_squares needs

struct residual {
    unrotated d; // z NULL: nothing is added
    prepared to;
    const float *d_norm, *weight;
    float *x, *normed;
    size_t ldn, floats; // floats of the row in shared memory
    int n, d_words;
    float eps;
};

// Constants come before the wait for the kernel before, what that kernel wrote is read at once behind it: a loop that loads
// and stores by turns would wait for each load.
constexpr int EACH = 4; // elements of a thread that are read ahead

template <typename Out> __global__ void __launch_bounds__(512) residual_kernel(const __grid_constant__ residual p)
{
    extern __shared__ __align__(16) float row[];
    __shared__ float part[8];
    __shared__ uint32_t reduce[2];
    const int t = (int)threadIdx.x, threads = (int)blockDim.x;
    float *weight = row + p.floats;
    uint32_t *d_words = reinterpret_cast<uint32_t *>(weight + p.n), *to_words = d_words + p.d_words;
    if (t < 2) reduce[t] = 0;
    if (p.d.z) stage_signs(p.d.r, d_words);
    if (p.weight) {
        stage_signs(p.to.r, to_words);
        for (int i = t; i < p.n; i += threads) weight[i] = __ldg(p.weight + i);
    }
    if (p.d.z) let_next_start();
    wait_for_previous();
    if (!p.d.z) let_next_start(); // the first of a step: what the step was given is there for all that follow, before they wait
    float *x = p.x + blockIdx.x * (size_t)p.n;
    float old[EACH];
#pragma unroll
    for (int e = 0; e < EACH; e++) old[e] = t + e * threads < p.n ? x[t + e * threads] : 0.0f;
    if (p.d.z) {
        unrotate_into(p.d, blockIdx.x, t, threads, row);
        float scale = 1.0f;
        if (p.d_norm) {
            for (int i = t; i < p.n; i += threads) row[place_of(i)] = output_of(p.d, d_words, i, row[place_of(i)]);
            __syncthreads();
            scale = norm_scale(sum_of_squares(row, p.n, part), (size_t)p.n, p.eps);
        }
        auto add_to = [&](int i, float before) { // each thread's own elements: no barrier
            const float v = row[place_of(i)], d = p.d_norm ? v * scale * __ldg(p.d_norm + i) : output_of(p.d, d_words, i, v);
            row[place_of(i)] = x[i] = __fadd_rn(before, d);
        };
#pragma unroll
        for (int e = 0; e < EACH; e++)
            if (t + e * threads < p.n) add_to(t + e * threads, old[e]);
        for (int i = t + EACH * threads; i < p.n; i += threads) add_to(i, x[i]);
    } else {
#pragma unroll
        for (int e = 0; e < EACH; e++)
            if (t + e * threads < p.n) row[place_of(t + e * threads)] = old[e];
        for (int i = t + EACH * threads; i < p.n; i += threads) row[place_of(i)] = x[i];
    }
    if (!p.weight) return;
    __syncthreads();
    const float scale = norm_scale(sum_of_squares(row, p.n, part), (size_t)p.n, p.eps);
#pragma unroll 2
    for (int i = t; i < p.n; i += threads) {
        const float v = row[place_of(i)] * scale * weight[i];
        row[place_of(i)] = input_of(p.to, to_words, i, v);
        if (p.normed) p.normed[blockIdx.x * p.ldn + (size_t)i] = v;
    }
    prepare_from<Out>(p.to, blockIdx.x, row, reduce);
}

// --- gate(inverse(z_gate)) * inverse(z_up); prepare ---

struct gated {
    unrotated part[2]; // gate, up
    prepared to;
    float *y; // NULL: not wanted
    size_t ldy;
    int n, half; // threads of either part
    int words;   // of the signs of either part
    size_t floats;
};

template <typename Out, bool GELU> __global__ void __launch_bounds__(1024) gated_kernel(const __grid_constant__ gated p)
{
    extern __shared__ __align__(16) float row[];
    __shared__ uint32_t reduce[2];
    const int t = (int)threadIdx.x, mine = t >= p.half;
    float *other = row + p.floats;
    uint32_t *words[2], *to_words;
    words[0] = reinterpret_cast<uint32_t *>(other + p.floats);
    words[1] = words[0] + p.words;
    to_words = words[1] + p.words;
    if (t < 2) reduce[t] = 0;
    stage_signs(p.part[0].r, words[0]);
    stage_signs(p.part[1].r, words[1]);
    stage_signs(p.to.r, to_words);
    let_next_start();
    wait_for_previous();
    unrotate_into(p.part[mine], blockIdx.x, t - mine * p.half, p.half, mine ? other : row);
#pragma unroll 2
    for (int i = t; i < p.n; i += (int)blockDim.x) {
        const float v = gate_value<GELU>(output_of(p.part[0], words[0], i, row[place_of(i)]),
                                         output_of(p.part[1], words[1], i, other[place_of(i)]));
        row[place_of(i)] = input_of(p.to, to_words, i, v);
        if (p.y) p.y[blockIdx.x * p.ldy + (size_t)i] = v;
    }
    prepare_from<Out>(p.to, blockIdx.x, row, reduce);
}

// --- q, k, v: inverse, norms of heads, positions, append ---

constexpr int MOST_ANGLES = 512; // half a head

struct projections {
    unrotated part[3];
    cuda_projections p;
    size_t floats; // of the row in shared memory
};

__global__ void __launch_bounds__(512) projections_kernel(const __grid_constant__ projections s)
{
    extern __shared__ __align__(16) float row[];
    __shared__ float cosine[MOST_ANGLES], sine[MOST_ANGLES];
    const cuda_projections &p = s.p;
    const int which = (int)blockIdx.y, t = (int)threadIdx.x, threads = (int)blockDim.x;
    const unrotated &u = s.part[which];
    const int dim = (int)p.shape.head_dim, heads = (int)(which == 0 ? p.shape.heads : p.shape.kv_heads);
    uint32_t *words = reinterpret_cast<uint32_t *>(row + s.floats);
    stage_signs(u.r, words);
    let_next_start();
    wait_for_previous();
    const cuda_attention_row at = p.rows[blockIdx.x];
    const int half = (int)p.rotated / 2;
    const size_t angle = (size_t)at.position * (size_t)half;
    void *page = nullptr; // where k or v goes; all that is read in a chain is read before the rotation
    cuda_kv_view kv = {};
    if (which > 0) {
        kv = at.kv[p.layer];
        page = (which == 1 ? kv.k_pages : kv.v_pages)[at.position / kv.page_tokens];
    }
    if (which < 2) // the angles: one for each pair of a head
        for (int i = t; i < half; i += threads) cosine[i] = p.cosine[angle + (size_t)i], sine[i] = p.sine[angle + (size_t)i];
    unrotate_into(u, blockIdx.x, t, threads, row);
    for (int i = t; i < heads * dim; i += threads) row[place_of(i)] = output_of(u, words, i, row[place_of(i)]);
    const float *norm = which == 0 ? p.q_norm : which == 1 ? p.k_norm : nullptr;
    if (norm) { // a warp does a head, in the order of rms_norm_kernel
        __syncthreads();
        const int lane = t % 32;
        for (int h = t / 32; h < heads; h += threads / 32) {
            float mine = 0.0f;
            for (int i = 0; i * 32 < dim; i++) {
                const float v = i * 32 + lane < dim ? row[place_of(h * dim + i * 32 + lane)] : 0.0f;
                const float sum = warp_sum(fmaf(v, v, 0.0f));
                if (lane == i) mine = sum;
            }
            const float scale = norm_scale(warp_sum(mine), (size_t)dim, p.eps);
            for (int i = lane; i < dim; i += 32) {
                float *v = row + place_of(h * dim + i);
                *v = *v * scale * __ldg(norm + i);
            }
        }
    }
    __syncthreads();
    if (which < 2 && half > 0) {
        for (int i = t; i < heads * half; i += threads) {
            const int head = i / half, k = i % half;
            float *pa = row + place_of(head * dim + k), *pb = row + place_of(head * dim + k + half);
            const float a = *pa, b = *pb;
            *pa = __fsub_rn(__fmul_rn(a, cosine[k]), __fmul_rn(b, sine[k]));
            *pb = __fadd_rn(__fmul_rn(b, cosine[k]), __fmul_rn(a, sine[k]));
        }
        __syncthreads();
    }
    if (which == 0) {
        for (int i = t; i < heads * dim; i += threads) p.query[blockIdx.x * p.ldq + (size_t)i] = row[place_of(i)];
        return;
    }
    if (kv.type == 2) { // packed by the kernel behind this one
        float *to = (which == 1 ? p.key : p.value) + blockIdx.x * (size_t)(heads * dim);
        for (int i = t; i < heads * dim; i += threads) to[i] = row[place_of(i)];
        return;
    }
    const size_t slot = at.position % kv.page_tokens;
    for (int i = t; i < heads * dim; i += threads) {
        const size_t to = ((size_t)(i / dim) * kv.page_tokens + slot) * (size_t)dim + (size_t)(i % dim);
        if (kv.type == 1)
            static_cast<uint16_t *>(page)[to] = f16_from_f32(row[place_of(i)]);
        else
            static_cast<float *>(page)[to] = row[place_of(i)];
    }
}

constexpr size_t SHARED_LIMIT = 224 << 10;
constexpr size_t WIDE_ROWS = 32; // more rows have a multiprocessor each

} // namespace

bool cuda_residual_fits(const struct cuda_unrotated *d, const struct cuda_prepared *to, size_t n)
{
    if (to->rotation.count == 0 && to->type == CUDA_TYPE_I8) return false;
    size_t most = n;
    if (d->rotation.padded > most) most = d->rotation.padded;
    if (to->rotation.padded > most) most = to->rotation.padded;
    return (row_floats(most) + n) * sizeof(float) + sign_bytes(d->rotation) + sign_bytes(to->rotation) <= SHARED_LIMIT;
}

void cuda_residual(cudaStream_t stream, float *x, size_t n, const struct cuda_unrotated *d, const float *d_norm,
                   const float *weight, float eps, float *normed, size_t ldn, const struct cuda_prepared *to, size_t rows)
{
    if (rows == 0) return;
    if (cuda_residual_held_fits(d, weight, to, n)) {
        cuda_residual_held(stream, x, d, d_norm, weight, eps, normed, ldn, to, rows);
        return;
    }
    residual p = {};
    size_t floats = n;
    if (d) {
        p.d = unrotated_of(*d);
        if (p.d.r.padded > floats) floats = p.d.r.padded;
    }
    if (to) {
        p.to = prepared_of(*to);
        if (p.to.r.padded > floats) floats = p.to.r.padded;
    }
    p.d_norm = d_norm, p.weight = weight, p.x = x, p.normed = normed, p.ldn = ldn, p.n = (int)n, p.eps = eps;
    p.floats = row_floats(floats);
    p.d_words = (int)(sign_bytes(p.d.r) / sizeof(uint32_t));
    const size_t shared = (p.floats + n) * sizeof(float) + sign_bytes(p.d.r) + sign_bytes(p.to.r);
    const dim3 grid((unsigned)rows);
    const unsigned threads = n >= 2048 ? 512 : LEAST_THREADS;
    switch (to ? to->type : CUDA_TYPE_F32) {
    case CUDA_TYPE_I8: launch_early(stream, residual_kernel<int8_t>, grid, threads, shared, p); break;
    case CUDA_TYPE_BF16: launch_early(stream, residual_kernel<half_bits<true>>, grid, threads, shared, p); break;
    default: launch_early(stream, residual_kernel<float>, grid, threads, shared, p); break;
    }
}

bool cuda_gated_fits(const struct cuda_unrotated *gate, const struct cuda_unrotated *up, const struct cuda_prepared *to)
{
    if (to->rotation.count == 0 && to->type == CUDA_TYPE_I8) return false;
    // the two halves of a block of threads meet at the same barriers
    if (gate->rotation.count != up->rotation.count || gate->rotation.padded != up->rotation.padded) return false;
    const size_t most = to->rotation.padded > gate->rotation.padded ? to->rotation.padded : gate->rotation.padded;
    return (2 * row_floats(most) + 3 * CUDA_SIGN_WORDS(most)) * sizeof(float) <= SHARED_LIMIT;
}

void cuda_gated(cudaStream_t stream, const struct cuda_unrotated *gate, const struct cuda_unrotated *up, bool gelu, size_t n,
                float *y, size_t ldy, const struct cuda_prepared *to, size_t rows)
{
    if (rows == 0) return;
    if (rows <= WIDE_ROWS && cuda_gated_wide_fits(gate, up, to, n)) {
        cuda_gated_wide(stream, gate, up, gelu, y, ldy, to, rows);
        return;
    }
    gated p = {{unrotated_of(*gate), unrotated_of(*up)}, prepared_of(*to), y, ldy, (int)n, n >= 4096 ? 512 : 256, 0, 0};
    size_t floats = n;
    if (p.part[0].r.padded > floats) floats = p.part[0].r.padded;
    if (p.to.r.padded > floats) floats = p.to.r.padded;
    p.floats = row_floats(floats);
    p.words = (int)(sign_bytes(p.part[0].r) / sizeof(uint32_t));
    const size_t shared = 2 * p.floats * sizeof(float) + 2 * sign_bytes(p.part[0].r) + sign_bytes(p.to.r);
    const dim3 grid((unsigned)rows);
    auto start = [&](auto kernel) { launch_early(stream, kernel, grid, 2 * (unsigned)p.half, shared, p); };
    switch (to->type) {
    case CUDA_TYPE_I8: gelu ? start(gated_kernel<int8_t, true>) : start(gated_kernel<int8_t, false>); break;
    case CUDA_TYPE_BF16:
        gelu ? start(gated_kernel<half_bits<true>, true>) : start(gated_kernel<half_bits<true>, false>);
        break;
    default: gelu ? start(gated_kernel<float, true>) : start(gated_kernel<float, false>); break;
    }
}

bool cuda_project_fits(const struct cuda_unrotated *parts, const struct cuda_attention_shape *shape)
{
    for (int i = 0; i < 3; i++)
        if ((row_floats(parts[i].rotation.padded) + CUDA_SIGN_WORDS(parts[i].rotation.padded)) * sizeof(float) > SHARED_LIMIT)
            return false;
    return shape->head_dim <= 2 * MOST_ANGLES;
}

void cuda_project(cudaStream_t stream, const struct cuda_unrotated *parts, const struct cuda_projections *to, size_t rows)
{
    if (rows == 0) return;
    projections p = {{unrotated_of(parts[0]), unrotated_of(parts[1]), unrotated_of(parts[2])}, *to, 0};
    size_t floats = 0;
    for (int i = 0; i < 3; i++)
        if (p.part[i].r.padded > floats) floats = p.part[i].r.padded;
    p.floats = row_floats(floats);
    const size_t shared = (p.floats + CUDA_SIGN_WORDS(floats)) * sizeof(float);
    launch_early(stream, projections_kernel, dim3((unsigned)rows, 3), floats > 2048 ? 512 : 256, shared, p);
}
