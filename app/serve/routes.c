/* Every endpoint but those that generate. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "chat.h"
#include "page.h"
#include "server.h"

static enum MHD_Result plain(struct exchange *x, int status, const char *words)
{
    struct text text = {0};
    if (!text_append(&text, words, strlen(words))) return MHD_NO;
    return answer_text(x, status, "text/plain; charset=utf-8", &text);
}

static enum MHD_Result answer_health(struct exchange *x)
{
    return plain(x, 200, "ok\n");
}

static enum MHD_Result answer_ready(struct exchange *x)
{
    return atomic_load(&x->server->ready) ? plain(x, 200, "ready\n") : plain(x, 503, "not ready\n");
}

static enum MHD_Result answer_page(struct exchange *x)
{
    struct MHD_Response *response =
        MHD_create_response_from_buffer(page_size, (void *)(uintptr_t)page_html, MHD_RESPMEM_PERSISTENT);
    if (!response) return MHD_NO;
    MHD_add_response_header(
        response, "Content-Security-Policy",
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src "
        "'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'");
    MHD_add_response_header(response, "Referrer-Policy", "no-referrer");
    return answer_response(x, 200, "text/html; charset=utf-8", response);
}

static enum MHD_Result answer_metrics(struct exchange *x)
{
    struct engine_snapshot snapshot;
    struct text text = {0};
    engine_snapshot(x->server->engine, &snapshot);
    pthread_mutex_lock(&x->server->lock);
    const size_t connections = x->server->client_count;
    pthread_mutex_unlock(&x->server->lock);
    if (!metrics_write(&x->server->metrics, &snapshot, connections, &text)) {
        text_free(&text);
        return MHD_NO;
    }
    return answer_text(x, 200, "text/plain; version=0.0.4; charset=utf-8", &text);
}

static enum MHD_Result answer_models(struct exchange *x)
{
    return answer_json(x, 200, models_json(&x->server->models, x->server->context_tokens));
}

static enum MHD_Result answer_model(struct exchange *x)
{
    json_t *model = model_json(&x->server->models, x->name, x->server->context_tokens);
    if (model) return answer_json(x, 200, model);
    refuse(&x->refusal, 404, "model_not_found", "model", "there is no model \"%.100s\"; see /v1/models",
           x->name);
    return answer_refusal(x);
}

/* The body of the route's endpoint; false: x->refusal. */
static bool parse_body(struct exchange *x, struct request *request)
{
    if (!request_parse(x->body.data ? x->body.data : "", x->body.size, x->route->endpoint,
                       x->server->info.vocab, request, &x->refusal))
        return false;
    return !request->model || models_has(&x->server->models, request->model) ||
           refuse(&x->refusal, 404, "model_not_found", "model",
                  "there is no model \"%.100s\"; see /v1/models", request->model);
}

static bool encode(struct exchange *x, const struct request *r, int32_t **ids, size_t *count)
{
    struct walsh_error err = {0};
    if (!r->prompt_text == !r->messages)
        return refuse(&x->refusal, 400, "missing_required_parameter", "prompt",
                      "'prompt' or 'messages' is needed");
    if (r->messages) return chat_tokens(x, r, ids, count, NULL, NULL);
    if (walsh_model_encode(x->server->model, r->prompt_text, strlen(r->prompt_text),
                           r->add_special ? WALSH_TEXT_SPECIAL : 0, ids, count, &err) != WALSH_OK)
        return refuse(&x->refusal, 400, "invalid_prompt", "prompt", "%s", err.message);
    return true;
}

static void put_tokens(struct exchange *x, const struct request *r, const int32_t *ids, size_t count,
                       json_t *answer)
{
    json_t *tokens = json_array(), *strings = json_array();
    for (size_t i = 0; i < count; i++) {
        json_array_append_new(tokens, json_integer(ids[i]));
        char *text;
        size_t length;
        if (!r->return_strings ||
            walsh_model_decode(x->server->model, ids + i, 1, false, &text, &length, NULL) != WALSH_OK)
            continue;
        json_array_append_new(strings, json_stringn(text, length));
        walsh_memory_free(text);
    }
    json_put_integer(answer, "count", count);
    json_put_integer(answer, "max_model_len", x->server->context_tokens);
    json_object_set_new(answer, "tokens", tokens);
    json_object_set_new(answer, "token_strs", r->return_strings ? strings : json_null());
    if (!r->return_strings) json_decref(strings);
}

