// Published sets: every kind of row in the fields that it is published with, lists of JSON, golds that cannot be used,
// problems that are trained on and held out at once, names of sets, and the ways to ask.
#include <gtest/gtest.h>
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
#include "../data/examples.h"
#include "../data/known_sets.h"
#include "../rewards/rewards.h"

namespace {

struct SetFile {
    std::string path;
    explicit SetFile(const std::string& text, const char* name = "set.json") {
        path =
            (std::filesystem::temp_directory_path() / format("test_data_sets_%ld_%s", (long)getpid(), name)).string();
        std::ofstream(path, std::ios::binary) << text;
    }
    ~SetFile() { std::filesystem::remove(path); }
};

std::vector<Problem> read_set(const std::string& text, const ProblemReading& how = {}) {
    return load_problems(SetFile(text).path, how);
}

Problem read_row(const std::string& row, const ProblemReading& how = {}) { return read_set(row, how).at(0); }

template <typename Load>
void expect_refused(Load load, const std::vector<std::string>& parts, int exit_code = 1) {
    try {
        load();
        ADD_FAILURE() << "accepted, and not refused with: " << parts[0];
    } catch (const Error& e) {
        EXPECT_EQ(e.exit_code, exit_code) << e.what();
        for (const std::string& part : parts)
            EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what() << "\nlacks: " << part;
    }
}

void expect_row_refused(const std::string& row, const std::string& part, const ProblemReading& how = {}) {
    expect_refused([&] { read_row(row, how); }, {part});
}

GoldRead read_gold(const std::string& gold) {
    return answer_parses(gold) ? GoldRead::as_answer : gold == "ellipse" ? GoldRead::by_words : GoldRead::by_spelling;
}

std::string stderr_of(const std::function<void()>& f) {
    testing::internal::CaptureStderr();
    f();
    return testing::internal::GetCapturedStderr();
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// kinds

TEST(PublishedSets, Rows) {
    struct {
        const char *row, *question, *gold, *id, *subject, *level;
    } rows[] = {
        {R"({"input": "q", "code": "def f():", "target": -9867630.0})", "q", "-9867630", "", "", ""},
        {R"({"input": "q", "target": 0.25})", "q", "0.25", "", "", ""},
        {R"({"input": "q", "target": 2.5e+22})", "q", "2.5e+22", "", "", ""},
        {R"({"input": "q", "target": -0.0})", "q", "0", "", "", ""},
        {R"({"input": "q", "target": 7})", "q", "7", "", "", ""},
        {R"({"ID": "chal-1", "Body": "Six cats. ", "Question": " How many?", "Equation": "6", "Answer": 6.0, "Type": "Sum"})",
         "Six cats. How many?", "6", "chal-1", "Sum", ""},
        {R"({"problem": "q", "solution": "so $\\boxed{9}$", "answer": "\\frac{1}{2}", "subject": "Algebra", "level": 3,
             "unique_id": "test/a/1.json"})",
         "q", "\\frac{1}{2}", "test/a/1.json", "Algebra", "3"},
        {R"({"problem": "q", "solution": "so $\\boxed{9}$", "level": "Level 5", "type": "Geometry"})", "q", "9", "",
         "Geometry", "Level 5"},
        {R"({"ID": "2024-I-1", "Problem": "q", "Solution": "long", "Answer": 204})", "q", "204", "2024-I-1", "", ""},
        {R"({"problem": "q", "answer": "070", "id": 0, "year": 2025})", "q", "070", "0", "2025", ""},
        {R"({"id": 60, "problem": "q", "question": "q", "answer": "204", "solution": "work"})", "q", "204", "60", "",
         ""},
        {R"({"id": 3, "question": "q", "answer": 27.0})", "q", "27.0", "3", "", ""},
        {R"({"question": "q", "answer": "10^{-3}", "type": "Astronomy"})", "q", "10^{-3}", "", "Astronomy", ""},
        {R"({"question": "q", "solution": "so \\boxed{2}", "idx": 5})", "q", "2", "5", "", ""},
        {R"({"problem": "q", "answer": "A", "solution": "s", "source": "olympiads", "difficulty": 6.5})", "q", "A", "",
         "olympiads", "6.5"},
        {R"({"id": 1606, "subfield": "Algebra", "context": "Let $x=1$.", "question": "q", "final_answer": ["$2$", " 3 "],
             "is_multiple_answer": true, "unit": "cm", "answer_type": "Numerical"})",
         "Let $x=1$.\nq", "2, 3", "1606", "Algebra", ""},
        {R"({"question": "q", "context": null, "unit": null, "final_answer": ["$a$ or $b$"]})", "q", "$a$ or $b$", "",
         "", ""},
        {R"({"data_source": "openai/gsm8k", "prompt": [{"role": "user", "content": "q"}], "ability": "math",
             "reward_model": {"style": "rule", "ground_truth": "72"}, "extra_info": {"split": "train", "index": 8}})",
         "q", "72", "8", "openai/gsm8k", ""},
    };
    for (const auto& r : rows) {
        for (bool in_list : {false, true}) {
            std::string text = r.row;
            std::replace(text.begin(), text.end(), '\n', ' ');
            const Problem p = read_row(in_list ? "[\n " + std::string(r.row) + "\n]\n" : text);
            EXPECT_EQ(p.question, r.question) << r.row;
            EXPECT_EQ(p.gold, r.gold) << r.row;
            EXPECT_EQ(p.id, r.id) << r.row;
            EXPECT_EQ(p.subject, r.subject) << r.row;
            EXPECT_EQ(p.level, r.level) << r.row;
            EXPECT_EQ(p.bare, p.messages.is_null()) << r.row;
            EXPECT_EQ(p.line, in_list ? 2 : 1);
        }
    }
    const Problem several =
        read_row(R"({"question": "q", "final_answer": ["1"], "is_multiple_answer": true, "unit": "m"})");
    EXPECT_TRUE(several.several);
    EXPECT_EQ(several.unit, "m");
}

