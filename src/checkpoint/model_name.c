#include "checkpoint/model_name.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

/* A part of a text. */
struct part {
    const char *text;
    size_t size;
};

/* The component of a path that ends at `end`, slashes behind it aside; empty: there is none. */
static struct part component_before(const char *path, const char *end)
{
    while (end > path && end[-1] == '/') end--;
    const char *begin = end;
    while (begin > path && begin[-1] != '/') begin--;
    return (struct part){begin, (size_t)(end - begin)};
}

static struct part last_component(const char *path)
{
    return component_before(path, path + strlen(path));
}

/* A component "models--ORG--NAME" of a Hugging Face cache: NAME, and ORG before it; else false. */
static bool read_hub_entry(struct part component, struct part *org, struct part *name)
{
    static const char prefix[] = "models--";
    const size_t length = sizeof prefix - 1;
    if (component.size <= length || strncmp(component.text, prefix, length) != 0) return false;
    for (size_t i = length; i + 2 < component.size; i++)
        if (component.text[i] == '-' && component.text[i + 1] == '-') {
            *org = (struct part){component.text + length, i - length};
            *name = (struct part){component.text + i + 2, component.size - i - 2};
            return true;
        }
    return false;
}

/* "_name_or_path" of config.json, NULL where there is none; for free(). */
static char *recorded_name(const struct walsh_checkpoint *ck)
{
    if (!ck->config_json) return NULL;
    json_t *config = json_loadb(ck->config_json, ck->config_size, 0, NULL);
    const char *name = json_string_value(json_object_get(config, "_name_or_path"));
    char *copy = name && *name ? strdup(name) : NULL;
    json_decref(config);
    return copy;
}

/* The directory without links and dots where that can be found out; for free(). */
static char *real_directory(const struct walsh_checkpoint *ck)
{
    char *path = realpath(ck->directory, NULL);
    return path ? path : strdup(ck->directory);
}

static enum walsh_status directory_name(const char *path, char **out, struct walsh_error *err)
{
    struct part name = last_component(path), org = {0}, c = name;
    for (; c.size > 0; c = component_before(path, c.text))
        if (read_hub_entry(c, &org, &name)) break;
    WALSH_TRY(walsh_alloc(org.size + name.size + 2, 1, "a model's name", out, err));
    char *to = *out;
    memcpy(to, org.text ? org.text : "", org.size);
    to += org.size;
    if (org.size > 0) *to++ = '/';
    memcpy(to, name.text, name.size);
    to[name.size] = '\0';
    return WALSH_OK;
}

enum walsh_status walsh_model_name(const struct walsh_checkpoint *ck, char **out, struct walsh_error *err)
{
    char *recorded = recorded_name(ck), *path = recorded ? recorded : real_directory(ck);
    if (!path) return walsh_fail(err, WALSH_E_MEMORY, "no memory for a model's name");
    enum walsh_status status;
    if (recorded) {
        status = walsh_alloc(strlen(recorded) + 1, 1, "a model's name", out, err);
        if (status == WALSH_OK) memcpy(*out, recorded, strlen(recorded) + 1);
    } else {
        status = directory_name(path, out, err);
    }
    free(path);
    return status;
}

/* "Base-1B" is called "Base-1B", and so is "Base-1B-e8p". */
static bool is_called(struct part component, struct part name)
{
    return component.size >= name.size && strncmp(component.text, name.text, name.size) == 0 &&
           (component.size == name.size || strchr("-_.", component.text[name.size]));
}

static bool path_has(const char *path, struct part name)
{
    struct part org, hub;
    for (struct part c = last_component(path); c.size > 0; c = component_before(path, c.text))
        if (is_called(c, name) || (read_hub_entry(c, &org, &hub) && is_called(hub, name))) return true;
    return false;
}

bool walsh_model_goes_by(const struct walsh_checkpoint *ck, const char *id)
{
    const struct part name = last_component(id);
    if (name.size == 0) return true;
    char *recorded = recorded_name(ck), *path = real_directory(ck);
    const bool found =
        (path && path_has(path, name)) || (recorded && is_called(last_component(recorded), name));
    free(recorded);
    free(path);
    return found;
}
