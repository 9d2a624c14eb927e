/* walsh serve: the model behind HTTP. This file has the options and the order in which things start and stop.
 */
#include <errno.h>
#include <limits.h>
#include <malloc.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "adapters.h"
#include "chat.h"
#include "files.h"
#include "kv.h"
#include "server.h"

#define WATCH_SECONDS 0.1
#define MIB (1024.0 * 1024)

struct serve_settings {
    struct command command;
    const char *host, *alias, *api_key_file, *adapter_directory, *tls_certificate, *tls_key;
    int64_t port, max_batch, prefill, kv_tokens, max_queue, max_queue_client, max_tokens, max_connections,
        max_connections_client, max_body, http_threads;
    double read_timeout, queue_timeout, request_timeout, drain_timeout;
    struct option_texts adapters, hosts, origins;
    struct kv_settings kv;
    struct prefix_settings prefix;
};

#define AT(member) offsetof(struct serve_settings, member)

static const struct option serve_options[] = {
    {.name = "host",
     .argument = "ADDRESS",
     .kind = OPTION_TEXT,
     .fallback = "127.0.0.1",
     .environment = "WALSH_HOST",
     .offset = AT(host),
     .help = "listen on this address"},
    {.name = "port",
     .argument = "N",
     .kind = OPTION_INTEGER,
     .least = 0,
     .most = 65535,
     .fallback = "8080",
     .environment = "WALSH_PORT",
     .offset = AT(port),
     .help = "listen on this port, 0 for a free one, which the log names"},
    {.name = "alias",
     .argument = "NAME",
     .kind = OPTION_TEXT,
     .environment = "WALSH_ALIAS",
     .offset = AT(alias),
     .help = "the model's name in requests; default: the last part of MODEL"},
    {.name = "adapter",
     .aliases = "lora",
     .argument = ADAPTER_ARGUMENT,
     .kind = OPTION_TEXTS,
     .environment = "WALSH_ADAPTER",
     .offset = AT(adapters),
     .help = "serve the model with the LoRA adapter in DIR, its effect times SCALE [1], under NAME; may be "
             "repeated"},
    {.name = "adapter-directory",
     .argument = "DIR",
     .kind = OPTION_TEXT,
     .environment = "WALSH_ADAPTER_DIRECTORY",
     .offset = AT(adapter_directory),
     .help = "requests may load and unload adapters that lie below DIR"},
    {.name = "max-batch",
     .argument = "N",
     .kind = OPTION_INTEGER,
     .least = 1,
     .most = 512,
     .fallback = "32",
     .environment = "WALSH_MAX_BATCH",
     .offset = AT(max_batch),
     .help = "answers that are generated at a time"},
    {.name = "prefill",
     .argument = "N",
     .kind = OPTION_INTEGER,
     .least = 1,
     .most = 512,
     .environment = "WALSH_PREFILL",
     .offset = AT(prefill),
     .help =
         "tokens of prompts that are read beside one step of generation; default: on a CPU 128 where others "
         "generate, else 512"},
    {.name = "kv-tokens",
     .argument = "N",
     .kind = OPTION_INTEGER,
     .least = 256,
     .most = 1e12,
     .environment = "WALSH_KV_TOKENS",
     .offset = AT(kv_tokens),
     .help = "tokens that all caches hold together; default: --max-batch times --context"},
    KV_OPTIONS(AT(kv)),
    PREFIX_OPTIONS(AT(prefix)),
    {.name = "max-queue",
     .argument = "N",
     .kind = OPTION_INTEGER,
     .least = 1,
     .most = 100000,
     .fallback = "256",
     .environment = "WALSH_MAX_QUEUE",
     .offset = AT(max_queue),
     .help = "answers that wait for their turn; more are refused with 429"},
    {.name = "max-queue-client",
     .argument = "N",
     .kind = OPTION_INTEGER,
     .least = 1,
     .most = 100000,
     .environment = "WALSH_MAX_QUEUE_CLIENT",
     .offset = AT(max_queue_client),
     .help = "of one key, or one address where there are no keys; default: as --max-queue"},
    {.name = "max-tokens",
     .argument = "N",
     .kind = OPTION_INTEGER,
     .least = 1,
     .most = INT32_MAX,
     .environment = "WALSH_MAX_TOKENS",
     .offset = AT(max_tokens),
     .help = "tokens of one answer; default: what the context leaves"},
    {.name = "max-body",
     .argument = "N",
     .kind = OPTION_INTEGER,
     .least = 1024,
     .most = 1e9,
     .fallback = "2097152",
     .environment = "WALSH_MAX_BODY",
     .offset = AT(max_body),
     .help = "bytes of one request's body"},
    {.name = "max-connections",
     .argument = "N",
     .kind = OPTION_INTEGER,
     .least = 1,
     .most = 100000,
     .fallback = "512",
     .environment = "WALSH_MAX_CONNECTIONS",
     .offset = AT(max_connections),
     .help = "connections at a time; more wait to be accepted"},
    {.name = "max-connections-client",
     .argument = "N",
     .kind = OPTION_INTEGER,
     .least = 0,
     .most = 100000,
     .fallback = "0",
     .environment = "WALSH_MAX_CONNECTIONS_CLIENT",
     .offset = AT(max_connections_client),
     .help = "of one address, 0 for no limit of its own"},
    {.name = "http-threads",
     .argument = "N",
     .kind = OPTION_INTEGER,
     .least = 1,
     .most = 64,
     .fallback = "2",
     .environment = "WALSH_HTTP_THREADS",
     .offset = AT(http_threads),
     .help = "threads that speak HTTP"},
    {.name = "read-timeout",
     .argument = "S",
     .kind = OPTION_REAL,
     .least = 0.1,
     .most = 86400,
     .fallback = "30",
     .environment = "WALSH_READ_TIMEOUT",
     .offset = AT(read_timeout),
     .help = "seconds that a request may take to arrive, and that a connection may be idle"},
    {.name = "queue-timeout",
     .argument = "S",
     .kind = OPTION_REAL,
     .least = 0,
     .most = 86400,
     .fallback = "300",
     .environment = "WALSH_QUEUE_TIMEOUT",
     .offset = AT(queue_timeout),
     .help = "seconds that a request may wait for its turn, 0 for any number"},
    {.name = "request-timeout",
     .argument = "S",
     .kind = OPTION_REAL,
     .least = 0,
     .most = 1e6,
     .fallback = "0",
     .environment = "WALSH_REQUEST_TIMEOUT",
     .offset = AT(request_timeout),
     .help = "seconds that a request may take in all, 0 for any number"},
    {.name = "drain-timeout",
     .argument = "S",
     .kind = OPTION_REAL,
     .least = 0,
     .most = 86400,
     .fallback = "30",
     .environment = "WALSH_DRAIN_TIMEOUT",
     .offset = AT(drain_timeout),
     .help = "seconds that running requests get to end after SIGTERM"},
    {.name = "api-key-file",
     .argument = "FILE",
     .kind = OPTION_TEXT,
     .environment = "WALSH_API_KEY_FILE",
     .offset = AT(api_key_file),
     .help = "requests need one of the keys in FILE, one per line"},
    {.name = "allow-host",
     .argument = "NAME",
     .kind = OPTION_TEXTS,
     .environment = "WALSH_ALLOW_HOST",
     .offset = AT(hosts),
     .help = "a name that clients may know this server by, besides localhost and numbers; may be repeated"},
    {.name = "allow-origin",
     .argument = "ORIGIN",
     .kind = OPTION_TEXTS,
     .environment = "WALSH_ALLOW_ORIGIN",
     .offset = AT(origins),
     .help = "pages of this origin (https://example.org) may ask; may be repeated"},
    {.name = "tls-cert",
     .argument = "FILE",
     .kind = OPTION_TEXT,
     .environment = "WALSH_TLS_CERT",
     .offset = AT(tls_certificate),
     .help = "speak TLS with this certificate (PEM)"},
    {.name = "tls-key",
     .argument = "FILE",
     .kind = OPTION_TEXT,
     .environment = "WALSH_TLS_KEY",
     .offset = AT(tls_key),
     .help = "the certificate's key (PEM)"},
    {0},
};

