#include <string.h>

#include "base/memory.h"
#include "quantize/ldlq.h"
#include "quantize/rotate.h"

enum { GROUP = 8 };

struct decode_job {
    const struct walsh_ldlq_result *result;
    float *w; /* [m][n] */
};

/* Rows of W^ = Wscale * sum of cumulative inverse * decode(codes). */
static void decode_task(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct decode_job *t = argument;
    const struct walsh_ldlq_result *r = t->result;
    const size_t groups = r->n / GROUP;
    memset(t->w + begin * r->n, 0, (end - begin) * r->n * sizeof *t->w);
    for (unsigned k = 0; k < r->plan.stages; k++) {
        const float scale = r->wscale * r->cumulative_inverse[k];
        for (size_t g = begin * groups; g < end * groups; g++) {
            float v[GROUP];
            if (r->plan.kind[k] == WALSH_STAGE_E8P)
                walsh_e8p_decode(((const uint16_t *)r->codes[k])[g], v);
            else
                walsh_e81b_decode(((const uint8_t *)r->codes[k])[g], v);
            for (size_t i = 0; i < GROUP; i++) t->w[g * GROUP + i] += scale * v[i];
        }
    }
}

enum walsh_status walsh_ldlq_decode(const struct walsh_queue *q, const struct walsh_rotation *in_rotation,
                                    const struct walsh_rotation *out_rotation,
                                    const struct walsh_ldlq_result *result, float *w, struct walsh_error *err)
{
    const size_t m = result->m, n = result->n, size = in_rotation->size;
    float *rotated = NULL, *rows, *across;
    WALSH_TRY(walsh_alloc(m * n + m * size * 2, sizeof(float), "weights to rotate back", &rotated, err));
    rows = rotated + m * n;
    across = rows + m * size;
    struct decode_job t = {result, rotated};
    walsh_pool_run(q->pool, m, 4, decode_task, &t);
    walsh_unrotate_rows(q, in_rotation, in_rotation->signs, rotated, m, rows);
    walsh_transpose(q, rows, m, size, across);
    walsh_unrotate_rows(q, out_rotation, out_rotation->signs, across, size, rows);
    walsh_transpose(q, rows, size, out_rotation->size, w);
    walsh_free(rotated);
    return WALSH_OK;
}
