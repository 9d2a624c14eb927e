/* base/status: how a failing call fills the caller's struct walsh_error. Depends on nothing. */
#ifndef WALSH_BASE_STATUS_H
#define WALSH_BASE_STATUS_H

#include "walsh_status.h"

/* Write `format` into err (NULL is fine) and return `status`, so that a call ends with
 * `return walsh_fail(err, WALSH_E_FORMAT, "%s: ...", path);`. A longer message is cut. */
enum walsh_status walsh_fail(struct walsh_error *err, enum walsh_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4), cold));

/* As walsh_fail, with ": " and the text of `errnum` behind the message; ENOMEM becomes WALSH_E_MEMORY. */
enum walsh_status walsh_fail_errno(struct walsh_error *err, int errnum, const char *format, ...)
    __attribute__((format(printf, 3, 4), cold));

/* Put "format: " before the message already in err (a caller adds the file's name); returns err's status. */
enum walsh_status walsh_fail_within(struct walsh_error *err, enum walsh_status status, const char *format,
                                    ...) __attribute__((format(printf, 3, 4), cold));

/* Leave the function when a call fails, its message already written. */
#define WALSH_TRY(call)                                                                                      \
    do {                                                                                                     \
        enum walsh_status walsh_try_status = (call);                                                         \
        if (walsh_try_status != WALSH_OK) return walsh_try_status;                                           \
    } while (0)

#endif
