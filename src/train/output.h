/* train/output: the files that training writes. Private to train/. Every file and every checkpoint directory
 * appears whole: it is written under another name, fsynced and renamed. */
#ifndef WALSH_TRAIN_OUTPUT_H
#define WALSH_TRAIN_OUTPUT_H

#include "train/job.h"

/* adapter_config.json and adapter_model.safetensors (F32) in `directory`, which exists, of the values `flat`.
 */
enum walsh_status walsh_adapter_save(const char *directory, const struct walsh_parameters *p,
                                     const float *flat, const struct walsh_train_job *job,
                                     struct walsh_error *err);

/* What a checkpoint holds besides the adapter. */
struct walsh_train_state {
    uint64_t step, epoch, next;          /* steps done, and the reader's place behind them */
    uint64_t optimizer_steps, stale;     /* evaluations since the best one */
    double best;                         /* loss; INFINITY: none yet */
    float *values, *m, *v, *best_values; /* [count], borrowed; best_values NULL: not kept */
    size_t count;
    struct walsh_train_step *log; /* [step] */
    size_t log_room;
};
/* Write OUTPUT/checkpoint-STEP: the adapter, training_state.safetensors, log.csv. `identity` is what a later
 * --resume must bring again: a text of options and a hash of the data. Then remove the oldest beyond
 * job->keep. */
enum walsh_status walsh_checkpoint_save(const struct walsh_parameters *p, const struct walsh_train_state *s,
                                        const struct walsh_train_job *job, const char *identity,
                                        struct walsh_error *err);
/* The newest checkpoint of the output into *s, whose arrays are there; *found false: there is none. A place
 * behind the last of `pieces`, or steps that are not those of the directory's name, are errors. */
enum walsh_status walsh_checkpoint_load(struct walsh_train_state *s, const struct walsh_train_job *job,
                                        const char *identity, uint64_t pieces, bool *found,
                                        struct walsh_error *err);
/* Does the output hold an adapter or a checkpoint? */
bool walsh_output_used(const char *output);

/* log.csv and loss.svg in `directory`. */
enum walsh_status walsh_log_write(const char *directory, const struct walsh_train_step *log, size_t count,
                                  struct walsh_error *err);
enum walsh_status walsh_plot_write(const char *directory, const struct walsh_train_step *log, size_t count,
                                   struct walsh_error *err);
/* Steps have a place in the log. */
enum walsh_status walsh_log_reserve(struct walsh_train_state *s, size_t count, struct walsh_error *err);

#endif
