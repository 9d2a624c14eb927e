/* Contexts: the pool and the kernel table. */
#include <string.h>

#include "api/api.h"

#define MAX_THREADS 1024

const char *walsh_version(void)
{
    return WALSH_VERSION;
}

static enum walsh_status find_level(const char *name, enum walsh_cpu_level *level, struct walsh_error *err)
{
    static const struct {
        const char *name;
        enum walsh_cpu_level level;
    } levels[] = {{"best", WALSH_CPU_BEST},
                  {"reference", WALSH_CPU_REFERENCE},
                  {"avx2", WALSH_CPU_AVX2},
                  {"avx512", WALSH_CPU_AVX512},
                  {"amx", WALSH_CPU_AMX}};
    *level = WALSH_CPU_BEST;
    if (!name) return WALSH_OK;
    for (size_t i = 0; i < sizeof levels / sizeof *levels; i++) {
        if (strcmp(name, levels[i].name) != 0) continue;
        *level = levels[i].level;
        return WALSH_OK;
    }
    return walsh_fail(err, WALSH_E_ARGUMENT, "cpu is \"%s\", expected best, reference, avx2, avx512 or amx",
                      name);
}

static enum walsh_status open_members(struct walsh_context *context, const struct walsh_context_options *o,
                                      struct walsh_error *err)
{
    enum walsh_cpu_level level;
    WALSH_TRY(find_level(o->cpu, &level, err));
    if (o->device && strcmp(o->device, "cpu") != 0)
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "device is \"%s\"; this build knows: cpu", o->device);
    if (o->threads > MAX_THREADS)
        return walsh_fail(err, WALSH_E_ARGUMENT, "threads is %u, expected at most %d", o->threads,
                          MAX_THREADS);
    context->hooks = o->hooks;
    WALSH_TRY(walsh_pool_open(o->threads ? o->threads : walsh_cpu_count(), &context->pool, err));
    return walsh_queue_open(level, context->pool, &context->queue, err);
}

enum walsh_status walsh_context_open(const struct walsh_context_options *options, struct walsh_context **out,
                                     struct walsh_error *err)
{
    *out = NULL;
    struct walsh_context_options o = WALSH_CONTEXT_OPTIONS;
    WALSH_TRY(walsh_options_read(&o, sizeof o, options, "walsh_context_options", err));
    struct walsh_context *context;
    WALSH_TRY(walsh_alloc_zero(1, sizeof *context, "a context", &context, err));
    enum walsh_status status = open_members(context, &o, err);
    if (status != WALSH_OK) {
        walsh_context_close(&context);
        return status;
    }
    *out = context;
    return WALSH_OK;
}

void walsh_context_close(struct walsh_context **context)
{
    if (!context || !*context) return;
    walsh_queue_close(&(*context)->queue);
    walsh_pool_close(&(*context)->pool);
    walsh_free(*context);
    *context = NULL;
}

unsigned walsh_context_threads(const struct walsh_context *context)
{
    return walsh_pool_threads(context->pool);
}

const char *walsh_context_cpu_features(const struct walsh_context *context)
{
    (void)context; /* of the machine; a device's context would name its own */
    return walsh_cpu_features();
}

bool walsh_context_kernel(const struct walsh_context *context, size_t i, const char **kernel,
                          const char **implementation)
{
    return walsh_queue_kernel(&context->queue, i, kernel, implementation);
}
