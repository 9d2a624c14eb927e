/* train/lora: the trained low-rank updates of frozen linears, y += s · B (A x), forward and back, in PEFT's
 * coordinates: A reads the raw x, B writes behind the inverse rotation. (B' = s · R_out · B, which a session
 * folds at load, is the same map; Adam on B' would train another model.) May use model and below. */
#ifndef WALSH_TRAIN_LORA_H
#define WALSH_TRAIN_LORA_H

#include "kernels/kernels.h"
#include "model/model.h"

/* The update of one linear. A is stored as PEFT has it, B transposed: rows of both lie along what they are
 * multiplied with. */
struct walsh_lora {
    uint32_t rank, in, out;
    float scale;      /* alpha / rank */
    const float *a;   /* [rank][in]; linears of one stacked parameter (an expert's gate and up) share it */
    const float *b;   /* [rank][out]: B^T */
    const float *a_t; /* [in][rank], walsh_lora_refresh */
    const float *b_t; /* [out][rank] */
    float *grad_a, *grad_b; /* as a, b; gradients are added */
    /* Of a and of b, walsh_lora_pack: the updates are then computed by products of bf16 pairs with f32 sums. NULL: in f32,
     * by a_t and b_t. */
    const uint32_t *a_pairs, *b_pairs;
};
/* Does q multiply pairs of bf16 by an instruction? */
bool walsh_lora_narrow(const struct walsh_queue *q);
/* The pairs of a matrix [rank][n], walsh_lora_pairs of them: [n / 2, rounded up][rank] of its columns and, behind, [rank / 2,
 * rounded up][n] of its rows. */
size_t walsh_lora_pairs(uint32_t rank, size_t n);
void walsh_lora_pack(const struct walsh_queue *q, uint32_t *to, const float *matrix, uint32_t rank, size_t n);

/* One linear of a site: y += lora(x) forward, dy back. */
struct walsh_lora_call {
    const struct walsh_lora *lora; /* NULL: this linear has none */
    float *y;                      /* [rows][ldy] */
    size_t ldy;
};
#define WALSH_LORA_CALLS 4
/* The linears that read rows [begin, begin + rows) of the same x: those of a layer, or of one of its experts.
 */
struct walsh_lora_site {
    struct walsh_lora_call calls[WALSH_LORA_CALLS];
    size_t count, begin, rows;
    /* the op's own */
    size_t first, first_gradient; /* its first unit */
    size_t ld;                    /* of its inner values */
    float *inner[WALSH_LORA_CALLS];
};
/* f32 elements of scratch for each A of `sites` sites of `rows` rows together. */
size_t walsh_lora_scratch(uint32_t rank, size_t rows, size_t sites);

/* y_i += s_i B_i (A_i x) for the linears of all sites that read x [.][ldx], in one dispatch. */
void walsh_lora_forward(const struct walsh_queue *q, struct walsh_lora_site *sites, size_t count,
                        const float *x, size_t ldx);
/* With y the gradient dy: dx += s A^T (B^T dy), grad_a += s (B^T dy) x^T, grad_b += s dy (A x)^T, summed over
 * a site's rows in fixed blocks in their order. dx NULL: nobody wants it. `scratch`: walsh_lora_scratch of
 * the largest rank times the most As of a site. */
void walsh_lora_backward(const struct walsh_queue *q, struct walsh_lora_site *sites, size_t count,
                         const float *x, size_t ldx, float *dx, size_t lddx, float *scratch);

#endif
