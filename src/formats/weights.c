#include "formats/weights.h"

#include "formats/e8p_planes.h"

const char *walsh_format_name(enum walsh_format format)
{
    static const char *const names[WALSH_FORMAT_COUNT] = {"f32", "f16", "bf16", "e8p"};
    return (unsigned)format < WALSH_FORMAT_COUNT ? names[format] : "unknown";
}

size_t walsh_weights_bytes(const struct walsh_weights *w)
{
    size_t elements = (size_t)w->rows * w->cols, bytes = 0;
    switch (w->format) {
    case WALSH_FORMAT_F32:
        return elements * 4;
    case WALSH_FORMAT_F16:
    case WALSH_FORMAT_BF16:
        return elements * 2;
    case WALSH_FORMAT_E8P:
        for (unsigned k = 0; k < w->stages; k++)
            bytes += walsh_stage_bytes(w->stage[k].kind, w->rows, w->cols);
        return bytes;
    case WALSH_FORMAT_COUNT:
        break;
    }
    return 0;
}
