// Calibration: the text whose activations a quantization method looks at, and a layer's inputs on it.
//
// Documents, as tokens, are joined by a blank line, and windows of equal length are drawn from the whole at random (Liu
// et al., arXiv 2504.04823, take 128 of 2,048 tokens). A text file is one document; a row of a JSONL file is one: its
// `text`, its `messages`, or its problem as the prompt would be, with the answer behind it. What the model is to be
// used for is the best text; its own answers to the training problems come closest (arXiv 2601.14888, finding 4). The
// trap: windows may overlap, so that little data gives many windows all the same; what matters is the tokens.
#pragma once
#include <functional>
#include <string>
#include <vector>
#include "../data/prompts.h"
#include "../model.cuh"

// A sample of the inputs of a layer's four products, before the layer is quantized: whole windows, so that the layer
// can be run on them again. Indices are those of Product
struct LayerInputs {
    static constexpr int64_t most_tokens = 4096, batch_tokens = 1024;  // or one window
    int64_t tokens = 0;
    const floatX* x[4] = {};         // [tokens, cols] on the host
    const floatX* resident[4] = {};  // the same where the model is
    int64_t cols[4] = {};
    const std::vector<Batch>* batches = nullptr;  // the windows, in micro-batches
    Activations* acts = nullptr;                  // scratch for one of those
};

// Before a layer is rounded: changes its masters (on the host), but not what the layer computes. m.work holds the same
// weights and is made anew afterwards.
typedef std::function<void(Model&, const LayerMasters&, int layer, const LayerInputs&)> LayerTransform;

// How near the outputs of layers [first,end) have come to those of full precision, over the calibration text:
// sum ||f - f^||^2 / sum ||f||^2, over these layers
struct ModuleReport {
    int number = 0, modules = 0, first = 0, end = 0;
    double before = 0.0, after = 0.0;  // of the training
    double seconds = 0.0;
};

// Training of layers behind their rounding (blockwise.cuh), as the calibration walk (ptq.cuh) calls it; all empty:
// none. hidden [tokens,C]: of all windows, one after another
struct LayerTraining {
    std::function<void(const Model&)> check;  // fails if it cannot be; before the long work
    std::function<void(Model&, int64_t tokens)> allocate;
    // layer l is in full precision still, as all behind it; hidden: its input
    std::function<void(Model&, Activations&, int l, const floatX* hidden, const std::vector<std::vector<int>>&)> before;
    // layer l is rounded, and hidden its output, which becomes that of the trained layer. Reports of what it has trained
    std::function<std::vector<ModuleReport>(Model&, Activations&, int l, floatX* hidden)> after;
    bool transforms = false;  // it changes what the linears multiply, which layer transforms then must not
    bool on() const { return (bool)after; }
};

// ---------------------------------------------------------------------------------------------------------------------
// text

// what a row answers; "": nothing that could be read
inline std::string calibration_answer(const DatasetRow& row, bool svamp) {
    if (svamp) {
        try {
            return svamp_solution(row);
        } catch (const UnusableRow&) {  // an equation that does not come out: no text to calibrate on
            return "";
        }
    }
    const char* answer = first_field(row, {"solution", "completion", "answer"});
    return answer && row.object.at(answer).is_string() ? row.object.at(answer).get<std::string>() : "";
}

// a row as the model sees it: prompt and answer
inline std::vector<int> calibration_row(const Tokenizer& tok, const PromptConfig& config, const DatasetRow& row,
                                        const std::string& source, int line) {
    std::vector<int> ids;
    const char* kind = first_field(row, {"text", "messages", "question", "prompt", "problem"});
    const bool svamp = !kind && is_svamp_solved(row);
    if (!kind && !svamp)
        fail("%s: no `text`, `messages`, `question`, `prompt` or `problem`; the row has: %s", row.where.c_str(),
             row_fields(row).c_str());
    const std::string name = svamp ? "question" : kind;
    if (name == "text") {
        tokenizer_encode(tok, text_field(row, kind), ids);
        return ids;
    }
    Problem p;
    p.source = source;
    p.line = line;
    if (svamp) p.question = svamp_question(row);
    else if (name == "messages" || !row.object.at(kind).is_string())
        p.messages = messages_field(row, kind), p.tools = tools_field(row);
    else p.question = text_field(row, kind);
    p.bare = name == "question" || name == "problem";
    if (name == "messages" && use_chat(config)) {  // a whole conversation: nothing is left to answer
        tokenizer_encode(tok,
                         chat_render_row(row.where, config.chat, p.messages, rendered_tools(p.tools, config), false,
                                         config.enable_thinking),
                         ids);
        return ids;
    }
    ids = make_prompt(tok, p, config).tokens;
    append_tokens(tok, calibration_answer(row, svamp), ids);
    return ids;
}

