/* What the case of the fused ops works on: layers of given sizes, their caches, and pairs of arrays, one for the fused op and one for
 * its parts, in the memory of a queue. Failures of the queue end the checker. */
#ifndef WALSH_TESTS_FUSED_DATA_H
#define WALSH_TESTS_FUSED_DATA_H

#include "checker.h"
#include "kernels/device.h"
#include "kernels/turbo.h"

enum { FUSED_TOKENS = 320, FUSED_LAYER = 1, FUSED_LAYERS = 2, FUSED_CODECS = 3 };

/* Memory of `q`, which is what the ops are called on: the device's own where the case was given the staged one. */
struct fused_room {
    struct check *c;
    const struct walsh_queue *q;
    uint8_t *base;
    size_t used, marked;
    unsigned fitted, attended; /* cases that went by fused ops; by attend */
};
/* False: the queue has no fused ops. */
bool fused_open(struct check *c, struct fused_room *room, const struct walsh_queue *queue);
void fused_close(struct fused_room *room);
/* All that was taken since fused_begin, or since fused_mark, is given back; the queue's failures are told. */
void fused_begin(struct fused_room *room);
void fused_end(struct fused_room *room);
void fused_mark(struct fused_room *room);
void fused_release(struct fused_room *room);

float *fused_take(struct fused_room *room, size_t n);         /* poisoned */
const float *fused_random(struct fused_room *room, size_t n); /* about standard normal */

/* got: the fused op's; expected: that of the parts. */
struct fused_pair {
    float *got, *expected;
    size_t n;
};
struct fused_pair fused_pair(struct fused_room *room, size_t n, bool random);
void fused_poison(struct fused_room *room, struct fused_pair *p);
void fused_compare(struct check *c, struct fused_room *room, const char *what, const struct fused_pair *p);

struct fused_prepared {
    struct walsh_activations got, expected;
};
struct fused_prepared fused_prepared(struct fused_room *room, const struct walsh_rotation *rotation,
                                     enum walsh_activation_type type, size_t rows);
void fused_poison_prepared(struct fused_room *room, struct fused_prepared *p);
void fused_compare_prepared(struct check *c, struct fused_room *room, const char *what,
                            const struct fused_prepared *p);

struct fused_sizes {
    uint32_t hidden, heads, kv_heads, head_dim, wide;
};
extern const struct fused_sizes fused_sizes[];
extern const unsigned fused_sizes_count;

/* The outputs have rotations and biases, no z. */
struct fused_layer {
    uint32_t hidden, heads, kv_heads, head_dim, wide;
    enum walsh_activation_type type;
    struct walsh_rotation in[4]; /* of q, k, v; o; gate, up; down */
    struct walsh_rotation out[7];
    struct walsh_unrotated q, k, v, o, gate, up, down;
};
/* Rotations and type of activations go by n and the round. */
void fused_layer(struct check *c, struct fused_room *room, const struct fused_sizes *sizes, unsigned n,
                 struct fused_layer *out);
bool fused_fits(const struct fused_room *room, const struct fused_layer *l,
                const struct walsh_attention_shape *shape);
/* A product's output; the same once more, for an op may overwrite it. */
struct walsh_unrotated fused_output(struct fused_room *room, const struct walsh_unrotated *of, size_t rows);
struct walsh_unrotated fused_again(struct fused_room *room, const struct walsh_unrotated *z, size_t rows);

/* F16 of up to 128 tokens, of up to FUSED_TOKENS; F32; packed in 4 bits; packed in any, with rings or without, beside plain ones. */
enum fused_kind { FUSED_SHORT, FUSED_LONG, FUSED_F32, FUSED_FOUR, FUSED_MIXED, FUSED_KINDS };

/* A cache for each row, twice: the first set is the fused op's, the second that of the parts. */
struct fused_caches {
    struct walsh_kv_kinds kinds;
    uint32_t *positions; /* the queue's */
    uint32_t *host_positions;
    struct walsh_kv_view *views[2]; /* the queue's: [rows][FUSED_LAYERS] */
    uint8_t *pages[3];              /* of both, and as they were before */
    size_t bytes;
    struct walsh_turbo_codecs codecs[FUSED_CODECS];
    struct walsh_turbo_codec *key[FUSED_CODECS], *value[FUSED_CODECS];
    void *device_codecs[FUSED_CODECS];
};
/* False: the queue has none of the kind. */
bool fused_caches(struct fused_room *room, const struct fused_layer *l, enum fused_kind kind, size_t rows,
                  struct fused_caches *out);
void fused_close_caches(struct fused_room *room, struct fused_caches *caches);
void fused_restore_caches(struct fused_room *room, struct fused_caches *caches); /* the first set */
void fused_compare_caches(struct check *c, struct fused_room *room, const char *what,
                          const struct fused_caches *caches);
/* [rows] with the views of `layer`. */
const struct walsh_attention_row *fused_rows(struct fused_room *room, const struct fused_caches *caches,
                                             int set, uint32_t layer, size_t rows);

#endif
