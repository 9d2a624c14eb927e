/* Checkpoints: directories that appear whole, and what --resume needs of them. */
#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "checkpoint/safetensors.h"
#include "train/output.h"

#define PREFIX "checkpoint-"
#define STATE_FILE "training_state.safetensors"
#define COUNTERS 5 /* step, epoch, next, optimizer_steps, stale */

/* The step of a complete checkpoint's name; 0: it is something else. */
static uint64_t step_of(const char *name)
{
    char *end;
    if (strncmp(name, PREFIX, strlen(PREFIX)) != 0) return 0;
    errno = 0;
    const unsigned long long step = strtoull(name + strlen(PREFIX), &end, 10);
    return *end || errno ? 0 : step;
}

/* The newest or, with `oldest`, oldest checkpoint's step; *count: how many. */
static uint64_t find_checkpoint(const char *output, bool oldest, size_t *count)
{
    DIR *dir = opendir(output);
    uint64_t found = 0;
    *count = 0;
    for (const struct dirent *entry; dir && (entry = readdir(dir)) != NULL;) {
        const uint64_t step = step_of(entry->d_name);
        if (step == 0) continue;
        ++*count;
        if (found == 0 || (oldest ? step < found : step > found)) found = step;
    }
    if (dir) closedir(dir);
    return found;
}

bool walsh_output_used(const char *output)
{
    char *path = NULL;
    size_t count;
    find_checkpoint(output, false, &count);
    if (count > 0) return true;
    if (walsh_path_join(output, "adapter_model.safetensors", &path, NULL) != WALSH_OK) return false;
    const bool used = walsh_path_exists(path);
    walsh_free(path);
    return used;
}

/* Remove a directory of plain files; what cannot be removed stays. */
static void remove_directory(const char *path)
{
    DIR *dir = opendir(path);
    for (const struct dirent *entry; dir && (entry = readdir(dir)) != NULL;) {
        char *file = NULL;
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        if (walsh_path_join(path, entry->d_name, &file, NULL) == WALSH_OK) unlink(file);
        walsh_free(file);
    }
    if (dir) closedir(dir);
    rmdir(path);
}

static enum walsh_status checkpoint_path(const char *output, uint64_t step, const char *suffix, char **out,
                                         struct walsh_error *err)
{
    char name[64];
    snprintf(name, sizeof name, PREFIX "%llu%s", (unsigned long long)step, suffix);
    return walsh_path_join(output, name, out, err);
}

/* --- the state's file --- */

static enum walsh_status plan_state(const struct walsh_train_state *s, const char *identity,
                                    struct walsh_safetensors_plan *plan, struct walsh_error *err)
{
    const uint64_t count[] = {s->count}, counters[] = {COUNTERS}, one[] = {1}, text[] = {strlen(identity)};
    const uint64_t log[] = {s->step, sizeof(struct walsh_train_step)};
    WALSH_TRY(walsh_plan_add(plan, "values", WALSH_F32, 1, count, err));
    WALSH_TRY(walsh_plan_add(plan, "m", WALSH_F32, 1, count, err));
    WALSH_TRY(walsh_plan_add(plan, "v", WALSH_F32, 1, count, err));
    if (s->best_values) WALSH_TRY(walsh_plan_add(plan, "best_values", WALSH_F32, 1, count, err));
    WALSH_TRY(walsh_plan_add(plan, "counters", WALSH_U64, 1, counters, err));
    WALSH_TRY(walsh_plan_add(plan, "best", WALSH_F64, 1, one, err));
    WALSH_TRY(walsh_plan_add(plan, "identity", WALSH_U8, 1, text, err));
    WALSH_TRY(walsh_plan_add(plan, "log", WALSH_U8, 2, log, err));
    return walsh_plan_finish(plan, err);
}

static void put(const struct walsh_safetensors_plan *plan, uint8_t *image, const char *name, const void *data,
                size_t bytes)
{
    memcpy(image + plan->offsets[walsh_plan_find(plan, name)], data, bytes);
}

