// A tokenizer's files as Hugging Face has them: tokenizer.json, or vocab.json and merges.txt, and beside them
// tokenizer_config.json, special_tokens_map.json, generation_config.json and chat_template.jinja. tokenizer_save writes
// tokenizer.json and tokenizer_config.json. What tokenizer.h cannot compute (other models than BPE, other splits,
// normalizers or post-processors) is refused, never ignored. A GGUF file's arrays go through tokenizer_from_parts.
#pragma once
#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>
#include <nlohmann/json.hpp>
#include "../runtime/error.h"
#include "../runtime/file_io.h"
#include "../runtime/unicode.h"
#include "../tokenizer.h"

// ---- loading ------------------------------------------------------------------------------------------------

inline std::string tokenizer_read_file(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    std::string text;
    if (!file || std::filesystem::is_directory(path)) fail("%s: cannot be read", path.c_str());
    char buf[1 << 16];
    while (file.read(buf, sizeof buf) || file.gcount() > 0) {
        text.append(buf, (size_t)file.gcount());
        if (text.size() > (1u << 30)) fail("%s: longer than 1 GiB; this is not a tokenizer file", path.c_str());
    }
    if (file.bad()) fail("%s: reading failed", path.c_str());
    return text;
}

inline nlohmann::json tokenizer_read_json(const std::filesystem::path& path) {
    nlohmann::json j;
    try {
        j = nlohmann::json::parse(tokenizer_read_file(path));
    } catch (const nlohmann::json::exception& e) {
        std::string what = utf8_lossy(e.what());
        std::replace_if(
            what.begin(), what.end(), [](char c) { return (unsigned char)c < 0x20; }, '?');
        fail("%s: not valid JSON: %s", path.c_str(), what.substr(0, 200).c_str());
    }
    if (!j.is_object()) fail("%s: a JSON object is expected, not a %s", path.c_str(), j.type_name());
    return j;
}

// j[key] if it has the wanted type, else the default (also for null)
inline std::string json_text(const nlohmann::json& j, const char* key, const char* otherwise = "") {
    auto it = j.is_object() ? j.find(key) : j.end();
    return j.is_object() && it != j.end() && it->is_string() ? it->get<std::string>() : std::string(otherwise);
}
inline bool json_bool(const nlohmann::json& j, const char* key, bool otherwise) {
    auto it = j.is_object() ? j.find(key) : j.end();
    return j.is_object() && it != j.end() && it->is_boolean() ? it->get<bool>() : otherwise;
}
inline const nlohmann::json& json_get(const nlohmann::json& j, const char* key) {
    static const nlohmann::json null;
    auto it = j.is_object() ? j.find(key) : j.end();
    return j.is_object() && it != j.end() ? *it : null;
}
inline int64_t json_id(const nlohmann::json& j) {  // -1: not an id
    if (!j.is_number_integer()) return -1;
    if (j.is_number_unsigned() && j.get<uint64_t>() > (uint64_t)INT64_MAX) return INT64_MAX;
    return j.get<int64_t>();
}

inline void load_vocab(Tokenizer& t, const std::string& where, const nlohmann::json& vocab) {
    if (!vocab.is_object() || vocab.empty()) fail("%s: the vocabulary must be an object token -> id", where.c_str());
    for (auto it = vocab.begin(); it != vocab.end(); ++it) {
        if (!it.value().is_number_integer()) {
            fail("%s: the id of token %s is a %s, not an integer", where.c_str(), token_quoted(it.key()).c_str(),
                 it.value().type_name());
        }
        tokenizer_put(t, where, it.key(), json_id(it.value()), kTokenVocab);
    }
}

