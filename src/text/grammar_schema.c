/* A JSON schema to the nodes of a grammar. What is not known is refused by name and place: a keyword that is
 * passed over would make answers that are not valid under the schema. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "text/grammar_internal.h"
#include "text/json_read.h"

struct compiler {
    struct walsh_grammar *g;
    const json_t *schema; /* the whole: references start here */
    struct {
        const json_t *schema; /* compiled already, or being compiled */
        uint32_t node;
    } * known;
    size_t known_count;
    char place[400]; /* "$.properties.a" */
    struct walsh_error *err;
};

static enum walsh_status compile(struct compiler *c, const json_t *schema, unsigned depth, uint32_t *out);

/* Keywords that say nothing about the text of an answer. */
static const char *const annotations[] = {"title",    "description", "default", "examples",    "$schema",
                                          "$id",      "$comment",    "$defs",   "definitions", "deprecated",
                                          "readOnly", "writeOnly",   "$anchor", "format",      NULL};

static bool listed(const char *name, const char *const *list)
{
    for (; *list; list++)
        if (strcmp(name, *list) == 0) return true;
    return false;
}

static enum walsh_status wrong(const struct compiler *c, const char *what, const json_t *found,
                               const char *expected)
{
    return walsh_fail(c->err, WALSH_E_ARGUMENT, "schema: %s.%s: found %s, expected %s", c->place, what,
                      walsh_json_type_name(found), expected);
}

static enum walsh_status new_node(struct compiler *c, enum walsh_grammar_kind kind, uint32_t *out)
{
    struct walsh_grammar *g = c->g;
    if (g->count == WALSH_GRAMMAR_NODES)
        return walsh_fail(c->err, WALSH_E_CAPACITY, "schema: more than %d parts", WALSH_GRAMMAR_NODES);
    if (g->count == g->capacity) {
        struct walsh_grammar_node *more;
        const uint32_t capacity = g->capacity ? 2 * g->capacity : 32;
        WALSH_TRY(walsh_arena_alloc(&g->arena, capacity, sizeof *more, "a grammar", &more, c->err));
        if (g->count) memcpy(more, g->nodes, g->count * sizeof *more);
        g->nodes = more;
        g->capacity = capacity;
    }
    g->nodes[g->count] = (struct walsh_grammar_node){
        .kind = kind, .most = WALSH_GRAMMAR_ENDLESS, .additional = WALSH_GRAMMAR_ENDLESS};
    *out = g->count++;
    return WALSH_OK;
}

static enum walsh_status make_room(struct compiler *c, uint32_t node, size_t count, bool texts, bool children)
{
    struct walsh_grammar_node *n = &c->g->nodes[node];
    struct walsh_arena *arena = &c->g->arena;
    n->count = (uint32_t)count;
    if (texts) WALSH_TRY(walsh_arena_alloc(arena, count, sizeof *n->texts, "a grammar", &n->texts, c->err));
    if (!children) return WALSH_OK;
    return walsh_arena_alloc(arena, count, sizeof *n->children, "a grammar", &n->children, c->err);
}

static enum walsh_status copy_text(struct compiler *c, const char *text, size_t size,
                                   struct walsh_grammar_text *out)
{
    char *copy;
    if (size > UINT16_MAX)
        return walsh_fail(c->err, WALSH_E_CAPACITY,
                          "schema: %s: a text of %zu bytes, at most %d are supported", c->place, size,
                          UINT16_MAX);
    WALSH_TRY(walsh_arena_alloc(&c->g->arena, size + 1, 1, "a grammar", &copy, c->err));
    memcpy(copy, text, size);
    *out = (struct walsh_grammar_text){copy, (uint32_t)size};
    return WALSH_OK;
}

static int order_texts(const void *a, const void *b)
{
    const struct walsh_grammar_text *x = a, *y = b;
    const int order = memcmp(x->data, y->data, walsh_min(x->size, y->size));
    return order ? order : (x->size > y->size) - (x->size < y->size);
}

/* ---- what is always there ---- */

static enum walsh_status add_words(struct compiler *c, uint32_t node, const char *const *words, size_t count)
{
    WALSH_TRY(make_room(c, node, count, true, false));
    for (size_t i = 0; i < count; i++)
        WALSH_TRY(copy_text(c, words[i], strlen(words[i]), &c->g->nodes[node].texts[i]));
    return WALSH_OK;
}

