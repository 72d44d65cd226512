// config.json with generation_config.json beside it. What is read is written and read back as the same model, and the
// text that is written is a fixed point.
#include "../../formats/hf_config.h"
#include "fuzz.h"

static int fuzz_config(const uint8_t* data, size_t size) {
    static const FuzzFolder folder;
    folder.put(fuzz_files(data, size, "config.json"), {"config.json", "generation_config.json"});
    ModelConfig c;
    if (!fuzz_accepts([&] { c = config_load(folder.path); })) return 0;
    const std::string text = config_to_json(c);
    const ModelConfig r = config_from_json(text, "what was written");
    fuzz_require(config_to_json(r) == text, "the text is the same");
    auto parts = [](const ModelConfig& m) {
        return std::make_tuple(m.model_type, m.vocab_size, m.hidden_size, m.intermediate_size, m.num_hidden_layers,
                               m.num_attention_heads, m.num_key_value_heads, m.head_dim, m.max_position_embeddings,
                               m.rms_norm_eps, m.rope_theta, m.tie_word_embeddings, m.qkv_bias, m.qk_norm,
                               m.rope_scaling, m.rotate_qk, m.rotate_down, m.eos_token_ids, m.bos_token_id,
                               m.pad_token_id, m.torch_dtype);
    };
    fuzz_require(parts(c) == parts(r), "the model is the same");
    auto scaling = [](const ModelConfig& m) {
        return std::make_tuple(m.factor, m.low_freq_factor, m.high_freq_factor, m.original_max_position_embeddings);
    };
    fuzz_require(c.rope_scaling == RopeScaling::none || scaling(c) == scaling(r), "its rope scaling is the same");
    return 0;
}
FUZZ_TARGET(config)
