// The drawer of line charts: well-formed XML whatever the labels and numbers are, and the right places of points and ticks.
#include <gtest/gtest.h>
#include <limits>
#include <map>
#include "../eval/plot.h"

static std::string error_of(const Plot& p) {
    try {
        plot_svg(p);
    } catch (const Error& e) { return e.what(); }
    return "";
}

// What XML 1.0 asks: elements closed in order, attributes quoted and each once, no bare < or &, known entities, one root.
// Counts the elements by name; collects the text of each.
struct Xml {
    std::map<std::string, int> count;
    std::map<std::string, std::vector<std::string>> text;
    std::string fault;

    static bool references(const std::string& s) {
        for (size_t i = 0; i < s.size(); i++) {
            const unsigned char c = (unsigned char)s[i];
            if (c == '<' || (c < 0x20 && c != '\n' && c != '\t')) return false;
            if (c != '&') continue;
            bool known = false;
            for (const char* e : {"&amp;", "&lt;", "&gt;", "&quot;", "&#39;"}) known |= s.compare(i, strlen(e), e) == 0;
            if (!known) return false;
        }
        return true;
    }
    void tag(std::string inner, std::vector<std::string>& open) {
        if (inner[0] == '/') {
            if (open.empty() || open.back() != inner.substr(1)) fault = "closes " + inner;
            else open.pop_back();
            return;
        }
        const bool closed = inner.back() == '/';
        if (closed) inner.pop_back();
        size_t i = inner.find(' ');
        const std::string name = inner.substr(0, i);
        count[name]++;
        std::map<std::string, int> names;
        while (i < inner.size()) {
            const size_t equals = inner.find("=\"", i + 1), end = inner.find('"', equals + 2);
            if (inner[i] != ' ' || equals == std::string::npos || end == std::string::npos) {
                fault = "attributes of " + inner;
                return;
            }
            if (names[inner.substr(i + 1, equals - i - 1)]++) fault = "twice in " + inner;
            if (!references(inner.substr(equals + 2, end - equals - 2))) fault = "attribute of " + inner;
            i = end + 1;
        }
        if (!closed) open.push_back(name);
    }
    explicit Xml(const std::string& s) {
        if (!utf8_is_valid(s)) fault = "not UTF-8";
        std::vector<std::string> open;
        for (size_t i = 0; i < s.size() && fault.empty();) {
            if (s[i] == '<') {
                const size_t end = s.find('>', i);
                if (end == std::string::npos) fault = "a tag without end";
                else tag(s.substr(i + 1, end - i - 1), open), i = end + 1;
                if (open.empty() && i < s.size() && s.substr(i) != "\n") fault = "text behind the root";
            } else {
                const size_t end = s.find('<', i);
                const std::string between = s.substr(i, end - i);
                if (open.empty() && between != "\n") fault = "text outside";
                if (!references(between)) fault = "text " + between;
                if (!open.empty()) text[open.back()].push_back(between);
                i = std::min(end, s.size());
            }
        }
        if (!open.empty()) fault = "not closed: " + open.back();
    }
    bool has(const std::string& t) {
        return std::find(text["text"].begin(), text["text"].end(), t) != text["text"].end();
    }
};

static Plot simple() {
    Plot p;
    p.title = "speed";
    p.x.label = "tokens", p.y.label = "tokens a second";
    p.series.push_back({"ours", {0, 50, 100}, {10, 20, 40}, {}, {}});
    return p;
}

TEST(Plot, PointsAndTicksStandWhereTheyBelong) {
    const Plot p = simple();
    const std::string svg = plot_svg(p);
    EXPECT_EQ(svg, plot_svg(p));
    Xml x(svg);
    EXPECT_EQ(x.fault, "") << svg;
    EXPECT_EQ(x.count["svg"], 1);
    EXPECT_EQ(x.text["title"][0], "speed");
    for (const char* t : {"0", "10", "20", "30", "40", "60", "100", "speed", "tokens", "tokens a second", "ours"})
        EXPECT_TRUE(x.has(t)) << t;
    // 640 x 400: x from 64 over 556 pixels, y from 352 up over 292; both axes begin at 0
    EXPECT_NE(svg.find("d=\"M64.0 279.0L342.0 206.0L620.0 60.0\""), std::string::npos) << svg;
    EXPECT_EQ(x.count["circle"], 4);  // three points and the legend's
    EXPECT_NE(svg.find("prefers-color-scheme:dark"), std::string::npos);
}

TEST(Plot, LogarithmicAxes) {
    Plot p = simple();
    p.x.log = p.y.log = true;
    p.series[0].x = {1, 10, 100, 1000, 10000}, p.series[0].y = {1, 10, 100, 1000, 10000};
    Xml x(plot_svg(p));
    EXPECT_EQ(x.fault, "");
    for (const char* t : {"1", "10", "100", "1000", "10k"}) EXPECT_TRUE(x.has(t)) << t;
    EXPECT_FALSE(x.has("20"));
    p.x.ticks = {1, 100, 1e9, -1};  // those outside are left out
    x = Xml(plot_svg(p));
    EXPECT_EQ(x.fault, "");
    EXPECT_FALSE(x.has("1G"));
}

