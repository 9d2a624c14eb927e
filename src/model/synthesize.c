/* Models of random weights: the work and the memory traffic of a real one, without a checkpoint. Every piece
 * of a tensor is drawn from its own seed, so that threads share the work and the result does not depend on
 * them. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/random.h"
#include "base/scalar.h"
#include "formats/blocks.h"
#include "formats/e8p_planes.h"
#include "model/build.h"

#define PIECE ((size_t)1 << 16) /* bytes that one draw fills */
#define E8P_RMS 1.0937          /* of a component of the E8P code points: sqrt(9.5703 / 8) */

struct random_source {
    struct walsh_source source;
    struct walsh_model_graph *graph;
    const struct walsh_load_options *options;
    struct walsh_pool *pool;
    uint64_t seed;
    uint64_t tensors;         /* drawn so far; a tensor's seed is made of it */
    enum walsh_format format; /* BF16, E8P or a block format */
    unsigned bits;            /* of E8P */
    bool head_int8;
};

struct fill {
    uint8_t *data;
    size_t bytes;
    uint64_t seed;
    float scale; /* of bf16 values; 0: raw bytes */
};

static void fill_pieces(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct fill *f = argument;
    for (size_t piece = begin; piece < end; piece++) {
        struct walsh_random random;
        walsh_random_seed(&random, walsh_mix64(f->seed ^ walsh_mix64(piece)));
        uint8_t *p = f->data + piece * PIECE;
        size_t bytes = walsh_min(PIECE, f->bytes - piece * PIECE);
        for (size_t i = 0; i < bytes; i += 8) {
            uint64_t u = walsh_random_u64(&random);
            if (f->scale != 0) {
                uint16_t lane[4];
                memcpy(lane, &u, sizeof lane);
                for (unsigned j = 0; j < 4; j++)
                    lane[j] = walsh_bf16_from_f32((float)(int16_t)lane[j] * f->scale);
                memcpy(&u, lane, sizeof lane);
            }
            memcpy(p + i, &u, walsh_min(8, bytes - i));
        }
    }
}

/* `bytes` random bytes, or bf16 values uniform with standard deviation `deviation` where that is not 0. */
static enum walsh_status draw(struct random_source *s, size_t bytes, double deviation, const void **out,
                              struct walsh_error *err)
{
    uint8_t *data;
    WALSH_TRY(walsh_arena_alloc_uninitialised(&s->graph->arena, bytes, 1, "random weights", &data, err));
    struct fill f = {data, bytes, walsh_mix64(s->seed + s->tensors++), 0};
    if (deviation != 0)
        f.scale = (float)(deviation * sqrt(3) / 32768); /* of an int16: uniform in +-deviation*sqrt(3) */
    walsh_pool_run(s->pool, walsh_div_up(bytes, PIECE), 1, fill_pieces, &f);
    *out = data;
    return WALSH_OK;
}

static enum walsh_status random_table(struct walsh_source *source, const char *name, uint32_t rows,
                                      uint32_t cols, struct walsh_weights *table, struct walsh_error *err)
{
    (void)name;
    struct random_source *s = (struct random_source *)source;
    *table = (struct walsh_weights){.format = WALSH_FORMAT_BF16, .rows = rows, .cols = cols};
    size_t bytes;
    if (!walsh_mul((size_t)rows * 2, cols, &bytes))
        return walsh_fail(err, WALSH_E_MEMORY, "random weights: %u x %u do not fit", rows, cols);
    return draw(s, bytes, 1 / sqrt(cols), &table->data, err);
}

static enum walsh_status random_rotation(struct random_source *s, const char *name, const char *side,
                                         uint32_t size, uint32_t min_block, struct walsh_rotation *out,
                                         struct walsh_error *err)
{
    *out = (struct walsh_rotation){.kind = WALSH_ROTATION_BLOCKS, .size = size};
    WALSH_TRY(walsh_blocks_binary(size, min_block, &out->blocks, err));
    float *signs;
    WALSH_TRY(walsh_arena_alloc(&s->graph->arena, out->blocks.padded, sizeof *signs, "signs", &signs, err));
    char stream[300];
    snprintf(stream, sizeof stream, "%s.%s", name, side);
    walsh_random_signs(s->seed, stream, signs, out->blocks.padded);
    out->signs = signs;
    return WALSH_OK;
}

/* Codes are drawn in the run-time layout, where every byte is a code; only the columns that pad a block
 * differ from a packed matrix, and products multiply them by zero. */
