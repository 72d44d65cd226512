// Problems in the field names of the sets that are published: which kind a row is, told by the fields it has, and how
// it is read. A new kind is a function and a row of problem_kinds(); nothing else knows it.
//
// Sources of the names: the files that data/download writes, verl's data format (data_source, prompt, reward_model,
// extra_info), TRL's prompt types, and ARC's and MMLU's choices.
// The trap: in GPQA the right answer is always the first one. Its options are shuffled by the seed and by what the
// question says, so that neither the order of the rows nor --eval_n moves them.
#pragma once
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>
#include "equation.h"
#include "gold.h"
#include "order.h"
#include "../runtime/words.h"
#include "prompt_given.h"

struct Problem {
    std::string question;             // the text; for messages, the content of the last user message
    nlohmann::ordered_json messages;  // [{role, content}, ...], or null for plain text
    nlohmann::ordered_json tools;     // what the chat template tells the model it may call; null: none
    std::string gold;                 // empty only where none is needed
    bool bare = false;                // a question that does not say how to answer
    bool choice = false;              // it ends with options A), B), ...; the gold answer is a letter
    bool several = false;             // the gold answer is a list
    std::string unit;                 // that the answer is to be given in
    std::string given;                // what --prompt_given puts before the question
    std::string source;               // path of the file
    int line = 0;                     // from 1
    // what the row says of it; empty: nothing
    std::string id, subject, level;
    double pass_rate = -1.0;                            // the share of its answers that were right; -1: nobody says
    std::string reward_funcs;                           // a reward of its own, as in --reward_funcs
    std::shared_ptr<const nlohmann::ordered_json> row;  // all of its fields, where they were asked for
};

struct ProblemReading {
    bool gold_needed = true;                              // a row without an answer is an error
    GoldRead (*gold_read)(const std::string&) = nullptr;  // the grader's word; null: all are read
    GoldRead gold_read_needed = GoldRead::by_words;       // what is read worse cannot be used
    uint64_t seed = 0;                                    // of the order of options
    std::string given;                                    // --prompt_given
    bool keep_rows = false;                               // Problem::row
    bool own_rewards = false;                             // a row may name its rewards
    std::string pass_rate;                                // the field that has it; empty: none
};

static constexpr size_t MOST_OPTIONS = 10;  // A to J, the letters that the grader knows

// ---------------------------------------------------------------------------------------------------------------------
// fields

// the first of these fields that is a text or a number, as text; empty: none
inline std::string label_field(const nlohmann::ordered_json& object, const std::vector<const char*>& names) {
    for (const char* name : names) {
        auto at = object.find(name);
        if (at == object.end()) continue;
        if (at->is_number()) return at->dump();
        if (at->is_string() && !trim_field(at->get_ref<const std::string&>()).empty())
            return trim_field(at->get_ref<const std::string&>());
    }
    return "";
}

// id, subject and level, as far as the row has them
inline void read_labels(const DatasetRow& row, Problem& p) {
    p.id = label_field(row.object, {"id", "ID", "unique_id", "problem_id", "question_id", "Record ID", "idx"});
    auto extra = row.object.find("extra_info");
    if (p.id.empty() && extra != row.object.end() && extra->is_object()) p.id = label_field(*extra, {"index", "id"});
    p.subject = label_field(row.object, {"subject", "subfield", "Subdomain", "High-level domain", "category", "type",
                                         "Type", "problem_type", "data_source", "source", "year"});
    p.level = label_field(row.object, {"level", "difficulty", "Writer's Difficulty Estimate"});
}

inline double pass_rate_field(const DatasetRow& row, const std::string& name) {
    if (!first_field(row, {name.c_str()}))
        fail("%s: --curriculum %s: the row has no such field, and no folder is called so; it has: %s",
             row.where.c_str(), printable(name).c_str(), row_fields(row).c_str());
    const nlohmann::ordered_json& v = row.object.at(name);
    const double p = v.is_number() ? v.get<double>() : -1.0;
    if (!(p >= 0.0 && p <= 1.0))
        fail("%s: --curriculum %s: %s is not a share of right answers, a number from 0 to 1", row.where.c_str(),
             printable(name).c_str(), printable(v.dump(), 60).c_str());
    return p;
}

inline bool is_true(const DatasetRow& row, const char* name) {
    auto at = row.object.find(name);
    return at != row.object.end() && at->is_boolean() && at->get<bool>();
}

// fields that hold a list, or its JSON as text; null where the row has none
inline nlohmann::ordered_json tools_field(const DatasetRow& row) {
    const char* name = first_field(row, {"tools"});
    if (!name) return nullptr;
    nlohmann::ordered_json tools = row.object.at(name);
    if (tools.is_string()) {
        const std::string text = tools.get<std::string>();
        if (trim_field(text).empty()) return nullptr;
        tools = json_parse<nlohmann::ordered_json>(text, row.where + ": `tools`");
    }
    if (!tools.is_array()) fail("%s: `tools` is %s, not a list", row.where.c_str(), tools.type_name());
    if (tools.empty()) return nullptr;
    return tools;
}

