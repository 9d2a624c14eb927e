/* The table of ops on CUDA: descriptors into launches. */
#include <stddef.h>

#include "base/memory.h"
#include "formats/blocks.h"
#include "formats/e8p_planes.h"
#include "kernels/cuda/backend.h"
#include "kernels/draw.h"

_Static_assert(
    sizeof(struct walsh_kv_view) == sizeof(struct cuda_kv_view) &&
        offsetof(struct walsh_kv_view, type) == offsetof(struct cuda_kv_view, type) &&
        offsetof(struct walsh_kv_view, page_tokens) == offsetof(struct cuda_kv_view, page_tokens) &&
        offsetof(struct walsh_kv_view, k_pages) == offsetof(struct cuda_kv_view, k_pages) &&
        offsetof(struct walsh_kv_view, v_pages) == offsetof(struct cuda_kv_view, v_pages) &&
        offsetof(struct walsh_kv_view, turbo) == offsetof(struct cuda_kv_view, turbo) &&
        offsetof(struct walsh_kv_view, recent) == offsetof(struct cuda_kv_view, recent) &&
        offsetof(struct walsh_kv_view, recent_tokens) == offsetof(struct cuda_kv_view, recent_tokens) &&
        offsetof(struct walsh_kv_view, recent_begin) == offsetof(struct cuda_kv_view, recent_begin),
    "the kernels' view of a cache");
_Static_assert(sizeof(struct walsh_attention_row) == sizeof(struct cuda_attention_row) &&
                   offsetof(struct walsh_attention_row, kv) == offsetof(struct cuda_attention_row, kv) &&
                   offsetof(struct walsh_attention_row, position) ==
                       offsetof(struct cuda_attention_row, position),
               "the kernels' row of attention");
_Static_assert(WALSH_KV_F32 == 0 && WALSH_KV_F16 == 1 && WALSH_KV_TURBO == 2,
               "the kernels' types of a cache");

#define SAME_DRAW(member) (offsetof(struct walsh_draw, member) == offsetof(struct cuda_draw, member))
#define SAME_EDIT(member)                                                                                    \
    (offsetof(struct walsh_logit_edit, member) == offsetof(struct cuda_logit_edit, member))
_Static_assert(sizeof(struct walsh_draw) == sizeof(struct cuda_draw) && SAME_DRAW(greedy) &&
                   SAME_DRAW(per_temperature) && SAME_DRAW(share) && SAME_DRAW(top_k) && SAME_DRAW(least) &&
                   SAME_DRAW(top_p) && SAME_DRAW(penalty) && SAME_DRAW(presence) && SAME_DRAW(frequency) &&
                   SAME_DRAW(edits) && SAME_DRAW(edit_count) && SAME_DRAW(mask),
               "the kernels' draw");
_Static_assert(sizeof(struct walsh_logit_edit) == sizeof(struct cuda_logit_edit) && SAME_EDIT(id) &&
                   SAME_EDIT(penalized) && SAME_EDIT(excluded) && SAME_EDIT(drawn) && SAME_EDIT(bias),
               "the kernels' edit of a logit");

#define LEAST_WGMMA_ROWS 96 /* of products on the tensor cores, which do 256 at a time */

/* The device of q, current for this thread. */
static struct cuda_device *enter(const struct walsh_queue *q)
{
    struct cuda_device *d = cuda_device_of(q);
    cudaSetDevice(d->number);
    return d;
}

static enum cuda_type type_of_format(enum walsh_format format)
{
    return format == WALSH_FORMAT_F32   ? CUDA_TYPE_F32
           : format == WALSH_FORMAT_F16 ? CUDA_TYPE_F16
                                        : CUDA_TYPE_BF16;
}

static enum cuda_type type_of_activation(enum walsh_activation_type type)
{
    return type == WALSH_ACTIVATION_INT8   ? CUDA_TYPE_I8
           : type == WALSH_ACTIVATION_BF16 ? CUDA_TYPE_BF16
                                           : CUDA_TYPE_F32;
}

static void embed(const struct walsh_queue *q, float *out, const struct walsh_weights *table,
                  const int32_t *ids, size_t rows)
{
    struct cuda_device *d = enter(q);
    cuda_embed(d->stream, out, type_of_format(table->format), table->data, table->cols, ids, rows);
    cuda_note(d, "embed");
}

static void rms_norm(const struct walsh_queue *q, float *y, size_t ldy, const float *x, size_t ldx,
                     const float *weight, size_t rows, size_t n, float eps)
{
    struct cuda_device *d = enter(q);
    cuda_rms_norm(d->stream, y, ldy, x, ldx, weight, rows, n, eps);
    cuda_note(d, "rms_norm");
}

