/* Files for fuzz targets: a directory of the process in memory (/dev/shm, else TMPDIR or /tmp), removed when
 * it ends, and inputs that stand for several files. */
#ifndef WALSH_TESTS_FUZZ_FILES_H
#define WALSH_TESTS_FUZZ_FILES_H

#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "unit/temporary.h"
#include "walsh_status.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv); /* where a target opens something first */

/* What must hold where the target goes on; a trap is a finding. */
#define FUZZ_REQUIRE(condition)                                                                              \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                          \
            __builtin_trap();                                                                                \
        }                                                                                                    \
    } while (0)

/* A refusal has a status and a message; WALSH_FUZZ_TELL=1 shows it. */
static inline void fuzz_refused(const struct walsh_error *err)
{
    FUZZ_REQUIRE(err->status != WALSH_OK && err->message[0]);
    if (getenv("WALSH_FUZZ_TELL")) fprintf(stderr, "%s\n", err->message);
}

static inline void fuzz_remove(void)
{
    temporary_remove(NULL);
}

/* DIRECTORY/name, the directory made at the first call; as temporary_path. name "": the directory */
static inline const char *fuzz_path(const char *name)
{
    if (!temporary_directory[0]) {
        if (access("/dev/shm", W_OK) == 0) setenv("TMPDIR", "/dev/shm", 0);
        FUZZ_REQUIRE(temporary_make(NULL) == 0);
        atexit(fuzz_remove);
    }
    return *name ? temporary_path(name) : temporary_directory;
}

/* A file of the repository: where it was built, or below WALSH_FUZZ_SOURCE. */
static inline const char *fuzz_source(const char *name)
{
    static char path[1024];
    const char *source = getenv("WALSH_FUZZ_SOURCE");
    snprintf(path, sizeof path, "%s/%s", source ? source : WALSH_SOURCE_DIR, name);
    return path;
}

