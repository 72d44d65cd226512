// Which linears are quantized in a rotated basis (linear_set_basis of linear.cuh), as a text: --hadamard, quantizer.json.
//
//   none | all | WHERE, WHERE ...      as rules name linears (quantizer_rules.h): down | layers.0-3 | layers.1.q | *.mlp.*
//
// The parts of a linear share their input: all of q,k,v and of gate,up are named, or none.
#pragma once
#include "../runtime/printable.h"
#include "quantize.cuh"

// [4 L], a linear after the other as layers have them
typedef std::vector<char> RotatedLinears;

// Fails where the text names nothing, a part of a linear alone, or what R4 rotates already
inline RotatedLinears rotated_linears(const ModelConfig& config, const std::string& where) {
    RotatedLinears rotated((size_t)config.num_hidden_layers * 4);
    if (where == "none") return rotated;
    const std::vector<std::string> words = split_words(where);
    for (const std::string& w : words) {
        if (w == "all") continue;
        bool found = false;
        for (const QuantizerPlace& p : weight_places(config, true)) found = found || place_matches(w, p);
        if (!found)
            fail_usage(
                "--hadamard: '%s' names no linear of this model; there are layers.0 to layers.%d, layers.0-1, "
                "layers.0.down, q, k, v, o, gate, up, down, and all or none",
                printable(w).c_str(), config.num_hidden_layers - 1);
    }
    size_t n;
    for (const ParamTensor& t : model_tensors(config, &n)) {
        if (t.kind != ParamKind::linear) continue;
        char named = 0;
        for (const std::string& w : words) named |= w == "all" || place_matches(w, place_of(t));
        char& linear = rotated[(size_t)t.layer * 4 + (size_t)t.product];
        if (t.part > 0 && named != linear)
            fail_usage("--hadamard %s: %s of layer %d multiply the same input; name all of them, or none",
                       printable(where).c_str(), product_names[(int)t.product], t.layer);
        linear = named;
        if (named && config.transformed)
            fail_usage(
                "--hadamard %s: the model's inputs have learned transforms already (quantize --ptq flatquant); take "
                "--hadamard none",
                printable(where).c_str());
        if (named && t.product == Product::down && config.rotate_down)
            fail_usage(
                "--hadamard %s: the inputs of down are rotated already (online_rotations of config.json, quantize "
                "--rotations r4); leave down out",
                printable(where).c_str());
    }
    return rotated;
}

inline RotatedLinears rotated_linears(const Model& m) {
    RotatedLinears rotated;
    for (const Layer& layer : m.layers)
        for (const Linear* l : layer_linears(layer)) rotated.push_back(l->rotated);
    return rotated;
}

// use(product, numbers of the layers in which it is rotated), if there are any
template <class Use>
void each_rotated_product(const RotatedLinears& rotated, const Use& use) {
    for (size_t p = 0; p < 4; p++) {
        std::vector<int> layers;
        for (size_t i = p; i < rotated.size(); i += 4)
            if (rotated[i]) layers.push_back((int)(i / 4));
        if (!layers.empty()) use(product_names[p], layers);
    }
}

// the canonical text
inline std::string rotated_text(const RotatedLinears& rotated) {
    std::string text;
    size_t count = 0;
    each_rotated_product(rotated, [&](const char* product, const std::vector<int>& layers) {
        count += layers.size();
        const bool everywhere = layers.size() == rotated.size() / 4;
        for (const std::string& range : split_words(everywhere ? "" : ranges_text(layers)))
            for (const std::string& part : split_words(product))
                text += (text.empty() ? "" : ",") + (everywhere ? part : "layers." + range + "." + part);
    });
    return count == 0 ? "none" : count == rotated.size() ? "all" : text;
}

// "q,k,v of layers 0-3; down of layers 1,5", for people
inline std::string rotated_list(const RotatedLinears& rotated) {
    std::string text;
    each_rotated_product(rotated, [&](const char* product, const std::vector<int>& layers) {
        text += (text.empty() ? "" : "; ") + std::string(product) + " of layers " + ranges_text(layers);
    });
    return text.empty() ? "none" : text;
}

// memory of the weight that is rotated; before any basis is set
inline void model_plan_basis(Model& m) {
    if (m.rotated.size) return;
    int64_t largest = 0;
    for (const ParamTensor& t : m.tensors)
        if (t.kind == ParamKind::linear) largest = std::max(largest, t.count());
    m.rotated.allocate((size_t)largest, "a weight in its rotated basis", "", m.dev);
    when_allocated(m.dev, [&m] {
        for (Layer& layer : m.layers)
            for (Linear* l : layer_linears(layer))
                for (LinearPart& p : l->parts) p.rotated = m.rotated.data;
    });
}

inline void model_set_basis(Model& m, const RotatedLinears& rotated) {
    for (size_t i = 0; i < rotated.size(); i++) linear_set_basis(*layer_linears(m.layers[i / 4])[i % 4], rotated[i]);
}

// --hadamard; before the weights are loaded
inline void model_rotate(Model& m, const std::string& where) {
    const RotatedLinears rotated = rotated_linears(m.config, where);
    if (rotated_text(rotated) == "none") return;
    if (m.frozen)
        fail_usage(
            "--hadamard %s: the base of an adapter stays as it was quantized; take --hadamard none, or the adapter "
            "inside the quantizer (--lora_inside_quantizer)",
            printable(where).c_str());
    model_plan_basis(m);
    model_set_basis(m, rotated);
}

// The work of a model without masters (model_copy_work) as it is in the bases of `like`, rounded once for each change
inline void model_work_follows(Model& reference, const Model& like) {
    for (int i = 0; i < 4 * like.L(); i++) {
        Linear& l = *layer_linears(reference.layers[i / 4])[i % 4];
        const bool rotated = layer_linears(like.layers[i / 4])[i % 4]->rotated;
        if (rotated == l.rotated) continue;
        const Hadamard h = hadamard_for(l.cols);
        if (rotated) hadamard_forward(l.weight.work, l.cols, h, l.rows, l.cols / h.N(), reference.dev);
        else hadamard_backward(l.weight.work, l.cols, h, l.rows, l.cols / h.N(), reference.dev);
        linear_set_basis(l, rotated);
    }
}
