/* walsh: run and measure language models whose weights are rotated (randomized Hadamard transform) and low-bit; and,
 * in walsh_jobs.h, which this header includes, make them: quantize, finetune, merge. walsh_ops.h has the kernels by
 * themselves.
 *
 * Conventions. Every call that can fail returns enum walsh_status and writes a message into the caller's
 * struct walsh_error (NULL where none is wanted). walsh_x_open(..., &out) makes an object that
 * walsh_x_close(&x) frees and sets to NULL; closing NULL does nothing. Options structs start with struct_size
 * = sizeof(struct ...), set by their WALSH_..._OPTIONS macro; a zeroed member means the default that its
 * comment gives. Strings are UTF-8. Models are immutable and may be shared by threads as long as one call
 * runs on a context at a time; a session has one owner. Calls on text (walsh_model_encode,
 * walsh_model_decode, walsh_text_stream_*, walsh_model_is_eos) do not count: they may run on any thread
 * beside any other call. Nothing here prints, exits or reads the environment. Any call that fails may say
 * WALSH_E_MEMORY, and with options WALSH_E_ARGUMENT for a struct_size or a member out of its range; the comments tell
 * the other errors.
 */
#ifndef WALSH_H
#define WALSH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "walsh_hooks.h"
#include "walsh_status.h"
#include "walsh_version.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The library's version at run time; WALSH_VERSION_STRING (walsh_version.h) is that of the headers. */
WALSH_API const char *walsh_version(void);

/* ------------------------------------------------------------------------------------------------ context */

/* Owns the thread pool and the kernel table. */
struct walsh_context;

struct walsh_context_options {
    size_t struct_size;
    unsigned threads; /* 0: the CPUs that this process may use */
    const char *cpu; /* NULL or "best" | "reference" | "avx2" | "avx512" | "amx": caps the instruction sets */
    const char *device; /* NULL or "cpu" | "cuda" | "cuda:N" */
    struct walsh_hooks hooks;
};
#define WALSH_CONTEXT_OPTIONS                                                                                \
    {                                                                                                        \
        .struct_size = sizeof(struct walsh_context_options)                                                  \
    }

/* Start the threads and choose the kernels; options NULL: the defaults. WALSH_E_ARGUMENT: more than 1024
 * threads, an unknown cpu or device. WALSH_E_UNSUPPORTED: an instruction set or a device that this machine
 * lacks, with what it has. WALSH_E_MEMORY. */
WALSH_API enum walsh_status walsh_context_open(const struct walsh_context_options *options,
                                               struct walsh_context **out, struct walsh_error *err);
/* Joins the threads. What was opened with the context has been closed before. */
WALSH_API void walsh_context_close(struct walsh_context **context);
/* Threads that compute, the caller of a job among them. */
WALSH_API unsigned walsh_context_threads(const struct walsh_context *context);
/* "avx512f avx512bw ..." of this machine. */
WALSH_API const char *walsh_context_cpu_features(const struct walsh_context *context);
/* A device beside the CPU. */
struct walsh_device {
    char device[32];   /* as walsh_context_options.device names it */
    char name[256];    /* "NVIDIA H200" */
    char detail[1024]; /* what it can do, or why it is not used */
    bool usable;
};
/* Device i of this machine; false past the last. Where there is none the first entry says why. */
WALSH_API bool walsh_device_find(size_t i, struct walsh_device *out);
/* Kernel i's name and the implementation chosen; false past the last. */
WALSH_API bool walsh_context_kernel(const struct walsh_context *context, size_t i, const char **kernel,
                                    const char **implementation);

/* ------------------------------------------------------------------------------------------------ models */

/* How activations enter the products. Rotated formats know int8 and f32, bf16 weights bf16 and f32, other
 * weights f32. */
enum walsh_activation_mode {
    WALSH_ACTIVATIONS_AUTO =
        0, /* int8 on rotated formats; bf16 on bf16 weights where the hardware has it; else f32 */
    WALSH_ACTIVATIONS_F32,  /* everywhere, attention of prompts included, which else may round to bf16 */
    WALSH_ACTIVATIONS_BF16, /* on bf16 weights; f32 on rotated formats */
    WALSH_ACTIVATIONS_INT8  /* on rotated formats; dense weights as AUTO */
};

struct walsh_model;

struct walsh_model_options {
    size_t struct_size;
    bool no_mmap;                           /* read the files instead of mapping them */
    enum walsh_activation_mode activations; /* AUTO */
    bool tokenizer_optional; /* a directory without tokenizer.json opens too: its model knows ids, no text */
};
#define WALSH_MODEL_OPTIONS                                                                                  \
    {                                                                                                        \
        .struct_size = sizeof(struct walsh_model_options)                                                    \
    }

/* `path`: a Hugging Face directory (config.json, tokenizer.json, *.safetensors); options NULL: the defaults.
 * The context outlives the model; the files stay as they are while it is open, unless no_mmap.
 * WALSH_E_NOT_FOUND: a file or a tensor that must be there is not; WALSH_E_FORMAT: a file is malformed or
 * does not fit the others; WALSH_E_UNSUPPORTED: an architecture, a format or a key that this build does not
 * know; WALSH_E_IO; WALSH_E_MEMORY. Each with file, tensor or key, what was found and what was expected. */
WALSH_API enum walsh_status walsh_model_open(struct walsh_context *context, const char *path,
                                             const struct walsh_model_options *options,
                                             struct walsh_model **out, struct walsh_error *err);
/* Sessions, adapters, grammars, samplers and batches of the model have been closed before. */
WALSH_API void walsh_model_close(struct walsh_model **model);

