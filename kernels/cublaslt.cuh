// cuBLASLt behind one function, for the products whose bits need not be independent of the batch: the backward.
//
//   d (m,n) = op(a) op(b) + beta d + bias      column-major, as the library counts; a and b floatX, d floatX or float
// A row-major matrix (rows,cols) is the column-major (cols,rows) with the same leading dimension, so callers exchange
// the operands (matmul.cuh). Sums are fp32: in an fp32 build CUBLAS_COMPUTE_32F, never TF32.
//
// Asking for an algorithm takes the library up to a millisecond, so the answer is kept: a plan for each combination of
// shape, leading dimensions, transpositions, types, epilogue and alignment. Micro-batches have any number of tokens, each
// with a dozen plans of its own; of the plans the 512 last used are kept. What the library answers depends on the key
// alone, so that a plan made again is the plan that was forgotten.
// Reduction schemes are limited to those with a separate workspace in the compute type: split sums are added in a fixed
// order, and the same call gives the same bits every time.
//
// The trap: the algorithm, and with it the bits, depends on m and n. A row computed in a batch of 8 is not the row
// computed in a batch of 9: never use this where a sampler and a trainer must agree.
#pragma once
#include <cstdint>
#include <cstring>
#include <list>
#include <string>
#include <unordered_map>
#include "../runtime/device.h"

#if HAS_KERNELS
#include <cublasLt.h>

static constexpr size_t CUBLASLT_WORKSPACE = 32 << 20;  // bytes, NVIDIA's advice for Hopper

inline const char* cublaslt_hint(cublasStatus_t status) {
    switch (status) {
        case CUBLAS_STATUS_NOT_INITIALIZED:
        case CUBLAS_STATUS_ALLOC_FAILED:
            return "is device memory left? lower --micro_batch_tokens or --rollout_batch";
        case CUBLAS_STATUS_INVALID_VALUE:
        case CUBLAS_STATUS_NOT_SUPPORTED:
            return "this shape, leading dimension or type is not supported";
        case CUBLAS_STATUS_ARCH_MISMATCH:
            return "this GPU is older than the library supports";
        default:
            return "an earlier kernel may be at fault: rerun under compute-sanitizer";
    }
}

inline void cublaslt_check(cublasStatus_t status, const char* call, const char* file, int line) {
    if (status != CUBLAS_STATUS_SUCCESS)
        fail("%s:%d: %s: cuBLASLt status %d (%s)", file, line, call, (int)status, cublaslt_hint(status));
}
#define CUBLASLT_CHECK(call) cublaslt_check((call), #call, __FILE__, __LINE__)

// what a plan is for; compared as bytes, so it holds int64_t alone
struct CublasltKey {
    int64_t m, n, k, lda, ldb, ldd;
    int64_t transpose_a, transpose_b, float_d, accumulate, bias;
    int64_t align_a, align_b, align_d;  // bytes, at most 16
};

inline std::string cublaslt_key_bytes(const CublasltKey& key) {
    return std::string(reinterpret_cast<const char*>(&key), sizeof(key));
}

struct CublasltPlan {
    CublasltKey key;
    cublasLtMatmulDesc_t matmul = nullptr;
    cublasLtMatrixLayout_t a = nullptr, b = nullptr, d = nullptr;
    cublasLtMatmulAlgo_t algo;
    size_t workspace = 0;  // bytes
    explicit CublasltPlan(const CublasltKey& of) : key(of) {}
    CublasltPlan(const CublasltPlan&) = delete;
    CublasltPlan& operator=(const CublasltPlan&) = delete;
    ~CublasltPlan() {
        for (cublasLtMatrixLayout_t layout : {a, b, d})
            if (layout) cublasLtMatrixLayoutDestroy(layout);
        if (matmul) cublasLtMatmulDescDestroy(matmul);
    }
};

// one for the process, which drives one device; not for two threads at a time
struct CublasltState {
    cublasLtHandle_t handle = nullptr;
    static constexpr size_t most = 512;
    std::list<CublasltPlan> plans;                                            // the last used first
    std::unordered_map<std::string, std::list<CublasltPlan>::iterator> find;  // by the bytes of its key
};
inline CublasltState& cublaslt_state() {
    static CublasltState state;
    return state;
}

inline int64_t cublaslt_alignment(const void* p) {
    uintptr_t low = reinterpret_cast<uintptr_t>(p) % 16;
    return low == 0 ? 16 : (int64_t)(low & (~low + 1));
}

inline cublasLtMatrixLayout_t cublaslt_layout(cudaDataType_t type, int64_t rows, int64_t cols, int64_t ld) {
    cublasLtMatrixLayout_t layout = nullptr;
    CUBLASLT_CHECK(cublasLtMatrixLayoutCreate(&layout, type, (uint64_t)rows, (uint64_t)cols, ld));
    return layout;
}

