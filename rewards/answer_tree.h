// The text of a final answer as a small tree: what grader.h compares.
//
// A recursive descent over the tokens of answer_tokens.h: a list of items, an item a relation, its parts unions or
// expressions. What does not read as mathematics is a text node, so that every answer has a tree.
//
// The trap: recursion on hostile input. A text has at most answer_max_bytes, brackets nest at most answer_max_brackets
// deep, and every function that recurses counts in `depth`. Nothing throws.
#pragma once
#include "answer_tokens.h"
#include "exact.h"

static constexpr size_t answer_max_bytes = 4096;
static constexpr int answer_max_depth = 160;  // of the parser's own calls, about four to a bracket
static constexpr size_t answer_max_brackets = 40;
static constexpr size_t answer_max_items = 128;

// kind: n number; v variable; p pi; e; i; o infinity; + sum; * product; - negative; / inverse; ^ power; f function s;
// ! factorial; % percent; : ratio. T text; ( tuple or interval; { set; , list; M matrix (s: its shape); U I D set
// operations; = relation: parts kids, operators s; b number in a base
struct AnswerNode {
    char kind;
    std::vector<int> kids;
    std::string s;
    ExactRatio q;
    std::string names;         // of a relation, for each part: its name, or empty; separated by newlines
    char open = 0, close = 0;  // of a tuple
    bool decimal = false;      // a decimal point somewhere below
    bool weak = false;         // a variable that may be a unit; a list that came from \pm
};

typedef std::vector<AnswerNode> AnswerNodes;

struct AnswerParser {
    std::vector<AnswerToken> t;
    std::vector<size_t> match;  // [tokens] closing bracket of an opening one
    AnswerNodes& nodes;
    size_t p = 0, end = 0;  // what expr() reads
    int depth = 0, pm = 0, trig = 0;

    explicit AnswerParser(AnswerNodes& out) : nodes(out) {}

    // Every function returns a node, or -1 if the tokens are not what it reads.
    int add(char kind, const std::vector<int>& kids, const std::string& s = "") {
        AnswerNode node;
        node.kind = kind;
        node.kids = kids;
        node.s = s;
        for (int k : kids) node.decimal = node.decimal || nodes[k].decimal;
        nodes.push_back(node);
        return (int)nodes.size() - 1;
    }

    int number(const std::string& text) {
        size_t e = text.find('e'), r = text.find('r'), dot = text.find('.');
        std::string head = text.substr(0, std::min(e, r)), whole = head.substr(0, dot);
        std::string part = dot == std::string::npos ? "" : head.substr(dot + 1);
        ExactRatio q = {exact_from_digits(whole + part), exact_power_of_ten(part.size())};
        if (r != std::string::npos) {  // 0.1r6 = (16 - 1) / 90
            std::string repeat = text.substr(r + 1);
            q.n = exact_add(exact_from_digits(whole + part + repeat), exact_negate(q.n));
            q.d = exact_add(exact_power_of_ten(part.size() + repeat.size()), exact_negate(q.d));
        }
        if (e != std::string::npos) {
            int shift = atoi(text.c_str() + e + 1);
            ExactInt scale = exact_power_of_ten((size_t)std::abs(shift));
            (shift < 0 ? q.d : q.n) = exact_mul(shift < 0 ? q.d : q.n, scale);
        }
        int id = add('n', {});
        nodes[id].q = q;
        nodes[id].decimal =
            dot != std::string::npos && r == std::string::npos && part.find_first_not_of('0') != std::string::npos;
        return id;
    }

    bool match_brackets() {
        static const char opening[] = "([{SAB", closing[] = ")]}saE";
        std::vector<size_t> stack;
        match.assign(t.size(), 0);
        for (size_t i = 0; i < t.size(); i++) {
            const char *o = strchr(opening, t[i].kind), *c = strchr(closing, t[i].kind);
            if (o) stack.push_back(i);
            if (stack.size() > answer_max_brackets) return false;
            if (!c) continue;
            if (stack.empty()) return false;
            size_t open = strchr(opening, t[stack.back()].kind) - opening, close = c - closing;
            if (open != close && (open > 1 || close > 1)) return false;  // "[0,1)" is an interval
            match[stack.back()] = i;
            stack.pop_back();
        }
        return stack.empty();
    }

    bool is(size_t i, size_t hi, char kind) const { return i < hi && t[i].kind == kind; }

    // the next token at bracket depth 0 in [lo, hi) whose kind is one of `kinds`; hi if there is none
    size_t find_top(size_t lo, size_t hi, const char* kinds) const {
        for (size_t i = lo; i < hi; i++) {
            if (strchr(kinds, t[i].kind)) return i;
            if (match[i] > i) i = match[i];
        }
        return hi;
    }

