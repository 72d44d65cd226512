// grade: JSON lines in, JSON lines out. Is this answer right, and would the rewards pay for it?
#pragma once
#include "../rewards/rewards.h"
#include "text.cuh"

inline const char* rule_name(AnswerRule rule) {
    switch (rule) {
        case AnswerRule::boxed:
            return "boxed";
        case AnswerRule::hash:
            return "hash";
        case AnswerRule::phrase:
            return "phrase";
        case AnswerRule::math:
            return "math";
        case AnswerRule::number:
            return "number";
        case AnswerRule::none:
            break;
    }
    return "none";
}

inline const char* verdict_name(Verdict v) {
    return v == Verdict::correct ? "correct" : v == Verdict::wrong ? "wrong" : "unparsable";
}

// an answer: text, or a number as it was written
inline std::string answer_field(const nlohmann::ordered_json& row, const char* name, const std::string& where) {
    const nlohmann::ordered_json& field = row[name];
    if (field.is_number()) return field.dump();
    if (!field.is_string()) fail("%s: %s is neither a string nor a number", where.c_str(), name);
    return field.get<std::string>();
}

struct GradeCounts {
    int64_t rows = 0, of[3] = {0, 0, 0};  // by Verdict
    int64_t completions = 0, strict = 0, lenient = 0, disagree = 0;
};

// the fields that a completion adds: strict is what --reward_funcs exact pays for, lenient what accuracy does
inline Verdict grade_completion(nlohmann::ordered_json& row, const std::string& gold, const std::string& where,
                                GradeCounts& counts) {
    if (!row["completion"].is_string()) fail("%s: completion is not a string", where.c_str());
    const std::string completion = row["completion"].get<std::string>(), prompt;
    const bool said = row.contains("finished");
    if (said && !row["finished"].is_boolean()) fail("%s: finished is neither true nor false", where.c_str());
    const std::vector<int> tokens;
    const RewardInput in = {prompt, completion, gold, !said || row["finished"].get<bool>(), tokens, 0};
    const bool strict = reward_exact(in) > 0.5f, lenient = reward_accuracy(in) > 0.5f;
    const std::string answer = found_answer(in);
    const AnswerRule rule = extract_answer(completion).rule;
    row["strict"] = strict;
    row["lenient"] = lenient;
    row["answer"] = answer;
    row["rule"] = rule == AnswerRule::none && !answer.empty() ? "choice" : rule_name(rule);
    counts.completions++;
    counts.strict += strict;
    counts.lenient += lenient;
    counts.disagree += strict != lenient;
    return lenient ? Verdict::correct : grade(gold, "") == Verdict::unparsable ? Verdict::unparsable : Verdict::wrong;
}

// {"gold", "prediction"} -> the row and "verdict"; {"gold", "completion", "finished" (true)} -> the row and "verdict",
// "strict", "lenient", "answer", "rule". Counts go to standard error.
inline int grade_command(Session& s) {
    GradeCounts counts;
    for_each_input(s.o, [&](const nlohmann::ordered_json& j, const std::string& where) {
        nlohmann::ordered_json row = j;
        if (!row.contains("gold")) fail("%s: the field gold is missing", where.c_str());
        if (row.contains("prediction") == row.contains("completion"))
            fail("%s: a row has either the field prediction (an answer) or completion (a text)", where.c_str());
        const std::string gold = answer_field(row, "gold", where);
        const Verdict verdict = row.contains("prediction") ? grade(gold, answer_field(row, "prediction", where))
                                                           : grade_completion(row, gold, where, counts);
        row["verdict"] = verdict_name(verdict);
        counts.rows++;
        counts.of[(int)verdict]++;
        print_result(json_line(row));
        fflush(stdout);
    });
    std::string line =
        format("graded %lld: %lld correct, %lld wrong, %lld whose gold cannot be read", (long long)counts.rows,
               (long long)counts.of[(int)Verdict::correct], (long long)counts.of[(int)Verdict::wrong],
               (long long)counts.of[(int)Verdict::unparsable]);
    if (counts.completions > 0)
        line +=
            format("; of %lld completions %lld right by strict rules, %lld by lenient ones, %lld where they disagree",
                   (long long)counts.completions, (long long)counts.strict, (long long)counts.lenient,
                   (long long)counts.disagree);
    fprintf(stderr, "%s\n", line.c_str());
    return 0;
}
