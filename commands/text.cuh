// tokenize and logprobs: JSON lines in, JSON lines out, so that other programs can check this one.
#pragma once
#include <sys/stat.h>
#include <unistd.h>
#include "../train/scoring.cuh"
#include "memory.cuh"

// bytes that standard input has in all; 0: it is no file
inline double file_input_bytes() {
    struct stat in;
    return fstat(STDIN_FILENO, &in) == 0 && S_ISREG(in.st_mode) ? (double)in.st_size : 0.0;
}

// calls use(object, where) for each line of standard input, or once for --prompt
template <class Use>
void for_each_input(const Options& o, Use use) {
    if (o.given("prompt")) {
        use(nlohmann::ordered_json{{"text", o.prompt}}, "--prompt");
        return;
    }
    LineReader reader("standard input", dup(STDIN_FILENO));
    std::string line;
    // of a file alone, whose end is known, and not between results on a screen
    const double size = file_input_bytes();
    const bool told = size > 0.0 && !isatty(STDOUT_FILENO);
    Progress rows(command_rows[o.command].name, "row", 0, told ? ProgressKind::work : ProgressKind::part);
    double read = 0.0;
    while (reader.next(&line)) {
        rows.to(reader.number);
        rows.measure(read += (double)line.size() + 1.0, size);
        if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
        const std::string where = format("standard input:%lld", (long long)reader.number);
        use(parse_row(line, where), where);
    }
}

inline std::vector<int> ids_field(const nlohmann::ordered_json& j, int vocabulary, const std::string& where) {
    std::vector<int> ids;
    if (!j["ids"].is_array()) fail("%s: ids is not a list of integers", where.c_str());
    for (const auto& id : j["ids"]) {
        if (!id.is_number_integer() || id.get<double>() < 0 || id.get<double>() >= vocabulary)
            fail("%s: %s is not a token id (0 to %d)", where.c_str(), printable(id.dump()).c_str(), vocabulary - 1);
        ids.push_back(id.get<int>());
    }
    return ids;
}

inline std::string text_field_of(const nlohmann::ordered_json& j, const std::string& where) {
    if (!j.contains("text") || !j["text"].is_string())
        fail("%s: the field text is missing or not a string", where.c_str());
    return j["text"].get<std::string>();
}

// {"text"} -> {"ids"}; {"messages", "tools", "add_generation_prompt", "enable_thinking"} -> {"text", "ids"};
// with --decode {"ids"} -> {"text"}
inline int tokenize_command(Session& s) {
    const Options& o = s.o;
    std::string path = o.tokenizer.empty() ? o.model : o.tokenizer;
    Tokenizer tok = path.empty() ? tokenizer_byte_level() : load_tokenizer(path);
    ChatTemplate chat = path.empty() ? ChatTemplate::chatml : chat_template_detect(tok.chat_text);
    for_each_input(o, [&](const nlohmann::ordered_json& j, const std::string& where) {
        nlohmann::ordered_json out;
        if (o.decode) {
            if (!j.contains("ids")) fail("%s: --decode expects the field ids", where.c_str());
            out["text"] = tokenizer_decode(tok, ids_field(j, tokenizer_vocab_size(tok), where), false);
        } else {
            std::string text;
            if (j.contains("messages")) {
                int thinking = o.enable_thinking == "auto" ? -1 : o.enable_thinking == "true";
                if (j.contains("enable_thinking") && j["enable_thinking"].is_boolean())
                    thinking = j["enable_thinking"].get<bool>();
                bool generation = j.contains("add_generation_prompt") && j["add_generation_prompt"].is_boolean() &&
                                  j["add_generation_prompt"].get<bool>();
                text =
                    chat_render_row(where, chat, j["messages"],
                                    j.contains("tools") ? j["tools"] : nlohmann::ordered_json(), generation, thinking);
                out["text"] = text;
            } else {
                text = text_field_of(j, where);
            }
            std::vector<int> ids;
            tokenizer_encode(tok, text, ids);
            out["ids"] = ids;
        }
        print_result(json_line(out));
    });
    return 0;
}

// {"text"} or {"ids"} -> {"ids", "logprobs" of each token after the first, "mean"}
inline int logprobs_command(Session& s) {
    if (s.o.model.empty()) fail_usage("logprobs needs --model: a Hugging Face folder or a .gguf file");
    session_open(s);
    session_plan(s, false, [] {});
    if (session_allocate(s)) return 0;
    session_load_weights(s);
    buffer_forget(s.m.master);  // nothing is trained
    Activations acts;           // these grow with the texts, outside of the plan
    ScoreMemory memory;
    for_each_input(s.o, [&](const nlohmann::ordered_json& j, const std::string& where) {
        std::vector<int> ids;
        if (j.contains("ids")) ids = ids_field(j, s.m.V(), where);
        else if (tokenizer_vocab_size(s.tok) > 0) tokenizer_encode(s.tok, text_field_of(j, where), ids, true, true);
        else
            fail("%s: %s has no tokenizer.json; give ids instead of text, or --tokenizer", where.c_str(),
                 s.o.model.c_str());
        if ((int)ids.size() > s.m.config.max_position_embeddings)
            fail("%s: %zu tokens exceed the model's context of %d", where.c_str(), ids.size(),
                 s.m.config.max_position_embeddings);
        ScoredTokens scored;
        if (ids.size() > 1) {
            Batch b;
            batch_add_sequence(b, ids.data(), (int)ids.size());
            score_last_sequence(scored, b, 1);
            if (acts.capacity < b.T()) {
                activations_allocate(acts, s.m, b.T(), ActivationMode::inference);
                score_memory_allocate(memory, s.m, b.T(), false);
            }
            score_forward(s.m, acts, memory, b, scored, 1.0f);
            score_fetch(scored, memory, s.m.dev);
        }
        double sum = 0.0;
        for (float logp : scored.logp) sum += logp;
        nlohmann::ordered_json out;
        out["ids"] = ids;
        out["logprobs"] = scored.logp;
        out["mean"] =
            scored.logp.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(sum / (double)scored.size());
        print_result(json_line(out));
        fflush(stdout);
    });
    return 0;
}
