#include "checkpoint/peft.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_CONFIG_BYTES (16u << 20)
#define MAX_STACKS 8 /* stacked parameters of one module */

static const char prefix[] = "base_model.model.";
static const char suffix_a[] = ".lora_A.weight";
static const char suffix_b[] = ".lora_B.weight";
static const char suffix_base[] = ".base_layer.weight";
static const char nesting[] = ".base_layer";

struct name {
    const char *text;
    const struct walsh_peft_linear *linear;
};
/* The linears by name and alias, and those of stacks by module, then by place in the caller's list. */
struct index {
    struct name *names;
    const struct walsh_peft_linear **by_module;
    size_t name_count, module_count;
};
struct loader {
    const struct walsh_peft_linear *linears;
    size_t count;
    struct index index;
    struct walsh_peft_update *slots; /* [count], rank 0 where there is none yet */
    struct walsh_peft *peft;
    struct walsh_error *err;
};
/* The two halves of one LoRA in the file, and what they must be. */
struct pair {
    struct walsh_tensor *a, *b;
    const char *name; /* linear or stacked parameter, for messages */
    uint32_t rank, in, out, experts;
    double scale;
};

static int compare_names(const void *a, const void *b)
{
    return strcmp(((const struct name *)a)->text, ((const struct name *)b)->text);
}

/* Length of "model.layers.0.mlp.experts" in "model.layers.0.mlp.experts.gate_up_proj". */
static size_t module_length(const char *parameter)
{
    const char *dot = strrchr(parameter, '.');
    return dot ? (size_t)(dot - parameter) : 0;
}

/* Order of the module of `stack` against the module path `module` of `length` bytes. */
static int compare_module(const char *stack, const char *module, size_t length)
{
    const size_t own = module_length(stack);
    const int order = memcmp(stack, module, walsh_min(own, length));
    return order != 0 ? order : (own > length) - (own < length);
}

static int compare_stacks(const void *a, const void *b)
{
    const struct walsh_peft_linear *x = *(const struct walsh_peft_linear *const *)a;
    const struct walsh_peft_linear *y = *(const struct walsh_peft_linear *const *)b;
    const int order = compare_module(x->stack, y->stack, module_length(y->stack));
    return order != 0 ? order : (x > y) - (x < y);
}

static enum walsh_status build_index(struct loader *l, struct walsh_arena *arena)
{
    struct index *index = &l->index;
    size_t names = 0;
    if (!walsh_mul(l->count, 2, &names)) return walsh_fail(l->err, WALSH_E_MEMORY, "too many linears");
    WALSH_TRY(
        walsh_arena_alloc(arena, names, sizeof *index->names, "names of linears", &index->names, l->err));
    WALSH_TRY(
        walsh_arena_alloc(arena, l->count, sizeof *index->by_module, "stacks", &index->by_module, l->err));
    for (size_t i = 0; i < l->count; i++) {
        const struct walsh_peft_linear *linear = &l->linears[i];
        index->names[index->name_count++] = (struct name){linear->name, linear};
        if (linear->alias) index->names[index->name_count++] = (struct name){linear->alias, linear};
        if (l->linears[i].stack) index->by_module[index->module_count++] = &l->linears[i];
    }
    if (l->count == 0) return WALSH_OK;
    qsort(index->names, index->name_count, sizeof *index->names, compare_names);
    qsort(index->by_module, index->module_count, sizeof *index->by_module, compare_stacks);
    return WALSH_OK;
}

static const struct walsh_peft_linear *find_linear(const struct index *index, const char *name)
{
    const struct name key = {.text = name};
    const struct name *found = index->name_count == 0 ? NULL
                                                      : bsearch(&key, index->names, index->name_count,
                                                                sizeof *index->names, compare_names);
    return found ? found->linear : NULL;
}

