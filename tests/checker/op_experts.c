/* The ops of a mixture's experts on a device (kernels/experts.h): of few rows against the product of each slot alone, bit for bit;
 * sorted against sums in double. The CPU's queue has none: its experts are lists of products. */
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/scalar.h"
#include "block_data.h"
#include "checker.h"
#include "kernels/experts.h"
#include "product_data.h"
#include "staged.h"

/* How rows choose. */
enum choice { DRAWN, ONE, FEW, CHOICES };

struct mixture {
    uint32_t experts, k;
    size_t rows, slots, outs, cols;
    int32_t *index;
    const struct walsh_weights **w[WALSH_EXPERT_LIST];
    const float **bias[WALSH_EXPERT_LIST];
    struct walsh_expert_matrices matrices[WALSH_EXPERT_LIST];
};

/* k different experts of each row: of all, always the last one first, or of the first k. */
static void choose(struct check *c, struct mixture *m, enum choice choice)
{
    m->index = check_alloc(c, m->slots * sizeof *m->index, 0);
    for (size_t row = 0; row < m->rows; row++)
        for (uint32_t j = 0; j < m->k; j++) {
            int32_t *chosen = m->index + row * m->k;
            bool again = true;
            while (again) {
                chosen[j] =
                    (int32_t)(choice == ONE && j == 0 ? m->experts - 1
                                                      : check_below(c, choice == FEW ? m->k : m->experts));
                again = false;
                for (uint32_t i = 0; i < j; i++) again = again || chosen[i] == chosen[j];
            }
        }
}

static struct mixture mixture_of(struct check *c, const struct walsh_queue *q, const struct block_kind *kind,
                                 uint32_t experts, uint32_t k, size_t rows, size_t outs, size_t cols,
                                 enum choice choice)
{
    struct mixture m = {
        .experts = experts, .k = k, .rows = rows, .slots = rows * k, .outs = outs, .cols = cols};
    struct walsh_error err;
    choose(c, &m, choice);
    for (size_t i = 0; i < WALSH_EXPERT_LIST; i++) {
        struct walsh_weights *w = check_alloc_private(c, experts * sizeof *w);
        m.w[i] = check_alloc_private(c, experts * sizeof *m.w[i]);
        m.bias[i] = check_alloc_private(c, experts * sizeof *m.bias[i]);
        for (uint32_t e = 0; e < experts; e++) {
            float *bias = check_alloc(c, outs * sizeof *bias, 0);
            check_fill_normal(c, bias, outs);
            w[e] = block_weights(c, kind, outs, cols);
            m.w[i][e] = &w[e];
            m.bias[i][e] = bias;
        }
        void *room = check_alloc_private(c, staged_experts(q)->table_bytes(q, experts));
        if (staged_experts(q)->place(q, m.w[i], i ? m.bias[i] : NULL, experts, room, &m.matrices[i], &err) !=
            WALSH_OK)
            check_fail(c, "%s", err.message);
    }
    return m;
}

/* Where outputs go, with a stride of their own. */
static void outputs(struct check *c, const struct mixture *m, struct walsh_expert_product *list)
{
    for (size_t i = 0; i < WALSH_EXPERT_LIST; i++) {
        const size_t ldy = m->outs + (i ? 3 : 0);
        list[i] = (struct walsh_expert_product){&m->matrices[i],
                                                check_alloc(c, m->slots * ldy * sizeof(float), 0), ldy};
        memset(list[i].y, 0, m->slots * ldy * sizeof(float));
    }
}

/* --- few rows --- */

