#!/usr/bin/env python3
"""Writes test/golden/containers.safetensors, which test/test_containers.cpp reads.

Small random linears as the packages themselves store them: compressed-tensors (each format's compress), GPTQModel (pack,
v1 and v2, in order and with act-order), AWQ (GPTQModel's gemm packing), bitsandbytes (quantize_4bit). For a case NAME:
  NAME.SUFFIX       the tensors of the container
  NAME.out          fp32, the first rows (4 at most) of what the package says they stand for, computed in fp32
and the metadata entry NAME: the quantization_config, and the shape, as JSON.
Needs torch, safetensors, compressed-tensors, gptqmodel, bitsandbytes: python3 test/make_golden_containers.py [FILE]
Written with torch 2.15.0, compressed-tensors 0.20.0, GPTQModel 7.7.0, bitsandbytes 0.50.2.
"""
import json
import os
import sys
from importlib.metadata import version

import torch
from safetensors.torch import save_file

tensors, meta = {}, {}


def add(name, parts, values, shape, config):
    name = name.replace(".", "-")  # no case is the beginning of another
    for suffix, t in parts.items():
        tensors[f"{name}.{suffix}"] = t.detach().contiguous().clone()
    assert values.dtype == torch.float32 and list(values.shape) == list(shape), (name, values.dtype, values.shape)
    tensors[f"{name}.out"] = values[:4].contiguous().clone()
    meta[name] = json.dumps({"shape": list(shape), "config": config})


def weights(seed, rows, cols):
    w = torch.randn((rows, cols), generator=torch.Generator().manual_seed(seed)) * 0.05
    w[0, 0] = 0.4
    return w


