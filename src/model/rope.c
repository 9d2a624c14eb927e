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

void walsh_rope_frequencies(const struct walsh_rope_config *rope, uint32_t head_dim, double *frequency)
{
    for (uint32_t i = 0; i < head_dim / 2; i++) {
        double f = pow(rope->theta, -2.0 * i / head_dim);
        if (rope->type == WALSH_ROPE_LINEAR) f /= rope->factor;
        if (rope->type == WALSH_ROPE_LLAMA3) f = bend(rope, f);
        frequency[i] = f;
    }
}

struct table_task {
    const double *frequency;
    uint32_t half;
    float *cosine, *sine;
};

static void fill_positions(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct table_task *t = argument;
    for (size_t position = begin; position < end; position++) {
        for (uint32_t i = 0; i < t->half; i++) {
            double angle = (double)position * t->frequency[i];
            t->cosine[position * t->half + i] = (float)cos(angle);
            t->sine[position * t->half + i] = (float)sin(angle);
        }
    }
}

enum walsh_status walsh_rope_tables(const struct walsh_config *config, struct walsh_pool *pool,
                                    struct walsh_arena *arena, float **cosine, float **sine,
                                    struct walsh_error *err)
{
    uint32_t half = config->head_dim / 2;
    size_t count;
    if (!walsh_mul(config->max_positions, half, &count))
        return walsh_fail(err, WALSH_E_MEMORY, "rope tables of %u positions do not fit",
                          config->max_positions);
    WALSH_TRY(walsh_memory_check("the rope tables of max_position_embeddings positions",
                                 count * 2 * sizeof(float), err));
    double *frequency;
    WALSH_TRY(walsh_arena_alloc(arena, half, sizeof *frequency, "rope frequencies", &frequency, err));
    WALSH_TRY(walsh_arena_alloc_uninitialised(arena, count, sizeof(float), "the rope tables", cosine, err));
    WALSH_TRY(walsh_arena_alloc_uninitialised(arena, count, sizeof(float), "the rope tables", sine, err));
    walsh_rope_frequencies(&config->rope, config->head_dim, frequency);
    struct table_task task = {frequency, half, *cosine, *sine};
    walsh_pool_run(pool, config->max_positions, 256, fill_positions, &task);
    return WALSH_OK;
}
