#define PREFETCH 6144
#define PREFETCH_FAR 0
#include "kernels/x86/vnni/blocks.inc"

void walsh_product_block_decode_vnni(const struct walsh_product_part *p)
{
    any_product(p);
}

void walsh_product_block_prefill_vnni(const struct walsh_product_part *p)
{
    any_product(p);
}
