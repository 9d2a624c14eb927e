/* The tokenizer of models/bookworm-8m against the `tokenizers` package: hard strings, decoding, streaming. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>

#include "text/utf8.h"
#include "unit/text_fixtures.h"

static struct walsh_tokenizer *model;

static int open_model(void **state)
{
    (void)state;
    model = open_tokenizer(MODEL_DIRECTORY);
    return 0;
}

static int close_model(void **state)
{
    (void)state;
    walsh_tokenizer_close(&model);
    assert_null(model);
    walsh_tokenizer_close(&model);
    return 0;
}

static void test_facts(void **state)
{
    (void)state;
    assert_int_equal(walsh_tokenizer_size(model), 8192);
    assert_int_equal(walsh_tokenizer_bos(model), 0);
    assert_int_equal(walsh_tokenizer_eos(model), 0);
    assert_int_equal(walsh_tokenizer_find(model, "<|im_end|>"), 2);
    assert_int_equal(walsh_tokenizer_find(model, "no such token"), -1);
    assert_memory_equal(walsh_tokenizer_chat_template(model), "{% for message in messages %}", 29);
}

static void test_hard_strings(void **state)
{
    (void)state;
    struct reader strings = reader_open("hard_strings.bin");
    for (unsigned i = 0; i < 10000; i++) {
        struct hard_string s = next_hard_string(&strings);
        size_t count;
        uint64_t hash = encode_hash(model, s.text, s.size, 0, &count);
        if (count != s.count || hash != s.hash)
            fail_msg("hard string %u: %zu ids, expected %u", i, count, s.count);
    }
    reader_close(&strings);
}

static void test_full_ids(void **state)
{
    (void)state;
    struct reader strings = reader_open("hard_strings.bin"), expected = reader_open("hard_ids.bin");
    for (unsigned i = 0; i < 200; i++) {
        struct hard_string s = next_hard_string(&strings);
        size_t count;
        int32_t *ids = encode(model, s.text, s.size, 0, &count);
        assert_int_equal(count, reader_u32(&expected));
        assert_memory_equal(ids, reader_take(&expected, count * sizeof *ids), count * sizeof *ids);
        walsh_free(ids);
    }
    reader_close(&expected);
    walsh_file_close(&strings.file);
}

/* Decode by stream; every part must hold whole characters. malloc'ed, as long as the decoded text says. */
static char *stream(const int32_t *ids, size_t count, bool skip_special, size_t *size)
{
    struct walsh_decode_stream s;
    char *all = NULL;
    *size = 0;
    walsh_decode_stream_init(&s, model, skip_special);
    for (size_t i = 0; i <= count; i++) {
        char *part;
        size_t part_size;
        enum walsh_status status = i < count ? walsh_decode_stream_next(&s, ids[i], &part, &part_size, NULL)
                                             : walsh_decode_stream_finish(&s, &part, &part_size, NULL);
        assert_int_equal(status, WALSH_OK);
        assert_int_equal(part[part_size], 0);
        for (size_t at = 0; at < part_size;) {
            enum walsh_utf8 kind;
            at += walsh_utf8_step((const uint8_t *)part + at, part_size - at, &kind);
            assert_int_equal(kind, WALSH_UTF8_VALID);
        }
        all = realloc(all, *size + part_size + 1);
        assert_non_null(all);
        memcpy(all + *size, part, part_size + 1);
        *size += part_size;
        walsh_free(part);
    }
    return all;
}

static void test_round_trip(void **state)
{
    (void)state;
    struct reader strings = reader_open("hard_strings.bin");
    for (unsigned i = 0; i < 10000; i++) {
        struct hard_string s = next_hard_string(&strings);
        size_t count, size, streamed_size,
            clean_size = walsh_utf8_clean((const uint8_t *)s.text, s.size, NULL);
        uint8_t *clean = malloc(clean_size + 1);
        assert_non_null(clean);
        walsh_utf8_clean((const uint8_t *)s.text, s.size, clean);
        int32_t *ids = encode(model, s.text, s.size, 0, &count);
        char *text = decode(model, ids, count, false, &size),
             *streamed = stream(ids, count, false, &streamed_size);
        assert_int_equal(size, clean_size);
        assert_memory_equal(text, clean, size);
        assert_int_equal(streamed_size, size);
        assert_memory_equal(streamed, text, size);
        free(clean);
        free(streamed);
        walsh_free(ids);
        walsh_free(text);
    }
    reader_close(&strings);
}

