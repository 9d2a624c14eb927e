/* checkpoint/json: JSON files from strangers through jansson: depth capped, duplicate keys rejected, and
 * getters whose errors name the file and the key. Private to this folder. May use base. */
#ifndef WALSH_CHECKPOINT_JSON_H
#define WALSH_CHECKPOINT_JSON_H

#include <jansson.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define WALSH_JSON_MAX_DEPTH 64

/* Parse `size` bytes whose top level must be an object. `where` ("DIR/config.json") begins every message.
 * *out: json_decref. */
enum walsh_status walsh_json_parse(const char *where, const char *text, size_t size, json_t **out,
                                   struct walsh_error *err);

/* "a string", "an object", ...: what a message calls the value. */
const char *walsh_json_kind(const json_t *value);

/* Where a message says it is and what it looks in. */
struct walsh_json_object {
    const char *where;  /* the file */
    const char *prefix; /* "" or "rope_parameters.": before the key's name in messages */
    json_t *object;     /* borrowed; NULL: every key is absent */
};
/* Each getter leaves *out alone where the key is absent or null, unless `required`. */
enum walsh_status walsh_json_u32(const struct walsh_json_object *o, const char *key, bool required,
                                 uint32_t min, uint32_t max, uint32_t *out, struct walsh_error *err);
/* min < value (where open_min) or min <= value, and value <= max; integers are accepted. */
enum walsh_status walsh_json_double(const struct walsh_json_object *o, const char *key, bool required,
                                    double min, bool open_min, double max, double *out,
                                    struct walsh_error *err);
enum walsh_status walsh_json_bool(const struct walsh_json_object *o, const char *key, bool *out,
                                  struct walsh_error *err);
/* *out is borrowed from the object. */
enum walsh_status walsh_json_string(const struct walsh_json_object *o, const char *key, bool required,
                                    const char **out, struct walsh_error *err);
/* Every member but those of `known` (ended by NULL) must be off: null, false, 0, "", [] or {}. An error names
 * it otherwise. */
enum walsh_status walsh_json_only(const struct walsh_json_object *o, const char *const *known,
                                  struct walsh_error *err);
/* *out: the object's value at `key` for further getters, its object NULL where absent. `prefix` is "key.". */
enum walsh_status walsh_json_child(const struct walsh_json_object *o, const char *key, const char *prefix,
                                   struct walsh_json_object *out, struct walsh_error *err);

#endif
