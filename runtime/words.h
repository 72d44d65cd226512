// Lists of words in one text, such as --quantize_layers q,k,v.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

// "a, b" -> a, b. White space around a word is dropped; an empty text is one empty word.
inline std::vector<std::string> split_words(const std::string& text, const char* separators = ",") {
    static constexpr const char* blanks = " \t\n\v\f\r";
    std::vector<std::string> words;
    for (size_t at = 0; at <= text.size();) {
        size_t end = text.find_first_of(separators, at);
        if (end == std::string::npos) end = text.size();
        const std::string word = text.substr(at, end - at);
        size_t a = word.find_first_not_of(blanks);
        words.push_back(a == std::string::npos ? "" : word.substr(a, word.find_last_not_of(blanks) - a + 1));
        at = end + 1;
    }
    return words;
}

inline std::string join_words(const std::vector<std::string>& words, const char* between = ", ") {
    std::string s;
    for (size_t i = 0; i < words.size(); i++) s += (i ? between : "") + words[i];
    return s;
}

// "all" holds everything
inline bool list_has(const std::string& list, const std::string& item) {
    for (const std::string& word : split_words(list))
        if (word == item || word == "all") return true;
    return false;
}

inline uint64_t text_hash(const std::string& text) {  // FNV-1a
    uint64_t h = 14695981039346656037ull;
    for (const unsigned char c : text) h = (h ^ c) * 1099511628211ull;
    return h;
}
