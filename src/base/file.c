#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/memory.h"

static const uint8_t nothing[1]; /* what an empty file's data points to */

/* A copy of the text; walsh_free. */
static enum walsh_status copy_text(const char *text, char **out, struct walsh_error *err)
{
    size_t size = strlen(text) + 1;
    WALSH_TRY(walsh_alloc(size, 1, "a path", out, err));
    memcpy(*out, text, size);
    return WALSH_OK;
}

static enum walsh_status open_for_reading(const char *path, int flags, int *fd, struct stat *info,
                                          struct walsh_error *err)
{
    *fd = open(path, O_RDONLY | O_CLOEXEC | flags);
    if (*fd < 0) {
        if (errno == ENOENT) return walsh_fail(err, WALSH_E_NOT_FOUND, "%s: no such file", path);
        return walsh_fail_errno(err, errno, "%s: cannot open", path);
    }
    if (fstat(*fd, info) != 0) {
        int why = errno;
        close(*fd);
        return walsh_fail_errno(err, why, "%s: cannot stat", path);
    }
    if (S_ISDIR(info->st_mode)) {
        close(*fd);
        return walsh_fail(err, WALSH_E_IO, "%s: is a directory, expected a file", path);
    }
    return WALSH_OK;
}

/* Up to `size` bytes; *got is smaller only at the end of the file. */
static enum walsh_status read_some(int fd, const char *path, void *buffer, size_t size, size_t *got,
                                   struct walsh_error *err)
{
    *got = 0;
    while (*got < size) {
        size_t piece = walsh_min(size - *got, (size_t)1 << 30);
        ssize_t n = read(fd, (char *)buffer + *got, piece);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return walsh_fail_errno(err, errno, "%s: cannot read", path);
        if (n == 0) break;
        *got += (size_t)n;
    }
    return WALSH_OK;
}

static enum walsh_status load(int fd, bool use_mmap, struct walsh_file *file, struct walsh_error *err)
{
    if (file->size == 0) {
        file->data = nothing;
        return WALSH_OK;
    }
    if (use_mmap) {
        void *p = mmap(NULL, file->size, PROT_READ, MAP_SHARED, fd, 0);
        if (p == MAP_FAILED)
            return walsh_fail_errno(err, errno, "%s: cannot map %zu bytes", file->path, file->size);
        file->data = p;
        file->mapped = true;
        file->fd = fd;
        return WALSH_OK;
    }
    uint8_t *buffer;
    size_t got;
    WALSH_TRY(walsh_alloc(file->size, 1, file->path, &buffer, err));
    file->data = buffer;
    WALSH_TRY(read_some(fd, file->path, buffer, file->size, &got, err));
    if (got != file->size)
        return walsh_fail(err, WALSH_E_IO,
                          "%s: %zu bytes read, expected %zu: the file shrank while it was read", file->path,
                          got, file->size);
    return WALSH_OK;
}

enum walsh_status walsh_file_open(const char *path, bool use_mmap, struct walsh_file *out,
                                  struct walsh_error *err)
{
    *out = (struct walsh_file){0};
    int fd;
    struct stat info;
    WALSH_TRY(
        open_for_reading(path, O_NONBLOCK, &fd, &info, err)); /* O_NONBLOCK: a FIFO must not hang the open */
    enum walsh_status status;
    if (!S_ISREG(info.st_mode)) {
        status = walsh_fail(err, WALSH_E_IO, "%s: is not a regular file", path);
    } else {
        out->size = (size_t)info.st_size;
        status = copy_text(path, &out->path, err);
        if (status == WALSH_OK) status = load(fd, use_mmap, out, err);
    }
    if (!out->mapped) close(fd);
    if (status != WALSH_OK) walsh_file_close(out);
    return status;
}

void walsh_file_close(struct walsh_file *file)
{
    /* The views are const for their readers; the memory behind them is ours. */
    void *data = (void *)(uintptr_t)file->data;
    if (file->mapped) {
        munmap(data, file->size);
        close(file->fd);
    } else if (file->size) {
        walsh_free(data);
    }
    walsh_free(file->path);
    *file = (struct walsh_file){0};
}

void walsh_file_read_once(const void *data, size_t bytes)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t begin = (uintptr_t)data / page * page, end = ((uintptr_t)data + bytes) / page * page;
    if (begin < end) (void)madvise((void *)begin, end - begin, MADV_DONTNEED); /* only advice */
}

bool walsh_file_holds(const struct walsh_file *file, const void *data, size_t bytes)
{
    const uintptr_t begin = (uintptr_t)file->data, at = (uintptr_t)data;
    return at >= begin && at - begin <= file->size && bytes <= file->size - (at - begin);
}

