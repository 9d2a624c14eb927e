/* app/output: what goes to stdout: JSON objects and growing texts. */
#ifndef WALSH_APP_OUTPUT_H
#define WALSH_APP_OUTPUT_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "walsh_status.h"

/* A growing string; NUL-terminated once something was appended. */
struct text {
    char *data;
    size_t size, capacity;
};
bool text_append(struct text *text, const char *data, size_t size); /* false: out of memory */
void text_free(struct text *text);

/* Members of an object; numbers that JSON cannot hold become null. */
void json_put_text(json_t *object, const char *key, const char *value);
void json_put_bytes(json_t *object, const char *key, const struct text *value); /* UTF-8, zeros and all */
void json_put_integer(json_t *object, const char *key, unsigned long long value);
void json_put_real(json_t *object, const char *key, double value);
/* Write the object as one line and drop it. */
enum walsh_status json_print(json_t *object, struct walsh_error *err);

/* The text for a terminal, into buffer: '?' for each control character, cut to its size. It may be the text's
 * own memory. Returns buffer. */
const char *printable(const char *text, char *buffer, size_t size);

/* "1.2 KB", "34.5 MB" (powers of ten) into buffer; returns buffer. */
const char *bytes_text(double bytes, char *buffer, size_t size);

#endif
