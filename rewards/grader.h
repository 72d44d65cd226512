// Is this answer right? grade(gold, prediction) compares two final answers as mathematics, not as strings.
//
// - Numbers exactly, as fractions of long integers. A decimal also equals an exact value that it approximates to a
//   relative 10^-6 (0.3333333333 is 1/3, 0.33 is not), an integer only if it is closer than half a hundredth as well,
//   so that amounts of money stay exact; two decimals never approximate each other.
// - x% equals x and x/100. Units, currency, degrees and \text{} after a number are ignored; "x = 5" equals 5.
// - Lists and sets without order, tuples and intervals in order with their brackets; \pm is a list of two; unions
//   without order; matrices by entry; an inequality equals the interval it describes.
// - Other expressions by their values at a few points (complex doubles, relative 10^-9; where a root, power or
//   logarithm leaves the real numbers the point does not count). Equations and inequalities up to a constant factor,
//   likewise.
// - Text by its letters, ignoring case.
//
// The trap: a gold answer that cannot be read is a data error. It is `unparsable`, and pays nothing, also when the
// prediction is the same string. Time is bounded by `work`; nothing throws on any bytes.
#pragma once
#include <complex>
#include "answer_tree.h"

enum class Verdict { wrong, correct, unparsable };

typedef std::complex<double> Complex;

struct AnswerComparison {
    AnswerNodes nodes;        // of both answers
    int64_t work = 20000000;  // limb products and visited nodes left
    // of the evaluation in progress
    int point = 0;
    bool log_base_ten = false, saw_log = false;
    bool left_reals = false, saw_infinity = false, saw_variable = false;
    double scale = 0;  // largest intermediate value
};

// the value of a variable at a point: small at the first three, up to 13 at the next two (\lfloor x/5 \rfloor is not
// 0), of both signs at the others
inline double variable_value(const std::string& name, int point) {
    uint64_t h = 1469598103934665603u + (uint64_t)point * 0x9e3779b97f4a7c15u;  // FNV-1a, then the splitmix64 finalizer
    for (char c : name) h = (h ^ (unsigned char)c) * 1099511628211u;
    h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9u;
    h = (h ^ (h >> 27)) * 0x94d049bb133111ebu;
    h ^= h >> 31;
    double u = (double)(h >> 12) * 0x1p-52;
    if (point == 3 || point == 4) return 2 + 11 * u;
    return (point > 4 && (h & 1) ? -1 : 1) * (0.3 + 1.9 * u);
}

// The exact value; false: it has none (variables, roots) or it is too long.
inline bool exact_value(AnswerComparison& c, int id, ExactRatio& r) {
    const AnswerNode& n = c.nodes[id];
    ExactRatio a, b;
    int v = 0, w = 0;
    if (--c.work < 0) return false;
    if (n.kind == 'n') {
        r = n.q;
        return true;
    }
    if (!strchr("-/+*:^!%f", n.kind) || n.kids.empty() || !exact_value(c, n.kids[0], a)) return false;
    if (n.kind == '-') {
        r = {exact_negate(a.n), a.d};
        return true;
    }
    if (n.kind == '/') return ratio_inverse(a, r);
    if (n.kind == '%') return ratio_mul(a, {exact_small(1), exact_small(100)}, r, c.work);
    if (n.kind == '+' || n.kind == '*') {
        for (size_t i = 1; i < n.kids.size(); i++) {
            if (!exact_value(c, n.kids[i], b)) return false;
            if (!(n.kind == '+' ? ratio_add(a, b, a, c.work) : ratio_mul(a, b, a, c.work))) return false;
        }
        r = a;
        return true;
    }
    if (n.kind == '!') {
        if (!ratio_to_int(a, 300, v) || v < 0) return false;
        r = {exact_small(1), exact_small(1)};
        for (int k = 2; k <= v; k++)
            if (!ratio_mul(r, {exact_small((uint32_t)k), exact_small(1)}, r, c.work)) return false;
        return true;
    }
    if (n.kind == 'f' && n.s == "abs") {
        r = a;
        r.n.neg = false;
        return true;
    }
    if (n.kids.size() != 2 || !exact_value(c, n.kids[1], b)) return false;
    if (n.kind == ':') return ratio_inverse(b, b) && ratio_mul(a, b, r, c.work);
    if (n.kind == '^') return ratio_to_int(b, 4000, v) && ratio_power(a, v, r, c.work);
    if (n.s != "binom" || !ratio_to_int(a, 1000, v) || !ratio_to_int(b, 1000, w) || w < 0 || v < w) return false;
    r = {exact_small(1), exact_small(1)};
    for (int k = 1; k <= w; k++)
        if (!ratio_mul(r, {exact_small((uint32_t)(v - w + k)), exact_small((uint32_t)k)}, r, c.work)) return false;
    return true;
}

