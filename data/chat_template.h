// Chat templates: a list of messages -> the prompt text of one model family, byte for byte what transformers'
// apply_chat_template() gives. There is no Jinja engine here: the template text of a model is only recognised
// (chat_template_detect), and the family's rendering is written out in C++.
//
// Sources: the chat_template fields of Qwen/Qwen2-7B-Instruct, Qwen2.5-*, Qwen2.5-Math-*, Qwen3-*, SmolLM2-*-Instruct
// and Meta-Llama-3-*-Instruct. JSON inside prompts follows Python's json.dumps(ensure_ascii=False), which is
// transformers' `tojson`.
//
// The trap: a template is a program, and one that looks almost the same may drop reasoning, add a system prompt or move
// a newline. So a text is accepted only when every fragment that decides the output is the known one; anything else is
// ChatTemplate::unknown and refused when rendering is asked for (not at load: a base model is used without it).
#pragma once
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>
#include <nlohmann/json.hpp>
#include "../runtime/error.h"

enum class ChatTemplate {
    none,            // the model has no template (a base model)
    unknown,         // it has one that this program does not know
    chatml,          // <|im_start|>role\ncontent<|im_end|>\n and nothing else
    smollm2,         // ChatML; a default system prompt when the first message is not a system message
    qwen2,           // ChatML; the same with another default
    qwen2_5,         // ChatML, default system prompt, tools
    qwen2_5_math,    // the same with "Please reason step by step, ..."
    qwen3,           // ChatML, tools, reasoning in <think> blocks
    qwen3_instruct,  // the same without reasoning (the -Instruct-2507 models)
    llama3           // <|start_header_id|>role<|end_header_id|>\n\ncontent<|eot_id|> (3.0; not 3.1's dates and tools)
};

static constexpr const char* kSmolLM2System =
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face";  // no full stop: as published
static constexpr const char* kQwen2System = "You are a helpful assistant.";
static constexpr const char* kQwen25System = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.";
static constexpr const char* kQwen25MathSystem =
    "Please reason step by step, and put your final answer within \\boxed{}.";
static constexpr const char* kToolsHead =
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function "
    "signatures within <tools></tools> XML tags:\n<tools>";
static constexpr const char* kToolsTail =
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": "
    "<args-json-object>}\n</tool_call><|im_end|>\n";

// ---- Python's json.dumps ------------------------------------------------------------------------------------

// repr(float): the shortest digits that read back the same; exponent form when the decimal exponent is < -4 or >= 16
inline std::string python_float_repr(double x) {
    if (std::isnan(x)) return "NaN";  // json.dumps spells the three non-finite values this way
    if (std::isinf(x)) return x < 0 ? "-Infinity" : "Infinity";
    char buf[40];
    auto end = std::to_chars(buf, buf + sizeof buf, x, std::chars_format::scientific).ptr;
    std::string text(buf, end);  // [-]d[.ddd]e[+-]xx
    std::string sign = text[0] == '-' ? "-" : "";
    size_t e = text.find('e');
    int exponent = std::stoi(text.substr(e + 1));
    std::string digits;
    for (char c : text.substr(0, e)) {
        if (c >= '0' && c <= '9') digits += c;
    }
    int n = (int)digits.size();
    if (exponent < -4 || exponent >= 16) {
        std::string mantissa = n > 1 ? digits.substr(0, 1) + "." + digits.substr(1) : digits;
        return sign + mantissa + format("e%c%02d", exponent < 0 ? '-' : '+', std::abs(exponent));
    }
    if (exponent < 0) return sign + "0." + std::string((size_t)(-exponent - 1), '0') + digits;
    if (n <= exponent + 1) return sign + digits + std::string((size_t)(exponent + 1 - n), '0') + ".0";
    return sign + digits.substr(0, (size_t)exponent + 1) + "." + digits.substr((size_t)exponent + 1);
}

