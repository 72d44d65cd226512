// Do all ranks hold the same weights? Each computes its update alone from the same sums (runtime/comm.h), so a gradient
// that was not summed, another flag or a broken GPU makes them train different models, without an error. After each
// update a hash of what the optimizer moves is compared: 4 bytes read a weight, beside the 4 that the all-reduce sends
// and receives and the 16 and more of the update.
#pragma once
#include "../kernels/weight_hash.cuh"
#include "../optimizers/optimizer.cuh"
#include "../runtime/comm.h"

typedef std::array<uint64_t, PARAM_GROUPS> WeightHashes;

// of the weights of each group, on the host; 0 where it has none
inline WeightHashes weight_hashes(const Optimizer& o) {
    WeightHashes hashes;
    Scratch scratch(hashes.size() * sizeof(uint64_t) / sizeof(float), o.dev);
    uint64_t* on_device = reinterpret_cast<uint64_t*>(scratch.data);
    set_zero(on_device, sizeof(hashes), o.dev);
    uint64_t place = 0;
    for (const OptimizerTensor& t : o.tensors) {
        weight_hash_add(on_device + (size_t)t.group, t.weight, t.count(), place, o.dev);
        place += (uint64_t)t.count();
    }
    copy_to_host(hashes.data(), on_device, sizeof(hashes), o.dev);
    return hashes;
}

// Fails, on every rank, unless all have the same weights. step: how many updates are done
inline void check_ranks_agree(const Optimizer& o, Comm& comm, int64_t step) {
    if (comm.world == 1) return;
    const WeightHashes hashes = weight_hashes(o);
    std::array<double, 2 * PARAM_GROUPS> least;  // of the first 53 bits of each hash, and of their negative
    std::vector<double*> numbers;
    for (int g = 0; g < PARAM_GROUPS; g++) {
        least[2 * g] = (double)(hashes[g] >> 11);
        least[2 * g + 1] = -least[2 * g];
        numbers.push_back(&least[2 * g]), numbers.push_back(&least[2 * g + 1]);
    }
    comm_reduce(comm, numbers, Reduce::min);
    for (int g = 0; g < PARAM_GROUPS; g++)
        if (least[2 * g] != -least[2 * g + 1])
            fail(
                "step %lld: the %d ranks hold different weights (%s: hashes from %014llx to %014llx, here %014llx); "
                "were "
                "they started with the same flags and files, on the same kind of GPU?",
                (long long)step, comm.world, param_group_names[g], (unsigned long long)least[2 * g],
                (unsigned long long)-least[2 * g + 1], (unsigned long long)(hashes[g] >> 11));
}
