/* model/rope: tables of rotary position embeddings. Private to model/. */
#ifndef WALSH_MODEL_ROPE_H
#define WALSH_MODEL_ROPE_H

#include "base/memory.h"
#include "base/pool.h"
#include "model/model.h"

/* frequency[dim / 2]: angle per position of each pair. theta^(-2i/dim) (Su et al. 2021), divided by `factor`
 * (linear), bent between two wavelengths as Llama 3 does, or between two numbers of turns (YaRN, Peng et al.
 * 2023), or divided by a list's numbers (LongRoPE, Ding et al. 2024), which of both says `longer`. */
void walsh_rope_frequencies(const struct walsh_rope_config *rope, uint32_t dim, bool longer,
                            double *frequency);

/* Cosine and sine [positions][dim/2] of position * frequency (of a longrope two such sets), times the
 * attention factor, computed in double; owned by the arena. */
enum walsh_status walsh_rope_fill(const struct walsh_rope_config *rope, uint32_t dim, uint32_t positions,
                                  struct walsh_pool *pool, struct walsh_arena *arena,
                                  struct walsh_rope_table *table, struct walsh_error *err);

#endif
