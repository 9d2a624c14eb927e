/* tokenizer.json: the vocabulary, the merges, the added tokens. The parts around the model are
 * tokenizer_parts.c. */
#include <stdint.h>
#include <string.h>

#include "base/memory.h"
#include "text/json_read.h"
#include "text/tokenizer_internal.h"
#include "text/tokenizer_parts.h"

#define MAX_FILE ((size_t)128 << 20) /* bytes of tokenizer.json; 200,000 tokens take 20 MB */

static enum walsh_status type_error(struct walsh_error *err, const char *where, const json_t *found,
                                    const char *expected)
{
    return walsh_fail(err, WALSH_E_FORMAT, "%s: found %s, expected %s", where, walsh_json_type_name(found),
                      expected);
}

/* Options of the model that change the ids. Behind ByteLevel an unk_token, fuse_unk or byte_fallback has no
 * effect where every byte has a token. */
static enum walsh_status load_bpe_options(struct walsh_tokenizer *t, const json_t *model,
                                          struct walsh_error *err)
{
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (size_t i = 0; i < 2; i++) {
        const char *affix = json_string_value(json_object_get(model, affixes[i]));
        if (affix && *affix)
            return walsh_fail(err, WALSH_E_UNSUPPORTED, "model.%s \"%.100s\" is not supported", affixes[i],
                              affix);
    }
    const json_t *dropout = walsh_json_member(model, "dropout");
    if (dropout && !(json_is_number(dropout) && json_number_value(dropout) == 0.0))
        return walsh_fail(err, WALSH_E_UNSUPPORTED,
                          "model.dropout is not supported: encoding would be random");
    const char *unknown = json_string_value(json_object_get(model, "unk_token"));
    struct walsh_bpe *bpe = &t->bpe;
    bool byte_fallback;
    WALSH_TRY(walsh_json_member_bool(model, "model", "byte_fallback", false, &byte_fallback, err));
    WALSH_TRY(walsh_json_member_bool(model, "model", "fuse_unk", false, &bpe->fuse_unknown, err));
    bpe->byte_fallback = byte_fallback;
    bpe->characters = !t->byte_level;
    if (bpe->characters) {
        walsh_vocabulary_find_fallback(&t->vocabulary, bpe->fallback_ids);
        bpe->unknown =
            unknown ? walsh_vocabulary_find_model(&t->vocabulary, (const uint8_t *)unknown, strlen(unknown))
                    : -1;
        if (unknown && bpe->unknown < 0)
            return walsh_fail(err, WALSH_E_FORMAT, "model.unk_token \"%.100s\" is not in the vocabulary",
                              unknown);
        return WALSH_OK;
    }
    for (int b = 0; (unknown || byte_fallback) && b < 256; b++)
        if (t->bpe.byte_ids[b] < 0)
            return walsh_fail(err, WALSH_E_UNSUPPORTED,
                              "model.%s is not supported in a vocabulary that lacks bytes (0x%02x)",
                              unknown ? "unk_token" : "byte_fallback", (unsigned)b);
    return WALSH_OK;
}

/* One past the largest id of vocab (BPE's; NULL: `first_free` ids from 0 on) and added_tokens. Holes are
 * fine, a file of mostly holes is not: it would ask for memory that it does not fill. */
static enum walsh_status count_ids(const json_t *vocab, size_t first_free, const json_t *added, size_t *size,
                                   struct walsh_error *err)
{
    const char *token;
    json_t *value;
    uint32_t id, end = (uint32_t)first_free;
    json_object_foreach((json_t *)(uintptr_t)vocab, token, value)
    {
        WALSH_TRY(walsh_json_index(value, "model.vocab: an id", WALSH_MAX_TOKENS, &id, err));
        if (id >= end) end = id + 1;
    }
    size_t i;
    json_array_foreach(added, i, value)
    {
        WALSH_TRY(
            walsh_json_index(json_object_get(value, "id"), "added_tokens: id", WALSH_MAX_TOKENS, &id, err));
        if (id >= end) end = id + 1;
    }
    size_t tokens = json_object_size(vocab) + first_free + json_array_size(added);
    if (end > 4 * tokens + 65536)
        return walsh_fail(err, WALSH_E_FORMAT, "token id %u is out of range for %zu tokens", end - 1, tokens);
    *size = end;
    return WALSH_OK;
}

