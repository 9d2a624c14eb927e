#include "quantize/calibration.h"

#include <string.h>
#include <xxhash.h>

#include "base/clock.h"
#include "base/file.h"
#include "model/sites.h"

#define MAX_TEXT_BYTES ((size_t)1 << 30)

enum walsh_status walsh_layer_groups(const struct walsh_model_graph *graph, struct walsh_layer *layer,
                                     struct walsh_input_group **groups, size_t *count,
                                     struct walsh_error *err)
{
    const uint32_t experts = graph->config.experts;
    struct walsh_site site;
    WALSH_TRY(walsh_alloc(4 + 2 * (size_t)experts, sizeof **groups, "the inputs of a layer", groups, err));
    *count = 0;
    for (uint32_t step = 0; walsh_layer_site(layer, experts, step, &site); step++) {
        if (site.router) continue;
        struct walsh_input_group *group = &(*groups)[(*count)++];
        *group = (struct walsh_input_group){.point = site.point, .expert = site.expert, .count = site.count};
        for (unsigned i = 0; i < site.count; i++) /* const only in the site: they are this layer's */
            group->linears[i] = (struct walsh_linear *)(uintptr_t)site.linears[i];
    }
    return WALSH_OK;
}

void walsh_groups_close_hessians(struct walsh_input_group *groups, size_t count)
{
    for (size_t i = 0; i < count; i++) walsh_hessian_close(&groups[i].hessian);
}

/* --- sequences --- */

/* `samples` sequences of `tokens` ids, spread evenly over the text: sequence i begins at a multiple of
 * `tokens`. */
static enum walsh_status choose_ids(struct walsh_calibration *c, const char *path, int32_t **chosen,
                                    struct walsh_error *err)
{
    char *text;
    size_t size, count;
    int32_t *ids;
    WALSH_TRY(walsh_file_read_text(path, MAX_TEXT_BYTES, &text, &size, err));
    enum walsh_status status =
        walsh_tokenizer_encode(c->graph->tokenizer, text, size, WALSH_ENCODE_PLAIN, &ids, &count, err);
    walsh_free(text);
    if (status != WALSH_OK) return status;
    size_t available = count / c->tokens;
    if (available == 0)
        status = walsh_fail(err, WALSH_E_ARGUMENT,
                            "%s: %zu tokens are too few to calibrate: one sequence takes %u", path, count,
                            c->tokens);
    if (status == WALSH_OK && available < c->samples) {
        walsh_log(c->hooks, WALSH_LOG_WARNING,
                  "%s: calibrating with %zu sequences of %u tokens, not %u: the text is short", path,
                  available, c->tokens, c->samples);
        c->samples = (uint32_t)available;
    }
    if (status == WALSH_OK)
        status = walsh_alloc(c->samples, c->tokens * sizeof **chosen, "calibration tokens", chosen, err);
    if (status == WALSH_OK)
        for (size_t i = 0; i < c->samples; i++)
            memcpy(*chosen + i * c->tokens, ids + i * available / c->samples * c->tokens,
                   c->tokens * sizeof *ids);
    walsh_free(ids);
    return status;
}

static enum walsh_status open_scratch(struct walsh_calibration *c, struct walsh_error *err)
{
    const struct walsh_config *config = &c->graph->config;
    size_t rows = (size_t)c->samples * c->tokens;
    static const bool conv[] = {false, true}; /* a layer to attend in, and one to convolve in */
    const struct walsh_kv_shape shape = {.policy = {.type = WALSH_KV_F32},
                                         .layers = config->conv_taps ? 2 : 1,
                                         .conv = config->conv_taps ? conv : NULL,
                                         .conv_width = config->hidden,
                                         .kv_heads = config->kv_heads,
                                         .head_dim = config->head_dim,
                                         .capacity = c->tokens};
    WALSH_TRY(walsh_alloc(rows, config->hidden * sizeof *c->x, "calibration activations", &c->x, err));
    WALSH_TRY(walsh_alloc(c->tokens, config->hidden * sizeof *c->scratch, "a calibration sequence",
                          &c->scratch, err));
    WALSH_TRY(walsh_alloc(c->tokens, sizeof *c->positions, "calibration positions", &c->positions, err));
    WALSH_TRY(walsh_alloc(c->tokens, sizeof *c->rope_rows, "calibration positions", &c->rope_rows, err));
    WALSH_TRY(walsh_alloc(c->tokens, sizeof(void *), "calibration rows", &c->views, err));
    WALSH_TRY(walsh_kv_open(&shape, &c->kv, err));
    WALSH_TRY(walsh_kv_reserve(c->kv, c->tokens, err));
    WALSH_TRY(walsh_workspace_open(c->graph, c->queue, c->tokens, &c->workspace, err));
    const uint32_t offset = walsh_graph_rope_offset(c->graph, c->tokens);
    for (uint32_t i = 0; i < c->tokens; i++) {
        c->positions[i] = i;
        c->rope_rows[i] = offset + i;
        c->views[i] = c->kv->views;
    }
    return WALSH_OK;
}