static enum walsh_status add_fixed(struct compiler *c)
{
    static const enum walsh_grammar_kind kinds[GRAMMAR_NODE_FIRST] = {
        GRAMMAR_UNION,  GRAMMAR_OBJECT,   GRAMMAR_ARRAY, GRAMMAR_STRING,
        GRAMMAR_NUMBER, GRAMMAR_LITERALS, GRAMMAR_ROOT};
    static const char *const words[] = {"false", "null", "true"};
    uint32_t node;
    for (int i = 0; i < GRAMMAR_NODE_FIRST; i++) WALSH_TRY(new_node(c, kinds[i], &node));
    struct walsh_grammar_node *nodes = c->g->nodes;
    WALSH_TRY(make_room(c, GRAMMAR_NODE_ANY, GRAMMAR_NODE_WORDS, false, true));
    for (uint32_t i = 0; i < GRAMMAR_NODE_WORDS; i++)
        nodes[GRAMMAR_NODE_ANY].children[i] = GRAMMAR_NODE_ANY_OBJECT + i;
    WALSH_TRY(make_room(c, GRAMMAR_NODE_ANY_ARRAY, 1, false, true));
    nodes[GRAMMAR_NODE_ANY_ARRAY].children[0] = GRAMMAR_NODE_ANY;
    nodes[GRAMMAR_NODE_ANY_OBJECT].additional = GRAMMAR_NODE_ANY;
    return add_words(c, GRAMMAR_NODE_WORDS, words, 3);
}

/* ---- keywords ---- */

static enum walsh_status read_count(struct compiler *c, const json_t *schema, const char *key, uint32_t *out)
{
    const json_t *value = json_object_get(schema, key);
    if (!value) return WALSH_OK;
    if (!json_is_integer(value)) return wrong(c, key, value, "a whole number from 0 to 2147483647");
    if (json_integer_value(value) < 0 || json_integer_value(value) > INT32_MAX)
        return walsh_fail(c->err, WALSH_E_ARGUMENT,
                          "schema: %s.%s: found %lld, expected a whole number from 0 to 2147483647", c->place,
                          key, (long long)json_integer_value(value));
    *out = (uint32_t)json_integer_value(value);
    return WALSH_OK;
}

static enum walsh_status read_bounds(struct compiler *c, const json_t *schema, const char *least,
                                     const char *most, uint32_t node)
{
    struct walsh_grammar_node *n = &c->g->nodes[node];
    WALSH_TRY(read_count(c, schema, least, &n->least));
    WALSH_TRY(read_count(c, schema, most, &n->most));
    if (n->least <= n->most) return WALSH_OK;
    return walsh_fail(c->err, WALSH_E_ARGUMENT, "schema: %s: %s is %u and %s is %u", c->place, least,
                      n->least, most, n->most);
}

/* Every key is in `known` or an annotation. */
static enum walsh_status check_keys(const struct compiler *c, const json_t *schema, const char *const *known)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)schema, key, value)
    {
        if (!listed(key, known) && !listed(key, annotations))
            return walsh_fail(c->err, WALSH_E_ARGUMENT, "schema: %s: \"%.60s\" is not supported here",
                              c->place, key);
    }
    return WALSH_OK;
}

/* A schema below this one, with its place in messages. */
static enum walsh_status compile_at(struct compiler *c, const char *key, const json_t *schema, unsigned depth,
                                    uint32_t *out)
{
    const size_t length = strlen(c->place), room = sizeof c->place - length;
    if (strlen(key) + 2 < room) {
        c->place[length] = '.';
        strcpy(c->place + length + 1, key);
    }
    WALSH_TRY(compile(c, schema, depth + 1, out));
    c->place[length] = '\0';
    return WALSH_OK;
}

static bool has_type(const json_t *value, const json_t *type)
{
    const char *name = json_string_value(type);
    if (!name) return true;
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return strcmp(name, "object") == 0;
    case JSON_ARRAY:
        return strcmp(name, "array") == 0;
    case JSON_STRING:
        return strcmp(name, "string") == 0;
    case JSON_INTEGER:
        return strcmp(name, "integer") == 0 || strcmp(name, "number") == 0;
    case JSON_REAL:
        return strcmp(name, "number") == 0;
    case JSON_NULL:
        return strcmp(name, "null") == 0;
    default:
        return strcmp(name, "boolean") == 0;
    }
}