/* The linears of all stacks of a module: begin and count in by_module. */
static size_t find_module(const struct index *index, const char *module, size_t length, size_t *count)
{
    size_t begin = 0, end = index->module_count;
    while (begin < end) {
        const size_t middle = begin + (end - begin) / 2;
        if (compare_module(index->by_module[middle]->stack, module, length) < 0)
            begin = middle + 1;
        else
            end = middle;
    }
    *count = 0;
    while (begin + *count < index->module_count &&
           compare_module(index->by_module[begin + *count]->stack, module, length) == 0)
        ++*count;
    return begin;
}

static bool ends_with(const char *text, const char *suffix)
{
    const size_t size = strlen(text), length = strlen(suffix);
    return size >= length && strcmp(text + size - length, suffix) == 0;
}

/* " (the adapter was made for X)" or nothing */
static const char *made_for(const struct loader *l, char text[160])
{
    const char *base = l->peft->config.base_model;
    text[0] = 0;
    if (*base) snprintf(text, 160, " (the adapter was made for %.120s)", base);
    return text;
}

static enum walsh_status refuse_tensor(const struct loader *l, const struct walsh_tensor *t)
{
    const char *reason = "not part of a linear's LoRA, expected base_model.model.MODULE.lora_A.weight or "
                         ".lora_B.weight";
    if (strstr(t->name, "lora_magnitude_vector")) reason = "a part of DoRA, which walsh does not support";
    if (ends_with(t->name, ".bias")) reason = "a bias, which walsh does not support in an adapter";
    if (strstr(t->name, "lora_embedding_")) reason = "a LoRA of an embedding, which walsh does not support";
    if (strstr(t->name, "modules_to_save"))
        reason = "a part of modules_to_save, which walsh does not support";
    return walsh_fail(l->err, WALSH_E_UNSUPPORTED, "%s: tensor %s: %s", t->file, t->name, reason);
}

static enum walsh_status check_shape(const struct loader *l, const struct pair *pair,
                                     const struct walsh_tensor *t, uint64_t rows, uint64_t columns)
{
    char found[128], base[160];
    if (t->dtype != WALSH_F32 && t->dtype != WALSH_F16 && t->dtype != WALSH_BF16)
        return walsh_fail(l->err, WALSH_E_UNSUPPORTED, "%s: tensor %s: dtype %s, expected F32, F16 or BF16",
                          t->file, t->name, walsh_dtype_name(t->dtype));
    if (t->rank == 2 && t->shape[0] == rows && t->shape[1] == columns) return WALSH_OK;
    return walsh_fail(
        l->err, WALSH_E_FORMAT,
        "%s: tensor %s: shape %s, expected [%llu, %llu]: %s has %u inputs, %u outputs and rank %u%s", t->file,
        t->name, walsh_shape_text(t->shape, t->rank, found, sizeof found), (unsigned long long)rows,
        (unsigned long long)columns, pair->name, pair->in, pair->out, pair->rank, made_for(l, base));
}

static float element(const struct walsh_tensor *t, size_t i)
{
    uint16_t half;
    float value;
    if (t->dtype == WALSH_F32) {
        memcpy(&value, (const char *)t->data + 4 * i, sizeof value);
        return value;
    }
    memcpy(&half, (const char *)t->data + 2 * i, sizeof half);
    return t->dtype == WALSH_BF16 ? walsh_f32_from_bf16(half) : walsh_f32_from_f16(half);
}

static enum walsh_status check_finite(const struct loader *l, const struct walsh_tensor *t)
{
    const size_t n = walsh_tensor_elements(t);
    for (size_t i = 0; i < n; i++) {
        const uint32_t bits = walsh_bits_from_float(element(t, i)) & 0x7fffffffu;
        if (bits >= 0x7f800000u)
            return walsh_fail(l->err, WALSH_E_FORMAT, "%s: tensor %s: %s at element %zu", t->file, t->name,
                              bits > 0x7f800000u ? "NaN" : "Inf", i);
    }
    return WALSH_OK;
}

