/* Evaluation. */
#include "runtime/eval.h"

#include <math.h>

#include "api/api.h"
#include "base/clock.h"

#define DEFAULT_CONTEXT 2048u

enum walsh_status walsh_eval_ids(const struct walsh_model *model, const int32_t *ids, size_t count,
                                 const struct walsh_eval_options *options, struct walsh_eval_result *result,
                                 struct walsh_error *err)
{
    double start = walsh_now();
    struct walsh_eval_options o = WALSH_EVAL_OPTIONS;
    WALSH_TRY(walsh_options_read(&o, sizeof o, options, "walsh_eval_options", err));
    uint32_t most = model->graph->config.max_positions;
    uint32_t context = o.context ? o.context : most < DEFAULT_CONTEXT ? most : DEFAULT_CONTEXT;
    if (o.max_tokens && o.max_tokens < count) count = o.max_tokens;
    struct walsh_kv_policy policy;
    WALSH_TRY(walsh_model_kv_policy(model, &o.kv, &policy, err));
    struct walsh_adapter_choice choices[WALSH_MAX_ADAPTERS];
    WALSH_TRY(walsh_adapter_choices(o.adapters, o.adapter_count, choices, err));
    struct walsh_evaluation e;
    WALSH_TRY(walsh_runtime_eval(model->runner, o.reference ? o.reference->runner : NULL, ids, count, context,
                                 &policy, choices, o.adapter_count, &e, err));
    const struct walsh_eval_result r = {
        .struct_size = sizeof r,
        .nll = e.nll,
        .ppl = exp(e.nll),
        .ppl_error = exp(e.nll) * e.nll_error, /* delta method: d exp(m) = exp(m) dm */
        .tokens = e.tokens,
        .context = context,
        .seconds = walsh_now() - start,
        .has_reference = o.reference != NULL,
        .kl = e.kl,
        .top1_agreement = e.top1_agreement,
    };
    walsh_result_write(result, &r, sizeof r);
    return WALSH_OK;
}

enum walsh_status walsh_eval_text(const struct walsh_model *model, const char *text, size_t size,
                                  const struct walsh_eval_options *options, struct walsh_eval_result *result,
                                  struct walsh_error *err)
{
    int32_t *ids;
    size_t count;
    WALSH_TRY(walsh_model_encode(model, text, size, 0, &ids, &count, err));
    enum walsh_status status = walsh_eval_ids(model, ids, count, options, result, err);
    walsh_free(ids);
    return status;
}
