/* cache/prefix_store: a directory of blocks, each the cached keys and values of a piece of a prompt, opaque
 * here. A block is served only if everything about it is as expected: its size, key, parent, position, tokens
 * and checksum; anything else is a warning that names the file and what is wrong with it, and a miss. A store
 * never makes a prompt fail. May use base.
 *
 * Several threads and processes may use one store. A block appears whole or not at all (temporary, fsync,
 * rename, fsync of the directory), is never changed, and is read into the caller's memory before it is
 * checked, so that evicting it meanwhile does no harm. docs/prefix-store.md has the file format. */
#ifndef WALSH_CACHE_PREFIX_STORE_H
#define WALSH_CACHE_PREFIX_STORE_H

#include <stdbool.h>

#include "base/hooks.h"
#include "cache/prefix_key.h"

#define WALSH_PREFIX_LIMIT ((uint64_t)4 << 30) /* bytes of a store unless something else is wanted */

struct walsh_prefix_store;

/* hooks is borrowed and may be NULL; its log gets the warnings. Errors as walsh_prefix_directory_open. */
enum walsh_status walsh_store_open(const char *path, uint64_t limit, const struct walsh_hooks *hooks,
                                   struct walsh_prefix_store **out, struct walsh_error *err);
void walsh_store_close(struct walsh_prefix_store **store);

/* What reader and writer both know of a block. */
struct walsh_prefix_block {
    struct walsh_prefix_key parent; /* the block of the tokens before, or the root */
    struct walsh_prefix_key key;    /* walsh_prefix_key_chain(parent, tokens) */
    uint64_t position;              /* of the first token */
    const int32_t *tokens;          /* [count], borrowed */
    uint32_t count;
    size_t bytes; /* of its payload */
};
/* True: payload[bytes] is the block's, and *seconds what computing it took. False: there is none that may be
 * served; payload is then undefined. */
bool walsh_store_get(struct walsh_prefix_store *store, const struct walsh_prefix_block *block, void *payload,
                     double *seconds);
/* Store the block, in place of one that was not good. False: it could not be, which is told once until it can
 * be again. `since` (walsh_store_now): what was used then or later is not evicted for it. */
bool walsh_store_put(struct walsh_prefix_store *store, const struct walsh_prefix_block *block,
                     const void *payload, double seconds, int64_t since);
/* The blocks of a chain were used now: the first last, so that a chain is evicted from its end. */
void walsh_store_touch(struct walsh_prefix_store *store, const struct walsh_prefix_key *keys, size_t count);
int64_t walsh_store_now(void); /* nanoseconds since 1970 */

#endif
