// Where the weights of a tensor stand in the cells of their grid. w: what is quantized; q = Q(w), as the forward reads it;
// a cell: all numbers that get the same code. Its edges are the midpoints of neighbouring numbers of the format, times the
// scale s by which codes are found; the outermost cells are open, and count as twice as wide as from their number to their
// edge. Of a tensor:
//   dead zone       share of weights whose code cannot change: farther from the next edge than `reach`, which Adam moves a
//                   weight at most, about (steps times rate; Kingma & Ba 2015, section 2.1)
//   rate in cells   rate mean(1 / cell): the cells that a step may cross
//   gain            <w,q> / <w,w> - 1: by how much Q(w) is larger than w as a whole. |q - w|^2 = gain^2 |w|^2 + what is
//                   uncorrelated with w
//   zeroed          |w where q = 0| / |w|
//   noise           |q - w| / |w|, and sqrt(mean(((q - w) / cell)^2)), 1/sqrt(12) where weights lie evenly in their cells
//   scale drift     mean |s / s0 - 1| over the groups, s0 as the run began
// "Decomposing MXFP4 quantization error for LLM reinforcement learning" (arXiv 2605.20402) splits Q(w) - w into scale bias,
// deadzone truncation and grid noise; of it the abstract was read. Gain and zeroed are what that says of the first two ("accumulates
// multiplicatively", "zeroing small values"), inferred. Its dead zone is of values, the one above is of updates.
//
// History, for which each weight keeps its value at its code's last change, the code, and the direction of that change:
//   drift           |w - that value| / cell: how far it has moved since without an answer of Q(w)
//   turned          weights whose last change undid the direction of the one before: they oscillate
// (kernels/oscillation.cuh has a frequency of the latter, for integers, and freezes.)
//
// All sums are taken in double over pieces of a fixed size, and the pieces in order, so that they do not depend on the number of
// threads. The CPU's and a device's differ in the order within a piece, and so by rounding; counts are exact.
// The trap: a scale that is measured moves with its group's largest weight, and all edges with it; distances are to the
// edges as they are. A group of zeros whose scale is 0 has no cells and is left out of what is measured in them.
//
// Traffic in bytes, least and moved, for bf16: statistics 6 read a weight; history 11 read, 5 written where a code changed.
// Launch: a block of 64 threads a piece of 4,096; one block adds the pieces.
#pragma once
#include <algorithm>
#include <vector>
#include "fake_quant.cuh"

static constexpr int GRID_BLOCK = 64;  // 6.6 KB of sums
static constexpr int64_t GRID_PIECE = 4096;

// Sums over weights; the last is a maximum
struct GridSums {
    double squares;       // w^2
    double products;      // w q
    double errors;        // (q - w)^2
    double zeroed;        // w^2 where q = 0
    double scales;        // |s / s0 - 1|
    double cells;         // 1 where there is a cell; what follows is of those
    double inverse;       // 1 / cell
    double cell_errors;   // ((q - w) / cell)^2
    double beyond_step;   // 1 where the edge is beyond the reach of a step
    double beyond_steps;  // ... of many
    double drift;         // |w - value| / cell
    double turned;        // 1 where the last change undid the one before
    double largest_drift;
};
static constexpr int GRID_SUMS = (int)(sizeof(GridSums) / sizeof(double)) - 1;

HOST_DEVICE void grid_sums_join(GridSums& a, const GridSums& b) {
    double* x = &a.squares;
    const double* y = &b.squares;
    for (int i = 0; i < GRID_SUMS; i++) x[i] += y[i];
    a.largest_drift = b.largest_drift > a.largest_drift ? b.largest_drift : a.largest_drift;
}

// Views
struct GridWeights {
    const float* w = nullptr;     // [groups,group]
    const floatX* q = nullptr;    // [groups,group]
    const Grid* grid = nullptr;   // [groups]
    const Grid* first = nullptr;  // [groups] of s0
    QuantGroups shape;
    QuantSpec spec;
};
struct GridReach {
    float step, steps;
};

// Views [groups,group]. code: as the codes of the tree are kept; direction: of its last change, -1 or 1, twice that if it
// undid the one before, 0: none yet; value: w at that change, or as the run began
struct GridHistory {
    int8_t *code = nullptr, *direction = nullptr;
    float* value = nullptr;
};

