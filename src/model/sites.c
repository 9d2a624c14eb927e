#include "model/sites.h"

/* The sites of a layer: q k v, o, then gate up and down of an MLP, or the router and both of each expert. */
static bool layer_site(const struct walsh_layer *layer, uint32_t experts, uint32_t step,
                       struct walsh_site *site)
{
    if (step == 0) {
        *site = layer->conv_weight ? (struct walsh_site){{&layer->q}, 1}
                                   : (struct walsh_site){{&layer->q, &layer->k, &layer->v}, 3};
        return true;
    }
    if (step == 1) {
        *site = (struct walsh_site){{&layer->o}, 1};
        return true;
    }
    const struct walsh_linear *gate = &layer->gate, *up = &layer->up, *down = &layer->down;
    step -= 2;
    if (layer->experts) {
        if (step == 0) {
            *site = (struct walsh_site){{&layer->router}, 1};
            return true;
        }
        step--;
        if (step / 2 >= experts) return false;
        const struct walsh_expert *expert = &layer->experts[step / 2];
        gate = &expert->gate;
        up = &expert->up;
        down = &expert->down;
        step %= 2;
    }
    if (step > 1) return false;
    *site = step == 0 ? (struct walsh_site){{gate, up}, 2} : (struct walsh_site){{down}, 1};
    return true;
}

bool walsh_site_next(struct walsh_site_walk *walk, struct walsh_site *site)
{
    const struct walsh_model_graph *g = walk->graph;
    for (; walk->layer < g->config.layers; walk->layer++, walk->step = 0)
        if (layer_site(&g->layers[walk->layer], g->config.experts, walk->step++, site)) return true;
    *site = (struct walsh_site){{&g->head}, 1};
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
