/* Draws of a queue that has them against the reference, which sorts: the same token for every row. */
#include <math.h>
#include <string.h>

#include "checker.h"

enum { ROWS = 7, MOST_EDITS = 700 };

/* Few likely ones, all alike, ties, zeros of both signs, the ends of f32; some -Inf, and rarely what nothing can be drawn from. */
static void fill_logits(struct check *c, float *logits, uint32_t vocab)
{
    const size_t shape = check_below(c, 6), bad = check_below(c, 24);
    for (uint32_t i = 0; i < vocab; i++) {
        const float x = check_normal(c);
        logits[i] = shape == 0   ? 3 * x
                    : shape == 1 ? 0.01f * x
                    : shape == 2 ? floorf(2 * x)
                    : shape == 3 ? 5 * x * x * x - 20
                    : shape == 4 ? (x > 1 ? 0.0f : -0.0f)
                                 : (x > 1 ? 3.4e38f : -3.4e38f) * (i % 3 == 0 ? 1.0f : 1e-38f);
        if (check_below(c, 50) == 0) logits[i] = -INFINITY;
        if (bad == 0) logits[i] = -INFINITY;
    }
    if (bad == 1) logits[check_below(c, vocab)] = NAN;
    if (bad == 2) logits[check_below(c, vocab)] = INFINITY;
}

/* Edits of `count` different ids: a stride that shares no factor with the vocabulary's size. */
static struct walsh_logit_edit *make_edits(struct check *c, uint32_t vocab, size_t count)
{
    struct walsh_logit_edit *edits = check_alloc_private(c, count * sizeof *edits);
    uint32_t stride = 1 + (uint32_t)check_below(c, vocab), a = stride, b = vocab;
    while (b != 0) {
        const uint32_t rest = a % b;
        a = b;
        b = rest;
    }
    if (a != 1) stride = 1;
    const size_t first = check_below(c, vocab);
    for (size_t i = 0; i < count; i++)
        edits[i] = (struct walsh_logit_edit){.id = (int32_t)((first + i * stride) % vocab),
                                             .penalized = check_below(c, 2) == 0,
                                             .excluded = check_below(c, 9) == 0,
                                             .drawn = (uint32_t)check_below(c, 3),
                                             .bias = check_normal(c)};
    return edits;
}

static struct walsh_draw make_draw(struct check *c, uint32_t vocab, bool sampled, bool edited)
{
    struct walsh_draw d = {.greedy = !sampled || check_below(c, 6) == 0,
                           .per_temperature = expf(check_normal(c)),
                           .share = walsh_random_u64(&c->random) >> (64 - WALSH_SHARE_BITS),
                           .top_k = check_below(c, 2) ? vocab : 1 + (uint32_t)check_below(c, vocab),
                           .least = 1,
                           .top_p = check_below(c, 2) ? 1 : 1 - walsh_random_uniform(&c->random),
                           .penalty = 1.3,
                           .presence = 0.5,
                           .frequency = 0.25};
    const size_t end = check_below(c, 12);
    if (end == 0) d.share = 0;
    if (end == 1) d.share = ((uint64_t)1 << WALSH_SHARE_BITS) - 1;
    if (check_below(c, 3) == 0) d.least = 1 + (uint64_t)(walsh_random_uniform(&c->random) * 0.3 * 0x1p39);
    if (edited && check_below(c, 3)) {
        d.edit_count = check_below(c, vocab < MOST_EDITS ? vocab : MOST_EDITS);
        d.edits = make_edits(c, vocab, d.edit_count);
    }
    if (edited && check_below(c, 3) == 0) {
        const size_t words = ((size_t)vocab + 63) / 64;
        uint64_t *mask = check_alloc_private(c, words * sizeof *mask);
        for (size_t i = 0; i < words; i++)
            mask[i] = walsh_random_u64(&c->random) | walsh_random_u64(&c->random);
        d.mask = mask;
    }
    return d;
}

static void check_vocabulary(struct check *c, const struct walsh_queue *q, uint32_t vocab, bool sampled,
                             bool edited)
{
    float *logits = check_alloc(c, (size_t)ROWS * vocab * sizeof *logits, 0);
    float *before = check_alloc_private(c, (size_t)ROWS * vocab * sizeof *before);
    float *plain = check_alloc_private(c, vocab * sizeof *plain);
    int32_t *room = check_alloc_private(c, (size_t)2 * vocab * sizeof *room),
            *ids = check_alloc(c, ROWS * 4, 0);
    struct walsh_draw rows[ROWS];
    for (size_t r = 0; r < ROWS; r++) {
        fill_logits(c, logits + r * vocab, vocab);
        rows[r] = make_draw(c, vocab, sampled, edited);
    }
    memcpy(before, logits, (size_t)ROWS * vocab * sizeof *before);
    const struct walsh_draws draws = {.rows = rows, .count = ROWS, .sampled = sampled, .edited = edited};
    if (q->ops->draw) q->ops->draw(q, ids, logits, vocab, &draws);
    for (size_t r = 0; r < ROWS; r++) {
        memcpy(plain, before + r * vocab, vocab * sizeof *plain);
        const int32_t expected = walsh_draw_reference(&rows[r], plain, vocab, room);
        if (q->ops->draw && ids[r] != expected)
            check_fail(c, "row %zu of %u ids: drew %d, expected %d (greedy %d, top-k %u, top-p %g)", r, vocab,
                       ids[r], expected, rows[r].greedy, rows[r].top_k, rows[r].top_p);
        if (expected >= (int32_t)vocab) check_fail(c, "the reference drew %d of %u", expected, vocab);
    }
    check_exact_bytes(c, "the logits of a draw", before, logits, (size_t)ROWS * vocab * sizeof *before);
}

void check_op_draw(struct check *c, const struct check_queues *queues)
{
    static const uint32_t sizes[] = {1, 40, 2048, 5003};
    const uint32_t many = c->round == 0 ? 131071 : 0; /* of a model, once */
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (unsigned kind = 0; kind < 4; kind++)
            check_vocabulary(c, &queues->best[0], sizes[i], kind & 1, kind & 2);
    if (many && queues->best[0].ops->draw) check_vocabulary(c, &queues->best[0], many, true, true);
}
