/* AVX2 transposed products of dense weights. */
#include "base/memory.h"
#include "kernels/table.h"
#include "kernels/x86/avx2/tile_f32.h"

#include "kernels/x86/avx2/load_dense.h"

#define BLOCK 256        /* rows of W per panel */
#define PANEL_OUTPUTS 96 /* outputs whose panels share the L2: 96 * 256 * 4 = 98 KB */
#define LANES 8
#define WIDE_LOAD load_8
#define WIDE_STORE _mm256_store_ps
#define PANEL_WIDTH(done, outputs) TILE_OUTPUTS
#define NAME(name) name##_avx2

#include "kernels/x86/dense_transposed.inc"
