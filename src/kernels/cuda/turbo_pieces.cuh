// How the keys of a row with packed pages are cut into pieces.
#ifndef WALSH_KERNELS_CUDA_TURBO_PIECES_CUH
#define WALSH_KERNELS_CUDA_TURBO_PIECES_CUH

#include "attention.cuh"
#include "turbo.cuh"

namespace {

// Tokens [begin, split) packed and [split, end) in f16, in pieces of `chunk`: `packed` ones, then the others.
struct packed_span {
    uint32_t begin, split, end, chunk, packed, pieces;
};
__device__ __forceinline__ packed_span packed_span_of(const cuda_attention_row &row, const cuda_kv_view &kv,
                                                      const cuda_attention_shape &shape, const cuda_attention_row *first)
{
    packed_span s;
    const span keys = span_of(row.position, shape.window);
    s.begin = keys.begin, s.end = s.split = keys.end;
    if (shape.own.k) {
        s.split = min(max(first->position, s.begin), s.end);
    } else if (kv.recent) {
        const uint32_t newest = s.end > kv.recent_tokens ? s.end - kv.recent_tokens : 0;
        s.split = min(max(max(newest, kv.recent_begin), s.begin), s.end);
    }
    const uint32_t even = (s.end - s.begin + CHUNKS - 3) / (CHUNKS - 2); // both ends of both parts are pieces
    s.chunk = (even + LEAST - 1) / LEAST * LEAST; // a tile for each warp at a time
    s.packed = (s.split - s.begin + s.chunk - 1) / s.chunk;
    s.pieces = s.packed + (s.end - s.split + s.chunk - 1) / s.chunk;
    return s;
}

} // namespace

#endif
