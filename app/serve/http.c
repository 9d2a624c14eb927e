/* The HTTP side: connections, checks that come before a request is looked at, answers. */
#include "server.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "guard.h"
#include "json_text.h"

#define MOST_PATH 512            /* bytes */
#define MOST_HEADERS (32 * 1024) /* bytes of all names and values, also those behind a question mark */
/* Of libmicrohttpd per connection, taken from the system as it is used. What does not fit it refuses in HTML:
 * so there is room for more than we allow, and ours is the answer. */
#define CONNECTION_MEMORY (128 * 1024)
#define MOST_DROPPED                                                                                         \
    (64 << 20) /* bytes of a body that is refused, read so that its client gets to the answer */
#define STREAM_BLOCK (16 * 1024)
#define CLIENT_CLOSED_REQUEST 499 /* in log and metrics, as nginx has it: the client left without an answer */

/* An open connection. */
struct client {
    struct client *next, *before;
    int fd;
    uint64_t address; /* a hash of it */
    double since;     /* when its request began, or it fell idle */
    bool answering;   /* the whole request is there */
    struct job *job;  /* that it waits for; NULL: none */
};

/* ---------------------------------------------------------------------------------------- connections */

static uint64_t hash_bytes(const void *data, size_t size)
{
    uint64_t h = 0xcbf29ce484222325u; /* FNV-1a; it only tells clients apart */
    for (size_t i = 0; i < size; i++) h = (h ^ ((const unsigned char *)data)[i]) * 0x100000001b3u;
    return h;
}

static uint64_t hash_address(const struct sockaddr *address)
{
    if (address->sa_family == AF_INET)
        return hash_bytes(&((const struct sockaddr_in *)(const void *)address)->sin_addr,
                          sizeof(struct in_addr));
    if (address->sa_family == AF_INET6) /* one network of 64 bits is one client */
        return hash_bytes(&((const struct sockaddr_in6 *)(const void *)address)->sin6_addr, 8);
    return 0;
}

static void add_client(struct server *server, struct MHD_Connection *connection, void **context)
{
    struct client *client = calloc(1, sizeof *client);
    *context = client;
    if (!client) return;
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    client->fd = info ? info->connect_fd : -1;
    info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    if (info && info->client_addr) client->address = hash_address(info->client_addr);
    client->since = seconds_now();
    const int on = 1;
    setsockopt(client->fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    pthread_mutex_lock(&server->lock);
    client->next = server->clients;
    if (client->next) client->next->before = client;
    server->clients = client;
    server->client_count++;
    pthread_mutex_unlock(&server->lock);
}

static void remove_client(struct server *server, struct client *client)
{
    if (!client) return;
    pthread_mutex_lock(&server->lock);
    if (client->before)
        client->before->next = client->next;
    else
        server->clients = client->next;
    if (client->next) client->next->before = client->before;
    server->client_count--;
    pthread_mutex_unlock(&server->lock);
    free(client);
}

/* libmicrohttpd tells of a connection's end before it closes the socket: while a client is in the list, its
 * fd is its own. */
static void on_connection(void *context, struct MHD_Connection *connection, void **client,
                          enum MHD_ConnectionNotificationCode code)
{
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        add_client(context, connection, client);
    } else {
        remove_client(context, *client);
        *client = NULL;
    }
}

static void set_phase(struct server *server, struct client *client, bool answering, struct job *job)
{
    if (!client) return;
    pthread_mutex_lock(&server->lock);
    client->answering = answering;
    client->since = seconds_now();
    client->job = job;
    pthread_mutex_unlock(&server->lock);
}

static bool has_left(int fd)
{
    if (fd < 0) return false;
    struct pollfd p = {.fd = fd, .events = POLLRDHUP};
    return poll(&p, 1, 0) == 1 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR));
}

