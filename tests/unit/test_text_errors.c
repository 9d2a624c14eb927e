/* Bad tokenizer files: each with its exact message. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>

#include "unit/temporary.h"
#include "unit/text_fixtures.h"

#define BYTE_LEVEL "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}"
#define MODEL "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]}"
#define REST(key, value) "{\"" key "\":" value ",\"pre_tokenizer\":" BYTE_LEVEL ",\"model\":" MODEL "}"
#define WITH_MODEL(model) "{\"pre_tokenizer\":" BYTE_LEVEL ",\"model\":" model "}"
#define WITH_SPLIT(part)                                                                                     \
    "{\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[" part "," BYTE_LEVEL                      \
    "]},\"model\":" MODEL "}"
#define WITH_ADDED(list) REST("added_tokens", "[" list "]")
#define SINGLE(pieces, tokens)                                                                               \
    REST("post_processor",                                                                                   \
         "{\"type\":\"TemplateProcessing\",\"single\":[" pieces "],\"special_tokens\":{" tokens "}}")
#define PIECE_A "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}"

/* Open a directory with these two files (NULL: absent) and compare what is said. */
static void expect(const char *tokenizer, const char *config, enum walsh_status status, const char *message)
{
    struct walsh_tokenizer *t;
    struct walsh_error err = {0};
    const char *paths[2] = {temporary_path("tokenizer.json"), temporary_path("tokenizer_config.json")};
    const char *texts[2] = {tokenizer, config};
    for (int i = 0; i < 2; i++)
        if (texts[i])
            assert_int_equal(walsh_file_write(paths[i], texts[i], strlen(texts[i]), NULL), WALSH_OK);
    enum walsh_status found = walsh_tokenizer_open(temporary_directory, &t, &err);
    for (int i = 0; i < 2; i++) remove(paths[i]);
    if (status == WALSH_OK) {
        if (found != WALSH_OK) fail_msg("%s", err.message);
        walsh_tokenizer_close(&t);
        return;
    }
    assert_string_equal(without_directory(err.message), message);
    assert_int_equal(found, status);
    assert_null(t);
}

static void expect_format(const char *tokenizer, const char *message)
{
    char whole[512];
    snprintf(whole, sizeof whole, "DIR/tokenizer.json: %s", message);
    expect(tokenizer, NULL, WALSH_E_FORMAT, whole);
}

static void expect_unsupported(const char *tokenizer, const char *message)
{
    char whole[512];
    snprintf(whole, sizeof whole, "DIR/tokenizer.json: %s", message);
    expect(tokenizer, NULL, WALSH_E_UNSUPPORTED, whole);
}

static void test_file(void **state)
{
    (void)state;
    expect(REST("normalizer", "null"), NULL, WALSH_OK, NULL);
    expect(NULL, NULL, WALSH_E_NOT_FOUND,
           "DIR/tokenizer.json: no such file (a model directory needs its tokenizer.json)");
    expect_format("", "line 1: '[' or '{' expected near end of file");
    expect_format("{\"model\":\n{\"type\":", "line 2: unexpected token near end of file");
    expect_format("[1]", "found a JSON array, expected an object");
    expect_format(REST("normalizer", "null") "x", "line 1: end of file expected near 'x'");
    expect_format("{\"model\":1,\"model\":2}", "line 1: duplicate object key near '\"model\"'");
    expect_format(WITH_MODEL("{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"a\":2},\"merges\":[]}"),
                  "line 1: duplicate object key near '\"a\"'");
    expect_format("{\"a\":\"\xff\"}", "line 1: unable to decode byte 0xff near '\"'");
    expect_format("{\"a\":\"\\u0000\"}",
                  "line 1: \\u0000 is not allowed without JSON_ALLOW_NUL near '\"\\u0000\"'");
    expect_unsupported(REST("version", "\"2.0\""), "version \"2.0\" is not supported (known: 1.0)");
}

