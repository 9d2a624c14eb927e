#include "cache/prefix_directory.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/memory.h"
#include "cache/prefix_store.h"

#define LOCK_NAME "lock"
#define LOCK_TRIES 400
#define LOCK_PAUSE 5000000 /* nanoseconds between tries */
#define FOREIGN_NAMED 3    /* foreign files that a warning names */
#define SKEW 1000000000    /* nanoseconds that another machine's clock may be ahead */

void walsh_prefix_block_name(const struct walsh_prefix_key *key, char name[WALSH_PREFIX_NAME])
{
    char text[WALSH_PREFIX_KEY_TEXT];
    snprintf(name, WALSH_PREFIX_NAME, "%s.block", walsh_prefix_key_text(key, text));
}

enum entry_kind { BLOCK, TEMPORARY, FOREIGN };

static enum entry_kind name_kind(const char *name)
{
    const size_t digits = strspn(name, "0123456789abcdef");
    if (digits != 2 * WALSH_PREFIX_KEY_BYTES) return FOREIGN;
    name += digits;
    if (strcmp(name, ".block") == 0) return BLOCK;
    const size_t size = strlen(name);
    const bool writer = size > 5 && name[0] == '.' && strcmp(name + size - 4, ".tmp") == 0 &&
                        strspn(name + 1, "0123456789-") == size - 5;
    return writer ? TEMPORARY : FOREIGN;
}

/* ---- opening */

static enum walsh_status check_link(const char *path, struct walsh_error *err)
{
    struct stat info;
    if (lstat(path, &info) != 0) return walsh_fail_errno(err, errno, "%s: cannot stat", path);
    if (S_ISLNK(info.st_mode) && info.st_uid != geteuid() && info.st_uid != 0)
        return walsh_fail(
            err, WALSH_E_ARGUMENT,
            "%s: is a symbolic link of user %u, expected a directory or a link of user %u's own: a "
            "prefix store must be private",
            path, (unsigned)info.st_uid, (unsigned)geteuid());
    return WALSH_OK;
}

static enum walsh_status check_private(int fd, const char *path, struct walsh_error *err)
{
    struct stat info;
    if (fstat(fd, &info) != 0) return walsh_fail_errno(err, errno, "%s: cannot stat", path);
    if (info.st_uid != geteuid())
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "%s: belongs to user %u, expected user %u: a prefix store must be private", path,
                          (unsigned)info.st_uid, (unsigned)geteuid());
    if (info.st_mode & S_IWOTH)
        return walsh_fail(
            err, WALSH_E_ARGUMENT,
            "%s: everybody may write to it (mode %04o): a prefix store must be private (chmod 700)", path,
            (unsigned)(info.st_mode & 07777));
    return WALSH_OK;
}

static enum walsh_status open_directory(const char *path, int *fd, struct walsh_error *err)
{
    const int flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC;
    if (mkdir(path, 0700) != 0 && errno != EEXIST)
        return walsh_fail_errno(err, errno, "%s: cannot make the directory", path);
    *fd = open(path, flags | O_NOFOLLOW);
    if (*fd < 0) { /* a link: only then may its owner matter */
        WALSH_TRY(check_link(path, err));
        *fd = open(path, flags);
    }
    if (*fd < 0) return walsh_fail_errno(err, errno, "%s: cannot open the directory", path);
    const enum walsh_status status = check_private(*fd, path, err);
    if (status != WALSH_OK) {
        close(*fd);
        *fd = -1;
    }
    return status;
}

/* ---- the lock */

