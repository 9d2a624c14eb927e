/* walsh finetune: a LoRA adapter of a model, trained on texts. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "app.h"
#include "files.h"
#include "output.h"

struct finetune_settings {
    struct command command;
    const char *data, *output, *targets, *schedule, *eval;
    int64_t rank, batch_size, accumulation, steps, warmup, eval_every, patience, save_every, keep, seed;
    double alpha, epochs, rate, last_rate, weight_decay, clip, beta1, beta2, eval_share;
    bool experts, checkpoint_layers, resume;
};

#define AT(member) offsetof(struct finetune_settings, member)
#define INTEGER(long_name, member, low, high, text)                                                          \
    .name = long_name, .argument = "N", .kind = OPTION_INTEGER, .least = low, .most = high,                  \
    .offset = AT(member), .help = text
#define REAL(long_name, member, low, high, text)                                                             \
    .name = long_name, .argument = "X", .kind = OPTION_REAL, .least = low, .most = high,                     \
    .offset = AT(member), .help = text
#define TEXT(long_name, word, member, text)                                                                  \
    .name = long_name, .argument = word, .kind = OPTION_TEXT, .offset = AT(member), .help = text

static const struct option finetune_options[] = {
    {TEXT("data", "PATH", data, "what to learn: a text, a *.jsonl, or a directory of both")},
    {TEXT("output", "DIR", output, "directory of the adapter, its checkpoints and logs"), .letter = 'o'},
    {INTEGER("rank", rank, 1, 256, "rank of the updates"), .fallback = "16"},
    {REAL("alpha", alpha, 0, 1e6, "updates are scaled by alpha / rank"), .fallback = "32"},
    {TEXT("targets", "LIST", targets, "modules to train: all-linear, or names as q_proj,v_proj"),
     .fallback = "all-linear"},
    {.name = "experts", .kind = OPTION_FLAG, .offset = AT(experts), .help = "train the experts too"},
    {INTEGER("steps", steps, 1, 1e12, "optimizer steps; default: what the epochs take")},
    {REAL("epochs", epochs, 1e-6, 1e6, "times through the data"), .fallback = "1"},
    {INTEGER("batch-size", batch_size, 1, 1e6, "sequences that are computed at once"), .fallback = "1"},
    {INTEGER("grad-accumulation", accumulation, 1, 1e6, "batches of a step"),
     .aliases = "gradient-accumulation", .fallback = "8"},
    {REAL("learning-rate", rate, 1e-12, 1e3, "peak of the learning rate"), .aliases = "lr",
     .fallback = "3e-4"},
    {.name = "schedule",
     .argument = "NAME",
     .kind = OPTION_CHOICE,
     .choices = "cosine|linear|constant",
     .fallback = "cosine",
     .offset = AT(schedule),
     .help = "how the learning rate falls after its warm-up"},
    {REAL("last-rate", last_rate, 0, 1, "share of the peak that the schedule ends at"), .fallback = "0.02"},
    {INTEGER("warmup", warmup, 0, 1e9, "steps over which the rate rises"), .fallback = "20"},
    {REAL("weight-decay", weight_decay, 0, 1e3, "AdamW's decay"), .fallback = "0.01"},
    {REAL("clip", clip, 0, 1e9, "largest norm of a gradient; 0: any"), .fallback = "1"},
    {REAL("beta1", beta1, 0, 0.999999, "AdamW's memory of gradients"), .fallback = "0.9"},
    {REAL("beta2", beta2, 0, 0.999999, "AdamW's memory of their squares"), .fallback = "0.999"},
    {.name = "checkpoint-layers",
     .kind = OPTION_FLAG,
     .offset = AT(checkpoint_layers),
     .help = "keep only the layers' inputs and compute the rest again: less memory, more time"},
    {TEXT("eval", "PATH", eval, "validate on this data")},
    {REAL("eval-share", eval_share, 0, 0.999, "hold back this share of the data and validate on it")},
    {INTEGER("eval-every", eval_every, 1, 1e12, "steps between validations; default: behind the last only")},
    {INTEGER("patience", patience, 1, 1e6,
             "stop after this many validations without improvement, and keep the best adapter")},
    {INTEGER("save-every", save_every, 1, 1e12, "steps between checkpoints")},
    {INTEGER("keep", keep, 0, 1e6, "checkpoints that stay, the newest; 0: all"), .fallback = "2"},
    {INTEGER("seed", seed, 0, 9e18, "seed of the first A and of the data's order"), .letter = 's',
     .fallback = "42"},
    {.name = "resume",
     .kind = OPTION_FLAG,
     .offset = AT(resume),
     .help = "go on with the newest checkpoint in DIR, bit for bit"},
    {0},
};

/* Loss and rate beside the bar; a line for each validation. */
static void on_step(void *user, const struct walsh_finetune_step *step)
{
    struct progress *progress = user;
    snprintf(progress->detail, sizeof progress->detail, "loss %.4f, %.0f tokens/s", step->loss,
             step->seconds > 0 ? (double)step->tokens / step->seconds : 0);
    if (!isnan(step->eval_loss))
        progress_note(progress, "step %llu: loss %.4f, validation %.4f (perplexity %.4f)",
                      (unsigned long long)step->step, step->loss, step->eval_loss, exp(step->eval_loss));
}

