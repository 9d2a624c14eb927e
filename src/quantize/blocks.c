#include "quantize/blocks.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "formats/affine.h"
#include "formats/blocks.h"

#define NAME_SIZE 320

/* What a format's rows are made of; bytes of a row. */
struct row_layout {
    struct walsh_block_type block;
    bool words, zeros; /* codes in words of 32 bits; with zero points */
    size_t groups, code_bytes, scale_bytes;
};

static struct row_layout layout_of(const struct walsh_block_writer *b, uint32_t cols)
{
    struct row_layout l = {.block = {WALSH_CODE_E2M1, WALSH_SCALE_E8M0, WALSH_MX_GROUP}};
    switch (b->format) {
    case WALSH_FORMAT_NVFP4:
        l.block = (struct walsh_block_type){WALSH_CODE_E2M1, WALSH_SCALE_E4M3, WALSH_NVFP4_GROUP};
        break;
    case WALSH_FORMAT_MXFP8:
        l.block.code = WALSH_CODE_E4M3;
        break;
    case WALSH_FORMAT_FP8:
        l.block = (struct walsh_block_type){WALSH_CODE_E4M3, WALSH_SCALE_F32, 0};
        break;
    case WALSH_FORMAT_INT4:
    case WALSH_FORMAT_INT8:
        l.block = (struct walsh_block_type){b->format == WALSH_FORMAT_INT4 ? WALSH_CODE_U4 : WALSH_CODE_U8,
                                            WALSH_SCALE_BF16, b->group};
        l.words = l.zeros = true;
        break;
    default: /* MXFP4 */
        break;
    }
    l.groups = l.block.group ? cols / l.block.group : 1;
    l.code_bytes = (size_t)cols * walsh_code_bits(l.block.code) / 8;
    l.scale_bytes = l.groups * walsh_scale_bytes(l.block.scale);
    return l;
}

bool walsh_block_is_stacked(const struct walsh_block_writer *b, const struct walsh_linear *linear,
                            bool rotated)
{
    return b->format == WALSH_FORMAT_MXFP4 && linear->fusion.stack != 0 && !rotated;
}

/* --- planning --- */

struct planning {
    struct walsh_safetensors_plan *plan;
    const char *module;
    uint64_t bytes;
    struct walsh_error *err;
};

static enum walsh_status add(struct planning *p, const char *suffix, enum walsh_dtype dtype, unsigned rank,
                             const uint64_t *shape)
{
    char name[NAME_SIZE];
    uint64_t bytes = walsh_dtype_size(dtype);
    for (unsigned i = 0; i < rank; i++) bytes *= shape[i];
    p->bytes += bytes;
    snprintf(name, sizeof name, "%s%s", p->module, suffix);
    return walsh_plan_add(p->plan, name, dtype, rank, shape, p->err);
}

static enum walsh_status add_matrix(struct planning *p, const char *suffix, enum walsh_dtype dtype,
                                    uint64_t rows, uint64_t cols)
{
    const uint64_t shape[] = {rows, cols};
    return add(p, suffix, dtype, 2, shape);
}

static enum walsh_status plan_stack(struct planning *p, const struct walsh_linear *linear)
{
    const struct walsh_fusion *f = &linear->fusion;
    const uint64_t blocks[] = {f->stack, f->rows, linear->in / 32, 16};
    p->module = f->name;
    WALSH_TRY(add(p, "_blocks", WALSH_U8, 4, blocks));
    return add(p, "_scales", WALSH_U8, 3, blocks);
}

static enum walsh_status check_columns(const struct row_layout *l, const struct walsh_linear *linear,
                                       uint32_t cols, struct walsh_error *err)
{
    const uint32_t multiple = l->block.group ? l->block.group : l->words ? 8 : 2;
    if (cols % multiple == 0) return WALSH_OK;
    return walsh_fail(err, WALSH_E_UNSUPPORTED, "%s has %u columns, which groups of %u do not divide",
                      linear->name, cols, multiple);
}