/* ---------------------------------------------------------------------------------------- start */

static void on_library_log(void *user, enum walsh_log_level level, const char *line)
{
    if (level == WALSH_LOG_DEBUG) return;
    log_message(user, level == WALSH_LOG_WARNING ? "warning" : "info", "library", line);
}

/* No abort hook: what runs when a signal comes is finished or given up in order. */
static enum walsh_status open_context(struct server *server, const struct command *command,
                                      struct walsh_error *err)
{
    struct walsh_context_options options = WALSH_CONTEXT_OPTIONS;
    options.threads = command->threads == OPTION_UNSET ? 0 : (unsigned)command->threads;
    options.cpu = command->cpu;
    options.device = command->device;
    options.hooks = (struct walsh_hooks){.user = &server->log, .log = on_library_log};
    return walsh_context_open(&options, &server->context, err);
}

/* "models/bookworm-8m/" is "bookworm-8m". */
static void name_of_model(const char *path, char *name, size_t size)
{
    size_t end = strlen(path);
    while (end > 1 && path[end - 1] == '/') end--;
    size_t begin = end;
    while (begin > 0 && path[begin - 1] != '/') begin--;
    snprintf(name, size, "%.*s", (int)(end - begin), path + begin);
}

static enum walsh_status open_models(struct server *server, struct serve_settings *s, struct walsh_error *err)
{
    struct adapter_list list;
    char name[256];
    name_of_model(s->command.arguments[0], name, sizeof name);
    TRY(models_open(&server->models, server->model, s->alias ? s->alias : name, err));
    TRY(adapters_open(&s->command, server->model, &s->adapters, 0, &list, err));
    enum walsh_status status = WALSH_OK;
    for (size_t i = 0; i < list.count; i++) {
        struct walsh_adapter_info info = {.struct_size = sizeof info};
        walsh_adapter_get_info(list.adapters[i], &info);
        if (status == WALSH_OK)
            status = models_add(&server->models, info.name, s->adapters.values[i], list.adapters[i],
                                list.uses[i].scale, true, err);
        if (status == WALSH_OK) list.adapters[i] = NULL; /* the list of models has it now */
    }
    adapters_close(&list);
    return status;
}

