/* Attention of decode rows: chunks of WALSH_ATTEND_CHUNK keys at fixed absolute positions, merged in
 * ascending order.
 *
 * A unit is one row, one head of keys and values and at most SUBGROUP of the query heads that share it. Where
 * there are enough units for the threads, each runs through its chunks alone; where there are not (few rows,
 * long contexts), the chunks of all units are spread over the threads in waves and the caller merges a wave's
 * results. Chunks and merges are the same computations in both, so the bits are too. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/split.h"
#include "kernels/cpu/turbo.h"

#define SUBGROUP WALSH_TURBO_HEADS /* query heads at once: bounds the scratch of scores */
#define UNITS_PER_THREAD 4

/* Softmax over some keys, not yet divided: out [group][head_dim] = sum exp(score - maximum) v. */
struct partial {
    float *maximum, *sum; /* [SUBGROUP] */
    float *out;
};

struct decode {
    const struct walsh_queue *q;
    const struct walsh_attention_row *rows;
    size_t count;
    const struct walsh_attention_shape *shape;
    const float *query;
    float *out;
    size_t ldq, ldo;
    uint32_t subgroups; /* per head of keys and values */
    /* waves of chunks */
    size_t wave_begin;
    size_t slot_bytes, slots_per_thread;
};

/* The tokens that a row sees: [begin, end), from `split` on in the view of recent tokens. */
struct span {
    uint32_t begin, split, end;
};

struct unit {
    const struct walsh_attention_row *row;
    uint32_t kv_head, head, group; /* query heads [head, head + group) of all */
    struct span tokens;
    const float *query;
    float *out;
    size_t number; /* of all units */
};

static struct span span_of(const struct decode *t, const struct walsh_attention_row *row)
{
    const struct walsh_kv_view *kv = row->kv;
    struct span s = {walsh_first_key(t->shape, row->position), row->position + 1, row->position + 1};
    if (kv->type != WALSH_KV_TURBO || !kv->recent) return s;
    uint32_t recent = s.end > kv->recent_tokens ? s.end - kv->recent_tokens : 0;
    recent = (uint32_t)walsh_max(walsh_max(recent, kv->recent_begin), s.begin);
    s.split = (uint32_t)walsh_min(recent, s.end);
    return s;
}

/* Chunks that [begin, end) touches. */
static uint32_t chunks_between(uint32_t begin, uint32_t end)
{
    return end > begin ? (end - 1) / WALSH_ATTEND_CHUNK - begin / WALSH_ATTEND_CHUNK + 1 : 0;
}

/* Of the packed tokens first; the chunk in which the recent ones begin comes once more. */
static uint32_t chunks_of(const struct decode *t, const struct walsh_attention_row *row)
{
    const struct span s = span_of(t, row);
    return chunks_between(s.begin, s.split) + chunks_between(s.split, s.end);
}

static size_t units_per_row(const struct decode *t)
{
    return (size_t)t->shape->kv_heads * t->subgroups;
}

/* Unit `index` of row `row`. */
static struct unit unit_at(const struct decode *t, size_t row, size_t index)
{
    const struct walsh_attention_shape *s = t->shape;
    uint32_t group = s->heads / s->kv_heads, kv_head = (uint32_t)(index / t->subgroups);
    uint32_t first = (uint32_t)(index % t->subgroups) * SUBGROUP;
    uint32_t head = kv_head * group + first;
    size_t at = (size_t)head * s->head_dim;
    return (struct unit){
        .row = t->rows + row,
        .kv_head = kv_head,
        .head = head,
        .group = (uint32_t)walsh_min(SUBGROUP, group - first),
        .tokens = span_of(t, t->rows + row),
        .query = t->query + row * t->ldq + at,
        .out = t->out + row * t->ldo + at,
        .number = row * units_per_row(t) + index,
    };
}

/* A worker's scratch: the running maxima and sums, one partial result, scores; the upper half holds slots of
 * a wave. */
struct scratch {
    float run[2][SUBGROUP], part[2][SUBGROUP];
    float scores[SUBGROUP * WALSH_ATTEND_CHUNK];
    float out[SUBGROUP * WALSH_MAX_HEAD_DIM];
    struct walsh_turbo_scratch turbo;
    struct walsh_turbo_queries queries[UNITS_PER_THREAD]; /* of a unit that runs alone the first; else of
                                                           * those units whose place this is */
};
_Static_assert(sizeof(struct scratch) <= WALSH_SCRATCH_BYTES / 2, "the lower half of a worker's scratch");

static struct scratch *scratch_of(const struct walsh_queue *q, size_t worker)
{
    return (struct scratch *)(void *)q->scratch[worker];
}