void http_watch(struct server *server)
{
    struct job *left = NULL;
    const double now = seconds_now();
    pthread_mutex_lock(&server->lock);
    for (struct client *c = server->clients; c; c = c->next) {
        if (!c->answering && now - c->since > server->limits.read_seconds) {
            shutdown(c->fd, SHUT_RDWR); /* libmicrohttpd sees its end and closes it */
            c->since = now;
        }
        if (!c->job || !has_left(c->fd)) continue;
        job_hold(c->job);
        c->job->next_left = left;
        left = c->job;
        c->job = NULL;
    }
    pthread_mutex_unlock(&server->lock);
    const bool some = left != NULL;
    for (struct job *job = left, *next; job; job = next) {
        next = job->next_left;
        pthread_mutex_lock(&job->lock);
        const bool open = !job->done && !job->gone; /* once: libmicrohttpd may have told it (on_completed) */
        job->gone = true;
        job_wake(job);
        pthread_mutex_unlock(&job->lock);
        job_cancel(job);
        if (open) metrics_add(&server->metrics, &server->metrics.disconnects);
        job_release(job);
    }
    if (some) engine_poke(server->engine);
}

/* ---------------------------------------------------------------------------------------- answers */

static void add_headers(struct exchange *x, struct MHD_Response *response, const char *type)
{
    char seconds[16];
    MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, type);
    MHD_add_response_header(response, "X-Request-Id", x->id);
    MHD_add_response_header(response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
    MHD_add_response_header(response, "X-Content-Type-Options", "nosniff");
    if (*x->origin) {
        MHD_add_response_header(response, MHD_HTTP_HEADER_ACCESS_CONTROL_ALLOW_ORIGIN, x->origin);
        MHD_add_response_header(response, MHD_HTTP_HEADER_VARY, "Origin");
    }
    if (x->allow) MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, x->allow);
    if (x->retry) {
        snprintf(seconds, sizeof seconds, "%u", x->retry);
        MHD_add_response_header(response, MHD_HTTP_HEADER_RETRY_AFTER, seconds);
    }
    if (x->refusal.status == 401)
        MHD_add_response_header(response, MHD_HTTP_HEADER_WWW_AUTHENTICATE, "Bearer realm=\"walsh\"");
}

enum MHD_Result answer_response(struct exchange *x, int status, const char *type,
                                struct MHD_Response *response)
{
    if (!response) return MHD_NO;
    add_headers(x, response, type);
    x->status = status;
    const enum MHD_Result result = MHD_queue_response(x->connection, (unsigned)status, response);
    MHD_destroy_response(response);
    return result;
}

enum MHD_Result answer_text(struct exchange *x, int status, const char *type, struct text *text)
{
    struct MHD_Response *response =
        MHD_create_response_from_buffer(text->size, text->data, MHD_RESPMEM_MUST_FREE);
    if (!response) text_free(text);
    *text = (struct text){0};
    return answer_response(x, status, type, response);
}

bool reply_json(struct exchange *x, json_t *json)
{
    x->reply_type = "application/json";
    return json_write_tree(&x->reply, json) || refuse_memory(&x->refusal);
}

bool reply_words(struct exchange *x, const char *words)
{
    x->reply_type = "text/plain; charset=utf-8";
    return text_append(&x->reply, words, strlen(words)) || refuse_memory(&x->refusal);
}

enum MHD_Result answer_json(struct exchange *x, int status, json_t *json)
{
    struct text text = {0};
    if (!json_write_tree(&text, json)) {
        text_free(&text);
        return MHD_NO;
    }
    return answer_text(x, status, "application/json", &text);
}

enum MHD_Result answer_refusal(struct exchange *x)
{
    return answer_json(x, x->refusal.status, refusal_json(&x->refusal));
}

/* ---------------------------------------------------------------------------------------- jobs */

static void wake(struct job *job)
{
    MHD_resume_connection(job->connection);
}

/* Sleep until the engine has news of the job. With its lock held. */
static void sleep_until_news(struct job *job)
{
    MHD_suspend_connection(job->connection);
    job->suspended = true;
}

static ssize_t read_stream(void *context, uint64_t position, char *buffer, size_t most)
{
    struct job *job = context;
    (void)position;
    ssize_t result = 0;
    pthread_mutex_lock(&job->lock);
    const size_t rest = job->out.size - job->taken;
    if (job->gone || job->stalled) {
        result = MHD_CONTENT_READER_END_WITH_ERROR;
    } else if (rest) {
        const size_t n = rest < most ? rest : most;
        memcpy(buffer, job->out.data + job->taken, n);
        job->taken += n;
        if (job->taken == job->out.size) job->taken = job->out.size = 0;
        result = (ssize_t)n;
    } else if (job->done) {
        result = MHD_CONTENT_READER_END_OF_STREAM;
    } else {
        sleep_until_news(job);
    }
    pthread_mutex_unlock(&job->lock);
    return result;
}

