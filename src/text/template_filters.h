/* text/template_filters: the tables of filters. Private to template_filters.c and template_sequences.c. */
#ifndef WALSH_TEXT_TEMPLATE_FILTERS_H
#define WALSH_TEXT_TEMPLATE_FILTERS_H

#include "text/template_internal.h"

struct walsh_tpl_filter {
    const char *name; /* NULL: the end of a table */
    enum walsh_status (*apply)(struct walsh_tpl_run *run, const struct walsh_tpl_value *value,
                               const struct walsh_tpl_arguments *arguments, struct walsh_tpl_value *out);
};
extern const struct walsh_tpl_filter walsh_tpl_scalar_filters[], walsh_tpl_sequence_filters[];

#endif
