// Quantizers: what a linear layer multiplies with, and how its gradient comes back.
//
// A quantizer is a short text, the same in flags, logs and file names:
//   none
//   int8|int6|int5|int4|int3|int2 : SCOPE [: sym|asym] [: amax|amax7|signedmax|mse]     int4:g32 is int4:g32:sym:amax
//   nf4 [: gN] [: dq]                     blocks of 64 unless said; dq: double quantization of the scales
//   fp8e4m3|fp8e5m2 : SCOPE               128x128: a scale for each tile
//   mxfp8 | mxfp4 | nvfp4                 blocks of 32, 32 and 16, as their standards have it
//   ternary [: SCOPE]                     -1, 0, 1 times the mean size; tensor unless said
//   mid4|mid3|mid2 : SCOPE [: amax|gauss] no number is 0: SEQ's scale, or QuEST's
//   SCOPE  tensor | channel (a weight's row) | token (an activation's row) | gN (N neighbours of a row) | 128x128
// What the formats mean, and the table of them, is in kernels/quant_format.cuh, the loops over a tensor in
// kernels/fake_quant.cuh. The quantizer is one argument of every linear: a Linear knows its own, the forward and dX
// multiply with Q(W), and dW passes straight through to the fp32 master weight.
//
// The words: a quantizer is what was chosen (format, scope, rule); to quantize is to find a grid and codes by it; the
// quantized weight is Q(W), numbers; packed are its codes in words (kernels/packed_weight.cuh); frozen is a base that
// is not trained; kept is a grid that is not measured again.
//
// Q(W) depends on the weights alone, so it is computed once after each optimizer step (refresh) and not at each matmul;
// sampler and trainer read the same numbers.
//
// The code-flip rate says whether training moves the quantized model at all: at learning rate 1e-6 a master weight may
// move for hundreds of steps inside one cell of the grid, and the policy that acts has not changed by one bit.
#pragma once
#include <cfloat>
#include <memory>
#include <string>
#include <vector>
#include "kernels/quant_backward.cuh"
#include "runtime/buffer.h"
#include "runtime/error.h"

enum class QuantScope { tensor, channel, group, block };  // channel: one scale a row; block: 128 x 128
// measured at each refresh; once at load (paper A: "static"); or trained, see kernels/quant_backward.cuh
enum class ScaleMode { dynamic, kept, learned };

struct Quantizer {
    bool enabled = false;
    QuantSpec spec;
    QuantScope scope = QuantScope::channel;
    int group = 0;              // for QuantScope::group; 128 for block
    bool double_quant = false;  // nf4: the scales are quantized too
    // how it is trained; no part of its text
    ScaleMode scale_mode = ScaleMode::dynamic;
    LearnedScale learned_scale = LearnedScale::lsq;  // what ScaleMode::learned trains
    Ste ste = SteRule::identity;
    bool stochastic = false;  // rounding; else to nearest
    bool on() const { return enabled; }
};

inline const char* scale_rule_name(ScaleRule rule) {
    const char* names[] = {"amax", "amax7", "signedmax", "mse", "gauss"};
    return names[(int)rule];
}
inline const char* learned_scale_name(LearnedScale kind) {
    const char* names[] = {"lsq", "lsq_offset", "lwc", "pact"};
    return names[(int)kind];
}

// is `name` one of "lsq, pact"?
inline bool trait_lists(const char* list, const std::string& name) {
    return (", " + std::string(list) + ",").find(", " + name + ",") != std::string::npos;
}

// the canonical text; for activations and the KV cache one scale a row is called token
inline std::string quantizer_text(const Quantizer& q, const char* row_scope = "channel") {
    if (!q.on()) return "none";
    const FormatTraits& format = quant_traits(q.spec);
    const char* name = quant_format_name(q.spec);
    if (!name) fail("a quantizer without a name");
    std::string text = name;
    if (*format.scopes)
        text += std::string(":") + (q.scope == QuantScope::tensor    ? "tensor"
                                    : q.scope == QuantScope::channel ? row_scope
                                    : q.scope == QuantScope::block   ? "128x128"
                                                                     : "g" + std::to_string(q.group));
    if (format.affine) text += q.spec.symmetric ? ":sym" : ":asym";
    if (*format.rules && q.spec.rule != ScaleRule::amax) text += std::string(":") + scale_rule_name(q.spec.rule);
    return text + (q.double_quant ? ":dq" : "");
}

