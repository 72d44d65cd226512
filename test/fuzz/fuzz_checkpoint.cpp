// What lies beside a checkpoint's weights, here those of a model of one layer: an adapter as PEFT has it,
// quantizer.json, quantizer.safetensors, masters.safetensors, source.json. Each, read and written, is read as the same;
// a model whose masters belong to its codes has the same working weights with them and without.
#include "../../commands/quantizer_options.cuh"
#include "../../formats/masters_file.h"
#include "../../formats/peft.h"
#include "../../formats/source_file.h"
#include "fuzz.h"

static void fuzz_save_model(const std::string& path) {
    Model m;
    ModelConfig c;
    c.model_type = "qwen3";
    c.vocab_size = 4, c.hidden_size = c.intermediate_size = 16, c.num_hidden_layers = 1;
    c.num_attention_heads = c.num_key_value_heads = 1, c.head_dim = 16, c.max_position_embeddings = 8;
    c.tie_word_embeddings = c.qk_norm = true;
    model_allocate(m, c);
    model_init_random(m, 1);
    model_save(m, path, "float32", [](const std::string&) {});
}

static void fuzz_adapter(const std::string& folder) {
    static const FuzzFolder again;
    PeftAdapter a;
    Model m, r;
    if (!fuzz_accepts([&] { a = peft_open(folder); })) return;
    auto load = [&](Model& to, const PeftAdapter& from) {
        model_allocate(to, model_config(folder));
        model_adapt(to, from.config, 1, true);
        peft_load(from, to.lora, to.dev);
    };
    auto parts = [](const PeftAdapter& p) {
        const LoraConfig& c = p.config;
        return std::make_tuple(p.base, c.r, c.alpha, c.dropout, c.rslora, c.target);
    };
    LoraConfig config;
    std::string base;
    peft_config_from_json(peft_config_to_json(a.config, a.base), "what was written", &config, &base);
    if (!fuzz_accepts([&] { load(m, a); })) return;
    peft_save(m.lora, again.path, a.base, m.dev);
    const PeftAdapter b = peft_open(again.path);
    load(r, b);
    fuzz_require(parts(a) == parts(b) && m.lora.num_params == r.lora.num_params &&
                     memcmp(m.lora.master.data, r.lora.master.data, m.lora.master.bytes()) == 0,
                 "an adapter is read as it was written");
}

// m as a run has it that goes on from `weights` with the quantizer and the grids of `grids`
static void fuzz_quantized(Model& m, const std::string& weights, const std::string& grids, ScaleMode mode,
                           bool masters) {
    model_allocate(m, model_config(weights));
    QuantizerRules rules = rules_parse(policy_rules(policy_load(grids), "weights", grids), "weights");
    for (QuantizerRule& rule : rules.rules) rule.quantizer.scale_mode = mode;
    model_quantize(m, rules, true);
    model_load_weights(m, weights);
    quantizer_load(m, grids);
    if (masters) masters_load(m, weights);
    model_refresh(m);
}

static void fuzz_quantizer(const std::string& folder, ScaleMode mode) {
    static const FuzzFolder again;
    for (const char* name : {"activations", "kv_cache"})
        fuzz_accepts([&] { policy_rules(policy_load(folder), name, folder); });
    Model m, r;
    if (!fuzz_accepts([&] { fuzz_quantized(m, folder, folder, mode, true); })) return;
    again.put(FuzzFiles(), {"quantizer.json", "quantizer.safetensors"});
    policy_save(m, again.path);
    quantizer_save(m, again.path);
    fuzz_quantized(r, folder, again.path, mode, false);
    // scales that were not trained before are where their training begins, and not quite what was kept
    const bool kept = mode == ScaleMode::kept && file_exists(again / "quantizer.safetensors");
    fuzz_require(!kept || memcmp(m.work.data, r.work.data, m.work.bytes()) == 0, "the weights are the same");
    fuzz_require(rules_text(m.weight_rules) == rules_text(r.weight_rules), "the rules are the same");
}

static int fuzz_checkpoint(const uint8_t* data, size_t size) {
    static const FuzzFolder folder, again;
    static bool ready = false;
    if (!ready) fuzz_save_model(folder.path), ready = true;
    folder.put(fuzz_files(data, size, "quantizer.json"),
               {"adapter_config.json", "adapter_model.safetensors", "quantizer.json", "quantizer.safetensors",
                "masters.safetensors", "source.json"});
    ModelSource source;
    if (fuzz_accepts([&] { source = source_load(folder.path); }) && source.known()) {
        source_save(source, again.path);
        const ModelSource read = source_load(again.path);
        fuzz_require(read.path == source.path && read.hash == source.hash, "a source is read as it was written");
    }
    fuzz_adapter(folder.path);
    fuzz_quantizer(folder.path, size % 2 ? ScaleMode::kept : ScaleMode::learned);
    return 0;
}
FUZZ_TARGET(checkpoint)
