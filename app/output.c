#include "output.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "app.h"

bool text_append(struct text *text, const char *data, size_t size)
{
    if (size > SIZE_MAX / 4 || text->size > SIZE_MAX / 4) return false;
    if (text->size + size + 1 > text->capacity) {
        size_t capacity = (text->size + size + 1) * 3 / 2;
        char *grown = realloc(text->data, capacity);
        if (!grown) return false;
        text->data = grown;
        text->capacity = capacity;
    }
    if (size) memcpy(text->data + text->size, data, size);
    text->size += size;
    text->data[text->size] = 0;
    return true;
}

void text_free(struct text *text)
{
    free(text->data);
    *text = (struct text){0};
}

void json_put_text(json_t *object, const char *key, const char *value)
{
    json_object_set_new(object, key, value ? json_string(value) : json_null());
}

void json_put_bytes(json_t *object, const char *key, const struct text *value)
{
    json_object_set_new(object, key, value->size ? json_stringn(value->data, value->size) : json_string(""));
}

void json_put_integer(json_t *object, const char *key, unsigned long long value)
{
    json_object_set_new(object, key, json_integer((json_int_t)value));
}

void json_put_real(json_t *object, const char *key, double value)
{
    json_object_set_new(object, key, isfinite(value) ? json_real(value) : json_null());
}

enum walsh_status json_print(json_t *object, struct walsh_error *err)
{
    char *line = object ? json_dumps(object, JSON_REAL_PRECISION(12)) : NULL;
    json_decref(object);
    if (!line) return fail(err, WALSH_E_MEMORY, "out of memory for the JSON output");
    puts(line);
    free(line);
    return WALSH_OK;
}

/* C0, DEL, and C1 as UTF-8 spells it: 0xC2 and a byte of 0x80 to 0x9F, of which both become a '?'. */
const char *printable(const char *text, char *buffer, size_t size)
{
    bool pair = false;
    size_t i = 0;
    for (; i + 1 < size && text[i]; i++) {
        const unsigned char c = (unsigned char)text[i], next = (unsigned char)text[i + 1];
        const bool begins = c == 0xC2 && next >= 0x80 && next < 0xA0;
        buffer[i] = c < 0x20 || c == 0x7F || begins || pair ? '?' : text[i];
        pair = begins;
    }
    buffer[i] = 0;
    return buffer;
}

const char *bytes_text(double bytes, char *buffer, size_t size)
{
    static const char *const units[] = {"B", "KB", "MB", "GB", "TB"};
    size_t unit = 0;
    while (bytes >= 1000 && unit + 1 < sizeof units / sizeof *units) {
        bytes /= 1000;
        unit++;
    }
    snprintf(buffer, size, unit ? "%.2f %s" : "%.0f %s", bytes, units[unit]);
    return buffer;
}
