/* The nearest-code searches, as formats/e8p defines them. */
#include "formats/e8p.h"
#include "kernels/table.h"

void walsh_e8p_encode_f32_reference(uint16_t *codes, float *w, const float *x, size_t count)
{
    for (size_t i = 0; i < count; i++) codes[i] = walsh_e8p_encode(x + 8 * i, w ? w + 8 * i : NULL);
}

void walsh_e81b_encode_f32_reference(uint8_t *codes, float *w, const float *x, size_t count)
{
    for (size_t i = 0; i < count; i++) codes[i] = walsh_e81b_encode(x + 8 * i, w ? w + 8 * i : NULL);
}
