// Quantizers of a model: who gets which, the working weights made of the masters, and the weights laid out for
// generation.
#pragma once
#include "parameters.cuh"

// ---------------------------------------------------------------------------------------------------------------------
// who gets which

// everything that --weights (or --activations: the linears alone) and --kv_cache can name
inline std::vector<QuantizerPlace> weight_places(const ModelConfig& config, bool linears_alone = false) {
    std::vector<QuantizerPlace> places;
    size_t n;
    for (const ParamTensor& t : model_tensors(config, &n))
        if (t.kind == ParamKind::linear || (!linears_alone && *t.label)) places.push_back({t.layer, t.label, t.name});
    return places;
}
inline std::vector<QuantizerPlace> cache_places(const ModelConfig& config) {
    std::vector<QuantizerPlace> places;
    for (int l = 0; l < config.num_hidden_layers; l++) places.push_back({l, "", ""});
    return places;
}
inline QuantizerPlace place_of(const ParamTensor& t) { return {t.layer, t.label, t.name}; }
inline bool is_weight(const ParamTensor& t) { return t.kind != ParamKind::norm && t.kind != ParamKind::bias; }

// the quantizer of tensor t; off for norms and biases
inline Quantizer quantizer_of(const QuantizerRules& rules, const ParamTensor& t) {
    return is_weight(t) ? quantizer_of(rules, place_of(t)) : Quantizer();
}

// fails if a rule names nothing or a quantizer's groups do not divide a tensor's inputs: to be asked before the long
// work
inline void check_weight_rules(const ModelConfig& config, const QuantizerRules& rules) {
    size_t n;
    rules_check(rules, weight_places(config));
    for (const ParamTensor& t : model_tensors(config, &n)) {
        QuantizedTensor qt;
        qt.name = t.name, qt.rows = t.rows, qt.cols = t.cols;
        quantized_tensor_init(qt, quantizer_of(rules, t), rules.flag);
    }
}

// The inputs of the linears get a quantizer; ste: the rule of their gradient. The parts of a linear share their input, so
// that rules that tell them apart are refused.
inline void model_quantize_activations(Model& m, const QuantizerRules& rules, Ste ste = SteRule::identity) {
    rules_check(rules, weight_places(m.config, true));
    m.activation_rules = rules;
    for (const ParamTensor& t : m.tensors) {
        if (t.kind != ParamKind::linear) continue;
        Linear& l = linear_of(m, t);
        Quantizer q = quantizer_of(rules, place_of(t));
        q.ste = ste;
        if (t.part > 0 && quantizer_text(q, "token") != quantizer_text(l.input, "token"))
            fail_usage(
                "--%s: %s and its neighbours in layer %d multiply the same input; name all of q,k,v and all of "
                "gate,up, "
                "or none",
                rules.flag.c_str(), l.parts[0].label, t.layer);
        if (q.scope == QuantScope::group && q.on() && t.cols % q.group)
            fail_usage("--%s %s: groups of %d do not divide the %lld inputs of %s; choose a divisor or token",
                       rules.flag.c_str(), quantizer_text(q, "token").c_str(), q.group, (long long)t.cols, t.label);
        l.input = q;
    }
}

// Generation reads codes at their own size where reading the weights is what a decode step waits for: on a device (in
// an fp32 build the product would unpack them first, so not there), and on the CPU where the working weights of the
// linears are beyond what stays in the caches; below, the laid-out working weights are faster.
inline bool generates_from_codes(const Model& m) {
    if (m.frozen) return false;  // it has nothing else
    if (quantized_parts(m).empty()) return false;
    if (m.dev.cuda) return sizeof(floatX) == 2;
    size_t bytes = 0;
    for (const ParamTensor& t : m.tensors) bytes += t.kind == ParamKind::linear ? t.count() * sizeof(floatX) : 0;
    return bytes > m.codes_beyond;
}

// use(linear, run) for each run of rows that can be packed as codes
template <class M, class F>
void each_packable(M& m, const F& use) {
    for (auto& layer : m.layers)
        for (auto* l : layer_linears(layer))
            for (auto& r : l->packed)
                if (r.can_pack) use(*l, r);
}

