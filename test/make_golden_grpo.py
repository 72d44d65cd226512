#!/usr/bin/env python3
"""Losses of TRL's GRPOTrainer and their gradients, on small made-up tensors: test/golden/grpo_losses.json.

    pip install trl transformers torch && python3 test/make_golden_grpo.py      # made with TRL 1.16.0, torch in float64

Calls GRPOTrainer._compute_loss itself, on an object that has the attributes which that function reads; its forward is replaced by
one that returns the given log-probabilities and entropies. Completions are in 2 batches of gradient accumulation.
"""
import json
import os
from types import SimpleNamespace

import torch
from trl import GRPOConfig, GRPOTrainer

N, T, PARTS, MAX_LENGTH = 8, 9, 2, 12
generator = torch.Generator().manual_seed(7)
normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
exact = lambda x: x.float().double()  # what a float holds

lengths = torch.tensor([9, 3, 1, 7, 5, 9, 2, 4])  # as many tokens in each batch: TRL's bonus is a mean of their means
mask = (torch.arange(T)[None, :] < lengths[:, None]).double()
logp = exact(-1.5 + 0.5 * normal(N, T))
old = exact(logp - 0.2 * normal(N, T))
sampling = exact(old - 0.3 * normal(N, T))
ref = exact(logp - 0.4 * normal(N, T))
entropy = exact(normal(N, T).abs())
advantages = exact(torch.tensor([1.2, -0.7, 0.0, -1.1, 0.4, -0.3, 0.9, -1.4], dtype=torch.float64))


def correction(mode, most, least):
    """TRL's _generate_and_score_completions, from "Compute the importance sampling ratio" on; its lines cannot be called alone"""
    d = (old - sampling) * mask
    ratio = torch.exp(d.sum(-1, keepdim=True) if mode.startswith("sequence") else d)
    if mode.endswith("truncate"):
        return torch.clamp(ratio, min=least, max=most)
    outside = (ratio > most) | (ratio < (least if least is not None else -1.0))
    return ratio.masked_fill(outside, 0.0)


class Accelerator:
    num_processes, device, sync_gradients = 1, "cpu", True
    gather = staticmethod(lambda x: x)
    pad_across_processes = staticmethod(lambda x, **_: x)
    reduce = staticmethod(lambda x, **_: x)