[[noreturn]] inline void refuse_without_gold(const DatasetRow& row, const char* answers, const char* beside) {
    fail("%s: no %s beside `%s`, and what is graded needs its answer; the row has: %s", row.where.c_str(), answers,
         beside, row_fields(row).c_str());
}

// ---------------------------------------------------------------------------------------------------------------------
// options

// "question" -> "question\n\nA) ...\nB) ..."
inline void add_options(const DatasetRow& row, Problem& p, const std::vector<std::string>& options) {
    if (options.size() < 2 || options.size() > MOST_OPTIONS)
        fail("%s: %zu options; a multiple choice has 2 to %zu", row.where.c_str(), options.size(), MOST_OPTIONS);
    p.question = trim_field(p.question) + "\n";
    for (size_t i = 0; i < options.size(); i++) p.question += format("\n%c) ", (char)('A' + i)) + options[i];
    p.bare = p.choice = true;
}

// {"Question", "Correct Answer", "Incorrect Answer 1" .. "3"}
inline Gold read_gpqa(const DatasetRow& row, const ProblemReading& how, Problem& p) {
    p.question = text_field(row, "Question");
    std::vector<std::string> answers, options;
    for (const char* name : {"Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"}) {
        if (!first_field(row, {name}))
            fail("%s: no `%s` beside `Question`; the row has: %s", row.where.c_str(), name, row_fields(row).c_str());
        answers.push_back(trim_field(text_field(row, name)));
    }
    const uint64_t key = text_hash(p.question + "\n" + answers[0]);
    Gold gold;
    for (int i : epoch_order(4, how.seed, (uint32_t)(key ^ key >> 32), RNG_OPTIONS)) {
        if (i == 0) gold.text = (char)('A' + options.size());
        options.push_back(answers[(size_t)i]);
    }
    add_options(row, p, options);
    return gold;
}

inline std::vector<std::string> text_list(const DatasetRow& row, const char* name, const nlohmann::ordered_json& v) {
    std::vector<std::string> out;
    if (!v.is_array()) fail("%s: `%s` is %s, not a list", row.where.c_str(), name, v.type_name());
    for (const auto& item : v) {
        if (!item.is_string() && !item.is_number())
            fail("%s: `%s` holds %s, not text", row.where.c_str(), name, item.type_name());
        out.push_back(item.is_string() ? trim_field(item.get<std::string>()) : item.dump());
    }
    return out;
}

// which option the row calls right: its number from 0, its letter, its label or its text; -1: none of them
inline int right_option(const nlohmann::ordered_json& answer, const std::vector<std::string>& options,
                        const std::vector<std::string>& labels) {
    const int n = (int)options.size();
    auto place = [](const std::vector<std::string>& list, const std::string& text) {
        for (size_t i = 0; i < list.size(); i++)
            if (list[i] == text) return (int)i;
        return -1;
    };
    const std::string text = answer.is_string() ? trim_field(answer.get<std::string>()) : answer.dump();
    if (int i = place(labels, text); i >= 0) return i;
    if (answer.is_number_integer()) {
        const int64_t i = answer.get<int64_t>();
        return i >= 0 && i < n ? (int)i : -1;
    }
    if (text.size() == 1 && text[0] >= 'A' && text[0] < 'A' + n) return text[0] - 'A';
    return place(options, text);
}

// {"question", "choices" or "options": a list or {"text", "label"}, "answer" or "answerKey"}; the options keep their
// order
inline Gold read_choices(const DatasetRow& row, const ProblemReading& how, Problem& p) {
    p.question = text_field(row, "question");
    const char* name = first_field(row, {"choices", "options"});
    const nlohmann::ordered_json& choices = row.object.at(name);
    std::vector<std::string> options, labels;
    if (choices.is_object()) {
        if (!choices.contains("text")) fail("%s: `%s` has no `text`", row.where.c_str(), name);
        options = text_list(row, name, choices["text"]);
        if (choices.contains("label")) labels = text_list(row, name, choices["label"]);
        if (!labels.empty() && labels.size() != options.size())
            fail("%s: `%s` has %zu texts and %zu labels", row.where.c_str(), name, options.size(), labels.size());
    } else {
        options = text_list(row, name, choices);
    }
    add_options(row, p, options);
    const char* answer = first_field(row, {"answerKey", "answer", "answer_index", "correct"});
    if (!answer && how.gold_needed) refuse_without_gold(row, "`answer` or `answerKey`", name);
    if (!answer) return {};
    const int right = right_option(row.object.at(answer), options, labels);
    if (right < 0) return {"", format("`%s` names none of the %zu options of `%s`", answer, options.size(), name)};
    return {std::string(1, (char)('A' + right)), ""};
}

