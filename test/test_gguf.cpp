// GGUF: blocks against gguf-py and ggml, metadata, files made to do harm; grids that move into blocks and back
// unchanged; and whole models written and read again.
#include <gtest/gtest.h>
#include <cmath>
#include "../formats/gguf_write.h"
#include "../runtime/rng.h"
#include "../train/trainer.cuh"
#include "file_test.h"
#include "load_model.h"
#include "test_device.h"
#include "test_rules.h"

// A GGUF file under construction. Strings are u64 length + bytes; offsets are given by the caller.
struct GgufBuilder {
    uint32_t version = 3;
    std::string kv, infos, data;
    uint64_t n_kv = 0, n_tensors = 0;
    static std::string str(const std::string& s) { return little(s.size(), 8) + s; }
    GgufBuilder& raw(const std::string& key, uint32_t type, const std::string& bytes) {
        kv += str(key) + little(type, 4) + bytes;
        n_kv++;
        return *this;
    }
    GgufBuilder& u32(const std::string& key, uint32_t v) { return raw(key, GGUF_U32, little(v, 4)); }
    GgufBuilder& f32(const std::string& key, float v) { return raw(key, GGUF_F32, little(float_bits(v), 4)); }
    GgufBuilder& text(const std::string& key, const std::string& v) { return raw(key, GGUF_STRING, str(v)); }
    GgufBuilder& texts(const std::string& key, const std::vector<std::string>& v) {
        std::string s = little(GGUF_STRING, 4) + little(v.size(), 8);
        for (auto& x : v) s += str(x);
        return raw(key, GGUF_ARRAY, s);
    }
    GgufBuilder& ints(const std::string& key, const std::vector<int>& v) {
        std::string s = little(GGUF_I32, 4) + little(v.size(), 8);
        for (int x : v) s += little((uint32_t)x, 4);
        return raw(key, GGUF_ARRAY, s);
    }
    GgufBuilder& info(const std::string& name, const std::vector<uint64_t>& dims, uint32_t type, uint64_t offset) {
        infos += str(name) + little(dims.size(), 4);
        for (uint64_t d : dims) infos += little(d, 8);
        infos += little(type, 4) + little(offset, 8);
        n_tensors++;
        return *this;
    }
    // shape as in Hugging Face
    GgufBuilder& f32s(const std::string& name, std::vector<uint64_t> shape, const std::vector<float>& v) {
        data.resize((data.size() + 31) / 32 * 32);
        info(name, std::vector<uint64_t>(shape.rbegin(), shape.rend()), 0, data.size());
        data.append((const char*)v.data(), v.size() * 4);
        return *this;
    }
    std::string bytes(uint64_t alignment = 32) const {
        std::string s = "GGUF" + little(version, 4) + little(n_tensors, 8) + little(n_kv, 8) + kv + infos;
        s.resize((s.size() + alignment - 1) / alignment * alignment);
        return s + data;
    }
};

// parses a heap copy of exactly these bytes and touches everything that it promises
static GgufFile gguf_parse_text(const std::string& text, std::vector<uint8_t>* keep = nullptr) {
    std::vector<uint8_t> own;
    std::vector<uint8_t>& copy = keep ? *keep : own;
    copy.assign(text.begin(), text.end());
    copy.shrink_to_fit();
    GgufFile f;
    f.path = "x.gguf";
    gguf_parse(copy.data(), copy.size(), &f);
    for (auto& [name, t] : f.tensors) {
        std::vector<float> values((size_t)t.count);
        if (t.type->read) gguf_read_float(t, values.data());
    }
    for (auto& [key, v] : f.values) {
        if (v.type == GGUF_ARRAY && v.element == GGUF_STRING) gguf_strings(f, key);
        if (v.type == GGUF_ARRAY && v.element == GGUF_I32) gguf_ints(f, key);
        if (v.type == GGUF_STRING) gguf_string(f, key, "");
    }
    return f;
}

static std::string unhex(const std::string& hex) {
    std::string s;
    for (size_t i = 0; i + 1 < hex.size(); i += 2) s += (char)std::stoi(hex.substr(i, 2), nullptr, 16);
    return s;
}

static nlohmann::json golden() { return nlohmann::json::parse(read_file("test/golden/gguf_blocks.json")); }

TEST(Gguf, EveryBlockTypeEqualsGgufPyBitForBit) {
    nlohmann::json types = golden()["types"];
    EXPECT_EQ(types.size(), 18u);
    for (auto& [name, g] : types.items()) {
        std::string blocks = unhex(g["blocks"]), values = unhex(g["values"]);  // values: big-endian
        uint64_t n = values.size() / 4;
        std::string bytes = GgufBuilder().info("w", {n}, g["type"].get<uint32_t>(), 0).bytes() + blocks;
        std::vector<uint8_t> keep;
        GgufFile f = gguf_parse_text(bytes, &keep);
        const GgufTensor* t = gguf_find(f, "w");
        ASSERT_NE(t, nullptr);
        EXPECT_EQ(name, t->type->name);
        EXPECT_EQ(t->bytes, blocks.size());
        std::vector<float> out(n);
        gguf_read_float(*t, out.data());
        int wrong = 0;
        for (uint64_t i = 0; i < n; i++) {
            uint32_t want = 0;
            for (int k = 0; k < 4; k++) want = want << 8 | (uint8_t)values[4 * i + k];
            wrong += float_bits(out[i]) != want;
        }
        EXPECT_EQ(wrong, 0) << name;
        if (t->type->block > 1) {  // a later block alone
            int64_t b = t->type->block;
            std::vector<float> part((size_t)b);
            gguf_read_float(*t, part.data(), b, b);
            EXPECT_EQ(memcmp(part.data(), &out[b], b * 4), 0) << name;
            expect_has(error_of([&] { gguf_read_float(*t, part.data(), 1, b); }), "not whole blocks");
        }
        expect_has(error_of([&] { gguf_read_float(*t, out.data(), 0, (int64_t)n + 1); }),
                   "x.gguf: tensor 'w': elements");
    }
}

TEST(Gguf, BlocksFromFp32EqualGgufPyByteForByte) {
    nlohmann::json quantize = golden()["quantize"];
    EXPECT_EQ(quantize.size(), 12u);
    std::string values = unhex(quantize["values"]);
    std::vector<float> x(values.size() / 4);
    for (size_t i = 0; i < x.size(); i++) {
        uint32_t bits = 0;
        for (int k = 0; k < 4; k++) bits = bits << 8 | (uint8_t)values[4 * i + k];
        x[i] = bits_float(bits);
    }
    for (auto& [name, hex] : quantize.items()) {
        if (name == "values") continue;
        const GgufType* t = gguf_type(name);
        ASSERT_TRUE(t && t->make) << name;
        std::string want = unhex(hex);
        ASSERT_EQ(want.size(), x.size() / t->block * t->bytes) << name;
        int wrong = 0;
        for (size_t i = 0; i < x.size() / t->block; i++) {
            uint8_t b[512];
            t->make(&x[i * t->block], b);
            wrong += memcmp(b, &want[i * t->bytes], (size_t)t->bytes) != 0;
        }
        EXPECT_EQ(wrong, 0) << name;
    }
}

