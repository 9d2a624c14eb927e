#include "train/lora.h"

#include <string.h>

#include "base/memory.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/table.h"
#include "train/device.h"

#define ROWS 64      /* of a piece; a row's bits do not depend on it */
#define COLUMNS 64   /* of a piece of a gradient */
#define TOKENS 256   /* rows whose sum is added to a gradient at once: their part of x stays in L1 */
#define MAX_RANK 256 /* WALSH_MAX_LORA_RANK */

static const float ones[MAX_RANK + ROWS] = {[0 ... MAX_RANK + ROWS - 1] = 1};

static size_t padded_rows(size_t rows)
{
    return walsh_round_up(rows, 16) + 16; /* not a power of two apart */
}

size_t walsh_lora_scratch(uint32_t rank, size_t rows, size_t sites)
{
    return 2 * (size_t)rank * (rows + sites * 2 * 16);
}

struct lora {
    const struct walsh_queue *q;
    const struct walsh_lora_site *sites;
    size_t count;
    const float *x;
    float *dx;
    const uint16_t *x_rows; /* x in bf16 */
    size_t ldx, lddx;
};

/* Is call i of a site the first with its A? */
static bool first_of_a(const struct walsh_lora_site *s, size_t i)
{
    if (!s->calls[i].lora) return false;
    for (size_t j = 0; j < i; j++)
        if (s->calls[j].lora && s->calls[j].lora->a == s->calls[i].lora->a) return false;
    return true;
}

/* The site of a unit, of rows or of gradients. */
static const struct walsh_lora_site *site_of(const struct lora *t, size_t unit, bool gradient)
{
    size_t low = 0, high = t->count - 1;
    while (low < high) {
        const size_t middle = (low + high + 1) / 2;
        if ((gradient ? t->sites[middle].first_gradient : t->sites[middle].first) <= unit)
            low = middle;
        else
            high = middle - 1;
    }
    return &t->sites[low];
}

/* --- products with A and B in f32 --- */

/* A worker's scratch: inner values of a piece's rows, and what a product in bf16 reads. */
struct inner {
    float h[ROWS * MAX_RANK];
    uint32_t pairs[TOKENS / 2][COLUMNS];
};

/* inner->h [n][rank] = or, with `add`, += rows x[n][cols] by the transpose of a matrix [rank][cols]. */
static void into_rank(const struct walsh_kernels *k, struct inner *inner, const float *x, size_t ldx,
                      size_t n, size_t cols, size_t rank, const float *transpose, bool add)
{
    k->multiply_tile_f32(inner->h, rank, add ? ones : NULL, x, ldx, transpose, rank, n, rank, cols);
}

/* y[n][cols] += inner->h by a matrix [rank][cols]. */
static void out_of_rank(const struct walsh_kernels *k, struct inner *inner, float *y, size_t ldy, size_t n,
                        size_t cols, size_t rank, const float *matrix)
{
    k->multiply_tile_f32(y, ldy, ones, inner->h, rank, matrix, cols, n, cols, rank);
}

/* inner->h [n][rank] = s A x of rows [row, row + n) of x. */
static void project(const struct lora *t, const struct walsh_lora *l, size_t row, size_t n,
                    struct inner *inner)
{
    into_rank(t->q->kernels, inner, t->x + row * t->ldx, t->ldx, n, l->in, l->rank, l->a_t, false);
    t->q->kernels->scale_f32(inner->h, l->scale, n * l->rank);
}

/* --- forward --- */

/* Rows [row, row + n) of a site. */
static void forward_rows(const struct lora *t, const struct walsh_lora_site *s, size_t row, size_t n,
                         struct inner *inner)
{
    for (size_t i = 0; i < s->count; i++) {
        if (!first_of_a(s, i)) continue;
        project(t, s->calls[i].lora, s->begin + row, n, inner);
        for (size_t j = i; j < s->count; j++) {
            const struct walsh_lora_call *call = &s->calls[j];
            const struct walsh_lora *l = call->lora;
            if (!l || l->a != s->calls[i].lora->a) continue;
            out_of_rank(t->q->kernels, inner, call->y + row * call->ldy, call->ldy, n, l->out, l->rank, l->b);
        }
    }
}

