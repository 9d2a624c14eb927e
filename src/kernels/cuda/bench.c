/* The measured kernels: synthetic data of real shapes, rotated among buffers larger than the L2, in graphs,
 * against the bandwidths of reading and copying measured in the same run. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "kernels/cuda/bench.h"
#include "kernels/turbo.h"

#define REPEATS 9
#define GRAPH_CALLS 64                /* of a product */
#define RHT_BYTES ((size_t)512 << 20) /* read, and as many written */
#define TABLE_TOKENS 256              /* of a page of the cache */

static int ascending(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

enum walsh_status cuda_bench_measure(const struct bench *b, unsigned calls, bench_call *call,
                                     const void *argument, double *seconds)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t run = NULL;
    cudaEvent_t begin = NULL, end = NULL;
    float ms[REPEATS] = {0};
    cudaError_t code = cudaStreamBeginCapture(b->d->stream, cudaStreamCaptureModeThreadLocal);
    for (unsigned i = 0; i < calls && code == cudaSuccess; i++) call(b, argument, i);
    if (code == cudaSuccess) code = cudaStreamEndCapture(b->d->stream, &graph);
    if (code == cudaSuccess) code = cudaGraphInstantiate(&run, graph, 0);
    if (code == cudaSuccess) code = cudaEventCreate(&begin);
    if (code == cudaSuccess) code = cudaEventCreate(&end);
    for (int r = -2; r < REPEATS && code == cudaSuccess; r++) { /* two to warm up */
        cudaEventRecord(begin, b->d->stream);
        code = cudaGraphLaunch(run, b->d->stream);
        cudaEventRecord(end, b->d->stream);
        if (code == cudaSuccess) code = cudaEventSynchronize(end);
        if (code == cudaSuccess && r >= 0) code = cudaEventElapsedTime(&ms[r], begin, end);
    }
    if (run) cudaGraphExecDestroy(run);
    if (graph) cudaGraphDestroy(graph);
    if (begin) cudaEventDestroy(begin);
    if (end) cudaEventDestroy(end);
    cudaGetLastError();
    if (code != cudaSuccess) return cuda_fail(b->err, code, "a measurement");
    qsort(ms, REPEATS, sizeof *ms, ascending);
    *seconds = (double)ms[REPEATS / 2] * 1e-3 / calls;
    return WALSH_OK;
}

static enum walsh_status report(const struct bench *b, const char *kernel, const char *size, unsigned calls,
                                double bytes, double operations, double bandwidth, bench_call *call,
                                const void *argument)
{
    struct walsh_device_bench_row row = {.kernel = kernel, .bytes = bytes, .operations = operations};
    snprintf(row.size, sizeof row.size, "%s", size);
    WALSH_TRY(cuda_bench_measure(b, calls, call, argument, &row.seconds));
    row.roofline = bytes / row.seconds / bandwidth;
    if (b->row) b->row(b->user, &row);
    return WALSH_OK;
}

/* --- ceilings --- */

static void call_read(const struct bench *b, const void *argument, unsigned i)
{
    (void)argument;
    (void)i;
    cuda_peak_read(b->d->stream, b->room, ROOM, (uint32_t *)(void *)b->scratch);
}

static void call_copy(const struct bench *b, const void *argument, unsigned i)
{
    (void)argument;
    (void)i;
    cuda_peak_copy(b->d->stream, b->room + ROOM / 2, b->room, ROOM / 2);
}

/* The driver's own copy: the ceiling is the faster of both. */
static void call_driver_copy(const struct bench *b, const void *argument, unsigned i)
{
    (void)argument;
    (void)i;
    cudaMemcpyAsync(b->room + ROOM / 2, b->room, ROOM / 2, cudaMemcpyDeviceToDevice, b->d->stream);
}

