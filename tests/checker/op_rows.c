/* Ops that treat rows one by one: the best table against the reference, equal bits for any pool. */
#include <math.h>
#include <string.h>

#include "base/scalar.h"
#include "checker.h"

/* Enough rows that the pool takes part: more than one piece of 32768 elements. */
#define ROWS 24
#define N 4100

static float *row(struct check *c, size_t n)
{
    return check_alloc(c, n * sizeof(float), check_misalign(c, sizeof(float)));
}

static float *copy(struct check *c, const float *x, size_t n)
{
    float *p = row(c, n);
    memcpy(p, x, n * sizeof *p);
    return p;
}

static const struct walsh_queue *queue(const struct check_queues *queues, unsigned i)
{
    return i == 0 ? &queues->reference : &queues->best[i - 1];
}

static void compare(struct check *c, const char *what, float *const out[4], size_t n, double factor,
                    float floor)
{
    float *magnitude = row(c, n);
    for (size_t i = 0; i < n; i++) magnitude[i] = fabsf(out[0][i]) + floor;
    if (factor > 0)
        check_close_f32(c, what, out[0], out[1], magnitude, n, factor);
    else
        check_exact_f32(c, what, out[0], out[1], n);
    check_exact_f32(c, what, out[1], out[2], n);
    check_exact_f32(c, what, out[1], out[3], n);
}

static void check_embed(struct check *c, const struct check_queues *queues)
{
    enum { VOCAB = 50, COLS = 1500 };
    static const enum walsh_format formats[] = {WALSH_FORMAT_F32, WALSH_FORMAT_F16, WALSH_FORMAT_BF16};
    int32_t ids[ROWS];
    for (size_t r = 0; r < ROWS; r++) ids[r] = (int32_t)check_below(c, VOCAB);
    for (size_t f = 0; f < 3; f++) {
        size_t bytes = (size_t)VOCAB * COLS * (f == 0 ? 4 : 2);
        uint8_t *data = check_alloc(c, bytes, check_misalign(c, 1));
        for (size_t i = 0; i < bytes; i++) data[i] = (uint8_t)walsh_random_u64(&c->random);
        struct walsh_weights table = {.format = formats[f], .rows = VOCAB, .cols = COLS, .data = data};
        float *out[4];
        for (unsigned i = 0; i < 4; i++) {
            out[i] = row(c, (size_t)ROWS * COLS);
            queue(queues, i)->ops->embed(queue(queues, i), out[i], &table, ids, ROWS);
        }
        compare(c, "embed", out, (size_t)ROWS * COLS, 0, 0);
        float first;
        memcpy(&first, data + (size_t)ids[3] * COLS * 4 % bytes, sizeof first);
        if (f == 0) check_exact_f32(c, "embed's row 3", &first, out[1] + (size_t)3 * COLS, 1);
    }
}

static void check_norm_gate_add(struct check *c, const struct check_queues *queues)
{
    size_t ld = N + 3, total = (ROWS - 1) * ld + N;
    float *x = row(c, total), *up = row(c, total), *weight = row(c, N), *norm[4], *gate[4], *gelu[4], *sum[4],
          *scaled[4], *capped[4];
    check_fill_normal(c, x, total);
    check_fill_normal(c, up, total);
    check_fill_normal(c, weight, N);
    for (unsigned i = 0; i < 4; i++) {
        const struct walsh_queue *q = queue(queues, i);
        norm[i] = copy(c, x, total);
        q->ops->rms_norm(q, norm[i], ld, norm[i], ld, weight, ROWS, N, 1e-5f);
        gate[i] = copy(c, x, total);
        q->ops->swiglu(q, gate[i], ld, x, up, ld, ROWS, N);
        gelu[i] = copy(c, x, total);
        q->ops->geglu(q, gelu[i], ld, x, up, ld, ROWS, N);
        scaled[i] = copy(c, x, total);
        q->ops->scale(q, scaled[i], 0.3f, total);
        capped[i] = copy(c, x, total);
        q->ops->soft_cap(q, capped[i], 0.75f, total);
        sum[i] = copy(c, x, total);
        q->ops->add(q, sum[i], up, total);
    }
    compare(c, "rms_norm", norm, total, 8, 0);
    compare(c, "swiglu", gate, total, 4, 1e-30f);
    compare(c, "geglu", gelu, total, 5, 4);
    compare(c, "scale", scaled, total, 0, 0);
    compare(c, "soft_cap", capped, total, 4, 1);
    compare(c, "add", sum, total, 0, 0);
}

