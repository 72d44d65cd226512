// Tensors of a test's own bytes.
#pragma once
#include "../formats/safetensors.h"

// Bytes that are already in dtype's layout: bf16 weights, packed codes, integers. data must outlive the write.
inline StWriteTensor st_from_bytes(const std::string& name, const std::string& dtype, const std::vector<int64_t>& shape,
                                   const void* data) {
    int d = st_dtype_index(dtype);
    int bits = d < 0 ? 8 : st_dtypes[d].bits;  // st_layout refuses the unknown type
    return {name, dtype, shape, [bits, data](int64_t first, int64_t n, uint8_t* dst) {
                memcpy(dst, (const uint8_t*)data + first * bits / 8, (size_t)(n * bits / 8));
            }};
}
