/* runtime/runner: a graph with what it needs to run: the queue, the caller's hooks and scratch. One call at a
 * time may use it; its sessions share it. May use model and below. */
#ifndef WALSH_RUNTIME_RUNNER_H
#define WALSH_RUNTIME_RUNNER_H

#include "cache/prefix_key.h"
#include "kernels/draw.h"
#include "model/adapter.h"
#include "runtime/recordings.h"

/* Prompts are cut at absolute positions that are multiples of this, so that a token's arithmetic does not
 * depend on how the prompt arrived. Also the rows of one decode step at most; more take several. */
#define WALSH_CHUNK_ROWS 512

struct walsh_session;
struct walsh_runner {
    const struct walsh_model_graph *graph;
    const struct walsh_queue *queue;
    const struct walsh_hooks *hooks;
    struct walsh_workspace *workspace;
    float *x;                         /* [WALSH_CHUNK_ROWS][hidden] */
    const struct walsh_kv_view **kv;  /* [WALSH_CHUNK_ROWS] */
    uint32_t *positions;              /* [WALSH_CHUNK_ROWS] */
    uint32_t *rope_rows;              /* [WALSH_CHUNK_ROWS] */
    int32_t *ids;                     /* [WALSH_CHUNK_ROWS]: of a step, in the order of its rows */
    uint32_t *order;                  /* [WALSH_CHUNK_ROWS]: which session of a step a row belongs to */
    struct walsh_draw *plans;         /* [WALSH_CHUNK_ROWS]: of a step that draws, in the order of its rows */
    struct walsh_row_set *sets;       /* [WALSH_CHUNK_ROWS] */
    struct walsh_row_set *logit_sets; /* [WALSH_CHUNK_ROWS] */
    float *logits;     /* [logit_rows][vocab]: logits of a step, before each session takes its row */
    size_t logit_rows; /* a power of two */
    const struct walsh_kv_view **op_kv; /* [WALSH_CHUNK_ROWS]: what ops take in the place of kv */
    /* Of a queue with a device, in its memory, what a call's arrays are copied to; else NULL. */
    struct walsh_runner_device {
        void *call;                      /* one block of the next four */
        int32_t *ids;                    /* [WALSH_CHUNK_ROWS] */
        uint32_t *positions;             /* [WALSH_CHUNK_ROWS] */
        uint32_t *rope_rows;             /* [WALSH_CHUNK_ROWS] */
        const struct walsh_kv_view **kv; /* [WALSH_CHUNK_ROWS] */
        float *x;                        /* [WALSH_CHUNK_ROWS][hidden] */
        float *logits;                   /* [logit_rows][vocab], of prompts */
        float *step_logits;              /* [logit_rows][vocab], of the last decode step */
        void *staging;                   /* the host's, as `call` */
        /* Decode steps of a power of two of rows. A step of fewer rows fills up with rows of a cache of its own, which
         * nothing reads. */
        struct walsh_recordings recordings;
        struct walsh_kv_cache *filler;
        /* Of walsh_runner_draws: a block of draws with what they point to, and room for it here; the tokens, [logit_rows]. */
        void *draws, *draw_staging;
        size_t draw_bytes;
        int32_t *drawn;
        /* [logit_rows] the session whose logits a row of step_logits is, while it has no copy of its own */
        struct walsh_session **owners;
    } device;
    struct walsh_error failure; /* of a device, since the last walsh_runner_check */
    bool identified;            /* model_key is known */
    struct walsh_prefix_key model_key;
};

/* graph, queue and hooks are borrowed and must outlive the runner. */
enum walsh_status walsh_runner_open(const struct walsh_model_graph *graph, const struct walsh_queue *queue,
                                    const struct walsh_hooks *hooks, struct walsh_runner **out,
                                    struct walsh_error *err);
void walsh_runner_close(struct walsh_runner **runner);

/* x [count][hidden] <- all layers of the embedded ids; count <= WALSH_CHUNK_ROWS. The caller has filled
 * runner->kv, runner->op_kv, runner->positions and runner->rope_rows, reserved the caches and the workspace
 * and checked the ids. sets: the rows' adapters. */
void walsh_runner_forward(struct walsh_runner *runner, const int32_t *ids, size_t count, enum walsh_role role,
                          const struct walsh_row_sets *sets, float *x);

/* logits [count][vocab] of x [count][hidden], which may be overwritten. */
void walsh_runner_logits(struct walsh_runner *runner, float *x, size_t count, enum walsh_role role,
                         const struct walsh_row_sets *sets, float *logits);
/* What a step on a device draws in the end, of each of its rows: plans by the samplers, with pointers to the host's
 * memory; ids[row] are the tokens, -1 where none can be drawn. */
struct walsh_runner_draws {
    const struct walsh_draw *plans;
    int32_t *ids;
};
/* On a device, a decode step of `count` rows, at most logit_rows: their logits in device.step_logits and what is drawn from them (draws
 * NULL: nothing), done on return; the host waits once, for the end of it all. The caller has filled runner->ids, kv, op_kv, positions and
 * rope_rows as for walsh_runner_forward, and nobody needs what device.step_logits held. */
void walsh_runner_device_step(struct walsh_runner *runner, size_t count, const struct walsh_row_sets *sets,
                              const struct walsh_runner_draws *draws);
/* The parts of it (runtime/runner_draw.c): the plans go up; then, behind the logits, the draws, whose ids come back. */
enum walsh_status walsh_runner_send_draws(struct walsh_runner *runner, const struct walsh_draw *plans,
                                          size_t count, struct walsh_draws *out, struct walsh_error *err);
enum walsh_status walsh_runner_take_draws(struct walsh_runner *runner, const struct walsh_draws *draws,
                                          int32_t *ids, struct walsh_error *err);
/* What went wrong on the device since the last call: the results since then are not to be used. */
enum walsh_status walsh_runner_check(struct walsh_runner *runner, struct walsh_error *err);

/* WALSH_E_ARGUMENT where an id is outside the vocabulary. */
enum walsh_status walsh_runner_check_ids(const struct walsh_runner *runner, const int32_t *ids, size_t count,
                                         struct walsh_error *err);

#endif
