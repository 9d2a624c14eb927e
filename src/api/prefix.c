/* Prefix stores. */
#include "api/api.h"
#include "runtime/prefix.h"

enum walsh_status walsh_prefix_store_open(struct walsh_context *context, const char *path,
                                          const struct walsh_prefix_store_options *options,
                                          struct walsh_prefix_store **out, struct walsh_error *err)
{
    *out = NULL;
    struct walsh_prefix_store_options o = WALSH_PREFIX_STORE_OPTIONS;
    WALSH_TRY(walsh_options_read(&o, sizeof o, options, "walsh_prefix_store_options", err));
    return walsh_store_open(path, o.limit ? o.limit : WALSH_PREFIX_LIMIT, &context->hooks, out, err);
}

void walsh_prefix_store_close(struct walsh_prefix_store **store)
{
    walsh_store_close(store);
}

enum walsh_status walsh_session_set_prefix_store(struct walsh_session *session,
                                                 struct walsh_prefix_store *store, const void *salt,
                                                 size_t salt_size, struct walsh_error *err)
{
    return walsh_runtime_set_store(session, store, salt, salt_size, err);
}

void walsh_session_get_prefix_info(const struct walsh_session *session, struct walsh_prefix_info *info)
{
    struct walsh_prefix_info result = {.struct_size = sizeof result};
    if (session->prefix) {
        const struct walsh_prefix_use *use = &session->prefix->use;
        result.tokens = use->tokens;
        result.stored = use->stored;
        result.seconds = use->seconds;
        result.saved_seconds = use->saved_seconds;
        result.stored_seconds = use->stored_seconds;
    }
    walsh_result_write(info, &result, sizeof result);
}
