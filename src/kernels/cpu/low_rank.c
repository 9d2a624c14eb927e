#include "kernels/cpu/low_rank.h"

#include <sched.h>

/* Prefill: rows of x in a unit are about this many elements, a share of the L2 that is left for A; a multiple
 * of what the kernels take at once. */
#define TILE_ELEMENTS ((size_t)64 << 10)
#define TILE_ROWS 24
#define MIN_TILE_ROWS 6
#define AMX_TILE_ROWS 64 /* with AMX, which takes 32 */
#define UNIT_BLOCKS 4    /* decode: of columns, in a unit at most: a stream of 64 KiB of bf16 */
#define PREFETCH_BYTES ((size_t)8 << 10) /* of one B at most */
#define SPINS 256                        /* looks before the thread offers its CPU to another */

static size_t padded_rank(size_t rank)
{
    return walsh_round_up(rank, WALSH_LOW_RANK_CHUNK);
}

/* Decode cuts A: into chunks of ranks by blocks of columns, whose sums are added when all of them are there;
 * a unit is a few blocks, which keep sums of their own. Prefill cuts the rows: a unit makes the whole h of
 * its rows. */
static size_t blocks(size_t cols, enum walsh_role role)
{
    return role == WALSH_DECODE ? walsh_div_up(cols, WALSH_LOW_RANK_BLOCK) : 1;
}

static size_t tile_rows(const struct walsh_queue *q, size_t cols)
{
    if ((q->kernels->isa & WALSH_ISA_amx) != 0) return AMX_TILE_ROWS;
    const size_t rows = walsh_min(TILE_ELEMENTS / walsh_max(cols, 1), TILE_ROWS);
    return walsh_max(rows / MIN_TILE_ROWS, 1) * MIN_TILE_ROWS;
}

static size_t down_units(const struct walsh_queue *q, const struct walsh_low_rank_down *d, size_t cols,
                         enum walsh_role role)
{
    if (role == WALSH_PREFILL) return walsh_div_up(d->row_end - d->row_begin, tile_rows(q, cols));
    return padded_rank(d->rank) / WALSH_LOW_RANK_CHUNK * walsh_div_up(blocks(cols, role), UNIT_BLOCKS);
}

size_t walsh_low_rank_scratch(size_t rank, size_t cols, size_t rows, enum walsh_role role)
{
    const size_t parts = blocks(cols, role);
    return rows * padded_rank(rank) * (parts == 1 ? 1 : parts + 1);
}

void walsh_low_rank_begin(struct walsh_low_rank_job *job, const struct walsh_queue *q,
                          const struct walsh_low_rank_input *input, enum walsh_role role)
{
    *job = (struct walsh_low_rank_job){.queue = q, .input = input, .role = role};
    if (!input) return;
    for (size_t i = 0; i < input->count; i++) {
        struct walsh_low_rank_down *d = &input->down[i];
        const size_t units = down_units(q, d, input->cols, role);
        d->units_before = job->units;
        atomic_init(&d->units_left, units);
        job->units += units;
    }
    atomic_init(&job->downs_left, input->count);
}

/* The down that has unit number `unit`: the last whose units begin at or before it. */
static struct walsh_low_rank_down *find_down(const struct walsh_low_rank_input *input, size_t unit)
{
    size_t begin = 0, end = input->count;
    while (end - begin > 1) {
        const size_t middle = begin + (end - begin) / 2;
        if (input->down[middle].units_before <= unit)
            begin = middle;
        else
            end = middle;
    }
    return &input->down[begin];
}

/* Ranks of chunk `chunk`, columns [begin, end), of `rows` rows of the down from its row `row` on, into h
 * [rows][padded rank]. */
static struct walsh_low_rank_down_part chunk_part(const struct walsh_low_rank_job *job,
                                                  const struct walsh_low_rank_down *d, size_t chunk,
                                                  size_t begin, size_t end, size_t row, size_t rows, float *h)
{
    const struct walsh_low_rank_input *in = job->input;
    const size_t bytes = d->format == WALSH_FORMAT_BF16 ? 2 : 4;
    return (struct walsh_low_rank_down_part){
        .format = d->format,
        .a = (const char *)d->a + chunk * walsh_low_rank_a_size(1, in->cols) * bytes,
        .cols = in->cols,
        .begin = begin,
        .end = end,
        .x = in->x + (d->row_begin + row) * in->ldx,
        .ldx = in->ldx,
        .rows = rows,
        .h = h + chunk * WALSH_LOW_RANK_CHUNK,
        .ldh = padded_rank(d->rank),
    };
}

/* h = the sums of all blocks, in ascending order. */
static void add_blocks(const struct walsh_low_rank_down *d, size_t parts)
{
    const size_t n = (d->row_end - d->row_begin) * padded_rank(d->rank);
    for (size_t i = 0; i < n; i++) {
        float sum = d->h[n + i];
        for (size_t p = 2; p <= parts; p++) sum += d->h[p * n + i];
        d->h[i] = sum;
    }
}