    std::string spelling(size_t lo, size_t hi) const {
        std::string s;
        for (size_t i = lo; i < hi; i++) {
            if (!s.empty()) s += ' ';
            s += t[i].s.empty() ? std::string(1, t[i].kind) : t[i].s;
        }
        return s;
    }

    // Separated items; `set` as inside braces. One item alone is itself.
    int list(size_t lo, size_t hi) {
        if (++depth > answer_max_depth) return depth--, -1;
        const char* separators = find_top(lo, hi, ";") < hi ? ";" : ",";
        std::vector<int> kids;
        std::string joined;  // "or", "and", or else commas
        bool from_pm = false;
        for (size_t i = lo; i <= hi && kids.size() <= answer_max_items;) {
            size_t e = find_top(i, hi, separators);
            if (e < hi && t[e].s.size() > 1) joined = t[e].s;
            if (e > i) {
                int k = *separators == ';' ? list(i, e) : item(i, e);
                if (k < 0) return depth--, -1;
                if (nodes[k].kind == ',' && nodes[k].weak) {
                    kids.insert(kids.end(), nodes[k].kids.begin(), nodes[k].kids.end());
                    from_pm = true;
                } else {
                    const AnswerNode* last = kids.empty() ? nullptr : &nodes[kids.back()];
                    if (last && last->kind == '=' && last->s == "#" && is_constant(k)) {  // x \ne 1, 2
                        const std::string names = last->names;
                        k = named_relation({last->kids[0], k}, "#", names);
                    }
                    kids.push_back(k);
                }
            }
            i = e + 1;
        }
        depth--;
        if (kids.empty() || kids.size() > answer_max_items) return -1;
        if (kids.size() == 1 && !from_pm) return kids[0];
        return add(',', kids, joined);
    }

    // The label (a), (b), ... or (i), (ii), ... or (1), (2), ... of a part at token i: its number from 1 on in the style
    // of that letter, or 0
    int part_label(size_t i, size_t hi, char style) const {
        if (!is(i, hi, '(') || i + 2 >= hi) return 0;
        std::string s;
        for (size_t k = i + 1; k < match[i]; k++) s += t[k].s;
        if (style == 'a') return s.size() == 1 && s[0] >= 'a' && s[0] <= 'h' ? s[0] - 'a' + 1 : 0;
        if (style == '1') return s.size() == 1 && s[0] >= '1' && s[0] <= '9' ? s[0] - '0' : 0;
        static const char* const roman[] = {"i", "ii", "iii", "iv", "v", "vi"};
        for (int k = 0; k < 6; k++)
            if (s == roman[k]) return k + 1;
        return 0;
    }

    // "(a) 5 (b) 7" is the tuple (5, 7); -1: the tokens are no such parts
    int parts(size_t lo, size_t hi) {
        for (char style : {'a', 'i', '1'}) {
            if (part_label(lo, hi, style) != 1) continue;
            std::vector<int> kids;
            size_t from = match[lo] + 1;
            for (size_t i = from; i <= hi; i++) {
                const bool next = i < hi && part_label(i, hi, style) == (int)kids.size() + 2;
                if (next || i == hi) {
                    size_t end_of_part = i;
                    trim(from, end_of_part);
                    const int k = from < end_of_part ? list(from, end_of_part) : -1;
                    if (k < 0 || nodes[k].kind == 'T') return -1;
                    kids.push_back(k);
                    from = i < hi ? match[i] + 1 : hi;
                }
                if (i < hi && match[i] > i) i = match[i];
            }
            if (kids.size() < 2) continue;
            const int tuple = add('(', kids);
            nodes[tuple].open = '(';
            nodes[tuple].close = ')';
            return tuple;
        }
        return -1;
    }

    // Words without a meaning in front of an answer ("the answer is about", "USD") and stray marks at both ends.
    void trim(size_t& lo, size_t& hi) const {
        while (lo < hi) {
            std::string low = t[lo].s;
            for (char& c : low) c = (char)tolower((unsigned char)c);
            bool filler = t[lo].kind == 'w' &&
                          in_word_list(
                              " the final answer ans is are about approximately approx roughly exactly only total"
                              " equals therefore so thus usd rs eur us inr hk ",
                              low);
            bool mark = strchr(".?*X:,;=", t[lo].kind) != nullptr;
            const bool label = t[lo].kind == 'w' && is(lo + 1, hi, ':') && lo + 2 < hi && strchr("n-", t[lo + 2].kind);
            if (!filler && !mark && !label) break;
            if (filler && lo + 1 == hi) break;
            lo++;
        }
        const size_t marked = hi;
        while (hi > lo && strchr(".?*X:,;", t[hi - 1].kind)) hi--;
        const bool cut_off = hi + 2 <= marked && is(hi, marked, '.') && is(hi + 1, marked, '.');  // "2.74 a.."
        if (cut_off && hi > lo + 1 && strchr("vw", t[hi - 1].kind) && t[hi - 1].space && is(hi - 2, hi, 'n')) hi--;
    }