def case(name, loss_type, mode=None, most=3.0, least=None, **options):
    args = GRPOConfig(output_dir="/tmp/none", loss_type=loss_type, report_to=[], bf16=False, use_cpu=True, **options)
    trainer = object.__new__(GRPOTrainer)
    trainer.args, trainer.accelerator = args, Accelerator()
    trainer.model = SimpleNamespace(training=True)
    trainer.aux_loss_enabled = False
    for key in ("loss_type beta importance_sampling_level off_policy_mask_threshold top_entropy_quantile entropy_coef "
                "use_adaptive_entropy").split():
        setattr(trainer, key, getattr(args, key))
    trainer.epsilon_low = args.epsilon
    trainer.epsilon_high = args.epsilon_high if args.epsilon_high is not None else args.epsilon
    trainer.max_completion_length = MAX_LENGTH
    trainer.current_gradient_accumulation_steps = PARTS
    trainer.args.steps_per_generation = PARTS
    trainer._entropy_bonus_enabled = args.entropy_coef != 0.0
    trainer.use_vllm, trainer.vllm_importance_sampling_correction = True, mode is not None
    from collections import defaultdict
    trainer._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    x = logp.clone().requires_grad_()
    h = entropy.clone().requires_grad_()
    total = 0.0
    for part in range(PARTS):
        rows = slice(part * N // PARTS, (part + 1) * N // PARTS)
        inputs = {"prompt_ids": torch.zeros(N // PARTS, 1, dtype=torch.long), "prompt_mask": torch.ones(N // PARTS, 1),
                  "completion_ids": torch.zeros(N // PARTS, T, dtype=torch.long), "completion_mask": mask[rows],
                  "advantages": advantages[rows], "old_per_token_logps": old[rows], "ref_per_token_logps": ref[rows],
                  "sampling_per_token_logps": sampling[rows], "num_items_in_batch": mask.sum()}
        if mode is not None:
            inputs["importance_sampling_ratio"] = correction(mode, most, least)[rows]
        trainer._get_per_token_logps_and_entropies = lambda *a, **k: (x[rows], h[rows], None)
        total = total + trainer._compute_loss(None, inputs)
    gx, gh = torch.autograd.grad(total, (x, h), allow_unused=True)
    row = {"name": name, "loss_type": loss_type, "loss": total.item(), "dlogp": (gx * mask).flatten().tolist(),
           "options": {k: v for k, v in options.items()}}
    if mode is not None:
        row["correction"] = {"mode": mode, "clip_max": most}
        if least is not None:
            row["correction"]["clip_min"] = least
    if args.entropy_coef != 0.0:
        row["dentropy"] = (gh * mask).flatten().tolist()
    metrics = {k: v for k, v in trainer._metrics["train"].items() if "clip" in k or k in ("kl", "vespo/phi_seq_mean")}
    row["metrics"] = {k: v for k, v in metrics.items()}
    return row


KL = dict(beta=0.1, use_bias_correction_kl=False)
cases = []
for loss_type in ("grpo", "dr_grpo", "bnpo", "dapo", "cispo", "sapo", "luspo", "vespo"):
    own = {}
    if loss_type == "luspo":
        own["importance_sampling_level"] = "sequence"
    if loss_type == "cispo":
        own["epsilon_high"] = 1.1
    if loss_type in ("grpo", "dapo"):
        own["epsilon_high"] = 0.28
    add = lambda name, **more: cases.append(case(f"{loss_type} {name}", loss_type, **{**own, **more}))
    add("alone")
    add("kl", **KL)
    add("kl times ratio", beta=0.1, use_bias_correction_kl=True)
    add("token_truncate", mode="token_truncate", most=1.2)
    add("token_mask", mode="token_mask", most=1.3, least=0.7)
    if loss_type != "vespo":
        add("sequence_truncate", mode="sequence_truncate", most=2.0)
        add("sequence_mask", mode="sequence_mask", most=2.0, least=0.5)
    add("off-policy mask", off_policy_mask_threshold=0.05)
    add("entropy bonus", entropy_coef=0.02)
for more in ({}, dict(entropy_coef=0.02), dict(mode="token_truncate", most=1.2, **KL)):
    for loss_type in ("grpo", "dapo", "cispo"):
        own = dict(epsilon_high=1.1) if loss_type == "cispo" else {}
        cases.append(case(f"{loss_type} top entropy", loss_type, top_entropy_quantile=0.5, **own, **more))
for loss_type in ("grpo", "bnpo", "dr_grpo", "dapo"):
    cases.append(case(f"{loss_type} delta", loss_type, delta=1.25, epsilon=0.1))
for more in ({}, KL, dict(beta=0.1, use_bias_correction_kl=True), dict(mode="token_truncate", most=1.2)):
    cases.append(case("gspo", "grpo", importance_sampling_level="sequence", epsilon=0.03, epsilon_high=0.04, **more))
cases.append(case("vespo settings", "vespo", vespo_k_pos=1.5, vespo_lambda_pos=1.0, vespo_k_neg=2.5, vespo_lambda_neg=2.2))
cases.append(case("sapo settings", "sapo", sapo_temperature_pos=2.0, sapo_temperature_neg=3.0))

short = lambda v: [float(f"{x:.9g}") for x in v]
out = {"N": N, "T": T, "parts": PARTS, "max_completion_length": MAX_LENGTH, "lengths": lengths.tolist(),
       "advantages": advantages.tolist()}
for name, x in (("logp", logp), ("old", old), ("sampling", sampling), ("ref", ref), ("entropy", entropy)):
    out[name] = x.flatten().tolist()
for c in cases:
    c["dlogp"] = short(c["dlogp"])
    if "dentropy" in c:
        c["dentropy"] = short(c["dentropy"])
out["cases"] = cases
path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden", "grpo_losses.json")
with open(path, "w") as f:
    f.write("{\n" + ",\n".join(f'"{k}": ' + (json.dumps(v) if k != "cases" else
            "[\n" + ",\n".join(json.dumps(c) for c in v) + "\n]") for k, v in out.items()) + "\n}\n")
print(len(cases), "cases,", os.path.getsize(path), "bytes")
