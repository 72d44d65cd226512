// JSON from outside: the one place where the program parses it. What a file may do to a parser is bounded here: its
// size; its nesting, because copies and dumps of nlohmann's values recurse (10^5 levels overflow the stack); a key that
// an object has twice (parsers disagree which one counts) or that holds a NUL (C strings end there). nlohmann's parser
// itself refuses NaN, Infinity, numbers beyond double, text behind the value, and strings that are not UTF-8, lone
// surrogates included.
// Whole numbers are exact within 64 bits, signed or not; beyond that, and with a point or an exponent, they are double.
// So code that needs an integer asks is_number_integer(), or compares within 32 bits (config_int_value).
#pragma once
#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>
#include <nlohmann/json.hpp>
#include "error.h"
#include "printable.h"

struct JsonLimits {
    size_t depth = 64;         // open arrays and objects
    uint64_t bytes = 1 << 28;  // of the text; its values take up to some 20 times as much memory
};

struct JsonFault {
    std::string why;
    size_t byte = 0;  // of the text, from 1; 0: the fault is not of one place
};

// What nlohmann says of a text it cannot read, without the exception's number, its position and the text itself.
inline std::string json_error_text(const nlohmann::json::exception& e, const std::string& last_token) {
    std::string s = e.what();
    if (s.find("ill-formed UTF-8") != std::string::npos) return "a string is not valid UTF-8";
    size_t bracket = s.find("] "), column = s.find("column "), colon = s.find(": ", std::min(column, s.size()));
    if (bracket != std::string::npos && e.id != 101) return "a number beyond the range of a double";
    s = s.substr(colon == std::string::npos ? bracket == std::string::npos ? 0 : bracket + 2 : colon + 2);
    const std::string last = "; last read: '" + last_token + "'";
    size_t at = s.find(last);
    if (at != std::string::npos) s.replace(at, last.size(), at + last.size() < s.size() ? ";" : "");
    return printable(s, 160);
}

// Builds the value from nlohmann's events. J: nlohmann::json, or ordered_json, whose objects keep the order of the text
// but look keys up one by one, so that the keys of open objects stand in sets here.
template <class J>
struct JsonBuilder {
    static constexpr bool ordered = std::is_same_v<J, nlohmann::ordered_json>;
    JsonLimits limits;
    JsonFault fault;
    J root;
    std::vector<J*> open;  // a parent does not grow while a child is open, so these stay valid
    J* member = nullptr;   // of the innermost object: what its last key names
    std::vector<std::set<std::string>> keys;

    explicit JsonBuilder(const JsonLimits& limits_) : limits(limits_) {}

    J* put(J&& value) {
        if (open.empty()) return &(root = std::move(value));
        if (!open.back()->is_array()) return &(*member = std::move(value));
        auto& list = open.back()->template get_ref<typename J::array_t&>();
        list.push_back(std::move(value));
        return &list.back();
    }
    bool refuse(const std::string& why) {
        fault.why = why;
        return false;
    }
    bool start(J&& empty) {
        if (open.size() == limits.depth)
            return refuse(format("the JSON is nested deeper than %zu levels; is it the right file?", limits.depth));
        open.push_back(put(std::move(empty)));
        return true;
    }
    bool key(std::string& name) {
        if (name.find('\0') != std::string::npos) return refuse("the key " + shown(name) + " holds a NUL; remove it");
        auto& object = open.back()->template get_ref<typename J::object_t&>();
        bool fresh;
        if constexpr (ordered) {
            fresh = keys.back().insert(name).second;
            if (fresh) object.push_back({name, J()}), member = &object.back().second;
        } else {
            auto [it, inserted] = object.emplace(name, J());
            member = &it->second, fresh = inserted;
        }
        return fresh || refuse("the key " + shown(name) + " appears twice; remove one");
    }
    bool start_object(size_t) {
        if (!start(J::object())) return false;
        if (ordered) keys.emplace_back();
        return true;
    }
    bool end_object() {
        if (ordered) keys.pop_back();
        open.pop_back();
        return true;
    }
    bool start_array(size_t) { return start(J::array()); }
    bool end_array() {
        open.pop_back();
        return true;
    }
    bool value(J&& v) { return put(std::move(v)) != nullptr; }
    bool null() { return value(J()); }
    bool boolean(bool v) { return value(J(v)); }
    bool number_integer(typename J::number_integer_t v) { return value(J(v)); }
    bool number_unsigned(typename J::number_unsigned_t v) { return value(J(v)); }
    bool number_float(typename J::number_float_t v, const std::string&) { return value(J(v)); }
    bool string(std::string& v) { return value(J(std::move(v))); }
    bool binary(typename J::binary_t&) { return false; }  // text has none
    bool parse_error(size_t byte, const std::string& last_token, const nlohmann::json::exception& e) {
        fault.byte = byte;
        return refuse(json_error_text(e, last_token));
    }
};

// false: the text is refused, and fault says why
template <class J = nlohmann::json>
inline bool json_read(std::string_view text, const JsonLimits& limits, J* value, JsonFault* fault) {
    JsonBuilder<J> builder(limits);
    bool good = text.size() <= limits.bytes;
    if (!good)
        builder.fault.why = format("the JSON has %zu bytes, more than the %llu it may have; is it the right file?",
                                   text.size(), (unsigned long long)limits.bytes);
    else good = J::sax_parse(text.data(), text.data() + text.size(), &builder);
    *fault = std::move(builder.fault);
    if (good) *value = std::move(builder.root);
    return good;
}

// The value of a text, which may be anything; `where` opens the one line that refuses it.
template <class J = nlohmann::json>
inline J json_parse(std::string_view text, const std::string& where, const JsonLimits& limits = {}) {
    J value;
    JsonFault fault;
    if (json_read(text, limits, &value, &fault)) return value;
    if (fault.byte == 0) fail("%s: %s", where.c_str(), fault.why.c_str());
    fail("%s: not valid JSON at byte %zu: %s", where.c_str(), fault.byte, fault.why.c_str());
}
