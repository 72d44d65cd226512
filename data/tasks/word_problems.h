// Word problems in the manner of iGSM (arXiv 2407.20311, Physics of Language Models 2.1): quantities of things in places,
// each given by a number or by those before it, told in any order, one of them without need.
//
//   question  There are 3 times as many pens in a box as cups in a bag. There are 4 cups in a bag. There are 5 more eggs in
//             a crate than pens in a box. There are 9 fewer coins in a chest than eggs in a crate. How many eggs are in a
//             crate?
//   solution  cups in a bag: 4
//             pens in a box: 3*4=12
//             eggs in a crate: 12+5=17
//             #### 17
//
// Level l takes l + 1 quantities. The model has to find which come first and which it can leave out, and then calculate; all
// quantities lie between 1 and 99.
#pragma once
#include "task_problem.h"

static constexpr int WORD_MOST = 99;

inline TaskProblem word_problem(TaskRandom& random, int level) {
    static const char* const things[] = {"pens", "cups", "eggs", "coins", "books", "nuts", "balls", "keys"};
    static const char* const places[] = {"a box",  "a bag",  "a crate", "a chest",
                                         "a desk", "a cart", "a room",  "a barn"};
    std::vector<const char*> thing(things, things + 8), place(places, places + 8);
    random.shuffle(thing);
    random.shuffle(place);
    std::vector<int> value;
    std::vector<std::string> sentences;
    TaskProblem p;
    const int needed = level + 1;
    while ((int)value.size() < needed + 1) {  // the last is not needed
        const int n = (int)value.size();
        auto called = [&](int i) { return format("%s in %s", thing[i], place[i]); };
        const std::string mine = called(n);
        std::string sentence, working;
        int result = 0;
        // one leads to the next, so that all are needed; the one too many comes of any
        const int from = n < needed ? n - 1 : random.between(0, n - 1), kind = random.between(0, n > 1 ? 3 : 2);
        if (n == 0) {
            result = random.between(2, 20);
            sentence = format("There are %d %s.", result, mine.c_str());
            working = std::to_string(result);
        } else if (kind == 3) {
            int other = random.between(0, n - 2);
            other += other >= from;
            result = value[from] + value[other];
            sentence = format("There are as many %s as %s and %s together.", mine.c_str(), called(from).c_str(),
                              called(other).c_str());
            working = format("%d+%d=%d", value[from], value[other], result);
        } else {
            const int number = kind == 2 ? random.between(2, 4) : random.between(2, 20);
            const char operation = "+-*"[kind];
            result = kind == 0 ? value[from] + number : kind == 1 ? value[from] - number : value[from] * number;
            sentence = kind == 2
                           ? format("There are %d times as many %s as %s.", number, mine.c_str(), called(from).c_str())
                           : format("There are %d %s %s than %s.", number, kind == 0 ? "more" : "fewer", mine.c_str(),
                                    called(from).c_str());
            working = format("%d%c%d=%d", value[from], operation, number, result);
        }
        if (result < 1 || result > WORD_MOST) continue;
        value.push_back(result);
        sentences.push_back(sentence);
        if (n < needed) p.solution += mine + ": " + working + "\n";
    }
    random.shuffle(sentences);
    for (const std::string& s : sentences) p.question += s + " ";
    p.question += format("How many %s are in %s?\n", thing[needed - 1], place[needed - 1]);
    p.gold = std::to_string(value[needed - 1]);
    return p;
}
