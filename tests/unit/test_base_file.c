#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "base/file.h"
#include "base/memory.h"
#include "unit/temporary.h"

static void put(const char *path, const void *data, size_t size)
{
    struct walsh_error err = {0};
    if (walsh_file_write(path, data, size, &err) != WALSH_OK) fail_msg("%s", err.message);
}

static void test_open(void **state)
{
    (void)state;
    const char *path = temporary_path("some");
    put(path, "hello", 5);
    for (int use_mmap = 0; use_mmap < 2; use_mmap++) {
        struct walsh_file file;
        assert_int_equal(walsh_file_open(path, use_mmap, &file, NULL), WALSH_OK);
        assert_int_equal(file.size, 5);
        assert_memory_equal(file.data, "hello", 5);
        assert_int_equal(file.mapped, use_mmap);
        assert_string_equal(file.path, path);
        walsh_file_close(&file);
        assert_null(file.data);
        walsh_file_close(&file);
    }
}

/* Reads of a mapped file, or copies; what fails says so and names the file. */
static void test_copy(void **state)
{
    (void)state;
    const char *path = temporary_path("copied");
    struct walsh_error err = {0};
    struct walsh_file file;
    char to[6] = "......";
    atomic_int why = 0;
    put(path, "0123456789", 10);
    for (int use_mmap = 0; use_mmap < 2; use_mmap++) {
        assert_int_equal(walsh_file_open(path, use_mmap, &file, NULL), WALSH_OK);
        assert_true(walsh_file_holds(&file, file.data + 10, 0));
        assert_false(walsh_file_holds(&file, file.data + 4, 7));
        assert_false(walsh_file_holds(&file, file.data - 1, 1));
        assert_true(walsh_file_copy(&file, file.data + 3, 5, to, &why));
        assert_memory_equal(to, "34567.", 6);
        assert_true(walsh_file_copy(NULL, "abcde", 5, to, &why));
        assert_memory_equal(to, "abcde.", 6);
        assert_int_equal(atomic_load(&why), 0);
        if (use_mmap) break;
        walsh_file_close(&file);
    }
    assert_int_equal(truncate(path, 6), 0);
    assert_true(walsh_file_copy(&file, file.data + 1, 5, to, &why));
    assert_false(walsh_file_copy(&file, file.data + 3, 5, to, &why));
    assert_int_equal(walsh_file_copy_fail(&file, atomic_load(&why), &err), WALSH_E_IO);
    assert_string_equal(without_directory(err.message),
                        "DIR/copied: shorter than the 10 bytes that it had when it was opened");
    const int fd = file.fd;
    file.fd = -1;
    assert_false(walsh_file_copy(&file, file.data, 5, to, &why)); /* the first failure is kept */
    assert_int_equal(walsh_file_copy_fail(&file, atomic_load(&why), &err), WALSH_E_IO);
    assert_non_null(strstr(err.message, "shorter"));
    atomic_store(&why, 0);
    assert_false(walsh_file_copy(&file, file.data, 5, to, &why));
    assert_int_equal(walsh_file_copy_fail(&file, atomic_load(&why), &err), WALSH_E_IO);
    assert_string_equal(without_directory(err.message), "DIR/copied: cannot read: Bad file descriptor");
    file.fd = fd;
    walsh_file_close(&file);
}

static void test_open_empty(void **state)
{
    (void)state;
    const char *path = temporary_path("empty");
    put(path, "", 0);
    for (int use_mmap = 0; use_mmap < 2; use_mmap++) {
        struct walsh_file file;
        assert_int_equal(walsh_file_open(path, use_mmap, &file, NULL), WALSH_OK);
        assert_int_equal(file.size, 0);
        assert_non_null(file.data);
        walsh_file_close(&file);
    }
}

static void expect_open(const char *path, enum walsh_status status, const char *message)
{
    struct walsh_error err = {0};
    struct walsh_file file;
    assert_int_equal(walsh_file_open(path, true, &file, &err), status);
    assert_string_equal(without_directory(err.message), message);
    assert_null(file.data);
    char *text;
    size_t size;
    assert_int_equal(walsh_file_read_regular(path, 100, &text, &size, &err), status);
    assert_string_equal(without_directory(err.message), message);
    if (!strstr(message, "regular")) {
        assert_int_equal(walsh_file_read_text(path, 100, &text, &size, &err), status);
        assert_string_equal(without_directory(err.message), message);
    }
}

