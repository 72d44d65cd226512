// What a run left in its folder, as its report reads it (docs/report.md): also of a run that is still being written, that was
// killed in mid-line, or that an older version wrote, whose folder lacks things. What cannot be read is counted and told.
//
// The trap: metrics.jsonl of a long run is large, and its report is made again at each evaluation. A ReportRun that is kept
// reads on from where it was (report_read), and of what is logged by tensor it keeps REPORT_MOST_ROWS steps at the most.
#pragma once
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <string>
#include <vector>
#include "../runtime/json.h"
#include "../runtime/run_dir.h"
#include "../runtime/words.h"

static constexpr size_t REPORT_MOST_ROWS = 1024, REPORT_MOST_TEXTS = 64;

// A log that grows: complete lines are read once
struct LogReader {
    std::string name;  // within the folder
    uint64_t at = 0;
    int unread = 0;        // lines that are no objects with a step, or not of a later one where they should be
    double step = -1e300;  // of the last line
    bool ascending = false;
};

// use(object, its line) for each complete line that is new
template <class Use>
inline void log_read(LogReader& log, const std::string& folder, const Use& use) {
    std::ifstream in(folder + "/" + log.name, std::ios::binary);
    if (!in || !in.seekg((std::streamoff)log.at)) return;
    for (std::string line; std::getline(in, line) && !in.eof();) {
        log.at += line.size() + 1;
        nlohmann::ordered_json j;
        JsonFault fault;
        const bool good = json_read(line, {}, &j, &fault) && j.is_object() && j.contains("step") &&
                          j["step"].is_number() && (!log.ascending || j["step"] > log.step);
        if (good) log.step = j["step"], use(j, line);
        else log.unread++;
    }
}

struct ReportSeries {
    std::vector<double> x, y;  // steps, and what was logged: NaN for null
};

// Numbers by tensor (code_flips.jsonl, quant_statistics.jsonl), as means over the tensors of a layer and of a kind
struct LayerLog {
    LogReader reader;
    std::vector<std::string> columns = {};
    std::vector<int> layers = {};         // their numbers
    std::vector<std::string> kinds = {};  // "q", "down"
    struct Row {
        double step;
        std::vector<double> values;  // [columns][layers, then kinds]
    };
    std::vector<Row> rows = {};
    size_t every = 1, seen = 0;  // of the lines so far every so many are kept, and the last
    size_t groups() const { return layers.size() + kinds.size(); }
    double value(size_t row, size_t column, size_t group) const { return rows[row].values[column * groups() + group]; }
};

struct ReportRun {
    std::string path;
    nlohmann::ordered_json config, summary, results;  // null: there is none that can be read
    std::vector<std::string> files;                   // what there is, with sizes, as text
    std::vector<std::string> notes;                   // what is missing or could not be read

    LogReader metrics{"metrics.jsonl"}, evaluation_log{"evaluations.jsonl"}, sample_log{"samples.jsonl"},
        warning_log{"warnings.jsonl"};
    std::vector<std::string> keys;  // of metrics, as they came
    std::map<std::string, ReportSeries> numbers;
    std::map<std::string, std::vector<double>> arrays;  // of the last line that has them
    std::vector<nlohmann::ordered_json> evaluations, warnings;
    LayerLog flips, grids;
    std::vector<std::pair<double, std::string>> samples;  // step and line
    size_t samples_every = 1, samples_seen = 0;

    double last_step() const { return metrics.step > -1.0 ? metrics.step : 0.0; }
};

// ---------------------------------------------------------------------------------------------------------------------
// numbers

inline double number_at(const nlohmann::ordered_json& j, const std::string& key, double otherwise = NAN) {
    return j.is_object() && j.contains(key) && j[key].is_number() ? j[key].get<double>() : otherwise;
}
inline std::string text_at(const nlohmann::ordered_json& j, const std::string& key, const std::string& otherwise = "") {
    return j.is_object() && j.contains(key) && j[key].is_string() ? j[key].get<std::string>() : otherwise;
}
// [low, high] of a key; false: none
inline bool interval_at(const nlohmann::ordered_json& j, const std::string& key, double* low, double* high) {
    if (!j.is_object() || !j.contains(key) || !j[key].is_array() || j[key].size() != 2 || !j[key][0].is_number() ||
        !j[key][1].is_number())
        return false;
    *low = j[key][0], *high = j[key][1];
    return true;
}

