// AdamW with 8-bit moments: 2.03 bytes of state a weight. As in bitsandbytes, tensors below 4096 weights keep fp32
// moments: norms and biases gain nothing by it. So do learned scales.
#pragma once
#include "../kernels/adamw_8bit.cuh"
#include "adamw.cuh"

static constexpr int64_t ADAMW_8BIT_LEAST = 4096;  // weights

inline const UpdateRule adamw_8bit_rule = {
    "adamw_8bit",
    "8-bit moments, 2 bytes a weight",
    [](const OptimizerTensor& t) { return t.count() >= ADAMW_8BIT_LEAST && t.group != ParamGroup::scales; },
    [](const OptimizerTensor& t) {
        const int64_t blocks = CEIL_DIV(t.count(), ADAMW_8BIT_BLOCK);
        return std::vector<StateArray>{{"m", StateType::u8, t.rows, t.cols},
                                       {"v", StateType::u8, t.rows, t.cols},
                                       {"m_absmax", StateType::f32, 1, blocks},
                                       {"v_absmax", StateType::f32, 1, blocks}};
    },
    [](const OptimizerTensor&) { return (size_t)0; },
    [](const OptimizerTensor& t, const UpdateInfo& info, const OptimizerConfig& c, Device dev) {
        adamw_8bit_update(t.weight, {t.array<uint8_t>(0), t.array<uint8_t>(1), t.array<float>(2), t.array<float>(3)},
                          t.grad, t.count(), info.grad_scale, adamw_config(info, c), info.step, dev);
    }};
