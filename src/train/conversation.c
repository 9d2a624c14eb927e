#include "train/conversation.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "text/chat.h"

#define NOW 1721952000 /* 26 July 2024 */
#define WHITE_SPACE " \t\r\n"

static const char chatml[] =
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + "
    "'<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

struct turn {
    size_t begin, end; /* of the text: what is learned, white space behind it included */
};

struct conversation {
    const struct walsh_model_graph *graph;
    const char *where;
    const json_t *messages;
    char *tools, *variables; /* JSON; NULL: none */
    const char *template_text;
    enum walsh_status (*take)(void *context, const struct walsh_turns *turns, struct walsh_error *err);
    void *context;
    struct walsh_error *err;
    /* the document that grows */
    char *text;
    size_t size;
    struct turn *turns;
    size_t count, room;
};

static enum walsh_status out_of_memory(const struct conversation *c)
{
    return walsh_fail(c->err, WALSH_E_MEMORY, "out of memory for a conversation");
}

/* The text of the first `count` messages, with guards. */
static enum walsh_status render(const struct conversation *c, size_t count, bool prompt, char **text,
                                size_t *size)
{
    struct walsh_error err = {0};
    json_t *first = json_array();
    bool good = first != NULL;
    for (size_t i = 0; i < count && good; i++)
        good = json_array_append(first, json_array_get(c->messages, i)) == 0;
    char *messages = good ? json_dumps(first, JSON_COMPACT) : NULL;
    json_decref(first);
    if (!messages) return out_of_memory(c);
    const struct walsh_chat chat = {.messages = messages,
                                    .messages_size = strlen(messages),
                                    .tools = c->tools,
                                    .variables = c->variables,
                                    .template_text = c->template_text,
                                    .add_generation_prompt = prompt,
                                    .guarded = true,
                                    .now = NOW};
    const char *directory = c->graph->checkpoint.directory;
    const enum walsh_status status =
        walsh_chat_text(c->graph->tokenizer, directory ? directory : "the model", &chat, text, size, &err);
    free(messages);
    if (status == WALSH_OK) return WALSH_OK;
    /* what the template refuses stands in a file of data */
    return walsh_fail(c->err, status == WALSH_E_ARGUMENT ? WALSH_E_FORMAT : status,
                      "%s: the first %zu messages: %s", c->where, count, err.message);
}

static bool begins_with(const char *text, size_t size, const char *beginning, size_t length)
{
    return length <= size && memcmp(text, beginning, length) == 0;
}

static enum walsh_status encode(const struct conversation *c, size_t size, int32_t **ids, size_t *count)
{
    return walsh_tokenizer_encode(c->graph->tokenizer, c->text, size, WALSH_ENCODE_GUARDED, ids, count,
                                  c->err);
}

/* How many tokens the document has in common with the encoding of its text's first `size` bytes. */
static enum walsh_status common(const struct conversation *c, const int32_t *ids, size_t count, size_t size,
                                size_t *out)
{
    int32_t *own;
    size_t own_count;
    WALSH_TRY(encode(c, size, &own, &own_count));
    size_t n = 0;
    while (n < count && n < own_count && ids[n] == own[n]) n++;
    walsh_free(own);
    *out = n;
    return WALSH_OK;
}

/* Mark what one turn teaches. */
static enum walsh_status mark(const struct conversation *c, const struct turn *turn, const int32_t *ids,
                              size_t count, uint8_t *learned)
{
    size_t begin, end, bare, size = turn->end;
    WALSH_TRY(common(c, ids, count, turn->begin, &begin));
    WALSH_TRY(common(c, ids, count, turn->end, &end));
    while (size > turn->begin && strchr(WHITE_SPACE, c->text[size - 1])) size--;
    if (size < turn->end) {
        WALSH_TRY(common(c, ids, count, size, &bare));
        if (bare > begin && walsh_tokenizer_is_special(c->graph->tokenizer, ids[bare - 1])) end = bare;
    }
    for (size_t i = begin; i < end; i++) learned[i] = 1;
    return WALSH_OK;
}

/* The document is whole. */
static enum walsh_status hand_out(struct conversation *c)
{
    int32_t *ids;
    uint8_t *learned = NULL;
    size_t count;
    if (!c->text) return WALSH_OK;
    WALSH_TRY(encode(c, c->size, &ids, &count));
    enum walsh_status status = walsh_alloc_zero(count, 1, "the tokens of a conversation", &learned, c->err);
    for (size_t i = 0; i < c->count && status == WALSH_OK; i++)
        status = mark(c, &c->turns[i], ids, count, learned);
    const struct walsh_turns turns = {ids, learned, count, c->template_text == NULL};
    if (status == WALSH_OK) status = c->take(c->context, &turns, c->err);
    walsh_free(ids);
    walsh_free(learned);
    walsh_free(c->text);
    c->text = NULL;
    c->count = 0;
    return status;
}

