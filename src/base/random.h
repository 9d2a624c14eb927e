/* base/random: one small reproducible generator (SplitMix64 seeding xoshiro256**, Blackman & Vigna 2018). */
#ifndef WALSH_BASE_RANDOM_H
#define WALSH_BASE_RANDOM_H

#include <stdint.h>

struct walsh_random {
    uint64_t state[4];
};

/* SplitMix64's output function: a good 64-bit mixer, also used to derive seeds from (seed, name). */
static inline uint64_t walsh_mix64(uint64_t z)
{
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

void walsh_random_seed(struct walsh_random *r, uint64_t seed);
uint64_t walsh_random_u64(struct walsh_random *r);
/* Uniform in [0, 1) with 53 bits. */
double walsh_random_uniform(struct walsh_random *r);
/* Standard normal by Box-Muller; uses two draws, keeps none. */
double walsh_random_normal(struct walsh_random *r);

#endif