inline Complex function_value(AnswerComparison& c, const AnswerNode& n, Complex x, Complex y) {
    const double pi = 3.14159265358979323846;
    const std::string& f = n.s;
    bool real = x.imag() == 0;
    if (real) x = x.real();  // +0: a negative zero takes the other branch of the square root
    if (f == "sqrt" || f == "root") {
        double index = f == "sqrt" ? 2 : y.real();
        bool odd = std::fmod(index, 2) == 1;
        if (real && x.real() < 0 && odd) return -std::pow(-x.real(), 1 / index);
        c.left_reals = c.left_reals || (real && x.real() < 0);
        if (f == "sqrt") return std::sqrt(x);
        return real && x.real() >= 0 ? Complex(std::pow(x.real(), 1 / index)) : std::pow(x, 1 / index);
    }
    if (f == "exp") return std::exp(x);
    if (f == "ln" || f == "lg" || f == "log") {
        c.left_reals = c.left_reals || (real && x.real() < 0);
        bool based = n.kids.size() == 2;
        c.saw_log = c.saw_log || (f == "log" && !based);
        Complex base = based ? std::log(y) : f == "lg" || (f == "log" && c.log_base_ten) ? std::log(10.0) : 1.0;
        return (real && x.real() > 0 ? Complex(std::log(x.real())) : std::log(x)) / base;
    }
    if (f == "sin") return real ? std::sin(x.real()) : std::sin(x);
    if (f == "cos") return real ? std::cos(x.real()) : std::cos(x);
    if (f == "tan") return std::sin(x) / std::cos(x);
    if (f == "cot") return std::cos(x) / std::sin(x);
    if (f == "sec") return 1.0 / std::cos(x);
    if (f == "csc") return 1.0 / std::sin(x);
    if (f == "arcsin") return real ? Complex(std::asin(x.real())) : std::asin(x);
    if (f == "arccos") return real ? Complex(std::acos(x.real())) : std::acos(x);
    if (f == "arctan") return real ? Complex(std::atan(x.real())) : std::atan(x);
    if (f == "arccot") return real ? Complex(pi / 2 - std::atan(x.real())) : std::atan(1.0 / x);
    if (f == "arcsec") return std::acos(1.0 / x);
    if (f == "arccsc") return std::asin(1.0 / x);
    if (f == "sinh") return std::sinh(x);
    if (f == "cosh") return std::cosh(x);
    if (f == "tanh") return std::tanh(x);
    if (f == "abs") return std::abs(x);
    if (f == "floor") return std::floor(x.real());
    if (f == "ceil") return std::ceil(x.real());
    if (f == "binom")
        return std::exp(std::lgamma(x.real() + 1) - std::lgamma(y.real() + 1) - std::lgamma(x.real() - y.real() + 1));
    return NAN;
}

