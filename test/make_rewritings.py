#!/usr/bin/env python3
"""Equivalent rewritings and perturbations of the golds of OlympiadBench and GSM8K, for the grader.

  test/make_rewritings.py --olympiadbench test.jsonl --gsm8k test.jsonl > rewritings.jsonl
  test/make_rewritings.py ... --grade ./train_qrl        grades them, prints shares; exit 1 below 95 % or where one is paid

Each gold gives five answers that are right and three that are wrong, as {"id", "gold", "prediction", "expected", "kind"}.
What is written is read again by the reader below and compared with sympy: an answer is right if every item's difference
is zero (also at random points to 40 digits), wrong if an item differs at a point, by more than a percent sign would.
Golds that the reader cannot read (words, sets with words) are only respelled, and counted. Needs sympy; nothing of the
output is committed. The trap: a perturbation that is right after all, such as a sign inside of an even power, or two items
swapped of a list without order; such are drawn again.
"""
import argparse
import collections
import json
import random
import re
import subprocess
import sys

import sympy as sp

# ----------------------------------------------------------------------------------------------------------------------
# reading LaTeX


class Unreadable(Exception):
    pass


TOKEN = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+|\\[A-Za-z]+|\\.|[A-Za-z]|.)", re.S)
SKIPPED = {r"\left", r"\right", r"\,", r"\!", r"\;", r"\ ", r"\displaystyle", r"\quad", r"\limits", "$", "~"}
FUNCTIONS = {r"\sin": sp.sin, r"\cos": sp.cos, r"\tan": sp.tan, r"\ln": sp.log, r"\exp": sp.exp}


def clean(text):
    text = re.sub(r"\\(?:text|mathrm|textbf)\{[^{}]*\}(\^\{?\d\}?)?", "", text)  # units
    text = re.sub(r"\^\{?\\circ\}?|\\%|\\\$", "", text)
    text = text.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac").replace(r"\cfrac", r"\frac")
    text = text.replace("{,}", "").replace(r"\geqslant", r"\geq")
    return text


class Reader:
    """A recursive descent over one expression without a relation, to a sympy expression."""

    def __init__(self, text):
        self.t = [m for m in TOKEN.findall(clean(text)) if m not in SKIPPED and m.strip()]
        self.p = 0

    def peek(self):
        return self.t[self.p] if self.p < len(self.t) else ""

    def next(self, expected=None):
        token = self.peek()
        if not token or (expected and token != expected):
            raise Unreadable(f"{token!r} instead of {expected!r}")
        self.p += 1
        return token

    def whole(self):
        e = self.sum()
        if self.p != len(self.t):
            raise Unreadable(self.peek())
        return e

    def sum(self):
        total = sp.Integer(0)
        first = True
        while first or self.peek() in ("+", "-"):
            sign = 1
            while self.peek() in ("+", "-"):
                sign *= -1 if self.next() == "-" else 1
            total += sign * self.product()
            first = False
        return total

    def starts(self):
        c = self.peek()
        return bool(c) and (c[0].isalnum() or c in ("(", "|", "{", "[") or
                            (c[0] == "\\" and c not in (r"\cdot", r"\times", r"\rfloor", r"\rceil", r"\cup", r"\}")))

    def product(self):
        value = self.power()
        while True:
            if self.peek() in ("*", r"\cdot", r"\times"):
                self.next()
                value *= self.signed()
            elif self.peek() == "/":
                self.next()
                value /= self.signed()
            elif self.starts():
                value *= self.power()
            else:
                return value

    def signed(self):
        sign = 1
        while self.peek() in ("+", "-"):
            sign *= -1 if self.next() == "-" else 1
        return sign * self.power()

    def braced(self):
        if self.peek() == "{":
            self.next()
            e = self.sum()
            self.next("}")
            return e
        token = self.next()
        if token[0].isdigit():  # \frac12: one digit
            if len(token) > 1:
                self.p -= 1
                self.t[self.p] = token[1:]
            return sp.Integer(token[0])
        self.p -= 1
        return self.atom()

    def power(self):
        value = self.atom()
        while True:
            if self.peek() == "^":
                self.next()
                if self.peek() == "{":
                    value = value ** self.braced()
                else:
                    value = value ** self.signed()
            elif self.peek() == "!":
                self.next()
                value = sp.factorial(value)
            else:
                return value

    def subscript(self):
        if self.peek() != "_":
            return ""
        self.next()
        if self.peek() != "{":
            return "_" + self.next()
        s = ""
        while self.peek() != "}":
            s += self.next()
        self.next("}")
        return "_" + s.strip("{}\\ ")

    def atom(self):
        token = self.next()
        if token[0].isdigit() or token[0] == ".":
            return sp.Rational(token)
        if token in ("(", "[", "{"):
            e = self.sum()
            self.next({"(": ")", "[": "]", "{": "}"}[token])
            return e
        if token == r"\pi":
            return sp.pi
        if token == r"\infty":
            return sp.oo
        if token == r"\frac":
            a = self.braced()
            return a / self.braced()
        if token in (r"\binom", r"\dbinom"):
            a = self.braced()
            return sp.binomial(a, self.braced())
        if token == r"\sqrt":
            index = 2
            if self.peek() == "[":
                self.next()
                index = self.sum()
                self.next("]")
            return sp.root(self.braced(), index)
        if token in (r"\lfloor", r"\lceil"):
            e = self.sum()
            self.next(r"\rfloor" if token == r"\lfloor" else r"\rceil")
            return sp.floor(e) if token == r"\lfloor" else sp.ceiling(e)
        if token == r"\log":
            base = self.subscript()
            x = self.power()
            return sp.log(x, int(base[1:])) if base else sp.log(x)
        if token in FUNCTIONS:
            return FUNCTIONS[token](self.power())
        if token.isalpha() and len(token) == 1:
            name = token + self.subscript()
            return sp.E if name == "e" else sp.Symbol(name, positive=True)
        raise Unreadable(token)


