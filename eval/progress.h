// How far an evaluation is. An hour's work should say so and not look like a program that hangs; one of seconds says
// nothing.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>
#include "../runtime/error.h"

struct EvalProgress {
    int problems = 0;
    int64_t completions = 0, done = 0, tokens = 0;  // to be drawn, greedy ones too; that have ended; drawn so far
    int max_completion_length = 0;
};

// The pace of an evaluation: tokens since its first ones came. Reading the prompts goes before them and is done once, so
// that its time is not multiplied by what is left.
struct EvalPace {
    double first = -1.0, latest = 0.0;  // seconds
    int64_t at_first = 0;               // tokens of the first step, which come together

    void see(const EvalProgress& p, double elapsed) {
        if (p.tokens == 0) return;
        if (first < 0.0) first = elapsed;
        if (elapsed - first < 0.05) at_first = p.tokens;
        latest = elapsed;
    }
    // is there enough to tell a pace by?
    bool known(const EvalProgress& p) const { return p.tokens > at_first && latest - first >= 5.0; }

    // Tokens of a completion: all that were drawn over the number that ended, which counts those that are still at work;
    // the most there can be, before one has ended
    double seconds_left(const EvalProgress& p) const {
        if (p.tokens <= at_first || p.done == p.completions) return 0.0;
        double length = p.max_completion_length;
        if (p.done) length = std::min(length, (double)p.tokens / (double)p.done);
        const double rest = std::max((double)p.completions * length - (double)p.tokens, 0.0);
        return (latest - first) * rest / (double)(p.tokens - at_first);
    }
};

// "40 s", "38 min", "2.5 h"
inline std::string duration_text(double seconds) {
    if (seconds < 90.0) return format("%.0f s", seconds);
    return seconds < 5400.0 ? format("%.0f min", seconds / 60.0) : format("%.1f h", seconds / 3600.0);
}

// The lines of one evaluation: from its tenth second on, if there is more to come than twenty; then one a minute
struct EvalAnnouncer {
    EvalPace pace;
    double next = 10.0;
    bool announced = false;

    // what is to be said now; "": nothing
    std::string line(const EvalProgress& p, double elapsed) {
        pace.see(p, elapsed);
        if (elapsed < next || !pace.known(p)) return "";
        const double left = pace.seconds_left(p);
        next = elapsed + (announced || left > 20.0 ? 60.0 : 10.0);
        if (announced)
            return format("evaluating  %lld of %lld completions, about %s to go", (long long)p.done,
                          (long long)p.completions, duration_text(left).c_str());
        if (left <= 20.0) return "";
        announced = true;
        return format("evaluating  %lld completions of %d problems; about %s", (long long)p.completions, p.problems,
                      duration_text(elapsed + left).c_str());
    }
};

// The same on a terminal, five times a second
struct EvalBar {
    EvalPace pace;
    double next = 0.2;
    bool shown = false;

    std::string line(const EvalProgress& p, double elapsed) {
        pace.see(p, elapsed);
        if (elapsed < next || p.completions == 0) return "";
        next = elapsed + 0.2;
        shown = true;
        const int width = 24, full = (int)(width * p.done / p.completions);
        std::string left;
        if (pace.known(p)) left = ", " + duration_text(pace.seconds_left(p)) + " left";
        return format("evaluating  [%s%s] %lld/%lld, %.0f tok/s%s", std::string(full, '#').c_str(),
                      std::string(width - full, '.').c_str(), (long long)p.done, (long long)p.completions,
                      (double)p.tokens / elapsed, left.c_str());
    }
};
