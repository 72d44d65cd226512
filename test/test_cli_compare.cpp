// train_qrl compare: what it makes of evaluations, and of what is none.
#include "cli.h"

struct Cell {
    std::string problem, gold = "7";
    int greedy = -1;           // right or wrong; -1: not done
    std::vector<int> sampled;  // of each: 0 wrong, 1 right, 2 right when graded leniently alone
};

static std::string row_text(const std::string& set, const Cell& c, const char* decoding, int sample, int grade) {
    return json{{"set", set},
                {"problem", c.problem},
                {"decoding", decoding},
                {"sample", sample},
                {"prompt", "6+1=?"},
                {"completion", "#### 7"},
                {"answer", "7"},
                {"gold", c.gold},
                {"strict", grade == 1},
                {"lenient", grade != 0},
                {"finished", true},
                {"length", 3},
                {"subject", ""},
                {"level", ""},
                {"rewards", json::object()}}
               .dump() +
           "\n";
}

static std::string rows_text(const std::vector<Cell>& cells, const std::string& set = "sums") {
    std::string text;
    for (const Cell& c : cells) {
        if (c.greedy >= 0) text += row_text(set, c, "greedy", 0, c.greedy);
        for (size_t i = 0; i < c.sampled.size(); i++) text += row_text(set, c, "sampled", (int)i, c.sampled[i]);
    }
    return text;
}

// a folder as train_qrl eval writes it
static std::string evaluation(const std::string& text, bool partial = false) {
    const std::string folder = fresh("evaluation");
    fs::create_directories(folder);
    write_text(folder + "/completions.jsonl", text);
    json results = {{"results", json::object()}};
    if (partial) results["partial"] = true;
    write_text(folder + "/results.json", results.dump());
    return folder;
}

static std::string evaluation(const std::vector<Cell>& cells) { return evaluation(rows_text(cells)); }

// n problems, greedily: those in [from, to) right
static std::vector<Cell> greedy_cells(int n, int from, int to) {
    std::vector<Cell> cells;
    for (int i = 0; i < n; i++) cells.push_back({"p" + std::to_string(i), "7", i >= from && i < to, {}});
    return cells;
}

static json compared(const Args& args) {
    const std::string path = fresh("comparison.json");
    good(Args{"compare", "--output", path} + args);
    return read_json(path);
}

static void expect_part(const std::string& text, const std::string& part) {
    EXPECT_NE(text.find(part), std::string::npos) << text << "\nlacks: " << part;
}

TEST(CliCompare, McNemarOfGreedyAnswers) {
    // 60 and 75 of 100 right; 5 only in the first, 20 only in the second: 2 P(X <= 5), X of 25 coins, is 0.00408
    const std::string a = evaluation(greedy_cells(100, 0, 60)), b = evaluation(greedy_cells(100, 5, 80));
    const json j = compared({a, b});
    const json& pair = j["sets"][0]["pairs"][0];
    EXPECT_EQ(j["sets"][0]["metric"], "greedy strict");
    EXPECT_EQ(pair["test"], "McNemar");
    EXPECT_NEAR(pair["p"].get<double>(), 0.004077315, 1e-8);
    EXPECT_EQ(pair["wins"], 20);
    EXPECT_EQ(pair["losses"], 5);
    EXPECT_EQ(pair["ties"], 75);
    EXPECT_NEAR(pair["difference"].get<double>(), 0.15, 1e-12);
    EXPECT_GT(pair["interval"][0].get<double>(), 0.04);
    EXPECT_LT(pair["interval"][1].get<double>(), 0.26);
    EXPECT_EQ(pair["verdict"], "B is better");
    EXPECT_NEAR(j["sets"][0]["arms"][0]["value"].get<double>(), 0.6, 1e-12);
    // Jeffreys: the 2.5 and 97.5 % quantiles of Beta(60.5, 40.5)
    EXPECT_NEAR(j["sets"][0]["arms"][0]["interval"][0].get<double>(), 0.5021, 1e-3);
    EXPECT_NEAR(j["sets"][0]["arms"][0]["interval"][1].get<double>(), 0.6921, 1e-3);
    const Outcome r = good({"compare", a, b});
    expect_part(r.out, "B - A");
    expect_part(r.out, "+15.0");
    expect_part(r.out, "[50.2, 69.2]");
    expect_part(r.out, "B is better");
    EXPECT_EQ(good({"compare", a, b}).out, r.out) << "the same input, the same bits";
    const json same = compared({a + "/completions.jsonl", evaluation(greedy_cells(100, 0, 60))});
    EXPECT_EQ(same["sets"][0]["pairs"][0]["verdict"], "the same on every problem");
    EXPECT_EQ(same["sets"][0]["pairs"][0]["p"], 1.0);
}

