/* The prefix store: what was put comes back, anything else is a miss with a warning; limits, links, full
 * disks, two processes and kill -9. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/memory.h"
#include "base/random.h"
#include "cache/prefix_store.h"
#include "temporary.h"

#define HEADER 128
#define TOKENS 5
#define PAYLOAD 3000
#define FILE_BYTES (HEADER + TOKENS * 4 + PAYLOAD)

/* The warnings since the last reset. */
static struct {
    unsigned count;
    char last[1200];
} warned;

static void note_warning(void *user, enum walsh_log_level level, const char *line)
{
    (void)user;
    assert_int_equal(level, WALSH_LOG_WARNING);
    warned.count++;
    snprintf(warned.last, sizeof warned.last, "%s", line);
}
static const struct walsh_hooks hooks = {.log = note_warning};

static struct walsh_prefix_store *open_store(const char *name, uint64_t limit)
{
    struct walsh_error err;
    struct walsh_prefix_store *store;
    warned.count = 0;
    if (walsh_store_open(temporary_path(name), limit, &hooks, &store, &err) != WALSH_OK)
        fail_msg("%s", err.message);
    return store;
}

/* Block number i of a store: its tokens and payload follow from i. */
struct sample {
    struct walsh_prefix_block block;
    int32_t tokens[TOKENS];
    uint8_t payload[PAYLOAD];
};

static void make_sample(struct sample *s, uint32_t i)
{
    struct walsh_random random;
    memset(s, 0, sizeof *s);
    walsh_random_seed(&random, i);
    for (size_t t = 0; t < TOKENS; t++) s->tokens[t] = (int32_t)(walsh_random_u64(&random) % 30000);
    for (size_t b = 0; b < PAYLOAD; b++) s->payload[b] = (uint8_t)walsh_random_u64(&random);
    memcpy(s->block.parent.bytes, &i, sizeof i);
    s->block.position = 512;
    s->block.tokens = s->tokens;
    s->block.count = TOKENS;
    s->block.bytes = PAYLOAD;
    assert_int_equal(walsh_prefix_key_chain(&s->block.parent, s->tokens, TOKENS, &s->block.key, NULL),
                     WALSH_OK);
}

static bool put(struct walsh_prefix_store *store, uint32_t i)
{
    struct sample s;
    make_sample(&s, i);
    return walsh_store_put(store, &s.block, s.payload, 0.25, INT64_MAX);
}

/* Served? And then the right bytes. */
static bool get(struct walsh_prefix_store *store, uint32_t i)
{
    struct sample s;
    uint8_t payload[PAYLOAD];
    double seconds = -1;
    make_sample(&s, i);
    if (!walsh_store_get(store, &s.block, payload, &seconds)) return false;
    assert_memory_equal(payload, s.payload, PAYLOAD);
    assert_true(seconds == 0.25);
    return true;
}

/* In one of four static buffers, used in turn. */
static const char *block_path(const char *store, uint32_t i)
{
    static char paths[4][400];
    static unsigned turn;
    struct sample s;
    char text[WALSH_PREFIX_KEY_TEXT];
    make_sample(&s, i);
    char *path = paths[turn++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s/%s.block", temporary_directory, store,
             walsh_prefix_key_text(&s.block.key, text));
    return path;
}

static size_t read_file(const char *path, uint8_t *data, size_t capacity)
{
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    const size_t size = fread(data, 1, capacity, file);
    fclose(file);
    return size;
}

static void write_file(const char *path, const void *data, size_t size)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
}

/* "its checksum is wrong" of "DIR/store/KEY.block: skipped: its checksum is wrong" */
static const char *reason(void)
{
    const char *at = strstr(warned.last, ".block: skipped: ");
    return at ? at + strlen(".block: skipped: ") : warned.last;
}

/* ---- */

