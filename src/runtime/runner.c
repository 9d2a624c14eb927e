#include "runtime/runner.h"

#include <string.h>

#include "kernels/device.h"
#include "model/workspace.h"

#define LOGIT_ELEMENTS ((size_t)1 << 22) /* 16 MiB of logits at once */

/* Ids, positions, rows of the rope tables and views of a call stand in one block, so that one copy brings them up. */
#define CALL_BYTES                                                                                           \
    (WALSH_CHUNK_ROWS * (sizeof(int32_t) + 2 * sizeof(uint32_t) + sizeof(const struct walsh_kv_view *)))

static enum walsh_status allocate_device(struct walsh_runner *r, struct walsh_error *err)
{
    const struct walsh_config *c = &r->graph->config;
    const struct walsh_queue *q = r->queue;
    struct walsh_runner_device *d = &r->device;
    const size_t rows = WALSH_CHUNK_ROWS, logits = r->logit_rows * c->vocab * sizeof *d->logits;
    if (!q->memory) return WALSH_OK;
    WALSH_TRY(walsh_alloc_zero(CALL_BYTES, 1, "the rows of a chunk", &d->staging, err));
    WALSH_TRY(walsh_alloc_zero(r->logit_rows, sizeof(void *), "the rows of a step", &d->owners, err));
    WALSH_TRY(walsh_queue_alloc(q, CALL_BYTES, "the rows of a chunk", &d->call, err));
    d->kv = d->call;
    d->ids = (int32_t *)(void *)(d->kv + rows);
    d->positions = (uint32_t *)(void *)(d->ids + rows);
    d->rope_rows = d->positions + rows;
    WALSH_TRY(walsh_queue_alloc(q, rows * c->hidden * sizeof *d->x, "the rows of a chunk", &d->x, err));
    WALSH_TRY(walsh_queue_alloc(q, logits, "logits", &d->logits, err));
    WALSH_TRY(walsh_queue_alloc(q, logits, "logits", &d->step_logits, err));
    WALSH_TRY(walsh_queue_alloc(q, r->logit_rows * sizeof *d->drawn, "logits", &d->drawn, err));
    const struct walsh_kv_shape shape = {.policy = {.type = WALSH_KV_F16},
                                         .layers = c->layers,
                                         .kv_heads = c->kv_heads,
                                         .head_dim = c->head_dim,
                                         .capacity = WALSH_KV_PAGE,
                                         .conv = r->graph->conv,
                                         .conv_width = c->hidden,
                                         .queue = q};
    WALSH_TRY(walsh_kv_open(&shape, &d->filler, err));
    return walsh_kv_reserve(d->filler, 1, err);
}

static enum walsh_status allocate(struct walsh_runner *r, struct walsh_error *err)
{
    const struct walsh_config *c = &r->graph->config;
    const size_t most = walsh_min(walsh_max(LOGIT_ELEMENTS / c->vocab, 1), WALSH_CHUNK_ROWS);
    for (r->logit_rows = 1; r->logit_rows * 2 <= most;) r->logit_rows *= 2;
    WALSH_TRY(walsh_workspace_open(r->graph, r->queue, WALSH_CHUNK_ROWS, &r->workspace, err));
    WALSH_TRY(
        walsh_alloc((size_t)WALSH_CHUNK_ROWS * c->hidden, sizeof(float), "the rows of a chunk", &r->x, err));
    WALSH_TRY(walsh_alloc(WALSH_CHUNK_ROWS, sizeof *r->kv, "the rows of a chunk", &r->kv, err));
    WALSH_TRY(walsh_alloc(WALSH_CHUNK_ROWS, sizeof *r->op_kv, "the rows of a chunk", &r->op_kv, err));
    WALSH_TRY(walsh_alloc(WALSH_CHUNK_ROWS, sizeof *r->positions, "the rows of a chunk", &r->positions, err));
    WALSH_TRY(walsh_alloc(WALSH_CHUNK_ROWS, sizeof *r->rope_rows, "the rows of a chunk", &r->rope_rows, err));
    WALSH_TRY(walsh_alloc(WALSH_CHUNK_ROWS, sizeof *r->ids, "the rows of a chunk", &r->ids, err));
    WALSH_TRY(walsh_alloc(WALSH_CHUNK_ROWS, sizeof *r->order, "the rows of a chunk", &r->order, err));
    WALSH_TRY(walsh_alloc(WALSH_CHUNK_ROWS, sizeof *r->plans, "the rows of a chunk", &r->plans, err));
    WALSH_TRY(walsh_alloc(WALSH_CHUNK_ROWS, sizeof *r->sets, "the rows of a chunk", &r->sets, err));
    WALSH_TRY(
        walsh_alloc(WALSH_CHUNK_ROWS, sizeof *r->logit_sets, "the rows of a chunk", &r->logit_sets, err));
    WALSH_TRY(walsh_alloc(r->logit_rows * c->vocab, sizeof(float), "logits", &r->logits, err));
    return allocate_device(r, err);
}