def read(text):
    try:
        e = Reader(text).whole()
    except (Unreadable, IndexError, ValueError, TypeError, RecursionError) as error:
        raise Unreadable(str(error))
    if not isinstance(e, sp.Expr) or e.has(sp.zoo, sp.nan):
        raise Unreadable(text)
    return e


def split_top(text, separator=","):
    """At separators outside of brackets"""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        escaped = i > 0 and text[i - 1] == "\\" and c in "{}"
        if c in "([{" or (escaped and c == "{"):
            depth += 1
        elif c in ")]}":
            depth -= 1
        elif c == separator and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return [p.strip() for p in parts + [text[start:]]]


class Item:
    """One answer of a list: a name (x=), and an expression, a tuple or a union of intervals."""

    def __init__(self, text):
        self.text = text.strip()
        if re.search(r"(?<![\\A-Za-z])[A-Za-z]{4}", self.text):  # words
            raise Unreadable(text)
        self.name = ""
        body = self.text
        sides = split_top(body, "=")
        if len(sides) == 2 and sides[0]:
            self.name, body = sides
        elif len(sides) != 1:
            raise Unreadable(text)
        self.pieces = []  # of a union: (open, values, close); open is "" for an expression
        for piece in body.split(r"\cup"):
            piece = clean(piece).replace(r"\left", "").replace(r"\right", "").strip()
            m = re.fullmatch(r"(\(|\[|\\\{)(.*)(\)|\]|\\\})", piece, re.S)
            inside = split_top(m.group(2)) if m else []
            if m and (len(inside) > 1 or m.group(1) == r"\{"):
                self.pieces.append((m.group(1), [read(v) for v in inside], m.group(3)))
            elif r"\cup" in body:
                raise Unreadable(text)
            else:
                self.pieces.append(("", [read(piece)], ""))

    def is_expression(self):
        return len(self.pieces) == 1 and self.pieces[0][0] == ""

    def is_interval(self):
        o, v, c = self.pieces[0]
        return len(self.pieces) > 1 or o == "[" or c == "]" or (len(v) == 2 and any(x.has(sp.oo) for x in v))


# ----------------------------------------------------------------------------------------------------------------------
# are two expressions equal?

points = random.Random(20240)
POINTS = [collections.defaultdict(lambda: points.randint(2, 9)) for _ in range(12)]


def at(e, point):
    return sp.N(e.subs({s: point[s.name] for s in e.free_symbols}), 40)


def near(x, y):
    if x == y:
        return True
    d = abs(x - y)
    return bool(d.is_number and d.is_finite and d < sp.Float("1e-30") * (1 + abs(x)))


def equal(a, b):
    """Zero difference at twelve points of whole numbers to 30 digits, and by sympy where it decides quickly"""
    if a == b:
        return True
    if not all(near(at(a, p), at(b, p)) for p in POINTS):
        return False
    return a.has(sp.floor, sp.ceiling, sp.factorial) or sp.expand(a - b) == 0 or sp.simplify(a - b) == 0 or \
        bool((a - b).equals(0))