inline void python_json_string(std::string& out, const std::string& text) {
    static constexpr char plain[] = "\"\\\n\r\t\f\b", letters[] = "\"\\nrtfb";
    out += '"';
    for (char c : text) {
        const char* at = c ? strchr(plain, c) : nullptr;
        if (at) out += {'\\', letters[at - plain]};
        else if ((unsigned char)c < 0x20) out += format("\\u%04x", (unsigned)c);
        else out += c;
    }
    out += '"';
}

inline void python_json_append(std::string& out, const nlohmann::ordered_json& v, int depth = 0) {
    if (depth > 200) fail("chat template: JSON nested deeper than 200 levels");
    const char* comma = "";
    switch (v.type()) {
        case nlohmann::ordered_json::value_t::string:
            python_json_string(out, v.get_ref<const std::string&>());
            break;
        case nlohmann::ordered_json::value_t::object:
            out += '{';
            for (auto it = v.begin(); it != v.end(); ++it, comma = ", ") {
                out += comma;
                python_json_string(out, it.key());
                out += ": ";
                python_json_append(out, it.value(), depth + 1);
            }
            out += '}';
            break;
        case nlohmann::ordered_json::value_t::array:
            out += '[';
            for (size_t i = 0; i < v.size(); i++, comma = ", ") {
                out += comma;
                python_json_append(out, v[i], depth + 1);
            }
            out += ']';
            break;
        case nlohmann::ordered_json::value_t::number_float:
            out += python_float_repr(v.get<double>());
            break;
        case nlohmann::ordered_json::value_t::number_integer:
            out += std::to_string(v.get<int64_t>());
            break;
        case nlohmann::ordered_json::value_t::number_unsigned:
            out += std::to_string(v.get<uint64_t>());
            break;
        case nlohmann::ordered_json::value_t::boolean:
            out += v.get<bool>() ? "true" : "false";
            break;
        default:
            out += "null";
    }
}

// json.dumps(v, ensure_ascii=False). Integers beyond 64 bits, exact in Python, are floats by the time they arrive here.
inline std::string python_json(const nlohmann::ordered_json& v) {
    std::string out;
    python_json_append(out, v);
    return out;
}

// ---- what Jinja does with a value ---------------------------------------------------------------------------

// message.key, or nullptr when undefined
inline const nlohmann::ordered_json* jinja_get(const nlohmann::ordered_json& object, const char* key) {
    if (!object.is_object()) return nullptr;
    auto it = object.find(key);
    return it == object.end() ? nullptr : &*it;
}

inline bool jinja_true(const nlohmann::ordered_json* v) {
    if (!v || v->is_null()) return false;
    if (v->is_boolean()) return v->get<bool>();
    if (v->is_number()) return v->get<double>() != 0;
    if (v->is_string()) return !v->get_ref<const std::string&>().empty();
    return !v->empty();
}

// {{ value }}: str(value) in Python
inline std::string jinja_print(const nlohmann::ordered_json* v, size_t index, const char* what) {
    if (!v) return "";
    if (v->is_string()) return v->get<std::string>();
    if (v->is_null()) return "None";
    if (v->is_boolean()) return v->get<bool>() ? "True" : "False";
    if (v->is_number()) return python_json(*v);
    fail("messages[%zu]: %s must be text, not a JSON %s", index, what, v->type_name());
}

// the operand of `'...' + value`, where Python raises unless it is a string
inline const std::string& jinja_text(const nlohmann::ordered_json& message, const char* key, size_t index) {
    const nlohmann::ordered_json* v = jinja_get(message, key);
    if (!v) fail("messages[%zu]: \"%s\" is missing; this chat template needs it to be text", index, key);
    if (!v->is_string()) fail("messages[%zu]: \"%s\" must be text, not a JSON %s", index, key, v->type_name());
    return v->get_ref<const std::string&>();
}