/* Every truncation of a whole file is refused, and nothing leaks or reads beyond it. */
static void test_truncated(void **state)
{
    (void)state;
    static const char text[] = SINGLE("{\"SpecialToken\":{\"id\":\"b\"}}," PIECE_A, "\"b\":{\"ids\":[1]}");
    expect(text, NULL, WALSH_OK, NULL);
    const char *path = temporary_path("tokenizer.json");
    for (size_t size = 0; size < strlen(text); size++) {
        struct walsh_tokenizer *t;
        assert_int_equal(walsh_file_write(path, text, size, NULL), WALSH_OK);
        assert_int_equal(walsh_tokenizer_open(temporary_directory, &t, NULL), WALSH_E_FORMAT);
        assert_null(t);
    }
    remove(path);
}

static void test_nesting(void **state)
{
    (void)state;
    char *deep = malloc(1000001);
    assert_non_null(deep);
    memset(deep, '[', 1000000);
    deep[1000000] = '\0';
    expect_format(deep, "line 1: maximum parsing depth reached near '['");
    free(deep);

    char sequences[2000] = "";
    for (int i = 0; i < 9; i++) strcat(sequences, "{\"type\":\"Sequence\",\"pretokenizers\":[");
    strcat(sequences, BYTE_LEVEL);
    for (int i = 0; i < 9; i++) strcat(sequences, "]}");
    char whole[4000];
    snprintf(whole, sizeof whole, "{\"pre_tokenizer\":%s,\"model\":%s}", sequences, MODEL);
    expect_format(whole, "pre_tokenizer: sequences are nested more than 8 deep");
}

static void test_model(void **state)
{
    (void)state;
    expect_format("{\"pre_tokenizer\":" BYTE_LEVEL "}", "model: found nothing, expected an object");
    expect_unsupported(WITH_MODEL("{\"type\":\"WordPiece\",\"vocab\":{}}"),
                       "model type \"WordPiece\" is not supported (known: BPE, Unigram)");
    expect_unsupported(WITH_MODEL("{\"type\":\"Unigram\",\"vocab\":[]}"),
                       "a Unigram model behind ByteLevel is not supported");
    expect_format(WITH_MODEL("{\"type\":3}"), "model.type: found integer, expected a string");
    expect_format(WITH_MODEL("{\"vocab\":[],\"merges\":[]}"), "model.vocab: found array, expected an object");
    expect_format(WITH_MODEL("{\"vocab\":{\"a\":0}}"), "model.merges: found nothing, expected an array");
    expect_format(WITH_MODEL("{\"vocab\":{},\"merges\":[]}"), "the vocabulary is empty");
    expect(WITH_MODEL("{\"vocab\":{\"a\":0},\"merges\":[],\"unk_token\":null,\"dropout\":0}"), NULL, WALSH_OK,
           NULL);
    expect_unsupported(WITH_MODEL("{\"vocab\":{\"a\":0},\"merges\":[],\"dropout\":0.1}"),
                       "model.dropout is not supported: encoding would be random");
    expect_unsupported(WITH_MODEL("{\"vocab\":{\"a\":0},\"merges\":[],\"continuing_subword_prefix\":\"##\"}"),
                       "model.continuing_subword_prefix \"##\" is not supported");
    expect_unsupported(WITH_MODEL("{\"vocab\":{\"a\":0},\"merges\":[],\"end_of_word_suffix\":\"</w>\"}"),
                       "model.end_of_word_suffix \"</w>\" is not supported");
    expect_unsupported(WITH_MODEL("{\"vocab\":{\"a\":0},\"merges\":[],\"unk_token\":\"a\"}"),
                       "model.unk_token is not supported in a vocabulary that lacks bytes (0x00)");
    expect_unsupported(WITH_MODEL("{\"vocab\":{\"a\":0},\"merges\":[],\"byte_fallback\":true}"),
                       "model.byte_fallback is not supported in a vocabulary that lacks bytes (0x00)");
    expect_format(WITH_MODEL("{\"vocab\":{\"a\":0},\"merges\":[],\"ignore_merges\":\"yes\"}"),
                  "model.ignore_merges: found string, expected a boolean");
}