static void a_key_is_sha256_of_its_fields(void **state)
{
    (void)state;
    /* SHA-256 of "a" and "bc", each behind its length as eight bytes: from coreutils,
     * printf '\1\0\0\0\0\0\0\0a\2\0\0\0\0\0\0\0bc' | sha256sum */
    struct walsh_prefix_digest *digest;
    struct walsh_prefix_key key, other;
    char text[WALSH_PREFIX_KEY_TEXT];
    assert_int_equal(walsh_prefix_digest_open(&digest, NULL), WALSH_OK);
    walsh_prefix_digest_text(digest, "a", "bc");
    assert_int_equal(walsh_prefix_digest_finish(digest, &key, NULL), WALSH_OK);
    walsh_prefix_digest_close(&digest);
    assert_null(digest);
    assert_string_equal(walsh_prefix_key_text(&key, text),
                        "9a8acca1b6c6c0befd3fbc756aed625da998c998f7252e738c4ef061906b9b21");
    /* The same letters cut elsewhere are other fields. */
    assert_int_equal(walsh_prefix_digest_open(&digest, NULL), WALSH_OK);
    walsh_prefix_digest_text(digest, "ab", "c");
    assert_int_equal(walsh_prefix_digest_finish(digest, &other, NULL), WALSH_OK);
    walsh_prefix_digest_close(&digest);
    assert_memory_not_equal(&key, &other, sizeof key);
}

static void keys_depend_on_all_that_is_before(void **state)
{
    (void)state;
    const int32_t tokens[] = {1, 2, 3};
    struct walsh_prefix_key root = {{1}}, other = {{2}}, a, b, c;
    assert_int_equal(walsh_prefix_key_chain(&root, tokens, 3, &a, NULL), WALSH_OK);
    assert_int_equal(walsh_prefix_key_chain(&root, tokens, 2, &b, NULL), WALSH_OK);
    assert_memory_not_equal(&a, &b, sizeof a);
    assert_int_equal(walsh_prefix_key_chain(&other, tokens, 3, &b, NULL), WALSH_OK);
    assert_memory_not_equal(&a, &b, sizeof a);
    assert_int_equal(walsh_prefix_key_chain(&b, tokens + 2, 1, &c, NULL), WALSH_OK);
    assert_memory_not_equal(&a, &c, sizeof a);
    assert_int_equal(walsh_prefix_key_chain(&root, tokens, 3, &b, NULL), WALSH_OK);
    assert_memory_equal(&a, &b, sizeof a);
}

static void what_was_put_comes_back(void **state)
{
    (void)state;
    struct stat info;
    struct walsh_prefix_store *store = open_store("plain", WALSH_PREFIX_LIMIT);
    assert_int_equal(stat(temporary_path("plain"), &info), 0);
    assert_int_equal(info.st_mode & 07777, 0700);
    for (uint32_t i = 0; i < 4; i++) assert_false(get(store, i));
    for (uint32_t i = 0; i < 3; i++) assert_true(put(store, i));
    for (uint32_t i = 0; i < 3; i++) assert_true(get(store, i));
    assert_false(get(store, 3));
    assert_true(put(store, 1)); /* again */
    walsh_store_close(&store);
    assert_null(store);
    store = open_store("plain/", WALSH_PREFIX_LIMIT); /* after a restart */
    for (uint32_t i = 0; i < 3; i++) assert_true(get(store, i));
    assert_int_equal(stat(block_path("plain", 0), &info), 0);
    assert_int_equal(info.st_mode & 07777, 0600);
    assert_int_equal(info.st_size, FILE_BYTES);
    assert_int_equal(temporary_count_entries(temporary_path("plain")), 4); /* and the lock */
    assert_int_equal(warned.count, 0);
    walsh_store_close(&store);
}

