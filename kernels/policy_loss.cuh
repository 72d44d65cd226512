// The policy loss of GRPO and its kin, its gradient for each token's log-probability, and what a step logs about both.
//
//   rho = exp(logp - old)                      old: the trainer's log-probability before its first update
//         or, of a sequence of n tokens, exp(1/n sum (logp - old))     (GSPO, Zheng et al. 2025, arXiv 2507.18071, eq. 7)
//   L   = sum over tokens of  weight (factor keep loss(rho, A) + beta kl) + bonus H
//     loss    a row of POLICY_LOSSES; GRPO's is clip
//     weight  the share of a token in the loss, the same in a sequence (train/loss_types.h)
//     factor  what the sampler's correction and masks of tokens leave of it (1 unless there are any)
//     keep    0 for a sequence with A < 0 that is farther from its sampler than drop_above: mean(sampler - logp), off-policy
//             sequence masking (DeepSeek-V3.2, arXiv 2512.02556, eq. 9), else 1
//     kl      k1 = -x,  k2 = x^2 / 2,  k3 = exp(x) - x - 1,  x = ref - logp      (Schulman 2020); times rho if asked for,
//             whose gradient is that of the KL divergence also where old is not the policy (DeepSeek-V3.2, eq. 7)
//     bonus   minus the coefficient of the entropy bonus, over the tokens that have it
//   dlogp = dL/dlogp: a loss through rho gives weight factor keep slope to its token; through a sequence's rho every token
//   of it gets the mean over the sequence. A detached loss (cispo, vespo) is of the token's own logp at either level.
//
// Shao et al. 2024 (DeepSeekMath, arXiv 2402.03300), eq. 3 and 4. In double: the log-ratios are differences of nearly equal
// numbers, and a sum over 10^5 tokens shall not depend on its partition in more than the last bits.
//
// Tokens come sequence by sequence; those of a sequence are together in one call. Sums accumulate over the calls of a
// pass (its micro-batches), so that a pass brings one PolicySums back from the device. A block of POLICY_BLOCK threads
// takes a sequence, in which thread i has tokens i, i + POLICY_BLOCK, ...; then one block adds up the sequences, in a fixed
// order. Traffic: 24 bytes a token (logp, entropy, row, old, advantage, dlogp), 4 more for each of ref, factor, range and
// bonus in use, all read or written once, logp and old twice at the level of the sequence.
//
// The trap: PolicySums does not start at zero bytes (ratio_min, clip_low_min); policy_sums_reset starts it.
#pragma once
#include <cmath>
#include "../runtime/buffer.h"
#include "../runtime/nearest.h"
#include "../runtime/words.h"
#include "policy_losses/cispo.cuh"
#include "policy_losses/clip.cuh"
#include "policy_losses/sapo.cuh"
#include "policy_losses/trust_band.cuh"
#include "policy_losses/vespo.cuh"

// what --policy_loss calls them; a new one is a file in policy_losses/, its #include and its row
// clang-format off
#define POLICY_LOSSES(LOSS)         \
    LOSS(clip, ClipLoss)            \
    LOSS(cispo, CispoLoss)          \
    LOSS(sapo, SapoLoss)            \
    LOSS(vespo, VespoLoss)          \
    LOSS(trust_band, TrustBandLoss)
// clang-format on

#define POLICY_LOSS_ENUMERATOR(name, Loss) name,
enum class PolicyLoss { POLICY_LOSSES(POLICY_LOSS_ENUMERATOR) };
#undef POLICY_LOSS_ENUMERATOR

#define POLICY_LOSS_NAME(name, Loss) #name,
inline constexpr const char* policy_loss_names[] = {POLICY_LOSSES(POLICY_LOSS_NAME)};
#undef POLICY_LOSS_NAME

inline const char* policy_loss_name(PolicyLoss kind) { return policy_loss_names[(int)kind]; }

