// LoRA adapters as PEFT keeps them: a folder with adapter_config.json and adapter_model.safetensors, in which
//   base_model.model.MODULE.lora_A.weight [r,in]    base_model.model.MODULE.lora_B.weight [out,r]
// stand for the module model.layers.0.self_attn.q_proj and so on. PeftModel.from_pretrained(model, folder) opens what
// is written here. The function is y = x W^T + s (x A^T) B^T with s = lora_alpha / r, or lora_alpha / sqrt(r) with
// use_rslora.
//
// What would make another function of it (DoRA, ranks or alphas of single modules, trained biases, other modules than
// the seven projections) is refused, not ignored.
#pragma once
#include <cmath>
#include <set>
#include <string>
#include <vector>
#include "../model/adapter.cuh"
#include "hf_config.h"
#include "safetensors.h"

static constexpr const char* peft_modules[] = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                               "gate_proj", "up_proj", "down_proj"};

struct PeftAdapter {
    std::string path, base;  // base_model_name_or_path
    LoraConfig config;
    SafetensorsFile file;
};

// "model.layers.0.self_attn.q_proj.weight" -> "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
inline std::string peft_name(const std::string& weight, char which) {
    std::string module = weight.substr(0, weight.size() - strlen(".weight"));
    return "base_model.model." + module + ".lora_" + which + ".weight";
}

// adapter_config.json -> configuration and base
inline void peft_config_from_json(const std::string& text, const std::string& where, LoraConfig* c, std::string* base) {
    const nlohmann::json j = json_parse(text, where);
    const char* w = where.c_str();
    if (!j.is_object()) fail("%s: not a JSON object", w);
    std::string type = config_string(j, "peft_type", "", where);
    if (type != "LORA") fail("%s: peft_type is %s; only LORA adapters can be read", w, shown(type).c_str());
    // each of these changes the function or trains something else
    for (const char* key :
         {"use_dora", "use_qalora", "use_bdlora", "lora_bias", "fan_in_fan_out", "modules_to_save", "rank_pattern",
          "alpha_pattern", "layers_to_transform", "layers_pattern", "layer_replication", "exclude_modules",
          "trainable_token_indices", "target_parameters", "alora_invocation_tokens", "velora_config",
          "monteclora_config", "arrow_config", "kasa_config"}) {
        const nlohmann::json* v = config_member(j, key);
        if (v && !(v->is_boolean() && !v->get<bool>()) && !(v->is_structured() && v->empty()))
            fail("%s: %s is %s, which is not supported; train the adapter without it", w, key,
                 shown(v->dump()).c_str());
    }
    std::string bias = config_string(j, "bias", "none", where);
    if (bias != "none") fail("%s: bias is %s; adapters with trained biases are not supported", w, shown(bias).c_str());
    if (const nlohmann::json* init = config_member(j, "init_lora_weights"))
        if (init->is_string() && *init != "gaussian" && *init != "orthogonal" && *init != "eva")
            fail(
                "%s: init_lora_weights is %s, for which the base was changed; convert the adapter to one of the "
                "original base (PEFT's path_initial_model_for_weight_conversion)",
                w, shown(init->dump()).c_str());
    c->r = config_int(j, "r", 8, where);
    c->alpha = config_number(j, "lora_alpha", 8.0, where);
    c->dropout = config_number(j, "lora_dropout", 0.0, where);
    c->rslora = config_bool(j, "use_rslora", false, where);
    if (c->r < 1 || c->r > 1024) fail("%s: r is %d, not in 1 to 1024", w, c->r);
    if (!std::isfinite(c->alpha)) fail("%s: lora_alpha is not a number", w);
    if (!(c->dropout >= 0.0 && c->dropout < 1.0)) fail("%s: lora_dropout is %g, not in [0, 1)", w, c->dropout);
    *base = config_string(j, "base_model_name_or_path", "", where);

    const nlohmann::json* modules = config_member(j, "target_modules");
    if (!modules) fail("%s: target_modules is missing", w);
    if (modules->is_string() && *modules == "all-linear") {
        c->target = "all";
        return;
    }
    if (!modules->is_array() || modules->empty())
        fail("%s: target_modules is %s; a list of module names is expected", w, shown(modules->dump()).c_str());
    std::set<std::string> names;
    for (const nlohmann::json& m : *modules) {
        std::string name = m.is_string() ? m.get<std::string>() : m.dump();
        bool known = false;
        for (const char* p : peft_modules) known = known || name == p;
        if (!known)
            fail(
                "%s: the target module %s is unknown here; q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj and "
                "down_proj can have adapters",
                w, shown(name).c_str());
        names.insert(name);
    }
    c->target.clear();
    for (std::string p : peft_modules)
        if (names.count(p)) c->target += (c->target.empty() ? "" : ",") + p.substr(0, p.size() - strlen("_proj"));
    if (names.size() == 7) c->target = "all";
}

