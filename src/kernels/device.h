/* kernels/device: devices other than the CPU. A backend is a module (libwalsh-cuda.so) that is loaded at run
 * time, so that one program runs with and without it; kernels/ knows it by the tables below only.
 *
 * What the ops of struct walsh_ops (kernels/kernels.h) read and write on a device's queue is device memory:
 * x, y, ids, positions, route's indices, the data behind a descriptor, the page tables and the array of
 * walsh_attention_row with the views that it names. The descriptors themselves are host memory:
 * walsh_weights, walsh_activations, walsh_rotation, walsh_attention_shape and lists of walsh_product. An op
 * only enqueues; its failure is reported by the next walsh_memory.synchronize or download. */
#ifndef WALSH_KERNELS_DEVICE_H
#define WALSH_KERNELS_DEVICE_H

#include "kernels/experts.h"
#include "kernels/kernels.h"

/* Row i of `count` is token positions[i] of a sequence whose page p is number pages[i * ld + p] of a pool: at keys + number
 * * key_stride bytes and at values + number * value_stride. All pointers are the device's; numbers and positions are not
 * checked. Written: rows [count], views [count], tables [count][2][page_count]. */
struct walsh_paged_rows {
    enum walsh_kv_type type;
    void *codecs; /* of TURBO: what upload_codecs gave */
    uint32_t page_tokens, page_count;
    size_t count, ld;
    const int32_t *pages, *positions;
    void *keys, *values;
    size_t key_stride, value_stride;
    struct walsh_attention_row *rows;
    struct walsh_kv_view *views;
    void **tables;
};

/* Memory of the device of a queue. What comes back is ordered behind the ops that the queue was given. */
struct walsh_memory {
    /* 256-byte aligned, uninitialised. On failure the message says how much `what` wanted and what is free.
     */
    enum walsh_status (*alloc)(const struct walsh_queue *q, size_t bytes, const char *what, void *out_pointer,
                               struct walsh_error *err);
    void (*free)(const struct walsh_queue *q, void *p); /* NULL is fine; waits for the queue */
    /* Host to device. `from` may be reused on return: large copies go through two pinned buffers. */
    enum walsh_status (*upload)(const struct walsh_queue *q, void *to, const void *from, size_t bytes,
                                struct walsh_error *err);
    /* Device to host, complete on return. */
    enum walsh_status (*download)(const struct walsh_queue *q, void *to, const void *from, size_t bytes,
                                  struct walsh_error *err);
    void (*fill)(const struct walsh_queue *q, void *p, int byte, size_t bytes); /* enqueued */
    void (*copy)(const struct walsh_queue *q, void *to, const void *from,
                 size_t bytes); /* on the device, enqueued */
    enum walsh_status (*synchronize)(const struct walsh_queue *q, struct walsh_error *err);
    /* Bytes of device memory that place_weights fills; 0 for a format without products there. */
    size_t (*weights_bytes)(const struct walsh_queue *q, const struct walsh_weights *w);
    /* *out: the matrix in `room` (weights_bytes, 256-byte aligned), in the layout of its products. Its data are in host
     * memory, or weights.stored reads them, a piece at a time, with the threads of q->pool, into the pinned buffers.
     * Enqueued; what `from` names may change on return, but what is stored, and what reads it, stays until synchronize: matrices are
     * read together. Errors, of either call: those of what is stored. */
    enum walsh_status (*place_weights)(const struct walsh_queue *q, const struct walsh_weights *from,
                                       const char *what, void *room, struct walsh_weights *out,
                                       struct walsh_error *err);
    /* Bytes of device memory that place_rotation fills; 0: it has no signs. A block that the kernels do not hold:
     * WALSH_E_UNSUPPORTED with both figures. */
    enum walsh_status (*rotation_bytes)(const struct walsh_queue *q, const struct walsh_rotation *rotation,
                                        const char *what, size_t *out, struct walsh_error *err);
    /* *out: the rotation with its signs in `room` (rotation_bytes). */
    enum walsh_status (*place_rotation)(const struct walsh_queue *q, const struct walsh_rotation *host,
                                        const char *what, void *room, struct walsh_rotation *out,
                                        struct walsh_error *err);
    /* place_weights into memory of its own, which free_weights releases. A format without products there:
     * WALSH_E_UNSUPPORTED. */
    enum walsh_status (*upload_weights)(const struct walsh_queue *q, const struct walsh_weights *host,
                                        const char *what, struct walsh_weights *out, struct walsh_error *err);
    void (*free_weights)(const struct walsh_queue *q, struct walsh_weights *w);
    /* place_rotation into memory of its own; the signs belong to the caller (free). */
    enum walsh_status (*upload_rotation)(const struct walsh_queue *q, const struct walsh_rotation *host,
                                         const char *what, struct walsh_rotation *out,
                                         struct walsh_error *err);
    /* What is enqueued from `record` to `recorded` is kept instead of done; `replay` enqueues it again, as
     * one graph, and reads and writes the same memory each time. Nothing between the two may allocate, upload
     * or synchronize. *out belongs to the caller (forget). */
    enum walsh_status (*record)(const struct walsh_queue *q, struct walsh_error *err);
    enum walsh_status (*recorded)(const struct walsh_queue *q, void **out, struct walsh_error *err);
    enum walsh_status (*replay)(const struct walsh_queue *q, void *recording, struct walsh_error *err);
    void (*forget)(const struct walsh_queue *q, void *recording); /* NULL is fine */
    /* to [rows][ld_to] = from [rows][ld_from], `cols` numbers a row, each F32, F16 (saturated) or BF16, rounded to nearest
     * even; enqueued. Rows do not overlap. */
    void (*convert)(const struct walsh_queue *q, enum walsh_format to_type, void *to, size_t ld_to,
                    enum walsh_format from_type, const void *from, size_t ld_from, size_t rows, size_t cols);
    /* y [rows][ldy] = forward(rotation, x [rows][ldx]) of numbers as convert has them, in one launch; enqueued. They do not overlap.
     * False: nothing was done, because the rows do not lie as the kernels write them. NULL: always so. */
    bool (*rotate)(const struct walsh_queue *q, const struct walsh_rotation *rotation,
                   enum walsh_format to_type, void *y, size_t ldy, enum walsh_format from_type, const void *x,
                   size_t ldx, size_t rows);
    /* The rows of attention over a caller's pages; enqueued. */
    void (*page_tables)(const struct walsh_queue *q, const struct walsh_paged_rows *p);
    /* *out: the codecs of packed caches there, which a device's struct walsh_kv_view names in the place of the host's; it belongs
     * to the caller (free). WALSH_E_UNSUPPORTED for Prod keys. NULL: the backend knows no packed caches. */
    enum walsh_status (*upload_codecs)(const struct walsh_queue *q, const struct walsh_turbo_codecs *host,
                                       void **out, struct walsh_error *err);
    /* walsh_turbo_codecs.saturated of uploaded codecs. */
    enum walsh_status (*read_codecs)(const struct walsh_queue *q, const void *codecs, uint64_t *saturated,
                                     struct walsh_error *err);
    /* The first failure among the ops enqueued since the last one was told, without waiting for them. */
    enum walsh_status (*check)(const struct walsh_queue *q, struct walsh_error *err);
    /* What the bits of results depend on beside the program's build: the device, and what runs its kernels. NULL: nobody can keep
     * results for another run. */
    void (*identify)(const struct walsh_queue *q, char *out, size_t size);
    /* Bytes free and in all. */
    void (*figures)(const struct walsh_queue *q, size_t *available, size_t *total);
    /* kernels/experts.h: products over the router's answer in this memory. NULL: the backend has none. */
    const struct walsh_expert_ops *experts;
};

