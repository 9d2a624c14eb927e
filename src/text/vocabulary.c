#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "text/tokenizer_internal.h"
#include "text/utf8.h"

uint64_t walsh_text_hash(const uint8_t *bytes, size_t size)
{
    /* Multiply and fold, eight bytes at a time; the constants are odd and otherwise arbitrary. */
    uint64_t h = UINT64_C(0x9e3779b97f4a7c15) ^ size;
    while (size >= 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        h = (h ^ word) * UINT64_C(0xd6e8feb86659fd93);
        h ^= h >> 32;
        bytes += 8;
        size -= 8;
    }
    uint64_t tail = 0;
    for (size_t i = 0; i < size; i++) tail |= (uint64_t)bytes[i] << (8 * i);
    h = (h ^ tail) * UINT64_C(0xd6e8feb86659fd93);
    h ^= h >> 32;
    h *= UINT64_C(0xff51afd7ed558ccd);
    return h ^ h >> 29;
}

/* The printable bytes of Latin-1 stand for themselves, the 68 others for U+0100 on, in their order. */
static bool stands_for_itself(unsigned byte)
{
    return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad);
}

static void fill_alphabet(int16_t byte_of[WALSH_ALPHABET_END])
{
    for (unsigned symbol = 0; symbol < WALSH_ALPHABET_END; symbol++) byte_of[symbol] = -1;
    unsigned next = 256;
    for (unsigned byte = 0; byte < 256; byte++)
        byte_of[stands_for_itself(byte) ? byte : next++] = (int16_t)byte;
}

static enum walsh_status id_map_open(struct walsh_id_map *map, size_t keys, struct walsh_error *err)
{
    size_t slots = 64;
    while (slots < 2 * keys) slots *= 2;
    WALSH_TRY(walsh_alloc_zero(slots, sizeof *map->slots, "token index", &map->slots, err));
    map->mask = slots - 1;
    return WALSH_OK;
}

/* The slot of a key among the tokens' bytes or texts; a free slot where it is absent. */
static uint32_t *id_map_slot(const struct walsh_vocabulary *v, const struct walsh_id_map *map, bool bytes,
                             const uint8_t *key, size_t size)
{
    for (size_t i = walsh_text_hash(key, size) & map->mask;; i = (i + 1) & map->mask) {
        uint32_t *slot = &map->slots[i];
        if (*slot == 0) return slot;
        const struct walsh_token *token = &v->tokens[*slot - 1];
        struct walsh_span span = bytes ? token->bytes : token->text;
        if (span.size == size && memcmp(v->blob.data + span.offset, key, size) == 0) return slot;
    }
}

enum walsh_status walsh_vocabulary_open(struct walsh_vocabulary *v, size_t size, struct walsh_error *err)
{
    *v = (struct walsh_vocabulary){.size = size};
    fill_alphabet(v->byte_of);
    WALSH_TRY(walsh_alloc_zero(size, sizeof *v->tokens, "tokens", &v->tokens, err));
    WALSH_TRY(walsh_buffer_reserve(&v->blob, 1, err)); /* there also where all texts are empty */
    return id_map_open(&v->by_text, size, err);
}

void walsh_vocabulary_close(struct walsh_vocabulary *v)
{
    walsh_free(v->tokens);
    walsh_free(v->by_text.slots);
    walsh_free(v->by_bytes.slots);
    walsh_buffer_free(&v->blob);
    *v = (struct walsh_vocabulary){0};
}

/* Append what the byte alphabet's characters stand for; false (nothing appended) where a character is not of
 * it. */
static enum walsh_status append_bytes(struct walsh_vocabulary *v, const uint8_t *text, size_t size, bool *all,
                                      struct walsh_error *err)
{
    WALSH_TRY(walsh_buffer_reserve(&v->blob, size, err));
    size_t written = 0;
    for (size_t i = 0; i < size;) {
        enum walsh_utf8 kind;
        size_t length = walsh_utf8_step(text + i, size - i, &kind);
        uint32_t symbol = kind == WALSH_UTF8_VALID ? walsh_utf8_decode(text + i) : UINT32_MAX;
        *all = symbol < WALSH_ALPHABET_END && v->byte_of[symbol] >= 0;
        if (!*all) return WALSH_OK;
        v->blob.data[v->blob.size + written++] = (uint8_t)v->byte_of[symbol];
        i += length;
    }
    *all = true;
    v->blob.size += written;
    return WALSH_OK;
}

