// Is this answer right? grade(gold, prediction) compares two final answers as mathematics, not as strings.
//
// - Numbers exactly, as fractions of long integers. A decimal also equals an exact value that it approximates to a
//   relative 10^-6 (0.3333333333 is 1/3, 0.33 is not), an integer only if it is closer than half a hundredth as well,
//   so that amounts of money stay exact; two decimals never approximate each other.
// - x% equals x and x/100. Units, currency, degrees and \text{} after a number are ignored; "x = 5" equals 5.
// - Lists and sets without order, tuples and intervals in order with their brackets; \pm is a list of two; unions
//   without order; matrices by entry; an inequality equals the interval it describes.
// - Unions, inequalities and sets of real numbers by what they hold (answer_sets.h).
// - Other expressions by their values at points (answer_values.h; where a root, power or logarithm leaves the real
//   numbers the point does not count). Equations and inequalities up to a constant factor, likewise.
// - Text by its letters, ignoring case.
//
// The trap: a gold answer that cannot be read is a data error. It is `unparsable`, and pays nothing, also when the
// prediction is the same string. Time is bounded by `work`; nothing throws on any bytes.
#pragma once
#include "answer_sets.h"

enum class Verdict { wrong, correct, unparsable };

inline bool equal_answers(AnswerComparison& c, int gold, int pred);

inline bool equal_in_order(AnswerComparison& c, const std::vector<int>& g, const std::vector<int>& p) {
    if (g.size() != p.size()) return false;
    for (size_t i = 0; i < g.size(); i++)
        if (!equal_answers(c, g[i], p[i])) return false;
    return true;
}

// without order; a repeated item of a set counts once, one of a list (`counted`) as often as it stands in the gold answer;
// whoever says the same twice where the gold answer does not is right
inline bool equal_as_sets(AnswerComparison& c, const std::vector<int>& g, const std::vector<int>& p, bool counted) {
    if (counted && g.size() > p.size()) return false;
    for (size_t i = 0; counted && p.size() > g.size() && i < g.size(); i++)
        for (size_t k = 0; k < i; k++)
            if (equal_answers(c, g[i], g[k])) return false;
    if (counted && g.size() == p.size()) {
        std::vector<bool> used(p.size(), false);
        auto take = [&](int x, size_t k) { return !used[k] && equal_answers(c, x, p[k]) && (used[k] = true); };
        for (size_t i = 0; i < g.size(); i++) {
            bool found = take(g[i], i);  // most lists come in the same order
            for (size_t k = 0; k < p.size() && !found; k++) found = k != i && take(g[i], k);
            if (!found) return false;
        }
        return true;
    }
    for (int pass = 0; pass < 2; pass++)
        for (int x : pass ? p : g) {
            bool found = false;
            for (int y : pass ? g : p) found = found || (pass ? equal_answers(c, y, x) : equal_answers(c, x, y));
            if (!found) return false;
        }
    return true;
}

// ---------------------------------------------------------------------------------------------------------------------
// Relations

inline bool is_assignment(const AnswerNode& n) { return n.kind == '=' && n.s == "=" && !part_name(n, 0).empty(); }

// what a named answer is: 5 of "x = 5"
inline int assigned_value(const AnswerComparison& c, int id) {
    const AnswerNode& n = c.nodes[id];
    return is_assignment(n) ? n.kids[1] : id;
}

inline bool equal_bounds(AnswerComparison& c, int a, int b, bool lower) {
    auto infinite = [&](int id) {
        if (id < 0) return true;
        Complex v = fresh_value(c, id, 0);
        return c.saw_infinity && v.real() == (lower ? -INFINITY : INFINITY);
    };
    bool ia = infinite(a), ib = infinite(b);
    return ia || ib ? ia && ib : equal_answers(c, a, b);
}

inline bool equal_intervals(AnswerComparison& c, const AnswerInterval& a, const AnswerInterval& b) {
    return a.open_lo == b.open_lo && a.open_hi == b.open_hi && equal_bounds(c, a.lo, b.lo, true) &&
           equal_bounds(c, a.hi, b.hi, false);
}

