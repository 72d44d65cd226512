// Evaluations beside each other: what `train_qrl eval` wrote of each problem, read back, and paired by problem.
//   an arm       one evaluation, or several that differ by the seed of their runs
//   a value      of a problem in one run, in [0, 1]: right or not, or the share of its samples, or pass@k of them
//   a pair       two arms on the problems that all of their runs have
// The trap: names of problems are only names. Two data sets may both call a problem "1", so the gold answers are
// compared, too.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>
#include "../data/dataset.h"
#include "../runtime/error.h"
#include "../runtime/file_io.h"
#include "../runtime/json.h"
#include "../runtime/options.h"
#include "../runtime/printable.h"
#include "../runtime/progress.h"
#include "../runtime/run_dir.h"
#include "../runtime/words.h"
#include "estimators.h"
#include "statistics.h"

// ---------------------------------------------------------------------------------------------------------------------
// what is read

struct Graded {
    int samples = 0, strict = 0, lenient = 0, differ = 0;  // completions; right by either; graded differently
    std::vector<int> votes =
        {};  // of completions that have one, and whether they are right, strictly: what maj@K takes
    std::vector<char> right = {};
    int cut_off = 0;      // that did not end by themselves
    double length = 0.0;  // tokens of all
};

struct ProblemResult {
    Graded greedy, sampled;
    std::string gold;
    std::set<int> seen;  // samples, while the file is read
};

typedef std::map<std::string, ProblemResult> SetResult;  // by problem

struct Evaluation {
    std::string path;       // as it was given
    std::string unended;    // why it may be less than all; "": it ended
    nlohmann::json config;  // its options; null: they are not known
    std::map<std::string, SetResult> sets;
    std::vector<std::string> order;  // of the sets, as they were asked
};

inline const nlohmann::ordered_json& result_field(const DatasetRow& row, const char* name) {
    const auto at = row.object.find(name);
    if (at == row.object.end())
        fail("%s: no `%s`, which train_qrl eval writes; is it the completions.jsonl of an evaluation? The row has: %s",
             row.where.c_str(), name, row_fields(row).c_str());
    return *at;
}

inline std::string result_text(const DatasetRow& row, const char* name) {
    const nlohmann::ordered_json& v = result_field(row, name);
    if (!v.is_string()) fail("%s: `%s` is %s, not text", row.where.c_str(), name, v.type_name());
    return v.get<std::string>();
}

inline bool result_bool(const DatasetRow& row, const char* name) {
    const nlohmann::ordered_json& v = result_field(row, name);
    if (!v.is_boolean()) fail("%s: `%s` is %s, not true or false", row.where.c_str(), name, v.type_name());
    return v.get<bool>();
}

static constexpr int RESULT_MAX_SAMPLES = 1 << 20;

