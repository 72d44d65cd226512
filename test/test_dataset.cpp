// Data sets: the accepted shapes, that a bad row stops the run with its line, GSM8K's own files, and the epoch's order.
#include <gtest/gtest.h>
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include "../data/examples.h"
#include "../data/tasks/tasks.h"

static std::string temp_path() {
    return (std::filesystem::temp_directory_path() / format("test_dataset_%ld.jsonl", (long)getpid())).string();
}

struct DataFile {
    std::string path = temp_path();
    explicit DataFile(const std::string& text) { std::ofstream(path, std::ios::binary) << text; }
    ~DataFile() { std::filesystem::remove(path); }
};

static std::vector<Problem> problems_in(const std::string& text) {
    DataFile f(text);
    return load_problems(f.path);
}
static std::vector<SftExample> sft_in(const std::string& text) {
    DataFile f(text);
    return load_sft(f.path);
}
static std::string gold_of(const std::string& row) { return problems_in(row).at(0).gold; }

template <typename Load>
static std::string error_of(Load load, const std::string& text) {
    DataFile f(text);
    try {
        load(f.path);
    } catch (const Error& e) {
        std::string what = e.what();
        EXPECT_EQ(e.exit_code, 1) << what;
        EXPECT_EQ(what.find('\n'), std::string::npos) << what;
        EXPECT_EQ(what.find(f.path), 0u) << what;
        EXPECT_LT(what.size(), 1000u);
        return what.substr(std::min(what.size(), f.path.size()));
    }
    ADD_FAILURE() << "accepted: " << text.substr(0, 200);
    return "";
}
static void expect_error(const std::string& text, const std::string& part) {
    std::string what = error_of([](const std::string& path) { load_problems(path); }, text);
    EXPECT_NE(what.find(part), std::string::npos) << what << "\nlacks: " << part;
}
static void expect_sft_error(const std::string& text, const std::string& part) {
    std::string what = error_of([](const std::string& path) { load_sft(path); }, text);
    EXPECT_NE(what.find(part), std::string::npos) << what << "\nlacks: " << part;
}

TEST(Problems, Shapes) {
    std::vector<Problem> p = problems_in(
        "{\"question\": \"q1\", \"answer\": \"#### 1\\nso\\n#### 1,072 \"}\n"
        "{\"prompt\": \"q2\", \"solution\": \"3/4\"}\n"
        "{\"prompt\": [{\"role\": \"system\", \"content\": \"s\"}, {\"role\": \"user\", \"content\": \"q3\", \"name\": "
        "\"n\"}],"
        " \"ground_truth\": 7}\n"
        "{\"problem\": \"q4\", \"solution\": \"so $\\\\boxed{1}$ or $\\\\boxed{\\\\frac{1}{2}}$.\"}\n"
        "{\"problem\": \"q5\", \"answer\": \"x\", \"solution\": \"unboxed\"}");
    ASSERT_EQ(p.size(), 5u);
    EXPECT_EQ(p[0].question, "q1");
    EXPECT_EQ(p[0].gold, "1,072");
    EXPECT_TRUE(p[0].messages.is_null());
    EXPECT_EQ(p[0].source, temp_path());
    EXPECT_EQ(p[0].line, 1);
    EXPECT_EQ(p[1].gold, "3/4");
    EXPECT_EQ(p[2].question, "q3");
    EXPECT_EQ(p[2].gold, "7");
    EXPECT_EQ(p[2].messages.size(), 2u);
    EXPECT_EQ(p[2].messages[1]["name"], "n");
    EXPECT_EQ(p[3].gold, "\\frac{1}{2}");
    EXPECT_EQ(p[4].gold, "x");
    EXPECT_EQ(p[4].line, 5);
}

