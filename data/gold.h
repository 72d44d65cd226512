// The gold answer of a row: what a problem is graded against.
// The trap: a gold answer that is wrong or empty is not an error anyone sees later, only a reward that never comes. So
// what cannot be found is a fault with its reason, and load_problems() counts those.
#pragma once
#include <charconv>
#include <cmath>
#include <cstring>
#include <string>
#include "rows.h"

// what the grader makes of a gold answer
enum class GoldRead {
    not_at_all,   // it pays nothing, whatever is answered
    by_spelling,  // only the same characters are right
    by_words,     // only the same words are
    as_answer
};

struct Gold {
    std::string text;   // empty: none
    std::string fault;  // why there is none
};

enum class GoldIn {
    answer,    // the text is the answer, unless it marks one
    solution,  // the text is a solution, so that the whole of it cannot be the answer
    either     // GSM8K's marked solutions, and the plain answers of other sets
};

static constexpr double EXACT_DOUBLE = 9007199254740992.0;  // 2^53: from here on digits may be lost
static constexpr size_t PLAIN_ANSWER = 64;                  // bytes; beyond, a text is a solution

// What stands in the braces of the last \boxed{...} of s, trimmed. false: there is none, or it is not closed.
inline bool gold_in_box(const std::string& s, std::string* inside) {
    size_t at = s.rfind("\\boxed{");
    if (at == std::string::npos) return false;
    size_t begin = at + strlen("\\boxed{");
    int depth = 1;
    for (size_t i = begin; i < s.size(); i++) {
        if (s[i] == '\\') i++;  // \{ and \} are text
        else if (s[i] == '{') depth++;
        else if (s[i] == '}' && --depth == 0) {
            *inside = trim_field(s.substr(begin, i - begin));
            return true;
        }
    }
    return false;
}

// An answer by itself: one short line that works nothing out
inline bool is_plain_answer(const std::string& text) {
    return text.size() <= PLAIN_ANSWER && text.find_first_of("\n=") == std::string::npos;
}

// Of a text what follows the last ####, else what the last \boxed{} holds, else the whole, as far as `in` allows.
inline Gold gold_in_text(const std::string& text, const char* name, GoldIn in) {
    Gold gold;
    gold.text = trim_field(text);
    size_t hashes = text.rfind("####");
    bool found = hashes != std::string::npos;
    if (found) {
        std::string rest = trim_field(text.substr(hashes + 4));
        gold.text = trim_field(rest.substr(0, rest.find('\n')));
        if (in != GoldIn::answer && !gold.text.empty() && gold.text.find_first_of("0123456789") == std::string::npos)
            return {"", format("the final answer %s after #### in `%s` is not a number; a text answer goes with "
                               "`prompt`",
                               shown(gold.text).c_str(), name)};
    } else {
        found = gold_in_box(text, &gold.text) || (in == GoldIn::either && is_plain_answer(gold.text));
    }
    if (in != GoldIn::answer && !found)
        return {"", format("no final answer in `%s`: a worked solution ends in #### ANSWER or holds \\boxed{ANSWER} "
                           "(an answer without its solution goes with `prompt`)",
                           name)};
    if (gold.text.empty()) gold.fault = format("the final answer in `%s` is empty", name);
    return gold;
}

// The gold answer in field `name`: a number as it is, or what the text says. Anything else is an error.
inline Gold gold_field(const DatasetRow& row, const char* name, GoldIn in) {
    const nlohmann::ordered_json& v = row.object.at(name);
    if (v.is_number_float() && std::fabs(v.get<double>()) >= EXACT_DOUBLE)
        return {"", format("the number in `%s` is too large to be exact; write it as text, in quotes", name)};
    if (v.is_number()) return {v.dump(), ""};
    if (v.is_string() && trim_field(v.get<std::string>()).empty()) return {"", format("`%s` is empty", name)};
    return gold_in_text(text_field(row, name), name, in);
}

// A number that the set's authors computed in floating point, whatever its size: 51.0 is 51. Texts are answers.
inline Gold gold_number(const DatasetRow& row, const char* name) {
    const nlohmann::ordered_json& v = row.object.at(name);
    if (!v.is_number_float()) return gold_field(row, name, GoldIn::answer);
    const double x = v.get<double>();
    if (std::fabs(x) < EXACT_DOUBLE && x == std::floor(x)) return {format("%.0f", x == 0 ? 0.0 : x), ""};
    char text[32];  // the fewest digits that are this number
    return {std::string(text, std::to_chars(text, text + sizeof(text), x).ptr), ""};
}