/* Each byte of the file in turn is changed; none of the files is served. */
static void a_damaged_byte_is_a_miss(void **state)
{
    (void)state;
    uint8_t whole[FILE_BYTES + 1], damaged[FILE_BYTES];
    struct walsh_prefix_store *store = open_store("damaged", WALSH_PREFIX_LIMIT);
    assert_true(put(store, 7));
    const char *path = block_path("damaged", 7);
    assert_int_equal(read_file(path, whole, sizeof whole), FILE_BYTES);
    for (size_t i = 0; i < FILE_BYTES; i += i < HEADER + TOKENS * 4 + 16 ? 1 : 37) {
        memcpy(damaged, whole, sizeof damaged);
        damaged[i] ^= (uint8_t)(1u << i % 8);
        write_file(path, damaged, sizeof damaged);
        walsh_store_close(&store); /* anew: warnings are limited */
        store = open_store("damaged", WALSH_PREFIX_LIMIT);
        if (get(store, 7)) fail_msg("byte %zu changed, and the block was served", i);
        assert_int_equal(warned.count, 1);
    }
    assert_true(put(store, 7)); /* a good block takes the bad one's place */
    assert_true(get(store, 7));
    walsh_store_close(&store);
}

/* The checksum of a changed header, so that nothing but the header's own check can refuse it. */
static void resign(uint8_t *file, size_t size)
{
    memset(file + 104, 0, 16);
    const XXH128_hash_t hash = XXH3_128bits(file, size);
    memcpy(file + 104, &hash.low64, 8);
    memcpy(file + 112, &hash.high64, 8);
}

static void a_header_that_lies_is_a_miss(void **state)
{
    (void)state;
    static const struct {
        size_t at;
        const char *reason;
    } lies[] = {
        {0, "it is no block of a prefix store"},
        {8, "it has version 3, expected 1"},
        {12, "it has 7 tokens at 512, expected 5 at 512"},
        {16, "it has 5 tokens at 514, expected 5 at 512"},
        {31, "its payload has 144115188075858872 bytes, expected 3000"},
        {32, "its key is another block's"},
        {64, "its parent is another block's"},
        {HEADER, "it holds other tokens than its key says"},
    };
    uint8_t whole[FILE_BYTES], lying[FILE_BYTES];
    struct walsh_prefix_store *store = open_store("lies", WALSH_PREFIX_LIMIT);
    assert_true(put(store, 7));
    const char *path = block_path("lies", 7);
    assert_int_equal(read_file(path, whole, sizeof whole), FILE_BYTES);
    memcpy(lying, whole, sizeof lying);
    resign(lying, sizeof lying);
    assert_memory_equal(lying, whole, sizeof lying); /* so this is how a file is signed */
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        memcpy(lying, whole, sizeof lying);
        lying[lies[i].at] ^= 2;
        resign(lying, sizeof lying);
        write_file(path, lying, sizeof lying);
        warned.count = 0;
        assert_false(get(store, 7));
        assert_int_equal(warned.count, 1);
        assert_string_equal(reason(), lies[i].reason);
    }
    walsh_store_close(&store);
}

static void other_sizes_and_kinds_are_misses(void **state)
{
    (void)state;
    uint8_t whole[FILE_BYTES + 1] = {0};
    static const size_t sizes[] = {0, 1, HEADER - 1, HEADER, FILE_BYTES - 1, FILE_BYTES + 1};
    char expected[200];
    struct walsh_prefix_store *store = open_store("kinds", WALSH_PREFIX_LIMIT);
    assert_true(put(store, 7));
    const char *path = block_path("kinds", 7);
    assert_int_equal(read_file(path, whole, sizeof whole), FILE_BYTES);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        write_file(path, whole, sizes[i]);
        assert_false(get(store, 7));
        snprintf(expected, sizeof expected, "it has %zu bytes, expected %d", sizes[i], FILE_BYTES);
        assert_string_equal(reason(), expected);
    }
    walsh_store_close(&store);

    store = open_store("kinds", WALSH_PREFIX_LIMIT);
    write_file(temporary_path("elsewhere"), whole, FILE_BYTES);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(symlink(temporary_path("elsewhere"), path), 0);
    assert_false(get(store, 7));
    assert_string_equal(reason(), "cannot open: Too many levels of symbolic links");
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_false(get(store, 7));
    assert_string_equal(reason(), "it is not a regular file");
    assert_true(put(store, 7)); /* in its place */
    assert_true(get(store, 7));
    if (geteuid() == 0) {
        assert_int_equal(chown(path, 12345, 12345), 0);
        assert_false(get(store, 7));
        assert_string_equal(reason(), "it belongs to user 12345, expected user 0");
    }
    walsh_store_close(&store);
}

