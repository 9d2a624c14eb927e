#include "train/job.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/machine.h"
#include "kernels/device.h"
#include "kernels/table.h"
#include "train/data.h"
#include "train/output.h"
#include "train/pass.h"

#define DEFAULT_CONTEXT 1024
#define PANELS_SHARE 2 /* panels are kept where everything together takes less than this part of the memory */

struct train {
    const struct walsh_model_graph *graph;
    const struct walsh_queue *queue;
    const struct walsh_hooks *hooks;
    struct walsh_train_job job; /* with its defaults filled in */
    struct walsh_train_report *report;
    struct walsh_data data, eval_data;
    struct walsh_reader reader, eval_reader;
    struct walsh_packed *batches; /* [accumulation] */
    struct walsh_packed eval_batch;
    struct walsh_parameters parameters;
    struct walsh_pass pass;
    struct walsh_adamw adamw;
    struct walsh_train_state state;
    char identity[1024];
    uint64_t last_saved;
    bool panels;        /* of bf16 weights are kept */
    void *device_block; /* on a device: both moments and the gradient's norm */
    struct walsh_arena arena;
    struct walsh_error *err;
};

/* --- before the first step --- */

static enum walsh_status check_job(const struct train *t)
{
    const struct walsh_train_job *j = &t->job;
    struct walsh_error *err = t->err;
    const uint32_t most = t->graph->config.max_positions;
    if (!t->graph->tokenizer)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: training needs the model's tokenizer.json",
                          t->graph->checkpoint.directory);
    if (j->context < 2 || j->context > most)
        return walsh_fail(err, WALSH_E_ARGUMENT, "a context of %u tokens, expected 2 to %u", j->context,
                          most);
    if (t->graph->rope.short_positions && j->context > t->graph->rope.short_positions)
        return walsh_fail(
            err, WALSH_E_UNSUPPORTED,
            "a context of %u tokens: training uses the short factors of longrope, which are for "
            "at most %u",
            j->context, t->graph->rope.short_positions);
    if (j->batch < 1 || j->accumulation < 1)
        return walsh_fail(err, WALSH_E_ARGUMENT, "batch size and gradient accumulation must be at least 1");
    if (j->steps == 0 && !(j->epochs > 0))
        return walsh_fail(err, WALSH_E_ARGUMENT, "neither steps nor epochs are given");
    if (!(j->rate > 0) || !isfinite(j->rate) || !(j->last_rate >= 0 && j->last_rate <= 1))
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "a learning rate of %g that ends at %g of it: expected a positive one, and 0 to 1",
                          j->rate, j->last_rate);
    if (j->eval && j->eval_share > 0)
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "a validation file and a share of the data to validate on exclude each other");
    if (j->eval_share < 0 || j->eval_share >= 1)
        return walsh_fail(err, WALSH_E_ARGUMENT, "a share of %g to validate on, expected 0 to less than 1",
                          j->eval_share);
    if (j->patience > 0 && !j->eval && j->eval_share == 0)
        return walsh_fail(err, WALSH_E_ARGUMENT, "stopping early needs something to validate on");
    return WALSH_OK;
}

static enum walsh_status open_data(struct train *t)
{
    struct walsh_train_job *j = &t->job;
    walsh_progress(t->hooks, "reading data", 0, 1, "files");
    WALSH_TRY(walsh_data_open(t->graph, j->data, j->context, &t->data, t->err));
    if (j->eval) WALSH_TRY(walsh_data_open(t->graph, j->eval, j->context, &t->eval_data, t->err));
    if (j->eval_share > 0)
        WALSH_TRY(walsh_data_split(&t->data, j->eval_share, j->seed, &t->eval_data, t->err));
    WALSH_TRY(walsh_reader_open(&t->data, j->seed, true, &t->reader, t->err));
    if (t->eval_data.piece_count > 0)
        WALSH_TRY(walsh_reader_open(&t->eval_data, 0, false, &t->eval_reader, t->err));
    const uint64_t sequences = walsh_reader_sequences(&t->reader),
                   per_step = (uint64_t)j->batch * j->accumulation;
    if (j->steps == 0) {
        const double steps = ceil(j->epochs * (double)sequences / (double)per_step);
        if (steps > 1e12) return walsh_fail(t->err, WALSH_E_ARGUMENT, "%g epochs are too many", j->epochs);
        j->steps = (uint64_t)fmax(steps, 1);
    }
    walsh_log(
        t->hooks, WALSH_LOG_INFO,
        "%zu documents, %zu tokens in %llu sequences of up to %u; %llu steps of %llu sequences (%.2f epochs)",
        t->data.documents, t->data.tokens, (unsigned long long)sequences, j->context,
        (unsigned long long)j->steps, (unsigned long long)per_step,
        (double)j->steps * (double)per_step / (double)sequences);
    return WALSH_OK;
}

