/* Completion scripts from the tables: verbs, the options of each, the choices of an option, and files where
 * an option or a positional argument is a path. */
#include <string.h>

#include "documents.h"

#define MOST_OPTIONS 128

/* All options of a verb, its own first; returns their number. */
static size_t options_of(const struct verb *verb, const struct option *list[MOST_OPTIONS])
{
    size_t count = 0;
    for (const struct option *o = verb->options; o && o->name && count < MOST_OPTIONS; o++) list[count++] = o;
    for (const struct option *o = common_options; o->name && count < MOST_OPTIONS; o++)
        if (option_serves(verb, o)) list[count++] = o;
    return count;
}

static bool takes_value(const struct option *option)
{
    return option->kind != OPTION_FLAG && option->kind != OPTION_MAYBE;
}

static bool takes_path(const struct option *option)
{
    static const char *const paths[] = {"FILE", "DIR", "MODEL", "PATH", "ADAPTER"};
    if (!option->argument) return false;
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++)
        if (strstr(option->argument, paths[i])) return true;
    return false;
}

static void put_choices(FILE *to, const struct option *option)
{
    for (const char *c = option->choices; *c; c++) fputc(*c == '|' ? ' ' : *c, to);
}

/* Within single quotes of a shell; each of `special` gets a backslash. */
static void put_quoted(FILE *to, const char *text, const char *special)
{
    for (; *text; text++) {
        if (*text == '\'')
            fputs("'\\''", to);
        else if (strchr(special, *text))
            fprintf(to, "\\%c", *text);
        else
            fputc(*text == '\n' ? ' ' : *text, to);
    }
}

static void put_verbs(FILE *to)
{
    for (const struct verb *const *v = verbs; *v; v++) fprintf(to, "%s ", (*v)->name);
}

/* ---------------------------------------------------------------------------------------- bash */

/* "VERB --name" | "VERB -n" | "VERB --alias": the words before a value. */
static void bash_pattern(FILE *to, const struct verb *verb, const struct option *option)
{
    const char *cursor = option->aliases ? option->aliases : "", *word;
    fprintf(to, "    '%s --%s'", verb->name, option->name);
    if (option->letter) fprintf(to, " | '%s -%c'", verb->name, option->letter);
    for (size_t n = option_next_word(&cursor, &word); n > 0; n = option_next_word(&cursor, &word))
        fprintf(to, " | '%s --%.*s'", verb->name, (int)n, word);
    fputs(")\n        ", to);
    if (option->choices) {
        fputs("COMPREPLY=($(compgen -W '", to);
        put_choices(to, option);
        fputs("' -- \"$cur\"))", to);
    } else if (takes_path(option)) {
        fputs("COMPREPLY=($(compgen -f -- \"$cur\"))", to);
    } else {
        fputc(':', to);
    }
    fputs("\n        return\n        ;;\n", to);
}

static void complete_bash(FILE *to)
{
    const struct option *list[MOST_OPTIONS];
    fputs("# bash completion for walsh, made from its tables of options\n"
          "_walsh() {\n"
          "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} verb=${COMP_WORDS[1]} "
          "words=\n"
          "    COMPREPLY=()\n"
          "    if ((COMP_CWORD == 1)); then\n"
          "        COMPREPLY=($(compgen -W '",
          to);
    put_verbs(to);
    fputs("help --version' -- \"$cur\"))\n"
          "        return\n"
          "    fi\n"
          "    # bash parts --name=value at the sign\n"
          "    if [[ $cur == = ]]; then\n"
          "        cur=\n"
          "    elif [[ $prev == = ]]; then\n"
          "        prev=${COMP_WORDS[COMP_CWORD - 2]}\n"
          "    fi\n"
          "    case \"$verb $prev\" in\n",
          to);
    for (const struct verb *const *v = verbs; *v; v++) {
        const size_t count = options_of(*v, list);
        for (size_t i = 0; i < count; i++)
            if (takes_value(list[i])) bash_pattern(to, *v, list[i]);
    }
    fputs("    esac\n    case $verb in\n    help) words='", to);
    put_verbs(to);
    fputs("' ;;\n", to);
    for (const struct verb *const *v = verbs; *v; v++) {
        const size_t count = options_of(*v, list);
        fprintf(to, "    %s) words='", (*v)->name);
        for (size_t i = 0; i < count; i++) fprintf(to, "%s--%s", i ? " " : "", list[i]->name);
        fputs("' ;;\n", to);
    }
    fputs("    esac\n"
          "    if [[ $verb == help || $cur == -* ]]; then\n"
          "        COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n"
          "    else\n"
          "        COMPREPLY=($(compgen -f -- \"$cur\"))\n"
          "    fi\n"
          "}\n"
          "complete -o filenames -F _walsh walsh\n",
          to);
}