TEST(Gguf, MetadataOfEveryType) {
    for (uint32_t version : {2u, 3u}) {
        GgufBuilder b;
        b.version = version;
        b.raw("u8", GGUF_U8, little(200, 1)).raw("i8", GGUF_I8, little(200, 1)).raw("u16", GGUF_U16, little(60000, 2));
        b.raw("i16", GGUF_I16, little(60000, 2)).u32("u32", 4000000000u).raw("i32", GGUF_I32, little(4000000000u, 4));
        b.raw("u64", GGUF_U64, little(1ull << 40, 8)).raw("i64", GGUF_I64, little(UINT64_MAX, 8));
        b.raw("big", GGUF_U64, little(UINT64_MAX, 8)).raw("yes", GGUF_BOOL, little(1, 1)).f32("f32", 0.25f);
        double d = 1.0 / 3;
        b.raw("f64", GGUF_F64, std::string((const char*)&d, 8)).text("text", "a\nb").texts("texts", {"x", "", "yz"});
        b.ints("ints", {-1, 5})
            .raw("none", GGUF_ARRAY, little(GGUF_U8, 4) + little(0, 8))
            .f32s("t", {2, 3}, {0, 1, 2, 3, 4, 5});
        TempDir dir;
        put(dir / "m.gguf", b.bytes());
        GgufFile f = gguf_open(dir / "m.gguf");
        EXPECT_EQ(f.version, version);
        EXPECT_EQ(gguf_int(f, "u8", 0), 200);
        EXPECT_EQ(gguf_int(f, "i8", 0), -56);
        EXPECT_EQ(gguf_int(f, "u16", 0), 60000);
        EXPECT_EQ(gguf_int(f, "i16", 0), -5536);
        EXPECT_EQ(gguf_int(f, "u32", 0), 4000000000ll);
        EXPECT_EQ(gguf_int(f, "i32", 0), -294967296);
        EXPECT_EQ(gguf_int(f, "u64", 0), 1ll << 40);
        EXPECT_EQ(gguf_int(f, "i64", 0), -1);
        EXPECT_EQ(gguf_int(f, "yes", 0), 1);
        EXPECT_EQ(gguf_int(f, "absent", -7), -7);
        EXPECT_EQ(gguf_float(f, "f32", 0), 0.25);
        EXPECT_EQ(gguf_float(f, "f64", 0), d);
        EXPECT_EQ(gguf_string(f, "text", ""), "a\nb");
        EXPECT_EQ(gguf_strings(f, "texts"), (std::vector<std::string>{"x", "", "yz"}));
        EXPECT_EQ(gguf_ints(f, "ints"), (std::vector<int>{-1, 5}));
        EXPECT_TRUE(gguf_ints(f, "none").empty());
        EXPECT_TRUE(gguf_strings(f, "absent").empty());
        EXPECT_EQ(f.tensors.at("t").shape, (std::vector<int64_t>{2, 3}));  // the file has 3, 2
        std::vector<float> v(6);
        gguf_read_float(f.tensors.at("t"), v.data());
        EXPECT_EQ(v[5], 5);
        expect_has(error_of([&] { gguf_int(f, "big", 0); }), "key 'big' is not an integer");
        expect_has(error_of([&] { gguf_int(f, "f32", 0); }), "not an integer");
        expect_has(error_of([&] { gguf_int(f, "text", 0); }), "not an integer");
        expect_has(error_of([&] { gguf_float(f, "u32", 0); }), "not a floating-point");
        expect_has(error_of([&] { gguf_string(f, "u32", ""); }), "not a string");
        expect_has(error_of([&] { gguf_strings(f, "ints"); }), "not an array of strings");
        expect_has(error_of([&] { gguf_ints(f, "texts"); }), "not an array of 32-bit integers");
        expect_has(error_of([&] { gguf_ints(f, "u32"); }), "not an array");
    }
}

TEST(Gguf, HostileFiles) {
    auto header = [](uint64_t n_tensors, uint64_t n_kv, const std::string& rest) {
        return "GGUF" + little(3, 4) + little(n_tensors, 8) + little(n_kv, 8) + rest;
    };
    auto pad = std::string(64, 0);
    auto tensor = [&](std::vector<uint64_t> dims, uint32_t type, uint64_t offset) {
        return GgufBuilder().info("w", dims, type, offset).bytes() + std::string(4096, 0);
    };
    auto array = [&](uint32_t element, uint64_t n) {
        return GgufBuilder().raw("k", GGUF_ARRAY, little(element, 4) + little(n, 8)).bytes() + pad;
    };
    struct {
        const char* what;
        std::string file, message;
    } cases[] = {
        {"empty", "", "does not begin with GGUF"},
        {"other", "PK\3\4....", "does not begin with GGUF"},
        {"only the magic", "GGUF", "the version needs 4 bytes where 0 are left"},
        {"version 1", "GGUF" + little(1, 4) + pad, "GGUF version 1"},
        {"version 4", "GGUF" + little(4, 4) + pad, "GGUF version 4; 2 and 3"},
        {"big-endian", "GGUF" + std::string("\0\0\0\3", 4) + pad, "big-endian"},
        {"absurd n_tensors", header(UINT64_MAX, 0, pad), "18446744073709551615 tensors do not fit"},
        {"absurd n_kv", header(0, UINT64_MAX, pad), "18446744073709551615 keys"},
        {"more keys than bytes", header(0, 5, pad), "5 keys and 0 tensors do not fit"},
        {"long key", header(0, 1, little(UINT64_MAX, 8) + pad), "a key is a name of 18446744073709551615 bytes"},
        {"key beyond the end", header(0, 1, little(1000, 8) + pad), "a key needs 1000 bytes where 64 are left"},
        {"unknown value type", GgufBuilder().raw("k", 13, "").bytes() + pad, "key 'k' has the unknown type 13"},
        {"long string", GgufBuilder().raw("k", GGUF_STRING, little(UINT64_MAX - 7, 8)).bytes() + pad, "key 'k' needs"},
        {"same key twice", GgufBuilder().u32("k", 1).u32("k", 2).bytes() + pad, "key 'k' appears twice"},
        {"array of u8", array(GGUF_U8, UINT64_MAX), "key 'k' needs 18446744073709551615 bytes"},
        {"array wraps", array(GGUF_F64, (1ull << 61) + 1), "key 'k' needs 18446744073709551615 bytes"},
        {"array of strings", array(GGUF_STRING, UINT64_MAX), "key 'k' needs 8 bytes"},
        {"array of arrays", array(GGUF_ARRAY, 1), "array of type 9, which is not supported"},
        {"array of 99", array(99, 1), "array of type 99"},
        {"alignment 0", GgufBuilder().u32("general.alignment", 0).bytes() + pad, "power of two"},
        {"alignment 24", GgufBuilder().u32("general.alignment", 24).bytes() + pad, "power of two"},
        {"alignment 2^31", GgufBuilder().u32("general.alignment", 1u << 31).bytes() + pad, "power of two"},
        {"alignment as text", GgufBuilder().text("general.alignment", "32").bytes() + pad, "power of two"},
        {"long tensor name", GgufBuilder().info(std::string(64, 'n'), {1}, 0, 0).bytes() + pad, "a name of 64 bytes"},
        {"five dimensions", tensor({1, 1, 1, 1, 1}, 0, 0), "tensor 'w' has 5 dimensions"},
        {"4 Gi dimensions", header(1, 0, GgufBuilder::str("w") + little(UINT32_MAX, 4) + pad), "4294967295 dimensions"},
        {"dimension 0", tensor({4, 0}, 0, 0), "impossible dimension 0"},
        {"dimension 2^63", tensor({1ull << 63}, 0, 0), "impossible dimension 9223372036854775808"},
        {"product wraps", tensor({1ull << 32, 1ull << 32}, 0, 0), "impossible dimension"},
        {"product near 2^63", tensor({1ull << 31, 1ull << 30}, 0, 0), "impossible dimension"},
        {"unknown type", tensor({32}, 5, 0), "tensor 'w' has the unknown type 5"},
        {"broken block", tensor({33}, 8, 0), "rows of 33 values, but Q8_0 comes in blocks of 32"},
        {"short rows", tensor({16, 2}, 2, 0), "rows of 16 values, but Q4_0"},
        {"misaligned", tensor({4}, 0, 8), "offset 8, which is no multiple of 32"},
        {"beyond the end", tensor({1025}, 0, 0), "tensor 'w' needs 4100 bytes at offset 0 of 4096"},
        {"offset beyond", tensor({1}, 0, 4128), "at offset 4128 of 4096"},
        {"offset wraps", tensor({8}, 0, UINT64_MAX - 31), "truncated"},
        {"same tensor twice", GgufBuilder().info("w", {1}, 0, 0).info("w", {1}, 0, 32).bytes() + pad,
         "'w' appears twice"},
        {"overlap", GgufBuilder().info("v", {16}, 0, 0).info("w", {8}, 0, 32).bytes() + pad, "tensor 'w' overlaps"},
        {"infos cut off", header(1, 0, GgufBuilder::str("name") + little(1, 4) + little(8, 8)),
         "tensor 'name' needs 4 bytes where 0 are left"},
    };
    for (auto& c : cases) {
        std::string what = error_of([&] { gguf_parse_text(c.file); });
        EXPECT_NE(what.find(c.message), std::string::npos) << c.what << ": " << what;
        EXPECT_EQ(what.find("x.gguf: "), 0u) << c.what << ": " << what;
    }
    // a type that can be listed but not read
    std::vector<uint8_t> keep;
    GgufFile f = gguf_parse_text(tensor({128}, 41, 0), &keep);
    float y[128];
    expect_has(error_of([&] { gguf_read_float(f.tensors.at("w"), y); }),
               "has type Q1_0, which cannot be read; use F32, F16, Q4_0");
}