inline Complex power_value(AnswerComparison& c, Complex x, Complex y) {
    if (x.imag() == 0) x = x.real();  // +0, as in function_value
    if (x.imag() == 0 && y.imag() == 0) {
        if (x.real() >= 0 || y.real() == std::floor(y.real())) return std::pow(x.real(), y.real());
        c.left_reals = true;
    } else if (y.imag() == 0 && y.real() == std::floor(y.real()) && std::abs(y.real()) <= 64) {  // i^2 is -1 exactly
        Complex r = 1;
        for (int k = (int)std::abs(y.real()); k > 0; k--) r *= x;
        return y.real() < 0 ? 1.0 / r : r;
    }
    return std::pow(x, y);
}

// The value of an expression at c.point. NaN: it has none.
inline Complex point_value(AnswerComparison& c, int id) {
    const AnswerNode& n = c.nodes[id];
    if (--c.work < 0) return NAN;
    Complex v = NAN;
    auto kid = [&](size_t k) { return point_value(c, n.kids[k]); };
    switch (n.kind) {
        case 'n':
            v = ratio_to_double(n.q);
            break;
        case 'p':
            v = 3.14159265358979323846;
            break;
        case 'e':
            v = 2.71828182845904523536;
            break;
        case 'i':
            v = Complex(0, 1);
            break;
        case 'v':
            c.saw_variable = true;
            v = variable_value(n.s, c.point);
            break;
        case 'o':
            c.saw_infinity = true;
            return INFINITY;
        case '+':
            v = 0;
            for (size_t k = 0; k < n.kids.size(); k++) v += kid(k);
            break;
        case '*':
            v = 1;
            for (size_t k = 0; k < n.kids.size(); k++) v *= kid(k);
            break;
        case '-':
            v = -kid(0);
            break;
        case '/':
            v = 1.0 / kid(0);
            break;
        case ':':
            if (n.kids.size() == 2) v = kid(0) / kid(1);
            break;
        case '%':
            v = kid(0) / 100.0;
            break;
        case '!':
            v = std::tgamma(kid(0).real() + 1);
            break;
        case '^':
            v = power_value(c, kid(0), kid(1));
            break;
        case 'f':
            v = function_value(c, n, kid(0), n.kids.size() > 1 ? kid(1) : 0);
            break;
        default:
            break;
    }
    c.scale = std::max(c.scale, std::abs(v));
    return v;
}

inline bool is_finite(Complex z) { return std::isfinite(z.real()) && std::isfinite(z.imag()); }

// a value at a point, without what earlier points left behind
inline Complex fresh_value(AnswerComparison& c, int id, int point) {
    c.point = point;
    c.left_reals = c.saw_infinity = c.saw_variable = false;
    c.scale = 0;
    return point_value(c, id);
}

// Do two expressions agree at every point where both have a value? At least two such points are asked for if they have
// variables. Where a value leaves the real numbers at a negative argument the point does not count.
inline bool equal_at_points(AnswerComparison& c, int gold, int pred) {
    double tolerance = c.nodes[gold].decimal || c.nodes[pred].decimal ? 1e-6 : 1e-9;
    int agreed = 0;
    for (int point = 0; point < 8; point++) {
        Complex a = fresh_value(c, gold, point);
        bool reals = !c.left_reals, variables = c.saw_variable, infinite = c.saw_infinity;
        double scale = c.scale;
        Complex b = fresh_value(c, pred, point);
        scale = std::max(scale, c.scale);
        reals = reals && !c.left_reals;
        variables = variables || c.saw_variable;
        if (!variables && infinite && c.saw_infinity) return std::isinf(a.real()) && a.real() == b.real();
        if (!is_finite(a) || !is_finite(b) || !std::isfinite(scale)) {
            if (variables) continue;
            return false;
        }
        if (point >= 5 && !reals) continue;
        double noise = std::min(1e-13 * scale, 1e-9);  // capped, or 100! would equal anything
        if (!(std::abs(a - b) <= tolerance * std::max(std::abs(a), std::abs(b)) + noise)) return false;
        if (!variables) return true;
        agreed++;
    }
    return agreed >= 2;
}