static bool prepare_tokenize(struct exchange *x)
{
    struct request r;
    json_t *answer = json_object();
    int32_t *ids = NULL;
    size_t count = 0;
    const bool good = parse_body(x, &r) && encode(x, &r, &ids, &count);
    if (good) put_tokens(x, &r, ids, count, answer);
    walsh_memory_free(ids);
    request_free(&r);
    if (good) return reply_json(x, answer);
    json_decref(answer);
    return false;
}

static bool put_text(struct exchange *x, const struct request *r, json_t *answer)
{
    const size_t count = json_array_size(r->tokens);
    if (!json_is_array(r->tokens))
        return refuse(&x->refusal, 400, "invalid_type", "tokens", "'tokens' must be an array of token ids");
    int32_t *ids = calloc(count + 1, sizeof *ids);
    if (!ids) return refuse_memory(&x->refusal);
    struct walsh_error err = {0};
    char *text = NULL;
    size_t size = 0;
    bool good = true;
    for (size_t i = 0; i < count && good; i++) {
        const json_t *id = json_array_get(r->tokens, i);
        const json_int_t n = json_is_integer(id) ? json_integer_value(id) : -1;
        ids[i] = (int32_t)n;
        if (n < 0 || n >= (json_int_t)x->server->info.vocab)
            good =
                refuse(&x->refusal, 400, "invalid_value", "tokens",
                       "'tokens': entry %zu is no token id, expected 0 to %u", i, x->server->info.vocab - 1);
    }
    if (good && walsh_model_decode(x->server->model, ids, count, false, &text, &size, &err) != WALSH_OK)
        good = refuse(&x->refusal, 400, "invalid_value", "tokens", "%s", err.message);
    if (good) json_object_set_new(answer, "prompt", json_stringn(text, size));
    walsh_memory_free(text);
    free(ids);
    return good;
}

static bool prepare_detokenize(struct exchange *x)
{
    struct request r;
    json_t *answer = json_object();
    const bool good = parse_body(x, &r) && put_text(x, &r, answer);
    request_free(&r);
    if (good) return reply_json(x, answer);
    json_decref(answer);
    return false;
}

/* ---------------------------------------------------------------------------------------- adapters */

/* Does the real path of `joined` lie below the adapter directory? */
static bool lies_below(const char *root, const char *joined, char path[PATH_MAX])
{
    const size_t length = strlen(root);
    return realpath(joined, path) && strncmp(path, root, length) == 0 &&
           (path[length] == '/' || root[length - 1] == '/');
}

/* The files of an adapter that are there lie below the directory too, wherever links lead. */
static bool files_lie_below(const char *root, const char *path)
{
    static const char *const names[] = {"adapter_config.json", "adapter_model.safetensors"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char joined[PATH_MAX], real[PATH_MAX];
        struct stat is;
        const int n = snprintf(joined, sizeof joined, "%s/%s", path, names[i]);
        if (n < 0 || (size_t)n >= sizeof joined) return false;
        if (lstat(joined, &is) == 0 && !lies_below(root, joined, real)) return false;
    }
    return true;
}

/* The real path of what a request names, where it lies below the adapter directory. */
static bool find_adapter(struct exchange *x, const char *named, char path[PATH_MAX])
{
    const char *root = x->server->adapter_directory;
    char joined[PATH_MAX];
    const int n =
        snprintf(joined, sizeof joined, "%s%s%s", *named == '/' ? "" : root, *named == '/' ? "" : "/", named);
    if (n > 0 && (size_t)n < sizeof joined && lies_below(root, joined, path) && files_lie_below(root, path))
        return true;
    /* one answer for what is missing and for what is elsewhere: it says nothing about other directories */
    return refuse(&x->refusal, 404, "adapter_not_found", "lora_path",
                  "there is no adapter \"%.200s\" below the adapter directory", named);
}

