/* What the cases of attention share. */
#ifndef WALSH_TESTS_ATTENTION_DATA_H
#define WALSH_TESTS_ATTENTION_DATA_H

#include "checker.h"

/* The definition for query head `head` at `position`, in double: out[head_dim] from query [head_dim] and k, v
 * [tokens][kv_heads][head_dim], which are rounded to binary16 first where `half`; per element its magnitude
 * for the tolerance. weight [position + 1] is scratch. */
void attention_define(const struct walsh_attention_shape *s, const float *query, const float *k,
                      const float *v, uint32_t head, uint32_t position, bool half, double *weight, float *out,
                      float *magnitude);

#endif
