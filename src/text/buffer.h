/* text/buffer: bytes that grow. */
#ifndef WALSH_TEXT_BUFFER_H
#define WALSH_TEXT_BUFFER_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct walsh_buffer {
    uint8_t *data; /* walsh_free; NULL while capacity is 0 */
    size_t size, capacity;
};
/* Room for `more` further bytes behind size; moves data. */
enum walsh_status walsh_buffer_reserve(struct walsh_buffer *b, size_t more, struct walsh_error *err);
/* data may be NULL where size is 0. */
enum walsh_status walsh_buffer_append(struct walsh_buffer *b, const void *data, size_t size,
                                      struct walsh_error *err);
void walsh_buffer_free(struct walsh_buffer *b); /* empty and usable again */

#endif
