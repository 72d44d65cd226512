// The learning rate over the steps of a run, as a share of its peak.
#pragma once
#include <cmath>
#include <cstdint>
#include <string>

enum class Schedule { linear, cosine, constant };

// step counts from 0; warm-up is linear from 0, as in transformers
inline double schedule_rate(Schedule s, double peak, int64_t step, int64_t warmup, int64_t total) {
    if (step < warmup) return peak * (double)step / (double)(warmup > 1 ? warmup : 1);
    double left = total > warmup ? (double)(total - step) / (double)(total - warmup) : 1.0;
    left = left < 0.0 ? 0.0 : left;
    if (s == Schedule::linear) return peak * left;
    if (s == Schedule::cosine) return peak * 0.5 * (1.0 + cos(3.14159265358979323846 * (1.0 - left)));
    return peak;
}

inline Schedule parse_schedule(const std::string& name) {
    return name == "cosine" ? Schedule::cosine : name == "linear" ? Schedule::linear : Schedule::constant;
}
