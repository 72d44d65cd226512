// README.md beside a model: its card, as the Hugging Face hub reads it: metadata in YAML between two lines of ---, then
// Markdown (https://huggingface.co/docs/hub/model-cards). It says what the model was made of, by which command, what it scored and how it
// is loaded. Metadata are words of this program and names that were checked; nothing else of a user's gets in between the ---.
// There is no model-index: its results are for leaderboards, and these are of some problems by this program's graders.
//
// The trap: a run that is resumed leaves the bytes of one that was not, so nothing here may tell times, the folder of the run, or
// flags that change nothing in the weights.
#pragma once
#include <functional>
#include <set>
#include <sstream>
#include <string>
#include <vector>
#include "first_prompt.cuh"
#include "resume.cuh"

// ---------------------------------------------------------------------------------------------------------------------
// text of others in Markdown and in a shell

// the longest run of backticks in a text
inline size_t backticks(const std::string& text) {
    size_t most = 0, run = 0;
    for (char c : text) most = std::max(most, run = c == '`' ? run + 1 : 0);
    return most;
}

// on one line, as code: nothing in it is markup
inline std::string md_code(const std::string& text, size_t most = 400) {
    const std::string shown_text = printable(text, most);
    if (shown_text.empty()) return "(empty)";
    const std::string fence(backticks(shown_text) + 1, '`');
    const bool pad = shown_text[0] == '`' || shown_text.back() == '`';
    return fence + (pad ? " " : "") + shown_text + (pad ? " " : "") + fence;
}

// on one line, as words
inline std::string md_text(const std::string& text, size_t most = 400) {
    const std::string all = printable(text, most);
    auto of_word = [&](size_t i) { return i < all.size() && isalnum((unsigned char)all[i]); };
    std::string out;
    for (size_t i = 0; i < all.size(); i++) {
        const bool within = all[i] == '_' && i > 0 && of_word(i - 1) && of_word(i + 1);
        if (!within && strchr("\\`*_{}[]<>#|~&$", all[i])) out += '\\';
        out += all[i];
    }
    return out;
}

// lines as they are
inline std::string md_block(const std::string& lines, const char* language) {
    const std::string fence(std::max<size_t>(backticks(lines) + 1, 3), '`');
    return fence + language + "\n" + lines + (lines.empty() || lines.back() != '\n' ? "\n" : "") + fence + "\n";
}

// one word for bash; what a terminal obeys as $'\x1B'
inline std::string shell_word(const std::string& text) {
    bool plain = !text.empty(), controls = false;
    for (unsigned char c : text) {
        plain = plain && (isalnum(c) || strchr("_-./:=,+@%", c));
        controls = controls || c < 0x20 || c >= 0x7F;
    }
    if (plain) return text;
    std::string out = controls ? "$'" : "'";
    for (unsigned char c : text) {
        if (controls && (c < 0x20 || c >= 0x7F)) out += format("\\x%02x", c);
        else if (controls && (c == '\'' || c == '\\')) out += '\\', out += (char)c;
        else if (c == '\'') out += "'\\''";
        else out += (char)c;
    }
    return out + "'";
}

// ---------------------------------------------------------------------------------------------------------------------
// the command

// A flag that says where and how a run is done, not what comes out
inline bool flag_is_circumstance(const Options& o, const std::string& name) {
    for (const char* other :
         {"config", "plan", "resume_from_checkpoint", "output_dir", "overwrite_output_dir", "report_to", "device"})
        if (name == other) return true;
    const char* effect = flag_effect(o, name);
    return effect && effect == std::string("changes nothing in the weights") && name != "save_dtype" &&
           name != "merge_adapter";
}

// The options in force that differ from their defaults, as a command that repeats the run into a folder of its own
inline std::string card_command(const Options& o) {
    Options defaults;
    resolve_options(defaults);
    std::string text = std::string("./train_qrl ") + command_rows[o.command].name;
    size_t width = text.size();
    for (int i : rows_for(1u << o.command)) {
        const OptionRow& r = option_rows[i];
        if (!r.name || !option_is_set(o, i) || flag_is_circumstance(o, r.name)) continue;
        const std::string value = option_text(o, i);
        if (value == option_text(defaults, i)) continue;
        const std::string word =
            std::string("--") + r.name + (value.rfind("--", 0) == 0 ? "=" : " ") + shell_word(value);
        if (width + word.size() > 110) text += " \\\n   ", width = 3;
        text += " " + word, width += word.size() + 1;
    }
    return text + "\n";
}

// ---------------------------------------------------------------------------------------------------------------------
// where the base comes from