static enum walsh_status measure_ceilings(const struct bench *b, struct walsh_device_ceilings *out)
{
    double seconds = 0;
    WALSH_TRY(cuda_bench_measure(b, 2, call_read, NULL, &seconds));
    out->read_bandwidth = (double)ROOM / seconds;
    WALSH_TRY(cuda_bench_measure(b, 2, call_copy, NULL, &seconds));
    out->copy_bandwidth = (double)ROOM / seconds;
    WALSH_TRY(cuda_bench_measure(b, 2, call_driver_copy, NULL, &seconds));
    if ((double)ROOM / seconds > out->copy_bandwidth) out->copy_bandwidth = (double)ROOM / seconds;
    return WALSH_OK;
}

/* --- rotations --- */

struct rht {
    struct cuda_rotation rotation;
    size_t rows, stride;
    enum cuda_type in, out;
};

static void call_rht(const struct bench *b, const void *argument, unsigned i)
{
    const struct rht *r = argument;
    (void)i;
    float *scale = (float *)(void *)(b->scratch + (64 << 20));
    cuda_rotate_forward(b->d->stream, &r->rotation, r->in, b->room, r->rotation.size, r->rows, r->out,
                        b->room + ROOM / 2, r->stride, scale, (int32_t *)(void *)(scale + r->rows));
}

/* Blocks by the binary expansion; the signs are in the scratch, where they replace those of the size before.
 */
static enum walsh_status binary_rotation(const struct bench *b, uint32_t n, struct cuda_rotation *out)
{
    struct cuda_rotation r = {.size = n, .padded = n, .signs = (const float *)(const void *)b->scratch};
    float *signs;
    const size_t words = (size_t)n + CUDA_SIGN_WORDS(n);
    WALSH_TRY(walsh_alloc(n + words, sizeof *signs, "signs", &signs, b->err));
    for (uint32_t i = 0; i < n; i++) signs[i] = i * 2654435761u >> 7 & 1 ? -1.0f : 1.0f;
    cuda_pack_signs(signs, n, (uint32_t *)(void *)(signs + n));
    const enum walsh_status status =
        cuda_memory.upload(b->q, b->scratch, signs + n, words * sizeof *signs, b->err);
    walsh_free(signs);
    *out = r;
    WALSH_TRY(status);
    for (uint32_t log2 = CUDA_MAX_LOG2 + 1, at = 0; log2-- > 0;)
        if (n >> log2 & 1u) {
            out->begin[out->count] = at;
            out->log2[out->count] = (uint8_t)log2;
            out->scale[out->count++] = (float)(1.0 / __builtin_sqrt((double)(1u << log2)));
            at += 1u << log2;
        }
    return WALSH_OK;
}

/* Two that overlap, of which each is the largest block, and blocks of 32 where there is only one. */
static enum walsh_status other_rotation(const struct bench *b, uint32_t n, struct cuda_rotation *out)
{
    const uint32_t log2 = 31 - (uint32_t)__builtin_clz(n), block = (n & (n - 1)) != 0 ? 1u << log2 : 32;
    float *signs;
    WALSH_TRY(walsh_alloc(n, 2 * sizeof *signs, "signs", &signs, b->err));
    for (uint32_t i = 0; i < 2 * n; i++) signs[i] = i * 2654435761u >> 7 & 1 ? -1.0f : 1.0f;
    const enum walsh_status status =
        cuda_memory.upload(b->q, b->scratch, signs, 2 * n * sizeof *signs, b->err);
    walsh_free(signs);
    *out = (struct cuda_rotation){.size = n,
                                  .padded = n,
                                  .count = block > 32 ? 2 : 1,
                                  .begin = {0, n - block},
                                  .any = true,
                                  .overlap = block > 32,
                                  .uniform = block == 32,
                                  .signs = (const float *)(const void *)b->scratch};
    for (uint32_t i = 0; i < 2; i++) {
        out->log2[i] = (uint8_t)__builtin_ctz(block);
        out->scale[i] = (float)(1.0 / __builtin_sqrt((double)block));
    }
    return status;
}