    // One item: a relation, an expression, or text. \pm makes a list of two.
    int item(size_t lo, size_t hi) {
        trim(lo, hi);
        if (lo >= hi) return -1;
        bool braces = strchr("S{", t[lo].kind) && match[lo] == hi - 1;  // \{\pm 3\} is one set
        if (pm == 0 && !braces && std::any_of(t.begin() + (long)lo, t.begin() + (long)hi, [](const AnswerToken& k) {
                return strchr("PM", k.kind);
            })) {
            pm = 1;
            int plus = item(lo, hi);
            pm = -1;
            int minus = item(lo, hi);
            pm = 0;
            if (plus < 0 || minus < 0) return -1;
            int both = add(',', {plus, minus});
            nodes[both].weak = true;
            return both;
        }
        int id = relation(lo, hi);
        return id >= 0 ? id : add('T', {}, spelling(lo, hi));
    }

    // The name that an answer may be given to: x, a_n, f(x), (p,q), AB, V_1:V_2, Area. Empty: not a name.
    std::string name(size_t lo, size_t hi) const {
        std::string s;
        int small = 0, letters = 0;
        if (is(lo, hi, '(') && match[lo] == hi - 1) lo++, hi--;
        for (size_t i = lo; i < hi; i++) {
            char k = t[i].kind;
            if (k == 'v' || k == 'w') {
                small += k == 'v' && t[i].s.size() == 1 && t[i].s[0] >= 'a';
                letters++;
            } else if (k == ':' || k == ',') {
                small = letters = 0;
            } else if (k == '_' || (k == '(' && letters > 0)) {
                size_t b = k == '_' ? i + 1 : i, e = b < hi && match[b] > b ? match[b] : b;
                if (b >= hi || e >= hi) return "";
                s += spelling(i, e + 1);
                i = e;
                continue;
            } else if (k != '\'' && k != 'o') {
                return "";
            }
            if (small > 1 || (small == 1 && letters > 1)) return "";
            s += t[i].s.empty() ? std::string(1, k) : t[i].s;
        }
        s.erase(std::remove_if(s.begin(), s.end(), [](char c) { return strchr(" {}()", c) != nullptr; }), s.end());
        return s;
    }

    int relation(size_t lo, size_t hi) {
        static const char operators[] = "=<>lg#i~";
        std::vector<size_t> cut = {lo};  // where parts begin
        std::string ops;
        for (size_t i = find_top(lo, hi, operators); i < hi; i = find_top(i + 1, hi, operators)) {
            ops += t[i].kind;
            cut.push_back(i + 1);
        }
        cut.push_back(hi + 1);
        auto part_name = [&](size_t k) { return name(cut[k], cut[k + 1] - 1); };
        for (size_t k = 0; k < ops.size(); k++) {  // "x ~ 11" is 11; "\pi ~ 3.14" is \pi
            if (ops[k] != '~') continue;
            if (k == 0 && (cut[1] - 1 == lo || !part_name(0).empty())) {
                ops[k] = '=';
                continue;
            }
            ops.resize(k);
            cut.resize(k + 1);
            cut.push_back(find_top(cut[k], hi, "~") + 1);
        }
        for (char& c : ops)
            if (c == 'i') c = '=';
        if (ops.empty()) return sets(lo, cut.back() - 1);
        if (ops.size() > 3) {
            if (ops.find_first_not_of('=') != std::string::npos) return -1;
        }
        bool equal = ops.find_first_not_of('=') == std::string::npos;
        if (equal && cut[1] - 1 == lo) return sets(cut[ops.size()], cut.back() - 1);  // "= 5"
        if (equal && ops.size() > 1) {                                                // x = 5 + 6 = 11 is x = 11
            cut = {lo, cut[1], cut[ops.size()], cut.back()};
            ops = "=";
            int last = sets(cut[2], cut[3] - 1);
            std::string first = name(lo, cut[1] - 1);
            if (last < 0) return -1;
            if (first.empty() && is_constant(last)) return last;
            int head = first.empty() ? sets(lo, cut[1] - 1) : variable(first);
            return head < 0 ? -1 : named_relation({head, last}, ops, first + "\n\n");
        }
        std::vector<int> kids;
        std::string names;
        for (size_t k = 0; k <= ops.size(); k++) {
            std::string n = part_name(k);
            int kid = sets(cut[k], cut[k + 1] - 1);
            if (kid < 0 && !n.empty()) kid = variable(n);
            if (kid < 0) return -1;
            kids.push_back(kid);
            names += n + "\n";
        }
        if (ops == "=" && names == "\n\n" && is_constant(kids[0]) && is_constant(kids[1])) return kids[1];  // 5+6 = 11
        return named_relation(kids, ops, names);
    }

