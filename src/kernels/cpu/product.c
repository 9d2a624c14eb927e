/* The product op: the outputs of all products of a list are cut into pieces, and the pool's threads claim
 * them, behind the units of the low-rank updates. */
#include "kernels/cpu/low_rank.h"

#include "base/memory.h"
#include "formats/blocks.h"
#include "kernels/product.h"

_Static_assert(WALSH_PRODUCT_SCRATCH <= WALSH_SCRATCH_BYTES, "the tiles of a product");
_Static_assert(WALSH_BLOCK_MAX_COLUMNS *WALSH_BLOCK_ROWS * sizeof(float) <=
                   WALSH_SCRATCH_BYTES - WALSH_PANEL_SCRATCH,
               "a decoded tile");

/* Prefill: outputs per piece, a multiple of the widest tile (48). More share one read of the activations,
 * fewer balance better. Decode: bytes of weights per piece; one sequential read that hides the claim of a
 * piece. */
#define PREFILL_OUTPUTS 192
#define PREFILL_TILE 48
/* With AMX a piece is done so fast that reading the activations again counts: larger pieces, of tiles of 32. */
#define AMX_OUTPUTS 384
#define AMX_TILE 64
#define DECODE_BYTES ((size_t)128 << 10)
#define PIECES_PER_THREAD 8
#define PIECE_ROWS 256 /* prefill, of a product of some rows: an expert with many is cut along them too */

typedef void product_kernel(const struct walsh_product_part *);

/* The kernel of a combination. Whoever builds a linear chooses the activation type by the format (INT8 for
 * E8P only, INT8_GROUPS for block formats of integers and E2M1, BF16 for bf16 weights and block formats, F32
 * for all), so that these are all the combinations there are. Block formats by BF16 and F32: run_decoded. */
static product_kernel *choose(const struct walsh_kernels *k, enum walsh_format format,
                              enum walsh_activation_type type, enum walsh_role role)
{
    bool decode = role == WALSH_DECODE;
    if (type == WALSH_ACTIVATION_INT8) return decode ? k->product_int8_decode : k->product_int8_prefill;
    if (type == WALSH_ACTIVATION_INT8_GROUPS)
        return decode ? k->product_block_decode : k->product_block_prefill;
    if (type == WALSH_ACTIVATION_BF16) return decode ? k->product_bf16_decode : k->product_bf16_prefill;
    if (format == WALSH_FORMAT_E8P) return decode ? k->product_e8p_decode : k->product_e8p_prefill;
    return decode ? k->product_dense_decode : k->product_dense_prefill;
}

struct product_list {
    const struct walsh_queue *queue;
    const struct walsh_product *list;
    size_t count;
    const struct walsh_activations *a;
    enum walsh_role role;
    size_t threads, outputs; /* of all products */
    struct walsh_low_rank_job low_rank;
};

/* Outputs per piece of a product. */
static size_t piece_outputs(const struct product_list *l, const struct walsh_weights *w)
{
    const size_t balanced = l->outputs / (l->threads * PIECES_PER_THREAD);
    if (l->role == WALSH_PREFILL && (l->queue->kernels->isa & WALSH_ISA_amx) != 0)
        return walsh_round_up(walsh_min(walsh_max(2 * balanced, 1), AMX_OUTPUTS), AMX_TILE);
    if (l->role == WALSH_PREFILL)
        return walsh_round_up(walsh_min(walsh_max(balanced, 1), PREFILL_OUTPUTS), PREFILL_TILE);
    size_t row_bytes = walsh_max(walsh_weights_bytes(w) / walsh_max(w->rows, 1), 1);
    return walsh_round_up(walsh_max(DECODE_BYTES / row_bytes, 1), WALSH_PRODUCT_ROWS);
}

/* Pieces along the rows of a product. */
static size_t row_pieces(const struct product_list *l, const struct walsh_product *p)
{
    return l->role == WALSH_PREFILL && p->rows > PIECE_ROWS ? walsh_div_up(p->rows, PIECE_ROWS) : 1;
}

static size_t pieces(const struct product_list *l, const struct walsh_product *p)
{
    return walsh_div_up(p->weights->rows, piece_outputs(l, p->weights)) * row_pieces(l, p);
}

/* Rows of a block format are decoded into the scratch, a tile or several at a time, where they meet the
 * activations as dense weights: the bits of a product with the decoded matrix. */
