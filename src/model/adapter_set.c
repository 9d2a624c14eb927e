/* Sets of adapters and their plan. */
#include "model/adapter.h"

#include <math.h>
#include <string.h>

#include "model/sites.h"
#include "model/workspace.h"

bool walsh_adapter_set_equal(const struct walsh_adapter_set *a, const struct walsh_adapter_set *b)
{
    if (a->count != b->count) return false;
    for (size_t i = 0; i < a->count; i++)
        if (a->choices[i].adapter != b->choices[i].adapter || a->choices[i].scale != b->choices[i].scale)
            return false;
    return true;
}

static enum walsh_status check_choices(const struct walsh_adapter_choice *choices, size_t count,
                                       struct walsh_error *err)
{
    if (count < 1 || count > WALSH_MAX_ADAPTERS)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%zu adapters together, expected 1 to %d", count,
                          WALSH_MAX_ADAPTERS);
    for (size_t i = 0; i < count; i++) {
        const struct walsh_adapter *adapter = choices[i].adapter;
        if (!isfinite(choices[i].scale))
            return walsh_fail(err, WALSH_E_ARGUMENT, "adapter %s: scale %g, expected a finite number",
                              adapter->name, (double)choices[i].scale);
        if (adapter->graph != choices[0].adapter->graph)
            return walsh_fail(err, WALSH_E_ARGUMENT, "adapters %s and %s belong to different models",
                              choices[0].adapter->name, adapter->name);
        for (size_t j = 0; j < i; j++)
            if (strcmp(choices[j].adapter->name, adapter->name) == 0)
                return walsh_fail(err, WALSH_E_EXISTS, "adapter %s is given twice", adapter->name);
    }
    return WALSH_OK;
}

/* The terms of one linear, behind those of the linears before it. */
static void plan_linear(struct walsh_adapter_set *set, const struct walsh_linear *linear,
                        struct walsh_adapter_term *terms, uint32_t *first, size_t *used)
{
    uint32_t end = first[linear->index];
    for (size_t c = 0; c < set->count; c++) {
        const struct walsh_adapter_linear *update = walsh_adapter_find(set->choices[c].adapter, linear);
        if (!update) continue;
        terms[end++] = (struct walsh_adapter_term){update, set->choices[c].scale};
        used[c]++;
    }
    first[linear->index + 1] = end;
}

/* What a row needs where these linears are called together. */
static void measure_site(struct walsh_adapter_set *set, const struct walsh_site *site)
{
    size_t updates = 0, elements = 0;
    for (unsigned i = 0; i < site->count; i++) {
        const uint32_t index = site->linears[i]->index;
        for (uint32_t t = set->first[index]; t < set->first[index + 1]; t++, updates++)
            elements +=
                walsh_low_rank_scratch(set->terms[t].update->rank, site->linears[i]->in, 1, WALSH_DECODE);
    }
    set->row_updates = walsh_max(set->row_updates, updates);
    set->row_elements = walsh_max(set->row_elements, elements);
}

/* Every call of the forward pass takes its updates out of the adapters; one that is left over would be lost.
 */
static enum walsh_status make_plan(struct walsh_adapter_set *set, struct walsh_error *err)
{
    const struct walsh_model_graph *graph = set->choices[0].adapter->graph;
    struct walsh_site_walk walk = {.graph = graph};
    struct walsh_site site;
    size_t linears = 0, total = 0, used[WALSH_MAX_ADAPTERS] = {0};
    while (walsh_site_next(&walk, &site))
        for (unsigned i = 0; i < site.count; i++)
            if (site.linears[i]->index != linears++)
                return walsh_fail(err, WALSH_E_INTERNAL, "the model's linears are not numbered");
    for (size_t c = 0; c < set->count; c++) total += set->choices[c].adapter->count;
    struct walsh_adapter_term *terms;
    uint32_t *first;
    WALSH_TRY(walsh_arena_alloc(&set->arena, total, sizeof *terms, "a plan of adapters", &terms, err));
    WALSH_TRY(walsh_arena_alloc(&set->arena, linears + 1, sizeof *first, "a plan of adapters", &first, err));
    set->terms = terms;
    set->first = first;
    set->linears = linears;
    walk = (struct walsh_site_walk){.graph = graph};
    while (walsh_site_next(&walk, &site)) {
        for (unsigned i = 0; i < site.count; i++) plan_linear(set, site.linears[i], terms, first, used);
        measure_site(set, &site);
    }
    for (size_t c = 0; c < set->count; c++) {
        const struct walsh_adapter *adapter = set->choices[c].adapter;
        if (used[c] != adapter->count)
            return walsh_fail(err, WALSH_E_INTERNAL, "adapter %s: the model uses %zu of its %zu updates",
                              adapter->name, used[c], adapter->count);
    }
    return WALSH_OK;
}

enum walsh_status walsh_adapter_set_open(const struct walsh_adapter_choice *choices, size_t count,
                                         struct walsh_adapter_set **out, struct walsh_error *err)
{
    *out = NULL;
    WALSH_TRY(check_choices(choices, count, err));
    struct walsh_adapter_set *set;
    WALSH_TRY(walsh_alloc_zero(1, sizeof *set, "a set of adapters", &set, err));
    set->count = count;
    for (size_t i = 0; i < count; i++)
        set->choices[i] =
            (struct walsh_adapter_choice){walsh_adapter_retain(choices[i].adapter), choices[i].scale};
    const enum walsh_status status = make_plan(set, err);
    if (status != WALSH_OK) walsh_adapter_set_close(&set);
    *out = set;
    return status;
}

void walsh_adapter_set_close(struct walsh_adapter_set **set)
{
    if (!*set) return;
    for (size_t i = 0; i < (*set)->count; i++) walsh_adapter_release(&(*set)->choices[i].adapter);
    walsh_arena_close(&(*set)->arena);
    walsh_free(*set);
    *set = NULL;
}

/* Is the adapter of choice `c` of set `s` among those that come before it? */
static bool seen_before(const struct walsh_adapter_set *const *sets, size_t s, size_t c)
{
    for (size_t i = 0; i <= s; i++)
        for (size_t j = 0; sets[i] && j < (i == s ? c : sets[i]->count); j++)
            if (sets[i]->choices[j].adapter == sets[s]->choices[c].adapter) return true;
    return false;
}

uint64_t walsh_adapter_sets_bytes(const struct walsh_adapter_set *const *sets, size_t count)
{
    uint64_t bytes = 0;
    for (size_t s = 0; s < count; s++)
        for (size_t c = 0; sets[s] && c < sets[s]->count; c++)
            if (!seen_before(sets, s, c)) bytes += sets[s]->choices[c].adapter->bytes;
    return bytes;
}
