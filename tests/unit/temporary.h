/* A temporary directory for one test program, and messages without its name. Include after cmocka.h. */
#ifndef WALSH_TESTS_TEMPORARY_H
#define WALSH_TESTS_TEMPORARY_H

#include <dirent.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char temporary_directory[256];

/* cmocka group setup and teardown */
static inline int temporary_make(void **state)
{
    (void)state;
    const char *root = getenv("TMPDIR");
    snprintf(temporary_directory, sizeof temporary_directory, "%s/walsh-test-XXXXXX", root ? root : "/tmp");
    return mkdtemp(temporary_directory) ? 0 : -1;
}

static inline int temporary_remove_entry(const char *path, const struct stat *info, int kind,
                                         struct FTW *where)
{
    (void)info, (void)kind, (void)where;
    return remove(path);
}

static inline int temporary_remove(void **state)
{
    (void)state;
    return nftw(temporary_directory, temporary_remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

/* DIRECTORY/name in one of eight static buffers, used in turn */
static inline const char *temporary_path(const char *name)
{
    static char buffers[8][512];
    static unsigned turn;
    char *buffer = buffers[turn++ % 8];
    snprintf(buffer, sizeof buffers[0], "%s/%s", temporary_directory, name);
    return buffer;
}

/* The message with each mention of the temporary directory replaced by "DIR" */
static inline const char *without_directory(const char *message)
{
    static char out[2048];
    size_t n = 0, length = strlen(temporary_directory);
    for (const char *p = message; *p && n + 4 < sizeof out;) {
        if (strncmp(p, temporary_directory, length) == 0) {
            memcpy(out + n, "DIR", 3);
            n += 3;
            p += length;
        } else {
            out[n++] = *p++;
        }
    }
    out[n] = 0;
    return out;
}

static inline size_t temporary_count_entries(const char *path)
{
    size_t count = 0;
    DIR *directory = opendir(path);
    struct dirent *entry;
    while (directory && (entry = readdir(directory)))
        count += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    if (directory) closedir(directory);
    return count;
}

#endif
