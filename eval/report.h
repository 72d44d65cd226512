// report.html of one run: what came out, warnings, curves, samples, options, machine, files. docs/report.md says what is drawn
// from which file. The same bytes for the same files.
#pragma once
#include "../runtime/options.h"
#include "../runtime/progress.h"
#include "report_samples.h"
#include "statistics.h"

// ---------------------------------------------------------------------------------------------------------------------
// what came out

// A number of an evaluation with its interval
struct HeldOut {
    double value = NAN, low = NAN, high = NAN, error = NAN;
    bool known() const { return std::isfinite(value); }
};

inline HeldOut held_out(const nlohmann::ordered_json& j, const std::string& metric) {
    HeldOut h;
    h.value = number_at(j, metric);
    h.error = number_at(j, metric + "_standard_error");
    interval_at(j, metric + "_interval", &h.low, &h.high);
    return h;
}

// what a run is judged by: the first of these that its evaluations have; "": nothing
inline std::string headline_metric(const std::vector<nlohmann::ordered_json>& evaluations) {
    for (const char* metric : {"pass@1", "greedy", "log_loss"})
        for (const nlohmann::ordered_json& e : evaluations)
            if (std::isfinite(number_at(e, metric)) ||
                (e.contains("measured") && std::isfinite(number_at(e["measured"], metric))))
                return metric;
    return "";
}

// of an evaluation by its time: "before", "after", "last" (the last but that of the best weights)
inline HeldOut held_out_when(const std::vector<nlohmann::ordered_json>& evaluations, const std::string& metric,
                             const std::string& when, std::string* found = nullptr) {
    HeldOut h;
    for (const nlohmann::ordered_json& e : evaluations) {
        const std::string at = text_at(e, "when");
        if (when == "last" ? at == "best" || at == "before" : at != when) continue;
        const bool text = metric == "log_loss";
        if (text && !e.contains("measured")) continue;
        h = held_out(text ? e["measured"] : e, metric);
        if (found) *found = at;
    }
    return h;
}

// Of two evaluations with the same problems, as if these were others: an interval that is rather too wide
inline HeldOut held_out_difference(const HeldOut& a, const HeldOut& b) {
    HeldOut d;
    d.value = b.value - a.value;
    d.error = std::sqrt(a.error * a.error + b.error * b.error);
    const double half = normal_quantile(0.975) * d.error;
    d.low = d.value - half, d.high = d.value + half;
    return d;
}

// "43.3 % [38.4, 48.2]"; log-loss as it is
inline std::string held_out_text(const HeldOut& h, const std::string& metric, bool sign = false) {
    if (!h.known()) return "\xE2\x80\x93";
    if (metric == "log_loss") return format(sign ? "%+.4f" : "%.4f", h.value);
    const char* form = sign ? "%+.1f" : "%.1f";
    std::string s = format(form, 100 * h.value) + (sign ? " points" : " %");
    if (std::isfinite(h.low)) s += " [" + format(form, 100 * h.low) + ", " + format(form, 100 * h.high) + "]";
    return s;
}
// the same in a tile, the interval below
inline std::string held_out_tile(const HeldOut& h, const std::string& metric, bool sign = false) {
    std::string s = held_out_text(h, metric, sign);
    const size_t at = s.find(" [");
    return at == std::string::npos ? s : s.substr(0, at) + " <small>" + s.substr(at + 1) + "</small>";
}

inline std::string seconds_text(double seconds) {
    return std::isfinite(seconds) ? duration_text(seconds) : "\xE2\x80\x93";
}

inline double run_seconds(const ReportRun& r) {
    const double whole = number_at(r.summary, "wall_seconds");
    if (std::isfinite(whole)) return whole;
    const auto at = r.numbers.find("step_time");
    double sum = 0.0;
    if (at != r.numbers.end())
        for (double v : at->second.y) sum += std::isfinite(v) ? v : 0.0;
    return at == r.numbers.end() ? NAN : sum;
}

// the mean over the last tenth of the logged steps
inline double final_mean(const ReportRun& r, const std::string& key) {
    const auto at = r.numbers.find(key);
    if (at == r.numbers.end()) return NAN;
    const std::vector<double>& y = at->second.y;
    const size_t n = std::max<size_t>(y.size() / 10, 1);
    double sum = 0.0, count = 0.0;
    for (size_t i = y.size() - std::min(n, y.size()); i < y.size(); i++)
        if (std::isfinite(y[i])) sum += y[i], count++;
    return count ? sum / count : NAN;
}

inline std::string run_model(const ReportRun& r) {
    const std::string model = text_at(r.config, "model");
    return model.empty() ? "the embedded model" : model;
}

inline std::string run_state(const ReportRun& r) {
    if (r.summary.is_null()) return "has not ended, or was killed";
    if (r.summary.contains("stopped") && r.summary["stopped"].is_boolean() && r.summary["stopped"].get<bool>())
        return "was stopped";
    return "ended";
}

inline std::string tile(const std::string& what, const std::string& value, const std::string& more = "") {
    return "<li><span>" + what + "</span><b>" + value + "</b>" + (more.empty() ? "" : "<span>" + more + "</span>") +
           "</li>\n";
}

