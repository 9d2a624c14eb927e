#include "chat.h"

#include <string.h>

bool chat_prompt(struct exchange *x, struct request *request, bool *thinking)
{
    (void)request;
    *thinking = false;
    return refuse(&x->refusal, 400, "no_chat_template", "messages",
                  "this model has no chat template; use /v1/completions");
}

bool response_format_check(struct exchange *x, const struct request *request)
{
    const char *type = json_string_value(json_object_get(request->response_format, "type"));
    if (type && strcmp(type, "text") == 0) return true;
    return refuse(&x->refusal, 400, "unsupported_value", "response_format",
                  "'response_format' of type \"%.40s\" is not supported", type ? type : "");
}

/* Is the word one token? */
static bool is_token(const struct walsh_model *model, const char *word)
{
    int32_t *ids = NULL;
    size_t count = 0;
    if (walsh_model_encode(model, word, strlen(word), 0, &ids, &count, NULL) != WALSH_OK) return false;
    walsh_memory_free(ids);
    return count == 1;
}

enum reasoning_style chat_reasoning(const struct walsh_model *model)
{
    return is_token(model, "<|channel|>") && is_token(model, "<|message|>") ? REASONING_CHANNELS
                                                                            : REASONING_THINK;
}
