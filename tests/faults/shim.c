/* A library to preload (LD_PRELOAD) that lets one call fail: the n-th of those that allocate memory or touch
 * files, as the program makes them or as jansson, PCRE2, xxHash and the C library make them for it.
 *
 *   FAULTS_AT      which call, from 1 on; 0: none
 *   FAULTS_REPORT  a file that gets "CALLS LIVE NAME WHERE" when the program ends: the calls that were made,
 * the blocks of memory that the program or jansson still held, the call that failed and the address that it
 * came from
 *
 * Memory that a call wanted is not there (ENOMEM), a disk is full (ENOSPC) or broken (EIO), files cannot be
 * opened (EMFILE), threads not started (EAGAIN). Calls of other libraries - OpenBLAS, OpenSSL, the loader -
 * are passed on and not counted: what they do without memory is not walsh's; nor the C library's where
 * AddressSanitizer is there, which calls it too. tests/faults/torture.c drives it. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define MOST_RANGES 64
#define TABLE ((size_t)1 << 20)

/* Whose calls count, and whose blocks. */
static struct range {
    uintptr_t begin, end;
    bool tracked;
} ranges[MOST_RANGES];
static size_t range_count;
static bool armed;
static long fail_at;
static atomic_long calls;
static const char *failed_name = "none";
static uintptr_t failed_where;

/* Tracked blocks: open addressing, 1 where one was freed. Complements of their addresses, so that LeakSanitizer does not find the
 * blocks here. */
static _Atomic(uintptr_t) table[TABLE];
static atomic_long live;

/* The real functions */
static void *(*real_malloc)(size_t);
static void *(*real_calloc)(size_t, size_t);
static void *(*real_realloc)(void *, size_t);
static void *(*real_aligned_alloc)(size_t, size_t);
static int (*real_posix_memalign)(void **, size_t, size_t);
static void (*real_free)(void *);

static uint8_t early[1 << 16]; /* what dlsym wants before there is a malloc */
static size_t early_used;

static void *early_alloc(size_t size)
{
    void *p = early + early_used;
    early_used += (size + 15) & ~(size_t)15;
    return early_used <= sizeof early ? p : NULL;
}

static bool is_early(const void *p)
{
    return (const uint8_t *)p >= early && (const uint8_t *)p < early + sizeof early;
}

static void *find(const char *name)
{
    return dlsym(RTLD_NEXT, name);
}

static void find_allocators(void)
{
    static bool looking;
    if (real_free || looking) return;
    looking = true;
    real_calloc = (void *(*)(size_t, size_t))find("calloc");
    real_malloc = (void *(*)(size_t))find("malloc");
    real_realloc = (void *(*)(void *, size_t))find("realloc");
    real_aligned_alloc = (void *(*)(size_t, size_t))find("aligned_alloc");
    real_posix_memalign = (int (*)(void **, size_t, size_t))find("posix_memalign");
    real_free = (void (*)(void *))find("free");
    looking = false;
}

static int add_range(struct dl_phdr_info *info, size_t size, void *user)
{
    static const char *const counted[] = {"libjansson", "libpcre2", "libxxhash", "libutf8proc", "libc.so"};
    static bool sanitized; /* its runtime comes before the C library */
    bool program = range_count == 0 && !info->dlpi_name[0], wanted = program;
    (void)size, (void)user;
    sanitized = sanitized || strstr(info->dlpi_name, "libasan");
    for (size_t i = 0; i < sizeof counted / sizeof *counted - sanitized; i++)
        wanted = wanted || strstr(info->dlpi_name, counted[i]);
    for (int i = 0; wanted && i < info->dlpi_phnum && range_count < MOST_RANGES; i++) {
        const ElfW(Phdr) *h = &info->dlpi_phdr[i];
        if (h->p_type != PT_LOAD || !(h->p_flags & PF_X)) continue;
        ranges[range_count].begin = info->dlpi_addr + h->p_vaddr;
        ranges[range_count].end = ranges[range_count].begin + h->p_memsz;
        ranges[range_count++].tracked = !strstr(info->dlpi_name, "libc.so");
    }
    return 0;
}

