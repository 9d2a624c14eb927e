// The next token of each row: kernels/draw.h. A row's logits are cut in slices for many blocks of threads: the best one, masses by
// depth, a list of those that the draw can reach; one block then finds places in the order by counting in 256 bins, eight bits of
// the rest at a time. Sums of masses are integers, so that nothing depends on who adds first.
#include "common.cuh"

namespace {

using wide = unsigned long long;

constexpr int THREADS = 256, SLICE = 2048, BUCKETS = 256, BINS = 256, FINDERS = 512;
constexpr wide WHOLE = 1ull << 39;
constexpr int SHARE_BITS = 53;
// A place in the order of a draw: order of the logit above, the id's complement below; larger is earlier.
constexpr wide BAD = ~0ull;                 // of a slice with NaN or +Inf
constexpr uint32_t NEGATIVE = 0x007fffffu;  // the order of -Inf
constexpr uint32_t POSITIVE = 0xff800000u;  // and of +Inf

struct row_state {
    wide mass[BUCKETS];
    uint32_t count[BUCKETS];
    uint32_t listed;
};

struct work {
    uint8_t *base;
    size_t row_bytes;
    uint32_t slices;
    __device__ row_state *state(uint32_t row) const
    {
        return reinterpret_cast<row_state *>(base + row * row_bytes);
    }
    __device__ wide *best(uint32_t row) const
    {
        return reinterpret_cast<wide *>(base + row * row_bytes + sizeof(row_state));
    }
    __device__ wide *list(uint32_t row) const
    {
        return best(row) + slices;
    }
    // Of the edits' ids, what their logits were.
    __device__ float *before(uint32_t row, uint32_t vocab) const
    {
        return reinterpret_cast<float *>(list(row) + vocab);
    }
};

__device__ __forceinline__ uint32_t order_of(float logit)
{
    const uint32_t bits = __float_as_uint(__fadd_rn(logit, 0.0f));
    return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

__device__ __forceinline__ float logit_of(wide place)
{
    const uint32_t order = (uint32_t)(place >> 32);
    return __uint_as_float(order ^ (order >> 31 ? 0x80000000u : 0xffffffffu));
}

__device__ __forceinline__ wide place_of(float logit, uint32_t id)
{
    return (wide)order_of(logit) << 32 | (0xffffffffu - id);
}

// walsh_smaller, b positive.
__device__ __forceinline__ float smaller(float a, float b)
{
    const int x = __float_as_int(a) & 0x7fffffff, y = __float_as_int(b);
    return __int_as_float(x < y ? x : y);
}

__device__ __forceinline__ float depth_of(float best, float logit, float per_temperature)
{
    return __fmul_rn(__fsub_rn(best, logit), per_temperature);
}

// walsh_decay and walsh_mass_of_decay, operation by operation.
__device__ __forceinline__ float decay_of(float depth)
{
    const float t = __fmul_rn(smaller(depth, 87.0f), -1.44269504f);
    const float k = __fsub_rn(__fadd_rn(t, 12582912.0f), 12582912.0f), f = __fsub_rn(t, k);
    float series = __fadd_rn(0.00133335581f, __fmul_rn(f, 0.000154035304f));
    series = __fadd_rn(0.00961812911f, __fmul_rn(f, series));
    series = __fadd_rn(0.0555041087f, __fmul_rn(f, series));
    series = __fadd_rn(0.240226507f, __fmul_rn(f, series));
    series = __fadd_rn(0.693147181f, __fmul_rn(f, series));
    series = __fadd_rn(1.0f, __fmul_rn(f, series));
    return __fmul_rn(series, __int_as_float(((int)k + 127) << 23));
}

__device__ __forceinline__ wide mass_of(float depth)
{
    return (wide)__fmul_rn(decay_of(depth), (float)WHOLE);
}

__device__ __forceinline__ int bucket_of(float depth)
{
    return (int)smaller(__fmul_rn(depth, 8.0f), (float)(BUCKETS - 1));
}

__device__ __forceinline__ float masked_logit(const cuda_draw &d, const float *logits, uint32_t i)
{
    return d.mask && !(d.mask[i / 64] >> (i % 64) & 1) ? __int_as_float((int)0xff800000) : logits[i];
}

// Of all threads of the block, the same for every one; `part` has room for a word of each warp.
template <typename COMBINE> __device__ wide block_reduce(wide x, wide *part, COMBINE combine)
{
#pragma unroll
    for (int lane = 16; lane > 0; lane >>= 1) x = combine(x, __shfl_xor_sync(0xffffffffu, x, lane));
    __syncthreads();
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
    __syncthreads();
    x = part[0];
    for (int w = 1; w < (int)blockDim.x / 32; w++) x = combine(x, part[w]);
    return x;
}

__device__ wide larger(wide a, wide b)
{
    return a > b ? a : b;
}
__device__ wide less(wide a, wide b)
{
    return a < b ? a : b;
}
__device__ wide sum(wide a, wide b)
{
    return a + b;
}

// The best place of a row, from its slices'.
__device__ wide best_of(const work &w, uint32_t row, wide *part)
{
    wide best = 0;
    for (uint32_t s = threadIdx.x; s < w.slices; s += blockDim.x) best = larger(best, w.best(row)[s]);
    return block_reduce(best, part, larger);
}

// Nothing can be drawn.
__device__ __forceinline__ bool hopeless(wide best)
{
    return best == BAD || (uint32_t)(best >> 32) == NEGATIVE;
}

// What penalties, biases and exclusions make of single logits; what they were is kept.
__global__ void __launch_bounds__(THREADS) edit_kernel(float *logits, uint32_t vocab, const cuda_draw *draws, work w)
{
    wait_for_previous();
    const cuda_draw d = draws[blockIdx.x];
    float *before = w.before(blockIdx.x, vocab);
    logits += (size_t)blockIdx.x * vocab;
    for (size_t i = threadIdx.x; i < d.edit_count; i += THREADS) {
        const cuda_logit_edit e = d.edits[i];
        float logit = logits[e.id];
        before[i] = logit;
        if (e.penalized)
            logit = __double2float_rn(logit > 0 ? __ddiv_rn((double)logit, d.penalty) : __dmul_rn((double)logit, d.penalty));
        if (e.drawn)
            logit = __double2float_rn(__dsub_rn(__dsub_rn((double)logit, d.presence), __dmul_rn(d.frequency, (double)e.drawn)));
        logit = __fadd_rn(logit, e.bias);
        logits[e.id] = e.excluded ? __int_as_float((int)0xff800000) : logit;
    }
}

__global__ void __launch_bounds__(THREADS) best_kernel(const float *logits, uint32_t vocab, const cuda_draw *draws, work w)
{
    __shared__ wide part[THREADS / 32];
    wait_for_previous();
    const uint32_t row = blockIdx.y, begin = blockIdx.x * SLICE;
    const cuda_draw d = draws[row];
    logits += (size_t)row * vocab;
    wide best = 0;
#pragma unroll
    for (int k = 0; k < SLICE / THREADS; k++) {
        const uint32_t i = begin + k * THREADS + threadIdx.x;
        if (i >= vocab) continue;
        const wide place = place_of(masked_logit(d, logits, i), i);
        const uint32_t order = (uint32_t)(place >> 32);
        best = larger(best, order >= POSITIVE || order < NEGATIVE ? BAD : place);
    }
    best = block_reduce(best, part, larger);
    if (threadIdx.x == 0) w.best(row)[blockIdx.x] = best;
    if (blockIdx.x != 0) return;
    row_state *state = w.state(row);
    state->mass[threadIdx.x] = 0;
    state->count[threadIdx.x] = 0;
    if (threadIdx.x == 0) state->listed = 0;
}
static_assert(THREADS == BUCKETS, "a thread a bucket");

__global__ void __launch_bounds__(THREADS) bucket_kernel(const float *logits, uint32_t vocab, const cuda_draw *draws, work w)
{
    // A mass in two parts of 20 bits, whose sums over a slice stay in 32.
    __shared__ uint32_t low[BUCKETS], high[BUCKETS], count[BUCKETS];
    __shared__ wide part[THREADS / 32];
    wait_for_previous();
    const uint32_t row = blockIdx.y, begin = blockIdx.x * SLICE;
    const cuda_draw d = draws[row];
    logits += (size_t)row * vocab;
    const wide place = best_of(w, row, part);
    if (d.greedy || hopeless(place)) return;
    const float best = logit_of(place);
    low[threadIdx.x] = high[threadIdx.x] = count[threadIdx.x] = 0;
    __syncthreads();
#pragma unroll
    for (int k = 0; k < SLICE / THREADS; k++) {
        const uint32_t i = begin + k * THREADS + threadIdx.x;
        if (i >= vocab) continue;
        const float depth = depth_of(best, masked_logit(d, logits, i), d.per_temperature);
        const int bucket = bucket_of(depth);
        const wide mass = mass_of(depth);
        atomicAdd(&count[bucket], 1u);
        if (mass == 0) continue;
        atomicAdd(&low[bucket], (uint32_t)mass & 0xfffffu);
        atomicAdd(&high[bucket], (uint32_t)(mass >> 20));
    }
    __syncthreads();
    if (count[threadIdx.x] == 0) return;
    row_state *state = w.state(row);
    atomicAdd(&state->count[threadIdx.x], count[threadIdx.x]);
    const wide mass = ((wide)high[threadIdx.x] << 20) + low[threadIdx.x];
    if (mass > 0) atomicAdd(&state->mass[threadIdx.x], mass);
}

// floor(share * whole / 2^53).
__device__ __forceinline__ wide drawn_mass(wide share, wide whole)
{
    return __umul64hi(share, whole) << (64 - SHARE_BITS) | share * whole >> SHARE_BITS;
}

__device__ __forceinline__ wide top_p_mass(double top_p, wide whole)
{
    const wide mass = (wide)ceil(__dmul_rn(top_p, (double)whole));
    return mass < 1 ? 1 : mass < whole ? mass : whole;
}

__device__ __forceinline__ bool unfiltered(const cuda_draw &d, uint32_t vocab)
{
    return d.top_k >= vocab && d.top_p >= 1.0 && d.least <= 1;
}

struct sums {
    wide mass;
    uint32_t count;
};

// What the threads before this one have, of the first 256, in two words of each of their warps.
__device__ sums before_thread(wide mass, uint32_t count, wide *masses, uint32_t *counts)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const wide own_mass = mass;
    const uint32_t own_count = count;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const wide m = __shfl_up_sync(0xffffffffu, mass, step);
        const uint32_t c = __shfl_up_sync(0xffffffffu, count, step);
        if (lane >= step) mass += m, count += c;
    }
    __syncthreads();
    if (lane == 31 && warp < BINS / 32) masses[warp] = mass, counts[warp] = count;
    __syncthreads();
    mass -= own_mass;
    count -= own_count;
    for (int v = 0; v < warp && v < BINS / 32; v++) mass += masses[v], count += counts[v];
    return {mass, count};
}

