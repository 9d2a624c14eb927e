/* api/shapes: synthetic models by their dimensions. */
#ifndef WALSH_API_SHAPES_H
#define WALSH_API_SHAPES_H

#include "walsh.h"

#include "checkpoint/config.h"

/* The config of a shape, checked: WALSH_E_ARGUMENT names the dimension that cannot be. */
enum walsh_status walsh_shape_config(const struct walsh_shape *shape, struct walsh_config *out,
                                     struct walsh_error *err);

/* Bytes of weights and tables of such a model, `bits` per weight of the layers' linears (0: bf16); padding
 * not counted. */
uint64_t walsh_shape_bytes(const struct walsh_config *config, unsigned bits);

#endif
