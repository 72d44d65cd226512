// Tasks: problems made up by the program. A new one is a file here and a row of the table; nothing else knows it by
// name.
#pragma once
#include <string>
#include <vector>
#include "../../runtime/options.h"
#include "../dataset.h"
#include "arithmetic.h"

struct Task {
    const char* name;
    const char* help;
    TaskProblem (*problem)(uint64_t seed, uint32_t index, bool held_out);  // a pure function
    uint32_t train, held_out;                                              // problems of an epoch, and of an evaluation
    int completion_length;  // tokens, bytes for the embedded model, that a solution and some slack take
    const char* longest;    // a question that no other is longer than
};

inline const Task tasks[] = {
    {"arithmetic", "sums, differences and products of numbers of 2 to 4 digits, worked out column by column",
     arithmetic_task, 100000, 256, 56, "1000+1000=?\n"},
};

inline const Task& find_task(const std::string& name) {
    std::vector<std::string> names;
    for (const Task& t : tasks) {
        if (name == t.name) return t;
        names.push_back(t.name);
    }
    fail_usage("--task %s: not one of %s%s", printable(name).c_str(), join_words(names).c_str(),
               did_you_mean(name, names).c_str());
}

// the seed of the problems that a run with this seed is trained on; those held out are the same for every run
inline uint64_t task_seed(uint64_t seed, bool held_out) { return held_out ? 0 : seed + 1; }

inline Problem task_problem(const Task& task, uint64_t seed, uint32_t index, bool held_out) {
    TaskProblem t = task.problem(seed, index, held_out);
    Problem p;
    p.question = t.question;
    p.gold = t.gold;
    p.source = format("task %s%s", task.name, held_out ? ", held out" : "");
    p.line = (int)index;
    return p;
}

// the first n problems
inline std::vector<Problem> task_problems(const Task& task, uint64_t seed, uint32_t n, bool held_out) {
    std::vector<Problem> out;
    for (uint32_t i = 0; i < n; i++) out.push_back(task_problem(task, seed, i, held_out));
    return out;
}

// the same with its solution
inline SftExample task_example(const Task& task, uint64_t seed, uint32_t index, bool held_out) {
    TaskProblem t = task.problem(seed, index, held_out);
    SftExample e;
    e.prompt = t.question;
    e.completion = t.solution;
    e.source = format("task %s", task.name);
    e.line = (int)index;
    return e;
}
