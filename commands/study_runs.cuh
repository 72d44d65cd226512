// The runs of a study as processes of this program: each once, as many at a time as the cores allow, each behind those that it
// begins with. A run is over when its folder has a summary of one that was not stopped, so that a study that was killed goes
// on where it was; a run that was killed goes on from its checkpoint, and ends with the bytes of one that was not.
//
//   OUT/runs/RL-s1-3f2a9c1e04/       the run's folder, OUT/runs/RL-s1-3f2a9c1e04.log what it printed
#pragma once
#include <sys/prctl.h>
#include <sys/wait.h>
#include "../eval/study_results.h"
#include "../runtime/stop.h"
#include "output.cuh"

struct StudyJob {
    pid_t process;
    int run, place;  // of those at a time
    double begun;
    bool told = false;  // to stop
};

struct StudyWork {
    Study study;
    std::string folder;
    int jobs = 1, threads = 1;
    std::vector<std::string> gpus;  // by turns one for each run at a time; empty: they run on the CPU
    StudyLayout layout;
    StudyScores scores;
    std::map<std::string, std::string> failed;  // by id: why
    std::set<std::string> done;                 // ids of those that are known to have ended
    std::vector<StudyJob> running;
    StudyHistories histories;  // of runs that are over

    std::string path(const StudyRun& run) const { return folder + "/runs/" + run.id; }
};

// what summary.json says; null: the run has not ended in order
inline nlohmann::json study_summary(const std::string& run_folder) {
    const std::string path = run_folder + "/summary.json";
    if (!file_exists(path)) return nullptr;
    nlohmann::json j = json_parse(read_file(path, 64 << 20), path);
    if (!j.is_object() || j.value("stopped", false) || j.value("partial", false)) return nullptr;
    return j;
}

// Where the next stage begins: the folder of the last checkpoint; empty: none
inline std::string study_checkpoint(const std::string& run_folder) {
    const std::vector<int64_t> steps = checkpoint_steps(run_folder);
    return steps.empty() ? "" : checkpoint_folder(run_folder, steps.back());
}

inline std::string study_value(const StudyJson& v) { return v.is_string() ? v.get<std::string>() : v.dump(); }

// How often a training run of a study saves, unless the study says so: what a kill may cost
static constexpr int STUDY_SAVE_STEPS = 10;

// The command line without the program's name. checkpoint_of(run): its last checkpoint's folder
template <class F>
inline std::vector<std::string> study_arguments(const StudyWork& w, const StudyRun& run, const F& checkpoint_of) {
    std::vector<std::string> args = {command_rows[run.command].name};
    auto give = [&](const std::string& flag, const std::string& value) { args.push_back("--" + flag + "=" + value); };
    if (run.from < 0 && !w.study.model.empty()) give("model", w.study.model);
    if (run.from >= 0) {
        const std::string model = checkpoint_of(w.layout.runs[run.from]);
        const bool adapter = file_exists(model + "/adapter_config.json");
        const std::string merged = model + "-merged";
        if (adapter && run.command == COMMAND_QUANTIZE && is_folder(merged)) give("model", merged);
        else give(adapter ? "adapter" : "model", model);
    }
    for (const auto& [flag, other] : run.others) give(flag, checkpoint_of(w.layout.runs[other]));
    for (const auto& flag : run.flags.items()) give(flag.key(), study_value(flag.value()));
    if (IN_TRAIN >> run.command & 1) {
        if (!run.flags.contains("save_steps")) give("save_steps", std::to_string(STUDY_SAVE_STEPS));
        if (!run.flags.contains("save_total_limit")) give("save_total_limit", "1");
    }
    give("output_dir", w.path(run));
    return args;
}

// the last line that is not empty of what a run printed
inline std::string study_last_words(const std::string& log) {
    if (!file_exists(log)) return "it printed nothing";
    std::string last;
    for (const std::string& line : split_words(read_file(log, 1u << 30), "\n"))
        if (!line.empty()) last = line;
    return printable(last, 300);
}

