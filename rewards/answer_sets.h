// Sets of real numbers by what they hold: (-\infty,0)\cup(0,\infty) is x \ne 0 is \mathbb{R}\setminus\{0\}.
//
// A set is read from unions, intersections, differences, intervals, sets of numbers and (in)equalities of one variable.
// The end points of two sets cut the line into cells: the points themselves and what lies between them, 2 k + 1 for k of
// them. Two sets are equal if they hold the same cells.
//
// The traps: (1, 2) is a point of the plane as often as an interval, so somebody has to say that it is a set: a union,
// an inequality, a set of numbers. Two inequalities joined by a comma or by "and" may mean either of them or both.
#pragma once
#include <functional>
#include "answer_values.h"

inline std::string part_name(const AnswerNode& relation, size_t part) {
    size_t b = 0;
    for (; part > 0; part--) b = relation.names.find('\n', b) + 1;
    return relation.names.substr(b, relation.names.find('\n', b) - b);
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

// Reads two sets into cells and compares them.
struct RealSets {
    AnswerComparison& c;
    std::vector<std::pair<double, int>> points;  // value and node of the end points, sorted, those that are equal once
    std::string name;                            // of the variable
    bool named = false;                          // something says that the answer is a set
    size_t steps = 0;

    explicit RealSets(AnswerComparison& comparison) : c(comparison) {}

    // the value of an end point, perhaps infinite; false: it has variables or is no real number
    bool end_point(int id, double& x) {
        const Complex v = fresh_value(c, id, 0);
        x = v.real();
        return !c.saw_variable && !c.left_reals && v.imag() == 0 && !std::isnan(x);
    }

    bool add_point(int id) {
        double x;
        if (id < 0) return true;
        if (!end_point(id, x) || points.size() > 64) return false;
        if (std::isfinite(x)) points.push_back({x, id});
        return true;
    }

    bool one_name(const std::string& n) {
        if (name.empty()) name = n;
        return !n.empty() && n == name;
    }

    // Is the node a set of real numbers? Its end points go to `points`.
    bool read(int id) {
        const AnswerNode& n = c.nodes[id];
        AnswerInterval v;
        if (++steps > 256) return false;
        switch (n.kind) {
            case 'U':
            case 'I':
            case 'D':
                named = true;
                return std::all_of(n.kids.begin(), n.kids.end(), [&](int k) { return read(k); });
            case '+':  // R - {0}
                for (size_t k = 1; k < n.kids.size(); k++)
                    if (c.nodes[n.kids[k]].kind != '-' || c.nodes[c.nodes[n.kids[k]].kids[0]].kind != '{') return false;
                named = true;
                return strchr("({", c.nodes[n.kids[0]].kind) && std::all_of(n.kids.begin(), n.kids.end(), [&](int k) {
                           return read(c.nodes[k].kind == '-' ? c.nodes[k].kids[0] : k);
                       });
            case '(':
                return n.kids.size() == 2 && add_point(n.kids[0]) && add_point(n.kids[1]);
            case '{':
                return std::all_of(n.kids.begin(), n.kids.end(), [&](int k) { return add_point(k); });
            case '=':
                if (n.kids.size() == 2 && strchr("=#", n.s[0])) {
                    const int value = n.kids[1];
                    named = named || n.s == "#";
                    if (!one_name(part_name(n, 0))) return false;
                    return n.s == "=" && strchr("UID({", c.nodes[value].kind) ? read(value) : add_point(value);
                }
                named = true;
                return interval_of_inequality(n, v) && one_name(v.name) && add_point(v.lo) && add_point(v.hi);
            case ',':
                return joined_by(n) != 0 && std::all_of(n.kids.begin(), n.kids.end(), [&](int k) { return read(k); });
            default:
                return false;
        }
    }

    bool is_unequal(int id) const { return c.nodes[id].kind == '=' && c.nodes[id].s == "#"; }

    // What a list of conditions means: 'U' any of them, 'I' all of them, 0: it may be either
    char joined_by(const AnswerNode& n) const {
        if (n.s == "or") return 'U';
        for (int k : n.kids)
            if (!strchr("=(", c.nodes[k].kind)) return 0;
        const bool unequal = std::any_of(n.kids.begin(), n.kids.end(), [&](int k) { return is_unequal(k); });
        const bool equal = std::any_of(n.kids.begin(), n.kids.end(),
                                       [&](int k) { return c.nodes[k].kind == '(' || c.nodes[k].s == "="; });
        return equal ? 0 : unequal || n.s == "and" ? 'I' : 0;
    }

    // the cell of a node that is an end point: 0 and 2 k for the infinities, 2 i + 1 for points[i]
    size_t cell(int id, bool lower) {
        double x = 0;
        if (id < 0) return lower ? 0 : 2 * points.size();
        end_point(id, x);
        if (std::isinf(x)) return x < 0 ? 0 : 2 * points.size();
        for (size_t i = 0; i < points.size(); i++)
            if (points[i].second == id || equal_expressions(c, points[i].second, id)) return 2 * i + 1;
        return 2 * points.size() + 1;  // nowhere
    }

    std::vector<bool> interval(const AnswerInterval& v) {
        std::vector<bool> in(2 * points.size() + 1, false);
        const size_t lo = cell(v.lo, true), hi = cell(v.hi, false);
        for (size_t i = lo; i <= hi && i < in.size(); i++) in[i] = true;
        if (lo < in.size() && lo % 2 == 1 && v.open_lo) in[lo] = false;
        if (hi < in.size() && hi % 2 == 1 && v.open_hi) in[hi] = false;
        return in;
    }

    std::vector<bool> combine(char how, const std::vector<int>& kids) {
        std::vector<bool> in = cells(kids[0]);
        for (size_t k = 1; k < kids.size(); k++) {
            const int kid = how == 'D' && c.nodes[kids[k]].kind == '-' ? c.nodes[kids[k]].kids[0] : kids[k];
            const std::vector<bool> other = cells(kid);
            for (size_t i = 0; i < in.size(); i++)
                in[i] = how == 'U' ? in[i] || other[i] : how == 'I' ? in[i] && other[i] : in[i] && !other[i];
        }
        return in;
    }

    // the cells that a set holds [2 points + 1]
    std::vector<bool> cells(int id) {
        const AnswerNode& n = c.nodes[id];
        AnswerInterval v;
        if (strchr("UID", n.kind)) return combine(n.kind, n.kids);
        if (n.kind == '+') return combine('D', n.kids);
        if (n.kind == ',') return combine(joined_by(n), n.kids);
        if (n.kind == '(') {
            v.lo = n.kids[0], v.hi = n.kids[1];
            v.open_lo = n.open == '(', v.open_hi = n.close == ')';
            return interval(v);
        }
        if (n.kind == '=' && !strchr("=#", n.s[0])) {
            interval_of_inequality(n, v);
            return interval(v);
        }
        if (n.kind == '=' && n.s == "=" && strchr("UID({", c.nodes[n.kids[1]].kind)) return cells(n.kids[1]);
        std::vector<bool> in(2 * points.size() + 1, false);
        const std::vector<int> values = n.kind == '{' ? n.kids : std::vector<int>{n.kids[1]};
        for (int k : values) {
            const size_t at = cell(k, false);
            if (at % 2 == 1 && at < in.size()) in[at] = true;
        }
        if (n.kind == '=' && n.s == "#") in.flip();
        return in;
    }

    // Are both nodes sets of real numbers, and the same? An empty one equals nothing: it was misread.
    bool equal(int gold, int pred) {
        if (!read(gold) || !read(pred) || !named) return false;
        std::sort(points.begin(), points.end());
        std::vector<std::pair<double, int>> distinct;
        for (const auto& p : points)
            if (distinct.empty() || !equal_expressions(c, distinct.back().second, p.second)) distinct.push_back(p);
        points = distinct;
        const std::vector<bool> a = cells(gold), b = cells(pred);
        return a == b && std::find(a.begin(), a.end(), true) != a.end() && c.work >= 0;
    }
};
