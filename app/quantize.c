/* walsh quantize: a smaller checkpoint from a Hugging Face checkpoint. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "app.h"
#include "files.h"

struct quantize_settings {
    struct command command;
    const char *format, *head, *rotation, *calibration, *scale_rounding;
    int64_t bits, passes, samples, sample_tokens, seed, tensor_parallel, group_size;
    bool no_hessian, plain, dry_run, resume;
};

#define AT(member) offsetof(struct quantize_settings, member)

static const struct option quantize_options[] = {
    {.name = "format",
     .argument = "FORMAT",
     .kind = OPTION_CHOICE,
     .choices = "e8p|mxfp4|nvfp4|mxfp8|fp8|int8|int4",
     .fallback = "e8p",
     .offset = AT(format),
     .help = "format of the quantized weights; all but e8p round to the nearest, without calibration"},
    {.name = "group-size",
     .aliases = "group",
     .argument = "N",
     .kind = OPTION_INTEGER,
     .least = 32,
     .most = 128,
     .offset = AT(group_size),
     .help =
         "int8, int4: weights that share a scale and a zero point: 32, 64 or 128; default: the largest that "
         "divides the columns of every linear"},
    {.name = "scale-rounding",
     .argument = "MODE",
     .kind = OPTION_CHOICE,
     .choices = "floor|ceil|even|rceil",
     .fallback = "floor",
     .offset = AT(scale_rounding),
     .help = "mxfp4, mxfp8: how the power of two of a group comes from its largest weight"},
    {.name = "bits",
     .letter = 'b',
     .aliases = "bpw",
     .argument = "N",
     .kind = OPTION_INTEGER,
     .least = 2,
     .most = 8,
     .fallback = "4",
     .offset = AT(bits),
     .help = "bits per weight"},
    {.name = "rotation",
     .argument = "KIND",
     .kind = OPTION_CHOICE,
     .choices = "block|pow2|overlap|none",
     .offset = AT(rotation),
     .help = "blocks of the binary expansion of each dimension; one block padded to a power of two; or two "
             "blocks that overlap and pad nothing; default: block for e8p, none for all others"},
    {.name = "head",
     .argument = "FORMAT",
     .kind = OPTION_CHOICE,
     .choices = "bf16|int8",
     .fallback = "bf16",
     .offset = AT(head),
     .help = "the head as it is, or rotated and in int8 with a scale per row (a tied embedding stays bf16)"},
    {.name = "tensor-parallel",
     .argument = "N",
     .kind = OPTION_INTEGER,
     .least = 1,
     .most = 16,
     .fallback = "1",
     .offset = AT(tensor_parallel),
     .help =
         "rotate N parts of each split dimension apart (outputs of q, k, v, gate, up; inputs of o, down), so "
         "that N engines can take slices of the tensors"},
    {.name = "calibration",
     .argument = "FILE",
     .kind = OPTION_TEXT,
     .offset = AT(calibration),
     .help = "UTF-8 text from which the Hessians are measured; default: the text that ships with walsh"},
    {.name = "samples",
     .argument = "N",
     .kind = OPTION_INTEGER,
     .least = 1,
     .most = 1e6,
     .fallback = "128",
     .offset = AT(samples),
     .help = "calibration sequences"},
    {.name = "sample-tokens",
     .argument = "N",
     .kind = OPTION_INTEGER,
     .least = 1,
     .most = 1e6,
     .offset = AT(sample_tokens),
     .help = "tokens of a calibration sequence; default: the smaller of 1024 and the model's maximum"},
    {.name = "passes",
     .argument = "N",
     .kind = OPTION_INTEGER,
     .least = 0,
     .most = 100,
     .offset = AT(passes),
     .help = "coordinate-descent passes after LDLQ; default: the best measured"},
    {.name = "seed",
     .letter = 's',
     .argument = "N",
     .kind = OPTION_INTEGER,
     .least = 0,
     .most = 9e18,
     .fallback = "42",
     .offset = AT(seed),
     .help = "seed of the rotation's signs"},
    {.name = "no-hessian",
     .kind = OPTION_FLAG,
     .offset = AT(no_hessian),
     .help = "no calibration: round each weight to the nearest code (for measurements)"},
    {.name = "plain",
     .kind = OPTION_FLAG,
     .offset = AT(plain),
     .help =
         "the published method as it is: no scales beside the signs, no search for them (for measurements)"},
    {.name = "dry-run",
     .kind = OPTION_FLAG,
     .offset = AT(dry_run),
     .help = "predict the bytes, exactly, and write nothing"},
    {.name = "resume",
     .kind = OPTION_FLAG,
     .offset = AT(resume),
     .help = "go on with DST.partial, which an interrupted run left"},
    {0},
};

static enum walsh_status print_json(const struct quantize_settings *settings,
                                    const struct walsh_quantize_report *report, struct walsh_error *err)
{
    json_t *object = json_object(), *layers = json_array();
    json_put_integer(object, "bytes_predicted", report->bytes_predicted);
    json_put_integer(object, "bytes_written", report->bytes_written);
    json_put_real(object, "bpw", report->bits_per_weight);
    json_put_real(object, "seconds", report->seconds);
    json_put_real(object, "encode_seconds", report->encode_seconds);
    json_put_real(object, "forward_seconds", report->forward_seconds);
    json_put_real(object, "hessian_seconds", report->hessian_seconds);
    json_put_text(object, "format", settings->format);
    if (strcmp(settings->format, "e8p") == 0)
        json_put_integer(object, "bits", (unsigned long long)settings->bits);
    for (size_t i = 0; i < report->linear_count; i++) {
        const struct walsh_quantize_layer *layer = &report->linears[i];
        json_t *item = json_object();
        json_put_text(item, "name", layer->name);
        json_put_integer(item, "rows", layer->rows);
        json_put_integer(item, "cols", layer->cols);
        json_put_real(item, "proxy", layer->proxy);
        json_put_real(item, "bpw", layer->bits_per_weight);
        json_put_real(item, "seconds", layer->seconds);
        json_array_append_new(layers, item);
    }
    json_object_set_new(object, "layers", layers);
    return json_print(object, err);
}

static void print_text(const struct quantize_settings *settings, const struct walsh_quantize_report *report)
{
    char bytes[32];
    bytes_text((double)report->bytes_predicted, bytes, sizeof bytes);
    if (settings->dry_run) {
        printf("would write %llu bytes (%s), %.3f bits per quantized weight, to %s\n",
               (unsigned long long)report->bytes_predicted, bytes, report->bits_per_weight,
               settings->command.arguments[1]);
        return;
    }
    printf("wrote %llu bytes (%s), %.3f bits per quantized weight, to %s\n",
           (unsigned long long)report->bytes_written, bytes, report->bits_per_weight,
           settings->command.arguments[1]);
    printf("took %.1f s: %.1f s encoding, %.1f s forward passes, %.1f s Hessians\n", report->seconds,
           report->encode_seconds, report->forward_seconds, report->hessian_seconds);
}

/* An interrupted job is a failure with a way out, where there is something to go on with. */
static enum walsh_status explain_abort(const struct command *command, struct walsh_error *err)
{
    const char *dst = command->arguments[1];
    size_t size = strlen(dst);
    while (size > 1 && dst[size - 1] == '/') size--;
    char partial[PATH_MAX];
    snprintf(partial, sizeof partial, "%.*s.partial", (int)size, dst);
    if (access(partial, F_OK) != 0) return fail(err, WALSH_E_ABORTED, "stopped; nothing was written");
    return fail(err, WALSH_E_ABORTED,
                "stopped; finished layers are kept in %s: the same command with --resume goes on", partial);
}