inline std::string headline_html(const ReportRun& r) {
    const std::vector<nlohmann::ordered_json> evaluations = report_evaluations(r);
    const std::string metric = headline_metric(evaluations), name = metric == "log_loss" ? "log-loss" : metric;
    std::string when, s = "<ul class=\"tiles\">\n";
    if (!metric.empty()) {
        const HeldOut before = held_out_when(evaluations, metric, "before");
        const HeldOut after = held_out_when(evaluations, metric, "last", &when);
        const HeldOut best = held_out_when(evaluations, metric, "best");
        if (before.known()) s += tile("Held out before: " + name, held_out_tile(before, metric));
        if (after.known()) s += tile("Held out, " + html_text(when) + ": " + name, held_out_tile(after, metric));
        if (best.known()) s += tile("Held out, best weights: " + name, held_out_tile(best, metric));
        if (before.known() && after.known())
            s += tile("Difference", held_out_tile(held_out_difference(before, after), metric, true),
                      metric == "log_loss" ? "" : "as of independent problems; train_qrl compare pairs them");
    }
    if (std::isfinite(final_mean(r, "reward")))
        s += tile("Reward, last tenth of the steps", number_text(final_mean(r, "reward")));
    if (metric.empty() && std::isfinite(final_mean(r, "loss")))
        s += tile("Loss, last tenth of the steps", number_text(final_mean(r, "loss")));
    std::string quantizer = text_at(r.summary, "weights", text_at(r.config, "weights", "none"));
    for (const char* other : {"activations", "kv_cache"}) {
        const std::string text = text_at(r.config, other, "none");
        if (text != "none") quantizer += std::string(", ") + other + " " + text;
    }
    s += tile("Model", html_text(run_model(r), 200));
    s += tile("Quantizer of the weights", html_text(quantizer, 300));
    const double steps = std::max(r.last_step(), number_at(r.summary, "steps", 0.0));
    s += tile("Steps", format("%.0f", steps), "the run " + run_state(r));
    s += tile("Time", seconds_text(run_seconds(r)), r.summary.is_null() ? "of the logged steps" : "");
    const double seed = number_at(r.config, "seed");
    if (std::isfinite(seed)) s += tile("Seed", html_text(r.config["seed"].dump()));
    s += "</ul>\n";
    if (evaluations.empty()) return s;
    std::vector<HtmlRow> rows;
    for (const nlohmann::ordered_json& e : evaluations) {
        rows.push_back({html_text(text_at(e, "when"))});
        for (const char* m : {"pass@1", "greedy"}) rows.back().push_back(held_out_text(held_out(e, m), m));
        const nlohmann::ordered_json none;
        const auto& full = e.contains("full_precision") ? e["full_precision"] : none;
        rows.back().push_back(held_out_text(held_out(full, "pass@1"), "pass@1"));
        rows.back().push_back(number_text(number_at(e, "reward")));
        const auto& texts = e.contains("measured") ? e["measured"] : none;
        for (const char* m : {"log_loss", "kl"}) rows.back().push_back(number_text(number_at(texts, m)));
        rows.back().push_back(number_text(number_at(e, "problems")));
    }
    if (rows.size() > 60) rows.erase(rows.begin() + 30, rows.end() - 30);
    return s + html_details("All evaluations", html_table("Evaluations of what is held out",
                                                          {"when", "pass@1", "greedy", "pass@1 in full precision",
                                                           "reward", "log-loss", "KL from the teacher", "problems"},
                                                          rows));
}

// ---------------------------------------------------------------------------------------------------------------------
// options, machine, files

// name -> text of the options in force and of their defaults, for the run's command
inline std::vector<std::array<std::string, 3>> report_options(const nlohmann::ordered_json& config) {
    std::vector<std::array<std::string, 3>> list;
    Options defaults;
    for (int c = 0; c < COMMAND_COUNT; c++)
        if (text_at(config, "command") == command_rows[c].name) defaults.command = (Command)c;
    resolve_options(defaults);
    const nlohmann::ordered_json normal = options_to_json(defaults);
    auto text = [](const nlohmann::ordered_json& v) {
        return v.is_string() ? v.get<std::string>() : v.is_null() ? std::string("unset") : v.dump();
    };
    for (const auto& item : config.items()) {
        if (is_about_run(item.key())) continue;
        const bool known = normal.contains(item.key());
        list.push_back({item.key(), text(item.value()), known ? text(normal[item.key()]) : "\xE2\x80\x93"});
    }
    return list;
}

inline std::string options_html(const nlohmann::ordered_json& config) {
    if (!config.is_object()) return "<p>There is no config.json.</p>\n";
    std::vector<HtmlRow> differ, all;
    auto cell = [](const std::string& s) { return s.empty() ? std::string("(empty)") : html_text(s, 600); };
    for (const auto& [name, value, normal] : report_options(config)) {
        const HtmlRow row = {"<code>--" + html_text(name, 80) + "</code>", cell(value), cell(normal)};
        if (value != normal) differ.push_back(row);
        all.push_back(row);
    }
    const HtmlRow head = {"option", "value", "default"};
    std::string s = differ.empty() ? "<p>All options are at their defaults.</p>\n"
                                   : html_table("Options that differ from the default", head, differ, "words");
    return s + html_details(format("All %zu options", all.size()), html_table("All options", head, all, "words"));
}

