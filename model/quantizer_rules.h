// Which weight gets which quantizer: the text of --weights, --activations and --kv_cache.
//
//   RULES     QUANTIZER | QUANTIZER; RULE; RULE ...        the first, without '=', is for all linears; else none is
//   RULE      WHERE, WHERE ... = QUANTIZER                 a later rule wins over an earlier one
//   WHERE     q | k | v | o | gate | up | down             these parts of every layer
//             layers.5 | layers.2-7 | layers.0.down        a layer, a range of them, a part of it
//             head | embed                                 which no rule names by itself
//             *.mlp.* | layers.*.q                         a pattern with *, of layers.5.q or of the checkpoint's name
// as in  "int3:g128:asym; down=int4:g128:asym; layers.0,layers.29=int8:channel". --quantize_layers q,v with a single
// quantizer is "none; q,v=QUANTIZER".
//
// The keys and values of a layer are layers.5; activations, the inputs of a product, go by its parts, which share them.
#pragma once
#include <algorithm>
#include <string>
#include <vector>
#include "../quant.cuh"
#include "../runtime/words.h"

struct QuantizerRule {
    std::vector<std::string> where;  // empty: every linear
    Quantizer quantizer;
};

struct QuantizerRules {
    std::string flag = "weights";
    std::vector<QuantizerRule> rules;
    bool on() const {
        for (const QuantizerRule& r : rules)
            if (r.quantizer.on()) return true;
        return false;
    }
};

// What a rule can name: a weight, an input of a product, or the cache of a layer
struct QuantizerPlace {
    int layer = -1;
    std::string part;  // q, k, ... down; embed, head; "" for the cache of a layer
    std::string name;  // the checkpoint's
};

inline std::string place_text(const QuantizerPlace& p) {
    if (p.layer < 0) return p.part;
    return "layers." + std::to_string(p.layer) + (p.part.empty() ? "" : "." + p.part);
}

// does `text` match `pattern`, in which * stands for any characters? A mismatch goes back to the last * alone, so that a
// hostile pattern costs length times length.
inline bool glob_match(const std::string& pattern, const std::string& text) {
    size_t p = 0, t = 0, star = pattern.npos, from = 0;
    while (t < text.size()) {
        if (p < pattern.size() && pattern[p] == '*') star = p++, from = t;
        else if (p < pattern.size() && pattern[p] == text[t]) p++, t++;
        else if (star != pattern.npos) p = star + 1, t = ++from;
        else return false;
    }
    while (p < pattern.size() && pattern[p] == '*') p++;
    return p == pattern.size();
}

// "layers.5", "layers.2-7", either with .PART behind; false: it is not of that form
inline bool layers_selector(const std::string& where, int* first, int* last, std::string* part) {
    int end = 0;
    if (sscanf(where.c_str(), "layers.%9d%n", first, &end) != 1 || end == 0) return false;
    *last = *first;
    size_t at = (size_t)end;
    if (at < where.size() && where[at] == '-') {
        if (sscanf(where.c_str() + at, "-%9d%n", last, &end) != 1) return false;
        at += (size_t)end;
    }
    *part = at < where.size() ? where.substr(at + 1) : "";
    return at == where.size() || where[at] == '.';
}

inline bool place_matches(const std::string& where, const QuantizerPlace& p) {
    int first = 0, last = 0;
    std::string part;
    if (where.find('*') != where.npos)
        return glob_match(where, place_text(p)) || glob_match(where, p.name);
    if (layers_selector(where, &first, &last, &part))
        return p.layer >= first && p.layer <= last && (part.empty() || part == p.part);
    return where == p.part || where == p.name;
}

inline bool rule_matches(const QuantizerRule& r, const QuantizerPlace& p) {
    if (r.where.empty()) return p.layer >= 0;
    for (const std::string& w : r.where)
        if (place_matches(w, p)) return true;
    return false;
}

// the quantizer of a place: that of the last rule that names it
inline Quantizer quantizer_of(const QuantizerRules& rules, const QuantizerPlace& p) {
    Quantizer q;
    for (const QuantizerRule& r : rules.rules)
        if (rule_matches(r, p)) q = r.quantizer;
    return q;
}

