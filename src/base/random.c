#include "base/random.h"

#include <math.h>

static uint64_t rotate_left(uint64_t x, unsigned k)
{
    return (x << k) | (x >> (64 - k));
}

void walsh_random_seed(struct walsh_random *r, uint64_t seed)
{
    /* SplitMix64: its state advances by the golden-ratio increment, which walsh_mix64 adds once more before
     * mixing. */
    for (unsigned i = 0; i < 4; i++) r->state[i] = walsh_mix64(seed + i * 0x9e3779b97f4a7c15u);
}

uint64_t walsh_random_u64(struct walsh_random *r)
{
    uint64_t *s = r->state;
    uint64_t result = rotate_left(s[1] * 5, 7) * 9, t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate_left(s[3], 45);
    return result;
}

double walsh_random_uniform(struct walsh_random *r)
{
    return (double)(walsh_random_u64(r) >> 11) * 0x1p-53;
}

double walsh_random_normal(struct walsh_random *r)
{
    double u = 1.0 - walsh_random_uniform(r); /* (0, 1]: the logarithm is finite */
    double angle = 6.283185307179586 * walsh_random_uniform(r);
    return sqrt(-2.0 * log(u)) * cos(angle);
}
