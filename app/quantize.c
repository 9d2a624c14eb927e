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
    const char *bits, *format, *head, *rotation, *calibration, *scale_rounding;
    int64_t passes, samples, sample_tokens, seed, tensor_parallel, group_size;
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
     .offset = AT(scale_rounding),
     .help = "mxfp4, mxfp8: how the power of two of a group comes from its largest weight; default: floor"},
    {.name = "bits",
     .letter = 'b',
     .aliases = "bpw",
     .argument = "N[,N...]",
     .kind = OPTION_TEXT,
     .offset = AT(bits),
     .help =
         "e8p: bits per weight, 2 to 8; default: 4. Several share one calibration and become DST-Nbpw each"},
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
         "that N engines can take slices of the tensors; each part needs a multiple of 16 outputs and of 64 "
         "inputs"},
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
     .offset = AT(samples),
     .help = "calibration sequences; default: 128"},
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

/* What --bits lists. */
struct widths {
    unsigned list[7];
    size_t count;
};

static enum walsh_status read_widths(const char *text, struct widths *out, struct walsh_error *err)
{
    *out = (struct widths){{4}, 1};
    if (!text) return WALSH_OK;
    out->count = 0;
    for (const char *p = text;; p += 2) {
        if (*p < '2' || *p > '8' || (p[1] != ',' && p[1] != '\0') || out->count == 7)
            return fail(err, WALSH_E_ARGUMENT, "--bits: '%s' is not a list of up to seven numbers of 2 to 8",
                        text);
        out->list[out->count++] = (unsigned)(*p - '0');
        if (p[1] == '\0') return WALSH_OK;
    }
}

static int compare_widths(const void *a, const void *b)
{
    return (int)*(const unsigned *)a - (int)*(const unsigned *)b;
}

/* DST, or DST-Nbpw of one of several. */
static void output_name(const struct command *command, const struct widths *widths, size_t i, char *out,
                        size_t room)
{
    const char *dst = command->arguments[1];
    size_t size = strlen(dst);
    while (size > 1 && dst[size - 1] == '/') size--;
    if (widths->count == 1)
        snprintf(out, room, "%s", dst);
    else
        snprintf(out, room, "%.*s-%ubpw", (int)size, dst, widths->list[i]);
}

static json_t *report_object(const struct quantize_settings *settings, unsigned bits,
                             const struct walsh_quantize_report *report)
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
    if (strcmp(settings->format, "e8p") == 0) json_put_integer(object, "bits", bits);
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
    return object;
}

/* One object; of several widths {"outputs": [one each, with its directory]}. */
static enum walsh_status print_json(const struct quantize_settings *settings, const struct widths *widths,
                                    const struct walsh_quantize_report *reports, struct walsh_error *err)
{
    if (widths->count == 1) return json_print(report_object(settings, widths->list[0], &reports[0]), err);
    json_t *object = json_object(), *outputs = json_array();
    for (size_t i = 0; i < widths->count; i++) {
        char name[PATH_MAX];
        json_t *item = report_object(settings, widths->list[i], &reports[i]);
        output_name(&settings->command, widths, i, name, sizeof name);
        json_put_text(item, "directory", name);
        json_array_append_new(outputs, item);
    }
    json_object_set_new(object, "outputs", outputs);
    return json_print(object, err);
}

static void print_text(const struct quantize_settings *settings, const struct widths *widths,
                       const struct walsh_quantize_report *reports)
{
    for (size_t i = 0; i < widths->count; i++) {
        char bytes[32], name[PATH_MAX];
        const uint64_t written = settings->dry_run ? reports[i].bytes_predicted : reports[i].bytes_written;
        bytes_text((double)written, bytes, sizeof bytes);
        output_name(&settings->command, widths, i, name, sizeof name);
        printf("%s %llu bytes (%s), %.3f bits per quantized weight, to %s\n",
               settings->dry_run ? "would write" : "wrote", (unsigned long long)written, bytes,
               reports[i].bits_per_weight, name);
    }
    if (settings->dry_run) return;
    printf("took %.1f s: %.1f s encoding, %.1f s forward passes, %.1f s Hessians\n", reports->seconds,
           reports->encode_seconds, reports->forward_seconds, reports->hessian_seconds);
}

/* An interrupted job is a failure with a way out, where there is something to go on with. */
static enum walsh_status explain_abort(const struct command *command, const struct widths *widths,
                                       struct walsh_error *err)
{
    char name[PATH_MAX - 16], partial[PATH_MAX];
    output_name(command, widths, 0, name, sizeof name);
    size_t size = strlen(name);
    while (size > 1 && name[size - 1] == '/') size--;
    snprintf(partial, sizeof partial, "%.*s.partial", (int)size, name);
    if (access(partial, F_OK) != 0) return fail(err, WALSH_E_ABORTED, "stopped; nothing was written");
    return fail(err, WALSH_E_ABORTED,
                "stopped; finished layers are kept in %s%s: the same command with --resume goes on", partial,
                widths->count > 1 ? " and the others" : "");
}

static enum walsh_status quantize(struct quantize_settings *settings, struct widths widths,
                                  const char *source, const char *calibration, struct walsh_error *err)
{
    struct command *command = &settings->command;
    struct walsh_quantize_options options = WALSH_QUANTIZE_OPTIONS;
    options.format = settings->format;
    qsort(widths.list, widths.count, sizeof *widths.list, compare_widths); /* as the reports come */
    options.bits_list = widths.list;
    options.bits_count = settings->bits || strcmp(settings->format, "e8p") == 0 ? widths.count : 0;
    options.rotation = settings->rotation;
    options.scale_rounding = settings->scale_rounding;
    options.group_size = settings->group_size == OPTION_UNSET ? 0 : (uint32_t)settings->group_size;
    options.calibration = calibration;
    options.identity_hessian = settings->no_hessian;
    options.samples = settings->samples == OPTION_UNSET ? 0 : (uint32_t)settings->samples;
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
    struct walsh_quantize_report reports[7] = {0};
    for (size_t i = 0; i < widths.count; i++) reports[i].struct_size = sizeof *reports;
    enum walsh_status status = walsh_quantize(context, source, command->arguments[1], &options, reports, err);
    progress_clear(&command->progress);
    if (status == WALSH_OK && command->json)
        status = print_json(settings, &widths, reports, err);
    else if (status == WALSH_OK)
        print_text(settings, &widths, reports);
    for (size_t i = 0; i < widths.count; i++) walsh_quantize_report_free(&reports[i]);
    walsh_context_close(&context);
    return status == WALSH_E_ABORTED ? explain_abort(command, &widths, err) : status;
}

static enum walsh_status run_quantize(struct command *command, struct walsh_error *err)
{
    struct quantize_settings *settings = (struct quantize_settings *)command;
    if (settings->no_hessian && settings->calibration)
        return fail(err, WALSH_E_ARGUMENT, "--calibration and --no-hessian exclude each other");
    struct widths widths;
    TRY(read_widths(settings->bits, &widths, err));
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
    if (status == WALSH_OK) status = quantize(settings, widths, source, calibration, err);
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
        "head, norms, routers and biases stay as they are. --device says where the codes of e8p are "
        "searched; what "
        "only rounds is the CPU's work.",
    .positionals = {"SRC", "DST"},
    .least_arguments = 2,
    .options = quantize_options,
    .uses = USES_THREADS | USES_DEVICE | USES_CPU | USES_NO_MMAP,
    .settings_size = sizeof(struct quantize_settings),
    .run = run_quantize,
};