// Those of a row that its draw can reach: whole buckets from the top on until they have enough.
__global__ void __launch_bounds__(THREADS) list_kernel(const float *logits, uint32_t vocab, const cuda_draw *draws, work w)
{
    __shared__ wide part[THREADS / 32];
    __shared__ uint32_t counts[THREADS / 32];
    __shared__ int last;
    wait_for_previous();
    const uint32_t row = blockIdx.y, begin = blockIdx.x * SLICE;
    const cuda_draw d = draws[row];
    logits += (size_t)row * vocab;
    const wide place = best_of(w, row, part);
    if (d.greedy || hopeless(place)) return;
    const float best = logit_of(place);
    row_state *state = w.state(row);

    const wide mass = state->mass[threadIdx.x];
    const uint32_t count = state->count[threadIdx.x];
    const wide whole = block_reduce(mass, part, sum);
    const bool top_k = d.top_k < vocab, top_p = d.top_p < 1.0;
    wide enough = BAD;
    if (unfiltered(d, vocab))
        enough = drawn_mass(d.share, whole) + 1;
    else if (top_p && !top_k)
        enough = top_p_mass(d.top_p, whole);
    const sums above = before_thread(mass, count, part, counts);
    bool wanted = above.mass < enough && above.count < d.top_k;
    if (!(top_k && top_p)) // nobody here has `least`, with room for rounding
        wanted &= threadIdx.x == 0 ||
                  decay_of((float)threadIdx.x / 8.0f) * (1.00001f * (float)WHOLE) >= (float)d.least * 0.99999f;
    if (threadIdx.x == 0) last = 0;
    __syncthreads();
    if (wanted) atomicMax(&last, (int)threadIdx.x);
    __syncthreads();

#pragma unroll
    for (int k = 0; k < SLICE / THREADS; k++) {
        const uint32_t i = begin + k * THREADS + threadIdx.x;
        float logit = 0.0f;
        bool take = false;
        if (i < vocab) {
            logit = masked_logit(d, logits, i);
            take = bucket_of(depth_of(best, logit, d.per_temperature)) <= last;
        }
        const uint32_t takers = __ballot_sync(0xffffffffu, take);
        const int lane = threadIdx.x % 32;
        uint32_t at = 0;
        if (lane == 0 && takers) at = atomicAdd(&state->listed, (uint32_t)__popc(takers));
        at = __shfl_sync(0xffffffffu, at, 0) + (uint32_t)__popc(takers & ((1u << lane) - 1));
        if (take) w.list(row)[at] = place_of(logit, i);
    }
}