static enum walsh_status load_vocab(struct walsh_tokenizer *t, const json_t *vocab, struct walsh_error *err)
{
    const char *token;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)vocab, token, value) WALSH_TRY(walsh_vocabulary_add(
        &t->vocabulary, (uint32_t)json_integer_value(value), token, strlen(token), WALSH_TOKEN_MODEL, err));
    WALSH_TRY(walsh_vocabulary_index_bytes(&t->vocabulary, err));
    for (unsigned b = 0; b < 256; b++) {
        const uint8_t byte = (uint8_t)b;
        t->bpe.byte_ids[b] = walsh_vocabulary_find_bytes(&t->vocabulary, &byte, 1);
    }
    return WALSH_OK;
}

/* The halves of a merge, written "a b" or ["a", "b"]. */
static enum walsh_status merge_halves(const json_t *merge, size_t rank, const char *half[2], size_t size[2],
                                      struct walsh_error *err)
{
    if (json_is_string(merge)) {
        const char *text = json_string_value(merge), *space = strchr(text, ' ');
        if (!space || strchr(space + 1, ' '))
            return walsh_fail(err, WALSH_E_FORMAT, "model.merges[%zu]: found \"%.100s\", expected two tokens",
                              rank, text);
        half[0] = text;
        size[0] = (size_t)(space - text);
        half[1] = space + 1;
        size[1] = strlen(half[1]);
        return WALSH_OK;
    }
    if (json_array_size(merge) != 2 || !json_is_string(json_array_get(merge, 0)) ||
        !json_is_string(json_array_get(merge, 1)))
        return walsh_fail(err, WALSH_E_FORMAT, "model.merges[%zu]: found %s, expected two tokens", rank,
                          walsh_json_type_name(merge));
    for (size_t i = 0; i < 2; i++) {
        half[i] = json_string_value(json_array_get(merge, i));
        size[i] = json_string_length(json_array_get(merge, i));
    }
    return WALSH_OK;
}

static enum walsh_status find_half(const struct walsh_tokenizer *t, size_t rank, const char *text,
                                   size_t size, uint32_t *id, struct walsh_error *err)
{
    int32_t found = walsh_vocabulary_find_text(&t->vocabulary, text, size);
    if (found < 0)
        return walsh_fail(err, WALSH_E_FORMAT, "model.merges[%zu]: token \"%.*s\" is not in the vocabulary",
                          rank, (int)walsh_min(size, 100), text);
    *id = (uint32_t)found;
    return WALSH_OK;
}

static enum walsh_status load_merge(struct walsh_tokenizer *t, const json_t *merge, size_t rank,
                                    struct walsh_buffer *joined, struct walsh_error *err)
{
    const char *half[2];
    size_t size[2];
    uint32_t left = 0, right = 0, merged = 0;
    WALSH_TRY(merge_halves(merge, rank, half, size, err));
    WALSH_TRY(find_half(t, rank, half[0], size[0], &left, err));
    WALSH_TRY(find_half(t, rank, half[1], size[1], &right, err));
    joined->size = 0;
    WALSH_TRY(walsh_buffer_append(joined, half[0], size[0], err));
    WALSH_TRY(walsh_buffer_append(joined, half[1], size[1], err));
    WALSH_TRY(find_half(t, rank, joined->data ? (const char *)joined->data : "", joined->size, &merged, err));
    walsh_bpe_add(&t->bpe, left, right, (uint32_t)rank, merged);
    return WALSH_OK;
}

static enum walsh_status load_merges(struct walsh_tokenizer *t, const json_t *merges, struct walsh_error *err)
{
    struct walsh_buffer joined = {0};
    enum walsh_status status = walsh_bpe_open(&t->bpe, json_array_size(merges), err);
    for (size_t rank = 0; rank < json_array_size(merges) && status == WALSH_OK; rank++)
        status = load_merge(t, json_array_get(merges, rank), rank, &joined, err);
    walsh_buffer_free(&joined);
    return status;
}

/* model.vocab[id] is a token and its score, the logarithm of its probability. */
static enum walsh_status load_unigram_vocab(struct walsh_tokenizer *t, const json_t *vocab, double *scores,
                                            struct walsh_error *err)
{
    size_t id;
    json_t *entry;
    json_array_foreach(vocab, id, entry)
    {
        const char *text = json_string_value(json_array_get(entry, 0));
        const json_t *score = json_array_get(entry, 1);
        if (!text || !json_is_number(score) || json_array_size(entry) != 2)
            return walsh_fail(err, WALSH_E_FORMAT, "model.vocab[%zu]: expected a token and its score", id);
        scores[id] = json_number_value(score);
        WALSH_TRY(
            walsh_vocabulary_add(&t->vocabulary, (uint32_t)id, text, strlen(text), WALSH_TOKEN_MODEL, err));
    }
    return WALSH_OK;
}

