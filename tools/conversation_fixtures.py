#!/usr/bin/env python3
"""What finetune is to learn of conversations: tests/fixtures/chat/conversations.json.

    python3 -m venv venv && venv/bin/pip install jinja2==3.1.6 tokenizers==0.23.1
    venv/bin/python tools/conversation_fixtures.py

Templates are rendered by jinja2 and encoded by the tokenizers package; which tokens an answer has is told by
the offsets of the tokens in the text, not by encoding parts of it as walsh does. With directories of other
templates (*.jinja) as arguments their cases go to standard output: a file of them is an argument of test_train_data.
"""
import datetime
import glob
import json
import os
import random
import sys

import chat_fixtures
from tokenizers import AddedToken, Tokenizer

HERE = chat_fixtures.HERE
MODEL = os.path.join(HERE, "..", "..", "..", "models", "bookworm-8m", "tokenizer.json")
# Those of the templates beside the fixture and of the families; ids from the size of bookworm's vocabulary on.
SPECIAL = ["<s>", "</s>", "[INST]", "[/INST]", "<|head|>", "<|/head|>", "<|end|>", "<|start|>", "<|message|>", "<|channel|>",
           "<|return|>", "<|call|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
           "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]",
           "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>"]
PLAIN = ["<think>", "</think>"]  # added, but not special
chat_fixtures.WORDS = [w for w in chat_fixtures.WORDS if "[" not in w and "<|" not in w]
chat_fixtures.NOW = datetime.datetime(2024, 7, 26)


def conversation(r):
    """As users write them for training: turns that alternate, some with what was thought, sometimes tools."""
    messages = [{"role": "system", "content": chat_fixtures.text(r, 12)}] if r.random() < 0.4 else []
    for _ in range(r.randint(1, 3)):
        messages.append({"role": "user", "content": chat_fixtures.text(r)})
        answer = {"role": "assistant", "content": chat_fixtures.text(r)}
        if r.random() < 0.25:
            answer["reasoning_content"] = chat_fixtures.text(r)
        elif r.random() < 0.15:
            answer["content"] = "<think>\n" + chat_fixtures.text(r) + "\n</think>\n\n" + answer["content"]
        messages.append(answer)
    if r.random() < 0.2:
        messages.append({"role": "user", "content": "and then?"})
    line = {"messages": messages}
    if r.random() < 0.15:
        line["tools"] = [chat_fixtures.tool(r, 0)]
    if r.random() < 0.2:
        line["chat_template_kwargs"] = {"enable_thinking": r.random() < 0.5}
    return line


def render(template, line, count, prompt):
    messages = [dict(m) for m in line["messages"][:count]]
    for m in messages:
        if "reasoning_content" in m:
            m["thinking"] = m["reasoning_content"]
    given = {"bos_token": "<s>", "eos_token": "</s>", "documents": None, "tools": line.get("tools"),
             "add_generation_prompt": prompt, "messages": messages}
    given.update(line.get("chat_template_kwargs", {}))
    return template.render(**given)


def spans(template, line):
    """[(text, [(begin, end)])]: the documents and what is learned of each."""
    out = []
    for i, message in enumerate(line["messages"]):
        if message["role"] != "assistant":
            continue
        before, after = render(template, line, i, True), render(template, line, i + 1, False)
        if not after.startswith(before):
            raise ValueError("the generation prompt is no part of the turn")
        if out and before.startswith(out[-1][0]):
            out[-1] = (after, out[-1][1] + [(len(before), len(after))])
        else:
            out.append((after, [(len(before), len(after))]))
    return out


def document(tokenizer, special, text, learned):
    e = tokenizer.encode(text, add_special_tokens=False)
    mask = [0] * len(e.ids)
    for begin, end in learned:
        bare = begin + len(text[begin:end].rstrip(" \t\r\n"))
        last = [i for (i, (a, b)) in zip(e.ids, e.offsets) if begin <= a and b <= bare]
        if last and last[-1] in special:
            end = bare
        for k, (a, b) in enumerate(e.offsets):
            if b > begin and a < end:
                mask[k] = 1
    return {"ids": e.ids, "learned": "".join(map(str, mask))}


def case(tokenizer, special, template, name, line):
    out = {"template": name, "line": line}
    try:
        out["documents"] = [document(tokenizer, special, *d) for d in spans(template, line)]
    except Exception as error:
        out["error"] = str(error)
    return out


def main():
    tokenizer = Tokenizer.from_file(MODEL)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in PLAIN])
    special = {i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
    env = chat_fixtures.environment()
    r = random.Random(20251122)
    given = sys.argv[1:]
    paths = sorted(p for d in given or [HERE] for p in glob.glob(os.path.join(d, "*.jinja")))
    cases = [{"special": SPECIAL, "plain": PLAIN}]
    for path in paths:
        with open(path, encoding="utf-8", newline="") as file:
            source = file.read()
        name = source if given else os.path.basename(path)
        try:
            template = env.from_string(source)
        except Exception as error:
            print(path, error, file=sys.stderr)
            continue
        mine = [case(tokenizer, special, template, name, conversation(r)) for _ in range(10)]
        if given:
            print(os.path.basename(path), sum("documents" in c for c in mine), "of", len(mine),
                  sorted({c["error"][:80] for c in mine if "error" in c}), file=sys.stderr)
        cases += mine
    if given:
        print(chat_fixtures.dump(cases))
        return
    with open(os.path.join(HERE, "conversations.json"), "w", encoding="utf-8") as file:
        file.write(chat_fixtures.dump(cases))


main()
