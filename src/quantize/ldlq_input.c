#include <lapacke.h>
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "quantize/blas.h"
#include "quantize/ldlq.h"
#include "quantize/rotate.h"

enum { GROUP = 8 };

static double mean_diagonal(const float *h, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)h[i * n + i];
    return sum / (double)n;
}

static void add_diagonal(float *h, size_t n, double value)
{
    for (size_t i = 0; i < n; i++) h[i * n + i] = (float)((double)h[i * n + i] + value);
}

/* H~ = H_n diag(SV) (H + 1%) diag(SV) H_n + 1%: rows, transpose, rows again (H is symmetric). */
static enum walsh_status rotate_hessian(const struct walsh_queue *q, const struct walsh_rotation *r,
                                        const float *hessian, float *rotated, struct walsh_error *err)
{
    const size_t size = r->size, n = r->blocks.padded;
    float *half = NULL, *damped = NULL;
    WALSH_TRY(walsh_alloc(size * n + size * size, sizeof *half, "a Hessian to rotate", &half, err));
    damped = half + size * n;
    memcpy(damped, hessian, size * size * sizeof *damped);
    add_diagonal(damped, size, 0.01 * mean_diagonal(damped, size));
    walsh_rotate_rows(q, r, r->signs, damped, size, half);
    float *across = NULL;
    enum walsh_status status = walsh_alloc(n * size, sizeof *across, "a Hessian to rotate", &across, err);
    if (status == WALSH_OK) {
        walsh_transpose(q, half, size, n, across);
        walsh_rotate_rows(q, r, r->signs, across, n, rotated);
        for (size_t i = 0; i < n; i++)
            for (size_t j = 0; j < i; j++) rotated[i * n + j] = rotated[j * n + i];
        add_diagonal(rotated, n, 0.01 * mean_diagonal(rotated, n));
    }
    walsh_free(across);
    walsh_free(half);
    return status;
}

/* factor = the lower Cholesky factor of h, zero above; false where h is not positive definite. */
static bool cholesky(const float *h, size_t n, float *factor)
{
    for (size_t i = 0; i < n; i++) {
        memcpy(factor + i * n, h + i * n, (i + 1) * sizeof *factor);
        memset(factor + i * n + i + 1, 0, (n - i - 1) * sizeof *factor);
    }
    /* our rows are its columns: the upper factor there is the lower one here */
    return LAPACKE_spotrf(LAPACK_COL_MAJOR, 'U', (lapack_int)n, factor, (lapack_int)n) == 0;
}

struct unit_job {
    float *factor;
    size_t n;
};

/* Block column k of the unit factor: C_ik C_kk^-1 below, the identity on the diagonal. */
static void unit_task(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct unit_job *t = argument;
    const size_t n = t->n;
    for (size_t k = begin; k < end; k++) {
        float *diagonal = t->factor + k * GROUP * n + k * GROUP;
        cblas_strsm(CblasRowMajor, CblasRight, CblasLower, CblasNoTrans, CblasNonUnit,
                    (blasint)(n - (k + 1) * GROUP), GROUP, 1.0f, diagonal, (blasint)n, diagonal + GROUP * n,
                    (blasint)n);
        for (size_t i = 0; i < GROUP; i++)
            for (size_t j = 0; j < GROUP; j++) diagonal[i * n + j] = i == j;
    }
}

/* out = the inverse of the symmetric positive definite block at h, row stride n, by Gauss-Jordan elimination.
 */
static void invert_block(const float *h, size_t n, float *out)
{
    double a[GROUP][2 * GROUP] = {{0}};
    for (size_t i = 0; i < GROUP; i++) {
        for (size_t j = 0; j < GROUP; j++) a[i][j] = (double)h[i * n + j];
        a[i][GROUP + i] = 1;
    }
    for (size_t p = 0; p < GROUP; p++) {
        const double pivot = a[p][p];
        for (size_t j = 0; j < 2 * GROUP; j++) a[p][j] /= pivot;
        for (size_t i = 0; i < GROUP; i++) {
            const double f = a[i][p];
            if (i == p) continue;
            for (size_t j = 0; j < 2 * GROUP; j++) a[i][j] -= f * a[p][j];
        }
    }
    for (size_t i = 0; i < GROUP; i++)
        for (size_t j = 0; j < GROUP; j++) out[i * GROUP + j] = (float)a[i][GROUP + j];
}