// one completion
inline void read_result(Evaluation& e, const DatasetRow& row) {
    const std::string decoding = result_text(row, "decoding"), problem = result_text(row, "problem");
    const std::string set = result_text(row, "set"), gold = result_text(row, "gold");
    const nlohmann::ordered_json& sample = result_field(row, "sample");
    if (problem.empty()) fail("%s: `problem` is empty", row.where.c_str());
    if (decoding != "greedy" && decoding != "sampled")
        fail("%s: `decoding` is %s, neither greedy nor sampled", row.where.c_str(), shown(decoding).c_str());
    if (!sample.is_number_integer() || sample.get<double>() < 0 || sample.get<double>() >= RESULT_MAX_SAMPLES)
        fail("%s: `sample` is %s, not a whole number from 0 to %d", row.where.c_str(), printable(sample.dump()).c_str(),
             RESULT_MAX_SAMPLES - 1);
    const auto [its, first] = e.sets.try_emplace(set);
    if (first) e.order.push_back(set);
    auto [at, fresh] = its->second.try_emplace(problem);
    ProblemResult& r = at->second;
    if (fresh) r.gold = gold;
    if (r.gold != gold)
        fail("%s: problem %s has the gold answer %s here and %s further up; two problems have one name",
             row.where.c_str(), shown(problem).c_str(), shown(gold).c_str(), shown(r.gold).c_str());
    const bool greedy = decoding == "greedy";
    if (!r.seen.insert(greedy ? -1 - sample.get<int>() : sample.get<int>()).second)
        fail("%s: problem %s has its %s sample %d twice; two evaluations in one file?", row.where.c_str(),
             shown(problem).c_str(), decoding.c_str(), sample.get<int>());
    const bool strict = result_bool(row, "strict"), lenient = result_bool(row, "lenient");
    const nlohmann::ordered_json& length = result_field(row, "length");
    if (!length.is_number_integer() || length.get<double>() < 0)
        fail("%s: `length` is %s, not a count of tokens", row.where.c_str(), printable(length.dump()).c_str());
    Graded& g = greedy ? r.greedy : r.sampled;
    g.samples++, g.strict += strict, g.lenient += lenient, g.differ += strict != lenient;
    g.cut_off += !result_bool(row, "finished"), g.length += length.get<double>();
    const auto vote = row.object.find("vote");
    if (vote == row.object.end()) return;
    if (!vote->is_number_integer() || vote->get<double>() < -1 || vote->get<double>() >= RESULT_MAX_SAMPLES)
        fail("%s: `vote` is %s, not a whole number from -1 on", row.where.c_str(), printable(vote->dump()).c_str());
    g.votes.push_back(vote->get<int>());
    g.right.push_back(strict);
}

// What results.json beside the completions says: the options, and whether there are fewer completions than were asked for
inline void read_results_json(Evaluation& e, const std::string& folder, bool needed) {
    const std::string path = folder + "/results.json";
    if (!file_exists(path)) {
        if (needed) e.unended = "it has no results.json, so it did not end";
        return;
    }
    const nlohmann::json j = json_parse(read_file(path, 256u << 20), path);
    if (!j.is_object()) return;
    if (j.contains("partial") && j["partial"].is_boolean() && j["partial"].get<bool>())
        e.unended = "its results.json says that it is partial";
    if (j.contains("config") && j["config"].is_object()) e.config = j["config"];
}

// path: the folder of an evaluation, or its completions.jsonl
inline Evaluation load_evaluation(const std::string& path) {
    namespace fs = std::filesystem;
    std::error_code ec;
    const bool folder = fs::is_directory(path, ec);
    const std::string file = folder ? path + "/completions.jsonl" : path;
    if (!fs::exists(file, ec))
        fail("%s: %s; give a folder that train_qrl eval wrote with --log_completions, or its completions.jsonl",
             path.c_str(), folder ? "the folder holds no completions.jsonl" : "there is no such file or folder");
    Evaluation e;
    e.path = path;
    for_each_row(
        file, [&](const DatasetRow& row, int) { read_result(e, row); }, ProgressKind::part);
    for (auto& set : e.sets)
        for (auto& problem : set.second) problem.second.seen.clear();
    const fs::path parent = fs::path(file).parent_path();
    read_results_json(e, parent.empty() ? "." : parent.string(), folder);
    return e;
}

struct Arm {
    std::string name;  // A, B, ..., Z, AA, ...
    std::vector<Evaluation> runs;
};

// Every run of the arms from its path, several at a time: those of a study are gigabytes of lines. Of several that cannot
// be read the first in order is told
inline void load_runs(std::vector<Arm>& arms) {
    std::vector<Evaluation*> runs;
    for (Arm& arm : arms)
        for (Evaluation& run : arm.runs) runs.push_back(&run);
    std::vector<std::exception_ptr> faults(runs.size());
    Progress line("reading", "evaluation", (int64_t)runs.size());
#pragma omp parallel for schedule(dynamic)
    for (size_t i = 0; i < runs.size(); i++) {
        try {
            *runs[i] = load_evaluation(runs[i]->path);
        } catch (...) { faults[i] = std::current_exception(); }
        line.add();
    }
    for (const std::exception_ptr& fault : faults)
        if (fault) std::rethrow_exception(fault);
}

inline std::string arm_name(size_t i) {
    return (i < 26 ? "" : arm_name(i / 26 - 1)) + std::string(1, (char)('A' + i % 26));
}

