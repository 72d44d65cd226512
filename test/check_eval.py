#!/usr/bin/env python3
"""The same evaluation by another program on the same weights: transformers' greedy generation against completions.jsonl.

  train_qrl eval --model FOLDER --eval_data SET --eval_n 100 --max_completion_length 200 --output_dir OUT
  python3 test/check_eval.py --model FOLDER OUT/completions.jsonl --max_new_tokens 200

The greedy rows' prompts go to AutoModelForCausalLM.generate as they are, in fp32; the program should be built with
PRECISION=FP32, too. Answers (what follows the last ####, else the last \\boxed{}, else the last number) and texts are
compared problem by problem. Of each text that differs: the first token that does, and how far transformers' two highest
logits are apart there. Where two programs round differently only near ties may fall out differently, so a gap above
--tie, or a choice of ours that is not its second, is an error; so is an answer that differs without one. Behind the first
difference the texts are those of other prompts and say nothing.
Needs torch and transformers.
"""
import argparse
import json
import os
import re
import sys

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, LogitsProcessorList  # noqa: E402


class TopTwo(LogitsProcessor):
    """Keeps the two highest logits of each step, and changes nothing."""

    def __init__(self):
        self.values, self.ids = [], []

    def __call__(self, input_ids, scores):
        top = scores.float().topk(2)
        self.values.append(top.values)
        self.ids.append(top.indices)
        return scores


def answer_of(text):
    if "####" in text:
        return text.rsplit("####", 1)[1].strip().split("\n")[0].strip().lstrip("$").rstrip(".").replace(",", "")
    boxes = re.findall(r"\\boxed\{([^{}]*)\}", text)
    if boxes:
        return boxes[-1].strip()
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return numbers[-1].rstrip(",").replace(",", "") if numbers else ""


def generate(model, tokenizer, prompts, max_new_tokens):
    """Per prompt: the new ids, and of each step the two highest logits with their ids"""
    batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    top = TopTwo()
    with torch.no_grad():
        out = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False,
                             logits_processor=LogitsProcessorList([top]), pad_token_id=tokenizer.pad_token_id)
    stops = model.generation_config.eos_token_id
    stops = stops if isinstance(stops, list) else [stops]
    for i in range(len(prompts)):
        ids = out[i, batch.input_ids.shape[1]:].tolist()
        for at, token in enumerate(ids):
            if token in stops:
                ids = ids[:at + 1]
                break
        yield ids, [(top.values[t][i].tolist(), top.ids[t][i].tolist()) for t in range(len(ids))], stops


def first_difference(tokenizer, ids, theirs, ours, ours_finished, stops):
    """The first step whose token does not fit our text: a step that decodes to a start of it, or stops where it stops"""
    for at, token in enumerate(ids):
        if token in stops:
            return None if theirs == ours and ours_finished else at
        if not ours.startswith(tokenizer.decode(ids[:at + 1]).rstrip("\ufffd")):
            return at
    return None if theirs == ours and not ours_finished else len(ids) - 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("completions")
    parser.add_argument("--model", required=True, help="the Hugging Face folder that was evaluated")
    parser.add_argument("--max_new_tokens", type=int, default=200)
    parser.add_argument("--n", type=int, default=0, help="the first problems only")
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--tie", type=float, default=1e-3, help="largest gap of logits that rounding may turn")
    a = parser.parse_args()
    with open(a.completions, encoding="utf-8") as f:
        rows = [row for row in map(json.loads, f) if row.get("decoding") == "greedy" and row.get("sample", 0) == 0]
    rows = rows[:a.n] if a.n else rows
    if not rows:
        sys.exit(f"error: {a.completions} has no greedy rows")
    tokenizer = AutoTokenizer.from_pretrained(a.model, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32).eval()
    answers = texts = right_both = right_ours = right_theirs = unexplained = tokens = 0
    closest = float("inf")  # gap among all tokens before a difference
    for begin in range(0, len(rows), a.batch):
        part = rows[begin:begin + a.batch]
        for n, (row, (ids, top, stops)) in enumerate(zip(part, generate(model, tokenizer, [r["prompt"] for r in part],
                                                                        a.max_new_tokens)), begin):
            theirs = tokenizer.decode([t for t in ids if t not in stops])
            ours = row["completion"]
            mine, other, gold = answer_of(ours), answer_of(theirs), row["gold"].replace(",", "")
            answers += mine == other
            texts += ours == theirs
            right_ours += mine == gold
            right_theirs += other == gold
            right_both += mine == other == gold
            at = first_difference(tokenizer, ids, theirs, ours, row["finished"], stops)
            before = top if at is None else top[:at]
            tokens += len(before)
            closest = min([closest] + [v[0] - v[1] for v, _ in before])
            if at is None and ours == theirs:
                continue
            (high, second), (chosen, runner_up) = top[at]
            gap = high - second
            ours_second = (runner_up in stops) if tokenizer.decode(ids[:at]) == ours else \
                ours.startswith(tokenizer.decode(ids[:at] + [runner_up]).rstrip("\ufffd"))
            explained = gap <= a.tie and ours_second
            unexplained += not explained
            print(f"problem {n}: token {at} of {len(ids)}: {tokenizer.decode([chosen])!r} here, "
                  f"{tokenizer.decode([runner_up])!r} second, logits {high:.6f} and {second:.6f}, gap {gap:.2e}; ours "
                  f"{'takes the second' if ours_second else 'takes neither'}: {'a tie' if explained else 'NOT EXPLAINED'}"
                  f"; answers {mine!r} and {other!r}", flush=True)
        print(f"  {min(begin + a.batch, len(rows))} of {len(rows)}", file=sys.stderr)
    print(f"{len(rows)} problems: {answers} answers equal, {texts} texts equal, {unexplained} differences not explained; "
          f"right: ours {right_ours}, transformers {right_theirs}, both {right_both}; "
          f"{tokens} tokens equal before any difference, where the two highest logits came as near as {closest:.1e}")
    sys.exit(unexplained > 0)


if __name__ == "__main__":
    main()
