// What an optimizer is to the rest of the program: one row (UpdateRule) that says which arrays it keeps for a tensor
// and how one step moves that tensor. A new optimizer is
//   1. a file NAME.cuh here with its row; the arithmetic is an operator of kernels/
//   2. its #include and its line in optimizer_rules() of optimizer.cuh
// and no more: memory, schedule, reset, saving and loading come from what the row says.
//
// State that is all zero bytes is the state before the first step, whatever its type.
//
// A forward-only optimizer (MeZO, Malladi et al. 2023, arXiv 2305.17333) has a `search` in place of `update`: called once a
// step, it moves the weights, asks for the loss there as often as it needs, and leaves the weights where they are to be. No
// backward runs, and no gradient is read.
#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>
#include "../kernels/rows.cuh"

// norms: and biases; embeddings: and the head; scales: the learned ones of quantizers
enum class ParamGroup { matrices, norms, embeddings, scales, adapters };
static constexpr const char* param_group_names[] = {"matrices", "norms", "embeddings", "scales", "adapters"};
static constexpr int PARAM_GROUPS = 5;

// learning_rate: the group's peak; 0: its tensors stay as they are
struct GroupRates {
    double learning_rate = 1e-6, weight_decay = 0.0;
};

// All that can be set
struct OptimizerConfig {
    std::string name = "adamw";                           // a row's
    float beta1 = 0.9f, beta2 = 0.999f, epsilon = 1e-8f;  // AdamW's
    float momentum = 0.95f;                               // Muon's
    bool nesterov = true;
    int ns_steps = 5;
    uint64_t seed = 0;            // of stochastic rounding
    double learning_rate = 1e-6;  // the peak of the schedule, which the groups' rates follow
    std::array<GroupRates, PARAM_GROUPS> groups;
    GroupRates& of(ParamGroup g) { return groups[(size_t)g]; }
    const GroupRates& of(ParamGroup g) const { return groups[(size_t)g]; }
};

// one rate for all groups; norms, biases and scales do not decay
inline void optimizer_rates(OptimizerConfig& c, double learning_rate, double weight_decay) {
    c.learning_rate = learning_rate;
    c.groups.fill({learning_rate, weight_decay});
    c.of(ParamGroup::norms).weight_decay = c.of(ParamGroup::scales).weight_decay = 0.0;
}

enum class StateType { f32, bf16, u8 };

inline size_t state_type_bytes(StateType t) {
    switch (t) {
        case StateType::f32:
            return 4;
        case StateType::bf16:
            return 2;
        case StateType::u8:
            break;
    }
    return 1;
}

struct StateArray {
    std::string name;
    StateType type;
    int64_t rows, cols;
    void* data = nullptr;  // [rows,cols]
    int64_t count() const { return rows * cols; }
    size_t bytes() const { return (size_t)count() * state_type_bytes(type); }
};

struct UpdateRule;

// A tensor as an optimizer sees it. weight and grad are set once the memory plan is carried out.
struct OptimizerTensor {
    std::string name;
    ParamGroup group;
    int64_t rows, cols;       // a vector is [1,n]
    uint32_t number = 0;      // among the tensors: a key of random numbers
    float* weight = nullptr;  // [rows,cols], the fp32 master
    float* grad = nullptr;    // [rows,cols]
    const UpdateRule* rule = nullptr;
    std::vector<StateArray> state;
    const RowList* trained = nullptr;  // the rows that are moved; null: all, always
    int64_t count() const { return rows * cols; }
    template <class T>
    T* array(size_t i) const {
        return static_cast<T*>(state[i].data);
    }
};

struct UpdateInfo {
    float learning_rate, weight_decay;
    float grad_scale;  // clipping
    int64_t step;      // from 1
    char* scratch;     // the rule's scratch_bytes
};

struct Optimizer;
struct OptimizerStep;

struct UpdateRule {
    const char *name, *help;
    bool (*takes)(const OptimizerTensor&);  // what it does not take gets adamw
    std::vector<StateArray> (*state)(const OptimizerTensor&);
    size_t (*scratch_bytes)(const OptimizerTensor&);
    void (*update)(const OptimizerTensor&, const UpdateInfo&, const OptimizerConfig&, Device);
    // null: by gradient. loss: of the step's batch with the weights as they are
    void (*search)(Optimizer&, const OptimizerStep&, const std::function<double()>& loss) = nullptr;
};
