#include "checkpoint/lalamo.h"

#include <stdio.h>
#include <string.h>

#define NAME_SIZE 400
#define MAX_RANK 256
#define KNOWN "FullPrecisionSpec, IntSpec, and HybridSpec of one of these and LowRankSpec"

/* A spec as the metadata has it. */
struct spec {
    enum { FULL, INT, HYBRID } kind;
    bool by_input; /* layout input_output */
    uint32_t bits, group;
    bool symmetric;
    uint32_t rank, block; /* of HYBRID; 0: none */
    bool rotates_input, rotates_output;
};

/* What a call looks at. */
struct taking {
    const struct walsh_checkpoint *ck;
    const char *module;
    char key[NAME_SIZE]; /* of the spec, for messages */
    enum walsh_lalamo_use use;
    uint32_t all, cols;
    struct walsh_error *err;
};

static const char *find_metadata(const struct walsh_checkpoint *ck, const char *key)
{
    for (size_t f = 0; f < ck->file_count; f++)
        for (size_t i = 0; i < ck->files[f].metadata_count; i++)
            if (strcmp(ck->files[f].metadata_keys[i], key) == 0) return ck->files[f].metadata_values[i];
    return NULL;
}

bool walsh_lalamo_present(const struct walsh_checkpoint *ck, const char *module)
{
    char key[NAME_SIZE];
    snprintf(key, sizeof key, "%s.spec", module);
    return find_metadata(ck, key) != NULL;
}

static enum walsh_status fail_value(const struct walsh_json_object *o, const char *key, const char *known,
                                    struct walsh_error *err)
{
    const json_t *value = json_object_get(o->object, key);
    const char *text = json_string_value(value);
    return walsh_fail(err, WALSH_E_UNSUPPORTED, "%s: %s%s is %.100s, expected %s", o->where, o->prefix, key,
                      text ? text : walsh_json_kind(value), known);
}

static enum walsh_status read_layout(const struct walsh_json_object *o, bool *by_input,
                                     struct walsh_error *err)
{
    const char *layout = "output_input";
    WALSH_TRY(walsh_json_string(o, "layout", false, &layout, err));
    *by_input = strcmp(layout, "input_output") == 0;
    return *by_input || strcmp(layout, "output_input") == 0
               ? WALSH_OK
               : fail_value(o, "layout", "output_input or input_output", err);
}

static enum walsh_status read_int(const struct walsh_json_object *o, struct spec *out,
                                  struct walsh_error *err)
{
    static const char *const keys[] = {"type", "bits", "group_size", "is_symmetric", "layout", NULL};
    WALSH_TRY(walsh_json_only(o, keys, err));
    out->kind = INT;
    WALSH_TRY(walsh_json_u32(o, "bits", true, 1, 32, &out->bits, err));
    WALSH_TRY(walsh_json_u32(o, "group_size", true, 1, 1u << 20, &out->group, err));
    WALSH_TRY(walsh_json_bool(o, "is_symmetric", &out->symmetric, err));
    if (out->bits != 4 && out->bits != 8) return fail_value(o, "bits", "4 or 8", err);
    if (out->group < WALSH_BLOCK_COLUMNS || (out->group & (out->group - 1)) != 0)
        return fail_value(o, "group_size", "a power of two from 32 on", err);
    return read_layout(o, &out->by_input, err);
}

static enum walsh_status read_values(const struct walsh_json_object *o, struct spec *out,
                                     struct walsh_error *err)
{
    static const char *const keys[] = {"type", "layout", NULL};
    const char *type = NULL;
    WALSH_TRY(walsh_json_string(o, "type", true, &type, err));
    if (strcmp(type, "IntSpec") == 0) return read_int(o, out, err);
    if (strcmp(type, "FullPrecisionSpec") != 0)
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "%s: %sspec \"%.100s\" is not supported; known: " KNOWN,
                          o->where, o->prefix, type);
    WALSH_TRY(walsh_json_only(o, keys, err));
    out->kind = FULL;
    return read_layout(o, &out->by_input, err);
}

