#include "files.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "app.h"

#define SHIPPED_PLACES 3

enum walsh_status file_read(const char *path, struct text *out, struct walsh_error *err)
{
    bool standard = strcmp(path, "-") == 0;
    FILE *file = standard ? stdin : fopen(path, "rb");
    if (!file) return fail_errno(err, "cannot open '%s'", path);
    *out = (struct text){0};
    char block[65536];
    size_t size;
    errno = 0;
    while ((size = fread(block, 1, sizeof block, file)) > 0) {
        if (!text_append(out, block, size)) {
            errno = ENOMEM;
            break;
        }
    }
    bool failed = ferror(file) || errno == ENOMEM;
    int reason = errno;
    if (!standard) fclose(file);
    if (failed || !text_append(out, "", 0)) {
        text_free(out);
        errno = failed ? reason : ENOMEM;
        return fail_errno(err, "cannot read '%s'", standard ? "standard input" : path);
    }
    return WALSH_OK;
}

static char *format_path(const char *format, ...) __attribute__((format(printf, 1, 2)));

static char *format_path(const char *format, ...)
{
    char *path = NULL;
    va_list args;
    va_start(args, format);
    if (vasprintf(&path, format, args) < 0) path = NULL;
    va_end(args);
    return path;
}

/* ORG/NAME or NAME, of the characters that Hugging Face allows. */
static bool looks_like_id(const char *model)
{
    size_t slashes = 0;
    for (const char *p = model; *p; p++) {
        slashes += *p == '/';
        bool letter = (*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') || (*p >= '0' && *p <= '9');
        if (!letter && !strchr("/-_.", *p)) return false;
    }
    size_t length = strlen(model);
    if (length > 5 && strcmp(model + length - 5, ".gguf") == 0) return false; /* the library explains */
    return length && !strchr("./", *model) && slashes <= 1 && model[length - 1] != '/';
}

/* The cache's directory; the caller frees it. NULL: out of memory, or no home. */
static char *hub_directory(void)
{
    const char *hub = getenv("HF_HUB_CACHE"), *home = getenv("HF_HOME"), *user = getenv("HOME");
    if (hub && *hub) return format_path("%s", hub);
    if (home && *home) return format_path("%s/hub", home);
    return user && *user ? format_path("%s/.cache/huggingface/hub", user) : NULL;
}

/* HUB/models--ORG--NAME; the caller frees it. */
static char *repository_directory(const char *hub, const char *id)
{
    const char *slash = strchr(id, '/');
    if (!slash) return format_path("%s/models--%s", hub, id);
    return format_path("%s/models--%.*s--%s", hub, (int)(slash - id), id, slash + 1);
}

/* The snapshot that refs/main names. */
static enum walsh_status snapshot_find(const char *id, const char *repository, char **path,
                                       struct walsh_error *err)
{
    char *reference = format_path("%s/refs/main", repository);
    if (!reference) return fail(err, WALSH_E_MEMORY, "out of memory");
    struct text commit = {0};
    enum walsh_status status = file_read(reference, &commit, err);
    free(reference);
    if (status != WALSH_OK) return status;
    commit.data[strcspn(commit.data, "\r\n")] = 0;
    if (!*commit.data || strchr(commit.data, '/') || commit.data[0] == '.') {
        text_free(&commit);
        return fail(err, WALSH_E_FORMAT, "%s/refs/main: not a commit", repository);
    }
    *path = format_path("%s/snapshots/%s", repository, commit.data);
    text_free(&commit);
    if (!*path) return fail(err, WALSH_E_MEMORY, "out of memory");
    if (access(*path, F_OK) != 0) {
        status = fail(err, WALSH_E_NOT_FOUND, "%s: %s, which refs/main names, is missing", id, *path);
        free(*path);
        *path = NULL;
    }
    return status;
}

/* The directory of the running program; false where /proc does not tell. */
static bool program_directory(char *buffer, size_t size)
{
    ssize_t length = readlink("/proc/self/exe", buffer, size - 1);
    if (length <= 0) return false;
    buffer[length] = 0;
    char *slash = strrchr(buffer, '/');
    if (!slash) return false;
    *slash = 0;
    return true;
}

/* Where what ships with walsh may be, the likeliest first: $WALSH_DATA alone, or else what the running
 * program and the build say. Returns their number; the caller frees them. */
static size_t shipped_paths(const char *name, char *paths[SHIPPED_PLACES])
{
    const char *given = getenv("WALSH_DATA");
    char program[PATH_MAX];
    size_t count = 0;
    if (given && *given) {
        paths[count++] = format_path("%s/%s", given, name);
        return count;
    }
    if (program_directory(program, sizeof program))
        paths[count++] = format_path("%s/" WALSH_DATA_FROM_PROGRAM "/%s", program, name);
    paths[count++] = format_path("%s/%s", WALSH_DATA_INSTALLED, name);
    paths[count++] =
        format_path("%s%s/%s", WALSH_DATA_SOURCE, strncmp(name, "models/", 7) == 0 ? "/.." : "", name);
    return count;
}

/* The first that is there; NULL: none. *last, where not NULL, becomes the last place, for messages. */
static char *shipped_find(const char *name, char **last)
{
    char *paths[SHIPPED_PLACES], *found = NULL;
    const size_t count = shipped_paths(name, paths);
    for (size_t i = 0; i < count; i++) {
        if (!found && paths[i] && access(paths[i], R_OK) == 0)
            found = paths[i];
        else if (last && i + 1 == count)
            *last = paths[i];
        else
            free(paths[i]);
    }
    return found;
}

enum walsh_status data_find(const char *name, char **path, struct walsh_error *err)
{
    char *last = NULL;
    *path = shipped_find(name, &last);
    if (*path) {
        free(last);
        return WALSH_OK;
    }
    const enum walsh_status status =
        fail(err, WALSH_E_NOT_FOUND, "%s, which ships with walsh, is not at %s; set WALSH_DATA", name,
             last ? last : "?");
    free(last);
    return status;
}

enum walsh_status model_find(const char *model, char **path, struct walsh_error *err)
{
    *path = NULL;
    if (access(model, F_OK) == 0 || !looks_like_id(model)) {
        *path = format_path("%s", model);
        return *path ? WALSH_OK : fail(err, WALSH_E_MEMORY, "out of memory");
    }
    char *hub = hub_directory(), *repository = hub ? repository_directory(hub, model) : NULL;
    enum walsh_status status = WALSH_OK;
    if (repository && access(repository, F_OK) == 0) {
        status = snapshot_find(model, repository, path, err);
    } else if (!strchr(model, '/')) {
        char *shipped = format_path("models/%s", model);
        if (shipped) *path = shipped_find(shipped, NULL);
        free(shipped);
    }
    if (status == WALSH_OK && !*path)
        status =
            fail(err, WALSH_E_NOT_FOUND,
                 "'%s' is neither a directory nor in the Hugging Face cache (%s); walsh does not download",
                 model, hub ? hub : "no HF_HOME and no HOME");
    free(repository);
    free(hub);
    return status;
}
