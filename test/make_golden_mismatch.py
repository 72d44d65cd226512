#!/usr/bin/env python3
"""Writes test/golden/mismatch.json, which test/test_mismatch.cpp reads: what TRL's and verl's own code make of the same
log-probabilities of a sampler and a trainer, in float64. TRL's weights and the metrics of them are lines inside of
GRPOTrainer._generate_and_score_completions and are repeated here; its off-policy mask and VESPO's weights are called.
verl's rollout_corr_helper.py and its masked means are run as they stand, without the modules that only its callers need.
Run with torch, trl 1.16.0, and verl 0.9.1 unpacked (pip download --no-deps verl) on PYTHONPATH:
PYTHONPATH=DIR python3 test/make_golden_mismatch.py
"""
import ast
import importlib.util
import json
import math
import os
import sys
import types

import torch
from trl.trainer.grpo_trainer import GRPOTrainer

F = torch.float64


def verl_helper():
    root = importlib.util.find_spec("verl").submodule_search_locations[0]
    source = open(os.path.join(root, "utils", "torch_functional.py")).read()
    wanted = [n for n in ast.parse(source).body if getattr(n, "name", "") in ("masked_mean", "masked_sum")]
    functional = types.ModuleType("verl.utils.torch_functional")
    functional.torch = torch
    exec(compile(ast.Module(wanted, []), "torch_functional.py", "exec"), functional.__dict__)
    for name, names in {
        "verl": [], "verl.utils": [], "verl.trainer": [], "verl.workers": [],
        "verl.protocol": ["DataProto"],
        "verl.trainer.config": [], "verl.trainer.config.algorithm": ["RolloutCorrectionConfig"],
        "verl.workers.config": [], "verl.workers.config.actor": ["PolicyLossConfig"],
    }.items():
        sys.modules[name] = types.ModuleType(name)
        for n in names:
            setattr(sys.modules[name], n, type(n, (), {}))
    sys.modules["verl.utils.torch_functional"] = functional
    sys.modules["verl.utils"].torch_functional = functional
    path = os.path.join(root, "trainer", "ppo", "rollout_corr_helper.py")
    spec = importlib.util.spec_from_file_location("rollout_corr_helper", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def trl_weights(difference, mode, clip_min, clip_max):
    if mode.startswith("sequence"):
        difference = difference.sum(dim=-1, keepdim=True)
    ratio = torch.exp(difference)
    if mode.endswith("truncate"):
        return torch.clamp(ratio, min=clip_min, max=clip_max)
    low = -math.inf if clip_min is None else clip_min
    return ratio.masked_fill((ratio < low) | (ratio > clip_max), value=0.0)


def main():
    generator = torch.Generator().manual_seed(7)
    lengths = [24, 3, 17, 1, 12, 20]
    N, T = len(lengths), max(lengths)
    mask = torch.tensor([[float(t < n) for t in range(T)] for n in lengths], dtype=F)
    normal = lambda scale: torch.randn(N, T, generator=generator) * scale
    trainer = -(normal(1.0).abs())
    sampler = trainer - normal(0.3)
    sampler[0, 5], sampler[2, 9], sampler[4, 1] = trainer[0, 5] - 4, trainer[2, 9] - 1.5, trainer[4, 1] + 5
    current = trainer + normal(0.05)
    advantages = torch.tensor([1.0, -0.5, -1.0, -2.0, 0.0, -0.25], dtype=F)
    out = {"lengths": lengths}
    for name, rows in {"sampler": sampler, "trainer": trainer, "current": current}.items():
        out[name] = [[float("%.9g" % x) for x in row[:n].tolist()] for row, n in zip(rows, lengths)]
    out["advantages"] = advantages.tolist()
    sampler, trainer, current = sampler.to(F), trainer.to(F), current.to(F)
    difference = (trainer - sampler) * mask

    out["off_policy_mask"] = [
        {"threshold": h, "keep": GRPOTrainer.get_off_policy_mask(
            advantages[:, None], current, sampler, mask, h).flatten().tolist()} for h in (-0.1, 0.0, 0.05, 0.3)]
    delta = difference.abs()[mask.bool()]
    out["difference"] = {"mean": delta.mean().item(), "max": delta.max().item()}

    verl = verl_helper()
    out["verl"] = verl.compute_offpolicy_metrics(trainer, sampler, mask)
    out["modes"] = []
    for mode in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"):
        for clip_min, clip_max in ((None, 2.0), (None, 3.0), (0.5, 1.5)):
            w = trl_weights(difference, mode, clip_min, clip_max)
            flat = w.flatten() if mode.startswith("sequence") else w[mask.bool()]
            case = {"mode": mode, "clip_min": clip_min or 0.0, "clip_max": clip_max,
                    "weights": [(row.tolist() * n)[:n] if len(row) == 1 else row[:n].tolist()
                                for row, n in zip(w, lengths)],
                    "ratio": {"min": flat.min().item(), "mean": flat.mean().item(), "max": flat.max().item()}}
            if mode.startswith("token"):
                case["vespo_phi"] = GRPOTrainer.get_gamma_weights(
                    advantages[:, None], (current - trainer), mask, w).flatten().tolist()
            # verl truncates from above alone, and masks only between two bounds
            if mode.endswith("mask") or clip_min is None:
                threshold = "%g_%g" % (clip_min or 1e-9, clip_max) if mode.endswith("mask") else clip_max
                vw, metrics = verl.compute_rollout_correction_weights(
                    difference, mask, mode.split("_")[0], threshold)
                assert torch.allclose(vw, w.expand_as(vw) * mask, rtol=1e-12, atol=0)
                case["verl"] = {k: metrics[k] for k in (
                    "rollout_is_mean", "rollout_is_std", "rollout_is_eff_sample_size")}
                if mode.endswith("mask"):  # verl's rejection bounds pi_sampler / pi_old: those of the ratio inverted
                    _, rs = verl.compute_rollout_rejection_mask(
                        difference, mask, "token_k1" if mode == "token_mask" else "seq_sum_k1",
                        "%.17g_%.17g" % (1 / clip_max, 1 / (clip_min or 1e-9)))
                    case["verl"]["rollout_rs_masked_fraction"] = rs["rollout_rs_masked_fraction"]
                    assert abs(rs["rollout_rs_masked_fraction"] - metrics["rollout_is_oob_ratio"]) < 1e-9
            out["modes"].append(case)
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden", "mismatch.json")
    with open(path, "w") as f:
        json.dump(out, f, separators=(",", ":"))
        f.write("\n")
    print("%s: %d bytes" % (path, os.path.getsize(path)))


if __name__ == "__main__":
    main()
