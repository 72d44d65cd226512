#!/usr/bin/env python3
"""train_qrl and PyTorch or TRL on the same work in turn: ours, theirs, ours, theirs. Each process warms up and keeps its
best call; of the rounds the best counts. Prints a table (Markdown) of times, memory and ratios.

pip install torch transformers trl
bench/peers/compare.py --what sft --model 135m --rows 4 --length 512 --precision amp,bf16
bench/peers/compare.py --what grpo --model 135m
bench/peers/compare.py --what products --model 0.5b
"""
import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile

here = os.path.dirname(os.path.abspath(__file__))
p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--what", choices=("sft", "grpo", "products"), default="sft")
p.add_argument("--model", default="135m")
p.add_argument("--train_qrl", default="./train_qrl")
p.add_argument("--precision", default="", help="theirs, a comma list of fp32, amp, bf16; sft and grpo")
p.add_argument("--rounds", type=int, default=2, help="turns of each")
p.add_argument("--seconds", type=float, default=1.0, help="for each number of a turn, and two calls at least")
p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
p.add_argument("--rows", type=int, default=4, help="sft")
p.add_argument("--length", type=int, default=512, help="sft")
p.add_argument("--prompts", type=int, default=8, help="grpo")
p.add_argument("--generations", type=int, default=8, help="grpo")
p.add_argument("--prompt_length", type=int, default=64, help="grpo")
p.add_argument("--completion_length", type=int, default=128, help="grpo")
p.add_argument("--micro_batch", type=int, default=8, help="completions of a forward and backward; grpo")
a = p.parse_args()


def ours(part, *flags):
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([a.train_qrl, "bench", "--part", part, "--bench_model", a.model, "--output_dir", folder,
                        "--seconds", str(a.seconds), "--threads", str(a.threads), *map(str, flags)],
                       check=True, stdout=subprocess.DEVNULL)
        with open(os.path.join(folder, "bench.json")) as f:
            return json.load(f)


def theirs(script, *flags):
    out = subprocess.run([sys.executable, os.path.join(here, script), "--model", a.model, "--threads", str(a.threads),
                          *map(str, flags)], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    return json.loads(out.strip().splitlines()[-1])


def in_turn(runs):
    """runs: name -> function. name -> results of its rounds"""
    results = {name: [] for name in runs}
    for turn in range(a.rounds):
        for name, run in runs.items():
            print(f"round {turn + 1} of {a.rounds}: {name}", file=sys.stderr, flush=True)
            results[name].append(run())
    return results


def heading(machine, other):
    print(f"{datetime.date.today()}, {machine['cpu']}, {machine['threads']} threads; train_qrl {machine['precision']}, "
          f"{machine['products']}, {machine['compiler']}; torch {other['torch']}, transformers {other['transformers']}"
          + (f", TRL {other['trl']}" if "trl" in other else ""))
    print("\n`" + " ".join(["bench/peers/compare.py"] + [f"--{k} {v}" for k, v in sorted(vars(a).items())
                                                       if k != "train_qrl" and v != p.get_default(k)]) + "`\n")


def compare_steps(part, script, flags, our_flags):
    precisions = (a.precision or {"sft": "fp32,amp,bf16", "grpo": "fp32,amp"}[part]).split(",")
    runs = {"train_qrl": lambda: ours(part, *our_flags)}
    for name in precisions:
        runs[name] = lambda name=name: theirs(script, "--precision", name, *flags)
    results = in_turn(runs)
    row = min((r["rows"][0] for r in results["train_qrl"]), key=lambda r: r["seconds"])
    peers = {name: min(results[name], key=lambda r: r["seconds"]) for name in precisions}
    heading(results["train_qrl"][0]["machine"], peers[precisions[0]])
    columns = [("seconds", "s"), ("generation_seconds", "generation s"), ("training_seconds", "training s"),
               ("tokens_per_second", "tokens/s"), ("peak_mib", "peak MiB")]
    columns = [(key, title) for key, title in columns if key in row]
    print("| | " + " | ".join(title for _, title in columns) + " | ours is so many times as fast | our memory / theirs |")
    print("|" + "---|" * (len(columns) + 3))
    for name, r in {"train_qrl": row, **peers}.items():
        cells = [f"{r[key]:.4g}" for key, _ in columns]
        cells += ["", ""] if r is row else [f"{r['seconds'] / row['seconds']:.2f}", f"{row['peak_mib'] / r['peak_mib']:.2f}"]
        print("| " + " | ".join([name if r is row else ("TRL " if part == "grpo" else "torch ") + name] + cells) + " |")


def compare_products():
    results = in_turn({"train_qrl": lambda: ours("operators"), "torch": lambda: theirs("products.py", "--seconds", a.seconds)})
    best = {}
    for side, rounds in results.items():
        for result in rounds:
            for r in result["rows"]:
                key = (r["name"].replace(" packed", ""), tuple(r["shape"]), " packed" in r["name"])
                best.setdefault(key, {}).setdefault(side, []).append(r)
    heading(results["train_qrl"][0]["machine"], results["torch"][0])
    print("| product | M x N x K | ours GFLOP/s | of the ceiling | torch GFLOP/s | ours / torch | packed / torch |\n" + "|---" * 7 + "|")
    for (name, shape, packed), sides in best.items():
        if packed or "torch" not in sides:
            continue
        flop = 2e-9 * shape[0] * shape[1] * shape[2]
        us = min(sides["train_qrl"], key=lambda r: r["seconds"])
        them = min(r["seconds"] for r in sides["torch"])
        laid_out = best.get((name, shape, True))
        ratio = f"{them / min(r['seconds'] for r in laid_out['train_qrl']):.2f}" if laid_out else ""
        print(f"| {name[8:]} | {'x'.join(map(str, shape))} | {flop / us['seconds']:.0f} | {100 * us['share']:.0f} % | "
              f"{flop / them:.0f} | {them / us['seconds']:.2f} | {ratio} |")


if a.what == "sft":
    compare_steps("sft", "sft_step.py", ["--rows", a.rows, "--length", a.length, "--seconds", a.seconds],
                  ["--per_device_train_batch_size", a.rows, "--max_length", a.length,
                   "--micro_batch_tokens", a.rows * a.length])
elif a.what == "grpo":
    compare_steps("grpo", "grpo_step.py",
                  ["--prompts", a.prompts, "--generations", a.generations, "--prompt_length", a.prompt_length,
                   "--completion_length", a.completion_length, "--micro_batch", a.micro_batch],
                  ["--prompts_per_step", a.prompts, "--num_generations", a.generations, "--max_prompt_length",
                   a.prompt_length, "--max_completion_length", a.completion_length, "--micro_batch_tokens",
                   a.micro_batch * (a.prompt_length + a.completion_length)])
else:
    compare_products()
