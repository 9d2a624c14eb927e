/* kernels/cpu: packed keys and values (formats/turbo.h) in the ops. Scores and value sums are taken in the
 * codecs' rotated spaces: queries are rotated once, the result once, keys and values never. */
#ifndef WALSH_KERNELS_CPU_TURBO_H
#define WALSH_KERNELS_CPU_TURBO_H

#include "kernels/cpu/attention.h"

#define WALSH_TURBO_HEADS 16 /* query heads at once */

/* Rotated queries, as they are and as int16: rotated ~ query * factor / book->scale. */
struct walsh_turbo_queries {
    float rotated[WALSH_TURBO_HEADS * WALSH_MAX_HEAD_DIM];
    float factor[WALSH_TURBO_HEADS];
    int16_t query[WALSH_TURBO_HEADS * WALSH_MAX_HEAD_DIM];
    /* Prod keys: the projection of the rotated query, for their signs */
    float sign_factor[WALSH_TURBO_HEADS];
    int16_t projected[WALSH_TURBO_HEADS * WALSH_MAX_HEAD_DIM];
};
/* Of query [group][key dimension], group <= WALSH_TURBO_HEADS. A query with NaN or Inf has factor NaN. */
void walsh_turbo_rotate_queries(const struct walsh_queue *q, const struct walsh_turbo_codecs *codecs,
                                const float *query, uint32_t group, struct walsh_turbo_queries *out);

struct walsh_turbo_scratch {
    float factor[WALSH_TURBO_HEADS * WALSH_ATTEND_CHUNK / WALSH_TURBO_SPAN];
    int16_t weights[WALSH_TURBO_HEADS * WALSH_ATTEND_CHUNK];
    float sign_scores[WALSH_TURBO_HEADS * WALSH_ATTEND_CHUNK]; /* Prod keys */
};
/* The chunk that walsh_attend_chunk defines, on TURBO pages: out [group][value dimension] in the value
 * codec's rotated space. c->query and c->head_dim are not used. [begin, end) lies between two multiples of
 * WALSH_ATTEND_CHUNK. `last`: where the tokens end that the caller will ask for chunk by chunk; what follows
 * `end` is fetched ahead. */
void walsh_turbo_attend_chunk(const struct walsh_queue *q, const struct walsh_attend_chunk *c, uint32_t last,
                              const struct walsh_turbo_queries *queries, struct walsh_turbo_scratch *scratch);
/* x [group][value dimension] <- R^-1 x. */
void walsh_turbo_unrotate(const struct walsh_queue *q, const struct walsh_turbo_codec *value, float *x,
                          uint32_t group);

/* out [n][dimension] <- tokens [from, from + n) of a head, unpacked and rotated back. span: scratch of
 * WALSH_TURBO_SPAN * dimension. */
void walsh_turbo_load_tokens(const struct walsh_queue *q, const struct walsh_kv_view *kv,
                             enum walsh_turbo_side side, uint32_t kv_head, uint32_t from, uint32_t n,
                             float *span, float *out);

/* kv_append for the rows whose kv is TURBO; the others are skipped. */
void walsh_turbo_append(const struct walsh_queue *q, const struct walsh_attention_row *rows, size_t count,
                        const float *k, const float *v, size_t ld, const struct walsh_attention_shape *shape);

#endif
