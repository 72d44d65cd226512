// Quantizers: what a linear layer multiplies with, and how its gradient comes back.
//
// A quantizer is a short text, the same in flags, logs and file names:
//   none | int8|int4|int3|int2 : tensor|channel|g32|g64|g128 : sym|asym        (int4:g32 means int4:g32:sym)
// The arithmetic of the grid is in kernels/fake_quant.cuh. The quantizer is one argument of every linear: a Linear
// knows its own, the forward and dX multiply with Q(W), and dW passes straight through to the fp32 master weight.
//
// Q(W) depends on the weights alone, so it is computed once after each optimizer step (refresh) and not at each matmul;
// sampler and trainer read the same numbers.
//
// The code-flip rate says whether training moves the quantized model at all: at learning rate 1e-6 a master weight may
// move for hundreds of steps inside one cell of the grid, and the policy that acts has not changed by one bit.
#pragma once
#include <memory>
#include <string>
#include <vector>
#include "kernels/fake_quant.cuh"
#include "runtime/buffer.h"
#include "runtime/error.h"

enum class QuantScope { tensor, channel, group };
enum class SteRule { identity, clip };
enum class ScaleMode { dynamic, frozen };  // measured at each refresh, or once at load (paper A: "static")

struct Quantizer {
    int bits = 0;  // 0: none
    QuantScope scope = QuantScope::channel;
    int group = 0;  // for QuantScope::group
    bool symmetric = true;
    bool on() const { return bits > 0; }
};

inline std::string quantizer_text(const Quantizer& q) {
    if (!q.on()) return "none";
    std::string scope = q.scope == QuantScope::tensor    ? "tensor"
                        : q.scope == QuantScope::channel ? "channel"
                                                         : "g" + std::to_string(q.group);
    return "int" + std::to_string(q.bits) + ":" + scope + (q.symmetric ? ":sym" : ":asym");
}

// text -> Quantizer; fail_usage names the flag, the part that does not parse, and what there is
inline Quantizer quantizer_parse(const std::string& text, const char* flag) {
    Quantizer q;
    if (text == "none") return q;
    std::vector<std::string> parts(1);
    for (char c : text)
        if (c == ':') parts.emplace_back();
        else parts.back() += c;
    auto refuse = [&](size_t i, const char* choices) {
        size_t at = 0;
        for (size_t k = 0; k < i; k++) at += parts[k].size() + 1;
        fail_usage("--%s %s: '%s' at character %zu is not one of %s (example: int4:g32:sym)", flag, text.c_str(),
                   i < parts.size() ? parts[i].c_str() : "", at + 1, choices);
    };
    if (parts[0] == "int8") q.bits = 8;
    else if (parts[0] == "int4") q.bits = 4;
    else if (parts[0] == "int3") q.bits = 3;
    else if (parts[0] == "int2") q.bits = 2;
    else refuse(0, "none, int8, int4, int3, int2");
    if (parts.size() < 2) refuse(1, "tensor, channel, g32, g64, g128");
    if (parts[1] == "tensor") q.scope = QuantScope::tensor;
    else if (parts[1] == "channel") q.scope = QuantScope::channel;
    else if (parts[1] == "g32" || parts[1] == "g64" || parts[1] == "g128") {
        q.scope = QuantScope::group;
        q.group = std::stoi(parts[1].substr(1));
    } else refuse(1, "tensor, channel, g32, g64, g128");
    if (parts.size() > 2) {
        if (parts[2] == "asym") q.symmetric = false;
        else if (parts[2] != "sym") refuse(2, "sym, asym");
    }
    if (parts.size() > 3) refuse(3, "the end: three parts are all there are");
    return q;
}

// One quantized weight: its master, what the forward reads, and the state of its grid (views; see model_quantize)
struct QuantizedTensor {
    std::string name;
    int64_t rows = 0, cols = 0;
    size_t offset = 0;              // into master, work and gradients
    const float* master = nullptr;  // [rows, cols]
    floatX* work = nullptr;         // [rows, cols] = Q(master)
    float* grad = nullptr;          // [rows, cols] or null
    int64_t groups = 0, group = 0;
    Grid* grid = nullptr;                         // [groups]
    int8_t *codes = nullptr, *initial = nullptr;  // [rows, cols] now and at load; initial: if flips are tracked
    bool measured = false;
    int64_t flips = 0, flips_total = 0;  // codes changed by the last refresh; codes that differ from those at load
};

inline void quantized_tensor_init(QuantizedTensor& t, const Quantizer& q) {
    int64_t n = t.rows * t.cols;
    if (q.scope == QuantScope::group && t.cols % q.group)
        fail_usage(
            "--weights %s: group size %d does not divide the %lld inputs of %s; choose a divisor (g32, g64, "
            "g128), channel or tensor",
            quantizer_text(q).c_str(), q.group, (long long)t.cols, t.name.c_str());
    t.group = q.scope == QuantScope::tensor ? n : q.scope == QuantScope::channel ? t.cols : q.group;
    t.groups = n / t.group;
}

// work = Q(master). counts [2], where the codes are: how many codes changed, and how many differ from those at load;
// both 0 the first time.
inline void quantized_tensor_refresh(QuantizedTensor& t, const Quantizer& q, ScaleMode mode, int64_t* counts,
                                     Device dev) {
    bool first = !t.measured;
    int64_t n = t.rows * t.cols;
    set_zero(counts, 2 * sizeof(int64_t), dev);
    fake_quant_forward(t.work, t.codes, t.grid, t.master, t.groups, t.group, q.bits, q.symmetric,
                       first || mode == ScaleMode::dynamic, counts, dev);
    t.measured = true;
    if (first) {
        if (t.initial) copy_on_device(t.initial, t.codes, n, dev);
        set_zero(counts, 2 * sizeof(int64_t), dev);  // there were no codes before
    }
    if (t.initial && !first) codes_changed(counts + 1, t.codes, t.initial, n, dev);
}

// the straight-through rule, in place on the gradient
inline void quantized_tensor_backward(QuantizedTensor& t, const Quantizer& q, SteRule rule, Device dev) {
    if (rule == SteRule::clip)
        fake_quant_backward(t.grad, t.master, t.grid, t.groups, t.group, q.bits, q.symmetric, dev);
}
