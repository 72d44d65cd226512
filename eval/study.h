// A study: arms, each a chain of stages (cold start, RL, quantization, ...), over a grid of values and several seeds, made
// into runs that share what they have in common.
//
//   cell    an arm at one point of the grid, if its stages have such keys; what a row of the table is about
//   run     a stage of some cells with one seed. Cells that begin alike share their first runs: a run is known by a hash of
//           its command, flags and seed and of those before it
//
// The trap: what a sweep chooses is known only when its runs have ended, so the runs are laid out again after each
// (study_lay_out), with all that is known by then.
#pragma once
#include "study_file.h"

struct StudyRun {
    std::string id;  // its folder: NAME-sSEED-HASH
    std::string stage;
    Command command = COMMAND_GRPO;
    StudyJson flags = StudyJson::object();            // with the seed
    int from = -1;                                    // the run whose last checkpoint it begins with; -1: none
    std::vector<std::pair<std::string, int>> others;  // flags that name another run's checkpoint
};

struct StudyCell {
    std::string arm, name;  // name: with the point of the grid
    StudyPoint point;
    std::vector<std::pair<std::string, StudyJson>> chosen;  // by sweeps: "stage.flag", value
    std::vector<std::vector<int>> chains;  // of each of its seeds: its runs; empty: a sweep has not ended
    std::vector<int> evaluations;          // of each seed
    std::vector<int> drifts;               // the same against `full`; -1: not measured
};

struct StudyLayout {
    std::vector<StudyRun> runs;  // each behind those it needs
    std::vector<StudyCell> cells;
    bool complete = true;  // false: sweeps have to end first
};

// pass@1 on validation of the runs of sweeps that have ended, by StudyRun::id
typedef std::map<std::string, double> StudyScores;

struct StudyBuilder {
    const Study& study;
    const StudyScores& scores;
    StudyLayout layout;
    std::map<std::string, int> known;  // runs by id

    // flags of all stages that this command has, and then its own
    StudyJson merged(Command command, const StudyJson& own) const {
        StudyJson flags = StudyJson::object();
        for (const auto& flag : study.all.items())
            if (option_rows[option_index(flag.key())].commands >> command & 1) flags[flag.key()] = flag.value();
        for (const auto& flag : own.items()) flags[flag.key()] = flag.value();
        return flags;
    }

    int add(StudyRun run, uint64_t seed) {
        run.flags["seed"] = seed;
        StudyJson all = {{"command", command_rows[run.command].name}, {"flags", run.flags}};
        // the order of flags is no difference
        all["flags"] = nlohmann::json(all["flags"]);
        if (run.from >= 0) all["from"] = layout.runs[run.from].id;
        else all["from"] = study.model;
        for (const auto& [flag, other] : run.others) all[flag] = layout.runs[other].id;
        run.id = format("%s-s%llu-%010llx", run.stage.c_str(), (unsigned long long)seed,
                        (unsigned long long)text_hash(nlohmann::json(all).dump()) >> 24);
        const auto [at, fresh] = known.emplace(run.id, (int)layout.runs.size());
        if (fresh) layout.runs.push_back(run);
        return at->second;
    }

    // own: flags of the arm alone. What is compared are the completions, whatever `all` says of logging them
    int add_evaluation(const StudyCell& cell, int of, uint64_t seed, bool validation, const StudyJson& own) {
        StudyRun run;
        run.stage = validation ? "validation" : "evaluation";
        run.command = COMMAND_EVAL;
        run.flags = merged(COMMAND_EVAL, study.evaluation);
        run.flags.erase("log_completions");
        for (const auto& flag : own.items()) run.flags[flag.key()] = flag.value();
        for (const auto& flag : study.validation.items())
            if (validation) run.flags[flag.key()] = flag.value();
        substitute(cell, run.flags);
        if (validation && study.validation.empty()) {
            const std::string task = run.flags.value("task", "arithmetic");
            run.flags["task"] = task.substr(0, task.find_first_of(",:")) + ":validation";
        }
        run.from = of;
        return add(run, seed);
    }

    // how far the end of a cell is from what `full` ends in, with the same seed; -1: it is not to be measured, or not known yet
    int add_drift(const StudyCell& cell, int of, uint64_t seed, const StudyJson& own) {
        if (study.drift.is_null()) return -1;
        StudyRun run;
        run.stage = "drift";
        run.command = COMMAND_EVAL;
        run.flags = merged(COMMAND_EVAL, study.drift);
        for (const auto& flag : own.items())
            if (flag.key().rfind("eval_", 0) != 0 && flag.key() != "task") run.flags[flag.key()] = flag.value();
        for (const char* flag : {"eval_samples", "eval_greedy"}) run.flags.erase(flag);  // it has none
        substitute(cell, run.flags);
        StudyCell other;
        other.point = cell.point;
        const std::vector<int> full = add_chain(other, study.arm(study.full), seed);
        if (full.empty()) return -1;
        run.from = of;
        run.others.push_back({"against", full.back()});
        return add(run, seed);
    }

    // the values of the cell's point in place of the grid's keys
    static void substitute(const StudyCell& cell, StudyJson& flags) {
        for (auto& flag : flags.items()) {
            if (!flag.value().is_string()) continue;
            std::string text = flag.value().get<std::string>();
            for (const auto& [key, value] : cell.point) {
                const std::string braced = "{" + key + "}";  // no value has braces
                for (size_t at; (at = text.find(braced)) != std::string::npos;) text.replace(at, braced.size(), value);
            }
            flag.value() = text;
        }
    }