// lhs - rhs of the two relations differ by a constant factor: by a positive one if `positive`
inline bool proportional_differences(AnswerComparison& c, int g_lhs, int g_rhs, int p_lhs, int p_rhs, bool positive) {
    Complex factor = 0;
    int agreed = 0;
    choose_points(c, g_lhs, p_lhs);
    const bool whole = !c.variables.empty();
    if (whole || (choose_points(c, g_rhs, p_rhs), !c.variables.empty())) return false;
    for (int point = 0; point < 8; point++) {
        Complex g = fresh_value(c, g_lhs, point), g2 = fresh_value(c, g_rhs, point);
        Complex p = fresh_value(c, p_lhs, point), p2 = fresh_value(c, p_rhs, point);
        double g_scale = std::abs(g) + std::abs(g2), p_scale = std::abs(p) + std::abs(p2);
        g -= g2;
        p -= p2;
        if (!is_finite(g) || !is_finite(p)) continue;
        bool g_zero = std::abs(g) <= 1e-12 * g_scale, p_zero = std::abs(p) <= 1e-12 * p_scale;
        if (g_zero || p_zero) return false;  // an identity
        Complex q = g / p;
        if (agreed == 0) factor = q;
        if (!(std::abs(q - factor) <= 1e-9 * std::abs(factor))) return false;
        agreed++;
    }
    return agreed >= 3 && (!positive || (factor.imag() == 0 && factor.real() > 0));
}

inline bool equal_relations(AnswerComparison& c, int gold, int pred) {
    const AnswerNode &g = c.nodes[gold], &p = c.nodes[pred];
    if (is_assignment(g) && is_assignment(p)) {
        std::string a = part_name(g, 0), b = part_name(p, 0);
        const bool v = c.nodes[g.kids[0]].kind == 'v', w = c.nodes[p.kids[0]].kind == 'v';
        const bool names = a == b || v != w || (!v && equal_answers(c, g.kids[0], p.kids[0]));  // y is f(x), not g(x)
        if (names && equal_answers(c, g.kids[1], p.kids[1])) return true;
    }
    AnswerInterval a, b;
    if (interval_of_inequality(g, a) && interval_of_inequality(p, b) && a.name == b.name && equal_intervals(c, a, b))
        return true;
    if (g.kids.size() != p.kids.size()) return false;
    auto direction = [](char op) { return op == '>' ? '<' : op == 'g' ? 'l' : op; };
    bool g_down = strchr(">g", g.s[0]) != nullptr, p_down = strchr(">g", p.s[0]) != nullptr;
    size_t n = g.s.size();
    for (size_t k = 0; k < n; k++) {
        size_t i = g_down ? n - 1 - k : k, j = p_down ? n - 1 - k : k;
        char op = direction(g.s[i]);
        if (op != direction(p.s[j])) return false;
        bool inequality = op == '<' || op == 'l';
        if (!proportional_differences(c, g.kids[i + g_down], g.kids[i + !g_down], p.kids[j + p_down],
                                      p.kids[j + !p_down], inequality))
            return false;
    }
    return true;
}

// ---------------------------------------------------------------------------------------------------------------------
// Answers

inline std::string folded_letters(const std::string& s) {
    std::string out;
    for (char c : s)
        if (c != ' ') out += (char)(c >= 'A' && c <= 'Z' ? c + 'a' - 'A' : c);
    return out;
}

// The items of "y = 2, x = 1" as the coordinates of a point: in the order of `names` ("x,y"), else by their names. All
// other lists as they are; empty: the names are not those of the list.
inline std::vector<int> coordinates(const AnswerComparison& c, const AnswerNode& list, const std::string& names) {
    std::map<std::string, int> by_name;
    for (int k : list.kids)
        if (is_assignment(c.nodes[k]) && c.nodes[c.nodes[k].kids[0]].kind == 'v')
            by_name[part_name(c.nodes[k], 0)] = c.nodes[k].kids[1];
    if (list.kind != ',' || by_name.size() != list.kids.size()) return list.kids;
    std::vector<int> out;
    if (names.find(',') == std::string::npos) {
        for (const auto& [name, value] : by_name) out.push_back(value);
        return out;
    }
    for (size_t b = 0, e; b <= names.size(); b = e + 1) {
        e = std::min(names.find(',', b), names.size());
        const auto found = by_name.find(names.substr(b, e - b));
        if (found == by_name.end()) return {};
        out.push_back(found->second);
    }
    return out;
}

