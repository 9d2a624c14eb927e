#!/usr/bin/env python3
"""Write the tokenizer's fixtures with the `tokenizers` package as the oracle.

    pip install tokenizers==0.23.3
    tools/tokenizer_fixtures.py [--texts DIRECTORY]

Everything is seeded, so a second run writes the same bytes. Python's Unicode tables (unicodedata) must be those of
PCRE2 10.42, Unicode 14, which is what Python 3.11 has: code points assigned later are left out of the strings.
`--texts` also rewrites texts.tsv, the hashes of the longer texts, from the *.txt files of a directory.

Files in tests/fixtures/text, little-endian:
  hard_strings.bin  10,000 x (u32 bytes, u32 ids, u64 FNV-1a of the ids as i32, the bytes)
  hard_ids.bin      the ids of the first 200 of them: (u32 ids, i32 ...)
  decode.bin        600 x (u32 ids, u64 FNV-1a of the text, u64 the same with special tokens left out, i32 ids ...)
  small.json        a small vocabulary whose merges cross every kind of boundary, so that a wrong split shows in the ids
  variants.json     what to put in its place in small.json, by name: other splits, processors, added tokens, ...
  variants.bin      for each variant 1,000 x u32: FNV-1a (folded) of the ids of the first 1,000 hard strings with special
                    tokens; 0: not compared, the string has marks that the package's NFC does not know (Unicode 10 on)
  code_points.bin   u32 n, n x (u32 first, u32 last) assigned code points; then for each variant of SWEPT, for each
                    block of 64 of them, u32: FNV-1a (folded) of the ids of the block's sweep_text
  texts.tsv         name, bytes, ids, FNV-1a of the ids
"""

import argparse
import copy
import json
import pathlib
import random
import struct
import sys
import unicodedata

import tokenizers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "fixtures" / "text"
MODEL = ROOT / "models" / "bookworm-8m" / "tokenizer.json"
STRINGS, FULL_IDS, DECODES, VARIANT_STRINGS = 10_000, 200, 600, 1_000

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN = LLAMA3.replace("{1,3}", "")
CASED = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
         r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
         r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
