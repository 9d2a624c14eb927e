#include "cache/prefix_key.h"

#include <openssl/evp.h>
#include <string.h>

#include "base/memory.h"

struct walsh_prefix_digest {
    EVP_MD_CTX *context;
    bool failed;
};

static enum walsh_status fail_openssl(struct walsh_error *err)
{
    return walsh_fail(err, WALSH_E_INTERNAL, "SHA-256 failed in OpenSSL's libcrypto");
}

enum walsh_status walsh_prefix_digest_open(struct walsh_prefix_digest **out, struct walsh_error *err)
{
    WALSH_TRY(walsh_alloc_zero(1, sizeof **out, "a hash", out, err));
    (*out)->context = EVP_MD_CTX_new();
    if ((*out)->context && EVP_DigestInit_ex((*out)->context, EVP_sha256(), NULL) == 1) return WALSH_OK;
    walsh_prefix_digest_close(out);
    return fail_openssl(err);
}

void walsh_prefix_digest_close(struct walsh_prefix_digest **digest)
{
    if (!digest || !*digest) return;
    EVP_MD_CTX_free((*digest)->context);
    walsh_free(*digest);
    *digest = NULL;
}

static void update(struct walsh_prefix_digest *digest, const void *data, size_t size)
{
    if (EVP_DigestUpdate(digest->context, data, size) != 1) digest->failed = true;
}

static void update_measured(struct walsh_prefix_digest *digest, const void *data, size_t size)
{
    const uint64_t length = size;
    update(digest, &length, sizeof length);
    update(digest, data, size);
}

void walsh_prefix_digest_add(struct walsh_prefix_digest *digest, const char *name, const void *value,
                             size_t size)
{
    update_measured(digest, name, strlen(name));
    update_measured(digest, value, size);
}

void walsh_prefix_digest_text(struct walsh_prefix_digest *digest, const char *name, const char *value)
{
    walsh_prefix_digest_add(digest, name, value, strlen(value));
}

void walsh_prefix_digest_number(struct walsh_prefix_digest *digest, const char *name, uint64_t value)
{
    walsh_prefix_digest_add(digest, name, &value, sizeof value);
}

enum walsh_status walsh_prefix_digest_finish(struct walsh_prefix_digest *digest, struct walsh_prefix_key *key,
                                             struct walsh_error *err)
{
    unsigned size = 0;
    if (EVP_DigestFinal_ex(digest->context, key->bytes, &size) != 1 || digest->failed ||
        size != WALSH_PREFIX_KEY_BYTES)
        return fail_openssl(err);
    return WALSH_OK;
}

enum walsh_status walsh_prefix_key_chain(const struct walsh_prefix_key *parent, const int32_t *tokens,
                                         size_t count, struct walsh_prefix_key *key, struct walsh_error *err)
{
    struct walsh_prefix_digest *digest;
    WALSH_TRY(walsh_prefix_digest_open(&digest, err));
    walsh_prefix_digest_add(digest, "parent", parent->bytes, sizeof parent->bytes);
    walsh_prefix_digest_add(digest, "tokens", tokens, count * sizeof *tokens);
    const enum walsh_status status = walsh_prefix_digest_finish(digest, key, err);
    walsh_prefix_digest_close(&digest);
    return status;
}

const char *walsh_prefix_key_text(const struct walsh_prefix_key *key, char text[WALSH_PREFIX_KEY_TEXT])
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < WALSH_PREFIX_KEY_BYTES; i++) {
        text[2 * i] = digits[key->bytes[i] >> 4];
        text[2 * i + 1] = digits[key->bytes[i] & 15];
    }
    text[2 * WALSH_PREFIX_KEY_BYTES] = 0;
    return text;
}
