/* Grammars: random draws under random schemas always give valid documents, valid documents are admitted, and
 * what is not known of JSON Schema is refused by name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/memory.h"
#include "base/random.h"
#include "text/grammar.h"

#define EOS 2

static struct walsh_tokenizer *tokenizer;
static struct walsh_token_bytes *tokens;
static struct walsh_random dice;

static bool is_eos(const void *user, int32_t id)
{
    (void)user;
    return id == EOS;
}

static int open_tokens(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    if (walsh_tokenizer_open(WALSH_SOURCE_DIR "/models/bookworm-8m", &tokenizer, &err) == WALSH_OK &&
        walsh_token_bytes_open(tokenizer, (uint32_t)walsh_tokenizer_size(tokenizer), is_eos, NULL, &tokens,
                               &err) == WALSH_OK)
        return 0;
    print_message("%s\n", err.message);
    return -1;
}

static int close_tokens(void **state)
{
    (void)state;
    walsh_token_bytes_close(&tokens);
    walsh_tokenizer_close(&tokenizer);
    return 0;
}

static uint32_t draw(uint32_t below)
{
    return (uint32_t)(walsh_random_u64(&dice) % below);
}

/* ---- an independent reading of the part of JSON Schema that is supported ---- */

static size_t characters(const char *text)
{
    size_t n = 0;
    for (; *text; text++) n += ((unsigned char)*text & 0xc0) != 0x80;
    return n;
}

static bool type_is(const json_t *value, const char *type)
{
    if (strcmp(type, "object") == 0) return json_is_object(value);
    if (strcmp(type, "array") == 0) return json_is_array(value);
    if (strcmp(type, "string") == 0) return json_is_string(value);
    if (strcmp(type, "integer") == 0) return json_is_integer(value);
    if (strcmp(type, "number") == 0) return json_is_number(value);
    if (strcmp(type, "boolean") == 0) return json_is_boolean(value);
    return json_is_null(value);
}

static bool valid(const json_t *root, const json_t *schema, const json_t *value);

static bool valid_object(const json_t *root, const json_t *schema, const json_t *value)
{
    const json_t *properties = json_object_get(schema, "properties"),
                 *additional = json_object_get(schema, "additionalProperties");
    const char *key;
    json_t *member;
    size_t i;
    json_object_foreach((json_t *)(uintptr_t)value, key, member)
    {
        const json_t *property = json_object_get(properties, key);
        if (!property && json_is_false(additional)) return false;
        if (!property) property = additional;
        if (property && !valid(root, property, member)) return false;
    }
    json_array_foreach(json_object_get(schema, "required"), i,
                       member) if (!json_object_get(value, json_string_value(member))) return false;
    return true;
}

static bool within(const json_t *schema, const char *least, const char *most, size_t count)
{
    const json_t *low = json_object_get(schema, least), *high = json_object_get(schema, most);
    return (!low || (json_int_t)count >= json_integer_value(low)) &&
           (!high || (json_int_t)count <= json_integer_value(high));
}

static bool valid(const json_t *root, const json_t *schema, const json_t *value)
{
    size_t i;
    json_t *one;
    bool any = false;
    if (json_is_true(schema)) return true;
    const char *reference = json_string_value(json_object_get(schema, "$ref"));
    if (reference)
        return valid(root,
                     strcmp(reference, "#") == 0
                         ? root
                         : json_object_get(json_object_get(root, "$defs"), reference + strlen("#/$defs/")),
                     value);
    json_array_foreach(json_object_get(schema, "anyOf"), i, one) any = any || valid(root, one, value);
    if (json_object_get(schema, "anyOf") && !any) return false;
    any = false;
    json_array_foreach(json_object_get(schema, "enum"), i, one) any = any || json_equal(one, value);
    if (json_object_get(schema, "enum") && !any) return false;
    one = json_object_get(schema, "const");
    if (one && !json_equal(one, value)) return false;
    one = json_object_get(schema, "type");
    if (json_is_string(one) && !type_is(value, json_string_value(one))) return false;
    any = false;
    if (json_is_array(one)) {
        json_t *type;
        json_array_foreach(one, i, type) any = any || type_is(value, json_string_value(type));
        if (!any) return false;
    }
    if (json_is_object(value)) return valid_object(root, schema, value);
    if (json_is_string(value))
        return within(schema, "minLength", "maxLength", characters(json_string_value(value)));
    if (!json_is_array(value)) return true;
    const json_t *items = json_object_get(schema, "items");
    json_array_foreach(value, i, one) if (items && !valid(root, items, one)) return false;
    return within(schema, "minItems", "maxItems", json_array_size(value));
}