static void end_stream(void *context)
{
    job_release(context);
}

static enum MHD_Result begin_stream(struct exchange *x)
{
    job_hold(x->job);
    struct MHD_Response *response =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_BLOCK, read_stream, x->job, end_stream);
    if (!response) {
        job_release(x->job);
        return MHD_NO;
    }
    MHD_add_response_header(response, "X-Accel-Buffering",
                            "no"); /* proxies that would collect a whole answer */
    return answer_response(x, 200, "text/event-stream; charset=utf-8", response);
}

/* A job that is no stream is over: its answer or why there is none. */
static enum MHD_Result answer_done(struct exchange *x)
{
    x->refusal = x->job->failure;
    return x->refusal.status ? answer_refusal(x) : answer_json(x, 200, job_answer(x->job));
}

static enum MHD_Result await_job(struct exchange *x)
{
    struct job *job = x->job;
    pthread_mutex_lock(&job->lock);
    const bool gone = job->gone, done = job->done;
    if (!gone && !done) sleep_until_news(job);
    pthread_mutex_unlock(&job->lock);
    if (gone) return MHD_NO;
    return done ? answer_done(x) : MHD_YES;
}

/* Hand a job to the engine and answer when it has something. */
static enum MHD_Result answer_job(struct exchange *x)
{
    struct job *job = x->job;
    x->phase = EXCHANGE_AWAITS;
    job->connection = x->connection;
    job->wake = wake;
    if (!engine_submit(x->server->engine, job, &x->refusal, &x->retry)) return answer_refusal(x);
    set_phase(x->server, x->client, true, job);
    return job->request.stream ? begin_stream(x) : await_job(x);
}

/* ---------------------------------------------------------------------------------------- requests */

static struct exchange *open_exchange(struct server *server, struct MHD_Connection *connection)
{
    struct exchange *x = calloc(1, sizeof *x);
    uint64_t random[2] = {0};
    if (!x) return NULL;
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    x->server = server;
    x->connection = connection;
    x->client = info ? info->socket_context : NULL;
    x->started = seconds_now();
    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random)
        random[0] = (uint64_t)(x->started * 1e9);
    snprintf(x->id, sizeof x->id, "req-%016llx%08llx", (unsigned long long)random[0],
             (unsigned long long)(random[1] & 0xffffffff));
    if (x->client) x->tenant = x->client->address;
    return x;
}

/* The route of method and path; where the path is known with other methods, x->allow names them. */
static void find_route(struct exchange *x, const char *method, const char *path)
{
    if (strcmp(method, "HEAD") == 0) method = "GET"; /* libmicrohttpd leaves the body out */
    for (const struct route *r = routes; r->method; r++) {
        const size_t length = strlen(r->path);
        const bool begins = length > 1 && r->path[length - 1] == '/';
        if (begins ? strncmp(r->path, path, length) != 0 : strcmp(r->path, path) != 0) continue;
        if (strcmp(r->method, method) == 0) {
            x->name = path + length;
            x->route = r;
            x->allow = NULL;
            return;
        }
        x->allow = r->method;
    }
}

static enum MHD_Result add_header_size(void *sum, enum MHD_ValueKind kind, const char *name, size_t name_size,
                                       const char *value, size_t value_size)
{
    (void)kind, (void)name, (void)value;
    *(size_t *)sum += name_size + value_size + 4; /* ": " and the line's end */
    return MHD_YES;
}

/* Refuse a body that is announced as too long. The answer waits until the body has been read and dropped,
 * since most clients look for it only then; not where the client asks first, or for what nobody should
 * send. */
static bool refuse_length(struct exchange *x, const char *length)
{
    const size_t most = x->server->limits.body_bytes;
    x->at_once = strtoull(length, NULL, 10) > most + MOST_DROPPED ||
                 MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, MHD_HTTP_HEADER_EXPECT);
    return refuse(&x->refusal, 413, "body_too_large", NULL, "the body has %.20s bytes, expected at most %zu",
                  length, most);
}

