/* Conversations as prompts. */
#include <time.h>

#include "api/api.h"
#include "text/chat.h"

bool walsh_model_has_chat_template(const struct walsh_model *model)
{
    const struct walsh_tokenizer *t = model->graph->tokenizer;
    return t && walsh_tokenizer_chat_template(t) != NULL;
}

static enum walsh_status render(const struct walsh_model *model, const char *messages_json,
                                size_t messages_size, const struct walsh_chat_options *options, bool guarded,
                                char **text, size_t *size, struct walsh_error *err)
{
    struct walsh_chat_options o = WALSH_CHAT_OPTIONS;
    *text = NULL;
    *size = 0;
    WALSH_TRY(walsh_options_read(&o, sizeof o, options, "walsh_chat_options", err));
    WALSH_TRY(walsh_model_needs_tokenizer(model, err));
    const struct walsh_chat chat = {
        .messages = messages_json,
        .messages_size = messages_size,
        .tools = o.tools_json,
        .variables = o.variables_json,
        .template_text = o.template_text,
        .add_generation_prompt = o.add_generation_prompt,
        .guarded = guarded,
        .now = o.now ? o.now : (int64_t)time(NULL),
    };
    return walsh_chat_text(model->graph->tokenizer, model->graph->checkpoint.directory, &chat, text, size,
                           err);
}

enum walsh_status walsh_chat_render(const struct walsh_model *model, const char *messages_json,
                                    size_t messages_size, const struct walsh_chat_options *options,
                                    char **text, size_t *size, struct walsh_error *err)
{
    return render(model, messages_json, messages_size, options, false, text, size, err);
}

enum walsh_status walsh_chat_encode(const struct walsh_model *model, const char *messages_json,
                                    size_t messages_size, const struct walsh_chat_options *options,
                                    int32_t **ids, size_t *count, char **text, size_t *size,
                                    struct walsh_error *err)
{
    char *guarded;
    size_t guarded_size;
    *ids = NULL;
    *count = 0;
    if (text) *text = NULL;
    WALSH_TRY(render(model, messages_json, messages_size, options, true, &guarded, &guarded_size, err));
    const enum walsh_status status =
        walsh_encode_checked(model, guarded, guarded_size, WALSH_ENCODE_GUARDED, ids, count, err);
    if (status != WALSH_OK || !text) {
        walsh_free(guarded);
        return status;
    }
    *size = walsh_tokenizer_unguard(guarded, guarded_size);
    *text = guarded;
    return WALSH_OK;
}
