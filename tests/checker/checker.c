/* The checker's frame: buffers with guards, comparisons, the walk over kernels.def and over the cases of
 * whole ops. */
#include "checker.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/memory.h"
#include "base/scalar.h"
#include "staged.h"

#if defined(__SANITIZE_ADDRESS__)
#define ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ADDRESS_SANITIZER 1
#endif
#endif
#if ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

#define GUARD_BYTES 256
#define GUARD 0x5A
#define POISON 0xA5
#define REPORTS 5 /* failures of one case that are printed */

struct check_buffer {
    struct check_buffer *next;
    uint8_t *block, *data;
    size_t total, bytes;
    bool compared; /* between two runs */
};

static void *alloc(struct check *c, size_t bytes, size_t misalign, bool compared)
{
    struct check_buffer *b = malloc(sizeof *b);
    size_t total = GUARD_BYTES + misalign + bytes + GUARD_BYTES;
    uint8_t *block = NULL;
    if (b == NULL || walsh_alloc(total, 1, "a checker's buffer", &block, NULL) != WALSH_OK) {
        fprintf(stderr, "checker: out of memory (%zu bytes)\n", total);
        exit(1);
    }
    *b = (struct check_buffer){c->buffers, block, block + GUARD_BYTES + misalign, total, bytes, compared};
    c->buffers = b;
    memset(block, GUARD, total);
    memset(b->data, POISON, bytes);
    ASAN_POISON_MEMORY_REGION(b->data + bytes, GUARD_BYTES);
    return b->data;
}

void *check_alloc(struct check *c, size_t bytes, size_t misalign)
{
    return alloc(c, bytes, misalign, true);
}

void *check_alloc_private(struct check *c, size_t bytes)
{
    return alloc(c, bytes, 0, false);
}

static bool is_guard(const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (p[i] != GUARD) return false;
    return true;
}

/* Check the guards of all buffers and free them; returns a hash of their contents. */
static uint64_t release(struct check *c)
{
    uint64_t hash = 0;
    while (c->buffers != NULL) {
        struct check_buffer *b = c->buffers;
        uint8_t *end = b->data + b->bytes;
        ASAN_UNPOISON_MEMORY_REGION(end, GUARD_BYTES);
        if (!is_guard(b->block, (size_t)(b->data - b->block)))
            check_fail(c, "a write before a buffer of %zu bytes", b->bytes);
        if (!is_guard(end, GUARD_BYTES)) check_fail(c, "a write behind a buffer of %zu bytes", b->bytes);
        for (size_t i = 0; i < b->bytes && b->compared; i++) hash = (hash ^ b->data[i]) * 0x100000001b3u;
        c->buffers = b->next;
        walsh_free(b->block);
        free(b);
    }
    return hash;
}

size_t check_below(struct check *c, size_t n)
{
    return (size_t)(walsh_random_u64(&c->random) % n);
}

size_t check_misalign(struct check *c, size_t element)
{
    return c->round % 2 == 0 ? 0 : check_below(c, 64 / element) * element;
}

/* The sum of four 16-bit uniforms, with a fraction: cheap, and all 24 bits of the significand are in use. */
float check_normal(struct check *c)
{
    uint64_t u = walsh_random_u64(&c->random);
    double sum = (double)((u & 0xffff) + (u >> 16 & 0xffff) + (u >> 32 & 0xffff) + (u >> 48));
    return (float)((sum + (double)(u % 1000003) * 1e-6 - 131070.5) * (1.0 / 37837.0));
}

void check_fill_normal(struct check *c, float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) x[i] = check_normal(c);
}

void check_fill_special(struct check *c, float *x, size_t n)
{
    static const float special[] = {NAN,   INFINITY, -INFINITY, 1e-41f,   -1e-38f,
                                    3e38f, -0.0f,    65519.0f,  -65504.0f};
    check_fill_normal(c, x, n);
    if (c->round != CHECK_ROUNDS - 1) return;
    for (size_t i = 0; i < n / 7 + 1 && n > 0; i++)
        x[check_below(c, n)] = special[check_below(c, sizeof special / sizeof special[0])];
}

bool check_part(struct check *c)
{
    return c->parts == 0 || c->seen++ % c->parts == c->part;
}

void check_fail(struct check *c, const char *format, ...)
{
    if (c->failures++ >= REPORTS) return;
    va_list arguments;
    va_start(arguments, format);
    printf("FAIL %s %s (--seed %llu, round %u): ", c->kernel, c->implementation, (unsigned long long)c->seed,
           c->round);
    vprintf(format, arguments);
    printf("\n");
    va_end(arguments);
}

