// Hugging Face's config.json of a model (model/config.h): the dialect of transformers 4.x (torch_dtype, rope_theta,
// rope_scaling) and that of 5.x (dtype, rope_parameters). config_to_json writes the older one, which both read.
// Whatever would change the computation and is not implemented here is refused, never ignored.
#pragma once
#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>
#include "../model/config.h"
#include "../runtime/error.h"
#include "../runtime/file_io.h"
#include "../runtime/json.h"

// Member of an object, nullptr when absent or null: transformers treats both alike.
inline const nlohmann::json* config_member(const nlohmann::json& object, const char* key) {
    auto it = object.find(key);
    return it == object.end() || it->is_null() ? nullptr : &*it;
}

inline double config_number(const nlohmann::json& object, const char* key, double fallback, const std::string& where) {
    const nlohmann::json* v = config_member(object, key);
    if (!v) return fallback;
    if (!v->is_number()) fail("%s: %s is not a number", where.c_str(), key);
    return v->get<double>();
}

inline int config_int_value(const nlohmann::json& v, const char* key, const std::string& where) {
    double d = v.is_number() ? v.get<double>() : NAN;
    if (!(std::fabs(d) <= 2147483647.0) || d != std::floor(d))
        fail("%s: %s is not an integer that fits in 32 bits", where.c_str(), key);
    return (int)d;
}

inline int config_int(const nlohmann::json& object, const char* key, int fallback, const std::string& where) {
    const nlohmann::json* v = config_member(object, key);
    return v ? config_int_value(*v, key, where) : fallback;
}

inline int config_required_int(const nlohmann::json& object, const char* key, const std::string& where) {
    const nlohmann::json* v = config_member(object, key);
    if (!v) fail("%s: %s is missing; is this the config.json of a language model?", where.c_str(), key);
    return config_int_value(*v, key, where);
}

inline bool config_bool(const nlohmann::json& object, const char* key, bool fallback, const std::string& where) {
    const nlohmann::json* v = config_member(object, key);
    if (!v) return fallback;
    if (!v->is_boolean()) fail("%s: %s is neither true nor false", where.c_str(), key);
    return v->get<bool>();
}

inline std::string config_string(const nlohmann::json& object, const char* key, const char* fallback,
                                 const std::string& where) {
    const nlohmann::json* v = config_member(object, key);
    if (!v) return fallback;
    if (!v->is_string()) fail("%s: %s is not a string", where.c_str(), key);
    return v->get<std::string>();
}

// eos_token_id is one id or a list of them; new ones go to the end
inline void config_add_eos(const nlohmann::json& object, std::vector<int>* ids, const std::string& where) {
    const nlohmann::json* v = config_member(object, "eos_token_id");
    if (!v) return;
    nlohmann::json list = v->is_array() ? *v : nlohmann::json::array({*v});
    if (list.size() > 64) fail("%s: eos_token_id lists %zu ids; at most 64 are supported", where.c_str(), list.size());
    for (auto& e : list) {
        int id = config_int_value(e, "eos_token_id", where);
        bool known = false;
        for (int old : *ids) known = known || old == id;
        if (!known) ids->push_back(id);
    }
}

// rope_theta and rope scaling of either dialect
inline void config_read_rope(const nlohmann::json& j, ModelConfig* c, const std::string& where) {
    const char* w = where.c_str();
    const nlohmann::json* rope = config_member(j, "rope_scaling");  // 4.x; wins in transformers 5.x too
    const char* source = "rope_scaling";
    if (!rope || rope->empty()) rope = config_member(j, source = "rope_parameters");
    static const nlohmann::json none = nlohmann::json::object();
    if (!rope) rope = &none;
    if (!rope->is_object()) fail("%s: %s is not an object", w, source);
    for (auto& [key, value] : rope->items())
        if (value.is_object())
            fail("%s: %s differs between layer types (%s), which is not supported", w, source, shown(key).c_str());
    double theta = config_number(j, "rope_theta", 10000.0, where);  // the default of all three families
    c->rope_theta = (float)config_number(*rope, "rope_theta", theta, where);
    if (config_number(j, "partial_rotary_factor", 1, where) != 1 ||
        config_number(*rope, "partial_rotary_factor", 1, where) != 1)
        fail("%s: partial_rotary_factor is not 1; only full rotary embeddings are supported", w);
    std::string type = config_string(*rope, "type", "default", where);  // the name of rope_type before 4.43
    type = config_string(*rope, "rope_type", type.c_str(), where);
    if (type == "default") return;
    if (type != "llama3")
        fail("%s: rope scaling of type %s is not supported; default and llama3 are", w, shown(type).c_str());
    c->rope_scaling = RopeScaling::llama3;
    for (const char* key : {"factor", "low_freq_factor", "high_freq_factor"})
        if (!config_member(*rope, key)) fail("%s: %s of type llama3 lacks %s", w, source, key);
    c->factor = (float)config_number(*rope, "factor", 0, where);
    c->low_freq_factor = (float)config_number(*rope, "low_freq_factor", 0, where);
    c->high_freq_factor = (float)config_number(*rope, "high_freq_factor", 0, where);
    c->original_max_position_embeddings =
        config_int(*rope, "original_max_position_embeddings", c->max_position_embeddings, where);
}

