// Stands in for cuBLASLt: D = alpha * op(A) op(B) + beta * C + bias, as its documentation describes it, on the CPU.
// What the real library refuses is refused here, by the same status: type combinations, leading dimensions, formats and
// alignments of the int8 and fp8 paths, a workspace or a pointer less than the algorithm was promised. Enumerators have
// the values of the toolkit's headers. Sums are fp32 (int32 for int8) in the order of k; the real order is unknown.
//
// Where the documentation leaves room, the stricter reading holds: zero-size matrices and a null C are refused, and so
// is every attribute, epilogue and type combination that is not handled here (CUBLAS_STATUS_NOT_SUPPORTED). fp8: m and
// k, and the leading dimensions of A, B, C and D, must be multiples of 16 bytes; n is free, since with the required TN
// format it is no contiguous dimension. Two-byte and four-byte types take any shape and leading dimension.
#pragma once
#include <cmath>
#include <cuda_runtime.h>

enum cudaDataType_t {
    CUDA_R_32F = 0,
    CUDA_R_16F = 2,
    CUDA_R_8I = 3,
    CUDA_R_32I = 10,
    CUDA_R_16BF = 14,
    CUDA_R_8F_E4M3 = 28,
    CUDA_R_8F_E5M2 = 29,
};
typedef cudaDataType_t cudaDataType;

enum cublasStatus_t {
    CUBLAS_STATUS_SUCCESS = 0,
    CUBLAS_STATUS_NOT_INITIALIZED = 1,
    CUBLAS_STATUS_ALLOC_FAILED = 3,
    CUBLAS_STATUS_INVALID_VALUE = 7,
    CUBLAS_STATUS_ARCH_MISMATCH = 8,
    CUBLAS_STATUS_MAPPING_ERROR = 11,
    CUBLAS_STATUS_EXECUTION_FAILED = 13,
    CUBLAS_STATUS_INTERNAL_ERROR = 14,
    CUBLAS_STATUS_NOT_SUPPORTED = 15,
    CUBLAS_STATUS_LICENSE_ERROR = 16,
};
inline const char* cublasLtGetStatusName(cublasStatus_t status) {
    switch (status) {
        case CUBLAS_STATUS_SUCCESS:
            return "CUBLAS_STATUS_SUCCESS";
        case CUBLAS_STATUS_NOT_INITIALIZED:
            return "CUBLAS_STATUS_NOT_INITIALIZED";
        case CUBLAS_STATUS_INVALID_VALUE:
            return "CUBLAS_STATUS_INVALID_VALUE";
        case CUBLAS_STATUS_NOT_SUPPORTED:
            return "CUBLAS_STATUS_NOT_SUPPORTED";
        default:
            return "a status of the simulated cuBLASLt";
    }
}
inline const char* cublasLtGetStatusString(cublasStatus_t status) {
    switch (status) {
        case CUBLAS_STATUS_SUCCESS:
            return "success";
        case CUBLAS_STATUS_NOT_INITIALIZED:
            return "the library was not initialized";
        case CUBLAS_STATUS_INVALID_VALUE:
            return "an unsupported value or parameter was passed to the function";
        case CUBLAS_STATUS_NOT_SUPPORTED:
            return "the functionality requested is not supported";
        default:
            return "a status of the simulated cuBLASLt";
    }
}

