/* prepare and unrotate: EXACT against the scalar definition in rotation/, for every type of activations and
 * any pool. */
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/scalar.h"
#include "checker.h"

#define ROWS 20
enum { TYPES = WALSH_ACTIVATION_INT8_GROUPS + 1 };

static float *row(struct check *c, size_t n)
{
    return check_alloc(c, n * sizeof(float), check_misalign(c, sizeof(float)));
}

static struct walsh_rotation rotation_of(struct check *c, uint32_t size, unsigned how)
{
    struct walsh_rotation r = {.kind = how == 0 ? WALSH_ROTATION_NONE : WALSH_ROTATION_BLOCKS, .size = size};
    r.blocks.padded = size;
    if (how == 1 || how == 3) walsh_blocks_binary(size, WALSH_MIN_BLOCK_COLUMNS, &r.blocks, NULL);
    if (how == 2) walsh_blocks_pow2(size, WALSH_MIN_BLOCK_COLUMNS, &r.blocks, NULL);
    if (how == 4) walsh_rotation_overlap_padded(size, WALSH_MIN_BLOCK_COLUMNS, NULL, &r, NULL);
    if (how == 5) walsh_blocks_parts(size, WALSH_MIN_BLOCK_COLUMNS, 2, &r.blocks, NULL);
    if (how == 6)
        walsh_blocks_parts(size, WALSH_MIN_BLOCK_ROWS, 4, &r.blocks, NULL); /* blocks of 16 among others */
    if (how == 7) walsh_blocks_uniform(size, 32, &r.blocks, NULL);
    if (how == 8) walsh_blocks_binary(size, 1, &r.blocks, NULL);
    float *signs = row(c, walsh_rotation_signs(&r));
    walsh_random_signs(c->seed + c->round, "signs", signs, (uint32_t)walsh_rotation_signs(&r));
    for (size_t i = 0; i < r.blocks.padded && how == 3; i++)
        signs[i] *= 0.5f + (float)check_below(c, 3); /* a scale too */
    r.signs = how == 0 ? NULL : signs;
    return r;
}

static struct walsh_activations activations(struct check *c, enum walsh_activation_type type, size_t cols)
{
    size_t stride = walsh_activations_stride(cols);
    return (struct walsh_activations){
        .type = type,
        .rows = ROWS,
        .cols = cols,
        .stride = stride,
        .data = check_alloc(c, ROWS * stride * walsh_activation_size(type), 0),
        .scale = check_alloc(c, ROWS * walsh_activation_scales(type, stride) * sizeof(float), 0),
        .sum = check_alloc(c, ROWS * walsh_activation_sums(type, stride) * sizeof(int32_t), 0),
    };
}

/* The same in groups of 32; what is beyond the last group's columns is not looked at. */
static void expect_groups(struct check *c, const struct walsh_activations *a, size_t r, const float *rotated,
                          int8_t *expected)
{
    const size_t n = walsh_round_up(a->cols, WALSH_ACTIVATION_GROUP), scales = n / WALSH_ACTIVATION_GROUP,
                 sums = n / WALSH_ACTIVATION_SUM;
    float *x = row(c, n), *scale = check_alloc(c, scales * sizeof *scale, 0);
    int32_t *sum = check_alloc(c, sums * sizeof *sum, 0);
    memset(x, 0, n * sizeof *x);
    memcpy(x, rotated, a->cols * sizeof *x);
    walsh_quantize_groups_i8_reference(expected, scale, sum, x, n);
    check_exact_f32(c, "scales of groups", scale, a->scale + r * walsh_activation_scales(a->type, a->stride),
                    scales);
    check_exact_bytes(c, "sums of groups", sum, a->sum + r * walsh_activation_sums(a->type, a->stride),
                      sums * sizeof *sum);
}

/* The bytes of row r, wherever they are: kernels.h has the place of each in tiles. */
static const uint8_t *row_bytes(struct check *c, const struct walsh_activations *a, size_t r)
{
    const size_t bytes = a->stride * walsh_activation_size(a->type), group = r / 16 * 16,
                 n = walsh_min(16, a->rows - group);
    const uint8_t *data = a->data;
    if (!a->tiled) return data + r * bytes;
    uint8_t *row = check_alloc(c, bytes, 0);
    for (size_t b = 0; b < bytes; b++)
        row[b] = data[group * bytes + b / 64 * 64 * n + (r - group) * 64 + b % 64];
    return row;
}

