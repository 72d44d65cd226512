// Chains of assignments, carried out one after the other.
//
//   question  a=7;b=a+5;c=b*3;d=c-a;d=?
//   solution  a=7
//             b=7+5=12
//             c=12*3=36
//             d=36-7=29
//             #### 29
//
// Level l has l + 1 assignments behind the first. Each takes the value before it, or now and then an older one, and a number
// or another value; all values lie between 0 and 99. An error is never repaired: what is wrong once stays wrong.
#pragma once
#include "task_problem.h"

static constexpr int CHAIN_MOST = 99;

inline TaskProblem chain_problem(TaskRandom& random, int level) {
    std::vector<int> value = {random.between(2, 20)};
    TaskProblem p;
    p.question = format("a=%d;", value[0]);
    p.solution = format("a=%d\n", value[0]);
    while ((int)value.size() < level + 2) {
        const int n = (int)value.size();
        const int from = random.between(0, 3) ? n - 1 : random.between(0, n - 1);
        const int kind =
            random.between(0, 3);  // a number added, taken away, or times it; another value added or taken away
        int other = -1, number = kind == 2 ? random.between(2, 5) : random.between(2, 20);
        char operation = "+-*+"[kind];
        if (kind == 3 && n > 1) {
            other = random.between(0, n - 1);
            number = value[other];
            if (random.between(0, 1)) operation = '-';
        }
        const int result = operation == '+'   ? value[from] + number
                           : operation == '-' ? value[from] - number
                                              : value[from] * number;
        if (result < 0 || result > CHAIN_MOST || other == from) continue;
        const std::string name(1, (char)('a' + n)), taken(1, (char)('a' + from));
        const std::string operand = other < 0 ? std::to_string(number) : std::string(1, (char)('a' + other));
        p.question += format("%s=%s%c%s;", name.c_str(), taken.c_str(), operation, operand.c_str());
        p.solution += format("%s=%d%c%d=%d\n", name.c_str(), value[from], operation, number, result);
        value.push_back(result);
    }
    p.question += format("%c=?\n", 'a' + level + 1);
    p.gold = std::to_string(value.back());
    return p;
}