inline AddedToken load_added_token(const std::string& where, const nlohmann::json& j, int64_t id) {
    AddedToken a;
    a.content = json_text(j, "content");
    if (a.content.empty()) fail("%s: an added token without content", where.c_str());
    if (id < 0 || id > kMaxTokenId) {
        fail("%s: added token %s has id %lld, outside 0..%d", where.c_str(), token_quoted(a.content).c_str(),
             (long long)id, kMaxTokenId);
    }
    a.id = (int)id;
    a.special = json_bool(j, "special", false);
    a.lstrip = json_bool(j, "lstrip", false);
    a.rstrip = json_bool(j, "rstrip", false);
    a.single_word = json_bool(j, "single_word", false);
    a.normalized = json_bool(j, "normalized", !a.special);
    return a;
}

// [j] if j is no sequence of `list`, else its elements
inline std::vector<nlohmann::json> json_steps(const nlohmann::json& j, const char* list) {
    std::vector<nlohmann::json> steps;
    if (j.is_null()) return steps;
    if (json_text(j, "type") != "Sequence") return {j};
    for (const auto& step : json_get(j, list)) steps.push_back(step);
    return steps;
}

inline void load_pre_tokenizer(Tokenizer& t, const std::string& where, const nlohmann::json& j) {
    std::string split;  // the steps before ByteLevel
    bool use_regex = false, byte_level = false;
    for (const auto& step : json_steps(j, "pretokenizers")) {
        std::string type = json_text(step, "type");
        if (byte_level) fail("%s: pre-tokenizer step %s after ByteLevel", where.c_str(), token_quoted(type).c_str());
        if (type == "ByteLevel") {
            byte_level = true;
            use_regex = json_bool(step, "use_regex", true);
            if (json_bool(step, "add_prefix_space", true))
                fail("%s: ByteLevel with add_prefix_space is not supported", where.c_str());
        } else if (type == "Split" && split.empty()) {
            bool isolated = json_text(step, "behavior") == "Isolated" && !json_bool(step, "invert", false);
            bool removed = json_text(step, "behavior") == "Removed" && json_bool(step, "invert", false);
            split = json_text(json_get(step, "pattern"), "Regex");
            if (split.empty() || !(isolated || removed))
                fail("%s: unknown pre-tokenizer: a Split that is not by isolated matches of a Regex", where.c_str());
        } else if (type == "Digits" && split.empty() && json_bool(step, "individual_digits", false)) {
            split = "Digits";
        } else {
            fail("%s: unknown pre-tokenizer step %s", where.c_str(), token_quoted(type).c_str());
        }
    }
    if (!byte_level) fail("%s: no ByteLevel pre-tokenizer; only byte-level BPE is supported", where.c_str());
    if (split.empty() && use_regex) {
        t.pre = PreTokenizer::gpt2;
    } else if (split == "Digits" && use_regex) {
        t.pre = PreTokenizer::smollm;
    } else if (split == kGpt2Regex && !use_regex) {
        t.pre = PreTokenizer::gpt2;
    } else if (split == kQwen2Regex && !use_regex) {
        t.pre = PreTokenizer::qwen2;
    } else if (split == kLlama3Regex && !use_regex) {
        t.pre = PreTokenizer::llama3;
    } else {
        std::string shown = split.empty() ? "ByteLevel without regex" : split;
        fail("%s: unknown pre-tokenizer %s%s; known are those of Qwen2, Llama 3, SmolLM2 and GPT-2", where.c_str(),
             utf8_lossy(shown.substr(0, 200)).c_str(), use_regex ? " followed by ByteLevel's own" : "");
    }
}

// <|begin_of_text|> $A and the like: sets bos and add_bos
inline void load_post_processor(Tokenizer& t, const std::string& where, const nlohmann::json& j) {
    for (const auto& step : json_steps(j, "processors")) {
        std::string type = json_text(step, "type");
        if (type == "ByteLevel") continue;  // only trims offsets
        if (type != "TemplateProcessing")
            fail("%s: unknown post-processor %s", where.c_str(), token_quoted(type).c_str());
        bool before = true;
        for (const auto& item : json_get(step, "single")) {
            const nlohmann::json& special = json_get(item, "SpecialToken");
            if (special.is_null()) {
                before = false;
                continue;
            }
            std::string name = json_text(special, "id");
            if (!before || t.add_bos || tokenizer_id(t, name) < 0) {
                fail("%s: the post-processor adds %s; only one known token before the text is supported", where.c_str(),
                     token_quoted(name).c_str());
            }
            t.bos = tokenizer_id(t, name);
            t.add_bos = true;
        }
    }
}