inline std::string strip_newlines(const std::string& s, bool left, bool right) {
    size_t begin = 0, end = s.size();
    while (left && begin < end && s[begin] == '\n') begin++;
    while (right && end > begin && s[end - 1] == '\n') end--;
    return s.substr(begin, end - begin);
}

// Python's str.strip(): Unicode white space and the four ASCII separators
inline std::string python_strip(const std::string& s) {
    static const char* const spaces[] = {
        "\t",           "\n",           "\v",           "\f",           "\r",           " ",
        "\x1c",         "\x1d",         "\x1e",         "\x1f",         "\xc2\x85",     "\xc2\xa0",
        "\xe1\x9a\x80", "\xe2\x80\x80", "\xe2\x80\x81", "\xe2\x80\x82", "\xe2\x80\x83", "\xe2\x80\x84",
        "\xe2\x80\x85", "\xe2\x80\x86", "\xe2\x80\x87", "\xe2\x80\x88", "\xe2\x80\x89", "\xe2\x80\x8a",
        "\xe2\x80\xa8", "\xe2\x80\xa9", "\xe2\x80\xaf", "\xe2\x81\x9f", "\xe3\x80\x80"};
    std::string_view v(s);
    for (bool again = true; again;) {
        again = false;
        for (std::string_view w : spaces) {
            while (v.size() >= w.size() && v.substr(0, w.size()) == w) v.remove_prefix(w.size()), again = true;
            while (v.size() >= w.size() && v.substr(v.size() - w.size()) == w) v.remove_suffix(w.size()), again = true;
        }
    }
    return std::string(v);
}

// ---- the families -------------------------------------------------------------------------------------------

inline void chatml_turn(std::string& out, const std::string& role, const std::string& content) {
    out += "<|im_start|>" + role + "\n" + content + "<|im_end|>\n";
}

// default_system: shown when the first message is not a system message; nullptr: none
inline std::string render_chatml(const nlohmann::ordered_json& messages, const char* default_system) {
    std::string out;
    for (size_t i = 0; i < messages.size(); i++) {
        const std::string& role = jinja_text(messages[i], "role", i);
        if (i == 0 && default_system && role != "system") chatml_turn(out, "system", default_system);
        chatml_turn(out, role, jinja_text(messages[i], "content", i));
    }
    return out;
}

inline std::string tool_list(const nlohmann::ordered_json& tools) {
    std::string out = kToolsHead;
    for (const auto& tool : tools) out += "\n" + python_json(tool);
    return out + kToolsTail;
}

// {"name": ..., "arguments": ...} as both Qwen families write it
inline void tool_call_text(std::string& out, const nlohmann::ordered_json& call, bool text_arguments_as_is, size_t i) {
    const nlohmann::ordered_json* arguments = jinja_get(call, "arguments");
    if (!arguments) fail("messages[%zu]: a tool call without \"arguments\"", i);
    out += "<tool_call>\n{\"name\": \"" + jinja_print(jinja_get(call, "name"), i, "a tool call's name");
    out += "\", \"arguments\": ";
    out += text_arguments_as_is && arguments->is_string() ? arguments->get<std::string>() : python_json(*arguments);
    out += "}\n</tool_call>";
}

// neighbouring tool messages share one user turn
inline void tool_response(std::string& out, const nlohmann::ordered_json& messages, size_t i,
                          const std::string& content) {
    auto is_tool = [&](size_t k) { return jinja_text(messages[k], "role", k) == "tool"; };
    if (i == 0 || !is_tool(i - 1)) out += "<|im_start|>user";
    out += "\n<tool_response>\n" + content + "\n</tool_response>";
    if (i + 1 == messages.size() || !is_tool(i + 1)) out += "<|im_end|>\n";
}

inline const nlohmann::ordered_json& tool_calls_of(const nlohmann::ordered_json& message, size_t index) {
    static const nlohmann::ordered_json no_calls = nlohmann::ordered_json::array();
    const nlohmann::ordered_json* calls = jinja_get(message, "tool_calls");
    if (!jinja_true(calls)) return no_calls;
    if (!calls->is_array()) fail("messages[%zu]: \"tool_calls\" must be a list", index);
    return *calls;
}

