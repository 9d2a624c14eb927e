/* Random requests for a batch, each with what a session of its own gives, and schedules that let them join,
 * leave and vanish. For test_api_batch and proof/soak. A function that can fail returns NULL or a message in
 * a static buffer. */
#ifndef WALSH_TESTS_BATCH_REQUESTS_H
#define WALSH_TESTS_BATCH_REQUESTS_H

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/random.h"
#include "walsh.h"

#define TRIAL_ADAPTERS 3
#define TRIAL_BIASES 6

struct trial {
    const struct walsh_model *model;
    size_t vocab;
    uint32_t context;
    struct walsh_adapter *adapters[TRIAL_ADAPTERS];
    struct walsh_random random;
};

static char trial_message[1400];
static inline const char *trial_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
static inline const char *trial_fail(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vsnprintf(trial_message, sizeof trial_message, format, list);
    va_end(list);
    return trial_message;
}

/* Uniform in [least, most]. */
static inline uint32_t trial_between(struct trial *t, uint32_t least, uint32_t most)
{
    return least + (uint32_t)(walsh_random_u64(&t->random) % (most - least + 1));
}

/* A request and what it gives alone. */
struct wanted {
    int32_t *ids;
    uint32_t count, max_tokens;
    struct walsh_sampler_options sampling; /* its biases are those below: a wanted does not move */
    int32_t bias_ids[TRIAL_BIASES];
    float biases[TRIAL_BIASES];
    struct walsh_adapter_use uses[2];
    size_t adapters;
    int32_t stop; /* ends it; -1: none */
    bool ignore_eos;
    /* alone */
    int32_t *tokens;       /* [length] */
    uint64_t *logits_hash; /* [length], of what each was drawn from */
    uint32_t length;
    enum walsh_batch_finish finish;
    uint64_t *prompt_hash; /* [count], of the logits behind each token of the prompt; NULL: not asked for */
};

static inline uint64_t hash_logits(const float *logits, size_t n)
{
    uint64_t h = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, logits + i, sizeof bits);
        h = walsh_mix64(h ^ bits);
    }
    return h;
}

/* Prompts mostly short, some across pages and chunks; greedy or drawn, penalties, adapters alone and
 * together. */
static inline void wanted_draw(struct trial *t, struct wanted *w)
{
    const uint32_t kind = trial_between(t, 0, 15);
    memset(w, 0, sizeof *w);
    w->max_tokens = trial_between(t, 1, kind == 0 ? 200 : 32);
    const uint32_t most = t->context - w->max_tokens;
    w->count = kind < 10   ? trial_between(t, 1, 60)
               : kind < 14 ? trial_between(t, 200, 330)
                           : trial_between(t, 480, most);
    if (w->count > most) w->count = most;
    w->ids = calloc(w->count, sizeof *w->ids);
    for (uint32_t i = 0; i < w->count; i++) w->ids[i] = (int32_t)trial_between(t, 3, (uint32_t)t->vocab - 1);
    w->sampling = (struct walsh_sampler_options)WALSH_SAMPLER_OPTIONS;
    w->sampling.model = t->model;
    w->sampling.seed = walsh_random_u64(&t->random);
    if (trial_between(t, 0, 3)) w->sampling.temperature = 0.1 * trial_between(t, 1, 15);
    if (!trial_between(t, 0, 2)) w->sampling.top_k = trial_between(t, 1, 100);
    if (!trial_between(t, 0, 2)) w->sampling.top_p = 0.9;
    if (!trial_between(t, 0, 3)) w->sampling.repeat_penalty = 1.3;
    if (!trial_between(t, 0, 7)) w->sampling.repeat_last = UINT32_MAX / 2;
    if (!trial_between(t, 0, 3)) w->sampling.presence_penalty = 0.8;
    if (!trial_between(t, 0, 3)) w->sampling.frequency_penalty = 0.5;
    if (!trial_between(t, 0, 3)) {
        for (uint32_t i = 0; i < TRIAL_BIASES; i++) {
            w->bias_ids[i] = (int32_t)trial_between(t, 3, (uint32_t)t->vocab - 1);
            w->biases[i] = (float)trial_between(t, 0, 12) - 4;
        }
        w->sampling.bias_count = TRIAL_BIASES;
    }
    w->sampling.bias_ids = w->bias_ids;
    w->sampling.biases = w->biases;
    w->ignore_eos = !trial_between(t, 0, 7);
    w->stop = -1;
    const uint32_t which = trial_between(t, 0, 9); /* half of them without */
    if (which >= 5)
        w->uses[w->adapters++] = (struct walsh_adapter_use){t->adapters[which % TRIAL_ADAPTERS], 1};
    if (which == 8) w->uses[0].scale = 0.5f;
    if (which == 9)
        w->uses[w->adapters++] =
            (struct walsh_adapter_use){t->adapters[(which + 1) % TRIAL_ADAPTERS], -0.25f};
}