    int named_relation(const std::vector<int>& kids, const std::string& ops, const std::string& names) {
        int id = add('=', kids, ops);
        nodes[id].names = names;
        return id;
    }

    int variable(const std::string& s) { return add('v', {}, s); }

    bool is_constant(int id) const {  // an expression without variables
        if (!strchr("npeio+*-/^f!%:", nodes[id].kind)) return false;
        for (int k : nodes[id].kids)
            if (!is_constant(k)) return false;
        return true;
    }

    // A \cup B, A \cap B, A \setminus B, else an expression
    int sets(size_t lo, size_t hi) {
        for (const char* op : {"U", "I", "D"}) {
            size_t e = find_top(lo, hi, op);
            if (e >= hi) continue;
            std::vector<int> kids;
            for (size_t i = lo; i <= hi; i = e + 1) {
                e = find_top(i, hi, op);
                int k = ++depth > answer_max_depth ? -1 : sets(i, e);
                depth--;
                if (k < 0 || kids.size() > answer_max_items) return -1;
                kids.push_back(k);
            }
            return add(*op, kids);
        }
        return expr(lo, hi);
    }

    int expr(size_t lo, size_t hi) {
        if (lo >= hi || depth >= answer_max_depth) return -1;
        size_t saved_p = p, saved_end = end;
        p = lo;
        end = hi;
        depth++;
        int id = ratio();
        depth--;
        if (p != end) id = -1;
        p = saved_p;
        end = saved_end;
        return id;
    }

    int ratio() {
        std::vector<int> kids = {sum()};
        while (kids.back() >= 0 && is(p, end, ':') && kids.size() < answer_max_items) {
            p++;
            kids.push_back(sum());
        }
        if (kids.back() < 0) return -1;
        return kids.size() == 1 ? kids[0] : add(':', kids);
    }

    bool sign(bool& negative) {  // reads one sign
        if (p >= end || !strchr("+-PM", t[p].kind)) return false;
        char k = t[p++].kind;
        if (k == '-' || (k == 'P' && pm < 0) || (k == 'M' && pm >= 0)) negative = !negative;
        return true;
    }

    int negate(int id) {
        if (id < 0) return -1;
        if (nodes[id].kind == '%') return add('%', {add('-', {nodes[id].kids[0]})});
        return add('-', {id});
    }

    // a \pmod{m}, or a (mod m): what follows a, which is `id`
    int modulo(int id) {
        const bool in_brackets =
            is(p, end, '(') && p + 1 < end && (t[p + 1].s == "mod" || (is(p + 1, end, 'w') && t[p + 1].s == "modulo"));
        if (id < 0 || !(in_brackets || (is(p, end, 'c') && t[p].s == "mod"))) return id;
        const size_t last = in_brackets ? match[p] : 0;
        p += in_brackets ? 2 : 1;
        if (!in_brackets) {
            const int m = argument();
            return m < 0 ? -1 : add('f', {id, m}, "mod");
        }
        const int m = expr(p, last);
        p = last + 1;
        return m < 0 ? -1 : add('f', {id, m}, "mod");
    }

    int sum() {
        std::vector<int> kids;
        do {
            bool negative = false;
            while (sign(negative)) {}
            int k = term();
            if (k < 0) return -1;
            kids.push_back(negative ? negate(k) : k);
        } while (p < end && strchr("+-PM", t[p].kind));
        return modulo(kids.size() == 1 ? kids[0] : matrix_sum(kids));
    }

    bool starts_factor() const {
        if (p >= end || (is(p, end, '(') && is(p + 1, end, 'w') && t[p + 1].s == "mod")) return false;
        return strchr("v([{AB|", t[p].kind) || (t[p].kind == 'c' && !in_word_list(" rfloor rceil mod ", t[p].s));
    }

    // Is the number at p a factor of what stands before it? After a power, root, factorial, \pi or bracket it is; after
    // a number, a percent or a degree sign it is not; after a variable (x2 may be x_2 or x^2) only with a space or if it
    // has a power itself: n2^n.
    bool number_is_factor(int before) const {
        if (!is(p, end, 'n') || p == 0) return false;
        const AnswerToken& last = t[p - 1];
        if (is(p + 1, end, '\'')) return false;  // minutes of arc
        if (last.kind == 'v') return nodes[before].kind == '^' || t[p].space || is(p + 1, end, '^');
        if (last.kind == 'n') return nodes[before].kind == '^' || (nodes[before].kind == 'f' && t[p].space);
        if (last.kind == ')' && nodes[before].kind == 'n') return false;  // (2) 5 is the second answer
        return strchr(")}]!a|c", last.kind) != nullptr;
    }

