// The text of a final answer as tokens: LaTeX, plain text and Unicode become one kind.
//
// Formatting (\left, \displaystyle, spaces, $) is dropped, \text{...} and the like are opened, numbers lose their
// thousands separators, letters become words, function names or single variables.
//
// The trap: a comma. It separates thousands (1,234), list items (1, 2), coordinates or decimals (2,74); see lex_number.
// Every byte string has tokens; recursion is only into \text{...} and bounded.
#pragma once
#include <algorithm>
#include <map>
#include <vector>
#include "extract.h"

// kind: n number, v variable or unknown command, w word, c function or structure; '~' about, 'i' is in, 'l' <=, 'g' >=,
// '#' unequal, 'P' plus-minus, 'M' minus-plus, 'U' union, 'I' intersection, 'D' without, 'S' 's' braces of a set,
// 'A' 'a' angles, 'B' 'E' matrix begin and end, '&' and 'R' its cells and rows, 'o' degree, 'X' **; the rest stand for
// themselves
struct AnswerToken {
    char kind;
    std::string s;      // n: 12.5, then r and repeating digits, then e and an exponent
    bool space;         // white space before it
    bool text;          // from \text{...}
    bool weak = false;  // a lone letter after a number, such as the m of "5 m"
};

struct AnswerLexer {
    std::vector<AnswerToken> tokens;
    int brackets = 0, matrices = 0, nesting = 0;
    bool list_commas = false;  // read every comma as a separator
    size_t list_end = 0;       // commas before here in the text being read separate items: 1,2,100
    bool bare_commas = false;  // out: a comma was read as part of a number
};

inline bool in_word_list(const char* list, const std::string& word) {  // " a b c "
    return std::string(list).find(" " + word + " ") != std::string::npos;
}

// Unicode to LaTeX or ASCII; "\\frac" to "\frac" where no matrix needs the double backslash
inline std::string answer_to_ascii(const std::string& s) {
    // clang-format off
    static const std::map<std::string, std::string> symbols = {
        {"\u2212", "-"}, {"\u2010", "-"}, {"\u2011", "-"}, {"\u2013", "-"}, {"\u2014", "-"}, {"\u00d7", "\\times "},
        {"\u00b7", "\\cdot "}, {"\u22c5", "\\cdot "}, {"\u2217", "*"}, {"\u00f7", "/"}, {"\u2044", "/"},
        {"\u2215", "/"}, {"\u03c0", "\\pi "}, {"\u221e", "\\infty "}, {"\u2264", "\\le "}, {"\u2265", "\\ge "},
        {"\u2260", "\\ne "}, {"\u2248", "\\approx "}, {"\u00b1", "\\pm "}, {"\u2213", "\\mp "}, {"\u221a", "\\sqrt "},
        {"\u00b0", "\\degree "}, {"\u00b2", "^{2}"}, {"\u00b3", "^{3}"}, {"\u00b9", "^{1}"},
        {"\u00bd", "\\frac{1}{2}"}, {"\u00bc", "\\frac{1}{4}"}, {"\u00be", "\\frac{3}{4}"}, {"\u222a", "\\cup "},
        {"\u2229", "\\cap "}, {"\u2205", "\\emptyset "}, {"\u2208", "\\in "}, {"\u2032", "'"}, {"\u2019", "'"},
        {"\u3002", "."}, {"\u3001", ","}, {"\u00a0", " "}, {"\u2009", " "}, {"\u202f", " "}, {"\u2002", " "},
        {"\u2003", " "}, {"\u3000", " "}, {"\u20ac", "$"}, {"\u00a3", "$"}, {"\u00a5", "$"}, {"\u20b9", "$"},
        {"\u211d", "\\mathbb{R}"}, {"\u2223", "\\mid "}, {"\u27e8", "\\langle "}, {"\u27e9", "\\rangle "},
        {"\u200b", ""}, {"\ufeff", ""}, {"\u03b8", "\\theta "}, {"\u03b1", "\\alpha "}, {"\u03b2", "\\beta "},
        {"\u03bb", "\\lambda "}, {"\u2026", "\\ldots "}, {"\u2227", "\\land "}, {"\u2228", "\\lor "},
        {"\u2261", "\\equiv "}};
    // clang-format on
    bool matrix = s.find("\\begin") != std::string::npos;
    std::string out;
    for (size_t i = 0; i < s.size();) {
        unsigned char c = (unsigned char)s[i];
        if (c == '\\' && !matrix && i + 2 < s.size() && s[i + 1] == '\\' && is_ascii_letter(s[i + 2])) {
            i++;
        } else if (c < 0x80) {
            out += s[i++];
        } else {
            size_t n = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : c >= 0xc0 ? 2 : 1;
            std::string ch = s.substr(i, n);
            unsigned code = c & (0x7f >> n);
            for (size_t k = 1; k < ch.size(); k++) code = code << 6 | ((unsigned char)ch[k] & 0x3f);
            auto known = symbols.find(ch);
            if (known != symbols.end()) out += known->second;
            else if (n > 1 && code >= 0xff01 && code <= 0xff5e) out += (char)(code - 0xfee0);  // full width
            else if (code >= 0x660 && code <= 0x669) out += (char)('0' + code - 0x660);        // Arabic digits
            else if (code >= 0x6f0 && code <= 0x6f9) out += (char)('0' + code - 0x6f0);
            else if (code >= 0x966 && code <= 0x96f) out += (char)('0' + code - 0x966);  // Devanagari digits
            else out += ch;
            i += ch.size();
        }
    }
    return out;
}