enum cublasOperation_t { CUBLAS_OP_N = 0, CUBLAS_OP_T = 1, CUBLAS_OP_C = 2 };
enum cublasComputeType_t { CUBLAS_COMPUTE_32F = 68, CUBLAS_COMPUTE_32I = 72 };
enum cublasLtOrder_t { CUBLASLT_ORDER_COL = 0, CUBLASLT_ORDER_ROW = 1 };
enum cublasLtPointerMode_t { CUBLASLT_POINTER_MODE_HOST = 0, CUBLASLT_POINTER_MODE_DEVICE = 1 };
enum cublasLtEpilogue_t {
    CUBLASLT_EPILOGUE_DEFAULT = 1,
    CUBLASLT_EPILOGUE_RELU = 2,
    CUBLASLT_EPILOGUE_BIAS = 4,
    CUBLASLT_EPILOGUE_RELU_BIAS = 6,
};
enum cublasLtReductionScheme_t {
    CUBLASLT_REDUCTION_SCHEME_NONE = 0,
    CUBLASLT_REDUCTION_SCHEME_INPLACE = 1,
    CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE = 2,
    CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE = 4,
    CUBLASLT_REDUCTION_SCHEME_MASK = 7,
};
enum cublasLtMatmulMatrixScale_t {
    CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F = 0,
    CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F = 3,
};
enum cublasLtMatrixLayoutAttribute_t {
    CUBLASLT_MATRIX_LAYOUT_TYPE = 0,
    CUBLASLT_MATRIX_LAYOUT_ORDER = 1,
    CUBLASLT_MATRIX_LAYOUT_ROWS = 2,
    CUBLASLT_MATRIX_LAYOUT_COLS = 3,
    CUBLASLT_MATRIX_LAYOUT_LD = 4,
    CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT = 5,
    CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET = 6,
};
enum cublasLtMatmulDescAttributes_t {
    CUBLASLT_MATMUL_DESC_POINTER_MODE = 2,
    CUBLASLT_MATMUL_DESC_TRANSA = 3,
    CUBLASLT_MATMUL_DESC_TRANSB = 4,
    CUBLASLT_MATMUL_DESC_EPILOGUE = 7,
    CUBLASLT_MATMUL_DESC_BIAS_POINTER = 8,
    CUBLASLT_MATMUL_DESC_A_SCALE_POINTER = 17,
    CUBLASLT_MATMUL_DESC_B_SCALE_POINTER = 18,
    CUBLASLT_MATMUL_DESC_D_SCALE_POINTER = 20,
    CUBLASLT_MATMUL_DESC_FAST_ACCUM = 25,
    CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE = 26,
    CUBLASLT_MATMUL_DESC_A_SCALE_MODE = 31,
    CUBLASLT_MATMUL_DESC_B_SCALE_MODE = 32,
};
enum cublasLtMatmulPreferenceAttributes_t {
    CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1,
    CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK = 3,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES = 5,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES = 6,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES = 7,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES = 8,
};

// ---------------------------------------------------------------------------------------------------------------------
// descriptors

typedef struct SimtLtHandle {
    int unused;
} * cublasLtHandle_t;

typedef struct SimtLtLayout {
    int32_t type;
    uint64_t rows, cols;
    int64_t ld;
    int32_t order = CUBLASLT_ORDER_COL, batch = 1;
    int64_t batch_stride = 0;
} * cublasLtMatrixLayout_t;

typedef struct SimtLtDesc {
    int32_t compute, scale;  // types
    int32_t pointer_mode = CUBLASLT_POINTER_MODE_HOST, transa = CUBLAS_OP_N, transb = CUBLAS_OP_N;
    uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    const void *bias = nullptr, *a_scale = nullptr, *b_scale = nullptr, *d_scale = nullptr;
    int32_t bias_type = -1, a_scale_mode = 0, b_scale_mode = 0;
    int8_t fast_accum = 0;  // a permission, not used
} * cublasLtMatmulDesc_t;

typedef struct SimtLtPreference {
    uint64_t workspace = 0;
    uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_MASK, alignment[4] = {256, 256, 256, 256};  // of A, B, C, D
} * cublasLtMatmulPreference_t;

struct cublasLtMatmulAlgo_t {
    uint64_t split_k;       // sums parts of k in the workspace
    uint64_t alignment[4];  // of the addresses of A, B, C, D
};
struct cublasLtMatmulHeuristicResult_t {
    cublasLtMatmulAlgo_t algo;
    size_t workspaceSize;
    cublasStatus_t state;
    float wavesCount;
    int reserved[4];
};

// what a test counts
struct SimtLtCounts {
    int descriptors = 0, layouts = 0;  // alive
    int heuristics = 0;                // algorithms asked for
};
inline SimtLtCounts& simt_lt_counts() {
    static SimtLtCounts counts;
    return counts;
}

