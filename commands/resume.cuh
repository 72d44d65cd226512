// --resume_from_checkpoint: which checkpoint, the flags of the run that wrote it, and what differs from them now.
#pragma once
#include "../rewards/rewards.h"
#include "../train/run_state.cuh"
#include "output.cuh"

// the id of the run whose logs and config.json are in a folder; "": none
inline std::string run_id_of(const std::string& run) {
    const std::string path = run + "/config.json";
    if (!file_exists(path)) return "";
    const nlohmann::json j = json_parse(read_file(path, 1 << 20), path);
    return j.is_object() && j.contains("run_id") && j["run_id"].is_string() ? j["run_id"].get<std::string>() : "";
}

// trainer_state.json of a checkpoint with all that the command adds, each of its kind
inline nlohmann::ordered_json checkpoint_state(const std::string& folder) {
    const nlohmann::ordered_json j = run_state_read(folder);
    typedef nlohmann::ordered_json J;
    auto text = [](const J& v) { return v.is_string(); };
    auto number = [](const J& v) { return v.is_number(); };
    auto object = [](const J& v) { return v.is_object(); };
    auto texts = [](const J& v) {
        return v.is_object() && std::all_of(v.begin(), v.end(), [](const J& x) { return x.is_string(); });
    };
    auto files = [](const J& v) {
        return v.is_object() && std::all_of(v.begin(), v.end(), [](const J& x) {
                   return x.is_object() && x.contains("path") && x.contains("hash") && x["path"].is_string() &&
                          x["hash"].is_string();
               });
    };
    auto steps = [](const J& v) {
        return v.is_array() && std::all_of(v.begin(), v.end(), [](const J& x) { return x.is_number_integer(); });
    };
    auto best = [&](const J& v) {
        return v.is_object() && v.contains("step") && v["step"].is_number_integer() && v.contains("value") &&
               v["value"].is_number();
    };
    const std::pair<const char*, std::function<bool(const J&)>> parts[] = {
        {"command", text},    {"run_id", text},       {"wall_seconds", number}, {"evaluated", object},
        {"measured", object}, {"checkpoints", steps}, {"best", best},           {"build", texts},
        {"inputs", files},    {"given", texts},       {"options", texts}};
    for (const auto& [key, is_right] : parts)
        if (!j.contains(key) || !is_right(j[key]))
            fail("%s/trainer_state.json: `%s` is missing or of another kind; the file is damaged", folder.c_str(), key);
    return j;
}

// the id of the run that wrote a checkpoint; "": it does not say
inline std::string checkpoint_run(const std::string& run, int64_t step) {
    const std::string folder = checkpoint_folder(run, step);
    return file_exists(folder + "/trainer_state.json") ? checkpoint_state(folder)["run_id"].get<std::string>() : "";
}

// The last checkpoint of the run in a folder that can be resumed; "": none
inline std::string last_checkpoint(const std::string& run) {
    if (world_rank() == 0 && !run_in_folder(run).empty()) {  // in another folder nothing is touched
        FolderLock lock(run);
        repair_folders(run);
    }
    const std::string id = run_id_of(run);
    const std::vector<int64_t> steps = checkpoint_steps(run);
    for (size_t i = steps.size(); i-- > 0;) {
        const std::string folder = checkpoint_folder(run, steps[i]);
        if (!file_exists(folder + "/trainer_state.json")) continue;
        if (id.empty() || checkpoint_run(run, steps[i]) == id)
            return folder;  // else it is of a run that was here before
    }
    return "";
}

// The flags of the checkpoint's run, unless others are given now
inline Options resumed_options(const Options& now, std::vector<std::string> args, const nlohmann::ordered_json& state,
                               const std::string& where) {
    const std::string command = state["command"];
    if (now.command_given && command != command_rows[now.command].name)
        fail_usage("%s is of a run of %s, but the command is %s; give the same", where.c_str(), command.c_str(),
                   command_rows[now.command].name);
    if (!now.command_given) args.insert(args.begin(), command);
    for (const auto& item : state["given"].items()) {
        const int row = option_index(item.key());
        if (row < 0 || now.is_given[row]) continue;  // not there: a flag of another version
        args.push_back("--" + item.key() + "=" + item.value().get<std::string>());
    }
    return parse_options(args);
}

