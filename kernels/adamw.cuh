// AdamW (Loshchilov & Hutter 2019, algorithm 2), fp32 master weights and moments.
//   m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2
//   w = w - lr (m / (1-b1^t) / (sqrt(v / (1-b2^t)) + eps) + decay w)
// The gradient is scaled by grad_scale first, which is where clipping happens. 16 bytes read and 12 written a weight,
// plus 4 for the gradient: memory bound.
#pragma once
#include <cmath>
#include <cstdint>

struct AdamWConfig {
    float learning_rate = 1e-6f, beta1 = 0.9f, beta2 = 0.999f, epsilon = 1e-8f, weight_decay = 0.0f;
};

// step counts from 1
inline void adamw_update_cpu(float* w,           // [n]
                             float* m,           // [n]
                             float* v,           // [n]
                             const float* grad,  // [n]
                             int64_t n, float grad_scale, const AdamWConfig& c, int64_t step) {
    float correct1 = (float)(1.0 - pow((double)c.beta1, (double)step));
    float correct2 = (float)(1.0 - pow((double)c.beta2, (double)step));
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < n; i++) {
        float g = grad[i] * grad_scale;
        m[i] = c.beta1 * m[i] + (1.0f - c.beta1) * g;
        v[i] = c.beta2 * v[i] + (1.0f - c.beta2) * g * g;
        float update = (m[i] / correct1) / (sqrtf(v[i] / correct2) + c.epsilon);
        w[i] -= c.learning_rate * (update + c.weight_decay * w[i]);
    }
}
