// The shape of a model of the Qwen2, Qwen3 and Llama families, and whether its sizes fit together.
// The trap: head_dim is not hidden_size / num_attention_heads (Qwen3-0.6B: 128, not 64), so NH * HD differs from C.
#pragma once
#include <string>
#include <tuple>
#include <vector>
#include "../runtime/error.h"
#include "../runtime/file_io.h"
#include "../runtime/printable.h"
#include "input_transform.h"

enum class RopeScaling {
    none,
    llama3,  // Llama 3.1: low frequencies divided by factor, high ones kept, a linear blend between
};

struct ModelConfig {
    std::string model_type;           // "qwen2", "qwen3" or "llama"
    int vocab_size = 0;               // V, rows of the embedding; may exceed the tokenizer's vocabulary (padding rows)
    int hidden_size = 0;              // C
    int intermediate_size = 0;        // F
    int num_hidden_layers = 0;        // L
    int num_attention_heads = 0;      // NH
    int num_key_value_heads = 0;      // NKV, divides NH
    int head_dim = 0;                 // HD, even
    int max_position_embeddings = 0;  // largest T the model was made for
    float rms_norm_eps = 1e-6f;
    float rope_theta = 10000.0f;
    bool tie_word_embeddings = false;  // the LM head is the embedding [V, C]
    bool qkv_bias = false;             // biases of q [NH*HD], k and v [NKV*HD] (qwen2)
    bool qk_norm = false;              // RMSNorm over HD on q and k before RoPE (qwen3)

    RopeScaling rope_scaling = RopeScaling::none;
    float factor = 1.0f;  // the four fields of llama3
    float low_freq_factor = 1.0f;
    float high_freq_factor = 4.0f;
    int original_max_position_embeddings = 0;

    // Orders of the Hadamard transforms that a forward does online, 0: none (kernels/hadamard.cuh). Only this program
    // knows their key, "online_rotations": {"qk": 64, "down": 8960}; another would compute with wrong weights.
    int rotate_qk = 0;    // of segments of each head of q and k after RoPE
    int rotate_down = 0;  // of segments of the input of down_proj
    // Learned transforms of the inputs of the layers' linears, likewise ("input_transforms": true); their numbers lie
    // beside config.json (formats/transforms_file.h)
    bool transformed = false;
    InputTransforms transforms;

    std::vector<int> eos_token_ids;  // each ends a completion
    int bos_token_id = -1;           // -1: none
    int pad_token_id = -1;
    std::string torch_dtype = "bfloat16";  // of the stored weights
};

// Fails with one line unless every size is plausible and the sizes fit together. Under the caps no weight has
// more than 2^38 values.
inline void config_check(const ModelConfig& c, const std::string& where) {
    const char* w = where.c_str();
    if (c.model_type != "qwen2" && c.model_type != "qwen3" && c.model_type != "llama")
        fail("%s: model_type %s is not supported; qwen2, qwen3 and llama are", w, shown(c.model_type).c_str());
    struct {
        const char* name;
        int value, cap;
    } sizes[] = {
        {"vocab_size", c.vocab_size, 1 << 22},
        {"hidden_size", c.hidden_size, 1 << 16},
        {"intermediate_size", c.intermediate_size, 1 << 20},
        {"num_hidden_layers", c.num_hidden_layers, 1024},
        {"num_attention_heads", c.num_attention_heads, 1024},
        {"num_key_value_heads", c.num_key_value_heads, 1024},
        {"head_dim", c.head_dim, 1024},
        {"max_position_embeddings", c.max_position_embeddings, 1 << 27},
    };
    for (auto& s : sizes)
        if (s.value < 1 || s.value > s.cap) fail("%s: %s is %d; 1 to %d are supported", w, s.name, s.value, s.cap);
    if (c.num_attention_heads % c.num_key_value_heads != 0)
        fail("%s: num_attention_heads %d is not a multiple of num_key_value_heads %d", w, c.num_attention_heads,
             c.num_key_value_heads);
    if (c.head_dim % 2 != 0) fail("%s: head_dim is %d; rotary embeddings need an even one", w, c.head_dim);
    if (!(c.rms_norm_eps > 0 && c.rms_norm_eps <= 0.1f))
        fail("%s: rms_norm_eps is %g; a value in (0, 0.1] is expected", w, c.rms_norm_eps);
    if (!(c.rope_theta >= 1 && c.rope_theta <= 1e12f))
        fail("%s: rope_theta is %g; 1 to 1e12 are supported", w, c.rope_theta);
    if (c.qkv_bias != (c.model_type == "qwen2"))
        fail("%s: q, k and v biases belong to qwen2 and to no other model_type (this is %s)", w, c.model_type.c_str());
    if (c.qk_norm != (c.model_type == "qwen3"))
        fail("%s: q and k norms belong to qwen3 and to no other model_type (this is %s)", w, c.model_type.c_str());
    if (c.rope_scaling == RopeScaling::llama3 &&
        !(c.factor >= 1 && c.factor <= 1e6f && c.low_freq_factor > 0 && c.low_freq_factor < c.high_freq_factor &&
          c.high_freq_factor <= 1e6f && c.original_max_position_embeddings > 0))
        fail(
            "%s: llama3 rope scaling needs factor >= 1, 0 < low_freq_factor < high_freq_factor and a positive "
            "original_max_position_embeddings (it has %g, %g, %g, %d)",
            w, c.factor, c.low_freq_factor, c.high_freq_factor, c.original_max_position_embeddings);
    for (auto [key, N, n] :
         {std::tuple{"qk", c.rotate_qk, c.head_dim}, std::tuple{"down", c.rotate_down, c.intermediate_size}})
        if (N < 0 || (N > 0 && n % N)) fail("%s: online_rotations: %s of order %d does not divide %d", w, key, N, n);
    for (int id : c.eos_token_ids)
        if (id < 0 || id >= c.vocab_size)
            fail("%s: eos_token_id %d is outside the vocabulary of %d", w, id, c.vocab_size);
    for (int id : {c.bos_token_id, c.pad_token_id})
        if (id < -1 || id >= c.vocab_size)
            fail("%s: a bos or pad token id %d is outside the vocabulary of %d", w, id, c.vocab_size);
}