inline void report_metrics(ReportRun& r, const nlohmann::ordered_json& j) {
    const double step = j["step"];
    double timed = 0.0;
    bool any = false;
    auto put = [&](const std::string& key, double value) {
        auto [at, fresh] = r.numbers.try_emplace(key);
        if (fresh) r.keys.push_back(key);
        at->second.x.push_back(step), at->second.y.push_back(value);
    };
    for (const auto& item : j.items()) {
        const nlohmann::ordered_json& v = item.value();
        if (v.is_number() || v.is_null()) put(item.key(), v.is_null() ? NAN : v.get<double>());
        if (v.is_number() && item.key().rfind("timing_s/", 0) == 0) timed += v.get<double>(), any = true;
        if (!v.is_array()) continue;
        std::vector<double>& numbers = r.arrays[item.key()];
        numbers.clear();
        for (const auto& x : v) numbers.push_back(x.is_number() ? x.get<double>() : NAN);
    }
    const double all = number_at(j, "step_time");
    if (any && std::isfinite(all) && !j.contains("timing_s/rest")) put("timing_s/rest", std::max(all - timed, 0.0));
}

// "model.layers.12.mlp.down_proj.weight": 12, "down"; -1: of no layer
inline int tensor_layer(const std::string& name) {
    const size_t at = name.find("layers.");
    return at == std::string::npos ? -1 : atoi(name.c_str() + at + 7);
}
inline std::string tensor_kind(std::string name) {
    for (const char* end : {".weight", "_proj"})
        if (name.size() > strlen(end) && name.compare(name.size() - strlen(end), strlen(end), end) == 0)
            name.resize(name.size() - strlen(end));
    return name.substr(name.rfind('.') + 1);
}

// columns: those of a line that does not name its own
inline void layer_log_line(LayerLog& log, const nlohmann::ordered_json& j, const std::vector<std::string>& columns) {
    if (log.columns.empty()) {
        log.columns = columns;
        if (columns.empty() && j.contains("columns") && j["columns"].is_array())
            for (const auto& c : j["columns"]) log.columns.push_back(c.is_string() ? c.get<std::string>() : "");
        std::set<int> layers;
        for (const auto& item : j.items()) {
            if (item.key() == "step" || item.key() == "columns") continue;
            if (tensor_layer(item.key()) >= 0) layers.insert(tensor_layer(item.key()));
            const std::string kind = tensor_kind(item.key());
            if (std::find(log.kinds.begin(), log.kinds.end(), kind) == log.kinds.end()) log.kinds.push_back(kind);
        }
        log.layers.assign(layers.begin(), layers.end());
    }
    const size_t groups = log.groups(), n = log.columns.size();
    LayerLog::Row row{j["step"], std::vector<double>(n * groups, 0.0)};
    std::vector<double> counts(n * groups, 0.0);
    for (const auto& item : j.items()) {
        if (!item.value().is_array() || item.key() == "columns" || item.value().size() != n) continue;
        const auto layer = std::lower_bound(log.layers.begin(), log.layers.end(), tensor_layer(item.key()));
        const auto kind = std::find(log.kinds.begin(), log.kinds.end(), tensor_kind(item.key()));
        for (size_t c = 0; c < n; c++) {
            if (!item.value()[c].is_number()) continue;
            const double v = item.value()[c];
            auto add = [&](size_t group) { row.values[c * groups + group] += v, counts[c * groups + group]++; };
            if (layer != log.layers.end() && *layer == tensor_layer(item.key()))
                add((size_t)(layer - log.layers.begin()));
            if (kind != log.kinds.end()) add(log.layers.size() + (size_t)(kind - log.kinds.begin()));
        }
    }
    for (size_t i = 0; i < counts.size(); i++) row.values[i] = counts[i] ? row.values[i] / counts[i] : NAN;
    // the row before is kept only if it is one of every so many
    if (!log.rows.empty() && (log.seen - 1) % log.every) log.rows.pop_back();
    log.rows.push_back(std::move(row)), log.seen++;
    if (log.rows.size() <= REPORT_MOST_ROWS) return;
    std::vector<LayerLog::Row> half;
    for (size_t i = 0; i < log.rows.size(); i += 2) half.push_back(std::move(log.rows[i]));
    if (log.rows.size() % 2 == 0) half.push_back(std::move(log.rows.back()));
    log.rows = std::move(half), log.every *= 2;
}