// What a run whose folder is there already is to be told. A drift has nothing to go on from, and an evaluation goes on only
// with the model by the same name: the study's folder may be spelled otherwise now
inline std::string study_goes_on(const StudyWork& w, const StudyRun& run) {
    const std::string out = w.path(run);
    if (!is_folder(out) || run_in_folder(out).empty()) return "";
    if (run.command == COMMAND_EVAL && run.others.empty() && file_exists(out + "/completions.jsonl")) {
        const std::string config = out + "/config.json", from = study_checkpoint(w.path(w.layout.runs[run.from]));
        const nlohmann::json began = json_parse(read_file(config, 1 << 20), config);
        if (began.value("model", "") == from || began.value("adapter", "") == from) return "--resume=true";
    }
    if (IN_TRAIN >> run.command & 1 && !checkpoint_steps(out).empty()) return "--resume_from_checkpoint=last";
    return "--overwrite_output_dir=true";
}

// place: among the runs at a time
inline pid_t study_start(const StudyWork& w, const StudyRun& run, int place) {
    std::vector<std::string> args =
        study_arguments(w, run, [&](const StudyRun& other) { return study_checkpoint(w.path(other)); });
    args.push_back(format("--threads=%d", w.threads));
    if (const std::string more = study_goes_on(w, run); !more.empty()) args.push_back(more);
    args.insert(args.begin(), "train_qrl");
    std::vector<char*> pointers;
    for (std::string& arg : args) pointers.push_back(&arg[0]);
    pointers.push_back(nullptr);
    const std::string log = w.path(run) + ".log";
    const int out = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (out < 0) fail("cannot write %s: %s; %s", log.c_str(), strerror(errno), write_advice(errno));
    if (!w.gpus.empty()) setenv("CUDA_VISIBLE_DEVICES", w.gpus[(size_t)place % w.gpus.size()].c_str(), 1);
    const pid_t parent = getpid(), child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);  // none goes on without the study, which may be started again
        if (getppid() != parent) _exit(1);
        setpgid(0, 0);  // a Ctrl-C is for the study, which tells its runs
        const int in = open("/dev/null", O_RDONLY);
        dup2(in, 0), dup2(out, 1), dup2(out, 2);
        execv("/proc/self/exe", pointers.data());
        _exit(127);
    }
    close(out);
    if (child < 0) fail("cannot start a process: %s", strerror(errno));
    return child;
}

enum class StudyState { waits, ready, runs, done, failed };

inline StudyState study_state(StudyWork& w, int i) {
    const StudyRun& run = w.layout.runs[i];
    if (w.failed.count(run.id)) return StudyState::failed;
    for (const StudyJob& job : w.running)
        if (w.layout.runs[job.run].id == run.id) return StudyState::runs;
    if (w.done.count(run.id) || !study_summary(w.path(run)).is_null()) {
        w.done.insert(run.id);
        return StudyState::done;
    }
    std::vector<int> needed;
    if (run.from >= 0) needed.push_back(run.from);
    for (const auto& other : run.others) needed.push_back(other.second);
    StudyState state = StudyState::ready;
    for (const int other : needed) {
        const StudyState its = study_state(w, other);
        if (its == StudyState::failed) {
            w.failed[run.id] = "needs " + w.layout.runs[other].id + ", which failed";
            return StudyState::failed;
        }
        if (its != StudyState::done) state = StudyState::waits;
    }
    return state;
}

// What sweeps have found so far, of several sets their mean; a value whose run failed is never the best
inline void study_read_scores(StudyWork& w) {
    for (const StudyRun& run : w.layout.runs) {
        if (run.stage != "validation" || w.scores.count(run.id)) continue;
        if (w.failed.count(run.id)) w.scores[run.id] = -2.0;
        if (!w.done.count(run.id)) continue;
        const nlohmann::json summary = study_summary(w.path(run));
        if (summary.is_null() || !summary.contains("eval") || summary["eval"].empty()) continue;
        const nlohmann::json& eval = summary["eval"];  // of several sets, by name
        auto score = [](const nlohmann::json& set) { return set.value("pass@1", set.value("greedy", 0.0)); };
        double sum = 0.0;
        if (!eval.contains("n"))
            for (const nlohmann::json& set : eval) sum += score(set) / (double)eval.size();
        w.scores[run.id] = eval.contains("n") ? score(eval) : sum;
    }
}

// Lays the runs out until the sweeps that have ended change nothing any more, and anew only where one has: of 1,350 runs that
// takes a third of a second, as long as some of them
inline void study_update(StudyWork& w) {
    for (bool changed = w.layout.runs.empty(); true;) {
        if (changed) w.layout = study_lay_out(w.study, w.scores);
        for (int i = 0; i < (int)w.layout.runs.size(); i++) study_state(w, i);
        const size_t known = w.scores.size();
        study_read_scores(w);
        changed = w.scores.size() != known;
        if (!changed) return;
    }
}

