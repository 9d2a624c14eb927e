/* base/hooks: the caller's callbacks, handed down so that no layer below app/ prints or asks the environment.
 */
#ifndef WALSH_BASE_HOOKS_H
#define WALSH_BASE_HOOKS_H

#include <stdbool.h>

#include "walsh_hooks.h"

#include "base/status.h"

/* Format and send one line to hooks->log; nothing where hooks or its log is NULL. */
void walsh_log(const struct walsh_hooks *hooks, enum walsh_log_level level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void walsh_progress(const struct walsh_hooks *hooks, const char *stage, double done, double total,
                    const char *unit);
/* WALSH_E_ABORTED with a message where the abort hook says so. */
enum walsh_status walsh_check_abort(const struct walsh_hooks *hooks, struct walsh_error *err);

#endif
