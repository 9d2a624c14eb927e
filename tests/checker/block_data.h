/* Random weights of the block formats, for the kernels' and the op's cases. */
#ifndef WALSH_TESTS_CHECKER_BLOCK_DATA_H
#define WALSH_TESTS_CHECKER_BLOCK_DATA_H

#include "checker.h"
#include "formats/blocks.h"

struct block_kind {
    const char *name;
    enum walsh_format format;
    struct walsh_block_type block;
    bool zeros;
};
#define BLOCK_KINDS 11
/* The first BLOCK_INTEGER_KINDS have products by int8 activations. */
#define BLOCK_INTEGER_KINDS 8
extern const struct block_kind block_kinds[BLOCK_KINDS];

/* Codes that are numbers, scales between 2^-10 and 2^10 (in odd rounds up to the ends of their type). */
struct walsh_weights block_weights(struct check *c, const struct block_kind *kind, size_t rows, size_t cols);
/* int8 activations in groups; in the last round one scale is NaN. */
struct walsh_activations block_activations(struct check *c, size_t rows, size_t cols);

#endif
