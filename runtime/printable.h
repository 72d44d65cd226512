// Text of others (files, data, a model) in what a person reads. The trap: a terminal obeys control characters, so that
// a completion or a file's name could move the cursor, rename the window or, with a bidirectional override, show another
// order than the bytes have.
#pragma once
#include <string>
#include <string_view>
#include "error.h"
#include "unicode.h"

// not for a terminal: C0, DEL, C1, line and paragraph separators, and what changes the direction of text (UAX #9)
inline bool is_control(int c) {
    return c < 0x20 || (c >= 0x7F && c <= 0x9F) || c == 0x061C || c == 0x200E || c == 0x200F ||
           (c >= 0x2028 && c <= 0x202E) || (c >= 0x2066 && c <= 0x2069);
}

// Controls and bytes that are not UTF-8 as \n, \t, \x1B, \u202E, \xFF; the characters in `kept` as they are.
inline std::string escape_controls(std::string_view text, std::string_view kept = "") {
    std::string out;
    for (size_t i = 0; i < text.size();) {
        int length, c = utf8_step(text.data(), i, text.size(), &length);
        if (c < 0) {
            for (int k = 0; k < length; k++) out += format("\\x%02X", (unsigned char)text[i + (size_t)k]);
        } else if (!is_control(c) || (c < 0x80 && kept.find((char)c) != std::string_view::npos)) {
            out.append(text.data() + i, (size_t)length);
        } else if (c == '\n' || c == '\t') {
            out += c == '\n' ? "\\n" : "\\t";
        } else {
            out += format(c < 0x100 ? "\\x%02X" : "\\u%04X", (unsigned)c);
        }
        i += (size_t)length;
    }
    return out;
}

// for a message of one line: escaped, and cut at `most` bytes of the text, between characters
inline std::string printable(std::string_view text, size_t most = 80) {
    if (text.size() <= most) return escape_controls(text);
    while (most > 0 && ((unsigned char)text[most] & 0xC0) == 0x80) most--;
    return escape_controls(text.substr(0, most)) + "...";
}

// the same in quotes
inline std::string shown(std::string_view text) { return "'" + printable(text) + "'"; }