def compressed_tensors_cases():
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.lifecycle.forward import dequantize
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    def qparams(w, args, g=None):
        if args.strategy in ("group", "tensor_group"):
            x = w.reshape(w.shape[0], -1, args.group_size)
            lo, hi = x.amin(-1), x.amax(-1)
        elif args.strategy == "channel":
            lo, hi = w.amin(1, keepdim=True), w.amax(1, keepdim=True)
        elif args.strategy == "block":
            r, c = args.block_structure
            pad = torch.nn.functional.pad(w, (0, -w.shape[1] % c, 0, -w.shape[0] % r))
            x = pad.reshape(pad.shape[0] // r, r, pad.shape[1] // c, c)
            lo, hi = x.amin((1, 3)), x.amax((1, 3))
        else:
            lo, hi = w.amin().reshape(1), w.amax().reshape(1)
        return calculate_qparams(lo, hi, args, global_scale=g)

    def case(name, format, rows, cols, activations=None, scale_dtype=torch.bfloat16, **kw):
        args = QuantizationArgs(dynamic=False, **kw)
        scheme = QuantizationScheme(targets=["Linear"], weights=args,
                                    input_activations=QuantizationArgs(**activations) if activations else None)
        w = weights(len(meta), rows, cols)
        g = generate_gparam(w.min().reshape(1), w.max().reshape(1)).float() if "nvfp4" in format else None
        scale, zero = qparams(w, args, g)
        if scale_dtype and not g and "mx" not in format:
            scale = scale.to(scale_dtype).float()
        state = {"weight": w, "weight_scale": scale}
        if not args.symmetric:
            state["weight_zero_point"] = zero.to(torch.int8)
        if g is not None:
            state["weight_global_scale"] = g
        compressor = BaseCompressor.get_value_from_registry(format)
        parts = compressor.compress(state, scheme)
        if "fp4" in format:
            x = unpack_fp4_from_uint8(parts["weight_packed"], rows, cols, torch.float32)
            s = parts["weight_scale"]
            s = s.float() if g is not None else 2.0 ** (s.float() - 127)
            values = dequantize(x_q=x, scale=s, args=args, global_scale=g, dtype=torch.float32)
        elif "mxfp8" in format:
            s = 2.0 ** (parts["weight_scale"].float() - 127)
            values = dequantize(x_q=parts["weight"], scale=s, args=args)
        else:
            values = compressor.decompress(parts, scheme)["weight"]
        if scale_dtype and g is None and "mx" not in format:
            parts["weight_scale"] = parts["weight_scale"].to(scale_dtype)
        config = {"quant_method": "compressed-tensors", "format": format, "quantization_status": "compressed",
                  "ignore": ["lm_head"],
                  "config_groups": {"group_0": {"targets": ["Linear"], "input_activations": activations,
                                                "output_activations": None,
                                                "weights": json.loads(args.model_dump_json())}}}
        add(name, parts, values.float(), (rows, cols), config)

    for bits in (2, 3, 4, 5, 6, 8):
        case(f"ct.int{bits}.g32", "pack-quantized", 8, 64, num_bits=bits, type="int", symmetric=True,
             strategy="group", group_size=32)
    case("ct.int4.asym.g32", "pack-quantized", 12, 96, num_bits=4, type="int", symmetric=False, strategy="group",
         group_size=32)
    case("ct.int3.asym.g32", "pack-quantized", 12, 96, num_bits=3, type="int", symmetric=False, strategy="group",
         group_size=32)
    case("ct.int3.channel", "pack-quantized", 5, 43, num_bits=3, type="int", symmetric=True, strategy="channel")
    case("ct.int8.asym.channel", "pack-quantized", 6, 40, num_bits=8, type="int", symmetric=False, strategy="channel")
    case("ct.w8a8", "int-quantized", 7, 33, num_bits=8, type="int", symmetric=True, strategy="channel",
         activations=dict(num_bits=8, type="int", symmetric=True, strategy="token", dynamic=True))
    fp8 = dict(num_bits=8, type="float", symmetric=True)
    token = dict(num_bits=8, type="float", symmetric=True, strategy="token", dynamic=True)
    case("ct.fp8.tensor", "float-quantized", 8, 48, scale_dtype=None, strategy="tensor", activations=token, **fp8)
    case("ct.fp8.channel", "float-quantized", 8, 48, scale_dtype=None, strategy="channel", activations=token, **fp8)
    case("ct.fp8.block", "float-quantized", 5, 256, scale_dtype=None, strategy="block", block_structure=[128, 128],
         activations=dict(num_bits=8, type="float", symmetric=True, strategy="group", group_size=128, dynamic=True),
         **fp8)
    for name, format, group, dtype in (("ct.mxfp8", "mxfp8-quantized", 32, torch.uint8),
                                       ("ct.mxfp4", "mxfp4-pack-quantized", 32, torch.uint8),
                                       ("ct.nvfp4", "nvfp4-pack-quantized", 16, torch.float8_e4m3fn)):
        strategy = "tensor_group" if group == 16 else "group"
        bits = 8 if "fp8" in format else 4
        args = QuantizationArgs(num_bits=bits, type="float", symmetric=True, strategy=strategy, group_size=group,
                                dynamic=False, scale_dtype=dtype, zp_dtype=dtype)
        scheme = QuantizationScheme(targets=["Linear"], weights=args)
        rows, cols = 6, 96
        w = weights(100 + group + bits, rows, cols)
        g = generate_gparam(w.min().reshape(1), w.max().reshape(1)).float() if group == 16 else None
        scale, _ = qparams(w, args, g)
        state = {"weight": w, "weight_scale": scale}
        if g is not None:
            state["weight_global_scale"] = g
        parts = BaseCompressor.get_value_from_registry(format).compress(state, scheme)
        s = parts["weight_scale"]
        s = s.float() if g is not None else 2.0 ** (s.float() - 127)
        x = parts["weight"] if bits == 8 else unpack_fp4_from_uint8(parts["weight_packed"], rows, cols, torch.float32)
        values = dequantize(x_q=x.float(), scale=s, args=args, global_scale=g, dtype=torch.float32)
        config = {"quant_method": "compressed-tensors", "format": format, "quantization_status": "compressed",
                  "ignore": ["lm_head"],
                  "config_groups": {"group_0": {"targets": ["Linear"], "input_activations": None,
                                                "weights": json.loads(args.model_dump_json())}}}
        add(name, parts, values.float(), (rows, cols), config)


def grids(w, bits, group, sym):
    """scales (fp16) and zero points [rows, groups] of GPTQ's rules 1 and 2"""
    x = w.reshape(w.shape[0], -1, group)
    lo, hi = x.amin(-1).clamp(max=0), x.amax(-1).clamp(min=0)
    top = 2**bits - 1
    if sym:
        a = torch.maximum(-lo, hi)
        scale = (2 * a / top).half().float()
        zero = torch.full_like(scale, (top + 1) / 2)
    else:
        scale = ((hi - lo) / top).half().float()
        zero = torch.round(-lo / scale).clamp(1, top)  # v1 has no place for 0
    return scale, zero


def gptq_cases():
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear

    for bits in (2, 3, 4, 8):
        for sym, v2, order in ((True, False, False), (False, True, False), (False, False, False), (True, True, True)):
            if order and bits != 4:
                continue
            rows, cols, group = 32, 32, 16
            w = weights(10 * bits + sym, rows, cols)
            scale, zero = grids(w, bits, group, sym)
            g_idx = torch.arange(cols, dtype=torch.int32) // group
            if order:
                g_idx = g_idx[torch.randperm(cols, generator=torch.Generator().manual_seed(5))]
            linear = torch.nn.Linear(cols, rows, bias=False)
            linear.weight.data = w.clone()
            module = TorchLinear(bits=bits, group_size=group, sym=sym, desc_act=order, in_features=cols,
                                 out_features=rows, bias=False, pack_dtype=torch.int32)
            module.pack_original(linear, scale.clone(), zero.clone(), g_idx)
            module._init_wf_unsqueeze_buffers()
            module.eval()
            parts = {"qweight": module.qweight, "qzeros": module.qzeros.clone(), "scales": module.scales,
                     "g_idx": module.g_idx.int()}
            module.scales = module.scales.float()
            from gptqmodel.nn_modules.qlinear import PackableQuantLinear
            values = PackableQuantLinear.dequantize_weight(module).T.float()
            if not v2:
                from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module
                from gptqmodel.quantization import QuantizeConfig
                module.qzeros = parts["qzeros"].clone()
                convert_gptq_v2_to_v1_format_module(module, QuantizeConfig(bits=bits, group_size=group, sym=sym))
                parts["qzeros"] = module.qzeros
            name = f"gptq.int{bits}.{'sym' if sym else 'asym'}.{'v2' if v2 else 'v1'}" + (".order" if order else "")
            add(name, parts, values, (rows, cols),
                {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": order, "sym": sym,
                 "checkpoint_format": "gptq_v2" if v2 else "gptq"})


def awq_cases():
    from gptqmodel.quantization.awq.utils.packing_utils import pack_awq, reverse_awq_order, unpack_awq

    for sym in (True, False):
        rows, cols, group = 16, 64, 32
        w = weights(70 + sym, rows, cols)
        scale, zero = grids(w, 4, group, sym)
        s, z = scale.repeat_interleave(group, 1), zero.repeat_interleave(group, 1)
        q = torch.round(w / s + z).clamp(0, 15).int()
        qweight, qzeros = pack_awq(q.T.contiguous(), zero.T.contiguous().int(), 4)
        iq, iz = unpack_awq(qweight, qzeros, 4)
        iq, iz = reverse_awq_order(iq, iz, 4)
        iq, iz = iq & 15, iz & 15
        half = scale.T.contiguous().half()
        values = ((iq - iz.repeat_interleave(group, 0)) * half.float().repeat_interleave(group, 0)).T
        add("awq.sym" if sym else "awq.asym", {"qweight": qweight.int(), "qzeros": qzeros.int(), "scales": half},
            values.float(), (rows, cols),
            {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"})


def bitsandbytes_cases():
    import bitsandbytes.functional as F
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
    from bitsandbytes.backends.utils import _get_4bit_code

    for nested in (False, True):
        for rows, cols in ((6, 128), (3, 96)):
            w = weights(80 + nested, rows, cols)
            q, state = F.quantize_4bit(w, blocksize=64, compress_statistics=nested, quant_type="nf4")
            parts = {"weight": q}
            parts.update({"weight." + k: v for k, v in state.as_dict(packed=True).items()})
            # its CPU kernel begins a block at each row, which is wrong where 64 does not divide the row
            absmax = F.dequantize_blockwise(state.absmax, state.state2) + state.offset if nested else state.absmax
            values = _dequantize_4bit_compute(q.reshape(-1), absmax, _get_4bit_code("nf4", q.device), 64, (rows, cols),
                                              torch.float32)
            if cols % 64 == 0:
                assert torch.equal(values, F.dequantize_4bit(q, state).float()), "the two kernels differ"
            name = "bnb.nf4" + (".dq" if nested else "") + ("" if cols % 64 == 0 else ".crossing")
            add(name, parts, values, (rows, cols),
                {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
                 "bnb_4bit_use_double_quant": nested})


def main():
    path = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden",
                                                              "containers.safetensors")
    print(", ".join(f"{p} {version(p)}" for p in ("torch", "compressed-tensors", "GPTQModel", "bitsandbytes")))
    torch.set_num_threads(1)
    compressed_tensors_cases()
    gptq_cases()
    awq_cases()
    bitsandbytes_cases()
    save_file(tensors, path, metadata=meta)
    print(f"{path}: {len(meta)} cases, {os.path.getsize(path)} bytes")


if __name__ == "__main__":
    main()
