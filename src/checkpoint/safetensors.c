#include "checkpoint/safetensors.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint/json.h"

#define MAX_HEADER 100000000u /* bytes, by the specification */
#define MAX_TENSORS ((size_t)1 << 22)
#define MAX_NAME 1024 /* bytes */

struct dtype_info {
    const char *name;
    unsigned size; /* bytes per element */
    unsigned
        order; /* the reference writer sorts by this, descending: its enumeration of dtypes by alignment */
};
static const struct dtype_info dtypes[WALSH_DTYPE_COUNT] = {
    [WALSH_BOOL] = {"BOOL", 1, 0},       [WALSH_U8] = {"U8", 1, 1},
    [WALSH_I8] = {"I8", 1, 2},           [WALSH_F8_E5M2] = {"F8_E5M2", 1, 3},
    [WALSH_F8_E4M3] = {"F8_E4M3", 1, 4}, [WALSH_F8_E8M0] = {"F8_E8M0", 1, 5},
    [WALSH_I16] = {"I16", 2, 6},         [WALSH_U16] = {"U16", 2, 7},
    [WALSH_F16] = {"F16", 2, 8},         [WALSH_BF16] = {"BF16", 2, 9},
    [WALSH_I32] = {"I32", 4, 10},        [WALSH_U32] = {"U32", 4, 11},
    [WALSH_F32] = {"F32", 4, 12},        [WALSH_F64] = {"F64", 8, 13},
    [WALSH_I64] = {"I64", 8, 14},        [WALSH_U64] = {"U64", 8, 15},
};

size_t walsh_dtype_size(enum walsh_dtype dtype)
{
    return dtypes[dtype].size;
}

const char *walsh_dtype_name(enum walsh_dtype dtype)
{
    return dtypes[dtype].name;
}

bool walsh_dtype_from_name(const char *name, enum walsh_dtype *out)
{
    for (unsigned i = 0; i < WALSH_DTYPE_COUNT; i++) {
        if (strcmp(name, dtypes[i].name) != 0) continue;
        *out = (enum walsh_dtype)i;
        return true;
    }
    return false;
}

size_t walsh_tensor_elements(const struct walsh_tensor *t)
{
    return t->bytes / walsh_dtype_size(t->dtype);
}

const char *walsh_shape_text(const uint64_t *shape, unsigned rank, char *buffer, size_t size)
{
    size_t used = 0;
    if (size == 0) return "";
    buffer[0] = 0;
    for (unsigned i = 0; i < rank && used < size; i++)
        used += (size_t)snprintf(buffer + used, size - used, "%s%" PRIu64, i ? ", " : "[", shape[i]);
    if (used < size) snprintf(buffer + used, size - used, rank ? "]" : "[]");
    return buffer;
}

/* Bytes of a dense tensor; false where the product does not fit. A dimension of 0 makes it 0 whatever the
 * others are, but the others may not overflow among themselves: the product is taken as it stands, as the
 * reference reader does. */
static bool tensor_bytes(enum walsh_dtype dtype, unsigned rank, const uint64_t *shape, size_t *out)
{
    size_t n = walsh_dtype_size(dtype);
    for (unsigned i = 0; i < rank; i++)
        if (!walsh_mul(n, shape[i], &n)) return false;
    *out = n;
    return true;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct walsh_tensor *)a)->name, ((const struct walsh_tensor *)b)->name);
}

static int by_place(const void *a, const void *b)
{
    const struct walsh_tensor *x = a, *y = b;
    if (x->data != y->data) return (const char *)x->data < (const char *)y->data ? -1 : 1;
    return (x->bytes > y->bytes) -
           (x->bytes < y->bytes); /* empty ones first: they end where the next begins */
}

/* What one tensor's entry of the header is read with */
struct entry {
    const char *path, *name;
    const uint8_t *buffer; /* the data behind the header */
    size_t buffer_bytes;
    struct walsh_error *err;
};

static enum walsh_status read_shape(const struct entry *e, const json_t *list, struct walsh_tensor *out)
{
    if (!json_is_array(list))
        return walsh_fail(e->err, WALSH_E_FORMAT, "%s: tensor %s: shape is %s, expected a list of integers",
                          e->path, e->name, walsh_json_kind(list));
    size_t rank = json_array_size(list);
    if (rank > WALSH_MAX_RANK)
        return walsh_fail(e->err, WALSH_E_UNSUPPORTED, "%s: tensor %s: rank %zu, expected at most %d",
                          e->path, e->name, rank, WALSH_MAX_RANK);
    out->rank = (unsigned)rank;
    for (size_t i = 0; i < rank; i++) {
        const json_t *n = json_array_get(list, i);
        if (!json_is_integer(n) || json_integer_value(n) < 0)
            return walsh_fail(e->err, WALSH_E_FORMAT,
                              "%s: tensor %s: shape[%zu] is not an integer of 0 or more", e->path, e->name,
                              i);
        out->shape[i] = (uint64_t)json_integer_value(n);
    }
    return WALSH_OK;
}