/* What is wrong with the request before its body is there; true: nothing. */
static bool check_head(struct exchange *x, const char *path, const char *method)
{
    struct server *server = x->server;
    size_t size = 0;
    if (strlen(path) > MOST_PATH)
        return refuse(&x->refusal, 414, "uri_too_long", NULL, "the path is longer than %d bytes", MOST_PATH);
    MHD_get_connection_values_n(x->connection, MHD_HEADER_KIND | MHD_GET_ARGUMENT_KIND, add_header_size,
                                &size);
    if (size > MOST_HEADERS)
        return refuse(&x->refusal, 431, "headers_too_large", NULL,
                      "the request has %zu bytes of headers and parameters, expected at most %d", size,
                      MOST_HEADERS);
    if (!guard_headers(x) || !guard_length(x) || !guard_host(x) || !guard_origin(x)) return false;
    find_route(x, method, path);
    if (!x->route && x->allow)
        return refuse(&x->refusal, 405, "method_not_allowed", NULL,
                      "%.16s is not allowed for %s, expected %s", method, path, x->allow);
    if (!x->route) return refuse(&x->refusal, 404, "not_found", NULL, "there is nothing at %.100s", path);
    if (!x->route->open && !guard_key(x)) return false;
    if (!x->route->endpoint) return true;
    if (!guard_json(x)) return false;
    const char *length =
        MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, MHD_HTTP_HEADER_CONTENT_LENGTH);
    return !length || strtoull(length, NULL, 10) <= server->limits.body_bytes || refuse_length(x, length);
}

/* A piece of the body. What comes after a refusal is read and dropped, so that the client is still there to
 * be told. */
static enum MHD_Result take_body(struct exchange *x, const char *data, size_t size)
{
    struct server *server = x->server;
    x->seen += size;
    if (x->seen > server->limits.body_bytes + MOST_DROPPED) return MHD_NO;
    if (x->refusal.status) return MHD_YES;
    if (!x->route->endpoint) {
        refuse(&x->refusal, 400, "unexpected_body", NULL, "this endpoint takes no body");
    } else if (x->seen > server->limits.body_bytes) {
        refuse(&x->refusal, 413, "body_too_large", NULL, "the body has more than %zu bytes",
               server->limits.body_bytes);
    } else if (atomic_fetch_add(&server->body_bytes, size) + size > server->limits.all_body_bytes) {
        atomic_fetch_sub(&server->body_bytes, size);
        x->retry = 1;
        refuse(&x->refusal, 503, "busy", NULL, "too many requests are being read");
    } else if (!text_append(&x->body, data, size)) {
        atomic_fetch_sub(&server->body_bytes, size);
        refuse_memory(&x->refusal);
    }
    return MHD_YES;
}

static void drop_body(struct exchange *x)
{
    atomic_fetch_sub(&x->server->body_bytes, x->body.size);
    text_free(&x->body);
}

/* The question of a browser whether a page of another origin may ask; guard_origin has looked at it. */
static enum MHD_Result answer_preflight(struct exchange *x)
{
    struct MHD_Response *response =
        MHD_create_response_from_buffer(0, (void *)(uintptr_t) "", MHD_RESPMEM_PERSISTENT);
    if (!response) return MHD_NO;
    MHD_add_response_header(response, "Access-Control-Allow-Methods", "GET, POST");
    MHD_add_response_header(response, "Access-Control-Allow-Headers", "Authorization, Content-Type");
    MHD_add_response_header(response, "Access-Control-Max-Age", "600");
    return answer_response(x, 204, "text/plain", response);
}

/* On a worker's thread: nobody else looks at the exchange until its connection is resumed. */
static void prepare(struct work_item *item, bool stopping)
{
    struct exchange *x = (struct exchange *)item;
    x->left = x->client && has_left(x->client->fd);
    if (stopping)
        refuse(&x->refusal, 503, "shutting_down", NULL, "the server is shutting down");
    else if (!x->left)
        x->route->prepare(x);
    drop_body(x);
    x->phase = EXCHANGE_PREPARED;
    MHD_resume_connection(x->connection);
}