static GgufBuilder small_llama() {
    GgufBuilder b;
    b.text("general.architecture", "llama").u32("llama.embedding_length", 8).u32("llama.feed_forward_length", 16);
    b.u32("llama.block_count", 1).u32("llama.attention.head_count", 2).u32("llama.attention.head_count_kv", 1);
    b.u32("llama.context_length", 64).u32("llama.rope.dimension_count", 4);
    b.f32("llama.attention.layer_norm_rms_epsilon", 1e-5f).f32("llama.rope.freq_base", 100000);
    b.text("tokenizer.ggml.model", "gpt2").text("tokenizer.ggml.pre", "smollm");
    b.texts("tokenizer.ggml.tokens", {"<e>", "a", "b", "ab"}).ints("tokenizer.ggml.token_type", {3, 1, 1, 1});
    b.texts("tokenizer.ggml.merges", {"a b"})
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 0);
    b.raw("tokenizer.ggml.add_bos_token", GGUF_BOOL, little(1, 1)).text("tokenizer.chat_template", "{{ x }}");
    std::vector<float> rows(8 * 8);
    for (int i = 0; i < 64; i++) rows[i] = (float)(i / 8);  // every row holds its number
    b.f32s("token_embd.weight", {5, 8}, std::vector<float>(40, 1)).f32s("blk.0.attn_q.weight", {8, 8}, rows);
    b.f32s("blk.0.attn_k.weight", {4, 8}, std::vector<float>(rows.begin(), rows.begin() + 32));
    b.f32s("blk.0.attn_v.weight", {4, 8}, std::vector<float>(rows.begin(), rows.begin() + 32));
    return b;
}

TEST(Gguf, TruncatedOrAlteredFilesAreRefusedOrHarmless) {
    std::string good = small_llama().bytes();
    EXPECT_EQ(gguf_parse_text(good).tensors.size(), 4u);
    for (size_t n = 0; n < good.size(); n++) {
        std::string cut = good.substr(0, n);
        EXPECT_NE(error_of([&] { gguf_parse_text(cut); }), "") << n;
    }
    size_t header = good.size() - small_llama().data.size();
    int refused = 0;
    for (uint32_t i = 0; i < 5000; i++) {
        std::string bad = good;
        Philox4 r = rng_bits(2, 99, i, 0, 0);
        for (int k = 0; k < 1 + (int)(i % 3); k++) bad[r.x[k] % header] = (char)(r.x[3] >> (8 * k));
        refused += error_of([&] {
                       std::vector<uint8_t> keep;
                       GgufFile f = gguf_parse_text(bad, &keep);
                       config_from_gguf(f);
                       gguf_tokenizer(f);
                   }) != "";
    }
    EXPECT_GT(refused, 2000);
}

TEST(Gguf, Names) {
    const char* pairs[][2] = {
        {"token_embd.weight", "model.embed_tokens.weight"},
        {"output_norm.weight", "model.norm.weight"},
        {"output.weight", "lm_head.weight"},
        {"blk.0.attn_q.weight", "model.layers.0.self_attn.q_proj.weight"},
        {"blk.27.attn_k.bias", "model.layers.27.self_attn.k_proj.bias"},
        {"blk.3.attn_k_norm.weight", "model.layers.3.self_attn.k_norm.weight"},
        {"blk.3.attn_norm.weight", "model.layers.3.input_layernorm.weight"},
        {"blk.3.ffn_norm.weight", "model.layers.3.post_attention_layernorm.weight"},
        {"blk.123.attn_output.weight", "model.layers.123.self_attn.o_proj.weight"},
        {"blk.3.ffn_down.weight", "model.layers.3.mlp.down_proj.weight"},
    };
    for (auto& p : pairs) EXPECT_EQ(hf_to_gguf_name(p[1]), p[0]);
    for (const char* name :
         {"", "model.layers.", "model.layers..self_attn.q_proj.weight", "model.layers.x.self_attn.q_proj.weight",
          "model.layers.1", "model.layers.1.", "rope_freqs.weight", "model.layers.-1.self_attn.q_proj.weight",
          "model.layers.99999999999.self_attn.q_proj.weight", "model.layers.1.ssm_a"})
        EXPECT_EQ(hf_to_gguf_name(name), "") << name;
}

TEST(Gguf, UnpermuteUndoesLlamaCppsPermute) {
    // llama.cpp: w.reshape(n_head, 2, HD / 2, cols).swapaxes(1, 2); of one head with rows 0..5 it makes 0 3 1 4 2 5
    std::vector<float> head = {0, 3, 1, 4, 2, 5};
    gguf_unpermute_rows(head.data(), 1, 6, 1);
    EXPECT_EQ(head, (std::vector<float>{0, 1, 2, 3, 4, 5}));

    const int heads = 3, hd = 8, cols = 5;
    std::vector<float> w(heads * hd * cols), p(w.size());
    for (size_t i = 0; i < w.size(); i++) w[i] = (float)i;
    for (int h = 0; h < heads; h++)
        for (int s = 0; s < 2; s++)
            for (int i = 0; i < hd / 2; i++)  // [h][s][i] of the reshape goes to [h][i][s]
                for (int c = 0; c < cols; c++)
                    p[((h * hd / 2 + i) * 2 + s) * cols + c] = w[((h * 2 + s) * hd / 2 + i) * cols + c];
    EXPECT_NE(p, w);
    gguf_unpermute_rows(p.data(), heads, heads * hd, cols);
    EXPECT_EQ(p, w);
    expect_has(error_of([&] { gguf_unpermute_rows(p.data(), 5, 24, 1); }), "24 rows");
    expect_has(error_of([&] { gguf_unpermute_rows(p.data(), 0, 24, 1); }), "0 heads");
}