static enum walsh_status read_offsets(const struct entry *e, const json_t *pair, struct walsh_tensor *out)
{
    const json_t *first = json_array_get(pair, 0), *last = json_array_get(pair, 1);
    if (json_array_size(pair) != 2 || !json_is_integer(first) || !json_is_integer(last) ||
        json_integer_value(first) < 0 || json_integer_value(last) < 0)
        return walsh_fail(e->err, WALSH_E_FORMAT,
                          "%s: tensor %s: data_offsets are not two integers of 0 or more", e->path, e->name);
    uint64_t begin = (uint64_t)json_integer_value(first), end = (uint64_t)json_integer_value(last);
    if (begin > end)
        return walsh_fail(e->err, WALSH_E_FORMAT,
                          "%s: tensor %s: data_offsets [%" PRIu64 ", %" PRIu64 "] run backwards", e->path,
                          e->name, begin, end);
    if (end > e->buffer_bytes)
        return walsh_fail(e->err, WALSH_E_FORMAT,
                          "%s: tensor %s: data ends at byte %" PRIu64
                          " of the data, but the file holds %zu bytes of "
                          "data: it is truncated",
                          e->path, e->name, end, e->buffer_bytes);
    size_t expected;
    char shape[256];
    walsh_shape_text(out->shape, out->rank, shape, sizeof shape);
    if (!tensor_bytes(out->dtype, out->rank, out->shape, &expected))
        return walsh_fail(e->err, WALSH_E_FORMAT, "%s: tensor %s: the size of shape %s overflows", e->path,
                          e->name, shape);
    if (expected != end - begin)
        return walsh_fail(e->err, WALSH_E_FORMAT,
                          "%s: tensor %s: data_offsets hold %" PRIu64 " bytes, expected %zu for %s %s",
                          e->path, e->name, end - begin, expected, walsh_dtype_name(out->dtype), shape);
    out->data = e->buffer + begin;
    out->bytes = expected;
    return WALSH_OK;
}

static enum walsh_status read_entry(const struct entry *e, json_t *value, struct walsh_tensor *out)
{
    if (!json_is_object(value))
        return walsh_fail(e->err, WALSH_E_FORMAT, "%s: tensor %s: its entry is %s, expected an object",
                          e->path, e->name, walsh_json_kind(value));
    const char *key;
    json_t *member;
    json_object_foreach(value, key, member)
    {
        if (strcmp(key, "dtype") != 0 && strcmp(key, "shape") != 0 && strcmp(key, "data_offsets") != 0)
            return walsh_fail(e->err, WALSH_E_FORMAT, "%s: tensor %s: unknown key \"%.100s\" in its entry",
                              e->path, e->name, key);
    }
    const char *dtype = json_string_value(json_object_get(value, "dtype"));
    if (!dtype)
        return walsh_fail(e->err, WALSH_E_FORMAT, "%s: tensor %s: dtype is missing", e->path, e->name);
    if (!walsh_dtype_from_name(dtype, &out->dtype))
        return walsh_fail(
            e->err, WALSH_E_UNSUPPORTED,
            "%s: tensor %s: unknown dtype \"%.100s\"; known: BOOL, U8, I8, F8_E5M2, F8_E4M3, F8_E8M0, I16, "
            "U16, F16, BF16, I32, U32, F32, F64, I64, U64",
            e->path, e->name, dtype);
    WALSH_TRY(read_shape(e, json_object_get(value, "shape"), out));
    return read_offsets(e, json_object_get(value, "data_offsets"), out);
}