static void add(const struct walsh_queue *q, float *x, const float *delta, size_t n)
{
    struct cuda_device *d = enter(q);
    cuda_add(d->stream, x, delta, n);
    cuda_note(d, "add");
}

static void set_block(struct cuda_rotation *r, uint32_t b, uint32_t begin, uint32_t size)
{
    r->begin[b] = begin;
    r->log2[b] = (uint8_t)__builtin_ctz(size);
    r->scale[b] = (float)(1.0 / __builtin_sqrt((double)size));
}

/* How the blocks of a rotation lie; walsh_memory.upload_rotation refused what the kernels do not know. */
static struct cuda_rotation rotation_of(const struct walsh_rotation *r)
{
    const struct walsh_blocks *blocks = &r->blocks;
    struct cuda_rotation out = {.size = r->size,
                                .padded = blocks->padded,
                                .count = blocks->count,
                                .signs = r->signs,
                                .any = cuda_rotates_any(r),
                                .overlap = r->kind == WALSH_ROTATION_OVERLAP,
                                .uniform = blocks->uniform != 0};
    if (out.overlap) {
        out.count = 2;
        set_block(&out, 0, 0, blocks->block[0]);
        set_block(&out, 1, blocks->padded - blocks->block[0], blocks->block[0]);
    } else if (out.uniform) {
        out.count = 1;
        set_block(&out, 0, 0, blocks->uniform);
    } else {
        uint32_t at = 0;
        for (uint32_t b = 0; b < blocks->count; at += blocks->block[b++])
            set_block(&out, b, at, blocks->block[b]);
    }
    return out;
}

bool cuda_rotate_rows(const struct walsh_queue *q, const struct walsh_rotation *rotation,
                      enum walsh_format to_type, void *y, size_t ldy, enum walsh_format from_type,
                      const void *x, size_t ldx, size_t rows)
{
    const size_t padded = rotation->blocks.padded;
    if (rotation->kind == WALSH_ROTATION_NONE || ldy != padded || ldy % 16 != 0 || (uintptr_t)y % 16 != 0)
        return false;
    struct cuda_device *d = enter(q);
    const struct cuda_rotation r = rotation_of(rotation);
    cuda_rotate_forward(d->stream, &r, type_of_format(from_type), x, ldx, rows, type_of_format(to_type), y,
                        ldy, NULL, NULL);
    cuda_note(d, "rotate");
    return true;
}

/* By groups; rotated in the scratch, as many rows at a time as it holds. */
static void prepare_groups(struct cuda_device *d, struct walsh_activations *a, const float *x, size_t ldx,
                           const struct walsh_rotation *rotation)
{
    const size_t groups = a->stride / WALSH_ACTIVATION_GROUP, sums = a->stride / WALSH_ACTIVATION_SUM;
    const bool rotates = rotation->kind != WALSH_ROTATION_NONE;
    const size_t most = rotates ? CUDA_SCRATCH_BYTES / (a->stride * sizeof(float)) : a->rows;
    for (size_t at = 0, n; at < a->rows; at += n) {
        n = walsh_min(a->rows - at, most);
        const float *from = x + at * ldx;
        size_t ld = ldx;
        if (rotates) {
            const struct cuda_rotation r = rotation_of(rotation);
            cuda_rotate_forward(d->stream, &r, CUDA_TYPE_F32, from, ldx, n, CUDA_TYPE_F32, d->scratch,
                                a->stride, NULL, NULL);
            from = d->scratch;
            ld = a->stride;
        }
        cuda_round_groups(d->stream, from, ld, a->cols, n, (int8_t *)a->data + at * a->stride, a->stride,
                          a->scale + at * groups, a->sum + at * sums);
    }
}

static void prepare(const struct walsh_queue *q, struct walsh_activations *a, const float *x, size_t ldx,
                    const struct walsh_rotation *rotation)
{
    struct cuda_device *d = enter(q);
    const enum cuda_type type = type_of_activation(a->type);
    if (a->type == WALSH_ACTIVATION_INT8_GROUPS) {
        prepare_groups(d, a, x, ldx, rotation);
    } else if (rotation->kind == WALSH_ROTATION_NONE) {
        cuda_round_rows(d->stream, x, ldx, a->cols, a->rows, type, a->data, a->stride, a->scale, a->sum);
    } else {
        const struct cuda_rotation r = rotation_of(rotation);
        cuda_rotate_forward(d->stream, &r, CUDA_TYPE_F32, x, ldx, a->rows, type, a->data, a->stride, a->scale,
                            a->sum);
    }
    cuda_note(d, "prepare");
}

struct cuda_e8p cuda_e8p_of(const struct cuda_device *d, const struct walsh_weights *w)
{
    struct cuda_e8p out = {.outs = w->rows, .cols = w->cols, .stages = w->stages, .tables = d->e8p_tables};
    for (unsigned k = 0; k < w->stages; k++) {
        out.stage[k].data = w->stage[k].data;
        out.stage[k].narrow = w->stage[k].kind == WALSH_STAGE_E81B;
        out.stage[k].scale = w->stage[k].scale;
    }
    return out;
}