TEST(PublishedSets, BadRows) {
    expect_row_refused(R"({"Body": "b", "Question": "q"})", "no `Answer` beside `Question`");
    expect_row_refused(R"({"Body": "b", "Question": "q", "Answer": []})", "`Answer` is array, not text");
    expect_row_refused(R"({"input": "q", "target": "  "})", "`target` is empty");
    expect_row_refused(R"({"question": "q", "final_answer": []})", "`final_answer` is empty");
    expect_row_refused(R"({"question": "q", "final_answer": [[1]]})", "`final_answer` holds array, not text");
    expect_row_refused(R"({"question": "q", "final_answer": "1"})", "`final_answer` is string, not a list");
    expect_row_refused(R"({"prompt": "q", "reward_model": 1})", "`reward_model` is number, not an object");
    expect_row_refused(R"({"prompt": "q", "reward_model": {"style": "rule"}})",
                       "`reward_model`: no `ground_truth` beside `style`");
    expect_row_refused(R"({"Question": "q", "Correct Answer": "a", "Incorrect Answer 1": "b"})",
                       "no `Incorrect Answer 2` beside `Question`");
    expect_row_refused(R"({"prompt": "q", "answer": "1", "tools": 3})", "`tools` is number, not a list");
    expect_row_refused(R"({"prompt": "q", "answer": "1", "tools": "[1"})", "`tools`: not valid JSON");
    ProblemReading how;
    how.gold_needed = false;  // then an answer that cannot be used is none
    for (const char* row : {R"({"Body": "b", "Question": "q"})", R"({"question": "q", "choices": ["x", "y"]})",
                            R"({"question": "q", "answer": "9 * 8 = 72"})", R"({"prompt": "q", "reward_model": {}})"})
        EXPECT_EQ(read_row(row, how).gold, "") << row;
}

TEST(JsonLists, RowsHaveTheirLines) {
    // one, two on a line, a list behind a list, braces and brackets in strings, byte order marks
    const std::vector<Problem> p = read_set(
        "\xEF\xBB\xBF\n [\n{\"prompt\": \"}]\\\"{[\",\r\n\"answer\": \"1\"} , {\"prompt\": \"b\", \"answer\": 2}\n]\n"
        "\xEF\xBB\xBF[{\"prompt\": \"c\", \"answer\": 3}]\n\n");
    ASSERT_EQ(p.size(), 3u);
    EXPECT_EQ(p[0].question, "}]\"{[");
    EXPECT_EQ(p[0].line, 3);
    EXPECT_EQ(p[1].line, 4);
    EXPECT_EQ(p[2].question, "c");
    EXPECT_EQ(p[2].line, 6);
    const std::string row = "{\"prompt\": \"q\", \"answer\": \"1\"}";
    expect_row_refused("[]", "holds no rows");
    expect_row_refused("[" + row + ",]", ":1: ']' where an object is expected, after row 1 of the list");
    expect_row_refused("[," + row + "]", ":1: ',' where an object is expected, after row 0");
    expect_row_refused("[" + row + "\n" + row + "]", ":2: '{' where a comma or the end of the list is expected");
    expect_row_refused("[" + row + "]\nx", ":2: text after the end of the list");
    expect_row_refused("[" + row + "]\n" + row, ":2: text after the end of the list");
    expect_row_refused("[" + row, ":1: the list that begins here is not closed");
    expect_row_refused("[" + row + ",\n\n{\"prompt\": \"q\"", ":3: the object that begins here is not closed");
    expect_row_refused("[\n" + row + ",\n{\"prompt\": 1]}\n]", ":3, row 2: not valid JSON");
    expect_row_refused("[\n{\"prompt\": \"a\nb\", \"answer\": \"1\"}]", ":2, row 1: not valid JSON");  // a raw line end
    expect_row_refused(std::string("[\0]", 3), ":1: '\\x00' where an object is expected");
    expect_row_refused("[{\"a\": " + std::string(100, '[') + std::string(100, ']') + "}]", "nested deeper");
    expect_row_refused("[\n" + row + ",\n{\"x\": 1}]", ":3, row 2: no `question`, `prompt` or `problem`");
}

TEST(JsonLists, AreReadForExamplesToo) {
    const SetFile f("[{\"prompt\": \"p\", \"completion\": \"c\"},\n {\"question\": \"q\", \"answer\": \"a\"}]");
    const std::vector<SftExample> e = load_sft(f.path);
    ASSERT_EQ(e.size(), 2u);
    EXPECT_EQ(e[1].completion, "a");
    EXPECT_EQ(e[1].line, 2);
}

// ---------------------------------------------------------------------------------------------------------------------
// options

static std::string gpqa_row(int i) {
    return format(
        R"({"Question": "q%d", "Correct Answer": "right", "Incorrect Answer 1": "w1", "Incorrect Answer 2": "w2",
        "Incorrect Answer 3": "w3\n", "Subdomain": "Optics", "High-level domain": "Physics", "Record ID": "rec%d"})",
        i, i);
}

