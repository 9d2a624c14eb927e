#include "runtime/runner.h"

#define LOGIT_ELEMENTS ((size_t)1 << 22) /* 16 MiB of logits at once */

static enum walsh_status allocate(struct walsh_runner *r, struct walsh_error *err)
{
    const struct walsh_config *c = &r->graph->config;
    r->logit_rows = walsh_min(walsh_max(LOGIT_ELEMENTS / c->vocab, 1), WALSH_CHUNK_ROWS);
    WALSH_TRY(walsh_workspace_open(r->graph, WALSH_CHUNK_ROWS, &r->workspace, err));
    WALSH_TRY(
        walsh_alloc((size_t)WALSH_CHUNK_ROWS * c->hidden, sizeof(float), "the rows of a chunk", &r->x, err));
    WALSH_TRY(walsh_alloc(WALSH_CHUNK_ROWS, sizeof *r->kv, "the rows of a chunk", &r->kv, err));
    WALSH_TRY(walsh_alloc(WALSH_CHUNK_ROWS, sizeof *r->positions, "the rows of a chunk", &r->positions, err));
    WALSH_TRY(walsh_alloc(WALSH_CHUNK_ROWS, sizeof *r->ids, "the rows of a chunk", &r->ids, err));
    WALSH_TRY(walsh_alloc(WALSH_CHUNK_ROWS, sizeof *r->order, "the rows of a chunk", &r->order, err));
    WALSH_TRY(walsh_alloc(WALSH_CHUNK_ROWS, sizeof *r->sets, "the rows of a chunk", &r->sets, err));
    WALSH_TRY(
        walsh_alloc(WALSH_CHUNK_ROWS, sizeof *r->logit_sets, "the rows of a chunk", &r->logit_sets, err));
    return walsh_alloc(r->logit_rows * c->vocab, sizeof(float), "logits", &r->logits, err);
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
    walsh_free((*runner)->positions);
    walsh_free((*runner)->ids);
    walsh_free((*runner)->order);
    walsh_free((*runner)->sets);
    walsh_free((*runner)->logit_sets);
    walsh_free((*runner)->logits);
    walsh_free(*runner);
    *runner = NULL;
}

void walsh_runner_forward(struct walsh_runner *runner, const int32_t *ids, size_t count, enum walsh_role role,
                          const struct walsh_row_sets *sets, float *x)
{
    const struct walsh_model_graph *graph = runner->graph;
    const struct walsh_rows rows = {
        .role = role, .count = count, .kv = runner->kv, .positions = runner->positions, .sets = *sets};
    walsh_embed(graph, runner->queue, ids, count, x);
    for (uint32_t i = 0; i < graph->config.layers; i++)
        walsh_layer_forward(graph, runner->queue, &graph->layers[i], i, x, &rows, runner->workspace, NULL);
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