/* Each slot against its expert's product, by the reference table. */
static void check_routed(struct check *c, const struct check_queues *queues, const struct mixture *m,
                         uint32_t per_row)
{
    const struct walsh_queue *q = &queues->best[0], *reference = &queues->reference;
    const struct walsh_rotation none = {.size = (uint32_t)m->outs, .blocks = {.padded = (uint32_t)m->outs}};
    struct walsh_activations a = block_activations(c, per_row == 1 ? m->slots : m->rows, m->cols);
    struct walsh_expert_product list[WALSH_EXPERT_LIST];
    float *expected = check_alloc_private(c, m->outs * sizeof *expected);
    outputs(c, m, list);
    int32_t *order = check_alloc(c, m->slots * sizeof *order, 0); /* any order gives the same */
    for (size_t s = 0; s < m->slots; s++) order[s] = (int32_t)(m->slots - 1 - s);
    staged_experts(q)->routed(q, list, WALSH_EXPERT_LIST, m->index, c->round % 2 ? order : NULL, m->slots,
                              per_row, &a);
    for (size_t i = 0; i < WALSH_EXPERT_LIST; i++)
        for (size_t s = 0; s < m->slots; s++) {
            const struct walsh_activations row = walsh_activation_rows(&a, s / per_row, 1);
            const struct walsh_product p = {.weights = m->w[i][m->index[s]], .y = expected, .ldy = m->outs};
            reference->ops->product(reference, &p, 1, &row, NULL, WALSH_DECODE);
            if (i)
                reference->ops->unrotate(reference, expected, m->outs, expected, m->outs, &none,
                                         m->bias[i][m->index[s]], 1);
            check_exact_f32(c, i ? "expert with bias" : "expert", expected, list[i].y + s * list[i].ldy,
                            m->outs);
        }
}

/* --- sorted --- */

/* Slots of experts in their order, as the host sorts them. */
static void check_sort(struct check *c, const struct mixture *m, const struct walsh_expert_slots *slots)
{
    int32_t *order = check_alloc_private(c, m->slots * sizeof *order),
            *begin = check_alloc_private(c, (m->experts + 1) * sizeof *begin);
    uint32_t *place = check_alloc_private(c, m->slots * sizeof *place),
             *row = check_alloc_private(c, m->slots * sizeof *row);
    int32_t n = 0;
    for (uint32_t e = 0; e < m->experts; e++) {
        begin[e] = n;
        for (size_t s = 0; s < m->slots; s++) {
            if (m->index[s] != (int32_t)e) continue;
            order[n] = (int32_t)s;
            row[n] = (uint32_t)(s / m->k);
            place[s] = (uint32_t)n++;
        }
    }
    begin[m->experts] = n;
    check_exact_bytes(c, "order of slots", order, slots->order, m->slots * sizeof *order);
    check_exact_bytes(c, "rows of places", row, slots->row, m->slots * sizeof *row);
    check_exact_bytes(c, "places of slots", place, slots->place, m->slots * sizeof *place);
    check_exact_bytes(c, "experts' first places", begin, slots->begin, (m->experts + 1) * sizeof *begin);
}

/* Row r of x as the products read it, of either type. */
struct rows {
    void *data;
    float *value; /* [rows][cols] */
    size_t ld;
};
static struct rows rows_of(struct check *c, enum walsh_format type, size_t rows, size_t cols)
{
    struct rows x = {.ld = cols + (c->round % 2 ? 8 : 0)};
    const size_t n = rows * x.ld;
    float *f = check_alloc(c, n * sizeof *f, 0);
    uint16_t *half = check_alloc(c, n * sizeof *half, 0);
    x.value = check_alloc_private(c, rows * cols * sizeof *x.value);
    check_fill_normal(c, f, n);
    for (size_t i = 0; i < n; i++) half[i] = walsh_bf16_from_f32(f[i]);
    for (size_t i = 0; i < rows * cols; i++)
        x.value[i] = walsh_f32_from_bf16(half[i / cols * x.ld + i % cols]);
    x.data = type == WALSH_FORMAT_F32 ? (void *)f : half;
    return x;
}

