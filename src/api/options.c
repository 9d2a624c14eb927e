#include <string.h>

#include "api/api.h"

enum walsh_status walsh_options_read(void *out, size_t size, const void *options, const char *what,
                                     struct walsh_error *err)
{
    size_t given;
    if (!options) return WALSH_OK;
    memcpy(&given, options, sizeof given);
    if (given < sizeof given || given > size)
        return walsh_fail(
            err, WALSH_E_ARGUMENT,
            "%s: struct_size is %zu, expected %zu: set it with the struct's macro, and build against the "
            "walsh.h of this library",
            what, given, size);
    memcpy(out, options, given);
    memcpy(out, &size, sizeof size);
    return WALSH_OK;
}

void walsh_result_write(void *out, const void *result, size_t size)
{
    size_t room;
    memcpy(&room, out, sizeof room);
    if (room < sizeof room) return;
    if (room < size) size = room;
    memcpy((char *)out + sizeof room, (const char *)result + sizeof room, size - sizeof room);
}
