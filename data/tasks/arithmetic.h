// The embedded task: integer arithmetic with the working written out column by column, units first.
//
//   question  482+359=?     915-748=?      468*7=?
//   solution  2+9=11        15-8=7         8*7=56
//             8+5+1=14      10-4=6         6*7+5=47
//             4+3+1=8       8-7=1          4*7+4=32
//             #### 841      #### 167       #### 3276
//
// Three operations at three levels (numbers of 2, 3 and 4 digits). Every step is a small fact, but the model has to
// find the right digits, carry, and put the answer together in the other direction; one wrong token makes it wrong. A
// problem is a pure function of (seed, index). Train and held-out are disjoint by construction: a question is held out
// when a hash of its text is 0 modulo 8, whatever the seed, and each split draws again until it has one of its own.
#pragma once
#include <cstdint>
#include <string>
#include <vector>
#include "../../runtime/error.h"
#include "../../runtime/rng.h"
#include "task_problem.h"

struct ArithmeticProblem {
    std::string question, solution, gold;
    int level = 0;  // 1, 2, 3: numbers of level + 1 digits
    char operation = '+';
};

inline ArithmeticProblem arithmetic_draw(uint64_t seed, uint32_t index, uint32_t attempt) {
    Philox4 r = rng_bits(seed, RNG_TASK, index, attempt, 0), s = rng_bits(seed, RNG_TASK, index, attempt, 1);
    auto between = [](uint32_t bits, int low, int high) {
        return low + (int)(((uint64_t)bits * (uint64_t)(high - low + 1)) >> 32);
    };
    ArithmeticProblem p;
    p.level = between(r.x[0], 1, 3);
    p.operation = "+-*"[between(r.x[1], 0, 2)];
    const int low = p.level == 1 ? 10 : p.level == 2 ? 100 : 1000, high = 10 * low - 1;
    int a = between(r.x[2], low, high), b = between(r.x[3], low, high);
    if (p.operation == '*') b = between(s.x[0], 2, 9);
    if (p.operation == '-' && a < b) std::swap(a, b);
    p.question = format("%d%c%d=?", a, p.operation, b);

    int carry = 0, top = a, bottom = b;
    for (int column = 0; column <= p.level; column++, top /= 10) {
        int t = top % 10, d = p.operation == '*' ? b : bottom % 10, value;
        bottom /= 10;
        if (p.operation == '-') {
            t -= carry;  // a borrow; 0 becomes -1, and 9 below
            carry = t < d;
            t += 10 * carry;
            value = t - d;
            p.solution += format("%d-%d=%d\n", t, d, value);
            continue;
        }
        value = (p.operation == '+' ? t + d : t * d) + carry;
        p.solution += carry ? format("%d%c%d+%d=%d\n", t, p.operation, d, carry, value)
                            : format("%d%c%d=%d\n", t, p.operation, d, value);
        carry = value / 10;
    }
    p.gold = std::to_string(p.operation == '+' ? a + b : p.operation == '-' ? a - b : a * b);
    p.solution += "#### " + p.gold;
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

inline TaskProblem arithmetic_task(uint64_t seed, uint32_t index, bool held_out) {
    ArithmeticProblem p = arithmetic_problem(seed, index, held_out);
    return {p.question + "\n", p.solution, p.gold};
}