/* Rank and scale by the config, shapes, finite values; marks both tensors used. */
static enum walsh_status check_pair(const struct loader *l, struct pair *pair)
{
    WALSH_TRY(walsh_peft_config_rank(&l->peft->config, pair->name, &pair->rank, &pair->scale, l->err));
    const uint64_t stacked = (uint64_t)pair->rank * pair->experts;
    WALSH_TRY(check_shape(l, pair, pair->a, stacked, pair->in));
    WALSH_TRY(check_shape(l, pair, pair->b, pair->out, stacked));
    WALSH_TRY(check_finite(l, pair->a));
    WALSH_TRY(check_finite(l, pair->b));
    pair->a->used = pair->b->used = true;
    return WALSH_OK;
}

/* The update of `linear` by its part of the pair; for a linear of its own, `experts` is 1. */
static enum walsh_status add_update(const struct loader *l, const struct pair *pair,
                                    const struct walsh_peft_linear *linear, uint32_t expert, uint32_t row,
                                    uint32_t step)
{
    struct walsh_peft_update *slot = &l->slots[linear - l->linears];
    const size_t columns = (size_t)pair->rank * pair->experts;
    if (slot->rank != 0)
        return walsh_fail(l->err, WALSH_E_FORMAT, "%s: tensors %s and %s both adapt %s", pair->a->file,
                          slot->a.tensor->name, pair->a->name, linear->name);
    *slot = (struct walsh_peft_update){
        .linear = (uint32_t)(linear - l->linears),
        .rank = pair->rank,
        .scale = pair->scale,
        .a = {pair->a, pair->rank, pair->in, (size_t)expert * pair->rank * pair->in, pair->in, 1},
        .b = {pair->b, linear->out, pair->rank, row * columns + expert, step * columns, pair->experts},
    };
    return WALSH_OK;
}

/* What a linear is to the config's patterns: the module where target_modules has it, MODULE.weight where
 * target_parameters has that (routers, since Hugging Face's library keeps them as parameters). */
static enum walsh_status find_target(const struct loader *l, const struct pair *pair, const char *module,
                                     const char **out)
{
    const struct walsh_peft_config *config = &l->peft->config;
    const size_t size = strlen(module) + sizeof ".weight";
    char *parameter = NULL;
    bool targeted = false;
    *out = module;
    WALSH_TRY(walsh_peft_config_targets(config, module, &targeted, l->err));
    if (targeted) return WALSH_OK;
    if (config->parameter_count == 0)
        return walsh_fail(l->err, WALSH_E_FORMAT, "%s: tensor %s: %s is not among the target_modules of %s",
                          pair->a->file, pair->a->name, module, config->path);
    WALSH_TRY(walsh_arena_alloc(&l->peft->arena, size, 1, "a parameter's name", &parameter, l->err));
    snprintf(parameter, size, "%s.weight", module);
    *out = parameter;
    if (walsh_peft_config_targets_parameter(config, parameter)) return WALSH_OK;
    return walsh_fail(l->err, WALSH_E_FORMAT,
                      "%s: tensor %s: neither is %s among the target_modules of %s, nor %s among its "
                      "target_parameters",
                      pair->a->file, pair->a->name, module, config->path, parameter);
}

/* Take the pair as the LoRA of a linear [out][in]. */
static enum walsh_status check_linear(const struct loader *l, struct pair *pair, const char *module,
                                      uint32_t in, uint32_t out)
{
    WALSH_TRY(find_target(l, pair, module, &pair->name));
    pair->in = in;
    pair->out = out;
    pair->experts = 1;
    return check_pair(l, pair);
}

static enum walsh_status take_linear(const struct loader *l, struct pair *pair, const char *path,
                                     const struct walsh_peft_linear *linear)
{
    WALSH_TRY(check_linear(l, pair, path, linear->in, linear->out));
    return add_update(l, pair, linear, 0, 0, 1);
}

