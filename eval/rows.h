// The rows of an evaluation's completions.jsonl, one a completion: what `compare` reads, and what an evaluation that was
// stopped goes on from.
//
// The trap: problems are told apart by their own key (id, else a hash of question and gold) and not by their place in a
// file, or two evaluations of different parts of a set would be compared problem by problem with one another.
#pragma once
#include <map>
#include <set>
#include <string>
#include <vector>
#include "evaluate.cuh"

// Of each problem: its id, else # and a hash of its question and gold answer; the second with the same gets "~2"
inline std::vector<std::string> problem_keys(const std::vector<Prompt>& prompts) {
    std::vector<std::string> keys;
    std::map<std::string, int> seen;
    for (const Prompt& p : prompts) {
        const std::string question = p.problem ? p.problem->question : p.text;
        const std::string hash = format("#%016llx", (unsigned long long)text_hash(question + "\n" + p.gold));
        const std::string key = p.problem && !p.problem->id.empty() ? p.problem->id : hash;
        const int n = ++seen[key];
        keys.push_back(n > 1 ? format("%s~%d", key.c_str(), n) : key);
    }
    return keys;
}

// names: of the rewards
inline nlohmann::ordered_json eval_row(const std::string& set, const std::string& key, const Prompt& p,
                                       const EvalSample& s, const std::vector<std::string>& names) {
    nlohmann::ordered_json j;
    j["set"] = set;
    j["problem"] = key;
    j["decoding"] = s.greedy ? "greedy" : "sampled";
    j["sample"] = s.sample;
    j["prompt"] = p.text;
    j["completion"] = s.text;
    j["declared"] = s.declared;
    j["answer"] = s.answer;
    j["gold"] = p.gold;
    j["strict"] = s.strict;
    j["lenient"] = s.lenient;
    j["finished"] = s.finished;
    j["garbled"] = s.garbled;
    j["repeating"] = s.repeating;
    j["length"] = s.length;
    j["vote"] = s.vote;
    if (p.problem && !p.problem->subject.empty()) j["subject"] = p.problem->subject;
    if (p.problem && !p.problem->level.empty()) j["level"] = p.problem->level;
    if (names.empty()) return j;
    auto paid = [](float r) { return std::isnan(r) ? nlohmann::ordered_json() : nlohmann::ordered_json(r); };
    j["reward"] = paid(s.reward);
    for (size_t f = 0; f < names.size(); f++) j["rewards"][names[f]] = paid(s.rewards[f]);
    return j;
}

// back from its row, but for the number of the problem; where: "file:line"
inline EvalSample eval_sample_of(const nlohmann::ordered_json& j, const std::vector<std::string>& names,
                                 const std::string& where) {
    EvalSample s;
    try {
        s.greedy = j.at("decoding") == "greedy";
        s.sample = j.at("sample");
        s.text = j.at("completion");
        s.declared = j.at("declared");
        s.answer = j.at("answer");
        s.format = answer_format(s.text);
        s.strict = j.at("strict"), s.lenient = j.at("lenient"), s.finished = j.at("finished");
        s.garbled = j.at("garbled"), s.repeating = j.at("repeating");
        s.length = j.at("length");
        s.vote = j.at("vote");
        auto paid = [](const nlohmann::ordered_json& r) { return r.is_null() ? NAN : r.get<float>(); };
        if (!names.empty()) s.reward = paid(j.at("reward"));
        for (const std::string& name : names) s.rewards.push_back(paid(j.at("rewards").at(name)));
    } catch (const nlohmann::json::exception&) {
        fail("%s: not a row of this evaluation; give another --output_dir", where.c_str());
    }
    return s;
}

// What an earlier part of an evaluation of one set has: the samples of its complete problems
struct EvalEarlier {
    EvalAnswers answers;
    std::vector<char> have[2];  // of each problem, by decoding (0 sampled, 1 greedy)
};

// rows: (where, row) of this set. Completions that are not all there are left out.
inline EvalEarlier earlier_answers(const std::vector<std::pair<std::string, nlohmann::ordered_json>>& rows,
                                   const std::vector<Prompt>& prompts, const std::vector<std::string>& keys,
                                   int samples, const std::vector<std::string>& names) {
    EvalEarlier e;
    std::map<std::string, int> number;
    for (size_t i = 0; i < keys.size(); i++) number[keys[i]] = (int)i;
    std::map<std::pair<int, bool>, std::map<int, EvalSample>> found;
    for (const auto& [where, row] : rows) {
        const auto at =
            row.contains("problem") && row["problem"].is_string() ? number.find(row["problem"]) : number.end();
        if (at == number.end() || row.value("prompt", "") != prompts[at->second].text ||
            row.value("gold", "") != prompts[at->second].gold)
            fail("%s: the completion is of a problem that this evaluation does not ask; give another --output_dir",
                 where.c_str());
        EvalSample s = eval_sample_of(row, names, where);
        s.problem = at->second;
        found[{s.problem, s.greedy}][s.sample] = s;
    }
    for (bool greedy : {false, true}) e.have[greedy].assign(prompts.size(), 0);
    for (auto& [of, those] : found) {
        if ((int)those.size() != (of.second ? 1 : samples)) continue;
        e.have[of.second][of.first] = 1;
        for (auto& [sample, s] : those) (of.second ? e.answers.greedy : e.answers.sampled).push_back(std::move(s));
    }
    return e;
}
