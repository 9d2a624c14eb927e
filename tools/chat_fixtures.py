#!/usr/bin/env python3
"""Conversations rendered by the jinja2 package: tests/fixtures/chat/cases.json.

    python3 -m venv venv && venv/bin/pip install jinja2==3.1.6
    venv/bin/python tools/chat_fixtures.py

The templates beside it are walsh's own; they use what the templates of the model families in docs/chat-templates.md
use. expressions.txt has small templates with %% between them. The environment is the one that transformers 5.23 makes for
chat templates. With directories of other templates (*.jinja) as arguments their cases go to standard output instead: a file of them
is an argument of test_text_template.
"""
import datetime
import glob
import json
import os
import random
import sys

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

assert jinja2.__version__ == "3.1.6", jinja2.__version__
HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "fixtures", "chat")
NOW = datetime.datetime(2025, 7, 4, 9, 5, 3)
EPOCH = datetime.datetime(1970, 1, 1)


class Generation(jinja2.ext.Extension):
    """{% generation %} marks what the model wrote; the text is as without it."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("text"), [], [], body).set_lineno(line)

    def text(self, caller):
        return caller()


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                        extensions=[Generation, jinja2.ext.loopcontrols])

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = NOW.strftime
    return env


WORDS = ("the sea was calm and a light burned in the house on the hill when she came back with bread, wine & salt; "
         "naïve café Привет 日本語 😀 e\u0301 \u00a0 ½ C:\\dir \"quoted\" it's <b>bold</b> {{ braces }} {% tag %} "
         "[INST] <|im_end|> <think> </think> <tool_response> 3.14 \t tab").split(" ")


def text(r, most=9):
    kind = r.random()
    if kind < 0.04:
        return ""
    out = " ".join(r.choice(WORDS) for _ in range(r.randint(1, most)))
    if kind < 0.2:
        out = r.choice(["\n", " ", "\n\n", "\t", ""]) + out + r.choice(["\n", "  ", "\r\n", ""])
    return out if kind < 0.8 else out.replace(" ", "\n", 1)


def value(r, depth=0):
    kind = r.randint(0, 8 if depth < 2 else 5)
    if kind == 0:
        return r.choice([None, True, False])
    if kind == 1:
        return r.choice([0, 1, -7, 10**15, r.randint(-1000, 1000)])
    if kind == 2:
        return r.choice([0.5, 1.0, -2.25, 1e-7, 1e22, 3.141592653589793, r.random() * 10 ** r.randint(-6, 18)])
    if kind <= 5:
        return text(r, 4)
    if kind == 6:
        return [value(r, depth + 1) for _ in range(r.randint(0, 3))]
    return {r.choice("xyzäk") + str(i): value(r, depth + 1) for i in range(r.randint(0, 3))}


def schema(r, depth=0):
    kind = r.choice(["string", "integer", "number", "boolean", "array", "object", "enum", "union", "any"])
    out = {"type": kind}
    if kind == "enum":
        out = {"type": "string", "enum": ["a", "b b", "c"][:r.randint(1, 3)]}
        if r.random() < 0.3:
            out["default"] = "a"
    elif kind == "array":
        out["items"] = schema(r, depth + 1) if depth < 3 and r.random() < 0.8 else {}
    elif kind == "object" and depth < 2:
        out["properties"] = {"p%d" % i: schema(r, depth + 1) for i in range(r.randint(0, 2))}
        if r.random() < 0.5:
            out["required"] = list(out["properties"])[:1]
    elif kind == "union":
        out = r.choice([{"type": ["string", "null"]}, {"oneOf": [schema(r, 3), {"type": "string", "description": "or"}]}])
    elif kind == "any":
        out = {}
    if r.random() < 0.4:
        out["description"] = text(r, 5)
    if r.random() < 0.2:
        out.setdefault("default", r.choice([1, 2.5, "x", True]))
        if "enum" in out:
            out["default"] = "a"
    if out.get("type") == "string" and r.random() < 0.2:
        out["nullable"] = True
    return out


def tool(r, i):
    function = {"name": "function_%d" % i, "description": text(r, 6)}
    if r.random() < 0.9:
        properties = {"arg%d" % k: schema(r) for k in range(r.randint(0, 3))}
        function["parameters"] = {"type": "object", "properties": properties, "required": list(properties)[:1]}
    if r.random() < 0.2:
        function["return"] = {"type": "string"}
    return {"type": "function", "function": function}


def call(r, i):
    arguments = {"arg%d" % k: value(r) for k in range(r.randint(0, 3))}
    if r.random() < 0.15:
        arguments = json.dumps(arguments)
    return {"type": "function", "id": "id%07d" % i if r.random() < 0.9 else "short",
            "function": {"name": "function_%d" % r.randint(0, 2), "arguments": arguments}}


def conversation(r):
    messages = []
    if r.random() < 0.5:
        system = text(r, 20)
        if r.random() < 0.3:
            system += r.choice([" /no_think", " /think", "\n/think\n"])
        messages.append({"role": r.choice(["system"] * 5 + ["developer"]), "content": system})
    for turn in range(r.randint(1, 3)):
        question = text(r)
        if r.random() < 0.06:
            question = "<tool_response>" + question + "</tool_response>"
        messages.append({"role": "user", "content": question})
        if turn and r.random() < 0.1:
            messages.append({"role": r.choice(["user", "system"]), "content": text(r)})
        while r.random() < 0.3:
            calls = [call(r, 10 * turn + k) for k in range(1 if r.random() < 0.7 else 2)]
            answer = {"role": "assistant", "content": r.choice([None, "", text(r)]), "tool_calls": calls}
            if r.random() < 0.3:
                answer["thinking"] = text(r)
            if r.random() < 0.2:
                del answer["content"]
            messages.append(answer)
            for c in calls:
                messages.append({"role": "tool", "content": r.choice([text(r), value(r), text(r)]),
                                 "tool_call_id": c["id"], "name": c["function"]["name"]})
        if r.random() < 0.85 or turn == 0:
            answer = {"role": "assistant", "content": text(r)}
            if r.random() < 0.4:
                answer["content"] = "<think>\n" + text(r) + "\n</think>\n\n" + answer["content"]
            elif r.random() < 0.3:
                answer["reasoning_content"] = text(r)
            elif r.random() < 0.3:
                answer["thinking"] = text(r)
            messages.append(answer)
    if r.random() < 0.6 and messages[-1]["role"] == "assistant":
        messages.pop()
    if r.random() < 0.03:
        messages = []
    return messages


def variables(r):
    out = {"messages": conversation(r), "add_generation_prompt": r.random() < 0.6,
           "bos_token": "<s>", "eos_token": "</s>"}
    out["tools"] = [tool(r, i) for i in range(r.randint(1, 3))] if r.random() < 0.4 else None
    for name, values in (("enable_thinking", [True, False]), ("reasoning_effort", ["low", "high"]),
                         ("tools_first", [True, False]), ("tools_in_user_message", [True, False]),
                         ("model_identity", ["I am é."]), ("builtin", [["python", "function_1"]])):
        if r.random() < 0.25:
            out[name] = r.choice(values)
    return out


def render(env, source, given):
    try:
        return {"text": env.from_string(source).render(**given)}
    except Exception as error:  # what the template or Jinja refuses
        return {"error": str(error)}


def dump(cases):
    return "[\n" + ",\n".join(json.dumps(c, ensure_ascii=False, separators=(",", ":")) for c in cases) + "\n]\n"


def expression_variables():
    return {"a": 1, "b": -7, "f": 2.5, "s": "Hello World", "u": "héllo ✓ 日本 \"q\" 'x'", "l": [3, 1, 2], "e": [],
            "d": {"b": 1, "a": [1, 2, {"x": None}], "items": 5}, "t": True, "n": None,
            "m": [{"role": "system", "content": "sys"}, {"role": "user", "content": " hi \n"},
                  {"role": "assistant", "content": "<think>\nab\n</think>\n\nok",
                   "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1.0, "y": "z\n"}}}]}]}


def main():
    env = environment()
    r = random.Random(20251122)
    given, count = sys.argv[1:], 30
    paths = sorted(glob.glob(os.path.join(HERE, "*.jinja")))
    if given:
        paths, count = sorted(p for d in given for p in glob.glob(os.path.join(d, "*.jinja"))), 60
    cases = []
    for path in paths:
        with open(path, encoding="utf-8", newline="") as file:
            source = file.read()
        for _ in range(count):
            v = variables(r)
            case = {"template": source if given else os.path.basename(path), "variables": v}
            case.update(render(env, source, v))
            cases.append(case)
    if given:
        print(dump(cases))
        return
    with open(os.path.join(HERE, "cases.json"), "w", encoding="utf-8") as file:
        file.write(dump(cases))
    with open(os.path.join(HERE, "expressions.txt"), encoding="utf-8", newline="") as file:
        sources = file.read().split("\n%%\n")
    with open(os.path.join(HERE, "expressions.json"), "w", encoding="utf-8") as file:
        given = expression_variables()
        file.write(dump([{"variables": given}] + [dict(template=s, **render(env, s, given)) for s in sources]))


if __name__ == "__main__":
    main()
