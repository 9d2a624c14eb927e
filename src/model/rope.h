/* model/rope: tables of rotary position embeddings. Private to model/. */
#ifndef WALSH_MODEL_ROPE_H
#define WALSH_MODEL_ROPE_H

#include "base/memory.h"
#include "base/pool.h"
#include "checkpoint/config.h"

/* frequency[head_dim / 2]: angle per position of each pair. theta^(-2i/head_dim) (Su et al. 2021), divided by
 * `factor` (linear) or bent between two wavelengths as Llama 3 does. */
void walsh_rope_frequencies(const struct walsh_rope_config *rope, uint32_t head_dim, double *frequency);

/* Cosine and sine [max_positions][head_dim/2] of position * frequency, computed in double; owned by the
 * arena. */
enum walsh_status walsh_rope_tables(const struct walsh_config *config, struct walsh_pool *pool,
                                    struct walsh_arena *arena, float **cosine, float **sine,
                                    struct walsh_error *err);

#endif
