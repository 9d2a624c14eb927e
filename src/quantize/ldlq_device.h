/* quantize/ldlq_device: the searches of ldlq_tile.h on a device: the linear and its input's matrices go up once, codes
 * come back at the end. Private to quantize/. */
#ifndef WALSH_QUANTIZE_LDLQ_DEVICE_H
#define WALSH_QUANTIZE_LDLQ_DEVICE_H

#include "kernels/quantize.h"
#include "quantize/ldlq_tile.h"

struct walsh_ldlq_device {
    const struct walsh_queue *queue; /* NULL: closed */
    uint8_t *memory;
    struct walsh_ldlq_rows rows;
    size_t m;
    double *sums; /* [m] */
};
/* s->target is complete; the queue has walsh_ops.quantize. */
enum walsh_status walsh_ldlq_device_open(const struct walsh_queue *q, const struct walsh_ldlq_state *s,
                                         struct walsh_ldlq_device *out, struct walsh_error *err);
void walsh_ldlq_device_close(struct walsh_ldlq_device *d); /* safe on a zeroed one */
/* A sweep and at most `passes` passes over every step-th tile with the scales of s, until one changes nothing. */
enum walsh_status walsh_ldlq_device_search(struct walsh_ldlq_device *d, const struct walsh_ldlq_state *s,
                                           size_t step, unsigned passes, struct walsh_error *err);
/* tr(e H~ e^T) over every step-th tile, of the error or of the target. */
enum walsh_status walsh_ldlq_device_trace(struct walsh_ldlq_device *d, size_t step, bool of_target,
                                          double *out, struct walsh_error *err);
/* The codes into s->codes. */
enum walsh_status walsh_ldlq_device_fetch(struct walsh_ldlq_device *d, const struct walsh_ldlq_state *s,
                                          struct walsh_error *err);

#endif
