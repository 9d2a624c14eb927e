/* tokenizer_config.json and chat_template.jinja: what a model directory says about the tokenizer beside its
 * rules. */
#include <string.h>

#include "base/file.h"
#include "base/memory.h"
#include "text/json_read.h"
#include "text/template.h"
#include "text/tokenizer_internal.h"

#define MAX_CONFIG ((size_t)32 << 20) /* bytes; some list every added token again */

/* bos_token and the like: null, a text, or an object with the text as its content. */
static enum walsh_status named_token(const struct walsh_tokenizer *t, const json_t *config, const char *key,
                                     int32_t *id, struct walsh_error *err)
{
    const json_t *value = walsh_json_member(config, key);
    *id = -1;
    if (!value) return WALSH_OK;
    const char *text = json_string_value(json_is_object(value) ? json_object_get(value, "content") : value);
    if (!text)
        return walsh_fail(err, WALSH_E_FORMAT, "%s: found %s, expected a token", key,
                          walsh_json_type_name(value));
    *id = walsh_tokenizer_find(t, text);
    if (*id < 0) return walsh_fail(err, WALSH_E_FORMAT, "%s: \"%.100s\" is not in the vocabulary", key, text);
    return WALSH_OK;
}

static enum walsh_status set_template(const char *text, char **out, struct walsh_error *err)
{
    size_t size = strlen(text);
    if (size > WALSH_TEMPLATE_MAX_SIZE)
        return walsh_fail(err, WALSH_E_FORMAT, "chat_template: %zu bytes, at most %zu are supported", size,
                          WALSH_TEMPLATE_MAX_SIZE);
    WALSH_TRY(walsh_alloc(size + 1, 1, "chat template", out, err));
    memcpy(*out, text, size + 1);
    return WALSH_OK;
}

/* A text, or a list of named templates of which default and tool_use count. */
static enum walsh_status load_chat_template(struct walsh_tokenizer *t, const json_t *value,
                                            struct walsh_error *err)
{
    if (json_is_string(value)) return set_template(json_string_value(value), &t->chat_template, err);
    for (size_t i = 0; i < json_array_size(value); i++) {
        const json_t *entry = json_array_get(value, i);
        const char *name = json_string_value(json_object_get(entry, "name"));
        const char *text = json_string_value(json_object_get(entry, "template"));
        if (!name || !text) continue;
        if (strcmp(name, "default") == 0 && !t->chat_template)
            WALSH_TRY(set_template(text, &t->chat_template, err));
        if (strcmp(name, "tool_use") == 0 && !t->tool_template)
            WALSH_TRY(set_template(text, &t->tool_template, err));
    }
    return WALSH_OK;
}

/* The texts of bos_token, eos_token and whatever else is named so: variables of the chat template. */
static enum walsh_status load_special_tokens(struct walsh_tokenizer *t, json_t *config,
                                             struct walsh_error *err)
{
    static const char suffix[] = "_token";
    const char *key;
    json_t *value;
    t->special_tokens = json_object();
    if (!t->special_tokens) return walsh_fail(err, WALSH_E_MEMORY, "out of memory");
    json_object_foreach(config, key, value)
    {
        const size_t length = strlen(key), tail = strlen(suffix);
        json_t *text = json_is_object(value) ? json_object_get(value, "content") : value;
        if (length <= tail || strcmp(key + length - tail, suffix) != 0 || !json_is_string(text)) continue;
        if (json_object_set(t->special_tokens, key, text) != 0)
            return walsh_fail(err, WALSH_E_MEMORY, "out of memory");
    }
    return WALSH_OK;
}

/* add_bos_token asks for BOS in front even where the post-processor has none. */
static enum walsh_status load_add_bos(struct walsh_tokenizer *t, const json_t *config,
                                      struct walsh_error *err)
{
    bool add;
    WALSH_TRY(walsh_json_member_bool(config, "tokenizer_config", "add_bos_token", false, &add, err));
    if (!add || t->bos < 0 || t->before_count > 0) return WALSH_OK;
    t->before[t->before_count++] = t->bos;
    return WALSH_OK;
}

static enum walsh_status load_config(struct walsh_tokenizer *t, json_t *config, struct walsh_error *err)
{
    WALSH_TRY(load_special_tokens(t, config, err));
    WALSH_TRY(named_token(t, config, "bos_token", &t->bos, err));
    WALSH_TRY(named_token(t, config, "eos_token", &t->eos, err));
    WALSH_TRY(load_add_bos(t, config, err));
    if (t->chat_template) return WALSH_OK;
    return load_chat_template(t, walsh_json_member(config, "chat_template"), err);
}

static enum walsh_status load_config_file(struct walsh_tokenizer *t, const char *path,
                                          struct walsh_error *err)
{
    json_t *config;
    if (!walsh_path_exists(path)) return WALSH_OK;
    WALSH_TRY(walsh_json_read_file(path, MAX_CONFIG, &config, err));
    enum walsh_status status = load_config(t, config, err);
    json_decref(config);
    return status == WALSH_OK ? status : walsh_fail_within(err, status, "%s", path);
}

enum walsh_status walsh_tokenizer_load_config(struct walsh_tokenizer *t, const char *directory,
                                              struct walsh_error *err)
{
    char *path;
    size_t size;
    WALSH_TRY(walsh_path_join(directory, "chat_template.jinja", &path, err));
    enum walsh_status status = WALSH_OK;
    if (walsh_path_exists(path)) { /* newer directories keep it here */
        status = walsh_file_read_regular(path, WALSH_TEMPLATE_MAX_SIZE, &t->chat_template, &size, err);
        t->template_file = path;
    } else {
        walsh_free(path);
    }
    WALSH_TRY(status);
    WALSH_TRY(walsh_path_join(directory, "tokenizer_config.json", &path, err));
    status = load_config_file(t, path, err);
    if (!t->template_file)
        t->template_file = path;
    else
        walsh_free(path);
    return status;
}
