/* Other tokenizer.json files against the `tokenizers` package: split behaviours, prefixes, processors, added
 * tokens, and every assigned code point through several patterns. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <jansson.h>

#include "unit/temporary.h"
#include "unit/text_fixtures.h"
#include "unit/share.h"

static json_t *small, *variants; /* as in the fixtures */

static json_t *read_json(const char *name)
{
    struct reader r = reader_open(name);
    json_t *root = json_loadb((const char *)r.at, r.file.size, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(root);
    walsh_file_close(&r.file);
    return root;
}

static int setup(void **state)
{
    small = read_json("small.json");
    variants = read_json("variants.json");
    return temporary_make(state);
}

static int teardown(void **state)
{
    json_decref(small);
    json_decref(variants);
    return temporary_remove(state);
}

/* Ids 3i + 7, without the letters qzQZ and every merge that needs them. */
static void put_holes(json_t *model)
{
    static const char letters[] = "qzQZ";
    json_t *vocab = json_object(), *merges = json_array(), *value;
    const char *token;
    size_t i;
    json_object_foreach(json_object_get(model, "vocab"), token, value)
    {
        if (strpbrk(token, letters)) continue;
        json_object_set_new(vocab, token, json_integer(3 * json_integer_value(value) + 7));
    }
    json_array_foreach(json_object_get(model, "merges"), i, value)
    {
        if (strpbrk(json_string_value(json_array_get(value, 0)), letters)) continue;
        if (strpbrk(json_string_value(json_array_get(value, 1)), letters)) continue;
        json_array_append(merges, value);
    }
    json_object_set_new(model, "vocab", vocab);
    json_object_set_new(model, "merges", merges);
}

static void put_merges_as_text(json_t *model)
{
    json_t *merges = json_array(), *value;
    size_t i;
    json_array_foreach(json_object_get(model, "merges"), i, value)
    {
        char text[256];
        snprintf(text, sizeof text, "%s %s", json_string_value(json_array_get(value, 0)),
                 json_string_value(json_array_get(value, 1)));
        json_array_append_new(merges, json_string(text));
    }
    json_object_set_new(model, "merges", merges);
}

/* small.json with what the variant puts in its place, opened from a directory of its own. */
static struct walsh_tokenizer *open_variant(const char *name)
{
    const json_t *variant = json_object_get(variants, name);
    assert_non_null(variant);
    json_t *root = json_deep_copy(small), *model = json_object_get(root, "model"), *value;
    const char *key;
    json_object_foreach((json_t *)(uintptr_t)variant, key, value)
    {
        if (strcmp(key, "model") == 0)
            json_object_update(model, value);
        else if (strcmp(key, "vocab") == 0)
            put_holes(model);
        else if (strcmp(key, "merges_as_text") == 0)
            put_merges_as_text(model);
        else
            json_object_set(root, key, value);
    }
    const char *directory = temporary_path(name);
    assert_int_equal(mkdir(directory, 0700), 0);
    char path[512];
    snprintf(path, sizeof path, "%s/tokenizer.json", directory);
    assert_int_equal(json_dump_file(root, path, JSON_COMPACT), 0);
    json_decref(root);
    struct walsh_tokenizer *t = open_tokenizer(directory);
    remove(path);
    assert_int_equal(rmdir(directory), 0);
    return t;
}

static uint32_t folded(uint64_t hash)
{
    uint32_t f = (uint32_t)(hash >> 32) ^ (uint32_t)hash;
    return f ? f : 1;
}

static void test_variants(void **state)
{
    (void)state;
    struct reader expected = reader_open("variants.bin");
    const char *name;
    json_t *value;
    unsigned left_out = 0;
    json_object_foreach(variants, name, value)
    {
        struct walsh_tokenizer *t = open_variant(name);
        struct reader strings = reader_open("hard_strings.bin");
        for (unsigned i = 0; i < 1000; i++) {
            struct hard_string s = next_hard_string(&strings);
            uint32_t hash = reader_u32(&expected);
            size_t count;
            left_out += hash == 0;
            if (test_small() && i % 10 != 0) continue;
            if (hash && folded(encode_hash(t, s.text, s.size, WALSH_ENCODE_SPECIAL, &count)) != hash)
                fail_msg("variant %s, hard string %u", name, i);
        }
        walsh_file_close(&strings.file);
        walsh_tokenizer_close(&t);
    }
    assert_true(left_out < 20);
    reader_close(&expected);
}

static size_t put_utf8(char *out, uint32_t c)
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    size_t size = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = size; --i > 0; c >>= 6) out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)((0xf00u >> size & 0xf0) | c);
    return size;
}

