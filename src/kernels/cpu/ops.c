/* The CPU's table of ops. */
#include "kernels/cpu/cpu_ops.h"

#include "kernels/cpu/attention.h"

void walsh_cpu_attention(const struct walsh_queue *q, float *out, size_t ldo, const float *query, size_t ldq,
                         const struct walsh_attention_row *rows, size_t count,
                         const struct walsh_attention_shape *shape, enum walsh_role role)
{
    if (role == WALSH_PREFILL && count > 0 && (rows[0].kv->type != WALSH_KV_TURBO || shape->own))
        walsh_cpu_prefill_attention(q, out, ldo, query, ldq, rows, count, shape);
    else
        walsh_cpu_decode_attention(q, out, ldo, query, ldq, rows, count, shape);
}

void walsh_cpu_attention_rows(const struct walsh_queue *q, struct walsh_attention_row *out,
                              const struct walsh_kv_view *const *kv, const uint32_t *positions, size_t count,
                              uint32_t layer)
{
    (void)q;
    for (size_t i = 0; i < count; i++) out[i] = (struct walsh_attention_row){kv[i] + layer, positions[i]};
}

const struct walsh_ops walsh_cpu_ops = {
    .embed = walsh_cpu_embed,
    .rms_norm = walsh_cpu_rms_norm,
    .add = walsh_cpu_add,
    .prepare = walsh_cpu_prepare,
    .product = walsh_cpu_product,
    .unrotate = walsh_cpu_unrotate,
    .rope = walsh_cpu_rope,
    .short_conv = walsh_cpu_short_conv,
    .attention_rows = walsh_cpu_attention_rows,
    .kv_append = walsh_cpu_kv_append,
    .attention = walsh_cpu_attention,
    .swiglu = walsh_cpu_swiglu,
    .geglu = walsh_cpu_geglu,
    .clamped_swiglu = walsh_cpu_clamped_swiglu,
    .scale = walsh_cpu_scale,
    .soft_cap = walsh_cpu_soft_cap,
    .route = walsh_cpu_route,
    .gather = walsh_cpu_gather,
    .combine = walsh_cpu_combine,
    .fused = &walsh_cpu_fused_ops,
};
