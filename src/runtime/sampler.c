#include "runtime/sampler.h"

#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/memory.h"

#define MOST_SHIFT 1e6f /* of a logit by bias or penalty: far beyond any logit, and the sum stays finite */

static enum walsh_status check(const char *name, double value, bool valid, const char *range,
                               struct walsh_error *err)
{
    if (valid) return WALSH_OK;
    return walsh_fail(err, WALSH_E_ARGUMENT, "%s is %g, expected %s", name, value, range);
}

static enum walsh_status allocate(struct walsh_sampler *s, struct walsh_error *err)
{
    WALSH_TRY(walsh_alloc(s->vocab, sizeof *s->logits, "the sampler", &s->logits, err));
    const size_t room = walsh_round_up(s->vocab, WALSH_REACH_LANES);
    WALSH_TRY(walsh_alloc(s->vocab, sizeof *s->candidates, "the sampler", &s->candidates, err));
    WALSH_TRY(walsh_alloc(room, sizeof *s->reach.ids, "the sampler", &s->reach.ids, err));
    WALSH_TRY(walsh_alloc(room, sizeof *s->reach.depth, "the sampler", &s->reach.depth, err));
    WALSH_TRY(walsh_alloc(room, sizeof *s->reach.decay, "the sampler", &s->reach.decay, err));
    WALSH_TRY(walsh_alloc(s->options.repeat_last, sizeof *s->recent, "the sampler", &s->recent, err));
    WALSH_TRY(walsh_alloc_zero(s->vocab, sizeof *s->place, "the sampler", &s->place, err));
    if (s->options.presence_penalty != 0 || s->options.frequency_penalty != 0)
        WALSH_TRY(walsh_alloc_zero(s->vocab, sizeof *s->drawn, "the sampler", &s->drawn, err));
    if (s->options.grammar) WALSH_TRY(walsh_matcher_open(s->options.grammar, &s->matcher, err));
    return walsh_sampling_copy_bias(&s->options, &s->bias_ids, &s->biases, err);
}

enum walsh_status walsh_sampling_copy_bias(struct walsh_sampling *o, int32_t **ids, float **biases,
                                           struct walsh_error *err)
{
    WALSH_TRY(walsh_alloc(o->bias_count, sizeof **ids, "biases of logits", ids, err));
    WALSH_TRY(walsh_alloc(o->bias_count, sizeof **biases, "biases of logits", biases, err));
    if (o->bias_count) {
        memcpy(*ids, o->bias_ids, o->bias_count * sizeof **ids);
        memcpy(*biases, o->biases, o->bias_count * sizeof **biases);
    }
    o->bias_ids = *ids;
    o->biases = *biases;
    return WALSH_OK;
}

static enum walsh_status check_bias(const struct walsh_sampling *o, uint32_t vocab, struct walsh_error *err)
{
    for (size_t i = 0; i < o->bias_count; i++) {
        const int32_t id = o->bias_ids[i];
        if (id < 0 || (uint32_t)id >= vocab)
            return walsh_fail(err, WALSH_E_ARGUMENT, "a bias for token %d: the vocabulary has ids 0 to %u",
                              id, vocab - 1);
        if (!(fabsf(o->biases[i]) <= MOST_SHIFT))
            return walsh_fail(err, WALSH_E_ARGUMENT, "the bias of token %d is %g, expected -1e6 to 1e6", id,
                              (double)o->biases[i]);
    }
    return WALSH_OK;
}

