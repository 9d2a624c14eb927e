#include "cache/prefix_store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/file.h"
#include "base/memory.h"
#include "cache/prefix_directory.h"

#define VERSION 1
#define WARNINGS 8 /* of blocks, per store; a directory full of damaged files is told once */

static const char magic[8] = "walshkv";

/* A block's file: this, the tokens, the payload. Little-endian. */
struct block_header {
    char magic[8];
    uint32_t version, count;
    uint64_t position, bytes;
    uint8_t key[WALSH_PREFIX_KEY_BYTES], parent[WALSH_PREFIX_KEY_BYTES];
    double seconds;       /* what computing it took */
    uint64_t checksum[2]; /* XXH3-128, seed 0: of this header with 0 here, the tokens and the payload */
    uint64_t zero;
};
_Static_assert(sizeof(struct block_header) == 128, "no padding");

struct walsh_prefix_store {
    struct walsh_prefix_directory directory;
    const struct walsh_hooks *hooks;
    atomic_uint warnings;
    atomic_bool refused; /* the last block could not be stored */
};

int64_t walsh_store_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

enum walsh_status walsh_store_open(const char *path, uint64_t limit, const struct walsh_hooks *hooks,
                                   struct walsh_prefix_store **out, struct walsh_error *err)
{
    *out = NULL;
    struct walsh_prefix_store *store;
    WALSH_TRY(walsh_alloc_zero(1, sizeof *store, "a prefix store", &store, err));
    store->hooks = hooks;
    const enum walsh_status status = walsh_prefix_directory_open(path, limit, hooks, &store->directory, err);
    if (status != WALSH_OK) {
        walsh_free(store);
        return status;
    }
    *out = store;
    return WALSH_OK;
}

void walsh_store_close(struct walsh_prefix_store **store)
{
    if (!store || !*store) return;
    walsh_prefix_directory_close(&(*store)->directory);
    walsh_free(*store);
    *store = NULL;
}

static struct block_header make_header(const struct walsh_prefix_block *block)
{
    struct block_header h = {
        .version = VERSION, .count = block->count, .position = block->position, .bytes = block->bytes};
    memcpy(h.magic, magic, sizeof h.magic);
    memcpy(h.key, block->key.bytes, sizeof h.key);
    memcpy(h.parent, block->parent.bytes, sizeof h.parent);
    return h;
}

/* h without its checksum; false: out of memory. */
static bool add_checksum(const struct block_header *h, const int32_t *tokens, const void *payload,
                         uint64_t checksum[2])
{
    XXH3_state_t *state = XXH3_createState();
    const bool good = state && XXH3_128bits_reset(state) == XXH_OK &&
                      XXH3_128bits_update(state, h, sizeof *h) == XXH_OK &&
                      XXH3_128bits_update(state, tokens, h->count * sizeof *tokens) == XXH_OK &&
                      XXH3_128bits_update(state, payload, (size_t)h->bytes) == XXH_OK;
    if (good) {
        const XXH128_hash_t hash = XXH3_128bits_digest(state);
        checksum[0] = hash.low64;
        checksum[1] = hash.high64;
    }
    XXH3_freeState(state);
    return good;
}

static bool file_size(const struct walsh_prefix_block *block, size_t *size)
{
    return walsh_mul(block->count, sizeof *block->tokens, size) && walsh_add(*size, block->bytes, size) &&
           walsh_add(*size, sizeof(struct block_header), size);
}

/* ---- reading */

static enum walsh_status read_at(int fd, void *data, size_t size, size_t offset, struct walsh_error *err)
{
    for (size_t done = 0; done < size;) {
        const ssize_t n =
            pread(fd, (char *)data + done, walsh_min(size - done, (size_t)1 << 30), (off_t)(offset + done));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return walsh_fail_errno(err, errno, "cannot read");
        if (n == 0) return walsh_fail(err, WALSH_E_FORMAT, "it was cut off while it was read");
        done += (size_t)n;
    }
    return WALSH_OK;
}

