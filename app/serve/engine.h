/* serve/engine: the thread that owns the batch. Jobs come in by a bounded queue that is fair between tenants;
 * it feeds the batch as rows become free, steps it, and hands each token to its sequence. */
#ifndef WALSH_SERVE_ENGINE_H
#define WALSH_SERVE_ENGINE_H

#include "job.h"
#include "log.h"
#include "metrics.h"

struct engine;

struct engine_options {
    const struct walsh_model *model;
    struct walsh_batch_options batch;
    uint32_t vocab;
    size_t max_waiting;        /* sequences in the queue */
    size_t max_waiting_tenant; /* of one tenant */
    struct metrics *metrics;
    struct log *log;
};

enum walsh_status engine_open(const struct engine_options *options, struct engine **out,
                              struct walsh_error *err);
/* Cancels what is left, ends the thread. NULL-safe. */
void engine_close(struct engine **engine);

/* Queue the job; the engine holds it until its end. false: *refusal says why (429 with Retry-After in *retry,
 * 503). */
bool engine_submit(struct engine *engine, struct job *job, struct refusal *refusal, unsigned *retry);
/* A job was cancelled: look now. */
void engine_poke(struct engine *engine);
/* Take no more jobs; those that are there go on. */
void engine_drain(struct engine *engine);
/* Jobs that have not ended. */
size_t engine_jobs(struct engine *engine);
/* End them all with this refusal. */
void engine_abandon(struct engine *engine, const struct refusal *refusal);
void engine_snapshot(struct engine *engine, struct engine_snapshot *out);

#endif
