/* Reads standard input, which must be exactly one JSON object, and prints the value at each path given
 * ("ppl", "results.0.test"), one per line: strings as they are, an array or object as its number of members.
 * Exit 1 where the input is something else or a path is not there. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const json_t *follow(const json_t *at, const char *path)
{
    char part[128];
    while (at && *path) {
        size_t length = strcspn(path, ".");
        snprintf(part, sizeof part, "%.*s", (int)length, path);
        at = json_is_array(at) ? json_array_get(at, strtoul(part, NULL, 10)) : json_object_get(at, part);
        path += length + (path[length] == '.');
    }
    return at;
}

static void print_value(const json_t *value)
{
    if (json_is_string(value))
        puts(json_string_value(value));
    else if (json_is_integer(value))
        printf("%" JSON_INTEGER_FORMAT "\n", json_integer_value(value));
    else if (json_is_real(value))
        printf("%.12g\n", json_real_value(value));
    else if (json_is_array(value))
        printf("%zu\n", json_array_size(value));
    else if (json_is_object(value))
        printf("%zu\n", json_object_size(value));
    else
        puts(json_is_true(value) ? "true" : json_is_false(value) ? "false" : "null");
}

int main(int argc, char **argv)
{
    json_error_t error;
    json_t *object = json_loadf(stdin, JSON_REJECT_DUPLICATES, &error);
    if (!object || !json_is_object(object)) {
        fprintf(stderr, "not one JSON object: %s\n", object ? "another type" : error.text);
        json_decref(object);
        return 1;
    }
    int code = 0;
    for (int i = 1; i < argc; i++) {
        const json_t *value = follow(object, argv[i]);
        if (value) {
            print_value(value);
        } else {
            fprintf(stderr, "no %s\n", argv[i]);
            code = 1;
        }
    }
    json_decref(object);
    return code;
}
