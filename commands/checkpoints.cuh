// The checkpoints of a training run: written on time, at the end and after a failure, no more of them than asked for, and
// the best one kept.
#pragma once
#include "resume.cuh"

struct Checkpoints {
    Session& s;
    RunDir& dir;
    Trainer& t;
    LoopState& state;
    Objective* objective = nullptr;
    std::string shared;                               // the folder of rank 0, which writes; empty: dir's
    std::function<nlohmann::ordered_json()> command;  // what the command adds to trainer_state.json
    std::function<std::string(bool merged)> card;     // README.md of a checkpoint, or of what is merged beside
    bool model_alone = false;                         // there is no state to resume from
    std::vector<int64_t> kept;                        // steps of those on the disk, of this run
    int64_t best = -1;                                // the step of the best by a held-out metric; -1: none
    bool saving = false;
    int64_t count = 0;
    double seconds = 0.0;
    uint64_t bytes = 0;

    Checkpoints(Session& session, RunDir& run, Trainer& trainer, LoopState& loop)
        : s(session), dir(run), t(trainer), state(loop) {}
    std::string folder(int64_t step) const { return checkpoint_folder(shared.empty() ? dir.path : shared, step); }
};

// A checkpoint whose weights are not the fp32 masters has them beside
inline bool saves_masters(const Session& s) { return !s.m.lora.on() && s.o.save_dtype != "float32"; }

inline void checkpoint_write(const Checkpoints& c, const std::string& folder, bool model_alone) {
    auto card = [&](const std::string& to, bool merged) {
        if (c.card) write_file_atomic(to + "/README.md", c.card(merged));
    };
    session_save(
        c.s, folder,
        [&](const std::string& to) {
            card(to, false);
            if (model_alone) return;
            run_state_save(to, c.t, *c.objective, c.state, saves_masters(c.s), c.command());
        },
        [&](const std::string& to) { card(to, true); });
}

// The cards of the checkpoint of the run's last step again, which an evaluation after training has made better
inline void checkpoint_card(const Checkpoints& c) {
    const std::string folder = c.folder(c.state.step);
    if (world_rank() != 0 || !c.card || c.kept.empty() || c.kept.back() != c.state.step) return;
    for (bool merged : {false, true}) {
        const std::string path = folder + (merged ? "-merged" : "") + "/README.md";
        if (file_exists(path)) write_file_atomic(path, c.card(merged));
    }
}

// those that --save_total_limit leaves no room for: never the newest, never the best
inline void checkpoints_limit(Checkpoints& c) {
    const size_t limit = (size_t)c.s.o.save_total_limit;
    for (size_t i = 0; limit && c.kept.size() > limit && i + 1 < c.kept.size();) {
        if (c.kept[i] == c.best) {
            i++;
            continue;
        }
        const std::string folder = c.folder(c.kept[i]);
        for (const std::string& gone : {folder, folder + "-merged"}) {
            const std::string other = discard_folder(gone);
            if (!other.empty())
                fprintf(stderr,
                        "note: %s is kept beyond --save_total_limit: it holds %s, which this program did not write\n",
                        gone.c_str(), shown(other).c_str());
        }
        c.kept.erase(c.kept.begin() + (std::ptrdiff_t)i);
    }
}

// The run as it stands, as checkpoint-STEP. Rank 0's affair; the others have the same.
inline void checkpoint_save(Checkpoints& c) {
    const int64_t step = c.state.step;
    const bool there = !c.kept.empty() && c.kept.back() == step;
    if (world_rank() != 0 || (there && c.state.pending.is_null())) return;
    const double start = wall_seconds();
    const std::string folder = c.folder(step);
    c.saving = true;
    log_event_checkpoint(c.dir, step, folder);
    sync_logs(c.dir);  // what has been logged of the steps that the checkpoint has
    if (!there) c.kept.push_back(step);
    checkpoint_write(c, folder, c.model_alone || c.s.o.save_only_model);
    checkpoints_limit(c);
    c.saving = false;
    c.count++;
    c.seconds += wall_seconds() - start;
    c.bytes += folder_bytes(folder);
}

// Weights, and all that goes with them, of a checkpoint of this run
inline void checkpoint_load(Checkpoints& c, const std::string& folder, const nlohmann::ordered_json& state) {
    Session& s = c.s;
    if (s.m.lora.on()) {
        const PeftAdapter adapter = peft_open(folder);
        if (adapter.config.r != s.m.lora.config.r || adapter.config.target != s.m.lora.config.target)
            fail("%s has an adapter of r %d for %s, this run one of r %d for %s; resume with the same", folder.c_str(),
                 adapter.config.r, adapter.config.target.c_str(), s.m.lora.config.r, s.m.lora.config.target.c_str());
        peft_load(adapter, s.m.lora, s.m.dev);
    } else {
        model_load_weights(s.m, folder);
    }
    c.state = run_state_load(folder, state, c.t, *c.objective, saves_masters(s));
}