static struct walsh_pass_options pass_options(const struct train *t)
{
    return (struct walsh_pass_options){.layers = {.compute = t->job.compute,
                                                  .max_rows = (size_t)t->job.batch * t->job.context,
                                                  .max_rank = t->job.parameters.rank,
                                                  .narrow = t->job.parameters.narrow,
                                                  .panels = t->panels,
                                                  .loras = t->parameters.by_linear},
                                       .checkpoint = t->job.checkpoint_layers};
}

/* Pairs, values, gradients, transposes, two moments; the image of a checkpoint's file; where it may stop early, the
 * best values. */
static uint64_t adapter_bytes(const struct train *t, size_t parameters, size_t pairs)
{
    return (uint64_t)pairs * sizeof(uint32_t) +
           (uint64_t)parameters * sizeof(float) * (t->job.patience > 0 ? 5 + 4 + 1 : 5 + 3);
}

/* What the device has to hold beside the model: `activations`, and values, gradients, moments and pairs. */
static enum walsh_status check_device_memory(struct train *t, uint64_t activations, size_t parameters,
                                             size_t pairs)
{
    size_t available, total;
    const uint64_t bytes =
        activations + 4 * (uint64_t)parameters * sizeof(float) + (uint64_t)pairs * sizeof(uint32_t);
    t->queue->memory->figures(t->queue, &available, &total);
    t->report->memory_bytes = bytes;
    walsh_log(t->hooks, WALSH_LOG_INFO, "%.2f GB of the device's memory, of which %.2f of %.2f GB are free",
              (double)bytes / 1e9, (double)available / 1e9, (double)total / 1e9);
    if (bytes <= available) return WALSH_OK;
    return walsh_fail(
        t->err, WALSH_E_MEMORY,
        "training takes %.2f GB on the device beside the model, %.2f of %.2f GB are free (%sa smaller "
        "batch size or context takes less)",
        (double)bytes / 1e9, (double)available / 1e9, (double)total / 1e9,
        t->job.checkpoint_layers ? "" : "checkpointed layers, ");
}

/* Refuse what cannot fit before anything large is allocated. */
static enum walsh_status check_memory(struct train *t)
{
    size_t parameters, pairs;
    WALSH_TRY(walsh_parameters_count(t->graph, &t->job.parameters, &parameters, &pairs, t->err));
    struct walsh_pass_options options = pass_options(t);
    const uint64_t adapter = adapter_bytes(t, parameters, pairs);
    options.layers.panels = true;
    t->panels =
        walsh_pass_bytes(t->graph, t->queue, &options) + adapter <= walsh_memory_available() / PANELS_SHARE;
    options.layers.panels = t->panels;
    const uint64_t activations = walsh_pass_bytes(t->graph, t->queue, &options);
    t->report->parameters = parameters;
    t->report->memory_bytes = activations + adapter;
    walsh_log(t->hooks, WALSH_LOG_INFO,
              "training %zu parameters; memory: %.2f GB of activations, %.2f GB of adapter and optimizer",
              parameters, (double)activations / 1e9, (double)adapter / 1e9);
    if (t->queue->memory) {
        WALSH_TRY(check_device_memory(t, activations, parameters, pairs));
        return walsh_memory_check("training (of the host's memory)", adapter, t->err);
    }
    const char *advice = t->job.checkpoint_layers
                             ? "training (a smaller batch size or context takes less)"
                             : "training (checkpointed layers, a smaller batch size or context take less)";
    return walsh_memory_check(advice, t->report->memory_bytes, t->err);
}