TEST(Problems, Gold) {
    EXPECT_EQ(gold_of("{\"prompt\": \"q\", \"answer\": \"work\\n#### 5\\nbye\"}"), "5");
    EXPECT_EQ(gold_of("{\"prompt\": \"q\", \"answer\": null, \"label\": \" b \"}"), "b");
    EXPECT_EQ(gold_of("{\"prompt\": \"q\", \"answer\": \"a\", \"label\": \"b\"}"), "a");
    EXPECT_EQ(gold_of("{\"prompt\": \"q\", \"answer\": -0.5}"), "-0.5");
    EXPECT_EQ(gold_of("{\"question\": \"q\", \"answer\": 42}"), "42");
    EXPECT_EQ(gold_of("{\"prompt\": \"q\", \"answer\": \"\\\\boxed{\\\\{1\\\\}}\"}"), "\\{1\\}");
    EXPECT_EQ(gold_of("{\"question\": \"q\", \"answer\": \" 72 \"}"), "72");  // AMC23's
    expect_error("{\"question\": \"q\", \"answer\": \"9 * 8 = 72\"}", ":1: no final answer in `answer`");
    expect_error("{\"question\": \"q\", \"answer\": \"She had 72\\nof them\"}", ":1: no final answer in `answer`");
    expect_error("{\"question\": \"q\", \"answer\": \"" + std::string(65, '7') + "\"}", "no final answer in `answer`");
    expect_error("{\"question\": \"q\", \"answer\": \"so\\n####  \"}", ":1: the final answer in `answer` is empty");
    expect_error("{\"prompt\": \"q\", \"answer\": \" \"}", "`answer` is empty");
    expect_error("{\"prompt\": \"q\", \"answer\": \"\\\\boxed{ }\"}", "is empty");
    expect_error("{\"problem\": \"q\", \"solution\": \"no box\"}", "no final answer in `solution`");
    expect_error("{\"problem\": \"q\", \"solution\": \"\\\\boxed{1\"}", "no final answer in `solution`");
    expect_error("{\"prompt\": \"q\", \"answer\": [\"1\"]}", "`answer` is array, not text");
    expect_error("{\"prompt\": \"q\", \"answer\": true}", "`answer` is boolean, not text");
    expect_error("{\"prompt\": \"q\", \"answer\": 123456789012345678901234567890}", "too large to be exact");
    EXPECT_EQ(problems_in("{\"prompt\": \"q\", \"answer\": 9007199254740993}")[0].gold, "9007199254740993");
    EXPECT_EQ(problems_in("{\"prompt\": \"q\", \"answer\": -0.5}")[0].gold, "-0.5");
}

TEST(Problems, BadRows) {
    const std::string good = "{\"prompt\": \"q\", \"answer\": \"a\"}\n";
    expect_error("", " holds no rows");
    expect_error("\n \r\n", " holds no rows");
    expect_error(good + "\n{\"prompt\": \"q\" \"answer\"}", ":3: not valid JSON at byte 23");
    expect_error(good + "{\"prompt\": \"q\", \"answer\": \"a\"", ":2:");  // the last line is torn
    expect_error("[" + good, ":1:");
    expect_error("[1]", ":1: '1' where an object is expected, after row 0 of the list");
    expect_error("3", "holds number");
    expect_error(good + "{\"Prompt\": 1, \"answer\": 2}",
                 ":2: no `question`, `prompt` or `problem`; the row has: 'Prompt', 'answer'");
    expect_error("{}", "the row has: none");
    expect_error("{\"prompt\": \"q\"}", "no `answer`, `solution`, `ground_truth` or `label` beside `prompt`");
    expect_error("{\"question\": \"q\", \"label\": \"1\"}",
                 "no `answer` or `solution` beside `question`, and what is graded needs its answer");
    expect_error("{\"question\": 1, \"answer\": \"#### 1\"}", "`question` is number, not text");
    expect_error("{\"question\": \" \", \"answer\": \"#### 1\"}", "`question` is empty");
    expect_error("{\"prompt\": 1, \"answer\": \"1\"}", "`prompt` is number, not a list of messages");
    expect_error("{\"prompt\": [], \"answer\": \"1\"}", "`prompt` has no messages");
    expect_error("{\"prompt\": [1], \"answer\": \"1\"}", "message 1 of `prompt` has no text `role`");
    expect_error("{\"prompt\": [{\"role\": \"user\", \"content\": [\"x\"]}], \"answer\": \"1\"}",
                 "has no text `content`");
    expect_error("{\"prompt\": [{\"role\": \"system\", \"content\": \"x\"}], \"answer\": \"1\"}",
                 "no text of the user");
    expect_error(
        "{\"prompt\": [{\"role\": \"user\", \"content\": \"x\"}, {\"role\": \"assistant\", \"content\": \"y\"}],"
        " \"answer\": \"1\"}",
        "ends with a message of the assistant");
    expect_error("{\"prompt\": \"q\", \"prompt\": \"r\", \"answer\": \"1\"}", "the key 'prompt' appears twice");
    expect_error("{\"prompt\": \"q\", \"answer\": 1e999}",
                 ":1: not valid JSON at byte 31: a number beyond the range of a double");
    expect_error("{\"prompt\": \"\\ud800\", \"answer\": \"1\"}", "not valid JSON");
    expect_error("{\"x\": " + std::string(1 << 20, '['), "nested deeper");
    expect_error(good + "{\"prompt\": \"\xFF\", \"answer\": \"1\"}",
                 ":2: not valid JSON at byte 13: a string is not valid UTF-8");
    expect_error(std::string("{\"prompt\": \"q\0\"}", 15), ":1:");
    std::string many = "{";
    for (int i = 0; i < 1000; i++) many += format("%s\"k%d\": 1", i ? "," : "", i);
    expect_error(many + "}", "'k11', ...");
    EXPECT_THROW(load_problems("/nonexistent.jsonl"), Error);
    EXPECT_THROW(load_problems("/"), Error);
    EXPECT_THROW(load_problems("/dev/zero"), Error);
}