// the same of lines that are kept as they are
inline void report_sample(ReportRun& r, double step, const std::string& line) {
    if (!r.samples.empty() && (r.samples_seen - 1) % r.samples_every) r.samples.pop_back();
    r.samples.push_back({step, line}), r.samples_seen++;
    if (r.samples.size() <= REPORT_MOST_TEXTS) return;
    std::vector<std::pair<double, std::string>> half;
    for (size_t i = 0; i < r.samples.size(); i += 2) half.push_back(std::move(r.samples[i]));
    if (r.samples.size() % 2 == 0) half.push_back(std::move(r.samples.back()));
    r.samples = std::move(half), r.samples_every *= 2;
}

// ---------------------------------------------------------------------------------------------------------------------
// the folder

// a run of an older version has no evaluations.jsonl; its summary and its metrics tell of them
inline std::vector<nlohmann::ordered_json> report_evaluations(const ReportRun& r) {
    if (!r.evaluations.empty()) return r.evaluations;
    std::vector<nlohmann::ordered_json> all;
    auto of_summary = [&](const char* when, double step) {
        nlohmann::ordered_json j;
        for (const auto& [part, into] : {std::pair("eval", ""), std::pair("held_out_text", "measured")}) {
            if (!r.summary.is_object() || !r.summary.contains(part) || !r.summary[part].is_object()) continue;
            const nlohmann::ordered_json& found = r.summary[part];
            if (!found.contains(when) || !found[when].is_object()) continue;
            if (*into) j[into] = found[when];
            else j.update(found[when]);
        }
        if (j.is_null()) return;
        j["step"] = step, j["when"] = when;
        all.push_back(j);
    };
    of_summary("before", 0.0);
    std::map<double, nlohmann::ordered_json> steps;
    for (const auto& [key, series] : r.numbers)
        for (size_t i = 0; key.rfind("eval_", 0) == 0 && i < series.x.size(); i++) {
            nlohmann::ordered_json& j = steps[series.x[i]];
            const std::string name = key.substr(5);
            const bool text = name == "log_loss" || name == "kl" || name == "agreement";
            if (std::isfinite(series.y[i])) (text ? j["measured"] : j)[name] = series.y[i];
        }
    for (auto& [step, j] : steps) {
        if (j.is_null()) continue;
        j["step"] = step, j["when"] = format("step %.0f", step);
        all.push_back(j);
    }
    of_summary("after", r.last_step());
    return all;
}

inline nlohmann::ordered_json report_json(ReportRun& r, const std::string& name) {
    const std::string path = r.path + "/" + name;
    if (!file_exists(path)) return nullptr;
    nlohmann::ordered_json j;
    JsonFault fault;
    if (json_read(read_file(path, 64u << 20), {}, &j, &fault) && j.is_object()) return j;
    r.notes.push_back(name + " cannot be read: " + (fault.why.empty() ? "it holds no object" : fault.why));
    return nullptr;
}

// what there is in the folder, and the names of checkpoints
inline void report_files(ReportRun& r) {
    r.files.clear();
    for (const std::string& name : run_file_names(r.path)) {
        std::error_code ec;
        const uintmax_t bytes = std::filesystem::file_size(r.path + "/" + name, ec);
        if (!ec && name != "report.html") r.files.push_back(name + "\t" + human_count((double)bytes) + "B");
    }
    for (int64_t step : checkpoint_steps(r.path)) r.files.push_back(format("checkpoint-%lld/\t", (long long)step));
}

