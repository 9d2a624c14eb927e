#include "text/tokenizer_parts.h"

#include <string.h>

#include "text/json_read.h"
#include "text/utf8.h"

#define MAX_DEPTH 8 /* of sequences in sequences */

enum walsh_status walsh_part_type(const json_t *part, const char *where, const char **type,
                                  struct walsh_error *err)
{
    if (!json_is_object(part))
        return walsh_fail(err, WALSH_E_FORMAT, "%s: found %s, expected an object", where,
                          walsh_json_type_name(part));
    return walsh_json_member_string(part, where, "type", type, err);
}

enum walsh_status walsh_part_unknown(struct walsh_error *err, const char *where, const char *type,
                                     const char *known)
{
    return walsh_fail(err, WALSH_E_UNSUPPORTED, "%s type \"%.100s\" is not supported (known: %s)", where,
                      type, known);
}

enum walsh_status walsh_part_members(const json_t *sequence, const char *where, const char *key,
                                     unsigned depth, const json_t **list, struct walsh_error *err)
{
    *list = json_object_get(sequence, key);
    if (!json_is_array(*list))
        return walsh_fail(err, WALSH_E_FORMAT, "%s.%s: found %s, expected an array", where, key,
                          walsh_json_type_name(*list));
    if (depth >= MAX_DEPTH)
        return walsh_fail(err, WALSH_E_FORMAT, "%s: sequences are nested more than %d deep", where,
                          MAX_DEPTH);
    return WALSH_OK;
}

/* ---- pre_tokenizer ---- */

static enum walsh_status add_split(struct walsh_pretokenizer *p, const char *pattern, bool literal,
                                   enum walsh_split_behavior behavior, bool invert, struct walsh_error *err)
{
    if (p->split_count == WALSH_MAX_SPLITS)
        return walsh_fail(err, WALSH_E_FORMAT, "pre_tokenizer: more than %d splits", WALSH_MAX_SPLITS);
    struct walsh_split *split = &p->splits[p->split_count];
    WALSH_TRY(walsh_regex_open(pattern, literal, &split->regex, err));
    split->behavior = behavior;
    split->invert = invert;
    split->fast = literal ? NULL : walsh_fast_pattern_find(pattern);
    p->split_count++;
    return WALSH_OK;
}

static enum walsh_status load_behavior(const json_t *part, const char *where, const char *otherwise,
                                       enum walsh_split_behavior *out, struct walsh_error *err)
{
    static const char *const names[] = {
        [WALSH_SPLIT_ISOLATED] = "Isolated",
        [WALSH_SPLIT_REMOVED] = "Removed",
        [WALSH_SPLIT_MERGED_WITH_PREVIOUS] = "MergedWithPrevious",
        [WALSH_SPLIT_MERGED_WITH_NEXT] = "MergedWithNext",
        [WALSH_SPLIT_CONTIGUOUS] = "Contiguous",
    };
    const char *name = otherwise;
    if (!otherwise || walsh_json_member(part, "behavior"))
        WALSH_TRY(walsh_json_member_string(part, where, "behavior", &name, err));
    size_t behavior = 0;
    while (behavior < sizeof names / sizeof *names && strcmp(names[behavior], name) != 0) behavior++;
    if (behavior == sizeof names / sizeof *names)
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "%s: behavior \"%.100s\" is not supported", where, name);
    *out = (enum walsh_split_behavior)behavior;
    return WALSH_OK;
}

static enum walsh_status load_split(struct walsh_pretokenizer *p, const json_t *split,
                                    struct walsh_error *err)
{
    const char *where = "pre_tokenizer Split";
    enum walsh_split_behavior behavior = WALSH_SPLIT_ISOLATED;
    WALSH_TRY(load_behavior(split, where, NULL, &behavior, err));
    bool invert;
    WALSH_TRY(walsh_json_member_bool(split, where, "invert", false, &invert, err));
    const json_t *pattern = json_object_get(split, "pattern");
    const char *regex = json_string_value(json_object_get(pattern, "Regex"));
    const char *literal = json_string_value(json_object_get(pattern, "String"));
    if (!regex == !literal)
        return walsh_fail(err, WALSH_E_FORMAT, "%s.pattern: expected {\"Regex\": ...} or {\"String\": ...}",
                          where);
    return add_split(p, regex ? regex : literal, regex == NULL, behavior, invert, err);
}

/* old files say add_prefix_space instead of prepend_scheme */
static enum walsh_status prepend_scheme(const json_t *part, const char *where, enum walsh_prepend *scheme,
                                        struct walsh_error *err)
{
    static const char *const names[] = {
        [WALSH_PREPEND_NEVER] = "never", [WALSH_PREPEND_FIRST] = "first", [WALSH_PREPEND_ALWAYS] = "always"};
    bool prefix;
    *scheme = WALSH_PREPEND_ALWAYS;
    if (walsh_json_member(part, "prepend_scheme")) {
        const char *name;
        WALSH_TRY(walsh_json_member_string(part, where, "prepend_scheme", &name, err));
        for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
            if (strcmp(name, names[i]) != 0) continue;
            *scheme = (enum walsh_prepend)i;
            return WALSH_OK;
        }
        return walsh_fail(err, WALSH_E_UNSUPPORTED,
                          "%s: prepend_scheme \"%.100s\" is not supported (known: always, first, never)",
                          where, name);
    }
    WALSH_TRY(walsh_json_member_bool(part, where, "add_prefix_space", true, &prefix, err));
    if (!prefix) *scheme = WALSH_PREPEND_NEVER;
    return WALSH_OK;
}

