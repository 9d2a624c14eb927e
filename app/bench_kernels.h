/* app/bench_kernels: the rows of `walsh bench --kernels`. */
#ifndef WALSH_APP_BENCH_KERNELS_H
#define WALSH_APP_BENCH_KERNELS_H

#include "app.h"

/* Measure the kernels whose names contain `pattern` (NULL: all) and print a row each, or one JSON object. */
enum walsh_status bench_kernels(struct command *command, struct walsh_context *context, const char *pattern,
                                struct walsh_error *err);

#endif
