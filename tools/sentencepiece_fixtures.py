#!/usr/bin/env python3
"""Write the fixtures of SentencePiece's kind of tokenizer (BPE over characters, Unigram) with the `tokenizers` package as
the oracle.

    pip install tokenizers==0.23.3
    tools/sentencepiece_fixtures.py

Run tools/tokenizer_fixtures.py first: its hard strings are the texts. Vocabularies are trained on data/calibration.txt and
on some of these strings. A second run writes the same bytes, but for Unigram's trainer, whose sums run on threads:
`--train` trains, otherwise the models that are there stay. Python's Unicode tables must be those of utf8proc (14).

Files in tests/fixtures/text, little-endian:
  families.json  {"models": {name: model}, "variants": {name: parts of a tokenizer.json}}; in a variant "base" names the
                 model, "model" holds what differs in it, "without" tokens that are taken out of a Unigram or BPE vocabulary
  families.bin   for each variant in its order: STRINGS x (u32 ids with special tokens, u32 the text that they decode to),
                 then LISTS x (u32 text, u32 text without special tokens) of lists of ids drawn by `draw`;
                 each a folded FNV-1a, 0: not compared, the string has characters that the package's tables do not know
"""

import argparse
import copy
import json
import pathlib
import struct
import sys
import unicodedata

import tokenizers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "fixtures" / "text"
STRINGS, LISTS = 600, 100
SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{b:02X}>" for b in range(256)]


