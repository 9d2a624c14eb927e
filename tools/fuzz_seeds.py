#!/usr/bin/env python3
"""Seeds for the fuzz targets of tests/fuzz, from the fixtures of the tests and from descriptions of the layouts.

    tools/fuzz_seeds.py DIRECTORY        writes DIRECTORY/TARGET/NAME, as tests/fuzz/corpus has it

The seeds of the model and adapter targets name tensors by lines "NAME DTYPE DIMENSIONS" (tests/fuzz/fuzz_files.h). What a
long run found beyond them is added to the committed corpora by libFuzzer's -merge=1. No packages needed.
"""
import json
import os
import struct
import sys

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
FIXTURES = os.path.join(ROOT, "tests", "fixtures")
SIZES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2}
DROPPED = {"transformers_version", "use_cache", "initializer_range", "attention_dropout", "pad_token_id",
           "router_jitter_noise", "router_aux_loss_coef", "output_router_logits", "resid_pdrop", "embd_pdrop",
           "pretraining_tp", "use_bidirectional_attention"}

out = sys.argv[1] if len(sys.argv) == 2 else sys.exit(__doc__)


def write(target, name, data):
    directory = os.path.join(out, target)
    os.makedirs(directory, exist_ok=True)
    with open(os.path.join(directory, name), "wb") as f:
        f.write(data if isinstance(data, bytes) else data.encode())


def fixture(*path):
    with open(os.path.join(FIXTURES, *path), "rb") as f:
        return f.read()


def compact(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def tensors_of(data):
    """[(name, dtype, shape)] of a safetensors file, as it lies there."""
    length, = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + length])
    rows = [(v["data_offsets"][0], k, v["dtype"], v["shape"]) for k, v in header.items() if k != "__metadata__"]
    return [row[1:] for row in sorted(rows)]


def lines(tensors):
    text = "\n".join(" ".join([n, d, *map(str, s)]) for n, d, s in tensors)
    return text.replace("decoder.transformer.layers.0.", "%").replace("model.layers.0.", "@")


def container(config, tensors, data=b""):
    return compact(config).encode() + b"\0" + lines(tensors).encode() + b"\0" + data


# --- raw files

