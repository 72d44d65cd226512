// bench: the machine's ceilings, and how near to them operators and whole steps come. On the CPU.
#pragma once
#include <ctime>
#include <fstream>
#include "../bench/growth.cuh"
#include "../bench/operators.cuh"
#include "../bench/report.h"
#include "../bench/shapes.h"
#include "../bench/steps.cuh"
#include "output.cuh"

struct BenchRun {
    Options& o;
    Ceilings ceilings;
    nlohmann::ordered_json results;
    Progress* progress = nullptr;
    std::vector<std::pair<std::string, std::string>> files = {};  // name, text: what else goes to --output_dir
    bool measures(const char* part) const {
        const std::vector<std::string> parts = split_words(o.part, ",");
        return std::find(parts.begin(), parts.end(), part) != parts.end();
    }
    void report(const BenchRow& r) {
        fputs(bench_line(ceilings, r).c_str(), stdout);
        fflush(stdout);
        progress->add(), progress->spoke();
        results["rows"].push_back(bench_json(ceilings, r));
    }
};

inline ModelConfig bench_config(const std::string& name) {
    for (const BenchShape& s : bench_shapes())
        if (name == s.name) return s.config;
    return embedded_config();
}

// Sizes of steps that take a second or some on two cores, unless the user gave others
inline void bench_defaults(Options& o) {
    o.set_default("per_device_train_batch_size", o.per_device_train_batch_size, 2);
    o.set_default("max_length", o.max_length, 512);
    o.set_default("prompts_per_step", o.prompts_per_step, 2);
    o.set_default("max_prompt_length", o.max_prompt_length, 64);
    o.set_default("max_completion_length", o.max_completion_length, 64);
    o.set_default("micro_batch_tokens", o.micro_batch_tokens, 2048);
    o.micro_batch_tokens =
        std::max({o.micro_batch_tokens, o.max_length, o.max_prompt_length + o.max_completion_length});
}

inline StepBench bench_steps(const Options& o, const std::string& model) {
    StepBench s;
    s.model = model, s.seconds = o.seconds;
    s.weights = rules_parse(o.weights, "weights", o.quantize_layers);
    StepSizes& z = s.sizes;
    z.rows = o.per_device_train_batch_size, z.length = o.max_length;
    z.prompts = o.prompts_per_step, z.generations = o.num_generations;
    z.prompt_length = o.max_prompt_length, z.completion_length = o.max_completion_length;
    z.micro_batch_tokens = o.micro_batch_tokens;
    return s;
}

// The memory that a model in training touches, and with it, laid out once more, in generation, against what the machine
// has left
inline void check_bench_memory(const std::string& model, const ModelConfig& config, int64_t micro_batch_tokens,
                               bool generates) {
    Arena plan;
    BenchModel b;
    b.m.dev.arena = &plan;
    model_allocate(b.m, config);
    trainer_init(b.t, b.m, micro_batch_tokens, false);
    const double need = (double)plan.bytes + (generates ? (double)b.m.work.bytes() : 0.0),
                 left = available_memory_bytes();
    if (left > 0 && need > left)
        fail(
            "--bench_model %s: a step takes %s and the machine has %s left; leave it out, or lower "
            "--micro_batch_tokens",
            model.c_str(), bytes_text(need).c_str(), bytes_text(left).c_str());
}

inline bool bench_has_steps(const BenchRun& r) {
    return r.measures("sft") || r.measures("decode") || r.measures("grpo");
}

inline void bench_model_steps(BenchRun& r, const std::string& model, const ModelConfig& config) {
    if (!bench_has_steps(r)) return;
    const StepBench s = bench_steps(r.o, model);
    const bool decode = r.measures("decode");
    BenchModel b;
    bench_model_open(b, config, s.weights, s.sizes.micro_batch_tokens);
    if (r.measures("sft")) r.report(bench_sft(s, b, s.sizes.rows, s.sizes.length));
    if (r.measures("grpo")) r.report(bench_grpo(s, b));
    for (int64_t sequences : {1, 8, 64})
        if (decode) r.report(bench_decode(s, b.m, sequences, std::min<int64_t>(512, config.max_position_embeddings)));
}

inline void bench_model_operators(BenchRun& r, const std::string& model, const ModelConfig& config) {
    if (!r.measures("operators")) return;
    OperatorBench b;
    b.model = model, b.config = config, b.seconds = r.o.seconds;
    b.report = [&r](const BenchRow& row) { r.report(row); };
    if (model == "embedded") b.tokens = 512, b.keys = 64, b.weights = 1 << 20;
    bench_operators(b);
}