/* A model of random weights, for measurements without a download. The values are random, the work is real. */
struct walsh_shape {
    size_t struct_size;
    const char *name; /* for messages */
    uint32_t hidden, intermediate, layers, heads, kv_heads, head_dim, vocab, max_positions;
    uint32_t experts, experts_per_token, expert_intermediate; /* 0: dense */
    bool tied_embeddings;
    bool head_int8; /* the head as quantize writes it with head_int8; then it is not tied */
};
#define WALSH_SHAPE                                                                                          \
    {                                                                                                        \
        .struct_size = sizeof(struct walsh_shape)                                                            \
    }
/* Named shapes ("llama-1b", ...): fills *out; WALSH_E_NOT_FOUND lists the known names. */
WALSH_API enum walsh_status walsh_shape_named(const char *name, struct walsh_shape *out,
                                              struct walsh_error *err);
/* The i-th known name, constant; NULL past the last. */
WALSH_API const char *walsh_shape_name(size_t i);
/* format: "bf16", "e8p" with bits 2..8 (ignored for the others), "mxfp4", "nvfp4", "mxfp8", "fp8", "int8" or
 * "int4". Such a model has no tokenizer. WALSH_E_ARGUMENT: another format, bits, or a shape that no model has.
 * WALSH_E_UNSUPPORTED: more columns than the format's kernels take, or what the context's device does not run.
 * WALSH_E_MEMORY with both figures where it does not fit. */
WALSH_API enum walsh_status walsh_model_synthesize(struct walsh_context *context,
                                                   const struct walsh_shape *shape, const char *format,
                                                   unsigned bits, uint64_t seed,
                                                   const struct walsh_model_options *options,
                                                   struct walsh_model **out, struct walsh_error *err);

struct walsh_model_info {
    size_t struct_size;
    const char *architecture; /* "LlamaForCausalLM"; lives as long as the model, as all strings here */
    const char *format;       /* of the layers' linears: "bf16", "e8p" */
    double bits_per_weight;   /* of the layers' linears, codes only */
    uint32_t hidden, intermediate, layers, heads, kv_heads, head_dim, vocab, max_positions, experts,
        experts_per_token;
    uint64_t parameters;        /* logical weights, tied ones once */
    uint64_t linear_parameters; /* of the layers' linears */
    uint64_t checkpoint_bytes;  /* of all safetensors files */
    uint64_t memory_bytes;      /* held in anonymous memory by the model (repacked weights, tables) */
    uint64_t decode_bytes;      /* weights read by one decode step of one row */
    double load_seconds;
    enum walsh_activation_mode activations; /* what AUTO became for the linears */
    bool has_tokenizer;
    uint64_t decode_weights; /* multiplied with by one decode step of one row, those of the head included */
    uint64_t head_weights;
};
/* Fills *info as far as its struct_size goes, which the caller sets. */
WALSH_API void walsh_model_get_info(const struct walsh_model *model, struct walsh_model_info *info);

/* One weight matrix or vector of the model, for `inspect`. */
struct walsh_tensor_info {
    size_t struct_size;
    char name[256];
    char format[16];    /* "bf16", "e8p" */
    char rotation[160]; /* "in 512+64, out 1024+512" or "" */
    uint64_t rows, cols;
    uint64_t bytes; /* as the decode step reads it */
    double bits_per_weight;
    const char *part; /* "embedding" | "attention" | "mlp" | "experts" | "router" | "norm" | "head" */
};
/* Tensor i into *info, whose struct_size the caller sets; false past the last. */
WALSH_API bool walsh_model_tensor(const struct walsh_model *model, size_t i, struct walsh_tensor_info *info);

/* Whether `id` ends a text: one of the end-of-sequence ids of generation_config.json and of config.json. */
WALSH_API bool walsh_model_is_eos(const struct walsh_model *model, int32_t id);

/* ------------------------------------------------------------------------------------------------ text */

enum {
    WALSH_TEXT_SPECIAL = 1, /* add BOS and the like as the tokenizer's post-processor says */
    WALSH_TEXT_PLAIN = 2    /* texts of special tokens are plain text */
};
/* *ids: free with walsh_memory_free. */
WALSH_API enum walsh_status walsh_model_encode(const struct walsh_model *model, const char *text, size_t size,
                                               unsigned flags, int32_t **ids, size_t *count,
                                               struct walsh_error *err);
/* *text: NUL-terminated, free with walsh_memory_free. */
WALSH_API enum walsh_status walsh_model_decode(const struct walsh_model *model, const int32_t *ids,
                                               size_t count, bool skip_special, char **text, size_t *size,
                                               struct walsh_error *err);
/* What the token writes: *bytes [*size], which may be a part of a character only; a special token its text. The
 * model's own: valid as long as it is. Decoders that look at a token's place (a space stripped from a text's
 * begin) are left out. WALSH_E_ARGUMENT: no token has this id. */
WALSH_API enum walsh_status walsh_model_token_bytes(const struct walsh_model *model, int32_t id,
                                                    const char **bytes, size_t *size,
                                                    struct walsh_error *err);
/* What a call of this header allocated for the caller; NULL is fine. */
WALSH_API void walsh_memory_free(void *p);

/* Streaming decode: ids one by one into whole characters. The model outlives the stream, which has one owner.
 */
struct walsh_text_stream;
/* skip_special: special tokens have no text. WALSH_E_NOT_FOUND: the model has no tokenizer. */
WALSH_API enum walsh_status walsh_text_stream_open(const struct walsh_model *model, bool skip_special,
                                                   struct walsh_text_stream **out, struct walsh_error *err);
/* Text completed by id; valid until the next call on the stream. WALSH_E_ARGUMENT: an id that the tokenizer does not
 * have. */
