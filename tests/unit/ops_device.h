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

/* What was allocated there, so that an op can tell the host's memory from the device's. */
static const void *none_blocks[256];
static bool none_has(const void *p)
{
    for (size_t i = 0; i < sizeof none_blocks / sizeof *none_blocks; i++)
        if (none_blocks[i] == p) return true;
    return false;
}
static void none_change(const void *from, const void *to)
{
    for (size_t i = 0; i < sizeof none_blocks / sizeof *none_blocks; i++)
        if (none_blocks[i] == from) {
            none_blocks[i] = to;
            return;
        }
    fail_msg("a block of the device that is not there, or too many");
}

static enum walsh_status none_alloc(const struct walsh_queue *q, size_t bytes, const char *what, void *out,
                                    struct walsh_error *e)
{
    (void)q;
    WALSH_TRY(walsh_alloc(bytes, 1, what, out, e));
    void *p;
    memcpy(&p, out, sizeof p);
    memset(p, 0xff, bytes);
    none_change(NULL, p);
    return WALSH_OK;
}
static void none_free(const struct walsh_queue *q, void *p)
{
    (void)q;
    if (p) none_change(p, NULL);
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
/* The CPU's ops, for signs, biases and adapters of the device alone. */
static struct walsh_ops none_ops;
static void none_prepare(const struct walsh_queue *q, struct walsh_activations *a, const float *x, size_t ldx,
                         const struct walsh_rotation *rotation)
{
    const struct walsh_queue host = walsh_queue_host(q);
    assert_true(rotation->kind == WALSH_ROTATION_NONE || none_has(rotation->signs));
    host.ops->prepare(q, a, x, ldx, rotation);
}
static void none_unrotate(const struct walsh_queue *q, float *y, size_t ldy, float *z, size_t ldz,
                          const struct walsh_rotation *rotation, const float *bias, size_t rows)
{
    const struct walsh_queue host = walsh_queue_host(q);
    assert_true(rotation->kind == WALSH_ROTATION_NONE || none_has(rotation->signs));
    assert_true(!bias || none_has(bias));
    host.ops->unrotate(q, y, ldy, z, ldz, rotation, bias, rows);
}
static void none_product(const struct walsh_queue *q, const struct walsh_product *list, size_t count,
                         const struct walsh_activations *a, const struct walsh_low_rank_input *low_rank,
                         enum walsh_role role)
{
    const struct walsh_queue host = walsh_queue_host(q);
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(list[i].rows, 0); /* which a device does not know */
        for (size_t u = 0; u < list[i].up_count; u++) assert_true(none_has(list[i].up[u].b));
    }
    for (size_t i = 0; low_rank && i < low_rank->count; i++) assert_true(none_has(low_rank->down[i].a));
    host.ops->product(q, list, count, a, low_rank, role);
}

static unsigned none_open_queues;
static enum walsh_status none_open(unsigned device, void *stream, struct walsh_queue *out,
                                   struct walsh_error *e)
{
    (void)device, (void)stream, (void)e;
    none_ops = *walsh_queue_host(out).ops;
    none_ops.prepare = none_prepare;
    none_ops.unrotate = none_unrotate;
    none_ops.product = none_product;
    out->ops = &none_ops;
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
