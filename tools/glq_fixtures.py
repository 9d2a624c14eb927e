#!/usr/bin/env python3
"""Make tests/fixtures/checkpoint/glq-layers.safetensors: layers that GLQ itself quantized, and what GLQ computes from them.

    python3 -m venv V && V/bin/pip install torch==2.15.0 transformers==5.23.0 && V/bin/pip install --no-deps glq==0.8.16
    V/bin/python3 tools/glq_fixtures.py tests/fixtures/checkpoint/glq-layers.safetensors

Runs on the CPU, where GLQ has no forward of e8p: a layer NAME.* has its tensors as GLQ writes them, NAME.x [4][in] and NAME.y
[4][out], f32, x times the weights that GLQ's quantizer hands back in their place, rotated back by its own code.
"""
import sys

import torch
from glq.codebook_e8p import E8PCodebook
from glq.quantize_model import quantize_layer_e8_shell_rht
from safetensors.torch import save_file

LAYERS = {  # out, in, bits
    "e8p2": (80, 320, 2),
    "e8p3": (48, 192, 3),
    "e8p4": (48, 192, 4),
}


def main():
    torch.set_num_threads(1)
    torch.manual_seed(1)
    codebook = E8PCodebook(verbose=False)
    out = {}
    for name, (rows, cols, bits) in LAYERS.items():
        w = torch.randn(rows, cols) * (0.5 + torch.rand(rows, 1)) * 0.05
        inputs = torch.randn(4 * cols, cols) @ torch.randn(cols, cols) / cols ** 0.5
        decoded, stored, _ = quantize_layer_e8_shell_rht(w, inputs.T @ inputs / len(inputs), codebook, bpw=bits)
        stored = {k: v for k, v in stored.items() if torch.is_tensor(v)}
        x = torch.randn(4, cols)
        y = (x.double() @ decoded[:rows, :cols].double().T).float()
        print(name, {k: (tuple(v.shape), str(v.dtype)) for k, v in stored.items()}, "error of the layer:",
              ((y - x @ w.T).norm() / y.norm()).item())
        out |= {f"{name}.{k}": v.contiguous() for k, v in stored.items()}
        out |= {f"{name}.x": x, f"{name}.y": y}
    save_file(out, sys.argv[1])


if __name__ == "__main__":
    main()