    // one past \frac{\text{km}}{\text{h}^2} at token i; i: it is none
    size_t unit_fraction_end(size_t i) const {
        if (!is(i, end, 'c') || t[i].s != "frac") return i;
        size_t q = i + 1;
        for (int k = 0; k < 2; k++) {
            if (!is(q, end, '{') || !(is(q + 1, end, 'w') || (is(q + 1, end, 'v') && t[q + 1].text))) return i;
            if (find_top(q + 1, match[q], "+-*/=<>(") < match[q]) return i;
            q = match[q] + 1;
        }
        return q;
    }

    bool unit_here() const {
        if (p >= end) return false;
        const AnswerToken& k = t[p];
        if (unit_fraction_end(p) > p) return true;
        if (k.kind == '(') return t[p + 1].kind == 'w' && find_top(p + 1, match[p], "n+-*/^vc") == match[p];
        return k.kind == 'w' || (k.kind == 'v' && k.text && k.s != "e" && k.s != "i");
    }

    // "cm", "m/s", "square feet", "^2", "(dollars)" after a number. false: a number or formula follows, so it was no
    // unit.
    bool units() {
        auto skip_power = [&] {
            if (!is(p, end, '^')) return;
            if (is(p + 1, end, '{')) p = match[p + 1] + 1;
            else if (is(p + 1, end, 'n')) p += 2;
            else if (is(p + 1, end, '-') && is(p + 2, end, 'n')) p += 3;
        };
        while (p < end) {
            if (unit_fraction_end(p) > p) {
                p = unit_fraction_end(p);
            } else if (unit_here()) {
                p = t[p].kind == '(' ? match[p] + 1 : p + 1;
                skip_power();
            } else if (strchr("/*.-", t[p].kind) && p + 1 < end &&
                       (t[p + 1].kind == 'w' || (t[p + 1].kind == 'v' && t[p + 1].s.size() == 1))) {
                p += 2;
                skip_power();
            } else {
                break;
            }
        }
        return !(starts_factor() || is(p, end, 'n'));
    }

    // what the word at p multiplies the number before it with: 5 million; null: nothing
    const char* scale_word() const {
        static const std::map<std::string, const char*> scales = {
            {"hundred", "100"}, {"thousand", "1000"}, {"million", "1e6"}, {"billion", "1e9"}, {"trillion", "1e12"}};
        if (p == 0 || !is(p, end, 'w') || !strchr("nw", t[p - 1].kind)) return nullptr;
        const auto known = scales.find(t[p].s);
        return known == scales.end() ? nullptr : known->second;
    }

    int term() {
        std::vector<int> kids;
        for (bool first = true;; first = false) {
            bool inverse = false;
            if (!first && p < end && (t[p].kind == '*' || t[p].kind == '/')) {
                inverse = t[p++].kind == '/';
                bool negative = false;
                while (sign(negative)) {}
                int k = power();
                if (k < 0) return -1;
                if (negative) k = add('-', {k});
                kids.push_back(inverse ? add('/', {k}) : k);
            } else if (first || starts_factor() || number_is_factor(kids.back())) {
                if (!first && unit_here()) {
                    if (!units()) return -1;
                    break;
                }
                const bool function = is(p, end, 'v') && is(p + 1, end, '(') && !t[p + 1].space && !t[p].text &&
                                      in_word_list(" f g h F G ", t[p].s);
                int k = function ? unknown_function() : power();
                if (k < 0) return -1;
                kids.push_back(k);
            } else if (scale_word()) {
                kids.push_back(number(scale_word()));
                p++;
            } else if (unit_here()) {
                if (!units()) return -1;
                break;
            } else {
                break;
            }
        }
        return kids.size() == 1 ? kids[0] : matrix_product(kids);
    }

    // The rows and columns of a matrix node (no determinant); false: it is none
    bool shape(int id, int& rows, int& columns) const {
        return nodes[id].kind == 'M' && sscanf(nodes[id].s.c_str(), "%dx%d", &rows, &columns) == 2;
    }

