// The folder of a run, --output_dir: config.json (the options in force; --config reads it back), metrics.jsonl (one object
// a step), completions.jsonl, code_flips.jsonl, quant_statistics.jsonl, event files for TensorBoard (formats/tfevents.h), of
// an evaluation results.json or (--against) drift.json, and summary.json, which is there when the run ended in order (also
// after Ctrl-C). A line is one write() and appears whole or not at all; the two .json files are renamed into place. Numbers
// that are not finite become null. The trap: a folder that holds a run is refused, because metrics appended to another
// run's look like one curve; --overwrite_output_dir replaces these files, if a run wrote them (written.h), and leaves
// checkpoints alone, and a run that goes on from a checkpoint cuts its logs behind that step. Also here: the clock, peak
// memory, short numbers.
#pragma once
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <string>
#include <nlohmann/json.hpp>
#include "error.h"
#include "file_io.h"
#include "folders.h"
#include "standard_files.h"

static constexpr const char* run_dir_files[] = {
    "config.json",  "metrics.jsonl", "completions.jsonl", "code_flips.jsonl", "quant_statistics.jsonl",
    "summary.json", "results.json",  "drift.json"};

// Event files are called events.out.tfevents.TIME.train_qrl, since TensorBoard reads those of a folder in the order of their
// names, and wants "tfevents" in them. TIME: seconds since 1970, ten digits
static constexpr const char *EVENTS_PREFIX = "events.out.tfevents.", *EVENTS_SUFFIX = ".train_qrl";

// the names of those in a folder, in order
inline std::vector<std::string> event_files(const std::string& folder) {
    std::error_code ec;
    std::vector<std::string> names;
    const size_t before = strlen(EVENTS_PREFIX), around = before + strlen(EVENTS_SUFFIX);
    for (const auto& entry : std::filesystem::directory_iterator(folder, ec)) {
        if (!std::filesystem::is_regular_file(entry.symlink_status(ec))) continue;  // what a link points to is not cut
        const std::string name = entry.path().filename().string();
        if (name.size() == around + 10 && name.rfind(EVENTS_PREFIX, 0) == 0 &&
            name.find_first_not_of("0123456789", before) == before + 10 && name.substr(before + 10) == EVENTS_SUFFIX)
            names.push_back(name);
    }
    std::sort(names.begin(), names.end());
    return names;
}

// behind all of `there`, though the clock was set back
inline std::string new_event_file(const std::vector<std::string>& there) {
    long long now = (long long)time(nullptr);
    if (!there.empty()) now = std::max(now, 1 + atoll(there.back().c_str() + strlen(EVENTS_PREFIX)));
    return format("%s%010lld%s", EVENTS_PREFIX, now, EVENTS_SUFFIX);
}

// all that a run may have left in its folder beside checkpoints
inline std::vector<std::string> run_file_names(const std::string& folder) {
    std::vector<std::string> names(std::begin(run_dir_files), std::end(run_dir_files));
    for (const std::string& name : event_files(folder)) names.push_back(name);
    return names;
}

struct RunDir {
    std::string path;
    FolderLock lock;
    AppendFile metrics, completions, code_flips, quant_statistics;  // closed: the run logs none
    AppendFile events;                                              // begin_events() opens it
    std::string events_name;                                        // "": the run writes none
};

