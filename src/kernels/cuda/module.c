/* What libwalsh-cuda.so exports: the devices and their queues. */
#include <stdio.h>
#include <string.h>

#include "base/float_mode.h"
#include "base/memory.h"
#include "formats/e8p_planes.h"
#include "kernels/cuda/backend.h"

static const uint8_t sign_bit[8] = {0, 4, 1, 5, 2, 6, 3, 7}; /* of coordinate i in an E8P code's sign byte */

/* launch.h: eight nibbles for each byte of a code. */
static void build_tables(uint32_t words[CUDA_E8P_TABLE_WORDS])
{
    const struct walsh_e8p_tables *t = walsh_e8p_tables();
    memset(words, 0, CUDA_E8P_TABLE_WORDS * sizeof *words);
    for (unsigned byte = 0; byte < 256; byte++) {
        const unsigned p = (unsigned)__builtin_parity(byte);
        for (unsigned i = 0; i < 8; i++) {
            const int twice = 2 * t->magnitude[byte][i] + 1;
            const int u = 8 + (i == 7 && t->odd[byte] ? -twice : twice);
            words[byte] |= (uint32_t)u << (4 * i);
            words[256 + byte] |= (((byte ^ p) >> sign_bit[i] & 1u ? 14u : 0u) ^ p) << (4 * i);
            words[512 + byte] |= (uint32_t)(t->e81b_x2[byte][i] + 4) << (4 * i);
        }
    }
}

/* What the kernel that reads the CPU's layout needs. */
static void build_plane_tables(struct cuda_plane_tables *out)
{
    const struct walsh_plane_tables *planes = walsh_plane_tables();
    memcpy(out->pattern, planes->pattern, sizeof out->pattern);
    memcpy(out->ones, planes->ones, sizeof out->ones);
    memcpy(out->odd, walsh_e8p_tables()->odd, sizeof out->odd);
    memcpy(out->e81b_code, planes->e81b_code, sizeof out->e81b_code);
    for (unsigned byte = 0; byte < 256; byte++) {
        unsigned plane = 0;
        for (unsigned i = 0; i < 8; i++) plane |= (byte >> sign_bit[i] & 1u) << i;
        out->sign_byte[plane] = (uint8_t)byte;
    }
}

static unsigned count_devices(struct walsh_error *err)
{
    int count = 0;
    /* The first call loads the driver, which leaves the thread flushing subnormals. */
    const uint64_t mode = walsh_float_mode();
    const cudaError_t code = cudaGetDeviceCount(&count);
    walsh_float_mode_set(mode);
    if (code == cudaSuccess && count > 0) return (unsigned)count;
    cudaGetLastError();
    int driver = 0;
    cudaDriverGetVersion(&driver);
    walsh_fail(err, WALSH_E_UNSUPPORTED, "no CUDA device: %s",
               code == cudaSuccess ? "the driver lists none"
               : driver == 0       ? "no NVIDIA driver is installed"
                                   : cudaGetErrorString(code));
    return 0;
}

/* The kernels are for 8.0 (machine code, and PTX for what comes later) and for 9.0. */
static enum walsh_status check_capability(const struct cudaDeviceProp *p, unsigned device,
                                          struct walsh_error *err)
{
    if (p->major >= 8) return WALSH_OK;
    return walsh_fail(err, WALSH_E_UNSUPPORTED,
                      "cuda:%u, %s, has compute capability %d.%d; walsh has kernels for 8.0 and later",
                      device, p->name, p->major, p->minor);
}

static enum walsh_status properties_of(unsigned device, struct cudaDeviceProp *p, struct walsh_error *err)
{
    const unsigned count = count_devices(err);
    if (count == 0) return WALSH_E_UNSUPPORTED;
    if (device >= count)
        return walsh_fail(err, WALSH_E_ARGUMENT, "cuda:%u: this machine has cuda:0 to cuda:%u", device,
                          count - 1);
    const cudaError_t code = cudaGetDeviceProperties(p, (int)device);
    if (code != cudaSuccess) return cuda_fail(err, code, "a device's properties");
    return check_capability(p, device, err);
}