static bool load_adapter(struct exchange *x, const struct request *r)
{
    struct server *server = x->server;
    struct walsh_adapter_options options = WALSH_ADAPTER_OPTIONS;
    struct walsh_adapter *adapter = NULL;
    struct walsh_error err = {0};
    char path[PATH_MAX];
    if (!r->lora_name || !r->lora_path)
        return refuse(&x->refusal, 400, "missing_required_parameter",
                      r->lora_name ? "lora_path" : "lora_name", "'lora_name' and 'lora_path' are needed");
    if (models_has(&server->models, r->lora_name))
        return refuse(&x->refusal, 400, "model_exists", "lora_name",
                      "there is a model named \"%.100s\" already", r->lora_name);
    for (const char *c = r->lora_name; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7f || strchr("<>\"&", *c))
            return refuse(&x->refusal, 400, "invalid_value", "lora_name",
                          "'lora_name' has a control character or one of < > \" &");
    if (!find_adapter(x, r->lora_path, path)) return false;
    options.name = r->lora_name;
    enum walsh_status status = walsh_adapter_open(server->model, path, &options, &adapter, &err);
    if (status == WALSH_OK) {
        status = models_add(&server->models, r->lora_name, path, adapter, 1, false, &err);
        if (status != WALSH_OK) walsh_adapter_close(&adapter);
    }
    if (status != WALSH_OK)
        return refuse(&x->refusal, 400, "adapter_refused", "lora_path", "%s", err.message);
    return true;
}

static bool prepare_load(struct exchange *x)
{
    struct request r;
    char words[200] = "";
    bool good = parse_body(x, &r);
    if (good && !x->server->adapter_directory)
        good = refuse(&x->refusal, 403, "not_enabled", NULL,
                      "adapters can be loaded only with --adapter-directory");
    if (good) good = load_adapter(x, &r);
    if (good) snprintf(words, sizeof words, "Success: LoRA adapter '%s' added successfully.", r.lora_name);
    request_free(&r);
    return good && reply_words(x, words);
}

static bool prepare_unload(struct exchange *x)
{
    struct request r;
    char words[200] = "";
    bool good = parse_body(x, &r);
    if (good && !x->server->adapter_directory)
        good = refuse(&x->refusal, 403, "not_enabled", NULL,
                      "adapters can be unloaded only with --adapter-directory");
    if (good && !r.lora_name)
        good = refuse(&x->refusal, 400, "missing_required_parameter", "lora_name", "'lora_name' is missing");
    const enum walsh_status status = good ? models_remove(&x->server->models, r.lora_name) : WALSH_OK;
    if (status == WALSH_E_NOT_FOUND)
        good = refuse(&x->refusal, 404, "model_not_found", "lora_name", "there is no adapter \"%.100s\"",
                      r.lora_name);
    else if (status != WALSH_OK)
        good = refuse(&x->refusal, 403, "adapter_is_fixed", "lora_name",
                      "the adapter \"%.100s\" was given at the server's start and stays", r.lora_name);
    if (good) snprintf(words, sizeof words, "Success: LoRA adapter '%s' removed successfully.", r.lora_name);
    request_free(&r);
    return good && reply_words(x, words);
}

const struct route routes[] = {
    {"GET", "/", 0, true, NULL, answer_page},
    {"GET", "/health", 0, true, NULL, answer_health},
    {"GET", "/ready", 0, true, NULL, answer_ready},
    {"GET", "/metrics", 0, false, NULL, answer_metrics},
    {"GET", "/v1/models", 0, false, NULL, answer_models},
    {"GET", "/v1/models/", 0, false, NULL, answer_model},
    {"POST", "/v1/completions", FOR_COMPLETION, false, generation_prepare, NULL},
    {"POST", "/v1/chat/completions", FOR_CHAT, false, generation_prepare, NULL},
    {"POST", "/tokenize", FOR_TOKENIZE, false, prepare_tokenize, NULL},
    {"POST", "/detokenize", FOR_DETOKENIZE, false, prepare_detokenize, NULL},
    {"POST", "/v1/load_lora_adapter", FOR_LOAD, false, prepare_load, NULL},
    {"POST", "/v1/unload_lora_adapter", FOR_UNLOAD, false, prepare_unload, NULL},
    {NULL, NULL, 0, false, NULL, NULL},
};