/* The matrix as products of int8 read it: in prefill two stages are one plane where they can be. */
static struct cuda_e8p planes_of(const struct cuda_device *d, const struct walsh_weights *w,
                                 enum walsh_role role)
{
    struct cuda_e8p out = cuda_e8p_of(d, w);
    struct walsh_merged_stages merged;
    if (role != WALSH_PREFILL || !walsh_stages_merge(w, &merged)) return out;
    out.merged.on = 1;
    out.merged.scale = merged.scale;
    for (int u = 0; u < 16; u++)
        out.merged.second[u / 4] |= (uint32_t)(merged.second[u] + CUDA_E8P_SECOND) << u % 4 * 8;
    return out;
}

static void product_e8p_many(struct cuda_device *d, const struct walsh_product *p,
                             const struct walsh_activations *a, enum walsh_role role)
{
    const struct cuda_e8p w = planes_of(d, p->weights, role);
    const size_t most =
        a->rows < LEAST_WGMMA_ROWS ? 0 : cuda_product_e8p_wgmma_rows(w.cols, CUDA_SCRATCH_BYTES);
    if (most == 0)
        cuda_product_e8p_tile(d->stream, &w, a->data, a->stride, a->scale, a->sum, a->rows, p->y, p->ldy);
    for (size_t at = 0, n; most > 0 && at < a->rows; at += n) {
        n = walsh_min(a->rows - at, most);
        cuda_product_e8p_wgmma(d->stream, &w, (const int8_t *)a->data + at * a->stride, a->stride,
                               a->scale + at, a->sum + at, n, p->y + at * p->ldy, p->ldy, d->scratch);
    }
}

/* h of every update, as many at a time as a launch has. */
static void low_rank_inputs(struct cuda_device *d, const struct walsh_low_rank_input *in)
{
    for (size_t i = 0, n; i < in->count; i += n) {
        struct cuda_low_rank_down some[CUDA_LOW_RANK_LIST];
        for (n = 0; n < CUDA_LOW_RANK_LIST && i + n < in->count; n++) {
            const struct walsh_low_rank_down *down = &in->down[i + n];
            some[n] = (struct cuda_low_rank_down){.a = down->a,
                                                  .h = down->h,
                                                  .rank = down->rank,
                                                  .row_begin = (uint32_t)down->row_begin,
                                                  .row_end = (uint32_t)down->row_end,
                                                  .bf16 = down->format == WALSH_FORMAT_BF16};
        }
        cuda_low_rank_downs(d->stream, some, n, in->x, in->ldx, in->cols);
    }
}

static struct cuda_low_rank_up up_of(const struct walsh_low_rank_up *up,
                                     const struct walsh_low_rank_input *in)
{
    const struct walsh_low_rank_down *down = &in->down[up->down];
    return (struct cuda_low_rank_up){.b = up->b,
                                     .h = down->h,
                                     .rank = down->rank,
                                     .row_begin = (uint32_t)down->row_begin,
                                     .row_end = (uint32_t)down->row_end,
                                     .scale = up->scale,
                                     .bf16 = down->format == WALSH_FORMAT_BF16};
}

/* The updates of each product in their order. */
static void update_products(struct cuda_device *d, const struct walsh_product *list, size_t count,
                            const struct walsh_low_rank_input *in)
{
    struct cuda_low_rank_up ups[CUDA_LOW_RANK_LIST];
    struct cuda_low_rank_output outputs[CUDA_LOW_RANK_LIST];
    uint32_t n = 0, entries = 0;
    for (size_t i = 0; i < count; i++)
        for (size_t u = 0; u < list[i].up_count; u++) {
            if (entries == CUDA_LOW_RANK_LIST) {
                cuda_low_rank_ups(d->stream, outputs, n, ups);
                n = entries = 0;
            }
            if (n == 0 || u == 0)
                outputs[n++] = (struct cuda_low_rank_output){
                    .y = list[i].y, .ldy = list[i].ldy, .outs = list[i].weights->rows, .first = entries};
            outputs[n - 1].count++;
            ups[entries++] = up_of(&list[i].up[u], in);
        }
    if (entries > 0) cuda_low_rank_ups(d->stream, outputs, n, ups);
}

