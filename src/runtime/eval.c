#include "runtime/eval.h"

#include <math.h>
#include <stdio.h>

#include "base/machine.h"

#define LOGIT_ELEMENTS ((size_t)1 << 24) /* 64 MiB of logits at once, per model */

double walsh_negative_log_likelihood(const float *logits, size_t n, int32_t target, double *normalizer)
{
    float best = logits[0];
    for (size_t i = 1; i < n; i++) best = logits[i] > best ? logits[i] : best;
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += exp((double)(logits[i]) - (double)best);
    double log_sum = (double)best + log(sum);
    if (normalizer) *normalizer = log_sum;
    return log_sum - (double)logits[target];
}

static size_t argmax(const float *x, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

/* One model of an evaluation. */
struct subject {
    struct walsh_runner *runner;
    struct walsh_session *session;
    float *hidden; /* [context - 1][hidden]: the last token of a chunk predicts nothing */
    float *logits; /* [slice][vocab] */
    bool decode;   /* a packed cache is measured as decode reads it */
};

struct score {
    double nll, kl;
    bool agree;
};

struct evaluation {
    struct subject model, reference; /* reference.runner NULL: none */
    uint32_t context;
    size_t vocab, slice;
    struct score *scores; /* [context - 1] */
};

/* A chunk of rows is appended before it attends. */
static struct walsh_kv_shape subject_shape(const struct walsh_runner *runner, uint32_t context,
                                           const struct walsh_kv_policy *policy)
{
    struct walsh_kv_shape shape = walsh_session_kv_shape(runner->graph, context, policy);
    shape.rows = WALSH_CHUNK_ROWS;
    return shape;
}

static enum walsh_status open_subject(struct subject *s, struct walsh_runner *runner,
                                      const struct evaluation *e, const struct walsh_kv_policy *policy,
                                      struct walsh_error *err)
{
    const struct walsh_kv_shape shape = subject_shape(runner, e->context, policy);
    s->runner = runner;
    s->decode = policy->type == WALSH_KV_TURBO;
    WALSH_TRY(walsh_runtime_session_open_shape(runner, &shape, &s->session, err));
    WALSH_TRY(walsh_alloc((size_t)e->context * runner->graph->config.hidden, sizeof(float), "hidden states",
                          &s->hidden, err));
    return walsh_alloc(e->slice * e->vocab, sizeof(float), "logits", &s->logits, err);
}

/* The caches of both together, before either is opened: pages come as they are written, so that each alone
 * would pass. */
static enum walsh_status check_caches(const struct walsh_runner *model, const struct walsh_runner *reference,
                                      uint32_t context, const struct walsh_kv_policy *policy,
                                      const struct walsh_kv_policy *reference_policy, struct walsh_error *err)
{
    const struct walsh_kv_shape shapes[] = {subject_shape(model, context, policy),
                                            subject_shape(reference, context, reference_policy)};
    WALSH_TRY(walsh_kv_check(&shapes[0], err));
    const uint64_t a = walsh_kv_bytes(&shapes[0]), b = walsh_kv_bytes(&shapes[1]);
    char what[100];
    snprintf(what, sizeof what, "the KV caches of model and reference with a context of %u tokens", context);
    return walsh_memory_check(what, a > UINT64_MAX - b ? UINT64_MAX : a + b, err);
}

static void close_subject(struct subject *s)
{
    walsh_runtime_session_close(&s->session);
    walsh_free(s->hidden);
    walsh_free(s->logits);
}

/* A slice of rows to score, shared by the pool. */
struct scoring {
    const struct evaluation *e;
    const int32_t *targets;
    struct score *scores;
};

static void score_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct scoring *t = argument;
    size_t vocab = t->e->vocab;
    for (size_t row = begin; row < end; row++) {
        const float *logits = t->e->model.logits + row * vocab;
        struct score *score = &t->scores[row];
        double log_sum, reference_log_sum;
        score->nll = walsh_negative_log_likelihood(logits, vocab, t->targets[row], &log_sum);
        if (!t->e->reference.runner) continue;
        const float *reference = t->e->reference.logits + row * vocab;
        walsh_negative_log_likelihood(reference, vocab, t->targets[row], &reference_log_sum);
        score->kl = 0;
        for (size_t i = 0; i < vocab; i++) {
            double log_p = (double)reference[i] - reference_log_sum, log_q = (double)logits[i] - log_sum;
            double p = exp(log_p);
            if (p > 0) score->kl += p * (log_p - log_q); /* p log p is 0 at 0, where log_p may be -inf */
        }
        score->agree = argmax(reference, vocab) == argmax(logits, vocab);
    }
}

static enum walsh_status run_subject(struct subject *s, const int32_t *ids, size_t count,
                                     struct walsh_error *err)
{
    const struct walsh_prompt_outputs outputs = {.hidden = s->hidden, .decode = s->decode};
    WALSH_TRY(walsh_runtime_trim(s->session, 0, err));
    return walsh_runtime_prompt(s->session, ids, count, &outputs, NULL, err);
}