// The edges of the cell of each code of a table or float format, at scale 1
struct QuantCells {
    float low[256], high[256];
};
inline QuantCells quant_cells(QuantSpec spec) {
    QuantCells cells = {};
    quant_dispatch(spec.format, [&](auto f) {
        typedef decltype(f) Format;
        if constexpr (!format_is_integer<Format>) {
            std::vector<float> numbers;
            for (uint32_t code = 0; code < 1u << spec.bits; code++)
                if (std::isfinite(Format::number(code))) numbers.push_back(Format::number(code));
            std::sort(numbers.begin(), numbers.end());
            numbers.erase(std::unique(numbers.begin(), numbers.end()), numbers.end());  // -0 is 0
            for (uint32_t code = 0; code < 1u << spec.bits; code++) {
                const float number = Format::number(code);
                const size_t i = std::lower_bound(numbers.begin(), numbers.end(), number) - numbers.begin();
                cells.low[code] = i > 0 ? 0.5f * (numbers[i - 1] + number) : -INFINITY;
                cells.high[code] = i + 1 < numbers.size() ? 0.5f * (number + numbers[i + 1]) : INFINITY;
            }
        }
    });
    return cells;
}

// ---------------------------------------------------------------------------------------------------------------------
// one number

// of a weight: its distance to the next edge, and its cell, which is 0 where there is none
struct GridCell {
    float edge, cell;
};

// low, high: the range of integers
template <class Codes>
HOST_DEVICE GridCell grid_cell(float w, Grid g, float low, float high, const QuantCells& cells) {
    if constexpr (format_is_integer<Codes>) {
        const float x = w / g.scale + g.zero, level = quant_level(w, g, low, high);
        const float below = level > low ? x - level + 0.5f : INFINITY,
                    above = level < high ? level - x + 0.5f : INFINITY;
        const float size = g.scale < 0.0f ? -g.scale : g.scale;
        return {(below < above ? below : above) * size, size};
    } else {
        const float x = quant_ratio<Codes>(w, quant_divisor<Codes>(g)), size = g.zero > 0.0f ? g.zero : g.scale;
        const int code = Codes::code(x) & 0xFF;
        const float bottom = cells.low[code], top = cells.high[code], number = Codes::number((uint32_t)code);
        const float below = x - bottom, above = top - x;
        const float width = bottom == -INFINITY ? 2.0f * (top - number)
                            : top == INFINITY   ? 2.0f * (number - bottom)
                                                : top - bottom;
        const bool is_cell = size >= QUANT_LEAST_NORMAL;
        return {is_cell ? (below < above ? below : above) * size : 0.0f, is_cell ? width * size : 0.0f};
    }
}

HOST_DEVICE GridCell grid_cell(QuantSpec spec, float w, Grid g, const QuantCells& cells) {
    const float low = quant_low(spec), high = quant_high(spec);
    return quant_visit(spec.format, [&](auto f) { return grid_cell<decltype(f)>(w, g, low, high, cells); });
}

// What a number adds to the sums of the same names
struct GridNumber {
    double squares, products, errors, zeroed, inverse, cell_errors;
    bool cell, beyond_step, beyond_steps;
};
template <class Codes>
HOST_DEVICE GridNumber grid_number(float w, float q, Grid g, float low, float high, GridReach reach,
                                   const QuantCells& cells) {
    const GridCell c = grid_cell<Codes>(w, g, low, high, cells);
    const double x = (double)w, y = (double)q, off = y - x;
    GridNumber a;
    a.cell = c.cell > 0.0f;
    a.beyond_step = a.cell & (c.edge > reach.step), a.beyond_steps = a.cell & (c.edge > reach.steps);
    a.inverse = a.cell ? 1.0 / (double)c.cell : 0.0;
    a.cell_errors = off * a.inverse;
    a.cell_errors *= a.cell_errors;
    a.squares = x * x, a.products = x * y, a.errors = off * off;
    a.zeroed = q == 0.0f ? a.squares : 0.0;
    return a;
}

HOST_DEVICE GridNumber grid_number(QuantSpec spec, float w, float q, Grid g, GridReach reach, const QuantCells& cells) {
    const float low = quant_low(spec), high = quant_high(spec);
    return quant_visit(spec.format, [&](auto f) { return grid_number<decltype(f)>(w, q, g, low, high, reach, cells); });
}

HOST_DEVICE double grid_scale_drift(float scale, float first) {
    const double change = first != 0.0f ? (double)scale / (double)first - 1.0 : scale != 0.0f ? 1.0 : 0.0;
    return change < 0.0 ? -change : change;
}

// now: the code of w. mask: of quant_flipped
HOST_DEVICE void grid_history_at(const GridHistory& h, int64_t i, float w, int8_t now, Grid g, QuantSpec spec,
                                 int mask) {
    const int before = h.code[i];
    h.code[i] = now;
    if (!quant_flipped(mask, now, before)) return;
    const int last = h.direction[i];
    const int direction = quant_value(spec, now, g) > quant_value(spec, before, g) ? 1 : -1;
    const bool turned = last * direction < 0;
    h.direction[i] = (int8_t)(turned ? 2 * direction : direction);
    h.value[i] = w;
}

