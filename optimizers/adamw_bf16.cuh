// AdamW with bf16 moments, rounded at random: 4 bytes of state a weight. Learned scales, few and sensitive, keep fp32.
#pragma once
#include "../kernels/adamw_bf16.cuh"
#include "adamw.cuh"

inline const UpdateRule adamw_bf16_rule = {
    "adamw_bf16",
    "bf16 moments, 4 bytes a weight",
    [](const OptimizerTensor& t) { return t.group != ParamGroup::scales; },
    [](const OptimizerTensor& t) {
        return std::vector<StateArray>{{"m", StateType::bf16, t.rows, t.cols}, {"v", StateType::bf16, t.rows, t.cols}};
    },
    [](const OptimizerTensor&) { return (size_t)0; },
    [](const OptimizerTensor& t, const UpdateInfo& info, const OptimizerConfig& c, Device dev) {
        adamw_bf16_update(t.weight, t.array<bf16>(0), t.array<bf16>(1), t.grad, t.count(), info.grad_scale,
                          adamw_config(info, c), {c.seed, t.number, info.step}, dev);
    }};