def close(a, b):
    """Might a grader rightly call them equal? Also by a percent sign, or a decimal of the other"""
    if a == b:
        return True
    for scale in (1, 100, sp.Rational(1, 100)):
        if all(abs(at(scale * a, p) - at(b, p)) <= sp.Float("1e-5") * abs(at(b, p)) for p in POINTS[:4]):
            return True
    return False


def same_item(a, b, test, ordered=True):
    if len(a.pieces) != len(b.pieces):
        return False
    if a.name and b.name and a.name.replace(" ", "") != b.name.replace(" ", ""):
        return False
    def same(p, q):
        return p[0] == q[0] and p[2] == q[2] and len(p[1]) == len(q[1]) and all(test(x, y) for x, y in zip(p[1], q[1]))
    return all(any(same(p, q) for q in b.pieces) for p in a.pieces)


def same_list(a, b, test=equal):
    """without order"""
    if len(a) != len(b):
        return False
    left = list(b)
    for item in a:
        match = next((k for k in left if same_item(item, k, test)), None)
        if match is None:
            return False
        left.remove(match)
    return True


# ----------------------------------------------------------------------------------------------------------------------
# writing


def latex(e):
    return sp.latex(e, ln_notation=True)  # \\log may be to base ten


def reversed_sum(e):
    """terms or factors the other way round"""
    if e.is_Add:
        terms = [latex(t) for t in reversed(sp.Add.make_args(e))]
        return "".join(t if t.startswith("-") or i == 0 else "+" + t for i, t in enumerate(terms))
    if e.is_Mul and not e.is_Rational:
        def factor(f):
            s = latex(f)
            return rf"\left({s}\right)" if f.is_Add or s.startswith("-") else s
        return r" \cdot ".join(factor(f) for f in reversed(sp.Mul.make_args(e)))
    raise Unreadable("nothing to reverse")


def grouped(n):
    return f"{n:,}"


def with_style(text, rng):
    return rng.choice([text, f"${text}$", rf"\boxed{{{text}}}", rf"\({text}\)", text + ".", " " + text])


def decimal(q):
    """a terminating decimal, or Unreadable"""
    n, places = sp.Rational(q), 0
    while n.q != 1:
        n, places = n * 10, places + 1
        if places > 8:
            raise Unreadable("no short decimal")
    digits = str(abs(int(n))).rjust(places + 1, "0")
    s = digits[:-places] + "." + digits[-places:] if places else digits
    return ("-" if n < 0 else "") + s


# each: a sympy expression -> text with the same value
def expanded(e, rng):
    return latex(sp.expand(e))


def factored(e, rng):
    return latex(sp.factor(e))


def reordered(e, rng):
    return reversed_sum(e)


def reordered_factored(e, rng):
    return reversed_sum(sp.factor(e))


def doubled(e, rng):
    k = rng.choice([2, 3, 5, 7])
    return rf"\frac{{{latex(sp.expand(k * e))}}}{{{k}}}"


def split(e, rng):
    k = rng.randint(1, 9)
    return f"{latex(sp.expand(e - k))} + {k}"


def split_before(e, rng):
    k = rng.randint(1, 9)
    return f"{k} + {latex(sp.expand(e - k))}"


def multiple(e, rng):
    k = rng.choice([2, 3, 4, 6])
    return rf"{k} \cdot {latex(sp.factor(e / k))}" if not sp.factor(e / k).is_Add else \
        rf"{k}\left({latex(e / k)}\right)"


def other_notation(e, rng):
    text = latex(e)
    text = text.replace(r"\frac", rng.choice([r"\dfrac", r"\tfrac", r"\cfrac"]))
    return text.replace(r" \cdot ", r"\times ") if rng.random() < 0.5 else text


def slash(e, rng):
    n, d = sp.fraction(sp.together(e))
    if d == 1:
        raise Unreadable("no fraction")
    return rf"({latex(n)})/({latex(d)})"


def half_power(e, rng):
    text = re.sub(r"\\sqrt\{(\d+|[a-z])\}", r"\1^{1/2}", latex(e))
    if "sqrt" in text or "^{1/2}" not in text:
        raise Unreadable("no root")
    return re.sub(r"(\d) (\d)", r"\1 \\cdot \2", text)