inline PolicyLoss policy_loss_named(const std::string& text) {
    const std::vector<std::string> names(std::begin(policy_loss_names), std::end(policy_loss_names));
    for (size_t i = 0; i < names.size(); i++)
        if (text == names[i]) return (PolicyLoss)i;
    fail_usage("--policy_loss %s: not one of %s%s", text.c_str(), join_words(names).c_str(),
               did_you_mean(text, names).c_str());
}

HOST_DEVICE RatioLoss policy_ratio_loss(PolicyLoss kind, const PolicyRatio& r, const PolicySettings& s) {
#define POLICY_LOSS_CASE(name, Loss) \
    case PolicyLoss::name:           \
        return Loss::at(r, s);
    switch (kind) { POLICY_LOSSES(POLICY_LOSS_CASE) }
#undef POLICY_LOSS_CASE
    __builtin_unreachable();
}

struct PolicyLossTraits {
    bool detached;     // it is of the token's own log-probability, whatever the ratio is of
    bool of_sequence;  // it takes the weight of the whole sequence, and no ratio
};
HOST_DEVICE PolicyLossTraits policy_loss_traits(PolicyLoss kind) {
#define POLICY_LOSS_CASE(name, Loss) \
    case PolicyLoss::name:           \
        return {Loss::detached, Loss::of_sequence};
    switch (kind) { POLICY_LOSSES(POLICY_LOSS_CASE) }
#undef POLICY_LOSS_CASE
    __builtin_unreachable();
}

enum class KlEstimator { k1, k2, k3 };

struct PolicyConfig : PolicySettings {
    PolicyLoss kind = PolicyLoss::clip;
    bool sequence = false;  // rho is the sequence's
    double beta = 0.0;      // of the KL term in the loss
    KlEstimator kl = KlEstimator::k3;
    bool kl_times_ratio = false;
    double drop_above = 1e30;
};

// ---------------------------------------------------------------------------------------------------------------------
// one token

// Clamped to +-20 before exp, so that a collapsed policy gives a large number and not inf; the slope is kept there, or such a
// token could never come back.
HOST_DEVICE double clamp_log_ratio(double x) { return x < -20.0 ? -20.0 : (x > 20.0 ? 20.0 : x); }

struct KlTerm {
    double value, slope;  // slope: d value / d logp
};

HOST_DEVICE KlTerm kl_estimate(KlEstimator kind, float logp, float ref_logp) {
    const double x = clamp_log_ratio((double)ref_logp - (double)logp);
    switch (kind) {
        case KlEstimator::k1:
            return {-x, 1.0};
        case KlEstimator::k2:
            return {0.5 * x * x, -x};
        case KlEstimator::k3:
            break;
    }
    return {exp(x) - x - 1.0, 1.0 - exp(x)};
}

// A sequence, known before its tokens' log-probabilities are
struct PolicySequence {
    double weight;                // of one of its tokens in the loss
    double share;                 // 1/n sum over its tokens of weight factor: what its log-ratio weighs
    double log_correction = 0.0;  // sum of the logarithms of the sampler's correction
    double drift = 0.0;           // mean(sampler - old)
    int first = 0, count = 0;     // its tokens
};

// What its tokens' log-probabilities say of it; zeros where the loss does not ask
struct PolicySequenceSums {
    double log_ratio = 0.0;    // sum(logp - old)
    double weighted_kl = 0.0;  // sum(weight kl)
};
HOST_DEVICE void policy_sequence_add(PolicySequenceSums& s, const PolicySequenceSums& x) {
    s.log_ratio += x.log_ratio, s.weighted_kl += x.weighted_kl;
}

// One token, of a sequence of its own if none is given
struct PolicyToken {
    float logp, old_logp, ref_logp, advantage;
    float factor = 1.0f;
};

struct TokenLoss {
    double loss, kl;  // loss: factor keep loss(rho, A) + beta kl, not weighted
    double dlogp;     // dL/dlogp, weighted
    float ratio;
    bool clipped_low, clipped_high;
    double coefficient;
};

