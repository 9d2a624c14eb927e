/* The codecs of packed caches for the kernels. */
#include <string.h>

#include "base/memory.h"
#include "kernels/cuda/backend.h"
#include "kernels/turbo.h"

_Static_assert(WALSH_TURBO_MAX_LEVELS == 256 && WALSH_TURBO_MAX_DIM == 1024, "the kernels' tables");

static void fill_codec(const struct walsh_turbo_codec *codec, struct cuda_turbo_codec *out)
{
    const struct walsh_turbo_codebook *book = &codec->book;
    const struct walsh_rotation *r = &codec->rotation;
    out->dim = book->dim;
    out->bits = book->bits;
    out->levels = book->levels;
    out->block = r->kind == WALSH_ROTATION_NONE ? 0 : r->blocks.block[0];
    out->scale = book->scale;
    out->block_scale = out->block ? (float)(1 / __builtin_sqrt((double)out->block)) : 1;
    out->correction = codec->norm_correction;
    memcpy(out->value, book->value, sizeof out->value);
    memcpy(out->tree, book->tree, sizeof out->tree);
    memcpy(out->signs, r->signs, walsh_rotation_signs(r) * sizeof *r->signs);
}

void cuda_fill_turbo(const struct walsh_turbo_codecs *codecs, struct cuda_turbo *out)
{
    memset(out, 0, sizeof *out);
    fill_codec(codecs->key, &out->key);
    fill_codec(codecs->value, &out->value);
}

enum walsh_status cuda_upload_codecs(const struct walsh_queue *q, const struct walsh_turbo_codecs *codecs,
                                     void **out, struct walsh_error *err)
{
    *out = NULL;
    if (codecs->prod)
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "KV cache: the Prod codec of keys runs on the CPU only");
    struct cuda_turbo *turbo, *device;
    WALSH_TRY(walsh_alloc_zero(1, sizeof *turbo, "the codecs of a KV cache", &turbo, err));
    cuda_fill_turbo(codecs, turbo);
    enum walsh_status status = cuda_memory.alloc(q, sizeof *turbo, "the codecs of a KV cache", &device, err);
    if (status == WALSH_OK) {
        status = cuda_memory.upload(q, device, turbo, sizeof *turbo, err);
        if (status == WALSH_OK)
            *out = device;
        else
            cuda_memory.free(q, device);
    }
    walsh_free(turbo);
    return status;
}

enum walsh_status cuda_read_codecs(const struct walsh_queue *q, const void *codecs, uint64_t *saturated,
                                   struct walsh_error *err)
{
    const struct cuda_turbo *device = codecs;
    return cuda_memory.download(q, saturated, &device->saturated, sizeof *saturated, err);
}