static void slice_logits(const struct subject *s, size_t begin, size_t n)
{
    struct walsh_runner *r = s->runner;
    struct walsh_row_set room;
    const struct walsh_row_sets sets = walsh_session_sets(s->session, n, &room);
    walsh_runner_logits(r, s->hidden + begin * r->graph->config.hidden, n,
                        s->decode ? WALSH_DECODE : WALSH_PREFILL, &sets, s->logits);
}

/* scores[0 .. context - 1) of one chunk */
static enum walsh_status score_chunk(struct evaluation *e, const int32_t *ids, struct walsh_error *err)
{
    size_t rows = e->context - 1;
    WALSH_TRY(run_subject(&e->model, ids, rows, err));
    if (e->reference.runner) WALSH_TRY(run_subject(&e->reference, ids, rows, err));
    for (size_t begin = 0, n; begin < rows; begin += n) {
        n = walsh_min(rows - begin, e->slice);
        slice_logits(&e->model, begin, n);
        if (e->reference.runner) slice_logits(&e->reference, begin, n);
        struct scoring task = {e, ids + begin + 1, e->scores + begin};
        walsh_pool_run(e->model.runner->queue->pool, n, 4, score_rows, &task);
    }
    if (e->reference.runner) WALSH_TRY(walsh_runner_check(e->reference.runner, err));
    return walsh_runner_check(e->model.runner, err);
}

static enum walsh_status score_text(struct evaluation *e, const int32_t *ids, size_t chunks,
                                    struct walsh_evaluation *result, struct walsh_error *err)
{
    double nll = 0, squares = 0, kl = 0;
    uint64_t agree = 0, n = 0;
    for (size_t chunk = 0; chunk < chunks; chunk++) {
        WALSH_TRY(score_chunk(e, ids + chunk * e->context, err));
        for (size_t i = 0; i + 1 < e->context; i++, n++) {
            const struct score *s = &e->scores[i];
            nll += s->nll;
            squares += s->nll * s->nll;
            kl += s->kl;
            agree += s->agree;
        }
        walsh_progress(e->model.runner->hooks, "eval", (double)((chunk + 1) * e->context),
                       (double)(chunks * e->context), "tokens");
    }
    double mean = nll / (double)n;
    if (isnan(mean)) return walsh_fail(err, WALSH_E_INTERNAL, "the model's logits are not numbers (NaN)");
    double variance = n > 1 ? (squares - (double)n * mean * mean) / (double)(n - 1) : 0;
    *result = (struct walsh_evaluation){.tokens = n,
                                        .nll = mean,
                                        .nll_error = sqrt(fmax(variance, 0) / (double)n),
                                        .kl = kl / (double)n,
                                        .top1_agreement = (double)agree / (double)n};
    return WALSH_OK;
}

enum walsh_status walsh_runtime_eval(struct walsh_runner *runner, struct walsh_runner *reference,
                                     const int32_t *ids, size_t count, uint32_t context,
                                     const struct walsh_kv_policy *policy,
                                     const struct walsh_adapter_choice *adapters, size_t adapter_count,
                                     struct walsh_evaluation *result, struct walsh_error *err)
{
    const struct walsh_config *c = &runner->graph->config;
    if (context < 2)
        return walsh_fail(err, WALSH_E_ARGUMENT, "evaluation needs chunks of at least 2 tokens, not %u",
                          context);
    if (count < context)
        return walsh_fail(err, WALSH_E_FORMAT,
                          "the text has %zu tokens, one chunk of the context %u: use a smaller context",
                          count, context);
    if (reference && reference->graph->config.vocab != c->vocab)
        return walsh_fail(err, WALSH_E_FORMAT,
                          "the reference model has a vocabulary of %u, the model one of %u",
                          reference->graph->config.vocab, c->vocab);
    WALSH_TRY(walsh_runner_check_ids(runner, ids, count, err));
    struct evaluation e = {.context = context, .vocab = c->vocab};
    e.slice = walsh_min(walsh_max(LOGIT_ELEMENTS / c->vocab, 16), WALSH_CHUNK_ROWS);
    static const struct walsh_kv_policy f16 = {.type = WALSH_KV_F16};
    const struct walsh_kv_policy *reference_policy = policy->type == WALSH_KV_TURBO ? &f16 : policy;
    if (reference) WALSH_TRY(check_caches(runner, reference, context, policy, reference_policy, err));
    enum walsh_status status = open_subject(&e.model, runner, &e, policy, err);
    if (status == WALSH_OK)
        status = walsh_runtime_set_adapters(e.model.session, adapters, adapter_count, err);
    if (status == WALSH_OK && reference)
        status = open_subject(&e.reference, reference, &e, reference_policy, err);
    if (status == WALSH_OK) status = walsh_alloc_zero(context, sizeof *e.scores, "scores", &e.scores, err);
    if (status == WALSH_OK) status = score_text(&e, ids, count / context, result, err);
    close_subject(&e.model);
    close_subject(&e.reference);
    walsh_free(e.scores);
    return status;
}
