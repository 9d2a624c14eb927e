// gated of fused.cu for int8 inputs, a row over a cluster of blocks of threads. The stages of a Hadamard go from small strides
// to large ones: those within a group of 32 elements are done by the block that has the group, those across groups by the block
// that has the elements' places within their groups, and the elements change hands through distributed shared memory in between:
// twice for the two inverse rotations and the gate, twice for the forward one. The bits are those of gated_kernel.
#include "cluster.cuh"
#include "fused.cuh"

namespace {

constexpr int WIDE_THREADS = 512;
constexpr int MOST_GROUPS = 1024; // of a row: 32768 elements
constexpr int SEGMENT = 16;       // groups of a thread, whose stages need no exchange

struct wide_row {
    cuda_rotation r; // the same blocks for all three
    const float *z[2], *bias[2], *signs[3];
    prepared to;
    float *y; // NULL: not wanted
    size_t ld[2], ldy;
    int groups;
};

// In shared memory places stand one behind the other, of each the groups, four words of padding behind every 16.
__device__ __forceinline__ int at_group(int group)
{
    return group + (group >> 4) * 4;
}
__host__ __device__ __forceinline__ int place_stride(int groups)
{
    const int floats = (groups + SEGMENT - 1) / SEGMENT * (SEGMENT + 4);
    return floats + (16 - floats % 32 + 32) % 32; // two places are 16 banks apart
}

template <int N, int STAGES> __device__ __forceinline__ void stages(float (&v)[N], int count)
{
#pragma unroll
    for (int bit = 0; bit < STAGES; bit++) {
        if (bit >= count) break;
#pragma unroll
        for (int e = 0; e < N; e++)
            if ((e >> bit & 1) == 0) {
                const float a = v[e], b = v[e | 1 << bit];
                v[e] = __fadd_rn(a, b);
                v[e | 1 << bit] = __fsub_rn(a, b);
            }
    }
}

// The stages within a group, of which four neighbouring lanes have eight elements each.
__device__ __forceinline__ void within_group(float (&v)[8])
{
    stages<8, 3>(v, 3);
#pragma unroll
    for (int bit = 1; bit < 4; bit *= 2) {
        const float sign = threadIdx.x & (unsigned)bit ? -1.0f : 1.0f; // a product with it is exact: one rounding, as of a sum
#pragma unroll
        for (int e = 0; e < 8; e++) v[e] = fmaf(v[e], sign, __shfl_xor_sync(0xffffffffu, v[e], bit));
    }
}
// To the blocks that have their places; to: this block's array of them.
template <int PLACES> __device__ __forceinline__ void send_places(const float (&v)[8], int group, int stride, float *to)
{
    const int quarter = (int)threadIdx.x & 3;
#pragma unroll
    for (int e = 0; e < 8; e += PLACES) {
        float *there = at_rank(to + at_group(group), (quarter * 8 + e) / PLACES);
#pragma unroll
        for (int p = 0; p < PLACES; p++) there[p * stride] = v[e + p];
    }
}

// A thread's 16 groups of a place: adjacent ones, then of all segments of their block.
struct segment {
    int first, step, log2; // the block's first one's place in memory; log2 of the block's segments
    float scale;
    bool half; // a block of eight groups
};
__device__ __forceinline__ segment segment_of(const cuda_rotation &r, int index)
{
    int block = 0;
    while (block + 1 < (int)r.count && index * SEGMENT * 32 >= (int)r.begin[block + 1]) block++;
    segment s;
    const int begin = (int)r.begin[block] / (32 * SEGMENT);
    s.log2 = max((int)r.log2[block] - 9, 0);
    s.first = begin * (SEGMENT + 4) + ((index - begin) << (4 - s.log2));
    s.scale = r.scale[block];
    s.half = r.log2[block] == 8;
    return s;
}
__device__ __forceinline__ int in_segment(const segment &s, int e)
{
    return s.first + (e & ((1 << s.log2) - 1)) * (SEGMENT + 4) + (e >> s.log2);
}

// The stages across groups of `places` places in shared memory; take(p, segment, v): what becomes of a thread's scaled 16. A
// barrier stands before the last stages, none behind.
template <typename Take> __device__ __forceinline__ void across_groups(const wide_row &s, float *rows, int places, int stride, const Take &take)
{
    const int segments = (s.groups + SEGMENT - 1) / SEGMENT, tasks = places * segments;
    for (int i = (int)threadIdx.x; i < tasks; i += WIDE_THREADS) {
        const int index = i % segments;
        float4 *at = reinterpret_cast<float4 *>(rows + i / segments * stride + index * (SEGMENT + 4));
        float v[SEGMENT];
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const float4 f = at[e];
            v[4 * e] = f.x, v[4 * e + 1] = f.y, v[4 * e + 2] = f.z, v[4 * e + 3] = f.w;
        }
        stages<SEGMENT, 4>(v, segment_of(s.r, index).half ? 3 : 4);
#pragma unroll
        for (int e = 0; e < 4; e++) at[e] = make_float4(v[4 * e], v[4 * e + 1], v[4 * e + 2], v[4 * e + 3]);
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < tasks; i += WIDE_THREADS) {
        const segment seg = segment_of(s.r, i % segments);
        float *at = rows + i / segments * stride;
        float v[SEGMENT];
#pragma unroll
        for (int e = 0; e < SEGMENT; e++) v[e] = at[in_segment(seg, e)];
        stages<SEGMENT, 4>(v, seg.log2);
#pragma unroll
        for (int e = 0; e < SEGMENT; e++) v[e] = __fmul_rn(v[e], seg.scale);
        take(i / segments, seg, v);
    }
}

