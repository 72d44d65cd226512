// Tasks: families of problems made up by the program, at levels of difficulty. A new one is a file here and a row of the
// table; nothing else knows it by name.
//
// A problem is a pure function of (seed, index). Train and held-out are disjoint by construction: a question is held out
// when a hash of its text is 0 modulo 8, whatever the seed and the level, and each split draws again until it has one of its
// own. The levels above Task::trained are the harder split: they are evaluated on and never trained on. Validation is drawn
// like what is held out, by another seed, and has none of an evaluation's first problems.
#pragma once
#include <set>
#include <string>
#include <vector>
#include "../../runtime/options.h"
#include "../dataset.h"
#include "arithmetic.h"
#include "chains.h"
#include "knights.h"
#include "word_problems.h"

struct TaskLevel {
    int question;    // bytes that no question is longer than
    int completion;  // tokens, bytes for the embedded model, that a solution and some slack take
};

struct Task {
    const char* name;
    const char* help;
    TaskProblem (*problem)(TaskRandom& random, int level);  // its solution still without the line of the answer
    std::vector<TaskLevel> levels;                          // from level 1
    int trained;                                            // levels 1 to this
    uint32_t train = 100000, held_out = 256;                // problems of an epoch, and of an evaluation
};

inline const Task tasks[] = {
    {"arithmetic",
     "sums, differences and products of numbers of 2 to 4 digits (hard: 5), worked out column by column",
     arithmetic_problem,
     {{8, 40}, {10, 48}, {12, 56}, {14, 68}},
     3},
    {"chains",
     "chains of 3 to 5 assignments (hard: 6 and 7), carried out one after the other",
     chain_problem,
     {{24, 44}, {31, 56}, {38, 68}, {45, 78}, {52, 90}},
     3},
    {"knights",
     "Knights and Knaves with 2 or 3 islanders (hard: 4), worked out case after case",
     knights_problem,
     {{62, 64}, {84, 160}, {106, 372}},
     2},
    {"words",
     "word problems with 2 to 4 quantities (hard: 5 and 6) in any order, worked out one after the other",
     word_problem,
     {{216, 68}, {302, 96}, {388, 124}, {474, 152}, {560, 180}},
     3},
};

// A task at some of its levels, low to high
struct TaskSet {
    const Task* task = nullptr;
    int low = 1, high = 1;
    std::string name;  // as --task has it
    bool validation = false;

    bool hard() const { return high > task->trained; }
    TaskLevel longest() const {
        TaskLevel most{0, 0};
        for (int level = low; level <= high; level++) {
            most.question = std::max(most.question, task->levels[level - 1].question);
            most.completion = std::max(most.completion, task->levels[level - 1].completion);
        }
        return most;
    }
};

// --task NAME, NAME:2, NAME:1-3, NAME:hard or NAME:validation
inline TaskSet find_task(const std::string& text) {
    const size_t colon = text.find(':');
    const std::string name = text.substr(0, colon), levels = colon == std::string::npos ? "" : text.substr(colon + 1);
    std::vector<std::string> names;
    for (const Task& t : tasks) {
        names.push_back(t.name);
        if (name != t.name) continue;
        const int hardest = (int)t.levels.size();
        if (levels.empty() && colon == std::string::npos) return {&t, 1, t.trained, text};
        if (levels == "hard") return {&t, t.trained + 1, hardest, text};
        if (levels == "validation") return {&t, 1, t.trained, text, true};
        const size_t dash = levels.find('-');
        const std::string first = levels.substr(0, dash),
                          last = dash == std::string::npos ? first : levels.substr(dash + 1);
        auto level = [&](const std::string& s) {
            return s.size() == 1 && s[0] >= '1' && s[0] <= '0' + hardest ? s[0] - '0' : 0;
        };
        const int low = level(first), high = level(last);
        if (!low || !high || low > high)
            fail_usage("--task %s: %s has levels 1 to %d: %s:2, %s:1-%d or %s:hard; and %s:validation",
                       printable(text).c_str(), t.name, hardest, t.name, t.name, t.trained, t.name, t.name);
        return {&t, low, high, text};
    }
    fail_usage("--task %s: not one of %s%s", printable(text).c_str(), join_words(names).c_str(),
               did_you_mean(name, names).c_str());
}