// The text of a quantizer while it is read: its parts between colons, and which is next
// --weights and --rollout_weights are quantizers of the same
inline bool is_flag_of(const std::string& flag, const std::string& what) {
    return flag == what || flag == "rollout_" + what;
}

struct QuantizerText {
    std::string text, flag;
    std::vector<std::string> parts;
    size_t next = 0;

    QuantizerText(const std::string& text_, const char* flag_) : text(text_), flag(flag_), parts(1) {
        for (char c : text)
            if (c == ':') parts.emplace_back();
            else parts.back() += c;
    }
    bool weights() const { return is_flag_of(flag, "weights"); }
    bool more() const { return next < parts.size(); }
    bool is(const char* part) const { return more() && parts[next] == part; }
    [[noreturn]] void refuse(size_t i, const std::string& choices) const {
        size_t at = 0;
        for (size_t k = 0; k < i; k++) at += parts[k].size() + 1;
        fail_usage("--%s %s: '%s' at character %zu is not one of %s (example: int4:g32:sym)", flag.c_str(),
                   text.c_str(), i < parts.size() ? parts[i].c_str() : "", at + 1, choices.c_str());
    }
};

// the format and its width
inline void quantizer_parse_name(Quantizer& q, QuantizerText& t) {
    std::string all = "none", of_activations = all;
    const FormatTraits* found = nullptr;
    for (const FormatTraits& format : quant_formats)
        for (const FormatName& name : format.names) {
            all += std::string(", ") + name.text;
            if (format.activations) of_activations += std::string(", ") + name.text;
            if (!t.is(name.text)) continue;
            found = &format;
            q.spec.format = format.format, q.spec.bits = name.bits;
        }
    if (!found) t.refuse(t.next, all);
    if (is_flag_of(t.flag, "activations") && !found->activations)
        t.refuse(t.next, of_activations + ": the formats of activations");
    q.enabled = true;
    t.next++;
}

// s: one of `scopes`, or gN. Is it?
inline bool quantizer_take_scope(Quantizer& q, const std::string& s, const std::string& scopes) {
    if (s.size() > 1 && s.size() < 7 && s[0] == 'g' && s.find_first_not_of("0123456789", 1) == s.npos) {
        q.scope = QuantScope::group;
        q.group = std::stoi(s.substr(1));
        return q.group >= 8;
    }
    q.scope = s == "tensor" ? QuantScope::tensor : s == "128x128" ? QuantScope::block : QuantScope::channel;
    q.group = s == "128x128" ? 128 : 0;
    return trait_lists(scopes.c_str(), s) && s != "gN";
}

// Weights have channels, activations and the KV cache tokens
inline void quantizer_parse_scope(Quantizer& q, QuantizerText& t) {
    const FormatTraits& format = quant_traits(q.spec);
    const bool groups = std::string(format.scopes).find("gN") != std::string::npos;
    std::string scopes;
    for (const std::string s : {"tensor", "channel", "token", "gN", "128x128"}) {
        if (std::string(format.scopes).find(s) == std::string::npos) continue;
        if (t.weights() ? s == "token" : s != "token" && s != "gN") continue;
        scopes += (scopes.empty() ? "" : ", ") + s;
    }
    if (*format.scopes && t.more() && !(t.is("dq") && format.double_quant)) {
        const std::string& part = t.parts[t.next];
        if (!t.weights() && part == "tensor")
            fail_usage("--%s %s: one scale for a tensor would make a row depend on the batch it is in; use token",
                       t.flag.c_str(), t.text.c_str());
        if (!quantizer_take_scope(q, part, scopes) || (part.size() > 1 && part[0] == 'g' && !groups))
            t.refuse(t.next, scopes + (groups ? " (a group g8 or larger)" : ""));
        t.next++;
    } else if (*format.scope) {
        quantizer_take_scope(q, format.scope, scopes);
    } else {
        t.refuse(t.next, scopes);
    }
}

