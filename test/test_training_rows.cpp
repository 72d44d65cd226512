// What a run makes of its rows: those that are too long, empty or wrong, and SVAMP's equations as worked solutions.
#include <gtest/gtest.h>
#include "../data/overlong_rows.h"
#include "file_test.h"

namespace {

std::string stderr_of(const std::function<void()>& f) {
    testing::internal::CaptureStderr();
    f();
    return testing::internal::GetCapturedStderr();
}

std::vector<SftExample> examples_in(const std::string& text) {
    TempDir dir;
    put(dir / "rows.jsonl", text);
    return load_sft(dir / "rows.jsonl");
}

std::string text_of(const std::vector<int>& ids) { return tokenizer_decode(tokenizer_byte_level(), ids); }

Problem asked(const std::string& question) {
    Problem p;
    p.question = question;
    p.source = "rows.jsonl";
    p.line = 7;
    return p;
}

OverlongRows rows_that(Overlong how) {
    OverlongRows o;
    o.how = how;
    return o;
}

Example learnt(const std::string& prompt, const std::string& completion) {
    Example e;
    append_tokens(tokenizer_byte_level(), prompt, e.prompt.tokens);
    append_tokens(tokenizer_byte_level(), completion, e.completion);
    return e;
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// equations

TEST(Equation, IsWorkedOutOneOperationALine) {
    struct {
        const char *equation, *steps;
        double value;
    } rows[] = {
        {"( 8.0 - 3.0 )", "8 - 3 = 5\n", 5},
        {"( ( 8.0 + 3.0 ) * 2.0 )", "8 + 3 = 11\n11 * 2 = 22\n", 22},
        {"( 8.0 - ( 3.0 + 2.0 ) )", "3 + 2 = 5\n8 - 5 = 3\n", 3},
        {"8.0", "", 8},
        {"2 + 3 * 4 - 6 / 4", "3 * 4 = 12\n2 + 12 = 14\n6 / 4 = 1.5\n14 - 1.5 = 12.5\n", 12.5},
        {"0.1 + 0.2", "0.1 + 0.2 = 0.3\n", 0.1 + 0.2},
        {"( 3.0 - 5.0 )", "3 - 5 = -2\n", -2},
    };
    for (const auto& r : rows) {
        const WorkedEquation w = work_out(r.equation);
        EXPECT_EQ(w.fault, "") << r.equation;
        EXPECT_EQ(w.steps, r.steps) << r.equation;
        EXPECT_EQ(w.value, r.value) << r.equation;
    }
    for (const char* bad : {"", "( 8.0", "8.0 )", "8 / 0", "8 x 2", "8 +", "1e999", "inf", "1 / 3"})
        EXPECT_NE(work_out(bad).fault, "") << bad;
    EXPECT_NE(work_out(std::string(100000, '(')).fault, "");
}

TEST(Svamp, EquationsAreLearntAsWorkedSolutions) {
    const std::string row =
        R"j({"Body": "B.", "Question": "Q?", "Equation": "( ( 8.0 + 3.0 ) * 2.0 )", "Answer": 22.0})j";
    const SftExample e = examples_in(row).at(0);
    EXPECT_EQ(e.prompt, "B. Q?");
    EXPECT_EQ(e.completion, "8 + 3 = 11\n11 * 2 = 22\n#### 22");
    EXPECT_TRUE(e.bare);
    std::string wrong = row;
    wrong.replace(wrong.find("22.0}"), 4, "21.0");
    expect_has(error_of([&] { examples_in(wrong); }),
               ":1: `Equation` '( ( 8.0 + 3.0 ) * 2.0 )' is 22, but `Answer` is '21'; so it is with 1 of the 1 rows");
}

TEST(Svamp, AllRowsButTheWrongOne) {
    const std::string path = "../shared/data/svamp/SVAMP.json";
    if (!file_exists(path)) GTEST_SKIP() << "needs " << path;
    std::vector<SftExample> all;
    const std::string said = stderr_of([&] { all = load_sft(path); });
    ASSERT_EQ(all.size(), 998u);
    expect_has(said, "2 of 1000 rows are left out, for they cannot be learnt; the first: ");
    EXPECT_EQ(all[0].completion, "76 - 25 = 51\n#### 51");
    for (const SftExample& e : all) EXPECT_LT(e.completion.size(), 60u) << e.completion;
}

// ---------------------------------------------------------------------------------------------------------------------
// empty rows

TEST(EmptyRows, UpToOnePercentAreLeftOutAndSaid) {
    auto rows = [](int empty, const char* bad) {
        std::string text;
        for (int i = 1; i <= 200; i++)
            text += i <= empty ? std::string(bad) + "\n"
                               : format("{\"prompt\": \"q%d\", \"completion\": \"a\", \"answer\": \"1\"}\n", i);
        return text;
    };
    for (const char* bad :
         {R"({"prompt": "q", "completion": " \n"})", R"({"prompt": "", "completion": "a"})", R"({"text": "\t"})",
          R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": " "}]})"}) {
        std::vector<SftExample> all;
        const std::string said = stderr_of([&] { all = examples_in(rows(2, bad)); });
        EXPECT_EQ(all.size(), 198u) << bad;
        expect_has(said, "2 of 200 rows are left out, for they cannot be learnt; the first: ");
        expect_has(error_of([&] { examples_in(rows(3, bad)); }), "so it is with 3 of the 200 rows");
    }
    TempDir dir;
    std::vector<Problem> problems;
    put(dir / "rows.jsonl", rows(2, R"({"prompt": "  ", "answer": "1"})"));
    const std::string said = stderr_of([&] { problems = load_problems(dir / "rows.jsonl"); });
    EXPECT_EQ(problems.size(), 198u);
    expect_has(said, "2 of 200 problems are left out, for they ask nothing; the first: ");
    // an answer that only calls a tool says something
    const std::string call = R"({"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {}}]})";
    EXPECT_EQ(examples_in(R"({"messages": [{"role": "user", "content": "q"}, )" + call + "]}").size(), 1u);
}

