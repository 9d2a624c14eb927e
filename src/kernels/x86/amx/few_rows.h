/* kernels/x86/amx/few_rows: MXFP4 by one to four rows, whose tiles would be almost empty. */
#ifndef WALSH_KERNELS_X86_AMX_FEW_ROWS_H
#define WALSH_KERNELS_X86_AMX_FEW_ROWS_H

#include "kernels/product.h"

/* False, with nothing done, where rows are many or tiles, or activations or scales beyond what vectors can do with the bits of the
 * product by tiles; else they are its bits. */
bool walsh_amx_mxfp4_few_rows(const struct walsh_product_part *p);

#endif
