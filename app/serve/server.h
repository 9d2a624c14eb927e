/* serve/server: what the parts of the server share: the open model, the engine, the limits; and the HTTP
 * side. */
#ifndef WALSH_SERVE_SERVER_H
#define WALSH_SERVE_SERVER_H

#include <microhttpd.h>

#include "engine.h"
#include "keys.h"
#include "prefix.h"

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
    uint32_t context_tokens; /* of a request */
    enum reasoning_style reasoning;
    const char *adapter_directory; /* real path; NULL: adapters are not loaded by requests */
    const char *host;              /* as the user gave it */
    const struct option_texts *hosts, *origins;
    const char *tls_certificate, *tls_key; /* PEM; NULL: plain HTTP */
    unsigned http_threads;
    int listener;
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
void http_close(struct server *server); /* after every job has ended */
/* To be called a few times a second: finds clients that have left or take too long. */
void http_watch(struct server *server);

/* ---------------------------------------------------------------------------------------- exchanges */

/* One request and its answer. */
struct exchange {
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
    struct job *job;
    int status; /* answered */
};

struct route {
    const char *method,
        *path;         /* a path that ends with a slash and is longer than one stands for all that go on */
    unsigned endpoint; /* FOR_... of its body; 0: it has none */
    bool open;         /* needs no key */
    bool generates;    /* the body becomes a job */
    enum MHD_Result (*answer)(struct exchange *x);
};
extern const struct route routes[]; /* ends with a NULL method */

/* Answers. The text becomes the response's; the response's reference is ended. */
enum MHD_Result answer_response(struct exchange *x, int status, const char *type,
                                struct MHD_Response *response);
enum MHD_Result answer_text(struct exchange *x, int status, const char *type, struct text *text);
enum MHD_Result answer_json(struct exchange *x, int status, json_t *json);
enum MHD_Result answer_refusal(struct exchange *x);
/* Hand a job to the engine and answer when it has something: the exchange's reference becomes the exchange's.
 */
enum MHD_Result answer_job(struct exchange *x);

/* Build the job of a completion or chat; NULL: x->refusal says why. */
struct job *generation_open(struct exchange *x);

#endif
