#!/usr/bin/env python3
"""Make the test fixture tiny-qwen3-moe: a random Qwen3MoeForCausalLM and its reference outputs.

    python3 tools/tiny_qwen3_moe.py tests/fixtures/golden

writes OUT/tiny-qwen3-moe/ (config.json, generation_config.json, tokenizer.json, model.safetensors) and
OUT/tiny-qwen3-moe.safetensors (input_ids, positions, logits, target_logprobs, greedy_ids). The forward pass below is
written from the architecture's description in NumPy float64 and shares nothing with walsh. The model has what the
bookworm models lack: a head of its own, attention biases, llama3 rope scaling, widths that are no multiple of 64.
Needs NumPy only. The seed is the first one for which no choice (a routed expert, a greedy token) hangs by a hair.
"""
import json
import os
import struct
import sys

import numpy as np

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, VOCAB, POSITIONS = 40, 2, 4, 2, 16, 256, 128
EXPERTS, TOP_K, WIDTH, EPSILON = 6, 2, 24, 1e-5
ROPE = {"rope_theta": 1000.0, "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32}
TEXT = "It was a bright cold day in the mountains, and the two of them had walked since the first light. Then: snow."


def bf16(x):
    """float64 -> the nearest bfloat16 (ties to even), as (bits, value)."""
    u = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32).astype(np.uint64)
    bits = ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)
    value = (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return bits, value


def make_weights(seed):
    rng = np.random.default_rng(seed)
    weights = {}

    def matrix(name, out, inner, gain=1.0):
        weights[name + ".weight"] = rng.normal(size=(out, inner)) * gain / np.sqrt(inner)

    def vector(name, n, mean, deviation):
        weights[name] = mean + rng.normal(size=n) * deviation

    matrix("model.embed_tokens", VOCAB, HIDDEN, np.sqrt(HIDDEN))
    matrix("lm_head", VOCAB, HIDDEN, 2.0)
    vector("model.norm.weight", HIDDEN, 1.0, 0.2)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        vector(at + "input_layernorm.weight", HIDDEN, 1.0, 0.2)
        vector(at + "post_attention_layernorm.weight", HIDDEN, 1.0, 0.2)
        for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            matrix(at + f"self_attn.{name}_proj", heads * HEAD_DIM, HIDDEN)
            vector(at + f"self_attn.{name}_proj.bias", heads * HEAD_DIM, 0.0, 0.3)
        matrix(at + "self_attn.o_proj", HIDDEN, HEADS * HEAD_DIM)
        vector(at + "self_attn.o_proj.bias", HIDDEN, 0.0, 0.3)
        vector(at + "self_attn.q_norm.weight", HEAD_DIM, 1.5, 0.3)
        vector(at + "self_attn.k_norm.weight", HEAD_DIM, 1.5, 0.3)
        matrix(at + "mlp.gate", EXPERTS, HIDDEN, 2.0)
        for expert in range(EXPERTS):
            e = at + f"mlp.experts.{expert}."
            matrix(e + "gate_proj", WIDTH, HIDDEN, 1.5)
            matrix(e + "up_proj", WIDTH, HIDDEN, 1.5)
            matrix(e + "down_proj", HIDDEN, WIDTH, 1.5)
    stored = {name: bf16(value) for name, value in weights.items()}
    return {n: b for n, (b, _) in stored.items()}, {n: v for n, (_, v) in stored.items()}


def rope_frequencies():
    inverse = ROPE["rope_theta"] ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    wavelength = 2 * np.pi / inverse
    original, low, high = (ROPE[k] for k in
                           ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"))
    smooth = (original / wavelength - low) / (high - low)
    mixed = (1 - smooth) * inverse / ROPE["factor"] + smooth * inverse
    slow, fast = wavelength > original / low, wavelength < original / high
    assert slow.any() and fast.any() and (~slow & ~fast).any()
    return np.where(slow, inverse / ROPE["factor"], np.where(fast, inverse, mixed))


def rms_norm(x, weight):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON) * weight


def rotate(x):
    """x [tokens][heads][HEAD_DIM], the halves as pairs."""
    angle = np.arange(x.shape[0])[:, None] * rope_frequencies()[None, :]
    cosine, sine = np.cos(angle)[:, None, :], np.sin(angle)[:, None, :]
    a, b = x[..., : HEAD_DIM // 2], x[..., HEAD_DIM // 2:]
    return np.concatenate([a * cosine - b * sine, b * cosine + a * sine], axis=-1)


def attention(w, at, x):
    def project(name, heads):
        y = x @ w[at + f"self_attn.{name}_proj.weight"].T + w[at + f"self_attn.{name}_proj.bias"]
        return y.reshape(len(x), heads, HEAD_DIM)

    q = rotate(rms_norm(project("q", HEADS), w[at + "self_attn.q_norm.weight"]))
    k = rotate(rms_norm(project("k", KV_HEADS), w[at + "self_attn.k_norm.weight"]))
    v = project("v", KV_HEADS)
    out = np.zeros((len(x), HEADS, HEAD_DIM))
    for head in range(HEADS):
        kv = head // (HEADS // KV_HEADS)
        score = q[:, head] @ k[:, kv].T / np.sqrt(HEAD_DIM)
        score[np.triu_indices(len(x), 1)] = -np.inf
        p = np.exp(score - score.max(-1, keepdims=True))
        out[:, head] = p / p.sum(-1, keepdims=True) @ v[:, kv]
    return out.reshape(len(x), -1) @ w[at + "self_attn.o_proj.weight"].T + w[at + "self_attn.o_proj.bias"]


def experts(w, at, x, margins):
    score = x @ w[at + "mlp.gate.weight"].T
    p = np.exp(score - score.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    out = np.zeros_like(x)
    for token in range(len(x)):
        order = np.argsort(-p[token], kind="stable")
        margins.append(p[token, order[TOP_K - 1]] - p[token, order[TOP_K]])
        chosen = order[:TOP_K]
        for expert in chosen:
            e = at + f"mlp.experts.{expert}."
            gate = w[e + "gate_proj.weight"] @ x[token]
            up = w[e + "up_proj.weight"] @ x[token]
            y = w[e + "down_proj.weight"] @ (gate / (1 + np.exp(-gate)) * up)
            out[token] += p[token, expert] / p[token, chosen].sum() * y
    return out


def forward(w, ids, margins):
    x = w["model.embed_tokens.weight"][ids]
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        x = x + attention(w, at, rms_norm(x, w[at + "input_layernorm.weight"]))
        x = x + experts(w, at, rms_norm(x, w[at + "post_attention_layernorm.weight"]), margins)
    return rms_norm(x, w["model.norm.weight"]) @ w["lm_head.weight"].T


def reference(w):
    """The outputs, and the smallest margins of a routed expert (probability) and of a greedy token (logit)."""
    ids = np.frombuffer(TEXT.encode()[:96], dtype=np.uint8).astype(np.int32)
    ids = byte_ids()[ids]
    routes, greedy_margin = [], np.inf
    logits = forward(w, ids, routes)
    best = logits.max(-1, keepdims=True)
    log_p = logits - best - np.log(np.exp(logits - best).sum(-1, keepdims=True))
    greedy = list(ids[:16])
    for _ in range(48):
        last = forward(w, np.array(greedy), routes)[-1]
        second, first = np.argsort(last)[-2:]
        greedy_margin = min(greedy_margin, last[first] - last[second])
        greedy.append(int(first))
    positions = np.array([0, 1, 7, 31, 64, 95], dtype=np.int32)
    outputs = {
        "input_ids": ids.astype(np.int32),
        "positions": positions,
        "logits": logits[positions].astype(np.float32),
        "target_logprobs": log_p[np.arange(95), ids[1:]].astype(np.float32),
        "greedy_ids": np.array(greedy, dtype=np.int32),
    }
    return outputs, min(routes), greedy_margin


def byte_alphabet():
    """GPT-2's printable stand-ins for the 256 bytes, in the order of their ids: printable bytes first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return [(b, chr(b)) for b in printable] + [(b, chr(256 + i)) for i, b in enumerate(others)]


def byte_ids():
    ids = np.zeros(256, dtype=np.int32)
    for i, (byte, _) in enumerate(byte_alphabet()):
        ids[byte] = i
    return ids


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=1, ensure_ascii=False)
        f.write("\n")


def write_safetensors(path, tensors):
    names = {"uint16": "BF16", "float32": "F32", "int32": "I32"}
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name in sorted(tensors):
        raw = np.ascontiguousarray(tensors[name])
        header[name] = {"dtype": names[str(raw.dtype)], "shape": list(raw.shape),
                        "data_offsets": [len(data), len(data) + raw.nbytes]}
        data += raw.tobytes()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)


def write_model(directory, bits):
    os.makedirs(directory, exist_ok=True)
    write_json(f"{directory}/config.json", {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "dtype": "bfloat16",
        "attention_bias": True, "bos_token_id": None, "eos_token_id": 0, "head_dim": HEAD_DIM, "hidden_act": "silu",
        "hidden_size": HIDDEN, "intermediate_size": 64, "max_position_embeddings": POSITIONS, "mlp_only_layers": [],
        "decoder_sparse_step": 1, "moe_intermediate_size": WIDTH, "norm_topk_prob": True,
        "num_attention_heads": HEADS, "num_experts": EXPERTS, "num_experts_per_tok": TOP_K,
        "num_hidden_layers": LAYERS, "num_key_value_heads": KV_HEADS, "rms_norm_eps": EPSILON,
        "rope_parameters": ROPE, "tie_word_embeddings": False, "vocab_size": VOCAB})
    write_json(f"{directory}/generation_config.json", {"do_sample": False, "eos_token_id": 0})
    write_json(f"{directory}/tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {c: i for i, (_, c) in enumerate(byte_alphabet())}, "merges": []}})
    write_safetensors(f"{directory}/model.safetensors", bits)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for seed in range(1000):
        bits, values = make_weights(seed)
        outputs, route_margin, greedy_margin = reference(values)
        if route_margin > 1e-4 and greedy_margin > 2e-2:
            break
    else:
        sys.exit("no seed has clear choices")
    print(f"seed {seed}: smallest margin of a route {route_margin:.2e}, of a greedy token {greedy_margin:.2e}")
    write_model(f"{sys.argv[1]}/tiny-qwen3-moe", bits)
    write_safetensors(f"{sys.argv[1]}/tiny-qwen3-moe.safetensors", outputs)


if __name__ == "__main__":
    main()
