// Rotary position embedding, rotate-half form (Su et al. 2021; Hugging Face / GPT-NeoX pairing (i, i + HD/2)).
//   forward   [x1; x2] -> [x1 cos - x2 sin; x2 cos + x1 sin],  angle = pos * inv_freq[i]
//   backward  the transpose, that is the rotation by -angle
// llama3 scaling (Llama 3.1 model card): wavelengths longer than original_max / low_freq_factor are stretched by
// `factor`, shorter than original_max / high_freq_factor are kept, and those between are interpolated. cos and sin are
// tabulated in double and stored as float; Hugging Face rounds them to the model's dtype, we do not.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>
#include "../runtime/dtypes.h"
#include "../runtime/math.h"

struct RopeTable {
    int HD = 0;
    std::vector<double> inv_freq;  // [HD/2]
    std::vector<float> cos, sin;   // [positions, HD/2]
    int positions = 0;
};

inline void rope_init(RopeTable& r, int HD, double theta, bool llama3, double factor, double low, double high,
                      double original_max) {
    const double pi = 3.14159265358979323846;
    r = RopeTable();
    r.HD = HD;
    for (int i = 0; i < HD / 2; i++) {
        // transformers computes theta^(2i/HD) in float; doing so keeps long positions equal to its own
        float f = 1.0f / powf((float)theta, (float)(2 * i) / (float)HD);
        double inv = f;
        if (llama3) {
            double wavelength = 2.0 * pi / inv;
            if (wavelength > original_max / low) {
                inv /= factor;
            } else if (wavelength > original_max / high) {
                double smooth = (original_max / wavelength - low) / (high - low);
                inv = (1.0 - smooth) * inv / factor + smooth * inv;
            }
        }
        r.inv_freq.push_back(inv);
    }
}

// tabulate positions [0, n); call before a forward that uses them
inline void rope_extend(RopeTable& r, int n) {
    if (n <= r.positions) return;
    int half = r.HD / 2;
    n = n + n / 2;
    r.cos.resize((size_t)n * half);
    r.sin.resize((size_t)n * half);
    for (int p = r.positions; p < n; p++)
        for (int i = 0; i < half; i++) {
            float angle = (float)p * (float)r.inv_freq[i];
            r.cos[(size_t)p * half + i] = (float)cos((double)angle);
            r.sin[(size_t)p * half + i] = (float)sin((double)angle);
        }
    r.positions = n;
}

// direction +1 forward, -1 backward. out may be inp.
inline void rope_cpu(floatX* out, int64_t out_stride,        // [T, H*HD] at out_stride elements a token
                     const floatX* inp, int64_t inp_stride,  // the same at inp_stride
                     const int* positions,                   // [T]
                     const RopeTable& r, int64_t T, int H, float direction) {
    int half = r.HD / 2;
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < T; t++) {
        const float* c = r.cos.data() + (size_t)positions[t] * half;
        const float* s = r.sin.data() + (size_t)positions[t] * half;
        for (int h = 0; h < H; h++) {
            const floatX* x = inp + t * inp_stride + (int64_t)h * r.HD;
            floatX* y = out + t * out_stride + (int64_t)h * r.HD;
            INDEPENDENT
            for (int i = 0; i < half; i++) {
                float x1 = (float)x[i], x2 = (float)x[i + half], sn = direction * s[i];
                y[i] = x1 * c[i] - x2 * sn;
                y[i + half] = x2 * c[i] + x1 * sn;
            }
        }
    }
}

inline void rope_forward_cpu(floatX* out, int64_t out_stride, const floatX* inp, int64_t inp_stride,
                             const int* positions, const RopeTable& r, int64_t T, int H) {
    rope_cpu(out, out_stride, inp, inp_stride, positions, r, T, H, 1.0f);
}

// in place on the gradient of the rotated rows
inline void rope_backward_cpu(floatX* dout, int64_t stride, const int* positions, const RopeTable& r, int64_t T,
                              int H) {
    rope_cpu(dout, stride, dout, stride, positions, r, T, H, -1.0f);
}
