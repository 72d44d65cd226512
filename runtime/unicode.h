// Unicode for the tokenizer: UTF-8 steps and repair, a class table per code point, and normalization form C.
//
// Sources: Unicode 3.9 table 3-7 (well-formed UTF-8), UAX #15 (NFC), UAX #44 (general category, White_Space). The data
// are utf8proc's; nothing here depends on the locale.
//
// The trap: classes and compositions belong to a Unicode version (utf8proc 2.8: 14). Newer characters have no class.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>
#include <utf8proc.h>

// ---- UTF-8 --------------------------------------------------------------------------------------------------

// One step at s[i], i < n. Returns the code point and its length; or -1 and the length of the maximal invalid part,
// which becomes one U+FFFD (Rust's and Python's rule too); or -2 if s ends inside a character that is valid so far.
inline int utf8_step(const char* s, size_t i, size_t n, int* len) {
    auto byte = [&](size_t k) { return (unsigned char)s[k]; };
    int c = byte(i), need = 0, low = 0x80, high = 0xBF;
    *len = 1;
    if (c < 0x80) return c;
    if (c >= 0xC2 && c <= 0xDF) {
        need = 1, c &= 0x1F;
    } else if (c >= 0xE0 && c <= 0xEF) {
        if (c == 0xE0) low = 0xA0;
        if (c == 0xED) high = 0x9F;  // no surrogates
        need = 2, c &= 0x0F;
    } else if (c >= 0xF0 && c <= 0xF4) {
        if (c == 0xF0) low = 0x90;
        if (c == 0xF4) high = 0x8F;  // nothing above U+10FFFF
        need = 3, c &= 0x07;
    } else {
        return -1;
    }
    for (int k = 1; k <= need; k++) {
        if (i + k >= n) return -2;
        if (byte(i + k) < low || byte(i + k) > high) return -1;
        c = c << 6 | (byte(i + k) & 0x3F);
        low = 0x80, high = 0xBF;
        *len = k + 1;
    }
    return c;
}

inline void utf8_append(std::string& out, int c) {
    utf8proc_uint8_t buf[4];
    out.append((const char*)buf, (size_t)utf8proc_encode_char(c, buf));
}

// bytes -> valid UTF-8, U+FFFD for what is not (Python's errors="replace")
inline std::string utf8_lossy(std::string_view s) {
    std::string out;
    out.reserve(s.size());
    for (size_t i = 0; i < s.size();) {
        int len, c = utf8_step(s.data(), i, s.size(), &len);
        if (c >= 0) {
            out.append(s.data() + i, (size_t)len);
        } else {
            out += "\xEF\xBF\xBD";
        }
        if (c == -2) break;
        i += (size_t)len;
    }
    return out;
}

inline size_t utf8_ascii_run(std::string_view s, size_t i) {  // first byte >= 0x80 at or after i, or the end
    for (uint64_t w; i + 8 <= s.size(); i += 8) {
        memcpy(&w, s.data() + i, 8);
        if (w & 0x8080808080808080ull) break;
    }
    while (i < s.size() && (unsigned char)s[i] < 0x80) i++;
    return i;
}

inline bool utf8_is_valid(std::string_view s) {
    int len;
    for (size_t i = utf8_ascii_run(s, 0); i < s.size(); i = utf8_ascii_run(s, i + (size_t)len)) {
        if (utf8_step(s.data(), i, s.size(), &len) < 0) return false;
    }
    return true;
}

// For text that arrives token by token: what is complete comes out at once, an unfinished character waits for its other
// bytes. All outputs joined, flush included, equal utf8_lossy of all inputs joined.
struct Utf8Streamer {
    std::string pending;  // at most 3 bytes
};

inline std::string utf8_stream_push(Utf8Streamer& streamer, std::string_view bytes) {
    std::string all = std::move(streamer.pending);
    all.append(bytes);
    streamer.pending.clear();
    size_t cut = all.size();
    for (size_t i = 0; i < all.size();) {
        int len, c = utf8_step(all.data(), i, all.size(), &len);
        if (c == -2) {
            cut = i;
            break;
        }
        i += (size_t)len;
    }
    streamer.pending = all.substr(cut);
    return utf8_lossy(std::string_view(all).substr(0, cut));
}

inline std::string utf8_stream_flush(Utf8Streamer& streamer) {
    std::string out = utf8_lossy(streamer.pending);
    streamer.pending.clear();
    return out;
}

// ---- Unicode classes and NFC --------------------------------------------------------------------------------