/* ---- random schemas and documents ---- */

static const char *const names[] = {"a", "ab", "abc", "name", "na\"me", "été", "b\\n\n", "", "x y"};

static json_t *random_scalar(void)
{
    static const char *const texts[] = {"red", "re", "", "a\"b\\", "日本 語", "line\nline", "true", "12"};
    switch (draw(6)) {
    case 0:
        return json_null();
    case 1:
        return json_boolean(draw(2));
    case 2:
        return json_integer((json_int_t)draw(2000) - 1000);
    case 3:
        return json_real((double)draw(1000) / 8 - 50);
    default:
        return json_string(texts[draw(8)]);
    }
}

static json_t *random_schema(unsigned depth);

static json_t *random_object_schema(unsigned depth)
{
    json_t *schema = json_pack("{s:s}", "type", "object"), *properties = json_object(),
           *required = json_array();
    for (uint32_t n = draw(5); n-- > 0;) {
        const char *name = names[draw(9)];
        json_object_set_new(properties, name, random_schema(depth + 1));
        if (draw(2)) json_array_append_new(required, json_string(name));
    }
    json_object_set_new(schema, "properties", properties);
    if (json_array_size(required) || draw(2))
        json_object_set_new(schema, "required", required);
    else
        json_decref(required);
    const uint32_t additional = draw(4);
    if (additional < 2) json_object_set_new(schema, "additionalProperties", json_false());
    if (additional == 2) json_object_set_new(schema, "additionalProperties", random_schema(depth + 2));
    return schema;
}

static json_t *random_schema(unsigned depth)
{
    static const char *const types[] = {"string", "integer", "number", "boolean", "null", "array", "object"};
    static const char *const references[] = {"#/$defs/leaf", "#/$defs/tree", "#"};
    json_t *schema;
    switch (draw(depth > 2 ? 8 : 14)) {
    case 0:
        schema = json_pack("{s:[]}", "enum");
        for (uint32_t n = 1 + draw(4); n-- > 0;)
            json_array_append_new(json_object_get(schema, "enum"), random_scalar());
        return schema;
    case 1:
        return json_pack("{s:o}", "const", draw(3) ? random_scalar() : json_pack("{s:[i,s]}", "k", 1, "v"));
    case 2:
        schema = json_pack("{s:s,s:s}", "type", "string", "description", "a text");
        if (draw(2)) json_object_set_new(schema, "minLength", json_integer((json_int_t)draw(6)));
        if (draw(2)) json_object_set_new(schema, "maxLength", json_integer(6 + (json_int_t)draw(30)));
        return schema;
    case 3:
        return json_pack("{s:[s,s]}", "type", types[draw(5)], types[draw(5)]);
    case 4:
        return json_pack("{s:s}", "$ref", references[draw(2)]);
    case 5:
    case 6:
        return json_pack("{s:s}", "type", types[draw(5)]);
    case 7:
        return draw(2) ? json_true() : json_object();
    case 8:
        schema = json_pack("{s:[o,o]}", "anyOf", random_schema(depth + 1), random_schema(depth + 1));
        if (draw(2)) json_array_append_new(json_object_get(schema, "anyOf"), json_pack("{s:s}", "$ref", "#"));
        return schema;
    case 9:
    case 10:
        schema = json_pack("{s:s,s:o}", "type", "array", "items", random_schema(depth + 1));
        if (draw(2)) json_object_set_new(schema, "minItems", json_integer((json_int_t)draw(3)));
        if (draw(2)) json_object_set_new(schema, "maxItems", json_integer(3 + (json_int_t)draw(3)));
        return schema;
    default:
        return random_object_schema(depth);
    }
}