// ---------------------------------------------------------------------------------------------------------------------
// after a failure in mid-run

// false: there was no room, and nothing is left of it
inline bool emergency_write(const Checkpoints& c, const std::string& place, const std::string& folder,
                            bool model_alone) {
    std::error_code ec;
    try {
        std::filesystem::create_directories(place);
        checkpoint_write(c, folder, model_alone);
        return true;
    } catch (const std::exception&) {  // what went wrong first is said; here it is the same or follows from it
        if (place != c.dir.path) std::filesystem::remove_all(place, ec);
        return false;
    }
}

// The weights in memory, where they can be written: the run's folder, else a temporary one, with what a resumed run needs
// if there is room for that. Says where they are, or that they are lost.
inline void checkpoint_emergency(Checkpoints& c) {
    if (world_rank() != 0 || !c.objective || c.state.trainer.step == 0) return;
    if (!c.kept.empty() && c.kept.back() == c.state.step && !c.saving) {
        fprintf(stderr, "train_qrl: the weights of step %lld are in %s\n", (long long)c.state.step,
                c.folder(c.state.step).c_str());
        return;
    }
    const std::string temporary = std::filesystem::temp_directory_path().string();
    const std::vector<std::string> places = {c.dir.path, format("%s/train_qrl-%ld", temporary.c_str(), (long)getpid())};
    const char* rest = "; the rest of the run's state is not, so it cannot be resumed exactly";
    for (bool model_alone : {false, true}) {
        if (!model_alone && (!c.state.whole || c.model_alone || c.s.o.save_only_model)) continue;
        for (const std::string& place : places) {
            const std::string folder = c.state.whole ? checkpoint_folder(place, c.state.step) : place + "/emergency";
            if (!emergency_write(c, place, folder, model_alone)) continue;
            fprintf(stderr, "train_qrl: the weights of step %lld are in %s%s\n", (long long)c.state.step,
                    folder.c_str(), model_alone ? rest : ("; go on with --resume_from_checkpoint " + folder).c_str());
            return;
        }
    }
    fprintf(stderr, "train_qrl: the weights of step %lld are lost: they could be written neither to %s nor to %s\n",
            (long long)c.state.step, places[0].c_str(), temporary.c_str());
}

// ---------------------------------------------------------------------------------------------------------------------
// the disk space that they will take

// bytes of one, without tokenizer and other small files; asked after the plan is made
inline double checkpoint_bytes(Checkpoints& c) {
    Session& s = c.s;
    double parameters = 0.0, bytes = 0.0;
    for (const ParamTensor& t : s.m.tensors) parameters += (double)t.count();
    const double model = parameters * (s.o.save_dtype == "float32" ? 4.0 : 2.0);
    bytes = s.m.lora.on() ? 4.0 * (double)s.m.lora.num_params : model;
    if (s.m.lora.on() && s.o.merge_adapter) bytes += model;
    if (s.o.save_only_model) return bytes;
    for (const NamedArray& a : run_arrays(c.t, *c.objective, saves_masters(s))) bytes += (double)a.bytes();
    return bytes + (double)c.t.optimizer.state.bytes();
}

// "disk        3 checkpoints of 1.5 GiB, 4.5 GiB; 20.1 GiB are free at out". steps: of the run
inline std::string checkpoints_plan(Checkpoints& c, int64_t steps) {
    const Options& o = c.s.o;
    int64_t n = 1 + (o.save_steps > 0 ? std::max<int64_t>(steps - 1, 0) / o.save_steps : 0);
    if (c.s.embedded_model && o.save_steps > 0) n++;
    // one more while a new one is written before an old one goes
    if (o.save_total_limit > 0) n = std::min(n, (int64_t)o.save_total_limit + 1 + (o.load_best_model_at_end ? 1 : 0));
    const double each = checkpoint_bytes(c), all = (double)n * each, free = free_bytes(o.output_dir);
    std::string text = format("disk        %lld checkpoint%s of %s%s%s", (long long)n, n == 1 ? "" : "s",
                              bytes_text(each).c_str(), n == 1 ? "" : ", ", n == 1 ? "" : bytes_text(all).c_str());
    if (free < 0.0) return text + "\n";
    text += format("; %s are free at %s\n", bytes_text(free).c_str(), o.output_dir.c_str());
    if (all > free)
        text +=
            "note        that is not enough: lower --save_total_limit, raise --save_steps, or take --save_only_model\n";
    return text;
}