static enum walsh_status quantize(struct quantize_settings *settings, const char *source,
                                  const char *calibration, struct walsh_error *err)
{
    struct command *command = &settings->command;
    struct walsh_quantize_options options = WALSH_QUANTIZE_OPTIONS;
    options.format = settings->format;
    options.bits = (unsigned)settings->bits;
    options.rotation = settings->rotation;
    options.scale_rounding = settings->scale_rounding;
    options.group_size = settings->group_size == OPTION_UNSET ? 0 : (uint32_t)settings->group_size;
    options.calibration = calibration;
    options.identity_hessian = settings->no_hessian;
    options.samples = (uint32_t)settings->samples;
    options.sample_tokens = settings->sample_tokens == OPTION_UNSET ? 0 : (uint32_t)settings->sample_tokens;
    if (settings->passes != OPTION_UNSET) options.passes = (int)settings->passes;
    options.seed = (uint64_t)settings->seed;
    options.plain = settings->plain;
    options.dry_run = settings->dry_run;
    options.resume = settings->resume;
    options.head = settings->head;
    options.tensor_parallel = (unsigned)settings->tensor_parallel;
    options.no_mmap = command->no_mmap;
    struct walsh_context *context;
    TRY(command_open_context(command, &context, err));
    struct walsh_quantize_report report = {.struct_size = sizeof report};
    enum walsh_status status = walsh_quantize(context, source, command->arguments[1], &options, &report, err);
    progress_clear(&command->progress);
    if (status == WALSH_OK && command->json)
        status = print_json(settings, &report, err);
    else if (status == WALSH_OK)
        print_text(settings, &report);
    walsh_quantize_report_free(&report);
    walsh_context_close(&context);
    return status == WALSH_E_ABORTED ? explain_abort(command, err) : status;
}

static enum walsh_status run_quantize(struct command *command, struct walsh_error *err)
{
    struct quantize_settings *settings = (struct quantize_settings *)command;
    if (settings->no_hessian && settings->calibration)
        return fail(err, WALSH_E_ARGUMENT, "--calibration and --no-hessian exclude each other");
    char *source, *shipped = NULL;
    TRY(model_find(command->arguments[0], &source, err));
    enum walsh_status status = WALSH_OK;
    const char *calibration = settings->calibration;
    if (!calibration && !settings->no_hessian && !settings->dry_run && strcmp(settings->format, "e8p") == 0) {
        status = data_find("calibration.txt", &shipped, err);
        calibration = shipped;
        if (status == WALSH_OK)
            progress_note(&command->progress,
                          "walsh quantize: calibrating with the text that ships with walsh (%s)", shipped);
    }
    if (status == WALSH_OK) status = quantize(settings, source, calibration, err);
    free(shipped);
    free(source);
    return status;
}

const struct verb verb_quantize = {
    .name = "quantize",
    .usage = "SRC DST",
    .summary = "write a quantized copy of a model",
    .details =
        "SRC is a Hugging Face directory or an id in the local cache; DST must not exist. The work happens "
        "in "
        "DST.partial; Ctrl-C or a crash leaves it there, and --resume goes on to the same bytes. Embeddings, "
        "head, norms, routers and biases stay as they are.",
    .positionals = {"SRC", "DST"},
    .least_arguments = 2,
    .options = quantize_options,
    .uses = USES_THREADS | USES_DEVICE | USES_CPU | USES_NO_MMAP,
    .settings_size = sizeof(struct quantize_settings),
    .run = run_quantize,
};
