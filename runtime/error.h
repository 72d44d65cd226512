// Errors: one line that says what was wrong, where, and what to do. The functions here throw; main() prints the line
// and exits. 2 is for bad use (the command line), 1 for a run that failed (files, data, memory).
#pragma once
#include <cstdarg>
#include <cstdio>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

// control characters as \xNN: a message stays one line, and harmless on a terminal, whatever text it quotes
inline std::string one_line(const std::string& message) {
    std::string s;
    for (const char c : message) {
        const unsigned char byte = (unsigned char)c;
        const char* hex = "0123456789ABCDEF";
        if (byte < 0x20 || byte == 0x7F) s += {'\\', 'x', hex[byte >> 4], hex[byte & 15]};
        else s += c;
    }
    return s;
}

struct Error : std::runtime_error {
    int exit_code;
    Error(int code, const std::string& message) : std::runtime_error(one_line(message)), exit_code(code) {}
};

inline std::string vformat(const char* fmt, va_list args) {
    va_list again;
    va_copy(again, args);
    int n = vsnprintf(nullptr, 0, fmt, args);
    std::string s(n > 0 ? n : 0, '\0');
    if (n > 0) vsnprintf(&s[0], (size_t)n + 1, fmt, again);
    va_end(again);
    return s;
}

// printf into a std::string
__attribute__((format(printf, 1, 2))) inline std::string format(const char* fmt, ...) {
    va_list args;
    va_start(args, fmt);
    std::string s = vformat(fmt, args);
    va_end(args);
    return s;
}

// What the user should know although the run goes on: a line on stderr, the first time it is said
inline void note_once(const std::string& line) {
    static std::set<std::string> notes;
    if (notes.insert(line).second) fprintf(stderr, "%s\n", line.c_str());
}

// the run cannot go on: exit 1
[[noreturn]] __attribute__((format(printf, 1, 2))) inline void fail(const char* fmt, ...) {
    va_list args;
    va_start(args, fmt);
    std::string s = vformat(fmt, args);
    va_end(args);
    throw Error(1, s);
}

// the command line is wrong: exit 2
[[noreturn]] __attribute__((format(printf, 1, 2))) inline void fail_usage(const char* fmt, ...) {
    va_list args;
    va_start(args, fmt);
    std::string s = vformat(fmt, args);
    va_end(args);
    throw Error(2, s);
}