inline std::string render_qwen2_5(const nlohmann::ordered_json& messages, const nlohmann::ordered_json& tools,
                                  const char* default_system) {
    std::string out;
    if (messages.empty()) fail("chat template: the list of messages is empty");
    bool system_first = jinja_text(messages[0], "role", 0) == "system";
    if (!tools.empty()) {
        std::string system =
            system_first ? jinja_print(jinja_get(messages[0], "content"), 0, "\"content\"") : default_system;
        out += "<|im_start|>system\n" + system + "\n\n" + tool_list(tools);
    } else {
        chatml_turn(out, "system", system_first ? jinja_text(messages[0], "content", 0) : default_system);
    }
    for (size_t i = 0; i < messages.size(); i++) {
        const nlohmann::ordered_json& message = messages[i];
        const std::string& role = jinja_text(message, "role", i);
        const nlohmann::ordered_json* content = jinja_get(message, "content");
        const nlohmann::ordered_json& calls = tool_calls_of(message, i);
        if (role == "user" || (role == "system" && i > 0) || (role == "assistant" && calls.empty())) {
            chatml_turn(out, role, jinja_text(message, "content", i));
        } else if (role == "assistant") {
            out += "<|im_start|>assistant";
            if (jinja_true(content)) out += "\n" + jinja_text(message, "content", i);
            for (const auto& call : calls) {
                out += "\n";
                const nlohmann::ordered_json* function = jinja_get(call, "function");
                tool_call_text(out, function ? *function : call, false, i);
            }
            out += "<|im_end|>\n";
        } else if (role == "tool") {
            tool_response(out, messages, i, jinja_print(content, i, "\"content\""));
        }
    }
    return out;
}

// The last real question: a user message that is not a tool response in disguise. Reasoning after it is kept.
inline size_t qwen3_last_query(const nlohmann::ordered_json& messages) {
    auto starts = [](const std::string& s, std::string_view p) { return s.compare(0, p.size(), p) == 0; };
    auto ends = [](const std::string& s, std::string_view p) {
        return s.size() >= p.size() && s.compare(s.size() - p.size(), p.size(), p) == 0;
    };
    for (size_t i = messages.size(); i-- > 0;) {
        const nlohmann::ordered_json* content = jinja_get(messages[i], "content");
        if (jinja_text(messages[i], "role", i) != "user" || !content || !content->is_string()) continue;
        const std::string& text = content->get_ref<const std::string&>();
        if (!starts(text, "<tool_response>") || !ends(text, "</tool_response>")) return i;
    }
    return messages.size() - 1;
}

// An assistant's reasoning: its own field, or what stands in <think> before the content, which then loses it
inline std::string qwen3_reasoning(const nlohmann::ordered_json& message, std::string& content) {
    const nlohmann::ordered_json* field = jinja_get(message, "reasoning_content");
    if (field && field->is_string()) return field->get<std::string>();
    if (content.find("</think>") == std::string::npos) return "";
    std::string reasoning = strip_newlines(content.substr(0, content.find("</think>")), false, true);
    size_t open = reasoning.rfind("<think>");
    if (open != std::string::npos) reasoning = reasoning.substr(open + 7);
    content = strip_newlines(content.substr(content.rfind("</think>") + 8), true, false);
    return strip_newlines(reasoning, true, false);
}

