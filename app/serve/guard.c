#include "guard.h"

#include <arpa/inet.h>
#include <string.h>
#include <strings.h>

static const char *header(struct exchange *x, const char *name)
{
    return MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, name);
}

/* The host of "name", "name:port", "[address]" or "[address]:port" into buffer; false: none of these. */
static bool split_host(const char *value, char *buffer, size_t size)
{
    const char *begin = value, *end;
    if (*value == '[') {
        begin = value + 1;
        end = strchr(begin, ']');
        if (!end || (end[1] && end[1] != ':')) return false;
    } else {
        end = begin + strcspn(begin, ":");
    }
    const char *port = *value == '[' ? end + 1 : end;
    if (*port == ':' && strspn(port + 1, "0123456789") != strlen(port + 1)) return false;
    if (end == begin || (size_t)(end - begin) >= size) return false;
    memcpy(buffer, begin, (size_t)(end - begin));
    buffer[end - begin] = 0;
    return true;
}

static bool is_listed(const struct option_texts *list, const char *word)
{
    for (size_t i = 0; i < list->count; i++)
        if (strcasecmp(list->values[i], word) == 0) return true;
    return false;
}

static bool is_number(const char *host)
{
    struct in6_addr address;
    return inet_pton(AF_INET, host, &address) == 1 || inet_pton(AF_INET6, host, &address) == 1;
}

struct count {
    const char *name;
    int seen;
};

static enum MHD_Result count_header(void *context, enum MHD_ValueKind kind, const char *name,
                                    const char *value)
{
    struct count *count = context;
    (void)kind, (void)value;
    count->seen += strcasecmp(name, count->name) == 0;
    return MHD_YES;
}

static int headers_of(const struct exchange *x, const char *name)
{
    struct count count = {name, 0};
    MHD_get_connection_values(x->connection, MHD_HEADER_KIND, count_header, &count);
    return count.seen;
}

static bool is_longer(const char *name, const char *beginning)
{
    return strncasecmp(name, beginning, strlen(beginning)) == 0 && name[strlen(beginning)];
}

/* libmicrohttpd takes the blanks before a colon for part of the name, puts a folded line behind the name
 * above it, and lets a carriage return stand in a value. */
static enum MHD_Result find_odd_header(void *context, enum MHD_ValueKind kind, const char *name,
                                       const char *value)
{
    static const char letters[] = /* RFC 9110, 5.6.2 */
        "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    const char **odd = context;
    (void)kind;
    if (!name[strspn(name, letters)] && !is_longer(name, MHD_HTTP_HEADER_CONTENT_LENGTH) &&
        !is_longer(name, MHD_HTTP_HEADER_TRANSFER_ENCODING) && !(value && strchr(value, '\r')))
        return MHD_YES;
    *odd = name;
    return MHD_NO;
}

bool guard_headers(struct exchange *x)
{
    const char *odd = NULL;
    MHD_get_connection_values(x->connection, MHD_HEADER_KIND, find_odd_header, &odd);
    if (!odd) return true;
    x->at_once = true; /* nothing more is read from this connection */
    return refuse(&x->refusal, 400, "invalid_header", NULL,
                  "the header \"%.60s\" is not a name, a colon and a value on one line", odd);
}

bool guard_length(struct exchange *x)
{
    const int lengths = headers_of(x, MHD_HTTP_HEADER_CONTENT_LENGTH);
    const int codings = headers_of(x, MHD_HTTP_HEADER_TRANSFER_ENCODING);
    const char *coding = header(x, MHD_HTTP_HEADER_TRANSFER_ENCODING);
    const bool known = !codings || (coding && strcasecmp(coding, "chunked") == 0);
    if (lengths + codings <= 1 && known) return true;
    x->at_once = true;          /* nothing more is read from this connection */
    if (codings == 1 && !known) /* RFC 9112, 6.1; libmicrohttpd would wait for the end of such a body */
        return refuse(&x->refusal, 501, "unknown_transfer_coding", NULL,
                      "the Transfer-Encoding \"%.60s\" is not supported, expected chunked",
                      coding ? coding : "");
    return refuse(
        &x->refusal, 400, "invalid_length", NULL,
        "the request has %d Content-Length and %d Transfer-Encoding headers, expected one of the two",
        lengths, codings);
}

bool guard_host(struct exchange *x)
{
    const int hosts = headers_of(x, MHD_HTTP_HEADER_HOST);
    if (hosts > 1) /* RFC 9112, 3.2: what stands before us may look at the other one */
        return refuse(&x->refusal, 400, "invalid_host", NULL, "the request has %d Host headers", hosts);
    const char *value = header(x, MHD_HTTP_HEADER_HOST);
    char host[256];
    if (!value) return true; /* HTTP/1.0, which no browser speaks */
    if (split_host(value, host, sizeof host) &&
        (is_number(host) || strcasecmp(host, "localhost") == 0 || strcasecmp(host, x->server->host) == 0 ||
         is_listed(x->server->hosts, host)))
        return true;
    return refuse(&x->refusal, 403, "host_not_allowed", NULL,
                  "the host \"%.100s\" is not allowed; see --allow-host", value);
}

bool guard_origin(struct exchange *x)
{
    const char *origin = header(x, MHD_HTTP_HEADER_ORIGIN), *host = header(x, MHD_HTTP_HEADER_HOST);
    if (!origin) return true;
    const char *authority = strstr(origin, "://");
    if (authority && host && strcasecmp(authority + 3, host) == 0) return true;
    if (strlen(origin) < sizeof x->origin && is_listed(x->server->origins, origin)) {
        snprintf(x->origin, sizeof x->origin, "%s", origin);
        return true;
    }
    return refuse(&x->refusal, 403, "origin_not_allowed", NULL,
                  "the origin \"%.100s\" is not allowed; see --allow-origin", origin);
}

bool guard_key(struct exchange *x)
{
    const struct keys *keys = &x->server->keys;
    if (!keys->count) return true;
    const char *value = header(x, MHD_HTTP_HEADER_AUTHORIZATION);
    if (value && strncasecmp(value, "Bearer ", 7) == 0) {
        value += 7;
        value += strspn(value, " \t");
        char presented[MOST_KEY_BYTES + 1]; /* cut where it is longer than any key, and then none */
        size_t size = strnlen(value, MOST_KEY_BYTES);
        memcpy(presented, value, size);
        if (!value[size]) /* blanks behind a value are not of it (RFC 9110, 5.5) */
            while (size > 0 && strchr(" \t", presented[size - 1])) size--;
        presented[size] = 0;
        x->key = keys_find(keys, presented);
        explicit_bzero(presented, sizeof presented);
    }
    if (!x->key)
        return refuse(&x->refusal, 401, "invalid_api_key", NULL,
                      value ? "the API key is not valid" : "an API key is needed: Authorization: Bearer KEY");
    x->tenant = (uint64_t)(x->key - keys->keys[0]);
    return true;
}

bool guard_json(struct exchange *x)
{
    static const char type[] = "application/json";
    const char *value = header(x, MHD_HTTP_HEADER_CONTENT_TYPE);
    const size_t length = sizeof type - 1;
    if (value && strncasecmp(value, type, length) == 0 && (!value[length] || strchr("; \t", value[length])))
        return true;
    return refuse(&x->refusal, 415, "unsupported_media_type", NULL,
                  "the body must come with Content-Type: application/json");
}
