/* What differs from layer to layer: windows and layers without rope. */
#include <string.h>

#include "checkpoint/architectures.h"
#include "checkpoint/config_parts.h"

#define MAX_WINDOW WALSH_MAX_CONFIG_POSITIONS

/* A list with an entry for every layer, or NULL where the key is absent or null. */
static enum walsh_status layer_list(const struct walsh_json_object *o, const char *key, uint32_t layers,
                                    const json_t **out, struct walsh_error *err)
{
    const json_t *list = json_object_get(o->object, key);
    *out = NULL;
    if (!list || json_is_null(list)) return WALSH_OK;
    if (!json_is_array(list) || json_array_size(list) < layers)
        return walsh_fail(err, WALSH_E_FORMAT, "%s: %s is not a list of num_hidden_layers %u entries",
                          o->where, key, layers);
    *out = list;
    return WALSH_OK;
}

/* no_rope_layers: a list of 1 (rope) and 0 (none); where it is missing every no_rope_layer_interval-th layer
 * has none. */
static enum walsh_status read_no_rope(const struct walsh_json_object *o, struct walsh_config *c,
                                      struct walsh_error *err)
{
    const json_t *list;
    uint32_t interval = 4;
    WALSH_TRY(layer_list(o, "no_rope_layers", c->layers, &list, err));
    WALSH_TRY(walsh_json_u32(o, "no_rope_layer_interval", false, 1, WALSH_MAX_LAYERS, &interval, err));
    for (uint32_t i = 0; i < c->layers; i++) {
        bool rope = (i + 1) % interval != 0;
        if (list) {
            const json_t *value = json_array_get(list, i);
            if (!json_is_integer(value) || (json_integer_value(value) != 0 && json_integer_value(value) != 1))
                return walsh_fail(err, WALSH_E_FORMAT, "%s: no_rope_layers[%u] is not 0 or 1", o->where, i);
            rope = json_integer_value(value) != 0;
        }
        if (!rope) c->layer_flags[i] |= WALSH_LAYER_NO_ROPE;
    }
    return WALSH_OK;
}

/* sliding_window where windows are on; null: none. */
static enum walsh_status read_window(const struct walsh_json_object *o, struct walsh_config *c,
                                     struct walsh_error *err)
{
    const struct walsh_architecture_info *info = &walsh_architectures[c->architecture];
    const json_t *value = json_object_get(o->object, "sliding_window");
    bool on = !info->window_switch;
    WALSH_TRY(walsh_json_bool(o, "use_sliding_window", &on, err));
    if (info->windows == WALSH_WINDOWS_NONE) {
        WALSH_TRY(walsh_must_be_false(o, "use_sliding_window", err));
        if (value && !json_is_null(value))
            return walsh_fail(err, WALSH_E_UNSUPPORTED,
                              "%s: sliding_window is %s; walsh implements null only for %s", o->where,
                              walsh_json_kind(value), info->name);
        return WALSH_OK;
    }
    c->window = info->window;
    if ((value && json_is_null(value)) || (info->window_switch && !on))
        c->window = 0;
    else
        WALSH_TRY(walsh_json_u32(o, "sliding_window", false, 1, MAX_WINDOW, &c->window, err));
    return WALSH_OK;
}

/* What the architecture does where layer_types does not say it. */
static enum walsh_status apply_rule(const struct walsh_json_object *o, struct walsh_config *c,
                                    struct walsh_error *err)
{
    const struct walsh_architecture_info *info = &walsh_architectures[c->architecture];
    uint32_t first = 28, pattern = info->pattern; /* max_window_layers' default */
    if (info->windows == WALSH_WINDOWS_LATE)
        WALSH_TRY(walsh_json_u32(o, "max_window_layers", false, 0, UINT32_MAX, &first, err));
    if (info->windows == WALSH_WINDOWS_ALTERNATE)
        WALSH_TRY(walsh_json_u32(o, "sliding_window_pattern", false, 1, WALSH_MAX_LAYERS, &pattern, err));
    for (uint32_t i = 0; i < c->layers; i++) {
        const bool windowed =
            info->windows == WALSH_WINDOWS_ALL || (info->windows == WALSH_WINDOWS_LATE && i >= first) ||
            (info->windows == WALSH_WINDOWS_NO_ROPE && (c->layer_flags[i] & WALSH_LAYER_NO_ROPE)) ||
            (info->windows == WALSH_WINDOWS_ALTERNATE && (i + 1) % pattern != 0);
        if (windowed) c->layer_flags[i] |= WALSH_LAYER_WINDOWED;
    }
    return WALSH_OK;
}