/* The pair of a fused linear: each of its parts reads the same A and has its own rows of B. *found: whether
 * there is one of that name. */
static enum walsh_status take_fused(const struct loader *l, struct pair *pair, const char *path, bool *found)
{
    *found = false;
    for (size_t i = 0; i < l->count; i++) {
        const struct walsh_peft_linear *part = &l->linears[i];
        if (!part->fused || strcmp(part->fused, path) != 0) continue;
        if (!*found) WALSH_TRY(check_linear(l, pair, part->fused, part->in, part->fused_out));
        *found = true;
        WALSH_TRY(add_update(l, pair, part, 0, part->fused_row, 1));
    }
    return WALSH_OK;
}

/* The stacked parameters of a module that the adapter targets, in the module's order; their number. */
static size_t targeted_stacks(const struct loader *l, size_t begin, size_t count,
                              const char *stacks[MAX_STACKS])
{
    size_t found = 0;
    for (size_t i = begin; i < begin + count; i++) {
        const char *stack = l->index.by_module[i]->stack;
        size_t known = 0;
        while (known < found && strcmp(stacks[known], stack) != 0) known++;
        if (known == found && found < MAX_STACKS &&
            walsh_peft_config_targets_parameter(&l->peft->config, stack))
            stacks[found++] = stack;
    }
    return found;
}

static enum walsh_status take_module(const struct loader *l, struct pair *pair, const char *path)
{
    char base[160];
    const char *stacks[MAX_STACKS];
    size_t length = strlen(path), depth = 0, count = 0;
    while (length >= sizeof nesting &&
           strncmp(path + length - (sizeof nesting - 1), nesting, sizeof nesting - 1) == 0) {
        length -= sizeof nesting - 1;
        depth++;
    }
    const size_t begin = find_module(&l->index, path, length, &count);
    if (count == 0)
        return walsh_fail(l->err, WALSH_E_FORMAT, "%s: tensor %s: the model has no linear %s%s",
                          pair->a->file, pair->a->name, path, made_for(l, base));
    const size_t targeted = targeted_stacks(l, begin, count, stacks);
    if (depth >= targeted)
        return walsh_fail(
            l->err, WALSH_E_FORMAT,
            "%s: tensor %s: the target_parameters of %s name %zu parameters of %.*s, expected %zu",
            pair->a->file, pair->a->name, l->peft->config.path, targeted, (int)length, path, depth + 1);
    pair->name = stacks[targeted - 1 - depth];
    for (size_t i = begin, found = 0; i < begin + count; i++) {
        const struct walsh_peft_linear *linear = l->index.by_module[i];
        if (strcmp(linear->stack, pair->name) != 0) continue;
        if (found++ == 0) {
            pair->in = linear->in;
            pair->out = linear->stack_out;
            pair->experts = linear->experts;
            WALSH_TRY(check_pair(l, pair));
        }
        WALSH_TRY(add_update(l, pair, linear, linear->expert, linear->stack_row, linear->stack_step));
    }
    return WALSH_OK;
}

/* The tensor of the same module that ends in `other` instead of `own`. */
static enum walsh_status find_partner(const struct loader *l, const struct walsh_tensor *t, const char *own,
                                      const char *other, struct walsh_tensor **out)
{
    const size_t stem = strlen(t->name) - strlen(own), size = stem + strlen(other) + 1;
    char *name = NULL;
    WALSH_TRY(walsh_alloc(size, 1, "a tensor's name", &name, l->err));
    snprintf(name, size, "%.*s%s", (int)stem, t->name, other);
    *out = walsh_safetensors_find(&l->peft->file, name);
    enum walsh_status status = WALSH_OK;
    if (!*out)
        status = walsh_fail(l->err, WALSH_E_FORMAT, "%s: tensor %s: its partner %s is missing", t->file,
                            t->name, name);
    walsh_free(name);
    return status;
}