// arguments: of an arm each, whose runs are joined by commas
inline std::vector<Arm> load_arms(const std::vector<std::string>& arguments) {
    namespace fs = std::filesystem;
    std::vector<Arm> arms;
    std::set<std::string> known;
    for (const std::string& argument : arguments) {
        std::error_code ec;
        Arm arm;
        arm.name = arm_name(arms.size());
        const bool whole = fs::exists(argument, ec);  // a name with a comma in it
        for (const std::string& path : whole ? std::vector<std::string>{argument} : split_words(argument)) {
            if (path.empty()) fail_usage("%s: an empty name beside a comma", shown(argument).c_str());
            if (!known.insert(fs::weakly_canonical(path, ec).string()).second)
                fail_usage("%s is given twice; an evaluation counts once", printable(path, 400).c_str());
            arm.runs.emplace_back().path = path;
        }
        arms.push_back(std::move(arm));
    }
    load_runs(arms);
    return arms;
}

// ---------------------------------------------------------------------------------------------------------------------
// what they were asked differently

// Of each option that is not the same in all evaluations: its values in the runs of each arm. An option that one of them
// does not know is left out, as are those that change no completion.
inline std::map<std::string, std::vector<std::vector<std::string>>> differing_options(const std::vector<Arm>& arms) {
    static const std::set<std::string> free = {
        "version",         "command",   "output_dir",       "overwrite_output_dir",
        "resume",          "threads",   "rollout_batch",    "micro_batch_tokens",
        "log_completions", "plan",      "eval_n",           "reward_funcs",
        "reward_weights",  "eval_text", "eval_text_length", "traces",
        "against"};
    std::map<std::string, std::vector<std::vector<std::string>>> differing;
    for (const auto& item : arms[0].runs[0].config.items()) {
        std::vector<std::vector<std::string>> values;
        std::set<std::string> kinds;
        bool known = !free.count(item.key());
        for (const Arm& arm : arms) {
            values.emplace_back();
            for (const Evaluation& run : arm.runs) {
                known = known && run.config.contains(item.key());
                if (!known) break;
                const nlohmann::json& v = run.config[item.key()];
                values.back().push_back(v.is_string() ? v.get<std::string>() : v.is_null() ? "unset" : json_line(v));
                kinds.insert(values.back().back());
            }
        }
        if (known && kinds.size() > 1) differing[item.key()] = values;
    }
    return differing;
}

// ---------------------------------------------------------------------------------------------------------------------
// a number of a problem

struct Metric {
    bool sampled = true, strict = true;
    int k = 1;              // of pass@k
    bool majority = false;  // maj@k

    std::string name() const {
        const char* grading = strict ? "strict" : "lenient";
        if (majority) return format("maj@%d strict", k);
        return sampled ? format("pass@%d %s", k, grading) : format("greedy %s", grading);
    }
    const Graded& of(const ProblemResult& r) const { return sampled ? r.sampled : r.greedy; }
    bool covers(const ProblemResult& r) const {
        return of(r).samples >= k && (!majority || (int)of(r).votes.size() == of(r).samples);
    }
    double value(const ProblemResult& r) const {
        const Graded& g = of(r);
        const int right = strict ? g.strict : g.lenient;
        if (majority) return maj_at_k(g.votes, g.right, k);
        return k == 1 ? (double)right / g.samples : pass_at_k(g.samples, right, k);
    }
};

// auto: pass@1 strict where `sampled`, else greedy strict
inline Metric metric_named(const std::string& text, bool sampled) {
    if (text == "auto") return {sampled, true, 1};
    if (text == "strict" || text == "lenient") return {true, text == "strict", 1};
    if (text == "greedy" || text == "greedy_lenient") return {false, text == "greedy", 1};
    int k = 0;
    if (text.rfind("pass@", 0) == 0 && parse_whole(text.substr(5), &k) && k >= 1 && k <= RESULT_MAX_SAMPLES)
        return {true, true, k};
    if (text.rfind("maj@", 0) == 0 && parse_whole(text.substr(4), &k) && k >= 1 && k <= RESULT_MAX_SAMPLES)
        return {true, true, k, true};
    fail_usage("--metric %s: not one of auto, strict, lenient, greedy, greedy_lenient, pass@K, maj@K%s",
               printable(text).c_str(),
               did_you_mean(text, {"auto", "strict", "lenient", "greedy", "greedy_lenient"}).c_str());
}

