// Sample completions of a run, token by token (samples.jsonl, train/token_samples.cuh), or as texts where there are none
// (completions.jsonl, of which the first and the last bytes are read: it may be large). What a reader without colours sees: an
// unlikely token is underlined, the less likely the more; the numbers are in titles and, of the least likely tokens, in the text.
#pragma once
#include "report_figures.h"

static constexpr size_t REPORT_SAMPLE_STEPS = 6, REPORT_FIRST_TOKENS = 40, REPORT_LAST_TOKENS = 160;
static constexpr size_t REPORT_COMPLETIONS_BYTES = 1 << 18;  // of each end of completions.jsonl

inline std::vector<double> numbers_at(const nlohmann::ordered_json& j, const char* key) {
    std::vector<double> v;
    if (j.is_object() && j.contains(key) && j[key].is_array())
        for (const auto& x : j[key]) v.push_back(x.is_number() ? x.get<double>() : NAN);
    return v;
}

// 0: as likely as not to need no mark; 4: hardly ever drawn
inline int unlikely_level(double logp) {
    const double p = std::exp(logp);
    return !std::isfinite(logp) || p >= 0.9 ? 0 : p >= 0.5 ? 1 : p >= 0.1 ? 2 : p >= 0.01 ? 3 : 4;
}

struct TokenNumbers {
    std::vector<double> logp, sampler, advantage, entropy;  // advantage: of one entry, that of all tokens
    double largest = 0.0;                                   // |advantage| of the group
    double advantage_of(size_t t) const {
        return advantage.empty() ? NAN : advantage[std::min(t, advantage.size() - 1)];
    }
};

inline std::string token_html(const std::string& text, const TokenNumbers& n, size_t t) {
    auto at = [&](const std::vector<double>& v) { return t < v.size() ? v[t] : NAN; };
    const double logp = at(n.logp), a = n.advantage_of(t);
    std::string classes = "t", title;
    if (unlikely_level(logp)) classes += format(" p%d", unlikely_level(logp));
    if (a != 0.0 && std::isfinite(a))
        classes += format(" %s%d", a > 0 ? "u" : "d", std::fabs(a) >= 0.5 * n.largest ? 2 : 1);
    if (std::isfinite(logp)) title += format("p %.3g", std::exp(logp));
    if (std::isfinite(at(n.sampler))) title += format(", sampler %.3g", std::exp(at(n.sampler)));
    if (std::isfinite(a)) title += format(", advantage %+.3g", a);
    if (std::isfinite(at(n.entropy))) title += format(", entropy %.2g", at(n.entropy));
    return "<span class=\"" + classes + "\" title=\"" + title + "\">" + html_escape(escape_controls(text, "\n\t")) +
           "</span>";
}

// "least likely: "7" (token 12, p 0.03), ..."
inline std::string least_likely(const std::vector<std::string>& tokens, const std::vector<double>& logp,
                                size_t skipped) {
    std::vector<size_t> order;
    for (size_t t = 0; t < std::min(tokens.size(), logp.size()); t++)
        if (unlikely_level(logp[t])) order.push_back(t);
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return logp[a] < logp[b]; });
    if (order.size() > 5) order.resize(5);
    std::string s;
    for (size_t t : order)
        s += format("%s<code>%s</code> (token %zu, p %.3g)", s.empty() ? "Least likely: " : ", ",
                    html_text(tokens[t], 60).c_str(), t + 1 + (t >= 64 ? skipped : 0), std::exp(logp[t]));
    return s.empty() ? "" : "<p class=\"soft\">" + s + ".</p>\n";
}

// what stands above a completion: its rewards, advantage and length
inline std::string completion_head(const nlohmann::ordered_json& c, int number) {
    std::string s = format("Completion %d", number);
    auto add = [&](const std::string& name, double v, const char* form) {
        if (std::isfinite(v)) s += ", " + html_text(name, 60) + " " + format(form, v);
    };
    add("reward", number_at(c, "reward"), "%.4g");
    add("advantage", number_at(c, "advantage"), "%+.3g");
    if (c.contains("rewards") && c["rewards"].is_object())
        for (const auto& item : c["rewards"].items()) add(item.key(), number_at(c["rewards"], item.key()), "%.4g");
    add("tokens", number_at(c, "length"), "%.0f");
    if (c.contains("finished") && c["finished"].is_boolean()) s += c["finished"] ? ", ended" : ", cut off";
    return s;
}

inline std::string completion_html(const nlohmann::ordered_json& c, int number, double largest) {
    const double a = number_at(c, "advantage", 0.0);
    std::string s = format("<div class=\"sample%s\">\n<h4>", a > 0 ? " plus" : a < 0 ? " minus" : "");
    s += completion_head(c, number) + "</h4>\n";
    std::vector<std::string> tokens;
    for (const auto& t : c["tokens"]) tokens.push_back(t.is_string() ? t.get<std::string>() : "");
    TokenNumbers n{numbers_at(c, "logp"), numbers_at(c, "sampler_logp"), numbers_at(c, "advantages"),
                   numbers_at(c, "entropy"), largest};
    if (n.advantage.empty()) n.advantage = {a};
    const size_t skipped = (size_t)std::min(std::max(number_at(c, "skipped", 0.0), 0.0), 1e9);
    s += "<div class=\"text\" tabindex=\"0\" dir=\"auto\" role=\"group\" aria-label=\"Completion, token by token\">";
    const size_t size = tokens.size(), most = REPORT_FIRST_TOKENS + REPORT_LAST_TOKENS;
    for (size_t t = 0; t < size; t++) {
        const bool left_out = size > most && t >= REPORT_FIRST_TOKENS && t < size - REPORT_LAST_TOKENS;
        if (left_out && t == REPORT_FIRST_TOKENS) s += format(" [... %zu tokens left out ...] ", size - most + skipped);
        if (!left_out) s += token_html(elided(tokens[t], 100, 100), n, t);
    }
    return s + "</div>\n<p class=\"read\" aria-live=\"polite\"></p>\n" + least_likely(tokens, n.logp, skipped) +
           "</div>\n";
}