WALSH_API enum walsh_status walsh_text_stream_next(struct walsh_text_stream *stream, int32_t id,
                                                   const char **text, size_t *size, struct walsh_error *err);
/* What is left behind the last id: bytes that are no whole character become U+FFFD. Valid until the next call
 * on the stream. */
WALSH_API enum walsh_status walsh_text_stream_finish(struct walsh_text_stream *stream, const char **text,
                                                     size_t *size, struct walsh_error *err);
/* Its texts are no longer valid. */
WALSH_API void walsh_text_stream_close(struct walsh_text_stream **stream);

/* ------------------------------------------------------------------------------------------------ chat */

/* Chat templates: a model's own Jinja template turns a conversation into the text of a prompt, byte for byte
 * as Hugging Face's library does it. docs/chat-templates.md has what of Jinja is known and what is refused. A
 * template computes from data alone: it reaches no file, no clock but `now`, and steps, depth, memory and the
 * size of the text are limited. */
struct walsh_chat_options {
    size_t struct_size;
    /* NULL: the model's own template, from chat_template.jinja or else from tokenizer_config.json. Otherwise
     * the text of one. */
    const char *template_text;
    const char *tools_json;     /* NULL: none. A JSON array, the template's `tools` */
    const char *variables_json; /* NULL, or a JSON object: further variables of the template, such as
                                 * {"enable_thinking": false} or {"reasoning_effort": "high"}. They go before
                                 * those that the library sets */
    bool add_generation_prompt; /* end with the header of an answer; true is set by the macro */
    int64_t now; /* seconds since 1970-01-01 00:00 that strftime_now shows without a time zone: add the zone's
                  * offset for local time. 0: the clock's, in UTC */
};
#define WALSH_CHAT_OPTIONS                                                                                   \
    {                                                                                                        \
        .struct_size = sizeof(struct walsh_chat_options), .add_generation_prompt = true                      \
    }
/* Whether the model has a chat template of its own. */
WALSH_API bool walsh_model_has_chat_template(const struct walsh_model *model);
/* Render messages_json [size], a JSON array of objects as of the chat completions API ({"role": "user",
 * "content": "..."}, tool_calls and the like as the template knows them), into *text: NUL-terminated, free
 * with walsh_memory_free. Encode it without WALSH_TEXT_SPECIAL: the template writes BOS itself where the
 * model wants one. The reasoning of an earlier answer is found under the names reasoning_content and
 * thinking, whichever of reasoning_content, thinking, reasoning it comes in.
 *
 * WALSH_E_NOT_FOUND: no template; the message names the files it was looked for in. WALSH_E_ARGUMENT: the
 * JSON is not what it should be, or the template refuses the conversation (raise_exception, with its text) or fails
 * with it (an attribute of what is undefined and the like, with its line). WALSH_E_FORMAT: an error of the template's
 * syntax, with its line. WALSH_E_UNSUPPORTED: a filter or a test that is not known, with its line.
 * WALSH_E_CAPACITY: more steps, depth, memory or text than allowed. */
WALSH_API enum walsh_status walsh_chat_render(const struct walsh_model *model, const char *messages_json,
                                              size_t messages_size, const struct walsh_chat_options *options,
                                              char **text, size_t *size, struct walsh_error *err);
/* Render and encode. What the messages say stays text: a text of a special token in them ("<|im_end|>" that a
 * user typed) is encoded as text, where encoding what walsh_chat_render gives would make it that token and
 * let a message end itself and begin another one's. Tokens that the template writes are tokens. A template
 * that takes a message apart and joins its pieces can defeat this; none of the known ones does. U+FDD0 in a
 * message becomes U+FFFD. *ids [*count], *text [*size]: free with walsh_memory_free; text may be NULL. Errors
 * as of walsh_chat_render and walsh_model_encode. */
WALSH_API enum walsh_status walsh_chat_encode(const struct walsh_model *model, const char *messages_json,
                                              size_t messages_size, const struct walsh_chat_options *options,
                                              int32_t **ids, size_t *count, char **text, size_t *size,
                                              struct walsh_error *err);

/* ----------------------------------------------------------------------------------------------- grammars */

/* What an answer may look like: JSON, free or under a schema, as a mask over the tokens of each step. A
 * grammar is immutable and may be used by any number of samplers of its model, which outlives it. What of
 * JSON Schema is known, and the limits on size and depth: docs/structured-output.md. */
struct walsh_grammar;
/* schema_json [size]: a JSON schema; NULL: any JSON object. WALSH_E_ARGUMENT: not a schema, or one with a
 * keyword that is not supported, which the message names with its place in the schema. WALSH_E_CAPACITY: too
 * large or too deep. WALSH_E_UNSUPPORTED: the model has no end-of-sequence id, or no token for a byte that
 * JSON needs. */
WALSH_API enum walsh_status walsh_grammar_open(const struct walsh_model *model, const char *schema_json,
                                               size_t size, struct walsh_grammar **out,
                                               struct walsh_error *err);
/* Before anything uses the grammar: a thought may come before the document. `opens`: the text of the token
 * that begins one, as the very first ("<think>"); NULL: the prompt has begun it already. `ends` [end_count],
 * 1 or 2 texts of up to 32 bytes ("</think>"): the document begins behind the last of them; anything may
 * stand between. Until then every token may come but those that end an answer. WALSH_E_NOT_FOUND: `opens` is
 * no token of the model's. */
WALSH_API enum walsh_status walsh_grammar_set_thought(struct walsh_grammar *grammar, const char *opens,
                                                      const char *const *ends, size_t end_count,
                                                      struct walsh_error *err);
/* Samplers and requests that use the grammar keep it. */
WALSH_API void walsh_grammar_close(struct walsh_grammar **grammar);

