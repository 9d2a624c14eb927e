/* app: the program `walsh`. One file per verb; the verbs see the public headers only. This header is what
 * they share. */
#ifndef WALSH_APP_H
#define WALSH_APP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "walsh.h"

#include "options.h"
#include "progress.h"

#define MAX_ARGUMENTS 4

/* What every verb gets: the options of every verb, its positional arguments, and the bar. The settings of a
 * verb are a struct whose first member is this one. */
struct command {
    const struct verb *verb;
    int64_t threads, context;
    const char *device, *activations, *cpu;
    bool no_mmap, json, quiet, help;
    const char *arguments[MAX_ARGUMENTS];
    size_t argument_count;
    struct progress progress;
};

/* Bits of the options of every verb that mean something to a verb; the others are accepted with a note. */
enum {
    USES_THREADS = 1 << 0,
    USES_CONTEXT = 1 << 1,
    USES_DEVICE = 1 << 2,
    USES_ACTIVATIONS = 1 << 3,
    USES_CPU = 1 << 4,
    USES_NO_MMAP = 1 << 5,
    USES_MODEL = USES_THREADS | USES_DEVICE | USES_ACTIVATIONS | USES_CPU | USES_NO_MMAP,
};

struct verb {
    const char *name;
    const char *usage;                      /* what follows "walsh NAME [OPTIONS]" */
    const char *summary;                    /* one line, lower case, no full stop */
    const char *details;                    /* paragraphs of the help; NULL: none */
    const char *positionals[MAX_ARGUMENTS]; /* names, for messages */
    size_t least_arguments;
    const struct option *options; /* its own; ends with a NULL name */
    unsigned uses;                /* USES_ bits */
    bool tokenizer_optional;      /* runs on models without a tokenizer.json */
    size_t settings_size;
    enum walsh_status (*run)(struct command *command, struct walsh_error *err);
};

extern const struct verb verb_run, verb_eval, verb_bench, verb_quantize, verb_finetune, verb_inspect,
    verb_merge, verb_devices, verb_serve;
extern const struct verb *const verbs[]; /* all of them; NULL at the end */

/* The options of every verb, offsets into struct command; ends with a NULL name. */
extern const struct option common_options[];

/* Write a message and return the status. */
enum walsh_status fail(struct walsh_error *err, enum walsh_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4), cold));
/* As fail, WALSH_E_IO, with ": " and the text of errno behind it. */
enum walsh_status fail_errno(struct walsh_error *err, const char *format, ...)
    __attribute__((format(printf, 2, 3), cold));

#define TRY(call)                                                                                            \
    do {                                                                                                     \
        enum walsh_status try_status = (call);                                                               \
        if (try_status != WALSH_OK) return try_status;                                                       \
    } while (0)

/* A context, and a model in it, as the options of every verb say. `model` is what the user typed: a directory
 * or a Hugging Face id. */
enum walsh_status command_open_context(struct command *command, struct walsh_context **out,
                                       struct walsh_error *err);
enum walsh_status command_open_model(struct command *command, struct walsh_context *context,
                                     const char *model, struct walsh_model **out, struct walsh_error *err);
/* enum walsh_activation_mode of --activations, and its name. */
enum walsh_activation_mode command_activations(const struct command *command);
const char *activations_name(enum walsh_activation_mode activations);

double seconds_now(void); /* monotonic */

#endif
