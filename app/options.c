#include "options.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "app.h"

/* ---------------------------------------------------------------------------------------- names */

/* Long names are equal where only - and _ differ. `length` characters of `a` against all of `b`. */
static bool same_name(const char *a, size_t length, const char *b)
{
    for (size_t i = 0; i < length; i++) {
        char x = a[i] == '_' ? '-' : a[i];
        if (b[i] != x) return false;
    }
    return b[length] == 0;
}

size_t option_next_word(const char **cursor, const char **word)
{
    while (**cursor == ' ') ++*cursor;
    *word = *cursor;
    while (**cursor && **cursor != ' ') ++*cursor;
    return (size_t)(*cursor - *word);
}

static bool has_alias(const struct option *option, const char *name, size_t length)
{
    if (!option->aliases) return false;
    const char *cursor = option->aliases, *word;
    char alias[64];
    for (size_t n = option_next_word(&cursor, &word); n > 0; n = option_next_word(&cursor, &word)) {
        snprintf(alias, sizeof alias, "%.*s", (int)n, word);
        if (same_name(name, length, alias)) return true;
    }
    return false;
}

static const struct option *find_long(const struct option *table, const char *name, size_t length)
{
    for (const struct option *o = table; o && o->name; o++)
        if (same_name(name, length, o->name) || has_alias(o, name, length)) return o;
    return NULL;
}

static const struct option *find_letter(const struct option *table, char letter)
{
    for (const struct option *o = table; o && o->name; o++)
        if (o->letter == letter) return o;
    return NULL;
}

/* Edits (insert, delete, replace, swap of neighbours) that turn a into b; names longer than the table count
 * as far. */
static size_t edit_distance(const char *a, const char *b)
{
    enum { LIMIT = 40 };
    size_t n = strlen(a), m = strlen(b);
    if (n >= LIMIT || m >= LIMIT) return LIMIT;
    size_t d[LIMIT][LIMIT];
    for (size_t i = 0; i <= n; i++) d[i][0] = i;
    for (size_t j = 0; j <= m; j++) d[0][j] = j;
    for (size_t i = 1; i <= n; i++) {
        for (size_t j = 1; j <= m; j++) {
            size_t best = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            if (d[i - 1][j] + 1 < best) best = d[i - 1][j] + 1;
            if (d[i][j - 1] + 1 < best) best = d[i][j - 1] + 1;
            bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if (swapped && d[i - 2][j - 2] + 1 < best) best = d[i - 2][j - 2] + 1;
            d[i][j] = best;
        }
    }
    return d[n][m];
}

/* A candidate for "did you mean": near when at most a third of the word has to change, or when one begins the
 * other. */
static void consider(const char *word, const char *candidate, size_t *best, const char **found)
{
    size_t length = strlen(word), distance = edit_distance(word, candidate);
    size_t common = length < strlen(candidate) ? length : strlen(candidate);
    if (common >= 3 && strncmp(word, candidate, common) == 0 && distance > 1) distance = 1;
    if (distance <= 1 + length / 3 && distance < *best) {
        *best = distance;
        *found = candidate;
    }
}

const char *nearest_name(const char *word, const char *const *names)
{
    const char *found = NULL;
    size_t best = SIZE_MAX;
    for (; *names; names++) consider(word, *names, &best, &found);
    return found;
}

/* The option's main name nearest to a mistyped one; aliases count too. */
static const char *nearest_option(const struct verb *verb, const char *word)
{
    const struct option *const tables[] = {verb->options, common_options};
    size_t best = SIZE_MAX;
    const char *found = NULL;
    for (size_t t = 0; t < 2; t++) {
        for (const struct option *o = tables[t]; o && o->name; o++) {
            consider(word, o->name, &best, &found);
            const char *cursor = o->aliases ? o->aliases : "", *alias;
            for (size_t n = option_next_word(&cursor, &alias); n > 0; n = option_next_word(&cursor, &alias)) {
                char name[64];
                const char *near = NULL;
                snprintf(name, sizeof name, "%.*s", (int)n, alias);
                consider(word, name, &best, &near);
                if (near) found = o->name;
            }
        }
    }
    return found;
}

/* ---------------------------------------------------------------------------------------- values */

#define UNBOUNDED 1e6

/* "1 to 64", or "at least 1" where the upper bound only keeps the arithmetic safe and `value` does not break
 * it. */