// the same of several, joined by commas
inline std::vector<TaskSet> find_tasks(const std::string& text) {
    std::vector<TaskSet> out;
    for (const std::string& name : split_words(text, ",")) out.push_back(find_task(name));
    if (out.empty()) find_task(text);  // which says that it is none
    return out;
}

inline TaskLevel longest_of(const std::vector<TaskSet>& sets) {
    TaskLevel most{0, 0};
    for (const TaskSet& set : sets) {
        most.question = std::max(most.question, set.longest().question);
        most.completion = std::max(most.completion, set.longest().completion);
    }
    return most;
}

// the seed of the problems that a run with this seed is trained on; those held out are the same for every run
inline uint64_t task_seed(uint64_t seed, bool held_out) { return held_out ? 0 : seed + 1; }

inline bool task_question_held_out(const std::string& question) {
    uint64_t h = 1469598103934665603ull;  // FNV-1a, without the end of the line
    for (size_t i = 0; i + 1 < question.size(); i++) h = (h ^ (unsigned char)question[i]) * 1099511628211ull;
    return (h >> 32) % 8 == 0;
}

inline void check_trainable(const TaskSet& set) {
    if (set.hard())
        fail_usage("--task %s: levels above %d are the harder split of %s, which is never trained on; eval takes it",
                   printable(set.name).c_str(), set.task->trained, set.task->name);
    if (set.validation)
        fail_usage("--task %s: validation is evaluated on, and not trained on", printable(set.name).c_str());
}

// the index-th problem of a split
inline TaskProblem made_up_problem(const TaskSet& set, uint64_t seed, uint32_t index, bool held_out) {
    if (!held_out) check_trainable(set);
    for (TaskRandom random{seed, index};; random.attempt++) {
        random.drawn = 0;
        TaskProblem p = set.task->problem(random, random.between(set.low, set.high));
        if (task_question_held_out(p.question) != held_out) continue;
        p.solution += "#### " + p.gold;
        return p;
    }
}

inline Problem task_problem(const TaskSet& set, uint64_t seed, uint32_t index, bool held_out) {
    TaskProblem t = made_up_problem(set, seed, index, held_out);
    Problem p;
    p.question = t.question;
    p.gold = t.gold;
    p.source = format("task %s%s", set.name.c_str(), held_out ? ", held out" : "");
    p.line = (int)index;
    return p;
}

static constexpr uint32_t TASK_TESTED = 2048;  // of an evaluation's problems are in no validation

// the first n problems; seed: of task_seed()
inline std::vector<Problem> task_problems(const TaskSet& set, uint64_t seed, uint32_t n, bool held_out) {
    std::vector<Problem> out;
    std::set<std::string> tested;
    for (uint32_t i = 0; set.validation && i < TASK_TESTED; i++)
        tested.insert(made_up_problem(set, task_seed(0, true), i, held_out).question);
    for (uint32_t i = 0; out.size() < n; i++) {
        if (i > 1000 * (uint64_t)(n + 1))
            fail("--task %s: it has no %u problems that an evaluation has not", printable(set.name).c_str(), n);
        Problem p = task_problem(set, set.validation ? seed + 1 : seed, i, held_out);
        if (!tested.count(p.question)) out.push_back(p);
    }
    return out;
}

// the same with its solution
inline SftExample task_example(const TaskSet& set, uint64_t seed, uint32_t index, bool held_out) {
    TaskProblem t = made_up_problem(set, seed, index, held_out);
    SftExample e;
    e.prompt = t.question;
    e.completion = t.solution;
    e.source = format("task %s", set.name.c_str());
    e.line = (int)index;
    return e;
}
