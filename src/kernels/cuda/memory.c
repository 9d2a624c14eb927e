/* Memory of a device: allocation, copies through pinned buffers, weights into the layouts of the kernels. */
#include <string.h>

#include "base/memory.h"
#include "formats/blocks.h"
#include "formats/e8p_planes.h"
#include "kernels/cuda/backend.h"

enum walsh_status cuda_fail(struct walsh_error *err, cudaError_t code, const char *what)
{
    return walsh_fail(err, code == cudaErrorMemoryAllocation ? WALSH_E_MEMORY : WALSH_E_INTERNAL,
                      "CUDA: %s: %s", what, cudaGetErrorString(code));
}

void cuda_refuse(struct cuda_device *d, const char *op, const char *why)
{
    if (d->failure.message[0] == 0) walsh_fail(&d->failure, WALSH_E_UNSUPPORTED, "CUDA: %s: %s", op, why);
}

void cuda_note(struct cuda_device *d, const char *op)
{
    const cudaError_t code = cudaGetLastError();
    if (code != cudaSuccess && d->failure.message[0] == 0) cuda_fail(&d->failure, code, op);
}

static struct cuda_device *enter(const struct walsh_queue *q)
{
    struct cuda_device *d = cuda_device_of(q);
    cudaSetDevice(d->number);
    return d;
}

static enum walsh_status device_alloc(const struct walsh_queue *q, size_t bytes, const char *what,
                                      void *out_pointer, struct walsh_error *err)
{
    struct cuda_device *d = enter(q);
    void *p = NULL;
    const cudaError_t code = cudaMalloc(&p, bytes > 0 ? bytes : 1);
    memcpy(out_pointer, &p, sizeof p);
    if (code == cudaSuccess) return WALSH_OK;
    cudaGetLastError(); /* reported here, not by the next op */
    size_t available = 0, total = 0;
    cudaMemGetInfo(&available, &total);
    return walsh_fail(err, code == cudaErrorMemoryAllocation ? WALSH_E_MEMORY : WALSH_E_INTERNAL,
                      "%s: %zu bytes for %s: %s (%zu of %zu bytes are free)", d->name, bytes, what,
                      cudaGetErrorString(code), available, total);
}

static void device_free(const struct walsh_queue *q, void *p)
{
    enter(q);
    if (p) cudaFree(p);
}

static enum walsh_status upload(const struct walsh_queue *q, void *to, const void *from, size_t bytes,
                                struct walsh_error *err)
{
    struct cuda_device *d = enter(q);
    cudaError_t code = cudaSuccess;
    for (size_t at = 0, n; at < bytes && code == cudaSuccess; at += n) {
        const unsigned b = d->next;
        d->next ^= 1;
        n = walsh_min(bytes - at, CUDA_PINNED_BYTES);
        code = cudaEventSynchronize(d->sent[b]);
        if (code != cudaSuccess) break;
        memcpy(d->pinned[b], (const uint8_t *)from + at, n);
        code = cudaMemcpyAsync((uint8_t *)to + at, d->pinned[b], n, cudaMemcpyHostToDevice, d->stream);
        if (code == cudaSuccess) code = cudaEventRecord(d->sent[b], d->stream);
    }
    return code == cudaSuccess ? WALSH_OK : cuda_fail(err, code, "an upload");
}

static enum walsh_status check(const struct walsh_queue *q, struct walsh_error *err)
{
    struct cuda_device *d = cuda_device_of(q);
    if (d->failure.message[0] == 0) return WALSH_OK;
    const struct walsh_error failure = d->failure;
    memset(&d->failure, 0, sizeof d->failure);
    return walsh_fail(err, failure.status, "%s", failure.message);
}

static enum walsh_status synchronize(const struct walsh_queue *q, struct walsh_error *err)
{
    struct cuda_device *d = enter(q);
    const cudaError_t code = cudaStreamSynchronize(d->stream);
    WALSH_TRY(check(q, err));
    return code == cudaSuccess ? WALSH_OK : cuda_fail(err, code, "the ops enqueued before");
}

static enum walsh_status download(const struct walsh_queue *q, void *to, const void *from, size_t bytes,
                                  struct walsh_error *err)
{
    struct cuda_device *d = enter(q);
    const cudaError_t code =
        bytes > 0 ? cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, d->stream) : cudaSuccess;
    if (code != cudaSuccess) return cuda_fail(err, code, "a download");
    return synchronize(q, err);
}

static void fill(const struct walsh_queue *q, void *p, int byte, size_t bytes)
{
    struct cuda_device *d = enter(q);
    if (bytes > 0) cudaMemsetAsync(p, byte, bytes, d->stream);
    cuda_note(d, "fill");
}

static void copy(const struct walsh_queue *q, void *to, const void *from, size_t bytes)
{
    struct cuda_device *d = enter(q);
    if (bytes > 0) cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, d->stream);
    cuda_note(d, "copy");
}