static enum MHD_Result begin_preparation(struct exchange *x)
{
    x->phase = EXCHANGE_PREPARES;
    x->work.tenant = x->tenant;
    x->work.run = prepare;
    MHD_suspend_connection(x->connection);
    work_submit(&x->server->work, &x->work);
    return MHD_YES;
}

static enum MHD_Result answer_prepared(struct exchange *x)
{
    if (x->left) return MHD_NO;
    if (x->refusal.status) return answer_refusal(x);
    return x->job ? answer_job(x) : answer_text(x, 200, x->reply_type, &x->reply);
}

static enum MHD_Result on_request(void *context, struct MHD_Connection *connection, const char *path,
                                  const char *method, const char *version, const char *data, size_t *size,
                                  void **state)
{
    struct exchange *x = *state;
    (void)version;
    if (!x) {
        *state = x = open_exchange(context, connection);
        if (!x) return MHD_NO;
        const bool preflight = strcmp(method, "OPTIONS") == 0;
        if (preflight && guard_host(x) && guard_origin(x) && *x->origin) return answer_preflight(x);
        if (!x->refusal.status && !check_head(x, path, method) && x->at_once) return answer_refusal(x);
        return MHD_YES;
    }
    if (x->phase == EXCHANGE_AWAITS) return await_job(x);
    if (x->phase == EXCHANGE_PREPARED) return answer_prepared(x);
    if (*size) {
        const enum MHD_Result result = take_body(x, data, *size);
        *size = 0;
        return result;
    }
    set_phase(x->server, x->client, true, NULL);
    if (x->refusal.status) return answer_refusal(x);
    return x->route->endpoint ? begin_preparation(x) : x->route->answer(x);
}

static void log_exchange(const struct exchange *x)
{
    json_t *line = json_object();
    json_put_text(line, "request", x->id);
    json_put_text(line, "endpoint", x->route ? x->route->path : NULL);
    json_put_integer(line, "status", (unsigned long long)x->status);
    json_put_real(line, "seconds", seconds_now() - x->started);
    if (x->refusal.status) json_put_text(line, "code", x->refusal.code);
    if (x->job) {
        pthread_mutex_lock(&x->job->lock);
        json_put_text(line, "job", x->job->id);
        json_put_text(line, "model", x->job->entry->name);
        json_put_integer(line, "prompt_tokens", x->job->prompt_tokens);
        json_put_integer(line, "prefix_tokens", x->job->prefix_tokens);
        json_put_integer(line, "completion_tokens", x->job->tokens);
        if (x->job->first_token > 0) json_put_real(line, "first_token_seconds", x->job->first_token);
        if (!x->refusal.status && (!x->job->done || x->job->gone))
            json_object_set_new(line, "disconnected", json_true());
        pthread_mutex_unlock(&x->job->lock);
    }
    log_write(&x->server->log, "info", "request", line);
}

/* libmicrohttpd has done with the request, one way or the other. */
static void on_completed(void *context, struct MHD_Connection *connection, void **state,
                         enum MHD_RequestTerminationCode code)
{
    struct server *server = context;
    struct exchange *x = *state;
    (void)connection;
    (void)code;
    if (!x) return;
    *state = NULL;
    set_phase(server, x->client, false, NULL);
    if (!x->status) x->status = CLIENT_CLOSED_REQUEST;
    log_exchange(x);
    metrics_count_response(&server->metrics, x->route ? x->route->path : "other", x->status);
    if (x->job) {
        pthread_mutex_lock(&x->job->lock);
        const bool open = !x->job->done && !x->job->gone;
        x->job->gone = x->job->gone || open;
        x->job->connection = NULL;
        x->job->suspended = false;
        pthread_mutex_unlock(&x->job->lock);
        if (open && !x->refusal.status) { /* refused: it never came to the engine */
            job_cancel(x->job);
            engine_poke(server->engine);
            metrics_add(&server->metrics, &server->metrics.disconnects);
        }
        job_release(x->job);
    }
    drop_body(x);
    text_free(&x->reply);
    free(x);
}

/* ---------------------------------------------------------------------------------------- life */

