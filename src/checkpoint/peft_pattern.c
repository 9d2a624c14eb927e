#define PCRE2_CODE_UNIT_WIDTH 8
#include "checkpoint/peft_pattern.h"

#include <pcre2.h>
#include <stdio.h>
#include <string.h>

#define MAX_PATTERN_BYTES 65536
#define MAX_MATCH_STEPS 100000 /* a pattern of a published adapter takes some hundreds */
#define MAX_MATCH_KIB 20000    /* of PCRE2's heap */

/* Most keys are plain names. They need no engine, only '.', which stands for any character. */
static bool is_plain(const char *text)
{
    for (const char *c = text; *c; c++) {
        const bool word = (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || (*c >= '0' && *c <= '9');
        if (!word && *c != '_' && *c != '-' && *c != '.') return false;
    }
    return true;
}

static bool plain_equal(const char *text, const char *name, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if (text[i] != '.' && text[i] != name[i]) return false;
    return true;
}

static bool plain_match(const struct walsh_peft_pattern *pattern, const char *name)
{
    const size_t length = strlen(pattern->text), size = strlen(name);
    if (length > size) return false;
    if (size != length && (pattern->kind == WALSH_PEFT_WHOLE || name[size - length - 1] != '.')) return false;
    return plain_equal(pattern->text, name + (size - length), length);
}

enum walsh_status walsh_peft_pattern_compile(const char *text, enum walsh_peft_match kind,
                                             struct walsh_arena *arena, struct walsh_peft_pattern *out,
                                             struct walsh_error *err)
{
    const size_t length = strlen(text);
    char *copy = NULL;
    memset(out, 0, sizeof *out);
    if (length > MAX_PATTERN_BYTES)
        return walsh_fail(err, WALSH_E_FORMAT, "\"%.40s...\" has %zu bytes, expected at most %d", text,
                          length, MAX_PATTERN_BYTES);
    WALSH_TRY(walsh_arena_strdup(arena, text, &copy, err));
    out->text = copy;
    out->kind = kind;
    if (is_plain(text)) return WALSH_OK;

    /* The group keeps an alternation together, and start-of-pattern verbs of PCRE2, which Python lacks,
     * without effect. */
    char *wrapped = NULL;
    WALSH_TRY(walsh_alloc(length + 16, 1, "a pattern", &wrapped, err));
    snprintf(wrapped, length + 16, kind == WALSH_PEFT_SUFFIX ? "(.*\\.)?(%s)" : "(?:%s)", text);
    int code = 0;
    PCRE2_SIZE offset = 0;
    out->code =
        pcre2_compile((PCRE2_SPTR)wrapped, PCRE2_ZERO_TERMINATED,
                      PCRE2_ANCHORED | PCRE2_ENDANCHORED | PCRE2_NEVER_BACKSLASH_C, &code, &offset, NULL);
    walsh_free(wrapped);
    if (out->code) return WALSH_OK;
    PCRE2_UCHAR reason[128] = {0};
    pcre2_get_error_message(code, reason, sizeof reason);
    return walsh_fail(err, WALSH_E_FORMAT, "\"%.200s\" is not a regular expression: %s", text,
                      (const char *)reason);
}

void walsh_peft_pattern_close(struct walsh_peft_pattern *pattern)
{
    pcre2_code_free(pattern->code);
    memset(pattern, 0, sizeof *pattern);
}

enum walsh_status walsh_peft_pattern_match(const struct walsh_peft_pattern *pattern, const char *name,
                                           bool *matched, struct walsh_error *err)
{
    if (!pattern->code) {
        *matched = plain_match(pattern, name);
        return WALSH_OK;
    }
    pcre2_match_context *limits = pcre2_match_context_create(NULL);
    pcre2_match_data *data = pcre2_match_data_create(1, NULL);
    int result = PCRE2_ERROR_NOMEMORY;
    if (limits && data) {
        pcre2_set_match_limit(limits, MAX_MATCH_STEPS);
        pcre2_set_heap_limit(limits, MAX_MATCH_KIB);
        result = pcre2_match(pattern->code, (PCRE2_SPTR)name, strlen(name), 0, PCRE2_NO_JIT, data, limits);
    }
    pcre2_match_data_free(data);
    pcre2_match_context_free(limits);
    if (result == PCRE2_ERROR_NOMEMORY)
        return walsh_fail(err, WALSH_E_MEMORY, "no memory to match a pattern");
    if (result < 0 && result != PCRE2_ERROR_NOMATCH)
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "\"%.200s\" takes too many steps on \"%.200s\"",
                          pattern->text, name);
    *matched = result >= 0;
    return WALSH_OK;
}
