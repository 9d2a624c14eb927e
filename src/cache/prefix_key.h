/* cache/prefix_key: the names of a prefix store's blocks. A name is a SHA-256 (FIPS 180-4): that of the root
 * says what computed the blocks, that of a block says its root, all the tokens before it and its own. May use
 * base. */
#ifndef WALSH_CACHE_PREFIX_KEY_H
#define WALSH_CACHE_PREFIX_KEY_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define WALSH_PREFIX_KEY_BYTES 32
#define WALSH_PREFIX_KEY_TEXT (2 * WALSH_PREFIX_KEY_BYTES + 1) /* hexadecimal, with the NUL */

struct walsh_prefix_key {
    uint8_t bytes[WALSH_PREFIX_KEY_BYTES];
};

/* A hash over named fields. Name and value each go in behind their length, so that no two lists of fields
 * give the same bytes. A failure is kept until finish, which reports it. */
struct walsh_prefix_digest;
enum walsh_status walsh_prefix_digest_open(struct walsh_prefix_digest **out, struct walsh_error *err);
void walsh_prefix_digest_close(struct walsh_prefix_digest **digest);
void walsh_prefix_digest_add(struct walsh_prefix_digest *digest, const char *name, const void *value,
                             size_t size);
void walsh_prefix_digest_text(struct walsh_prefix_digest *digest, const char *name, const char *value);
void walsh_prefix_digest_number(struct walsh_prefix_digest *digest, const char *name, uint64_t value);
/* The digest can only be closed afterwards. WALSH_E_INTERNAL where OpenSSL has no SHA-256. */
enum walsh_status walsh_prefix_digest_finish(struct walsh_prefix_digest *digest, struct walsh_prefix_key *key,
                                             struct walsh_error *err);

/* The key of the block that holds tokens[count] behind the block (or the root) `parent`. */
enum walsh_status walsh_prefix_key_chain(const struct walsh_prefix_key *parent, const int32_t *tokens,
                                         size_t count, struct walsh_prefix_key *key, struct walsh_error *err);
/* Lower-case hexadecimal into text; returns text. */
const char *walsh_prefix_key_text(const struct walsh_prefix_key *key, char text[WALSH_PREFIX_KEY_TEXT]);

#endif
