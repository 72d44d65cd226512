// What the model is really given, as the start of a run prints it: the first prompt as text, made of its ids, so that special
// tokens and a template are seen, and the ids; of an example also what is learnt of it. And what of it is likely to be a
// mistake.
#pragma once
#include <string>
#include <vector>
#include "../data/examples.h"
#include "../train/watch.h"
#include "session.cuh"

static constexpr size_t SHOWN_TEXT = 160;  // bytes of a text that are shown: its first two thirds and its last

// Escaped, and without its middle where it is longer than `most` bytes
inline std::string elided(const std::string& text, size_t most) {
    const std::string all = escape_controls(text);
    if (all.size() <= most) return all;
    auto character = [&](size_t at) {  // not within one
        while (at > 0 && ((unsigned char)all[at] & 0xC0) == 0x80) at--;
        return at;
    };
    return all.substr(0, character(most * 2 / 3)) + " [...] " + all.substr(character(all.size() - most / 3));
}

// "7 ids: 52 57 42 53 61 63 10"; of many the first and the last
inline std::string ids_text(const std::vector<int>& ids) {
    static constexpr size_t head = 8, tail = 4;
    std::string text = format("%zu id%s:", ids.size(), ids.size() == 1 ? "" : "s");
    for (size_t i = 0; i < ids.size(); i++) {
        if (ids.size() > head + tail + 1 && i == head) text += " ...", i = ids.size() - tail;
        text += format(" %d", ids[i]);
    }
    return text;
}

// `first prompt "49*5=?\n"  7 ids: ...`; the ids on a line of their own where the text is long. label: 12 characters
inline std::string tokens_text(const Tokenizer& tok, const char* label, const std::vector<int>& ids) {
    const std::string text = elided(tokenizer_decode(tok, ids), SHOWN_TEXT), numbers = ids_text(ids);
    const bool one = text.size() + numbers.size() < 100;
    return format("%-12s \"%s\"%s%s\n", label, text.c_str(), one ? "  " : "\n             ", numbers.c_str());
}

// An example without a prompt is text alone
inline std::string first_example_text(const Tokenizer& tok, const Example& e) {
    std::string text;
    if (!e.prompt.tokens.empty()) text += tokens_text(tok, "first prompt", e.prompt.tokens);
    if (!e.completion.empty()) text += tokens_text(tok, "learnt of it", e.completion);
    return text;
}

// the token that ends a turn of a conversation of this kind; -1: the tokenizer has none
inline int turn_end(const Tokenizer& tok, bool llama) { return tokenizer_id(tok, llama ? "<|eot_id|>" : "<|im_end|>"); }

// What of the first prompt is likely to be a mistake
inline std::vector<std::pair<Warning, std::string>> prompt_warnings(const Session& s, const std::vector<int>& ids) {
    std::vector<std::pair<Warning, std::string>> found;
    const std::vector<int>& ends = s.m.config.eos_token_ids;
    auto is_end = [&](int id) { return id >= 0 && std::find(ends.begin(), ends.end(), id) != ends.end(); };
    auto has = [&](int id) { return id >= 0 && std::find(ids.begin(), ids.end(), id) != ids.end(); };
    const int bos = s.tok.bos;
    if (use_chat(s.prompt)) {
        const bool llama = s.prompt.chat == ChatTemplate::llama3;
        if (s.prompt.chat != ChatTemplate::unknown && !is_end(turn_end(s.tok, llama)))
            found.push_back(
                {Warning::template_of_base,
                 format("prompts have the tokenizer's chat template, but %s, which ends a turn of it, is none "
                        "of the model's end tokens: a base model, which knows no chat and goes on until it is "
                        "cut off; give --chat_template off, or the instruct model",
                        llama ? "<|eot_id|>" : "<|im_end|>")});
    } else if (!s.prompt.style.ask &&
               !s.tok.merges.empty()) {  // tokens that are bytes end in <|im_end|> without a chat
        for (bool llama : {false, true}) {
            const int end = turn_end(s.tok, llama);
            const int begin = tokenizer_id(s.tok, llama ? "<|start_header_id|>" : "<|im_start|>");
            if (!is_end(end) || has(end) || has(begin)) continue;
            found.push_back(
                {Warning::template_missing,
                 format("the model ends its turns with %s, as chat models do, but prompts have no chat template%s",
                        llama ? "<|eot_id|>" : "<|im_end|>",
                        s.prompt.chat != ChatTemplate::none
                            ? "; give --chat_template auto"
                            : ": its tokenizer brings none; give --tokenizer, a folder that has it")});
            break;
        }
    }
    if (bos >= 0 && ids.size() > 1 && ids[0] == bos && ids[1] == bos)
        found.push_back(
            {Warning::bos_doubled,
             "the first prompt begins with two BOS tokens, which models are not trained on; take the one out "
             "of --prompt_template or of the data's rows"});
    return found;
}