static struct walsh_finetune_options read_settings(struct finetune_settings *s)
{
    struct walsh_finetune_options o = WALSH_FINETUNE_OPTIONS;
    o.data = s->data;
    o.output = s->output;
    o.rank = (uint32_t)s->rank;
    o.alpha = s->alpha;
    o.targets = s->targets;
    o.experts = s->experts;
    o.context = s->command.context == OPTION_UNSET ? 0 : (uint32_t)s->command.context;
    o.batch_size = (uint32_t)s->batch_size;
    o.gradient_accumulation = (uint32_t)s->accumulation;
    o.steps = s->steps == OPTION_UNSET ? 0 : (uint64_t)s->steps;
    o.epochs = s->epochs;
    o.learning_rate = s->rate;
    o.last_rate = s->last_rate;
    o.schedule = strcmp(s->schedule, "linear") == 0     ? WALSH_FINETUNE_LINEAR
                 : strcmp(s->schedule, "constant") == 0 ? WALSH_FINETUNE_CONSTANT
                                                        : WALSH_FINETUNE_COSINE;
    o.warmup = (uint64_t)s->warmup;
    o.weight_decay = s->weight_decay;
    o.clip = s->clip;
    o.beta1 = s->beta1;
    o.beta2 = s->beta2;
    o.checkpoint_layers = s->checkpoint_layers;
    o.eval = s->eval;
    o.eval_share = isnan(s->eval_share) ? 0 : s->eval_share;
    o.eval_every = s->eval_every == OPTION_UNSET ? 0 : (uint64_t)s->eval_every;
    o.patience = s->patience == OPTION_UNSET ? 0 : (uint32_t)s->patience;
    o.save_every = s->save_every == OPTION_UNSET ? 0 : (uint64_t)s->save_every;
    o.keep = (uint32_t)s->keep;
    o.seed = (uint64_t)s->seed;
    o.resume = s->resume;
    o.products = command_activations(&s->command);
    o.no_mmap = s->command.no_mmap;
    o.on_step = on_step;
    o.user = &s->command.progress;
    return o;
}

static enum walsh_status print_json(const struct walsh_finetune_report *r, struct walsh_error *err)
{
    json_t *object = json_object();
    json_put_integer(object, "steps", r->steps);
    json_put_integer(object, "tokens", r->tokens);
    json_put_real(object, "loss", r->loss);
    if (!isnan(r->eval_loss)) {
        json_put_real(object, "eval_loss", r->eval_loss);
        json_put_real(object, "best_eval_loss", r->best_eval_loss);
    }
    json_put_integer(object, "parameters", r->parameters);
    json_put_integer(object, "memory_bytes", r->memory_bytes);
    json_put_real(object, "seconds", r->seconds);
    json_put_real(object, "tokens_per_second", r->seconds > 0 ? (double)r->tokens / r->seconds : 0);
    json_object_set_new(object, "stopped_early", json_boolean(r->stopped_early));
    return json_print(object, err);
}

static void print_text(const struct finetune_settings *settings, const struct walsh_finetune_report *r)
{
    printf("wrote an adapter of %llu parameters to %s\n", (unsigned long long)r->parameters,
           settings->output);
    printf("%llu steps, %llu tokens in %.1f s (%.0f tokens/s), loss %.4f", (unsigned long long)r->steps,
           (unsigned long long)r->tokens, r->seconds, r->seconds > 0 ? (double)r->tokens / r->seconds : 0,
           r->loss);
    if (!isnan(r->eval_loss)) printf(", validation %.4f", r->eval_loss);
    printf("\n");
}

static enum walsh_status run_finetune(struct command *command, struct walsh_error *err)
{
    struct finetune_settings *settings = (struct finetune_settings *)command;
    if (!settings->data || !settings->output)
        return fail(err, WALSH_E_ARGUMENT, "--%s is missing", settings->data ? "output" : "data");
    const struct walsh_finetune_options options = read_settings(settings);
    char *source;
    TRY(model_find(command->arguments[0], &source, err));
    struct walsh_context *context;
    struct walsh_finetune_report report = {.struct_size = sizeof report};
    enum walsh_status status = command_open_context(command, &context, err);
    if (status == WALSH_OK) {
        status = walsh_finetune(context, source, &options, &report, err);
        walsh_context_close(&context);
    }
    free(source);
    progress_clear(&command->progress);
    if (status == WALSH_E_ABORTED)
        return fail(err, WALSH_E_ABORTED, "stopped after %llu steps; the same command with --resume goes on",
                    (unsigned long long)report.steps);
    if (status != WALSH_OK) return status;
    if (command->json) return print_json(&report, err);
    print_text(settings, &report);
    return WALSH_OK;
}

const struct verb verb_finetune = {
    .name = "finetune",
    .usage = "MODEL --data PATH --output DIR",
    .summary = "train a LoRA adapter of a model",
    .details = "MODEL is a Hugging Face directory, in full or low precision, or an id in the local cache; it "
               "stays as it is. PATH is a "
               "text, a file of JSON lines ({\"text\"}, {\"prompt\", \"completion\"} or {\"messages\"}), or "
               "a directory of both. DIR "
               "gets the adapter as the PEFT library writes it, log.csv, loss.svg and, with --save-every, "
               "checkpoints; `walsh run "
               "MODEL --adapter DIR` uses it.",
    .positionals = {"MODEL"},
    .least_arguments = 1,
    .options = finetune_options,
    .uses = USES_THREADS | USES_CONTEXT | USES_DEVICE | USES_ACTIVATIONS | USES_CPU | USES_NO_MMAP,
    .settings_size = sizeof(struct finetune_settings),
    .run = run_finetune,
};