/* ----------------------------------------------------------------------------------------------- adapters */

/* A LoRA adapter: low-rank updates y += scale * B (A x) of some of a model's linears. Immutable; any number
 * of sessions of its model may use it, alone or with others, and the sessions of one step may use different
 * ones. The model outlives it. */
struct walsh_adapter;

/* How its weights are kept in memory. */
enum walsh_adapter_storage {
    WALSH_ADAPTER_AUTO = 0, /* f32 where the model's activations are F32, else bf16 */
    WALSH_ADAPTER_BF16,
    WALSH_ADAPTER_F32
};
struct walsh_adapter_options {
    size_t struct_size;
    const char
        *name; /* NULL: the last component of the path. The adapters of a session have different names */
    enum walsh_adapter_storage storage;
    bool no_mmap;
};
#define WALSH_ADAPTER_OPTIONS                                                                                \
    {                                                                                                        \
        .struct_size = sizeof(struct walsh_adapter_options)                                                  \
    }

/* `path`: a directory that the PEFT library wrote (adapter_config.json, adapter_model.safetensors). A model
 * in use is not touched, whatever happens. WALSH_E_NOT_FOUND, _IO, _FORMAT: its files, by name; tensors that the model has
 * no linear for, that are missing, of other shapes or no numbers. WALSH_E_UNSUPPORTED: another kind than LoRA, or a key
 * that changes what it computes and is not known. */
WALSH_API enum walsh_status walsh_adapter_open(const struct walsh_model *model, const char *path,
                                               const struct walsh_adapter_options *options,
                                               struct walsh_adapter **out, struct walsh_error *err);
/* Random updates of rank 1..256 of every projection of the layers, for measurements. */
WALSH_API enum walsh_status walsh_adapter_random(const struct walsh_model *model, uint32_t rank,
                                                 uint64_t seed, const struct walsh_adapter_options *options,
                                                 struct walsh_adapter **out, struct walsh_error *err);
/* Sessions that use the adapter keep it. */
WALSH_API void walsh_adapter_close(struct walsh_adapter **adapter);

struct walsh_adapter_info {
    size_t struct_size;
    const char *name;       /* lives as long as the adapter, as all strings here */
    const char *base_model; /* what it was trained on, "" unknown */
    const char *format;     /* in memory: "bf16", "f32" */
    uint32_t linears;       /* that it updates */
    uint32_t least_rank, most_rank;
    uint64_t parameters;   /* as stored in its file */
    uint64_t memory_bytes; /* of its weights */
};
/* Fills *info as far as its struct_size goes, which the caller sets. */
WALSH_API void walsh_adapter_get_info(const struct walsh_adapter *adapter, struct walsh_adapter_info *info);

/* An adapter in use, with a scale of the caller's on top of its own. */
struct walsh_adapter_use {
    const struct walsh_adapter *adapter;
    float scale;
};

/* ----------------------------------------------------------------------------------------------- sessions */

enum walsh_kv {
    WALSH_KV_CACHE_AUTO = 0, /* f32 where activations are F32, else f16 */
    WALSH_KV_CACHE_F16,
    WALSH_KV_CACHE_F32,
    WALSH_KV_CACHE_TURBO /* rotated and quantized, each key and value by itself (docs/kv-cache.md) */
};
enum walsh_kv_key_codec {
    WALSH_KV_KEYS_MSE = 0,
    WALSH_KV_KEYS_PROD /* unbiased scores at the price of a larger error; experimental */
};

/* How keys and values are stored. What stands behind `type` is for TURBO. */
struct walsh_kv_options {
    enum walsh_kv type;
    unsigned key_bits, value_bits; /* per element, 1..8 (PROD keys 2..8); 0: 4 */
    uint32_t skip;                 /* the first and last `skip` layers stay f16 */
    uint32_t recent;               /* decode reads the newest `recent` tokens in f16; at most 65536 */
    uint64_t seed;                 /* of the rotation; 42 (set by the macros), 0 counts */
    enum walsh_kv_key_codec key_codec;
    bool no_rotation, no_correction; /* without the rotation, without the correction of norms: for
                                      * measurements */
};
#define WALSH_KV_OPTIONS                                                                                     \
    {                                                                                                        \
        .seed = 42                                                                                           \
    }
/* Total bits per element in steps of 1/2: the key takes the floor, the value the ceiling (3.5: 3 and 4).
 * False where `total` is no multiple of 1/2 from 1 to 8. */
WALSH_API bool walsh_kv_split_bits(double total, unsigned *key_bits, unsigned *value_bits);

struct walsh_session_options {
    size_t struct_size;
    /* capacity in tokens, at most 131072; 0: the model's maximum, at most 4096. Of a model with longrope
     * (Phi-3) it decides which factors all positions of the session use: the long ones where it is above
     * original_max_position_embeddings */
    uint32_t context;
    struct walsh_kv_options kv;
};
#define WALSH_SESSION_OPTIONS                                                                                \
    {                                                                                                        \
        .struct_size = sizeof(struct walsh_session_options), .kv = WALSH_KV_OPTIONS                          \
    }

struct walsh_session;
/* Bytes that the cache of such a session takes when full; 0 where the options are wrong. */
WALSH_API uint64_t walsh_session_bytes(const struct walsh_model *model,
                                       const struct walsh_session_options *options);
/* Refuses with the figure (WALSH_E_MEMORY) where `count` such sessions, all full, cannot fit into the
 * available memory. */
WALSH_API enum walsh_status walsh_sessions_check(const struct walsh_model *model,
                                                 const struct walsh_session_options *options, size_t count,
                                                 struct walsh_error *err);