static enum walsh_status load_unigram(struct walsh_tokenizer *t, const json_t *model, const json_t *added,
                                      struct walsh_error *err)
{
    const json_t *vocab = json_object_get(model, "vocab"), *unknown = walsh_json_member(model, "unk_id");
    struct walsh_unigram *u = &t->unigram;
    const size_t tokens = json_array_size(vocab);
    if (!json_is_array(vocab)) return type_error(err, "model.vocab", vocab, "an array");
    if (t->byte_level)
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "a Unigram model behind ByteLevel is not supported");
    if (tokens == 0 || tokens > WALSH_MAX_TOKENS)
        return walsh_fail(err, WALSH_E_FORMAT, "model.vocab: %zu tokens, expected 1 to %d", tokens,
                          WALSH_MAX_TOKENS);
    u->unknown = -1;
    if (unknown) {
        uint32_t id;
        WALSH_TRY(walsh_json_index(unknown, "model.unk_id", (uint32_t)tokens, &id, err));
        u->unknown = (int32_t)id;
    }
    WALSH_TRY(walsh_json_member_bool(model, "model", "byte_fallback", false, &u->byte_fallback, err));
    size_t size = 0;
    WALSH_TRY(count_ids(NULL, tokens, added, &size, err));
    WALSH_TRY(walsh_vocabulary_open(&t->vocabulary, size, err));
    double *scores;
    WALSH_TRY(walsh_alloc(size, sizeof *scores, "scores", &scores, err));
    enum walsh_status status = load_unigram_vocab(t, vocab, scores, err);
    if (status == WALSH_OK) return walsh_unigram_open(u, &t->vocabulary, scores, tokens, err);
    walsh_free(scores);
    return status;
}

static enum walsh_status load_model(struct walsh_tokenizer *t, const json_t *model, const json_t *added,
                                    struct walsh_error *err)
{
    if (!json_is_object(model)) return type_error(err, "model", model, "an object");
    const json_t *type = walsh_json_member(model, "type"); /* old files leave it out */
    if (type && !json_is_string(type)) return type_error(err, "model.type", type, "a string");
    if (type && strcmp(json_string_value(type), "Unigram") == 0) return load_unigram(t, model, added, err);
    if (type && strcmp(json_string_value(type), "BPE") != 0)
        return walsh_fail(err, WALSH_E_UNSUPPORTED,
                          "model type \"%.100s\" is not supported (known: BPE, Unigram)",
                          json_string_value(type));
    const json_t *vocab = json_object_get(model, "vocab"), *merges = json_object_get(model, "merges");
    if (!json_is_object(vocab)) return type_error(err, "model.vocab", vocab, "an object");
    if (!json_is_array(merges)) return type_error(err, "model.merges", merges, "an array");
    size_t size = 0;
    WALSH_TRY(count_ids(vocab, 0, added, &size, err));
    if (size == 0) return walsh_fail(err, WALSH_E_FORMAT, "the vocabulary is empty");
    WALSH_TRY(walsh_vocabulary_open(&t->vocabulary, size, err));
    WALSH_TRY(load_vocab(t, vocab, err));
    WALSH_TRY(load_bpe_options(t, model, err));
    WALSH_TRY(walsh_json_member_bool(model, "model", "ignore_merges", false, &t->bpe.ignore_merges, err));
    return load_merges(t, merges, err);
}

/* A token that is matched in normal form is decoded to its normal form too. */
static enum walsh_status add_normalized(struct walsh_tokenizer *t, const char *content, size_t size,
                                        const struct walsh_added_token *token, struct walsh_error *err)
{
    if (t->normalizer.count == 0)
        return walsh_added_set_add(&t->added_normalized, (const uint8_t *)content, size, token, err);
    struct walsh_buffer normal = {0};
    struct walsh_regex_scratch *scratch = NULL;
    bool kept = true;
    enum walsh_status status = walsh_regex_scratch_open(&scratch, err);
    if (status == WALSH_OK)
        status =
            walsh_normalize(&t->normalizer, scratch, (const uint8_t *)content, size, &normal, &kept, err);
    walsh_regex_scratch_close(&scratch);
    if (status == WALSH_OK && normal.size > 0)
        status = walsh_added_set_add(&t->added_normalized, normal.data, normal.size, token, err);
    if (status == WALSH_OK && (normal.size != size || memcmp(normal.data, content, size) != 0)) {
        struct walsh_span text, bytes;
        bool all;
        struct walsh_token *entry = &t->vocabulary.tokens[token->id];
        status = walsh_vocabulary_intern(&t->vocabulary, (const char *)normal.data, normal.size, &text,
                                         &bytes, &all, err);
        if (status == WALSH_OK) entry->decoded = t->decoder.byte_level && all ? bytes : text;
        entry->flags &=
            ~(unsigned)WALSH_TOKEN_SPECIAL; /* `tokenizers` knows specials by their written form */
    }
    walsh_buffer_free(&normal);
    return status;
}