static enum walsh_status read_hybrid(const struct walsh_json_object *o, struct spec *out,
                                     struct walsh_error *err)
{
    static const char *const keys[] = {
        "type", "quantization_spec", "adapter_spec", "incoherence_block_size", "incoherence_processing_mode",
        NULL};
    static const char *const adapter_keys[] = {"type", "rank", NULL};
    struct walsh_json_object values, adapter;
    WALSH_TRY(walsh_json_only(o, keys, err));
    WALSH_TRY(walsh_json_child(o, "quantization_spec", "quantization_spec.", &values, err));
    WALSH_TRY(read_values(&values, out, err));
    WALSH_TRY(walsh_json_child(o, "adapter_spec", "adapter_spec.", &adapter, err));
    if (adapter.object) {
        const char *type = NULL;
        WALSH_TRY(walsh_json_string(&adapter, "type", true, &type, err));
        if (strcmp(type, "LowRankSpec") != 0) return fail_value(&adapter, "type", "LowRankSpec", err);
        WALSH_TRY(walsh_json_only(&adapter, adapter_keys, err));
        WALSH_TRY(walsh_json_u32(&adapter, "rank", true, 1, MAX_RANK, &out->rank, err));
    }
    WALSH_TRY(walsh_json_u32(o, "incoherence_block_size", false, 1, 4096, &out->block, err));
    if (out->block != 0 && out->block != 32 && out->block != 64 && out->block != 128)
        return fail_value(o, "incoherence_block_size", "null, 32, 64 or 128", err);
    if (out->block == 0) return WALSH_OK;
    const char *mode = "input_output";
    WALSH_TRY(walsh_json_string(o, "incoherence_processing_mode", false, &mode, err));
    out->rotates_input = strcmp(mode, "output") != 0;
    out->rotates_output = strcmp(mode, "input") != 0;
    if (strcmp(mode, "input") != 0 && strcmp(mode, "output") != 0 && strcmp(mode, "input_output") != 0)
        return fail_value(o, "incoherence_processing_mode", "input, output or input_output", err);
    return WALSH_OK;
}

static enum walsh_status read_spec(const struct taking *t, struct spec *out, bool *hybrid)
{
    const char *text = find_metadata(t->ck, t->key);
    char where[NAME_SIZE + 300];
    struct walsh_json_object o = {.where = where, .prefix = ""};
    snprintf(where, sizeof where, "%.255s: metadata %s", t->ck->directory, t->key);
    if (!text)
        return walsh_fail(t->err, WALSH_E_FORMAT, "%s: no metadata %s in its files", t->ck->directory,
                          t->key);
    WALSH_TRY(walsh_json_parse(where, text, strlen(text), &o.object, t->err));
    const char *type = NULL;
    enum walsh_status status = walsh_json_string(&o, "type", true, &type, t->err);
    *hybrid = type && strcmp(type, "HybridSpec") == 0;
    if (status == WALSH_OK) status = *hybrid ? read_hybrid(&o, out, t->err) : read_values(&o, out, t->err);
    json_decref(o.object);
    return status;
}

/* MODULE.suffix, or MODULE.quantized.suffix of a hybrid's values. */
static enum walsh_status take(const struct taking *t, const char *suffix, unsigned dtypes, unsigned rank,
                              uint64_t rows, uint64_t cols, const struct walsh_tensor **out)
{
    char name[NAME_SIZE];
    const uint64_t shape[] = {rows, cols};
    snprintf(name, sizeof name, "%s.%s", t->module, suffix);
    return walsh_checkpoint_take(t->ck, name, dtypes, rank, shape, out, t->err);
}

static bool shaped(const struct taking *t, const char *suffix, uint64_t rows, uint64_t cols)
{
    char name[NAME_SIZE];
    snprintf(name, sizeof name, "%s.%s", t->module, suffix);
    const struct walsh_tensor *found = walsh_checkpoint_find(t->ck, name);
    return found && found->rank == 2 && found->shape[0] == rows && found->shape[1] == cols;
}

/* Scales and zero points lie by rows or by groups; where both would fit nothing says which. */
static enum walsh_status take_scales(const struct taking *t, const struct spec *spec, const char *suffix,
                                     struct walsh_block_source *s)
{
    const uint64_t groups = t->cols / spec->group, padded = walsh_round_up(t->all, 4);
    s->by_group = t->use == WALSH_LALAMO_LINEAR && shaped(t, suffix, groups, padded);
    if (s->by_group && groups == t->all)
        return walsh_fail(
            t->err, WALSH_E_UNSUPPORTED,
            "%s: %s.%s: %u rows and as many groups: whether scales lie by rows or by groups is unknown",
            t->ck->directory, t->module, suffix, t->all);
    s->scale_ld = (uint32_t)(s->by_group ? padded : groups);
    WALSH_TRY(take(t, suffix, WALSH_FLOAT_DTYPES, 2, s->by_group ? groups : t->all, s->scale_ld, &s->scales));
    s->block.scale = s->scales->dtype == WALSH_BF16 ? WALSH_SCALE_BF16 : WALSH_SCALE_F32;
    return WALSH_OK;
}

