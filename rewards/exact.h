// Exact integers and fractions of any length, for grading: no rounding decides whether an answer is right.
//
// An integer is a sign and limbs in base 10^9, least significant first, so that reading decimal digits is linear. A
// fraction n/d keeps d > 0 and is never reduced: equality is n1*d2 == n2*d1. Sizes are bounded by exact_limbs; whoever
// would pass the bound gives up (false) and the caller falls back to double.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

static constexpr size_t exact_limbs = 1000;  // 9000 digits
static constexpr uint32_t exact_base = 1000000000;

struct ExactInt {
    std::vector<uint32_t> limb;  // [limbs], no leading zero limb; empty is 0
    bool neg = false;
};

struct ExactRatio {
    ExactInt n, d;  // d > 0
};

inline void exact_trim(ExactInt& a) {
    while (!a.limb.empty() && a.limb.back() == 0) a.limb.pop_back();
    if (a.limb.empty()) a.neg = false;
}

// decimal digits only
inline ExactInt exact_from_digits(const std::string& digits) {
    ExactInt a;
    for (size_t e = digits.size(); e > 0;) {
        size_t b = e > 9 ? e - 9 : 0;
        uint32_t limb = 0;
        for (size_t i = b; i < e; i++) limb = limb * 10 + (uint32_t)(digits[i] - '0');
        a.limb.push_back(limb);
        e = b;
    }
    exact_trim(a);
    return a;
}

inline ExactInt exact_small(uint32_t v) { return exact_from_digits(std::to_string(v)); }

// |a| against |b|: -1, 0, 1
inline int exact_compare_abs(const ExactInt& a, const ExactInt& b) {
    if (a.limb.size() != b.limb.size()) return a.limb.size() < b.limb.size() ? -1 : 1;
    for (size_t i = a.limb.size(); i-- > 0;)
        if (a.limb[i] != b.limb[i]) return a.limb[i] < b.limb[i] ? -1 : 1;
    return 0;
}

inline bool exact_equal(const ExactInt& a, const ExactInt& b) { return a.neg == b.neg && a.limb == b.limb; }

inline ExactInt exact_add(const ExactInt& a, const ExactInt& b) {
    ExactInt r;
    if (a.neg == b.neg) {
        uint32_t carry = 0;
        for (size_t i = 0; i < std::max(a.limb.size(), b.limb.size()) || carry; i++) {
            uint32_t s = carry + (i < a.limb.size() ? a.limb[i] : 0) + (i < b.limb.size() ? b.limb[i] : 0);
            carry = s >= exact_base;
            r.limb.push_back(carry ? s - exact_base : s);
        }
        r.neg = a.neg;
    } else {
        bool a_larger = exact_compare_abs(a, b) >= 0;
        const ExactInt &x = a_larger ? a : b, &y = a_larger ? b : a;
        int64_t borrow = 0;
        for (size_t i = 0; i < x.limb.size(); i++) {
            int64_t s = (int64_t)x.limb[i] - borrow - (i < y.limb.size() ? (int64_t)y.limb[i] : 0);
            borrow = s < 0;
            r.limb.push_back((uint32_t)(s < 0 ? s + exact_base : s));
        }
        r.neg = x.neg;
    }
    exact_trim(r);
    return r;
}

inline ExactInt exact_negate(ExactInt a) {
    a.neg = !a.neg && !a.limb.empty();
    return a;
}

inline ExactInt exact_mul(const ExactInt& a, const ExactInt& b) {
    ExactInt r;
    r.limb.assign(a.limb.size() + b.limb.size(), 0);
    for (size_t i = 0; i < a.limb.size(); i++) {
        uint64_t carry = 0;
        for (size_t j = 0; j < b.limb.size() || carry; j++) {
            uint64_t t = r.limb[i + j] + carry + (j < b.limb.size() ? (uint64_t)a.limb[i] * b.limb[j] : 0);
            r.limb[i + j] = (uint32_t)(t % exact_base);
            carry = t / exact_base;
        }
    }
    r.neg = a.neg != b.neg;
    exact_trim(r);
    return r;
}

// a *= k, in place
inline void exact_scale(ExactInt& a, uint32_t k) {
    uint64_t carry = 0;
    for (uint32_t& limb : a.limb) {
        carry += (uint64_t)limb * k;
        limb = (uint32_t)(carry % exact_base);
        carry /= exact_base;
    }
    if (carry) a.limb.push_back((uint32_t)carry);
    exact_trim(a);
}

