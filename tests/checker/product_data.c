#include "product_data.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/scalar.h"
#include "formats/e8p_planes.h"

static void fill_codes(struct check *c, void *codes, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) ((uint8_t *)codes)[i] = (uint8_t)walsh_random_u64(&c->random);
}

static void fill_stage(struct check *c, struct walsh_weights *w, unsigned k, enum walsh_stage_kind kind)
{
    size_t groups = (size_t)w->rows * w->cols / 8, bytes = walsh_stage_bytes(kind, w->rows, w->cols);
    uint8_t *packed = check_alloc(c, bytes, 0);
    void *codes = check_alloc(c, groups * (kind == WALSH_STAGE_E8P ? 2 : 1), 0);
    fill_codes(c, codes, groups * (kind == WALSH_STAGE_E8P ? 2 : 1));
    if (kind == WALSH_STAGE_E8P)
        walsh_e8p_pack(w->cols, codes, 0, w->rows, packed);
    else
        walsh_e81b_pack(w->cols, codes, 0, w->rows, packed);
    w->stage[k].kind = kind;
    w->stage[k].data = packed;
    w->stage[k].scale = (0.5f + fabsf(check_normal(c))) / (float)(1u << 2 * k);
}

struct walsh_weights product_weights(struct check *c, const struct product_shape *shape)
{
    struct walsh_weights w = {
        .format = shape->format, .rows = (uint32_t)shape->rows, .cols = (uint32_t)shape->cols};
    size_t n = shape->rows * shape->cols;
    if (shape->format == WALSH_FORMAT_E8P) {
        w.stages = (unsigned)strlen(shape->stages);
        for (unsigned k = 0; k < w.stages; k++)
            fill_stage(c, &w, k, shape->stages[k] == 'P' ? WALSH_STAGE_E8P : WALSH_STAGE_E81B);
        return w;
    }
    if (shape->format == WALSH_FORMAT_F32) {
        float *x = check_alloc(c, n * sizeof *x, check_misalign(c, sizeof *x));
        check_fill_normal(c, x, n);
        w.data = x;
        return w;
    }
    uint16_t *x = check_alloc(c, n * sizeof *x, check_misalign(c, sizeof *x));
    for (size_t i = 0; i < n; i++) {
        float v = check_normal(c);
        x[i] = shape->format == WALSH_FORMAT_F16 ? walsh_f16_from_f32(v) : walsh_bf16_from_f32(v);
    }
    w.data = x;
    return w;
}

struct walsh_weights product_magnitudes(struct check *c, const struct walsh_weights *w)
{
    size_t n = (size_t)w->rows * w->cols;
    float *x = check_alloc(c, n * sizeof *x, 0);
    memset(x, 0, n * sizeof *x);
    for (size_t i = 0; i < n && w->format != WALSH_FORMAT_E8P; i++) {
        uint16_t half;
        if (w->format == WALSH_FORMAT_F32) {
            memcpy(&x[i], (const char *)w->data + 4 * i, 4);
        } else {
            memcpy(&half, (const char *)w->data + 2 * i, 2);
            x[i] = w->format == WALSH_FORMAT_F16 ? walsh_f32_from_f16(half) : walsh_f32_from_bf16(half);
        }
        x[i] = fabsf(x[i]);
    }
    for (unsigned k = 0; k < w->stages; k++) {
        for (size_t i = 0; i < n; i += 8) {
            uint32_t r = (uint32_t)(i / w->cols), g = (uint32_t)(i % w->cols / 8);
            float v[8];
            if (w->stage[k].kind == WALSH_STAGE_E8P)
                walsh_e8p_decode(walsh_e8p_unpack(w->cols, w->stage[k].data, r, g), v);
            else
                walsh_e81b_decode(walsh_e81b_unpack(w->cols, w->stage[k].data, r, g), v);
            for (size_t m = 0; m < 8; m++) x[i + m] += fabsf(w->stage[k].scale * v[m]);
        }
    }
    return (struct walsh_weights){.format = WALSH_FORMAT_F32, .rows = w->rows, .cols = w->cols, .data = x};
}

static int8_t random_int8(struct check *c)
{
    if (check_below(c, 8) == 0) return check_below(c, 2) ? 127 : -127;
    float q = rintf(check_normal(c) * 42.0f);
    return (int8_t)(q > 127 ? 127 : q < -127 ? -127 : q);
}

struct walsh_activations product_activations(struct check *c, enum walsh_activation_type type, size_t rows,
                                             size_t cols, bool infinite)
{
    size_t stride = walsh_activations_stride(cols), bytes = rows * stride * walsh_activation_size(type);
    struct walsh_activations a = {.type = type, .rows = rows, .cols = cols, .stride = stride};
    a.data = check_alloc(c, bytes, 0);
    a.scale = check_alloc(c, rows * sizeof *a.scale, 0);
    a.sum = check_alloc(c, rows * sizeof *a.sum, 0);
    memset(a.data, 0, bytes);
    bool special = c->round == CHECK_ROUNDS - 1;
    size_t row = check_below(c, rows), col = check_below(c, cols);
    for (size_t i = 0; i < rows; i++) {
        a.scale[i] = special && i == row ? NAN : 0.01f + fabsf(check_normal(c));
        a.sum[i] = 0;
        for (size_t k = 0; k < cols; k++) {
            size_t at = i * stride + k;
            float x = special && i == row && k == col ? infinite && check_below(c, 2) ? INFINITY : NAN
                                                      : check_normal(c);
            if (type == WALSH_ACTIVATION_F32) ((float *)a.data)[at] = x;
            if (type == WALSH_ACTIVATION_BF16) ((uint16_t *)a.data)[at] = walsh_bf16_from_f32(x);
            if (type == WALSH_ACTIVATION_INT8) a.sum[i] += ((int8_t *)a.data)[at] = random_int8(c);
        }
    }
    return a;
}

struct walsh_activations product_absolute(struct check *c, const struct walsh_activations *a)
{
    size_t n = a->rows * a->stride;
    float *x = check_alloc(c, n * sizeof *x, 0);
    for (size_t i = 0; i < n; i++)
        x[i] = fabsf(a->type == WALSH_ACTIVATION_F32 ? ((const float *)a->data)[i]
                                                     : walsh_f32_from_bf16(((const uint16_t *)a->data)[i]));
    struct walsh_activations absolute = *a;
    absolute.type = WALSH_ACTIVATION_F32;
    absolute.data = x;
    return absolute;
}

struct walsh_activations product_row(const struct walsh_activations *a, size_t i)
{
    struct walsh_activations row = *a;
    row.rows = 1;
    row.data = (char *)a->data + i * a->stride * walsh_activation_size(a->type);
    row.scale += i;
    row.sum += i;
    return row;
}