inline void push_token(AnswerLexer& lx, char kind, const std::string& s, bool space, bool text) {
    lx.tokens.push_back({kind, s, space, text});
}

// One past 1,2,100 at s[i] if its commas cannot all separate thousands, or 0 if they can. A group such as 000 is no item
// of a list, and then the others are not, either.
inline size_t comma_list_end(const std::string& s, size_t i) {
    size_t e = digits_end(s, i), first = s.find_first_not_of('0', i);
    bool number = first < e && e - first <= 3;
    while (e + 1 < s.size() && s[e] == ',' && is_ascii_digit(s[e + 1])) {
        const size_t b = e + 1;
        e = digits_end(s, b);
        if (e - b == 3 && s[b] == '0') return 0;
        number = number && e - b == 3;
    }
    return number ? 0 : e;
}

// Groups of thousands from s[e] on, appended to number, whose digits begin at s[i]; returns one past them. Groups of
// three digits after "," (not inside brackets, where it separates coordinates), "{,}", ",\!", "\,", "\!", "~" or one
// space; the first group has one to three digits and is not 0. Exponents and subscripts have none: 2^3 125.
inline size_t lex_thousands(AnswerLexer& lx, const std::string& s, size_t i, size_t e, std::string& number) {
    size_t zeros = number.find_first_not_of('0');
    if (i >= lx.list_end) lx.list_end = std::max(lx.list_end, comma_list_end(s, i));
    if (zeros == std::string::npos || number.size() - zeros > 3) return e;
    if (!lx.tokens.empty() && strchr("^_X", lx.tokens.back().kind)) return e;
    for (;;) {
        size_t p = e;
        bool comma = p < s.size() && s[p] == ',', bare = false;
        if (text_at(s, p, "{,}")) p += 3;
        else p += comma;
        if (text_at(s, p, "\\!") || text_at(s, p, "\\,")) {
            p += 2;
            while (p < s.size() && s[p] == ' ') p++;
        } else if (comma) {
            bare = true;
        } else if (p == e && (text_at(s, p, " ") || text_at(s, p, "~"))) {
            p++;
        } else if (text_at(s, p, "\\ ") && p == e) {
            p += 2;
        }
        size_t q = digits_end(s, p);
        if (p == e || q != p + 3 || (bare && (lx.brackets > 0 || lx.list_commas || e < lx.list_end))) return e;
        if (!comma && q < s.size() && s[q] == '/') return e;  // 7 345/400
        lx.bare_commas = lx.bare_commas || bare;
        number += s.substr(p, 3);
        e = q;
    }
}

// Decimals from s[e] on, appended to number; returns one past them. Repeating ones (\overline{3}) come after an r.
inline size_t lex_decimals(const std::string& s, size_t e, std::string& number) {
    if (e + 1 >= s.size() || s[e] != '.' || !(is_ascii_digit(s[e + 1]) || s[e + 1] == '\\')) return e;
    size_t q = digits_end(s, e + 1), r = q;
    std::string repeat;
    for (const char* mark : {"\\overline{", "\\bar{", "\\dot{", "\\overline", "\\bar", "\\dot"}) {
        if (!text_at(s, q, mark)) continue;
        size_t b = q + strlen(mark), d = digits_end(s, b);
        bool brace = mark[strlen(mark) - 1] == '{';
        if (d == b || (brace && !text_at(s, d, "}"))) break;
        repeat = s.substr(b, d - b);
        r = d + brace;
        break;
    }
    if (q == e + 1 && repeat.empty()) return e;
    number += "." + s.substr(e + 1, q - e - 1);
    if (!repeat.empty()) number += "r" + repeat;
    return r;
}

