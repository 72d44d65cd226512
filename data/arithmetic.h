// The embedded task: integer arithmetic in one or two operations, with the working written out.
//
//   question   37+48-26=?
//   solution   37+48=85\n85-26=59\n#### 59
//
// Levels: 1 adds or subtracts once; 2 chains two of them; 3 multiplies by a digit and adds or subtracts.
// A problem is a pure function of (seed, index). Train and held-out are disjoint by construction: a problem is held out
// when a hash of its text is 0 modulo 8, whatever the seed, and the two draws reject the other's problems.
#pragma once
#include <cstdint>
#include <string>
#include <vector>
#include "../runtime/error.h"
#include "../runtime/rng.h"
#include "dataset.h"

struct ArithmeticProblem {
    std::string question, solution, gold;
    int level = 0;
};

inline ArithmeticProblem arithmetic_draw(uint64_t seed, uint32_t index, uint32_t attempt) {
    Philox4 r = rng_bits(seed, RNG_TASK, index, attempt, 0), s = rng_bits(seed, RNG_TASK, index, attempt, 1);
    auto between = [](uint32_t bits, int low, int high) {
        return low + (int)(((uint64_t)bits * (uint64_t)(high - low + 1)) >> 32);
    };
    ArithmeticProblem p;
    p.level = between(r.x[0], 1, 3);
    int a = between(r.x[1], 10, 99), b = between(r.x[2], 10, 99), c = between(r.x[3], 10, 99);
    int first, last;
    std::string head, tail;
    if (p.level == 3) {
        int digit = between(s.x[0], 2, 9);
        first = a * digit;
        head = format("%d*%d", a, digit);
    } else {
        bool plus = s.x[0] & 1;
        if (!plus && a < b) std::swap(a, b);
        first = plus ? a + b : a - b;
        head = format("%d%c%d", a, plus ? '+' : '-', b);
    }
    std::string work = format("%s=%d\n", head.c_str(), first);
    last = first;
    if (p.level > 1) {
        bool plus = (s.x[1] & 1) || first < c;
        last = plus ? first + c : first - c;
        tail = format("%c%d", plus ? '+' : '-', c);
        work += format("%d%s=%d\n", first, tail.c_str(), last);
    }
    p.question = head + tail + "=?";
    p.gold = std::to_string(last);
    p.solution = work + "#### " + p.gold;
    return p;
}

inline bool arithmetic_held_out(const std::string& question) {
    uint64_t h = 1469598103934665603ull;  // FNV-1a
    for (unsigned char c : question) h = (h ^ c) * 1099511628211ull;
    return (h >> 32) % 8 == 0;
}

// the index-th problem of a split
inline ArithmeticProblem arithmetic_problem(uint64_t seed, uint32_t index, bool held_out) {
    for (uint32_t attempt = 0;; attempt++) {
        ArithmeticProblem p = arithmetic_draw(seed, index, attempt);
        if (arithmetic_held_out(p.question) == held_out) return p;
    }
}
