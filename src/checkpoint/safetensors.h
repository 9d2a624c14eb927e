/* checkpoint/safetensors: one file of the safetensors format (https://github.com/huggingface/safetensors,
 * "Format"): 8 bytes little-endian header length N <= 100,000,000; N bytes of JSON that start with '{'; then
 * the data. Every rule is enforced on reading: no duplicate keys, known dtypes, shape x dtype = range, ranges
 * in bounds, no overlap, no hole, the whole buffer covered, checked arithmetic. Empty and rank-0 tensors are
 * legal. */
#ifndef WALSH_CHECKPOINT_SAFETENSORS_H
#define WALSH_CHECKPOINT_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/scalar.h"
#include "base/status.h"

#define WALSH_MAX_RANK 8

/* A tensor in a mapped file; borrowed from the file that holds it. */
struct walsh_tensor {
    const char *name;
    enum walsh_dtype dtype;
    unsigned rank;
    uint64_t shape[WALSH_MAX_RANK];
    const void *data; /* unaligned in general */
    size_t bytes;
    const char *file; /* path, for messages */
    bool used;        /* set by the reader that consumed it */
};

size_t walsh_dtype_size(enum walsh_dtype dtype);      /* bytes per element */
const char *walsh_dtype_name(enum walsh_dtype dtype); /* as in the header: "BF16" */
bool walsh_dtype_from_name(const char *name, enum walsh_dtype *out);
size_t
walsh_tensor_elements(const struct walsh_tensor *t); /* product of the shape; 1 at rank 0 (from `bytes`) */
/* "[320, 896]" into buffer; returns buffer. */
const char *walsh_shape_text(const uint64_t *shape, unsigned rank, char *buffer, size_t size);

struct walsh_safetensors {
    struct walsh_file file;
    struct walsh_tensor *tensors; /* sorted by name */
    size_t count;
    char **metadata_keys, **metadata_values; /* __metadata__, in the file's order */
    size_t metadata_count;
    struct walsh_arena arena;
};
enum walsh_status walsh_safetensors_open(const char *path, bool use_mmap, struct walsh_safetensors *out,
                                         struct walsh_error *err);
void walsh_safetensors_close(struct walsh_safetensors *st); /* safe on a zeroed struct */
struct walsh_tensor *walsh_safetensors_find(const struct walsh_safetensors *st,
                                            const char *name); /* NULL: absent */

struct walsh_plan_index; /* names in order; private */

/* Writing: declare every tensor, fix the layout, then write the data in any order at its place. */
struct walsh_safetensors_plan {
    struct walsh_tensor *tensors;   /* name, dtype, rank, shape; in file order */
    uint64_t *offsets;              /* absolute file offset of each tensor's data, after finish */
    struct walsh_plan_index *index; /* after finish */
    size_t count, capacity;
    char *header; /* the 8 length bytes and the JSON, padded with spaces to a multiple of 8; after finish */
    size_t header_bytes;
    uint64_t file_bytes;
    struct walsh_arena arena;
};
enum walsh_status walsh_plan_add(struct walsh_safetensors_plan *plan, const char *name,
                                 enum walsh_dtype dtype, unsigned rank, const uint64_t *shape,
                                 struct walsh_error *err);
/* Sort by dtype, widest alignment first, then by name (the reference writer's order), and build the header
 * with
 * `__metadata__` {"format": "pt"}. A name planned twice is an error. Once per plan. */
enum walsh_status walsh_plan_finish(struct walsh_safetensors_plan *plan, struct walsh_error *err);
/* Index of a planned tensor, or SIZE_MAX; after finish. */
size_t walsh_plan_find(const struct walsh_safetensors_plan *plan, const char *name);
void walsh_plan_close(struct walsh_safetensors_plan *plan);

#endif
