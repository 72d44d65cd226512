// What a run makes of its rows: those that are too long, empty or wrong, how they are asked, what of them is learnt, and in
// which order.
#include <gtest/gtest.h>
#include <algorithm>
#include <set>
#include "../data/curriculum.h"
#include "../data/overlong_rows.h"
#include "file_test.h"

namespace {

std::string stderr_of(const std::function<void()>& f) {
    testing::internal::CaptureStderr();
    f();
    return testing::internal::GetCapturedStderr();
}

// a row that a test writes in several lines
std::string in_one_line(std::string row) {
    std::replace(row.begin(), row.end(), '\n', ' ');
    return row;
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

// ---------------------------------------------------------------------------------------------------------------------
// how rows are asked: every flag about prompts, for rows of every kind, in training on problems and on examples

namespace {

std::string chatml(const std::vector<std::pair<const char*, std::string>>& turns) {
    std::string text;
    for (const auto& [role, content] : turns) chatml_turn(text, role, content);
    return text;
}

std::string asked_in_chat(const std::string& system, const std::string& user) {
    return (system.empty() ? "" : chatml({{"system", system}})) + chatml({{"user", user}}) + "<|im_start|>assistant\n";
}

// the prompt of a row, the same whether its answer is sampled or learnt
std::string asked_of(const std::string& fields, const PromptConfig& c, const char* given = "") {
    TempDir dir;
    ProblemReading how;
    how.given = given;
    put(dir / "problem.jsonl", in_one_line("{" + fields + ", \"plan\": \"p\", \"answer\": \"#### 1\"}"));
    std::string learnt_fields = fields;
    if (fields.find("\"question\"") == std::string::npos)
        learnt_fields += fields.find("[") == std::string::npos
                             ? R"(, "completion": "#### 1")"
                             : R"(, "completion": [{"role": "assistant", "content": "#### 1"}])";
    put(dir / "example.jsonl", in_one_line("{" + learnt_fields + ", \"plan\": \"p\", \"answer\": \"#### 1\"}"));
    const Tokenizer tok = tokenizer_byte_level();
    const std::string text = make_prompt(tok, load_problems(dir / "problem.jsonl", how)[0], c).text;
    const Example e = make_example(tok, load_sft(dir / "example.jsonl", given)[0], c, -1);
    EXPECT_EQ(e.prompt.text, text) << fields;
    EXPECT_EQ(text_of(e.completion).find("#### 1"), c.style.ask && !use_chat(c) ? 1u
                                                    : c.enable_thinking == 0    ? 0u
                                                                                : text_of(e.completion).find("#"));
    return text;
}

}  // namespace

TEST(PromptFlags, OnEveryKindOfRow) {
    const std::string bare = R"("question": "Q")", text = R"("prompt": "Q")",
                      messages = R"("prompt": [{"role": "user", "content": "Q"}])",
                      own = R"("prompt": [{"role": "system", "content": "own"}, {"role": "user", "content": "Q"}])",
                      turns = R"("prompt": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"},
                                           {"role": "user", "content": "Q"}])";
    const std::string told = "Q" + std::string(ANSWER_INSTRUCTION);
    const std::string box = find_prompt_style("boxed").system, few = "Q: a\nA: b\n\nQ: Q\nA:";
    PromptConfig plain, chat, system, around, boxed, shots, thinking, off;
    chat.chat = system.chat = around.chat = boxed.chat = shots.chat = off.chat = ChatTemplate::chatml;
    system.system_prompt = "S";
    around.prompt_template = "<{question}>";
    boxed.style = find_prompt_style("boxed");
    shots.style = find_prompt_style("lm_eval_gsm8k_cot"), shots.shots = {{"a", "b"}}, shots.num_shots = 1;
    thinking.chat = ChatTemplate::qwen3, thinking.enable_thinking = 0;
    off.chat_template = "off";
    PromptConfig around_off = around, boxed_off = boxed, shots_off = shots, system_off = system;
    for (PromptConfig* c : {&around_off, &boxed_off, &shots_off, &system_off}) c->chat_template = "off";

    struct {
        const PromptConfig& config;
        std::string bare, text, messages;  // what is asked; of messages the user's text
        std::string system;                // before the messages
    } rows[] = {
        {chat, told, "Q", "Q", ""},  {system, told, "Q", "Q", "S"}, {around, "<Q>", "<Q>", "<Q>", ""},
        {boxed, "Q", "Q", "Q", box}, {shots, few, few, few, ""},
    };
    for (const auto& r : rows) {
        EXPECT_EQ(asked_of(bare, r.config), asked_in_chat(r.system, r.bare));
        EXPECT_EQ(asked_of(text, r.config), asked_in_chat(r.system, r.text));
        EXPECT_EQ(asked_of(messages, r.config), asked_in_chat(r.system, r.messages));
        EXPECT_EQ(asked_of(own, r.config), asked_in_chat("own", r.messages));
        EXPECT_EQ(asked_of(turns, r.config), (r.system.empty() ? "" : chatml({{"system", r.system}})) +
                                                 chatml({{"user", "1"}, {"assistant", "2"}}) +
                                                 asked_in_chat("", r.messages));
    }
    const std::string plan = "A plan for the solution:\np\n\n";
    EXPECT_EQ(asked_of(bare, chat, "plan"), asked_in_chat("", plan + told));
    EXPECT_EQ(asked_of(text, around, "plan"), asked_in_chat("", "<" + plan + "Q>"));
    EXPECT_EQ(asked_of(messages, around, "plan"), asked_in_chat("", "<" + plan + "Q>"));
    for (const std::string& row : {bare, text, messages})
        EXPECT_EQ(asked_of(row, thinking), asked_in_chat("", row == bare ? told : "Q") + "<think>\n\n</think>\n\n");
    // without a chat template
    for (const PromptConfig* c : {&plain, &off, &system_off}) {
        EXPECT_EQ(asked_of(bare, *c), told + "\n");
        EXPECT_EQ(asked_of(text, *c), "Q");
        expect_has(error_of([&] { asked_of(messages, *c); }), "no chat template is in use");
    }
    EXPECT_EQ(asked_of(text, around_off), "<Q>");
    EXPECT_EQ(asked_of(bare, boxed_off), "Q\n" + box + "\n");
    EXPECT_EQ(asked_of(bare, shots_off), few);
    EXPECT_EQ(asked_of(text, around_off, "plan"), "<" + plan + "Q>");
}