static inline void fuzz_write_at(const char *name, const void *data, size_t size, off_t offset)
{
    const int fd = open(fuzz_path(name), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    FUZZ_REQUIRE(fd >= 0);
    FUZZ_REQUIRE(ftruncate(fd, offset) == 0);
    FUZZ_REQUIRE(pwrite(fd, data, size, offset) == (ssize_t)size);
    FUZZ_REQUIRE(close(fd) == 0);
}

/* DIRECTORY/name with this content */
static inline void fuzz_write(const char *name, const void *data, size_t size)
{
    fuzz_write_at(name, data, size, 0);
}

/* The next part of an input: up to a NUL byte or its end. */
struct fuzz_part {
    const char *text;
    size_t size;
};
static inline struct fuzz_part fuzz_next(const uint8_t **data, size_t *size)
{
    const uint8_t *end = *size ? memchr(*data, 0, *size) : NULL;
    const struct fuzz_part part = {(const char *)*data, end ? (size_t)(end - *data) : *size};
    *size -= end ? part.size + 1 : part.size;
    *data += end ? part.size + 1 : part.size;
    return part;
}

/* A safetensors file whose tensors `lines` names: "NAME DTYPE D0 D1 ...", one per line, their data one behind
 * the other; a '@' in a name stands for "model.layers.0.", a '%' for "decoder.transformer.layers.0.". DTYPE
 * SIGNS is I32 of 1 and -1. A line "!MODULE TEXT" is the metadata MODULE.spec. The offsets are computed here, so that a change of
 * a shape is a file with another shape and not one that the reader refuses. The data begin with `data` and go
 * on with a byte of which floats of 8, 16 and 32 bits are small numbers, so that an input of some hundred
 * bytes can be a whole model. A tensor that would take the data beyond FUZZ_MOST_DATA keeps an empty range.
 */
#define FUZZ_MOST_DATA ((size_t)1 << 20)
#define FUZZ_MOST_HEADER ((size_t)1 << 18)

struct fuzz_header {
    char text[FUZZ_MOST_HEADER];
    uint8_t data[FUZZ_MOST_DATA];
    size_t used, end; /* of the header's text, of the data */
    bool metadata;    /* the text ends in its object */
};

static inline void fuzz_put(struct fuzz_header *h, const char *text, size_t size)
{
    if (size > sizeof h->text - h->used) size = sizeof h->text - h->used;
    memcpy(h->text + h->used, text, size);
    h->used += size;
}

static inline void fuzz_put_text(struct fuzz_header *h, const char *text)
{
    fuzz_put(h, text, strlen(text));
}

static inline void fuzz_put_name(struct fuzz_header *h, const char *name, const char *end)
{
    for (; name < end; name++) {
        if (*name == '@')
            fuzz_put_text(h, "model.layers.0.");
        else if (*name == '%')
            fuzz_put_text(h, "decoder.transformer.layers.0.");
        else
            fuzz_put(h, name, 1);
    }
}

static inline void fuzz_put_metadata(struct fuzz_header *h, const char *line, const char *end)
{
    const char *text = memchr(line, ' ', (size_t)(end - line));
    if (!text) return;
    fuzz_put_text(h, h->metadata ? ",\"" : h->used > 1 ? ",\"__metadata__\":{\"" : "\"__metadata__\":{\"");
    h->metadata = true;
    fuzz_put_name(h, line + 1, text);
    fuzz_put_text(h, ".spec\":\"");
    for (text++; text < end; text++) {
        if (*text == '"') fuzz_put_text(h, "\\");
        fuzz_put(h, text, 1);
    }
    fuzz_put_text(h, "\"");
}

static inline void fuzz_end_metadata(struct fuzz_header *h)
{
    if (h->metadata) fuzz_put_text(h, "}");
    h->metadata = false;
}

static inline size_t fuzz_dtype_bytes(const char *name, size_t size)
{
    static const char *const wide[] = {"F64", "I64", "U64", "F32", "I32", "U32", "F16", "BF16", "I16", "U16"};
    for (size_t i = 0; i < sizeof wide / sizeof *wide; i++)
        if (strlen(wide[i]) == size && memcmp(wide[i], name, size) == 0) return i < 3 ? 8 : i < 6 ? 4 : 2;
    return 1;
}

static inline void fuzz_put_line(struct fuzz_header *h, const char *line, const char *end)
{
    char text[64];
    const char *dtype = memchr(line, ' ', (size_t)(end - line));
    if (!dtype) return;
    fuzz_put_text(h, h->used > 1 ? ",\"" : "\"");
    fuzz_put_name(h, line, dtype);
    const char *shape = ++dtype;
    while (shape < end && *shape != ' ') shape++;
    const bool signs = shape - dtype == 5 && memcmp(dtype, "SIGNS", 5) == 0;
    size_t bytes = signs ? sizeof(int32_t) : fuzz_dtype_bytes(dtype, (size_t)(shape - dtype));
    fuzz_put_text(h, "\":{\"dtype\":\"");
    fuzz_put(h, signs ? "I32" : dtype, signs ? 3 : (size_t)(shape - dtype));
    fuzz_put_text(h, "\",\"shape\":[");
    for (bool first = true; shape < end; first = false) {
        size_t n = 0;
        const char *digits = ++shape;
        for (; shape < end && *shape != ' '; shape++)
            if (__builtin_mul_overflow(n, 10, &n) || __builtin_add_overflow(n, (size_t)(*shape & 15), &n))
                n = SIZE_MAX;
        if (!first) fuzz_put(h, ",", 1);
        fuzz_put(h, digits, (size_t)(shape - digits));
        if (__builtin_mul_overflow(bytes, n, &bytes)) bytes = SIZE_MAX;
    }
    const size_t begin = h->end;
    if (bytes <= FUZZ_MOST_DATA - begin) h->end += bytes;
    memset(h->data + begin, 0x3c, h->end - begin);
    for (size_t i = 0; signs && i < (h->end - begin) / sizeof(int32_t); i++) {
        const int32_t sign = i % 3 ? 1 : -1;
        memcpy(h->data + begin + i * sizeof sign, &sign, sizeof sign);
    }
    fuzz_put(h, text, (size_t)snprintf(text, sizeof text, "],\"data_offsets\":[%zu,%zu]}", begin, h->end));
}

static inline void fuzz_write_tensors(const char *name, struct fuzz_part lines, const uint8_t *data,
                                      size_t size)
{
    static uint8_t file[8 + FUZZ_MOST_HEADER + FUZZ_MOST_DATA];
    static struct fuzz_header h;
    h.used = h.end = 0;
    fuzz_put(&h, "{", 1);
    for (const char *at = lines.text, *last = lines.text + lines.size; at < last;) {
        const char *end = memchr(at, '\n', (size_t)(last - at));
        if (!end) end = last;
        if (*at == '!') {
            fuzz_put_metadata(&h, at, end);
        } else {
            fuzz_end_metadata(&h);
            fuzz_put_line(&h, at, end);
        }
        at = end + 1;
    }
    fuzz_end_metadata(&h);
    fuzz_put(&h, "}", 1);
    const size_t given = size < h.end ? size : h.end;
    if (given) memcpy(h.data, data, given);
    for (unsigned i = 0; i < 8; i++) file[i] = (uint8_t)((uint64_t)h.used >> 8 * i);
    memcpy(file + 8, h.text, h.used);
    memcpy(file + 8 + h.used, h.data, h.end);
    fuzz_write(name, file, 8 + h.used + h.end);
}

#endif
