/* app/progress: log lines and a progress bar on stderr: a bar with step, rate and remaining time on a
 * terminal, a plain line every few seconds elsewhere, nothing with --quiet (warnings stay). Also turns Ctrl-C
 * into the abort hook. */
#ifndef WALSH_APP_PROGRESS_H
#define WALSH_APP_PROGRESS_H

#include <stdbool.h>

#include "walsh_hooks.h"

struct progress {
    const char *verb;
    bool quiet, terminal;
    bool bar_shown; /* a bar stands on the cursor's line */
    char stage[64];
    char detail[64]; /* of the stage, behind the step; "": nothing */
    double first_done,
        last_done;         /* where the stage began (a resumed job does not begin at 0) and where it is */
    double started, drawn; /* seconds_now() of the stage's begin and of the last output */
};

void progress_open(struct progress *progress, const char *verb, bool quiet);
/* Hooks that draw on `progress` and abort after Ctrl-C. */
struct walsh_hooks progress_hooks(struct progress *progress);
/* Remove the bar before something else is written to the terminal. */
void progress_clear(struct progress *progress);
/* One line on stderr, unless quiet. */
void progress_note(struct progress *progress, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Catch SIGINT and SIGTERM: the first one asks the job to stop, the second kills. Call again to rearm. */
void interrupt_arm(void);
bool interrupted(void);

#endif
