// HTML of reports: escaped text, tables, figures with their numbers, and the page around them. One file that fetches nothing,
// light or dark, for a phone, a wide screen and paper; what the script adds (numbers under a pointer or the arrow keys) stands
// in the tables, too.
//
// The trap: prompts, completions and options are anybody's text. It passes html_text(), which shows control characters and
// changes of direction as \x1B and \u202E; the page's policy forbids every request.
#pragma once
#include <map>
#include <string>
#include <vector>
#include "../runtime/printable.h"
#include "plot.h"
#include "report_style.h"

inline std::string html_escape(const std::string& s) {
    std::string out;
    for (char c : s) {
        if (c == '&') out += "&amp;";
        else if (c == '<') out += "&lt;";
        else if (c == '>') out += "&gt;";
        else if (c == '"') out += "&quot;";
        else if (c == '\'') out += "&#39;";
        else out += c;
    }
    return out;
}

// The first and the last bytes of a text, between characters; what is left out is counted. The end stays: answers stand there
inline std::string elided(const std::string& s, size_t first, size_t last) {
    if (s.size() <= first + last + 40) return s;
    auto inside = [&](size_t i) { return ((unsigned char)s[i] & 0xC0) == 0x80; };
    size_t from = s.size() - last;
    while (first > 0 && inside(first)) first--;
    while (from < s.size() && inside(from)) from++;
    return s.substr(0, first) + format(" [... %zu bytes left out ...] ", from - first) + s.substr(from);
}

// as the text of an element or the value of an attribute
inline std::string html_text(const std::string& s, size_t most = 2000) {
    return html_escape(escape_controls(elided(s, most / 4, most - most / 4)));
}
// of several lines, which stay
inline std::string html_block(const std::string& s, size_t first, size_t last) {
    return html_escape(escape_controls(elided(s, first, last), "\n\t"));
}

inline std::string number_text(double v) { return std::isfinite(v) ? format("%.4g", v) : std::string("\xE2\x80\x93"); }

// ---------------------------------------------------------------------------------------------------------------------
// tables: cells are HTML

typedef std::vector<std::string> HtmlRow;

// The first column names the row. words: columns whose text begins at the left, beside the first
inline std::string html_table(const std::string& caption, const HtmlRow& head, const std::vector<HtmlRow>& rows,
                              const char* classes = "") {
    std::string s = format("<div class=\"wide %s\" tabindex=\"0\" role=\"region\" aria-label=\"%s\"><table>", classes,
                           caption.c_str());
    s += "<caption>" + caption + "</caption><thead><tr>";
    for (const std::string& cell : head) s += "<th scope=\"col\">" + cell + "</th>";
    s += "</tr></thead><tbody>\n";
    for (const HtmlRow& row : rows) {
        s += "<tr>";
        for (size_t i = 0; i < row.size(); i++)
            s += i ? "<td>" + row[i] + "</td>" : "<th scope=\"row\">" + row[i] + "</th>";
        s += "</tr>\n";
    }
    return s + "</tbody></table></div>\n";
}

inline std::string html_details(const std::string& summary, const std::string& inner) {
    return "<details><summary>" + summary + "</summary>" + inner + "</details>\n";
}

// ---------------------------------------------------------------------------------------------------------------------
// figures

// numbers of all series by x; the same points that are drawn
inline std::string plot_table(const Plot& p) {
    HtmlRow head = {html_text(p.x.label)};
    for (const PlotSeries& s : p.series) head.push_back(html_text(s.name, 80));
    std::map<double, HtmlRow> rows;
    for (size_t k = 0; k < p.series.size(); k++) {
        const PlotSeries& s = p.series[k];
        for (size_t i = 0; i < s.x.size(); i++) {
            if (!std::isfinite(s.x[i])) continue;
            HtmlRow& row = rows[s.x[i]];
            row.resize(p.series.size() + 1);
            row[0] = format("%.6g", s.x[i]), row[k + 1] = number_text(s.y[i]);
            if (!s.low.empty() && std::isfinite(s.low[i]))
                row[k + 1] += format(" [%s, %s]", number_text(s.low[i]).c_str(), number_text(s.high[i]).c_str());
        }
    }
    std::vector<HtmlRow> list;
    for (auto& row : rows) list.push_back(std::move(row.second));
    return html_table(html_text(p.title), head, list, "numbers");
}

// note: HTML; may be empty
inline std::string plot_figure(Plot p, const std::string& note) {
    p.in_page = true, p.width = 420, p.height = 270;
    const std::string title = html_text(p.title, 120);
    std::string s = "<figure class=\"curve\" tabindex=\"0\" role=\"group\" aria-label=\"" + title + "\">\n<h4>" +
                    title + "</h4>\n" + plot_svg(p);
    s += "<p class=\"read\" aria-live=\"polite\"></p>\n";
    if (!note.empty()) s += "<figcaption>" + note + "</figcaption>\n";
    return s + html_details("Numbers", plot_table(p)) + "</figure>\n";
}

// ---------------------------------------------------------------------------------------------------------------------
// the page

struct PageSection {
    std::string id, title, body;
};

inline std::string html_page(const std::string& title, const std::string& heading, const std::string& under,
                             const std::vector<PageSection>& sections) {
    std::string s =
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
        "<meta name=\"generator\" content=\"train_qrl report\">\n"
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        "script-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'\">\n"
        "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
        "<meta name=\"color-scheme\" content=\"light dark\">\n<link rel=\"icon\" href=\"data:,\">\n<title>" +
        title + "</title>\n" + PLOT_STYLE + REPORT_STYLE +
        "</head>\n<body>\n<a class=\"skip\" href=\"#main\">Skip to the content</a>\n<header>\n<h1>" + heading +
        "</h1>\n<p>" + under + "</p>\n<nav aria-label=\"Sections\"><ul>";
    for (const PageSection& section : sections)
        s += "<li><a href=\"#" + section.id + "\">" + section.title + "</a></li>";
    s += "</ul></nav>\n</header>\n<main id=\"main\" tabindex=\"-1\">\n";
    for (const PageSection& section : sections)
        s += "<section id=\"" + section.id + "\" aria-labelledby=\"" + section.id + "-title\">\n<h2 id=\"" +
             section.id + "-title\">" + section.title + "</h2>\n" + section.body + "</section>\n";
    return s + "</main>\n<footer><p>Written by train_qrl. Intervals are of 95 %.</p></footer>\n" + REPORT_SCRIPT +
           "</body>\n</html>\n";
}
