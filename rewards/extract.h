// Getting the final answer out of a model's text.
//
// Order of the rules (extract_answer): text inside <think>...</think> never counts, and an unclosed <think> means no
// answer; then the last \boxed{...} or \fbox{...}; else the last "#### N" (GSM8K); else "answer is N" or "answer: N";
// else, when lenient, the last $...$ if no number follows it, else the last number.
// A reward should use strict_boxed or strict_hash, which look for one declared form; a lenient rule pays for stray
// numbers.
//
// The trap: a completion cut off inside "\boxed{18" has no answer (it may have been going to say 180), so from a last
// box that never closes on, no number counts either. Nothing here throws, recurses or looks at a byte more than a few
// times.
#pragma once
#include <cctype>
#include <cstring>
#include <string>

enum class AnswerRule { none, boxed, hash, phrase, math, number };

struct ExtractedAnswer {
    std::string text;
    AnswerRule rule = AnswerRule::none;
};

inline bool is_ascii_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
inline bool is_ascii_digit(char c) { return c >= '0' && c <= '9'; }
inline bool is_ascii_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
inline bool text_at(const std::string& s, size_t i, const char* what) {
    return i <= s.size() && s.compare(i, strlen(what), what) == 0;
}

// without white space and the given characters at both ends
inline std::string trim_text(const std::string& s, const char* also = "") {
    auto drop = [&](char c) { return is_ascii_space(c) || (c && strchr(also, c)); };
    size_t b = 0, e = s.size();
    while (b < e && drop(s[b])) b++;
    while (e > b && drop(s[e - 1])) e--;
    return s.substr(b, e - b);
}

// The text a reader is shown: every <think>...</think> removed, and everything before a </think> that was never opened
// (chat templates put the opening tag into the prompt). false: a <think> is never closed.
inline bool text_after_thinking(const std::string& text, std::string& visible) {
    const size_t none = std::string::npos;
    visible.clear();
    size_t p = 0, open = text.find("<think>");
    for (;;) {
        if (open != none && open < p) open = text.find("<think>", p);
        size_t close = text.find("</think>", p);
        if (close != none && (open == none || close < open)) {
            visible.clear();
            p = close + 8;
        } else if (open == none) {
            visible.append(text, p, none);
            return true;
        } else if (close == none) {
            return false;
        } else {
            visible.append(text, p, open - p).append("\n");
            p = close + 8;
        }
    }
}

// the '}' that closes the '{' at `open`; `limit` if there is none before it. \{ and \} do not count.
inline size_t matching_brace(const std::string& s, size_t open, size_t limit) {
    int depth = 0;
    for (size_t i = open; i < limit; i++) {
        if (s[i] == '\\') i++;
        else if (s[i] == '{') depth++;
        else if (s[i] == '}' && --depth == 0) return i;
    }
    return limit;
}

struct BoxedText {
    enum State { none, closed, unclosed } state = none;
    size_t begin = 0;  // of the backslash
    size_t end = 0;    // one past the box
    std::string content;
};

// the box that starts at s[i], which is a backslash
inline BoxedText box_at(const std::string& s, size_t i) {
    BoxedText box;
    size_t p = i + (text_at(s, i, "\\boxed") ? 6 : text_at(s, i, "\\fbox") ? 5 : 0);
    if (p == i || (p < s.size() && is_ascii_letter(s[p]))) return box;
    box.begin = i;
    while (p < s.size() && is_ascii_space(s[p])) p++;
    box.state = BoxedText::unclosed;
    if (p < s.size() && s[p] == '{') {
        size_t close = matching_brace(s, p, s.size());
        if (close == s.size()) return box;
        box.content = trim_text(s.substr(p + 1, close - p - 1));
        box.end = close + 1;
    } else {  // "\boxed 5": up to white space or the end of the formula
        size_t e = p;
        while (e < s.size() && s[e] != '$' && !is_ascii_space(s[e]) && !text_at(s, e, "\\)") && !text_at(s, e, "\\]"))
            e++;
        box.content = trim_text(s.substr(p, e - p), ".,");
        box.end = e;
    }
    box.state = box.content.empty() ? BoxedText::none : BoxedText::closed;
    return box;
}

inline BoxedText last_box(const std::string& s) {
    for (size_t i = s.size(); i-- > 0;) {
        if (s[i] != '\\') continue;
        BoxedText box = box_at(s, i);
        if (box.state != BoxedText::none) return box;
    }
    return BoxedText();
}

