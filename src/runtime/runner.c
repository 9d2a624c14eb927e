#include "runtime/runner.h"

#include <string.h>

#include "kernels/device.h"

#define LOGIT_ELEMENTS ((size_t)1 << 22) /* 16 MiB of logits at once */

static enum walsh_status allocate_device(struct walsh_runner *r, struct walsh_error *err)
{
    const struct walsh_config *c = &r->graph->config;
    const struct walsh_queue *q = r->queue;
    struct walsh_runner_device *d = &r->device;
    const size_t rows = WALSH_CHUNK_ROWS;
    if (!q->memory) return WALSH_OK;
    WALSH_TRY(walsh_queue_alloc(q, rows * sizeof *d->ids, "the rows of a chunk", &d->ids, err));
    WALSH_TRY(walsh_queue_alloc(q, rows * sizeof *d->positions, "the rows of a chunk", &d->positions, err));
    WALSH_TRY(walsh_queue_alloc(q, rows * sizeof *d->kv, "the rows of a chunk", &d->kv, err));
    WALSH_TRY(walsh_queue_alloc(q, rows * c->hidden * sizeof *d->x, "the rows of a chunk", &d->x, err));
    return walsh_queue_alloc(q, r->logit_rows * c->vocab * sizeof *d->logits, "logits", &d->logits, err);
}

static enum walsh_status allocate(struct walsh_runner *r, struct walsh_error *err)
{
    const struct walsh_config *c = &r->graph->config;
    r->logit_rows = walsh_min(walsh_max(LOGIT_ELEMENTS / c->vocab, 1), WALSH_CHUNK_ROWS);
    WALSH_TRY(walsh_workspace_open(r->graph, r->queue, WALSH_CHUNK_ROWS, &r->workspace, err));
    WALSH_TRY(
        walsh_alloc((size_t)WALSH_CHUNK_ROWS * c->hidden, sizeof(float), "the rows of a chunk", &r->x, err));
    WALSH_TRY(walsh_alloc(WALSH_CHUNK_ROWS, sizeof *r->kv, "the rows of a chunk", &r->kv, err));
    WALSH_TRY(walsh_alloc(WALSH_CHUNK_ROWS, sizeof *r->op_kv, "the rows of a chunk", &r->op_kv, err));
    WALSH_TRY(walsh_alloc(WALSH_CHUNK_ROWS, sizeof *r->positions, "the rows of a chunk", &r->positions, err));
    WALSH_TRY(walsh_alloc(WALSH_CHUNK_ROWS, sizeof *r->ids, "the rows of a chunk", &r->ids, err));
    WALSH_TRY(walsh_alloc(WALSH_CHUNK_ROWS, sizeof *r->order, "the rows of a chunk", &r->order, err));
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
    const struct walsh_runner_device *d = &(*runner)->device;
    void *const blocks[] = {d->ids, d->positions, (void *)d->kv, d->x, d->logits};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
        if (blocks[i]) walsh_queue_free((*runner)->queue, blocks[i]);
    walsh_free((*runner)->positions);
    walsh_free((*runner)->ids);
    walsh_free((*runner)->order);
    walsh_free((*runner)->sets);
    walsh_free((*runner)->logit_sets);
    walsh_free((*runner)->logits);
    walsh_free(*runner);
    *runner = NULL;
}

static void run_layers(struct walsh_runner *r, const int32_t *ids, const struct walsh_rows *rows, float *x)
{
    walsh_embed(r->graph, r->queue, ids, rows->count, x);
    for (uint32_t i = 0; i < r->graph->config.layers; i++)
        walsh_layer_forward(r->graph, r->queue, &r->graph->layers[i], i, x, rows, r->workspace, NULL);
}

/* The same with the arrays of the call on the device: they go up, the states come back. */
static enum walsh_status run_on_device(struct walsh_runner *r, const int32_t *ids, struct walsh_rows *rows,
                                       float *x, struct walsh_error *err)
{
    const struct walsh_queue *q = r->queue;
    const struct walsh_runner_device *d = &r->device;
    const size_t n = rows->count;
    WALSH_TRY(walsh_queue_upload(q, d->ids, ids, n * sizeof *ids, err));
    WALSH_TRY(walsh_queue_upload(q, d->positions, r->positions, n * sizeof *r->positions, err));
    WALSH_TRY(walsh_queue_upload(q, (void *)d->kv, (const void *)r->op_kv, n * sizeof *r->op_kv, err));
    rows->positions = d->positions;
    rows->op_kv = d->kv;
    run_layers(r, d->ids, rows, d->x);
    return walsh_queue_download(q, x, d->x, n * r->graph->config.hidden * sizeof *x, err);
}

/* The first failure stays. */
static void note(struct walsh_runner *r, const struct walsh_error *failure)
{
    if (r->failure.status == WALSH_OK) r->failure = *failure;
}

void walsh_runner_forward(struct walsh_runner *runner, const int32_t *ids, size_t count, enum walsh_role role,
                          const struct walsh_row_sets *sets, float *x)
{
    struct walsh_rows rows = {
        .role = role, .count = count, .kv = runner->kv, .positions = runner->positions, .sets = *sets};
    struct walsh_error err;
    if (!runner->queue->memory)
        run_layers(runner, ids, &rows, x);
    else if (run_on_device(runner, ids, &rows, x, &err) != WALSH_OK)
        note(runner, &err);
}

static enum walsh_status logits_on_device(struct walsh_runner *r, const float *x, size_t count,
                                          enum walsh_role role, float *logits, struct walsh_error *err)
{
    const struct walsh_config *c = &r->graph->config;
    const struct walsh_row_sets none = {NULL, 0}; /* adapters run on the CPU only */
    for (size_t at = 0, n; at < count; at += n) {
        n = walsh_min(count - at, r->logit_rows);
        WALSH_TRY(
            walsh_queue_upload(r->queue, r->device.x, x + at * c->hidden, n * c->hidden * sizeof *x, err));
        walsh_logits(r->graph, r->queue, r->device.x, n, role, &none, r->workspace, r->device.logits);
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
    else if (logits_on_device(runner, x, count, role, logits, &err) != WALSH_OK)
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
