/* walsh_jobs: the calls that write models and adapters: quantize, finetune, merge. The conventions are those of
 * walsh.h, which includes this header. */
#ifndef WALSH_JOBS_H
#define WALSH_JOBS_H

#include "walsh.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ----------------------------------------------------------------------------------------------- quantize */

/* An option that another format has is WALSH_E_ARGUMENT. */
struct walsh_quantize_options {
    size_t struct_size;
    const char *format; /* "e8p", or to the nearest: "mxfp4" | "nvfp4" | "mxfp8" | "fp8" | "int8" | "int4" */
    unsigned bits;      /* e8p: 2..8 */
    const char
        *rotation; /* "block" | "pow2" | "overlap" | "none"; NULL: block for e8p, none for all others */
    const char *calibration; /* e8p: path of a UTF-8 text; NULL together with identity_hessian only */
    bool identity_hessian;   /* no calibration: nearest rounding of the rotated weights (for measurements) */
    uint32_t samples;        /* e8p: calibration sequences; 0: 128 */
    uint32_t sample_tokens;  /* tokens each; 0: the smaller of 1024 and the model's maximum */
    int passes;              /* coordinate-descent passes; -1 (set by the macro): the best measured */
    uint64_t seed;           /* signs; 0 counts */
    bool dry_run;            /* predict only; with src NULL nothing but these options is looked at */
    bool resume;             /* go on with DST.partial */
    bool no_mmap;
    bool plain; /* the published method as it is: no scales in SU and SV, Wscale from the rms (for
                   comparisons) */
    /* Rotation "block" only: the dimension along which a tensor-parallel engine splits a projection (the
     * outputs of q, k, v, gate and up, the inputs of o and down) is rotated in this many equal parts, at most
     * 16, so that slices of the stored tensors are whole linears. Such a dimension that is not as many
     * multiples of 16 outputs or 64 inputs is WALSH_E_UNSUPPORTED. 0, 1: one part. */
    unsigned tensor_parallel;
    /* NULL or "bf16": head and embedding stay as they are, in bf16. "int8": the head is rotated and rounded
     * to int8 with a scale per row; a tied embedding stays beside it, in bf16. */
    const char *head;
    /* e8p: several widths from one calibration, in the place of `bits` where bits_count >= 2. Each of 2..8,
     * none twice, in any order; DST-Nbpw is written for each width N, and `report` points to bits_count
     * structs, each with its struct_size, which are filled in ascending order. All widths see the inputs that
     * the model of the most bits has. */
    const unsigned *bits_list;
    size_t bits_count;
    uint32_t group_size;        /* int8, int4: 32, 64, 128; 0: the largest that divides all columns */
    const char *scale_rounding; /* mxfp4, mxfp8: "floor" | "ceil" | "even" | "rceil"; NULL: floor */
};
#define WALSH_QUANTIZE_OPTIONS                                                                               \
    {                                                                                                        \
        .struct_size = sizeof(struct walsh_quantize_options), .passes = -1, .seed = 42                       \
    }

struct walsh_quantize_layer {
    const char *name;    /* "model.layers.0.self_attn.q_proj" */
    uint32_t rows, cols; /* logical */
    double proxy;        /* tr(D H D^T) / tr(W H W^T), relative */
    double bits_per_weight;
    double seconds;
};
struct walsh_quantize_report {
    size_t struct_size;
    uint64_t bytes_predicted; /* all safetensors files of DST */
    uint64_t bytes_written;   /* 0 in a dry run */
    double bits_per_weight;   /* codes and scales of the quantized linears over their logical weights */
    double seconds, encode_seconds, forward_seconds, hessian_seconds;
    struct walsh_quantize_layer *linears; /* walsh_quantize_report_free */
    size_t linear_count;
};
/* Read the Hugging Face directory src, write the Hugging Face directory dst (e8p: GLQ layout; the others:
 * compressed-tensors, or for mxfp4 experts of gpt-oss its own; rotated ones: walsh's). dst must not exist;
 * the work happens in dst + ".partial", which a later call with `resume` continues after an abort, a crash or
 * kill -9. On the context of a device Hessians and the searches of codes are computed there, the forward pass of the
 * calibration and Cholesky on the CPU.
 * WALSH_E_ARGUMENT: an option out of its range, or one of another format. WALSH_E_EXISTS: dst is there. WALSH_E_FORMAT,
 * WALSH_E_IO: a file of src or the calibration, by name; dst that cannot be written. WALSH_E_UNSUPPORTED: an architecture or a
 * linear that the rotation cannot take; on a device every format but e8p. WALSH_E_MEMORY with both figures.
 * WALSH_E_ABORTED by the context's hook: dst + ".partial" stays. */
WALSH_API enum walsh_status walsh_quantize(struct walsh_context *context, const char *src, const char *dst,
                                           const struct walsh_quantize_options *options,
                                           struct walsh_quantize_report *report, struct walsh_error *err);
/* Frees what a report points to, not the report. */
WALSH_API void walsh_quantize_report_free(struct walsh_quantize_report *report);

/* ----------------------------------------------------------------------------------------------- finetune */