static enum walsh_status apply_types(const struct walsh_json_object *o, const json_t *types,
                                     struct walsh_config *c, struct walsh_error *err)
{
    for (uint32_t i = 0; i < c->layers; i++) {
        const char *type = json_string_value(json_array_get(types, i));
        if (!type) return walsh_fail(err, WALSH_E_FORMAT, "%s: layer_types[%u] is not a name", o->where, i);
        if (strcmp(type, "full_attention") == 0) continue;
        if (strcmp(type, "conv") == 0 && c->conv_taps > 0) {
            c->layer_flags[i] |= WALSH_LAYER_CONV;
            continue;
        }
        if (strcmp(type, "sliding_attention") != 0)
            return walsh_fail(err, WALSH_E_UNSUPPORTED,
                              "%s: layer_types[%u] \"%.100s\" is not supported; known: full_attention, "
                              "sliding_attention",
                              o->where, i, type);
        if (c->window == 0)
            return walsh_fail(err, WALSH_E_FORMAT,
                              "%s: layer_types[%u] is sliding_attention, but no sliding_window is in use",
                              o->where, i);
        c->layer_flags[i] |= WALSH_LAYER_WINDOWED;
    }
    return WALSH_OK;
}

/* full_attn_idxs: the layers that attend; all where it is missing. The others have convolutions. */
static enum walsh_status apply_indices(const struct walsh_json_object *o, struct walsh_config *c,
                                       struct walsh_error *err)
{
    const json_t *list = json_object_get(o->object, "full_attn_idxs");
    if (!list || json_is_null(list)) return WALSH_OK;
    for (uint32_t i = 0; i < c->layers; i++) c->layer_flags[i] |= WALSH_LAYER_CONV;
    const size_t count =
        json_is_array(list) ? json_array_size(list) : 1; /* what is no list fails as its entry */
    for (size_t i = 0; i < count; i++) {
        const json_t *index = json_array_get(list, i);
        if (!json_is_integer(index) || json_integer_value(index) < 0 ||
            json_integer_value(index) >= c->layers)
            return walsh_fail(err, WALSH_E_FORMAT, "%s: full_attn_idxs does not list numbers of layers",
                              o->where);
        c->layer_flags[json_integer_value(index)] &= (uint8_t)~WALSH_LAYER_CONV;
    }
    return WALSH_OK;
}

enum walsh_status walsh_config_read_layers(const struct walsh_json_object *o, struct walsh_config *c,
                                           struct walsh_error *err)
{
    const struct walsh_architecture_info *info = &walsh_architectures[c->architecture];
    const json_t *types;
    if (info->no_rope_layers) WALSH_TRY(read_no_rope(o, c, err));
    WALSH_TRY(read_window(o, c, err));
    WALSH_TRY(layer_list(o, "layer_types", c->layers, &types, err));
    /* Where every layer has the window, Hugging Face does not look at layer_types. */
    if (types && info->windows != WALSH_WINDOWS_ALL)
        WALSH_TRY(apply_types(o, types, c, err));
    else if (c->window != 0)
        WALSH_TRY(apply_rule(o, c, err));
    else if (c->conv_taps > 0)
        WALSH_TRY(apply_indices(o, c, err));
    bool any = false;
    for (uint32_t i = 0; i < c->layers; i++) any = any || (c->layer_flags[i] & WALSH_LAYER_WINDOWED);
    if (!any) c->window = 0;
    return WALSH_OK;
}
