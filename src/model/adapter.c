#include "model/adapter.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/random.h"
#include "checkpoint/architectures.h"
#include "checkpoint/model_name.h"
#include "checkpoint/peft.h"
#include "kernels/device.h"
#include "model/sites.h"

/* All linears of a graph, twice: as the model has them, and as the reader of PEFT wants to know them. */
struct catalogue {
    const struct walsh_linear **linears;
    struct walsh_peft_linear *targets;
    size_t count;
    struct walsh_arena arena;
};

static void catalogue_add(struct catalogue *c, const struct walsh_linear *linear)
{
    if (!linear->name) return; /* gate, up, down of a layer of experts; the router of a dense one */
    c->linears[c->count] = linear;
    c->targets[c->count++] = (struct walsh_peft_linear){.name = linear->name,
                                                        .in = linear->in,
                                                        .out = linear->out,
                                                        .fused = linear->fusion.name,
                                                        .fused_row = linear->fusion.row,
                                                        .fused_out = linear->fusion.rows};
}

void walsh_experts_module(const struct walsh_model_graph *graph, uint32_t layer, char *out, size_t size)
{
    const struct walsh_architecture_names *names = &walsh_architectures[graph->config.architecture].names;
    if (names->experts_module) {
        snprintf(out, size, "%s.%u.%s", names->layers, layer, names->experts_module);
        return;
    }
    /* "model.layers.0.mlp.experts.3.gate_proj": what stands before the expert's number */
    const char *name = graph->layers[layer].experts[0].gate.name, *end = name + strlen(name);
    for (unsigned dots = 0; end > name && dots < 2;) dots += *--end == '.';
    snprintf(out, size, "%.*s", (int)(end - name), name);
}

/* The router, which is also known by the name that its class has. */
static enum walsh_status catalogue_add_router(struct catalogue *c, const struct walsh_model_graph *graph,
                                              uint32_t layer, struct walsh_error *err)
{
    const struct walsh_architecture_names *names = &walsh_architectures[graph->config.architecture].names;
    char text[WALSH_MODULE_NAME], *alias = NULL;
    catalogue_add(c, &graph->layers[layer].router);
    if (!graph->layers[layer].router.name) return WALSH_OK;
    c->targets[c->count - 1].often_absent = true;
    if (!names->router_module) return WALSH_OK;
    snprintf(text, sizeof text, "%s.%u.%s", names->layers, layer, names->router_module);
    WALSH_TRY(walsh_arena_strdup(&c->arena, text, &alias, err));
    c->targets[c->count - 1].alias = alias;
    return WALSH_OK;
}

/* Hugging Face keeps the experts' gate and up in one parameter, gate first, and down in another. */
static enum walsh_status catalogue_add_expert(struct catalogue *c, const struct walsh_expert *expert,
                                              const char *module, uint32_t e, uint32_t experts,
                                              struct walsh_error *err)
{
    const struct walsh_linear *parts[] = {&expert->gate, &expert->up, &expert->down};
    for (unsigned i = 0; i < 3; i++) {
        char text[WALSH_MODULE_NAME + 16], *stack = NULL;
        snprintf(text, sizeof text, "%s.%s", module, i < 2 ? "gate_up_proj" : "down_proj");
        WALSH_TRY(walsh_arena_strdup(&c->arena, text, &stack, err));
        catalogue_add(c, parts[i]);
        struct walsh_peft_linear *target = &c->targets[c->count - 1];
        target->stack = stack;
        target->expert = e;
        target->experts = experts;
        target->stack_out = i < 2 ? expert->gate.out + expert->up.out : expert->down.out;
        target->stack_row = i == 1 ? expert->gate.out : 0;
        target->stack_step = 1;
        const struct walsh_fusion *fusion = &parts[i]->fusion;
        if (!fusion->stack) continue;
        /* One matrix of all experts is no linear of its own; of gpt-oss the rows of gate and up alternate. */
        target->fused = NULL;
        target->stack_row = fusion->row;
        target->stack_step = fusion->step;
    }
    return WALSH_OK;
}