/* Refuses with the figure (WALSH_E_MEMORY) where the full cache cannot fit into this machine's available
 * memory. */
WALSH_API enum walsh_status walsh_session_open(const struct walsh_model *model,
                                               const struct walsh_session_options *options,
                                               struct walsh_session **out, struct walsh_error *err);
/* Frees its cache; what it shares with forks stays theirs. */
WALSH_API void walsh_session_close(struct walsh_session **session);
/* Tokens in the cache. */
WALSH_API uint32_t walsh_session_length(const struct walsh_session *session);
/* Capacity, in tokens. */
WALSH_API uint32_t walsh_session_context(const struct walsh_session *session);
/* Bytes of keys and values that the session holds now, in whole pages; pages that forks share count for each.
 */
WALSH_API uint64_t walsh_session_cache_bytes(const struct walsh_session *session);
/* A second session with the same tokens, logits, adapters and cache options. The stored tokens are shared
 * until one of both appends to them. Allocates; else it does not fail. */
WALSH_API enum walsh_status walsh_session_fork(const struct walsh_session *session,
                                               struct walsh_session **out, struct walsh_error *err);
/* Forget tokens [length, ...). WALSH_E_ARGUMENT: it has fewer. */
WALSH_API enum walsh_status walsh_session_trim(struct walsh_session *session, uint32_t length,
                                               struct walsh_error *err);

/* Use these adapters together from the next token on; count 0: none. At most 16. What is in the cache stays:
 * trim the session to 0 where the past should be read with them too. On failure the session is as before.
 * WALSH_E_ARGUMENT: too many, a NULL, a scale that is not finite, an adapter of another model; WALSH_E_EXISTS: two of
 * one name. */
WALSH_API enum walsh_status walsh_session_set_adapters(struct walsh_session *session,
                                                       const struct walsh_adapter_use *uses, size_t count,
                                                       struct walsh_error *err);
/* Memory of all adapters that these sessions use, each counted once. */
WALSH_API uint64_t walsh_sessions_adapter_bytes(struct walsh_session *const *sessions, size_t count);

/* A directory that keeps what prompts leave in the cache, so that a prompt that begins like an earlier one
 * need not be computed again: whole chunks of 512 tokens, and the end of a prompt for one that is exactly the
 * same. A prompt that took something over is bit for bit as if it had been computed. Everything that its bits
 * depend on is in the keys: model, adapters and scales, cache options, activations, kernels, machine, build;
 * in any other case nothing is found. Any number of sessions, threads and processes may use one directory.
 * What goes wrong in it is a warning to the context's log, and the prompt is computed. docs/prefix-store.md
 * has the details. */
struct walsh_prefix_store;
struct walsh_prefix_store_options {
    size_t struct_size;
    uint64_t limit; /* bytes of the directory; what was used longest ago goes first; 0: 4 GiB */
};
#define WALSH_PREFIX_STORE_OPTIONS                                                                           \
    {                                                                                                        \
        .struct_size = sizeof(struct walsh_prefix_store_options)                                             \
    }
/* Made (mode 0700) where it is missing; its parent must exist. A directory of another user's, a symbolic link
 * of another user's, a directory that everybody may write: WALSH_E_ARGUMENT, because its files become part of
 * answers. The context outlives the store. */
WALSH_API enum walsh_status walsh_prefix_store_open(struct walsh_context *context, const char *path,
                                                    const struct walsh_prefix_store_options *options,
                                                    struct walsh_prefix_store **out, struct walsh_error *err);
/* Sessions and batches that use it have been closed before. Its files stay. */
WALSH_API void walsh_prefix_store_close(struct walsh_prefix_store **store);
/* Prompts of this session that begin with an empty session use the store from now on; NULL: none. Sessions
 * with different salts (`salt_size` bytes, copied; NULL and 0: none) share nothing: give each tenant its own.
 * The store outlives the session. Reads all of the model's files once per model. WALSH_E_UNSUPPORTED for a
 * synthetic model. A fork of the session has no store. */
WALSH_API enum walsh_status walsh_session_set_prefix_store(struct walsh_session *session,
                                                           struct walsh_prefix_store *store, const void *salt,
                                                           size_t salt_size, struct walsh_error *err);
/* What the store did for the session's last prompt that began with an empty session; zeros without one. */
struct walsh_prefix_info {
    size_t struct_size;
    uint32_t tokens;       /* of the prompt, taken over */
    uint32_t stored;       /* tokens put into the store */
    double seconds;        /* finding and taking over */
    double saved_seconds;  /* what computing these tokens took when they were stored */
    double stored_seconds; /* storing, during the prompt */
};
/* Fills *info as far as its struct_size goes, which the caller sets. */
WALSH_API void walsh_session_get_prefix_info(const struct walsh_session *session,
                                             struct walsh_prefix_info *info);

/* Append `count` >= 1 tokens as a prompt (prefill arithmetic, chunks cut at fixed absolute positions).
 * Afterwards walsh_session_logits is that of the last. More than the capacity: WALSH_E_CAPACITY, nothing
 * appended. An abort between chunks leaves the session at its old length. */
WALSH_API enum walsh_status walsh_session_prompt(struct walsh_session *session, const int32_t *ids,
                                                 size_t count, struct walsh_error *err);
/* One decode step: append ids[i] to sessions[i], all of one model, no session twice. A row's bits do not
 * depend on `count` or on the others; of 0 sessions nothing is done. WALSH_E_ARGUMENT: a session is NULL, of another model or there
 * twice, or an id is beyond the vocabulary; WALSH_E_CAPACITY: a session is full. No session has changed then. */
WALSH_API enum walsh_status walsh_step(struct walsh_session *const *sessions, const int32_t *ids,
                                       size_t count, struct walsh_error *err);