// reasons: false for the -Instruct-2507 models, whose template neither splits nor writes <think> blocks
inline std::string render_qwen3(const nlohmann::ordered_json& messages, const nlohmann::ordered_json& tools,
                                bool reasons) {
    std::string out;
    if (messages.empty()) fail("chat template: the list of messages is empty");
    bool system_first = jinja_text(messages[0], "role", 0) == "system";
    if (!tools.empty()) {
        out += "<|im_start|>system\n";
        if (system_first) out += jinja_text(messages[0], "content", 0) + "\n\n";
        out += tool_list(tools);
    } else if (system_first) {
        chatml_turn(out, "system", jinja_text(messages[0], "content", 0));
    }
    const size_t last_query = qwen3_last_query(messages);
    for (size_t i = 0; i < messages.size(); i++) {
        const nlohmann::ordered_json& message = messages[i];
        const std::string& role = jinja_text(message, "role", i);
        const nlohmann::ordered_json* content_field = jinja_get(message, "content");
        std::string content = content_field && content_field->is_string() ? content_field->get<std::string>() : "";
        if (role == "user" || (role == "system" && i > 0)) {
            chatml_turn(out, role, content);
        } else if (role == "assistant") {
            std::string reasoning = reasons ? qwen3_reasoning(message, content) : "";
            out += "<|im_start|>assistant\n";
            if (reasons && i > last_query && (i + 1 == messages.size() || !reasoning.empty())) {
                out += "<think>\n" + strip_newlines(reasoning, true, true) + "\n</think>\n\n" +
                       strip_newlines(content, true, false);
            } else {
                out += content;
            }
            bool first = true;
            for (const auto& call : tool_calls_of(message, i)) {
                if (!first || !content.empty()) out += "\n";
                first = false;
                const nlohmann::ordered_json* function = jinja_get(call, "function");
                tool_call_text(out, jinja_true(function) ? *function : call, true, i);
            }
            out += "<|im_end|>\n";
        } else if (role == "tool") {
            tool_response(out, messages, i, content);
        }
    }
    return out;
}

inline std::string render_llama3(const nlohmann::ordered_json& messages) {
    std::string out;
    for (size_t i = 0; i < messages.size(); i++) {
        if (i == 0) out += "<|begin_of_text|>";
        out += "<|start_header_id|>" + jinja_text(messages[i], "role", i) + "<|end_header_id|>\n\n";
        out += python_strip(jinja_text(messages[i], "content", i)) + "<|eot_id|>";
    }
    return out;
}

// messages: [{"role": ..., "content": ..., ...}, ...]; tools: a list or null. enable_thinking: -1 absent, 0 false, 1
// true (only Qwen3 looks at it). Returns the prompt text; encode it with parse_special = true and without BOS.
inline std::string chat_render(ChatTemplate kind, const nlohmann::ordered_json& messages,
                               const nlohmann::ordered_json& tools, bool add_generation_prompt, int enable_thinking) {
    if (kind == ChatTemplate::none) fail("this model has no chat template: give plain prompts instead of messages");
    if (kind == ChatTemplate::unknown) {
        fail(
            "this model's chat template is not one that this program knows (ChatML, SmolLM2, Qwen2, Qwen2.5, Qwen3, "
            "Llama 3): give plain prompts instead of messages");
    }
    if (!messages.is_array()) fail("chat template: messages must be a list, not a JSON %s", messages.type_name());
    if (!tools.is_null() && !tools.is_array())
        fail("chat template: tools must be a list or null, not a JSON %s", tools.type_name());
    std::string out;
    switch (kind) {
        case ChatTemplate::smollm2:
            out = render_chatml(messages, kSmolLM2System);
            break;
        case ChatTemplate::qwen2:
            out = render_chatml(messages, kQwen2System);
            break;
        case ChatTemplate::qwen2_5:
            out = render_qwen2_5(messages, tools, kQwen25System);
            break;
        case ChatTemplate::qwen2_5_math:
            out = render_qwen2_5(messages, tools, kQwen25MathSystem);
            break;
        case ChatTemplate::qwen3:
            out = render_qwen3(messages, tools, true);
            break;
        case ChatTemplate::qwen3_instruct:
            out = render_qwen3(messages, tools, false);
            break;
        case ChatTemplate::llama3:
            out = render_llama3(messages);
            break;
        default:
            out = render_chatml(messages, nullptr);
    }
    if (!add_generation_prompt) return out;
    if (kind == ChatTemplate::llama3) return out + "<|start_header_id|>assistant<|end_header_id|>\n\n";
    out += "<|im_start|>assistant\n";
    if (kind == ChatTemplate::qwen3 && enable_thinking == 0) out += "<think>\n\n</think>\n\n";
    return out;
}

