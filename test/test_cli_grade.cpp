// The grade command: rows in, verdicts out, counts on standard error; bad rows by their line.
#include "cli.h"

static std::vector<json> graded(const std::string& input, std::string* report = nullptr) {
    const Outcome r = good({"grade"}, input);
    std::vector<json> rows;
    std::stringstream s(r.out);
    for (std::string line; std::getline(s, line);) rows.push_back(json::parse(line, nullptr, false));
    if (report) *report = r.err;
    return rows;
}

TEST(CliGrade, BareAnswers) {
    std::string report;
    const std::vector<json> rows = graded(
        "{\"id\": 7, \"gold\": \"1/2\", \"prediction\": \"0.5\", \"note\": [1]}\n\n"
        "{\"gold\": 18, \"prediction\": 18.5}\n"
        "{\"gold\": \"\", \"prediction\": \"\"}\n",
        &report);
    ASSERT_EQ(rows.size(), 3u);
    EXPECT_EQ(rows[0].dump(), R"({"id":7,"gold":"1/2","prediction":"0.5","note":[1],"verdict":"correct"})");
    EXPECT_EQ(rows[1]["verdict"], "wrong");
    EXPECT_EQ(rows[2]["verdict"], "unparsable");
    EXPECT_EQ(report, "graded 3: 1 correct, 1 wrong, 1 whose gold cannot be read\n");
}

// strict is what the reward `exact` pays for, lenient what `accuracy` does
TEST(CliGrade, Completions) {
    auto row = [](const char* gold, const char* completion, const char* finished = nullptr) {
        json j = {{"gold", gold}, {"completion", completion}};
        if (finished) j["finished"] = std::string(finished) == "true";
        return j.dump() + "\n";
    };
    std::string report;
    const std::vector<json> rows =
        graded(row("18", "so \\boxed{18}.") + row("18", "#### 18", "false") + row("18", "The answer is 18.", "true") +
                   row("18", "it is 17") + row("C", "I say (C), surely") + row("18", "no idea") + row("", "\\boxed{1}"),
               &report);
    const char* const want[][5] = {
        {"correct", "true", "true", "18", "boxed"},    {"correct", "false", "true", "18", "hash"},
        {"correct", "false", "true", "18", "phrase"},  {"wrong", "false", "false", "17", "number"},
        {"correct", "false", "true", "C", "choice"},   {"wrong", "false", "false", "", "none"},
        {"unparsable", "false", "false", "1", "boxed"}};
    ASSERT_EQ(rows.size(), 7u);
    for (size_t i = 0; i < 7; i++) {
        EXPECT_EQ(rows[i]["verdict"], want[i][0]) << rows[i];
        EXPECT_EQ(rows[i]["strict"].dump(), want[i][1]) << rows[i];
        EXPECT_EQ(rows[i]["lenient"].dump(), want[i][2]) << rows[i];
        EXPECT_EQ(rows[i]["answer"], want[i][3]) << rows[i];
        EXPECT_EQ(rows[i]["rule"], want[i][4]) << rows[i];
    }
    EXPECT_EQ(
        report,
        "graded 7: 4 correct, 2 wrong, 1 whose gold cannot be read; of 7 completions 1 right by strict rules, 4 by "
        "lenient ones, 3 where they disagree\n");
}

// a program that asks for one verdict after the other gets each at once, and the first within a second
TEST(CliGrade, AnswersWhileTheInputIsOpen) {
    RunSetting setting;
    setting.input = "{\"gold\": \"2\", \"prediction\": \"2\"}\n";
    setting.hold_input = true;
    setting.seconds = 20;
    const auto start = std::chrono::steady_clock::now();
    double first = -1;
    setting.when = [&](const Outcome& r) {
        if (r.out.find("correct") == std::string::npos) return false;
        first = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        return true;  // it is stopped while it waits
    };
    const Outcome r = run({"grade"}, setting);
    EXPECT_GE(first, 0.0) << r.out << r.err;
    EXPECT_LT(first, 5.0 * slowness());
    EXPECT_EQ(r.status, 128 + SIGINT);
}

TEST(CliGrade, BadRows) {
    auto with = [](const std::string& text) {
        RunSetting s;
        s.input = text;
        return s;
    };
    const std::string fine = "{\"gold\": \"2\", \"prediction\": \"2\"}\n";
    refused(1, {"grade"}, {"standard input:2", "JSON"}, with(fine + "gold\n"));
    refused(1, {"grade"}, {"standard input:2", "not an object"}, with(fine + "[1]\n"));
    refused(1, {"grade"}, {"standard input:1", "gold is missing"}, with("{\"prediction\": \"2\"}\n"));
    refused(1, {"grade"}, {"standard input:1", "prediction", "completion"}, with("{\"gold\": \"2\"}\n"));
    refused(1, {"grade"}, {"standard input:1", "prediction", "completion"},
            with("{\"gold\": \"2\", \"prediction\": \"2\", \"completion\": \"2\"}\n"));
    refused(1, {"grade"}, {"standard input:1", "gold is neither"},
            with("{\"gold\": [\"2\"], \"prediction\": \"2\"}\n"));
    refused(1, {"grade"}, {"standard input:1", "completion is not a string"},
            with("{\"gold\": 2, \"completion\": 2}\n"));
    refused(1, {"grade"}, {"standard input:1", "finished is neither"},
            with("{\"gold\": \"2\", \"completion\": \"2\", \"finished\": 1}\n"));
    refused(2, {"grade", "--model", "x"}, {"--model", "grade"});
}
