/* SentencePiece's kind of tokenizer against the `tokenizers` package: BPE over characters and Unigram with
 * their normalizers, pre-tokenizers, decoders and added tokens (tools/sentencepiece_fixtures.py). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <jansson.h>
#include <stdlib.h>

#include "unit/temporary.h"
#include "unit/text_fixtures.h"

#define STRINGS 600
#define LISTS 100

static json_t *fixture;

static int setup(void **state)
{
    struct reader r = reader_open("families.json");
    fixture = json_loadb((const char *)r.at, r.file.size, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(fixture);
    walsh_file_close(&r.file);
    return temporary_make(state);
}

static int teardown(void **state)
{
    json_decref(fixture);
    return temporary_remove(state);
}

/* A token that is taken out becomes one of another name: ids stay. */
static void take_out(json_t *vocab, const char *token)
{
    char name[64];
    snprintf(name, sizeof name, "%s~", token);
    if (json_is_object(vocab)) {
        json_t *id = json_object_get(vocab, token);
        assert_non_null(id);
        json_object_set(vocab, name, id);
        json_object_del(vocab, token);
        return;
    }
    size_t i;
    json_t *entry;
    json_array_foreach(vocab, i, entry)
    {
        if (strcmp(json_string_value(json_array_get(entry, 0)), token) != 0) continue;
        json_array_set_new(entry, 0, json_string(name));
        return;
    }
    fail_msg("no token %s", token);
}

/* The tokenizer.json of a variant, opened from a directory of its own; *size is that of the model's
 * vocabulary. */
static struct walsh_tokenizer *open_variant(const json_t *variant, size_t *size)
{
    const char *base = json_string_value(json_object_get(variant, "base")), *key;
    json_t *model = json_deep_copy(json_object_get(json_object_get(fixture, "models"), base)), *value;
    json_t *root = json_object(), *vocab = json_object_get(model, "vocab");
    assert_non_null(model);
    *size = json_is_object(vocab) ? json_object_size(vocab) : json_array_size(vocab);
    json_object_set_new(root, "version", json_string("1.0"));
    json_object_set_new(root, "model", model);
    json_object_foreach((json_t *)(uintptr_t)variant, key, value)
    {
        if (strcmp(key, "model") == 0) {
            json_object_update(model, value);
        } else if (strcmp(key, "without") == 0) {
            for (size_t i = 0; i < json_array_size(value); i++)
                take_out(vocab, json_string_value(json_array_get(value, i)));
        } else if (strcmp(key, "base") != 0) {
            json_object_set(root, key, value);
        }
    }
    const char *path = temporary_path("tokenizer.json");
    assert_int_equal(json_dump_file(root, path, JSON_COMPACT), 0);
    json_decref(root);
    struct walsh_tokenizer *t = open_tokenizer(temporary_directory);
    remove(path);
    return t;
}

static uint32_t folded(const void *data, size_t size)
{
    uint64_t hash = fnv(data, size);
    uint32_t f = (uint32_t)(hash >> 32) ^ (uint32_t)hash;
    return f ? f : 1;
}

/* Decode by stream. malloc'ed. */
static char *stream(const struct walsh_tokenizer *t, const int32_t *ids, size_t count, size_t *size)
{
    struct walsh_decode_stream s;
    char *all = calloc(1, 1);
    *size = 0;
    walsh_decode_stream_init(&s, t, false);
    for (size_t i = 0; i <= count; i++) {
        char *part;
        size_t part_size;
        enum walsh_status status = i < count ? walsh_decode_stream_next(&s, ids[i], &part, &part_size, NULL)
                                             : walsh_decode_stream_finish(&s, &part, &part_size, NULL);
        assert_int_equal(status, WALSH_OK);
        all = realloc(all, *size + part_size + 1);
        assert_non_null(all);
        memcpy(all + *size, part, part_size + 1);
        *size += part_size;
        walsh_free(part);
    }
    return all;
}

static uint32_t decoded_hash(const struct walsh_tokenizer *t, const int32_t *ids, size_t count,
                             bool skip_special)
{
    size_t size;
    char *text = decode(t, ids, count, skip_special, &size);
    uint32_t hash = folded(text, size);
    walsh_free(text);
    return hash;
}

/* Encode the hard strings, decode what came out, as a whole and by stream. */
static void check_strings(const struct walsh_tokenizer *t, const char *name, struct reader *expected,
                          unsigned *left_out)
{
    struct reader strings = reader_open("hard_strings.bin");
    for (unsigned i = 0; i < STRINGS; i++) {
        struct hard_string s = next_hard_string(&strings);
        uint32_t ids_hash = reader_u32(expected), text_hash = reader_u32(expected);
        *left_out += ids_hash == 0;
        if (ids_hash == 0) continue;
        size_t count, size, streamed_size;
        int32_t *ids = encode(t, s.text, s.size, WALSH_ENCODE_SPECIAL, &count);
        if (folded(ids, count * sizeof *ids) != ids_hash)
            fail_msg("variant %s, ids of hard string %u", name, i);
        char *text = decode(t, ids, count, false, &size), *streamed = stream(t, ids, count, &streamed_size);
        if (folded(text, size) != text_hash) fail_msg("variant %s, text of hard string %u", name, i);
        /* A vocabulary that lacks some bytes makes runs that are not well-formed. */
        if (!strstr(name, "some_bytes") && (size != streamed_size || memcmp(text, streamed, size) != 0))
            fail_msg("variant %s, stream of hard string %u", name, i);
        walsh_free(text);
        free(streamed);
        walsh_free(ids);
    }
    walsh_file_close(&strings.file);
}

