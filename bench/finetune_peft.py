#!/usr/bin/env python3
"""The same work as `walsh finetune` by transformers and peft, for bench/finetune_speed.sh: prints tokens per second.

Usage: finetune_peft.py MODEL TEXT STEPS BATCH ACCUMULATION CONTEXT DTYPE
LoRA of rank 16 on all linears, AdamW, gradients of sequences of CONTEXT tokens. DTYPE float32 or bfloat16 (of the base; the
adapter stays in float32 under autocast)."""
import sys
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

model_path, text_path, steps, batch, accumulation, context, dtype = sys.argv[1:]
steps, batch, accumulation, context = int(steps), int(batch), int(accumulation), int(context)
torch.manual_seed(0)
ids = AutoTokenizer.from_pretrained(model_path)(open(text_path, encoding="utf-8").read(), return_tensors="pt").input_ids[0]
model = AutoModelForCausalLM.from_pretrained(model_path, dtype=getattr(torch, dtype))
model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-4, weight_decay=0.01)
model.train()
at = 0
started = None
for step in range(steps + 1):
    if step == 1:  # the first step compiles and allocates
        started = time.perf_counter()
    for _ in range(accumulation):
        rows = ids[at:at + batch * context].view(batch, context)
        at += batch * context
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(input_ids=rows, labels=rows).loss
        (loss / accumulation).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
seconds = time.perf_counter() - started
print(f"{steps * batch * accumulation * context / seconds:.1f}")