/* enum and const: each value as compact JSON. */
static enum walsh_status compile_literals(struct compiler *c, const json_t *values, const json_t *type,
                                          uint32_t *out)
{
    const size_t count = json_array_size(values);
    if (!json_is_array(values)) return wrong(c, "enum", values, "an array of values");
    if (count == 0)
        return walsh_fail(c->err, WALSH_E_ARGUMENT, "schema: %s.enum: the array is empty, expected values",
                          c->place);
    if (count > WALSH_GRAMMAR_LITERALS)
        return walsh_fail(c->err, WALSH_E_CAPACITY, "schema: %s.enum: %zu values, at most %d are supported",
                          c->place, count, WALSH_GRAMMAR_LITERALS);
    WALSH_TRY(new_node(c, GRAMMAR_LITERALS, out));
    WALSH_TRY(make_room(c, *out, count, true, false));
    struct walsh_grammar_node *n = &c->g->nodes[*out];
    for (size_t i = 0; i < count; i++) {
        if (!has_type(json_array_get(values, i), type))
            return wrong(c, "enum", json_array_get(values, i), "values of its type");
        char *text = json_dumps(json_array_get(values, i), JSON_COMPACT | JSON_ENCODE_ANY);
        if (!text) return walsh_fail(c->err, WALSH_E_MEMORY, "out of memory for a grammar");
        const enum walsh_status status = copy_text(c, text, strlen(text), &n->texts[i]);
        free(text);
        WALSH_TRY(status);
    }
    qsort(n->texts, count, sizeof *n->texts, order_texts);
    return WALSH_OK;
}

static enum walsh_status compile_string(struct compiler *c, const json_t *schema, uint32_t *out)
{
    WALSH_TRY(new_node(c, GRAMMAR_STRING, out));
    return read_bounds(c, schema, "minLength", "maxLength", *out);
}

static enum walsh_status compile_array(struct compiler *c, const json_t *schema, unsigned depth,
                                       uint32_t *out)
{
    const json_t *items = json_object_get(schema, "items");
    uint32_t child = GRAMMAR_NODE_ANY;
    WALSH_TRY(new_node(c, GRAMMAR_ARRAY, out));
    WALSH_TRY(read_bounds(c, schema, "minItems", "maxItems", *out));
    WALSH_TRY(make_room(c, *out, 1, false, true));
    if (items) WALSH_TRY(compile_at(c, "items", items, depth, &child));
    c->g->nodes[*out].children[0] = child;
    return WALSH_OK;
}

/* The names of properties and of required ones that are not among them, sorted. */
static enum walsh_status collect_names(struct compiler *c, const json_t *properties, const json_t *required,
                                       uint32_t node)
{
    const size_t declared = json_object_size(properties), most = declared + json_array_size(required);
    if (most > 4 * WALSH_GRAMMAR_PROPERTIES)
        return walsh_fail(c->err, WALSH_E_CAPACITY, "schema: %s: more than %d properties", c->place,
                          WALSH_GRAMMAR_PROPERTIES);
    WALSH_TRY(make_room(c, node, most, true, true));
    struct walsh_grammar_node *n = &c->g->nodes[node];
    const char *key;
    json_t *value;
    n->count = 0;
    json_object_foreach((json_t *)(uintptr_t)properties, key, value)
    {
        for (const char *p = key; *p; p++)
            if ((unsigned char)*p < 0x20 && !strchr("\b\f\n\r\t", *p))
                return walsh_fail(c->err, WALSH_E_ARGUMENT, "schema: %s: a name has a control character",
                                  c->place);
        WALSH_TRY(copy_text(c, key, strlen(key), &n->texts[n->count++]));
    }
    for (size_t i = 0; i < json_array_size(required); i++) {
        const char *name = json_string_value(json_array_get(required, i));
        if (!name) return wrong(c, "required", json_array_get(required, i), "names");
        bool known = json_object_get(properties, name) != NULL;
        for (uint32_t j = (uint32_t)declared; j < n->count; j++)
            known = known || strcmp(n->texts[j].data, name) == 0;
        if (!known) WALSH_TRY(copy_text(c, name, strlen(name), &n->texts[n->count++]));
    }
    if (n->count > WALSH_GRAMMAR_PROPERTIES)
        return walsh_fail(c->err, WALSH_E_CAPACITY, "schema: %s: %u properties, at most %d are supported",
                          c->place, n->count, WALSH_GRAMMAR_PROPERTIES);
    qsort(n->texts, n->count, sizeof *n->texts, order_texts);
    for (uint32_t i = 0; i < n->count; i++)
        for (size_t j = 0; j < json_array_size(required); j++)
            if (strcmp(n->texts[i].data, json_string_value(json_array_get(required, j))) == 0)
                n->required |= (uint64_t)1 << i;
    return WALSH_OK;
}

