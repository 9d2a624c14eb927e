/* quantize/output: the directory that a job fills: DESTINATION.partial until it is whole. Private to
 * quantize/.
 *
 * model.safetensors has its final size and header from the start; each tensor is written at its planned
 * place. job.json is replaced atomically behind each layer, after the layer's bytes are on the disk, so that
 * a kill at any moment loses at most one layer. The directory gets its name last. */
#ifndef WALSH_QUANTIZE_OUTPUT_H
#define WALSH_QUANTIZE_OUTPUT_H

#include <jansson.h>

#include "base/hooks.h"
#include "checkpoint/checkpoint.h"
#include "quantize/job.h"

struct walsh_output {
    const struct walsh_checkpoint *source;
    char *destination, *partial, *tensors, *journal; /* paths */
    struct walsh_safetensors_plan plan;
    int fd;        /* of model.safetensors; -1 */
    int lock;      /* on DESTINATION.partial; -1 */
    json_t *state; /* what job.json holds */
    uint32_t layers_done;
};

/* Begin, or with `resume` go on with, a job that `description` identifies. The plan is finished; it becomes
 * the output's. DESTINATION exists, DESTINATION.partial exists without `resume`, was begun as another job, or
 * was changed: errors. */
enum walsh_status walsh_output_open(const struct walsh_checkpoint *source, const char *destination,
                                    struct walsh_safetensors_plan *plan, const char *description, bool resume,
                                    struct walsh_output *out, struct walsh_error *err);
void walsh_output_close(
    struct walsh_output *o); /* keeps DESTINATION.partial; safe on a zeroed struct whose fd and lock are -1 */

/* `bytes` of a planned tensor. */
enum walsh_status walsh_output_write(struct walsh_output *o, const char *name, const void *data, size_t bytes,
                                     struct walsh_error *err);
/* `bytes` from byte `at` of a planned tensor on. */
enum walsh_status walsh_output_write_at(struct walsh_output *o, const char *name, size_t at, const void *data,
                                        size_t bytes, struct walsh_error *err);
/* Every planned tensor that the source has, and uses, under the same name; rounded to bf16 where that is what
 * is planned. */
enum walsh_status walsh_output_copy_tensors(struct walsh_output *o, const struct walsh_hooks *hooks,
                                            struct walsh_error *err);
/* Layer `layers_done` is written: its linears' figures go into job.json, with a hash of their bytes. */
enum walsh_status walsh_output_layer_done(struct walsh_output *o, const struct walsh_job_linear *linears,
                                          size_t count, struct walsh_error *err);
/* The figures of layer `layer` < layers_done from job.json, after checking its bytes against the hash.
 * linears[count] have their names. */
enum walsh_status walsh_output_check_layer(struct walsh_output *o, uint32_t layer,
                                           struct walsh_job_linear *linears, size_t count,
                                           struct walsh_error *err);

/* What is written so far as a checkpoint of one file, for walsh_linear_load. */
struct walsh_output_view {
    struct walsh_safetensors file;
    struct walsh_checkpoint checkpoint;
};
enum walsh_status walsh_output_view_open(const struct walsh_output *o, struct walsh_output_view *out,
                                         struct walsh_error *err);
void walsh_output_view_close(struct walsh_output_view *view);

/* The source's config with the members of `changes` (null: taken out), tokenizer and generation files, then
 * the final name. */
enum walsh_status walsh_output_finish(struct walsh_output *o, json_t *changes, struct walsh_error *err);
/* Remove DESTINATION.partial, of a job that cannot be resumed. */
void walsh_output_discard(struct walsh_output *o);

#endif