    // The product of matrices and numbers, multiplied out while it is small; without a matrix a product
    int matrix_product(const std::vector<int>& kids) {
        int id = kids[0], rows = 0, columns = 0, more_rows = 0, more_columns = 0;
        bool any = false;
        for (int k : kids) any = any || shape(k, rows, columns);
        if (!any || kids.size() > 4) return add('*', kids);
        for (size_t k = 1; k < kids.size(); k++) {
            const bool left = shape(id, rows, columns), right = shape(kids[k], more_rows, more_columns);
            if ((left && right && columns != more_rows) || nodes[kids[k]].kind == '/') return add('*', kids);
            std::vector<int> entries;
            if (left && right) {
                if (rows * columns * more_columns > 64) return add('*', kids);
                for (int r = 0; r < rows; r++)
                    for (int c = 0; c < more_columns; c++) {
                        std::vector<int> terms;
                        for (int i = 0; i < columns; i++) {
                            const int a = nodes[id].kids[(size_t)(r * columns + i)];
                            terms.push_back(add('*', {a, nodes[kids[k]].kids[(size_t)(i * more_columns + c)]}));
                        }
                        entries.push_back(add('+', terms));
                    }
                columns = more_columns;
            } else if (left || right) {
                const std::vector<int> old = nodes[left ? id : kids[k]].kids;
                for (int entry : old) entries.push_back(add('*', {left ? kids[k] : id, entry}));
                if (right) rows = more_rows, columns = more_columns;
            }
            id = entries.empty() ? add('*', {id, kids[k]})
                                 : add('M', entries, std::to_string(rows) + "x" + std::to_string(columns));
        }
        return id;
    }

    int matrix_sum(const std::vector<int>& kids) {
        int rows = 0, columns = 0, r = 0, c = 0;
        auto of = [&](int k, int& n, int& m) { return shape(nodes[k].kind == '-' ? nodes[k].kids[0] : k, n, m); };
        if (!of(kids[0], rows, columns) || kids.size() > 8) return add('+', kids);
        for (int k : kids)
            if (!of(k, r, c) || r != rows || c != columns) return add('+', kids);
        std::vector<int> entries;
        for (size_t i = 0; i < (size_t)(rows * columns); i++) {
            std::vector<int> terms;
            for (int k : kids) {
                const bool minus = nodes[k].kind == '-';
                const int entry = nodes[minus ? nodes[k].kids[0] : k].kids[i];
                terms.push_back(minus ? add('-', {entry}) : entry);
            }
            entries.push_back(add('+', terms));
        }
        return add('M', entries, nodes[nodes[kids[0]].kind == '-' ? nodes[kids[0]].kids[0] : kids[0]].s);
    }

    // f(2x) is no product
    int unknown_function() {
        const std::string f = t[p++].s;
        const int id = list(p + 1, match[p]);
        p = match[p] + 1;
        if (id < 0) return -1;
        const std::vector<int> arguments = nodes[id].kind == ',' ? nodes[id].kids : std::vector<int>{id};
        return add('f', arguments, "of " + f);
    }

    int argument() { return is(p, end, 'n') ? number(t[p++].s) : is(p, end, 'v') ? variable(t[p++].s) : primary(); }

    // what a function is applied to: (..), {..}, or the factors that follow: \sin 2x
    int function_argument() {
        if (p < end && strchr("({[|", t[p].kind)) return primary();
        bool negative = false;
        while (sign(negative)) {}
        std::vector<int> kids;
        while (kids.empty() || (starts_factor() && !(t[p].kind == 'c' && is_math_function(t[p].s)))) {
            int k = power();
            if (k < 0) return -1;
            kids.push_back(k);
        }
        int id = kids.size() == 1 ? kids[0] : add('*', kids);
        return negative ? add('-', {id}) : id;
    }

    int function() {
        std::string f = t[p++].s;
        int base = -1, exponent = -1;
        for (int k = 0; k < 2 && p < end; k++) {
            int& to = t[p].kind == '_' ? base : exponent;
            if (t[p].kind != '_' && t[p].kind != '^') break;
            p++;
            to = is(p, end, 'n')                          ? number(t[p++].s)
                 : is(p, end, '-') && is(p + 1, end, 'n') ? negate(number((p += 2, t[p - 1].s)))
                                                          : primary();
            if (to < 0) return -1;
        }
        bool trigonometric = in_word_list(" sin cos tan cot sec csc ", f);
        trig += trigonometric;
        int x = function_argument();
        trig -= trigonometric;
        if (x < 0) return -1;
        if (trigonometric && exponent >= 0 && nodes[exponent].kind == '-') return add('f', {x}, "arc" + f);
        int id = base >= 0 ? add('f', {x, base}, "log") : add('f', {x}, f);
        return exponent >= 0 ? add('^', {id, exponent}) : id;
    }