// as transformers' tokenizers of Llama 3 do; a chat template writes its own
TEST(PromptFlags, PlainTextBeginsWithTheBosThatItsTokenizerAdds) {
    Tokenizer tok = tokenizer_byte_level();
    const std::string bos = tok.text[(size_t)tok.eos[0]];
    PromptConfig plain, chat;
    chat.chat = ChatTemplate::chatml;
    auto example = [&](const std::string& row, const PromptConfig& c) {
        const Example e = make_example(tok, examples_in(row)[0], c, -1);
        return std::pair(text_of(e.prompt.tokens), text_of(e.completion));
    };
    for (const bool adds : {false, true}) {
        tok.add_bos = adds, tok.bos = tok.eos[0];
        const std::string first = adds ? bos : "";
        Problem p;
        p.question = "Q";
        EXPECT_EQ(text_of(make_prompt(tok, p, plain).tokens), first + "Q");
        EXPECT_EQ(text_of(make_prompt(tok, p, chat).tokens), asked_in_chat("", "Q"));
        p.question = bos + "Q";
        EXPECT_EQ(text_of(make_prompt(tok, p, plain).tokens), bos + "Q");
        EXPECT_EQ(example(R"({"prompt": "Q", "completion": "A"})", plain), std::pair(first + "Q", std::string("A")));
        EXPECT_EQ(example(R"({"prompt": "Q", "completion": "A"})", chat).first, asked_in_chat("", "Q"));
        EXPECT_EQ(example(R"({"text": "A"})", plain), std::pair(first, std::string("A")));
        EXPECT_EQ(example(R"({"text": ")" + bos + R"(A"})", plain), std::pair(std::string(), bos + "A"));
    }
}

