#include "train/parameters.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "checkpoint/peft_config.h"
#include "kernels/device.h"
#include "kernels/table.h"
#include "model/adapter.h"

/* One pass over the linears of the layers; the first one counts, the second one fills. */
struct listing {
    struct walsh_parameters *p;
    const struct walsh_parameter_options *options;
    bool fill;
    size_t modules, updates, values, pairs;
    struct walsh_error *err;
};

/* The last component of a module path, e.g. "q_proj". */
static const char *last_component(const char *name)
{
    const char *dot = strrchr(name, '.');
    return dot ? dot + 1 : name;
}

/* Is `word` in the list, whose items are separated by commas? */
static bool listed(const char *list, const char *word)
{
    const size_t length = strlen(word);
    for (const char *item = list; item;) {
        const char *comma = strchr(item, ',');
        const size_t n = comma ? (size_t)(comma - item) : strlen(item);
        if (n == length && strncmp(item, word, n) == 0) return true;
        item = comma ? comma + 1 : NULL;
    }
    return false;
}

static bool targeted(const struct listing *l, const char *module)
{
    const char *targets = l->options->targets;
    return strcmp(targets, "all-linear") == 0 || listed(targets, last_component(module));
}

/* A module of `experts` times `parts` linears that share an A: linears[e * parts + i]. */
static enum walsh_status add_module(struct listing *l, const char *name, const char *parameter,
                                    const struct walsh_linear *const *linears, uint32_t experts, size_t parts)
{
    struct walsh_parameters *p = l->p;
    const uint32_t rank = l->options->rank, in = linears[0]->in;
    uint32_t out = 0;
    for (size_t i = 0; i < parts; i++) out += linears[i]->out;
    const size_t a = l->values, a_pairs = l->pairs;
    l->values += (size_t)experts * rank * in;
    if (l->options->narrow) l->pairs += experts * walsh_lora_pairs(rank, in);
    if (l->fill) {
        char *copy;
        WALSH_TRY(walsh_arena_strdup(&p->arena, name, &copy, l->err));
        p->modules[l->modules] = (struct walsh_module){
            copy, parameter, rank, in, out, experts, a, l->updates, parts, linears[0]->fusion.step > 1};
    }
    for (size_t i = 0; i < experts * parts; i++, l->updates++) {
        if (l->fill) {
            const size_t own_a = a + i / parts * rank * in;
            p->updates[l->updates] = (struct walsh_lora){.rank = rank,
                                                         .in = in,
                                                         .out = linears[i]->out,
                                                         .scale = (float)(l->options->alpha / rank),
                                                         .a = p->values + own_a,
                                                         .b = p->values + l->values,
                                                         .a_t = p->turned + own_a,
                                                         .b_t = p->turned + l->values,
                                                         .grad_a = p->gradients + own_a,
                                                         .grad_b = p->gradients + l->values};
            if (p->pairs) {
                p->updates[l->updates].a_pairs = p->pairs + a_pairs + i / parts * walsh_lora_pairs(rank, in);
                p->updates[l->updates].b_pairs = p->pairs + l->pairs;
            }
            p->by_linear[linears[i]->index] = &p->updates[l->updates];
        }
        l->values += (size_t)rank * linears[i]->out;
        if (l->options->narrow) l->pairs += walsh_lora_pairs(rank, linears[i]->out);
    }
    l->modules++;
    return WALSH_OK;
}

/* Linears that read one x: each a module of its own, or the parts of one matrix together. */
static enum walsh_status add_linears(struct listing *l, const struct walsh_linear *const *linears,
                                     size_t count)
{
    const char *fused = linears[0]->fusion.name;
    if (fused) return targeted(l, fused) ? add_module(l, fused, NULL, linears, 1, count) : WALSH_OK;
    for (size_t i = 0; i < count; i++)
        if (targeted(l, linears[i]->name))
            WALSH_TRY(add_module(l, linears[i]->name, NULL, &linears[i], 1, 1));
    return WALSH_OK;
}

/* Hugging Face stacks the experts' gate and up in one parameter, gate first, and down in another, both of one
 * module; PEFT nests the first as that module's base_layer. */