inline const SetResult* find_set(const Evaluation& e, const std::string& set) {
    const auto at = e.sets.find(set);
    return at == e.sets.end() ? nullptr : &at->second;
}

// the problems that all runs of all these arms have a value for, in order; fails where their golds differ
inline std::vector<std::string> shared_problems(const std::vector<const Arm*>& arms, const std::string& set,
                                                const Metric& metric) {
    std::map<std::string, std::pair<size_t, const ProblemResult*>> count;
    size_t runs = 0;
    for (const Arm* arm : arms)
        for (const Evaluation& run : arm->runs) {
            runs++;
            const SetResult* results = find_set(run, set);
            if (!results) continue;
            for (const auto& [name, r] : *results) {
                auto& [n, first] = count[name];
                if (first && first->gold != r.gold)
                    fail("%s: problem %s of set %s has the gold answer %s, elsewhere %s; evaluations of two data sets",
                         run.path.c_str(), shown(name).c_str(), shown(set).c_str(), shown(r.gold).c_str(),
                         shown(first->gold).c_str());
                first = &r;
                n += metric.covers(r);
            }
        }
    std::vector<std::string> names;
    for (const auto& [name, c] : count)
        if (c.first == runs) names.push_back(name);
    return names;
}

inline Runs values_of(const Arm& arm, const std::string& set, const std::vector<std::string>& problems,
                      const Metric& metric) {
    Runs runs;
    for (const Evaluation& run : arm.runs) {
        runs.emplace_back();
        const SetResult* results = find_set(run, set);
        for (const std::string& name : problems) runs.back().push_back(metric.value(results->at(name)));
    }
    return runs;
}

// ---------------------------------------------------------------------------------------------------------------------
// an arm on a set

struct ArmResult {
    int problems = 0, fewest = 0, most = 0;  // that all of its runs have; samples of a problem in a run
    double value = 0.0;
    Confidence interval;
    // beside it, over the same problems; NaN: it has none
    double strict = NAN, lenient = NAN, greedy = NAN, greedy_lenient = NAN, differ = NAN;
    double length = NAN, cut_off = NAN;  // tokens of a completion; share that did not end by itself
};

// mean over problems and runs of a share of completions; NaN where a problem has none
template <class Share>
inline double mean_share(const Arm& arm, const std::string& set, const std::vector<std::string>& problems, bool sampled,
                         Share share) {
    double sum = 0.0;
    for (const Evaluation& run : arm.runs)
        for (const std::string& name : problems) {
            const ProblemResult& r = find_set(run, set)->at(name);
            const Graded& g = sampled ? r.sampled : r.greedy;
            sum += g.samples > 0 ? (double)share(g) / g.samples : NAN;
        }
    return problems.empty() ? NAN : sum / (double)(problems.size() * arm.runs.size());
}

inline ArmResult arm_result(const Arm& arm, const std::string& set, const Metric& metric) {
    ArmResult a;
    const std::vector<std::string> problems = shared_problems({&arm}, set, metric);
    a.problems = (int)problems.size();
    if (problems.empty()) return a;
    const Runs values = values_of(arm, set, problems, metric);
    double samples = 0.0;
    a.fewest = RESULT_MAX_SAMPLES;
    for (const Evaluation& run : arm.runs)
        for (const std::string& name : problems) {
            const int n = metric.of(find_set(run, set)->at(name)).samples;
            a.fewest = std::min(a.fewest, n), a.most = std::max(a.most, n), samples += n;
        }
    const Estimate estimate = seeds_estimate({}, values);
    a.value = estimate.value;
    a.interval = arm.runs.size() > 1 ? estimate.interval() : mean_interval(values[0], samples);
    a.interval = {std::max(a.interval.low, 0.0), std::min(a.interval.high, 1.0)};
    a.strict = mean_share(arm, set, problems, true, [](const Graded& g) { return g.strict; });
    a.lenient = mean_share(arm, set, problems, true, [](const Graded& g) { return g.lenient; });
    a.greedy = mean_share(arm, set, problems, false, [](const Graded& g) { return g.strict; });
    a.greedy_lenient = mean_share(arm, set, problems, false, [](const Graded& g) { return g.lenient; });
    a.differ = mean_share(arm, set, problems, metric.sampled, [](const Graded& g) { return g.differ; });
    a.length = mean_share(arm, set, problems, metric.sampled, [](const Graded& g) { return g.length; });
    a.cut_off = mean_share(arm, set, problems, metric.sampled, [](const Graded& g) { return g.cut_off; });
    return a;
}