static enum cuda_type type_of(enum walsh_format type)
{
    return type == WALSH_FORMAT_F32   ? CUDA_TYPE_F32
           : type == WALSH_FORMAT_F16 ? CUDA_TYPE_F16
                                      : CUDA_TYPE_BF16;
}

static void convert(const struct walsh_queue *q, enum walsh_format to_type, void *to, size_t ld_to,
                    enum walsh_format from_type, const void *from, size_t ld_from, size_t rows, size_t cols)
{
    struct cuda_device *d = enter(q);
    cuda_convert(d->stream, type_of(to_type), to, ld_to, type_of(from_type), from, ld_from, rows, cols);
    cuda_note(d, "convert");
}

static void page_tables(const struct walsh_queue *q, const struct walsh_paged_rows *p)
{
    struct cuda_device *d = enter(q);
    const struct cuda_paged_rows to = {.type = (uint32_t)p->type,
                                       .page_tokens = p->page_tokens,
                                       .page_count = p->page_count,
                                       .count = p->count,
                                       .ld = p->ld,
                                       .pages = p->pages,
                                       .positions = p->positions,
                                       .keys = p->keys,
                                       .values = p->values,
                                       .key_stride = p->key_stride,
                                       .value_stride = p->value_stride,
                                       .rows = (struct cuda_attention_row *)(void *)p->rows,
                                       .views = (struct cuda_kv_view *)(void *)p->views,
                                       .tables = p->tables};
    cuda_page_tables(d->stream, &to);
    cuda_note(d, "page_tables");
}

static enum walsh_status record(const struct walsh_queue *q, struct walsh_error *err)
{
    const cudaError_t code = cudaStreamBeginCapture(enter(q)->stream, cudaStreamCaptureModeThreadLocal);
    return code == cudaSuccess ? WALSH_OK : cuda_fail(err, code, "recording a graph");
}

static enum walsh_status recorded(const struct walsh_queue *q, void **out, struct walsh_error *err)
{
    struct cuda_device *d = enter(q);
    cudaGraph_t graph = NULL;
    cudaGraphExec_t run = NULL;
    cudaError_t code = cudaStreamEndCapture(d->stream, &graph);
    if (code == cudaSuccess) code = cudaGraphInstantiate(&run, graph, 0);
    if (graph) cudaGraphDestroy(graph);
    *out = run;
    if (code == cudaSuccess) return WALSH_OK;
    cudaGetLastError();
    return cuda_fail(err, code, "recording a graph");
}

static enum walsh_status replay(const struct walsh_queue *q, void *recording, struct walsh_error *err)
{
    const cudaError_t code = cudaGraphLaunch(recording, enter(q)->stream);
    return code == cudaSuccess ? WALSH_OK : cuda_fail(err, code, "a graph");
}

static void forget(const struct walsh_queue *q, void *recording)
{
    enter(q);
    if (recording) cudaGraphExecDestroy(recording);
}

static void figures(const struct walsh_queue *q, size_t *available, size_t *total)
{
    enter(q);
    *available = *total = 0;
    cudaMemGetInfo(available, total);
}

static void free_weights(const struct walsh_queue *q, struct walsh_weights *w)
{
    device_free(q, (void *)(uintptr_t)w->data);
    device_free(q, (void *)(uintptr_t)w->scales);
    device_free(q, (void *)(uintptr_t)w->zeros);
    for (unsigned k = 0; k < w->stages; k++) device_free(q, (void *)(uintptr_t)w->stage[k].data);
    memset(w, 0, sizeof *w);
}

/* One stage: the planes go up as they are and a kernel lays them out. */
static enum walsh_status upload_stage(const struct walsh_queue *q, const struct walsh_weights *host,
                                      unsigned k, const char *what, const void **out, struct walsh_error *err)
{
    struct cuda_device *d = enter(q);
    const bool narrow = host->stage[k].kind == WALSH_STAGE_E81B;
    const size_t bytes = walsh_stage_bytes(host->stage[k].kind, host->rows, host->cols);
    void *planes, *data;
    WALSH_TRY(device_alloc(q, cuda_e8p_stage_bytes(host->rows, host->cols, narrow), what, &data, err));
    enum walsh_status status = device_alloc(q, bytes, what, &planes, err);
    if (status == WALSH_OK) status = upload(q, planes, host->stage[k].data, bytes, err);
    if (status == WALSH_OK) {
        cuda_repack_stage(d->stream, d->plane_tables, host->rows, host->cols, narrow, planes, data);
        cuda_note(d, "repack");
        status = synchronize(q, err);
    }
    device_free(q, planes);
    if (status != WALSH_OK) {
        device_free(q, data);
        data = NULL;
    }
    *out = data;
    return status;
}

static enum walsh_status upload_part(const struct walsh_queue *q, const void *host, size_t bytes,
                                     const char *what, const void **out, struct walsh_error *err)
{
    void *data;
    WALSH_TRY(device_alloc(q, bytes, what, &data, err));
    *out = data;
    return upload(q, data, host, bytes, err);
}

