#include "progress.h"

#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "app.h"
#include "output.h"

#define BAR_EVERY 0.1   /* seconds between redraws */
#define BAR_AFTER 0.3   /* stages shorter than this show nothing */
#define LINE_EVERY 10.0 /* seconds between plain lines */

static volatile sig_atomic_t stop_requested;

static void on_signal(int number)
{
    (void)number;
    stop_requested = 1;
}

void interrupt_arm(void)
{
    stop_requested = 0;
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

bool interrupted(void)
{
    return stop_requested != 0;
}

void progress_open(struct progress *progress, const char *verb, bool quiet)
{
    *progress = (struct progress){.verb = verb, .quiet = quiet, .terminal = isatty(STDERR_FILENO) == 1};
}

void progress_clear(struct progress *progress)
{
    if (!progress->bar_shown) return;
    fputs("\r\033[K", stderr);
    progress->bar_shown = false;
}

void progress_note(struct progress *progress, const char *format, ...)
{
    if (progress->quiet) return;
    progress_clear(progress);
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
}

static void on_log(void *user, enum walsh_log_level level, const char *line)
{
    struct progress *progress = user;
    if (level == WALSH_LOG_DEBUG || (progress->quiet && level != WALSH_LOG_WARNING)) return;
    progress_clear(progress);
    char text[1024]; /* a line may quote a file */
    fprintf(stderr, "walsh %s: %s%s\n", progress->verb, level == WALSH_LOG_WARNING ? "warning: " : "",
            printable(line, text, sizeof text));
}

/* "1:02:03" or "2:03" into buffer. */
static void time_text(double seconds, char *buffer, size_t size)
{
    long s = lround(fmin(seconds, 359999.0));
    if (s >= 3600)
        snprintf(buffer, size, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
    else
        snprintf(buffer, size, "%ld:%02ld", s / 60, s % 60);
}

/* "3/5 layers, 1.2 s/layer, 0:02 left" or "5/5 layers, 1.2 s/layer, 0:06 in all" into buffer. */
static void step_text(const struct progress *progress, double done, double total, const char *unit,
                      double now, char *buffer, size_t size)
{
    double rate = (done - progress->first_done) / (now - progress->started);
    int n = snprintf(buffer, size, "%.0f/%.0f %s", done, total, unit);
    if (!(rate > 0) || n < 0 || (size_t)n >= size) return;
    char time[24];
    bool finished = done >= total;
    time_text(finished ? now - progress->started : (total - done) / rate, time, sizeof time);
    const char *which = finished ? "in all" : "left";
    size_t length = strlen(unit), singular = length > 1 && unit[length - 1] == 's' ? length - 1 : length;
    if (rate >= 1)
        snprintf(buffer + n, size - (size_t)n, ", %.*f %s/s, %s %s", rate < 100 ? 1 : 0, rate, unit, time,
                 which);
    else
        snprintf(buffer + n, size - (size_t)n, ", %.1f s/%.*s, %s %s", 1 / rate, (int)singular, unit, time,
                 which);
}

static void draw_bar(struct progress *progress, double share, const char *step)
{
    struct winsize window;
    int columns = ioctl(STDERR_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_col > 0 ? window.ws_col : 80;
    int width = columns - (int)strlen(progress->stage) - (int)strlen(step) - 6;
    if (width > 40) width = 40;
    if (width < 8) {
        fprintf(stderr, "\r%.*s\033[K", columns - 1, step);
    } else {
        char bar[48];
        int full = (int)(share * width);
        for (int i = 0; i < width; i++) bar[i] = i < full ? '=' : i == full ? '>' : ' ';
        bar[width] = 0;
        fprintf(stderr, "\r%s [%s] %s\033[K", progress->stage, bar, step);
    }
    fflush(stderr);
    progress->bar_shown = true;
}

static void on_progress(void *user, const char *stage, double done, double total, const char *unit)
{
    struct progress *progress = user;
    if (progress->quiet) return;
    double now = seconds_now();
    if (strncmp(progress->stage, stage, sizeof progress->stage - 1) != 0 || done < progress->last_done) {
        snprintf(progress->stage, sizeof progress->stage, "%s", stage);
        progress->detail[0] = 0;
        progress->first_done = progress->last_done = done;
        progress->started = progress->drawn = now;
        return;
    }
    progress->last_done = done;
    bool finished = done >= total;
    if (now - progress->started < (progress->terminal ? BAR_AFTER : LINE_EVERY)) return;
    if (!finished && now - progress->drawn < (progress->terminal ? BAR_EVERY : LINE_EVERY)) return;
    char step[240];
    step_text(progress, done, total, unit, now, step, sizeof step - sizeof progress->detail - 2);
    if (progress->detail[0]) {
        strcat(step, ", ");
        strcat(step, progress->detail);
    }
    progress->drawn = now;
    if (!progress->terminal)
        fprintf(stderr, "%s: %s\n", progress->stage, step);
    else if (finished)
        progress_clear(progress);
    else
        draw_bar(progress, total > 0 ? done / total : 0, step);
}

static bool on_abort(void *user)
{
    (void)user;
    return interrupted();
}

struct walsh_hooks progress_hooks(struct progress *progress)
{
    return (struct walsh_hooks){.user = progress, .log = on_log, .progress = on_progress, .abort = on_abort};
}