PUNCTUATED = (r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
              r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
SWEPT = ["llama3", "gpt2", "cased", "punctuated", "classes", "scripts"]


def fnv(data, h=0xCBF29CE484222325):
    for byte in data:
        h = (h ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return h


def ids_bytes(ids):
    return struct.pack(f"<{len(ids)}i", *ids)


def folded(ids):
    h = fnv(ids_bytes(ids))
    return (h >> 32) ^ (h & 0xFFFFFFFF) or 1


# ---- strings ----

ASSIGNED = [c for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs")]
SCRIPTS = [(0x41, 0x7A), (0xC0, 0x24F), (0x370, 0x3FF), (0x400, 0x4FF), (0x530, 0x58F), (0x590, 0x5F4), (0x600, 0x6FF),
           (0x700, 0x74F), (0x780, 0x7B1), (0x900, 0x97F), (0x980, 0x9FE), (0xB80, 0xBFA), (0xE01, 0xE5B),
           (0xE80, 0xEDF), (0xF00, 0xFDA), (0x1000, 0x109F), (0x10A0, 0x10FF), (0x1100, 0x11FF), (0x1200, 0x139F),
           (0x13A0, 0x13FD), (0x1780, 0x17F9), (0x1800, 0x18AA), (0x1E00, 0x1EFF), (0x1F00, 0x1FFE), (0x2C00, 0x2C7F),
           (0x3041, 0x309F), (0x30A0, 0x30FF), (0x3105, 0x312F), (0x4E00, 0x9FFC), (0xA000, 0xA48C), (0xAC00, 0xD7A3),
           (0xFB00, 0xFB06), (0xFF01, 0xFFEE), (0x10330, 0x1034A), (0x10400, 0x1044F), (0x12000, 0x12399),
           (0x1D400, 0x1D7FF), (0x1E900, 0x1E95F), (0x20000, 0x2A6DD)]
SCRIPTS = [[c for c in range(a, b + 1) if unicodedata.category(chr(c)) != "Cn"] for a, b in SCRIPTS]
MARKS = [c for c in ASSIGNED if unicodedata.category(chr(c)).startswith("M")]
NUMBERS = [c for c in ASSIGNED if unicodedata.category(chr(c)).startswith("N")]
SYMBOLS = [c for c in ASSIGNED if unicodedata.category(chr(c))[0] in "PS"]
SPACES = [9, 10, 11, 12, 13, 32, 32, 32, 32, 0x1C, 0x1F, 0x85, 0xA0, 0x1680, 0x180E, 0x2000, 0x2003, 0x2009, 0x200A,
          0x200B, 0x2028, 0x2029, 0x202F, 0x205F, 0x2060, 0x3000, 0xFEFF]
EMOJI = ["\U0001F600", "\U0001F468\u200D\U0001F469\u200D\U0001F467\u200D\U0001F466", "\U0001F44D\U0001F3FD",
         "\U0001F1E9\U0001F1EA", "1\uFE0F\u20E3", "\u2764\uFE0F", "\U0001F3F4\U000E0067\U000E0062\U000E0065\U000E006E"
         "\U000E0067\U000E007F", "\U0001F9D1\U0001F3FF\u200D\U0001F4BB", "\u00A9", "\u2122", "\U0001F636\u200D\U0001F32B"]
WORDS = ("the of and I'm you're he'd we'll THEY'VE it's O'Neil don't 'tis rock'n'roll It'S a I know, that he said: went "
         "through thought -- \"Yes!\" x=y+1; for(i=0;i<n;i++){ return foo_bar[i]; } http://example.org/a?b=c&d=%20 3.14159 "
         "1,000,000 2023-10-05 12:34:56 0x1F600 #include <stdio.h> \\n \\t '' ' 's 'S '\u017F 'll 'LL 'lL \u2019s caf\u00E9 na\u00EFve "
         "e\u0301 Stra\u00DFe \uFB01ne \u0130stanbul \u0131 \u01C5 \u212A \u2126 \u00C5 A\u030A").split(" ")
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_start|", "<|im_end|>>", "<<|im_end|>", "<|", "|>", "[A]",
          "[AB]", "[ABC]", "w\u00F6rd", "wo\u0308rd", "<mask>", "token", "__x__", "  "]


def clean(rng, size, kind):
    """A string of about `size` characters of one kind."""
    def word(pool, low=1, high=9):
        return "".join(chr(rng.choice(pool)) for _ in range(rng.randint(low, high)))

    parts, length = [], 0
    script = rng.choice(SCRIPTS)
    while length < size:
        if kind == "script":
            part = word(script) + rng.choice([" ", " ", " ", ", ", ".", "\n", "", "-", "\u3002"])
        elif kind == "scripts":
            part = word(rng.choice(SCRIPTS), 1, 4) + rng.choice(["", "", " "])
        elif kind == "emoji":
            part = rng.choice(EMOJI) + rng.choice(["", "", " ", "a", "\u200D", "\uFE0F", "\n"])
        elif kind == "marks":
            part = chr(rng.choice(script)) + word(MARKS, 0, 5) + rng.choice(["", "", " ", "1"])
        elif kind == "controls":
            part = rng.choice([chr(rng.randint(0, 31)), chr(rng.randint(127, 159)), "a", "\x00", "\r\n", " "])
        elif kind == "spaces":
            part = word(SPACES, 1, 5) + rng.choice(["", "", "a", "x1", ".", "'s", "\u00E9", "\u4E2D"])
        elif kind == "numbers":
            part = rng.choice([str(rng.randint(0, 10 ** rng.randint(1, 12))), word(NUMBERS, 1, 5)]) + rng.choice(["", " ", ".", "a"])
        elif kind == "symbols":
            part = word(SYMBOLS, 1, 4) + rng.choice(["", " ", "\n", "\r\n", "a", "\n\n "])
        elif kind == "english":
            part = rng.choice(WORDS) + rng.choice([" ", " ", " ", " ", "", "  ", "\n", "\t", "\r\n"])
        elif kind == "tokens":
            part = rng.choice(TOKENS) + rng.choice(["", "", " ", "   ", "\n ", "a", ".", "\u00E9", "\u3000"])
        elif kind == "anything":
            part = chr(rng.choice(ASSIGNED))
        else:
            part = clean(rng, rng.randint(1, 12), rng.choice(KINDS))
        parts.append(part)
        length += len(part)
    return "".join(parts)


KINDS = ["script", "scripts", "emoji", "marks", "controls", "spaces", "numbers", "symbols", "english", "tokens", "anything"]


def broken(rng, size):
    """Bytes that are mostly not UTF-8."""
    parts = []
    while sum(map(len, parts)) < size:
        whole = clean(rng, 4, rng.choice(KINDS)).encode()
        parts.append(rng.choice([
            whole, whole[:rng.randint(1, len(whole))], whole[1:], bytes([rng.randint(128, 255)]),
            b"\xed\xa0\x80", b"\xc0\xaf", b"\xe0\x80\x80", b"\xf4\x90\x80\x80", b"\xf0\x9f\x98", b"\xe2\x82",
            bytes(rng.randint(0, 255) for _ in range(rng.randint(1, 6)))]))
    return b"".join(parts)


def long_run(rng):
    """A few thousand of one thing: runs of letters, digits, spaces, marks, ..."""
    unit = rng.choice(["a", "A", " ", "\n", "\t", "1", "!", "'", "ab", "\u00E9", "\u4E2D", "\u0301", "\u3000", " \n", "a\u0301",
                       "=-", "\u0661", "\U0001F600", "the ", "\r\n", "\x00"])
    run = unit * rng.randint(200, 3000 // len(unit.encode()))
    return rng.choice(["", "x", " ", "1"]) + run + rng.choice(["", "b", " c", "\n", "\u00E9", "."])


def hard_strings():
    rng = random.Random(20240117)
    strings = [b"", b" ", b"\n", b"'", b"'s", b"\x00", b"\xff", b"a", b"\xef\xbb\xbfa", "\U0010FFFF\uFFFF\uFDD0".encode()]
    while len(strings) < STRINGS:
        size = rng.choice([rng.randint(1, 8), rng.randint(8, 40), rng.randint(40, 110)])
        kind = rng.choice(KINDS + ["mixed"] * 4 + ["broken"] * 2)
        if rng.random() < 0.006:
            strings.append(long_run(rng).encode())
        elif kind == "broken":
            strings.append(broken(rng, size))
        else:
            strings.append(clean(rng, size, kind).encode())
    return strings


# ---- the small vocabulary and its variants ----

def byte_symbols():
    plain = list(range(0x21, 0x7F)) + list(range(0xA1, 0xAD)) + list(range(0xAE, 0x100))
    symbols, n = {b: chr(b) for b in plain}, 0
    for b in range(256):
        if b not in symbols:
            symbols[b] = chr(256 + n)
            n += 1
    return symbols


def small_vocabulary(strings):
    """Bytes; then merges of every lead and continuation byte with the ASCII neighbours that the sweep uses, so that each
    boundary shows; then merges learnt from the hard strings with no splitting at all."""
    symbols = byte_symbols()
    vocab = [symbols[b] for b in range(256)]
    merges = []
    for neighbour in b"a1 \n.'":
        for byte in list(range(0x80, 0xC0)) + list(range(0xC2, 0xF5)):
            pair = (symbols[byte], symbols[neighbour]) if byte < 0xC0 else (symbols[neighbour], symbols[byte])
            merges.append(pair)
            vocab.append("".join(pair))
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(vocab_size=1000, initial_alphabet=sorted(symbols.values()), show_progress=False,
                                  max_token_length=12)
    learner.train_from_iterator((s.decode("utf-8", "replace") for s in strings[:3000]), trainer)
    known = set(vocab)
    for left, right in json.loads(learner.to_str())["model"]["merges"]:
        if left in known and right in known:
            merges.append((left, right))
            if left + right not in known:
                known.add(left + right)
                vocab.append(left + right)
    return {token: i for i, token in enumerate(vocab)}, [list(m) for m in merges]


def added(content, id, **options):
    token = {"id": id, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": False}
    return token | options


def split(pattern, behavior="Isolated", invert=False, literal=False):
    return {"type": "Split", "pattern": {"String" if literal else "Regex": pattern}, "behavior": behavior, "invert": invert}


def byte_level(prefix=False, regex=False):
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex}


def sequence(*parts):
    return {"type": "Sequence", "pretokenizers": list(parts)}


def variants(base):
    n = len(base["model"]["vocab"])
    options = {"<|im_start|>": {"special": True}, "<|im_end|>": {"special": True, "lstrip": True},
               "<mask>": {"special": True, "rstrip": True}, "[A]": {"lstrip": True, "rstrip": True}, "[AB]": {},
               "[ABC]": {"special": True}, "token": {"single_word": True}, "w\u00F6rd": {"normalized": True},
               "caf\u00E9": {"normalized": True, "single_word": True}, "  ": {}, "e\u0301": {"normalized": True, "rstrip": True},
               "__x__": {"special": True, "single_word": True, "normalized": True}}
    vocab, flags = base["model"]["vocab"], []
    for content, values in options.items():
        flags.append(added(content, vocab.get(content, n), **values))
        n += content not in vocab
    template = {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "b", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                           {"SpecialToken": {"id": "e", "type_id": 0}}, {"SpecialToken": {"id": "b", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"b": {"id": "b", "ids": [3], "tokens": ["$"]},
                                   "e": {"id": "e", "ids": [5, 4], "tokens": ["&", "%"]}}}
    def one(part):
        return {"pre_tokenizer": sequence(part, byte_level())}
    return {
        "llama3": one(split(LLAMA3)),
        "qwen": one(split(QWEN)) | {"normalizer": {"type": "NFC"}, "added_tokens": flags},
        "gpt2": {"pre_tokenizer": byte_level(regex=True), "post_processor": byte_level()},
        "gpt2_prefix": {"pre_tokenizer": byte_level(prefix=True, regex=True)},
        "llama3_prefix": {"pre_tokenizer": sequence(split(LLAMA3), byte_level(prefix=True))},
        "cased": one(split(CASED)),
        "punctuated": {"pre_tokenizer": sequence(split(r"\p{N}{1,3}"), split("[\u4E00-\u9FA5\u3040-\u309F\u30A0-\u30FF]+"),
                                                 split(PUNCTUATED), byte_level())},
        "removed": one(split(r"\s+", "Removed")),
        "merged_previous": one(split(r"\s", "MergedWithPrevious")),
        "merged_next": one(split(" ", "MergedWithNext", literal=True)),
        "contiguous": one(split(r"[\p{P}\p{S}]", "Contiguous")),
        "isolated_inverted": one(split(r"\p{L}", invert=True)),
        "removed_inverted": one(split(r"\w+", "Removed", invert=True)),
        "merged_previous_inverted": one(split(r"\d", "MergedWithPrevious", invert=True)),
        "merged_next_inverted": one(split(r"\S", "MergedWithNext", invert=True)),
        "contiguous_inverted": one(split(r"\p{Lu}", "Contiguous", invert=True)),
        "empty_matches": one(split(r"a*", "MergedWithPrevious")),
        "look_around": one(split(r"(?<=\p{L})(?=\p{N})|(?<!\s)(?=\s)|$|^", "MergedWithNext")),
        "classes": one(split(r"\w+|\d|\W\D|[\w.]|\S")),
        "scripts": one(split(r"\p{Han}+|\p{Greek}+|\p{Cyrillic}|\p{^L}|\P{Lu}|\P{^Ll}|[\p{Hiragana}\p{Arabic}]+", "Contiguous")),
        "lines": one(split(r"^.+$|.\u00e9|\x{4e2d}|\x41|(?>a+)b|a++c|(?:x|y){2,3}?")),
        "digits": {"pre_tokenizer": sequence({"type": "Digits", "individual_digits": True}, byte_level(regex=True))},
        "numbers": {"pre_tokenizer": sequence({"type": "Digits", "individual_digits": False}, sequence(byte_level(regex=True)))},
        "ignore_merges": {"pre_tokenizer": byte_level(regex=True), "model": {"ignore_merges": True}},
        "template": {"post_processor": {"type": "Sequence", "processors": [byte_level(), template]}, "added_tokens": flags},
        "no_decoder": {"decoder": None, "added_tokens": flags},
        "decoder_sequence": {"decoder": {"type": "Sequence", "decoders": [byte_level()]}, "added_tokens": flags},
        "merges_as_text": {"merges_as_text": True, "model": {"dropout": 0.0, "continuing_subword_prefix": "",
                                                             "end_of_word_suffix": "", "unk_token": "!", "fuse_unk": True}},
        "holes": {"vocab": "holes", "added_tokens": [added("!", 3 * ord("!") + 7, special=True)]},
    }


def compose(base, variant):
    """As test_text_tokenizer.c does it. "holes" stands for a rule: ids 3i + 7, without the letters qzQZ and every merge
    that needs them."""
    t = copy.deepcopy(base)
    for key, value in variant.items():
        if key == "model":
            t["model"] |= value
        elif key == "merges_as_text":
            t["model"]["merges"] = [" ".join(m) for m in t["model"]["merges"]]
        elif key == "vocab":
            gone = set("qzQZ")
            t["model"]["vocab"] = {k: 3 * i + 7 for k, i in t["model"]["vocab"].items() if not gone & set(k)}
            t["model"]["merges"] = [m for m in t["model"]["merges"] if not gone & set("".join(m))]
        else:
            t[key] = value
    return t


def old_marks(text):
    """Whether the package's NFC, whose tables are of Unicode 9, agrees with Unicode 14 on the text."""
    return tokenizers.normalizers.NFC().normalize_str(text) == unicodedata.normalize("NFC", text)


def variant_hash(tokenizer, variant, data):
    text = data.decode("utf-8", "replace")
    if variant.get("normalizer") and not old_marks(text):
        return 0
    return folded(tokenizer.encode(text).ids)


def sweep_text(block):
    return "".join("a{0}1{0} {0}\n{0}.{0}'{0}{0}a {0}1\n".format(chr(c)) for c in block)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=pathlib.Path)
    arguments = parser.parse_args()
    if tokenizers.__version__ != "0.23.3" or unicodedata.unidata_version != "14.0.0":
        sys.exit(f"tokenizers {tokenizers.__version__}, Unicode {unicodedata.unidata_version}; expected 0.23.3 and 14.0.0")
    model = Tokenizer.from_file(str(MODEL))

    def encode(tokenizer, data):
        return tokenizer.encode(data.decode("utf-8", "replace"), add_special_tokens=False).ids

    strings = hard_strings()
    encoded = [encode(model, s) for s in strings]
    (OUT / "hard_strings.bin").write_bytes(b"".join(
        struct.pack("<IIQ", len(s), len(ids), fnv(ids_bytes(ids))) + s for s, ids in zip(strings, encoded)))
    (OUT / "hard_ids.bin").write_bytes(b"".join(
        struct.pack("<I", len(ids)) + ids_bytes(ids) for ids in encoded[:FULL_IDS]))

    rng = random.Random(7)
    records = []
    for i in range(DECODES):
        ids = [rng.choice([rng.randrange(8192), rng.randrange(3, 259), rng.randrange(4)]) for _ in range(rng.randint(0, 40))]
        texts = [model.decode(ids, skip_special_tokens=skip).encode() for skip in (False, True)]
        records.append(struct.pack("<IQQ", len(ids), fnv(texts[0]), fnv(texts[1])) + ids_bytes(ids))
    (OUT / "decode.bin").write_bytes(b"".join(records))

    vocab, merges = small_vocabulary(strings)
    base = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
            "pre_tokenizer": byte_level(), "post_processor": None, "decoder": byte_level(),
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "vocab": vocab, "merges": merges}}
    named = variants(base)
    (OUT / "small.json").write_text(json.dumps(base, ensure_ascii=False, separators=(",", ":")) + "\n")
    (OUT / "variants.json").write_text(json.dumps(named, ensure_ascii=False, indent=1) + "\n")
    built = {name: Tokenizer.from_str(json.dumps(compose(base, v))) for name, v in named.items()}
    (OUT / "variants.bin").write_bytes(b"".join(
        struct.pack("<I", variant_hash(built[name], v, s)) for name, v in named.items() for s in strings[:VARIANT_STRINGS]))

    ranges = []
    for c in ASSIGNED:
        if ranges and ranges[-1][1] == c - 1:
            ranges[-1][1] = c
        else:
            ranges.append([c, c])
    swept = b"".join(
        struct.pack("<I", folded(built[name].encode(sweep_text(ASSIGNED[i:i + 64]), add_special_tokens=False).ids))
        for name in SWEPT for i in range(0, len(ASSIGNED), 64))
    (OUT / "code_points.bin").write_bytes(
        struct.pack("<I", len(ranges)) + b"".join(struct.pack("<II", *r) for r in ranges) + swept)

    if arguments.texts:
        lines = []
        for path in sorted(arguments.texts.glob("*.txt")):
            data = path.read_bytes()
            ids = encode(model, data)
            lines.append(f"{path.name}\t{len(data)}\t{len(ids)}\t{fnv(ids_bytes(ids)):016x}\n")
        (OUT / "texts.tsv").write_text("".join(lines))


if __name__ == "__main__":
    main()