def safetensors_file(header, data):
    text = header if isinstance(header, bytes) else compact(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def raw_safetensors():
    def entry(dtype, shape, begin, end):
        return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    write("safetensors", "empty", safetensors_file({}, b""))
    write("safetensors", "one", safetensors_file({"a": entry("F32", [2], 0, 8)}, bytes(8)))
    write("safetensors", "scalar", safetensors_file({"a": entry("BF16", [], 0, 2), "b": entry("I64", [0, 3], 2, 2)}, bytes(2)))
    write("safetensors", "metadata", safetensors_file({"__metadata__": {"format": "pt", "x": ""}, "w": entry("U8", [2, 3], 0, 6)}, bytes(6)))
    names = ["BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "F64", "I64", "U64"]
    header, at = {}, 0
    for i, name in enumerate(names):
        size = 1 if i < 6 else 2 if i < 10 else 4 if i < 13 else 8
        header[name.lower()] = entry(name, [1], at, at + size)
        at += size
    write("safetensors", "dtypes", safetensors_file(header, bytes(at)))
    write("safetensors", "padded", safetensors_file(b'{"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1],"data_offsets":[0,1]}}   ', b"x"))
    write("safetensors", "overlap", safetensors_file({"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 2, 6)}, bytes(6)))
    write("safetensors", "huge", safetensors_file({"a": entry("F64", [4294967296, 4294967296], 0, 8)}, bytes(8)))


def raw_configs():
    golden = os.path.join(FIXTURES, "golden")
    quantized = {
        "glq": {"quant_method": "glq", "codebook": "e8p", "bpw": 2.0, "block_diagonal": True},
        "walsh": {"quant_method": "walsh", "version": 1, "codebook": "mxfp4", "rotation": "overlap", "tensor_parallel": 2},
        "compressed": {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "config_groups": {}},
        "modelopt": {"quant_method": "modelopt", "quant_algo": "NVFP4", "exclude_modules": ["lm_head"]},
        "deepseek": {"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3"}}
    base = None
    for name in sorted(os.listdir(golden)):
        path = os.path.join(golden, name, "config.json")
        if not os.path.exists(path) or name == "tiny-lalamo":  # lalamo() has smaller ones
            continue
        config = {k: v for k, v in json.loads(fixture("golden", name, "config.json")).items() if k not in DROPPED}
        write("config", name, compact(config))
        if name == "tiny-llama2":
            base = config
    for name, section in quantized.items():
        write("config", name, compact({**base, "quantization_config": section}))
    old = dict(base, rope_theta=500000.0, torch_dtype="float16", eos_token_id=[1, 2],
               rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "attention_factor": 1.2})
    del old["rope_parameters"]
    write("config", "old_rope", compact(old))
    long = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    write("config", "longrope", compact(dict(old, architectures=["Phi3ForCausalLM"], rope_scaling=long, original_max_position_embeddings=64)))
    write("generation_config", "full", compact({"do_sample": True, "temperature": 0.7, "top_k": 50, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.1, "bos_token_id": 1, "eos_token_id": [2, 3]}))
    write("generation_config", "one", '{"eos_token_id": 0}')
    write("generation_config", "null", '{"temperature": null, "top_p": 1, "bos_token_id": null}')
    write("index", "whole", '{"metadata":{"total_size":11},"weight_map":{"a":"1.safetensors","b":"1.safetensors","c":"2.safetensors"}}')
    write("index", "one", '{"weight_map":{"a":"1.safetensors","b":"1.safetensors"}}')
    write("index", "outside", '{"weight_map":{"a":"../1.safetensors"}}')
    write("index", "wrong", '{"weight_map":{"a":"2.safetensors","b":"1.safetensors","c":"2.safetensors"}}')


# --- tokenizers

def small_tokenizer(bytes_of_the_alphabet, merges):
    """tokenizer.json of byte level with the given characters only."""
    vocab = {c: i for i, c in enumerate(bytes_of_the_alphabet)}
    for a, b in merges:
        vocab.setdefault(a + b, len(vocab))
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": level, "post_processor": None,
            "decoder": {"type": "ByteLevel"}, "model": {"type": "BPE", "vocab": vocab, "merges": [list(m) for m in merges]}}


def tokenizers():
    alphabet = [c for c in "abcdehlnorstuw,.!012\u0120\u010a\u00c3\u00b6"]
    plain = small_tokenizer(alphabet, [("h", "e"), ("l", "l"), ("he", "ll"), ("\u0120", "w"), ("o", "r")])
    text = "hello, w\u00f6rld! 0121"
    variants = json.loads(fixture("text", "variants.json"))
    families = json.loads(fixture("text", "families.json"))["variants"]

    def put(name, tokenizer, config=None, words=text):
        write("tokenizer", name, compact(tokenizer).encode() + b"\0" + (compact(config).encode() if config else b"") + b"\0" + words.encode())

    put("plain", plain, {"bos_token": "a", "eos_token": {"content": "b"}, "add_bos_token": True, "chat_template": "{{ messages }}"})
    for name in ("llama3", "qwen", "gpt2_prefix", "contiguous", "look_around", "merged_next_inverted", "digits", "lines"):
        members = {k: v for k, v in variants[name].items() if k not in ("model", "added_tokens", "merges_as_text", "vocab")}
        put(name, {**plain, **members})
    put("template", {**plain, "added_tokens": [{"id": 40, "content": "<s>", "special": True, "lstrip": True, "rstrip": False, "normalized": False, "single_word": False},
                                               {"id": 41, "content": "lo w", "special": False, "normalized": True, "single_word": True}],
                     "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                                        "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [40], "tokens": ["<s>"]}}}}, {"bos_token": "<s>"}, "<s>hello lo w")
    pieces = ["<unk>", "<s>", "</s>", *["<0x%02X>" % b for b in (0x0A, 0x20, 0xC3, 0xB6, 0xFF)], "\u2581", "h", "e", "l", "o", "w", "r", "d", "\u2581h", "he", "ll", "\u2581hello"]
    bpe = {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "vocab": {p: i for i, p in enumerate(pieces)},
           "merges": ["\u2581 h", "h e", "l l"]}
    unigram = {"type": "Unigram", "unk_id": 0, "byte_fallback": True, "vocab": [[p, -1.5 - i / 7] for i, p in enumerate(pieces)]}
    special = [{"id": i, "content": pieces[i], "special": True, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False} for i in range(3)]
    for name, variant in families.items():
        members = {k: v for k, v in variant.items() if k not in ("base", "model", "without", "added_tokens", "post_processor")}
        model = dict(unigram if variant["base"] == "unigram" else bpe)
        if "merges" in members:
            del members["merges"]
        put("family_" + name, {"version": "1.0", "added_tokens": special, **members, "model": model}, None, "hello w\u00f6rld <s>\n")
    for i in range(0, 44, 3):
        write("encode", "text_%02d" % i, bytes([i, i % 4]) + "Hello, w\u00f6rld! 123 <s>don't\u3000\u4e2d\u6587\n a\u0301\U0001f642".encode()[: 20 + i])
    write("encode", "ids", bytes([0, 4]) + bytes(range(1, 60)))
    write("encode", "ids_fallback", bytes([31, 4, 3, 0, 5, 0, 6, 0, 8, 0, 200, 1]))
    write("encode", "broken", bytes([30, 2, 0xC3, 0x28, 0xE2, 0x82, 0xF0, 0x9F, 0xED, 0xA0, 0x80, 0x20, 0x20]))


