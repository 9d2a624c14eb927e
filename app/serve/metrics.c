#include "metrics.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Upper bounds in seconds: from a token of a small model to a long prompt of a large one. */
static const double bounds[HISTOGRAM_BUCKETS] = {0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
                                                 0.25,   0.5,   1,      2.5,   5,    10,    30,   120};

void metrics_open(struct metrics *metrics)
{
    memset(metrics, 0, sizeof *metrics);
    pthread_mutex_init(&metrics->lock, NULL);
}

void metrics_close(struct metrics *metrics)
{
    pthread_mutex_destroy(&metrics->lock);
}

void metrics_observe(struct metrics *metrics, struct histogram *histogram, double seconds)
{
    size_t bucket = 0;
    while (bucket < HISTOGRAM_BUCKETS && seconds > bounds[bucket]) bucket++;
    pthread_mutex_lock(&metrics->lock);
    histogram->counts[bucket]++;
    histogram->sum += seconds;
    pthread_mutex_unlock(&metrics->lock);
}

void metrics_add(struct metrics *metrics, uint64_t *counter)
{
    pthread_mutex_lock(&metrics->lock);
    ++*counter;
    pthread_mutex_unlock(&metrics->lock);
}

void metrics_count_response(struct metrics *metrics, const char *route, int status)
{
    pthread_mutex_lock(&metrics->lock);
    size_t i = 0;
    while (i < metrics->response_count &&
           (metrics->responses[i].status != status || strcmp(metrics->responses[i].route, route) != 0))
        i++;
    if (i < sizeof metrics->responses / sizeof *metrics->responses) {
        if (i == metrics->response_count) {
            metrics->responses[i].route = route;
            metrics->responses[i].status = status;
            metrics->response_count++;
        }
        metrics->responses[i].count++;
    }
    pthread_mutex_unlock(&metrics->lock);
}

static bool put(struct text *out, const char *format, ...) __attribute__((format(printf, 2, 3)));
static bool put(struct text *out, const char *format, ...)
{
    char line[400];
    va_list args;
    va_start(args, format);
    const int n = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    return n >= 0 && (size_t)n < sizeof line && text_append(out, line, (size_t)n);
}

static bool head(struct text *out, const char *name, const char *type, const char *help)
{
    return put(out, "# HELP walsh_%s %s\n# TYPE walsh_%s %s\n", name, help, name, type);
}

static bool number(struct text *out, const char *name, const char *type, const char *help, double value)
{
    return head(out, name, type, help) && put(out, "walsh_%s %.15g\n", name, value);
}

static bool put_histogram(struct text *out, const char *name, const char *help, const struct histogram *h)
{
    uint64_t below = 0;
    bool good = head(out, name, "histogram", help);
    for (size_t i = 0; i < HISTOGRAM_BUCKETS; i++) {
        below += h->counts[i];
        good = good && put(out, "walsh_%s_bucket{le=\"%g\"} %" PRIu64 "\n", name, bounds[i], below);
    }
    below += h->counts[HISTOGRAM_BUCKETS];
    return good &&
           put(out,
               "walsh_%s_bucket{le=\"+Inf\"} %" PRIu64 "\nwalsh_%s_sum %.9g\nwalsh_%s_count %" PRIu64 "\n",
               name, below, name, h->sum, name, below);
}

static bool put_batch(struct text *out, const struct engine_snapshot *e)
{
    const struct walsh_batch_metrics *b = &e->batch;
    return number(out, "prompt_tokens_total", "counter", "Tokens of prompts put into caches",
                  (double)b->prompt_tokens) &&
           number(out, "prefix_tokens_total", "counter", "Tokens of prompts taken over from the prefix store",
                  (double)b->prefix_tokens) &&
           number(out, "prefix_hits_total", "counter", "Sequences that took something from the prefix store",
                  (double)b->prefix_hits) &&
           number(out, "generated_tokens_total", "counter", "Tokens generated",
                  (double)b->generated_tokens) &&
           number(out, "steps_total", "counter", "Steps of the batch", (double)b->steps) &&
           number(out, "sequences_finished_total", "counter", "Sequences that ended by themselves",
                  (double)b->finished) &&
           number(out, "sequences_failed_total", "counter", "Sequences that failed", (double)b->failed) &&
           number(out, "sequences_cancelled_total", "counter", "Sequences that were cancelled",
                  (double)b->cancelled) &&
           number(out, "sequences_waiting", "gauge", "Sequences in the queue",
                  (double)e->waiting + b->queued) &&
           number(out, "sequences_prefilling", "gauge", "Sequences whose prompt is being read",
                  b->prefilling) &&
           number(out, "sequences_decoding", "gauge", "Sequences that generate", b->decoding) &&
           number(out, "batch_rows", "gauge", "Sequences that can run at a time", b->max_rows) &&
           number(out, "kv_tokens_used", "gauge", "Tokens of cache that running sequences reserve",
                  (double)b->kv_tokens_used) &&
           number(out, "kv_tokens", "gauge", "Tokens of cache in all", (double)b->kv_tokens) &&
           number(out, "kv_pages_used", "gauge", "The same in pages of cache", (double)b->kv_pages_used) &&
           number(out, "kv_pages", "gauge", "Pages of cache in all", (double)b->kv_pages) &&
           number(out, "kv_bytes", "gauge", "Bytes that the caches hold", (double)b->kv_bytes) &&
           number(out, "draining", "gauge", "1 while the server shuts down", e->draining);
}

static bool put_server(struct text *out, const struct metrics *m, size_t connections)
{
    bool good =
        number(out, "connections", "gauge", "Open connections", (double)connections) &&
        number(out, "disconnects_total", "counter", "Requests cancelled because their client left",
               (double)m->disconnects) &&
        number(out, "timeouts_total", "counter", "Requests ended by a deadline", (double)m->timeouts) &&
        number(out, "stalled_total", "counter", "Requests ended because their client did not read",
               (double)m->stalled) &&
        put_histogram(out, "time_to_first_token_seconds", "From a request's arrival to its first token",
                      &m->first_token) &&
        put_histogram(out, "time_between_tokens_seconds", "Between two tokens of one answer", &m->gap) &&
        put_histogram(out, "request_duration_seconds", "From a request's arrival to its end", &m->duration) &&
        put_histogram(out, "queue_seconds", "In the queue", &m->wait) &&
        head(out, "requests_total", "counter", "Responses by endpoint and status");
    for (size_t i = 0; good && i < m->response_count; i++)
        good = put(out, "walsh_requests_total{endpoint=\"%s\",status=\"%d\"} %" PRIu64 "\n",
                   m->responses[i].route, m->responses[i].status, m->responses[i].count);
    return good;
}

bool metrics_write(struct metrics *metrics, const struct engine_snapshot *engine, size_t connections,
                   struct text *out)
{
    pthread_mutex_lock(&metrics->lock);
    const bool good = put_batch(out, engine) && put_server(out, metrics, connections);
    pthread_mutex_unlock(&metrics->lock);
    return good;
}