/* Up to CUDA_E8P_LIST of them for few rows. Their updates are added at the outputs' ends, where they fit, with the same bits. */
static void products_decode(struct cuda_device *d, const struct walsh_product *list, size_t count,
                            const struct walsh_activations *a, const struct walsh_low_rank_input *in,
                            enum walsh_role role)
{
    struct cuda_e8p_output outputs[CUDA_E8P_LIST];
    struct cuda_low_rank_up ups[CUDA_LOW_RANK_LIST];
    uint32_t up_counts[CUDA_E8P_LIST] = {0};
    size_t total = 0, n = 0;
    bool merged = false;
    for (size_t i = 0; i < count; i++) {
        outputs[i] = (struct cuda_e8p_output){planes_of(d, list[i].weights, role), list[i].y, list[i].ldy};
        total += in ? list[i].up_count : 0;
        merged |= outputs[i].w.merged.on != 0;
    }
    const bool fits = total > 0 && total <= CUDA_LOW_RANK_LIST && !merged;
    for (size_t i = 0; fits && i < count; i++) {
        up_counts[i] = (uint32_t)list[i].up_count;
        for (size_t u = 0; u < list[i].up_count; u++) ups[n++] = up_of(&list[i].up[u], in);
    }
    cuda_product_e8p_decode(d->stream, outputs, count, a->data, a->stride, a->scale, a->sum, a->rows,
                            fits ? ups : NULL, up_counts, d->processors);
    if (total > 0 && !fits) update_products(d, list, count, in);
}

/* E8P by int8, with their updates. Integer sums: a row's bits are the same by either kernel, and whatever shares a launch. */
static void products_int8(struct cuda_device *d, const struct walsh_product *list, size_t count,
                          const struct walsh_activations *a, const struct walsh_low_rank_input *in,
                          enum walsh_role role)
{
    if (a->rows > CUDA_E8P_DECODE_ROWS) {
        for (size_t i = 0; i < count; i++) product_e8p_many(d, &list[i], a, role);
        if (in) update_products(d, list, count, in);
        return;
    }
    for (size_t i = 0; i < count; i += CUDA_E8P_LIST)
        products_decode(d, list + i, walsh_min(count - i, CUDA_E8P_LIST), a, in, role);
}

struct cuda_blocks cuda_blocks_of(const struct walsh_weights *w)
{
    static const enum cuda_code codes[] = {[WALSH_CODE_E2M1] = CUDA_CODE_E2M1,
                                           [WALSH_CODE_U4] = CUDA_CODE_U4,
                                           [WALSH_CODE_U8] = CUDA_CODE_U8,
                                           [WALSH_CODE_E4M3] = CUDA_CODE_E4M3,
                                           [WALSH_CODE_E5M2] = CUDA_CODE_E5M2};
    static const enum cuda_scale_type scales[] = {[WALSH_SCALE_E8M0] = CUDA_SCALE_E8M0,
                                                  [WALSH_SCALE_E4M3] = CUDA_SCALE_E4M3,
                                                  [WALSH_SCALE_BF16] = CUDA_SCALE_BF16,
                                                  [WALSH_SCALE_F32] = CUDA_SCALE_F32};
    return (struct cuda_blocks){.outs = w->rows,
                                .cols = w->cols,
                                .group = w->block.group,
                                .groups = (uint32_t)walsh_block_groups(w),
                                .code = codes[w->block.code],
                                .scale = scales[w->block.scale],
                                .data = w->data,
                                .scales = w->scales,
                                .zeros = w->zeros,
                                .tensor_scale = w->tensor_scale};
}

/* By other activations than those of blocks: MXFP4 on the tensor cores, else decoded a piece at a time. */
static void product_decoded(struct cuda_device *d, const struct walsh_product *p,
                            const struct walsh_activations *a)
{
    const struct cuda_blocks w = cuda_blocks_of(p->weights);
    const enum cuda_type type = a->type == WALSH_ACTIVATION_BF16 ? CUDA_TYPE_BF16 : CUDA_TYPE_F32;
    const size_t element = type == CUDA_TYPE_BF16 ? 2 : 4;
    if (p->weights->format == WALSH_FORMAT_MXFP4 && type == CUDA_TYPE_BF16 && a->rows >= LEAST_WGMMA_ROWS) {
        const size_t most = cuda_product_mxfp4_wgmma_rows(w.cols, CUDA_SCRATCH_BYTES);
        for (size_t at = 0, n; most > 0 && at < a->rows; at += n) {
            n = walsh_min(a->rows - at, most);
            cuda_product_mxfp4_wgmma(d->stream, &w, (const uint16_t *)a->data + at * a->stride, a->stride, n,
                                     p->y + at * p->ldy, p->ldy, d->scratch);
        }
        if (most > 0) return;
    }
    const size_t most = CUDA_SCRATCH_BYTES / (w.cols * element) / WALSH_BLOCK_ROWS * WALSH_BLOCK_ROWS;
    for (size_t at = 0, n; at < w.outs; at += n) {
        n = walsh_min(w.outs - at, most);
        cuda_decode_blocks(d->stream, &w, (uint32_t)at, (uint32_t)n, type, d->scratch);
        if (type == CUDA_TYPE_BF16 && w.cols % 8 == 0)
            cuda_product_bf16(d->stream, d->scratch, n, w.cols, a->data, a->stride, a->rows, p->y + at,
                              p->ldy, true);
        else
            cuda_product_dense(d->stream, type, d->scratch, n, w.cols, type, a->data, a->stride, a->rows,
                               p->y + at, p->ldy);
    }
}

