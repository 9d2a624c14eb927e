/* Requests of a batch: their limits, their queue, their coming and going. */
#include "runtime/batch.h"

#include <stdio.h>
#include <string.h>

#include "base/machine.h"

/* Full pages for kv_tokens, and what each row's cache holds besides its pages. */
static enum walsh_status check_memory(const struct walsh_runner *runner, const struct walsh_batch_limits *l,
                                      struct walsh_error *err)
{
    struct walsh_kv_policy pages_only = l->kv;
    pages_only.recent = 0;
    const struct walsh_kv_shape one = walsh_session_kv_shape(runner->graph, WALSH_KV_PAGE, &pages_only),
                                whole = walsh_session_kv_shape(runner->graph, l->context, &l->kv),
                                plain = walsh_session_kv_shape(runner->graph, l->context, &pages_only);
    WALSH_TRY(walsh_kv_check(&one, err));
    WALSH_TRY(walsh_kv_check(&whole, err));
    const uint64_t page = walsh_kv_bytes(&one), row = walsh_kv_bytes(&whole) - walsh_kv_bytes(&plain);
    size_t bytes;
    if (!walsh_mul(page, l->kv_tokens / WALSH_KV_PAGE, &bytes) || !walsh_add(bytes, row * l->rows, &bytes))
        bytes = SIZE_MAX;
    char what[80];
    snprintf(what, sizeof what, "the KV caches of a batch, %llu tokens together",
             (unsigned long long)l->kv_tokens);
    return walsh_memory_check(what, bytes, err);
}

static enum walsh_status check_limits(const struct walsh_runner *runner, const struct walsh_batch_limits *l,
                                      struct walsh_error *err)
{
    const uint32_t positions = runner->graph->config.max_positions;
    if (l->rows < 1 || l->rows > WALSH_CHUNK_ROWS)
        return walsh_fail(err, WALSH_E_ARGUMENT, "a batch of %u rows, expected 1 to %d", l->rows,
                          WALSH_CHUNK_ROWS);
    if (l->prefill_tokens < 1 || l->prefill_tokens > WALSH_CHUNK_ROWS)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%u prompt tokens in a step, expected 1 to %d",
                          l->prefill_tokens, WALSH_CHUNK_ROWS);
    if (l->prefill_beside > l->prefill_tokens)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%u prompt tokens beside decode, expected at most %u",
                          l->prefill_beside, l->prefill_tokens);
    if (l->context < 1 || l->context > positions)
        return walsh_fail(err, WALSH_E_ARGUMENT, "context of %u tokens: the model has positions for 1 to %u",
                          l->context, positions);
    if (l->queued < 1) return walsh_fail(err, WALSH_E_ARGUMENT, "a batch needs a queue of 1 request or more");
    if (l->kv_tokens < WALSH_KV_PAGE)
        return walsh_fail(err, WALSH_E_ARGUMENT, "caches of %llu tokens, expected %d (a page) or more",
                          (unsigned long long)l->kv_tokens, WALSH_KV_PAGE);
    return check_memory(runner, l, err);
}

static enum walsh_status allocate(struct walsh_batch *b, struct walsh_error *err)
{
    const uint32_t rows = b->limits.rows;
    WALSH_TRY(walsh_alloc_zero(rows, sizeof *b->slots, "the rows of a batch", &b->slots, err));
    WALSH_TRY(walsh_alloc(rows, sizeof *b->sessions, "the rows of a batch", &b->sessions, err));
    WALSH_TRY(walsh_alloc(rows, sizeof *b->pieces, "the rows of a batch", &b->pieces, err));
    WALSH_TRY(walsh_alloc(rows, sizeof *b->ids, "the rows of a batch", &b->ids, err));
    WALSH_TRY(walsh_alloc(rows, sizeof *b->drawn, "the rows of a batch", &b->drawn, err));
    if (walsh_runtime_draws(b->runner))
        WALSH_TRY(walsh_alloc(rows, sizeof *b->plans, "the rows of a batch", &b->plans, err));
    WALSH_TRY(walsh_alloc(rows, sizeof *b->rows, "the rows of a batch", &b->rows, err));
    return walsh_alloc(rows, sizeof *b->events, "the rows of a batch", &b->events, err);
}

