/* kernels/cuda/backend: what the C files of the module share. */
#ifndef WALSH_KERNELS_CUDA_BACKEND_H
#define WALSH_KERNELS_CUDA_BACKEND_H

#include "kernels/cuda/launch.h"
#include "kernels/device.h"

#define CUDA_PINNED_BYTES ((size_t)16 << 20)   /* of either buffer that uploads go through */
#define CUDA_PIECE_BYTES ((size_t)1 << 20)     /* a piece that is smaller does not begin at a buffer's end */
#define CUDA_SCRATCH_BYTES ((size_t)128 << 20) /* of the ops of a queue */

/* What q->device points to. */
struct cuda_device {
    int number, processors;
    char name[300]; /* "cuda:0, NVIDIA H200" */
    cudaStream_t stream;
    bool borrowed; /* the stream is the caller's */
    void *pinned[2];
    cudaEvent_t sent[2]; /* recorded behind the copies out of a full pinned buffer */
    unsigned next;       /* pinned buffer */
    size_t used;         /* bytes of it */
    struct cuda_readings
        *readings; /* weights.c: what has its place there and is still to be read; NULL: nothing ever */
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
extern const struct walsh_quantize_ops cuda_quantize_ops;
extern const struct walsh_train_ops cuda_train_ops;
extern const struct walsh_expert_ops cuda_expert_ops;
extern const struct walsh_memory cuda_memory;

/* "what: CUDA's words", with the status that belongs to it. */
enum walsh_status cuda_fail(struct walsh_error *err, cudaError_t code, const char *what);
/* Where a launch of `op` failed, or the op was given what it does not know, the device remembers the first.
 */
void cuda_note(struct cuda_device *d, const char *op);
void cuda_refuse(struct cuda_device *d, const char *op, const char *why);

/* What is left of the pinned buffer at hand, at least `least` (at most CUDA_PINNED_BYTES) bytes; `device` is as much of the
 * queue's scratch, for what is laid out there. Behind it cuda_send enqueues a copy of the first `bytes`, once. */
struct cuda_room {
    void *pinned, *device;
    size_t bytes;
};
enum walsh_status cuda_pinned_room(struct cuda_device *d, size_t least, struct cuda_room *out,
                                   struct walsh_error *err);
enum walsh_status cuda_send(struct cuda_device *d, void *to, const struct cuda_room *from, size_t bytes,
                            struct walsh_error *err);

/* weights.c: weights that have their place in the pinned buffer at hand are read, sent and laid out, many matrices by one
 * dispatch of the pool. What leaves the buffer, or looks at the device, calls it first. */
enum walsh_status cuda_read_pending(struct cuda_device *d, struct walsh_error *err);

/* weights.c: the members of struct walsh_memory. place_weights of stored weights only takes their place: they, what `from`
 * points to and their file stay until synchronize, which may fail for them. */
size_t cuda_weights_bytes(const struct walsh_queue *q, const struct walsh_weights *w);
enum walsh_status cuda_place_weights(const struct walsh_queue *q, const struct walsh_weights *from,
                                     const char *what, void *room, struct walsh_weights *out,
                                     struct walsh_error *err);
enum walsh_status cuda_rotation_bytes(const struct walsh_queue *q, const struct walsh_rotation *rotation,
                                      const char *what, size_t *out, struct walsh_error *err);
enum walsh_status cuda_place_rotation(const struct walsh_queue *q, const struct walsh_rotation *host,
                                      const char *what, void *room, struct walsh_rotation *out,
                                      struct walsh_error *err);
enum walsh_status cuda_upload_weights(const struct walsh_queue *q, const struct walsh_weights *host,
                                      const char *what, struct walsh_weights *out, struct walsh_error *err);
enum walsh_status cuda_upload_rotation(const struct walsh_queue *q, const struct walsh_rotation *host,
                                       const char *what, struct walsh_rotation *out, struct walsh_error *err);
void cuda_free_weights(const struct walsh_queue *q, struct walsh_weights *w);

/* Rotations that only rotation_any.cu knows: struct cuda_rotation's `any`. */
bool cuda_rotates_any(const struct walsh_rotation *rotation);
/* The signs of the others as the kernels read them (launch.h): [padded + CUDA_SIGN_WORDS(padded)] words. */
void cuda_pack_signs(const float *signs, uint32_t padded, uint32_t *words);

/* ops.c: walsh_memory.rotate. */
bool cuda_rotate_rows(const struct walsh_queue *q, const struct walsh_rotation *rotation,
                      enum walsh_format to_type, void *y, size_t ldy, enum walsh_format from_type,
                      const void *x, size_t ldx, size_t rows);

/* For the ops: the product of E8P weights, with the device's tables. */
struct cuda_e8p cuda_e8p_of(const struct cuda_device *d, const struct walsh_weights *w);
struct cuda_blocks cuda_blocks_of(const struct walsh_weights *w);

/* walsh_memory.upload_codecs and read_codecs; the first fills what it uploads by the third. */
enum walsh_status cuda_upload_codecs(const struct walsh_queue *q, const struct walsh_turbo_codecs *codecs,
                                     void **out, struct walsh_error *err);
enum walsh_status cuda_read_codecs(const struct walsh_queue *q, const void *codecs, uint64_t *saturated,
                                   struct walsh_error *err);
void cuda_fill_turbo(const struct walsh_turbo_codecs *codecs, struct cuda_turbo *out);

enum walsh_status cuda_bench(const struct walsh_queue *q, const char *pattern,
                             struct walsh_device_ceilings *ceilings,
                             void (*row)(void *user, const struct walsh_device_bench_row *row), void *user,
                             struct walsh_error *err);
/* bench_load.c: its rows of loading. */
enum walsh_status cuda_bench_load(const struct walsh_queue *q, const char *pattern,
                                  void (*row)(void *user, const struct walsh_device_bench_row *row),
                                  void *user, struct walsh_error *err);

#endif