static void product_blocks(struct cuda_device *d, const struct walsh_product *p,
                           const struct walsh_activations *a)
{
    const struct cuda_blocks w = cuda_blocks_of(p->weights);
    if (a->type == WALSH_ACTIVATION_INT8_GROUPS)
        cuda_product_blocks(d->stream, &w, a->data, a->stride, a->scale, a->sum, a->rows, p->y, p->ldy);
    else
        product_decoded(d, p, a);
}

static bool tensor_product(const struct walsh_weights *w, const struct walsh_activations *a)
{
    return w->format == WALSH_FORMAT_BF16 && a->type == WALSH_ACTIVATION_BF16 && w->cols % 8 == 0;
}

static bool is_int8(const struct walsh_product *p, const struct walsh_activations *a)
{
    return p->weights->format == WALSH_FORMAT_E8P && a->type == WALSH_ACTIVATION_INT8;
}

static void product_alone(struct cuda_device *d, const struct walsh_product *p,
                          const struct walsh_activations *a)
{
    const struct walsh_weights *w = p->weights;
    if (walsh_format_is_block(w->format)) {
        product_blocks(d, p, a);
    } else if (w->format == WALSH_FORMAT_E8P) {
        const struct cuda_e8p e8p = cuda_e8p_of(d, w);
        cuda_product_e8p_f32(d->stream, &e8p, a->data, a->stride, a->rows, p->y, p->ldy);
    } else if (tensor_product(w, a)) {
        cuda_product_bf16(d->stream, w->data, w->rows, w->cols, a->data, a->stride, a->rows, p->y, p->ldy,
                          false);
    } else {
        cuda_product_dense(d->stream, type_of_format(w->format), w->data, w->rows, w->cols,
                           type_of_activation(a->type), a->data, a->stride, a->rows, p->y, p->ldy);
    }
}

static void product(const struct walsh_queue *q, const struct walsh_product *list, size_t count,
                    const struct walsh_activations *a, const struct walsh_low_rank_input *low_rank,
                    enum walsh_role role)
{
    struct cuda_device *d = enter(q);
    if (a->rows == 0) return;
    if (low_rank) low_rank_inputs(d, low_rank);
    for (size_t i = 0, n; i < count; i += n) { /* those of E8P behind each other share launches */
        const bool int8 = is_int8(&list[i], a);
        for (n = 1; i + n < count && is_int8(&list[i + n], a) == int8;) n++;
        if (int8) {
            products_int8(d, list + i, n, a, low_rank, role);
            continue;
        }
        for (size_t j = 0; j < n; j++) product_alone(d, &list[i + j], a);
        if (low_rank) update_products(d, list + i, n, low_rank);
    }
    cuda_note(d, "product");
}

static void unrotate(const struct walsh_queue *q, float *y, size_t ldy, float *z, size_t ldz,
                     const struct walsh_rotation *rotation, const float *bias, size_t rows)
{
    struct cuda_device *d = enter(q);
    if (rotation->kind == WALSH_ROTATION_NONE) {
        if (y == z && !bias) return;
        cuda_add_bias(d->stream, y, ldy, z, ldz, bias, rows, rotation->size);
    } else {
        const struct cuda_rotation r = rotation_of(rotation);
        cuda_rotate_inverse(d->stream, &r, z, ldz, y, ldy, bias, rows);
    }
    cuda_note(d, "unrotate");
}

static void rope(const struct walsh_queue *q, float *x, size_t ldx, const uint32_t *positions, size_t rows,
                 uint32_t heads, uint32_t head_dim, uint32_t rotated, const float *cosine, const float *sine)
{
    struct cuda_device *d = enter(q);
    cuda_rope(d->stream, x, ldx, positions, rows, heads, head_dim, rotated, cosine, sine);
    cuda_note(d, "rope");
}

static void short_conv(const struct walsh_queue *q, float *out, size_t ldo, const float *x, size_t ldx,
                       const struct walsh_attention_row *rows, size_t count, const float *weight,
                       const float *bias, uint32_t taps, uint32_t width)
{
    struct cuda_device *d = enter(q);
    cuda_short_conv(d->stream, out, ldo, x, ldx, (const struct cuda_attention_row *)(const void *)rows, count,
                    weight, bias, taps, width);
    cuda_note(d, "short_conv");
}