static void decode_unit(const struct walsh_low_rank_job *job, const struct walsh_low_rank_down *d,
                        size_t unit)
{
    const size_t cols = job->input->cols, parts = blocks(cols, WALSH_DECODE);
    const size_t rows = d->row_end - d->row_begin, size = rows * padded_rank(d->rank);
    const size_t units = walsh_div_up(parts, UNIT_BLOCKS), first = unit % units * UNIT_BLOCKS;
    for (size_t part = first; part < walsh_min(first + UNIT_BLOCKS, parts); part++) {
        const size_t begin = part * WALSH_LOW_RANK_BLOCK, end = walsh_min(begin + WALSH_LOW_RANK_BLOCK, cols);
        const struct walsh_low_rank_down_part p = chunk_part(job, d, unit / units, begin, end, 0, rows,
                                                             parts == 1 ? d->h : d->h + (part + 1) * size);
        job->queue->kernels->low_rank_down(&p);
    }
}

/* A few rows of x by every rank: x is read from memory once. */
static void prefill_unit(const struct walsh_low_rank_job *job, const struct walsh_low_rank_down *d,
                         size_t unit)
{
    const size_t tile = tile_rows(job->queue, job->input->cols), row = unit * tile,
                 stride = padded_rank(d->rank);
    const size_t rows = walsh_min(tile, d->row_end - d->row_begin - row);
    struct walsh_low_rank_down_part part =
        chunk_part(job, d, 0, 0, job->input->cols, row, rows, d->h + row * stride);
    part.chunks = stride / WALSH_LOW_RANK_CHUNK;
    job->queue->kernels->low_rank_down_prefill(&part);
}

void walsh_low_rank_unit(struct walsh_low_rank_job *job, size_t unit)
{
    struct walsh_low_rank_down *d = find_down(job->input, unit);
    if (job->role == WALSH_DECODE)
        decode_unit(job, d, unit - d->units_before);
    else
        prefill_unit(job, d, unit - d->units_before);
    /* Each unit releases what it wrote; the last one of the down sees all of it, and whoever waits sees that.
     */
    if (atomic_fetch_sub_explicit(&d->units_left, 1, memory_order_acq_rel) != 1) return;
    const size_t parts = blocks(job->input->cols, job->role);
    if (parts > 1) add_blocks(d, parts);
    atomic_fetch_sub_explicit(&job->downs_left, 1, memory_order_acq_rel);
}

static size_t panel_bytes(const struct walsh_low_rank_down *d)
{
    return walsh_low_rank_b_size(d->format, d->rank, WALSH_LOW_RANK_PANEL) *
           (d->format == WALSH_FORMAT_BF16 ? 2 : 4);
}

void walsh_low_rank_prefetch(const struct walsh_low_rank_job *job, const struct walsh_product *product,
                             size_t begin, size_t end)
{
    for (size_t i = 0; i < product->up_count; i++) {
        const struct walsh_low_rank_up *up = &product->up[i];
        const size_t bytes = panel_bytes(&job->input->down[up->down]);
        const char *b = (const char *)up->b + begin / WALSH_LOW_RANK_PANEL * bytes;
        const size_t wanted =
            walsh_min(walsh_div_up(end - begin, WALSH_LOW_RANK_PANEL) * bytes, PREFETCH_BYTES);
        for (size_t at = 0; at < wanted; at += WALSH_ALIGNMENT) __builtin_prefetch(b + at);
    }
}

/* Pieces are claimed in ascending order and the units come first (base/pool.h): what is missing is being
 * computed by a thread that holds nothing else. */
static void wait_for_downs(struct walsh_low_rank_job *job)
{
    for (unsigned i = 1; atomic_load_explicit(&job->downs_left, memory_order_acquire) != 0; i++) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
        if (i % SPINS == 0) sched_yield();
    }
}

void walsh_low_rank_add(struct walsh_low_rank_job *job, const struct walsh_product *product, size_t begin,
                        size_t end)
{
    if (product->up_count == 0) return;
    wait_for_downs(job);
    for (size_t i = 0; i < product->up_count; i++) {
        const struct walsh_low_rank_up *up = &product->up[i];
        const struct walsh_low_rank_down *d = &job->input->down[up->down];
        const struct walsh_low_rank_up_part part = {
            .format = d->format,
            .b = up->b,
            .rank = d->rank,
            .begin = begin,
            .end = end,
            .scale = up->scale,
            .h = d->h,
            .ldh = padded_rank(d->rank),
            .rows = d->row_end - d->row_begin,
            .y = product->y + d->row_begin * product->ldy,
            .ldy = product->ldy,
        };
        if (job->role == WALSH_PREFILL)
            job->queue->kernels->low_rank_up_prefill(&part);
        else
            job->queue->kernels->low_rank_up(&part);
    }
}
