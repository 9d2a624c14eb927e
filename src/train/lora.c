#include "train/lora.h"

#include "base/memory.h"
#include "kernels/table.h"

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

/* h[n][rank] = s A x of rows [row, row + n) of x. */
static void project(const struct lora *t, const struct walsh_lora *l, size_t row, size_t n, float *h)
{
    const struct walsh_kernels *k = t->q->kernels;
    k->multiply_tile_f32(h, l->rank, NULL, t->x + row * t->ldx, t->ldx, l->a_t, l->rank, n, l->rank, l->in);
    k->scale_f32(h, l->scale, n * l->rank);
}

/* Rows [row, row + n) of a site. */
static void forward_rows(const struct lora *t, const struct walsh_lora_site *s, size_t row, size_t n,
                         float *h)
{
    for (size_t i = 0; i < s->count; i++) {
        if (!first_of_a(s, i)) continue;
        project(t, s->calls[i].lora, s->begin + row, n, h);
        for (size_t j = i; j < s->count; j++) {
            const struct walsh_lora_call *call = &s->calls[j];
            const struct walsh_lora *l = call->lora;
            if (!l || l->a != s->calls[i].lora->a) continue;
            t->q->kernels->multiply_tile_f32(call->y + row * call->ldy, call->ldy, ones, h, l->rank, l->b,
                                             l->out, n, l->out, l->rank);
        }
    }
}

static void forward_units(void *argument, size_t begin, size_t end, unsigned worker)
{
    const struct lora *t = argument;
    float *h = (float *)(void *)t->q->scratch[worker];
    for (size_t unit = begin; unit < end; unit++) {
        const struct walsh_lora_site *s = site_of(t, unit, false);
        const size_t row = (unit - s->first) * ROWS;
        forward_rows(t, s, row, walsh_min(ROWS, s->rows - row), h);
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
                        const float *x, size_t ldx)
{
    struct lora t = {.q = q, .sites = sites, .count = count, .x = x, .ldx = ldx};
    walsh_pool_run(q->pool, number_rows(sites, count), 1, forward_units, &t);
}

/* Inner values of rows [row, row + n) of a site, and their part of dx. */
static void inner_rows(const struct lora *t, const struct walsh_lora_site *s, size_t row, size_t n, float *h)
{
    const struct walsh_kernels *k = t->q->kernels;
    for (size_t i = 0; i < s->count; i++) {
        if (!first_of_a(s, i)) continue;
        const struct walsh_lora *l = s->calls[i].lora;
        const size_t rank = l->rank;
        project(t, l, s->begin + row, n, h);
        k->transpose_f32(s->inner[i] + row, s->ld, h, rank, n, rank);
        bool started = false;
        for (size_t j = i; j < s->count; j++) {
            const struct walsh_lora_call *call = &s->calls[j];
            if (!call->lora || call->lora->a != l->a) continue;
            k->multiply_tile_f32(h, rank, started ? ones : NULL, call->y + row * call->ldy, call->ldy,
                                 call->lora->b_t, rank, n, rank, call->lora->out);
            started = true;
        }
        k->scale_f32(h, l->scale, n * rank);
        k->transpose_f32(s->inner[i] + rank * s->ld + row, s->ld, h, rank, n, rank);
        if (t->dx)
            k->multiply_tile_f32(t->dx + (s->begin + row) * t->lddx, t->lddx, ones, h, rank, l->a, l->in, n,
                                 l->in, rank);
    }
}

static void inner_units(void *argument, size_t begin, size_t end, unsigned worker)
{
    const struct lora *t = argument;
    float *h = (float *)(void *)t->q->scratch[worker];
    for (size_t unit = begin; unit < end; unit++) {
        const struct walsh_lora_site *s = site_of(t, unit, false);
        const size_t row = (unit - s->first) * ROWS;
        inner_rows(t, s, row, walsh_min(ROWS, s->rows - row), h);
    }
}

/* gradient[rank][cols] += inner[rank][rows] · x[rows][cols], columns [from, from + n) of a site's rows. */
static void add_gradient(const struct lora *t, const struct walsh_lora_site *s, float *gradient, size_t rank,
                         size_t cols, const float *inner, const float *x, size_t ldx, size_t from, size_t n)
{
    for (size_t row = 0; row < s->rows; row += TOKENS)
        t->q->kernels->multiply_tile_f32(gradient + from, cols, ones, inner + row, s->ld,
                                         x + row * ldx + from, ldx, rank, n,
                                         walsh_min(TOKENS, s->rows - row));
}

/* Unit u of a site's gradients: COLUMNS columns of dA of each A, then of dB of each call. */
static void gradient_unit(const struct lora *t, const struct walsh_lora_site *s, size_t u)
{
    for (size_t i = 0; i < s->count; i++) {
        const struct walsh_lora *l = s->calls[i].lora;
        if (!l) continue;
        const size_t a_units = first_of_a(s, i) ? walsh_div_up(l->in, COLUMNS) : 0,
                     b_units = walsh_div_up(l->out, COLUMNS);
        if (u < a_units) {
            const size_t from = u * COLUMNS;
            add_gradient(t, s, l->grad_a, l->rank, l->in, s->inner[i] + l->rank * s->ld,
                         t->x + s->begin * t->ldx, t->ldx, from, walsh_min(COLUMNS, l->in - from));
            return;
        }
        u -= a_units;
        if (u < b_units) {
            const size_t from = u * COLUMNS;
            size_t same = 0;
            while (s->calls[same].lora == NULL || s->calls[same].lora->a != l->a) same++;
            add_gradient(t, s, l->grad_b, l->rank, l->out, s->inner[same], s->calls[i].y, s->calls[i].ldy,
                         from, walsh_min(COLUMNS, l->out - from));
            return;
        }
        u -= b_units;
    }
}

static void gradient_units(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct lora *t = argument;
    for (size_t unit = begin; unit < end; unit++) {
        const struct walsh_lora_site *s = site_of(t, unit, true);
        gradient_unit(t, s, unit - s->first_gradient);
    }
}

void walsh_lora_backward(const struct walsh_queue *q, struct walsh_lora_site *sites, size_t count,
                         const float *x, size_t ldx, float *dx, size_t lddx, float *scratch)
{
    struct lora t = {.q = q, .sites = sites, .count = count, .x = x, .dx = dx, .ldx = ldx, .lddx = lddx};
    size_t gradients = 0;
    for (size_t n = 0; n < count; n++) {
        struct walsh_lora_site *s = &sites[n];
        s->first_gradient = gradients;
        s->ld = padded_rows(s->rows);
        for (size_t i = 0; i < s->count; i++) {
            const struct walsh_lora *l = s->calls[i].lora;
            if (!l) continue;
            gradients += walsh_div_up(l->out, COLUMNS);
            if (!first_of_a(s, i)) continue;
            gradients += walsh_div_up(l->in, COLUMNS);
            s->inner[i] = scratch;
            scratch += 2 * l->rank * s->ld;
        }
    }
    walsh_pool_run(q->pool, number_rows(sites, count), 1, inner_units, &t);
    walsh_pool_run(q->pool, gradients, 1, gradient_units, &t);
}