// one past the digits at s[i]
inline size_t digits_end(const std::string& s, size_t i) {
    while (i < s.size() && is_ascii_digit(s[i])) i++;
    return i;
}

// one past \frac{..}{..} or \sqrt{..} at s[i]; i if there is none
inline size_t latex_number_end(const std::string& s, size_t i) {
    if (i >= s.size() || s[i] != '\\') return i;
    size_t q = i + 1 + (i + 1 < s.size() && strchr("dtc", s[i + 1]) && s[i + 1] && text_at(s, i + 2, "frac"));
    int args = text_at(s, q, "frac") ? 2 : text_at(s, q, "sqrt") ? 1 : 0;
    if (args == 0) return i;
    for (q += 4; args > 0; args--) {
        while (q < s.size() && s[q] == ' ') q++;
        if (q < s.size() && is_ascii_digit(s[q])) {
            q++;
            continue;
        }
        if (q >= s.size() || s[q] != '{') return i;
        size_t limit = q + 256 < s.size() ? q + 256 : s.size(), close = matching_brace(s, q, limit);
        if (close == limit) return i;
        q = close + 1;
    }
    return q;
}

// one past the digits at s[i] and the groups and decimals behind them: 1,234.50, 1{,}234
inline size_t grouped_digits_end(const std::string& s, size_t i) {
    for (size_t e = digits_end(s, i);;) {
        size_t q = e;
        if (q < s.size() && (s[q] == ',' || s[q] == '.')) q++;
        else if (text_at(s, q, "{,}")) q += 3;
        else if (text_at(s, q, ",\\!") || text_at(s, q, "\\,")) q += text_at(s, q, "\\,") ? 2 : 3;
        if (q == e || digits_end(s, q) == q) return e;
        e = digits_end(s, q);
    }
}

// what belongs to a number whose digits end at e: a fraction, a time, an exponent, a factor, a percent sign
inline size_t number_tail_end(const std::string& s, size_t e) {
    auto digit = [&](size_t i) { return i < s.size() && is_ascii_digit(s[i]); };
    if (e < s.size() && (s[e] == '/' || s[e] == ':') && digit(e + 1)) e = digits_end(s, e + 1);
    else if (e < s.size() && s[e] == ' ' && digit(e + 1)) {
        size_t q = digits_end(s, e + 1);
        if (q < s.size() && s[q] == '/' && digit(q + 1)) e = digits_end(s, q + 1);
    } else if (e < s.size() && s[e] == '^') {
        if (digit(e + 1)) e = digits_end(s, e + 1);
        else if (e + 1 < s.size() && s[e + 1] == '{') {
            size_t limit = e + 257 < s.size() ? e + 257 : s.size(), close = matching_brace(s, e + 1, limit);
            if (close < limit) e = close + 1;
        }
    }
    e = latex_number_end(s, e);
    if (text_at(s, e, "\\pi")) e += 3;
    if (e < s.size() && s[e] == '%') e++;
    else if (text_at(s, e, "\\%")) e += 2;
    return e;
}

// The next number at or after `p`: 18, -1,234.50, 3/4, 7 3/4, 12:00, 25%, 10^{6}, \frac{2}{5}, 2\sqrt{3}. Digits inside
// a name (x2) and exponents (m^2) are not numbers. false: there is none.
inline bool next_number(const std::string& s, size_t p, size_t& begin, size_t& end) {
    auto digit = [&](size_t i) { return i < s.size() && is_ascii_digit(s[i]); };
    for (size_t i = p; i < s.size(); i++) {
        size_t e = latex_number_end(s, i);
        begin = i;
        if (e == i) {
            if (!digit(i) && !(s[i] == '.' && digit(i + 1))) continue;
            bool name = i > p && (is_ascii_letter(s[i - 1]) || s[i - 1] == '_' || s[i - 1] == '^');
            name = name || (i > p + 1 && s[i - 1] == '{' && strchr("^_", s[i - 2]));
            e = grouped_digits_end(s, i);
            if (name) {
                i = e - 1;
                continue;
            }
            e = number_tail_end(s, e);
        }
        // a sign belongs to the number unless it stands right after an operand ("9-3")
        size_t sign = begin;
        if (sign > p && s[sign - 1] == '$') sign--;
        size_t at = sign > p && s[sign - 1] == '-'                    ? sign - 1
                    : sign >= p + 3 && text_at(s, sign - 3, "\u2212") ? sign - 3
                                                                      : sign;
        if (at < sign && (at == 0 || strchr(" \t\n([{$=:/,*", s[at - 1]))) begin = at;
        end = e;
        return true;
    }
    return false;
}