// bias: of the product that the plan is made for; the heuristic may look at the pointer
inline void cublaslt_describe(CublasltPlan& plan, const floatX* bias) {
    const CublasltKey& key = plan.key;
    const cudaDataType_t x_type = sizeof(floatX) == 2 ? CUDA_R_16BF : CUDA_R_32F;
    const cudaDataType_t d_type = key.float_d ? CUDA_R_32F : x_type;
    CUBLASLT_CHECK(cublasLtMatmulDescCreate(&plan.matmul, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    auto describe = [&](cublasLtMatmulDescAttributes_t attribute, const void* value, size_t bytes) {
        CUBLASLT_CHECK(cublasLtMatmulDescSetAttribute(plan.matmul, attribute, value, bytes));
    };
    cublasOperation_t op_a = key.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasOperation_t op_b = key.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    describe(CUBLASLT_MATMUL_DESC_TRANSA, &op_a, sizeof(op_a));
    describe(CUBLASLT_MATMUL_DESC_TRANSB, &op_b, sizeof(op_b));
    if (key.bias) {
        cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
        describe(CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof(epilogue));
        describe(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &x_type, sizeof(x_type));
        describe(CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof(bias));
    }
    plan.a = cublaslt_layout(x_type, key.transpose_a ? key.k : key.m, key.transpose_a ? key.m : key.k, key.lda);
    plan.b = cublaslt_layout(x_type, key.transpose_b ? key.n : key.k, key.transpose_b ? key.k : key.n, key.ldb);
    plan.d = cublaslt_layout(d_type, key.m, key.n, key.ldd);
}

// the algorithm for what cublaslt_describe has described
inline void cublaslt_choose(CublasltPlan& plan, cublasLtHandle_t handle) {
    const CublasltKey& key = plan.key;
    cublasLtMatmulPreference_t preference = nullptr;
    CUBLASLT_CHECK(cublasLtMatmulPreferenceCreate(&preference));
    auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, const void* value, size_t bytes) {
        CUBLASLT_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, attribute, value, bytes));
    };
    uint64_t workspace = CUBLASLT_WORKSPACE;
    uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    uint32_t align_a = (uint32_t)key.align_a, align_b = (uint32_t)key.align_b, align_d = (uint32_t)key.align_d;
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof(workspace));
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes, sizeof(schemes));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &align_a, sizeof(align_a));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &align_b, sizeof(align_b));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &align_d, sizeof(align_d));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &align_d, sizeof(align_d));
    cublasLtMatmulHeuristicResult_t best;
    memset(static_cast<void*>(&best), 0, sizeof(best));
    int found = 0;
    cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle, plan.matmul, plan.a, plan.b, plan.d, plan.d,
                                                           preference, 1, &best, &found);
    CUBLASLT_CHECK(cublasLtMatmulPreferenceDestroy(preference));
    if (status != CUBLAS_STATUS_SUCCESS || found == 0)
        fail(
            "cuBLASLt has no algorithm for m %lld n %lld k %lld, lda %lld ldb %lld ldd %lld, transposed %d %d (status "
            "%d, %s)",
            (long long)key.m, (long long)key.n, (long long)key.k, (long long)key.lda, (long long)key.ldb,
            (long long)key.ldd, (int)key.transpose_a, (int)key.transpose_b, (int)status, cublaslt_hint(status));
    plan.algo = best.algo;
    plan.workspace = best.workspaceSize;
}

// valid until the next product
inline const CublasltPlan& cublaslt_plan(const CublasltKey& key, const floatX* bias) {
    CublasltState& state = cublaslt_state();
    const std::string bytes = cublaslt_key_bytes(key);
    const auto known = state.find.find(bytes);
    if (known != state.find.end()) {
        state.plans.splice(state.plans.begin(), state.plans, known->second);
        return state.plans.front();
    }
    if (!state.handle) CUBLASLT_CHECK(cublasLtCreate(&state.handle));
    std::list<CublasltPlan> made;
    made.emplace_back(key);
    cublaslt_describe(made.front(), bias);
    cublaslt_choose(made.front(), state.handle);
    state.plans.splice(state.plans.begin(), made);
    state.find[bytes] = state.plans.begin();
    if (state.plans.size() > CublasltState::most) {
        state.find.erase(cublaslt_key_bytes(state.plans.back().key));
        state.plans.pop_back();
    }
    return state.plans.front();
}

// Gives the library's memory back; the next product makes its plan anew.
inline void cublaslt_release() {
    CublasltState& state = cublaslt_state();
    state.find.clear();
    state.plans.clear();
    if (state.handle) cublasLtDestroy(state.handle);
    state.handle = nullptr;
}

// Column-major, ld elements from one column to the next; transposed: the product takes its transpose
template <class T>
struct CublasltMatrix {
    T* p;
    int64_t ld;
    bool transposed = false;
};

// d: (m,n); a: (m,k), or (k,m) when transposed; b: (k,n), or (n,k); bias: (m) or null, added to every column, of d's
// type. accumulate: d += instead of =.
template <class D>
void cublaslt_matmul(CublasltMatrix<D> d, CublasltMatrix<const floatX> a, CublasltMatrix<const floatX> b,
                     const floatX* bias, int64_t m, int64_t n, int64_t k, bool accumulate, Device dev) {
    constexpr bool FLOAT_D = std::is_same_v<D, float>;
    if (bias && !std::is_same_v<D, floatX>) fail("cublaslt_matmul: a bias needs an output of its own type");
    CublasltKey key = {m,
                       n,
                       k,
                       a.ld,
                       b.ld,
                       d.ld,
                       a.transposed,
                       b.transposed,
                       FLOAT_D,
                       accumulate,
                       bias != nullptr,
                       cublaslt_alignment(a.p),
                       cublaslt_alignment(b.p),
                       cublaslt_alignment(d.p)};
    const CublasltPlan& plan = cublaslt_plan(key, bias);
    if (bias)
        CUBLASLT_CHECK(
            cublasLtMatmulDescSetAttribute(plan.matmul, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof(bias)));
    Scratch workspace(CEIL_DIV(plan.workspace, sizeof(float)), dev);
    const float alpha = 1.0f, beta = accumulate ? 1.0f : 0.0f;
    CUBLASLT_CHECK(cublasLtMatmul(cublaslt_state().handle, plan.matmul, &alpha, a.p, plan.a, b.p, plan.b, &beta, d.p,
                                  plan.d, d.p, plan.d, &plan.algo, workspace.data, plan.workspace, dev.stream));
}
#endif
