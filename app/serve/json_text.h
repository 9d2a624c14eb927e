/* serve/json_text: JSON written straight into a text, for the pieces of a stream: one per token, so that no
 * tree of objects is built for each. What is written once per request is built with jansson. */
#ifndef WALSH_SERVE_JSON_TEXT_H
#define WALSH_SERVE_JSON_TEXT_H

#include "output.h"

/* Each returns false where memory is out; the text is then cut, and not JSON. */
bool json_write(struct text *out, const char *literal);                  /* as it is */
bool json_write_string(struct text *out, const char *data, size_t size); /* quoted; data is valid UTF-8 */
bool json_write_integer(struct text *out, long long value);
bool json_write_real(struct text *out, double value); /* null where JSON has no number for it */

/* Write the tree and drop it; false: out of memory. */
bool json_write_tree(struct text *out, json_t *tree);

#endif