// sym or asym where the format has both, and the rule of the scale
inline void quantizer_parse_rule(Quantizer& q, QuantizerText& t) {
    const FormatTraits& format = quant_traits(q.spec);
    const size_t first = t.next;
    if (format.affine && (t.is("sym") || t.is("asym"))) q.spec.symmetric = t.parts[t.next++] == "sym";
    bool named = false;
    for (ScaleRule rule : {ScaleRule::amax, ScaleRule::amax7, ScaleRule::signedmax, ScaleRule::mse, ScaleRule::gauss})
        if (!named && t.is(scale_rule_name(rule)) && trait_lists(format.rules, scale_rule_name(rule))) {
            q.spec.rule = rule;
            named = true;
        }
    if (named && !q.spec.symmetric && (q.spec.rule == ScaleRule::amax7 || q.spec.rule == ScaleRule::signedmax))
        t.refuse(t.next, "amax, mse: the scale rules of asym");
    if (named && q.scope == QuantScope::tensor && q.spec.rule == ScaleRule::mse)
        t.refuse(t.next, "amax, amax7, signedmax: the scale rules of a whole tensor");
    t.next += named;
    if (t.more())
        t.refuse(t.next,
                 format.affine && t.next == first ? "sym, asym" : format.rules + std::string(", and then the end"));
}

// text -> Quantizer; fail_usage names the flag, the part that does not parse, and what there is
inline Quantizer quantizer_parse(const std::string& text, const char* flag) {
    Quantizer q;
    if (text == "none") return q;
    QuantizerText t(text, flag);
    quantizer_parse_name(q, t);
    quantizer_parse_scope(q, t);
    const FormatTraits& format = quant_traits(q.spec);
    if (*format.rules) quantizer_parse_rule(q, t);
    if (format.double_quant && t.is("dq")) {
        q.double_quant = true;
        t.next++;
    }
    if (t.more()) t.refuse(t.next, format.double_quant ? "dq" : "the end: nothing may follow");
    return q;
}

// A weight with its quantizer: its master, what the forward reads, and the state of its grid. Views; the memory is the
// model's (model/quantize.cuh).
struct QuantizedTensor {
    std::string name;
    int64_t rows = 0, cols = 0;
    Quantizer quantizer;                          // off: the forward reads floatX(master)
    size_t offset = 0;                            // into master, work and gradients
    float* master = nullptr;                      // [rows, cols]; null in a frozen base
    floatX* work = nullptr;                       // [rows, cols] = Q(master); null where packed codes are all there is
    float* grad = nullptr;                        // [rows, cols] or null
    uint32_t number = 0;                          // among the model's quantized tensors: a key of stochastic rounding
    int64_t groups = 0, group = 0;                // of a quantizer that is on
    int64_t tiles = 0;                            // see QuantGroups
    Grid* grid = nullptr;                         // [groups]
    ScaleState state;                             // what stands behind the grid
    LearnedGrid learned;                          // while the grid is trained
    int8_t *codes = nullptr, *initial = nullptr;  // [rows, cols] now and at load; initial: if flips are tracked
    int64_t* counts = nullptr;                    // [2] where the codes are: see quantized_tensor_refresh
    QuantNoise noise;                             // of the last refresh
    bool measured = false;
    bool given = false;                  // the grid came from outside and no codes have been made with it yet
    bool restored = false;               // ... and the parameters of a learned grid with it
    bool trained_grid = false;           // a method has found it before the weight is rounded, which keeps it
    bool foreign = false;                // its grid came from outside: the scales may be other 16-bit floats than ours
    bool fit_known = false;              // ... and whether packed codes can hold them is known (PackedRows)
    int64_t flips = 0, flips_total = 0;  // codes changed by the last refresh; codes that differ from those at load
    int64_t count() const { return rows * cols; }
};

