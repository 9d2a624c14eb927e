/* base/float_mode: the thread's control of floating-point arithmetic: rounding to nearest even, subnormals kept, no traps. The
 * bits of results depend on it, and not every thread that calls has it: libraries that were linked with -ffast-math flush subnormals
 * in the thread that loads them (NVIDIA's driver does), and a thread inherits the mode of the one that started it. */
#ifndef WALSH_BASE_FLOAT_MODE_H
#define WALSH_BASE_FLOAT_MODE_H

#include <stdint.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
#define WALSH_FLOAT_FLAGS 0x3fu /* MXCSR: what has happened so far */
#define WALSH_FLOAT_PLAIN 0x1f80u

static inline uint64_t walsh_float_mode(void)
{
    return _mm_getcsr();
}

static inline void walsh_float_mode_set(uint64_t mode)
{
    _mm_setcsr((unsigned)mode);
}
#elif defined(__aarch64__)
#define WALSH_FLOAT_FLAGS 0u /* they are in FPSR */
#define WALSH_FLOAT_PLAIN 0u

static inline uint64_t walsh_float_mode(void)
{
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
}

static inline void walsh_float_mode_set(uint64_t mode)
{
    __asm__ volatile("msr fpcr, %0" : : "r"(mode));
}
#else /* not known here: threads keep the mode that they have */
#define WALSH_FLOAT_FLAGS 0u
#define WALSH_FLOAT_PLAIN 0u

static inline uint64_t walsh_float_mode(void)
{
    return WALSH_FLOAT_PLAIN;
}

static inline void walsh_float_mode_set(uint64_t mode)
{
    (void)mode;
}
#endif

/* Sets what the bits of results are defined with; returns what there was, for walsh_float_mode_restore. A few cycles where it is
 * set already. */
static inline uint64_t walsh_float_mode_plain(void)
{
    const uint64_t before = walsh_float_mode();
    if ((before & ~(uint64_t)WALSH_FLOAT_FLAGS) != WALSH_FLOAT_PLAIN) walsh_float_mode_set(WALSH_FLOAT_PLAIN);
    return before;
}

static inline void walsh_float_mode_restore(uint64_t before)
{
    if ((before & ~(uint64_t)WALSH_FLOAT_FLAGS) != WALSH_FLOAT_PLAIN) walsh_float_mode_set(before);
}

#endif