/* Opened anew each time: flock excludes the other threads of this process too then. */
static enum walsh_status lock(const struct walsh_prefix_directory *d, int *fd, struct walsh_error *err)
{
    *fd = openat(d->fd, LOCK_NAME, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (*fd < 0) return walsh_fail_errno(err, errno, "%s/" LOCK_NAME ": cannot open", d->path);
    for (unsigned i = 0; flock(*fd, LOCK_EX | LOCK_NB) != 0; i++) {
        const int why = errno;
        if ((why == EWOULDBLOCK || why == EINTR) && i < LOCK_TRIES) {
            nanosleep(&(struct timespec){0, LOCK_PAUSE}, NULL);
            continue;
        }
        close(*fd);
        return walsh_fail_errno(err, why, "%s/" LOCK_NAME ": cannot lock", d->path);
    }
    return WALSH_OK;
}

/* ---- counting and evicting */

struct block_file {
    char name[WALSH_PREFIX_NAME];
    uint64_t size;
    int64_t used;
};
struct census {
    bool locked;               /* set by the caller: abandoned temporaries may be removed */
    struct block_file *blocks; /* [count] */
    size_t count, capacity;
    uint64_t bytes; /* of blocks and temporaries */
    size_t foreign;
    char named[FOREIGN_NAMED][80];
};

static enum walsh_status add_block(struct census *c, const char *name, const struct stat *info,
                                   struct walsh_error *err)
{
    if (c->count == c->capacity) {
        const size_t capacity = c->capacity ? 2 * c->capacity : 256;
        struct block_file *larger;
        WALSH_TRY(walsh_alloc(capacity, sizeof *larger, "the list of a prefix store's blocks", &larger, err));
        if (c->count) memcpy(larger, c->blocks, c->count * sizeof *larger);
        walsh_free(c->blocks);
        c->blocks = larger;
        c->capacity = capacity;
    }
    struct block_file *block = &c->blocks[c->count++];
    snprintf(block->name, sizeof block->name, "%.95s", name);
    block->size = (uint64_t)info->st_size;
    block->used = (int64_t)info->st_mtim.tv_sec * 1000000000 + info->st_mtim.tv_nsec;
    return WALSH_OK;
}

/* Its writer holds its lock as long as it lives, and has it before the store's lock is free again. */
static bool remove_if_abandoned(const struct walsh_prefix_directory *d, const char *name)
{
    const int fd = openat(d->fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) return false;
    const bool gone = flock(fd, LOCK_EX | LOCK_NB) == 0 && unlinkat(d->fd, name, 0) == 0;
    close(fd);
    return gone;
}

static enum walsh_status count_entry(const struct walsh_prefix_directory *d, const char *name,
                                     struct census *c, struct walsh_error *err)
{
    if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0 || strcmp(name, LOCK_NAME) == 0) return WALSH_OK;
    const enum entry_kind kind = name_kind(name);
    struct stat info;
    if (fstatat(d->fd, name, &info, AT_SYMLINK_NOFOLLOW) != 0) return WALSH_OK; /* evicted meanwhile */
    if (kind == FOREIGN || !S_ISREG(info.st_mode) || info.st_uid != geteuid()) {
        if (c->foreign < FOREIGN_NAMED) snprintf(c->named[c->foreign], sizeof c->named[0], "%.79s", name);
        c->foreign++;
        return WALSH_OK;
    }
    if (kind == TEMPORARY && c->locked && remove_if_abandoned(d, name)) return WALSH_OK;
    c->bytes += (uint64_t)info.st_size;
    return kind == BLOCK ? add_block(c, name, &info, err) : WALSH_OK;
}

