// The policy loss of GRPO, its gradient for each token's log-probability, and what a step logs about both.
//
//   rho = exp(logp - old)                     old: the log-probability at which the token was sampled
//   l   = loss(rho, A) + beta k3              loss: a row of POLICY_LOSSES; GRPO's is clip
//   k3  = exp(ref - logp) - (ref - logp) - 1  (Schulman 2020)
//   dlogp = weight dl/dlogp,  loss = sum of weight l
//
// Shao et al. 2024 (DeepSeekMath, arXiv 2402.03300), eq. 3 and 4; weight is the share of the token in the loss
// (grpo.cuh). logp, old, ref, advantage, weight, entropy, dlogp: (R), a token each. In double: the log-ratios are
// differences of nearly equal numbers, and a sum over 10^5 tokens shall not depend on its partition in more than the
// last bits.
//
// Sums accumulate over the calls of a pass (its micro-batches), so that a pass brings one PolicySums back from the
// device. The CPU adds token by token; the device by blocks of POLICY_BLOCK tokens, each a tree, then the blocks in a
// fixed order: the bits depend on R alone.
// Traffic: 36 R bytes (20 for float inputs, 8 for the weight, 4 for dlogp, 4 for ref if beta > 0), all read or written
// once. Launch: a thread a token, then one block for the sums.
//
// The trap: PolicySums does not start at zero bytes (ratio_min, clip_low_min); policy_sums_reset starts it. How a pass is
// cut into calls shall not show, so that shares of clipped tokens have their least and most over the parts of the batch
// that policy_sums_end_part ends (gradient accumulation; TRL's batches of a device), not over the calls.
#pragma once
#include <cmath>
#include "../runtime/buffer.h"
#include "../runtime/nearest.h"
#include "../runtime/words.h"
#include "policy_losses/cispo.cuh"
#include "policy_losses/clip.cuh"

// what --policy_loss calls them; a new one is a file in policy_losses/, its #include and its row
// clang-format off
#define POLICY_LOSSES(LOSS)  \
    LOSS(clip, ClipLoss)     \
    LOSS(cispo, CispoLoss)
// clang-format on

#define POLICY_LOSS_ENUMERATOR(name, Loss) name,
enum class PolicyLoss { POLICY_LOSSES(POLICY_LOSS_ENUMERATOR) };
#undef POLICY_LOSS_ENUMERATOR

inline PolicyLoss policy_loss_named(const std::string& text) {
#define POLICY_LOSS_NAME(name, Loss) #name,
    const std::vector<std::string> names = {POLICY_LOSSES(POLICY_LOSS_NAME)};
#undef POLICY_LOSS_NAME
    for (size_t i = 0; i < names.size(); i++)
        if (text == names[i]) return (PolicyLoss)i;
    fail_usage("--policy_loss %s: not one of %s%s", text.c_str(), join_words(names).c_str(),
               did_you_mean(text, names).c_str());
}

HOST_DEVICE RatioLoss policy_ratio_loss(PolicyLoss kind, const PolicyRatio& r, double epsilon_low, double epsilon_high) {
#define POLICY_LOSS_CASE(name, Loss) \
    case PolicyLoss::name:           \
        return Loss::at(r, epsilon_low, epsilon_high);
    switch (kind) { POLICY_LOSSES(POLICY_LOSS_CASE) }
#undef POLICY_LOSS_CASE
    __builtin_unreachable();
}

struct TokenLoss {
    double loss, kl;
    float dlogp;  // d loss / d logp
    float ratio;
    bool clipped_low, clipped_high;
};