static void test_open_bad(void **state)
{
    (void)state;
    expect_open(temporary_path("absent"), WALSH_E_NOT_FOUND, "DIR/absent: no such file");
    expect_open(temporary_directory, WALSH_E_IO, "DIR: is a directory, expected a file");
    put(temporary_path("plain"), "x", 1);
    expect_open(temporary_path("plain/below"), WALSH_E_IO, "DIR/plain/below: cannot open: Not a directory");
    assert_int_equal(mkfifo(temporary_path("fifo"), 0600), 0);
    expect_open(temporary_path("fifo"), WALSH_E_IO, "DIR/fifo: is not a regular file");
    if (geteuid() != 0) { /* root reads everything */
        chmod(temporary_path("plain"), 0);
        expect_open(temporary_path("plain"), WALSH_E_IO, "DIR/plain: cannot open: Permission denied");
    }
}

static void test_read_text(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    const char *path = temporary_path("text");
    char *text;
    size_t size;
    put(path, "a\0b", 3);
    assert_int_equal(walsh_file_read_text(path, 3, &text, &size, &err), WALSH_OK);
    assert_int_equal(size, 3);
    assert_memory_equal(text, "a\0b", 4);
    walsh_free(text);
    assert_int_equal(walsh_file_read_text(path, 2, &text, &size, &err), WALSH_E_CAPACITY);
    assert_string_equal(without_directory(err.message),
                        "DIR/text: 3 bytes, larger than the 2 bytes allowed here");
    assert_null(text);
    put(path, "", 0);
    assert_int_equal(walsh_file_read_text(path, 0, &text, &size, &err), WALSH_OK);
    assert_string_equal(text, "");
    walsh_free(text);
    /* A file whose size is not known beforehand */
    assert_int_equal(walsh_file_read_text("/proc/self/status", 1 << 20, &text, &size, &err), WALSH_OK);
    assert_int_equal(strlen(text), size);
    assert_true(size > 100);
    walsh_free(text);
    assert_int_equal(walsh_file_read_text("/proc/self/status", 10, &text, &size, &err), WALSH_E_CAPACITY);
    assert_string_equal(err.message, "/proc/self/status: larger than the 10 bytes allowed here");
}

/* Longer than the first guess, of unknown size: exercises the growth */
static void test_read_text_from_pipe(void **state)
{
    (void)state;
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    char name[64], data[30000];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (char)('a' + i % 26);
    assert_int_equal(write(ends[1], data, sizeof data), (ssize_t)sizeof data);
    close(ends[1]);
    snprintf(name, sizeof name, "/proc/self/fd/%d", ends[0]);
    char *text;
    size_t size;
    assert_int_equal(walsh_file_read_text(name, 30000, &text, &size, NULL), WALSH_OK);
    assert_int_equal(size, sizeof data);
    assert_memory_equal(text, data, sizeof data);
    walsh_free(text);
    close(ends[0]);
}

static void expect_content(const char *path, const char *content)
{
    char *text;
    size_t size;
    assert_int_equal(walsh_file_read_text(path, 1 << 20, &text, &size, NULL), WALSH_OK);
    assert_string_equal(text, content);
    walsh_free(text);
}

static void test_writer(void **state)
{
    (void)state;
    struct walsh_writer w;
    const char *path = temporary_path("out");
    assert_int_equal(walsh_writer_open(path, &w, NULL), WALSH_OK);
    assert_int_equal(walsh_writer_append(&w, "abc", 3, NULL), WALSH_OK);
    assert_int_equal(walsh_writer_append(&w, "de", 2, NULL), WALSH_OK);
    assert_int_equal(w.offset, 5);
    assert_false(walsh_path_exists(path)); /* not before it is whole */
    assert_true(walsh_path_exists(w.temporary));
    assert_int_equal(walsh_writer_commit(&w, NULL), WALSH_OK);
    assert_int_equal(w.fd, -1);
    expect_content(path, "abcde");

    size_t entries = temporary_count_entries(temporary_directory);
    assert_int_equal(walsh_writer_open(path, &w, NULL), WALSH_OK);
    assert_int_equal(walsh_writer_append(&w, "new", 3, NULL), WALSH_OK);
    walsh_writer_discard(&w);
    walsh_writer_discard(&w);
    expect_content(path, "abcde");
    assert_int_equal(temporary_count_entries(temporary_directory), entries);

    assert_int_equal(walsh_copy_file(path, temporary_path("copy"), NULL), WALSH_OK);
    expect_content(temporary_path("copy"), "abcde");
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    mode_t mask = umask(0);
    umask(mask);
    assert_int_equal(info.st_mode & 0777, 0666 & ~mask);
}

/* A writer that is killed in the middle leaves the old content, whatever it had written. */
static void test_writer_killed(void **state)
{
    (void)state;
    const char *path = temporary_path("survivor");
    put(path, "old", 3);
    pid_t child = fork();
    if (child == 0) {
        struct walsh_writer w;
        if (walsh_writer_open(path, &w, NULL) == WALSH_OK) walsh_writer_append(&w, "new content", 11, NULL);
        raise(SIGKILL);
    }
    int result;
    assert_int_equal(waitpid(child, &result, 0), child);
    assert_true(WIFSIGNALED(result));
    expect_content(path, "old");
    put(path, "newer", 5);
    expect_content(path, "newer");
}

