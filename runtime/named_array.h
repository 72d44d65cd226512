// Arrays of a run's state under their names, to be saved and found again (formats/arrays_file.h).
#pragma once
#include <string>
#include <vector>
#include "buffer.h"
#include "dtypes.h"

struct NamedArray {
    std::string name;
    const char* dtype;  // safetensors'
    int64_t rows, cols;
    void* data;  // [rows,cols], where the model is
    size_t element;
    size_t bytes() const { return (size_t)(rows * cols) * element; }
};

inline const char* array_dtype(const float*) { return "F32"; }
inline const char* array_dtype(const bf16*) { return "BF16"; }
inline const char* array_dtype(const uint8_t*) { return "U8"; }
inline const char* array_dtype(const int8_t*) { return "I8"; }

// a buffer as one row; none if it is empty
template <class T>
void add_array(std::vector<NamedArray>& list, const std::string& name, Buffer<T>& b) {
    if (b.size) list.push_back({name, array_dtype(b.data), 1, (int64_t)b.size, b.data, sizeof(T)});
}
