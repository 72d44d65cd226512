// How tests name quantizers and their training
#pragma once
#include "../model/quantizer_rules.h"

inline QuantizerRules rules_of(const std::string& weights, const std::string& layers = "all",
                               ScaleMode mode = ScaleMode::dynamic, SteRule ste = SteRule::identity,
                               LearnedScale learned = LearnedScale::lsq) {
    QuantizerRules rules = rules_parse(weights, "weights", layers);
    for (QuantizerRule& r : rules.rules)
        r.quantizer.scale_mode = mode, r.quantizer.ste = ste, r.quantizer.learned_scale = learned;
    return rules;
}

// the same of activations or the KV cache
inline QuantizerRules rules_for(const char* flag, const std::string& text, const std::string& layers = "all") {
    return rules_parse(text, flag, layers);
}