void check_exact_f32(struct check *c, const char *what, const float *expected, const float *got, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t e, g;
        memcpy(&e, expected + i, sizeof e);
        memcpy(&g, got + i, sizeof g);
        if (e == g || (isnan(expected[i]) && isnan(got[i]))) continue;
        check_fail(c, "%s[%zu of %zu] is %.9g (%08x), expected %.9g (%08x)", what, i, n, (double)got[i], g,
                   (double)expected[i], e);
        return;
    }
}

void check_exact_f16(struct check *c, const char *what, const uint16_t *expected, const uint16_t *got,
                     size_t n)
{
    for (size_t i = 0; i < n; i++) {
        bool nan = (expected[i] & 0x7fffu) > 0x7c00u && (got[i] & 0x7fffu) > 0x7c00u;
        if (expected[i] == got[i] || nan) continue;
        check_fail(c, "%s[%zu of %zu] is %04x, expected %04x", what, i, n, got[i], expected[i]);
        return;
    }
}

void check_exact_bytes(struct check *c, const char *what, const void *expected, const void *got, size_t bytes)
{
    const uint8_t *e = expected, *g = got;
    for (size_t i = 0; i < bytes; i++)
        if (e[i] != g[i]) {
            check_fail(c, "byte %zu of %zu of %s is %02x, expected %02x", i, bytes, what, g[i], e[i]);
            return;
        }
}

void check_close_f32(struct check *c, const char *what, const float *expected, const float *got,
                     const float *magnitude, size_t n, double factor)
{
    for (size_t i = 0; i < n; i++) {
        double e = (double)expected[i], g = (double)got[i], unit = 0x1p-23 * (double)magnitude[i] + 1e-37;
        if (isnan(e) || isnan(g) || isinf(e) || isinf(g)) {
            if ((isnan(e) && isnan(g)) || e == g) continue;
        } else {
            double ratio = fabs(g - e) / unit;
            if (ratio > c->worst) c->worst = ratio;
            if (ratio <= factor) continue;
        }
        check_fail(c, "%s[%zu of %zu] is %.9g, expected %.9g: %.3g units of 2^-23 * %.3g, admitted %.3g",
                   what, i, n, g, e, fabs(g - e) / unit, (double)magnitude[i], factor);
        return;
    }
}

/* --- the walk --- */

struct options {
    uint64_t seed;
    const char *pattern, *module; /* module: of a device, where it is not beside the program */
    bool verbose, device_only, kernels_only, once; /* once: no second run of a round */
    int round;                                     /* -1: all */
    unsigned part, parts;                          /* parts 0: all */
};

struct totals {
    unsigned passed, failed, skipped;
};

static uint64_t name_hash(const char *name)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (; *name != 0; name++) h = (h ^ (uint8_t)*name) * 0x100000001b3u;
    return h;
}

/* WALSH_REQUIRE=avx2,avx512,vnni,bf16: what must not be skipped. */
/* The instruction sets to check; CHECKER_AMX_EMULATED: this program's AMX kernels need no AMX, and it checks no others, for
 * which there is walsh_checker. */
static unsigned machine_isa(void)
{
    unsigned isa = walsh_cpu_isa();
#ifdef CHECKER_AMX_EMULATED
    if (isa & WALSH_ISA_vnni) isa |= WALSH_ISA_amx;
#endif
    return isa;
}

static bool left_out(unsigned isa)
{
#ifdef CHECKER_AMX_EMULATED
    return isa != WALSH_ISA_amx;
#else
    (void)isa;
    return false;
#endif
}

static bool required(const char *isa)
{
    const char *list = getenv("WALSH_REQUIRE");
    size_t length = strlen(isa);
    for (const char *at = list; at != NULL && (at = strstr(at, isa)) != NULL; at += length)
        if ((at == list || at[-1] == ',') && (at[length] == 0 || at[length] == ',')) return true;
    return false;
}

/* A case bound to its functions, so that the walk below is one function for all. */
typedef void bound_case(struct check *c, const void *context);

