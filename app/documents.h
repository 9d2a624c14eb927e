/* app/documents: manual pages and shell completion, from the tables that the parser reads. */
#ifndef WALSH_APP_DOCUMENTS_H
#define WALSH_APP_DOCUMENTS_H

#include <stdbool.h>
#include <stdio.h>

#include "app.h"

/* walsh(1), and walsh-VERB(1), in man(7). */
void documents_man_overview(FILE *to);
void documents_man(const struct verb *verb, FILE *to);

/* The script for "bash", "zsh" or "fish"; false for another shell. */
bool documents_completion(const char *shell, FILE *to);

#endif
