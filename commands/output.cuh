// What a run prints and leaves: its folder, the lines of its start and of its evaluations, quantizers in its summary.
#pragma once
#include "../formats/tfevents.h"
#include "evaluation.cuh"

// What the command reads must not lie in a folder or be a file that it replaces
inline void check_inputs_outside(const Options& o, const std::string& replaced) {
    const std::pair<const char*, const std::string*> inputs[] = {
        {"model", &o.model},         {"tokenizer", &o.tokenizer},     {"adapter", &o.adapter},
        {"teacher", &o.teacher},     {"train_data", &o.train_data},   {"eval_data", &o.eval_data},
        {"eval_text", &o.eval_text}, {"calibration", &o.calibration}, {"against", &o.against},
        {"traces", &o.traces}};
    for (const auto& [flag, path] : inputs)
        if (!path->empty() && lies_within(*path, replaced))
            fail_usage("--%s %s would be replaced with %s; give another --output_dir", flag, path->c_str(),
                       replaced.c_str());
}

// the same of a run, which replaces its logs and its checkpoints
inline void check_inputs_outside_run(const Options& o) {
    for (const std::string& name : run_file_names(o.output_dir)) check_inputs_outside(o, o.output_dir + "/" + name);
    for (int64_t step : checkpoint_steps(o.output_dir))
        for (const char* suffix : {"", "-merged"})
            check_inputs_outside(o, checkpoint_folder(o.output_dir, step) + suffix);
}

#if defined(__clang__)
static constexpr const char* COMPILER_NAME = "clang " __clang_version__;
#else
static constexpr const char* COMPILER_NAME = "g++ " __VERSION__;
#endif

// the instructions of the products; those that multiply bf16 are of no use to an fp32 build
inline const char* instructions_name() {
    const CpuIsa isa = cpu_isa();
    return cpu_isa_name(sizeof(floatX) == 4 && isa > CpuIsa::avx512 ? CpuIsa::avx512 : isa);
}

// the CPU as its system calls it; "": it does not say
inline std::string cpu_name() {
    std::ifstream cpu("/proc/cpuinfo");
    for (std::string line; std::getline(cpu, line);)
        if (line.rfind("model name", 0) == 0) return line.substr(std::min(line.size(), line.find(':') + 2));
    return "";
}

// What a run is computed by, for its config.json; --config does not read it
inline nlohmann::ordered_json machine_json(const Session& s) {
    nlohmann::ordered_json j;
    char date[32] = "";
    const time_t now = time(nullptr);
    strftime(date, sizeof(date), "%Y-%m-%d %H:%M UTC", gmtime(&now));
    j["began"] = date;
    j["device"] = s.m.dev.cuda ? "cuda" : "cpu";
    j["cpu"] = cpu_name();
    j["instructions"] = instructions_name();
#if defined(_OPENMP)
    j["threads"] = omp_get_max_threads();
#else
    j["threads"] = 1;
#endif
    j["ranks"] = world_size();
    j["precision"] = PRECISION_NAME;
    j["compiler"] = COMPILER_NAME;
    return j;
}

// --output_dir, or the first of out, out-2, out-3 ... that holds no run. setting: for `completions`, whether there will be
// any; run_id: what config.json and the checkpoints of a run have in common
inline RunDir session_run_dir(Session& s, RunDirSetting setting, const std::string& run_id) {
    Options& o = s.o;
    for (int i = 2;
         !o.given("output_dir") && std::filesystem::is_directory(o.output_dir) && !run_in_folder(o.output_dir).empty();
         i++)
        o.output_dir = "out-" + std::to_string(i);
    setting.overwrite |= o.overwrite_output_dir;
    if (setting.overwrite) check_inputs_outside_run(o);
    setting.completions &= o.log_completions, setting.samples &= o.log_completions;
    nlohmann::ordered_json config = options_to_json(o);
    add_given(config, o);
    config["run_id"] = run_id;
    config["machine"] = machine_json(s);
    return open_run_dir(o.output_dir, setting, config);
}

// Fails unless what is in --output_dir was begun with the same options, but for those in `free`. what: "holds ... begun"
inline void check_same_config(const Options& o, const std::set<std::string>& free, const char* what) {
    const std::string path = o.output_dir + "/config.json";
    const nlohmann::json config = json_parse(read_file(path, 1 << 20), path), now = options_to_json(o);
    for (const auto& item : now.items())
        if (config.contains(item.key()) && config[item.key()] != item.value() && !free.count(item.key()))
            fail("%s %s with another --%s (%s, now %s); give the same, or begin anew with --overwrite_output_dir",
                 o.output_dir.c_str(), what, item.key().c_str(), printable(config[item.key()].dump()).c_str(),
                 printable(item.value().dump()).c_str());
}

