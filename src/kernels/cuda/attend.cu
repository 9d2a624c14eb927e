// project and attention of a step's rows in one kernel (fused.cu, attention.cu): a cluster has a row, a block of threads one
// head of its keys. Each block undoes the rotation of the row's q, k and v for itself, in registers (held.cuh), stores its
// head's key and value, attends with the query heads that share them, and hands the result to the first block, which rotates
// and rounds it for the next product. The bits are those of the parts. For rows of one piece.
#include "attention.cuh"
#include "cluster.cuh"
#include "held.cuh"

namespace {

constexpr int MOST_TURNED = 128;   // rotated dimensions of a head
constexpr size_t FEW_BLOCKS = 64; // a multiprocessor has one of them

struct attend_row {
    held_rotation r; // of q, k and v side by side
    const float *z[3], *bias[3], *signs[3];
    size_t ld[3];
    int first[4]; // unit of each
    cuda_projections p;
    held_rotation out;
    prepared to;
    float *y; // NULL: not wanted
    size_t ldy;
};

// Which of q, k, v has a unit.
__device__ __forceinline__ int part_of(const attend_row &s, int unit)
{
    return (unit >= s.first[1]) + (unit >= s.first[2]);
}

template <int DIM> struct attend_room {
    float head[HEADS + 2][DIM]; // of q, then k and v
    float cosine[MOST_TURNED / 2], sine[MOST_TURNED / 2];
    shared_tiles<DIM> tiles;
};

// The heads of this block: norm and position, in place.
template <int DIM> __device__ __forceinline__ void turn_heads(const attend_row &s, int heads, float (*head)[DIM], const float *cosine,
                                                              const float *sine)
{
    const int t = (int)threadIdx.x, lane = t % 32, half = (int)s.p.rotated / 2;
    if (s.p.q_norm || s.p.k_norm) { // a warp does a head, in the order of rms_norm_kernel
        for (int h = t / 32; h <= heads; h += HELD_THREADS / 32) {
            const float *norm = h < heads ? s.p.q_norm : s.p.k_norm;
            if (!norm) continue;
            float *v = head[h < heads ? h : HEADS], mine = 0.0f;
#pragma unroll
            for (int i = 0; i * 32 < DIM; i++) {
                const float x = v[i * 32 + lane], sum = warp_sum(fmaf(x, x, 0.0f));
                if (lane == i) mine = sum;
            }
            const float scale = norm_scale(warp_sum(mine), (size_t)DIM, s.p.eps);
#pragma unroll
            for (int i = lane; i < DIM; i += 32) v[i] = v[i] * scale * __ldg(norm + i);
        }
        __syncthreads();
    }
    for (int i = t; i < (heads + 1) * half; i += HELD_THREADS) {
        const int h = i / half, k = i % half;
        float *v = head[h < heads ? h : HEADS];
        const float a = v[k], b = v[k + half];
        v[k] = __fsub_rn(__fmul_rn(a, cosine[k]), __fmul_rn(b, sine[k]));
        v[k + half] = __fadd_rn(__fmul_rn(b, cosine[k]), __fmul_rn(a, sine[k]));
    }
    if (half > 0) __syncthreads();
}

// BLOCKS: on a multiprocessor at least; for two of them registers spill, which costs one row 4%.
template <int DIM, int E, int BLOCKS>
__global__ void __launch_bounds__(HELD_THREADS, BLOCKS) attend_kernel(const __grid_constant__ attend_row s)
{
    extern __shared__ __align__(16) uint8_t memory[];
    attend_room<DIM> &own = *reinterpret_cast<attend_room<DIM> *>(memory);
    float *room = reinterpret_cast<float *>(memory + sizeof own); // of a row; in the first block the result's too
    __shared__ uint32_t reduce[2];
    const cuda_attention_shape &shape = s.p.shape;
    const int t = (int)threadIdx.x, kv_head = cluster_rank(), group = (int)(shape.heads / shape.kv_heads);
    const uint32_t row = blockIdx.x / shape.kv_heads;
    if (t < 2) reduce[t] = 0;
    uint32_t negative = 0, units_ok = 0;
#pragma unroll
    for (int e = 0; e < E; e++) {
        if (e >= s.first[3]) break;
        const int part = part_of(s, e), width = (s.first[part + 1] - s.first[part]) * HELD_THREADS;
        const uint32_t *words = reinterpret_cast<const uint32_t *>(s.signs[part] + width);
        if (__ldg(words) != 0) units_ok |= 1u << e;
        negative |= (__ldg(words + 1 + t / 32 + 8 * (e - s.first[part])) >> (t % 32) & 1u) << e;
    }
    bool out_units;
    const uint32_t out_negative = held_signs<E>(s.out, &out_units);
    // What the step has from its beginning on, behind its first kernel (fused.cu): where the row stands, what earlier steps cached.
    const cuda_attention_row at = s.p.rows[row];
    const int half = (int)s.p.rotated / 2;
    const cuda_kv_view kv = at.kv[s.p.layer];
    const span keys = span_of(at.position, shape.window);
    for (int i = t; i < half; i += HELD_THREADS) {
        own.cosine[i] = s.p.cosine[(size_t)at.position * (size_t)half + (size_t)i];
        own.sine[i] = s.p.sine[(size_t)at.position * (size_t)half + (size_t)i];
    }
    for (uint32_t i = (uint32_t)t; i < (keys.end - keys.begin) * (DIM / 64) * 2; i += HELD_THREADS) { // a line is 64 numbers
        const uint32_t token = keys.begin + i / 2 / (DIM / 64);
        const uint16_t *line = static_cast<const uint16_t *>((i & 1 ? kv.v_pages : kv.k_pages)[token / kv.page_tokens]) +
                               kv_offset(kv, (uint32_t)kv_head, token, DIM) + i / 2 % (DIM / 64) * 64;
        asm volatile("prefetch.global.L2 [%0];" ::"l"(line));
    }
    let_next_start();
    wait_for_previous();
    float v[E];
    held_inverse(s.r, room, v, [&](int unit) {
        const int part = part_of(s, unit);
        return s.z[part] + row * s.ld[part] + (size_t)(unit - s.first[part]) * HELD_THREADS;
    });
    for (int i = t; i < (HEADS - group) * DIM; i += HELD_THREADS) own.head[group][i] = 0.0f; // queries that are not there
#pragma unroll
    for (int e = 0; e < E; e++) {
        if (e >= s.first[3]) break;
        const int part = part_of(s, e), i = (e - s.first[part]) * HELD_THREADS + t;
        const int h = i / DIM - kv_head * (part == 0 ? group : 1);
        if (h < 0 || h >= (part == 0 ? group : 1)) continue;
        float x = v[e];
        x = units_ok >> e & 1 ? __uint_as_float(__float_as_uint(x) ^ (negative << (31 - e) & 0x80000000u)) : __fmul_rn(__ldg(s.signs[part] + i), x);
        if (s.bias[part]) x = __fadd_rn(x, __ldg(s.bias[part] + i));
        own.head[part == 0 ? h : HEADS - 1 + part][i % DIM] = x;
    }
    cluster_arrive(); // this block has read its room
    __syncthreads();
    turn_heads<DIM>(s, group, own.head, own.cosine, own.sine);
    const uint32_t page = at.position / kv.page_tokens;
    if (t < 2 * DIM) {
        const size_t to = kv_offset(kv, (uint32_t)kv_head, at.position, DIM) + (size_t)(t % DIM);
        static_cast<uint16_t *>((t < DIM ? kv.k_pages : kv.v_pages)[page])[to] = f16_from_f32(own.head[HEADS + t / DIM][t % DIM]);
    }
    split_query<DIM>(own.head[0], own.tiles);
    __syncthreads(); // key and value are there too
    const piece tokens = {keys.begin, keys.end};
    tiles_state<DIM> state;
    state.maximum = -INFINITY, state.sum = 0.0f;
#pragma unroll
    for (int i = 0; i < DIM / 8 * 4; i++) state.out[i / 4][i % 4] = 0.0f;
    if (t < THREADS) {
        attend_tiles<DIM, true>(kv, (uint32_t)kv_head, tokens, shape, own.tiles, state);
        share_warp<DIM>(state, group, own.tiles);
    }
    __syncthreads();
    cluster_wait();
    for (int i = t; i < group * DIM; i += HELD_THREADS) { // as a merge of one piece
        const int h = i / DIM, at_row = (kv_head * group + h) * DIM + i % DIM;
        const merged_warps m = merge_of<DIM>(own.tiles, h, i % DIM);
        float largest = m.maximum, total = 0.0f;
        if (shape.sinks) largest = fmaxf(shape.sinks[kv_head * group + h], m.maximum);
        if (shape.sinks) total = expf(shape.sinks[kv_head * group + h] - largest);
        const float factor = expf(m.maximum - largest);
        total = fmaf(m.sum, factor, total);
        const float y = fmaf(m.value, factor, 0.0f) / total;
        if (s.y) s.y[row * s.ldy + (size_t)at_row] = y;
        *at_rank(room + held_at(at_row), 0) = y;
    }
    cluster_arrive();
    cluster_wait();
    if (kv_head != 0) return; // nobody reads or writes its memory any more
#pragma unroll
    for (int e = 0; e < E; e++)
        v[e] = e < (int)s.out.units ? held_turned(s.out, out_units, out_negative, e, room[held_at(t + HELD_THREADS * e)]) : 0.0f;
    held_forward(s.out, room, v);
    held_round(s.to, s.out.units, row, v, reduce);
}

template <int DIM> void start_attend(cudaStream_t stream, const attend_row &s, size_t rows)
{
    const uint32_t units = s.first[3] > (int)s.out.units ? (uint32_t)s.first[3] : s.out.units, blocks = s.p.shape.kv_heads;
    const size_t shared = sizeof(attend_room<DIM>) + held_floats(units) * sizeof(float);
    auto start = [&](auto kernel) { launch_cluster(stream, kernel, blocks, dim3((unsigned)rows * blocks), HELD_THREADS, shared, s); };
    if (rows * blocks <= FEW_BLOCKS)
        units <= 8 ? start(attend_kernel<DIM, 8, 1>) : units <= 16 ? start(attend_kernel<DIM, 16, 1>) : start(attend_kernel<DIM, 32, 1>);
    else
        units <= 8 ? start(attend_kernel<DIM, 8, 2>) : units <= 16 ? start(attend_kernel<DIM, 16, 2>) : start(attend_kernel<DIM, 32, 2>);
}

} // namespace

