/* The log of steps: CSV, and a plot of the loss. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "train/output.h"

/* A text that grows. */
struct text {
    char *data;
    size_t size, room;
    bool failed;
};

static void put(struct text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void put(struct text *t, const char *format, ...)
{
    va_list args;
    if (t->size + 512 > t->room) {
        char *larger = realloc(t->data, 2 * t->room + 4096);
        if (!larger) {
            t->failed = true;
            return;
        }
        t->data = larger;
        t->room = 2 * t->room + 4096;
    }
    va_start(args, format);
    const int n = vsnprintf(t->data + t->size, t->room - t->size, format, args);
    va_end(args);
    if (n > 0) t->size += walsh_min((size_t)n, t->room - t->size - 1);
}

static enum walsh_status write_text(const char *directory, const char *name, struct text *t,
                                    struct walsh_error *err)
{
    char *path = NULL;
    enum walsh_status status = t->failed ? walsh_fail(err, WALSH_E_MEMORY, "no memory for %s", name)
                                         : walsh_path_join(directory, name, &path, err);
    if (status == WALSH_OK) status = walsh_file_write(path, t->data, t->size, err);
    walsh_free(path);
    free(t->data);
    return status;
}

enum walsh_status walsh_log_reserve(struct walsh_train_state *s, size_t count, struct walsh_error *err)
{
    if (count <= s->log_room) return WALSH_OK;
    const size_t room = walsh_max(count, 2 * s->log_room + 256);
    struct walsh_train_step *log;
    WALSH_TRY(walsh_alloc(room, sizeof *log, "the log", &log, err));
    if (s->log_room) memcpy(log, s->log, s->log_room * sizeof *log);
    walsh_free(s->log);
    s->log = log;
    s->log_room = room;
    return WALSH_OK;
}

enum walsh_status walsh_log_write(const char *directory, const struct walsh_train_step *log, size_t count,
                                  struct walsh_error *err)
{
    struct text t = {0};
    put(&t, "step,loss,learning_rate,gradient_norm,tokens,seconds,tokens_per_second,eval_loss\n");
    for (size_t i = 0; i < count; i++) {
        const struct walsh_train_step *s = &log[i];
        put(&t, "%llu,%.9g,%.9g,%.9g,%llu,%.3f,%.1f,", (unsigned long long)s->step, s->loss, s->rate,
            s->gradient_norm, (unsigned long long)s->tokens, s->seconds,
            s->seconds > 0 ? (double)s->tokens / s->seconds : 0);
        if (isnan(s->eval_loss))
            put(&t, "\n");
        else
            put(&t, "%.9g\n", s->eval_loss);
    }
    return write_text(directory, "log.csv", &t, err);
}

/* --- the plot --- */

enum { WIDTH = 800, HEIGHT = 450, LEFT = 60, RIGHT = 20, TOP = 30, BOTTOM = 45 };

struct plot {
    const struct walsh_train_step *log;
    size_t count;
    double low, high; /* of the losses */
    struct text text;
};

static double plot_x(const struct plot *p, uint64_t step)
{
    const double last = (double)p->log[p->count - 1].step;
    return LEFT + (WIDTH - LEFT - RIGHT) * (last > 1 ? ((double)step - 1) / (last - 1) : 0.5);
}

static double plot_y(const struct plot *p, double loss)
{
    return TOP + (HEIGHT - TOP - BOTTOM) * (p->high - loss) / (p->high - p->low);
}

/* 1, 2 or 5 times a power of ten, at least a fifth of the span. */
static double tick_step(double span)
{
    const double raw = span / 5, power = pow(10, floor(log10(raw)));
    return raw <= power ? power : raw <= 2 * power ? 2 * power : raw <= 5 * power ? 5 * power : 10 * power;
}

static void draw_axes(struct plot *p)
{
    struct text *t = &p->text;
    const double step_y = tick_step(p->high - p->low), last = (double)p->log[p->count - 1].step;
    const double step_x = fmax(tick_step(fmax(last, 2)), 1);
    put(t, "<g stroke=\"#ddd\" fill=\"#444\" font-family=\"sans-serif\" font-size=\"12\">\n");
    for (double y = ceil(p->low / step_y) * step_y; y <= p->high; y += step_y) {
        put(t, "<path d=\"M%d %.1fH%d\"/>", LEFT, plot_y(p, y), WIDTH - RIGHT);
        put(t, "<text stroke=\"none\" x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%.6g</text>\n", LEFT - 6,
            plot_y(p, y) + 4, y);
    }
    for (double x = step_x; x <= last; x += step_x) {
        put(t, "<path d=\"M%.1f %dV%d\"/>", plot_x(p, (uint64_t)x), TOP, HEIGHT - BOTTOM);
        put(t, "<text stroke=\"none\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%.0f</text>\n",
            plot_x(p, (uint64_t)x), HEIGHT - BOTTOM + 18, x);
    }
    put(t, "<text stroke=\"none\" x=\"%d\" y=\"%d\" text-anchor=\"middle\">step</text>\n",
        (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8);
    put(t, "<text stroke=\"none\" x=\"%d\" y=\"18\">loss, nats per token</text>\n</g>\n", LEFT);
}

static void draw_line(struct plot *p, bool eval, const char *colour, const char *name, int at)
{
    struct text *t = &p->text;
    put(t, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"%s\" points=\"", colour,
        eval ? "2.5" : "1.2");
    for (size_t i = 0; i < p->count; i++) {
        const double loss = eval ? p->log[i].eval_loss : p->log[i].loss;
        if (isfinite(loss)) put(t, "%.1f,%.1f ", plot_x(p, p->log[i].step), plot_y(p, loss));
    }
    put(t,
        "\"/>\n<text x=\"%d\" y=\"18\" fill=\"%s\" font-family=\"sans-serif\" font-size=\"12\">%s</text>\n",
        at, colour, name);
}

enum walsh_status walsh_plot_write(const char *directory, const struct walsh_train_step *log, size_t count,
                                   struct walsh_error *err)
{
    struct plot p = {.log = log, .count = count, .low = INFINITY, .high = -INFINITY};
    bool evaluated = false;
    for (size_t i = 0; i < count; i++) {
        const double losses[] = {log[i].loss, log[i].eval_loss};
        for (int k = 0; k < 2; k++) {
            if (!isfinite(losses[k])) continue;
            p.low = fmin(p.low, losses[k]);
            p.high = fmax(p.high, losses[k]);
            evaluated = evaluated || k == 1;
        }
    }
    if (!(p.high >= p.low)) return WALSH_OK;
    const double margin = fmax(0.05 * (p.high - p.low), 1e-3);
    p.low -= margin;
    p.high += margin;
    put(&p.text,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\">\n<rect width=\"%d\" height=\"%d\" "
        "fill=\"#fff\"/>\n",
        WIDTH, HEIGHT, WIDTH, HEIGHT);
    draw_axes(&p);
    draw_line(&p, false, "#1f77b4", "training", 520);
    if (evaluated) draw_line(&p, true, "#d62728", "validation", 620);
    put(&p.text, "</svg>\n");
    return write_text(directory, "loss.svg", &p.text, err);
}