/* *fd -1 and WALSH_OK: there is no such block. */
static enum walsh_status open_block(const struct walsh_prefix_store *store,
                                    const struct walsh_prefix_block *block, const char *name, int *fd,
                                    struct walsh_error *err)
{
    struct stat info;
    size_t size;
    *fd = openat(store->directory.fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (*fd < 0) return errno == ENOENT ? WALSH_OK : walsh_fail_errno(err, errno, "cannot open");
    if (fstat(*fd, &info) != 0) return walsh_fail_errno(err, errno, "cannot stat");
    if (!S_ISREG(info.st_mode)) return walsh_fail(err, WALSH_E_FORMAT, "it is not a regular file");
    if (info.st_uid != geteuid())
        return walsh_fail(err, WALSH_E_FORMAT, "it belongs to user %u, expected user %u",
                          (unsigned)info.st_uid, (unsigned)geteuid());
    if (!file_size(block, &size))
        return walsh_fail(err, WALSH_E_MEMORY, "its size does not fit into 64 bits");
    if ((uint64_t)info.st_size != size)
        return walsh_fail(err, WALSH_E_FORMAT, "it has %llu bytes, expected %zu",
                          (unsigned long long)info.st_size, size);
    return WALSH_OK;
}

/* Is this the header of the block that is wanted? Nothing in it is used for anything but this comparison. */
static enum walsh_status check_header(const struct block_header *found, const struct block_header *expected,
                                      struct walsh_error *err)
{
    const char *wrong = NULL;
    if (memcmp(found->magic, expected->magic, sizeof found->magic) != 0)
        return walsh_fail(err, WALSH_E_FORMAT, "it is no block of a prefix store");
    if (found->version != expected->version)
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "it has version %u, expected %u", found->version,
                          expected->version);
    if (memcmp(found->key, expected->key, sizeof found->key) != 0) wrong = "key";
    if (memcmp(found->parent, expected->parent, sizeof found->parent) != 0) wrong = "parent";
    if (wrong) return walsh_fail(err, WALSH_E_FORMAT, "its %s is another block's", wrong);
    if (found->count != expected->count || found->position != expected->position)
        return walsh_fail(err, WALSH_E_FORMAT, "it has %u tokens at %llu, expected %u at %llu", found->count,
                          (unsigned long long)found->position, expected->count,
                          (unsigned long long)expected->position);
    if (found->bytes != expected->bytes)
        return walsh_fail(err, WALSH_E_FORMAT, "its payload has %llu bytes, expected %llu",
                          (unsigned long long)found->bytes, (unsigned long long)expected->bytes);
    return WALSH_OK;
}

static enum walsh_status read_block(int fd, const struct walsh_prefix_block *block, int32_t *tokens,
                                    void *payload, double *seconds, struct walsh_error *err)
{
    struct block_header h;
    const struct block_header expected = make_header(block);
    const size_t token_bytes = block->count * sizeof *tokens;
    WALSH_TRY(read_at(fd, &h, sizeof h, 0, err));
    WALSH_TRY(check_header(&h, &expected, err));
    WALSH_TRY(read_at(fd, tokens, token_bytes, sizeof h, err));
    WALSH_TRY(read_at(fd, payload, block->bytes, sizeof h + token_bytes, err));
    uint64_t checksum[2];
    const uint64_t stored[2] = {h.checksum[0], h.checksum[1]};
    h.checksum[0] = h.checksum[1] = 0;
    if (!add_checksum(&h, tokens, payload, checksum)) return walsh_fail(err, WALSH_E_MEMORY, "out of memory");
    if (memcmp(checksum, stored, sizeof stored) != 0)
        return walsh_fail(err, WALSH_E_FORMAT, "its checksum is wrong: the file is damaged");
    if (memcmp(tokens, block->tokens, token_bytes) != 0)
        return walsh_fail(err, WALSH_E_FORMAT, "it holds other tokens than its key says");
    *seconds = h.seconds >= 0 && h.seconds < 1e9 ? h.seconds : 0;
    return WALSH_OK;
}

static void warn_skipped(struct walsh_prefix_store *store, const char *name, const char *why)
{
    const unsigned before = atomic_fetch_add(&store->warnings, 1);
    if (before < WARNINGS)
        walsh_log(store->hooks, WALSH_LOG_WARNING, "%s/%s: skipped: %s", store->directory.path, name, why);
    else if (before == WARNINGS)
        walsh_log(store->hooks, WALSH_LOG_WARNING, "%s: further blocks are skipped without a word",
                  store->directory.path);
}

