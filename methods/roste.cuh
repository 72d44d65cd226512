// RoSTE: quantized training with adaptive rotation (Wei et al. 2025, arXiv 2502.09003). A linear is quantized as it is or
// in the basis of a Hadamard matrix (linear_set_basis of model/linear.cuh), whichever loses less, and its weights are
// trained through that by the straight-through rule, in their own basis:
//   out = Q_x(x R^T) Q_w(W R^T)^T,  R in {1, H}
//   E(R) = ||Q_w(W R^T) - W R^T||^2 + 1/n sum over n tokens of ||Q_x(x R^T) - x R^T||^2      R: the smaller E, 1 if equal
// W: all parts of the linear, with an adapter inside the quantizer W + s B A; x: its inputs in full precision on some of
// the training text. A term without a quantizer is left out; a linear with neither is left as it is. The paper chooses
// once, with the weights that training begins with (every=0), and finds that rotating everything is worse than either.
//
// What differs from the paper: H has no random signs (its diag(+-1)), and it is applied to the input of every linear,
// where the paper merges the rotations of the hidden state and of the values into the weights. Its clip factor c in
// {1, 0.95, 0.9} of the scale is no rule of a quantizer here; mse searches a scale of each group instead. Its W4A4KV4:
//   --weights int4:channel --activations int4:token:asym --kv_cache int4:token:asym
// The trap: E chooses by squared errors of numbers, not of the output, in which a weight and an input of different size
// weigh differently; and every K steps means codes of which half change at once when a linear turns.
#pragma once
#include <cstdio>
#include "../kernels/global_norm.cuh"
#include "../kernels/grid_pull.cuh"
#include "training_method.cuh"

// E(1) and E(H) of a linear
struct RosteError {
    double plain = 0.0, rotated = 0.0;
};

struct RosteMethod : TrainingMethod {
    static constexpr int64_t piece = 1 << 20;  // numbers whose difference is taken at once
    std::string which;
    int64_t every, samples;
    Buffer<int8_t> chosen;      // [4 L], a linear after the other
    Buffer<float> differences;  // [2,piece]
    std::vector<RosteError> errors;

    explicit RosteMethod(const Settings& s)
        : which(s.word("rotate")), every(s.whole("every")), samples(s.whole("samples")) {}

    void attach() override {
        Model& m = *run.model;
        if (m.lora.on() && !m.lora.inside())
            fail_usage(
                "--methods roste: the base of an adapter stays as it was quantized; take --lora_inside_quantizer, "
                "or leave the adapter out");
        if (run.basis_given)
            fail_usage("--methods roste chooses which linears are rotated; leave --hadamard out");
        bool any = false;
        for (int i = 0; i < 4 * m.L(); i++) any = any || is_quantized(linear(i));
        if (!any)
            fail_usage("--methods roste: no linear is quantized; add --weights or --activations, such as int4:channel");
        if (m.config.transformed)
            fail_usage(
                "--methods roste: the model's inputs have learned transforms already (quantize --ptq flatquant); leave "
                "roste out");
        if (m.config.rotate_down)
            fail_usage("--methods roste: the inputs of down are rotated already (quantize --rotations r4)");
        if (every > 0 && which != "adaptive")
            fail_usage("--methods roste: every=%lld is for rotate=adaptive", (long long)every);
        for (const LinearPart* p : quantized_parts(m))
            if (every > 0 && p->quantizer.scale_mode != ScaleMode::dynamic)
                fail_usage(
                    "--methods roste:every=%lld: scales that are kept or trained are of one basis; take --qat_scale "
                    "dynamic, or every=0",
                    (long long)every);
        model_plan_basis(m);
        chosen.allocate((size_t)m.L() * 4, "choices of roste", "", m.dev);
        differences.allocate(2 * piece, "choices of roste", "", m.dev);
    }

    void start() override {
        Model& m = *run.model;
        const RotatedLinears before = rotated_linears(m);
        choose();
        for (int i = 0; i < 4 * m.L(); i++)
            if (linear(i).rotated != (bool)before[i])
                for (LinearPart& p : linear(i).parts)  // its grid and codes begin here
                    p.measured = p.given = p.restored = p.foreign = p.fit_known = false;
        model_refresh(m);
        print();
        print_errors();
    }

