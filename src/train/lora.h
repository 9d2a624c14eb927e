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
/* A matrix [rank][n] in bf16, walsh_lora_pairs words: its columns in pairs, [n / 2, rounded up][rank], and behind them the
 * matrix, walsh_lora_matrix. */
size_t walsh_lora_pairs(uint32_t rank, size_t n);
const uint16_t *walsh_lora_matrix(const uint32_t *pairs, uint32_t rank, size_t n);
void walsh_lora_pack(const struct walsh_queue *q, uint32_t *to, const float *matrix, uint32_t rank, size_t n);

/* One linear of a site: y += lora(x) forward, dy back. */
struct walsh_lora_call {
    const struct walsh_lora *lora; /* NULL: this linear has none */
    float *y;                      /* [rows][ldy]; in f32 */
    size_t ldy;
    const uint16_t *dy; /* the site's rows of dy in bf16, 0 up to ld_dy; back, in bf16 */
    size_t ld_dy;
    uint16_t *inner; /* the op's own, in bf16: [rows][walsh_lora_inner_width] of the call's A */
};
static inline size_t walsh_lora_inner_width(uint32_t rank)
{
    return rank + rank % 2;
}
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
    uint16_t *kept[WALSH_LORA_CALLS]; /* in bf16: h of the forward, turned: [rank][ld] */
};
/* f32 elements of scratch for each A of `sites` sites of `rows` rows together. */
size_t walsh_lora_scratch(uint32_t rank, size_t rows, size_t sites);
/* bf16 elements that the forward keeps of each. */
size_t walsh_lora_kept(uint32_t rank, size_t rows, size_t sites);

/* In f32: y_i += s_i B_i (A_i x) for the linears of all sites that read x [.][ldx], in one dispatch. `scratch` as the
 * backward's, read on a device only. */
void walsh_lora_forward(const struct walsh_queue *q, struct walsh_lora_site *sites, size_t count,
                        const float *x, size_t ldx, float *scratch);
/* With y the gradient dy: dx += s A^T (B^T dy), grad_a += s (B^T dy) x^T, grad_b += s dy (A x)^T, summed over
 * a site's rows in fixed blocks in their order. dx NULL: nobody wants it. `scratch`: walsh_lora_scratch of
 * the largest rank times the most As of a site. */
void walsh_lora_backward(const struct walsh_queue *q, struct walsh_lora_site *sites, size_t count,
                         const float *x, size_t ldx, float *dx, size_t lddx, float *scratch);

/* In bf16 the products with B and A^T are pieces of the frozen products (products.h), for which these give the inner values,
 * each call's in call->inner: h = s A x of x[.][ldx], whose odd columns stand beside 0, kept for the gradients as well, or
 * s B^T dy, all calls of an A together. `kept`: walsh_lora_kept of the largest rank times the most As of a site;
 * scratch as above, and to be left alone between the backward's inner values and its gradients. */
void walsh_lora_inner(const struct walsh_queue *q, struct walsh_lora_site *sites, size_t count,
                      const uint16_t *x, size_t ldx, uint16_t *kept, float *scratch);
void walsh_lora_inner_backward(const struct walsh_queue *q, struct walsh_lora_site *sites, size_t count,
                               uint16_t *kept, float *scratch);
/* grad_a and grad_b of the sites that walsh_lora_inner_backward has seen. */
void walsh_lora_gradients(const struct walsh_queue *q, struct walsh_lora_site *sites, size_t count,
                          const uint16_t *x, size_t ldx);

#endif