// views of the arrays of quantizers
inline void model_bind_quantizers(Model& m) {
    int64_t group = 0, code = 0, floats = 0;
    for (LinearPart* t : quantized_parts(m)) {
        const Quantizer& q = t->quantizer;
        t->grid = m.grids.data + group;
        if (q.scale_mode == ScaleMode::learned) {
            t->learned.a = m.learned.data + 2 * group, t->learned.b = t->learned.a + t->groups;
            if (m.learned_ranges.size) t->learned.range = m.learned_ranges.data + group;
        }
        if (scale_state_floats(*t)) t->state.tensor = m.scale_floats.data + floats;
        if (q.double_quant) t->state.codes = m.scale_codes.data + group, t->state.absmax = t->state.tensor + 1;
        t->codes = m.codes.size ? m.codes.data + code : nullptr;
        t->initial = m.initial.size ? m.initial.data + code : nullptr;
        t->counts = m.flip_counts.data + 2 * t->number;
        floats += scale_state_floats(*t), group += t->groups, code += t->count();
    }
}

// The weights get the quantizers that the rules have for them; track_flips: their codes are kept to be compared
inline void model_quantize(Model& m, const QuantizerRules& rules, bool track_flips) {
    rules_check(rules, weight_places(m.config));
    m.weight_rules = rules;
    int64_t groups = 0, codes = 0, floats = 0;
    bool learned = false, lwc = false, nested = false;
    uint32_t number = 0;
    for (const ParamTensor& t : m.tensors) {
        LinearPart* p = part_of(m, t);
        if (!p) continue;
        quantized_tensor_init(*p, quantizer_of(rules, t), rules.flag);
        const Quantizer& q = p->quantizer;
        if (!q.on()) continue;
        p->number = number++;
        groups += p->groups, floats += scale_state_floats(*p), codes += p->count();
        learned |= q.scale_mode == ScaleMode::learned;
        lwc |= q.scale_mode == ScaleMode::learned && q.learned_scale == LearnedScale::lwc;
        nested |= q.double_quant;
    }
    for (Layer& l : m.layers)
        for (Linear* linear : layer_linears(l)) linear_plan_packing(*linear);
    if (number == 0) return;
    m.grids.allocate(groups, "quantization scales", "", m.dev);
    m.scale_floats.allocate(floats, "quantization scales", "", m.dev);
    m.learned.allocate(learned ? 2 * groups : 0, "learned scales", "", m.dev);
    m.learned_ranges.allocate(lwc ? groups : 0, "learned scales", "", m.dev);
    m.scale_codes.allocate(nested ? groups : 0, "quantization scales", "", m.dev);
    if (track_flips || generates_from_codes(m)) m.codes.allocate(codes, "quantization codes", "", m.dev);
    if (track_flips) m.initial.allocate(codes, "quantization codes at load", "", m.dev);
    if (generates_from_codes(m)) {
        size_t bytes = 0;
        each_packable(m, [&](const Linear& l, const PackedRows& r) { bytes += packed_rows_bytes(l, r, m.dev); });
        m.packed_codes.allocate(bytes, "packed codes for generation", "", m.dev);
    }
    m.flip_counts.allocate(2 * number, "code-flip counters", "", m.dev);
    when_allocated(m.dev, [&m] { model_bind_quantizers(m); });
}

// ---------------------------------------------------------------------------------------------------------------------
// who got which, as it is printed

// bits of a weight where it is stored as codes: those of the code, of its scales and all that stands behind them
inline double part_bits(const QuantizedTensor& t) {
    const Quantizer& q = t.quantizer;
    const bool grouped = q.scope == QuantScope::group || q.scope == QuantScope::block;
    const QuantizedWeight w = quantized_weight(q.spec, quantized_storage(q.spec, q.double_quant), {t.rows, 0, 0},
                                               t.cols, grouped ? q.group : t.cols, WeightLayout::panels);
    return quantized_weight_bits_per_weight(w);
}

// of a weight as it is, quantized or not
inline double weight_bits(const LinearPart& p) {
    return p.quantizer.on() ? part_bits(p) : 8.0 * sizeof(floatX);
}

// bits of a weight on average, over the linears of the layers and what else is quantized
inline double bits_per_weight(const Model& m) {
    double bits = 0.0, weights = 0.0;
    for (const ParamTensor& t : m.tensors) {
        const LinearPart* p = part_of(m, t);
        if (!p || (t.layer < 0 && !p->quantizer.on())) continue;
        bits += weight_bits(*p) * (double)t.count(), weights += (double)t.count();
    }
    return weights > 0.0 ? bits / weights : 0.0;
}

// Bytes of the model as it is deployed: codes where it is quantized, 16 bits for every other number, an adapter's too
inline double deployed_bytes(const Model& m) {
    double bits = 16.0 * (m.lora.on() ? (double)m.lora.num_params : 0.0);
    for (const ParamTensor& t : m.tensors) {
        const LinearPart* p = part_of(m, t);
        bits += (p && p->quantizer.on() ? part_bits(*p) : 16.0) * (double)t.count();
    }
    return bits / 8.0;
}