    void resumed() override {
        Model& m = *run.model;
        std::vector<int8_t> host(chosen.size);
        copy_to_host(host.data(), chosen.data, chosen.bytes(), m.dev);
        model_set_basis(m, RotatedLinears(host.begin(), host.end()));
        print();
    }

    bool after_refresh(const StepInfo& step) override {
        if (every == 0 || step.step % every) return false;
        choose();
        return true;  // the working weights have gone in any case
    }

    std::vector<NamedArray> arrays() override {
        std::vector<NamedArray> list;
        add_array(list, "roste_rotated", chosen);
        return list;
    }

    void metrics(nlohmann::ordered_json& j) const override {
        const RotatedLinears rotated = rotated_linears(*run.model);
        j["roste/rotated"] = (double)std::count(rotated.begin(), rotated.end(), 1) / (double)rotated.size();
    }

    // ---- the choice ----

    Linear& linear(int i) const { return *layer_linears(run.model->layers[i / 4])[i % 4]; }

    static bool is_quantized(const Linear& l) {
        bool any = l.input.on();
        for (const LinearPart& p : l.parts) any = any || p.quantizer.on();
        return any;
    }

    // Sets the bases; the working weights are lost
    void choose() {
        Model& m = *run.model;
        RotatedLinears rotated((size_t)m.L() * 4);
        errors.assign(rotated.size(), RosteError());
        model_set_basis(m, rotated);
        model_refresh(m, false);
        if (m.activation_rules.on()) add_input_errors();
        for (int i = 0; i < 4 * m.L(); i++) {
            Linear& l = linear(i);
            for (LinearPart& p : l.parts) errors[i].plain += weight_error(p);
            linear_set_basis(l, true);
            for (LinearPart& p : l.parts) errors[i].rotated += weight_error(p);
            rotated[i] = which == "all" ? is_quantized(l) : which == "adaptive" && errors[i].rotated < errors[i].plain;
        }
        model_set_basis(m, rotated);
        const std::vector<int8_t> host(rotated.begin(), rotated.end());
        copy_to_device(chosen.data, host.data(), host.size(), m.dev);
        device_synchronize(m.dev);  // host goes
    }

    // sum of (x - q)^2; x, q: [n]
    double squared_error(const float* x, const floatX* q, int64_t n) {
        const Device dev = run.model->dev;
        set_zero(differences.data, (size_t)n * sizeof(float), dev);
        grid_pull_add(differences.data, x, q, n, 1.0f, dev);
        return sum_of_squares(differences.data, n, dev);
    }

    // in the basis that p has
    double weight_error(LinearPart& p) {
        if (!p.quantizer.on()) return 0.0;
        const Device dev = run.model->dev;
        const float* w = part_source(p, dev);
        const int64_t state = scale_state_floats(p);
        Scratch memory(2 * (size_t)p.groups + (size_t)state + (size_t)CEIL_DIV(p.groups, 4), dev);
        QuantOutput q = {p.work};
        q.grid = reinterpret_cast<Grid*>(memory.data);
        if (state) q.state.tensor = memory.data + 2 * p.groups;
        if (p.quantizer.double_quant) {
            q.state.absmax = q.state.tensor + 1;
            q.state.codes = reinterpret_cast<uint8_t*>(memory.data + 2 * p.groups + state);
        }
        fake_quant_forward(q, w, quantized_tensor_groups(p), p.quantizer.spec, true, dev);
        double sum = 0.0;
        for (int64_t at = 0; at < p.count(); at += piece)
            sum += squared_error(w + at, p.work + at, std::min(piece, p.count() - at));
        return sum;
    }

    // of x [T,cols], a row with scales of its own
    double input_error(const Linear& l, const floatX* x, int64_t T) {
        const Device dev = run.model->dev;
        floatX* q = run.acts->quantized;
        float* wide = differences.data + piece;
        fake_quant_rows(q, x, T, l.cols, l.input, dev);
        double sum = 0.0;
        for (int64_t at = 0, n; at < T * l.cols; at += n) {
            n = std::min(piece, T * l.cols - at);
            convert_widen(wide, x + at, n, dev);
            sum += squared_error(wide, q + at, n);
        }
        return sum;
    }

