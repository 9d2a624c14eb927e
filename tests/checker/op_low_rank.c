/* The product op with low-rank updates: several of them on shared and on separate rows, an h that two
 * products read, both roles, any pool. */
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "checker.h"
#include "product_data.h"

#define PRODUCTS 2
#define UPDATES 4 /* of the list: two of the first product, two of the second */

struct update {
    enum walsh_format format;
    size_t rank, row_begin, row_end;
    float scale;
    void *a, *b;
    unsigned product, same_a; /* same_a: the update whose A this is, itself where it has its own */
};

struct low_rank_data {
    enum walsh_role role;
    size_t rows, cols, ldx;
    bool int8; /* E8P by int8 activations; else dense by f32 */
    float *x;
    struct walsh_weights w[PRODUCTS];
    struct walsh_activations a;
    struct update updates[UPDATES];
};

static void *random_matrix(struct check *c, enum walsh_format format, size_t rows, size_t cols, bool is_a)
{
    const size_t size = is_a ? walsh_low_rank_a_size(rows, cols) : walsh_low_rank_b_size(format, cols, rows);
    void *m = check_alloc(c, size * (format == WALSH_FORMAT_F32 ? 4 : 2), 0);
    memset(m, 0, size * (format == WALSH_FORMAT_F32 ? 4 : 2));
    for (size_t r = 0; r < rows; r++)
        for (size_t k = 0; k < cols; k++) {
            const size_t at =
                is_a ? walsh_low_rank_a_at(format, cols, r, k) : walsh_low_rank_b_at(format, cols, r, k);
            walsh_low_rank_put(format, m, at, check_normal(c));
        }
    return m;
}

static struct low_rank_data make_data(struct check *c, enum walsh_role role, bool int8, size_t rows,
                                      size_t cols)
{
    static const size_t ranks[] = {1, 3, 8, 16, 17, 64};
    struct low_rank_data d = {
        .role = role, .rows = rows, .cols = cols, .ldx = cols + check_below(c, 5), .int8 = int8};
    const size_t outs[PRODUCTS] = {96 + 16 * check_below(c, 20), int8 ? 80 : 70};
    d.x = check_alloc(c, ((rows - 1) * d.ldx + cols) * sizeof(float), check_misalign(c, sizeof(float)));
    check_fill_normal(c, d.x, (rows - 1) * d.ldx + cols);
    d.a = product_activations(c, int8 ? WALSH_ACTIVATION_INT8 : WALSH_ACTIVATION_F32, rows, cols, int8);
    for (unsigned n = 0; n < PRODUCTS; n++) {
        const struct product_shape dense = {n == 0 ? WALSH_FORMAT_BF16 : WALSH_FORMAT_F32, "", outs[n], cols};
        const struct product_shape codes = {WALSH_FORMAT_E8P, n == 0 ? "PB" : "P", outs[n], cols};
        const struct product_shape shape = int8 ? codes : dense;
        d.w[n] = product_weights(c, &shape);
    }
    for (unsigned u = 0; u < UPDATES; u++) {
        struct update *t = &d.updates[u];
        t->product = u / 2;
        t->same_a = u == 2 ? 0 : u; /* the second product's first update reads the first product's first h */
        const struct update *same = &d.updates[t->same_a];
        t->format = same == t ? (check_below(c, 2) ? WALSH_FORMAT_BF16 : WALSH_FORMAT_F32) : same->format;
        t->rank = same == t ? ranks[check_below(c, sizeof ranks / sizeof ranks[0])] : same->rank;
        t->row_begin = same == t ? (u == 0 ? 0 : check_below(c, rows)) : same->row_begin;
        t->row_end = same == t ? t->row_begin + 1 + check_below(c, rows - t->row_begin) : same->row_end;
        t->scale = check_normal(c);
        t->a = same == t ? random_matrix(c, t->format, t->rank, cols, true) : same->a;
        t->b = random_matrix(c, t->format, outs[t->product], t->rank, false);
    }
    return d;
}

/* The op on rows [begin, begin + rows) of the data, with its updates or without; y[product] has those rows. */
static void run(struct check *c, const struct walsh_queue *q, const struct low_rank_data *d, bool updated,
                size_t begin, size_t rows, float *const *y)
{
    struct walsh_product list[PRODUCTS];
    struct walsh_low_rank_down down[UPDATES];
    struct walsh_low_rank_up up[UPDATES];
    struct walsh_low_rank_input in = {
        .x = d->x + begin * d->ldx, .ldx = d->ldx, .cols = d->cols, .down = down};
    uint32_t place[UPDATES];
    size_t ups = 0;
    struct walsh_activations a = d->a;
    a.rows = rows;
    a.data = (uint8_t *)a.data + begin * a.stride * walsh_activation_size(a.type);
    if (d->int8) {
        a.scale += begin;
        a.sum += begin;
    }
    for (unsigned n = 0; n < PRODUCTS; n++) {
        list[n] =
            (struct walsh_product){.weights = &d->w[n], .y = y[n], .ldy = d->w[n].rows + n, .up = up + ups};
        for (unsigned u = 0; updated && u < UPDATES; u++) {
            const struct update *t = &d->updates[u];
            const size_t first = walsh_max(t->row_begin, begin), end = walsh_min(t->row_end, begin + rows);
            if (t->product != n || first >= end) continue;
            if (t->same_a == u) {
                const size_t elements = walsh_low_rank_scratch(t->rank, d->cols, end - first, d->role);
                place[u] = (uint32_t)in.count;
                struct walsh_low_rank_down *to = &down[in.count++];
                to->format = t->format;
                to->rank = (uint32_t)t->rank;
                to->a = t->a;
                to->row_begin = first - begin;
                to->row_end = end - begin;
                to->h = check_alloc(c, elements * sizeof(float), 0);
            }
            up[ups++] = (struct walsh_low_rank_up){place[t->same_a], t->scale, t->b};
            list[n].up_count++;
        }
    }
    q->ops->product(q, list, PRODUCTS, &a, updated ? &in : NULL, d->role);
}

