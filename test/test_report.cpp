// Reports of made-up runs: what is drawn of what there is, in well-formed HTML that fetches nothing, whatever texts the run
// had; folders that lack things; means over seeds against numbers worked out by hand.
#include <gtest/gtest.h>
#include <unistd.h>
#include <filesystem>
#include "../eval/report_compare.h"

namespace {

namespace fs = std::filesystem;
typedef nlohmann::ordered_json J;

// gone at the end
struct Folders : testing::Environment {
    std::vector<std::string> made;
    void TearDown() override {
        for (const std::string& path : made) fs::remove_all(path);
    }
};
Folders* const folders = static_cast<Folders*>(testing::AddGlobalTestEnvironment(new Folders));

std::string fresh_folder() {
    static int n = 0;
    const std::string path = format("%s/test_report_%d_%d", fs::temp_directory_path().c_str(), (int)getpid(), n++);
    fs::remove_all(path);
    fs::create_directories(path);
    folders->made.push_back(path);
    return path;
}

void put(const std::string& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

std::string all_of(const std::string& path) { return read_file(path, 1u << 30); }

std::string failure(const std::function<void()>& f) {
    try {
        f();
    } catch (const Error& e) { return e.what(); }
    return "";
}

// a run of `steps` whose reward at step s is reward + s / 100
struct MadeUp {
    std::string path = fresh_folder();
    J config = {{"version", "0.1.0"},        {"command", "grpo"}, {"model", ""},
                {"weights", "int4:g32:sym"}, {"seed", 1},         {"learning_rate", 1e-5}};
    int steps = 4;
    double reward = 0.5, before = 0.4, after = 0.6;

    static J evaluation(double step, const char* when, double v) {
        return {{"step", step},
                {"when", when},
                {"problems", 100},
                {"samples", 4},
                {"pass@1", v},
                {"pass@1_standard_error", 0.02},
                {"pass@1_interval", {v - 0.04, v + 0.04}}};
    }
    std::string write() const {
        put(path + "/config.json", config.dump());
        std::string metrics;
        for (int s = 1; s <= steps; s++)
            metrics += J{{"step", s},
                         {"loss", 0.001 * s},
                         {"reward", reward + 0.01 * s},
                         {"reward_group_std", 0.1},
                         {"entropy", 0.5},
                         {"timing_s/gen", 1.0 + 0.1 * s},
                         {"timing_s/update_actor", 2.0},
                         {"step_time", 3.5 + 0.1 * s}}
                           .dump() +
                       "\n";
        put(path + "/metrics.jsonl", metrics);
        put(path + "/evaluations.jsonl",
            evaluation(0, "before", before).dump() + "\n" + evaluation(steps, "after", after).dump() + "\n");
        put(path + "/summary.json", J{{"steps", steps}, {"wall_seconds", 90.0}, {"stopped", false}}.dump());
        return path;
    }
};

std::string page_of(const std::string& path) { return report_page(report_open(path)); }

// Tags closed in order, ids unique and all links to them; counts of elements. Fails the test of whoever makes it
struct Html {
    std::map<std::string, int> count;
    explicit Html(const std::string& s) {
        std::vector<std::string> open;
        std::set<std::string> ids, links;
        EXPECT_TRUE(utf8_is_valid(s));
        for (size_t i = s.find('<'); i != std::string::npos; i = s.find('<', i + 1)) {
            const size_t end = s.find('>', i);
            if (end == std::string::npos) {
                ADD_FAILURE() << "a tag without end";
                return;
            }
            const std::string tag = s.substr(i + 1, end - i - 1);
            if (tag[0] == '!') continue;
            if (tag[0] == '/') {
                if (open.empty() || open.back() != tag.substr(1)) {
                    ADD_FAILURE() << "closes " << tag << " at " << s.substr(i, 80);
                    return;
                }
                open.pop_back();
                continue;
            }
            const std::string name = tag.substr(0, tag.find_first_of(" /"));
            EXPECT_EQ(name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789"), std::string::npos) << tag;
            count[name]++;
            EXPECT_EQ(std::count(tag.begin(), tag.end(), '"') % 2, 0) << tag;
            if (const size_t at = tag.find(" id=\""); at != std::string::npos) {
                EXPECT_TRUE(ids.insert(tag.substr(at + 5, tag.find('"', at + 5) - at - 5)).second) << tag;
            }
            if (const size_t at = tag.find("href=\"#"); at != std::string::npos)
                links.insert(tag.substr(at + 7, tag.find('"', at + 7) - at - 7));
            const bool empty = tag.back() == '/' || name == "meta" || name == "link";
            if (!empty) open.push_back(name);
            if (name == "script" || name == "style") i = s.find("</" + name + ">", i) - 1;
        }
        EXPECT_TRUE(open.empty()) << open.back();
        for (const std::string& link : links) EXPECT_TRUE(ids.count(link)) << link;
        EXPECT_EQ(count["title"], count["svg"] + 1);
        EXPECT_EQ(count["script"], 1);
        for (const char* one : {"html", "head", "body", "main", "h1"}) EXPECT_EQ(count[one], 1) << one;
    }
};

void fetches_nothing(std::string s) {
    for (const std::string name : {"http://www.w3.org/2000/svg"})
        for (size_t at; (at = s.find(name)) != std::string::npos;) s.erase(at, name.size());
    for (const char* word : {"http:", "https:", "src=", "url(", "@import", "href=\"/", "fetch(", "//cdn"})
        EXPECT_EQ(s.find(word), std::string::npos) << word;
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// one run

TEST(Report, SaysWhatCameOutAndDrawsWhatIsThere) {
    const std::string path = MadeUp().write(), page = page_of(path);
    Html html(page);
    fetches_nothing(page);
    EXPECT_EQ(page, page_of(path));
    for (const char* text :
         {"lang=\"en\"", "40.0 %", "60.0 %", "+20.0 points", "[+14.5, +25.5]", "the embedded model", "int4:g32:sym",
          "the run ended", "--learning_rate", "Where a step", "Held out: share that is right"})
        EXPECT_NE(page.find(text), std::string::npos) << text;
    // 3.5 + 0.1 s - (1 + 0.1 s) - 2 is the same at every step, and so is the entropy
    for (const char* text : {"<code>timing_s/rest</code> 0.5", "<code>entropy</code> 0.5"})
        EXPECT_NE(page.find(text), std::string::npos) << text;
    EXPECT_EQ(page.find("Completions</h3>"), std::string::npos);
    EXPECT_EQ(html.count["figure"], html.count["svg"]);
    EXPECT_EQ(html.count["svg"], 4);  // held out, reward, loss, time
}

TEST(Report, NumbersStandInTheTablesBesideTheCurves) {
    const std::string page = page_of(MadeUp().write());
    EXPECT_NE(page.find("<th scope=\"row\">3</th><td>0.53 [0.43, 0.63]</td>"), std::string::npos);
    EXPECT_NE(page.find("<th scope=\"row\">0</th><td>40 [36, 44]</td>"), std::string::npos);
}

// what is still being written is read on from where it was, and a line that is cut counts when it is whole
TEST(Report, ReadsOnWhereItWas) {
    MadeUp m;
    m.steps = 40;
    const std::string whole = m.write(), metrics = all_of(whole + "/metrics.jsonl"),
                      summary = all_of(whole + "/summary.json");
    fs::remove(whole + "/summary.json");
    put(whole + "/metrics.jsonl", metrics.substr(0, metrics.size() / 2));
    ReportRun r = report_open(whole);
    const double half = r.last_step();
    EXPECT_GT(half, 15);
    EXPECT_LT(half, 25);
    EXPECT_NE(report_page(r).find("has not ended, or was killed"), std::string::npos);
    Html html(report_page(r));
    put(whole + "/metrics.jsonl", metrics);
    put(whole + "/summary.json", summary);
    report_read(r);
    EXPECT_EQ(r.last_step(), 40);
    EXPECT_EQ(report_page(r), page_of(whole));
}

TEST(Report, LinesThatCannotBeReadAreCounted) {
    MadeUp m;
    const std::string path = m.write();
    put(path + "/metrics.jsonl",
        all_of(path + "/metrics.jsonl") +
            "not JSON\n[1]\n{\"loss\":1}\n{\"step\":2,\"loss\":9}\n{\"step\":5,\"loss\":null}\n\xFF\xFE\n");
    const std::string page = page_of(path);
    Html html(page);
    EXPECT_NE(page.find("metrics.jsonl: 5 lines could not be read"), std::string::npos);
    EXPECT_EQ(report_open(path).last_step(), 5);
}

TEST(Report, RunsOfOlderVersions) {
    const std::string path = fresh_folder();
    put(path + "/metrics.jsonl", "{\"step\":1,\"loss\":2.0,\"eval_pass@1\":0.25}\n{\"step\":2,\"loss\":1.0}\n");
    std::string page = page_of(path);
    Html bare(page);
    EXPECT_NE(page.find("25.0 %"), std::string::npos);
    EXPECT_NE(page.find("There is no config.json"), std::string::npos);
    put(path + "/config.json", "{\"command\":\"grpo\",\"gone\":\"option\"}");
    put(path + "/summary.json",
        J{{"eval", {{"n", 8}, {"before", {{"pass@1", 0.125}}}, {"after", {{"pass@1", 0.5}}}}}}.dump());
    page = page_of(path);
    Html html(page);
    for (const char* text : {"12.5 %", "50.0 %", "+37.5 points", "--gone"})
        EXPECT_NE(page.find(text), std::string::npos) << text;
    put(path + "/config.json", "{\"command\":");
    EXPECT_NE(page_of(path).find("config.json cannot be read"), std::string::npos);
}

TEST(Report, HostileTextsAreText) {
    MadeUp m;
    const std::string bad =
        "</script></div><script>alert(1)</script>&\"'<!-- \x1B[31m\x07 \xE2\x80\xAE olleh \xE2\x81\xA6 \xEF\xBF\xBF" +
        std::string(1, '\0') + std::string(30000, 'A') + "THE END";
    m.config["model"] = m.config["weights"] = m.config["</b>"] = bad;
    const std::string path = m.write();
    put(path + "/warnings.jsonl", J{{"step", 2}, {"text", bad}}.dump() + "\n");
    J completion = {{"sample", 0},
                    {"reward", 1},
                    {"rewards", {{bad.substr(0, 60), 1.0}}},
                    {"advantage", 0.5},
                    {"finished", true},
                    {"length", 3},
                    {"tokens", {"a", bad, "<b>"}},
                    {"logp", {-0.1, -3.0, nullptr}},
                    {"advantages", {1.0, -1.0, "x"}}};
    J line = {{"step", 1}, {"prompt", bad}, {"gold", bad}, {"completions", {completion, 7, J{{"tokens", 3}}}}};
    put(path + "/samples.jsonl", line.dump() + "\n{\"step\":2,\"completions\":{}}\n{\"step\":3}\n");
    J metric = {{"step", 9}, {"loss", 1.0}};
    metric[bad.substr(0, 100)] = 1.0;
    J again = metric;
    again["step"] = 10, again[bad.substr(0, 100)] = 2.0;
    put(path + "/metrics.jsonl", all_of(path + "/metrics.jsonl") + metric.dump() + "\n" + again.dump() + "\n");
    const std::string page = page_of(path);
    Html html(page);
    fetches_nothing(page);
    EXPECT_NE(page.find("&lt;b&gt;"), std::string::npos);
    for (const char* raw : {"\x1B", "\x07", "\xE2\x80\xAE", "\xE2\x81\xA6", "<script>alert", "<!-- "})
        EXPECT_EQ(page.find(raw), std::string::npos) << raw;
    EXPECT_NE(page.find("\\u202E olleh"), std::string::npos);
    EXPECT_NE(page.find("THE END"), std::string::npos) << "the end of a long text stays";
    EXPECT_LT(page.size(), 300000u);
}

TEST(Report, TokensHaveTheirNumbersAndTheirMarks) {
    MadeUp m;
    const std::string path = m.write();
    J c = {{"sample", 2},
           {"reward", 1},
           {"rewards", {{"exact", 1}, {"none", nullptr}}},
           {"advantage", 0.5},
           {"finished", false},
           {"length", 4},
           {"tokens", {"1", "2", "3", "4"}},
           {"logp", {-0.01, -0.5, -2.0, -9.0}}};
    J d = c;
    d["advantages"] = {2.0, 0.1, -2.0, 0.0};
    put(path + "/samples.jsonl",
        J{{"step", 1}, {"prompt", "1+1=?"}, {"gold", "2"}, {"completions", {c, d}}}.dump() + "\n");
    const std::string page = page_of(path);
    Html html(page);
    for (const char* text : {"Completion 3, reward 1, advantage +0.5, exact 1, tokens 4, cut off",
                             "<span class=\"t u1\" title=\"p 0.99, advantage +0.5\">1</span>",
                             "<span class=\"t p4 u1\" title=\"p 0.000123, advantage +0.5\">4</span>",
                             "<span class=\"t p2 d2\" title=\"p 0.135, advantage -2\">3</span>",
                             "<span class=\"t p4\" title=\"p 0.000123, advantage +0\">4</span>",
                             "Least likely: <code>4</code> (token 4, p 0.000123), <code>3</code> (token 3, p 0.135)"})
        EXPECT_NE(page.find(text), std::string::npos) << text;
}

// without samples.jsonl, texts of both ends of completions.jsonl
TEST(Report, TextsWhereThereAreNoTokens) {
    const std::string path = MadeUp().write();
    std::string lines;
    for (int i = 0; i < 9000; i++)
        lines += J{{"step", 1 + i / 3000},
                   {"prompt", "question " + std::to_string(i / 8)},
                   {"completion", "answer " + std::to_string(i)},
                   {"gold", "7"},
                   {"advantage", 0.25}}
                     .dump() +
                 "\n";
    put(path + "/completions.jsonl", lines + "{\"step\":");
    const std::string page = page_of(path);
    Html html(page);
    for (const char* text :
         {"question 0<", "answer 0<", "answer 3<", "question 1124<", "answer 8999<", "advantage +0.25", "Step 3"})
        EXPECT_NE(page.find(text), std::string::npos) << text;
    EXPECT_EQ(page.find("answer 4<"), std::string::npos) << "four of a question";
}

TEST(Report, FlipsByLayerAndKind) {
    const std::string path = MadeUp().write();
    std::string lines;
    for (int s = 1; s <= 3; s++)
        lines += J{{"step", s},
                   {"model.layers.0.self_attn.q_proj.weight", {0.1, 0.01 * s}},
                   {"model.layers.0.mlp.down_proj.weight", {0.3, 0.03 * s}},
                   {"model.layers.11.mlp.down_proj.weight", {0.0, 0.05 * s}}}
                     .dump() +
                 "\n";
    put(path + "/code_flips.jsonl", lines);
    const ReportRun r = report_open(path);
    EXPECT_EQ(r.flips.layers, (std::vector<int>{0, 11}));
    EXPECT_EQ(r.flips.kinds, (std::vector<std::string>{"q", "down"}));
    EXPECT_DOUBLE_EQ(r.flips.value(2, 1, 0), (0.03 + 0.09) / 2);
    EXPECT_DOUBLE_EQ(r.flips.value(0, 0, 3), 0.15);  // down
    const std::string page = report_page(r);
    Html html(page);
    EXPECT_NE(page.find("Codes that differ from the start, by layer"), std::string::npos);
    EXPECT_NE(page.find("<th scope=\"row\">11</th><td>5</td><td>10</td><td>15</td>"), std::string::npos);
}

TEST(Report, AThousandStepsOfTwoHundredTensorsFitInTwoMegabytes) {
    MadeUp m;
    m.steps = 1000;
    const std::string path = m.write();
    std::ofstream flips(path + "/code_flips.jsonl"), metrics(path + "/metrics.jsonl"), samples(path + "/samples.jsonl");
    uint32_t bits = 1;
    auto random = [&] { return (double)((bits = bits * 1664525u + 1013904223u) >> 8) / 16777216.0; };
    for (int s = 1; s <= 1000; s++) {
        flips << "{\"step\":" << s;
        for (int t = 0; t < 200; t++)
            flips << format(",\"model.layers.%d.%s.weight\":[%.9f,%.9f]", t / 7,
                            std::array{"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                                       "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}[t % 7],
                            random(), random());
        flips << "}\n";
        J j = {{"step", s}};
        for (const CurveRow& row : report_curves)
            for (const CurveLine& line : row.lines)
                for (const std::string& key : {line.key, line.around, line.low, line.high})
                    if (!key.empty() && key[0] != 'e')
                        j[key.find('*') == key.npos ? key : "rewards/exact/mean"] = random();
        metrics << j.dump() << "\n";
        if (s % 50) continue;
        J c = {{"reward", 1}, {"advantage", 1.0}, {"length", 384}, {"finished", true}}, tokens = J::array(),
          logp = J::array();
        for (int t = 0; t < 384; t++) tokens.push_back(" word" + std::to_string(t)), logp.push_back(-3 * random());
        c["tokens"] = tokens, c["logp"] = logp;
        samples
            << J{{"step", s}, {"prompt", std::string(3000, 'q')}, {"gold", "1"}, {"completions", {c, c, c, c}}}.dump()
            << "\n";
    }
    flips.close(), metrics.close(), samples.close();
    const std::string page = page_of(path);
    Html html(page);
    EXPECT_LT(page.size(), 2000000u);
    EXPECT_GT(html.count["svg"], 40);
    EXPECT_NE(page.find("the mean of about 9 logged steps"), std::string::npos);
    EXPECT_EQ(page.find("Other numbers"), std::string::npos) << "every key of the table has its place";
}

TEST(Report, NewNumbersAreDrawnByThemselves) {
    const std::string path = MadeUp().write();
    put(path + "/metrics.jsonl", "{\"step\":1,\"mine/number\":1}\n{\"step\":2,\"mine/number\":2}\n");
    EXPECT_NE(page_of(path).find("<h4>mine/number</h4>"), std::string::npos);
}

TEST(Report, AnEvaluationIsATable) {
    const std::string path = fresh_folder();
    put(path + "/config.json", "{\"command\":\"eval\"}");
    put(path + "/results.json",
        J{{"results", {{"gsm8k", {{"pass@1,strict", 0.5}, {"pass@1_interval,strict", {0.4, 0.6}}}}}}}.dump());
    const std::string page = page_of(path);
    Html html(page);
    EXPECT_NE(page.find("50.0 % [40.0, 60.0]"), std::string::npos);
}

// ---------------------------------------------------------------------------------------------------------------------
// what is refused

TEST(Report, FoldersThatAreNoRun) {
    const std::string folder = fresh_folder();
    auto refuses = [](const std::string& path, const char* text) {
        const std::string why = failure([&] { report_open(path); });
        EXPECT_NE(why.find(text), std::string::npos) << why;
        EXPECT_EQ(why.find('\n'), std::string::npos) << why;
    };
    refuses(folder + "/nowhere", "there is no such folder");
    refuses(folder, "holds no run: it has neither config.json nor metrics.jsonl; it is empty");
    put(folder + "/a.txt", "");
    refuses(folder, "metrics.jsonl, but a.txt");
    refuses(folder + "/a.txt", "is a file");
    put(folder + "/config.json", "{\"command\":\"grpo\"}");
    refuses(folder, "no step and no evaluation is logged yet; there is config.json (18B)");
    put(folder + "/metrics.jsonl", "{\"step\":1,\"lo");  // the first line is being written
    refuses(folder, "no step and no evaluation is logged yet");
    put(folder + "/config.json", "{\"architectures\":[\"Qwen3ForCausalLM\"]}");
    refuses(folder, "is a model, not a run");
    put(folder + "/trainer_state.json", "{}");
    refuses(folder, "is a checkpoint; give the folder of its run");
}

TEST(Report, ReplacesNoPageOfOthers) {
    const std::string path = MadeUp().write(), page = path + "/page.html";
    put(page, "<html>mine</html>");
    EXPECT_NE(failure([&] { report_write(page, "x"); }).find("is no report of this program"), std::string::npos);
    EXPECT_EQ(all_of(page), "<html>mine</html>");
    fs::remove(page);
    report_write(page, page_of(path));
    report_write(page, page_of(path));
}

// ---------------------------------------------------------------------------------------------------------------------
// several runs

// three seeds of one arm, and a run of another
static std::vector<std::string> two_arms(std::vector<MadeUp>* made = nullptr) {
    std::vector<std::string> paths;
    const double rewards[] = {0.50, 0.53, 0.59}, before[] = {0.40, 0.42, 0.38}, after[] = {0.60, 0.70, 0.65};
    for (int k = 0; k < 4; k++) {
        MadeUp m;
        m.reward = rewards[k % 3], m.before = before[k % 3], m.after = after[k % 3];
        m.config["seed"] = k % 3 + 1, m.config["output_dir"] = m.path;
        if (k == 3) m.config["weights"] = "none", m.steps = 3;
        paths.push_back(m.write());
        if (made) made->push_back(m);
    }
    return paths;
}

TEST(Comparison, MeansOverSeedsHaveStudentsIntervals) {
    const std::vector<ReportArm> arms = report_arms(two_arms());
    ASSERT_EQ(arms.size(), 2u);
    ASSERT_EQ(arms[0].runs.size(), 3u);
    EXPECT_EQ(arms[0].label, "A weights int4:g32:sym");
    EXPECT_EQ(arms[1].label, "B weights none");
    // Student's t of 0.975 with 2 degrees of freedom is 4.302652729911275
    const double t = 4.302652729911275, mean = 0.54,
                 deviation = std::sqrt((0.04 * 0.04 + 0.01 * 0.01 + 0.05 * 0.05) / 2);
    const PlotSeries line = arm_line(arms[0], {"reward"});
    ASSERT_EQ(line.x, (std::vector<double>{1, 2, 3, 4}));
    for (size_t i = 0; i < 4; i++) {
        EXPECT_NEAR(line.y[i], mean + 0.01 * line.x[i], 1e-12);
        EXPECT_NEAR(line.high[i] - line.y[i], t * deviation / std::sqrt(3.0), 1e-9);
        EXPECT_NEAR(line.y[i] - line.low[i], t * deviation / std::sqrt(3.0), 1e-9);
    }
    const PlotSeries alone = arm_line(arms[1], {"reward"});
    EXPECT_EQ(alone.x.size(), 3u);
    EXPECT_TRUE(alone.low.empty());
    // differences of 0.20, 0.28 and 0.27, paired by seed
    const ArmNumbers n = arm_numbers(arms[0]);
    const double d = 0.25, error = std::sqrt((0.05 * 0.05 + 0.03 * 0.03 + 0.02 * 0.02) / 2 / 3);
    EXPECT_NEAR(n.difference.value, d, 1e-12);
    EXPECT_NEAR(n.difference.high, d + t * error, 1e-9);
    EXPECT_NEAR(n.before.value, 0.40, 1e-12);
    EXPECT_NEAR(n.after.low, 0.65 - t * std::sqrt(0.05 * 0.05 * 2 / 2.0 / 3), 1e-9);
    // one run: over its problems
    EXPECT_NEAR(arm_numbers(arms[1]).before.low, 0.36, 1e-12);
}

TEST(Comparison, ThePageSaysWhatDiffers) {
    const std::vector<std::string> paths = two_arms();
    const std::string page = comparison_page(report_arms(paths));
    Html html(page);
    fetches_nothing(page);
    EXPECT_EQ(page, comparison_page(report_arms(paths)));
    for (const char* text :
         {"A weights int4:g32:sym", "B weights none", "<code>--weights</code></th><td>int4:g32:sym</td><td>none</td>",
          "1, 2, 3", "+25.0 points", "4 runs in 2 arms"})
        EXPECT_NE(page.find(text), std::string::npos) << text;
    EXPECT_EQ(page.find("<code>--output_dir</code>"), std::string::npos);
    EXPECT_EQ(page.find("<code>--seed</code>"), std::string::npos);
}

TEST(Comparison, AnArmEndsWhereItsFirstRunEnds) {
    std::vector<MadeUp> made;
    std::vector<std::string> paths = two_arms(&made);
    made[1].steps = 2;
    made[1].write();
    const std::vector<ReportArm> arms = report_arms({paths[0], paths[1]});
    ASSERT_EQ(arms.size(), 1u);
    EXPECT_EQ(arm_line(arms[0], {"reward"}).x, (std::vector<double>{1, 2}));
    EXPECT_NE(comparison_page(arms).find("its runs end at steps 2 to 4"), std::string::npos);
}

TEST(Comparison, RefusesWhatMakesNoSense) {
    std::vector<MadeUp> made;
    std::vector<std::string> paths = two_arms(&made);
    EXPECT_NE(failure([&] { report_arms({paths[0], paths[0] + "/"}); }).find("is given twice"), std::string::npos);
    made[1].config["seed"] = 1;
    made[1].write();
    EXPECT_NE(failure([&] {
                  report_arms({paths[0], paths[1]});
              }).find("the same options and the seed 1"),
              std::string::npos);
    paths.clear();
    for (int k = 0; k < 8; k++) {
        MadeUp m;
        m.config["learning_rate"] = 0.001 * k;
        paths.push_back(m.write());
    }
    EXPECT_NE(failure([&] { report_arms(paths); }).find("more than 7 arms"), std::string::npos);
    const std::string evaluation = fresh_folder();
    put(evaluation + "/config.json", "{\"command\":\"eval\"}");
    put(evaluation + "/results.json", "{\"results\":{}}");
    EXPECT_NE(failure([&] { report_arms({paths[0], evaluation}); }).find("train_qrl compare"), std::string::npos);
}

// ---------------------------------------------------------------------------------------------------------------------
// long series

TEST(Thinning, MeansAndExtremesOfEqualParts) {
    PlotSeries s;
    for (int i = 1; i <= 1000; i++) s.x.push_back(i), s.y.push_back(i % 10);
    s.y[4] = NAN;
    const PlotSeries t = plot_thinned(s, 100, true);
    ASSERT_EQ(t.x.size(), 100u);
    EXPECT_DOUBLE_EQ(t.x[1], 15.5);
    EXPECT_DOUBLE_EQ(t.y[1], 4.5);
    EXPECT_DOUBLE_EQ(t.low[1], 0);
    EXPECT_DOUBLE_EQ(t.high[1], 9);
    EXPECT_DOUBLE_EQ(t.y[0], 40.0 / 9.0) << "without the number that is missing";
    EXPECT_TRUE(plot_thinned(s, 100, false).low.empty());
    EXPECT_EQ(plot_thinned(s, 1000, true).x, s.x);
    s.low = s.high = s.y;
    for (size_t i = 0; i < 1000; i++) s.low[i] -= 1, s.high[i] += 2;
    const PlotSeries u = plot_thinned(s, 100, true);
    EXPECT_DOUBLE_EQ(u.low[1], 3.5);
    EXPECT_DOUBLE_EQ(u.high[1], 6.5);
}

TEST(Elided, KeepsTheEndAndCutsBetweenCharacters) {
    EXPECT_EQ(elided("short", 2, 2), "short");
    std::string s;
    for (int i = 0; i < 100; i++) s += "\xC3\xA4";
    const std::string e = elided(s + "end", 5, 6);
    EXPECT_TRUE(utf8_is_valid(e));
    EXPECT_EQ(e,
              "\xC3\xA4\xC3\xA4 [... 194 bytes left out ...] \xC3\xA4"
              "end");
}