static void forward_units(void *argument, size_t begin, size_t end, unsigned worker)
{
    const struct lora *t = argument;
    struct inner *inner = (struct inner *)(void *)t->q->scratch[worker];
    for (size_t unit = begin; unit < end; unit++) {
        const struct walsh_lora_site *s = site_of(t, unit, false);
        const size_t row = (unit - s->first) * ROWS;
        forward_rows(t, s, row, walsh_min(ROWS, s->rows - row), inner);
    }
}

/* Number the units of rows of all sites; returns how many there are. */
static size_t number_rows(struct walsh_lora_site *sites, size_t count)
{
    size_t units = 0;
    for (size_t i = 0; i < count; i++) {
        sites[i].first = units;
        units += walsh_div_up(sites[i].rows, ROWS);
    }
    return units;
}

void walsh_lora_forward(const struct walsh_queue *q, struct walsh_lora_site *sites, size_t count,
                        const float *x, size_t ldx, float *scratch)
{
    for (size_t i = 0; walsh_train_device(q) && i < count; i++)
        walsh_device_lora_forward(q, &sites[i], x, ldx, scratch);
    if (walsh_train_device(q)) return;
    _Static_assert(sizeof(struct inner) <= WALSH_SCRATCH_BYTES, "a worker's scratch");
    struct lora t = {.q = q, .sites = sites, .count = count, .x = x, .ldx = ldx};
    walsh_pool_run_near(q->pool, number_rows(sites, count), 1, forward_units, &t);
}

/* --- backward --- */

/* Inner values of rows [row, row + n) of a site, and their part of dx. */
static void inner_rows(const struct lora *t, const struct walsh_lora_site *s, size_t row, size_t n,
                       struct inner *inner)
{
    const struct walsh_kernels *k = t->q->kernels;
    for (size_t i = 0; i < s->count; i++) {
        if (!first_of_a(s, i)) continue;
        const struct walsh_lora *l = s->calls[i].lora;
        const size_t rank = l->rank;
        project(t, l, s->begin + row, n, inner);
        k->transpose_f32(s->inner[i] + row, s->ld, inner->h, rank, n, rank);
        bool started = false;
        for (size_t j = i; j < s->count; j++) {
            const struct walsh_lora_call *call = &s->calls[j];
            if (!call->lora || call->lora->a != l->a) continue;
            into_rank(k, inner, call->y + row * call->ldy, call->ldy, n, call->lora->out, rank,
                      call->lora->b_t, started);
            started = true;
        }
        k->scale_f32(inner->h, l->scale, n * rank);
        k->transpose_f32(s->inner[i] + rank * s->ld + row, s->ld, inner->h, rank, n, rank);
        if (t->dx) out_of_rank(k, inner, t->dx + (s->begin + row) * t->lddx, t->lddx, n, l->in, rank, l->a);
    }
}

static void inner_units(void *argument, size_t begin, size_t end, unsigned worker)
{
    const struct lora *t = argument;
    struct inner *inner = (struct inner *)(void *)t->q->scratch[worker];
    for (size_t unit = begin; unit < end; unit++) {
        const struct walsh_lora_site *s = site_of(t, unit, false);
        const size_t row = (unit - s->first) * ROWS;
        inner_rows(t, s, row, walsh_min(ROWS, s->rows - row), inner);
    }
}

/* gradient[rank][cols] += kept[rank][rows] · x[rows][cols], columns [from, from + n) of a site's rows. */
static void add_gradient(const struct lora *t, const struct walsh_lora_site *s, const struct walsh_lora *l,
                         float *gradient, size_t cols, const float *kept, const float *x, size_t ldx,
                         size_t from)
{
    const size_t n = walsh_min(COLUMNS, cols - from);
    for (size_t row = 0; row < s->rows; row += TOKENS)
        t->q->kernels->multiply_tile_f32(gradient + from, cols, ones, kept + row, s->ld, x + row * ldx + from,
                                         ldx, l->rank, n, walsh_min(TOKENS, s->rows - row));
}

