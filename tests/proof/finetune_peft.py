#!/usr/bin/env python3
"""Does peft load what `walsh finetune` wrote, and give the same numbers with it?

Usage: finetune_peft.py MODEL ADAPTER TEXT CONTEXT NLL
Loads the adapter with peft 0.21, checks that every tensor of the file was taken, and prints the mean negative log-likelihood of TEXT in
chunks of CONTEXT tokens (tokens 2..n of each scored, the tail dropped), float32, beside NLL, which `walsh eval --activations f32` gave
for the same; then the largest difference of a logit with and without the adapter, which says that it does something. Exit 1 where
the two differ by more than 1e-4."""
import sys

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

model_path, adapter_path, text_path, context, nll = sys.argv[1:]
context, nll = int(context), float(nll)
ids = AutoTokenizer.from_pretrained(model_path)(open(text_path, encoding="utf-8").read()).input_ids
rows = torch.tensor(ids[: len(ids) // context * context]).view(-1, context)
base = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32, attn_implementation="eager")
with torch.no_grad():
    plain = base(rows[:1]).logits
model = PeftModel.from_pretrained(base, adapter_path)
taken = {k.replace(".default", ""): v for k, v in model.state_dict().items() if "lora_" in k}
with safe_open(f"{adapter_path}/adapter_model.safetensors", "pt") as f:
    names = list(f.keys())
    for name in names:
        assert torch.equal(f.get_tensor(name), taken[name]), f"{name} was not taken as it is"
assert len(names) == len(taken), f"{len(taken)} tensors in the model, {len(names)} in the file"
total = 0.0
with torch.no_grad():
    changed = (model(rows[:1]).logits - plain).abs().max().item()
    for row in rows:
        logits = model(row[None]).logits[0, :-1]
        total += torch.nn.functional.cross_entropy(logits, row[1:], reduction="sum").item()
found = total / (rows.shape[0] * (context - 1))
print(f"{adapter_path}: {len(names)} tensors, nll {found:.6f} by peft, {nll:.6f} by walsh; the adapter moves a logit by {changed:.2f}")
sys.exit(abs(found - nll) > 1e-4 or changed < 0.1)