static enum walsh_status open_batches(struct train *t)
{
    const struct walsh_train_job *j = &t->job;
    WALSH_TRY(
        walsh_arena_alloc(&t->arena, j->accumulation, sizeof *t->batches, "batches", &t->batches, t->err));
    for (uint32_t i = 0; i < j->accumulation; i++)
        WALSH_TRY(walsh_packed_open(j->context, j->batch, &t->batches[i], t->err));
    return walsh_packed_open(j->context, j->batch, &t->eval_batch, t->err);
}

/* What a resumed job must bring again, a line for each. */
static void describe(struct train *t)
{
    const struct walsh_train_job *j = &t->job;
    static const char *const schedules[] = {"constant", "linear", "cosine"};
    const struct walsh_config *c = &t->graph->config;
    snprintf(
        t->identity, sizeof t->identity,
        "model %s, %u layers, hidden %u, vocabulary %u\nrank %u\nalpha %.17g\ntargets %.200s\nexperts "
        "%d\nproducts in %s\n"
        "data %016llx, held back %016llx\ncontext %u\nbatch size %u\ngradient accumulation %u\nsteps %llu\n"
        "learning rate %.17g\nlast rate %.17g\nschedule %s\nwarm-up %llu\nweight decay %.17g\nclip %.17g\n"
        "betas %.17g %.17g\nvalidation every %llu\npatience %u\nseed %llu\n%s",
        c->architecture_name, c->layers, c->hidden, c->vocab, j->parameters.rank, j->parameters.alpha,
        j->parameters.targets, j->parameters.experts, j->compute == WALSH_ACTIVATION_BF16 ? "bf16" : "f32",
        (unsigned long long)walsh_data_hash(&t->data), (unsigned long long)walsh_data_hash(&t->eval_data),
        j->context, j->batch, j->accumulation, (unsigned long long)j->steps, j->rate, j->last_rate,
        schedules[j->schedule], (unsigned long long)j->warmup, j->weight_decay, j->clip, j->beta1, j->beta2,
        (unsigned long long)j->eval_every, j->patience, (unsigned long long)j->seed,
        t->queue->memory ? "on a device\n" : "");
}

static enum walsh_status open_state(struct train *t)
{
    struct walsh_train_state *s = &t->state;
    const size_t n = t->parameters.count;
    *s = (struct walsh_train_state){.values = t->parameters.values, .count = n, .best = INFINITY};
    WALSH_TRY(walsh_arena_alloc(&t->arena, n, sizeof(float), "the optimizer", &s->m, t->err));
    WALSH_TRY(walsh_arena_alloc(&t->arena, n, sizeof(float), "the optimizer", &s->v, t->err));
    if (t->job.patience > 0)
        WALSH_TRY(
            walsh_arena_alloc(&t->arena, n, sizeof(float), "the best adapter", &s->best_values, t->err));
    t->adamw = (struct walsh_adamw){.beta1 = t->job.beta1,
                                    .beta2 = t->job.beta2,
                                    .epsilon = 1e-8,
                                    .weight_decay = t->job.weight_decay,
                                    .clip = t->job.clip,
                                    .m = s->m,
                                    .v = s->v,
                                    .count = n};
    struct walsh_random random;
    walsh_random_seed(&random, walsh_mix64(t->job.seed));
    walsh_parameters_init(&t->parameters, &random);
    return WALSH_OK;
}

/* The adapter and its moments go to the device, where they stay: t->state has what was saved last. */
static enum walsh_status send_state(struct train *t)
{
    const struct walsh_queue *q = t->queue;
    const size_t bytes = t->parameters.count * sizeof(float);
    if (!q->memory) return WALSH_OK;
    WALSH_TRY(walsh_parameters_upload(&t->parameters, q, t->err));
    WALSH_TRY(walsh_queue_alloc(q, sizeof(double) + 2 * bytes, "the optimizer", &t->device_block, t->err));
    t->adamw.length = t->device_block;
    t->adamw.m = (float *)(t->adamw.length + 1);
    t->adamw.v = t->adamw.m + t->parameters.count;
    WALSH_TRY(walsh_queue_upload(q, t->adamw.m, t->state.m, bytes, t->err));
    return walsh_queue_upload(q, t->adamw.v, t->state.v, bytes, t->err);
}