static void test_ids(void **state)
{
    (void)state;
    expect_format(WITH_MODEL("{\"vocab\":{\"a\":-1},\"merges\":[]}"),
                  "model.vocab: an id: found -1, expected 0 to 16777215");
    expect_format(WITH_MODEL("{\"vocab\":{\"a\":16777216},\"merges\":[]}"),
                  "model.vocab: an id: found 16777216, expected 0 to 16777215");
    expect_format(WITH_MODEL("{\"vocab\":{\"a\":0.5},\"merges\":[]}"),
                  "model.vocab: an id: found real number, expected an integer");
    expect_format(WITH_MODEL("{\"vocab\":{\"a\":99999999999999999999},\"merges\":[]}"),
                  "line 1: too big integer near '99999999999999999999'");
    expect_format(WITH_MODEL("{\"vocab\":{\"a\":16777215},\"merges\":[]}"),
                  "token id 16777215 is out of range for 1 tokens");
    expect_format(WITH_MODEL("{\"vocab\":{\"a\":5,\"b\":5},\"merges\":[]}"),
                  "tokens \"a\" and \"b\" have the same id 5");
}

static void test_merges(void **state)
{
    (void)state;
    expect(WITH_MODEL("{\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[[\"a\",\"b\"]]}"), NULL, WALSH_OK,
           NULL);
    expect_format(WITH_MODEL("{\"vocab\":{\"a\":0,\"b\":1},\"merges\":[\"a c\"]}"),
                  "model.merges[0]: token \"c\" is not in the vocabulary");
    expect_format(WITH_MODEL("{\"vocab\":{\"a\":0,\"b\":1},\"merges\":[\"a b\"]}"),
                  "model.merges[0]: token \"ab\" is not in the vocabulary");
    expect_format(WITH_MODEL("{\"vocab\":{\"a\":0,\"aa\":1},\"merges\":[\"a a\",[\"b\",\"a\"]]}"),
                  "model.merges[1]: token \"b\" is not in the vocabulary");
    expect_format(WITH_MODEL("{\"vocab\":{\"a\":0},\"merges\":[\"a\"]}"),
                  "model.merges[0]: found \"a\", expected two tokens");
    expect_format(WITH_MODEL("{\"vocab\":{\"a\":0},\"merges\":[\"a a a\"]}"),
                  "model.merges[0]: found \"a a a\", expected two tokens");
    expect_format(WITH_MODEL("{\"vocab\":{\"a\":0},\"merges\":[[\"a\"]]}"),
                  "model.merges[0]: found array, expected two tokens");
    expect_format(WITH_MODEL("{\"vocab\":{\"a\":0},\"merges\":[7]}"),
                  "model.merges[0]: found integer, expected two tokens");
}

static void test_added_tokens(void **state)
{
    (void)state;
    expect(WITH_ADDED("{\"id\":3,\"content\":\"<x>\"},{\"id\":4,\"content\":\"\"}"), NULL, WALSH_OK, NULL);
    expect_format(REST("added_tokens", "{}"), "added_tokens: found object, expected an array");
    expect_format(WITH_ADDED("3"), "added_tokens: id: found nothing, expected an integer");
    expect_format(WITH_ADDED("{\"id\":-3,\"content\":\"<x>\"}"),
                  "added_tokens: id: found -3, expected 0 to 16777215");
    expect_format(WITH_ADDED("{\"id\":3}"), "added_tokens.content: found nothing, expected a string");
    expect_format(WITH_ADDED("{\"id\":3,\"content\":\"x\",\"lstrip\":1}"),
                  "added_tokens.lstrip: found integer, expected a boolean");
    expect_format(WITH_ADDED("{\"id\":1,\"content\":\"a\"}"),
                  "added token \"a\" has id 1, but id 0 in the vocabulary");
    expect_format(WITH_ADDED("{\"id\":1,\"content\":\"<x>\"}"),
                  "tokens \"b\" and \"<x>\" have the same id 1");
    expect_format(WITH_ADDED("{\"id\":3,\"content\":\"<x>\",\"special\":true},{\"id\":3,\"content\":\"<x>\","
                             "\"special\":true}"),
                  "two added tokens match the same text \"<x>\"");
    char *text = calloc(1, 6000);
    assert_non_null(text);
    strcpy(text, "{\"added_tokens\":[{\"id\":3,\"content\":\"");
    memset(text + strlen(text), 'x', 4097);
    strcat(text, "\"}],\"pre_tokenizer\":" BYTE_LEVEL ",\"model\":" MODEL "}");
    expect_format(text, "added token 3: 4097 bytes long, at most 4096 are supported");
    free(text);
}

