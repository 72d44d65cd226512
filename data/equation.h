// An equation of numbers, such as SVAMP's "( ( 8.0 + 3.0 ) * 2.0 )", worked out one operation a line:
//   8 + 3 = 11
//   11 * 2 = 22
// Its text: numbers, + - * / with their usual precedence, and parentheses.
// The trap: 55 / 15 is no number that a solution would write down; steps of more than four decimals are a fault. (And
// 0.1 + 0.2 in floating point is not 0.3: 12 digits are written.)
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string>
#include "../runtime/error.h"

// 11 and not 11.0
inline std::string worked_number(double x) { return format("%.12g", x == 0 ? 0.0 : x); }

struct WorkedEquation {
    double value = 0.0;
    std::string steps;  // each line with its end
    std::string fault;  // why it cannot be worked out; empty: it can
};

struct EquationReader {
    const std::string& text;
    size_t at = 0;
    int depth = 0;
    WorkedEquation out = {};

    char next() {
        while (at < text.size() && (text[at] == ' ' || text[at] == '\t')) at++;
        return at < text.size() ? text[at] : '\0';
    }
    double refuse(const char* why) {
        if (out.fault.empty()) out.fault = why;
        at = text.size();
        return 0.0;
    }
    double operand() {
        if (next() == '(') {
            if (++depth > 100) return refuse("it is nested deeper than 100 parentheses");
            at++;
            const double value = sum();
            depth--;
            if (next() != ')') return refuse("a parenthesis is not closed");
            at++;
            return value;
        }
        if (const char c = next(); !(c >= '0' && c <= '9') && c != '-' && c != '.')
            return refuse("a number is missing");
        char* end = nullptr;
        const double value = strtod(text.c_str() + at, &end);
        if (end == text.c_str() + at || !std::isfinite(value)) return refuse("a number cannot be read");
        at = (size_t)(end - text.c_str());
        return value;
    }
    double apply(double a, char operation, double b) {
        if (!out.fault.empty()) return 0.0;
        if (operation == '/' && b == 0.0) return refuse("it divides by zero");
        const double value = operation == '+' ? a + b : operation == '-' ? a - b : operation == '*' ? a * b : a / b;
        if (std::fabs(value * 1e4 - std::round(value * 1e4)) > 1e-4 * std::max(1.0, std::fabs(value)))
            return refuse("a step of it has more than four decimals");
        out.steps += worked_number(a) + " " + operation + " " + worked_number(b) + " = " + worked_number(value) + "\n";
        return value;
    }
    double product() {
        double value = operand();
        for (char c = next(); c == '*' || c == '/'; c = next()) at++, value = apply(value, c, operand());
        return value;
    }
    double sum() {
        double value = product();
        for (char c = next(); c == '+' || c == '-'; c = next()) at++, value = apply(value, c, product());
        return value;
    }
};

inline WorkedEquation work_out(const std::string& equation) {
    EquationReader reader{equation};
    const double value = reader.sum();
    if (reader.next() != '\0') reader.refuse("it goes on where it should end");
    reader.out.value = value;
    return reader.out;
}
