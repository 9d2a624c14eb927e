#!/usr/bin/env python3
"""Make the test fixtures tiny-NAME: a random model of each architecture and the outputs of transformers for it.

    python3 -m venv V && V/bin/pip install torch==2.15.0 transformers==5.23.0 peft==0.21.2
    V/bin/python3 tools/tiny_architectures.py tests/fixtures/golden [NAME ...]

writes OUT/tiny-NAME/ (config.json and model.safetensors, as save_pretrained writes them) and OUT/tiny-NAME.safetensors
(input_ids, positions, logits, target_logprobs, greedy_ids), computed in fp32 from the stored bf16 weights. Norms and biases
are random too, scores are large, and prompts are several windows long, so that nothing that is left out goes unseen. The
seed is the first one for which no choice (a routed expert, a greedy token) hangs by a hair. The tokenizer is that of
OUT/tiny-qwen3-moe. Some have a random LoRA of every linear too, OUT/tiny-NAME-lora, and the outputs with it (adapter_*).
"""
import json
import os
import shutil
import sys

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

PROMPT, TOKENS = 16, 64
SHORT = 32  # tokens of a sequence that uses longrope's short factors
POSITIONS = [0, 1, 7, 8, 20, 41, 63]
TEXT = "It was a bright cold day in the mountains, and the two of them had walked since the first light."
SHAPE = dict(vocab_size=256, hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=128, bos_token_id=None, eos_token_id=0, pad_token_id=None)
LLAMA3 = {"rope_theta": 1000.0, "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}
YARN = {"rope_theta": 1000.0, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32,
        "beta_fast": 4.0, "beta_slow": 1.0}

MODELS = {
    "llama2": ("LlamaConfig", dict(num_hidden_layers=2, num_key_value_heads=4, rms_norm_eps=1e-5)),
    "llama3": ("LlamaConfig", dict(num_hidden_layers=2, head_dim=16, rope_parameters=LLAMA3, attention_bias=True,
                                   mlp_bias=True, rms_norm_eps=1e-5)),
    "smollm2": ("LlamaConfig", dict(num_hidden_layers=2, rope_parameters={"rope_type": "default", "rope_theta": 1e5},
                                    tie_word_embeddings=True)),
    "mistral": ("MistralConfig", dict(num_hidden_layers=2, head_dim=16, sliding_window=8)),
    "mixtral": ("MixtralConfig", dict(num_hidden_layers=2, num_local_experts=4, num_experts_per_tok=2,
                                      intermediate_size=24)),
    # weights of experts that MXFP4 holds exactly: tiny-gpt-oss-mxfp4 has the same outputs
    "gpt-oss": ("GptOssConfig", dict(num_hidden_layers=2, head_dim=16, num_local_experts=4, num_experts_per_tok=2,
                                     intermediate_size=32, sliding_window=8, swiglu_limit=1.5,
                                     rope_parameters={**YARN, "truncate": False})),
    "qwen2": ("Qwen2Config", dict(num_hidden_layers=3, use_sliding_window=True, sliding_window=8, max_window_layers=1,
                                  rope_parameters=YARN)),
    "qwen3": ("Qwen3Config", dict(num_hidden_layers=2, head_dim=16, tie_word_embeddings=True,
                                  rope_parameters={"rope_type": "linear", "rope_theta": 1000.0, "factor": 3.0})),
    "smollm3": ("SmolLM3Config", dict(num_hidden_layers=3, no_rope_layer_interval=2, use_sliding_window=True,
                                      sliding_window=8)),
    "gemma2": ("Gemma2Config", dict(num_hidden_layers=2, head_dim=16, query_pre_attn_scalar=24, sliding_window=8,
                                    attn_logit_softcapping=3.0, final_logit_softcapping=8.0)),
    "gemma3": ("Gemma3TextConfig", dict(
        num_hidden_layers=3, head_dim=16, query_pre_attn_scalar=24, sliding_window=8, attention_bias=True,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        rope_parameters={"sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                         "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 8.0}})),
    "phi3": ("Phi3Config", dict(num_hidden_layers=2, sliding_window=8, rope_parameters={
        "rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.5})),
    "phi3-longrope": ("Phi3Config", dict(
        num_hidden_layers=2, original_max_position_embeddings=SHORT, rope_parameters={
            "rope_type": "longrope", "rope_theta": 1000.0, "partial_rotary_factor": 0.75,
            "short_factor": [1.0, 1.3, 1.9], "long_factor": [1.5, 3.0, 6.0]})),
    "lfm2": ("Lfm2Config", dict(
        num_hidden_layers=3, layer_types=["conv", "full_attention", "conv"], conv_bias=True, block_multiple_of=16,
        block_ffn_dim_multiplier=1.5, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0})),
}


# Adapters of: biases; norms of what a block adds; fused matrices; convolutions; routers and stacks of experts, whose modules
# have other names in checkpoints; stacks of experts; a head, whose base weights PEFT saves too.
ALL = {"target_modules": "all-linear"}
ADAPTED = {"qwen2": ALL, "gemma2": ALL, "phi3": ALL, "lfm2": ALL, "mixtral": ALL,
           "gpt-oss": {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
                       "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
           "llama2": {"target_modules": ["q_proj", "up_proj", "lm_head"]}}


def make_model(name, seed):
    config_class, options = MODELS[name]
    config = getattr(transformers, config_class)(**{**SHAPE, **options})
    if name == "gemma3":
        config.architectures = ["Gemma3ForCausalLM"]
    model = AutoModelForCausalLM.from_config(config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "norm" in key:  # Gemma adds 1 to its own
                p.copy_(torch.randn_like(p) * 0.3 + (0.0 if name.startswith("gemma") else 1.0))
            elif "sinks" in key:
                p.copy_(torch.randn_like(p) * 2)
            elif key.endswith("bias"):
                p.copy_(torch.randn_like(p) * 0.3)
            elif key.endswith("conv.conv.weight"):  # [channels, 1, taps]
                p.copy_(torch.randn_like(p) * 0.8)
            elif "embed" in key:
                p.copy_(torch.randn_like(p) * (0.3 if name.startswith("gemma") else 1.0))
            else:
                sharp = any(part in key for part in ("q_proj", "k_proj", "qkv_proj", "gate.weight", "router"))
                p.copy_(torch.randn_like(p) * (2.0 if sharp else 1.2) / p.shape[-1] ** 0.5)
        if not config.tie_word_embeddings:
            model.lm_head.weight.mul_(2)
    return model.to(torch.bfloat16)


class Margins:
    """The least distance between the last chosen expert's logit and the first other one's."""

    def __init__(self, model):
        self.least = float("inf")
        for name, module in model.named_modules():
            if name.endswith("mlp.gate") or name.endswith("mlp.router"):
                module.register_forward_hook(lambda _, inputs, __, gate=module: self.see(gate, inputs[0]))

    def see(self, gate, x):
        scores = x.reshape(-1, x.shape[-1]).float() @ gate.weight.float().T
        bias = getattr(gate, "bias", None)
        order = (scores if bias is None else scores + bias).sort(-1, descending=True).values
        self.least = min(self.least, (order[:, 1] - order[:, 2]).min().item())


def input_ids(tokens=TOKENS):
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    order = {b: i for i, b in enumerate(printable + [b for b in range(256) if b not in printable])}
    return torch.tensor([order[b] for b in TEXT.encode()[:tokens]])


def outputs_of(model, prefix, tokens=TOKENS):
    """What the model gives, and the least margin of a greedy token."""
    ids, least = input_ids(tokens), float("inf")
    positions = [p for p in POSITIONS if p < tokens]
    with torch.no_grad():
        logits = model(input_ids=ids[None]).logits[0]
        greedy = ids[:PROMPT].tolist()
        if model.config.rope_parameters.get("rope_type") == "longrope" and tokens > SHORT:
            # walsh decides by what the sequence may grow to: long factors from the first token on
            model.config.rope_parameters["short_factor"] = model.config.rope_parameters["long_factor"]
            weights, model = model.state_dict(), model.__class__(model.config).eval()
            model.load_state_dict(weights)
        for _ in range(tokens - PROMPT):
            top = model(input_ids=torch.tensor([greedy])).logits[0, -1].topk(2)
            least = min(least, (top.values[0] - top.values[1]).item())
            greedy.append(top.indices[0].item())
    log_p = logits.log_softmax(-1)
    return {
        prefix + "logits": logits[positions].contiguous(),
        prefix + "target_logprobs": log_p[torch.arange(tokens - 1), ids[1:]].contiguous(),
        prefix + "greedy_ids": torch.tensor(greedy, dtype=torch.int32),
    }, least


def load(directory):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


def reference(directory, tokens=TOKENS):
    model = load(directory)
    margins = Margins(model)
    outputs, greedy_margin = outputs_of(model, "", tokens)
    outputs["input_ids"] = input_ids(tokens).to(torch.int32)
    outputs["positions"] = torch.tensor([p for p in POSITIONS if p < tokens], dtype=torch.int32)
    return outputs, margins.least, greedy_margin


def adapt(directory, targets, adapter, seed):
    config = peft.LoraConfig(r=2, lora_alpha=4, task_type="CAUSAL_LM", **targets)
    model = peft.get_peft_model(load(directory), config).eval()
    routes = Margins(model)
    torch.manual_seed(seed)
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "lora_A" in key:
                p.copy_(torch.randn_like(p) / p.shape[-1] ** 0.5)
            elif "lora_B" in key:
                p.copy_(torch.randn_like(p) * 0.3)
    model.save_pretrained(adapter)
    os.remove(f"{adapter}/README.md")
    config_path = f"{adapter}/adapter_config.json"
    with open(config_path, encoding="utf-8") as f:
        text = f.read()
    with open(config_path, "w", encoding="utf-8") as f:
        f.write(text.replace(directory, os.path.basename(directory)))
    outputs, greedy_margin = outputs_of(model, "adapter_")
    return outputs, min(greedy_margin, 10 * routes.least)


def mxfp4(w):
    """Codes [..., 16] and scale bytes of w [..., 32] (FLOOR), and the weights that they stand for."""
    amax = w.abs().amax(-1)
    byte = (torch.floor(torch.log2(amax)) - 2 + 127).clamp(0, 254)
    x = w / torch.exp2(byte - 127)[..., None]
    grid = torch.tensor([0, .5, 1, 1.5, 2, 3, 4, 6])
    code = (x.abs()[..., None] - grid).abs().argmin(-1)
    exact = grid[code] * x.sign() * torch.exp2(byte - 127)[..., None]
    code = (code + 8 * (x < 0)).to(torch.uint8)
    return code[..., ::2] | code[..., 1::2] << 4, byte.to(torch.uint8), exact


def round_experts(model):
    """gpt-oss keeps experts as [E, in, out]; MXFP4 goes along `in`. Returns the packed tensors."""
    packed = {}
    with torch.no_grad():
        for key, p in model.named_parameters():
            if key.endswith("gate_up_proj") or key.endswith("experts.down_proj"):
                w = p.float().transpose(1, 2)
                blocks, scales, exact = mxfp4(w.reshape(*w.shape[:2], -1, 32))
                packed[key + "_blocks"], packed[key + "_scales"] = blocks.contiguous(), scales.contiguous()
                p.copy_(exact.reshape(w.shape).transpose(1, 2))
    return packed


def save_packed(directory, packed):
    """The same model with its experts in MXFP4, as gpt-oss is published."""
    out = directory + "-mxfp4"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(directory, out)
    tensors = {k: v for k, v in load_file(f"{directory}/model.safetensors").items()
               if k + "_blocks" not in packed}
    save_file({**tensors, **packed}, f"{out}/model.safetensors", metadata={"format": "pt"})
    with open(f"{directory}/config.json", encoding="utf-8") as f:
        config = json.load(f)
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": [
        "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]}
    with open(f"{out}/config.json", "w", encoding="utf-8") as f:
        json.dump(config, f, indent=2)


def make(name, out):
    directory = f"{out}/tiny-{name}"
    for seed in range(1000):
        shutil.rmtree(directory, ignore_errors=True)
        model = make_model(name, seed)
        packed = round_experts(model) if name == "gpt-oss" else None
        model.save_pretrained(directory)
        outputs, route_margin, greedy_margin = reference(directory)
        if name == "phi3-longrope":
            short, _, margin = reference(directory, SHORT)
            greedy_margin = min(greedy_margin, margin)
        if route_margin > 1e-3 and greedy_margin > 1e-2:
            break
    else:
        sys.exit(f"{name}: no seed has clear choices")
    shutil.copy(f"{out}/tiny-qwen3-moe/tokenizer.json", directory)
    if os.path.exists(f"{directory}/generation_config.json"):
        os.remove(f"{directory}/generation_config.json")
    if packed:
        save_packed(directory, packed)
    if name in ADAPTED:
        for adapter_seed in range(1000):
            shutil.rmtree(f"{directory}-lora", ignore_errors=True)
            adapted, margin = adapt(directory, ADAPTED[name], f"{directory}-lora", adapter_seed)
            if margin > 1e-2:
                break
        outputs.update(adapted)
    save_file(outputs, f"{out}/tiny-{name}.safetensors")
    if name == "phi3-longrope":
        save_file(short, f"{out}/tiny-{name}-short.safetensors")
    print(f"{name}: seed {seed}, smallest margin of a route {route_margin:.2e}, of a greedy token {greedy_margin:.2e}, "
          f"largest logit {outputs['logits'].abs().max():.1f}", flush=True)


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    torch.set_num_threads(1)
    for name in sys.argv[2:] or MODELS:
        make(name, sys.argv[1])


if __name__ == "__main__":
    main()