static enum walsh_status catalogue_build(struct catalogue *c, const struct walsh_model_graph *graph,
                                         struct walsh_error *err)
{
    const struct walsh_config *config = &graph->config;
    size_t room = 0;
    if (!walsh_mul(config->experts, 3, &room) || !walsh_add(room, 8, &room) ||
        !walsh_mul(room, config->layers, &room) || !walsh_add(room, 1, &room))
        return walsh_fail(err, WALSH_E_MEMORY, "too many linears");
    WALSH_TRY(
        walsh_arena_alloc(&c->arena, room, sizeof *c->linears, "the model's linears", &c->linears, err));
    WALSH_TRY(
        walsh_arena_alloc(&c->arena, room, sizeof *c->targets, "the model's linears", &c->targets, err));
    for (uint32_t i = 0; i < config->layers; i++) {
        const struct walsh_layer *layer = &graph->layers[i];
        const struct walsh_linear *own[] = {&layer->q,    &layer->k,  &layer->v,   &layer->o,
                                            &layer->gate, &layer->up, &layer->down};
        for (size_t j = 0; j < sizeof own / sizeof *own; j++) catalogue_add(c, own[j]);
        WALSH_TRY(catalogue_add_router(c, graph, i, err));
        char module[WALSH_MODULE_NAME];
        if (layer->experts) walsh_experts_module(graph, i, module, sizeof module);
        for (uint32_t e = 0; layer->experts && e < config->experts; e++)
            WALSH_TRY(catalogue_add_expert(c, &layer->experts[e], module, e, config->experts, err));
    }
    catalogue_add(c, &graph->head);
    c->targets[c->count - 1].often_absent = true;
    return WALSH_OK;
}

static void warn(const struct walsh_adapter *adapter, const struct walsh_peft *peft,
                 const struct catalogue *catalogue, const char *directory, const struct walsh_hooks *hooks)
{
    const struct walsh_checkpoint *ck = &adapter->graph->checkpoint;
    if (ck->directory && !walsh_model_goes_by(ck, adapter->base_model))
        walsh_log(hooks, WALSH_LOG_WARNING, "%s: the adapter was made for %s; the model is %s", directory,
                  adapter->base_model, ck->directory);
    if (peft->absent > 0)
        walsh_log(hooks, WALSH_LOG_WARNING,
                  "%s: it targets %zu linears that it has no tensors for, first %s: they stay as they are",
                  directory, peft->absent, catalogue->targets[peft->first_absent].name);
    if (peft->base_copies > 0)
        walsh_log(hooks, WALSH_LOG_WARNING,
                  "%s: %s is a copy of the base model's weights and is not read: the model's own stay",
                  directory, peft->first_base_copy);
}

static bool same_view(const struct walsh_peft_matrix *a, const struct walsh_peft_matrix *b)
{
    return a->tensor == b->tensor && a->offset == b->offset && a->rows == b->rows && a->columns == b->columns;
}

struct opening {
    const struct walsh_adapter_loading *options;
    const struct walsh_hooks *hooks;
    const struct catalogue *catalogue;
    const struct walsh_peft *peft;
    struct walsh_adapter *adapter;
    struct walsh_error *err;
};

/* Update i of the file becomes adapter->updates[i]; gate and up of a stacked expert share their A. */
static enum walsh_status open_update(const struct opening *o, size_t i)
{
    struct walsh_adapter *adapter = o->adapter;
    const struct walsh_peft_update *u = &o->peft->updates[i];
    const bool same = i > 0 && same_view(&u->a, &u[-1].a);
    const size_t a_size = (size_t)u->a.rows * u->a.columns, b_size = (size_t)u->b.rows * u->b.columns;
    const size_t before = adapter->arena.bytes;
    float *values = NULL;
    WALSH_TRY(walsh_alloc(a_size + b_size, sizeof *values, "an adapter's weights", &values, o->err));
    if (!same) walsh_peft_read(&u->a, values);
    walsh_peft_read(&u->b, values + a_size);
    const struct walsh_adapter_source source = {.convention = WALSH_ADAPTER_PEFT,
                                                .rank = u->rank,
                                                .scale = u->scale,
                                                .a = same ? NULL : values,
                                                .b = values + a_size,
                                                .same_a = same ? &adapter->updates[i - 1] : NULL};
    adapter->linears[i] = o->catalogue->linears[u->linear];
    const enum walsh_status status = walsh_adapter_linear_build(
        adapter->linears[i], &source, o->options->storage, &adapter->arena, &adapter->updates[i], o->err);
    walsh_free(values);
    adapter->parameters += b_size + (same ? 0 : a_size);
    adapter->bytes += adapter->arena.bytes - before;
    adapter->count++;
    return status == WALSH_OK ? status : walsh_fail_within(o->err, status, "%s", u->b.tensor->file);
}

struct slot {
    const struct walsh_linear *linear;
    struct walsh_adapter_linear update;
};

static int compare_slots(const void *a, const void *b)
{
    const uintptr_t x = (uintptr_t)((const struct slot *)a)->linear,
                    y = (uintptr_t)((const struct slot *)b)->linear;
    return (x > y) - (x < y);
}

/* By the linears' addresses, for walsh_adapter_find. */
static enum walsh_status sort_updates(struct walsh_adapter *adapter, struct walsh_error *err)
{
    struct slot *slots = NULL;
    WALSH_TRY(walsh_alloc(adapter->count, sizeof *slots, "an adapter's linears", &slots, err));
    for (size_t i = 0; i < adapter->count; i++)
        slots[i] = (struct slot){adapter->linears[i], adapter->updates[i]};
    qsort(slots, adapter->count, sizeof *slots, compare_slots);
    for (size_t i = 0; i < adapter->count; i++) {
        adapter->linears[i] = slots[i].linear;
        adapter->updates[i] = slots[i].update;
    }
    walsh_free(slots);
    return WALSH_OK;
}