static const char *range_text(const struct option *option, double value, char *buffer, size_t size)
{
    if (option->most >= UNBOUNDED && value <= option->most)
        snprintf(buffer, size, "at least %.15g", option->least);
    else
        snprintf(buffer, size, "%.15g to %.15g", option->least, option->most);
    return buffer;
}

static enum walsh_status parse_integer(const struct option *option, const char *source, const char *text,
                                       int64_t *out, struct walsh_error *err)
{
    char *end, range[80];
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (end == text || *end)
        return fail(err, WALSH_E_ARGUMENT, "%s: '%s' is not a whole number", source, text);
    if (errno || (double)value < option->least || (double)value > option->most)
        return fail(err, WALSH_E_ARGUMENT, "%s: %s is out of range: %s", source, text,
                    range_text(option, (double)value, range, sizeof range));
    *out = value;
    return WALSH_OK;
}

static enum walsh_status parse_real(const struct option *option, const char *source, const char *text,
                                    double *out, struct walsh_error *err)
{
    char *end, range[80];
    double value = strtod(text, &end);
    if (end == text || *end || isnan(value))
        return fail(err, WALSH_E_ARGUMENT, "%s: '%s' is not a number", source, text);
    if (value < option->least || value > option->most)
        return fail(err, WALSH_E_ARGUMENT, "%s: %s is out of range: %s", source, text,
                    range_text(option, value, range, sizeof range));
    *out = value;
    return WALSH_OK;
}

static enum walsh_status parse_choice(const struct option *option, const char *source, const char *text,
                                      const char **out, struct walsh_error *err)
{
    for (const char *choice = option->choices; choice;) {
        const char *bar = strchr(choice, '|');
        size_t length = bar ? (size_t)(bar - choice) : strlen(choice);
        if (strlen(text) == length && strncmp(text, choice, length) == 0) {
            *out = text;
            return WALSH_OK;
        }
        choice = bar ? bar + 1 : NULL;
    }
    return fail(err, WALSH_E_ARGUMENT, "%s: '%s' is not supported; supported: %s", source, text,
                option->choices);
}

static enum walsh_status parse_integers(const struct option *option, const char *source, const char *text,
                                        struct option_integers *out, struct walsh_error *err)
{
    out->count = 0;
    for (const char *item = text; item;) {
        const char *comma = strchr(item, ',');
        char number[32];
        snprintf(number, sizeof number, "%.*s", comma ? (int)(comma - item) : 31, item);
        if (out->count == OPTION_MANY)
            return fail(err, WALSH_E_ARGUMENT, "%s: more than %d numbers", source, OPTION_MANY);
        TRY(parse_integer(option, source, number, &out->values[out->count], err));
        out->count++;
        item = comma ? comma + 1 : NULL;
    }
    return WALSH_OK;
}

/* "1", "true", "yes" and "on" in the environment set a flag; "0", "false", "no", "off" and "" do not. */
static enum walsh_status parse_switch(const char *source, const char *text, bool *out,
                                      struct walsh_error *err)
{
    static const char *const words[] = {"", "0", "false", "no", "off", "1", "true", "yes", "on"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (strcmp(text, words[i]) == 0) {
            *out = i >= 5;
            return WALSH_OK;
        }
    }
    return fail(err, WALSH_E_ARGUMENT, "%s: '%s' is neither 1 nor 0", source, text);
}

/* Put `text` where the option says. `source` names the option in messages: "--threads", "WALSH_THREADS". */
static enum walsh_status store(const struct option *option, const char *source, const char *text,
                               void *settings, struct walsh_error *err)
{
    void *at = (char *)settings + option->offset;
    switch (option->kind) {
    case OPTION_FLAG:
        return parse_switch(source, text, at, err);
    case OPTION_INTEGER:
        return parse_integer(option, source, text, at, err);
    case OPTION_REAL:
        return parse_real(option, source, text, at, err);
    case OPTION_CHOICE:
        return parse_choice(option, source, text, at, err);
    case OPTION_INTEGERS:
        return parse_integers(option, source, text, at, err);
    case OPTION_TEXTS: {
        struct option_texts *texts = at;
        if (texts->count == OPTION_MANY)
            return fail(err, WALSH_E_ARGUMENT, "%s: given more than %d times", source, OPTION_MANY);
        texts->values[texts->count++] = text;
        return WALSH_OK;
    }
    case OPTION_TEXT:
    case OPTION_MAYBE:
        *(const char **)at = text;
        return WALSH_OK;
    }
    return WALSH_OK;
}