// Does a layer see less than all the tokens before it? transformers' rule: the layers that layer_types calls sliding, or
// without it those from max_window_layers on, if use_sliding_window; sliding_window null is none, absent it is 4096. A
// window as long as the context hides nothing.
inline bool config_has_window(const nlohmann::json& j, int layers, int context, const std::string& where) {
    const bool asked = config_bool(j, "use_sliding_window", false, where);
    auto hides = [&] {
        auto window = j.find("sliding_window");
        const bool none = window != j.end() && window->is_null();
        return !none && config_int(j, "sliding_window", 4096, where) < context;
    };
    const nlohmann::json* types = config_member(j, "layer_types");
    if (!types) return asked && config_int(j, "max_window_layers", 28, where) < layers && hides();
    if (!types->is_array()) fail("%s: layer_types is not a list", where.c_str());
    bool sliding = false;
    for (const nlohmann::json& type : *types) {
        if (type != "full_attention" && type != "sliding_attention")
            fail("%s: layer_types holds another type than full_attention", where.c_str());
        sliding |= type == "sliding_attention";
    }
    return sliding && (!asked || hides());
}

// what other models of these families have and this program does not compute
inline void config_refuse_other(const nlohmann::json& j, const ModelConfig& c, const std::string& where) {
    const char* w = where.c_str();
    std::string act = config_string(j, "hidden_act", "silu", where);
    if (act != "silu" && act != "swish")  // two names of one function
        fail("%s: hidden_act is %s; only silu is supported", w, shown(act).c_str());
    if (c.model_type != "qwen2" && config_bool(j, "attention_bias", false, where))
        fail("%s: attention_bias puts a bias on o_proj as well, which is not supported", w);
    if (config_bool(j, "mlp_bias", false, where)) fail("%s: mlp_bias is true, which is not supported", w);
    if (config_has_window(j, c.num_hidden_layers, c.max_position_embeddings, where))
        fail("%s: layers have a sliding window (use_sliding_window, layer_types); only full attention is supported", w);
}

// The text of a config.json; where opens every message.
inline ModelConfig config_from_json(const std::string& text, const std::string& where) {
    const char* w = where.c_str();
    nlohmann::json j = json_parse(text, where);
    if (!j.is_object()) fail("%s: not a JSON object", w);
    ModelConfig c;
    c.model_type = config_string(j, "model_type", "", where);
    if (c.model_type.empty()) fail("%s: model_type is missing; is this the config.json of a language model?", w);
    if (c.model_type != "qwen2" && c.model_type != "qwen3" && c.model_type != "llama")
        fail("%s: model_type %s is not supported; qwen2, qwen3 and llama are", w, shown(c.model_type).c_str());

    c.vocab_size = config_required_int(j, "vocab_size", where);
    c.hidden_size = config_required_int(j, "hidden_size", where);
    c.intermediate_size = config_required_int(j, "intermediate_size", where);
    c.num_hidden_layers = config_required_int(j, "num_hidden_layers", where);
    c.num_attention_heads = config_required_int(j, "num_attention_heads", where);
    c.num_key_value_heads = config_int(j, "num_key_value_heads", c.num_attention_heads, where);
    c.max_position_embeddings = config_required_int(j, "max_position_embeddings", where);
    if (config_member(j, "head_dim")) {
        c.head_dim = config_required_int(j, "head_dim", where);
    } else if (c.model_type == "qwen3") {
        c.head_dim = 128;  // transformers' default
    } else {
        if (c.num_attention_heads < 1 || c.hidden_size % c.num_attention_heads != 0)
            fail("%s: hidden_size %d is not a multiple of num_attention_heads %d, and there is no head_dim", w,
                 c.hidden_size, c.num_attention_heads);
        c.head_dim = c.hidden_size / c.num_attention_heads;
    }
    c.rms_norm_eps = (float)config_number(j, "rms_norm_eps", 1e-6, where);
    c.tie_word_embeddings = config_bool(j, "tie_word_embeddings", false, where);
    c.qkv_bias = c.model_type == "qwen2";
    c.qk_norm = c.model_type == "qwen3";
    config_read_rope(j, &c, where);

    config_refuse_other(j, c, where);
    if (const nlohmann::json* online = config_member(j, "online_rotations")) {
        if (!online->is_object()) fail("%s: online_rotations is not an object", w);
        for (auto& [key, value] : online->items())
            if (key != "qk" && key != "down")
                fail("%s: online_rotations: %s is not supported; qk and down are", w, shown(key).c_str());
        c.rotate_qk = config_int(*online, "qk", 0, where);
        c.rotate_down = config_int(*online, "down", 0, where);
    }

    c.transformed = config_bool(j, "input_transforms", false, where);

    config_add_eos(j, &c.eos_token_ids, where);
    c.bos_token_id = config_int(j, "bos_token_id", -1, where);
    c.pad_token_id = config_int(j, "pad_token_id", -1, where);
    c.torch_dtype = config_string(j, "dtype", "bfloat16", where);
    c.torch_dtype = config_string(j, "torch_dtype", c.torch_dtype.c_str(), where);
    config_check(c, where);
    return c;
}