static enum walsh_status add_experts(struct listing *l, const struct walsh_layer *layer)
{
    const struct walsh_model_graph *graph = l->p->graph;
    const uint32_t experts = l->p->graph->config.experts;
    const struct walsh_linear **linears;
    char module[WALSH_MODULE_NAME], nested[WALSH_MODULE_NAME + 16];
    walsh_experts_module(graph, (uint32_t)(layer - graph->layers), module, sizeof module);
    snprintf(nested, sizeof nested, "%s.base_layer", module);
    WALSH_TRY(walsh_alloc(2 * (size_t)experts, sizeof *linears, "a list of experts", &linears, l->err));
    for (uint32_t e = 0; e < experts; e++) {
        linears[2 * e] = &layer->experts[e].gate;
        linears[2 * e + 1] = &layer->experts[e].up;
    }
    enum walsh_status status = add_module(l, nested, "gate_up_proj", linears, experts, 2);
    for (uint32_t e = 0; e < experts; e++) linears[e] = &layer->experts[e].down;
    if (status == WALSH_OK) status = add_module(l, module, "down_proj", linears, experts, 1);
    walsh_free((void *)linears);
    return status;
}

static enum walsh_status list_modules(struct listing *l)
{
    const struct walsh_model_graph *g = l->p->graph;
    l->modules = l->updates = l->values = l->pairs = 0;
    for (uint32_t i = 0; i < g->config.layers; i++) {
        const struct walsh_layer *layer = &g->layers[i];
        const struct walsh_linear *const qkv[] = {&layer->q, &layer->k, &layer->v}, *const o[] = {&layer->o};
        WALSH_TRY(add_linears(l, qkv, layer->conv_weight ? 1 : 3));
        WALSH_TRY(add_linears(l, o, 1));
        if (layer->experts) {
            if (l->options->experts) WALSH_TRY(add_experts(l, layer));
            continue;
        }
        const struct walsh_linear *const gate_up[] = {&layer->gate, &layer->up}, *const down[] = {
                                                                                     &layer->down};
        WALSH_TRY(add_linears(l, gate_up, 2));
        WALSH_TRY(add_linears(l, down, 1));
    }
    return WALSH_OK;
}

static const char *module_of(const struct walsh_linear *linear)
{
    return linear->fusion.name ? linear->fusion.name : linear->name;
}

static bool layer_has(const struct walsh_layer *layer, const char *word)
{
    const struct walsh_linear *const all[] = {&layer->q,    &layer->k,  &layer->v,   &layer->o,
                                              &layer->gate, &layer->up, &layer->down};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i]->name && strcmp(last_component(module_of(all[i])), word) == 0) return true;
    return false;
}

/* Every name of the list must be one of a linear. */
static enum walsh_status check_targets(const struct walsh_model_graph *g,
                                       const struct walsh_parameter_options *o, struct walsh_error *err)
{
    if (strcmp(o->targets, "all-linear") == 0) return WALSH_OK;
    for (const char *item = o->targets; item;) {
        const char *comma = strchr(item, ',');
        char word[128];
        bool found = false;
        snprintf(word, sizeof word, "%.*s", comma ? (int)(comma - item) : (int)sizeof word - 1, item);
        for (uint32_t i = 0; i < g->config.layers; i++) found = found || layer_has(&g->layers[i], word);
        if (!found)
            return walsh_fail(
                err, WALSH_E_ARGUMENT,
                "targets: the layers have no linear '%s'; expected all-linear or names such as %s", word,
                last_component(module_of(&g->layers[0].q)));
        item = comma ? comma + 1 : NULL;
    }
    return WALSH_OK;
}

static enum walsh_status start(struct listing *l)
{
    const struct walsh_parameter_options *o = l->options;
    if (o->rank < 1 || o->rank > WALSH_MAX_LORA_RANK)
        return walsh_fail(l->err, WALSH_E_ARGUMENT, "a rank of %u, expected 1 to %d", o->rank,
                          WALSH_MAX_LORA_RANK);
    if (o->experts && l->p->graph->config.experts == 0)
        return walsh_fail(l->err, WALSH_E_ARGUMENT, "experts are to be trained, but the model has none");
    WALSH_TRY(check_targets(l->p->graph, o, l->err));
    WALSH_TRY(list_modules(l));
    return l->modules > 0 ? WALSH_OK
                          : walsh_fail(l->err, WALSH_E_ARGUMENT, "nothing to train: no linear is a target");
}