TEST(Options, GpqaIsShuffledByTheSeedAndTheQuestionAlone) {
    std::string forward = "[", backward = "[";
    for (int i = 0; i < 400; i++) {
        forward += (i ? "," : "") + gpqa_row(i);
        backward += (i ? "," : "") + gpqa_row(399 - i);
    }
    const std::vector<Problem> a = read_set(forward + "]"), b = read_set(backward + "]");
    ProblemReading other;
    other.seed = 1;
    const std::vector<Problem> c = read_set(forward + "]", other);
    std::map<std::string, int> letters;
    int moved = 0;
    for (size_t i = 0; i < 400; i++) {
        EXPECT_EQ(a[i].question, b[399 - i].question);
        EXPECT_EQ(a[i].gold, b[399 - i].gold);
        moved += a[i].gold != c[i].gold;
        letters[a[i].gold]++;
        EXPECT_NE(a[i].question.find("\n" + a[i].gold + ") right"), std::string::npos) << a[i].question;
        EXPECT_TRUE(a[i].choice && a[i].bare);
    }
    for (const char* letter : {"A", "B", "C", "D"}) EXPECT_NEAR(letters[letter], 100, 4 * 8.7) << letter;  // 4 sigma
    EXPECT_NEAR(moved, 300, 4 * 8.7);
    EXPECT_EQ(a[0].id, "rec0");
    EXPECT_EQ(a[0].subject, "Optics");
    const std::string& q = a[7].question;
    EXPECT_EQ(q.compare(0, 7, "q7\n\nA) "), 0) << q;
    for (const char* option : {"right", "w1", "w2", "w3"})
        EXPECT_NE(q.find(std::string(") ") + option), std::string::npos);
}