static json_t *random_root(void)
{
    json_t *schema = draw(8) ? random_object_schema(0) : random_schema(0);
    if (!json_is_object(schema)) return schema;
    json_object_set_new(schema, "$defs",
                        json_pack("{s:{s:s,s:i}, s:{s:s,s:{s:{s:s}, s:{s:[{s:s},{s:s}]}}, s:[s], s:b}}",
                                  "leaf", "type", "string", "maxLength", 5, "tree", "type", "object",
                                  "properties", "v", "type", "integer", "next", "anyOf", "$ref",
                                  "#/$defs/tree", "type", "null", "required", "v", "additionalProperties",
                                  0));
    return schema;
}

/* ---- matchers ---- */

static struct walsh_grammar *compile(const json_t *schema)
{
    struct walsh_error err = {0};
    struct walsh_grammar *grammar;
    char *text = schema ? json_dumps(schema, JSON_ENCODE_ANY) : NULL;
    const enum walsh_status status =
        walsh_grammar_compile(tokens, text, text ? strlen(text) : 0, &grammar, &err);
    if (status == WALSH_E_CAPACITY && strstr(err.message, "no document of")) {
        free(text);
        return NULL; /* it needs itself */
    }
    if (status != WALSH_OK) fail_msg("%s: %s", text, err.message);
    free(text);
    return grammar;
}

static struct walsh_matcher *open_matcher(const struct walsh_grammar *grammar)
{
    struct walsh_matcher *matcher;
    assert_int_equal(walsh_matcher_open(grammar, &matcher, NULL), WALSH_OK);
    return matcher;
}

static bool has(const uint64_t *mask, int32_t id)
{
    return mask[id / 64] >> id % 64 & 1;
}

/* A random admitted token. `hurry`: rather one that ends something. */
static int32_t draw_token(const uint64_t *mask, bool hurry)
{
    static const char *const ends[] = {"\"", "}", "]", "null", "0", ":", "e", "\\"};
    const size_t vocab = walsh_tokenizer_size(tokenizer);
    if (hurry && has(mask, EOS)) return EOS;
    for (size_t i = 0; hurry && i < sizeof ends / sizeof *ends; i++) {
        const int32_t id = walsh_tokenizer_find(tokenizer, ends[i]);
        if (id >= 0 && has(mask, id)) return id;
    }
    size_t count = 0, chosen;
    for (size_t i = 0; i < (vocab + 63) / 64; i++) count += (size_t)__builtin_popcountll(mask[i]);
    if (count == 0) return -1;
    chosen = draw((uint32_t)count);
    for (size_t i = 0; i < vocab; i++)
        if (has(mask, (int32_t)i) && chosen-- == 0) return (int32_t)i;
    return -1;
}

/* An answer by random draws; false where `most` tokens did not end it. */
static bool generate(const struct walsh_grammar *grammar, size_t most, char **text, size_t *size)
{
    struct walsh_matcher *matcher = open_matcher(grammar);
    int32_t *ids = calloc(most, sizeof *ids);
    size_t n = 0;
    bool ended = false;
    const uint32_t haste = 1 + draw(4);
    while (n < most && !ended) {
        const uint64_t *mask;
        assert_int_equal(walsh_matcher_mask(matcher, &mask, NULL), WALSH_OK);
        const int32_t id = draw_token(mask, n > most / 2 || draw(haste) == 0);
        if (id < 0) fail_msg("no token continues the answer");
        struct walsh_error err = {0};
        if (walsh_matcher_advance(matcher, id, &err) != WALSH_OK) fail_msg("%s", err.message);
        ended = id == EOS;
        if (!ended) ids[n++] = id;
    }
    assert_int_equal(walsh_tokenizer_decode(tokenizer, ids, n, false, text, size, NULL), WALSH_OK);
    walsh_matcher_close(&matcher);
    free(ids);
    return ended;
}

static void random_draws_give_valid_documents(void **state)
{
    (void)state;
    const uint64_t seed = 20251122;
    walsh_random_seed(&dice, seed);
    print_message("seed %llu\n", (unsigned long long)seed);
    unsigned ended = 0, all = 0;
    for (unsigned i = 0; i < 150; i++) {
        json_t *schema = i % 10 ? random_root() : NULL;
        struct walsh_grammar *grammar = compile(schema);
        for (unsigned k = 0; grammar && k < 3; k++) {
            char *text;
            size_t size;
            all++;
            if (generate(grammar, 300, &text, &size)) {
                json_error_t error;
                json_t *value = json_loadb(text, size, JSON_DECODE_ANY, &error);
                if (!value || (schema ? !valid(schema, schema, value) : !json_is_object(value))) {
                    char *shown = schema ? json_dumps(schema, JSON_ENCODE_ANY) : NULL;
                    fail_msg("schema %s\ndocument %s\n%s", shown, text, value ? "not valid" : error.text);
                }
                json_decref(value);
                ended++;
            }
            walsh_free(text);
        }
        walsh_grammar_release(grammar);
        json_decref(schema);
    }
    if (ended < all * 6 / 10) fail_msg("%u of %u answers ended", ended, all);
}

