#include <string.h>

#include "base/memory.h"
#include "text/tokenizer_internal.h"
#include "text/utf8.h"

#define REPLACEMENT "\xef\xbf\xbd" /* U+FFFD */

void walsh_decoder_close(struct walsh_decoder *d)
{
    for (size_t i = 0; i < d->count; i++) {
        walsh_buffer_free(&d->steps[i].literal);
        walsh_buffer_free(&d->steps[i].content);
    }
    d->count = 0;
}

/* ---- the steps that see one token ---- */

static bool starts_with(const uint8_t *text, size_t size, const struct walsh_buffer *literal)
{
    return size >= literal->size && memcmp(text, literal->data, literal->size) == 0;
}

static enum walsh_status token_step(const struct walsh_decoder_step *step, bool first, const uint8_t *text,
                                    size_t size, struct walsh_buffer *out, struct walsh_error *err)
{
    const struct walsh_buffer *literal = &step->literal, nothing = {0};
    if (step->kind != WALSH_DECODE_STRIP) {
        bool drop = step->kind == WALSH_DECODE_METASPACE && step->drop_first && first;
        return walsh_replace_literal(text, size, literal, drop ? &nothing : &step->content, out, err);
    }
    for (size_t i = 0; i < step->start && starts_with(text, size, literal); i++) {
        text += literal->size;
        size -= literal->size;
    }
    for (size_t i = 0; i < step->stop && size >= literal->size; i++) {
        if (!starts_with(text + size - literal->size, literal->size, literal)) break;
        size -= literal->size;
    }
    return size ? walsh_buffer_append(out, text, size, err) : WALSH_OK;
}

/* Append what the steps make of one token. */
static enum walsh_status run_token_steps(const struct walsh_decoder *d, bool first, const uint8_t *text,
                                         size_t size, struct walsh_buffer *out, struct walsh_error *err)
{
    struct walsh_buffer between[2] = {{0}, {0}};
    enum walsh_status status = WALSH_OK;
    for (size_t i = 0; i < d->token_steps && status == WALSH_OK; i++) {
        struct walsh_buffer *to = &between[i % 2];
        to->size = 0;
        status = token_step(&d->steps[i], first, text, size, to, err);
        text = to->data;
        size = to->size;
    }
    if (status == WALSH_OK && size) status = walsh_buffer_append(out, text, size, err);
    walsh_buffer_free(&between[0]);
    walsh_buffer_free(&between[1]);
    return status;
}

/* What `first` changes: Metaspace drops the spaces of the first token. */
static bool first_differs(const struct walsh_decoder *d)
{
    for (size_t i = 0; i < d->token_steps; i++)
        if (d->steps[i].kind == WALSH_DECODE_METASPACE && d->steps[i].drop_first) return true;
    return false;
}