static void check_rope(struct check *c, const struct check_queues *queues)
{
    enum { HEADS = 30, DIM = 64, POSITIONS = 40 };
    const uint32_t rotated = c->round % 2 ? DIM : 24;
    size_t ld = HEADS * DIM + 5, total = ROWS * ld;
    float *x = row(c, total), *cosine = row(c, POSITIONS * DIM / 2), *sine = row(c, POSITIONS * DIM / 2),
          *out[4];
    uint32_t positions[ROWS];
    check_fill_normal(c, x, total);
    check_fill_normal(c, cosine, POSITIONS * DIM / 2);
    check_fill_normal(c, sine, POSITIONS * DIM / 2);
    for (size_t r = 0; r < ROWS; r++) positions[r] = (uint32_t)check_below(c, POSITIONS);
    for (unsigned i = 0; i < 4; i++) {
        const struct walsh_queue *q = queue(queues, i);
        out[i] = copy(c, x, total);
        q->ops->rope(q, out[i], ld, positions, ROWS, HEADS, DIM, rotated, cosine, sine);
    }
    compare(c, "rope", out, total, 0, 0);
    if (rotated < DIM)
        check_exact_f32(c, "what is not rotated", x + rotated, out[1] + rotated, DIM - rotated);
}

static void check_route(struct check *c, const struct check_queues *queues)
{
    enum { EXPERTS = 100, K = 6, TOKENS = 90 };
    float *logits = row(c, TOKENS * EXPERTS), *weight[4];
    int32_t *index[4];
    check_fill_normal(c, logits, TOKENS * EXPERTS);
    for (unsigned i = 0; i < 4; i++) {
        const struct walsh_queue *q = queue(queues, i);
        weight[i] = row(c, TOKENS * K);
        index[i] = check_alloc(c, TOKENS * K * sizeof **index, 0);
        q->ops->route(q, index[i], weight[i], logits, TOKENS, EXPERTS, K, c->round % 2 != 0);
        check_exact_bytes(c, "route's index", index[0], index[i], TOKENS * K * sizeof **index);
    }
    compare(c, "route", weight, TOKENS * K, 4, 0);
}

/* What stands around the experts' products: rows by index, the gate that clamps, the weighted sums. */
static void check_experts(struct check *c, const struct check_queues *queues)
{
    enum { SLOTS = ROWS * 3, WIDE = 1300 };
    float *x = row(c, (size_t)ROWS * N), *up = row(c, (size_t)SLOTS * N), *weight = row(c, SLOTS);
    float *gathered[4], *gated[4], *sum[4];
    uint32_t index[SLOTS], slot[SLOTS];
    check_fill_normal(c, x, (size_t)ROWS * N);
    check_fill_normal(c, up, (size_t)SLOTS * N);
    check_fill_normal(c, weight, SLOTS);
    for (uint32_t i = 0; i < SLOTS; i++) index[i] = (uint32_t)check_below(c, ROWS), slot[i] = i;
    for (size_t i = SLOTS; i-- > 1;) { /* in any order */
        const size_t j = check_below(c, i + 1);
        const uint32_t other = slot[j];
        slot[j] = slot[i], slot[i] = other;
    }
    for (unsigned i = 0; i < 4; i++) {
        const struct walsh_queue *q = queue(queues, i);
        gathered[i] = row(c, (size_t)SLOTS * N);
        gated[i] = row(c, (size_t)SLOTS * WIDE);
        memset(gathered[i], 0, (size_t)SLOTS * N * sizeof(float));
        q->ops->gather(q, gathered[i], N, x, N, index, SLOTS, N - 1);
        q->ops->clamped_swiglu(q, gated[i], WIDE, gathered[i], up, N, SLOTS, WIDE, 1.702f, 1.5f);
        sum[i] = copy(c, x, (size_t)ROWS * N);
        float *y = copy(c, up, (size_t)SLOTS * N);
        q->ops->combine(q, sum[i], N, y, slot, weight, ROWS, 3);
    }
    compare(c, "gather", gathered, (size_t)SLOTS * N, 0, 0);
    compare(c, "clamped_swiglu", gated, (size_t)SLOTS * WIDE, 16, 1e-30f);
    compare(c, "combine", sum, (size_t)ROWS * N, 0, 0);
}

