/* app/bench_kernels: the rows of `walsh bench --kernels`. */
#ifndef WALSH_APP_BENCH_KERNELS_H
#define WALSH_APP_BENCH_KERNELS_H

#include <jansson.h>

#include "app.h"

/* Measure the kernels whose names contain `pattern` (NULL: all) and print a row each, or one JSON object. */
enum walsh_status bench_kernels(struct command *command, struct walsh_context *context, const char *pattern,
                                struct walsh_error *err);

/* Ceilings as an object: read_gbps, and copy_gbps of a device or the rates of one thread and of all. */
json_t *bench_ceilings_json(const struct walsh_bench_ceilings *ceilings);

#endif