inline std::string machine_html(const ReportRun& r) {
    std::vector<HtmlRow> rows = {{"version", html_text(text_at(r.config, "version", "not known"))}};
    if (r.config.is_object() && r.config.contains("machine") && r.config["machine"].is_object())
        for (const auto& item : r.config["machine"].items())
            rows.push_back(
                {html_text(item.key(), 80),
                 html_text(item.value().is_string() ? item.value().get<std::string>() : item.value().dump())});
    const double memory = number_at(r.summary, "peak_rss_bytes");
    if (std::isfinite(memory)) rows.push_back({"peak memory", format("%.0f MiB", memory / 1048576.0)});
    if (!text_at(r.config, "run_id").empty()) rows.push_back({"run", html_text(text_at(r.config, "run_id"))});
    return html_table("Machine and build", {"", ""}, rows, "words");
}

inline std::string files_html(const ReportRun& r) {
    std::vector<HtmlRow> rows;
    for (const std::string& file : r.files) {
        const size_t tab = file.find('\t');
        rows.push_back({"<code>" + html_text(file.substr(0, tab)) + "</code>", file.substr(tab + 1)});
    }
    return html_table("Files in " + html_text(r.path, 200), {"file", "size"}, rows);
}

// warnings of the run, and what the report lacks
inline std::string warnings_html(const ReportRun& r) {
    std::string s;
    for (const nlohmann::ordered_json& w : r.warnings)
        s += format("<p class=\"warning\"><strong>Warning, step %.0f:</strong> ", number_at(w, "step")) +
             html_text(text_at(w, "text"), 600) + "</p>\n";
    for (const std::string& note : r.notes) s += "<p class=\"warning\">Note: " + html_text(note, 600) + "</p>\n";
    return s;
}

// ---------------------------------------------------------------------------------------------------------------------
// an evaluation (results.json)

inline std::string results_html(const nlohmann::ordered_json& results) {
    std::vector<HtmlRow> rows;
    if (results.is_object() && results.contains("results") && results["results"].is_object())
        for (const auto& set : results["results"].items()) {
            HtmlRow row = {html_text(set.key(), 80)};
            for (const char* filter : {"strict", "lenient"})
                for (const char* metric : {"greedy", "pass@1"}) {
                    HeldOut h;
                    h.value = number_at(set.value(), format("%s,%s", metric, filter));
                    interval_at(set.value(), format("%s_interval,%s", metric, filter), &h.low, &h.high);
                    row.push_back(held_out_text(h, metric));
                }
            row.push_back(number_text(number_at(set.value(), "mean_length,none")));
            rows.push_back(row);
        }
    return html_table("Results", {"set", "greedy", "pass@1", "greedy, lenient", "pass@1, lenient", "mean length"},
                      rows);
}

// ---------------------------------------------------------------------------------------------------------------------

inline std::string report_page(const ReportRun& r) {
    const std::string name = std::filesystem::path(r.path).filename().string();
    const std::string shown_name = name.empty() || name == "." || name == ".." ? r.path : name;
    const std::string command = text_at(r.config, "command", "run");
    std::vector<PageSection> sections;
    if (!r.results.is_null()) sections.push_back({"results", "Results", results_html(r.results)});
    else sections.push_back({"summary", "What came out", headline_html(r)});
    const std::string warnings = warnings_html(r);
    if (!warnings.empty()) sections.push_back({"warnings", "Warnings and notes", warnings});
    const std::string curves = figures_html(r);
    if (!curves.empty()) sections.push_back({"curves", "Curves", curves});
    const std::string samples = samples_html(r);
    if (!samples.empty()) sections.push_back({"samples", "Sample completions", samples});
    sections.push_back({"options", "Options", options_html(r.config)});
    sections.push_back({"machine", "Machine and build", machine_html(r)});
    sections.push_back({"files", "Files", files_html(r)});
    return html_page(html_text(command + " " + shown_name, 120) + " \xC2\xB7 train_qrl", html_text(shown_name, 120),
                     html_text(command + " of " + run_model(r), 300), sections);
}

// Writes RUN/report.html, or another file. Of a page that is there only one that this program wrote is replaced
inline void report_write(const std::string& path, const std::string& page) {
    if (file_exists(path)) {
        std::ifstream in(path, std::ios::binary);
        std::string start(400, '\0');
        in.read(&start[0], 400);
        if (start.find("content=\"train_qrl report\"") == std::string::npos)
            fail("%s is no report of this program, so it is not replaced; move it, or name another file with --output",
                 path.c_str());
    }
    write_file_atomic(path, page);
}

// A folder that an older version wrote does not list the page among its files
inline void report_mark(const std::string& folder) {
    std::set<std::string> names = written_names(folder, WrittenKind::run);
    if (!names.empty() && names.insert("report.html").second) mark_written(folder, WrittenKind::run, names);
}
