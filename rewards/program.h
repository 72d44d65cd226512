// A reward that is a program of the user's, in any language: JSON lines in, JSON lines out.
//
//   asked     {"prompt": "12+30=?\n", "completion": "2+0=2\n...", "gold": "42", "finished": true, "tokens": 14,
//              "max_tokens": 56, "row": {...}}        row: the fields of the problem's row, null where it comes from no file
//   answers   0.5    or null: the reward does not apply (TRL's None)    or {"reward": 0.5}; true and false are 1 and 0
// batch=N: up to N such objects in an array on one line, and an array of as many numbers back.
//
// After a crash or a hang the program is started anew and asked the same once more, `restarts` times in a run. What fails
// twice, and an answer that is no number, ends the run or pays 0 (on_error).
// The trap: Infinity and NaN are no JSON, but Python prints them; they are refused as any other text is.
#pragma once
#include "../runtime/settings.h"
#include "process.h"
#include "reward_input.h"

inline const std::vector<SettingRow>& program_settings() {
    static const std::vector<SettingRow> rows = {
        {"timeout", "30", "(0, 86400]", "seconds for an answer, of a batch where there are batches"},
        {"batch", "1", "whole [1, 4096]", "completions of one line; above 1 lines are arrays"},
        {"memory", "0", "whole [0, 16777216]", "MiB of address space that it may take; 0: no limit"},
        {"restarts", "10", "whole [0, 1000000]", "how often it is started anew in a run, after a crash or a hang"},
        {"on_error", "stop", "stop|zero", "a completion that it fails on ends the run, or is paid 0"},
        {"outcome", "false", "false|true", "above 0.5 is right, which --dynamic_sampling goes by"}};
    return rows;
}

inline nlohmann::ordered_json program_request(const RewardInput& in) {
    nlohmann::ordered_json j;
    j["prompt"] = in.prompt;
    j["completion"] = in.completion;
    j["gold"] = in.gold;
    j["finished"] = in.finished;
    j["tokens"] = in.tokens.size();
    j["max_tokens"] = in.max_completion_length;
    j["row"] = in.row ? *in.row : nlohmann::ordered_json();
    return j;
}

// false: it is no number, null or {"reward": either}
inline bool program_number(const nlohmann::json& answer, float* reward) {
    const nlohmann::json& v = answer.is_object() && answer.contains("reward") ? answer["reward"] : answer;
    *reward = v.is_null() ? REWARD_NONE : 0.0f;
    if (v.is_boolean()) *reward = v.get<bool>();
    if (v.is_number()) *reward = (float)v.get<double>();
    return v.is_null() || v.is_boolean() || (v.is_number() && std::fabs(v.get<double>()) <= REWARD_MOST);
}

// The numbers of an answer's line; "": good, else what is wrong with it
inline std::string program_answer(const std::string& line, bool batches, const RewardItem* items, size_t n) {
    nlohmann::json v;
    JsonFault fault;
    const std::string printed = "it printed " + shown(line);
    const std::string one = "a number in [-1e9, 1e9], null or {\"reward\": either}";
    const bool read = json_read(line, {4, line.size()}, &v, &fault);
    if (!batches) return read && program_number(v, items[0].reward) ? "" : printed + ", which is not " + one;
    if (!read || !v.is_array()) return printed + ", which is not an array of numbers";
    if (v.size() != n) return format("it gave %zu answers to %zu completions", v.size(), n);
    for (size_t i = 0; i < n; i++)
        if (!program_number(v[i], items[i].reward))
            return format("answer %zu of its batch is %s, which is not ", i + 1,
                          shown(v[i].dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)).c_str()) +
                   one;
    return "";
}

struct ProgramReward : OwnReward {
    ChildProcess process;
    size_t batch = 1;
    int64_t restarts = 0, restarted = 0;

    ProgramReward(const std::string& name_, const Settings& s) {
        name = process.name = name_, path = process.path = s.name;
        batch = (size_t)s.whole("batch"), restarts = s.whole("restarts"), zero = s.is("on_error", "zero");
        process.limits.timeout = s.number("timeout");
        process.limits.memory = (uint64_t)s.whole("memory") << 20;
        process.limits.answer += 64 * batch;
    }
    void start() override {
        if (process.pid < 0) process_start(process);
    }
    void check() override {
        siginfo_t info;
        start();
        if (process_has_ended(process, &info))
            fail("--reward_funcs %s: before it was asked anything %s; mend it, or try it in a shell", path.c_str(),
                 process_end_text(process).c_str());
    }
    bool compute(const std::vector<RewardItem>& items) override {
        start();
        failed = 0;
        for (size_t i = 0; i < items.size(); i += batch)
            if (!pay(items.data() + i, std::min(batch, items.size() - i))) return false;
        return true;
    }

    // one request
    bool pay(const RewardItem* items, size_t n) {
        nlohmann::ordered_json j = nlohmann::ordered_json::array();
        for (size_t i = 0; i < n; i++) j.push_back(program_request(*items[i].in));
        const std::string request =
            (batch > 1 ? j : j[0]).dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
        for (bool again = false;; again = true) {
            const ProcessReply reply = process_ask(process, request);
            if (reply.kind == ProcessReply::stopped) return false;
            std::string why = reply.text;
            if (reply.kind == ProcessReply::line) {
                why = program_answer(reply.text, batch > 1, items, n);
                if (!why.empty()) give_up(items, n, why);
                return true;
            }
            process_end(process, false);
            const bool last = again || reply.kind == ProcessReply::rubbish;
            if (again) why += ", twice";
            if (!last || zero) start_anew(items, n, why);
            if (!last) continue;
            give_up(items, n, why);
            return true;
        }
    }

    void start_anew(const RewardItem* items, size_t n, const std::string& why) {
        const std::string line = where(items, n) + ": " + why;
        if (restarted == restarts)
            fail("%s; it has been started anew %lld times, and restarts= allows no more", line.c_str(),
                 (long long)restarted);
        restarted++;
        static constexpr int64_t notes = 10;
        if (restarted <= notes)
            fprintf(stderr, "note: %s; started anew, %lld of %lld times%s\n", escape_controls(line).c_str(),
                    (long long)restarted, (long long)restarts, restarted == notes ? " (more are not told)" : "");
        process_start(process);
    }
};