inline cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
    if (!handle) return CUBLAS_STATUS_INVALID_VALUE;
    *handle = nullptr;
    int devices;
    if (cudaGetDeviceCount(&devices) != cudaSuccess) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (simt_forbidden_in_capture(nullptr) != cudaSuccess) return CUBLAS_STATUS_ALLOC_FAILED;  // memory of the device
    *handle = new SimtLtHandle();
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    delete handle;
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type, uint64_t rows,
                                                 uint64_t cols, int64_t ld) {
    if (!layout) return CUBLAS_STATUS_INVALID_VALUE;
    *layout = new SimtLtLayout{type, rows, cols, ld};
    simt_lt_counts().layouts++;
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
    simt_lt_counts().layouts -= layout != nullptr;
    delete layout;
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t compute,
                                               cudaDataType_t scale) {
    if (!desc) return CUBLAS_STATUS_INVALID_VALUE;
    *desc = new SimtLtDesc{compute, scale};
    simt_lt_counts().descriptors++;
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
    simt_lt_counts().descriptors -= desc != nullptr;
    delete desc;
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
    if (!preference) return CUBLAS_STATUS_INVALID_VALUE;
    *preference = new SimtLtPreference;
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
    delete preference;
    return CUBLAS_STATUS_SUCCESS;
}

// a value of another size than the attribute is refused
template <class T>
cublasStatus_t simt_lt_set(T* field, const void* value, size_t bytes) {
    if (!value || bytes != sizeof(T)) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(field, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

inline cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t l, cublasLtMatrixLayoutAttribute_t which,
                                                       const void* value, size_t bytes) {
    switch (which) {
        case CUBLASLT_MATRIX_LAYOUT_TYPE:
            return simt_lt_set(&l->type, value, bytes);
        case CUBLASLT_MATRIX_LAYOUT_ORDER:
            return simt_lt_set(&l->order, value, bytes);
        case CUBLASLT_MATRIX_LAYOUT_ROWS:
            return simt_lt_set(&l->rows, value, bytes);
        case CUBLASLT_MATRIX_LAYOUT_COLS:
            return simt_lt_set(&l->cols, value, bytes);
        case CUBLASLT_MATRIX_LAYOUT_LD:
            return simt_lt_set(&l->ld, value, bytes);
        case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
            return simt_lt_set(&l->batch, value, bytes);
        case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
            return simt_lt_set(&l->batch_stride, value, bytes);
    }
    return CUBLAS_STATUS_NOT_SUPPORTED;
}

inline cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t which,
                                                     const void* value, size_t bytes) {
    switch (which) {
        case CUBLASLT_MATMUL_DESC_POINTER_MODE:
            return simt_lt_set(&d->pointer_mode, value, bytes);
        case CUBLASLT_MATMUL_DESC_TRANSA:
            return simt_lt_set(&d->transa, value, bytes);
        case CUBLASLT_MATMUL_DESC_TRANSB:
            return simt_lt_set(&d->transb, value, bytes);
        case CUBLASLT_MATMUL_DESC_EPILOGUE:
            return simt_lt_set(&d->epilogue, value, bytes);
        case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
            return simt_lt_set(&d->bias, value, bytes);
        case CUBLASLT_MATMUL_DESC_A_SCALE_POINTER:
            return simt_lt_set(&d->a_scale, value, bytes);
        case CUBLASLT_MATMUL_DESC_B_SCALE_POINTER:
            return simt_lt_set(&d->b_scale, value, bytes);
        case CUBLASLT_MATMUL_DESC_D_SCALE_POINTER:
            return simt_lt_set(&d->d_scale, value, bytes);
        case CUBLASLT_MATMUL_DESC_FAST_ACCUM:
            return simt_lt_set(&d->fast_accum, value, bytes);
        case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
            return simt_lt_set(&d->bias_type, value, bytes);
        case CUBLASLT_MATMUL_DESC_A_SCALE_MODE:
            return simt_lt_set(&d->a_scale_mode, value, bytes);
        case CUBLASLT_MATMUL_DESC_B_SCALE_MODE:
            return simt_lt_set(&d->b_scale_mode, value, bytes);
    }
    return CUBLAS_STATUS_NOT_SUPPORTED;
}

inline cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p,
                                                           cublasLtMatmulPreferenceAttributes_t which,
                                                           const void* value, size_t bytes) {
    switch (which) {
        case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
            return simt_lt_set(&p->workspace, value, bytes);
        case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
            return simt_lt_set(&p->reductions, value, bytes);
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
            return simt_lt_set(&p->alignment[which - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES], value, bytes);
    }
    return CUBLAS_STATUS_NOT_SUPPORTED;
}

