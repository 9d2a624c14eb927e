/* Grammars of a model. */
#include "api/api.h"

static bool ends_answers(const void *user, int32_t id)
{
    return walsh_graph_is_eos(user, id);
}

/* The bytes of the model's tokens, made by whoever asks first. */
static enum walsh_status token_bytes(const struct walsh_model *model, const struct walsh_token_bytes **out,
                                     struct walsh_error *err)
{
    struct walsh_lazy_tokens *lazy = model->tokens;
    enum walsh_status status = WALSH_OK;
    pthread_mutex_lock(&lazy->lock);
    if (!lazy->bytes)
        status = walsh_token_bytes_open(model->graph->tokenizer, model->graph->config.vocab, ends_answers,
                                        model->graph, &lazy->bytes, err);
    *out = lazy->bytes;
    pthread_mutex_unlock(&lazy->lock);
    return status;
}

enum walsh_status walsh_grammar_open(const struct walsh_model *model, const char *schema_json, size_t size,
                                     struct walsh_grammar **out, struct walsh_error *err)
{
    const struct walsh_token_bytes *tokens;
    *out = NULL;
    WALSH_TRY(walsh_model_needs_tokenizer(model, err));
    WALSH_TRY(token_bytes(model, &tokens, err));
    return walsh_grammar_compile(tokens, schema_json, size, out, err);
}

enum walsh_status walsh_grammar_set_thought(struct walsh_grammar *grammar, const char *opens,
                                            const char *const *ends, size_t end_count,
                                            struct walsh_error *err)
{
    return walsh_grammar_put_thought(grammar, opens, ends, end_count, err);
}

void walsh_grammar_close(struct walsh_grammar **grammar)
{
    if (!grammar) return;
    walsh_grammar_release(*grammar);
    *grammar = NULL;
}