enum walsh_status http_bind(struct server *server, const char *host, int *port, struct walsh_error *err)
{
    const struct addrinfo hints = {
        .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct addrinfo *found;
    struct sockaddr_storage bound;
    socklen_t size = sizeof bound;
    char service[16];
    snprintf(service, sizeof service, "%d", *port);
    const int reason = getaddrinfo(host, service, &hints, &found);
    if (reason != 0) return fail(err, WALSH_E_IO, "--host %s: %s", host, gai_strerror(reason));
    const int on = 1;
    server->listener = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    bool good = server->listener >= 0 &&
                setsockopt(server->listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0 &&
                bind(server->listener, found->ai_addr, found->ai_addrlen) == 0 &&
                listen(server->listener, 1024) == 0;
    freeaddrinfo(found);
    if (!good) return fail_errno(err, "cannot listen on %s port %d", host, *port);
    if (getsockname(server->listener, (struct sockaddr *)&bound, &size) != 0)
        return fail_errno(err, "cannot listen on %s port %d", host, *port);
    *port = ntohs(bound.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&bound)->sin6_port
                                              : ((struct sockaddr_in *)&bound)->sin_port);
    return WALSH_OK;
}

static void on_http_log(void *context, const char *format, va_list args)
    __attribute__((format(printf, 2, 0)));
static void on_http_log(void *context, const char *format, va_list args)
{
    struct server *server = context;
    char line[400];
    vsnprintf(line, sizeof line, format, args);
    line[strcspn(line, "\n")] = 0;
    log_message(&server->log, "info", "http", line);
}

enum walsh_status http_open(struct server *server, struct walsh_error *err)
{
    if (!work_open(&server->work, server->http_threads))
        return fail(err, WALSH_E_MEMORY, "cannot start the threads that prepare requests");
    const unsigned flags = MHD_USE_EPOLL_INTERNAL_THREAD | MHD_USE_ERROR_LOG | MHD_ALLOW_SUSPEND_RESUME |
                           (server->tls_certificate ? MHD_USE_TLS : 0);
    struct MHD_OptionItem more[4];
    size_t count = 0;
    if (server->tls_certificate) {
        more[count++] =
            (struct MHD_OptionItem){MHD_OPTION_HTTPS_MEM_CERT, 0, (void *)(uintptr_t)server->tls_certificate};
        more[count++] =
            (struct MHD_OptionItem){MHD_OPTION_HTTPS_MEM_KEY, 0, (void *)(uintptr_t)server->tls_key};
    }
    if (server->http_threads > 1)
        more[count++] = (struct MHD_OptionItem){MHD_OPTION_THREAD_POOL_SIZE, server->http_threads, NULL};
    more[count] = (struct MHD_OptionItem){MHD_OPTION_END, 0, NULL};
    server->daemon = MHD_start_daemon(
        flags, 0, NULL, NULL, on_request, server, MHD_OPTION_EXTERNAL_LOGGER, on_http_log, server,
        MHD_OPTION_LISTEN_SOCKET, server->listener, MHD_OPTION_NOTIFY_CONNECTION, on_connection, server,
        MHD_OPTION_NOTIFY_COMPLETED, on_completed, server, MHD_OPTION_CONNECTION_LIMIT,
        server->limits.connections, MHD_OPTION_PER_IP_CONNECTION_LIMIT, server->limits.connections_client,
        MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)server->limits.read_seconds + 1,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_MEMORY, MHD_OPTION_STRICT_FOR_CLIENT, 1,
        MHD_OPTION_ARRAY, more, MHD_OPTION_END);
    if (!server->daemon)
        return fail(err, WALSH_E_IO, "cannot start the HTTP server%s",
                    server->tls_certificate ? ": are certificate and key PEM files that belong together?"
                                            : "");
    return WALSH_OK;
}

/* No connection is taken from here on. The listener's number stays open until libmicrohttpd's threads are
 * gone, which may be about to use it. */
void http_quiesce(struct server *server)
{
    if (!server->daemon) return;
    const int fd = MHD_quiesce_daemon(server->daemon);
    if (fd >= 0) shutdown(fd, SHUT_RDWR);
    server->quiesced = fd >= 0;
}

void http_close(struct server *server)
{
    work_close(&server->work); /* no connection is suspended behind this */
    if (server->daemon) MHD_stop_daemon(server->daemon);
    if (server->listener >= 0 && (!server->daemon || server->quiesced)) close(server->listener);
    server->daemon = NULL;
    server->listener = -1;
}