static void foreign_files_are_told_and_left_alone(void **state)
{
    (void)state;
    char path[40];
    struct walsh_prefix_store *store = open_store("foreign", WALSH_PREFIX_LIMIT);
    assert_true(put(store, 1));
    walsh_store_close(&store);
    write_file(temporary_path("foreign/notes.txt"), "hello", 5);
    store = open_store("foreign", 100); /* too small for anything: block 1 goes, the notes stay */
    assert_int_equal(warned.count, 1);
    assert_string_equal(without_directory(warned.last),
                        "DIR/foreign/notes.txt: skipped: no block of a prefix store");
    assert_false(get(store, 1));
    assert_int_equal(access(temporary_path("foreign/notes.txt"), F_OK), 0);
    walsh_store_close(&store);
    for (int i = 0; i < 5; i++) {
        snprintf(path, sizeof path, "foreign/%d", i);
        write_file(temporary_path(path), "", 0);
    }
    store = open_store("foreign", 100);
    assert_int_equal(warned.count, 4);
    assert_string_equal(without_directory(warned.last),
                        "DIR/foreign: 3 more files are no blocks of a prefix store");
    walsh_store_close(&store);
}

/* ---- the limit */

static void what_cannot_fit_evicts_nothing(void **state)
{
    (void)state;
    static uint8_t payload[4 * PAYLOAD];
    struct walsh_prefix_store *store = open_store("large", 3 * FILE_BYTES);
    for (uint32_t i = 0; i < 3; i++) assert_true(put(store, i));
    struct sample large;
    make_sample(&large, 3);
    large.block.bytes = 4 * PAYLOAD; /* more than the limit */
    assert_false(walsh_store_put(store, &large.block, payload, 0, INT64_MAX));
    for (uint32_t i = 0; i < 3; i++) assert_true(get(store, i));

    const int64_t since = walsh_store_now(); /* two in use, and one too small for what comes */
    struct walsh_prefix_key used[2];
    for (uint32_t i = 0; i < 2; i++) {
        struct sample s;
        make_sample(&s, i);
        used[i] = s.block.key;
    }
    walsh_store_touch(store, used, 2);
    large.block.bytes = 2 * PAYLOAD;
    assert_false(walsh_store_put(store, &large.block, payload, 0, since));
    for (uint32_t i = 0; i < 3; i++) assert_true(get(store, i));
    walsh_store_close(&store);
}

