/* runtime/prefix_identity: the root of the key chain of a prefix store: everything besides tokens that a bit
 * of a computed key or value depends on. What is missing here would be a wrong answer, so whatever may matter
 * is in. May use model and below. */
#ifndef WALSH_RUNTIME_PREFIX_IDENTITY_H
#define WALSH_RUNTIME_PREFIX_IDENTITY_H

#include "cache/prefix_key.h"
#include "model/adapter.h"

/* The model: config.json as it is, and of each safetensors file its size and an XXH3-128 per 4 MiB of all of
 * it. Reads every byte of the files once, on all threads, about as long as a decode step of a dense model
 * takes. It tells changed weights from unchanged ones, however they changed; it does not withstand somebody
 * who forges weights to collide. A synthetic model has no files: WALSH_E_UNSUPPORTED. */
enum walsh_status walsh_prefix_model_key(const struct walsh_model_graph *graph,
                                         const struct walsh_queue *queue, struct walsh_prefix_key *key,
                                         struct walsh_error *err);

struct walsh_prefix_root {
    const struct walsh_prefix_key *model;
    const struct walsh_model_graph *graph;
    const struct walsh_queue *queue;
    const struct walsh_kv_shape *shape;
    const struct walsh_adapter_set *adapters; /* NULL: none */
    const void *salt;                         /* [salt_size]: sessions of different salts share nothing */
    size_t salt_size;
    const char *build; /* NULL: this build's; for tests */
};
/* The model's key, the weights, scales and order of the adapters, what the cache stores, the chunk length,
 * the type of each linear's activations, the machine's instruction sets and the kernels chosen for them, the
 * C library (whose functions the kernels' references call), this build of walsh and the salt. */
enum walsh_status walsh_prefix_root_key(const struct walsh_prefix_root *root, struct walsh_prefix_key *key,
                                        struct walsh_error *err);

#endif