static struct cuda_attention_shape shape_of(const struct walsh_attention_shape *s)
{
    struct cuda_attention_shape out = {.heads = s->heads,
                                       .kv_heads = s->kv_heads,
                                       .head_dim = s->head_dim,
                                       .window = s->window,
                                       .scale = s->scale,
                                       .soft_cap = s->soft_cap,
                                       .sinks = s->sinks,
                                       .packed = s->kinds.packed,
                                       .mixed = s->kinds.mixed,
                                       .four = s->kinds.four,
                                       .recent = s->kinds.recent,
                                       .tiles = s->kinds.tiles,
                                       .most_tokens = s->kinds.most_tokens};
    if (s->own) out.own = (struct cuda_own){s->own->k_pages[0], s->own->v_pages[0], s->own->page_tokens};
    return out;
}

static void attention_rows(const struct walsh_queue *q, struct walsh_attention_row *out,
                           const struct walsh_kv_view *const *kv, const uint32_t *positions, size_t count,
                           uint32_t layer)
{
    struct cuda_device *d = enter(q);
    cuda_attention_rows(d->stream, (struct cuda_attention_row *)(void *)out,
                        (const struct cuda_kv_view *const *)(const void *)kv, positions, count, layer);
    cuda_note(d, "attention_rows");
}

static void kv_append(const struct walsh_queue *q, const struct walsh_attention_row *rows, size_t count,
                      const float *k, const float *v, size_t ld, const struct walsh_attention_shape *shape)
{
    struct cuda_device *d = enter(q);
    const struct cuda_attention_shape s = shape_of(shape);
    const struct cuda_attention_row *to = (const struct cuda_attention_row *)(const void *)rows;
    if (!s.packed || s.mixed) cuda_kv_append(d->stream, to, count, k, v, ld, &s);
    if (s.packed) cuda_turbo_append(d->stream, to, count, k, v, ld, 0, &s);
    cuda_note(d, "kv_append");
}

static void attention(const struct walsh_queue *q, float *out, size_t ldo, const float *query, size_t ldq,
                      const struct walsh_attention_row *rows, size_t count,
                      const struct walsh_attention_shape *shape, enum walsh_role role)
{
    (void)role;
    struct cuda_device *d = enter(q);
    const struct cuda_attention_shape s = shape_of(shape);
    if (cuda_attention_scratch(&s, 1) > CUDA_SCRATCH_BYTES) {
        cuda_refuse(d, "attention", "one row of so many heads does not fit its scratch");
        return;
    }
    const struct cuda_attention_row *from = (const struct cuda_attention_row *)(const void *)rows;
    if (!s.packed || s.mixed)
        cuda_attention(d->stream, out, ldo, query, ldq, from, count, 0, &s, d->scratch, CUDA_SCRATCH_BYTES);
    if (s.packed)
        cuda_turbo_attention(d->stream, out, ldo, query, ldq, from, count, 0, &s, d->scratch,
                             CUDA_SCRATCH_BYTES);
    cuda_note(d, "attention");
}

static void swiglu(const struct walsh_queue *q, float *y, size_t ldy, const float *gate, const float *up,
                   size_t ld, size_t rows, size_t n)
{
    struct cuda_device *d = enter(q);
    cuda_swiglu(d->stream, y, ldy, gate, up, ld, rows, n);
    cuda_note(d, "swiglu");
}

static void geglu(const struct walsh_queue *q, float *y, size_t ldy, const float *gate, const float *up,
                  size_t ld, size_t rows, size_t n)
{
    struct cuda_device *d = enter(q);
    cuda_geglu(d->stream, y, ldy, gate, up, ld, rows, n);
    cuda_note(d, "geglu");
}

static void scale(const struct walsh_queue *q, float *x, float factor, size_t n)
{
    struct cuda_device *d = enter(q);
    cuda_scale(d->stream, x, factor, n);
    cuda_note(d, "scale");
}

static void soft_cap(const struct walsh_queue *q, float *x, float cap, size_t n)
{
    struct cuda_device *d = enter(q);
    cuda_soft_cap(d->stream, x, cap, n);
    cuda_note(d, "soft_cap");
}

static void route(const struct walsh_queue *q, int32_t *index, float *weight, const float *logits,
                  size_t rows, uint32_t experts, uint32_t k, bool normalize)
{
    struct cuda_device *d = enter(q);
    cuda_route(d->stream, index, weight, logits, rows, experts, k, normalize);
    cuda_note(d, "route");
}

static void clamped_swiglu(const struct walsh_queue *q, float *y, size_t ldy, const float *gate,
                           const float *up, size_t ld, size_t rows, size_t n, float alpha, float limit)
{
    struct cuda_device *d = enter(q);
    cuda_clamped_swiglu(d->stream, y, ldy, gate, up, ld, rows, n, alpha, limit);
    cuda_note(d, "clamped_swiglu");
}

