/* api: codes of walsh_ops.h, checked, for the files that read them. */
#ifndef WALSH_API_OPS_CODES_H
#define WALSH_API_OPS_CODES_H

#include "api/ops.h"

/* W^[rows][cols], padded; codes[k] dense [rows][cols / 8]. */
struct walsh_ops_matrix {
    uint32_t rows, cols, stages;
    enum walsh_stage_kind kind[WALSH_OPS_STAGES];
    const void *codes[WALSH_OPS_STAGES];
};
/* `scales`: they are read, and must be finite. */
enum walsh_status walsh_ops_codes_check(const char *call, const struct walsh_ops_codes *codes, bool scales,
                                        struct walsh_ops_matrix *out, struct walsh_error *err);
/* The padded sizes of the rotations, each of which may be NULL, are those of the matrix. */
enum walsh_status walsh_ops_rotations_check(const char *call, const struct walsh_ops_rotation *in,
                                            const struct walsh_ops_rotation *out,
                                            const struct walsh_ops_matrix *matrix, struct walsh_error *err);

#endif