TEST(Gguf, ConfigParametersAndTokenizer) {
    std::vector<uint8_t> keep;
    GgufFile f = gguf_parse_text(small_llama().bytes(), &keep);
    ModelConfig c = config_from_gguf(f);
    EXPECT_EQ(c.model_type, "llama");
    EXPECT_EQ(c.vocab_size, 5);  // of the embedding, not of the tokenizer
    EXPECT_EQ(c.hidden_size, 8);
    EXPECT_EQ(c.intermediate_size, 16);
    EXPECT_EQ(c.num_attention_heads, 2);
    EXPECT_EQ(c.num_key_value_heads, 1);
    EXPECT_EQ(c.head_dim, 4);
    EXPECT_EQ(c.max_position_embeddings, 64);
    EXPECT_EQ(c.rope_theta, 100000.0f);
    EXPECT_EQ(c.rms_norm_eps, 1e-5f);
    EXPECT_TRUE(c.tie_word_embeddings);
    EXPECT_FALSE(c.qkv_bias || c.qk_norm);
    EXPECT_EQ(c.eos_token_ids, std::vector<int>{0});
    EXPECT_EQ(c.bos_token_id, 1);
    EXPECT_EQ(c.pad_token_id, -1);

    std::vector<float> q(64), k(32), v(32);
    gguf_read_parameter(f, c, "model.layers.0.self_attn.q_proj.weight", {8, 8}, q.data());
    gguf_read_parameter(f, c, "model.layers.0.self_attn.k_proj.weight", {4, 8}, k.data());
    gguf_read_parameter(f, c, "model.layers.0.self_attn.v_proj.weight", {4, 8}, v.data());
    const int order[8] = {0, 2, 1, 3, 4, 6, 5, 7};  // the row of the file that becomes row r, two heads of four
    for (int r = 0; r < 8; r++) EXPECT_EQ(q[r * 8 + 7], order[r]);
    for (int r = 0; r < 4; r++) EXPECT_EQ(k[r * 8], order[r]);
    for (int r = 0; r < 4; r++) EXPECT_EQ(v[r * 8], r);  // v has no rotary embedding
    expect_has(error_of([&] { gguf_read_parameter(f, c, "model.norm.weight", {8}, v.data()); }),
               "tensor output_norm.weight (model.norm.weight) is missing");
    expect_has(error_of([&] {
                   gguf_read_parameter(f, c, "model.layers.0.self_attn.v_proj.weight", {8, 4}, v.data());
               }),
               "tensor blk.0.attn_v.weight has shape 4 8, but the metadata ask for 8 4");

    GgufTokenizerParts t = gguf_tokenizer(f);
    EXPECT_EQ(t.model, "gpt2");
    EXPECT_EQ(t.pre, "smollm");
    EXPECT_EQ(t.tokens, (std::vector<std::string>{"<e>", "a", "b", "ab"}));
    EXPECT_EQ(t.token_type, (std::vector<int>{3, 1, 1, 1}));
    EXPECT_EQ(t.merges, (std::vector<std::string>{"a b"}));
    EXPECT_EQ(t.chat_template, "{{ x }}");
    EXPECT_EQ(t.bos_token_id, 1);
    EXPECT_EQ(t.eos_token_id, 0);
    EXPECT_EQ(t.pad_token_id, -1);
    EXPECT_TRUE(t.add_bos);
    EXPECT_FALSE(t.add_space_prefix);

    // the same tensors as qwen2 keep their rows
    GgufBuilder b = small_llama();
    std::string bytes = b.f32s("blk.0.attn_q.bias", {8}, std::vector<float>(8, 0)).bytes();
    for (size_t at = bytes.find("llama"); at != std::string::npos; at = bytes.find("llama"))
        bytes.replace(at, 5, "qwen2");
    std::vector<uint8_t> keep2;
    GgufFile g = gguf_parse_text(bytes, &keep2);
    c = config_from_gguf(g);
    EXPECT_TRUE(c.qkv_bias);
    gguf_read_parameter(g, c, "model.layers.0.self_attn.q_proj.weight", {8, 8}, q.data());
    for (int r = 0; r < 8; r++) EXPECT_EQ(q[r * 8], r);
}

TEST(Gguf, RopeFrequencies) {
    std::vector<float> divisors = golden()["llama3_rope_divisors"];
    ASSERT_EQ(divisors.size(), 32u);
    GgufBuilder base;  // Llama-3.2-1B but for its size
    base.text("general.architecture", "llama").u32("llama.embedding_length", 128).u32("llama.feed_forward_length", 16);
    base.u32("llama.block_count", 1).u32("llama.attention.head_count", 2).u32("llama.context_length", 131072);
    base.f32("llama.rope.freq_base", 500000).f32s("token_embd.weight", {2, 128}, std::vector<float>(256, 0));
    auto config = [&](const std::vector<float>& d) {
        GgufBuilder b = base;
        std::vector<uint8_t> keep;
        GgufFile f = gguf_parse_text(b.f32s("rope_freqs.weight", {d.size()}, d).bytes(), &keep);
        return config_from_gguf(f);
    };
    ModelConfig c = config(divisors);
    EXPECT_EQ(c.rope_scaling, RopeScaling::llama3);
    EXPECT_EQ(c.factor, 32);
    EXPECT_EQ(c.low_freq_factor, 1);
    EXPECT_EQ(c.high_freq_factor, 4);
    EXPECT_EQ(c.original_max_position_embeddings, 8192);
    EXPECT_EQ(c.num_key_value_heads, 2);
    EXPECT_EQ(config(std::vector<float>(32, 1)).rope_scaling, RopeScaling::none);
    std::vector<float> other = divisors;
    other[15] *= 1.01f;
    expect_has(error_of([&] { config(other); }), "is not llama3 scaling");
    // other parameters than the usual ones, as gguf_write.h leaves them
    ModelConfig mine = c;
    mine.factor = 8, mine.low_freq_factor = 2, mine.high_freq_factor = 3, mine.original_max_position_embeddings = 1000;
    std::vector<float> own(32);
    for (int i = 0; i < 32; i++) own[i] = (float)llama3_rope_divisor(mine, i);
    expect_has(error_of([&] { config(own); }), "is not llama3 scaling");
    GgufBuilder plain = base;
    base.f32("llama.rope.llama3.factor", 8).f32("llama.rope.llama3.low_freq_factor", 2);
    base.f32("llama.rope.llama3.high_freq_factor", 3).u32("llama.rope.llama3.original_context_length", 1000);
    c = config(own);
    EXPECT_EQ(c.factor, 8);
    EXPECT_EQ(c.low_freq_factor, 2);
    EXPECT_EQ(c.high_freq_factor, 3);
    EXPECT_EQ(c.original_max_position_embeddings, 1000);
    base = plain;
    base.u32("llama.rope.llama3.original_context_length", 0);
    expect_has(error_of([&] { config(divisors); }), "original_context_length is 0");
    base = plain;
    other[15] = NAN;
    expect_has(error_of([&] { config(other); }), "is not llama3 scaling");
    expect_has(error_of([&] { config(std::vector<float>(31, 1)); }), "head_dim 64 needs 32");
}

TEST(Gguf, UnsupportedModelsAreRefused) {
    auto what = [](GgufBuilder b) {
        return error_of([&] {
            std::vector<uint8_t> keep;
            GgufFile f = gguf_parse_text(b.bytes(), &keep);
            check_other_tensors(f, config_from_gguf(f));
            gguf_tokenizer(f);
        });
    };
    EXPECT_EQ(what(small_llama()), "");
    expect_has(what(GgufBuilder()), "architecture '' is not supported; qwen2, qwen3 and llama are");
    expect_has(what(GgufBuilder().text("general.architecture", "gemma")), "architecture 'gemma'");
    expect_has(what(GgufBuilder().text("general.architecture", "llama")), "key 'llama.embedding_length' is missing");
    expect_has(what(small_llama().u32("llama.attention.key_length", 0)), "'llama.attention.key_length'");
    expect_has(what(small_llama().u32("llama.attention.key_length", 6)), "rope.dimension_count differs");
    expect_has(what(small_llama().u32("llama.attention.value_length", 6)), "value_length differs");
    expect_has(what(small_llama().u32("llama.expert_count", 8)), "experts");
    expect_has(what(small_llama().u32("llama.attention.sliding_window", 32)), "sliding window of 32");
    expect_has(what(small_llama().text("llama.rope.scaling.type", "yarn")), "rope scaling of type 'yarn'");
    for (const char* more : {"blk.0.attn_q.bias", "blk.0.attn_output.bias", "blk.0.attn_q_norm.weight",
                             "blk.1.attn_norm.weight", "output.bias"})
        expect_has(what(small_llama().f32s(more, {8}, std::vector<float>(8, 1))),
                   format("configuration (llama of 1 layers) does not have: '%s'", more));
    for (const char* harmless : {"blk.0.attn_q.bias", "blk.0.attn_rot_embd.weight", "blk.0.attn_q.scale"})
        EXPECT_EQ(what(small_llama().f32s(harmless, {1}, {0})), "") << harmless;
    expect_has(what(small_llama().u32("tokenizer.ggml.padding_token_id", 5)), "padding_token_id is 5, outside");
    expect_has(what(small_llama().u32("tokenizer.ggml.padding_token_id", 4)), "padding_token_id is 4, but there are 4");
    GgufBuilder b = small_llama();
    size_t at = b.kv.find("token_type") + 10 + 4 + 4;  // behind the name, its type and the element type
    b.kv = b.kv.substr(0, at) + little(3, 8) + b.kv.substr(at + 8 + 4);
    expect_has(what(b), "4 tokens but 3 token types");
}