// 10^n
inline ExactInt exact_power_of_ten(size_t n) { return exact_from_digits("1" + std::string(n, '0')); }

// The functions on fractions return false when the result would be too long or the operation is undefined. `work`
// counts limb products and bounds the time of a whole comparison.
inline bool ratio_fits(const ExactRatio& a, const ExactRatio& b, int64_t& work) {
    size_t la = std::max(a.n.limb.size(), a.d.limb.size()), lb = std::max(b.n.limb.size(), b.d.limb.size());
    work -= 4 * (int64_t)(la + 1) * (int64_t)(lb + 1);
    return la + lb <= exact_limbs && work >= 0;
}

inline bool ratio_add(const ExactRatio& a, const ExactRatio& b, ExactRatio& r, int64_t& work) {
    if (!ratio_fits(a, b, work)) return false;
    if (exact_equal(a.d, b.d)) {
        r = {exact_add(a.n, b.n), a.d};
    } else {
        r = {exact_add(exact_mul(a.n, b.d), exact_mul(b.n, a.d)), exact_mul(a.d, b.d)};
    }
    return true;
}

inline bool ratio_mul(const ExactRatio& a, const ExactRatio& b, ExactRatio& r, int64_t& work) {
    if (!ratio_fits(a, b, work)) return false;
    r = {exact_mul(a.n, b.n), exact_mul(a.d, b.d)};
    return true;
}

inline bool ratio_inverse(const ExactRatio& a, ExactRatio& r) {
    if (a.n.limb.empty()) return false;
    ExactRatio inverse = {a.d, a.n};
    inverse.n.neg = a.n.neg;
    inverse.d.neg = false;
    r = inverse;
    return true;
}

// a^e
inline bool ratio_power(ExactRatio a, int e, ExactRatio& r, int64_t& work) {
    if (e < 0 && !ratio_inverse(a, a)) return false;
    ExactRatio result = {exact_small(1), exact_small(1)};
    for (unsigned k = (unsigned)std::abs(e); k > 0; k >>= 1) {
        if ((k & 1) && !ratio_mul(result, a, result, work)) return false;
        if (k > 1 && !ratio_mul(a, a, a, work)) return false;
    }
    r = result;
    return true;
}

// Is |a - b| <= |b| * 10^-6, and, with `money`, also less than half a hundredth?
inline bool ratio_near(const ExactRatio& a, const ExactRatio& b, bool money) {
    ExactInt ad = exact_mul(a.n, b.d), bd = exact_mul(b.n, a.d), diff = exact_add(ad, exact_negate(bd));
    if (exact_compare_abs(exact_mul(diff, exact_small(1000000)), bd) > 0) return false;
    return !money || exact_compare_abs(exact_mul(diff, exact_small(200)), exact_mul(a.d, b.d)) < 0;
}

inline bool ratio_equal(const ExactRatio& a, const ExactRatio& b) {
    return exact_equal(exact_mul(a.n, b.d), exact_mul(b.n, a.d));
}

// The integer if a fraction is one and is at most `limit` in size (at most 10^9); false otherwise. A fraction that is
// not reduced (4/2) is tried against its quotient.
inline bool ratio_to_int(const ExactRatio& a, int limit, int& v) {
    auto value = [](const ExactInt& x) {
        double s = 0;
        for (size_t i = x.limb.size(); i-- > 0;) s = s * exact_base + x.limb[i];
        return s;
    };
    if (a.n.limb.size() > a.d.limb.size() + 1 || a.d.limb.size() > 30) return false;
    double q = std::round(value(a.n) / value(a.d));
    if (!(q <= limit)) return false;
    ExactInt product = exact_mul(exact_small((uint32_t)q), a.d);
    if (product.limb != a.n.limb) return false;
    v = a.n.neg ? -(int)q : (int)q;
    return true;
}

// nearest double but for a few last bits; infinite or 0 when out of range
inline double ratio_to_double(const ExactRatio& a) {
    auto head = [](const ExactInt& x, int& limbs_below) {
        double s = 0;
        size_t n = x.limb.size(), from = n > 4 ? n - 4 : 0;
        for (size_t i = n; i-- > from;) s = s * exact_base + x.limb[i];
        limbs_below = (int)from;
        return s;
    };
    int below_n = 0, below_d = 0;
    double n = head(a.n, below_n), d = head(a.d, below_d);
    double v = n / d * std::pow(1e9, below_n - below_d);
    return a.n.neg ? -v : v;
}
