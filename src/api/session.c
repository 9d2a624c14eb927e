/* Sessions and sampling. */
#include <float.h>
#include <stdio.h>

#include "api/api.h"
#include "base/machine.h"
#include "runtime/sampler.h"

#define DEFAULT_CONTEXT 4096u

uint32_t walsh_default_context(const struct walsh_model *model, uint32_t context)
{
    return context ? context : (uint32_t)walsh_min(model->graph->config.max_positions, DEFAULT_CONTEXT);
}

static enum walsh_status read_options(const struct walsh_model *model,
                                      const struct walsh_session_options *options, uint32_t *capacity,
                                      struct walsh_kv_policy *policy, struct walsh_error *err)
{
    struct walsh_session_options o = WALSH_SESSION_OPTIONS;
    WALSH_TRY(walsh_options_read(&o, sizeof o, options, "walsh_session_options", err));
    *capacity = walsh_default_context(model, o.context);
    return walsh_model_kv_policy(model, &o.kv, policy, err);
}

uint64_t walsh_session_bytes(const struct walsh_model *model, const struct walsh_session_options *options)
{
    uint32_t capacity;
    struct walsh_kv_policy policy;
    if (read_options(model, options, &capacity, &policy, NULL) != WALSH_OK) return 0;
    const struct walsh_kv_shape shape = walsh_session_kv_shape(model->graph, capacity, &policy);
    return walsh_kv_bytes(&shape);
}

enum walsh_status walsh_sessions_check(const struct walsh_model *model,
                                       const struct walsh_session_options *options, size_t count,
                                       struct walsh_error *err)
{
    uint32_t capacity;
    struct walsh_kv_policy policy;
    WALSH_TRY(read_options(model, options, &capacity, &policy, err));
    const struct walsh_kv_shape shape = walsh_session_kv_shape(model->graph, capacity, &policy);
    const uint64_t each = walsh_kv_bytes(&shape);
    char what[120];
    snprintf(what, sizeof what, "the KV caches of %zu sessions with a context of %u tokens", count, capacity);
    return walsh_memory_check(what, each && count > UINT64_MAX / each ? UINT64_MAX : each * count, err);
}

enum walsh_status walsh_session_open(const struct walsh_model *model,
                                     const struct walsh_session_options *options, struct walsh_session **out,
                                     struct walsh_error *err)
{
    *out = NULL;
    uint32_t capacity;
    struct walsh_kv_policy policy;
    WALSH_TRY(read_options(model, options, &capacity, &policy, err));
    return walsh_runtime_session_open(model->runner, capacity, &policy, out, err);
}

void walsh_session_close(struct walsh_session **session)
{
    walsh_runtime_session_close(session);
}

uint32_t walsh_session_length(const struct walsh_session *session)
{
    return session->kv->length;
}

uint32_t walsh_session_context(const struct walsh_session *session)
{
    return session->kv->shape.capacity;
}

uint64_t walsh_session_cache_bytes(const struct walsh_session *session)
{
    return walsh_kv_allocated(session->kv);
}

enum walsh_status walsh_session_fork(const struct walsh_session *session, struct walsh_session **out,
                                     struct walsh_error *err)
{
    return walsh_runtime_fork(session, out, err);
}

enum walsh_status walsh_session_trim(struct walsh_session *session, uint32_t length, struct walsh_error *err)
{
    return walsh_runtime_trim(session, length, err);
}

enum walsh_status walsh_session_prompt(struct walsh_session *session, const int32_t *ids, size_t count,
                                       struct walsh_error *err)
{
    return walsh_runtime_prompt(session, ids, count, NULL, "prompt", err);
}

enum walsh_status walsh_session_prompt_logits(struct walsh_session *session, const int32_t *ids, size_t count,
                                              float *out, struct walsh_error *err)
{
    const struct walsh_prompt_outputs outputs = {.logits = out};
    return walsh_runtime_prompt(session, ids, count, &outputs, "prompt", err);
}

