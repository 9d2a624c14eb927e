/* train/job: the finetune job: data, steps, validation, checkpoints, the adapter. May use model and below. */
#ifndef WALSH_TRAIN_JOB_H
#define WALSH_TRAIN_JOB_H

#include "base/hooks.h"
#include "model/model.h"
#include "train/optimizer.h"
#include "train/parameters.h"

/* One finished step, for whoever watches and for the log. */
struct walsh_train_step {
    uint64_t step, steps; /* from 1 */
    double loss;          /* mean over the step's counted tokens, nats */
    double rate;          /* learning rate */
    double gradient_norm; /* before clipping */
    uint64_t tokens;      /* rows of the step */
    double seconds;       /* of the step */
    double eval_loss;     /* NAN: not measured at this step */
};
struct walsh_train_job {
    const char *data, *output; /* FILE or directory of data; directory that is written */
    const char *base_name;     /* for adapter_config.json; NULL: the model's directory */
    struct walsh_parameter_options parameters;
    enum walsh_activation_type compute; /* F32 or BF16 */
    uint32_t context;             /* tokens of a sequence; 0: the smaller of 1024 and the model's maximum */
    uint32_t batch, accumulation; /* sequences at once; batches of a step */
    uint64_t steps;               /* 0: from epochs */
    double epochs;
    double rate, last_rate; /* learning rate; what share of it the schedule ends at */
    enum walsh_schedule schedule;
    uint64_t warmup;
    double weight_decay, clip, beta1, beta2;
    bool checkpoint_layers;
    const char *eval; /* FILE or directory; NULL: none, or a share of the data: */
    double eval_share;
    uint64_t eval_every; /* steps; 0: at the end only */
    uint32_t patience;   /* evaluations without improvement after which the job ends; 0: never */
    uint64_t save_every; /* steps; 0: never before the end */
    uint32_t keep;       /* checkpoints that are kept; 0: all */
    uint64_t seed;
    bool resume;
    /* called after each step; NULL: nobody watches */
    void (*on_step)(void *user, const struct walsh_train_step *step);
    void *user;
};
struct walsh_train_report {
    uint64_t steps, tokens;           /* done in all; of this run */
    double loss;                      /* of the last step */
    double eval_loss, best_eval_loss; /* NAN: not measured */
    uint64_t parameters;
    uint64_t memory_bytes; /* predicted: activations, adapter, optimizer */
    double seconds;        /* of this run */
    bool stopped_early;
};
/* Train an adapter of `graph` and write it to job->output as PEFT does. Checkpoints are
 * OUTPUT/checkpoint-STEP, complete or not there; with `resume` the newest is gone on with, bit for bit, after
 * an abort or a kill at any moment. An output that holds an adapter or checkpoints without `resume`, options
 * or data that are not those of the checkpoint: errors. WALSH_E_MEMORY with the figure before the first step
 * where the job cannot fit. */
enum walsh_status walsh_train(const struct walsh_model_graph *graph, const struct walsh_queue *queue,
                              const struct walsh_hooks *hooks, const struct walsh_train_job *job,
                              struct walsh_train_report *report, struct walsh_error *err);

#endif