TEST(Options, PublishedChoicesKeepTheirOrder) {
    struct {
        const char *row, *gold;
    } rows[] = {
        {R"({"question": "q", "choices": ["x", "y", "z"], "answer": 2, "subject": "law"})", "C"},
        {R"({"question": "q", "choices": ["x", "y"], "answer": "B"})", "B"},
        {R"({"question": "q", "choices": ["x", "y"], "answer": "y"})", "B"},
        {R"({"question": "q", "options": ["x", 5], "answer": "A", "answer_index": 0})", "A"},
        {R"({"question": "q", "options": ["x", 5], "answer_index": 1})", "B"},
        {R"({"question": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"})", "B"},
        {R"({"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"})", "B"},
        {R"({"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": 1})", "A"},
    };
    for (const auto& r : rows) {
        const Problem p = read_row(r.row);
        EXPECT_EQ(p.gold, r.gold) << r.row;
        EXPECT_EQ(p.question.compare(0, 11, "q\n\nA) x\nB) "), 0) << p.question;
    }
    expect_row_refused(R"({"question": "q", "choices": ["x", "y"], "answer": 2})",
                       "`answer` names none of the 2 options");
    expect_row_refused(R"({"question": "q", "choices": ["x", "y"], "answer": -1})", "names none");
    expect_row_refused(R"({"question": "q", "choices": ["x", "y"], "answer": "C"})", "names none");
    expect_row_refused(R"({"question": "q", "choices": ["x", "y"]})", "no `answer` or `answerKey` beside `choices`");
    expect_row_refused(R"({"question": "q", "choices": ["x"], "answer": 0})",
                       "1 options; a multiple choice has 2 to 10");
    expect_row_refused(R"({"question": "q", "choices": "xy", "answer": 0})", "`choices` is string, not a list");
    expect_row_refused(R"({"question": "q", "choices": {"label": []}, "answer": 0})", "`choices` has no `text`");
    expect_row_refused(R"({"question": "q", "choices": {"text": ["x", "y"], "label": ["A"]}, "answer": 0})",
                       "2 texts and 1 labels");
}

// ---------------------------------------------------------------------------------------------------------------------
// golds that cannot be used, mixed rows, overlap

TEST(BadGolds, UpToOnePercentAreLeftOutAndSaid) {
    ProblemReading how;
    how.gold_read = read_gold;
    auto file = [](int rows, const std::set<int>& bad) {
        std::string text;
        for (int i = 1; i <= rows; i++)
            text += format("{\"prompt\": \"q%d\", \"answer\": \"%s\"}\n", i, bad.count(i) ? "\\\\frac{1" : "1");
        return text;
    };
    std::vector<Problem> p;
    std::string said = stderr_of([&] { p = read_set(file(200, {17, 90}), how); });
    EXPECT_EQ(p.size(), 198u);
    EXPECT_EQ(p[16].line, 18);
    EXPECT_NE(said.find("2 of 200 problems are left out"), std::string::npos) << said;
    EXPECT_NE(said.find(":17: the gold answer '\\frac{1' cannot be read"), std::string::npos) << said;
    expect_refused(
        [&] {
            read_set(file(200, {17, 90, 91}), how);
        },
        {":17: the gold answer '\\frac{1'", "so it is with 3 of the 200 rows, and more than 1 %"});
    expect_refused([&] { read_set(file(99, {99}), how); }, {":99: the gold answer"});
    EXPECT_EQ(read_set(file(100, {100}), how).size(), 99u);
    // words are kept and said; of a set to evaluate on also what is right only as it is spelled
    const std::string words =
        "{\"prompt\": \"q\", \"answer\": \"ellipse\"}\n{\"prompt\": \"q\", \"answer\": \"\\\\frac{1\"}";
    how.gold_read_needed = GoldRead::by_spelling;
    said = stderr_of([&] { p = read_set(words, how); });
    EXPECT_EQ(p.size(), 2u);
    EXPECT_NE(said.find("2 of 2 gold answers are no mathematics"), std::string::npos) << said;
    EXPECT_NE(said.find(":1: 'ellipse'"), std::string::npos) << said;
    how.gold_read_needed = GoldRead::by_words;
    expect_refused([&] { read_set(words, how); }, {":2: the gold answer '\\frac{1'", "1 of the 2 rows"});
    // without a need for golds all rows stay
    how.gold_needed = false;
    p = read_set(file(3, {2}), how);
    ASSERT_EQ(p.size(), 3u);
    EXPECT_EQ(p[1].gold, "");
    EXPECT_EQ(p[2].gold, "1");
}