enum walsh_status walsh_vocabulary_intern(struct walsh_vocabulary *v, const char *text, size_t size,
                                          struct walsh_span *text_span, struct walsh_span *bytes_span,
                                          bool *all_bytes, struct walsh_error *err)
{
    if (v->blob.size + 2 * size > UINT32_MAX)
        return walsh_fail(err, WALSH_E_FORMAT, "the vocabulary holds more than 4 GiB of text");
    *text_span = (struct walsh_span){(uint32_t)v->blob.size, (uint32_t)size};
    WALSH_TRY(walsh_buffer_append(&v->blob, text, size, err));
    uint32_t offset = (uint32_t)v->blob.size;
    WALSH_TRY(append_bytes(v, (const uint8_t *)text, size, all_bytes, err));
    *bytes_span = (struct walsh_span){offset, (uint32_t)v->blob.size - offset};
    return WALSH_OK;
}

enum walsh_status walsh_vocabulary_add(struct walsh_vocabulary *v, uint32_t id, const char *text, size_t size,
                                       unsigned flags, struct walsh_error *err)
{
    struct walsh_token *token = &v->tokens[id];
    if (token->flags)
        return walsh_fail(err, WALSH_E_FORMAT, "tokens \"%.*s\" and \"%.100s\" have the same id %u",
                          (int)token->text.size, (const char *)v->blob.data + token->text.offset, text, id);
    uint32_t *slot = id_map_slot(v, &v->by_text, false, (const uint8_t *)text, size);
    if (*slot)
        return walsh_fail(err, WALSH_E_FORMAT, "token \"%.100s\" has two ids, %u and %u", text, *slot - 1,
                          id);
    *slot = id + 1; /* with the text in place, before the next look-up */
    bool all;
    WALSH_TRY(walsh_vocabulary_intern(v, text, size, &token->text, &token->bytes, &all, err));
    token->flags = flags | WALSH_TOKEN_TAKEN | (all ? WALSH_TOKEN_BYTES : 0u);
    return WALSH_OK;
}

enum walsh_status walsh_vocabulary_index_bytes(struct walsh_vocabulary *v, struct walsh_error *err)
{
    const unsigned wanted = WALSH_TOKEN_MODEL | WALSH_TOKEN_BYTES;
    WALSH_TRY(id_map_open(&v->by_bytes, v->size, err));
    for (uint32_t id = 0; id < v->size; id++) {
        const struct walsh_token *token = &v->tokens[id];
        if ((token->flags & wanted) != wanted) continue;
        *id_map_slot(v, &v->by_bytes, true, v->blob.data + token->bytes.offset, token->bytes.size) = id + 1;
    }
    return WALSH_OK;
}

int32_t walsh_vocabulary_find_text(const struct walsh_vocabulary *v, const char *text, size_t size)
{
    return (int32_t)*id_map_slot(v, &v->by_text, false, (const uint8_t *)text, size) - 1;
}

int32_t walsh_vocabulary_find_model(const struct walsh_vocabulary *v, const uint8_t *text, size_t size)
{
    int32_t id = (int32_t)*id_map_slot(v, &v->by_text, false, text, size) - 1;
    return id >= 0 && (v->tokens[id].flags & WALSH_TOKEN_MODEL) ? id : -1;
}

void walsh_vocabulary_find_fallback(const struct walsh_vocabulary *v, int32_t ids[256])
{
    for (unsigned byte = 0; byte < 256; byte++) {
        char text[8];
        int size = snprintf(text, sizeof text, "<0x%02X>", byte);
        ids[byte] = walsh_vocabulary_find_model(v, (const uint8_t *)text, (size_t)size);
    }
}

int32_t walsh_vocabulary_find_bytes(const struct walsh_vocabulary *v, const uint8_t *bytes, size_t size)
{
    return (int32_t)*id_map_slot(v, &v->by_bytes, true, bytes, size) - 1;
}