static enum walsh_status random_e8p(struct random_source *s, const char *name, uint32_t in, uint32_t out,
                                    struct walsh_linear *linear, struct walsh_error *err)
{
    struct walsh_e8p_plan plan;
    WALSH_TRY(walsh_e8p_plan_bits(s->bits, &plan, err));
    /* As in the checkpoints that walsh writes, linears that read the same input share its signs: q, k and v
     * of a layer, gate and up of an MLP or of one expert. Two experts do not. */
    const char *dot = strrchr(name, '.');
    char block[256];
    snprintf(block, sizeof block, "%.*s", dot ? (int)(dot - name) : 0, name);
    WALSH_TRY(random_rotation(s, block, "SV", in, WALSH_MIN_BLOCK_COLUMNS, &linear->in_rotation, err));
    if (linear->in_rotation.blocks.padded > WALSH_STAGE_MAX_COLUMNS)
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "%s: %u columns in e8p, expected at most %u", name,
                          linear->in_rotation.blocks.padded, WALSH_STAGE_MAX_COLUMNS);
    WALSH_TRY(random_rotation(s, name, "SU", out, WALSH_MIN_BLOCK_ROWS, &linear->out_rotation, err));
    struct walsh_weights *w = &linear->weights;
    *w = (struct walsh_weights){.format = WALSH_FORMAT_E8P,
                                .rows = linear->out_rotation.blocks.padded,
                                .cols = linear->in_rotation.blocks.padded,
                                .stages = plan.stages};
    for (unsigned k = 0; k < plan.stages; k++) {
        w->stage[k].kind = plan.kind[k];
        w->stage[k].scale = (float)(plan.cumulative_inverse[k] / (E8P_RMS * sqrt(in)));
        WALSH_TRY(draw(s, walsh_stage_bytes(plan.kind[k], w->rows, w->cols), 0, &w->stage[k].data, err));
    }
    return WALSH_OK;
}

/* What walsh quantize would write: groups of 128 integers with zero points, of the formats' own otherwise. */
static struct walsh_block_type block_type(enum walsh_format format)
{
    switch (format) {
    case WALSH_FORMAT_NVFP4:
        return (struct walsh_block_type){WALSH_CODE_E2M1, WALSH_SCALE_E4M3, 16};
    case WALSH_FORMAT_MXFP8:
        return (struct walsh_block_type){WALSH_CODE_E4M3, WALSH_SCALE_E8M0, 32};
    case WALSH_FORMAT_FP8:
        return (struct walsh_block_type){WALSH_CODE_E4M3, WALSH_SCALE_F32, 0};
    case WALSH_FORMAT_INT8:
        return (struct walsh_block_type){WALSH_CODE_U8, WALSH_SCALE_BF16, 128};
    case WALSH_FORMAT_INT4:
        return (struct walsh_block_type){WALSH_CODE_U4, WALSH_SCALE_BF16, 128};
    default:
        return (struct walsh_block_type){WALSH_CODE_E2M1, WALSH_SCALE_E8M0, 32};
    }
}

/* Bits of a scale near `value`. */
static uint32_t scale_near(enum walsh_scale type, float value)
{
    switch (type) {
    case WALSH_SCALE_E8M0:
        return walsh_bits_from_float(value) >> 23;
    case WALSH_SCALE_E4M3:
        return walsh_e4m3_from_f32(value);
    case WALSH_SCALE_BF16:
        return walsh_bf16_from_f32(value);
    case WALSH_SCALE_F32:
        break;
    }
    return walsh_bits_from_float(value);
}

/* Random codes; scales that make the weights' deviation 1/sqrt(in). */
static enum walsh_status random_blocks(struct random_source *s, const char *name, enum walsh_format format,
                                       struct walsh_block_type type, uint32_t in, uint32_t out,
                                       struct walsh_weights *w, struct walsh_error *err)
{
    *w = (struct walsh_weights){.format = format, .rows = out, .cols = in, .block = type, .tensor_scale = 1};
    if (in > WALSH_BLOCK_MAX_COLUMNS)
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "%s: %u columns in %s, expected at most %u", name, in,
                          walsh_format_name(format), WALSH_BLOCK_MAX_COLUMNS);
    const size_t words = walsh_block_data_words(w), count = walsh_block_scale_count(w);
    const size_t scale_bytes = walsh_scale_bytes(w->block.scale);
    /* of a random code: E2M1 2.8, U4 4.6, U8 74; E4M3 without its upper half 0.4 */
    const float deviation = w->block.code == WALSH_CODE_E2M1 ? 2.8f
                            : w->block.code == WALSH_CODE_U4 ? 4.6f
                            : w->block.code == WALSH_CODE_U8 ? 74
                                                             : .4f;
    float scale = 1 / (deviation * sqrtf((float)in));
    if (w->block.scale == WALSH_SCALE_E4M3) {
        w->tensor_scale = scale;
        scale = 1;
    }
    const uint32_t bits = scale_near(w->block.scale, scale);
    uint8_t *scales, *zeros = NULL;
    WALSH_TRY(draw(s, words * sizeof(uint32_t), 0, &w->data, err));
    WALSH_TRY(walsh_arena_alloc(&s->graph->arena, count, scale_bytes, "scales", &scales, err));
    for (size_t i = 0; i < count; i++) memcpy(scales + i * scale_bytes, &bits, scale_bytes);
    w->scales = scales;
    if (w->block.code == WALSH_CODE_E4M3) { /* without NaN */
        uint32_t *codes = (uint32_t *)(uintptr_t)w->data;
        for (size_t i = 0; i < words; i++) codes[i] &= 0xbfbfbfbfu;
    }
    if (w->block.code != WALSH_CODE_U4 && w->block.code != WALSH_CODE_U8) return WALSH_OK;
    WALSH_TRY(walsh_arena_alloc(&s->graph->arena, count, 1, "zero points", &zeros, err));
    memset(zeros, w->block.code == WALSH_CODE_U4 ? 8 : 128, count);
    w->zeros = zeros;
    return WALSH_OK;
}