static inline void wanted_free(struct wanted *w)
{
    free(w->ids);
    free(w->tokens);
    free(w->logits_hash);
    free(w->prompt_hash);
    memset(w, 0, sizeof *w);
}

/* Fill in what it gives in a session and a sampler of its own, stepped alone: the loop of `walsh run`. */
static inline enum walsh_status wanted_run_alone(struct trial *t, struct wanted *w,
                                                 const struct walsh_kv_options *kv,
                                                 struct walsh_session **session,
                                                 struct walsh_sampler **sampler, struct walsh_error *err)
{
    struct walsh_session_options options = WALSH_SESSION_OPTIONS;
    options.context = w->count + w->max_tokens;
    options.kv = *kv;
    enum walsh_status status = walsh_session_open(t->model, &options, session, err);
    if (status == WALSH_OK) status = walsh_session_set_adapters(*session, w->uses, w->adapters, err);
    if (status == WALSH_OK) status = walsh_sampler_open(&w->sampling, (uint32_t)t->vocab, sampler, err);
    if (status == WALSH_OK) status = walsh_session_prompt(*session, w->ids, w->count, err);
    for (uint32_t i = 0; status == WALSH_OK && i < w->count; i++) walsh_sampler_accept(*sampler, w->ids[i]);
    w->tokens = calloc(w->max_tokens, sizeof *w->tokens);
    w->logits_hash = calloc(w->max_tokens, sizeof *w->logits_hash);
    w->finish = WALSH_FINISH_NONE;
    while (status == WALSH_OK && w->finish == WALSH_FINISH_NONE) {
        const float *logits = walsh_session_logits(*session);
        int32_t id;
        w->logits_hash[w->length] = hash_logits(logits, t->vocab);
        status = walsh_sampler_draw(*sampler, logits, &id, err);
        if (status != WALSH_OK) break;
        w->tokens[w->length++] = id;
        if (!w->ignore_eos && walsh_model_is_eos(t->model, id))
            w->finish = WALSH_FINISH_EOS;
        else if (w->length == w->max_tokens)
            w->finish = WALSH_FINISH_LENGTH;
        else
            status = walsh_step(session, &id, 1, err);
    }
    return status;
}

/* Draw a request and run it alone; every fourth then stops at a token of its own answer. */
static inline const char *wanted_make(struct trial *t, struct wanted *w, const struct walsh_kv_options *kv)
{
    struct walsh_error err;
    struct walsh_session *session = NULL;
    struct walsh_sampler *sampler = NULL;
    wanted_draw(t, w);
    const enum walsh_status status = wanted_run_alone(t, w, kv, &session, &sampler, &err);
    walsh_session_close(&session);
    walsh_sampler_close(&sampler);
    if (status != WALSH_OK) return trial_fail("alone: %s", err.message);
    if (trial_between(t, 0, 3) == 0) {
        uint32_t first = 0;
        w->stop = w->tokens[trial_between(t, 0, w->length - 1)];
        while (w->tokens[first] != w->stop) first++;
        w->length = first + 1;
        w->finish = WALSH_FINISH_STOP;
    }
    return NULL;
}

/* From now on it asks for the logits of its prompt. */
static inline const char *wanted_ask(struct trial *t, struct wanted *w, const struct walsh_kv_options *kv)
{
    struct walsh_error err;
    struct walsh_session *session = NULL;
    struct walsh_session_options options = WALSH_SESSION_OPTIONS;
    options.context = w->count + w->max_tokens;
    options.kv = *kv;
    float *logits = calloc(w->count * t->vocab, sizeof *logits);
    w->prompt_hash = calloc(w->count, sizeof *w->prompt_hash);
    enum walsh_status status = walsh_session_open(t->model, &options, &session, &err);
    if (status == WALSH_OK) status = walsh_session_set_adapters(session, w->uses, w->adapters, &err);
    if (status == WALSH_OK) status = walsh_session_prompt_logits(session, w->ids, w->count, logits, &err);
    for (uint32_t i = 0; i < w->count && status == WALSH_OK; i++)
        w->prompt_hash[i] = hash_logits(logits + i * t->vocab, t->vocab);
    walsh_session_close(&session);
    free(logits);
    return status == WALSH_OK ? NULL : trial_fail("logits of a prompt alone: %s", err.message);
}