/* The same of kept and x in bf16. */
static void add_gradient_narrow(const struct lora *t, const struct walsh_lora_site *s,
                                const struct walsh_lora *l, struct inner *inner, float *gradient, size_t cols,
                                const uint16_t *kept, const uint16_t *x, size_t ldx, size_t from)
{
    const struct walsh_kernels *k = t->q->kernels;
    const size_t n = walsh_min(COLUMNS, cols - from);
    for (size_t row = 0; row < s->rows; row += TOKENS) {
        const size_t rows = walsh_min(TOKENS, s->rows - row);
        k->pair_narrow_rows_bf16(inner->pairs[0], COLUMNS, x + row * ldx + from, ldx, rows, n);
        const struct walsh_pairs_product p = {.c = gradient + from,
                                              .ldc = cols,
                                              .a = kept + row,
                                              .lda = s->ld,
                                              .b = inner->pairs[0],
                                              .ldb = COLUMNS,
                                              .m = l->rank,
                                              .n = n,
                                              .steps = walsh_div_up(rows, 2),
                                              .add = true};
        k->multiply_pairs_bf16(&p);
    }
}

static uint16_t *narrow_of(float *scratch)
{
    return (uint16_t *)(void *)scratch;
}

/* Unit u of a site's gradients: COLUMNS columns of dA of each A, then of dB of each call. */
static void gradient_unit(const struct lora *t, const struct walsh_lora_site *s, size_t u,
                          struct inner *inner)
{
    for (size_t i = 0; i < s->count; i++) {
        const struct walsh_lora *l = s->calls[i].lora;
        if (!l) continue;
        const size_t a_units = first_of_a(s, i) ? walsh_div_up(l->in, COLUMNS) : 0,
                     b_units = walsh_div_up(l->out, COLUMNS);
        if (u < a_units) {
            if (l->a_pairs)
                add_gradient_narrow(t, s, l, inner, l->grad_a, l->in, narrow_of(s->inner[i]),
                                    t->x_rows + s->begin * t->ldx, t->ldx, u * COLUMNS);
            else
                add_gradient(t, s, l, l->grad_a, l->in, s->inner[i] + l->rank * s->ld,
                             t->x + s->begin * t->ldx, t->ldx, u * COLUMNS);
            return;
        }
        u -= a_units;
        if (u < b_units) {
            size_t same = 0;
            while (s->calls[same].lora == NULL || s->calls[same].lora->a != l->a) same++;
            const struct walsh_lora_call *call = &s->calls[i];
            if (l->a_pairs)
                add_gradient_narrow(t, s, l, inner, l->grad_b, l->out, s->kept[same], call->dy, call->ld_dy,
                                    u * COLUMNS);
            else
                add_gradient(t, s, l, l->grad_b, l->out, s->inner[same], call->y, call->ldy, u * COLUMNS);
            return;
        }
        u -= b_units;
    }
}

static void gradient_units(void *argument, size_t begin, size_t end, unsigned worker)
{
    const struct lora *t = argument;
    struct inner *inner = (struct inner *)(void *)t->q->scratch[worker];
    for (size_t unit = begin; unit < end; unit++) {
        const struct walsh_lora_site *s = site_of(t, unit, true);
        gradient_unit(t, s, unit - s->first_gradient, inner);
    }
}

/* Number the units of gradients of all sites; returns how many there are. */
static size_t number_gradients(struct walsh_lora_site *sites, size_t count)
{
    size_t gradients = 0;
    for (size_t n = 0; n < count; n++) {
        struct walsh_lora_site *s = &sites[n];
        s->first_gradient = gradients;
        for (size_t i = 0; i < s->count; i++) {
            const struct walsh_lora *l = s->calls[i].lora;
            if (!l) continue;
            gradients += walsh_div_up(l->out, COLUMNS);
            if (first_of_a(s, i)) gradients += walsh_div_up(l->in, COLUMNS);
        }
    }
    return gradients;
}