enum walsh_status walsh_block_plan(const struct walsh_block_writer *b, const struct walsh_linear *linear,
                                   uint32_t rows, uint32_t cols, bool stacked,
                                   struct walsh_safetensors_plan *plan, uint64_t *bytes,
                                   struct walsh_error *err)
{
    const struct row_layout l = layout_of(b, cols);
    struct planning p = {plan, linear->name, 0, err};
    *bytes = (uint64_t)rows * (l.code_bytes + l.scale_bytes);
    WALSH_TRY(check_columns(&l, linear, cols, err));
    if (stacked)
        return linear->fusion.matrix == 0 && linear->fusion.row == 0 ? plan_stack(&p, linear) : WALSH_OK;
    switch (b->format) {
    case WALSH_FORMAT_MXFP4:
        WALSH_TRY(add_matrix(&p, ".weight_packed", WALSH_U8, rows, l.code_bytes));
        WALSH_TRY(add_matrix(&p, ".weight_scale", WALSH_U8, rows, l.groups));
        break;
    case WALSH_FORMAT_NVFP4:
        WALSH_TRY(add_matrix(&p, ".weight_packed", WALSH_U8, rows, l.code_bytes));
        WALSH_TRY(add_matrix(&p, ".weight_scale", WALSH_F8_E4M3, rows, l.groups));
        WALSH_TRY(add(&p, ".weight_global_scale", WALSH_F32, 1, (const uint64_t[]){1}));
        break;
    case WALSH_FORMAT_MXFP8:
    case WALSH_FORMAT_FP8:
        WALSH_TRY(add_matrix(&p, ".weight", WALSH_F8_E4M3, rows, cols));
        WALSH_TRY(add_matrix(&p, ".weight_scale", b->format == WALSH_FORMAT_FP8 ? WALSH_F32 : WALSH_U8, rows,
                             l.groups));
        break;
    default: {
        const unsigned in_word = 32 / walsh_code_bits(l.block.code);
        WALSH_TRY(add_matrix(&p, ".weight_packed", WALSH_I32, rows, walsh_div_up(cols, in_word)));
        WALSH_TRY(add_matrix(&p, ".weight_scale", WALSH_BF16, rows, l.groups));
        WALSH_TRY(add_matrix(&p, ".weight_zero_point", WALSH_I32, walsh_div_up(rows, in_word), l.groups));
        WALSH_TRY(add(&p, ".weight_shape", WALSH_I64, 1, (const uint64_t[]){2}));
    }
    }
    *bytes = p.bytes;
    return WALSH_OK;
}

/* --- encoding --- */

struct encoding {
    const struct walsh_block_writer *writer;
    struct row_layout l;
    const float *w;
    uint32_t rows, cols;
    float tensor_scale;              /* NVFP4 */
    uint8_t *codes, *scales, *zeros; /* [rows] of code_bytes, scale_bytes, groups */
    double *lost, *whole;            /* [rows] sums of squares */
    atomic_bool broken;              /* NaN or Inf */
};

/* A group of one row; plain: a code per byte. */
static void encode_group(struct encoding *e, size_t r, size_t g, size_t n, uint8_t *plain)
{
    const float *x = e->w + r * e->cols + g * n;
    const enum walsh_code code = e->l.block.code;
    float scale, tensor_scale = 1;
    uint32_t bits = 0;
    int zero = 0;
    if (e->l.zeros) {
        const unsigned width = walsh_code_bits(code);
        float least = 0, most = 0;
        for (size_t i = 0; i < n; i++) {
            least = fminf(least, x[i]);
            most = fmaxf(most, x[i]);
        }
        const struct walsh_affine a = walsh_affine_scale(least, most, width, false, true);
        walsh_affine_encode(x, n, width, &a, (int8_t *)plain);
        zero = a.zero + (1 << (width - 1));
        for (size_t i = 0; i < n; i++) plain[i] = (uint8_t)(plain[i] + (1u << (width - 1)));
        e->zeros[r * e->l.groups + g] = (uint8_t)zero;
        bits = walsh_bf16_from_f32(a.scale);
    } else if (e->writer->format == WALSH_FORMAT_NVFP4) {
        bits = walsh_nvfp4_encode(x, n, e->tensor_scale, plain);
        tensor_scale = e->tensor_scale;
    } else if (e->writer->format == WALSH_FORMAT_FP8) {
        walsh_fp8_encode(x, n, plain, &scale);
        bits = walsh_bits_from_float(scale);
    } else {
        bits = walsh_mx_encode(x, n, code, e->writer->rounding, plain);
    }
    const size_t bytes = walsh_scale_bytes(e->l.block.scale);
    memcpy(e->scales + r * e->l.scale_bytes + g * bytes, &bits, bytes); /* little-endian */
    scale = walsh_scale_value(e->l.block.scale, bits) * tensor_scale;
    for (size_t i = 0; i < n; i++) {
        const double d = (double)x[i] - ((double)walsh_code_value(code, plain[i]) - zero) * (double)scale;
        e->lost[r] += d * d;
        e->whole[r] += (double)x[i] * (double)x[i];
    }
}

