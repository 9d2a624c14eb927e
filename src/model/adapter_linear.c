/* Folding an update into its canonical form. */
#include "model/adapter.h"

#include <math.h>
#include <string.h>

#include "checkpoint/peft.h"

#define LINE_BYTES WALSH_ALIGNMENT

static size_t element_bytes(enum walsh_dtype storage)
{
    return storage == WALSH_F32 ? sizeof(float) : sizeof(uint16_t);
}

/* rows x columns values, times `scale`, into the zeroed matrix `to` of row stride `stride`. false: one is not
 * finite. */
static bool store(const float *from, size_t rows, size_t columns, double scale, enum walsh_dtype storage,
                  size_t stride, void *to)
{
    bool finite = true;
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j++) {
            float value = (float)(scale * (double)from[i * columns + j]);
            if (storage == WALSH_F32) {
                ((float *)to)[i * stride + j] = value;
            } else {
                const uint16_t half = walsh_bf16_from_f32(value);
                ((uint16_t *)to)[i * stride + j] = half;
                value = walsh_f32_from_bf16(half);
            }
            finite = finite && isfinite(value);
        }
    return finite;
}

static enum walsh_status build_a(const struct walsh_linear *linear, const struct walsh_adapter_source *source,
                                 struct walsh_arena *arena, struct walsh_adapter_linear *out,
                                 struct walsh_error *err)
{
    if (!source->a) {
        const struct walsh_adapter_linear *same = source->same_a;
        if (same->in != out->in || same->rank != out->rank || same->storage != out->storage)
            return walsh_fail(err, WALSH_E_INTERNAL, "%s: its A is not another linear's", linear->name);
        out->a = same->a;
        return WALSH_OK;
    }
    const float *a = source->a;
    float *folded = NULL;
    void *to = NULL;
    if (source->convention == WALSH_ADAPTER_ROTATED_INPUT) {
        WALSH_TRY(walsh_alloc((size_t)out->rank * out->in, sizeof *folded, "a folded A", &folded, err));
        const enum walsh_status status = walsh_fold_rows(&linear->in_rotation, a, out->rank, folded, err);
        if (status != WALSH_OK) {
            walsh_free(folded);
            return status;
        }
        a = folded;
    }
    enum walsh_status status = walsh_arena_alloc(arena, (size_t)out->padded_rank * out->a_stride,
                                                 element_bytes(out->storage), "an adapter's A", &to, err);
    if (status == WALSH_OK && !store(a, out->rank, out->in, 1, out->storage, out->a_stride, to))
        status = walsh_fail(err, WALSH_E_FORMAT, "%s: the adapter's A holds NaN or Inf", linear->name);
    walsh_free(folded);
    out->a = to;
    return status;
}

/* forward() with reciprocal signs: with it inverse(R·v) == v for any signs but 0, not only for ±1. */
static enum walsh_status fold_b(const struct walsh_linear *linear, const float *b, uint32_t rank,
                                float *folded, struct walsh_error *err)
{
    struct walsh_rotation r = linear->out_rotation;
    float *reciprocal = NULL;
    if (r.kind == WALSH_ROTATION_NONE) return walsh_fold_columns(&r, b, rank, folded, err);
    WALSH_TRY(walsh_alloc(r.blocks.padded, sizeof *reciprocal, "reciprocal signs", &reciprocal, err));
    enum walsh_status status = WALSH_OK;
    for (uint32_t i = 0; i < r.blocks.padded && status == WALSH_OK; i++) {
        reciprocal[i] = i < r.size ? 1.0f / r.signs[i] : 1.0f;
        if (!isfinite(reciprocal[i]))
            status = walsh_fail(err, WALSH_E_UNSUPPORTED,
                                "%s: output sign %u is %g: no adapter can reach that output", linear->name, i,
                                (double)r.signs[i]);
    }
    r.signs = reciprocal;
    if (status == WALSH_OK) status = walsh_fold_columns(&r, b, rank, folded, err);
    walsh_free(reciprocal);
    return status;
}

static enum walsh_status build_b(const struct walsh_linear *linear, const struct walsh_adapter_source *source,
                                 struct walsh_arena *arena, struct walsh_adapter_linear *out,
                                 struct walsh_error *err)
{
    const float *b = source->b;
    float *folded = NULL;
    void *to = NULL;
    if (source->convention != WALSH_ADAPTER_ROTATED_OUTPUT) {
        WALSH_TRY(walsh_alloc((size_t)out->out * out->rank, sizeof *folded, "a folded B", &folded, err));
        const enum walsh_status status = fold_b(linear, b, out->rank, folded, err);
        if (status != WALSH_OK) {
            walsh_free(folded);
            return status;
        }
        b = folded;
    }
    const size_t rows = walsh_round_up(out->out, WALSH_ADAPTER_ROW_STEP);
    enum walsh_status status = walsh_arena_alloc(arena, rows * out->padded_rank, element_bytes(out->storage),
                                                 "an adapter's B", &to, err);
    if (status == WALSH_OK &&
        !store(b, out->out, out->rank, source->scale, out->storage, out->padded_rank, to))
        status = walsh_fail(err, WALSH_E_FORMAT, "%s: the adapter's B times its scale %g holds NaN or Inf",
                            linear->name, source->scale);
    walsh_free(folded);
    out->b = to;
    return status;
}

enum walsh_status walsh_adapter_linear_build(const struct walsh_linear *linear,
                                             const struct walsh_adapter_source *source,
                                             enum walsh_dtype storage, struct walsh_arena *arena,
                                             struct walsh_adapter_linear *out, struct walsh_error *err)
{
    memset(out, 0, sizeof *out);
    if (source->rank < 1 || source->rank > WALSH_MAX_LORA_RANK)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: an adapter of rank %u, expected 1 to %d", linear->name,
                          source->rank, WALSH_MAX_LORA_RANK);
    if (storage != WALSH_F32 && storage != WALSH_BF16)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: an adapter stored as %s, expected F32 or BF16",
                          linear->name, walsh_dtype_name(storage));
    const struct walsh_rotation *r = &linear->out_rotation;
    const size_t step = LINE_BYTES / element_bytes(storage);
    *out = (struct walsh_adapter_linear){
        .rank = source->rank,
        .padded_rank = (uint32_t)walsh_round_up(source->rank, WALSH_ADAPTER_RANK_STEP),
        .in = linear->in,
        .out = r->kind == WALSH_ROTATION_NONE ? linear->out : r->blocks.padded,
        .a_stride = (uint32_t)walsh_round_up(linear->in, step),
        .storage = storage,
    };
    WALSH_TRY(build_a(linear, source, arena, out, err));
    return build_b(linear, source, arena, out, err);
}

static float element(const void *data, enum walsh_dtype storage, size_t i)
{
    return storage == WALSH_F32 ? ((const float *)data)[i] : walsh_f32_from_bf16(((const uint16_t *)data)[i]);
}

float walsh_adapter_a(const struct walsh_adapter_linear *l, size_t j, size_t i)
{
    return element(l->a, l->storage, j * l->a_stride + i);
}

float walsh_adapter_b(const struct walsh_adapter_linear *l, size_t o, size_t j)
{
    return element(l->b, l->storage, o * l->padded_rank + j);
}
