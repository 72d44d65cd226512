// Texts that end a completion, as transformers' stop_strings: it ends with the token by which its text first contains one
// of them, and all of it stays.
//
// Tokens are handed in as bytes. What of the text before is kept is shorter than the longest of the strings, so that a
// token costs the same however long the completion is.
#pragma once
#include <algorithm>
#include <cstring>
#include <functional>
#include <string>
#include <string_view>
#include <vector>
#include "error.h"
#include "printable.h"

struct StopStrings {
    std::vector<std::string> strings;  // none of them empty
    std::function<std::string_view(int)> token_bytes;
};

// Does the text end with this token? tail: the end of the text before, empty at its beginning
inline bool stop_strings_take(const StopStrings& s, std::string& tail, int token) {
    if (s.strings.empty()) return false;
    tail.append(s.token_bytes(token));
    size_t longest = 1;
    for (const std::string& stop : s.strings) {
        if (tail.find(stop) != std::string::npos) return true;
        longest = std::max(longest, stop.size());
    }
    tail.erase(0, tail.size() - std::min(tail.size(), longest - 1));
    return false;
}

// "Question:,\n\n" -> the two strings. White space counts; \n \t \r \, \\ are a line's end, a tab, a carriage return, a
// comma and a backslash. An empty text is none.
inline std::vector<std::string> stop_strings_parse(const std::string& text) {
    std::vector<std::string> strings;
    if (text.empty()) return strings;
    auto refuse = [&](const std::string& why) {
        fail_usage("--stop_strings %s: %s", printable(text).c_str(), why.c_str());
    };
    strings.emplace_back();
    for (size_t i = 0; i < text.size(); i++) {
        if (text[i] == ',') {
            strings.emplace_back();
        } else if (text[i] != '\\') {
            strings.back() += text[i];
        } else {
            static constexpr const char written[] = "ntr,\\", meant[] = "\n\t\r,\\";
            const char* at = i + 1 < text.size() ? strchr(written, text[i + 1]) : nullptr;
            if (!at || !*at) refuse("a backslash stands before n, t, r, a comma or another backslash");
            strings.back() += meant[at - written];
            i++;
        }
    }
    for (const std::string& s : strings)
        if (s.empty()) refuse("a string is empty; \\, is a comma");
    return strings;
}
