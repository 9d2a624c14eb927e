/* libFuzzer target: chat templates over one conversation, with small limits. */
#include <jansson.h>
#include <string.h>

#include "base/memory.h"
#include "text/template.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct walsh_template_limits limits = {
        .steps = 20000, .depth = 100, .memory = 1 << 20, .output = 1 << 16};
    struct walsh_template *t;
    struct walsh_error err = {0};
    char *text;
    size_t length;
    enum walsh_status status = walsh_template_open("t", (const char *)data, size, &t, &err);
    if (status == WALSH_OK) {
        json_t *variables =
            json_pack("{s:[{s:s,s:s},{s:s,s:s,s:[{s:{s:s,s:{s:f}}}]}], s:b, s:n, s:s}", "messages", "role",
                      "user", "content", " h\xc3\xa9llo ", "role", "assistant", "content", "a</think>b",
                      "tool_calls", "function", "name", "f", "arguments", "x", 0.5, "add_generation_prompt",
                      1, "tools", "bos_token", "<s>");
        status = walsh_template_render(t, variables, 0, &limits, &text, &length, &err);
        if (status == WALSH_OK && (length > limits.output || strlen(text) > length)) __builtin_trap();
        if (status == WALSH_OK) walsh_free(text);
        json_decref(variables);
        walsh_template_close(&t);
    }
    if (status != WALSH_OK && !err.message[0]) __builtin_trap();
    return 0;
}