inline bool equal_expressions(AnswerComparison& c, int gold, int pred) {
    const AnswerNode &g = c.nodes[gold], &p = c.nodes[pred];
    if (g.kind == '%' && p.kind == '%') return equal_expressions(c, g.kids[0], p.kids[0]);
    if (g.kind == '%' && equal_expressions(c, g.kids[0], pred)) return true;
    if (p.kind == '%' && equal_expressions(c, gold, p.kids[0])) return true;
    ExactRatio a, b;
    bool exact_gold = exact_value(c, gold, a), exact_pred = exact_value(c, pred, b);
    if (exact_gold && exact_pred) {
        c.work -= (int64_t)(a.n.limb.size() + a.d.limb.size() + 1) * (int64_t)(b.n.limb.size() + b.d.limb.size() + 1);
        if (c.work < 0) return false;
        if (ratio_equal(a, b)) return true;
        if (g.decimal == p.decimal) return false;
        int small = 0;
        const ExactRatio &exact = g.decimal ? b : a, &decimal = g.decimal ? a : b;
        bool integer = exact.d.limb.size() == 1 && exact.d.limb[0] == 1;
        integer = integer || ratio_to_int(exact, 1000000000, small);
        return ratio_near(decimal, exact, integer);
    }
    c.log_base_ten = c.saw_log = false;
    if (equal_at_points(c, gold, pred)) return true;
    c.log_base_ten = c.saw_log;
    bool equal = c.log_base_ten && equal_at_points(c, gold, pred);
    c.log_base_ten = false;
    return equal;
}

inline bool equal_answers(AnswerComparison& c, int gold, int pred);

inline bool equal_in_order(AnswerComparison& c, const std::vector<int>& g, const std::vector<int>& p) {
    if (g.size() != p.size()) return false;
    for (size_t i = 0; i < g.size(); i++)
        if (!equal_answers(c, g[i], p[i])) return false;
    return true;
}