enum walsh_status walsh_runner_open(const struct walsh_model_graph *graph, const struct walsh_queue *queue,
                                    const struct walsh_hooks *hooks, struct walsh_runner **out,
                                    struct walsh_error *err)
{
    *out = NULL;
    struct walsh_runner *runner;
    WALSH_TRY(walsh_alloc_zero(1, sizeof *runner, "the runner", &runner, err));
    runner->graph = graph;
    runner->queue = queue;
    runner->hooks = hooks;
    enum walsh_status status = allocate(runner, err);
    if (status != WALSH_OK) {
        walsh_runner_close(&runner);
        return status;
    }
    *out = runner;
    return WALSH_OK;
}

void walsh_runner_close(struct walsh_runner **runner)
{
    if (!runner || !*runner) return;
    walsh_workspace_close(&(*runner)->workspace);
    walsh_free((*runner)->x);
    walsh_free((void *)(*runner)->kv);
    walsh_free((void *)(*runner)->op_kv);
    struct walsh_runner_device *d = &(*runner)->device;
    if ((*runner)->queue->memory) {
        void *const blocks[] = {d->call, d->x, d->logits, d->step_logits, d->drawn, d->draws};
        for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
            walsh_queue_free((*runner)->queue, blocks[i]);
        walsh_recordings_close(&d->recordings, (*runner)->queue);
        walsh_kv_close(&d->filler);
        walsh_free(d->staging);
        walsh_free(d->draw_staging);
        walsh_free((void *)d->owners);
    }
    walsh_free((*runner)->positions);
    walsh_free((*runner)->rope_rows);
    walsh_free((*runner)->ids);
    walsh_free((*runner)->order);
    walsh_free((*runner)->plans);
    walsh_free((*runner)->sets);
    walsh_free((*runner)->logit_sets);
    walsh_free((*runner)->logits);
    walsh_free(*runner);
    *runner = NULL;
}

/* One set of a longrope's factors for all rows, or not. */
static void set_rope(const struct walsh_runner *r, struct walsh_rows *rows)
{
    rows->rope_offset = rows->count > 0 ? r->rope_rows[0] - r->positions[0] : 0;
    for (size_t i = 0; i < rows->count; i++)
        rows->rope_mixed |= r->rope_rows[i] - r->positions[i] != rows->rope_offset;
}

static void run_layers(struct walsh_runner *r, const int32_t *ids, const struct walsh_rows *rows, float *x)
{
    walsh_embed(r->graph, r->queue, ids, rows->count, x);
    walsh_layers_forward(r->graph, r->queue, x, rows, r->workspace);
}

/* The arrays of a call go up, with what rows read on the device in their place. */
static enum walsh_status send_rows(struct walsh_runner *r, const int32_t *ids, struct walsh_rows *rows,
                                   struct walsh_error *err)
{
    const struct walsh_runner_device *d = &r->device;
    const size_t n = rows->count;
    const struct walsh_kv_view **kv = d->staging;
    int32_t *staged_ids = (int32_t *)(void *)(kv + WALSH_CHUNK_ROWS);
    memcpy((void *)kv, (const void *)r->op_kv, n * sizeof *kv);
    memcpy(staged_ids, ids, n * sizeof *ids);
    memcpy(staged_ids + WALSH_CHUNK_ROWS, r->positions, n * sizeof *r->positions);
    memcpy(staged_ids + 2 * WALSH_CHUNK_ROWS, r->rope_rows, n * sizeof *r->rope_rows);
    rows->positions = d->positions;
    rows->rope_rows = d->rope_rows;
    rows->op_kv = d->kv;
    return walsh_queue_upload(r->queue, d->call, d->staging, CALL_BYTES, err);
}

/* The same with the arrays of the call on the device: they go up, the states come back. */
static enum walsh_status run_on_device(struct walsh_runner *r, const int32_t *ids, struct walsh_rows *rows,
                                       float *x, struct walsh_error *err)
{
    const struct walsh_runner_device *d = &r->device;
    WALSH_TRY(send_rows(r, ids, rows, err));
    run_layers(r, d->ids, rows, d->x);
    WALSH_TRY(walsh_workspace_check(r->workspace, err));
    return walsh_queue_download(r->queue, x, d->x, rows->count * r->graph->config.hidden * sizeof *x, err);
}