__attribute__((constructor)) static void arm(void)
{
    const char *at = getenv("FAULTS_AT");
    find_allocators();
    dl_iterate_phdr(add_range, NULL);
    fail_at = at ? atol(at) : 0;
    unsetenv("LD_PRELOAD"); /* of this process alone */
    armed = true;
}

__attribute__((destructor)) static void report(void)
{
    const char *path = getenv("FAULTS_REPORT");
    char text[1024];
    Dl_info where = {0};
    armed = false;
    dladdr((void *)failed_where, &where);
    if (!path) return;
    const int length = snprintf(text, sizeof text, "%ld %ld %s %.512s+0x%lx\n", atomic_load(&calls),
                                atomic_load(&live), failed_name, where.dli_fname ? where.dli_fname : "",
                                (unsigned long)(failed_where - (uintptr_t)where.dli_fbase));
    const int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd < 0) return;
    (void)!syscall(SYS_write, fd, text, (size_t)length);
    syscall(SYS_close, fd);
}

static const struct range *caller(uintptr_t where)
{
    if (!armed) return NULL;
    for (size_t i = 0; i < range_count; i++)
        if (where >= ranges[i].begin && where < ranges[i].end) return &ranges[i];
    return NULL;
}

/* Count the call; true: it is the one. */
static bool fails(const char *name, uintptr_t where, int why)
{
    if (!caller(where) || atomic_fetch_add(&calls, 1) + 1 != fail_at) return false;
    failed_name = name;
    failed_where = where;
    errno = why;
    return true;
}

static void track(void *p, uintptr_t where)
{
    const struct range *r = p ? caller(where) : NULL;
    if (!r || !r->tracked) return;
    for (size_t i = (uintptr_t)p / 16 * 0x9e3779b97f4a7c15u % TABLE;; i = (i + 1) % TABLE) {
        uintptr_t found = atomic_load(&table[i]);
        if (found > 1 || !atomic_compare_exchange_strong(&table[i], &found, ~(uintptr_t)p)) continue;
        atomic_fetch_add(&live, 1);
        return;
    }
}

static void forget(void *p)
{
    if (!p || !armed) return;
    for (size_t i = (uintptr_t)p / 16 * 0x9e3779b97f4a7c15u % TABLE;; i = (i + 1) % TABLE) {
        const uintptr_t found = atomic_load(&table[i]);
        if (found == 0) return;
        if (found != ~(uintptr_t)p) continue;
        atomic_store(&table[i], 1);
        atomic_fetch_sub(&live, 1);
        return;
    }
}

#define WHERE ((uintptr_t)__builtin_return_address(0))

EXPORT void *malloc(size_t size)
{
    find_allocators();
    if (!real_malloc) return early_alloc(size);
    if (fails("malloc", WHERE, ENOMEM)) return NULL;
    void *p = real_malloc(size);
    track(p, WHERE);
    return p;
}

EXPORT void *calloc(size_t count, size_t size)
{
    find_allocators();
    if (!real_calloc) return early_alloc(count * size);
    if (fails("calloc", WHERE, ENOMEM)) return NULL;
    void *p = real_calloc(count, size);
    track(p, WHERE);
    return p;
}

EXPORT void *realloc(void *old, size_t size)
{
    find_allocators();
    if (fails("realloc", WHERE, ENOMEM)) return NULL;
    if (is_early(old)) {
        void *moved = malloc(size);
        if (moved) memcpy(moved, old, size);
        return moved;
    }
    forget(old);
    void *p = real_realloc(old, size);
    track(p ? p : old, WHERE);
    return p;
}

