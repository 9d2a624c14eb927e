/* train/parameters: what is trained. LoRA modules as the PEFT library names and lays them out, their values
 * in one flat array (as their gradients and the optimizer's moments), and the walsh_lora of every linear that
 * they update. May use model and below. */
#ifndef WALSH_TRAIN_PARAMETERS_H
#define WALSH_TRAIN_PARAMETERS_H

#include "base/random.h"
#include "train/lora.h"

/* One LoRA in PEFT's sense: of a linear, of a matrix that holds several, or of a stacked parameter of all
 * experts. */
struct walsh_module {
    const char *name; /* "model.layers.0.mlp.up_proj"; experts: "model.layers.0.mlp.experts[.base_layer]" */
    const char *parameter; /* experts: "gate_up_proj" or "down_proj"; NULL */
    uint32_t rank, in, out;
    uint32_t experts;    /* 1 where it is not stacked */
    size_t a;            /* offset of A: [experts][rank][in] */
    size_t first, parts; /* its linears: loras [first, first + experts * parts), expert by expert */
    bool
        alternating; /* the parts' rows of B take turns (gpt-oss's gate and up); else one part is behind the other */
};
struct walsh_parameters {
    const struct walsh_model_graph *graph;
    struct walsh_module *modules;
    size_t module_count;
    struct walsh_lora *updates; /* in the order of modules */
    size_t update_count;
    const struct walsh_lora **by_linear; /* [linears of the graph]: walsh_layers_options.loras */
    /* [count], on a device its memory; turned: each matrix transposed, for the CPU */
    float *values, *gradients, *turned;
    size_t count;
    uint32_t *pairs; /* walsh_lora_pairs of each matrix, one behind the other; NULL: not narrow */
    size_t pair_count;
    float *
        host; /* [count] the values before walsh_parameters_upload, and again after walsh_parameters_download */
    const struct walsh_queue *device; /* NULL: everything is the host's */
    struct walsh_arena arena;
};
struct walsh_parameter_options {
    uint32_t rank;       /* 1..256 */
    double alpha;        /* scale = alpha / rank */
    const char *targets; /* "all-linear", or names of modules separated by commas: "q_proj,v_proj" */
    bool experts;        /* the experts' stacked parameters too */
    bool narrow;         /* updates in bf16: walsh_lora_pack */
};
/* List the modules. Values are zero. WALSH_E_ARGUMENT: a name that no linear of the layers has, nothing to
 * train. */
enum walsh_status walsh_parameters_open(const struct walsh_model_graph *graph,
                                        const struct walsh_parameter_options *options,
                                        struct walsh_parameters *out, struct walsh_error *err);
void walsh_parameters_close(struct walsh_parameters *p); /* safe on a zeroed struct */
/* How many values and pairs the options mean, without arrays for them. */
enum walsh_status walsh_parameters_count(const struct walsh_model_graph *graph,
                                         const struct walsh_parameter_options *options, size_t *count,
                                         size_t *pairs, struct walsh_error *err);
/* As PEFT does: A uniform in +-1/sqrt(in), B zero. */
void walsh_parameters_init(struct walsh_parameters *p, struct walsh_random *random);
/* Where the queue has a device, bring values, and room for gradients and pairs, there; the queue must outlive them. */
enum walsh_status walsh_parameters_upload(struct walsh_parameters *p, const struct walsh_queue *q,
                                          struct walsh_error *err);
/* to [count], of the host, = values or gradients, wherever they are. */
enum walsh_status walsh_parameters_download(const struct walsh_parameters *p, const float *flat, float *to,
                                            struct walsh_error *err);
/* The transposes and pairs that the products read, after values have changed. */
void walsh_parameters_refresh(struct walsh_parameters *p, const struct walsh_queue *q);

/* A module's matrices of `flat` (values or gradients, in the host's memory) in PEFT's layout: a [experts * rank][in], b [out][rank
 * * experts] (column j * experts + e). Import is the inverse. */
void walsh_module_export(const struct walsh_parameters *p, const struct walsh_module *m, const float *flat,
                         float *a, float *b);
void walsh_module_import(const struct walsh_parameters *p, const struct walsh_module *m, float *flat,
                         const float *a, const float *b);

#endif
