// What runtime/ptx.h holds as PTX, in plain C++: tensor-core products, ldmatrix, cp.async. Fragment layouts: PTX ISA
// manual, "Matrix Fragments for mma.m16n8k16 with floating point type", "... mma.m16n8k32" and "ldmatrix". The last of
// the 32 lanes to come computes for all of them. Sums are fp32 (int32 for s8), in the order of k, so that the bits of a
// row of D depend on that row of A and D and on B alone, as on the hardware, which sums in another order.
//
// A cp.async lands at the cp_async_wait that covers it and not before: until then its destination is NaN in fp32 and
// bf16. Faults: a lane that does not take part, an address that is not 16-byte aligned or not in shared memory, a copy
// that is never waited for.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include "simt.h"

// ---------------------------------------------------------------------------------------------------------------------
// mma

struct SimtMma {
    void* d;            // 4 float or int
    const uint32_t* a;  // 4
    const uint32_t* b;  // 2
};

inline float simt_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// The decoders: the elements of one register, lowest bits first.
struct SimtBf16 {
    typedef float Number;
    static constexpr int PER_REGISTER = 2;
    static void decode(float* x, uint32_t bits) {
        x[0] = simt_float(bits << 16);
        x[1] = simt_float(bits & 0xFFFF0000u);
    }
};

struct SimtFp16 {
    typedef float Number;
    static constexpr int PER_REGISTER = 2;
    static float one(uint32_t h) {
        uint32_t sign = (h & 0x8000u) << 16, rest = (h & 0x7FFFu) << 13;
        if (rest >= 0x0F800000u) return simt_float(sign | rest | 0x7F800000u);  // infinity, NaN
        return simt_float(sign | 0x3F800000u) * (simt_float(rest) * 0x1p112f);  // the exponent's bias: 127 - 15
    }
    static void decode(float* x, uint32_t bits) {
        x[0] = one(bits);
        x[1] = one(bits >> 16);
    }
};

struct SimtE4m3Table {
    float value[256];
    SimtE4m3Table() {
        for (uint32_t e = 0; e < 256; e++) {
            float size = (e & 0x7Fu) == 0x7Fu ? NAN : simt_float((e & 0x7Fu) << 20) * 0x1p120f;  // 127 - 7
            value[e] = e & 0x80u ? -size : size;
        }
    }
};
inline const SimtE4m3Table simt_e4m3;

struct SimtE4m3 {
    typedef float Number;
    static constexpr int PER_REGISTER = 4;
    static void decode(float* x, uint32_t bits) {
        for (int i = 0; i < 4; i++) x[i] = simt_e4m3.value[bits >> 8 * i & 0xFFu];
    }
};

struct SimtS8 {
    typedef int Number;
    static constexpr int PER_REGISTER = 4;
    static void decode(int* x, uint32_t bits) {
        for (int i = 0; i < 4; i++) x[i] = (int8_t)(bits >> 8 * i);
    }
};

// D (16,8) += A (16,K) B (K,8), K = 8 * PER_REGISTER
template <class Format>
void simt_mma_compute(SimtThread* lanes, unsigned) {
    typedef typename Format::Number Number;
    typedef Number Row __attribute__((vector_size(32)));  // 8 columns of D
    constexpr int P = Format::PER_REGISTER, K = 8 * P;
    Number A[16][K], B[K][8] __attribute__((aligned(32))), D[16][8] __attribute__((aligned(32)));
    for (int l = 0; l < 32; l++) {
        int g = l / 4, t = l % 4;
        const SimtMma& fragment = *static_cast<SimtMma*>(lanes[l].operands);
        for (int r = 0; r < 4; r++) Format::decode(&A[g + r % 2 * 8][P * t + r / 2 * (K / 2)], fragment.a[r]);
        for (int r = 0; r < 2; r++) {
            Number x[P];
            Format::decode(x, fragment.b[r]);
            for (int i = 0; i < P; i++) B[P * t + r * (K / 2) + i][g] = x[i];
        }
        memcpy(&D[g][2 * t], fragment.d, 8);
        memcpy(&D[g + 8][2 * t], static_cast<Number*>(fragment.d) + 2, 8);
    }
    for (int m = 0; m < 16; m++) {
        Row sum, column;
        memcpy(&sum, D[m], 32);
        for (int k = 0; k < K; k++) {
            memcpy(&column, B[k], 32);
            sum += A[m][k] * column;
        }
        memcpy(D[m], &sum, 32);
    }
    for (int l = 0; l < 32; l++) {
        int g = l / 4, t = l % 4;
        const SimtMma& fragment = *static_cast<SimtMma*>(lanes[l].operands);
        memcpy(fragment.d, &D[g][2 * t], 8);
        memcpy(static_cast<Number*>(fragment.d) + 2, &D[g + 8][2 * t], 8);
    }
}

template <class Format>
void simt_mma(const char* site, const char* name, typename Format::Number* d, const uint32_t* a, const uint32_t* b) {
    static const SimtTogether together = {name, true, simt_mma_compute<Format>};
    SimtMma fragment = {d, a, b};
    simt_together(site, &together, ~0u, &fragment);
}

