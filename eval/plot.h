// Line charts as SVG: the one drawer of the tree, for reports, studies and the benchmark. Self-contained, light or dark as
// the reader's system is, the same bytes for the same numbers.
//   points     a number that is not finite, or not above 0 on a logarithmic axis, is a gap in its line
//   intervals  low and high of a series: a band around its line, or a bar at each point
//   markers    at each point of a short line, and at some of a long one that is not alone, so that no colour is needed
//   colours    those of Okabe & Ito (2008), which colour-blind readers can tell apart, and a marker of its own for each series
// The trap: labels come from file names and flags. They are escaped, and what XML 1.0 does not allow becomes U+FFFD.
#pragma once
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>
#include "../runtime/error.h"
#include "../runtime/unicode.h"

struct PlotAxis {
    std::string label;
    bool log = false;
    std::vector<double> ticks = {};  // where they are to be; none: round numbers
};

struct PlotSeries {
    std::string name;
    std::vector<double> x, y;       // [n]
    std::vector<double> low, high;  // [n] of an interval around y, or none
    bool bars = false;              // the interval as bars, else as a band
    bool dashed = false;
};

struct Plot {
    std::string title;
    PlotAxis x, y;
    std::vector<PlotSeries> series;
    int width = 640, height = 400;
    bool in_page = false;  // the page has PLOT_STYLE once, and says the title, and the name where there is one series
};

static constexpr int PLOT_MOST_SERIES = 7;
static constexpr size_t PLOT_MOST_MARKERS = 64;  // of a series

// ---------------------------------------------------------------------------------------------------------------------
// text

// as the text of an element or the value of an attribute; characters beyond `most` are left out
inline std::string xml_text(const std::string& s, size_t most = 80) {
    std::string out;
    size_t i = 0;
    for (size_t k = 0; i < s.size() && k < most; k++) {
        int bytes, c = utf8_step(s.data(), i, s.size(), &bytes);
        if (c == '&') out += "&amp;";
        else if (c == '<') out += "&lt;";
        else if (c == '>') out += "&gt;";
        else if (c == '"') out += "&quot;";
        else if (c == '\'') out += "&#39;";
        else if (c < 0x20 || c == 0xFFFE || c == 0xFFFF) out += "\xEF\xBF\xBD";
        else out += s.substr(i, (size_t)bytes);
        i += (size_t)bytes;
    }
    return i < s.size() ? out + "\xE2\x80\xA6" : out;
}

// 0.05, 20, 1.5k, 3M
inline std::string tick_text(double v) {
    const double size = std::fabs(v);
    if (size >= 1e15 || (size > 0 && size < 1e-4)) return format("%.3g", v);
    if (size >= 1e9) return format("%.4gG", v * 1e-9);
    if (size >= 1e6) return format("%.4gM", v * 1e-6);
    return size >= 1e4 ? format("%.4gk", v * 1e-3) : format("%.4g", v);
}

// ---------------------------------------------------------------------------------------------------------------------
// long series

// Of a series of more than `most` numbers along ascending x: means over equal parts of x, with the means of its interval's
// ends or, where it has none and `spread` says so, the least and the largest number of each part. Series over the same x
// get the same parts. Parts without a number are gaps
inline PlotSeries plot_thinned(const PlotSeries& s, size_t most, bool spread) {
    const size_t n = s.x.size();
    if (n <= most || most < 2 || !(s.x.back() > s.x.front())) return s;
    const double gap = (s.x.back() - s.x.front()) / (double)(n - 1);
    const double part = gap * (double)((n + most - 1) / most), first = s.x.front() - gap / 2;
    PlotSeries t;
    t.name = s.name, t.bars = s.bars, t.dashed = s.dashed;
    const bool interval = !s.low.empty();
    for (size_t i = 0; i < n;) {
        const double end = first + part * (std::floor((s.x[i] - first) / part) + 1.0);
        double x = 0.0, y = 0.0, low = 0.0, high = 0.0, count = 0.0, all = 0.0;
        for (; i < n && (s.x[i] < end || all == 0.0); i++) {
            x += s.x[i], all++;
            if (!std::isfinite(s.y[i])) continue;
            if (interval) low += s.low[i], high += s.high[i];
            else low = count ? std::min(low, s.y[i]) : s.y[i], high = count ? std::max(high, s.y[i]) : s.y[i];
            y += s.y[i], count++;
        }
        t.x.push_back(x / all), t.y.push_back(count ? y / count : NAN);
        if (!interval && !spread) continue;
        t.low.push_back(!count ? NAN : interval ? low / count : low);
        t.high.push_back(!count ? NAN : interval ? high / count : high);
    }
    return t;
}