TEST(Problems, ToleratesBomCrlfAndBlankLines) {
    std::vector<Problem> p = problems_in(
        "\xEF\xBB\xBF\xEF\xBB\xBF{\"prompt\": \"a\", \"answer\": \"1\"}\r\n\r\n  \t\n"
        "\xEF\xBB\xBF{\"prompt\": \"b\", \"answer\": \"2\"}\r\n\xEF\xBB\xBF");
    ASSERT_EQ(p.size(), 2u);
    EXPECT_EQ(p[0].question, "a");
    EXPECT_EQ(p[0].gold, "1");
    EXPECT_EQ(p[1].question, "b");
    EXPECT_EQ(p[1].line, 4);
}

TEST(Lines, CrossTheBlocksOfTheReader) {
    // lengths around the reader's 256 KiB block, so that the newline falls on every side of its edge
    for (int delta = -3; delta <= 3; delta++) {
        std::string shell = "{\"prompt\": \"\", \"answer\": \"1\"}";
        std::string x((256 << 10) - shell.size() + (size_t)(delta + 3) - 3, 'x');
        std::string row = "{\"prompt\": \"" + x + "\", \"answer\": \"1\"}";
        for (const char* end : {"", "\n"}) {
            std::vector<Problem> p = problems_in(row + "\n" + row + end);
            ASSERT_EQ(p.size(), 2u) << delta;
            EXPECT_EQ(p[0].question, x);
            EXPECT_EQ(p[1].question, x);
        }
    }
}

TEST(Lines, ALineBeyondTheLimitIsRefused) {
    std::string path = temp_path();
    std::ofstream(path) << "{}";
    std::filesystem::resize_file(path, (uint64_t)3 << 30);  // a hole: 3 GiB of zeros and no newline
    std::string line;
    LineReader reader(path);
    EXPECT_THROW(reader.next(&line), Error);
    EXPECT_LE(line.size(), DATASET_MAX_LINE);
    std::filesystem::remove(path);
}

TEST(Utf8, WellFormedOrNot) {
    for (const char* good : {"", "a", "\xC2\x80", "\xDF\xBF", "\xE0\xA0\x80", "\xED\x9F\xBF", "\xEE\x80\x80",
                             "\xF0\x90\x80\x80", "\xF4\x8F\xBF\xBF"})
        EXPECT_EQ(utf8_error_offset(good), -1) << good;
    for (const char* bad :
         {"\x80", "\xC1\xBF", "\xC0\x80", "\xC2", "\xC2\x41", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xE1\x80",
          "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xF1\x80\x80", "\xFF"})
        EXPECT_EQ(utf8_error_offset(std::string("ab") + bad), 2);
    EXPECT_EQ(utf8_error_offset("\xC3\xA9\xFFz"), 2);
}