def rational_only(f):
    def write(e, rng):
        if not e.is_Rational:
            raise Unreadable("no number")
        return f(e, rng)
    write.__name__ = f.__name__
    return write


def integer_only(f):
    def write(e, rng):
        if not e.is_Integer:
            raise Unreadable("no integer")
        return f(int(e), rng)
    write.__name__ = f.__name__
    return write


@rational_only
def as_decimal(e, rng):
    return decimal(e) + ("" if e.q != 1 else rng.choice([".0", ".00"]))


@rational_only
def percent(e, rng):
    return decimal(100 * e) + r"\%"


@rational_only
def unreduced(e, rng):
    k = rng.choice([2, 3, 4, 5])
    return rf"\frac{{{e.p * k}}}{{{e.q * k}}}"


@rational_only
def plain_fraction(e, rng):
    k = rng.choice([1, 2, 3])
    return f"{e.p * k}/{e.q * k}"


@rational_only
def mixed(e, rng):
    whole, rest = divmod(abs(e.p), e.q)
    if e.q == 1 or whole == 0:
        raise Unreadable("no mixed number")
    return ("-" if e < 0 else "") + rf"{whole}\frac{{{rest}}}{{{e.q}}}"


@integer_only
def thousands(n, rng):
    if abs(n) < 1000:
        raise Unreadable("below 1000")
    return rng.choice([grouped(n), grouped(n).replace(",", "{,}"), grouped(n).replace(",", r"\,"),
                       grouped(n).replace(",", " "), grouped(n).replace(",", r",\!")])


@integer_only
def scientific(n, rng):
    zeros = len(str(n)) - len(str(n).rstrip("0"))
    if n == 0 or zeros == 0:
        raise Unreadable("no zeros")
    return rf"{n // 10 ** zeros} \times 10^{{{zeros}}}"


@integer_only
def prime_factors(n, rng):
    f = sp.factorint(abs(n))
    if len(f) < 2 or n < 0 or max(f) > 10 ** 6:
        raise Unreadable("no product")
    return rng.choice([" ", r" \cdot ", r" \times "]).join(f"{p}^{{{k}}}" for p, k in f.items())


UNITS = [r"\text{ cm}", r"\text{ units}", r"\mathrm{~cm}^2", r"\text{ meters}", r"\ \text{dollars}", " cm", " units"]


def with_units(e, rng):
    if e.is_Add or e.free_symbols - {sp.Symbol("n", positive=True)} or e.has(sp.floor):
        raise Unreadable("no unit behind a sum")
    return latex(e) + rng.choice(UNITS)


def money(e, rng):
    if not e.is_Integer or e < 0:
        raise Unreadable("no amount")
    return rng.choice([r"\$", "$"]) + rng.choice([grouped(int(e)), str(e)]) + rng.choice(["", ".00"])


WRITERS = [expanded, factored, reordered, reordered_factored, doubled, split, split_before, multiple, other_notation, slash,
           half_power, as_decimal, percent, unreduced, plain_fraction, mixed, thousands, scientific, prime_factors,
           with_units, money]


def read_back(kind, text):
    """the value of what a writer wrote, which may hold separators and units that the reader does not know"""
    if kind in ("thousands", "money"):
        text = re.sub(r"[,$\\! {}]", "", text)
    if kind == "with_units":
        text = re.sub(r"(\s|\\ )(cm|units)$", "", text)
    if kind == "percent":
        return read(text.replace(r"\%", "")) / 100
    if kind == "mixed":
        m = re.fullmatch(r"(-?)(\d+)(\\frac.*)", text)
        return (read(m.group(2)) + read(m.group(3))) * (-1 if m.group(1) else 1)
    return read(text)


def rewrite(e, kind, rng):
    text = kind(e, rng)
    if not equal(e, read_back(kind.__name__, text)):
        raise Unreadable(f"{kind.__name__} of {e}: {text}")
    return text


def item_text(item, rng, kind):
    """an item of a list with `kind` applied to each of its values, or to those that it fits"""
    used = 0
    def value(e):
        nonlocal used
        try:
            if kind.__name__ in ("thousands", "money", "percent", "with_units") and not item.is_expression():
                raise Unreadable("within a tuple")
            s = rewrite(e, kind, rng)
            used += 1
            return s
        except Unreadable:
            return latex(e)
    pieces = []
    for o, values, c in item.pieces:
        inside = rng.choice([", ", ","]).join(value(v) for v in values)
        pieces.append(rf"\left{o}{inside}\right{c}" if o and rng.random() < 0.5 else o + inside + c)
    if len(pieces) > 1 and rng.random() < 0.7:
        pieces.reverse()
    body = r" \cup ".join(pieces)
    return (item.name + " = " + body if item.name else body), used