static uint64_t draw_state;

static uint64_t below(uint64_t n)
{
    draw_state = draw_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (draw_state >> 33) % n;
}

/* A list of ids as the fixture's tool draws it. */
static size_t draw(int32_t ids[64], size_t vocabulary)
{
    static const struct {
        unsigned count;
        uint8_t bytes[4];
    } characters[] = {{2, {0xc3, 0xa9}}, {4, {0xf0, 0x9f, 0x98, 0x80}}, {1, {0x41}}, {2, {0xe2, 0x82}}};
    size_t count = 0;
    for (uint64_t parts = below(12); parts > 0; parts--) {
        uint64_t kind = below(4);
        if (kind == 0) {
            uint64_t c = below(4);
            for (unsigned i = 0; i < characters[c].count; i++) ids[count++] = 3 + characters[c].bytes[i];
        } else if (kind == 1 && below(4) == 0) {
            ids[count++] = 3 + (int32_t)below(256);
        } else {
            ids[count++] = (int32_t)below(vocabulary);
        }
    }
    return count;
}

static void test_families(void **state)
{
    (void)state;
    struct reader expected = reader_open("families.bin");
    const char *name;
    json_t *variant;
    unsigned left_out = 0, variants = 0;
    json_object_foreach(json_object_get(fixture, "variants"), name, variant)
    {
        size_t vocabulary;
        struct walsh_tokenizer *t = open_variant(variant, &vocabulary);
        check_strings(t, name, &expected, &left_out);
        draw_state = 1;
        for (unsigned i = 0; i < LISTS; i++) {
            int32_t ids[64];
            size_t count = draw(ids, vocabulary);
            for (int skip = 0; skip < 2; skip++)
                if (decoded_hash(t, ids, count, skip) != reader_u32(&expected))
                    fail_msg("variant %s, text of list %u, skip_special %d", name, i, skip);
        }
        walsh_tokenizer_close(&t);
        variants++;
    }
    assert_true(variants >= 30);
    assert_true(left_out < 100);
    reader_close(&expected);
}

static struct walsh_tokenizer *open_named(const char *name)
{
    size_t vocabulary;
    const json_t *variant = json_object_get(json_object_get(fixture, "variants"), name);
    assert_non_null(variant);
    return open_variant(variant, &vocabulary);
}

static void expect_parts(const struct walsh_tokenizer *t, const int32_t *ids, const char *const *parts,
                         size_t count)
{
    struct walsh_decode_stream s;
    walsh_decode_stream_init(&s, t, true);
    for (size_t i = 0; i <= count; i++) {
        char *text;
        size_t size;
        enum walsh_status status = i < count ? walsh_decode_stream_next(&s, ids[i], &text, &size, NULL)
                                             : walsh_decode_stream_finish(&s, &text, &size, NULL);
        assert_int_equal(status, WALSH_OK);
        assert_string_equal(text, parts[i]);
        walsh_free(text);
    }
}

/* What is shown with each token: the first space goes, bytes wait for their character, a special token shows
 * nothing, and a broken run gives U+FFFD from the fault on. */
static void test_stream(void **state)
{
    (void)state;
    struct walsh_tokenizer *t = open_named("llama");
    const int32_t the = walsh_tokenizer_find(t, "\xe2\x96\x81the"), s = walsh_tokenizer_find(t, "s");
    assert_true(the > 0 && s > 0);
    const int32_t whole[] = {1, the, 3 + 0xf0, 3 + 0x9f, 3 + 0x98, 3 + 0x80, the, 3 + 0xc3, 2, 3 + 0xa9, s};
    static const char *const parts[] = {"",     "the", "", "",         "",  "\xf0\x9f\x98\x80",
                                        " the", "",    "", "\xc3\xa9", "s", ""};
    expect_parts(t, whole, parts, 11);
    const int32_t broken[] = {3 + 0x41, 3 + 0xe2, 3 + 0x41, 3 + 0x42, s, 3 + 0xe2, 3 + 0x82};
    static const char *const broken_parts[] = {"A", "", "\xef\xbf\xbd\xef\xbf\xbd", "\xef\xbf\xbd", "s",
                                               "",  "", "\xef\xbf\xbd\xef\xbf\xbd"};
    expect_parts(t, broken, broken_parts, 7);
    walsh_tokenizer_close(&t);
}

/* Merging and cutting one piece of half a megabyte must not be quadratic. */
static void test_long_piece(void **state)
{
    (void)state;
    static const char *const names[] = {"llama", "unigram_bytes"};
    const size_t size = 500000;
    char *text = malloc(size);
    assert_non_null(text);
    for (size_t i = 0; i < size; i++) text[i] = "the whale "[i % 10];
    for (size_t n = 0; n < 2; n++) {
        struct walsh_tokenizer *t = open_named(names[n]);
        size_t count, back_size;
        int32_t *ids = encode(t, text, size, 0, &count);
        char *back = decode(t, ids, count, false, &back_size);
        assert_int_equal(back_size, size);
        assert_memory_equal(back, text, size);
        walsh_free(back);
        walsh_free(ids);
        walsh_tokenizer_close(&t);
    }
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_families),
        cmocka_unit_test(test_stream),
        cmocka_unit_test(test_long_piece),
    };
    return cmocka_run_group_tests_name("text_families", tests, setup, teardown);
}