static void check_place(struct check *c, const struct mixture *m, size_t i, const float *w, const float *x,
                        int32_t expert, const float *y)
{
    float *expected = check_alloc_private(c, m->outs * sizeof *expected),
          *magnitude = check_alloc_private(c, m->outs * sizeof *magnitude);
    for (size_t o = 0; o < m->outs; o++) {
        double sum = 0, size = 0;
        for (size_t k = 0; k < m->cols; k++) {
            const double product = (double)w[o * m->cols + k] * (double)x[k];
            sum += product, size += fabs(product);
        }
        if (i) sum += (double)m->bias[i][expert][o], size += fabs((double)m->bias[i][expert][o]);
        expected[o] = (float)sum, magnitude[o] = (float)size;
    }
    /* the tensor cores keep fewer bits of a sum than f32 has */
    check_close_f32(c, i ? "sorted expert with bias" : "sorted expert", expected, y, magnitude, m->outs, 16);
}

/* The slots of one row have the bits alone that they have among all. */
static void check_row_alone(struct check *c, const struct walsh_queue *q, const struct mixture *m, size_t row,
                            const uint16_t *arranged, const struct walsh_expert_product *all,
                            const uint32_t *place)
{
    const struct walsh_expert_ops *ops = staged_experts(q);
    struct mixture one = *m;
    one.rows = 1, one.slots = m->k;
    one.index = check_alloc(c, m->k * sizeof *one.index, 0);
    memcpy(one.index, m->index + row * m->k, m->k * sizeof *one.index);
    const size_t bytes = ops->slots_bytes(q, one.slots, m->experts);
    void *room = check_alloc_private(c, bytes);
    memset(room, 0, bytes);
    const struct walsh_expert_slots slots = ops->slots_in(q, room, 1, m->k, m->experts);
    ops->sort(q, one.index, &slots);
    struct walsh_expert_product list[WALSH_EXPERT_LIST];
    outputs(c, &one, list);
    ops->sorted(q, list, WALSH_EXPERT_LIST, &slots, m->k, arranged + row * m->cols);
    for (size_t i = 0; i < WALSH_EXPERT_LIST; i++)
        for (uint32_t j = 0; j < m->k; j++)
            check_exact_f32(c, "row alone", all[i].y + place[row * m->k + j] * all[i].ldy,
                            list[i].y + slots.place[j] * list[i].ldy, m->outs);
}

static void check_sorted(struct check *c, const struct check_queues *queues, const struct mixture *m,
                         uint32_t per_row, enum walsh_format type)
{
    const struct walsh_queue *q = &queues->best[0];
    const struct walsh_expert_ops *ops = staged_experts(q);
    const size_t bytes = ops->slots_bytes(q, m->slots, m->experts), rows = per_row ? m->rows : m->slots;
    void *room = check_alloc_private(c, bytes);
    memset(room, 0, bytes);
    const struct walsh_expert_slots slots = ops->slots_in(q, room, m->rows, m->k, m->experts);
    ops->sort(q, m->index, &slots);
    check_sort(c, m, &slots);
    const struct rows x = rows_of(c, type, rows, m->cols);
    uint16_t *arranged = check_alloc(c, rows * m->cols * sizeof *arranged, 0);
    ops->arrange(q, arranged, type, x.data, x.ld, rows, m->cols);
    struct walsh_expert_product list[WALSH_EXPERT_LIST];
    outputs(c, m, list);
    ops->sorted(q, list, WALSH_EXPERT_LIST, &slots, per_row, arranged);
    if (per_row) check_row_alone(c, q, m, check_below(c, m->rows), arranged, list, slots.place);
    float *w = check_alloc_private(c, m->outs * m->cols * sizeof *w);
    for (size_t i = 0; i < WALSH_EXPERT_LIST; i++)
        for (uint32_t e = 0; e < m->experts; e++) {
            const int32_t begin = slots.begin[e], end = slots.begin[e + 1];
            if (begin == end) continue;
            const struct walsh_weights *from = m->w[i][e];
            queues->reference.kernels->decode_weights_f32(from, 0, m->outs, 0, m->cols, w, m->cols);
            /* of many rows the first and last of an expert, and some between */
            for (int32_t p = begin; p < end;
                 p += p + 1 < end && end - begin > 24 ? 1 + (end - begin) / 12 : 1) {
                const size_t row = per_row ? (size_t)slots.order[p] / per_row : (size_t)p;
                check_place(c, m, i, w, x.value + row * m->cols, (int32_t)e,
                            list[i].y + (size_t)p * list[i].ldy);
            }
        }
}

