/* kernels/cuda/launch_experts: the launchers of a mixture's experts; as launch.h. Nothing here waits for the host: how many rows an
 * expert has is known on the device alone. */
#ifndef WALSH_KERNELS_CUDA_LAUNCH_EXPERTS_H
#define WALSH_KERNELS_CUDA_LAUNCH_EXPERTS_H

#include "launch.h"

#ifdef __cplusplus
extern "C" {
#endif

/* --- experts_sort.cu --- */

#define CUDA_EXPERTS 4096         /* at most */
#define CUDA_EXPERT_TILE_ROWS 144 /* at most, of a tile */
/* Consecutive rows of one expert, among those sorted. */
struct cuda_expert_tile {
    int32_t expert, first, rows, unused;
};
/* Slots, k for each row, sorted by expert, stable: a slot's number is row * k + j. */
struct cuda_slots {
    int32_t *order;                 /* [slots]: the slot at each place */
    int32_t *place;                 /* [slots]: where each slot stands; NULL: not wanted */
    int32_t *row;                   /* [slots]: the row at each place, order / k; NULL: not wanted */
    int32_t *begin;                 /* [experts + 1]: an expert's first place */
    struct cuda_expert_tile *tiles; /* [cuda_expert_tiles], of which *count are set */
    int32_t *count;
};
/* Tiles that so many slots may have. */
size_t cuda_expert_tiles(size_t slots, uint32_t experts);
/* expert [slots], 16-byte aligned, each below `experts`. */
void cuda_sort_slots(cudaStream_t stream, const int32_t *expert, size_t slots, uint32_t k, uint32_t experts,
                     const struct cuda_slots *to);

/* --- experts_wgmma.cu --- */

/* A matrix of MXFP4 as struct cuda_blocks has it; bias [outs] or NULL. */
struct cuda_expert {
    const uint32_t *data;
    const uint8_t *scales;
    const float *bias;
};
/* Rows of bf16 that experts read, sorted by expert: where per_row is 0, place p reads row p; else x is not sorted, and p reads row
 * order[p] / per_row. stride in elements, a multiple of 8; x 16-byte aligned. */
struct cuda_expert_rows {
    const uint16_t *x;
    size_t stride;
    uint32_t per_row;
};
/* y [slots][ldy], sorted, of F32 or BF16 = W x, or, with `back`, the transpose of W by x; W [outs][cols] of each expert, both a multiple
 * of 32. Forward, each 32 columns of x are in the order of cuda_expert_columns. update, where h: += the transpose of matrix by h, h
 * [slots][CUDA_EXPERT_RANK] sorted, 0 beyond the rank, matrix [rank][the product's outputs] of each expert, `step` elements apart.
 * add: += , of F32 and `back`, ldy a multiple of 4. */
#define CUDA_EXPERT_RANK 16
struct cuda_expert_product {
    const struct cuda_expert *experts; /* on the device */
    const struct cuda_slots *slots;
    struct cuda_expert_rows rows;
    uint32_t outs, cols;
    bool back;
    enum cuda_type type;
    void *y;
    size_t ldy;
    bool add;
    const uint16_t *h, *matrix;
    size_t step;
    uint32_t rank;
};
/* On the tensor cores of compute capability 9.0; false: there are none. */
bool cuda_multiply_experts_fits(void);
void cuda_multiply_experts(cudaStream_t stream, const struct cuda_expert_product *p, int processors);
/* to [rows][cols] = from [rows][stride], each 32 columns in the order in which codes decode; both 16-byte aligned. */
void cuda_expert_columns(cudaStream_t stream, uint16_t *to, const uint16_t *from, size_t stride, size_t rows,
                         uint32_t cols);

/* --- experts_rows.cu --- */

/* The same of f32, rounded; stride a multiple of 4. */
void cuda_expert_round(cudaStream_t stream, uint16_t *to, const float *from, size_t stride, size_t rows,
                       uint32_t cols);
/* y [slots][ldy], sorted, += the bias of its row's expert. */
void cuda_expert_biases(cudaStream_t stream, const struct cuda_expert *experts,
                        const struct cuda_slots *slots, size_t count, uint32_t experts_count, uint32_t outs,
                        float *y, size_t ldy);

/* --- experts_decode.cu --- */

/* Few rows, MXFP4 by int8 in groups of 32: slot s of a row of k = per_row (1: each slot has activations of its own), of expert
 * index[s], of each of `count` matrices of the same size: y [slots][ldy], in the order of the slots, with the bits of
 * cuda_product_blocks_few, plus the expert's bias. q, scale and sum as there. One launch of up to 65535 slots: the first, or those that order names. */
#define CUDA_EXPERT_LIST 2
struct cuda_routed {
    const struct cuda_expert *experts; /* on the device */
    float *y;
    size_t ldy;
};
bool cuda_route_experts_fits(uint32_t cols);
void cuda_route_experts(cudaStream_t stream, const struct cuda_routed *list, size_t count,
                        const int32_t *index, const int32_t *order, size_t slots, uint32_t per_row,
                        uint32_t outs, uint32_t cols, const int8_t *q, size_t stride, const float *scale,
                        const int32_t *sum);

/* --- experts_low_rank.cu: updates of rank up to CUDA_EXPERT_RANK --- */

/* h [slots][CUDA_EXPERT_RANK] bf16, sorted = scale times the sum of matrix x over the list; matrix [rank][cols] bf16 of each expert,
 * `step` elements apart, 16-byte aligned as the rows are, cols a multiple of 32. h is 0 beyond the rank. */
#define CUDA_EXPERT_SOURCES 2
struct cuda_expert_source {
    struct cuda_expert_rows rows;
    uint32_t cols;
    const uint16_t *matrix;
    size_t step;
};
void cuda_expert_into_rank(cudaStream_t stream, const struct cuda_slots *slots, size_t count,
                           uint32_t experts, const struct cuda_expert_source *list, size_t sources,
                           uint32_t rank, float scale, uint16_t *h);
/* gradient [rank][cols] of each expert, `step` elements apart, = or, with `add`, += the transpose of h by x, an expert's rows in
 * their order; cols a multiple of 8, gradient 8-byte aligned. */
void cuda_expert_gradient(cudaStream_t stream, const struct cuda_slots *slots, uint32_t experts,
                          const struct cuda_expert_rows *rows, uint32_t cols, const uint16_t *h,
                          uint32_t rank, float *gradient, size_t step, bool add);

#ifdef __cplusplus
}
#endif
#endif