static enum walsh_status bench_other_rotations(const struct bench *b)
{
    static const uint32_t sizes[] = {4096, 576, 4864, 11008, 53248};
    char size[64];
    struct cuda_rotation rotation;
    if (!wanted(b, "rht_any_f32_i8")) return WALSH_OK;
    cuda_fill_normal(b->d->stream, CUDA_TYPE_F32, b->room, RHT_BYTES / 4, 1);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        WALSH_TRY(other_rotation(b, sizes[i], &rotation));
        struct rht r = {rotation, RHT_BYTES / 4 / sizes[i], sizes[i], CUDA_TYPE_F32, CUDA_TYPE_I8};
        const char *kind = rotation.uniform ? "blocks of 32" : "overlap";
        snprintf(size, sizeof size, "%s n=%u rows=%zu", kind, sizes[i], r.rows);
        WALSH_TRY(report(b, "rht_any_f32_i8", size, 4, 5.0 * sizes[i] * (double)r.rows, 0,
                         b->ceilings->copy_bandwidth, call_rht, &r));
        r.rows = 1;
        snprintf(size, sizeof size, "%s n=%u rows=1", kind, sizes[i]);
        WALSH_TRY(report(b, "rht_any_f32_i8", size, GRAPH_CALLS, 5.0 * sizes[i], 0,
                         b->ceilings->copy_bandwidth, call_rht, &r));
    }
    return WALSH_OK;
}

static enum walsh_status bench_rotations(const struct bench *b)
{
    static const uint32_t sizes[] = {64, 256, 1024, 2048, 4096, 8192, 16384, 11008};
    char size[64];
    struct cuda_rotation rotation;
    if (wanted(b, "rht_f16")) cuda_fill_normal(b->d->stream, CUDA_TYPE_F16, b->room, RHT_BYTES / 2, 1);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes && wanted(b, "rht_f16"); i++) {
        WALSH_TRY(binary_rotation(b, sizes[i], &rotation));
        const struct rht r = {rotation, RHT_BYTES / 2 / sizes[i], sizes[i], CUDA_TYPE_F16, CUDA_TYPE_F16};
        snprintf(size, sizeof size, "n=%u rows=%zu", sizes[i], r.rows);
        WALSH_TRY(report(b, "rht_f16", size, 4, 4.0 * sizes[i] * (double)r.rows, 0,
                         b->ceilings->copy_bandwidth, call_rht, &r));
    }
    if (wanted(b, "rht_f32_i8")) cuda_fill_normal(b->d->stream, CUDA_TYPE_F32, b->room, RHT_BYTES / 4, 1);
    for (size_t i = 2; i < sizeof sizes / sizeof *sizes && wanted(b, "rht_f32_i8"); i++) {
        WALSH_TRY(binary_rotation(b, sizes[i], &rotation));
        struct rht r = {rotation, RHT_BYTES / 4 / sizes[i], sizes[i], CUDA_TYPE_F32, CUDA_TYPE_I8};
        snprintf(size, sizeof size, "n=%u rows=%zu", sizes[i], r.rows);
        WALSH_TRY(report(b, "rht_f32_i8", size, 4, 5.0 * sizes[i] * (double)r.rows, 0,
                         b->ceilings->copy_bandwidth, call_rht, &r));
        r.rows = 1;
        snprintf(size, sizeof size, "n=%u rows=1", sizes[i]);
        WALSH_TRY(report(b, "rht_f32_i8", size, GRAPH_CALLS, 5.0 * sizes[i], 0, b->ceilings->copy_bandwidth,
                         call_rht, &r));
    }
    WALSH_TRY(bench_other_rotations(b));
    cuda_fill_random(b->d->stream, b->room, ROOM, 7);
    return WALSH_OK;
}

/* --- products --- */

struct product {
    struct cuda_e8p w;      /* of the first matrix */
    size_t bytes, matrices; /* of one matrix with its stages */
    size_t rows, stride;
    bool tensor; /* many rows by wgmma */
    struct cuda_blocks blocks;
    const void *x;
    float *y, *scale;
    int32_t *sum;
};

