#include "model/rope.h"

#include <math.h>

#include "base/machine.h"

#define PI 3.14159265358979323846

/* Llama 3.1: wavelengths below original/high keep their frequency, those above original/low are slowed by
 * `factor`, and between them the two are mixed linearly in original/wavelength. */
static double bend(const struct walsh_rope_config *rope, double frequency)
{
    double turns = rope->original_max_positions * frequency / (2 * PI); /* within the original context */
    if (turns > rope->high_frequency_factor) return frequency;
    if (turns < rope->low_frequency_factor) return frequency / rope->factor;
    double keep =
        (turns - rope->low_frequency_factor) / (rope->high_frequency_factor - rope->low_frequency_factor);
    return (1 - keep) * frequency / rope->factor + keep * frequency;
}

/* The pair (a fraction of one) that turns `turns` times within the original context. */
static double pair_of_turns(const struct walsh_rope_config *rope, uint32_t dim, double turns)
{
    return dim * log(rope->original_max_positions / (turns * 2 * PI)) / (2 * log(rope->theta));
}

/* The share of pair i's frequency that YaRN keeps: 1 up to the pair of beta_fast turns, 0 from that of
 * beta_slow on. */
static double kept_share(const struct walsh_rope_config *rope, uint32_t dim, uint32_t i)
{
    double first = pair_of_turns(rope, dim, rope->beta_fast),
           last = pair_of_turns(rope, dim, rope->beta_slow);
    if (rope->truncate) {
        first = floor(first);
        last = ceil(last);
    }
    first = fmax(first, 0);
    last = fmin(last, (double)dim - 1);
    if (first == last) last += 0.001;
    return 1 - fmin(fmax((i - first) / (last - first), 0), 1);
}

void walsh_rope_frequencies(const struct walsh_rope_config *rope, uint32_t dim, bool longer,
                            double *frequency)
{
    for (uint32_t i = 0; i < dim / 2; i++) {
        double f = pow(rope->theta, -2.0 * i / dim);
        if (rope->type == WALSH_ROPE_LINEAR) f /= rope->factor;
        if (rope->type == WALSH_ROPE_LLAMA3) f = bend(rope, f);
        if (rope->type == WALSH_ROPE_YARN) {
            const double keep = kept_share(rope, dim, i);
            f = keep * f + (1 - keep) * f / rope->factor;
        }
        if (rope->type == WALSH_ROPE_LONGROPE)
            f /= (double)(longer ? rope->long_factor[i] : rope->short_factor[i]);
        frequency[i] = f;
    }
}

uint32_t walsh_graph_rope_offset(const struct walsh_model_graph *graph, uint32_t capacity)
{
    const uint32_t most = graph->rope.short_positions;
    return most != 0 && capacity > most ? graph->config.max_positions : 0;
}

struct table_task {
    const double *frequency;
    uint32_t half;
    double factor;
    float *cosine, *sine;
};

static void fill_positions(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct table_task *t = argument;
    for (size_t position = begin; position < end; position++) {
        for (uint32_t i = 0; i < t->half; i++) {
            double angle = (double)position * t->frequency[i];
            t->cosine[position * t->half + i] = (float)(t->factor * cos(angle));
            t->sine[position * t->half + i] = (float)(t->factor * sin(angle));
        }
    }
}

enum walsh_status walsh_rope_fill(const struct walsh_rope_config *rope, uint32_t dim, uint32_t positions,
                                  struct walsh_pool *pool, struct walsh_arena *arena,
                                  struct walsh_rope_table *table, struct walsh_error *err)
{
    const uint32_t half = dim / 2, sets = rope->type == WALSH_ROPE_LONGROPE ? 2 : 1;
    size_t count;
    if (!walsh_mul((size_t)positions * sets, half, &count))
        return walsh_fail(err, WALSH_E_MEMORY, "rope tables of %u positions do not fit", positions);
    WALSH_TRY(walsh_memory_check("the rope tables of max_position_embeddings positions",
                                 count * 2 * sizeof(float), err));
    table->dim = dim;
    table->rows = positions * sets;
    table->short_positions = sets == 2 ? rope->original_max_positions : 0;
    double *frequency;
    WALSH_TRY(walsh_arena_alloc(arena, half, sizeof *frequency, "rope frequencies", &frequency, err));
    WALSH_TRY(
        walsh_arena_alloc_uninitialised(arena, count, sizeof(float), "the rope tables", &table->cosine, err));
    WALSH_TRY(
        walsh_arena_alloc_uninitialised(arena, count, sizeof(float), "the rope tables", &table->sine, err));
    for (uint32_t s = 0; s < sets; s++) {
        const size_t at = (size_t)s * positions * half;
        walsh_rope_frequencies(rope, dim, s == 1, frequency);
        struct table_task task = {frequency, half, rope->attention_factor != 0 ? rope->attention_factor : 1,
                                  table->cosine + at, table->sine + at};
        walsh_pool_run(pool, positions, 256, fill_positions, &task);
    }
    return WALSH_OK;
}