/* ---- documents ---- */

/* Walk the tokens of a text; each must be in the mask of its step. Returns how many were taken; *complete at
 * the end.
 */
static size_t follow(const struct walsh_grammar *grammar, const char *text, size_t size, size_t *count,
                     bool *complete)
{
    int32_t *ids;
    size_t taken = 0;
    struct walsh_matcher *matcher = open_matcher(grammar);
    assert_int_equal(walsh_tokenizer_encode(tokenizer, text, size, WALSH_ENCODE_PLAIN, &ids, count, NULL),
                     WALSH_OK);
    for (; taken < *count; taken++) {
        const uint64_t *mask;
        assert_int_equal(walsh_matcher_mask(matcher, &mask, NULL), WALSH_OK);
        const bool admitted = has(mask, ids[taken]);
        assert_int_equal(walsh_matcher_advance(matcher, ids[taken], NULL) == WALSH_OK, admitted);
        if (!admitted) break;
    }
    const uint64_t *mask;
    assert_int_equal(walsh_matcher_mask(matcher, &mask, NULL), WALSH_OK);
    *complete = taken == *count && walsh_matcher_complete(matcher);
    if (taken == *count) assert_int_equal(has(mask, EOS), *complete);
    walsh_free(ids);
    walsh_matcher_close(&matcher);
    return taken;
}

/* A document that is valid under the schema; NULL: none was found by trying. */
static json_t *random_document(const struct walsh_grammar *grammar, const json_t *schema)
{
    for (unsigned tries = 0; tries < 5; tries++) {
        char *text;
        size_t size;
        json_t *value = NULL;
        if (generate(grammar, 200, &text, &size)) value = json_loadb(text, size, JSON_DECODE_ANY, NULL);
        walsh_free(text);
        if (value && valid(schema, schema, value)) return value;
        json_decref(value);
    }
    return NULL;
}