static enum walsh_status read_metadata(struct walsh_safetensors *st, const char *path, json_t *object,
                                       struct walsh_error *err)
{
    if (!json_is_object(object))
        return walsh_fail(err, WALSH_E_FORMAT, "%s: __metadata__ is %s, expected an object", path,
                          walsh_json_kind(object));
    size_t count = json_object_size(object);
    WALSH_TRY(walsh_arena_alloc(&st->arena, count, sizeof(char *), path, &st->metadata_keys, err));
    WALSH_TRY(walsh_arena_alloc(&st->arena, count, sizeof(char *), path, &st->metadata_values, err));
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value)
    {
        if (!json_is_string(value))
            return walsh_fail(err, WALSH_E_FORMAT, "%s: __metadata__ \"%.100s\" is %s, expected a string",
                              path, key, walsh_json_kind(value));
        size_t i = st->metadata_count;
        WALSH_TRY(walsh_arena_strdup(&st->arena, key, &st->metadata_keys[i], err));
        WALSH_TRY(walsh_arena_strdup(&st->arena, json_string_value(value), &st->metadata_values[i], err));
        st->metadata_count++;
    }
    return WALSH_OK;
}

/* The ranges, sorted by place, must follow each other without a gap from the first byte to the last. */
static enum walsh_status check_tiling(const struct walsh_safetensors *st, const uint8_t *buffer,
                                      size_t buffer_bytes, struct walsh_error *err)
{
    const struct walsh_tensor *previous = NULL;
    size_t covered = 0;
    for (size_t i = 0; i < st->count; i++) {
        const struct walsh_tensor *t = &st->tensors[i];
        size_t begin = (size_t)((const uint8_t *)t->data - buffer);
        if (previous && begin < covered)
            return walsh_fail(err, WALSH_E_FORMAT,
                              "%s: tensors %s and %s overlap: bytes %zu to %zu of the data", t->file,
                              previous->name, t->name, begin, walsh_min(covered, begin + t->bytes));
        if (begin > covered)
            return walsh_fail(err, WALSH_E_FORMAT,
                              "%s: bytes %zu to %zu of the data belong to no tensor; the next is %s", t->file,
                              covered, begin, t->name);
        covered = begin + t->bytes;
        previous = t;
    }
    if (covered != buffer_bytes)
        return walsh_fail(err, WALSH_E_FORMAT, "%s: bytes %zu to %zu of the data belong to no tensor",
                          st->file.path, covered, buffer_bytes);
    return WALSH_OK;
}

static enum walsh_status read_tensors(struct walsh_safetensors *st, json_t *root, size_t header_bytes,
                                      struct walsh_error *err)
{
    const char *path = st->file.path;
    struct entry e = {.path = path,
                      .buffer = st->file.data + 8 + header_bytes,
                      .buffer_bytes = st->file.size - 8 - header_bytes,
                      .err = err};
    size_t entries = json_object_size(root);
    if (entries > MAX_TENSORS)
        return walsh_fail(err, WALSH_E_FORMAT, "%s: %zu tensors, expected at most %zu", path, entries,
                          MAX_TENSORS);
    WALSH_TRY(
        walsh_arena_alloc(&st->arena, entries, sizeof *st->tensors, "the tensor table", &st->tensors, err));
    const char *key;
    json_t *value;
    json_object_foreach(root, key, value)
    {
        if (strcmp(key, "__metadata__") == 0) {
            WALSH_TRY(read_metadata(st, path, value, err));
            continue;
        }
        if (strlen(key) > MAX_NAME)
            return walsh_fail(err, WALSH_E_FORMAT,
                              "%s: a tensor's name has %zu bytes, expected at most %d: %.60s...", path,
                              strlen(key), MAX_NAME, key);
        struct walsh_tensor *t = &st->tensors[st->count];
        e.name = key;
        WALSH_TRY(read_entry(&e, value, t));
        char *name;
        WALSH_TRY(walsh_arena_strdup(&st->arena, key, &name, err));
        t->name = name;
        t->file = path;
        st->count++;
    }
    qsort(st->tensors, st->count, sizeof *st->tensors, by_place);
    WALSH_TRY(check_tiling(st, e.buffer, e.buffer_bytes, err));
    qsort(st->tensors, st->count, sizeof *st->tensors, by_name);
    return WALSH_OK;
}

