/* What test_api_ops_device.c runs on: the calls of CUDA's driver that a caller of the library makes, and a device that is
 * none. Include after cmocka.h. */
#ifndef WALSH_TESTS_OPS_DEVICE_H
#define WALSH_TESTS_OPS_DEVICE_H

#include <dlfcn.h>

#include "api/api.h"
#include "base/memory.h"
#include "unit/ops_data.h"

/* ---------------------------------------------------------------------------------------- CUDA's driver */

/* What a caller of the library would do through cuda.h; the driver is looked for at run time. */
#define DRIVER(X)                                                                                            \
    X(cuInit, (unsigned))                                                                                    \
    X(cuDeviceGet, (int *, int))                                                                             \
    X(cuDevicePrimaryCtxRetain, (void **, int))                                                              \
    X(cuCtxSetCurrent, (void *))                                                                             \
    X(cuMemAlloc_v2, (uint64_t *, size_t))                                                                   \
    X(cuMemFree_v2, (uint64_t))                                                                              \
    X(cuMemcpyHtoD_v2, (uint64_t, const void *, size_t))                                                     \
    X(cuMemcpyDtoH_v2, (void *, uint64_t, size_t))                                                           \
    X(cuStreamCreate, (void **, unsigned))                                                                   \
    X(cuStreamDestroy_v2, (void *))                                                                          \
    X(cuStreamSynchronize, (void *))                                                                         \
    X(cuStreamBeginCapture_v2, (void *, int))                                                                \
    X(cuStreamEndCapture, (void *, void **))                                                                 \
    X(cuGraphInstantiateWithFlags, (void **, void *, unsigned long long))                                    \
    X(cuGraphLaunch, (void *, void *))                                                                       \
    X(cuGraphExecDestroy, (void *))                                                                          \
    X(cuGraphDestroy, (void *))
#define DECLARE(name, parameters) int(*name) parameters;
static struct {
    DRIVER(DECLARE)
} driver;
#define CUDA(call)                                                                                           \
    do {                                                                                                     \
        const int cuda_code = driver.call;                                                                   \
        if (cuda_code != 0) fail_msg("%s: CUDA error %d", #call, cuda_code);                                 \
    } while (0)

static bool find_driver(void)
{
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) return false;
#define FIND(name, parameters)                                                                               \
    {                                                                                                        \
        void *symbol = dlsym(library, #name);                                                                \
        if (!symbol) return false;                                                                           \
        memcpy(&driver.name, &symbol, sizeof symbol);                                                        \
    }
    DRIVER(FIND)
    int device;
    return driver.cuInit(0) == 0 && driver.cuDeviceGet(&device, 0) == 0;
}

/* ---------------------------------------------------------------------------------------- a device that is none */

static enum walsh_status none_alloc(const struct walsh_queue *q, size_t bytes, const char *what, void *out,
                                    struct walsh_error *e)
{
    (void)q;
    WALSH_TRY(walsh_alloc(bytes, 1, what, out, e));
    void *p;
    memcpy(&p, out, sizeof p);
    memset(p, 0xff, bytes);
    return WALSH_OK;
}
static void none_free(const struct walsh_queue *q, void *p)
{
    (void)q;
    walsh_free(p);
}
static enum walsh_status none_copy(const struct walsh_queue *q, void *to, const void *from, size_t bytes,
                                   struct walsh_error *e)
{
    (void)q, (void)e;
    memcpy(to, from, bytes);
    return WALSH_OK;
}
static enum walsh_status none_status(const struct walsh_queue *q, struct walsh_error *e)
{
    (void)q, (void)e;
    return WALSH_OK;
}
static size_t none_held; /* weights and rotations that were brought up and not released */
/* The host's arrays stay where they are: its arena lives as long as the linear. */
static enum walsh_status none_weights(const struct walsh_queue *q, const struct walsh_weights *host,
                                      const char *what, struct walsh_weights *out, struct walsh_error *e)
{
    (void)q, (void)what, (void)e;
    *out = *host;
    none_held++;
    return WALSH_OK;
}
static void none_free_weights(const struct walsh_queue *q, struct walsh_weights *w)
{
    (void)q;
    memset(w, 0, sizeof *w);
    none_held--;
}
static enum walsh_status none_rotation(const struct walsh_queue *q, const struct walsh_rotation *host,
                                       const char *what, struct walsh_rotation *out, struct walsh_error *e)
{
    const size_t bytes = walsh_rotation_signs(host) * sizeof(float);
    float *signs;
    WALSH_TRY(none_alloc(q, bytes, what, &signs, e));
    memcpy(signs, host->signs, bytes);
    *out = *host;
    out->signs = signs;
    return WALSH_OK;
}

static float none_number(enum walsh_format type, const void *p, size_t i)
{
    if (type == WALSH_FORMAT_F32) return ((const float *)p)[i];
    return type == WALSH_FORMAT_F16 ? walsh_f32_from_f16(((const uint16_t *)p)[i])
                                    : walsh_f32_from_bf16(((const uint16_t *)p)[i]);
}
static void none_convert(const struct walsh_queue *q, enum walsh_format to_type, void *to, size_t ld_to,
                         enum walsh_format from_type, const void *from, size_t ld_from, size_t rows,
                         size_t cols)
{
    (void)q;
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < cols; c++) {
            const float x = none_number(from_type, from, r * ld_from + c);
            if (to_type == WALSH_FORMAT_F32)
                ((float *)to)[r * ld_to + c] = x;
            else
                ((uint16_t *)to)[r * ld_to + c] =
                    to_type == WALSH_FORMAT_F16 ? walsh_f16_from_f32(x) : walsh_bf16_from_f32(x);
        }
}
static void none_tables(const struct walsh_queue *q, const struct walsh_paged_rows *p)
{
    (void)q;
    for (size_t r = 0; r < p->count; r++) {
        void **k = p->tables + r * 2 * p->page_count, **v = k + p->page_count;
        for (size_t i = 0; i < p->page_count; i++) {
            k[i] = (uint8_t *)p->keys + (size_t)p->pages[r * p->ld + i] * p->key_stride;
            v[i] = (uint8_t *)p->values + (size_t)p->pages[r * p->ld + i] * p->value_stride;
        }
        p->views[r] = (struct walsh_kv_view){
            .type = p->type, .page_tokens = p->page_tokens, .k_pages = k, .v_pages = v};
        p->rows[r] = (struct walsh_attention_row){&p->views[r], (uint32_t)p->positions[r]};
    }
}
static const struct walsh_memory none_memory = {.alloc = none_alloc,
                                                .free = none_free,
                                                .upload = none_copy,
                                                .synchronize = none_status,
                                                .check = none_status,
                                                .upload_weights = none_weights,
                                                .free_weights = none_free_weights,
                                                .upload_rotation = none_rotation,
                                                .convert = none_convert,
                                                .page_tables = none_tables};
static unsigned none_open_queues;
static enum walsh_status none_open(unsigned device, void *stream, struct walsh_queue *out,
                                   struct walsh_error *e)
{
    (void)device, (void)stream, (void)e;
    out->memory = &none_memory;
    none_open_queues++;
    return WALSH_OK;
}
static void none_close(struct walsh_queue *q)
{
    q->memory = NULL;
    none_open_queues--;
}
static const struct walsh_device_module none_module = {.open = none_open, .close = none_close};

#endif
