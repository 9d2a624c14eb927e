/* Memory of a device: allocation, copies through pinned buffers, recordings. */
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
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

enum walsh_status cuda_pinned_room(struct cuda_device *d, size_t least, struct cuda_room *out,
                                   struct walsh_error *err)
{
    cudaError_t code = cudaSuccess;
    if (CUDA_PINNED_BYTES - d->used < least) { /* on to the other one, when its copies are done */
        WALSH_TRY(cuda_read_pending(d, err));
        code = cudaEventRecord(d->sent[d->next], d->stream);
        d->next ^= 1;
        d->used = 0;
        if (code == cudaSuccess) code = cudaEventSynchronize(d->sent[d->next]);
    }
    const size_t at = d->next * CUDA_PINNED_BYTES + d->used;
    *out = (struct cuda_room){(uint8_t *)d->pinned[d->next] + d->used, (uint8_t *)d->scratch + at,
                              CUDA_PINNED_BYTES - d->used};
    return code == cudaSuccess ? WALSH_OK : cuda_fail(err, code, "an upload");
}

enum walsh_status cuda_send(struct cuda_device *d, void *to, const struct cuda_room *from, size_t bytes,
                            struct walsh_error *err)
{
    d->used += walsh_min(walsh_round_up(bytes, 256), from->bytes);
    const cudaError_t code = cudaMemcpyAsync(to, from->pinned, bytes, cudaMemcpyHostToDevice, d->stream);
    return code == cudaSuccess ? WALSH_OK : cuda_fail(err, code, "an upload");
}

static enum walsh_status upload(const struct walsh_queue *q, void *to, const void *from, size_t bytes,
                                struct walsh_error *err)
{
    struct cuda_device *d = enter(q);
    struct cuda_room room;
    for (size_t at = 0, n; at < bytes; at += n) {
        WALSH_TRY(cuda_pinned_room(d, walsh_min(bytes - at, CUDA_PIECE_BYTES), &room, err));
        n = walsh_min(bytes - at, room.bytes);
        memcpy(room.pinned, (const uint8_t *)from + at, n);
        WALSH_TRY(cuda_send(d, (uint8_t *)to + at, &room, n, err));
    }
    return WALSH_OK;
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
    const enum walsh_status read = cuda_read_pending(d, err);
    const cudaError_t code = cudaStreamSynchronize(d->stream);
    WALSH_TRY(read);
    WALSH_TRY(check(q, err));
    return code == cudaSuccess ? WALSH_OK : cuda_fail(err, code, "the ops enqueued before");
}

static enum walsh_status download(const struct walsh_queue *q, void *to, const void *from, size_t bytes,
                                  struct walsh_error *err)
{
    struct cuda_device *d = enter(q);
    WALSH_TRY(cuda_read_pending(d, err));
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
                                       .turbo = p->codecs,
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

static void identify(const struct walsh_queue *q, char *out, size_t size)
{
    const struct cuda_device *d = enter(q);
    const char *name = strchr(d->name, ','); /* whichever number it has */
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    snprintf(out, size, "cuda%s, %d multiprocessors, driver %d, runtime %d", name ? name : "", d->processors,
             driver, runtime);
}

const struct walsh_memory cuda_memory = {
    .alloc = device_alloc,
    .free = device_free,
    .upload = upload,
    .download = download,
    .fill = fill,
    .copy = copy,
    .synchronize = synchronize,
    .weights_bytes = cuda_weights_bytes,
    .place_weights = cuda_place_weights,
    .rotation_bytes = cuda_rotation_bytes,
    .place_rotation = cuda_place_rotation,
    .upload_weights = cuda_upload_weights,
    .upload_rotation = cuda_upload_rotation,
    .free_weights = cuda_free_weights,
    .record = record,
    .recorded = recorded,
    .replay = replay,
    .forget = forget,
    .convert = convert,
    .rotate = cuda_rotate_rows,
    .page_tables = page_tables,
    .check = check,
    .identify = identify,
    .figures = figures,
    .experts = &cuda_expert_ops,
    .upload_codecs = cuda_upload_codecs,
    .read_codecs = cuda_read_codecs,
};