/* ---------------------------------------------------------------------------------------- zsh */

static void zsh_option(FILE *to, const struct option *option)
{
    fputs(" \\\n        ", to);
    if (option->letter)
        fprintf(to, "'(-%c --%s)'{-%c,--%s}'", option->letter, option->name, option->letter, option->name);
    else
        fprintf(to, "'--%s", option->name);
    fputc('[', to);
    put_quoted(to, option->help, "[]\\");
    fputc(']', to);
    if (takes_value(option)) {
        fputc(':', to);
        put_quoted(to, option->argument ? option->argument : "", ":[]\\");
        fputc(':', to);
        if (option->choices) {
            fputc('(', to);
            put_choices(to, option);
            fputc(')', to);
        } else if (takes_path(option)) {
            fputs("_files", to);
        }
    }
    fputc('\'', to);
}

static void complete_zsh(FILE *to)
{
    const struct option *list[MOST_OPTIONS];
    fputs("#compdef walsh\n"
          "# zsh completion for walsh, made from its tables of options\n"
          "_walsh() {\n"
          "    local -a verbs\n"
          "    verbs=(\n",
          to);
    for (const struct verb *const *v = verbs; *v; v++) {
        fprintf(to, "        '%s:", (*v)->name);
        put_quoted(to, (*v)->summary, ":\\");
        fputs("'\n", to);
    }
    fputs("        'help:explain a verb and its options'\n"
          "    )\n"
          "    if ((CURRENT == 2)); then\n"
          "        _describe verb verbs\n"
          "        return\n"
          "    fi\n"
          "    local verb=$words[2]\n"
          "    shift words\n"
          "    ((CURRENT--))\n"
          "    case $verb in\n"
          "    help) _describe verb verbs ;;\n",
          to);
    for (const struct verb *const *v = verbs; *v; v++) {
        const size_t count = options_of(*v, list);
        fprintf(to, "    %s)\n        _arguments", (*v)->name);
        for (size_t i = 0; i < count; i++) zsh_option(to, list[i]);
        fputs(" \\\n        '*:file:_files'\n        ;;\n", to);
    }
    fputs("    esac\n}\n_walsh \"$@\"\n", to);
}

/* ---------------------------------------------------------------------------------------- fish */

static void fish_option(FILE *to, const struct verb *verb, const struct option *option)
{
    fprintf(to, "complete -c walsh -n '__fish_seen_subcommand_from %s' -l %s", verb->name, option->name);
    if (option->letter) fprintf(to, " -s %c", option->letter);
    if (option->choices) {
        fputs(" -x -a '", to);
        put_choices(to, option);
        fputc('\'', to);
    } else if (takes_value(option)) {
        fputs(takes_path(option) ? " -r -F" : " -x", to);
    }
    fputs(" -d '", to);
    /* fish knows \' and \\ within single quotes */
    for (const char *c = option->help; *c; c++) {
        if (*c == '\'' || *c == '\\') fputc('\\', to);
        fputc(*c == '\n' ? ' ' : *c, to);
    }
    fputs("'\n", to);
}

static void complete_fish(FILE *to)
{
    const struct option *list[MOST_OPTIONS];
    fputs("# fish completion for walsh, made from its tables of options\n", to);
    for (const struct verb *const *v = verbs; *v; v++)
        fprintf(to, "complete -c walsh -n __fish_use_subcommand -f -a %s -d '%s'\n", (*v)->name,
                (*v)->summary);
    fputs("complete -c walsh -n __fish_use_subcommand -f -a help -d 'explain a verb and its options'\n"
          "complete -c walsh -n '__fish_seen_subcommand_from help' -f -a '",
          to);
    put_verbs(to);
    fputs("'\n", to);
    for (const struct verb *const *v = verbs; *v; v++) {
        const size_t count = options_of(*v, list);
        for (size_t i = 0; i < count; i++) fish_option(to, *v, list[i]);
    }
}

bool documents_completion(const char *shell, FILE *to)
{
    static const struct {
        const char *shell;
        void (*put)(FILE *to);
    } scripts[] = {{"bash", complete_bash}, {"zsh", complete_zsh}, {"fish", complete_fish}};
    for (size_t i = 0; i < sizeof scripts / sizeof *scripts; i++) {
        if (strcmp(shell, scripts[i].shell) != 0) continue;
        scripts[i].put(to);
        return true;
    }
    return false;
}