/* PEFT saves the base weight of a targeted head with its LoRA. *taken: whether the tensor is one. */
static enum walsh_status take_base_copy(const struct loader *l, struct walsh_tensor *t, bool *taken)
{
    const size_t size = strlen(t->name), around = sizeof prefix + sizeof suffix_base - 2;
    char found[128], *path = NULL;
    *taken = false;
    if (size <= around || strncmp(t->name, prefix, sizeof prefix - 1) != 0 ||
        !ends_with(t->name, suffix_base))
        return WALSH_OK;
    WALSH_TRY(walsh_alloc(size - around + 1, 1, "a module's path", &path, l->err));
    memcpy(path, t->name + sizeof prefix - 1, size - around);
    path[size - around] = 0;
    const struct walsh_peft_linear *linear = find_linear(&l->index, path);
    walsh_free(path);
    if (!linear) return WALSH_OK;
    if (t->rank != 2 || t->shape[0] != linear->out || t->shape[1] != linear->in)
        return walsh_fail(l->err, WALSH_E_FORMAT, "%s: tensor %s: shape %s, expected [%u, %u] as %s has it",
                          t->file, t->name, walsh_shape_text(t->shape, t->rank, found, sizeof found),
                          linear->out, linear->in, linear->name);
    if (l->peft->base_copies++ == 0) l->peft->first_base_copy = t->name;
    t->used = *taken = true;
    return WALSH_OK;
}

static enum walsh_status take_tensor(const struct loader *l, struct walsh_tensor *t)
{
    bool taken = false;
    WALSH_TRY(take_base_copy(l, t, &taken));
    if (taken) return WALSH_OK;
    const bool is_a = ends_with(t->name, suffix_a), is_b = ends_with(t->name, suffix_b);
    struct pair pair = {.a = t};
    if (strncmp(t->name, prefix, sizeof prefix - 1) != 0 || (!is_a && !is_b) ||
        strlen(t->name) < sizeof prefix - 1 + sizeof suffix_a - 1)
        return refuse_tensor(l, t);
    if (is_b) return find_partner(l, t, suffix_b, suffix_a, &pair.a);
    WALSH_TRY(find_partner(l, t, suffix_a, suffix_b, &pair.b));

    const size_t stem = strlen(t->name) - (sizeof prefix - 1), length = stem - (sizeof suffix_a - 1);
    char *path = NULL;
    WALSH_TRY(walsh_alloc(length + 1, 1, "a module's path", &path, l->err));
    memcpy(path, t->name + sizeof prefix - 1, length);
    path[length] = 0;
    const struct walsh_peft_linear *linear = find_linear(&l->index, path);
    bool fused = false;
    enum walsh_status status = WALSH_OK;
    if (linear)
        status = take_linear(l, &pair, path, linear);
    else
        status = take_fused(l, &pair, path, &fused);
    if (!linear && !fused && status == WALSH_OK) status = take_module(l, &pair, path);
    walsh_free(path);
    return status;
}

/* What the config targets and no tensor has adapted. Experts in stacks count where target_parameters names
 * the stack: whether they are linears of their own depends on the version of the model's library. */
static enum walsh_status count_absent(struct loader *l)
{
    for (size_t i = 0; i < l->count; i++) {
        const struct walsh_peft_linear *linear = &l->linears[i];
        if (l->slots[i].rank != 0 || linear->often_absent) continue;
        bool targeted = false;
        if (linear->stack)
            targeted = walsh_peft_config_targets_parameter(&l->peft->config, linear->stack);
        else
            WALSH_TRY(walsh_peft_config_targets(
                &l->peft->config, linear->fused ? linear->fused : linear->name, &targeted, l->err));
        if (targeted && l->peft->absent++ == 0) l->peft->first_absent = (uint32_t)i;
    }
    return WALSH_OK;
}