static const struct {
    const char *schema, *document;
    bool admitted;
} documents[] = {
    {NULL, "{}", true},
    {NULL, "{\"a\": [1, -2.5e+10, {\"b\": null}], \"\\u00e9\\ud83d\\ude00\": \"\\\"\\n\"}", true},
    {NULL, "{\n  \"a\": 1,\n  \"b\": [\n    true\n  ]\n}", true},
    {NULL, "[]", false},
    {NULL, "{\"a\": 01}", false},
    {NULL, "{\"a\": \"\\ud800\"}", false},
    {NULL, "{\"a\": \"\\udc00\"}", false},
    {NULL, "{\"a\": \"\\u0000\"}", false},
    {NULL, "{\"a\": .5}", false},
    {NULL, "{\"a\": 1,}", false},
    {NULL, "{\"a\" 1}", false},
    {NULL, "{\"a\": 1} ", false},
    {NULL, "{\"a\": \"\n\"}", false},
    {"{\"type\":\"integer\"}", "-12", true},
    {"{\"type\":\"integer\"}", "1.0", false},
    {"{\"type\":\"number\"}", "1.0E-7", true},
    {"{\"type\":\"number\"}", "-0", true},
    {"{\"type\":\"number\"}", "1e999", false},
    {"{\"enum\":[1,12,\"1\"]}", "12", true},
    {"{\"enum\":[1,12,\"1\"]}", "1", true},
    {"{\"enum\":[1,12,\"1\"]}", "\"1\"", true},
    {"{\"enum\":[1,12,\"1\"]}", "2", false},
    {"{\"type\":\"array\",\"items\":{\"enum\":[1,12]}}", "[1,12, 1]", true},
    {"{\"type\":\"array\",\"items\":{\"enum\":[1,12]}}", "[1,13]", false},
    {"{\"type\":\"array\",\"minItems\":1,\"maxItems\":2}", "[]", false},
    {"{\"type\":\"array\",\"minItems\":1,\"maxItems\":2}", "[[], {}]", true},
    {"{\"type\":\"array\",\"minItems\":1,\"maxItems\":2}", "[1,2,3]", false},
    {"{\"type\":\"string\",\"minLength\":2,\"maxLength\":3}", "\"日\\u00e9\\ud83d\\ude00\"", true},
    {"{\"type\":\"string\",\"minLength\":2,\"maxLength\":3}", "\"abcd\"", false},
    {"{\"type\":\"string\",\"minLength\":2,\"maxLength\":3}", "\"a\"", false},
    {"{\"properties\":{\"a\":{\"type\":\"null\"},\"b\":{}},\"required\":[\"b\"],\"additionalProperties\":"
     "false}",
     "{\"b\":1,\"a\":null}", true},
    {"{\"properties\":{\"a\":{\"type\":\"null\"},\"b\":{}},\"required\":[\"b\"],\"additionalProperties\":"
     "false}",
     "{\"a\":null}", false},
    {"{\"properties\":{\"a\":{\"type\":\"null\"},\"b\":{}},\"required\":[\"b\"],\"additionalProperties\":"
     "false}",
     "{\"b\":1,\"b\":2}", false},
    {"{\"properties\":{\"a\":{\"type\":\"null\"},\"b\":{}},\"required\":[\"b\"],\"additionalProperties\":"
     "false}",
     "{\"b\":1,\"c\":2}", false},
    {"{\"properties\":{\"a\":{\"type\":\"null\"}},\"additionalProperties\":{\"type\":\"integer\"}}",
     "{\"a\":1}", false},
    {"{\"properties\":{\"a\":{\"type\":\"null\"}},\"additionalProperties\":{\"type\":\"integer\"}}",
     "{\"\\u0061\":1}", false},
    {"{\"properties\":{\"a\":{\"type\":\"null\"}},\"additionalProperties\":{\"type\":\"integer\"}}",
     "{\"\\u0061\":null, \"ab\":1, \"\":2}", true},
    {"{\"anyOf\":[{\"type\":\"string\"},{\"type\":\"array\",\"items\":{\"$ref\":\"#\"}}]}",
     "[[\"a\",[]],\"b\"]", true},
    {"{\"anyOf\":[{\"type\":\"object\",\"properties\":{\"k\":{\"const\":\"a\"},\"v\":{\"type\":\"null\"}},"
     "\"required\":[\"k\",\"v\"],\"additionalProperties\":false},"
     "{\"type\":\"object\",\"properties\":{\"k\":{\"const\":\"b\"},\"v\":{\"type\":\"integer\"}},"
     "\"required\":[\"k\",\"v\"],\"additionalProperties\":false}]}",
     "{\"v\":3,\"k\":\"b\"}", true},
    {"{\"anyOf\":[{\"type\":\"object\",\"properties\":{\"k\":{\"const\":\"a\"},\"v\":{\"type\":\"null\"}},"
     "\"required\":[\"k\",\"v\"],\"additionalProperties\":false},"
     "{\"type\":\"object\",\"properties\":{\"k\":{\"const\":\"b\"},\"v\":{\"type\":\"integer\"}},"
     "\"required\":[\"k\",\"v\"],\"additionalProperties\":false}]}",
     "{\"v\":3,\"k\":\"a\"}", false},
};

static void documents_are_admitted_where_they_are_valid(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof documents / sizeof *documents; i++) {
        json_t *schema = documents[i].schema ? json_loads(documents[i].schema, 0, NULL) : NULL;
        struct walsh_grammar *grammar = compile(schema);
        size_t count;
        bool complete;
        const size_t taken =
            follow(grammar, documents[i].document, strlen(documents[i].document), &count, &complete);
        if (complete != documents[i].admitted)
            fail_msg("%s under %s: %zu of %zu tokens, expected %s", documents[i].document,
                     documents[i].schema ? documents[i].schema : "any object", taken, count,
                     documents[i].admitted ? "all" : "fewer");
        walsh_grammar_release(grammar);
        json_decref(schema);
    }
}