static enum walsh_status describe(unsigned device, struct walsh_device_info *out, struct walsh_error *err)
{
    struct cudaDeviceProp p;
    memset(out, 0, sizeof *out);
    WALSH_TRY(properties_of(device, &p, err));
    snprintf(out->name, sizeof out->name, "%s", p.name);
    snprintf(out->capability, sizeof out->capability,
             "compute %d.%d, %d multiprocessors, %.1f GB, kernels for %s", p.major, p.minor,
             p.multiProcessorCount, (double)p.totalGlobalMem / 1e9,
             p.major == 9 && p.minor == 0 ? "sm_90a" : "sm_80");
    return WALSH_OK;
}

static void close_queue(struct walsh_queue *q)
{
    struct cuda_device *d = q->device;
    if (!d) return;
    cudaSetDevice(d->number);
    if (d->stream) cudaStreamSynchronize(d->stream);
    for (unsigned b = 0; b < 2; b++) {
        if (d->sent[b]) cudaEventDestroy(d->sent[b]);
        if (d->pinned[b]) cudaFreeHost(d->pinned[b]);
    }
    walsh_free(d->readings);
    cudaFree(d->e8p_tables);
    cudaFree(d->plane_tables);
    cudaFree(d->scratch);
    if (d->stream && !d->borrowed) cudaStreamDestroy(d->stream);
    walsh_free(d);
    q->device = NULL;
    q->memory = NULL;
    q->ops = NULL;
}

static enum walsh_status open_members(struct walsh_queue *q, struct walsh_error *err)
{
    struct cuda_device *d = cuda_device_of(q);
    cudaError_t code = cudaSetDevice(d->number);
    if (code == cudaSuccess && !d->borrowed)
        code = cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking);
    for (unsigned b = 0; b < 2 && code == cudaSuccess; b++) {
        code = cudaMallocHost(&d->pinned[b], CUDA_PINNED_BYTES);
        if (code == cudaSuccess) code = cudaEventCreateWithFlags(&d->sent[b], cudaEventDisableTiming);
    }
    if (code != cudaSuccess) return cuda_fail(err, code, "a queue");

    void *p;
    uint32_t words[CUDA_E8P_TABLE_WORDS];
    struct cuda_plane_tables planes;
    build_tables(words);
    build_plane_tables(&planes);
    WALSH_TRY(cuda_memory.alloc(q, CUDA_SCRATCH_BYTES, "a queue's scratch", &d->scratch, err));
    WALSH_TRY(cuda_memory.alloc(q, sizeof words, "the tables of E8P", &p, err));
    d->e8p_tables = p;
    WALSH_TRY(cuda_memory.alloc(q, sizeof planes, "the tables of E8P", &p, err));
    d->plane_tables = p;
    WALSH_TRY(cuda_memory.upload(q, d->e8p_tables, words, sizeof words, err));
    WALSH_TRY(cuda_memory.upload(q, d->plane_tables, &planes, sizeof planes, err));
    return cuda_memory.synchronize(q, err);
}

static enum walsh_status open_on(unsigned device, void *stream, struct walsh_queue *out,
                                 struct walsh_error *err)
{
    struct cudaDeviceProp p;
    WALSH_TRY(properties_of(device, &p, err));
    struct cuda_device *d;
    WALSH_TRY(walsh_alloc_zero(1, sizeof *d, "a CUDA queue", &d, err));
    d->number = (int)device;
    d->stream = stream;
    d->borrowed = stream != NULL;
    d->processors = p.multiProcessorCount;
    snprintf(d->name, sizeof d->name, "cuda:%u, %s", device, p.name);
    out->device = d;
    out->memory = &cuda_memory;
    out->ops = &cuda_ops;
    const enum walsh_status status = open_members(out, err);
    if (status != WALSH_OK) close_queue(out);
    return status;
}

/* A context loads more of the driver: see count_devices. */
static enum walsh_status open_queue(unsigned device, void *stream, struct walsh_queue *out,
                                    struct walsh_error *err)
{
    const uint64_t mode = walsh_float_mode();
    const enum walsh_status status = open_on(device, stream, out, err);
    walsh_float_mode_set(mode);
    return status;
}

walsh_device_module_function walsh_device_module;

__attribute__((visibility("default"))) const struct walsh_device_module *walsh_device_module(void)
{
    static const struct walsh_device_module module = {
        .version = WALSH_VERSION,
        .queue_size = sizeof(struct walsh_queue),
        .ops_size = sizeof(struct walsh_ops),
        .module_size = sizeof(struct walsh_device_module),
        .count = count_devices,
        .describe = describe,
        .open = open_queue,
        .close = close_queue,
        .bench = cuda_bench,
    };
    return &module;
}
