#!/usr/bin/env python3
"""Writes test/golden/gguf_blocks.json, which test/test_gguf.cpp reads.

types: per GGUF tensor type a few random blocks ("blocks", hex) and the float32 bit patterns ("values", hex) that
gguf-py's dequantize makes of them; Q2_0, which gguf-py lacks, by ggml itself. quantize: "values", 8 rows of 256 float32,
and per type the blocks that gguf-py's quantize makes of them (Q2_0: ggml's quantize_row_q2_0_ref).
llama3_rope_divisors: what transformers' llama3 rope scaling divides the inverse frequencies of Llama-3.2-1B by, which
llama.cpp stores as rope_freqs.weight.
Needs numpy, gguf, torch, transformers and a libggml-base.so of llama.cpp:
  GGML=.../libggml-base.so python3 test/make_golden_gguf.py
With a folder of files that test_gguf wrote (GGUF_DIR=FOLDER build/test_gguf --gtest_filter=GgufExport.*) it checks them
instead: gguf-py opens each, and transformers computes the golden logits with it.
  python3 test/make_golden_gguf.py FOLDER
"""
import ctypes
import importlib.metadata
import json
import os
import sys

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

# type -> byte offsets of the fp16 fields of a block, which must be finite
FP16_FIELDS = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q2_K: [80, 82], T.Q3_K: [108],
    T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208], T.TQ1_0: [52], T.TQ2_0: [64], T.MXFP4: [], T.NVFP4: [],
}
SPECIAL = {
    T.F32: np.array([0, -0.0, 1e-45, 3.4e38, np.inf, -np.pi], np.float32).view(np.uint8),
    T.F16: np.array([0, -0.0, 6e-8, 6.1e-5, 65504, -np.inf], np.float16).view(np.uint8),
    T.BF16: (np.array([0, -0.0, 1e-40, 3.3e38, np.inf, -np.pi], np.float32).view(np.uint32) >> 16)
    .astype(np.uint16).view(np.uint8),
}


def golden_blocks(rng):
    out = {}
    for qtype, data in SPECIAL.items():
        out[qtype.name] = data
    for qtype, fields in FP16_FIELDS.items():
        values, size = gguf.GGML_QUANT_SIZES[qtype]
        n = 2 if values == 256 else 4
        blocks = rng.integers(0, 256, (n, size), dtype=np.uint8)
        if qtype == T.MXFP4:
            blocks[:, 0] = [0, 1, 120, 254]
        if qtype == T.NVFP4:
            blocks[0, :4] = [0, 1, 0x7E, 0x7F]
        for f in fields:
            scale = rng.normal(0, 0.1, (n, 1)).astype(np.float16)
            scale[0] = np.float16(-3e-7)  # subnormal
            blocks[:, f:f + 2] = scale.view(np.uint8)
        out[qtype.name] = blocks
    types = {
        name: {
            "type": int(T[name]),
            "blocks": blocks.tobytes().hex(),
            "values": gguf.quants.dequantize(blocks, T[name]).astype(np.float32).astype(">f4").tobytes().hex(),
        }
        for name, blocks in out.items()
    }
    blocks = rng.integers(0, 256, (4, 18), dtype=np.uint8)
    blocks[:, :2] = np.array([-3e-7, 0.1, -0.02, 65504], np.float16)[:, None].view(np.uint8)
    values = np.zeros(4 * 64, np.float32)
    ggml().dequantize_row_q2_0(pointer(blocks), pointer(values), ctypes.c_int64(values.size))
    types["Q2_0"] = {"type": 42, "blocks": blocks.tobytes().hex(), "values": values.astype(">f4").tobytes().hex()}
    return types


def ggml():
    return ctypes.CDLL(os.environ["GGML"])


def pointer(x):
    return x.ctypes.data_as(ctypes.c_void_p)