TEST(CliCompare, SamplesGreedyAndDisagreement) {
    std::vector<Cell> a, b;
    for (int i = 0; i < 40; i++) {
        const std::string name = "p" + std::to_string(i);
        a.push_back({name, "7", i < 20, {i < 20, i < 30, 2, 0}});
        b.push_back({name, "7", i < 22, {i < 20, 1, 2, i < 8}});
    }
    const std::string first = evaluation(a), second = evaluation(b);
    const json j = compared({first, second, "--margin", "40"});
    const json &set = j["sets"][0], &pair = set["pairs"][0];
    EXPECT_EQ(set["metric"], "pass@1 strict");
    EXPECT_NEAR(set["arms"][0]["value"].get<double>(), 50.0 / 160, 1e-12);
    EXPECT_NEAR(set["arms"][0]["lenient"].get<double>(), 90.0 / 160, 1e-12);
    EXPECT_NEAR(set["arms"][0]["disagreement"].get<double>(), 0.25, 1e-12);
    EXPECT_NEAR(set["arms"][1]["greedy"].get<double>(), 22.0 / 40, 1e-12);
    EXPECT_NEAR(pair["greedy_difference"].get<double>(), 2.0 / 40, 1e-12);
    EXPECT_EQ(pair["test"], "sign flips, exact");
    EXPECT_EQ(pair["wins"], 18);  // 8 by the last sample, 10 by the second one
    EXPECT_NEAR(pair["p"].get<double>(), std::pow(2.0, -17), 1e-12);
    EXPECT_EQ(pair["verdict"], "B is better, and equal within 40 points");
    EXPECT_EQ(compared({first, second, "--metric", "lenient"})["sets"][0]["metric"], "pass@1 lenient");
    EXPECT_EQ(compared({first, second, "--metric", "greedy"})["sets"][0]["pairs"][0]["test"], "McNemar");
    const json pass2 = compared({first, second, "--metric", "pass@2"});
    EXPECT_NEAR(pass2["sets"][0]["arms"][0]["value"].get<double>(), (20 * 5.0 / 6 + 10 * 0.5) / 40, 1e-12);
    EXPECT_EQ(pass2["sets"][0]["pairs"][0]["test"], "sign flips, sampled");
}

