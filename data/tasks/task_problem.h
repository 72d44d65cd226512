// What a task makes up: the prompt as the model sees it, a solution that ends in the answer, and the answer alone.
#pragma once
#include <string>

struct TaskProblem {
    std::string question, solution, gold;
};
