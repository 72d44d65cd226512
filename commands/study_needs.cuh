// What memory and disk a study will take, said before it starts: each stage is asked for its plan (--plan) with the model that
// the study begins with. What cannot be known before (a stage of the embedded model, which is there when the first has
// ended, and small) counts nothing.
#pragma once
#include "study_runs.cuh"

struct StudyNeeds {
    double memory = 0.0;     // bytes, of the largest stage
    double disk = 0.0;       // bytes that the runs still to do will leave
    double meanwhile = 0.0;  // bytes on disk that each run at a time needs while it goes on
};

// what a command printed; empty: it failed
inline std::string study_ask(const std::vector<std::string>& args) {
    std::vector<std::string> all = args;
    all.insert(all.begin(), "train_qrl");
    std::vector<char*> pointers;
    for (std::string& arg : all) pointers.push_back(&arg[0]);
    pointers.push_back(nullptr);
    int ends[2];
    if (pipe(ends) != 0) return "";
    const pid_t child = fork();
    if (child == 0) {
        dup2(open("/dev/null", O_RDWR), 0), dup2(ends[1], 1), dup2(0, 2);
        close(ends[0]), close(ends[1]);
        execv("/proc/self/exe", pointers.data());
        _exit(127);
    }
    close(ends[1]);
    std::string text;
    char piece[4096];
    for (ssize_t n; (n = read(ends[0], piece, sizeof(piece))) > 0;) text.append(piece, (size_t)n);
    close(ends[0]);
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 0) return "";
    return text;
}

// the number of bytes behind `before` on the line of a plan that begins with `line`; 0: there is none
inline double plan_bytes(const std::string& plan, const std::string& line, const std::string& before) {
    for (const std::string& text : split_words(plan, "\n")) {
        const size_t at = text.find(before);
        double number = 0.0;
        char unit[8] = "";
        if (text.rfind(line, 0) != 0 || at == std::string::npos ||
            sscanf(text.c_str() + at + before.size(), " %lf %7[A-Za-z]", &number, unit) != 2)
            continue;
        double size = 1.0;
        for (const char* name : {"KiB", "MiB", "GiB", "TiB"}) {
            size *= 1024.0;
            if (std::string(unit) == name) return number * size;
        }
        return number;
    }
    return 0.0;
}

// w: of all runs that there will be
inline StudyNeeds study_needs(StudyWork& w) {
    StudyNeeds needs;
    std::map<std::string, double> model_bytes;  // by stage
    double largest = 0.0;
    for (const StudyRun& run : w.layout.runs) {
        if (run.command == COMMAND_EVAL || model_bytes.count(run.stage)) continue;
        if (w.study.model.empty() && (run.from >= 0 || !run.others.empty())) continue;
        StudyRun first = run;  // as if every checkpoint were the model that the study begins with
        first.from = -1;
        std::vector<std::string> args = study_arguments(w, first, [&](const StudyRun&) { return w.study.model; });
        args.push_back("--plan=true");
        if (IN_TRAIN >> run.command & 1 && !run.flags.contains("save_only_model"))
            args.push_back("--save_only_model=true");
        const std::string plan = study_ask(args);
        needs.memory = std::max(needs.memory, plan_bytes(plan, "memory", "memory"));
        model_bytes[run.stage] = plan_bytes(plan, "disk", " of ");
        largest = std::max(largest, model_bytes[run.stage]);
    }
    for (int i = 0; i < (int)w.layout.runs.size(); i++) {
        const StudyRun& run = w.layout.runs[i];
        if (run.command == COMMAND_EVAL || study_state(w, i) == StudyState::done) continue;
        needs.disk += IN_TRAIN >> run.command & 1 ? model_bytes[run.stage] : largest;
    }
    // a run that goes on has two checkpoints for a moment, with the optimizer's two numbers a weight
    if (needs.disk > 0.0) needs.meanwhile = 6.0 * largest;
    return needs;
}

// bytes; 0: not known
inline double memory_available() {
    FILE* f = fopen("/proc/meminfo", "r");
    char line[128];
    double kib = 0.0;
    while (f && fgets(line, sizeof(line), f))
        if (sscanf(line, "MemAvailable: %lf", &kib) == 1) break;
    if (f) fclose(f);
    return kib * 1024.0;
}

// How many runs at a time: as many as were asked for, else as there are places (GPUs or cores) and memory on the host, and
// at least one
inline int study_jobs(int asked, int places, double memory_of_each, double memory) {
    if (asked > 0) return asked;
    const bool known = memory_of_each > 0.0 && memory > 0.0;
    return std::max(1, known ? std::min(places, (int)std::min(memory / memory_of_each, 1e6)) : places);
}

// Prints what the study takes, and shares the cores and GPUs; fails where there is not enough. all: with the runs that sweeps
// decide on
inline void study_prepare(StudyWork& w, StudyWork& all, int jobs, int cores) {
    fflush(stdout);  // what has been said, before it takes its time
    const StudyNeeds needs = study_needs(all);
    const double memory = memory_available(), free = free_bytes(w.folder);
    const StudyJson device = all.layout.runs[0].flags.value("device", StudyJson("auto"));
    w.gpus = visible_gpus(study_value(device));
    w.jobs = study_jobs(jobs, w.gpus.empty() ? cores : (int)w.gpus.size(), needs.memory, memory);
    w.threads = std::max(1, cores / w.jobs);
    const double of_all = needs.memory * w.jobs, disk = needs.disk + needs.meanwhile * w.jobs;
    const std::string at_a_time = format("%d run%s at a time", w.jobs, w.jobs == 1 ? "" : "s");
    printf("        %s with %d thread%s each\n", at_a_time.c_str(), w.threads, w.threads == 1 ? "" : "s");
    if (of_all > 0.0)
        printf("needs   %s of memory, %s are free; %s on disk, %s are free\n", bytes_text(of_all).c_str(),
               bytes_text(memory).c_str(), bytes_text(disk).c_str(), bytes_text(std::max(free, 0.0)).c_str());
    if (memory > 0.0 && of_all > memory)
        fail("the study needs %s of memory for %s, and %s are free; %s", bytes_text(of_all).c_str(), at_a_time.c_str(),
             bytes_text(memory).c_str(),
             w.jobs > 1 ? "lower --jobs" : "free some, or lower --rollout_batch and the batches in the file");
    if (free >= 0.0 && disk > free)
        fail("the study needs %s on disk, and %s are free at %s; free some, or take another --output_dir",
             bytes_text(disk).c_str(), bytes_text(free).c_str(), w.folder.c_str());
}
