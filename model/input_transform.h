// The learned transform of a linear's inputs (methods/flatquant.cuh) as it lies on the host, in config.json's folder and
// in ModelConfig: x' = (x r) (P1 (x) P2), and the share of a token's range that Q_x of x' covers. The weights that the
// model has are W' = W (1/r) P^-T, so that x' W'^T = x W^T (kernels/kronecker.cuh).
#pragma once
#include <cmath>
#include <memory>
#include <utility>
#include <vector>
#include "../runtime/error.h"

struct InputTransform {
    int n1 = 0, n2 = 0;
    std::vector<float> p1, p2, scale;  // [n1,n1], [n2,n2], r [n1 n2]
    float clip = 1.0f;
};

// [4 L], of a layer's linears in the order of Product; null: none
typedef std::shared_ptr<const std::vector<InputTransform>> InputTransforms;

// P^-T of p [n,n] by Gauss and Jordan in double, with pivots; empty: p is singular
inline std::vector<float> inverse_transposed(const std::vector<float>& p, int n) {
    std::vector<double> a(p.begin(), p.end()), b((size_t)n * n);
    for (int i = 0; i < n; i++) b[(size_t)i * n + i] = 1.0;
    for (int c = 0; c < n; c++) {
        int pivot = c;
        for (int i = c + 1; i < n; i++)
            if (std::fabs(a[(size_t)i * n + c]) > std::fabs(a[(size_t)pivot * n + c])) pivot = i;
        const double value = a[(size_t)pivot * n + c];
        if (!(std::fabs(value) > 1e-12)) return {};
        for (int j = 0; j < n; j++) {
            std::swap(a[(size_t)c * n + j], a[(size_t)pivot * n + j]), a[(size_t)c * n + j] /= value;
            std::swap(b[(size_t)c * n + j], b[(size_t)pivot * n + j]), b[(size_t)c * n + j] /= value;
        }
        for (int i = 0; i < n; i++) {
            const double factor = a[(size_t)i * n + c];
            for (int j = 0; j < n && i != c && factor != 0.0; j++) {
                a[(size_t)i * n + j] -= factor * a[(size_t)c * n + j];
                b[(size_t)i * n + j] -= factor * b[(size_t)c * n + j];
            }
        }
    }
    std::vector<float> inverse((size_t)n * n);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) inverse[(size_t)j * n + i] = (float)b[(size_t)i * n + j];
    return inverse;
}

// P1, P2, r, P1^-T, P2^-T, 1/r: as a linear's views lie in memory; empty: P has no inverse
inline std::vector<float> transform_numbers(const InputTransform& t) {
    std::vector<float> all = t.p1;
    const std::vector<float> d1 = inverse_transposed(t.p1, t.n1), d2 = inverse_transposed(t.p2, t.n2);
    if (d1.empty() || d2.empty()) return {};
    all.insert(all.end(), t.p2.begin(), t.p2.end());
    all.insert(all.end(), t.scale.begin(), t.scale.end());
    all.insert(all.end(), d1.begin(), d1.end());
    all.insert(all.end(), d2.begin(), d2.end());
    for (float r : t.scale) all.push_back(1.0f / r);
    return all;
}
