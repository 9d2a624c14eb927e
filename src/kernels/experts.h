/* kernels/experts: the products of a mixture's experts over the router's answer where it stands, in the queue's memory
 * (walsh_memory.experts). The host learns neither which experts rows chose nor how many rows an expert has, and waits for nothing.
 *
 * A *slot* is one (row, expert) pair, number row * k + j for the j-th choice of a row. */
#ifndef WALSH_KERNELS_EXPERTS_H
#define WALSH_KERNELS_EXPERTS_H

#include "kernels/kernels.h"

/* One projection of all experts of a layer: matrices [outs][cols] of one format, without rotations, with or without biases. */
struct walsh_expert_matrices {
    uint32_t experts, outs, cols;
    bool biased;
    const void *table; /* walsh_expert_ops.place; NULL: these products go expert by expert */
};
#define WALSH_EXPERT_LIST 2 /* products of one call at most */
struct walsh_expert_product {
    const struct walsh_expert_matrices *matrices;
    float *y; /* [slots][ldy] */
    size_t ldy;
};

/* Slots sorted by expert, those of one in their order. */
struct walsh_expert_slots {
    size_t count;
    uint32_t k, experts;
    int32_t *order;  /* [count]: the slot at each place */
    uint32_t *row;   /* [count]: its row, order / k */
    uint32_t *place; /* [count]: where each slot stands */
    int32_t *begin;  /* [experts + 1]: an expert's first place */
    void *tiles;     /* the ops' own */
    int32_t *tile_count;
};

/* Training: rows in their places, of experts whose update has a rank of at most WALSH_EXPERT_RANK. Inner values: bf16
 * [slots][WALSH_EXPERT_RANK], 0 beyond the rank. Matrices of updates: [rank][n] of each expert, in bf16, gradients in f32, `step`
 * elements apart; 16-byte aligned, as rows are. */
#define WALSH_EXPERT_RANK 16
struct walsh_expert_update {
    const uint16_t *matrix, *inner; /* inner NULL: none */
    size_t step;
    uint32_t rank;
};
/* y [slots][ldy] = W x + bias + update, x arranged; or, back, = or, with `add`, += W^T x + update, x [slots][ldx] as it is, ldy a
 * multiple of 4. In bf16 with f32 sums. */
struct walsh_expert_pass {
    const struct walsh_expert_matrices *matrices;
    const struct walsh_expert_slots *slots;
    bool back, add;
    const uint16_t *x;
    size_t ldx;
    float *y;
    size_t ldy;
    struct walsh_expert_update update;
};
/* What inner values are summed over: matrix x. */
#define WALSH_EXPERT_SOURCES 2
struct walsh_expert_source {
    const uint16_t *x, *matrix; /* x [slots][ldx] bf16 */
    size_t ldx, cols, step;     /* cols a multiple of 32 */
};

struct walsh_expert_ops {
    /* Are there products of such matrices? DECODE: `routed`, PREFILL: `sorted`. */
    bool (*fits)(const struct walsh_queue *q, const struct walsh_weights *w, enum walsh_role role);
    size_t (*table_bytes)(const struct walsh_queue *q, uint32_t experts);
    /* *out: the matrices w[i], which are the queue's and stay, with their biases (NULL: none has any), named by a table in
     * `room` (table_bytes). */
    enum walsh_status (*place)(const struct walsh_queue *q, const struct walsh_weights *const *w,
                               const float *const *bias, uint32_t experts, void *room,
                               struct walsh_expert_matrices *out, struct walsh_error *err);
    /* y[s] = W[index[s]] a[s / per_row] + its bias, of each slot s of each product: INT8_GROUPS, with the bits of `product`
     * and `unrotate` for that row alone. per_row: k, or 1 where each slot has activations of its own. order [slots]: the slots
     * sorted by expert, so that those of one expert run together; NULL: as they are. */
    void (*routed)(const struct walsh_queue *q, const struct walsh_expert_product *list, size_t count,
                   const int32_t *index, const int32_t *order, size_t slots, uint32_t per_row,
                   const struct walsh_activations *a);

    /* Room for slots, and their arrays in it. index [slots] 16-byte aligned. */
    size_t (*slots_bytes)(const struct walsh_queue *q, size_t slots, uint32_t experts);
    struct walsh_expert_slots (*slots_in)(const struct walsh_queue *q, void *room, size_t rows, uint32_t k,
                                          uint32_t experts);
    void (*sort)(const struct walsh_queue *q, const int32_t *index, const struct walsh_expert_slots *slots);
    /* to [rows][cols] bf16 = x [rows][ldx], F32 or BF16, as `sorted` reads rows: in an order of columns of its own. cols is a
     * multiple of 32; x is 16-byte aligned, and so are its rows. */
    void (*arrange)(const struct walsh_queue *q, uint16_t *to, enum walsh_format type, const void *x,
                    size_t ldx, size_t rows, size_t cols);
    /* y[p] = W x + bias for each place p and its expert, in bf16 with f32 sums, of each product: x arranged, of row order[p] /
     * per_row, or, where per_row is 0, of row p. A row's bits do not depend on the others. */
    void (*sorted)(const struct walsh_queue *q, const struct walsh_expert_product *list, size_t count,
                   const struct walsh_expert_slots *slots, uint32_t per_row, const uint16_t *x);

    void (*pass)(const struct walsh_queue *q, const struct walsh_expert_pass *p);
    /* inner = scale times the sum over the list. */
    void (*into_rank)(const struct walsh_queue *q, const struct walsh_expert_slots *slots,
                      const struct walsh_expert_source *list, size_t count, uint32_t rank, float scale,
                      uint16_t *inner);
    /* gradient [rank][cols] of each expert += the transpose of inner by its rows of x, in their order. */
    void (*gradient)(const struct walsh_queue *q, const struct walsh_expert_slots *slots, const uint16_t *x,
                     size_t ldx, size_t cols, const uint16_t *inner, uint32_t rank, float *gradient,
                     size_t step);
};

#endif