// path: JSONL or a JSON list if its name ends so, else plain text. Fails if it is not UTF-8.
inline std::vector<std::vector<int>> calibration_documents(const Tokenizer& tok, const PromptConfig& config,
                                                           const std::string& path) {
    std::vector<std::vector<int>> documents;
    const std::string end = std::filesystem::path(path).extension().string();
    if (end == ".jsonl" || end == ".json") {
        for_each_row(path, [&](const DatasetRow& row, int line) {
            documents.push_back(calibration_row(tok, config, row, path, line));
        });
        return documents;
    }
    std::string text = read_file(path);
    int64_t bad = utf8_error_offset(text);
    if (bad >= 0) fail("%s: byte %lld is not valid UTF-8; convert the file to UTF-8", path.c_str(), (long long)bad + 1);
    documents.emplace_back();
    tokenizer_encode(tok, text, documents.back());
    return documents;
}

// one after another, a blank line between them
inline std::vector<int> join_documents(const Tokenizer& tok, const std::vector<std::vector<int>>& documents) {
    std::vector<int> ids, blank;
    tokenizer_encode(tok, "\n\n", blank);
    for (const std::vector<int>& d : documents) {
        if (!ids.empty()) ids.insert(ids.end(), blank.begin(), blank.end());
        ids.insert(ids.end(), d.begin(), d.end());
    }
    return ids;
}

// n windows of `length` tokens at random places of ids; `source` is named when they are too few
inline std::vector<std::vector<int>> draw_windows(const std::vector<int>& ids, int n, int length, uint64_t seed,
                                                  const std::string& source) {
    if ((int64_t)ids.size() < length)
        fail(
            "%s: %zu tokens of calibration text, fewer than one window of --calibration_length %d; lower it or bring "
            "more text",
            source.c_str(), ids.size(), length);
    std::vector<std::vector<int>> windows;
    const uint32_t places = (uint32_t)(ids.size() - length + 1);
    for (int i = 0; i < n; i++) {
        auto start = ids.begin() + shuffle_draw(seed, 1, (uint32_t)i, places);
        windows.emplace_back(start, start + length);
    }
    return windows;
}

// the first n windows, as many in a batch as `capacity` tokens allow
inline std::vector<Batch> micro_batches(const std::vector<std::vector<int>>& windows, size_t n, int64_t capacity) {
    std::vector<Batch> batches;
    for (size_t i = 0; i < std::min(n, windows.size()); i++) {
        const std::vector<int>& w = windows[i];
        if (batches.empty() || batches.back().T() + (int64_t)w.size() > capacity) batches.emplace_back();
        batch_add_sequence(batches.back(), w.data(), (int)w.size());
    }
    return batches;
}

// ---------------------------------------------------------------------------------------------------------------------
// a layer's inputs

struct LayerInputsMemory {
    Buffer<floatX> x[4];
    std::vector<floatX> host[4];  // copies, if the model is not on the host
    int64_t capacity = 0;
};

// windows of `length` tokens that fit into a sample
inline int64_t sample_windows(int64_t length) { return std::max(LayerInputs::most_tokens / length, (int64_t)1); }

inline void layer_inputs_allocate(LayerInputsMemory& s, const Model& m, int64_t tokens, int64_t length) {
    s.capacity = std::min(tokens, sample_windows(length) * length);
    for (int p = 0; p < 4; p++)
        s.x[p].allocate((size_t)(s.capacity * layer_linears(m.layers[0])[p]->cols), "a sample of a layer's inputs", "",
                        m.dev);
}

// The inputs of layer l's products. hidden [tokens of the batches, C]: the layer's input
inline LayerInputs layer_inputs(Model& m, Activations& a, LayerInputsMemory& s, int l, const floatX* hidden,
                                const std::vector<Batch>& batches) {
    LayerInputs in;
    in.batches = &batches;
    in.acts = &a;
    const int64_t C = m.C();
    LayerActivations& y = a.layers[l];
    const floatX* const from[] = {y.ln1, y.att, y.ln2, y.act};
    for (int p = 0; p < 4; p++) in.cols[p] = layer_linears(m.layers[l])[p]->cols;
    for (const Batch& b : batches) {
        BatchView view = batch_view(a.batch, b, m.dev);
        rmsnorm_forward(y.ln1, y.ln1_rstd, hidden, m.layers[l].ln1.work, {b.T(), (int)C}, m.config.rms_norm_eps, m.dev);
        layer_forward(m, a, l, hidden, view, full_precision(), nullptr);
        for (int p = 0; p < 4; p++)
            copy_on_device(s.x[p].data + in.tokens * in.cols[p], from[p], (size_t)(b.T() * in.cols[p]) * sizeof(floatX),
                           m.dev);
        in.tokens += b.T();
        hidden += b.T() * C;
    }
    for (int p = 0; p < 4; p++) {
        in.x[p] = in.resident[p] = s.x[p].data;
        if (!m.dev.cuda) continue;
        s.host[p].resize(in.tokens * in.cols[p]);
        copy_to_host(s.host[p].data(), s.x[p].data, s.host[p].size() * sizeof(floatX), m.dev);
        in.x[p] = s.host[p].data();
    }
    return in;
}
