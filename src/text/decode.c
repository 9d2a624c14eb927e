#include <string.h>

#include "base/memory.h"
#include "text/tokenizer_internal.h"
#include "text/utf8.h"

/* The bytes that `id` adds to the text: with the ByteLevel decoder what it stands for, without a decoder its
 * text behind a space, except the first. *started is the caller's. */
static enum walsh_status append_token(const struct walsh_tokenizer *t, int32_t id, bool skip_special,
                                      bool *started, struct walsh_buffer *out, struct walsh_error *err)
{
    const struct walsh_vocabulary *v = &t->vocabulary;
    if (!walsh_tokenizer_has(t, id))
        return walsh_fail(err, WALSH_E_ARGUMENT, "token id %d is not in the vocabulary of %zu", id, v->size);
    const struct walsh_token *token = &v->tokens[id];
    if (skip_special && (token->flags & WALSH_TOKEN_SPECIAL)) return WALSH_OK;
    if (*started && !t->byte_level_decoder) WALSH_TRY(walsh_buffer_append(out, " ", 1, err));
    *started = true;
    return walsh_buffer_append(out, v->blob.data + token->decoded.offset, token->decoded.size, err);
}

/* The clean copy of size bytes, NUL-terminated. */
static enum walsh_status clean_text(const uint8_t *bytes, size_t size, char **text, size_t *text_size,
                                    struct walsh_error *err)
{
    size_t clean = walsh_utf8_clean(bytes, size, NULL);
    WALSH_TRY(walsh_alloc(clean + 1, 1, "decoded text", text, err));
    walsh_utf8_clean(bytes, size, (uint8_t *)*text);
    (*text)[clean] = '\0';
    *text_size = clean;
    return WALSH_OK;
}

enum walsh_status walsh_tokenizer_decode(const struct walsh_tokenizer *t, const int32_t *ids, size_t count,
                                         bool skip_special, char **text, size_t *size,
                                         struct walsh_error *err)
{
    struct walsh_buffer bytes = {0};
    bool started = false;
    enum walsh_status status = WALSH_OK;
    *text = NULL;
    *size = 0;
    for (size_t i = 0; i < count && status == WALSH_OK; i++)
        status = append_token(t, ids[i], skip_special, &started, &bytes, err);
    if (status == WALSH_OK) status = clean_text(bytes.data, bytes.size, text, size, err);
    walsh_buffer_free(&bytes);
    return status;
}

void walsh_decode_stream_init(struct walsh_decode_stream *s, const struct walsh_tokenizer *t,
                              bool skip_special)
{
    *s = (struct walsh_decode_stream){.tokenizer = t, .skip_special = skip_special};
}

/* How many bytes at the end are the start of a character that is not complete. */
static size_t cut_size(const uint8_t *bytes, size_t size)
{
    for (size_t back = 1; back <= 3 && back <= size; back++) {
        enum walsh_utf8 kind;
        const uint8_t *lead = bytes + size - back;
        if ((*lead & 0xc0) == 0x80) continue;
        return walsh_utf8_step(lead, back, &kind) == back && kind == WALSH_UTF8_CUT ? back : 0;
    }
    return 0;
}

enum walsh_status walsh_decode_stream_next(struct walsh_decode_stream *s, int32_t id, char **text,
                                           size_t *size, struct walsh_error *err)
{
    struct walsh_buffer bytes = {0};
    bool started = s->started;
    *text = NULL;
    *size = 0;
    enum walsh_status status = walsh_buffer_append(&bytes, s->held, s->held_size, err);
    if (status == WALSH_OK) status = append_token(s->tokenizer, id, s->skip_special, &started, &bytes, err);
    if (status == WALSH_OK) {
        size_t held = cut_size(bytes.data, bytes.size);
        status = clean_text(bytes.data, bytes.size - held, text, size, err);
        if (status == WALSH_OK) {
            s->started = started;
            s->held_size = (unsigned)held;
            if (held) memcpy(s->held, bytes.data + bytes.size - held, held);
        }
    }
    walsh_buffer_free(&bytes);
    return status;
}

enum walsh_status walsh_decode_stream_finish(struct walsh_decode_stream *s, char **text, size_t *size,
                                             struct walsh_error *err)
{
    *size = 0;
    WALSH_TRY(clean_text(s->held, s->held_size, text, size, err));
    s->held_size = 0;
    return WALSH_OK;
}
