#include <string.h>

#include "text/tokenizer_internal.h"
#include "text/utf8.h"

static struct walsh_trie_node *nodes_of(const struct walsh_added_set *set)
{
    return (struct walsh_trie_node *)(void *)set->nodes.data;
}

/* The child of `node` for `byte`; 0: none. Node 0 is the root, whose children have a table. */
static uint32_t child_of(const struct walsh_added_set *set, uint32_t node, uint8_t byte)
{
    if (node == 0) return set->first[byte];
    const struct walsh_trie_node *nodes = nodes_of(set);
    uint32_t child = nodes[node].child;
    while (child && nodes[child].byte != byte) child = nodes[child].sibling;
    return child;
}

static enum walsh_status add_child(struct walsh_added_set *set, uint32_t node, uint8_t byte, uint32_t *out,
                                   struct walsh_error *err)
{
    const struct walsh_trie_node fresh = {.byte = byte, .token = -1};
    if (set->nodes.size == 0)
        WALSH_TRY(walsh_buffer_append(&set->nodes, &fresh, sizeof fresh, err)); /* the root */
    uint32_t index = (uint32_t)(set->nodes.size / sizeof fresh);
    WALSH_TRY(walsh_buffer_append(&set->nodes, &fresh, sizeof fresh, err));
    struct walsh_trie_node *nodes = nodes_of(set);
    if (node == 0) {
        set->first[byte] = index;
    } else {
        nodes[index].sibling = nodes[node].child;
        nodes[node].child = index;
    }
    *out = index;
    return WALSH_OK;
}

enum walsh_status walsh_added_set_add(struct walsh_added_set *set, const uint8_t *content, size_t size,
                                      const struct walsh_added_token *token, struct walsh_error *err)
{
    uint32_t node = 0;
    for (size_t i = 0; i < size; i++) {
        uint32_t child = child_of(set, node, content[i]);
        if (!child) WALSH_TRY(add_child(set, node, content[i], &child, err));
        node = child;
    }
    if (nodes_of(set)[node].token >= 0)
        return walsh_fail(err, WALSH_E_FORMAT, "two added tokens match the same text \"%.*s\"", (int)size,
                          (const char *)content);
    nodes_of(set)[node].token = (int32_t)(set->tokens.size / sizeof *token);
    set->any_single_word |= token->single_word;
    set->any_special |= token->special;
    return walsh_buffer_append(&set->tokens, token, sizeof *token, err);
}

void walsh_added_set_close(struct walsh_added_set *set)
{
    walsh_buffer_free(&set->nodes);
    walsh_buffer_free(&set->tokens);
}

/* The longest token that starts at scan->text[at]; NULL: none. */
static const struct walsh_added_token *longest_at(const struct walsh_added_scan *scan, size_t at, size_t *end)
{
    int32_t token = -1;
    uint32_t node = 0;
    for (size_t i = at; i < scan->size; i++) {
        node = child_of(scan->set, node, scan->text[i]);
        if (!node) break;
        int32_t ends_here = nodes_of(scan->set)[node].token;
        if (ends_here >= 0) {
            token = ends_here;
            *end = i + 1;
        }
    }
    if (token < 0) return NULL;
    return (const struct walsh_added_token *)(const void *)scan->set->tokens.data + token;
}

static enum walsh_status is_word(const struct walsh_added_scan *scan, size_t start, bool *word,
                                 struct walsh_error *err)
{
    enum walsh_utf8 kind;
    size_t from, to, length = walsh_utf8_step(scan->text + start, scan->size - start, &kind);
    return walsh_regex_find(scan->word, scan->scratch, scan->text + start, length, 0, word, &from, &to, err);
}

/* Whether a word character touches [start, end) on either side. */
static enum walsh_status touches_word(const struct walsh_added_scan *scan, size_t start, size_t end,
                                      bool *touches, struct walsh_error *err)
{
    *touches = false;
    if (start > 0) WALSH_TRY(is_word(scan, walsh_utf8_before(scan->text, start), touches, err));
    if (!*touches && end < scan->size) WALSH_TRY(is_word(scan, end, touches, err));
    return WALSH_OK;
}

bool walsh_added_special(const struct walsh_added_set *set, const uint8_t *text, size_t size)
{
    const struct walsh_added_token *tokens = (const struct walsh_added_token *)(const void *)set->tokens.data;
    uint32_t node = 0;
    for (size_t i = 0; i < size; i++) {
        node = child_of(set, node, text[i]);
        if (!node) return false;
        const int32_t ends_here = nodes_of(set)[node].token;
        if (ends_here >= 0 && tokens[ends_here].special) return true;
    }
    return false;
}

/* Whether a guard stands at the offset, which never falls from call to call. */
static bool is_guarded(struct walsh_added_scan *scan, size_t at)
{
    while (scan->guard_count && *scan->guards < at) {
        scan->guards++;
        scan->guard_count--;
    }
    return scan->guard_count && *scan->guards == at;
}

enum walsh_status walsh_added_next(struct walsh_added_scan *scan, int32_t *id, size_t *start, size_t *end,
                                   struct walsh_error *err)
{
    while (scan->at < scan->size) {
        size_t from = scan->at, to = from;
        const struct walsh_added_token *token =
            scan->set->first[scan->text[from]] ? longest_at(scan, from, &to) : NULL;
        if (!token) {
            scan->at++;
            continue;
        }
        scan->at = to; /* a match that does not count is still used up */
        if (token->special && (scan->plain || is_guarded(scan, from))) continue;
        if (token->single_word) {
            bool touches;
            WALSH_TRY(touches_word(scan, from, to, &touches, err));
            if (touches) continue;
        }
        while (token->lstrip && from > scan->done) {
            size_t before = walsh_utf8_before(scan->text, from);
            if (!walsh_utf8_white_space(walsh_utf8_decode(scan->text + before))) break;
            from = before;
        }
        while (token->rstrip && to < scan->size &&
               walsh_utf8_white_space(walsh_utf8_decode(scan->text + to))) {
            enum walsh_utf8 kind;
            to += walsh_utf8_step(scan->text + to, scan->size - to, &kind);
        }
        *id = (int32_t)token->id;
        *start = from;
        *end = to;
        return WALSH_OK;
    }
    *id = -1;
    *start = *end = scan->size;
    return WALSH_OK;
}
