#!/usr/bin/env python3
"""Reference gradients of a LoRA for tests/golden/gradients.c, by transformers and peft in fp32.

    python3 -m venv V && V/bin/pip install torch==2.15.0 transformers==5.23.0 peft==0.21.2
    V/bin/python3 tools/lora_gradients.py MODEL OUT --adapter DIR [--sequences N] [--tokens N]
    V/bin/python3 tools/lora_gradients.py MODEL OUT --rank N [--whole TEXT ...] [--sequences N] [--tokens N]

A batch of random tokens (seed 7), its loss under the adapter (alpha = 2 r), the gradient of each of its tensors, and the
losses of ten AdamW steps (learning rate 1e-3, no decay). OUT holds input_ids, loss, losses, init.NAME and grad.NAME. With
--rank the adapter, of all linears, follows a rule that gradients.c knows, and of the gradients only those whose names hold one
of the texts are stored whole: of the others sketch.NAME, norm and 16 products with vectors of random signs.
"""
import argparse

import numpy as np
import peft
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

SKETCH = 16


def drawn(word, name, n):
    z = np.uint64(0xCBF29CE484222325)
    with np.errstate(over="ignore"):
        for c in f"{word} {name}".encode():
            z = (z ^ np.uint64(c)) * np.uint64(0x100000001B3)
        z = z + np.arange(n, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return z ^ z >> np.uint64(31)


def initial(name, shape):
    bound = 1 / np.sqrt(np.float64(shape[1])) if "lora_A" in name else 0.05
    u = (drawn("init", name, int(np.prod(shape))) >> np.uint64(40)).astype(np.float64)
    return torch.tensor((bound * (u / 2**23 - 1)).astype(np.float32)).view(*shape)


def sketch(name, x):
    x = x.double().flatten().numpy()
    signs = drawn("sign", name, x.size)
    products = [(x * (1 - 2 * (signs >> np.uint64(k) & np.uint64(1)).astype(np.float64))).sum() for k in range(SKETCH)]
    return torch.tensor([np.sqrt((x * x).sum()), *products], dtype=torch.float64)


parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("out")
parser.add_argument("--adapter")
parser.add_argument("--rank", type=int)
parser.add_argument("--whole", nargs="*", default=[])
parser.add_argument("--sequences", type=int, default=2)
parser.add_argument("--tokens", type=int, default=48)
o = parser.parse_args()

torch.manual_seed(7)
model = AutoModelForCausalLM.from_pretrained(o.model, dtype=torch.float32, attn_implementation="eager")
ids = torch.randint(0, model.config.vocab_size, (o.sequences, o.tokens))
out = {"input_ids": ids.int()}
if o.adapter:
    model = peft.PeftModel.from_pretrained(model, o.adapter, is_trainable=True)
else:
    model = peft.get_peft_model(model, peft.LoraConfig(r=o.rank, lora_alpha=2 * o.rank, target_modules="all-linear"))
    out["rank"] = torch.tensor([o.rank], dtype=torch.int32)
named = {n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}
if o.adapter:
    init = load_file(f"{o.adapter}/adapter_model.safetensors")
    assert sorted(named) == sorted(init), "the adapter's tensors"
    out.update({f"init.{n}": t.float() for n, t in init.items()})
else:
    with torch.no_grad():
        for n, p in named.items():
            p.copy_(initial(n, p.shape))
optimizer = torch.optim.AdamW(named.values(), lr=1e-3, weight_decay=0)
losses = []
for step in range(10):
    logits = model(input_ids=ids).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
    optimizer.zero_grad()
    loss.backward()
    if step == 0:
        for n, p in named.items():
            whole = o.adapter or any(text in n for text in o.whole)
            out[f"grad.{n}" if whole else f"sketch.{n}"] = p.grad.clone() if whole else sketch(n, p.grad)
    losses.append(loss.item())
    optimizer.step()
out.update(losses=torch.tensor(losses), loss=torch.tensor(losses[:1]))
save_file({n: t.contiguous() for n, t in out.items()}, o.out)
print(losses)