/* What holds the arrays of the ops of `q`: device memory, or host memory where the queue is the CPU's
 * (64-byte aligned then). The same calls serve both, so that whoever prepares an op does not ask. */
enum walsh_status walsh_queue_alloc(const struct walsh_queue *q, size_t bytes, const char *what,
                                    void *out_pointer, struct walsh_error *err); /* uninitialised */
void walsh_queue_free(const struct walsh_queue *q, void *p);
enum walsh_status walsh_queue_upload(const struct walsh_queue *q, void *to, const void *from, size_t bytes,
                                     struct walsh_error *err);
enum walsh_status walsh_queue_download(const struct walsh_queue *q, void *to, const void *from, size_t bytes,
                                       struct walsh_error *err);
void walsh_queue_zero(const struct walsh_queue *q, void *p, size_t bytes);
void walsh_queue_copy(const struct walsh_queue *q, void *to, const void *from, size_t bytes);

struct walsh_device_info {
    char name[256];       /* "NVIDIA H200" */
    char capability[128]; /* "compute 9.0, 132 multiprocessors, 150.1 GB, kernels for sm_90a" */
};

/* One timed case of a device's kernels. */
struct walsh_device_bench_row {
    const char *kernel;
    char size[64];
    double seconds, bytes, operations; /* of one call */
    double roofline;                   /* bytes over seconds over the bandwidth measured in the same run */
    double
        ratio; /* seconds of what it is to be faster than, measured in the same run, over seconds; 0: nothing */
};
struct walsh_device_ceilings {
    double read_bandwidth, copy_bandwidth; /* bytes/s; a copy counts what it reads and what it writes */
};

/* What a module exports, as the function walsh_device_module. Module and program are of one build: the loader
 * refuses another version or other struct sizes. */
#define WALSH_DEVICE_MODULE_SYMBOL "walsh_device_module"
struct walsh_device_module {
    const char *version; /* WALSH_VERSION */
    size_t queue_size, ops_size, module_size;
    /* Devices that can be used; 0 with a reason in *err. */
    unsigned (*count)(struct walsh_error *err);
    enum walsh_status (*describe)(unsigned device, struct walsh_device_info *out, struct walsh_error *err);
    /* A queue with a stream of its own, or, where `stream` is not NULL, over that one (a cudaStream_t), which stays
     * the caller's and outlives it. The CPU's members of *out are left as they are. Allocates and synchronizes. */
    enum walsh_status (*open)(unsigned device, void *stream, struct walsh_queue *out,
                              struct walsh_error *err);
    void (*close)(struct walsh_queue *q); /* waits for what was enqueued */
    /* The measured kernels whose name contains `pattern` (NULL: all). */
    enum walsh_status (*bench)(const struct walsh_queue *q, const char *pattern,
                               struct walsh_device_ceilings *ceilings,
                               void (*row)(void *user, const struct walsh_device_bench_row *row), void *user,
                               struct walsh_error *err);
};
typedef const struct walsh_device_module *walsh_device_module_function(void);

/* The module of backend "cuda": beside libwalsh.so or in walsh/ there; beside the program, in ../lib,
 * ../lib/walsh or the directory that the build installs it to, seen from there; or where the system finds
 * libraries; `path`: this file. WALSH_E_UNSUPPORTED where there is none or it is of another build. It stays
 * loaded for the life of the process. */
enum walsh_status walsh_device_load(const char *path, const struct walsh_device_module **out,
                                    struct walsh_error *err);

#endif