static enum walsh_status open_engine(struct server *server, struct serve_settings *s, struct walsh_error *err)
{
    struct engine_options options = {.model = server->model,
                                     .batch = WALSH_BATCH_OPTIONS,
                                     .vocab = server->info.vocab,
                                     .max_waiting = (size_t)s->max_queue,
                                     .metrics = &server->metrics,
                                     .log = &server->log};
    options.max_waiting_tenant =
        s->max_queue_client == OPTION_UNSET ? options.max_waiting : (size_t)s->max_queue_client;
    options.batch.max_rows = (uint32_t)s->max_batch;
    options.batch.max_queued = (uint32_t)s->max_batch;
    options.batch.prefill_tokens = s->prefill == OPTION_UNSET ? 0 : (uint32_t)s->prefill;
    options.batch.kv_tokens = s->kv_tokens == OPTION_UNSET ? 0 : (uint64_t)s->kv_tokens;
    const uint32_t most = server->info.max_positions < 4096 ? server->info.max_positions : 4096;
    server->context_tokens = s->command.context == OPTION_UNSET ? most : (uint32_t)s->command.context;
    options.batch.context = server->context_tokens;
    options.batch.prefix_store = server->store;
    TRY(kv_options(&s->kv, &options.batch.kv, err));
    return engine_open(&options, &server->engine, err);
}