static enum walsh_status compile_object(struct compiler *c, const json_t *schema, unsigned depth,
                                        uint32_t *out)
{
    const json_t *properties = json_object_get(schema, "properties"),
                 *required = json_object_get(schema, "required"),
                 *additional = json_object_get(schema, "additionalProperties");
    uint32_t other = GRAMMAR_NODE_ANY;
    if (properties && !json_is_object(properties)) return wrong(c, "properties", properties, "an object");
    if (required && !json_is_array(required)) return wrong(c, "required", required, "an array");
    WALSH_TRY(new_node(c, GRAMMAR_OBJECT, out));
    WALSH_TRY(collect_names(c, properties, required, *out));
    if (json_is_false(additional))
        other = WALSH_GRAMMAR_ENDLESS;
    else if (additional && !json_is_true(additional))
        WALSH_TRY(compile_at(c, "additionalProperties", additional, depth, &other));
    c->g->nodes[*out].additional = other;
    for (uint32_t i = 0; i < c->g->nodes[*out].count; i++) {
        const char *name = c->g->nodes[*out].texts[i].data;
        const json_t *property = json_object_get(properties, name);
        uint32_t child = other;
        if (!property && other == WALSH_GRAMMAR_ENDLESS)
            return walsh_fail(c->err, WALSH_E_ARGUMENT,
                              "schema: %s: \"%.60s\" is required, and additionalProperties is false",
                              c->place, name);
        if (property) WALSH_TRY(compile_at(c, name, property, depth, &child));
        c->g->nodes[*out].children[i] = child;
    }
    return WALSH_OK;
}

static enum walsh_status compile_union(struct compiler *c, const json_t *choices, unsigned depth,
                                       uint32_t *out)
{
    const size_t count = json_array_size(choices);
    if (count == 0) return wrong(c, "anyOf", choices, "an array of schemas");
    if (count > WALSH_GRAMMAR_STATES / 2)
        return walsh_fail(c->err, WALSH_E_CAPACITY, "schema: %s.anyOf: %zu schemas, at most %d are supported",
                          c->place, count, WALSH_GRAMMAR_STATES / 2);
    WALSH_TRY(new_node(c, GRAMMAR_UNION, out));
    WALSH_TRY(make_room(c, *out, count, false, true));
    for (size_t i = 0; i < count; i++) {
        uint32_t child;
        WALSH_TRY(compile_at(c, "anyOf", json_array_get(choices, i), depth, &child));
        c->g->nodes[*out].children[i] = child;
    }
    return WALSH_OK;
}

static enum walsh_status compile_type(struct compiler *c, const char *type, const json_t *schema,
                                      unsigned depth, uint32_t *out)
{
    static const char *const booleans[] = {"false", "true"}, *const null[] = {"null"};
    if (strcmp(type, "object") == 0) return compile_object(c, schema, depth, out);
    if (strcmp(type, "array") == 0) return compile_array(c, schema, depth, out);
    if (strcmp(type, "string") == 0) return compile_string(c, schema, out);
    if (strcmp(type, "number") == 0) return new_node(c, GRAMMAR_NUMBER, out);
    if (strcmp(type, "integer") == 0) return new_node(c, GRAMMAR_INTEGER, out);
    const bool boolean = strcmp(type, "boolean") == 0;
    if (!boolean && strcmp(type, "null") != 0)
        return walsh_fail(c->err, WALSH_E_ARGUMENT, "schema: %s.type: \"%.40s\" is no type", c->place, type);
    WALSH_TRY(new_node(c, GRAMMAR_LITERALS, out));
    return add_words(c, *out, boolean ? booleans : null, boolean ? 2 : 1);
}

