// Moving whole rows: no arithmetic but the sums of scatter_rows.
//   gather_rows     out[r] = inp[rows[r]]                          the hidden states that are scored, embeddings
//   scatter_rows    out[t] = sum of inp[r] over r with rows[r] = t  its transpose; a sum in fp32, in order of r
//   put_rows        out[rows[r]] = inp[r], and the other rows stay  gather_rows undone: the trained rows of a weight
//   gather_columns  out[t,i] = inp[t,columns[i]]                   what a product with some rows of a weight needs
//   kv_cache_write  k[place][row] = k_rows[t], v[place][row] = v_rows[t], (place, row) = writes[t]
// The traps: scatter_rows wants a row that is named several times (the end of a prompt, which predicts the first token of
// each of its completions) named so in a run: the first of a run adds it up. The rows that put_rows fills must be
// distinct, and so must the places of kv_cache_write. A place of row -1 is nowhere: an unused row of a batch of fixed
// size.
//
// Traffic in bytes for bf16, least and moved: gather and put 4RC; scatter 4RC + 2TC (the rows that get a value are
// written twice); kv_cache_write 8TW; gather_columns 4TN for N columns, moved up to 34TN: a sector of 32 bytes each.
// Launch: a block a row, as many threads as the row has packs of 16 bytes (32 ... 256); gather_columns: a thread a
// number.
#pragma once
#include <cstdint>
#include "../runtime/device.h"
#include "../runtime/parallel.h"

// where a token's key and value go: a row of place 0 (prompts) or of place 1 (sampled tokens)
struct CacheRow {
    int place;
    int64_t row;
};

// Some rows of a matrix, or all of them
struct RowList {
    bool all = true;
    int64_t count = 0;          // else: how many
    const int* rows = nullptr;  // [count], ascending, where the matrix is
};

// ---------------------------------------------------------------------------------------------------------------------
// CPU loops

template <class T>
void gather_rows_cpu(T* out,           // [R,C]
                     const T* inp,     // [T,C]
                     const int* rows,  // [R], each in [0,T)
                     int64_t R, int64_t C) {
#pragma omp parallel for schedule(static) if (worth_threads(R * C / 8))
    for (int64_t r = 0; r < R; r++) memcpy(static_cast<void*>(out + r * C), inp + rows[r] * C, C * sizeof(T));
}

template <class T>
void put_rows_cpu(T* out,           // [T,C]
                  const T* inp,     // [R,C]
                  const int* rows,  // [R], each in [0,T), distinct
                  int64_t R, int64_t C) {
#pragma omp parallel for schedule(static) if (worth_threads(R * C / 8))
    for (int64_t r = 0; r < R; r++) memcpy(static_cast<void*>(out + rows[r] * C), inp + r * C, C * sizeof(T));
}

inline void gather_columns_cpu(Rows<floatX> out,        // [T,width]
                               Rows<const floatX> inp,  // [T,...]
                               const int* columns,      // [count]
                               int64_t T, int64_t count, int64_t width) {
#pragma omp parallel for schedule(static) if (worth_threads(T * width))
    for (int64_t t = 0; t < T; t++) {
        floatX* to = out.row(t);
        const floatX* from = inp.row(t);
        for (int64_t i = 0; i < count; i++) to[i] = from[columns[i]];
        for (int64_t i = count; i < width; i++) to[i] = (floatX)0.0f;
    }
}

inline void scatter_rows_cpu(floatX* out,        // [T,C]
                             const floatX* inp,  // [R,C]
                             const int* rows,    // [R], each in [0,T), equal ones together
                             int64_t R, int64_t T, int64_t C) {
    memset(static_cast<void*>(out), 0, T * C * sizeof(floatX));
#pragma omp parallel for schedule(static) if (worth_threads(R * C / 8))
    for (int64_t r = 0; r < R; r++) {
        if (r > 0 && rows[r] == rows[r - 1]) continue;
        int64_t end = r + 1;
        while (end < R && rows[end] == rows[r]) end++;
        floatX* to = out + rows[r] * C;
        if (end == r + 1) memcpy(to, inp + r * C, C * sizeof(floatX));
        for (int64_t i = 0; end > r + 1 && i < C; i++) {
            float sum = 0.0f;
            for (int64_t k = r; k < end; k++) sum += (float)inp[k * C + i];
            to[i] = (floatX)sum;
        }
    }
}