static void test_parts(void **state)
{
    (void)state;
    expect_unsupported(REST("normalizer", "{\"type\":\"Precompiled\"}"),
                       "normalizer type \"Precompiled\" is not supported (known: Lowercase, NFC, NFD, NFKC, "
                       "NFKD, Prepend, Replace, Sequence, Strip, null)");
    expect_format(REST("normalizer", "{\"type\":\"Replace\",\"pattern\":{\"String\":\"\"},\"content\":\"\"}"),
                  "normalizer Replace.pattern: expected {\"Regex\": ...} or {\"String\": ...}");
    expect_format(REST("normalizer", "{\"type\":\"Prepend\"}"),
                  "normalizer Prepend.prepend: found nothing, expected a string");
    expect_format(REST("normalizer", "{}"), "normalizer.type: found nothing, expected a string");
    expect_format(REST("normalizer", "\"NFC\""), "normalizer: found string, expected an object");
    expect("{\"pre_tokenizer\":null,\"model\":" MODEL "}", NULL, WALSH_OK, NULL);
    expect_unsupported("{\"pre_tokenizer\":{\"type\":\"BertPreTokenizer\"},\"model\":" MODEL "}",
                       "pre_tokenizer type \"BertPreTokenizer\" is not supported (known: ByteLevel, Digits, "
                       "Metaspace, Punctuation, Sequence, Split, WhitespaceSplit, null)");
    expect_format("{\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"__\"},\"model\":" MODEL "}",
                  "pre_tokenizer Metaspace.replacement: found \"__\", expected one character");
    expect_unsupported("{\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":"
                       "\"last\"},\"model\":" MODEL "}",
                       "pre_tokenizer Metaspace: prepend_scheme \"last\" is not supported (known: always, "
                       "first, never)");
    expect_unsupported(WITH_SPLIT(BYTE_LEVEL),
                       "pre_tokenizer: \"ByteLevel\" behind ByteLevel is not supported");
    expect_unsupported(WITH_SPLIT("{\"type\":\"Split\",\"behavior\":\"Joined\"}"),
                       "pre_tokenizer Split: behavior \"Joined\" is not supported");
    expect_format(WITH_SPLIT("{\"type\":\"Split\",\"behavior\":\"Isolated\",\"pattern\":\"a\"}"),
                  "pre_tokenizer Split.pattern: expected {\"Regex\": ...} or {\"String\": ...}");
    expect_unsupported(
        WITH_SPLIT("{\"type\":\"Split\",\"behavior\":\"Isolated\",\"pattern\":{\"Regex\":\"\\\\h\"}}"),
        "regex construct \"\\h\" is not supported, in \"\\h\"");
    expect_format(WITH_SPLIT("{\"type\":\"Split\",\"behavior\":\"Isolated\",\"pattern\":{\"Regex\":\"(a\"}}"),
                  "bad regex \"(a\": missing closing parenthesis");
    expect_unsupported(REST("decoder", "{\"type\":\"WordPiece\"}"),
                       "decoder type \"WordPiece\" is not supported (known: ByteFallback, ByteLevel, Fuse, "
                       "Metaspace, Replace, Sequence, Strip, null)");
    char splits[4000] = "{\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[";
    for (int i = 0; i < 17; i++) strcat(splits, "{\"type\":\"Digits\"},");
    strcat(splits, BYTE_LEVEL "]},\"model\":" MODEL "}");
    expect_format(splits, "pre_tokenizer: more than 16 splits");
}

#define STRIP(stop) "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":" stop "}"
#define REPLACE(old) "{\"type\":\"Replace\",\"pattern\":{\"String\":\"" old "\"},\"content\":\"\"}"
#define DECODERS(list) REST("decoder", "{\"type\":\"Sequence\",\"decoders\":[" list "]}")