/* --- training --- */

/* [rank][n] of each expert in bf16, with a gap behind each, and what they are. */
struct update {
    uint16_t *matrix;
    float *value;
    size_t step, n;
};
static struct update update_of(struct check *c, const struct mixture *m, uint32_t rank, size_t n)
{
    struct update u = {.step = rank * n + 16 * check_below(c, 3), .n = n};
    const size_t all = m->experts * u.step;
    u.matrix = check_alloc(c, all * sizeof *u.matrix, 0);
    u.value = check_alloc_private(c, all * sizeof *u.value);
    for (size_t i = 0; i < all; i++) {
        u.matrix[i] = walsh_bf16_from_f32(check_normal(c));
        u.value[i] = walsh_f32_from_bf16(u.matrix[i]);
    }
    return u;
}

struct trained {
    const struct mixture *m;
    const struct walsh_expert_slots *slots;
    uint32_t rank;
    struct rows x, dy; /* [slots] of cols and of outs */
    uint16_t *inner;   /* [slots][WALSH_EXPERT_RANK] */
    const float *w, *inner_value;
};

/* Inner values of x, and of x and dy together, against sums in double. */
static void check_inner(struct check *c, const struct walsh_queue *q, struct trained *t)
{
    const struct mixture *m = t->m;
    const struct update a = update_of(c, m, t->rank, m->cols), b = update_of(c, m, t->rank, m->outs);
    const struct walsh_expert_source list[] = {{t->x.data, a.matrix, t->x.ld, m->cols, a.step},
                                               {t->dy.data, b.matrix, t->dy.ld, m->outs, b.step}};
    const size_t n = m->slots * WALSH_EXPERT_RANK, count = 1 + check_below(c, 2);
    const float scale = 0.25f;
    float *got = check_alloc_private(c, n * sizeof *got), *expected = check_alloc_private(c, n * sizeof *got),
          *magnitude = check_alloc_private(c, n * sizeof *got);
    t->inner = check_alloc(c, n * sizeof *t->inner, 0);
    staged_experts(q)->into_rank(q, t->slots, list, count, t->rank, scale, t->inner);
    for (size_t i = 0; i < n; i++) got[i] = walsh_f32_from_bf16(t->inner[i]);
    for (uint32_t e = 0; e < m->experts; e++)
        for (int32_t p = t->slots->begin[e]; p < t->slots->begin[e + 1]; p++)
            for (size_t j = 0; j < WALSH_EXPERT_RANK; j++) {
                const size_t at = (size_t)p * WALSH_EXPERT_RANK + j;
                double sum = 0, size = 0;
                for (size_t s = 0; s < count && j < t->rank; s++) {
                    const struct rows *x = s ? &t->dy : &t->x;
                    const struct update *u = s ? &b : &a;
                    for (size_t k = 0; k < u->n; k++) {
                        const double product = (double)u->value[e * u->step + j * u->n + k] *
                                               (double)x->value[(size_t)p * u->n + k];
                        sum += product, size += fabs(product);
                    }
                }
                expected[at] = (float)(sum * (double)scale);
                /* rounded to bf16: 2^-8 of the value, 2^15 units of f32 */
                magnitude[at] = (float)(size * (double)scale) + 32768 / 8 * fabsf(expected[at]);
            }
    check_close_f32(c, "inner values", expected, got, magnitude, n, 8);
    t->inner_value = got;
}