// ---------------------------------------------------------------------------------------------------------------------
// numbers

inline size_t simt_lt_bytes(int type) {
    switch (type) {
        case CUDA_R_32F:
        case CUDA_R_32I:
            return 4;
        case CUDA_R_16F:
        case CUDA_R_16BF:
            return 2;
        default:
            return 1;
    }
}

inline bool simt_lt_is_fp8(int type) { return type == CUDA_R_8F_E4M3 || type == CUDA_R_8F_E5M2; }

// A floating-point number of `mantissa` stored bits and exponent bias `bias`, without its sign; the caller has dealt
// with NaN and infinity.
inline float simt_lt_decode(uint32_t bits, int mantissa, int bias) {
    uint32_t exponent = bits >> mantissa, fraction = bits & ((1u << mantissa) - 1);
    if (exponent == 0) return std::ldexp((float)fraction, 1 - bias - mantissa);
    return std::ldexp((float)(fraction | 1u << mantissa), (int)exponent - bias - mantissa);
}

// round to nearest even; `largest` is the code of everything above the greatest finite number
inline uint32_t simt_lt_encode(float size, int mantissa, int bias, uint32_t largest) {
    if (size == 0) return 0;
    if (!(size < 1e30f)) return largest;
    int exponent = std::max(std::ilogb(size), 1 - bias);
    float units = std::nearbyint(std::ldexp(size, mantissa - exponent));
    int64_t code = ((int64_t)(exponent + bias - 1) << mantissa) + (int64_t)units;
    return (uint32_t)std::min<int64_t>(code, largest);
}

// tables of the one- and two-byte types
struct SimtLtTables {
    std::vector<float> half, e4m3, e5m2;
    SimtLtTables() : half(1 << 16), e4m3(256), e5m2(256) {
        for (uint32_t i = 0; i < 1 << 16; i++) {
            uint32_t size = i & 0x7FFF;
            float x = size > 0x7C00 ? NAN : size == 0x7C00 ? INFINITY : simt_lt_decode(size, 10, 15);
            half[i] = i & 0x8000 ? -x : x;
        }
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t size = i & 0x7F;
            float x = size == 0x7F ? NAN : simt_lt_decode(size, 3, 7);
            float y = size > 0x7C ? NAN : size == 0x7C ? INFINITY : simt_lt_decode(size, 2, 15);
            e4m3[i] = i & 0x80 ? -x : x;
            e5m2[i] = i & 0x80 ? -y : y;
        }
    }
};
inline const SimtLtTables& simt_lt_tables() {
    static const SimtLtTables tables;
    return tables;
}

