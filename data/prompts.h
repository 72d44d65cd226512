// From a problem to the tokens a model sees: prompt template, system message, chat template.
#pragma once
#include <string>
#include <vector>
#include "../tokenizer.h"
#include "chat_template.h"
#include "dataset.h"

struct PromptConfig {
    std::string prompt_template;  // "{question}" or "{prompt}" is replaced by the problem; empty: see problem_text
    std::string system_prompt;
    std::string chat_template = "auto";      // auto: if the tokenizer brings one; on; off
    ChatTemplate chat = ChatTemplate::none;  // the one it brings: chat_template_detect(Tokenizer::chat_text)
    int enable_thinking = -1;                // -1: not passed to the template
};

// What the policy is asked, ready to run
struct Prompt {
    std::string text, gold;
    std::vector<int> tokens;
    std::shared_ptr<const Problem> problem = {};  // what it was made of
};

// What a bare question is followed by, so that the answer comes in a form the `exact` reward can read
constexpr const char* ANSWER_INSTRUCTION =
    "\nThink step by step, then give the final answer alone on the last line after ####.";

// The problem inside the template. Without one, a `prompt` row stands as it is, and a bare question is told how to
// answer.
inline std::string problem_text(const PromptConfig& c, const std::string& problem, bool bare, bool chat) {
    if (c.prompt_template.empty()) return bare ? problem + ANSWER_INSTRUCTION + (chat ? "" : "\n") : problem;
    std::string out = c.prompt_template;
    for (const char* key : {"{question}", "{prompt}"}) {
        size_t at = out.find(key);
        if (at != std::string::npos) return out.replace(at, strlen(key), problem);
    }
    fail_usage("--prompt_template: neither {question} nor {prompt} is in it");
}

inline bool use_chat(const PromptConfig& c) {
    if (c.chat_template == "off") return false;
    if (c.chat_template == "auto") return c.chat != ChatTemplate::none;
    if (c.chat == ChatTemplate::none) fail_usage("--chat_template on: this tokenizer has no chat template");
    return true;
}

inline nlohmann::ordered_json prompt_messages(const std::string& text, const PromptConfig& c) {
    nlohmann::ordered_json messages = nlohmann::ordered_json::array();
    if (!c.system_prompt.empty()) messages.push_back({{"role", "system"}, {"content", c.system_prompt}});
    messages.push_back({{"role", "user"}, {"content", text}});
    return messages;
}

inline bool has_system_message(const nlohmann::ordered_json& messages) {
    for (const auto& message : messages)
        if (message_has_role(message, "system") || message_has_role(message, "developer")) return true;
    return false;
}

// A row's conversation, with the system message of the configuration in front unless it brings one. true: it has one
// message more
inline bool add_system_message(nlohmann::ordered_json& messages, const PromptConfig& c) {
    if (c.system_prompt.empty() || has_system_message(messages)) return false;
    const nlohmann::ordered_json system = {{"role", "system"}, {"content", c.system_prompt}};
    messages.insert(messages.begin(), system);
    return true;
}

inline Prompt make_prompt(const Tokenizer& tok, const Problem& problem, const PromptConfig& c) {
    Prompt p;
    p.gold = problem.gold;
    p.problem = std::make_shared<Problem>(problem);
    bool chat = use_chat(c);
    if (chat) {
        nlohmann::ordered_json messages = problem.messages;
        if (messages.is_null()) messages = prompt_messages(problem_text(c, problem.question, problem.bare, chat), c);
        else add_system_message(messages, c);
        p.text = chat_render_row(format("%s:%d", problem.source.c_str(), problem.line), c.chat, messages, nullptr, true,
                                 c.enable_thinking);
    } else if (!problem.messages.is_null()) {
        fail(
            "%s:%d: the prompt is a list of messages, but no chat template is in use; give a model that has one, or a "
            "prompt that is text",
            problem.source.c_str(), problem.line);
    } else {
        p.text = problem_text(c, problem.question, problem.bare, chat);
    }
    tokenizer_encode(tok, p.text, p.tokens);
    return p;
}
