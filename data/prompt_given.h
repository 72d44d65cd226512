// What a row says beside its question and a prompt may give away: SPARKLE's axes (arXiv 2506.04723), a plan, the
// knowledge that is needed, or the sub-problems. Its fields: `planning`, `knowledge` {"theorem": [...], ...} and
// `subproblems` {"1q", "1a", "2q", ...}; `plan` and lists of texts are taken, too.
// The trap: the last sub-problem's answer is the answer. So sub-problems are given without theirs.
#pragma once
#include <string>
#include <vector>
#include "rows.h"

struct GivenKind {
    const char* name;                 // of --prompt_given
    std::vector<const char*> fields;  // that hold it
    const char* heading;
};

inline const std::vector<GivenKind>& given_kinds() {
    static const std::vector<GivenKind> kinds = {
        {"plan", {"plan", "planning"}, "A plan for the solution:"},
        {"knowledge", {"knowledge"}, "Facts that help:"},
        {"subproblems", {"subproblems", "sub_problems"}, "The problem in steps. Solve them in this order:"},
    };
    return kinds;
}

// the texts of a field: itself, those of its list, or of the fields of its object; answers of sub-problems are left out
inline void given_lines(const nlohmann::ordered_json& v, std::vector<std::string>& lines) {
    if (v.is_string()) {
        const std::string text = trim_field(v.get<std::string>());
        if (!text.empty()) lines.push_back(text);
    } else if (v.is_array()) {
        for (const auto& item : v) given_lines(item, lines);
    } else if (v.is_object()) {
        for (const auto& item : v.items()) {
            const std::string& key = item.key();
            const bool numbered_answer =
                key.size() > 1 && key.back() == 'a' && key[key.size() - 2] >= '0' && key[key.size() - 2] <= '9';
            if (!numbered_answer && key != "answer" && key != "solution") given_lines(item.value(), lines);
        }
    }
}

// "heading\n1. ...\n2. ...", or the text alone where there is one; kind: a name of given_kinds()
inline std::string given_text(const DatasetRow& row, const std::string& name) {
    for (const GivenKind& kind : given_kinds()) {
        if (name != kind.name) continue;
        const char* field = first_field(row, kind.fields);
        if (!field)
            fail("%s: --prompt_given %s: the row has no `%s`; it has: %s", row.where.c_str(), kind.name, kind.fields[0],
                 row_fields(row).c_str());
        std::vector<std::string> lines;
        given_lines(row.object.at(field), lines);
        if (lines.empty()) fail("%s: --prompt_given %s: `%s` is empty", row.where.c_str(), kind.name, field);
        std::string text = kind.heading;
        for (size_t i = 0; i < lines.size(); i++)
            text += (lines.size() == 1 ? std::string("\n") : format("\n%zu. ", i + 1)) + lines[i];
        return text;
    }
    fail("--prompt_given: no kind %s", shown(name).c_str());
}