static void call_e8p(const struct bench *b, const void *argument, unsigned i)
{
    const struct product *p = argument;
    struct cuda_e8p w = p->w;
    for (uint32_t k = 0; k < w.stages; k++)
        w.stage[k].data = (const uint8_t *)w.stage[k].data + i % p->matrices * p->bytes;
    if (p->rows <= CUDA_E8P_DECODE_ROWS)
        cuda_product_e8p_decode(b->d->stream, &(struct cuda_e8p_output){w, p->y, p->w.outs}, 1, p->x,
                                p->stride, p->scale, p->sum, p->rows, NULL, NULL, b->d->processors);
    else if (p->tensor)
        cuda_product_e8p_wgmma(b->d->stream, &w, p->x, p->stride, p->scale, p->sum, p->rows, p->y, p->w.outs,
                               b->d->scratch);
    else
        cuda_product_e8p_tile(b->d->stream, &w, p->x, p->stride, p->scale, p->sum, p->rows, p->y, p->w.outs);
}

static void call_bf16(const struct bench *b, const void *argument, unsigned i)
{
    const struct product *p = argument;
    cuda_product_bf16(b->d->stream, b->room + i % p->matrices * p->bytes, p->w.outs, p->w.cols, p->x,
                      p->stride, p->rows, p->y, p->w.outs, false);
}

/* Activations and outputs in the scratch: scale and sum, x, y. */
static struct product product_of(const struct bench *b, uint32_t outs, uint32_t cols, size_t rows)
{
    struct product p = {.w = {.outs = outs, .cols = cols, .tables = b->d->e8p_tables}, .rows = rows};
    p.stride = walsh_round_up(cols, 256);
    p.scale = (float *)(void *)b->scratch;
    p.sum = (int32_t *)(void *)(b->scratch + (1 << 20));
    p.x = b->scratch + (2 << 20);
    p.y = (float *)(void *)(b->scratch + (256 << 20));
    return p;
}

static enum walsh_status bench_e8p(const struct bench *b, uint32_t outs, uint32_t cols, unsigned bits,
                                   size_t rows, bool tensor)
{
    const char *kernel = rows <= CUDA_E8P_DECODE_ROWS ? "e8p_i8" : tensor ? "e8p_i8_wgmma" : "e8p_i8_tile";
    if (!wanted(b, kernel)) return WALSH_OK;
    if (tensor && cuda_product_e8p_wgmma_rows(cols, CUDA_SCRATCH_BYTES) < rows) return WALSH_OK;
    struct product p = product_of(b, outs, cols, rows);
    p.tensor = tensor;
    for (unsigned left = bits; left > 0;) {
        const bool narrow = left == 1;
        p.w.stage[p.w.stages].data = b->room + p.bytes;
        p.w.stage[p.w.stages].narrow = narrow;
        p.w.stage[p.w.stages++].scale = 1.0f;
        p.bytes += cuda_e8p_stage_bytes(outs, cols, narrow);
        left -= narrow ? 1 : 2;
    }
    if (rows > CUDA_E8P_DECODE_ROWS)
        p.w.merged.on = p.w.stages == 2; /* as prompts read them; with any table */
    p.matrices = walsh_min(ROOM / p.bytes, GRAPH_CALLS);
    char size[64];
    snprintf(size, sizeof size, "%ux%u %u bpw rows=%zu", outs, cols, bits, rows);
    const double operations = 2.0 * outs * cols * (double)rows;
    return report(b, kernel, size, rows > 64 ? 4 : GRAPH_CALLS, (double)p.bytes, operations,
                  b->ceilings->read_bandwidth, call_e8p, &p);
}

static void call_blocks(const struct bench *b, const void *argument, unsigned i)
{
    const struct product *p = argument;
    struct cuda_blocks w = p->blocks;
    const size_t at = i % p->matrices * p->bytes;
    w.data = (const uint32_t *)(const void *)((const uint8_t *)w.data + at);
    w.scales = (const uint8_t *)w.scales + at;
    if (p->tensor)
        cuda_product_mxfp4_wgmma(b->d->stream, &w, p->x, p->stride, p->rows, p->y, w.outs, b->d->scratch);
    else
        cuda_product_blocks(b->d->stream, &w, p->x, p->stride, p->scale, p->sum, p->rows, p->y, w.outs);
}