static void gather(const struct walsh_queue *q, float *out, size_t ldo, const float *x, size_t ldx,
                   const uint32_t *index, size_t rows, size_t n)
{
    struct cuda_device *d = enter(q);
    cuda_gather(d->stream, out, ldo, x, ldx, index, rows, n);
    cuda_note(d, "gather");
}

static void combine(const struct walsh_queue *q, float *x, size_t n, float *y, const uint32_t *slot,
                    const float *weight, size_t rows, uint32_t k)
{
    struct cuda_device *d = enter(q);
    cuda_combine(d->stream, x, n, y, slot, weight, rows, k);
    cuda_note(d, "combine");
}

static void draw(const struct walsh_queue *q, int32_t *ids, float *logits, uint32_t vocab,
                 const struct walsh_draws *draws)
{
    struct cuda_device *d = enter(q);
    const size_t most = CUDA_SCRATCH_BYTES / cuda_draw_scratch(vocab);
    if (most == 0) {
        cuda_refuse(d, "draw", "one row of so many ids does not fit its scratch");
        return;
    }
    for (size_t at = 0, n; at < draws->count; at += n) {
        n = walsh_min(draws->count - at, most);
        cuda_draw_rows(d->stream, ids + at, logits + at * vocab, vocab,
                       (const struct cuda_draw *)(const void *)(draws->rows + at), n, draws->sampled,
                       draws->edited, d->scratch);
    }
    cuda_note(d, "draw");
}

/* --- fused --- */

static struct cuda_rotation rotation_or_none(const struct walsh_rotation *r)
{
    if (r->kind != WALSH_ROTATION_NONE) return rotation_of(r);
    return (struct cuda_rotation){.size = r->size, .padded = r->size};
}

static struct cuda_unrotated unrotated_of(const struct walsh_unrotated *u)
{
    return (struct cuda_unrotated){
        .rotation = rotation_or_none(u->rotation), .z = u->z, .bias = u->bias, .ld = u->ld};
}

static struct cuda_prepared prepared_of(const struct walsh_activations *a, const struct walsh_rotation *r)
{
    return (struct cuda_prepared){.rotation = rotation_or_none(r),
                                  .type = type_of_activation(a->type),
                                  .data = a->data,
                                  .stride = a->stride,
                                  .scale = a->scale,
                                  .sum = a->sum};
}

static bool rotates_any(const struct walsh_rotation *r)
{
    return r->kind != WALSH_ROTATION_NONE && cuda_rotates_any(r);
}

static bool fits(const struct walsh_queue *q, const struct walsh_fused_layer *l)
{
    (void)q;
    const struct walsh_unrotated *const outputs[] = {&l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down};
    for (size_t i = 0; i < sizeof outputs / sizeof *outputs; i++)
        if (rotates_any(outputs[i]->rotation)) return false;
    struct cuda_prepared in[4];
    for (int i = 0; i < 4; i++) {
        if (l->in[i].type == WALSH_ACTIVATION_INT8_GROUPS || rotates_any(l->in[i].rotation)) return false;
        const struct walsh_activations a = {.type = l->in[i].type};
        in[i] = prepared_of(&a, l->in[i].rotation);
    }
    const struct cuda_unrotated parts[3] = {unrotated_of(&l->q), unrotated_of(&l->k), unrotated_of(&l->v)};
    const struct cuda_unrotated o = unrotated_of(&l->o), gate = unrotated_of(&l->gate),
                                up = unrotated_of(&l->up), down = unrotated_of(&l->down);
    const struct cuda_attention_shape s = shape_of(l->attention);
    return cuda_residual_fits(&o, &in[0], l->hidden) && cuda_residual_fits(&down, &in[2], l->hidden) &&
           cuda_project_fits(parts, &s) && cuda_gated_fits(&gate, &up, &in[3]) &&
           cuda_attention_prepared_fits(&s, &in[1], 1, CUDA_SCRATCH_BYTES);
}

static void residual(const struct walsh_queue *q, float *x, size_t n, const struct walsh_unrotated *add_on,
                     const float *d_norm, const float *weight, float eps, float *normed, size_t ldn,
                     struct walsh_activations *a, const struct walsh_rotation *rotation)
{
    struct cuda_device *d = enter(q);
    struct cuda_unrotated u;
    struct cuda_prepared to;
    if (add_on) u = unrotated_of(add_on);
    if (weight) to = prepared_of(a, rotation);
    cuda_residual(d->stream, x, n, add_on ? &u : NULL, d_norm, weight, eps, normed, ldn, weight ? &to : NULL,
                  a->rows);
    cuda_note(d, "residual");
}

