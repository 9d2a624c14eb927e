#include "runtime/prefix_identity.h"

#include <string.h>
#include <xxhash.h>

#include "base/machine.h"
#include "kernels/device.h"
#include "runtime/runner.h"
#include "walsh_build_key.h"

#ifdef __GLIBC__
#include <gnu/libc-version.h>
#endif

#define FORMAT 1 /* of the keys; the blocks' files have a version of their own */
#define SEGMENT ((size_t)4 << 20)

typedef struct walsh_prefix_digest digest;

/* ---- the model */

struct hashing {
    const struct walsh_file *file;
    XXH128_canonical_t *hashes; /* [segments] */
};

static void hash_segments(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct hashing *h = argument;
    for (size_t i = begin; i < end; i++) {
        const size_t at = i * SEGMENT;
        XXH128_canonicalFromHash(&h->hashes[i],
                                 XXH3_128bits(h->file->data + at, walsh_min(h->file->size - at, SEGMENT)));
    }
}

static enum walsh_status add_file(digest *d, const struct walsh_file *file, const struct walsh_queue *queue,
                                  struct walsh_error *err)
{
    const size_t segments = walsh_div_up(file->size, SEGMENT);
    struct hashing h = {.file = file};
    WALSH_TRY(walsh_alloc(segments, sizeof *h.hashes, "hashes of a model's files", &h.hashes, err));
    walsh_pool_run(queue->pool, segments, 1, hash_segments, &h);
    walsh_prefix_digest_number(d, "file", file->size);
    walsh_prefix_digest_add(d, "content", h.hashes, segments * sizeof *h.hashes);
    walsh_free(h.hashes);
    return WALSH_OK;
}

static enum walsh_status add_model(digest *d, const struct walsh_model_graph *graph,
                                   const struct walsh_queue *queue, struct walsh_error *err)
{
    const struct walsh_checkpoint *ck = &graph->checkpoint;
    if (ck->file_count == 0)
        return walsh_fail(err, WALSH_E_UNSUPPORTED,
                          "a synthetic model has no files to know it by: no prefix store");
    walsh_prefix_digest_add(d, "config.json", ck->config_json, ck->config_size);
    if (ck->shell.count > 0)
        walsh_prefix_digest_add(d, "codebook", ck->shell.twice, ck->shell.count * sizeof *ck->shell.twice);
    for (size_t i = 0; i < ck->file_count; i++) WALSH_TRY(add_file(d, &ck->files[i].file, queue, err));
    return WALSH_OK;
}

enum walsh_status walsh_prefix_model_key(const struct walsh_model_graph *graph,
                                         const struct walsh_queue *queue, struct walsh_prefix_key *key,
                                         struct walsh_error *err)
{
    digest *d;
    WALSH_TRY(walsh_prefix_digest_open(&d, err));
    enum walsh_status status = add_model(d, graph, queue, err);
    if (status == WALSH_OK) status = walsh_prefix_digest_finish(d, key, err);
    walsh_prefix_digest_close(&d);
    return status;
}

/* ---- what else matters */

static enum walsh_status add_matrix(digest *d, const struct walsh_queue *queue, const char *name,
                                    const struct walsh_adapter_linear *u, const void *matrix, size_t elements,
                                    struct walsh_error *err)
{
    XXH128_canonical_t hash;
    const size_t bytes = elements * (u->storage == WALSH_FORMAT_BF16 ? 2 : 4);
    uint8_t *copy = NULL; /* of a device's */
    enum walsh_status status = WALSH_OK;
    if (queue->memory) {
        WALSH_TRY(walsh_alloc(bytes, 1, "an adapter's matrix", &copy, err));
        status = walsh_queue_download(queue, copy, matrix, bytes, err);
    }
    if (status == WALSH_OK) {
        XXH128_canonicalFromHash(&hash, XXH3_128bits(copy ? copy : matrix, bytes));
        walsh_prefix_digest_add(d, name, &hash, sizeof hash);
    }
    walsh_free(copy);
    return status;
}

