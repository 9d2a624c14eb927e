/* A step and what is drawn behind it. */
#include "base/memory.h"
#include "runtime/sampler.h"
#include "runtime/session.h"

static enum walsh_status plan_and_step(struct walsh_session *const *sessions,
                                       struct walsh_sampler *const *samplers, const int32_t *ids,
                                       size_t count, struct walsh_draw *plans, int32_t *next,
                                       struct walsh_error *err)
{
    for (size_t i = 0; i < count; i++) WALSH_TRY(walsh_sampler_plan(samplers[i], &plans[i], err));
    return walsh_runtime_step_draw(sessions, ids, count, plans, next, err);
}

enum walsh_status walsh_runtime_step_sample(struct walsh_session *const *sessions,
                                            struct walsh_sampler *const *samplers, const int32_t *ids,
                                            size_t count, int32_t *next, struct walsh_error *err)
{
    if (count == 0) return WALSH_OK;
    const bool draws = walsh_runtime_draws(sessions[0]->runner);
    enum walsh_status status = WALSH_OK;
    if (draws) {
        struct walsh_draw *plans;
        WALSH_TRY(walsh_alloc(count, sizeof *plans, "the draws of a step", &plans, err));
        status = plan_and_step(sessions, samplers, ids, count, plans, next, err);
        walsh_free(plans);
    } else {
        status = walsh_runtime_step(sessions, ids, count, err);
    }
    for (size_t i = 0; i < count && status == WALSH_OK; i++)
        status = draws && next[i] >= 0
                     ? walsh_sampler_take(samplers[i], next[i], err)
                     : walsh_sampler_choose(samplers[i], walsh_session_read(sessions[i]), &next[i], err);
    return status;
}
