/* app/shape: shapes of synthetic models, by name or from a file. */
#ifndef WALSH_APP_SHAPE_H
#define WALSH_APP_SHAPE_H

#include "walsh.h"

/* `shape`: a name that walsh knows, or the path of a JSON file with the keys of a Hugging Face config.json
 * (hidden_size, num_hidden_layers, ...). out->name is `shape`. */
enum walsh_status shape_find(const char *shape, struct walsh_shape *out, struct walsh_error *err);

#endif
