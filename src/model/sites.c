#include "model/sites.h"

static struct walsh_site site_of(enum walsh_tap_point point, uint32_t expert, const struct walsh_linear *a,
                                 const struct walsh_linear *b, const struct walsh_linear *c)
{
    return (struct walsh_site){.point = point,
                               .expert = expert,
                               .linears = {a, b, c},
                               .count = c   ? 3
                                        : b ? 2
                                            : 1};
}

/* q k v, o, then gate up and down of an MLP, or the router and both of each expert. */
bool walsh_layer_site(const struct walsh_layer *layer, uint32_t experts, uint32_t step,
                      struct walsh_site *site)
{
    const bool attends = !layer->conv_weight;
    if (step == 0)
        *site = site_of(WALSH_TAP_ATTENTION, 0, &layer->q, attends ? &layer->k : NULL,
                        attends ? &layer->v : NULL);
    if (step == 1) *site = site_of(WALSH_TAP_OUTPUT, 0, &layer->o, NULL, NULL);
    if (step < 2) return true;
    step -= 2;
    if (!layer->experts) {
        *site = step == 0 ? site_of(WALSH_TAP_MLP, 0, &layer->gate, &layer->up, NULL)
                          : site_of(WALSH_TAP_DOWN, 0, &layer->down, NULL, NULL);
        return step < 2;
    }
    if (step == 0) {
        *site = (struct walsh_site){.linears = {&layer->router}, .count = 1, .router = true};
        return true;
    }
    const uint32_t e = (step - 1) / 2;
    if (e >= experts) return false;
    const struct walsh_expert *expert = &layer->experts[e];
    *site = step % 2 ? site_of(WALSH_TAP_EXPERT, e, &expert->gate, &expert->up, NULL)
                     : site_of(WALSH_TAP_EXPERT_DOWN, e, &expert->down, NULL, NULL);
    return true;
}

bool walsh_site_next(struct walsh_site_walk *walk, struct walsh_site *site)
{
    const struct walsh_model_graph *g = walk->graph;
    for (; walk->layer < g->config.layers; walk->layer++, walk->step = 0)
        if (walsh_layer_site(&g->layers[walk->layer], g->config.experts, walk->step++, site)) return true;
    *site = (struct walsh_site){.linears = {&g->head}, .count = 1};
    return walk->step++ == 0;
}

uint32_t walsh_graph_number(struct walsh_model_graph *graph)
{
    struct walsh_site_walk walk = {.graph = graph};
    struct walsh_site site;
    uint32_t n = 0;
    while (walsh_site_next(&walk, &site))
        for (unsigned i = 0; i < site.count; i++) /* const only in the walk: they are this graph's */
            ((struct walsh_linear *)(uintptr_t)site.linears[i])->index = n++;
    return n;
}