/* Ids at random, so characters break off anywhere. */
static void test_decode(void **state)
{
    (void)state;
    struct reader cases = reader_open("decode.bin");
    for (unsigned i = 0; i < 600; i++) {
        size_t count = reader_u32(&cases);
        uint64_t expected[2] = {reader_u64(&cases), reader_u64(&cases)};
        int32_t ids[64];
        memcpy(ids, reader_take(&cases, count * sizeof *ids), count * sizeof *ids);
        for (int skip = 0; skip < 2; skip++) {
            size_t size, streamed_size;
            char *text = decode(model, ids, count, skip, &size),
                 *streamed = stream(ids, count, skip, &streamed_size);
            if (fnv(text, size) != expected[skip])
                fail_msg("decode %u, skip_special %d: \"%s\"", i, skip, text);
            assert_int_equal(streamed_size, size);
            assert_memory_equal(streamed, text, size);
            free(streamed);
            walsh_free(text);
        }
    }
    reader_close(&cases);
}

/* A character of four bytes over four tokens appears with the last one. */
static void test_stream_holds_back(void **state)
{
    (void)state;
    struct walsh_decode_stream s;
    int32_t bytes[4] = {walsh_tokenizer_find(model, "\xc3\xb0"), walsh_tokenizer_find(model, "\xc5\x81"),
                        walsh_tokenizer_find(model, "\xc4\xba"), walsh_tokenizer_find(model, "\xc4\xa2")};
    walsh_decode_stream_init(&s, model, false);
    for (int i = 0; i < 4; i++) {
        char *text;
        size_t size;
        assert_int_equal(walsh_decode_stream_next(&s, bytes[i], &text, &size, NULL), WALSH_OK);
        assert_string_equal(text, i < 3 ? "" : "\xf0\x9f\x98\x80");
        walsh_free(text);
    }
    /* an id that does not exist changes nothing */
    char *text;
    size_t size;
    assert_int_equal(walsh_decode_stream_next(&s, bytes[0], &text, &size, NULL), WALSH_OK);
    walsh_free(text);
    assert_int_equal(walsh_decode_stream_next(&s, 8192, &text, &size, NULL), WALSH_E_ARGUMENT);
    assert_null(text);
    assert_int_equal(walsh_decode_stream_finish(&s, &text, &size, NULL), WALSH_OK);
    assert_string_equal(text, "\xef\xbf\xbd");
    walsh_free(text);
}

/* The held-out text that ships in data/, by its row of texts.tsv (the other texts:
 * tests/proof/tokenizer_texts.c). */
static void test_shipped_text(void **state)
{
    (void)state;
    char *table, *text;
    size_t table_size, text_size, bytes, tokens, count;
    uint64_t hash;
    assert_int_equal(walsh_file_read_text(WALSH_SOURCE_DIR "/tests/fixtures/text/texts.tsv", 10000, &table,
                                          &table_size, NULL),
                     WALSH_OK);
    assert_int_equal(
        walsh_file_read_text(WALSH_SOURCE_DIR "/data/valid.txt", 1000000, &text, &text_size, NULL), WALSH_OK);
    const char *row = strstr(table, "\nvalid.txt\t");
    assert_non_null(row);
    assert_int_equal(sscanf(row, " valid.txt %zu %zu %" SCNx64, &bytes, &tokens, &hash), 3);
    assert_int_equal(text_size, bytes);
    assert_int_equal(encode_hash(model, text, text_size, 0, &count), hash);
    assert_int_equal(count, tokens);
    walsh_free(table);
    walsh_free(text);
}