TEST(Plot, GapsWhereThereIsNoNumber) {
    const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
    Plot p = simple();
    p.series[0].x = {0, 1, 2, 3, 4, 5, 6}, p.series[0].y = {1, 2, nan, 3, inf, 1e308, 4};
    std::string svg = plot_svg(p);
    Xml x(svg);
    EXPECT_EQ(x.fault, "");
    EXPECT_EQ(x.count["circle"], 5);
    EXPECT_EQ(svg.find("nan"), std::string::npos);
    EXPECT_EQ(svg.find("inf"), std::string::npos);
    size_t lines = 0;
    for (size_t at = 0; (at = svg.find("<path class=\"line\" stroke=\"var(--c0)\" d=\"M", at)) != std::string::npos;
         at++)
        lines++;
    EXPECT_EQ(lines, 4u);  // three runs and the legend
    p.y.log = true;
    p.series[0].y = {-1, 0, 1, 2, 3, 4, 5};
    EXPECT_EQ(Xml(plot_svg(p)).count["circle"], 6);
}

TEST(Plot, IntervalsAreBandsOrBars) {
    Plot p = simple();
    p.series[0].low = {8, 15, 30}, p.series[0].high = {12, 25, 50};
    std::string svg = plot_svg(p);
    EXPECT_NE(svg.find("fill-opacity"), std::string::npos);
    EXPECT_TRUE(Xml(svg).has("50"));  // the axis reaches the interval
    EXPECT_EQ(Xml(svg).fault, "");
    p.series[0].bars = true, p.series[0].dashed = true;
    p.series[0].high[1] = std::numeric_limits<double>::quiet_NaN();
    svg = plot_svg(p);
    EXPECT_EQ(Xml(svg).fault, "");
    EXPECT_EQ(svg.find("fill-opacity"), std::string::npos);
    size_t bars = 0;
    for (size_t at = 0; (at = svg.find("m-3 0h6", at)) != std::string::npos; at++) bars++;
    EXPECT_EQ(bars, 2u);
}

TEST(Plot, HostileLabelsAreText) {
    Plot p = simple();
    const std::string bad[] = {"</title><script>alert(1)</script>",
                               "a&b\"c'd",
                               std::string("nul\0 bell\a", 10),
                               "\xFF\xC0\xAF cut \xE2\x82",
                               "\xEF\xBF\xBF",
                               std::string(5000, '<'),
                               "100% %s %n"};
    for (const std::string& text : bad) {
        p.title = p.x.label = p.y.label = p.series[0].name = text;
        const std::string svg = plot_svg(p);
        Xml x(svg);
        EXPECT_EQ(x.fault, "") << text;
        EXPECT_EQ(x.count["script"], 0);
        EXPECT_LT(svg.size(), 8000u);
    }
    EXPECT_EQ(xml_text("a<b>&\"'"), "a&lt;b&gt;&amp;&quot;&#39;");
    EXPECT_EQ(xml_text("a\tb\x01"),
              "a\xEF\xBF\xBD"
              "b\xEF\xBF\xBD");
    EXPECT_EQ(xml_text("\xC3\xA4\xC3\xB6\xC3\xBC", 2), "\xC3\xA4\xC3\xB6\xE2\x80\xA6");
}

TEST(Plot, OneNumberAndEqualOnes) {
    for (double v : {0.0, 5.0, -3.0, 1e-30, 1e100, 1.0}) {
        Plot p = simple();
        p.series[0].x = {v}, p.series[0].y = {v};
        EXPECT_EQ(Xml(plot_svg(p)).fault, "") << v;
        p.series[0].x = {v, v}, p.series[0].y = {v, v * (1 + 1e-15)};
        const std::string svg = plot_svg(p);
        EXPECT_EQ(Xml(svg).fault, "") << v;
        EXPECT_EQ(svg.find("nan"), std::string::npos) << v;
        EXPECT_LT(svg.size(), 8000u) << v;
    }
}

TEST(Plot, SevenSeriesCanBeToldApart) {
    Plot p = simple();
    while (p.series.size() < 7) p.series.push_back(p.series[0]), p.series.back().name += "another, with a longer name";
    Xml x(plot_svg(p));
    EXPECT_EQ(x.fault, "");
    p.series.push_back(p.series[0]);
    EXPECT_NE(error_of(p).find("8 series: 7 can"), std::string::npos);
}

TEST(Plot, RefusesWhatCannotBeDrawn) {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    Plot p = simple();
    p.series.clear();
    EXPECT_NE(error_of(p).find("nothing to draw"), std::string::npos);
    p = simple();
    p.series[0].y = {nan, nan, nan};
    EXPECT_NE(error_of(p).find("nothing to draw"), std::string::npos);
    p.series[0].y = {-1, -2, 0}, p.y.log = true;
    EXPECT_NE(error_of(p).find("no number above 0 along 'tokens a second'"), std::string::npos);
    p = simple();
    p.series[0].y.pop_back();
    EXPECT_NE(error_of(p).find("'ours'"), std::string::npos);
    p = simple();
    p.series[0].low = {1, 2, 3};
    EXPECT_NE(error_of(p).find("'ours'"), std::string::npos);
    p = simple();
    p.width = 20;
    EXPECT_NE(error_of(p).find("200 x 150"), std::string::npos);
}