/* Without "type" the keywords tell it. */
static const char *implied_type(const json_t *schema)
{
    static const struct {
        const char *keyword, *type;
    } hints[] = {{"properties", "object"}, {"required", "object"}, {"additionalProperties", "object"},
                 {"items", "array"},       {"minItems", "array"},  {"maxItems", "array"},
                 {"minLength", "string"},  {"maxLength", "string"}};
    for (size_t i = 0; i < sizeof hints / sizeof *hints; i++)
        if (json_object_get(schema, hints[i].keyword)) return hints[i].type;
    return NULL;
}

static enum walsh_status compile_types(struct compiler *c, const json_t *schema, unsigned depth,
                                       uint32_t *out)
{
    static const char *const known[] = {"type",      "properties", "required", "additionalProperties",
                                        "items",     "minItems",   "maxItems", "minLength",
                                        "maxLength", NULL};
    const json_t *type = json_object_get(schema, "type");
    const char *implied = implied_type(schema);
    WALSH_TRY(check_keys(c, schema, known));
    if (!type) {
        *out = GRAMMAR_NODE_ANY;
        return implied ? compile_type(c, implied, schema, depth, out) : WALSH_OK;
    }
    if (json_is_string(type)) return compile_type(c, json_string_value(type), schema, depth, out);
    const size_t count = json_array_size(type);
    if (count == 0 || count > 8) return wrong(c, "type", type, "a type or an array of types");
    WALSH_TRY(new_node(c, GRAMMAR_UNION, out));
    WALSH_TRY(make_room(c, *out, count, false, true));
    for (size_t i = 0; i < count; i++) {
        const char *one = json_string_value(json_array_get(type, i));
        uint32_t child;
        if (!one) return wrong(c, "type", json_array_get(type, i), "a type");
        WALSH_TRY(compile_type(c, one, schema, depth, &child));
        c->g->nodes[*out].children[i] = child;
    }
    return WALSH_OK;
}

/* "#", "#/$defs/name", "#/definitions/name". */
static enum walsh_status compile_reference(struct compiler *c, const json_t *schema, unsigned depth,
                                           uint32_t *out)
{
    static const char *const known[] = {"$ref", NULL}, *const roots[] = {"$defs", "definitions"};
    const json_t *value = json_object_get(schema, "$ref"), *target = NULL;
    const char *pointer = json_string_value(value);
    WALSH_TRY(check_keys(c, schema, known));
    if (!pointer) return wrong(c, "$ref", value, "a text");
    if (strcmp(pointer, "#") == 0) target = c->schema;
    for (int i = 0; i < 2 && !target; i++) {
        const size_t length = strlen(roots[i]);
        if (strncmp(pointer, "#/", 2) == 0 && strncmp(pointer + 2, roots[i], length) == 0 &&
            pointer[2 + length] == '/')
            target = json_object_get(json_object_get(c->schema, roots[i]), pointer + 3 + length);
    }
    if (!target)
        return walsh_fail(c->err, WALSH_E_ARGUMENT,
                          "schema: %s.$ref: \"%.80s\" is not a definition in $defs of this schema", c->place,
                          pointer);
    return compile(c, target, depth + 1, out);
}

static enum walsh_status compile_kind(struct compiler *c, const json_t *schema, unsigned depth, uint32_t *out)
{
    static const char *const with_enum[] = {"enum", "type", NULL},
                             *const with_const[] = {"const", "type", NULL},
                             *const with_union[] = {"anyOf", NULL};
    if (json_object_get(schema, "$ref")) return compile_reference(c, schema, depth, out);
    if (json_object_get(schema, "anyOf")) {
        WALSH_TRY(check_keys(c, schema, with_union));
        return compile_union(c, json_object_get(schema, "anyOf"), depth, out);
    }
    if (json_object_get(schema, "enum")) {
        WALSH_TRY(check_keys(c, schema, with_enum));
        return compile_literals(c, json_object_get(schema, "enum"), json_object_get(schema, "type"), out);
    }
    if (!json_object_get(schema, "const")) return compile_types(c, schema, depth, out);
    WALSH_TRY(check_keys(c, schema, with_const));
    json_t *one = json_pack("[O]", json_object_get(schema, "const"));
    if (!one) return walsh_fail(c->err, WALSH_E_MEMORY, "out of memory for a grammar");
    const enum walsh_status status = compile_literals(c, one, json_object_get(schema, "type"), out);
    json_decref(one);
    return status;
}

