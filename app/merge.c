/* walsh merge: a model and adapters become one checkpoint, plain or quantized again. */
#include <dirent.h>
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
    const char *dtype, *format, *rotation, *head;
    int64_t bits, group_size;
    bool no_hessian;
    struct option_texts adapters;
};

#define AT(member) offsetof(struct merge_settings, member)

static const struct option merge_options[] = {
    {.name = "dtype",
     .argument = "TYPE",
     .kind = OPTION_CHOICE,
     .choices = "bf16|f32",
     .offset = AT(dtype),
     .help = "type of the merged weights; default: bf16"},
    {.name = "adapter",
     .aliases = "lora",
     .argument = ADAPTER_ARGUMENT,
     .kind = OPTION_TEXTS,
     .offset = AT(adapters),
     .help = "merge this adapter too; may be repeated"},
    {.name = "format",
     .argument = "FORMAT",
     .kind = OPTION_CHOICE,
     .choices = "e8p|mxfp4|nvfp4|mxfp8|fp8|int8|int4",
     .offset = AT(format),
     .help = "quantize the merged model, as walsh quantize does, and write that instead"},
    {.name = "bits",
     .letter = 'b',
     .aliases = "bpw",
     .argument = "N",
     .kind = OPTION_INTEGER,
     .least = 2,
     .most = 8,
     .offset = AT(bits),
     .help = "bits per weight of --format e8p; default: 4"},
    {.name = "rotation",
     .argument = "KIND",
     .kind = OPTION_CHOICE,
     .choices = "block|pow2|overlap|none",
     .offset = AT(rotation),
     .help = "with --format: as in walsh quantize; default: block for e8p, none for all others"},
    {.name = "head",
     .argument = "FORMAT",
     .kind = OPTION_CHOICE,
     .choices = "bf16|int8",
     .offset = AT(head),
     .help = "with --format: the head as it is, or rotated and in int8; default: bf16"},
    {.name = "group-size",
     .aliases = "group",
     .argument = "N",
     .kind = OPTION_INTEGER,
     .least = 32,
     .most = 128,
     .offset = AT(group_size),
     .help = "with --format int8, int4: weights that share a scale, as in walsh quantize"},
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
static enum walsh_status merge_on_cpu(struct merge_settings *settings, struct walsh_context *context,
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

/* Updates are added in double precision, which is the CPU's work whatever the device. */
static enum walsh_status merge(struct merge_settings *settings, const char *destination,
                               enum walsh_merge_type type, uint64_t *bytes, struct walsh_error *err)
{
    struct command *command = &settings->command;
    struct walsh_context *context;
    const char *device = command->device;
    command->device = "cpu";
    enum walsh_status status = command_open_context(command, &context, err);
    command->device = device;
    if (status != WALSH_OK) return status;
    status = merge_on_cpu(settings, context, destination, type, bytes, err);
    walsh_context_close(&context);
    return status;
}

/* What walsh wrote into a directory, by name. */
struct written {
    struct dirent **files;
    int count;
};

static int is_file_name(const struct dirent *entry)
{
    return strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
}

static void remove_member(const char *directory, const char *name)
{
    char file[2 * PATH_MAX];
    snprintf(file, sizeof file, "%s/%s", directory, name);
    (void)unlink(file);
}

/* Remove the directory with the files of these names; one that holds anything else stays, with that. */
static void remove_written(const char *directory, const struct written *written)
{
    for (int i = 0; i < written->count; i++) remove_member(directory, written->files[i]->d_name);
    (void)rmdir(directory);
}

/* calibration: NULL for a format without, or with dry_run. */
static enum walsh_status quantize(const struct merge_settings *settings, struct walsh_context *context,
                                  const char *source, const char *destination, const char *calibration,
                                  bool dry_run, uint64_t *bytes, struct walsh_error *err)
{
    struct walsh_quantize_options options = WALSH_QUANTIZE_OPTIONS;
    options.format = settings->format;
    options.dry_run = dry_run;
    if (settings->bits != OPTION_UNSET)
        options.bits = (unsigned)settings->bits;
    else if (strcmp(settings->format, "e8p") == 0)
        options.bits = 4;
    options.rotation = settings->rotation;
    options.head = settings->head;
    if (settings->group_size != OPTION_UNSET) options.group_size = (uint32_t)settings->group_size;
    options.calibration = calibration;
    options.identity_hessian = settings->no_hessian;
    struct walsh_quantize_report done = {.struct_size = sizeof done};
    const enum walsh_status status = walsh_quantize(context, source, destination, &options, &done, err);
    *bytes = done.bytes_written;
    walsh_quantize_report_free(&done);
    return status;
}

/* By way of DST.merged, which goes away. An unfinished DST.partial goes with it, because nobody could go on
 * with a job whose source is gone. Its files are those of its source and the job's record. */
static enum walsh_status merge_and_quantize(struct merge_settings *settings, struct walsh_context *context,
                                            uint64_t *bytes, struct walsh_error *err)
{
    const char *argument = settings->command.arguments[2];
    size_t size = strlen(argument);
    while (size > 1 && argument[size - 1] == '/') size--;
    char destination[PATH_MAX - 16], merged[PATH_MAX], partial[PATH_MAX], merging[PATH_MAX];
    char *calibration = NULL;
    if (size >= sizeof destination) return fail(err, WALSH_E_ARGUMENT, "%s: the path is too long", argument);
    snprintf(destination, sizeof destination, "%.*s", (int)size, argument);
    snprintf(merged, sizeof merged, "%s.merged", destination);
    snprintf(merging, sizeof merging, "%s.merged.partial", destination);
    snprintf(partial, sizeof partial, "%s.partial", destination);
    const char *const names[] = {destination, merged, merging, partial};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (access(names[i], F_OK) == 0)
            return fail(err, WALSH_E_EXISTS,
                        i ? "%s exists; merge --format works there, remove it or choose another name"
                          : "%s exists; merge writes a new directory",
                        names[i]);
    TRY(quantize(settings, context, NULL, destination, NULL, true, bytes, err)); /* the options alone */
    if (!settings->no_hessian && strcmp(settings->format, "e8p") == 0)
        TRY(data_find("calibration.txt", &calibration, err));
    struct written written = {0};
    enum walsh_status status = merge(settings, merged, WALSH_MERGE_F32, bytes, err);
    if (status == WALSH_OK) {
        written.count = scandir(merged, &written.files, is_file_name, NULL);
        status = written.count < 0
                     ? fail_errno(err, "%s: cannot list it", merged)
                     : quantize(settings, context, merged, destination, calibration, false, bytes, err);
        remove_written(merged, &written);
    }
    /* WALSH_E_EXISTS: another job has begun to write there */
    if (status != WALSH_OK && status != WALSH_E_EXISTS && written.count > 0) {
        remove_member(partial, "job.json");
        remove_written(partial, &written);
    }
    for (int i = 0; i < written.count; i++) free(written.files[i]);
    free(written.files);
    free(calibration);
    if (status == WALSH_E_ABORTED) return fail(err, status, "stopped; nothing was written");
    return status;
}

static enum walsh_status check_options(const struct merge_settings *settings, struct walsh_error *err)
{
    if (settings->format && settings->dtype)
        return fail(err, WALSH_E_ARGUMENT, "--format and --dtype exclude each other");
    const struct {
        const char *name;
        bool given;
    } of_format[] = {{"bits", settings->bits != OPTION_UNSET},
                     {"rotation", settings->rotation != NULL},
                     {"head", settings->head != NULL},
                     {"group-size", settings->group_size != OPTION_UNSET},
                     {"no-hessian", settings->no_hessian}};
    for (size_t i = 0; i < sizeof of_format / sizeof *of_format && !settings->format; i++)
        if (of_format[i].given)
            return fail(err, WALSH_E_ARGUMENT, "--%s needs a --format", of_format[i].name);
    return WALSH_OK;
}

static enum walsh_status run_merge(struct command *command, struct walsh_error *err)
{
    struct merge_settings *settings = (struct merge_settings *)command;
    struct walsh_context *context;
    uint64_t bytes = 0;
    TRY(check_options(settings, err));
    TRY(command_open_context(command, &context,
                             err)); /* a device that is not there is told before anything is done */
    const enum walsh_merge_type type =
        settings->dtype && strcmp(settings->dtype, "f32") == 0 ? WALSH_MERGE_F32 : WALSH_MERGE_BF16;
    enum walsh_status status = settings->format ? merge_and_quantize(settings, context, &bytes, err)
                                                : merge(settings, command->arguments[2], type, &bytes, err);
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
        "model is quantized, with the text that ships with walsh as its calibration. Merging is the CPU's "
        "work; "
        "--device says where --format e8p searches its codes.",
    .positionals = {"MODEL", "ADAPTER", "DST"},
    .least_arguments = 3,
    .options = merge_options,
    .uses = USES_THREADS | USES_DEVICE | USES_CPU | USES_NO_MMAP,
    .settings_size = sizeof(struct merge_settings),
    .run = run_merge,
};
