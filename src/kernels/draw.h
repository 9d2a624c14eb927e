/* kernels/draw: what a draw of the next token is, so that the host and a device draw the same one.
 *
 * A logit's mass is an integer, 2^39 e^-((best - logit) / temperature) rounded down, by f32 operations that are
 * written out below: sums of masses are exact, in any order and by any number of threads. Logits stand in the
 * order of walsh_logit_order, ids ascending where equal. Of the first `top_k` of that order, the shortest prefix
 * whose masses reach top_p of theirs is kept, up to the first mass below `least`, and never less than one; of
 * what is kept the first is drawn at which the sum of masses is larger than `share` of all. (Fan et al. 2018,
 * top-k; Holtzman et al. 2020, nucleus; Nguyen et al. 2024, min-p.) */
#ifndef WALSH_KERNELS_DRAW_H
#define WALSH_KERNELS_DRAW_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Of the largest logit. Of up to WALSH_MOST_DRAWN_FROM ids, so that sums of masses stay in 64 bits. */
#define WALSH_WHOLE_MASS ((uint64_t)1 << 39)
#define WALSH_MOST_DRAWN_FROM (1u << 24)
#define WALSH_SHARE_BITS 53

/* What happens to one token's logit before a draw, in this order, each result rounded to f32. */
struct walsh_logit_edit {
    int32_t id;
    bool penalized; /* divided by draw.penalty where positive, else multiplied by it, in f64 */
    bool excluded;  /* -Inf in the end */
    uint32_t drawn; /* not 0: less draw.presence, less drawn * draw.frequency, in f64 */
    float bias;     /* added */
};

/* One row's draw. */
struct walsh_draw {
    bool greedy;           /* the first of the order; the rest of this struct up to the penalty is not read */
    float per_temperature; /* 1 / temperature */
    uint64_t share;        /* below 2^WALSH_SHARE_BITS, which is 1 */
    uint32_t top_k;        /* 1 or more; the vocabulary or more: off */
    uint64_t least;        /* 1..WALSH_WHOLE_MASS; 1: off */
    double top_p;          /* more than 0; 1: off */
    double penalty, presence, frequency;
    struct walsh_logit_edit *edits; /* [edit_count], each id once */
    size_t edit_count;
    const uint64_t *mask; /* bit i % 64 of word i / 64 set: token i may be drawn; NULL: all */
};

/* Tokens of a row that a draw can reach, as the kernel sum_masses finds them. */
#define WALSH_REACH_LANES 16 /* behind the last one its arrays may be written to up to a multiple of these */
struct walsh_reach {
    int32_t *ids;
    float *depth, *decay; /* walsh_logit_depth, and walsh_decay of it */
    size_t count;
};

/* For walsh_ops.draw: rows, with their edits and masks, are memory of the queue. */
struct walsh_draws {
    const struct walsh_draw *rows; /* [count] */
    size_t count;
    bool sampled, edited; /* some row is not greedy; some row has edits */
};

/* The smaller one of two numbers that are not negative; NaN, of either sign, is larger than all others. As
 * integers, because a compiler that has to think of floating-point exceptions does not take several at a time.
 */
static inline float walsh_smaller(float a, float b)
{
    int32_t x, y;
    memcpy(&x, &a, sizeof x);
    memcpy(&y, &b, sizeof y);
    x &= INT32_MAX;
    const int32_t bits = x < y ? x : y;
    memcpy(&a, &bits, sizeof a);
    return a;
}

/* (best - logit) / temperature; 0 or more, NaN where both factors are beyond f32. */
static inline float walsh_logit_depth(float best, float logit, float per_temperature)
{
    return (best - logit) * per_temperature;
}

/* e^-depth within 4e-7 for what counts; beyond 87 it stays what it is there. 2^(k + f) with k rounded, and
 * the series of 2^f for |f| <= 1/2. Each operation is rounded. */
static inline float walsh_decay(float depth)
{
    const float t = walsh_smaller(depth, 87) * -1.44269504f;
    const float k = (t + 12582912.0f) - 12582912.0f, f = t - k;
    const float series =
        1 + f * (0.693147181f +
                 f * (0.240226507f + f * (0.0555041087f + f * (0.00961812911f +
                                                               f * (0.00133335581f + f * 0.000154035304f)))));
    const int32_t bits = ((int32_t)k + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return series * power;
}

static inline uint64_t walsh_mass_of_decay(float decay)
{
    return (uint64_t)(int64_t)(decay * (float)WALSH_WHOLE_MASS); /* of 24 bits: the product is exact */
}

/* Larger for a larger logit; those of NaN lie beyond those of both infinities. -0 and 0 are equal. */
static inline int32_t walsh_logit_order(float logit)
{
    int32_t bits;
    logit += 0.0f;
    memcpy(&bits, &logit, sizeof bits);
    return bits ^ ((bits >> 31) & INT32_MAX);
}

/* The mass that a prefix must reach to have top_p < 1 of `whole`. */
static inline uint64_t walsh_top_p_mass(double top_p, uint64_t whole)
{
    const uint64_t mass = (uint64_t)ceil(top_p * (double)whole);
    return mass < 1 ? 1 : mass < whole ? mass : whole;
}

/* The mass that a prefix must go beyond to be drawn at its last one, below `whole`. */
static inline uint64_t walsh_drawn_mass(uint64_t share, uint64_t whole)
{
    const uint64_t high = whole >> 32, low = whole & UINT32_MAX; /* both products below 2^96, so in parts */
    const uint64_t s1 = share >> 32, s0 = share & UINT32_MAX;
    const uint64_t middle = s1 * low + (s0 * low >> 32), cross = s0 * high + (middle & UINT32_MAX);
    const uint64_t top = s1 * high + (middle >> 32) + (cross >> 32); /* share * whole >> 64 */
    const uint64_t bottom = (cross << 32) | (s0 * low & UINT32_MAX);
    return (top << (64 - WALSH_SHARE_BITS)) | (bottom >> WALSH_SHARE_BITS);
}

/* The edits of a row, on the host. */
static inline void walsh_edit_logits(const struct walsh_draw *d, float *logits)
{
    for (size_t i = 0; i < d->edit_count; i++) {
        const struct walsh_logit_edit *e = &d->edits[i];
        float logit = logits[e->id];
        if (e->penalized)
            logit = (float)(logit > 0 ? (double)logit / d->penalty : (double)logit * d->penalty);
        if (e->drawn) logit = (float)((double)logit - d->presence - d->frequency * (double)e->drawn);
        logit += e->bias;
        logits[e->id] = e->excluded ? -INFINITY : logit;
    }
}

/* What is to be drawn from logits [vocab], edited and masked in place, written down plainly for tests: everything
 * is sorted. room [2 vocab]. -1 where a logit is NaN or +Inf, or all are -Inf. */
int32_t walsh_draw_reference(const struct walsh_draw *draw, float *logits, uint32_t vocab, int32_t *room);

#endif
