// bitsandbytes' 4-bit container (QLoRA, arXiv 2305.14314; read by transformers, PEFT, vLLM). For a linear X of
// W [out, in]:
//   X.weight               U8 [out in / 2, 1]   two codes a byte, the earlier one in the high nibble
//   X.weight.absmax        F32 [out in / 64], or U8 with double quantization
//   X.weight.quant_map     F32 [16], the levels of NF4
//   X.weight.quant_state.bitsandbytes__nf4      U8: a JSON text with blocksize, dtype, shape and the nested offset
// and with double quantization
//   X.weight.nested_absmax     F32 [blocks / 256, rounded up]
//   X.weight.nested_quant_map  F32 [256], dynamic_map()
//   W = quant_map[code] absmax, absmax = nested_quant_map[u8] nested_absmax + nested_offset
// The trap: blocks of 64 run over the flattened matrix, so they are groups of a row only where 64 divides the inputs.
// Source: bitsandbytes, functional.py, QuantState.
#pragma once
#include "hf_config.h"
#include "quantized_linear.h"

// the format whose codes the files have, by bnb_4bit_quant_type
inline bool is_bitsandbytes(const FormatTraits& t) { return t.bitsandbytes == std::string("nf4"); }

// nested: double quantization
inline nlohmann::ordered_json bitsandbytes_config(bool nested, const std::string& dtype,
                                                  const std::vector<std::string>& kept) {
    nlohmann::ordered_json j;
    j["quant_method"] = "bitsandbytes";
    j["_load_in_4bit"] = true;
    j["_load_in_8bit"] = false;
    j["load_in_4bit"] = true;
    j["load_in_8bit"] = false;
    j["bnb_4bit_quant_type"] = "nf4";
    j["bnb_4bit_use_double_quant"] = nested;
    j["bnb_4bit_compute_dtype"] = dtype;
    j["bnb_4bit_quant_storage"] = "uint8";
    j["llm_int8_enable_fp32_cpu_offload"] = false;
    j["llm_int8_has_fp16_weight"] = false;
    j["llm_int8_skip_modules"] = nullptr;
    j["llm_int8_threshold"] = 6.0;
    if (!kept.empty()) {
        j["llm_int8_skip_modules"] = kept;
        j["llm_int8_skip_modules"].push_back("lm_head");  // a list replaces the default, which has it
    }
    return j;
}

// dtype: bfloat16, float16 or float32, what the loader computes in
inline std::vector<ContainerTensor> bitsandbytes_tensors(const QuantizedLinear& l, const std::string& dtype) {
    const char* name = "bitsandbytes";
    if (!is_bitsandbytes(quant_traits(l.quantizer.spec))) cannot_hold(l, name, "its 4-bit files store nf4");
    if (l.quantizer.scope != QuantScope::group || l.quantizer.group != 64)
        cannot_hold(l, name, "its blocks have 64 numbers; choose nf4:g64");
    int64_t n = l.rows * l.cols, blocks = n / 64, nested_blocks = CEIL_DIV(blocks, (int64_t)256);
    bool nested = !l.nested.codes.empty();
    // torch's own text of a float: the offset is read back by a JSON parser as the same double
    nlohmann::ordered_json state;
    state["quant_type"] = "nf4";
    state["blocksize"] = 64;
    state["dtype"] = dtype;
    state["shape"] = {l.rows, l.cols};
    if (nested) {
        state["nested_blocksize"] = 256;
        state["nested_dtype"] = "float32";
        state["nested_offset"] = (double)l.nested.offset;
    }
    // Python's json.dumps separates by ", " and ": ", which is all that dump() lacks
    std::string text = "{";
    for (auto& [key, value] : state.items()) {
        std::string v = value.dump();
        if (key == "shape") v = format("[%lld, %lld]", (long long)l.rows, (long long)l.cols);
        text += (text.size() > 1 ? ", \"" : "\"") + key + "\": " + v;
    }
    text += "}";
    std::vector<ContainerTensor> list = {
        {".weight",
         "U8",
         {n / 2, 1},
         [n](const QuantizedLinear& linear, uint8_t* bytes) {
             for (int64_t i = 0; i < n / 2; i++)
                 bytes[i] = (uint8_t)(linear.codes[2 * i] << 4 | (linear.codes[2 * i + 1] & 15));
         }},
        container_floats(".weight.quant_map", "F32", {16},
                         [](const QuantizedLinear&, float* x) {
                             for (int i = 0; i < 16; i++) x[i] = nf4_to_float((uint32_t)i);
                         }),
        {".weight.quant_state.bitsandbytes__nf4",
         "U8",
         {(int64_t)text.size()},
         [text](const QuantizedLinear&, uint8_t* bytes) { memcpy(bytes, text.data(), text.size()); }},
    };
    if (nested) {
        list.push_back({".weight.absmax", "U8", {blocks}, [](const QuantizedLinear& linear, uint8_t* bytes) {
                            memcpy(bytes, linear.nested.codes.data(), linear.nested.codes.size());
                        }});
        list.push_back(container_floats(".weight.nested_absmax", "F32", {nested_blocks},
                                        [](const QuantizedLinear& linear, float* x) {
                                            std::copy(linear.nested.scales.begin(), linear.nested.scales.end(), x);
                                        }));
        list.push_back(container_floats(".weight.nested_quant_map", "F32", {256}, [](const QuantizedLinear&, float* x) {
            const DynamicMap map = dynamic_map();
            std::copy(map.value, map.value + 256, x);
        }));
    } else {
        list.push_back(container_floats(".weight.absmax", "F32", {blocks}, [](const QuantizedLinear& linear, float* x) {
            for (size_t i = 0; i < linear.grid.size(); i++) x[i] = linear.grid[i].scale;
        }));
    }
    return list;
}