/* Decoders in an order that a stream could not follow. */
static void test_decoders(void **state)
{
    (void)state;
    expect(DECODERS(REPLACE("ab") ",{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"}," STRIP("0")), NULL,
           WALSH_OK, NULL);
    expect(DECODERS(""), NULL, WALSH_OK, NULL);
    expect_unsupported(DECODERS("{\"type\":\"Fuse\"}," REPLACE("ab")),
                       "decoder: this \"Replace\" behind Fuse is not supported");
    expect_unsupported(DECODERS("{\"type\":\"Fuse\"}," STRIP("1")),
                       "decoder: this \"Strip\" behind Fuse is not supported");
    expect_unsupported(DECODERS("{\"type\":\"ByteFallback\"}," STRIP("0")),
                       "decoder: this \"Strip\" behind ByteFallback is not supported");
    expect_unsupported(DECODERS("{\"type\":\"Fuse\"}," STRIP("0") "," STRIP("0")),
                       "decoder: this \"Strip\" behind Fuse is not supported");
    expect_unsupported(DECODERS("{\"type\":\"Fuse\"},{\"type\":\"ByteFallback\"}"),
                       "decoder: this \"ByteFallback\" behind Fuse is not supported");
    expect_unsupported(DECODERS("{\"type\":\"Fuse\"},{\"type\":\"ByteLevel\"}"),
                       "decoder: ByteLevel beside other steps is not supported");
    expect_unsupported(DECODERS("{\"type\":\"ByteLevel\"},{\"type\":\"Fuse\"}"),
                       "decoder: ByteLevel beside other steps is not supported");
    expect_unsupported(
        REST("decoder", "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"a\"},\"content\":\"\"}"),
        "decoder Replace.pattern: only {\"String\": ...} is supported");
    expect_format(REST("decoder", "{\"type\":\"Strip\",\"content\":\" \",\"start\":-1,\"stop\":0}"),
                  "decoder Strip.start: found -1, expected 0 to 65535");
    expect_format(REST("decoder", "{\"type\":\"Strip\",\"content\":\"\",\"start\":1,\"stop\":0}"),
                  "decoder Strip.content: found \"\", expected one character");
}

#define UNIGRAM(rest) "{\"model\":{\"type\":\"Unigram\"," rest "}}"

static void test_unigram(void **state)
{
    (void)state;
    expect(UNIGRAM("\"unk_id\":0,\"vocab\":[[\"a\",-1],[\"\",0],[\"b\",-2.5]]"), NULL, WALSH_OK, NULL);
    expect_format(UNIGRAM("\"vocab\":{}"), "model.vocab: found object, expected an array");
    expect_format(UNIGRAM("\"vocab\":[]"), "model.vocab: 0 tokens, expected 1 to 16777216");
    expect_format(UNIGRAM("\"vocab\":[[\"a\",-1],[\"b\"]]"),
                  "model.vocab[1]: expected a token and its score");
    expect_format(UNIGRAM("\"vocab\":[[\"a\",\"b\"]]"), "model.vocab[0]: expected a token and its score");
    expect_format(UNIGRAM("\"unk_id\":1,\"vocab\":[[\"a\",-1]]"), "model.unk_id: found 1, expected 0 to 0");
    expect_format(UNIGRAM("\"vocab\":[[\"a\",-1],[\"a\",-1]]"), "token \"a\" has two ids, 0 and 1");
    expect_format("{\"model\":{\"vocab\":{\"a\":0},\"merges\":[],\"unk_token\":\"<unk>\"}}",
                  "model.unk_token \"<unk>\" is not in the vocabulary");

    /* without unk_id, text that the vocabulary cannot spell */
    static const char text[] = UNIGRAM("\"vocab\":[[\"a\",-1]]");
    const char *path = temporary_path("tokenizer.json");
    assert_int_equal(walsh_file_write(path, text, strlen(text), NULL), WALSH_OK);
    struct walsh_tokenizer *t = open_tokenizer(temporary_directory);
    struct walsh_error err = {0};
    int32_t *ids;
    size_t count;
    assert_int_equal(walsh_tokenizer_encode(t, "ab", 2, 0, &ids, &count, &err), WALSH_E_FORMAT);
    assert_string_equal(err.message, "the vocabulary has no token for \"b\", and no unk_id");
    assert_null(ids);
    walsh_tokenizer_close(&t);
    remove(path);
}