static enum walsh_status set_defaults(const struct option *table, void *settings, struct walsh_error *err)
{
    for (const struct option *o = table; o && o->name; o++) {
        void *at = (char *)settings + o->offset;
        if (o->kind == OPTION_INTEGER) *(int64_t *)at = OPTION_UNSET;
        if (o->kind == OPTION_REAL) *(double *)at = NAN;
        if (o->fallback) TRY(store(o, o->name, o->fallback, settings, err));
        const char *value = o->environment ? getenv(o->environment) : NULL;
        if (value && (*value || o->kind == OPTION_FLAG)) TRY(store(o, o->environment, value, settings, err));
    }
    return WALSH_OK;
}

/* ---------------------------------------------------------------------------------------- parser */

static enum walsh_status unknown_option(const struct verb *verb, const char *name, struct walsh_error *err)
{
    const char *near = nearest_option(verb, name);
    if (near) return fail(err, WALSH_E_ARGUMENT, "unknown option '--%s'; did you mean '--%s'?", name, near);
    return fail(err, WALSH_E_ARGUMENT, "unknown option '--%s'", name);
}

static const struct option *find_option(const struct verb *verb, const char *name, size_t length)
{
    const struct option *option = find_long(verb->options, name, length);
    return option ? option : find_long(common_options, name, length);
}

/* A common option that means nothing to this verb is accepted, because scripts pass the same options to all.
 */
static void note_unused(const struct verb *verb, const struct option *option, const char *source)
{
    if (option->uses && !(option->uses & verb->uses))
        fprintf(stderr, "walsh %s: %s has no effect here\n", verb->name, source);
}

/* Option at argv[*i]; *i moves to the last argument used. */
static enum walsh_status parse_option(const struct verb *verb, int argc, char **argv, int *i, void *settings,
                                      struct walsh_error *err)
{
    const char *word = argv[*i], *value = NULL;
    const struct option *option;
    char source[80];
    if (word[1] == '-') {
        size_t length = strcspn(word + 2, "=");
        snprintf(source, sizeof source, "--%.*s", (int)length, word + 2);
        option = find_option(verb, word + 2, length);
        if (!option) return unknown_option(verb, source + 2, err);
        if (word[2 + length] == '=') value = word + 3 + length;
        if (option->kind == OPTION_FLAG && value)
            return fail(err, WALSH_E_ARGUMENT, "%s takes no argument", source);
    } else {
        snprintf(source, sizeof source, "-%c", word[1]);
        option = find_letter(verb->options, word[1]);
        if (!option) option = find_letter(common_options, word[1]);
        if (!option) return fail(err, WALSH_E_ARGUMENT, "unknown option '%s'", source);
        if (word[2] && option->kind == OPTION_FLAG)
            return fail(err, WALSH_E_ARGUMENT, "%s takes no argument", source);
        if (word[2]) value = word + 2;
    }
    note_unused(verb, option, source);
    if (option->kind == OPTION_FLAG) return store(option, source, "1", settings, err);
    if (option->kind == OPTION_MAYBE) return store(option, source, value ? value : "", settings, err);
    if (!value) {
        if (*i + 1 >= argc)
            return fail(err, WALSH_E_ARGUMENT, "%s needs an argument: %s", source, option->argument);
        value = argv[++*i];
    }
    return store(option, source, value, settings, err);
}

enum walsh_status options_parse(const struct verb *verb, int argc, char **argv, struct command *settings,
                                struct walsh_error *err)
{
    TRY(set_defaults(common_options, settings, err));
    TRY(set_defaults(verb->options, settings, err));
    size_t allowed = 0;
    while (allowed < MAX_ARGUMENTS && verb->positionals[allowed]) allowed++;
    bool only_arguments = false;
    for (int i = 0; i < argc; i++) {
        if (!only_arguments && strcmp(argv[i], "--") == 0) {
            only_arguments = true;
        } else if (!only_arguments && argv[i][0] == '-' && argv[i][1]) {
            TRY(parse_option(verb, argc, argv, &i, settings, err));
        } else if (settings->argument_count == allowed) {
            return fail(err, WALSH_E_ARGUMENT, "unexpected argument '%s'", argv[i]);
        } else {
            settings->arguments[settings->argument_count++] = argv[i];
        }
    }
    if (settings->argument_count < verb->least_arguments && !settings->help)
        return fail(err, WALSH_E_ARGUMENT, "%s is missing", verb->positionals[settings->argument_count]);
    return WALSH_OK;
}

/* ---------------------------------------------------------------------------------------- help */

enum { HELP_COLUMN = 30, HELP_WIDTH = 100 };