/* y in double precision, and the sum of the magnitudes that went into it. plain: what the product gave by itself, which is exact where
 * it is one of integers. */
static void expect(const struct low_rank_data *d, unsigned n, size_t row, size_t o, float plain, double *y,
                   double *magnitude)
{
    const struct walsh_weights *w = &d->w[n];
    *y = d->int8 ? (double)plain : 0;
    *magnitude = fabs(*y);
    for (size_t k = 0; k < d->cols && !d->int8; k++) {
        uint32_t bits = 0;
        memcpy((char *)&bits + (n == 0 ? 2 : 0), (const char *)w->data + (o * d->cols + k) * (n == 0 ? 2 : 4),
               n == 0 ? 2 : 4);
        float weight;
        memcpy(&weight, &bits, sizeof weight);
        const double p = (double)weight * (double)((const float *)d->a.data)[row * d->a.stride + k];
        *y += p;
        *magnitude += fabs(p);
    }
    for (unsigned u = 0; u < UPDATES; u++) {
        const struct update *t = &d->updates[u];
        if (t->product != n || row < t->row_begin || row >= t->row_end) continue;
        for (size_t j = 0; j < t->rank; j++) {
            double h = 0, size = 0;
            for (size_t k = 0; k < d->cols; k++) {
                const double p = (double)walsh_low_rank_get(t->format, t->a,
                                                            walsh_low_rank_a_at(t->format, d->cols, j, k)) *
                                 (double)d->x[row * d->ldx + k];
                h += p;
                size += fabs(p);
            }
            const double b =
                (double)t->scale *
                (double)walsh_low_rank_get(t->format, t->b, walsh_low_rank_b_at(t->format, t->rank, o, j));
            *y += b * h;
            *magnitude += fabs(b) * size;
        }
    }
}

static void check_values(struct check *c, const struct low_rank_data *d, float *const *plain, float *const *y)
{
    for (unsigned sample = 0; sample < 60; sample++) {
        const unsigned n = (unsigned)check_below(c, PRODUCTS);
        const size_t row = check_below(c, d->rows), o = check_below(c, d->w[n].rows);
        double want, size;
        const size_t at = row * (d->w[n].rows + n) + o;
        expect(d, n, row, o, plain[n][at], &want, &size);
        const float expected = (float)want, magnitude = (float)size;
        check_close_f32(c, "y with updates", &expected, &y[n][at], &magnitude, 1, 8);
    }
}

static void check_case(struct check *c, const struct check_queues *queues, enum walsh_role role, bool int8,
                       size_t rows, size_t cols)
{
    const struct low_rank_data d = make_data(c, role, int8, rows, cols);
    const struct walsh_queue *tables[4] = {&queues->best[0], &queues->best[1], &queues->best[2],
                                           &queues->reference};
    float *y[4][PRODUCTS], *alone[PRODUCTS], *plain[PRODUCTS];
    for (unsigned q = 0; q < 4; q++) {
        for (unsigned n = 0; n < PRODUCTS; n++)
            y[q][n] = check_alloc(c, rows * (d.w[n].rows + n) * sizeof(float), 0);
        run(c, tables[q], &d, true, 0, rows, y[q]);
    }
    for (unsigned n = 0; n < PRODUCTS; n++) {
        const size_t bytes = rows * (d.w[n].rows + n) * sizeof(float);
        check_exact_bytes(c, "y with updates, 1 and 2 threads", y[0][n], y[1][n], bytes);
        check_exact_bytes(c, "y with updates, 1 and 3 threads", y[0][n], y[2][n], bytes);
        alone[n] = check_alloc(c, (d.w[n].rows + n) * sizeof(float), 0);
    }
    for (unsigned n = 0; n < PRODUCTS; n++)
        plain[n] = check_alloc(c, rows * (d.w[n].rows + n) * sizeof(float), 0);
    run(c, &queues->reference, &d, false, 0, rows, plain);
    if (c->round != CHECK_ROUNDS - 1) { /* whose activations have a NaN */
        check_values(c, &d, plain, y[0]);
        check_values(c, &d, plain, y[3]);
    }
    const size_t row = check_below(c, rows);
    run(c, &queues->best[2], &d, true, row, 1, alone);
    for (unsigned n = 0; n < PRODUCTS; n++)
        check_exact_f32(c, "y with updates of a row alone", y[0][n] + row * (d.w[n].rows + n), alone[n],
                        d.w[n].rows);
}

void check_op_low_rank(struct check *c, const struct check_queues *queues)
{
    static const size_t rows[] = {1, 3, 8, 17};
    for (size_t n = 0; n < sizeof rows / sizeof rows[0]; n++) {
        check_case(c, queues, WALSH_DECODE, false, rows[n], n % 2 ? 320 : 2500);
        check_case(c, queues, WALSH_PREFILL, false, rows[n] * 3, n % 2 ? 2500 : 320);
        check_case(c, queues, WALSH_DECODE, true, rows[n] + 20 * (n % 2), n % 2 ? 320 : 1216);
        check_case(c, queues, WALSH_PREFILL, true, rows[n] * 3, n % 2 ? 1216 : 320);
    }
}
