// What a run resumes from, beside the weights of its checkpoint, which are fp32 there unless --save_dtype says otherwise:
//   trainer_state.json      counters (LoopState), the objective's own, and what the command adds
//   optimizer.safetensors   formats/optimizer_file.h
//   trainer.safetensors     masters, where the checkpoint's weights are not fp32; the quantizers' grids, what stands
//                           behind them, learned scales, codes at load (for the flip rates) and what else statistics
//                           of grids look back to; arrays of the objective, such as the reference model, and of methods
// All else is a function of these and of the flags: random numbers are keyed by step, data by step and seed, working
// weights are made of masters and grids.
#pragma once
#include <string>
#include <vector>
#include "../formats/optimizer_file.h"
#include "../runtime/file_io.h"
#include "../runtime/json.h"
#include "objective.cuh"

static constexpr int RUN_STATE_VERSION = 1;

// masters: of a model that is not saved as fp32
inline std::vector<NamedArray> run_arrays(Trainer& t, Objective& objective, bool masters) {
    Model& m = *t.model;
    std::vector<NamedArray> list;
    if (masters) add_array(list, "masters", m.master);
    if (m.grids.size) list.push_back({"grids", "F32", (int64_t)m.grids.size, 2, m.grids.data, sizeof(float)});
    add_array(list, "scale_floats", m.scale_floats);
    add_array(list, "scale_codes", m.scale_codes);
    add_array(list, "learned_scales", m.learned);
    add_array(list, "codes_at_load", m.initial);
    for (const NamedArray& a : quant_statistics_arrays(t.statistics)) list.push_back(a);
    for (const NamedArray& a : objective.arrays()) list.push_back(a);
    for (const auto& method : t.methods.list)
        for (const NamedArray& a : method->arrays()) list.push_back(a);
    return list;
}

inline nlohmann::ordered_json state_to_json(const LoopState& s) {
    nlohmann::ordered_json j;
    j["step"] = s.step;
    j["tokens_trained"] = s.tokens_trained;
    j["num_tokens"] = s.num_tokens;
    j["train_seconds"] = s.train_seconds;
    j["prompt_tokens"] = s.generated.prompt_tokens;
    j["completion_tokens"] = s.generated.completion_tokens;
    j["generate_seconds"] = s.generated.seconds;
    j["optimizer_steps"] = s.trainer.step;
    j["forward_passes"] = s.trainer.passes;
    j["skipped_steps"] = s.trainer.skipped;
    j["skipped_in_a_row"] = s.trainer.skipped_in_a_row;
    j["pending_metrics"] = s.pending;
    j["watch"] = watch_to_json(s.watch);
    return j;
}

inline LoopState state_from_json(const nlohmann::ordered_json& j, const std::string& where) {
    auto number = [&](const char* key) -> const nlohmann::ordered_json& {
        if (!j.is_object() || !j.contains(key) || !j[key].is_number() || !(j[key].get<double>() >= 0.0))
            fail("%s: no number `%s`; the file is damaged", where.c_str(), key);
        return j[key];
    };
    auto count = [&](const char* key, int64_t most = INT64_MAX) {
        const nlohmann::ordered_json& v = number(key);
        if (!v.is_number_integer() || v.get<uint64_t>() > (uint64_t)most)
            fail("%s: `%s` is not a whole number in range; the file is damaged", where.c_str(), key);
        return v.get<int64_t>();
    };
    LoopState s;
    s.step = count("step");
    s.tokens_trained = count("tokens_trained");
    if (j.contains("num_tokens")) s.num_tokens = count("num_tokens");
    s.train_seconds = number("train_seconds");
    s.generated.prompt_tokens = count("prompt_tokens");
    s.generated.completion_tokens = count("completion_tokens");
    s.generated.seconds = number("generate_seconds");
    s.trainer.step = count("optimizer_steps");
    s.trainer.passes = (uint32_t)count("forward_passes", UINT32_MAX);
    s.trainer.skipped = count("skipped_steps");
    s.trainer.skipped_in_a_row = count("skipped_in_a_row");
    if (!j.contains("pending_metrics") || !(j["pending_metrics"].is_null() || j["pending_metrics"].is_object()))
        fail("%s: no object `pending_metrics`; the file is damaged", where.c_str());
    s.pending = j["pending_metrics"];
    if (j.contains("watch")) s.watch = watch_from_json(j["watch"], where);
    return s;
}