/* Enter one added token into the vocabulary (or mark the model's own) and into the set that its `normalized`
 * names. */
static enum walsh_status load_added_token(struct walsh_tokenizer *t, const json_t *entry,
                                          struct walsh_error *err)
{
    const char *where = "added_tokens", *content;
    struct walsh_added_token token;
    bool normalized;
    if (!json_is_object(entry)) return type_error(err, where, entry, "objects");
    WALSH_TRY(walsh_json_member_string(entry, where, "content", &content, err));
    WALSH_TRY(walsh_json_member_bool(entry, where, "single_word", false, &token.single_word, err));
    WALSH_TRY(walsh_json_member_bool(entry, where, "lstrip", false, &token.lstrip, err));
    WALSH_TRY(walsh_json_member_bool(entry, where, "rstrip", false, &token.rstrip, err));
    WALSH_TRY(walsh_json_member_bool(entry, where, "special", false, &token.special, err));
    WALSH_TRY(walsh_json_member_bool(entry, where, "normalized", !token.special, &normalized, err));
    token.id =
        (uint32_t)json_integer_value(json_object_get(entry, "id")); /* count_ids saw that it is an index */
    size_t size = strlen(content);
    if (size == 0) return WALSH_OK; /* `tokenizers` takes no notice of it either */
    if (size > WALSH_MAX_ADDED_BYTES)
        return walsh_fail(err, WALSH_E_FORMAT, "added token %u: %zu bytes long, at most %d are supported",
                          token.id, size, WALSH_MAX_ADDED_BYTES);

    struct walsh_vocabulary *v = &t->vocabulary;
    int32_t known = walsh_vocabulary_find_text(v, content, size);
    if (known >= 0 && (uint32_t)known != token.id)
        return walsh_fail(err, WALSH_E_FORMAT,
                          "added token \"%.100s\" has id %u, but id %d in the vocabulary", content, token.id,
                          known);
    if (known < 0) WALSH_TRY(walsh_vocabulary_add(v, token.id, content, size, 0, err));
    v->tokens[token.id].flags |= WALSH_TOKEN_ADDED | (token.special ? WALSH_TOKEN_SPECIAL : 0u);
    if (normalized) return add_normalized(t, content, size, &token, err);
    return walsh_added_set_add(&t->added, (const uint8_t *)content, size, &token, err);
}

static enum walsh_status load_root(struct walsh_tokenizer *t, const json_t *root, struct walsh_error *err)
{
    const json_t *added = walsh_json_member(root, "added_tokens");
    if (added && !json_is_array(added)) return type_error(err, "added_tokens", added, "an array");
    WALSH_TRY(walsh_load_parts(t, root, err));
    WALSH_TRY(load_model(t, json_object_get(root, "model"), added, err));
    for (size_t i = 0; i < json_array_size(added); i++)
        WALSH_TRY(load_added_token(t, json_array_get(added, i), err));
    if (t->added.any_single_word || t->added_normalized.any_single_word)
        WALSH_TRY(
            walsh_regex_open("[\\w\\x{200c}\\x{200d}]", false, &t->word, err)); /* \w with Join_Control */
    WALSH_TRY(walsh_decoder_prepare(&t->decoder, &t->vocabulary, err));
    return walsh_load_post_processor(t, walsh_json_member(root, "post_processor"), err);
}

enum walsh_status walsh_tokenizer_load(struct walsh_tokenizer *t, const char *path, struct walsh_error *err)
{
    json_t *root;
    WALSH_TRY(walsh_json_read_file(path, MAX_FILE, &root, err));
    enum walsh_status status = load_root(t, root, err);
    json_decref(root);
    return status == WALSH_OK ? status : walsh_fail_within(err, status, "%s", path);
}
