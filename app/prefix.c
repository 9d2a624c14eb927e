#include "prefix.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "output.h"

/* "500M": a number and at most one of K, M, G, T. */
static bool parse_size(const char *text, uint64_t *size)
{
    static const char units[] = "KMGT";
    char *end;
    if (*text < '0' || *text > '9') return false;
    errno = 0;
    const unsigned long long number = strtoull(text, &end, 10);
    if (errno != 0 || number == 0) return false;
    const char *unit = *end ? strchr(units, *end >= 'a' ? *end - 'a' + 'A' : *end) : NULL;
    if (*end && (!unit || end[1])) return false;
    const unsigned shift = unit ? 10 * (unsigned)(unit - units + 1) : 0;
    if (number > (uint64_t)INT64_MAX >> shift) return false;
    *size = (uint64_t)number << shift;
    return true;
}

enum walsh_status prefix_check(const struct prefix_settings *s, struct walsh_error *err)
{
    uint64_t limit;
    if (!s->limit) return WALSH_OK;
    if (!s->path) return fail(err, WALSH_E_ARGUMENT, "--prefix-store-limit needs --prefix-store DIR");
    if (!parse_size(s->limit, &limit))
        return fail(
            err, WALSH_E_ARGUMENT,
            "--prefix-store-limit is \"%.60s\", expected a number of bytes with K, M, G or T behind it or "
            "without",
            s->limit);
    return WALSH_OK;
}

enum walsh_status prefix_store_open(const struct prefix_settings *s, struct walsh_context *context,
                                    struct walsh_prefix_store **out, struct walsh_error *err)
{
    struct walsh_prefix_store_options options = WALSH_PREFIX_STORE_OPTIONS;
    *out = NULL;
    if (!s->path) return WALSH_OK;
    if (s->limit) parse_size(s->limit, &options.limit);
    return walsh_prefix_store_open(context, s->path, &options, out, err);
}

static enum walsh_status open_store(const struct prefix_settings *s, struct walsh_context *context,
                                    struct walsh_session *session, struct walsh_prefix_store **out,
                                    struct walsh_error *err)
{
    TRY(prefix_store_open(s, context, out, err));
    return walsh_session_set_prefix_store(session, *out, NULL, 0, err);
}

enum walsh_status prefix_open(const struct prefix_settings *s, struct command *command,
                              struct walsh_context *context, struct walsh_session *session,
                              struct prefix_use *out, struct walsh_error *err)
{
    if (!s->path) return WALSH_OK;
    const double started = seconds_now();
    const enum walsh_status status = open_store(s, context, session, &out->store, err);
    out->open_seconds = seconds_now() - started;
    if (status != WALSH_E_IO) return status;
    char line[sizeof err->message + 40];
    snprintf(line, sizeof line, "%s; there is no prefix store", err->message);
    const struct walsh_hooks hooks = progress_hooks(&command->progress);
    hooks.log(hooks.user, WALSH_LOG_WARNING, line);
    return WALSH_OK;
}

void prefix_close(struct prefix_use *use)
{
    walsh_prefix_store_close(&use->store);
}

void prefix_put(json_t *object, const struct prefix_use *use, const struct walsh_session *session,
                double first_token_seconds)
{
    struct walsh_prefix_info info = {.struct_size = sizeof info};
    walsh_session_get_prefix_info(session, &info);
    json_t *prefix = json_object();
    json_put_integer(prefix, "tokens", info.tokens);
    json_put_integer(prefix, "stored_tokens", info.stored);
    json_put_real(prefix, "open_seconds", use->open_seconds);
    json_put_real(prefix, "seconds", info.seconds);
    json_put_real(prefix, "stored_seconds", info.stored_seconds);
    json_put_real(prefix, "saved_seconds", info.saved_seconds);
    /* The time to the first token had nothing been taken over, by the one with it. */
    const double fresh = first_token_seconds - info.seconds + info.saved_seconds;
    json_put_real(prefix, "ratio", info.tokens > 0 ? fresh / first_token_seconds : NAN);
    json_object_set_new(object, "prefix", prefix);
}