// What follows "####" up to the end of the line, if it is a number, a formula, "x = ..." or one letter. A Markdown
// heading ("#### Step 2", "#### 1. Setup") is not an answer. Empty: no such line. The last one counts.
inline std::string last_hash_answer(const std::string& s) {
    size_t at = s.size();
    while (at > 0 && (at = s.rfind("####", at - 1)) != std::string::npos) {
        size_t b = at + 4, e = b;
        while (e < s.size() && s[e] != '\n' && e - b < 512) e++;
        while (at > 0 && s[at - 1] == '#') at--;
        if (e - b == 512) continue;  // no answer is that long, and many of them would be slow
        std::string line = trim_text(s.substr(b, e - b), "*`#");
        size_t i = 0;
        for (;;) {
            if (i < line.size() && line[i] && strchr("$+-.([{ ", line[i])) i++;
            else if (text_at(line, i, "\u2212")) i += 3;
            else if (text_at(line, i, "\u20ac")) i += 3;                                // euro
            else if (text_at(line, i, "\u00a3") || text_at(line, i, "\u00a5")) i += 2;  // pound, yen
            else break;
        }
        if (i >= line.size()) continue;
        if (is_ascii_digit(line[i])) {
            size_t q = i;
            while (q < line.size() && is_ascii_digit(line[q])) q++;
            if (i == 0 && q + 2 < line.size() && strchr(".):", line[q]) && line[q + 1] == ' ' &&
                is_ascii_letter(line[q + 2]))
                continue;
            return line;
        }
        if (line[i] == '\\') return line;
        if (is_ascii_letter(line[i])) {
            size_t q = i + 1;
            while (q < line.size() && strchr(" )].", line[q])) q++;
            if (q == line.size() || line[q] == '=') return line;
        }
    }
    return "";
}

// Where the text after "answer is", "answer:" and the like begins, for the last such place before `limit`; npos if
// none. `phrase`: where the phrase begins. `choice` adds "option is" and "choice is".
inline size_t after_answer_phrase(const std::string& s, size_t limit, bool choice, size_t& phrase) {
    static const char* const nouns[] = {
        "option",  // these two for a choice only
        "choice",
        "answer",
        "answers",
        "r\u00e9ponse",  // French
        "reponse",
        "respuesta",                                   // Spanish
        "antwort",                                     // German
        "risposta",                                    // Italian
        "resposta",                                    // Portuguese
        "\u0442\u0432\u0435\u0442",                    // Russian, without its capital
        "\u7b54\u6848",                                // Chinese
        "\u7b54\u3048",                                // Japanese
        "\uc815\ub2f5",                                // Korean
        "\u0627\u0644\u0625\u062c\u0627\u0628\u0629",  // Arabic
        "\u0627\u0644\u062c\u0648\u0627\u0628",
        "\u0909\u0924\u094d\u0924\u0930",  // Hindi
    };
    static const char* const links[] = {"is",     "are",    "est",    "es",           "ist",          "equals",
                                        ":",      "=",      "\uff1a", "\u662f",       "\u4e3a",       "\u70ba",
                                        "\u306f", "\u00e8", "\u00e9", "\u0647\u064a", "\u0647\u0648", "\u0939\u0948"};
    std::string low(s, 0, limit);
    for (char& c : low)
        if (c >= 'A' && c <= 'Z') c += 'a' - 'A';
    size_t best = std::string::npos;
    phrase = 0;
    for (size_t k = choice ? 0 : 2; k < sizeof(nouns) / sizeof(nouns[0]); k++) {
        const char* noun = nouns[k];
        size_t at = low.size(), n = strlen(noun);
        while (at > 0 && (at = low.rfind(noun, at - 1)) != std::string::npos) {
            if (best != std::string::npos && at <= phrase) break;
            size_t p = at + n;
            while (p < low.size() && (is_ascii_space(low[p]) || low[p] == '*')) p++;
            size_t q = p;
            for (const char* link : links) {
                size_t m = strlen(link);
                bool whole = !is_ascii_letter(link[0]) || p + m >= low.size() || !is_ascii_letter(low[p + m]);
                if (text_at(low, p, link) && whole && p + m > q) q = p + m;
            }
            if (q == p) continue;
            for (;;) {
                if (q < low.size() && (is_ascii_space(low[q]) || low[q] == '*' || low[q] == ':')) q++;
                else if (text_at(low, q, "\uff1a")) q += 3;
                else break;
            }
            if (q >= low.size()) continue;
            best = q;
            phrase = at;
            break;
        }
    }
    return best;
}