static void age(const char *path, time_t seconds)
{
    const struct timespec past = {time(NULL) - seconds, 0}, times[2] = {past, past};
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

static void the_longest_unused_goes_first(void **state)
{
    (void)state;
    struct walsh_prefix_store *store = open_store("lru", 3 * FILE_BYTES);
    for (uint32_t i = 0; i < 3; i++) {
        assert_true(put(store, i));
        age(block_path("lru", i), 100 - i);
    }
    struct sample first;
    make_sample(&first, 0);
    walsh_store_touch(store, &first.block.key, 1);
    assert_true(put(store, 3)); /* 1 is the oldest now */
    assert_true(get(store, 0));
    assert_false(get(store, 1));
    assert_true(get(store, 2));
    assert_true(get(store, 3));
    assert_int_equal(temporary_count_entries(temporary_path("lru")), 4);

    /* A time to come is not the newest. */
    age(block_path("lru", 0), -1000);
    assert_true(put(store, 4));
    assert_false(get(store, 0));
    assert_true(get(store, 2));
    walsh_store_close(&store);

    store = open_store("lru", FILE_BYTES); /* a smaller limit holds from the start */
    assert_int_equal(temporary_count_entries(temporary_path("lru")), 2);
    assert_int_equal(warned.count, 0);
    walsh_store_close(&store);
}

static void a_chain_goes_from_its_end(void **state)
{
    (void)state;
    struct walsh_prefix_store *store = open_store("chain", 3 * FILE_BYTES);
    struct walsh_prefix_key keys[3];
    for (uint32_t i = 0; i < 3; i++) {
        struct sample s;
        make_sample(&s, i);
        keys[i] = s.block.key;
        assert_true(put(store, i));
    }
    walsh_store_touch(store, keys, 3);
    for (uint32_t i = 2; i > 0; i--) {
        assert_true(put(store, 10 + i));
        assert_false(get(store, i));
        assert_true(get(store, i - 1));
    }
    walsh_store_close(&store);
}

static void what_is_in_use_stays(void **state)
{
    (void)state;
    struct sample s;
    char expected[300];
    struct walsh_prefix_store *store = open_store("use", 2 * FILE_BYTES);
    const int64_t since = walsh_store_now();
    assert_true(put(store, 0));
    assert_true(put(store, 1));
    make_sample(&s, 2);
    assert_false(walsh_store_put(store, &s.block, s.payload, 0, since));
    assert_int_equal(warned.count, 1);
    snprintf(expected, sizeof expected,
             "a block of the prompt is not stored: DIR/use: no room for %d bytes: its limit is %d, and %d "
             "are in use "
             "by running prompts",
             FILE_BYTES, 2 * FILE_BYTES, 2 * FILE_BYTES);
    assert_string_equal(without_directory(warned.last), expected);
    assert_false(walsh_store_put(store, &s.block, s.payload, 0, since));
    assert_int_equal(warned.count, 1); /* told once */
    assert_true(get(store, 0));
    assert_true(get(store, 1));
    assert_true(put(store, 2));
    /* What is stored counts as used by the clock that `since` is read from; the file system's is behind. */
    for (uint32_t i = 3; i < 40; i++) {
        struct stat info;
        const int64_t before = walsh_store_now();
        assert_true(put(store, i));
        assert_int_equal(stat(block_path("use", i), &info), 0);
        assert_true((int64_t)info.st_mtim.tv_sec * 1000000000 + info.st_mtim.tv_nsec >= before);
    }
    walsh_store_close(&store);
}

/* ---- directories that are not private, not writable, full */

static void expect_refused(const char *path, enum walsh_status status, const char *message)
{
    struct walsh_error err;
    struct walsh_prefix_store *store;
    assert_int_equal(walsh_store_open(path, WALSH_PREFIX_LIMIT, NULL, &store, &err), status);
    assert_null(store);
    assert_string_equal(without_directory(err.message), message);
}

static void directories_of_others_are_refused(void **state)
{
    (void)state;
    assert_int_equal(mkdir(temporary_path("open"), 0700), 0);
    assert_int_equal(chmod(temporary_path("open"), 0707), 0);
    expect_refused(
        temporary_path("open"), WALSH_E_ARGUMENT,
        "DIR/open: everybody may write to it (mode 0707): a prefix store must be private (chmod 700)");
    write_file(temporary_path("file"), "", 0);
    expect_refused(temporary_path("file"), WALSH_E_IO,
                   "DIR/file: cannot open the directory: Not a directory");
    expect_refused(temporary_path("no/such"), WALSH_E_IO,
                   "DIR/no/such: cannot make the directory: No such file or directory");
    /* One's own link is fine. */
    assert_int_equal(mkdir(temporary_path("real"), 0700), 0);
    assert_int_equal(symlink(temporary_path("real"), temporary_path("link")), 0);
    struct walsh_prefix_store *store = open_store("link", WALSH_PREFIX_LIMIT);
    assert_true(put(store, 1));
    walsh_store_close(&store);
    assert_int_equal(access(block_path("real", 1), F_OK), 0);
    if (geteuid() != 0) skip();
    assert_int_equal(lchown(temporary_path("link"), 12345, 12345), 0);
    expect_refused(
        temporary_path("link"), WALSH_E_ARGUMENT,
        "DIR/link: is a symbolic link of user 12345, expected a directory or a link of user 0's own: a "
        "prefix store must be private");
    expect_refused(
        temporary_path("link/"), WALSH_E_ARGUMENT,
        "DIR/link: is a symbolic link of user 12345, expected a directory or a link of user 0's own: a "
        "prefix store must be private");
    assert_int_equal(chown(temporary_path("real"), 12345, 12345), 0);
    expect_refused(temporary_path("real"), WALSH_E_ARGUMENT,
                   "DIR/real: belongs to user 12345, expected user 0: a prefix store must be private");
}

/* In a child that is not root (root writes everywhere): the exit status says what happened. */
static int read_only_child(void)
{
    if (geteuid() == 0 && (chown(temporary_path("sealed"), 12345, 12345) != 0 ||
                           chown(block_path("sealed", 1), 12345, 12345) != 0 || setuid(12345) != 0))
        return 2;
    struct walsh_prefix_store *store = open_store("sealed", WALSH_PREFIX_LIMIT);
    if (warned.count != 1 || !strstr(warned.last, "blocks will be read, not stored")) return 3;
    if (!get(store, 1)) return 4;
    if (put(store, 2) || put(store, 3) || warned.count != 2) return 5;
    walsh_store_close(&store);
    return 0;
}

static void a_directory_that_cannot_be_written_serves(void **state)
{
    (void)state;
    struct walsh_prefix_store *store = open_store("sealed", WALSH_PREFIX_LIMIT);
    assert_true(put(store, 1));
    walsh_store_close(&store);
    assert_int_equal(unlink(temporary_path("sealed/lock")), 0);
    assert_int_equal(chmod(temporary_path("sealed"), 0500), 0);
    assert_int_equal(chmod(temporary_directory, 0755), 0);
    fflush(NULL);
    const pid_t child = fork();
    if (child == 0) _exit(read_only_child());
    int result;
    assert_int_equal(waitpid(child, &result, 0), child);
    assert_true(WIFEXITED(result));
    assert_int_equal(WEXITSTATUS(result), 0);
    assert_int_equal(chmod(temporary_path("sealed"), 0700), 0);
}

static void a_full_disk_is_a_warning(void **state)
{
    (void)state;
    struct rlimit before, small = {FILE_BYTES - 1000, 0};
    struct walsh_prefix_store *store = open_store("full", WALSH_PREFIX_LIMIT);
    assert_true(put(store, 1));
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small.rlim_max = before.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    const bool stored = put(store, 2);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_false(stored);
    assert_int_equal(warned.count, 1);
    assert_non_null(strstr(warned.last, ": File too large"));
    assert_true(get(store, 1));
    assert_false(get(store, 2));
    assert_int_equal(temporary_count_entries(temporary_path("full")), 2); /* no temporary is left */
    assert_true(put(store, 2));
    assert_true(get(store, 2));
    walsh_store_close(&store);
}

/* ---- processes */

static void a_lock_held_by_another_ends_in_a_warning(void **state)
{
    (void)state;
    struct walsh_prefix_store *store = open_store("held", WALSH_PREFIX_LIMIT);
    assert_true(put(store, 1));
    const int fd = open(temporary_path("held/lock"), O_RDWR);
    assert_true(fd >= 0);
    assert_int_equal(flock(fd, LOCK_EX), 0);
    assert_false(put(store, 2));
    assert_int_equal(warned.count, 1);
    assert_non_null(strstr(warned.last, "held/lock: cannot lock"));
    assert_true(get(store, 1)); /* readers need none */
    close(fd);
    assert_true(put(store, 2));
    walsh_store_close(&store);
}

/* What a killed writer leaves is removed; what a living one is writing is not. */
static void temporaries_of_the_dead_are_removed(void **state)
{
    (void)state;
    char dead[100], alive[100];
    struct sample s;
    char text[WALSH_PREFIX_KEY_TEXT];
    make_sample(&s, 9);
    walsh_prefix_key_text(&s.block.key, text);
    struct walsh_prefix_store *store = open_store("dead", 2 * FILE_BYTES);
    snprintf(dead, sizeof dead, "dead/%s.99-0.tmp", text);
    snprintf(alive, sizeof alive, "dead/%s.98-0.tmp", text);
    write_file(temporary_path(dead), s.payload, PAYLOAD);
    write_file(temporary_path(alive), s.payload, PAYLOAD);
    const int fd = open(temporary_path(alive), O_RDONLY);
    assert_true(fd >= 0);
    assert_int_equal(flock(fd, LOCK_EX), 0);
    assert_true(put(store, 1));
    assert_int_not_equal(access(temporary_path(dead), F_OK), 0);
    assert_int_equal(access(temporary_path(alive), F_OK), 0);
    assert_true(put(store, 2)); /* the living one's room counts: block 1 goes */
    assert_false(get(store, 1));
    close(fd);
    walsh_store_close(&store);
    assert_int_equal(warned.count, 0);
}

/* Two processes put and get the same blocks in a store that holds half of them. */
static int crowd_child(uint64_t seed)
{
    struct walsh_random random;
    struct walsh_prefix_store *store = open_store("crowd", 8 * FILE_BYTES);
    unsigned served = 0;
    walsh_random_seed(&random, seed);
    for (int i = 0; i < 300; i++) {
        const uint32_t n = (uint32_t)(walsh_random_u64(&random) % 16);
        if (get(store, n))
            served++;
        else if (!put(store, n)) {
            print_message("%s\n", warned.last);
            return 2;
        }
    }
    walsh_store_close(&store);
    return warned.count != 0 ? 3 : served == 0 ? 4 : 0;
}

static void two_processes_share_a_store(void **state)
{
    (void)state;
    fflush(NULL);
    pid_t children[2];
    for (unsigned i = 0; i < 2; i++) {
        children[i] = fork();
        if (children[i] == 0) _exit(crowd_child(100 + i));
    }
    for (unsigned i = 0; i < 2; i++) {
        int result;
        assert_int_equal(waitpid(children[i], &result, 0), children[i]);
        assert_true(WIFEXITED(result));
        if (WEXITSTATUS(result) != 0) fail_msg("child %u ended with %d", i, WEXITSTATUS(result));
    }
    /* At most 8 blocks (fewer where both put one at once) and the lock; nothing left over. */
    const size_t entries = temporary_count_entries(temporary_path("crowd"));
    assert_true(entries > 2 && entries <= 9);
    struct walsh_prefix_store *store = open_store("crowd", 8 * FILE_BYTES);
    unsigned served = 0;
    for (uint32_t i = 0; i < 16; i++) served += get(store, i);
    assert_int_equal(served, entries - 1);
    assert_int_equal(warned.count, 0);
    walsh_store_close(&store);
}

/* So do threads, by one handle. */
struct user {
    struct walsh_prefix_store *store;
    uint64_t seed;
    unsigned served, refused;
};

static void *use_store(void *argument)
{
    struct user *user = argument;
    struct walsh_random random;
    walsh_random_seed(&random, user->seed);
    for (int i = 0; i < 100; i++) {
        const uint32_t n = (uint32_t)(walsh_random_u64(&random) % 16);
        if (get(user->store, n))
            user->served++;
        else
            user->refused += !put(user->store, n);
    }
    return NULL;
}

static void threads_share_a_handle(void **state)
{
    (void)state;
    struct user users[3];
    pthread_t threads[3];
    struct walsh_prefix_store *store = open_store("threads", 8 * FILE_BYTES);
    for (unsigned i = 0; i < 3; i++) {
        users[i] = (struct user){.store = store, .seed = i};
        assert_int_equal(pthread_create(&threads[i], NULL, use_store, &users[i]), 0);
    }
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_true(users[i].served > 0);
        assert_int_equal(users[i].refused, 0);
    }
    assert_int_equal(warned.count, 0);
    assert_true(temporary_count_entries(temporary_path("threads")) <= 9);
    walsh_store_close(&store);
}