// ---------------------------------------------------------------------------------------------------------------------
// two arms on a set

struct PairResult {
    size_t a = 0, b = 0;  // of the arms
    int problems = 0;
    double first = 0.0, second = 0.0;  // on the problems that both have
    Estimate estimate;                 // of the difference, over problems and seeds
    Confidence interval;               // bootstrap over problems; with several seeds, Student's t of `estimate`
    Confidence bootstrap;              // with several seeds: hierarchical, seeds and problems
    bool seeds = false;                // an arm has several
    std::string test;                  // what p is of
    double p = 1.0, p_holm = 1.0;
    McNemar mcnemar;                             // test == "McNemar"
    int wins = 0, losses = 0, ties = 0;          // problems where b is the better one, the worse one
    double equality = 1.0, equality_holm = 1.0;  // p of the test of equality, if there is a margin
    double greedy = NAN;                         // difference; NaN: not all have greedy completions
};

// as whole numbers of 1 / (samples of a, samples of b); empty: too fine
inline std::vector<int64_t> whole_differences(const Arm& a, const Arm& b, const std::string& set,
                                              const std::vector<std::string>& problems, const Metric& metric) {
    std::vector<int64_t> whole;
    if (metric.k > 1) return whole;
    int64_t unit = 1;
    for (const Arm* arm : {&a, &b})
        for (const std::string& name : problems) {
            unit = std::lcm(unit, (int64_t)metric.of(find_set(arm->runs[0], set)->at(name)).samples);
            if (unit > 1000000) return whole;
        }
    for (const std::string& name : problems) {
        const double d =
            metric.value(find_set(b.runs[0], set)->at(name)) - metric.value(find_set(a.runs[0], set)->at(name));
        whole.push_back(std::llround(d * (double)unit));
    }
    return whole;
}

// p for one run of each arm: over problems, whose values these runs have
inline void test_runs(PairResult& r, const Arm& a, const Arm& b, const std::string& set,
                      const std::vector<std::string>& problems, const Metric& metric,
                      const std::vector<double>& differences, int resamples) {
    bool exact = true, binary = true;
    for (const Arm* arm : {&a, &b})
        for (const std::string& name : problems)
            binary = binary && metric.of(find_set(arm->runs[0], set)->at(name)).samples == 1;
    if (binary) {
        r.test = "McNemar";
        r.mcnemar = mcnemar(r.wins, r.losses);
        r.p = r.mcnemar.exact;
        return;
    }
    const std::vector<int64_t> whole = whole_differences(a, b, set, problems, metric);
    r.test = "sign flips, exact";
    if (!whole.empty()) r.p = sign_flip_exact(whole, &exact);
    if (!whole.empty() && exact) return;
    r.test = "sign flips, sampled";
    r.p = sign_flip_sampled(differences, resamples);
}

