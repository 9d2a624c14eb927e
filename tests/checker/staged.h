/* A device's queue for cases that know host memory only: each op's arrays are copied to guarded device
 * memory, the op runs there, and what it may have written comes back. Failures of the device end the checker.
 */
#ifndef WALSH_TESTS_STAGED_H
#define WALSH_TESTS_STAGED_H

#include "kernels/device.h"
#include "kernels/turbo.h"

#define STAGED_CODECS 8

struct staged {
    struct walsh_queue device; /* the module's */
    uint8_t *room;             /* device: what an op's arrays are cut from */
    size_t used;
    struct staged_array *arrays; /* of the current op */
    size_t count;
    struct {
        struct walsh_turbo_codecs *host;
        void *device;
    } codecs[STAGED_CODECS]; /* of the current op's packed caches */
    size_t codecs_count;
    bool overrun; /* some op wrote to a guard */
};

/* A queue whose ops are the staged ones of `module`'s device. Its other members are those of `cpu`. */
void staged_open(struct staged *s, const struct walsh_device_module *module, unsigned device,
                 const struct walsh_queue *cpu, struct walsh_queue *out);
void staged_close(struct staged *s, const struct walsh_device_module *module);

/* For the ops of training and quantizing (staged_train.c, staged_quantize.c, staged_experts.c). in, out: a copy of the host's bytes on the device, what is `out` comes back when the op
 * is done (finish). span: bytes of `rows` rows of n elements. must: a failure of the device ends the checker. */
extern const struct walsh_train_ops staged_train_ops;
extern const struct walsh_quantize_ops staged_quantize_ops;
/* The staged ops of experts; NULL: q is not staged, or its device has none. */
const struct walsh_expert_ops *staged_experts(const struct walsh_queue *q);
struct staged *staged_of(const struct walsh_queue *q);
const void *staged_in(struct staged *s, const void *host, size_t bytes);
void *staged_out(struct staged *s, void *host, size_t bytes);
size_t staged_span(size_t rows, size_t ld, size_t n, size_t element);
void staged_must(enum walsh_status status, const struct walsh_error *err);
void staged_finish(struct staged *s);

#endif
