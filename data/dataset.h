// Data sets: problems (a question and its gold answer) for GRPO and evaluation, examples (prompt and completion) for
// supervised fine-tuning. The shape of a row is found by its fields: those of published sets (problem_kinds.h), TRL's
// "prompt-only", "prompt-completion", "language modeling" and conversational types. Rows of several kinds may be mixed.
// The trap: a problem whose gold answer cannot be used pays nothing, whatever is answered, and an empty completion teaches
// to say nothing. Up to 1 % of a file's rows may be such, as in published sets, and are left out and said; more is a file
// that is read wrongly.
#pragma once
#include <string>
#include <utility>
#include <vector>
#include "problem_kinds.h"

// Plain text: `completion` is learnt after `prompt` (empty prompt: all of it is learnt). Conversation: messages[i] is
// learnt for i >= prompt_messages, given those before.
struct SftExample {
    std::string prompt, completion;
    bool bare = false;                // as in Problem
    nlohmann::ordered_json messages;  // [{role, content}, ...], or null for plain text
    nlohmann::ordered_json tools;     // as in Problem
    int prompt_messages = 0;
    int first_learnt = 0;  // the answers from this message on are the row's own, where each of them is learnt
    std::string given;     // as in Problem
    std::string source;
    int line = 0;
};

// ---------------------------------------------------------------------------------------------------------------------
// problems

// which kinds a file's rows are, in the order of their first ones
struct KindCount {
    const char* name;
    int rows, first_line;
};

inline void count_kind(std::vector<KindCount>& counts, const char* name, int line) {
    for (KindCount& c : counts)
        if (strcmp(c.name, name) == 0) {
            c.rows++;
            return;
        }
    counts.push_back({name, 1, line});
}

// "FILE has rows of 2 kinds: 7 with `question` (the first in line 1), ..."; empty: they are of one
inline std::string mixed_kinds_text(const std::string& path, const std::vector<KindCount>& counts) {
    if (counts.size() < 2) return "";
    std::string text = format("%s has rows of %zu kinds: ", escape_controls(path).c_str(), counts.size());
    for (size_t i = 0; i < counts.size(); i++)
        text += format("%s%d with %s (the first in line %d)", i ? ", " : "", counts[i].rows, counts[i].name,
                       counts[i].first_line);
    return text;
}

// some of a file's rows
struct SomeRows {
    int count = 0;
    std::string first;  // "file:line: why"
    void add(const std::string& line) {
        if (count++ == 0) first = line;
    }
    void add(const std::string& where, const std::string& why) { add(where + ": " + why); }
};

static constexpr double MOST_BAD_ROWS = 0.01;  // of a file's rows

// says which of `rows` are left out, and why ("for ..."); too many are an error
inline void judge_bad_rows(const std::string& path, const SomeRows& bad, int rows, const char* what) {
    if (bad.count == 0) return;
    if (bad.count > MOST_BAD_ROWS * rows)
        fail("%s; so it is with %d of the %d rows, and more than %g %% are not left out: correct or remove them",
             bad.first.c_str(), bad.count, rows, 100 * MOST_BAD_ROWS);
    note_once(format("note: %s: %d of %d %s; the first: %s", escape_controls(path).c_str(), bad.count, rows, what,
                     escape_controls(bad.first).c_str()));
}

// The problems of a file, in the order of its rows. Without how.gold_needed those without a usable answer are kept and
// have none.
inline std::vector<Problem> load_problems(const std::string& path, const ProblemReading& how = {}) {
    std::vector<Problem> problems;
    std::vector<KindCount> kinds;
    SomeRows bad, empty, spelled;
    int rows = 0;
    for_each_row(path, [&](const DatasetRow& row, int line) {
        rows++;
        count_kind(kinds, problem_kind(row).name, line);
        ProblemReading of_row = how;
        const bool names_rewards = how.own_rewards && first_field(row, {"reward_funcs"});
        if (names_rewards) of_row.gold_needed = false;  // they may read none
        ParsedProblem parsed;
        try {
            parsed = parse_problem(row, of_row);
        } catch (const UnusableRow& e) { return empty.add(e.what()); }
        if (of_row.gold_needed && !parsed.fault.empty()) return bad.add(row.where, parsed.fault);
        if (names_rewards) parsed.problem.reward_funcs = text_field(row, "reward_funcs");
        if (how.keep_rows) parsed.problem.row = std::make_shared<nlohmann::ordered_json>(row.object);
        if (!parsed.problem.gold.empty() && parsed.gold_read != GoldRead::as_answer)
            spelled.add(row.where, shown(parsed.problem.gold));
        parsed.problem.source = path;
        parsed.problem.line = line;
        problems.push_back(std::move(parsed.problem));
    });
    judge_bad_rows(path, empty, rows, "problems are left out, for they ask nothing");
    judge_bad_rows(path, bad, rows, "problems are left out, for their answers cannot be used");
    if (how.gold_needed && spelled.count > 0)
        note_once(
            format("note: %s: %d of %d gold answers are no mathematics, and only answers that are spelled like "
                   "them are right; the first: %s",
                   escape_controls(path).c_str(), spelled.count, rows, escape_controls(spelled.first).c_str()));
    const std::string mixed = mixed_kinds_text(path, kinds);
    if (!mixed.empty()) note_once("note: " + mixed);
    return problems;
}