// A list of places, and where one of them is found.
struct finder {
    const wide *list;
    uint32_t n;
    wide first, least; // of the list's places
    float best, per_temperature;
};

struct found {
    wide place, mass; // mass: of all places up to this one
};

struct find_room {
    wide mass[BINS];
    uint32_t count[BINS];
    wide masses[BINS / 32];
    uint32_t counts[BINS / 32];
    wide above_mass, place; // of the bin where it is
    uint32_t above_count, bin, in_bin;
};

// The first place at which the count (BY_MASS: the mass) of all up to it reaches `target`, which the list does.
template <bool BY_MASS> __device__ found find(const finder &f, wide target, find_room &room)
{
    wide top = f.first, mass = 0;
    uint32_t count = 0;
    int bits = f.first == f.least ? 0 : 64 - __clzll((long long)(f.first - f.least));
    for (;;) {
        const int shift = bits > 8 ? bits - 8 : 0;
        if (threadIdx.x < BINS) room.mass[threadIdx.x] = room.count[threadIdx.x] = 0;
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < f.n; i += blockDim.x) {
            const wide place = f.list[i];
            const wide bin = top - place >> shift;
            if (place > top || bin >= BINS || (bits < 64 && top - place >> bits)) continue;
            atomicAdd(&room.count[bin], 1u);
            if (BY_MASS) atomicAdd(&room.mass[bin], mass_of(depth_of(f.best, logit_of(place), f.per_temperature)));
        }
        __syncthreads();
        const wide own_mass = threadIdx.x < BINS ? room.mass[threadIdx.x] : 0;
        const uint32_t own_count = threadIdx.x < BINS ? room.count[threadIdx.x] : 0;
        sums above = before_thread(own_mass, own_count, room.masses, room.counts);
        above.mass += mass;
        above.count += count;
        const wide before = BY_MASS ? above.mass : above.count, here = BY_MASS ? own_mass : own_count;
        if (threadIdx.x < BINS && before < target && target - before <= here) {
            room.bin = threadIdx.x;
            room.in_bin = own_count;
            room.above_mass = above.mass;
            room.above_count = above.count;
        }
        __syncthreads();
        mass = room.above_mass;
        count = room.above_count;
        top -= (wide)room.bin << shift;
        bits = shift;
        if (room.in_bin != 1 && shift > 0) continue;
        // One is left: all others of its bin have other places.
        for (uint32_t i = threadIdx.x; i < f.n; i += blockDim.x)
            if (f.list[i] <= top && top - f.list[i] >> shift == 0) room.place = f.list[i];
        __syncthreads();
        const wide place = room.place;
        __syncthreads(); // before room is used again
        return {place, mass + mass_of(depth_of(f.best, logit_of(place), f.per_temperature))};
    }
}

