/* serve/keys: the keys of --api-key-file. */
#ifndef WALSH_SERVE_KEYS_H
#define WALSH_SERVE_KEYS_H

#include "app.h"

#define MOST_KEYS 256
#define MOST_KEY_BYTES 256

struct keys {
    char (*keys)[MOST_KEY_BYTES]; /* [count], padded with zeros */
    size_t count;
};

/* One key per line; empty lines and those that begin with # are not keys. WALSH_E_FORMAT: no key, one that is
 * too long or short or holds a space, or too many. *shared: others than the owner's group may read the file.
 */
enum walsh_status keys_read(struct keys *keys, const char *path, bool *shared, struct walsh_error *err);
void keys_free(struct keys *keys);
/* The key that is equal; NULL: none. The time it takes depends on the number of keys alone. */
const char *keys_find(const struct keys *keys, const char *presented);

#endif
