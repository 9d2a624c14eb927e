/* The tokenizer's fixtures (tools/tokenizer_fixtures.py says what is in them) and calls that must not fail.
 * Include after cmocka.h. */
#ifndef WALSH_TESTS_TEXT_FIXTURES_H
#define WALSH_TESTS_TEXT_FIXTURES_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/memory.h"
#include "text/tokenizer.h"

#define MODEL_DIRECTORY WALSH_SOURCE_DIR "/models/bookworm-8m"

/* Bytes of a fixture, read from the front. */
struct reader {
    const uint8_t *at, *end;
    struct walsh_file file;
};

static inline struct reader reader_open(const char *name)
{
    char path[512];
    struct walsh_error err = {0};
    struct reader r;
    snprintf(path, sizeof path, "%s/tests/fixtures/text/%s", WALSH_SOURCE_DIR, name);
    if (walsh_file_open(path, true, &r.file, &err) != WALSH_OK) fail_msg("%s", err.message);
    r.at = r.file.data;
    r.end = r.at + r.file.size;
    return r;
}

static inline void reader_close(struct reader *r)
{
    assert_ptr_equal(r->at, r->end); /* all of it was used */
    walsh_file_close(&r->file);
}

static inline const uint8_t *reader_take(struct reader *r, size_t size)
{
    const uint8_t *data = r->at;
    assert_true(size <= (size_t)(r->end - r->at));
    r->at += size;
    return data;
}

static inline uint32_t reader_u32(struct reader *r)
{
    uint32_t value;
    memcpy(&value, reader_take(r, sizeof value), sizeof value);
    return value;
}

static inline uint64_t reader_u64(struct reader *r)
{
    uint64_t value;
    memcpy(&value, reader_take(r, sizeof value), sizeof value);
    return value;
}

/* One record of hard_strings.bin. */
struct hard_string {
    const char *text;
    uint32_t size, count;
    uint64_t hash; /* of the ids by the model's tokenizer */
};

static inline struct hard_string next_hard_string(struct reader *r)
{
    struct hard_string s;
    s.size = reader_u32(r);
    s.count = reader_u32(r);
    s.hash = reader_u64(r);
    s.text = (const char *)reader_take(r, s.size);
    return s;
}

/* FNV-1a, 64 bits */
static inline uint64_t fnv(const void *data, size_t size)
{
    const uint8_t *bytes = data;
    uint64_t h = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < size; i++) h = (h ^ bytes[i]) * UINT64_C(0x100000001b3);
    return h;
}

static inline struct walsh_tokenizer *open_tokenizer(const char *directory)
{
    struct walsh_tokenizer *t;
    struct walsh_error err = {0};
    if (walsh_tokenizer_open(directory, &t, &err) != WALSH_OK) fail_msg("%s", err.message);
    return t;
}

/* walsh_free */
static inline int32_t *encode(const struct walsh_tokenizer *t, const char *text, size_t size, unsigned flags,
                              size_t *count)
{
    int32_t *ids;
    struct walsh_error err = {0};
    if (walsh_tokenizer_encode(t, text, size, flags, &ids, count, &err) != WALSH_OK)
        fail_msg("%s", err.message);
    assert_non_null(ids);
    return ids;
}

static inline char *decode(const struct walsh_tokenizer *t, const int32_t *ids, size_t count,
                           bool skip_special, size_t *size)
{
    char *text;
    struct walsh_error err = {0};
    if (walsh_tokenizer_decode(t, ids, count, skip_special, &text, size, &err) != WALSH_OK)
        fail_msg("%s", err.message);
    assert_int_equal(text[*size], 0);
    return text;
}

/* The hash of the ids, and their number. */
static inline uint64_t encode_hash(const struct walsh_tokenizer *t, const char *text, size_t size,
                                   unsigned flags, size_t *count)
{
    int32_t *ids = encode(t, text, size, flags, count);
    uint64_t hash = fnv(ids, *count * sizeof *ids);
    walsh_free(ids);
    return hash;
}

#endif