HOST_DEVICE void grid_drift_add(GridSums& s, const GridHistory& h, int64_t i, float w, GridCell c) {
    if (c.cell > 0.0f) {
        const double off = (double)w - (double)h.value[i], drift = (off < 0.0 ? -off : off) / (double)c.cell;
        s.drift += drift;
        s.largest_drift = drift > s.largest_drift ? drift : s.largest_drift;
    }
    s.turned += h.direction[i] == 2 || h.direction[i] == -2;
}

// ---------------------------------------------------------------------------------------------------------------------
// CPU loops

// use(sums of the piece, first, end, index of their group) for each run of weights of one group; the pieces are joined in order
template <class Use>
inline GridSums grid_pieces_cpu(const QuantGroups& shape, const Use& use) {
    const int64_t n = shape.groups * shape.group, pieces = CEIL_DIV(n, GRID_PIECE);
    std::vector<GridSums> part((size_t)pieces, GridSums());
#pragma omp parallel for schedule(static) if (worth_threads(4 * n))
    for (int64_t p = 0; p < pieces; p++) {
        const int64_t last = std::min((p + 1) * GRID_PIECE, n);
        for (int64_t i = p * GRID_PIECE, end; i < last; i = end) {
            const int64_t g = i / shape.group;
            end = std::min((g + 1) * shape.group, last);
            use(part[(size_t)p], i, end, g);
        }
    }
    GridSums all = {};
    for (const GridSums& s : part) grid_sums_join(all, s);
    return all;
}

// += the sums of n weights of a group
template <class Codes>
inline void grid_run_cpu(GridSums& s, const float* w, const floatX* q, int64_t n, Grid g, float low, float high,
                         GridReach reach, const QuantCells& cells) {
    double squares = 0.0, products = 0.0, errors = 0.0, zeroed = 0.0, inverse = 0.0, cell_errors = 0.0;
    int count = 0, beyond_step = 0, beyond_steps = 0;
#pragma omp simd reduction(+ : squares, products, errors, zeroed, inverse, cell_errors, count, beyond_step, beyond_steps)
    for (int64_t j = 0; j < n; j++) {
        const GridNumber a = grid_number<Codes>(w[j], (float)q[j], g, low, high, reach, cells);
        squares += a.squares, products += a.products, errors += a.errors, zeroed += a.zeroed;
        inverse += a.inverse, cell_errors += a.cell_errors;
        count += a.cell, beyond_step += a.beyond_step, beyond_steps += a.beyond_steps;
    }
    s.squares += squares, s.products += products, s.errors += errors, s.zeroed += zeroed;
    s.cells += count, s.inverse += inverse, s.cell_errors += cell_errors;
    s.beyond_step += beyond_step, s.beyond_steps += beyond_steps;
}

inline GridSums grid_statistics_cpu(const GridWeights& t, GridReach reach, const QuantCells& cells) {
    const float low = quant_low(t.spec), high = quant_high(t.spec);
    return quant_dispatch(t.spec.format, [&](auto kind) {
        return grid_pieces_cpu(t.shape, [&](GridSums& s, int64_t i, int64_t end, int64_t g) {
            grid_run_cpu<decltype(kind)>(s, t.w + i, t.q + i, end - i, t.grid[g], low, high, reach, cells);
            s.scales += (double)(end - i) * grid_scale_drift(t.grid[g].scale, t.first[g].scale);
        });
    });
}