// ---------------------------------------------------------------------------------------------------------------------
// the other kinds

// {"Body", "Question"}; a body often lacks its full stop, and keeps lacking it
inline std::string svamp_question(const DatasetRow& row) {
    return trim_field(text_field(row, "Body")) + " " + trim_field(text_field(row, "Question"));
}

inline bool is_svamp_solved(const DatasetRow& row) {
    return first_field(row, {"Body"}) && first_field(row, {"Question"}) && first_field(row, {"Equation"});
}

// Of {"Equation": "( ( 8.0 + 3.0 ) * 2.0 )", "Answer": 22.0} the worked solution "8 + 3 = 11\n11 * 2 = 22\n#### 22"
inline std::string svamp_solution(const DatasetRow& row) {
    const std::string equation = text_field(row, "Equation");
    const WorkedEquation worked = work_out(equation);
    if (!worked.fault.empty())
        throw UnusableRow(row, format("`Equation` %s: %s", shown(equation).c_str(), worked.fault.c_str()));
    const char* answer = first_field(row, {"Answer", "answer"});
    const std::string value = worked_number(worked.value), gold = answer ? gold_number(row, answer).text : value;
    const WorkedEquation given = work_out(gold);
    if (!given.fault.empty() || std::fabs(given.value - worked.value) > 1e-6 * std::max(1.0, std::fabs(worked.value)))
        throw UnusableRow(row, format("`Equation` %s is %s, but `%s` is %s", shown(equation).c_str(), value.c_str(),
                                      answer, shown(gold).c_str()));
    return worked.steps + "#### " + gold;
}

// with `Answer`: a number
inline Gold read_svamp(const DatasetRow& row, const ProblemReading& how, Problem& p) {
    p.question = svamp_question(row);
    p.bare = true;
    const char* answer = first_field(row, {"Answer", "answer"});
    if (!answer && how.gold_needed) refuse_without_gold(row, "`Answer`", "Question");
    return answer ? gold_number(row, answer) : Gold();
}

// {"input", "target": a number, "code"}
inline Gold read_gsm_hard(const DatasetRow& row, const ProblemReading&, Problem& p) {
    p.question = text_field(row, "input");
    p.bare = true;
    return gold_number(row, "target");
}

// {"question", "final_answer": [text, ...], "context", "is_multiple_answer", "unit"}; dollars are no part of an answer
inline Gold read_olympiadbench(const DatasetRow& row, const ProblemReading&, Problem& p) {
    p.question = text_field(row, "question");
    if (first_field(row, {"context"})) p.question = trim_field(text_field(row, "context")) + "\n" + p.question;
    p.bare = true;
    p.several = is_true(row, "is_multiple_answer");
    p.unit = label_field(row.object, {"unit"});
    Gold gold;
    for (std::string answer : text_list(row, "final_answer", row.object.at("final_answer"))) {
        if (answer.size() > 1 && answer[0] == '$' && answer.find('$', 1) == answer.size() - 1)
            answer = trim_field(answer.substr(1, answer.size() - 2));
        if (!answer.empty()) gold.text += (gold.text.empty() ? "" : ", ") + answer;
    }
    if (gold.text.empty()) gold.fault = "`final_answer` is empty";
    return gold;
}

// `prompt` of text or messages
inline void read_prompt(const DatasetRow& row, Problem& p) {
    p.tools = tools_field(row);
    if (row.object.at("prompt").is_string()) {
        p.question = text_field(row, "prompt");
        return;
    }
    p.messages = messages_field(row, "prompt");
    if (message_has_role(p.messages.back(), "assistant"))
        fail("%s: `prompt` ends with a message of the assistant, whose turn it is", row.where.c_str());
    for (const auto& message : p.messages)
        if (message_has_role(message, "user")) p.question = message["content"].get<std::string>();
    if (trim_field(p.question).empty()) throw UnusableRow(row, "`prompt` has no text of the user");
}

// verl: {"prompt": messages, "reward_model": {"ground_truth", "style"}, "data_source", "extra_info": {"index"}}
inline Gold read_verl(const DatasetRow& row, const ProblemReading& how, Problem& p) {
    read_prompt(row, p);
    const nlohmann::ordered_json& model = row.object.at("reward_model");
    if (!model.is_object()) fail("%s: `reward_model` is %s, not an object", row.where.c_str(), model.type_name());
    DatasetRow inner{model, row.where + ": `reward_model`"};
    const char* truth = first_field(inner, {"ground_truth"});
    if (!truth && how.gold_needed) refuse_without_gold(inner, "`ground_truth`", "style");
    return truth ? gold_field(inner, truth, GoldIn::answer) : Gold();
}

