// wgmma of 64 outputs, whose bf16 fragments are registers, by N rows in shared memory, 16 columns: d += a b.
#ifndef WALSH_KERNELS_CUDA_WGMMA_ROWS_CUH
#define WALSH_KERNELS_CUDA_WGMMA_ROWS_CUH

#include "wgmma.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace {

// The names of the accumulators, eight at a time, and the accumulators.
#define D0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define D1 "%8, %9, %10, %11, %12, %13, %14, %15"
#define D2 "%16, %17, %18, %19, %20, %21, %22, %23"
#define D3 "%24, %25, %26, %27, %28, %29, %30, %31"
#define D4 "%32, %33, %34, %35, %36, %37, %38, %39"
#define D5 "%40, %41, %42, %43, %44, %45, %46, %47"
#define D6 "%48, %49, %50, %51, %52, %53, %54, %55"
#define D7 "%56, %57, %58, %59, %60, %61, %62, %63"
#define D8 "%64, %65, %66, %67, %68, %69, %70, %71"
#define EIGHT(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define WGMMA(N, NAMES, A0, A1, A2, A3, B, ...)                                                                                      \
    __device__ __forceinline__ void wgmma_rows(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b)                                 \
    {                                                                                                                                  \
        asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, 1, 0;\n\t"                                                                \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" NAMES "}, "                                           \
                     "{%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B ", p, 1, 1, 0;\n\t}"                                             \
                     : __VA_ARGS__                                                                                                     \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                                            \
    }
WGMMA(16, D0, 8, 9, 10, 11, 12, EIGHT(0))
WGMMA(32, D0 ", " D1, 16, 17, 18, 19, 20, EIGHT(0), EIGHT(8))
WGMMA(48, D0 ", " D1 ", " D2, 24, 25, 26, 27, 28, EIGHT(0), EIGHT(8), EIGHT(16))
WGMMA(64, D0 ", " D1 ", " D2 ", " D3, 32, 33, 34, 35, 36, EIGHT(0), EIGHT(8), EIGHT(16), EIGHT(24))
WGMMA(96, D0 ", " D1 ", " D2 ", " D3 ", " D4 ", " D5, 48, 49, 50, 51, 52, EIGHT(0), EIGHT(8), EIGHT(16), EIGHT(24), EIGHT(32), EIGHT(40))
WGMMA(112, D0 ", " D1 ", " D2 ", " D3 ", " D4 ", " D5 ", " D6, 56, 57, 58, 59, 60, EIGHT(0), EIGHT(8), EIGHT(16), EIGHT(24), EIGHT(32), EIGHT(40), EIGHT(48))
WGMMA(128, D0 ", " D1 ", " D2 ", " D3 ", " D4 ", " D5 ", " D6 ", " D7, 64, 65, 66, 67, 68, EIGHT(0), EIGHT(8), EIGHT(16), EIGHT(24), EIGHT(32), EIGHT(40), EIGHT(48), EIGHT(56))
WGMMA(144, D0 ", " D1 ", " D2 ", " D3 ", " D4 ", " D5 ", " D6 ", " D7 ", " D8, 72, 73, 74, 75, 76, EIGHT(0), EIGHT(8), EIGHT(16), EIGHT(24), EIGHT(32), EIGHT(40), EIGHT(48), EIGHT(56), EIGHT(64))
#undef D0
#undef D1
#undef D2
#undef D3
#undef D4
#undef D5
#undef D6
#undef D7
#undef D8
#undef EIGHT
#undef WGMMA

} // namespace

#endif

#endif