// "0-2,5" of sorted numbers
inline std::string ranges_text(const std::vector<int>& numbers) {
    std::string text;
    for (size_t i = 0; i < numbers.size();) {
        size_t n = i;
        while (n + 1 < numbers.size() && numbers[n + 1] == numbers[n] + 1) n++;
        text += (text.empty() ? "" : ",") + std::to_string(numbers[i]);
        if (n > i) text += "-" + std::to_string(numbers[n]);
        i = n + 1;
    }
    return text;
}

// One line a quantizer: its text, bits a weight, and which weights have it, as "q,k of layers 0-3"
inline std::string quantizer_table(const Model& m) {
    struct Row {
        std::string text, label;
        std::vector<int> layers;
        double bits, weights;
    };
    std::vector<Row> rows;
    for (const ParamTensor& t : m.tensors) {
        const LinearPart* p = part_of(m, t);
        if (!p || (t.layer < 0 && !p->quantizer.on())) continue;
        const std::string text = quantizer_text(p->quantizer);
        const double each = weight_bits(*p);
        auto row =
            std::find_if(rows.begin(), rows.end(), [&](const Row& r) { return r.text == text && r.label == t.label; });
        if (row == rows.end()) row = rows.insert(rows.end(), Row{text, t.label, {}, 0.0, 0.0});
        if (t.layer >= 0) row->layers.push_back(t.layer);
        row->bits += each * (double)t.count(), row->weights += (double)t.count();
    }
    for (size_t i = 0; i < rows.size(); i++)  // parts with the same quantizer in the same layers
        for (size_t k = i + 1; k < rows.size();) {
            const bool joins = rows[k].text == rows[i].text && rows[k].layers == rows[i].layers;
            if (joins) {
                rows[i].bits += rows[k].bits, rows[i].weights += rows[k].weights;
                rows[i].label += "," + rows[k].label;
                rows.erase(rows.begin() + (std::ptrdiff_t)k);
            } else {
                k++;
            }
        }
    std::string table;
    for (const Row& r : rows) {
        const std::string where = r.layers.empty() ? r.label : r.label + " of layers " + ranges_text(r.layers);
        table += format("%s%-16s %6.3f bits a weight  %s\n", table.empty() ? "weights     " : "            ",
                        r.text.c_str(), r.bits / r.weights, where.c_str());
    }
    if (rows.size() > 1) table += format("            %-16s %6.3f bits a weight\n", "together", bits_per_weight(m));
    return table;
}

// a measured grid of weights that were not trained yet is forgotten: training begins here
inline void model_forget_grids(Model& m) {
    for (LinearPart* p : quantized_parts(m)) p->measured = false;
}

// ---------------------------------------------------------------------------------------------------------------------
// an adapter

// On the linears that config.target names ("all", or a list of q,k,v,o,gate,up,down). Inside the quantizer it is a hook:
// what is quantized is W + s B A, and the gradient of that goes to A and B (L4Q).
inline void model_adapt(Model& m, const LoraConfig& config, uint64_t seed, bool training) {
    std::vector<LoraPlace> places;
    for (Layer& layer : m.layers)
        for (Linear* l : layer_linears(layer)) {
            LoraPlace place = {&l->adapter, {}};
            for (size_t i = 0; i < l->parts.size(); i++) {
                const LinearPart& p = l->parts[i];
                if (!list_has(config.target, p.label)) continue;
                place.tensors.push_back({p.name, (int)i, p.row0, p.rows, p.cols, 0, 0});
            }
            if (!place.tensors.empty()) places.push_back(place);
        }
    lora_allocate(m.lora, config, places, seed, training, m.dev);
    if (!config.inside_quantizer) return;
    for (Layer& layer : m.layers)
        for (Linear* l : layer_linears(layer))
            for (int i = 0; i < l->adapter.count; i++) {
                const int tensor = l->adapter.first + i;
                LinearPart& p = l->parts[m.lora.tensors[tensor].part];
                p.quantizer.ste = SteRule::clip;  // M of methods' formula, see adapter.cuh
                WeightHook hook;
                hook.before_quantize = [&m, tensor](LinearPart&, const float* w) -> const float* {
                    lora_combine(m.lora, m.lora.combined.data, w, m.lora.tensors[tensor], m.dev);
                    return m.lora.combined.data;
                };
                hook.at_gradient = [&m, tensor](LinearPart&, float* dw, const float*) {
                    lora_inside_backward(m.lora, dw, m.lora.tensors[tensor], m.dev);
                };
                p.hooks.push_back(hook);
            }
}

