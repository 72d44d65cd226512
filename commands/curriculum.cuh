// --curriculum: pass rates of the training problems, from a field of their rows or from an evaluation of them.
#pragma once
#include "../data/curriculum.h"
#include "../data/known_sets.h"
#include "../eval/rows.h"

// the file of an evaluation's folder that has its completions; empty: the source is a field
inline std::string curriculum_file(const Curriculum& c) {
    if (!c.on() || !is_folder(c.source)) return "";
    const std::string path = c.source + "/completions.jsonl";
    if (!file_exists(path))
        fail("--curriculum %s: the folder has no completions.jsonl; it is to be an evaluation of the training problems",
             c.source.c_str());
    return path;
}

// by problem: the share of its sampled completions that are right. set: the name that the evaluation gave the training
// file, which decides where it has several sets
inline std::map<std::string, double> evaluated_pass_rates(const std::string& path, const std::string& set) {
    std::map<std::string, std::map<std::string, std::pair<int, int>>> sets;  // right and all
    for_each_row(path, [&](const DatasetRow& row, int) {
        const nlohmann::ordered_json& j = row.object;
        for (const char* key : {"set", "problem", "decoding"})
            if (!j.contains(key) || !j[key].is_string())
                fail("%s: no text `%s`, so it is not a row of an evaluation", row.where.c_str(), key);
        if (!j.contains("strict") || !j["strict"].is_boolean())
            fail("%s: no `strict`, so it is not a row of an evaluation", row.where.c_str());
        if (j["decoding"] != "sampled") return;
        auto& [right, all] = sets[j["set"]][j["problem"]];
        right += j["strict"].get<bool>(), all++;
    });
    if (sets.empty()) fail("%s has no sampled completions; evaluate with --eval_samples 4 or more", path.c_str());
    if (sets.size() > 1 && !sets.count(set))
        fail("%s has %zu sets, and none of them is called %s, as the training problems are", path.c_str(), sets.size(),
             set.c_str());
    std::map<std::string, double> rates;
    for (const auto& [problem, count] : sets.size() == 1 ? sets.begin()->second : sets[set])
        rates[problem] = (double)count.first / count.second;
    return rates;
}

// The problems that were evaluated, with their pass rates; the others are left out, which is said
inline void take_pass_rates(std::vector<Problem>& problems, const std::map<std::string, double>& rates,
                            const std::string& path, const std::string& evaluation) {
    std::vector<Prompt> named;
    for (const Problem& p : problems) {
        named.emplace_back();
        named.back().gold = p.gold;
        named.back().problem = std::make_shared<const Problem>(p);
    }
    const std::vector<std::string> keys = problem_keys(named);
    std::vector<Problem> kept;
    for (size_t i = 0; i < problems.size(); i++) {
        const auto at = rates.find(keys[i]);
        if (at == rates.end()) continue;
        problems[i].pass_rate = at->second;
        kept.push_back(std::move(problems[i]));
    }
    if (kept.empty())
        fail("%s: none of the %zu problems is in %s; evaluate this file: train_qrl eval --eval_data %s", path.c_str(),
             problems.size(), evaluation.c_str(), path.c_str());
    if (kept.size() < problems.size())
        note_once(format("note: %s: %zu of %zu problems are not in %s and are left out", escape_controls(path).c_str(),
                         problems.size() - kept.size(), problems.size(), escape_controls(evaluation).c_str()));
    problems = std::move(kept);
}
