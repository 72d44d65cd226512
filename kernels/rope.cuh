// Rotary position embedding, rotate-half form (Su et al. 2021; Hugging Face / GPT-NeoX pairing (i, i + HD/2)).
//   forward   [x1; x2] -> [x1 cos - x2 sin; x2 cos + x1 sin],  angle = pos * inv_freq[i]
//   backward  the transpose, that is the rotation by -angle
// llama3 scaling (Llama 3.1 model card): wavelengths longer than original_max / low_freq_factor are stretched by
// `factor`, shorter than original_max / high_freq_factor are kept, and those between are interpolated. cos and sin are
// tabulated in double and stored as float; Hugging Face rounds them to the model's dtype, here they stay float.
//
// The rotation is one function for both devices, with its fused multiplications written out, so that their bits are the
// same. The table is computed on the host and copied to the device as it grows. The trap: a captured graph holds the
// table's address. rope_reserve fixes it for a number of positions, and asking for more fails then; rope_extend copies,
// so it belongs outside a capture.
//
// Traffic in bytes for bf16, least and moved: 4T H HD; the table's 4HD a token is read from memory once and then, a
// head at a time, from L1. Launch: a block a token, a thread a pack of x1 and the pack of x2 that it is rotated with.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>
#include "../runtime/buffer.h"
#include "../runtime/math.h"
#include "../runtime/parallel.h"

