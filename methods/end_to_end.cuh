// E2E-QP: scales alone are trained end to end, under codes that stay (the second phase of EfficientQAT: Chen et al. 2024,
// arXiv 2407.11062; the first, Block-AP, is quantize --ptq blockwise:forcing=0).
//   Q(w) = (q - z) s,  q and z as the model's folder has them,  ds = sum over the group of dQ (q - z)
// LSQ's gradient (kernels/quant_backward.cuh) is another: it moves the grid under weights that stay, q being rounded
// anew, and is 0 for weights that lie on their grid. Here the masters are kept on (q - z) s, so that the quantizer gives
// q again, LSQ's sum is exactly 0, and ours takes its place. Norms and embeddings are the optimizer's affair: the paper
// leaves them as they are.
//
//   quantize --model DIR --weights int2:g64:asym --ptq blockwise:forcing=0 ... --output_dir block
//   sft --model block/checkpoint-0 --qat_scale learned --methods e2e_qp --scale_learning_rate 2e-5
//       --group_learning_rates 'matrices=0, norms=0, embeddings=0'
//
// State: none but the masters, which training has anyway. The trap: the masters that GPTQ or blockwise left beside the
// codes are given up at the start.
#pragma once
#include "../kernels/code_scale.cuh"
#include "training_method.cuh"

struct EndToEndMethod : TrainingMethod {
    void attach() override {
        Model& m = *run.model;
        method_needs_masters(m, "e2e_qp");
        method_needs_own_basis(m, "e2e_qp");
        method_needs_integers(m, "e2e_qp");
        const Device dev = m.dev;
        WeightHook hook;
        hook.before_update = [dev](LinearPart& p, float* dw, const UpdateMoment&) {
            code_scale_backward(p.learned.da, dw, p.codes, p.grid, quantized_tensor_groups(p), p.quantizer.spec, dev);
        };
        hook.after_step = [this](LinearPart& p, const StepInfo&) { settle(p); };
        for (LinearPart* p : quantized_parts(m)) {
            const Quantizer& q = p->quantizer;
            if (q.scale_mode != ScaleMode::learned || q.learned_scale != LearnedScale::lsq)
                fail_usage("--methods e2e_qp trains scales: add --qat_scale learned, with --learned_scale lsq");
            if (q.stochastic)
                fail_usage("--methods e2e_qp keeps codes, and --rounding stochastic draws them anew; leave it out");
            p->hooks.push_back(hook);
        }
    }

    void settle(LinearPart& p) const {
        code_scale_forward(p.master, p.learned.a, p.codes, p.grid, quantized_tensor_groups(p), p.quantizer.spec,
                           run.model->dev);
    }
    void start() override {
        for (LinearPart* p : quantized_parts(*run.model)) settle(*p);
    }
};

inline const MethodRow end_to_end_row = {
    "e2e_qp",
    "scales alone, under codes that stay (E2E-QP of EfficientQAT, arXiv 2407.11062); with --group_learning_rates "
    "'matrices=0, norms=0, embeddings=0'",
    {},
    {{"cage", "codes that stay are on their grid"},
     {"dampen", "codes that stay are on their grid"},
     {"efqat", "it trains weights, and e2e_qp none"},
     {"freeze", "e2e_qp freezes all codes"},
     {"roste", "it chooses how weights are quantized, and e2e_qp keeps their codes"}},
    [](const Settings&) -> std::unique_ptr<TrainingMethod> { return std::make_unique<EndToEndMethod>(); }};
