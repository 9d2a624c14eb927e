/* kernels/attention: the unit of decode attention that the CPU's microkernels compute. */
#ifndef WALSH_KERNELS_ATTENTION_H
#define WALSH_KERNELS_ATTENTION_H

#include "kernels/kernels.h"

/* Keys of a sequence are cut at multiples of this, whatever the threads and the batch; the chunks' results
 * are merged in ascending order. */
#define WALSH_ATTEND_CHUNK 512

/* Query heads [group][head_dim] of one row against tokens [begin, end) of one head of keys and values; begin
 * < end and end - begin <= WALSH_ATTEND_CHUNK; head_dim >= 1. For each query g: score[j] = scale * q·k_j,
 * maximum[g] = max score, p_j = exp(score[j] - maximum[g]), sum[g] = sum p_j, out[g][0..head_dim) = sum p_j
 * v_j  (not divided by the sum) */
struct walsh_attend_chunk {
    const struct walsh_kv_view *kv;
    uint32_t kv_head, begin, end;
    uint32_t
        next; /* a hint: the call behind this one reads this head's tokens from here on; 0: it does not */
    uint32_t group, head_dim;
    float scale, soft_cap; /* score[j] becomes soft_cap * tanh(score[j] / soft_cap) where that is not 0 */
    const float *query;    /* [group][head_dim] */
    float *scores;         /* scratch [group][WALSH_ATTEND_CHUNK] */
    float *maximum, *sum;  /* [group] */
    float *out;            /* [group][head_dim] */
};

/* The f32 or f16 elements of token `token` (0-based) of a head in one of kv's page lists. */
static inline size_t walsh_kv_offset(const struct walsh_kv_view *kv, uint32_t kv_head, uint32_t token,
                                     uint32_t head_dim)
{
    return ((size_t)kv_head * kv->page_tokens + token % kv->page_tokens) * head_dim;
}

#endif