TEST(CliCompare, HolmOverAllPairsOfAllSets) {
    std::string paths[3];
    for (int i = 0; i < 3; i++)
        paths[i] =
            evaluation(rows_text(greedy_cells(60, 0, 30 + 5 * i), "x") + rows_text(greedy_cells(50, 0, 20 + i), "y"));
    const json base = compared({paths[0], paths[1], paths[2]});
    ASSERT_EQ(base["sets"].size(), 2u);
    EXPECT_EQ(base["sets"][0]["pairs"].size(), 2u);
    // 5 and 10 better, none worse; 1 and 2: p = 2^-4, 2^-9, 1, 0.5
    EXPECT_NEAR(base["sets"][0]["pairs"][1]["p_holm"].get<double>(), 4.0 / 512, 1e-9);
    EXPECT_NEAR(base["sets"][0]["pairs"][0]["p_holm"].get<double>(), 3.0 / 16, 1e-9);
    EXPECT_EQ(base["sets"][1]["pairs"][1]["p_holm"], 1.0);
    const json all = compared({paths[0], paths[1], paths[2], "--pairs", "all", "--set", "x"});
    ASSERT_EQ(all["sets"].size(), 1u);
    ASSERT_EQ(all["sets"][0]["pairs"].size(), 3u);
    EXPECT_EQ(all["sets"][0]["pairs"][2]["baseline"], "B");
    EXPECT_EQ(all["sets"][0]["pairs"][2]["other"], "C");
    EXPECT_NEAR(all["sets"][0]["pairs"][1]["p_holm"].get<double>(), 3.0 / 512, 1e-9);
    refused(2, {"compare", paths[0], paths[1], "--set", "z"}, {"--set z", "x, y"});
}

TEST(CliCompare, SeedsOfAnArm) {
    std::string a, b;
    for (int s = 0; s < 3; s++) {
        a += (s ? "," : "") + evaluation(greedy_cells(100, 0, 50 + 2 * s));
        b += (s ? "," : "") + evaluation(greedy_cells(100, 0, 70 + 3 * s));
    }
    const json j = compared({a, b});
    const json& pair = j["sets"][0]["pairs"][0];
    EXPECT_EQ(j["arms"][0]["runs"].size(), 3u);
    EXPECT_EQ(pair["test"], "Student's t over seeds and problems");
    EXPECT_NEAR(pair["difference"].get<double>(), 0.21, 1e-12);
    EXPECT_EQ(pair["verdict"], "B is better");
    EXPECT_LT(pair["interval"][0], pair["hierarchical_bootstrap"][0]) << "three seeds know less than that";
    EXPECT_EQ(good({"compare", a, b}).out.find("an arm of one run"), std::string::npos);
    expect_part(good({"compare", a, b}).out, "degrees of freedom; hierarchical bootstrap [+");
    // one run against three
    expect_part(good({"compare", evaluation(greedy_cells(100, 0, 50)), b}).out, "an arm of one run");
    const std::string comma = fresh("a,b");
    fs::copy(evaluation(greedy_cells(100, 0, 51)), comma, fs::copy_options::recursive);
    EXPECT_EQ(compared({comma, b})["arms"][0]["runs"].size(), 1u) << "a folder with a comma in its name";
}

TEST(CliCompare, OnWhatTheyShare) {
    const std::string all = evaluation(greedy_cells(30, 0, 20));
    std::vector<Cell> some = greedy_cells(25, 0, 10);
    some.push_back({"only here", "7", 1, {}});
    const std::string less = evaluation(some);
    const Outcome r = good({"compare", all, less});
    expect_part(r.out, "A has 30 problems and B 26: compared on the 25 that both have, where A has 80.0 and B 40.0");
    EXPECT_EQ(compared({all, less})["sets"][0]["pairs"][0]["problems"], 25);
    const std::string other = evaluation({{"elsewhere", "7", 1, {}}});
    refused(1, {"compare", all, other}, {"nothing to compare", "A has 30 problems and B 1", "share none"});
    const std::string set = evaluation(rows_text(greedy_cells(5, 0, 2), "else"));
    refused(1, {"compare", all, set}, {"nothing to compare", "does not have this set"});
    // of three, two share
    expect_part(good({"compare", all, other, less}).out, "note: A has 30 problems and B 1, and they share none");
    std::vector<Cell> sampled = greedy_cells(30, 0, 20);
    for (Cell& c : sampled) c.sampled = {1, 0};
    sampled[3].sampled = {1};
    const std::string uneven = evaluation(sampled);
    std::vector<Cell> four = greedy_cells(30, 0, 20);
    for (Cell& c : four) c.sampled = {1, 0, 1, 1};
    const std::string said = good({"compare", uneven, evaluation(four)}).out;
    expect_part(said, "A has 1 to 2 completions a problem");
    expect_part(said, "A has 2 completions a problem and B 4");
    refused(1, {"compare", all, uneven, "--metric", "strict"}, {"nothing to compare", "pass@1 strict"});
}