static enum walsh_status write_state(const char *directory, const struct walsh_train_state *s,
                                     const char *identity, struct walsh_error *err)
{
    struct walsh_safetensors_plan plan = {0};
    uint8_t *image = NULL;
    char *path = NULL;
    const uint64_t counters[COUNTERS] = {s->step, s->epoch, s->next, s->optimizer_steps, s->stale};
    const size_t bytes = s->count * sizeof(float);
    enum walsh_status status = plan_state(s, identity, &plan, err);
    if (status == WALSH_OK)
        status = walsh_alloc_zero(plan.file_bytes, 1, "the state of training", &image, err);
    if (status == WALSH_OK) {
        memcpy(image, plan.header, plan.header_bytes);
        put(&plan, image, "values", s->values, bytes);
        put(&plan, image, "m", s->m, bytes);
        put(&plan, image, "v", s->v, bytes);
        if (s->best_values) put(&plan, image, "best_values", s->best_values, bytes);
        put(&plan, image, "counters", counters, sizeof counters);
        put(&plan, image, "best", &s->best, sizeof s->best);
        put(&plan, image, "identity", identity, strlen(identity));
        put(&plan, image, "log", s->log, s->step * sizeof *s->log);
        status = walsh_path_join(directory, STATE_FILE, &path, err);
    }
    if (status == WALSH_OK) status = walsh_file_write(path, image, plan.file_bytes, err);
    walsh_free(path);
    walsh_free(image);
    walsh_plan_close(&plan);
    return status;
}

static enum walsh_status get(const struct walsh_safetensors *st, const char *name, size_t bytes,
                             const void **data, struct walsh_error *err)
{
    const struct walsh_tensor *t = walsh_safetensors_find(st, name);
    if (!t || t->bytes != bytes)
        return walsh_fail(err, WALSH_E_FORMAT, "%s: %s has %zu bytes, expected %zu", st->file.path, name,
                          t ? t->bytes : 0, bytes);
    *data = t->data;
    return WALSH_OK;
}

static enum walsh_status get_into(const struct walsh_safetensors *st, const char *name, void *to,
                                  size_t bytes, struct walsh_error *err)
{
    const void *data = NULL;
    WALSH_TRY(get(st, name, bytes, &data, err));
    memcpy(to, data, bytes);
    return WALSH_OK;
}

/* The first line in which two texts of options differ. */
static enum walsh_status check_identity(const struct walsh_safetensors *st, const char *identity,
                                        struct walsh_error *err)
{
    const struct walsh_tensor *t = walsh_safetensors_find(st, "identity");
    if (!t) return walsh_fail(err, WALSH_E_FORMAT, "%s: identity is missing", st->file.path);
    const char *was = t->data, *is = identity;
    size_t left = t->bytes, n = strlen(identity);
    if (left == n && memcmp(was, is, n) == 0) return WALSH_OK;
    while (left > 0 && n > 0) {
        const char *a = memchr(was, '\n', left), *b = memchr(is, '\n', n);
        const size_t na = a ? (size_t)(a - was) : left, nb = b ? (size_t)(b - is) : n;
        if (na != nb || memcmp(was, is, na) != 0)
            return walsh_fail(
                err, WALSH_E_ARGUMENT,
                "%s: it was begun with %.*s, now it is %.*s: --resume goes on with the same job only",
                st->file.path, (int)na, was, (int)nb, is);
        was += na + (a != NULL);
        left -= na + (a != NULL);
        is += nb + (b != NULL);
        n -= nb + (b != NULL);
    }
    return walsh_fail(err, WALSH_E_ARGUMENT, "%s: it was begun with other options", st->file.path);
}

static enum walsh_status read_state(const struct walsh_safetensors *st, struct walsh_train_state *s,
                                    const char *identity, struct walsh_error *err)
{
    uint64_t counters[COUNTERS];
    const size_t bytes = s->count * sizeof(float);
    WALSH_TRY(check_identity(st, identity, err));
    WALSH_TRY(get_into(st, "counters", counters, sizeof counters, err));
    WALSH_TRY(get_into(st, "best", &s->best, sizeof s->best, err));
    WALSH_TRY(get_into(st, "values", s->values, bytes, err));
    WALSH_TRY(get_into(st, "m", s->m, bytes, err));
    WALSH_TRY(get_into(st, "v", s->v, bytes, err));
    if (s->best_values) WALSH_TRY(get_into(st, "best_values", s->best_values, bytes, err));
    s->step = counters[0];
    s->epoch = counters[1];
    s->next = counters[2];
    s->optimizer_steps = counters[3];
    s->stale = counters[4];
    const void *log = NULL;
    if (s->step > st->file.size)
        return walsh_fail(err, WALSH_E_FORMAT, "%s: its log has no such length", st->file.path);
    WALSH_TRY(get(st, "log", (size_t)s->step * sizeof *s->log, &log, err));
    WALSH_TRY(walsh_log_reserve(s, (size_t)s->step, err));
    memcpy(s->log, log, (size_t)s->step * sizeof *s->log);
    return WALSH_OK;
}

