// The value of an expression: exactly, as a fraction, or at points that stand for its variables.
//
// Two expressions are equal if they agree wherever both have a value: at a few points of complex doubles, relative
// 10^-9. Where a floor, a ceiling, a factorial, a binomial, gcd, lcm or (-1)^n stands over variables, the points are
// many and whole instead, for \lceil n/2\rceil is \lfloor(n+1)/2\rfloor only there: every variable below a factorial,
// binomial, gcd or lcm is whole, and so are the letters i to q, K to N and their like elsewhere. Of the others
// (\lfloor x\rfloor) every second point is whole or a small fraction, so that jumps are met.
//
// The trap: too few points. \lfloor(2n-1)/5\rfloor and \lfloor(2n-2)/5\rfloor differ at every fifth n, and those with a
// denominator of q at one n in q: a single variable takes every value from -32 to 96 and the neighbours of all constants.
#pragma once
#include <complex>
#include <numeric>
#include "answer_text.h"

typedef std::complex<double> Complex;

struct AnswerVariable {
    std::string name;
    bool whole = false;
    double value = 0;
};

struct AnswerComparison {
    AnswerNodes nodes;  // of both answers
    int64_t work;       // left, in about a nanosecond: what a limb product, a node and a power cost
    // of the evaluation in progress
    int point = 0;
    bool log_base_ten = false, saw_log = false;
    bool left_reals = false, saw_infinity = false, saw_variable = false;
    bool too_large = false;                 // for a step function's argument to be told from its neighbours
    double scale = 0;                       // largest intermediate value
    std::vector<AnswerVariable> variables;  // empty: the few points of variable_value
    std::vector<double> constants;          // whole numbers that the two expressions hold
    bool not_negative = false;              // of whole variables
};

static constexpr int64_t answer_work = 3000000;  // of a whole grade()
static constexpr int64_t answer_node_work = 25, answer_power_work = 150;
static constexpr int answer_whole_points = 224;

inline uint64_t answer_hash(const std::string& name, int point) {
    uint64_t h = 1469598103934665603u + (uint64_t)point * 0x9e3779b97f4a7c15u;  // FNV-1a, then the splitmix64 finalizer
    for (char c : name) h = (h ^ (unsigned char)c) * 1099511628211u;
    h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9u;
    h = (h ^ (h >> 27)) * 0x94d049bb133111ebu;
    return h ^ (h >> 31);
}

// the value of a variable at one of the few points: small at the first three, up to 13 at the next two, of both signs at
// the others
inline double variable_value(const std::string& name, int point) {
    const uint64_t h = answer_hash(name, point);
    double u = (double)(h >> 12) * 0x1p-52;
    if (point == 3 || point == 4) return 2 + 11 * u;
    return (point > 4 && (h & 1) ? -1 : 1) * (0.3 + 1.9 * u);
}

// ---------------------------------------------------------------------------------------------------------------------
// Whole points

// a letter that by custom is a whole number: i to q and K to N, with any subscript
inline bool is_whole_letter(const std::string& name) {
    const char c = name.empty() ? 0 : name[0];
    return (c >= 'i' && c <= 'q' && c != 'o') || (c >= 'K' && c <= 'N');
}

// What the expression `id` is made of, for whole points: its variables and constants. `below`: 0, or 1 in a step
// function, 2 in one that is of whole numbers only. true: such a function stands over a variable.
inline bool whole_parts(AnswerComparison& c, int id, int below) {
    const AnswerNode& n = c.nodes[id];
    c.work -= answer_node_work;
    if (c.work < 0) return false;
    if (n.kind == 'v') {
        size_t k = 0;
        while (k < c.variables.size() && c.variables[k].name != n.s) k++;
        if (k == c.variables.size()) c.variables.push_back({n.s, is_whole_letter(n.s)});
        c.variables[k].whole = c.variables[k].whole || below == 2;
        return below > 0;
    }
    int v = 0;
    if (n.kind == 'n' && c.constants.size() < 8 && ratio_to_int(n.q, 1000000, v) && v > 24) c.constants.push_back(v);
    if (n.kind == '!' || (n.kind == 'f' && in_word_list(" binom gcd lcm mod ", n.s))) below = 2, c.not_negative = true;
    else if (n.kind == 'f' && in_word_list(" floor ceil ", n.s)) below = std::max(below, 1);
    bool any = false;
    for (size_t k = 0; k < n.kids.size(); k++) {
        const AnswerNode& base = c.nodes[n.kids[0]];
        const bool exponent = n.kind == '^' && k == 1;
        const size_t known = c.variables.size();
        const bool over = whole_parts(c, n.kids[k], exponent && base.kind == '-' && below == 0 ? 1 : below);
        any = any || over;
        c.not_negative = c.not_negative || (exponent && below > 0 && (over || c.variables.size() > known));
    }
    return any;
}