/* A head as quantize/head.h writes it. */
static enum walsh_status random_head(struct random_source *s, const char *name, uint32_t in, uint32_t out,
                                     struct walsh_linear *linear, struct walsh_error *err)
{
    const struct walsh_block_type rows = {WALSH_CODE_U8, WALSH_SCALE_F32, 0};
    WALSH_TRY(random_rotation(s, name, "SV", in, WALSH_MIN_BLOCK_COLUMNS, &linear->in_rotation, err));
    WALSH_TRY(random_blocks(s, name, WALSH_FORMAT_INT8, rows, linear->in_rotation.blocks.padded, out,
                            &linear->weights, err));
    linear->weights.zeros = NULL; /* it writes none */
    return WALSH_OK;
}

static enum walsh_status random_linear(struct walsh_source *source, const char *name,
                                       const struct walsh_fusion *fusion, enum walsh_linear_role role,
                                       uint32_t in, uint32_t out, bool bias, struct walsh_linear *linear,
                                       struct walsh_error *err)
{
    (void)fusion, (void)bias; /* no shape has one */
    struct random_source *s = (struct random_source *)source;
    *linear = (struct walsh_linear){.in = in, .out = out};
    char *copy;
    WALSH_TRY(walsh_arena_strdup(&s->graph->arena, name, &copy, err));
    linear->name = copy;
    const bool packed = role == WALSH_LINEAR_LAYER || role == WALSH_LINEAR_OUTPUT;
    linear->in_rotation = (struct walsh_rotation){.size = in, .blocks = {.padded = in}};
    linear->out_rotation = (struct walsh_rotation){.size = out, .blocks = {.padded = out}};
    if (packed && s->format == WALSH_FORMAT_E8P)
        WALSH_TRY(random_e8p(s, name, in, out, linear, err));
    else if (packed && walsh_format_is_block(s->format))
        WALSH_TRY(random_blocks(s, name, s->format, block_type(s->format), in, out, &linear->weights, err));
    else if (role == WALSH_LINEAR_HEAD && s->head_int8)
        WALSH_TRY(random_head(s, name, in, out, linear, err));
    else
        WALSH_TRY(random_table(source, name, out, in, &linear->weights, err));
    linear->activation =
        role == WALSH_LINEAR_ROUTER
            ? WALSH_ACTIVATION_F32
            : walsh_linear_activation(linear->weights.format, s->options->rotated, s->options->dense);
    return WALSH_OK;
}

static enum walsh_status unit_vector(struct walsh_source *source, const char *name, uint32_t n,
                                     float **values, struct walsh_error *err)
{
    struct random_source *s = (struct random_source *)source;
    float *ones;
    WALSH_TRY(walsh_arena_alloc(&s->graph->arena, n, sizeof *ones, name, &ones, err));
    for (uint32_t i = 0; i < n; i++) ones[i] = 1;
    *values = ones;
    return WALSH_OK;
}

enum walsh_status walsh_graph_synthesize(const struct walsh_config *config, enum walsh_format format,
                                         unsigned bits, bool head_int8, uint64_t seed,
                                         const struct walsh_load_options *options,
                                         const struct walsh_queue *queue, struct walsh_model_graph **out,
                                         struct walsh_error *err)
{
    *out = NULL;
    double start = walsh_now();
    struct walsh_model_graph *graph;
    WALSH_TRY(walsh_alloc_zero(1, sizeof *graph, "the model", &graph, err));
    graph->config = *config;
    graph->generation =
        (struct walsh_generation_config){.temperature = 1, .top_p = 1, .repetition_penalty = 1, .bos = -1};
    struct random_source source = {
        .source = {.linear = random_linear, .vector = unit_vector, .table = random_table},
        .graph = graph,
        .options = options,
        .pool = queue->pool,
        .seed = seed,
        .format = format,
        .bits = bits,
        .head_int8 = head_int8};
    enum walsh_status status = walsh_graph_build(graph, &source.source, options->dense, queue->pool, err);
    if (status == WALSH_OK) status = walsh_graph_upload(graph, queue, err);
    if (status != WALSH_OK) {
        walsh_graph_close(&graph);
        return status;
    }
    graph->load_seconds = walsh_now() - start;
    *out = graph;
    return WALSH_OK;
}
