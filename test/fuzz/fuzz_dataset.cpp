// Rows, JSON lines or a JSON list, as problems and as examples, and both as what a model sees. Problems with an answer
// are problems without one too; a file joined to itself has its rows twice; the tokens of a prompt and a completion are
// their text.
#include "../../data/examples.h"
#include "fuzz.h"

static std::vector<Problem> fuzz_problems(const std::string& path, bool gold_needed, const char* given = "") {
    std::vector<Problem> list;
    ProblemReading how;
    how.gold_needed = gold_needed;
    how.given = given;
    fuzz_accepts([&] { list = load_problems(path, how); });
    for (const Problem& p : list)
        fuzz_require(!trim_field(p.question).empty() && (!gold_needed || !p.gold.empty()) &&
                         p.given.empty() == (*given == 0) && (!p.choice || p.gold.size() < 2),
                     "a problem is one");
    return list;
}

// rows with answers are rows, in the same order
static void fuzz_same_rows(const std::vector<Problem>& with, const std::vector<Problem>& all) {
    size_t k = 0;
    for (const Problem& p : with) {
        while (k < all.size() && (all[k].line != p.line || all[k].question != p.question || all[k].gold != p.gold)) k++;
        fuzz_require(k < all.size(), "a row is read the same way twice");
        k++;
    }
    for (size_t i = 1; i < all.size(); i++) fuzz_require(all[i].line >= all[i - 1].line, "lines are in order");
}

static int fuzz_dataset(const uint8_t* data, size_t size) {
    static const FuzzFolder folder;
    static const Tokenizer tok = tokenizer_byte_level();
    const std::string text((const char*)data, size), path = folder / "rows.jsonl";
    folder.put("rows.jsonl", text);
    const std::vector<Problem> with = fuzz_problems(path, true), all = fuzz_problems(path, false);
    fuzz_same_rows(with, all);
    std::vector<Problem> asked = all;
    for (const char* given : {"plan", "knowledge", "subproblems"})
        for (const Problem& p : fuzz_problems(path, false, given)) asked.push_back(p);
    folder.put("rows.jsonl", text + "\n" + text);
    const std::vector<Problem> twice = fuzz_problems(path, false);
    fuzz_require(twice.size() == 2 * all.size(), "joined files have the rows of both");
    for (size_t i = 0; i < twice.size(); i++)
        fuzz_require(twice[i].question == all[i % all.size()].question, "joined files have the same rows");

    folder.put("rows.jsonl", text);
    std::vector<SftExample> examples;
    fuzz_accepts([&] { examples = load_sft(path); });
    for (const ChatTemplate chat : {ChatTemplate::none, ChatTemplate::chatml, ChatTemplate::qwen3}) {
        PromptConfig c;
        c.chat = chat;
        c.shots = chain_of_thought_shots();
        c.num_shots = 1;
        size_t turn = 0;
        for (const Problem& p : asked)
            fuzz_accepts([&] {
                c.style = prompt_styles[turn++ % std::size(prompt_styles)];
                const Prompt prompt = make_prompt(tok, p, c);
                fuzz_require(tokenizer_decode(tok, prompt.tokens) == prompt.text, "a prompt's tokens are its text");
            });
        c.style = prompt_styles[0];
        for (const SftExample& e : examples)
            fuzz_accepts([&] {
                const Example x = make_example(tok, e, c, 258);
                const std::string end = tokenizer_decode(tok, x.completion);
                const bool plain = e.messages.is_null() && (chat == ChatTemplate::none || e.prompt.empty());
                fuzz_require(!plain || end == e.completion + "<|im_end|>", "a completion's tokens are its text");
            });
    }
    return 0;
}
FUZZ_TARGET(dataset)