/* What a schedule was like, so that a test knows that it tested something. */
struct seen {
    uint32_t most_rows; /* that drew a token in one step */
    uint32_t most_sets; /* different first adapters among them, none counting as one */
    uint32_t
        prefill_beside; /* steps in which some drew a token while others had more of their prompt to read */
    uint32_t waited, busy;  /* steps with a queue; refusals because it was full */
    uint32_t cancelled[3];  /* queued, prefilling, decoding */
    uint32_t finished[5];   /* by walsh_batch_finish */
    uint64_t prefix_tokens; /* taken over from a prefix store */
    uint32_t prompt_logits; /* tokens of prompts whose logits were asked for and told */
};

struct running {
    uint64_t id; /* 0: not submitted, or gone */
    uint32_t seen;
    const struct wanted *wanted;
    size_t vocab;
    uint32_t told; /* tokens of the prompt whose logits came */
    bool wrong;    /* not in order, or not those that it gives alone */
};

/* The logits behind tokens of a prompt. */
static inline void take_prompt_logits(void *user, uint32_t first, const float *logits, uint32_t count)
{
    struct running *r = user;
    r->wrong = r->wrong || first != r->told || r->seen > 0;
    for (uint32_t i = 0; i < count && !r->wrong; i++, r->told++)
        r->wrong = r->told >= r->wanted->count ||
                   hash_logits(logits + i * r->vocab, r->vocab) != r->wanted->prompt_hash[r->told];
}

struct schedule {
    const struct wanted *wanted;
    struct running *running; /* [count] */
    size_t count, submitted, done;
    uint32_t cancel_one_in; /* chance of a cancellation per step; 0: none */
    struct walsh_batch *batch;
    struct walsh_batch_event *events;
    uint32_t max_rows;
    struct seen *seen;
};

static inline const char *submit_some(struct trial *t, struct schedule *s)
{
    struct walsh_error err;
    /* now and then nobody comes for a while, now and then a crowd */
    uint32_t n = trial_between(t, 0, 9) == 0 ? trial_between(t, 0, 40) : trial_between(t, 0, 2);
    for (; n > 0 && s->submitted < s->count; n--) {
        const struct wanted *w = &s->wanted[s->submitted];
        struct walsh_batch_request request = WALSH_BATCH_REQUEST;
        request.ids = w->ids;
        request.count = w->count;
        request.max_tokens = w->max_tokens;
        request.sampling = &w->sampling;
        request.stop_ids = &w->stop;
        request.stop_count = w->stop >= 0;
        request.ignore_eos = w->ignore_eos;
        request.adapters = w->uses;
        request.adapter_count = w->adapters;
        request.user = &s->running[s->submitted];
        s->running[s->submitted].wanted = w;
        s->running[s->submitted].vocab = t->vocab;
        if (w->prompt_hash) request.prompt_logits = take_prompt_logits;
        const enum walsh_status status =
            walsh_batch_submit(s->batch, &request, &s->running[s->submitted].id, &err);
        s->seen->busy += status == WALSH_E_BUSY;
        if (status == WALSH_E_BUSY) break;
        if (status != WALSH_OK) return trial_fail("submit: %s", err.message);
        s->submitted++;
    }
    return NULL;
}

static inline const char *cancel_some(struct trial *t, struct schedule *s)
{
    struct walsh_error err;
    if (!s->cancel_one_in || trial_between(t, 1, s->cancel_one_in) != 1 || s->submitted == 0) return NULL;
    struct running *r = &s->running[trial_between(t, 0, (uint32_t)s->submitted - 1)];
    if (r->id == 0) return NULL;
    struct walsh_batch_request_info info = {.struct_size = sizeof info};
    if (!walsh_batch_get_request(s->batch, r->id, &info))
        return trial_fail("a request that runs is not known");
    s->seen->cancelled[info.state]++;
    if (walsh_batch_cancel(s->batch, r->id, &err) != WALSH_OK) return trial_fail("cancel: %s", err.message);
    if (walsh_batch_cancel(s->batch, r->id, &err) != WALSH_E_NOT_FOUND)
        return trial_fail("a request was cancelled twice");
    r->id = 0;
    s->done++;
    return NULL;
}