// What only a run that is resumed needs: a run that is done is not, and a checkpoint is a third of its size without
inline void study_drop_state(const std::string& run_folder) {
    for (const int64_t step : checkpoint_steps(run_folder))
        for (const char* file : {"trainer_state.json", "trainer.safetensors", "optimizer.safetensors"}) {
            std::error_code ec;
            std::filesystem::remove(checkpoint_folder(run_folder, step) + "/" + file, ec);
        }
}

// one of the children has ended
inline void study_ended(StudyWork& w, const StudyJob& job, const std::string& id, int status) {
    const std::string out = w.folder + "/runs/" + id;
    const double seconds = wall_seconds() - job.begun;
    if (stop_requested()) return;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0 && !study_summary(out).is_null()) {
        printf("done    %s, %s\n", id.c_str(), duration_text(seconds).c_str());
        study_drop_state(out);
    } else {
        const std::string how = WIFSIGNALED(status) ? format("killed by signal %d: ", WTERMSIG(status)) : "";
        w.failed[id] = how + study_last_words(out + ".log");
        printf("failed  %s: %s\n", id.c_str(), w.failed[id].c_str());
    }
    fflush(stdout);
}

// Runs by their places, in the order in which they begin: first those that sweeps choose by, then seed by seed, so that a
// study that is stopped has all its arms with the seeds that are done
inline std::vector<int> study_order(const StudyWork& w) {
    std::vector<std::pair<size_t, int>> order;
    for (int i = 0; i < (int)w.layout.runs.size(); i++) {
        const auto& seeds = w.study.seeds;
        const auto at = std::find(seeds.begin(), seeds.end(), w.layout.runs[i].flags.at("seed").get<uint64_t>());
        order.push_back({at == seeds.end() ? 0 : 1 + (size_t)(at - seeds.begin()), i});
    }
    std::sort(order.begin(), order.end());
    std::vector<int> places;
    for (const auto& [seed, i] : order) places.push_back(i);
    return places;
}

// Runs what is not done. false: it was stopped
inline bool study_run_all(StudyWork& w) {
    Progress progress("study", "run", 0);
    make_folders(w.folder + "/runs");
    for (int i = 0; i < (int)w.layout.runs.size(); i++)  // that ended while the study was being stopped
        if (study_state(w, i) == StudyState::done) study_drop_state(w.path(w.layout.runs[i]));
    for (;;) {
        std::vector<std::string> ids;  // of the jobs, whose places change when the runs are laid out again
        for (const StudyJob& job : w.running) ids.push_back(w.layout.runs[job.run].id);
        study_update(w);
        for (size_t k = 0; k < w.running.size(); k++)
            for (int i = 0; i < (int)w.layout.runs.size(); i++)
                if (w.layout.runs[i].id == ids[k]) w.running[k].run = i;
        int64_t done = 0;
        for (const int i : study_order(w)) {
            if (stop_requested()) break;
            const StudyState state = study_state(w, i);
            done += state == StudyState::done || state == StudyState::failed;
            if (state != StudyState::ready || (int)w.running.size() >= w.jobs) continue;
            int place = 0;  // the first that is free
            while (std::any_of(w.running.begin(), w.running.end(), [&](const StudyJob& j) { return j.place == place; }))
                place++;
            w.running.push_back({study_start(w, w.layout.runs[i], place), i, place, wall_seconds()});
        }
        progress.of((int64_t)w.layout.runs.size());
        progress.to(done);
        if (w.running.empty()) return !stop_requested();
        for (bool one = false; !one;) {
            for (size_t k = 0; k < w.running.size() && !one; k++) {
                int status = 0;
                if (waitpid(w.running[k].process, &status, WNOHANG) <= 0) continue;
                const StudyJob job = w.running[k];
                w.running.erase(w.running.begin() + (long)k);
                study_ended(w, job, w.layout.runs[job.run].id, status);
                one = true;
            }
            if (!one) usleep(20000);
            for (StudyJob& job : w.running)
                if (stop_requested() && !std::exchange(job.told, true))
                    kill(job.process, SIGTERM);  // it saves and ends
        }
    }
}