inline void load_tokenizer_json(Tokenizer& t, const std::string& where, const nlohmann::json& j) {
    const char* file = where.c_str();
    const nlohmann::json& model = json_get(j, "model");
    std::string type = json_text(model, "type", "BPE");
    if (!model.is_object()) fail("%s: no \"model\"; this is not a tokenizer.json", file);
    if (type != "BPE") fail("%s: model type %s is not supported; only BPE is", file, token_quoted(type).c_str());
    if (json_bool(model, "byte_fallback", false) || !json_text(model, "continuing_subword_prefix").empty() ||
        !json_text(model, "end_of_word_suffix").empty() ||
        (json_get(model, "dropout").is_number() && json_get(model, "dropout").get<double>() != 0)) {
        fail("%s: byte_fallback, dropout and subword prefixes or suffixes are not supported", file);
    }
    load_vocab(t, where, json_get(model, "vocab"));
    t.ignore_merges = json_bool(model, "ignore_merges", false);
    const nlohmann::json& merges = json_get(model, "merges");
    if (!merges.is_array()) fail("%s: \"merges\" must be a list", file);
    for (const auto& m : merges) {
        if (m.is_string()) {
            t.merges.push_back(m.get<std::string>());
        } else if (m.is_array() && m.size() == 2 && m[0].is_string() && m[1].is_string()) {
            t.merges.push_back(m[0].get<std::string>() + " " + m[1].get<std::string>());
        } else {
            fail("%s: merge %zu is neither \"a b\" nor [a, b]", file, t.merges.size());
        }
    }
    for (const auto& a : json_get(j, "added_tokens"))
        tokenizer_put_added(t, where, load_added_token(where, a, json_id(json_get(a, "id"))));
    std::string unk = json_text(model, "unk_token");
    if (!unk.empty()) t.unk = tokenizer_id(t, unk);
    if (t.unk >= 0 && json_bool(model, "fuse_unk", false)) fail("%s: fuse_unk is not supported", file);
    for (const auto& step : json_steps(json_get(j, "normalizer"), "normalizers")) {
        if (json_text(step, "type") != "NFC")
            fail("%s: unknown normalizer %s; NFC is known", file, token_quoted(json_text(step, "type")).c_str());
        t.use_nfc = true;
    }
    load_pre_tokenizer(t, where, json_get(j, "pre_tokenizer"));
    load_post_processor(t, where, json_get(j, "post_processor"));
}

// vocab.json and merges.txt say nothing about splits: tokenizer_class in tokenizer_config.json decides; without it,
// Qwen2
inline void load_vocab_and_merges(Tokenizer& t, const std::filesystem::path& dir, const nlohmann::json& config) {
    std::string cls = json_text(config, "tokenizer_class", "Qwen2Tokenizer");
    if (cls == "Qwen2Tokenizer" || cls == "Qwen2TokenizerFast") {
        t.pre = PreTokenizer::qwen2;
        t.use_nfc = true;
    } else if (cls == "GPT2Tokenizer" || cls == "GPT2TokenizerFast") {
        t.pre = PreTokenizer::gpt2;
        if (json_bool(config, "add_prefix_space", false)) fail("%s: add_prefix_space is not supported", dir.c_str());
    } else {
        fail("%s: tokenizer_class %s needs a tokenizer.json; vocab.json and merges.txt are enough for Qwen2 and GPT-2",
             (dir / "tokenizer_config.json").c_str(), token_quoted(cls).c_str());
    }
    std::string where = (dir / "vocab.json").string();
    load_vocab(t, where, tokenizer_read_json(where));
    std::string text = tokenizer_read_file(dir / "merges.txt");
    for (size_t i = 0, end; i < text.size(); i = end + 1) {
        end = std::min(text.find('\n', i), text.size());
        std::string line = text.substr(i, end - i);
        if (!line.empty() && line.back() == '\r') line.pop_back();
        if (!line.empty() && line.compare(0, 8, "#version") != 0) t.merges.push_back(line);
    }
}

