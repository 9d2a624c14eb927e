/* The CPU's table of ops. */
#include "kernels/cpu/cpu_ops.h"

const struct walsh_ops walsh_cpu_ops = {
    0,
};