TEST(Sft, Shapes) {
    std::vector<SftExample> e = sft_in(
        "{\"prompt\": \"p\", \"completion\": \" c\"}\n"
        "{\"question\": \"q\", \"answer\": \"w\\n#### 3\"}\n"
        "{\"text\": \"t\"}\n"
        "{\"messages\": [{\"role\": \"user\", \"content\": \"u\"}, {\"role\": \"assistant\", \"content\": \"a\"}]}\n"
        "{\"prompt\": [{\"role\": \"user\", \"content\": \"u\"}], \"completion\": [{\"role\": \"assistant\", "
        "\"content\": \"a\"}]}\n"
        "{\"problem\": \"q\", \"solution\": \"s\"}\n");
    ASSERT_EQ(e.size(), 6u);
    EXPECT_EQ(e[0].prompt, "p");
    EXPECT_EQ(e[0].completion, " c");  // blanks belong to the text
    EXPECT_EQ(e[1].prompt, "q");
    EXPECT_EQ(e[1].completion, "w\n#### 3");
    EXPECT_EQ(e[2].prompt, "");
    EXPECT_EQ(e[2].completion, "t");
    for (int i : {3, 4}) {
        EXPECT_EQ(e[(size_t)i].messages.size(), 2u);
        EXPECT_EQ(e[(size_t)i].prompt_messages, 1);
        EXPECT_EQ(e[(size_t)i].line, i + 1);
    }
    EXPECT_TRUE(e[5].messages.is_null());
    EXPECT_EQ(e[5].completion, "s");
}

TEST(Sft, BadRows) {
    expect_sft_error("{\"x\": 1}", ":1: no `messages`, `prompt`, `question`, `problem` or `text`; the row has: 'x'");
    expect_sft_error("{\"prompt\": \"p\"}", "no `completion` beside `prompt`");
    expect_sft_error("{\"question\": \"p\"}", "no `answer` beside `question`");
    expect_sft_error("{\"prompt\": \"p\", \"completion\": \"\"}", "`completion` is empty");
    expect_sft_error("{\"prompt\": \"p\", \"completion\": [{\"role\": \"assistant\", \"content\": \"a\"}]}",
                     "both be text or both");
    expect_sft_error(
        "{\"prompt\": [{\"role\": \"user\", \"content\": \"u\"}], \"completion\": [{\"role\": \"user\", \"content\": "
        "\"a\"}]}",
        "does not begin with a message of the assistant");
    expect_sft_error("{\"messages\": [{\"role\": \"user\", \"content\": \"u\"}]}", "not of the assistant");
    expect_sft_error("{\"messages\": [{\"role\": \"assistant\", \"content\": \"u\"}]}", "an answer to nothing");
    expect_sft_error("{\"messages\": {}}", "not a list of messages");
    expect_sft_error("{\"text\": \"\"}", "`text` is empty");
}

// rows of messages get the system message of the configuration, and keep one of their own
TEST(Messages, SystemPrompt) {
    const Tokenizer tok = tokenizer_byte_level();
    PromptConfig c;
    c.chat = ChatTemplate::chatml;
    auto text_of = [&](const std::string& row) {
        const std::string problem = "{\"prompt\": [" + row + "], \"answer\": \"1\"}",
                          example = "{\"messages\": [" + row + ", {\"role\": \"assistant\", \"content\": \"a\"}]}";
        const std::string text = make_prompt(tok, problems_in(problem)[0], c).text;
        const Example e = make_example(tok, sft_in(example)[0], c, -1);
        EXPECT_EQ(e.prompt.text, text);
        EXPECT_EQ(tokenizer_decode(tok, e.completion, false), "a<|im_end|>\n");
        return text;
    };
    const std::string user = "{\"role\": \"user\", \"content\": \"u\"}",
                      own = "{\"role\": \"system\", \"content\": \"own\"}",
                      asked = "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n";
    EXPECT_EQ(text_of(user), asked);
    c.system_prompt = "given";
    EXPECT_EQ(text_of(user), "<|im_start|>system\ngiven<|im_end|>\n" + asked);
    EXPECT_EQ(text_of(own + ", " + user), "<|im_start|>system\nown<|im_end|>\n" + asked);
    EXPECT_EQ(make_prompt(tok, problems_in("{\"prompt\": \"u\", \"answer\": \"1\"}")[0], c).text, text_of(user));
}

