/* app/options: one table of options per verb. It feeds the parser, the environment, the messages and the
 * help. */
#ifndef WALSH_APP_OPTIONS_H
#define WALSH_APP_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "walsh_status.h"

struct command;
struct verb;

enum option_kind { /* what lies at `offset` in the settings; its value where the option is not given */
                   OPTION_FLAG,     /* bool; false */
                   OPTION_INTEGER,  /* int64_t in [least, most]; OPTION_UNSET */
                   OPTION_REAL,     /* double in [least, most]; NAN */
                   OPTION_TEXT,     /* const char *; NULL */
                   OPTION_CHOICE,   /* const char *, one of `choices`; NULL */
                   OPTION_INTEGERS, /* struct option_integers, "1,8", each in [least, most]; empty */
                   OPTION_TEXTS,    /* struct option_texts; the option may be repeated */
                   OPTION_MAYBE     /* const char *: "" where given without =VALUE; NULL */
};

#define OPTION_UNSET INT64_MIN
#define OPTION_MANY 16

struct option_integers {
    int64_t values[OPTION_MANY];
    size_t count;
};
struct option_texts {
    const char *values[OPTION_MANY];
    size_t count;
};

struct option {
    const char *name;     /* long name without dashes */
    char letter;          /* 0: none */
    const char *aliases;  /* other long names, separated by spaces; NULL: none */
    const char *argument; /* its argument's name in the help; NULL for flags */
    enum option_kind kind;
    double least, most;      /* of numbers */
    const char *choices;     /* "auto|f32|bf16"; for OPTION_CHOICE */
    const char *fallback;    /* parsed where the option is not given; NULL: unset */
    const char *environment; /* "WALSH_THREADS"; NULL: none */
    size_t offset;           /* in the settings */
    unsigned uses;    /* of the options of every verb: the USES_ bit that makes it meaningful; 0: always */
    const char *help; /* lower case, no full stop */
};

/* Fill the verb's settings: fallbacks, then the environment, then the arguments. Dashes and underscores in
 * long names are the same. Wrong usage: WALSH_E_ARGUMENT with the nearest option in the message. */
enum walsh_status options_parse(const struct verb *verb, int argc, char **argv, struct command *settings,
                                struct walsh_error *err);

/* The help of one verb, and the overview of all. */
void options_help(const struct verb *verb, FILE *to);
void options_overview(FILE *to);

/* One option in words, as the help and the manual pages have them. */
struct option_words {
    const char *argument; /* its name, or short choices; NULL for flags */
    char text[1200];      /* the help, choices, range, fallback, environment and aliases */
};
void option_text(const struct option *option, struct option_words *out);
/* False where an option of every verb means nothing to this one. */
bool option_serves(const struct verb *verb, const struct option *option);
/* The next word of a space-separated list, such as `aliases`: its length, *cursor behind it; 0 at the end. */
size_t option_next_word(const char **cursor, const char **word);

/* The entry of `names` (NULL at the end) nearest to `word`, or NULL where none is near. */
const char *nearest_name(const char *word, const char *const *names);

#endif
