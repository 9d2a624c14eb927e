/* model/adapter_products: the adapters of a call's rows become the low-rank updates of its products. Private
 * to model/. */
#ifndef WALSH_MODEL_ADAPTER_PRODUCTS_H
#define WALSH_MODEL_ADAPTER_PRODUCTS_H

#include "model/adapter.h"
#include "model/workspace.h"

/* Give each product of the list, which computes calls[i]->linear of the `rows` rows of x, its linear's own
 * low-rank part and then the updates that `sets` has for it, in the order of rows and, for a row, of its set.
 * Returns `input` with what they read, NULL where there are none. Everything lives in ws until its next call.
 */
const struct walsh_low_rank_input *
walsh_adapter_products(struct walsh_workspace *ws, const struct walsh_linear_call *const *calls, size_t count,
                       const float *x, size_t ldx, size_t rows, const struct walsh_row_sets *sets,
                       enum walsh_role role, struct walsh_product *list, struct walsh_low_rank_input *input);

#endif
