#!/usr/bin/env python3
"""A reward of one's own in Python: the final answer, and the steps that lead to it.

1 if the number after the last #### is that of the gold answer (1,234 and 1234.0 are 1234), and up to 0.25 more: the share
of the lines before it that are an equation which holds, such as 8+5+1=14. A line that is no equation is not right either,
or a policy would be paid for saying nothing.

    ./train_qrl --reward_funcs ./rewards/examples/steps.py

One line of JSON in, one number out, until the input ends. The trap: whatever else is printed on standard output is taken
for an answer; say it on standard error.
"""
import json
import re
import sys

TERM = re.compile(r"^(\d{1,9})((?:[-+*]\d{1,9})+)=(-?\d{1,12})$")


def number(text):
    try:
        return float(text.strip().replace(",", "").rstrip("."))
    except ValueError:
        return None


def holds(line):
    """whether a line such as 6*7+5=47 is an equation, and right"""
    found = TERM.match(line.strip())
    if not found:
        return False
    total = 0
    for term in re.findall(r"[-+]?[^-+]+", found[1] + found[2]):
        sign = -1 if term[0] == "-" else 1
        product = 1
        for factor in term.lstrip("+-").split("*"):
            product *= int(factor)
        total += sign * product
    return total == int(found[3])


def reward(asked):
    work, mark, answer = asked["completion"].rpartition("####")
    lines = [line for line in (work if mark else answer).splitlines() if line.strip()]
    steps = sum(map(holds, lines)) / len(lines) if lines else 0.0
    said, gold = number(answer) if mark else None, number(asked["gold"])
    right = asked["finished"] and said is not None and said == gold
    return float(right) + 0.25 * steps


if __name__ == "__main__":
    for request in sys.stdin:
        asked = json.loads(request)
        batch = isinstance(asked, list)  # with batch=2 or more
        print(json.dumps([reward(a) for a in asked] if batch else reward(asked)), flush=True)