static enum walsh_status read_tls(struct server *server, const struct serve_settings *s,
                                  struct walsh_error *err)
{
    struct text certificate = {0}, key = {0};
    if (!s->tls_certificate) return WALSH_OK;
    enum walsh_status status = file_read(s->tls_certificate, &certificate, err);
    if (status == WALSH_OK) status = file_read(s->tls_key, &key, err);
    server->tls_certificate = certificate.data;
    server->tls_key = key.data;
    if (status == WALSH_OK && (!certificate.data || !key.data))
        status = fail(err, WALSH_E_FORMAT, "%s: the file is empty",
                      certificate.data ? s->tls_key : s->tls_certificate);
    return status;
}

static enum walsh_status read_keys(struct server *server, const struct serve_settings *s,
                                   struct walsh_error *err)
{
    bool shared = false;
    if (!s->api_key_file) return WALSH_OK;
    TRY(keys_read(&server->keys, s->api_key_file, &shared, err));
    if (shared)
        log_message(&server->log, "warning", "keys", "every user of this machine can read the file of keys");
    return WALSH_OK;
}

static void set_limits(struct server *server, const struct serve_settings *s)
{
    server->limits = (struct server_limits){
        .body_bytes = (size_t)s->max_body,
        .all_body_bytes = (size_t)s->max_body + (size_t)(256 * MIB),
        .stall_bytes = (size_t)(4 * MIB),
        .connections = (unsigned)s->max_connections,
        .connections_client = (unsigned)s->max_connections_client,
        .read_seconds = s->read_timeout,
        .queue_seconds = s->queue_timeout,
        .request_seconds = s->request_timeout,
        .max_tokens = s->max_tokens == OPTION_UNSET ? 0 : (uint32_t)s->max_tokens,
    };
    server->host = s->host;
    server->hosts = &s->hosts;
    server->origins = &s->origins;
    server->http_threads = (unsigned)s->http_threads;
}

static enum walsh_status open_server(struct server *server, struct serve_settings *s, int *port,
                                     struct walsh_error *err)
{
    set_limits(server, s);
    TRY(read_keys(server, s, err));
    TRY(read_tls(server, s, err));
    TRY(http_bind(server, s->host, port, err)); /* before the model is read: a taken port is known at once */
    TRY(open_context(server, &s->command, err));
    TRY(command_open_model(&s->command, server->context, s->command.arguments[0], &server->model, err));
    server->info.struct_size = sizeof server->info;
    walsh_model_get_info(server->model, &server->info);
    server->reasoning = chat_reasoning(server->model);
    TRY(prefix_store_open(&s->prefix, server->context, &server->store, err));
    TRY(open_models(server, s, err));
    TRY(open_engine(server, s, err));
    server->prompt_bytes = longest_prompt(server->model, server->info.vocab, server->context_tokens);
    return http_open(server, err);
}

static void close_server(struct server *server)
{
    http_close(server);
    engine_close(&server->engine);
    models_close(&server->models);
    walsh_prefix_store_close(&server->store);
    walsh_model_close(&server->model);
    walsh_context_close(&server->context);
    keys_free(&server->keys);
    free((void *)(uintptr_t)server->tls_certificate);
    if (server->tls_key) explicit_bzero((void *)(uintptr_t)server->tls_key, strlen(server->tls_key));
    free((void *)(uintptr_t)server->tls_key);
    metrics_close(&server->metrics);
    log_close(&server->log);
    pthread_mutex_destroy(&server->lock);
}

/* ---------------------------------------------------------------------------------------- run */

/* Tell systemd (Type=notify); nothing where it does not ask. */
static void notify(const char *state)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (!path || !*path || strlen(path) >= sizeof address.sun_path) return;
    const int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return;
    memcpy(address.sun_path, path, strlen(path));
    if (address.sun_path[0] == '@') address.sun_path[0] = 0;
    const socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path));
    sendto(fd, state, strlen(state), MSG_NOSIGNAL, (struct sockaddr *)&address, size);
    close(fd);
}

static void pause_watching(struct server *server)
{
    const struct timespec wait = {.tv_nsec = (long)(WATCH_SECONDS * 1e9)};
    nanosleep(&wait, NULL); /* a signal ends it early */
    http_watch(server);
}

