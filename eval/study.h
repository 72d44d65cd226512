// A study: arms, each a chain of stages (cold start, RL, quantization, ...), over a grid of values and several seeds, read
// from a file and made into runs that share what they have in common. docs/study.md tells users of the file.
//
//   stage   a command with its flags; "{bits}" in a flag is the value of the grid's key `bits`, "@ARM" what that arm ends in.
//           `all` are flags of every stage, `evaluation` those by which the end of every arm is measured
//   arm     the stages that lead to it, one after the other, each from the last checkpoint of the one before
//   cell    an arm at one point of the grid, if its stages have such keys; what a row of the table is about
//   run     a stage of some cells with one seed. Cells that begin alike share their first runs: a run is known by a hash of
//           its command, flags and seed and of those before it
//   sweep   values of a flag of which each cell takes the one that did best with a seed of its own on validation problems
//
// The trap: what a sweep chooses is known only when its runs have ended, so the runs are laid out again after each
// (study_lay_out), with all that is known by then.
#pragma once
#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>
#include "../runtime/json.h"
#include "../runtime/options.h"
#include "../runtime/run_dir.h"

typedef nlohmann::ordered_json StudyJson;

// ---------------------------------------------------------------------------------------------------------------------
// the file

struct StudyStage {
    std::string name;
    Command command = COMMAND_GRPO;
    StudyJson flags = StudyJson::object();
    std::string sweep;             // a flag; empty: none
    std::vector<StudyJson> tried;  // its values
};

struct StudyArm {
    std::string name;
    std::vector<std::string> stages;
};

struct StudyPair {
    std::string better, worse;  // arms
};

struct Study {
    std::string name, file, title, about;
    std::string model;  // what all arms begin with; empty: the embedded model
    std::vector<uint64_t> seeds;
    uint64_t sweep_seed = 0;
    StudyJson all = StudyJson::object(), evaluation = StudyJson::object(), validation = StudyJson::object();  // flags
    std::vector<StudyStage> stages;
    std::vector<StudyArm> arms;
    std::vector<std::pair<std::string, std::vector<std::string>>> grid;
    std::vector<StudyPair> pairs;
    std::string start, full;  // arms between which the share of the gain is measured; empty: it is not

    const StudyStage& stage(const std::string& of) const {
        for (const StudyStage& s : stages)
            if (s.name == of) return s;
        fail("no stage is called %s", of.c_str());
    }
    const StudyArm& arm(const std::string& of) const {
        for (const StudyArm& a : arms)
            if (a.name == of) return a;
        fail("no arm is called %s", of.c_str());
    }
};

// where in the file something is wrong: "FILE: arms.qat"
struct StudyPlace {
    std::string at;
    StudyPlace operator/(const std::string& key) const {
        return {at + (at.size() > 1 && at[at.size() - 1] == ' ' ? "" : ".") + printable(key)};
    }
};

inline void study_keys(const StudyPlace& place, const StudyJson& j, const std::vector<std::string>& known) {
    if (!j.is_object()) fail_usage("%s: not an object", place.at.c_str());
    for (const auto& item : j.items())
        if (std::find(known.begin(), known.end(), item.key()) == known.end())
            fail_usage("%s: no such key; there are %s%s", (place / item.key()).at.c_str(), join_words(known).c_str(),
                       did_you_mean(item.key(), known).c_str());
}

inline std::string study_text(const StudyPlace& place, const StudyJson& j) {
    if (!j.is_string()) fail_usage("%s: not a text", place.at.c_str());
    return j.get<std::string>();
}

inline std::vector<std::string> study_texts(const StudyPlace& place, const StudyJson& j) {
    if (!j.is_array() || j.empty()) fail_usage("%s: not a list of texts", place.at.c_str());
    std::vector<std::string> out;
    for (const StudyJson& x : j) out.push_back(study_text(place, x));
    return out;
}

// flags that a study gives its runs itself
inline constexpr const char* study_own_flags[] = {
    "model", "seed", "output_dir", "overwrite_output_dir", "config", "resume", "resume_from_checkpoint"};

inline void study_flag(const StudyPlace& place, const std::string& flag, const StudyJson& value) {
    std::vector<std::string> known;
    for (const OptionRow& row : option_rows)
        if (row.name) known.push_back(row.name);
    if (option_index(flag) < 0)
        fail_usage("%s: no flag is called so%s", place.at.c_str(), did_you_mean(flag, known).c_str());
    for (const char* own : study_own_flags)
        if (flag == own) fail_usage("%s: the study gives its runs --%s itself", place.at.c_str(), own);
    if (!value.is_string() && !value.is_number() && !value.is_boolean())
        fail_usage("%s: not a text, a number, true or false", place.at.c_str());
}

