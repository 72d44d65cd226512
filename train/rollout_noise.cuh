// Adaptive quantization noise: QeRL (Huang et al. 2025, arXiv 2510.11696; github NVlabs/QeRL) found that what a quantizer
// does to a policy raises its entropy and so its exploration, and adds noise of its own to the sampler, which it lets
// fade. The run is cut into K stages; stage 0 has none, then
//   sigma_k = s0 (s1 / s0)^(k / (K-2)),  k = 0 ... K-2        K = 2: s0
//   w' = floatX(w + sigma z),  z ~ N(0,1) for each channel of each norm, anew for each rollout
// The paper gives 1e-2 to 1e-4 in 10 stages, added to the weights as they are, whatever their size. As a norm's weight
// multiplies what the products behind it read, noise on it is noise on the columns of q,k,v and of gate,up, at no cost.
//
// Which norms. The paper's text has those before attention and before the MLP, which are ours. Its code adds to every
// module of the class RMSNorm, thus to the last norm too (and to Qwen3's q_norm and k_norm not, which is another class);
// and, training adapters, it does not load the norms again, so that the noise of one step stays for the next. Here it is
// that of one step alone, and the last norm has none.
//
// The trap: in bf16 a weight near 1 moves in steps of 2^-8 or 2^-7, so that sigma 1e-4 moves few of them.
//
// A draw is keyed by (seed, step, norm, index): ranks have the same, and a run that is resumed goes on with it.
#pragma once
#include <cmath>
#include <vector>
#include "../model.cuh"

struct RolloutNoise {
    double start = 0.0, end = 1e-4;  // sigma; start 0: none
    int stages = 10;
    int64_t steps = 0;  // of the run
    uint64_t seed = 0;
    bool on() const { return start > 0.0; }
};

// of the rollout of a step, from 0
inline double noise_sigma(const RolloutNoise& n, int64_t step) {
    if (!n.on()) return 0.0;
    const int64_t stage = std::min<int64_t>(step * n.stages / n.steps, n.stages - 1);
    if (stage == 0) return 0.0;
    if (n.stages == 2) return n.start;
    return n.start * std::pow(n.end / n.start, (double)(stage - 1) / (double)(n.stages - 2));
}

// normal, by Box and Muller; norm: 2 l of the one before layer l's attention, 2 l + 1 of the one before its MLP
inline float noise_draw(uint64_t seed, uint32_t step, uint32_t norm, uint32_t index) {
    const Philox4 r = rng_bits(seed, RNG_NORMS, step, norm, index);
    const float u = 1.0f - uniform01(r.x[0]), angle = 6.283185307f * uniform01(r.x[1]);
    return sqrtf(-2.0f * logf(u)) * cosf(angle);
}

// noisy [L,2,C], where the model is: its norms as Pass::norms has them. On the host, since there are few
inline void noise_norms(floatX* noisy, const Model& m, double sigma, uint64_t seed, int64_t step) {
    const int64_t C = m.C(), norms = 2 * m.L();
    std::vector<floatX> w((size_t)(norms * C));
    for (int64_t n = 0; n < norms; n++)
        copy_to_host(w.data() + n * C, layer_norm_weight(m, Pass(), (int)(n / 2), (int)(n % 2)), C * sizeof(floatX),
                     m.dev);
#pragma omp parallel for schedule(static) if (worth_threads(30 * norms * C))
    for (int64_t n = 0; n < norms; n++)
        for (int64_t i = 0; i < C; i++) {
            floatX& x = w[n * C + i];
            x = (floatX)((float)x + (float)sigma * noise_draw(seed, (uint32_t)step, (uint32_t)n, (uint32_t)i));
        }
    copy_to_device(noisy, w.data(), w.size() * sizeof(floatX), m.dev);
    device_synchronize(m.dev);  // w goes
}