static int hex_digit(uint8_t c)
{
    if (c >= '0' && c <= '9') return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The byte of a token <0xBB>, or -1. */
static int fallback_byte(const uint8_t *text, size_t size)
{
    if (size != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>') return -1;
    int high = hex_digit(text[3]), low = hex_digit(text[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

static bool has_fallback(const struct walsh_decoder *d)
{
    return d->token_steps < d->count && d->steps[d->token_steps].kind == WALSH_DECODE_FALLBACK;
}

static enum walsh_status prepare_token(const struct walsh_decoder *d, struct walsh_vocabulary *v, size_t id,
                                       struct walsh_buffer *text, struct walsh_error *err)
{
    struct walsh_token *token = &v->tokens[id];
    const struct walsh_span source = token->decoded.size ? token->decoded : token->text;
    text->size = 0;
    WALSH_TRY(run_token_steps(d, false, v->blob.data + source.offset, source.size, text, err));
    int byte = has_fallback(d) ? fallback_byte(text->data, text->size) : -1;
    if (byte >= 0) {
        text->data[0] = (uint8_t)byte;
        text->size = 1;
        token->flags |= WALSH_TOKEN_BYTE;
    }
    token->decoded = source;
    if (text->size == source.size &&
        (text->size == 0 || memcmp(text->data, v->blob.data + source.offset, text->size) == 0))
        return WALSH_OK;
    if (v->blob.size + text->size > UINT32_MAX)
        return walsh_fail(err, WALSH_E_FORMAT, "the vocabulary holds more than 4 GiB of text");
    token->decoded = (struct walsh_span){(uint32_t)v->blob.size, (uint32_t)text->size};
    return text->size ? walsh_buffer_append(&v->blob, text->data, text->size, err) : WALSH_OK;
}

enum walsh_status walsh_decoder_prepare(const struct walsh_decoder *d, struct walsh_vocabulary *v,
                                        struct walsh_error *err)
{
    struct walsh_buffer text = {0};
    enum walsh_status status = WALSH_OK;
    for (size_t id = 0; id < v->size && status == WALSH_OK; id++) {
        struct walsh_token *token = &v->tokens[id];
        if (d->count > 0) {
            status = prepare_token(d, v, id, &text, err);
        } else if (token->decoded.size == 0) { /* else its normal form is there already */
            bool as_bytes = d->byte_level && (token->flags & WALSH_TOKEN_BYTES);
            token->decoded = as_bytes ? token->bytes : token->text;
        }
    }
    walsh_buffer_free(&text);
    return status;
}

/* ---- the text as a stream ---- */

/* A decode in progress. A whole text gathers each run of byte tokens in `run`; a stream (NULL) hands out its
 * characters as they become whole. */
struct decoding {
    struct walsh_decode_stream *s;
    struct walsh_buffer *run;
    struct walsh_buffer *out;
};

/* The steps behind FALLBACK and FUSE on whole characters. */
static enum walsh_status append_text(struct decoding *d, const uint8_t *text, size_t size,
                                     struct walsh_error *err)
{
    struct walsh_decode_stream *s = d->s;
    const struct walsh_decoder *decoder = &s->tokenizer->decoder;
    struct walsh_buffer between[2] = {{0}, {0}};
    unsigned replaced = 0;
    enum walsh_status status = WALSH_OK;
    for (size_t i = decoder->token_steps; i < decoder->count && status == WALSH_OK; i++) {
        const struct walsh_decoder_step *step = &decoder->steps[i];
        if (step->kind == WALSH_DECODE_REPLACE) {
            struct walsh_buffer *to = &between[replaced++ % 2];
            to->size = 0;
            status = walsh_replace_literal(text, size, &step->literal, &step->content, to, err);
            text = to->data;
            size = to->size;
        } else if (step->kind == WALSH_DECODE_STRIP && !s->strip_done) {
            while (s->stripped < step->start && size > 0 && starts_with(text, size, &step->literal)) {
                text += step->literal.size;
                size -= step->literal.size;
                s->stripped++;
            }
            s->strip_done = size > 0;
        }
    }
    if (status == WALSH_OK && size) status = walsh_buffer_append(d->out, text, size, err);
    walsh_buffer_free(&between[0]);
    walsh_buffer_free(&between[1]);
    return status;
}

static enum walsh_status append_replacements(struct decoding *d, size_t count, struct walsh_error *err)
{
    for (size_t i = 0; i < count; i++) WALSH_TRY(append_text(d, (const uint8_t *)REPLACEMENT, 3, err));
    return WALSH_OK;
}

static bool well_formed(const uint8_t *bytes, size_t size)
{
    enum walsh_utf8 kind = WALSH_UTF8_VALID;
    for (size_t i = 0; i < size && kind == WALSH_UTF8_VALID;)
        i += walsh_utf8_step(bytes + i, size - i, &kind);
    return kind == WALSH_UTF8_VALID;
}

/* A byte of a run: `tokenizers` replaces every byte of a run that is not well-formed as a whole. */
static enum walsh_status append_byte(struct decoding *d, uint8_t byte, struct walsh_error *err)
{
    struct walsh_decode_stream *s = d->s;
    if (d->run) return walsh_buffer_append(d->run, &byte, 1, err);
    if (s->run_broken) return append_replacements(d, 1, err);
    s->held[s->held_size++] = byte;
    enum walsh_utf8 kind;
    size_t held = s->held_size;
    walsh_utf8_step(s->held, held, &kind);
    if (kind == WALSH_UTF8_CUT) return WALSH_OK;
    s->held_size = 0;
    if (kind == WALSH_UTF8_VALID) return append_text(d, s->held, held, err);
    s->run_broken = true;
    return append_replacements(d, held, err);
}

/* The run of byte tokens is over. */
static enum walsh_status end_run(struct decoding *d, struct walsh_error *err)
{
    struct walsh_decode_stream *s = d->s;
    if (d->run) {
        size_t size = d->run->size;
        d->run->size = 0;
        if (size == 0) return WALSH_OK;
        return well_formed(d->run->data, size) ? append_text(d, d->run->data, size, err)
                                               : append_replacements(d, size, err);
    }
    size_t held = s->held_size;
    s->held_size = 0;
    s->run_broken = false;
    return append_replacements(d, held, err);
}

/* What `id` adds to the text. */
static enum walsh_status append_token(struct decoding *d, int32_t id, struct walsh_error *err)
{
    struct walsh_decode_stream *s = d->s;
    const struct walsh_tokenizer *t = s->tokenizer;
    const struct walsh_vocabulary *v = &t->vocabulary;
    if (!walsh_tokenizer_has(t, id))
        return walsh_fail(err, WALSH_E_ARGUMENT, "token id %d is not in the vocabulary of %zu", id, v->size);
    const struct walsh_token *token = &v->tokens[id];
    if (s->skip_special && (token->flags & WALSH_TOKEN_SPECIAL)) return WALSH_OK;
    const uint8_t *decoded = v->blob.data + token->decoded.offset;
    bool first = !s->started;
    s->started = true;
    if (t->decoder.count == 0) {
        if (!first && !t->decoder.joined) WALSH_TRY(walsh_buffer_append(d->out, " ", 1, err));
        return walsh_buffer_append(d->out, decoded, token->decoded.size, err);
    }
    if (token->flags & WALSH_TOKEN_BYTE) return append_byte(d, decoded[0], err);
    WALSH_TRY(end_run(d, err));
    if (!first || !first_differs(&t->decoder)) return append_text(d, decoded, token->decoded.size, err);
    struct walsh_buffer text = {0};
    enum walsh_status status =
        run_token_steps(&t->decoder, true, v->blob.data + token->text.offset, token->text.size, &text, err);
    if (status == WALSH_OK) status = append_text(d, text.data, text.size, err);
    walsh_buffer_free(&text);
    return status;
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
    struct walsh_buffer bytes = {0}, run = {0};
    struct walsh_decode_stream s;
    struct decoding d = {&s, &run, &bytes};
    enum walsh_status status = WALSH_OK;
    *text = NULL;
    *size = 0;
    walsh_decode_stream_init(&s, t, skip_special);
    for (size_t i = 0; i < count && status == WALSH_OK; i++) status = append_token(&d, ids[i], err);
    if (status == WALSH_OK) status = end_run(&d, err);
    if (status == WALSH_OK) status = clean_text(bytes.data, bytes.size, text, size, err);
    walsh_buffer_free(&bytes);
    walsh_buffer_free(&run);
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

/* Tokens without decoder steps may end inside a character; the others hold back bytes themselves. */
enum walsh_status walsh_decode_stream_next(struct walsh_decode_stream *s, int32_t id, char **text,
                                           size_t *size, struct walsh_error *err)
{
    struct walsh_buffer bytes = {0};
    struct walsh_decode_stream after = *s;
    struct decoding d = {&after, NULL, &bytes};
    const bool raw = s->tokenizer->decoder.count == 0;
    *text = NULL;
    *size = 0;
    enum walsh_status status = raw ? walsh_buffer_append(&bytes, s->held, s->held_size, err) : WALSH_OK;
    if (status == WALSH_OK) status = append_token(&d, id, err);
    if (status == WALSH_OK) {
        size_t held = raw ? cut_size(bytes.data, bytes.size) : 0;
        status = clean_text(bytes.data, bytes.size - held, text, size, err);
        if (status == WALSH_OK) {
            *s = after;
            if (raw) s->held_size = (unsigned)held;
            if (held) memcpy(s->held, bytes.data + bytes.size - held, held);
        }
    }
    walsh_buffer_free(&bytes);
    return status;
}

enum walsh_status walsh_decode_stream_finish(struct walsh_decode_stream *s, char **text, size_t *size,
                                             struct walsh_error *err)
{
    struct walsh_buffer bytes = {0};
    struct walsh_decode_stream after = *s;
    struct decoding d = {&after, NULL, &bytes};
    *size = 0;
    enum walsh_status status = s->tokenizer->decoder.count == 0
                                   ? walsh_buffer_append(&bytes, s->held, s->held_size, err)
                                   : end_run(&d, err);
    if (status == WALSH_OK) status = clean_text(bytes.data, bytes.size, text, size, err);
    if (status == WALSH_OK) {
        *s = after;
        s->held_size = 0;
    }
    walsh_buffer_free(&bytes);
    return status;
}
