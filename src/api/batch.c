/* The batch scheduler. */
#include "api/api.h"
#include "runtime/batch.h"

#define DEFAULT_ROWS 32u
#define DEFAULT_QUEUED 1024u
#define DEFAULT_PREFILL_BESIDE 128u /* a little more than a step of 32 rows takes (performance.md) */

enum walsh_status walsh_batch_open(const struct walsh_model *model, const struct walsh_batch_options *options,
                                   struct walsh_batch **out, struct walsh_error *err)
{
    *out = NULL;
    struct walsh_batch_options o = WALSH_BATCH_OPTIONS;
    WALSH_TRY(walsh_options_read(&o, sizeof o, options, "walsh_batch_options", err));
    struct walsh_batch_limits limits = {
        .rows = o.max_rows ? o.max_rows : DEFAULT_ROWS,
        .prefill_tokens = o.prefill_tokens ? o.prefill_tokens : WALSH_CHUNK_ROWS,
        .prefill_beside = o.prefill_tokens || model->runner->queue->memory ? 0 : DEFAULT_PREFILL_BESIDE,
        .context = walsh_default_context(model, o.context),
        .kv_tokens = o.kv_tokens,
        .queued = o.max_queued ? o.max_queued : DEFAULT_QUEUED,
        .store = o.prefix_store,
    };
    WALSH_TRY(walsh_model_kv_policy(model, &o.kv, &limits.kv, err));
    if (!limits.kv_tokens)
        limits.kv_tokens = limits.rows * (uint64_t)walsh_round_up(limits.context, WALSH_KV_PAGE);
    return walsh_runtime_batch_open(model->runner, &limits, out, err);
}

void walsh_batch_close(struct walsh_batch **batch)
{
    walsh_runtime_batch_close(batch);
}

enum walsh_status walsh_batch_submit(struct walsh_batch *batch, const struct walsh_batch_request *request,
                                     uint64_t *id, struct walsh_error *err)
{
    struct walsh_batch_request r = WALSH_BATCH_REQUEST;
    WALSH_TRY(walsh_options_read(&r, sizeof r, request, "walsh_batch_request", err));
    const struct walsh_model_graph *graph = batch->runner->graph;
    struct walsh_adapter_choice choices[WALSH_MAX_ADAPTERS];
    WALSH_TRY(walsh_adapter_choices(r.adapters, r.adapter_count, choices, err));
    struct walsh_batch_job job = {
        .ids = r.ids,
        .count = r.count,
        .tokens = r.max_tokens,
        .stops = r.stop_ids,
        .stop_count = r.stop_count,
        .ignore_eos = r.ignore_eos,
        .adapters = choices,
        .adapter_count = r.adapter_count,
        .salt = r.salt,
        .salt_size = r.salt_size,
        .user = r.user,
        .prompt_logits = r.prompt_logits,
    };
    WALSH_TRY(walsh_sampling_read(r.sampling, graph, graph->config.vocab, &job.sampling, err));
    if (!r.sampling) {
        job.sampling.excluded = graph->tokenless;
        job.sampling.excluded_count = graph->tokenless_count;
    }
    return walsh_runtime_batch_submit(batch, &job, id, err);
}

enum walsh_status walsh_batch_cancel(struct walsh_batch *batch, uint64_t id, struct walsh_error *err)
{
    return walsh_runtime_batch_cancel(batch, id, err);
}

static enum walsh_batch_finish public_finish(enum walsh_entry_end end)
{
    switch (end) {
    case WALSH_BATCH_EOS:
        return WALSH_FINISH_EOS;
    case WALSH_BATCH_STOP:
        return WALSH_FINISH_STOP;
    case WALSH_BATCH_LENGTH:
        return WALSH_FINISH_LENGTH;
    case WALSH_BATCH_FAILED:
        return WALSH_FINISH_ERROR;
    case WALSH_BATCH_RUNS:
        break;
    }
    return WALSH_FINISH_NONE;
}