enum walsh_status walsh_sampling_check(const struct walsh_sampling *o, uint32_t vocab,
                                       struct walsh_error *err)
{
    WALSH_TRY(check("temperature", o->temperature, o->temperature >= 0 && isfinite(o->temperature),
                    "0 or more", err));
    WALSH_TRY(check("top_p", o->top_p, o->top_p > 0 && o->top_p <= 1, "more than 0, at most 1", err));
    WALSH_TRY(check("min_p", o->min_p, o->min_p >= 0 && o->min_p <= 1, "0 to 1", err));
    WALSH_TRY(check("repeat_penalty", o->repeat_penalty, o->repeat_penalty > 0 && isfinite(o->repeat_penalty),
                    "more than 0", err));
    WALSH_TRY(check("presence_penalty", o->presence_penalty, fabs(o->presence_penalty) <= MOST_SHIFT,
                    "-1e6 to 1e6", err));
    WALSH_TRY(check("frequency_penalty", o->frequency_penalty, fabs(o->frequency_penalty) <= MOST_SHIFT,
                    "-1e6 to 1e6", err));
    if (o->grammar && walsh_grammar_vocab(o->grammar) != vocab)
        return walsh_fail(err, WALSH_E_ARGUMENT, "a grammar of a model with %u ids for one with %u",
                          walsh_grammar_vocab(o->grammar), vocab);
    return check_bias(o, vocab, err);
}

enum walsh_status walsh_sampler_create(const struct walsh_sampling *o, uint32_t vocab,
                                       struct walsh_sampler **out, struct walsh_error *err)
{
    *out = NULL;
    if (vocab == 0) return walsh_fail(err, WALSH_E_ARGUMENT, "a sampler needs a vocabulary");
    if (vocab > WALSH_MOST_DRAWN_FROM)
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "a vocabulary of %" PRIu32 ", expected at most %u", vocab,
                          WALSH_MOST_DRAWN_FROM);
    WALSH_TRY(walsh_sampling_check(o, vocab, err));
    struct walsh_sampler *s;
    WALSH_TRY(walsh_alloc_zero(1, sizeof *s, "the sampler", &s, err));
    struct walsh_kernels machine;
    if (!o->kernels) walsh_kernels_select(walsh_cpu_isa(), &machine);
    const struct walsh_kernels *kernels = o->kernels ? o->kernels : &machine;
    s->logit_range = kernels->logit_range;
    s->sum_masses = kernels->sum_masses;
    s->options = *o;
    s->vocab = vocab;
    walsh_random_seed(&s->random, o->seed);
    enum walsh_status status = allocate(s, err);
    if (status != WALSH_OK) {
        walsh_sampler_destroy(&s);
        return status;
    }
    *out = s;
    return WALSH_OK;
}

void walsh_sampler_destroy(struct walsh_sampler **sampler)
{
    if (!sampler || !*sampler) return;
    walsh_matcher_close(&(*sampler)->matcher);
    walsh_free((*sampler)->logits);
    walsh_free((*sampler)->candidates);
    walsh_free((*sampler)->reach.ids);
    walsh_free((*sampler)->reach.depth);
    walsh_free((*sampler)->reach.decay);
    walsh_free((*sampler)->recent);
    walsh_free((*sampler)->drawn);
    walsh_free((*sampler)->place);
    walsh_free((*sampler)->edits);
    walsh_free((*sampler)->bias_ids);
    walsh_free((*sampler)->biases);
    walsh_free(*sampler);
    *sampler = NULL;
}

void walsh_sampler_note(struct walsh_sampler *s, int32_t id)
{
    if (s->options.repeat_last > 0) s->recent[s->accepted % s->options.repeat_last] = id;
    s->accepted++;
}

/* The edit of this id, a new one where it has none. */
static struct walsh_logit_edit *edit_of(struct walsh_sampler *s, int32_t id)
{
    if (s->place[id] == 0) {
        s->edits[s->edit_count++] = (struct walsh_logit_edit){.id = id};
        s->place[id] = s->edit_count;
    }
    return &s->edits[s->place[id] - 1];
}

/* Room for `most` edits, which may be more than there will be. */
static enum walsh_status reserve_edits(struct walsh_sampler *s, size_t most, struct walsh_error *err)
{
    most = walsh_min(most, s->vocab);
    if (most <= s->edit_room) return WALSH_OK;
    walsh_free(s->edits);
    s->edits = NULL;
    s->edit_room = 0;
    const size_t room = walsh_min(walsh_max(2 * most, 64), s->vocab);
    WALSH_TRY(walsh_alloc(room, sizeof *s->edits, "the sampler", &s->edits, err));
    s->edit_room = (uint32_t)room;
    return WALSH_OK;
}