/* And come back, to be written. */
static enum walsh_status fetch_state(struct train *t)
{
    struct walsh_train_state *s = &t->state;
    WALSH_TRY(walsh_parameters_download(&t->parameters, t->parameters.values, s->values, t->err));
    WALSH_TRY(walsh_parameters_download(&t->parameters, t->adamw.m, s->m, t->err));
    return walsh_parameters_download(&t->parameters, t->adamw.v, s->v, t->err);
}

/* The output directory, new or gone on with. */
static enum walsh_status open_output(struct train *t)
{
    const char *output = t->job.output;
    bool found = false;
    if (mkdir(output, 0777) != 0 && errno != EEXIST)
        return walsh_fail_errno(t->err, errno, "%s: cannot be made", output);
    if (!walsh_path_is_directory(output))
        return walsh_fail(t->err, WALSH_E_IO, "%s: it is no directory", output);
    if (!t->job.resume && walsh_output_used(output))
        return walsh_fail(t->err, WALSH_E_ARGUMENT,
                          "%s: it holds an adapter or checkpoints already; resume, or choose another",
                          output);
    if (!t->job.resume) return WALSH_OK;
    WALSH_TRY(walsh_checkpoint_load(&t->state, &t->job, t->identity, t->data.piece_count, &found, t->err));
    if (!found) {
        walsh_log(t->hooks, WALSH_LOG_INFO,
                  "%s: there is no checkpoint to go on with; beginning at the first step", output);
        return WALSH_OK;
    }
    t->adamw.steps = t->state.optimizer_steps;
    t->last_saved = t->state.step;
    walsh_reader_seek(&t->reader, t->state.epoch, t->state.next);
    walsh_log(t->hooks, WALSH_LOG_INFO, "going on behind step %llu", (unsigned long long)t->state.step);
    return WALSH_OK;
}

static enum walsh_status open_train(struct train *t)
{
    if (t->graph->config.architecture == WALSH_ARCH_LALAMO)
        return walsh_fail(t->err, WALSH_E_UNSUPPORTED, "%s: training does not know checkpoints of lalamo",
                          t->graph->checkpoint.directory);
    if (t->job.context == 0) {
        const uint32_t short_positions = t->graph->rope.short_positions;
        t->job.context = (uint32_t)walsh_min(DEFAULT_CONTEXT, t->graph->config.max_positions);
        if (short_positions) t->job.context = (uint32_t)walsh_min(t->job.context, short_positions);
    }
    WALSH_TRY(walsh_pass_check(t->graph, t->queue, t->err));
    t->job.parameters.narrow = t->job.compute == WALSH_ACTIVATION_BF16 && walsh_lora_narrow(t->queue);
    WALSH_TRY(check_job(t));
    WALSH_TRY(check_memory(t));
    WALSH_TRY(open_data(t));
    WALSH_TRY(open_batches(t));
    WALSH_TRY(walsh_parameters_open(t->graph, &t->job.parameters, &t->parameters, t->err));
    describe(t);
    WALSH_TRY(open_state(t));
    WALSH_TRY(open_output(t));
    WALSH_TRY(send_state(t));
    const struct walsh_pass_options options = pass_options(t);
    return walsh_pass_open(t->graph, t->queue, &options, &t->pass, t->err);
}

static void close_train(struct train *t)
{
    walsh_pass_close(&t->pass);
    walsh_parameters_close(&t->parameters);
    walsh_queue_free(t->queue, t->device_block);
    for (uint32_t i = 0; t->batches && i < t->job.accumulation; i++) walsh_packed_close(&t->batches[i]);
    walsh_packed_close(&t->eval_batch);
    walsh_reader_close(&t->reader);
    walsh_reader_close(&t->eval_reader);
    walsh_data_close(&t->eval_data);
    walsh_data_close(&t->data);
    walsh_free(t->state.log);
    walsh_arena_close(&t->arena);
}

