// runtime/dtypes.h against NVIDIA's own conversions, bit for bit: the toolkit's cuda_bf16.h, cuda_fp16.h, cuda_fp8.h
// and cuda_fp4.h work on the host with any C++ compiler. Skipped where the toolkit's headers are not on the include
// path.
#include <gtest/gtest.h>
#include <cmath>
#include <vector>
#include "../runtime/dtypes.h"

#if !defined(TRAIN_QRL_SIMT) && __has_include(<cuda_bf16.h>) && __has_include(<cuda_fp8.h>) && __has_include(<cuda_fp4.h>)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp4.h>
#include <cuda_fp8.h>

template <class T>
static uint32_t bits_of(const T& x) {
    uint32_t bits = 0;
    memcpy(&bits, &x, sizeof(T));
    return bits;
}

// Floats around everything that decides a rounding: each exponent with the mantissas of a few bits, one unit below and
// above (ties, carries, subnormals, overflow), all 65536 upper halves with four lower halves, and a sweep of the rest.
static std::vector<float> awkward_floats() {
    std::vector<float> v;
    for (uint32_t high = 0; high < 1 << 16; high++)
        for (uint32_t low : {0x0000u, 0x0001u, 0x7FFFu, 0x8000u, 0x8001u, 0xFFFFu})
            v.push_back(bits_float(high << 16 | low));
    for (uint32_t i = 0; i < 1u << 20; i++) v.push_back(bits_float(i * 2654435761u));
    for (uint32_t exponent = 0; exponent < 256; exponent++)
        for (uint32_t top = 0; top < 1 << 12; top++)
            for (int off : {-1, 0, 1}) v.push_back(bits_float((exponent << 23 | top << 11) + (uint32_t)off));
    return v;
}

TEST(NvidiaDtypes, Bf16) {
    for (uint32_t i = 0; i < 1 << 16; i++) {
        __nv_bfloat16 theirs;
        memcpy(static_cast<void*>(&theirs), &i, 2);
        ASSERT_EQ(float_bits(bf16_bits_to_float((uint16_t)i)), float_bits(__bfloat162float(theirs))) << i;
    }
    for (float x : awkward_floats()) {
        uint32_t theirs = bits_of(__float2bfloat16_rn(x)), ours = float_to_bf16_bits(x);
        // NaN: theirs is always 0x7FFF; ours keeps the sign and the upper bits
        if (x != x) ASSERT_TRUE((theirs & 0x7FFF) > 0x7F80 && (ours & 0x7FFF) > 0x7F80);
        else ASSERT_EQ(ours, theirs) << x;
    }
}

TEST(NvidiaDtypes, Fp16) {
    for (uint32_t i = 0; i < 1 << 16; i++) {
        __half theirs;
        memcpy(static_cast<void*>(&theirs), &i, 2);
        float ours = fp16_bits_to_float((uint16_t)i), want = __half2float(theirs);
        if (want != want) ASSERT_TRUE(ours != ours) << i;
        else ASSERT_EQ(float_bits(ours), float_bits(want)) << i;
    }
    for (float x : awkward_floats()) {
        uint32_t theirs = bits_of(__float2half_rn(x)), ours = float_to_fp16_bits(x);
        if (x != x) ASSERT_TRUE((theirs & 0x7FFF) > 0x7C00 && (ours & 0x7FFF) > 0x7C00);
        else ASSERT_EQ(ours, theirs) << x;
    }
}

TEST(NvidiaDtypes, Fp8) {
    for (uint32_t i = 0; i < 256; i++) {
        for (auto kind : {__NV_E4M3, __NV_E5M2}) {
            float want = __half2float(__half(__nv_cvt_fp8_to_halfraw((__nv_fp8_storage_t)i, kind)));
            float ours = kind == __NV_E4M3 ? e4m3_bits_to_float((uint8_t)i) : e5m2_bits_to_float((uint8_t)i);
            if (want != want) ASSERT_TRUE(ours != ours) << i;
            else ASSERT_EQ(float_bits(ours), float_bits(want)) << i;
        }
    }
    for (float x : awkward_floats()) {
        uint32_t e4m3 = __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
        uint32_t e5m2 = __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E5M2);
        if (x != x) {
            ASSERT_TRUE(std::isnan(e4m3_bits_to_float(float_to_e4m3_bits(x))));
            ASSERT_TRUE(std::isnan(e5m2_bits_to_float(float_to_e5m2_bits(x))));
            continue;
        }
        ASSERT_EQ(float_to_e4m3_bits(x), e4m3) << x << " " << float_bits(x);
        ASSERT_EQ(float_to_e5m2_bits(x), e5m2) << x << " " << float_bits(x);
    }
}

TEST(NvidiaDtypes, Fp4) {
    for (uint32_t i = 0; i < 16; i++) {
        float want = __half2float(__half(__nv_cvt_fp4_to_halfraw((__nv_fp4_storage_t)i, __NV_E2M1)));
        ASSERT_EQ(float_bits(e2m1_bits_to_float((uint8_t)i)), float_bits(want)) << i;
    }
    for (float x : awkward_floats()) {
        uint32_t theirs = __nv_cvt_float_to_fp4(x, __NV_E2M1, cudaRoundNearest);
        ASSERT_EQ(float_to_e2m1_bits(x), theirs) << x << " " << float_bits(x);
    }
}
#else
TEST(NvidiaDtypes, All) { GTEST_SKIP() << "needs the CUDA toolkit's headers (cuda_bf16.h, cuda_fp8.h, cuda_fp4.h)"; }
#endif
