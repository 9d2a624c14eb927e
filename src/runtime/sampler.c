#include "runtime/sampler.h"

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

/* The penalty once per distinct recent token (Keskar et al. 2019, CTRL). `logits` gives what was before it.
 */
static void penalize(struct walsh_sampler *s, const float *logits)
{
    double penalty = s->options.repeat_penalty;
    if (penalty == 1) return;
    uint64_t known = s->accepted < s->options.repeat_last ? s->accepted : s->options.repeat_last;
    for (uint64_t i = 0; i < known; i++) {
        int32_t id = s->recent[i];
        if (id < 0 || (uint32_t)id >= s->vocab) continue;
        double logit = (double)logits[id]; /* of the model: a second occurrence gives the same value again */
        s->logits[id] = (float)(logit > 0 ? logit / penalty : logit * penalty);
    }
}

/* Presence and frequency penalties over the tokens drawn, then the biases. Sums in double, rounded once per
 * token and step. */
static void shift(struct walsh_sampler *s)
{
    const struct walsh_sampling *o = &s->options;
    for (uint32_t i = 0; s->drawn && i < s->vocab; i++)
        if (s->drawn[i])
            s->logits[i] = (float)((double)s->logits[i] - o->presence_penalty -
                                   o->frequency_penalty * (double)s->drawn[i]);
    for (size_t i = 0; i < o->bias_count; i++) s->logits[s->bias_ids[i]] += s->biases[i];
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

/* The smaller one of two numbers that are not negative; NaN, of either sign, is larger than all others. As
 * integers, because a compiler that has to think of floating-point exceptions does not take several at a time.
 */
static float smaller(float a, float b)
{
    int32_t x, y;
    memcpy(&x, &a, sizeof x);
    memcpy(&y, &b, sizeof y);
    x &= INT32_MAX;
    const int32_t bits = x < y ? x : y;
    memcpy(&a, &bits, sizeof a);
    return a;
}

/* e^-depth within 4e-7 for what counts; beyond 87 it stays what it is there. 2^(k + f) with k rounded, and
 * the series of 2^f for |f| <= 1/2. */
static float decay(float depth)
{
    const float t = smaller(depth, 87) * -1.44269504f;
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

struct histogram {
    double mass[BUCKETS];
    uint32_t count[BUCKETS];
    double whole; /* the sum of all masses */
};

static void fill_histogram(const struct walsh_sampler *s, float best, struct histogram *h)
{
    const float per_temperature = (float)(1 / s->options.temperature);
    *h = (struct histogram){0};
    for (uint32_t begin = 0; begin < s->vocab; begin += BLOCK) {
        const uint32_t n = s->vocab - begin < BLOCK ? s->vocab - begin : BLOCK;
        float mass[BLOCK];
        int32_t bucket[BLOCK];
        for (uint32_t i = 0; i < n; i++) {
            const float depth = (best - s->logits[begin + i]) * per_temperature;
            bucket[i] = (int32_t)smaller(depth * (float)BUCKETS_PER_E, BUCKETS - 1);
            mass[i] = decay(depth);
        }
        for (uint32_t i = 0; i < n; i++) {
            h->mass[bucket[i]] += (double)mass[i];
            h->count[bucket[i]]++;
        }
    }
    for (uint32_t i = 0; i < BUCKETS; i++) h->whole += h->mass[i];
}

/* Put those that a draw can reach into a heap: whole buckets from the top until they have `count` candidates
 * or more, or more than `mass`, or what follows has less than `share` of the first one's probability. Of a
 * vocabulary these are few, and the rest is never sorted. */
static size_t gather(struct walsh_sampler *s, float best, const struct histogram *h, uint32_t count,
                     double mass, double share)
{
    const double slack = 1 + 1e-5; /* the masses are rounded */
    const double deepest = share > 0 ? 1 - log(share) * BUCKETS_PER_E : BUCKETS;
    uint32_t last = 0, seen = h->count[0];
    double sum = h->mass[0];
    while (last < BUCKETS - 1 && last < deepest && seen < count && sum < mass * slack) {
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

/* The candidates in descending order as far as the filters keep them: ids at the end of the array, masses
 * from the front. Returns how many; *total is their mass. Where nothing filters, *total is the mass of all,
 * and those behind the one where `share` of it is reached are left in the heap. */
static size_t filter(struct walsh_sampler *s, float best, double share, double *total)
{
    const struct walsh_sampling *o = &s->options;
    const size_t limit = o->top_k > 0 && o->top_k < s->vocab ? o->top_k : s->vocab;
    const bool need_whole = limit < s->vocab && o->top_p < 1;
    const bool unfiltered = limit == s->vocab && o->top_p == 1 && o->min_p == 0;
    struct histogram h;
    fill_histogram(s, best, &h);
    const double reach = limit < s->vocab ? INFINITY : (unfiltered ? share : o->top_p) * h.whole;
    size_t n = gather(s, best, &h, (uint32_t)limit, reach, need_whole ? 0 : o->min_p);
    double whole = h.whole; /* the mass that top-p is a share of: of what top-k keeps */
    size_t kept = 0;
    struct walsh_candidate *sorted =
        s->candidates + s->vocab; /* grows downwards into the room that the heap leaves */
    *total = 0;
    while (kept < limit && n > 0) {
        struct walsh_candidate c = take_first(s->candidates, &n);
        double mass = exp(((double)c.logit - (double)best) / o->temperature);
        if (kept > 0 && (mass < o->min_p || mass == 0) && !need_whole) break;
        *--sorted = c;
        s->mass[kept++] = mass;
        *total += mass;
        if (!need_whole && o->top_p < 1 && *total >= o->top_p * whole) break;
        if (unfiltered && *total > share * whole) break;
    }
    if (unfiltered) *total = whole;
    if (!need_whole) return kept;
    whole = *total; /* all of top-k are there; now cut them by top-p and min-p */
    size_t candidates = kept;
    *total = 0;
    for (kept = 0; kept < candidates; kept++) {
        if (kept > 0 && (s->mass[kept] < o->min_p || s->mass[kept] == 0 || *total >= o->top_p * whole)) break;
        *total += s->mass[kept];
    }
    return kept;
}

/* A number that is larger for a larger float: those of NaN lie beyond those of both infinities. */
static int32_t order_of(float value)
{
    int32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits ^ ((bits >> 31) & INT32_MAX);
}

static enum walsh_status find_best(const struct walsh_sampler *s, struct walsh_candidate *best,
                                   struct walsh_error *err)
{
    int32_t most = INT32_MIN, least = INT32_MAX;
    for (uint32_t i = 0; i < s->vocab;
         i++) { /* integers, because a compiler takes several of them at a time */
        const int32_t order = order_of(s->logits[i]);
        most = order > most ? order : most;
        least = order < least ? order : least;
    }
    const bool good = most < order_of(INFINITY) && least >= order_of(-INFINITY);
    *best = (struct walsh_candidate){s->logits[0], 0};
    for (uint32_t i = 0; i < s->vocab; i++) {
        const float logit = s->logits[i];
        if (!good && (isnan(logit) || logit == INFINITY))
            return walsh_fail(err, WALSH_E_INTERNAL, "the logit of token %u is %g", i, (double)logit);
        if (logit > best->logit) *best = (struct walsh_candidate){logit, (int32_t)i};
        if (good && order_of(logit) == most) break;
    }
    if (best->logit == -INFINITY) return walsh_fail(err, WALSH_E_INTERNAL, "all logits are -inf");
    return WALSH_OK;
}

/* Tokens that do not continue a text of the grammar are out. */
static enum walsh_status apply_grammar(struct walsh_sampler *s, struct walsh_error *err)
{
    const uint64_t *mask;
    if (!s->matcher) return WALSH_OK;
    WALSH_TRY(walsh_matcher_mask(s->matcher, &mask, err));
    for (uint32_t i = 0; i < s->vocab; i++)
        if (!(mask[i / 64] >> i % 64 & 1)) s->logits[i] = -INFINITY;
    return WALSH_OK;
}

enum walsh_status walsh_sampler_choose(struct walsh_sampler *s, const float *logits, int32_t *id,
                                       struct walsh_error *err)
{
    memcpy(s->logits, logits, s->vocab * sizeof *logits);
    penalize(s, logits);
    shift(s);
    for (size_t i = 0; i < s->options.excluded_count; i++) s->logits[s->options.excluded[i]] = -INFINITY;
    WALSH_TRY(apply_grammar(s, err));
    struct walsh_candidate best;
    WALSH_TRY(find_best(s, &best, err));
    if (s->options.temperature < WALSH_LEAST_TEMPERATURE) {
        *id = best.id;
    } else {
        double total;
        double share = walsh_random_uniform(&s->random);
        size_t kept = filter(s, best.logit, share, &total), chosen = 0;
        double point = share * total;
        for (; chosen + 1 < kept; chosen++) {
            point -= s->mass[chosen];
            if (point < 0) break;
        }
        *id = s->candidates[s->vocab - 1 - chosen].id;
    }
    if (s->matcher) WALSH_TRY(walsh_matcher_advance(s->matcher, *id, err));
    walsh_sampler_note(s, *id);
    if (s->drawn) s->drawn[*id]++;
    return WALSH_OK;
}
