#!/usr/bin/env python3
"""Writes test/golden/quantizers.json, which test/test_quantizers.cpp reads: scales and codes that the real packages give
to weights both sides make by the same formula. Codes and scales are kept as a hash (FNV-1a, 64 bits, of the bytes: int8
or uint8 codes, little-endian fp32 scales) and their first values.

Where conventions differ: this program rounds integer scales to bf16, so the weights of integer formats are made such
that the packages' scales are bf16 numbers too. torchao multiplies by 1/s, so its scales are powers of two, whose
reciprocals are exact. bitsandbytes takes torch's mean of the scales, whose last bit depends on the order of the sum: the
nested codes here are of the correctly rounded mean, and torch's is kept beside it. Its CPU kernel looks nested codes up
in a table of 2^16 steps, so that some of them are not the nearest; its kernel for other types (here: float64) and its
GPU kernel take the nearest, and so does this program. A group of zeros is left out: the packages give it a scale of
eps, this program 1 (fp8) or the least; its codes are zero either way.
Run with bitsandbytes 0.50.2, compressed-tensors 0.20.0, torchao 0.18.0, torch 2.15.0:
python3 test/make_golden_quantizers.py
"""
import json
import os

import bitsandbytes.functional as bnb
import numpy as np
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import quantize
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from torchao.quantization.granularity import PerAxis, PerGroup
from torchao.quantization.qat import IntxFakeQuantizeConfig
from torchao.quantization.qat.fake_quantizer import IntxFakeQuantizer

F = np.float32


def fnv(data):
    h = 0xCBF29CE484222325
    for b in data:
        h = (h ^ b) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{h:016x}"


def uniform(n):
    """in [-0.5, 0.5), by a linear congruential generator"""
    x, out = 1, np.empty(n, F)
    for i in range(n):
        x = (1664525 * x + 1013904223) & 0xFFFFFFFF
        out[i] = F((x >> 8) - (1 << 23)) * F(2.0**-24)
    return out


def plain(rows, cols):
    """rows of different sizes"""
    w = uniform(rows * cols).reshape(rows, cols) * F(0.125)
    w *= (F(2.0) ** -(np.arange(rows) % 5)).astype(F)[:, None]
    return w


def on_grid(rows, cols, group, bits, symmetric, power_of_two):
    """groups whose scale is a bf16 number"""
    u = uniform(rows * cols).reshape(-1, group)
    g = np.arange(len(u))
    s = (F(2.0) ** -(5 + g % 3)).astype(F) * (F(1) if power_of_two else (1 + (g % 8) / 8).astype(F))
    levels = F(2**bits - 1)
    if symmetric:
        w = u * levels
        w[:, 0] = -levels / 2
    else:
        k = F(2 ** (bits - 2))
        w = (u + F(0.5)) * levels - k
        w[:, 0], w[:, 1] = -k, levels - k
    return (w * s[:, None]).reshape(rows, cols)


def ends(w, scope):
    t = torch.tensor(w)
    if scope == "tensor":
        return t.min().reshape(1), t.max().reshape(1)
    if scope == "128x128":
        tiles = [[w[r:r + 128, c:c + 128] for c in range(0, w.shape[1], 128)] for r in range(0, w.shape[0], 128)]
        return tuple(torch.tensor([[f(x) for x in row] for row in tiles]) for f in (np.min, np.max))
    group = w.shape[1] if scope == "channel" else int(scope[1:])
    t = t.reshape(w.shape[0], -1, group)
    return t.amin(-1), t.amax(-1)


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], F)


def codes_of(q, args):
    if args.type == "int":
        return q.to(torch.int8).numpy()
    if args.num_bits == 8:
        return q.to(torch.float8_e4m3fn).view(torch.int8).numpy()
    v = q.float().numpy()
    return (np.searchsorted(E2M1, np.abs(v)) + 8 * np.signbit(v)).astype(np.int8)


def compressed_tensors(text, w, scope, **kw):
    strategy = {"tensor": "tensor", "channel": "channel", "128x128": "block"}.get(scope, kw.pop("strategy", "group"))
    if strategy in ("group", "tensor_group"):
        kw["group_size"] = int(scope[1:])
    if strategy == "block":
        kw["block_structure"] = [128, 128]
    args = QuantizationArgs(strategy=strategy, **kw)
    low, high = ends(w, scope)
    total = generate_gparam(torch.tensor(w.min()), torch.tensor(w.max())) if strategy == "tensor_group" else None
    scale, zero = calculate_qparams(low, high, args, global_scale=total)
    q = quantize(torch.tensor(w), scale, zero, args, global_scale=total)
    scale = scale.float() / total if total is not None else scale.float()
    return record(text, w, codes_of(q, args), scale.numpy(), zero.float().numpy(), total)


