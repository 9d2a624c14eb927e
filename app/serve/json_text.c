#include "json_text.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

bool json_write(struct text *out, const char *literal)
{
    return text_append(out, literal, strlen(literal));
}

/* What stands for a byte that cannot stand for itself; NULL where it can. */
static const char *escape_of(unsigned char c, char buffer[8])
{
    switch (c) {
    case '"':
        return "\\\"";
    case '\\':
        return "\\\\";
    case '\n':
        return "\\n";
    case '\r':
        return "\\r";
    case '\t':
        return "\\t";
    default:
        if (c >= 0x20 && c != 0x7f) return NULL;
        snprintf(buffer, 8, "\\u%04x", c);
        return buffer;
    }
}

bool json_write_string(struct text *out, const char *data, size_t size)
{
    char buffer[8];
    bool good = text_append(out, "\"", 1);
    size_t begin = 0;
    for (size_t i = 0; i < size && good; i++) {
        const char *escape = escape_of((unsigned char)data[i], buffer);
        if (!escape) continue;
        good = text_append(out, data + begin, i - begin) && json_write(out, escape);
        begin = i + 1;
    }
    return good && text_append(out, data + begin, size - begin) && text_append(out, "\"", 1);
}

bool json_write_integer(struct text *out, long long value)
{
    char number[32];
    snprintf(number, sizeof number, "%lld", value);
    return json_write(out, number);
}

bool json_write_real(struct text *out, double value)
{
    char number[40];
    if (!isfinite(value)) return json_write(out, "null");
    snprintf(number, sizeof number, "%.9g", value);
    return json_write(out, number);
}

static int append(const char *data, size_t size, void *out)
{
    return text_append(out, data, size) ? 0 : -1;
}

bool json_write_tree(struct text *out, json_t *tree)
{
    const bool good =
        tree && json_dump_callback(tree, append, out, JSON_COMPACT | JSON_REAL_PRECISION(9)) == 0;
    json_decref(tree);
    return good;
}