// ---------------------------------------------------------------------------------------------------------------------
// examples for supervised fine-tuning

inline SftExample parse_sft(const DatasetRow& row) {
    SftExample e;
    const char* kind = first_field(row, {"messages", "prompt", "question", "problem", "text"});
    std::string name = kind ? kind : "";
    if (name == "messages") {
        e.messages = messages_field(row, kind);
        e.prompt_messages = (int)e.messages.size() - 1;
        if (!message_has_role(e.messages.back(), "assistant"))
            fail("%s: the last of `messages` is not of the assistant; that is the one to learn", row.where.c_str());
        if (e.prompt_messages == 0) fail("%s: `messages` holds an answer to nothing", row.where.c_str());
    } else if (name == "prompt") {
        const char* completion = first_field(row, {"completion"});
        if (!completion)
            fail("%s: no `completion` beside `prompt`; the row has: %s", row.where.c_str(), row_fields(row).c_str());
        bool text = row.object.at(kind).is_string();
        if (text != row.object.at(completion).is_string())
            fail("%s: `prompt` and `completion` must both be text or both be messages", row.where.c_str());
        if (text) {
            e.prompt = text_field(row, kind);
            e.completion = text_field(row, completion);
        } else {
            e.messages = messages_field(row, kind);
            e.prompt_messages = e.first_learnt = (int)e.messages.size();
            for (const auto& message : messages_field(row, completion)) e.messages.push_back(message);
            if (!message_has_role(e.messages[(size_t)e.prompt_messages], "assistant"))
                fail("%s: `completion` does not begin with a message of the assistant", row.where.c_str());
        }
    } else if (name == "question" || name == "problem") {
        const char* answer = first_field(row, {name == "question" ? "answer" : "solution"});
        if (!answer)
            fail("%s: no `%s` beside `%s`; the row has: %s", row.where.c_str(),
                 name == "question" ? "answer" : "solution", kind, row_fields(row).c_str());
        e.prompt = text_field(row, kind);
        e.completion = text_field(row, answer);
        e.bare = true;
    } else if (name == "text") {
        e.completion = text_field(row, kind);
    } else if (is_svamp_solved(row)) {
        e.prompt = svamp_question(row);
        e.completion = svamp_solution(row);
        e.bare = true;
    } else {
        fail("%s: no `messages`, `prompt`, `question`, `problem` or `text`; the row has: %s", row.where.c_str(),
             row_fields(row).c_str());
    }
    if (e.messages.is_null()) return e;
    e.tools = tools_field(row);
    for (size_t i = (size_t)e.prompt_messages; i < e.messages.size(); i++)
        if (message_has_role(e.messages[i], "assistant") && is_empty_message(e.messages[i]))
            throw UnusableRow(row, format("message %zu, an answer to learn, is empty", i + 1));
    return e;
}

// {"prompt", "completion"}: both text or both messages; {"question", "answer"}; {"problem", "solution"}; {"messages"},
// of which the last one is learnt; {"text"}, learnt from its first token on; SVAMP's {"Body", "Question", "Equation"}.
// given: as in ProblemReading
inline std::vector<SftExample> load_sft(const std::string& path, const std::string& given = "") {
    std::vector<SftExample> examples;
    SomeRows bad;
    int rows = 0;
    for_each_row(path, [&](const DatasetRow& row, int line) {
        rows++;
        SftExample e;
        try {
            e = parse_sft(row);
        } catch (const UnusableRow& fault) { return bad.add(fault.what()); }
        if (!given.empty()) e.given = given_text(row, given);
        e.source = path;
        e.line = line;
        examples.push_back(std::move(e));
    });
    judge_bad_rows(path, bad, rows, "rows are left out, for they cannot be learnt");
    return examples;
}
