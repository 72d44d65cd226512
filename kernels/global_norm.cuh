// Global gradient norm: sqrt(sum g^2) over every parameter, for clipping (Pascanu et al. 2013) and for the log.
// Blocks of a fixed size are summed in double and added in order, so the result does not depend on the number of
// threads. A NaN or an infinity anywhere makes the result non-finite; the caller skips the step then.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>

inline double sum_of_squares_cpu(const float* x,  // [n]
                                 int64_t n) {
    const int64_t block = 1 << 16;
    int64_t blocks = (n + block - 1) / block;
    std::vector<double> partial(blocks);
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
        int64_t end = (b + 1) * block < n ? (b + 1) * block : n;
        double sum = 0.0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = b * block; i < end; i++) sum += (double)x[i] * (double)x[i];
        partial[b] = sum;
    }
    double total = 0.0;
    for (double p : partial) total += p;
    return total;
}
