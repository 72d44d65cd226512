// The tile of the CPU matrix product by AMX: 32 x 32 outputs in four tiles of 16 x 16, two tiles of A's rows and two of B's
// columns a step of 16 pairs of bf16, so each tile loaded is used twice. Like all kinds it reads A as rows of pairs (never as
// a panel) and B as a panel [steps][width]: a tile of B is 16 steps of 16 words, `width` words apart.
//
// TDPBF16PS (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2), for each output of 16 pairs:
//   even = odd = 0;  for each pair: even = fma(a0, b0, even), odd = fma(a1, b1, odd);  sum = sum + (even + odd)
// all rounded to nearest even, subnormal inputs and results counted as zero. So the sums of an output depend on its row and
// its column alone here too: how many rows a tile has does not matter, and fewer than 16 rows are tiles of fewer rows, which
// take fewer cycles: every row count goes this way.
//
// The trap: loading a configuration clears the tiles. A panel whose steps do not divide by 16 ends with tiles of fewer
// steps, so the sums are stored before and loaded again.
#pragma once
#include <cmath>
#include "../../runtime/cpu_isa.h"
#include "gemm_kernels.h"
#if defined(__x86_64__)

// Rows and bytes of each of the eight tiles, as LDTILECFG reads them
struct alignas(64) AmxConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
};
static_assert(sizeof(AmxConfig) == 64, "LDTILECFG reads 64 bytes");

// The tiles 0 to 3 are sums (row block, column block), 4 and 5 the row blocks of A, 6 and 7 the column blocks of B.
inline AmxConfig amx_config(int rows, int columns, int steps) {
    AmxConfig c;
    const int row_block[2] = {rows < 16 ? rows : 16, rows - 16},
              column_block[2] = {columns < 16 ? columns : 16, columns - 16};
    auto tile = [&](int t, int n, int words) {
        if (n > 0 && words > 0) c.rows[t] = (uint8_t)n, c.bytes[t] = (uint16_t)(4 * words);
    };
    for (int r = 0; r < 2; r++) {
        for (int v = 0; v < 2; v++) tile(2 * r + v, row_block[r], column_block[v]);
        tile(4 + r, row_block[r], steps);
        tile(6 + r, steps, column_block[r]);
    }
    return c;
}

// The instructions. In assembly: GCC 12's intrinsic for LDTILECFG tells the optimizer that it reads 8 bytes of the 64, and
// the stores of the others may go. memory: tiles are not registers that the compiler knows, and the order is as written.
struct AmxTiles {
    static void configure(const AmxConfig& c) { __asm__ volatile("ldtilecfg %0" ::"m"(c) : "memory"); }
    static void release() { __asm__ volatile("tilerelease" ::: "memory"); }
    template <int T>
    static void zero() {
        __asm__ volatile("tilezero %%tmm%c0" ::"i"(T) : "memory");
    }
    template <int T>
    static void load(const void* p, int64_t stride) {
        __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(T) : "memory");
    }
    template <int T>
    static void store(void* p, int64_t stride) {
        __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(T) : "memory");
    }
    template <int C, int A, int B>
    static void dot() {
        __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B) : "memory");
    }
};

inline float amx_flush(float x) { return bits_float(float_bits(x) & (float_bits(x) & 0x7F800000u ? ~0u : 1u << 31)); }

// The same in plain loops, for tests on other CPUs: CpuIsa::amx_stand_in. Tiles belong to a thread, as the CPU's do.
struct AmxStandIn {
    struct State {
        AmxConfig config;
        uint32_t word[8][16][16];
    };
    static State& state() {
        static thread_local State s;
        return s;
    }
    static void configure(const AmxConfig& c) {
        state().config = c;
        memset(state().word, 0, sizeof(state().word));
    }
    static void release() { configure(AmxConfig()); }
    template <int T>
    static void zero() {
        memset(state().word[T], 0, sizeof(state().word[T]));
    }
    template <int T>
    static void load(const void* p, int64_t stride) {
        State& s = state();
        for (int r = 0; r < s.config.rows[T]; r++)
            memcpy(s.word[T][r], static_cast<const char*>(p) + r * stride, s.config.bytes[T]);
    }
    template <int T>
    static void store(void* p, int64_t stride) {
        const State& s = state();
        for (int r = 0; r < s.config.rows[T]; r++)
            memcpy(static_cast<char*>(p) + r * stride, s.word[T][r], s.config.bytes[T]);
    }
    template <int C, int A, int B>
    static void dot() {
        State& s = state();
        for (int m = 0; m < s.config.rows[C]; m++) {
            float even[16] = {}, odd[16] = {};
            for (int k = 0; k < s.config.bytes[A] / 4; k++) {
                const float a0 = amx_flush(bits_float(s.word[A][m][k] << 16));
                const float a1 = amx_flush(bits_float(s.word[A][m][k] & 0xFFFF0000u));
                for (int n = 0; n < s.config.bytes[C] / 4; n++) {
                    const uint32_t b = s.word[B][k][n];
                    even[n] = amx_flush(fmaf(a0, amx_flush(bits_float(b << 16)), even[n]));
                    odd[n] = amx_flush(fmaf(a1, amx_flush(bits_float(b & 0xFFFF0000u)), odd[n]));
                }
            }
            for (int n = 0; n < s.config.bytes[C] / 4; n++) {
                const float sum = amx_flush(bits_float(s.word[C][m][n]));
                s.word[C][m][n] = float_bits(amx_flush(sum + amx_flush(even[n] + odd[n])));
            }
        }
    }
};

// The configuration of this thread's tiles: rows, columns, steps; 0: none. Most tiles have that of the one before.
template <class Tiles>
inline uint32_t& amx_configured() {
    static thread_local uint32_t key = 0;
    return key;
}