/* Scales are all the same, 2^-7 and about 1/87: random bits would be numbers of any size. */
static enum walsh_status bench_blocks(const struct bench *b, const char *kernel, enum cuda_code code,
                                      uint32_t outs, uint32_t cols, size_t rows)
{
    if (!wanted(b, kernel)) return WALSH_OK;
    struct product p = product_of(b, outs, cols, rows);
    p.tensor = strstr(kernel, "wgmma") != NULL;
    if (p.tensor && cuda_product_mxfp4_wgmma_rows(cols, CUDA_SCRATCH_BYTES) < rows) return WALSH_OK;
    const bool mx = code == CUDA_CODE_E2M1;
    const uint32_t group = mx ? 32 : 128;
    const size_t data = (size_t)outs * cols / (code == CUDA_CODE_U8 ? 1 : 2);
    p.blocks = (struct cuda_blocks){.outs = outs,
                                    .cols = cols,
                                    .group = group,
                                    .groups = cols / group,
                                    .code = code,
                                    .scale = mx ? CUDA_SCALE_E8M0 : CUDA_SCALE_BF16,
                                    .data = (const uint32_t *)(const void *)b->room,
                                    .scales = b->room + data,
                                    .tensor_scale = 1};
    p.bytes = data + (size_t)outs * p.blocks.groups * (mx ? 1 : 2);
    p.matrices = walsh_min(ROOM / p.bytes, GRAPH_CALLS);
    for (size_t i = 0; i < p.matrices; i++)
        cudaMemsetAsync(b->room + i * p.bytes + data, mx ? 0x78 : 0x3c, p.bytes - data, b->d->stream);
    char size[64];
    snprintf(size, sizeof size, "%ux%u rows=%zu", outs, cols, rows);
    return report(b, kernel, size, rows > 64 ? 4 : GRAPH_CALLS, (double)p.bytes,
                  2.0 * outs * cols * (double)rows, b->ceilings->read_bandwidth, call_blocks, &p);
}

static enum walsh_status bench_bf16(const struct bench *b, uint32_t outs, uint32_t cols, size_t rows)
{
    if (!wanted(b, "bf16")) return WALSH_OK;
    struct product p = product_of(b, outs, cols, rows);
    p.bytes = (size_t)outs * cols * 2;
    p.matrices = walsh_min(ROOM / p.bytes, GRAPH_CALLS);
    char size[64];
    snprintf(size, sizeof size, "%ux%u rows=%zu", outs, cols, rows);
    return report(b, "bf16", size, GRAPH_CALLS, (double)p.bytes, 2.0 * outs * cols * (double)rows,
                  b->ceilings->read_bandwidth, call_bf16, &p);
}

static enum walsh_status bench_products(const struct bench *b)
{
    static const uint32_t shapes[][2] = {{2048, 2048}, {4096, 14336}, {8192, 28672}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        for (unsigned bits = 2; bits <= 4; bits++)
            for (size_t rows = 1; rows <= 8; rows += 7)
                WALSH_TRY(bench_e8p(b, shapes[s][0], shapes[s][1], bits, rows, false));
        for (unsigned bits = 2; bits <= 4; bits++)
            for (int tensor = 0; tensor < 2; tensor++)
                WALSH_TRY(bench_e8p(b, shapes[s][0], shapes[s][1], bits, 2048, tensor));
        WALSH_TRY(bench_blocks(b, "mxfp4_bf16_wgmma", CUDA_CODE_E2M1, shapes[s][0], shapes[s][1], 2048));
        for (size_t rows = 1; rows <= 8; rows += 7) {
            WALSH_TRY(bench_blocks(b, "mxfp4_i8", CUDA_CODE_E2M1, shapes[s][0], shapes[s][1], rows));
            WALSH_TRY(bench_blocks(b, "int4_i8", CUDA_CODE_U4, shapes[s][0], shapes[s][1], rows));
            WALSH_TRY(bench_blocks(b, "int8_i8", CUDA_CODE_U8, shapes[s][0], shapes[s][1], rows));
        }
        for (size_t rows = 1; rows <= 8; rows += 7)
            WALSH_TRY(bench_bf16(b, shapes[s][0], shapes[s][1], rows));
    }
    return WALSH_OK;
}