// ----------------------------------------------------------------------------------------------------------------
// grids

// a matrix of random codes over the whole range, with scales and zero points as training leaves them
struct RandomGrid {
    std::vector<int8_t> codes;
    std::vector<Grid> grid;
    GridTensor t;
    RandomGrid(QuantSpec spec, int64_t rows, int64_t cols, int64_t group, uint64_t seed) {
        t.name = "w";
        t.rows = rows, t.cols = cols, t.group = group, t.spec = spec;
        const bool floats = spec.format == QuantFormat::mxfp4 || spec.format == QuantFormat::nvfp4;
        int low = floats ? 0 : (int)quant_low(spec), high = floats ? 15 : (int)quant_high(spec);
        int offset = spec.symmetric || floats ? 0 : 1 << (spec.bits - 1);
        for (int64_t i = 0; i < rows * cols; i++) {
            uint32_t r = rng_bits(seed, 1, (uint32_t)i, 0, 0).x[0];
            codes.push_back((int8_t)(low + (int)(r % (uint32_t)(high - low + 1)) - offset));
        }
        for (int64_t g = 0; g < rows * cols / group; g++) {
            Philox4 r = rng_bits(seed, 2, (uint32_t)g, 0, 0);
            float s = quant_round_scale(0.001f + 0.05f * uniform01(r.x[0])), zero = 0.0f;
            if (spec.format == QuantFormat::mxfp4) s = quant_power_of_two((int)(r.x[0] % 250) - 125);
            if (spec.format == QuantFormat::nvfp4)  // t = 1 / 0.003
                s = e4m3_bits_to_float(g == 0 ? 0x7E : (uint8_t)(1 + r.x[0] % 0x7E)) / (1.0f / 0.003f);
            if (!spec.symmetric) {
                zero = (float)(r.x[1] % 16u);
                s = bf16_bits_to_float(float_to_bf16_bits(s) & 0xFFF0);  // 4 significant bits: s * zero is fp16
            }
            grid.push_back({s, zero});
        }
        t.codes = codes.data();
        t.grid = grid.data();
    }
    float value(int64_t i) const { return quant_value(t.spec, codes[(size_t)i], grid[(size_t)(i / t.group)]); }
};

static QuantSpec spec_of(const std::string& text) { return quantizer_parse(text, "weights").spec; }

// blocks of a grid, as a file with one tensor
static std::string grid_file(const GgufType& type, const GridTensor& t, float scale) {
    std::vector<uint8_t> blocks;
    gguf_pack_rows(type, t, scale, &blocks);
    GgufBuilder b;
    b.text("general.architecture", "qwen2");
    b.info("blk.0.ffn_up.weight", {(uint64_t)t.cols, (uint64_t)t.rows}, type.id, 0);
    b.data.assign((const char*)blocks.data(), blocks.size());
    if (scale != 1.0f) b.f32s("blk.0.ffn_up.scale", {1}, {scale});
    return b.bytes();
}

TEST(GgufGrid, BlocksHoldTheSameNumbersAndGiveTheGridBack) {
    struct {
        const char *quantizer, *type;
        int64_t group;
    } cases[] = {
        {"int4:g32", "Q4_0", 32},      {"int4:g32", "Q4_0", 128},     {"int3:g32", "Q4_0", 64},
        {"int2:g32", "Q4_0", 32},      {"int4:channel", "Q4_0", 256}, {"int4:tensor", "Q4_0", 1280},
        {"int2:g64", "Q2_0", 64},      {"int2:channel", "Q2_0", 256}, {"ternary", "Q2_0", 1280},
        {"ternary", "TQ1_0", 1280},    {"ternary", "TQ2_0", 256},     {"int5:g32", "Q5_0", 32},
        {"int4:g32:asym", "Q4_1", 32}, {"int4:g32:asym", "Q5_0", 32}, {"int4:g32:asym", "Q8_0", 64},
        {"int3:g32:asym", "Q4_1", 32}, {"int5:g32:asym", "Q5_1", 32}, {"int8:channel", "Q8_0", 256},
        {"int6:g32", "Q8_0", 32},      {"int4:g32", "Q4_1", 32},      {"mxfp4", "MXFP4", 32},
        {"nvfp4", "NVFP4", 16},        {"int2:g64:asym", "Q4_1", 64}, {"int8:g32", "Q8_0", 32},
    };
    ModelConfig config;
    config.model_type = "qwen2";
    int seed = 0;
    for (auto& c : cases) {
        std::string what = std::string(c.quantizer) + " in " + c.type;
        const GgufType& type = *gguf_type(std::string(c.type));
        RandomGrid g(spec_of(c.quantizer), 5, 256, c.group, (uint64_t)++seed);
        ASSERT_EQ(gguf_cannot_hold(type, g.t), "") << what;
        float scale = type.id == GGUF_TYPE_NVFP4 ? gguf_nvfp4_tensor_scale(g.grid.data(), (int64_t)g.grid.size()) : 1;
        std::vector<uint8_t> keep;
        GgufFile f = gguf_parse_text(grid_file(type, g.t, scale), &keep);
        std::vector<float> y(5 * 256);
        const char* name = "model.layers.0.mlp.up_proj.weight";
        gguf_read_parameter(f, config, name, {5, 256}, y.data());
        int wrong = 0;
        // NVFP4: e4m3 * (e2m1 * scale) and e2m1 * (e4m3 * scale) may round differently
        const float tolerance = type.id == GGUF_TYPE_NVFP4 ? 3e-7f : 0.0f;
        for (int64_t i = 0; i < 5 * 256; i++) wrong += !(std::fabs(y[i] - g.value(i)) <= tolerance * std::fabs(y[i]));
        EXPECT_EQ(wrong, 0) << what;

        GgufGrid back;
        ASSERT_EQ(gguf_read_grid(f, config, name, 5, 256, &back), "") << what;
        EXPECT_EQ(back.group, gguf_scale_block(type)) << what;
        for (int64_t i = 0; i < 5 * 256; i++) {
            float v = quant_value(back.spec, back.codes[i], back.grid[i / back.group]);
            wrong += !(std::fabs(v - g.value(i)) <= tolerance * std::fabs(v));
            wrong += quant_code(back.spec, v, back.grid[i / back.group]) != back.codes[i] && v != 0.0f;
        }
        EXPECT_EQ(wrong, 0) << what << " read as a grid";
        bool same_kind = back.spec.format == g.t.spec.format && back.spec.bits == g.t.spec.bits &&
                         back.spec.symmetric == g.t.spec.symmetric && type.id != GGUF_TYPE_NVFP4;
        if (!same_kind) continue;
        for (int64_t i = 0; i < 5 * 256; i++) {
            wrong += back.codes[i] != g.codes[i];
            wrong += back.grid[i / back.group].scale != g.grid[i / g.t.group].scale;
        }
        EXPECT_EQ(wrong, 0) << what << ": codes and scales";
    }
}