// [[1,2],[3,4]] against a matrix
inline bool equal_rows(AnswerComparison& c, const AnswerNode& matrix, const AnswerNode& rows, bool gold_is_matrix) {
    std::vector<int> entries;
    int n = 0, m = 0;
    if (sscanf(matrix.s.c_str(), "%dx%d", &n, &m) != 2 || rows.open != '[' || (int)rows.kids.size() != n) return false;
    for (int row : rows.kids) {
        const AnswerNode& r = c.nodes[row];
        if (r.kind != '(' || r.open != '[' || (int)r.kids.size() != m) return false;
        entries.insert(entries.end(), r.kids.begin(), r.kids.end());
    }
    return gold_is_matrix ? equal_in_order(c, matrix.kids, entries) : equal_in_order(c, entries, matrix.kids);
}

// one of them is a tuple
inline bool equal_tuples(AnswerComparison& c, const AnswerNode& g, const AnswerNode& p, const std::string& names) {
    if (g.kind == p.kind) return g.open == p.open && g.close == p.close && equal_in_order(c, g.kids, p.kids);
    if (g.kind == 'M' || p.kind == 'M')
        return equal_rows(c, g.kind == 'M' ? g : p, g.kind == 'M' ? p : g, g.kind == 'M');
    const AnswerNode &tuple = g.kind == '(' ? g : p, &other = g.kind == '(' ? p : g;  // "x = 1, y = 2" for (1,2)
    return tuple.open == '(' && tuple.close == ')' && other.kind == ',' &&
           equal_in_order(c, coordinates(c, g, names), coordinates(c, p, names));
}

inline bool equal_ratios(AnswerComparison& c, const AnswerNode& g, const AnswerNode& p) {
    // 3:4 = 6:8; with a zero (12:00) only if all parts are equal
    if (g.kids.size() != p.kids.size()) return false;
    if (equal_in_order(c, g.kids, p.kids)) return true;
    for (size_t i = 0; i < g.kids.size(); i++) {
        Complex a0 = fresh_value(c, g.kids[0], 0), a = fresh_value(c, g.kids[i], 0);
        Complex b0 = fresh_value(c, p.kids[0], 0), b = fresh_value(c, p.kids[i], 0);
        const double size = std::abs(a * b0);
        if (a == 0.0 || b == 0.0 || !std::isfinite(size) || !(std::abs(a * b0 - b * a0) <= 1e-9 * size)) return false;
    }
    return true;
}

// one of them is a relation, the other is none
inline bool equal_to_relation(AnswerComparison& c, int gold, int pred) {
    const AnswerNode &g = c.nodes[gold], &p = c.nodes[pred];
    const AnswerNode &relation = g.kind == '=' ? g : p, &other = g.kind == '=' ? p : g;
    if (is_assignment(relation)) {
        const AnswerNode &a = c.nodes[assigned_value(c, gold)], &b = c.nodes[assigned_value(c, pred)];
        if ((a.kind == '(') != (b.kind == '(')) return equal_tuples(c, a, b, part_name(relation, 0));
        return equal_answers(c, assigned_value(c, gold), assigned_value(c, pred));
    }
    AnswerInterval a, b;
    if (other.kind != '(' || other.kids.size() != 2 || !interval_of_inequality(relation, a)) return false;
    b.lo = other.kids[0];
    b.hi = other.kids[1];
    b.open_lo = other.open == '(';
    b.open_hi = other.close == ')';
    return equal_intervals(c, a, b);
}

