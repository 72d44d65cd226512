// Patterns of module names in the quantization configs of others ("re:.*mlp.*"): the part of Python's re.match that such
// configs use, from the name's beginning and not to its end. A pattern is a program of a nondeterministic automaton, and
// all its states are followed at once (Thompson 1968), so that time is pattern x name: a backtracking matcher takes 2^n
// steps for (a+)+b, and recursion over a pattern of 20,000 groups overflows the stack.
//   literals  .  [a-z]  [^...]  \d \w \s \D \W \S (ASCII)  \b  ^  $  * + ? {m} {m,} {,n} {m,n}, also lazy
//   |  ( )  (?: )  (?P<name> )  (?= )  (?! )
// Anything else (backreferences, lookbehind, flags, possessive quantifiers, non-ASCII) is refused, never ignored.
#pragma once
#include <bitset>
#include <climits>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>
#include "../runtime/error.h"
#include "../runtime/printable.h"

static constexpr size_t kMaxNamePattern = 1000;       // bytes
static constexpr size_t kMaxNamePatternSteps = 2000;  // of its program, repetitions written out
static constexpr int kMaxNamePatternDepth = 32;       // open groups

struct NamePattern {
    enum Kind { SET, SPLIT, JUMP, BEGIN, END, BOUNDARY, LOOK, MATCH };
    struct Step {
        Kind kind;
        int to = 0;            // SPLIT, JUMP: relative to this step; SET, LOOK: index of the set, of the program
        bool negated = false;  // LOOK
    };
    std::vector<std::bitset<256>> sets;
    std::vector<std::vector<Step>> programs;  // those of lookaheads before those that use them; the last is the whole
};

// Recursive descent: alternatives() > sequence() > atom(), each the steps of what it has read
struct NamePatternParser {
    typedef std::vector<NamePattern::Step> Steps;
    std::string_view text;
    const std::string& where;
    NamePattern pattern;
    size_t at = 0;
    int depth = 0;

    [[noreturn]] void refuse(const std::string& why) const {
        fail(
            "%s: the pattern %s: %s; understood is Python's re of at most %zu bytes with . [a-z] [^a-z] \\d \\w \\s "
            "\\b ^ "
            "$ * + ? {m,n} | ( ) (?: ) (?= ) (?! )",
            where.c_str(), shown(text).c_str(), why.c_str(), kMaxNamePattern);
    }
    bool more() const { return at < text.size(); }
    bool take(std::string_view word) {
        const bool there = text.compare(at, word.size(), word) == 0;
        if (there) at += word.size();
        return there;
    }
    Steps& checked(Steps& s) const {
        if (s.size() > kMaxNamePatternSteps) refuse("its repetitions are too long");
        return s;
    }
    void append(Steps& to, const Steps& s) const {
        to.insert(to.end(), s.begin(), s.end());
        checked(to);
    }