static enum walsh_status add_adapter(digest *d, const struct walsh_queue *queue,
                                     const struct walsh_adapter_choice *choice, struct walsh_error *err)
{
    const struct walsh_adapter *adapter = choice->adapter;
    walsh_prefix_digest_add(d, "adapter scale", &choice->scale, sizeof choice->scale);
    walsh_prefix_digest_number(d, "adapter linears", adapter->count);
    for (size_t i = 0; i < adapter->count; i++) {
        const struct walsh_adapter_linear *u = &adapter->updates[i];
        const uint32_t shape[] = {adapter->linears[i]->index, u->rank, u->in, u->out, (uint32_t)u->storage};
        walsh_prefix_digest_add(d, "update", shape, sizeof shape);
        WALSH_TRY(add_matrix(d, queue, "A", u, u->a, walsh_low_rank_a_size(u->rank, u->in), err));
        WALSH_TRY(
            add_matrix(d, queue, "B", u, u->b, walsh_low_rank_b_size(u->storage, u->rank, u->out), err));
    }
    return WALSH_OK;
}

static void add_cache(digest *d, const struct walsh_kv_shape *shape)
{
    const struct walsh_kv_policy *p = &shape->policy;
    const uint64_t numbers[] = {WALSH_KV_PAGE, shape->layers,  shape->kv_heads, shape->head_dim, p->type,
                                p->key_bits,   p->value_bits,  p->skip,         p->recent,       p->seed,
                                p->prod_keys,  p->no_rotation, p->no_correction};
    walsh_prefix_digest_add(d, "cache", numbers, sizeof numbers);
    for (uint32_t layer = 0; layer < shape->layers; layer++)
        walsh_prefix_digest_number(d, "layer's cache", walsh_kv_layer_type(shape, layer));
}

static void add_linears(digest *d, const struct walsh_model_graph *graph)
{
    for (size_t i = 0; i < graph->tensor_count; i++) {
        const struct walsh_graph_tensor *t = &graph->tensors[i];
        walsh_prefix_digest_text(d, "tensor", t->name);
        if (t->weights) walsh_prefix_digest_text(d, "format", walsh_format_name(t->weights->format));
        if (t->linear) walsh_prefix_digest_number(d, "activations", t->linear->activation);
    }
    walsh_prefix_digest_number(d, "head's activations", graph->head.activation);
}

static void add_device(digest *d, const struct walsh_queue *queue)
{
    const char *kernel, *implementation;
    if (queue->memory) {
        char device[400];
        queue->memory->identify(queue, device, sizeof device);
        walsh_prefix_digest_text(d, "device", device);
        return;
    }
    walsh_prefix_digest_text(d, "device", "cpu");
    walsh_prefix_digest_text(d, "instruction sets", walsh_cpu_features());
    for (size_t i = 0; walsh_queue_kernel(queue, i, &kernel, &implementation); i++)
        walsh_prefix_digest_text(d, kernel, implementation);
#ifdef __GLIBC__
    walsh_prefix_digest_text(d, "C library", gnu_get_libc_version());
#endif
}

enum walsh_status walsh_prefix_root_key(const struct walsh_prefix_root *root, struct walsh_prefix_key *key,
                                        struct walsh_error *err)
{
    digest *d;
    const struct walsh_adapter_set *set = root->adapters;
    WALSH_TRY(walsh_prefix_digest_open(&d, err));
    walsh_prefix_digest_number(d, "walsh prefix", FORMAT);
    walsh_prefix_digest_text(d, "build", root->build ? root->build : WALSH_BUILD_KEY);
    walsh_prefix_digest_add(d, "salt", root->salt, root->salt_size);
    walsh_prefix_digest_add(d, "model", root->model->bytes, sizeof root->model->bytes);
    walsh_prefix_digest_number(d, "chunk", WALSH_CHUNK_ROWS);
    add_linears(d, root->graph);
    add_cache(d, root->shape);
    walsh_prefix_digest_number(d, "rope rows", walsh_graph_rope_offset(root->graph, root->shape->capacity));
    add_device(d, root->queue);
    walsh_prefix_digest_number(d, "adapters", set ? set->count : 0);
    enum walsh_status status = WALSH_OK;
    for (size_t i = 0; set && i < set->count && status == WALSH_OK; i++)
        status = add_adapter(d, root->queue, &set->choices[i], err);
    if (status == WALSH_OK) status = walsh_prefix_digest_finish(d, key, err);
    walsh_prefix_digest_close(&d);
    return status;
}