// One token. The log-ratio is clamped to +-20 before exp, so that a collapsed policy gives a large number and not inf;
// the slope is kept there, or such a token could never come back.
HOST_DEVICE TokenLoss policy_token_loss(float logp, float old_logp, float ref_logp, float advantage, double epsilon_low,
                                        double epsilon_high, double beta, PolicyLoss kind = PolicyLoss::clip) {
    TokenLoss t;
    double log_ratio = (double)logp - (double)old_logp;
    log_ratio = log_ratio < -20.0 ? -20.0 : (log_ratio > 20.0 ? 20.0 : log_ratio);
    const PolicyRatio r = {(double)logp, exp(log_ratio), (double)advantage};
    const RatioLoss l = policy_ratio_loss(kind, r, epsilon_low, epsilon_high);
    t.ratio = (float)r.ratio;
    t.clipped_low = l.clipped_low, t.clipped_high = l.clipped_high;
    t.loss = l.loss;
    double d = l.slope;
    t.kl = 0.0;
    if (beta > 0.0) {
        double x = (double)ref_logp - (double)logp;
        x = x < -20.0 ? -20.0 : (x > 20.0 ? 20.0 : x);
        t.kl = exp(x) - x - 1.0;
        t.loss += beta * t.kl;
        d += beta * (1.0 - exp(x));
    }
    t.dlogp = (float)d;
    return t;
}

// Sums over tokens, except where a name says otherwise
struct PolicySums {
    double loss = 0.0, kl = 0.0, entropy = 0.0;               // loss: weighted
    double logp_difference = 0.0, logp_difference_max = 0.0;  // |logp - old|
    double ratio = 0.0, ratio_min = 1e30, ratio_max = 0.0;
    double clip_low = 0.0, clip_high = 0.0;          // tokens
    double clip_low_min = 1.0, clip_high_max = 0.0;  // shares of tokens, over the parts
    double tokens = 0.0;
    double low_before = 0.0, high_before = 0.0, tokens_before = 0.0;  // of the parts that are over
};

HOST_DEVICE void policy_sums_token(PolicySums& s, const TokenLoss& l, float logp, float old_logp, float entropy,
                                   double weight) {
    double difference = fabs((double)logp - (double)old_logp);
    s.loss = fma(weight, l.loss, s.loss);  // fused on every machine, or the sum would depend on the compiler
    s.kl += l.kl;
    s.entropy += entropy;
    s.logp_difference += difference;
    s.logp_difference_max = s.logp_difference_max < difference ? difference : s.logp_difference_max;
    s.ratio += l.ratio;
    s.ratio_min = l.ratio < s.ratio_min ? l.ratio : s.ratio_min;
    s.ratio_max = s.ratio_max < l.ratio ? l.ratio : s.ratio_max;
    s.clip_low += l.clipped_low;
    s.clip_high += l.clipped_high;
    s.tokens += 1.0;
}

// without what policy_sums_end_part does
HOST_DEVICE void policy_sums_add(PolicySums& s, const PolicySums& x) {
    s.loss += x.loss;
    s.kl += x.kl;
    s.entropy += x.entropy;
    s.logp_difference += x.logp_difference;
    s.logp_difference_max =
        s.logp_difference_max < x.logp_difference_max ? x.logp_difference_max : s.logp_difference_max;
    s.ratio += x.ratio;
    s.ratio_min = x.ratio_min < s.ratio_min ? x.ratio_min : s.ratio_min;
    s.ratio_max = s.ratio_max < x.ratio_max ? x.ratio_max : s.ratio_max;
    s.clip_low += x.clip_low;
    s.clip_high += x.clip_high;
    s.tokens += x.tokens;
}

HOST_DEVICE void policy_sums_part(PolicySums& s) {
    const double n = s.tokens - s.tokens_before;
    if (n == 0.0) return;
    const double low = (s.clip_low - s.low_before) / n, high = (s.clip_high - s.high_before) / n;
    s.clip_low_min = low < s.clip_low_min ? low : s.clip_low_min;
    s.clip_high_max = s.clip_high_max < high ? high : s.clip_high_max;
    s.low_before = s.clip_low, s.high_before = s.clip_high, s.tokens_before = s.tokens;
}

// What the host knows of R tokens
struct PolicyInputs {
    double* weight;                          // [R]
    float *old_logp, *ref_logp, *advantage;  // [R]; ref_logp may be null if beta is 0
};

