/* Rotations around a product: prepare before it, unrotate behind it. */
#include <string.h>

#include "kernels/cpu/cpu_ops.h"
#include "base/memory.h"
#include "formats/e8p_planes.h"
#include "kernels/cpu/split.h"
#include "kernels/product.h"
#include "kernels/rotate.h"

struct prepare {
    const struct walsh_queue *q;
    const struct walsh_activations *a;
    const float *x;
    size_t ldx;
    const struct walsh_rotation *rotation;
};

/* Row r, x rotated, in groups; the last one may be short. */
static void prepare_groups(const struct walsh_kernels *k, const struct walsh_activations *a, size_t r,
                           const float *x)
{
    const size_t whole = a->cols / WALSH_ACTIVATION_GROUP * WALSH_ACTIVATION_GROUP, left = a->cols - whole;
    const size_t groups = a->stride / WALSH_ACTIVATION_GROUP, sums = a->stride / WALSH_ACTIVATION_SUM;
    int8_t *q = (int8_t *)a->data + r * a->stride;
    float *scale = a->scale + r * groups;
    int32_t *sum = a->sum + r * sums;
    memset(scale, 0, groups * sizeof *scale);
    memset(sum, 0, sums * sizeof *sum);
    k->quantize_groups_i8(q, scale, sum, x, whole);
    if (left == 0) return;
    float last[WALSH_ACTIVATION_GROUP] = {0};
    memcpy(last, x + whole, left * sizeof *last);
    k->quantize_groups_i8(q + whole, scale + whole / WALSH_ACTIVATION_GROUP,
                          sum + whole / WALSH_ACTIVATION_SUM, last, WALSH_ACTIVATION_GROUP);
}

bool walsh_cpu_rotates_rounding(const struct walsh_activations *a, const struct walsh_rotation *rotation)
{
    return a->type == WALSH_ACTIVATION_INT8 && rotation->kind == WALSH_ROTATION_BLOCKS;
}

_Static_assert((WALSH_STAGE_MAX_COLUMNS + 1280) * 6 <= WALSH_MAX_COLUMNS * 4, "a row of f32 and one of bf16");
_Static_assert((WALSH_TILED_MAX_BF16_COLUMNS + 1280) * 6 <= WALSH_MAX_COLUMNS * 4,
               "a row of f32 and one of bf16");

/* Row r of tiled activations, whose cols * element bytes stand at `row`, with room for the stride. */
static void scatter_row(const struct walsh_activations *a, size_t r, uint8_t *row)
{
    const size_t element = walsh_activation_size(a->type), bytes = a->stride * element,
                 rows = walsh_min(a->rows - r / 16 * 16, 16);
    uint8_t *to = (uint8_t *)a->data + r / 16 * 16 * bytes + r % 16 * 64;
    memset(row + a->cols * element, 0, bytes - a->cols * element);
    for (size_t b = 0; b < bytes; b += 64, to += 64 * rows) memcpy(to, row + b, 64);
}

/* Where row r is written: in place, or, of tiles, behind the rotated row, from where it is scattered. */
static uint8_t *row_of(const struct walsh_activations *a, size_t r, float *rotated)
{
    if (a->tiled) return (uint8_t *)(rotated + a->stride);
    return (uint8_t *)a->data + r * a->stride * walsh_activation_size(a->type);
}

static void end_row(const struct walsh_activations *a, size_t r, uint8_t *row)
{
    const size_t element = walsh_activation_size(a->type);
    if (a->tiled)
        scatter_row(a, r, row);
    else
        memset(row + a->cols * element, 0, (a->stride - a->cols) * element);
}

void walsh_cpu_rotate_row(const struct walsh_kernels *k, const struct walsh_activations *a,
                          const struct walsh_rotation *rotation, size_t r, const float *x,
                          const float *weight, float factor, float *rotated)
{
    uint8_t *row = row_of(a, r, rotated);
    a->scale[r] = k->rotate_i8((int8_t *)row, &a->sum[r], rotated, x, weight, factor, rotation);
    end_row(a, r, row);
}

void walsh_cpu_prepare_row(const struct walsh_kernels *k, const struct walsh_activations *a,
                           const struct walsh_rotation *rotation, size_t r, const float *x, float *rotated)
{
    if (walsh_cpu_rotates_rounding(a, rotation)) {
        walsh_cpu_rotate_row(k, a, rotation, r, x, NULL, 1, rotated);
        return;
    }
    const size_t cols = a->cols;
    uint8_t *row = row_of(a, r, rotated);
    if (a->type == WALSH_ACTIVATION_F32) rotated = (float *)(void *)row; /* in place */
    if (rotation->kind != WALSH_ROTATION_NONE) {
        walsh_kernels_rotate(k, rotation, rotation->signs, x, rotated);
        x = rotated;
    }
    if (a->type == WALSH_ACTIVATION_INT8)
        a->scale[r] = k->quantize_i8((int8_t *)row, &a->sum[r], x, cols);
    else if (a->type == WALSH_ACTIVATION_INT8_GROUPS)
        prepare_groups(k, a, r, x);
    else if (a->type == WALSH_ACTIVATION_BF16)
        k->bf16_from_f32((uint16_t *)(void *)row, x, cols);
    else if (x != rotated)
        memcpy(row, x, cols * sizeof *x);
    end_row(a, r, row);
}

static void prepare_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    const struct prepare *t = argument;
    for (size_t r = begin; r < end; r++)
        walsh_cpu_prepare_row(t->q->kernels, t->a, t->rotation, r, t->x + r * t->ldx,
                              (float *)(void *)t->q->scratch[worker]);
}

void walsh_cpu_prepare(const struct walsh_queue *q, struct walsh_activations *a, const float *x, size_t ldx,
                       const struct walsh_rotation *rotation)
{
    struct prepare t = {q, a, x, ldx, rotation};
    walsh_run_rows(q, a->rows, a->cols, prepare_rows, &t);
}

void walsh_cpu_unrotate_row(const struct walsh_kernels *k, const struct walsh_unrotated *u, size_t r,
                            float *y)
{
    float *z = u->z + r * u->ld;
    if (u->rotation->kind != WALSH_ROTATION_NONE)
        walsh_kernels_unrotate(k, u->rotation, u->rotation->signs, z, y);
    else if (y != z)
        memcpy(y, z, u->rotation->size * sizeof *y);
    if (u->bias != NULL) k->add_f32(y, u->bias, u->rotation->size);
}

struct unrotate {
    const struct walsh_queue *q;
    float *y;
    size_t ldy;
    struct walsh_unrotated from;
};

static void unrotate_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct unrotate *t = argument;
    for (size_t r = begin; r < end; r++)
        walsh_cpu_unrotate_row(t->q->kernels, &t->from, r, t->y + r * t->ldy);
}

void walsh_cpu_unrotate(const struct walsh_queue *q, float *y, size_t ldy, float *z, size_t ldz,
                        const struct walsh_rotation *rotation, const float *bias, size_t rows)
{
    if (rotation->kind == WALSH_ROTATION_NONE && y == z && bias == NULL) return;
    struct unrotate t = {q, y, ldy, {z, ldz, rotation, bias}};
    walsh_run_rows(q, rows, rotation->blocks.padded, unrotate_rows, &t);
}
