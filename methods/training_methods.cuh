// The methods of --methods, and several of them as one: NAME[:SETTING=VALUE ...] joined by +, which act in that order.
#pragma once
#include "cage.cuh"
#include "dampen.cuh"
#include "efqat.cuh"
#include "end_to_end.cuh"
#include "freeze.cuh"
#include "invariant_scaling.cuh"
#include "roste.cuh"
#include "rounding_noise.cuh"
#include "training_method.cuh"

// the table
inline const std::vector<const MethodRow*>& training_methods() {
    static const std::vector<const MethodRow*> rows = {
        &cage_row,        //
        &dampen_row,      //
        &efqat_row,       //
        &end_to_end_row,  //
        &freeze_row,      //
        &invariant_scaling_row,
        &roste_row,
        &rounding_noise_row,
    };
    return rows;
}

inline const MethodRow* find_training_method(const std::string& name) {
    for (const MethodRow* r : training_methods())
        if (name == r->name) return r;
    return nullptr;
}

// why two of them cannot be together; nullptr: they can
inline const char* method_conflict(const MethodRow& a, const MethodRow& b) {
    for (const MethodConflict& c : a.conflicts)
        if (std::string(c.other) == b.name) return c.why;
    for (const MethodConflict& c : b.conflicts)
        if (std::string(c.other) == a.name) return c.why;
    return nullptr;
}

struct TrainingMethods {
    std::vector<std::unique_ptr<TrainingMethod>> list;
    std::vector<std::string> names;
};

// fails where the text names what is not there, or two that cannot be together
inline TrainingMethods training_methods_parse(const std::string& text) {
    TrainingMethods methods;
    if (text == "none") return methods;
    std::vector<std::string> all;
    for (const MethodRow* r : training_methods()) all.push_back(r->name);
    std::vector<const MethodRow*> rows;
    for (const std::string& part : split_words(text, "+")) {
        const std::string name = split_words(part, ":")[0];
        const MethodRow* row = find_training_method(name);
        if (!row)
            fail_usage("--methods: '%s' is not one of %s%s (train_qrl help methods)", printable(name).c_str(),
                       join_words(all).c_str(), did_you_mean(name, all).c_str());
        for (const MethodRow* other : rows) {
            if (other == row) fail_usage("--methods: %s is given twice", row->name);
            if (const char* why = method_conflict(*other, *row))
                fail_usage("--methods: %s and %s do not go together: %s", other->name, row->name, why);
        }
        rows.push_back(row);
        methods.list.push_back(row->make(settings_of(part, row->settings, "methods")));
        methods.names.push_back(row->name);
    }
    return methods;
}

// help methods
inline std::string training_methods_help() {
    std::string text = "--methods NAME[:SETTING=VALUE ...], several joined by +, as in cage:lambda=10+freeze\n\n";
    for (const MethodRow* r : training_methods()) text += format("  %-8s %s\n", r->name, r->help) + settings_help(r->settings);
    return text;
}
