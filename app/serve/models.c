#include "models.h"

#include <stdlib.h>
#include <string.h>

#include "output.h"

static void drop(struct model_entry *entry)
{
    walsh_adapter_close(&entry->adapter);
    free(entry->path);
    free(entry);
}

/* With the lock held. */
static void release(struct model_entry *entry)
{
    if (--entry->references == 0) drop(entry);
}

static size_t find(const struct models *models, const char *name)
{
    size_t i = 0;
    while (i < models->count && strcmp(models->entries[i]->name, name) != 0) i++;
    return i;
}

static enum walsh_status add(struct models *models, const char *name, const char *path,
                             struct walsh_adapter *adapter, float scale, bool given, struct walsh_error *err)
{
    struct model_entry *entry = calloc(1, sizeof *entry);
    if (entry && path) entry->path = strdup(path);
    if (!entry || (path && !entry->path)) {
        free(entry);
        return fail(err, WALSH_E_MEMORY, "out of memory for the name of a model");
    }
    snprintf(entry->name, sizeof entry->name, "%s", name);
    entry->adapter = adapter;
    entry->scale = scale;
    entry->given = given;
    entry->created = time(NULL);
    entry->references = 1;
    models->entries[models->count++] = entry;
    return WALSH_OK;
}

enum walsh_status models_open(struct models *models, const struct walsh_model *model, const char *name,
                              struct walsh_error *err)
{
    *models = (struct models){.model = model};
    pthread_mutex_init(&models->lock, NULL);
    return add(models, name, NULL, NULL, 1, true, err);
}

void models_close(struct models *models)
{
    if (!models->model) return;
    for (size_t i = 0; i < models->count; i++) release(models->entries[i]);
    pthread_mutex_destroy(&models->lock);
    *models = (struct models){0};
}

enum walsh_status models_add(struct models *models, const char *name, const char *path,
                             struct walsh_adapter *adapter, float scale, bool given, struct walsh_error *err)
{
    enum walsh_status status;
    pthread_mutex_lock(&models->lock);
    if (find(models, name) < models->count)
        status = fail(err, WALSH_E_EXISTS, "there is a model named '%s' already", name);
    else if (models->count == sizeof models->entries / sizeof *models->entries)
        status = fail(err, WALSH_E_CAPACITY, "there are %d adapters, which is the most", MOST_ADAPTERS);
    else
        status = add(models, name, path, adapter, scale, given, err);
    pthread_mutex_unlock(&models->lock);
    return status;
}

enum walsh_status models_remove(struct models *models, const char *name)
{
    enum walsh_status status = WALSH_E_NOT_FOUND;
    pthread_mutex_lock(&models->lock);
    const size_t i = find(models, name);
    if (i > 0 && i < models->count) status = models->entries[i]->given ? WALSH_E_ARGUMENT : WALSH_OK;
    if (status == WALSH_OK) {
        release(models->entries[i]);
        memmove((void *)(models->entries + i), (void *)(models->entries + i + 1),
                (--models->count - i) * sizeof *models->entries);
    }
    pthread_mutex_unlock(&models->lock);
    return status;
}

bool models_has(struct models *models, const char *name)
{
    pthread_mutex_lock(&models->lock);
    const bool found = find(models, name) < models->count;
    pthread_mutex_unlock(&models->lock);
    return found;
}

struct model_entry *models_hold(struct models *models, const char *name)
{
    pthread_mutex_lock(&models->lock);
    const size_t i = name ? find(models, name) : 0;
    struct model_entry *entry = i < models->count ? models->entries[i] : NULL;
    if (entry) entry->references++;
    pthread_mutex_unlock(&models->lock);
    return entry;
}

void models_release(struct models *models, struct model_entry *entry)
{
    if (!entry) return;
    pthread_mutex_lock(&models->lock);
    release(entry);
    pthread_mutex_unlock(&models->lock);
}

/* With the lock held. */
static json_t *entry_json(const struct models *models, size_t i, uint32_t context)
{
    const struct model_entry *entry = models->entries[i];
    json_t *item = json_object();
    json_put_text(item, "id", entry->name);
    json_put_text(item, "object", "model");
    json_put_integer(item, "created", (unsigned long long)entry->created);
    json_put_text(item, "owned_by", "walsh");
    json_put_text(item, "root", entry->name);
    json_put_text(item, "parent", i ? models->entries[0]->name : NULL);
    json_put_integer(item, "max_model_len", context);
    return item;
}

json_t *model_json(struct models *models, const char *name, uint32_t context)
{
    pthread_mutex_lock(&models->lock);
    const size_t i = find(models, name);
    json_t *item = i < models->count ? entry_json(models, i, context) : NULL;
    pthread_mutex_unlock(&models->lock);
    return item;
}

json_t *models_json(struct models *models, uint32_t context)
{
    json_t *list = json_object(), *data = json_array();
    json_put_text(list, "object", "list");
    pthread_mutex_lock(&models->lock);
    for (size_t i = 0; i < models->count; i++) json_array_append_new(data, entry_json(models, i, context));
    pthread_mutex_unlock(&models->lock);
    json_object_set_new(list, "data", data);
    return list;
}
