#!/usr/bin/env python3
"""Writes test/golden/gguf_blocks.json, which test/test_formats.cpp reads.

types: per GGUF tensor type a few random blocks ("blocks", hex) and the float32 bit patterns ("values", hex) that
gguf-py's dequantize makes of them. llama3_rope_divisors: what transformers' llama3 rope scaling divides the inverse
frequencies of Llama-3.2-1B by, which llama.cpp stores as rope_freqs.weight.
Needs numpy, gguf, torch and transformers: python3 test/make_golden_formats.py
"""
import json
import os

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

# type -> byte offsets of the fp16 fields of a block, which must be finite
FP16_FIELDS = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q2_K: [80, 82], T.Q3_K: [108],
    T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
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
        n = 3 if values == 256 else 4
        blocks = rng.integers(0, 256, (n, size), dtype=np.uint8)
        for f in fields:
            scale = rng.normal(0, 0.1, (n, 1)).astype(np.float16)
            scale[0] = np.float16(-3e-7)  # subnormal
            blocks[:, f:f + 2] = scale.view(np.uint8)
        out[qtype.name] = blocks
    return {
        name: {
            "type": int(T[name]),
            "blocks": blocks.tobytes().hex(),
            "values": gguf.quants.dequantize(blocks, T[name]).astype(np.float32).astype(">f4").tobytes().hex(),
        }
        for name, blocks in out.items()
    }


def rope_divisors():
    rope = {"rope_theta": 500000.0, "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    cfg = LlamaConfig(hidden_size=2048, num_attention_heads=32, num_key_value_heads=8, head_dim=64,
                      max_position_embeddings=131072, rope_parameters=rope)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](cfg, "cpu")
    plain = 1.0 / 500000.0 ** (np.arange(0, 64, 2, dtype=np.float64) / 64)
    return [float(x) for x in np.float32(plain / scaled.double().numpy())]


if __name__ == "__main__":
    golden = {"types": golden_blocks(np.random.default_rng(1)), "llama3_rope_divisors": rope_divisors()}
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden", "gguf_blocks.json")
    with open(path, "w") as f:
        json.dump(golden, f, indent=0)
        f.write("\n")
    print(path, os.path.getsize(path), "bytes")