TEST(PromptFlags, NeedAMessageOfTheUser) {
    const std::string row =
        R"({"messages": [{"role": "system", "content": "s"}, {"role": "assistant", "content": "a"}]})";
    PromptConfig c;
    c.chat = ChatTemplate::chatml;
    const SftExample e = examples_in(row)[0];
    EXPECT_EQ(make_example(tokenizer_byte_level(), e, c, -1).prompt.text,
              chatml({{"system", "s"}}) + "<|im_start|>assistant\n");
    c.prompt_template = "<{question}>";
    expect_has(error_of([&] { make_example(tokenizer_byte_level(), e, c, -1); }),
               "rows.jsonl:1: the row has no message of the user, whose text --prompt_template would change");
}

// ---------------------------------------------------------------------------------------------------------------------
// every answer of a conversation

namespace {

// what is learnt of a row of messages, joined by |, after the prompt
std::string every_answer(const std::string& messages, ChatTemplate chat, int enable_thinking = -1,
                         const std::string& tools = "null") {
    PromptConfig c;
    c.chat = chat, c.enable_thinking = enable_thinking;
    const Tokenizer tok = tokenizer_byte_level();
    const Example e = make_example(
        tok, examples_in(in_one_line("{\"messages\": " + messages + ", \"tools\": " + tools + "}"))[0], c, -1, true);
    // the whole is what the template shows of the conversation
    const std::string all = chat_render(chat, nlohmann::ordered_json::parse(messages),
                                        nlohmann::ordered_json::parse(tools), false, enable_thinking);
    EXPECT_EQ(e.prompt.text + text_of(e.completion), all);
    EXPECT_EQ(text_of(e.prompt.tokens), e.prompt.text);
    std::string learnt = e.prompt.text;
    int64_t n = 0;
    for (const auto& [begin, end] : e.learnt) {
        learnt += "|" + text_of({e.completion.begin() + begin, e.completion.begin() + end});
        n += end - begin;
    }
    EXPECT_EQ(completion_tokens(e), n);
    return learnt;
}

}  // namespace

TEST(EveryAnswer, IsWhereTheTemplateShowsIt) {
    const std::string talk = R"([{"role": "system", "content": "s"}, {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"}, {"role": "user", "content": "v"}, {"role": "assistant", "content": "b"}])";
    const std::string before = chatml({{"system", "s"}, {"user", "u"}}) + "<|im_start|>assistant\n";
    for (ChatTemplate chat : {ChatTemplate::chatml, ChatTemplate::smollm2, ChatTemplate::qwen2, ChatTemplate::qwen2_5,
                              ChatTemplate::qwen3_instruct})
        EXPECT_EQ(every_answer(talk, chat), before + "|a<|im_end|>\n|b<|im_end|>\n");
    EXPECT_EQ(
        every_answer(talk, ChatTemplate::llama3),
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\ns<|eot_id|><|start_header_id|>user"
        "<|end_header_id|>\n\nu<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n|a<|eot_id|>|b<|eot_id|>");
    // Qwen3 writes an empty reasoning into the last answer alone; where it is given to it, it is not learnt
    EXPECT_EQ(every_answer(talk, ChatTemplate::qwen3), before + "|a<|im_end|>\n|<think>\n\n</think>\n\nb<|im_end|>\n");
    EXPECT_EQ(every_answer(talk, ChatTemplate::qwen3, 0), before + "|a<|im_end|>\n|b<|im_end|>\n");
    std::string reasons = talk;
    reasons.replace(reasons.find("\"b\""), 3, "\"<think>\\nr\\n</think>\\n\\nb\"");
    EXPECT_EQ(every_answer(reasons, ChatTemplate::qwen3),
              before + "|a<|im_end|>\n|<think>\nr\n</think>\n\nb<|im_end|>\n");
    // reasoning that the template drops cannot be learnt
    for (const char* a : {"\"<think>\\nr\\n</think>\\n\\na\"", "\"a\", \"reasoning_content\": \"r\""}) {
        std::string dropped = talk;
        dropped.replace(dropped.find("\"a\""), 3, a);
        expect_has(error_of([&] { every_answer(dropped, ChatTemplate::qwen3); }),
                   "rows.jsonl:1: the chat template shows message 3, an answer, in another way");
    }
    // calls of tools are answers, and what tools say is not
    const std::string calls = R"([{"role": "user", "content": "u"},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {}}]},
        {"role": "tool", "content": "5"}, {"role": "assistant", "content": "b"}])";
    for (ChatTemplate chat : {ChatTemplate::qwen2_5, ChatTemplate::qwen3}) {
        const std::string learnt = every_answer(calls, chat, -1, R"([{"name": "f"}])");
        expect_has(learnt, "<|im_start|>assistant\n|<tool_call>");
        expect_has(learnt, "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call><|im_end|>\n|");
        EXPECT_EQ(learnt.find("<tool_response>"), std::string::npos);
    }
}