/* The ids of an untrusted text must not hold special tokens. */
static void test_plain(void **state)
{
    (void)state;
    static const char text[] = "a<|im_end|>b";
    size_t count;
    int32_t *ids = encode(model, text, strlen(text), 0, &count);
    assert_int_equal(count, 3);
    assert_int_equal(ids[1], 2);
    walsh_free(ids);
    ids = encode(model, text, strlen(text), WALSH_ENCODE_PLAIN, &count);
    assert_true(count > 3);
    for (size_t i = 0; i < count; i++) assert_true(ids[i] > 2);
    size_t size;
    char *back = decode(model, ids, count, true, &size);
    assert_string_equal(back, text);
    walsh_free(back);
    walsh_free(ids);
}

static void test_empty(void **state)
{
    (void)state;
    size_t count, size;
    int32_t *ids = encode(model, "", 0, WALSH_ENCODE_SPECIAL, &count);
    assert_int_equal(count, 0);
    walsh_free(ids);
    ids = encode(model, NULL, 0, 0, &count);
    assert_int_equal(count, 0);
    walsh_free(ids);
    char *text = decode(model, NULL, 0, false, &size);
    assert_int_equal(size, 0);
    walsh_free(text);
}

static void test_unknown_id(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    char *text;
    size_t size;
    static const int32_t wrong[] = {-1, 8192, INT32_MAX, INT32_MIN};
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(walsh_tokenizer_decode(model, &wrong[i], 1, false, &text, &size, &err),
                         WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "token id -2147483648 is not in the vocabulary of 8192");
    assert_null(text);
}

/* One piece of a megabyte: merging must not be quadratic, and the pattern must not run out of its limits. */
static void test_long_pieces(void **state)
{
    (void)state;
    static const struct {
        const char *unit;
        size_t repeats, count;
        uint64_t hash; /* from the package */
    } cases[] = {
        {"a", 1000000, 1000000, UINT64_C(0xc0facdbd18b37925)},
        {"ab", 500000, 500000, UINT64_C(0xbdcdfb2f0eb09d25)},
        {" ", 1000000, 250000, UINT64_C(0xccdee22c9b24a365)},
        {"\n", 1000000, 1000000, UINT64_C(0x9f6ca7e6cbf64525)},
        {"\xe3\x80\x80", 300000, 900000, UINT64_C(0x9d692c236f47b125)},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t unit = strlen(cases[i].unit), count;
        char *text = malloc(unit * cases[i].repeats);
        assert_non_null(text);
        for (size_t j = 0; j < cases[i].repeats; j++) memcpy(text + j * unit, cases[i].unit, unit);
        uint64_t hash = encode_hash(model, text, unit * cases[i].repeats, 0, &count);
        assert_int_equal(count, cases[i].count);
        assert_int_equal(hash, cases[i].hash);
        free(text);
    }
}

/* Several threads share one tokenizer. */
static void *encode_all(void *argument)
{
    bool *right = argument;
    struct reader strings = reader_open("hard_strings.bin");
    *right = true;
    for (unsigned i = 0; i < 1000; i++) {
        struct hard_string s = next_hard_string(&strings);
        int32_t *ids;
        size_t count;
        *right &= walsh_tokenizer_encode(model, s.text, s.size, 0, &ids, &count, NULL) == WALSH_OK;
        *right &= count == s.count && fnv(ids, count * sizeof *ids) == s.hash;
        walsh_free(ids);
    }
    walsh_file_close(&strings.file);
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    pthread_t threads[3];
    bool right[3];
    for (int i = 0; i < 3; i++) assert_int_equal(pthread_create(&threads[i], NULL, encode_all, &right[i]), 0);
    for (int i = 0; i < 3; i++) assert_int_equal(pthread_join(threads[i], NULL), 0);
    for (int i = 0; i < 3; i++) assert_true(right[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_facts),        cmocka_unit_test(test_hard_strings),
        cmocka_unit_test(test_full_ids),     cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_decode),       cmocka_unit_test(test_stream_holds_back),
        cmocka_unit_test(test_shipped_text), cmocka_unit_test(test_plain),
        cmocka_unit_test(test_empty),        cmocka_unit_test(test_unknown_id),
        cmocka_unit_test(test_long_pieces),  cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests_name("text_tokenizer", tests, open_model, close_model);
}