/* The definition: rotated row r, rounded. */
static void expect_row(struct check *c, const struct walsh_activations *a, size_t r, const float *rotated)
{
    uint8_t *expected = check_alloc(c, a->stride * walsh_activation_size(a->type), 0);
    memset(expected, 0, a->stride * walsh_activation_size(a->type));
    const uint8_t *data = row_bytes(c, a, r);
    if (a->type == WALSH_ACTIVATION_F32) memcpy(expected, rotated, a->cols * sizeof *rotated);
    for (size_t i = 0; i < a->cols && a->type == WALSH_ACTIVATION_BF16; i++) {
        uint16_t b = walsh_bf16_from_f32(rotated[i]);
        memcpy(expected + 2 * i, &b, sizeof b);
    }
    if (a->type == WALSH_ACTIVATION_INT8) {
        int32_t sum;
        float scale = walsh_quantize_i8_reference((int8_t *)expected, &sum, rotated, a->cols);
        check_exact_f32(c, "scale", &scale, &a->scale[r], 1);
        if (sum != a->sum[r]) check_fail(c, "the sum of row %zu is %d, expected %d", r, a->sum[r], sum);
    }
    if (a->type == WALSH_ACTIVATION_INT8_GROUPS) expect_groups(c, a, r, rotated, (int8_t *)expected);
    check_exact_bytes(c, "prepared row", expected, data, a->stride * walsh_activation_size(a->type));
}

static void check_prepare(struct check *c, const struct walsh_queue *q, const struct walsh_rotation *rotation)
{
    size_t size = rotation->size, ldx = size + 7;
    float *x = row(c, (ROWS - 1) * ldx + size), *rotated = row(c, rotation->blocks.padded);
    check_fill_normal(c, x, (ROWS - 1) * ldx + size);
    for (int way = WALSH_ACTIVATION_F32; way < 2 * TYPES; way++) {
        const enum walsh_activation_type type = (enum walsh_activation_type)(way % TYPES);
        struct walsh_activations a = activations(c, type, rotation->blocks.padded);
        a.tiled = way >= TYPES;
        if (a.tiled && (q->device || (type != WALSH_ACTIVATION_INT8 && type != WALSH_ACTIVATION_BF16)))
            continue;
        q->ops->prepare(q, &a, x, ldx, rotation);
        for (size_t r = 0; r < ROWS; r++) {
            walsh_rotate_forward(rotation, x + r * ldx, rotated);
            expect_row(c, &a, r, rotated);
        }
    }
}

static void check_unrotate(struct check *c, const struct walsh_queue *q,
                           const struct walsh_rotation *rotation, bool biased)
{
    size_t size = rotation->size, padded = rotation->blocks.padded, ldz = padded + 3, ldy = size + 2;
    float *z = row(c, ROWS * ldz), *y = row(c, ROWS * ldy), *bias = row(c, size), *expected = row(c, size);
    check_fill_normal(c, z, ROWS * ldz);
    check_fill_normal(c, bias, size);
    float *z2 = row(c, ROWS * ldz), *in_place = row(c, ROWS * ldz);
    memcpy(z2, z, ROWS * ldz * sizeof *z);
    memcpy(in_place, z, ROWS * ldz * sizeof *z);
    q->ops->unrotate(q, y, ldy, z2, ldz, rotation, biased ? bias : NULL, ROWS);
    q->ops->unrotate(q, in_place, ldz, in_place, ldz, rotation, biased ? bias : NULL, ROWS);
    for (size_t r = 0; r < ROWS; r++) {
        walsh_rotate_inverse(rotation, z + r * ldz, expected);
        for (size_t i = 0; i < size && biased; i++) expected[i] += bias[i];
        check_exact_f32(c, "unrotated row", expected, y + r * ldy, size);
        check_exact_f32(c, "row unrotated in place", expected, in_place + r * ldz, size);
    }
}

/* Whether there is such a rotation of so many elements. */
static bool exists(uint32_t size, unsigned how)
{
    if (how == 5) return size % (2 * 64) == 0; /* nothing is padded */
    if (how == 6) return size % (4 * 16) == 0;
    return how != 7 || size % 32 == 0;
}

void check_op_prepare(struct check *c, const struct check_queues *queues)
{
    static const uint32_t sizes[] = {1, 64, 100, 576, 2048, 3000, 4864, 33000};
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++)
        for (unsigned how = 0; how < 9; how++) {
            const struct walsh_queue *q = c->round == 0 ? &queues->reference : &queues->best[c->round - 1];
            if (!exists(sizes[s], how) || (how == 2 && sizes[s] > 32768))
                continue; /* 65536: more than a device holds */
            struct walsh_rotation rotation = rotation_of(c, sizes[s], how);
            check_prepare(c, q, &rotation);
            check_unrotate(c, q, &rotation, s % 2 == 0);
        }
}