def record(text, w, codes, scale, zero=None, total=None):
    codes = np.ascontiguousarray(codes)
    scale = np.ascontiguousarray(scale, F)
    r = {"text": text, "rows": w.shape[0], "cols": w.shape[1], "weights": fnv(np.ascontiguousarray(w).tobytes()),
         "codes": fnv(codes.tobytes()), "first_codes": codes.reshape(-1)[:16].tolist(),
         "scales": fnv(scale.tobytes()), "first_scales": [float(x) for x in scale.reshape(-1)[:8]]}
    if zero is not None and zero.any():
        r["first_zeros"] = [float(x) for x in zero.reshape(-1)[:8]]
    if total is not None:
        r["tensor_scale"] = float(total)
    return r


def torchao(text, w, dtype, granularity):
    fake = IntxFakeQuantizer(IntxFakeQuantizeConfig(dtype, granularity=granularity, is_symmetric=True))
    value = fake(torch.tensor(w)).numpy()
    scale = fake.scale.float().numpy()
    codes = value.reshape(scale.size, -1) / scale.reshape(-1, 1)
    assert (codes == np.rint(codes)).all()
    return record(text, w, codes.astype(np.int8), scale)


def nf4(w, double):
    packed, state = bnb.quantize_4bit(torch.tensor(w), blocksize=64, quant_type="nf4", compress_statistics=False)
    packed = packed.numpy().reshape(-1)
    codes = np.stack([packed >> 4, packed & 15], 1).astype(np.int8)  # the high nibble is first
    absmax = state.absmax
    if not double:
        return record("nf4", w, codes, absmax.numpy())
    offset = F(absmax.double().mean().item())
    code = bnb.create_dynamic_map()
    nested, nested_absmax = torch.ops.bitsandbytes.quantize_blockwise((absmax - torch.tensor(offset)).double(), code, 256)
    scale = torch.ops.bitsandbytes.dequantize_blockwise(nested, nested_absmax, code, 256, torch.float32) + torch.tensor(offset)
    r = record("nf4:dq", w, codes, scale.numpy())
    _, theirs = bnb.quantize_4bit(torch.tensor(w), blocksize=64, quant_type="nf4", compress_statistics=True)
    r["nested"] = {"map": fnv(code.numpy().astype(F).tobytes()), "codes": fnv(nested.numpy().tobytes()),
                   "first_codes": nested.reshape(-1)[:16].tolist(),
                   "absmax": [float(x) for x in nested_absmax], "offset": float(offset), "torch_offset": theirs.offset.item()}
    return r


def main():
    fp8 = dict(num_bits=8, type="float", symmetric=True)
    fp4 = dict(num_bits=4, type="float", symmetric=True)
    cases = []
    for text, scope, bits, symmetric in [("int4:g32:sym", "g32", 4, True), ("int8:channel:sym", "channel", 8, True),
                                         ("int3:g64:sym", "g64", 3, True), ("int4:g128:asym", "g128", 4, False),
                                         ("int8:channel:asym", "channel", 8, False), ("int2:g32:sym", "g32", 2, True)]:
        group = 256 if scope == "channel" else int(scope[1:])
        w = on_grid(12, 256, group, bits, symmetric, False)
        r = compressed_tensors(text, w, scope, num_bits=bits, type="int", symmetric=symmetric)
        cases.append({"package": "compressed-tensors", "made": "on_grid", **r})
    for text, bits, group, granularity in [("int4:g32:sym", 4, 32, PerGroup(32)), ("int8:g64:sym", 8, 64, PerGroup(64)),
                                           ("int4:channel:sym", 4, 256, PerAxis(0)), ("int8:channel:sym", 8, 256, PerAxis(0))]:
        w = on_grid(12, 256, group, bits, True, True)
        r = torchao(text, w, torch.int8 if bits == 8 else torch.int4, granularity)
        cases.append({"package": "torchao", "made": "on_grid2", **r})
    mx = dict(scale_dtype=torch.uint8, zp_dtype=torch.uint8)
    for text, shape, scope, kw in [
            ("fp8e4m3:tensor", (12, 256), "tensor", fp8), ("fp8e4m3:channel", (12, 256), "channel", fp8),
            ("fp8e4m3:128x128", (150, 256), "128x128", fp8), ("mxfp8", (12, 256), "g32", {**fp8, **mx}),
            ("mxfp4", (12, 256), "g32", {**fp4, **mx}),
            ("nvfp4", (12, 256), "g16", {**fp4, "strategy": "tensor_group", "scale_dtype": torch.float8_e4m3fn,
                                         "zp_dtype": torch.float8_e4m3fn})]:
        cases.append({"package": "compressed-tensors", "made": "plain", **compressed_tensors(text, plain(*shape), scope, **kw)})
    for double in (False, True):
        cases.append({"package": "bitsandbytes", "made": "plain", **nf4(plain(70, 1024), double)})
    here = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(here, "golden", "quantizers.json"), "w") as f:
        f.write("{\"cases\": [\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]}\n")


main()