def fused_differs(block):
    """Would a Q4_0 code of this block change if x * (1/d) + 8.5 were rounded once?"""
    d = block[np.abs(block).argmax()] / np.float32(-8)
    inverse = np.float32(1) / d
    twice = np.trunc(block * inverse + np.float32(8.5))
    once = np.trunc((block.astype(np.float64) * np.float64(inverse) + 8.5).astype(np.float32))
    return (twice != once).any()


def quantize(rng):
    x = rng.normal(0, 0.02, (8, 256)).astype(np.float32)
    x[1] = 0
    x[2] = np.float32(0.5) * rng.integers(-8, 9, 256)  # ties
    x[3] *= 1e-6  # scales below fp16's normal numbers
    x[4] *= 3e4
    x[5, 64:] = -np.abs(x[5, 64:])
    x[5, 32:64] = 0.25  # all equal
    x[6] = 2.0 ** rng.integers(-20, 3, 256) * rng.choice([-1, 1], 256)
    for i in range(4):  # a number just below code k + 1/2 of its block
        b = x[7, 32 * i:32 * i + 32]
        while not fused_differs(b):
            b[0] = rng.uniform(0.06, 0.1)
            b[1] = b[0] / 8 * rng.integers(4, 8) + b[0] / 16
    out = {"values": x.astype(">f4").tobytes().hex()}
    for t in (T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.TQ1_0, T.TQ2_0, T.MXFP4):
        out[t.name] = gguf.quants.quantize(x, t).tobytes().hex()
    q = np.zeros(x.size // 64 * 18, np.uint8)
    ggml().quantize_row_q2_0_ref(pointer(x), pointer(q), ctypes.c_int64(x.size))
    out["Q2_0"] = q.tobytes().hex()
    return out


def rope_divisors():
    rope = {"rope_theta": 500000.0, "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    cfg = LlamaConfig(hidden_size=2048, num_attention_heads=32, num_key_value_heads=8, head_dim=64,
                      max_position_embeddings=131072, rope_parameters=rope)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](cfg, "cpu")
    plain = 1.0 / 500000.0 ** (np.arange(0, 64, 2, dtype=np.float64) / 64)
    return [float(x) for x in np.float32(plain / scaled.double().numpy())]


def check(folder):
    import torch
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    for file in sorted(os.listdir(folder)):
        try:
            reader = gguf.GGUFReader(os.path.join(folder, file))
        except ValueError as e:  # Q2_0, which gguf-py lacks
            print(f"{file}: {e}")
            continue
        arch = bytes(reader.fields["general.architecture"].parts[-1]).decode()
        types = sorted({t.tensor_type.name for t in reader.tensors})
        total = sum(float(np.sum(np.abs(gguf.quants.dequantize(t.data, t.tensor_type)))) for t in reader.tensors)
        line = f"{file}: {len(reader.tensors)} tensors, {len(reader.fields)} fields, {' '.join(types)}, sum {total:.3f}"
        want = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden", file.split(".")[0])
        if types == ["F32"] and os.path.isdir(want):
            golden = load_file(os.path.join(want, "golden.safetensors"))
            # transformers takes neither qwen3's attention.key_length nor rope_freqs.weight from a GGUF file
            model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32,
                                                         config=AutoConfig.from_pretrained(want))
            starts = golden["cu_seqlens"].tolist()
            with torch.no_grad():
                logits = torch.cat([model(input_ids=golden["tokens"][None, a:b].long()).logits[0]
                                    for a, b in zip(starts, starts[1:])])
            line += f", {arch} logits differ by at most {(logits - golden['logits']).abs().max():.2e}"
        print(line)


if __name__ == "__main__":
    print("numpy", np.__version__, "gguf", importlib.metadata.version("gguf"))
    if len(sys.argv) > 1:
        check(sys.argv[1])
        sys.exit()
    rng = np.random.default_rng(1)
    golden = {"types": golden_blocks(rng), "quantize": quantize(rng), "llama3_rope_divisors": rope_divisors()}
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden", "gguf_blocks.json")
    with open(path, "w") as f:
        json.dump(golden, f, indent=0)
        f.write("\n")
    print(path, os.path.getsize(path), "bytes")