/* What penalties, biases and the excluded tokens make of logits: the repeat penalty once per distinct recent
 * token (Keskar et al. 2019, CTRL), presence and frequency by the tokens drawn. */
static enum walsh_status collect_edits(struct walsh_sampler *s, struct walsh_error *err)
{
    const struct walsh_sampling *o = &s->options;
    const bool repeats = o->repeat_penalty != 1;
    const uint64_t known = !repeats ? 0 : s->accepted < o->repeat_last ? s->accepted : o->repeat_last;
    WALSH_TRY(reserve_edits(s, (size_t)known + s->distinct + o->bias_count + o->excluded_count, err));
    s->edit_count = 0;
    for (uint64_t i = 0; i < known; i++)
        if (s->recent[i] >= 0 && (uint32_t)s->recent[i] < s->vocab)
            edit_of(s, s->recent[i])->penalized = true;
    for (uint32_t i = 0, seen = 0; seen < s->distinct; i++) {
        if (s->drawn[i] == 0) continue;
        edit_of(s, (int32_t)i)->drawn = s->drawn[i];
        seen++;
    }
    for (size_t i = 0; i < o->bias_count; i++) edit_of(s, s->bias_ids[i])->bias += s->biases[i];
    for (size_t i = 0; i < o->excluded_count; i++) edit_of(s, o->excluded[i])->excluded = true;
    for (uint32_t i = 0; i < s->edit_count; i++) s->place[s->edits[i].id] = 0;
    return WALSH_OK;
}

enum walsh_status walsh_sampler_plan(struct walsh_sampler *s, struct walsh_draw *out, struct walsh_error *err)
{
    const struct walsh_sampling *o = &s->options;
    struct walsh_random ahead = s->random;
    WALSH_TRY(collect_edits(s, err));
    const bool greedy = o->temperature < WALSH_LEAST_TEMPERATURE, all = o->top_k == 0 || o->top_k > s->vocab;
    *out = (struct walsh_draw){.greedy = greedy,
                               .top_k = all ? s->vocab : o->top_k,
                               .top_p = o->top_p,
                               .least = (uint64_t)ceil(o->min_p * (double)WALSH_WHOLE_MASS),
                               .penalty = o->repeat_penalty,
                               .presence = o->presence_penalty,
                               .frequency = o->frequency_penalty,
                               .edits = s->edits,
                               .edit_count = s->edit_count};
    if (out->least == 0) out->least = 1;
    if (!out->greedy) {
        out->per_temperature = (float)(1 / o->temperature);
        out->share = walsh_random_u64(&ahead) >> (64 - WALSH_SHARE_BITS);
    }
    return s->matcher ? walsh_matcher_mask(s->matcher, &out->mask, err) : WALSH_OK;
}

enum walsh_status walsh_sampler_take(struct walsh_sampler *s, int32_t id, struct walsh_error *err)
{
    if (s->options.temperature >= WALSH_LEAST_TEMPERATURE) walsh_random_u64(&s->random);
    if (s->matcher) WALSH_TRY(walsh_matcher_advance(s->matcher, id, err));
    walsh_sampler_note(s, id);
    if (s->drawn) s->distinct += s->drawn[id]++ == 0;
    return WALSH_OK;
}

/* a comes before b: a larger logit, or an equal one and a lower id. */
static bool before(struct walsh_candidate a, struct walsh_candidate b)
{
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

/* A heap with the last candidate on top, which then goes to the end. */
static void sift_down(struct walsh_candidate *heap, size_t n, size_t i)
{
    struct walsh_candidate moved = heap[i];
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && before(heap[child], heap[child + 1])) child++;
        if (!before(moved, heap[child])) break;
        heap[i] = heap[child];
    }
    heap[i] = moved;
}

