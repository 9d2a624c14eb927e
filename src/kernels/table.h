/* kernels/table: the CPU's microkernels as kernels.def declares them: prototypes, the table and its
 * selection. */
#ifndef WALSH_KERNELS_TABLE_H
#define WALSH_KERNELS_TABLE_H

#include "kernels/attention.h"
#include "kernels/draw.h"
#include "kernels/kernels.h"
#include "kernels/low_rank.h"
#include "kernels/pairs.h"
#include "kernels/product.h"
#include "kernels/turbo.h"

/* The instruction sets by which implementations are named, as bits of a feature mask. Each needs everything
 * below it: avx2: AVX2, FMA, F16C, BMI2. avx512: F, BW, DQ, VL. vnni: AVX512 VNNI, VBMI, GFNI. bf16:
 * AVX512_BF16. amx: AMX-INT8 and AMX-BF16 with vnni and bf16, where the system lets the process use tiles. */
enum walsh_isa {
    WALSH_ISA_reference = 0,
    WALSH_ISA_avx2 = 1,
    WALSH_ISA_avx512 = 2,
    WALSH_ISA_vnni = 4,
    WALSH_ISA_bf16 = 8,
    WALSH_ISA_amx = 16,
};

/* walsh_kernel_NAME: the function type of kernel NAME. */
#define WALSH_KERNEL(name, result, parameters, comparison) typedef result walsh_kernel_##name parameters;
#define WALSH_IMPL(name, isa)
#include "kernels/kernels.def"

/* walsh_NAME_ISA: the prototypes of all implementations. */
#define WALSH_KERNEL(name, result, parameters, comparison)
#define WALSH_IMPL(name, isa) walsh_kernel_##name walsh_##name##_##isa;
#include "kernels/kernels.def"

/* WALSH_KERNEL_ID_NAME: kernel NAME's place in the list. */
enum walsh_kernel_id {
#define WALSH_KERNEL(name, result, parameters, comparison) WALSH_KERNEL_ID_##name,
#define WALSH_IMPL(name, isa)
#include "kernels/kernels.def"
    WALSH_KERNEL_COUNT
};

/* One implementation of each kernel. */
struct walsh_kernels {
#define WALSH_KERNEL(name, result, parameters, comparison) walsh_kernel_##name *name;
#define WALSH_IMPL(name, isa)
#include "kernels/kernels.def"
    unsigned isa;                               /* the mask from which it was selected */
    const char *chosen[WALSH_KERNEL_COUNT + 1]; /* the isa's name of each kernel; NULL at the end */
};

/* enum walsh_isa bits of this machine: CPUID, and XGETBV for the registers that the system saves. */
unsigned walsh_cpu_isa(void);
/* Fill *out with the last admissible implementation of each kernel: one whose isa is within `mask`. */
void walsh_kernels_select(unsigned mask, struct walsh_kernels *out);
const char *walsh_kernel_name(size_t id); /* NULL at WALSH_KERNEL_COUNT and beyond */

#if WALSH_X86
/* Loops in registers: run `rounds` rounds, return the operations done. And a sum over x, for the bandwidth.
 */
double walsh_peak_f32_avx2(size_t rounds);
double walsh_peak_f32_avx512(size_t rounds);
double walsh_peak_int8_vnni(size_t rounds);
double walsh_peak_bf16_bf16(size_t rounds);
double walsh_peak_int8_amx(size_t rounds);
double walsh_peak_bf16_amx(size_t rounds);
float walsh_peak_read_avx2(const float *x, size_t n);
float walsh_peak_read_avx512(const float *x, size_t n);
#endif

#endif