static void run_case(const struct options *o, struct totals *t, const char *kernel,
                     const char *implementation, bound_case *run, const void *context)
{
    struct check c = {.kernel = kernel,
                      .implementation = implementation,
                      .seed = o->seed,
                      .part = o->part,
                      .parts = o->parts};
    for (c.round = 0; c.round < CHECK_ROUNDS; c.round++) {
        uint64_t hash[2];
        if (o->round >= 0 && c.round != (unsigned)o->round) continue;
        for (unsigned repeat = 0; repeat < 2; repeat++) {
            if (repeat == 1 && o->once) {
                hash[1] = hash[0];
                break;
            }
            c.seen = 0;
            walsh_random_seed(&c.random, walsh_mix64(o->seed + c.round) ^ name_hash(kernel));
            run(&c, context);
            hash[repeat] = release(&c);
        }
        if (hash[0] != hash[1]) check_fail(&c, "two runs on the same data differ");
    }
    if (o->verbose || c.failures > 0)
        printf("%s %s %s%s", c.failures == 0 ? "ok  " : "FAIL", kernel, implementation,
               c.worst > 0 ? "" : "\n");
    if ((o->verbose || c.failures > 0) && c.worst > 0) printf(" (worst %.3g units)\n", c.worst);
    if (c.failures == 0)
        t->passed++;
    else
        t->failed++;
}

static void skip_case(const struct options *o, struct totals *t, const char *kernel, const char *isa)
{
    if (required(isa)) {
        printf("FAIL %s %s: this machine lacks it and WALSH_REQUIRE names it\n", kernel, isa);
        t->failed++;
        return;
    }
    if (o->verbose) printf("skip %s %s: not on this machine\n", kernel, isa);
    t->skipped++;
}

/* For each kernel the pair of functions under check, and its case as a bound_case. */
#define WALSH_KERNEL(name, result, parameters, comparison)                                                   \
    struct pair_##name {                                                                                     \
        walsh_kernel_##name *reference, *candidate;                                                          \
    };                                                                                                       \
    static void run_##name(struct check *c, const void *context)                                             \
    {                                                                                                        \
        const struct pair_##name *pair = context;                                                            \
        check_##name(c, pair->reference, pair->candidate);                                                   \
    }
#define WALSH_IMPL(name, isa)
#include "kernels/kernels.def"

