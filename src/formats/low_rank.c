#include "formats/low_rank.h"

#include "base/scalar.h"

float walsh_low_rank_get(enum walsh_format format, const void *matrix, size_t at)
{
    return format == WALSH_FORMAT_BF16 ? walsh_f32_from_bf16(((const uint16_t *)matrix)[at])
                                       : ((const float *)matrix)[at];
}

void walsh_low_rank_put(enum walsh_format format, void *matrix, size_t at, float value)
{
    if (format == WALSH_FORMAT_BF16)
        ((uint16_t *)matrix)[at] = walsh_bf16_from_f32(value);
    else
        ((float *)matrix)[at] = value;
}
