// The form in which a completion answers. Reinforcement learning tends to leave one of the forms that a model was
// pre-trained on (Echo Chamber, arXiv 2504.07912), so their shares say more than accuracy does about what was learnt.
#pragma once
#include <string>
#include "../rewards/extract.h"

enum class AnswerFormat { none, number, math, phrase, hash, boxed, code };

inline const char* const answer_format_names[] = {"none", "number", "math", "phrase", "####", "boxed", "code"};
static constexpr int ANSWER_FORMATS = 7;

// code: a fenced block, or a line that begins a Python function, as TinyGSM's solutions do; else the first rule of
// extract_answer() that finds an answer
inline AnswerFormat answer_format(const std::string& text) {
    const bool function = text.compare(0, 4, "def ") == 0 || text.find("\ndef ") != std::string::npos;
    if (function || text.find("```") != std::string::npos) return AnswerFormat::code;
    switch (extract_answer(text).rule) {
        case AnswerRule::none:
            return AnswerFormat::none;
        case AnswerRule::boxed:
            return AnswerFormat::boxed;
        case AnswerRule::hash:
            return AnswerFormat::hash;
        case AnswerRule::phrase:
            return AnswerFormat::phrase;
        case AnswerRule::math:
            return AnswerFormat::math;
        case AnswerRule::number:
            return AnswerFormat::number;
    }
    return AnswerFormat::none;
}
