#!/usr/bin/env python3
"""Writes test/golden/statistics.json, which test/test_statistics.cpp reads: scipy's values of what eval/statistics.h and
eval/estimators.h compute. Run with scipy 1.17.1: python3 test/make_golden_statistics.py
"""
import json
import os
import warnings

import numpy as np
from scipy import stats

warnings.simplefilter("error")
rng = np.random.default_rng(18)


def distributions():
    p = [1e-6, 0.001, 0.025, 0.3, 0.5, 0.9, 0.975, 0.9999]
    df = [0.7, 1, 2, 2.5, 4, 17.3, 199, 5000]
    t = [-40.0, -4.3, -1.0, -0.01, 0.0, 0.5, 1.96, 12.7]
    ab = [[0.5, 0.5], [0.5, 100.5], [10.5, 90.5], [50.5, 50.5], [3.25, 1000.75], [200000.5, 600000.5]]
    return {
        "normal_quantile": [[x, stats.norm.ppf(x)] for x in p],
        "student_quantile": [[x, d, stats.t.ppf(x, d)] for x in p for d in df],
        "student_cdf": [[x, d, stats.t.cdf(x, d)] for x in t for d in df],
        "two_sided": [[x, d, 2 * stats.t.sf(abs(x), d)] for x in t for d in df],
        "beta_quantile": [[x, a, b, stats.beta.ppf(x, a, b)] for x in p for a, b in ab],
        "beta_cdf": [[x, a, b, stats.beta.cdf(x, a, b)] for x in [0.001, 0.1, 0.25, 0.251, 0.5, 0.99] for a, b in ab],
    }


def mcnemar():
    rows = []
    for b, c in [(0, 1), (1, 0), (3, 9), (9, 3), (10, 10), (0, 12), (25, 40), (150, 101), (1000, 1100), (61, 3)]:
        exact = stats.binomtest(b, b + c, 0.5).pvalue
        mid = min(2 * stats.binom.cdf(min(b, c), b + c, 0.5) - stats.binom.pmf(min(b, c), b + c, 0.5), 1.0)
        corrected = stats.chi2.sf(max(abs(b - c) - 1, 0) ** 2 / (b + c), 1)
        rows.append([b, c, exact, mid, corrected])
    return rows


def sign_flips():
    """permutation_test of one sample flips the signs of its elements, here all 2^n ways"""
    rows = []
    for n, unit in [(2, 4), (5, 8), (9, 8), (14, 1), (14, 16), (16, 3)]:
        for shift in [0, 1]:
            d = rng.integers(-unit, unit + 1, size=n) + shift * rng.integers(0, 2, size=n)
            test = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf)
            rows.append({"differences": d.tolist(), "p": float(test.pvalue)})
    return rows


def bootstrap():
    rows = []
    for n, kind in [(20, "normal"), (60, "skewed"), (100, "signs"), (40, "shares")]:
        x = {"normal": lambda: rng.normal(0.1, 1, n), "skewed": lambda: rng.exponential(1, n),
             "signs": lambda: rng.choice([-1.0, 0.0, 1.0], n, p=[0.1, 0.7, 0.2]),
             "shares": lambda: rng.integers(0, 9, n) / 8 - rng.integers(0, 9, n) / 8}[kind]()
        x = np.round(x, 6)
        r = stats.bootstrap((x,), np.mean, n_resamples=199, method="percentile", rng=rng)
        means = r.bootstrap_distribution
        rows.append({"x": x.tolist(), "means": np.sort(means).tolist(),
                     "percentile": list(map(float, r.confidence_interval))})
    return rows


def student():
    """one sample: the test of 0, its interval, and two one-sided tests; two samples: Welch's"""
    rows = []
    for n, mean, margin in [(10, 0.1, 0.2), (200, 0.01, 0.02), (1319, -0.004, 0.02), (50, 0.5, 0.1)]:
        d = np.round(rng.normal(mean, 0.3, n), 4)
        test = stats.ttest_1samp(d, 0)
        low, high = test.confidence_interval(0.95)
        equality = max(stats.ttest_1samp(d, -margin, alternative="greater").pvalue,
                       stats.ttest_1samp(d, margin, alternative="less").pvalue)
        rows.append({"d": d.tolist() if n <= 200 else None, "mean": d.mean(), "error": d.std(ddof=1) / n**0.5, "n": n,
                     "p": test.pvalue, "interval": [low, high], "margin": margin, "equality": equality})
    welch = []
    for a, b in [(3, 3), (5, 4), (2, 7)]:
        x, y = np.round(rng.normal(0.4, 0.02, a), 4), np.round(rng.normal(0.43, 0.05, b), 4)
        test = stats.ttest_ind(y, x, equal_var=False)
        low, high = test.confidence_interval(0.95)
        welch.append({"a": x.tolist(), "b": y.tolist(), "p": test.pvalue, "df": test.df, "interval": [low, high]})
    return rows, welch


def majorities():
    """two answers among n samples, m of them right: more than k / 2 right ones, and half of the ties"""
    rows = []
    for n, m, k in [(64, 20, 16), (1024, 400, 512), (1024, 500, 7), (1024, 511, 1000), (1000, 700, 64)]:
        law = stats.hypergeom(n, m, k)
        rows.append([n, m, k, law.sf(k // 2) + (0.5 * law.pmf(k // 2) if k % 2 == 0 else 0.0)])
    return rows


one, two = student()
golden = {"distributions": distributions(), "mcnemar": mcnemar(), "sign_flips": sign_flips(), "bootstrap": bootstrap(),
          "student": one, "welch": two, "majorities": majorities()}
path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden", "statistics.json")
with open(path, "w") as f:
    json.dump(golden, f)
    f.write("\n")
