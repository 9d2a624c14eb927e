#!/usr/bin/env python3
"""Make tests/fixtures/checkpoint/glq-gpu.safetensors and e8_codebook.pt: linears of models/bookworm-8m that GLQ quantized, with
what GLQ's own kernels compute from them on a GPU.

    python3 -m venv V && V/bin/pip install torch==2.11.0 transformers==5.17.0 glq==0.8.16      (CUDA 13 and nvcc)
    V/bin/python3 tools/glq_gpu_fixtures.py WORK tests/fixtures/checkpoint [NAME=DIRECTORY]...

quantizes into WORK, a process each, spread over the GPUs, and keeps layer 0's k_proj of each: NAME.* as GLQ stores it, NAME.x [4][320]
its input in a forward pass, NAME.y [4][64] its output for the rows together, NAME.y1 [1][64] for the first row alone (GLQ has kernels
of their own for that). A NAME=DIRECTORY is a directory that walsh wrote, for GLQ to load; the committed file has walsh3 so (quantize
--bits 3 --samples 1 --sample-tokens 512).

    V/bin/python3 tools/glq_gpu_fixtures.py --cpu WORK tests/fixtures/checkpoint

makes glq-cpu.safetensors: e8p at 3 bits per weight, quantized without a GPU (torch 2.15.0 was used; ten minutes on a busy core). GLQ's linears of e8p run on
a GPU alone, so that y is x times the weights that GLQ's quantizer hands back for the codes that it writes, in f32, and x is what
the linear reads in the model before it was quantized. Two linears: e8p3.* is LINEAR, e8p3o.* ANOTHER.

GLQ's wheel was built for another PyTorch than 2.11: where its extension refuses CUDA tensors, remove glq/_C*.so and GLQ compiles it
anew. The calibration text is the repository's in the place of the one that GLQ would download.
"""
import functools
import importlib.machinery
import json
import os
import subprocess
import sys
import types

import torch
import transformers
from safetensors.torch import load_file, save_file

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MODEL, ROWS = f"{ROOT}/models/bookworm-8m", 4
LINEAR, ANOTHER = "model.layers.0.self_attn.k_proj", "model.layers.4.self_attn.o_proj"
CONFIGS = {  # codebook, bits, environment, entries of the codebook
    "e8p2": ("e8p", 2, {}, None),
    "e8p3": ("e8p", 3, {}, None),
    "e8p4": ("e8p", 4, {}, None),
    "pow2": ("e8p", 2, {"GLQ_E8P_POW2": "1"}, None),
    "shell": ("e8_shell", 2, {}, 4096),
    "trellis": ("trellis", 2, {"GLQ_TRELLIS_VARIANT": "3inst"}, None),
}


def read(path):
    with open(f"{ROOT}/{path}", encoding="utf-8") as f:
        return f.read()


def stub_datasets():
    datasets = types.ModuleType("datasets")
    datasets.__spec__ = importlib.machinery.ModuleSpec("datasets", None)
    datasets.load_dataset = lambda *_, **__: {"text": [read("data/calibration.txt")]}
    sys.modules["datasets"] = datasets


def keep_grid():
    """GLQ enumerates the 33 million points among which E81B's are for every linear of 3 bits: once is enough."""
    import glq.codebook_e8p as codebooks
    codebooks.get_e81bgrid = functools.cache(codebooks.get_e81bgrid)


