/* quantize/job: a Hugging Face directory in, a quantized one out: E8P in the GLQ layout, a block format in
 * that of compressed-tensors or, of gpt-oss's experts in MXFP4, of gpt-oss (quantize/blocks.h). May use model
 * and below.
 *
 * Block formats round each weight to the nearest and need no calibration. E8P, layer by layer: one forward of
 * the layer over the calibration sequences collects the Hessian of each input, LDLQ finds the codes, the
 * layer's tensors are written, and a second forward through what was written gives the next layer its inputs.
 * Anonymous memory is one layer in f32, its Hessians and the calibration activations, never the model. */
#ifndef WALSH_QUANTIZE_JOB_H
#define WALSH_QUANTIZE_JOB_H

#include <stdbool.h>
#include <stdint.h>

#include "base/hooks.h"
#include "formats/mx.h"
#include "kernels/kernels.h"

#define WALSH_JOB_OUTPUTS 7 /* widths of E8P */

struct walsh_job_options {
    enum walsh_format format; /* WALSH_FORMAT_E8P or a block format */
    /* E8P: 2..8, ascending, one output each. All are quantized from the same Hessians, which are those of the
     * inputs that the model of the most bits has. */
    unsigned bits[WALSH_JOB_OUTPUTS];
    size_t outputs;                  /* 1..WALSH_JOB_OUTPUTS; block formats: 1 */
    uint32_t group;                  /* INT8, INT4: 32, 64 or 128; 0: the largest that divides all columns */
    enum walsh_mx_rounding rounding; /* MXFP4, MXFP8 */
    /* see rotation/rotation.h; NONE: block formats only */
    enum { WALSH_JOB_BLOCK, WALSH_JOB_POW2, WALSH_JOB_OVERLAP, WALSH_JOB_NONE } rotation;
    uint32_t tensor_parallel; /* parts of the split dimensions whose blocks stay apart; 1: none. BLOCK only */
    const char *calibration;  /* path of a UTF-8 text; NULL: the identity in place of every Hessian */
    uint32_t samples;         /* calibration sequences, at least 1 */
    uint32_t sample_tokens;   /* tokens of each, 2..the model's maximum; 0: the smaller of 1024 and that */
    unsigned passes;          /* of coordinate descent */
    bool tune;      /* scales in SU and SV, a search for Wscale; false: the published method as it is */
    bool head_int8; /* quantize/head.h; false: the head stays as it is */
    uint64_t seed;  /* of the signs */
    bool dry_run, resume, use_mmap;
};

/* One linear of the report. */
struct walsh_job_linear {
    char name[256]; /* module path */
    uint32_t rows, cols;
    double proxy; /* tr(E H E^T) / tr(W H W^T) after rotation, of block formats with H = 1; 0 in a dry run */
    uint64_t bytes; /* of all its tensors in the output */
    double seconds; /* of LDLQ; of a resumed job's earlier layers as they were then */
};

struct walsh_job_report {
    uint64_t bytes_predicted, bytes_written;                          /* of the safetensors file */
    double seconds, encode_seconds, forward_seconds, hessian_seconds; /* of this call */
    struct walsh_job_linear *linears;                                 /* in the model's order; walsh_free */
    size_t linear_count;
};

/* Write destinations[options->outputs], which must not exist, from `source`; reports[outputs]. The work of
 * each happens in DESTINATION.partial, which an
 * error, an abort or a crash leaves behind as soon as there is something worth keeping; `resume` goes on with
 * it, and the bytes are those of an uninterrupted job. Errors leave the reports empty. */
enum walsh_status walsh_quantize_job(const struct walsh_queue *q, const struct walsh_hooks *hooks,
                                     const char *source, const char *const *destinations,
                                     const struct walsh_job_options *options,
                                     struct walsh_job_report *reports, struct walsh_error *err);

#endif
