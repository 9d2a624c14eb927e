#include "quantize/blas.h"

void walsh_blas_one_thread(void)
{
    openblas_set_num_threads(1);
}
