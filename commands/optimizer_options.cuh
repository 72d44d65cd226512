// From the options to the optimizer and the rates of its parameter groups.
#pragma once
#include <set>
#include <string>
#include "../optimizers/optimizer.cuh"
#include "../runtime/options.h"

// "norms=0, embeddings=1e-5": give(group, number) for each
template <class Give>
void parse_group_values(const std::string& text, const char* flag, const Give& give) {
    if (text.empty()) return;
    std::vector<std::string> names;
    for (const char* name : param_group_names) names.push_back(name);
    std::set<std::string> seen;
    for (const std::string& word : split_words(text, ",")) {
        const size_t equals = word.find('=');
        const std::string name = word.substr(0, equals);
        if (equals == std::string::npos)
            fail_usage("--%s: '%s' is not GROUP=NUMBER, such as norms=0", flag, printable(word).c_str());
        const auto at = std::find(names.begin(), names.end(), name);
        if (at == names.end())
            fail_usage("--%s: '%s' is not one of %s%s", flag, printable(name).c_str(), join_words(names).c_str(),
                       did_you_mean(name, names).c_str());
        if (!seen.insert(name).second) fail_usage("--%s: %s is given twice", flag, name.c_str());
        const char* number = word.c_str() + equals + 1;
        char* end = nullptr;
        const double value = strtod(number, &end);
        if (end == number || *end || !(value >= 0.0 && value <= 10.0))
            fail_usage("--%s: %s: '%s' is not a number in [0, 10]", flag, name.c_str(), printable(number).c_str());
        give((ParamGroup)(at - names.begin()), value);
    }
}

inline OptimizerConfig optimizer_config(const Options& o) {
    OptimizerConfig c;
    c.name = o.optim;
    optimizer_rule(c.name);  // or it says which there are
    c.beta1 = (float)o.adam_beta1, c.beta2 = (float)o.adam_beta2, c.epsilon = (float)o.adam_epsilon;
    c.momentum = (float)o.muon_momentum;
    c.seed = o.seed;
    optimizer_rates(c, o.learning_rate, o.weight_decay);
    c.of(ParamGroup::scales).learning_rate = o.scale_learning_rate >= 0.0 ? o.scale_learning_rate
                                             : o.learned_scale == "lwc"   ? 0.01
                                                                          : o.learning_rate;
    parse_group_values(o.group_learning_rates, "group_learning_rates",
                       [&](ParamGroup g, double v) { c.of(g).learning_rate = v; });
    parse_group_values(o.group_weight_decays, "group_weight_decays",
                       [&](ParamGroup g, double v) { c.of(g).weight_decay = v; });
    return c;
}

// What is trained must be something that the optimizer takes, and what is set something that is used
inline void check_optimizer(const Options& o, const Optimizer& optimizer) {
    auto trained = [&](const char* flag) {
        return [&optimizer, flag](ParamGroup g, double) {
            for (const OptimizerTensor& t : optimizer.tensors)
                if (t.group == g) return;
            fail_usage("--%s: nothing of the group %s is trained here; leave it out", flag, param_group_names[(int)g]);
        };
    };
    parse_group_values(o.group_learning_rates, "group_learning_rates", trained("group_learning_rates"));
    parse_group_values(o.group_weight_decays, "group_weight_decays", trained("group_weight_decays"));
    if (o.muon_momentum != Options().muon_momentum && o.optim != "muon")
        fail_usage("--muon_momentum belongs to --optim muon");
    for (const OptimizerTensor& t : optimizer.tensors)
        if (t.rule->name == o.optim) return;
    fail_usage("--optim %s: nothing that is trained here would get it (%s); use --optim adamw", o.optim.c_str(),
               optimizer_text(optimizer).c_str());
}
