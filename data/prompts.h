// From a problem to the tokens a model sees: prompt template, system message, chat template.
#pragma once
#include <string>
#include <vector>
#include "../tokenizer.h"
#include "dataset.h"

struct PromptConfig {
    std::string prompt_template;  // "{question}" or "{prompt}" is replaced by the problem; empty: the problem itself
    std::string system_prompt;
    std::string chat_template = "auto";  // auto: if the tokenizer brings one; on; off
    int enable_thinking = -1;            // -1: not passed to the template
};

// What the policy is asked, ready to run
struct Prompt {
    std::string text, gold;
    std::vector<int> tokens;
};

inline std::string fill_template(const std::string& prompt_template, const std::string& question) {
    if (prompt_template.empty()) return question;
    std::string out = prompt_template;
    for (const char* key : {"{question}", "{prompt}"}) {
        size_t at = out.find(key);
        if (at != std::string::npos) return out.replace(at, strlen(key), question);
    }
    fail_usage("--prompt_template: neither {question} nor {prompt} is in it");
}

inline bool use_chat(const Tokenizer& tok, const PromptConfig& c) {
    if (c.chat_template == "off") return false;
    if (c.chat_template == "auto") return tok.chat != ChatTemplate::none;
    if (tok.chat == ChatTemplate::none) fail_usage("--chat_template on: this tokenizer has no chat template");
    return true;
}

inline nlohmann::ordered_json prompt_messages(const std::string& text, const PromptConfig& c) {
    nlohmann::ordered_json messages = nlohmann::ordered_json::array();
    if (!c.system_prompt.empty()) messages.push_back({{"role", "system"}, {"content", c.system_prompt}});
    messages.push_back({{"role", "user"}, {"content", text}});
    return messages;
}

inline Prompt make_prompt(const Tokenizer& tok, const Problem& problem, const PromptConfig& c) {
    Prompt p;
    p.gold = problem.gold;
    bool chat = use_chat(tok, c);
    if (chat) {
        nlohmann::ordered_json messages = problem.messages;
        if (messages.is_null()) messages = prompt_messages(fill_template(c.prompt_template, problem.question), c);
        p.text = chat_render(tok.chat, messages, nullptr, true, c.enable_thinking);
    } else if (!problem.messages.is_null()) {
        fail("%s:%d: the prompt is a list of messages, but no chat template is in use; give a model that has one, or a "
             "prompt that is text",
             problem.source.c_str(), problem.line);
    } else {
        p.text = fill_template(c.prompt_template, problem.question);
    }
    tokenizer_encode(tok, p.text, p.tokens);
    return p;
}
