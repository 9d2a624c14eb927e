#!/usr/bin/env python3
"""Write tests/fixtures/peft: small LoRA adapters in PEFT's layout, and the dense updates that they stand for.

Each folder holds adapter_config.json, adapter_model.safetensors and expected.safetensors: for every adapted linear of the
model below the tensor MODULE = scale * B A in float32, computed in float64. patterns/ holds a configuration and, by Python's
own re module, what it says of many module names. Needs numpy only; the output does not change from run to run.

Usage: tools/peft_fixtures.py [DIRECTORY]
"""
import json
import math
import os
import re
import struct
import sys

import numpy

HIDDEN, QUERY, KEY, INTER, EXPERT_INTER, EXPERTS, VOCAB = 24, 40, 16, 36, 20, 3, 50

DEFAULTS = {
    "alora_invocation_tokens": None, "alpha_pattern": {}, "arrow_config": None, "auto_mapping": None,
    "base_model_name_or_path": "tiny", "bias": "none", "corda_config": None, "ensure_weight_tying": False,
    "eva_config": None, "exclude_modules": None, "fan_in_fan_out": False, "inference_mode": True,
    "init_lora_weights": True, "kasa_config": None, "layer_replication": None, "layers_pattern": None,
    "layers_to_transform": None, "loftq_config": {}, "lora_alpha": 8, "lora_bias": False, "lora_dropout": 0.0,
    "lora_ga_config": None, "megatron_config": None, "megatron_core": "megatron.core", "modules_to_save": None,
    "monteclora_config": None, "peft_type": "LORA", "peft_version": "0.21.0", "qalora_group_size": 16, "r": 4,
    "rank_pattern": {}, "revision": None, "target_modules": None, "target_parameters": None, "task_type": "CAUSAL_LM",
    "trainable_token_indices": None, "use_bdlora": None, "use_dora": False, "use_qalora": False, "use_rslora": False,
    "velora_config": None,
}


def linears():
    """name -> (in, out) of a model with a dense layer 0 and a layer 1 of experts."""
    found = {}
    for layer in range(2):
        base = f"model.layers.{layer}"
        found[f"{base}.self_attn.q_proj"] = (HIDDEN, QUERY)
        found[f"{base}.self_attn.k_proj"] = (HIDDEN, KEY)
        found[f"{base}.self_attn.v_proj"] = (HIDDEN, KEY)
        found[f"{base}.self_attn.o_proj"] = (QUERY, HIDDEN)
        if layer == 0:
            found[f"{base}.mlp.gate_proj"] = (HIDDEN, INTER)
            found[f"{base}.mlp.up_proj"] = (HIDDEN, INTER)
            found[f"{base}.mlp.down_proj"] = (INTER, HIDDEN)
            continue
        found[f"{base}.mlp.gate"] = (HIDDEN, EXPERTS)
        for expert in range(EXPERTS):
            found[f"{base}.mlp.experts.{expert}.gate_proj"] = (HIDDEN, EXPERT_INTER)
            found[f"{base}.mlp.experts.{expert}.up_proj"] = (HIDDEN, EXPERT_INTER)
            found[f"{base}.mlp.experts.{expert}.down_proj"] = (EXPERT_INTER, HIDDEN)
    found["lm_head"] = (HIDDEN, VOCAB)
    return found


def override(table, name, default):
    """PEFT's rule for rank_pattern and alpha_pattern."""
    for pattern, value in table.items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default


def rank_and_scale(config, name):
    rank = override(config["rank_pattern"], name, config["r"])
    alpha = override(config["alpha_pattern"], name, config["lora_alpha"])
    return rank, alpha / (math.sqrt(rank) if config["use_rslora"] else rank)


def selects(selector, name):
    if selector is None:
        return False
    if isinstance(selector, str):
        return re.fullmatch(selector, name) is not None
    return any(name == entry or name.endswith("." + entry) for entry in selector)


def targeted(config, name):
    if selects(config["exclude_modules"], name):
        return False
    if config["target_modules"] == "all-linear":
        return name != "lm_head"
    return selects(config["target_modules"], name)


def encode(values, dtype):
    """Bytes of a float32 array in a storage type, and the float64 values that they stand for."""
    values = values.astype("<f4")
    if dtype == "F32":
        return values.tobytes(), values.astype(numpy.float64)
    if dtype == "F16":
        half = values.astype("<f2")
        return half.tobytes(), half.astype(numpy.float64)
    bits = (values.view("<u4") + 0x8000) >> 16
    return bits.astype("<u2").tobytes(), (bits << 16).astype("<u4").view("<f4").astype(numpy.float64)


def write_safetensors(path, tensors):
    """tensors: name -> (dtype, shape, bytes)"""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))


def write_config(folder, changes):
    config = dict(DEFAULTS, **changes)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "adapter_config.json"), "w") as file:
        json.dump(config, file, indent=2)
        file.write("\n")
    return config