// margin: of equality, in points; 0: not asked for
inline PairResult compare_arms(const std::vector<Arm>& arms, size_t a, size_t b, const std::string& set,
                               const Metric& metric, double margin, int resamples) {
    PairResult r;
    r.a = a, r.b = b;
    const std::vector<std::string> problems = shared_problems({&arms[a], &arms[b]}, set, metric);
    r.problems = (int)problems.size();
    if (problems.empty()) return r;
    const Runs first = values_of(arms[a], set, problems, metric), second = values_of(arms[b], set, problems, metric);
    const std::vector<double> differences = differences_of(first, second);
    r.first = mean_of(over_seeds(first)), r.second = mean_of(over_seeds(second));
    for (const double d : differences) (d > 1e-9 ? r.wins : d < -1e-9 ? r.losses : r.ties)++;
    r.estimate = seeds_estimate(first, second);
    r.seeds = first.size() > 1 || second.size() > 1;
    if (r.seeds) {
        r.interval = r.estimate.interval();
        r.bootstrap = percentile_interval(hierarchical_bootstrap(first, second, resamples));
        r.test = "Student's t over seeds and problems";
        r.p = r.estimate.p();
    } else {
        r.interval = percentile_interval(bootstrap_means(differences, resamples));
        test_runs(r, arms[a], arms[b], set, problems, metric, differences, resamples);
    }
    const bool alike = r.wins + r.losses == 0;  // of no spread: what does not differ in n problems may in others
    if (margin > 0.0 && (alike || r.test == "McNemar"))
        r.equality = mcnemar_equality_p(r.problems, r.wins, r.losses, margin / 100.0);
    else if (margin > 0.0) r.equality = r.estimate.equality_p(margin / 100.0);
    const auto strict = [](const Graded& g) { return g.strict; };
    r.greedy = mean_share(arms[b], set, problems, false, strict) - mean_share(arms[a], set, problems, false, strict);
    return r;
}

// percent with one digit; "-" without a number
inline std::string percent_text(double share) {
    return std::isnan(share) ? std::string("-") : format("%.1f", 100 * share);
}

// "0.0321", "2e-05"
inline std::string p_text(double p) { return format(p >= 0.0001 ? "%.4f" : "%.0e", p); }

// in words, for b against a. A difference counts when both its interval and its adjusted p say so.
inline std::string verdict_of(const PairResult& r, double margin, const std::string& b) {
    const double points = 100.0 * r.estimate.value;
    const bool equal = margin > 0.0 && r.equality_holm < 0.05;
    const std::string within = format("within %g points", margin);
    if (r.wins + r.losses == 0) return "the same on every problem";
    if (r.p_holm < 0.05 && (r.interval.low > 0.0 || r.interval.high < 0.0)) {
        const std::string word = b + (points > 0.0 ? " is better" : " is worse");
        if (equal) return word + ", and equal " + within;
        return std::fabs(points) < 1.0 ? word + ", by less than a point" : word;
    }
    return equal ? "equal " + within : "undecided";
}

// ---------------------------------------------------------------------------------------------------------------------
// all of it

struct SetComparison {
    std::string set;
    Metric metric;
    std::vector<ArmResult> arms;
    std::vector<PairResult> pairs;   // that share problems
    std::vector<std::string> notes;  // what one has to know to read it
};

struct CompareConfig {
    std::string metric = "auto", set;  // set: empty: all
    bool all_pairs = false;
    std::vector<std::pair<size_t, size_t>> pairs = {};  // these alone, each against its first; none: see all_pairs
    double margin = 0.0;
    int resamples = 10000;
};

inline bool has_sampled(const Arm& arm, const std::string& set) {
    for (const Evaluation& run : arm.runs) {
        const SetResult* results = find_set(run, set);
        bool any = false;
        if (results)
            for (const auto& item : *results) any = any || item.second.sampled.samples > 0;
        if (!any) return false;
    }
    return true;
}

inline bool has_set(const Arm& arm, const std::string& set) {
    for (const Evaluation& run : arm.runs)
        if (find_set(run, set)) return true;
    return false;
}

// what arm i says beside its number
inline void note_arm(SetComparison& c, const Arm& arm, const ArmResult& a) {
    for (const Evaluation& run : arm.runs) {
        const SetResult* results = find_set(run, c.set);
        const size_t own = results ? results->size() : 0;
        const std::string path = arm.name + " " + printable(run.path, 400);
        if (own == 0) c.notes.push_back(path + " has no problem of this set");
        else if (own != (size_t)a.problems)
            c.notes.push_back(format("%s has %zu problems, of which %d have %s%s", path.c_str(), own, a.problems,
                                     c.metric.name().c_str(), arm.runs.size() > 1 ? " in all runs of the arm" : ""));
    }
    if (a.fewest != a.most)
        c.notes.push_back(format("%s has %d to %d completions a problem", arm.name.c_str(), a.fewest, a.most));
}