void walsh_lora_backward(const struct walsh_queue *q, struct walsh_lora_site *sites, size_t count,
                         const float *x, size_t ldx, float *dx, size_t lddx, float *scratch)
{
    for (size_t i = 0; walsh_train_device(q) && i < count; i++)
        walsh_device_lora_backward(q, &sites[i], x, ldx, dx, lddx, scratch);
    if (walsh_train_device(q)) return;
    struct lora t = {.q = q, .sites = sites, .count = count, .x = x, .dx = dx, .ldx = ldx, .lddx = lddx};
    for (size_t n = 0; n < count; n++) {
        struct walsh_lora_site *s = &sites[n];
        s->ld = padded_rows(s->rows);
        for (size_t i = 0; i < s->count; i++) {
            if (!first_of_a(s, i)) continue;
            s->inner[i] = scratch;
            scratch += 2 * s->calls[i].lora->rank * s->ld;
        }
    }
    walsh_pool_run_near(q->pool, number_rows(sites, count), 1, inner_units, &t);
    walsh_pool_run_near(q->pool, number_gradients(sites, count), 1, gradient_units, &t);
}

/* --- in bf16 --- */

bool walsh_lora_narrow(const struct walsh_queue *q)
{
    return q->memory || strcmp(q->kernels->chosen[WALSH_KERNEL_ID_multiply_pairs_bf16], "reference") != 0;
}

size_t walsh_lora_pairs(uint32_t rank, size_t n)
{
    return walsh_div_up(n, 2) * rank + walsh_div_up(rank * n, 2);
}

const uint16_t *walsh_lora_matrix(const uint32_t *pairs, uint32_t rank, size_t n)
{
    return (const uint16_t *)(const void *)(pairs + walsh_div_up(n, 2) * rank);
}

void walsh_lora_pack(const struct walsh_queue *q, uint32_t *to, const float *matrix, uint32_t rank, size_t n)
{
    if (q->memory) { /* where nobody reads the pairs */
        q->memory->convert(q, WALSH_FORMAT_BF16, (void *)(uintptr_t)walsh_lora_matrix(to, rank, n), n,
                           WALSH_FORMAT_F32, matrix, n, rank, n);
        return;
    }
    q->kernels->pair_columns_turned_bf16(to, rank, matrix, n, rank, n);
    q->kernels->bf16_from_f32((uint16_t *)(uintptr_t)walsh_lora_matrix(to, rank, n), matrix, rank * n);
}

size_t walsh_lora_kept(uint32_t rank, size_t rows, size_t sites)
{
    return walsh_lora_inner_width(rank) * (rows + sites * 2 * 16);
}

/* inner->h [n][rank] = or, with `add`, += rows x[n][cols] by the transpose of a matrix [rank][cols], in pairs. */
static void into_rank_narrow(const struct walsh_kernels *k, struct inner *inner, const uint16_t *x,
                             size_t ldx, size_t n, size_t cols, size_t rank, const uint32_t *pairs, bool add)
{
    const struct walsh_pairs_product p = {.c = inner->h,
                                          .ldc = rank,
                                          .a = x,
                                          .lda = ldx,
                                          .b = pairs,
                                          .ldb = rank,
                                          .m = n,
                                          .n = rank,
                                          .steps = walsh_div_up(cols, 2),
                                          .add = add};
    k->multiply_pairs_bf16(&p);
}

/* inner->h, scaled, of rows [row, row + n): as rows for the products, and turned for the gradients. */
static void keep(const struct walsh_kernels *k, const struct walsh_lora_site *s, const struct walsh_lora *l,
                 struct inner *inner, uint16_t *rows, uint16_t *turned, size_t row, size_t n)
{
    const size_t rank = l->rank, width = walsh_lora_inner_width(l->rank);
    k->scale_f32(inner->h, l->scale, n * rank);
    k->pair_rows_turned_bf16((uint32_t *)(void *)turned + row / 2, s->ld / 2, inner->h, rank, n, rank);
    rows += row * width;
    if (width == rank) {
        k->bf16_from_f32(rows, inner->h, n * rank);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        k->bf16_from_f32(rows + i * width, inner->h + i * rank, rank);
        rows[i * width + rank] = 0;
    }
}