inline PeftAdapter peft_open(const std::string& dir) {
    PeftAdapter p;
    p.path = dir;
    std::string config = dir + "/adapter_config.json", model = dir + "/adapter_model.safetensors";
    if (!file_exists(config))
        fail("--adapter %s: there is no adapter_config.json in it; name the folder of a PEFT adapter", dir.c_str());
    if (!file_exists(model))
        fail("--adapter %s: there is no adapter_model.safetensors in it%s", dir.c_str(),
             file_exists(dir + "/adapter_model.bin") ? "; save it with safe_serialization=True" : "");
    peft_config_from_json(read_file(config, 1 << 20), config, &p.config, &p.base);
    p.file = st_open(model);
    return p;
}

// the adapter into l.master, whose places were allocated for p.config; fails unless the file has exactly those
inline void peft_load(const PeftAdapter& p, Lora& l, Device dev) {
    std::string where = p.path + "/adapter_model.safetensors";
    std::set<std::string> used;
    std::vector<float> host(l.num_params);
    const int64_t r = l.config.r;
    for (const LoraTensor& t : l.tensors)
        for (char which : {'A', 'B'}) {
            std::string name = peft_name(t.name, which);
            float* to = host.data() + (which == 'A' ? t.a : t.b);
            const int64_t rows = which == 'A' ? r : t.rows, cols = which == 'A' ? t.cols : r;
            st_read_float(st_require(p.file.tensors, name, {rows, cols}, where), to);
            for (int64_t i = 0; i < rows * cols; i++)
                if (!std::isfinite(to[i]))
                    fail("%s: tensor %s holds a number that is not finite; the file is damaged", where.c_str(),
                         name.c_str());
            used.insert(name);
        }
    for (const auto& t : p.file.tensors)
        if (!used.count(t.first))
            fail("%s: tensor %s belongs to no projection of this model; is it the adapter of another one?",
                 where.c_str(), shown(t.first).c_str());
    copy_to_device(l.master.data, host.data(), host.size() * sizeof(float), dev);
    device_synchronize(dev);
}

inline std::string peft_config_to_json(const LoraConfig& c, const std::string& base) {
    nlohmann::ordered_json j;
    j["peft_type"] = "LORA";
    j["task_type"] = "CAUSAL_LM";
    j["base_model_name_or_path"] = base;
    j["r"] = c.r;
    if (c.alpha == std::floor(c.alpha) && std::fabs(c.alpha) < 1e9) j["lora_alpha"] = (int64_t)c.alpha;
    else j["lora_alpha"] = c.alpha;
    j["lora_dropout"] = c.dropout;
    j["bias"] = "none";
    j["target_modules"] = nlohmann::ordered_json::array();
    for (std::string p : peft_modules)
        if (c.target == "all" ||
            ("," + c.target + ",").find("," + p.substr(0, p.size() - strlen("_proj")) + ",") != std::string::npos)
            j["target_modules"].push_back(p);
    j["fan_in_fan_out"] = false;
    j["inference_mode"] = true;
    j["init_lora_weights"] = true;
    j["use_rslora"] = c.rslora;
    j["use_dora"] = false;
    j["modules_to_save"] = nullptr;
    j["layers_to_transform"] = nullptr;
    j["rank_pattern"] = nlohmann::ordered_json::object();
    j["alpha_pattern"] = nlohmann::ordered_json::object();
    return j.dump(2) + "\n";
}

// adapter_config.json and adapter_model.safetensors (float32, what was trained) into an existing folder
inline void peft_save(const Lora& l, const std::string& dir, const std::string& base, Device dev) {
    std::vector<float> host(l.num_params);
    copy_to_host(host.data(), l.master.data, l.num_params * sizeof(float), dev);
    std::vector<StWriteTensor> tensors;
    for (const LoraTensor& t : l.tensors) {
        tensors.push_back(st_from_float(peft_name(t.name, 'A'), "F32", {l.config.r, t.cols}, host.data() + t.a));
        tensors.push_back(st_from_float(peft_name(t.name, 'B'), "F32", {t.rows, l.config.r}, host.data() + t.b));
    }
    write_file_atomic(dir + "/adapter_config.json", peft_config_to_json(l.config, base));
    st_write(dir + "/adapter_model.safetensors", tensors);
}