/* --- steps --- */

static struct walsh_train_batch view(const struct walsh_packed *p)
{
    return (struct walsh_train_batch){
        p->ids, p->targets, {.begin = p->begin, .count = p->documents}, p->rows};
}

/* The mean loss over the held-back data. */
static enum walsh_status evaluate(struct train *t, double *loss)
{
    double sum = 0;
    size_t counted = 0;
    const uint64_t total = walsh_reader_sequences(&t->eval_reader);
    uint64_t done = 0;
    walsh_parameters_refresh(&t->parameters, t->queue);
    walsh_reader_seek(&t->eval_reader, 0, 0);
    t->pass.forward_only = true;
    enum walsh_status status = WALSH_OK;
    while (status == WALSH_OK && walsh_reader_next(&t->eval_reader, t->job.batch, false, &t->eval_batch)) {
        const struct walsh_train_batch batch = view(&t->eval_batch);
        double part;
        size_t count;
        status = walsh_pass_run(&t->pass, &batch, 0, &part, &count, t->err);
        if (status != WALSH_OK) break;
        sum += part;
        counted += count;
        done = walsh_min(done + t->job.batch, total);
        walsh_progress(t->hooks, "validating", (double)done, (double)total, "sequences");
        status = walsh_check_abort(t->hooks, t->err);
    }
    t->pass.forward_only = false;
    *loss = sum / (double)walsh_max(counted, 1);
    return status;
}

/* Gradients of a whole step: each batch weighs as many tokens as it counts. On an abort the reader is where
 * the step began. */
static enum walsh_status gradients(struct train *t, double *loss, uint64_t *tokens)
{
    struct walsh_train_state *s = &t->state;
    size_t counted = 0;
    double sum = 0;
    *tokens = 0;
    for (uint32_t i = 0; i < t->job.accumulation; i++) {
        walsh_reader_next(&t->reader, t->job.batch, true, &t->batches[i]);
        counted += t->batches[i].counted;
        *tokens += t->batches[i].rows;
    }
    walsh_parameters_refresh(&t->parameters, t->queue);
    walsh_queue_zero(t->queue, t->parameters.gradients, t->parameters.count * sizeof(float));
    for (uint32_t i = 0; i < t->job.accumulation; i++) {
        const enum walsh_status status = walsh_check_abort(t->hooks, t->err);
        if (status != WALSH_OK) {
            walsh_reader_seek(&t->reader, s->epoch, s->next);
            return status;
        }
        const struct walsh_train_batch batch = view(&t->batches[i]);
        double part;
        size_t count;
        WALSH_TRY(walsh_pass_run(&t->pass, &batch, 1 / (float)counted, &part, &count, t->err));
        sum += part;
    }
    *loss = sum / (double)counted;
    return WALSH_OK;
}

/* Validation behind step `now`; *stop: it has not become better for too long. */
static enum walsh_status validate(struct train *t, uint64_t now, struct walsh_train_step *step, bool *stop)
{
    struct walsh_train_state *s = &t->state;
    const uint64_t every = t->job.eval_every;
    const bool due = now == t->job.steps || (every > 0 && now % every == 0);
    if (t->eval_data.piece_count == 0 || !due) return WALSH_OK;
    WALSH_TRY(evaluate(t, &step->eval_loss));
    if (step->eval_loss < s->best) {
        s->best = step->eval_loss;
        s->stale = 0;
        if (s->best_values)
            WALSH_TRY(
                walsh_parameters_download(&t->parameters, t->parameters.values, s->best_values, t->err));
    } else {
        s->stale++;
    }
    *stop = t->job.patience > 0 && s->stale >= t->job.patience;
    return WALSH_OK;
}