static void sort(struct walsh_candidate *c, size_t n)
{
    if (n <= 24) { /* by insertion */
        for (size_t i = 1, at; i < n; i++) {
            const struct walsh_candidate moved = c[i];
            for (at = i; at > 0 && before(moved, c[at - 1]); at--) c[at] = c[at - 1];
            c[at] = moved;
        }
        return;
    }
    for (size_t i = n / 2; i-- > 0;) sift_down(c, n, i);
    for (size_t left = n - 1; left > 0; left--) {
        const struct walsh_candidate last = c[0];
        c[0] = c[left];
        c[left] = last;
        sift_down(c, left, 0);
    }
}

#define BUCKETS 256        /* of depth, each a factor of e^(1/8) of probability wide */
#define BUCKETS_PER_E 8.0f /* what lies further down than 32 is in the last one */
/* Nothing below it has a mass: 2^39 e^-28 is less than 1. Most draws end above the first one, below which
 * most of a vocabulary lies. */
#define DEEPEST 28.0f
#define FIRST_DEEPEST 9.0f

/* The front of the order: a bucket's candidates stand before those of the next one, and within it in no order
 * until they are needed. */
struct front {
    struct walsh_candidate *candidates;
    uint32_t end[BUCKETS]; /* of a bucket's candidates */
    uint64_t mass[BUCKETS];
    bool sorted[BUCKETS];
    uint32_t count;
    uint64_t sum, whole; /* masses of these, and of the whole vocabulary */
    bool all;            /* nothing else has a mass */
};

/* The first candidates of the order, with the sum of their masses; `last` is the last one of them. */
struct prefix {
    uint32_t count;
    uint64_t mass;
    int32_t last;
};

static uint32_t bucket_of(float depth)
{
    return (uint32_t)walsh_smaller(depth * BUCKETS_PER_E, BUCKETS - 1);
}

static void find_front(struct walsh_sampler *s, const float *logits, float best, float per_temperature,
                       float deepest, struct front *f)
{
    struct walsh_reach *reach = &s->reach;
    *f = (struct front){.candidates = s->candidates, .all = deepest >= DEEPEST};
    f->whole = s->sum_masses(logits, s->vocab, best, per_temperature, deepest, reach);
    f->count = (uint32_t)reach->count;
    for (uint32_t i = 0; i < f->count; i++) {
        const uint32_t bucket = bucket_of(reach->depth[i]);
        f->mass[bucket] += walsh_mass_of_decay(reach->decay[i]);
        f->end[bucket]++;
    }
    uint32_t next[BUCKETS];
    for (uint32_t b = 0, begin = 0; b < BUCKETS; b++) {
        next[b] = begin;
        begin = f->end[b] += begin;
        f->sum += f->mass[b];
    }
    for (uint32_t i = 0; i < f->count; i++) {
        const int32_t id = reach->ids[i];
        f->candidates[next[bucket_of(reach->depth[i])]++] =
            (struct walsh_candidate){logits[id], reach->decay[i], id};
    }
}

static void sort_bucket(struct front *f, uint32_t b)
{
    const uint32_t begin = b ? f->end[b - 1] : 0;
    if (!f->sorted[b]) sort(f->candidates + begin, f->end[b] - begin);
    f->sorted[b] = true;
}

/* The candidates before the first one with a mass below `least`. Masses do not quite fall with the logits,
 * because walsh_decay's operations are rounded: one that is too small may stand before one that is not. */
static uint32_t count_large(struct front *f, uint64_t least)
{
    uint32_t i = 0, b = 0;
    while (i < f->count && walsh_mass_of_decay(f->candidates[i].decay) >= least) i++;
    if (i == f->count) return i;
    while (f->end[b] <= i) b++;
    sort_bucket(f, b);
    for (i = b ? f->end[b - 1] : 0; walsh_mass_of_decay(f->candidates[i].decay) >= least;) i++;
    return i;
}

/* The shortest prefix of `most` candidates or a mass of `enough`, or all of them. Only the bucket that it
 * ends in is put in order. */
static struct prefix prefix_of(struct front *f, uint32_t most, uint64_t enough)
{
    struct prefix p = {0, 0, -1};
    uint32_t b = 0;
    while (b < BUCKETS && f->end[b] < most && p.mass + f->mass[b] < enough) {
        p.mass += f->mass[b];
        p.count = f->end[b++];
    }
    if (b == BUCKETS) return p;
    sort_bucket(f, b);
    while (p.count < f->end[b] && p.count < most && p.mass < enough) {
        const struct walsh_candidate *c = &f->candidates[p.count++];
        p.mass += walsh_mass_of_decay(c->decay);
        p.last = c->id;
    }
    return p;
}

