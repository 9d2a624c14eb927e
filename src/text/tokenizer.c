#include "text/tokenizer.h"

#include <string.h>

#include "base/file.h"
#include "base/memory.h"
#include "text/tokenizer_internal.h"

static enum walsh_status load(struct walsh_tokenizer *t, const char *directory, struct walsh_error *err)
{
    char *path;
    WALSH_TRY(walsh_path_join(directory, "tokenizer.json", &path, err));
    enum walsh_status status;
    if (walsh_path_exists(path))
        status = walsh_tokenizer_load(t, path, err);
    else
        status = walsh_fail(err, WALSH_E_NOT_FOUND,
                            "%s: no such file (a model directory needs its tokenizer.json)", path);
    walsh_free(path);
    WALSH_TRY(status);
    return walsh_tokenizer_load_config(t, directory, err);
}

enum walsh_status walsh_tokenizer_open(const char *directory, struct walsh_tokenizer **out,
                                       struct walsh_error *err)
{
    WALSH_TRY(walsh_alloc_zero(1, sizeof **out, "tokenizer", out, err));
    (*out)->bos = (*out)->eos = -1;
    enum walsh_status status = load(*out, directory, err);
    if (status != WALSH_OK) walsh_tokenizer_close(out);
    return status;
}

void walsh_tokenizer_close(struct walsh_tokenizer **t)
{
    if (!*t) return;
    walsh_vocabulary_close(&(*t)->vocabulary);
    walsh_bpe_close(&(*t)->bpe);
    walsh_added_set_close(&(*t)->added);
    walsh_added_set_close(&(*t)->added_normalized);
    walsh_regex_close(&(*t)->word);
    walsh_unigram_close(&(*t)->unigram);
    walsh_normalizer_close(&(*t)->normalizer);
    walsh_pretokenizer_close(&(*t)->pretokenizer);
    walsh_decoder_close(&(*t)->decoder);
    walsh_free((*t)->chat_template);
    walsh_free((*t)->tool_template);
    walsh_free((*t)->template_file);
    json_decref((*t)->special_tokens);
    walsh_free(*t);
    *t = NULL;
}

size_t walsh_tokenizer_size(const struct walsh_tokenizer *t)
{
    return t->vocabulary.size;
}

bool walsh_tokenizer_has(const struct walsh_tokenizer *t, int32_t id)
{
    const struct walsh_vocabulary *v = &t->vocabulary;
    return id >= 0 && (size_t)id < v->size && v->tokens[id].flags != 0;
}

bool walsh_tokenizer_is_special(const struct walsh_tokenizer *t, int32_t id)
{
    return walsh_tokenizer_has(t, id) && (t->vocabulary.tokens[id].flags & WALSH_TOKEN_SPECIAL) != 0;
}

enum walsh_status walsh_tokenizer_token_bytes(const struct walsh_tokenizer *t, int32_t id, const char **bytes,
                                              size_t *size, struct walsh_error *err)
{
    const struct walsh_vocabulary *v = &t->vocabulary;
    if (!walsh_tokenizer_has(t, id))
        return walsh_fail(err, WALSH_E_ARGUMENT, "token id %d is not in the vocabulary of %zu", id, v->size);
    const struct walsh_span span = v->tokens[id].decoded;
    *bytes = (const char *)v->blob.data + span.offset;
    *size = span.size;
    return WALSH_OK;
}

int32_t walsh_tokenizer_bos(const struct walsh_tokenizer *t)
{
    return t->bos;
}

int32_t walsh_tokenizer_eos(const struct walsh_tokenizer *t)
{
    return t->eos;
}

int32_t walsh_tokenizer_find(const struct walsh_tokenizer *t, const char *token)
{
    return walsh_vocabulary_find_text(&t->vocabulary, token, strlen(token));
}

const char *walsh_tokenizer_chat_template(const struct walsh_tokenizer *t)
{
    return t->chat_template;
}

const char *walsh_tokenizer_chat_file(const struct walsh_tokenizer *t)
{
    return t->template_file;
}
