#!/usr/bin/env python3
"""Measures what docs/numbers.md shows and puts the tables there, each between its two markers. All of it takes hours
on two cores; names choose: bench/peers/numbers_page.py sft-135m growth. Run at the project's root, after make, on a machine
that does nothing else.

pip install torch transformers trl
"""
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile

PAGE = "docs/numbers.md"
COMPARE = "bench/peers/compare.py "
COMMANDS = {
    "operators-135m": "./train_qrl bench --part operators --bench_model 135m",
    "operators-0.5b": "./train_qrl bench --part operators --bench_model 0.5b",
    "operators-0.6b": "./train_qrl bench --part operators --bench_model 0.6b",
    "steps": "./train_qrl bench --part sft,decode,grpo --bench_model 135m,0.5b,0.6b --seconds 10",
    "growth": "./train_qrl bench --part growth --seconds 1",
    "products-135m": COMPARE + "--what products --model 135m --seconds 0.2",
    "products-0.5b": COMPARE + "--what products --model 0.5b --seconds 0.2",
    "sft-135m": COMPARE + "--what sft --model 135m --rows 4 --length 512 --seconds 8",
    "sft-0.5b": COMPARE + "--what sft --model 0.5b --rows 2 --length 512 --precision amp,bf16 --rounds 1 --seconds 8",
    "grpo-135m": COMPARE + "--what grpo --model 135m --precision amp --rounds 1 --seconds 1",
}


def speed(row):
    work = row["least_flops"] / row["seconds"] * 1e-9
    if work < 0.05:
        return f"{row['least_bytes'] / row['seconds'] * 1e-9:.3g} GB/s"
    return f"{work:.3g}"


def share(row):
    return f"{100 * row['share']:.0f} %"


def ceilings_table(c):
    lines = ["| ceiling | |", "|---|---|"]
    lines += [f"| {p['name']} | {p['operations_per_second'] * 1e-9:.0f} GFLOP/s |" for p in c["peaks"].values()]
    lines += [f"| memory, {m['bytes'] / 2**20:g} MiB | {m['read_bytes_per_second'] * 1e-9:.3g} GB/s read, "
              f"{m['copy_bytes_per_second'] * 1e-9:.3g} GB/s copy |" for m in c["memory"]]
    return lines


def operator_tables(rows):
    """Products: a line for each kind and weight, a column for each number of rows; then the others."""
    products, others, widths = {}, [], set()
    for r in rows:
        if not r["name"].startswith("product"):
            others.append(r)
            continue
        products.setdefault((r["name"][8:], f"{r['shape'][1]}x{r['shape'][2]}"), {})[r["shape"][0]] = r
        widths.add(r["shape"][0])
    widths = sorted(widths)
    lines = ["GFLOP/s, and the share of the ceiling that binds:", "",
             "| product | N x K | " + " | ".join(f"M {m}" for m in widths) + " |", "|---" * (2 + len(widths)) + "|"]
    for (name, shape), by_rows in products.items():
        cells = [f"{speed(by_rows[m])} ({share(by_rows[m])})" if m in by_rows else "" for m in widths]
        lines.append(f"| {name} | {shape} | " + " | ".join(cells) + " |")
    return lines + [""] + step_table(others)


def step_table(rows):
    lines = ["| model | what | shape | ms | GFLOP/s | of the least time | bound by | tokens/s |", "|---" * 8 + "|"]
    for r in rows:
        tokens = f"{r['tokens_per_second']:.4g}" if "tokens_per_second" in r else ""
        lines.append(f"| {r['model']} | {r['name']} | {'x'.join(map(str, r['shape']))} | {1e3 * r['seconds']:.4g} | "
                     f"{speed(r)} | {share(r)} | {r['bound_by']} | {tokens} |")
    return lines


def measure_bench(command):
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(shlex.split(command) + ["--output_dir", folder], check=True)
        with open(os.path.join(folder, "bench.json")) as f:
            j = json.load(f)
        for name in sorted(os.listdir(folder)):
            if name.endswith(".svg"):
                shutil.copy(os.path.join(folder, name), os.path.join("docs", name))
    m = j["machine"]
    lines = [f"{m['date']}, {m['cpu']}, {m['threads']} threads, {m['precision']}, {m['products']}, {m['compiler']}", "",
             f"`{command}`", ""] + ceilings_table(j["ceilings"]) + [""]
    rows = j["rows"]
    return lines + (operator_tables(rows) if "operators" in command else step_table(rows))


def measure_comparison(command):
    out = subprocess.run([sys.executable] + shlex.split(command), check=True, stdout=subprocess.PIPE, text=True).stdout
    return out.strip().splitlines()


def replace(name, lines):
    with open(PAGE) as f:
        text = f.read()
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    if begin not in text or end not in text:
        sys.exit(f"{PAGE} lacks the markers of {name}: {begin.strip()} and {end}")
    head, rest = text.split(begin, 1)
    with open(PAGE, "w") as f:
        f.write(head + begin + "\n".join(lines) + "\n" + end + rest.split(end, 1)[1])


names = sys.argv[1:] or list(COMMANDS)
for name in names:
    if name not in COMMANDS:
        sys.exit(f"{name}: not one of {', '.join(COMMANDS)}")
for name in names:
    command = COMMANDS[name]
    print(f"{name}: {command}", file=sys.stderr, flush=True)
    replace(name, measure_comparison(command) if command.startswith(COMPARE) else measure_bench(command))
