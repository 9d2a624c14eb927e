/* walsh merge: a model and adapters become one checkpoint, plain or quantized again. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "adapters.h"
#include "files.h"
#include "output.h"

struct merge_settings {
    struct command command;
    const char *dtype, *format;
    int64_t bits;
    bool no_hessian;
    struct option_texts adapters;
};

#define AT(member) offsetof(struct merge_settings, member)

static const struct option merge_options[] = {
    {.name = "dtype",
     .argument = "TYPE",
     .kind = OPTION_CHOICE,
     .choices = "bf16|f32",
     .fallback = "bf16",
     .offset = AT(dtype),
     .help = "type of the merged weights"},
    {.name = "adapter",
     .aliases = "lora",
     .argument = ADAPTER_ARGUMENT,
     .kind = OPTION_TEXTS,
     .offset = AT(adapters),
     .help = "merge this adapter too; may be repeated"},
    {.name = "format",
     .argument = "FORMAT",
     .kind = OPTION_CHOICE,
     .choices = "e8p",
     .offset = AT(format),
     .help = "quantize the merged model, as walsh quantize does, and write that instead"},
    {.name = "bits",
     .letter = 'b',
     .aliases = "bpw",
     .argument = "N",
     .kind = OPTION_INTEGER,
     .least = 2,
     .most = 8,
     .fallback = "4",
     .offset = AT(bits),
     .help = "bits per weight of --format"},
    {.name = "no-hessian",
     .kind = OPTION_FLAG,
     .offset = AT(no_hessian),
     .help = "with --format: quantize without calibration, faster and worse"},
    {0},
};

/* What was written: the bytes of the safetensors files. */
static enum walsh_status report(const struct command *command, uint64_t bytes, struct walsh_error *err)
{
    char text[32];
    const char *destination = command->arguments[2];
    if (!command->json) {
        printf("wrote %llu bytes (%s) to %s\n", (unsigned long long)bytes,
               bytes_text((double)bytes, text, sizeof text), destination);
        return WALSH_OK;
    }
    json_t *object = json_object();
    json_put_text(object, "destination", destination);
    json_put_integer(object, "bytes_written", bytes);
    return json_print(object, err);
}

/* The merged model in plain weights, in `destination`. */
static enum walsh_status merge(struct merge_settings *settings, struct walsh_context *context,
                               const char *destination, enum walsh_merge_type type, uint64_t *bytes,
                               struct walsh_error *err)
{
    struct command *command = &settings->command;
    struct walsh_model *model = NULL;
    struct adapter_list adapters = {0};
    struct option_texts options = {.values = {command->arguments[1]}, .count = 1};
    if (settings->adapters.count + 1 > OPTION_MANY)
        return fail(err, WALSH_E_ARGUMENT, "more than %d adapters", OPTION_MANY);
    for (size_t i = 0; i < settings->adapters.count; i++)
        options.values[options.count++] = settings->adapters.values[i];
    enum walsh_status status = command_open_model(command, context, command->arguments[0], &model, err);
    if (status == WALSH_OK) status = adapters_open(command, model, &options, ADAPTERS_EXACT, &adapters, err);
    if (status == WALSH_OK)
        status = walsh_merge(model, adapters.uses, adapters.count, destination, type, bytes, err);
    adapters_close(&adapters);
    walsh_model_close(&model);
    return status;
}

/* Remove a directory of plain files. */
static void remove_directory(const char *path)
{
    static const char *const names[] = {"config.json",
                                        "generation_config.json",
                                        "model.safetensors",
                                        "tokenizer.json",
                                        "tokenizer_config.json",
                                        "special_tokens_map.json",
                                        "added_tokens.json",
                                        "vocab.json",
                                        "merges.txt",
                                        "chat_template.jinja",
                                        "tokenizer.model"};
    char file[PATH_MAX];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const int n = snprintf(file, sizeof file, "%s/%s", path, names[i]);
        if (n > 0 && (size_t)n < sizeof file) (void)unlink(file);
    }
    (void)rmdir(path);
}

/* By way of DST.merged, which goes away. */
static enum walsh_status merge_and_quantize(struct merge_settings *settings, struct walsh_context *context,
                                            uint64_t *bytes, struct walsh_error *err)
{
    struct command *command = &settings->command;
    const char *destination = command->arguments[2];
    char merged[PATH_MAX], *calibration = NULL;
    const int n = snprintf(merged, sizeof merged, "%s.merged", destination);
    if (n < 0 || (size_t)n >= sizeof merged)
        return fail(err, WALSH_E_ARGUMENT, "%s: the path is too long", destination);
    if (access(destination, F_OK) == 0)
        return fail(err, WALSH_E_EXISTS, "%s exists; merge writes a new directory", destination);
    if (!settings->no_hessian) TRY(data_find("calibration.txt", &calibration, err));
    struct walsh_quantize_options options = WALSH_QUANTIZE_OPTIONS;
    options.format = settings->format;
    options.bits = (unsigned)settings->bits;
    options.calibration = calibration;
    options.identity_hessian = settings->no_hessian;
    struct walsh_quantize_report done = {.struct_size = sizeof done};
    enum walsh_status status = merge(settings, context, merged, WALSH_MERGE_F32, bytes, err);
    if (status == WALSH_OK) {
        status = walsh_quantize(context, merged, destination, &options, &done, err);
        *bytes = done.bytes_written;
        walsh_quantize_report_free(&done);
        remove_directory(merged);
    }
    free(calibration);
    return status;
}

static enum walsh_status run_merge(struct command *command, struct walsh_error *err)
{
    struct merge_settings *settings = (struct merge_settings *)command;
    struct walsh_context *context;
    uint64_t bytes = 0;
    TRY(command_open_context(command, &context, err));
    const enum walsh_merge_type type =
        strcmp(settings->dtype, "f32") == 0 ? WALSH_MERGE_F32 : WALSH_MERGE_BF16;
    enum walsh_status status = settings->format
                                   ? merge_and_quantize(settings, context, &bytes, err)
                                   : merge(settings, context, command->arguments[2], type, &bytes, err);
    walsh_context_close(&context);
    progress_clear(&command->progress);
    return status == WALSH_OK ? report(command, bytes, err) : status;
}

const struct verb verb_merge = {
    .name = "merge",
    .usage = "MODEL ADAPTER DST",
    .summary = "write a copy of a model with adapters worked into its weights",
    .details =
        "ADAPTER is " ADAPTER_ARGUMENT ", as in walsh run. DST, which must not exist, becomes a Hugging Face "
        "directory of plain weights; the weights of a quantized MODEL are decoded. With --format the merged "
        "model is quantized, with the text that ships with walsh as its calibration.",
    .positionals = {"MODEL", "ADAPTER", "DST"},
    .least_arguments = 3,
    .options = merge_options,
    .uses = USES_THREADS | USES_DEVICE | USES_CPU | USES_NO_MMAP,
    .settings_size = sizeof(struct merge_settings),
    .run = run_merge,
};