TEST(MixedRows, AreReadEachByItselfAndSaid) {
    std::vector<Problem> p;
    const std::string said = stderr_of([&] {
        p = read_set(
            "{\"question\": \"a\", \"answer\": \"#### 1\"}\n{\"prompt\": \"b\", \"solution\": \"2\"}\n"
            "{\"question\": \"c\", \"answer\": \"#### 3\"}\n");
    });
    EXPECT_EQ(p.size(), 3u);
    EXPECT_NE(said.find("has rows of 2 kinds: 2 with `question` (the first in line 1), 1 with `prompt` (the first in "
                        "line 2)"),
              std::string::npos)
        << said;
    expect_refused([] { read_set("{\"prompt\": \"b\", \"solution\": \"2\"}\n{\"frage\": \"c\"}\n"); },
                   {":2: no `question`, `prompt` or `problem`; the row has: 'frage'"});
}

TEST(OverlapOfSets, IsFoundWhateverTheCaseAndWhiteSpace) {
    PromptConfig chatml;
    chatml.chat = ChatTemplate::chatml;
    const SetFile train("{\"prompt\": \"What is  2 + 2?\", \"answer\": 4}\n{\"prompt\": \"x\", \"answer\": 1}\n",
                        "train"),
        test(
            "{\"prompt\": \"y\", \"answer\": 4}\n{\"prompt\": \"what is 2+\\n2?\", \"answer\": 4}\n"
            "{\"prompt\": \"X \", \"answer\": 4}\n{\"prompt\": \"Y\", \"answer\": 4}\n",
            "test");
    QuestionIndex trained;
    for (const Problem& p : load_problems(train.path)) trained.add(p);
    Overlap both;
    const std::vector<Problem> held_out = load_problems(test.path);
    for (const Problem& p : held_out) find_overlap(both, trained, p);
    EXPECT_EQ(both.count, 2);
    EXPECT_EQ(both.first, test.path + ":2 is " + train.path + ":1, 'what is 2+\\n2?'");
    // of a conversation all counts but the system message
    auto talk = [](const char* system, const char* first) {
        return format(R"({"prompt": [{"role": "system", "content": "%s"}, {"role": "user", "content": "%s"},
            {"role": "assistant", "content": "a"}, {"role": "user", "content": "go on"}], "answer": "1"})",
                      system, first);
    };
    EXPECT_EQ(find_duplicates(read_set("[" + talk("s", "u") + "," + talk("s", "v") + "]")).count, 0);
    EXPECT_EQ(find_duplicates(read_set("[" + talk("s", "u") + "," + talk("t", "U ") + "]")).count, 1);
    const SetFile example(R"({"messages": [{"role": "user", "content": "y"}, {"role": "assistant", "content": "a"}]})",
                          "sft");
    QuestionIndex examples;
    examples.add(*make_example(tokenizer_byte_level(), load_sft(example.path)[0], chatml, -1).prompt.problem);
    EXPECT_EQ(examples.find(held_out[0]), example.path + ":1");
    const Overlap twice = find_duplicates(held_out);
    EXPECT_EQ(twice.count, 1);
    EXPECT_EQ(twice.first, test.path + ":4 is " + test.path + ":1, 'Y'");
    const std::string said = stderr_of([&] { note_duplicates("some set", held_out); });
    EXPECT_NE(said.find("some set: 1 of 4 problems came before in it"), std::string::npos) << said;
}

// ---------------------------------------------------------------------------------------------------------------------
// names

TEST(KnownSets, NamesAreFilesOfTheCurrentFolder) {
    namespace fs = std::filesystem;
    const fs::path before = fs::current_path(),
                   folder = fs::temp_directory_path() / format("test_data_sets_%ld_folder", (long)getpid());
    fs::create_directories(folder / "data/sets/gsm8k");
    fs::create_directories(folder / "elsewhere/svamp");
    fs::create_directories(folder / "plain");
    fs::current_path(folder);
    expect_refused([] { find_data_set("gsm8k"); },
                   {"--eval_data gsm8k: data/sets/gsm8k/test.jsonl is not there; data/download gsm8k fetches it"}, 2);
    std::ofstream("data/sets/gsm8k/test.jsonl") << "x";
    std::ofstream("data/sets/gsm8k/train.jsonl") << "x";
    std::ofstream("elsewhere/svamp/SVAMP.json") << "x";
    EXPECT_EQ(find_data_set("gsm8k"), "data/sets/gsm8k/test.jsonl");
    EXPECT_EQ(find_data_set("data/sets/gsm8k/test.jsonl"), "data/sets/gsm8k/test.jsonl");
    EXPECT_EQ(find_data_set("gsm8k", "train_data", true), "data/sets/gsm8k/train.jsonl");
    EXPECT_EQ(find_data_set("elsewhere/svamp"), "elsewhere/svamp/SVAMP.json");
    EXPECT_EQ(find_data_set("elsewhere/svamp/"), "elsewhere/svamp//SVAMP.json");
    EXPECT_EQ(find_data_set(""), "");
    EXPECT_EQ(find_data_set("no/such.jsonl"), "no/such.jsonl");  // of which reading says what is wrong
    expect_refused([] { find_data_set("aime24", "train_data", true); }, {"has no training problems"}, 2);
    expect_refused([] { find_data_set("gms8k"); }, {"data/download knows no such set", "did you mean gsm8k?"}, 2);
    EXPECT_EQ(find_data_set("plain"), "plain");
    std::ofstream("gsm8k") << "x";  // a file of the user's own
    EXPECT_EQ(find_data_set("gsm8k"), "gsm8k");
    fs::current_path(before);
    fs::remove_all(folder);
}