/* The length of the header, after what people take for a safetensors file has been told apart */
static enum walsh_status read_header_length(const struct walsh_file *f, uint64_t *length,
                                            struct walsh_error *err)
{
    if (f->size >= 4 && memcmp(f->data, "GGUF", 4) == 0)
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "%s: is a GGUF file, expected safetensors", f->path);
    if (f->size >= 8 && memcmp(f->data, "version ", 8) == 0)
        return walsh_fail(err, WALSH_E_FORMAT,
                          "%s: is a Git LFS pointer, not the tensors: fetch the file itself (git lfs pull)",
                          f->path);
    if (f->size < 8)
        return walsh_fail(err, WALSH_E_FORMAT, "%s: %zu bytes, expected at least 8 for the header's length",
                          f->path, f->size);
    uint64_t n = 0;
    for (unsigned i = 0; i < 8; i++) n |= (uint64_t)f->data[i] << (8 * i);
    if (n > MAX_HEADER)
        return walsh_fail(err, WALSH_E_FORMAT, "%s: header of %" PRIu64 " bytes, expected at most %u",
                          f->path, n, MAX_HEADER);
    if (n > f->size - 8)
        return walsh_fail(err, WALSH_E_FORMAT,
                          "%s: header of %" PRIu64
                          " bytes ends beyond the file of %zu bytes: it is truncated",
                          f->path, n, f->size);
    if (n < 2 || f->data[8] != '{')
        return walsh_fail(err, WALSH_E_FORMAT, "%s: the header does not start with '{'", f->path);
    *length = n;
    return WALSH_OK;
}

enum walsh_status walsh_safetensors_open(const char *path, bool use_mmap, struct walsh_safetensors *out,
                                         struct walsh_error *err)
{
    *out = (struct walsh_safetensors){0};
    WALSH_TRY(walsh_file_open(path, use_mmap, &out->file, err));
    uint64_t length = 0;
    json_t *root = NULL;
    enum walsh_status status = read_header_length(&out->file, &length, err);
    if (status == WALSH_OK)
        status = walsh_json_parse(path, (const char *)out->file.data + 8, (size_t)length, &root, err);
    if (status == WALSH_OK) status = read_tensors(out, root, (size_t)length, err);
    json_decref(root);
    if (status != WALSH_OK) walsh_safetensors_close(out);
    return status;
}

void walsh_safetensors_close(struct walsh_safetensors *st)
{
    walsh_file_close(&st->file);
    walsh_arena_close(&st->arena);
    *st = (struct walsh_safetensors){0};
}

struct walsh_tensor *walsh_safetensors_find(const struct walsh_safetensors *st, const char *name)
{
    struct walsh_tensor key = {.name = name};
    if (st->count == 0) return NULL;
    return bsearch(&key, st->tensors, st->count, sizeof key, by_name);
}

static enum walsh_status grow_plan(struct walsh_safetensors_plan *plan, struct walsh_error *err)
{
    size_t capacity = plan->capacity ? plan->capacity * 2 : 64;
    struct walsh_tensor *tensors;
    WALSH_TRY(walsh_alloc(capacity, sizeof *tensors, "the plan of a safetensors file", &tensors, err));
    if (plan->count) memcpy(tensors, plan->tensors, plan->count * sizeof *tensors);
    walsh_free(plan->tensors);
    plan->tensors = tensors;
    plan->capacity = capacity;
    return WALSH_OK;
}

enum walsh_status walsh_plan_add(struct walsh_safetensors_plan *plan, const char *name,
                                 enum walsh_dtype dtype, unsigned rank, const uint64_t *shape,
                                 struct walsh_error *err)
{
    struct walsh_tensor t = {.dtype = dtype, .rank = rank};
    char *copy;
    if (rank > WALSH_MAX_RANK || strlen(name) > MAX_NAME || plan->count == MAX_TENSORS ||
        !tensor_bytes(dtype, rank, shape, &t.bytes))
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "tensor %.200s: its rank, name or size is too large for safetensors", name);
    if (rank) memcpy(t.shape, shape, rank * sizeof *shape);
    if (plan->count == plan->capacity) WALSH_TRY(grow_plan(plan, err));
    WALSH_TRY(walsh_arena_strdup(&plan->arena, name, &copy, err));
    t.name = copy;
    plan->tensors[plan->count++] = t;
    return WALSH_OK;
}

static int by_file_order(const void *a, const void *b)
{
    const struct walsh_tensor *x = a, *y = b;
    unsigned i = dtypes[x->dtype].order, j = dtypes[y->dtype].order;
    if (i != j) return i > j ? -1 : 1;
    return strcmp(x->name, y->name);
}

/* What plan_find searches: names in order, and where each is in the file's order */
struct walsh_plan_index {
    const char *name;
    size_t tensor;
};

static int by_index_name(const void *a, const void *b)
{
    return strcmp(((const struct walsh_plan_index *)a)->name, ((const struct walsh_plan_index *)b)->name);
}