template <bool GELU, int SHARE> __global__ void __launch_bounds__(WIDE_THREADS, 1) gated_wide_kernel(const __grid_constant__ wide_row s)
{
    constexpr int PLACES = 32 / SHARE;
    extern __shared__ __align__(16) float room[];
    __shared__ uint32_t largest;
    __shared__ int total;
    const int rank = cluster_rank(), t = (int)threadIdx.x, lane = t & 31, groups = s.groups, stride = place_stride(groups);
    const int mine = groups / SHARE; // groups of this block
    const size_t row = blockIdx.x / SHARE;
    float *rows = room, *whole = rows + 2 * PLACES * stride; // [gate, up][PLACES][stride]; [mine][36]: whole groups
    uint32_t *words = reinterpret_cast<uint32_t *>(whole + mine * 36); // [3][1 + groups]
    if (t == 0) largest = 0, total = 0;
#pragma unroll
    for (int k = 0; k < 3; k++)
        for (int i = t; i <= groups; i += WIDE_THREADS)
            words[k * (groups + 1) + i] = __ldg(reinterpret_cast<const uint32_t *>(s.signs[k] + groups * 32) + i);
    for (int i = t; i < 2 * PLACES * SEGMENT; i += WIDE_THREADS) // what a last half segment has not
        if ((groups & 8) != 0 && i % SEGMENT >= 8) rows[i / SEGMENT * stride + at_group(groups - 8 + i % SEGMENT)] = 0.0f;
    cluster_arrive(); // all blocks are there and their sums are zero
    let_next_start();
    wait_for_previous();
    const int tasks = mine * 4;
    for (int i = t; i - lane < 2 * tasks; i += WIDE_THREADS) {
        const int part = i >= tasks, group = rank * mine + (i - part * tasks) / 4;
        const bool on = i < 2 * tasks;
        float v[8] = {};
        if (on) {
            const float4 *z = reinterpret_cast<const float4 *>((part ? s.z[1] : s.z[0]) + row * (part ? s.ld[1] : s.ld[0]) + group * 32 + (i & 3) * 8);
            const float4 a = z[0], b = z[1];
            v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
        }
        within_group(v);
        if (i - t == 0) cluster_wait();
        if (on) send_places<PLACES>(v, group, stride, rows + part * PLACES * stride);
    }
    if (t - lane >= 2 * tasks) cluster_wait(); // warps without a task
    cluster_arrive();
    cluster_wait();
    across_groups(s, rows, 2 * PLACES, stride, [&](int p, const segment &seg, const float(&v)[SEGMENT]) {
#pragma unroll
        for (int e = 0; e < SEGMENT; e++) rows[p * stride + in_segment(seg, e)] = v[e];
    });
    __syncthreads();
    for (int i = t; i < groups * (PLACES / 4); i += WIDE_THREADS) {
        const int group = i % groups, first = i / groups * 4, place = rank * PLACES + first, owner = group / mine;
        float y[4], turned[4];
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int element = group * 32 + place + e;
            float part[2];
#pragma unroll
            for (int k = 0; k < 2; k++) {
                const float v = rows[(k * PLACES + first + e) * stride + at_group(group)];
                const uint32_t *w = words + k * (groups + 1);
                part[k] = w[0] == 0 ? __fmul_rn(__ldg(s.signs[k] + element), v)
                                    : __uint_as_float(__float_as_uint(v) ^ (w[1 + group] << (31 - place - e) & 0x80000000u));
                if (s.bias[k]) part[k] = __fadd_rn(part[k], __ldg(s.bias[k] + element));
            }
            y[e] = gate_value<GELU>(part[0], part[1]);
            const uint32_t *w = words + 2 * (groups + 1);
            turned[e] = w[0] == 0 ? __fmul_rn(__ldg(s.signs[2] + element), y[e])
                                  : __uint_as_float(__float_as_uint(y[e]) ^ (w[1 + group] << (31 - place - e) & 0x80000000u));
            if (s.y) s.y[row * s.ldy + (size_t)element] = y[e];
        }
        *reinterpret_cast<float4 *>(at_rank(whole + (group - owner * mine) * 36 + place, owner)) =
            make_float4(turned[0], turned[1], turned[2], turned[3]);
    }
    cluster_arrive();
    cluster_wait();
    for (int i = t; i - lane < tasks; i += WIDE_THREADS) {
        float v[8] = {};
        if (i < tasks) {
            const float4 *at = reinterpret_cast<const float4 *>(whole + i / 4 * 36 + (i & 3) * 8);
            const float4 a = at[0], b = at[1];
            v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
        }
        within_group(v);
        if (i < tasks) send_places<PLACES>(v, rank * mine + i / 4, stride, rows);
    }
    cluster_arrive();
    cluster_wait();
    uint32_t most = 0;
    across_groups(s, rows, PLACES, stride, [&](int p, const segment &seg, const float(&v)[SEGMENT]) {
#pragma unroll
        for (int e = 0; e < SEGMENT; e++) {
            rows[p * stride + in_segment(seg, e)] = v[e];
            most = max(most, __float_as_uint(v[e]) & 0x7fffffffu);
        }
    });
    most = __reduce_max_sync(0xffffffffu, most);
    if (lane < SHARE && most != 0) atomicMax(at_rank(&largest, lane), most);
    cluster_arrive();
    cluster_wait();
    float inverse = 0.0f;
    const float row_scale = i8_scale(largest, &inverse);
    int8_t *data = static_cast<int8_t *>(s.to.data) + row * s.to.stride;
    int sum = 0;
    for (int i = t; i < groups * (PLACES / 4); i += WIDE_THREADS) {
        const int group = i % groups, first = i / groups * 4;
        uint32_t word = 0;
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const float v = rows[(first + e) * stride + at_group(group)];
            const int q = inverse == 0.0f ? 0 : __float2int_rn(__fmul_rn(v, inverse));
            sum += q;
            word |= ((uint32_t)q & 0xffu) << (8 * e);
        }
        *reinterpret_cast<uint32_t *>(data + group * 32 + rank * PLACES + first) = word;
    }
    sum = __reduce_add_sync(0xffffffffu, sum);
    if (lane == 0) atomicAdd(at_rank(&total, 0), sum);
    cluster_arrive();
    if (rank == 0) // zero to the stride
        for (int i = groups * 32 + 4 * t; i < (int)s.to.stride; i += 4 * WIDE_THREADS) *reinterpret_cast<uint32_t *>(data + i) = 0;
    cluster_wait(); // nobody leaves while another writes to it
    if (rank == 0 && t == 0) s.to.scale[row] = row_scale, s.to.sum[row] = total;
}

