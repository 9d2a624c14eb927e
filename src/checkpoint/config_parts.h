/* checkpoint/config_parts: what the files of the config's parser share. Private to this folder. */
#ifndef WALSH_CHECKPOINT_CONFIG_PARTS_H
#define WALSH_CHECKPOINT_CONFIG_PARTS_H

#include "checkpoint/config.h"
#include "checkpoint/json.h"

#define WALSH_MAX_CONFIG_POSITIONS (1u << 28)

/* A key that changes the arithmetic and must have the one value that walsh computes. */
enum walsh_status walsh_must_be_false(const struct walsh_json_object *o, const char *key,
                                      struct walsh_error *err);
enum walsh_status walsh_must_be_number(const struct walsh_json_object *o, const char *key, double expected,
                                       struct walsh_error *err);

/* window and layer_flags; the shape has been read. */
enum walsh_status walsh_config_read_layers(const struct walsh_json_object *o, struct walsh_config *c,
                                           struct walsh_error *err);
/* rope, local_rope and rotary_dim; the shape has been read. */
enum walsh_status walsh_config_read_rope(const struct walsh_json_object *o, struct walsh_config *c,
                                         struct walsh_error *err);

#endif