/* A sequence of TOKENS tokens in two pages, the last ROWS of which are the call's, against the formula in
 * double; the same token by token, as decode calls it. Equal bits for any pool. */
static void check_short_conv(struct check *c, const struct check_queues *queues)
{
    enum { PAGE = 16, TOKENS = ROWS + 5, PAGES = (TOKENS + PAGE - 1) / PAGE, TAPS = 3 };
    const uint32_t width = 1000 + (uint32_t)check_below(c, 1200), first = TOKENS - ROWS;
    const bool biased = check_below(c, 2);
    float *x = row(c, (size_t)TOKENS * 3 * width), *weight = row(c, TAPS * (size_t)width),
          *bias = row(c, width);
    check_fill_normal(c, x, (size_t)TOKENS * 3 * width);
    check_fill_normal(c, weight, TAPS * (size_t)width);
    check_fill_normal(c, bias, width);
    for (int type = WALSH_KV_F32; type <= WALSH_KV_F16; type++) {
        float *out[5], *magnitude = row(c, (size_t)ROWS * width);
        for (unsigned i = 1; i < 5; i++) {
            const struct walsh_queue *q = queue(queues, i == 4 ? 1 : i - 1);
            void *pages[PAGES];
            for (size_t p = 0; p < PAGES; p++) pages[p] = check_alloc(c, (size_t)PAGE * width * 4, 0);
            const struct walsh_kv_view kv = {
                .type = (enum walsh_kv_type)type, .page_tokens = PAGE, .k_pages = pages, .v_pages = pages};
            struct walsh_attention_row rows[TOKENS];
            for (uint32_t t = 0; t < TOKENS; t++) rows[t] = (struct walsh_attention_row){&kv, t};
            float *before = row(c, (size_t)first * width);
            out[i] = row(c, (size_t)ROWS * width);
            q->ops->short_conv(q, before, width, x, 3 * width, rows, first, weight, biased ? bias : NULL,
                               TAPS, width);
            const size_t step = i == 4 ? 1 : ROWS;
            for (size_t r = 0; r < ROWS; r += step)
                q->ops->short_conv(q, out[i] + r * width, width, x + (first + r) * 3 * width, 3 * width,
                                   rows + first + r, step, weight, biased ? bias : NULL, TAPS, width);
        }
        out[0] = row(c, (size_t)ROWS * width);
        for (size_t r = 0; r < ROWS; r++)
            for (size_t i = 0; i < width; i++) {
                double sum = biased ? (double)bias[i] : 0, absolute = fabs(sum);
                const float *token = x + (first + r) * 3 * width + i;
                for (size_t j = 0; j < TAPS; j++) {
                    const float *past = token - (TAPS - 1 - j) * 3 * width;
                    float u = past[0] * past[2 * width];
                    if (type == WALSH_KV_F16) u = walsh_f32_from_f16(walsh_f16_from_f32(u));
                    sum += (double)weight[j * width + i] * (double)u;
                    absolute += fabs((double)weight[j * width + i] * (double)u);
                }
                out[0][r * width + i] = (float)((double)token[width] * sum);
                magnitude[r * width + i] = (float)(fabs((double)token[width]) * absolute);
            }
        check_close_f32(c, "short_conv", out[0], out[1], magnitude, (size_t)ROWS * width, 4);
        for (unsigned i = 2; i < 5; i++)
            check_exact_f32(c, "short_conv", out[1], out[i], (size_t)ROWS * width);
    }
}

void check_op_rows(struct check *c, const struct check_queues *queues)
{
    check_embed(c, queues);
    check_norm_gate_add(c, queues);
    check_rope(c, queues);
    check_route(c, queues);
    check_experts(c, queues);
    check_short_conv(c, queues);
}
