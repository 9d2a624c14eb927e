/* The scalar definition of a low-rank update, sums in double. */
#include "kernels/table.h"

void walsh_low_rank_down_reference(const struct walsh_low_rank_down_part *p)
{
    for (size_t i = 0; i < p->rows; i++) {
        for (size_t j = 0; j < WALSH_LOW_RANK_CHUNK; j++) {
            double sum = 0;
            for (size_t k = p->begin; k < p->end; k++) {
                const size_t at = walsh_low_rank_a_at(p->format, p->cols, j, k);
                sum += (double)walsh_low_rank_get(p->format, p->a, at) * (double)p->x[i * p->ldx + k];
            }
            p->h[i * p->ldh + j] = (float)sum;
        }
    }
}

void walsh_low_rank_up_reference(const struct walsh_low_rank_up_part *p)
{
    for (size_t i = 0; i < p->rows; i++) {
        for (size_t o = p->begin; o < p->end; o++) {
            double sum = 0;
            for (size_t j = 0; j < p->rank; j++) {
                const size_t at = walsh_low_rank_b_at(p->format, p->rank, o, j);
                sum += (double)walsh_low_rank_get(p->format, p->b, at) * (double)p->h[i * p->ldh + j];
            }
            float *y = &p->y[i * p->ldy + o];
            *y = (float)((double)p->scale * sum + (double)*y);
        }
    }
}

void walsh_low_rank_down_prefill_reference(const struct walsh_low_rank_down_part *p)
{
    struct walsh_low_rank_down_part chunk = *p;
    for (size_t c = 0; c < p->chunks; c++, chunk.h += WALSH_LOW_RANK_CHUNK) {
        walsh_low_rank_down_reference(&chunk);
        chunk.a = (const char *)chunk.a +
                  walsh_low_rank_a_size(1, p->cols) * (p->format == WALSH_FORMAT_BF16 ? 2 : 4);
    }
}

void walsh_low_rank_up_prefill_reference(const struct walsh_low_rank_up_part *p)
{
    walsh_low_rank_up_reference(p);
}
