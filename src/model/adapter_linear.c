/* Folding an update into its canonical form. */
#include "model/adapter.h"

#include <math.h>
#include <string.h>

#include "checkpoint/peft.h"

static size_t element_bytes(enum walsh_format storage)
{
    return storage == WALSH_FORMAT_F32 ? sizeof(float) : sizeof(uint16_t);
}

/* A and B into their zeroed matrices. false: a value is not finite there. */
static bool store_a(const struct walsh_adapter_linear *l, const float *from, void *to)
{
    bool finite = true;
    for (size_t j = 0; j < l->rank; j++)
        for (size_t i = 0; i < l->in; i++) {
            const size_t at = walsh_low_rank_a_at(l->storage, l->in, j, i);
            walsh_low_rank_put(l->storage, to, at, from[j * l->in + i]);
            finite = finite && isfinite(walsh_low_rank_get(l->storage, to, at));
        }
    return finite;
}

static bool store_b(const struct walsh_adapter_linear *l, const float *from, double scale, void *to)
{
    bool finite = true;
    for (size_t o = 0; o < l->out; o++)
        for (size_t j = 0; j < l->rank; j++) {
            const size_t at = walsh_low_rank_b_at(l->storage, l->rank, o, j);
            walsh_low_rank_put(l->storage, to, at, (float)(scale * (double)from[o * l->rank + j]));
            finite = finite && isfinite(walsh_low_rank_get(l->storage, to, at));
        }
    return finite;
}

static enum walsh_status build_a(const struct walsh_linear *linear, const struct walsh_adapter_source *source,
                                 struct walsh_arena *arena, struct walsh_adapter_linear *out,
                                 struct walsh_error *err)
{
    if (!source->a) {
        struct walsh_adapter_linear *same = source->same_a;
        if (same->in != out->in || same->rank != out->rank || same->storage != out->storage)
            return walsh_fail(err, WALSH_E_INTERNAL, "%s: its A is not another linear's", linear->name);
        out->a = same->a;
        out->shared_a = same->shared_a = true;
        return WALSH_OK;
    }
    const float *a = source->a;
    float *folded = NULL;
    void *to = NULL;
    if (source->convention == WALSH_ADAPTER_ROTATED_INPUT) {
        WALSH_TRY(walsh_alloc((size_t)out->rank * out->in, sizeof *folded, "a folded A", &folded, err));
        const struct walsh_rotation rotation = walsh_linear_host_in(linear);
        const enum walsh_status status = walsh_fold_rows(&rotation, a, out->rank, folded, err);
        if (status != WALSH_OK) {
            walsh_free(folded);
            return status;
        }
        a = folded;
    }
    enum walsh_status status = walsh_arena_alloc(arena, walsh_low_rank_a_size(out->rank, out->in),
                                                 element_bytes(out->storage), "an adapter's A", &to, err);
    if (status == WALSH_OK && !store_a(out, a, to))
        status = walsh_fail(err, WALSH_E_FORMAT, "%s: the adapter's A holds NaN or Inf", linear->name);
    walsh_free(folded);
    out->a = to;
    return status;
}

/* forward() with reciprocal signs: with it inverse(R·v) == v for any signs but 0, not only for ±1. */
static enum walsh_status fold_b(const struct walsh_linear *linear, const float *b, uint32_t rank,
                                float *folded, struct walsh_error *err)
{
    struct walsh_rotation r = walsh_linear_host_out(linear);
    float *reciprocal = NULL;
    if (r.kind == WALSH_ROTATION_NONE) return walsh_fold_columns(&r, b, rank, folded, err);
    const size_t signs = walsh_rotation_signs(&r);
    WALSH_TRY(walsh_alloc(signs, sizeof *reciprocal, "reciprocal signs", &reciprocal, err));
    enum walsh_status status = WALSH_OK;
    for (size_t i = 0; i < signs && status == WALSH_OK; i++) {
        const bool padding = i >= r.size && i < r.blocks.padded;
        reciprocal[i] = padding ? 1.0f : 1.0f / r.signs[i];
        if (!isfinite(reciprocal[i]))
            status = walsh_fail(err, WALSH_E_UNSUPPORTED,
                                "%s: output sign %zu is %g: no adapter can reach that output", linear->name,
                                i, (double)r.signs[i]);
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
    enum walsh_status status =
        walsh_arena_alloc(arena, walsh_low_rank_b_size(out->storage, out->rank, out->out),
                          element_bytes(out->storage), "an adapter's B", &to, err);
    if (status == WALSH_OK && !store_b(out, b, source->scale, to))
        status = walsh_fail(err, WALSH_E_FORMAT, "%s: the adapter's B times its scale %g holds NaN or Inf",
                            linear->name, source->scale);
    walsh_free(folded);
    out->b = to;
    return status;
}

enum walsh_status walsh_adapter_linear_build(const struct walsh_linear *linear,
                                             const struct walsh_adapter_source *source,
                                             enum walsh_format storage, struct walsh_arena *arena,
                                             struct walsh_adapter_linear *out, struct walsh_error *err)
{
    memset(out, 0, sizeof *out);
    if (source->rank < 1 || source->rank > WALSH_MAX_LORA_RANK)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: an adapter of rank %u, expected 1 to %d", linear->name,
                          source->rank, WALSH_MAX_LORA_RANK);
    if (storage != WALSH_FORMAT_F32 && storage != WALSH_FORMAT_BF16)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: an adapter stored as %s, expected f32 or bf16",
                          linear->name, walsh_format_name(storage));
    *out = (struct walsh_adapter_linear){
        .rank = source->rank,
        .in = linear->in,
        .out = linear->out_rotation.blocks.padded,
        .storage = storage,
    };
    WALSH_TRY(build_a(linear, source, arena, out, err));
    return build_b(linear, source, arena, out, err);
}

float walsh_adapter_a(const struct walsh_adapter_linear *l, size_t j, size_t i)
{
    return walsh_low_rank_get(l->storage, l->a, walsh_low_rank_a_at(l->storage, l->in, j, i));
}

float walsh_adapter_b(const struct walsh_adapter_linear *l, size_t o, size_t j)
{
    return walsh_low_rank_get(l->storage, l->b, walsh_low_rank_b_at(l->storage, l->rank, o, j));
}