TEST(GgufGrid, WhatATypeCannotHoldIsSaid) {
    auto why = [](const char* quantizer, const char* type, int64_t cols, int64_t group) {
        RandomGrid g(spec_of(quantizer), 2, cols, group, 7);
        return gguf_cannot_hold(*gguf_type(std::string(type)), g.t);
    };
    expect_has(why("int4:g32", "Q4_0", 48, 48), "rows of 48 are not whole blocks of 32");
    expect_has(why("int4:g16", "Q4_0", 64, 16), "groups of 16 are not whole blocks of 32");
    expect_has(why("int2:g32", "Q2_0", 64, 32), "groups of 32 are not whole blocks of 64");
    expect_has(why("ternary", "TQ2_0", 64, 128), "rows of 64 are not whole blocks of 256");
    expect_has(why("int8:g32", "Q4_0", 64, 32), "levels -128 to 127 are outside");
    expect_has(why("int8:g32:asym", "Q8_0", 64, 32), "outside the type's range");
    expect_has(why("int3:g64", "Q2_0", 64, 64), "levels -4 to 3 are outside");
    expect_has(why("int5:g32", "Q4_1", 64, 32), "levels 0 to 31 are outside");
    expect_has(why("int2:g64", "TQ1_0", 256, 64), "groups of 64");
    expect_has(why("nf4:g64", "Q4_0", 64, 64), "codes are not integers");
    expect_has(why("mid4:g32", "Q4_1", 64, 64), "codes are not integers");
    expect_has(why("fp8e4m3:channel", "Q8_0", 64, 64), "codes are not integers");
    expect_has(why("int4:g32", "MXFP4", 64, 32), "another number format");
    expect_has(why("mxfp4", "NVFP4", 64, 32), "another number format");
    RandomGrid g(spec_of("int4:g32:asym"), 1, 32, 32, 1);
    g.grid[0] = {0.01171875f * 1.0078125f, 13};  // 8 significant bits; times 13 it has 12
    expect_has(gguf_cannot_hold(*gguf_type(GGUF_TYPE_Q4_1), g.t), "is no fp16 (Q5_0 and Q8_0 need none)");
    EXPECT_EQ(gguf_cannot_hold(*gguf_type(GGUF_TYPE_Q5_0), g.t), "");
    for (float s : {0.1f, 65536.0f, 1e-9f, NAN}) {
        g.grid[0].scale = s;
        expect_has(gguf_cannot_hold(*gguf_type(GGUF_TYPE_Q8_0), g.t), "is no fp16");
    }
    g.grid[0] = {0.5f, 7.5f};  // no level is 0: SEQ and QuEST
    expect_has(gguf_cannot_hold(*gguf_type(GGUF_TYPE_Q5_0), g.t), "zero point 7.5");
    EXPECT_EQ(gguf_cannot_hold(*gguf_type(GGUF_TYPE_Q4_1), g.t), "");
    RandomGrid x(spec_of("mxfp4"), 1, 32, 32, 1), n(spec_of("nvfp4"), 1, 64, 16, 1);
    for (float s : {3.0f, 0.0f, INFINITY, NAN, -2.0f}) {
        x.grid[0].scale = s;
        expect_has(gguf_cannot_hold(*gguf_type(GGUF_TYPE_MXFP4), x.t), "is not a power of two");
    }
    n.grid[1].scale = n.grid[0].scale * 0.7f;
    expect_has(gguf_cannot_hold(*gguf_type(GGUF_TYPE_NVFP4), n.t), "is not e4m3 times the tensor's");
}

TEST(GgufGrid, FilesWhoseBlocksAreNoGrid) {
    ModelConfig config;
    config.model_type = "qwen2";
    auto why = [&](uint32_t type, int values, const std::string& block, std::vector<float> side = {}) {
        GgufBuilder b;
        b.info("blk.0.ffn_up.weight", {(uint64_t)values, 1}, type, 0);
        b.data = block;
        if (!side.empty()) b.f32s("blk.0.ffn_up.scale", {side.size()}, side);
        std::vector<uint8_t> keep;
        GgufFile f = gguf_parse_text(b.bytes(), &keep);
        GgufGrid g;
        return gguf_read_grid(f, config, "model.layers.0.mlp.up_proj.weight", 1, values, &g);
    };
    auto fp16 = [](float x) { return little(float_to_fp16_bits(x), 2); };
    EXPECT_EQ(why(3, 32, fp16(0.5f) + fp16(-1.5f) + std::string(16, 0x21)), "");
    expect_has(why(3, 32, fp16(0.5f) + fp16(-1.25f) + std::string(16, 0x21)), "a minimum is no multiple");
    expect_has(why(3, 32, fp16(0.5f) + fp16(0.5f) + std::string(16, 0x21)), "a minimum is no multiple");
    expect_has(why(3, 32, fp16(0.5f) + fp16(-8) + std::string(16, 0x21)), "a minimum is no multiple");
    expect_has(why(3, 32, fp16(0) + fp16(-8) + std::string(16, 0x21)), "a minimum is no multiple");
    expect_has(why(2, 32, fp16(INFINITY) + std::string(16, 0x21)), "a scale is not finite");
    EXPECT_EQ(why(2, 32, fp16(0) + std::string(16, 0x21)), "");  // all zero, whatever the codes
    expect_has(why(39, 32, std::string(17, (char)255)), "a scale is NaN");
    expect_has(why(40, 64, std::string(4, 0x7F) + std::string(32, 1)), "a scale is NaN");
    expect_has(why(40, 64, std::string(36, 1), {-1}), "its scale is -1");
    expect_has(error_of([&] { why(40, 64, std::string(36, 1), {1, 2}); }), "has more than one value");
    expect_has(why(12, 256, std::string(144, 0)), "tensor blk.0.ffn_up.weight has type Q4_K");
    expect_has(why(1, 32, std::string(64, 0)), "has type F16");
}

// ----------------------------------------------------------------------------------------------------------------
// whole models

static ModelConfig tiny_config(const std::string& type) {
    ModelConfig c;
    c.model_type = type;
    c.vocab_size = 259;
    c.hidden_size = 64;
    c.intermediate_size = 128;
    c.num_hidden_layers = 2;
    c.num_attention_heads = 4;
    c.num_key_value_heads = 2;
    c.head_dim = 16;
    c.max_position_embeddings = 512;
    c.rms_norm_eps = 1e-5f;
    c.rope_theta = 50000.0f;
    c.tie_word_embeddings = type != "llama";
    c.qk_norm = type == "qwen3";
    c.qkv_bias = type == "qwen2";
    return c;
}

static void init_tiny(Model& m, const std::string& type, const std::string& quantizer, const std::string& which = "all",
                      bool codes = true) {
    m.dev = model_device();
    model_allocate(m, tiny_config(type));
    model_init_random(m, 3);
    model_quantize(m, rules_of(quantizer, which, ScaleMode::kept), codes);
    // grids and codes by the functions of quant_format.cuh alone, whatever refresh can do
    for (LinearPart* part : quantized_parts(m)) {
        QuantizedTensor& t = *part;
        float amax = 0.0f;
        for (int64_t i = 0; i < t.rows * t.cols; i++) amax = std::fmax(amax, std::fabs(t.master[i]));
        for (int64_t g = 0; g < t.groups; g++) {
            float low = 0.0f, high = 0.0f, mean = 0.0f;
            for (int64_t i = g * t.group; i < (g + 1) * t.group; i++) {
                low = std::fmin(low, t.master[i]), high = std::fmax(high, t.master[i]);
                mean += std::fabs(t.master[i]) / (float)t.group;
            }
            const QuantSpec spec = t.quantizer.spec;
            if (spec.format == QuantFormat::ternary) high = mean;
            t.grid[g] = quant_grid(spec, low, high, 448.0f * 6.0f / amax, 1.0f);
            for (int64_t i = g * t.group; t.codes && i < (g + 1) * t.group; i++)
                t.codes[i] = (int8_t)quant_code(spec, t.master[i], t.grid[g]);
        }
        t.measured = true;
    }
}

// what the linear layers of a model with grids stand for, and the plain master weights of all else
static std::vector<float> values_of(const Model& m) {
    std::vector<float> v(m.master.data, m.master.data + m.num_params);
    for (const LinearPart* t : quantized_parts(m))
        for (int64_t i = 0; i < t->count(); i++) {
            const QuantSpec spec = t->quantizer.spec;
            Grid g = t->grid[i / t->group];
            v[t->offset + (size_t)i] = quant_value(spec, quant_code(spec, t->master[i], g), g);
        }
    return v;
}

// the largest difference over kinds of tensors, relative to the largest value of each
static double worst(const Model& m, const std::vector<float>& want, const Model& got, bool linears) {
    double w = 0.0;
    for (const ParamTensor& t : m.tensors) {
        if ((t.kind == ParamKind::linear) != linears) continue;
        double amax = 0.0, diff = 0.0;
        for (int64_t i = 0; i < t.count(); i++) {
            amax = std::fmax(amax, std::fabs(want[t.offset + i]));
            diff = std::fmax(diff, std::fabs((double)want[t.offset + i] - got.master.data[t.offset + i]));
        }
        w = std::fmax(w, diff / amax);
    }
    return w;
}