// The id that the row draws.
__device__ uint32_t drawn_id(const cuda_draw &d, uint32_t vocab, const row_state *state, const wide *list, wide best,
                             wide *part, find_room &room)
{
    finder f = {list, state->listed, best, best, logit_of(best), d.per_temperature};
    wide least = best, listed = 0, total = 0;
    for (uint32_t i = threadIdx.x; i < f.n; i += blockDim.x) {
        least = less(least, list[i]);
        listed += mass_of(depth_of(f.best, logit_of(list[i]), d.per_temperature));
    }
    f.least = block_reduce(least, part, less);
    listed = block_reduce(listed, part, sum);
    wide whole = block_reduce(threadIdx.x < BUCKETS ? state->mass[threadIdx.x] : 0, part, sum);
    if (unfiltered(d, vocab)) {
        total = whole;
    } else {
        wide keep = f.least; // the last place that is kept
        if (d.top_k < vocab) {
            const uint32_t most = f.n < d.top_k ? f.n : d.top_k;
            const found k = find<false>(f, most, room);
            keep = k.place;
            whole = 0;
            for (uint32_t i = threadIdx.x; i < f.n; i += blockDim.x)
                if (list[i] >= keep) whole += mass_of(depth_of(f.best, logit_of(list[i]), d.per_temperature));
            whole = block_reduce(whole, part, sum);
        }
        const wide enough = top_p_mass(d.top_p, whole);
        if (d.top_p < 1.0 && enough <= listed) // else the list ends where masses are too small
            keep = larger(keep, find<true>(f, enough, room).place);
        wide cut = 0; // the first place whose mass is too small
        for (uint32_t i = threadIdx.x; i < f.n; i += blockDim.x)
            if (mass_of(depth_of(f.best, logit_of(list[i]), d.per_temperature)) < d.least) cut = larger(cut, list[i]);
        cut = block_reduce(cut, part, larger);
        for (uint32_t i = threadIdx.x; i < f.n; i += blockDim.x)
            if (list[i] >= keep && list[i] > cut)
                total += mass_of(depth_of(f.best, logit_of(list[i]), d.per_temperature));
        total = block_reduce(total, part, sum);
    }
    return 0xffffffffu - (uint32_t)find<true>(f, drawn_mass(d.share, total) + 1, room).place;
}