// those of the embedded model are smaller
inline GrowthSizes growth_sizes(const std::string& model) {
    GrowthSizes z;
    if (model != "embedded") return z;
    z.batch = {32, 64}, z.context = {16, 32}, z.group = {2, 4};
    z.sequence = 16, z.tokens = 64, z.prompt = 16, z.completion = 8, z.model_tokens = 16;
    return z;
}
inline int64_t growth_most_tokens(const GrowthSizes& z) {
    return std::max({z.batch.back(), z.tokens, z.prompt + z.completion});
}

inline void bench_growth(BenchRun& r, const std::string& model, const ModelConfig& config) {
    if (!r.measures("growth")) return;
    Growth g;
    g.step = bench_steps(r.o, model), g.sizes = growth_sizes(model), g.ceilings = r.ceilings;
    g.report = [&r](const BenchRow& row) { r.report(row); };
    {
        BenchModel b;
        bench_model_open(b, config, g.step.weights, growth_most_tokens(g.sizes));
        growth_sft(g, b);
        growth_group(g, b);
    }
    std::vector<BenchShape> models = {{model.c_str(), "", config}};
    if (model != "embedded") models = {bench_shapes()[0], bench_shapes()[1], bench_shapes()[3]};
    growth_model(g, models);
    r.files.insert(r.files.end(), g.files.begin(), g.files.end());
}

// what the numbers were measured on
inline nlohmann::ordered_json bench_machine() {
    nlohmann::ordered_json j;
    char date[32] = "";
    const time_t now = time(nullptr);
    strftime(date, sizeof(date), "%Y-%m-%d", gmtime(&now));
    j["date"] = date;
    j["cpu"] = cpu_name();
    j["threads"] = bench_threads();
    j["precision"] = PRECISION_NAME;
    j["products"] = instructions_name();
    j["compiler"] = COMPILER_NAME;
    return j;
}

inline std::vector<std::string> bench_files(const BenchRun& r) {
    std::vector<std::string> names = {"bench.json"};
    for (const auto& f : r.files) names.push_back(f.first);
    return names;
}

// before the long work: what --output_dir holds that is not to be replaced
inline void bench_check_folder(const Options& o) {
    if (!o.given("output_dir")) return;
    make_folders(o.output_dir);
    const std::string path = o.output_dir + "/bench.json";
    if (!file_exists(path)) return;
    if (!o.overwrite_output_dir)
        fail("%s exists; choose another --output_dir, or replace it with --overwrite_output_dir", path.c_str());
    if (!written_names(o.output_dir, WrittenKind::run).count("bench.json"))
        fail("%s was not written by this program, so it is not replaced; move it, or choose another --output_dir",
             path.c_str());
}

inline void bench_write(const BenchRun& r) {
    if (!r.o.given("output_dir")) return;
    std::set<std::string> names = written_names(r.o.output_dir, WrittenKind::run);
    for (const std::string& name : bench_files(r)) names.insert(name);
    mark_written(r.o.output_dir, WrittenKind::run, names);
    for (const auto& f : r.files) write_file_atomic(r.o.output_dir + "/" + f.first, f.second);
    write_file_atomic(r.o.output_dir + "/bench.json", json_line(r.results, 2) + "\n");
    printf("results in %s/bench.json\n", r.o.output_dir.c_str());
}

// what cannot be measured is said before anything is
inline void bench_check(const BenchRun& r) {
    for (const std::string& name : split_words(r.o.bench_model, ",")) {
        const ModelConfig config = bench_config(name);
        check_weight_rules(config, weight_rules(r.o));
        if (bench_has_steps(r))
            check_bench_memory(name, config, r.o.micro_batch_tokens, r.measures("decode") || r.measures("grpo"));
        if (r.measures("growth")) check_bench_memory(name, config, growth_most_tokens(growth_sizes(name)), false);
    }
    bench_check_folder(r.o);
}

inline int bench_command(Session& s) {
    Options& o = s.o;
    session_threads(o);
    bench_defaults(o);
    BenchRun r{o, {}, {}};
    bench_check(r);
    r.results["version"] = TRAIN_QRL_VERSION;
    r.results["machine"] = bench_machine();
    r.results["options"] = options_to_json(o);
    printf("%s, %d threads, %s, %s\n", r.results["machine"]["cpu"].get<std::string>().c_str(), bench_threads(),
           PRECISION_NAME, instructions_name());
    r.ceilings = measure_ceilings(std::clamp(3 * o.seconds, 0.005, 0.3));
    r.results["ceilings"] = ceilings_json(r.ceilings);
    fputs((ceilings_text(r.ceilings) + bench_heading()).c_str(), stdout);
    fflush(stdout);
    Progress progress("measuring", "row", 0);
    r.progress = &progress;
    for (const std::string& name : split_words(o.bench_model, ",")) {
        const ModelConfig config = bench_config(name);
        bench_model_operators(r, name, config);
        bench_model_steps(r, name, config);
        bench_growth(r, name, config);
    }
    bench_write(r);
    return 0;
}