// data/download is a script with a table of its own: NAME|FILE|ROWS|...; GPQA's CSV becomes JSONL
TEST(KnownSets, AreThoseOfTheDownload) {
    if (!file_exists("data/download")) GTEST_SKIP() << "needs data/download in the current folder";
    const std::string script = read_file("data/download");
    for (const KnownSet& set : known_sets)
        for (const char* file : {set.file, set.train}) {
            if (!file) continue;
            const std::string stem = std::filesystem::path(file).stem().string();
            EXPECT_NE(script.find(format("\n%s|%s.", set.name, stem.c_str())), std::string::npos)
                << set.name << " " << file;
        }
}

TEST(KnownSets, ShortNames) {
    for (auto [path, name] : {std::pair("data/sets/gsm8k/test.jsonl", "gsm8k"),
                              {"svamp/SVAMP.json", "svamp"},
                              {"foo.jsonl", "foo"},
                              {"a/foo.jsonl", "foo"},
                              {"mine/test.jsonl", "mine"},
                              {"test.jsonl", "test"},
                              {"../test.jsonl", "test"},
                              {"gpqa/gpqa_diamond.jsonl", "gpqa"}})
        EXPECT_EQ(data_set_name(path), name) << path;
}

// ---------------------------------------------------------------------------------------------------------------------
// how they are asked

static std::string asked(const Problem& p, const std::string& style, bool chat, int shots = 0,
                         const std::vector<Shot>& list = {}) {
    PromptConfig c;
    c.style = find_prompt_style(style);
    c.shots = list;
    c.num_shots = shots;
    if (chat) c.chat = ChatTemplate::chatml;
    return make_prompt(tokenizer_byte_level(), p, c).text;
}

static std::string turns(const std::string& system, const std::string& user) {
    return (system.empty() ? "" : "<|im_start|>system\n" + system + "<|im_end|>\n") + "<|im_start|>user\n" + user +
           "<|im_end|>\n<|im_start|>assistant\n";
}

TEST(PromptStyles, AutoAndBoxed) {
    const Problem plain = read_row(R"({"question": "2+2?", "answer": 4})"),
                  given = read_row(R"({"prompt": "p", "answer": 4})"),
                  choice = read_row(R"({"question": "q", "choices": ["x", "y"], "answer": 0})"),
                  several = read_row(R"({"question": "q", "final_answer": ["1"], "is_multiple_answer": true})"),
                  unit = read_row(R"({"question": "q", "final_answer": ["1"], "unit": "cm"})");
    const std::string hash = "\nThink step by step, then give the final answer alone on the last line after ####.",
                      box = "Please reason step by step, and put your final answer within \\boxed{}.",
                      options = "q\n\nA) x\nB) y\n\n";
    EXPECT_EQ(asked(plain, "auto", false), "2+2?" + hash + "\n");
    EXPECT_EQ(asked(plain, "auto", true), turns("", "2+2?" + hash));
    EXPECT_EQ(asked(given, "auto", false), "p");
    EXPECT_EQ(
        asked(choice, "auto", false),
        options + "Think step by step, then give the letter of the right option alone on the last line after ####.\n");
    EXPECT_EQ(asked(several, "auto", false),
              "q\nThink step by step, then give all final answers, separated by commas, alone on the last line after "
              "####.\n");
    EXPECT_EQ(asked(unit, "auto", false),
              "q\nThink step by step, then give the final answer in cm alone on the last line after ####.\n");
    EXPECT_EQ(asked(plain, "boxed", false), "2+2?\n" + box + "\n");
    EXPECT_EQ(asked(plain, "boxed", true), turns(box, "2+2?"));
    EXPECT_EQ(asked(given, "boxed", true), turns(box, "p"));
    EXPECT_EQ(asked(choice, "boxed", true),
              turns(box, options + "Put the letter of the right option within \\boxed{}."));
    EXPECT_EQ(asked(several, "boxed", true),
              turns(box, "q\nPut all final answers, separated by commas, within \\boxed{}."));
    // what a model answers to them is graded by letter
    const std::string letter = "so it is\n#### A", boxed = "so \\boxed{A}", wrong = "#### B", none;
    const std::vector<int> tokens;
    for (const std::string* completion : {&letter, &boxed})
        EXPECT_EQ(reward_exact({none, *completion, choice.gold, true, tokens, 1}), 1.0f) << *completion;
    EXPECT_EQ(reward_exact({none, wrong, choice.gold, true, tokens, 1}), 0.0f);
}

