/* serve/reasoning: which part of a chat's answer is thought and which is said. Two conventions:
 * <think>...</think>, and the channels of gpt-oss
 * (<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...). */
#ifndef WALSH_SERVE_REASONING_H
#define WALSH_SERVE_REASONING_H

#include "output.h"

enum reasoning_style { REASONING_NONE, REASONING_THINK, REASONING_CHANNELS };

struct reasoning {
    enum reasoning_style style;
    enum { REASONING_BEGINS, REASONING_HEADER, REASONING_THINKS, REASONING_SAYS } state;
    bool trim; /* white space that comes next is dropped: a marker came before it */
    struct text held;
};

/* `thinking`: the prompt has opened the thought already. */
void reasoning_open(struct reasoning *reasoning, enum reasoning_style style, bool thinking);
/* Take text in; what is certain goes to one of both. false: out of memory. */
bool reasoning_push(struct reasoning *reasoning, const char *data, size_t size, struct text *content,
                    struct text *thoughts);
/* The text ends: what was held goes where it belongs. */
bool reasoning_finish(struct reasoning *reasoning, struct text *content, struct text *thoughts);
void reasoning_close(struct reasoning *reasoning);

#endif
