#!/usr/bin/env python3
"""Writes test/golden/optimizers.safetensors, which test/test_optimizers.cpp reads: what bitsandbytes' AdamW8bit and
torch.optim.Muon make of weights and gradients that both sides make by the same formula.

adamw_8bit: one tensor of 4200 weights, 20 steps: the weights, codes and largest moments of blocks afterwards. The real
AdamW8bit on the CPU, whose quantizer looks codes up in a table of 2^16 steps, and as "nearest" the codes of the same
formula with the nearest codes, which are what bitsandbytes' GPU kernel takes and what this program does.
muon: matrices of three shapes, 20 steps, the weights after the first and the last. torch iterates in bf16.
Run with bitsandbytes 0.50.2, torch 2.15.0: python3 test/make_golden_optimizers.py
"""
import math
import os

import bitsandbytes as bnb
import bitsandbytes.functional as F
import numpy as np
import torch
from safetensors.torch import save_file


def uniform(n, seed):
    """in [-0.5, 0.5), by a linear congruential generator"""
    x, out = seed, np.empty(n, np.float32)
    for i in range(n):
        x = (1664525 * x + 1013904223) & 0xFFFFFFFF
        out[i] = np.float32((x >> 8) - (1 << 23)) * np.float32(2.0**-24)
    return out


STEPS = 20


def adamw_8bit_gradient(n, step):
    """sizes from 1 to 1/8 side by side"""
    return uniform(n, 100 + step) * (np.float32(2.0) ** -(np.arange(n) % 4)).astype(np.float32)


def adamw_8bit():
    n, rate, decay = 4200, 1e-2, 0.1
    start = uniform(n, 1)
    w = torch.nn.Parameter(torch.tensor(start))
    optimizer = bnb.optim.AdamW8bit([w], lr=rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=decay)
    nearest = torch.tensor(start)
    maps = [F.create_dynamic_map(signed=True), F.create_dynamic_map(signed=False)]
    moments = [torch.zeros(n), torch.zeros(n)]
    for step in range(1, STEPS + 1):
        g = torch.tensor(adamw_8bit_gradient(n, step))
        w.grad = g.clone()
        optimizer.step()
        m, v = moments
        m.mul_(0.9).add_(g, alpha=1 - 0.9)
        v.mul_(0.999).addcmul_(g, g, value=1 - 0.999)
        nearest.mul_(1 - rate * decay)
        denominator = (v.sqrt() / math.sqrt(1 - 0.999**step)).add_(1e-8)
        nearest.addcdiv_(m, denominator, value=-rate / (1 - 0.9**step))
        codes = []
        for k in range(2):
            padded = torch.nn.functional.pad(moments[k], (0, -n % 256)).reshape(-1, 256)
            largest = padded.abs().amax(1, keepdim=True)
            borders = (maps[k][1:] + maps[k][:-1]) / 2
            code = torch.bucketize(padded / largest.clamp(min=1e-38), borders)
            moments[k] = (maps[k][code] * largest).reshape(-1)[:n]
            codes.append(code.reshape(-1)[:n])
    state = optimizer.state[w]
    moved = w.data.numpy() - start
    print("adamw_8bit, nearest codes against the package: |w - w'| / |w - w0| %.2e, largest difference %.2e of rate" % (
        np.linalg.norm(nearest.numpy() - w.data.numpy()) / np.linalg.norm(moved),
        np.abs(nearest.numpy() - w.data.numpy()).max() / rate))
    for k, name in enumerate(["state1", "state2"]):
        off = (codes[k] - state[name].to(torch.int64)).abs()
        print("  %s: %d of %d codes differ, by at most %d" % (name, (off > 0).sum(), n, off.max()))
    return {
        "adamw_8bit.w": w.data,
        "adamw_8bit.m": state["state1"],
        "adamw_8bit.v": state["state2"],
        "adamw_8bit.m_absmax": state["absmax1"],
        "adamw_8bit.v_absmax": state["absmax2"],
        "nearest.m": codes[0].to(torch.uint8),
        "nearest.v": codes[1].to(torch.uint8),
        "map.signed": maps[0],
        "map.unsigned": maps[1],
    }


def muon():
    out = {}
    for rows, cols in [(40, 24), (24, 40), (16, 16)]:
        n = rows * cols
        w = torch.nn.Parameter(torch.tensor(uniform(n, 2)).reshape(rows, cols))
        optimizer = torch.optim.Muon([w], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        drift = uniform(n, 3)
        for step in range(1, STEPS + 1):
            w.grad = torch.tensor(drift + uniform(n, 200 + step)).reshape(rows, cols)
            optimizer.step()
            if step in (1, STEPS):
                out[f"muon.{rows}x{cols}.{step}"] = w.data.clone()
    return out


if __name__ == "__main__":
    tensors = {**adamw_8bit(), **muon()}
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden", "optimizers.safetensors")
    save_file(tensors, path)
    print(path, os.path.getsize(path), "bytes")