HOST_DEVICE TokenLoss policy_token_loss(const PolicyToken& t, const PolicySequence& of, const PolicySequenceSums& sums,
                                        double low, double high, const PolicyConfig& c) {
    const double n = (double)of.count, mean = sums.log_ratio / n;
    const double log_ratio = c.sequence ? clamp_log_ratio(mean) : clamp_log_ratio((double)t.logp - (double)t.old_logp);
    const PolicyRatio r = {
        (double)t.logp, exp(log_ratio), (double)t.advantage, low, high, sums.log_ratio + of.log_correction};
    const RatioLoss l = policy_ratio_loss(c.kind, r, c);
    const bool shared = c.sequence && !policy_loss_traits(c.kind).detached;  // the gradient is the whole sequence's
    const double keep = t.advantage < 0.0f && of.drift - mean > c.drop_above ? 0.0 : 1.0;
    TokenLoss out = {keep * (double)t.factor * l.loss,
                     0.0,
                     keep * l.slope * (shared ? of.share : of.weight * (double)t.factor),
                     (float)r.ratio,
                     l.clipped_low,
                     l.clipped_high,
                     l.coefficient};
    if (c.beta > 0.0) {
        const KlTerm k = kl_estimate(c.kl, t.logp, t.ref_logp);
        const double by = c.kl_times_ratio ? r.ratio : 1.0;
        out.kl = by * k.value;
        out.loss += c.beta * out.kl;
        out.dlogp += c.beta * of.weight * by * k.slope;
        if (c.kl_times_ratio) out.dlogp += c.beta * r.ratio * (c.sequence ? sums.weighted_kl / n : of.weight * k.value);
    }
    return out;
}

// does a token's loss depend on the log-probabilities of the others?
HOST_DEVICE bool policy_reads_sequences(const PolicyConfig& c) {
    return c.sequence || policy_loss_traits(c.kind).of_sequence || c.drop_above < 1e29;
}

// ---------------------------------------------------------------------------------------------------------------------
// sums of a pass

// Over tokens, except where a name says otherwise
struct PolicySums {
    double loss = 0.0, kl = 0.0, entropy = 0.0;               // loss: weighted
    double bonus = 0.0;                                       // the part of the loss that is the entropy bonus
    double logp_difference = 0.0, logp_difference_max = 0.0;  // |logp - old|
    double ratio = 0.0, ratio_min = 1e30, ratio_max = 0.0;
    double clip_low = 0.0, clip_high = 0.0,
           coefficient = 0.0;  // over clip_units: tokens, or sequences where rho is theirs
    double clip_units = 0.0;
    double clip_low_min = 1.0, clip_high_max = 0.0;  // shares of a sequence's tokens
    double dropped = 0.0;                            // sequences that were not kept
    double tokens = 0.0, sequences = 0.0;
};

HOST_DEVICE void policy_sums_add(PolicySums& s, const PolicySums& x) {
    s.loss += x.loss;
    s.bonus += x.bonus;
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
    s.coefficient += x.coefficient;
    s.clip_units += x.clip_units;
    s.clip_low_min = x.clip_low_min < s.clip_low_min ? x.clip_low_min : s.clip_low_min;
    s.clip_high_max = s.clip_high_max < x.clip_high_max ? x.clip_high_max : s.clip_high_max;
    s.dropped += x.dropped;
    s.tokens += x.tokens;
    s.sequences += x.sequences;
}

// What is known of the tokens, in the order of the sequences
struct PolicyInputs {
    PolicySequence* sequences;              // [S]
    int* rows;                              // [R] where the token is in logp, entropy, dlogp, dentropy
    float *old_logp, *advantage;            // [R]
    float* ref_logp = nullptr;              // [R] if beta > 0
    float* factor = nullptr;                // [R] or null: 1
    float *low = nullptr, *high = nullptr;  // [R] the token's own range of rho, or null: that of the configuration
    float* bonus = nullptr;                 // [R] dL/dentropy, or null: 0
};

