#include "checkpoint/checkpoint.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint/json.h"
#include "checkpoint/lalamo.h"
#include "checkpoint/shell.h"

#define MAX_CONFIG ((size_t)16 << 20) /* bytes of config.json and generation_config.json */
#define MAX_INDEX ((size_t)256 << 20) /* bytes of model.safetensors.index.json */
#define MAX_SHARDS 65536

static bool ends_with(const char *text, const char *suffix)
{
    size_t n = strlen(text), m = strlen(suffix);
    return n >= m && strcmp(text + n - m, suffix) == 0;
}

static enum walsh_status fail_gguf(const char *path, struct walsh_error *err)
{
    return walsh_fail(
        err, WALSH_E_UNSUPPORTED,
        "%s: GGUF is not read. walsh reads Hugging Face directories (config.json, tokenizer.json, "
        "*.safetensors): get the model's original repository, or convert the file (transformers: "
        "from_pretrained(DIRECTORY, gguf_file=FILE), then save_pretrained)",
        path);
}

/* A MODEL that is a file: is it GGUF by name or by its first bytes? */
static enum walsh_status fail_not_directory(const char *path, struct walsh_error *err)
{
    struct walsh_file file;
    bool gguf = ends_with(path, ".gguf");
    if (!gguf && walsh_path_exists(path)) {
        WALSH_TRY(walsh_file_open(path, true, &file, err));
        gguf = file.size >= 4 && memcmp(file.data, "GGUF", 4) == 0;
        walsh_file_close(&file);
    } else if (!gguf) {
        return walsh_fail(err, WALSH_E_NOT_FOUND, "%s: no such directory", path);
    }
    if (gguf) return fail_gguf(path, err);
    return walsh_fail(
        err, WALSH_E_ARGUMENT,
        "%s: is a file, expected a Hugging Face directory (config.json, tokenizer.json, *.safetensors)",
        path);
}

/* Does the directory hold a file whose name ends so? Its name into found[256]. */
static bool directory_has(const char *directory, const char *suffix, char found[256])
{
    DIR *d = opendir(directory);
    bool has = false;
    struct dirent *entry;
    while (d && !has && (entry = readdir(d))) {
        if (!ends_with(entry->d_name, suffix)) continue;
        snprintf(found, 256, "%s", entry->d_name);
        has = true;
    }
    if (d) closedir(d);
    return has;
}

/* config.json or the weights are missing: say why, as far as the directory shows it. */
static enum walsh_status fail_missing(const struct walsh_checkpoint *ck, const char *what,
                                      struct walsh_error *err)
{
    char found[256];
    if (directory_has(ck->directory, ".gguf", found) &&
        !directory_has(ck->directory, ".safetensors", found)) {
        char path[1024];
        snprintf(path, sizeof path, "%.700s/%s", ck->directory, found);
        return fail_gguf(path, err);
    }
    if (!directory_has(ck->directory, ".safetensors", found) && directory_has(ck->directory, ".bin", found))
        return walsh_fail(
            err, WALSH_E_NOT_FOUND,
            "%s: no %s; %s looks like PyTorch weights, which are not read: convert them to safetensors "
            "(transformers: save_pretrained)",
            ck->directory, what, found);
    return walsh_fail(err, WALSH_E_NOT_FOUND, "%s: no %s, expected a Hugging Face model directory",
                      ck->directory, what);
}

static enum walsh_status read_configs(struct walsh_checkpoint *ck, struct walsh_error *err)
{
    char *path, *text = NULL;
    size_t size = 0;
    WALSH_TRY(walsh_path_join(ck->directory, "config.json", &path, err));
    enum walsh_status status = walsh_path_exists(path) ? WALSH_OK : fail_missing(ck, "config.json", err);
    if (status == WALSH_OK)
        status = walsh_file_read_regular(path, MAX_CONFIG, &ck->config_json, &ck->config_size, err);
    if (status == WALSH_OK)
        status = walsh_config_parse(path, ck->config_json, ck->config_size, &ck->config, err);
    walsh_free(path);
    if (status != WALSH_OK) return status;

    WALSH_TRY(walsh_path_join(ck->directory, "generation_config.json", &path, err));
    if (walsh_path_exists(path)) status = walsh_file_read_regular(path, MAX_CONFIG, &text, &size, err);
    if (status == WALSH_OK) status = walsh_generation_config_parse(path, text, size, &ck->generation, err);
    if (status == WALSH_OK && ck->config.architecture == WALSH_ARCH_LALAMO)
        status = walsh_lalamo_read_generation(path, ck->config_json, ck->config_size, &ck->generation, err);
    walsh_free(text);
    walsh_free(path);
    return status;
}

