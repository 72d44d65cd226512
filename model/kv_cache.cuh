// The KV cache of a model, plain or as codes, layer by layer, and attention over it.
#pragma once
#include "../kernels/rope.cuh"
#include "activations.cuh"
#include "quantize.cuh"

// Keys and values of earlier tokens: place 0 holds prompts, place 1 the sampled tokens (kernels/attention.cuh)
struct KVCache {
    Buffer<floatX> k[2], v[2];                // of the layers without a quantizer: [rows, NKV*HD] each; of those
    Buffer<uint32_t> k_codes[2], v_codes[2];  // with one: [rows, kv_row_words] (kernels/kv_quant.cuh)
    std::vector<int64_t> first[2];            // [L] where a layer begins in its array
    int64_t rows[2] = {0, 0};
    int64_t width = 0;  // NKV*HD
};

// of a layer; bits 0 without a quantizer
inline KvQuant layer_kv_quant(const Model& m, int l) {
    const Quantizer& own = m.layers[l].kv;
    KvQuant q;
    q.spec = own.spec, q.NKV = m.NKV(), q.HD = m.HD();
    q.group = own.scope == QuantScope::group ? own.group : q.HD;
    q.bits = own.on() ? kv_stored_bits(q.spec) : 0;
    return q;
}

// fails if keys and values cannot be quantized so, in heads of head_dim
inline void check_kv_quantizer(const Quantizer& q, int head_dim, const std::string& flag = "kv_cache") {
    if (!q.on()) return;
    std::string text = quantizer_text(q, "token");
    auto refuse = [&](const std::string& why) { fail_usage("--%s %s: %s", flag.c_str(), text.c_str(), why.c_str()); };
    if (q.scope == QuantScope::tensor || !quant_traits(q.spec).kv_cache)
        refuse(
            "a token that is added would change the scale of the others; choose int8:token:asym, int4:token:asym, "
            "fp8e4m3:token, nf4 or mxfp4");
    if (q.double_quant) refuse("scales of single tokens are not quantized again; leave :dq out");
    if (q.spec.rule == ScaleRule::mse) refuse("no search for a scale at every token; choose amax, amax7 or signedmax");
    if (q.spec.rule == ScaleRule::gauss) refuse("the scale of a token comes from its range alone; choose amax");
    int group = q.scope == QuantScope::group ? q.group : head_dim, bits = kv_stored_bits(q.spec);
    if (head_dim % group) refuse(format("groups of %d do not divide heads of %d; choose a divisor", group, head_dim));
    if (group * bits % 8)
        refuse(format("%d codes of %d bits do not fill whole bytes; choose another group", group, bits));
}

// fails if keys and values of the model cannot be quantized as the rules say
inline void check_kv_rules(const ModelConfig& c, const QuantizerRules& rules, bool k_pre_bias) {
    rules_check(rules, cache_places(c));
    if (k_pre_bias && !rules.on())
        fail_usage("--k_pre_bias true: there is no quantizer of keys; give --kv_cache too (such as int4:token:asym)");
    if (k_pre_bias && (!c.qkv_bias || c.qk_norm))
        fail_usage("--k_pre_bias true: this model's keys have no bias (Qwen2's have); leave it out");
    for (const QuantizerRule& r : rules.rules) check_kv_quantizer(r.quantizer, c.head_dim, rules.flag);
}

// Keys and values get their quantizers; before trainers and caches are made
inline void model_quantize_kv(Model& m, const QuantizerRules& rules, bool k_pre_bias) {
    check_kv_rules(m.config, rules, k_pre_bias);
    if (k_pre_bias && m.rotate_qk.on())
        fail_usage("--k_pre_bias true: the keys of this model are rotated after RoPE; leave it out");
    m.kv_rules = rules;
    for (int l = 0; l < m.L(); l++) m.layers[l].kv = quantizer_of(rules, QuantizerPlace{l, "", ""});
    m.k_pre_bias = k_pre_bias;
    if (k_pre_bias) m.bias_without_k.allocate(m.QKV(), "a bias", "", m.dev);
}

