/* formats/stored: a matrix as a file stores it, read some rows at a time. So weights go to a device without a copy of
 * the model in host memory: whoever brings them there reads pieces into a small buffer, and makes the layout of the
 * products there. May use base.
 *
 * A matrix has arrays, an array has units, which all have the same size:
 *   dense          array 0: a unit is a row of cols numbers
 *   E8P            array k is stage k; a unit is 16 rows, [cols/64][8][4] words of 64 bits of E8P codes, or [16][cols/8]
 *                  bytes of E81B codes (checkpoint/glq.h derives both)
 *   block formats  a unit is 16 rows. Array 0: the codes, [16][walsh_stored_row_bytes]: of 4 bits two in a byte, the low
 *                  nibble first, else a byte each; every byte is still to be XORed with `flip`; rows beyond the last are
 *                  undefined. Array 1: the scales, and array 2 (where weights.zeros is not NULL): the zero points, as
 *                  formats/blocks.h lays them out. */
#ifndef WALSH_FORMATS_STORED_H
#define WALSH_FORMATS_STORED_H

#include "base/status.h"
#include "formats/blocks.h"
#include "formats/weights.h"

struct walsh_stored_weights {
    /* Units [begin, end) of an array into `to`, one behind the other; any thread may call it. False: something there is
     * no number. */
    bool (*read)(const struct walsh_stored_weights *stored, unsigned array, size_t begin, size_t end,
                 void *to);
    /* Fails with the error for that, which names the tensor and the place. */
    enum walsh_status (*refuse)(const struct walsh_stored_weights *stored, struct walsh_error *err);
    uint8_t flip;
};

enum {
    WALSH_STORED_CODES = 0,
    WALSH_STORED_SCALES = 1,
    WALSH_STORED_ZEROS = 2
}; /* arrays of the block formats */

static inline unsigned walsh_stored_arrays(const struct walsh_weights *w)
{
    if (w->format == WALSH_FORMAT_E8P) return w->stages;
    return walsh_format_is_block(w->format) ? w->zeros ? 3 : 2 : 1;
}
static inline size_t walsh_stored_units(const struct walsh_weights *w)
{
    return w->format < WALSH_FORMAT_E8P ? w->rows : walsh_div_up(w->rows, WALSH_BLOCK_ROWS);
}
static inline size_t walsh_stored_row_bytes(const struct walsh_weights *w)
{
    return walsh_code_bits(w->block.code) == 4 ? walsh_div_up(w->cols, 2) : w->cols;
}
static inline size_t walsh_stored_unit_bytes(const struct walsh_weights *w, unsigned array)
{
    if (w->format < WALSH_FORMAT_E8P) return (size_t)w->cols * (w->format == WALSH_FORMAT_F32 ? 4 : 2);
    if (w->format == WALSH_FORMAT_E8P)
        return (size_t)WALSH_BLOCK_ROWS * (w->cols / 8) * (w->stage[array].kind == WALSH_STAGE_E8P ? 2 : 1);
    if (array == WALSH_STORED_CODES) return WALSH_BLOCK_ROWS * walsh_stored_row_bytes(w);
    return WALSH_BLOCK_ROWS * walsh_block_groups(w) *
           (array == WALSH_STORED_SCALES ? walsh_scale_bytes(w->block.scale) : 1);
}

#endif
