/* kernels/cuda/backend: what the C files of the module share. */
#ifndef WALSH_KERNELS_CUDA_BACKEND_H
#define WALSH_KERNELS_CUDA_BACKEND_H

#include "kernels/cuda/launch.h"
#include "kernels/device.h"

#define CUDA_PINNED_BYTES ((size_t)8 << 20)    /* of either buffer that uploads go through */
#define CUDA_SCRATCH_BYTES ((size_t)128 << 20) /* of the ops of a queue */

/* What q->device points to. */
struct cuda_device {
    int number, processors;
    char name[300]; /* "cuda:0, NVIDIA H200" */
    cudaStream_t stream;
    bool borrowed; /* the stream is the caller's */
    void *pinned[2];
    cudaEvent_t sent[2];                    /* recorded behind the copy out of a pinned buffer */
    unsigned next;                          /* pinned buffer */
    uint32_t *e8p_tables;                   /* device: [CUDA_E8P_TABLE_WORDS] */
    struct cuda_plane_tables *plane_tables; /* device */
    void *scratch;                          /* device: CUDA_SCRATCH_BYTES */
    struct walsh_error failure;             /* of the first op that failed; message "" where none did */
};

static inline struct cuda_device *cuda_device_of(const struct walsh_queue *q)
{
    return q->device;
}

extern const struct walsh_ops cuda_ops;
extern const struct walsh_memory cuda_memory;

/* "what: CUDA's words", with the status that belongs to it. */
enum walsh_status cuda_fail(struct walsh_error *err, cudaError_t code, const char *what);
/* Where a launch of `op` failed, or the op was given what it does not know, the device remembers the first.
 */
void cuda_note(struct cuda_device *d, const char *op);
void cuda_refuse(struct cuda_device *d, const char *op, const char *why);

/* The signs of a rotation as the kernels read them (launch.h): [padded + CUDA_SIGN_WORDS(padded)] words. */
void cuda_pack_signs(const float *signs, uint32_t padded, uint32_t *words);

/* For the ops: the product of E8P weights, with the device's tables. */
struct cuda_e8p cuda_e8p_of(const struct cuda_device *d, const struct walsh_weights *w);

enum walsh_status cuda_bench(const struct walsh_queue *q, const char *pattern,
                             struct walsh_device_ceilings *ceilings,
                             void (*row)(void *user, const struct walsh_device_bench_row *row), void *user,
                             struct walsh_error *err);

#endif
