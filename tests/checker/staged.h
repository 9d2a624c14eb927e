/* A device's queue for cases that know host memory only: each op's arrays are copied to guarded device
 * memory, the op runs there, and what it may have written comes back. Failures of the device end the checker.
 */
#ifndef WALSH_TESTS_STAGED_H
#define WALSH_TESTS_STAGED_H

#include "kernels/device.h"

struct staged {
    struct walsh_queue device; /* the module's */
    uint8_t *room;             /* device: what an op's arrays are cut from */
    size_t used;
    struct staged_array *arrays; /* of the current op */
    size_t count;
    bool overrun; /* some op wrote to a guard */
};

/* A queue whose ops are the staged ones of `module`'s device. Its other members are those of `cpu`. */
void staged_open(struct staged *s, const struct walsh_device_module *module, unsigned device,
                 const struct walsh_queue *cpu, struct walsh_queue *out);
void staged_close(struct staged *s, const struct walsh_device_module *module);

#endif