/* Words of `text` from column `at`, wrapped and indented to `indent`. Line breaks in the text are kept. */
static void print_wrapped(FILE *to, const char *text, size_t at, size_t indent)
{
    bool first = true;
    while (*text) {
        if (*text == '\n') {
            fputc('\n', to);
            at = 0;
            first = true;
            text++;
            continue;
        }
        size_t word = strcspn(text, " \n");
        if (!first && at + 1 + word > HELP_WIDTH) {
            fprintf(to, "\n%*s", (int)indent, "");
            at = indent;
        } else if (!first) {
            fputc(' ', to);
            at++;
        }
        fwrite(text, 1, word, to);
        at += word;
        text += word;
        if (*text == ' ') text++;
        first = false;
    }
    fputc('\n', to);
}

void option_text(const struct option *option, struct option_words *out)
{
    char range[80];
    char *right = out->text;
    const size_t size = sizeof out->text;
    out->argument = option->choices && strlen(option->choices) < 16 ? option->choices : option->argument;
    int n = snprintf(right, size, "%s", option->help);
    if (option->choices && out->argument != option->choices)
        n += snprintf(right + n, size - (size_t)n, ": %s", option->choices);
    bool number = option->kind == OPTION_INTEGER || option->kind == OPTION_REAL;
    if (number && option->most < UNBOUNDED)
        n += snprintf(right + n, size - (size_t)n, "; %s", range_text(option, 0, range, sizeof range));
    if (option->fallback) n += snprintf(right + n, size - (size_t)n, " [%s]", option->fallback);
    if (option->environment) n += snprintf(right + n, size - (size_t)n, " (%s)", option->environment);
    if (!option->aliases) return;
    const char *cursor = option->aliases, *word;
    const char *before = " (also ";
    for (size_t length = option_next_word(&cursor, &word); length > 0;
         length = option_next_word(&cursor, &word)) {
        n += snprintf(right + n, size - (size_t)n, "%s--%.*s", before, (int)length, word);
        before = ", ";
    }
    snprintf(right + n, size - (size_t)n, ")");
}

static void print_option(FILE *to, const struct option *option)
{
    char left[80];
    struct option_words words;
    option_text(option, &words);
    int n = option->letter ? snprintf(left, sizeof left, "  -%c, --%s", option->letter, option->name)
                           : snprintf(left, sizeof left, "      --%s", option->name);
    if (words.argument)
        snprintf(left + n, sizeof left - (size_t)n, option->kind == OPTION_MAYBE ? "[=%s]" : " %s",
                 words.argument);
    if (strlen(left) + 2 > HELP_COLUMN)
        fprintf(to, "%s\n%*s", left, HELP_COLUMN, "");
    else
        fprintf(to, "%-*s", HELP_COLUMN, left);
    print_wrapped(to, words.text, HELP_COLUMN, HELP_COLUMN);
}

bool option_serves(const struct verb *verb, const struct option *option)
{
    return !option->uses || (option->uses & verb->uses);
}

void options_help(const struct verb *verb, FILE *to)
{
    fprintf(to, "Usage: walsh %s [OPTIONS]%s%s\n\n", verb->name, *verb->usage ? " " : "", verb->usage);
    fprintf(to, "%c%s.\n", verb->summary[0] - 'a' + 'A', verb->summary + 1);
    if (verb->details) {
        fputc('\n', to);
        print_wrapped(to, verb->details, 0, 0);
    }
    if (verb->options && verb->options->name) fprintf(to, "\nOptions:\n");
    for (const struct option *o = verb->options; o && o->name; o++) print_option(to, o);
    fprintf(to, "\nOptions of every verb:\n");
    for (const struct option *o = common_options; o->name; o++)
        if (option_serves(verb, o)) print_option(to, o);
}

void options_overview(FILE *to)
{
    fprintf(to, "Usage: walsh VERB [OPTIONS] ...\n\n"
                "Quantize, run and measure language models with rotated low-bit weights.\n\nVerbs:\n");
    for (const struct verb *const *v = verbs; *v; v++) fprintf(to, "  %-10s %s\n", (*v)->name, (*v)->summary);
    fprintf(to, "  %-10s %s\n", "help", "explain a verb and its options");
    fprintf(to, "\nA MODEL is a Hugging Face directory, a Hugging Face id that is in the local cache, or "
                "bookworm-8m, which\n"
                "ships with walsh.\n"
                "'walsh help VERB' explains a verb; 'walsh --version' prints the version.\n");
}
