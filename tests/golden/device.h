/* The device that a golden test runs on. */
#ifndef WALSH_TESTS_GOLDEN_DEVICE_H
#define WALSH_TESTS_GOLDEN_DEVICE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/device.h"

/* *queue, which is open for the CPU, becomes that of the first device. false, with the reason printed: there is none; where
 * WALSH_REQUIRE=cuda the test ends with 1 then. */
static bool golden_device(struct walsh_queue *queue, const struct walsh_device_module **module)
{
    struct walsh_error err;
    const char *require = getenv("WALSH_REQUIRE");
    if (walsh_device_load(NULL, module, &err) == WALSH_OK && (*module)->count(&err) > 0 &&
        (*module)->open(0, NULL, queue, &err) == WALSH_OK)
        return true;
    printf("skipped: %s\n", err.message);
    if (require && strcmp(require, "cuda") == 0) exit(1);
    return false;
}

#endif