/* A schema that is met again (by $ref) is one node: a union of one holds its place while it is compiled. */
static enum walsh_status compile(struct compiler *c, const json_t *schema, unsigned depth, uint32_t *out)
{
    uint32_t child;
    if (depth > 64)
        return walsh_fail(c->err, WALSH_E_CAPACITY, "schema: %s: nested deeper than 64", c->place);
    if (json_is_true(schema)) {
        *out = GRAMMAR_NODE_ANY;
        return WALSH_OK;
    }
    if (!json_is_object(schema))
        return walsh_fail(c->err, WALSH_E_ARGUMENT, "schema: %s: found %s, expected an object", c->place,
                          walsh_json_type_name(schema));
    for (size_t i = 0; i < c->known_count; i++) {
        if (c->known[i].schema != schema) continue;
        *out = c->known[i].node;
        return WALSH_OK;
    }
    WALSH_TRY(new_node(c, GRAMMAR_UNION, out));
    WALSH_TRY(make_room(c, *out, 1, false, true));
    c->known[c->known_count].schema = schema; /* as many as nodes at most */
    c->known[c->known_count++].node = *out;
    WALSH_TRY(compile_kind(c, schema, depth, &child));
    c->g->nodes[*out].children[0] = child;
    return WALSH_OK;
}

/* ---- heights ---- */

static uint32_t plus_one(uint32_t height)
{
    return height == WALSH_GRAMMAR_ENDLESS ? height : height + 1;
}

/* From those of the children as they are known. */
static uint32_t height_of(const struct walsh_grammar *g, const struct walsh_grammar_node *n)
{
    uint32_t height = n->kind == GRAMMAR_UNION ? WALSH_GRAMMAR_ENDLESS : 0;
    switch (n->kind) {
    case GRAMMAR_UNION:
        for (uint32_t i = 0; i < n->count; i++)
            height = (uint32_t)walsh_min(height, g->nodes[n->children[i]].height);
        return height;
    case GRAMMAR_ARRAY:
        return n->least ? plus_one(g->nodes[n->children[0]].height) : 1;
    case GRAMMAR_OBJECT:
        for (uint32_t i = 0; i < n->count; i++)
            if (n->required >> i & 1) height = (uint32_t)walsh_max(height, g->nodes[n->children[i]].height);
        return plus_one(height);
    default:
        return 0;
    }
}

/* The least solution, from above: a part of the schema that needs itself stays endless. */
static enum walsh_status find_heights(struct compiler *c)
{
    struct walsh_grammar *g = c->g;
    bool changed = true;
    for (uint32_t i = 0; i < g->count; i++) g->nodes[i].height = WALSH_GRAMMAR_ENDLESS;
    for (unsigned round = 0; changed && round <= WALSH_GRAMMAR_DEPTH + g->count; round++) {
        changed = false;
        for (uint32_t i = g->count; i-- > 0;) {
            const uint32_t height = height_of(g, &g->nodes[i]);
            changed = changed || height != g->nodes[i].height;
            g->nodes[i].height = height;
        }
    }
    if (g->nodes[g->root].height <= WALSH_GRAMMAR_DEPTH) return WALSH_OK;
    return walsh_fail(c->err, WALSH_E_CAPACITY,
                      "schema: no document of at most %d arrays and objects within each other is valid",
                      WALSH_GRAMMAR_DEPTH);
}

/* The parts that a node stands for once unions within unions are opened, each once: *leaves [*count]. A union
 * that leads to itself alone has none. `open` and `met` are [nodes]. */
static void find_leaves(const struct walsh_grammar *g, uint32_t node, uint32_t *open, bool *met,
                        uint32_t *leaves, uint32_t *count)
{
    uint32_t waiting = 0;
    memset(met, 0, g->count * sizeof *met);
    *count = 0;
    met[node] = true;
    for (open[waiting++] = node; waiting > 0;) {
        const uint32_t at = open[--waiting];
        const struct walsh_grammar_node *n = &g->nodes[at];
        if (n->kind != GRAMMAR_UNION) {
            leaves[(*count)++] = at;
            continue;
        }
        for (uint32_t i = n->count; i-- > 0;) {
            if (met[n->children[i]]) continue;
            met[n->children[i]] = true;
            open[waiting++] = n->children[i];
        }
    }
}

