/* kernels/cpu: attention's two roads. */
#ifndef WALSH_KERNELS_CPU_ATTENTION_H
#define WALSH_KERNELS_CPU_ATTENTION_H

#include <math.h>

#include "kernels/cpu/cpu_ops.h"

/* The first token that a query at `position` sees. */
static inline uint32_t walsh_first_key(const struct walsh_attention_shape *shape, uint32_t position)
{
    return shape->window != 0 && position >= shape->window ? position + 1 - shape->window : 0;
}

/* sum, of exp(score - maximum), and the sink of a head. A sink far above all scores gives Inf: nothing of
 * the values is left. */
static inline float walsh_add_sink(const struct walsh_attention_shape *shape, uint32_t head, float maximum,
                                   float sum)
{
    return shape->sinks ? sum + expf(shape->sinks[head] - maximum) : sum;
}

/* struct walsh_ops, attention: without the role. */
void walsh_cpu_decode_attention(const struct walsh_queue *q, float *out, size_t ldo, const float *query,
                                size_t ldq, const struct walsh_attention_row *rows, size_t count,
                                const struct walsh_attention_shape *shape);
void walsh_cpu_prefill_attention(const struct walsh_queue *q, float *out, size_t ldo, const float *query,
                                 size_t ldq, const struct walsh_attention_row *rows, size_t count,
                                 const struct walsh_attention_shape *shape);

#endif