// all that is new since the last time
inline void report_read(ReportRun& r) {
    r.notes.clear();
    r.config = report_json(r, "config.json");
    r.summary = report_json(r, "summary.json");
    r.results = report_json(r, "results.json");
    r.flips.reader.name = "code_flips.jsonl", r.grids.reader.name = "quant_statistics.jsonl";
    r.metrics.ascending = r.flips.reader.ascending = r.grids.reader.ascending = true;
    log_read(r.metrics, r.path, [&](const nlohmann::ordered_json& j, const std::string&) { report_metrics(r, j); });
    log_read(r.evaluation_log, r.path, [&](const nlohmann::ordered_json& j, const std::string&) {
        if (j.contains("when") && j["when"].is_string()) r.evaluations.push_back(j);
    });
    log_read(r.warning_log, r.path, [&](const nlohmann::ordered_json& j, const std::string&) {
        if (r.warnings.size() < 1000) r.warnings.push_back(j);
    });
    log_read(r.flips.reader, r.path, [&](const nlohmann::ordered_json& j, const std::string&) {
        layer_log_line(r.flips, j, {"now", "total"});
    });
    log_read(r.grids.reader, r.path,
             [&](const nlohmann::ordered_json& j, const std::string&) { layer_log_line(r.grids, j, {}); });
    log_read(r.sample_log, r.path,
             [&](const nlohmann::ordered_json& j, const std::string& line) { report_sample(r, j["step"], line); });
    report_files(r);
    for (const LogReader* log : {&r.metrics, &r.evaluation_log, &r.sample_log, &r.flips.reader, &r.grids.reader})
        if (log->unread)
            r.notes.push_back(format("%s: %d line%s could not be read or did not follow on the one before",
                                     log->name.c_str(), log->unread, log->unread == 1 ? "" : "s"));
    if (r.summary.is_null() && r.results.is_null())
        r.notes.push_back("there is no summary.json: the run has not ended, or it was killed");
}

// The run in a folder, as far as it is written. Fails with what is there instead
inline ReportRun report_open(const std::string& path) {
    ReportRun r;
    r.path = path;
    while (r.path.size() > 1 && r.path.back() == '/') r.path.pop_back();
    const char* folder = r.path.c_str();
    std::error_code ec;
    if (!std::filesystem::exists(r.path, ec))
        fail("%s: there is no such folder; give the --output_dir of a run", folder);
    if (!std::filesystem::is_directory(r.path, ec)) fail("%s is a file; give the folder of a run", folder);
    if (file_exists(r.path + "/trainer_state.json"))
        fail("%s is a checkpoint; give the folder of its run, %s", folder, parent_folder(r.path).c_str());
    if (!file_exists(r.path + "/config.json") && !file_exists(r.path + "/metrics.jsonl")) {
        std::vector<std::string> names;
        for (const auto& entry : std::filesystem::directory_iterator(r.path, ec))
            names.push_back(entry.path().filename().string());
        std::sort(names.begin(), names.end());
        if (names.size() > 5) names.resize(5), names.push_back("...");
        fail("%s holds no run: it has neither config.json nor metrics.jsonl%s%s", folder,
             names.empty() ? "; it is empty" : ", but ", printable(join_words(names), 200).c_str());
    }
    report_read(r);
    if (r.config.is_object() && r.config.contains("architectures"))
        fail("%s is a model, not a run; give the --output_dir of a run", folder);
    if (r.numbers.empty() && r.evaluations.empty() && r.results.is_null()) {
        std::string there;
        for (const std::string& file : r.files)
            there += (there.empty() ? "" : ", ") + file.substr(0, file.find('\t')) +
                     (file.back() == '\t' ? "" : " (" + file.substr(file.find('\t') + 1) + ")");
        fail("%s: no step and no evaluation is logged yet; there is %s%s", folder, there.c_str(),
             file_exists(r.path + "/drift.json") ? "; drift.json is what eval --against prints" : "");
    }
    return r;
}
