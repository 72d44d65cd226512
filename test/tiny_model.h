// The model of tests that train, sample or quantize: a Qwen3 whose heads are wider than C / NH, with a vocabulary that no
// tile divides.
#pragma once
#include "../model/parameters.cuh"
#include "test_rules.h"

// where the depth is of no interest: simulated kernels take most of the time of the tests
#if defined(TRAIN_QRL_SIMT)
static constexpr int TINY_LAYERS = 1;
#else
static constexpr int TINY_LAYERS = 2;
#endif

inline ModelConfig tiny_config(int layers = TINY_LAYERS) {
    ModelConfig c;
    c.model_type = "qwen3";
    c.vocab_size = 101;
    c.hidden_size = 64;
    c.intermediate_size = 96;
    c.num_hidden_layers = layers;
    c.num_attention_heads = 4;
    c.num_key_value_heads = 2;
    c.head_dim = 24;
    c.max_position_embeddings = 64;
    c.tie_word_embeddings = true;
    c.qk_norm = true;
    config_check(c, "tiny model");
    return c;
}