inline void kv_cache_write_cpu(floatX* const k[2], floatX* const v[2],                // [rows of the place, width]
                               Rows<const floatX> k_rows, Rows<const floatX> v_rows,  // [T,width]
                               const CacheRow* writes, int64_t T, int64_t width) {
#pragma omp parallel for schedule(static) if (worth_threads(T * width / 4))
    for (int64_t t = 0; t < T; t++) {
        if (writes[t].row < 0) continue;
        int64_t at = writes[t].row * width;
        memcpy(k[writes[t].place] + at, k_rows.row(t), width * sizeof(floatX));
        memcpy(v[writes[t].place] + at, v_rows.row(t), width * sizeof(floatX));
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

#if HAS_KERNELS
static constexpr int ROWS_BLOCK = 256;

// by the whole block
template <class T>
__device__ inline void copy_row(T* to, const T* from, int C, bool aligned) {
    constexpr int W = Pack128<T>::size;
    for (int i = threadIdx.x * W; i < C; i += blockDim.x * W)
        store_pack(to, i, C, aligned, load_pack(from, i, C, aligned));
}

// grid: R
template <class T>
__global__ void gather_rows_kernel(T* out, const T* inp, const int* rows, int C, bool aligned) {
    copy_row(out + (int64_t)blockIdx.x * C, inp + (int64_t)rows[blockIdx.x] * C, C, aligned);
}

// grid: R
template <class T>
__global__ void put_rows_kernel(T* out, const T* inp, const int* rows, int C, bool aligned) {
    copy_row(out + (int64_t)rows[blockIdx.x] * C, inp + (int64_t)blockIdx.x * C, C, aligned);
}

// grid: CEIL_DIV(T * width, ROWS_BLOCK)
__global__ void gather_columns_kernel(Rows<floatX> out, Rows<const floatX> inp, const int* columns, int64_t T,
                                      int count, int width) {
    const int64_t i = (int64_t)blockIdx.x * ROWS_BLOCK + threadIdx.x, t = i / width;
    const int column = (int)(i % width);
    if (t < T) out.row(t)[column] = column < count ? inp.row(t)[columns[column]] : (floatX)0.0f;
}

// grid: R
__global__ void scatter_rows_kernel(floatX* out, const floatX* inp, const int* rows, int R, int C, bool aligned) {
    constexpr int W = Pack128<floatX>::size;
    int r = blockIdx.x, end = r + 1;
    if (r > 0 && rows[r] == rows[r - 1]) return;
    while (end < R && rows[end] == rows[r]) end++;
    floatX* to = out + (int64_t)rows[r] * C;
    const floatX* from = inp + (int64_t)r * C;
    if (end == r + 1) return copy_row(to, from, C, aligned);
    for (int i = threadIdx.x * W; i < C; i += blockDim.x * W) {
        float sum[W] = {};
        for (int k = 0; k < end - r; k++) {
            Pack128<floatX> pack = load_pack(from + (int64_t)k * C, i, C, aligned);
            for (int e = 0; e < W; e++) sum[e] += (float)pack[e];
        }
        Pack128<floatX> pack;
        for (int e = 0; e < W; e++) pack[e] = (floatX)sum[e];
        store_pack(to, i, C, aligned, pack);
    }
}

// grid: (T, 2): keys, values
__global__ void kv_cache_write_kernel(floatX* k0, floatX* k1, floatX* v0, floatX* v1, Rows<const floatX> k_rows,
                                      Rows<const floatX> v_rows, const CacheRow* writes, int width, bool aligned) {
    CacheRow to = writes[blockIdx.x];
    if (to.row < 0) return;
    int64_t t = blockIdx.x, at = to.row * width;
    if (blockIdx.y == 0) copy_row((to.place ? k1 : k0) + at, k_rows.row(t), width, aligned);
    else copy_row((to.place ? v1 : v0) + at, v_rows.row(t), width, aligned);
}

template <class T>
int rows_block(int64_t C) {
    int64_t threads = CEIL_DIV(CEIL_DIV(C, Pack128<T>::size), 32) * 32;
    return (int)(threads < ROWS_BLOCK ? threads : ROWS_BLOCK);
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// launchers

inline void rows_check(const char* name, int64_t R, int64_t C) {
    if (R < 0 || R > INT32_MAX || C < 1 || C > INT32_MAX / 2)
        fail("%s: bad shape: %lld rows of %lld (at least 0 and 1, below 2^31 and 2^30)", name, (long long)R,
             (long long)C);
}

// out: [R,C]; inp: [T,C]; rows: [R], each in [0,T)
template <class T>
void gather_rows(T* out, const T* inp, const int* rows, int64_t R, int64_t C, Device dev) {
    rows_check("gather_rows", R, C);
    if (R == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        LAUNCH((gather_rows_kernel<T>), (unsigned)R, rows_block<T>(C), 0, dev.stream, out, inp, rows, (int)C,
               is_aligned16(out, C) && is_aligned16(inp, C));
        return;
    }
#endif
    (void)dev;
    gather_rows_cpu(out, inp, rows, R, C);
}

// out: [T,C]; inp: [R,C]; rows: [R], each in [0,T), distinct
template <class T>
void put_rows(T* out, const T* inp, const int* rows, int64_t R, int64_t C, Device dev) {
    rows_check("put_rows", R, C);
    if (R == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        LAUNCH((put_rows_kernel<T>), (unsigned)R, rows_block<T>(C), 0, dev.stream, out, inp, rows, (int)C,
               is_aligned16(out, C) && is_aligned16(inp, C));
        return;
    }
#endif
    (void)dev;
    put_rows_cpu(out, inp, rows, R, C);
}

// out: [T,width], 0 from column `count` on; columns: [count] of those of inp
inline void gather_columns(Rows<floatX> out, Rows<const floatX> inp, const int* columns, int64_t T, int64_t count,
                           int64_t width, Device dev) {
    rows_check("gather_columns", T, width);
    if (T == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        LAUNCH(gather_columns_kernel, (unsigned)CEIL_DIV(T * width, ROWS_BLOCK), ROWS_BLOCK, 0, dev.stream, out, inp,
               columns, T, (int)count, (int)width);
        return;
    }
#endif
    (void)dev;
    gather_columns_cpu(out, inp, columns, T, count, width);
}

// out: [T,C]; inp: [R,C]; rows: [R], each in [0,T), equal ones together. The other rows of out become 0.
inline void scatter_rows(floatX* out, const floatX* inp, const int* rows, int64_t R, int64_t T, int64_t C, Device dev) {
    rows_check("scatter_rows", R, C);
    rows_check("scatter_rows", T, C);
    if (T == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        set_zero(out, T * C * sizeof(floatX), dev);
        if (R == 0) return;
        LAUNCH(scatter_rows_kernel, (unsigned)R, rows_block<floatX>(C), 0, dev.stream, out, inp, rows, (int)R, (int)C,
               is_aligned16(out, C) && is_aligned16(inp, C));
        return;
    }
#endif
    (void)dev;
    scatter_rows_cpu(out, inp, rows, R, T, C);
}

// k, v: one layer's base of each place, [rows of the place, width]; k_rows, v_rows: [T,width]; writes: [T], distinct
inline void kv_cache_write(floatX* const k[2], floatX* const v[2], Rows<const floatX> k_rows, Rows<const floatX> v_rows,
                           const CacheRow* writes, int64_t T, int64_t width, Device dev) {
    rows_check("kv_cache_write", T, width);
    if (T == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        bool aligned = is_aligned16(k[0], width) && is_aligned16(k[1], width) && is_aligned16(v[0], width) &&
                       is_aligned16(v[1], width) && is_aligned16(k_rows) && is_aligned16(v_rows);
        LAUNCH(kv_cache_write_kernel, dim3((unsigned)T, 2), rows_block<floatX>(width), 0, dev.stream, k[0], k[1], v[0],
               v[1], k_rows, v_rows, writes, (int)width, aligned);
        return;
    }
#endif
    (void)dev;
    kv_cache_write_cpu(k, v, k_rows, v_rows, writes, T, width);
}
