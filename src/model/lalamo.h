/* model/lalamo: graphs of lalamo's checkpoints (checkpoint/lalamo.h). Private to model/. */
#ifndef WALSH_MODEL_LALAMO_H
#define WALSH_MODEL_LALAMO_H

#include "model/build.h"

/* walsh_graph_build with the checkpoint of `graph` as its source. */
enum walsh_status walsh_lalamo_build(struct walsh_model_graph *graph,
                                     const struct walsh_load_options *options, struct walsh_pool *pool,
                                     struct walsh_error *err);

#endif