// Fills c.variables if whole points are to be used, else empties them.
inline void choose_points(AnswerComparison& c, int a, int b) {
    c.variables.clear();
    c.constants.clear();
    c.not_negative = false;
    const bool first = whole_parts(c, a, 0), second = whole_parts(c, b, 0);
    if (!(first || second) || c.variables.size() > 12) c.variables.clear();
}

// The values of c.variables at a point in [0, answer_whole_points): of a single whole variable 0..95, -1..-32, then the
// neighbours of the constants and a few large ones; of several small ones drawn at random.
inline void set_whole_point(AnswerComparison& c, int point) {
    size_t whole = 0;
    for (const AnswerVariable& v : c.variables) whole += v.whole;
    for (AnswerVariable& v : c.variables) {
        const uint64_t h = answer_hash(v.name, point + 16);
        const double u = (double)(h >> 12) * 0x1p-52;
        double x;
        if (!v.whole) {
            x = point % 4 == 0   ? (double)(h % 41) - 20
                : point % 4 == 2 ? ((double)(h % 241) - 120) / 12
                                 : (point % 3 ? 1 : -1) * (0.3 + 20 * u);
        } else if (point >= 160) {  // large
            const size_t n = c.constants.size(), k = (size_t)(point - 160) / 5;
            const bool turn = whole == 1 || h % whole == 0;
            x = !turn ? (double)(h % 13) : k < n ? c.constants[k] + (point - 160) % 5 - 2 : 97 + (double)(h % 1100);
        } else if (whole == 1) {
            x = point < 96 ? point : point < 128 ? 95 - point : 24 + (double)(h % 240);
        } else {
            x = point < 48 ? (double)(h % 7) : point < 128 ? (double)(h % 31) : (double)(h % 25) - 16;
        }
        v.value = v.whole && c.not_negative ? std::abs(x) + (x == 0) : x;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Exact values

// the largest integer not above a, if it is at most 10^9 in size
inline bool ratio_floor(const ExactRatio& a, int& v, int64_t& work) {
    const double q = std::floor(ratio_to_double(a));
    if (!(std::abs(q) < 1e9)) return false;
    for (int k = (int)q + 1; k >= (int)q - 1; k--) {  // a double may be off by one
        ExactRatio whole = {exact_small((uint32_t)std::abs(k)), exact_small(1)}, rest;
        whole.n.neg = k > 0;  // -k
        if (!ratio_add(a, whole, rest, work)) return false;
        if (rest.n.neg) continue;
        v = k;
        return true;
    }
    return false;
}

inline ExactRatio ratio_of(int64_t v) {
    ExactRatio r = {exact_from_digits(std::to_string(v < 0 ? -v : v)), exact_small(1)};
    r.n.neg = v < 0;
    return r;
}

inline bool exact_value(AnswerComparison& c, int id, ExactRatio& r);

// n! or n!!
inline bool exact_factorial(AnswerComparison& c, const ExactRatio& a, int step, ExactRatio& r) {
    int v = 0;
    if (!ratio_to_int(a, 2500, v) || v < 0) return false;
    r = ratio_of(1);
    for (int k = v; k >= 2; k -= step) {
        exact_scale(r.n, (uint32_t)k);
        if ((c.work -= 2 * (int64_t)r.n.limb.size()) < 0) return false;
    }
    return true;
}

// functions of one or several fractions; a: the first of them
inline bool exact_function(AnswerComparison& c, const AnswerNode& n, const ExactRatio& a, ExactRatio& r) {
    int v = 0, w = 0;
    ExactRatio b;
    if (n.s == "abs") {
        r = a;
        r.n.neg = false;
        return true;
    }
    if (n.s == "floor" || n.s == "ceil") {
        const bool up = n.s == "ceil";
        if (!ratio_floor(up ? ExactRatio{exact_negate(a.n), a.d} : a, v, c.work)) return false;
        r = ratio_of(up ? -v : v);
        return true;
    }
    if (n.s == "gcd" || n.s == "lcm") {
        if (!ratio_to_int(a, 1000000000, v)) return false;
        int64_t all = std::abs(v);
        for (size_t i = 1; i < n.kids.size(); i++) {
            if (!exact_value(c, n.kids[i], b) || !ratio_to_int(b, 1000000000, w) || all > 1000000000) return false;
            const int64_t g = std::gcd(all, (int64_t)w);
            all = n.s == "gcd" ? g : g == 0 ? 0 : all / g * std::abs(w);
        }
        r = ratio_of(all);
        return true;
    }
    if (n.s == "max" || n.s == "min") {
        r = a;
        for (size_t i = 1; i < n.kids.size(); i++) {
            ExactRatio less;
            if (!exact_value(c, n.kids[i], b) || !ratio_add(r, {exact_negate(b.n), b.d}, less, c.work)) return false;
            if (less.n.neg == (n.s == "max")) r = b;
        }
        return true;
    }
    if (n.s != "binom" || n.kids.size() != 2 || !exact_value(c, n.kids[1], b)) return false;
    if (!ratio_to_int(a, 4000, v) || !ratio_to_int(b, 4000, w) || w < 0 || v < w) return false;
    w = std::min(w, v - w);
    r = ratio_of(1);
    for (int k = 1; k <= w; k++)
        if (!ratio_mul(r, {exact_small((uint32_t)(v - w + k)), exact_small((uint32_t)k)}, r, c.work)) return false;
    return true;
}

// The exact value; false: it has none (variables, roots) or it is too long.
inline bool exact_value(AnswerComparison& c, int id, ExactRatio& r) {
    const AnswerNode& n = c.nodes[id];
    ExactRatio a, b;
    int v = 0;
    if ((c.work -= answer_node_work) < 0) return false;
    if (n.kind == 'n') {
        c.work -= (int64_t)(n.q.n.limb.size() + n.q.d.limb.size());
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
    if (n.kind == '!') return exact_factorial(c, a, n.s.empty() ? 1 : 2, r);
    if (n.kind == 'f') return exact_function(c, n, a, r);
    if (n.kids.size() != 2 || !exact_value(c, n.kids[1], b)) return false;
    if (n.kind == ':') return ratio_inverse(b, b) && ratio_mul(a, b, r, c.work);
    return ratio_to_int(b, 4000, v) && ratio_power(a, v, r, c.work);
}

// ---------------------------------------------------------------------------------------------------------------------
// Values at points

// A step function's argument within 10^-7 of an integer is that integer: \log_2 8 is no double. Larger arguments have
// too few bits behind the point for that.
inline double step_value(AnswerComparison& c, Complex x, bool up) {
    c.too_large = c.too_large || std::abs(x.real()) >= 1e7;
    if (x.imag() != 0 || !(std::abs(x.real()) < 1e7)) return NAN;
    const double near = std::round(x.real());
    if (std::abs(x.real() - near) < 1e-7) return near;
    return up ? std::ceil(x.real()) : std::floor(x.real());
}

inline bool is_whole(Complex x) {
    return x.imag() == 0 && x.real() == std::round(x.real()) && std::abs(x.real()) < 1e15;
}

// binom(x, y) of whole numbers: 0 outside of Pascal's triangle; else by the gamma function
inline double binomial_value(AnswerComparison& c, double x, double y) {
    if (!(is_whole(x) && is_whole(y)))
        return std::exp(std::lgamma(x + 1) - std::lgamma(y + 1) - std::lgamma(x - y + 1));
    if (x < 0) return NAN;
    if (y < 0 || y > x) return 0;
    y = std::min(y, x - y);
    if (y > 300) return NAN;
    c.work -= 5 * (int64_t)y;
    double r = 1;
    for (int k = 1; k <= (int)y; k++) r = r * (x - y + k) / k;
    return r;
}

inline double factorial_value(AnswerComparison& c, Complex x, bool twice) {
    c.work -= answer_power_work;
    if (!twice) return x.imag() == 0 ? std::tgamma(x.real() + 1) : NAN;
    if (!is_whole(x) || x.real() < -1 || x.real() > 300) return NAN;
    double r = 1;
    for (double k = x.real(); k > 1; k -= 2) r *= k;
    return r;
}

// gcd, lcm, max, min of several values
inline double list_value(const std::string& f, const std::vector<Complex>& x) {
    double r = x[0].real();
    for (const Complex& v : x) {
        if (v.imag() != 0) return NAN;
        if (f == "max") r = std::max(r, v.real());
        if (f == "min") r = std::min(r, v.real());
        if (f == "max" || f == "min") continue;
        if (!is_whole(v) || !(std::abs(r) < 1e15)) return NAN;
        const int64_t a = std::abs((int64_t)r), b = std::abs((int64_t)v.real()), g = std::gcd(a, b);
        r = f == "gcd" ? (double)g : g == 0 ? 0 : (double)(a / g) * (double)b;
    }
    return r;
}

inline Complex function_value(AnswerComparison& c, const AnswerNode& n, Complex x, Complex y) {
    const double pi = 3.14159265358979323846;
    c.work -= answer_power_work;
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
    if (f == "floor" || f == "ceil") return step_value(c, x, f == "ceil");
    if (f == "binom") return binomial_value(c, x.real(), y.real());
    return NAN;
}

// A function that is only named, f(x, y): some smooth one that no identity holds for
inline Complex unknown_value(const std::string& name, const std::vector<Complex>& x) {
    Complex sum = 0;
    for (size_t k = 0; k < x.size(); k++) {
        const double a = variable_value(name, (int)(2 * k) % 3), b = variable_value(name + "'", (int)k % 3);
        sum += std::sin(a * x[k] + b) + (double)(k + 1) * b * x[k] * x[k];
    }
    return sum;
}

inline Complex power_value(AnswerComparison& c, Complex x, Complex y) {
    c.work -= answer_power_work;
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

inline double whole_point_value(const AnswerComparison& c, const std::string& name) {
    for (const AnswerVariable& v : c.variables)
        if (v.name == name) return v.value;
    return NAN;
}

inline Complex point_value(AnswerComparison& c, int id);

// of a function's node
inline Complex applied_value(AnswerComparison& c, const AnswerNode& n) {
    const bool list = n.s == "gcd" || n.s == "lcm" || n.s == "max" || n.s == "min", unknown = n.s[0] == 'o';
    if (!list && !unknown) {
        const Complex x = point_value(c, n.kids[0]);
        return function_value(c, n, x, n.kids.size() > 1 ? point_value(c, n.kids[1]) : 0);
    }
    c.work -= answer_power_work * (int64_t)n.kids.size();
    std::vector<Complex> x;
    for (int k : n.kids) x.push_back(point_value(c, k));
    return list ? list_value(n.s, x) : unknown_value(n.s, x);
}

// The value of an expression at c.point. NaN: it has none.
inline Complex point_value(AnswerComparison& c, int id) {
    const AnswerNode& n = c.nodes[id];
    if ((c.work -= answer_node_work) < 0) return NAN;
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
            v = c.variables.empty() ? variable_value(n.s, c.point) : whole_point_value(c, n.s);
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
            v = factorial_value(c, kid(0), !n.s.empty());
            break;
        case '^':
            v = power_value(c, kid(0), kid(1));
            break;
        case 'f':
            v = applied_value(c, n);
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
    c.left_reals = c.saw_infinity = c.saw_variable = c.too_large = false;
    c.scale = 0;
    return point_value(c, id);
}

inline bool distinct_variables(const AnswerComparison& c) {
    for (size_t i = 0; i < c.variables.size(); i++)
        for (size_t k = 0; k < i; k++)
            if (c.variables[i].value == c.variables[k].value) return false;
    return true;
}

// Do two expressions agree at every point where both have a value? At least two such points are asked for if they have
// variables. Where a value leaves the real numbers at a negative argument the point does not count.
inline bool equal_at_points(AnswerComparison& c, int gold, int pred) {
    double tolerance = c.nodes[gold].decimal || c.nodes[pred].decimal ? 1e-6 : 1e-9;
    const bool whole = !c.variables.empty();
    int agreed = 0, distinct = 0, of_gold = 0, of_pred = 0;  // points where both have a value, and each
    for (int point = 0; point < (whole ? answer_whole_points : 8); point++) {
        if (whole) set_whole_point(c, point);
        Complex a = fresh_value(c, gold, point);
        bool reals = !c.left_reals, variables = c.saw_variable, infinite = c.saw_infinity, large = c.too_large;
        double scale = c.scale;
        const bool gold_has = reals && is_finite(a) && std::isfinite(scale);
        Complex b = fresh_value(c, pred, point);
        const bool pred_has = !c.left_reals && is_finite(b) && std::isfinite(c.scale);
        scale = std::max(scale, c.scale);
        reals = reals && !c.left_reals;
        variables = variables || c.saw_variable;
        if (!(large || c.too_large)) of_gold += gold_has, of_pred += pred_has;
        if (!variables && infinite && c.saw_infinity) return std::isinf(a.real()) && a.real() == b.real();
        if (!is_finite(a) || !is_finite(b) || !std::isfinite(scale)) {
            if (variables) continue;
            return false;
        }
        if ((point >= 5 || whole) && !reals) continue;
        double noise = std::min(1e-13 * scale, 1e-9);  // capped, or 100! would equal anything
        if (!(std::abs(a - b) <= tolerance * std::max(std::abs(a), std::abs(b)) + noise)) return false;
        if (!variables) return c.work >= 0;
        agreed++;
        distinct += distinct_variables(c);  // d!/(d-k)! and k!/(k-d)! have only d = k in common
    }
    if (c.work < 0) return false;
    return whole ? distinct >= 8 && 8 * agreed >= std::max(of_gold, of_pred) : agreed >= 2;
}

// a \pmod{m} of both: the same residues. Without a residue class on both sides nothing is equal to one.
inline bool equal_residues(AnswerComparison& c, const AnswerNode& g, const AnswerNode& p) {
    ExactRatio a, b, m, n, difference, turns;
    int whole = 0;
    if (g.kind != 'f' || p.kind != 'f' || g.s != p.s) return false;
    if (!exact_value(c, g.kids[1], m) || !exact_value(c, p.kids[1], n) || !ratio_equal(m, n)) return false;
    if (!exact_value(c, g.kids[0], a) || !exact_value(c, p.kids[0], b)) return false;
    return ratio_add(a, {exact_negate(b.n), b.d}, difference, c.work) && ratio_inverse(m, turns) &&
           ratio_mul(difference, turns, turns, c.work) && ratio_to_int(turns, 1000000000, whole);
}

inline bool equal_expressions(AnswerComparison& c, int gold, int pred) {
    const AnswerNode &g = c.nodes[gold], &p = c.nodes[pred];
    if (g.kind == '%' && p.kind == '%') return equal_expressions(c, g.kids[0], p.kids[0]);
    if (g.kind == '%' && equal_expressions(c, g.kids[0], pred)) return true;
    if (p.kind == '%' && equal_expressions(c, gold, p.kids[0])) return true;
    if ((g.kind == 'f' && g.s == "mod") || (p.kind == 'f' && p.s == "mod")) return equal_residues(c, g, p);
    ExactRatio a, b;
    bool exact_gold = exact_value(c, gold, a), exact_pred = exact_value(c, pred, b);
    if (exact_gold && exact_pred) {
        c.work -= 2 * (int64_t)(a.n.limb.size() * b.d.limb.size() + b.n.limb.size() * a.d.limb.size());
        if (c.work < 0) return false;
        if (ratio_equal(a, b)) return true;
        if (g.decimal == p.decimal) return false;
        int small = 0;
        const ExactRatio &exact = g.decimal ? b : a, &decimal = g.decimal ? a : b;
        bool integer = exact.d.limb.size() == 1 && exact.d.limb[0] == 1;
        integer = integer || ratio_to_int(exact, 1000000000, small);
        return ratio_near(decimal, exact, integer);
    }
    choose_points(c, gold, pred);
    c.log_base_ten = c.saw_log = false;
    bool equal = equal_at_points(c, gold, pred);
    c.log_base_ten = c.saw_log;
    equal = equal || (c.log_base_ten && equal_at_points(c, gold, pred));
    c.log_base_ten = false;
    c.variables.clear();
    return equal;
}