// one past the end of the sentence that begins at `p`
inline size_t sentence_end(const std::string& s, size_t p) {
    for (; p < s.size(); p++) {
        if (s[p] == '\n' || text_at(s, p, "\u3002")) return p;
        if (strchr(".!?", s[p]) && s[p] && (p + 1 == s.size() || is_ascii_space(s[p + 1]))) return p;
    }
    return p;
}

// The answer at the head of a text that follows "answer is": a formula in $...$ or \(...\), else the longest run
// without words if it holds a digit ("18" of "18 because 3 of 4"), else the first number of the sentence, else the
// sentence.
inline std::string phrase_answer(const std::string& s, size_t p) {
    static const char* const pairs[][2] = {{"$$", "$$"}, {"$", "$"}, {"\\(", "\\)"}, {"\\[", "\\]"}};
    for (auto& pair : pairs) {
        if (!text_at(s, p, pair[0])) continue;
        size_t b = p + strlen(pair[0]), e = s.find(pair[1], b);
        if (e != std::string::npos && e > b && e - b < 1024) return trim_text(s.substr(b, e - b));
        break;
    }
    size_t stop = sentence_end(s, p), e = p;
    bool digit = false;
    while (e < stop) {
        unsigned char c = (unsigned char)s[e];
        if (c == '\\' || is_ascii_letter((char)c)) {
            size_t q = e + (c == '\\');
            while (q < stop && is_ascii_letter(s[q])) q++;
            if (c != '\\' && q - e > 1) break;
            e = q == e ? e + 1 : q;
        } else if (c >= 0x80 && !text_at(s, e, "\u2212") && !text_at(s, e, "\u00b0") && !text_at(s, e, "\u00d7") &&
                   !text_at(s, e, "\u221a") && !text_at(s, e, "\u03c0")) {
            break;
        } else {
            digit = digit || is_ascii_digit((char)c);
            e += text_at(s, e, "\u2212") || text_at(s, e, "\u221a") ? 3 : c >= 0x80 ? 2 : 1;
        }
    }
    if (e > stop) e = stop;
    std::string run = trim_text(s.substr(p, e - p), "*,;:.");
    if (digit) {
        size_t n = run.size();
        if (e < stop && n > 2 && run[n - 2] == ' ' && strchr("aI", run[n - 1])) run = trim_text(run.substr(0, n - 2));
        return run;
    }
    size_t nb, ne;
    std::string sentence = trim_text(s.substr(p, stop - p), "*");
    if (next_number(sentence, 0, nb, ne)) return sentence.substr(nb, ne - nb);
    return sentence;
}

// the last $...$, $$...$$, \(...\) or \[...\] that holds a digit or a command, if no digit follows it; else empty
inline std::string last_math_answer(const std::string& s) {
    static const char* const pairs[][2] = {{"$$", "$$"}, {"$", "$"}, {"\\(", "\\)"}, {"\\[", "\\]"}};
    const size_t longest = 2048;
    size_t closing[4] = {};  // of each pair the first one from where it was looked for last: no byte is searched twice
    size_t best_b = 0, best_e = 0;
    for (size_t i = 0; i < s.size();) {
        size_t next = i + 1;
        for (int k = 0; k < 4; k++) {
            const char* const* pair = pairs[k];
            if (!text_at(s, i, pair[0])) continue;
            size_t b = i + strlen(pair[0]), &e = closing[k];
            if (e < b) e = s.find(pair[1], b);
            if (e == std::string::npos || e - b > longest) continue;
            size_t close = e + strlen(pair[1]);
            bool digit = false, command = false;
            int words = 0, run = 0;
            for (size_t j = b; j < e && words < 2; j++) {
                digit = digit || is_ascii_digit(s[j]);
                command = command || (s[j] == '\\' && j + 1 < e && is_ascii_letter(s[j + 1]));
                bool letter = is_ascii_letter(s[j]);
                size_t start = j - (size_t)run;
                bool named = letter && start > b && strchr("\\{", s[start - 1]);
                run = letter ? run + 1 : 0;
                if (run == 3 && !named) words++;
            }
            bool price = k == 1 && close < s.size() && is_ascii_digit(s[close]);
            if (words >= 2 || price) break;
            if (digit || command) best_b = b, best_e = e;
            next = close;
            break;
        }
        i = next;
    }
    for (size_t i = best_e; i < s.size(); i++)
        if (is_ascii_digit(s[i])) return "";
    return trim_text(s.substr(best_b, best_e - best_b));
}