static struct cuda_projections projections_of(const struct walsh_projections *p,
                                              const struct walsh_attention_shape *shape)
{
    return (struct cuda_projections){.rows = (const struct cuda_attention_row *)(const void *)p->rows,
                                     .layer = p->layer,
                                     .rotated = p->rotated,
                                     .shape = shape_of(shape),
                                     .q_norm = p->q_norm,
                                     .k_norm = p->k_norm,
                                     .eps = p->eps,
                                     .cosine = p->cosine,
                                     .sine = p->sine,
                                     .query = p->query,
                                     .ldq = (size_t)shape->heads * shape->head_dim,
                                     .key = p->key,
                                     .value = p->value};
}

static void project(const struct walsh_queue *q, const struct walsh_projections *p, size_t count,
                    const struct walsh_attention_shape *shape)
{
    struct cuda_device *d = enter(q);
    const struct cuda_unrotated parts[3] = {unrotated_of(&p->q), unrotated_of(&p->k), unrotated_of(&p->v)};
    const struct cuda_projections to = projections_of(p, shape);
    cuda_project(d->stream, parts, &to, count);
    if (to.shape.packed)
        cuda_turbo_append(d->stream, to.rows, count, p->key, p->value,
                          (size_t)shape->kv_heads * shape->head_dim, p->layer, &to.shape);
    cuda_note(d, "project");
}

static bool attend(const struct walsh_queue *q, const struct walsh_projections *p,
                   const struct walsh_attention_shape *shape, struct walsh_activations *a,
                   const struct walsh_rotation *rotation, float *out, size_t ldo)
{
    struct cuda_device *d = enter(q);
    const struct cuda_unrotated parts[3] = {unrotated_of(&p->q), unrotated_of(&p->k), unrotated_of(&p->v)};
    const struct cuda_projections from = projections_of(p, shape);
    const struct cuda_prepared to = prepared_of(a, rotation);
    if (!cuda_attend_fits(parts, &from, &to)) return false;
    cuda_attend(d->stream, parts, &from, out, ldo, &to, a->rows);
    cuda_note(d, "attend");
    return true;
}

static void attention_prepared(const struct walsh_queue *q, struct walsh_activations *a,
                               const struct walsh_rotation *rotation, float *out, size_t ldo,
                               const float *query, size_t ldq, const struct walsh_attention_row *rows,
                               uint32_t layer, const struct walsh_attention_shape *shape,
                               enum walsh_role role)
{
    (void)role;
    struct cuda_device *d = enter(q);
    const struct cuda_attention_shape s = shape_of(shape);
    const size_t at_once = CUDA_SCRATCH_BYTES / cuda_attention_scratch(&s, 1);
    struct cuda_prepared to = prepared_of(a, rotation);
    const size_t bytes = a->stride * (to.type == CUDA_TYPE_I8 ? 1 : to.type == CUDA_TYPE_BF16 ? 2 : 4);
    for (size_t at = 0, n; at < a->rows; at += n) {
        n = walsh_min(a->rows - at, at_once);
        cuda_attention_prepared(d->stream, out ? out + at * ldo : NULL, ldo, query + at * ldq, ldq,
                                (const struct cuda_attention_row *)(const void *)(rows + at), n, layer, &s,
                                d->scratch, &to);
        to.data = (uint8_t *)to.data + n * bytes;
        if (to.scale) to.scale += n, to.sum += n;
    }
    cuda_note(d, "attention");
}

static void gated(const struct walsh_queue *q, struct walsh_activations *a,
                  const struct walsh_rotation *rotation, float *y, size_t ldy,
                  const struct walsh_unrotated *gate, const struct walsh_unrotated *up, size_t n, bool gelu)
{
    struct cuda_device *d = enter(q);
    const struct cuda_unrotated first = unrotated_of(gate), second = unrotated_of(up);
    const struct cuda_prepared to = prepared_of(a, rotation);
    cuda_gated(d->stream, &first, &second, gelu, n, y, ldy, &to, a->rows);
    cuda_note(d, "gated");
}

static const struct walsh_fused_ops cuda_fused_ops = {
    .fits = fits,
    .residual = residual,
    .project = project,
    .attention = attention_prepared,
    .attend = attend,
    .gated = gated,
};

const struct walsh_ops cuda_ops = {
    .embed = embed,
    .rms_norm = rms_norm,
    .add = add,
    .prepare = prepare,
    .product = product,
    .unrotate = unrotate,
    .rope = rope,
    .short_conv = short_conv,
    .attention_rows = attention_rows,
    .kv_append = kv_append,
    .attention = attention,
    .swiglu = swiglu,
    .geglu = geglu,
    .scale = scale,
    .soft_cap = soft_cap,
    .route = route,
    .clamped_swiglu = clamped_swiglu,
    .gather = gather,
    .combine = combine,
    .draw = draw,
    .fused = &cuda_fused_ops,
    .quantize = &cuda_quantize_ops,
    .train = &cuda_train_ops,
};