static void test_post_processor(void **state)
{
    (void)state;
    expect(SINGLE(PIECE_A, ""), NULL, WALSH_OK, NULL);
    expect_unsupported(REST("post_processor", "{\"type\":\"BertProcessing\"}"),
                       "post_processor type \"BertProcessing\" is not supported (known: ByteLevel, Sequence, "
                       "TemplateProcessing, null)");
    expect_format(SINGLE("{\"SpecialToken\":{\"id\":\"x\"}}," PIECE_A, ""),
                  "post_processor: no ids for the special token \"x\"");
    expect_format(SINGLE("{\"SpecialToken\":{\"id\":\"x\"}}," PIECE_A, "\"x\":{\"ids\":[3]}"),
                  "post_processor: an id: found 3, expected 0 to 2");
    expect_format("{\"added_tokens\":[{\"id\":5,\"content\":\"<s>\"}],\"pre_tokenizer\":" BYTE_LEVEL
                  ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{"
                  "\"id\":\"x\"}}," PIECE_A "],\"special_tokens\":{\"x\":{\"ids\":[4]}}},\"model\":" MODEL
                  "}",
                  "post_processor: id 4 is not in the vocabulary");
    expect_format(SINGLE("{\"Sequence\":{\"id\":\"B\"}}", ""),
                  "post_processor.single[0]: expected a SpecialToken or the Sequence \"A\"");
    expect_unsupported(SINGLE(PIECE_A "," PIECE_A, ""),
                       "post_processor.single: 2 sequences are not supported");
    expect_format(REST("post_processor", "{\"type\":\"TemplateProcessing\"}"),
                  "post_processor.single: found nothing, expected an array");
}

static void test_config(void **state)
{
    (void)state;
    static const char good[] = REST("normalizer", "null");
    expect(good, "{\"bos_token\":\"a\",\"eos_token\":{\"content\":\"b\"},\"add_bos_token\":true}", WALSH_OK,
           NULL);
    expect(good, "{\"bos_token\":\"<s>\"}", WALSH_E_FORMAT,
           "DIR/tokenizer_config.json: bos_token: \"<s>\" is not in the vocabulary");
    expect(good, "{\"eos_token\":7}", WALSH_E_FORMAT,
           "DIR/tokenizer_config.json: eos_token: found integer, expected a token");
    expect(good, "{\"add_bos_token\":1}", WALSH_E_FORMAT,
           "DIR/tokenizer_config.json: tokenizer_config.add_bos_token: found integer, expected a boolean");
    expect(good, "{", WALSH_E_FORMAT,
           "DIR/tokenizer_config.json: line 1: string or '}' expected near end of file");
}

/* What tokenizer_config.json and chat_template.jinja add. */
static void test_config_values(void **state)
{
    (void)state;
    static const char good[] = REST("normalizer", "null");
    static const char config[] =
        "{\"bos_token\":\"b\",\"add_bos_token\":true,\"chat_template\":[{\"name\":\"tools\","
        "\"template\":\"T\"},{\"name\":\"default\",\"template\":\"D\"}]}";
    const char *paths[] = {temporary_path("tokenizer.json"), temporary_path("tokenizer_config.json"),
                           temporary_path("chat_template.jinja")};
    assert_int_equal(walsh_file_write(paths[0], good, strlen(good), NULL), WALSH_OK);
    assert_int_equal(walsh_file_write(paths[1], config, strlen(config), NULL), WALSH_OK);
    struct walsh_tokenizer *t = open_tokenizer(temporary_directory);
    assert_string_equal(walsh_tokenizer_chat_template(t), "D");
    size_t count;
    int32_t *ids = encode(t, "ab", 2, WALSH_ENCODE_SPECIAL, &count);
    assert_int_equal(count, 2);
    assert_int_equal(ids[0], 1);
    assert_int_equal(ids[1], 2);
    walsh_free(ids);
    walsh_tokenizer_close(&t);

    assert_int_equal(walsh_file_write(paths[2], "J", 1, NULL), WALSH_OK);
    t = open_tokenizer(temporary_directory);
    assert_string_equal(walsh_tokenizer_chat_template(t), "J");
    walsh_tokenizer_close(&t);
    for (int i = 0; i < 3; i++) remove(paths[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_file),
        cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_nesting),
        cmocka_unit_test(test_model),
        cmocka_unit_test(test_ids),
        cmocka_unit_test(test_merges),
        cmocka_unit_test(test_added_tokens),
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_decoders),
        cmocka_unit_test(test_unigram),
        cmocka_unit_test(test_post_processor),
        cmocka_unit_test(test_config),
        cmocka_unit_test(test_config_values),
    };
    return cmocka_run_group_tests_name("text_errors", tests, temporary_make, temporary_remove);
}