inline void kv_cache_allocate(KVCache& c, const Model& m, int place, int64_t rows, const char* what, const char* hint) {
    c.width = (int64_t)m.NKV() * m.HD();
    c.rows[place] = rows;
    c.first[place].clear();
    int64_t numbers = 0, words = 0;
    array_bytes(array_count(rows, c.width, m.L()), 1, what, hint);  // or the numbers below would wrap
    for (int l = 0; l < m.L(); l++) {
        const KvQuant q = layer_kv_quant(m, l);
        c.first[place].push_back(q.bits ? words : numbers);
        (q.bits ? words : numbers) += rows * (q.bits ? kv_row_words(q) : c.width);
    }
    c.k[place].allocate(numbers, what, hint, m.dev), c.v[place].allocate(numbers, what, hint, m.dev);
    c.k_codes[place].allocate(words, what, hint, m.dev), c.v_codes[place].allocate(words, what, hint, m.dev);
}

// y.att from y.qk and the values in y.qkv: keys and values into the cache, and attention
inline void attention_kv(Model& m, LayerActivations& y, int l, const BatchView& b, KVCache* cache) {
    const int64_t T = b.T;
    const int NH = m.NH(), NKV = m.NKV(), HD = m.HD(), QKV = m.QKV(), QK = (NH + NKV) * HD;
    const floatX *k = y.qk + NH * HD, *v = y.qkv + QK;
    KeyValueRows place[2];
    if (cache) {
        floatX *k_cache[2], *v_cache[2];
        for (int i = 0; i < 2; i++) {
            const int64_t base = cache->first[i][l];
            k_cache[i] = cache->k[i].data + base, v_cache[i] = cache->v[i].data + base;
            place[i] = {k_cache[i], v_cache[i], cache->width, cache->width};
        }
        kv_cache_write(k_cache, v_cache, {k, QK}, {v, QKV}, b.writes, T, cache->width, m.dev);
    }
    if (b.sequences)
        attention_forward(y.att, y.lse, {y.qk, QK}, {k, v, QK, QKV}, packed_sequences(b), {T, NH, NKV, HD}, m.dev);
    else
        attention_decode(y.att, y.lse, {y.qk, QK}, place[0], place[1], {b.ranges, b.most_keys}, {T, NH, NKV, HD},
                         m.dev);
}

// y.att from y.qkv: keys and values to their codes and back, into the cache, and attention. Queries are finished; keys
// too, unless their bias is still to come.
inline void attention_quantized_kv(Model& m, LayerActivations& y, int l, const BatchView& b, KVCache* cache) {
    const KvQuant q = layer_kv_quant(m, l);
    const int64_t T = b.T, k_at = (int64_t)m.NH() * m.HD(), v_at = k_at + (int64_t)m.NKV() * m.HD(), QK = v_at;
    KeyRotation rotation;
    if (m.k_pre_bias)
        rotation = {m.layers[l].qkv.bias.work + k_at, m.dev.cuda ? m.rope.device_cos.data : m.rope.cos.data(),
                    m.dev.cuda ? m.rope.device_sin.data : m.rope.sin.data()};
    KeyValueCodes place[2];
    uint32_t *k_cache[2] = {nullptr, nullptr}, *v_cache[2] = {nullptr, nullptr};
    for (int i = 0; cache && i < 2; i++) {
        const int64_t base = cache->first[i][l];
        k_cache[i] = cache->k_codes[i].data + base, v_cache[i] = cache->v_codes[i].data + base;
        place[i] = {k_cache[i], v_cache[i], q, rotation};
    }
    const CacheRow* writes = cache ? b.writes : nullptr;
    floatX *k = y.qk + k_at, *v = y.qkv + v_at;
    if (m.k_pre_bias) {
        kv_quantize(q, k, QK, y.qkv + k_at, m.QKV(), rotation.bias, k_cache, writes, T, m.dev);
        rope_forward({k, QK}, {k, QK}, b.positions, m.rope, T, m.NKV(), m.dev);
    } else {
        kv_quantize(q, k, QK, k, QK, nullptr, k_cache, writes, T, m.dev);
    }
    kv_quantize(q, v, m.QKV(), v, m.QKV(), nullptr, v_cache, writes, T, m.dev);
    if (b.sequences)
        attention_forward(y.att, y.lse, {y.qk, QK}, {k, v, QK, m.QKV()}, packed_sequences(b),
                          {T, m.NH(), m.NKV(), m.HD()}, m.dev);
    else
        attention_decode_codes(y.att, y.lse, {y.qk, QK}, place[0], place[1], {b.ranges, b.most_keys}, T, m.NH(), m.dev);
}