struct CardBase {
    std::string name;     // as it was given
    std::string id;       // OWNER/NAME on the hub; empty: not known
    std::string licence;  // as the hub calls it; empty: not known
};

inline bool is_card_word(const std::string& text, const char* more) {
    if (text.empty() || text.size() > 96) return false;
    for (char c : text)
        if (!isalnum((unsigned char)c) && !strchr(more, c)) return false;
    return true;
}

inline bool is_hub_id(const std::string& id) {
    const size_t slash = id.find('/');
    return slash != id.npos && slash > 0 && is_card_word(id.substr(0, slash), "._-") &&
           is_card_word(id.substr(slash + 1), "._-");
}

// A text file of the base's folder, where it is one of a sensible size
inline std::string small_file(const std::string& path) {
    std::error_code ec;
    if (!file_exists(path) || std::filesystem::file_size(path, ec) > (1 << 20) || ec) return "";
    return read_file(path, 1 << 20);
}

// key: value of a card's metadata; "": it has none. Anything but a plain word is as none
inline std::string card_value(const std::string& card, const std::string& key) {
    if (card.rfind("---\n", 0) != 0) return "";
    std::istringstream lines(card.substr(4));
    for (std::string line; std::getline(lines, line) && line != "---";) {
        if (line.rfind(key + ":", 0) != 0) continue;
        std::string value = trim_text(line.substr(key.size() + 1));
        if (value.size() > 1 && (value[0] == '"' || value[0] == '\'') && value.back() == value[0])
            value = value.substr(1, value.size() - 2);
        return is_card_word(value, "._-/") ? value : "";
    }
    return "";
}

// was it written by this program?
inline bool is_own_card(const std::string& card) {
    const size_t end = card.find("\n---\n");
    return card.rfind("---\n", 0) == 0 && end != card.npos &&
           card.substr(0, end + 1).find("\n- train_qrl\n") != card.npos;
}

// What data/download notes of it (SOURCE), its own card, or the folder's name in the hub's cache
inline CardBase card_base(const std::string& model) {
    CardBase b;
    b.name = model;
    if (model.empty()) return b;
    const std::string folder = is_folder(model) ? model : parent_folder(model);
    std::istringstream source(small_file(folder + "/SOURCE"));
    for (std::string line; std::getline(source, line);) {
        const size_t end = line.find("/resolve/"), mark = line.find(", licence: ");
        if (line.rfind("# ", 0) != 0 || end == line.npos || mark == line.npos) continue;
        const size_t name = line.rfind('/', end - 1),
                     owner = name == line.npos || name == 0 ? line.npos : line.rfind('/', name - 1);
        if (owner == line.npos) continue;
        b.id = line.substr(owner + 1, end - owner - 1), b.licence = line.substr(mark + 11);
        break;
    }
    const std::string card = small_file(folder + "/README.md");
    if (b.id.empty() && is_own_card(card)) b.id = card_value(card, "base_model");
    if (b.licence.empty() || !is_card_word(b.licence, "._-")) b.licence = card_value(card, "license");
    for (const auto& part : std::filesystem::path(std::filesystem::absolute(folder))) {
        const std::string word = part.string();
        const size_t middle = word.find("--", 8);
        if (b.id.empty() && word.rfind("models--", 0) == 0 && middle != word.npos)
            b.id = word.substr(8, middle - 8) + "/" + word.substr(middle + 2);
    }
    if (!is_hub_id(b.id)) b.id.clear();
    if (!is_card_word(b.licence, "._-")) b.licence.clear();
    return b;
}

// "Qwen/Qwen2.5-0.5B-Instruct", else the last part of the path
inline std::string card_base_name(const CardBase& b) {
    if (b.name.empty()) return "train_qrl's embedded model";
    return b.id.empty() ? std::filesystem::path(b.name + "/.").parent_path().filename().string() : b.id;
}

// ---------------------------------------------------------------------------------------------------------------------
// parts of a card

// A checked word as YAML has it: no, null and 1e3 would be something else than text
inline std::string yaml_word(const std::string& word) {
    static const std::set<std::string> others = {"y", "n", "yes", "no", "true", "false", "on", "off", "null"};
    std::string lower = word;
    for (char& c : lower) c = (char)tolower((unsigned char)c);
    const bool plain = isalpha((unsigned char)word[0]) && !others.count(lower);
    return plain ? word : "\"" + word + "\"";
}

