/* The ceilings of AMX: products of tiles in registers. */
#include "kernels/table.h"
#include "kernels/x86/amx/tiles.h"

enum { CHAINS = 4, MULTIPLY_ADDS = 16 * 16 * 16 };

double walsh_peak_int8_amx(size_t rounds)
{
    const struct tile_config config = tile_shapes(16, 16);
    struct tiles t;
    tiles_open(&t, &config);
    for (size_t r = 0; r < rounds; r++) {
        TILE_DOT_SS(&t, 0, 4, 6);
        TILE_DOT_SS(&t, 1, 4, 7);
        TILE_DOT_SS(&t, 2, 5, 6);
        TILE_DOT_SS(&t, 3, 5, 7);
    }
    tiles_close(&t);
    return (double)rounds * CHAINS * MULTIPLY_ADDS * 4 * 2;
}

double walsh_peak_bf16_amx(size_t rounds)
{
    const struct tile_config config = tile_shapes(16, 16);
    struct tiles t;
    tiles_open(&t, &config);
    for (size_t r = 0; r < rounds; r++) {
        TILE_DOT_BF16(&t, 0, 4, 6);
        TILE_DOT_BF16(&t, 1, 4, 7);
        TILE_DOT_BF16(&t, 2, 5, 6);
        TILE_DOT_BF16(&t, 3, 5, 7);
    }
    tiles_close(&t);
    return (double)rounds * CHAINS * MULTIPLY_ADDS * 2 * 2;
}