/* Packed keys: the unit's queries are rotated once, before its first chunk. */
static void rotate_queries(const struct decode *t, const struct unit *u, struct walsh_turbo_queries *queries)
{
    if (u->row->kv->type == WALSH_KV_TURBO)
        walsh_turbo_rotate_queries(t->q, u->row->kv->turbo, u->query, u->group, queries);
}

/* Chunk number `chunk` of the unit's own chunks; `in_order`: the thread goes on with the next one. */
static void attend_chunk(const struct decode *t, const struct unit *u, uint32_t chunk, bool in_order,
                         struct scratch *s, const struct walsh_turbo_queries *queries, struct partial p)
{
    const struct walsh_kv_view *kv = u->row->kv;
    uint32_t begin = u->tokens.begin, end = u->tokens.split;
    const uint32_t before = chunks_between(begin, end);
    const bool packed = kv->type == WALSH_KV_TURBO && chunk < before, recent = chunk >= before;
    if (recent) {
        chunk -= before;
        begin = end;
        end = u->tokens.end;
    }
    const uint32_t from = (begin / WALSH_ATTEND_CHUNK + chunk) * WALSH_ATTEND_CHUNK;
    struct walsh_attend_chunk c = {
        .kv = recent ? kv->recent : kv,
        .kv_head = u->kv_head,
        .begin = from > begin ? from : begin,
        .end = end - from > WALSH_ATTEND_CHUNK ? from + WALSH_ATTEND_CHUNK : end,
        .group = u->group,
        .head_dim = t->shape->head_dim,
        .scale = t->shape->scale,
        .soft_cap = t->shape->soft_cap,
        .query = recent ? queries->rotated : u->query,
        .scores = s->scores,
        .maximum = p.maximum,
        .sum = p.sum,
        .out = p.out,
    };
    if (in_order && c.end < end) c.next = c.end;
    if (packed)
        walsh_turbo_attend_chunk(t->q, &c, end, queries, &s->turbo);
    else
        t->q->kernels->attend_chunk(&c);
}

/* Add the next chunk's `p` to the unit's running result. */
static void merge(const struct partial *run, const struct partial *p, uint32_t group, uint32_t head_dim)
{
    for (uint32_t g = 0; g < group; g++) {
        float maximum = p->maximum[g] > run->maximum[g] ? p->maximum[g] : run->maximum[g];
        float keep = expf(run->maximum[g] - maximum), add = expf(p->maximum[g] - maximum);
        float *y = run->out + (size_t)g * head_dim;
        const float *x = p->out + (size_t)g * head_dim;
        for (uint32_t d = 0; d < head_dim; d++) y[d] = y[d] * keep + x[d] * add;
        run->sum[g] = run->sum[g] * keep + p->sum[g] * add;
        run->maximum[g] = maximum;
    }
}

/* Behind a unit's last chunk. */
static void finish(const struct decode *t, const struct unit *u, const struct partial *run)
{
    const uint32_t head_dim = t->shape->head_dim;
    for (uint32_t g = 0; g < u->group; g++) {
        const float sum = walsh_add_sink(t->shape, u->head + g, run->maximum[g], run->sum[g]);
        for (uint32_t d = 0; d < head_dim; d++) run->out[(size_t)g * head_dim + d] /= sum;
    }
    if (u->row->kv->type == WALSH_KV_TURBO)
        walsh_turbo_unrotate(t->q, u->row->kv->turbo->value, run->out, u->group);
}

static void whole_units(void *argument, size_t begin, size_t end, unsigned worker)
{
    const struct decode *t = argument;
    struct scratch *s = scratch_of(t->q, worker);
    for (size_t i = begin; i < end; i++) {
        size_t row = i / units_per_row(t);
        struct unit u = unit_at(t, row, i % units_per_row(t));
        struct partial run = {s->run[0], s->run[1], u.out}, part = {s->part[0], s->part[1], s->out};
        uint32_t chunks = chunks_of(t, u.row);
        rotate_queries(t, &u, s->queries);
        attend_chunk(t, &u, 0, true, s, s->queries, run);
        for (uint32_t c = 1; c < chunks; c++) {
            attend_chunk(t, &u, c, true, s, s->queries, part);
            merge(&run, &part, u.group, t->shape->head_dim);
        }
        finish(t, &u, &run);
    }
}

/* Slot `i` of a wave: spread over the upper halves of all workers' scratch. */
static struct partial slot(const struct decode *t, size_t i)
{
    size_t threads = walsh_pool_threads(t->q->pool);
    float *p =
        (float *)(void *)(t->q->scratch[i % threads] + WALSH_SCRATCH_BYTES / 2 + i / threads * t->slot_bytes);
    return (struct partial){p, p + SUBGROUP, p + (size_t)2 * SUBGROUP};
}

