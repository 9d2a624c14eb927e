// gated of fused.cu for int8 inputs, a row over a cluster of eight blocks of threads. The stages of a Hadamard go from small
// strides to large ones: those within a group of 32 elements are done by the block that has the group, those across groups by
// the block that has the elements' place within their groups, and the elements change hands through distributed shared memory
// in between: twice for the two inverse rotations and the gate, twice for the forward one. The bits are those of gated_kernel.
#include "cluster.cuh"
#include "fused.cuh"

namespace {

constexpr int SHARE = CLUSTER_MOST, PLACES = 32 / SHARE; // places within a group that a block has
constexpr int UNIT = 8;                             // groups of a thread, whose stages need no exchange
constexpr int MOST_UNITS = 128;                     // of a row: 32768 elements

struct wide_row {
    cuda_rotation r; // the same blocks for all three
    const float *z[2], *bias[2], *signs[3];
    prepared to;
    float *y;
    size_t ld[2], ldy;
    int units;
};

// Stages of strides 1, 2 and 4 among a thread's eight.
__device__ __forceinline__ void eight_stages(float (&v)[UNIT])
{
#pragma unroll
    for (int bit = 0; bit < 3; bit++)
#pragma unroll
        for (int e = 0; e < UNIT; e++)
            if ((e >> bit & 1) == 0) {
                const float a = v[e], b = v[e | 1 << bit];
                v[e] = __fadd_rn(a, b);
                v[e | 1 << bit] = __fsub_rn(a, b);
            }
}
// A stage between lanes whose numbers differ in `bit`, where `on`.
__device__ __forceinline__ void lane_stage(float (&v)[UNIT], int bit, bool on)
{
    const bool upper = (threadIdx.x & bit) != 0;
#pragma unroll
    for (int e = 0; e < UNIT; e++) {
        const float other = __shfl_xor_sync(0xffffffffu, v[e], bit);
        if (on) v[e] = upper ? __fsub_rn(other, v[e]) : __fadd_rn(v[e], other);
    }
}

// Where the four places of group `group` stand in a block's memory, and which of the four words has place p: a warp that reads
// one place of 32 groups, each eighth, meets all banks.
__device__ __forceinline__ int quarter_of(int group)
{
    const int unit = group / UNIT;
    return (unit * UNIT + ((group ^ unit) & (UNIT - 1))) * PLACES;
}
__device__ __forceinline__ int word_in(int group, int p)
{
    return (p + group / (UNIT * 8)) & (PLACES - 1);
}

// The stages within a group: this thread's eight of it (lane % 4 tells which), then to the blocks that have their places.
__device__ __forceinline__ void within_groups(float (&v)[UNIT], int group, bool on, float *to)
{
    eight_stages(v);
    lane_stage(v, 1, true);
    lane_stage(v, 2, true);
    if (!on) return;
    const int first = (int)(threadIdx.x & 3) * (UNIT / PLACES), turn = word_in(group, 0);
#pragma unroll
    for (int half = 0; half < UNIT / PLACES; half++) {
        float w[PLACES];
#pragma unroll
        for (int p = 0; p < PLACES; p++) { // v[p] to word (p + turn) % 4
            const float a = turn & 1 ? v[half * PLACES + ((p + 3) & 3)] : v[half * PLACES + p];
            const float b = turn & 1 ? v[half * PLACES + ((p + 1) & 3)] : v[half * PLACES + ((p + 2) & 3)];
            w[p] = turn & 2 ? b : a;
        }
        *reinterpret_cast<float4 *>(at_rank(to + quarter_of(group), first + half)) = make_float4(w[0], w[1], w[2], w[3]);
    }
}

// The stages across groups of place p: this thread's eight groups from 8 * unit on. Scaled.
__device__ __forceinline__ void across_groups(float (&v)[UNIT], const float *from, int unit, int p, int log2, float scale, bool on)
{
#pragma unroll
    for (int e = 0; e < UNIT; e++) {
        const int group = unit * UNIT + e;
        v[e] = on ? from[quarter_of(group) + word_in(group, p)] : 0.0f;
    }
    eight_stages(v);
#pragma unroll
    for (int bit = 0; bit < 5; bit++) lane_stage(v, 1 << bit, log2 > 8 + bit);
#pragma unroll
    for (int e = 0; e < UNIT; e++) v[e] = __fmul_rn(v[e], scale);
}

// v times sign i of rotation k; negative: a bit for each of the thread's eight groups.
__device__ __forceinline__ float turned(const wide_row &s, int k, bool unit_signs, uint32_t negative, int e, int i, float v)
{
    if (!unit_signs) return __fmul_rn(__ldg(s.signs[k] + i), v);
    return __uint_as_float(__float_as_uint(v) ^ (negative << (31 - e) & 0x80000000u));
}

template <bool GELU> __global__ void __launch_bounds__(512, 1) gated_wide_kernel(const __grid_constant__ wide_row s)
{
    extern __shared__ __align__(16) float room[];
    __shared__ uint32_t largest;
    __shared__ int total;
    const int rank = cluster_rank(), t = (int)threadIdx.x, lane = t & 31, units = s.units, groups = units * UNIT;
    const size_t row = blockIdx.x / SHARE;
    float *gate = room, *up = gate + groups * PLACES, *mine = up + groups * PLACES; // mine: [units][33], this block's groups
    if (t == 0) largest = 0, total = 0;

    // as the owner of places: warps of one place and 32 units
    const int slices = (units + 31) / 32, p = t / 32 / slices, unit = t / 32 % slices * 32 + lane, place = rank * PLACES + p;
    const bool on = unit < units;
    int block = 0;
    while (block + 1 < (int)s.r.count && unit * 256 >= (int)s.r.begin[block + 1]) block++;
    const int log2 = s.r.log2[block];
    const float scale = s.r.scale[block];
    uint32_t negative[3];
    bool unit_signs[3];
#pragma unroll
    for (int k = 0; k < 3; k++) {
        const uint32_t *words = reinterpret_cast<const uint32_t *>(s.signs[k] + groups * 32);
        unit_signs[k] = __ldg(words) != 0;
        negative[k] = 0;
#pragma unroll
        for (int e = 0; e < UNIT; e++)
            if (on) negative[k] |= (__ldg(words + 1 + unit * UNIT + e) >> place & 1u) << e;
    }
    // as the owner of groups: four threads have one
    const int local = t / 4, group = rank * units + local;
    const bool has = local < units;
    cluster_arrive(); // all blocks are there and their sums are zero
    let_next_start();
    wait_for_previous();
    float v[2][UNIT];
#pragma unroll
    for (int k = 0; k < 2; k++) {
        const float4 *z = reinterpret_cast<const float4 *>(s.z[k] + row * s.ld[k] + group * 32 + (t & 3) * UNIT);
        const float4 a = has ? z[0] : make_float4(0.0f, 0.0f, 0.0f, 0.0f), b = has ? z[1] : a;
        v[k][0] = a.x, v[k][1] = a.y, v[k][2] = a.z, v[k][3] = a.w, v[k][4] = b.x, v[k][5] = b.y, v[k][6] = b.z, v[k][7] = b.w;
    }
    cluster_wait();
    within_groups(v[0], group, has, gate);
    within_groups(v[1], group, has, up);
    cluster_arrive();
    cluster_wait();
    across_groups(v[0], gate, unit, p, log2, scale, on);
    across_groups(v[1], up, unit, p, log2, scale, on);
    if (on) {
#pragma unroll
        for (int e = 0; e < UNIT; e++) {
            const int g = unit * UNIT + e, i = g * 32 + place, owner = g / units;
            float a = turned(s, 0, unit_signs[0], negative[0], e, i, v[0][e]);
            float b = turned(s, 1, unit_signs[1], negative[1], e, i, v[1][e]);
            if (s.bias[0]) a = __fadd_rn(a, __ldg(s.bias[0] + i));
            if (s.bias[1]) b = __fadd_rn(b, __ldg(s.bias[1] + i));
            const float y = gate_value<GELU>(a, b);
            if (s.y) s.y[row * s.ldy + (size_t)i] = y;
            *at_rank(mine + (g - owner * units) * 33 + place, owner) = turned(s, 2, unit_signs[2], negative[2], e, i, y);
        }
    }
    cluster_arrive();
    cluster_wait();
#pragma unroll
    for (int e = 0; e < UNIT; e++) v[0][e] = has ? mine[local * 33 + (t & 3) * UNIT + e] : 0.0f;
    within_groups(v[0], group, has, gate);
    cluster_arrive();
    cluster_wait();
    across_groups(v[0], gate, unit, p, log2, scale, on);
    uint32_t most = 0;
#pragma unroll
    for (int e = 0; e < UNIT; e++)
        if (on) most = max(most, __float_as_uint(v[0][e]) & 0x7fffffffu);
    most = __reduce_max_sync(0xffffffffu, most);
    if (lane < SHARE) atomicMax(at_rank(&largest, lane), most);
    cluster_arrive();
    cluster_wait();
    float inverse = 0.0f;
    const float row_scale = i8_scale(largest, &inverse);
    uint8_t *bytes = reinterpret_cast<uint8_t *>(mine); // group 8u + e: word e * units + u
    int sum = 0;
#pragma unroll
    for (int e = 0; e < UNIT; e++) {
        const int q = inverse == 0.0f ? 0 : __float2int_rn(__fmul_rn(v[0][e], inverse));
        sum += q;
        if (on) bytes[(e * units + unit) * 4 + p] = (uint8_t)q;
    }
    sum = __reduce_add_sync(0xffffffffu, on ? sum : 0);
    if (lane == 0) atomicAdd(at_rank(&total, 0), sum);
    cluster_arrive();
    __syncthreads();
    int8_t *data = static_cast<int8_t *>(s.to.data) + row * s.to.stride;
    for (int g = t; g < groups; g += (int)blockDim.x)
        *reinterpret_cast<uint32_t *>(data + g * 32 + rank * PLACES) = reinterpret_cast<const uint32_t *>(bytes)[g % UNIT * units + g / UNIT];
    if (rank == 0) // zero to the stride
        for (int i = groups * 32 + 4 * t; i < (int)s.to.stride; i += 4 * (int)blockDim.x) *reinterpret_cast<uint32_t *>(data + i) = 0;
    cluster_wait(); // nobody leaves while another writes to it
    if (rank == 0 && t == 0) s.to.scale[row] = row_scale, s.to.sum[row] = total;
}

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
    if (to->type != CUDA_TYPE_I8 || r.count == 0 || r.size != n || r.padded != n || n > MOST_UNITS * 256) return false;
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
                  (int)(to->rotation.padded / 256)};
    const size_t shared = ((size_t)s.units * UNIT * PLACES * 2 + (size_t)s.units * 33) * sizeof(float);
    const unsigned threads = (unsigned)(PLACES * ((s.units + 31) / 32) * 32);
    launch_cluster(stream, gelu ? gated_wide_kernel<true> : gated_wide_kernel<false>, SHARE, dim3((unsigned)rows * SHARE), threads, shared, s);
}