/* All of a decode step behind send_rows. */
static void enqueue_step(struct walsh_runner *r, const struct walsh_rows *rows)
{
    const struct walsh_runner_device *d = &r->device;
    run_layers(r, d->ids, rows, d->x);
    walsh_logits(r->graph, r->queue, d->x, rows->count, WALSH_DECODE, &rows->sets, r->workspace,
                 d->step_logits);
}

static enum walsh_status record_step(struct walsh_runner *r, const struct walsh_rows *rows, void **run,
                                     struct walsh_error *err)
{
    const struct walsh_memory *m = r->queue->memory;
    WALSH_TRY(m->record(r->queue, err));
    enqueue_step(r, rows);
    WALSH_TRY(m->recorded(r->queue, run, err));
    enum walsh_status status = walsh_workspace_check(r->workspace, err);
    if (status == WALSH_OK) status = walsh_recordings_put(&r->device.recordings, r->queue, *run, err);
    if (status != WALSH_OK) m->forget(r->queue, *run);
    return status;
}

/* All that the launches of a step of these rows hold: their rows of the rope tables, how many they are, where A x goes, which kinds
 * of caches they have, and the updates of each linear. */
static enum walsh_status make_key(struct walsh_runner *r, const struct walsh_rows *rows,
                                  struct walsh_error *err)
{
    struct walsh_recordings *to = &r->device.recordings;
    const void *h = r->workspace->h;
    const uint32_t rope[] = {rows->rope_offset, rows->rope_mixed};
    walsh_recordings_begin(to);
    WALSH_TRY(walsh_recordings_add(to, rope, sizeof rope, err));
    WALSH_TRY(walsh_recordings_add(to, &rows->count, sizeof rows->count, err));
    WALSH_TRY(walsh_recordings_add(to, &h, sizeof h, err));
    for (uint32_t layer = 0; layer < r->graph->config.layers; layer++) {
        const struct walsh_kv_kinds k = walsh_rows_kinds(rows, layer);
        const uint32_t kinds[] = {k.packed, k.mixed, k.four, k.recent, k.tiles, k.most_tokens};
        WALSH_TRY(walsh_recordings_add(to, kinds, sizeof kinds, err));
    }
    for (size_t i = 0; i < rows->sets.count; i++) {
        const struct walsh_row_set *s = &rows->sets.list[i];
        const size_t place[2] = {s->begin, s->end};
        WALSH_TRY(walsh_recordings_add(to, place, sizeof place, err));
        WALSH_TRY(
            walsh_recordings_add(to, s->set->first, (s->set->linears + 1) * sizeof *s->set->first, err));
        for (uint32_t t = 0; t < s->set->first[s->set->linears]; t++) {
            const struct walsh_adapter_linear *u = s->set->terms[t].update;
            const uint32_t kind[3] = {u->rank, (uint32_t)u->storage, u->shared_a};
            WALSH_TRY(walsh_recordings_add(to, &u->a, sizeof u->a, err));
            WALSH_TRY(walsh_recordings_add(to, &u->b, sizeof u->b, err));
            WALSH_TRY(walsh_recordings_add(to, kind, sizeof kind, err));
            WALSH_TRY(walsh_recordings_add(to, &s->set->terms[t].scale, sizeof s->set->terms[t].scale, err));
        }
    }
    return WALSH_OK;
}

/* *run: the recording of a step of these rows; NULL: it has none, because its adapters stand like this for the first time. */
static enum walsh_status find_recording(struct walsh_runner *r, const struct walsh_rows *rows, void **run,
                                        struct walsh_error *err)
{
    bool again = rows->sets.count == 0;
    WALSH_TRY(make_key(r, rows, err));
    *run = walsh_recordings_find(&r->device.recordings);
    if (*run) return WALSH_OK;
    if (!again) WALSH_TRY(walsh_recordings_again(&r->device.recordings, &again, err));
    return again ? record_step(r, rows, run, err) : WALSH_OK;
}

/* Bits do not depend on the rows beside a row, so that a step may be one of more rows. */
static size_t fill_bucket(struct walsh_runner *r, size_t count)
{
    size_t rows = 1;
    while (rows < count) rows *= 2;
    for (size_t i = count; i < rows; i++) {
        r->ids[i] = 0;
        r->positions[i] = 0;
        r->rope_rows[i] = r->rope_rows[0] - r->positions[0];
        r->kv[i] = r->device.filler->views;
        r->op_kv[i] = r->device.filler->op_views;
    }
    return rows;
}

/* Behind what the step enqueued: the one time that the host waits. */
static enum walsh_status end_step(struct walsh_runner *r, const struct walsh_draws *sent,
                                  const struct walsh_runner_draws *draws, struct walsh_error *err)
{
    if (draws) return walsh_runner_take_draws(r, sent, draws->ids, err);
    return r->queue->memory->synchronize(r->queue, err);
}