static void encode_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    struct encoding *e = argument;
    const size_t n = e->l.block.group ? e->l.block.group : e->cols;
    const bool nibbles = walsh_code_bits(e->l.block.code) == 4;
    uint8_t group[256];
    (void)worker;
    for (size_t r = begin; r < end; r++) {
        for (size_t k = 0; k < e->cols; k++)
            if (!isfinite(e->w[r * e->cols + k])) {
                atomic_store_explicit(&e->broken, true, memory_order_relaxed);
                return;
            }
        for (size_t g = 0; g < e->l.groups; g++) {
            uint8_t *to = e->codes + r * e->l.code_bytes + g * n * (nibbles ? 1 : 2) / 2;
            if (!nibbles) {
                encode_group(e, r, g, n, to);
                continue;
            }
            encode_group(e, r, g, n, group);
            for (size_t i = 0; i < n; i += 2) to[i / 2] = (uint8_t)(group[i] | group[i + 1] << 4);
        }
    }
}

/* --- writing --- */

static enum walsh_status write(struct walsh_output *o, const char *module, const char *suffix,
                               const void *data, size_t bytes, struct walsh_error *err)
{
    char name[NAME_SIZE];
    snprintf(name, sizeof name, "%s%s", module, suffix);
    return walsh_output_write(o, name, data, bytes, err);
}

/* Rows of a stack's matrix: every `step`-th. */
static enum walsh_status write_stacked(struct walsh_output *o, const struct walsh_fusion *f,
                                       const struct encoding *e, struct walsh_error *err)
{
    char blocks[NAME_SIZE], scales[NAME_SIZE];
    snprintf(blocks, sizeof blocks, "%s_blocks", f->name);
    snprintf(scales, sizeof scales, "%s_scales", f->name);
    const size_t step = f->step ? f->step : 1;
    const size_t run = step == 1 ? e->rows : 1; /* rows that stay together */
    for (size_t r = 0; r < e->rows; r += run) {
        const size_t at = (size_t)f->matrix * f->rows + f->row + r * step;
        WALSH_TRY(walsh_output_write_at(o, blocks, at * e->l.code_bytes, e->codes + r * e->l.code_bytes,
                                        run * e->l.code_bytes, err));
        WALSH_TRY(walsh_output_write_at(o, scales, at * e->l.scale_bytes, e->scales + r * e->l.scale_bytes,
                                        run * e->l.scale_bytes, err));
    }
    return WALSH_OK;
}

/* Zero points of in_word rows share a word. */
static enum walsh_status write_zeros(struct walsh_output *o, const char *module, const struct encoding *e,
                                     struct walsh_error *err)
{
    const unsigned bits = walsh_code_bits(e->l.block.code), in_word = 32 / bits;
    const size_t words = walsh_div_up(e->rows, in_word) * e->l.groups;
    uint32_t *packed;
    WALSH_TRY(walsh_alloc_zero(words, sizeof *packed, module, &packed, err));
    for (size_t r = 0; r < e->rows; r++)
        for (size_t g = 0; g < e->l.groups; g++)
            packed[r / in_word * e->l.groups + g] |= (uint32_t)e->zeros[r * e->l.groups + g]
                                                     << bits * (r % in_word);
    const enum walsh_status status =
        write(o, module, ".weight_zero_point", packed, words * sizeof *packed, err);
    walsh_free(packed);
    return status;
}

static enum walsh_status write_encoded(struct walsh_output *o, const struct walsh_linear *linear,
                                       const struct encoding *e, struct walsh_error *err)
{
    const bool packed = e->l.words || walsh_code_bits(e->l.block.code) == 4;
    WALSH_TRY(write(o, linear->name, packed ? ".weight_packed" : ".weight", e->codes,
                    e->rows * e->l.code_bytes, err));
    WALSH_TRY(write(o, linear->name, ".weight_scale", e->scales, e->rows * e->l.scale_bytes, err));
    if (e->writer->format == WALSH_FORMAT_NVFP4) {
        const float inverse = 1 / e->tensor_scale;
        return write(o, linear->name, ".weight_global_scale", &inverse, sizeof inverse, err);
    }
    if (!e->l.zeros) return WALSH_OK;
    const int64_t shape[] = {e->rows, e->cols};
    WALSH_TRY(write(o, linear->name, ".weight_shape", shape, sizeof shape, err));
    return write_zeros(o, linear->name, e, err);
}

static float largest(const float *w, size_t n)
{
    float amax = 0;
    for (size_t i = 0; i < n; i++) amax = fmaxf(amax, fabsf(w[i]));
    return amax;
}