static unsigned count_temporaries(const char *store)
{
    unsigned count = 0;
    DIR *list = opendir(temporary_path(store));
    struct dirent *entry;
    while (list && (entry = readdir(list))) count += strstr(entry->d_name, ".tmp") != NULL;
    if (list) closedir(list);
    return count;
}

/* A child puts blocks and says so; it is killed at a random moment. Whatever it said is there, and nothing is
 * torn. */
static void kill_9_loses_nothing_and_tears_nothing(void **state)
{
    (void)state;
    const uint64_t seed = (uint64_t)time(NULL);
    print_message("seed %llu\n", (unsigned long long)seed);
    struct walsh_random random;
    walsh_random_seed(&random, seed);
    uint32_t next = 0;
    unsigned cut_short = 0;
    for (int round = 0; round < 40; round++) {
        int said[2];
        assert_int_equal(pipe(said), 0);
        fflush(NULL);
        const pid_t child = fork();
        if (child == 0) {
            struct walsh_prefix_store *store = open_store("killed", WALSH_PREFIX_LIMIT);
            for (uint32_t i = next;; i++)
                if (!put(store, i) || write(said[1], &i, sizeof i) != sizeof i) _exit(1);
        }
        close(said[1]);
        const struct timespec pause = {0, (long)(walsh_random_u64(&random) % 60000000)};
        nanosleep(&pause, NULL);
        assert_int_equal(kill(child, SIGKILL), 0);
        int result;
        assert_int_equal(waitpid(child, &result, 0), child);
        assert_true(WIFSIGNALED(result));
        uint32_t i;
        while (read(said[0], &i, sizeof i) == sizeof i) next = i + 1;
        close(said[0]);
        cut_short += count_temporaries("killed") > 0;
        struct walsh_prefix_store *store = open_store("killed", WALSH_PREFIX_LIMIT);
        for (i = 0; i < next; i++) assert_true(get(store, i));
        (void)get(store, next); /* perhaps */
        assert_int_equal(warned.count, 0);
        walsh_store_close(&store);
        assert_int_equal(count_temporaries("killed"), 0); /* opening tidied */
    }
    print_message("%u blocks; %u kills left a temporary behind\n", next, cut_short);
    assert_true(next > 0);
    assert_true(cut_short > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_key_is_sha256_of_its_fields),
        cmocka_unit_test(keys_depend_on_all_that_is_before),
        cmocka_unit_test(what_was_put_comes_back),
        cmocka_unit_test(a_damaged_byte_is_a_miss),
        cmocka_unit_test(a_header_that_lies_is_a_miss),
        cmocka_unit_test(other_sizes_and_kinds_are_misses),
        cmocka_unit_test(foreign_files_are_told_and_left_alone),
        cmocka_unit_test(what_cannot_fit_evicts_nothing),
        cmocka_unit_test(what_cannot_fit_evicts_nothing),
        cmocka_unit_test(the_longest_unused_goes_first),
        cmocka_unit_test(a_chain_goes_from_its_end),
        cmocka_unit_test(what_is_in_use_stays),
        cmocka_unit_test(directories_of_others_are_refused),
        cmocka_unit_test(a_directory_that_cannot_be_written_serves),
        cmocka_unit_test(a_full_disk_is_a_warning),
        cmocka_unit_test(a_lock_held_by_another_ends_in_a_warning),
        cmocka_unit_test(temporaries_of_the_dead_are_removed),
        cmocka_unit_test(two_processes_share_a_store),
        cmocka_unit_test(threads_share_a_handle),
        cmocka_unit_test(kill_9_loses_nothing_and_tears_nothing),
    };
    return cmocka_run_group_tests(tests, temporary_make, temporary_remove);
}
