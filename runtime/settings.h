// Names with settings in one text, as --methods has them:
//   TEXT   NAME[:SETTING=VALUE ...] [+ NAME ...]          cage:lambda=10:silence=0.8+freeze
// A table says which names there are and what each may be given; the values are words or numbers, as those of options.
#pragma once
#include <cstdlib>
#include <map>
#include <string>
#include <vector>
#include "options.h"

struct SettingRow {
    const char *name, *value;  // value: unless given
    const char* allowed;       // as an option's: "[0, 1]", "(0, 100]", "a|b|c"; "whole [1, 10]" takes no fraction
    const char* help;
};

// A name with all its settings, given or not
struct Settings {
    std::string name;
    std::map<std::string, std::string> values;
    const std::string& word(const char* setting) const {
        const auto at = values.find(setting);
        if (at == values.end()) fail("%s has no setting %s", name.c_str(), setting);
        return at->second;
    }
    double number(const char* setting) const { return strtod(word(setting).c_str(), nullptr); }
    int64_t whole(const char* setting) const { return (int64_t)number(setting); }
    bool is(const char* setting, const char* value) const { return word(setting) == value; }
};

inline bool setting_is_whole(const SettingRow& r) { return std::string(r.allowed).rfind("whole ", 0) == 0; }

// fails unless `value` is what the row allows; where: "--methods cage: lambda"
inline void setting_check(const SettingRow& r, const std::string& value, const std::string& where) {
    const char* allowed = r.allowed + (setting_is_whole(r) ? 6 : 0);
    if (!is_interval(allowed)) {
        const std::vector<std::string> words = allowed_words(allowed);
        if (std::find(words.begin(), words.end(), value) == words.end())
            fail_usage("%s=%s: not one of %s%s", where.c_str(), printable(value).c_str(), join_words(words).c_str(),
                       did_you_mean(value, words).c_str());
        return;
    }
    double number = 0.0;
    if (!parse_whole(value, &number) || !interval_has(parse_interval(allowed), number) ||
        (setting_is_whole(r) && number != std::floor(number)))
        fail_usage("%s=%s: not a%s number in %s", where.c_str(), printable(value).c_str(),
                   setting_is_whole(r) ? " whole" : "", allowed);
}

// One name of the text, "cage:lambda=10". rows: of that name
inline Settings settings_of(const std::string& text, const std::vector<SettingRow>& rows, const char* flag) {
    const std::vector<std::string> parts = split_words(text, ":");
    Settings s;
    s.name = parts[0];
    std::vector<std::string> names;
    for (const SettingRow& r : rows) s.values[r.name] = r.value, names.push_back(r.name);
    std::map<std::string, bool> given;
    for (size_t i = 1; i < parts.size(); i++) {
        const size_t equals = parts[i].find('=');
        const std::string name = parts[i].substr(0, equals);
        const std::string where = format("--%s %s: %s", flag, s.name.c_str(), printable(name).c_str());
        const SettingRow* row = nullptr;
        for (const SettingRow& r : rows)
            if (name == r.name) row = &r;
        if (!row && rows.empty()) fail_usage("%s: it has no settings", where.c_str());
        if (!row)
            fail_usage("%s: not one of its settings, %s%s", where.c_str(), join_words(names).c_str(),
                       did_you_mean(name, names).c_str());
        if (equals == std::string::npos) fail_usage("%s needs a value: %s=%s", where.c_str(), row->name, row->value);
        if (given[name]) fail_usage("%s is given twice", where.c_str());
        given[name] = true;
        s.values[name] = parts[i].substr(equals + 1);
        setting_check(*row, s.values[name], where);
    }
    return s;
}

// "lambda=10 in [0, 1000000], how hard; silence=0.8 in [0, 1], ..." for help
inline std::string settings_help(const std::vector<SettingRow>& rows) {
    std::string text;
    for (const SettingRow& r : rows)
        text += format("      %s=%s  %s; %s\n", r.name, r.value, r.allowed, r.help);
    return text;
}