static void check_kernels(const struct options *o, struct totals *t)
{
    unsigned have = machine_isa();
#define WALSH_KERNEL(name, result, parameters, comparison)
#define WALSH_IMPL(kernel, set)                                                                              \
    if (!left_out(WALSH_ISA_##set) && (o->pattern == NULL || strstr(#kernel, o->pattern) != NULL)) {         \
        struct pair_##kernel pair = {walsh_##kernel##_reference, walsh_##kernel##_##set};                    \
        if ((WALSH_ISA_##set & ~have) == 0)                                                                  \
            run_case(o, t, #kernel, #set, run_##kernel, &pair);                                              \
        else                                                                                                 \
            skip_case(o, t, #kernel, #set);                                                                  \
    }
#include "kernels/kernels.def"
}

static const struct {
    const char *name;
    check_op *run;
} ops[] = {
#define CHECK_OP(name) {"op_" #name, check_op_##name},
#include "ops.def"
};

struct bound_op {
    check_op *run;
    const struct check_queues *queues;
};

static void run_op(struct check *c, const void *context)
{
    const struct bound_op *op = context;
    op->run(c, op->queues);
}

static void run_ops(const struct options *o, struct totals *t, const char *implementation,
                    const struct check_queues *queues)
{
    for (size_t i = 0; i < sizeof ops / sizeof ops[0]; i++) {
        struct bound_op op = {ops[i].run, queues};
        if (o->pattern == NULL || strstr(ops[i].name, o->pattern) != NULL)
            run_case(o, t, ops[i].name, implementation, run_op, &op);
    }
}

/* The ops of the first device against the reference: the cases that compare pools compare runs here. */
static void check_device_ops(const struct options *o, struct totals *t, const struct check_queues *cpu)
{
    const struct walsh_device_module *module;
    struct walsh_error err;
    if (walsh_device_load(o->module, &module, &err) != WALSH_OK || module->count(&err) == 0) {
        printf("%s cuda: %s\n", required("cuda") ? "FAIL" : "skip", err.message);
        *(required("cuda") ? &t->failed : &t->skipped) += 1;
        return;
    }
    struct staged device;
    struct check_queues queues = *cpu;
    staged_open(&device, module, 0, &cpu->best[0], &queues.best[0]);
    queues.best[1] = queues.best[2] = queues.best[0];
    run_ops(o, t, "cuda", &queues);
    if (device.overrun) t->failed++;
    staged_close(&device, module);
}

static bool check_ops(const struct options *o, struct totals *t)
{
    struct check_queues queues;
    struct walsh_pool *pools[3];
    struct walsh_error err;
    if (walsh_queue_open(WALSH_CPU_REFERENCE, NULL, &queues.reference, &err) != WALSH_OK) goto failed;
    for (unsigned i = 0; i < 3; i++)
        if (walsh_pool_open(i + 1, &pools[i], &err) != WALSH_OK ||
            walsh_queue_open(WALSH_CPU_BEST, pools[i], &queues.best[i], &err) != WALSH_OK)
            goto failed;
#ifdef CHECKER_AMX_EMULATED
    for (unsigned i = 0; i < 3; i++) /* a queue has allocated its table */
        walsh_kernels_select(machine_isa(), (struct walsh_kernels *)(uintptr_t)queues.best[i].kernels);
#endif
    if (!o->device_only) run_ops(o, t, "best", &queues);
    check_device_ops(o, t, &queues);
    walsh_queue_close(&queues.reference);
    for (unsigned i = 0; i < 3; i++) {
        walsh_queue_close(&queues.best[i]);
        walsh_pool_close(&pools[i]);
    }
    return true;
failed:
    printf("FAIL %s\n", err.message);
    return false;
}

/* What a required set without any kernel would hide. */
static void check_required_sets(struct totals *t)
{
    static const struct {
        const char *name;
        unsigned bit;
    } sets[] = {{"avx2", WALSH_ISA_avx2},
                {"avx512", WALSH_ISA_avx512},
                {"vnni", WALSH_ISA_vnni},
                {"bf16", WALSH_ISA_bf16},
                {"amx", WALSH_ISA_amx}};
    for (size_t i = 0; i < sizeof sets / sizeof sets[0]; i++)
        if (required(sets[i].name) && (machine_isa() & sets[i].bit) == 0) {
            printf("FAIL WALSH_REQUIRE names %s: not on this machine or not in this build\n", sets[i].name);
            t->failed++;
        }
}

int main(int argc, char **argv)
{
    struct options o = {.seed = (uint64_t)time(NULL), .round = -1};
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--verbose") == 0) {
            o.verbose = true;
        } else if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc) {
            o.seed = strtoull(argv[++i], NULL, 10);
        } else if (strcmp(argv[i], "--device-only") == 0) {
            o.device_only = true;
        } else if (strcmp(argv[i], "--kernels-only") == 0) {
            o.kernels_only = true;
        } else if (strcmp(argv[i], "--module") == 0 && i + 1 < argc) {
            o.module = argv[++i];
        } else if (strcmp(argv[i], "--kernel") == 0 && i + 1 < argc) {
            o.pattern = argv[++i];
        } else if (strcmp(argv[i], "--round") == 0 && i + 1 < argc) {
            o.round = atoi(argv[++i]);
        } else if (strcmp(argv[i], "--part") == 0 && i + 1 < argc &&
                   sscanf(argv[i + 1], "%u/%u", &o.part, &o.parts) == 2 && o.part < o.parts) {
            i++;
        } else if (strcmp(argv[i], "--once") == 0) {
            o.once = true;
        } else {
            fprintf(
                stderr,
                "usage: walsh_checker [--seed N] [--kernel PATTERN] [--verbose]\n"
                "                     [--module FILE] [--device-only] [--kernels-only]\n"
                "                     [--round N: this one of the cases' rounds] [--once: no second run]\n"
                "                     [--part N/M: of a case's pieces every Mth, from N on]\n");
            return 2;
        }
    }
    printf("seed %llu, machine: %s\n", (unsigned long long)o.seed, walsh_cpu_features());
    struct totals t = {0, 0, 0};
    check_required_sets(&t);
    if (!o.device_only) check_kernels(&o, &t);
    bool opened = o.kernels_only || check_ops(&o, &t);
    printf("%u passed, %u failed, %u skipped\n", t.passed, t.failed, t.skipped);
#ifdef CHECKER_AMX_EMULATED
    if (t.passed + t.failed == 0 && t.skipped > 0) {
        printf(
            "nothing was checked: the emulated AMX kernels need AVX-512, which this machine does not have\n");
        return 77;
    }
#endif
    if (t.passed == 0) printf("FAIL nothing was checked\n");
    return opened && t.failed == 0 && t.passed > 0 ? 0 : 1;
}