// config.json of a model folder; the stop tokens of generation_config.json beside it are added.
inline ModelConfig config_load(const std::string& dir) {
    std::string path = dir + "/config.json", generation = dir + "/generation_config.json";
    if (!file_exists(path)) fail("%s has no config.json; give the folder of a Hugging Face model", dir.c_str());
    const uint64_t limit = 64 << 20;
    ModelConfig c = config_from_json(read_file(path, limit), path);
    if (file_exists(generation)) {
        nlohmann::json j = json_parse(read_file(generation, limit), generation);
        if (!j.is_object()) fail("%s: not a JSON object", generation.c_str());
        config_add_eos(j, &c.eos_token_ids, generation);
        config_check(c, generation);
    }
    return c;
}

// The decimal number that a person would have written for x: 1e-6f -> 1e-06, not 9.99999997e-07.
inline double shortest_decimal(float x) {
    char text[32];
    for (int digits = 1; digits <= 9; digits++) {
        snprintf(text, sizeof(text), "%.*g", digits, x);
        if (strtof(text, nullptr) == x) break;
    }
    return strtod(text, nullptr);
}

inline std::string config_to_json(const ModelConfig& c) {
    nlohmann::ordered_json j;
    j["architectures"] = {c.model_type == "qwen2"   ? "Qwen2ForCausalLM"
                          : c.model_type == "qwen3" ? "Qwen3ForCausalLM"
                                                    : "LlamaForCausalLM"};
    j["model_type"] = c.model_type;
    j["vocab_size"] = c.vocab_size;
    j["hidden_size"] = c.hidden_size;
    j["intermediate_size"] = c.intermediate_size;
    j["num_hidden_layers"] = c.num_hidden_layers;
    j["num_attention_heads"] = c.num_attention_heads;
    j["num_key_value_heads"] = c.num_key_value_heads;
    j["head_dim"] = c.head_dim;
    j["max_position_embeddings"] = c.max_position_embeddings;
    j["hidden_act"] = "silu";
    j["rms_norm_eps"] = shortest_decimal(c.rms_norm_eps);
    j["rope_theta"] = shortest_decimal(c.rope_theta);
    j["rope_scaling"] = nullptr;
    if (c.rope_scaling == RopeScaling::llama3)
        j["rope_scaling"] = {{"rope_type", "llama3"},
                             {"factor", shortest_decimal(c.factor)},
                             {"low_freq_factor", shortest_decimal(c.low_freq_factor)},
                             {"high_freq_factor", shortest_decimal(c.high_freq_factor)},
                             {"original_max_position_embeddings", c.original_max_position_embeddings}};
    j["tie_word_embeddings"] = c.tie_word_embeddings;
    if (c.model_type != "qwen2") j["attention_bias"] = false;
    if (c.model_type == "llama") j["mlp_bias"] = false;
    else j["use_sliding_window"] = false;
    if (c.rotate_qk) j["online_rotations"]["qk"] = c.rotate_qk;
    if (c.rotate_down) j["online_rotations"]["down"] = c.rotate_down;
    if (c.transformed) j["input_transforms"] = true;
    j["attention_dropout"] = 0.0;
    j["initializer_range"] = 0.02;
    j["use_cache"] = true;
    j["bos_token_id"] = nullptr;
    j["pad_token_id"] = nullptr;
    j["eos_token_id"] = nullptr;
    if (c.bos_token_id >= 0) j["bos_token_id"] = c.bos_token_id;
    if (c.pad_token_id >= 0) j["pad_token_id"] = c.pad_token_id;
    if (c.eos_token_ids.size() == 1) j["eos_token_id"] = c.eos_token_ids[0];
    else if (c.eos_token_ids.size() > 1) j["eos_token_id"] = c.eos_token_ids;
    j["torch_dtype"] = c.torch_dtype;
    return j.dump(2) + "\n";
}
