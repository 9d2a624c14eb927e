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
    WALSH_TRY(walsh_alloc(s->vocab, sizeof *s->candidates, "the sampler", &s->candidates, err));
    WALSH_TRY(walsh_alloc(s->vocab, sizeof *s->mass, "the sampler", &s->mass, err));
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
    walsh_free((*sampler)->mass);
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

/* A heap with the first candidate on top: taking k of n costs n + k log n, where sorting costs n log n. */
static void sift_down(struct walsh_candidate *heap, size_t n, size_t i)
{
    struct walsh_candidate moved = heap[i];
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && before(heap[child + 1], heap[child])) child++;
        if (!before(heap[child], moved)) break;
        heap[i] = heap[child];
    }
    heap[i] = moved;
}

static struct walsh_candidate take_first(struct walsh_candidate *heap, size_t *n)
{
    struct walsh_candidate top = heap[0];
    heap[0] = heap[--*n];
    sift_down(heap, *n, 0);
    return top;
}

#define BUCKETS 256       /* of logits below the largest one, each a factor of e^(1/8) of probability wide */
#define BUCKETS_PER_E 8.0 /* what lies further down than 32 is in the last one */
#define BLOCK 256

struct histogram {
    uint64_t mass[BUCKETS];
    uint32_t count[BUCKETS];
    uint64_t whole; /* the sum of all masses */
};

static void fill_histogram(const struct walsh_sampler *s, float best, float per_temperature,
                           struct histogram *h)
{
    *h = (struct histogram){0};
    for (uint32_t begin = 0; begin < s->vocab; begin += BLOCK) {
        const uint32_t n = s->vocab - begin < BLOCK ? s->vocab - begin : BLOCK;
        float decay[BLOCK];
        int32_t bucket[BLOCK];
        for (uint32_t i = 0; i < n; i++) {
            const float depth = walsh_logit_depth(best, s->logits[begin + i], per_temperature);
            bucket[i] = (int32_t)walsh_smaller(depth * (float)BUCKETS_PER_E, BUCKETS - 1);
            decay[i] = walsh_decay(depth);
        }
        for (uint32_t i = 0; i < n; i++) {
            h->mass[bucket[i]] += walsh_mass_of_decay(decay[i]);
            h->count[bucket[i]]++;
        }
    }
    for (uint32_t i = 0; i < BUCKETS; i++) h->whole += h->mass[i];
}

/* Put those that a draw can reach into a heap: whole buckets from the top until they have `count` candidates
 * or more, or a mass of `mass` or more, or what follows has less than `share` of the first one's probability
 * (0: whatever it has). Of a vocabulary these are few, and the rest is never sorted. */
static size_t gather(struct walsh_sampler *s, float best, const struct histogram *h, uint32_t count,
                     uint64_t mass, double share)
{
    const double deepest = share > 0 ? 1 - log(share) * BUCKETS_PER_E : BUCKETS;
    uint32_t last = 0, seen = h->count[0];
    uint64_t sum = h->mass[0];
    while (last < BUCKETS - 1 && last < deepest && seen < count && sum < mass) {
        seen += h->count[++last];
        sum += h->mass[last];
    }
    /* a little below the bucket's end, since the quotients were rounded */
    const double depth = (last + 1.01) / BUCKETS_PER_E * s->options.temperature + 1e-6 * fabs((double)best);
    const float least = last == BUCKETS - 1 ? -INFINITY : (float)((double)best - depth);
    size_t n = 0;
    for (uint32_t i = 0; i < s->vocab; i++) {
        s->candidates[n] = (struct walsh_candidate){s->logits[i], (int32_t)i};
        n += s->logits[i] >= least;
    }
    for (size_t i = n / 2; i-- > 0;) sift_down(s->candidates, n, i);
    return n;
}

/* kernels/draw.h's draw from s->logits. The candidates come down in order as far as the filters and the draw
 * need them: ids at the end of the array, masses from the front. With top-k and top-p all of top-k come down,
 * because top-p is a share of their mass; min-p cuts behind that. */