static enum walsh_status step_on_device(struct walsh_runner *r, struct walsh_rows *rows,
                                        const struct walsh_runner_draws *draws, struct walsh_error *err)
{
    struct walsh_draws sent;
    if (draws) WALSH_TRY(walsh_runner_send_draws(r, draws->plans, rows->count, &sent, err));
    void *run = NULL;
    const bool replays = walsh_layers_enqueue(r->graph, r->queue, WALSH_DECODE, &rows->sets);
    for (size_t i = 0; i < rows->count; i++)
        if (r->positions[i] >= rows->most_tokens) rows->most_tokens = r->positions[i] + 1;
    if (replays) rows->count = fill_bucket(r, rows->count);
    set_rope(r, rows);
    WALSH_TRY(send_rows(r, r->ids, rows, err));
    if (replays) WALSH_TRY(find_recording(r, rows, &run, err));
    if (run) {
        WALSH_TRY(r->queue->memory->replay(r->queue, run, err));
    } else {
        enqueue_step(r, rows);
        WALSH_TRY(walsh_workspace_check(r->workspace, err));
    }
    return end_step(r, &sent, draws, err);
}

/* The first failure stays. */
static void note(struct walsh_runner *r, const struct walsh_error *failure)
{
    if (r->failure.status == WALSH_OK) r->failure = *failure;
}

void walsh_runner_forward(struct walsh_runner *runner, const int32_t *ids, size_t count, enum walsh_role role,
                          const struct walsh_row_sets *sets, float *x)
{
    struct walsh_rows rows = {.role = role,
                              .count = count,
                              .kv = runner->kv,
                              .positions = runner->positions,
                              .rope_rows = runner->rope_rows,
                              .sets = *sets};
    struct walsh_error err;
    set_rope(runner, &rows);
    if (!runner->queue->memory)
        run_layers(runner, ids, &rows, x);
    else if (run_on_device(runner, ids, &rows, x, &err) != WALSH_OK)
        note(runner, &err);
}

void walsh_runner_device_step(struct walsh_runner *r, size_t count, const struct walsh_row_sets *sets,
                              const struct walsh_runner_draws *draws)
{
    struct walsh_rows rows = {
        .role = WALSH_DECODE, .count = count, .kv = r->kv, .positions = r->positions, .sets = *sets};
    struct walsh_error err;
    if (step_on_device(r, &rows, draws, &err) != WALSH_OK) note(r, &err);
}

static enum walsh_status logits_on_device(struct walsh_runner *r, const float *x, size_t count,
                                          enum walsh_role role, const struct walsh_row_sets *sets,
                                          float *logits, struct walsh_error *err)
{
    const struct walsh_config *c = &r->graph->config;
    for (size_t at = 0, n; at < count; at += n) {
        n = walsh_min(count - at, r->logit_rows);
        WALSH_TRY(
            walsh_queue_upload(r->queue, r->device.x, x + at * c->hidden, n * c->hidden * sizeof *x, err));
        const struct walsh_row_sets part = walsh_row_sets_slice(sets, at, n, r->logit_sets);
        walsh_logits(r->graph, r->queue, r->device.x, n, role, &part, r->workspace, r->device.logits);
        WALSH_TRY(walsh_queue_download(r->queue, logits + at * c->vocab, r->device.logits,
                                       n * c->vocab * sizeof *logits, err));
    }
    return WALSH_OK;
}

void walsh_runner_logits(struct walsh_runner *runner, float *x, size_t count, enum walsh_role role,
                         const struct walsh_row_sets *sets, float *logits)
{
    struct walsh_error err;
    if (!runner->queue->memory)
        walsh_logits(runner->graph, runner->queue, x, count, role, sets, runner->workspace, logits);
    else if (logits_on_device(runner, x, count, role, sets, logits, &err) != WALSH_OK)
        note(runner, &err);
}

enum walsh_status walsh_runner_check(struct walsh_runner *runner, struct walsh_error *err)
{
    const struct walsh_error failure = runner->failure;
    memset(&runner->failure, 0, sizeof runner->failure);
    return failure.status == WALSH_OK ? WALSH_OK : walsh_fail(err, failure.status, "%s", failure.message);
}

enum walsh_status walsh_runner_check_ids(const struct walsh_runner *runner, const int32_t *ids, size_t count,
                                         struct walsh_error *err)
{
    uint32_t vocab = runner->graph->config.vocab;
    for (size_t i = 0; i < count; i++)
        if (ids[i] < 0 || (uint32_t)ids[i] >= vocab)
            return walsh_fail(err, WALSH_E_ARGUMENT, "token %zu is id %d, the vocabulary has ids 0 to %u", i,
                              ids[i], vocab - 1);
    return WALSH_OK;
}