inline StudyJson study_flags(const StudyPlace& place, const StudyJson& j) {
    if (!j.is_object()) fail_usage("%s: not an object of flags", place.at.c_str());
    for (const auto& item : j.items()) study_flag(place / item.key(), item.key(), item.value());
    return j;
}

inline StudyStage study_stage(const StudyPlace& place, const std::string& name, const StudyJson& j) {
    StudyStage s;
    s.name = name;
    if (!j.is_object() || !j.contains("command")) fail_usage("%s: no `command`", place.at.c_str());
    s.command = parse_command(study_text(place / "command", j["command"]), place.at + ": ");
    if (!((IN_TRAIN | IN_QUANTIZE) >> s.command & 1))
        fail_usage("%s: %s is no stage; %s are", (place / "command").at.c_str(), command_rows[s.command].name,
                   command_names(IN_TRAIN | IN_QUANTIZE).c_str());
    for (const auto& item : j.items()) {
        const StudyPlace at = place / item.key();
        if (item.key() == "command") continue;
        if (item.key() != "sweep") {
            study_flag(at, item.key(), item.value());
            if (!(option_rows[option_index(item.key())].commands >> s.command & 1))
                fail_usage("%s: %s has no --%s", at.at.c_str(), command_rows[s.command].name, item.key().c_str());
            s.flags[item.key()] = item.value();
            continue;
        }
        if (!item.value().is_object() || item.value().size() != 1)
            fail_usage("%s: not one flag with the values to try", at.at.c_str());
        s.sweep = item.value().begin().key();
        const StudyJson& tried = item.value().begin().value();
        if (!tried.is_array() || tried.size() < 2) fail_usage("%s: not two values or more", (at / s.sweep).at.c_str());
        for (const StudyJson& value : tried) {
            study_flag(at / s.sweep, s.sweep, value);
            s.tried.push_back(value);
        }
    }
    if (!s.sweep.empty() && s.flags.contains(s.sweep))
        fail_usage("%s: --%s is given and swept; leave one out", place.at.c_str(), s.sweep.c_str());
    return s;
}

// the grid's keys that a text has in braces
inline std::set<std::string> study_keys_in(const StudyJson& value) {
    std::set<std::string> keys;
    if (!value.is_string()) return keys;
    const std::string s = value.get<std::string>();
    for (size_t at = 0; (at = s.find('{', at)) != std::string::npos; at++)
        if (const size_t end = s.find('}', at); end != std::string::npos) keys.insert(s.substr(at + 1, end - at - 1));
    return keys;
}

inline std::vector<uint64_t> study_seeds(const StudyPlace& place, const StudyJson& j) {
    auto whole = [](const StudyJson& x) { return x.is_number_integer() && x.get<double>() >= 0; };
    std::vector<uint64_t> out;
    if (whole(j) && j.get<double>() <= 1000)
        for (uint64_t i = 1; i <= j.get<uint64_t>(); i++) out.push_back(i);
    else if (j.is_array())
        for (const StudyJson& x : j) {
            if (!whole(x)) fail_usage("%s: not whole numbers", place.at.c_str());
            if (std::find(out.begin(), out.end(), x.get<uint64_t>()) != out.end())
                fail_usage("%s: %llu is there twice", place.at.c_str(), (unsigned long long)x.get<uint64_t>());
            out.push_back(x.get<uint64_t>());
        }
    if (out.empty()) fail_usage("%s: not a number of seeds, or a list of them", place.at.c_str());
    return out;
}

// what a stage refers to by "@ARM"; empty: it does not
inline std::string study_reference(const StudyJson& value) {
    if (!value.is_string()) return "";
    const std::string s = value.get<std::string>();
    return s.size() > 1 && s[0] == '@' ? s.substr(1) : "";
}

// whether an arm needs, over stages that refer to others, itself
inline void study_check_circle(const Study& s, const StudyPlace& place, const std::string& arm,
                               std::vector<std::string> above) {
    if (std::find(above.begin(), above.end(), arm) != above.end())
        fail_usage("%s: it refers to itself: @%s", (place / above[0]).at.c_str(), join_words(above, ", @").c_str());
    above.push_back(arm);
    for (const std::string& stage : s.arm(arm).stages)
        for (const auto& flag : s.stage(stage).flags.items())
            if (const std::string to = study_reference(flag.value()); !to.empty())
                study_check_circle(s, place, to, above);
}

