// What a run resumes from: trainer_state.json with the flags of its run, the arrays of optimizer.safetensors and
// trainer.safetensors, and the log that is cut behind a step. Counters and arrays, read and written, are read as the
// same; a log that is cut is a beginning of itself, of whole lines, and does not get shorter when it is cut again.
#include "../../commands/resume.cuh"
#include "fuzz.h"

static void fuzz_state(const std::string& folder) {
    nlohmann::ordered_json j;
    if (!fuzz_accepts([&] { j = checkpoint_state(folder); })) return;
    const nlohmann::ordered_json loop = state_to_json(state_from_json(j["loop"], folder));
    fuzz_require(state_to_json(state_from_json(loop, folder)) == loop, "counters are read as they were written");
    check_input_files(j["inputs"], j["inputs"]);
    fuzz_accepts([&] { check_build(j["build"], j["build"], folder); });
    Options o;
    if (!fuzz_accepts([&] { o = resumed_options(Options(), {}, j, folder); })) return;
    const std::string notes = flag_differences(j["options"], o);
    fuzz_require(notes.empty() || notes.back() == '\n', "differences are lines");
    fuzz_require(flag_differences(flags_json(o, false), o).empty(), "flags do not differ from themselves");
}

static void fuzz_optimizer(const std::string& path, const std::string& again) {
    static Model m;
    static Optimizer o;
    static Buffer<float> grads, no_grads;
    if (!o.rule) {
        ModelConfig c;
        c.model_type = "qwen3";
        c.vocab_size = 4, c.hidden_size = c.intermediate_size = 8, c.num_hidden_layers = 1;
        c.num_attention_heads = c.num_key_value_heads = 1, c.head_dim = 8, c.max_position_embeddings = 8;
        c.tie_word_embeddings = c.qk_norm = true;
        LoraConfig lora;
        lora.r = 1, lora.target = "q";
        model_allocate(m, c);
        model_adapt(m, lora, 1, true);
        grads.allocate(m.lora.num_params, "gradients", "", m.dev);
        optimizer_init(o, m, grads, no_grads, OptimizerConfig());
    }
    int64_t step = 0;
    if (!fuzz_accepts([&] { step = optimizer_load(o, path); })) return;
    const std::string state(o.state.data, o.state.bytes());
    optimizer_save(o, step, again);
    optimizer_reset(o);
    fuzz_require(optimizer_load(o, again) == step && state == std::string(o.state.data, o.state.bytes()),
                 "an optimizer is read as it was written");
}

static void fuzz_arrays(const std::string& path, const std::string& again) {
    float masters[8] = {}, grids[4] = {};
    uint8_t codes[4] = {};
    const std::vector<NamedArray> arrays = {
        {"masters", "F32", 1, 8, masters, 4}, {"grids", "F32", 2, 2, grids, 4}, {"scale_codes", "U8", 1, 4, codes, 1}};
    if (!fuzz_accepts([&] { arrays_load(st_open(path), path, arrays, "a run with other flags", Device()); })) return;
    auto bytes = [&] {
        std::string s;
        for (const NamedArray& a : arrays) s.append(static_cast<const char*>(a.data), a.bytes());
        return s;
    };
    const std::string before = bytes();
    arrays_save(again, arrays, {}, Device());
    for (const NamedArray& a : arrays) memset(a.data, 0, a.bytes());
    arrays_load(st_open(again), again, arrays, "a run with other flags", Device());
    fuzz_require(bytes() == before, "arrays are read as they were written");
}

static void fuzz_log(const std::string& path, const std::string& text) {
    if (!fuzz_accepts([&] { cut_log(path, 2); })) return;
    const std::string once = read_file(path);
    fuzz_require(text.compare(0, once.size(), once) == 0 && (once.empty() || once.back() == '\n'), "whole lines");
    cut_log(path, 2);
    fuzz_require(read_file(path) == once, "a log that was cut stays");
}

static int fuzz_resume(const uint8_t* data, size_t size) {
    static const FuzzFolder folder;
    FuzzFiles in = fuzz_files(data, size, "trainer_state.json");
    folder.put(in, {"trainer_state.json", "optimizer.safetensors", "trainer.safetensors", "metrics.jsonl"});
    if (in.count("trainer_state.json")) fuzz_state(folder.path);
    if (in.count("optimizer.safetensors")) fuzz_optimizer(folder / "optimizer.safetensors", folder / "again");
    if (in.count("trainer.safetensors")) fuzz_arrays(folder / "trainer.safetensors", folder / "again");
    if (in.count("metrics.jsonl")) fuzz_log(folder / "metrics.jsonl", in["metrics.jsonl"]);
    return 0;
}
FUZZ_TARGET(resume)
