/* checkpoint/peft: a LoRA adapter as the PEFT library writes it: DIR/adapter_config.json and
 * DIR/adapter_model.safetensors. y = W x + scale * B (A x), everything in the model's original space. May use
 * base, formats.
 *
 * The caller lists the linears of its model; what comes back is a table of low-rank updates, at most one for
 * each of them. Every tensor of the file is consumed or named in an error; shapes, ranks, dtypes (F32, F16,
 * BF16) and finiteness are checked. Linears that the adapter leaves alone are simply absent.
 *
 * Experts come in two ways: as linears of their own (`experts.3.up_proj.lora_A.weight`), or, through
 * target_parameters (PEFT 0.19 and later), as one LoRA for a stacked parameter [experts][out][in]: lora_A
 * [experts*r][in], rows e*r.. of expert e; lora_B [out][r*experts], column j*experts + e for rank j of expert
 * e. Several stacked parameters of one module nest: the last one in the module's order of declaration is
 * `MODULE.lora_*`, the one before `MODULE.base_layer.lora_*`, and so on. */
#ifndef WALSH_CHECKPOINT_PEFT_H
#define WALSH_CHECKPOINT_PEFT_H

#include "checkpoint/peft_config.h"
#include "checkpoint/safetensors.h"

/* A linear that an adapter may update: W [out][in]. */
struct walsh_peft_linear {
    const char *name;  /* module path: "model.layers.0.mlp.experts.3.up_proj" */
    const char *alias; /* what another version of Hugging Face's library calls it, or NULL */
    uint32_t in, out;
    /* That an adapter of all linears has no tensors for it says nothing: PEFT leaves out the head, and a
     * router is a linear in some versions of Hugging Face's library and a parameter in others. */
    bool often_absent;
    /* Where the Hugging Face model keeps the experts' weights in one parameter [experts][stack_out][in]; else
     * NULL. Linears are listed in the module's order of declaration (gate_up_proj before down_proj). */
    const char *stack;        /* "model.layers.0.mlp.experts.gate_up_proj" */
    uint32_t expert, experts; /* this linear's index, and how many there are */
    /* Where the Hugging Face model has W as the rows [fused_row, fused_row + out) of a linear of fused_out
     * outputs; else NULL. */
    const char *fused; /* "model.layers.0.self_attn.qkv_proj" */
    uint32_t fused_row, fused_out;
    /* row i of W is row stack_row + i*stack_step of the expert's stack_out rows */
    uint32_t stack_out, stack_row, stack_step;
};

/* A strided view of a tensor: element (i, j) is element `offset + i*row_stride + j*column_stride` of the
 * tensor's data. */
struct walsh_peft_matrix {
    const struct walsh_tensor *tensor;
    uint32_t rows, columns;
    size_t offset, row_stride, column_stride;
};
struct walsh_peft_update {
    uint32_t linear; /* index in the caller's list */
    uint32_t rank;   /* 1..WALSH_MAX_LORA_RANK */
    double scale;
    struct walsh_peft_matrix a, b; /* [rank][in], [out][rank]. gate and up of a stack have the same A, and so
                                      have the parts of a fused linear */
};
struct walsh_peft {
    struct walsh_peft_config config;
    struct walsh_safetensors file;
    struct walsh_peft_update *updates; /* by ascending `linear` */
    size_t count;
    size_t absent;         /* linears that the config targets and the file has no tensors for ... */
    uint32_t first_absent; /* ... the first of them; PEFT leaves such a linear as it is */
    /* Copies of base weights that PEFT saves beside a head's LoRA: nothing is read of them but the shape. */
    size_t base_copies;
    const char *first_base_copy; /* the tensor's name */
    struct walsh_arena arena;
};
/* `linears` is borrowed for the call only. Leaves *out zeroed on failure. */
enum walsh_status walsh_peft_open(const char *directory, bool use_mmap,
                                  const struct walsh_peft_linear *linears, size_t count,
                                  struct walsh_peft *out, struct walsh_error *err);
void walsh_peft_close(struct walsh_peft *peft); /* safe on a zeroed struct */
/* out [rows][columns] <- the view, as f32. */
void walsh_peft_read(const struct walsh_peft_matrix *matrix, float *out);

#endif