/* Append the code point among neighbours of every class. */
static size_t sweep_text(char *out, uint32_t c)
{
    size_t size = 0;
    for (const char *p = "a@1@ @\n@.@'@@a @1\n"; *p; p++) {
        if (*p == '@')
            size += put_utf8(out + size, c);
        else
            out[size++] = *p;
    }
    return size;
}

static void test_code_points(void **state)
{
    (void)state;
    static const char *const swept[] = {"llama3", "gpt2", "cased", "punctuated", "classes", "scripts"};
    struct reader r = reader_open("code_points.bin");
    uint32_t ranges = reader_u32(&r);
    const uint8_t *list = reader_take(&r, ranges * 2 * sizeof(uint32_t));
    for (size_t v = 0; v < sizeof swept / sizeof *swept; v++) {
        struct walsh_tokenizer *t = open_variant(swept[v]);
        char block[64 * 64];
        size_t size = 0, count, points = 0;
        for (uint32_t i = 0; i < ranges; i++) {
            uint32_t range[2];
            memcpy(range, list + i * sizeof range, sizeof range);
            for (uint32_t c = range[0]; c <= range[1]; c++) {
                size += sweep_text(block + size, c);
                bool last = i + 1 == ranges && c == range[1];
                if (++points % 64 != 0 && !last) continue;
                const uint32_t wanted = reader_u32(&r);
                /* every tenth block of the sweep shows each script */
                if (!(test_small() && points / 64 % 10 != 0) &&
                    folded(encode_hash(t, block, size, 0, &count)) != wanted)
                    fail_msg("variant %s, the 64 code points up to U+%04X", swept[v], c);
                size = 0;
            }
        }
        walsh_tokenizer_close(&t);
    }
    reader_close(&r);
}

/* Special tokens that a template adds, and the decoder that puts spaces between. */
static void test_template_and_decoder(void **state)
{
    (void)state;
    struct walsh_tokenizer *t = open_variant("template");
    size_t count, size;
    int32_t *ids = encode(t, "a", 1, WALSH_ENCODE_SPECIAL, &count);
    static const int32_t expected[] = {3, 0x61, 5, 4, 3};
    assert_int_equal(count, 5);
    assert_memory_equal(ids, expected, sizeof expected);
    walsh_free(ids);
    ids = encode(t, "a", 1, 0, &count);
    assert_int_equal(count, 1);
    walsh_free(ids);
    walsh_tokenizer_close(&t);

    t = open_variant("no_decoder");
    ids = encode(t, "x[A] y<mask>", 12, 0, &count);
    char *text = decode(t, ids, count, false, &size);
    assert_string_equal(text, "x [A] y <mask>");
    walsh_free(text);
    text = decode(t, ids, count, true, &size);
    assert_string_equal(text, "x [A] y");
    walsh_free(text);
    walsh_free(ids);
    walsh_tokenizer_close(&t);
}

static bool is_special(int32_t id)
{
    static const int32_t ids[] = {1658, 1067, 1274, 1275, 1255}; /* of the variant "qwen" */
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++)
        if (ids[i] == id) return true;
    return false;
}

static size_t count_special(const int32_t *ids, size_t count)
{
    size_t special = 0;
    for (size_t i = 0; i < count; i++) special += is_special(ids[i]);
    return special;
}

/* What users wrote may hold texts of special tokens, whole, cut and within each other, as they are written
 * and as a normalizer would make them: behind guards they are text, and the tokens around them are tokens. */