/* As they lie in host memory. */
static enum walsh_status upload_blocks(const struct walsh_queue *q, const struct walsh_weights *host,
                                       const char *what, struct walsh_weights *out, struct walsh_error *err)
{
    const size_t count = walsh_block_scale_count(host);
    const void *zeros = NULL;
    WALSH_TRY(
        upload_part(q, host->data, walsh_block_data_words(host) * sizeof(uint32_t), what, &out->data, err));
    WALSH_TRY(
        upload_part(q, host->scales, count * walsh_scale_bytes(host->block.scale), what, &out->scales, err));
    if (!host->zeros) return WALSH_OK;
    const enum walsh_status status = upload_part(q, host->zeros, count, what, &zeros, err);
    out->zeros = zeros;
    return status;
}

static enum walsh_status upload_weights(const struct walsh_queue *q, const struct walsh_weights *host,
                                        const char *what, struct walsh_weights *out, struct walsh_error *err)
{
    *out = *host;
    out->data = out->scales = NULL;
    out->zeros = NULL;
    for (unsigned k = 0; k < WALSH_MAX_STAGES; k++) out->stage[k].data = NULL;
    enum walsh_status status = WALSH_OK;
    if (host->format == WALSH_FORMAT_E8P) {
        for (unsigned k = 0; k < host->stages && status == WALSH_OK; k++)
            status = upload_stage(q, host, k, what, &out->stage[k].data, err);
    } else if (host->format < WALSH_FORMAT_E8P) {
        const size_t bytes = (size_t)host->rows * host->cols * (host->format == WALSH_FORMAT_F32 ? 4 : 2);
        status = upload_part(q, host->data, bytes, what, &out->data, err);
    } else if (walsh_format_is_block(host->format)) {
        status = upload_blocks(q, host, what, out, err);
    } else {
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "%s: weights of format %s have no kernels on CUDA", what,
                          walsh_format_name(host->format));
    }
    if (status != WALSH_OK) free_weights(q, out);
    return status;
}

void cuda_pack_signs(const float *signs, uint32_t padded, uint32_t *words)
{
    uint32_t *units = words + padded;
    memcpy(words, signs, padded * sizeof *words);
    memset(units, 0, CUDA_SIGN_WORDS(padded) * sizeof *units);
    units[0] = 1;
    for (uint32_t i = 0; i < padded; i++) {
        if (signs[i] != 1.0f && signs[i] != -1.0f) units[0] = 0;
        if (signs[i] < 0) units[1 + i / 32] |= 1u << i % 32;
    }
}

static enum walsh_status upload_rotation(const struct walsh_queue *q, const struct walsh_rotation *host,
                                         const char *what, struct walsh_rotation *out,
                                         struct walsh_error *err)
{
    *out = *host;
    out->signs = NULL;
    if (host->kind == WALSH_ROTATION_NONE) return WALSH_OK;
    if (host->kind != WALSH_ROTATION_BLOCKS)
        return walsh_fail(err, WALSH_E_UNSUPPORTED,
                          "%s: a rotation of overlapping blocks has no kernels on CUDA", what);
    if (host->blocks.padded > CUDA_MAX_ROTATED)
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "%s: a rotation of %u elements; the CUDA kernels hold %u",
                          what, host->blocks.padded, CUDA_MAX_ROTATED);
    if (host->blocks.uniform)
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "%s: Hadamard blocks of one size have no kernels on CUDA",
                          what);
    for (uint32_t b = 0; b < host->blocks.count; b++)
        if (host->blocks.block[b] < 1u << CUDA_MIN_LOG2)
            return walsh_fail(err, WALSH_E_UNSUPPORTED,
                              "%s: a Hadamard block of %u; the CUDA kernels know %u and more", what,
                              host->blocks.block[b], 1u << CUDA_MIN_LOG2);
    uint32_t *words;
    const uint32_t padded = host->blocks.padded;
    const size_t bytes = ((size_t)padded + CUDA_SIGN_WORDS(padded)) * sizeof *words;
    WALSH_TRY(walsh_alloc(bytes, 1, what, &words, err));
    cuda_pack_signs(host->signs, padded, words);
    void *signs;
    enum walsh_status status = device_alloc(q, bytes, what, &signs, err);
    if (status == WALSH_OK) {
        out->signs = signs;
        status = upload(q, signs, words, bytes, err);
    }
    walsh_free(words);
    return status;
}

const struct walsh_memory cuda_memory = {
    .alloc = device_alloc,
    .free = device_free,
    .upload = upload,
    .download = download,
    .fill = fill,
    .copy = copy,
    .synchronize = synchronize,
    .upload_weights = upload_weights,
    .upload_rotation = upload_rotation,
    .free_weights = free_weights,
    .record = record,
    .recorded = recorded,
    .replay = replay,
    .forget = forget,
    .convert = convert,
    .page_tables = page_tables,
    .check = check,
    .figures = figures,
};