// the quantizer of all that is quantized; off where there are several, or none
inline Quantizer single_quantizer(const QuantizerRules& rules) {
    Quantizer one;
    for (const QuantizerRule& r : rules.rules) {
        if (!r.quantizer.on()) continue;
        if (one.on() && quantizer_text(one) != quantizer_text(r.quantizer)) return Quantizer();
        one = r.quantizer;
    }
    return one;
}

static constexpr size_t most_rules = 256;  // each is compared with each (rules_overridden)

// text of a flag; layers: --quantize_layers, which restricts a single quantizer ("all": no restriction)
inline QuantizerRules rules_parse(const std::string& text, const char* flag, const std::string& layers = "all") {
    QuantizerRules out;
    out.flag = flag;
    for (const std::string& item : split_words(text, ";")) {
        if (out.rules.size() == most_rules)
            fail_usage("--%s: more than %zu rules; join the names that share a quantizer", flag, most_rules);
        QuantizerRule r;
        const size_t equals = item.find('=');
        if (equals != item.npos) {
            r.where = split_words(item.substr(0, equals));
            for (const std::string& w : r.where)
                if (w.empty()) fail_usage("--%s %s: an empty name before =", flag, item.c_str());
        } else if (!out.rules.empty()) {
            fail_usage("--%s %s: only the first quantizer can stand without names; write NAMES=%s", flag, text.c_str(),
                       item.c_str());
        }
        r.quantizer = quantizer_parse(equals == item.npos ? item : split_words(item.substr(equals + 1), ";")[0], flag);
        out.rules.push_back(r);
    }
    if (layers == "all") return out;
    if (out.rules.size() > 1 || !out.rules[0].where.empty())
        fail_usage("--quantize_layers %s is for a single quantizer; name the layers in --%s instead", layers.c_str(),
                   flag);
    out.rules[0].where = split_words(layers);
    return out;
}

// the canonical text
inline std::string rules_text(const QuantizerRules& rules) {
    std::string text;
    if (!rules.on()) return "none";
    for (const QuantizerRule& r : rules.rules) {
        if (!text.empty()) text += "; ";
        else if (!r.where.empty()) text = "none; ";
        for (size_t i = 0; i < r.where.size(); i++) text += (i ? "," : "") + r.where[i];
        text += (r.where.empty() ? "" : "=") +
                quantizer_text(r.quantizer, is_flag_of(rules.flag, "weights") ? "channel" : "token");
    }
    return text;
}

// Fails if a rule names none of the places
inline void rules_check(const QuantizerRules& rules, const std::vector<QuantizerPlace>& places) {
    int last = 0;
    for (const QuantizerPlace& p : places) last = std::max(last, p.layer);
    for (const QuantizerRule& r : rules.rules)
        for (const std::string& w : r.where) {
            bool found = false;
            for (const QuantizerPlace& p : places) found = found || place_matches(w, p);
            if (!found)
                fail_usage(
                    "--%s: '%s' names nothing of this model; there are layers.0 to layers.%d, layers.0-1%s, and * "
                    "for any characters",
                    rules.flag.c_str(), w.c_str(), last,
                    is_flag_of(rules.flag, "kv_cache") ? ""
                                                       : ", layers.0.down, q, k, v, o, gate, up, down, head, embed");
        }
}

// What the user should know of rules that meet: one line for each place rule that a later one overrides
inline std::vector<std::string> rules_overridden(const QuantizerRules& rules,
                                                 const std::vector<QuantizerPlace>& places) {
    std::vector<std::string> notes;
    std::vector<std::vector<char>> named;  // [rules][places]; a rule of all linears is there to be overridden
    for (const QuantizerRule& r : rules.rules) {
        named.emplace_back();
        for (const QuantizerPlace& p : places) named.back().push_back(rule_matches(r, p));
    }
    for (size_t a = 0; a < rules.rules.size(); a++)
        for (size_t b = a + 1; b < rules.rules.size(); b++) {
            int both = 0;
            std::string example;
            for (size_t i = 0; i < places.size(); i++) {
                if (rules.rules[a].where.empty() || !named[a][i] || !named[b][i]) continue;
                if (both++ == 0) example = place_text(places[i]);
            }
            if (!both) continue;
            notes.push_back(format("--%s: rules %zu and %zu both name %s%s; the later one wins", rules.flag.c_str(),
                                   a + 1, b + 1, example.c_str(),
                                   both > 1 ? format(" and %d more", both - 1).c_str() : ""));
        }
    return notes;
}