enum walsh_status walsh_block_write(const struct walsh_block_writer *b, struct walsh_pool *pool,
                                    struct walsh_output *output, const struct walsh_linear *linear,
                                    const float *w, uint32_t rows, uint32_t cols, bool stacked, double *error,
                                    struct walsh_error *err)
{
    struct encoding e = {.writer = b, .l = layout_of(b, cols), .w = w, .rows = rows, .cols = cols};
    const size_t codes = walsh_round_up(rows * e.l.code_bytes, 64),
                 scales = walsh_round_up(rows * e.l.scale_bytes, 64),
                 zeros = walsh_round_up(rows * e.l.groups, 64);
    uint8_t *block;
    WALSH_TRY(
        walsh_alloc_zero(codes + scales + zeros + 2 * rows * sizeof(double), 1, linear->name, &block, err));
    e.codes = block;
    e.scales = block + codes;
    e.zeros = e.scales + scales;
    e.lost = (double *)(void *)(e.zeros + zeros);
    e.whole = e.lost + rows;
    if (b->format == WALSH_FORMAT_NVFP4) {
        /* readers divide by the stored reciprocal: what they divide by is what counts */
        e.tensor_scale = 1 / (1 / walsh_nvfp4_tensor_scale(largest(w, (size_t)rows * cols)));
    }
    walsh_pool_run(pool, rows, 8, encode_rows, &e);
    double lost = 0, whole = 0;
    for (size_t r = 0; r < rows; r++) {
        lost += e.lost[r];
        whole += e.whole[r];
    }
    *error = whole > 0 ? lost / whole : 0;
    enum walsh_status status = WALSH_OK;
    if (atomic_load(&e.broken))
        status = walsh_fail(err, WALSH_E_FORMAT, "%s: its weights hold NaN or Inf", linear->name);
    else
        status = stacked ? write_stacked(output, &linear->fusion, &e, err)
                         : write_encoded(output, linear, &e, err);
    walsh_free(block);
    return status;
}

/* --- config.json --- */

json_t *walsh_block_config(const struct walsh_block_writer *b, bool stacked, bool ours, const char *rotation,
                           uint32_t tensor_parallel)
{
    static const struct {
        const char *format, *type, *strategy;
        int bits;
    } names[WALSH_FORMAT_COUNT] = {
        [WALSH_FORMAT_MXFP4] = {"mxfp4-pack-quantized", "float", "group", 4},
        [WALSH_FORMAT_NVFP4] = {"nvfp4-pack-quantized", "float", "tensor_group", 4},
        [WALSH_FORMAT_MXFP8] = {"mxfp8-quantized", "float", "group", 8},
        [WALSH_FORMAT_FP8] = {"float-quantized", "float", "channel", 8},
        [WALSH_FORMAT_INT8] = {"pack-quantized", "int", "group", 8},
        [WALSH_FORMAT_INT4] = {"pack-quantized", "int", "group", 4},
    };
    const struct row_layout l = layout_of(b, 1024);
    if (ours)
        return json_pack("{s:{s:s, s:i, s:s, s:i, s:s, s:i}}", "quantization_config", "quant_method", "walsh",
                         "version", 1, "codebook", walsh_format_name(b->format), "group_size",
                         (int)l.block.group, "rotation", rotation, "tensor_parallel", (int)tensor_parallel);
    if (stacked)
        return json_pack("{s:{s:s, s:[s,s,s,s]}}", "quantization_config", "quant_method", "mxfp4",
                         "modules_to_not_convert", "model.layers.*.self_attn", "model.layers.*.mlp.router",
                         "model.embed_tokens", "lm_head");
    const char *format = names[b->format].format;
    json_t *weights = json_pack("{s:i, s:s, s:s, s:b, s:b}", "num_bits", names[b->format].bits, "type",
                                names[b->format].type, "strategy", names[b->format].strategy, "symmetric",
                                !l.zeros, "dynamic", 0);
    const char *dtype = l.block.scale == WALSH_SCALE_E8M0   ? "torch.uint8"
                        : l.block.scale == WALSH_SCALE_E4M3 ? "torch.float8_e4m3fn"
                                                            : NULL;
    bool good = weights != NULL;
    if (good && l.block.group)
        good = json_object_set_new(weights, "group_size", json_integer(l.block.group)) == 0;
    if (good && dtype) good = json_object_set_new(weights, "scale_dtype", json_string(dtype)) == 0;
    if (!good) {
        json_decref(weights);
        return NULL;
    }
    return json_pack("{s:{s:s, s:s, s:s, s:[s,s,s], s:{s:{s:[s], s:s, s:o, s:n, s:n}}, s:n}}",
                     "quantization_config", "quant_method", "compressed-tensors", "format", format,
                     "quantization_status", "compressed", "ignore", "lm_head", "re:.*mlp.gate$",
                     "re:.*block_sparse_moe.gate$", "config_groups", "group_0", "targets", "Linear", "format",
                     format, "weights", weights, "input_activations", "output_activations",
                     "kv_cache_scheme");
}
