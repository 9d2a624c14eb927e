/* Texts of special tokens in what users wrote: marked, so that they stay texts when what a chat template
 * makes of them is encoded. */
#include <string.h>

#include "base/memory.h"
#include "text/tokenizer_internal.h"
#include "text/utf8.h"

/* Whether the normal form of the text holds a special token that is looked for there. */
static enum walsh_status hides_token(const struct walsh_tokenizer *t, const uint8_t *text, size_t size,
                                     bool *hides, struct walsh_error *err)
{
    struct walsh_buffer normal = {0};
    struct walsh_regex_scratch *regex = NULL;
    bool kept = true;
    *hides = false;
    if (!t->added_normalized.any_special) return WALSH_OK;
    enum walsh_status status = walsh_regex_scratch_open(&regex, err);
    if (status == WALSH_OK) status = walsh_normalize(&t->normalizer, regex, text, size, &normal, &kept, err);
    for (size_t i = 0; status == WALSH_OK && i < normal.size && !*hides; i++)
        *hides = walsh_added_special(&t->added_normalized, normal.data + i, normal.size - i);
    walsh_regex_scratch_close(&regex);
    walsh_buffer_free(&normal);
    return status;
}

static enum walsh_status put_guarded(const struct walsh_tokenizer *t, const uint8_t *text, size_t size,
                                     bool everywhere, struct walsh_buffer *out, struct walsh_error *err)
{
    static const char replacement[] = "\xef\xbf\xbd";
    for (size_t at = 0, step; at < size; at += step) {
        enum walsh_utf8 kind;
        step = walsh_utf8_step(text + at, size - at, &kind);
        if (everywhere || walsh_added_special(&t->added, text + at, size - at))
            WALSH_TRY(walsh_buffer_append(out, WALSH_GUARD, WALSH_GUARD_SIZE, err));
        const bool guard = step == WALSH_GUARD_SIZE && memcmp(text + at, WALSH_GUARD, step) == 0;
        WALSH_TRY(walsh_buffer_append(out, guard ? (const void *)replacement : text + at, step, err));
    }
    return walsh_buffer_append(out, "", 1, err);
}

enum walsh_status walsh_tokenizer_guard(const struct walsh_tokenizer *t, const char *text, size_t size,
                                        char **out, size_t *out_size, struct walsh_error *err)
{
    struct walsh_buffer buffer = {0};
    bool everywhere; /* a place in a normal form has none in the text: the whole text is taken apart */
    *out = NULL;
    *out_size = 0;
    WALSH_TRY(hides_token(t, (const uint8_t *)text, size, &everywhere, err));
    const enum walsh_status status = put_guarded(t, (const uint8_t *)text, size, everywhere, &buffer, err);
    if (status != WALSH_OK) {
        walsh_buffer_free(&buffer);
        return status;
    }
    *out = (char *)buffer.data;
    *out_size = buffer.size - 1;
    return WALSH_OK;
}

size_t walsh_tokenizer_unguard(char *text, size_t size)
{
    size_t to = 0;
    for (size_t at = 0; at < size;)
        if (size - at >= WALSH_GUARD_SIZE && memcmp(text + at, WALSH_GUARD, WALSH_GUARD_SIZE) == 0)
            at += WALSH_GUARD_SIZE;
        else
            text[to++] = text[at++];
    text[to] = 0;
    return to;
}