inline void note_pair(SetComparison& c, const std::vector<Arm>& arms, const PairResult& r) {
    const ArmResult &a = c.arms[r.a], &b = c.arms[r.b];
    const char *first = arms[r.a].name.c_str(), *second = arms[r.b].name.c_str();
    if (r.problems == 0) {
        if (a.problems > 0 && b.problems > 0)
            c.notes.push_back(format("%s has %d problems and %s %d, and they share none: not compared", first,
                                     a.problems, second, b.problems));
        return;
    }
    if (r.problems != a.problems || r.problems != b.problems)
        c.notes.push_back(
            format("%s has %d problems and %s %d: compared on the %d that both have, where %s has %.1f and %s "
                   "%.1f",
                   first, a.problems, second, b.problems, r.problems, first, 100 * r.first, second, 100 * r.second));
    if (a.most != b.most)
        c.notes.push_back(format("%s has %d completions a problem and %s %d", first, a.most, second, b.most));
}

inline SetComparison compare_set(const std::vector<Arm>& arms, const std::string& set, const CompareConfig& config) {
    SetComparison c;
    c.set = set;
    bool sampled = true;
    for (const Arm& arm : arms) sampled = sampled && (!has_set(arm, set) || has_sampled(arm, set));
    c.metric = metric_named(config.metric, sampled);
    for (const Arm& arm : arms) {
        c.arms.push_back(arm_result(arm, set, c.metric));
        if (has_set(arm, set)) note_arm(c, arm, c.arms.back());
        else c.notes.push_back(arm.name + " does not have this set");
    }
    std::vector<std::pair<size_t, size_t>> pairs = config.pairs;
    for (size_t a = 0; config.pairs.empty() && a < (config.all_pairs ? arms.size() : 1); a++)
        for (size_t b = a + 1; b < arms.size(); b++) pairs.push_back({a, b});
    for (const auto& [a, b] : pairs) {
        const PairResult r = compare_arms(arms, a, b, set, c.metric, config.margin, config.resamples);
        note_pair(c, arms, r);
        if (r.problems > 0) c.pairs.push_back(r);
    }
    return c;
}

// Holm's p over all pairs of all sets
inline void adjust_pairs(std::vector<SetComparison>& sets) {
    std::vector<double> p, equality;
    for (const SetComparison& c : sets)
        for (const PairResult& r : c.pairs) p.push_back(r.p), equality.push_back(r.equality);
    p = holm(p), equality = holm(equality);
    size_t i = 0;
    for (SetComparison& c : sets)
        for (PairResult& r : c.pairs) r.p_holm = p[i], r.equality_holm = equality[i], i++;
}

// Fails if no two arms share a problem.
inline std::vector<SetComparison> compare_evaluations(const std::vector<Arm>& arms, const CompareConfig& config) {
    std::set<std::string> names;
    for (const Arm& arm : arms)
        for (const Evaluation& run : arm.runs)
            for (const auto& set : run.sets) names.insert(set.first);
    if (!config.set.empty() && !names.count(config.set)) {
        const std::vector<std::string> known(names.begin(), names.end());
        fail_usage("--set %s: no evaluation has it; they have %s%s", printable(config.set).c_str(),
                   printable(join_words(known), 400).c_str(), did_you_mean(config.set, known).c_str());
    }
    std::vector<SetComparison> sets;
    size_t pairs = 0;
    for (const std::string& set : names) {
        if (!config.set.empty() && set != config.set) continue;
        sets.push_back(compare_set(arms, set, config));
        pairs += sets.back().pairs.size();
    }
    if (pairs == 0) {
        const SetComparison& c = sets.front();
        fail("nothing to compare: no two evaluations share a problem with %s; set %s: %s", c.metric.name().c_str(),
             shown(c.set).c_str(), printable(join_words(c.notes, "; "), 400).c_str());
    }
    adjust_pairs(sets);
    return sets;
}