    // the run of one stage; choice: of its sweep, or null
    int add_stage(StudyCell& cell, const StudyStage& stage, int from, uint64_t seed, const StudyJson& choice) {
        StudyRun run;
        run.stage = stage.name;
        run.command = stage.command;
        run.from = from;
        run.flags = merged(stage.command, stage.flags);
        substitute(cell, run.flags);
        const StudyJson given = run.flags;
        for (const auto& flag : given.items()) {
            const std::string to = study_reference(flag.value());
            if (to.empty()) continue;
            run.flags.erase(flag.key());
            StudyCell other;
            other.point = cell.point;
            const std::vector<int> chain = add_chain(other, study.arm(to), seed);
            if (chain.empty()) return -1;
            if (flag.key() == "teacher") run.others.push_back({flag.key(), chain.back()});
            else run.flags[flag.key()] = value_of(chain, to, flag.key());
        }
        if (!choice.is_null()) run.flags[stage.sweep] = choice;
        return add(run, seed);
    }

    // what the last run of an arm that has a flag has for it, given or chosen
    StudyJson value_of(const std::vector<int>& chain, const std::string& arm, const std::string& flag) const {
        for (auto run = chain.rbegin(); run != chain.rend(); run++)
            if (layout.runs[*run].flags.contains(flag)) return layout.runs[*run].flags[flag];
        fail_usage("%s: \"%s\": \"@%s\": no stage of %s has it", printable(study.file, 400).c_str(), flag.c_str(),
                   arm.c_str(), arm.c_str());
    }

    // the best value of a stage's sweep; null: not known yet
    StudyJson choose(StudyCell& cell, const StudyStage& stage, const std::vector<std::string>& before) {
        const std::string of = stage.name + "." + stage.sweep;
        for (const auto& [name, value] : cell.chosen)
            if (name == of) return value;
        StudyJson best;
        double most = -1.0;
        bool all = true;
        for (const StudyJson& value : stage.tried) {
            int from = -1;
            for (const std::string& name : before) {
                const StudyStage& earlier = study.stage(name);
                const StudyJson choice = earlier.sweep.empty() ? StudyJson() : choose(cell, earlier, {});
                from = add_stage(cell, earlier, from, study.sweep_seed, choice);
                if (from < 0) return nullptr;
            }
            const int run = add_stage(cell, stage, from, study.sweep_seed, value);
            if (run < 0) return nullptr;
            const StudyJson none = StudyJson::object();
            const auto score = scores.find(layout.runs[add_evaluation(cell, run, study.sweep_seed, true, none)].id);
            if (score == scores.end()) all = false;
            else if (score->second > most) most = score->second, best = value;
        }
        if (!all) return nullptr;
        cell.chosen.push_back({of, best});
        return best;
    }

    // the runs of an arm with one seed; empty: a sweep has not ended
    std::vector<int> add_chain(StudyCell& cell, const StudyArm& arm, uint64_t seed) {
        std::vector<int> chain;
        std::vector<std::string> before;
        for (const std::string& name : arm.stages) {
            const StudyStage& stage = study.stage(name);
            StudyJson choice;
            if (!stage.sweep.empty()) {
                choice = choose(cell, stage, before);
                if (choice.is_null()) {
                    layout.complete = false;
                    return {};
                }
            }
            const int run = add_stage(cell, stage, chain.empty() ? -1 : chain.back(), seed, choice);
            if (run < 0) return {};
            chain.push_back(run);
            before.push_back(name);
        }
        return chain;
    }
};

inline StudyLayout study_lay_out(const Study& s, const StudyScores& scores) {
    StudyBuilder b{s, scores, {}, {}};
    for (const StudyArm& arm : s.arms) {
        const std::set<std::string> keys = study_arm_keys(s, arm);
        bool full_known = !s.full.empty();  // at one point of the grid
        for (const std::string& key : full_known ? study_arm_keys(s, s.arm(s.full)) : std::set<std::string>())
            full_known = full_known && keys.count(key);
        for (const StudyPoint& point : study_points(s, arm)) {
            StudyCell cell;
            cell.arm = arm.name, cell.name = study_cell_name(arm, point);
            cell.point = point;
            for (size_t i = 0; i < s.seeds_of(arm); i++) {
                cell.chains.push_back(b.add_chain(cell, arm, s.seeds[i]));
                const std::vector<int>& chain = cell.chains.back();
                cell.evaluations.push_back(
                    chain.empty() ? -1 : b.add_evaluation(cell, chain.back(), s.seeds[i], false, arm.evaluation));
                cell.drifts.push_back(
                    chain.empty() || !full_known ? -1 : b.add_drift(cell, chain.back(), s.seeds[i], arm.evaluation));
            }
            b.layout.cells.push_back(cell);
        }
    }
    return b.layout;
}

// All that there will be to do, as if every sweep chose the first of its values
inline StudyLayout study_foresee(const Study& s, StudyScores scores) {
    for (;;) {
        StudyLayout layout = study_lay_out(s, scores);
        const size_t known = scores.size();
        for (const StudyRun& run : layout.runs)
            if (run.stage == "validation") scores.emplace(run.id, 0.0);
        if (layout.complete || scores.size() == known) return layout;
    }
}
