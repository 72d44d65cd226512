// A text as an answer: tokens, tree, and what only its spelling tells.
//
// Units that may be variables, times of the day and decimal commas are told here, from the tokens of the whole text.
//
// The trap: "6 m" is six metres in a text, and a product in a formula ($6 m$); see mark_units_and_functions.
#pragma once
#include "answer_tree.h"

struct ParsedAnswer {
    std::vector<AnswerToken> tokens;
    AnswerNodes nodes;
    int root = -1;           // -1: the text holds nothing that could be an answer
    int decimal_comma = -1;  // "2,74" read as 2.74
    std::string spelling;    // of the tokens: equal spellings are equal answers
    bool bare_commas = false;
    bool plain = false;  // no $ and no command
};

// The m of "5 m" and of "2\sqrt{3} m" may be a unit (`weak`: it is dropped where the other answer has no variable); that
// of "5 m^2" and "5 m/s" is one in plain text, but a variable in a formula (6 m^2) unless it was told apart by \text.
// Words in front of a bracket that name a function become one.
inline void mark_units_and_functions(std::vector<AnswerToken>& t, bool plain) {
    for (size_t i = 0; i < t.size(); i++) {
        const bool applied = i + 1 < t.size() && strchr("({S[", t[i + 1].kind);
        if (t[i].kind == 'w' && applied && is_list_function(t[i].s)) t[i].kind = 'c';
        if (i == 0) continue;
        const bool last = i + 1 == t.size() || t[i + 1].kind == ',' || t[i + 1].kind == '.';
        const bool unit = t[i].kind == 'v' && in_word_list(" m s g h L l N J W V K A C F ", t[i].s) && t[i].space &&
                          (t[i - 1].kind == 'n' || strchr("})c", t[i - 1].kind));
        t[i].weak = unit && last;
        const bool composed = unit && i + 1 < t.size() && (t[i + 1].kind == '^' || t[i + 1].kind == '/');
        if (composed && plain && t[i - 1].kind == 'n') t[i].text = true;
        if (composed && !plain) t[i].weak = true;
    }
}

// 7:30 a.m. and 7:30 p.m. as words
inline void join_half_of_day(std::vector<AnswerToken>& t) {
    size_t n = t.size();
    while (n > 0 && t[n - 1].kind == '.') n--;
    if (n < 4 || t[n - 1].s != "m" || t[n - 2].kind != '.' || t[n - 4].kind != 'n') return;
    if (t[n - 3].s != "a" && t[n - 3].s != "p") return;
    t[n - 3].kind = 'w';
    t[n - 3].s += "m";
    t.resize(n - 2);
}

inline ParsedAnswer parse_answer(const std::string& text, bool list_commas = false) {
    ParsedAnswer a;
    if (text.size() > answer_max_bytes) return a;
    BoxedText box = last_box(text);
    if (box.state == BoxedText::unclosed) return a;
    std::string s = answer_to_ascii(box.state == BoxedText::closed ? box.content : text);
    if (s.size() > 4 * answer_max_bytes) return a;
    AnswerLexer lx;
    lx.list_commas = list_commas;
    lex_answer(lx, s, false);
    a.bare_commas = lx.bare_commas;
    a.tokens = lx.tokens;
    std::vector<AnswerToken>& t = a.tokens;
    join_half_of_day(t);
    a.plain = text.find_first_of("$\\") == std::string::npos;
    mark_units_and_functions(t, a.plain);
    AnswerParser parser(a.nodes);
    parser.t = t;
    size_t lo = 0, hi = t.size();
    parser.trim(lo, hi);
    bool content = false;
    for (size_t i = lo; i < hi; i++) content = content || strchr("nvwcS", t[i].kind);
    if (!content) return a;
    a.spelling = parser.spelling(lo, hi);
    if (parser.match_brackets()) a.root = parser.parts(lo, hi);
    if (a.root < 0 && parser.match_brackets()) a.root = parser.list(lo, hi);
    if (a.root < 0) a.root = parser.add('T', {}, a.spelling);
    while (hi > lo + 3 && t[hi - 1].kind == 'w') hi--;  // 2,74 euros
    size_t n = lo + (lo < hi && t[lo].kind == '-');
    if (n + 3 == hi && t[n].kind == 'n' && t[n + 1].kind == ',' && t[n + 2].kind == 'n' && !t[n + 2].space &&
        t[n + 1].s != "and") {
        if ((t[n].s + t[n + 2].s).find_first_not_of("0123456789") == std::string::npos) {
            a.decimal_comma = parser.number(t[n].s + "." + t[n + 2].s);
            if (n > lo) a.decimal_comma = parser.negate(a.decimal_comma);
        }
    }
    return a;
}