// A number at s[i]; returns one past it.
inline size_t lex_number(AnswerLexer& lx, const std::string& s, size_t i, bool space, bool text) {
    size_t e = digits_end(s, i);
    std::string number = s.substr(i, e - i);
    e = lex_thousands(lx, s, i, e, number);
    e = lex_decimals(s, e, number);
    if (number[0] == '.') number = "0" + number;
    if (e < s.size() && (s[e] == 'e' || s[e] == 'E') && number.find('r') == std::string::npos) {
        size_t b = e + 1 + (e + 1 < s.size() && (s[e + 1] == '-' || s[e + 1] == '+')), q = digits_end(s, b);
        if (q > b && q - b <= 3 && (q == s.size() || !is_ascii_letter(s[q]))) {
            number += "e" + s.substr(e + 1, q - e - 1);
            e = q;
        }
    }
    push_token(lx, 'n', number, space, text);
    if (e < s.size() && s[e] == '.') {  // the end of a sentence
        size_t p = e + 1;
        while (p < s.size() && (is_ascii_space(s[p]) || s[p] == '$')) p++;
        if (p == s.size() || strchr("})]\\", s[p])) e++;
        else if (text_at(s, e, "...")) e += 3;
    }
    return e;
}

// Is a run of letters outside \text{} a word, rather than a product of variables?
inline bool looks_like_word(const std::string& run) {
    if (in_word_list(
            " cm mm km kg mg ml mL hr hrs mph ft lb lbs oz mi min sec kmh kph kWh Hz usd USD Rs rs pm am PM AM sq "
            "rad deg cc is of to no us ",
            run))
        return true;
    bool vowel = false, lower = false, foreign = false;
    for (char c : run) {
        vowel = vowel || strchr("aeiouAEIOU", c);
        lower = lower || (c >= 'a' && c <= 'z');
        foreign = foreign || !is_ascii_letter(c);
    }
    return foreign || (run.size() >= 3 && vowel && lower) || (run.size() >= 5 && lower);
}

inline bool is_math_function(const std::string& name) {
    return in_word_list(" sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp sqrt ", name);
}

// functions of a list: gcd(m, n), \max\{a, b\}
inline bool is_list_function(const std::string& name) { return in_word_list(" gcd lcm max min floor ceil abs ", name); }

inline void lex_letters(AnswerLexer& lx, const std::string& run, bool space, bool text) {
    std::string low = run;
    for (char& c : low)
        if (c >= 'A' && c <= 'Z') c += 'a' - 'A';
    if (run.size() == 1 && is_ascii_letter(run[0])) push_token(lx, 'v', run, space, text);
    else if (low == "and" || low == "or") push_token(lx, ',', low, space, text);
    else if (low == "percent" || low == "pct" || low == "percentage") push_token(lx, '%', "%", space, text);
    else if (is_math_function(run)) push_token(lx, 'c', run, space, text);
    else if (run == "pi") push_token(lx, 'c', "pi", space, text);
    else if (low == "infinity" || low == "inf") push_token(lx, 'c', "infty", space, text);
    else if (text || looks_like_word(run) || is_list_function(run)) push_token(lx, 'w', run, space, text);
    else
        for (size_t i = 0; i < run.size(); i++) push_token(lx, 'v', run.substr(i, 1), space && i == 0, text);
}

inline void lex_answer(AnswerLexer& lx, const std::string& s, bool text);