# --- models

HIDDEN, INNER, VOCAB, HEADS = 64, 64, 8, 2
LLAMA = {"architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": 1,
         "num_attention_heads": HEADS, "vocab_size": VOCAB, "max_position_embeddings": 16, "tie_word_embeddings": True}
LINEARS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]


def llama(layout, first=(), n=HIDDEN):
    """The tensors of a Llama of one layer whose linears (n x n) are stored as layout(module) says."""
    rest = [("model.embed_tokens.weight", "BF16", [VOCAB, n]), ("model.norm.weight", "BF16", [n]),
            ("model.layers.0.input_layernorm.weight", "BF16", [n]), ("model.layers.0.post_attention_layernorm.weight", "BF16", [n])]
    tensors = [t for name in LINEARS for t in layout("model.layers.0." + name)]
    early = [t for t in tensors if t[0].endswith(tuple(first))] if first else []
    return early + [t for t in tensors if t not in early] + rest


def glq(stages, n=HIDDEN, vectors=()):
    def layout(m):
        yield m + ".Qidxs_e8p", "I64", [n // 16, n // 64, 8, 4]
        yield m + ".SU", "F16", [*vectors, n]
        yield m + ".SV", "F16", [*vectors, n]
        yield m + ".Wscale", "F32", []
        for k, kind in enumerate(stages):
            yield "%s.Qidxs%d_%s" % (m, k + 2, kind), "I64", [n // 16, n // 64, 8, 4] if kind == "e8p" else [n, n // 64]
            yield "%s.inv_resid_scale%s" % (m, k + 1 if k else ""), "F32", []
    return layout


def stored(**suffixes):
    """A layout from the dtypes and shapes behind the module's name; '__' stands for a '.'."""
    return lambda m: [(m + "." + s, d, list(shape)) for s, (d, *shape) in suffixes.items()]


def models():
    def put(corpus, name, config, tensors, data=b""):
        write(corpus, name, container(config, tensors, data))

    def llama_with(corpus, name, section, layout, first=(), data=b"", **more):
        put(corpus, name, {**LLAMA, **more, "quantization_config": section}, llama(layout, first), data)

    put("dense", "llama", LLAMA, llama(stored(weight=("BF16", HIDDEN, HIDDEN))))
    put("dense", "llama_f32", {**LLAMA, "attention_bias": True}, llama(lambda m: [(m + ".weight", "F32", [64, 64])] + ([(m + ".bias", "F16", [64])] if "attn" in m else [])))
    for name in ("qwen2", "phi3", "gemma2", "lfm2", "mixtral", "smollm3", "gpt-oss", "qwen3-moe", "gemma3"):
        config = {k: v for k, v in json.loads(fixture("golden", "tiny-" + name, "config.json")).items() if k not in DROPPED}
        keep = 2 if name in ("lfm2",) else 1
        config["num_hidden_layers"] = keep
        for key in ("layer_types", "no_rope_layers"):
            if config.get(key):
                config[key] = config[key][:keep]
        config["vocab_size"] = VOCAB
        most = 1000
        for experts in ("num_local_experts", "num_experts"):
            if config.get(experts):
                most = config[experts] = 2
        tensors = []
        for n, d, s in tensors_of(fixture("golden", "tiny-" + name, "model.safetensors")):
            parts = n.split(".")
            if "layers" in parts and int(parts[2]) >= keep:
                continue
            if "experts" in parts and parts[parts.index("experts") + 1].isdigit() and int(parts[parts.index("experts") + 1]) >= most:
                continue
            if most < 1000 and (("experts" in parts and not parts[parts.index("experts") + 1].isdigit()) or "router" in parts or parts[-2] == "gate"):
                s = [most] + s[1:]
            tensors.append((n, d, [VOCAB] + s[1:] if s[0] == 256 and ("embed" in n or "lm_head" in n) else s))
        put("dense", name.replace("-", "_"), config, tensors)

    e8p = {"quant_method": "glq", "codebook": "e8p", "bpw": 2.0, "block_diagonal": True}
    llama_with("glq", "two", e8p, glq([]))
    llama_with("glq", "three", e8p, glq(["e81b"]))
    llama_with("glq", "four", e8p, glq(["e8p"]))
    llama_with("glq", "eight", e8p, glq(["e8p", "e8p", "e81b"]))
    llama_with("glq", "legacy", {**e8p, "block_diagonal": False}, glq([]))
    ours = {"quant_method": "walsh", "version": 1, "codebook": "e8p", "rotation": "overlap", "bpw": 2}
    put("glq", "overlap", {**LLAMA, "hidden_size": 192, "intermediate_size": 192, "quantization_config": ours}, llama(glq([], 192, (2,)), n=192))
    put("glq", "parts", {**LLAMA, "hidden_size": 128, "intermediate_size": 128, "quantization_config": {**ours, "rotation": "block", "tensor_parallel": 2}}, llama(glq([], 128), n=128))

    packed = {"quant_method": "compressed-tensors"}
    half, n = HIDDEN // 2, HIDDEN
    shape = struct.pack("<2q", n, n)
    llama_with("compressed", "mxfp4", packed, stored(weight_packed=("U8", n, half), weight_scale=("U8", n, 2)))
    llama_with("compressed", "nvfp4", packed, stored(weight_packed=("U8", n, half), weight_scale=("F8_E4M3", n, 4), weight_global_scale=("F32", 1), input_global_scale=("F32", 1)))
    llama_with("compressed", "int4", packed, stored(weight_packed=("I32", n, 8), weight_scale=("BF16", n, 2), weight_shape=("I64", 2)), (".weight_shape",), shape * 7)
    llama_with("compressed", "int4_zeros", packed, stored(weight_packed=("I32", n, 8), weight_scale=("F16", n, 2), weight_zero_point=("I32", 8, 2), weight_shape=("I64", 2)), (".weight_shape",), shape * 7)
    llama_with("compressed", "int8_words", packed, stored(weight_packed=("I32", n, 16), weight_scale=("F32", n, 1)))
    llama_with("compressed", "int8", packed, stored(weight=("I8", n, n), weight_scale=("F32", n, 1), weight_zero_point=("I8", n, 1)))
    llama_with("compressed", "fp8_rows", packed, stored(weight=("F8_E4M3", n, n), weight_scale=("BF16", n, 1)))
    llama_with("compressed", "fp8", packed, stored(weight=("F8_E5M2", n, n), weight_scale=("F32",), input_scale=("F32",)))
    llama_with("compressed", "mxfp8", packed, stored(weight=("F8_E4M3", n, n), weight_scale=("F8_E8M0", n, 2)))
    llama_with("compressed", "rotated", {**ours, "codebook": "mxfp4", "rotation": "block"}, lambda m: [(m + ".weight_packed", "U8", [n, half]), (m + ".weight_scale", "U8", [n, 2]), (m + ".SU", "F16", [n]), (m + ".SV", "F16", [n])])

    llama_with("modelopt", "nvfp4", {"quant_method": "modelopt", "quant_algo": "NVFP4"}, stored(weight=("U8", n, half), weight_scale=("F8_E4M3", n, 4), weight_scale_2=("F32",), input_scale=("F32",)))
    llama_with("modelopt", "nvfp4_one", {"quant_method": "modelopt_fp4"}, stored(weight=("U8", n, half), weight_scale=("F8_E4M3", n, 4), weight_scale_2=("F32", 1)))
    llama_with("modelopt", "fp8", {"quant_method": "modelopt", "quant_algo": "FP8"}, stored(weight=("F8_E4M3", n, n), weight_scale=("F32",), input_scale=("F32",)))

    fp8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    llama_with("deepseek", "inverse", fp8, stored(weight=("F8_E4M3", n, n), weight_scale_inv=("F32", 1, 1)))
    llama_with("deepseek", "bf16", fp8, stored(weight=("F8_E4M3", n, n), weight_scale_inv=("BF16", 1, 1)))
    llama_with("deepseek", "e8m0", fp8, stored(weight=("F8_E4M3", n, n), scale=("F8_E8M0", 1, 1)))
    llama_with("deepseek", "fp4", fp8, stored(weight=("I8", n, half), scale=("F8_E8M0", n, 2)))
    wide = [(a, b, [192 if "mlp" in a and v == 64 and i == (1 if "down" in a else 0) else v for i, v in enumerate(c)])
            for a, b, c in llama(stored(weight=("F8_E4M3", n, n), weight_scale_inv=("F32", 1, 1)))]
    wide = [(a, b, [2 if ("down" in a) == (i == 1) else 1 for i in range(2)] if a.endswith("_inv") and "mlp" in a else c) for a, b, c in wide]
    put("deepseek", "two_blocks", {**LLAMA, "intermediate_size": 192, "quantization_config": fp8}, wide)

    config = {k: v for k, v in json.loads(fixture("golden", "tiny-gpt-oss-mxfp4", "config.json")).items() if k not in DROPPED}
    config.update(num_hidden_layers=1, layer_types=["sliding_attention"], vocab_size=VOCAB, num_local_experts=2)
    tensors = []
    for name, dtype, s in tensors_of(fixture("golden", "tiny-gpt-oss-mxfp4", "model.safetensors")):
        if "layers.1." in name:
            continue
        if "experts" in name or "router" in name:
            s = [2] + s[1:]
        tensors.append((name, dtype, [VOCAB] + s[1:] if s[0] == 256 else s))
    put("gpt_oss", "mxfp4", config, tensors)
    put("gpt_oss", "e8m0", config, [(a, "F8_E8M0" if a.endswith("_scales") else b, c) for a, b, c in tensors])
    plain = {k: v for k, v in config.items() if k != "quantization_config"}
    dense = [(a, b, c) for a, b, c in tensors if not a.endswith(("_blocks", "_scales"))]
    dense += [("model.layers.0.mlp.experts.gate_up_proj", "BF16", [2, 32, 64]), ("model.layers.0.mlp.experts.down_proj", "BF16", [2, 32, 32])]
    put("gpt_oss", "bf16", plain, dense)


# --- lalamo

FULL = {"type": "FullPrecisionSpec"}


def integers(bits, symmetric=False):
    return {"type": "IntSpec", "bits": bits, "group_size": 32, **({"is_symmetric": True} if symmetric else {})}


def hybrid(values, rank=0, block=32, mode="input_output"):
    adapter = {"adapter_spec": {"type": "LowRankSpec", "rank": rank}} if rank else {}
    return {"type": "HybridSpec", "quantization_spec": values, **adapter, "incoherence_block_size": block,
            "incoherence_processing_mode": mode}


def matrix(module, spec, rows, cols, older=False, table=False, dtype="BF16"):
    """The tensors of a matrix as lalamo lays them out, with scales by groups, or by rows as before 0.17 and in tables."""
    mixed = spec["type"] == "HybridSpec"
    values = spec["quantization_spec"] if mixed else spec
    name = module + (".quantized." if mixed else ".")
    if table:
        values = {**values, "layout": "input_output"}
    yield "!" + module, compact({**spec, "quantization_spec": values} if mixed else values), []
    if values["type"] == "FullPrecisionSpec":
        yield name + "weights", dtype, [rows, cols]
    else:
        groups, bits = cols // values["group_size"], values["bits"]
        shape = [rows, groups] if older or table else [groups, rows]
        yield name + "weights", "U8", [rows, cols * bits // 8]
        yield name + "scales", dtype, shape
        if not values.get("is_symmetric"):
            yield name + "zero_points", "U8", [shape[0], -(-shape[1] * bits // 8)]
    if mixed and spec["incoherence_block_size"]:
        if spec["incoherence_processing_mode"] != "output":
            yield module + ".incoherence_signs.input_signs", "SIGNS", [cols]
        if spec["incoherence_processing_mode"] != "input":
            yield module + ".incoherence_signs.output_signs", "SIGNS", [cols if table else rows]
    if mixed and "adapter_spec" in spec:
        rank = spec["adapter_spec"]["rank"]
        yield module + ".adapter.down_projection", dtype, [rank, cols]
        yield module + ".adapter.up_projection", dtype, [rows, rank]


def lalamo():
    n = 32
    norm = {"epsilon": 1e-5}
    rope = {"type": "UnscaledRoPEConfig", "base": 10000.0, "max_sequence_length": 16, "head_dim": n}

    def layer(i, spec, mixer=None, rope=rope, older=False, heads=2, **attention):
        at = "decoder.transformer.layers.%d." % i
        convolves = mixer is not None
        mixer = mixer or {"type": "AttentionConfig", "num_heads": heads, "num_groups": 1, "head_dim": n, **attention}
        config = {"pre_mixer_norm_config": norm, "mixer_config": mixer, "pre_mlp_norm_config": norm, "rope_config": rope,
                  "mlp_config": {"type": "DenseMLPConfig", "activation": {"type": "SiLU"}}}
        first = "mixer.in_projection" if convolves else "mixer.qkv_projection" if older else "mixer.qkvg_projection"
        rows = 3 * n if convolves else (heads + 2) * n
        tensors = [t for name, r, c in ((first, rows, n), ("mixer.out_projection", n, n if convolves else heads * n),
                                        ("mlp.up_projection", 2 * n, n), ("mlp.down_projection", n, n))
                   for t in matrix(at + name + ".weights", spec, r, c, older)]
        tensors += [(at + name + "_norm.scales", "F32", [n]) for name in ("pre_mixer", "pre_mlp")]
        if convolves:
            tensors.append((at + "mixer.conv.weights", "F32", [n, mixer["kernel_size"]]))
        if attention.get("has_qkvg_biases"):
            tensors.append((at + first + ".biases", "F32", [rows]))
        return config, tensors

    def put(name, layers, table, head=None):
        end = "embedding" if head is None else "input_embedding"
        tensors = list(matrix("decoder.embedding." + end, table, VOCAB, n, table=True))
        if head is not None:
            tensors += matrix("decoder.embedding.output_embedding", head, VOCAB, n)
        tensors += [t for _, more in layers for t in more] + [("decoder.transformer.output_norm.scales", "F32", [n])]
        transformer = {"layer_configs": [config for config, _ in layers], "output_norm_config": norm, "model_dim": n, "hidden_dim": n}
        embedding = {"type": "TiedEmbeddingConfig" if head is None else "UntiedEmbeddingConfig"}
        config = {"type": "LanguageModelConfig", "generation_config": {"stop_token_ids": [0]},
                  "decoder_config": {"embedding_config": embedding, "transformer_config": transformer, "vocab_size": VOCAB}}
        tensors.sort(key=lambda t: not t[0].startswith("!"))
        write("lalamo", name, container(config, tensors))
        write("config", "lalamo_" + name, compact(config))

    put("hybrid4", [layer(0, hybrid(integers(4), 2), has_qkvg_biases=True)], FULL, hybrid(integers(8), mode="input"))
    put("hybrid8", [layer(0, hybrid(integers(8, True), mode="input"), sliding_window_size=4)], FULL)
    put("older", [layer(0, hybrid(integers(4), 1), older=True)], FULL, FULL)
    put("dense", [layer(0, hybrid(FULL, 1, block=None))], hybrid(integers(4), mode="output"))
    convolution = {"type": "ShortConvConfig", "kernel_size": 3, "conv_config": {"has_biases": False}}
    put("convolution", [layer(0, integers(8), convolution, None), layer(1, integers(4, True), heads=1)], integers(8))


# --- adapters, and what jobs keep

def adapters():
    models = ["tiny-qwen2", "tiny-phi3", "tiny-mixtral", "tiny-gpt-oss-mxfp4", "tiny-gemma2", "tiny-lfm2", "tiny-qwen3-moe"]
    keep = ("peft_type", "r", "lora_alpha", "target_modules", "bias", "task_type", "rank_pattern", "alpha_pattern", "target_parameters",
            "peft_version", "modules_to_save", "use_rslora", "exclude_modules", "layers_to_transform", "layers_pattern", "base_model_name_or_path", "fan_in_fan_out")

    def put(name, model, config, tensors, f32=False):
        write("adapter", name, bytes([models.index(model) | (0x80 if f32 else 0)]) + container(config, tensors))

    def short(config):
        return {k: v for k, v in config.items() if k in keep and v not in (None, {}, [])}

    for name in ("qwen2", "phi3", "gemma2", "lfm2"):
        config = json.loads(fixture("golden", "tiny-%s-lora" % name, "adapter_config.json"))
        tensors = tensors_of(fixture("golden", "tiny-%s-lora" % name, "adapter_model.safetensors"))
        put(name, "tiny-" + name, short(config), tensors[:10])
    prefix = "base_model.model.model.layers.0."
    simple = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "target_modules": ["q_proj"]}

    def pair(module, a, b, rank=2, dtype="F32"):
        return [(prefix + module + ".lora_A.weight", dtype, [rank, a]), (prefix + module + ".lora_B.weight", dtype, [b, rank])]
    put("one", "tiny-qwen2", simple, pair("self_attn.q_proj", 32, 32, dtype="BF16"), True)
    put("regex", "tiny-qwen2", {**simple, "target_modules": ".*\\.(0|1)\\.self_attn\\.(q|v)_proj", "use_rslora": True}, pair("self_attn.q_proj", 32, 32) + pair("self_attn.v_proj", 32, 16))
    put("patterns", "tiny-qwen2", {**simple, "rank_pattern": {"^model\\.layers\\.0\\..*q_proj": 3}, "alpha_pattern": {"q_proj": 6.5}, "target_modules": "all-linear"}, pair("self_attn.q_proj", 32, 32, 3))
    put("experts", "tiny-mixtral", {**simple, "target_modules": ["w1"]}, pair("block_sparse_moe.experts.0.w1", 32, 24) + pair("block_sparse_moe.experts.3.w1", 32, 24))
    stacked = prefix + "mlp.experts."
    put("stacked", "tiny-gpt-oss-mxfp4", {**simple, "peft_version": "0.19.0", "target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
        [(stacked + "base_layer.lora_A.weight", "F32", [8, 32]), (stacked + "base_layer.lora_B.weight", "F32", [64, 8]),
         (stacked + "lora_A.weight", "F32", [8, 32]), (stacked + "lora_B.weight", "F32", [32, 8])])
    put("fused", "tiny-phi3", {**simple, "target_modules": ["qkv_proj", "gate_up_proj"]}, pair("self_attn.qkv_proj", 32, 64) + pair("mlp.gate_up_proj", 32, 96))


def jobs():
    layer = {"xxh64": "0123456789abcdef", "linears": [{"proxy": 0.03, "seconds": 1.5}, {"proxy": 0.02, "seconds": 1}]}
    write("job", "begun", compact({"job": "fuzz", "copied": False, "layers": []}))
    write("job", "copied", compact({"job": "fuzz", "copied": True, "layers": []}))
    write("job", "layers", compact({"job": "fuzz", "copied": True, "layers": [layer, layer]}))
    write("job", "right", compact({"job": "fuzz", "copied": True, "layers": [{**layer, "xxh64": "34c96acdcadb1bbb"}]}))
    write("job", "other", compact({"job": "other", "copied": True, "layers": []}))
    identity = b"rank 4\nseed 1\n"
    state = "identity U8 14\ncounters U64 5\nbest F64 1\nvalues F32 4\nm F32 4\nv F32 4\nbest_values F32 4\nlog U8 1 64"
    counters = struct.pack("<5Q", 1, 0, 2, 1, 0)
    write("train_state", "good", state.encode() + b"\0" + identity + counters + struct.pack("<d", 2.5))
    write("train_state", "alone", b"!" + state.replace("best_values F32 4\n", "").encode() + b"\0" + identity + counters + struct.pack("<d", 2.5))
    write("train_state", "behind", state.encode() + b"\0" + identity + struct.pack("<5Q", 1, 0, 4, 1, 0) + struct.pack("<d", 2.5))
    write("train_state", "other", state.replace("14", "12").encode() + b"\0" + b"rank 4\nseed " + counters)
    write("train_data", "text", b"\1It was late in the evening, and nobody came.\n")
    write("train_data", "lines", b'\0{"text": "one"}\n{"prompt": "two", "completion": "three"}\n\n')
    write("train_data", "chat", b'\0{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}\n')
    write("prefix", "same", b"=\0\0wals")
    write("prefix", "version", b"=\x08\0\2")
    write("prefix", "seconds", b"=\x60\0\0\0\0\0\0\0\xf0\x7f")
    write("prefix", "short", b"walshkv\0\1\0\0\0\4\0\0\0")


raw_safetensors()
raw_configs()
tokenizers()
models()
lalamo()
adapters()
jobs()