static enum walsh_status take_codes(const struct taking *t, const struct spec *spec, bool hybrid,
                                    uint32_t first, uint32_t rows, struct walsh_block_source *s)
{
    const char *const names[2][3] = {{"weights", "scales", "zero_points"},
                                     {"quantized.weights", "quantized.scales", "quantized.zero_points"}};
    if (t->cols % spec->group != 0 || t->cols > WALSH_BLOCK_MAX_COLUMNS)
        return walsh_fail(t->err, WALSH_E_UNSUPPORTED,
                          "%s: %s: %u columns in groups of %u, expected a multiple of at most %u",
                          t->ck->directory, t->module, t->cols, spec->group, WALSH_BLOCK_MAX_COLUMNS);
    *s = (struct walsh_block_source){
        .format = spec->bits == 4 ? WALSH_FORMAT_INT4 : WALSH_FORMAT_INT8,
        .block = {.code = spec->bits == 4 ? WALSH_CODE_U4 : WALSH_CODE_U8, .group = spec->group},
        .tensor_scale = 1,
        .rows = rows,
        .cols = t->cols,
        .first = first,
        .step = 1,
        .matrix_rows = t->all,
        .row_bytes = (size_t)t->cols * spec->bits / 8,
        .scale_rows = 1};
    WALSH_TRY(take(t, names[hybrid][0], 1u << WALSH_U8, 2, t->all, s->row_bytes, &s->codes));
    WALSH_TRY(take_scales(t, spec, names[hybrid][1], s));
    if (spec->symmetric) return WALSH_OK;
    s->zero_bytes = walsh_div_up((size_t)s->scale_ld * spec->bits, 8);
    return take(t, names[hybrid][2], 1u << WALSH_U8, 2, s->by_group ? t->cols / spec->group : t->all,
                s->zero_bytes, &s->zeros);
}

/* I32 of 1 and -1. */
static enum walsh_status take_signs(const struct taking *t, const char *which, uint32_t n, uint32_t block,
                                    const struct walsh_tensor **out)
{
    char suffix[64];
    snprintf(suffix, sizeof suffix, "incoherence_signs.%s_signs", which);
    if (n % block != 0)
        return walsh_fail(t->err, WALSH_E_FORMAT, "%s: metadata %s: Hadamard blocks of %u for %u elements",
                          t->ck->directory, t->key, block, n);
    WALSH_TRY(take(t, suffix, 1u << WALSH_I32, 1, n, 0, out));
    for (uint32_t i = 0; i < n; i++) {
        int32_t sign;
        memcpy(&sign, (const uint8_t *)(*out)->data + 4 * (size_t)i, sizeof sign);
        if (sign != 1 && sign != -1)
            return walsh_fail(t->err, WALSH_E_FORMAT, "%s: tensor %s: element %u is %d, expected 1 or -1",
                              (*out)->file, (*out)->name, i, sign);
    }
    return WALSH_OK;
}

/* An embedding's outputs are its columns here. */
static enum walsh_status take_rotation(const struct taking *t, const struct spec *spec,
                                       struct walsh_lalamo_matrix *out)
{
    const bool table = t->use != WALSH_LALAMO_LINEAR;
    if (table && (spec->rotates_input || spec->rank))
        return walsh_fail(t->err, WALSH_E_UNSUPPORTED,
                          "%s: metadata %s: an embedding that is rotated on its input or has an adapter",
                          t->ck->directory, t->key);
    out->block = spec->block;
    if (spec->rotates_input) WALSH_TRY(take_signs(t, "input", t->cols, spec->block, &out->column_signs));
    if (!spec->rotates_output) return WALSH_OK;
    return take_signs(t, "output", table ? t->cols : t->all, spec->block,
                      table ? &out->column_signs : &out->row_signs);
}

enum walsh_status walsh_lalamo_take(const struct walsh_checkpoint *ck, const char *module,
                                    enum walsh_lalamo_use use, uint32_t all, uint32_t cols, uint32_t first,
                                    uint32_t rows, struct walsh_lalamo_matrix *out, struct walsh_error *err)
{
    struct taking t = {.ck = ck, .module = module, .use = use, .all = all, .cols = cols, .err = err};
    struct spec spec = {0};
    bool hybrid = false;
    *out = (struct walsh_lalamo_matrix){0};
    snprintf(t.key, sizeof t.key, "%s.spec", module);
    WALSH_TRY(read_spec(&t, &spec, &hybrid));
    if (spec.by_input != (use != WALSH_LALAMO_LINEAR))
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "%s: metadata %s: layout %s, expected the other one",
                          ck->directory, t.key, spec.by_input ? "input_output" : "output_input");
    if (spec.kind == INT)
        WALSH_TRY(take_codes(&t, &spec, hybrid, first, rows, &out->codes));
    else
        WALSH_TRY(take(&t, hybrid ? "quantized.weights" : "weights", WALSH_FLOAT_DTYPES, 2, all, cols,
                       &out->dense));
    if (spec.block) WALSH_TRY(take_rotation(&t, &spec, out));
    if (out->row_signs && (first % spec.block != 0 || rows % spec.block != 0))
        return walsh_fail(err, WALSH_E_UNSUPPORTED,
                          "%s: %s: rows %u to %u cannot be cut out of Hadamard blocks of %u", ck->directory,
                          module, first, first + rows, spec.block);
    if (spec.rank == 0) return WALSH_OK;
    out->rank = spec.rank;
    WALSH_TRY(take(&t, "adapter.down_projection", WALSH_FLOAT_DTYPES, 2, spec.rank, cols, &out->down));
    return take(&t, "adapter.up_projection", WALSH_FLOAT_DTYPES, 2, all, spec.rank, &out->up);
}
