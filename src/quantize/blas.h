/* quantize/blas: BLAS on one thread under our own pool. Private to quantize/. */
#ifndef WALSH_QUANTIZE_BLAS_H
#define WALSH_QUANTIZE_BLAS_H

#include <cblas.h>
#include <stddef.h>

/* OpenBLAS runs in the calling thread from here on (its setting is the process's): calls come from our
 * workers, and bits must not depend on its own threads. */
void walsh_blas_one_thread(void);

/* C[m][n] += A[m][k] B[k][n], row-major with row strides. */
static inline void walsh_blas_multiply_add(size_t m, size_t n, size_t k, const float *a, size_t lda,
                                           const float *b, size_t ldb, float *c, size_t ldc)
{
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (blasint)m, (blasint)n, (blasint)k, 1.0f, a,
                (blasint)lda, b, (blasint)ldb, 1.0f, c, (blasint)ldc);
}

#endif