enum walsh_finetune_schedule { WALSH_FINETUNE_COSINE = 0, WALSH_FINETUNE_LINEAR, WALSH_FINETUNE_CONSTANT };
/* One finished step. */
struct walsh_finetune_step {
    size_t struct_size;
    uint64_t step, steps;                /* from 1, of */
    double loss;                         /* mean over the step's counted tokens, nats */
    double learning_rate, gradient_norm; /* the norm before clipping */
    uint64_t tokens;
    double seconds;
    double eval_loss; /* NAN: not measured at this step */
};
struct walsh_finetune_options {
    size_t struct_size;
    const char *data;   /* text, *.jsonl, or a directory of both (docs/finetune.md) */
    const char *output; /* directory of the adapter, its checkpoints and logs; made where it is absent */
    uint32_t rank;      /* 1..256 */
    double alpha;
    const char *targets; /* "all-linear" or module names separated by commas: "q_proj,v_proj" */
    bool experts;        /* the experts too, as stacked parameters (PEFT 0.19 and later) */
    uint32_t context;    /* tokens of a packed sequence; 0: the smaller of 1024 and the model's maximum */
    uint32_t batch_size, gradient_accumulation; /* sequences at once; batches of a step */
    uint64_t steps;                             /* 0: as many as `epochs` take */
    double epochs;
    double learning_rate, last_rate; /* its peak, and what share of it the schedule ends at */
    enum walsh_finetune_schedule schedule;
    uint64_t warmup;                         /* steps over which the rate rises to its peak */
    double weight_decay, clip, beta1, beta2; /* AdamW; clip 0: gradients of any norm */
    bool checkpoint_layers; /* keep the layers' inputs only and run each forward again: less memory, a third
                               more time */
    const char *eval;       /* data to validate on; NULL: none, or ... */
    double eval_share;      /* ... this share of `data`, held back */
    uint64_t eval_every;    /* steps; 0: behind the last only */
    uint32_t patience;   /* stop after so many validations without improvement, and keep the best adapter; 0:
                            never */
    uint64_t save_every; /* steps between checkpoints; 0: none but on an abort */
    uint32_t keep;       /* checkpoints that stay; 0: all */
    uint64_t seed;
    bool resume;                         /* go on with the newest checkpoint of `output`, bit for bit */
    enum walsh_activation_mode products; /* F32; BF16; AUTO: bf16 where the machine has it */
    bool no_mmap;
    /* Called behind each step, from the thread that called walsh_finetune; NULL: none. */
    void (*on_step)(void *user, const struct walsh_finetune_step *step);
    void *user;
};
#define WALSH_FINETUNE_OPTIONS                                                                               \
    {                                                                                                        \
        .struct_size = sizeof(struct walsh_finetune_options), .rank = 16, .alpha = 32,                       \
        .targets = "all-linear", .batch_size = 1, .gradient_accumulation = 8, .epochs = 1,                   \
        .learning_rate = 3e-4, .last_rate = 0.02, .warmup = 20, .weight_decay = 0.01, .clip = 1,             \
        .beta1 = 0.9, .beta2 = 0.999, .keep = 2, .seed = 42                                                  \
    }
struct walsh_finetune_report {
    size_t struct_size;
    uint64_t steps;  /* done in all */
    uint64_t tokens; /* of this run */
    double loss, eval_loss,
        best_eval_loss;    /* of the last step, the last validation, the best one; NAN: none */
    uint64_t parameters;   /* trained */
    uint64_t memory_bytes; /* predicted for training: activations, adapter, optimizer */
    double seconds;
    bool stopped_early;
};
/* Train a LoRA adapter of the Hugging Face directory src, dense or with experts, in any weight format; the
 * base stays as it is. Writes options.output/adapter_config.json and adapter_model.safetensors as the PEFT
 * library does, log.csv, loss.svg, and checkpoint-STEP directories. WALSH_E_MEMORY with both figures before
 * the first step where it cannot fit; WALSH_E_ABORTED by the context's hook, behind a checkpoint of what is
 * finished. On the context of a device everything between a step's tokens and its loss is computed there; a device without
 * kernels for training, short convolutions and checkpoints of lalamo are WALSH_E_UNSUPPORTED. */
WALSH_API enum walsh_status walsh_finetune(struct walsh_context *context, const char *src,
                                           const struct walsh_finetune_options *options,
                                           struct walsh_finetune_report *report, struct walsh_error *err);

/* ------------------------------------------------------------------------------------------------ merge */

enum walsh_merge_type { WALSH_MERGE_BF16 = 0, WALSH_MERGE_F32 };
/* Write the Hugging Face directory dst, which must not exist: the model with these adapters (count 0: none)
 * as plain weights of `type`, W + s B A in place of W, quantized linears decoded. Sums in double precision:
 * open the adapters with WALSH_ADAPTER_F32. *bytes (may be NULL): of the safetensors file. On failure nothing
 * is left behind. */
WALSH_API enum walsh_status walsh_merge(const struct walsh_model *model, const struct walsh_adapter_use *uses,
                                        size_t count, const char *dst, enum walsh_merge_type type,
                                        uint64_t *bytes, struct walsh_error *err);

#ifdef __cplusplus
}
#endif
#endif
