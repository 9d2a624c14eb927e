/* serve/guard: who may ask. Each returns false with x->refusal filled in. */
#ifndef WALSH_SERVE_GUARD_H
#define WALSH_SERVE_GUARD_H

#include "server.h"

/* The Host header: against names that are made to point to this machine (DNS rebinding). A number is always
 * this machine's own; a name must be localhost, --host or an --allow-host. */
bool guard_host(struct exchange *x);
/* No header that is a length or a coding of the body to whoever stands before this server, and none to us. */
bool guard_headers(struct exchange *x);
/* One length of the body and one way to tell it: whoever stands before this server may look at another one, and
 * take the body's end for the next request (RFC 9112, 6.3). */
bool guard_length(struct exchange *x);
/* The Origin header of browsers: the page of this server, or an --allow-origin, which x->origin then repeats.
 */
bool guard_origin(struct exchange *x);
/* The key, where there are keys: x->key and x->tenant. */
bool guard_key(struct exchange *x);
/* The body is announced as JSON: a page of another origin cannot announce that without asking first. */
bool guard_json(struct exchange *x);

#endif
