#!/usr/bin/env python3
"""Writes test/golden/distill.json, which test/test_distill_kernels.cpp reads: losses of knowledge distillation and their
gradients for the student's logits, by torch's autograd in float64.

Nothing of the program's formulas is used: KL is torch's kl_div (the generalised Jensen-Shannon divergence is two of
them), the tokens outside of the teacher's support are put into one class by logsumexp.
Run with torch 2.15.0: python3 test/make_golden_distill.py
"""
import json
import os

import torch
import torch.nn.functional as F

ROWS, V = 2, 31


def kl(p, q):  # of log-probabilities
    return F.kl_div(q, p, reduction="none", log_target=True).sum(-1)


def divergence(name, beta, student, teacher):
    if name == "forward_kl":
        return kl(teacher, student)
    if name == "reverse_kl":
        return kl(student, teacher)
    b = torch.tensor(beta, dtype=torch.float64)
    m = torch.logsumexp(torch.stack([teacher + torch.log(b), student + torch.log1p(-b)]), 0)
    return beta * kl(teacher, m) + (1 - beta) * kl(student, m)


def support(teacher, top_k, top_p):
    order = torch.sort(teacher, descending=True, stable=True).indices
    n = top_k if top_k else len(teacher)
    if top_p < 1.0:
        n = min(n, int((torch.cumsum(teacher[order].exp(), 0) < top_p).sum()) + 1)
    keep = torch.zeros(len(teacher), dtype=torch.bool)
    keep[order[:n]] = True
    return keep


def classes(logp, keep):
    if keep.all():
        return logp
    return torch.cat([logp[keep], torch.logsumexp(logp[~keep], 0).reshape(1)])


def loss_of_row(z, u, y, case):
    T = case["temperature"]
    student, teacher = torch.log_softmax(z / T, -1), torch.log_softmax(u / T, -1)
    keep = support(teacher, case["top_k"], case["top_p"])
    d = divergence(case["divergence"], case["beta"], classes(student, keep), classes(teacher, keep))
    ce = F.cross_entropy(z.unsqueeze(0), torch.tensor([y]))
    return case["alpha"] * T * T * d + (1 - case["alpha"]) * ce, d, ce


def main():
    generator = torch.Generator().manual_seed(3)
    z = (torch.randn(ROWS, V, generator=generator) * 2).float()
    u = (torch.randn(ROWS, V, generator=generator) * 3).float()
    targets, weights = [V - 1, 4], [0.75, 0.3]
    cases = []
    for name, beta in [("forward_kl", 0.5), ("reverse_kl", 0.5), ("jsd", 0.5), ("jsd", 0.1)]:
        for top_k, top_p in [(0, 1.0), (4, 1.0), (0, 0.7), (5, 0.95)]:
            for temperature, alpha in [(1.0, 1.0), (2.0, 0.5), (1.0, 0.0), (0.7, 0.9)]:
                case = dict(divergence=name, beta=beta, top_k=top_k, top_p=top_p, temperature=temperature, alpha=alpha)
                logits = z.double().requires_grad_()
                rows = [loss_of_row(logits[i], u[i].double(), targets[i], case) for i in range(ROWS)]
                loss = sum(w * r[0] for w, r in zip(weights, rows))
                loss.backward()
                case["loss"] = loss.item()
                case["divergence_sum"] = sum(r[1].item() for r in rows)
                case["cross_entropy_sum"] = sum(r[2].item() for r in rows)
                case["gradient"] = [float("%.7g" % g) for g in logits.grad.flatten().tolist()]
                cases.append(case)
    out = dict(rows=ROWS, V=V, logits=z.flatten().tolist(), teacher=u.flatten().tolist(), targets=targets,
               weights=weights, cases=cases)
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden")
    with open(os.path.join(folder, "distill.json"), "w") as f:
        text = json.dumps(out, separators=(",", ":"))
        f.write(text.replace('{"divergence"', '\n{"divergence"') + "\n")


if __name__ == "__main__":
    main()