def rewritings(items, text, rng):
    """up to five (kind, text); of a list the items are shuffled as well"""
    found = {}
    kinds = WRITERS[:]
    rng.shuffle(kinds)
    for kind in kinds * 2:
        if len(found) == 5:
            break
        if kind is percent and "%" in text:
            continue
        order = items[:]
        rng.shuffle(order)
        parts = [item_text(item, rng, kind) for item in order]
        if sum(used for _, used in parts) == 0:
            continue
        if len(items) > 1 and kind.__name__ in ("thousands", "money", "percent", "with_units", "scientific"):
            continue
        joined = rng.choice([", ", r",\ ", "; ", r"\text{ and }"] if len(items) == 2 else [", ", ","])
        s = joined.join(p for p, _ in parts)
        if s.replace(" ", "") == text.replace(" ", "") or s in found.values():
            continue
        if kind.__name__ not in found:
            found[kind.__name__] = s if kind.__name__ == "money" else with_style(s, rng)
    return list(found.items()) + respellings(text, rng)[:5 - len(found)]


def respellings(text, rng):
    """The same LaTeX in other clothes, for golds that cannot be read and where writers are short"""
    out = [("spaces", re.sub(r"(?<![A-Za-z\d\\])\s+|\s+(?![A-Za-z\d])", "", text)),
           ("boxed", rf"\boxed{{{text}}}"), ("display", rf"\displaystyle {text}"),
           ("brackets", f"${text}$"), ("period", text + "."), ("fractions", text.replace(r"\frac", r"\dfrac"))]
    rng.shuffle(out)
    return out


# ----------------------------------------------------------------------------------------------------------------------
# wrong answers


def change(e, how, rng):
    if how == "sign":
        return -e
    if how == "digit":
        numbers = [n for n in sp.preorder_traversal(e) if n.is_Rational]
        if not numbers:
            return e + 1
        n = rng.choice(sorted(set(numbers), key=str))
        return e.xreplace({n: n + rng.choice([1, -1, 2, 10])})
    if how == "exponent":
        powers = sorted({n for n in sp.preorder_traversal(e) if n.is_Pow}, key=str)
        if not powers:
            return e ** 2
        p = rng.choice(powers)
        return e.xreplace({p: p.base ** (p.exp + rng.choice([1, -1]))})
    if how == "variable":
        symbols = sorted(e.free_symbols, key=str)
        if not symbols:
            return e + sp.Symbol("k", positive=True)
        s = rng.choice(symbols)
        return e.xreplace({s: sp.Symbol("t" if s.name != "t" else "u", positive=True)})
    if how == "swap":
        symbols = sorted(e.free_symbols, key=str)
        if len(symbols) < 2:
            raise Unreadable("one variable")
        a, b = rng.sample(symbols, 2)
        return e.xreplace({a: b, b: a})
    if how == "term":
        return e + rng.choice([1, 2, -1])
    if how == "inverse":
        return 1 / e
    if how == "magnitude":
        return e * 10
    raise ValueError(how)


def perturbations(items, rng):
    found = {}
    for _ in range(60):
        if len(found) == 3:
            break
        how = rng.choice(["sign", "digit", "exponent", "variable", "swap", "term", "inverse", "magnitude", "bracket", "order",
                          "missing", "extra"])
        if how in found:
            continue
        texts = [(i, i.text) for i in items]
        k = rng.randrange(len(items))
        item = items[k]
        try:
            pieces = [(o, list(v), c) for o, v, c in item.pieces]
            j = rng.randrange(len(pieces))
            o, values, c = pieces[j]
            if how == "bracket":
                if not item.is_interval() or o == r"\{" or any(v.is_infinite for v in values):
                    continue
                pieces[j] = ("[" if o == "(" else "(", values, c)
            elif how == "order":
                if o == "" or o == r"\{" or len(values) < 2:
                    continue
                pieces[j] = (o, values[1:] + values[:1], c)
            elif how in ("missing", "extra"):
                if how == "missing" and len(items) < 2 or o:
                    continue
                kept = items[:k] + items[k + 1:] if how == "missing" else items + [Item(latex(values[0] + 1))]
                if not same_list(items, kept, close) and not any(
                        close(a.pieces[0][1][0], b.pieces[0][1][0]) for i, a in enumerate(kept) for b in kept[:i]):
                    found[how] = ", ".join(i.text for i in kept)
                continue
            else:
                v = rng.randrange(len(values))
                values[v] = change(values[v], how, rng)
                if values[v].has(sp.zoo, sp.nan):
                    continue
            body = r"\cup ".join(o + ", ".join(latex(v) for v in vs) + c for o, vs, c in pieces)
            text = item.name + "=" + body if item.name else body
            wrong = items[:k] + [Item(text)] + items[k + 1:]
            if same_list(items, wrong, close):
                continue
            found[how] = ", ".join([i.text for i in items[:k]] + [text] + [i.text for i in items[k + 1:]])
        except (Unreadable, ZeroDivisionError, TypeError, ValueError):
            continue
    return list(found.items())