enum walsh_status walsh_parameters_count(const struct walsh_model_graph *graph,
                                         const struct walsh_parameter_options *options, size_t *count,
                                         size_t *pairs, struct walsh_error *err)
{
    struct walsh_parameters p = {.graph = graph};
    struct listing l = {.p = &p, .options = options, .err = err};
    WALSH_TRY(start(&l));
    *count = l.values;
    *pairs = l.pairs;
    return WALSH_OK;
}

static size_t linear_count(const struct walsh_model_graph *g)
{
    return (size_t)g->head.index + 1; /* the last in the order of use */
}

static enum walsh_status allocate(struct walsh_parameters *p, const struct listing *l,
                                  struct walsh_error *err)
{
    struct walsh_arena *arena = &p->arena;
    p->module_count = l->modules;
    p->update_count = l->updates;
    p->count = l->values;
    p->pair_count = l->pairs;
    p->host = NULL;
    WALSH_TRY(
        walsh_arena_alloc(arena, l->modules, sizeof *p->modules, "the trained modules", &p->modules, err));
    WALSH_TRY(
        walsh_arena_alloc(arena, l->updates, sizeof *p->updates, "the trained modules", &p->updates, err));
    WALSH_TRY(walsh_arena_alloc(arena, linear_count(p->graph), sizeof *p->by_linear, "the trained modules",
                                &p->by_linear, err));
    WALSH_TRY(walsh_arena_alloc(arena, p->count, sizeof(float), "the adapter", &p->values, err));
    WALSH_TRY(
        walsh_arena_alloc(arena, p->count, sizeof(float), "the adapter's gradient", &p->gradients, err));
    if (p->pair_count > 0)
        WALSH_TRY(
            walsh_arena_alloc(arena, p->pair_count, sizeof *p->pairs, "the adapter in bf16", &p->pairs, err));
    return walsh_arena_alloc(arena, p->count, sizeof(float), "the adapter, transposed", &p->turned, err);
}

enum walsh_status walsh_parameters_open(const struct walsh_model_graph *graph,
                                        const struct walsh_parameter_options *options,
                                        struct walsh_parameters *out, struct walsh_error *err)
{
    *out = (struct walsh_parameters){.graph = graph};
    struct listing l = {.p = out, .options = options, .err = err};
    enum walsh_status status = start(&l);
    if (status == WALSH_OK) status = allocate(out, &l, err);
    l.fill = true;
    if (status == WALSH_OK) status = list_modules(&l);
    if (status != WALSH_OK) walsh_parameters_close(out);
    return status;
}

static enum walsh_status allocate_device(struct walsh_parameters *p, const struct walsh_queue *q,
                                         void *out[3], struct walsh_error *err)
{
    const size_t bytes = p->count * sizeof(float);
    p->device = q;
    WALSH_TRY(walsh_queue_alloc(q, bytes, "the adapter", &out[0], err));
    WALSH_TRY(walsh_queue_alloc(q, bytes, "the adapter's gradient", &out[1], err));
    if (p->pairs)
        WALSH_TRY(
            walsh_queue_alloc(q, p->pair_count * sizeof *p->pairs, "the adapter in bf16", &out[2], err));
    return walsh_queue_upload(q, out[0], p->values, bytes, err);
}

enum walsh_status walsh_parameters_upload(struct walsh_parameters *p, const struct walsh_queue *q,
                                          struct walsh_error *err)
{
    void *block[3] = {NULL};
    if (!q->memory) return WALSH_OK;
    const enum walsh_status status = allocate_device(p, q, block, err);
    if (status != WALSH_OK) {
        p->device = NULL;
        for (int i = 0; i < 3; i++) walsh_queue_free(q, block[i]);
        return status;
    }
    float *values = block[0], *gradients = block[1];
    uint32_t *pairs = block[2];
    for (size_t i = 0; i < p->update_count; i++) {
        struct walsh_lora *u = &p->updates[i];
        u->a = values + (u->a - p->values);
        u->b = values + (u->b - p->values);
        u->grad_a = gradients + (u->grad_a - p->gradients);
        u->grad_b = gradients + (u->grad_b - p->gradients);
        u->a_t = u->b_t = NULL;
        if (!pairs) continue;
        u->a_pairs = pairs + (u->a_pairs - p->pairs);
        u->b_pairs = pairs + (u->b_pairs - p->pairs);
    }
    p->host = p->values;
    p->values = values;
    p->gradients = gradients;
    p->pairs = pairs;
    return WALSH_OK;
}

