/* libFuzzer target: bodies of requests. The first byte chooses the endpoint. */
#include "serve/request.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const unsigned endpoints[] = {FOR_COMPLETION, FOR_CHAT, FOR_TOKENIZE,
                                         FOR_DETOKENIZE, FOR_LOAD, FOR_UNLOAD};
    struct request request;
    struct refusal refusal = {0};
    if (size == 0) return 0;
    const unsigned endpoint = endpoints[data[0] % (sizeof endpoints / sizeof *endpoints)];
    const bool good = request_parse((const char *)data + 1, size - 1, endpoint, 8192, &request, &refusal);
    /* what passed is within what the rest of the server relies on */
    if (good && (request.n < 1 || (size_t)request.n * request.prompt_count > MOST_CHOICES)) __builtin_trap();
    if (good && (request.top_logprobs < 0 || request.top_logprobs > MOST_LOGPROBS)) __builtin_trap();
    if (good && request.max_tokens != OPTION_UNSET &&
        (request.max_tokens < (endpoint == FOR_CHAT) || request.max_tokens > INT32_MAX))
        __builtin_trap();
    for (size_t p = 0; good && p < request.prompt_count; p++)
        for (size_t i = 0; i < request.prompts[p].count; i++)
            if (request.prompts[p].ids[i] < 0 || request.prompts[p].ids[i] >= 8192) __builtin_trap();
    for (size_t i = 0; good && i < request.bias_count; i++)
        if (request.bias_ids[i] < 0 || request.bias_ids[i] >= 8192) __builtin_trap();
    if (!good && (!refusal.status || !refusal.type || !refusal.message[0])) __builtin_trap();
    request_free(&request);
    return 0;
}