TEST(PromptStyles, FewShotsOfLmEval) {
    const SetFile train(
        "{\"question\": \"q1\", \"answer\": \"w\\n#### 1\"}\n{\"question\": \"q2 \", \"answer\": \"#### 2\"}\n"
        "{\"question\": \"q3\", \"answer\": \"#### 3\"}\n{\"question\": \"q4\", \"answer\": \"#### 4\"}\n",
        "train");
    const std::vector<Shot> shots = load_shots(train.path, 2);
    const Problem p = read_row(R"({"question": "q?", "answer": 4})"),
                  first = read_row(R"({"question": "Q1", "answer": 1})");
    const std::string one = "Question: q1\nAnswer: w\n#### 1\n\n", two = "Question: q2 \nAnswer: #### 2\n\n",
                      three = "Question: q3\nAnswer: #### 3\n\n";
    EXPECT_EQ(asked(p, "lm_eval_gsm8k", false, 2, shots), one + two + "Question: q?\nAnswer:");
    EXPECT_EQ(asked(p, "lm_eval_gsm8k", true, 2, shots), turns("", one + two + "Question: q?\nAnswer:"));
    EXPECT_EQ(asked(first, "lm_eval_gsm8k", false, 2, shots), two + three + "Question: Q1\nAnswer:");
    EXPECT_EQ(asked(p, "lm_eval_gsm8k", false, 0, {}), "Question: q?\nAnswer:");
    EXPECT_EQ(stop_strings_parse(find_prompt_style("lm_eval_gsm8k").stop_strings),
              (std::vector<std::string>{"Question:", "</s>", "<|im_end|>"}));
    expect_refused([&] { load_shots(train.path, 5); }, {"has 4 examples, and --num_fewshot asks for 5"});
    EXPECT_EQ(load_shots(train.path, 4).size(), 4u);
    const SetFile text("{\"text\": \"t\"}\n", "text");
    expect_refused([&] { load_shots(text.path, 1); }, {":1: --fewshot_data takes rows of a question"});

    const std::string cot = asked(p, "lm_eval_gsm8k_cot", false, 8, chain_of_thought_shots());
    EXPECT_EQ(cot.compare(0, 45, "Q: There are 15 trees in the grove. Grove wor", 45), 0);
    EXPECT_EQ(cot.substr(cot.size() - 47), " left. 23 - 15 is 8. The answer is 8.\n\nQ: q?\nA:");
    EXPECT_EQ(chain_of_thought_shots().size(), 8u);
    // FNV-1a of the texts in lm-eval's gsm8k-cot.yaml at 4e7e0d47
    std::string texts, golds;
    for (const Shot& shot : chain_of_thought_shots()) {
        texts += shot.question + "\n" + shot.answer + "\n";
        golds += extract_answer(shot.answer).text + " ";
    }
    EXPECT_EQ(text_hash(texts), 0x606006120c169534u);
    EXPECT_EQ(golds, "6 5 39 8 9 29 33 8 ");
}