    int structure() {  // a token of kind c
        const std::string f = t[p].s;
        if (is_math_function(f) && f != "sqrt") return function();
        p++;
        if (f == "pi") return add('p', {});
        if (f == "infty") return add('o', {});
        if (f == "emptyset") return add('{', {});
        if (f == "sqrt") {
            int index = -1;
            if (is(p, end, '[')) {
                index = expr(p + 1, match[p]);
                p = match[p] + 1;
                if (index < 0) return -1;
            }
            int x = is(p, end, 'n') ? number(t[p++].s) : argument();
            if (x < 0) return -1;
            return index < 0 ? add('f', {x}, "sqrt") : add('f', {x, index}, "root");
        }
        if (f == "frac" || f == "binom") {
            int a = argument(), b = a < 0 ? -1 : argument();
            if (b < 0) return -1;
            return f == "binom" ? add('f', {a, b}, "binom") : add('*', {a, add('/', {b})});
        }
        if (is_list_function(f)) return list_function(f);
        if (f == "lfloor" || f == "lceil") {
            size_t close = p;
            while (close < end && t[close].s != (f == "lfloor" ? "rfloor" : "rceil")) close++;
            int x = close < end ? expr(p, close) : -1;
            p = close + 1;
            return x < 0 ? -1 : add('f', {x}, f == "lfloor" ? "floor" : "ceil");
        }
        return -1;
    }

    // gcd(m, n), \max\{a, b\}, floor(x)
    int list_function(const std::string& f) {
        if (p >= end || !strchr("({S[", t[p].kind)) return -1;
        const size_t lo = p + 1, hi = match[p];
        p = hi + 1;
        std::vector<int> kids;
        for (size_t i = lo, e; i <= hi; i = e + 1) {
            e = find_top(i, hi, ",;");
            const int k = expr(i, e);
            if (k < 0 || kids.size() > 16) return -1;
            kids.push_back(k);
        }
        const bool one = f == "floor" || f == "ceil" || f == "abs";
        return one == (kids.size() == 1) ? add('f', kids, f) : -1;
    }

    int matrix(size_t lo, size_t hi, const std::string& type) {
        std::vector<int> kids;
        size_t rows = 0, columns = 0;
        while (lo < hi && t[hi - 1].kind == 'R') hi--;
        for (size_t i = lo; i <= hi; rows++) {
            size_t row_end = find_top(i, hi, "R"), count = 0;
            for (size_t e; i <= row_end; i = e + 1, count++) {
                e = find_top(i, row_end, "&");
                int k = e > i ? item(i, e) : -1;
                if (k < 0 || kids.size() > answer_max_items) return -1;
                kids.push_back(k);
            }
            if (rows > 0 && count != columns) return -1;
            columns = count;
            i = row_end + 1;
        }
        return add('M', kids, type + std::to_string(rows) + "x" + std::to_string(columns));
    }

    int group() {  // a bracket and what is inside
        size_t lo = p + 1, hi = match[p];
        char open = t[p].kind, close = t[hi].kind;
        const std::string type = t[p].s;
        p = hi + 1;
        if (open == 'B') return matrix(lo, hi, type);
        if (lo == hi) return open == 'S' ? add('{', {}) : -1;
        if (open == 'S') {
            size_t bar = find_top(lo, hi, ":|");  // { x | x > 5 }
            if (bar < hi && (!name(lo, bar).empty() || find_top(lo, bar, "i") < bar)) return item(bar + 1, hi);
        }
        int id = list(lo, hi);
        if (id < 0) return -1;
        bool several = find_top(lo, hi, ",;") < hi;
        bool braces = open == 'S' || open == '{';
        if (braces && (several || open == 'S' || nodes[id].kind == ',')) {
            return nodes[id].kind == ',' ? add('{', nodes[id].kids) : add('{', {id});
        }
        if (several && nodes[id].kind == ',') {
            int tuple = add('(', nodes[id].kids);
            nodes[tuple].open = open == 'A' ? '(' : open;
            nodes[tuple].close = close == 'a' ? ')' : close;
            return tuple;
        }
        return nodes[id].kind == 'T' ? -1 : id;
    }