// library: transformers or peft; made_by: of the tags, such as grpo
inline std::string card_head(const CardBase& base, const char* library, const std::vector<std::string>& made_by,
                             const std::vector<std::string>& datasets) {
    std::string text = "---\n";
    if (!base.id.empty()) text += "base_model: " + yaml_word(base.id) + "\n";
    if (!base.licence.empty()) text += "license: " + yaml_word(base.licence) + "\n";
    if (!datasets.empty()) text += "datasets:\n";
    for (const std::string& id : datasets) text += "- " + id + "\n";
    text += format("library_name: %s\npipeline_tag: text-generation\ntags:\n- train_qrl\n", library);
    for (const std::string& tag : made_by) text += "- " + tag + "\n";
    return text + "---\n\n";
}

// the set on the hub that a file is, if it is known
inline std::vector<std::string> card_datasets(const std::string& path) {
    const std::filesystem::path file(path);
    const KnownSet* set = find_known_set(file.parent_path().filename().string());
    if (!set || !set->hub || !set->train || file.filename() != set->train) return {};
    return {set->hub};
}

inline std::string card_licence(const CardBase& base) {
    std::string text = "## Licence\n\n";
    if (base.name.empty())
        return text + "The model was made from nothing but the program's own random numbers and made-up problems.\n";
    if (!base.licence.empty())
        return text + "That of the base, which its files give as " + md_code(base.licence) +
               ". Data that it was trained on may have terms of their own.\n";
    return text +
           "The base's files do not say under which licence it is, so this card names none: see the base's page, and "
           "the terms "
           "of the data, before it is passed on.\n";
}

// "61.2 % [58.5, 63.9]"
inline std::string card_share(const nlohmann::ordered_json& e, const std::string& key) {
    if (!e.contains(key) || !e[key].is_number()) return "";
    std::string text = format("%.1f %%", 100 * e[key].get<double>());
    const std::string range = key + "_interval";
    if (e.contains(range) && e[range].is_array() && e[range].size() == 2 && e[range][0].is_number() &&
        e[range][1].is_number())
        text += format(" [%.1f, %.1f]", 100 * e[range][0].get<double>(), 100 * e[range][1].get<double>());
    return text;
}

inline std::string card_number(const nlohmann::ordered_json& e, const std::string& key, int digits) {
    if (!e.contains(key) || !e[key].is_number()) return "";
    std::string text = format("%.*f", digits, e[key].get<double>());
    const std::string range = key + "_interval";
    if (e.contains(range) && e[range].is_array() && e[range].size() == 2 && e[range][0].is_number() &&
        e[range][1].is_number())
        text += format(" [%.*f, %.*f]", digits, e[range][0].get<double>(), digits, e[range][1].get<double>());
    return text;
}

// A column for each evaluation: objects of evaluations.jsonl
inline std::string card_scores(const std::vector<std::pair<std::string, nlohmann::ordered_json>>& evaluations) {
    typedef nlohmann::ordered_json J;
    struct Row {
        const char* name;
        std::function<std::string(const J&)> cell;
    };
    auto share = [](const char* key) { return [key](const J& e) { return card_share(e, key); }; };
    auto number = [](const char* key, int digits) { return [=](const J& e) { return card_number(e, key, digits); }; };
    auto within = [](const char* part, std::function<std::string(const J&)> cell) {
        return [=](const J& e) { return e.contains(part) && e[part].is_object() ? cell(e[part]) : std::string(); };
    };
    const Row rows[] = {{"pass@1", share("pass@1")},
                        {"pass@1, lenient", share("pass@1_lenient")},
                        {"greedy", share("greedy")},
                        {"greedy, lenient", share("greedy_lenient")},
                        {"mean reward", number("reward", 3)},
                        {"pass@1 without the quantizer", within("full_precision", share("pass@1"))},
                        {"greedy without the quantizer", within("full_precision", share("greedy"))},
                        {"completions cut off", share("completions/clipped_ratio")},
                        {"mean tokens of a completion", number("completions/mean_length", 1)},
                        {"log-loss a token of held-out text", within("measured", number("log_loss", 4))},
                        {"KL from the teacher, nats a token", within("measured", number("kl", 4))},
                        {"same first choice as the teacher", within("measured", share("agreement"))}};
    std::string text = "|";
    for (const auto& column : evaluations) text += " | " + column.first;
    text += " |\n|---|";
    for (size_t i = 0; i < evaluations.size(); i++) text += "---|";
    text += "\n";
    for (const Row& row : rows) {
        std::string line, any;
        for (const auto& column : evaluations) {
            const std::string cell = row.cell(column.second);
            line += " | " + cell, any += cell;
        }
        if (!any.empty()) text += std::string("| ") + row.name + line + " |\n";
    }
    return text;
}