static enum walsh_status build_index(struct walsh_safetensors_plan *plan, struct walsh_error *err)
{
    WALSH_TRY(walsh_arena_alloc(&plan->arena, plan->count, sizeof *plan->index, "the plan's index",
                                &plan->index, err));
    for (size_t i = 0; i < plan->count; i++)
        plan->index[i] = (struct walsh_plan_index){.name = plan->tensors[i].name, .tensor = i};
    qsort(plan->index, plan->count, sizeof *plan->index, by_index_name);
    for (size_t i = 1; i < plan->count; i++)
        if (strcmp(plan->index[i - 1].name, plan->index[i].name) == 0)
            return walsh_fail(err, WALSH_E_ARGUMENT, "tensor %s is planned twice", plan->index[i].name);
    return WALSH_OK;
}

/* NULL: out of memory. */
static json_t *describe(const struct walsh_tensor *t, uint64_t begin)
{
    json_t *shape = json_array();
    for (unsigned i = 0; i < t->rank; i++)
        if (json_array_append_new(shape, json_integer((json_int_t)t->shape[i])) != 0) {
            json_decref(shape);
            return NULL;
        }
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype", walsh_dtype_name(t->dtype), "shape", shape,
                     "data_offsets", (json_int_t)begin, (json_int_t)(begin + t->bytes));
}

/* The header's JSON text, malloc'ed by jansson; plan->offsets count from the data's beginning until finish
 * moves them. */
static enum walsh_status build_json(struct walsh_safetensors_plan *plan, char **out, struct walsh_error *err)
{
    json_t *root = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
    uint64_t offset = 0;
    enum walsh_status status = WALSH_OK;
    for (size_t i = 0; i < plan->count && status == WALSH_OK; i++) {
        const struct walsh_tensor *t = &plan->tensors[i];
        plan->offsets[i] = offset;
        if (json_object_set_new(root, t->name, describe(t, offset)) != 0)
            status = walsh_fail(err, WALSH_E_ARGUMENT, "tensor %s: its name is not UTF-8, or memory is short",
                                t->name);
        if (__builtin_add_overflow(offset, t->bytes, &offset) || offset > INT64_MAX)
            status = walsh_fail(err, WALSH_E_ARGUMENT, "tensor %s: the file's size overflows", t->name);
    }
    plan->file_bytes = offset;
    *out = status == WALSH_OK ? json_dumps(root, JSON_COMPACT) : NULL;
    json_decref(root);
    if (status == WALSH_OK && !*out)
        status = walsh_fail(err, WALSH_E_MEMORY, "out of memory: a safetensors header");
    return status;
}

enum walsh_status walsh_plan_finish(struct walsh_safetensors_plan *plan, struct walsh_error *err)
{
    if (plan->count) qsort(plan->tensors, plan->count, sizeof *plan->tensors, by_file_order);
    WALSH_TRY(build_index(plan, err));
    WALSH_TRY(walsh_arena_alloc(&plan->arena, plan->count, sizeof *plan->offsets, "the plan's offsets",
                                &plan->offsets, err));
    char *json;
    WALSH_TRY(build_json(plan, &json, err));
    size_t length = strlen(json), padded = walsh_round_up(length, 8);
    enum walsh_status status = WALSH_OK;
    if (padded > MAX_HEADER)
        status = walsh_fail(err, WALSH_E_ARGUMENT, "safetensors header of %zu bytes, expected at most %u",
                            padded, MAX_HEADER);
    else
        status = walsh_arena_alloc(&plan->arena, padded + 8, 1, "a safetensors header", &plan->header, err);
    if (status == WALSH_OK) {
        for (unsigned i = 0; i < 8; i++) plan->header[i] = (char)(padded >> (8 * i) & 0xff);
        memcpy(plan->header + 8, json, length);
        memset(plan->header + 8 + length, ' ', padded - length);
        plan->header_bytes = padded + 8;
        plan->file_bytes += plan->header_bytes;
        for (size_t i = 0; i < plan->count; i++) plan->offsets[i] += plan->header_bytes;
    }
    free(json);
    return status;
}

size_t walsh_plan_find(const struct walsh_safetensors_plan *plan, const char *name)
{
    struct walsh_plan_index key = {.name = name};
    const struct walsh_plan_index *found =
        plan->count ? bsearch(&key, plan->index, plan->count, sizeof key, by_index_name) : NULL;
    return found ? found->tensor : SIZE_MAX;
}

void walsh_plan_close(struct walsh_safetensors_plan *plan)
{
    walsh_free(plan->tensors);
    walsh_arena_close(&plan->arena);
    *plan = (struct walsh_safetensors_plan){0};
}