/* --- attention --- */

struct attend {
    struct cuda_attention_shape shape;
    const struct cuda_attention_row *rows;
    const float *query;
    float *out;
    size_t count;
};

static void call_attend(const struct bench *b, const void *argument, unsigned i)
{
    const struct attend *a = argument;
    const size_t width = (size_t)a->shape.heads * a->shape.head_dim;
    (void)i;
    (a->shape.packed ? cuda_turbo_attention : cuda_attention)(b->d->stream, a->out, width, a->query, width,
                                                              a->rows, a->count, 0, &a->shape, b->d->scratch,
                                                              CUDA_SCRATCH_BYTES);
}

enum { KV_HEADS = 4, KV_DIM = 128 };

/* A batch of sequences of equal length, whose pages are the first of the room: [sequence][side][page]. */
static enum walsh_status place_caches(const struct bench *b, size_t batch, uint32_t tokens, size_t page,
                                      const struct cuda_kv_view *kv, struct attend *out)
{
    enum { MOST_PAGES = 8192, MOST_BATCH = 64 };
    static void *table[MOST_PAGES];
    static struct cuda_kv_view views[MOST_BATCH];
    static struct cuda_attention_row rows[MOST_BATCH];
    const size_t pages = tokens / TABLE_TOKENS;
    uint8_t *at = b->scratch;
    for (size_t i = 0; i < batch * pages * 2; i++) table[i] = b->room + i * page;
    WALSH_TRY(cuda_memory.upload(b->q, at, table, sizeof table, b->err));
    for (size_t i = 0; i < batch; i++) {
        views[i] = *kv;
        views[i].page_tokens = TABLE_TOKENS;
        views[i].k_pages = (void *const *)(void *)at + i * pages * 2;
        views[i].v_pages = views[i].k_pages + pages;
    }
    at += sizeof table;
    WALSH_TRY(cuda_memory.upload(b->q, at, views, sizeof views, b->err));
    for (size_t i = 0; i < batch; i++)
        rows[i] = (struct cuda_attention_row){(const struct cuda_kv_view *)(void *)at + i, tokens - 1};
    at += walsh_round_up(sizeof views, 256);
    WALSH_TRY(cuda_memory.upload(b->q, at, rows, sizeof rows, b->err));
    const bool packed = kv->turbo != NULL;
    *out = (struct attend){.shape = {.heads = 4 * KV_HEADS,
                                     .kv_heads = KV_HEADS,
                                     .head_dim = KV_DIM,
                                     .scale = 0.088f,
                                     .packed = packed},
                           .rows = (const struct cuda_attention_row *)(void *)at,
                           .query = (const float *)(void *)(b->scratch + (64 << 20)),
                           .out = (float *)(void *)(b->scratch + (128 << 20)),
                           .count = batch};
    cuda_fill_normal(b->d->stream, CUDA_TYPE_F32, b->scratch + (64 << 20), batch * 4 * KV_HEADS * KV_DIM, 4);
    return WALSH_OK;
}

/* beside: the seconds that the row is compared with, or 0. */
static enum walsh_status report_attention(const struct bench *b, const char *kernel, uint32_t tokens,
                                          size_t page, const struct attend *a, double beside, double *seconds)
{
    const double bytes = 2.0 * (double)page * (double)(a->count * (tokens / TABLE_TOKENS));
    struct walsh_device_bench_row row = {.kernel = kernel, .bytes = bytes};
    snprintf(row.size, sizeof row.size, "batch=%zu tokens=%u heads=16/4 dim=128", a->count, tokens);
    WALSH_TRY(cuda_bench_measure(b, 2, call_attend, a, &row.seconds));
    row.roofline = bytes / row.seconds / b->ceilings->read_bandwidth;
    row.ratio = beside / row.seconds;
    if (seconds) *seconds = row.seconds;
    if (b->row) b->row(b->user, &row);
    return WALSH_OK;
}

