/* cache/prefix_directory: the files of a prefix store, whatever is in them: a private directory, its size
 * limit, and who may be evicted. Private to cache/. May use base.
 *
 * A block is KEY.block, KEY 64 hexadecimal digits; its modification time is when it was used last. One that
 * is being written is KEY.PID-N.tmp and flocked by its writer, so that what a killed process leaves behind is
 * known by its lock being free. The file "lock" is flocked while blocks are counted, evicted and renamed;
 * readers take no lock. Anything else is foreign: told once, never touched. */
#ifndef WALSH_CACHE_PREFIX_DIRECTORY_H
#define WALSH_CACHE_PREFIX_DIRECTORY_H

#include "base/hooks.h"
#include "cache/prefix_key.h"

struct walsh_prefix_directory {
    int fd;
    char *path; /* for messages */
    uint64_t limit;
};

#define WALSH_PREFIX_NAME 96 /* bytes of a file's name in the directory, NUL included */

/* Make the directory (0700) where it is missing; its parent must exist. Refused with WALSH_E_ARGUMENT: a
 * symbolic link of another user's (root's is fine), a directory of another user's, one that everybody may
 * write. Foreign files are warnings; blocks beyond the limit are evicted and what killed writers left is
 * removed, as far as the directory lets us. */
enum walsh_status walsh_prefix_directory_open(const char *path, uint64_t limit,
                                              const struct walsh_hooks *hooks,
                                              struct walsh_prefix_directory *out, struct walsh_error *err);
void walsh_prefix_directory_close(
    struct walsh_prefix_directory *directory); /* safe on a closed one (fd -1) */

/* The file of a block. */
void walsh_prefix_block_name(const struct walsh_prefix_key *key, char name[WALSH_PREFIX_NAME]);

/* Evict the blocks used longest ago until `size` bytes more are within the limit, and make a temporary of
 * that size for the block. Blocks used at `since` or later stay: WALSH_E_CAPACITY where there is no room
 * without them. *fd is the temporary, name what it is called. */
enum walsh_status walsh_prefix_directory_reserve(const struct walsh_prefix_directory *directory,
                                                 const struct walsh_prefix_key *key, uint64_t size,
                                                 int64_t since, int *fd, char name[WALSH_PREFIX_NAME],
                                                 struct walsh_error *err);
/* Make the temporary, which is written and synced, the block; closes fd. On failure the temporary is gone. */
enum walsh_status walsh_prefix_directory_commit(const struct walsh_prefix_directory *directory,
                                                const struct walsh_prefix_key *key, int fd, const char *name,
                                                struct walsh_error *err);
/* Close and remove the temporary. */
void walsh_prefix_directory_discard(const struct walsh_prefix_directory *directory, int fd, const char *name);

#endif