// ---------------------------------------------------------------------------------------------------------------------
// axes

// 1, 2 or 5 times a power of ten, so that about n of them make up the range
inline double nice_step(double range, int n) {
    const double raw = range / n, power = std::pow(10.0, std::floor(std::log10(raw))), f = raw / power;
    return power * (f <= 1.0 ? 1 : f <= 2.0 ? 2 : f <= 5.0 ? 5 : 10);
}

// An axis as it is drawn: [low, high] over `pixels` from `origin`, to the right or (negative pixels) upwards
struct PlotScale {
    double low = 0.0, high = 0.0, origin = 0.0, pixels = 0.0;
    bool log = false;
    std::vector<double> ticks = {};
    bool has(double v) const { return std::fabs(v) < 1e150 && (!log || v > 1e-150); }
    double at(double v) const {
        const double share = log ? std::log(v / low) / std::log(high / low) : (v - low) / (high - low);
        return origin + pixels * share;
    }
};

inline void log_ticks(PlotScale& s) {
    const double decades = std::log10(s.high / s.low);
    const int every = (int)std::ceil(decades / 8);
    for (int e = (int)std::floor(std::log10(s.low)); e <= (int)std::ceil(std::log10(s.high)); e++)
        for (double f : {1.0, 2.0, 5.0}) {
            const double v = f * std::pow(10.0, e);
            if ((f != 1.0 && decades > 3) || (decades > 8 && e % every)) continue;
            if (v >= s.low * 0.999 && v <= s.high * 1.001) s.ticks.push_back(v);
        }
}

// of all the values that are to be seen
inline PlotScale plot_scale(const PlotAxis& axis, const std::vector<double>& values, int wanted) {
    PlotScale s;
    s.log = axis.log;
    bool any = false;
    for (double v : values) {
        if (!s.has(v)) continue;
        s.low = any ? std::min(s.low, v) : v, s.high = any ? std::max(s.high, v) : v;
        any = true;
    }
    if (!any) fail("nothing to draw: no number%s along '%s'", axis.log ? " above 0" : "", axis.label.c_str());
    if (axis.log) {
        if (s.high < s.low * 1.000001) s.low /= 2, s.high *= 2;
        const double margin = std::pow(s.high / s.low, 0.04);
        s.low /= margin, s.high *= margin;
        if (axis.ticks.empty()) log_ticks(s);
    } else {
        if (s.low >= 0 && s.low < 0.7 * s.high) s.low = 0;  // a share of something is seen from zero
        const double size = std::max(std::fabs(s.low), std::fabs(s.high));
        if (s.high - s.low <= 1e-9 * size) s.low -= size > 0 ? size / 2 : 1, s.high += size > 0 ? size / 2 : 1;
        const double step = nice_step(s.high - s.low, wanted);
        const double first = std::floor(s.low / step + 1e-9), last = std::ceil(s.high / step - 1e-9);
        s.low = first * step, s.high = last * step;
        for (double k = first; k <= last && axis.ticks.empty(); k++) s.ticks.push_back(k * step);
    }
    for (double v : axis.ticks)
        if (s.has(v) && v >= s.low && v <= s.high) s.ticks.push_back(v);
    return s;
}

// ---------------------------------------------------------------------------------------------------------------------
// drawing