static enum walsh_status open_unions(struct compiler *c, uint32_t *open, uint32_t *leaves, bool *met)
{
    struct walsh_grammar *g = c->g;
    for (uint32_t i = 0; i < g->count; i++) {
        struct walsh_grammar_node *n = &g->nodes[i];
        uint32_t count;
        if (n->kind != GRAMMAR_UNION) continue;
        find_leaves(g, i, open, met, leaves, &count);
        if (count > WALSH_GRAMMAR_STATES)
            return walsh_fail(c->err, WALSH_E_CAPACITY,
                              "schema: a choice of %u schemas, at most %d are supported", count,
                              WALSH_GRAMMAR_STATES);
        WALSH_TRY(make_room(c, i, count, false, true));
        memcpy(n->children, leaves, count * sizeof *leaves);
    }
    return WALSH_OK;
}

/* A union of one is what it holds. */
static uint32_t resolve(const struct walsh_grammar *g, uint32_t node)
{
    const bool one =
        node != WALSH_GRAMMAR_ENDLESS && g->nodes[node].kind == GRAMMAR_UNION && g->nodes[node].count == 1;
    return one ? g->nodes[node].children[0] : node;
}

static enum walsh_status finish(struct compiler *c)
{
    struct walsh_grammar *g = c->g;
    uint32_t *scratch;
    WALSH_TRY(walsh_alloc(3 * (size_t)g->count, sizeof *scratch, "a grammar", &scratch, c->err));
    const enum walsh_status status =
        open_unions(c, scratch, scratch + g->count, (bool *)(scratch + 2 * (size_t)g->count));
    walsh_free(scratch);
    WALSH_TRY(status);
    for (uint32_t i = 0; i < g->count; i++) {
        struct walsh_grammar_node *n = &g->nodes[i];
        for (uint32_t k = 0; n->children && k < n->count; k++) n->children[k] = resolve(g, n->children[k]);
        n->additional = resolve(g, n->additional);
    }
    g->root = resolve(g, g->root);
    return find_heights(c);
}

static enum walsh_status parse(const char *schema, size_t size, json_t **out, struct walsh_error *err)
{
    json_error_t error;
    if (size > WALSH_GRAMMAR_SCHEMA)
        return walsh_fail(err, WALSH_E_CAPACITY, "schema: %zu bytes, at most %d are supported", size,
                          WALSH_GRAMMAR_SCHEMA);
    *out = json_loadb(schema, size, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &error);
    if (*out) return WALSH_OK;
    return walsh_fail(err, WALSH_E_ARGUMENT, "schema: line %d: %s", error.line, error.text);
}

enum walsh_status walsh_grammar_compile(const struct walsh_token_bytes *tokens, const char *schema,
                                        size_t size, struct walsh_grammar **out, struct walsh_error *err)
{
    struct compiler c = {.place = "$", .err = err};
    json_t *root = NULL;
    *out = NULL;
    if (schema) WALSH_TRY(parse(schema, size, &root, err));
    c.schema = root;
    enum walsh_status status = walsh_alloc_zero(1, sizeof *c.g, "a grammar", &c.g, err);
    if (status == WALSH_OK) {
        atomic_init(&c.g->references, 1);
        c.g->tokens = tokens;
        status = walsh_alloc(WALSH_GRAMMAR_NODES, sizeof *c.known, "a grammar", &c.known, err);
    }
    if (status == WALSH_OK) status = add_fixed(&c);
    if (status == WALSH_OK) c.g->root = GRAMMAR_NODE_ANY_OBJECT;
    if (status == WALSH_OK && root) status = compile(&c, root, 0, &c.g->root);
    if (status == WALSH_OK) status = finish(&c);
    json_decref(root);
    walsh_free(c.known);
    if (status != WALSH_OK) {
        walsh_grammar_release(c.g);
        return status;
    }
    *out = c.g;
    return WALSH_OK;
}

void walsh_grammar_retain(const struct walsh_grammar *grammar)
{
    atomic_fetch_add(&((struct walsh_grammar *)(uintptr_t)grammar)->references, 1);
}

void walsh_grammar_release(const struct walsh_grammar *grammar)
{
    struct walsh_grammar *g = (struct walsh_grammar *)(uintptr_t)grammar;
    if (!g || atomic_fetch_sub(&g->references, 1) != 1) return;
    walsh_arena_close(&g->arena);
    walsh_free(g);
}