def fnv(data, h=0xCBF29CE484222325):
    for byte in data:
        h = (h ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return h


def folded(data):
    h = fnv(data)
    return (h >> 32) ^ (h & 0xFFFFFFFF) or 1


def hard_strings():
    data, strings, at = (OUT / "hard_strings.bin").read_bytes(), [], 0
    while len(strings) < 3000:
        size, _, _ = struct.unpack_from("<IIQ", data, at)
        strings.append(data[at + 16:at + 16 + size].decode("utf-8", "replace"))
        at += 16 + size
    return strings


# ---- models ----

def texts(strings):
    prose = (ROOT / "data" / "calibration.txt").read_text()
    return [prose[i:i + 2000] for i in range(0, 600_000, 2000)] + [s.replace("\0", "") for s in strings[1000:2000]]


def train_bpe(strings):
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    learner.train_from_iterator(texts(strings), trainers.BpeTrainer(
        vocab_size=2200, show_progress=False, limit_alphabet=500, max_token_length=16))
    model = json.loads(learner.to_str())["model"]
    vocab = {t: i for i, t in enumerate(SPECIAL + BYTES)}
    for token in sorted(model["vocab"], key=model["vocab"].get):
        vocab.setdefault(token, len(vocab))
    return {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False, "vocab": vocab,
            "merges": model["merges"]}


def train_unigram(strings):
    learner = Tokenizer(models.Unigram())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    learner.normalizer = normalizers.NFKC()
    # It wants a token for each character that it sees.
    seen = texts(["".join(c for c in s if ord(c) < 0x400) for s in strings])
    learner.train_from_iterator(seen, trainers.UnigramTrainer(
        vocab_size=2000, show_progress=False, special_tokens=["<unk>"], unk_token="<unk>", max_piece_length=12))
    pieces = json.loads(learner.to_str())["model"]["vocab"]
    vocab = [[t, 0.0] for t in SPECIAL] + [[t, -9.5] for t in BYTES]
    known = {t for t, _ in vocab}
    vocab += [[t, round(s, 6)] for t, s in pieces if t not in known]
    return {"type": "Unigram", "unk_id": 0, "byte_fallback": False, "vocab": vocab}


# ---- variants ----

def added(content, id, **options):
    token = {"id": id, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": True}
    return token | options


def sequence(key, *parts):
    return {"type": "Sequence", key: list(parts)}


def replace(old, new, regex=False):
    return {"type": "Replace", "pattern": {"Regex" if regex else "String": old}, "content": new}


def metaspace(scheme="always", split=True):
    return {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": split}


def template(*names):
    """<s> A and the like."""
    single = [{"Sequence": {"id": "A", "type_id": 0}} if n == "A" else {"SpecialToken": {"id": n, "type_id": 0}} for n in names]
    return {"type": "TemplateProcessing", "single": single, "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                                                                     {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {n: {"id": n, "ids": [SPECIAL.index(n)], "tokens": [n]} for n in names if n != "A"}}


def variants(built):
    n = len(built["bpe"]["vocab"])
    specials = [added(t, i) for i, t in enumerate(SPECIAL)]
    prefix = {"type": "Prepend", "prepend": "\u2581"}
    spaces = replace(" ", "\u2581")
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    fallback, fuse = {"type": "ByteFallback"}, {"type": "Fuse"}
    back = replace("\u2581", " ")
    llama_decoder = sequence("decoders", back, fallback, fuse, strip)
    gemma_decoder = sequence("decoders", back, fallback, fuse)
    legacy = sequence("normalizers", prefix, spaces)
    llama = {"base": "bpe", "added_tokens": specials, "normalizer": legacy, "pre_tokenizer": None,
             "post_processor": template("<s>", "A"), "decoder": llama_decoder}
    mistral = llama | {"normalizer": None, "pre_tokenizer": metaspace("first", False)}
    vocab = built["bpe"]["vocab"]
    words = [t for t in vocab if t not in SPECIAL + BYTES]
    one = words[400]  # a token of the vocabulary that is an added token too
    flags = specials + [
        added("<|im_start|>", n), added("<|im_end|>", n + 1, lstrip=True), added("<mask>", n + 2, rstrip=True),
        added("[A]", n + 3, lstrip=True, rstrip=True, special=False), added("[AB]", n + 4, special=False),
        added("[ABC]", n + 5), added("token", n + 6, single_word=True, special=False),
        added("w\u00F6rd", n + 7, normalized=True, special=False),
        added("  ", n + 8, special=False), added("__x__", n + 9, single_word=True, normalized=True), added(one, vocab[one])]
    turns = specials + [added(t, n + i, special=i > 3, normalized=False)
                        for i, t in enumerate(["\n\n", "\n\n\n", "\u2581\u2581", "\t\t", "<start_of_turn>", "<end_of_turn>"])]
    gemma = {"base": "bpe", "added_tokens": turns, "normalizer": spaces,
             "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
             "post_processor": sequence("processors", template("<s>", "A")), "decoder": gemma_decoder}
    phi = llama | {"added_tokens": specials + [added("<|im_start|>", n, rstrip=True), added("<|im_end|>", n + 1, rstrip=True),
                                               added("[A]", n + 2, rstrip=True, special=False)]}
    unigram = {"base": "unigram", "added_tokens": specials, "normalizer": None, "pre_tokenizer": metaspace(),
               "post_processor": template("A", "</s>"), "decoder": metaspace()}
    return {
        "llama": llama,
        "phi": phi,
        "gemma": gemma,
        "mistral": mistral,
        "mistral_flags": mistral | {"added_tokens": flags},
        "llama_flags": llama | {"added_tokens": flags},
        "always": llama | {"normalizer": None, "pre_tokenizer": metaspace(), "decoder": metaspace()},
        "first": llama | {"normalizer": None, "pre_tokenizer": metaspace("first"), "decoder": metaspace("first"),
                          "added_tokens": flags},
        "never": llama | {"normalizer": None, "pre_tokenizer": metaspace("never"), "decoder": metaspace("never")},
        "old_metaspace": llama | {"normalizer": None, "decoder": sequence("decoders", fallback, fuse, back),
                                  "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "add_prefix_space": True}},
        "unknown": llama | {"model": {"byte_fallback": False}, "post_processor": template("<s>", "A", "</s>")},
        "unknown_each": llama | {"model": {"byte_fallback": False, "fuse_unk": False}},
        "dropped": mistral | {"model": {"byte_fallback": False, "unk_token": None}},
        "some_bytes": llama | {"without": [f"<0x{b:02X}>" for b in list(range(0xE1, 0xE4)) + [0x80, 0xA0, 0x0A]]},
        "some_bytes_each": llama | {"without": ["<0xE3>", "<0xF0>"], "model": {"fuse_unk": False}},
        "ignore_merges": llama | {"normalizer": None, "pre_tokenizer": metaspace(), "model": {"ignore_merges": True}},
        "digits": mistral | {"pre_tokenizer": sequence("pretokenizers", {"type": "Digits", "individual_digits": True},
                                                       metaspace("first"))},
        "punctuation": mistral | {"pre_tokenizer": sequence(
            "pretokenizers", {"type": "Punctuation", "behavior": "MergedWithPrevious"}, metaspace("first", False))},
        "punctuation_alone": mistral | {"pre_tokenizer": {"type": "Punctuation", "behavior": "Isolated"}},
        "clean": mistral | {"normalizer": sequence(
            "normalizers", {"type": "Strip", "strip_left": True, "strip_right": True}, {"type": "NFKC"}, {"type": "Lowercase"})},
        "strip_right": mistral | {"normalizer": {"type": "Strip", "strip_left": False, "strip_right": True}},
        "nfd": llama | {"normalizer": sequence("normalizers", {"type": "NFD"}, legacy), "added_tokens": flags},
        "nfkd": mistral | {"normalizer": {"type": "NFKD"}},
        "regexes": mistral | {"normalizer": sequence(
            "normalizers", replace("[ \\t]{2,}", " ", True), replace("(?<=e)", "*", True), replace("^a+", "", True),
            replace("th", "TH"), replace("qu", ""))},
        "odd_decoder": mistral | {"decoder": sequence(
            "decoders", {"type": "Strip", "content": "\u2581", "start": 2, "stop": 0}, replace("er", "<0x"), replace("e", ""),
            fallback, back, fuse, replace("a", "bc"), {"type": "Strip", "content": "b", "start": 3, "stop": 0})},
        "fuse_alone": mistral | {"decoder": sequence("decoders", fuse)},
        "no_steps": mistral | {"decoder": sequence("decoders")},
        "t5": unigram | {"pre_tokenizer": sequence("pretokenizers", {"type": "WhitespaceSplit"}, metaspace())},
        "xlm": unigram | {"normalizer": sequence("normalizers", {"type": "NFKC"}, replace(" {2,}", " ", True)),
                          "post_processor": template("<s>", "A", "</s>")},
        "unigram_bytes": unigram | {"normalizer": legacy, "pre_tokenizer": None, "decoder": llama_decoder,
                                    "model": {"byte_fallback": True}, "added_tokens": specials},
        "unigram_some_bytes": unigram | {"pre_tokenizer": metaspace("first", False), "decoder": llama_decoder,
                                         "model": {"byte_fallback": True}, "without": ["<0xE3>", "<0xF0>"]},
        "unigram_plain": unigram | {"pre_tokenizer": None, "decoder": None},
    }


def compose(built, variant):
    """As test_text_families.c does it. A token that is taken out becomes one of another name: ids stay."""
    root = {"version": "1.0", "truncation": None, "padding": None}
    root |= {k: v for k, v in variant.items() if k not in ("base", "model", "without")}
    model = copy.deepcopy(built[variant["base"]]) | variant.get("model", {})
    gone = set(variant.get("without", []))
    if model["type"] == "BPE":
        model["vocab"] = {t + "~" if t in gone else t: i for t, i in model["vocab"].items()}
    else:
        model["vocab"] = [[t + "~" if t in gone else t, s] for t, s in model["vocab"]]
    return root | {"model": model}


def known_tables(variant, text):
    """Whether the package's tables (Unicode 9) agree with Unicode 14 on the text."""
    part = json.dumps(variant["normalizer"])
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        if f'"{form}"' in part and getattr(normalizers, form)().normalize_str(text) != unicodedata.normalize(form, text):
            return False
    return '"Lowercase"' not in part or normalizers.Lowercase().normalize_str(text) == "".join(c.lower() for c in text)


def draw(size):
    """Lists of ids; test_text_families.c draws the same. A third are of byte tokens, most of which make characters."""
    state = 1

    def below(n):
        nonlocal state
        state = (state * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
        return (state >> 33) % n

    for _ in range(LISTS):
        ids = []
        for _ in range(below(12)):
            kind = below(4)
            if kind == 0:
                ids += [3 + b for b in [[0xC3, 0xA9], [0xF0, 0x9F, 0x98, 0x80], [0x41], [0xE2, 0x82]][below(4)]]
            elif kind == 1 and below(4) == 0:
                ids.append(3 + below(256))
            else:
                ids.append(below(size))
        yield ids


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", action="store_true")
    arguments = parser.parse_args()
    if tokenizers.__version__ != "0.23.3" or unicodedata.unidata_version != "14.0.0":
        sys.exit(f"tokenizers {tokenizers.__version__}, Unicode {unicodedata.unidata_version}; expected 0.23.3 and 14.0.0")
    strings = hard_strings()
    if arguments.train:
        built = {"bpe": train_bpe(strings), "unigram": train_unigram(strings)}
    else:
        built = json.loads((OUT / "families.json").read_text())["models"]
    named = variants(built)
    for variant in named.values():  # an added token that the model has too keeps its id; the others follow without a gap
        vocab = built[variant["base"]]["vocab"]
        known = vocab if isinstance(vocab, dict) else {t: i for i, (t, _) in enumerate(vocab)}
        others = [t for t in variant["added_tokens"] if t["content"] not in known]
        variant["added_tokens"] = [t | {"id": known[t["content"]] if t["content"] in known else len(known) + others.index(t)}
                                   for t in variant["added_tokens"]]
    (OUT / "families.json").write_text(
        json.dumps({"models": built, "variants": named}, ensure_ascii=False, separators=(",", ":")) + "\n")
    records = []
    for name, variant in named.items():
        tokenizer = Tokenizer.from_str(json.dumps(compose(built, variant)))
        for text in strings[:STRINGS]:
            if not known_tables(variant, text):
                records.append(struct.pack("<II", 0, 0))
                continue
            ids = tokenizer.encode(text).ids
            back = tokenizer.decode(ids, skip_special_tokens=False)
            records.append(struct.pack("<II", folded(struct.pack(f"<{len(ids)}i", *ids)), folded(back.encode())))
        for ids in draw(len(built[variant["base"]]["vocab"])):
            records.append(struct.pack("<II", *(
                folded(tokenizer.decode(ids, skip_special_tokens=skip).encode()) for skip in (False, True))))
    (OUT / "families.bin").write_bytes(b"".join(records))


if __name__ == "__main__":
    main()