bool cuda_attend_fits(const struct cuda_unrotated *parts, const struct cuda_projections *p, const struct cuda_prepared *to)
{
    const cuda_attention_shape &s = p->shape;
    if (!s.tiles || s.most_tokens == 0 || s.most_tokens > LEAST || (s.head_dim != 64 && s.head_dim != 128)) return false;
    if (s.kv_heads > CLUSTER_MOST || s.heads / s.kv_heads > HEADS || p->rotated > MOST_TURNED || to->type != CUDA_TYPE_I8) return false;
    const size_t width[3] = {(size_t)s.heads * s.head_dim, (size_t)s.kv_heads * s.head_dim, (size_t)s.kv_heads * s.head_dim};
    if (width[0] + width[1] + width[2] > (size_t)HELD_THREADS * HELD_MOST || !held_fits(to->rotation, width[0])) return false;
    uint32_t first = 0;
    for (int i = 0; i < 3; i++) {
        const cuda_rotation &r = parts[i].rotation;
        if (!held_fits(r, width[i]) || (uintptr_t)parts[i].z % 16 != 0 || parts[i].ld % 4 != 0) return false;
        for (uint32_t b = 0; b < r.count; b++) // side by side they still begin at multiples of themselves
            if ((first + r.begin[b]) % (1u << r.log2[b]) != 0) return false;
        first += r.padded;
    }
    return has_clusters();
}

void cuda_attend(cudaStream_t stream, const struct cuda_unrotated *parts, const struct cuda_projections *p, float *y, size_t ldy,
                 const struct cuda_prepared *to, size_t rows)
{
    attend_row s = {};
    for (int i = 0; i < 3; i++) {
        const held_rotation part = held_of(parts[i].rotation);
        const int first = s.first[i];
        for (uint32_t e = 0; e < part.units; e++) s.r.scale[(uint32_t)first + e] = part.scale[e];
        for (int k = 0; k < 5; k++) s.r.stages[k] |= part.stages[k] << first;
        s.z[i] = parts[i].z, s.bias[i] = parts[i].bias, s.signs[i] = part.signs, s.ld[i] = parts[i].ld;
        s.first[i + 1] = first + (int)part.units;
    }
    s.r.units = (uint32_t)s.first[3];
    s.p = *p, s.out = held_of(to->rotation), s.to = prepared_of(*to), s.y = y, s.ldy = ldy;
    p->shape.head_dim == 128 ? start_attend<128>(stream, s, rows) : start_attend<64>(stream, s, rows);
}