    Steps alternatives() {
        Steps left = sequence();
        while (take("|")) {
            const Steps right = sequence();
            left.insert(left.begin(), {NamePattern::SPLIT, (int)left.size() + 2});
            left.push_back({NamePattern::JUMP, (int)right.size() + 1});
            append(left, right);
        }
        return left;
    }
    Steps sequence() {
        Steps all;
        while (more() && text[at] != '|' && text[at] != ')') {
            int least, most;
            if (quantifier(&least, &most)) refuse("nothing to repeat");
            Steps item = atom();
            const bool anchor =
                item.size() == 1 && item[0].kind >= NamePattern::BEGIN && item[0].kind < NamePattern::LOOK;
            if (quantifier(&least, &most)) {
                if (anchor) refuse("nothing to repeat");
                item = repeated(item, least, most);
                take("?");  // lazy: which part of the name matches is not asked
                if (more() && text[at] == '+') refuse("possessive quantifiers");
                if (quantifier(&least, &most)) refuse("multiple repeat");
            }
            append(all, item);
        }
        return all;
    }
    // at {: digits, or digits , digits, where either may be missing; else { is a literal
    bool counts(int* least, int* most) {
        const size_t start = at++;
        auto number = [&](int missing) {
            if (!more() || !isdigit((unsigned char)text[at])) return missing;
            long v = 0;
            while (more() && isdigit((unsigned char)text[at]) && v <= (long)kMaxNamePatternSteps)
                v = 10 * v + text[at++] - '0';
            if (v > (long)kMaxNamePatternSteps) refuse("its repetitions are too long");
            return (int)v;
        };
        const bool empty = more() && text[at] == '}';
        *least = number(-1);
        *most = take(",") ? number(INT_MAX) : *least;
        if (empty || !take("}")) {
            at = start;
            return false;
        }
        *least = std::max(*least, 0);
        if (*most < *least) refuse("a repetition's maximum is below its minimum");
        return true;
    }
    bool quantifier(int* least, int* most) {
        *least = 0, *most = INT_MAX;
        if (take("*")) return true;
        if (take("+")) return *least = 1, true;
        if (take("?")) return *most = 1, true;
        return more() && text[at] == '{' && counts(least, most);
    }
    Steps repeated(const Steps& item, int least, int most) const {
        Steps all;
        const int n = (int)item.size();
        for (int i = 0; i < least; i++) append(all, item);
        if (most == INT_MAX) {
            all.push_back({NamePattern::SPLIT, n + 2});
            append(all, item);
            all.push_back({NamePattern::JUMP, -n - 1});
        }
        for (int i = least; i < most && most != INT_MAX; i++) {
            all.push_back({NamePattern::SPLIT, n + 1});
            append(all, item);
        }
        return checked(all);
    }
    Steps set(const std::bitset<256>& bytes) {
        pattern.sets.push_back(bytes);
        return {{NamePattern::SET, (int)pattern.sets.size() - 1}};
    }
    static std::bitset<256> one(char c) { return std::bitset<256>().set((unsigned char)c); }

    Steps atom() {
        const char c = text[at++];
        if ((unsigned char)c >= 0x80) refuse("characters beyond ASCII");
        if (c == '(') return group();
        if (c == '[') return set(bracket());
        if (c == '.') return set(~one('\n'));
        if (c == '^') return {{NamePattern::BEGIN}};
        if (c == '$') return {{NamePattern::END}};
        if (c != '\\') return set(one(c));
        if (take("b")) return {{NamePattern::BOUNDARY}};
        return set(escape());
    }
    Steps group() {
        if (++depth > kMaxNamePatternDepth) refuse(format("more than %d groups in each other", kMaxNamePatternDepth));
        const bool ahead = take("?="), not_ahead = !ahead && take("?!");
        if (take("?P<")) {
            while (more() && (isalnum((unsigned char)text[at]) || text[at] == '_')) at++;
            if (!take(">")) refuse("a group's name");
        } else if (!ahead && !not_ahead && !take("?:") && more() && text[at] == '?') {
            refuse("a group of kind (?" + std::string(text.substr(at + 1, 1)));
        }
        Steps inside = alternatives();
        if (!take(")")) refuse("a ( without its )");
        depth--;
        if (!ahead && !not_ahead) return inside;
        inside.push_back({NamePattern::MATCH});
        pattern.programs.push_back(std::move(inside));
        return {{NamePattern::LOOK, (int)pattern.programs.size() - 1, not_ahead}};
    }
    // what stands behind a backslash, outside of brackets and in them
    std::bitset<256> escape() {
        if (!more()) refuse("a \\ at its end");
        const char c = text[at++];
        std::bitset<256> bytes;
        switch (tolower((unsigned char)c)) {
            case 'd':
                for (int b = '0'; b <= '9'; b++) bytes.set((size_t)b);
                break;
            case 'w':
                for (int b = 0; b < 128; b++) bytes.set((size_t)b, isalnum(b) || b == '_');
                break;
            case 's':
                for (char b : {' ', '\t', '\n', '\v', '\f', '\r'}) bytes |= one(b);
                break;
            default:
                if (isalnum((unsigned char)c) || (unsigned char)c >= 0x80) refuse(std::string("\\") + c);
                return one(c);
        }
        return isupper((unsigned char)c) ? ~bytes : bytes;
    }
    std::bitset<256> bracket() {
        std::bitset<256> bytes;
        const bool negated = take("^");
        for (bool first = true; first || !take("]"); first = false) {
            if (!more()) refuse("a [ without its ]");
            char low = text[at++];
            std::bitset<256> item = low == '\\' ? escape() : one(low);
            if (low == '\\') low = text[at - 1];
            if (at + 1 < text.size() && text[at] == '-' && text[at + 1] != ']') {
                char high = text[++at];
                at++;
                const bool single = item.count() == 1 && (high != '\\' || escape().count() == 1);
                if (high == '\\') high = text[at - 1];
                if (!single || high < low) refuse("a range in [ ] that is none");
                for (int b = low; b <= high; b++) item.set((size_t)b);
            }
            bytes |= item;
        }
        return negated ? ~bytes : bytes;
    }
};

