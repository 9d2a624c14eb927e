/* base/file: mapped input files, whole-file reads, output files that appear whole or not at all. */
#ifndef WALSH_BASE_FILE_H
#define WALSH_BASE_FILE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* A read-only input. Mapped, or read into memory where use_mmap is false (a file that shrinks under a mapping
 * faults: docs/architecture.md). */
struct walsh_file {
    const uint8_t *data; /* never NULL after open; a size of 0 is legal */
    size_t size;
    bool mapped;
    int fd;     /* where it is mapped: open, for walsh_file_copy */
    char *path; /* owned copy, for messages */
};
enum walsh_status walsh_file_open(const char *path, bool use_mmap, struct walsh_file *out,
                                  struct walsh_error *err);
void walsh_file_close(struct walsh_file *file); /* zeroes *file; safe on a zeroed one */
/* Bytes of a *mapped* file that this process has read and does not need for now: their pages, but for the last one where
 * they end within it, leave its memory, not the system's cache of the file, and come back when they are read again. */
void walsh_file_read_once(const void *data, size_t bytes);
bool walsh_file_holds(const struct walsh_file *file, const void *data, size_t bytes); /* within file->data? */
/* Bytes of the data of `file` (NULL: of memory) to `to`; any thread may call it. Those of a mapped file are read, not copied:
 * no page of it enters this process's memory, and a file that fails, or has become shorter, fails the call instead of the
 * process. False: *why is set, unless an earlier failure has, and walsh_file_copy_fail makes an error of it. */
bool walsh_file_copy(const struct walsh_file *file, const void *from, size_t bytes, void *to,
                     atomic_int *why);
enum walsh_status walsh_file_copy_fail(const struct walsh_file *file, int why, struct walsh_error *err);

/* The whole file as text: size bytes and a terminating NUL; more than max_size bytes is an error. walsh_free.
 */
enum walsh_status walsh_file_read_text(const char *path, size_t max_size, char **out, size_t *size,
                                       struct walsh_error *err);
/* The same of the files of a directory that came from elsewhere: a FIFO or a device there, which a user may
 * well name as a text, is WALSH_E_IO instead of a wait. */
enum walsh_status walsh_file_read_regular(const char *path, size_t max_size, char **out, size_t *size,
                                          struct walsh_error *err);

/* An output that is written under a temporary name in the same directory, then fsynced and renamed. */
struct walsh_writer {
    int fd; /* -1 when closed */
    char *path, *temporary;
    uint64_t offset; /* bytes written by walsh_writer_append */
};
enum walsh_status walsh_writer_open(const char *path, struct walsh_writer *out, struct walsh_error *err);
enum walsh_status walsh_writer_append(struct walsh_writer *w, const void *data, size_t size,
                                      struct walsh_error *err);
/* fsync, rename over `path`, fsync of the directory. The writer is closed either way. */
enum walsh_status walsh_writer_commit(struct walsh_writer *w, struct walsh_error *err);
void walsh_writer_discard(
    struct walsh_writer *w); /* removes the temporary; safe on a closed or zeroed writer with fd -1 */

/* Write all of data to `path` atomically: open, append, commit. */
enum walsh_status walsh_file_write(const char *path, const void *data, size_t size, struct walsh_error *err);
/* All `size` bytes at `offset`, short writes continued. `path` is for the message. */
enum walsh_status walsh_pwrite_all(int fd, const char *path, const void *data, size_t size, uint64_t offset,
                                   struct walsh_error *err);
enum walsh_status walsh_fsync_directory(const char *path, struct walsh_error *err);
/* The directory that holds `path`, so that its name lasts. */
enum walsh_status walsh_fsync_parent(const char *path, struct walsh_error *err);
enum walsh_status walsh_copy_file(const char *from, const char *to, struct walsh_error *err); /* atomic */

bool walsh_path_exists(const char *path);
bool walsh_path_is_directory(const char *path);
/* directory + "/" + name in a new string; walsh_free. */
enum walsh_status walsh_path_join(const char *directory, const char *name, char **out,
                                  struct walsh_error *err);

#endif