// what the weights are on disk, and what they stand for
inline std::string card_quantizer(const Model& m, const Options& o) {
    std::string text;
    if (m.weight_rules.on()) text += quantizer_table(m);
    if (o.activations != "none") text += "activations " + o.activations + "\n";
    if (o.kv_cache != "none") text += "KV cache    " + o.kv_cache + "\n";
    const std::string rotated = rotated_text(rotated_linears(m));
    if (rotated != "none") text += "rotated     " + rotated + "\n";
    return text.empty() ? "Nothing is quantized.\n" : md_block(escape_controls(text, "\n"), "");
}

inline std::string card_transformers() {
    return md_block(
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained(\"THIS_FOLDER\")\n"
        "tokenizer = AutoTokenizer.from_pretrained(\"THIS_FOLDER\")\n",
        "python");
}

inline std::string card_warnings(const std::vector<ToldWarning>& told) {
    if (told.empty()) return "";
    std::string text = "## Warnings\n\nThe run was warned of:\n\n";
    for (const ToldWarning& t : told)
        text += format("- at step %lld, `%s`: ", (long long)t.step, warning_row(t.warning).name) +
                md_text(t.text, 800) + "\n";
    return text + "\n";
}

// ---------------------------------------------------------------------------------------------------------------------
// whole cards

// What a training run tells of a checkpoint of its
struct TrainedCard {
    int64_t step = 0, steps = 0;
    int64_t examples = 0, held_out = 0;
    nlohmann::ordered_json before, latest;  // evaluations; null: there is none
    nlohmann::ordered_json changes;         // of flags on the way
    std::vector<ToldWarning> told;
};

inline std::string card_data(const Options& o, const TrainedCard& c) {
    const std::string task = "problems that the task " + md_code(o.task) + " makes up";
    std::string text = "- trained on " + (o.train_data.empty() ? task : md_code(o.train_data)) +
                       format(", %lld %s\n", (long long)c.examples, o.command == COMMAND_GRPO ? "prompts" : "examples");
    if (c.held_out)
        text += "- evaluated on " + (o.eval_data.empty() ? "others of these" : md_code(o.eval_data)) +
                format(", %lld problems that were held out", (long long)c.held_out) +
                (o.allow_overlap ? " (`--allow_overlap`: some may have been trained on)" : "") + "\n";
    return text;
}

inline std::string card_loading(const Session& s, bool merged) {
    const bool adapter = s.m.lora.on() && !merged, quantized = s.m.weight_rules.on();
    std::string text = "## How to load it\n\n";
    if (adapter)
        text += "A PEFT adapter, over the base that `adapter_config.json` names:\n\n" +
                md_block(
                    "from peft import AutoPeftModelForCausalLM\n"
                    "model = AutoPeftModelForCausalLM.from_pretrained(\"THIS_FOLDER\")\n",
                    "python");
    else text += card_transformers();
    text += "\n" + md_block(adapter ? "./train_qrl eval --adapter THIS_FOLDER --eval_data gsm8k\n"
                                    : "./train_qrl eval --model THIS_FOLDER --eval_data gsm8k\n",
                            "");
    if (merged) text += "\nBase and adapter are merged here, in full precision; scores are of the two apart.\n";
    else if (quantized && adapter)
        text += "\nScores are over the base quantized as above, which train_qrl does; PEFT loads it as it is.\n";
    else if (quantized)
        text += "\nThe weights here are those behind the rounding, in " + s.o.save_dtype +
                "; train_qrl rounds them as above (`quantizer.json`), which the scores are of. Other programs compute "
                "the model "
                "without the quantizer, unless it is exported: `./train_qrl export --model THIS_FOLDER --format "
                "compressed-tensors --output_dir DIR` (vLLM, transformers), `gguf` (llama.cpp) and others.\n";
    return text + "\n";
}

// of checkpoint-N, or of what --merge_adapter writes beside it
inline std::string trained_card(const Session& s, const TrainedCard& c, bool merged) {
    const Options& o = s.o;
    const CardBase base = card_base(o.model);
    const bool adapter = s.m.lora.on();
    std::vector<std::string> tags = {command_rows[o.command].name};
    if (o.command == COMMAND_GRPO) tags.push_back("reinforcement-learning");
    if (o.command == COMMAND_DISTILL) tags.push_back("distillation");
    if (s.m.weight_rules.on()) tags.push_back(adapter ? "quantized" : "quantization-aware-training");
    if (adapter) tags.push_back("lora");
    std::string text = card_head(base, adapter && !merged ? "peft" : "transformers", tags, card_datasets(o.train_data));
    text +=
        "# " + md_text(card_base_name(base)) +
        format(" after %lld step%s of %s\n\n", (long long)c.step, c.step == 1 ? "" : "s", command_rows[o.command].name);
    const std::string help = command_rows[o.command].help;
    text += format("Written by train_qrl %s, `%s`: %s.\n\n", TRAIN_QRL_VERSION, command_rows[o.command].name,
                   help.substr(0, help.find(" (the default)")).c_str());
    text += "- base: " +
            (base.name.empty() ? std::string("the embedded model, trained from scratch") : md_code(base.name)) + "\n";
    if (!o.teacher.empty()) text += "- teacher: " + md_code(o.teacher) + "\n";
    text += card_data(o, c);
    text += format("- step %lld of %lld, %s, learning rate %g (%s), seed %llu\n", (long long)c.step, (long long)c.steps,
                   o.optim.c_str(), o.learning_rate, o.lr_scheduler_type.c_str(), (unsigned long long)o.seed);
    if (o.command == COMMAND_GRPO)
        text +=
            format(
                "- %d prompts x %d completions a step, up to %d tokens at temperature %g; loss `%s`, beta %g; rewards ",
                o.prompts_per_step * o.steps_per_generation, o.num_generations, o.max_completion_length, o.temperature,
                o.loss_type.c_str(), o.beta) +
            md_code(o.reward_funcs) + "\n";
    if (adapter)
        text += format("- adapters of rank %d, alpha %g, on `%s`\n", s.m.lora.config.r, s.m.lora.config.alpha,
                       s.m.lora.config.target.c_str());
    text += "\n## Quantizer\n\n" + card_quantizer(s.m, o) + "\n## Scores\n\n";
    std::vector<std::pair<std::string, nlohmann::ordered_json>> columns;
    if (!c.before.is_null()) columns.push_back({"before training", c.before});
    if (!c.latest.is_null() && c.latest["when"] != "before")
        columns.push_back({format("at step %lld", (long long)c.latest["step"].get<int64_t>()), c.latest});
    if (columns.empty()) {
        text += "It has not been evaluated.\n\n";
    } else {
        text += card_scores(columns);
        text += format(
            "\n%lld held-out problems, %d sampled completions each%s; in brackets the 95 %% interval over problems. "
            "Graded by train_qrl, strictly unless it says lenient.\n\n",
            (long long)c.held_out, o.eval_samples, o.eval_greedy ? " and a greedy one" : "");
    }
    text += card_warnings(c.told) + "## The command\n\n" + md_block(card_command(o), "");
    text += "\nFlags that change nothing in the weights are left out.\n\n";
    if (c.changes.is_array() && !c.changes.empty()) {
        text += "It is that of the run's end. On the way it went on from a checkpoint with other flags:\n\n";
        for (const auto& change : c.changes)
            text += format("- from step %lld on ", (long long)change["step"].get<int64_t>()) +
                    md_code("--" + change["flag"].get<std::string>() + " " + change["now"].get<std::string>()) +
                    ", before " + md_code(change["was"].get<std::string>()) + "\n";
        text += "\n";
    }
    return text + card_loading(s, merged) + card_licence(base);
}

// The card of what it was made of, if this program wrote that, without its metadata and its head
inline std::string card_of_source(const std::string& model) {
    if (!is_folder(model)) return "";
    const std::string card = small_file(model + "/README.md");
    if (!is_own_card(card)) return "";
    std::istringstream lines(card.substr(card.find("\n---\n") + 5));
    std::string text = "\n---\n\nThe card of what it was made of:\n";
    for (std::string line; std::getline(lines, line);) text += (line.rfind("# ", 0) == 0 ? "#" : "") + line + "\n";
    return text;
}

// Of quantize and export. container: its name, hf where weights are plain; quantizer: what card_quantizer gives; more: lines of
// the list at the start
inline std::string converted_card(const Session& s, const std::string& container, const std::string& quantizer,
                                  const std::string& more) {
    const Options& o = s.o;
    const CardBase base = card_base(o.model);
    std::string text = card_head(base, "transformers", {"quantized", container}, {});
    text += "# " + md_text(card_base_name(base)) + " as " + container + "\n\n";
    text += format("Written by train_qrl %s, `%s`.\n\n- made of: ", TRAIN_QRL_VERSION, command_rows[o.command].name) +
            (base.name.empty() ? std::string("the embedded model") : md_code(base.name)) + "\n" + more +
            "\n## Quantizer\n\n" + quantizer + "\n## The command\n\n" + md_block(card_command(o), "") +
            "\n## How to load it\n\n" + card_transformers() + "\n" +
            md_block("./train_qrl eval --model THIS_FOLDER --eval_data gsm8k\n", "") + "\n" + card_licence(base);
    return text + card_of_source(o.model);
}
