/* The normalizer of tokenizer.json. */
#include <string.h>

#include "text/json_read.h"
#include "text/tokenizer_parts.h"

/* `content` of a Replace may be empty; what is sought may not. */
static enum walsh_status load_replace(struct walsh_normalizer_step *step, const json_t *part,
                                      struct walsh_error *err)
{
    const char *where = "normalizer Replace", *content;
    const json_t *pattern = json_object_get(part, "pattern");
    const char *regex = json_string_value(json_object_get(pattern, "Regex"));
    const char *literal = json_string_value(json_object_get(pattern, "String"));
    if (!regex == !literal || (literal && !*literal))
        return walsh_fail(err, WALSH_E_FORMAT, "%s.pattern: expected {\"Regex\": ...} or {\"String\": ...}",
                          where);
    step->kind = WALSH_NORMALIZE_REPLACE;
    WALSH_TRY(walsh_json_member_string(part, where, "content", &content, err));
    WALSH_TRY(walsh_buffer_append(&step->content, content, strlen(content), err));
    if (regex) return walsh_regex_open(regex, false, &step->regex, err);
    return walsh_buffer_append(&step->literal, literal, strlen(literal), err);
}

static enum walsh_status load_prepend(struct walsh_normalizer_step *step, const json_t *part,
                                      struct walsh_error *err)
{
    const char *text;
    step->kind = WALSH_NORMALIZE_PREPEND;
    WALSH_TRY(walsh_json_member_string(part, "normalizer Prepend", "prepend", &text, err));
    return walsh_buffer_append(&step->content, text, strlen(text), err);
}

static enum walsh_status load_strip(struct walsh_normalizer_step *step, const json_t *part,
                                    struct walsh_error *err)
{
    const char *where = "normalizer Strip";
    step->kind = WALSH_NORMALIZE_STRIP;
    WALSH_TRY(walsh_json_member_bool(part, where, "strip_left", true, &step->left, err));
    return walsh_json_member_bool(part, where, "strip_right", true, &step->right, err);
}

static enum walsh_status load_step(struct walsh_normalizer_step *step, const json_t *part, const char *type,
                                   struct walsh_error *err)
{
    static const char *const forms[] = {"NFD", "NFC", "NFKD", "NFKC"};
    for (unsigned i = 0; i < 4; i++) {
        if (strcmp(type, forms[i]) != 0) continue;
        step->kind = WALSH_NORMALIZE_FORM;
        step->compose = i % 2 == 1;
        step->compatibility = i >= 2;
        return WALSH_OK;
    }
    if (strcmp(type, "Prepend") == 0) return load_prepend(step, part, err);
    if (strcmp(type, "Replace") == 0) return load_replace(step, part, err);
    if (strcmp(type, "Strip") == 0) return load_strip(step, part, err);
    if (strcmp(type, "Lowercase") == 0) {
        step->kind = WALSH_NORMALIZE_LOWERCASE;
        return WALSH_OK;
    }
    return walsh_part_unknown(err, "normalizer", type,
                              "Lowercase, NFC, NFD, NFKC, NFKD, Prepend, Replace, Sequence, Strip, null");
}

enum walsh_status walsh_load_normalizer(struct walsh_normalizer *n, const json_t *part, unsigned depth,
                                        struct walsh_error *err)
{
    const char *where = "normalizer", *type;
    if (!part) return WALSH_OK;
    WALSH_TRY(walsh_part_type(part, where, &type, err));
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list;
        WALSH_TRY(walsh_part_members(part, where, "normalizers", depth, &list, err));
        for (size_t i = 0; i < json_array_size(list); i++)
            WALSH_TRY(walsh_load_normalizer(n, json_array_get(list, i), depth + 1, err));
        return WALSH_OK;
    }
    if (n->count == WALSH_MAX_STEPS)
        return walsh_fail(err, WALSH_E_FORMAT, "normalizer: more than %d steps", WALSH_MAX_STEPS);
    return load_step(&n->steps[n->count++], part, type, err);
}