// the token of a command that is one operator, 0: it is none
inline char operator_kind(const std::string& name) {
    // clang-format off
    static const std::map<std::string, char> operators = {
        {"cdot", '*'}, {"times", '*'}, {"ast", '*'}, {"div", '/'}, {"le", 'l'}, {"leq", 'l'}, {"leqslant", 'l'},
        {"ge", 'g'}, {"geq", 'g'}, {"geqslant", 'g'}, {"lt", '<'}, {"gt", '>'}, {"ne", '#'}, {"neq", '#'},
        {"approx", '~'}, {"simeq", '~'}, {"in", 'i'}, {"pm", 'P'}, {"mp", 'M'}, {"cup", 'U'}, {"bigcup", 'U'},
        {"cap", 'I'}, {"setminus", 'D'}, {"backslash", 'D'}, {"colon", ':'}, {"mid", ':'}, {"land", ','},
        {"lor", ','}, {"lvert", '|'}, {"rvert", '|'}, {"vert", '|'}, {"lbrace", 'S'}, {"rbrace", 's'},
        {"langle", 'A'}, {"rangle", 'a'}, {"degree", 'o'}, {"circ", 'o'}, {"deg", 'o'}, {"prime", '\''},
        {"equiv", '='}, {"lbrack", '['}, {"rbrack", ']'}};
    // clang-format on
    auto it = operators.find(name);
    return it == operators.end() ? 0 : it->second;
}

// A command of one character that is no letter, c
inline void lex_symbol(AnswerLexer& lx, char c, bool space, bool text) {
    if (c == '{' || c == '}') {
        lx.brackets += c == '{' ? 1 : -1;
        push_token(lx, c == '{' ? 'S' : 's', "", space, text);
    } else if (c == '%' || c == '|' || c == '_') {
        push_token(lx, c, std::string(1, c), space, text);
    } else if (c == '\\' && lx.matrices > 0) {
        push_token(lx, 'R', "", space, text);
    }
}

// {...} at s[p], which then is one past it; false: there is none
inline bool command_argument(const std::string& s, size_t& p, std::string& content) {
    size_t q = p;
    while (q < s.size() && is_ascii_space(s[q])) q++;
    if (q >= s.size() || s[q] != '{') return false;
    size_t close = matching_brace(s, q, s.size());
    if (close == s.size()) return false;
    content = s.substr(q + 1, close - q - 1);
    p = close + 1;
    return true;
}

// What a command of fonts or boxes holds, at s[p], which then is one past it. The real numbers are an interval.
inline void lex_group(AnswerLexer& lx, const std::string& s, size_t& p, const std::string& name, bool text) {
    std::string content;
    if (name == "R" || (name == "mathbb" && (text_at(s, p, "{R}") || text_at(s, p, " R")))) {
        if (name != "R") p += text_at(s, p, "{R}") ? 3 : 2;
        const char* interval = "(-\\infty,\\infty)";
        for (const char* positive : {"^+", "^{+}", "_+", "_{+}", "_{>0}", "_{> 0}"}) {
            if (!text_at(s, p, positive)) continue;
            p += strlen(positive);
            interval = "(0,\\infty)";
            break;
        }
        lex_answer(lx, interval, false);
    } else if (command_argument(s, p, content) && lx.nesting < 8) {
        bool words =
            !in_word_list(" mathbf mathit mathcal mathfrak boldsymbol pmb underline boxed fbox bm mathbb ", name);
        lx.nesting++;
        lex_answer(lx, content, words || text);
        lx.nesting--;
    }
}