/* [vocab] logits of the last token; NULL before the first. Owned by the session, valid until its next call.
 */
WALSH_API const float *walsh_session_logits(const struct walsh_session *session);
/* Logits of `count` tokens appended as a prompt, at every position: out [count][vocab], f32. For evaluation and
 * tests. Errors are those of walsh_session_prompt. */
WALSH_API enum walsh_status walsh_session_prompt_logits(struct walsh_session *session, const int32_t *ids,
                                                        size_t count, float *out, struct walsh_error *err);

/* ----------------------------------------------------------------------------------------------- sampling */

struct walsh_sampler_options {
    size_t struct_size;
    double temperature;    /* below 1e-6: greedy */
    uint32_t top_k;        /* 0: off */
    double top_p;          /* in (0, 1]; 1 (set by the macro): off */
    double min_p;          /* 0: off */
    double repeat_penalty; /* above 0; 1 (set by the macro): off; over the last repeat_last tokens */
    uint32_t repeat_last;  /* 64 (set by the macro); 0: none */
    uint64_t seed;
    const struct walsh_model *model; /* NULL, or: ids that its tokenizer has no token for are never drawn. The
                                        model outlives the sampler */
    /* Subtracted from the logits of tokens that this sampler has drawn (not of those that it was told of):
     * presence_penalty once, frequency_penalty once for each time. -1e6 to 1e6; 0: off */
    double presence_penalty, frequency_penalty;
    /* [bias_count] ids, and what is added to their logits after all penalties, -1e6 to 1e6; an id that stands
     * there twice gets both. Copied */
    const int32_t *bias_ids;
    const float *biases;
    size_t bias_count;
    /* NULL, or: only tokens that continue what this sampler has drawn so far towards a text of the grammar,
     * and an end-of-sequence id of the model where the text is complete. Tokens that it was told of do not
     * count. The sampler keeps the grammar */
    const struct walsh_grammar *grammar;
};
#define WALSH_SAMPLER_OPTIONS                                                                                \
    {                                                                                                        \
        .struct_size = sizeof(struct walsh_sampler_options), .top_p = 1, .repeat_penalty = 1,                \
        .repeat_last = 64                                                                                    \
    }
/* The model's own defaults from generation_config.json (greedy where do_sample is false), with .model set. */
WALSH_API void walsh_sampler_defaults(const struct walsh_model *model, struct walsh_sampler_options *out);
struct walsh_sampler;
/* `vocab`: logits of a draw. Options out of range, ids outside the vocabulary: WALSH_E_ARGUMENT. One owner.
 */
WALSH_API enum walsh_status walsh_sampler_open(const struct walsh_sampler_options *options, uint32_t vocab,
                                               struct walsh_sampler **out, struct walsh_error *err);
/* Lets go of its grammar. */
WALSH_API void walsh_sampler_close(struct walsh_sampler **sampler);
/* Tell it a token of the prompt (for the repeat penalty). */
WALSH_API void walsh_sampler_accept(struct walsh_sampler *sampler, int32_t id);
/* Draw from logits [vocab] and accept the result. NaN among the logits: WALSH_E_INTERNAL. */
WALSH_API enum walsh_status walsh_sampler_draw(struct walsh_sampler *sampler, const float *logits,
                                               int32_t *id, struct walsh_error *err);
/* walsh_step, and then next[i] (next may be ids) = what samplers[i] draws from the new logits of sessions[i]:
 * the tokens that walsh_sampler_draw would give. On a device the step itself draws, and no logits come back.
 * No session twice, no sampler twice, none NULL. A failure of the step leaves all as before; one of a draw, as of
 * walsh_sampler_draw, leaves the sessions with their tokens. */
WALSH_API enum walsh_status walsh_step_draw(struct walsh_session *const *sessions,
                                            struct walsh_sampler *const *samplers, const int32_t *ids,
                                            size_t count, int32_t *next, struct walsh_error *err);

/* ------------------------------------------------------------------------------------------------ batches */

/* Many requests that share the model: continuous batching. A batch owns its requests; each has a session, a
 * sampler and adapters of its own. walsh_batch_step reads a piece of the prompts that wait, decodes one token
 * of every other row and draws the next tokens; requests join and leave between steps. The tokens of a
 * request, and the logits that they are drawn from, are bit for bit those that a session and a sampler of its
 * own would give, whatever runs beside it.
 *
 * Order: first come, first served. A request is admitted when a row is free and the cache has room for its
 * whole need, prompt and answer; until then it waits, and nothing that came later overtakes it. Prompts are
 * read in turn, a piece each, so that a long one holds up neither the short ones nor the rows that decode.
 *
 * One owner: the calls on a batch, and those on anything else of its context, come one at a time. A server
 * puts its own lock around them; a request that comes while a step runs waits for that step. */
struct walsh_batch;

struct walsh_batch_options {
    size_t struct_size;
    uint32_t max_rows; /* requests that run at a time, at most 512; 0: 32 */
    /* Tokens of prompts that a step reads at most, of all requests together, at most 512. Fewer make
     * steps shorter for the rows that decode, and prompts slower. 0: 512, and on a CPU 128 where rows decode.
     * No bit depends on it: a TURBO cache, which packs whole chunks, reads each chunk of 512 in one step
     * whatever this says. */
    uint32_t prefill_tokens;
    uint32_t context; /* tokens of one request at most, prompt and answer; 0: as of a session */
    /* Tokens that the caches of all running requests hold at most, each request's need rounded up to pages of
     * 256; 0: max_rows times context, rounded so too. */
    uint64_t kv_tokens;
    uint32_t max_queued; /* requests that wait at most; 0: 1024 */
    struct walsh_kv_options kv;
    struct walsh_prefix_store *prefix_store; /* that prompts use; NULL: none. It outlives the batch */
};
#define WALSH_BATCH_OPTIONS                                                                                  \
    {                                                                                                        \
        .struct_size = sizeof(struct walsh_batch_options), .kv = WALSH_KV_OPTIONS                            \
    }