TEST(Gsm8k, EveryRowHasANumber) {
    struct {
        const char* name;
        size_t rows;
        const char *first, *last;
    } files[] = {
        {"train", 7473, "72", "50"},
        {"test", 1319, "18", "14"},
    };
    for (const auto& f : files) {
        std::string path = std::string("../shared/data/gsm8k/") + f.name + ".jsonl";
        if (!file_exists(path)) GTEST_SKIP() << "needs GSM8K at " << path;
        std::vector<Problem> p = load_problems(path);
        ASSERT_EQ(p.size(), f.rows);
        EXPECT_EQ(p.front().gold, f.first);
        EXPECT_EQ(p.back().line, (int)f.rows);
        for (const Problem& x : p) {
            EXPECT_EQ(x.gold.find_first_not_of("0123456789.,-"), std::string::npos) << x.line << " " << x.gold;
            EXPECT_FALSE(x.question.empty());
        }
        EXPECT_EQ(p.back().gold, f.last);
        std::vector<SftExample> e = load_sft(path);
        ASSERT_EQ(e.size(), f.rows);
        EXPECT_EQ(e[0].prompt, p[0].question);
        EXPECT_NE(e[0].completion.find("#### "), std::string::npos);
    }
}

TEST(EpochOrder, IsAPermutationThatDependsOnSeedAndEpoch) {
    for (int n : {0, 1, 2, 3, 31, 1000}) {
        std::vector<int> a = epoch_order(n, 7, 0), sorted = a;
        std::sort(sorted.begin(), sorted.end());
        ASSERT_EQ(sorted.size(), (size_t)n);
        for (int i = 0; i < n; i++) ASSERT_EQ(sorted[(size_t)i], i);
        EXPECT_EQ(a, epoch_order(n, 7, 0));
        if (n < 31) continue;
        EXPECT_NE(a, epoch_order(n, 7, 1));
        EXPECT_NE(a, epoch_order(n, 8, 0));
        EXPECT_NE(a, epoch_order(n, 7 + (1ull << 32), 0));  // all 64 bits of the seed count
    }
    EXPECT_THROW(epoch_order(-1, 0, 0), Error);
}

TEST(EpochOrder, EveryPermutationIsEquallyLikely) {
    // 24 orders of 4 rows over 24000 epochs: chi-square has 23 degrees of freedom, 99.99 % below 56; the seed is fixed
    std::vector<int> count(256, 0);
    const int epochs = 24000;
    for (int epoch = 0; epoch < epochs; epoch++) {
        std::vector<int> o = epoch_order(4, 1, (uint32_t)epoch);
        count[(size_t)(o[0] * 64 + o[1] * 16 + o[2] * 4 + o[3])]++;
    }
    double chi2 = 0, expected = epochs / 24.0;
    int orders = 0;
    for (int c : count) {
        if (c == 0) continue;
        orders++;
        chi2 += (c - expected) * (c - expected) / expected;
    }
    EXPECT_EQ(orders, 24);
    EXPECT_LT(chi2, 56.0);
    EXPECT_GT(chi2, 5.0);  // and not suspiciously even
}

TEST(EpochOrder, DrawsHaveNoBias) {
    // n = 3 * 2^30: without rejection half of the draws would be multiples of 3
    const uint32_t n = 3u << 30;
    int below = 0;
    const int draws = 20000;
    for (uint32_t i = 0; i < draws; i++) {
        uint32_t v = shuffle_draw(3, 0, i, n);
        ASSERT_LT(v, n);
        below += v % 3 == 0;
    }
    EXPECT_NEAR(below / (double)draws, 1.0 / 3, 0.014);  // 4 standard errors
}

// ---------------------------------------------------------------------------------------------------------------------
// tasks

