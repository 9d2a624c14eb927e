/* Adapters, and sessions that use them. */
#include <string.h>

#include "api/api.h"

/* An adapter that was just made goes where the model is. */
static enum walsh_status place(const struct walsh_model *model, struct walsh_adapter **adapter,
                               struct walsh_error *err)
{
    const enum walsh_status status = walsh_adapter_upload(*adapter, &model->context->queue, err);
    if (status != WALSH_OK) walsh_adapter_release(adapter);
    return status;
}

/* The last component of a path, without the slashes behind it, into `name`. */
static void name_of_path(const char *path, char *name, size_t size)
{
    size_t end = strlen(path);
    while (end > 1 && path[end - 1] == '/') end--;
    size_t begin = end;
    while (begin > 0 && path[begin - 1] != '/') begin--;
    const size_t length = walsh_min(end - begin, size - 1);
    memcpy(name, path + begin, length);
    name[length] = 0;
}

static enum walsh_status read_options(const struct walsh_model *model,
                                      const struct walsh_adapter_options *options,
                                      struct walsh_adapter_options *o, enum walsh_format *storage,
                                      struct walsh_error *err)
{
    *o = (struct walsh_adapter_options)WALSH_ADAPTER_OPTIONS;
    WALSH_TRY(walsh_options_read(o, sizeof *o, options, "walsh_adapter_options", err));
    switch (o->storage) {
    case WALSH_ADAPTER_AUTO:
        *storage = model->requested == WALSH_ACTIVATIONS_F32 ? WALSH_FORMAT_F32 : WALSH_FORMAT_BF16;
        return WALSH_OK;
    case WALSH_ADAPTER_BF16:
        *storage = WALSH_FORMAT_BF16;
        return WALSH_OK;
    case WALSH_ADAPTER_F32:
        *storage = WALSH_FORMAT_F32;
        return WALSH_OK;
    }
    return walsh_fail(err, WALSH_E_ARGUMENT, "storage is %d, expected auto, bf16 or f32", (int)o->storage);
}

enum walsh_status walsh_adapter_open(const struct walsh_model *model, const char *path,
                                     const struct walsh_adapter_options *options, struct walsh_adapter **out,
                                     struct walsh_error *err)
{
    *out = NULL;
    struct walsh_adapter_options o;
    struct walsh_adapter_loading loading;
    WALSH_TRY(read_options(model, options, &o, &loading.storage, err));
    loading.use_mmap = !o.no_mmap;
    char name[256];
    name_of_path(path, name, sizeof name);
    WALSH_TRY(walsh_adapter_load(o.name ? o.name : name, path, model->graph, &loading, &model->context->hooks,
                                 out, err));
    return place(model, out, err);
}

enum walsh_status walsh_adapter_random(const struct walsh_model *model, uint32_t rank, uint64_t seed,
                                       const struct walsh_adapter_options *options,
                                       struct walsh_adapter **out, struct walsh_error *err)
{
    *out = NULL;
    struct walsh_adapter_options o;
    enum walsh_format storage = WALSH_FORMAT_BF16;
    WALSH_TRY(read_options(model, options, &o, &storage, err));
    WALSH_TRY(
        walsh_adapter_synthesize(o.name ? o.name : "random", rank, seed, model->graph, storage, out, err));
    return place(model, out, err);
}

void walsh_adapter_close(struct walsh_adapter **adapter)
{
    if (adapter) walsh_adapter_release(adapter);
}

void walsh_adapter_get_info(const struct walsh_adapter *adapter, struct walsh_adapter_info *info)
{
    struct walsh_adapter_info result = {
        .struct_size = sizeof result,
        .name = adapter->name,
        .base_model = adapter->base_model,
        .format = walsh_format_name(adapter->count ? adapter->updates[0].storage : WALSH_FORMAT_BF16),
        .linears = (uint32_t)adapter->count,
        .parameters = adapter->parameters,
        .memory_bytes = adapter->bytes,
    };
    for (size_t i = 0; i < adapter->count; i++) {
        const uint32_t rank = adapter->updates[i].rank;
        if (i == 0 || rank < result.least_rank) result.least_rank = rank;
        if (rank > result.most_rank) result.most_rank = rank;
    }
    walsh_result_write(info, &result, sizeof result);
}

enum walsh_status walsh_adapter_choices(const struct walsh_adapter_use *uses, size_t count,
                                        struct walsh_adapter_choice *out, struct walsh_error *err)
{
    if (count > WALSH_MAX_ADAPTERS)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%zu adapters together, expected at most %d", count,
                          WALSH_MAX_ADAPTERS);
    for (size_t i = 0; i < count; i++) {
        if (!uses[i].adapter) return walsh_fail(err, WALSH_E_ARGUMENT, "adapter %zu of a list is NULL", i);
        /* const for its users; a choice counts references in it */
        out[i] =
            (struct walsh_adapter_choice){(struct walsh_adapter *)(uintptr_t)uses[i].adapter, uses[i].scale};
    }
    return WALSH_OK;
}

enum walsh_status walsh_session_set_adapters(struct walsh_session *session,
                                             const struct walsh_adapter_use *uses, size_t count,
                                             struct walsh_error *err)
{
    struct walsh_adapter_choice choices[WALSH_MAX_ADAPTERS];
    WALSH_TRY(walsh_adapter_choices(uses, count, choices, err));
    return walsh_runtime_set_adapters(session, choices, count, err);
}

uint64_t walsh_sessions_adapter_bytes(struct walsh_session *const *sessions, size_t count)
{
    const struct walsh_adapter_set **sets;
    if (walsh_alloc(count, sizeof(struct walsh_adapter_set *), "a list of sets", &sets, NULL) != WALSH_OK)
        return 0;
    for (size_t i = 0; i < count; i++) sets[i] = sessions[i]->adapters;
    const uint64_t bytes = walsh_adapter_sets_bytes(sets, count);
    walsh_free((void *)sets);
    return bytes;
}