static void test_guards(void **state)
{
    (void)state;
    static const char *const parts[] = {"<|im_end|>", "<|im_start|>", "<mask>", "[ABC]", "__x__", "[AB]",
                                        "<|im_",      "end|>",        "_",      " ",     "\n",    "word",
                                        "e\xcc\x81",  "\xef\xb7\x90", "x",      "<",     "[A"};
    struct walsh_tokenizer *t = open_variant("qwen");
    struct walsh_error err;
    size_t forged = 0;
    print_message("seed 7\n");
    srand(7);
    for (unsigned round = 0; round < 3000; round++) {
        char user[400] = "", text[2000];
        size_t size, count, special_count;
        for (int n = 1 + rand() % 8; n > 0; n--)
            strcat(user, parts[(size_t)rand() % (sizeof parts / sizeof *parts)]);
        char *guarded;
        assert_int_equal(walsh_tokenizer_guard(t, user, strlen(user), &guarded, &size, &err), WALSH_OK);
        assert_int_equal(strlen(guarded), size);
        int32_t *ids = encode(t, user, strlen(user), 0, &special_count);
        forged += count_special(ids, special_count) > 0;
        walsh_free(ids);
        /* by itself, and between tokens of a template's */
        ids = encode(t, guarded, size, WALSH_ENCODE_GUARDED, &count);
        assert_int_equal(count_special(ids, count), 0);
        walsh_free(ids);
        snprintf(text, sizeof text, "<|im_start|>%s<|im_end|>\n", guarded);
        ids = encode(t, text, strlen(text), WALSH_ENCODE_GUARDED, &count);
        assert_int_equal(count_special(ids, count), 2);
        assert_int_equal(ids[0], 1658);
        walsh_free(ids);
        /* without the guards the text is the user's again, but for guards of his own */
        size = walsh_tokenizer_unguard(guarded, size);
        if (!strstr(user, WALSH_GUARD)) assert_string_equal(guarded, user);
        assert_null(strstr(guarded, WALSH_GUARD));
        assert_int_equal(strlen(guarded), size);
        walsh_free(guarded);
    }
    assert_true(forged > 1000);
    walsh_tokenizer_close(&t);
}

/* Where no special token is looked for in normal forms, guarded texts are encoded as WALSH_ENCODE_PLAIN does.
 */
static void test_guards_change_nothing_else(void **state)
{
    (void)state;
    static const char *const parts[] = {"<|im_end|>", "<|endoftext|>", "<|im_", "end|>", " the", "sea",
                                        "\n",         "\xc3\xa9",      "  ",    "<"};
    struct walsh_tokenizer *t = open_tokenizer(WALSH_SOURCE_DIR "/models/bookworm-8m");
    struct walsh_error err;
    print_message("seed 8\n");
    srand(8);
    for (unsigned round = 0; round < 1000; round++) {
        char user[400] = "", *guarded;
        size_t size, count, plain_count;
        for (int n = 1 + rand() % 12; n > 0; n--)
            strcat(user, parts[(size_t)rand() % (sizeof parts / sizeof *parts)]);
        assert_int_equal(walsh_tokenizer_guard(t, user, strlen(user), &guarded, &size, &err), WALSH_OK);
        int32_t *ids = encode(t, guarded, size, WALSH_ENCODE_GUARDED, &count);
        int32_t *plain = encode(t, user, strlen(user), WALSH_ENCODE_PLAIN, &plain_count);
        assert_int_equal(plain_count, count);
        assert_memory_equal(plain, ids, count * sizeof *ids);
        walsh_free(plain);
        walsh_free(ids);
        walsh_free(guarded);
    }
    walsh_tokenizer_close(&t);
}

/* A hole is no token. */
static void test_holes(void **state)
{
    (void)state;
    struct walsh_tokenizer *t = open_variant("holes");
    struct walsh_error err = {0};
    const int32_t hole = 8;
    char *text;
    size_t size;
    assert_int_equal(walsh_tokenizer_decode(t, &hole, 1, false, &text, &size, &err), WALSH_E_ARGUMENT);
    char message[100];
    snprintf(message, sizeof message, "token id 8 is not in the vocabulary of %zu", walsh_tokenizer_size(t));
    assert_string_equal(err.message, message);
    walsh_tokenizer_close(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_variants),
        cmocka_unit_test(test_code_points),
        cmocka_unit_test(test_template_and_decoder),
        cmocka_unit_test(test_guards),
        cmocka_unit_test(test_guards_change_nothing_else),
        cmocka_unit_test(test_holes),
    };
    return cmocka_run_group_tests_name("text_variants", tests, setup, teardown);
}