// ---------------------------------------------------------------------------------------------------------------------
// reading

inline void bitsandbytes_format(const nlohmann::json& j, const std::string& where) {
    if (config_bool(j, "load_in_8bit", config_bool(j, "_load_in_8bit", false, where), where))
        fail("%s: 8-bit bitsandbytes files (LLM.int8) are not supported; 4-bit NF4 ones are", where.c_str());
    std::string type = config_string(j, "bnb_4bit_quant_type", "fp4", where);
    if (type != "nf4") fail("%s: bnb_4bit_quant_type %s is not supported; nf4 is", where.c_str(), shown(type).c_str());
}

static constexpr const char* bitsandbytes_state = ".weight.quant_state.bitsandbytes__nf4";
inline bool bitsandbytes_has(const ModuleTensors& t) { return t.find(bitsandbytes_state) != nullptr; }

// Scales that are codes themselves; l.nested keeps those that this program would have chosen too
inline std::vector<float> bitsandbytes_nested_scales(QuantizedLinear& l, const ModuleTensors& t,
                                                     const nlohmann::json& state, int64_t blocks,
                                                     const std::string& where) {
    int nested_block = config_required_int(state, "nested_blocksize", where);
    if (nested_block < 32 || nested_block > 4096)
        fail("%s: nested_blocksize %d; 32 to 4096 are supported", where.c_str(), nested_block);
    const StTensor& codes = t.require(".weight.absmax", {blocks}, "U8");
    NestedScales s;
    s.codes.assign(codes.data, codes.data + blocks);
    s.scales = read_floats(t.require(".weight.nested_absmax", {CEIL_DIV(blocks, (int64_t)nested_block)}, "F32"));
    std::vector<float> levels256 = read_floats(t.require(".weight.nested_quant_map", {256}, "F32"));
    const DynamicMap usual = dynamic_map();
    DynamicMap map;
    std::copy(levels256.begin(), levels256.end(), map.value);
    s.offset = (float)config_number(state, "nested_offset", 0.0, where);
    if (!(std::fabs(s.offset) <= 3.4e38f)) fail("%s: nested_offset is not finite", where.c_str());
    std::vector<float> scales(blocks);
    for (int64_t i = 0; i < blocks; i++)
        scales[i] = dynamic_map_scale(map, s.codes[i], s.scales[i / nested_block], s.offset);
    if (nested_block == QUANT_NESTED && memcmp(&map, &usual, sizeof(map)) == 0) l.nested = std::move(s);
    return scales;
}

inline void bitsandbytes_read(QuantizedLinear& l, const ModuleTensors& t, bool codes_wanted = true) {
    const StTensor& state_bytes = *t.find(bitsandbytes_state);
    std::string where = state_bytes.path + ": tensor " + shown(state_bytes.name);
    if (state_bytes.dtype != "U8" || state_bytes.bytes > 65536) fail("%s is not a JSON text", where.c_str());
    nlohmann::json state = json_parse({(const char*)state_bytes.data, state_bytes.bytes}, where);
    if (!state.is_object()) fail("%s: not a JSON object", where.c_str());
    int block = config_required_int(state, "blocksize", where);
    if (block < 32 || block > 4096 || (block & (block - 1)))
        fail("%s: blocksize %d; a power of two from 32 to 4096 is expected", where.c_str(), block);
    const nlohmann::json* shape = config_member(state, "shape");
    if (!shape || !shape->is_array() || shape->size() != 2 || (*shape)[0] != l.rows || (*shape)[1] != l.cols)
        fail("%s: shape is not [%lld, %lld], which config.json asks for", where.c_str(), (long long)l.rows,
             (long long)l.cols);
    int64_t n = l.rows * l.cols, blocks = CEIL_DIV(n, (int64_t)block);
    if (n % 2) fail("%s: an odd number of weights is not supported", where.c_str());
    const StTensor& bytes = t.require(".weight", {n / 2, 1}, "U8");
    std::vector<float> levels = read_floats(t.require(".weight.quant_map", {16}, ""));
    for (int i = 0; i < 16; i++)
        if (levels[i] != nf4_to_float((uint32_t)i))
            t.damaged(".weight.quant_map", format("level %d is %.9g, which is not NF4's", i, (double)levels[i]));
    std::vector<float> scales = config_member(state, "nested_offset")
                                    ? bitsandbytes_nested_scales(l, t, state, blocks, where)
                                    : read_floats(t.require(".weight.absmax", {blocks}, "F32"));
    bool rows = l.cols % block == 0;
    l.quantizer = Quantizer();
    l.quantizer.enabled = true;
    l.quantizer.spec = QuantSpec{quant_find(is_bitsandbytes)->format, 4, true, ScaleRule::amax};
    l.quantizer.scope = QuantScope::group;
    l.quantizer.group = block;
    l.quantizer.double_quant = !l.nested.codes.empty();
    if (!rows) {
        l.quantizer = Quantizer();
        l.nested = NestedScales();
        l.no_grid = format("its blocks of %d cross rows of %lld", block, (long long)l.cols);
    }
    if (!codes_wanted) return;
    auto code = [&](int64_t i) { return i % 2 ? bytes.data[i / 2] & 15 : bytes.data[i / 2] >> 4; };
    if (!rows) {
        l.values.resize(n);
        for (int64_t i = 0; i < n; i++) l.values[i] = nf4_to_float((uint32_t)code(i)) * scales[i / block];
        return;
    }
    l.grid.resize(blocks);
    for (int64_t i = 0; i < blocks; i++) l.grid[i] = Grid{scales[i], 0.0f};
    l.codes.resize(n);
    for (int64_t i = 0; i < n; i++) l.codes[i] = (int8_t)code(i);
}
