/* train/attention: causal attention over the documents of packed rows, forward and back (Dao et al. 2022,
 * "FlashAttention": scores are computed again instead of kept). May use model and below. */
#ifndef WALSH_TRAIN_ATTENTION_H
#define WALSH_TRAIN_ATTENTION_H

#include "kernels/kernels.h"

/* Rows [begin[i], begin[i + 1]) are document i, with positions from 0: it attends to nothing outside of
 * itself. */
struct walsh_documents {
    const uint32_t *begin; /* [count + 1], ascending, begin[0] == 0 */
    size_t count;
    /* on a device, its memory: [rows] where the document of a row begins and ends */
    const uint32_t *row_begin, *row_end;
};

/* Both sides of attention's products are rounded to bf16 where the queue multiplies pairs of it by an instruction, its
 * heads are of an even dimension up to WALSH_NARROW_HEAD_DIM, and scores have no cap; sums are f32. */
#define WALSH_NARROW_HEAD_DIM 256
bool walsh_attention_narrow(const struct walsh_queue *q, const struct walsh_attention_shape *shape);

/* out[rows][heads * head_dim] of query, key, value [rows][heads or kv_heads * head_dim], dense rows; *lse
 * [heads][rows]: the logarithm of the sum that a row's weights were divided by. shape->own is not read. `narrow`: in bf16,
 * where walsh_attention_narrow says so. `scratch`: walsh_attention_scratch elements. */
void walsh_attention_forward(const struct walsh_queue *q, const struct walsh_attention_shape *shape,
                             const struct walsh_documents *documents, bool narrow, const float *query,
                             const float *key, const float *value, float *out, float *lse, float *scratch);
/* dquery, dkey, dvalue (overwritten) of dout, with out and lse as the forward left them. */
void walsh_attention_backward(const struct walsh_queue *q, const struct walsh_attention_shape *shape,
                              const struct walsh_documents *documents, bool narrow, const float *query,
                              const float *key, const float *value, const float *out, const float *lse,
                              const float *dout, float *dquery, float *dkey, float *dvalue, float *scratch);
/* Elements for the most rows and any documents among them. */
size_t walsh_attention_scratch(const struct walsh_attention_shape *shape, size_t rows);

#endif
