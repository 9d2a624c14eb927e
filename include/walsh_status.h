/* Status codes and error messages: the part of the public interface that every layer shares. */
#ifndef WALSH_STATUS_H
#define WALSH_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

/* What the shared library exports; everything else is hidden in it. */
#if defined(__GNUC__)
#define WALSH_API __attribute__((visibility("default")))
#else
#define WALSH_API
#endif

/* What a call returns. Everything but WALSH_OK comes with a message in the caller's struct walsh_error. */
enum walsh_status {
    WALSH_OK = 0,
    WALSH_E_ARGUMENT,    /* the caller's arguments or options are wrong */
    WALSH_E_IO,          /* the operating system refused: open, read, write, map, rename, disk full */
    WALSH_E_FORMAT,      /* a file is malformed, truncated or inconsistent */
    WALSH_E_UNSUPPORTED, /* well formed, but this build does not know it */
    WALSH_E_NOT_FOUND,   /* a file, tensor or name that must exist does not */
    WALSH_E_EXISTS,      /* an output that must not exist does */
    WALSH_E_MEMORY,      /* an allocation failed or a predicted size cannot fit */
    WALSH_E_CAPACITY,    /* the context or the cache is full */
    WALSH_E_ABORTED,     /* the caller's abort hook said stop */
    WALSH_E_INTERNAL,    /* a broken invariant of walsh itself: a bug */
    WALSH_E_BUSY         /* a queue is full: the same call may succeed later */
};

/* The caller's error buffer. `message` names the file, the tensor or option, what was found, what was
 * expected. Every call accepts NULL where no message is wanted. */
struct walsh_error {
    enum walsh_status status;
    char message[1000];
};

/* The enumerator's name without its prefix, lower case ("io", "format", ...); never NULL. */
WALSH_API const char *walsh_status_name(enum walsh_status status);

#ifdef __cplusplus
}
#endif
#endif
