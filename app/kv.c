#include "kv.h"

#include <math.h>
#include <string.h>

/* The first option that means something for turbo only; NULL: none is given. */
static const char *turbo_option(const struct kv_settings *s)
{
    if (!isnan(s->bits)) return "kv-bits";
    if (s->key_bits != OPTION_UNSET) return "kv-key-bits";
    if (s->value_bits != OPTION_UNSET) return "kv-value-bits";
    if (s->skip != OPTION_UNSET) return "kv-skip";
    if (s->recent != OPTION_UNSET) return "kv-recent";
    if (s->seed > 0) return "kv-seed";
    if (s->key_codec) return "kv-key-codec";
    if (s->no_rotation) return "kv-no-rotation";
    return s->no_correction ? "kv-no-correction" : NULL;
}

static enum walsh_status turbo_bits(const struct kv_settings *s, struct walsh_kv_options *out,
                                    struct walsh_error *err)
{
    if (s->key_bits != OPTION_UNSET) out->key_bits = (unsigned)s->key_bits;
    if (s->value_bits != OPTION_UNSET) out->value_bits = (unsigned)s->value_bits;
    if (isnan(s->bits)) return WALSH_OK;
    if (out->key_bits || out->value_bits)
        return fail(err, WALSH_E_ARGUMENT, "--kv-bits and --kv-%s-bits exclude each other",
                    out->key_bits ? "key" : "value");
    if (!walsh_kv_split_bits(s->bits, &out->key_bits, &out->value_bits))
        return fail(err, WALSH_E_ARGUMENT, "--kv-bits is %g, expected a multiple of 0.5 from 1 to 8",
                    s->bits);
    return WALSH_OK;
}

enum walsh_status kv_options(const struct kv_settings *settings, struct walsh_kv_options *out,
                             struct walsh_error *err)
{
    static const char *const types[] = {[WALSH_KV_CACHE_AUTO] = "auto",
                                        [WALSH_KV_CACHE_F16] = "f16",
                                        [WALSH_KV_CACHE_F32] = "f32",
                                        [WALSH_KV_CACHE_TURBO] = "turbo"};
    *out = (struct walsh_kv_options)WALSH_KV_OPTIONS;
    while (strcmp(settings->type, types[out->type]) != 0) out->type++;
    const char *given = turbo_option(settings);
    if (out->type != WALSH_KV_CACHE_TURBO)
        return given ? fail(err, WALSH_E_ARGUMENT, "--%s needs --kv turbo", given) : WALSH_OK;
    if (settings->skip != OPTION_UNSET) out->skip = (uint32_t)settings->skip;
    if (settings->recent != OPTION_UNSET) out->recent = (uint32_t)settings->recent;
    if (settings->seed > 0) out->seed = (uint64_t)settings->seed;
    if (settings->key_codec && strcmp(settings->key_codec, "prod") == 0) out->key_codec = WALSH_KV_KEYS_PROD;
    out->no_rotation = settings->no_rotation;
    out->no_correction = settings->no_correction;
    return turbo_bits(settings, out, err);
}