// `lenient` adds the rules `math` and `number`. The text is trimmed; rule none has an empty text.
inline ExtractedAnswer extract_answer(const std::string& text, bool lenient = true) {
    ExtractedAnswer found;
    std::string s;
    if (!text_after_thinking(text, s)) return found;
    auto take = [&](const std::string& answer, AnswerRule rule) {
        found.text = answer;
        found.rule = answer.empty() ? AnswerRule::none : rule;
        return !answer.empty();
    };
    BoxedText box = last_box(s);
    if (box.state == BoxedText::closed && take(box.content, AnswerRule::boxed)) return found;
    if (box.state == BoxedText::unclosed) s.resize(box.begin);
    if (take(last_hash_answer(s), AnswerRule::hash)) return found;
    size_t phrase = 0, p = after_answer_phrase(s, s.size(), false, phrase);
    if (p != std::string::npos && take(phrase_answer(s, p), AnswerRule::phrase)) return found;
    if (!lenient) return found;
    if (take(last_math_answer(s), AnswerRule::math)) return found;
    size_t b = 0, e = 0, last_b = 0, last_e = 0;
    for (size_t at = 0; next_number(s, at, b, e); at = e) last_b = b, last_e = e;
    take(trim_text(s.substr(last_b, last_e - last_b)), AnswerRule::number);
    return found;
}

// the last closed \boxed of the visible text; false: none
inline bool strict_boxed(const std::string& text, std::string& answer) {
    std::string s;
    if (!text_after_thinking(text, s)) return false;
    BoxedText box = last_box(s);
    answer = box.content;
    return box.state == BoxedText::closed;
}

// the last "#### N" of the visible text; false: none
inline bool strict_hash(const std::string& text, std::string& answer) {
    std::string s;
    if (!text_after_thinking(text, s)) return false;
    answer = last_hash_answer(s);
    return !answer.empty();
}

// The letter A..J of a multiple choice answer, empty if there is none: in the last box; else the first one after the
// last "answer is"; else at the very start ("D. it is ..."); else the last one that stands alone.
inline std::string extract_choice(const std::string& text) {
    std::string s;
    if (!text_after_thinking(text, s)) return "";
    auto letter_at = [](const std::string& t, size_t i) {  // a capital that is not part of a word
        if (t[i] < 'A' || t[i] > 'J') return false;
        if (i > 0 && (is_ascii_letter(t[i - 1]) || t[i - 1] == '\\' || t[i - 1] == '\'')) return false;
        return i + 1 >= t.size() || !(is_ascii_letter(t[i + 1]) || t[i + 1] == '\'');
    };
    auto first = [&](const std::string& t, size_t b, size_t e) -> std::string {
        for (size_t i = b; i < e; i++)
            if (letter_at(t, i)) return std::string(1, t[i]);
        return "";
    };
    BoxedText box = last_box(s);
    if (box.state == BoxedText::closed) return first(box.content, 0, box.content.size());
    size_t phrase = 0;
    for (size_t limit = s.size(), tries = 0; limit > 0 && tries < 8; limit = phrase, tries++) {
        size_t p = after_answer_phrase(s, limit, true, phrase);
        if (p == std::string::npos) break;
        std::string letter = first(s, p, sentence_end(s, p));
        if (!letter.empty()) return letter;
    }
    size_t p = 0;
    while (p < s.size() && (is_ascii_space(s[p]) || strchr("(*[", s[p]))) p++;
    if (p < s.size() && letter_at(s, p)) {
        size_t q = p + 1;
        bool closed = q >= s.size() || strchr(".,:)]*\n", s[q]) || text_at(s, q, "\u3002") || text_at(s, q, "\u3001");
        if (closed) return std::string(1, s[p]);
    }
    for (size_t i = s.size(); i-- > 0;)
        if (letter_at(s, i) && s[i] != 'I') return std::string(1, s[i]);
    return "";
}