enum walsh_status walsh_calibration_open(const struct walsh_model_graph *graph,
                                         const struct walsh_queue *queue, const struct walsh_hooks *hooks,
                                         const char *path, uint32_t samples, uint32_t tokens,
                                         struct walsh_calibration *out, uint64_t *fingerprint,
                                         struct walsh_error *err)
{
    *out = (struct walsh_calibration){
        .graph = graph, .queue = queue, .hooks = hooks, .samples = samples, .tokens = tokens};
    int32_t *ids = NULL;
    enum walsh_status status = choose_ids(out, path, &ids, err);
    if (status == WALSH_OK) status = open_scratch(out, err);
    if (status == WALSH_OK) {
        size_t rows = (size_t)out->samples * tokens;
        *fingerprint = XXH64(ids, rows * sizeof *ids, tokens);
        walsh_embed(graph, queue, ids, rows, out->x);
    } else {
        walsh_calibration_close(out);
    }
    walsh_free(ids);
    return status;
}

void walsh_calibration_close(struct walsh_calibration *c)
{
    walsh_free(c->x);
    walsh_free(c->scratch);
    walsh_free(c->positions);
    walsh_free(c->rope_rows);
    walsh_free((void *)c->views);
    walsh_kv_close(&c->kv);
    walsh_workspace_close(&c->workspace);
    memset(c, 0, sizeof *c);
}

/* --- passes --- */

static void run_sequence(struct walsh_calibration *c, const struct walsh_layer *layer, float *x,
                         const struct walsh_tap *tap)
{
    const struct walsh_rows rows = {.role = WALSH_PREFILL,
                                    .count = c->tokens,
                                    .kv = c->views,
                                    .positions = c->positions,
                                    .rope_rows = c->rope_rows};
    walsh_layer_forward(c->graph, c->queue, layer, layer->conv_weight ? 1 : 0, x, &rows, c->workspace, tap);
}

struct observation {
    struct walsh_calibration *calibration;
    struct walsh_input_group *groups;
    size_t count;
    double seconds; /* inside taps */
};

static void observe_input(void *user, enum walsh_tap_point point, uint32_t expert, const float *x, size_t ldx,
                          size_t rows, size_t cols)
{
    struct observation *o = user;
    double start = walsh_now();
    for (size_t i = 0; i < o->count; i++) {
        struct walsh_input_group *g = &o->groups[i];
        if (g->point == point && g->expert == expert && g->hessian.n == cols) {
            walsh_hessian_add(o->calibration->queue, &g->hessian, x, ldx, rows);
            break;
        }
    }
    o->seconds += walsh_now() - start;
}

enum walsh_status walsh_calibration_observe(struct walsh_calibration *c, const struct walsh_layer *layer,
                                            struct walsh_input_group *groups, size_t count,
                                            walsh_pass_progress *progress, void *user,
                                            struct walsh_error *err)
{
    for (size_t i = 0; i < count; i++) {
        WALSH_TRY(walsh_hessian_open(groups[i].linears[0]->in, &groups[i].hessian, err));
        if (c->device) WALSH_TRY(walsh_hessian_place(&groups[i].hessian, c->device, err));
    }
    struct observation o = {c, groups, count, 0};
    const struct walsh_tap tap = {.user = &o, .input = observe_input, .skip_last = true};
    size_t sequence = (size_t)c->tokens * c->graph->config.hidden;
    double start = walsh_now();
    for (uint32_t s = 0; s < c->samples; s++) {
        WALSH_TRY(walsh_check_abort(c->hooks, err));
        memcpy(c->scratch, c->x + s * sequence, sequence * sizeof *c->x);
        run_sequence(c, layer, c->scratch, &tap);
        progress(user, (double)(s + 1) / c->samples);
    }
    for (size_t i = 0; i < count; i++) {
        WALSH_TRY(walsh_hessian_fetch(&groups[i].hessian, err));
        walsh_hessian_finish(&groups[i].hessian);
    }
    c->hessian_seconds += o.seconds;
    c->forward_seconds += walsh_now() - start - o.seconds;
    return WALSH_OK;
}

enum walsh_status walsh_calibration_advance(struct walsh_calibration *c, const struct walsh_layer *layer,
                                            walsh_pass_progress *progress, void *user,
                                            struct walsh_error *err)
{
    size_t sequence = (size_t)c->tokens * c->graph->config.hidden;
    double start = walsh_now();
    for (uint32_t s = 0; s < c->samples; s++) {
        WALSH_TRY(walsh_check_abort(c->hooks, err));
        run_sequence(c, layer, c->x + s * sequence, NULL);
        progress(user, (double)(s + 1) / c->samples);
    }
    c->forward_seconds += walsh_now() - start;
    return WALSH_OK;
}