// ---------------------------------------------------------------------------------------------------------------------
// rows that are too long

TEST(OverlongRows, APromptLosesTheBeginningOfItsQuestion) {
    const Tokenizer tok = tokenizer_byte_level();
    PromptConfig plain, chat;
    chat.chat = ChatTemplate::chatml;
    chat.system_prompt = "S";
    plain.prompt_template = "Q: {question}\nA:";
    Problem conversation = asked("0123456789");
    conversation.messages = nlohmann::ordered_json::parse(
        R"([{"role": "user", "content": "first"}, {"role": "assistant", "content": "a"},
            {"role": "user", "content": "0123456789"}])");
    for (const auto& [config, problem] :
         {std::pair(plain, asked("0123456789")), {chat, asked("0123456789")}, {chat, conversation}}) {
        const Prompt whole = make_prompt(tok, problem, config);
        std::string want = whole.text;
        want.erase(want.find("0123"), 4);
        OverlongRows o = rows_that(Overlong::truncate);
        Prompt p = whole;
        EXPECT_TRUE(fit_prompt(o, tok, problem, config, {(int64_t)whole.tokens.size(), "x"}, p));
        EXPECT_EQ(p.text, whole.text);
        EXPECT_EQ(o.count, 0);
        EXPECT_TRUE(fit_prompt(o, tok, problem, config, {(int64_t)whole.tokens.size() - 4, "--flag 9"}, p));
        EXPECT_EQ(p.text, want);
        EXPECT_EQ(p.problem->question, "0123456789");  // by which the held-out ones are found
        EXPECT_EQ(o.count, 1);
        EXPECT_EQ(o.left_out, 0);
        // of the question must be left something
        EXPECT_FALSE(fit_prompt(o, tok, problem, config, {(int64_t)whole.tokens.size() - 10, "--flag 9"}, p));
        EXPECT_EQ(o.left_out, 1);
        expect_has(stderr_of([&] { say_overlong(o, "rows.jsonl"); }),
                   "note: rows.jsonl: 2 of 3 rows are longer than --flag 9 allows and are cut, but 1 of them are left "
                   "out (--overlong_rows truncate); the first: rows.jsonl:7 with " +
                       std::to_string(whole.tokens.size()) + " tokens\n");
    }
    // not within a character
    OverlongRows o = rows_that(Overlong::truncate);
    Prompt p = make_prompt(tok, asked("\xC3\xA9\xC3\xA9z"), {});
    ASSERT_TRUE(fit_prompt(o, tok, asked("\xC3\xA9\xC3\xA9z"), {}, {4, "x"}, p));
    EXPECT_EQ(p.text, "\xC3\xA9z");
    // left out unless it is to be cut
    o = rows_that(Overlong::drop);
    p = make_prompt(tok, asked("0123456789"), {});
    EXPECT_FALSE(fit_prompt(o, tok, asked("0123456789"), {}, {9, "--flag 9"}, p));
    expect_has(error_of([&] { say_overlong(o, "rows.jsonl"); }),
               "rows.jsonl: all 1 rows are longer than --flag 9 allows, and nothing is left to train on; raise it, or "
               "cut them with --overlong_rows truncate; the first: rows.jsonl:7 with 10 tokens");
}

TEST(OverlongRows, ACompletionLosesItsEnd) {
    std::vector<Example> all;
    OverlongRows o = rows_that(Overlong::truncate);
    auto add = [&](const Example& e, int64_t most) { add_fitting(o, all, e, "rows.jsonl", 3, {most, "--max_length"}); };
    add(learnt("abc", "defg"), 7);
    add(learnt("abc", "defg"), 5);
    add(learnt("abc", "defg"), 3);  // nothing to learn is left
    add(learnt("", "defg"), 2);
    add(learnt("", "defg"), 1);
    ASSERT_EQ(all.size(), 3u);
    EXPECT_EQ(text_of(all[0].completion), "defg");
    EXPECT_EQ(text_of(all[1].prompt.tokens) + "|" + text_of(all[1].completion), "abc|de");
    EXPECT_EQ(text_of(all[2].completion), "de");
    EXPECT_EQ(o.count, 4);
    EXPECT_EQ(o.left_out, 2);
    EXPECT_EQ(o.first, "rows.jsonl:3 with 7 tokens");
}

TEST(OverlongRows, ATextGoesOnInFurtherRows) {
    std::vector<Example> all;
    OverlongRows o = rows_that(Overlong::wrap);
    add_fitting(o, all, learnt("", "0123456789"), "rows.jsonl", 1, {4, "--max_length 4"});
    add_fitting(o, all, learnt("", "01234567x"), "rows.jsonl", 2,
                {4, "--max_length 4"});  // x alone has nothing before it
    add_fitting(o, all, learnt("p", "0123456789"), "rows.jsonl", 3, {4, "--max_length 4"});
    std::vector<std::string> pieces;
    for (const Example& e : all) pieces.push_back(text_of(e.completion));
    EXPECT_EQ(pieces, (std::vector<std::string>{"0123", "4567", "89", "0123", "4567"}));
    expect_has(stderr_of([&] { say_overlong(o, "rows.jsonl"); }),
               "3 of 3 rows are longer than --max_length 4 allows and go on in further rows, 3 of them, but 1 of them "
               "are left out (--overlong_rows wrap)");
}
