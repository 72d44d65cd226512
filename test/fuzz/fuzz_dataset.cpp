// JSONL rows as problems and as examples, and both as what a model sees. Problems with an answer are problems without
// one too; a file joined to itself has its rows twice; the tokens of a prompt and a completion are their text.
#include "../../data/examples.h"
#include "fuzz.h"

static std::vector<Problem> fuzz_problems(const std::string& path, bool gold_needed) {
    std::vector<Problem> list;
    fuzz_accepts([&] { list = load_problems(path, gold_needed); });
    for (const Problem& p : list)
        fuzz_require(!trim_field(p.question).empty() && (!gold_needed || !p.gold.empty()), "a problem is one");
    return list;
}

static int fuzz_dataset(const uint8_t* data, size_t size) {
    static const FuzzFolder folder;
    static const Tokenizer tok = tokenizer_byte_level();
    const std::string text((const char*)data, size), path = folder / "rows.jsonl";
    folder.put("rows.jsonl", text);
    const std::vector<Problem> with = fuzz_problems(path, true), all = fuzz_problems(path, false);
    fuzz_require(with.empty() || with.size() == all.size(), "rows with answers are rows");
    for (size_t i = 0; i < with.size(); i++)
        fuzz_require(with[i].gold == all[i].gold && with[i].question == all[i].question &&
                         with[i].line == all[i].line && (i == 0 || with[i].line > with[i - 1].line),
                     "a row is read the same way twice");
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
        for (const Problem& p : all)
            fuzz_accepts([&] {
                const Prompt prompt = make_prompt(tok, p, c);
                fuzz_require(tokenizer_decode(tok, prompt.tokens) == prompt.text, "a prompt's tokens are its text");
            });
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