/* Bytes of an update's matrices; a shared A counts where it is first. */
static size_t update_bytes(const struct walsh_linear *linear, uint32_t rank, bool has_a,
                           enum walsh_format storage)
{
    const size_t element = storage == WALSH_FORMAT_F32 ? 4 : 2, outs = linear->out_rotation.blocks.padded;
    const size_t a = has_a ? walsh_low_rank_a_size(rank, linear->in) * element : 0;
    const size_t b = walsh_low_rank_b_size(storage, rank, outs) * element;
    return walsh_round_up(a, WALSH_ALIGNMENT) + walsh_round_up(b, WALSH_ALIGNMENT);
}

static enum walsh_status open_updates(const struct opening *o)
{
    struct walsh_adapter *adapter = o->adapter;
    const size_t count = o->peft->count;
    char *base = NULL;
    WALSH_TRY(walsh_arena_strdup(&adapter->arena, o->peft->config.base_model, &base, o->err));
    adapter->base_model = base;
    WALSH_TRY(walsh_arena_alloc(&adapter->arena, count, sizeof *adapter->linears, "an adapter's linears",
                                &adapter->linears, o->err));
    WALSH_TRY(walsh_arena_alloc(&adapter->arena, count, sizeof *adapter->updates, "an adapter's linears",
                                &adapter->updates, o->err));
    size_t bytes = 0;
    for (size_t i = 0; i < count; i++) {
        const struct walsh_peft_update *u = &o->peft->updates[i];
        const bool has_a = i == 0 || !same_view(&u->a, &u[-1].a);
        bytes += update_bytes(o->catalogue->linears[u->linear], u->rank, has_a, o->options->storage);
    }
    WALSH_TRY(walsh_arena_reserve(&adapter->arena, bytes, "an adapter", o->err));
    for (size_t i = 0; i < count; i++) {
        WALSH_TRY(walsh_check_abort(o->hooks, o->err));
        WALSH_TRY(open_update(o, i));
    }
    return sort_updates(adapter, o->err);
}

static enum walsh_status adapter_new(const char *name, const struct walsh_model_graph *graph,
                                     struct walsh_adapter **out, struct walsh_error *err)
{
    char *copy = NULL;
    WALSH_TRY(walsh_alloc_zero(1, sizeof **out, "an adapter", out, err));
    (*out)->graph = graph;
    atomic_init(&(*out)->references, 1);
    const enum walsh_status status = walsh_arena_strdup(&(*out)->arena, name, &copy, err);
    if (status != WALSH_OK) walsh_adapter_release(out);
    if (*out) (*out)->name = copy;
    return status;
}

enum walsh_status walsh_adapter_load(const char *name, const char *directory,
                                     const struct walsh_model_graph *graph,
                                     const struct walsh_adapter_loading *options,
                                     const struct walsh_hooks *hooks, struct walsh_adapter **out,
                                     struct walsh_error *err)
{
    struct catalogue catalogue = {0};
    struct walsh_peft peft = {0};
    *out = NULL;
    struct walsh_adapter *adapter = NULL;
    WALSH_TRY(adapter_new(name, graph, &adapter, err));
    enum walsh_status status = catalogue_build(&catalogue, graph, err);
    if (status == WALSH_OK)
        status =
            walsh_peft_open(directory, options->use_mmap, catalogue.targets, catalogue.count, &peft, err);
    const struct opening opening = {options, hooks, &catalogue, &peft, adapter, err};
    if (status == WALSH_OK) status = open_updates(&opening);
    if (status == WALSH_OK) warn(adapter, &peft, &catalogue, directory, hooks);
    walsh_peft_close(&peft);
    walsh_arena_close(&catalogue.arena);
    if (status != WALSH_OK) walsh_adapter_release(&adapter);
    *out = adapter;
    return status;
}

/* The projections of the layers. */
static bool is_projection(const struct walsh_model_graph *graph, const struct walsh_linear *linear)
{
    for (uint32_t i = 0; i < graph->config.layers; i++)
        if (linear == &graph->layers[i].router) return false;
    return linear != &graph->head;
}

