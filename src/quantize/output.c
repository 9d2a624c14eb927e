#include "quantize/output.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/file.h"
#include "base/memory.h"
#include "checkpoint/model_name.h"

#define MAX_JOURNAL_BYTES ((size_t)256 << 20)
#define COPY_BYTES ((size_t)8 << 20)

/* What a model directory has beside its tensors and config.json; those that exist are copied. */
static const char *const companions[] = {"generation_config.json",
                                         "tokenizer.json",
                                         "tokenizer_config.json",
                                         "special_tokens_map.json",
                                         "added_tokens.json",
                                         "vocab.json",
                                         "merges.txt",
                                         "chat_template.jinja",
                                         "tokenizer.model"};

/* --- the directory --- */

static enum walsh_status concatenate(const char *a, const char *b, char **out, struct walsh_error *err)
{
    size_t size = strlen(a) + strlen(b) + 1;
    WALSH_TRY(walsh_alloc(size, 1, "a path", out, err));
    snprintf(*out, size, "%s%s", a, b);
    return WALSH_OK;
}

/* Remove what killed writers left in `path`: names that end in ".tmp". */
static enum walsh_status remove_temporaries(const char *path, struct walsh_error *err)
{
    static const char suffix[] = ".tmp";
    DIR *directory = opendir(path);
    if (!directory) return walsh_fail_errno(err, errno, "%s: cannot list it", path);
    enum walsh_status status = WALSH_OK;
    for (struct dirent *entry; status == WALSH_OK && (entry = readdir(directory)) != NULL;) {
        size_t size = strlen(entry->d_name), end = sizeof suffix - 1;
        if (size <= end || strcmp(entry->d_name + size - end, suffix) != 0) continue;
        if (unlinkat(dirfd(directory), entry->d_name, 0) != 0)
            status = walsh_fail_errno(err, errno, "%s/%s: cannot remove it", path, entry->d_name);
    }
    closedir(directory);
    return status;
}