/* Whether the store can be used is known now, and the model's files are read now: not when the first request
 * comes. */
static enum walsh_status try_store(struct walsh_runner *runner, const struct walsh_batch_limits *l,
                                   struct walsh_error *err)
{
    struct walsh_session *session;
    if (!l->store) return WALSH_OK;
    WALSH_TRY(walsh_runtime_session_open(runner, 1, &l->kv, &session, err));
    const enum walsh_status status = walsh_runtime_set_store(session, l->store, NULL, 0, err);
    walsh_runtime_session_close(&session);
    return status;
}

enum walsh_status walsh_runtime_batch_open(struct walsh_runner *runner,
                                           const struct walsh_batch_limits *limits, struct walsh_batch **out,
                                           struct walsh_error *err)
{
    *out = NULL;
    WALSH_TRY(check_limits(runner, limits, err));
    WALSH_TRY(try_store(runner, limits, err));
    struct walsh_batch *batch;
    WALSH_TRY(walsh_alloc_zero(1, sizeof *batch, "a batch", &batch, err));
    batch->runner = runner;
    batch->limits = *limits;
    if (!limits->prefill_beside) batch->limits.prefill_beside = limits->prefill_tokens;
    const enum walsh_status status = allocate(batch, err);
    if (status != WALSH_OK) walsh_runtime_batch_close(&batch);
    *out = batch;
    return status;
}

/* What a request needs only while it waits or runs. */
static void release(struct walsh_batch_entry *entry)
{
    walsh_runtime_session_close(&entry->session);
    walsh_sampler_destroy(&entry->sampler);
    walsh_adapter_set_close(&entry->set);
    walsh_free(entry->ids);
    walsh_free(entry->salt);
    walsh_grammar_release(entry->grammar);
    entry->grammar = NULL;
    walsh_free(entry->bias_ids);
    walsh_free(entry->biases);
    entry->bias_ids = NULL;
    entry->biases = NULL;
    entry->ids = NULL;
    entry->salt = NULL;
}

static void free_entry(struct walsh_batch_entry *entry)
{
    release(entry);
    walsh_free(entry->logits);
    walsh_free(entry);
}

void walsh_runtime_batch_close(struct walsh_batch **batch)
{
    if (!batch || !*batch) return;
    struct walsh_batch *b = *batch;
    for (uint32_t i = 0; b->slots && i < b->limits.rows; i++)
        if (b->slots[i]) free_entry(b->slots[i]);
    for (struct walsh_batch_entry *e = b->first, *next; e; e = next) {
        next = e->next;
        free_entry(e);
    }
    walsh_free((void *)b->slots);
    walsh_free((void *)b->sessions);
    walsh_free(b->pieces);
    walsh_free(b->ids);
    walsh_free(b->drawn);
    walsh_free(b->plans);
    walsh_free((void *)b->rows);
    walsh_free((void *)b->events);
    walsh_free(b);
    *batch = NULL;
}

/* The tokens of a job and its share of the caches, where it can ever run. */
static enum walsh_status measure(const struct walsh_batch *b, const struct walsh_batch_job *job,
                                 uint32_t *tokens, uint64_t *share, struct walsh_error *err)
{
    const struct walsh_batch_limits *l = &b->limits;
    if (job->count == 0) return walsh_fail(err, WALSH_E_ARGUMENT, "a prompt has at least one token");
    if (job->count >= l->context)
        return walsh_fail(err, WALSH_E_CAPACITY, "prompt of %zu tokens: the context holds %u with the answer",
                          job->count, l->context);
    const uint32_t left = l->context - (uint32_t)job->count;
    if (job->tokens > left)
        return walsh_fail(err, WALSH_E_CAPACITY,
                          "prompt of %zu tokens and an answer of up to %u: the context holds %u", job->count,
                          job->tokens, l->context);
    *tokens = job->tokens ? job->tokens : left;
    *share = walsh_round_up(job->count + *tokens, WALSH_KV_PAGE);
    if (*share > l->kv_tokens)
        return walsh_fail(
            err, WALSH_E_CAPACITY,
            "prompt of %zu tokens and an answer of up to %u take a cache of %llu tokens: the batch has "
            "%llu for all",
            job->count, *tokens, (unsigned long long)*share, (unsigned long long)l->kv_tokens);
    return WALSH_OK;
}