static void set_identity(struct walsh_ldlq_input *input)
{
    const size_t n = input->n;
    memset(input->hessian, 0, n * n * sizeof *input->hessian);
    add_diagonal(input->hessian, n, 1);
    input->identity = true;
    walsh_free(input->factor);
    input->factor = NULL;
}

/* Factor H~, damping it more where that fails. */
static void factorize(const struct walsh_queue *q, const char *name, const struct walsh_hooks *hooks,
                      struct walsh_ldlq_input *input)
{
    const size_t n = input->n;
    if (!cholesky(input->hessian, n, input->factor)) {
        walsh_log(hooks, WALSH_LOG_WARNING,
                  "%s: the Hessian is not positive definite; damping it by 10%% more", name);
        add_diagonal(input->hessian, n, 0.1 * mean_diagonal(input->hessian, n));
        if (!cholesky(input->hessian, n, input->factor)) {
            walsh_log(hooks, WALSH_LOG_WARNING, "%s: the Hessian cannot be factored; using the identity",
                      name);
            set_identity(input);
            return;
        }
    }
    struct unit_job t = {input->factor, n};
    walsh_pool_run(q->pool, n / GROUP, 4, unit_task, &t);
}

static enum walsh_status fill_input(const struct walsh_queue *q, const float *hessian, const char *name,
                                    const struct walsh_hooks *hooks, struct walsh_ldlq_input *out,
                                    struct walsh_error *err)
{
    const size_t n = out->n, size = out->rotation.size;
    WALSH_TRY(walsh_alloc(n * n, sizeof(float), "a rotated Hessian", &out->hessian, err));
    WALSH_TRY(walsh_alloc(n * GROUP, sizeof(float), "a Hessian's blocks", &out->inverse, err));
    const size_t signs = walsh_rotation_signs(&out->rotation);
    WALSH_TRY(walsh_alloc(signs, sizeof(float), "sign reciprocals", &out->reciprocal, err));
    for (size_t i = 0; i < signs; i++) out->reciprocal[i] = 1 / out->rotation.signs[i];
    double mean = hessian ? mean_diagonal(hessian, size) : 1;
    if (hessian && !(mean > 0 && mean < HUGE_VAL)) {
        walsh_log(hooks, WALSH_LOG_WARNING, "%s: the Hessian is %s; using the identity", name,
                  mean == 0 ? "zero (no calibration token came here)" : "not finite");
        hessian = NULL;
    }
    if (hessian) {
        WALSH_TRY(walsh_alloc(n * n, sizeof(float), "a Hessian's factor", &out->factor, err));
        WALSH_TRY(rotate_hessian(q, &out->rotation, hessian, out->hessian, err));
        factorize(q, name, hooks, out);
    } else {
        set_identity(out);
    }
    for (size_t k = 0; k < n / GROUP; k++)
        invert_block(out->hessian + k * GROUP * n + k * GROUP, n, out->inverse + k * GROUP * GROUP);
    return WALSH_OK;
}

enum walsh_status walsh_ldlq_input_open(const struct walsh_queue *q, const struct walsh_rotation *rotation,
                                        const float *hessian, const char *name,
                                        const struct walsh_hooks *hooks, struct walsh_ldlq_input *out,
                                        struct walsh_error *err)
{
    walsh_blas_one_thread();
    memset(out, 0, sizeof *out);
    out->rotation = *rotation;
    out->n = rotation->blocks.padded;
    enum walsh_status status = fill_input(q, hessian, name, hooks, out, err);
    if (status != WALSH_OK) walsh_ldlq_input_close(out);
    return status;
}

void walsh_ldlq_input_close(struct walsh_ldlq_input *input)
{
    walsh_free(input->hessian);
    walsh_free(input->factor);
    walsh_free(input->inverse);
    walsh_free(input->reciprocal);
    memset(input, 0, sizeof *input);
}