static void log_listening(struct server *server, const struct serve_settings *s, int port)
{
    json_t *line = json_object();
    json_put_text(line, "host", s->host);
    json_put_integer(line, "port", (unsigned long long)port);
    json_put_text(line, "model", server->models.entries[0]->name);
    json_put_integer(line, "context", server->context_tokens);
    json_put_integer(line, "max_batch", (unsigned long long)s->max_batch);
    json_object_set_new(line, "tls", json_boolean(server->tls_certificate));
    json_object_set_new(line, "keys", json_integer((json_int_t)server->keys.count));
    log_write(&server->log, "info", "listening", line);
}

/* New connections are refused, what was accepted goes on for a while; what is left then is given up. */
static void drain(struct server *server, double seconds)
{
    struct refusal refusal;
    atomic_store(&server->ready, false);
    notify("STOPPING=1");
    log_message(&server->log, "info", "draining", "no more requests are taken");
    engine_drain(server->engine);
    http_quiesce(server);
    const double end = seconds_now() + seconds;
    while ((engine_jobs(server->engine) || work_pending(&server->work)) && seconds_now() < end)
        pause_watching(server);
    refuse(&refusal, 503, "shutting_down", NULL, "the server is shutting down");
    engine_abandon(server->engine, &refusal);
    while (engine_jobs(server->engine)) pause_watching(server);
    pause_watching(server); /* the last answers leave */
}

static enum walsh_status check_settings(const struct serve_settings *s, struct walsh_error *err)
{
    TRY(prefix_check(&s->prefix, err));
    if (!s->tls_certificate != !s->tls_key)
        return fail(err, WALSH_E_ARGUMENT, "--tls-cert and --tls-key belong together");
    return WALSH_OK;
}

/* A request takes pages of cache of a megabyte and gives them back at its end. By default the next one gets
 * them from the kernel again, one fault and 4 KiB of zeros at a time, on the one thread that all rows wait
 * for: keep what was freed. The most is what all rows together ever had. */
static void keep_freed_memory(void)
{
#ifdef M_TRIM_THRESHOLD /* other C libraries have no such thresholds */
    mallopt(M_MMAP_THRESHOLD, 32 << 20);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
#endif
}

static enum walsh_status run_serve(struct command *command, struct walsh_error *err)
{
    struct serve_settings *s = (struct serve_settings *)command;
    struct server server = {.listener = -1};
    char directory[PATH_MAX];
    int port = (int)s->port;
    TRY(check_settings(s, err));
    if (s->adapter_directory && !realpath(s->adapter_directory, directory))
        return fail_errno(err, "--adapter-directory %s", s->adapter_directory);
    server.adapter_directory = s->adapter_directory ? directory : NULL;
    signal(SIGPIPE, SIG_IGN);
    keep_freed_memory();
    log_open(&server.log, command->quiet);
    metrics_open(&server.metrics);
    pthread_mutex_init(&server.lock, NULL);
    const enum walsh_status status = open_server(&server, s, &port, err);
    if (status == WALSH_OK) {
        atomic_store(&server.ready, true);
        log_listening(&server, s, port);
        notify("READY=1");
        while (!interrupted()) pause_watching(&server);
        drain(&server, s->drain_timeout);
        log_message(&server.log, "info", "stopped", "");
    }
    close_server(&server);
    return status;
}

const struct verb verb_serve = {
    .name = "serve",
    .usage = "MODEL",
    .summary = "answer requests over HTTP, as the OpenAI API has them, with a chat page",
    .details =
        "POST /v1/completions and /v1/chat/completions, GET /v1/models, /metrics, /health and /ready, POST "
        "/tokenize and /detokenize; the page is at /. docs/serve.md has the fields, the limits, and what is "
        "safe.\n\n"
        "The log is one JSON object per line on standard error. SIGTERM and Ctrl-C end it when the running "
        "requests have ended, a second one at once.",
    .positionals = {"MODEL"},
    .least_arguments = 1,
    .options = serve_options,
    .uses = USES_MODEL | USES_CONTEXT,
    .settings_size = sizeof(struct serve_settings),
    .run = run_serve,
};