// each task at each level, and as it is trained on
static std::vector<TaskSet> all_task_sets() {
    std::vector<TaskSet> out;
    for (const Task& task : tasks) {
        out.push_back(find_task(task.name));
        for (size_t level = 1; level <= task.levels.size(); level++)
            out.push_back(find_task(format("%s:%zu", task.name, level)));
    }
    return out;
}

// the embedded run plans for the longest question, and makes the others when it draws them
TEST(Tasks, NothingIsLongerThanTheLevelSays) {
    for (const TaskSet& set : all_task_sets()) {
        size_t question = 0, solution = 0;
        for (uint32_t i = 0; i < 1000; i++) {
            const TaskProblem p = made_up_problem(set, 3, i, true);
            question = std::max(question, p.question.size());
            solution = std::max(solution, p.solution.size());
        }
        const TaskLevel most = set.longest();
        EXPECT_LE(question, (size_t)most.question) << set.name;
        EXPECT_LT(solution, (size_t)most.completion) << set.name;  // and the end of text
        EXPECT_GT(question * 5 / 4, (size_t)most.question) << set.name << ": it asks for much memory";
        EXPECT_GT(solution * 5 / 4 + 24, (size_t)most.completion) << set.name;
    }
}

TEST(Tasks, AProblemIsAFunctionOfSeedAndIndex) {
    for (const TaskSet& set : all_task_sets()) {
        std::set<std::string> questions;
        for (uint32_t i = 0; i < 50; i++) {
            const TaskProblem p = made_up_problem(set, 5, i, true), again = made_up_problem(set, 5, i, true);
            EXPECT_EQ(p.question + p.solution + p.gold, again.question + again.solution + again.gold);
            questions.insert(p.question);
            EXPECT_EQ(p.question.back(), '\n');
            EXPECT_EQ(p.question.find('\n'), p.question.size() - 1);
            EXPECT_EQ(p.solution.substr(p.solution.rfind('\n') + 1), "#### " + p.gold);
        }
        EXPECT_GT(questions.size(), 35u) << set.name;
    }
}

TEST(Tasks, TrainingAndHeldOutAreDisjoint) {
    for (const Task& task : tasks) {
        std::set<std::string> trained;
        const TaskSet set = find_task(task.name);
        for (uint32_t i = 0; i < 1000; i++)
            trained.insert(made_up_problem(set, task_seed(i % 3, false), i, false).question);
        for (const TaskSet& evaluated : all_task_sets())
            for (uint32_t i = 0; i < 256; i++)
                EXPECT_EQ(trained.count(made_up_problem(evaluated, task_seed(0, true), i, true).question), 0u);
        const TaskSet hard = find_task(std::string(task.name) + ":hard");
        EXPECT_THROW(made_up_problem(hard, 1, 0, false), Error) << "the harder split is never trained on";
    }
}

TEST(Tasks, ValidationHasNothingOfAnEvaluation) {
    for (const Task& task : tasks) {
        const TaskSet test = find_task(task.name), validation = find_task(std::string(task.name) + ":validation");
        std::set<std::string> tested;
        for (const Problem& p : task_problems(test, task_seed(1, true), 1024, true)) tested.insert(p.question);
        for (const Problem& p : task_problems(validation, task_seed(1, true), 200, true)) {
            EXPECT_EQ(tested.count(p.question), 0u) << p.question;
            EXPECT_TRUE(task_question_held_out(p.question));
        }
        EXPECT_THROW(made_up_problem(validation, 1, 0, false), Error);
    }
}

TEST(Tasks, Names) {
    EXPECT_EQ(find_task("chains:2").low, 2);
    EXPECT_EQ(find_task("chains:2").high, 2);
    EXPECT_EQ(find_task("chains:1-2").high, 2);
    EXPECT_EQ(find_task("chains:hard").low, find_task("chains").high + 1);
    EXPECT_EQ(find_tasks("chains:hard,words").size(), 2u);
    for (const char* wrong :
         {"", "chain", "chains:", "chains:0", "chains:9", "chains:3-2", "chains:1-", "chains:x", ",", "chains,,x"})
        EXPECT_THROW(find_tasks(wrong), Error) << wrong;
}

