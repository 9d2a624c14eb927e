/* app/prefix: the options of the prefix store. */
#ifndef WALSH_APP_PREFIX_H
#define WALSH_APP_PREFIX_H

#include <jansson.h>

#include "app.h"

struct prefix_settings {
    const char *path, *limit;
};

/* Lines of an option table; `at` is the offset of a struct prefix_settings in the verb's settings. */
#define PREFIX_OPTIONS(at)                                                                                   \
    {.name = "prefix-store",                                                                                 \
     .argument = "DIR",                                                                                      \
     .environment = "WALSH_PREFIX_STORE",                                                                    \
     .kind = OPTION_TEXT,                                                                                    \
     .offset = (at) + offsetof(struct prefix_settings, path),                                                \
     .help =                                                                                                 \
         "keep the cache of prompts in DIR, and take over what prompts have in common with earlier ones"},   \
    {                                                                                                        \
        .name = "prefix-store-limit", .environment = "WALSH_PREFIX_STORE_LIMIT", .argument = "SIZE",         \
        .kind = OPTION_TEXT, .offset = (at) + offsetof(struct prefix_settings, limit),                       \
        .help = "bytes that DIR may hold, with K, M, G or T for powers of 1024; default: 4G"                 \
    }

/* WALSH_E_ARGUMENT where the limit is no size or there is no store to limit. */
enum walsh_status prefix_check(const struct prefix_settings *settings, struct walsh_error *err);
struct prefix_use {
    struct walsh_prefix_store *store; /* NULL: none */
    double open_seconds;              /* opening it, and reading the model's files to know the model by */
};
/* The store of the options for the session; out->store stays NULL where none is
 * asked for. A directory that cannot
 * be used is a warning and no store; one that must not be used, because it is not private, is an error. */
enum walsh_status prefix_open(const struct prefix_settings *settings, struct command *command,
                              struct walsh_context *context, struct walsh_session *session,
                              struct prefix_use *out, struct walsh_error *err);
void prefix_close(struct prefix_use *use);
/* The store of the options by itself; *out stays NULL where none is asked for. */
enum walsh_status prefix_store_open(const struct prefix_settings *settings, struct walsh_context *context,
                                    struct walsh_prefix_store **out, struct walsh_error *err);

/* "prefix" of the JSON object: what the store did for the prompt whose first token took first_token_seconds.
 */
void prefix_put(json_t *object, const struct prefix_use *use, const struct walsh_session *session,
                double first_token_seconds);

#endif