EXPORT void *aligned_alloc(size_t alignment, size_t size)
{
    find_allocators();
    if (fails("aligned_alloc", WHERE, ENOMEM)) return NULL;
    void *p = real_aligned_alloc(alignment, size);
    track(p, WHERE);
    return p;
}

EXPORT int posix_memalign(void **out, size_t alignment, size_t size)
{
    find_allocators();
    if (fails("posix_memalign", WHERE, ENOMEM)) return ENOMEM;
    const int status = real_posix_memalign(out, alignment, size);
    if (status == 0) track(*out, WHERE);
    return status;
}

EXPORT void free(void *p)
{
    find_allocators();
    if (!p || is_early(p)) return;
    forget(p);
    real_free(p);
}

/* Files: RESULT NAME(PARAMETERS), the real one called with ARGUMENTS unless it fails with WHY */
#define FILE_CALL(result, name, parameters, arguments, why)                                                  \
    EXPORT result name parameters;                                                                           \
    EXPORT result name parameters                                                                            \
    {                                                                                                        \
        static result(*real) parameters;                                                                     \
        if (!real) real = (result(*) parameters)find(#name);                                                 \
        return fails(#name, WHERE, why) ? (result)-1 : real arguments;                                       \
    }

FILE_CALL(ssize_t, read, (int fd, void *data, size_t size), (fd, data, size), EIO)
FILE_CALL(ssize_t, pread, (int fd, void *data, size_t size, off_t at), (fd, data, size, at), EIO)
FILE_CALL(ssize_t, pread64, (int fd, void *data, size_t size, off64_t at), (fd, data, size, at), EIO)
FILE_CALL(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size), ENOSPC)
FILE_CALL(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at), ENOSPC)
FILE_CALL(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at),
          ENOSPC)
FILE_CALL(int, fsync, (int fd), (fd), EIO)
FILE_CALL(int, ftruncate, (int fd, off_t size), (fd, size), ENOSPC)
FILE_CALL(int, rename, (const char *from, const char *to), (from, to), EIO)
FILE_CALL(int, renameat, (int a, const char *from, int b, const char *to), (a, from, b, to), EIO)
FILE_CALL(int, mkdir, (const char *path, mode_t mode), (path, mode), ENOSPC)
FILE_CALL(int, fstat, (int fd, struct stat *info), (fd, info), EIO)
FILE_CALL(void *, mmap, (void *at, size_t size, int protection, int flags, int fd, off_t offset),
          (at, size, protection, flags, fd, offset), ENOMEM)

EXPORT int posix_fallocate(int fd, off_t at, off_t size)
{
    static int (*real)(int, off_t, off_t);
    if (!real) real = (int (*)(int, off_t, off_t))find("posix_fallocate");
    return fails("posix_fallocate", WHERE, ENOSPC) ? ENOSPC : real(fd, at, size);
}

EXPORT int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *),
                          void *user)
{
    static int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    if (!real)
        real =
            (int (*)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *))find("pthread_create");
    return fails("pthread_create", WHERE, EAGAIN) ? EAGAIN : real(thread, attributes, start, user);
}

EXPORT int open(const char *path, int flags, ...)
{
    va_list list;
    va_start(list, flags);
    const mode_t mode = flags & O_CREAT ? (mode_t)va_arg(list, int) : 0;
    va_end(list);
    if (fails("open", WHERE, EMFILE)) return -1;
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

EXPORT int openat(int at, const char *path, int flags, ...)
{
    va_list list;
    va_start(list, flags);
    const mode_t mode = flags & O_CREAT ? (mode_t)va_arg(list, int) : 0;
    va_end(list);
    if (fails("openat", WHERE, EMFILE)) return -1;
    return (int)syscall(SYS_openat, at, path, flags, mode);
}

EXPORT FILE *fopen(const char *path, const char *mode)
{
    static FILE *(*real)(const char *, const char *);
    if (!real) real = (FILE * (*)(const char *, const char *)) find("fopen");
    return fails("fopen", WHERE, EMFILE) ? NULL : real(path, mode);
}