// tokenizer_config.json, special_tokens_map.json, generation_config.json, chat_template.jinja: those that exist
inline void load_side_files(Tokenizer& t, const std::filesystem::path& dir, const nlohmann::json& config) {
    std::string where = (dir / "tokenizer_config.json").string();
    const nlohmann::json& decoder = json_get(config, "added_tokens_decoder");
    if (decoder.is_object()) {
        std::vector<AddedToken> tokens;
        for (auto it = decoder.begin(); it != decoder.end(); ++it) {
            bool digits = !it.key().empty() && it.key().size() < 10 &&
                          it.key().find_first_not_of("0123456789") == std::string::npos;
            tokens.push_back(load_added_token(where, it.value(), digits ? std::stoll(it.key()) : -1));
        }
        std::sort(tokens.begin(), tokens.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
        for (const AddedToken& a : tokens) tokenizer_put_added(t, where, a);
    }
    nlohmann::json map;
    if (std::filesystem::exists(dir / "special_tokens_map.json"))
        map = tokenizer_read_json(dir / "special_tokens_map.json");
    auto special = [&](const char* key) {
        for (const nlohmann::json& v : {json_get(config, key), json_get(map, key)}) {
            std::string content = v.is_string() ? v.get<std::string>() : json_text(v, "content");
            if (!content.empty()) return tokenizer_put_special(t, where, content);
        }
        return -1;
    };
    int eos = special("eos_token"), bos = special("bos_token");
    t.pad = special("pad_token");
    if (bos >= 0 && !t.add_bos) t.bos = bos;
    if (json_bool(config, "add_bos_token", false) && t.bos >= 0) t.add_bos = true;
    if (eos >= 0) t.eos.push_back(eos);
    if (std::filesystem::exists(dir / "generation_config.json")) {
        nlohmann::json generation = tokenizer_read_json(dir / "generation_config.json");
        nlohmann::json ids = json_get(generation, "eos_token_id");
        if (!ids.is_array()) ids = nlohmann::json::array({ids});
        for (const auto& id : ids) {
            int64_t v = json_id(id);
            if (v < 0 || v >= tokenizer_vocab_size(t) || tokenizer_is_eos(t, (int)v)) continue;
            t.eos.push_back((int)v);
        }
    }
    const nlohmann::json& length = json_get(config, "model_max_length");
    if (length.is_number_integer()) t.model_max_length = std::max<int64_t>(0, json_id(length));
    const nlohmann::json& chat = json_get(config, "chat_template");
    if (chat.is_string()) t.chat_text = chat.get<std::string>();
    if (chat.is_array()) {  // several templates with names
        for (const auto& entry : chat) {
            if (json_text(entry, "name") == "default") t.chat_text = json_text(entry, "template");
        }
    }
    if (std::filesystem::exists(dir / "chat_template.jinja"))
        t.chat_text = tokenizer_read_file(dir / "chat_template.jinja");
}

// dir_or_file: a folder with tokenizer.json, or with vocab.json and merges.txt; or one of those files.
// tokenizer_config.json, chat_template.jinja, special_tokens_map.json and generation_config.json next to them are read
// when present. t is changed only on success.
inline void tokenizer_load(Tokenizer& t, const std::string& dir_or_file) {
    namespace fs = std::filesystem;
    fs::path path(dir_or_file), dir = path, json;
    if (!fs::exists(path)) fail("%s: no such file or folder", path.c_str());
    if (!fs::is_directory(path)) {
        dir = path.has_parent_path() ? path.parent_path() : fs::path(".");
        std::string name = path.filename().string();
        bool beside = name == "vocab.json" || name == "merges.txt" || name == "tokenizer_config.json" ||
                      name == "chat_template.jinja";
        if (!beside) json = path;
        if (beside && name[0] != 'v' && name[0] != 'm' && fs::exists(dir / "tokenizer.json"))
            json = dir / "tokenizer.json";
    } else if (fs::exists(dir / "tokenizer.json")) {
        json = dir / "tokenizer.json";
    }
    if (json.empty() && !(fs::exists(dir / "vocab.json") && fs::exists(dir / "merges.txt")))
        fail("%s: neither tokenizer.json nor vocab.json and merges.txt are here", dir.c_str());
    nlohmann::json config = nlohmann::json::object();
    if (fs::exists(dir / "tokenizer_config.json")) config = tokenizer_read_json(dir / "tokenizer_config.json");

    Tokenizer fresh;
    if (!json.empty()) {
        load_tokenizer_json(fresh, json.string(), tokenizer_read_json(json));
    } else {
        load_vocab_and_merges(fresh, dir, config);
        // the defaults of these classes in transformers
        if (!config.contains("eos_token")) config["eos_token"] = "<|endoftext|>";
        if (!config.contains("pad_token") && fresh.pre == PreTokenizer::qwen2) config["pad_token"] = "<|endoftext|>";
    }
    load_side_files(fresh, dir, config);
    if (!utf8_is_valid(fresh.chat_text))
        fail("%s: not UTF-8; convert or remove it", (dir / "chat_template.jinja").c_str());
    tokenizer_finish(fresh, json.empty() ? (dir / "merges.txt").string() : json.string());
    t = std::move(fresh);
}

// ---- saving -------------------------------------------------------------------------------------------------

inline nlohmann::ordered_json added_token_json(const AddedToken& a, bool with_id) {
    nlohmann::ordered_json j = nlohmann::ordered_json::object();
    if (with_id) j["id"] = a.id;
    j["content"] = a.content;
    j["single_word"] = a.single_word;
    j["lstrip"] = a.lstrip;
    j["rstrip"] = a.rstrip;
    j["normalized"] = a.normalized;
    j["special"] = a.special;
    return j;
}

inline nlohmann::ordered_json pre_tokenizer_json(PreTokenizer pre) {
    using J = nlohmann::ordered_json;
    bool own_regex = pre == PreTokenizer::gpt2 || pre == PreTokenizer::smollm;
    J bytes = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}, {"use_regex", own_regex}};
    if (pre == PreTokenizer::gpt2) return bytes;
    J first = {{"type", "Digits"}, {"individual_digits", true}};
    if (pre != PreTokenizer::smollm) {
        const char* regex = pre == PreTokenizer::qwen2 ? kQwen2Regex : kLlama3Regex;
        first = {{"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", "Isolated"}, {"invert", false}};
    }
    return {{"type", "Sequence"}, {"pretokenizers", J::array({first, bytes})}};
}