/* Random documents in several ways to write them; and with a byte changed: what is taken then is valid too.
 */
static void ways_to_write_are_admitted(void **state)
{
    (void)state;
    const uint64_t seed = 7;
    walsh_random_seed(&dice, seed);
    print_message("seed %llu\n", (unsigned long long)seed);
    unsigned documents_seen = 0, changed_taken = 0;
    for (unsigned i = 0; i < 120; i++) {
        json_t *schema = random_root();
        struct walsh_grammar *grammar = compile(schema);
        json_t *value = grammar ? random_document(grammar, schema) : NULL;
        for (unsigned way = 0; value && way < 4; way++) {
            static const size_t flags[] = {JSON_COMPACT, 0, JSON_INDENT(2), JSON_INDENT(1) | JSON_SORT_KEYS};
            char *text = json_dumps(value, flags[way] | JSON_ENCODE_ANY);
            const size_t size = strlen(text);
            size_t count;
            bool complete;
            /* constants that are objects are compact in every way */
            if (way == 0 || !strchr(text, '{') || !strstr(text, "\"k\"")) {
                follow(grammar, text, size, &count, &complete);
                if (!complete) {
                    char *shown = json_dumps(schema, JSON_ENCODE_ANY);
                    fail_msg("schema %s\ndocument %s is not admitted", shown, text);
                }
                documents_seen++;
            }
            text[draw((uint32_t)size)] = "{}[]\",:0a-e. \\tn"[draw(16)];
            follow(grammar, text, size, &count, &complete);
            json_t *changed = json_loadb(text, size, JSON_DECODE_ANY, NULL);
            if (complete && (!changed || !valid(schema, schema, changed))) {
                char *shown = json_dumps(schema, JSON_ENCODE_ANY);
                fail_msg("schema %s\ndocument %s is admitted", shown, text);
            }
            changed_taken += complete;
            json_decref(changed);
            free(text);
        }
        json_decref(value);
        walsh_grammar_release(grammar);
        json_decref(schema);
    }
    assert_true(documents_seen > 200);
    assert_true(changed_taken > 20);
}

/* ---- limits and refusals ---- */

static void refuses(const char *schema, enum walsh_status expected, const char *message)
{
    struct walsh_error err = {0};
    struct walsh_grammar *grammar = NULL;
    const enum walsh_status status = walsh_grammar_compile(tokens, schema, strlen(schema), &grammar, &err);
    if (status != expected || !strstr(err.message, message))
        fail_msg("%.200s: status %d, %s; expected %s", schema, status, err.message, message);
    walsh_grammar_release(grammar);
}

static void what_is_not_known_is_refused_by_name(void **state)
{
    (void)state;
    refuses("{\"type\":\"string\",\"pattern\":\"a\"}", WALSH_E_ARGUMENT,
            "$: \"pattern\" is not supported here");
    refuses("{\"properties\":{\"n\":{\"type\":\"integer\",\"minimum\":3}}}", WALSH_E_ARGUMENT,
            "$.n: \"minimum\" is not supported here");
    refuses("{\"oneOf\":[{}]}", WALSH_E_ARGUMENT, "\"oneOf\" is not supported");
    refuses("{\"anyOf\":[{}],\"type\":\"string\"}", WALSH_E_ARGUMENT, "\"type\" is not supported here");
    refuses("{\"$ref\":\"http://example.org/x\"}", WALSH_E_ARGUMENT, "is not a definition in $defs");
    refuses("{\"$ref\":\"#/$defs/none\"}", WALSH_E_ARGUMENT, "is not a definition in $defs");
    refuses("{\"type\":\"float\"}", WALSH_E_ARGUMENT, "$.type: \"float\" is no type");
    refuses("{\"type\":3}", WALSH_E_ARGUMENT, "$.type: found integer");
    refuses("{\"type\":\"string\",\"enum\":[1]}", WALSH_E_ARGUMENT, "$.enum: found integer");
    refuses("{\"enum\":[]}", WALSH_E_ARGUMENT, "$.enum");
    refuses("{\"type\":\"string\",\"minLength\":3,\"maxLength\":2}", WALSH_E_ARGUMENT,
            "minLength is 3 and maxLength is 2");
    refuses("{\"type\":\"array\",\"minItems\":-1}", WALSH_E_ARGUMENT, "$.minItems");
    refuses("{\"required\":[\"a\"],\"additionalProperties\":false}", WALSH_E_ARGUMENT, "\"a\" is required");
    refuses("false", WALSH_E_ARGUMENT, "found boolean");
    refuses("{\"a\":1,\"a\":2}", WALSH_E_ARGUMENT, "duplicate");
    refuses("{", WALSH_E_ARGUMENT, "schema: line 1");
}

