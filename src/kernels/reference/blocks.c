/* The scalar definition of the products of block formats by int8 activations, and of decoding rows of any
 * format. */
#include <math.h>

#include "formats/blocks.h"
#include "kernels/table.h"

/* 2 * the value of E2M1, else the code: what a step sums, in units of 1/2 or 1. */
static int32_t integer(const struct walsh_weights *w, size_t row, size_t col)
{
    const uint8_t code = walsh_block_code(w, row, col);
    if (w->block.code == WALSH_CODE_E2M1) return (int32_t)(2 * walsh_code_value(WALSH_CODE_E2M1, code));
    return code - walsh_block_zero(w, row, walsh_block_group_of(w, col));
}

static void block_int8(const struct walsh_product_part *p)
{
    const struct walsh_weights *w = p->weights;
    const struct walsh_activations *a = p->a;
    const uint32_t group = w->block.group;
    const size_t step = group && group < WALSH_ACTIVATION_GROUP ? group : WALSH_ACTIVATION_GROUP;
    const float unit = w->block.code == WALSH_CODE_E2M1 ? .5f : 1;
    for (size_t i = 0; i < a->rows; i++) {
        const int8_t *q = (const int8_t *)a->data + i * a->stride;
        const float *scale = a->scale + i * (a->stride / WALSH_ACTIVATION_GROUP);
        for (size_t r = p->begin; r < p->end; r++) {
            float chain = 0;
            for (size_t k = 0; k < w->cols; k += step) {
                int32_t dot = 0;
                for (size_t n = k; n < k + step && n < w->cols; n++) dot += q[n] * integer(w, r, n);
                const float weight = walsh_block_scale(w, r, walsh_block_group_of(w, k)) * unit;
                chain = fmaf((float)dot, weight * scale[k / WALSH_ACTIVATION_GROUP], chain);
            }
            p->y[i * p->ldy + r] = chain * w->tensor_scale;
        }
    }
}

void walsh_product_block_decode_reference(const struct walsh_product_part *p)
{
    block_int8(p);
}

void walsh_product_block_prefill_reference(const struct walsh_product_part *p)
{
    block_int8(p);
}

/* y = W a, or W^T a where `transposed`; every weight rounded to bf16, sums in double. */
static void mxfp4(const struct walsh_product_part *p, bool transposed)
{
    const struct walsh_weights *w = p->weights;
    for (size_t i = 0; i < p->a->rows; i++) {
        const uint16_t *a = (const uint16_t *)p->a->data + i * p->a->stride;
        for (size_t n = p->begin; n < p->end; n++) {
            double sum = 0;
            for (size_t k = 0; k < p->a->cols; k++) {
                const float v = transposed ? walsh_block_weight(w, k, n) : walsh_block_weight(w, n, k);
                sum +=
                    (double)walsh_f32_from_bf16(walsh_bf16_from_f32(v)) * (double)walsh_f32_from_bf16(a[k]);
            }
            float *y = p->y + i * p->ldy + n;
            *y = p->add ? *y + (float)sum : (float)sum;
        }
    }
}

void walsh_product_mxfp4_prefill_reference(const struct walsh_product_part *p)
{
    mxfp4(p, false);
}

void walsh_product_mxfp4_transposed_reference(const struct walsh_product_part *p)
{
    mxfp4(p, true);
}

void walsh_decode_weights_f32_reference(const struct walsh_weights *w, size_t row, size_t rows, size_t col,
                                        size_t cols, float *out, size_t ld)
{
    walsh_weights_decode_part_f32(w, row, rows, col, cols, out, ld);
}

void walsh_decode_weights_bf16_reference(const struct walsh_weights *w, size_t row, size_t rows, size_t col,
                                         size_t cols, uint16_t *out, size_t ld)
{
    walsh_weights_decode_part_bf16(w, row, rows, col, cols, out, ld);
}