static enum walsh_status run_step(struct train *t, bool *stop)
{
    const struct walsh_train_job *j = &t->job;
    struct walsh_train_state *s = &t->state;
    const double started = walsh_now();
    const double rate =
        j->rate * walsh_schedule_factor(j->schedule, s->step, j->steps, j->warmup, j->last_rate);
    struct walsh_train_step step = {.step = s->step + 1, .steps = j->steps, .rate = rate, .eval_loss = NAN};
    WALSH_TRY(gradients(t, &step.loss, &step.tokens));
    WALSH_TRY(walsh_adamw_step(&t->adamw, t->queue, t->parameters.values, t->parameters.gradients, rate,
                               &step.gradient_norm, t->err));
    if (!isfinite(step.gradient_norm) || !isfinite(step.loss))
        return walsh_fail(t->err, WALSH_E_FORMAT,
                          "step %llu: loss %g, norm of the gradient %g: a smaller learning rate may help",
                          (unsigned long long)step.step, step.loss, step.gradient_norm);
    step.seconds = walsh_now() - started;
    s->optimizer_steps = t->adamw.steps;
    s->epoch = t->reader.epoch;
    s->next = t->reader.next;
    WALSH_TRY(walsh_log_reserve(s, (size_t)step.step, t->err));
    s->step = step.step;
    s->log[step.step - 1] = step; /* before validation, which may be aborted */
    const enum walsh_status status = validate(t, s->step, &step, stop);
    s->log[step.step - 1] = step;
    t->report->tokens += step.tokens;
    t->report->loss = step.loss;
    if (!isnan(step.eval_loss)) t->report->eval_loss = step.eval_loss;
    if (j->on_step) j->on_step(j->user, &step);
    return status;
}

static enum walsh_status save(struct train *t)
{
    if (t->state.step == 0 || t->last_saved == t->state.step) return WALSH_OK;
    WALSH_TRY(fetch_state(t));
    WALSH_TRY(walsh_checkpoint_save(&t->parameters, &t->state, &t->job, t->identity, t->err));
    t->last_saved = t->state.step;
    return WALSH_OK;
}

static enum walsh_status run_steps(struct train *t)
{
    const struct walsh_train_job *j = &t->job;
    struct walsh_train_state *s = &t->state;
    bool stop = j->patience > 0 && s->stale >= j->patience;
    walsh_progress(t->hooks, "training", (double)s->step, (double)j->steps, "steps");
    while (s->step < j->steps && !stop) {
        const uint64_t before = s->step;
        const enum walsh_status status = run_step(t, &stop);
        if (status == WALSH_E_ABORTED && s->step == before) { /* whole steps only: what is finished is kept */
            WALSH_TRY(save(t));
            return status;
        }
        if (status != WALSH_OK) return status;
        walsh_progress(t->hooks, "training", (double)s->step, (double)j->steps, "steps");
        if (j->save_every > 0 && s->step % j->save_every == 0) WALSH_TRY(save(t));
        if (t->last_saved == s->step || s->step == j->steps || stop) {
            WALSH_TRY(walsh_log_write(j->output, s->log, (size_t)s->step, t->err));
            WALSH_TRY(walsh_plot_write(j->output, s->log, (size_t)s->step, t->err));
        }
    }
    t->report->stopped_early = stop && s->step < j->steps;
    if (stop)
        walsh_log(t->hooks, WALSH_LOG_INFO, "stopped at step %llu: validation does not improve",
                  (unsigned long long)s->step);
    WALSH_TRY(fetch_state(t));
    const bool best = s->best_values && isfinite(s->best);
    return walsh_adapter_save(j->output, &t->parameters, best ? s->best_values : s->values, j, t->err);
}

enum walsh_status walsh_train(const struct walsh_model_graph *graph, const struct walsh_queue *queue,
                              const struct walsh_hooks *hooks, const struct walsh_train_job *job,
                              struct walsh_train_report *report, struct walsh_error *err)
{
    struct train t = {
        .graph = graph, .queue = queue, .hooks = hooks, .job = *job, .report = report, .err = err};
    const double started = walsh_now();
    *report = (struct walsh_train_report){.loss = NAN, .eval_loss = NAN, .best_eval_loss = NAN};
    enum walsh_status status = open_train(&t);
    if (status == WALSH_OK) status = run_steps(&t);
    report->steps = t.state.step;
    if (isfinite(t.state.best) && t.eval_data.piece_count > 0) report->best_eval_loss = t.state.best;
    report->seconds = walsh_now() - started;
    close_train(&t);
    return status;
}