static enum walsh_status fill_entry(const struct walsh_batch *b, const struct walsh_batch_job *job,
                                    struct walsh_batch_entry *e, struct walsh_error *err)
{
    WALSH_TRY(measure(b, job, &e->tokens, &e->kv_tokens, err));
    WALSH_TRY(walsh_runner_check_ids(b->runner, job->ids, job->count, err));
    WALSH_TRY(walsh_sampling_check(&job->sampling, b->runner->graph->config.vocab, err));
    WALSH_TRY(walsh_runtime_open_set(b->runner, job->adapters, job->adapter_count, &e->set, err));
    size_t ids;
    if (!walsh_add(job->count, job->stop_count, &ids))
        return walsh_fail(err, WALSH_E_ARGUMENT, "%zu stop ids are too many", job->stop_count);
    WALSH_TRY(walsh_alloc(ids, sizeof *e->ids, "the prompt of a request", &e->ids, err));
    memcpy(e->ids, job->ids, job->count * sizeof *e->ids);
    if (job->stop_count) memcpy(e->ids + job->count, job->stops, job->stop_count * sizeof *e->ids);
    WALSH_TRY(walsh_alloc(job->salt_size, 1, "a salt", &e->salt, err));
    if (job->salt_size) memcpy(e->salt, job->salt, job->salt_size);
    e->salt_size = job->salt_size;
    e->count = (uint32_t)job->count;
    e->stop_count = job->stop_count;
    e->ignore_eos = job->ignore_eos;
    e->user = job->user;
    e->prompt_logits = job->prompt_logits;
    e->sampling = job->sampling;
    /* More than there will ever be is the same as all. */
    e->sampling.repeat_last = (uint32_t)walsh_min(e->sampling.repeat_last, (size_t)e->count + e->tokens);
    if (e->sampling.grammar) walsh_grammar_retain(e->sampling.grammar);
    e->grammar = e->sampling.grammar;
    return walsh_sampling_copy_bias(&e->sampling, &e->bias_ids, &e->biases, err);
}

enum walsh_status walsh_runtime_batch_submit(struct walsh_batch *b, const struct walsh_batch_job *job,
                                             uint64_t *id, struct walsh_error *err)
{
    if (b->queued == b->limits.queued)
        return walsh_fail(err, WALSH_E_BUSY, "%u requests wait, which is all that the batch queues",
                          b->queued);
    struct walsh_batch_entry *entry;
    WALSH_TRY(walsh_alloc_zero(1, sizeof *entry, "a request", &entry, err));
    const enum walsh_status status = fill_entry(b, job, entry, err);
    if (status != WALSH_OK) {
        free_entry(entry);
        return status;
    }
    *id = entry->id = ++b->last_id;
    if (b->last)
        b->last->next = entry;
    else
        b->first = entry;
    b->last = entry;
    b->queued++;
    b->totals.submitted++;
    walsh_batch_admit(b);
    return WALSH_OK;
}

static struct walsh_batch_entry *take_first(struct walsh_batch *b)
{
    struct walsh_batch_entry *entry = b->first;
    b->first = entry->next;
    if (!b->first) b->last = NULL;
    entry->next = NULL;
    b->queued--;
    return entry;
}