inline bool equal_answers(AnswerComparison& c, int gold, int pred) {
    if ((c.work -= answer_node_work) < 0) return false;
    const AnswerNode &g = c.nodes[gold], &p = c.nodes[pred];
    if (g.kind == '=' && p.kind == '=') return equal_relations(c, gold, pred);
    if (g.kind == '=' || p.kind == '=') return equal_to_relation(c, gold, pred);
    bool g_items = strchr(",{", g.kind), p_items = strchr(",{", p.kind);
    if (g_items && p_items) return equal_as_sets(c, g.kids, p.kids, g.kind == ',' && p.kind == ',');
    if (g.kind == '(' || p.kind == '(') return equal_tuples(c, g, p, "");
    if (g.kind == 'T' || p.kind == 'T') return g.kind == p.kind && folded_letters(g.s) == folded_letters(p.s);
    if (g.kind == 'M' || p.kind == 'M') return g.kind == p.kind && g.s == p.s && equal_in_order(c, g.kids, p.kids);
    if (g.kind == 'b' || p.kind == 'b') return g.kind == p.kind && g.s == p.s;
    if (strchr("UID", g.kind) || strchr("UID", p.kind)) {
        if (g.kind == 'D' && p.kind == 'D') return equal_in_order(c, g.kids, p.kids);
        const AnswerNode& list = g.kind == ',' ? g : p;  // "x < 0 and x > 1" is nothing at all
        if (list.s == "and" && c.nodes[list.kids[0]].kind == '=') return false;
        bool alike = g.kind == p.kind || (g.kind == 'U' && p.kind == ',') || (g.kind == ',' && p.kind == 'U');
        return alike && equal_as_sets(c, g.kids, p.kids, false);
    }
    if (g_items || p_items) {  // a set of one is its element
        const AnswerNode& items = g_items ? g : p;
        if (items.kids.size() != 1) return false;
        return g_items ? equal_answers(c, items.kids[0], pred) : equal_answers(c, gold, items.kids[0]);
    }
    if (g.kind == ':' && p.kind == ':') return equal_ratios(c, g, p);
    return equal_expressions(c, gold, pred);
}

inline bool has_variable(const AnswerComparison& c, int id) {
    if (c.nodes[id].kind == 'v' || c.nodes[id].kind == 'T') return true;
    for (int k : c.nodes[id].kids)
        if (has_variable(c, k)) return true;
    return false;
}

// m, m^2 or 1/s^2, where the first has to be a lone letter behind a number (`weak`)
inline bool is_weak_unit(const AnswerComparison& c, int id, bool first) {
    const AnswerNode* n = &c.nodes[id];
    if (!first && n->kind == '/') n = &c.nodes[n->kids[0]];
    if (n->kind == '^' && c.nodes[n->kids[1]].kind == 'n') n = &c.nodes[n->kids[0]];
    return n->kind == 'v' && (n->weak || (!first && n->s.size() == 1));
}

// "5 m", "2\sqrt{3} m^2", "5 m/s" without what is a unit if it is no variable: the number, or `id` if there is none
inline int without_weak_unit(AnswerComparison& c, int id) {
    const std::vector<int> kids = c.nodes[id].kind == '*' ? c.nodes[id].kids : std::vector<int>();
    size_t k = 0;
    while (k < kids.size() && !has_variable(c, kids[k])) k++;
    if (k == 0 || k == kids.size() || !is_weak_unit(c, kids[k], true)) return id;
    for (size_t i = k + 1; i < kids.size(); i++)
        if (!is_weak_unit(c, kids[i], false)) return id;
    if (k == 1) return kids[0];
    AnswerNode number = c.nodes[id];
    number.kids.resize(k);
    c.nodes.push_back(number);
    return (int)c.nodes.size() - 1;
}

inline std::string folded_words(const ParsedAnswer& a) {
    std::string s;
    for (const AnswerToken& k : a.tokens)
        if (strchr("wv", k.kind)) s += k.s;
    return folded_letters(s);
}

// only words and single letters, perhaps in parentheses
inline bool is_wordy(const ParsedAnswer& a) {
    for (const AnswerToken& k : a.tokens)
        if (!strchr("wv().", k.kind)) return false;
    return true;
}

// \emptyset, \{\}, x \in \emptyset, or words that say that there is no solution
inline bool is_empty_set(const ParsedAnswer& a) {
    const AnswerNode* n = &a.nodes[a.root];
    if (is_assignment(*n)) n = &a.nodes[n->kids[1]];
    if (n->kind == '{' && n->kids.empty()) return true;
    return is_wordy(a) &&
           in_word_list(
               " nosolution nosolutions norealsolution norealsolutions thereisnosolution therearenosolutions"
               " thereisnorealsolution therearenorealsolutions none emptyset theemptyset nullset hasnosolution"
               " hasnosolutions theequationhasnosolution theequationhasnosolutions norealroots norealroot nosuchnumber"
               " nosuchnumbers ",
               folded_words(a));
}