// Of a line of samples.jsonl
inline std::string sample_html(const nlohmann::ordered_json& j) {
    std::string s =
        format("<h3>Step %.0f</h3>\n<p>Question:</p><div class=\"text\" dir=\"auto\">", number_at(j, "step"));
    s += html_block(text_at(j, "prompt"), 400, 1200) + "</div>\n";
    if (!text_at(j, "gold").empty())
        s += "<p>Gold answer: <code>" + html_text(text_at(j, "gold"), 400) + "</code></p>\n";
    if (!j.contains("completions") || !j["completions"].is_array()) return s;
    double largest = 0.0;
    for (const auto& c : j["completions"]) {
        largest = std::max(largest, std::fabs(number_at(c, "advantage", 0.0)));
        for (double a : numbers_at(c, "advantages")) largest = std::max(largest, std::isfinite(a) ? std::fabs(a) : 0.0);
    }
    int shown = 0;
    for (const auto& c : j["completions"])
        if (c.is_object() && c.contains("tokens") && c["tokens"].is_array() && shown++ < 8)
            s += completion_html(c, (int)number_at(c, "sample", shown - 1) + 1, largest);
    return s;
}

// lines of a file within its first or its last bytes
inline std::vector<nlohmann::ordered_json> lines_at_end(const std::string& path, bool last) {
    std::vector<nlohmann::ordered_json> list;
    std::ifstream in(path, std::ios::binary | std::ios::ate);
    if (!in) return list;
    const size_t size = (size_t)in.tellg(), n = std::min(size, REPORT_COMPLETIONS_BYTES);
    std::string text(n, '\0');
    in.seekg((std::streamoff)(last ? size - n : 0));
    in.read(&text[0], (std::streamsize)n);
    size_t at = last && n < size ? text.find('\n') + 1 : 0;
    for (size_t end; (end = text.find('\n', at)) != std::string::npos; at = end + 1) {
        nlohmann::ordered_json j;
        JsonFault fault;
        if (json_read(std::string_view(text).substr(at, end - at), {}, &j, &fault) && j.is_object()) list.push_back(j);
    }
    return list;
}

// Up to four completions of one question at one end of completions.jsonl
inline std::string texts_html(const std::string& path, bool last) {
    std::vector<nlohmann::ordered_json> lines = lines_at_end(path, last);
    if (last) std::reverse(lines.begin(), lines.end());
    std::string s;
    int shown = 0;
    for (const nlohmann::ordered_json& j : lines) {
        if (number_at(j, "step") != number_at(lines[0], "step") || text_at(j, "prompt") != text_at(lines[0], "prompt"))
            break;
        if (shown++ == 4) break;
        if (shown == 1) {
            s += std::isfinite(number_at(j, "step")) ? format("<h3>Step %.0f</h3>\n", number_at(j, "step"))
                                                     : "<h3>Completions</h3>\n";
            s += "<p>Question:</p><div class=\"text\" dir=\"auto\">" + html_block(text_at(j, "prompt"), 400, 1200) +
                 "</div>\n";
            s += "<p>Gold answer: <code>" + html_text(text_at(j, "gold"), 400) + "</code></p>\n";
        }
        s += "<div class=\"sample\">\n<h4>" + completion_head(j, shown) + "</h4>\n<div class=\"text\" dir=\"auto\">" +
             html_block(text_at(j, "completion"), 300, 1500) + "</div></div>\n";
    }
    return s;
}

// "": the run has none
inline std::string samples_html(const ReportRun& r) {
    if (r.samples.empty()) {
        const std::string path = r.path + "/completions.jsonl";
        const std::string first = texts_html(path, false), last = texts_html(path, true);
        return first == last ? first : first + last;
    }
    std::string s =
        "<p class=\"key\">Underlined is what the policy thought less likely: <span class=\"p1\">below 0.9</span>, "
        "<span class=\"p2\">below 0.5</span>, <span class=\"p3\">below 0.1</span>, <span class=\"p4\">below "
        "0.01</span>. "
        "Shaded is the advantage of a token: <span class=\"u2\">above 0</span>, <span class=\"d2\">below 0</span>, "
        "paler below half of the group's largest. Every token has its numbers in its title; with the arrow keys they "
        "are read out below the completion.</p>\n";
    for (size_t i : spread_places(r.samples.size(), REPORT_SAMPLE_STEPS)) {
        nlohmann::ordered_json j;
        JsonFault fault;
        if (json_read(r.samples[i].second, {}, &j, &fault)) s += sample_html(j);
    }
    return s;
}