static enum walsh_status add_turn(struct conversation *c, size_t begin, size_t end)
{
    if (c->count == c->room) {
        const size_t room = c->room ? 2 * c->room : 8;
        struct turn *turns;
        WALSH_TRY(walsh_alloc(room, sizeof *turns, "the turns of a conversation", &turns, c->err));
        if (c->count) memcpy(turns, c->turns, c->count * sizeof *turns);
        walsh_free(c->turns);
        c->turns = turns;
        c->room = room;
    }
    c->turns[c->count++] = (struct turn){begin, end};
    return WALSH_OK;
}

/* The turn of message `at`, which is the assistant's. *after becomes the document's text where it is used. */
static enum walsh_status read_turn(struct conversation *c, size_t at, const char *before, size_t before_size,
                                   char **after, size_t after_size)
{
    if (!begins_with(*after, after_size, before, before_size))
        return walsh_fail(
            c->err, WALSH_E_UNSUPPORTED,
            "%s: message %zu: the chat template in %s does not write this answer behind its generation "
            "prompt, so that nobody can tell what is to be learned; write the conversation "
            "out as \"prompt\" and \"completion\"",
            c->where, at + 1, c->template_text ? "walsh" : walsh_tokenizer_chat_file(c->graph->tokenizer));
    if (c->text && !begins_with(before, before_size, c->text, c->size)) WALSH_TRY(hand_out(c));
    walsh_free(c->text);
    c->text = *after;
    c->size = after_size;
    *after = NULL;
    return add_turn(c, before_size, after_size);
}

static enum walsh_status read_message(struct conversation *c, size_t at)
{
    const json_t *message = json_array_get(c->messages, at), *role = json_object_get(message, "role");
    char *before = NULL, *after = NULL;
    size_t before_size = 0, after_size = 0;
    if (!json_is_string(role))
        return walsh_fail(c->err, WALSH_E_FORMAT, "%s: message %zu is no object with a \"role\"", c->where,
                          at + 1);
    if (strcmp(json_string_value(role), "assistant") != 0) return WALSH_OK;
    enum walsh_status status = render(c, at, true, &before, &before_size);
    if (status == WALSH_OK) status = render(c, at + 1, false, &after, &after_size);
    if (status == WALSH_OK) status = read_turn(c, at, before, before_size, &after, after_size);
    walsh_free(before);
    walsh_free(after);
    return status;
}

/* The model's own template, or ChatML where it has none. */
static enum walsh_status choose_template(struct conversation *c)
{
    const struct walsh_tokenizer *t = c->graph->tokenizer;
    if (walsh_tokenizer_chat_template(t)) return WALSH_OK;
    if (walsh_tokenizer_find(t, "<|im_start|>") < 0 || walsh_tokenizer_find(t, "<|im_end|>") < 0)
        return walsh_fail(
            c->err, WALSH_E_UNSUPPORTED,
            "%s: the model has no chat template for \"messages\", nor the tokens <|im_start|> and "
            "<|im_end|> of ChatML; write them out as \"prompt\" and \"completion\"",
            c->where);
    c->template_text = chatml;
    return WALSH_OK;
}

/* *out: the member as JSON text, ours to free; NULL where it is not there. */
static enum walsh_status dump_member(const struct conversation *c, const json_t *line, const char *key,
                                     char **out)
{
    const json_t *value = json_object_get(line, key);
    if (!value || json_is_null(value)) return WALSH_OK;
    *out = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
    return *out ? WALSH_OK : out_of_memory(c);
}

static enum walsh_status read_messages(struct conversation *c, const json_t *line)
{
    if (!json_is_array(c->messages) || json_array_size(c->messages) == 0)
        return walsh_fail(c->err, WALSH_E_FORMAT, "%s: \"messages\" is no array of messages", c->where);
    WALSH_TRY(choose_template(c));
    WALSH_TRY(dump_member(c, line, "tools", &c->tools));
    WALSH_TRY(dump_member(c, line, "chat_template_kwargs", &c->variables));
    for (size_t i = 0; i < json_array_size(c->messages); i++) WALSH_TRY(read_message(c, i));
    return hand_out(c);
}

enum walsh_status walsh_conversation_read(
    const struct walsh_model_graph *graph, const char *where, const json_t *line,
    enum walsh_status (*take)(void *context, const struct walsh_turns *turns, struct walsh_error *err),
    void *context, struct walsh_error *err)
{
    struct walsh_error own;
    struct conversation c = {.graph = graph,
                             .where = where,
                             .messages = json_object_get(line, "messages"),
                             .take = take,
                             .context = context,
                             .err = err ? err : &own};
    const enum walsh_status status = read_messages(&c, line);
    free(c.tools);
    free(c.variables);
    walsh_free(c.text);
    walsh_free(c.turns);
    return status;
}