// t gets quantizer q and the shape of its grid, no memory; fails where q's groups do not divide its rows. flag: that q
// is from
inline void quantized_tensor_init(QuantizedTensor& t, const Quantizer& q, const std::string& flag = "weights") {
    t.quantizer = q;
    t.group = t.groups = t.tiles = 0;
    if (!q.on()) return;
    if ((q.scope == QuantScope::group || q.scope == QuantScope::block) && t.cols % q.group)
        fail_usage(
            "--%s %s: group size %d does not divide the %lld inputs of %s; choose a divisor "
            "(such as g32 or g64), or another quantizer",
            flag.c_str(), quantizer_text(q).c_str(), q.group, (long long)t.cols, t.name.c_str());
    t.group = q.scope == QuantScope::tensor ? t.count() : q.scope == QuantScope::channel ? t.cols : q.group;
    t.groups = t.count() / t.group;
    t.tiles = q.scope == QuantScope::block ? t.cols / QUANT_TILE : 0;
}
inline QuantGroups quantized_tensor_groups(const QuantizedTensor& t) { return QuantGroups{t.groups, t.group, t.tiles}; }

// floats of ScaleState
inline int64_t scale_state_floats(const QuantizedTensor& t) {
    return t.quantizer.double_quant ? 1 + CEIL_DIV(t.groups, QUANT_NESTED)
                                    : (int64_t)quant_traits(t.quantizer.spec).tensor_scale;
}

// A grid from outside: of a file, or of a PTQ method; refresh keeps it while the mode is `kept`. grid: [groups] on the
// host. Fails unless every scale is a finite number other than 0 (where 0 is no group of zeros) and every zero point is
// a code. The codes of the next refresh count as the first.
inline void quantized_tensor_set_grid(QuantizedTensor& t, const Grid* grid, Device dev) {
    const Quantizer& q = t.quantizer;
    const bool zeros = quant_traits(q.spec).zero_scale;
    const float most = q.double_quant ? FLT_MAX : q.spec.symmetric ? 0.0f : quant_high(q.spec);  // see Grid
    for (int64_t g = 0; g < t.groups; g++)
        if (!std::isfinite(grid[g].scale) || (grid[g].scale == 0.0f && !zeros) || !(grid[g].zero >= 0.0f) ||
            grid[g].zero > most || (!q.double_quant && grid[g].zero != rintf(grid[g].zero)))
            fail("%s: group %lld of its grid has scale %g and zero point %g, which --weights %s cannot have",
                 t.name.c_str(), (long long)g, grid[g].scale, grid[g].zero, quantizer_text(q).c_str());
    copy_to_device(t.grid, grid, t.groups * sizeof(Grid), dev);
    device_synchronize(dev);  // the caller's array may go
    t.measured = t.given = t.foreign = true;
    t.fit_known = false;
}

// work = Q(w), w: [rows, cols], the master or what a hook made of it. t.counts: how many codes changed, and how many
// differ from those at load; both 0 the first time. noise: of stochastic rounding, without the tensor.
inline void quantized_tensor_refresh(QuantizedTensor& t, const float* w, QuantNoise noise, Device dev) {
    const Quantizer& q = t.quantizer;
    const bool first = !t.measured || t.given;
    bool measure = !t.measured || q.scale_mode == ScaleMode::dynamic;
    const int64_t n = t.count();
    noise.on = q.stochastic, noise.tensor = t.number;
    t.noise = noise;
    set_zero(t.counts, 2 * sizeof(int64_t), dev);
    QuantGroups shape = quantized_tensor_groups(t);
    if (q.scale_mode == ScaleMode::learned) {
        if (measure) quant_measure(t.grid, t.state, w, shape, q.spec, dev);
        learned_grid_forward(t.grid, t.learned, w, shape, q.spec, q.learned_scale, measure || (t.given && !t.restored),
                             dev);
        measure = false;
    }
    fake_quant_forward({t.work, t.codes, t.grid, t.state, t.counts}, w, shape, q.spec, measure, dev, noise);
    t.measured = true;
    t.given = t.restored = false;
    if (q.scale_mode != ScaleMode::kept) t.foreign = false;  // the grid is one of ours now
    if (first) {
        if (t.initial) copy_on_device(t.initial, t.codes, n, dev);
        set_zero(t.counts, 2 * sizeof(int64_t), dev);  // there were no codes before
    }
    if (t.initial && !first) codes_changed(t.counts + 1, t.codes, t.initial, n, q.spec, dev);
}

