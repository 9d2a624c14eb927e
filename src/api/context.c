/* Contexts: the pool and the kernel table. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/api.h"

#define MAX_THREADS 1024
#define MAX_DEVICES 1024

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

/* "cuda" or "cuda:N" */
static bool device_number(const char *name, unsigned *number)
{
    *number = 0;
    if (strncmp(name, "cuda", 4) != 0) return false;
    if (name[4] == 0) return true;
    if (name[4] != ':' || name[5] < '0' || name[5] > '9') return false;
    char *end;
    const unsigned long n = strtoul(name + 5, &end, 10);
    *number = (unsigned)n;
    return *end == 0 && n < MAX_DEVICES;
}

static enum walsh_status open_device(struct walsh_context *context, const char *name, struct walsh_error *err)
{
    unsigned number;
    if (!name || strcmp(name, "cpu") == 0) return WALSH_OK;
    if (!device_number(name, &number))
        return walsh_fail(err, WALSH_E_ARGUMENT, "device is \"%.100s\", expected cpu, cuda or cuda:N", name);
    const struct walsh_device_module *module;
    enum walsh_status status = walsh_device_load(NULL, &module, err);
    if (status == WALSH_OK) status = module->open(number, NULL, &context->queue, err);
    if (status != WALSH_OK) return walsh_fail_within(err, status, "device %s", name);
    context->module = module;
    context->device_number = number;
    return WALSH_OK;
}

static enum walsh_status open_members(struct walsh_context *context, const struct walsh_context_options *o,
                                      struct walsh_error *err)
{
    enum walsh_cpu_level level;
    WALSH_TRY(find_level(o->cpu, &level, err));
    if (o->threads > MAX_THREADS)
        return walsh_fail(err, WALSH_E_ARGUMENT, "threads is %u, expected at most %d", o->threads,
                          MAX_THREADS);
    context->hooks = o->hooks;
    WALSH_TRY(walsh_pool_open(o->threads ? o->threads : walsh_cpu_count(), &context->pool, err));
    WALSH_TRY(walsh_queue_open(level, context->pool, &context->queue, err));
    return open_device(context, o->device, err);
}

enum walsh_status walsh_context_open(const struct walsh_context_options *options, struct walsh_context **out,
                                     struct walsh_error *err)
{
    *out = NULL;
    struct walsh_context_options o = WALSH_CONTEXT_OPTIONS;
    WALSH_TRY(walsh_options_read(&o, sizeof o, options, "walsh_context_options", err));
    struct walsh_context *context;
    WALSH_TRY(walsh_alloc_zero(1, sizeof *context, "a context", &context, err));
    pthread_mutex_init(&context->ops_lock, NULL); /* of the default kind, which cannot fail */
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
    if ((*context)->module) (*context)->module->close(&(*context)->queue);
    walsh_queue_close(&(*context)->queue);
    walsh_pool_close(&(*context)->pool);
    pthread_mutex_destroy(&(*context)->ops_lock);
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

bool walsh_device_find(size_t i, struct walsh_device *out)
{
    const struct walsh_device_module *module;
    struct walsh_device_info info;
    struct walsh_error err;
    unsigned count = 0;
    memset(out, 0, sizeof *out);
    if (i > MAX_DEVICES) return false;
    snprintf(out->device, sizeof out->device, "cuda:%u", (unsigned)i);
    if (walsh_device_load(NULL, &module, &err) == WALSH_OK) count = module->count(&err);
    if (count > 0 && i >= count) return false;
    if (count > 0 && module->describe((unsigned)i, &info, &err) == WALSH_OK) {
        out->usable = true;
        snprintf(out->name, sizeof out->name, "%s", info.name);
        snprintf(out->detail, sizeof out->detail, "%s", info.capability);
        return true;
    }
    if (count == 0 && i > 0) return false;
    if (count == 0) snprintf(out->device, sizeof out->device, "cuda");
    snprintf(out->detail, sizeof out->detail, "%s", err.message);
    return true;
}

enum walsh_status walsh_context_needs_cpu(const struct walsh_context *context, const char *what,
                                          struct walsh_error *err)
{
    if (!context->module) return WALSH_OK;
    return walsh_fail(err, WALSH_E_UNSUPPORTED, "%s runs on the CPU only; its context has another device",
                      what);
}