enum walsh_status walsh_batch_step(struct walsh_batch *batch, struct walsh_batch_event *events,
                                   size_t capacity, size_t *count, struct walsh_error *err)
{
    *count = 0;
    if (capacity < batch->limits.rows)
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "room for %zu events, expected as many as the batch has rows: %u", capacity,
                          batch->limits.rows);
    WALSH_TRY(walsh_runtime_batch_step(batch, count, err));
    for (size_t i = 0; i < *count; i++) {
        const struct walsh_batch_entry *entry = batch->events[i];
        const bool failed = entry->end == WALSH_BATCH_FAILED;
        events[i] = (struct walsh_batch_event){
            .request = entry->id,
            .user = entry->user,
            .token = failed ? -1 : entry->token,
            .tokens = entry->generated,
            .finish = public_finish(entry->end),
            .status = failed ? entry->error.status : WALSH_OK,
            .message = failed ? entry->error.message : NULL,
        };
    }
    return WALSH_OK;
}

const float *walsh_batch_logits(const struct walsh_batch *batch, uint64_t id)
{
    const struct walsh_batch_entry *entry = walsh_runtime_batch_find(batch, id);
    return entry ? walsh_batch_entry_logits(entry) : NULL;
}

static enum walsh_batch_state public_state(enum walsh_entry_state state)
{
    switch (state) {
    case WALSH_BATCH_QUEUED:
        return WALSH_REQUEST_QUEUED;
    case WALSH_BATCH_PREFILL:
        return WALSH_REQUEST_PREFILLING;
    case WALSH_BATCH_READY:
    case WALSH_BATCH_DECODE:
        return WALSH_REQUEST_DECODING;
    case WALSH_BATCH_ENDED:
        break;
    }
    return WALSH_REQUEST_ENDED;
}

bool walsh_batch_get_request(const struct walsh_batch *batch, uint64_t id,
                             struct walsh_batch_request_info *info)
{
    const struct walsh_batch_entry *entry = walsh_runtime_batch_find(batch, id);
    if (!entry) return false;
    struct walsh_batch_request_info result = {
        .struct_size = sizeof result,
        .state = public_state(entry->state),
        .prompt_tokens = entry->count,
        .tokens = entry->generated,
        .max_tokens = entry->tokens,
        .kv_tokens = entry->kv_tokens,
        .prefix_tokens = entry->prefix_tokens,
    };
    if (entry->generated > 0)
        result.prompt_read = entry->count;
    else if (entry->session)
        result.prompt_read = entry->session->kv->length;
    for (const struct walsh_batch_entry *e = batch->first; entry->state == WALSH_BATCH_QUEUED && e != entry;
         e = e->next)
        result.queue_position++;
    walsh_result_write(info, &result, sizeof result);
    return true;
}

void walsh_batch_get_metrics(const struct walsh_batch *batch, struct walsh_batch_metrics *metrics)
{
    const struct walsh_batch_totals *t = &batch->totals;
    struct walsh_batch_metrics result = {
        .struct_size = sizeof result,
        .queued = batch->queued,
        .max_rows = batch->limits.rows,
        .max_queued = batch->limits.queued,
        .kv_tokens_used = batch->kv_tokens,
        .kv_tokens = batch->limits.kv_tokens,
        .submitted = t->submitted,
        .finished = t->finished,
        .failed = t->failed,
        .cancelled = t->cancelled,
        .prompt_tokens = t->prompt_tokens,
        .generated_tokens = t->generated_tokens,
        .prefix_tokens = t->prefix_tokens,
        .steps = t->steps,
        .kv_pages_used = batch->kv_tokens / WALSH_KV_PAGE,
        .kv_pages = batch->limits.kv_tokens / WALSH_KV_PAGE,
        .prefix_hits = t->prefix_hits,
    };
    for (uint32_t i = 0; i < batch->limits.rows; i++) {
        const struct walsh_batch_entry *entry = batch->slots[i];
        if (!entry || !entry->session) continue;
        result.prefilling += entry->state == WALSH_BATCH_PREFILL;
        result.decoding += entry->state != WALSH_BATCH_PREFILL;
        result.kv_bytes += walsh_kv_allocated(entry->session->kv);
    }
    walsh_result_write(metrics, &result, sizeof result);
}