inline float simt_lt_load(int type, const void* p, int64_t i) {
    uint32_t bits = 0;
    switch (type) {
        case CUDA_R_16BF:
            bits = (uint32_t) static_cast<const uint16_t*>(p)[i] << 16;
            break;
        case CUDA_R_16F:
            return simt_lt_tables().half[static_cast<const uint16_t*>(p)[i]];
        case CUDA_R_8F_E4M3:
            return simt_lt_tables().e4m3[static_cast<const uint8_t*>(p)[i]];
        case CUDA_R_8F_E5M2:
            return simt_lt_tables().e5m2[static_cast<const uint8_t*>(p)[i]];
        default:
            return static_cast<const float*>(p)[i];
    }
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// round to nearest even; fp8 saturates
inline void simt_lt_store(int type, void* p, int64_t i, float x) {
    float size = std::fabs(x);
    uint32_t sign = std::signbit(x), bits;
    memcpy(&bits, &x, 4);
    switch (type) {
        case CUDA_R_16BF:
            if (std::isnan(x)) bits |= 0x400000u;
            else bits += 0x7FFFu + (bits >> 16 & 1u);
            static_cast<uint16_t*>(p)[i] = (uint16_t)(bits >> 16);
            return;
        case CUDA_R_16F:
            bits = std::isnan(x) ? 0x7E00u : simt_lt_encode(size, 10, 15, 0x7C00u);
            static_cast<uint16_t*>(p)[i] = (uint16_t)(bits | sign << 15);
            return;
        case CUDA_R_8F_E4M3:
            bits = std::isnan(x) ? 0x7Fu : simt_lt_encode(size, 3, 7, 0x7Eu);
            static_cast<uint8_t*>(p)[i] = (uint8_t)(bits | sign << 7);
            return;
        case CUDA_R_8F_E5M2:
            bits = std::isnan(x) ? 0x7Fu : simt_lt_encode(size, 2, 15, 0x7Bu);
            static_cast<uint8_t*>(p)[i] = (uint8_t)(bits | sign << 7);
            return;
        default:
            static_cast<float*>(p)[i] = x;
    }
}

inline int simt_lt_load(int, const int8_t* p, int64_t i) { return p[i]; }

// ---------------------------------------------------------------------------------------------------------------------
// what is supported

// one multiplication: op(A) (m,k), op(B) (k,n), C and D (m,n)
struct SimtLtProblem {
    SimtLtDesc desc;
    SimtLtLayout a, b, c, d;
    int64_t m, n, k;
    bool integer;
};

inline bool simt_lt_good_layout(const SimtLtLayout& l) {
    if (l.order != CUBLASLT_ORDER_COL && l.order != CUBLASLT_ORDER_ROW) return false;
    uint64_t across = l.order == CUBLASLT_ORDER_COL ? l.rows : l.cols;
    return l.rows > 0 && l.cols > 0 && l.batch > 0 && l.ld > 0 && (uint64_t)l.ld >= across;
}

inline bool simt_lt_types_supported(const SimtLtProblem& p) {
    int a = p.a.type, b = p.b.type, c = p.c.type, d = p.d.type, compute = p.desc.compute, scale = p.desc.scale;
    if (compute == CUBLAS_COMPUTE_32I)
        return scale == CUDA_R_32I && a == CUDA_R_8I && b == CUDA_R_8I && c == CUDA_R_32I && d == CUDA_R_32I;
    if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F) return false;
    if (simt_lt_is_fp8(a) && simt_lt_is_fp8(b)) {
        if (a == CUDA_R_8F_E5M2 && b == CUDA_R_8F_E5M2) return false;
        if (d == CUDA_R_8F_E4M3 || (d == CUDA_R_8F_E5M2 && a != b)) return c == CUDA_R_16BF || c == CUDA_R_16F;
        return c == d && (d == CUDA_R_16BF || d == CUDA_R_16F || d == CUDA_R_32F);
    }
    return a == b && c == d && (a == CUDA_R_32F || a == CUDA_R_16BF || a == CUDA_R_16F) && (d == a || d == CUDA_R_32F);
}

inline int simt_lt_bias_type(const SimtLtProblem& p) {
    if (p.desc.bias_type != -1) return p.desc.bias_type;
    if (!simt_lt_is_fp8(p.a.type)) return p.d.type;
    return simt_lt_is_fp8(p.d.type) ? p.c.type : p.d.type == CUDA_R_32F ? (int)CUDA_R_16BF : p.d.type;
}