static void narrow_units(void *argument, size_t begin, size_t end, unsigned worker)
{
    const struct lora *t = argument;
    const struct walsh_kernels *k = t->q->kernels;
    struct inner *inner = (struct inner *)(void *)t->q->scratch[worker];
    for (size_t unit = begin; unit < end; unit++) {
        const struct walsh_lora_site *s = site_of(t, unit, false);
        const size_t row = (unit - s->first) * ROWS, n = walsh_min(ROWS, s->rows - row);
        for (size_t i = 0; i < s->count; i++) {
            if (!first_of_a(s, i)) continue;
            const struct walsh_lora *l = s->calls[i].lora;
            if (t->x_rows) {
                into_rank_narrow(k, inner, t->x_rows + (s->begin + row) * t->ldx, t->ldx, n, l->in, l->rank,
                                 l->a_pairs, false);
                keep(k, s, l, inner, s->calls[i].inner, s->kept[i], row, n);
                continue;
            }
            bool started = false;
            for (size_t j = i; j < s->count; j++) {
                const struct walsh_lora_call *call = &s->calls[j];
                if (!call->lora || call->lora->a != l->a) continue;
                into_rank_narrow(k, inner, call->dy + row * call->ld_dy, call->ld_dy, n, call->lora->out,
                                 l->rank, call->lora->b_pairs, started);
                started = true;
            }
            keep(k, s, l, inner, s->calls[i].inner, narrow_of(s->inner[i]), row, n);
        }
    }
}

/* Calls that share an A have the same inner values. */
static void share_inner(struct walsh_lora_site *s)
{
    for (size_t i = 0; i < s->count; i++) {
        size_t same = 0;
        if (!s->calls[i].lora || first_of_a(s, i)) continue;
        while (s->calls[same].lora == NULL || s->calls[same].lora->a != s->calls[i].lora->a) same++;
        s->calls[i].inner = s->calls[same].inner;
    }
}

/* Where everything of every A goes; returns what is left of the scratch. */
static float *place(struct walsh_lora_site *sites, size_t count, uint16_t *kept, float *scratch)
{
    for (size_t n = 0; n < count; n++) {
        struct walsh_lora_site *s = &sites[n];
        s->ld = padded_rows(s->rows);
        for (size_t i = 0; i < s->count; i++) {
            if (!first_of_a(s, i)) continue;
            const uint32_t rank = s->calls[i].lora->rank;
            s->kept[i] = kept;
            kept += walsh_lora_inner_width(rank) * s->ld;
            s->inner[i] = scratch;
            scratch += rank * s->ld / 2;
            s->calls[i].inner = narrow_of(scratch);
            scratch += walsh_lora_inner_width(rank) * s->ld / 2;
        }
        share_inner(s);
    }
    return scratch;
}

void walsh_lora_inner(const struct walsh_queue *q, struct walsh_lora_site *sites, size_t count,
                      const uint16_t *x, size_t ldx, uint16_t *kept, float *scratch)
{
    struct lora t = {.q = q, .sites = sites, .count = count, .x_rows = x, .ldx = ldx};
    place(sites, count, kept, scratch);
    if (walsh_train_device(q)) {
        for (size_t i = 0; i < count; i++) {
            for (size_t c = 0; c < sites[i].count; c++) /* as rows, which both readers take */
                if (sites[i].calls[c].lora && first_of_a(&sites[i], c))
                    sites[i].calls[c].inner = sites[i].kept[c];
            share_inner(&sites[i]);
            walsh_device_lora_inner(q, &sites[i], x, ldx);
        }
        return;
    }
    walsh_pool_run_near(q->pool, number_rows(sites, count), 1, narrow_units, &t);
}

void walsh_lora_inner_backward(const struct walsh_queue *q, struct walsh_lora_site *sites, size_t count,
                               uint16_t *kept, float *scratch)
{
    struct lora t = {.q = q, .sites = sites, .count = count};
    float *behind = place(sites, count, kept, scratch);
    if (walsh_train_device(q)) {
        for (size_t i = 0; i < count; i++) walsh_device_lora_inner_backward(q, &sites[i], behind);
        return;
    }
    walsh_pool_run_near(q->pool, number_rows(sites, count), 1, narrow_units, &t);
}

void walsh_lora_gradients(const struct walsh_queue *q, struct walsh_lora_site *sites, size_t count,
                          const uint16_t *x, size_t ldx)
{
    for (size_t i = 0; walsh_train_device(q) && i < count; i++)
        walsh_device_lora_gradients(q, &sites[i], x, ldx);
    if (walsh_train_device(q)) return;
    struct lora t = {.q = q, .sites = sites, .count = count, .x_rows = x, .ldx = ldx};
    walsh_pool_run_near(q->pool, number_gradients(sites, count), 1, gradient_units, &t);
}