/* One job at a time writes the directory; the lock goes with the process. */
static enum walsh_status lock_directory(struct walsh_output *o, struct walsh_error *err)
{
    o->lock = open(o->partial, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (o->lock < 0) return walsh_fail_errno(err, errno, "%s: cannot open the directory", o->partial);
    if (flock(o->lock, LOCK_EX | LOCK_NB) == 0) return WALSH_OK;
    if (errno != EWOULDBLOCK) return walsh_fail_errno(err, errno, "%s: cannot lock it", o->partial);
    return walsh_fail(err, WALSH_E_EXISTS, "%s: another job is writing it", o->partial);
}

static enum walsh_status write_journal(const struct walsh_output *o, struct walsh_error *err)
{
    char *text = json_dumps(o->state, JSON_INDENT(1) | JSON_REAL_PRECISION(17));
    if (!text) return walsh_fail(err, WALSH_E_MEMORY, "%s: no memory for its text", o->journal);
    enum walsh_status status = walsh_file_write(o->journal, text, strlen(text), err);
    free(text);
    return status;
}

/* model.safetensors at its full size, so that a disk that is too small says so now. */
static enum walsh_status create_tensors(struct walsh_output *o, struct walsh_error *err)
{
    o->fd = open(o->tensors, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (o->fd < 0) return walsh_fail_errno(err, errno, "%s: cannot create it", o->tensors);
    int full = posix_fallocate(o->fd, 0, (off_t)o->plan.file_bytes);
    if (full != 0)
        return walsh_fail_errno(err, full, "%s: cannot reserve %" PRIu64 " bytes", o->tensors,
                                o->plan.file_bytes);
    return walsh_pwrite_all(o->fd, o->tensors, o->plan.header, o->plan.header_bytes, 0, err);
}

/* job.json comes first: it says that the directory is ours. */
static enum walsh_status begin_job(struct walsh_output *o, const char *description, struct walsh_error *err)
{
    enum walsh_status status = lock_directory(o, err);
    if (status == WALSH_E_EXISTS) return status; /* it is another job's by now */
    if (status == WALSH_OK) {
        o->state = json_pack("{s:s, s:b, s:[]}", "job", description, "copied", 0, "layers");
        if (!o->state) status = walsh_fail(err, WALSH_E_MEMORY, "%s: no memory for its text", o->journal);
    }
    if (status == WALSH_OK) status = write_journal(o, err);
    if (status == WALSH_OK) status = create_tensors(o, err);
    if (status != WALSH_OK) { /* nothing there is worth keeping */
        (void)unlink(o->tensors);
        (void)unlink(o->journal);
        (void)rmdir(o->partial);
    }
    return status;
}

static enum walsh_status read_journal(struct walsh_output *o, struct walsh_error *err)
{
    char *text;
    size_t size;
    json_error_t where;
    WALSH_TRY(walsh_file_read_text(o->journal, MAX_JOURNAL_BYTES, &text, &size, err));
    o->state = json_loadb(text, size, JSON_REJECT_DUPLICATES, &where);
    walsh_free(text);
    if (!o->state)
        return walsh_fail(err, WALSH_E_FORMAT, "%s: line %d: %s; remove %s to start again", o->journal,
                          where.line, where.text, o->partial);
    if (!json_is_string(json_object_get(o->state, "job")) ||
        !json_is_boolean(json_object_get(o->state, "copied")) ||
        !json_is_array(json_object_get(o->state, "layers")))
        return walsh_fail(err, WALSH_E_FORMAT,
                          "%s: not the record of a quantize job; remove %s to start again", o->journal,
                          o->partial);
    return WALSH_OK;
}

static enum walsh_status continue_job(struct walsh_output *o, const char *description,
                                      struct walsh_error *err)
{
    const char *job = json_string_value(json_object_get(o->state, "job"));
    if (strcmp(job, description) != 0)
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "%s was begun as another job (%s), this one is (%s); use its options or remove it",
                          o->partial, job, description);
    o->layers_done = (uint32_t)json_array_size(json_object_get(o->state, "layers"));
    o->fd = open(o->tensors, O_RDWR | O_CLOEXEC);
    if (o->fd < 0) return walsh_fail_errno(err, errno, "%s: cannot open it", o->tensors);
    struct stat st;
    if (fstat(o->fd, &st) != 0) return walsh_fail_errno(err, errno, "%s", o->tensors);
    if ((uint64_t)st.st_size != o->plan.file_bytes)
        return walsh_fail(err, WALSH_E_FORMAT,
                          "%s has %jd bytes, the job writes %" PRIu64 "; remove %s to start again",
                          o->tensors, (intmax_t)st.st_size, o->plan.file_bytes, o->partial);
    return WALSH_OK;
}

/* DESTINATION.partial is there: a job to go on with, one that had not written anything yet, or not ours. */
static enum walsh_status reopen_job(struct walsh_output *o, const char *description, bool resume,
                                    struct walsh_error *err)
{
    WALSH_TRY(lock_directory(o, err));
    WALSH_TRY(remove_temporaries(o->partial, err));
    if (!walsh_path_exists(o->journal)) {
        if (rmdir(o->partial) != 0)
            return walsh_fail(
                err, WALSH_E_EXISTS,
                "%s exists and is not an unfinished job of walsh; remove it or choose another name",
                o->partial);
        close(o->lock);
        o->lock = -1;
        if (mkdir(o->partial, 0777) != 0)
            return walsh_fail_errno(err, errno, "%s: cannot make the directory", o->partial);
        return begin_job(o, description, err);
    }
    WALSH_TRY(read_journal(o, err));
    if (!json_is_true(json_object_get(o->state, "copied"))) {
        json_decref(o->state);
        o->state = NULL;
        close(o->lock);
        o->lock = -1;
        return begin_job(o, description, err);
    }
    if (!resume)
        return walsh_fail(err, WALSH_E_EXISTS,
                          "%s holds an unfinished job; --resume goes on with it, removing it starts again",
                          o->partial);
    return continue_job(o, description, err);
}

enum walsh_status walsh_output_open(const struct walsh_checkpoint *source, const char *destination,
                                    struct walsh_safetensors_plan *plan, const char *description, bool resume,
                                    struct walsh_output *out, struct walsh_error *err)
{
    *out = (struct walsh_output){.source = source, .plan = *plan, .fd = -1, .lock = -1};
    *plan = (struct walsh_safetensors_plan){0};
    WALSH_TRY(concatenate(destination, "", &out->destination, err));
    for (size_t n = strlen(destination); n > 1 && out->destination[n - 1] == '/'; n--)
        out->destination[n - 1] = '\0';
    WALSH_TRY(concatenate(out->destination, ".partial", &out->partial, err));
    WALSH_TRY(concatenate(out->partial, "/model.safetensors", &out->tensors, err));
    WALSH_TRY(concatenate(out->partial, "/job.json", &out->journal, err));
    if (walsh_path_exists(out->destination))
        return walsh_fail(err, WALSH_E_EXISTS, "%s exists; quantize writes a new directory",
                          out->destination);
    if (mkdir(out->partial, 0777) == 0) return begin_job(out, description, err);
    if (errno != EEXIST) return walsh_fail_errno(err, errno, "%s: cannot make the directory", out->partial);
    return reopen_job(out, description, resume, err);
}

void walsh_output_close(struct walsh_output *o)
{
    if (o->fd >= 0) close(o->fd);
    if (o->lock >= 0) close(o->lock);
    json_decref(o->state);
    walsh_plan_close(&o->plan);
    walsh_free(o->destination);
    walsh_free(o->partial);
    walsh_free(o->tensors);
    walsh_free(o->journal);
    *o = (struct walsh_output){.fd = -1, .lock = -1};
}

/* --- tensors --- */

enum walsh_status walsh_output_write(struct walsh_output *o, const char *name, const void *data, size_t bytes,
                                     struct walsh_error *err)
{
    size_t i = walsh_plan_find(&o->plan, name);
    if (i == SIZE_MAX || o->plan.tensors[i].bytes != bytes)
        return walsh_fail(err, WALSH_E_INTERNAL, "%s: %s is not planned with %zu bytes", o->tensors, name,
                          bytes);
    return walsh_pwrite_all(o->fd, o->tensors, data, bytes, o->plan.offsets[i], err);
}

enum walsh_status walsh_output_write_at(struct walsh_output *o, const char *name, size_t at, const void *data,
                                        size_t bytes, struct walsh_error *err)
{
    size_t i = walsh_plan_find(&o->plan, name);
    if (i == SIZE_MAX || at > o->plan.tensors[i].bytes || bytes > o->plan.tensors[i].bytes - at)
        return walsh_fail(err, WALSH_E_INTERNAL, "%s: %s is not planned with %zu bytes behind %zu",
                          o->tensors, name, bytes, at);
    return walsh_pwrite_all(o->fd, o->tensors, data, bytes, o->plan.offsets[i] + at, err);
}

/* Elements of an F32 or F16 tensor as bf16, `count` from `first` on. */
static void convert_to_bf16(const struct walsh_tensor *t, size_t first, size_t count, uint16_t *out)
{
    const uint8_t *from = (const uint8_t *)t->data + first * walsh_dtype_size(t->dtype);
    for (size_t i = 0; i < count; i++) {
        float f;
        uint16_t h;
        if (t->dtype == WALSH_F32) {
            memcpy(&f, from + 4 * i, sizeof f);
        } else {
            memcpy(&h, from + 2 * i, sizeof h);
            f = walsh_f32_from_f16(h);
        }
        out[i] = walsh_bf16_from_f32(f);
    }
}

static enum walsh_status copy_tensor(struct walsh_output *o, size_t planned, const struct walsh_tensor *t,
                                     uint16_t *buffer, const struct walsh_hooks *hooks,
                                     struct walsh_error *err)
{
    bool convert = o->plan.tensors[planned].dtype != t->dtype;
    size_t bytes = o->plan.tensors[planned].bytes;
    for (size_t at = 0; at < bytes; at += COPY_BYTES) {
        size_t n = walsh_min(COPY_BYTES, bytes - at);
        const void *data = (const uint8_t *)t->data + at;
        if (convert) {
            convert_to_bf16(t, at / sizeof *buffer, n / sizeof *buffer, buffer);
            data = buffer;
        }
        WALSH_TRY(walsh_check_abort(hooks, err));
        WALSH_TRY(walsh_pwrite_all(o->fd, o->tensors, data, n, o->plan.offsets[planned] + at, err));
    }
    return WALSH_OK;
}

enum walsh_status walsh_output_copy_tensors(struct walsh_output *o, const struct walsh_hooks *hooks,
                                            struct walsh_error *err)
{
    uint16_t *buffer;
    WALSH_TRY(walsh_alloc(COPY_BYTES, 1, "a buffer to copy tensors", &buffer, err));
    enum walsh_status status = WALSH_OK;
    for (size_t i = 0; i < o->plan.count && status == WALSH_OK; i++) {
        const struct walsh_tensor *t = walsh_checkpoint_find(o->source, o->plan.tensors[i].name);
        if (t && t->used) status = copy_tensor(o, i, t, buffer, hooks, err);
    }
    walsh_free(buffer);
    if (status != WALSH_OK) return status;
    if (fsync(o->fd) != 0) return walsh_fail_errno(err, errno, "%s: cannot write it to the disk", o->tensors);
    if (json_object_set_new(o->state, "copied", json_true()) != 0)
        return walsh_fail(err, WALSH_E_MEMORY, "%s: no memory for its text", o->journal);
    return write_journal(o, err);
}

/* A hash of all planned bytes whose names begin with "LINEAR.", for each of the linears in turn. */
static enum walsh_status hash_linears(const struct walsh_output *o, const struct walsh_job_linear *linears,
                                      size_t count, uint64_t *hash, struct walsh_error *err)
{
    uint8_t *buffer;
    WALSH_TRY(walsh_alloc(COPY_BYTES, 1, "a buffer to check layers", &buffer, err));
    XXH64_state_t *state = XXH64_createState();
    enum walsh_status status = WALSH_OK;
    if (!state || XXH64_reset(state, 0) != XXH_OK)
        status = walsh_fail(err, WALSH_E_MEMORY, "no memory for a hash");
    for (size_t l = 0; l < count; l++) {
        size_t prefix = strlen(linears[l].name);
        for (size_t i = 0; i < o->plan.count && status == WALSH_OK; i++) {
            const struct walsh_tensor *t = &o->plan.tensors[i];
            if (strncmp(t->name, linears[l].name, prefix) != 0 || t->name[prefix] != '.') continue;
            for (size_t at = 0; at < t->bytes && status == WALSH_OK;) {
                ssize_t n = pread(o->fd, buffer, walsh_min(COPY_BYTES, t->bytes - at),
                                  (off_t)(o->plan.offsets[i] + at));
                if (n <= 0) {
                    status =
                        walsh_fail_errno(err, n < 0 ? errno : EIO, "%s: cannot read %s", o->tensors, t->name);
                    break;
                }
                (void)XXH64_update(state, buffer, (size_t)n);
                at += (size_t)n;
            }
        }
    }
    if (status == WALSH_OK) *hash = XXH64_digest(state);
    XXH64_freeState(state);
    walsh_free(buffer);
    return status;
}

enum walsh_status walsh_output_layer_done(struct walsh_output *o, const struct walsh_job_linear *linears,
                                          size_t count, struct walsh_error *err)
{
    uint64_t hash;
    if (fsync(o->fd) != 0) return walsh_fail_errno(err, errno, "%s: cannot write it to the disk", o->tensors);
    WALSH_TRY(hash_linears(o, linears, count, &hash, err));
    char text[17];
    snprintf(text, sizeof text, "%016" PRIx64, hash);
    json_t *figures = json_array();
    bool good = true;
    for (size_t i = 0; i < count && good; i++)
        good = json_array_append_new(figures, json_pack("{s:f, s:f}", "proxy", linears[i].proxy, "seconds",
                                                        linears[i].seconds)) == 0;
    if (!good) {
        json_decref(figures);
        figures = NULL;
    }
    json_t *layer = json_pack("{s:s, s:o}", "xxh64", text, "linears", figures);
    if (!layer || json_array_append_new(json_object_get(o->state, "layers"), layer) != 0)
        return walsh_fail(err, WALSH_E_MEMORY, "%s: no memory for its text", o->journal);
    WALSH_TRY(write_journal(o, err));
    o->layers_done++;
    return WALSH_OK;
}

enum walsh_status walsh_output_check_layer(struct walsh_output *o, uint32_t layer,
                                           struct walsh_job_linear *linears, size_t count,
                                           struct walsh_error *err)
{
    const json_t *entry = json_array_get(json_object_get(o->state, "layers"), layer);
    const json_t *figures = json_object_get(entry, "linears");
    const char *expected = json_string_value(json_object_get(entry, "xxh64"));
    uint64_t hash;
    char found[17];
    WALSH_TRY(hash_linears(o, linears, count, &hash, err));
    snprintf(found, sizeof found, "%016" PRIx64, hash);
    if (!expected || strcmp(found, expected) != 0 || json_array_size(figures) != count)
        return walsh_fail(
            err, WALSH_E_FORMAT,
            "%s: layer %u is not what %s recorded (hash %s, expected %s); remove %s to start again",
            o->tensors, layer, o->journal, found, expected ? expected : "none", o->partial);
    for (size_t i = 0; i < count; i++) {
        const json_t *f = json_array_get(figures, i);
        linears[i].proxy = json_number_value(json_object_get(f, "proxy"));
        linears[i].seconds = json_number_value(json_object_get(f, "seconds"));
    }
    return WALSH_OK;
}

/* --- reading back --- */

enum walsh_status walsh_output_view_open(const struct walsh_output *o, struct walsh_output_view *out,
                                         struct walsh_error *err)
{
    *out = (struct walsh_output_view){0};
    WALSH_TRY(walsh_safetensors_open(o->tensors, true, &out->file, err));
    struct walsh_checkpoint *ck = &out->checkpoint;
    ck->files = &out->file;
    ck->file_count = 1;
    ck->tensor_count = out->file.count;
    enum walsh_status status =
        walsh_alloc(ck->tensor_count, sizeof(struct walsh_tensor *), "the tensors so far", &ck->tensors, err);
    if (status != WALSH_OK) {
        walsh_safetensors_close(&out->file);
        return status;
    }
    for (size_t i = 0; i < ck->tensor_count; i++) ck->tensors[i] = &out->file.tensors[i];
    return WALSH_OK;
}

void walsh_output_view_close(struct walsh_output_view *view)
{
    walsh_free(view->checkpoint.tensors);
    walsh_safetensors_close(&view->file);
    *view = (struct walsh_output_view){0};
}

/* --- the end --- */

static bool change_config(json_t *config, json_t *changes)
{
    const char *key;
    json_t *value;
    json_object_foreach(changes, key, value)
    {
        if (json_is_null(value))
            (void)json_object_del(config, key);
        else if (json_object_set(config, key, value) != 0)
            return false;
    }
    return true;
}

/* The source's with the changes. It keeps the source's name, so that an adapter of that knows it again. */
static enum walsh_status write_config(const struct walsh_output *o, json_t *changes, struct walsh_error *err)
{
    char *path, *name;
    WALSH_TRY(walsh_model_name(o->source, &name, err));
    json_t *config = json_loadb(o->source->config_json, o->source->config_size, JSON_REJECT_DUPLICATES, NULL);
    const bool named = config && json_object_set_new(config, "_name_or_path", json_string(name)) == 0;
    walsh_free(name);
    if (!named || !change_config(config, changes)) {
        json_decref(config);
        return walsh_fail(err, WALSH_E_MEMORY, "%s: no memory for config.json", o->partial);
    }
    char *text = json_dumps(config, JSON_INDENT(2) | JSON_REAL_PRECISION(15));
    json_decref(config);
    if (!text) return walsh_fail(err, WALSH_E_MEMORY, "%s: no memory for config.json", o->partial);
    enum walsh_status status = walsh_path_join(o->partial, "config.json", &path, err);
    if (status == WALSH_OK) {
        status = walsh_file_write(path, text, strlen(text), err);
        walsh_free(path);
    }
    free(text);
    return status;
}

static enum walsh_status copy_companion(const struct walsh_output *o, const char *name,
                                        struct walsh_error *err)
{
    char *from, *to;
    WALSH_TRY(walsh_path_join(o->source->directory, name, &from, err));
    enum walsh_status status = walsh_path_join(o->partial, name, &to, err);
    if (status == WALSH_OK) {
        if (walsh_path_exists(from)) status = walsh_copy_file(from, to, err);
        walsh_free(to);
    }
    walsh_free(from);
    return status;
}

static void remove_member(const struct walsh_output *o, const char *name)
{
    char *path;
    if (walsh_path_join(o->partial, name, &path, NULL) != WALSH_OK) return;
    (void)unlink(path);
    walsh_free(path);
}

void walsh_output_discard(struct walsh_output *o)
{
    if (o->fd < 0 || !o->partial) return;
    for (size_t i = 0; i < sizeof companions / sizeof *companions; i++) remove_member(o, companions[i]);
    remove_member(o, "config.json");
    (void)unlink(o->tensors);
    (void)unlink(o->journal);
    (void)remove_temporaries(o->partial, NULL);
    (void)rmdir(o->partial); /* unless somebody put something else there */
}

enum walsh_status walsh_output_finish(struct walsh_output *o, json_t *changes, struct walsh_error *err)
{
    WALSH_TRY(write_config(o, changes, err));
    for (size_t i = 0; i < sizeof companions / sizeof *companions; i++)
        WALSH_TRY(copy_companion(o, companions[i], err));
    WALSH_TRY(remove_temporaries(o->partial, err));
    WALSH_TRY(walsh_fsync_directory(o->partial, err));
    if (walsh_path_exists(o->destination))
        return walsh_fail(err, WALSH_E_EXISTS, "%s appeared while the job ran; the result is in %s",
                          o->destination, o->partial);
    char *journal;
    WALSH_TRY(walsh_path_join(o->destination, "job.json", &journal, err));
    enum walsh_status status = WALSH_OK;
    if (rename(o->partial, o->destination) != 0) {
        status = walsh_fail_errno(err, errno, "%s: cannot rename it to %s", o->partial, o->destination);
    } else {
        status = walsh_fsync_parent(o->destination, err);
        /* The record goes last: until the directory has its name, a kill must leave a job that can go on. */
        (void)unlink(journal);
    }
    walsh_free(journal);
    return status;
}
