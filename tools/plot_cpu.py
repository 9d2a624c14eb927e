#!/usr/bin/env python3
"""Table and plot of bench/results/cpu-peers.json: decode and prompts of the Llama shape of 1.709 G weights per token by walsh and
by llama-bench, two threads.

    tools/plot_cpu.py bench/results/cpu-peers.json docs/images/cpu-peers.svg    # prints the table, writes the plot

The file is a list of runs in the order in which they were made: {"engine": "walsh", "format", "bits", "head", "arguments",
"result": what `walsh bench --json` printed} or {"engine": "llama-bench", "type", "bits", "head", "repack", "result": [{"test",
"samples_ts"}]}. Repeated runs of one thing are joined by their median.
"""
import json
import statistics
import sys

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 760, 420, 60, 50, 40, 20
COLOURS = {"walsh": "#0b6e4f", "llama-bench": "#c44536"}
LABELS = {"walsh": "walsh", "llama-bench": "ik_llama.cpp"}


def collect(runs):
    """{(engine, name, bits): {"decode" | "decode 8" | "prompt": [tokens/s]}}"""
    points = {}
    for run in runs:
        if run["engine"] == "walsh":
            of = points.setdefault(("walsh", run["format"], run["bits"]), {})
            for r in run["result"]["results"]:
                name = "prompt" if r["test"] == "prompt" else "decode" if r["batch"] == 1 else "decode %d" % r["batch"]
                of.setdefault(name, []).append(r["tokens_per_second"])
        else:
            of = points.setdefault(("llama-bench", run["type"], run["bits"]), {})
            for r in run["result"]:
                name = "prompt" if r["test"].startswith("pp") else "decode"
                of.setdefault(name + " repacked" * run["repack"], []).append(statistics.median(r["samples_ts"]))
    for of in points.values():
        for name in list(of):
            of[name] = statistics.median(of[name])
        for name in ("decode", "prompt"):  # plain or repacked at load, whichever is faster
            best = max((of[n] for n in (name, name + " repacked") if n in of), default=None)
            if best is not None:
                of[name] = best
    return points


def table(points):
    lines = ["| weights | bits | engine | decode, tokens/s | 8 rows | prompt of 512, tokens/s |", "|---|---|---|---|---|---|"]
    for (engine, name, bits), of in sorted(points.items(), key=lambda p: (p[0][2], p[0][0] != "walsh")):
        cell = lambda n, f: f % of[n] if n in of else ""
        lines.append("| %s | %g | %s | %s | %s | %s |" % (name, bits, LABELS[engine], cell("decode", "%.1f"), cell("decode 8", "%.0f"),
                                                         cell("prompt", "%.0f")))
    return "\n".join(lines)


def plot(points):
    shown = [(e, n, b, of["decode"]) for (e, n, b), of in points.items() if "decode" in of and b < 9]
    most = 10 * (int(max(p[3] for p in shown)) // 10 + 1)
    x = lambda bits: LEFT + (bits - 1.5) / 3.5 * (WIDTH - LEFT - RIGHT)
    y = lambda rate: HEIGHT - BOTTOM - rate / most * (HEIGHT - BOTTOM - TOP)
    out = ['<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13">'
           % (WIDTH, HEIGHT, WIDTH, HEIGHT), '<rect width="100%" height="100%" fill="white"/>',
           '<text x="%d" y="22" font-size="15">Decode, two threads of a Xeon with AMX, 1.709 G weights per token</text>' % LEFT]
    for rate in range(0, most + 1, 10):
        out.append('<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%d</text>'
                   % (LEFT, y(rate), WIDTH - RIGHT, y(rate), LEFT - 8, y(rate) + 4, rate))
    for bits in (2, 3, 4, 5):
        out.append('<text x="%.1f" y="%d" text-anchor="middle">%d</text>' % (x(bits), HEIGHT - BOTTOM + 18, bits))
    out.append('<text x="%d" y="%d" text-anchor="middle">bits per weight</text>' % ((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10))
    out.append('<text transform="translate(16 %d) rotate(-90)" text-anchor="middle">tokens per second</text>' % (HEIGHT / 2))
    for engine, name, bits, rate in shown:
        out.append('<circle cx="%.1f" cy="%.1f" r="5" fill="%s"/><text x="%.1f" y="%.1f" fill="%s">%s</text>'
                   % (x(bits), y(rate), COLOURS[engine], x(bits) + 8, y(rate) + 4, COLOURS[engine], name))
    for i, engine in enumerate(("walsh", "llama-bench")):
        out.append('<circle cx="%d" cy="%d" r="5" fill="%s"/><text x="%d" y="%d">%s</text>'
                   % (WIDTH - 150, TOP + 14 + 20 * i, COLOURS[engine], WIDTH - 138, TOP + 18 + 20 * i, LABELS[engine]))
    return "\n".join(out + ["</svg>"]) + "\n"


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with open(sys.argv[1], encoding="utf-8") as f:
        points = collect(json.load(f))
    print(table(points))
    with open(sys.argv[2], "w", encoding="utf-8") as f:
        f.write(plot(points))


if __name__ == "__main__":
    main()