// as if --output_dir had been given: out is out then, and not out-2
inline void resume_in_folder(Options& o, const std::string& run) {
    o.output_dir = run;
    o.is_given[option_index("output_dir")] = true;
}

// Before anything else: finds the checkpoint and takes the flags of its run. args: without the program's name
inline void session_resume(Session& s, const std::vector<std::string>& args) {
    std::string from = s.o.resume_from_checkpoint;
    if (from.empty()) return;
    while (from.size() > 1 && from.back() == '/') from.pop_back();
    const bool last = from == "last" && !is_folder(from);
    const std::string run = last ? s.o.output_dir : from;
    if (last || !file_exists(from + "/trainer_state.json")) {
        if (!is_folder(run)) fail("--resume_from_checkpoint %s: there is no folder %s", from.c_str(), run.c_str());
        const std::string found = last_checkpoint(run);
        if (found.empty() && last && !run_in_folder(run).empty()) {
            fprintf(stderr, "note: %s holds a run that died before its first checkpoint; it begins again\n",
                    run.c_str());
            s.resume.from_start = true;
            resume_in_folder(s.o, run);
            return;
        }
        if (found.empty() && last)
            fail("--resume_from_checkpoint last: there is no checkpoint in %s; name the run's folder with --output_dir",
                 run.c_str());
        from = found.empty() ? from : found;
    }
    s.resume.state = checkpoint_state(from);
    s.resume.folder = from;
    s.o = resumed_options(s.o, args, s.resume.state, from + "/trainer_state.json");
    const std::string parent = parent_folder(from);
    if (last) resume_in_folder(s.o, run);
    else if (!s.o.given("output_dir") && file_exists(parent + "/config.json")) resume_in_folder(s.o, parent);
}

// whether the run in `folder` is the one that is resumed, so that its logs go on
inline bool resumes_in(const Session& s, const std::string& folder) {
    std::error_code ec;
    return s.resume.on() && std::filesystem::equivalent(parent_folder(s.resume.folder), folder, ec);
}

// ---------------------------------------------------------------------------------------------------------------------
// what the run depends on besides its checkpoint

// Files by flag, with their hashes. A model counts where it stays beside the checkpoint: the base of an adapter
inline nlohmann::ordered_json input_files(const Session& s) {
    nlohmann::ordered_json j = nlohmann::ordered_json::object();
    auto add = [&](const char* flag, const std::string& path) {
        if (!path.empty()) j[flag] = {{"path", path}, {"hash", content_hash(path)}};
    };
    const Options& o = s.o;
    add("train_data", o.train_data);
    add("eval_data", o.eval_data);
    add("eval_text", o.eval_text);
    add("teacher", o.teacher);
    if (o.command == COMMAND_GRPO) add("curriculum", curriculum_file(curriculum_parse(o.curriculum)));
    if (o.command == COMMAND_GRPO)
        for (const std::string& file : own_reward_files(o.reward_funcs))
            add(("reward_funcs " + own_reward_name(file)).c_str(), file);
    if (o.lora_r > 0 || !o.adapter.empty()) add("model", o.model);
    return j;
}

// Fails if a file is not what it was; another file is another flag, and that is said elsewhere
inline void check_input_files(const nlohmann::ordered_json& saved, const nlohmann::ordered_json& now) {
    for (const auto& item : saved.items()) {
        if (!now.contains(item.key())) continue;
        const std::string path = now[item.key()]["path"], hash = now[item.key()]["hash"];
        const std::string path_then = item.value()["path"], hash_then = item.value()["hash"];
        if (path_then != path || hash_then == hash) continue;
        fail(
            "--%s %s has changed since the checkpoint was written (hash %s, it was %s); bring it back, or begin a new "
            "run with the checkpoint as --model",
            item.key().c_str(), path.c_str(), hash.c_str(), hash_then.c_str());
    }
}

// The program and the machine, as far as bits depend on them
inline nlohmann::ordered_json build_json(const Session& s) {
    return {{"precision", PRECISION_NAME},
            {"device", s.m.dev.cuda ? "cuda" : "cpu"},
            {"instructions", s.m.dev.cuda ? "" : instructions_name()},
            {"ranks", std::to_string(world_size())}};
}