/* The model outlives the batch. Options out of range: WALSH_E_ARGUMENT. Caches of kv_tokens tokens that do
 * not fit into this machine's available memory: WALSH_E_MEMORY, with both figures; their pages are allocated
 * as they fill. A prefix store with a synthetic model: WALSH_E_UNSUPPORTED. */
WALSH_API enum walsh_status walsh_batch_open(const struct walsh_model *model,
                                             const struct walsh_batch_options *options,
                                             struct walsh_batch **out, struct walsh_error *err);
/* Drops what still waits or runs. */
WALSH_API void walsh_batch_close(struct walsh_batch **batch);

struct walsh_batch_request {
    size_t struct_size;
    const int32_t *ids; /* [count] the prompt, at least one token; copied */
    size_t count;
    uint32_t max_tokens; /* of the answer, the one that ends it included; 0: what the context leaves */
    /* NULL: greedy, never an id that the tokenizer has no token for. Its `model`, where set, is the batch's.
     */
    const struct walsh_sampler_options *sampling;
    const int32_t *stop_ids; /* [stop_count] end the answer as the model's end-of-sequence ids do; copied */
    size_t stop_count;
    bool ignore_eos;                          /* the model's end-of-sequence ids are tokens like any other */
    const struct walsh_adapter_use *adapters; /* [adapter_count], as of walsh_session_set_adapters; kept until
                                                 the request ends, so that the caller may close them */
    size_t adapter_count;
    const void *salt; /* [salt_size] of the prefix store, as of walsh_session_set_prefix_store; copied */
    size_t salt_size;
    void *user; /* handed back with each event */
    /* NULL, or called by walsh_batch_step with logits [count][vocab]: those behind the prompt's tokens [first,
     * first + count), as the model gave them, so that row i is the distribution of token first + i + 1. In
     * order, each token once, the last one's too. Valid during the call, which must not use the batch. Such a
     * request takes nothing from a prefix store. */
    void (*prompt_logits)(void *user, uint32_t first, const float *logits, uint32_t count);
};
#define WALSH_BATCH_REQUEST                                                                                  \
    {                                                                                                        \
        .struct_size = sizeof(struct walsh_batch_request)                                                    \
    }
/* *id names the request in the calls below and is never used again by this batch. Refused at once:
 * WALSH_E_CAPACITY where prompt and max_tokens can never fit into the context or into kv_tokens (with the
 * figures), WALSH_E_BUSY where max_queued requests wait, WALSH_E_ARGUMENT for ids outside the vocabulary, an
 * empty prompt, options out of range and adapters of another model. */
WALSH_API enum walsh_status walsh_batch_submit(struct walsh_batch *batch,
                                               const struct walsh_batch_request *request, uint64_t *id,
                                               struct walsh_error *err);
/* Drop a request that waits or runs: its memory is free at once and no event tells of it. WALSH_E_NOT_FOUND
 * where it has ended. */
WALSH_API enum walsh_status walsh_batch_cancel(struct walsh_batch *batch, uint64_t id,
                                               struct walsh_error *err);

enum walsh_batch_finish {
    WALSH_FINISH_NONE = 0, /* goes on */
    WALSH_FINISH_EOS,      /* `token` is an end-of-sequence id of the model, and not a part of the text */
    WALSH_FINISH_STOP,     /* `token` is one of stop_ids, likewise */
    WALSH_FINISH_LENGTH,   /* `token` is the last of max_tokens */
    WALSH_FINISH_ERROR     /* no token; status and message say why */
};
struct walsh_batch_event {
    uint64_t request;
    void *user;
    int32_t token;   /* the one drawn in this step; -1 with WALSH_FINISH_ERROR */
    uint32_t tokens; /* drawn so far, this one included */
    enum walsh_batch_finish finish;
    enum walsh_status status; /* WALSH_OK but with WALSH_FINISH_ERROR */
    const char *message;      /* of the error, until the next call on the batch; NULL without one */
};
/* One step. events [capacity]: room for max_rows, less is WALSH_E_ARGUMENT and nothing is done. *count: how
 * many were written, one for each request that drew a token or failed, and none twice. 0 and WALSH_OK:
 * prompts were read, or nothing is there to do (walsh_batch_get_metrics tells). Where a request fails (logits
 * that are not numbers, no memory for its cache) it alone ends. WALSH_E_ABORTED by the context's hook: no
 * token was drawn, and the next step goes on where this one stopped. */
WALSH_API enum walsh_status walsh_batch_step(struct walsh_batch *batch, struct walsh_batch_event *events,
                                             size_t capacity, size_t *count, struct walsh_error *err);
/* [vocab] logits that the request's token of the last step was drawn from, as the model gave them: for
 * log-probabilities. NULL where that step drew none. Valid until the next call on the batch. */
WALSH_API const float *walsh_batch_logits(const struct walsh_batch *batch, uint64_t id);