static enum walsh_status start(struct walsh_batch *b, struct walsh_batch_entry *e, struct walsh_error *err)
{
    e->sampling.kernels = b->runner->queue->kernels;
    WALSH_TRY(walsh_sampler_create(&e->sampling, b->runner->graph->config.vocab, &e->sampler, err));
    for (uint32_t i = 0; i < e->count; i++) walsh_sampler_note(e->sampler, e->ids[i]);
    WALSH_TRY(walsh_runtime_session_open(b->runner, e->count + e->tokens, &b->limits.kv, &e->session, err));
    e->session->adapters = e->set;
    e->set = NULL;
    if (b->limits.store && !e->prompt_logits)
        WALSH_TRY(walsh_runtime_set_store(e->session, b->limits.store, e->salt, e->salt_size, err));
    e->state = WALSH_BATCH_PREFILL;
    return WALSH_OK;
}

/* Strictly in the order of arrival: one that must wait for room is not overtaken, so that a large one is
 * never starved by small ones. */
void walsh_batch_admit(struct walsh_batch *b)
{
    for (uint32_t slot = 0; b->first && slot < b->limits.rows; slot++) {
        if (b->slots[slot]) continue;
        if (b->first->kv_tokens > b->limits.kv_tokens - b->kv_tokens) return;
        struct walsh_batch_entry *entry = b->slots[slot] = take_first(b);
        b->kv_tokens += entry->kv_tokens;
        if (start(b, entry, &entry->error) != WALSH_OK) walsh_batch_end(b, entry, WALSH_BATCH_FAILED);
    }
}

void walsh_batch_end(struct walsh_batch *b, struct walsh_batch_entry *entry, enum walsh_entry_end end)
{
    entry->end = end;
    entry->state = WALSH_BATCH_ENDED;
    if (entry->session) { /* the caller may still ask for the logits of the last token */
        entry->logits = walsh_session_read(entry->session);
        entry->session->logits = NULL;
    }
    release(entry);
    b->kv_tokens -= entry->kv_tokens;
    if (end == WALSH_BATCH_FAILED)
        b->totals.failed++;
    else
        b->totals.finished++;
}

/* The link that points to the waiting request of this id; its target is NULL where there is none. */
static struct walsh_batch_entry **find_waiting(struct walsh_batch *b, uint64_t id,
                                               struct walsh_batch_entry **before)
{
    struct walsh_batch_entry **link = &b->first;
    *before = NULL;
    while (*link && (*link)->id != id) {
        *before = *link;
        link = &(*link)->next;
    }
    return link;
}

enum walsh_status walsh_runtime_batch_cancel(struct walsh_batch *b, uint64_t id, struct walsh_error *err)
{
    for (uint32_t i = 0; i < b->limits.rows; i++) {
        struct walsh_batch_entry *entry = b->slots[i];
        if (!entry || entry->id != id || entry->reported) continue;
        if (entry->state != WALSH_BATCH_ENDED) b->kv_tokens -= entry->kv_tokens;
        free_entry(entry);
        b->slots[i] = NULL;
        b->totals.cancelled++;
        walsh_batch_admit(b);
        return WALSH_OK;
    }
    struct walsh_batch_entry *before, **link = find_waiting(b, id, &before), *entry = *link;
    if (!entry)
        return walsh_fail(err, WALSH_E_NOT_FOUND, "no request %llu waits or runs", (unsigned long long)id);
    *link = entry->next;
    if (b->last == entry) b->last = before;
    b->queued--;
    free_entry(entry);
    b->totals.cancelled++;
    walsh_batch_admit(b); /* it may have been the one that the others waited behind */
    return WALSH_OK;
}

const struct walsh_batch_entry *walsh_runtime_batch_find(const struct walsh_batch *b, uint64_t id)
{
    for (uint32_t i = 0; i < b->limits.rows; i++)
        if (b->slots[i] && b->slots[i]->id == id) return b->slots[i];
    const struct walsh_batch_entry *entry = b->first;
    while (entry && entry->id != id) entry = entry->next;
    return entry;
}

const float *walsh_batch_entry_logits(const struct walsh_batch_entry *entry)
{
    if (!entry->drawn) return NULL;
    return entry->session ? walsh_session_read(entry->session) : entry->logits;
}