// GGUF_DIR keeps the files for test/make_golden_gguf.py
static std::string export_path(const TempDir& dir, const std::string& name) {
    const char* keep = getenv("GGUF_DIR");
    return keep ? std::string(keep) + "/" + name : dir / name;
}

TEST(GgufExport, QuantizedModelsAreWrittenExactly) {
    struct {
        const char *model, *quantizer, *type, *linears;
    } cases[] = {
        {"qwen3", "int4:g32", "auto", "Q4_0"},      {"llama", "int4:g32", "auto", "Q4_0"},
        {"llama", "int4:channel", "", "Q4_0"},      {"llama", "int4:tensor", "Q4_1", "Q4_1"},
        {"qwen2", "int4:g32:asym", "auto", "Q5_0"}, {"qwen2", "int3:g64", "Q4_0", "Q4_0"},
        {"llama", "int2:g64", "auto", "Q2_0"},      {"llama", "int8:channel", "q8_0", "Q8_0"},
        {"qwen2", "ternary", "auto:q8_0", "Q2_0"},  {"llama", "mxfp4", "auto", "MXFP4"},
        {"llama", "nvfp4", "auto", "NVFP4"},        {"llama", "nf4:g64", "F32", "F32"},
        {"qwen3", "int6:g32", "auto", "Q8_0"},
    };
    Tokenizer tok = tokenizer_byte_level();
    for (auto& c : cases) {
        for (bool codes : {true, false}) {
            std::string what = std::string(c.model) + " " + c.quantizer + " as " + c.type;
            TempDir dir;
            Model m, back;
            init_tiny(m, c.model, c.quantizer, "all", codes);
            std::string name = std::string(c.model) + "-" + c.quantizer + ".gguf";
            std::replace(name.begin(), name.end(), ':', '-');
            std::string path = export_path(dir, name);
            gguf_export(m, tok, path, c.type);
            GgufFile f = gguf_open(path);
            EXPECT_STREQ(f.tensors.at("blk.1.ffn_down.weight").type->name, c.linears) << what;
            EXPECT_STREQ(f.tensors.at("blk.1.ffn_norm.weight").type->name, "F32") << what;
            back.dev = model_device();
            model_load(back, path);
            std::vector<float> want = values_of(m);
            EXPECT_LE(worst(m, want, back, true), std::string(c.linears) == "NVFP4" ? 2e-7 : 0.0) << what;
            EXPECT_LE(worst(m, want, back, false), std::string(c.type) == "auto:q8_0" ? 0.005 : 5e-4) << what;
            EXPECT_EQ(gguf_int(f, "general.file_type", -1), gguf_type(std::string(c.linears))->file_type) << what;
        }
    }
}

TEST(GgufExport, LinearsThatAreNotQuantizedKeepTheirNumbers) {
    TempDir dir;
    Model m, back;
    init_tiny(m, "llama", "int4:g32", "q,k");
    gguf_export(m, Tokenizer(), dir / "m.gguf", "auto:F32");
    GgufFile f = gguf_open(dir / "m.gguf");
    EXPECT_STREQ(f.tensors.at("blk.0.attn_q.weight").type->name, "Q4_0");
    EXPECT_STREQ(f.tensors.at("blk.0.ffn_up.weight").type->name, "F32");
    back.dev = model_device();
    model_load(back, dir / "m.gguf");
    std::vector<float> want = values_of(m);
    EXPECT_EQ(memcmp(want.data(), back.master.data, want.size() * 4), 0);
}

TEST(GgufExport, UnquantizedModelsByGgmlsFormulas) {
    struct {
        const char* type;
        double linears, rest;
    } cases[] = {{"F32", 0, 0},         {"F16", 5e-4, 5e-4},   {"BF16", 4e-3, 4e-3},  {"", 4e-3, 4e-3},
                 {"Q8_0", 0.005, 5e-4}, {"Q4_0", 0.13, 5e-4},  {"Q4_1", 0.07, 5e-4},  {"Q5_0:Q5_1", 0.07, 0.04},
                 {"Q2_0", 0.51, 5e-4},  {"MXFP4", 0.34, 5e-4}, {"Q8_0:F32", 0.005, 0}};
    int i = 0;
    for (auto& c : cases) {
        const char* model = i++ % 2 ? "qwen2" : "llama";
        TempDir dir;
        Model m, back;
        init_tiny(m, model, "none");
        std::string path = dir / "m.gguf";
        gguf_export(m, Tokenizer(), path, c.type);
        back.dev = model_device();
        model_load(back, path);
        std::vector<float> want = values_of(m);
        double linears = worst(m, want, back, true), rest = worst(m, want, back, false);
        EXPECT_LE(linears, c.linears) << model << " " << c.type;
        EXPECT_GE(linears, c.linears / 20) << model << " " << c.type;
        EXPECT_LE(rest, c.rest) << model << " " << c.type;
    }
}

// tiny models of transformers: what is read back is what was written, bit for bit, and q and k lie in the file as
// llama.cpp defines it. (make_golden_gguf.py has transformers compute the golden logits from these files.)
TEST(GgufExport, GoldenModelsComeBackUnchanged) {
    for (const char* name : {"qwen2", "qwen3", "llama"}) {
        std::string folder = std::string("test/golden/") + name;
        TempDir dir;
        Model m, back;
        m.dev = back.dev = model_device();
        model_load(m, folder);
        std::string path = export_path(dir, std::string(name) + ".gguf");
        gguf_export(m, Tokenizer(), path, "F32");
        model_load(back, path);
        EXPECT_EQ(m.num_params, back.num_params);
        EXPECT_EQ(memcmp(m.master.data, back.master.data, m.num_params * sizeof(float)), 0) << name;
        const ModelConfig &a = m.config, &b = back.config;
        EXPECT_EQ(a.rope_scaling, b.rope_scaling);
        EXPECT_EQ(a.factor, b.factor);
        EXPECT_EQ(a.low_freq_factor, b.low_freq_factor);
        EXPECT_EQ(a.high_freq_factor, b.high_freq_factor);
        EXPECT_EQ(a.original_max_position_embeddings, b.original_max_position_embeddings);
        EXPECT_EQ(a.rope_theta, b.rope_theta);
        EXPECT_EQ(a.rms_norm_eps, b.rms_norm_eps);
        EXPECT_EQ(a.tie_word_embeddings, b.tie_word_embeddings);
        EXPECT_EQ(a.max_position_embeddings, b.max_position_embeddings);
        EXPECT_EQ(a.head_dim, b.head_dim);
        EXPECT_EQ(a.num_key_value_heads, b.num_key_value_heads);

        // the permutation itself, by ggml's definition: HF row (h, s, i) lies at (h, i, s)
        GgufFile f = gguf_open(path);
        std::vector<float> q(a.num_attention_heads * a.head_dim * a.hidden_size);
        gguf_read_float(f.tensors.at("blk.1.attn_q.weight"), q.data());
        const float* hf = nullptr;
        for (const ParamTensor& t : m.tensors)
            if (t.name == "model.layers.1.self_attn.q_proj.weight") hf = m.master.data + t.offset;
        int wrong = 0, half = a.head_dim / 2;
        for (int h = 0; h < a.num_attention_heads; h++)
            for (int s = 0; s < 2; s++)
                for (int i = 0; i < half; i++) {
                    int to = a.model_type == "llama" ? h * a.head_dim + 2 * i + s : h * a.head_dim + s * half + i;
                    int from = h * a.head_dim + s * half + i;
                    wrong += memcmp(&q[to * a.hidden_size], hf + from * a.hidden_size, a.hidden_size * 4) != 0;
                }
        EXPECT_EQ(wrong, 0) << name;
    }
}