static enum walsh_status take_all(struct loader *l)
{
    struct walsh_peft *peft = l->peft;
    if (peft->file.count == 0)
        return walsh_fail(l->err, WALSH_E_FORMAT, "%s: the adapter holds no tensors", peft->file.file.path);
    for (size_t i = 0; i < peft->file.count; i++) WALSH_TRY(take_tensor(l, &peft->file.tensors[i]));
    WALSH_TRY(count_absent(l));
    for (size_t i = 0; i < l->count; i++)
        if (l->slots[i].rank != 0) l->slots[peft->count++] = l->slots[i];
    peft->updates = l->slots;
    return WALSH_OK;
}

static enum walsh_status open_config(const char *directory, struct walsh_peft *peft, struct walsh_error *err)
{
    char *path = NULL, *text = NULL;
    size_t size = 0;
    WALSH_TRY(walsh_path_join(directory, "adapter_config.json", &path, err));
    enum walsh_status status = walsh_file_read_regular(path, MAX_CONFIG_BYTES, &text, &size, err);
    if (status == WALSH_E_NOT_FOUND)
        status = walsh_fail(err, WALSH_E_NOT_FOUND, "%s: not a LoRA adapter: it has no adapter_config.json",
                            directory);
    if (status == WALSH_OK) status = walsh_peft_config_parse(path, text, size, &peft->config, err);
    walsh_free(text);
    walsh_free(path);
    return status;
}

static enum walsh_status open_tensors(const char *directory, bool use_mmap, struct walsh_peft *peft,
                                      struct walsh_error *err)
{
    char *path = NULL, *pickle = NULL;
    enum walsh_status status = walsh_path_join(directory, "adapter_model.safetensors", &path, err);
    if (status == WALSH_OK) status = walsh_path_join(directory, "adapter_model.bin", &pickle, err);
    if (status == WALSH_OK && !walsh_path_exists(path) && walsh_path_exists(pickle))
        status = walsh_fail(err, WALSH_E_UNSUPPORTED,
                            "%s: a pickled adapter can run code when it is read; have PEFT save it as "
                            "adapter_model.safetensors",
                            pickle);
    if (status == WALSH_OK) status = walsh_safetensors_open(path, use_mmap, &peft->file, err);
    walsh_free(pickle);
    walsh_free(path);
    return status;
}

enum walsh_status walsh_peft_open(const char *directory, bool use_mmap,
                                  const struct walsh_peft_linear *linears, size_t count,
                                  struct walsh_peft *out, struct walsh_error *err)
{
    struct walsh_arena scratch = {0};
    memset(out, 0, sizeof *out);
    struct loader loader = {.linears = linears, .count = count, .peft = out, .err = err};
    enum walsh_status status = open_config(directory, out, err);
    if (status == WALSH_OK) status = open_tensors(directory, use_mmap, out, err);
    if (status == WALSH_OK)
        status =
            walsh_arena_alloc(&out->arena, count, sizeof *loader.slots, "LoRA updates", &loader.slots, err);
    if (status == WALSH_OK) status = build_index(&loader, &scratch);
    if (status == WALSH_OK) status = take_all(&loader);
    walsh_arena_close(&scratch);
    if (status != WALSH_OK) walsh_peft_close(out);
    return status;
}

void walsh_peft_close(struct walsh_peft *peft)
{
    walsh_peft_config_close(&peft->config);
    walsh_safetensors_close(&peft->file);
    walsh_arena_close(&peft->arena);
    memset(peft, 0, sizeof *peft);
}

void walsh_peft_read(const struct walsh_peft_matrix *matrix, float *out)
{
    for (size_t i = 0; i < matrix->rows; i++)
        for (size_t j = 0; j < matrix->columns; j++)
            *out++ =
                element(matrix->tensor, matrix->offset + i * matrix->row_stride + j * matrix->column_stride);
}
