/* The scalar definition of the products: weight by weight, sums in double, or in integers where the product
 * is exact. */
#include "base/scalar.h"
#include "formats/e8p_planes.h"
#include "kernels/table.h"

static float dense_element(const struct walsh_weights *w, size_t r, size_t k)
{
    size_t at = r * w->cols + k;
    const char *data = w->data; /* maybe unaligned */
    uint32_t u32;
    uint16_t u16;
    switch (w->format) {
    case WALSH_FORMAT_F32:
        memcpy(&u32, data + at * 4, 4);
        return walsh_float_from_bits(u32);
    case WALSH_FORMAT_F16:
        memcpy(&u16, data + at * 2, 2);
        return walsh_f32_from_f16(u16);
    default:
        memcpy(&u16, data + at * 2, 2);
        return walsh_f32_from_bf16(u16);
    }
}

static float activation_element(const struct walsh_activations *a, size_t i, size_t k)
{
    size_t at = i * a->stride + k;
    return a->type == WALSH_ACTIVATION_BF16 ? walsh_f32_from_bf16(((const uint16_t *)a->data)[at])
                                            : ((const float *)a->data)[at];
}

static void put(const struct walsh_product_part *p, size_t i, size_t output, float sum)
{
    float *y = p->y + i * p->ldy + output;
    *y = p->add ? *y + sum : sum;
}

static void dense(const struct walsh_product_part *p)
{
    for (size_t i = 0; i < p->a->rows; i++) {
        for (size_t r = p->begin; r < p->end; r++) {
            double sum = 0;
            for (size_t k = 0; k < p->weights->cols; k++)
                sum += (double)dense_element(p->weights, r, k) * (double)activation_element(p->a, i, k);
            put(p, i, r, (float)sum);
        }
    }
}

void walsh_product_dense_decode_reference(const struct walsh_product_part *p)
{
    dense(p);
}
void walsh_product_dense_prefill_reference(const struct walsh_product_part *p)
{
    dense(p);
}
void walsh_product_bf16_decode_reference(const struct walsh_product_part *p)
{
    dense(p);
}
void walsh_product_bf16_prefill_reference(const struct walsh_product_part *p)
{
    dense(p);
}

static void dense_transposed(const struct walsh_product_part *p)
{
    for (size_t i = 0; i < p->a->rows; i++) {
        for (size_t c = p->begin; c < p->end; c++) {
            double sum = 0;
            for (size_t r = 0; r < p->weights->rows; r++)
                sum += (double)dense_element(p->weights, r, c) * (double)activation_element(p->a, i, r);
            put(p, i, c, (float)sum);
        }
    }
}

void walsh_product_dense_transposed_reference(const struct walsh_product_part *p)
{
    dense_transposed(p);
}
void walsh_product_bf16_transposed_reference(const struct walsh_product_part *p)
{
    dense_transposed(p);
}

/* The 8 integers of group g of row r of stage k (4 or 2 times the weights before the scale); returns 1/4 or
 * 1/2. */
static float stage_group(const struct walsh_weights *w, unsigned k, size_t r, size_t g, int8_t v[8])
{
    const void *packed = w->stage[k].data;
    if (w->stage[k].kind == WALSH_STAGE_E81B) {
        memcpy(v, walsh_e8p_tables()->e81b_x2[walsh_e81b_unpack(w->cols, packed, (uint32_t)r, (uint32_t)g)],
               8);
        return 0.5f;
    }
    walsh_e8p_decode_x4(walsh_e8p_unpack(w->cols, packed, (uint32_t)r, (uint32_t)g), v);
    return 0.25f;
}

static void e8p_f32(const struct walsh_product_part *p)
{
    const struct walsh_weights *w = p->weights;
    for (size_t i = 0; i < p->a->rows; i++) {
        const float *x = (const float *)p->a->data + i * p->a->stride;
        for (size_t r = p->begin; r < p->end; r++) {
            double y = 0;
            for (unsigned k = 0; k < w->stages; k++) {
                double sum = 0, unit = 1;
                for (size_t g = 0; g < w->cols / 8; g++) {
                    int8_t v[8];
                    unit = (double)stage_group(w, k, r, g, v);
                    for (size_t n = 0; n < 8; n++) sum += (double)v[n] * (double)x[8 * g + n];
                }
                y += (double)w->stage[k].scale * unit * sum;
            }
            p->y[i * p->ldy + r] = (float)y;
        }
    }
}

void walsh_product_e8p_decode_reference(const struct walsh_product_part *p)
{
    e8p_f32(p);
}
void walsh_product_e8p_prefill_reference(const struct walsh_product_part *p)
{
    e8p_f32(p);
}

static void e8p_int8(const struct walsh_product_part *p)
{
    const struct walsh_weights *w = p->weights;
    for (size_t i = 0; i < p->a->rows; i++) {
        const int8_t *q = (const int8_t *)p->a->data + i * p->a->stride;
        for (size_t r = p->begin; r < p->end; r++) {
            float y = 0;
            for (unsigned k = 0; k < w->stages; k++) {
                int32_t dot = 0;
                float unit = 1;
                for (size_t g = 0; g < w->cols / 8; g++) {
                    int8_t v[8];
                    unit = stage_group(w, k, r, g, v);
                    for (size_t n = 0; n < 8; n++) dot += v[n] * q[8 * g + n];
                }
                float term = w->stage[k].scale * unit * (float)dot;
                y = k == 0 ? term : y + term;
            }
            p->y[i * p->ldy + r] = y * p->a->scale[i];
        }
    }
}

void walsh_product_int8_decode_reference(const struct walsh_product_part *p)
{
    e8p_int8(p);
}

/* Two stages as one plane. */
static void merged_int8(const struct walsh_product_part *p, const struct walsh_merged_stages *merged)
{
    const struct walsh_weights *w = p->weights;
    const bool e8p = w->stage[1].kind == WALSH_STAGE_E8P;
    for (size_t i = 0; i < p->a->rows; i++) {
        const int8_t *q = (const int8_t *)p->a->data + i * p->a->stride;
        for (size_t r = p->begin; r < p->end; r++) {
            int32_t dot = 0;
            for (size_t g = 0; g < w->cols / 8; g++) {
                int8_t v0[8], v1[8];
                stage_group(w, 0, r, g, v0);
                stage_group(w, 1, r, g, v1);
                for (size_t n = 0; n < 8; n++) {
                    const int u1 = e8p ? (v1[n] + 15) / 2 : v1[n] + 4;
                    dot += (8 * v0[n] + merged->second[u1]) * q[8 * g + n];
                }
            }
            p->y[i * p->ldy + r] = merged->scale * (float)dot * p->a->scale[i];
        }
    }
}

void walsh_product_int8_prefill_reference(const struct walsh_product_part *p)
{
    struct walsh_merged_stages merged;
    if (walsh_stages_merge(p->weights, &merged))
        merged_int8(p, &merged);
    else
        e8p_int8(p);
}
