// The folder of a run, --output_dir: config.json (the options in force; --config reads it back), the logs of run_logs below,
// of which metrics.jsonl has one object a step and evaluations.jsonl one an evaluation of what is held out, event files for
// TensorBoard (formats/tfevents.h), report.html, of an evaluation results.json or (--against) drift.json, and summary.json,
// which is there when the run ended in order (also after Ctrl-C). A line is one write() and appears whole or not at all; the
// .json files are renamed into place. Numbers that are not finite become null. The trap: a folder that holds a run is
// refused, because metrics appended to another run's look like one curve; --overwrite_output_dir replaces these files, if a
// run wrote them (written.h), and leaves checkpoints alone, and a run that goes on from a checkpoint cuts its logs behind
// that step. Also here: peak memory.
#pragma once
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cerrno>
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
#include "progress.h"
#include "standard_files.h"

static constexpr const char* run_dir_files[] = {
    "config.json",      "metrics.jsonl",          "evaluations.jsonl", "completions.jsonl", "samples.jsonl",
    "code_flips.jsonl", "quant_statistics.jsonl", "summary.json",      "results.json",      "drift.json",
    "report.html",      "warnings.jsonl"};

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
    AppendFile metrics, evaluations, completions, samples, code_flips, quant_statistics, warnings;  // closed: none
    AppendFile events;        // begin_events() opens it
    std::string events_name;  // "": the run writes none
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

// "{"step":12,"when":"step 12"", with which a line of evaluations.jsonl begins
inline std::string evaluation_start(int64_t step, const std::string& when) {
    return format("{\"step\":%lld,\"when\":\"%s\"", (long long)step, when.c_str());
}

// Cuts evaluations.jsonl behind the evaluation that the checkpoint knows as its last ("": none): one of the same step may
// have come after the checkpoint, as those before and after training do. A log that lacks it is cut by steps alone
inline void cut_evaluations(const std::string& path, int64_t step, const std::string& last) {
    cut_log(path, step);
    if (!file_exists(path)) return;
    std::ifstream in(path, std::ios::binary);
    std::string line;
    uint64_t end = 0;
    bool found = last.empty();
    for (uint64_t at = 0; last != "" && std::getline(in, line) && !in.eof();) {
        at += line.size() + 1;
        if (line.compare(0, last.size(), last) == 0) end = at, found = true;
    }
    if (found && truncate(path.c_str(), (off_t)end) != 0) fail("cannot cut %s: %s", path.c_str(), strerror(errno));
}

struct RunDirSetting {
    bool overwrite = false;
    // which logs there are, beside metrics.jsonl; samples: of tokens, events: for TensorBoard
    bool completions = false, evaluations = false, samples = false, code_flips = false, quant_statistics = false,
         warnings = false, events = false;
    int64_t resume_step = -1;          // the run goes on behind this step; -1: it begins
    std::string last_evaluation = "";  // and behind the evaluation whose line begins so (evaluation_start)
    bool goes_on = false;              // an evaluation: its logs are kept as they are
};

// by name: nvcc writes pointers to members with parentheses that g++ then warns of
using RunDirFile = AppendFile RunDir::*;
using RunDirFlag = bool RunDirSetting::*;

struct RunLog {
    const char* name;
    RunDirFile file;
    RunDirFlag asked;  // null: in any case
};

static constexpr RunLog run_logs[] = {
    {"metrics.jsonl", &RunDir::metrics, nullptr},
    {"evaluations.jsonl", &RunDir::evaluations, &RunDirSetting::evaluations},
    {"completions.jsonl", &RunDir::completions, &RunDirSetting::completions},
    {"samples.jsonl", &RunDir::samples, &RunDirSetting::samples},
    {"code_flips.jsonl", &RunDir::code_flips, &RunDirSetting::code_flips},
    {"quant_statistics.jsonl", &RunDir::quant_statistics, &RunDirSetting::quant_statistics},
    {"warnings.jsonl", &RunDir::warnings, &RunDirSetting::warnings},
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
    for (int64_t step : checkpoint_steps(path))  // whose cards are written again
        for (const char* suffix : {"", "-merged"}) repair_folders(checkpoint_folder(path, step) + suffix);
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
            if (setting.goes_on) continue;
            if (name == "evaluations.jsonl")
                cut_evaluations(path + "/" + name, setting.resume_step, setting.last_evaluation);
            else cut_log(path + "/" + name, setting.resume_step);
        } else if (unlink((path + "/" + name).c_str()) != 0 && errno != ENOENT)
            fail("cannot replace %s/%s: %s; choose another --output_dir", path.c_str(), name.c_str(), strerror(errno));
    }
    write_file_atomic(path + "/config.json", json_line(config, 2) + "\n");
    for (const RunLog& log : run_logs)
        if (!log.asked || setting.*log.asked) run.*log.file = AppendFile(path + "/" + log.name);
    return run;
}

// what has been logged is on the disk
inline void sync_logs(RunDir& run) {
    for (const RunLog& log : run_logs) (run.*log.file).sync();
    run.events.sync();
}

// one object, in its own key order
inline void log_metrics(RunDir& run, const nlohmann::ordered_json& j) { run.metrics.line(json_line(j)); }

// does nothing when the run logs no completions
inline void log_completion(RunDir& run, const nlohmann::ordered_json& j) {
    if (run.completions.fd >= 0) run.completions.line(json_line(j));
}

// Last call of a run: flushes the logs, then writes summary.json.
inline void close_run_dir(RunDir& run, const nlohmann::ordered_json& summary) {
    for (const RunLog& log : run_logs) (run.*log.file).close();
    run.events.close();
    write_file_atomic(run.path + "/summary.json", json_line(summary, 2) + "\n");
}

// ---------------------------------------------------------------------------------------------------------------------
// measures

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