// What the forward left [R], and where the gradients go [R]; dentropy: if there is a bonus
struct PolicyScores {
    const float *logp, *entropy;
    float* dlogp;
    float* dentropy = nullptr;
};

// token i, of sequence `of`: its gradients, and its part of the sums
HOST_DEVICE void policy_token(PolicySums& s, const PolicyScores& scores, const PolicyInputs& in, int64_t i,
                              const PolicySequence& of, const PolicySequenceSums& sequence, const PolicyConfig& c) {
    const int row = in.rows[i];
    const PolicyToken t = {scores.logp[row], in.old_logp[i], in.ref_logp ? in.ref_logp[i] : 0.0f, in.advantage[i],
                           in.factor ? in.factor[i] : 1.0f};
    const TokenLoss l = policy_token_loss(t, of, sequence, in.low ? (double)in.low[i] : c.low,
                                          in.high ? (double)in.high[i] : c.high, c);
    scores.dlogp[row] = (float)l.dlogp;
    if (in.bonus) scores.dentropy[row] = in.bonus[i];
    const double difference = fabs((double)t.logp - (double)t.old_logp);
    const double unit = c.sequence || policy_loss_traits(c.kind).of_sequence ? 1.0 / of.count : 1.0;
    s.loss = fma(of.weight, l.loss, s.loss);  // fused on every machine, or the sum would depend on the compiler
    if (in.bonus) s.bonus = fma((double)in.bonus[i], (double)scores.entropy[row], s.bonus);
    s.kl += l.kl;
    s.entropy += scores.entropy[row];
    s.logp_difference += difference;
    s.logp_difference_max = s.logp_difference_max < difference ? difference : s.logp_difference_max;
    s.ratio += l.ratio;
    s.ratio_min = l.ratio < s.ratio_min ? l.ratio : s.ratio_min;
    s.ratio_max = s.ratio_max < l.ratio ? l.ratio : s.ratio_max;
    s.clip_low += l.clipped_low ? unit : 0.0;
    s.clip_high += l.clipped_high ? unit : 0.0;
    s.coefficient += unit * l.coefficient;
    s.clip_units += unit;
    s.tokens += 1.0;
}

// token i's part of its sequence
HOST_DEVICE void policy_sequence_token(PolicySequenceSums& s, const PolicyScores& scores, const PolicyInputs& in,
                                       int64_t i, const PolicySequence& of, const PolicyConfig& c) {
    const float logp = scores.logp[in.rows[i]];
    s.log_ratio += clamp_log_ratio((double)logp - (double)in.old_logp[i]);
    if (c.beta > 0.0 && c.kl_times_ratio) s.weighted_kl += of.weight * kl_estimate(c.kl, logp, in.ref_logp[i]).value;
}

// when all tokens of sequence `of` are in s
HOST_DEVICE void policy_sums_sequence(PolicySums& s, const PolicySequence& of, const PolicySequenceSums& sequence,
                                      bool bad, const PolicyConfig& c) {
    const double low = s.clip_low / s.clip_units, high = s.clip_high / s.clip_units;
    s.loss += s.bonus;
    s.clip_low_min = low < s.clip_low_min ? low : s.clip_low_min;
    s.clip_high_max = s.clip_high_max < high ? high : s.clip_high_max;
    s.dropped = bad && of.drift - sequence.log_ratio / of.count > c.drop_above ? 1.0 : 0.0;
    s.sequences = 1.0;
}

// ---------------------------------------------------------------------------------------------------------------------
// CPU loops