// without order; a repeated item counts once
inline bool equal_as_sets(AnswerComparison& c, const std::vector<int>& g, const std::vector<int>& p) {
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

inline std::string part_name(const AnswerNode& relation, size_t part) {
    size_t b = 0;
    for (; part > 0; part--) b = relation.names.find('\n', b) + 1;
    return relation.names.substr(b, relation.names.find('\n', b) - b);
}

inline bool is_assignment(const AnswerNode& n) { return n.kind == '=' && n.s == "=" && !part_name(n, 0).empty(); }

// what a named answer is: 5 of "x = 5"
inline int assigned_value(const AnswerComparison& c, int id) {
    const AnswerNode& n = c.nodes[id];
    return is_assignment(n) ? n.kids[1] : id;
}

struct AnswerInterval {
    int lo = -1, hi = -1;  // nodes; -1 is infinite
    bool open_lo = true, open_hi = true;
    std::string name;
};

// x > 5, 5 < x, 2 <= x < 7 as intervals
inline bool interval_of_inequality(const AnswerNode& n, AnswerInterval& v) {
    if (n.kind != '=' || n.kids.size() > 3) return false;
    bool up = n.s.find_first_not_of("<l") == std::string::npos, down = n.s.find_first_not_of(">g") == std::string::npos;
    if (!up && !down) return false;
    size_t middle = n.kids.size() == 3 ? 1 : part_name(n, 0).empty() ? 1 : 0;
    v.name = part_name(n, middle);
    if (v.name.empty()) return false;
    for (size_t k = 0; k < n.kids.size(); k++) {
        if (k == middle) continue;
        char op = n.s[k < middle ? k : k - 1];
        bool strict = op == '<' || op == '>', lower = (k < middle) == up;
        (lower ? v.lo : v.hi) = n.kids[k];
        (lower ? v.open_lo : v.open_hi) = strict;
    }
    return true;
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
        bool variables = c.nodes[g.kids[0]].kind == 'v' && c.nodes[p.kids[0]].kind == 'v';
        if ((a == b || !variables) && equal_answers(c, g.kids[1], p.kids[1])) return true;
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

inline bool equal_answers(AnswerComparison& c, int gold, int pred) {
    if (--c.work < 0) return false;
    const AnswerNode &g = c.nodes[gold], &p = c.nodes[pred];
    if (g.kind == '=' && p.kind == '=') return equal_relations(c, gold, pred);
    if (g.kind == '=' || p.kind == '=') {
        if (is_assignment(g) || is_assignment(p))
            return equal_answers(c, assigned_value(c, gold), assigned_value(c, pred));
        const AnswerNode &relation = g.kind == '=' ? g : p, &other = g.kind == '=' ? p : g;
        AnswerInterval a, b;
        if (other.kind != '(' || other.kids.size() != 2 || !interval_of_inequality(relation, a)) return false;
        b.lo = other.kids[0];
        b.hi = other.kids[1];
        b.open_lo = other.open == '(';
        b.open_hi = other.close == ')';
        return equal_intervals(c, a, b);
    }
    bool g_items = strchr(",{", g.kind), p_items = strchr(",{", p.kind);
    if (g_items && p_items) return equal_as_sets(c, g.kids, p.kids);
    if (g.kind == '(' || p.kind == '(') {
        if (g.kind == p.kind) return g.open == p.open && g.close == p.close && equal_in_order(c, g.kids, p.kids);
        const AnswerNode &tuple = g.kind == '(' ? g : p, &other = g.kind == '(' ? p : g;  // "x = 1, y = 2" for (1,2)
        return tuple.open == '(' && tuple.close == ')' && other.kind == ',' && equal_in_order(c, g.kids, p.kids);
    }
    if (g.kind == 'T' || p.kind == 'T') return g.kind == p.kind && folded_letters(g.s) == folded_letters(p.s);
    if (g.kind == 'M' || p.kind == 'M') return g.kind == p.kind && g.s == p.s && equal_in_order(c, g.kids, p.kids);
    if (g.kind == 'b' || p.kind == 'b') return g.kind == p.kind && g.s == p.s;
    if (strchr("UID", g.kind) || strchr("UID", p.kind)) {
        if (g.kind == 'D' && p.kind == 'D') return equal_in_order(c, g.kids, p.kids);
        bool alike = g.kind == p.kind || (g.kind == 'U' && p.kind == ',') || (g.kind == ',' && p.kind == 'U');
        return alike && equal_as_sets(c, g.kids, p.kids);
    }
    if (g_items || p_items) {  // a set of one is its element
        const AnswerNode& items = g_items ? g : p;
        if (items.kids.size() != 1) return false;
        return g_items ? equal_answers(c, items.kids[0], pred) : equal_answers(c, gold, items.kids[0]);
    }
    if (g.kind == ':' && p.kind == ':') {  // 3:4 = 6:8; with a zero (12:00) only if all parts are equal
        if (g.kids.size() != p.kids.size()) return false;
        if (equal_in_order(c, g.kids, p.kids)) return true;
        for (size_t i = 0; i < g.kids.size(); i++) {
            Complex a0 = fresh_value(c, g.kids[0], 0), a = fresh_value(c, g.kids[i], 0);
            Complex b0 = fresh_value(c, p.kids[0], 0), b = fresh_value(c, p.kids[i], 0);
            const double size = std::abs(a * b0);
            if (a == 0.0 || b == 0.0 || !std::isfinite(size) || !(std::abs(a * b0 - b * a0) <= 1e-9 * size))
                return false;
        }
        return true;
    }
    return equal_expressions(c, gold, pred);
}

// "5 m" against "5": the lone letter is a unit
inline int without_weak_unit(const AnswerComparison& c, int id) {
    const AnswerNode& n = c.nodes[id];
    bool unit = n.kind == '*' && n.kids.size() == 2 && c.nodes[n.kids[1]].weak && c.nodes[n.kids[0]].kind != 'v';
    return unit ? n.kids[0] : id;
}

inline bool has_variable(const AnswerComparison& c, int id) {
    if (c.nodes[id].kind == 'v' || c.nodes[id].kind == 'T') return true;
    for (int k : c.nodes[id].kids)
        if (has_variable(c, k)) return true;
    return false;
}

inline bool compare_parsed(const ParsedAnswer& gold, const ParsedAnswer& pred) {
    AnswerComparison c;
    c.nodes = gold.nodes;
    int base = (int)gold.nodes.size();
    for (AnswerNode n : pred.nodes) {
        for (int& k : n.kids) k += base;
        c.nodes.push_back(n);
    }
    int g = gold.root, p = pred.root + base;
    if (equal_answers(c, g, p)) return true;
    if (gold.decimal_comma >= 0 && c.nodes[p].decimal && equal_answers(c, gold.decimal_comma, p)) return true;
    if (pred.decimal_comma >= 0 && c.nodes[g].decimal && equal_answers(c, g, pred.decimal_comma + base)) return true;
    if (!has_variable(c, g)) return without_weak_unit(c, p) != p && equal_answers(c, g, without_weak_unit(c, p));
    if (!has_variable(c, p)) return without_weak_unit(c, g) != g && equal_answers(c, without_weak_unit(c, g), p);
    return false;
}

// the letter of a choice: C, (C), "(C) 12", "C. twelve"; 0 if there is none
inline char choice_letter(const ParsedAnswer& a, bool alone) {
    const std::vector<AnswerToken>& t = a.tokens;
    size_t b = !t.empty() && t[0].kind == '(';
    if (b >= t.size() || t[b].kind != 'v' || t[b].s.size() != 1) return 0;
    char letter = (char)toupper((unsigned char)t[b].s[0]);
    size_t marks = b + 1;
    while (marks < t.size() && strchr(").:", t[marks].kind)) marks++;
    bool marked = marks > b + 1, all = marks == t.size();
    return letter <= 'J' && (all || (marked && !alone)) ? letter : 0;
}

// only words and single letters, perhaps in parentheses
inline bool is_wordy(const ParsedAnswer& a) {
    for (const AnswerToken& k : a.tokens)
        if (!strchr("wv().", k.kind)) return false;
    return true;
}

inline std::string folded_words(const ParsedAnswer& a) {
    std::string s;
    for (const AnswerToken& k : a.tokens)
        if (strchr("wv", k.kind)) s += k.s;
    return folded_letters(s);
}

// `gold` and `prediction` are final answers, perhaps in $...$ or \boxed{...}: use extract_answer() on longer texts.
inline Verdict grade(const std::string& gold, const std::string& prediction) {
    ParsedAnswer g = parse_answer(gold);
    if (g.root < 0) return Verdict::unparsable;
    ParsedAnswer p = parse_answer(prediction);
    if (p.root < 0) return Verdict::wrong;
    if (g.spelling == p.spelling || compare_parsed(g, p)) return Verdict::correct;
    if (is_wordy(g) && is_wordy(p) && folded_words(g) == folded_words(p)) return Verdict::correct;
    char letter = choice_letter(g, true);
    if (letter && letter == choice_letter(p, false)) return Verdict::correct;
    // 100,200,300 as a list, if the other one is a list of as many
    ParsedAnswer &with = g.bare_commas ? g : p, &other = g.bare_commas ? p : g;
    if (with.bare_commas && with.nodes[with.root].kind != ',' && other.nodes[other.root].kind == ',' &&
        other.nodes[other.root].kids.size() >= 3) {
        with = parse_answer(g.bare_commas ? gold : prediction, true);
        if (compare_parsed(g, p)) return Verdict::correct;
    }
    return Verdict::wrong;
}

// Does a text read as mathematics or as the letter of a choice? (`boxed` pays a little for that.)
inline bool answer_parses(const std::string& text) {
    ParsedAnswer a = parse_answer(text);
    return a.root >= 0 && (a.nodes[a.root].kind != 'T' || choice_letter(a, false));
}