// is this build for this CPU?
inline void print_cpu_notes() {
    if (!cpu_isa_choice().note.empty()) printf("note        %s\n", cpu_isa_choice().note.c_str());
    if (cpu_fast_bf16() && sizeof(floatX) == 4)
        printf("note        this CPU multiplies bf16 faster than fp32: a build with make PRECISION=BF16 is faster\n");
    if (!cpu_fast_bf16() && sizeof(floatX) == 2)
        printf(
            "note        this CPU multiplies bf16 no faster than fp32: bf16 saves memory, make PRECISION=FP32 saves "
            "time\n");
}

inline void print_start(const Session& s) {
    const ModelConfig& c = s.m.config;
    int64_t params = 0, linear = 0;
    for (const ParamTensor& t : s.m.tensors) {
        params += t.count();
        if (t.kind == ParamKind::linear) linear += t.count();
    }
    printf(
        "model       %s: %s, %s parameters (%s in linears), %d layers, hidden %d, heads %d/%d of %d, vocabulary %d\n",
        s.embedded_model ? "embedded, from scratch" : escape_controls(s.o.model).c_str(), c.model_type.c_str(),
        human_count((double)params).c_str(), human_count((double)linear).c_str(), c.num_hidden_layers, c.hidden_size,
        c.num_attention_heads, c.num_key_value_heads, c.head_dim, c.vocab_size);
#if defined(_OPENMP)
    std::string cpu = cpu_share_text(omp_get_max_threads(), cpu_share());
#else
    std::string cpu = "1 thread (built without OpenMP)";
#endif
    printf("device      %s, %s%s%s\n", device_text(s.m.dev, cpu).c_str(), PRECISION_NAME, s.m.dev.cuda ? "" : ", ",
           s.m.dev.cuda ? "" : instructions_name());
    if (!s.m.dev.cuda) print_cpu_notes();
    if (s.m.lora.on()) {
        const Lora& l = s.m.lora;
        printf("adapter     r %d, alpha %g, %zu linears, %s parameters%s; base %s%s\n", l.config.r, l.config.alpha,
               l.tensors.size(), human_count((double)l.num_params).c_str(),
               s.o.adapter.empty() ? "" : (", from " + escape_controls(s.o.adapter)).c_str(),
               l.inside()              ? "frozen, quantized with the adapter inside: "
               : s.m.weight_rules.on() ? "packed: "
                                       : "frozen, ",
               s.m.weight_rules.on() ? rules_text(s.m.weight_rules).c_str() : PRECISION_NAME);
    }
    if (s.m.weight_rules.on()) fputs(quantizer_table(s.m).c_str(), stdout);
    if (s.o.hadamard != "none") printf("rotated     %s\n", rotated_list(rotated_linears(s.m)).c_str());
    for (const std::string& note : s.notes) printf("note        %s\n", note.c_str());
    for (const std::string& note : rules_overridden(s.m.weight_rules, weight_places(c)))
        printf("note        %s\n", note.c_str());
    for (const std::string& note : rules_overridden(s.m.activation_rules, weight_places(c, true)))
        printf("note        %s\n", note.c_str());
    for (const std::string& note : rules_overridden(s.m.kv_rules, cache_places(c)))
        printf("note        %s\n", note.c_str());
    fputs(arena_plan_text(s.arena).c_str(), stdout);
    fflush(stdout);  // into a pipe, too, before the long work
}

// what the policy is quantized to, as it is printed
inline std::string policy_text(const Options& o) {
    auto brief = [](const std::string& rules) {  // the table at the start has them all
        return rules.find(';') == rules.npos ? rules : rules.substr(0, rules.find(';')) + "; ...";
    };
    std::string text = brief(o.weights);
    if (o.activations != "none") text += ", activations " + brief(o.activations);
    if (o.kv_cache != "none") text += ", KV " + brief(o.kv_cache);
    return text;
}

inline void summary_quantizers(nlohmann::ordered_json& summary, const Session& s) {
    summary["weights"] = rules_text(s.m.weight_rules);
    summary["activations"] = rules_text(s.m.activation_rules);
    summary["kv_cache"] = rules_text(s.m.kv_rules);
    summary["bits_per_weight"] = bits_per_weight(s.m);
    summary["deployed_bytes"] = deployed_bytes(s.m);
    const std::string rotated = rotated_text(rotated_linears(s.m));
    if (rotated != "none") summary["hadamard"] = rotated;
}

// names one run: when it began, and by which process
inline std::string new_run_id() { return format("%lld-%ld", (long long)time(nullptr), (long)getpid()); }

// "70.2% +- 2.5 (greedy 75.4%)"
inline std::string accuracy_text(const EvalScores& s) {
    const std::string greedy = format("greedy %.1f%%", 100 * s.greedy.mean);
    if (!s.samples) return greedy + format(" +- %.1f", 50 * (s.greedy.high - s.greedy.low));
    return format("pass@1 %5.1f%% +- %.1f", 100 * s.pass1.mean, 50 * (s.pass1.high - s.pass1.low)) +
           (s.greedy_problems ? " (" + greedy + ")" : "");
}

