/* Queues: a table of microkernels, the pool that they run on and its scratch. */
#include <string.h>

#include "base/memory.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/table.h"

static const char *const level_name[] = {"reference", "avx2", "avx512", "amx", "best"};

/* The mask of implementations that `level` admits on this machine; false where the machine lacks the level
 * itself. */
static bool level_mask(enum walsh_cpu_level level, unsigned *mask)
{
    unsigned have = walsh_cpu_isa();
    switch (level) {
    case WALSH_CPU_REFERENCE:
        *mask = 0;
        return true;
    case WALSH_CPU_AVX2:
        *mask = have & WALSH_ISA_avx2;
        return *mask != 0;
    case WALSH_CPU_AVX512:
        *mask = have & ~(unsigned)WALSH_ISA_amx;
        return (have & WALSH_ISA_avx512) != 0;
    case WALSH_CPU_AMX:
        *mask = have;
        return (have & WALSH_ISA_amx) != 0;
    case WALSH_CPU_BEST:
        *mask = have;
        return true;
    }
    return false;
}

enum walsh_status walsh_queue_open(enum walsh_cpu_level level, struct walsh_pool *pool,
                                   struct walsh_queue *out, struct walsh_error *err)
{
    memset(out, 0, sizeof *out);
    unsigned mask = 0;
    if ((unsigned)level > WALSH_CPU_BEST)
        return walsh_fail(err, WALSH_E_ARGUMENT, "CPU level %u: expected 0..%u", (unsigned)level,
                          WALSH_CPU_BEST);
    if (!level_mask(level, &mask))
        return walsh_fail(err, WALSH_E_UNSUPPORTED,
                          "CPU level %s: this machine has kernels for %s (it has: %s)", level_name[level],
                          walsh_cpu_isa() & WALSH_ISA_amx      ? "reference, avx2, avx512, amx"
                          : walsh_cpu_isa() & WALSH_ISA_avx512 ? "reference, avx2, avx512"
                          : walsh_cpu_isa() & WALSH_ISA_avx2   ? "reference, avx2"
                                                               : "reference",
                          walsh_cpu_features());

    /* One block: the table, the pointers, the workers' scratch. */
    size_t threads = walsh_pool_threads(pool);
    size_t table = walsh_round_up(sizeof(struct walsh_kernels), WALSH_ALIGNMENT);
    size_t pointers = walsh_round_up(threads * sizeof(uint8_t *), WALSH_ALIGNMENT);
    size_t bytes;
    if (!walsh_mul(threads, WALSH_SCRATCH_BYTES, &bytes) || !walsh_add(bytes, table + pointers, &bytes))
        return walsh_fail(err, WALSH_E_MEMORY, "scratch of %zu threads: too many", threads);
    uint8_t *block;
    WALSH_TRY(walsh_alloc(bytes, 1, "the queue's scratch", &block, err));
    struct walsh_kernels *kernels = (struct walsh_kernels *)(void *)block;
    walsh_kernels_select(mask, kernels);
    out->ops = &walsh_cpu_ops;
    out->kernels = kernels;
    out->pool = pool;
    out->scratch = (uint8_t **)(void *)(block + table);
    out->scratch_bytes = WALSH_SCRATCH_BYTES;
    for (size_t i = 0; i < threads; i++) out->scratch[i] = block + table + pointers + i * WALSH_SCRATCH_BYTES;
    return WALSH_OK;
}

void walsh_queue_close(struct walsh_queue *q)
{
    if (q == NULL) return;
    walsh_free((void *)(uintptr_t)q->kernels); /* the block's first part; const only for its users */
    memset(q, 0, sizeof *q);
}

bool walsh_queue_kernel(const struct walsh_queue *q, size_t i, const char **kernel,
                        const char **implementation)
{
    if (i >= WALSH_KERNEL_COUNT) return false;
    *kernel = walsh_kernel_name(i);
    *implementation = q->kernels->chosen[i];
    return true;
}

struct walsh_queue walsh_queue_host(const struct walsh_queue *q)
{
    struct walsh_queue host = *q;
    host.ops = &walsh_cpu_ops;
    host.memory = NULL;
    host.device = NULL;
    return host;
}

bool walsh_queue_has_bf16(const struct walsh_queue *q)
{
    return q->memory || (q->kernels->isa & WALSH_ISA_bf16) != 0; /* every device has them */
}

bool walsh_queue_tiles(const struct walsh_queue *q, enum walsh_activation_type type, size_t cols,
                       enum walsh_role role)
{
    if (role != WALSH_PREFILL || !walsh_queue_has_bf16_tiles(q)) return false;
    return type == WALSH_ACTIVATION_INT8 ||
           (type == WALSH_ACTIVATION_BF16 && cols <= WALSH_TILED_MAX_BF16_COLUMNS);
}

bool walsh_queue_has_bf16_tiles(const struct walsh_queue *q)
{
    return q->memory == NULL && (q->kernels->isa & WALSH_ISA_amx) != 0;
}
