// Integer arithmetic with the working written out column by column, units first: what the embedded model learns unless
// told otherwise.
//
//   question  482+359=?     915-748=?      468*7=?
//   solution  2+9=11        15-8=7         8*7=56
//             8+5+1=14      10-4=6         6*7+5=47
//             4+3+1=8       8-7=1          4*7+4=32
//             #### 841      #### 167       #### 3276
//
// Level l has numbers of l + 1 digits. Every step is a small fact, but the model has to find the right digits, carry, and
// put the answer together in the other direction; one wrong token makes it wrong.
#pragma once
#include "task_problem.h"

inline TaskProblem arithmetic_problem(TaskRandom& random, int level) {
    const char operation = "+-*"[random.between(0, 2)];
    int low = 1;
    for (int i = 0; i < level; i++) low *= 10;
    const int high = 10 * low - 1;
    int a = random.between(low, high), b = random.between(low, high);
    if (operation == '*') b = random.between(2, 9);
    if (operation == '-' && a < b) std::swap(a, b);
    TaskProblem p;
    p.question = format("%d%c%d=?\n", a, operation, b);

    int carry = 0, top = a, bottom = b;
    for (int column = 0; column <= level; column++, top /= 10) {
        int t = top % 10, d = operation == '*' ? b : bottom % 10, value;
        bottom /= 10;
        if (operation == '-') {
            t -= carry;  // a borrow; 0 becomes -1, and 9 below
            carry = t < d;
            t += 10 * carry;
            value = t - d;
            p.solution += format("%d-%d=%d\n", t, d, value);
            continue;
        }
        value = (operation == '+' ? t + d : t * d) + carry;
        p.solution += carry ? format("%d%c%d+%d=%d\n", t, operation, d, carry, value)
                            : format("%d%c%d=%d\n", t, operation, d, value);
        carry = value / 10;
    }
    p.gold = std::to_string(operation == '+' ? a + b : operation == '-' ? a - b : a * b);
    return p;
}