enum walsh_status walsh_parameters_download(const struct walsh_parameters *p, const float *flat, float *to,
                                            struct walsh_error *err)
{
    if (p->device) return walsh_queue_download(p->device, to, flat, p->count * sizeof *to, err);
    if (to != flat) memcpy(to, flat, p->count * sizeof *to);
    return WALSH_OK;
}

void walsh_parameters_close(struct walsh_parameters *p)
{
    if (p->device) {
        walsh_queue_free(p->device, p->values);
        walsh_queue_free(p->device, p->gradients);
        walsh_queue_free(p->device, p->pairs);
    }
    walsh_arena_close(&p->arena);
    *p = (struct walsh_parameters){0};
}

void walsh_parameters_init(struct walsh_parameters *p, struct walsh_random *random)
{
    memset(p->values, 0, p->count * sizeof *p->values);
    for (size_t i = 0; i < p->module_count; i++) {
        const struct walsh_module *m = &p->modules[i];
        const double bound = 1 / sqrt((double)m->in);
        for (size_t j = 0; j < (size_t)m->experts * m->rank * m->in; j++)
            p->values[m->a + j] = (float)(bound * (2 * walsh_random_uniform(random) - 1));
    }
}

struct refresh {
    const struct walsh_parameters *p;
    const struct walsh_queue *queue;
};

/* The transpose of a matrix of values, or its pairs. */
static void refresh_matrix(const struct refresh *t, const float *matrix, const uint32_t *pairs, uint32_t rank,
                           size_t n)
{
    if (!pairs && t->p->device) return; /* its products read the matrices as they are */
    if (pairs)
        walsh_lora_pack(t->queue, t->p->pairs + (pairs - t->p->pairs), matrix, rank, n);
    else
        t->queue->kernels->transpose_f32(t->p->turned + (matrix - t->p->values), rank, matrix, n, rank, n);
}

static void refresh_updates(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct refresh *t = argument;
    for (size_t i = begin; i < end; i++) {
        const struct walsh_lora *u = &t->p->updates[i];
        if (i == 0 || u->a != u[-1].a) refresh_matrix(t, u->a, u->a_pairs, u->rank, u->in);
        refresh_matrix(t, u->b, u->b_pairs, u->rank, u->out);
    }
}

void walsh_parameters_refresh(struct walsh_parameters *p, const struct walsh_queue *q)
{
    struct refresh t = {p, q};
    if (p->device) {
        refresh_updates(&t, 0, p->update_count, 0);
        return;
    }
    walsh_pool_run(q->pool, p->update_count, 4, refresh_updates, &t);
}

/* Element (o, j, e) of a module's B, in both layouts: visit(argument, place in PEFT's, place in the flat
 * array). */
static void walk_b(const struct walsh_parameters *p, const struct walsh_module *m,
                   void (*visit)(void *argument, size_t peft, size_t flat), void *argument)
{
    for (uint32_t e = 0; e < m->experts; e++) {
        size_t row = 0;
        for (size_t part = 0; part < m->parts; part++) {
            const struct walsh_lora *u = &p->updates[m->first + e * m->parts + part];
            const size_t b = (size_t)(u->b - p->values);
            for (size_t o = 0; o < u->out; o++)
                for (size_t j = 0; j < m->rank; j++)
                    visit(argument,
                          (m->alternating ? o * m->parts + part : row + o) * m->rank * m->experts +
                              j * m->experts + e,
                          b + j * u->out + o);
            row += u->out;
        }
    }
}

struct copy {
    const float *from;
    float *to;
};

static void to_peft(void *argument, size_t peft, size_t flat)
{
    const struct copy *c = argument;
    c->to[peft] = c->from[flat];
}

static void from_peft(void *argument, size_t peft, size_t flat)
{
    const struct copy *c = argument;
    c->to[flat] = c->from[peft];
}

void walsh_module_export(const struct walsh_parameters *p, const struct walsh_module *m, const float *flat,
                         float *a, float *b)
{
    struct copy c = {flat, b};
    memcpy(a, flat + m->a, (size_t)m->experts * m->rank * m->in * sizeof *a);
    walk_b(p, m, to_peft, &c);
}

void walsh_module_import(const struct walsh_parameters *p, const struct walsh_module *m, float *flat,
                         const float *a, const float *b)
{
    struct copy c = {b, flat};
    memcpy(flat + m->a, a, (size_t)m->experts * m->rank * m->in * sizeof *a);
    walk_b(p, m, from_peft, &c);
}