/* The gradient of a matrix: += the transpose of the inner values by x. */
static void check_gradient(struct check *c, const struct walsh_queue *q, const struct trained *t)
{
    const struct mixture *m = t->m;
    const size_t step = t->rank * m->cols + 8, all = m->experts * step;
    float *gradient = check_alloc(c, all * sizeof *gradient, 0),
          *before = check_alloc_private(c, all * sizeof *before),
          *magnitude = check_alloc_private(c, all * sizeof *before);
    check_fill_normal(c, gradient, all);
    memcpy(before, gradient, all * sizeof *before);
    staged_experts(q)->gradient(q, t->slots, t->x.data, t->x.ld, m->cols, t->inner, t->rank, gradient, step);
    for (uint32_t e = 0; e < m->experts; e++)
        for (size_t i = 0; i < step; i++) {
            double sum = (double)before[e * step + i], size = fabs(sum);
            for (int32_t p = t->slots->begin[e]; i < t->rank * m->cols && p < t->slots->begin[e + 1]; p++) {
                const double product = (double)t->inner_value[(size_t)p * WALSH_EXPERT_RANK + i / m->cols] *
                                       (double)t->x.value[(size_t)p * m->cols + i % m->cols];
                sum += product, size += fabs(product);
            }
            before[e * step + i] = (float)sum, magnitude[e * step + i] = (float)size;
        }
    /* what stands between the matrices is nobody's */
    check_close_f32(c, "an update's gradient", before, gradient, magnitude, all, 8);
}

/* One direction of a product with its update. */
static void check_pass(struct check *c, const struct walsh_queue *q, const struct check_queues *queues,
                       const struct trained *t, bool back, bool add, bool updated)
{
    const struct mixture *m = t->m;
    const size_t in = back ? m->outs : m->cols, out = back ? m->cols : m->outs, ldy = out + 4;
    const struct update u = update_of(c, m, t->rank, out);
    float *y = check_alloc(c, m->slots * ldy * sizeof *y, 0),
          *w = check_alloc_private(c, in * out * sizeof *w),
          *before = check_alloc_private(c, m->slots * ldy * sizeof *y),
          *magnitude = check_alloc_private(c, out * sizeof *magnitude);
    const struct rows *x = back ? &t->dy : &t->x;
    uint16_t *arranged = check_alloc(c, m->slots * in * sizeof *arranged, 0);
    memset(arranged, 0, m->slots * in * sizeof *arranged);
    if (!back) staged_experts(q)->arrange(q, arranged, WALSH_FORMAT_BF16, x->data, x->ld, m->slots, in);
    check_fill_normal(c, y, m->slots * ldy);
    memcpy(before, y, m->slots * ldy * sizeof *y);
    const struct walsh_expert_pass p = {.matrices = &m->matrices[1],
                                        .slots = t->slots,
                                        .back = back,
                                        .add = add,
                                        .x = back ? x->data : arranged,
                                        .ldx = back ? x->ld : in,
                                        .y = y,
                                        .ldy = ldy,
                                        .update = {u.matrix, updated ? t->inner : NULL, u.step, t->rank}};
    staged_experts(q)->pass(q, &p);
    for (uint32_t e = 0; e < m->experts; e++) {
        queues->reference.kernels->decode_weights_f32(m->w[1][e], 0, m->outs, 0, m->cols, w, m->cols);
        for (int32_t s = t->slots->begin[e]; s < t->slots->begin[e + 1]; s++) {
            float *expected = before + (size_t)s * ldy;
            for (size_t o = 0; o < out; o++) {
                double sum = add    ? (double)expected[o]
                             : back ? 0
                                    : (double)m->bias[1][e][o],
                       size = fabs(sum);
                for (size_t k = 0; k < in; k++) {
                    const double product = (double)w[back ? k * m->cols + o : o * m->cols + k] *
                                           (double)x->value[(size_t)s * in + k];
                    sum += product, size += fabs(product);
                }
                for (size_t j = 0; updated && j < t->rank; j++) {
                    const double product = (double)t->inner_value[(size_t)s * WALSH_EXPERT_RANK + j] *
                                           (double)u.value[e * u.step + j * out + o];
                    sum += product, size += fabs(product);
                }
                expected[o] = (float)sum, magnitude[o] = (float)size;
            }
            check_close_f32(c, back ? "an expert back" : "an expert in training", expected,
                            y + (size_t)s * ldy, magnitude, out, 16);
            check_exact_f32(c, "beside an expert's outputs", before + (size_t)s * ldy + out,
                            y + (size_t)s * ldy + out, 4);
        }
    }
}