inline cublasStatus_t simt_lt_problem(SimtLtProblem& p, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                                      cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d) {
    if (!desc || !a || !b || !c || !d) return CUBLAS_STATUS_INVALID_VALUE;
    bool ta = desc->transa != CUBLAS_OP_N, tb = desc->transb != CUBLAS_OP_N;
    p = SimtLtProblem{*desc,
                      *a,
                      *b,
                      *c,
                      *d,
                      (int64_t)d->rows,
                      (int64_t)d->cols,
                      (int64_t)(ta ? a->rows : a->cols),
                      desc->compute == CUBLAS_COMPUTE_32I};
    for (const SimtLtLayout* l : {a, b, c, d})
        if (!simt_lt_good_layout(*l) || l->batch != d->batch) return CUBLAS_STATUS_INVALID_VALUE;
    if ((int64_t)(ta ? a->cols : a->rows) != p.m || (int64_t)(tb ? b->rows : b->cols) != p.n ||
        (int64_t)(tb ? b->cols : b->rows) != p.k || c->rows != d->rows || c->cols != d->cols)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (!simt_lt_types_supported(p)) return CUBLAS_STATUS_NOT_SUPPORTED;

    bool fp8 = simt_lt_is_fp8(a->type), bias = desc->epilogue & CUBLASLT_EPILOGUE_BIAS;
    if (desc->epilogue & ~(uint32_t)7) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (p.integer && desc->epilogue != CUBLASLT_EPILOGUE_DEFAULT) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (bias) {
        int type = simt_lt_bias_type(p);
        bool right = fp8 ? type == CUDA_R_16BF || type == CUDA_R_16F : type == d->type;
        if (!right) return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    // scales belong to the narrow types
    if (!fp8 && (desc->a_scale || desc->b_scale || desc->d_scale)) return CUBLAS_STATUS_INVALID_VALUE;
    if (desc->d_scale && !simt_lt_is_fp8(d->type)) return CUBLAS_STATUS_INVALID_VALUE;
    if (desc->a_scale_mode != desc->b_scale_mode) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (desc->a_scale_mode != CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F) {
        // one scale for each row of op(A) and column of op(B): sm_90 only
        if (desc->a_scale_mode != CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F || simt_settings.arch != 90)
            return CUBLAS_STATUS_NOT_SUPPORTED;
        if (!desc->a_scale || !desc->b_scale) return CUBLAS_STATUS_INVALID_VALUE;
    }
    if (p.integer || fp8) {
        bool columns = true;
        for (const SimtLtLayout* l : {a, b, c, d}) columns = columns && l->order == CUBLASLT_ORDER_COL;
        if (!ta || tb || !columns) return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    if (p.integer && (p.m % 4 || p.k % 4 || a->ld % 4 || b->ld % 4 || c->ld % 4 || d->ld % 4))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (fp8) {
        if (simt_settings.arch < 89) return CUBLAS_STATUS_NOT_SUPPORTED;
        if (p.m % 16 || p.k % 16) return CUBLAS_STATUS_NOT_SUPPORTED;
        for (const SimtLtLayout* l : {a, b, c, d})
            if (l->ld * simt_lt_bytes(l->type) % 16) return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    return CUBLAS_STATUS_SUCCESS;
}

// Long sums of small matrices are split over k where the caller allows it.
inline bool simt_lt_wants_split(const SimtLtProblem& p) { return p.k >= 4 * std::max(p.m, p.n); }
inline size_t simt_lt_split_bytes(const SimtLtProblem& p) { return (size_t)(4 * p.m * p.n * 4 * p.d.batch); }

inline cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                                     cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                                     cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                                     cublasLtMatmulPreference_t preference, int requested,
                                                     cublasLtMatmulHeuristicResult_t* results, int* count) {
    if (!handle || !preference || !results || !count || requested < 1) return CUBLAS_STATUS_INVALID_VALUE;
    *count = 0;
    simt_lt_counts().heuristics++;
    SimtLtProblem p;
    cublasStatus_t status = simt_lt_problem(p, desc, a, b, c, d);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    cublasLtMatmulHeuristicResult_t result = {};
    bool allowed =
        preference->reductions & (CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE | CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE);
    if (allowed && simt_lt_wants_split(p) && preference->workspace >= simt_lt_split_bytes(p)) {
        result.algo.split_k = 1;
        result.workspaceSize = simt_lt_split_bytes(p);
    }
    const SimtLtLayout* layouts[4] = {a, b, c, d};
    for (int i = 0; i < 4; i++) {
        uint64_t element = simt_lt_bytes(layouts[i]->type), needed = simt_lt_is_fp8(p.a.type) ? 16
                                                                     : p.integer              ? 4
                                                                                              : element;
        if (preference->alignment[i] < needed) return CUBLAS_STATUS_NOT_SUPPORTED;
        result.algo.alignment[i] = std::min<uint64_t>(preference->alignment[i], 16);  // no load is wider
    }
    result.wavesCount = 1.0f;
    results[0] = result;
    *count = 1;
    return CUBLAS_STATUS_SUCCESS;
}

// ---------------------------------------------------------------------------------------------------------------------
// the product

static constexpr int SIMT_LT_PANEL = 32;  // rows of op(A) that are multiplied together

inline int64_t simt_lt_index(const SimtLtLayout& l, int64_t row, int64_t col) {
    return l.order == CUBLASLT_ORDER_COL ? row + col * l.ld : row * l.ld + col;
}

template <class Number>
struct SimtLtProduct {
    typedef Number Vector __attribute__((vector_size(32)));
    std::vector<Number> a;  // (panels,k,32), zeros behind row m
    std::vector<Number> b;  // (n,k)
};

// sums: (32), of one panel of A and one row of b
template <class Number>
void simt_lt_column(Number* sums, const Number* a, const Number* b, int64_t k) {
    typedef typename SimtLtProduct<Number>::Vector Vector;
    Vector s0 = {}, s1 = {}, s2 = {}, s3 = {}, x;
    for (int64_t i = 0; i < k; i++, a += SIMT_LT_PANEL) {
        memcpy(&x, a, 32), s0 += x * b[i];
        memcpy(&x, a + 8, 32), s1 += x * b[i];
        memcpy(&x, a + 16, 32), s2 += x * b[i];
        memcpy(&x, a + 24, 32), s3 += x * b[i];
    }
    memcpy(sums, &s0, 32);
    memcpy(sums + 8, &s1, 32);
    memcpy(sums + 16, &s2, 32);
    memcpy(sums + 24, &s3, 32);
}

struct SimtLtScalars {
    float alpha, beta;
    int32_t alpha_int, beta_int;
};

inline void simt_lt_finish(const SimtLtProblem& p, const SimtLtScalars& s, const void* C, void* D, int64_t i, int64_t j,
                           float sum) {
    const SimtLtDesc& desc = p.desc;
    bool outer = desc.a_scale_mode == CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
    if (desc.a_scale) sum *= static_cast<const float*>(desc.a_scale)[outer ? i : 0];
    if (desc.b_scale) sum *= static_cast<const float*>(desc.b_scale)[outer ? j : 0];
    float x = s.alpha * sum;
    if (s.beta != 0) x += s.beta * simt_lt_load(p.c.type, C, simt_lt_index(p.c, i, j));
    if (desc.epilogue & CUBLASLT_EPILOGUE_BIAS) x += simt_lt_load(simt_lt_bias_type(p), desc.bias, i);
    if (desc.epilogue & CUBLASLT_EPILOGUE_RELU) x = x > 0 ? x : 0;
    if (desc.d_scale) x *= *static_cast<const float*>(desc.d_scale);
    simt_lt_store(p.d.type, D, simt_lt_index(p.d, i, j), x);
}

inline void simt_lt_finish(const SimtLtProblem& p, const SimtLtScalars& s, const void* C, void* D, int64_t i, int64_t j,
                           int32_t sum) {
    int32_t x = s.alpha_int * sum;
    if (s.beta_int != 0) x += s.beta_int * static_cast<const int32_t*>(C)[simt_lt_index(p.c, i, j)];
    static_cast<int32_t*>(D)[simt_lt_index(p.d, i, j)] = x;
}

template <class Number, class Stored>
void simt_lt_multiply(const SimtLtProblem& p, const SimtLtScalars& s, const Stored* A, const Stored* B, const void* C,
                      void* D) {
    int64_t m = p.m, n = p.n, k = p.k, panels = (m + SIMT_LT_PANEL - 1) / SIMT_LT_PANEL;
    bool ta = p.desc.transa != CUBLAS_OP_N, tb = p.desc.transb != CUBLAS_OP_N;
    SimtLtProduct<Number> product;
    product.a.resize((size_t)(panels * k * SIMT_LT_PANEL));
    product.b.resize((size_t)(n * k));
#pragma omp parallel if (m * n * k > 100000)
    {
#pragma omp for
        for (int64_t i = 0; i < m; i++)
            for (int64_t l = 0; l < k; l++)
                product.a[(size_t)((i / SIMT_LT_PANEL * k + l) * SIMT_LT_PANEL + i % SIMT_LT_PANEL)] =
                    simt_lt_load(p.a.type, A, ta ? simt_lt_index(p.a, l, i) : simt_lt_index(p.a, i, l));
#pragma omp for
        for (int64_t j = 0; j < n; j++)
            for (int64_t l = 0; l < k; l++)
                product.b[(size_t)(j * k + l)] =
                    simt_lt_load(p.b.type, B, tb ? simt_lt_index(p.b, j, l) : simt_lt_index(p.b, l, j));
#pragma omp for collapse(2)
        for (int64_t panel = 0; panel < panels; panel++)
            for (int64_t j = 0; j < n; j++) {
                Number sums[SIMT_LT_PANEL];
                simt_lt_column(sums, &product.a[(size_t)(panel * k * SIMT_LT_PANEL)], &product.b[(size_t)(j * k)], k);
                for (int64_t i = panel * SIMT_LT_PANEL; i < m && i < (panel + 1) * SIMT_LT_PANEL; i++)
                    simt_lt_finish(p, s, C, D, i, j, sums[i % SIMT_LT_PANEL]);
            }
    }
}

inline cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void* alpha,
                                     const void* A, cublasLtMatrixLayout_t a, const void* B, cublasLtMatrixLayout_t b,
                                     const void* beta, const void* C, cublasLtMatrixLayout_t c, void* D,
                                     cublasLtMatrixLayout_t d, const cublasLtMatmulAlgo_t* algo, void* workspace,
                                     size_t workspace_bytes, cudaStream_t stream) {
    if (!handle || !alpha || !beta || !A || !B || !C || !D) return CUBLAS_STATUS_INVALID_VALUE;
    SimtLtProblem p;
    cublasStatus_t status = simt_lt_problem(p, desc, a, b, c, d);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    if (desc->epilogue & CUBLASLT_EPILOGUE_BIAS && !desc->bias) return CUBLAS_STATUS_INVALID_VALUE;
    if (C == D && (c->type != d->type || c->ld != d->ld || c->order != d->order || c->batch_stride != d->batch_stride))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (workspace && reinterpret_cast<uintptr_t>(workspace) % 256) return CUBLAS_STATUS_INVALID_VALUE;

    const void* addresses[4] = {A, B, C, D};
    const SimtLtLayout* layouts[4] = {a, b, c, d};
    bool split = algo && algo->split_k;
    for (int i = 0; i < 4; i++) {
        uint64_t needed = simt_lt_is_fp8(a->type) ? 16 : p.integer ? 4 : simt_lt_bytes(layouts[i]->type);
        if (algo) needed = algo->alignment[i];
        if (reinterpret_cast<uintptr_t>(addresses[i]) % needed) return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    if (split && (!workspace || workspace_bytes < simt_lt_split_bytes(p))) return CUBLAS_STATUS_INVALID_VALUE;

    SimtLtScalars now = {};
    auto read = [p](SimtLtScalars& s, const void* a_factor, const void* c_factor) {
        memcpy(p.integer ? (void*)&s.alpha_int : (void*)&s.alpha, a_factor, 4);
        memcpy(p.integer ? (void*)&s.beta_int : (void*)&s.beta, c_factor, 4);
    };
    if (desc->pointer_mode == CUBLASLT_POINTER_MODE_HOST) read(now, alpha, beta);
    else if (desc->pointer_mode != CUBLASLT_POINTER_MODE_DEVICE) return CUBLAS_STATUS_NOT_SUPPORTED;
    simt_enqueue(stream, [=] {
        SimtLtScalars s = now;
        if (p.desc.pointer_mode == CUBLASLT_POINTER_MODE_DEVICE) read(s, alpha, beta);
        if (split) memset(workspace, 0xFF, simt_lt_split_bytes(p));  // a buffer that is too small shows
        auto at = [](const void* base, const SimtLtLayout& l, int64_t i) {
            return static_cast<const char*>(base) + i * l.batch_stride * (int64_t)simt_lt_bytes(l.type);
        };
        for (int i = 0; i < p.d.batch; i++) {
            const char *ai = at(A, p.a, i), *bi = at(B, p.b, i), *ci = at(C, p.c, i);
            char* di = const_cast<char*>(at(D, p.d, i));
            if (p.integer)
                simt_lt_multiply<int32_t>(p, s, reinterpret_cast<const int8_t*>(ai),
                                          reinterpret_cast<const int8_t*>(bi), ci, di);
            else simt_lt_multiply<float>(p, s, static_cast<const void*>(ai), static_cast<const void*>(bi), ci, di);
        }
    });
    return CUBLAS_STATUS_SUCCESS;
}