// Byte-level BPE's post-processor, with BOS before the text if the tokenizer adds one
inline nlohmann::ordered_json post_processor_json(const Tokenizer& t, const nlohmann::ordered_json& bytes) {
    using J = nlohmann::ordered_json;
    if (!t.add_bos) return bytes;
    const std::string& name = t.text[(size_t)t.bos];
    J bos = {{"SpecialToken", {{"id", name}, {"type_id", 0}}}};
    auto sequence = [](const char* id, int type) { return J{{"Sequence", {{"id", id}, {"type_id", type}}}}; };
    J token = {{"id", name}, {"ids", J::array({t.bos})}, {"tokens", J::array({name})}};
    J single = J::array({bos, sequence("A", 0)}), pair = J::array({bos, sequence("A", 0), sequence("B", 1)});
    J specials = J::object();
    specials[name] = token;
    J with_bos = {{"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", specials}};
    return {{"type", "Sequence"}, {"processors", J::array({bytes, with_bos})}};
}

// HF numbers added tokens that its vocabulary lacks from the vocabulary's size on. If that would give another id, the
// added tokens are written into the vocabulary as well. added: by id
inline nlohmann::ordered_json vocab_json(const Tokenizer& t, const std::vector<AddedToken>& added) {
    using J = nlohmann::ordered_json;
    int64_t next = std::count_if(t.flags.begin(), t.flags.end(), [](uint8_t f) { return f & kTokenVocab; });
    bool in_vocab = false;
    for (const AddedToken& a : added) {
        if (!(t.flags[(size_t)a.id] & kTokenVocab)) in_vocab = in_vocab || a.id != next++;
    }
    J vocab = J::object();
    auto& entries = vocab.get_ref<J::object_t&>();  // push_back: ordered_json's own insertion searches linearly
    for (size_t id = 0; id < t.text.size(); id++) {
        if ((t.flags[id] & kTokenVocab) || (in_vocab && t.flags[id])) entries.push_back({t.text[id], J(id)});
    }
    return vocab;
}