// the working and the answer, by another way than the generator's
TEST(Tasks, TheAnswersOfChains) {
    for (uint32_t i = 0; i < 2000; i++) {
        const TaskProblem p = made_up_problem(find_task("chains:1-5"), 7, i, true);
        std::map<char, int> value;
        char asked = 0;
        for (const std::string& part : split_words(p.question.substr(0, p.question.size() - 1), ";")) {
            auto operand = [&](size_t at) { return isalpha(part[at]) ? value.at(part[at]) : atoi(&part[at]); };
            const size_t sign = part.find_first_of("+-*");
            if (part.substr(1) == "=?") asked = part[0];
            else if (sign == std::string::npos) value[part[0]] = atoi(&part[2]);
            else {
                const int a = operand(2), b = operand(sign + 1);
                value[part[0]] = part[sign] == '+' ? a + b : part[sign] == '-' ? a - b : a * b;
            }
        }
        ASSERT_EQ(p.gold, std::to_string(value.at(asked))) << p.question;
        ASSERT_NE(p.solution.find(format("%c=", asked)), std::string::npos);
    }
}

TEST(Tasks, KnightsHaveOneSolution) {
    for (uint32_t i = 0; i < 1000; i++) {
        const TaskProblem p = made_up_problem(find_task("knights:1-3"), 7, i, true);
        std::vector<std::string> said;
        std::string names;
        for (const std::string& part : split_words(p.question, "."))
            if (const size_t colon = part.find(':'); colon != std::string::npos) {
                names += part[colon - 1];
                said.push_back(part.substr(colon + 2));
            }
        const int n = (int)said.size();
        std::vector<std::string> solutions;
        for (int knights = 0; knights < 1 << n; knights++) {
            auto kind = [&](char name) { return knights >> names.find(name) & 1; };
            bool fits = true;
            for (int j = 0; j < n; j++) {
                const std::string& s = said[j];
                const bool pair = s.substr(1, 5) == " and ", alike = s.find("alike") != std::string::npos;
                const bool holds =
                    pair ? (kind(s[0]) == kind(s[6])) == alike : kind(s[0]) == (s.find("knight") != std::string::npos);
                fits = fits && holds == (bool)(knights >> j & 1);
            }
            std::string who;
            for (int j = 0; fits && j < n; j++)
                if (knights >> j & 1) who += (who.empty() ? "" : ", ") + std::string(1, names[j]);
            if (fits) solutions.push_back(who);
        }
        ASSERT_EQ(solutions, std::vector<std::string>{p.gold}) << p.question;
        ASSERT_NE(p.solution.find(": fits\n####"), std::string::npos) << p.solution;
    }
}

// equations of the working, and each quantity told in the question
TEST(Tasks, TheWorkingOfWordProblems) {
    for (uint32_t i = 0; i < 1000; i++) {
        const TaskProblem p = made_up_problem(find_task("words:1-5"), 7, i, true);
        std::string asked, last;
        int value = 0, lines = 0;
        for (const std::string& line : split_words(p.solution, "\n")) {
            if (line[0] == '#') continue;
            const size_t colon = line.find(": ");
            last = line.substr(0, colon);
            const std::string sum = line.substr(colon + 2);
            EXPECT_NE(p.question.find(last), std::string::npos);
            const size_t sign = sum.find_first_of("+-*"), equals = sum.find('=');
            value = atoi(sum.c_str() + (equals == std::string::npos ? 0 : equals + 1));
            if (sign != std::string::npos) {
                const int a = atoi(sum.c_str()), b = atoi(sum.c_str() + sign + 1);
                ASSERT_EQ(value, sum[sign] == '+' ? a + b : sum[sign] == '-' ? a - b : a * b) << line;
            }
            ASSERT_GE(value, 1);
            ASSERT_LE(value, WORD_MOST);
            lines++;
        }
        ASSERT_EQ(p.gold, std::to_string(value));
        const size_t in = last.find(" in ");
        EXPECT_NE(p.question.find("How many " + last.substr(0, in) + " are in " + last.substr(in + 4) + "?"),
                  std::string::npos)
            << p.question << p.solution;
        ASSERT_GE(lines, 2);
    }
}
