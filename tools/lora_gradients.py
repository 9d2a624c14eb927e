#!/usr/bin/env python3
"""Reference gradients of a LoRA for tests/golden/gradients.c, by transformers and peft in fp32.

    python3 -m venv V && V/bin/pip install torch==2.15.0 transformers==5.23.0 peft==0.21.2
    V/bin/python3 tools/lora_gradients.py MODEL ADAPTER OUT [--sequences N] [--tokens N]

A batch of random tokens (seed 7), its loss under ADAPTER (alpha = 2 r), the gradient of each of the adapter's tensors, and the
losses of ten AdamW steps (learning rate 1e-3, no decay). OUT holds input_ids, loss, losses, init.NAME and grad.NAME.
"""
import argparse

import peft
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("adapter")
parser.add_argument("out")
parser.add_argument("--sequences", type=int, default=2)
parser.add_argument("--tokens", type=int, default=48)
o = parser.parse_args()

torch.manual_seed(7)
model = AutoModelForCausalLM.from_pretrained(o.model, dtype=torch.float32, attn_implementation="eager")
model = peft.PeftModel.from_pretrained(model, o.adapter, is_trainable=True)
ids = torch.randint(0, model.config.vocab_size, (o.sequences, o.tokens))
init = load_file(f"{o.adapter}/adapter_model.safetensors")
named = {n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}
assert sorted(named) == sorted(init), "the adapter's tensors"
optimizer = torch.optim.AdamW(named.values(), lr=1e-3, weight_decay=0)
losses, out = [], {f"init.{n}": t.float() for n, t in init.items()}
for step in range(10):
    logits = model(input_ids=ids).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
    optimizer.zero_grad()
    loss.backward()
    if step == 0:
        out.update({f"grad.{n}": p.grad.clone() for n, p in named.items()})
    losses.append(loss.item())
    optimizer.step()
out.update(input_ids=ids.int(), losses=torch.tensor(losses), loss=torch.tensor(losses[:1]))
save_file({n: t.contiguous() for n, t in out.items()}, o.out)
print(losses)
