/* tokenizer_config.json and chat_template.jinja: what a model directory says about the tokenizer beside its
 * rules. */
#include <string.h>

#include "base/file.h"
#include "base/memory.h"
#include "text/json_read.h"
#include "text/tokenizer_internal.h"

#define MAX_CONFIG ((size_t)32 << 20)  /* bytes; some list every added token again */
#define MAX_TEMPLATE ((size_t)1 << 20) /* bytes of a chat template */

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

static enum walsh_status set_chat_template(struct walsh_tokenizer *t, const char *text,
                                           struct walsh_error *err)
{
    size_t size = strlen(text);
    if (size > MAX_TEMPLATE)
        return walsh_fail(err, WALSH_E_FORMAT, "chat_template: %zu bytes, at most %zu are supported", size,
                          MAX_TEMPLATE);
    WALSH_TRY(walsh_alloc(size + 1, 1, "chat template", &t->chat_template, err));
    memcpy(t->chat_template, text, size + 1);
    return WALSH_OK;
}

/* A text, or a list of named templates of which the one called default counts. */
static enum walsh_status load_chat_template(struct walsh_tokenizer *t, const json_t *value,
                                            struct walsh_error *err)
{
    if (json_is_string(value)) return set_chat_template(t, json_string_value(value), err);
    for (size_t i = 0; i < json_array_size(value); i++) {
        const json_t *entry = json_array_get(value, i);
        const char *name = json_string_value(json_object_get(entry, "name"));
        const char *text = json_string_value(json_object_get(entry, "template"));
        if (name && text && strcmp(name, "default") == 0) return set_chat_template(t, text, err);
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

static enum walsh_status load_config(struct walsh_tokenizer *t, const json_t *config, struct walsh_error *err)
{
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
    WALSH_TRY(
        walsh_path_join(directory, "chat_template.jinja", &path, err)); /* newer directories keep it here */
    enum walsh_status status = WALSH_OK;
    if (walsh_path_exists(path))
        status = walsh_file_read_text(path, MAX_TEMPLATE, &t->chat_template, &size, err);
    walsh_free(path);
    WALSH_TRY(status);
    WALSH_TRY(walsh_path_join(directory, "tokenizer_config.json", &path, err));
    status = load_config_file(t, path, err);
    walsh_free(path);
    return status;
}