TEST(CliCompare, SaysWhatDidNotEnd) {
    const std::string a = evaluation(greedy_cells(30, 0, 20));
    const std::string partial = evaluation(rows_text(greedy_cells(20, 0, 20)), true);
    expect_part(good({"compare", a, partial}).out, "its results.json says that it is partial");
    EXPECT_EQ(compared({a, partial})["arms"][1]["runs"][0]["partial"], true);
    EXPECT_EQ(compared({a, partial})["arms"][0]["runs"][0]["partial"], false);
    fs::remove(partial + "/results.json");
    expect_part(good({"compare", a, partial}).out, "it has no results.json, so it did not end");
    write_text(partial + "/results.json", "{\"partial\": ");
    refused(1, {"compare", a, partial}, {"results.json", "not valid JSON"});
}

// the options of both, where they differ and may change a completion
TEST(CliCompare, SaysWhatDiffers) {
    const std::string a = evaluation(greedy_cells(30, 0, 20)), b = evaluation(greedy_cells(30, 0, 25));
    json config = {{"weights", "none"}, {"temperature", 0.5}, {"num_fewshot", nullptr}, {"output_dir", "a"}};
    auto configure = [](const std::string& folder, const json& options) {
        write_text(folder + "/results.json", json{{"config", options}}.dump());
    };
    configure(a, config);
    EXPECT_EQ(good({"compare", a, b}).out.find("--weights"), std::string::npos) << "of b nothing is known";
    config["weights"] = "int8\x1b[2J", config["output_dir"] = "b", config["num_fewshot"] = 5;
    configure(b, config);
    const std::string said = good({"compare", a, b}).out;
    expect_part(said, "--weights: A none; B int8\\x1B[2J\n");
    expect_part(said, "--num_fewshot: A unset; B 5\n");
    EXPECT_EQ(said.find("--output_dir"), std::string::npos) << said;
    EXPECT_EQ(said.find("--temperature"), std::string::npos) << said;
    EXPECT_EQ(compared({a, b})["differing_options"]["num_fewshot"], json({{"A", {"unset"}}, {"B", {"5"}}}));
}

// no column of blanks, none twice
TEST(CliCompare, ColumnsThatHoldSomething) {
    std::vector<Cell> cells = greedy_cells(30, 0, 20), both = cells;
    for (Cell& c : both) c.sampled = {1, 0};
    auto header = [](const std::vector<Cell>& all, const std::vector<Cell>& others) {
        const std::string out = good({"compare", evaluation(all), evaluation(others)}).out;
        const size_t at = out.find("\n     problems  runs") + 1;
        return out.substr(at, out.find('\n', at) - at);
    };
    EXPECT_EQ(header(cells, greedy_cells(30, 0, 21)),
              "     problems  runs  samples  greedy strict  95 % interval  greedy lenient  disagree");
    EXPECT_EQ(
        header(both, both),
        "     problems  runs  samples  pass@1 strict  95 % interval  pass@1 lenient  greedy strict  greedy lenient  "
        "disagree");
}