static void run_decoded(const struct walsh_queue *q, const struct walsh_product_part *part,
                        enum walsh_role role)
{
    const struct walsh_weights *w = part->weights;
    const struct walsh_kernels *k = q->kernels;
    const bool narrow = part->a->type == WALSH_ACTIVATION_BF16;
    const size_t row_bytes = (size_t)w->cols * (narrow ? sizeof(uint16_t) : sizeof(float));
    const size_t most = (WALSH_SCRATCH_BYTES - WALSH_PANEL_SCRATCH) / row_bytes / WALSH_BLOCK_ROWS;
    const size_t rows = role == WALSH_DECODE ? WALSH_BLOCK_ROWS : walsh_max(most, 1) * WALSH_BLOCK_ROWS;
    void *decoded = (uint8_t *)part->scratch + WALSH_PANEL_SCRATCH;
    struct walsh_weights dense = {
        .format = narrow ? WALSH_FORMAT_BF16 : WALSH_FORMAT_F32, .cols = w->cols, .data = decoded};
    struct walsh_product_part piece = *part;
    piece.weights = &dense;
    piece.begin = 0;
    for (size_t r = part->begin; r < part->end; r += rows) {
        dense.rows = (uint32_t)walsh_min(rows, part->end - r);
        if (narrow)
            k->decode_weights_bf16(w, r, dense.rows, 0, w->cols, decoded, w->cols);
        else
            k->decode_weights_f32(w, r, dense.rows, 0, w->cols, decoded, w->cols);
        piece.end = dense.rows;
        piece.y = part->y + r;
        choose(k, dense.format, part->a->type, role)(&piece);
    }
}

static void run_piece(struct product_list *l, size_t piece, unsigned worker)
{
    const struct walsh_product *product = l->list;
    for (size_t n; piece >= (n = pieces(l, product)); product++) piece -= n;
    const struct walsh_weights *w = product->weights;
    const size_t outputs = piece_outputs(l, w), wide = walsh_div_up(w->rows, outputs),
                 begin = piece % wide * outputs, block = piece / wide * PIECE_ROWS;
    struct walsh_activations a = *l->a;
    if (product->rows > 0) {
        const size_t left = product->rows - block;
        a = walsh_activation_rows(l->a, product->first_row + block,
                                  row_pieces(l, product) > 1 ? walsh_min(left, PIECE_ROWS) : left);
    }
    const struct walsh_product_part part = {
        .weights = w,
        .a = &a,
        .begin = begin,
        .end = walsh_min(begin + outputs, w->rows),
        .y = product->y + block * product->ldy,
        .ldy = product->ldy,
        .scratch = l->queue->scratch[worker],
    };
    if (l->role == WALSH_DECODE) walsh_low_rank_prefetch(&l->low_rank, product, part.begin, part.end);
    if (walsh_format_is_block(w->format) && walsh_queue_tiles(l->queue, l->a->type, w->cols, l->role))
        l->queue->kernels->product_bf16_prefill(&part);
    else if (walsh_format_is_block(w->format) && l->a->type != WALSH_ACTIVATION_INT8_GROUPS)
        run_decoded(l->queue, &part, l->role);
    else
        choose(l->queue->kernels, w->format, l->a->type, l->role)(&part);
    walsh_low_rank_add(&l->low_rank, product, part.begin, part.end);
}

static void run_pieces(void *argument, size_t begin, size_t end, unsigned worker)
{
    struct product_list *l = argument;
    for (size_t piece = begin; piece < end; piece++) {
        if (piece < l->low_rank.units)
            walsh_low_rank_unit(&l->low_rank, piece);
        else
            run_piece(l, piece - l->low_rank.units, worker);
    }
}

void walsh_cpu_product(const struct walsh_queue *q, const struct walsh_product *list, size_t count,
                       const struct walsh_activations *a, const struct walsh_low_rank_input *low_rank,
                       enum walsh_role role)
{
    struct product_list l = {.queue = q,
                             .list = list,
                             .count = count,
                             .a = a,
                             .role = role,
                             .threads = walsh_pool_threads(q->pool)};
    if (a->rows == 0) return;
    walsh_low_rank_begin(&l.low_rank, q, low_rank, role);
    size_t total = l.low_rank.units;
    for (size_t i = 0; i < count; i++) l.outputs += list[i].weights->rows;
    for (size_t i = 0; i < count; i++) total += pieces(&l, &list[i]);
    walsh_pool_run(q->pool, total, 1, run_pieces, &l);
}