/* --- directories --- */

static enum walsh_status fill_checkpoint(const char *path, const struct walsh_parameters *p,
                                         const struct walsh_train_state *s, const struct walsh_train_job *job,
                                         const char *identity, struct walsh_error *err)
{
    remove_directory(path); /* of a run that was killed while it wrote */
    if (mkdir(path, 0777) != 0) return walsh_fail_errno(err, errno, "%s: cannot be made", path);
    WALSH_TRY(walsh_adapter_save(path, p, s->values, job, err));
    WALSH_TRY(write_state(path, s, identity, err));
    WALSH_TRY(walsh_log_write(path, s->log, (size_t)s->step, err));
    return walsh_fsync_directory(path, err);
}

/* Under another name first: what is half removed is no checkpoint any more. */
static enum walsh_status forget_checkpoint(const char *output, uint64_t step, struct walsh_error *err)
{
    char *path = NULL, *partial = NULL;
    enum walsh_status status = checkpoint_path(output, step, "", &path, err);
    if (status == WALSH_OK) status = checkpoint_path(output, step, ".partial", &partial, err);
    if (status == WALSH_OK && rename(path, partial) != 0)
        status = walsh_fail_errno(err, errno, "%s: cannot be removed", path);
    if (status == WALSH_OK) remove_directory(partial);
    walsh_free(path);
    walsh_free(partial);
    return status;
}

enum walsh_status walsh_checkpoint_save(const struct walsh_parameters *p, const struct walsh_train_state *s,
                                        const struct walsh_train_job *job, const char *identity,
                                        struct walsh_error *err)
{
    char *partial = NULL, *path = NULL;
    enum walsh_status status = checkpoint_path(job->output, s->step, ".partial", &partial, err);
    if (status == WALSH_OK) status = checkpoint_path(job->output, s->step, "", &path, err);
    if (status == WALSH_OK && !walsh_path_exists(path)) {
        status = fill_checkpoint(partial, p, s, job, identity, err);
        if (status == WALSH_OK && rename(partial, path) != 0)
            status = walsh_fail_errno(err, errno, "%s: cannot be renamed to %s", partial, path);
        if (status == WALSH_OK) status = walsh_fsync_directory(job->output, err);
    }
    walsh_free(partial);
    walsh_free(path);
    size_t count;
    for (uint64_t oldest = find_checkpoint(job->output, true, &count);
         status == WALSH_OK && job->keep > 0 && count > job->keep;
         oldest = find_checkpoint(job->output, true, &count)) {
        status = forget_checkpoint(job->output, oldest, err);
    }
    return status;
}

enum walsh_status walsh_checkpoint_load(struct walsh_train_state *s, const struct walsh_train_job *job,
                                        const char *identity, uint64_t pieces, bool *found,
                                        struct walsh_error *err)
{
    size_t count;
    const uint64_t step = find_checkpoint(job->output, false, &count);
    char *directory = NULL, *path = NULL;
    struct walsh_safetensors st = {0};
    *found = step > 0;
    if (!*found) return WALSH_OK;
    enum walsh_status status = checkpoint_path(job->output, step, "", &directory, err);
    if (status == WALSH_OK) status = walsh_path_join(directory, STATE_FILE, &path, err);
    if (status == WALSH_OK) status = walsh_safetensors_open(path, false, &st, err);
    if (status == WALSH_OK) status = read_state(&st, s, identity, err);
    if (status == WALSH_OK && (s->step != step || s->next > pieces))
        status =
            walsh_fail(err, WALSH_E_FORMAT,
                       "%s: it is of step %llu and piece %llu, expected step %llu and at most %llu pieces",
                       path, (unsigned long long)s->step, (unsigned long long)s->next,
                       (unsigned long long)step, (unsigned long long)pieces);
    walsh_safetensors_close(&st);
    walsh_free(path);
    walsh_free(directory);
    return status;
}