// A command at s[i] (a backslash); returns one past what it used up.
inline size_t lex_command(AnswerLexer& lx, const std::string& s, size_t i, bool space, bool text) {
    size_t p = i + 1;
    while (p < s.size() && is_ascii_letter(s[p])) p++;
    std::string name = s.substr(i + 1, p - i - 1);
    if (name.empty()) {
        if (p == s.size()) return p;
        lex_symbol(lx, s[p], space, text);
        return s[p] ? p + 1 : p;
    }
    auto argument = [&](std::string& content) { return command_argument(s, p, content); };
    std::string content;
    if (name == "left" || name == "right") {
        if (p < s.size() && s[p] == '.') p++;
    } else if (in_word_list(
                   " big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr middle displaystyle textstyle limits"
                   " nolimits quad qquad rm bf it hline text thinspace nonumber ",
                   name) &&
               name != "text") {
    } else if (in_word_list(" hspace vspace phantom color textcolor label tag ", name)) {
        argument(content);
    } else if (in_word_list(" text textbf textit textrm textnormal textsf texttt textup mathrm mathsf mathtt mbox hbox "
                            "operatorname emph"
                            " mathbf mathit mathcal mathfrak boldsymbol pmb underline boxed fbox bm mathbb R ",
                            name)) {
        lex_group(lx, s, p, name, text);
    } else if (name == "begin" || name == "end") {
        argument(content);
        bool matrix = content.find("matrix") != std::string::npos || content == "array";
        if (content == "array" && name == "begin") argument(content);
        if (matrix) push_token(lx, name == "begin" ? 'B' : 'E', content == "vmatrix" ? "det" : "", space, text);
        if (matrix) lx.matrices += name == "begin" ? 1 : -1;
    } else if (char kind = operator_kind(name)) {
        if (kind == 'S' || kind == 'A' || kind == '[') lx.brackets++;
        if (kind == 's' || kind == 'a' || kind == ']') lx.brackets--;
        push_token(lx, kind, kind == ',' ? "and" : "", space, text);
    } else if (in_word_list(" frac dfrac tfrac cfrac nicefrac sfrac ", name)) {
        push_token(lx, 'c', "frac", space, text);
        for (int k = 0; k < 2; k++) {  // \frac12: one digit each
            while (p < s.size() && s[p] == ' ') p++;
            if (p >= s.size() || !is_ascii_digit(s[p])) break;
            push_token(lx, 'n', s.substr(p++, 1), false, text);
        }
    } else if (in_word_list(" binom dbinom tbinom ", name)) {
        push_token(lx, 'c', "binom", space, text);
    } else if (name == "emptyset" || name == "varnothing") {
        push_token(lx, 'c', "emptyset", space, text);
    } else if (is_math_function(name) || in_word_list(" pi infty lfloor rfloor lceil rceil gcd max min lcm ", name)) {
        push_token(lx, 'c', name, space, text);
    } else if (in_word_list(" pmod bmod mod ", name)) {
        push_token(lx, 'c', "mod", space, text);
    } else if (in_word_list(" overline bar vec hat widehat tilde dot ddot overrightarrow overarc widetilde ", name)) {
        bool braced = argument(content);
        push_token(lx, 'v', "\\" + name + (braced ? content : ""), space, text);
    } else {
        if (name.size() > 3 && text_at(name, 0, "var")) name = name.substr(3);
        push_token(lx, 'v', "\\" + name, space, text);
    }
    return p;
}

inline void lex_answer(AnswerLexer& lx, const std::string& s, bool text) {
    bool space = false;
    const size_t outer_list = lx.list_end;
    lx.list_end = 0;
    for (size_t i = 0; i < s.size();) {
        unsigned char c = (unsigned char)s[i];
        char next = i + 1 < s.size() ? s[i + 1] : 0;
        if (is_ascii_space((char)c) || c == '~' || c == '$') {
            space = true;
            i++;
            continue;
        }
        if (is_ascii_digit((char)c) || (c == '.' && is_ascii_digit(next))) {
            i = lex_number(lx, s, i, space, text);
        } else if (is_ascii_letter((char)c) || c >= 0x80) {
            size_t e = i;
            while (e < s.size() && (is_ascii_letter(s[e]) || (unsigned char)s[e] >= 0x80)) e++;
            lex_letters(lx, s.substr(i, e - i), space, text);
            i = e;
        } else if (c == '\\') {
            size_t n = lx.tokens.size(), e = lex_command(lx, s, i, space, text);
            space = n == lx.tokens.size() && (space || (e == i + 2 && next != '!'));
            i = e;
            continue;
        } else {
            std::string two = s.substr(i, 2);
            size_t used = 2;
            if (two == "<=" || two == "=<") push_token(lx, 'l', "", space, text);
            else if (two == ">=") push_token(lx, 'g', "", space, text);
            else if (two == "!=") push_token(lx, '#', "", space, text);
            else if (two == "==") push_token(lx, '=', "", space, text);
            else if (two == "**") push_token(lx, 'X', "", space, text);
            else {
                used = text_at(s, i, "{,}") ? 3 : 1;
                char kind = used == 3 ? ',' : (char)c;
                if (kind == '(' || kind == '[') lx.brackets++;
                if (kind == ')' || kind == ']') lx.brackets--;
                if (kind != '&' || lx.matrices > 0)
                    push_token(lx, strchr("!%&'()*+,-./:;<=>[]^_{|}", kind) && kind ? kind : '?', "", space, text);
            }
            i += used;
        }
        space = false;
    }
    lx.list_end = outer_list;
}