def outputs(directory):
    """The kept linear's tensors, and what it reads and gives in a forward pass of GLQ."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval().to("cuda")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    ids = torch.tensor([tokenizer(read("data/valid.txt")[:4000]).input_ids[:128]]).to("cuda")
    linear, kept = model.get_submodule(LINEAR), {}
    linear.register_forward_hook(lambda _, x, y: kept.update(x=x[0], y=y))
    with torch.no_grad():
        model(ids)
        x, y = (kept[k].reshape(-1, kept[k].shape[-1])[:ROWS] for k in "xy")
        out = {"x": x, "y": y, "y1": linear(x[:1])}
    stored = load_file(f"{directory}/model.safetensors")
    out |= {k[len(LINEAR) + 1:]: v for k, v in stored.items() if k.startswith(LINEAR + ".")}
    return {k: v.cpu().contiguous() for k, v in out.items()}


def quantize(name, directory, device="cuda"):
    from glq.quantize_model import quantize as quantize_model
    keep_grid()
    codebook, bits, _, entries = CONFIGS[name]
    quantize_model(MODEL, directory, bpw=bits, nsamples=16, seqlen=512, device=device, codebook_type=codebook, codebook_size=entries,
                   workers=1)


def quantize_all(work):
    """Every configuration in a process of its own, which has its environment."""
    devices = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    devices = devices.split(",")
    jobs = []
    for i, (name, (_, _, environment, _)) in enumerate(CONFIGS.items()):
        environment = {**os.environ, **environment, "CUDA_VISIBLE_DEVICES": devices[i % len(devices)]}
        jobs.append(subprocess.Popen([sys.executable, __file__, "--quantize", name, f"{work}/{name}"], env=environment))
    if any([job.wait() for job in jobs]):
        sys.exit("GLQ failed")


def main_cpu(work, out):
    import glq.quantize_model as module
    quantize_linear, made, tensors = module.quantize_layer_e8_shell_rht, [], {}

    def keep(*args, **kwargs):
        result = quantize_linear(*args, **kwargs)
        made.append(result[:2])
        return result

    module.quantize_layer_e8_shell_rht = keep
    quantize("e8p3", f"{work}/e8p3", "cpu")
    stored = load_file(f"{work}/e8p3/model.safetensors")
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    ids = torch.tensor([transformers.AutoTokenizer.from_pretrained(MODEL)(read("data/valid.txt")[:4000]).input_ids[:128]])
    for name, linear in {"e8p3": LINEAR, "e8p3o": ANOTHER}.items():
        kept = {}
        hook = model.get_submodule(linear).register_forward_hook(lambda _, x, y: kept.update(x=x[0]))
        with torch.no_grad():
            model(ids)
        hook.remove()
        parts = {k[len(linear) + 1:]: v for k, v in stored.items() if k.startswith(linear + ".")}
        [weights] = [w for w, a in made if torch.equal(a["Qidxs_e8p"], parts["Qidxs_e8p"])]
        x = kept["x"].reshape(-1, kept["x"].shape[-1])[:ROWS]
        parts |= {"x": x, "y": x @ weights.float().cpu().T}
        tensors |= {f"{name}.{k}": v.contiguous() for k, v in parts.items()}
    save_file(tensors, f"{out}/glq-cpu.safetensors")


def main():
    stub_datasets()
    if len(sys.argv) == 4 and sys.argv[1] == "--quantize":
        return quantize(*sys.argv[2:])
    if len(sys.argv) == 4 and sys.argv[1] == "--cpu":
        return main_cpu(*sys.argv[2:])
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    import glq.hf_integration  # noqa: F401 (registers the quantizer)
    work, out, tensors = sys.argv[1], sys.argv[2], {}
    quantize_all(work)
    directories = {name: f"{work}/{name}" for name in CONFIGS} | dict(a.split("=", 1) for a in sys.argv[3:])
    for name, directory in directories.items():
        tensors |= {f"{name}.{k}": v for k, v in outputs(directory).items()}
        with open(f"{directory}/config.json", encoding="utf-8") as f:
            print(name, json.load(f)["quantization_config"]["codebook"])
    save_file(tensors, f"{out}/glq-gpu.safetensors")
    with open(f"{work}/shell/e8_codebook.pt", "rb") as f, open(f"{out}/e8_codebook.pt", "wb") as g:
        g.write(f.read())


if __name__ == "__main__":
    main()