enum : uint8_t {
    kLetter = 1,  // \p{L}
    kNumber = 2,  // \p{N}
    kSpace = 4,   // \s: White_Space
    kWord = 8,    // \w as Rust's regex has it, for added tokens with single_word
    kNfc = 16     // a text with this character may differ from its NFC
};

// [0x110000] classes of every code point; 1.1 MB, built at the first call (about 30 ms)
inline const uint8_t* unicode_classes() {
    static const std::vector<uint8_t> table = [] {
        std::vector<uint8_t> t(0x110000, 0);
        for (int c = 0; c < 0x110000; c++) {
            int category = utf8proc_category(c);
            if (category == UTF8PROC_CATEGORY_CN || category == UTF8PROC_CATEGORY_CS) continue;
            bool letter = category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
            bool mark = category >= UTF8PROC_CATEGORY_MN && category <= UTF8PROC_CATEGORY_ME;
            bool number = category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO;
            if (letter) t[c] |= kLetter;
            if (number) t[c] |= kNumber;
            if (letter || mark || (number && category != UTF8PROC_CATEGORY_NO) || category == UTF8PROC_CATEGORY_PC ||
                c == 0x200C || c == 0x200D || (c >= 0x24B6 && c <= 0x24E9))
                t[c] |= kWord;
            if (utf8proc_get_property(c)->combining_class) t[c] |= kNfc;
            utf8proc_int32_t d[32];
            int bound = 0;
            auto options = (utf8proc_option_t)(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE);
            utf8proc_ssize_t n = utf8proc_decompose_char(c, d, 32, options, &bound);
            if (n < 1 || n > 32 || (n == 1 && d[0] == c)) continue;
            if (n > 1) t[d[n - 1]] |= kNfc;  // may compose with the character before it
            n = utf8proc_normalize_utf32(d, n, (utf8proc_option_t)(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
            if (n != 1 || d[0] != c) t[c] |= kNfc;
        }
        for (int c : {0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x20, 0x85, 0xA0, 0x1680, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000})
            t[c] |= kSpace;
        for (int c = 0x2000; c <= 0x200A; c++) t[c] |= kSpace;
        return t;
    }();
    return table.data();
}

// class of the character at s[i] of valid UTF-8, and its length
inline uint8_t utf8_class(const uint8_t* classes, const char* s, size_t i, size_t n, int* len) {
    *len = 1;
    if ((unsigned char)s[i] < 0x80) return classes[(unsigned char)s[i]];
    int c = utf8_step(s, i, n, len);
    return c < 0 ? 0 : classes[c];
}

// false: s is certainly NFC already
inline bool nfc_needed(std::string_view s) {
    const uint8_t* classes = unicode_classes();
    int len;
    for (size_t i = utf8_ascii_run(s, 0); i < s.size(); i = utf8_ascii_run(s, i + (size_t)len)) {
        if (utf8_class(classes, s.data(), i, s.size(), &len) & kNfc) return true;
    }
    return false;
}

// s: valid UTF-8. Sorts the marks itself: utf8proc's own sort is quadratic in the length of a run of combining marks
inline std::string nfc(std::string_view s) {
    std::vector<utf8proc_int32_t> code;
    code.reserve(s.size());
    for (size_t i = 0; i < s.size();) {
        int len, c = utf8_step(s.data(), i, s.size(), &len), bound = 0;
        utf8proc_int32_t d[32];
        auto options = (utf8proc_option_t)(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE);
        utf8proc_ssize_t n = utf8proc_decompose_char(c, d, 32, options, &bound);
        if (n < 1 || n > 32) n = 1, d[0] = c;
        code.insert(code.end(), d, d + n);
        i += (size_t)len;
    }
    auto mark_class = [](utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; };
    for (size_t i = 0; i < code.size();) {
        size_t end = i;
        while (end < code.size() && mark_class(code[end]) != 0) end++;
        std::stable_sort(code.begin() + (ptrdiff_t)i, code.begin() + (ptrdiff_t)end,
                         [&](utf8proc_int32_t a, utf8proc_int32_t b) { return mark_class(a) < mark_class(b); });
        i = end + 1;
    }
    // composed in stretches that begin at each U+11A7: utf8proc takes it for a Hangul final consonant and swallows it
    auto compose = (utf8proc_option_t)(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    std::string out;
    out.reserve(s.size());
    for (size_t i = 0, end; i < code.size(); i = end) {
        for (end = i + 1; end < code.size() && code[end] != 0x11A7;) end++;
        utf8proc_ssize_t n = utf8proc_normalize_utf32(&code[i], (utf8proc_ssize_t)(end - i), compose);
        for (utf8proc_ssize_t k = 0; k < n; k++) utf8_append(out, code[i + (size_t)k]);
    }
    return out;
}