// dw: [rows, cols], in place: the gradient of Q(w) becomes that of w, by the straight-through rule or with the
// gradients of a grid that is trained. w: that of the refresh
inline void quantized_tensor_backward(QuantizedTensor& t, float* dw, const float* w, Device dev) {
    const Quantizer& q = t.quantizer;
    if (q.scale_mode == ScaleMode::learned)
        learned_backward(dw, t.learned, w, t.grid, quantized_tensor_groups(t), q.spec, q.learned_scale, t.noise, dev);
    else fake_quant_backward(dw, w, t.grid, quantized_tensor_groups(t), q.spec, q.ste, dev);
}

// whether q can be trained as it says, that is with --qat_scale learned and --rounding stochastic
inline void check_trained(const Quantizer& q) {
    const bool learned = q.scale_mode == ScaleMode::learned;
    if (!q.on() || !(learned || q.stochastic)) return;
    const FormatTraits& format = quant_traits(q.spec);
    const std::string text = quantizer_text(q), kind = learned_scale_name(q.learned_scale);
    if (q.stochastic && !format.affine)
        fail_usage("--weights %s: only integer formats have --rounding stochastic; use an int format, or leave it",
                   text.c_str());
    if (q.stochastic && !learned && q.ste.rule == SteRule::ewgs)
        fail_usage(
            "--weights %s: --ste ewgs looks at the distance to the nearest number, not to the one that --rounding "
            "stochastic drew; leave one of them",
            text.c_str());
    if (!learned) return;
    if (!*format.learned)
        fail_usage("--weights %s: its scales cannot be trained (--qat_scale learned); use an int format, or leave it",
                   text.c_str());
    if (!trait_lists(format.learned, kind))
        fail_usage("--weights %s: --learned_scale %s is not for this format; choose one of %s", text.c_str(),
                   kind.c_str(), format.learned);
    if (q.learned_scale == LearnedScale::pact && !q.spec.symmetric)
        fail_usage("--weights %s: --learned_scale pact moves one bound for both ends; use sym, or lsq", text.c_str());
    if (q.spec.rule == ScaleRule::signedmax)
        fail_usage("--weights %s: a learned scale is positive, that of signedmax may not be; use amax", text.c_str());
    if (q.learned_scale == LearnedScale::lsq_offset && q.spec.symmetric)
        fail_usage("--weights %s: --learned_scale lsq_offset learns a zero point; use asym, or lsq", text.c_str());
}

// ---------------------------------------------------------------------------------------------------------------------
// activations

// rows [T,C] as groups: a row (token), or C / group of them, each with a scale of its own
inline QuantGroups quantized_rows_groups(const Quantizer& q, int64_t T, int64_t C) {
    int64_t group = q.scope == QuantScope::group ? q.group : C;
    if (q.scope == QuantScope::tensor || q.scope == QuantScope::block)
        fail("activations in %s: a row would depend on its batch; use token", quantizer_text(q).c_str());
    if (C < 1 || C % group)
        fail_usage("--activations %s: group size %d does not divide rows of %lld; choose a divisor, or token",
                   quantizer_text(q, "token").c_str(), q.group, (long long)C);
    return QuantGroups{T * (C / group), group};
}

// out: [T,C] = Q(inp), each row measured by itself, so that it does not depend on its batch (nvfp4: t = 1). out may be
// inp.
inline void fake_quant_rows(floatX* out, const floatX* inp, int64_t T, int64_t C, const Quantizer& q, Device dev) {
    fake_quant_forward({out}, inp, quantized_rows_groups(q, T, C), q.spec, true, dev);
}

// dinp: [T,C], in place: the gradient of Q(inp) becomes that of inp. inp: what the forward was given
inline void fake_quant_rows_backward(floatX* dinp, const floatX* inp, int64_t T, int64_t C, const Quantizer& q,
                                     Device dev) {
    QuantGroups shape = quantized_rows_groups(q, T, C);
    if (shape.groups == 0 || q.ste.rule == SteRule::identity) return;
    Scratch grid(2 * (size_t)shape.groups, dev);
    quant_measure(reinterpret_cast<Grid*>(grid.data), ScaleState(), inp, shape, q.spec, dev);
    fake_quant_backward(dinp, inp, reinterpret_cast<const Grid*>(grid.data), shape, q.spec, q.ste, dev);
}
