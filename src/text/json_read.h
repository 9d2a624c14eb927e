/* text/json_read: members of JSON objects with messages that name what was found. */
#ifndef WALSH_TEXT_JSON_READ_H
#define WALSH_TEXT_JSON_READ_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

/* The whole file as one JSON object, duplicate keys refused; messages start with the path. json_decref. */
enum walsh_status walsh_json_read_file(const char *path, size_t max_size, json_t **out,
                                       struct walsh_error *err);

/* "string", "object", ...; "nothing" for NULL. */
const char *walsh_json_type_name(const json_t *value);

/* object[key] where it is there and not null, else NULL. */
json_t *walsh_json_member(const json_t *object, const char *key);

/* Typed members. `where` names the object in messages; a missing or null bool gives `otherwise`. */
enum walsh_status walsh_json_member_bool(const json_t *object, const char *where, const char *key,
                                         bool otherwise, bool *out, struct walsh_error *err);
enum walsh_status walsh_json_member_string(const json_t *object, const char *where, const char *key,
                                           const char **out, struct walsh_error *err);
/* An integer of [0, limit). */
enum walsh_status walsh_json_index(const json_t *value, const char *what, uint32_t limit, uint32_t *out,
                                   struct walsh_error *err);

#endif