static void large_and_endless_schemas_are_refused(void **state)
{
    (void)state;
    static char text[1 << 19];
    refuses("{\"$ref\":\"#\"}", WALSH_E_CAPACITY, "no document of");
    refuses("{\"anyOf\":[{\"$ref\":\"#\"},{\"$ref\":\"#\"}]}", WALSH_E_CAPACITY, "no document of");
    refuses("{\"type\":\"object\",\"properties\":{\"a\":{\"$ref\":\"#\"}},\"required\":[\"a\"]}",
            WALSH_E_CAPACITY, "no document of");
    refuses("{\"type\":\"array\",\"items\":{\"$ref\":\"#\"},\"minItems\":1}", WALSH_E_CAPACITY,
            "no document of");
    memset(text, ' ', sizeof text - 1);
    refuses(text, WALSH_E_CAPACITY, "bytes, at most");
    strcpy(text, "{\"properties\":{");
    for (int i = 0; i < 65; i++) sprintf(text + strlen(text), "%s\"p%d\":{}", i ? "," : "", i);
    strcat(text, "}}");
    refuses(text, WALSH_E_CAPACITY, "65 properties, at most 64");
    strcpy(text, "");
    for (int i = 0; i < 70; i++) strcat(text, "{\"items\":");
    strcat(text, "{}");
    for (int i = 0; i < 70; i++) strcat(text, "}");
    refuses(text, WALSH_E_CAPACITY, "nested deeper than 64");
    /* unions of unions: as many ways as 2 to the 40th, and one to read */
    strcpy(text, "{\"$ref\":\"#/$defs/d0\",\"$defs\":{");
    for (int i = 0; i < 40; i++)
        sprintf(text + strlen(text),
                "\"d%d\":{\"anyOf\":[{\"$ref\":\"#/$defs/d%d\"},{\"$ref\":\"#/$defs/d%d\"}]},", i, i + 1,
                i + 1);
    strcat(text, "\"d40\":{\"type\":\"null\"}}}");
    struct walsh_grammar *grammar;
    struct walsh_error err = {0};
    if (walsh_grammar_compile(tokens, text, strlen(text), &grammar, &err) != WALSH_OK) {
        assert_int_equal(err.status, WALSH_E_CAPACITY); /* references count as depth */
    } else {
        size_t count;
        bool complete;
        follow(grammar, "null", 4, &count, &complete);
        assert_true(complete);
        walsh_grammar_release(grammar);
    }
}

/* At the depth limit only what can still be ended is admitted. */
static void depth_ends(void **state)
{
    (void)state;
    struct walsh_grammar *grammar = compile(NULL);
    char text[200] = "{\"a\":";
    size_t count;
    bool complete;
    for (int i = 0; i < 31; i++) strcat(text, "[");
    for (int i = 0; i < 31; i++) strcat(text, "]");
    strcat(text, "}");
    follow(grammar, text, strlen(text), &count, &complete);
    assert_true(complete);
    memset(text + 5, '[', 62);
    memset(text + 5 + 32, ']', 32);
    strcpy(text + 5 + 64, "}");
    follow(grammar, text, strlen(text), &count, &complete);
    assert_false(complete);
    walsh_grammar_release(grammar);
}

/* Admitted now? */
static bool fits(struct walsh_matcher *m, int32_t id)
{
    struct walsh_error err;
    const uint64_t *mask;
    assert_int_equal(walsh_matcher_mask(m, &mask, &err), WALSH_OK);
    return mask[id / 64] >> id % 64 & 1;
}

/* Draw the text's tokens, each of which must fit. */
static void say(struct walsh_matcher *m, const char *text)
{
    struct walsh_error err;
    int32_t *ids;
    size_t count;
    assert_int_equal(walsh_tokenizer_encode(tokenizer, text, strlen(text), 0, &ids, &count, &err), WALSH_OK);
    for (size_t i = 0; i < count; i++) {
        if (!fits(m, ids[i])) fail_msg("token %zu of %s does not fit", i, text);
        assert_int_equal(walsh_matcher_advance(m, ids[i], &err), WALSH_OK);
    }
    walsh_free(ids);
}

