/* Text in and out. */
#include "api/api.h"

enum walsh_status walsh_model_needs_tokenizer(const struct walsh_model *model, struct walsh_error *err)
{
    if (model->graph->tokenizer) return WALSH_OK;
    return walsh_fail(err, WALSH_E_NOT_FOUND, "%s",
                      model->graph->checkpoint.directory ? "this model was opened without a tokenizer.json"
                                                         : "this model is synthetic and has no tokenizer");
}

enum walsh_status walsh_encode_checked(const struct walsh_model *model, const char *text, size_t size,
                                       unsigned encode, int32_t **ids, size_t *count, struct walsh_error *err)
{
    WALSH_TRY(walsh_tokenizer_encode(model->graph->tokenizer, text, size, encode, ids, count, err));
    const uint32_t vocab = model->graph->config.vocab;
    for (size_t i = 0; i < *count; i++) {
        const int32_t id = (*ids)[i];
        if ((uint32_t)id < vocab) continue;
        walsh_free(*ids);
        *ids = NULL;
        return walsh_fail(err, WALSH_E_FORMAT,
                          "%s: tokenizer.json gives id %d, the model's vocabulary has ids 0 to %u",
                          model->graph->checkpoint.directory, id, vocab - 1);
    }
    return WALSH_OK;
}

enum walsh_status walsh_model_encode(const struct walsh_model *model, const char *text, size_t size,
                                     unsigned flags, int32_t **ids, size_t *count, struct walsh_error *err)
{
    WALSH_TRY(walsh_model_needs_tokenizer(model, err));
    unsigned encode = 0;
    if (flags & WALSH_TEXT_SPECIAL) encode |= WALSH_ENCODE_SPECIAL;
    if (flags & WALSH_TEXT_PLAIN) encode |= WALSH_ENCODE_PLAIN;
    return walsh_encode_checked(model, text, size, encode, ids, count, err);
}

enum walsh_status walsh_model_decode(const struct walsh_model *model, const int32_t *ids, size_t count,
                                     bool skip_special, char **text, size_t *size, struct walsh_error *err)
{
    WALSH_TRY(walsh_model_needs_tokenizer(model, err));
    return walsh_tokenizer_decode(model->graph->tokenizer, ids, count, skip_special, text, size, err);
}

enum walsh_status walsh_model_token_bytes(const struct walsh_model *model, int32_t id, const char **bytes,
                                          size_t *size, struct walsh_error *err)
{
    WALSH_TRY(walsh_model_needs_tokenizer(model, err));
    return walsh_tokenizer_token_bytes(model->graph->tokenizer, id, bytes, size, err);
}

void walsh_memory_free(void *p)
{
    walsh_free(p);
}

struct walsh_text_stream {
    struct walsh_decode_stream decode;
    char *text; /* handed out last */
};

enum walsh_status walsh_text_stream_open(const struct walsh_model *model, bool skip_special,
                                         struct walsh_text_stream **out, struct walsh_error *err)
{
    *out = NULL;
    WALSH_TRY(walsh_model_needs_tokenizer(model, err));
    struct walsh_text_stream *stream;
    WALSH_TRY(walsh_alloc_zero(1, sizeof *stream, "a text stream", &stream, err));
    walsh_decode_stream_init(&stream->decode, model->graph->tokenizer, skip_special);
    *out = stream;
    return WALSH_OK;
}

static enum walsh_status hand_out(struct walsh_text_stream *stream, enum walsh_status status, char *text,
                                  const char **out)
{
    if (status != WALSH_OK) return status;
    walsh_free(stream->text);
    *out = stream->text = text;
    return WALSH_OK;
}

enum walsh_status walsh_text_stream_next(struct walsh_text_stream *stream, int32_t id, const char **text,
                                         size_t *size, struct walsh_error *err)
{
    char *piece = NULL;
    enum walsh_status status = walsh_decode_stream_next(&stream->decode, id, &piece, size, err);
    return hand_out(stream, status, piece, text);
}

enum walsh_status walsh_text_stream_finish(struct walsh_text_stream *stream, const char **text, size_t *size,
                                           struct walsh_error *err)
{
    char *piece = NULL;
    enum walsh_status status = walsh_decode_stream_finish(&stream->decode, &piece, size, err);
    return hand_out(stream, status, piece, text);
}

void walsh_text_stream_close(struct walsh_text_stream **stream)
{
    if (!stream || !*stream) return;
    walsh_free((*stream)->text);
    walsh_free(*stream);
    *stream = NULL;
}