// TRL: {"prompt", "answer" | "solution" | "ground_truth" | "label"}
inline Gold read_trl(const DatasetRow& row, const ProblemReading& how, Problem& p) {
    read_prompt(row, p);
    const char* gold = first_field(row, {"answer", "solution", "ground_truth", "label"});
    if (!gold && how.gold_needed) refuse_without_gold(row, "`answer`, `solution`, `ground_truth` or `label`", "prompt");
    return gold ? gold_field(row, gold, GoldIn::answer) : Gold();
}

// GSM8K: {"question", "answer": "... #### 72"}; AMC23, Minerva: also a plain answer, or a boxed one in `solution`
inline Gold read_question(const DatasetRow& row, const ProblemReading& how, Problem& p) {
    p.question = text_field(row, "question");
    p.bare = true;
    const char* gold = first_field(row, {"answer", "solution"});
    if (!gold && how.gold_needed) refuse_without_gold(row, "`answer` or `solution`", "question");
    if (!gold) return {};
    return gold_field(row, gold, strcmp(gold, "solution") == 0 ? GoldIn::solution : GoldIn::either);
}

// MATH, MATH-500, AIME, NuminaMath: {"problem" | "Problem", "answer" | "Answer" | "solution": "... \boxed{72}"}
inline Gold read_problem(const DatasetRow& row, const ProblemReading& how, Problem& p) {
    const char* name = first_field(row, {"problem", "Problem"});
    p.question = text_field(row, name);
    p.bare = true;
    const char* gold = first_field(row, {"answer", "Answer", "solution", "Solution"});
    if (!gold && how.gold_needed) refuse_without_gold(row, "`answer` or `solution`", name);
    if (!gold) return {};
    return gold_field(row, gold, strcmp(gold + 1, "olution") == 0 ? GoldIn::solution : GoldIn::answer);
}

// ---------------------------------------------------------------------------------------------------------------------
// the table

struct ProblemKind {
    const char* name;                 // for notes
    std::vector<const char*> fields;  // that a row of this kind has; a|b: one of the two
    Gold (*read)(const DatasetRow& row, const ProblemReading& how, Problem& p);
};

// The first that fits counts, so that those with names of their own come first.
inline const std::vector<ProblemKind>& problem_kinds() {
    static const std::vector<ProblemKind> kinds = {
        {"GPQA's `Correct Answer`", {"Question", "Correct Answer"}, read_gpqa},
        {"`question` and `choices`", {"question", "choices|options"}, read_choices},
        {"verl's `reward_model`", {"prompt", "reward_model"}, read_verl},
        {"SVAMP's `Body`", {"Body", "Question"}, read_svamp},
        {"GSM-hard's `input` and `target`", {"input", "target"}, read_gsm_hard},
        {"OlympiadBench's `final_answer`", {"question", "final_answer"}, read_olympiadbench},
        {"`problem`", {"question", "problem|Problem"}, read_problem},  // AIME's and AMC's files hold it twice
        {"`question`", {"question"}, read_question},
        {"`prompt`", {"prompt"}, read_trl},
        {"`problem`", {"problem|Problem"}, read_problem},
    };
    return kinds;
}

inline bool has_field(const DatasetRow& row, const std::string& names) {
    const size_t bar = names.find('|');
    if (bar == std::string::npos) return first_field(row, {names.c_str()});
    return first_field(row, {names.substr(0, bar).c_str(), names.substr(bar + 1).c_str()});
}

inline const ProblemKind& problem_kind(const DatasetRow& row) {
    for (const ProblemKind& kind : problem_kinds()) {
        bool fits = true;
        for (const char* name : kind.fields) fits = fits && has_field(row, name);
        if (fits) return kind;
    }
    fail("%s: no `question`, `prompt` or `problem`; the row has: %s", row.where.c_str(), row_fields(row).c_str());
}

struct ParsedProblem {
    Problem problem;    // without its place
    std::string fault;  // why its answer cannot be used; empty: it can
    GoldRead gold_read = GoldRead::as_answer;
};

inline ParsedProblem parse_problem(const DatasetRow& row, const ProblemReading& how) {
    ParsedProblem out;
    Problem& p = out.problem;
    Gold gold = problem_kind(row).read(row, how, p);
    if (!gold.text.empty() && how.gold_read) out.gold_read = how.gold_read(gold.text);
    if (out.gold_read < how.gold_read_needed)
        gold = {"", format("the gold answer %s cannot be read as an answer", shown(gold.text).c_str())};
    out.fault = gold.fault;
    p.gold = gold.text;
    read_labels(row, p);
    if (!how.given.empty()) p.given = given_text(row, how.given);
    if (!how.pass_rate.empty()) p.pass_rate = pass_rate_field(row, how.pass_rate);
    return out;
}