/* In waves a unit's chunks run on several workers: its queries have one place. There are fewer units than
 * UNITS_PER_THREAD per thread. */
static struct walsh_turbo_queries *queries_of(const struct decode *t, const struct unit *u)
{
    size_t threads = walsh_pool_threads(t->q->pool);
    return &scratch_of(t->q, u->number % threads)->queries[u->number / threads];
}

static void rotate_units(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct decode *t = argument;
    for (size_t i = begin; i < end; i++) {
        struct unit u = unit_at(t, i / units_per_row(t), i % units_per_row(t));
        rotate_queries(t, &u, queries_of(t, &u));
    }
}

/* The piece with number `index`, counted over rows, their units and their chunks; returns its chunk. */
static uint32_t piece_at(const struct decode *t, size_t index, struct unit *u)
{
    size_t row = 0;
    for (;; row++) {
        size_t pieces = chunks_of(t, t->rows + row) * units_per_row(t);
        if (index < pieces) break;
        index -= pieces;
    }
    uint32_t chunks = chunks_of(t, t->rows + row);
    *u = unit_at(t, row, index / chunks);
    return (uint32_t)(index % chunks);
}

static void wave_pieces(void *argument, size_t begin, size_t end, unsigned worker)
{
    const struct decode *t = argument;
    for (size_t i = begin; i < end; i++) {
        struct unit u;
        uint32_t chunk = piece_at(t, t->wave_begin + i, &u);
        attend_chunk(t, &u, chunk, false, scratch_of(t->q, worker), queries_of(t, &u), slot(t, i));
    }
}

/* Merge the wave's pieces in order; a unit may go on in the next wave, its running result in `out` and the
 * caller's scratch. */
static void merge_wave(const struct decode *t, size_t pieces)
{
    struct scratch *s = scratch_of(t->q, 0);
    for (size_t i = 0; i < pieces; i++) {
        struct unit u;
        uint32_t chunk = piece_at(t, t->wave_begin + i, &u);
        struct partial run = {s->run[0], s->run[1], u.out}, part = slot(t, i);
        if (chunk == 0) {
            memcpy(run.maximum, part.maximum, SUBGROUP * sizeof(float));
            memcpy(run.sum, part.sum, SUBGROUP * sizeof(float));
            memcpy(run.out, part.out, (size_t)u.group * t->shape->head_dim * sizeof(float));
        } else {
            merge(&run, &part, u.group, t->shape->head_dim);
        }
        if (chunk + 1 == chunks_of(t, u.row)) finish(t, &u, &run);
    }
}

void walsh_cpu_decode_attention(const struct walsh_queue *q, float *out, size_t ldo, const float *query,
                                size_t ldq, const struct walsh_attention_row *rows, size_t count,
                                const struct walsh_attention_shape *shape)
{
    struct decode t = {.q = q,
                       .rows = rows,
                       .count = count,
                       .shape = shape,
                       .query = query,
                       .out = out,
                       .ldq = ldq,
                       .ldo = ldo};
    uint32_t group = shape->heads / shape->kv_heads;
    t.subgroups = (group + SUBGROUP - 1) / SUBGROUP;
    size_t units = count * units_per_row(&t), chunks = 0, keys = 0, threads = walsh_pool_threads(q->pool);
    for (size_t r = 0; r < count; r++) {
        chunks += chunks_of(&t, rows + r);
        keys += rows[r].position + 1 - walsh_first_key(shape, rows[r].position);
    }
    if (threads == 1 || units >= UNITS_PER_THREAD * threads || chunks == count) {
        size_t work = keys / walsh_max(count, 1) * walsh_min(group, SUBGROUP) * shape->head_dim;
        walsh_run_rows(q, units, work, whole_units, &t);
        return;
    }
    t.slot_bytes =
        walsh_round_up((2 * SUBGROUP + (size_t)walsh_min(group, SUBGROUP) * shape->head_dim) * sizeof(float),
                       WALSH_ALIGNMENT);
    walsh_run_rows(q, units, (size_t)walsh_min(group, SUBGROUP) * shape->head_dim * 16, rotate_units, &t);
    size_t pieces = chunks * units_per_row(&t),
           wave = (q->scratch_bytes - WALSH_SCRATCH_BYTES / 2) / t.slot_bytes * threads;
    for (; t.wave_begin < pieces; t.wave_begin += wave) {
        size_t n = walsh_min(wave, pieces - t.wave_begin);
        walsh_pool_run(q->pool, n, 1, wave_pieces, &t);
        merge_wave(&t, n);
    }
}
