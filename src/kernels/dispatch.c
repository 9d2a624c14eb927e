/* Which instruction sets the machine has, and the table that follows from them. */
#include <string.h>
#include <threads.h>

#include "kernels/table.h"

#if WALSH_X86
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

struct features {
    unsigned isa;
    char text[256];
};

struct cpuid {
    unsigned eax, ebx, ecx, edx;
};

static struct cpuid cpuid(unsigned leaf, unsigned subleaf)
{
    struct cpuid r = {0, 0, 0, 0};
    if (__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx) == 0)
        return (struct cpuid){0, 0, 0, 0};
    return r;
}

/* XCR0: the register state that the operating system saves. Only where CPUID.1:ECX.OSXSAVE is set. */
static unsigned xcr0(void)
{
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static bool has(unsigned word, unsigned bit)
{
    return (word >> bit) & 1u;
}

/* Append " name" to f's text where `present`; returns `present`. */
static bool note(struct features *f, const char *name, bool present)
{
    size_t used = strlen(f->text), length = strlen(name);
    if (present && used + length + 2 <= sizeof f->text) {
        if (used != 0) f->text[used++] = ' ';
        memcpy(f->text + used, name, length + 1);
    }
    return present;
}

/* Ask for the tiles' state, which Linux gives to a process on request, for all its threads. */
static bool permit_tiles(void)
{
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
#ifdef SYS_arch_prctl
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    return false;
#endif
}

static void detect(struct features *f)
{
    struct cpuid one = cpuid(1, 0), seven = cpuid(7, 0), seven1 = cpuid(7, 1);
    unsigned saved = has(one.ecx, 27) ? xcr0() : 0;
    bool ymm = (saved & 0x6u) == 0x6u;           /* SSE and AVX state */
    bool zmm = ymm && (saved & 0xe0u) == 0xe0u;  /* opmask, upper halves, upper registers */
    bool tiles = (saved & 0x60000u) == 0x60000u; /* AMX configuration and data */

    bool avx2 = note(f, "avx2", ymm && has(seven.ebx, 5));
    bool fma = note(f, "fma", ymm && has(one.ecx, 12));
    bool f16c = note(f, "f16c", ymm && has(one.ecx, 29));
    bool bmi2 = note(f, "bmi2", has(seven.ebx, 8));
    bool f512 = note(f, "avx512f", zmm && has(seven.ebx, 16));
    bool bw = note(f, "avx512bw", zmm && has(seven.ebx, 30));
    bool dq = note(f, "avx512dq", zmm && has(seven.ebx, 17));
    bool vl = note(f, "avx512vl", zmm && has(seven.ebx, 31));
    bool vnni = note(f, "avx512vnni", zmm && has(seven.ecx, 11));
    bool vbmi = note(f, "avx512vbmi", zmm && has(seven.ecx, 1));
    bool gfni = note(f, "gfni", ymm && has(seven.ecx, 8));
    bool bf16 = note(f, "avx512bf16", zmm && has(seven1.eax, 5));
    bool amx = note(f, "amx-tile", tiles && has(seven.edx, 24));
    bool amx_int8 = note(f, "amx-int8", tiles && has(seven.edx, 25));
    bool amx_bf16 = note(f, "amx-bf16", tiles && has(seven.edx, 22));

    if (avx2 && fma && f16c && bmi2) f->isa |= WALSH_ISA_avx2;
    if ((f->isa & WALSH_ISA_avx2) && f512 && bw && dq && vl) f->isa |= WALSH_ISA_avx512;
    if ((f->isa & WALSH_ISA_avx512) && vnni && vbmi && gfni) f->isa |= WALSH_ISA_vnni;
    if ((f->isa & WALSH_ISA_avx512) && bf16) f->isa |= WALSH_ISA_bf16;
    if ((f->isa & WALSH_ISA_vnni) && (f->isa & WALSH_ISA_bf16) && amx && amx_int8 && amx_bf16 &&
        permit_tiles())
        f->isa |= WALSH_ISA_amx;
}

/* Constant once detected. */
static struct features machine;
static once_flag machine_once = ONCE_FLAG_INIT;
static void detect_machine(void)
{
    detect(&machine);
}

unsigned walsh_cpu_isa(void)
{
    call_once(&machine_once, detect_machine);
    return machine.isa;
}

const char *walsh_cpu_features(void)
{
    call_once(&machine_once, detect_machine);
    return machine.text;
}

#else
unsigned walsh_cpu_isa(void)
{
    return 0;
}
const char *walsh_cpu_features(void)
{
    return "";
}
#endif

const char *walsh_kernel_name(size_t id)
{
    static const char *const names[WALSH_KERNEL_COUNT + 1] = {
#define WALSH_KERNEL(name, result, parameters, comparison) #name,
#define WALSH_IMPL(name, isa)
#include "kernels/kernels.def"
        NULL};
    return id < WALSH_KERNEL_COUNT ? names[id] : NULL;
}

void walsh_kernels_select(unsigned mask, struct walsh_kernels *out)
{
    memset(out, 0, sizeof *out);
    out->isa = mask;
#define WALSH_KERNEL(name, result, parameters, comparison)
#define WALSH_IMPL(kernel, set)                                                                              \
    if ((WALSH_ISA_##set & ~mask) == 0) {                                                                    \
        out->kernel = walsh_##kernel##_##set;                                                                \
        out->chosen[WALSH_KERNEL_ID_##kernel] = #set;                                                        \
    }
#include "kernels/kernels.def"
}