TEST(CliCompare, RefusesWhatIsNoEvaluation) {
    const std::string a = evaluation(greedy_cells(30, 0, 20)),
                      row = row_text("sums", {"p0", "7", 1, {}}, "greedy", 0, 1);
    refused(2, {"compare"}, {"two evaluations"});
    refused(2, {"compare", a}, {"two evaluations"});
    refused(2, {"compare", a, a}, {"given twice"});
    refused(2, {"compare", a, a + "/."}, {"given twice"});
    refused(2, {"compare", a, evaluation(greedy_cells(3, 0, 2)) + ","}, {"empty name"});
    refused(2, {"compare", a, "b", "--metric", "stric"}, {"--metric stric", "did you mean strict?"});
    refused(1, {"compare", a, root + "/nowhere"}, {"/nowhere", "no such file or folder"});
    refused(1, {"compare", a, root}, {"holds no completions.jsonl", "--log_completions"});
    refused(2, {"eval", a}, {"unexpected argument"});
    auto wrong = [&](const std::string& text, const Args& parts) {
        const std::string e = evaluation(text);
        refused(1, {"compare", a, e}, Args{e + "/completions.jsonl"} + parts);
    };
    wrong("", {"no rows"});
    wrong("[]\n", {"no rows"});
    wrong("7\n", {":1", "not an object"});
    wrong(row + "{\"set\": \n", {":2", "not valid JSON"});
    wrong(row + row, {":2", "greedy sample 0 twice"});
    for (const char* field : {"set", "problem", "decoding", "sample", "gold", "strict", "lenient"}) {
        json less = json::parse(row), other = less;
        less.erase(field);
        wrong(less.dump() + "\n", {":1", std::string("no `") + field + "`"});
        other[field] = json::array({std::string(1000, 'x')});
        wrong(other.dump() + "\n", {":1", std::string("`") + field + "` is "});
    }
    for (const json& sample : {json(-1), json(0.5), json(1e300), json(1ull << 40), json("0")}) {
        json other = json::parse(row);
        other["sample"] = sample;
        wrong(other.dump() + "\n", {":1", "`sample` is", "whole number"});
    }
    json other = json::parse(row);
    other["decoding"] = "beam\x1b[2J";
    wrong(other.dump() + "\n", {":1", "'beam\\x1B[2J'"});
    other = json::parse(row);
    other["gold"] = "8", other["decoding"] = "sampled";
    wrong(row + other.dump() + "\n", {":2", "'8'", "'7'", "two problems have one name"});
    // the same names in another data set
    refused(1, {"compare", a, evaluation(rows_text({{"p0", "8", 1, {}}}))}, {"'p0'", "'8'", "two data sets"});
    // what a file calls itself moves no cursor
    EXPECT_EQ(good({"compare", evaluation(rows_text(greedy_cells(9, 0, 2), "\x1b[2J")),
                    evaluation(rows_text(greedy_cells(9, 0, 3), "\x1b[2J"))})
                  .out.find('\x1b'),
              std::string::npos);
}

TEST(CliCompare, ConfigFileAndOutput) {
    const std::string a = evaluation(greedy_cells(30, 0, 20)), b = evaluation(greedy_cells(30, 3, 20));
    const std::string config = fresh("config.json"), output = fresh("out.json");
    write_text(config, json{{"command", "compare"}, {"arguments", {a, b}}, {"margin", 5}, {"output", output}}.dump());
    good({"--config", config});
    const json j = read_json(output);
    EXPECT_EQ(j["options"]["arguments"], json({a, b}));
    EXPECT_TRUE(j["sets"][0]["pairs"][0].contains("equality_p_holm"));
    const std::string again = fresh("again.json");  // what it says of its options can be given to it
    json options = j["options"];
    options["output"] = again;
    write_text(config, options.dump());
    good({"--config", config});
    EXPECT_EQ(read_json(again)["sets"], j["sets"]);
    write_text(config, json{{"command", "compare"}, {"arguments", "a b"}}.dump());
    refused(2, {"--config", config}, {"arguments: not a list of texts"});
    refused(1, {"compare", a, b, "--output", root + "/no/folder.json"}, {"cannot create", "create its folder first"});
    expect_part(good({"help", "compare"}).out, "usage: train_qrl compare EVALUATION EVALUATION ...");
    RunSetting full;
    full.output = "/dev/full";
    refused(1, {"compare", a, b}, {"standard output cannot be written"}, full);
}