#define BECAME_SHORTER (-1) /* no errno */

bool walsh_file_copy(const struct walsh_file *file, const void *from, size_t bytes, void *to, atomic_int *why)
{
    if (!file || !file->mapped) {
        memcpy(to, from, bytes);
        return true;
    }
    const size_t offset = (size_t)((const uint8_t *)from - file->data);
    for (size_t done = 0; done < bytes;) {
        const size_t piece = walsh_min(bytes - done, (size_t)1 << 30);
        const ssize_t n = pread(file->fd, (uint8_t *)to + done, piece, (off_t)(offset + done));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            int none = 0;
            atomic_compare_exchange_strong(why, &none, n < 0 ? errno : BECAME_SHORTER);
            return false;
        }
        done += (size_t)n;
    }
    return true;
}

enum walsh_status walsh_file_copy_fail(const struct walsh_file *file, int why, struct walsh_error *err)
{
    if (why != BECAME_SHORTER) return walsh_fail_errno(err, why, "%s: cannot read", file->path);
    return walsh_fail(err, WALSH_E_IO, "%s: shorter than the %zu bytes that it had when it was opened",
                      file->path, file->size);
}

/* Reads to the end whatever the file says its size is, because pipes and /proc say 0. */
static enum walsh_status read_to_end(int fd, const char *path, size_t guess, size_t max_size, char **out,
                                     size_t *size, struct walsh_error *err)
{
    size_t capacity = guess, used = 0;
    char *buffer;
    WALSH_TRY(walsh_alloc(capacity + 1, 1, path, &buffer, err));
    for (;;) {
        size_t got;
        enum walsh_status status = read_some(fd, path, buffer + used, capacity + 1 - used, &got, err);
        used += got;
        if (status == WALSH_OK && used > max_size)
            status = walsh_fail(err, WALSH_E_CAPACITY, "%s: larger than the %zu bytes allowed here", path,
                                max_size);
        if (status == WALSH_OK &&
            used <= capacity) { /* the byte for the NUL is still free: this is the end */
            buffer[used] = 0;
            *out = buffer;
            *size = used;
            return WALSH_OK;
        }
        char *larger = NULL;
        size_t wanted = walsh_min(capacity * 2 + 4096, max_size);
        if (status == WALSH_OK) status = walsh_alloc(wanted + 1, 1, path, &larger, err);
        if (status == WALSH_OK) memcpy(larger, buffer, used);
        walsh_free(buffer);
        if (status != WALSH_OK) return status;
        buffer = larger;
        capacity = wanted;
    }
}

static enum walsh_status read_text(const char *path, bool regular, size_t max_size, char **out, size_t *size,
                                   struct walsh_error *err)
{
    *out = NULL;
    *size = 0;
    int fd;
    struct stat info;
    WALSH_TRY(open_for_reading(path, regular ? O_NONBLOCK : 0, &fd, &info, err));
    enum walsh_status status;
    size_t guess = S_ISREG(info.st_mode) ? (size_t)info.st_size : 0;
    if (regular && !S_ISREG(info.st_mode))
        status = walsh_fail(err, WALSH_E_IO, "%s: is not a regular file", path);
    else if (guess > max_size)
        status = walsh_fail(err, WALSH_E_CAPACITY, "%s: %zu bytes, larger than the %zu bytes allowed here",
                            path, guess, max_size);
    else
        status = read_to_end(fd, path, guess, max_size, out, size, err);
    close(fd);
    return status;
}

enum walsh_status walsh_file_read_text(const char *path, size_t max_size, char **out, size_t *size,
                                       struct walsh_error *err)
{
    return read_text(path, false, max_size, out, size, err);
}

enum walsh_status walsh_file_read_regular(const char *path, size_t max_size, char **out, size_t *size,
                                          struct walsh_error *err)
{
    return read_text(path, true, max_size, out, size, err);
}

enum walsh_status walsh_pwrite_all(int fd, const char *path, const void *data, size_t size, uint64_t offset,
                                   struct walsh_error *err)
{
    size_t done = 0;
    while (done < size) {
        size_t piece = walsh_min(size - done, (size_t)1 << 30);
        ssize_t n = pwrite(fd, (const char *)data + done, piece, (off_t)(offset + done));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0)
            return walsh_fail_errno(err, n < 0 ? errno : EIO, "%s: cannot write %zu bytes at %llu", path,
                                    size - done, (unsigned long long)(offset + done));
        done += (size_t)n;
    }
    return WALSH_OK;
}

