// Muon for the hidden matrices, AdamW for the rest: 4 bytes of state a weight of a matrix. q, k, v and gate, up are
// matrices of their own, although they are neighbours in memory.
//
// What it costs: 6900 multiply-adds a weight for SmolLM2-135M's 210 matrices, as many as 2300 tokens of training (on a
// CPU 1600): little beside the tens of thousands of tokens of a step of GRPO, much beside a small batch. 16 core
// seconds a step on a CPU with AVX2, where AdamW takes 0.6.
#pragma once
#include "../kernels/muon.cuh"
#include "adamw.cuh"

inline const UpdateRule muon_rule = {
    "muon",
    "orthogonal updates of the hidden matrices, AdamW for the rest",
    [](const OptimizerTensor& t) { return t.group == ParamGroup::matrices; },
    [](const OptimizerTensor& t) {
        return std::vector<StateArray>{{"momentum", StateType::f32, t.rows, t.cols}};
    },
    [](const OptimizerTensor& t) { return muon_floats(t.rows, t.cols) * sizeof(float); },
    [](const OptimizerTensor& t, const UpdateInfo& info, const OptimizerConfig& c, Device dev) {
        muon_update(t.weight, t.array<float>(0), t.grad, reinterpret_cast<float*>(info.scratch), t.rows, t.cols,
                    info.grad_scale, {info.learning_rate, c.momentum, info.weight_decay, c.nesterov, c.ns_steps}, dev);
    }};