static constexpr const char* PLOT_STYLE =
    "<style>.plot{--ink:#222;--paper:#fff;--grid:#ddd;--c0:#0072B2;--c1:#D55E00;--c2:#009E73;--c3:#CC79A7;--c4:"
    "#B88700;"
    "--c5:#3A9BD9;--c6:#666;font:12px sans-serif}"
    "@media(prefers-color-scheme:dark){.plot{--ink:#e8e8e8;--paper:#181818;--grid:#3a3a3a;--c0:#56B4E9;--c1:#"
    "FF8C3B;"
    "--c2:#2FC79B;--c3:#E39BC4;--c4:#F0C75E;--c5:#8CCBF2;--c6:#aaa}}"
    ".plot text{fill:var(--ink)}.plot .grid{stroke:var(--grid)}.plot .axis{stroke:var(--ink)}.plot .line{fill:none;"
    "stroke-width:2}</style>\n";

// circle, square, triangle, diamond, and the same hollow
inline std::string plot_marker(size_t i, double x, double y) {
    const std::string paint =
        format(i < 4 ? "fill=\"var(--c%zu)\"" : "fill=\"var(--paper)\" stroke=\"var(--c%zu)\"", i);
    switch (i % 4) {
        case 0:
            return format("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\" %s/>", x, y, paint.c_str());
        case 1:
            return format("<rect x=\"%.1f\" y=\"%.1f\" width=\"6.4\" height=\"6.4\" %s/>", x - 3.2, y - 3.2,
                          paint.c_str());
        case 2:
            return format("<path d=\"M%.1f %.1fl4 7h-8z\" %s/>", x, y - 4, paint.c_str());
        default:
            return format("<path d=\"M%.1f %.1fl4 4l-4 4l-4 -4z\" %s/>", x, y - 4, paint.c_str());
    }
}

// lines, one for each run of points without a gap; intervals; markers. alone: there is no other series
inline std::string plot_series(const PlotSeries& s, size_t i, const PlotScale& x, const PlotScale& y, bool alone) {
    std::string lines, below, marks;
    // of a long line every so many, at other places than those of its neighbours
    const bool is_short = s.x.size() <= PLOT_MOST_MARKERS;
    const size_t every = is_short ? 1 : std::max<size_t>(s.x.size() / 8, 1), first = is_short ? 0 : i * every / 8;
    const std::string colour = format("stroke=\"var(--c%zu)\"", i);
    const char* dash = s.dashed ? " stroke-dasharray=\"6 4\"" : "";
    for (size_t begin = 0, end; begin < s.x.size(); begin = end + 1) {
        std::string line, up, down;
        for (end = begin; end < s.x.size() && x.has(s.x[end]) && y.has(s.y[end]); end++) {
            const double px = x.at(s.x[end]), py = y.at(s.y[end]);
            line += format("%s%.1f %.1f", line.empty() ? "M" : "L", px, py);
            if ((is_short || !alone) && end % every == first) marks += plot_marker(i, px, py);
            if (s.low.empty() || !y.has(s.low[end]) || !y.has(s.high[end])) continue;
            const double l = y.at(s.low[end]), h = y.at(s.high[end]);
            if (s.bars)
                below += format("<path class=\"line\" %s d=\"M%.1f %.1fV%.1fm-3 0h6M%.1f %.1fh6\"/>", colour.c_str(),
                                px, l, h, px - 3, l);
            up += format("%s%.1f %.1f", up.empty() ? "M" : "L", px, h);
            down = format("L%.1f %.1f", px, l) + down;
        }
        if (!up.empty() && !s.bars)
            below +=
                format("<path fill=\"var(--c%zu)\" fill-opacity=\"0.18\" d=\"%s%sz\"/>", i, up.c_str(), down.c_str());
        if (!line.empty()) lines += format("<path class=\"line\" %s%s d=\"%s\"/>", colour.c_str(), dash, line.c_str());
    }
    return "<g>" + below + lines + marks + "</g>\n";
}

inline std::string plot_axes(const Plot& p, const PlotScale& x, const PlotScale& y) {
    std::string s;
    const double left = x.origin, right = x.origin + x.pixels, bottom = y.origin, top = y.origin + y.pixels;
    for (double v : y.ticks)
        s += format(
            "<path class=\"grid\" d=\"M%.1f %.1fH%.1f\"/><text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">%s</text>\n",
            left, y.at(v), right, left - 6, y.at(v) + 4, tick_text(v).c_str());
    for (double v : x.ticks)
        s += format(
            "<path class=\"axis\" d=\"M%.1f %.1fv5\"/><text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s</text>\n",
            x.at(v), bottom, x.at(v), bottom + 18, tick_text(v).c_str());
    s += format("<path class=\"axis\" fill=\"none\" d=\"M%.1f %.1fV%.1fH%.1f\"/>\n", left, top, bottom, right);
    s += format("<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>\n", (left + right) / 2, p.height - 8,
                xml_text(p.x.label).c_str());
    return s + format("<text transform=\"translate(14 %.1f) rotate(-90)\" text-anchor=\"middle\">%s</text>\n",
                      (top + bottom) / 2, xml_text(p.y.label).c_str());
}

