// What the CPU's matrix product (gemm.h) knows of the instructions it runs on: a table of functions and of the sizes they
// are made for, one for each row of CpuIsa. gemm_loops.h fills those of vectors, gemm_amx.h that of tiles, gemm_isa.h chooses.
#pragma once
#include <cstdint>
#include <cstring>
#include "../../runtime/cpu_isa.h"
#include "../../runtime/dtypes.h"

// The kinds of product. The words of B are pairs for GEMM_PAIRS_*; the words of A are pairs only for GEMM_PAIRS_DOT.
enum GemmKind {
    GEMM_FLOATS,       // A float, B float
    GEMM_PAIRS_WIDEN,  // A float, two words a step; B pairs, widened in registers
    GEMM_PAIRS_DOT,    // A pairs, B pairs: vdpbf16ps, tdpbf16ps
    GEMM_KINDS
};

// tile[rows][vectors * vf] = sum over s < steps of A(i, s) B(s, j). B: a packed panel [steps][vectors * vf]. A: rows
// a_row_bytes apart, or a packed panel [steps][mr]. resume: the sums go on from what the tile holds.
typedef void (*GemmTile)(float* tile, const char* a, int64_t a_row_bytes, const uint32_t* b, int64_t steps, bool resume,
                         int rows, int vectors);
// dst[i][j] = (prev ? prev[i][j] + tile[i][j] : tile[i][j]) + (bias ? bias[j] : 0), rounded once
typedef void (*GemmFinish)(void* dst, int64_t ldd, const void* prev, int64_t ldp, const float* tile, int width,
                           const void* bias, int rows, int cols);
// dst[s * width + j] = word s of row j for j < vf, s < steps; rows j >= valid are zero and not read
typedef void (*GemmTranspose)(uint32_t* dst, int64_t width, const char* src, int64_t row_bytes, int valid,
                              int64_t steps);
// out[j] = the pair (low[j], high[j]), high zero where it is null, j < n
typedef void (*GemmPairRows)(uint32_t* out, const uint16_t* low, const uint16_t* high, int n);

static constexpr int GEMM_MAX_MR = 32, GEMM_MAX_NR = 48;  // of all rows

struct GemmKernels {
    CpuIsa isa = CpuIsa::portable;
    int vf = 0;                         // floats of a vector
    int panel_vectors[2] = {};          // vectors of a panel of B: of pairs, of floats
    int mr[GEMM_KINDS] = {};            // most rows of a tile
    int64_t kc = 1024;                  // k block, even: part of the arithmetic (gemm.h)
    bool dot = false;                   // is there GEMM_PAIRS_DOT?
    bool dot_rows = false;              // its A is rows, never a panel
    GemmTile tile[GEMM_KINDS][2] = {};  // [kind][A is a panel]
    GemmFinish finish[2][2][2] = {};    // of dst, prev, bias: 0 bf16, 1 float
    GemmTranspose transpose_words = nullptr;
    GemmPairRows pair_rows = nullptr;
    void (*release)() = nullptr;  // after a thread's last tile, if there is something to do
};

inline float gemm_word(const char* p) {
    float x;
    memcpy(&x, p, 4);
    return x;
}
