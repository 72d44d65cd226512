// The tables of the benchmark, on the console and as JSON.
#pragma once
#include <cmath>
#include "ceilings.h"

inline std::string rate_text(double per_second, double unit) {
    const double x = per_second / unit;
    return x < 0.05 ? "-" : format(x < 10 ? "%.2f" : x < 100 ? "%.1f" : "%.0f", x);
}

inline std::string ceilings_text(const Ceilings& c) {
    std::string s = format("ceilings of %d thread%s\n", c.threads, c.threads == 1 ? "" : "s");
    for (const CeilingPeak& p : c.peaks) s += format("  %-40s %10s GFLOP/s\n", p.name, rate_text(p.rate, 1e9).c_str());
    for (const CeilingBandwidth& b : c.memory)
        s += format("  memory, working set %-20s %10s GB/s read %10s GB/s copy\n", bytes_text(b.size).c_str(),
                    rate_text(b.read, 1e9).c_str(), rate_text(b.copy, 1e9).c_str());
    return s;
}

inline std::string bench_heading() {
    return format("%-9s%-34s%-19s%11s%9s%9s%7s  %s\n", "model", "what", "shape", "ms", "GFLOP/s", "GB/s", "share",
                  "of the least time, bound by");
}

inline std::string bench_line(const Ceilings& c, const BenchRow& r) {
    const CeilingBound bound = ceiling_bound(c, r.work);
    const double t = r.time.best;
    std::string s = format("%-9s%-34s%-19s%11.4f%9s%9s%6.0f%%  %s", r.model.c_str(), r.name.c_str(),
                           sizes_text(r.shape).c_str(), 1e3 * t, rate_text(r.flops() / t, 1e9).c_str(),
                           rate_text(r.bytes() / t, 1e9).c_str(), 100 * bound.seconds / t, bound.by.c_str());
    for (const auto& [name, value] : r.more) s += format("; %s %.4g", name.c_str(), value);
    return s + "\n";
}

inline nlohmann::ordered_json ceilings_json(const Ceilings& c) {
    nlohmann::ordered_json j;
    j["threads"] = c.threads;
    for (const CeilingPeak& p : c.peaks) j["peaks"][p.key] = {{"name", p.name}, {"operations_per_second", p.rate}};
    for (const CeilingBandwidth& b : c.memory)
        j["memory"].push_back(
            {{"bytes", b.size}, {"read_bytes_per_second", b.read}, {"copy_bytes_per_second", b.copy}});
    return j;
}

inline nlohmann::ordered_json bench_json(const Ceilings& c, const BenchRow& r) {
    const CeilingBound bound = ceiling_bound(c, r.work);
    nlohmann::ordered_json j;
    j["part"] = r.part;
    j["model"] = r.model;
    j["name"] = r.name;
    j["shape"] = r.shape;
    j["seconds"] = r.time.best;
    j["slowest_seconds"] = r.time.worst;
    j["calls"] = r.time.calls;
    j["least_flops"] = r.flops();
    j["least_bytes"] = r.bytes();
    j["least_seconds"] = bound.seconds;
    j["bound_by"] = bound.by;
    j["share"] = bound.seconds / r.time.best;
    for (const auto& [name, value] : r.more) j[name] = value;
    return j;
}
