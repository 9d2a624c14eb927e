/* Manual pages from the tables. */
#include "documents.h"

#include <string.h>

/* Text for troff: what would be an escape, a request or a typographic hyphen stands for itself. A blank line
 * in the text begins a paragraph; other line breaks are spaces. */
static void put_troff(FILE *to, const char *text)
{
    bool line_begins = true;
    for (; *text; text++) {
        if (text[0] == '\n' && text[1] == '\n') {
            fputs("\n.PP\n", to);
            text++;
            line_begins = true;
            continue;
        }
        if (line_begins && (*text == '.' || *text == '\'')) fputs("\\&", to);
        if (*text == '\\')
            fputs("\\e", to);
        else if (*text == '-')
            fputs("\\-", to);
        else if (*text == '`')
            fputs("\\(ga", to);
        else if (*text == '\'')
            fputs("\\(aq", to);
        else if (*text == '~')
            fputs("\\(ti", to);
        else if (*text == '^')
            fputs("\\(ha", to);
        else
            fputc(*text == '\n' ? ' ' : *text, to);
        line_begins = false;
    }
}

static void put_line(FILE *to, const char *text)
{
    put_troff(to, text);
    fputc('\n', to);
}

static void begin_page(FILE *to, const char *name, const char *summary)
{
    fputs(".TH ", to);
    for (; *name; name++) {
        if (*name == '-') fputc('\\', to);
        fputc(*name >= 'a' && *name <= 'z' ? *name - 'a' + 'A' : *name, to);
    }
    fprintf(to, " 1 \"" WALSH_VERSION_DATE "\" \"walsh %s\" \"User Commands\"\n.SH NAME\n", walsh_version());
    put_troff(to, summary);
    fputs("\n.SH SYNOPSIS\n", to);
}

static void put_option(FILE *to, const struct option *option)
{
    struct option_words words;
    option_text(option, &words);
    fputs(".TP\n", to);
    if (option->letter) fprintf(to, "\\fB\\-%c\\fR, ", option->letter);
    fputs("\\fB\\-\\-", to);
    put_troff(to, option->name);
    fputs("\\fR", to);
    if (words.argument) {
        fputs(option->kind == OPTION_MAYBE ? "[=\\fI" : " \\fI", to);
        put_troff(to, words.argument);
        fputs(option->kind == OPTION_MAYBE ? "\\fR]" : "\\fR", to);
    }
    fputc('\n', to);
    put_line(to, words.text);
}

static const char exit_status[] =
    ".SH \"EXIT STATUS\"\n0: success. 1: failed. 2: wrong usage. The message is on standard error.\n";

static void put_environment(FILE *to)
{
    static const char *const more[][2] = {
        {"WALSH_DATA", "the directory of the texts and models that ship with walsh"},
        {"HF_HUB_CACHE", "the Hugging Face cache; else $HF_HOME/hub, else ~/.cache/huggingface/hub"},
    };
    fputs(".SH ENVIRONMENT\nOptions have twins in the environment, which the command line overrides; those "
          "of every "
          "verb:\n",
          to);
    for (const struct option *o = common_options; o->name; o++) {
        if (!o->environment) continue;
        fprintf(to, ".TP\n\\fB%s\\fR\n\\-\\-", o->environment);
        put_line(to, o->name);
    }
    for (size_t i = 0; i < sizeof more / sizeof *more; i++) {
        fprintf(to, ".TP\n\\fB%s\\fR\n", more[i][0]);
        put_line(to, more[i][1]);
    }
}

static void put_see_also(FILE *to, const struct verb *except)
{
    const char *before = "";
    fputs(".SH \"SEE ALSO\"\n", to);
    if (except) {
        fputs(".BR walsh (1)", to);
        before = ",\n";
    }
    for (const struct verb *const *v = verbs; *v; v++) {
        if (*v == except) continue;
        fprintf(to, "%s.BR walsh\\-%s (1)", before, (*v)->name);
        before = ",\n";
    }
    fputc('\n', to);
}

void documents_man_overview(FILE *to)
{
    begin_page(to, "walsh", "walsh - quantize, run and measure language models with rotated low-bit weights");
    fputs(".B walsh\n\\fIVERB\\fR [\\fIOPTIONS\\fR] ...\n.SH DESCRIPTION\n", to);
    put_line(
        to,
        "walsh makes language models small and runs them. It rotates the weights of a Hugging Face "
        "checkpoint with a randomized Hadamard transform, rounds them to 2 to 8 bits, and multiplies with "
        "the packed codes directly; on the CPU, or on a GPU where its module is installed.\n\n"
        "A MODEL is a Hugging Face directory, a Hugging Face id that is in the local cache, or the name of a "
        "model that ships with walsh (bookworm-8m). Nothing is downloaded.");
    fputs(".SH VERBS\n", to);
    for (const struct verb *const *v = verbs; *v; v++) {
        fprintf(to, ".TP\n\\fB%s\\fR\n", (*v)->name);
        put_line(to, (*v)->summary);
    }
    fputs(".TP\n\\fBhelp\\fR \\fIVERB\\fR\nexplain a verb and its options\n", to);
    fputs(".SH \"OPTIONS OF EVERY VERB\"\n", to);
    for (const struct option *o = common_options; o->name; o++) put_option(to, o);
    fputs(exit_status, to);
    put_environment(to);
    put_see_also(to, NULL);
}

void documents_man(const struct verb *verb, FILE *to)
{
    char name[80], summary[200];
    snprintf(name, sizeof name, "walsh-%s", verb->name);
    snprintf(summary, sizeof summary, "walsh-%s - %s", verb->name, verb->summary);
    begin_page(to, name, summary);
    fprintf(to, ".B walsh %s\n[\\fIOPTIONS\\fR]", verb->name);
    if (*verb->usage) fputc(' ', to);
    put_line(to, verb->usage);
    fprintf(to, ".SH DESCRIPTION\n%c", verb->summary[0] - 'a' + 'A');
    put_troff(to, verb->summary + 1);
    fputs(".\n", to);
    if (verb->details) {
        fputs(".PP\n", to);
        put_line(to, verb->details);
    }
    if (verb->options && verb->options->name) fputs(".SH OPTIONS\n", to);
    for (const struct option *o = verb->options; o && o->name; o++) put_option(to, o);
    fputs(".SH \"OPTIONS OF EVERY VERB\"\n", to);
    for (const struct option *o = common_options; o->name; o++)
        if (option_serves(verb, o)) put_option(to, o);
    fputs(exit_status, to);
    put_see_also(to, verb);
}