// tokenizer.json and tokenizer_config.json in dir (created if needed), for Hugging Face tokenizers and transformers
inline void tokenizer_save(const Tokenizer& t, const std::string& dir) {
    using J = nlohmann::ordered_json;
    std::error_code error;
    std::filesystem::create_directories(dir, error);
    if (error) fail("%s: cannot be created: %s", dir.c_str(), error.message().c_str());

    std::vector<AddedToken> added = t.added;
    std::sort(added.begin(), added.end(), [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
    J added_list = J::array(), decoder = J::object();
    for (const AddedToken& a : added) {
        added_list.push_back(added_token_json(a, true));
        decoder[std::to_string(a.id)] = added_token_json(a, false);
    }
    auto name = [&](int id) { return id >= 0 ? J(t.text[(size_t)id]) : J(); };

    J j = {{"version", "1.0"}, {"truncation", nullptr}, {"padding", nullptr}};
    j["added_tokens"] = std::move(added_list);
    j["normalizer"] = t.use_nfc ? J{{"type", "NFC"}} : J();
    j["pre_tokenizer"] = pre_tokenizer_json(t.pre);
    J bytes = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}, {"use_regex", false}};
    j["post_processor"] = post_processor_json(t, bytes);
    j["decoder"] = bytes;
    J model = {{"type", "BPE"}, {"dropout", nullptr}, {"unk_token", name(t.unk)}};
    model["continuing_subword_prefix"] = nullptr;
    model["end_of_word_suffix"] = nullptr;
    model["fuse_unk"] = false;
    model["byte_fallback"] = false;
    model["ignore_merges"] = t.ignore_merges;
    model["vocab"] = vocab_json(t, added);
    model["merges"] = J(t.merges);
    j["model"] = std::move(model);

    J config = {{"add_bos_token", t.add_bos}, {"add_prefix_space", false}};
    config["added_tokens_decoder"] = std::move(decoder);
    config["bos_token"] = name(t.bos);
    if (!t.chat_text.empty()) config["chat_template"] = t.chat_text;
    config["clean_up_tokenization_spaces"] = false;
    config["eos_token"] = name(t.eos.empty() ? -1 : t.eos[0]);
    config["errors"] = "replace";
    if (t.model_max_length > 0) config["model_max_length"] = t.model_max_length;
    config["pad_token"] = name(t.pad);
    config["split_special_tokens"] = false;
    config["tokenizer_class"] = "PreTrainedTokenizerFast";
    config["unk_token"] = name(t.unk);
    write_file_atomic(dir + "/tokenizer.json", j.dump(1) + "\n");
    write_file_atomic(dir + "/tokenizer_config.json", config.dump(2) + "\n");
}
