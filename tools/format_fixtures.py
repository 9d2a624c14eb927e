#!/usr/bin/env python3
"""Make tests/fixtures/formats/encoded.safetensors: what torchao and compressed-tensors make of the same numbers.

    python3 -m venv V && V/bin/pip install torch==2.15.0 torchao==0.18.0 compressed-tensors==0.20.0
    V/bin/python3 tools/format_fixtures.py tests/fixtures/formats/encoded.safetensors

x [ROWS, COLS] f32: rows of weights, of groups whose size differs by powers of two, of ties, of the smallest and the
largest numbers, and a group of zeros. MODE of MX: floor, ceil, even, rceil.
  mxfp4.MODE.codes, .scales        torchao.prototype.mx_formats, two codes per byte, E8M0 bytes
  mxfp8-e4m3.MODE..., mxfp8-e5m2.MODE...
  nvfp4.codes, .scales, .tensor    torchao's two-level scaling
  fp8.codes, .scales               compressed-tensors, a scale per row
  intB-gG.q, .scales               compressed-tensors, symmetric; int4 and int8, groups of 32, 64, 128
  intB-gG-asymmetric.q, .scales, .zeros
  int4-packed.weight, .zero        its pack_to_int32 of int4-g32-asymmetric
"""
import sys

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationStrategy
from compressed_tensors.quantization.lifecycle.forward import quantize
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file
from torchao.prototype.mx_formats.config import ScaleCalculationMode
from torchao.prototype.mx_formats.mx_tensor import to_mx
from torchao.prototype.mx_formats.nvfp4_tensor import nvfp4_quantize, per_tensor_amax_to_scale

ROWS, COLS = 24, 256


def inputs():
    g = torch.Generator().manual_seed(7)
    x = torch.randn(ROWS, COLS, generator=g) * 0.03
    spread = torch.exp2(torch.randint(-20, 8, (4, COLS // 32, 1), generator=g).float())
    x[4:8] = (x[4:8].reshape(4, -1, 32) * spread).reshape(4, COLS)
    x[8:10] = x[8:10].bfloat16().float()
    halves = torch.arange(-64, 64).float() / 8  # every tie of E2M1, and those of its neighbours
    x[10] = torch.cat([halves, halves * 2.0 ** -9])
    x[11] = torch.cat([halves.flip(0) * 1.5, halves * 2.0 ** 20])
    x[12, :32] = 0
    x[12, 32:64] = -0.0
    x[12, 64] = 6.0 * 2.0 ** -7
    x[13] *= 2.0 ** -115
    x[14] *= 2.0 ** -124  # scales at the end of E8M0
    x[15] *= 2.0 ** -140
    x[16] *= 2.0 ** 65
    x[16] *= 2.0 ** 65
    x[17] = torch.randint(-127, 128, (COLS,), generator=g).float()
    x[18] = x[18].abs()
    x[19] = -x[19].abs()
    return x


def mx(out, name, x, dtype, mode):
    scales, codes = to_mx(x, dtype, 32, mode)
    out[f"{name}.codes"] = codes.view(torch.uint8).reshape(ROWS, -1).contiguous()
    out[f"{name}.scales"] = scales.view(torch.uint8).contiguous()


def affine(out, x, bits, group, symmetric):
    name = f"int{bits}-g{group}" + ("" if symmetric else "-asymmetric")
    args = QuantizationArgs(num_bits=bits, type="int", strategy=QuantizationStrategy.GROUP, group_size=group,
                            symmetric=symmetric)
    blocks = x.reshape(ROWS, -1, group)
    scales, zeros = calculate_qparams(blocks.amin(-1), blocks.amax(-1), args)
    q = quantize(x, scales, zeros, args, dtype=torch.int8)
    out[f"{name}.q"], out[f"{name}.scales"] = q, scales
    if not symmetric:
        out[f"{name}.zeros"] = zeros.to(torch.int8)


def main():
    x, out = inputs(), {}
    out["x"] = x
    for mode in ScaleCalculationMode:
        mx(out, f"mxfp4.{mode.value}", x, torch.float4_e2m1fn_x2, mode)
        mx(out, f"mxfp8-e4m3.{mode.value}", x, torch.float8_e4m3fn, mode)
        mx(out, f"mxfp8-e5m2.{mode.value}", x, torch.float8_e5m2, mode)
    usual = x[:12].contiguous()
    tensor = per_tensor_amax_to_scale(usual.abs().max())
    scales, codes = nvfp4_quantize(usual, per_tensor_scale=tensor)
    out["nvfp4.codes"], out["nvfp4.scales"] = codes.view(torch.uint8), scales.view(torch.uint8)
    out["nvfp4.tensor"] = tensor.reshape(1)
    args = QuantizationArgs(num_bits=8, type="float", strategy=QuantizationStrategy.CHANNEL, symmetric=True)
    scales, _ = calculate_qparams(x.amin(-1, keepdim=True), x.amax(-1, keepdim=True), args)
    out["fp8.codes"] = quantize(x, scales, None, args).to(torch.float8_e4m3fn).view(torch.uint8)
    out["fp8.scales"] = scales
    for bits in (4, 8):
        for group in (32, 64, 128):
            affine(out, x, bits, group, True)
            affine(out, x[:12].repeat(2, 1), bits, group, False)
    out["int4-packed.weight"] = pack_to_int32(out["int4-g32-asymmetric.q"], 4)
    out["int4-packed.zero"] = pack_to_int32(out["int4-g32-asymmetric.zeros"], 4, packed_dim=0)
    assert x.isfinite().all()
    save_file({k: v.contiguous() for k, v in out.items()}, sys.argv[1])


if __name__ == "__main__":
    main()