static enum walsh_status open_file(struct walsh_checkpoint *ck, const char *name, bool use_mmap,
                                   struct walsh_error *err)
{
    char *path;
    WALSH_TRY(walsh_path_join(ck->directory, name, &path, err));
    struct walsh_safetensors *st = &ck->files[ck->file_count];
    enum walsh_status status = walsh_safetensors_open(path, use_mmap, st, err);
    walsh_free(path);
    WALSH_TRY(status);
    ck->file_count++;
    ck->bytes += st->file.size;
    return WALSH_OK;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The shards' names of weight_map, each once, sorted: borrowed from the JSON; *names: walsh_free. */
static enum walsh_status list_shards(const char *path, json_t *map, const char ***names, size_t *count,
                                     struct walsh_error *err)
{
    size_t tensors = json_object_size(map), n = 0;
    WALSH_TRY(walsh_alloc(tensors, sizeof **names, "the list of shards", names, err));
    const char *tensor;
    json_t *value;
    json_object_foreach(map, tensor, value)
    {
        const char *name = json_string_value(value);
        /* A name, not a path: an index must not lead out of its directory. */
        if (!name || !*name || strchr(name, '/') || !ends_with(name, ".safetensors"))
            return walsh_fail(err, WALSH_E_FORMAT,
                              "%s: tensor %s: its shard is %s%.200s, expected the name of a .safetensors "
                              "file in the same directory",
                              path, tensor, name ? "" : walsh_json_kind(value), name ? name : "");
        (*names)[n++] = name;
    }
    qsort(*names, n, sizeof **names, by_text);
    *count = 0;
    for (size_t i = 0; i < n; i++)
        if (i == 0 || strcmp((*names)[i], (*names)[*count - 1]) != 0) (*names)[(*count)++] = (*names)[i];
    if (*count == 0) return walsh_fail(err, WALSH_E_FORMAT, "%s: weight_map is empty", path);
    if (*count > MAX_SHARDS)
        return walsh_fail(err, WALSH_E_FORMAT, "%s: %zu shards, expected at most %d", path, *count,
                          MAX_SHARDS);
    return WALSH_OK;
}

static enum walsh_status open_shards(struct walsh_checkpoint *ck, const char *path, json_t *map,
                                     bool use_mmap, struct walsh_error *err)
{
    const char **names = NULL;
    size_t count = 0;
    enum walsh_status status = list_shards(path, map, &names, &count, err);
    if (status == WALSH_OK)
        status = walsh_alloc_zero(count, sizeof *ck->files, "the shards", &ck->files, err);
    for (size_t i = 0; i < count && status == WALSH_OK; i++) {
        char *shard;
        status = walsh_path_join(ck->directory, names[i], &shard, err);
        if (status != WALSH_OK) break;
        if (!walsh_path_exists(shard))
            status =
                walsh_fail(err, WALSH_E_NOT_FOUND,
                           "%s: is missing, but %s names it: fetch all shards of the model", shard, path);
        walsh_free(shard);
        if (status == WALSH_OK) status = open_file(ck, names[i], use_mmap, err);
    }
    walsh_free(names);
    return status;
}

static int by_name(const void *a, const void *b)
{
    return strcmp((*(struct walsh_tensor *const *)a)->name, (*(struct walsh_tensor *const *)b)->name);
}

static enum walsh_status merge_tables(struct walsh_checkpoint *ck, struct walsh_error *err)
{
    size_t total = 0;
    for (size_t i = 0; i < ck->file_count; i++) total += ck->files[i].count;
    WALSH_TRY(walsh_alloc(total, sizeof *ck->tensors, "the tensor table", &ck->tensors, err));
    for (size_t i = 0; i < ck->file_count; i++)
        for (size_t j = 0; j < ck->files[i].count; j++)
            ck->tensors[ck->tensor_count++] = &ck->files[i].tensors[j];
    qsort(ck->tensors, total, sizeof *ck->tensors, by_name);
    for (size_t i = 1; i < total; i++) {
        const struct walsh_tensor *a = ck->tensors[i - 1], *b = ck->tensors[i];
        if (strcmp(a->name, b->name) == 0)
            return walsh_fail(err, WALSH_E_FORMAT, "tensor %s is in two shards: %s and %s", a->name, a->file,
                              b->file);
    }
    return WALSH_OK;
}

static const char *file_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* Every tensor where the index says, and none that it does not know */
static enum walsh_status check_index(const struct walsh_checkpoint *ck, const char *path, json_t *map,
                                     struct walsh_error *err)
{
    const char *name;
    json_t *value;
    json_object_foreach(map, name, value)
    {
        const struct walsh_tensor *t = walsh_checkpoint_find(ck, name);
        const char *shard = json_string_value(value);
        if (!t)
            return walsh_fail(err, WALSH_E_FORMAT, "%s: tensor %s is not in %s nor in any other shard", path,
                              name, shard);
        if (strcmp(file_name(t->file), shard) != 0)
            return walsh_fail(err, WALSH_E_FORMAT, "%s: tensor %s is in %s, but the index says %s", path,
                              name, file_name(t->file), shard);
    }
    for (size_t i = 0; i < ck->tensor_count; i++)
        if (!json_object_get(map, ck->tensors[i]->name))
            return walsh_fail(err, WALSH_E_FORMAT, "%s: tensor %s is in %s, but not in the index", path,
                              ck->tensors[i]->name, file_name(ck->tensors[i]->file));
    return WALSH_OK;
}

static enum walsh_status open_index(struct walsh_checkpoint *ck, const char *path, bool use_mmap,
                                    struct walsh_error *err)
{
    char *text;
    size_t size;
    WALSH_TRY(walsh_file_read_regular(path, MAX_INDEX, &text, &size, err));
    json_t *root = NULL;
    enum walsh_status status = walsh_json_parse(path, text, size, &root, err);
    walsh_free(text);
    json_t *map = json_object_get(root, "weight_map");
    if (status == WALSH_OK && !json_is_object(map))
        status = walsh_fail(err, WALSH_E_FORMAT, "%s: weight_map is %s, expected an object", path,
                            walsh_json_kind(map));
    if (status == WALSH_OK) status = open_shards(ck, path, map, use_mmap, err);
    if (status == WALSH_OK) status = merge_tables(ck, err);
    if (status == WALSH_OK) status = check_index(ck, path, map, err);
    json_decref(root);
    return status;
}

static enum walsh_status open_weights(struct walsh_checkpoint *ck, bool use_mmap, struct walsh_error *err)
{
    char *single = NULL, *index = NULL;
    enum walsh_status status = walsh_path_join(ck->directory, "model.safetensors", &single, err);
    if (status == WALSH_OK)
        status = walsh_path_join(ck->directory, "model.safetensors.index.json", &index, err);
    if (status != WALSH_OK) {
        /* nothing was opened */
    } else if (walsh_path_exists(single)) { /* the one that transformers prefers */
        status = walsh_alloc_zero(1, sizeof *ck->files, "the file table", &ck->files, err);
        if (status == WALSH_OK) status = open_file(ck, "model.safetensors", use_mmap, err);
        if (status == WALSH_OK) status = merge_tables(ck, err);
    } else if (walsh_path_exists(index)) {
        status = open_index(ck, index, use_mmap, err);
    } else {
        status = fail_missing(ck, "model.safetensors or model.safetensors.index.json", err);
    }
    walsh_free(single);
    walsh_free(index);
    return status;
}

enum walsh_status walsh_checkpoint_open(const char *directory, bool use_mmap, struct walsh_checkpoint *out,
                                        struct walsh_error *err)
{
    *out = (struct walsh_checkpoint){0};
    if (!walsh_path_is_directory(directory)) return fail_not_directory(directory, err);
    enum walsh_status status = walsh_alloc(strlen(directory) + 1, 1, "a path", &out->directory, err);
    if (status == WALSH_OK) {
        memcpy(out->directory, directory, strlen(directory) + 1);
        status = read_configs(out, err);
    }
    if (status == WALSH_OK) status = open_weights(out, use_mmap, err);
    if (status == WALSH_OK && strcmp(out->config.quant.codebook, "e8_shell") == 0)
        status = walsh_shell_points_open(out, &out->shell, err);
    if (status != WALSH_OK) walsh_checkpoint_close(out);
    return status;
}

void walsh_checkpoint_close(struct walsh_checkpoint *ck)
{
    for (size_t i = 0; i < ck->file_count; i++) walsh_safetensors_close(&ck->files[i]);
    walsh_free(ck->files);
    walsh_free(ck->tensors);
    walsh_shell_points_close(&ck->shell);
    walsh_free(ck->config_json);
    walsh_free(ck->directory);
    *ck = (struct walsh_checkpoint){0};
}

struct walsh_tensor *walsh_checkpoint_find(const struct walsh_checkpoint *ck, const char *name)
{
    struct walsh_tensor key = {.name = name};
    const struct walsh_tensor *wanted = &key;
    if (ck->tensor_count == 0) return NULL;
    struct walsh_tensor **found =
        bsearch(&wanted, ck->tensors, ck->tensor_count, sizeof *ck->tensors, by_name);
    return found ? *found : NULL;
}

/* "BF16, F16 or F32" */
static void list_dtypes(unsigned dtypes, char *buffer, size_t size)
{
    buffer[0] = 0;
    for (unsigned i = 0; i < WALSH_DTYPE_COUNT; i++) {
        if (!(dtypes >> i & 1)) continue;
        size_t used = strlen(buffer);
        bool last = dtypes >> (i + 1) == 0;
        snprintf(buffer + used, size - used, "%s%s",
                 used == 0 ? ""
                 : last    ? " or "
                           : ", ",
                 walsh_dtype_name((enum walsh_dtype)i));
    }
}

/* Present and of one of the dtypes */
static enum walsh_status find_typed(const struct walsh_checkpoint *ck, const char *name, unsigned dtypes,
                                    struct walsh_tensor **out, struct walsh_error *err)
{
    struct walsh_tensor *t = walsh_checkpoint_find(ck, name);
    if (!t) return walsh_fail(err, WALSH_E_NOT_FOUND, "%s: tensor %s is missing", ck->directory, name);
    if (!(dtypes >> t->dtype & 1)) {
        char expected[128];
        list_dtypes(dtypes, expected, sizeof expected);
        return walsh_fail(err, WALSH_E_FORMAT, "%s: tensor %s: dtype %s, expected %s", t->file, name,
                          walsh_dtype_name(t->dtype), expected);
    }
    *out = t;
    return WALSH_OK;
}

enum walsh_status walsh_checkpoint_take(const struct walsh_checkpoint *ck, const char *name, unsigned dtypes,
                                        unsigned rank, const uint64_t *shape, const struct walsh_tensor **out,
                                        struct walsh_error *err)
{
    struct walsh_tensor *t = NULL;
    WALSH_TRY(find_typed(ck, name, dtypes, &t, err));
    if (t->rank != rank || (rank && memcmp(t->shape, shape, rank * sizeof *shape) != 0)) {
        char found[256], expected[256];
        return walsh_fail(err, WALSH_E_FORMAT, "%s: tensor %s: shape %s, expected %s", t->file, name,
                          walsh_shape_text(t->shape, t->rank, found, sizeof found),
                          walsh_shape_text(shape, rank, expected, sizeof expected));
    }
    t->used = true;
    *out = t;
    return WALSH_OK;
}

enum walsh_status walsh_checkpoint_take_rank(const struct walsh_checkpoint *ck, const char *name,
                                             unsigned dtypes, unsigned rank, const struct walsh_tensor **out,
                                             struct walsh_error *err)
{
    struct walsh_tensor *t = NULL;
    WALSH_TRY(find_typed(ck, name, dtypes, &t, err));
    if (t->rank != rank) {
        char found[256];
        return walsh_fail(err, WALSH_E_FORMAT, "%s: tensor %s: shape %s, expected %u dimensions", t->file,
                          name, walsh_shape_text(t->shape, t->rank, found, sizeof found), rank);
    }
    t->used = true;
    *out = t;
    return WALSH_OK;
}

enum walsh_status walsh_checkpoint_all_used(const struct walsh_checkpoint *ck, struct walsh_error *err)
{
    const struct walsh_tensor *first = NULL;
    size_t others = 0;
    for (size_t i = 0; i < ck->tensor_count; i++) {
        const struct walsh_tensor *t = ck->tensors[i];
        if (t->used || ends_with(t->name, "rotary_emb.inv_freq")) continue;
        if (first)
            others++;
        else
            first = t;
    }
    if (!first) return WALSH_OK;
    char more[64] = "";
    if (others) snprintf(more, sizeof more, " (and %zu more)", others);
    return walsh_fail(err, WALSH_E_FORMAT, "%s: tensor %s%s has no place in %s as config.json describes it",
                      first->file, first->name, more, ck->config.architecture_name);
}

float walsh_tensor_element(const struct walsh_tensor *t, size_t i)
{
    const uint8_t *p = t->data; /* not aligned */
    float f;
    uint16_t h;
    if (t->dtype == WALSH_F32) {
        memcpy(&f, p + 4 * i, sizeof f);
        return f;
    }
    memcpy(&h, p + 2 * i, sizeof h);
    return t->dtype == WALSH_BF16 ? walsh_f32_from_bf16(h) : walsh_f32_from_f16(h);
}

void walsh_tensor_to_f32(const struct walsh_tensor *t, float *out)
{
    const size_t n = walsh_tensor_elements(t);
    if (t->dtype == WALSH_F32)
        memcpy(out, t->data, n * sizeof *out);
    else
        for (size_t i = 0; i < n; i++) out[i] = walsh_tensor_element(t, i);
}