static int32_t first_token(const char *text)
{
    struct walsh_error err;
    int32_t *ids;
    size_t count;
    assert_int_equal(walsh_tokenizer_encode(tokenizer, text, strlen(text), 0, &ids, &count, &err), WALSH_OK);
    const int32_t id = ids[0];
    walsh_free(ids);
    return id;
}

/* A thought is free, cannot end the answer, and behind it stands a document as ever. Special tokens count as
 * their texts; ends may be cut into tokens in any way. */
static void thoughts_come_before_documents(void **state)
{
    (void)state;
    static const char *const one[] = {"</think>"}, *const two[] = {"<|im_start|>final", "<|endoftext|>"};
    struct walsh_error err;
    struct walsh_grammar *g;
    struct walsh_matcher *m;
    const int32_t letter = first_token("x"), brace = first_token("{"), open = first_token("<|im_start|>");
    for (unsigned begun = 0; begun < 2; begun++) {
        assert_int_equal(walsh_grammar_compile(tokens, NULL, 0, &g, &err), WALSH_OK);
        assert_int_equal(walsh_grammar_put_thought(g, begun ? NULL : "<|im_start|>", one, 1, &err), WALSH_OK);
        assert_int_equal(walsh_matcher_open(g, &m, &err), WALSH_OK);
        if (!begun) {
            assert_true(fits(m, open) && fits(m, brace) && !fits(m, letter) && !fits(m, EOS));
            assert_int_equal(walsh_matcher_advance(m, letter, &err), WALSH_E_ARGUMENT);
            say(m, "<|im_start|>");
        }
        say(m, "Let me see: {\"a\": <</think <|im_start|>");
        assert_true(fits(m, letter) && !fits(m, EOS) && !walsh_matcher_complete(m));
        assert_int_equal(walsh_matcher_advance(m, EOS, &err), WALSH_E_ARGUMENT);
        say(m, "</think>");
        assert_true(fits(m, brace) && !fits(m, letter) && !fits(m, EOS) && !fits(m, open));
        say(m, "{\"a\": [1, true]}");
        assert_true(fits(m, EOS) && walsh_matcher_complete(m));
        walsh_matcher_close(&m);
        if (!begun) { /* it may be left out */
            assert_int_equal(walsh_matcher_open(g, &m, &err), WALSH_OK);
            say(m, "{");
            assert_false(fits(m, open));
            say(m, "}");
            assert_true(walsh_matcher_complete(m));
            walsh_matcher_close(&m);
        }
        walsh_grammar_release(g);
    }
    assert_int_equal(walsh_grammar_compile(tokens, NULL, 0, &g, &err), WALSH_OK);
    assert_int_equal(walsh_grammar_put_thought(g, NULL, two, 2, &err), WALSH_OK);
    assert_int_equal(walsh_matcher_open(g, &m, &err), WALSH_OK);
    say(m, "<|endoftext|>first<|im_start|>other<|endoftext|>x<|im_start|>final to<|im_start|>");
    assert_true(fits(m, letter));
    say(m, "<|endoftext|>");
    assert_true(fits(m, brace) && !fits(m, letter));
    walsh_matcher_close(&m);
    assert_int_equal(walsh_grammar_put_thought(g, "no token of it", two, 2, &err), WALSH_E_NOT_FOUND);
    assert_int_equal(walsh_grammar_put_thought(g, NULL, two, 3, &err), WALSH_E_ARGUMENT);
    walsh_grammar_release(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(documents_are_admitted_where_they_are_valid),
        cmocka_unit_test(random_draws_give_valid_documents),
        cmocka_unit_test(ways_to_write_are_admitted),
        cmocka_unit_test(what_is_not_known_is_refused_by_name),
        cmocka_unit_test(large_and_endless_schemas_are_refused),
        cmocka_unit_test(depth_ends),
        cmocka_unit_test(thoughts_come_before_documents),
    };
    return cmocka_run_group_tests(tests, open_tokens, close_tokens);
}