#define mma_m16n8k16_bf16(d, a, b) simt_mma<SimtBf16>(SIMT_SITE, "mma_m16n8k16_bf16", d, a, b)
#define mma_m16n8k16_fp16(d, a, b) simt_mma<SimtFp16>(SIMT_SITE, "mma_m16n8k16_fp16", d, a, b)
#define mma_m16n8k32_s8(d, a, b) simt_mma<SimtS8>(SIMT_SITE, "mma_m16n8k32_s8", d, a, b)
#define mma_m16n8k32_e4m3(d, a, b) simt_mma_e4m3(SIMT_SITE, d, a, b)

inline void simt_mma_e4m3(const char* site, float* d, const uint32_t* a, const uint32_t* b) {
    if (simt_block->settings.arch < 89)
        simt_fault(*simt_block, simt_thread, "mma_m16n8k32_e4m3 at %s needs sm_89, simt_settings.arch is %d", site,
                   simt_block->settings.arch);
    simt_mma<SimtE4m3>(site, "mma_m16n8k32_e4m3", d, a, b);
}

// ---------------------------------------------------------------------------------------------------------------------
// ldmatrix

struct SimtLdmatrix {
    uint32_t* r;
    const void* row;
};

template <int MATRICES, bool TRANSPOSED>
void simt_ldmatrix_compute(SimtThread* lanes, unsigned) {
    uint16_t matrix[MATRICES][8][8];
    for (int l = 0; l < 8 * MATRICES; l++) {
        const void* row = static_cast<SimtLdmatrix*>(lanes[l].operands)->row;
        if (reinterpret_cast<uintptr_t>(row) % 16)
            simt_fault(*simt_block, &lanes[l], "%s at %s: row address %p of lane %d is not a multiple of 16",
                       lanes[l].together->name, lanes[l].site, row, l);
        simt_check_shared(&lanes[l], lanes[l].together->name, lanes[l].site, row, 16);
        if (simt_accessed) simt_accessed(&lanes[l], row, 16, false);
        memcpy(matrix[l / 8][l % 8], row, 16);
    }
    for (int l = 0; l < 32; l++) {
        int g = l / 4, t = l % 4;
        uint32_t* r = static_cast<SimtLdmatrix*>(lanes[l].operands)->r;
        for (int i = 0; i < MATRICES; i++) {
            uint16_t low = TRANSPOSED ? matrix[i][2 * t][g] : matrix[i][g][2 * t];
            uint16_t high = TRANSPOSED ? matrix[i][2 * t + 1][g] : matrix[i][g][2 * t + 1];
            r[i] = low | (uint32_t)high << 16;
        }
    }
}

template <int MATRICES, bool TRANSPOSED>
void simt_ldmatrix(const char* site, const char* name, uint32_t* r, const void* row) {
    static const SimtTogether together = {name, true, simt_ldmatrix_compute<MATRICES, TRANSPOSED>};
    SimtLdmatrix operands = {r, row};
    simt_together(site, &together, ~0u, &operands);
}

#define ldmatrix_x4(r, row) simt_ldmatrix<4, false>(SIMT_SITE, "ldmatrix_x4", r, row)
#define ldmatrix_x4_trans(r, row) simt_ldmatrix<4, true>(SIMT_SITE, "ldmatrix_x4_trans", r, row)
#define ldmatrix_x2(r, row) simt_ldmatrix<2, false>(SIMT_SITE, "ldmatrix_x2", r, row)
#define ldmatrix_x2_trans(r, row) simt_ldmatrix<2, true>(SIMT_SITE, "ldmatrix_x2_trans", r, row)

// ---------------------------------------------------------------------------------------------------------------------
// cp.async

inline void simt_cp_async_16(const char* site, void* shared, const void* global, int bytes = 16) {
    SimtBlock& b = *simt_block;
    SimtThread* t = simt_thread;
    if (reinterpret_cast<uintptr_t>(shared) % 16 || reinterpret_cast<uintptr_t>(global) % 16)
        simt_fault(b, t, "cp_async_16 at %s: to %p, from %p: not a multiple of 16", site, shared, global);
    if (bytes < 0 || bytes > 16) simt_fault(b, t, "cp_async_16 at %s: %d bytes; 0 to 16", site, bytes);
    simt_check_shared(t, "cp_async_16", site, shared, 16);
    const char* from = static_cast<const char*>(global);
    if (from >= b.shared && from < b.shared + SIMT_SHARED_BYTES)
        simt_fault(b, t, "cp_async_16 at %s: the source %p is shared memory; global is needed", site, global);
    if (simt_accessed) simt_accessed(t, shared, 16, true);
    memset(shared, 0xFF, 16);
    t->copies.push_back(SimtCopy{shared, global, bytes, t->commits, site});
}

#define cp_async_16(...) simt_cp_async_16(SIMT_SITE, __VA_ARGS__)

inline void cp_async_commit() { simt_thread->commits++; }

template <int N>
void cp_async_wait() {
    SimtThread* t = simt_thread;
    size_t landed = 0;  // groups land in order, so they are a prefix
    for (; landed < t->copies.size() && t->copies[landed].group + N < t->commits; landed++) {
        const SimtCopy& copy = t->copies[landed];
        if (simt_accessed) simt_accessed(t, copy.to, 16, true);
        memset(copy.to, 0, 16);
        if (copy.bytes) memcpy(copy.to, copy.from, (size_t)copy.bytes);
    }
    t->copies.erase(t->copies.begin(), t->copies.begin() + (ptrdiff_t)landed);
}
