/* The program `walsh`: finds the verb, parses its options, runs it, and turns errors into messages and exit
 * codes: 0 success, 1 failed, 2 wrong usage. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "app.h"
#include "documents.h"
#include "output.h"

static enum walsh_status run_version(struct command *command, struct walsh_error *err)
{
    if (!command->json) {
        printf("walsh %s\n", walsh_version());
        return WALSH_OK;
    }
    json_t *object = json_object();
    json_put_text(object, "version", walsh_version());
    return json_print(object, err);
}

static const struct verb verb_version = {
    .name = "version",
    .usage = "",
    .summary = "print the version",
    .settings_size = sizeof(struct command),
    .run = run_version,
};

const struct verb *const verbs[] = {&verb_quantize, &verb_finetune, &verb_run,   &verb_eval,
                                    &verb_bench,    &verb_inspect,  &verb_merge, &verb_serve,
                                    &verb_devices,  &verb_version,  NULL};

static const struct verb *find_verb(const char *name)
{
    for (const struct verb *const *v = verbs; *v; v++)
        if (strcmp((*v)->name, name) == 0) return *v;
    return NULL;
}

static int unknown_verb(const char *name)
{
    const char *names[16] = {"help"};
    for (size_t i = 0; verbs[i]; i++) names[i + 1] = verbs[i]->name;
    const char *near = nearest_name(name, names);
    fprintf(stderr, "walsh: unknown verb '%s'", name);
    if (near) fprintf(stderr, "; did you mean '%s'?", near);
    fprintf(stderr, "\nSee 'walsh help'.\n");
    return 2;
}

/* What was printed must have arrived: a full disk or a closed pipe behind stdout is a failure. */
static int finish(int code)
{
    if (fflush(stdout) == 0 && !ferror(stdout)) return code;
    fprintf(stderr, "walsh: cannot write to standard output\n");
    return code ? code : 1;
}

/* walsh help [VERB]. What the build makes of the tables is here as well, and not in the overview: `--man
 * [VERB]` and `--completion SHELL`. */
static int help(int argc, char **argv)
{
    const bool man = argc > 0 && strcmp(argv[0], "--man") == 0;
    if (argc == 2 && strcmp(argv[0], "--completion") == 0) {
        if (documents_completion(argv[1], stdout)) return finish(0);
        fprintf(stderr, "walsh: no completion for '%s', but for bash, zsh and fish\n", argv[1]);
        return 2;
    }
    if (argc <= (int)man) {
        man ? documents_man_overview(stdout) : options_overview(stdout);
        return finish(0);
    }
    const struct verb *verb = find_verb(argv[man]);
    if (!verb) return unknown_verb(argv[man]);
    man ? documents_man(verb, stdout) : options_help(verb, stdout);
    return finish(0);
}

/* The message on stderr and, for scripts that asked for JSON, on stdout too. Only the command line is wrong
 * usage: what is wrong in a file fails with another status than WALSH_E_ARGUMENT. */
static int report_failure(struct command *command, const struct walsh_error *failure)
{
    char message[sizeof failure->message];
    progress_clear(&command->progress);
    fprintf(stderr, "walsh %s: %s\n", command->verb->name,
            printable(failure->message, message, sizeof message)); /* it may quote a file */
    const bool usage = failure->status == WALSH_E_ARGUMENT;
    if (usage) fprintf(stderr, "See 'walsh help %s'.\n", command->verb->name);
    if (command->json) {
        json_t *object = json_object(), *details = json_object();
        json_put_text(details, "status", walsh_status_name(failure->status));
        json_put_text(details, "message", failure->message);
        json_object_set_new(object, "error", details);
        json_print(object, NULL);
    }
    return finish(usage ? 2 : 1);
}

/* Is --json among the words of a command line that could not be parsed? */
static bool asks_for_json(int argc, char **argv)
{
    for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--json") == 0) return true;
    return false;
}

static int run_verb(const struct verb *verb, int argc, char **argv)
{
    struct command *command = calloc(1, verb->settings_size);
    if (!command) {
        fprintf(stderr, "walsh: out of memory\n");
        return 1;
    }
    command->verb = verb;
    struct walsh_error err = {0};
    int code;
    if (options_parse(verb, argc, argv, command, &err) != WALSH_OK) {
        command->json = command->json || asks_for_json(argc, argv);
        code = report_failure(command, &err);
    } else if (command->help) {
        options_help(verb, stdout);
        code = finish(0);
    } else {
        progress_open(&command->progress, verb->name, command->quiet);
        interrupt_arm();
        code = verb->run(command, &err) == WALSH_OK ? finish(0) : report_failure(command, &err);
    }
    free(command);
    return code;
}

/* Memory for jansson, whose lexer does not look whether the buffer of its token could grow: it would go on
 * without a character, read something else or free what was never allocated. That buffer's sizes are powers
 * of two from 32 on; where one of these is not there the program ends. What a job has written by then is as
 * after a kill: not there, or to be gone on with.
 */
static void *json_memory(size_t size)
{
    void *p = malloc(size);
    if (!p && size >= 32 && (size & (size - 1)) == 0) {
        fprintf(stderr, "walsh: out of memory: %zu bytes for JSON\n", size);
        exit(1);
    }
    return p;
}

int main(int argc, char **argv)
{
    json_set_alloc_funcs(json_memory, free);
    /* A write beyond the file size limit is an error to report, not a reason to die. */
    signal(SIGXFSZ, SIG_IGN);
    if (argc < 2) {
        options_overview(stderr);
        return 2;
    }
    const char *word = argv[1];
    if (strcmp(word, "--version") == 0) return run_verb(&verb_version, argc - 2, argv + 2);
    if (strcmp(word, "help") == 0 || strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0)
        return help(argc - 2, argv + 2);
    const struct verb *verb = find_verb(word);
    return verb ? run_verb(verb, argc - 2, argv + 2) : unknown_verb(word);
}