inline void study_check_names(const Study& s, const StudyPlace& file) {
    std::vector<std::string> stages, arms, keys;
    for (const StudyStage& x : s.stages) stages.push_back(x.name);
    for (const StudyArm& x : s.arms) arms.push_back(x.name);
    for (const auto& x : s.grid) keys.push_back(x.first);
    auto known = [](const StudyPlace& place, const char* what, const std::string& name,
                    const std::vector<std::string>& names) {
        if (std::find(names.begin(), names.end(), name) == names.end())
            fail_usage("%s: no %s is called %s; there are %s%s", place.at.c_str(), what, printable(name).c_str(),
                       join_words(names).c_str(), did_you_mean(name, names).c_str());
    };
    for (const StudyArm& arm : s.arms)
        for (const std::string& stage : arm.stages) known(file / "arms" / arm.name, "stage", stage, stages);
    auto flags_know = [&](const StudyPlace& place, const StudyJson& flags, bool of_stage) {
        for (const auto& flag : flags.items()) {
            for (const std::string& key : study_keys_in(flag.value()))
                known(place / flag.key(), "key of the grid", key, keys);
            const std::string to = study_reference(flag.value());
            if (to.empty()) continue;
            if (!of_stage) fail_usage("%s: only a stage can refer to an arm", (place / flag.key()).at.c_str());
            known(place / flag.key(), "arm", to, arms);
        }
    };
    for (const StudyStage& stage : s.stages) flags_know(file / "stages" / stage.name, stage.flags, true);
    flags_know(file / "all", s.all, false), flags_know(file / "evaluation", s.evaluation, false);
    flags_know(file / "validation", s.validation, false);
    for (const std::string& arm : arms) study_check_circle(s, file / "arms", arm, {});
    for (const StudyPair& pair : s.pairs)
        for (const std::string& arm : {pair.better, pair.worse}) known(file / "compare", "arm", arm, arms);
    for (const auto& [key, arm] : {std::pair("start", s.start), {"full", s.full}})
        if (!arm.empty()) known(file / key, "arm", arm, arms);
}

inline Study study_parse(const StudyJson& j, const std::string& file) {
    const StudyPlace place{printable(file, 400) + ": "};
    study_keys(place, j,
               {"title", "about", "model", "seeds", "sweep_seed", "all", "stages", "arms", "grid", "evaluation",
                "validation", "compare", "start", "full"});
    for (const char* needed : {"seeds", "stages", "arms"})
        if (!j.contains(needed)) fail_usage("%sno `%s`", place.at.c_str(), needed);
    Study s;
    s.file = file;
    s.name = std::filesystem::path(file).stem().string();
    for (const auto& [key, text] : {std::pair("title", &s.title),
                                    {"about", &s.about},
                                    {"model", &s.model},
                                    {"start", &s.start},
                                    {"full", &s.full}})
        if (j.contains(key)) *text = study_text(place / key, j[key]);
    s.seeds = study_seeds(place / "seeds", j["seeds"]);
    s.sweep_seed = *std::max_element(s.seeds.begin(), s.seeds.end()) + 1000;
    if (j.contains("sweep_seed")) {
        s.sweep_seed = study_seeds(place / "sweep_seed", StudyJson::array({j["sweep_seed"]}))[0];
        if (std::find(s.seeds.begin(), s.seeds.end(), s.sweep_seed) != s.seeds.end())
            fail_usage("%s: one of the seeds; what chooses a value is not used again",
                       (place / "sweep_seed").at.c_str());
    }
    if (j.contains("all")) s.all = study_flags(place / "all", j["all"]);
    if (j.contains("evaluation")) s.evaluation = study_flags(place / "evaluation", j["evaluation"]);
    if (j.contains("validation")) s.validation = study_flags(place / "validation", j["validation"]);
    for (const auto& [key, flags] : {std::pair("evaluation", &s.evaluation), {"validation", &s.validation}})
        for (const auto& flag : flags->items())
            if (!(option_rows[option_index(flag.key())].commands & IN_EVAL))
                fail_usage("%s: eval has no --%s", (place / key / flag.key()).at.c_str(), flag.key().c_str());
    for (const char* list : {"stages", "arms"})
        if (!j[list].is_object() || j[list].empty()) fail_usage("%s: not an object of them", (place / list).at.c_str());
    for (const auto& item : j["stages"].items())
        s.stages.push_back(study_stage(place / "stages" / item.key(), item.key(), item.value()));
    for (const auto& item : j["arms"].items())
        s.arms.push_back({item.key(), study_texts(place / "arms" / item.key(), item.value())});
    if (j.contains("grid")) {
        if (!j["grid"].is_object()) fail_usage("%s: not an object of lists", (place / "grid").at.c_str());
        for (const auto& item : j["grid"].items())
            s.grid.push_back({item.key(), study_texts(place / "grid" / item.key(), item.value())});
    }
    if (j.contains("compare"))
        for (const std::string& text : study_texts(place / "compare", j["compare"])) {
            const size_t middle = text.find(" - ");
            if (middle == std::string::npos)
                fail_usage("%s: %s is not of the form \"ARM - ARM\", the one that is claimed to be better first",
                           (place / "compare").at.c_str(), shown(text).c_str());
            s.pairs.push_back({text.substr(0, middle), text.substr(middle + 3)});
        }
    study_check_names(s, place);
    for (const StudyStage& stage : s.stages)
        if (!stage.sweep.empty() && s.validation.empty() && s.evaluation.contains("eval_data"))
            fail_usage(
                "%s: what it is to be chosen on is not known; name other problems than the evaluation's in "
                "`validation`",
                (place / "stages" / stage.name / "sweep").at.c_str());
    return s;
}