static void check_training(struct check *c, const struct check_queues *queues, const struct mixture *m)
{
    const struct walsh_queue *q = &queues->best[0];
    const struct walsh_expert_ops *ops = staged_experts(q);
    const size_t bytes = ops->slots_bytes(q, m->slots, m->experts);
    void *room = check_alloc_private(c, bytes);
    memset(room, 0, bytes);
    const struct walsh_expert_slots slots = ops->slots_in(q, room, m->rows, m->k, m->experts);
    ops->sort(q, m->index, &slots);
    struct trained t = {.m = m,
                        .slots = &slots,
                        .rank = c->round == 0 ? WALSH_EXPERT_RANK : 1 + (uint32_t)check_below(c, 16),
                        .x = rows_of(c, WALSH_FORMAT_BF16, m->slots, m->cols),
                        .dy = rows_of(c, WALSH_FORMAT_BF16, m->slots, m->outs)};
    check_inner(c, q, &t);
    check_gradient(c, q, &t);
    for (int updated = 0; updated < 2; updated++) {
        check_pass(c, q, queues, &t, false, false, updated);
        check_pass(c, q, queues, &t, true, false, updated);
        check_pass(c, q, queues, &t, true, true, updated);
    }
}

void check_op_experts(struct check *c, const struct check_queues *queues)
{
    const struct walsh_queue *q = &queues->best[0];
    const struct walsh_expert_ops *ops = staged_experts(q);
    if (!ops) return;
    for (size_t kind = 0; kind < BLOCK_KINDS; kind++) { /* what has no kernels is said to have none */
        const struct walsh_weights w = block_weights(c, &block_kinds[kind], 40, 48);
        const bool decode = ops->fits(q, &w, WALSH_DECODE), prefill = ops->fits(q, &w, WALSH_PREFILL);
        if (decode != (kind == 0) || prefill) check_fail(c, "%s: fits", block_kinds[kind].name);
    }
    for (int choice = 0; choice < CHOICES; choice++) {
        const uint32_t experts = 3 + (uint32_t)check_below(c, 14), k = 1 + (uint32_t)check_below(c, 3);
        const struct mixture m =
            mixture_of(c, q, &block_kinds[0], experts, k, 1 + check_below(c, 9), 1 + check_below(c, 90),
                       1 + check_below(c, 700), (enum choice)choice);
        check_routed(c, queues, &m, k);
        check_routed(c, queues, &m, 1);
    }
    const struct walsh_weights even = block_weights(c, &block_kinds[0], 32, 32);
    if (!ops->fits(q, &even, WALSH_PREFILL)) return; /* no grouped products on this device */
    static const size_t most[CHOICES] = {400, 330, 40};
    for (int choice = 0; choice < CHOICES; choice++) {
        const uint32_t experts = 3 + (uint32_t)check_below(c, 30), k = 1 + (uint32_t)check_below(c, 3);
        const struct mixture m =
            mixture_of(c, q, &block_kinds[0], experts, k, 1 + check_below(c, most[choice]),
                       32 * (1 + check_below(c, 12)), 32 * (1 + check_below(c, 12)), (enum choice)choice);
        check_sorted(c, queues, &m, k, WALSH_FORMAT_F32);
        check_sorted(c, queues, &m, 0, WALSH_FORMAT_BF16);
        const struct mixture few =
            mixture_of(c, q, &block_kinds[0], experts, k, 1 + check_below(c, choice == ONE ? 170 : 60),
                       32 * (1 + check_below(c, 10)), 32 * (1 + check_below(c, 10)), (enum choice)choice);
        check_training(c, queues, &few);
    }
}
