/* Small model directories for the tests of checkpoint: configs and safetensors files under the temporary
 * directory. Include after unit/temporary.h. */
#ifndef WALSH_TESTS_CHECKPOINT_FILES_H
#define WALSH_TESTS_CHECKPOINT_FILES_H

#include "base/memory.h"
#include "checkpoint/safetensors.h"

/* The smallest config.json, with further keys: "" or ",\"key\":value" */
#define SMALL_CONFIG_WITH(keys)                                                                              \
    "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":4,\"intermediate_size\":8,"                   \
    "\"num_hidden_layers\":1,\"num_attention_heads\":2,\"vocab_size\":16,\"max_position_embeddings\":"       \
    "32" keys "}"
#define SMALL_CONFIG SMALL_CONFIG_WITH("")

/* One tensor of a file that a test writes */
struct planned {
    const char *name;
    enum walsh_dtype dtype;
    unsigned rank;
    uint64_t shape[4];
    const void *data; /* NULL: zeros */
};

static inline void put_text(const char *path, const char *text)
{
    struct walsh_error err = {0};
    if (walsh_file_write(path, text, strlen(text), &err) != WALSH_OK) fail_msg("%s", err.message);
}

static inline void put_tensors(const char *path, const struct planned *tensors, size_t count)
{
    struct walsh_error err = {0};
    struct walsh_safetensors_plan plan = {0};
    uint8_t *file;
    for (size_t i = 0; i < count; i++)
        if (walsh_plan_add(&plan, tensors[i].name, tensors[i].dtype, tensors[i].rank, tensors[i].shape, &err))
            fail_msg("%s", err.message);
    if (walsh_plan_finish(&plan, &err)) fail_msg("%s", err.message);
    if (walsh_alloc_zero(plan.file_bytes, 1, "a file", &file, &err)) fail_msg("%s", err.message);
    memcpy(file, plan.header, plan.header_bytes);
    for (size_t i = 0; i < count; i++) {
        size_t at = walsh_plan_find(&plan, tensors[i].name);
        if (tensors[i].data) memcpy(file + plan.offsets[at], tensors[i].data, plan.tensors[at].bytes);
    }
    if (walsh_file_write(path, file, plan.file_bytes, &err)) fail_msg("%s", err.message);
    walsh_free(file);
    walsh_plan_close(&plan);
}

#endif
