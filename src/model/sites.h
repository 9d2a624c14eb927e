/* model/sites: the calls of the forward pass, each with the linears that read one x there. What holds for
 * every linear of a graph (their numbers, the plan of an adapter, what quantization reads) is made by this
 * walk, so that nothing can be forgotten. */
#ifndef WALSH_MODEL_SITES_H
#define WALSH_MODEL_SITES_H

#include "model/model.h"

#define WALSH_SITE_LINEARS 3

struct walsh_site {
    const struct walsh_linear *linears[WALSH_SITE_LINEARS];
    unsigned count;
    enum walsh_tap_point point; /* where calibration sees x; of a router and of the head nowhere */
    uint32_t expert;            /* 0: none */
    bool router;
};
/* Site `step` of a layer, from 0 on, in the order of the forward pass; false behind the last. */
bool walsh_layer_site(const struct walsh_layer *layer, uint32_t experts, uint32_t step,
                      struct walsh_site *site);
/* Zeroed but for the graph, then stepped. */
struct walsh_site_walk {
    const struct walsh_model_graph *graph;
    uint32_t layer, step;
};
/* The next site in the order of the forward pass; false behind the head. */
bool walsh_site_next(struct walsh_site_walk *walk, struct walsh_site *site);

/* Set walsh_linear.index of every linear to its number in the walk; returns how many there are. */
uint32_t walsh_graph_number(struct walsh_model_graph *graph);

#endif
