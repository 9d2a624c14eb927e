/* libFuzzer target: texts through the tokenizers of the tests' fixtures and of bookworm-8m, to ids and back.
 * The first byte chooses the tokenizer, the second the flags and the way: text to ids and back, or two bytes
 * per id to text. */
#include <jansson.h>

#include "fuzz/fuzz_round_trip.h"

#define MOST_TOKENIZERS 64

static struct fuzz_tokenizer {
    struct walsh_tokenizer *tokenizer;
    bool bytes; /* decode undoes encode for all valid UTF-8 */
} tokenizers[MOST_TOKENIZERS];
static size_t tokenizer_count;

static void add(const char *directory, bool bytes)
{
    struct walsh_error err = {0};
    FUZZ_REQUIRE(tokenizer_count < MOST_TOKENIZERS);
    struct fuzz_tokenizer *t = &tokenizers[tokenizer_count++];
    t->bytes = bytes;
    if (walsh_tokenizer_open(directory, &t->tokenizer, &err) != WALSH_OK) {
        fprintf(stderr, "%s\n", err.message);
        abort();
    }
}

/* A fixture's variants: `root` with the variant's members in place of its own. */
static void add_variants(const json_t *variants, const json_t *small, const json_t *models)
{
    static const char *const byte_level[] = {"llama3", "gpt2", "cased", "isolated_inverted", "classes"};
    const char *name, *key;
    json_t *variant, *value;
    json_object_foreach((json_t *)(uintptr_t)variants, name, variant)
    {
        if (json_object_get(variant, "vocab")) continue; /* another vocabulary, which the unit tests make */
        const char *base = json_string_value(json_object_get(variant, "base"));
        json_t *root = small ? json_deep_copy(small) : json_object();
        if (models) json_object_set_new(root, "model", json_deep_copy(json_object_get(models, base)));
        bool bytes = false;
        for (size_t i = 0; small && i < sizeof byte_level / sizeof *byte_level; i++)
            bytes = bytes || strcmp(name, byte_level[i]) == 0;
        json_object_foreach(variant, key, value)
        {
            if (strcmp(key, "model") == 0)
                json_object_update(json_object_get(root, "model"), value);
            else if (strcmp(key, "merges_as_text") != 0)
                json_object_set(root, key, value);
        }
        FUZZ_REQUIRE(json_dump_file(root, fuzz_path("tokenizer.json"), JSON_COMPACT) == 0);
        json_decref(root);
        add(fuzz_path(""), bytes);
    }
}

static json_t *read_json(const char *name)
{
    json_t *root = json_load_file(fuzz_source(name), JSON_DECODE_ANY, NULL);
    FUZZ_REQUIRE(root);
    return root;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    json_t *small = read_json("tests/fixtures/text/small.json");
    json_t *variants = read_json("tests/fixtures/text/variants.json");
    json_t *families = read_json("tests/fixtures/text/families.json");
    add(fuzz_source("models/bookworm-8m"), true);
    add_variants(variants, small, NULL);
    add_variants(json_object_get(families, "variants"), NULL, json_object_get(families, "models"));
    json_decref(small);
    json_decref(variants);
    json_decref(families);
    return 0;
}

static bool valid_utf8(const uint8_t *data, size_t size)
{
    json_t *string = json_stringn((const char *)data, size);
    json_decref(string);
    return string != NULL;
}

/* Two bytes per id; those outside the vocabulary are errors. */
static void decode_ids(const struct walsh_tokenizer *t, const uint8_t *data, size_t size)
{
    int32_t ids[2048] = {0};
    const size_t count = walsh_min(size / 2, sizeof ids / sizeof *ids);
    struct walsh_error err = {0};
    char *text;
    size_t text_size;
    for (size_t i = 0; i < count; i++) ids[i] = (int16_t)(data[2 * i] | data[2 * i + 1] << 8);
    if (walsh_tokenizer_decode(t, ids, count, false, &text, &text_size, &err) != WALSH_OK) {
        FUZZ_REQUIRE(err.status == WALSH_E_ARGUMENT && err.message[0]);
        return;
    }
    for (size_t i = 0; i < count; i++) FUZZ_REQUIRE(walsh_tokenizer_has(t, ids[i]));
    walsh_free(text);
    free(fuzz_stream(t, ids, count, false, &text_size));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2) return 0;
    const struct fuzz_tokenizer *t = &tokenizers[data[0] % tokenizer_count];
    const unsigned flags = data[1] & (WALSH_ENCODE_SPECIAL | WALSH_ENCODE_PLAIN);
    const bool ids = data[1] & 4;
    data += 2;
    size -= 2;
    if (ids) {
        decode_ids(t->tokenizer, data, size);
        return 0;
    }
    const bool exact = t->bytes && flags == WALSH_ENCODE_PLAIN && valid_utf8(data, size);
    fuzz_round_trip(t->tokenizer, (const char *)data, size, flags, exact ? &exact : NULL);
    return 0;
}
