/* Callbacks for log lines, progress and cancellation. Every member may be NULL. They are called from the
 * thread that made the call into walsh, never from a worker. */
#ifndef WALSH_HOOKS_H
#define WALSH_HOOKS_H

#include <stdbool.h>

enum walsh_log_level { WALSH_LOG_DEBUG, WALSH_LOG_INFO, WALSH_LOG_WARNING };

struct walsh_hooks {
    void *user; /* handed back to each callback */
    void (*log)(void *user, enum walsh_log_level level, const char *line);
    /* `done` of `total` in `unit` ("layers", "tokens") of the stage named `stage`. */
    void (*progress)(void *user, const char *stage, double done, double total, const char *unit);
    bool (*abort)(void *user); /* true stops the job at the next safe point with WALSH_E_ABORTED */
};

#endif
