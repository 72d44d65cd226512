// Curricula: which training problems come first, by how often they are answered right (--curriculum).
//   variance     each row of an epoch is drawn from those that are left in proportion to p (1 - p), p its pass rate: the
//                variance of a reward that is right or wrong, so that groups with something to compare come first. G samples
//                are all equal with probability p^G + (1 - p)^G
//   easy_first   in descending order of p, those that are equal in the epoch's random order
// and of both: rows with p outside of [min, max] are left out. An epoch has every row that is not.
// The trap: a rate of 0 out of 4 samples says little. `floor` is the least weight that a row has.
#pragma once
#include <algorithm>
#include <string>
#include <vector>
#include "../runtime/settings.h"
#include "examples.h"

struct Curriculum {
    std::string source;  // a field of the rows, or the folder of an evaluation; empty: there is no curriculum
    bool easy_first = false;
    double min = 0.0, max = 1.0, floor = 0.0;
    bool on() const { return !source.empty(); }
};

inline const std::vector<SettingRow>& curriculum_settings() {
    static const std::vector<SettingRow> rows = {
        {"by", "variance", "variance|easy_first", "which rows come first"},
        {"min", "0", "[0, 1]", "rows that are answered right less often are left out"},
        {"max", "1", "[0, 1]", "the same of more often"},
        {"floor", "0.01", "[0, 0.25]", "variance: the least weight of a row; p (1 - p) is at most 0.25"},
    };
    return rows;
}

// "pass_rate:min=0.1:max=0.9"
inline Curriculum curriculum_parse(const std::string& text) {
    Curriculum c;
    if (text.empty()) return c;
    const Settings s = settings_of(text, curriculum_settings(), "curriculum");
    c.source = s.name;
    c.easy_first = s.is("by", "easy_first");
    c.min = s.number("min"), c.max = s.number("max"), c.floor = s.number("floor");
    if (c.source.empty()) fail_usage("--curriculum names no field of the rows and no evaluation's folder");
    if (c.min > c.max) fail_usage("--curriculum %s: min is above max", printable(text).c_str());
    while (c.source.size() > 1 && c.source.back() == '/') c.source.pop_back();
    return c;
}

// leaves those whose pass rate is within the bounds, and says how many are not
inline void curriculum_choose(const Curriculum& c, std::vector<Problem>& problems, const std::string& path) {
    const size_t all = problems.size();
    problems.erase(std::remove_if(problems.begin(), problems.end(),
                                  [&](const Problem& p) { return p.pass_rate < c.min || p.pass_rate > c.max; }),
                   problems.end());
    if (problems.size() == all) return;
    const std::string text = format("%s: %zu of %zu problems have a pass rate outside of [%g, %g]",
                                    escape_controls(path).c_str(), all - problems.size(), all, c.min, c.max);
    if (problems.empty()) fail("%s, and nothing is left to train on; widen the bounds of --curriculum", text.c_str());
    note_once("note: " + text + " and are left out");
}

// the order of the data, whose problems have pass rates
inline void curriculum_order(const Curriculum& c, TrainingData& d) {
    if (!c.on()) return;
    for (int64_t i = 0; i < d.count; i++) {
        const double p = d.example(i).prompt.problem->pass_rate;
        if (c.easy_first) d.difficulty.push_back(1.0 - p);
        else d.weights.push_back(std::max(p * (1.0 - p), c.floor));
    }
}