template <class Tiles>
void gemm_amx_release() {
    if (amx_configured<Tiles>() == 0) return;
    Tiles::release();
    amx_configured<Tiles>() = 0;
}

template <class Tiles>
void gemm_amx_configure(int rows, int columns, int steps) {
    const uint32_t key = (uint32_t)(rows << 16 | columns << 8 | steps);
    if (amx_configured<Tiles>() == key) return;
    Tiles::configure(amx_config(rows, columns, steps));
    amx_configured<Tiles>() = key;
}

enum AmxSums { AMX_ZERO, AMX_LOAD, AMX_STORE };

template <class Tiles, AmxSums WHAT, int T>
inline void gemm_amx_sum(float* p, int64_t width) {
    if (WHAT == AMX_ZERO) Tiles::template zero<T>();
    if (WHAT == AMX_LOAD) Tiles::template load<T>(p, width * 4);
    if (WHAT == AMX_STORE) Tiles::template store<T>(p, width * 4);
}

// the sums of a tile [rows][width]; two row blocks, two column blocks, or one
template <class Tiles, bool ROWS2, bool COLUMNS2, AmxSums WHAT>
inline void gemm_amx_sums(float* tile, int64_t width) {
    gemm_amx_sum<Tiles, WHAT, 0>(tile, width);
    if (COLUMNS2) gemm_amx_sum<Tiles, WHAT, 1>(tile + 16, width);
    if (ROWS2) gemm_amx_sum<Tiles, WHAT, 2>(tile + 16 * width, width);
    if (ROWS2 && COLUMNS2) gemm_amx_sum<Tiles, WHAT, 3>(tile + 16 * width + 16, width);
}

// 16 steps, or those of the tail
template <class Tiles, bool ROWS2, bool COLUMNS2>
inline void gemm_amx_step(const char* a, int64_t a_row_bytes, const uint32_t* b, int64_t width) {
    Tiles::template load<6>(b, width * 4);
    Tiles::template load<4>(a, a_row_bytes);
    Tiles::template dot<0, 4, 6>();
    if (COLUMNS2) {
        Tiles::template load<7>(b + 16, width * 4);
        Tiles::template dot<1, 4, 7>();
    }
    if (ROWS2) {
        Tiles::template load<5>(a + 16 * a_row_bytes, a_row_bytes);
        Tiles::template dot<2, 5, 6>();
        if (COLUMNS2) Tiles::template dot<3, 5, 7>();
    }
}

template <class Tiles, bool ROWS2, bool COLUMNS2>
void gemm_amx_block(float* tile, const char* a, int64_t a_row_bytes, const uint32_t* b, int64_t steps, bool resume,
                    int rows, int width) {
    const int64_t whole = steps / 16, tail = steps % 16;
    gemm_amx_configure<Tiles>(rows, width, 16);
    if (resume) gemm_amx_sums<Tiles, ROWS2, COLUMNS2, AMX_LOAD>(tile, width);
    else gemm_amx_sums<Tiles, ROWS2, COLUMNS2, AMX_ZERO>(tile, width);
    for (int64_t s = 0; s < whole; s++)
        gemm_amx_step<Tiles, ROWS2, COLUMNS2>(a + s * 64, a_row_bytes, b + s * 16 * width, width);
    gemm_amx_sums<Tiles, ROWS2, COLUMNS2, AMX_STORE>(tile, width);
    if (tail == 0) return;
    gemm_amx_configure<Tiles>(rows, width, (int)tail);
    gemm_amx_sums<Tiles, ROWS2, COLUMNS2, AMX_LOAD>(tile, width);
    gemm_amx_step<Tiles, ROWS2, COLUMNS2>(a + whole * 64, a_row_bytes, b + whole * 16 * width, width);
    gemm_amx_sums<Tiles, ROWS2, COLUMNS2, AMX_STORE>(tile, width);
}

template <class Tiles, int VECTOR>
void gemm_amx_tile(float* tile, const char* a, int64_t a_row_bytes, const uint32_t* b, int64_t steps, bool resume,
                   int rows, int vectors) {
    const int width = vectors * VECTOR;
    auto block = rows > 16 ? (width > 16 ? gemm_amx_block<Tiles, true, true> : gemm_amx_block<Tiles, true, false>)
                           : (width > 16 ? gemm_amx_block<Tiles, false, true> : gemm_amx_block<Tiles, false, false>);
    block(tile, a, a_row_bytes, b, steps, resume, rows, width);
}

// Panels of pairs are two tiles wide. kc: 32 rows of A over a k block are 32 KB, which stay in L1 while panels pass.
// base: the vectors for the rest
inline GemmKernels gemm_kernels_amx(CpuIsa isa, GemmKernels base) {
    GemmKernels k = base;
    k.isa = isa;
    if (k.vf * k.panel_vectors[0] > 32) k.panel_vectors[0] = 32 / k.vf;
    k.mr[GEMM_PAIRS_DOT] = 32;
    k.kc = 512;
    k.dot = k.dot_rows = true;
    k.tile[GEMM_PAIRS_DOT][0] = isa == CpuIsa::amx ? gemm_amx_tile<AmxTiles, 16>
                                : k.vf == 16       ? gemm_amx_tile<AmxStandIn, 16>
                                : k.vf == 8        ? gemm_amx_tile<AmxStandIn, 8>
                                                   : gemm_amx_tile<AmxStandIn, 4>;
    k.tile[GEMM_PAIRS_DOT][1] = nullptr;
    k.release = isa == CpuIsa::amx ? gemm_amx_release<AmxTiles> : gemm_amx_release<AmxStandIn>;
    return k;
}
#endif