// Names side by side while they fit, each of about 7 pixels a letter. y: of the first row; on return of the last
inline std::string plot_legend(const Plot& p, double& y) {
    std::string s;
    double x = 64;
    for (size_t i = 0; i < p.series.size(); i++) {
        const PlotSeries& series = p.series[i];
        const size_t most = (size_t)std::max((p.width - 64 - 44) / 7, 8);
        const double width = 44 + 7.0 * (double)std::min({series.name.size(), most, (size_t)80});
        if (x > 64 && x + width > p.width) x = 64, y += 18;
        s += format(
            "<path class=\"line\" stroke=\"var(--c%zu)\"%s d=\"M%.1f %.1fh24\"/>%s<text x=\"%.1f\" "
            "y=\"%.1f\">%s</text>\n",
            i, series.dashed ? " stroke-dasharray=\"6 4\"" : "", x, y, plot_marker(i, x + 12, y).c_str(), x + 30, y + 4,
            xml_text(series.name, std::min(most, (size_t)80)).c_str());
        x += width;
    }
    return s;
}

inline std::string plot_svg(const Plot& p) {
    if (p.series.size() > PLOT_MOST_SERIES)
        fail("a plot of %zu series: %d can be told apart", p.series.size(), PLOT_MOST_SERIES);
    if (p.width < 200 || p.height < 150) fail("a plot of %d x %d pixels: 200 x 150 at the least", p.width, p.height);
    std::vector<double> xs, ys;
    for (const PlotSeries& s : p.series) {
        const size_t n = s.x.size();
        if (s.y.size() != n || s.low.size() != s.high.size() || (s.low.size() && s.low.size() != n))
            fail("a series '%s' whose arrays differ in length", s.name.c_str());
        for (size_t i = 0; i < n; i++) {
            if (!std::isfinite(s.x[i]) || !std::isfinite(s.y[i])) continue;
            xs.push_back(s.x[i]), ys.push_back(s.y[i]);
            if (s.low.size()) ys.push_back(s.low[i]), ys.push_back(s.high[i]);
        }
    }
    double top = p.in_page ? 14 : 44;
    const std::string legend = p.in_page && p.series.size() < 2 ? "" : plot_legend(p, top);
    PlotScale x = plot_scale(p.x, xs, 6), y = plot_scale(p.y, ys, 5);
    x.origin = 64, x.pixels = p.width - 64 - 20, y.origin = p.height - 48, y.pixels = -(y.origin - top - 16);
    std::string s = format(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"plot\" role=\"img\" viewBox=\"0 0 %d %d\" width=\"%d\" "
        "height=\"%d\"",
        p.width, p.height, p.width, p.height);
    // where a number along x stands, for the page's script: pixels, then numbers, of both ends
    if (p.in_page && !x.log) s += format(" data-x=\"%.1f %.1f %.9g %.9g\"", x.at(x.low), x.at(x.high), x.low, x.high);
    s += format(">\n<title>%s</title>\n", xml_text(p.title, 200).c_str());
    if (!p.in_page) s += PLOT_STYLE;
    s += format("<rect width=\"%d\" height=\"%d\" fill=\"var(--paper)\"/>\n", p.width, p.height);
    if (!p.in_page)
        s += format("<text x=\"%d\" y=\"20\" text-anchor=\"middle\" font-size=\"14\">%s</text>\n", p.width / 2,
                    xml_text(p.title).c_str());
    s += legend + plot_axes(p, x, y);
    for (size_t i = 0; i < p.series.size(); i++) s += plot_series(p.series[i], i, x, y, p.series.size() < 2);
    return s + "</svg>\n";
}
