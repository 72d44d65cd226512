// AdamW with fp32 moments: 8 bytes of state a weight. Also what every other optimizer leaves to it.
#pragma once
#include "../kernels/adamw.cuh"
#include "update_rule.cuh"

inline AdamWConfig adamw_config(const UpdateInfo& info, const OptimizerConfig& c) {
    return {info.learning_rate, c.beta1, c.beta2, c.epsilon, info.weight_decay};
}

inline const UpdateRule adamw_rule = {
    "adamw",
    "fp32 moments, 8 bytes a weight",
    [](const OptimizerTensor&) { return true; },
    [](const OptimizerTensor& t) {
        return std::vector<StateArray>{{"m", StateType::f32, t.rows, t.cols}, {"v", StateType::f32, t.rows, t.cols}};
    },
    [](const OptimizerTensor&) { return (size_t)0; },
    [](const OptimizerTensor& t, const UpdateInfo& info, const OptimizerConfig& c, Device dev) {
        adamw_update(t.weight, t.array<float>(0), t.array<float>(1), t.grad, t.count(), info.grad_scale,
                     adamw_config(info, c), info.step, dev);
    }};