# ----------------------------------------------------------------------------------------------------------------------
# rows


def rows_of(name, gold, seed, tally):
    rng = random.Random(seed)
    text = gold.replace("$", "").strip()
    items = None
    try:
        items = [Item(t) for t in split_top(text)]
    except Unreadable:
        tally["golds that are only respelled"] += 1
    right = rewritings(items, text, rng) if items else respellings(text, rng)[:5]
    wrong = perturbations(items, rng) if items else []
    tally["golds with fewer than five rewritings"] += len(right) < 5
    tally["golds with fewer than three perturbations"] += len(wrong) < 3
    for kind, answer in right:
        yield {"id": name, "gold": gold, "prediction": answer, "expected": "correct", "kind": kind}
    for kind, answer in wrong:
        yield {"id": name, "gold": gold, "prediction": answer, "expected": "wrong", "kind": kind}


def golds(args):
    if args.olympiadbench:
        for line in open(args.olympiadbench, encoding="utf-8"):
            row = json.loads(line)
            for k, gold in enumerate(row["final_answer"]):
                yield f"olympiadbench-{row['id']}-{k}", gold
    if args.gsm8k:
        for k, line in enumerate(open(args.gsm8k, encoding="utf-8")):
            yield f"gsm8k-{k}", json.loads(line)["answer"].split("####")[1].strip().replace(",", "")


def grade(rows, program, show):
    lines = "".join(json.dumps(r) + "\n" for r in rows)
    out = subprocess.run([program, "grade"], input=lines, capture_output=True, text=True, check=True).stdout
    counts = collections.defaultdict(lambda: [0, 0])
    paid = []
    for row in map(json.loads, out.splitlines()):
        fits = row["verdict"] == row["expected"]
        suite = row["id"].split("-")[0]
        for key in ((suite, row["expected"]), (suite, row["expected"], row["kind"])):
            counts[key][0] += fits
            counts[key][1] += 1
        if not fits and row["expected"] == "wrong":
            paid.append(row)
        elif not fits and show:
            print("missed", row["id"], row["kind"], row["gold"], " | ", row["prediction"])
    ok = True
    for key in sorted(counts, key=str):
        fits, total = counts[key]
        print(f"{' '.join(key):48s} {fits} of {total} ({100 * fits / total:.2f} %)")
        if len(key) == 2 and key[1] == "correct":
            ok = ok and fits >= 0.95 * total
    for row in paid:
        print("paid", row["id"], row["kind"], row["gold"], " | ", row["prediction"])
    return ok and not paid


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--olympiadbench", help="test.jsonl with final_answer")
    parser.add_argument("--gsm8k", help="test.jsonl with answer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=0, help="golds; 0: all")
    parser.add_argument("--rows", help="read the rows from this file instead of making them")
    parser.add_argument("--grade", metavar="PROGRAM", help="grade the rows with PROGRAM grade, and print shares")
    parser.add_argument("--show", action="store_true", help="also print what is missed")
    args = parser.parse_args()
    tally = collections.Counter()
    if args.rows:
        rows = [json.loads(line) for line in open(args.rows, encoding="utf-8")]
    else:
        rows = []
        for k, (name, gold) in enumerate(golds(args)):
            if args.limit and k >= args.limit:
                break
            rows += rows_of(name, gold, f"{args.seed} {name}", tally)
    for what, n in tally.items():
        print(f"{what}: {n}", file=sys.stderr)
    if args.grade:
        sys.exit(0 if grade(rows, args.grade, args.show) else 1)
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