// ---- recognising a template ---------------------------------------------------------------------------------

// What is between two tags, as Jinja (trim_blocks, lstrip_blocks, as transformers sets it) prints it. Before it a tag
// that strips white space or trims a newline, behind it one that strips or a block; at_start: nothing is printed yet.
struct JinjaPlain {
    bool strip_left = false, trim_newline = false;
    std::string text;
};

inline std::string jinja_plain(const JinjaPlain& p, bool strip_right, bool before_block, bool at_start) {
    size_t b = 0, e = p.text.size();
    if (p.strip_left) {
        while (b < e && isspace((unsigned char)p.text[b])) b++;
    } else if (p.trim_newline && b < e && p.text[b] == '\n') {
        b++;
    }
    if (strip_right) {
        while (e > b && isspace((unsigned char)p.text[e - 1])) e--;
    } else if (before_block) {
        size_t k = e;
        while (k > b && (p.text[k - 1] == ' ' || p.text[k - 1] == '\t')) k--;
        if ((k > b && p.text[k - 1] == '\n') || (k == b && (b > 0 || at_start))) e = k;
    }
    return p.text.substr(b, e - b);
}

// The rest of a tag from text[i] on: no blanks, string literals unescaped and single-quoted. i: behind the tag, or n
inline std::string jinja_tag_body(const std::string& text, size_t& i, char tag) {
    const size_t n = text.size();
    const char close = tag == '{' ? '}' : tag;
    std::string body;
    while (i < n) {
        if (tag != '#' && (text[i] == '\'' || text[i] == '"')) {
            char quote = text[i++];
            body += '\'';
            while (i < n && text[i] != quote) {
                char c = text[i++];
                if (c == '\\' && i < n) {
                    c = text[i++];
                    if (c == 'n') c = '\n';
                    else if (!strchr("'\"\\", c)) body += "\\\\";  // no known template has it: must not match one
                }
                body += c;
            }
            i++;
            body += '\'';
        } else if (text[i] == close && i + 1 < n && text[i + 1] == '}') {
            i += 2;
            break;
        } else if (isspace((unsigned char)text[i])) {
            i++;
        } else {
            body += text[i++];
        }
    }
    return body;
}

// One spelling for all texts that Jinja treats alike: white space control applied, tags as jinja_tag_body has them,
// x['role'] written x.role
inline std::string chat_template_canonical(const std::string& text) {
    std::string out;
    JinjaPlain plain;
    for (size_t i = 0; i < text.size();) {
        if (text[i] != '{' || i + 1 >= text.size() || !strchr("{%#", text[i + 1])) {
            plain.text += text[i++];
            continue;
        }
        char tag = text[i + 1];
        i += 2;
        bool dash = i < text.size() && text[i] == '-';
        if (dash) i++;
        out += jinja_plain(plain, dash, tag != '{', out.empty());
        std::string body = jinja_tag_body(text, i, tag);
        plain = {!body.empty() && body.back() == '-', tag != '{', ""};
        if (plain.strip_left) body.pop_back();
        for (const char* key : {"role", "content", "tool_calls"}) {
            std::string indexed = format("['%s']", key);
            for (size_t at; (at = body.find(indexed)) != std::string::npos;)
                body.replace(at, indexed.size(), std::string(".") + key);
        }
        if (tag != '#') out += std::string("{") + tag + body + (tag == '{' ? '}' : tag) + "}";
    }
    if (!plain.text.empty() && plain.text.back() == '\n') plain.text.pop_back();  // keep_trailing_newline is off
    return out + jinja_plain(plain, false, false, out.empty());
}

