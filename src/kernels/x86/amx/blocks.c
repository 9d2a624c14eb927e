/* VPDPBUSD's kernel, for machines whose L1 has a short table of misses and whose L2 a long one: a prefetch into each. Zen 5, which
 * has no AMX, is 4 to 11% slower by it. */
#define PREFETCH 2048
#define PREFETCH_FAR 8192
#include "kernels/x86/vnni/blocks.inc"

void walsh_product_block_decode_amx(const struct walsh_product_part *p)
{
    any_product(p);
}