    int primary() {
        if (p >= end || depth >= answer_max_depth) return -1;
        depth++;
        int id = -1;
        char k = t[p].kind;
        if (k == 'n') {
            std::string s = t[p++].s;
            id = number(s);
            bool whole = s.find_first_not_of("0123456789") == std::string::npos;
            bool integer[3];
            for (int j = 0; j < 3; j++) integer[j] = is(p + (size_t)j, end, j == 1 ? '/' : 'n');
            if (whole && integer[0] && integer[1] && integer[2] && t[p].space) {  // 7 3/4
                int fraction = add('*', {number(t[p].s), add('/', {number(t[p + 2].s)})});
                p += 3;
                id = add('+', {id, fraction});
            } else if (whole && is(p, end, 'c') && t[p].s == "frac" && unit_fraction_end(p) == p) {  // 1\frac{3}{4}
                int fraction = structure();
                if (fraction < 0) return depth--, -1;
                int inverse = nodes[fraction].kids[1];
                bool mixed = nodes[nodes[fraction].kids[0]].kind == 'n' && nodes[nodes[inverse].kids[0]].kind == 'n';
                id = add(mixed ? '+' : '*', {id, fraction});
            } else if (is(p, end, '_')) {  // 204_5
                p++;
                size_t b = p;
                bool braces = is(b, end, '{');
                size_t e = braces ? match[b] : b + 1;
                if (e > end || !is(b + braces, end, 'n')) return depth--, -1;
                id = add('b', {}, s + "_" + t[b + braces].s);
                p = braces ? e + 1 : e;
            }
        } else if (k == 'v') {
            std::string s = t[p].s;
            bool weak = t[p].weak;
            p++;
            bool plain = !is(p, end, '_');
            id = plain && s == "e" ? add('e', {}) : plain && s == "i" ? add('i', {}) : variable(s);
            nodes[id].weak = weak;
        } else if (k == 'c') {
            id = structure();
        } else if (k == '|') {
            size_t close = find_top(p + 1, end, "|");
            int x = close < end ? expr(p + 1, close) : -1;
            p = close + 1;
            if (x >= 0) id = add('f', {x}, "abs");
        } else if (strchr("([{SAB", k)) {
            id = group();
        }
        depth--;
        return id;
    }

    // a primary with its subscripts, powers and marks
    int power() {
        if (depth >= answer_max_depth) return -1;
        depth++;
        int id = primary(), exponent = -1;
        for (int marks = 0; id >= 0 && p < end && marks < 8; marks++) {
            char k = t[p].kind;
            if (k == '_' && nodes[id].kind == 'v') {
                size_t e = p + 1 < end && match[p + 1] > p + 1 ? match[p + 1] : p + 1;
                if (e >= end) id = -1;
                else nodes[id].s += "_" + subscript(p + 1, e + 1);
                p = e + 1;
            } else if (k == '\'') {
                if (nodes[id].kind == 'v') nodes[id].s += "'";
                p++;
            } else if (k == 'o' || (k == '^' && degree_sign())) {
                p = k == 'o' ? p + 1 : is(p + 1, end, '{') ? match[p + 1] + 1 : p + 2;
                if (is(p, end, 'v') && (t[p].s == "C" || t[p].s == "F")) p++;
                if (trig > 0) id = add('*', {id, add('p', {}), add('/', {number("180")})});
            } else if (k == 'w' && t[p - 1].kind == 'n' && (t[p].s == "squared" || t[p].s == "cubed")) {
                if (exponent >= 0) return depth--, -1;
                exponent = number(t[p++].s == "squared" ? "2" : "3");
            } else if (k == '^' || k == 'X') {
                p++;
                bool negative = false;
                while (sign(negative)) {}
                int e = is(p, end, 'n') ? number(t[p++].s) : primary();
                if (e >= 0 && (is(p, end, '^') || is(p, end, 'X')) && exponent < 0) {  // 2^2^3
                    p++;
                    int upper = power();
                    e = upper < 0 ? -1 : add('^', {e, upper});
                }
                if (e < 0 || exponent >= 0) id = -1;
                else exponent = negative ? add('-', {e}) : e;
            } else if (k == '!') {
                const bool twice = is(p + 1, end, '!') && !t[p + 1].space;  // 5!! = 5 * 3 * 1
                if (twice && is(p + 2, end, '!') && !t[p + 2].space) return depth--, -1;
                id = add('!', {exponent >= 0 ? add('^', {id, exponent}) : id}, twice ? "!!" : "");
                exponent = -1;
                p += twice ? 2 : 1;
            } else if (k == '%') {
                id = add('%', {exponent >= 0 ? add('^', {id, exponent}) : id});
                exponent = -1;
                p++;
            } else {
                break;
            }
        }
        depth--;
        return id >= 0 && exponent >= 0 ? add('^', {id, exponent}) : id;
    }

    bool degree_sign() const {
        return is(p + 1, end, 'o') || (is(p + 1, end, '{') && is(p + 2, end, 'o') && match[p + 1] == p + 3);
    }

    std::string subscript(size_t lo, size_t hi) const {
        std::string s;
        for (size_t i = lo; i < hi; i++)
            if (t[i].kind != '{' && t[i].kind != '}') s += t[i].s.empty() ? std::string(1, t[i].kind) : t[i].s;
        return s;
    }
};
