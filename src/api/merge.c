/* Merging adapters into a checkpoint. */
#include "quantize/merge.h"

#include "api/api.h"

enum walsh_status walsh_merge(const struct walsh_model *model, const struct walsh_adapter_use *uses,
                              size_t count, const char *dst, enum walsh_merge_type type, uint64_t *bytes,
                              struct walsh_error *err)
{
    struct walsh_adapter_choice choices[WALSH_MAX_ADAPTERS];
    uint64_t written = 0;
    if (type != WALSH_MERGE_BF16 && type != WALSH_MERGE_F32)
        return walsh_fail(err, WALSH_E_ARGUMENT, "type is %d, expected bf16 or f32", (int)type);
    WALSH_TRY(walsh_adapter_choices(uses, count, choices, err));
    struct walsh_merging merging = {.graph = model->graph,
                                    .dtype = type == WALSH_MERGE_F32 ? WALSH_F32 : WALSH_BF16};
    struct walsh_adapter_set *set = NULL;
    WALSH_TRY(walsh_context_needs_cpu(model->context, "merge", err));
    if (count > 0 && choices[0].adapter->graph != model->graph)
        return walsh_fail(err, WALSH_E_ARGUMENT, "adapter %s belongs to another model",
                          choices[0].adapter->name);
    if (count > 0) WALSH_TRY(walsh_adapter_set_open(choices, count, &set, err));
    merging.set = set;
    const struct walsh_context *context = model->context;
    const enum walsh_status status =
        walsh_merge_job(&context->queue, &context->hooks, &merging, dst, &written, err);
    walsh_adapter_set_close(&set);
    if (bytes) *bytes = written;
    return status;
}