enum walsh_status walsh_load_metaspace(const json_t *part, const char *where, struct walsh_buffer *sign,
                                       enum walsh_prepend *scheme, struct walsh_error *err)
{
    const char *text;
    WALSH_TRY(walsh_json_member_string(part, where, "replacement", &text, err));
    enum walsh_utf8 kind;
    size_t size = strlen(text);
    if (size == 0 || walsh_utf8_step((const uint8_t *)text, size, &kind) != size)
        return walsh_fail(err, WALSH_E_FORMAT, "%s.replacement: found \"%.100s\", expected one character",
                          where, text);
    WALSH_TRY(walsh_buffer_append(sign, text, size, err));
    return prepend_scheme(part, where, scheme, err);
}

/* Spaces become the replacement; then, unless `split` is false, a cut before each of them. */
static enum walsh_status load_metaspace(struct walsh_pretokenizer *p, const json_t *part,
                                        struct walsh_error *err)
{
    const char *where = "pre_tokenizer Metaspace";
    bool split;
    if (p->split_count == WALSH_MAX_SPLITS)
        return walsh_fail(err, WALSH_E_FORMAT, "pre_tokenizer: more than %d splits", WALSH_MAX_SPLITS);
    struct walsh_split *rewrite = &p->splits[p->split_count++];
    WALSH_TRY(walsh_load_metaspace(part, where, &rewrite->space, &rewrite->prepend, err));
    WALSH_TRY(walsh_json_member_bool(part, where, "split", true, &split, err));
    return split ? add_split(p, json_string_value(json_object_get(part, "replacement")), true,
                             WALSH_SPLIT_MERGED_WITH_NEXT, false, err)
                 : WALSH_OK;
}

static enum walsh_status load_byte_level(struct walsh_pretokenizer *p, const json_t *part,
                                         struct walsh_error *err)
{
    const char *where = "pre_tokenizer ByteLevel";
    bool use_regex;
    WALSH_TRY(walsh_json_member_bool(part, where, "add_prefix_space", true, &p->add_prefix_space, err));
    WALSH_TRY(walsh_json_member_bool(part, where, "use_regex", true, &use_regex, err));
    p->prefix_before = p->split_count;
    if (use_regex) WALSH_TRY(add_split(p, walsh_gpt2_pattern, false, WALSH_SPLIT_ISOLATED, false, err));
    return WALSH_OK;
}

/* *complete: ByteLevel was there, and nothing may follow it. */
static enum walsh_status load_pretokenizer(struct walsh_pretokenizer *p, const json_t *part, unsigned depth,
                                           bool *complete, struct walsh_error *err)
{
    const char *where = "pre_tokenizer", *type;
    WALSH_TRY(walsh_part_type(part, where, &type, err));
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list;
        WALSH_TRY(walsh_part_members(part, where, "pretokenizers", depth, &list, err));
        for (size_t i = 0; i < json_array_size(list); i++)
            WALSH_TRY(load_pretokenizer(p, json_array_get(list, i), depth + 1, complete, err));
        return WALSH_OK;
    }
    if (*complete)
        return walsh_fail(err, WALSH_E_UNSUPPORTED,
                          "pre_tokenizer: \"%.100s\" behind ByteLevel is not supported", type);
    if (strcmp(type, "Split") == 0) return load_split(p, part, err);
    if (strcmp(type, "Digits") == 0) {
        bool individual;
        WALSH_TRY(walsh_json_member_bool(part, "pre_tokenizer Digits", "individual_digits", false,
                                         &individual, err));
        return add_split(p, "\\p{N}", false, individual ? WALSH_SPLIT_ISOLATED : WALSH_SPLIT_CONTIGUOUS,
                         false, err);
    }
    if (strcmp(type, "Metaspace") == 0) return load_metaspace(p, part, err);
    if (strcmp(type, "WhitespaceSplit") == 0)
        return add_split(p, "\\s", false, WALSH_SPLIT_REMOVED, false, err);
    if (strcmp(type, "Punctuation") == 0) {
        enum walsh_split_behavior behavior = WALSH_SPLIT_ISOLATED;
        WALSH_TRY(load_behavior(part, "pre_tokenizer Punctuation", "Isolated", &behavior, err));
        return add_split(p, "[!-/:-@\\[-`{-~\\p{P}]", false, behavior, false, err);
    }
    if (strcmp(type, "ByteLevel") != 0)
        return walsh_part_unknown(
            err, where, type,
            "ByteLevel, Digits, Metaspace, Punctuation, Sequence, Split, WhitespaceSplit, null");
    *complete = true;
    return load_byte_level(p, part, err);
}