// ---------------------------------------------------------------------------------------------------------------------
// what the forward reads, made of the masters

// What m's forward reads, of the masters of `from`, which is m itself or a model of the same configuration: from's hooks
// and bases, m's quantizers. quantized: Q(W); else full precision
inline void model_work_of(Model& m, Model& from, bool quantized) {
    m.work_quantized = quantized;
    for (const ParamTensor& t : from.tensors) {
        const float* w = from.master.data + t.offset;
        if (LinearPart* p = part_of(from, t)) w = part_source(*p, from.dev);
        LinearPart* p = part_of(m, t);
        if (p && quantized && p->quantizer.on()) quantized_tensor_refresh(*p, w, m.noise, m.dev);
        else convert_forward(m.work.data + t.offset, w, t.count(), m.dev);
    }
}

// Working weights from masters: after loading and after every optimizer step. quantized: Q(W); else full precision, which
// a Pass must then ask for. again: the second time after a step, whose flips are those of both.
inline void model_refresh(Model& m, bool quantized = true, bool again = false) {
    NVTX_RANGE("quantize_weights");
    if (m.lora.on()) lora_refresh(m.lora, m.dev);
    m.loading.reset();
    m.work_quantized = quantized;
    if (m.frozen || !m.master.size) return;
    model_work_of(m, m, quantized);
    if (!quantized || !m.flip_counts.size) return;
    std::vector<int64_t> counts(m.flip_counts.size);
    copy_to_host(counts.data(), m.flip_counts.data, m.flip_counts.bytes(), m.dev);
    for (LinearPart* p : quantized_parts(m)) {
        p->flips = (again ? p->flips : 0) + (p->initial ? counts[2 * p->number] : 0);
        p->flips_total = p->initial ? counts[2 * p->number + 1] : 0;
    }
}

// Whether codes, without memory, can hold the scales of this run, in the storage that they get. A file's grid is looked at
// on the host once, for it stays as it is while it is kept.
inline bool packed_rows_fit(Linear& l, PackedRows& r, QuantizedWeight& codes, const QuantizedSources& sources,
                            Device dev) {
    bool foreign = false, known = true;
    for (int i = 0; i < r.parts; i++) {
        LinearPart& p = l.parts[r.first_part + i];
        foreign |= p.foreign, known &= !p.foreign || p.fit_known;
        p.fit_known = p.foreign;
    }
    if (!foreign) return true;
    if (!known) {
        r.fits = quantized_fit_scales(codes, sources, dev);
        r.fit_storage = codes.storage;
    }
    codes.storage = r.fit_storage;
    return r.fits;
}

// Generation multiplies thousands of times with the same weights: lay them out once as its products want them, and say
// so in the pass. The results have the same bits (cpu/gemm.h, kernels/matmul_quantized.cuh). Undo with model_unpack
// before the weights change.
inline Pass model_pack(Model& m, Pass pass = Pass()) {
    NVTX_RANGE("pack_weights");
    char* memory = m.packed_codes.data;
    for (Layer& layer : m.layers)
        for (Linear* l : layer_linears(layer))
            for (PackedRows& r : l->packed) {
                if (m.frozen && r.codes.N) continue;  // packed for good
                QuantizedSources sources;
                for (int i = 0; i < r.parts; i++) sources.part[i] = quantized_source(l->parts[r.first_part + i]);
                r.codes = QuantizedWeight();
                if (r.can_pack && m.work_quantized && !m.frozen && m.packed_codes.size) {
                    QuantizedWeight codes = packed_rows_codes(*l, r, m.dev);
                    // where the storage cannot hold a file's scales, the working weights are read
                    if (packed_rows_fit(*l, r, codes, sources, m.dev)) {
                        r.codes = codes;
                        quantized_weight_place(r.codes, memory);
                        quantized_weight_pack(r.codes, sources, m.dev);
                        memory += packed_rows_bytes(*l, r, m.dev);
                        continue;
                    }
                }
                if (!m.dev.cuda) r.layout = pack_weight_nt(l->parts[r.first_part].work, r.rows, l->cols);
            }
    if (!m.dev.cuda) m.head_layout = pack_weight_nt(m.head.work, m.V(), m.C());
    pass.packed = true;
    return pass;
}

inline void model_unpack(Model& m) {
    for (Layer& layer : m.layers)
        for (Linear* l : layer_linears(layer))
            for (PackedRows& r : l->packed) {
                r.layout = PackedWeight<floatX>();
                if (!m.frozen) r.codes = QuantizedWeight();
            }
    m.head_layout = PackedWeight<floatX>();
}