/* What the filters keep, as kernels/draw.h says; false: it may end further down than the front. */
static bool keep(struct front *f, const struct walsh_draw *d, uint32_t vocab, struct prefix *kept)
{
    const bool top_k = d->top_k < vocab;
    uint32_t most = d->top_k;
    uint64_t enough = UINT64_MAX;
    if (top_k && most > f->count && !f->all) return false;
    if (d->top_p < 1) enough = walsh_top_p_mass(d->top_p, top_k ? prefix_of(f, most, enough).mass : f->whole);
    if (d->least > 1) {
        const uint32_t large = count_large(f, d->least);
        if (large < most && large == f->count && f->sum < enough && !f->all) return false;
        most = large < most ? large : most;
    }
    if (most > f->count && f->sum < enough && !f->all) return false;
    *kept = prefix_of(f, most, enough);
    return true;
}

/* kernels/draw.h's draw from a front; false: it does not reach as far down. */
static bool draw_from(struct front *f, const struct walsh_draw *d, uint32_t vocab, int32_t *id)
{
    struct prefix kept;
    uint64_t total = f->whole;
    if (d->top_k < vocab || d->top_p < 1 || d->least > 1) {
        if (!keep(f, d, vocab, &kept)) return false;
        total = kept.mass;
    }
    const uint64_t point = walsh_drawn_mass(d->share, total);
    if (point >= f->sum) return false;
    *id = prefix_of(f, UINT32_MAX, point + 1).last;
    return true;
}

/* The largest logit, of equal ones the first. */
static enum walsh_status find_best(const struct walsh_sampler *s, const float *logits, float *best,
                                   int32_t *id, struct walsh_error *err)
{
    int32_t most, least;
    s->logit_range(logits, s->vocab, &most, &least);
    if (most >= walsh_logit_order(INFINITY) || least < walsh_logit_order(-INFINITY)) {
        for (uint32_t i = 0; i < s->vocab; i++)
            if (isnan(logits[i]) || logits[i] == INFINITY)
                return walsh_fail(err, WALSH_E_INTERNAL, "the logit of token %u is %g", i, (double)logits[i]);
    }
    if (most == walsh_logit_order(-INFINITY)) return walsh_fail(err, WALSH_E_INTERNAL, "all logits are -inf");
    *id = 0;
    while (walsh_logit_order(logits[*id]) != most) ++*id;
    *best = logits[*id];
    return WALSH_OK;
}

/* The logits as the draw sees them: in the sampler's own row where something changes them. */
static const float *edited(struct walsh_sampler *s, const struct walsh_draw *d, const float *logits)
{
    if (d->edit_count == 0 && !d->mask) return logits;
    memcpy(s->logits, logits, s->vocab * sizeof *logits);
    walsh_edit_logits(d, s->logits);
    for (uint32_t i = 0; d->mask && i < s->vocab; i++)
        if (!(d->mask[i / 64] >> i % 64 & 1)) s->logits[i] = -INFINITY;
    return s->logits;
}

enum walsh_status walsh_sampler_choose(struct walsh_sampler *s, const float *logits, int32_t *id,
                                       struct walsh_error *err)
{
    struct walsh_draw d;
    struct front front;
    float best = 0;
    WALSH_TRY(walsh_sampler_plan(s, &d, err));
    logits = edited(s, &d, logits);
    WALSH_TRY(find_best(s, logits, &best, id, err));
    if (!d.greedy) {
        find_front(s, logits, best, d.per_temperature, FIRST_DEEPEST, &front);
        if (!draw_from(&front, &d, s->vocab, id)) {
            find_front(s, logits, best, d.per_temperature, DEEPEST, &front);
            draw_from(&front, &d, s->vocab, id);
        }
    }
    return walsh_sampler_take(s, *id, err);
}