// behind +-: half of the 95 % interval over problems
inline void print_eval(const char* when, const EvalResult& quantized, const EvalResult* full,
                       const std::string& weights) {
    if (!quantized.complete) return;
    const EvalScores& s = quantized.scores;
    printf("held out %-6s | %-13s %s", when, weights.c_str(), accuracy_text(s).c_str());
    if (full && full->complete) printf(" | full precision %s", accuracy_text(full->scores).c_str());
    if (!s.rewards.empty()) printf(" | reward %.3f", s.reward.mean);
    printf(" | %d problems x %d samples, length %.1f\n", s.problems, std::max(s.samples, 1), s.mean_length);
    fflush(stdout);
}

// a prompt or a completion in a line of the report
inline std::string one_line(const std::string& text, size_t most) {
    std::string out;
    for (char c : text) out += c == '\n' ? " / " : std::string(1, c);
    return printable(out, most);
}

inline void print_samples(const char* when, const std::vector<Prompt>& prompts, const EvalResult& e) {
    const std::vector<EvalSample>& sampled = e.answers.sampled;
    if (sampled.empty() || !e.complete) return;
    printf("samples %s\n", when);
    for (int i = 0; i < 5 && i < e.scores.problems; i++) {
        const EvalSample& c = sampled[(size_t)i * e.scores.samples];
        const Prompt& prompt = prompts[c.problem];  // whose text may begin with a system message that all have
        printf("  %s  %s -> %s  (answer %s)\n", c.strict ? "right" : "wrong",
               one_line(prompt.problem ? prompt.problem->question : prompt.text, 60).c_str(),
               one_line(c.text, 100).c_str(), one_line(prompt.gold, 100).c_str());
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// for TensorBoard, in Markdown

// `text` as it is, in a cell of a table: fenced by more backticks than it has in a row
inline std::string markdown_code(const std::string& text) {
    size_t longest = 0, row = 0;
    for (char c : text) longest = std::max(longest, row = c == '`' ? row + 1 : 0);
    const std::string fence(longest + 1, '`');
    return text.empty() ? "" : fence + (longest ? " " : "") + text + (longest ? " " : "") + fence;
}

// a block of code, whatever is in it
inline std::string markdown_block(const std::string& text) {
    std::string block = "    ";
    for (char c : text) block += c == '\n' ? "\n    " : std::string(1, c);
    return block + "\n";
}

// Two tables of options: those that are not at their defaults, and the others
inline std::string config_markdown(const Options& o) {
    Options defaults;
    resolve_options(defaults);
    const std::vector<int> changed = changed_rows(o);
    std::string set = "| option | value | default |\n| --- | --- | --- |\n",
                others = "| option | default |\n| --- | --- |\n";
    for (int i : rows_for(1u << o.command)) {
        if (!option_rows[i].name) continue;
        const std::string name = option_rows[i].name;
        const std::string value = markdown_code(escape_controls(option_text(o, i)));
        const std::string normal = markdown_code(escape_controls(option_text(defaults, i)));
        if (std::count(changed.begin(), changed.end(), i)) set += "| " + name + " | " + value + " | " + normal + " |\n";
        else others += "| " + name + " | " + value + " |\n";
    }
    return format("train_qrl %s %s\n\n", TRAIN_QRL_VERSION, command_rows[o.command].name) + set + "\n" + others;
}

// The options of a row of the HPARAMS tab: those that are not at their defaults, and those by which runs are told apart
inline nlohmann::ordered_json hparams_json(const Options& o) {
    const nlohmann::ordered_json all = options_to_json(o);
    std::set<std::string> names = {"command", "model", "weights", "learning_rate", "seed"};
    for (int i : changed_rows(o)) names.insert(option_rows[i].name);
    nlohmann::ordered_json j;
    for (const auto& item : all.items())
        if (names.count(item.key()) && item.key() != "output_dir" && item.key() != "overwrite_output_dir" &&
            !item.value().is_null())
            j[item.key()] = item.value();
    return j;
}

// The first samples of an evaluation, whole
inline std::string samples_markdown(const std::vector<Prompt>& prompts, const EvalResult& e) {
    const std::vector<EvalSample>& list = e.answers.sampled.empty() ? e.answers.greedy : e.answers.sampled;
    std::string text;
    int last = -1, shown_problems = 0;
    for (const EvalSample& c : list) {
        if (c.problem == last) continue;
        if (shown_problems++ == 5) break;
        last = c.problem;
        text += format("**%s**, the answer is %s\n\n", c.strict ? "right" : "wrong",
                       markdown_code(escape_controls(prompts[c.problem].gold)).c_str());
        text += markdown_block(escape_controls(prompts[c.problem].text, "\n")) + "\n" + "completion\n\n" +
                markdown_block(escape_controls(c.text, "\n")) + "\n---\n\n";
    }
    return text;
}

// What the run is, in its first events; on the way of a run that goes on, what it is from there
inline void log_event_config(RunDir& run, const Options& o, int64_t step, bool begins) {
    log_event_text(run, step, "configuration", config_markdown(o));
    if (begins) log_event(run, event_hparams_start(unix_seconds(), step, hparams_json(o)));
}
