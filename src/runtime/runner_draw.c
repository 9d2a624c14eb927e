/* Draws at the end of a step on a device. */
#include <string.h>

#include "base/memory.h"
#include "kernels/device.h"
#include "runtime/runner.h"

static size_t mask_bytes(const struct walsh_runner *r)
{
    return ((size_t)r->graph->config.vocab + 63) / 64 * sizeof(uint64_t);
}

static enum walsh_status reserve(struct walsh_runner *r, size_t bytes, struct walsh_error *err)
{
    struct walsh_runner_device *d = &r->device;
    if (bytes <= d->draw_bytes) return WALSH_OK;
    walsh_queue_free(r->queue, d->draws);
    walsh_free(d->draw_staging);
    d->draws = d->draw_staging = NULL;
    d->draw_bytes = 0;
    const size_t room = 2 * bytes;
    WALSH_TRY(walsh_alloc_zero(room, 1, "the draws of a step", &d->draw_staging, err));
    WALSH_TRY(walsh_queue_alloc(r->queue, room, "the draws of a step", &d->draws, err));
    d->draw_bytes = room;
    return WALSH_OK;
}

enum walsh_status walsh_runner_send_draws(struct walsh_runner *r, const struct walsh_draw *plans,
                                          size_t count, struct walsh_draws *out, struct walsh_error *err)
{
    const size_t mask = mask_bytes(r);
    size_t bytes = count * sizeof *plans;
    for (size_t i = 0; i < count; i++)
        bytes += (plans[i].mask ? mask : 0) + walsh_round_up(plans[i].edit_count * sizeof *plans[i].edits, 8);
    WALSH_TRY(reserve(r, bytes, err));
    uint8_t *host = r->device.draw_staging, *device = r->device.draws;
    struct walsh_draw *rows = r->device.draw_staging;
    size_t at = count * sizeof *rows;
    *out = (struct walsh_draws){.rows = r->device.draws, .count = count};
    for (size_t i = 0; i < count; i++) {
        const size_t edits = plans[i].edit_count * sizeof *plans[i].edits;
        rows[i] = plans[i];
        out->sampled |= !plans[i].greedy;
        out->edited |= edits > 0;
        rows[i].mask = NULL;
        rows[i].edits = NULL;
        if (plans[i].mask) {
            memcpy(host + at, plans[i].mask, mask);
            rows[i].mask = (const uint64_t *)(const void *)(device + at);
            at += mask;
        }
        if (edits > 0) {
            memcpy(host + at, plans[i].edits, edits);
            rows[i].edits = (struct walsh_logit_edit *)(void *)(device + at);
            at += walsh_round_up(edits, 8);
        }
    }
    return walsh_queue_upload(r->queue, r->device.draws, host, at, err);
}

enum walsh_status walsh_runner_take_draws(struct walsh_runner *r, const struct walsh_draws *draws,
                                          int32_t *ids, struct walsh_error *err)
{
    const uint32_t vocab = r->graph->config.vocab;
    r->queue->ops->draw(r->queue, r->device.drawn, r->device.step_logits, vocab, draws);
    WALSH_TRY(walsh_queue_download(r->queue, ids, r->device.drawn, draws->count * sizeof *ids, err));
    for (size_t i = 0; i < draws->count; i++)
        if (ids[i] >= (int32_t)vocab)
            return walsh_fail(err, WALSH_E_INTERNAL, "a draw gave token %d of %u", ids[i], vocab);
    return WALSH_OK;
}
