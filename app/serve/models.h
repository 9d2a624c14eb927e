/* serve/models: the names that `model` in a request may have: the model itself, and its adapters. Any thread.
 */
#ifndef WALSH_SERVE_MODELS_H
#define WALSH_SERVE_MODELS_H

#include <jansson.h>
#include <pthread.h>
#include <time.h>

#include "app.h"

#define MOST_ADAPTERS 256

/* A name and what it stands for; lives as long as somebody holds it. */
struct model_entry {
    char name[256];
    char *path;                    /* of an adapter; NULL: the model itself */
    struct walsh_adapter *adapter; /* NULL: none */
    float scale;
    bool given; /* at the start: no request removes it */
    time_t created;
    unsigned references; /* under the list's lock */
};

struct models {
    pthread_mutex_t lock;
    const struct walsh_model *model;
    struct model_entry *entries[1 + MOST_ADAPTERS]; /* [0] the model itself */
    size_t count;
};

/* The list with the model alone. */
enum walsh_status models_open(struct models *models, const struct walsh_model *model, const char *name,
                              struct walsh_error *err);
void models_close(struct models *models);
/* Add an adapter, which becomes the list's to close. WALSH_E_EXISTS: the name is taken; WALSH_E_CAPACITY: too
 * many. */
enum walsh_status models_add(struct models *models, const char *name, const char *path,
                             struct walsh_adapter *adapter, float scale, bool given, struct walsh_error *err);
/* Forget an adapter: requests that hold it keep it. WALSH_E_NOT_FOUND: no adapter of that name;
 * WALSH_E_ARGUMENT: it was given at the start. */
enum walsh_status models_remove(struct models *models, const char *name);
bool models_has(struct models *models, const char *name);
/* Hold the entry of that name (NULL: the model itself); NULL: there is none. */
struct model_entry *models_hold(struct models *models, const char *name);
void models_release(struct models *models, struct model_entry *entry); /* NULL-safe */
/* The objects of /v1/models and of /v1/models/NAME; NULL: there is none of that name. */
json_t *models_json(struct models *models, uint32_t context);
json_t *model_json(struct models *models, const char *name, uint32_t context);

#endif