/* c->blocks: walsh_free, on failure too. */
static enum walsh_status count_blocks(const struct walsh_prefix_directory *d, struct census *c,
                                      struct walsh_error *err)
{
    const int fd = openat(d->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *list = fd < 0 ? NULL : fdopendir(fd);
    if (!list) {
        const int why = errno;
        if (fd >= 0) close(fd);
        return walsh_fail_errno(err, why, "%s: cannot list the directory", d->path);
    }
    enum walsh_status status = WALSH_OK;
    struct dirent *entry;
    while (status == WALSH_OK && (entry = readdir(list))) status = count_entry(d, entry->d_name, c, err);
    closedir(list);
    return status;
}

static int longest_unused_first(const void *a, const void *b)
{
    const struct block_file *x = a, *y = b;
    if (x->used != y->used) return x->used < y->used ? -1 : 1;
    return strcmp(x->name, y->name);
}

static enum walsh_status no_room(const struct walsh_prefix_directory *d, uint64_t size, uint64_t stay,
                                 struct walsh_error *err)
{
    return walsh_fail(err, WALSH_E_CAPACITY,
                      "%s: no room for %llu bytes: its limit is %llu, and %llu are in use by running prompts",
                      d->path, (unsigned long long)size, (unsigned long long)d->limit,
                      (unsigned long long)stay);
}

static enum walsh_status evict(const struct walsh_prefix_directory *d, struct census *c, uint64_t size,
                               int64_t since, struct walsh_error *err)
{
    if (size <= d->limit && c->bytes <= d->limit - size) return WALSH_OK;
    /* A time to come is a clock that was wrong: it must not keep a block for ever. */
    const int64_t latest = walsh_store_now() + SKEW;
    uint64_t stay = c->bytes; /* what no eviction could free */
    for (size_t i = 0; i < c->count; i++) {
        if (c->blocks[i].used > latest) c->blocks[i].used = 0;
        if (c->blocks[i].used < since) stay -= c->blocks[i].size;
    }
    /* Nothing goes for a block that would not fit all the same. At opening there is no block: what can go
     * goes. */
    if (size > 0 && (size > d->limit || stay > d->limit - size)) return no_room(d, size, stay, err);
    qsort(c->blocks, c->count, sizeof *c->blocks, longest_unused_first);
    for (size_t i = 0; i < c->count && c->blocks[i].used < since; i++) {
        if (unlinkat(d->fd, c->blocks[i].name, 0) != 0 && errno != ENOENT)
            return walsh_fail_errno(err, errno, "%s/%s: cannot remove", d->path, c->blocks[i].name);
        c->bytes -= c->blocks[i].size;
        if (size <= d->limit && c->bytes <= d->limit - size) return WALSH_OK;
    }
    return no_room(d, size, c->bytes, err);
}

static void warn_foreign(const struct walsh_prefix_directory *d, const struct census *c,
                         const struct walsh_hooks *hooks)
{
    for (size_t i = 0; i < walsh_min(c->foreign, FOREIGN_NAMED); i++)
        walsh_log(hooks, WALSH_LOG_WARNING, "%s/%s: skipped: no block of a prefix store", d->path,
                  c->named[i]);
    if (c->foreign > FOREIGN_NAMED)
        walsh_log(hooks, WALSH_LOG_WARNING, "%s: %zu more files are no blocks of a prefix store", d->path,
                  c->foreign - FOREIGN_NAMED);
}

/* What can be set right at opening. A directory that cannot be written serves what it has. */
static void tidy(const struct walsh_prefix_directory *d, const struct walsh_hooks *hooks)
{
    int held;
    struct walsh_error err;
    const bool locked = lock(d, &held, &err) == WALSH_OK;
    struct census c = {.locked = locked};
    if (!locked) walsh_log(hooks, WALSH_LOG_WARNING, "%s; blocks will be read, not stored", err.message);
    if (count_blocks(d, &c, NULL) == WALSH_OK) {
        warn_foreign(d, &c, hooks);
        if (locked && evict(d, &c, 0, INT64_MAX, &err) != WALSH_OK)
            walsh_log(hooks, WALSH_LOG_WARNING, "%s", err.message);
    }
    walsh_free(c.blocks);
    if (locked) close(held);
}

enum walsh_status walsh_prefix_directory_open(const char *path, uint64_t limit,
                                              const struct walsh_hooks *hooks,
                                              struct walsh_prefix_directory *out, struct walsh_error *err)
{
    *out = (struct walsh_prefix_directory){.fd = -1, .limit = limit};
    /* A slash at the end would follow a link whatever open is told. */
    size_t size = strlen(path);
    while (size > 1 && path[size - 1] == '/') size--;
    WALSH_TRY(walsh_alloc(size + 1, 1, "a path", &out->path, err));
    memcpy(out->path, path, size);
    out->path[size] = 0;
    const enum walsh_status status = open_directory(out->path, &out->fd, err);
    if (status != WALSH_OK) {
        walsh_prefix_directory_close(out);
        return status;
    }
    tidy(out, hooks);
    return WALSH_OK;
}

void walsh_prefix_directory_close(struct walsh_prefix_directory *d)
{
    if (d->fd >= 0) close(d->fd);
    walsh_free(d->path);
    *d = (struct walsh_prefix_directory){.fd = -1};
}

/* ---- temporaries */

static enum walsh_status create_temporary(const struct walsh_prefix_directory *d,
                                          const struct walsh_prefix_key *key, uint64_t size, int *fd,
                                          char name[WALSH_PREFIX_NAME], struct walsh_error *err)
{
    char text[WALSH_PREFIX_KEY_TEXT];
    walsh_prefix_key_text(key, text);
    for (unsigned attempt = 0;; attempt++) {
        snprintf(name, WALSH_PREFIX_NAME, "%s.%ld-%u.tmp", text, (long)getpid(), attempt);
        *fd = openat(d->fd, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (*fd >= 0) break;
        if (errno != EEXIST || attempt == 999)
            return walsh_fail_errno(err, errno, "%s/%s: cannot create", d->path, name);
    }
    /* Its size counts from now on, so that two writers do not take the same room. */
    if (flock(*fd, LOCK_EX | LOCK_NB) == 0 && ftruncate(*fd, (off_t)size) == 0) return WALSH_OK;
    const int why = errno;
    walsh_prefix_directory_discard(d, *fd, name);
    return walsh_fail_errno(err, why, "%s/%s: cannot reserve %llu bytes", d->path, name,
                            (unsigned long long)size);
}

enum walsh_status walsh_prefix_directory_reserve(const struct walsh_prefix_directory *d,
                                                 const struct walsh_prefix_key *key, uint64_t size,
                                                 int64_t since, int *fd, char name[WALSH_PREFIX_NAME],
                                                 struct walsh_error *err)
{
    *fd = -1;
    int held;
    struct census c = {.locked = true};
    WALSH_TRY(lock(d, &held, err));
    enum walsh_status status = count_blocks(d, &c, err);
    if (status == WALSH_OK) status = evict(d, &c, size, since, err);
    if (status == WALSH_OK) status = create_temporary(d, key, size, fd, name, err);
    walsh_free(c.blocks);
    close(held);
    return status;
}

/* With the lock: who counts must see the temporary or the block, not both and not neither. */
static enum walsh_status rename_locked(const struct walsh_prefix_directory *d, const char *name,
                                       const char *block, struct walsh_error *err)
{
    int held;
    WALSH_TRY(lock(d, &held, err));
    const int why = renameat(d->fd, name, d->fd, block) == 0 ? 0 : errno;
    close(held);
    return why == 0 ? WALSH_OK
                    : walsh_fail_errno(err, why, "%s/%s: cannot rename %s to it", d->path, block, name);
}

enum walsh_status walsh_prefix_directory_commit(const struct walsh_prefix_directory *d,
                                                const struct walsh_prefix_key *key, int fd, const char *name,
                                                struct walsh_error *err)
{
    char block[WALSH_PREFIX_NAME];
    walsh_prefix_block_name(key, block);
    const enum walsh_status status = rename_locked(d, name, block, err);
    if (status != WALSH_OK) {
        walsh_prefix_directory_discard(d, fd, name);
        return status;
    }
    close(fd);
    /* EINVAL: a file system that has nothing to sync for a directory. */
    if (fsync(d->fd) != 0 && errno != EINVAL)
        return walsh_fail_errno(err, errno, "%s: cannot sync the directory", d->path);
    return WALSH_OK;
}

void walsh_prefix_directory_discard(const struct walsh_prefix_directory *d, int fd, const char *name)
{
    close(fd);
    unlinkat(d->fd, name, 0);
}