    // the sequences of the sample, as many as are asked for
    std::vector<Batch> sequences() const {
        std::vector<Batch> batches;
        int64_t left = samples;
        for (const Batch& b : run.sample) {
            if (left > 0) batches.emplace_back();
            for (size_t i = 0; i + 1 < b.starts.size() && left > 0; i++, left--)
                batch_add_sequence(batches.back(), b.tokens.data() + b.starts[i], b.starts[i + 1] - b.starts[i]);
        }
        return batches;
    }

    // The forward in full precision and without a basis, a layer after the other
    void add_input_errors() {
        Model& m = *run.model;
        Activations& a = *run.acts;
        const int C = m.C();
        const float eps = m.config.rms_norm_eps;
        std::vector<RosteError> sums(errors.size());
        int64_t tokens = 0;
        for (const Batch& batch : sequences()) {
            rope_extend(m.rope, *std::max_element(batch.positions.begin(), batch.positions.end()) + 1, m.dev);
            const BatchView b = batch_view(a.batch, batch, m.dev);
            embedding_forward(a.residual[0], b.tokens, m.embed.work, b.T, C, m.dev);
            rmsnorm_forward(a.layers[0].ln1, a.layers[0].ln1_rstd, a.residual[0], m.layers[0].ln1.work, {b.T, C}, eps,
                            m.dev);
            for (int l = 0; l < m.L(); l++) {
                layer_forward(m, a, l, a.residual[l], b, full_precision(), nullptr);
                const LayerActivations& y = a.layers[l];
                floatX* const inputs[] = {y.ln1, y.att, y.ln2, y.act};
                for (int p = 0; p < 4; p++) {
                    const Linear& w = linear(4 * l + p);
                    if (!w.input.on()) continue;
                    const Hadamard h = hadamard_for(w.cols);
                    sums[4 * l + p].plain += input_error(w, inputs[p], b.T);
                    hadamard_forward(inputs[p], w.cols, h, b.T, w.cols / h.N(), m.dev);
                    sums[4 * l + p].rotated += input_error(w, inputs[p], b.T);
                }
                if (l + 1 == m.L()) break;
                const LayerActivations& next = a.layers[l + 1];
                fused_residual_rmsnorm_forward(a.residual[l + 1], next.ln1, next.ln1_rstd, y.mid, a.branch,
                                               m.layers[l + 1].ln1.work, {b.T, C}, eps, m.dev);
            }
            tokens += b.T;
        }
        for (size_t i = 0; i < sums.size() && tokens; i++) {
            errors[i].plain += sums[i].plain / (double)tokens;
            errors[i].rotated += sums[i].rotated / (double)tokens;
        }
    }

    // ---- what is printed ----

    void print() const { printf("rotated     %s\n", rotated_list(rotated_linears(*run.model)).c_str()); }

    // summed over the layers
    void print_errors() const {
        for (int p = 0; p < 4; p++) {
            RosteError sum;
            double now = 0.0;
            for (int i = p; i < (int)errors.size(); i += 4) {
                sum.plain += errors[i].plain, sum.rotated += errors[i].rotated;
                now += linear(i).rotated ? errors[i].rotated : errors[i].plain;
            }
            printf("            %-8s squared error %.4g as they are, %.4g rotated, %.4g as chosen\n", product_names[p],
                   sum.plain, sum.rotated, now);
        }
        fflush(stdout);
    }
};

inline const MethodRow roste_row = {
    "roste",
    "each linear quantized as it is or in a rotated basis, whichever loses less, in place of --hadamard (RoSTE, arXiv "
    "2502.09003)",
    {{"rotate", "adaptive", "adaptive|all|none",
      "which linears: chosen by the error of weights and inputs, all, or none"},
     {"every", "0", "whole [0, 1000000000]", "optimizer steps after which it is chosen again; 0: once, at the start"},
     {"samples", "128", "whole [1, 1000000]",
      "texts whose activations are looked at, at most those of the first step"}},
    {{"freeze", "a frozen code belongs to a weight of one basis"}},
    [](const Settings& s) -> std::unique_ptr<TrainingMethod> { return std::make_unique<RosteMethod>(s); }};
