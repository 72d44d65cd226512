// Shapes of the models that benchmarks are in, with random weights. Those of the published config.json files.
#pragma once
#include "../model/config.h"

struct BenchShape {
    const char *name, *title;
    ModelConfig config;
};

inline ModelConfig shape_config(const char* type, int C, int F, int L, int NH, int NKV, int HD, int V) {
    ModelConfig c;
    c.model_type = type;
    c.hidden_size = C, c.intermediate_size = F, c.num_hidden_layers = L;
    c.num_attention_heads = NH, c.num_key_value_heads = NKV, c.head_dim = HD, c.vocab_size = V;
    c.max_position_embeddings = 8192;
    c.rope_theta = 100000.0f;
    c.tie_word_embeddings = true;
    c.qkv_bias = c.model_type == "qwen2", c.qk_norm = c.model_type == "qwen3";
    return c;
}

inline const std::vector<BenchShape>& bench_shapes() {
    static const std::vector<BenchShape> table = {
        {"135m", "SmolLM2-135M", shape_config("llama", 576, 1536, 30, 9, 3, 64, 49152)},
        {"0.5b", "Qwen2.5-0.5B", shape_config("qwen2", 896, 4864, 24, 14, 2, 64, 151936)},
        {"0.6b", "Qwen3-0.6B", shape_config("qwen3", 1024, 3072, 28, 16, 8, 128, 151936)},
        {"1.5b", "Qwen2.5-1.5B", shape_config("qwen2", 1536, 8960, 28, 12, 2, 128, 151936)}};
    return table;
}