// Into a checkpoint's folder, beside its weights. command: what the command adds
inline void run_state_save(const std::string& folder, Trainer& t, Objective& objective, const LoopState& state,
                           bool masters, const nlohmann::ordered_json& command) {
    const Device dev = t.model->dev;
    const std::vector<NamedArray> arrays = run_arrays(t, objective, masters);
    if (!arrays.empty()) arrays_save(folder + "/trainer.safetensors", arrays, {}, dev);
    optimizer_save(t.optimizer, state.trainer.step, folder + "/optimizer.safetensors");
    nlohmann::ordered_json j;
    j["version"] = RUN_STATE_VERSION;
    j["loop"] = state_to_json(state);
    j["objective"] = nlohmann::ordered_json::object();
    objective.save(j["objective"]);
    if (t.statistics.on()) j["quant_statistics"] = quant_statistics_save(t.statistics);
    for (const auto& item : command.items()) j[item.key()] = item.value();
    write_file_atomic(folder + "/trainer_state.json", json_line(j, 2) + "\n");
    st_write_index(folder);  // loaders that take every *.safetensors of a folder would read these as the model
}

// trainer_state.json of a checkpoint
inline nlohmann::ordered_json run_state_read(const std::string& folder) {
    const std::string path = folder + "/trainer_state.json";
    if (!file_exists(path))
        fail(
            "%s has no trainer_state.json: it is no checkpoint, or was saved with --save_only_model or by an earlier "
            "version; begin a new run with its weights: --model %s",
            folder.c_str(), folder.c_str());
    // in order, because part of it is logged again
    const nlohmann::ordered_json j = json_parse<nlohmann::ordered_json>(read_file(path, 256 << 20), path);
    auto part = [&](const char* key) { return j.is_object() && j.contains(key) && j[key].is_object(); };
    if (!j.is_object() || !j.contains("version") || !j["version"].is_number_integer())
        fail("%s: no number `version`; the file is damaged", path.c_str());
    if (j["version"] > RUN_STATE_VERSION)
        fail("%s is of version %lld, this program reads %d; take a later program", path.c_str(),
             (long long)j["version"].get<int64_t>(), RUN_STATE_VERSION);
    for (const char* key : {"loop", "objective"})
        if (!part(key)) fail("%s: no object `%s`; the file is damaged", path.c_str(), key);
    state_from_json(j["loop"], path);
    return j;
}

// Everything but the weights themselves, which are loaded before (masters: they are here); j: run_state_read's
inline LoopState run_state_load(const std::string& folder, const nlohmann::ordered_json& j, Trainer& t,
                                Objective& objective, bool masters) {
    Model& m = *t.model;
    const LoopState state = state_from_json(j["loop"], folder + "/trainer_state.json");
    const std::vector<NamedArray> arrays = run_arrays(t, objective, masters);
    const std::string path = folder + "/trainer.safetensors";
    if (!arrays.empty() || file_exists(path)) arrays_load(st_open(path), path, arrays, "a run with other flags", m.dev);
    if (optimizer_load(t.optimizer, folder + "/optimizer.safetensors") != state.trainer.step)
        fail("%s: its optimizer.safetensors is of another step than its trainer_state.json; take another checkpoint",
             folder.c_str());
    objective.load(j["objective"]);
    if (t.statistics.on()) quant_statistics_load(t.statistics, j, folder + "/trainer_state.json");
    static_cast<TrainerCounters&>(t) = state.trainer;
    for (LinearPart* p : quantized_parts(m)) p->measured = true, p->given = p->restored = false;
    m.noise.step = (uint32_t)t.step;
    for (const auto& method : t.methods.list) method->resumed();
    model_refresh(m);
    return state;
}