inline GridSums grid_history_cpu(const GridHistory& h, const GridWeights& t, const int8_t* codes,
                                 const QuantCells& cells) {
    const float low = quant_low(t.spec), high = quant_high(t.spec);
    const int mask = quant_code_mask(t.spec);
    return quant_dispatch(t.spec.format, [&](auto kind) {
        return grid_pieces_cpu(t.shape, [&](GridSums& s, int64_t first, int64_t end, int64_t g) {
            for (int64_t i = first; i < end; i++) {
                grid_history_at(h, i, t.w[i], codes[i], t.grid[g], t.spec, mask);
                grid_drift_add(s, h, i, t.w[i], grid_cell<decltype(kind)>(t.w[i], t.grid[g], low, high, cells));
            }
        });
    });
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

#if HAS_KERNELS
// Over the block in a fixed order; thread 0 gets it. All threads of the block must call it.
__device__ inline GridSums grid_block_sums(GridSums s) {
    __shared__ GridSums part[GRID_BLOCK];
    part[threadIdx.x] = s;
    for (int half = GRID_BLOCK / 2; half > 0; half /= 2) {
        __syncthreads();
        if ((int)threadIdx.x < half) grid_sums_join(part[threadIdx.x], part[threadIdx.x + half]);
    }
    return part[threadIdx.x];
}

// use(i, its group's index) for the numbers of the block's piece that are the thread's
template <class Use>
__device__ inline void grid_piece(const QuantGroups& shape, const Use& use) {
    const int64_t n = shape.groups * shape.group, start = (int64_t)blockIdx.x * GRID_PIECE;
    const int count = (int)(n - start < GRID_PIECE ? n - start : GRID_PIECE);
    for (int i = threadIdx.x; i < count; i += GRID_BLOCK) use(start + i, (start + i) / shape.group);
}

// part: [CEIL_DIV(n, GRID_PIECE)] = grid
__global__ void grid_statistics_kernel(GridSums* part, GridWeights t, GridReach reach, QuantCells cells) {
    GridSums s = {};
    grid_piece(t.shape, [&](int64_t i, int64_t g) {
        const GridNumber a = grid_number(t.spec, t.w[i], (float)t.q[i], t.grid[g], reach, cells);
        s.squares += a.squares, s.products += a.products, s.errors += a.errors, s.zeroed += a.zeroed;
        s.cells += a.cell, s.inverse += a.inverse, s.cell_errors += a.cell_errors;
        s.beyond_step += a.beyond_step, s.beyond_steps += a.beyond_steps;
        s.scales += grid_scale_drift(t.grid[g].scale, t.first[g].scale);
    });
    s = grid_block_sums(s);
    if (threadIdx.x == 0) part[blockIdx.x] = s;
}

// the same grid; part null: the sums are not wanted
__global__ void grid_history_kernel(GridSums* part, GridHistory h, GridWeights t, const int8_t* codes,
                                    QuantCells cells) {
    const int mask = quant_code_mask(t.spec);
    GridSums s = {};
    grid_piece(t.shape, [&](int64_t i, int64_t g) {
        grid_history_at(h, i, t.w[i], codes[i], t.grid[g], t.spec, mask);
        if (part) grid_drift_add(s, h, i, t.w[i], grid_cell(t.spec, t.w[i], t.grid[g], cells));
    });
    if (!part) return;
    s = grid_block_sums(s);
    if (threadIdx.x == 0) part[blockIdx.x] = s;
}

// One block
__global__ void grid_sums_kernel(GridSums* sums, const GridSums* part, int64_t pieces) {
    GridSums s = {};
    for (int64_t i = threadIdx.x; i < pieces; i += GRID_BLOCK) grid_sums_join(s, part[i]);
    s = grid_block_sums(s);
    if (threadIdx.x == 0) grid_sums_join(*sums, s);
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// launchers. sums: where the arrays are

// *sums += those of the weights of t
inline void grid_statistics(GridSums* sums, const GridWeights& t, GridReach reach, Device dev) {
    NVTX_RANGE("grid_statistics");
    quant_check("grid_statistics", t.shape, t.spec);
    if (t.shape.groups == 0) return;
    const QuantCells cells = quant_cells(t.spec);
#if HAS_KERNELS
    if (dev.cuda) {
        const int64_t pieces = CEIL_DIV(t.shape.groups * t.shape.group, GRID_PIECE);
        Scratch scratch((size_t)pieces * sizeof(GridSums) / sizeof(float), dev);
        GridSums* part = reinterpret_cast<GridSums*>(scratch.data);
        LAUNCH(grid_statistics_kernel, (unsigned)pieces, GRID_BLOCK, 0, dev.stream, part, t, reach, cells);
        LAUNCH(grid_sums_kernel, 1, GRID_BLOCK, 0, dev.stream, sums, part, pieces);
        return;
    }
#endif
    (void)dev;
    grid_sums_join(*sums, grid_statistics_cpu(t, reach, cells));
}

// After each change of w: h follows the codes [groups,group] that w has now. A second time changes nothing. sums not null:
// += drift and turned; t.q and t.first are not read
inline void grid_history(GridSums* sums, const GridHistory& h, const GridWeights& t, const int8_t* codes, Device dev) {
    NVTX_RANGE("grid_history");
    quant_check("grid_history", t.shape, t.spec);
    if (t.shape.groups == 0) return;
    const QuantCells cells = quant_cells(t.spec);
#if HAS_KERNELS
    if (dev.cuda) {
        const int64_t pieces = CEIL_DIV(t.shape.groups * t.shape.group, GRID_PIECE);
        Scratch scratch(sums ? (size_t)pieces * sizeof(GridSums) / sizeof(float) : 0, dev);
        GridSums* part = sums ? reinterpret_cast<GridSums*>(scratch.data) : nullptr;
        LAUNCH(grid_history_kernel, (unsigned)pieces, GRID_BLOCK, 0, dev.stream, part, h, t, codes, cells);
        if (sums) LAUNCH(grid_sums_kernel, 1, GRID_BLOCK, 0, dev.stream, sums, part, pieces);
        return;
    }
#endif
    (void)dev;
    const GridSums s = grid_history_cpu(h, t, codes, cells);
    if (sums) grid_sums_join(*sums, s);
}
