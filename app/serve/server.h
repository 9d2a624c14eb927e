/* serve/server: what the parts of the server share: the open model, the engine, the limits; and the HTTP
 * side. */
#ifndef WALSH_SERVE_SERVER_H
#define WALSH_SERVE_SERVER_H

#include <microhttpd.h>

#include "engine.h"
#include "keys.h"
#include "prefix.h"
#include "work.h"

struct server_limits {
    size_t body_bytes;     /* of one request */
    size_t all_body_bytes; /* of all that are being read */
    size_t stall_bytes;    /* of a stream that its client has not taken */
    unsigned connections, connections_client;
    double read_seconds;                   /* for a whole request to arrive, and for an idle connection */
    double queue_seconds, request_seconds; /* 0: none */
    uint32_t max_tokens;                   /* of an answer; 0: what the context leaves */
};

struct client;

struct server {
    struct walsh_context *context;
    struct walsh_model *model;
    struct walsh_model_info info;
    struct walsh_prefix_store *store;
    struct models models;
    struct engine *engine;
    struct metrics metrics;
    struct log log;
    struct keys keys;
    struct server_limits limits;
    struct work work;        /* what requests need before they are answered */
    uint32_t context_tokens; /* of a request */
    size_t prompt_bytes;     /* of a prompt that could fit into the context */
    enum reasoning_style reasoning;
    const char *adapter_directory; /* real path; NULL: adapters are not loaded by requests */
    const char *host;              /* as the user gave it */
    const struct option_texts *hosts, *origins;
    const char *tls_certificate, *tls_key; /* PEM; NULL: plain HTTP */
    unsigned http_threads;
    int listener;
    bool quiesced; /* the listener takes no connections any more, and is closed at the end */
    struct MHD_Daemon *daemon;
    atomic_size_t body_bytes; /* in memory now */
    atomic_bool ready;
    /* open connections */
    pthread_mutex_t lock;
    struct client *clients;
    size_t client_count;
};

/* Bind and listen; *port: 0 takes a free one and says which. */
enum walsh_status http_bind(struct server *server, const char *host, int *port, struct walsh_error *err);
enum walsh_status http_open(struct server *server, struct walsh_error *err);
/* Stop listening; connections go on. */
void http_quiesce(struct server *server);
void http_close(struct server *server); /* after every job has ended; the engine is still there */
/* To be called a few times a second: finds clients that have left or take too long. */
void http_watch(struct server *server);

/* ---------------------------------------------------------------------------------------- exchanges */

enum exchange_phase { EXCHANGE_READS, EXCHANGE_PREPARES, EXCHANGE_PREPARED, EXCHANGE_AWAITS };

/* One request and its answer. */
struct exchange {
    struct work_item work; /* the first member */
    enum exchange_phase phase;
    struct server *server;
    struct MHD_Connection *connection;
    struct client *client;
    const struct route *route; /* NULL: none matches */
    const char *name;          /* what the path has behind the route's, where that ends with a slash */
    char id[40], origin[256];  /* origin: to be named in the answer; "" none */
    double started;
    uint64_t tenant;
    const char *key; /* whose request it is; NULL: there are no keys */
    struct text body;
    size_t seen;            /* bytes of body, those dropped too */
    struct refusal refusal; /* status 0: none */
    unsigned retry;         /* seconds, with a 429 */
    const char *allow;      /* with a 405 */
    bool at_once;           /* the refusal does not wait for the body */
    bool left;              /* the client had gone before its request was looked at */
    struct text reply;      /* prepared, of reply_type */
    const char *reply_type;
    struct job *job;
    int status; /* answered */
};

struct route {
    const char *method,
        *path;         /* a path that ends with a slash and is longer than one stands for all that go on */
    unsigned endpoint; /* FOR_... of its body; 0: it has none */
    bool open;         /* needs no key */
    /* Of an endpoint with a body, on a worker's thread: the body becomes x->job or x->reply; false:
     * x->refusal. */
    bool (*prepare)(struct exchange *x);
    enum MHD_Result (*answer)(struct exchange *x); /* of one without */
};
extern const struct route routes[]; /* ends with a NULL method */

/* Answers. The text becomes the response's; the response's reference is ended. */
enum MHD_Result answer_response(struct exchange *x, int status, const char *type,
                                struct MHD_Response *response);
enum MHD_Result answer_text(struct exchange *x, int status, const char *type, struct text *text);
enum MHD_Result answer_json(struct exchange *x, int status, json_t *json);
enum MHD_Result answer_refusal(struct exchange *x);
/* Keep an answer of 200 for the HTTP side, on a worker's thread; the reference to the tree is ended. false:
 * out of memory, and x->refusal says so. */
bool reply_json(struct exchange *x, json_t *json);
bool reply_words(struct exchange *x, const char *words);

/* Bytes of a prompt that could be [context] tokens, each as long as the longest of the vocabulary. */
size_t longest_prompt(const struct walsh_model *model, uint32_t vocab, uint32_t context);
/* Refuse more of them before anything is encoded. */
bool check_prompt_bytes(struct exchange *x, size_t size, const char *param);
/* Build x->job of a completion or chat; false: x->refusal says why. */
bool generation_prepare(struct exchange *x);

#endif
