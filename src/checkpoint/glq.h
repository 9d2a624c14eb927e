/* checkpoint/glq: the GLQ layout of E8P linears <-> plain row-major codes. May use base, rotation, formats.
 *
 * A linear MODULE with W~[m_pad][n_pad] (padded, rotated) is stored as
 *   MODULE.Qidxs_e8p         I64 [m_pad/16, n_pad/64, 8, 4]   the first stage
 *   MODULE.Qidxs{2,3,4}_e8p  the same, or MODULE.Qidxs{2,3,4}_e81b I64 [m_pad, n_pad/64]   residual stages
 *   MODULE.SU                F16 [m_pad]   output signs (times an optional scale)
 *   MODULE.SV                F16 [n_pad]   input signs
 *   either of them F16 [2, m_pad] or [2, n_pad]: the two vectors of an overlap rotation (walsh's own)
 *   MODULE.Wscale            F32 []
 *   MODULE.inv_resid_scale, inv_resid_scale2, inv_resid_scale3   F32 []   of the stages 2, 3, 4, cumulative
 * and W~ = Wscale * sum over stages k of inv_resid_scale[k] * decode(codes[k]).
 *
 * E8P: element [mt][kt][r][c] holds four codes; code i (0..3) is row 16mt + 2r + (i & 1), group of eight
 * columns 8kt + 2c + (i >> 1). Its high byte stands at bits 8i, bit j of its low byte at bit 32 + 4j + i.
 * E81B: byte i of an element is its group i, so the bytes are row-major codes. */
#ifndef WALSH_CHECKPOINT_GLQ_H
#define WALSH_CHECKPOINT_GLQ_H

#include "checkpoint/checkpoint.h"
#include "formats/weights.h"
#include "rotation/rotation.h"

/* Stored tensor (maybe unaligned, as mapped) -> codes[m_pad][n_pad/8], and back. m_pad a multiple of 16
 * (E8P), n_pad of
 * 64. `stored` has m_pad * n_pad/8 codes' bytes: 2 each for E8P, 1 for E81B. */
void walsh_glq_unpack_e8p(const void *stored, size_t m_pad, size_t n_pad, uint16_t *codes);
void walsh_glq_pack_e8p(const uint16_t *codes, size_t m_pad, size_t n_pad, void *stored);
void walsh_glq_unpack_e81b(const void *stored, size_t m_pad, size_t n_pad, uint8_t *codes);
void walsh_glq_pack_e81b(const uint8_t *codes, size_t m_pad, size_t n_pad, void *stored);

struct walsh_glq_stage {
    enum walsh_stage_kind kind;
    const struct walsh_tensor *codes;
};

/* One stored linear; the tensors are borrowed from the checkpoint. */
struct walsh_glq_linear {
    uint32_t m_pad, n_pad;
    unsigned stages; /* 1..WALSH_MAX_STAGES */
    struct walsh_glq_stage stage[WALSH_MAX_STAGES];
    const struct walsh_tensor *su; /* F16 [m_pad] or [2, m_pad], all finite; walsh_tensor_to_f32 */
    const struct walsh_tensor *sv; /* F16 [n_pad] or [2, n_pad], all finite */
    float wscale;
    float inv_resid_scale[WALSH_MAX_STAGES]; /* cumulative; [0] is 1 */
};

/* Is `module` ("model.layers.0.mlp.up_proj") stored as a GLQ E8P linear? */
bool walsh_glq_present(const struct walsh_checkpoint *ck, const char *module);

/* Find, validate and mark used all tensors of `module`, whose logical weight is [out_features][in_features].
 * The padded sizes come from the stored shapes; each must be the size padded to blocks (outputs to 16, inputs
 * to 64) or to the next power of two. Missing tensors, other dtypes or shapes, two kinds of one stage, NaN or
 * Inf in a scale or in SU, SV: errors that name the tensor. */
enum walsh_status walsh_glq_take(const struct walsh_checkpoint *ck, const char *module, uint32_t out_features,
                                 uint32_t in_features, struct walsh_glq_linear *out, struct walsh_error *err);

/* A scale: F32 of rank 0, or of one element as some writers store it; finite. */
enum walsh_status walsh_glq_take_scalar(const struct walsh_checkpoint *ck, const char *name, float *out,
                                        struct walsh_error *err);
/* MODULE.SU or SV (`which`): F16 [size] or [2, size], all finite. */
enum walsh_status walsh_glq_take_signs(const struct walsh_checkpoint *ck, const char *module,
                                       const char *which, uint64_t size, const struct walsh_tensor **out,
                                       struct walsh_error *err);

/* "MODULE.Qidxs2_e81b" of stage 0..3, "MODULE.inv_resid_scale" of stage 1..3, into buffer; returns buffer. */
const char *walsh_glq_codes_name(const char *module, unsigned stage, enum walsh_stage_kind kind, char *buffer,
                                 size_t size);
const char *walsh_glq_scale_name(const char *module, unsigned stage, char *buffer, size_t size);

/* Declare all tensors of one linear in the plan of an output file; the rotations say the padded sizes and how
 * many signs there are. */
enum walsh_status walsh_glq_plan(struct walsh_safetensors_plan *plan, const char *module,
                                 const struct walsh_rotation *out, const struct walsh_rotation *in,
                                 unsigned stages, const enum walsh_stage_kind *kinds,
                                 struct walsh_error *err);

#endif
