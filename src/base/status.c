#include "base/status.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *walsh_status_name(enum walsh_status status)
{
    static const char *const names[] = {
        [WALSH_OK] = "ok",
        [WALSH_E_ARGUMENT] = "argument",
        [WALSH_E_IO] = "io",
        [WALSH_E_FORMAT] = "format",
        [WALSH_E_UNSUPPORTED] = "unsupported",
        [WALSH_E_NOT_FOUND] = "not_found",
        [WALSH_E_EXISTS] = "exists",
        [WALSH_E_MEMORY] = "memory",
        [WALSH_E_CAPACITY] = "capacity",
        [WALSH_E_ABORTED] = "aborted",
        [WALSH_E_INTERNAL] = "internal",
        [WALSH_E_BUSY] = "busy",
    };
    size_t i = (size_t)status;
    return i < sizeof names / sizeof *names ? names[i] : "unknown";
}

/* Names from files reach messages, and messages reach terminals: control characters become '?'. */
static void defuse(char *message)
{
    for (unsigned char *p = (unsigned char *)message; *p; p++)
        if ((*p < 0x20 && *p != '\n' && *p != '\t') || *p == 0x7f) *p = '?';
}

enum walsh_status walsh_fail(struct walsh_error *err, enum walsh_status status, const char *format, ...)
{
    if (err) {
        va_list args;
        va_start(args, format);
        vsnprintf(err->message, sizeof err->message, format, args);
        va_end(args);
        defuse(err->message);
        err->status = status;
    }
    return status;
}

enum walsh_status walsh_fail_errno(struct walsh_error *err, int errnum, const char *format, ...)
{
    enum walsh_status status = errnum == ENOMEM ? WALSH_E_MEMORY : WALSH_E_IO;
    if (err) {
        va_list args;
        va_start(args, format);
        vsnprintf(err->message, sizeof err->message, format, args);
        va_end(args);
        defuse(err->message);
        size_t length = strlen(err->message);
        char text[128]; /* strerror is not thread-safe; this is the GNU strerror_r, which may return a
                           constant */
        snprintf(err->message + length, sizeof err->message - length, ": %s",
                 strerror_r(errnum, text, sizeof text));
        err->status = status;
    }
    return status;
}

enum walsh_status walsh_fail_within(struct walsh_error *err, enum walsh_status status, const char *format,
                                    ...)
{
    if (!err) return status;
    struct walsh_error inner = *err;
    va_list args;
    va_start(args, format);
    vsnprintf(err->message, sizeof err->message, format, args);
    va_end(args);
    defuse(err->message);
    size_t length = strlen(err->message);
    snprintf(err->message + length, sizeof err->message - length, ": %s", inner.message);
    err->status = status;
    return status;
}
