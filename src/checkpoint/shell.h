/* checkpoint/shell: GLQ's older codebook of linears, "e8_shell": the first points of the E8 lattice by norm.
 * May use base, formats.
 *
 * The points are those of DIR/e8_codebook.pt, a ZIP archive as torch.save writes it, whose member NAME/data/0
 * holds them as f32 [count][8]. A linear MODULE with W~[m_pad][n_pad] (padded, rotated) is stored as
 *   MODULE.Qidxs             I16 [m_pad, n_pad/8]   the first stage: unsigned numbers of points
 *   MODULE.Qidxs{2,3,4}      the same, residual stages
 *   MODULE.SU, SV            F16 [m_pad], [n_pad]   output and input signs
 *   MODULE.Wscale            F32 []
 *   MODULE.inv_resid_scale, inv_resid_scale2, inv_resid_scale3   F32 []   of the stages 2, 3, 4, cumulative
 * and W~ = Wscale * sum over stages k of inv_resid_scale[k] * point(codes[k]). Both padded sizes are the
 * linear's own (m_pad and n_pad as they are, Hadamard blocks down to one element) or the next power of two.
 */
#ifndef WALSH_CHECKPOINT_SHELL_H
#define WALSH_CHECKPOINT_SHELL_H

#include "checkpoint/checkpoint.h"
#include "formats/weights.h"

/* Read and validate e8_codebook.pt of the checkpoint's directory. Errors name the file. */
enum walsh_status walsh_shell_points_open(const struct walsh_checkpoint *ck, struct walsh_shell_points *out,
                                          struct walsh_error *err);
void walsh_shell_points_close(struct walsh_shell_points *points); /* safe on a zeroed struct */

/* One stored linear; the tensors are borrowed from the checkpoint. */
struct walsh_shell_linear {
    uint32_t m_pad, n_pad;
    unsigned stages; /* 1..WALSH_MAX_STAGES */
    const struct walsh_tensor *codes[WALSH_MAX_STAGES];
    const struct walsh_tensor *su, *sv;              /* all finite */
    float wscale, inv_resid_scale[WALSH_MAX_STAGES]; /* [0] is 1 */
};
bool walsh_shell_present(const struct walsh_checkpoint *ck, const char *module);
/* Find, validate (but for the codes) and mark used all tensors of `module`. */
enum walsh_status walsh_shell_take(const struct walsh_checkpoint *ck, const char *module,
                                   uint32_t out_features, uint32_t in_features,
                                   struct walsh_shell_linear *out, struct walsh_error *err);
/* The point of a stage at (row, group of eight columns); UINT32_MAX: there is no such point. */
uint32_t walsh_shell_code(const struct walsh_shell_linear *linear, const struct walsh_shell_points *points,
                          unsigned stage, size_t row, size_t group);

#endif