TEST(EveryAnswer, OnlyTheRowsOwn) {
    const Tokenizer tok = tokenizer_byte_level();
    PromptConfig c;
    c.chat = ChatTemplate::chatml, c.system_prompt = "S";
    const std::string history = R"({"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}, )",
                      rest = R"({"role": "user", "content": "v"}], "completion": [{"role": "assistant", "content": "b"},
                          {"role": "user", "content": "w"}, {"role": "assistant", "content": "c"}]})";
    const SftExample row = examples_in(in_one_line("{\"prompt\": [" + history + rest))[0];
    Example e = make_example(tok, row, c, -1, true);
    ASSERT_EQ(e.learnt.size(), 2u);
    EXPECT_EQ(e.prompt.text,
              chatml({{"system", "S"}, {"user", "u"}, {"assistant", "a"}, {"user", "v"}}) + "<|im_start|>assistant\n");
    EXPECT_EQ(completion_tokens(e), (int64_t)std::string("b<|im_end|>\nc<|im_end|>\n").size() - 2 * 9);
    EXPECT_TRUE(make_example(tok, row, c, -1).learnt.empty());
    // cut within the second answer, before it, and within the first
    const int second = e.learnt[1].first;
    for (const auto& [n, learnt] : {std::pair(second + 1, 4), {second, 3}, {1, 1}}) {
        Example cut = e;
        example_cut(cut, n);
        EXPECT_EQ(completion_tokens(cut), learnt) << n;
        EXPECT_EQ((int)cut.completion.size(), n);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// order

TEST(WeightedOrder, DrawsInProportionToTheWeights) {
    const std::vector<double> weights = {4.0, 0.0, 1.0, 3.0};
    const int n = 4000;
    int first[4] = {}, second_after_0[4] = {};
    for (int epoch = 0; epoch < n; epoch++) {
        const std::vector<int> order = weighted_order(weights, 5, (uint32_t)epoch);
        ASSERT_EQ(std::set<int>(order.begin(), order.end()).size(), 4u);
        EXPECT_EQ(order[3], 1);  // of weight 0
        first[order[0]]++;
        if (order[0] == 0) second_after_0[order[1]]++;
    }
    // 4.5 standard deviations of a binomial
    auto near = [](int count, int all, double share) {
        EXPECT_NEAR(count, all * share, 4.5 * std::sqrt(all * share * (1 - share)));
    };
    near(first[0], n, 0.5), near(first[2], n, 0.125), near(first[3], n, 0.375);
    near(second_after_0[3], first[0], 0.75);
    EXPECT_EQ(weighted_order(weights, 5, 1), weighted_order(weights, 5, 1));
    std::vector<double> equal(50, 1.0);
    EXPECT_NE(weighted_order(equal, 5, 1), weighted_order(equal, 5, 2));
    EXPECT_NE(weighted_order(equal, 5, 1), weighted_order(equal, 6, 1));
    EXPECT_NE(weighted_order(equal, 5, 1), weighted_order(equal, 5, 1, RNG_REDRAW));
}

namespace {

// problems with these pass rates, read from a field
std::vector<Problem> rated(const std::vector<double>& rates) {
    TempDir dir;
    std::string rows;
    for (double p : rates) rows += format("{\"prompt\": \"q\", \"answer\": \"1\", \"solved\": %g}\n", p);
    put(dir / "rows.jsonl", rows);
    ProblemReading how;
    how.pass_rate = "solved";
    return load_problems(dir / "rows.jsonl", how);
}

TrainingData ordered(const std::string& curriculum, std::vector<double> rates, int64_t per_step) {
    std::vector<Example> examples;
    const Curriculum c = curriculum_parse(curriculum);
    std::vector<Problem> problems = rated(rates);
    curriculum_choose(c, problems, "rows.jsonl");
    for (const Problem& p : problems) {
        examples.emplace_back();
        examples.back().prompt.problem = std::make_shared<const Problem>(p);
    }
    TrainingData d = training_data(std::move(examples), per_step, 3);
    curriculum_order(c, d);
    return d;
}

double rate_of(const TrainingData& d, int64_t i) { return d.example(i).prompt.problem->pass_rate; }

}  // namespace

TEST(Curriculum, EasyOnesFirstAndEveryRowOfAnEpochOnce) {
    const TrainingData d = ordered("solved:by=easy_first", {0.5, 0.25, 1, 0.5, 0, 0.5, 1, 0.75}, 4);
    std::vector<double> rates;
    std::set<int64_t> seen;
    for (int64_t step : {0, 1})
        for (int64_t i : training_indices(d, step)) rates.push_back(rate_of(d, i)), seen.insert(i);
    EXPECT_EQ(rates, (std::vector<double>{1, 1, 0.75, 0.5, 0.5, 0.5, 0.25, 0}));
    EXPECT_EQ(seen.size(), 8u);
    // what takes the place of a step's own is as hard
    std::vector<Example> further = further_examples(d, 1, 0, 2);
    ASSERT_EQ(further.size(), 2u);
    EXPECT_EQ(further[0].prompt.problem->pass_rate, 0.5);
    EXPECT_EQ(further[1].prompt.problem->pass_rate, 0.75);
}

// what an epoch of whole steps leaves out is not always the hardest
TEST(Curriculum, NoRowIsLeftOutOfEveryEpoch) {
    TrainingData d = ordered("solved:by=easy_first", {0.5, 0.25, 1, 0.5, 0, 0.5, 1, 0.75, 0.1, 0.9}, 4);
    d.whole_steps = true;
    std::set<int64_t> seen;
    for (int64_t epoch = 0; epoch < 20; epoch++) {
        std::vector<double> rates;
        for (const int64_t step : {2 * epoch, 2 * epoch + 1})
            for (const int64_t i : training_indices(d, step)) rates.push_back(rate_of(d, i)), seen.insert(i);
        EXPECT_EQ(rates.size(), 8u);
        EXPECT_TRUE(std::is_sorted(rates.rbegin(), rates.rend())) << "easy ones first";
    }
    EXPECT_EQ(seen.size(), 10u);
}

TEST(Curriculum, UncertainOnesFirst) {
    std::vector<double> rates(100, 1.0);
    for (int i = 0; i < 10; i++) rates[(size_t)i * 7] = 0.5;
    const TrainingData d = ordered("solved", rates, 10);
    int uncertain = 0;
    for (int64_t step = 0; step < 100; step += 10)
        for (int64_t i : training_indices(d, step)) uncertain += rate_of(d, i) == 0.5;
    EXPECT_GT(uncertain, 60);  // of 100; at random 10
    const TrainingData bounded = ordered("solved:max=0.9", rates, 10);
    EXPECT_EQ(bounded.count, 10);
    expect_has(error_of([&] { ordered("solved:min=0.6:max=0.9", rates, 10); }),
               "rows.jsonl: 100 of 100 problems have a pass rate outside of [0.6, 0.9], and nothing is left");
}

TEST(Curriculum, BadOnes) {
    for (const char* bad : {"solved:by=hard", "solved:min=2", "solved:min=0.6:max=0.5", ":min=0", "solved:low=1"})
        EXPECT_THROW(curriculum_parse(bad), Error) << bad;
    TempDir dir;
    ProblemReading how;
    how.pass_rate = "solved";
    for (const auto& [field, part] : {std::pair("", "no such field"),
                                      {", \"solved\": 1.5", "1.5 is not a share of right answers"},
                                      {", \"solved\": \"x\"", "\"x\" is not a share of right answers"}}) {
        put(dir / "rows.jsonl", format("{\"prompt\": \"q\", \"answer\": \"1\"%s}", field));
        const std::string error = error_of([&] { load_problems(dir / "rows.jsonl", how); });
        expect_has(error, "rows.jsonl:1: --curriculum solved: ");
        expect_has(error, part);
    }
}