enum walsh_status walsh_load_parts(struct walsh_tokenizer *t, const json_t *root, struct walsh_error *err)
{
    const json_t *version = walsh_json_member(root, "version");
    if (version && !(json_is_string(version) && strcmp(json_string_value(version), "1.0") == 0))
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "version \"%.100s\" is not supported (known: 1.0)",
                          json_is_string(version) ? json_string_value(version)
                                                  : walsh_json_type_name(version));
    WALSH_TRY(walsh_load_normalizer(&t->normalizer, walsh_json_member(root, "normalizer"), 0, err));
    const json_t *pretokenizer = walsh_json_member(root, "pre_tokenizer"),
                 *decoder = walsh_json_member(root, "decoder");
    if (pretokenizer) WALSH_TRY(load_pretokenizer(&t->pretokenizer, pretokenizer, 0, &t->byte_level, err));
    return walsh_load_decoder(&t->decoder, decoder, err);
}

/* ---- post_processor ---- */

/* Append the ids of a template's special token, in front of the text or behind it. */
static enum walsh_status add_template_token(struct walsh_tokenizer *t, const json_t *tokens, const char *name,
                                            bool behind, struct walsh_error *err)
{
    const json_t *ids = json_object_get(json_object_get(tokens, name), "ids");
    if (!json_is_array(ids))
        return walsh_fail(err, WALSH_E_FORMAT, "post_processor: no ids for the special token \"%.100s\"",
                          name);
    int32_t *out = behind ? t->behind : t->before;
    size_t *count = behind ? &t->behind_count : &t->before_count;
    for (size_t i = 0; i < json_array_size(ids); i++) {
        uint32_t id;
        WALSH_TRY(walsh_json_index(json_array_get(ids, i), "post_processor: an id",
                                   (uint32_t)t->vocabulary.size, &id, err));
        if (!t->vocabulary.tokens[id].flags)
            return walsh_fail(err, WALSH_E_FORMAT, "post_processor: id %u is not in the vocabulary", id);
        if (*count == WALSH_MAX_TEMPLATE)
            return walsh_fail(err, WALSH_E_FORMAT, "post_processor: more than %d tokens", WALSH_MAX_TEMPLATE);
        out[(*count)++] = (int32_t)id;
    }
    return WALSH_OK;
}

/* The template of a single text: special tokens around exactly one sequence A. */
static enum walsh_status load_template(struct walsh_tokenizer *t, const json_t *part, struct walsh_error *err)
{
    const json_t *single = json_object_get(part, "single"), *tokens = json_object_get(part, "special_tokens");
    size_t sequences = 0;
    if (!json_is_array(single))
        return walsh_fail(err, WALSH_E_FORMAT, "post_processor.single: found %s, expected an array",
                          walsh_json_type_name(single));
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *piece = json_array_get(single, i);
        const char *sequence = json_string_value(json_object_get(json_object_get(piece, "Sequence"), "id"));
        const char *special =
            json_string_value(json_object_get(json_object_get(piece, "SpecialToken"), "id"));
        if (sequence && !special && strcmp(sequence, "A") == 0)
            sequences++;
        else if (special && !sequence)
            WALSH_TRY(add_template_token(t, tokens, special, sequences > 0, err));
        else
            return walsh_fail(err, WALSH_E_FORMAT,
                              "post_processor.single[%zu]: expected a SpecialToken or the Sequence \"A\"", i);
    }
    if (sequences != 1)
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "post_processor.single: %zu sequences are not supported",
                          sequences);
    return WALSH_OK;
}

static enum walsh_status load_processor(struct walsh_tokenizer *t, const json_t *part, unsigned depth,
                                        bool *templated, struct walsh_error *err)
{
    const char *where = "post_processor", *type;
    WALSH_TRY(walsh_part_type(part, where, &type, err));
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list;
        WALSH_TRY(walsh_part_members(part, where, "processors", depth, &list, err));
        for (size_t i = 0; i < json_array_size(list); i++)
            WALSH_TRY(load_processor(t, json_array_get(list, i), depth + 1, templated, err));
        return WALSH_OK;
    }
    if (strcmp(type, "ByteLevel") == 0) return WALSH_OK; /* it moves offsets, which walsh does not report */
    if (strcmp(type, "TemplateProcessing") != 0)
        return walsh_part_unknown(err, where, type, "ByteLevel, Sequence, TemplateProcessing, null");
    if (*templated)
        return walsh_fail(err, WALSH_E_UNSUPPORTED,
                          "post_processor: two TemplateProcessing parts are not supported");
    *templated = true;
    return load_template(t, part, err);
}

enum walsh_status walsh_load_post_processor(struct walsh_tokenizer *t, const json_t *processor,
                                            struct walsh_error *err)
{
    bool templated = false;
    return processor ? load_processor(t, processor, 0, &templated, err) : WALSH_OK;
}