static int32_t draw(struct walsh_sampler *s, const struct walsh_draw *d, float best)
{
    const bool top_k = d->top_k < s->vocab, top_p = d->top_p < 1;
    const bool unfiltered = !top_k && !top_p && d->least == 1;
    struct histogram h;
    fill_histogram(s, best, d->per_temperature, &h);
    uint64_t enough = UINT64_MAX, point = 0, total = 0, sum = 0; /* the mass that is far enough down */
    if (unfiltered)
        enough = (point = walsh_drawn_mass(d->share, h.whole)) + 1;
    else if (top_p && !top_k)
        enough = walsh_top_p_mass(d->top_p, h.whole);
    size_t n = gather(s, best, &h, d->top_k, enough, top_k && top_p ? 0 : s->options.min_p), kept = 0;
    struct walsh_candidate *sorted =
        s->candidates + s->vocab; /* grows downwards into the room that the heap leaves */
    while (kept < d->top_k && n > 0 && total < enough) {
        const struct walsh_candidate c = take_first(s->candidates, &n);
        const uint64_t mass =
            walsh_mass_of_decay(walsh_decay(walsh_logit_depth(best, c.logit, d->per_temperature)));
        if (mass < d->least && !(top_k && top_p)) break;
        *--sorted = c;
        s->mass[kept++] = mass;
        total += mass;
    }
    if (top_k && top_p) { /* all of top-k are there; now cut them by top-p and min-p */
        enough = walsh_top_p_mass(d->top_p, total);
        total = 0;
        const size_t candidates = kept;
        for (kept = 0; kept < candidates && total < enough && s->mass[kept] >= d->least; kept++)
            total += s->mass[kept];
    }
    if (!unfiltered) point = walsh_drawn_mass(d->share, total);
    size_t chosen = 0;
    for (; chosen + 1 < kept && (sum += s->mass[chosen]) <= point; chosen++) continue;
    return s->candidates[s->vocab - 1 - chosen].id;
}

static enum walsh_status find_best(const struct walsh_sampler *s, struct walsh_candidate *best,
                                   struct walsh_error *err)
{
    int32_t most = INT32_MIN, least = INT32_MAX;
    for (uint32_t i = 0; i < s->vocab;
         i++) { /* integers, because a compiler takes several of them at a time */
        const int32_t order = walsh_logit_order(s->logits[i]);
        most = order > most ? order : most;
        least = order < least ? order : least;
    }
    const bool good = most < walsh_logit_order(INFINITY) && least >= walsh_logit_order(-INFINITY);
    *best = (struct walsh_candidate){s->logits[0], 0};
    for (uint32_t i = 0; i < s->vocab; i++) {
        const float logit = s->logits[i];
        if (!good && (isnan(logit) || logit == INFINITY))
            return walsh_fail(err, WALSH_E_INTERNAL, "the logit of token %u is %g", i, (double)logit);
        if (logit > best->logit) *best = (struct walsh_candidate){logit, (int32_t)i};
        if (good && walsh_logit_order(logit) == most) break;
    }
    if (best->logit == -INFINITY) return walsh_fail(err, WALSH_E_INTERNAL, "all logits are -inf");
    return WALSH_OK;
}

enum walsh_status walsh_sampler_choose(struct walsh_sampler *s, const float *logits, int32_t *id,
                                       struct walsh_error *err)
{
    struct walsh_draw d;
    struct walsh_candidate best;
    WALSH_TRY(walsh_sampler_plan(s, &d, err));
    memcpy(s->logits, logits, s->vocab * sizeof *logits);
    walsh_edit_logits(&d, s->logits);
    for (uint32_t i = 0; d.mask && i < s->vocab; i++)
        if (!(d.mask[i / 64] >> i % 64 & 1)) s->logits[i] = -INFINITY;
    WALSH_TRY(find_best(s, &best, err));
    *id = d.greedy ? best.id : draw(s, &d, best.logit);
    return walsh_sampler_take(s, *id, err);
}
