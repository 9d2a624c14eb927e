/* formats/e8p_planes: the run-time layouts of E8P and E81B code matrices, repacked once at load.
 *
 * E8P "planes": see e8p_planes.c for the derivation (magnitude byte relabelled, sign/parity byte T); rows go in pairs, columns in
 * blocks of 256, so that one 64-byte load brings a pair's magnitudes and one its sign planes. A last block that is narrower is
 * padded with code 0; the product's activations are zero there. */
#ifndef WALSH_FORMATS_E8P_PLANES_H
#define WALSH_FORMATS_E8P_PLANES_H

#include <stddef.h>
#include <stdint.h>

#include "formats/e8p.h"

#define WALSH_PLANE_COLUMNS 256 /* columns of a block; activations of a product are padded with zeros to this */

/* Bytes of the run-time layout of [rows][cols] weights; rows a multiple of 2, cols of 8. */
size_t walsh_stage_bytes(enum walsh_stage_kind kind, uint32_t rows, uint32_t cols);
/* Plain row-major codes -> run-time layout. E8P: codes u16 [rows][cols/8]; E81B: codes u8 [rows][cols/8]. Rows
 * [row_begin, row_end) only, both even, so that threads can share the work. `packed` is the whole stage, 64-byte aligned. */
void walsh_e8p_pack(uint32_t cols, const uint16_t *codes, uint32_t row_begin, uint32_t row_end, void *packed);
void walsh_e81b_pack(uint32_t cols, const uint8_t *codes, uint32_t row_begin, uint32_t row_end, void *packed);
/* The code of row r, group g (8 columns), back from the layout: the scalar reference reads weights through these. */
uint16_t walsh_e8p_unpack(uint32_t cols, const void *packed, uint32_t r, uint32_t g);
uint8_t walsh_e81b_unpack(uint32_t cols, const void *packed, uint32_t r, uint32_t g);

#endif