TEST(PromptGiven, SparklesAxes) {
    const std::string row =
        R"({"problem": "q", "answer": "1", "planning": " first this ", "knowledge": {"fact": ["f1", "f2"], "lemma": []},
            "subproblems": {"1q": "s1", "1a": "secret", "2q": "s2", "2a": "secret"}})";
    auto with = [&](const std::string& text, const char* given) {
        ProblemReading how;
        how.given = given;
        return asked(read_row("[" + text + "]", how), "boxed", true);
    };
    const std::string box = "Please reason step by step, and put your final answer within \\boxed{}.";
    EXPECT_EQ(with(row, "plan"), turns(box, "A plan for the solution:\nfirst this\n\nq"));
    EXPECT_EQ(with(row, "knowledge"), turns(box, "Facts that help:\n1. f1\n2. f2\n\nq"));
    EXPECT_EQ(with(row, "subproblems"),
              turns(box, "The problem in steps. Solve them in this order:\n1. s1\n2. s2\n\nq"));
    EXPECT_EQ(with(R"({"problem": "q", "answer": "1", "sub_problems": [{"question": "s", "answer": "secret"}]})",
                   "subproblems"),
              turns(box, "The problem in steps. Solve them in this order:\ns\n\nq"));
    EXPECT_EQ(with(R"({"prompt": [{"role": "user", "content": "q"}], "answer": "1", "plan": ["a"]})", "plan"),
              turns(box, "A plan for the solution:\na\n\nq"));
    ProblemReading how;
    how.given = "plan";
    expect_row_refused(R"({"problem": "q", "answer": "1", "knowledge": "k"})",
                       ":1: --prompt_given plan: the row has no `plan`; it has: 'problem', 'answer', 'knowledge'", how);
    expect_row_refused(R"({"problem": "q", "answer": "1", "plan": [" "]})", "`plan` is empty", how);
    // an example for sft gives the same
    const SetFile f(R"({"problem": "q", "solution": "s", "plan": "a"})");
    PromptConfig c;
    EXPECT_EQ(make_example(tokenizer_byte_level(), load_sft(f.path, "plan")[0], c, -1).prompt.text,
              "A plan for the solution:\na\n\nq" + std::string(ANSWER_INSTRUCTION) + "\n");
}

TEST(Tools, AreRenderedWhereTheTemplateTakesThem) {
    const std::string tool = R"({"type": "function", "function": {"name": "add"}})",
                      quoted = R"("[{\"name\": \"add\"}]")";
    PromptConfig c;
    c.chat = ChatTemplate::qwen3;
    auto text = [&](const std::string& tools) {
        const Problem p =
            read_row(R"({"prompt": [{"role": "user", "content": "q"}], "answer": 1, "tools": )" + tools + "}");
        return make_prompt(tokenizer_byte_level(), p, c).text;
    };
    EXPECT_NE(text("[" + tool + "]").find("<tools>\n" + tool + "\n</tools>"), std::string::npos)
        << text("[" + tool + "]");
    EXPECT_NE(text(quoted).find("<tools>\n{\"name\": \"add\"}\n</tools>"), std::string::npos);
    for (const char* none : {"[]", "null", "\"\""}) EXPECT_EQ(text(none).find("<tools>"), std::string::npos) << none;
    const SetFile f(
        R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "tools": [)" + tool +
        "]}");
    const Example e = make_example(tokenizer_byte_level(), load_sft(f.path)[0], c, -1);
    EXPECT_EQ(e.prompt.text, text("[" + tool + "]"));
    c.chat = ChatTemplate::chatml;
    const std::string said = stderr_of([&] { EXPECT_EQ(text("[" + tool + "]"), turns("", "q")); });
    EXPECT_NE(said.find("`tools` are not rendered"), std::string::npos) << said;
}

// ---------------------------------------------------------------------------------------------------------------------
// the real files

TEST(RealSets, EveryRowIsReadAndGoldsParse) {
    struct {
        const char* path;
        size_t rows, unread;
    } sets[] = {
        {"gsm8k/train.jsonl", 7473, 0},        {"gsm8k/test.jsonl", 1319, 0},        {"svamp/SVAMP.json", 1000, 0},
        {"gsm-hard/gsmhardv2.jsonl", 1319, 0}, {"olympiadbench/test.jsonl", 675, 0},
    };
    for (const auto& set : sets) {
        const std::string path = std::string("../shared/data/") + set.path;
        if (!file_exists(path)) GTEST_SKIP() << "needs " << path;
        const std::vector<Problem> all = load_problems(path);
        EXPECT_EQ(all.size(), set.rows) << path;
        size_t unread = 0;
        for (const Problem& p : all) {
            if (!answer_parses(p.gold) && unread++ < 3) printf("%s:%d: %s\n", path.c_str(), p.line, p.gold.c_str());
            EXPECT_EQ(grade(p.gold, p.gold), answer_parses(p.gold) ? Verdict::correct : Verdict::unparsable) << p.gold;
        }
        EXPECT_EQ(unread, set.unread) << path;
    }
}