// text: the chat_template of tokenizer_config.json, chat_template.jinja or a GGUF file; "" gives none
inline ChatTemplate chat_template_detect(const std::string& text) {
    if (text.empty()) return ChatTemplate::none;
    std::string t = chat_template_canonical(text);
    auto has = [&](const std::string& fragment) { return t.find(fragment) != std::string::npos; };

    std::string guard = "{%ifnotadd_generation_promptisdefined%}{%setadd_generation_prompt=false%}{%endif%}";
    if (t.compare(0, guard.size(), guard) == 0) t = t.substr(guard.size());
    auto chatml = [](const char* system) {
        std::string first = system
                                ? std::string("{%ifloop.firstandmessages[0].role!='system'%}{{'<|im_start|>system\n") +
                                      system + "<|im_end|>\n'}}{%endif%}"
                                : "";
        return "{%formessageinmessages%}" + first +
               "{{'<|im_start|>'+message.role+'\n'+message.content+'<|im_end|>'+'\n'}}{%endfor%}"
               "{%ifadd_generation_prompt%}{{'<|im_start|>assistant\n'}}{%endif%}";
    };
    if (t == chatml(nullptr)) return ChatTemplate::chatml;
    if (t == chatml(kSmolLM2System)) return ChatTemplate::smollm2;
    if (t == chatml(kQwen2System)) return ChatTemplate::qwen2;
    if (t ==
        "{%setloop_messages=messages%}{%formessageinloop_messages%}{%setcontent='<|start_header_id|>'+message.role+"
        "'<|end_header_id|>\n\n'+message.content|trim+'<|eot_id|>'%}{%ifloop.index0==0%}{%setcontent=bos_token+content%"
        "}"
        "{%endif%}{{content}}{%endfor%}{%ifadd_generation_prompt%}"
        "{{'<|start_header_id|>assistant<|end_header_id|>\n\n'}}{%endif%}")
        return ChatTemplate::llama3;

    bool tools = has(kToolsHead) && has(kToolsTail) && has("{{'\n<tool_response>\n'}}") && has("tool|tojson") &&
                 has("{{'\n</tool_response>'}}") && has("tool_call.arguments|tojson");
    if (!tools || !has("{%ifadd_generation_prompt%}{{'<|im_start|>assistant\n'}}")) return ChatTemplate::unknown;
    if (has("<think>\n'+reasoning_content.strip('\n')+'\n</think>\n\n'+content.lstrip('\n')}}") &&
        has("{%ifloop.index0>ns.last_query_index%}{%ifloop.lastor(notloop.lastandreasoning_content)%}") &&
        has("{%ifenable_thinkingisdefinedandenable_thinkingisfalse%}{{'<think>\n\n</think>\n\n'}}{%endif%}"))
        return ChatTemplate::qwen3;
    if (has("{%elifmessage.role=='assistant'%}{{'<|im_start|>'+message.role+'\n'+content}}{%ifmessage.tool_calls%}") &&
        !has("think"))
        return ChatTemplate::qwen3_instruct;
    if (has("{%if(message.role=='user')or(message.role=='system'andnotloop.first)or(message.role=='assistant'andnot"
            "message.tool_calls)%}{{'<|im_start|>'+message.role+'\n'+message.content+'<|im_end|>'+'\n'}}") &&
        !has("think")) {
        auto defaults_to = [&](const char* system) {
            return has(std::string("{{'<|im_start|>system\n") + system + "<|im_end|>\n'}}") &&
                   has(std::string("{{'") + system + "'}}");
        };
        if (defaults_to(kQwen25System)) return ChatTemplate::qwen2_5;
        if (defaults_to(kQwen25MathSystem)) return ChatTemplate::qwen2_5_math;
    }
    return ChatTemplate::unknown;
}