constexpr size_t WIDEST_ROWS = 8; // a multiprocessor has one block of theirs

bool same_blocks(const cuda_rotation &a, const cuda_rotation &b)
{
    if (a.size != b.size || a.padded != b.padded || a.count != b.count) return false;
    for (uint32_t i = 0; i < a.count; i++)
        if (a.begin[i] != b.begin[i] || a.log2[i] != b.log2[i] || a.scale[i] != b.scale[i]) return false;
    return true;
}

} // namespace

bool cuda_gated_wide_fits(const struct cuda_unrotated *gate, const struct cuda_unrotated *up, const struct cuda_prepared *to, size_t n)
{
    const cuda_rotation &r = to->rotation;
    if (to->type != CUDA_TYPE_I8 || r.count == 0 || r.size != n || r.padded != n || n > MOST_GROUPS * 32) return false;
    if (!same_blocks(r, gate->rotation) || !same_blocks(r, up->rotation)) return false;
    for (uint32_t i = 0; i < r.count; i++)
        if (r.log2[i] < 8 || r.log2[i] > 13) return false;
    const cuda_unrotated *both[2] = {gate, up};
    for (int k = 0; k < 2; k++)
        if ((uintptr_t)both[k]->z % 16 != 0 || both[k]->ld % 4 != 0) return false;
    return has_clusters();
}

void cuda_gated_wide(cudaStream_t stream, const struct cuda_unrotated *gate, const struct cuda_unrotated *up, bool gelu, float *y,
                     size_t ldy, const struct cuda_prepared *to, size_t rows)
{
    wide_row s = {to->rotation,
                  {gate->z, up->z},
                  {gate->bias, up->bias},
                  {gate->rotation.signs, up->rotation.signs, to->rotation.signs},
                  prepared_of(*to),
                  y,
                  {gate->ld, up->ld},
                  ldy,
                  (int)(to->rotation.padded / 32)};
    auto start = [&](auto kernel, int share) {
        const size_t floats = (size_t)(64 / share * place_stride(s.groups) + s.groups / share * 36 + 3 * (s.groups + 1));
        launch_cluster(stream, kernel, (unsigned)share, dim3((unsigned)(rows * (size_t)share)), WIDE_THREADS, floats * sizeof(float), s);
    };
    if (rows <= WIDEST_ROWS)
        gelu ? start(gated_wide_kernel<true, 8>, 8) : start(gated_wide_kernel<false, 8>, 8);
    else
        gelu ? start(gated_wide_kernel<true, 4>, 4) : start(gated_wide_kernel<false, 4>, 4);
}