/* "PATH.PID-N.tmp", created and held open; a name left by a killed process is stepped over. */
static enum walsh_status create_temporary(struct walsh_writer *w, struct walsh_error *err)
{
    size_t size = strlen(w->path) + 32;
    WALSH_TRY(walsh_alloc(size, 1, "a path", &w->temporary, err));
    for (unsigned attempt = 0;; attempt++) {
        snprintf(w->temporary, size, "%s.%ld-%u.tmp", w->path, (long)getpid(), attempt);
        w->fd = open(w->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (w->fd >= 0) return WALSH_OK;
        if (errno != EEXIST || attempt == 999) break;
    }
    return walsh_fail_errno(err, errno, "%s: cannot create", w->path);
}

enum walsh_status walsh_writer_open(const char *path, struct walsh_writer *out, struct walsh_error *err)
{
    *out = (struct walsh_writer){.fd = -1};
    if (walsh_path_is_directory(path))
        return walsh_fail(err, WALSH_E_EXISTS, "%s: is a directory, expected a file to write", path);
    enum walsh_status status = copy_text(path, &out->path, err);
    if (status == WALSH_OK) status = create_temporary(out, err);
    if (status != WALSH_OK) walsh_writer_discard(out);
    return status;
}

enum walsh_status walsh_writer_append(struct walsh_writer *w, const void *data, size_t size,
                                      struct walsh_error *err)
{
    WALSH_TRY(walsh_pwrite_all(w->fd, w->path, data, size, w->offset, err));
    w->offset += size;
    return WALSH_OK;
}

enum walsh_status walsh_fsync_directory(const char *path, struct walsh_error *err)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return walsh_fail_errno(err, errno, "%s: cannot open the directory", path);
    int why = fsync(fd) == 0 ? 0 : errno;
    close(fd);
    /* EINVAL: a file system that has nothing to sync for a directory. */
    if (why != 0 && why != EINVAL) return walsh_fail_errno(err, why, "%s: cannot sync the directory", path);
    return WALSH_OK;
}

enum walsh_status walsh_fsync_parent(const char *path, struct walsh_error *err)
{
    const char *slash = strrchr(path, '/');
    if (!slash) return walsh_fsync_directory(".", err);
    if (slash == path) return walsh_fsync_directory("/", err);
    char *parent;
    WALSH_TRY(copy_text(path, &parent, err));
    parent[slash - path] = 0;
    enum walsh_status status = walsh_fsync_directory(parent, err);
    walsh_free(parent);
    return status;
}

enum walsh_status walsh_writer_commit(struct walsh_writer *w, struct walsh_error *err)
{
    enum walsh_status status = WALSH_OK;
    if (fsync(w->fd) != 0) status = walsh_fail_errno(err, errno, "%s: cannot sync", w->path);
    if (close(w->fd) != 0 && status == WALSH_OK)
        status = walsh_fail_errno(err, errno, "%s: cannot close", w->path);
    w->fd = -1;
    if (status == WALSH_OK && rename(w->temporary, w->path) != 0)
        status = walsh_fail_errno(err, errno, "%s: cannot rename %s to it", w->path, w->temporary);
    if (status == WALSH_OK) {
        walsh_free(w->temporary);
        w->temporary = NULL; /* there is nothing left to remove */
        status = walsh_fsync_parent(w->path, err);
    }
    walsh_writer_discard(w);
    return status;
}

void walsh_writer_discard(struct walsh_writer *w)
{
    if (w->path && w->fd >= 0) close(w->fd);
    if (w->temporary) unlink(w->temporary);
    walsh_free(w->temporary);
    walsh_free(w->path);
    *w = (struct walsh_writer){.fd = -1};
}

enum walsh_status walsh_file_write(const char *path, const void *data, size_t size, struct walsh_error *err)
{
    struct walsh_writer w;
    WALSH_TRY(walsh_writer_open(path, &w, err));
    enum walsh_status status = walsh_writer_append(&w, data, size, err);
    if (status == WALSH_OK) return walsh_writer_commit(&w, err);
    walsh_writer_discard(&w);
    return status;
}

enum walsh_status walsh_copy_file(const char *from, const char *to, struct walsh_error *err)
{
    struct walsh_file source;
    WALSH_TRY(walsh_file_open(from, true, &source, err));
    enum walsh_status status = walsh_file_write(to, source.data, source.size, err);
    walsh_file_close(&source);
    return status;
}

bool walsh_path_exists(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0;
}

bool walsh_path_is_directory(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

enum walsh_status walsh_path_join(const char *directory, const char *name, char **out,
                                  struct walsh_error *err)
{
    size_t length = strlen(directory);
    bool slash = length > 0 && directory[length - 1] != '/';
    size_t size = length + slash + strlen(name) + 1;
    WALSH_TRY(walsh_alloc(size, 1, "a path", out, err));
    snprintf(*out, size, "%s%s%s", directory, slash ? "/" : "", name);
    return WALSH_OK;
}