/* What another writer of the same file has begun is left alone. */
static void test_writers_do_not_share(void **state)
{
    (void)state;
    struct walsh_writer a, b;
    assert_int_equal(walsh_writer_open(temporary_path("shared"), &a, NULL), WALSH_OK);
    assert_int_equal(walsh_writer_append(&a, "first", 5, NULL), WALSH_OK);
    assert_int_equal(walsh_writer_open(temporary_path("shared"), &b, NULL), WALSH_OK);
    assert_int_equal(walsh_writer_append(&b, "second", 6, NULL), WALSH_OK);
    assert_int_equal(walsh_writer_commit(&b, NULL), WALSH_OK);
    expect_content(temporary_path("shared"), "second");
    assert_int_equal(walsh_writer_commit(&a, NULL), WALSH_OK);
    expect_content(temporary_path("shared"), "first");
}

static void test_disk_full(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    int full = open("/dev/full", O_WRONLY);
    if (full < 0) skip();
    struct walsh_writer w;
    size_t entries = temporary_count_entries(temporary_directory);
    assert_int_equal(walsh_writer_open(temporary_path("big"), &w, &err), WALSH_OK);
    assert_int_equal(dup2(full, w.fd), w.fd); /* from here on every write says ENOSPC */
    close(full);
    assert_int_equal(walsh_writer_append(&w, "abc", 3, &err), WALSH_E_IO);
    assert_string_equal(without_directory(err.message),
                        "DIR/big: cannot write 3 bytes at 0: No space left on device");
    walsh_writer_discard(&w);
    assert_int_equal(temporary_count_entries(temporary_directory), entries);
}

/* A real short write: the file may grow to 10,000 bytes and no further. */
static void test_file_size_limit(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    struct rlimit before, limit;
    static char data[16384];
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    limit = before;
    limit.rlim_cur = 10000;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    size_t entries = temporary_count_entries(temporary_directory);
    enum walsh_status status = walsh_file_write(temporary_path("limited"), data, sizeof data, &err);
    setrlimit(RLIMIT_FSIZE, &before);
    assert_int_equal(status, WALSH_E_IO);
    assert_string_equal(without_directory(err.message),
                        "DIR/limited: cannot write 6384 bytes at 10000: File too large");
    assert_false(walsh_path_exists(temporary_path("limited")));
    assert_int_equal(temporary_count_entries(temporary_directory), entries);
}

static void test_writer_bad_path(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    struct walsh_writer w;
    assert_int_equal(walsh_writer_open(temporary_path("no/such/dir"), &w, &err), WALSH_E_IO);
    assert_string_equal(without_directory(err.message),
                        "DIR/no/such/dir: cannot create: No such file or directory");
    assert_int_equal(w.fd, -1);
    assert_int_equal(walsh_writer_open(temporary_directory, &w, &err), WALSH_E_EXISTS);
    assert_string_equal(without_directory(err.message), "DIR: is a directory, expected a file to write");
    assert_int_equal(walsh_copy_file(temporary_path("absent"), temporary_path("copy"), &err),
                     WALSH_E_NOT_FOUND);
}

static void test_paths(void **state)
{
    (void)state;
    char *path;
    assert_int_equal(walsh_path_join("a", "b", &path, NULL), WALSH_OK);
    assert_string_equal(path, "a/b");
    walsh_free(path);
    assert_int_equal(walsh_path_join("a/", "b", &path, NULL), WALSH_OK);
    assert_string_equal(path, "a/b");
    walsh_free(path);
    assert_int_equal(walsh_path_join("", "b", &path, NULL), WALSH_OK);
    assert_string_equal(path, "b");
    walsh_free(path);
    assert_true(walsh_path_is_directory(temporary_directory));
    assert_false(walsh_path_is_directory(temporary_path("absent")));
    struct walsh_error err;
    assert_int_equal(walsh_fsync_directory(temporary_directory, &err), WALSH_OK);
    assert_int_equal(walsh_fsync_directory(temporary_path("absent"), &err), WALSH_E_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open),
        cmocka_unit_test(test_copy),
        cmocka_unit_test(test_open_empty),
        cmocka_unit_test(test_open_bad),
        cmocka_unit_test(test_read_text),
        cmocka_unit_test(test_read_text_from_pipe),
        cmocka_unit_test(test_writer),
        cmocka_unit_test(test_writer_killed),
        cmocka_unit_test(test_writers_do_not_share),
        cmocka_unit_test(test_disk_full),
        cmocka_unit_test(test_file_size_limit),
        cmocka_unit_test(test_writer_bad_path),
        cmocka_unit_test(test_paths),
    };
    return cmocka_run_group_tests(tests, temporary_make, temporary_remove);
}
