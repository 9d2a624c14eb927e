/* api: what the files that implement walsh.h share. They validate options, fill in defaults and delegate; the
 * work is below.
 */
#ifndef WALSH_API_API_H
#define WALSH_API_API_H

#include <pthread.h>

#include "walsh.h"

#include "kernels/device.h"
#include "model/model.h"
#include "runtime/sampler.h"
#include "runtime/session.h"

struct walsh_context {
    struct walsh_pool *pool;
    struct walsh_queue
        queue; /* what models run on; a device's keeps the CPU's pool and kernels for host work */
    const struct walsh_device_module *module; /* of the queue's device; NULL: the CPU */
    unsigned device_number;
    struct walsh_hooks hooks;
    pthread_mutex_t ops_lock; /* of the calls of walsh_ops.h, which take turns on the pool */
};
/* WALSH_E_UNSUPPORTED where the context's device is not the CPU; `what` begins the message. */
enum walsh_status walsh_context_needs_cpu(const struct walsh_context *context, const char *what,
                                          struct walsh_error *err);

/* What the first grammar of a model makes. */
struct walsh_lazy_tokens {
    pthread_mutex_t lock;
    struct walsh_token_bytes *bytes; /* NULL: not yet */
};
struct walsh_model {
    struct walsh_context *context;
    struct walsh_model_graph *graph;
    struct walsh_runner *runner;
    enum walsh_activation_mode requested;
    bool in_memory; /* the files were read, not mapped */
    struct walsh_lazy_tokens *tokens;
};

/* WALSH_E_NOT_FOUND where the model has no tokenizer. */
enum walsh_status walsh_model_needs_tokenizer(const struct walsh_model *model, struct walsh_error *err);
/* Encode with WALSH_ENCODE_... flags; ids beyond the model's vocabulary are refused. The model has a
 * tokenizer. */
enum walsh_status walsh_encode_checked(const struct walsh_model *model, const char *text, size_t size,
                                       unsigned encode, int32_t **ids, size_t *count,
                                       struct walsh_error *err);

/* Copy the caller's struct, whose first member is its size, over the defaults in *out of `size` bytes:
 * members that the caller's version does not have keep them. NULL: all defaults. A struct_size of 0 or beyond
 * `size`: WALSH_E_ARGUMENT. */
enum walsh_status walsh_options_read(void *out, size_t size, const void *options, const char *what,
                                     struct walsh_error *err);
/* Copy `size` bytes of result into the caller's struct as far as its struct_size goes; struct_size itself is
 * kept. */
void walsh_result_write(void *out, const void *result, size_t size);

/* The public list as the library knows it, [WALSH_MAX_ADAPTERS]; a longer one or a NULL adapter:
 * WALSH_E_ARGUMENT. */
enum walsh_status walsh_adapter_choices(const struct walsh_adapter_use *uses, size_t count,
                                        struct walsh_adapter_choice *out, struct walsh_error *err);

/* The capacity that options.context means. */
uint32_t walsh_default_context(const struct walsh_model *model, uint32_t context);

/* The public options as the library knows them, for a vocabulary of `vocab` ids; `graph`, where not NULL, is
 * the one that o->model must be, if any. */
enum walsh_status walsh_sampling_read(const struct walsh_sampler_options *options,
                                      const struct walsh_model_graph *graph, uint32_t vocab,
                                      struct walsh_sampling *out, struct walsh_error *err);

/* What a cache of this model stores: WALSH_KV_CACHE_AUTO and defaults resolved. */
enum walsh_status walsh_model_kv_policy(const struct walsh_model *model,
                                        const struct walsh_kv_options *options, struct walsh_kv_policy *out,
                                        struct walsh_error *err);

#endif
