#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/regex.h"

#include <pcre2.h>
#include <string.h>

#include "base/memory.h"
#include "text/regex_translate.h"

#define STEP_LIMIT 10000000u /* calls of PCRE2's matcher in one search: under a second */
#define HEAP_LIMIT 262144u   /* KiB of backtracking points in one search */

struct walsh_regex {
    pcre2_code *code;
};

struct walsh_regex_scratch {
    pcre2_match_data *match; /* group 0 only */
    pcre2_match_context *limits;
};

static enum walsh_status compile(const uint8_t *pattern, size_t size, uint32_t options, pcre2_code **out,
                                 struct walsh_error *err)
{
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (!context) return walsh_fail(err, WALSH_E_MEMORY, "out of memory: regex");
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    pcre2_set_parens_nest_limit(context, 100);
    int error;
    size_t offset;
    *out = pcre2_compile(pattern, size, options | PCRE2_UTF, &error, &offset, context);
    pcre2_compile_context_free(context);
    if (*out) return WALSH_OK;
    char message[200];
    pcre2_get_error_message(error, (PCRE2_UCHAR *)message, sizeof message);
    return walsh_fail(err, WALSH_E_FORMAT, "bad regex \"%.*s\": %s", (int)walsh_min(size, 200),
                      (const char *)pattern, message);
}

enum walsh_status walsh_regex_open(const char *pattern, bool literal, struct walsh_regex **out,
                                   struct walsh_error *err)
{
    *out = NULL;
    pcre2_code *code = NULL;
    enum walsh_status status;
    if (literal) {
        status = compile((const uint8_t *)pattern, strlen(pattern), PCRE2_LITERAL, &code, err);
    } else {
        /* MULTILINE: in Oniguruma ^ and $ always mean lines. */
        struct walsh_buffer translated = {0};
        status = walsh_regex_translate(pattern, &translated, err);
        if (status == WALSH_OK)
            status = compile(translated.data ? translated.data : (const uint8_t *)"", translated.size,
                             PCRE2_UCP | PCRE2_MULTILINE, &code, err);
        walsh_buffer_free(&translated);
    }
    if (status == WALSH_OK) status = walsh_alloc_zero(1, sizeof **out, "regex", out, err);
    if (status != WALSH_OK) {
        pcre2_code_free(code);
        return status;
    }
    (*out)->code = code;
    return WALSH_OK;
}

void walsh_regex_close(struct walsh_regex **regex)
{
    if (!*regex) return;
    pcre2_code_free((*regex)->code);
    walsh_free(*regex);
    *regex = NULL;
}

enum walsh_status walsh_regex_scratch_open(struct walsh_regex_scratch **out, struct walsh_error *err)
{
    WALSH_TRY(walsh_alloc_zero(1, sizeof **out, "regex scratch", out, err));
    struct walsh_regex_scratch *s = *out;
    s->match = pcre2_match_data_create(1, NULL);
    s->limits = pcre2_match_context_create(NULL);
    if (!s->match || !s->limits) {
        walsh_regex_scratch_close(out);
        return walsh_fail(err, WALSH_E_MEMORY, "out of memory: regex scratch");
    }
    pcre2_set_match_limit(s->limits, STEP_LIMIT);
    pcre2_set_heap_limit(s->limits, HEAP_LIMIT);
    return WALSH_OK;
}

void walsh_regex_scratch_close(struct walsh_regex_scratch **scratch)
{
    if (!*scratch) return;
    pcre2_match_data_free((*scratch)->match);
    pcre2_match_context_free((*scratch)->limits);
    walsh_free(*scratch);
    *scratch = NULL;
}

enum walsh_status walsh_regex_find(const struct walsh_regex *regex, struct walsh_regex_scratch *scratch,
                                   const uint8_t *text, size_t size, size_t from, bool *found, size_t *start,
                                   size_t *end, struct walsh_error *err)
{
    int rc = pcre2_match(regex->code, text, size, from, PCRE2_NO_UTF_CHECK, scratch->match, scratch->limits);
    *found = rc >= 0;
    if (rc >= 0) {
        const size_t *range = pcre2_get_ovector_pointer(scratch->match);
        *start = range[0];
        *end = range[1];
        return WALSH_OK;
    }
    if (rc == PCRE2_ERROR_NOMATCH) return WALSH_OK;
    char message[200];
    pcre2_get_error_message(rc, (PCRE2_UCHAR *)message, sizeof message);
    return walsh_fail(err, rc == PCRE2_ERROR_NOMEMORY ? WALSH_E_MEMORY : WALSH_E_FORMAT,
                      "splitting the text at byte %zu of %zu: %s", from, size, message);
}
