// A hash of numbers by their bits and places, to ask whether two ranks hold the same weights.
//
//   h += sum over i of mix(bits(x_i) + (place + i + 1) * odd)   mod 2^64      mix: a finalizer of two shifts and a product
// The sum is of integers, so that no order of threads or blocks changes it. Two arrays that differ in one bit have
// different terms; others collide with a probability of 2^-64. Numbers that are equal but not by their bits (0 and -0)
// count as different.
//
// Traffic in bytes, least and moved: 4n. Launch: as global_norm.cuh; one 64-bit atomic a block.
#pragma once
#include <cstdint>
#include "../runtime/device.h"
#include "../runtime/parallel.h"

HOST_DEVICE uint64_t weight_hash_term(float x, uint64_t place) {
    uint64_t h = (uint64_t)float_bits(x) + (place + 1) * 0x9E3779B97F4A7C15ull;
    h ^= h >> 32;
    h *= 0xD6E8FEB86659FD93ull;
    return h ^ h >> 32;
}

inline uint64_t weight_hash_cpu(const float* x,  // [n]
                                int64_t n, uint64_t place) {
    uint64_t sum = 0;
#pragma omp parallel for reduction(+ : sum) schedule(static) if (worth_threads(n))
    for (int64_t i = 0; i < n; i++) sum += weight_hash_term(x[i], place + (uint64_t)i);
    return sum;
}

#if HAS_KERNELS
static constexpr int HASH_BLOCK = 256, HASH_CHUNK = 1 << 16;

// grid: CEIL_DIV(n, HASH_CHUNK); *hash += that of x
__global__ void weight_hash_kernel(unsigned long long* hash, const float* x, int64_t n, uint64_t place, bool aligned) {
    __shared__ uint64_t part[HASH_BLOCK];
    const int64_t start = (int64_t)blockIdx.x * HASH_CHUNK;
    const int count = n - start < HASH_CHUNK ? (int)(n - start) : HASH_CHUNK;
    uint64_t sum = 0;
    for (int i = threadIdx.x * 4; i < count; i += HASH_BLOCK * 4) {
        Pack128<float> a = load_pack(x + start, i, count, aligned);
        for (int k = 0; k < 4 && i + k < count; k++) sum += weight_hash_term(a[k], place + (uint64_t)(start + i + k));
    }
    part[threadIdx.x] = sum;
    for (int half = HASH_BLOCK / 2; half > 0; half /= 2) {
        __syncthreads();
        if ((int)threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
    }
    if (threadIdx.x == 0) atomicAdd(hash, (unsigned long long)part[0]);
}
#endif

// *hash += that of x [n], where both are on the device. place: of x[0] among all that *hash is of
inline void weight_hash_add(uint64_t* hash, const float* x, int64_t n, uint64_t place, Device dev) {
    NVTX_RANGE("weight_hash");
    if (n <= 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        LAUNCH(weight_hash_kernel, (unsigned)CEIL_DIV(n, HASH_CHUNK), HASH_BLOCK, 0, dev.stream,
               reinterpret_cast<unsigned long long*>(hash), x, n, place, is_aligned16(x, 0));
        return;
    }
#endif
    (void)dev;
    *hash += weight_hash_cpu(x, n, place);
}
