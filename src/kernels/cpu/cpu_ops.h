/* kernels/cpu: the ops on the CPU. Each splits its rows or units over the queue's pool and calls q->kernels;
 * contracts in kernels/kernels.h, struct walsh_ops. */
#ifndef WALSH_KERNELS_CPU_OPS_H
#define WALSH_KERNELS_CPU_OPS_H

#include "kernels/table.h"

/* Scratch of a worker, for a product's tiles, attention's tiles or a rotated row. Only what an op uses
 * becomes resident. */
#define WALSH_SCRATCH_BYTES ((size_t)7 << 20)
_Static_assert(WALSH_MAX_COLUMNS * sizeof(float) <= WALSH_SCRATCH_BYTES, "a rotated row");

extern const struct walsh_ops walsh_cpu_ops;
extern const struct walsh_fused_ops walsh_cpu_fused_ops; /* the rows of attention name the layer's view */

/* Single rows of the ops. Row r of `a` = round(forward(rotation, x)); rotated [WALSH_MAX_COLUMNS] is scratch,
 * apart from x. */
void walsh_cpu_prepare_row(const struct walsh_kernels *k, const struct walsh_activations *a,
                           const struct walsh_rotation *rotation, size_t r, const float *x, float *rotated);
/* Where this is so, a row goes through rotation and rounding by one kernel, with a norm in front of it or
 * without. */
bool walsh_cpu_rotates_rounding(const struct walsh_activations *a, const struct walsh_rotation *rotation);
/* Row r of `a` = round(forward(rotation, x * factor * weight)); weight NULL: of x. */
void walsh_cpu_rotate_row(const struct walsh_kernels *k, const struct walsh_activations *a,
                          const struct walsh_rotation *rotation, size_t r, const float *x,
                          const float *weight, float factor, float *rotated);
/* y = inverse of row r of u->z, with its bias. */
void walsh_cpu_unrotate_row(const struct walsh_kernels *k, const struct walsh_unrotated *u, size_t r,
                            float *y);
/* One token's keys and values into their pages, F32 or F16. */
void walsh_cpu_store_row(const struct walsh_kernels *k, const struct walsh_kv_view *kv, uint32_t position,
                         const struct walsh_attention_shape *shape, const float *key, const float *value);

void walsh_cpu_embed(const struct walsh_queue *q, float *out, const struct walsh_weights *table,
                     const int32_t *ids, size_t rows);
void walsh_cpu_rms_norm(const struct walsh_queue *q, float *y, size_t ldy, const float *x, size_t ldx,
                        const float *weight, size_t rows, size_t n, float eps);
void walsh_cpu_add(const struct walsh_queue *q, float *x, const float *d, size_t n);
void walsh_cpu_prepare(const struct walsh_queue *q, struct walsh_activations *a, const float *x, size_t ldx,
                       const struct walsh_rotation *rotation);
void walsh_cpu_product(const struct walsh_queue *q, const struct walsh_product *list, size_t count,
                       const struct walsh_activations *a, const struct walsh_low_rank_input *low_rank,
                       enum walsh_role role);
void walsh_cpu_unrotate(const struct walsh_queue *q, float *y, size_t ldy, float *z, size_t ldz,
                        const struct walsh_rotation *rotation, const float *bias, size_t rows);
void walsh_cpu_rope(const struct walsh_queue *q, float *x, size_t ldx, const uint32_t *positions, size_t rows,
                    uint32_t heads, uint32_t head_dim, uint32_t rotated, const float *cosine,
                    const float *sine);
void walsh_cpu_short_conv(const struct walsh_queue *q, float *out, size_t ldo, const float *x, size_t ldx,
                          const struct walsh_attention_row *rows, size_t count, const float *weight,
                          const float *bias, uint32_t taps, uint32_t width);
void walsh_cpu_attention_rows(const struct walsh_queue *q, struct walsh_attention_row *out,
                              const struct walsh_kv_view *const *kv, const uint32_t *positions, size_t count,
                              uint32_t layer);
void walsh_cpu_kv_append(const struct walsh_queue *q, const struct walsh_attention_row *rows, size_t count,
                         const float *k, const float *v, size_t ld,
                         const struct walsh_attention_shape *shape);
void walsh_cpu_attention(const struct walsh_queue *q, float *out, size_t ldo, const float *query, size_t ldq,
                         const struct walsh_attention_row *rows, size_t count,
                         const struct walsh_attention_shape *shape, enum walsh_role role);
void walsh_cpu_swiglu(const struct walsh_queue *q, float *y, size_t ldy, const float *gate, const float *up,
                      size_t ld, size_t rows, size_t n);
void walsh_cpu_geglu(const struct walsh_queue *q, float *y, size_t ldy, const float *gate, const float *up,
                     size_t ld, size_t rows, size_t n);
void walsh_cpu_clamped_swiglu(const struct walsh_queue *q, float *y, size_t ldy, const float *gate,
                              const float *up, size_t ld, size_t rows, size_t n, float alpha, float limit);
void walsh_cpu_scale(const struct walsh_queue *q, float *x, float factor, size_t n);
void walsh_cpu_soft_cap(const struct walsh_queue *q, float *x, float cap, size_t n);
void walsh_cpu_route(const struct walsh_queue *q, int32_t *index, float *weight, const float *logits,
                     size_t rows, uint32_t experts, uint32_t k, bool normalize);
void walsh_cpu_gather(const struct walsh_queue *q, float *out, size_t ldo, const float *x, size_t ldx,
                      const uint32_t *index, size_t rows, size_t n);
void walsh_cpu_combine(const struct walsh_queue *q, float *x, size_t n, float *y, const uint32_t *slot,
                       const float *weight, size_t rows, uint32_t k);

#endif