// where: the file, for the message that refuses a pattern
inline NamePattern name_pattern(std::string_view text, const std::string& where) {
    NamePatternParser p{text, where, {}};
    if (text.size() > kMaxNamePattern) p.refuse(format("%zu bytes", text.size()));
    for (char c : text)
        if ((unsigned char)c >= 0x80) p.refuse("characters beyond ASCII");
    NamePatternParser::Steps whole = p.alternatives();
    if (p.more()) p.refuse("a ) without its (");
    whole.push_back({NamePattern::MATCH});
    p.pattern.programs.push_back(std::move(whole));
    return std::move(p.pattern);
}

// From the name's end to its beginning: which steps lead to a MATCH from here. now: those known at this place; next: at
// the place behind it
inline bool name_pattern_step(const NamePattern& p, size_t program, size_t step, std::string_view name, size_t at,
                              const std::vector<std::vector<char>>& now, const std::vector<std::vector<char>>& next) {
    const NamePattern::Step& s = p.programs[program][step];
    const std::vector<char>& here = now[program];
    auto word = [&](size_t i) { return i < name.size() && (isalnum((unsigned char)name[i]) || name[i] == '_'); };
    switch (s.kind) {
        case NamePattern::SET:
            return at < name.size() && p.sets[(size_t)s.to][(unsigned char)name[at]] && next[program][step + 1];
        case NamePattern::SPLIT:
            return here[step + 1] || here[step + (size_t)s.to];
        case NamePattern::JUMP:
            return here[step + (size_t)s.to];
        case NamePattern::BEGIN:
            return at == 0 && here[step + 1];
        case NamePattern::END:
            return (at == name.size() || (at + 1 == name.size() && name[at] == '\n')) && here[step + 1];
        case NamePattern::BOUNDARY:
            return word(at) != (at > 0 && word(at - 1)) && here[step + 1];
        case NamePattern::LOOK:
            return (now[(size_t)s.to][0] != 0) != s.negated && here[step + 1];
        case NamePattern::MATCH:
            break;
    }
    return true;
}

inline bool name_pattern_matches(const NamePattern& p, std::string_view name) {
    std::vector<std::vector<char>> now, next;
    for (const auto& program : p.programs) now.emplace_back(program.size(), 0);
    const std::vector<std::vector<char>> none = now;
    for (size_t at = name.size() + 1; at-- > 0;) {
        next.swap(now);
        now = none;
        for (size_t k = 0; k < p.programs.size(); k++)
            for (bool again = true; again;) {  // once more for each loop inside another
                again = false;
                for (size_t i = p.programs[k].size(); i-- > 0;)
                    if (!now[k][i] && name_pattern_step(p, k, i, name, at, now, next)) now[k][i] = 1, again = true;
            }
    }
    return now.back()[0];
}