// what is left of `work` is the next comparison's
inline bool compare_parsed(const ParsedAnswer& gold, const ParsedAnswer& pred, int64_t& work) {
    AnswerComparison c;
    struct Rest {
        int64_t &rest, &left;
        ~Rest() { rest = left; }
    } rest{work, c.work};
    c.work = work;
    c.nodes = gold.nodes;
    int base = (int)gold.nodes.size();
    for (AnswerNode n : pred.nodes) {
        for (int& k : n.kids) k += base;
        c.nodes.push_back(n);
    }
    int g = gold.root, p = pred.root + base;
    if (equal_answers(c, g, p) || RealSets(c).equal(g, p)) return true;
    if (gold.decimal_comma >= 0 && c.nodes[p].decimal && equal_answers(c, gold.decimal_comma, p)) return true;
    if (pred.decimal_comma >= 0 && c.nodes[g].decimal && equal_answers(c, g, pred.decimal_comma + base)) return true;
    const bool g_variable = has_variable(c, g), p_variable = has_variable(c, p);
    if (g_variable == p_variable || (g_variable && !gold.plain)) return false;
    const int with = g_variable ? g : p, bare = without_weak_unit(c, with);
    return bare != with && (g_variable ? equal_answers(c, bare, p) : equal_answers(c, g, bare));
}

// the letter of a choice: C, (C), "(C) 12", "C. twelve"; 0 if there is none
inline char choice_letter(const ParsedAnswer& a, bool alone) {
    const std::vector<AnswerToken>& t = a.tokens;
    size_t b = 0;
    while (!alone && b < t.size() && t[b].kind == 'w' &&
           in_word_list(" the correct option choice answer is letter ", folded_letters(t[b].s)))
        b++;
    b += b < t.size() && t[b].kind == '(';
    if (b >= t.size() || t[b].kind != 'v' || t[b].s.size() != 1) return 0;
    char letter = (char)toupper((unsigned char)t[b].s[0]);
    size_t marks = b + 1;
    while (marks < t.size() && strchr(").:", t[marks].kind)) marks++;
    bool marked = marks > b + 1, all = marks == t.size();
    for (size_t i = marks; i + 2 < t.size(); i++)  // "(A) or (B)" is no choice
        if (t[i].kind == '(' && t[i + 1].kind == 'v' && t[i + 1].s[0] <= 'J' && t[i + 2].kind == ')') return 0;
    return letter <= 'J' && (all || (marked && !alone)) ? letter : 0;
}

// 'a' of 7:30 am, 'p' of 7:30 p.m., else 0
inline char half_of_day(const ParsedAnswer& a) {
    if (a.tokens.size() < 2 || a.tokens.back().kind != 'w' || a.tokens[0].kind != 'n') return 0;
    const std::string last = folded_letters(a.tokens.back().s);
    return last == "am" ? 'a' : last == "pm" ? 'p' : 0;
}

// `gold` and `prediction` are final answers, perhaps in $...$ or \boxed{...}: use extract_answer() on longer texts.
inline Verdict grade(const std::string& gold, const std::string& prediction) {
    int64_t work = answer_work;
    ParsedAnswer g = parse_answer(gold);
    if (g.root < 0) return Verdict::unparsable;
    ParsedAnswer p = parse_answer(prediction);
    if (p.root < 0) return Verdict::wrong;
    if (half_of_day(g) && half_of_day(p) && half_of_day(g) != half_of_day(p)) return Verdict::wrong;
    if (g.spelling == p.spelling || compare_parsed(g, p, work)) return Verdict::correct;
    if (is_empty_set(g) && is_empty_set(p)) return Verdict::correct;
    if (is_wordy(g) && is_wordy(p) && folded_words(g) == folded_words(p)) return Verdict::correct;
    char letter = choice_letter(g, true);
    if (letter && letter == choice_letter(p, false)) return Verdict::correct;
    // 100,200,300 as a list, if the other one is a list
    for (const bool gold_side : {true, false}) {
        const ParsedAnswer &with = gold_side ? g : p, &other = gold_side ? p : g;
        if (!with.bare_commas || other.nodes[other.root].kind != ',') continue;
        const ParsedAnswer list = parse_answer(gold_side ? gold : prediction, true);
        if (list.root < 0 || list.nodes[list.root].kids.size() < 3) continue;
        if (gold_side ? compare_parsed(list, p, work) : compare_parsed(g, list, work)) return Verdict::correct;
    }
    return Verdict::wrong;
}

// Does a text read as mathematics or as the letter of a choice? (`boxed` pays a little for that.)
inline bool answer_parses(const std::string& text) {
    ParsedAnswer a = parse_answer(text);
    return a.root >= 0 && (a.nodes[a.root].kind != 'T' || choice_letter(a, false));
}
