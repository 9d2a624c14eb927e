// The searches for the nearest code of E8P and E81B, by a warp: formats/e8p.c, with the same double arithmetic in the same
// order, so that the codes are the same ones.
#ifndef WALSH_KERNELS_CUDA_QUANTIZE_CUH
#define WALSH_KERNELS_CUDA_QUANTIZE_CUH

#include <cfloat>

#include "common.cuh"

// What the lanes of a warp share of a vector.
struct nearest {
    double y[8], u[2][8], term[2][8][3]; // y on the grid; in either coset; what a coordinate of magnitude m + 1/2 adds
};

// Of coordinate i in a sign byte.
static __device__ __forceinline__ uint32_t sign_of(uint32_t i)
{
    return 1u << ((i >> 1) + (i & 1) * 4);
}

static __device__ __forceinline__ double grid_point(float x, bool near)
{
    if (near) return rint((double)x * 2097152.0) * (1.0 / 2097152.0);
    if (isnan(x)) return 0.0;
    return fmin(fmax((double)x, -(double)FLT_MAX), (double)FLT_MAX);
}

// x: element `lane` of the vector in lanes 0 to 7. Ends with all of *n there for all lanes.
static __device__ __forceinline__ void place(nearest *n, float x, uint32_t lane, bool cosets)
{
    const bool near = __ballot_sync(0xffffffffu, lane >= 8 || fabsf(x) <= 16.0f) == 0xffffffffu;
    __syncwarp();
    if (lane < 8) {
        const double y = grid_point(x, near);
        n->y[lane] = y;
        for (int c = 0; cosets && c < 2; c++) {
            const double u = c ? __dadd_rn(y, 0.25) : __dsub_rn(y, 0.25);
            n->u[c][lane] = u;
            for (int m = 0; m < 3; m++)
                n->term[c][lane][m] = __dsub_rn(0.5 * (m + 0.5) * (m + 0.5), __dmul_rn(fabs(u), m + 0.5));
        }
    }
    __syncwarp();
}

// The least distance of all lanes, and of equal ones the least code.
static __device__ __forceinline__ uint32_t least(double best, uint32_t code)
{
#pragma unroll
    for (int lane = 16; lane > 0; lane >>= 1) {
        const double other = __shfl_xor_sync(0xffffffffu, best, lane);
        const uint32_t its = __shfl_xor_sync(0xffffffffu, code, lane);
        if (other < best || (other == best && its < code)) best = other, code = its;
    }
    return code;
}

// The smallest of the nearest sign bytes of a row in a coset; *cost: what an odd number of them adds.
static __device__ __forceinline__ uint32_t nearest_signs(const double *u, uint32_t nibbles, uint32_t coset, double *cost)
{
    const bool odd = (nibbles >> 28) < 8; // coordinate 7 is negated
    uint32_t bits = 0, best = 0;
    for (uint32_t i = 0; i < 8; i++) {
        const bool turned = i == 7 && odd, negative = u[i] < 0.0 || (u[i] == 0.0 && turned);
        if (negative != turned) bits |= sign_of(i);
    }
    *cost = 0.0;
    if (__popc(bits) % 2 == 0) return bits ^ coset;
    *cost = DBL_MAX;
    for (uint32_t i = 0; i < 8; i++) {
        const int twice = (int)(nibbles >> (4 * i) & 15) - 8;
        const double flip = __dmul_rn(2.0 * fabs(u[i]), 0.5 * abs(twice));
        const uint32_t candidate = (bits ^ sign_of(i)) ^ coset;
        if (flip < *cost || (flip == *cost && candidate < best)) *cost = flip, best = candidate;
    }
    return best;
}

// tables: launch.h, CUDA_E8P_TABLE_WORDS. The code, in every lane.
static __device__ uint32_t encode_wide(nearest *n, const uint32_t *tables, float x, uint32_t lane)
{
    place(n, x, lane, true);
    double quarter = 0.0, best = DBL_MAX;
    for (int i = 0; i < 8; i++) quarter = __dadd_rn(quarter, 0.25 * n->y[i]);
    uint32_t code = 0xffffffffu;
    for (uint32_t row = lane; row < 256; row += 32) {
        const uint32_t nibbles = __ldg(tables + row);
        for (uint32_t coset = 0; coset < 2; coset++) {
            double distance = coset ? quarter : -quarter, cost;
            for (int i = 0; i < 8; i++) {
                const int twice = (int)(nibbles >> (4 * i) & 15) - 8;
                distance = __dadd_rn(distance, n->term[coset][i][abs(twice) / 2]);
            }
            if (distance > best) continue;
            const uint32_t candidate = row << 8 | nearest_signs(n->u[coset], nibbles, coset, &cost);
            distance = __dadd_rn(distance, cost);
            if (distance < best || (distance == best && candidate < code)) best = distance, code = candidate;
        }
    }
    return least(best, code) & 0xffffu;
}

static __device__ uint32_t encode_narrow(nearest *n, const uint32_t *tables, float x, uint32_t lane)
{
    place(n, x, lane, false);
    double best = DBL_MAX;
    uint32_t code = 0xffffffffu;
    for (uint32_t entry = lane; entry < 256; entry += 32) {
        const uint32_t nibbles = __ldg(tables + 512 + entry);
        double distance = 0.0;
        for (int i = 0; i < 8; i++) {
            const double v = 0.5 * ((int)(nibbles >> (4 * i) & 15) - 4);
            distance = __dadd_rn(distance, __dmul_rn(v, __dsub_rn(0.5 * v, n->y[i])));
        }
        if (distance < best) best = distance, code = entry;
    }
    return least(best, code) & 0xffu;
}

// Coordinate i of what a code stands for.
static __device__ __forceinline__ float decoded(const uint32_t *tables, bool narrow, uint32_t code, uint32_t i)
{
    if (narrow) return 0.5f * ((int)(__ldg(tables + 512 + code) >> (4 * i) & 15) - 4);
    const uint32_t nibbles = __ldg(tables + (code >> 8)) ^ __ldg(tables + 256 + (code & 255));
    return 0.25f * (2 * (int)(nibbles >> (4 * i) & 15) - 15);
}

#endif
