#include "base/hooks.h"

#include <stdarg.h>
#include <stdio.h>

void walsh_log(const struct walsh_hooks *hooks, enum walsh_log_level level, const char *format, ...)
{
    if (!hooks || !hooks->log) return;
    char line[2048];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    hooks->log(hooks->user, level, line);
}

void walsh_progress(const struct walsh_hooks *hooks, const char *stage, double done, double total,
                    const char *unit)
{
    if (hooks && hooks->progress) hooks->progress(hooks->user, stage, done, total, unit);
}

enum walsh_status walsh_check_abort(const struct walsh_hooks *hooks, struct walsh_error *err)
{
    if (hooks && hooks->abort && hooks->abort(hooks->user))
        return walsh_fail(err, WALSH_E_ABORTED, "stopped on request");
    return WALSH_OK;
}