// One JSON text on one line. NaN and infinities become null; bytes that are not UTF-8 (a completion cut inside a
// character) become U+FFFD.
inline std::string json_line(const nlohmann::ordered_json& j, int indent = -1) {
    return j.dump(indent, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

// mkdir -p
inline void make_folders(const std::string& path) {
    if (path.empty()) fail("--output_dir is empty; name a folder");
    for (size_t end = path.find('/', 1);; end = path.find('/', end + 1)) {
        std::string part = path.substr(0, end);
        struct stat st;
        if (mkdir(part.c_str(), 0777) != 0) {
            int e = errno;
            bool there = stat(part.c_str(), &st) == 0;
            if (there && !S_ISDIR(st.st_mode))
                fail("--output_dir %s: %s is a file; name another folder", path.c_str(), part.c_str());
            if (!there) fail("cannot create %s: %s; %s", part.c_str(), strerror(e), write_advice(e));
        }
        if (end == std::string::npos) return;
    }
}

// the name of something a run left in the folder; "" when it holds none
inline std::string run_in_folder(const std::string& path) {
    for (const std::string& name : run_file_names(path)) {
        struct stat st;
        if (lstat((path + "/" + name).c_str(), &st) == 0) return name;
    }
    const std::vector<int64_t> steps = checkpoint_steps(path);
    return steps.empty() ? "" : format("checkpoint-%lld", (long long)steps.back());
}

// Cuts a log behind its last line of steps up to `step`: what comes after will be logged again. A log that is not there
// is none.
inline void cut_log(const std::string& path, int64_t step) {
    if (!file_exists(path)) return;
    std::ifstream in(path, std::ios::binary);
    std::string line;
    uint64_t end = 0;
    for (uint64_t at = 0; std::getline(in, line); end = at) {
        long long of = 0;
        if (in.eof()) break;  // torn: a line ends with a newline
        if (sscanf(line.c_str(), "{\"step\":%lld", &of) != 1)
            fail("%s: the line at byte %llu has no step; it is not this program's log", path.c_str(),
                 (unsigned long long)at);
        if (of > step) break;
        at += line.size() + 1;
    }
    if (truncate(path.c_str(), (off_t)end) != 0) fail("cannot cut %s: %s", path.c_str(), strerror(errno));
}

struct RunDirSetting {
    bool overwrite = false, completions = false, code_flips = false, quant_statistics = false;
    int64_t resume_step = -1;  // the run goes on behind this step; -1: it begins
    bool goes_on = false;      // an evaluation: its logs are kept as they are
    bool events = false;       // for TensorBoard
};

// Fails if --overwrite_output_dir would replace what no run of this program wrote, now or when it saves a checkpoint
inline void check_overwritable(const std::string& path) {
    const std::set<std::string> written = written_names(path, WrittenKind::run);
    for (const std::string& name : run_file_names(path)) {
        struct stat st;
        if (lstat((path + "/" + name).c_str(), &st) == 0 && !written.count(name))
            fail(
                "%s/%s was not written by a run of this program, so it is not replaced; move it, or choose another "
                "--output_dir",
                path.c_str(), name.c_str());
    }
    for (int64_t step : checkpoint_steps(path))
        for (const char* suffix : {"", "-merged"}) check_replaceable(checkpoint_folder(path, step) + suffix);
}

// Creates the folder and its parents, locks it, writes config.json, opens the logs. Call it before the long work starts:
// all that can be wrong with the folder is said here.
inline RunDir open_run_dir(const std::string& path, const RunDirSetting& setting,
                           const nlohmann::ordered_json& config) {
    RunDir run;
    run.path = path;
    make_folders(path);
    run.lock = FolderLock(path);
    repair_folders(path);
    const bool resumes = setting.resume_step >= 0 || setting.goes_on;
    const std::string found = run_in_folder(path);
    if (!found.empty() && !setting.overwrite && !resumes)
        fail(
            "%s already holds a run (%s); choose another --output_dir, go on with it by --resume_from_checkpoint last, "
            "or replace its logs with --overwrite_output_dir",
            path.c_str(), found.c_str());
    if (!resumes) check_overwritable(path);
    const std::vector<std::string> names = run_file_names(path), events = event_files(path);
    const std::set<std::string> before = written_names(path, WrittenKind::run);
    std::set<std::string> written(std::begin(run_dir_files), std::end(run_dir_files));
    for (const std::string& name : events)
        if (resumes && before.count(name)) written.insert(name);  // what was its own is so still
    if (setting.events) written.insert(run.events_name = new_event_file(events));
    mark_written(path, WrittenKind::run, written);
    for (const std::string& name : names) {
        if (name == "config.json") continue;                                      // replaced as one
        if (resumes && std::count(events.begin(), events.end(), name)) continue;  // begin_events() cuts them
        if (resumes && name.size() > 6 && name.compare(name.size() - 6, 6, ".jsonl") == 0) {
            if (!setting.goes_on) cut_log(path + "/" + name, setting.resume_step);
        } else if (unlink((path + "/" + name).c_str()) != 0 && errno != ENOENT)
            fail("cannot replace %s/%s: %s; choose another --output_dir", path.c_str(), name.c_str(), strerror(errno));
    }
    write_file_atomic(path + "/config.json", json_line(config, 2) + "\n");
    run.metrics = AppendFile(path + "/metrics.jsonl");
    if (setting.completions) run.completions = AppendFile(path + "/completions.jsonl");
    if (setting.code_flips) run.code_flips = AppendFile(path + "/code_flips.jsonl");
    if (setting.quant_statistics) run.quant_statistics = AppendFile(path + "/quant_statistics.jsonl");
    return run;
}

// what has been logged is on the disk
inline void sync_logs(RunDir& run) {
    for (AppendFile* f : {&run.metrics, &run.completions, &run.code_flips, &run.quant_statistics, &run.events})
        f->sync();
}

// one object, in its own key order
inline void log_metrics(RunDir& run, const nlohmann::ordered_json& j) { run.metrics.line(json_line(j)); }

// does nothing when the run logs no completions
inline void log_completion(RunDir& run, const nlohmann::ordered_json& j) {
    if (run.completions.fd >= 0) run.completions.line(json_line(j));
}

// Last call of a run: flushes the logs, then writes summary.json.
inline void close_run_dir(RunDir& run, const nlohmann::ordered_json& summary) {
    run.metrics.close();
    run.completions.close();
    run.code_flips.close();
    run.quant_statistics.close();
    run.events.close();
    write_file_atomic(run.path + "/summary.json", json_line(summary, 2) + "\n");
}

// ---------------------------------------------------------------------------------------------------------------------
// measures

// seconds since some fixed moment; never goes back
inline double wall_seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// largest resident size of this process so far
inline size_t peak_rss_bytes() {
    struct rusage usage;
    if (getrusage(RUSAGE_SELF, &usage) != 0) return 0;
#ifdef __APPLE__
    return (size_t)usage.ru_maxrss;
#else
    return (size_t)usage.ru_maxrss * 1024;
#endif
}

// 950 -> "950", 1234567 -> "1.2M", 999999 -> "1.0M", 0.25 -> "0.25"; from 1e18 on "1.0e+18"
inline std::string human_count(double v) {
    if (!std::isfinite(v)) return format("%g", v);
    if (std::fabs(v) < 999.5) return std::fabs(v) < 10 && v != std::floor(v) ? format("%.2g", v) : format("%.0f", v);
    static const char units[] = "kMGTP";
    for (int i = 0; units[i]; i++) {
        v /= 1000;
        if (std::fabs(v) < 999.95) return format("%.1f%c", v, units[i]);
    }
    return format("%.1e", v * 1e15);
}
