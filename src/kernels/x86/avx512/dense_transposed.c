/* AVX-512 transposed products of dense weights. */
#include "base/memory.h"
#include "kernels/table.h"
#include "kernels/x86/avx512/tile_f32.h"

#include "kernels/x86/avx512/load_dense.h"

#define BLOCK 512         /* rows of W per panel */
#define PANEL_OUTPUTS 192 /* outputs whose panels share the L2: 192 * 512 * 4 = 393 KB */
#define LANES 16
#define WIDE_LOAD load_16
#define WIDE_STORE _mm512_store_ps
#define PANEL_WIDTH(done, outputs) (16 * panel_vectors(done, outputs))
#define NAME(name) name##_avx512

#include "kernels/x86/dense_transposed.inc"
