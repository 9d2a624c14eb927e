/* train/attention_tiles: what attention's two arithmetics share: f32 (attention.c) and bf16
 * (attention_narrow.c). */
#ifndef WALSH_TRAIN_ATTENTION_TILES_H
#define WALSH_TRAIN_ATTENTION_TILES_H

#include "train/attention.h"

struct walsh_attention {
    const struct walsh_queue *q;
    const struct walsh_attention_shape *shape;
    const struct walsh_documents *documents;
    const float *query, *key, *value, *dout;
    float *out, *lse;
    float *dquery, *dkey, *dvalue, *delta; /* dkey, dvalue: by query head */
    size_t width, kv_width, rows;
};

/* The sum of out * dout of a row and head, in double: what a score's gradient is measured from. */
float walsh_attention_delta(const float *out, const float *dout, size_t dim);

/* In bf16; dkey and dvalue by query head. */
void walsh_attention_forward_narrow(const struct walsh_attention *t, float *scratch);
void walsh_attention_backward_narrow(const struct walsh_attention *t, float *scratch);
size_t walsh_attention_narrow_scratch(const struct walsh_attention_shape *shape, size_t rows);

#endif