/* A random update; in rotated space, where random B' are as good as any. */
static enum walsh_status synthesize_update(struct walsh_adapter *adapter, const struct walsh_linear *linear,
                                           uint32_t rank, enum walsh_format storage,
                                           struct walsh_random *random, float *values,
                                           struct walsh_error *err)
{
    const size_t outs = linear->out_rotation.blocks.padded, a_size = (size_t)rank * linear->in,
                 b_size = rank * outs;
    for (size_t i = 0; i < a_size + b_size; i++) values[i] = (float)(walsh_random_uniform(random) - 0.5);
    const struct walsh_adapter_source source = {.convention = WALSH_ADAPTER_ROTATED_OUTPUT,
                                                .rank = rank,
                                                .scale = 1 / sqrt((double)rank * linear->in),
                                                .a = values,
                                                .b = values + a_size};
    const size_t before = adapter->arena.bytes;
    adapter->linears[adapter->count] = linear;
    WALSH_TRY(walsh_adapter_linear_build(linear, &source, storage, &adapter->arena,
                                         &adapter->updates[adapter->count], err));
    adapter->count++;
    adapter->parameters += a_size + b_size;
    adapter->bytes += adapter->arena.bytes - before;
    return WALSH_OK;
}

static enum walsh_status synthesize_updates(struct walsh_adapter *adapter, uint32_t rank, uint64_t seed,
                                            enum walsh_format storage, struct walsh_error *err)
{
    struct walsh_site_walk walk = {.graph = adapter->graph};
    struct walsh_site site;
    size_t count = 0, bytes = 0, largest = 0;
    while (walsh_site_next(&walk, &site))
        for (unsigned i = 0; i < site.count; i++) {
            if (!is_projection(adapter->graph, site.linears[i])) continue;
            count++;
            bytes += update_bytes(site.linears[i], rank, true, storage);
            largest =
                walsh_max(largest, site.linears[i]->in + (size_t)site.linears[i]->out_rotation.blocks.padded);
        }
    struct walsh_random random;
    walsh_random_seed(&random, seed);
    WALSH_TRY(walsh_arena_alloc(&adapter->arena, count, sizeof *adapter->linears, "an adapter's linears",
                                &adapter->linears, err));
    WALSH_TRY(walsh_arena_alloc(&adapter->arena, count, sizeof *adapter->updates, "an adapter's linears",
                                &adapter->updates, err));
    WALSH_TRY(walsh_arena_reserve(&adapter->arena, bytes, "an adapter", err));
    float *values;
    WALSH_TRY(walsh_alloc(rank * largest, sizeof *values, "an adapter's weights", &values, err));
    enum walsh_status status = WALSH_OK;
    walk = (struct walsh_site_walk){.graph = adapter->graph};
    while (status == WALSH_OK && walsh_site_next(&walk, &site))
        for (unsigned i = 0; i < site.count && status == WALSH_OK; i++)
            if (is_projection(adapter->graph, site.linears[i]))
                status = synthesize_update(adapter, site.linears[i], rank, storage, &random, values, err);
    walsh_free(values);
    return status == WALSH_OK ? sort_updates(adapter, err) : status;
}

enum walsh_status walsh_adapter_synthesize(const char *name, uint32_t rank, uint64_t seed,
                                           const struct walsh_model_graph *graph, enum walsh_format storage,
                                           struct walsh_adapter **out, struct walsh_error *err)
{
    *out = NULL;
    if (rank < 1 || rank > WALSH_MAX_LORA_RANK)
        return walsh_fail(err, WALSH_E_ARGUMENT, "a random adapter of rank %u, expected 1 to %d", rank,
                          WALSH_MAX_LORA_RANK);
    struct walsh_adapter *adapter;
    WALSH_TRY(adapter_new(name, graph, &adapter, err));
    adapter->base_model = "";
    const enum walsh_status status = synthesize_updates(adapter, rank, seed, storage, err);
    if (status != WALSH_OK) walsh_adapter_release(&adapter);
    *out = adapter;
    return status;
}

struct walsh_adapter *walsh_adapter_retain(struct walsh_adapter *adapter)
{
    atomic_fetch_add_explicit(&adapter->references, 1, memory_order_relaxed);
    return adapter;
}

void walsh_adapter_release(struct walsh_adapter **adapter)
{
    struct walsh_adapter *a = *adapter;
    *adapter = NULL;
    if (!a || atomic_fetch_sub_explicit(&a->references, 1, memory_order_acq_rel) != 1) return;
    for (size_t i = 0; i < a->device_block_count; i++) walsh_queue_free(a->device, a->device_blocks[i]);
    walsh_free((void *)a->device_blocks);
    walsh_arena_close(&a->arena);
    walsh_free(a);
}

const struct walsh_adapter_linear *walsh_adapter_find(const struct walsh_adapter *adapter,
                                                      const struct walsh_linear *linear)
{
    size_t begin = 0, end = adapter->count;
    while (begin < end) {
        const size_t middle = begin + (end - begin) / 2;
        if (adapter->linears[middle] == linear) return &adapter->updates[middle];
        if ((uintptr_t)adapter->linears[middle] < (uintptr_t)linear)
            begin = middle + 1;
        else
            end = middle;
    }
    return NULL;
}
