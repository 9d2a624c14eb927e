/* The decoder of tokenizer.json. */
#include <string.h>

#include "text/json_read.h"
#include "text/tokenizer_parts.h"
#include "text/utf8.h"

static const char known[] = "ByteFallback, ByteLevel, Fuse, Metaspace, Replace, Sequence, Strip, null";

/* Whether the text of so many bytes is one character. */
static bool one_character(const struct walsh_buffer *text)
{
    enum walsh_utf8 kind;
    return text->size > 0 && walsh_utf8_step(text->data, text->size, &kind) == text->size;
}

static enum walsh_status load_replace(struct walsh_decoder_step *step, const json_t *part,
                                      struct walsh_error *err)
{
    const char *where = "decoder Replace", *content;
    const char *literal = json_string_value(json_object_get(json_object_get(part, "pattern"), "String"));
    if (!literal || !*literal)
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "%s.pattern: only {\"String\": ...} is supported", where);
    step->kind = WALSH_DECODE_REPLACE;
    WALSH_TRY(walsh_json_member_string(part, where, "content", &content, err));
    WALSH_TRY(walsh_buffer_append(&step->literal, literal, strlen(literal), err));
    return walsh_buffer_append(&step->content, content, strlen(content), err);
}

static enum walsh_status load_strip(struct walsh_decoder_step *step, const json_t *part,
                                    struct walsh_error *err)
{
    const char *where = "decoder Strip", *content;
    uint32_t start, stop;
    step->kind = WALSH_DECODE_STRIP;
    WALSH_TRY(walsh_json_member_string(part, where, "content", &content, err));
    WALSH_TRY(walsh_buffer_append(&step->literal, content, strlen(content), err));
    if (!one_character(&step->literal))
        return walsh_fail(err, WALSH_E_FORMAT, "%s.content: found \"%.100s\", expected one character", where,
                          content);
    WALSH_TRY(walsh_json_index(json_object_get(part, "start"), "decoder Strip.start", 1 << 16, &start, err));
    WALSH_TRY(walsh_json_index(json_object_get(part, "stop"), "decoder Strip.stop", 1 << 16, &stop, err));
    step->start = start;
    step->stop = stop;
    return WALSH_OK;
}

static enum walsh_status load_metaspace(struct walsh_decoder_step *step, const json_t *part,
                                        struct walsh_error *err)
{
    enum walsh_prepend scheme;
    step->kind = WALSH_DECODE_METASPACE;
    WALSH_TRY(walsh_load_metaspace(part, "decoder Metaspace", &step->literal, &scheme, err));
    step->drop_first = scheme != WALSH_PREPEND_NEVER;
    return walsh_buffer_append(&step->content, " ", 1, err);
}

static enum walsh_status load_step(struct walsh_decoder_step *step, const json_t *part, const char *type,
                                   struct walsh_error *err)
{
    if (strcmp(type, "Replace") == 0) return load_replace(step, part, err);
    if (strcmp(type, "Strip") == 0) return load_strip(step, part, err);
    if (strcmp(type, "Metaspace") == 0) return load_metaspace(step, part, err);
    step->kind = strcmp(type, "Fuse") == 0 ? WALSH_DECODE_FUSE : WALSH_DECODE_FALLBACK;
    if (strcmp(type, "Fuse") == 0 || strcmp(type, "ByteFallback") == 0) return WALSH_OK;
    if (strcmp(type, "ByteLevel") == 0)
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "decoder: ByteLevel beside other steps is not supported");
    return walsh_part_unknown(err, "decoder", type, known);
}

/* How far the steps have come: what each sees. */
struct order {
    bool fallback, fuse, strip;
};

/* Refuse what cannot be done to a stream; see struct walsh_decoder. */
static enum walsh_status check_order(struct walsh_decoder *d, const struct walsh_decoder_step *step,
                                     const char *type, struct order *order, struct walsh_error *err)
{
    const bool stream = order->fallback || order->fuse;
    bool fine = true;
    switch (step->kind) {
    case WALSH_DECODE_FALLBACK:
        fine = !stream;
        order->fallback = true;
        break;
    case WALSH_DECODE_FUSE:
        order->fuse = true;
        break;
    case WALSH_DECODE_METASPACE:
        fine = !stream;
        break;
    case WALSH_DECODE_REPLACE:
        fine = !stream || one_character(&step->literal);
        break;
    case WALSH_DECODE_STRIP:
        fine = !stream || (order->fuse && step->stop == 0 && !order->strip);
        order->strip |= stream;
        break;
    }
    if (!fine)
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "decoder: this \"%.100s\" behind %s is not supported",
                          type, order->fuse && step->kind != WALSH_DECODE_FUSE ? "Fuse" : "ByteFallback");
    if (!order->fallback && !order->fuse) d->token_steps = d->count;
    return WALSH_OK;
}

static enum walsh_status load_part(struct walsh_decoder *d, const json_t *part, unsigned depth,
                                   struct order *order, struct walsh_error *err)
{
    const char *where = "decoder", *type;
    WALSH_TRY(walsh_part_type(part, where, &type, err));
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list;
        WALSH_TRY(walsh_part_members(part, where, "decoders", depth, &list, err));
        if (json_array_size(list) == 1 && d->count == 0)
            return load_part(d, json_array_get(list, 0), depth + 1, order, err);
        for (size_t i = 0; i < json_array_size(list); i++) {
            WALSH_TRY(load_part(d, json_array_get(list, i), depth + 1, order, err));
            if (d->byte_level)
                return walsh_fail(err, WALSH_E_UNSUPPORTED,
                                  "decoder: ByteLevel beside other steps is not supported");
        }
        return WALSH_OK;
    }
    if (strcmp(type, "ByteLevel") == 0 && d->count == 0) {
        d->byte_level = true;
        return WALSH_OK;
    }
    if (d->count == WALSH_MAX_STEPS)
        return walsh_fail(err, WALSH_E_FORMAT, "decoder: more than %d steps", WALSH_MAX_STEPS);
    struct walsh_decoder_step *step = &d->steps[d->count++];
    WALSH_TRY(load_step(step, part, type, err));
    return check_order(d, step, type, order, err);
}

enum walsh_status walsh_load_decoder(struct walsh_decoder *d, const json_t *part, struct walsh_error *err)
{
    struct order order = {0};
    d->joined = part != NULL;
    return part ? load_part(d, part, 0, &order, err) : WALSH_OK;
}