/* samplers NULL: there are none. */
static enum walsh_status check_handles(struct walsh_session *const *sessions,
                                       struct walsh_sampler *const *samplers, size_t count,
                                       struct walsh_error *err)
{
    for (size_t i = 0; i < count; i++) {
        if (!sessions[i])
            return walsh_fail(err, WALSH_E_ARGUMENT, "step: session %zu of %zu is NULL", i, count);
        if (samplers && !samplers[i])
            return walsh_fail(err, WALSH_E_ARGUMENT, "step: sampler %zu of %zu is NULL", i, count);
    }
    return WALSH_OK;
}

enum walsh_status walsh_step(struct walsh_session *const *sessions, const int32_t *ids, size_t count,
                             struct walsh_error *err)
{
    WALSH_TRY(check_handles(sessions, NULL, count, err));
    return walsh_runtime_step(sessions, ids, count, err);
}

const float *walsh_session_logits(const struct walsh_session *session)
{
    /* reading changes where the logits are, not what they are */
    return session->has_logits ? walsh_session_read((struct walsh_session *)(uintptr_t)session) : NULL;
}

void walsh_sampler_defaults(const struct walsh_model *model, struct walsh_sampler_options *out)
{
    const struct walsh_generation_config *g = &model->graph->generation;
    *out = (struct walsh_sampler_options)WALSH_SAMPLER_OPTIONS;
    out->temperature = g->do_sample ? g->temperature : 0;
    out->top_k = g->top_k;
    out->top_p = g->top_p > 0 ? g->top_p : DBL_MIN; /* files may say 0: the likeliest token alone */
    out->min_p = g->min_p;
    out->repeat_penalty = g->repetition_penalty;
    out->model = model;
}

enum walsh_status walsh_sampling_read(const struct walsh_sampler_options *options,
                                      const struct walsh_model_graph *expected, uint32_t vocab,
                                      struct walsh_sampling *out, struct walsh_error *err)
{
    struct walsh_sampler_options o = WALSH_SAMPLER_OPTIONS;
    WALSH_TRY(walsh_options_read(&o, sizeof o, options, "walsh_sampler_options", err));
    const struct walsh_model_graph *graph = o.model ? o.model->graph : NULL;
    if (graph && graph->config.vocab != vocab)
        return walsh_fail(err, WALSH_E_ARGUMENT, "a sampler of %u ids for a model of %u", vocab,
                          graph->config.vocab);
    if (expected && graph && graph != expected)
        return walsh_fail(err, WALSH_E_ARGUMENT, "the sampling options are of another model than the batch");
    *out = (struct walsh_sampling){
        .temperature = o.temperature,
        .top_k = o.top_k,
        .top_p = o.top_p,
        .min_p = o.min_p,
        .repeat_penalty = o.repeat_penalty,
        .repeat_last = o.repeat_last,
        .seed = o.seed,
        .excluded = graph ? graph->tokenless : NULL,
        .excluded_count = graph ? graph->tokenless_count : 0,
        .presence_penalty = o.presence_penalty,
        .frequency_penalty = o.frequency_penalty,
        .grammar = o.grammar,
        .bias_ids = o.bias_ids,
        .biases = o.biases,
        .bias_count = o.bias_count,
    };
    return WALSH_OK;
}

enum walsh_status walsh_sampler_open(const struct walsh_sampler_options *options, uint32_t vocab,
                                     struct walsh_sampler **out, struct walsh_error *err)
{
    *out = NULL;
    struct walsh_sampling sampling;
    WALSH_TRY(walsh_sampling_read(options, NULL, vocab, &sampling, err));
    return walsh_sampler_create(&sampling, vocab, out, err);
}

void walsh_sampler_close(struct walsh_sampler **sampler)
{
    walsh_sampler_destroy(sampler);
}

void walsh_sampler_accept(struct walsh_sampler *sampler, int32_t id)
{
    walsh_sampler_note(sampler, id);
}

enum walsh_status walsh_sampler_draw(struct walsh_sampler *sampler, const float *logits, int32_t *id,
                                     struct walsh_error *err)
{
    return walsh_sampler_choose(sampler, logits, id, err);
}

enum walsh_status walsh_step_draw(struct walsh_session *const *sessions,
                                  struct walsh_sampler *const *samplers, const int32_t *ids, size_t count,
                                  int32_t *next, struct walsh_error *err)
{
    WALSH_TRY(check_handles(sessions, samplers, count, err));
    return walsh_runtime_step_sample(sessions, samplers, ids, count, next, err);
}