def write_adapter(folder, seed, dtype, changes, skip=()):
    config = write_config(folder, changes)
    random = numpy.random.default_rng(seed)
    tensors, expected = {}, {}

    def draw(key, shape):
        data, values = encode(random.standard_normal(shape), dtype)
        tensors["base_model.model." + key] = (dtype, shape, data)
        return values

    for name, (inputs, outputs) in linears().items():
        if not targeted(config, name) or name in skip:
            continue
        rank, scale = rank_and_scale(config, name)
        a, b = draw(name + ".lora_A.weight", (rank, inputs)), draw(name + ".lora_B.weight", (outputs, rank))
        expected[name] = scale * (b @ a)

    experts = "model.layers.1.mlp.experts"
    stacks = [(f"{experts}.gate_up_proj", HIDDEN, 2 * EXPERT_INTER), (f"{experts}.down_proj", EXPERT_INTER, HIDDEN)]
    stacks = [stack for stack in stacks if selects(config["target_parameters"], stack[0])]
    for place, (name, inputs, outputs) in enumerate(stacks):
        key = experts + ".base_layer" * (len(stacks) - 1 - place)
        rank, scale = rank_and_scale(config, name)
        a = draw(key + ".lora_A.weight", (EXPERTS * rank, inputs)).reshape(EXPERTS, rank, inputs)
        b = draw(key + ".lora_B.weight", (outputs, rank * EXPERTS)).reshape(outputs, rank, EXPERTS)
        delta = scale * numpy.einsum("ore,eri->eoi", b, a)
        for expert in range(EXPERTS):
            if name.endswith("down_proj"):
                expected[f"{experts}.{expert}.down_proj"] = delta[expert]
            else:
                expected[f"{experts}.{expert}.gate_proj"] = delta[expert, :EXPERT_INTER]
                expected[f"{experts}.{expert}.up_proj"] = delta[expert, EXPERT_INTER:]

    write_safetensors(os.path.join(folder, "adapter_model.safetensors"), tensors)
    write_safetensors(os.path.join(folder, "expected.safetensors"), {
        name: ("F32", delta.shape, delta.astype("<f4").tobytes()) for name, delta in expected.items()})


def write_patterns(folder):
    config = write_config(folder, {
        "use_rslora": True,
        "target_modules": r"model\.layers\.(?P<layer>\d+)\.(?:self_attn\.[qkv]_proj|mlp\.(gate|up)_proj)",
        "exclude_modules": ["layers.1.self_attn.v_proj", "p_proj", "gate_proj"],
        "rank_pattern": {
            "q_proj": 1, r"layers\.\d\.self_attn\.k_proj": 2, "^model.layers.0.mlp.up_proj": 3, "elf_attn.v_proj": 4, "v.proj": 14,
            "down_proj|o_proj": 5, r"mlp\.experts\.[0-2]\..*_proj$": 6, "mlp.gate": 7, "mlp": 9, "(?i:LM_HEAD)": 10,
            "model.layers.0": 11, "layersX0.mlp.gate_proj": 12, r"(?=model)model\.layers\.0\.mlp\.gate_proj": 13},
        "alpha_pattern": {"layers.1.*": 2.5, ".*": 3},
    })
    names = list(linears()) + ["q_proj", "model.layers.10.self_attn.k_proj", "xq_proj", "model.layers.0.mlp", "self_attn.v_proj"]
    rows = []
    for name in names:
        rank, scale = rank_and_scale(config, name)
        rows.append({"name": name, "rank": rank, "scale": scale, "targeted": targeted(config, name)})
    with open(os.path.join(folder, "expected.json"), "w") as file:
        json.dump(rows, file, indent=1)
        file.write("\n")


def main():
    root = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(__file__), "../tests/fixtures/peft")
    write_adapter(os.path.join(root, "names"), 1, "F32", {
        "target_modules": ["q_proj", "mlp.down_proj", "gate"],
        "rank_pattern": {"layers.0.self_attn.q_proj": 3}, "alpha_pattern": {r"^model\.layers\.1\..*q_proj": 6.5}})
    write_adapter(os.path.join(root, "regex"), 2, "F16", {
        "target_modules": r".*layers\.\d+\.(self_attn\.(k|v)_proj|mlp\.experts\.[02]\.up_proj)",
        "use_rslora": True, "rank_pattern": {"self_attn.(k|v)_proj": 5}})
    write_adapter(os.path.join(root, "all-linear"), 3, "BF16", {"target_modules": "all-linear", "r": 1, "lora_alpha": 2},
                  skip=("model.layers.0.mlp.up_proj",))
    write_adapter(os.path.join(root, "experts"), 4, "BF16", {
        "target_modules": ["o_proj"], "target_parameters": ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"],
        "r": 2, "rank_pattern": {"experts.down_proj": 3}})
    write_adapter(os.path.join(root, "experts-down"), 5, "F32", {
        "target_modules": [], "target_parameters": ["experts.down_proj"], "r": 2})
    write_patterns(os.path.join(root, "patterns"))


if __name__ == "__main__":
    main()