/* An event against what its request gives alone: token, the bits of the logits, end. */
static inline const char *check_event(struct trial *t, struct schedule *s, const struct walsh_batch_event *e)
{
    struct running *r = e->user;
    const size_t i = (size_t)(r - s->running);
    const struct wanted *w = &s->wanted[i];
    if (e->request != r->id || r->id == 0)
        return trial_fail("an event of request %" PRIu64 ", which is gone", e->request);
    if (e->finish == WALSH_FINISH_ERROR) return trial_fail("request %zu: %s", i, e->message);
    if (w->prompt_hash && (r->wrong || r->told != w->count))
        return trial_fail(
            "request %zu: of the logits of its prompt of %u tokens %u came as it gives them alone", i,
            w->count, r->told);
    if (r->seen == 0) s->seen->prompt_logits += r->told;
    const uint32_t at = r->seen++;
    if (at >= w->length || e->tokens != at + 1) return trial_fail("request %zu has a token too many", i);
    const float *logits = walsh_batch_logits(s->batch, e->request);
    if (!logits) return trial_fail("request %zu has no logits", i);
    if (hash_logits(logits, t->vocab) != w->logits_hash[at])
        return trial_fail(
            "request %zu (prompt of %u, %zu adapters): the logits of token %u differ from its run alone", i,
            w->count, w->adapters, at);
    if (e->token != w->tokens[at])
        return trial_fail("request %zu: token %u is %d, alone it is %d", i, at, e->token, w->tokens[at]);
    if (e->finish != (at + 1 == w->length ? w->finish : WALSH_FINISH_NONE))
        return trial_fail("request %zu: finish %d behind token %u of %u, alone it is %d", i, e->finish, at,
                          w->length, w->finish);
    s->seen->finished[e->finish]++;
    if (e->finish == WALSH_FINISH_NONE) return NULL;
    r->id = 0;
    s->done++;
    return NULL;
}

static inline void look(const struct schedule *s, size_t drawn)
{
    struct walsh_batch_metrics m = {.struct_size = sizeof m};
    const struct walsh_adapter *sets[TRIAL_ADAPTERS + 1];
    uint32_t n = 0;
    walsh_batch_get_metrics(s->batch, &m);
    for (size_t i = 0; i < drawn; i++) {
        const struct running *r = s->events[i].user;
        const struct walsh_adapter *first = s->wanted[r - s->running].uses[0].adapter;
        uint32_t j = 0;
        while (j < n && sets[j] != first) j++;
        if (j == n) sets[n++] = first;
    }
    if (drawn > s->seen->most_rows) s->seen->most_rows = (uint32_t)drawn;
    if (n > s->seen->most_sets) s->seen->most_sets = n;
    s->seen->prefill_beside += drawn > 0 && m.prefilling > 0;
    s->seen->waited += m.queued > 0;
}

/* All requests through one batch, until none is left. */
static inline const char *run_schedule(struct trial *t, struct schedule *s)
{
    struct walsh_error err;
    const char *bad = NULL;
    struct walsh_batch_metrics before = {.struct_size = sizeof before};
    walsh_batch_get_metrics(s->batch, &before);
    while (!bad && s->done < s->count) {
        size_t n = 0;
        bad = submit_some(t, s);
        if (!bad) bad = cancel_some(t, s);
        if (!bad && walsh_batch_step(s->batch, s->events, s->max_rows, &n, &err) != WALSH_OK)
            bad = trial_fail("step: %s", err.message);
        for (size_t i = 0; i < n && !bad; i++) bad = check_event(t, s, &s->events[i]);
        if (!bad) look(s, n);
    }
    struct walsh_batch_metrics m = {.struct_size = sizeof m};
    walsh_batch_get_metrics(s->batch, &m);
    s->seen->prefix_tokens += m.prefix_tokens - before.prefix_tokens;
    if (!bad && (m.queued || m.prefilling || m.decoding || m.kv_tokens_used || m.kv_bytes || m.failed ||
                 m.submitted - before.submitted != s->count || m.finished + m.cancelled != m.submitted))
        bad = trial_fail("an idle batch still counts %u waiting, %u + %u running, %" PRIu64
                         " tokens and %" PRIu64 " bytes of cache, %" PRIu64 " submitted, %" PRIu64
                         " finished, %" PRIu64 " cancelled",
                         m.queued, m.prefilling, m.decoding, m.kv_tokens_used, m.kv_bytes, m.submitted,
                         m.finished, m.cancelled);
    return bad;
}

/* Open a batch with these options, run the schedule, close it. */
static inline const char *try_batch(struct trial *t, const struct walsh_batch_options *options,
                                    const struct wanted *wanted, size_t count, uint32_t cancel_one_in,
                                    struct seen *seen)
{
    struct walsh_error err;
    struct schedule s = {.wanted = wanted,
                         .running = calloc(count, sizeof *s.running),
                         .count = count,
                         .cancel_one_in = cancel_one_in,
                         .events = calloc(options->max_rows, sizeof *s.events),
                         .max_rows = options->max_rows,
                         .seen = seen};
    const char *bad = NULL;
    if (walsh_batch_open(t->model, options, &s.batch, &err) != WALSH_OK)
        bad = trial_fail("open: %s", err.message);
    else
        bad = run_schedule(t, &s);
    walsh_batch_close(&s.batch);
    free(s.running);
    free(s.events);
    return bad;
}

#endif