TEST(GgufExport, TokenizerAndStopTokens) {
    TempDir dir;
    Model m;
    init_tiny(m, "qwen2", "none");
    m.config.eos_token_ids = {258, 256};
    Tokenizer tok = tokenizer_byte_level();
    tok.use_nfc = false;
    tok.chat_text = "{{ x }}";
    for (PreTokenizer pre : {PreTokenizer::gpt2, PreTokenizer::qwen2, PreTokenizer::llama3, PreTokenizer::smollm}) {
        tok.pre = pre;
        gguf_export(m, tok, dir / "m.gguf", "BF16");
        GgufFile f = gguf_open(dir / "m.gguf");
        GgufTokenizerParts p = gguf_tokenizer(f);
        Tokenizer back = tokenizer_from_parts(p.tokens, p.merges, p.token_type, p.pre, p.eos_token_id, p.bos_token_id,
                                              p.pad_token_id, p.add_bos, p.chat_template);
        EXPECT_EQ(back.pre, pre);
        EXPECT_EQ(back.text, tok.text);
        EXPECT_EQ(back.flags, tok.flags);
        EXPECT_EQ(back.merges, tok.merges);
        EXPECT_EQ(back.eos, tok.eos);
        EXPECT_EQ(back.bos, tok.bos);
        EXPECT_EQ(back.pad, tok.pad);
        EXPECT_EQ(back.chat_text, tok.chat_text);
        EXPECT_EQ(config_from_gguf(f).eos_token_ids, (std::vector<int>{258, 256}));
    }
    // the rows of the embedding that are no tokens
    tok.text.resize(257), tok.flags.resize(257), tok.flags[40] = 0;
    tok.eos = {256};
    gguf_export(m, tok, dir / "m.gguf", "BF16");
    GgufTokenizerParts p = gguf_tokenizer(gguf_open(dir / "m.gguf"));
    EXPECT_EQ(p.tokens.size(), 259u);
    EXPECT_EQ(p.tokens[258], "[PAD258]");
    EXPECT_EQ(p.tokens[40], "[PAD40]");
    EXPECT_EQ(p.token_type[258], 5);
    EXPECT_EQ(p.token_type[256], 3);
    EXPECT_EQ(p.eos_token_id, 256);
    tok.text.resize(260), tok.flags.resize(260);
    expect_has(error_of([&] { gguf_export(m, tok, dir / "n.gguf", "BF16"); }), "260 tokens and the model 259 rows");
}

TEST(GgufExport, RefusalsLeaveNothing) {
    auto refused = [](const std::string& model, const std::string& quantizer, const std::string& type,
                      const std::function<void(Model&)>& change = {}) {
        TempDir dir;
        Model m;
        init_tiny(m, model, quantizer);
        if (change) change(m);
        std::string what;
        try {
            gguf_export(m, Tokenizer(), dir / "m.gguf", type);
        } catch (const Error& e) {
            what = e.what();
            EXPECT_EQ(what.find('\n'), std::string::npos);
        }
        EXPECT_EQ(dir.count(), 0u) << what;
        return what;
    };
    expect_has(refused("qwen3", "none", "Q9"), "'Q9' is not one of auto, F32, F16, Q4_0");
    expect_has(refused("qwen3", "none", "Q4_K"), "'Q4_K' is not one of");
    expect_has(refused("qwen3", "none", "Q4_0:x"), "'x' is not one of");
    expect_has(refused("qwen3", "none", "NVFP4"), "only known of a model trained with --weights nvfp4");
    expect_has(refused("qwen3", "none", "F16:NVFP4"), "NVFP4 is only for linear layers");
    expect_has(refused("qwen3", "none", "TQ2_0"), "tensor model.layers.0.self_attn.q_proj.weight: its rows of 64");
    expect_has(refused("qwen3", "int8:g32", "Q4_0"), "levels -128 to 127");
    expect_has(refused("qwen3", "nf4:g64", "auto"), "no GGUF type holds nf4:g64 exactly");
    expect_has(refused("qwen3", "mid3:g32", "auto"), "no GGUF type holds mid3:g32 exactly");
    expect_has(refused("qwen3", "int4:g16", ""), "no GGUF type holds int4:g16:sym exactly (Q8_0, for instance, cannot");
    expect_has(refused("qwen3", "int4:g32", "Q4_0:TQ2_0"), "tensor model.embed_tokens.weight: its rows of 64");
    expect_has(refused("qwen3", "none", "F16", [](Model& m) { m.master.data[0] = 1e6f; }),
               "model.embed_tokens.weight holds a number that is not finite or beyond the 65504");
    expect_has(refused("qwen3", "none", "Q8_0", [](Model& m) { m.master.data[m.tensors[2].offset] = NAN; }),
               "q_proj.weight holds a number that is not finite");
    expect_has(refused("qwen3", "int4:g32", "Q4_0", [](Model& m) { quantized_parts(m)[3]->measured = false; }),
               "has no scales yet");
}

TEST(GgufExport, AFilesOwnGridIsKept) {
    for (const char* model : {"llama", "qwen3"})
        for (const char* type : {"Q4_0", "Q8_0", "Q2_0", "MXFP4", "Q5_0"}) {
            TempDir dir;
            Model base, m;
            init_tiny(base, model, "none");
            gguf_export(base, Tokenizer(), dir / "base.gguf", std::string(type) + ":F32");
            GgufFile f = gguf_open(dir / "base.gguf");
            m.dev = model_device();
            model_allocate(m, config_from_gguf(f));
            Quantizer q;
            ASSERT_EQ(gguf_quantizer(f, m.config, &q), "");
            model_quantize(m, rules_of(quantizer_text(q), "all", ScaleMode::kept), true);
            model_load_weights(m, dir / "base.gguf");
            model_refresh(m);
            std::vector<float> want = values_of(m);
            EXPECT_EQ(worst(m, want, m, true), 0.0) << type;  // master = Q(master)
            for (const LinearPart* t : quantized_parts(m))
                for (int64_t i = 0; i < t->count(); i++)
                    ASSERT_EQ(quant_value(q.spec, t->codes[i], t->grid[i / t->group]), t->master[i]) << type;
            // and written again it is the same file
            gguf_export(m, Tokenizer(), dir / "again.gguf", std::string(type) + ":F32");
            std::string a = read_file(dir / "base.gguf"), b = read_file(dir / "again.gguf");
            size_t at = a.find("general.name");
            ASSERT_NE(at, std::string::npos);
            for (auto& [name, t] : f.tensors) {
                GgufFile g = gguf_open(dir / "again.gguf");
                EXPECT_EQ(memcmp(t.data, g.tensors.at(name).data, t.bytes), 0) << type << " " << name;
            }
        }
    // of a mixture each quantizer gets the smallest type of its own
    {
        TempDir dir;
        Model m;
        init_tiny(m, "qwen3", "int4:g32:signedmax; down=int8:g32; v=none");
        gguf_export(m, Tokenizer(), dir / "m.gguf", "");
        GgufFile f = gguf_open(dir / "m.gguf");
        EXPECT_STREQ(f.tensors.at("blk.0.attn_q.weight").type->name, "Q4_0");
        EXPECT_STREQ(f.tensors.at("blk.0.ffn_down.weight").type->name, "Q8_0");
        EXPECT_STREQ(f.tensors.at("blk.0.attn_v.weight").type->name, "F16");
        std::vector<float> want = values_of(m), got(m.tensors[0].count());
        for (const ParamTensor& t : m.tensors) {
            if (t.kind != ParamKind::linear || std::string(t.label) == "v") continue;
            got.resize(t.count());
            gguf_read_parameter(f, m.config, t.name, {t.rows, t.cols}, got.data());
            EXPECT_EQ(memcmp(got.data(), want.data() + t.offset, got.size() * sizeof(float)), 0) << t.name;
        }
    }
    // one type for all linears, or none
    TempDir dir;
    Model m;
    init_tiny(m, "qwen3", "int4:g32", "q,k");
    gguf_export(m, Tokenizer(), dir / "m.gguf", "Q4_0");
    Quantizer q;
    ModelConfig c = tiny_config("qwen3");
    expect_has(gguf_quantizer(gguf_open(dir / "m.gguf"), c, &q), "has type F16 and others have Q4_0");
    gguf_export(m, Tokenizer(), dir / "m.gguf", "F32");
    expect_has(gguf_quantizer(gguf_open(dir / "m.gguf"), c, &q), "its linears have type");
}
