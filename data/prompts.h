// From a problem to the tokens a model sees: prompt style or template, system message, chat template.
#pragma once
#include <string>
#include <vector>
#include "../tokenizer.h"
#include "chat_template.h"
#include "prompt_styles.h"

struct PromptConfig {
    std::string prompt_template;  // "{question}" or "{prompt}" is replaced by the problem; empty: see problem_text
    std::string system_prompt;
    std::string chat_template = "auto";      // auto: if the tokenizer brings one; on; off
    ChatTemplate chat = ChatTemplate::none;  // the one it brings: chat_template_detect(Tokenizer::chat_text)
    int enable_thinking = -1;                // -1: not passed to the template
    PromptStyle style = prompt_styles[0];
    std::vector<Shot> shots;  // examples to choose from
    int num_shots = 0;
};

// What the policy is asked, ready to run
struct Prompt {
    std::string text, gold;
    std::vector<int> tokens;
    std::shared_ptr<const Problem> problem = {};  // what it was made of
};

inline std::string problem_question(const Problem& p) {
    return p.given.empty() ? p.question : p.given + "\n\n" + p.question;
}

// The problem inside the template or the style. Without one, a row of `prompt` or messages stands as it is, and a bare
// question is told how to answer.
inline std::string problem_text(const PromptConfig& c, const Problem& problem, bool chat) {
    const std::string question = problem_question(problem), end = chat ? "" : "\n";
    if (c.style.ask) return few_shot_text(c.style, c.shots, c.num_shots, question, problem.question);
    if (*c.style.system) return question + boxed_instruction(problem) + (chat ? "" : "\n" + (c.style.system + end));
    if (c.prompt_template.empty()) return problem.bare ? question + hash_instruction(problem) + end : question;
    std::string out = c.prompt_template;
    for (const char* key : {"{question}", "{prompt}"}) {
        size_t at = out.find(key);
        if (at != std::string::npos) return out.replace(at, strlen(key), question);
    }
    fail_usage("--prompt_template: neither {question} nor {prompt} is in it");
}

inline std::string system_message(const PromptConfig& c) {
    return c.system_prompt.empty() ? c.style.system : c.system_prompt;
}

inline bool use_chat(const PromptConfig& c) {
    if (c.chat_template == "off") return false;
    if (c.chat_template == "auto") return c.chat != ChatTemplate::none;
    if (c.chat == ChatTemplate::none) fail_usage("--chat_template on: this tokenizer has no chat template");
    return true;
}

inline nlohmann::ordered_json prompt_messages(const std::string& text, const PromptConfig& c) {
    nlohmann::ordered_json messages = nlohmann::ordered_json::array();
    const std::string system = system_message(c);
    if (!system.empty()) messages.push_back({{"role", "system"}, {"content", system}});
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
    const std::string text = system_message(c);
    if (text.empty() || has_system_message(messages)) return false;
    const nlohmann::ordered_json system = {{"role", "system"}, {"content", text}};
    messages.insert(messages.begin(), system);
    return true;
}

// The last message of the user among the first n becomes `text`; false: there is none
inline bool ask_in_messages(nlohmann::ordered_json& messages, const std::string& text, size_t n) {
    for (size_t i = n; i-- > 0;)
        if (message_has_role(messages[i], "user")) {
            messages[i]["content"] = text;
            return true;
        }
    return false;
}

// A row's conversation, of which the last of the first n messages of the user is the problem's question, as it is asked:
// inside the template or the style, behind what is given, with the system message in front (true: it has one message more)
inline bool ask_row_messages(nlohmann::ordered_json& messages, const Problem& problem, const PromptConfig& c,
                             size_t n) {
    if (!ask_in_messages(messages, problem_text(c, problem, true), n) &&
        (c.style.ask || !c.prompt_template.empty() || !problem.given.empty()))
        fail("%s:%d: the row has no message of the user, whose text --%s would change", problem.source.c_str(),
             problem.line,
             c.style.ask             ? "prompt_style"
             : problem.given.empty() ? "prompt_template"
                                     : "prompt_given");
    return add_system_message(messages, c);
}

inline bool chat_takes_tools(ChatTemplate chat) {
    return chat == ChatTemplate::qwen2_5 || chat == ChatTemplate::qwen2_5_math || chat == ChatTemplate::qwen3 ||
           chat == ChatTemplate::qwen3_instruct;
}

// the tools of a row as far as they can be rendered; says where they cannot
inline nlohmann::ordered_json rendered_tools(const nlohmann::ordered_json& tools, const PromptConfig& c) {
    if (tools.is_null() || chat_takes_tools(c.chat)) return tools;
    note_once(
        "note: the rows' `tools` are not rendered: the chat template in use has no place for them (Qwen2.5's and "
        "Qwen3's have)");
    return nullptr;
}

inline void append_tokens(const Tokenizer& tok, const std::string& text, std::vector<int>& ids) {
    std::vector<int> more;
    tokenizer_encode(tok, text, more);
    ids.insert(ids.end(), more.begin(), more.end());
}

// Plain text begins with the BOS that its tokenizer adds, as transformers has it; a chat template writes its own
inline Prompt make_prompt(const Tokenizer& tok, const Problem& problem, const PromptConfig& c) {
    Prompt p;
    p.gold = problem.gold;
    p.problem = std::make_shared<Problem>(problem);
    bool chat = use_chat(c);
    if (chat) {
        nlohmann::ordered_json messages = problem.messages;
        if (messages.is_null()) {
            messages = prompt_messages(problem_text(c, problem, chat), c);
        } else {
            ask_row_messages(messages, problem, c, messages.size());
        }
        p.text = chat_render_row(format("%s:%d", problem.source.c_str(), problem.line), c.chat, messages,
                                 rendered_tools(problem.tools, c), true, c.enable_thinking);
    } else if (!problem.messages.is_null()) {
        fail(
            "%s:%d: the prompt is a list of messages, but no chat template is in use; give a model that has one, or a "
            "prompt that is text",
            problem.source.c_str(), problem.line);
    } else {
        if (!problem.tools.is_null()) note_once("note: the rows' `tools` are not rendered: no chat template is in use");
        p.text = problem_text(c, problem, chat);
    }
    tokenizer_encode(tok, p.text, p.tokens, true, !chat);
    return p;
}
