/* serve/metrics: what /metrics tells, in Prometheus' text format. Counters of the server itself; those of the
 * batch come with the engine's snapshot. Any thread may count. */
#ifndef WALSH_SERVE_METRICS_H
#define WALSH_SERVE_METRICS_H

#include <pthread.h>

#include "output.h"
#include "walsh.h"

#define HISTOGRAM_BUCKETS 16

struct histogram {
    uint64_t counts[HISTOGRAM_BUCKETS + 1]; /* the last: beyond all bounds */
    double sum;
};

#define METRICS_STATUSES 24

struct metrics {
    pthread_mutex_t lock;
    struct histogram first_token; /* seconds from a request's arrival to its first token */
    struct histogram gap;         /* seconds between two tokens of one answer */
    struct histogram duration;    /* seconds of a generation request, arrival to end */
    struct histogram wait;        /* seconds in the queue */
    struct {
        const char *route; /* a literal */
        int status;
        uint64_t count;
    } responses[METRICS_STATUSES * 8];
    size_t response_count;
    uint64_t disconnects, timeouts,
        stalled; /* requests that a client's leaving, a deadline or a full buffer ended */
};

/* What the engine knows, copied under its lock. */
struct engine_snapshot {
    struct walsh_batch_metrics batch;
    size_t waiting; /* sequences */
    bool draining;
};

void metrics_open(struct metrics *metrics);
void metrics_close(struct metrics *metrics);
void metrics_observe(struct metrics *metrics, struct histogram *histogram, double seconds);
void metrics_count_response(struct metrics *metrics, const char *route, int status);
void metrics_add(struct metrics *metrics, uint64_t *counter);
/* false: out of memory. */
bool metrics_write(struct metrics *metrics, const struct engine_snapshot *engine, size_t connections,
                   struct text *out);

#endif
