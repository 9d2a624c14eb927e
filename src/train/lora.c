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

size_t walsh_lora_scratch(uint32_t rank, size_t rows)
{
    return 2 * (size_t)rank * padded_rows(rows);
}

struct lora {
    const struct walsh_queue *q;
    const struct walsh_lora_call *calls;
    size_t count;
    const float *x;
    float *dx;
    size_t ldx, lddx, rows;
    float *inner[WALSH_LORA_CALLS]; /* back: s A x and s B^T dy, transposed: [2][rank][ld] */
    size_t ld;
};

/* Is call i the first with its A? */
static bool first_of_a(const struct lora *t, size_t i)
{
    if (!t->calls[i].lora) return false;
    for (size_t j = 0; j < i; j++)
        if (t->calls[j].lora && t->calls[j].lora->a == t->calls[i].lora->a) return false;
    return true;
}

/* h[n][rank] = s A x of rows [row, row + n). */
static void project(const struct lora *t, const struct walsh_lora *l, size_t row, size_t n, float *h)
{
    const struct walsh_kernels *k = t->q->kernels;
    k->multiply_tile_f32(h, l->rank, NULL, t->x + row * t->ldx, t->ldx, l->a_t, l->rank, n, l->rank, l->in);
    k->scale_f32(h, l->scale, n * l->rank);
}

static void forward_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    const struct lora *t = argument;
    float *h = (float *)(void *)t->q->scratch[worker];
    for (size_t row = begin * ROWS; row < walsh_min(end * ROWS, t->rows); row += ROWS) {
        const size_t n = walsh_min(ROWS, t->rows - row);
        for (size_t i = 0; i < t->count; i++) {
            if (!first_of_a(t, i)) continue;
            project(t, t->calls[i].lora, row, n, h);
            for (size_t j = i; j < t->count; j++) {
                const struct walsh_lora_call *call = &t->calls[j];
                const struct walsh_lora *l = call->lora;
                if (!l || l->a != t->calls[i].lora->a) continue;
                t->q->kernels->multiply_tile_f32(call->y + row * call->ldy, call->ldy, ones, h, l->rank, l->b,
                                                 l->out, n, l->out, l->rank);
            }
        }
    }
}

void walsh_lora_forward(const struct walsh_queue *q, const struct walsh_lora_call *calls, size_t count,
                        const float *x, size_t ldx, size_t rows)
{
    struct lora t = {.q = q, .calls = calls, .count = count, .x = x, .ldx = ldx, .rows = rows};
    walsh_pool_run(q->pool, walsh_div_up(rows, ROWS), 1, forward_rows, &t);
}

/* Inner values of a block of rows, and their part of dx. */
static void inner_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    const struct lora *t = argument;
    const struct walsh_kernels *k = t->q->kernels;
    float *h = (float *)(void *)t->q->scratch[worker];
    for (size_t row = begin * ROWS; row < walsh_min(end * ROWS, t->rows); row += ROWS) {
        const size_t n = walsh_min(ROWS, t->rows - row);
        for (size_t i = 0; i < t->count; i++) {
            if (!first_of_a(t, i)) continue;
            const struct walsh_lora *l = t->calls[i].lora;
            const size_t rank = l->rank;
            project(t, l, row, n, h);
            k->transpose_f32(t->inner[i] + row, t->ld, h, rank, n, rank);
            bool started = false;
            for (size_t j = i; j < t->count; j++) {
                const struct walsh_lora_call *call = &t->calls[j];
                if (!call->lora || call->lora->a != l->a) continue;
                k->multiply_tile_f32(h, rank, started ? ones : NULL, call->y + row * call->ldy, call->ldy,
                                     call->lora->b_t, rank, n, rank, call->lora->out);
                started = true;
            }
            k->scale_f32(h, l->scale, n * rank);
            k->transpose_f32(t->inner[i] + rank * t->ld + row, t->ld, h, rank, n, rank);
            if (t->dx)
                k->multiply_tile_f32(t->dx + row * t->lddx, t->lddx, ones, h, rank, l->a, l->in, n, l->in,
                                     rank);
        }
    }
}

/* gradient[rank][cols] += inner[rank][rows] · x[rows][cols], columns [from, from + n). */
static void add_gradient(const struct lora *t, float *gradient, size_t rank, size_t cols, const float *inner,
                         const float *x, size_t ldx, size_t from, size_t n)
{
    for (size_t row = 0; row < t->rows; row += TOKENS)
        t->q->kernels->multiply_tile_f32(gradient + from, cols, ones, inner + row, t->ld,
                                         x + row * ldx + from, ldx, rank, n,
                                         walsh_min(TOKENS, t->rows - row));
}

/* Unit u of all gradients: COLUMNS columns of dA of each A, then of dB of each call. */
static void gradient_units(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct lora *t = argument;
    size_t unit = 0;
    for (size_t i = 0; i < t->count; i++) {
        const struct walsh_lora *l = t->calls[i].lora;
        if (!l) continue;
        if (first_of_a(t, i)) {
            for (size_t from = 0; from < l->in; from += COLUMNS, unit++)
                if (unit >= begin && unit < end)
                    add_gradient(t, l->grad_a, l->rank, l->in, t->inner[i] + l->rank * t->ld, t->x, t->ldx,
                                 from, walsh_min(COLUMNS, l->in - from));
        }
        size_t same = 0;
        while (t->calls[same].lora == NULL || t->calls[same].lora->a != l->a) same++;
        for (size_t from = 0; from < l->out; from += COLUMNS, unit++)
            if (unit >= begin && unit < end)
                add_gradient(t, l->grad_b, l->rank, l->out, t->inner[same], t->calls[i].y, t->calls[i].ldy,
                             from, walsh_min(COLUMNS, l->out - from));
    }
}

void walsh_lora_backward(const struct walsh_queue *q, const struct walsh_lora_call *calls, size_t count,
                         const float *x, size_t ldx, size_t rows, float *dx, size_t lddx, float *scratch)
{
    struct lora t = {
        .q = q, .calls = calls, .count = count, .x = x, .dx = dx, .ldx = ldx, .lddx = lddx, .rows = rows};
    size_t units = 0;
    t.ld = padded_rows(rows);
    if (rows == 0) return;
    for (size_t i = 0; i < count; i++) {
        const struct walsh_lora *l = calls[i].lora;
        if (!l) continue;
        units += walsh_div_up(l->out, COLUMNS);
        if (!first_of_a(&t, i)) continue;
        units += walsh_div_up(l->in, COLUMNS);
        t.inner[i] = scratch;
        scratch += 2 * l->rank * t.ld;
    }
    walsh_pool_run(q->pool, walsh_div_up(rows, ROWS), 1, inner_rows, &t);
    walsh_pool_run(q->pool, units, 1, gradient_units, &t);
}
