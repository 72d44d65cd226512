// Problems that are trained on and held out at once: an evaluation on them measures memory. Two questions are the same
// if their texts are, without white space and without the case of ASCII letters.
// The trap: the same question behind another instruction ("... Let's think step by step") is not found.
#pragma once
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>
#include "dataset.h"

inline std::string normalized_question(const std::string& question) {
    std::string out;
    for (char c : question)
        if (!strchr(" \t\r\n\v\f", c) || c == 0) out += c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
    return out;
}

// what is asked: the question, or all of a conversation but what the system says
inline std::string normalized_problem(const Problem& p) {
    if (p.messages.is_null()) return normalized_question(p.question);
    std::string text;
    for (const auto& message : p.messages)
        if (!message_has_role(message, "system") && !message_has_role(message, "developer"))
            text += message["content"].get_ref<const std::string&>();
    return normalized_question(text);
}

// Questions by their hash; two of 10^5 have the same one with a probability of 3e-10
struct QuestionIndex {
    std::unordered_map<uint64_t, std::pair<std::string, int>> places;  // file and line of the first such question

    // false: it was there
    bool add(const Problem& p) {
        return places.emplace(text_hash(normalized_problem(p)), std::pair(p.source, p.line)).second;
    }
    // "file:line", or empty
    std::string find(const Problem& p) const {
        auto at = places.find(text_hash(normalized_problem(p)));
        return at == places.end() ? "" : format("%s:%d", at->second.first.c_str(), at->second.second);
    }
};

struct Overlap {
    int count = 0;
    std::string first;  // "b.jsonl:3 is a.jsonl:7, 'What is ...'"
};

inline void overlap_found(Overlap& o, const Problem& p, const std::string& place) {
    if (o.count++ == 0) o.first = format("%s:%d is %s, ", p.source.c_str(), p.line, place.c_str()) + shown(p.question);
}

// counts p if it is trained on
inline void find_overlap(Overlap& o, const QuestionIndex& trained, const Problem& p) {
    const std::string place = trained.find(p);
    if (!place.empty()) overlap_found(o, p, place);
}

// problems that came before in the same list
inline Overlap find_duplicates(const std::vector<Problem>& problems) {
    Overlap o;
    QuestionIndex before;
    for (const Problem& p : problems)
        if (!before.add(p)) overlap_found(o, p, before.find(p));
    return o;
}

// says how many problems of a set are there twice
inline void note_duplicates(const std::string& set, const std::vector<Problem>& problems) {
    const Overlap twice = find_duplicates(problems);
    if (twice.count > 0)
        note_once(format("note: %s: %d of %zu problems came before in it and count twice; the first: %s",
                         escape_controls(set).c_str(), twice.count, problems.size(),
                         escape_controls(twice.first).c_str()));
}