enum walsh_batch_state {
    WALSH_REQUEST_QUEUED = 0,
    WALSH_REQUEST_PREFILLING, /* its prompt is being read */
    WALSH_REQUEST_DECODING,
    WALSH_REQUEST_ENDED /* in the last step: forgotten by the next */
};
struct walsh_batch_request_info {
    size_t struct_size;
    enum walsh_batch_state state;
    uint32_t prompt_tokens, prompt_read; /* of its prompt: all, and those in the cache */
    uint32_t tokens, max_tokens;         /* drawn, and at most */
    uint64_t kv_tokens;                  /* that it takes, or will take, of the batch's */
    uint32_t queue_position;             /* requests that wait before it */
    uint32_t prefix_tokens;              /* of its prompt, taken over from the prefix store */
};
/* false: none of that id waits, runs or has ended in the last step. */
WALSH_API bool walsh_batch_get_request(const struct walsh_batch *batch, uint64_t id,
                                       struct walsh_batch_request_info *info);

struct walsh_batch_metrics {
    size_t struct_size;
    uint32_t queued, prefilling, decoding; /* requests now; all 0: the batch is idle */
    uint32_t max_rows, max_queued;
    uint64_t kv_tokens_used, kv_tokens; /* taken by those that run, and in all */
    uint64_t kv_bytes;                  /* that their caches hold now */
    /* since the batch was opened */
    uint64_t submitted, finished, failed, cancelled; /* requests */
    uint64_t prompt_tokens, generated_tokens;
    uint64_t prefix_tokens;           /* of prompt_tokens, taken over from the prefix store */
    uint64_t steps;                   /* that had something to do */
    uint64_t kv_pages_used, kv_pages; /* kv_tokens_used and kv_tokens in pages of cache */
    uint64_t prefix_hits;             /* requests that took something over from the prefix store */
};
/* Fills *metrics as far as its struct_size goes, which the caller sets. */
WALSH_API void walsh_batch_get_metrics(const struct walsh_batch *batch, struct walsh_batch_metrics *metrics);

/* --------------------------------------------------------------------------------------------- evaluation */

struct walsh_eval_options {
    size_t struct_size;
    uint32_t context; /* tokens per chunk; 0: the smaller of 2048 and the model's maximum */
    struct walsh_kv_options kv;
    uint64_t max_tokens;                      /* 0: all */
    const struct walsh_model *reference;      /* adds kl and top1_agreement; same tokenizer and vocabulary */
    const struct walsh_adapter_use *adapters; /* of the model, not of the reference */
    size_t adapter_count;
};
#define WALSH_EVAL_OPTIONS                                                                                   \
    {                                                                                                        \
        .struct_size = sizeof(struct walsh_eval_options), .kv = WALSH_KV_OPTIONS                             \
    }
struct walsh_eval_result {
    size_t struct_size;
    double nll;       /* mean negative log-likelihood of the scored tokens, nats */
    double ppl;       /* exp(nll) */
    double ppl_error; /* one standard error of ppl, from the scored tokens' nll */
    uint64_t tokens;  /* scored */
    uint32_t context;
    double seconds;
    bool has_reference;
    double kl;             /* mean KL(reference || model), nats */
    double top1_agreement; /* share of positions with equal argmax */
};
/* The PPL protocol: the whole text is encoded once without special tokens and cut into non-overlapping chunks
 * of `context` (the tail dropped); tokens 2..n of each chunk are scored. WALSH_E_NOT_FOUND: no tokenizer;
 * WALSH_E_FORMAT: no UTF-8, a text shorter than one chunk, a reference of another vocabulary; WALSH_E_ARGUMENT: a
 * context below 2, an id beyond the vocabulary; WALSH_E_INTERNAL: logits that are no numbers; WALSH_E_ABORTED. */
WALSH_API enum walsh_status walsh_eval_text(const struct walsh_model *model, const char *text, size_t size,
                                            const struct walsh_eval_options *options,
                                            struct walsh_eval_result *result, struct walsh_error *err);
/* The same of ids [count] that the caller encoded. */
WALSH_API enum walsh_status walsh_eval_ids(const struct walsh_model *model, const int32_t *ids, size_t count,
                                           const struct walsh_eval_options *options,
                                           struct walsh_eval_result *result, struct walsh_error *err);

/* ------------------------------------------------------------------------------------------------
 * measurements */

/* Operations/s, 2 per multiply-add; 0: there is no such instruction, or it was not measured. */
struct walsh_bench_rates {
    double fma_f32, dot_bf16, dot_i8;
};
/* Measured in this process. Bandwidths in bytes/s. */
struct walsh_bench_ceilings {
    double read_bandwidth; /* from DRAM, by all threads of the context; of a device: from its memory */
    double copy_bandwidth; /* of a device, bytes read and written; 0: the CPU */
    struct walsh_bench_rates one, all; /* of one thread, of all threads at once; 0 of a device */
};
struct walsh_bench_row {
    const char *kernel, *implementation;
    char size[96];            /* "4096x4096, 1 row" */
    double seconds;           /* median of one call */
    double bytes, operations; /* of one call */
    double ratio;             /* reference implementation's seconds / seconds; of a device: those of the row
                               * that it stands beside (f16 caches of packed ones), 0: none */
    double roofline;          /* share of the binding ceiling, 0..1 */
};
/* The ceilings alone: a second of work. It fails where memory is short or the device does. */
WALSH_API enum walsh_status walsh_bench_measure(struct walsh_context *context,
                                                struct walsh_bench_ceilings *ceilings,
                                                struct walsh_error *err);
/* Run the kernels whose name contains `pattern` (NULL: all); one callback per row. Of a context with a
 * device: that device's, against its bandwidths of reading and copying; ceilings of arithmetic are 0 there.
 */
WALSH_API enum walsh_status walsh_bench_kernels(struct walsh_context *context, const char *pattern,
                                                void (*row)(void *user, const struct walsh_bench_row *row),
                                                void *user, struct walsh_bench_ceilings *ceilings,
                                                struct walsh_error *err);

#ifdef __cplusplus
}
#endif

#include "walsh_jobs.h"

#endif