// ---------------------------------------------------------------------------------------------------------------------
// the runs

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
    std::vector<std::pair<std::string, std::string>> point;
    std::vector<std::pair<std::string, StudyJson>> chosen;  // by sweeps: "stage.flag", value
    std::vector<std::vector<int>> chains;                   // of each seed: its runs; empty: a sweep has not ended
    std::vector<int> evaluations;                           // of each seed
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

    int add_evaluation(const StudyCell& cell, int of, uint64_t seed, bool validation) {
        StudyRun run;
        run.stage = validation ? "validation" : "evaluation";
        run.command = COMMAND_EVAL;
        run.flags = merged(COMMAND_EVAL, study.evaluation);
        substitute(cell, run.flags);
        if (validation) {
            const std::string task = run.flags.value("task", "arithmetic");
            for (const auto& flag : study.validation.items()) run.flags[flag.key()] = flag.value();
            if (study.validation.empty()) run.flags["task"] = task.substr(0, task.find_first_of(",:")) + ":validation";
        }
        run.from = of;
        return add(run, seed);
    }

    // the values of the cell's point in place of the grid's keys
    static void substitute(const StudyCell& cell, StudyJson& flags) {
        for (auto& flag : flags.items()) {
            if (!flag.value().is_string()) continue;
            std::string text = flag.value().get<std::string>();
            for (const auto& [key, value] : cell.point) {
                const std::string braced = "{" + key + "}";
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
            run.others.push_back({flag.key(), chain.back()});
        }
        if (!choice.is_null()) run.flags[stage.sweep] = choice;
        return add(run, seed);
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
            const auto score = scores.find(layout.runs[add_evaluation(cell, run, study.sweep_seed, true)].id);
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

// the keys of the grid that an arm's stages, those of arms they refer to, and what all have in common need
inline std::set<std::string> study_arm_keys(const Study& s, const StudyArm& arm) {
    std::set<std::string> keys;
    auto add = [&](const StudyJson& flags) {
        for (const auto& flag : flags.items()) {
            for (const std::string& key : study_keys_in(flag.value())) keys.insert(key);
            if (const std::string to = study_reference(flag.value()); !to.empty())
                for (const std::string& key : study_arm_keys(s, s.arm(to))) keys.insert(key);
        }
    };
    for (const std::string& name : arm.stages) add(s.stage(name).flags);
    add(s.all), add(s.evaluation);
    return keys;
}

inline StudyLayout study_lay_out(const Study& s, const StudyScores& scores) {
    StudyBuilder b{s, scores, {}, {}};
    for (const StudyArm& arm : s.arms) {
        const std::set<std::string> keys = study_arm_keys(s, arm);
        std::vector<std::vector<std::pair<std::string, std::string>>> points = {{}};
        for (const auto& [key, values] : s.grid) {
            if (!keys.count(key)) continue;
            std::vector<std::vector<std::pair<std::string, std::string>>> longer;
            for (const auto& point : points)
                for (const std::string& value : values) {
                    longer.push_back(point);
                    longer.back().push_back({key, value});
                }
            points = longer;
        }
        for (const auto& point : points) {
            StudyCell cell;
            cell.arm = cell.name = arm.name;
            cell.point = point;
            for (const auto& [key, value] : point) cell.name += " " + value;
            for (const uint64_t seed : s.seeds) {
                cell.chains.push_back(b.add_chain(cell, arm, seed));
                cell.evaluations.push_back(
                    cell.chains.back().empty() ? -1 : b.add_evaluation(cell, cell.chains.back().back(), seed, false));
            }
            b.layout.cells.push_back(cell);
        }
    }
    return b.layout;
}
