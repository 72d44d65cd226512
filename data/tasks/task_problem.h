// What a task makes up, and the random numbers it makes it of.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>
#include "../../runtime/error.h"
#include "../../runtime/rng.h"

// The question as the model sees it without a chat template, a solution that ends in the answer, and the answer alone
struct TaskProblem {
    std::string question, solution, gold;
};

// The draws of one attempt at a problem, a pure function of (seed, index, attempt)
struct TaskRandom {
    uint64_t seed = 0;
    uint32_t index = 0, attempt = 0, drawn = 0;

    // low to high, both included
    int between(int low, int high) {
        const Philox4 block = rng_bits(seed, RNG_TASK, index, attempt, drawn / 4);
        const uint32_t bits = block.x[drawn++ % 4];
        return low + (int)(((uint64_t)bits * (uint64_t)(high - low + 1)) >> 32);
    }
    template <class T>
    void shuffle(std::vector<T>& x) {
        for (size_t i = x.size(); i > 1; i--) std::swap(x[i - 1], x[between(0, (int)i - 1)]);
    }
};
