/* train/products_parts: what the three files of train/products.h share. products.c goes from sites to lists of products,
 * products_dispatch.c computes a list, products_open.c chooses how and holds the memory. */
#ifndef WALSH_TRAIN_PRODUCTS_PARTS_H
#define WALSH_TRAIN_PRODUCTS_PARTS_H

#include "train/products.h"

/* One product of a dispatch. */
struct walsh_products_item {
    const struct walsh_weights *stored; /* NULL: the update alone */
    const uint32_t *panels;             /* of it; NULL: none are kept */
    struct walsh_weights dense;         /* stored, or its decoded copy */
    struct walsh_activations a;
    float *y;
    size_t ldy, rows, outputs;
    size_t piece_outputs, piece_rows, first; /* number of its first piece */
    bool decoded, fused;                     /* neither: the weights are dense */
    bool add;                                /* to what y holds */
    struct walsh_frozen_update update;
    size_t next; /* item whose product and update are added to this one's, in the same pieces; 0: none */
};

static inline bool walsh_products_dense(enum walsh_format format)
{
    return format == WALSH_FORMAT_F32 || format == WALSH_FORMAT_F16 || format == WALSH_FORMAT_BF16;
}

/* Do packed weights go straight into panels? MXFP4 does, where the kernels that do it are those of the dense products. */
bool walsh_products_has_panels(const struct walsh_kernels *k, const struct walsh_weights *w,
                               enum walsh_activation_type type);

/* Columns of all rows that fit into a worker's scratch, decoded. */
size_t walsh_products_scratch_columns(const struct walsh_weights *w, enum walsh_activation_type type);

/* True: weights each of which meets `rows` rows are decoded inside the product. */
bool walsh_products_choose(enum walsh_strategy strategy, const struct walsh_queue *q,
                           const struct walsh_weights *w, enum walsh_activation_type type, size_t rows);

/* Pairs of one matrix's panels, whole cache lines. */
size_t walsh_products_panel_room(size_t outputs, size_t depth);

/* Decode what is not fused, as much at a time as the buffer holds, and multiply. The first `heads` of `count` items have pieces:
 * the others, none of which is decoded, are added to them. */
void walsh_products_multiply(struct walsh_products *p, size_t heads, size_t count, bool transposed);

#endif
