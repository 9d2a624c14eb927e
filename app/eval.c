/* walsh eval: perplexity of a model on a text, and its distance from a reference model. */
#include <stdio.h>

#include "adapters.h"
#include "files.h"
#include "kv.h"

struct eval_settings {
    struct command command;
    const char *text, *reference;
    struct kv_settings kv;
    int64_t max_tokens;
    struct option_texts adapters;
};

#define AT(member) offsetof(struct eval_settings, member)

static const struct option eval_options[] = {
    {.name = "text",
     .letter = 'f',
     .aliases = "file",
     .argument = "FILE",
     .kind = OPTION_TEXT,
     .offset = AT(text),
     .help = "UTF-8 text to score, - for standard input"},
    {.name = "reference",
     .argument = "MODEL",
     .kind = OPTION_TEXT,
     .offset = AT(reference),
     .help = "also report the KL divergence from MODEL and how often both prefer the same token"},
    {.name = "max-tokens",
     .argument = "N",
     .kind = OPTION_INTEGER,
     .least = 2,
     .most = 1e15,
     .offset = AT(max_tokens),
     .help = "stop after the first N tokens of the text; default: all"},
    KV_OPTIONS(AT(kv)),
    KV_MEASUREMENT_OPTIONS(AT(kv)),
    {.name = "adapter",
     .aliases = "lora",
     .argument = ADAPTER_ARGUMENT,
     .kind = OPTION_TEXTS,
     .offset = AT(adapters),
     .help = ADAPTER_HELP},
    {0},
};

static enum walsh_status print_result(const struct command *command, const struct walsh_eval_result *result,
                                      struct walsh_error *err)
{
    if (command->json) {
        json_t *object = json_object();
        json_put_real(object, "ppl", result->ppl);
        json_put_real(object, "ppl_error", result->ppl_error);
        json_put_real(object, "nll", result->nll);
        json_put_integer(object, "tokens", result->tokens);
        json_put_integer(object, "context", result->context);
        json_put_real(object, "seconds", result->seconds);
        if (result->has_reference) {
            json_put_real(object, "kl", result->kl);
            json_put_real(object, "top1_agreement", result->top1_agreement);
        }
        return json_print(object, err);
    }
    printf("perplexity  %.4f +- %.4f\n", result->ppl, result->ppl_error);
    printf("nll         %.6f nats per token\n", result->nll);
    printf("tokens      %llu scored, context %u\n", (unsigned long long)result->tokens, result->context);
    if (result->has_reference) {
        printf("kl          %.6f nats per token from the reference\n", result->kl);
        printf("top-1       %.2f%% as the reference\n", 100 * result->top1_agreement);
    }
    printf("seconds     %.1f (%.0f tokens/s)\n", result->seconds, (double)result->tokens / result->seconds);
    return WALSH_OK;
}

static enum walsh_status evaluate(struct eval_settings *settings, struct walsh_context *context,
                                  const struct text *text, struct walsh_error *err)
{
    struct command *command = &settings->command;
    struct walsh_model *model = NULL, *reference = NULL;
    struct walsh_eval_options options = WALSH_EVAL_OPTIONS;
    struct walsh_eval_result result = {.struct_size = sizeof result};
    options.context = command->context == OPTION_UNSET ? 0 : (uint32_t)command->context;
    options.max_tokens = settings->max_tokens == OPTION_UNSET ? 0 : (uint64_t)settings->max_tokens;
    enum walsh_status status = kv_options(&settings->kv, &options.kv, err);
    if (status == WALSH_OK) status = command_open_model(command, context, command->arguments[0], &model, err);
    if (status == WALSH_OK && settings->reference)
        status = command_open_model(command, context, settings->reference, &reference, err);
    options.reference = reference;
    struct adapter_list adapters = {0};
    if (status == WALSH_OK) status = adapters_open(command, model, &settings->adapters, 0, &adapters, err);
    options.adapters = adapters.uses;
    options.adapter_count = adapters.count;
    if (status == WALSH_OK) status = walsh_eval_text(model, text->data, text->size, &options, &result, err);
    progress_clear(&command->progress);
    if (status == WALSH_OK) status = print_result(command, &result, err);
    adapters_close(&adapters);
    walsh_model_close(&reference);
    walsh_model_close(&model);
    return status;
}

static enum walsh_status run_eval(struct command *command, struct walsh_error *err)
{
    struct eval_settings *settings = (struct eval_settings *)command;
    if (!settings->text) return fail(err, WALSH_E_ARGUMENT, "--text FILE is missing");
    struct text text;
    TRY(file_read(settings->text, &text, err));
    struct walsh_context *context = NULL;
    enum walsh_status status = command_open_context(command, &context, err);
    if (status == WALSH_OK) status = evaluate(settings, context, &text, err);
    walsh_context_close(&context);
    text_free(&text);
    return status;
}

const struct verb verb_eval = {
    .name = "eval",
    .usage = "MODEL --text FILE",
    .summary = "measure the perplexity of a model on a text",
    .details = "The text is encoded once, without special tokens, and cut into chunks of --context tokens "
               "(default: the "
               "smaller of 2048 and the model's maximum); the tail is dropped; tokens 2..n of each chunk are "
               "scored. "
               "The error is one standard error over the scored tokens.",
    .positionals = {"MODEL"},
    .least_arguments = 1,
    .options = eval_options,
    .uses = USES_MODEL | USES_CONTEXT,
    .settings_size = sizeof(struct eval_settings),
    .run = run_eval,
};