struct RopeTable {
    int HD = 0;
    std::vector<double> inv_freq;  // [HD/2]
    std::vector<float> cos, sin;   // [positions, HD/2]
    int positions = 0;
    Buffer<float> device_cos, device_sin;  // [reserved or positions, HD/2], when the model is on a device
    int device_positions = 0;              // of them filled
    int reserved = 0;                      // 0: as many as are asked for
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

// Memory on the device for positions [0, n), a line of the memory plan. Its address stays; more positions are refused.
inline void rope_reserve(RopeTable& r, int n, Device dev) {
    if (!dev.cuda) return;
    r.reserved = n;
    r.device_positions = 0;
    r.device_cos.allocate((size_t)n * (r.HD / 2), "rotary position tables", "lower --max_completion_length", dev);
    r.device_sin.allocate((size_t)n * (r.HD / 2), "rotary position tables", "lower --max_completion_length", dev);
}

inline void rope_upload(RopeTable& r, int n, Device dev) {
    if (n <= r.device_positions) return;
    if (r.reserved && n > r.reserved)
        fail("rope: %d positions in a table for %d; reserve as many as the longest sequence has", n, r.reserved);
    size_t half = r.HD / 2, from = (size_t)r.device_positions * half;
    if (!r.reserved) {
        r.device_cos.allocate(r.cos.size(), "rotary position tables", "", dev);
        r.device_sin.allocate(r.sin.size(), "rotary position tables", "", dev);
        from = 0;
    }
    int end = r.reserved && r.reserved < r.positions ? r.reserved : r.positions;
    size_t bytes = ((size_t)end * half - from) * sizeof(float);
    copy_to_device(r.device_cos.data + from, r.cos.data() + from, bytes, dev);
    copy_to_device(r.device_sin.data + from, r.sin.data() + from, bytes, dev);
    r.device_positions = end;
}

// tabulate positions [0, n); call before a forward that uses them
inline void rope_extend(RopeTable& r, int n, Device dev = Device()) {
    if (n <= r.positions) {
        if (dev.cuda) rope_upload(r, n, dev);
        return;
    }
    int half = r.HD / 2, asked = n;
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
    if (dev.cuda) rope_upload(r, asked, dev);
}

// (x1, x2) -> (x1 c - x2 s, x2 c + x1 s)
struct RopePair {
    float x1, x2;
};
HOST_DEVICE RopePair rope_rotate(float x1, float x2, float c, float s) {
    return RopePair{mul_add(x1, c, -(x2 * s)), mul_add(x2, c, x1 * s)};
}

// ---------------------------------------------------------------------------------------------------------------------
// CPU loops

// direction +1 forward, -1 backward. out may be inp.
inline void rope_cpu(Rows<floatX> out,        // [T, H*HD]
                     Rows<const floatX> inp,  // [T, H*HD]
                     const int* positions,    // [T]
                     const RopeTable& r, int64_t T, int H, float direction) {
    int half = r.HD / 2;
#pragma omp parallel for schedule(static) if (worth_threads(T * H * half))
    for (int64_t t = 0; t < T; t++) {
        const float* c = r.cos.data() + (size_t)positions[t] * half;
        const float* s = r.sin.data() + (size_t)positions[t] * half;
        for (int h = 0; h < H; h++) {
            const floatX* x = inp.row(t) + (int64_t)h * r.HD;
            floatX* y = out.row(t) + (int64_t)h * r.HD;
            INDEPENDENT
            for (int i = 0; i < half; i++) {
                RopePair q = rope_rotate((float)x[i], (float)x[i + half], c[i], direction * s[i]);
                y[i] = q.x1;
                y[i + half] = q.x2;
            }
        }
    }
}

inline void rope_forward_cpu(Rows<floatX> out, Rows<const floatX> inp, const int* positions, const RopeTable& r,
                             int64_t T, int H) {
    rope_cpu(out, inp, positions, r, T, H, 1.0f);
}

// in place on the gradient of the rotated rows
inline void rope_backward_cpu(Rows<floatX> dout, const int* positions, const RopeTable& r, int64_t T, int H) {
    rope_cpu(dout, {dout.p, dout.stride}, positions, r, T, H, -1.0f);
}

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernel

#if HAS_KERNELS
static constexpr int ROPE_BLOCK = 256;

// aligned: x1 and x2 of every head begin at a multiple of 16 bytes. grid: T
__global__ void rope_kernel(Rows<floatX> out, Rows<const floatX> inp, const int* positions, const float* cos,
                            const float* sin, int H, int half, float direction, bool aligned) {
    constexpr int W = Pack128<floatX>::size;
    int64_t t = blockIdx.x, table = (int64_t)positions[t] * half;
    int packs = CEIL_DIV(half, W);
    for (int p = threadIdx.x; p < H * packs; p += blockDim.x) {
        int h = p / packs, i = p % packs * W;
        const floatX* x = inp.row(t) + (int64_t)h * 2 * half;
        floatX* y = out.row(t) + (int64_t)h * 2 * half;
        Pack128<floatX> x1 = load_pack(x, i, half, aligned), x2 = load_pack(x + half, i, half, aligned);
        for (int k = 0; k < W; k += 4) {
            Pack128<float> c = load_pack(cos + table, i + k, half, aligned);
            Pack128<float> s = load_pack(sin + table, i + k, half, aligned);
            for (int j = 0; j < 4; j++) {
                RopePair q = rope_rotate((float)x1[k + j], (float)x2[k + j], c[j], direction * s[j]);
                x1[k + j] = (floatX)q.x1;
                x2[k + j] = (floatX)q.x2;
            }
        }
        store_pack(y, i, half, aligned, x1);
        store_pack(y + half, i, half, aligned, x2);
    }
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// launchers

inline void rope_launch(Rows<floatX> out, Rows<const floatX> inp, const int* positions, const RopeTable& r, int64_t T,
                        int H, float direction, Device dev) {
    if (T < 0 || T > INT32_MAX || H < 1 || r.HD < 2 || r.HD % 2)
        fail("rope: bad shape: T %lld, H %d, HD %d (HD must be even)", (long long)T, H, r.HD);
    if (T == 0) return;
#if HAS_KERNELS
    if (dev.cuda) {
        int half = r.HD / 2, threads = CEIL_DIV(H * CEIL_DIV(half, Pack128<floatX>::size), 32) * 32;
        if (!r.device_positions) fail("rope: the table is not on the device: call rope_extend first");
        bool aligned = half % Pack128<floatX>::size == 0 && is_aligned16(inp) && is_aligned16(out);
        LAUNCH(rope_kernel, (unsigned)T, threads < ROPE_BLOCK ? threads : ROPE_BLOCK, 0, dev.stream, out, inp,
               positions, r.device_cos.data, r.device_sin.data, H, half, direction, aligned);
        return;
    }
#endif
    (void)dev;
    rope_cpu(out, inp, positions, r, T, H, direction);
}

// out, inp: [T, H*HD]; positions: [T], each below what rope_extend tabulated. out may be inp.
inline void rope_forward(Rows<floatX> out, Rows<const floatX> inp, const int* positions, const RopeTable& r, int64_t T,
                         int H, Device dev) {
    NVTX_RANGE("rope_forward");
    rope_launch(out, inp, positions, r, T, H, 1.0f, dev);
}

// in place on the gradient of the rotated rows. dout: [T, H*HD]
inline void rope_backward(Rows<floatX> dout, const int* positions, const RopeTable& r, int64_t T, int H, Device dev) {
    NVTX_RANGE("rope_backward");
    rope_launch(dout, {dout.p, dout.stride}, positions, r, T, H, -1.0f, dev);
}
