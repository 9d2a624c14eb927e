/* What all verbs share: the options of every verb, and how they become a context and a model. */
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "app.h"
#include "files.h"

#define AT(member) offsetof(struct command, member)

const struct option common_options[] = {
    {.name = "threads",
     .letter = 't',
     .argument = "N",
     .kind = OPTION_INTEGER,
     .least = 1,
     .most = 1024,
     .environment = "WALSH_THREADS",
     .offset = AT(threads),
     .uses = USES_THREADS,
     .help = "compute with N threads; default: the CPUs that this process may use"},
    {.name = "context",
     .letter = 'c',
     .aliases = "ctx-size",
     .argument = "N",
     .kind = OPTION_INTEGER,
     .least = 1,
     .most = INT32_MAX,
     .environment = "WALSH_CONTEXT",
     .offset = AT(context),
     .uses = USES_CONTEXT,
     .help = "tokens of context; default: the model's maximum, at most 4096 (eval: 2048)"},
    {.name = "device",
     .argument = "DEVICE",
     .kind = OPTION_TEXT,
     .environment = "WALSH_DEVICE",
     .offset = AT(device),
     .uses = USES_DEVICE,
     .help = "where to compute: cpu, cuda or cuda:N; 'walsh devices' lists them"},
    {.name = "activations",
     .argument = "TYPE",
     .kind = OPTION_CHOICE,
     .choices = "auto|f32|bf16|int8",
     .fallback = "auto",
     .environment = "WALSH_ACTIVATIONS",
     .offset = AT(activations),
     .uses = USES_ACTIVATIONS,
     .help = "how activations enter the products"},
    {.name = "cpu",
     .argument = "LEVEL",
     .kind = OPTION_CHOICE,
     .choices = "best|reference|avx2|avx512|amx",
     .fallback = "best",
     .environment = "WALSH_CPU",
     .offset = AT(cpu),
     .uses = USES_CPU,
     .help = "the highest instruction set to use"},
    {.name = "no-mmap",
     .kind = OPTION_FLAG,
     .environment = "WALSH_NO_MMAP",
     .offset = AT(no_mmap),
     .uses = USES_NO_MMAP,
     .help = "read the model's files instead of mapping them"},
    {.name = "json",
     .kind = OPTION_FLAG,
     .environment = "WALSH_JSON",
     .offset = AT(json),
     .help = "print one JSON object on standard output and nothing else there"},
    {.name = "quiet",
     .kind = OPTION_FLAG,
     .environment = "WALSH_QUIET",
     .offset = AT(quiet),
     .help = "no progress and no log lines; warnings and errors only"},
    {.name = "help", .letter = 'h', .kind = OPTION_FLAG, .offset = AT(help), .help = "print this help"},
    {0},
};

enum walsh_status fail(struct walsh_error *err, enum walsh_status status, const char *format, ...)
{
    if (err) {
        va_list args;
        va_start(args, format);
        vsnprintf(err->message, sizeof err->message, format, args);
        va_end(args);
        err->status = status;
    }
    return status;
}

enum walsh_status fail_errno(struct walsh_error *err, const char *format, ...)
{
    int reason = errno;
    if (err) {
        va_list args;
        va_start(args, format);
        vsnprintf(err->message, sizeof err->message, format, args);
        va_end(args);
        size_t length = strlen(err->message);
        snprintf(err->message + length, sizeof err->message - length, ": %s", strerror(reason));
        err->status = WALSH_E_IO;
    }
    return WALSH_E_IO;
}

double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static const char *const activation_names[] = {
    [WALSH_ACTIVATIONS_AUTO] = "auto",
    [WALSH_ACTIVATIONS_F32] = "f32",
    [WALSH_ACTIVATIONS_BF16] = "bf16",
    [WALSH_ACTIVATIONS_INT8] = "int8",
};

const char *activations_name(enum walsh_activation_mode activations)
{
    return activation_names[activations];
}

enum walsh_activation_mode command_activations(const struct command *command)
{
    for (int i = WALSH_ACTIVATIONS_F32; i <= WALSH_ACTIVATIONS_INT8; i++)
        if (strcmp(command->activations, activation_names[i]) == 0) return (enum walsh_activation_mode)i;
    return WALSH_ACTIVATIONS_AUTO;
}

enum walsh_status command_open_context(struct command *command, struct walsh_context **out,
                                       struct walsh_error *err)
{
    struct walsh_context_options options = WALSH_CONTEXT_OPTIONS;
    options.threads = command->threads == OPTION_UNSET ? 0 : (unsigned)command->threads;
    options.cpu = command->cpu;
    options.device = command->device;
    options.hooks = progress_hooks(&command->progress);
    return walsh_context_open(&options, out, err);
}

enum walsh_status command_open_model(struct command *command, struct walsh_context *context,
                                     const char *model, struct walsh_model **out, struct walsh_error *err)
{
    char *path;
    TRY(model_find(model, &path, err));
    struct walsh_model_options options = WALSH_MODEL_OPTIONS;
    options.no_mmap = command->no_mmap;
    options.activations = command_activations(command);
    options.tokenizer_optional = command->verb->tokenizer_optional;
    enum walsh_status status = walsh_model_open(context, path, &options, out, err);
    free(path);
    return status;
}