// What a change of it does, as notes; another precision is refused
inline void check_build(const nlohmann::ordered_json& saved, const nlohmann::ordered_json& now,
                        const std::string& folder) {
    if (saved.value("precision", PRECISION_NAME) != PRECISION_NAME)
        fail(
            "%s was written by the %s build, and this is the %s build; take that, or begin a new run with the "
            "checkpoint as --model",
            folder.c_str(), saved.value("precision", "").c_str(), PRECISION_NAME);
    for (const char* key : {"device", "instructions", "ranks"})
        if (saved.contains(key) && saved[key].get<std::string>() != now[key].get<std::string>())
            fprintf(stderr,
                    "note: %s %s now, %s before: sums run in another order, so that results differ by rounding\n", key,
                    now[key].get<std::string>().c_str(), saved[key].get<std::string>().c_str());
}

// ---------------------------------------------------------------------------------------------------------------------
// flags

// name -> text, of those in force or of those that were given
inline nlohmann::ordered_json flags_json(const Options& o, bool given) {
    nlohmann::ordered_json j = nlohmann::ordered_json::object();
    for (int i = 0; i < OPTION_ROWS; i++) {
        const OptionRow& r = option_rows[i];
        if (!r.name || !(r.commands >> o.command & 1) || (given && !o.is_given[i])) continue;
        const std::string name = r.name;
        if (name == "config" || name == "plan" || name == "resume_from_checkpoint" || name == "output_dir" ||
            name == "overwrite_output_dir")
            continue;
        if (!option_is_set(o, i)) continue;
        j[name] = option_text(o, i);
    }
    return j;
}

// What a change of a flag does to a run that is half done; null: it changes the weights that come out
inline const char* flag_effect(const Options& o, const std::string& name) {
    for (const char* free :
         {"save_steps", "save_total_limit", "save_only_model", "save_dtype", "logging_steps", "log_completions",
          "report_to", "ddp_timeout", "threads", "gradient_checkpointing", "rollout_batch", "merge_adapter"})
        if (name == free) return "changes nothing in the weights";
    for (const char* measured : {"eval_steps", "eval_n", "eval_samples", "eval_data", "eval_text", "eval_text_length",
                                 "load_best_model_at_end", "metric_for_best_model"})
        if (name == measured) return "changes what is measured, and nothing in the weights";
    if (name == "micro_batch_tokens") return "sums run in another order, so that results differ by rounding";
    if (name == "max_steps" || name == "num_train_epochs")
        return o.lr_scheduler_type == "constant"
                   ? "more or fewer steps at the same learning rate"
                   : "the learning rate of the steps to come is that of a run of this length from the start, while "
                     "those done had another; --lr_scheduler_type constant does not depend on it";
    return nullptr;
}

// one line a difference; saved: the flags in force when the checkpoint was written
inline std::string flag_differences(const nlohmann::ordered_json& saved, const Options& o) {
    std::string text;
    const nlohmann::ordered_json now = flags_json(o, false);
    for (const auto& item : now.items()) {
        const std::string value = item.value(), was = saved.value(item.key(), value);
        if (value == was) continue;
        const char* effect = flag_effect(o, item.key());
        text += format("note        --%s %s was %s: %s\n", item.key().c_str(), printable(value).c_str(),
                       was.empty() ? "empty" : printable(was).c_str(), effect ? effect : "changes the result");
    }
    return text;
}

// What a run's flags were changed to on its way and now, as far as that changes the weights: step, flag, was, now of each
inline nlohmann::ordered_json flag_changes(const ResumePoint& resume, const Options& o) {
    nlohmann::ordered_json changes = nlohmann::ordered_json::array();
    if (resume.state.contains("changes") && resume.state["changes"].is_array())
        for (const auto& change : resume.state["changes"]) {
            bool whole = change.is_object() && change.contains("step") && change["step"].is_number_integer();
            for (const char* key : {"flag", "was", "now"})
                whole = whole && change.contains(key) && change[key].is_string();
            if (whole) changes.push_back(change);
        }
    const nlohmann::ordered_json now = flags_json(o, false);
    for (const auto& item : now.items()) {
        const std::string name = item.key(), value = item.value(), was = resume.state["options"].value(name, value);
        const char* effect = value == was ? "none" : flag_effect(o, name);
        const bool longer = name == "max_steps" || name == "num_train_epochs";
        if (effect && !(longer && o.lr_scheduler_type != "constant" && value != was)) continue;
        changes.push_back({{"step", resume.step()}, {"flag", name}, {"was", was}, {"now", value}});
    }
    return changes;
}