__global__ void __launch_bounds__(FINDERS)
    draw_kernel(int32_t *ids, float *logits, uint32_t vocab, const cuda_draw *draws, work w)
{
    __shared__ wide part[FINDERS / 32];
    __shared__ find_room room;
    wait_for_previous();
    const uint32_t row = blockIdx.x;
    const cuda_draw d = draws[row];
    const wide best = best_of(w, row, part);
    uint32_t id = 0xffffffffu - (uint32_t)best;
    if (!d.greedy && !hopeless(best)) id = drawn_id(d, vocab, w.state(row), w.list(row), best, part, room);
    if (threadIdx.x == 0) ids[row] = hopeless(best) ? -1 : (int32_t)id;
    // Nothing reads the edited logits any more.
    const float *before = w.before(row, vocab);
    for (size_t i = threadIdx.x; i < d.edit_count; i += FINDERS) logits[(size_t)row * vocab + d.edits[i].id] = before[i];
}

} // namespace

size_t cuda_draw_scratch(uint32_t vocab)
{
    const size_t bytes = sizeof(row_state) + (div_up(vocab, SLICE) + (size_t)vocab) * sizeof(wide) + (size_t)vocab * sizeof(float);
    return (bytes + 255) / 256 * 256;
}

void cuda_draw_rows(cudaStream_t stream, int32_t *ids, float *logits, uint32_t vocab, const struct cuda_draw *draws, size_t rows,
                    bool sampled, bool edited, void *scratch)
{
    const work w = {static_cast<uint8_t *>(scratch), cuda_draw_scratch(vocab), div_up(vocab, SLICE)};
    const dim3 slices(w.slices, (unsigned)rows);
    if (edited) launch_behind(stream, edit_kernel, (unsigned)rows, THREADS, 0, logits, vocab, draws, w);
    if (edited)
        launch_early(stream, best_kernel, slices, THREADS, 0, logits, vocab, draws, w);
    else
        launch_behind(stream, best_kernel, slices, THREADS, 0, logits, vocab, draws, w);
    if (sampled) {
        launch_early(stream, bucket_kernel, slices, THREADS, 0, logits, vocab, draws, w);
        launch_early(stream, list_kernel, slices, THREADS, 0, logits, vocab, draws, w);
    }
    launch_early(stream, draw_kernel, (unsigned)rows, FINDERS, 0, ids, logits, vocab, draws, w);
}
