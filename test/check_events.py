#!/usr/bin/env python3
"""The event files of a run, by TensorBoard's own reader, against its metrics.jsonl: every number of every line has one point
with its step and, rounded to float32, its value, and every point is one of these, or

  - of an evaluation before, after or between (eval_*), which is compared with summary.json where that is there,
  - the share of a layer's codes that changed (code_flip_rate/*), which lies between those of its tensors in code_flips.jsonl.

  train_qrl ... --output_dir RUN
  python3 test/check_events.py RUN [RUN ...]
Needs tensorboard.
"""
import collections
import json
import logging
import os
import struct
import sys

from tensorboard.backend.event_processing import event_accumulator

logging.getLogger("tensorboard").setLevel(logging.ERROR)


def float32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def rows(path):
    return [json.loads(line) for line in open(path, encoding="utf-8")] if os.path.exists(path) else []


def is_number(x):
    return isinstance(x, (int, float)) and not isinstance(x, bool)


def evaluations(run):
    """(step, tag) -> value, of the evaluations before and after"""
    path = os.path.join(run, "summary.json")
    if not os.path.exists(path):
        return None
    summary = json.load(open(path, encoding="utf-8"))
    expected = {}
    for part in ("eval", "held_out_text"):
        for when, step in (("before", 0), ("after", summary["steps"])):
            result = summary.get(part, {}).get(when, {})
            for prefix, numbers in (("eval_", result), ("eval_full_precision_", result.get("full_precision", {}))):
                for key, value in numbers.items():
                    if is_number(value):
                        expected[step, prefix + key] = value
    return expected


def check(run):
    points = collections.defaultdict(list)  # (step, tag) -> values
    accumulator = event_accumulator.EventAccumulator(run, size_guidance={event_accumulator.SCALARS: 0,
                                                                         event_accumulator.TENSORS: 0})
    accumulator.Reload()
    tags = accumulator.Tags()
    for tag in tags["scalars"]:
        for e in accumulator.Scalars(tag):
            points[e.step, tag].append(e.value)
    faults = [f"{tag} has {len(v)} points at step {step}" for (step, tag), v in points.items() if len(v) > 1]
    lines = rows(os.path.join(run, "metrics.jsonl"))
    compared = 0
    for line in lines:
        for tag, value in line.items():
            if tag == "step" or not is_number(value):
                continue
            got = points.pop((line["step"], tag), None)
            if got is None:
                faults.append(f"{tag} has no point at step {line['step']}")
            elif got[-1] != float32(value):
                faults.append(f"{tag} is {got[-1]} at step {line['step']}, in metrics.jsonl {value}")
            compared += 1
    flips = {line["step"]: line for line in rows(os.path.join(run, "code_flips.jsonl"))}
    expected = evaluations(run)
    evaluated = layers = 0
    for (step, tag), values in points.items():
        if tag.startswith("code_flip_rate/"):
            where = tag.split("/", 1)[1]
            layer = f".{int(where[6:])}." if where.startswith("layer_") else where
            shares = [v[0] for k, v in flips.get(step, {}).items() if k != "step" and layer in k]
            if not shares or not float32(min(shares)) <= values[-1] <= float32(max(shares)):
                faults.append(f"{tag} is {values[-1]} at step {step}, in code_flips.jsonl {shares}")
            layers += 1
        elif tag.startswith("eval_"):
            if expected is not None and float32(expected.get((step, tag), float("nan"))) != values[-1]:
                faults.append(f"{tag} is {values[-1]} at step {step}, in summary.json {expected.get((step, tag))}")
            evaluated += 1
        else:
            faults.append(f"{tag} at step {step} is in no log")
    texts = {tag: [e.step for e in accumulator.Tensors(tag)] for tag in tags["tensors"]}
    text = ", ".join(f"{tag} at {steps}" for tag, steps in sorted(texts.items()) if not tag.startswith("_hparams_/"))
    files = sum("tfevents" in name for name in os.listdir(run))
    for fault in faults[:20]:
        print(f"{run}: {fault}")
    print(f"{run}: {files} event file{'s' * (files != 1)}, {len(lines)} steps, {compared} numbers of metrics.jsonl, "
          f"{evaluated} of evaluations, {layers} of layers: "
          f"{'each the same point' if not faults else str(len(faults)) + ' differ'}; texts: {text or 'none'}")
    return not faults and compared > 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(0 if all([check(run) for run in sys.argv[1:]]) else 1)
