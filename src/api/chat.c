/* Conversations as prompts. */
#include <time.h>

#include "api/api.h"
#include "text/chat.h"

bool walsh_model_has_chat_template(const struct walsh_model *model)
{
    const struct walsh_tokenizer *t = model->graph->tokenizer;
    return t && walsh_tokenizer_chat_template(t) != NULL;
}

enum walsh_status walsh_chat_render(const struct walsh_model *model, const char *messages_json,
                                    size_t messages_size, const struct walsh_chat_options *options,
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
        .now = o.now ? o.now : (int64_t)time(NULL),
    };
    return walsh_chat_text(model->graph->tokenizer, model->graph->checkpoint.directory, &chat, text, size,
                           err);
}