struct PolicyConfig {
    double epsilon_low, epsilon_high, beta;
    PolicyLoss kind = PolicyLoss::clip;
};

HOST_DEVICE TokenLoss policy_loss_at(const PolicyInputs& in, int64_t i, float logp, const PolicyConfig& c) {
    return policy_token_loss(logp, in.old_logp[i], in.ref_logp ? in.ref_logp[i] : 0.0f, in.advantage[i], c.epsilon_low,
                             c.epsilon_high, c.beta, c.kind);
}

// ---------------------------------------------------------------------------------------------------------------------
// CPU loops

// dlogp: [R]; sums: +=; logp, entropy: [R]
inline void policy_loss_cpu(float* dlogp, PolicySums* sums, const float* logp, const float* entropy,
                            const PolicyInputs& in, int64_t R, const PolicyConfig& c) {
    for (int64_t i = 0; i < R; i++) {
        TokenLoss l = policy_loss_at(in, i, logp[i], c);
        dlogp[i] = (float)(in.weight[i] * l.dlogp);
        policy_sums_token(*sums, l, logp[i], in.old_logp[i], entropy[i], in.weight[i]);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

#if HAS_KERNELS
static constexpr int POLICY_BLOCK = 128;

// the sum over the block's threads, in thread 0. part: shared, [POLICY_BLOCK]
__device__ inline void policy_block_sum(PolicySums* part, const PolicySums& s) {
    part[threadIdx.x] = s;
    __syncthreads();
    for (int half = POLICY_BLOCK / 2; half > 0; half /= 2) {
        if ((int)threadIdx.x < half) policy_sums_add(part[threadIdx.x], part[threadIdx.x + half]);
        __syncthreads();
    }
}

// partial: (gridDim.x). grid: CEIL_DIV(R, POLICY_BLOCK). dynamic shared memory: PolicySums part[POLICY_BLOCK]
__global__ void policy_loss_kernel(float* dlogp, PolicySums* partial, const float* logp, const float* entropy,
                                   PolicyInputs in, int64_t R, PolicyConfig c) {
    DYNAMIC_SHARED(PolicySums, part);
    int64_t i = (int64_t)blockIdx.x * POLICY_BLOCK + threadIdx.x;
    PolicySums s;
    if (i < R) {
        TokenLoss l = policy_loss_at(in, i, logp[i], c);
        dlogp[i] = (float)(in.weight[i] * l.dlogp);
        policy_sums_token(s, l, logp[i], in.old_logp[i], entropy[i], in.weight[i]);
    }
    policy_block_sum(part, s);
    if (threadIdx.x == 0) partial[blockIdx.x] = part[0];
}

// sums += all partial. One block. dynamic shared memory: PolicySums part[POLICY_BLOCK]
__global__ void policy_sums_kernel(PolicySums* sums, const PolicySums* partial, int blocks) {
    DYNAMIC_SHARED(PolicySums, part);
    PolicySums s;
    for (int b = threadIdx.x; b < blocks; b += POLICY_BLOCK) policy_sums_add(s, partial[b]);
    policy_block_sum(part, s);
    if (threadIdx.x != 0) return;
    policy_sums_add(*sums, part[0]);
}

__global__ void policy_sums_reset_kernel(PolicySums* sums) { *sums = PolicySums(); }

__global__ void policy_sums_part_kernel(PolicySums* sums) { policy_sums_part(*sums); }
#endif

// ---------------------------------------------------------------------------------------------------------------------
// launchers

// sums as before the first call of a pass
inline void policy_sums_reset(PolicySums* sums, Device dev) {
#if HAS_KERNELS
    if (dev.cuda) {
        LAUNCH(policy_sums_reset_kernel, 1, 1, 0, dev.stream, sums);
        return;
    }
#endif
    (void)dev;
    *sums = PolicySums();
}

// the tokens since the last call of this, or since the reset, are a part of the batch
inline void policy_sums_end_part(PolicySums* sums, Device dev) {
#if HAS_KERNELS
    if (dev.cuda) {
        LAUNCH(policy_sums_part_kernel, 1, 1, 0, dev.stream, sums);
        return;
    }
#endif
    (void)dev;
    policy_sums_part(*sums);
}

// dlogp: [R]; sums: +=; logp, entropy: [R]. All pointers, those of `in` too, are the device's.
inline void policy_loss(float* dlogp, PolicySums* sums, const float* logp, const float* entropy, const PolicyInputs& in,
                        int64_t R, const PolicyConfig& c, Device dev) {
    NVTX_RANGE("policy_loss");
    if (c.beta > 0.0 && !in.ref_logp && R > 0) fail("policy_loss: beta %g needs reference log-probabilities", c.beta);
    if (R < 0 || R > INT32_MAX) fail("policy_loss: bad shape: R %lld (must be below 2^31)", (long long)R);
    if (R == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        int blocks = (int)CEIL_DIV(R, POLICY_BLOCK);
        Scratch scratch(blocks * sizeof(PolicySums) / sizeof(float), dev);
        PolicySums* partial = reinterpret_cast<PolicySums*>(scratch.data);
        size_t shared = POLICY_BLOCK * sizeof(PolicySums);
        LAUNCH(policy_loss_kernel, blocks, POLICY_BLOCK, shared, dev.stream, dlogp, partial, logp, entropy, in, R, c);
        LAUNCH(policy_sums_kernel, 1, POLICY_BLOCK, shared, dev.stream, sums, partial, blocks);
        return;
    }
#endif
    (void)dev;
    policy_loss_cpu(dlogp, sums, logp, entropy, in, R, c);
}

// ---------------------------------------------------------------------------------------------------------------------
// The inputs that the host knows travel in one copy a micro-batch, the sums come back in one copy a pass:
//   policy_sums_reset(m.sums.data, dev)
//   for each micro-batch: PolicyInputs in = policy_inputs(m, R, dev), fill its R tokens, in = policy_inputs_send(m, R,
//   dev), policy_loss(dlogp, m.sums.data, logp, entropy, in, ...); after each part policy_sums_end_part(m.sums.data,
//   dev); at the end copy_to_host(&sums, m.sums.data, ...)

struct PolicyMemory {
    int64_t capacity = 0;     // tokens
    Buffer<double> device;    // what PolicyInputs points into, on a device
    PinnedBuffer host;        // the same on the host
    Buffer<PolicySums> sums;  // [1]
};

inline void policy_memory_allocate(PolicyMemory& m, int64_t tokens, Device dev) {
    static constexpr size_t bytes = sizeof(double) + 3 * sizeof(float);  // a token
    const char* what = "inputs of the policy loss";
    m.capacity = tokens;
    pinned_allocate(m.host, tokens * bytes, dev);
    if (dev.cuda) m.device.allocate(CEIL_DIV(tokens * bytes, sizeof(double)), what, "lower --micro_batch_tokens", dev);
    m.sums.allocate(1, what, "", dev);
}

inline PolicyInputs policy_inputs_at(void* base, int64_t R) {
    double* weight = static_cast<double*>(base);
    float* f = reinterpret_cast<float*>(weight + R);
    return {weight, f, f + R, f + 2 * R};
}

// where the host writes the inputs of R tokens; waits for the copy of the micro-batch before
inline PolicyInputs policy_inputs(PolicyMemory& m, int64_t R, Device dev) {
    if (R > m.capacity) fail("policy_loss: %lld tokens in memory for %lld", (long long)R, (long long)m.capacity);
    device_synchronize(dev);
    return policy_inputs_at(m.host.data, R);
}

// the same inputs where policy_loss reads them
inline PolicyInputs policy_inputs_send(PolicyMemory& m, int64_t R, Device dev) {
    if (!dev.cuda) return policy_inputs_at(m.host.data, R);
    copy_to_device(m.device.data, m.host.data, R * (sizeof(double) + 3 * sizeof(float)), dev);
    return policy_inputs_at(m.device.data, R);
}