/* Codecs of `bits` bits on both sides, to be freed. */
static enum walsh_status upload_bench_codecs(const struct bench *b, unsigned bits, void **out)
{
    struct walsh_turbo_options options = {.dim = KV_DIM, .bits = bits, .stream = "key"};
    struct walsh_turbo_codec *key = NULL, *value = NULL;
    enum walsh_status status = walsh_turbo_codec_open(&options, &key, b->err);
    options.stream = "value";
    if (status == WALSH_OK) status = walsh_turbo_codec_open(&options, &value, b->err);
    const struct walsh_turbo_codecs codecs = {.key = key, .value = value};
    if (status == WALSH_OK) status = cuda_upload_codecs(b->q, &codecs, out, b->err);
    walsh_turbo_codec_close(&key);
    walsh_turbo_codec_close(&value);
    return status;
}

/* Pages of random codes, all norms about 1. f16: the seconds of the plain cache of that shape. */
static enum walsh_status bench_turbo(const struct bench *b, const char *kernel, unsigned bits, size_t batch,
                                     uint32_t tokens, double f16)
{
    if (!wanted(b, kernel)) return WALSH_OK;
    const size_t codes = (size_t)TABLE_TOKENS * KV_DIM * bits / 8, head = codes + TABLE_TOKENS * 2,
                 heads = batch * (tokens / TABLE_TOKENS) * 2 * KV_HEADS;
    void *turbo;
    struct attend a;
    WALSH_TRY(upload_bench_codecs(b, bits, &turbo));
    cudaMemset2DAsync(b->room + codes, head, 0x3c, TABLE_TOKENS * 2, heads, b->d->stream);
    enum walsh_status status = place_caches(b, batch, tokens, head * KV_HEADS,
                                            &(struct cuda_kv_view){.type = 2, .turbo = turbo}, &a);
    a.shape.four = bits == 4;
    if (status == WALSH_OK) status = report_attention(b, kernel, tokens, head * KV_HEADS, &a, f16, NULL);
    cuda_memory.free(b->q, turbo);
    cuda_fill_random(b->d->stream, b->room, ROOM, 7);
    return status;
}

/* GQA 4: pages of f16, then of codes. */
static enum walsh_status bench_attention(const struct bench *b, size_t batch, uint32_t tokens)
{
    const size_t page = (size_t)KV_HEADS * TABLE_TOKENS * KV_DIM * 2;
    double f16 = 0;
    struct attend a;
    if (wanted(b, "attention_f16")) {
        WALSH_TRY(place_caches(b, batch, tokens, page, &(struct cuda_kv_view){.type = 1}, &a));
        cuda_fill_normal(b->d->stream, CUDA_TYPE_F16, b->room, ROOM / 2, 3);
        WALSH_TRY(report_attention(b, "attention_f16", tokens, page, &a, 0, &f16));
        cuda_fill_random(b->d->stream, b->room, ROOM, 7);
    }
    WALSH_TRY(bench_turbo(b, "attention_turbo4", 4, batch, tokens, f16));
    WALSH_TRY(bench_turbo(b, "attention_turbo2", 2, batch, tokens, f16));
    WALSH_TRY(bench_turbo(b, "attention_turbo8", 8, batch, tokens, f16));
    return WALSH_OK;
}

/* --- draws --- */

struct draws {
    const struct cuda_draw *rows;
    size_t count;
    uint32_t vocab;
    bool sampled;
};

static void call_draw(const struct bench *b, const void *argument, unsigned i)
{
    const struct draws *d = argument;
    const size_t set = d->count * d->vocab * sizeof(float);
    cuda_draw_rows(b->d->stream, (int32_t *)(void *)b->scratch,
                   (float *)(void *)(b->room + i % (ROOM / 2 / set) * set), d->vocab, d->rows, d->count,
                   d->sampled, false, b->d->scratch);
}