// S sequences; sums: +=
inline void policy_loss_cpu(PolicySums* sums, const PolicyScores& scores, const PolicyInputs& in, int64_t S,
                            const PolicyConfig& c) {
    for (int64_t q = 0; q < S; q++) {
        const PolicySequence& of = in.sequences[q];
        PolicySequenceSums sequence;
        PolicySums s;
        for (int64_t i = of.first; policy_reads_sequences(c) && i < of.first + of.count; i++)
            policy_sequence_token(sequence, scores, in, i, of, c);
        for (int64_t i = of.first; i < of.first + of.count; i++) policy_token(s, scores, in, i, of, sequence, c);
        policy_sums_sequence(s, of, sequence, in.advantage[of.first] < 0.0f, c);
        policy_sums_add(*sums, s);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

#if HAS_KERNELS
static constexpr int POLICY_BLOCK = 128;

// the sum over the block's threads, in part[0]. part: shared, [POLICY_BLOCK]
template <class Sums, class Add>
__device__ inline void policy_block_sum(Sums* part, const Sums& s, const Add& add) {
    part[threadIdx.x] = s;
    __syncthreads();
    for (int half = POLICY_BLOCK / 2; half > 0; half /= 2) {
        if ((int)threadIdx.x < half) add(part[threadIdx.x], part[threadIdx.x + half]);
        __syncthreads();
    }
}

// partial: (S). grid: S. dynamic shared memory: PolicySums part[POLICY_BLOCK]
__global__ void policy_loss_kernel(PolicySums* partial, PolicyScores scores, PolicyInputs in, PolicyConfig c) {
    DYNAMIC_SHARED(PolicySums, part);
    const PolicySequence of = in.sequences[blockIdx.x];
    const int64_t end = (int64_t)of.first + of.count;
    PolicySequenceSums sequence;
    if (policy_reads_sequences(c)) {
        for (int64_t i = of.first + (int)threadIdx.x; i < end; i += POLICY_BLOCK)
            policy_sequence_token(sequence, scores, in, i, of, c);
        PolicySequenceSums* sequences = reinterpret_cast<PolicySequenceSums*>(part);
        policy_block_sum(sequences, sequence,
                         [](PolicySequenceSums& s, const PolicySequenceSums& x) { policy_sequence_add(s, x); });
        sequence = sequences[0];
        __syncthreads();  // all have read it
    }
    PolicySums s;
    for (int64_t i = of.first + (int)threadIdx.x; i < end; i += POLICY_BLOCK)
        policy_token(s, scores, in, i, of, sequence, c);
    policy_block_sum(part, s, [](PolicySums& a, const PolicySums& x) { policy_sums_add(a, x); });
    if (threadIdx.x != 0) return;
    policy_sums_sequence(part[0], of, sequence, in.advantage[of.first] < 0.0f, c);
    partial[blockIdx.x] = part[0];
}

// sums += all partial. One block. dynamic shared memory: PolicySums part[POLICY_BLOCK]
__global__ void policy_sums_kernel(PolicySums* sums, const PolicySums* partial, int S) {
    DYNAMIC_SHARED(PolicySums, part);
    PolicySums s;
    for (int b = threadIdx.x; b < S; b += POLICY_BLOCK) policy_sums_add(s, partial[b]);
    policy_block_sum(part, s, [](PolicySums& a, const PolicySums& x) { policy_sums_add(a, x); });
    if (threadIdx.x != 0) return;
    policy_sums_add(*sums, part[0]);
}

__global__ void policy_sums_reset_kernel(PolicySums* sums) { *sums = PolicySums(); }
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

// sums: +=; S sequences, none empty. All pointers, those of `in` and `scores` too, are the device's.
inline void policy_loss(PolicySums* sums, const PolicyScores& scores, const PolicyInputs& in, int64_t S,
                        const PolicyConfig& c, Device dev) {
    NVTX_RANGE("policy_loss");
    if (S < 0 || S > INT32_MAX) fail("policy_loss: bad shape: S %lld (must be below 2^31)", (long long)S);
    if (S == 0) return;
    if (c.beta > 0.0 && !in.ref_logp) fail("policy_loss: beta %g needs reference log-probabilities", c.beta);
    if (in.bonus && !scores.dentropy) fail("policy_loss: an entropy bonus needs room for its gradient");
#if HAS_KERNELS
    if (dev.cuda) {
        Scratch scratch(S * sizeof(PolicySums) / sizeof(float), dev);
        PolicySums* partial = reinterpret_cast<PolicySums*>(scratch.data);
        size_t shared = POLICY_BLOCK * sizeof(PolicySums);
        LAUNCH(policy_loss_kernel, (unsigned)S, POLICY_BLOCK, shared, dev.stream, partial, scores, in, c);
        LAUNCH(policy_sums_kernel, 1, POLICY_BLOCK, shared, dev.stream, sums, partial, (int)S);
        return;
    }
#endif
    (void)dev;
    policy_loss_cpu(sums, scores, in, S, c);
}

// ---------------------------------------------------------------------------------------------------------------------
// The inputs that the host knows travel in one copy a micro-batch, the sums come back in one copy a pass:
//   policy_sums_reset(m.sums.data, dev)
//   for each micro-batch: PolicyInputs in = policy_inputs(m, use, dev), fill its sequences and tokens,
//   in = policy_inputs_send(m, use, dev), policy_loss(m.sums.data, scores, in, ...); at the end copy_to_host(&sums,
//   m.sums.data, ...)

// how many, and which of the arrays that may be null
struct PolicyUse {
    int64_t R = 0, S = 0;
    bool ref = false, factor = false, range = false, bonus = false;
    size_t bytes() const {
        return (size_t)S * sizeof(PolicySequence) +
               (size_t)R * (sizeof(int) + (2 + ref + factor + 2 * range + bonus) * sizeof(float));
    }
};

struct PolicyMemory {
    int64_t capacity = 0;     // tokens
    Buffer<double> device;    // what PolicyInputs points into, on a device
    PinnedBuffer host;        // the same on the host
    Buffer<PolicySums> sums;  // [1]
};

inline void policy_memory_allocate(PolicyMemory& m, int64_t tokens, Device dev) {
    const size_t bytes = PolicyUse{tokens, tokens, true, true, true, true}.bytes();
    const char* what = "inputs of the policy loss";
    m.capacity = tokens;
    pinned_allocate(m.host, bytes, dev);
    if (dev.cuda) m.device.allocate(CEIL_DIV(bytes, sizeof(double)), what, "lower --micro_batch_tokens", dev);
    m.sums.allocate(1, what, "", dev);
}

inline PolicyInputs policy_inputs_at(void* base, const PolicyUse& use) {
    PolicyInputs in = {};
    in.sequences = static_cast<PolicySequence*>(base);
    in.rows = reinterpret_cast<int*>(in.sequences + use.S);
    float* next = reinterpret_cast<float*>(in.rows + use.R);
    auto array = [&](bool used) {
        float* p = used ? next : nullptr;
        next += used ? use.R : 0;
        return p;
    };
    in.old_logp = array(true), in.advantage = array(true);
    in.ref_logp = array(use.ref), in.factor = array(use.factor);
    in.low = array(use.range), in.high = array(use.range), in.bonus = array(use.bonus);
    return in;
}

// where the host writes the inputs; waits for the copy of the micro-batch before
inline PolicyInputs policy_inputs(PolicyMemory& m, const PolicyUse& use, Device dev) {
    if (use.R > m.capacity || use.S > use.R)
        fail("policy_loss: %lld tokens of %lld sequences in memory for %lld", (long long)use.R, (long long)use.S,
             (long long)m.capacity);
    device_synchronize(dev);
    return policy_inputs_at(m.host.data, use);
}

// the same inputs where policy_loss reads them
inline PolicyInputs policy_inputs_send(PolicyMemory& m, const PolicyUse& use, Device dev) {
    if (!dev.cuda) return policy_inputs_at(m.host.data, use);
    copy_pinned_to_device(m.device.data, m.host.data, use.bytes(), dev);
    return policy_inputs_at(m.device.data, use);
}
