/* app/adapters: --adapter options become adapters of a model. */
#ifndef WALSH_APP_ADAPTERS_H
#define WALSH_APP_ADAPTERS_H

#include <jansson.h>

#include "app.h"

#define ADAPTER_ARGUMENT "[NAME=]DIR[:SCALE]"
#define ADAPTER_HELP                                                                                         \
    "use the LoRA adapter in DIR, its effect times SCALE [1]; may be repeated, the effects add up"

/* The adapters of a command in the order of its options. */
struct adapter_list {
    struct walsh_adapter_use uses[OPTION_MANY];
    struct walsh_adapter *adapters[OPTION_MANY]; /* uses[i].adapter, ours to close */
    size_t count;
};
enum {
    ADAPTERS_SYNTHETIC = 1, /* `random:r=N` is a synthetic adapter of rank N */
    ADAPTERS_EXACT = 2      /* in f32, as their files have them */
};
/* Open them all; two of the same name are wrong usage. */
enum walsh_status adapters_open(const struct command *command, const struct walsh_model *model,
                                const struct option_texts *options, unsigned flags, struct adapter_list *out,
                                struct walsh_error *err);
void adapters_close(struct adapter_list *list);
/* An array of an object for each: name, scale, ranks, bytes. */
json_t *adapters_json(const struct adapter_list *list);

/* A synthetic adapter as `random:r=N` asks for, number `seed`; NULL in *out and WALSH_OK where the option
 * names a directory. */
enum walsh_status adapter_random(const struct walsh_model *model, const char *option, uint64_t seed,
                                 struct walsh_adapter **out, struct walsh_error *err);

#endif