bool walsh_store_get(struct walsh_prefix_store *store, const struct walsh_prefix_block *block, void *payload,
                     double *seconds)
{
    char name[WALSH_PREFIX_NAME];
    struct walsh_error err = {0};
    int32_t *tokens = NULL;
    int fd;
    walsh_prefix_block_name(&block->key, name);
    enum walsh_status status = open_block(store, block, name, &fd, &err);
    const bool found = fd >= 0;
    if (status == WALSH_OK && found)
        status = walsh_alloc(block->count, sizeof *tokens, "the tokens of a block", &tokens, &err);
    if (status == WALSH_OK && found) status = read_block(fd, block, tokens, payload, seconds, &err);
    if (status != WALSH_OK) warn_skipped(store, name, err.message);
    walsh_free(tokens);
    if (found) close(fd);
    return found && status == WALSH_OK;
}

/* ---- writing */

/* Access and modification time. Not UTIME_NOW, which is the kernel's coarse clock, some milliseconds behind.
 */
static void read_clock(struct timespec times[2])
{
    clock_gettime(CLOCK_REALTIME, &times[0]);
    times[1] = times[0];
}

static enum walsh_status write_block(int fd, const char *name, const struct walsh_prefix_block *block,
                                     const void *payload, double seconds, struct walsh_error *err)
{
    struct block_header h = make_header(block);
    const size_t token_bytes = block->count * sizeof *block->tokens;
    uint64_t checksum[2];
    h.seconds = seconds;
    if (!add_checksum(&h, block->tokens, payload, checksum))
        return walsh_fail(err, WALSH_E_MEMORY, "%s: out of memory", name);
    memcpy(h.checksum, checksum, sizeof h.checksum);
    WALSH_TRY(walsh_pwrite_all(fd, name, &h, sizeof h, 0, err));
    WALSH_TRY(walsh_pwrite_all(fd, name, block->tokens, token_bytes, sizeof h, err));
    WALSH_TRY(walsh_pwrite_all(fd, name, payload, block->bytes, sizeof h + token_bytes, err));
    struct timespec now[2];
    read_clock(now);
    if (futimens(fd, now) != 0) return walsh_fail_errno(err, errno, "%s: cannot set its time", name);
    return fsync(fd) == 0 ? WALSH_OK : walsh_fail_errno(err, errno, "%s: cannot sync", name);
}

static enum walsh_status store_block(struct walsh_prefix_store *store, const struct walsh_prefix_block *block,
                                     const void *payload, double seconds, int64_t since,
                                     struct walsh_error *err)
{
    const struct walsh_prefix_directory *d = &store->directory;
    char name[WALSH_PREFIX_NAME], *path;
    size_t size;
    int fd;
    if (!file_size(block, &size) || size > INT64_MAX)
        return walsh_fail(err, WALSH_E_MEMORY, "%s: a block's size does not fit into 63 bits", d->path);
    WALSH_TRY(walsh_prefix_directory_reserve(d, &block->key, size, since, &fd, name, err));
    enum walsh_status status = walsh_path_join(d->path, name, &path, err);
    if (status == WALSH_OK) status = write_block(fd, path, block, payload, seconds, err);
    walsh_free(path);
    if (status == WALSH_OK) return walsh_prefix_directory_commit(d, &block->key, fd, name, err);
    walsh_prefix_directory_discard(d, fd, name);
    return status;
}

bool walsh_store_put(struct walsh_prefix_store *store, const struct walsh_prefix_block *block,
                     const void *payload, double seconds, int64_t since)
{
    struct walsh_error err = {0};
    const bool good = store_block(store, block, payload, seconds, since, &err) == WALSH_OK;
    if (good)
        atomic_store(&store->refused, false);
    else if (!atomic_exchange(&store->refused, true))
        walsh_log(store->hooks, WALSH_LOG_WARNING, "a block of the prompt is not stored: %s", err.message);
    return good;
}

void walsh_store_touch(struct walsh_prefix_store *store, const struct walsh_prefix_key *keys, size_t count)
{
    for (size_t i = count; i-- > 0;) {
        char name[WALSH_PREFIX_NAME];
        walsh_prefix_block_name(&keys[i], name);
        struct timespec now[2];
        read_clock(now);
        /* A store that cannot be written does not learn of it. */
        (void)utimensat(store->directory.fd, name, now, AT_SYMLINK_NOFOLLOW);
    }
}