/* Tokens of a vocabulary of 128256 from logits of deviation 3: the likeliest, by temperature alone, and filtered. */
static enum walsh_status bench_draws(const struct bench *b)
{
    enum { VOCAB = 128256, MOST_ROWS = 32 };
    static const char *const names[] = {"draw_greedy", "draw_temperature", "draw_top_k_top_p"};
    if (!wanted(b, names[0]) && !wanted(b, names[1]) && !wanted(b, names[2])) return WALSH_OK;
    struct cuda_draw rows[MOST_ROWS];
    uint8_t *at = b->scratch + (64 << 20);
    char size[64];
    cuda_fill_normal(b->d->stream, CUDA_TYPE_F32, b->room, ROOM / 2 / sizeof(float), 5);
    for (unsigned kind = 0; kind < 3; kind++) {
        for (size_t count = 1; count <= MOST_ROWS && wanted(b, names[kind]); count += MOST_ROWS - 1) {
            for (size_t i = 0; i < count; i++)
                rows[i] = (struct cuda_draw){.greedy = kind == 0,
                                             .per_temperature = 3, /* of logits of deviation 1 */
                                             .share = (uint64_t)(i * 2 + 1) << 47,
                                             .top_k = kind == 2 ? 40 : VOCAB,
                                             .least = 1,
                                             .top_p = kind == 2 ? 0.95 : 1,
                                             .penalty = 1};
            WALSH_TRY(cuda_memory.upload(b->q, at, rows, count * sizeof *rows, b->err));
            const struct draws d = {(const struct cuda_draw *)(const void *)at, count, VOCAB, kind > 0};
            snprintf(size, sizeof size, "vocab=%d rows=%zu", VOCAB, count);
            WALSH_TRY(report(b, names[kind], size, GRAPH_CALLS, 4.0 * VOCAB * (double)count, 0,
                             b->ceilings->read_bandwidth, call_draw, &d));
        }
    }
    cuda_fill_random(b->d->stream, b->room, ROOM, 7);
    return WALSH_OK;
}

static enum walsh_status run(struct bench *b, struct walsh_device_ceilings *ceilings)
{
    cuda_fill_random(b->d->stream, b->room, ROOM, 7);
    cuda_fill_normal(b->d->stream, CUDA_TYPE_BF16, b->scratch, BENCH_SCRATCH / 2, 9);
    WALSH_TRY(measure_ceilings(b, ceilings));
    b->ceilings = ceilings;
    WALSH_TRY(bench_rotations(b));
    WALSH_TRY(bench_products(b));
    WALSH_TRY(bench_attention(b, 1, 32768));
    WALSH_TRY(bench_attention(b, 32, 32768));
    WALSH_TRY(bench_draws(b));
    WALSH_TRY(cuda_bench_experts(b));
    WALSH_TRY(cuda_bench_load(b->q, b->pattern, b->row, b->user, b->err));
    return cuda_memory.synchronize(b->q, b->err);
}

enum walsh_status cuda_bench(const struct walsh_queue *q, const char *pattern,
                             struct walsh_device_ceilings *ceilings,
                             void (*row)(void *user, const struct walsh_device_bench_row *row), void *user,
                             struct walsh_error *err)
{
    struct bench b = {
        .q = q, .d = cuda_device_of(q), .pattern = pattern, .row = row, .user = user, .err = err};
    WALSH_TRY(cuda_memory.alloc(q, ROOM, "measurements", &b.room, err));
    enum walsh_status status = cuda_memory.alloc(q, BENCH_SCRATCH, "measurements", &b.scratch, err);
    if (status == WALSH_OK) status = run(&b, ceilings);
    cuda_memory.free(q, b.room);
    if (status == WALSH_OK || b.scratch) cuda_memory.free(q, b.scratch);
    return status;
}
