#include "text/buffer.h"

#include <string.h>

#include "base/memory.h"

enum walsh_status walsh_buffer_reserve(struct walsh_buffer *b, size_t more, struct walsh_error *err)
{
    size_t needed, doubled;
    if (!walsh_add(b->size, more, &needed)) return walsh_fail(err, WALSH_E_MEMORY, "a text is too large");
    if (needed <= b->capacity) return WALSH_OK;
    if (!walsh_mul(b->capacity, 2, &doubled)) doubled = needed;
    size_t capacity = walsh_max(walsh_max(needed, doubled), 256);
    uint8_t *data;
    WALSH_TRY(walsh_alloc(capacity, 1, "text buffer", &data, err));
    if (b->size) memcpy(data, b->data, b->size);
    walsh_free(b->data);
    b->data = data;
    b->capacity = capacity;
    return WALSH_OK;
}

enum walsh_status walsh_buffer_append(struct walsh_buffer *b, const void *data, size_t size,
                                      struct walsh_error *err)
{
    if (size == 0) return WALSH_OK;
    WALSH_TRY(walsh_buffer_reserve(b, size, err));
    memcpy(b->data + b->size, data, size);
    b->size += size;
    return WALSH_OK;
}

void walsh_buffer_free(struct walsh_buffer *b)
{
    walsh_free(b->data);
    *b = (struct walsh_buffer){0};
}
