/* The finetune job. */
#include "train/job.h"

#include <math.h>

#include "api/api.h"

struct watcher {
    void (*on_step)(void *user, const struct walsh_finetune_step *step);
    void *user;
};

static void pass_on(void *user, const struct walsh_train_step *s)
{
    const struct watcher *w = user;
    const struct walsh_finetune_step step = {.struct_size = sizeof step,
                                             .step = s->step,
                                             .steps = s->steps,
                                             .loss = s->loss,
                                             .learning_rate = s->rate,
                                             .gradient_norm = s->gradient_norm,
                                             .tokens = s->tokens,
                                             .seconds = s->seconds,
                                             .eval_loss = s->eval_loss};
    w->on_step(w->user, &step);
}

static enum walsh_status compute_type(const struct walsh_context *context, enum walsh_activation_mode mode,
                                      enum walsh_activation_type *out, struct walsh_error *err)
{
    const bool has_bf16 = walsh_queue_has_bf16(&context->queue);
    *out = WALSH_ACTIVATION_F32;
    switch (mode) {
    case WALSH_ACTIVATIONS_F32:
        return WALSH_OK;
    case WALSH_ACTIVATIONS_AUTO:
        if (has_bf16) *out = WALSH_ACTIVATION_BF16;
        return WALSH_OK;
    case WALSH_ACTIVATIONS_BF16:
        *out = WALSH_ACTIVATION_BF16;
        return WALSH_OK;
    default:
        return walsh_fail(err, WALSH_E_UNSUPPORTED,
                          "training multiplies in f32 or bf16; int8 is for inference");
    }
}

static enum walsh_status job_options(const struct walsh_finetune_options *o, struct walsh_train_job *out,
                                     struct walsh_error *err)
{
    static const enum walsh_schedule schedules[] = {WALSH_SCHEDULE_COSINE, WALSH_SCHEDULE_LINEAR,
                                                    WALSH_SCHEDULE_CONSTANT};
    if (!o->data || !o->output || !o->targets)
        return walsh_fail(err, WALSH_E_ARGUMENT, "finetune needs data, an output directory and targets");
    if ((unsigned)o->schedule >= sizeof schedules / sizeof *schedules)
        return walsh_fail(err, WALSH_E_ARGUMENT, "schedule is %d, expected cosine, linear or constant",
                          (int)o->schedule);
    *out = (struct walsh_train_job){
        .data = o->data,
        .output = o->output,
        .parameters = {.rank = o->rank, .alpha = o->alpha, .targets = o->targets, .experts = o->experts},
        .context = o->context,
        .batch = o->batch_size,
        .accumulation = o->gradient_accumulation,
        .steps = o->steps,
        .epochs = o->epochs,
        .rate = o->learning_rate,
        .last_rate = o->last_rate,
        .schedule = schedules[o->schedule],
        .warmup = o->warmup,
        .weight_decay = o->weight_decay,
        .clip = o->clip,
        .beta1 = o->beta1,
        .beta2 = o->beta2,
        .checkpoint_layers = o->checkpoint_layers,
        .eval = o->eval,
        .eval_share = o->eval_share,
        .eval_every = o->eval_every,
        .patience = o->patience,
        .save_every = o->save_every,
        .keep = o->keep,
        .seed = o->seed,
        .resume = o->resume};
    return WALSH_OK;
}

enum walsh_status walsh_finetune(struct walsh_context *context, const char *src,
                                 const struct walsh_finetune_options *options,
                                 struct walsh_finetune_report *report, struct walsh_error *err)
{
    struct walsh_finetune_options o = WALSH_FINETUNE_OPTIONS;
    struct walsh_train_job job;
    struct walsh_train_report done;
    WALSH_TRY(walsh_options_read(&o, sizeof o, options, "walsh_finetune_options", err));
    WALSH_TRY(job_options(&o, &job, err));
    WALSH_TRY(compute_type(context, o.products, &job.compute, err));
    struct watcher watcher = {o.on_step, o.user};
    if (o.on_step) job.on_step = pass_on;
    job.user = &watcher;
    const struct walsh_load_options load = {
        .use_mmap = !o.no_mmap, .tokenizer = true, .rotated = WALSH_ACTIVATION_F32, .dense = job.compute};
    struct walsh_model_graph *graph;
    WALSH_TRY(walsh_graph_open(src, &load, &context->queue, &graph, err));
    const enum walsh_status status = walsh_train(graph, &context->queue, &context->hooks, &job, &done, err);
    walsh_graph_close(&graph);
    const struct walsh_finetune_report r = {.struct_size = sizeof r,
                                            .steps = done.steps,
                                            .tokens = done.tokens,
                                            .loss = done.loss,
                                            .eval_loss = done.eval_loss,
                                            .best_eval_loss = done.best_eval_loss,
                                            .parameters = done.parameters,
                                            .memory_bytes = done.memory_bytes,
                                            .seconds = done.seconds,
                                            .stopped_early = done.stopped_early};
    if (report) walsh_result_write(report, &r, sizeof r);
    return status;
}
