// The LM head for losses that want the logits of the whole vocabulary, and whose gradient is by logit: distillation.
//   z = hidden weight^T, and the teacher's from its own hidden states and weight (another width, the same V)
//   loss(block)  reads the logits of a block of rows and writes dlogits = dL/dz
//   dhidden = dlogits weight        dweight += dlogits^T hidden
// [R,V] is never stored: at V = 151,936 and R = 4,096 it would be 2.5 GB each for student and teacher. A block has as
// many rows as fit a budget of bytes, whole rows, because a loss over two distributions needs both normalisers before
// its first gradient. Where the log-probability of one token is enough, lm_head.cuh is cheaper: its chunks are of
// columns too, and its gradient needs no second matrix.
//
// The trap: the logits are unscaled. A loss with a temperature divides by it itself, and its gradient includes the
// factor. Bits: a row of logits and of dhidden do not depend on how many rows a block has; dweight, a sum over the
// rows, does in its last places.
//
// Rows are padded to LOGIT_PACK elements, so that every row begins at a multiple of 64 bytes whatever V; what lies
// between V and the stride is never read.
// Traffic in bytes for a row besides the loss: 4V written for each of student and teacher, sizeof(floatX) V read twice.
#pragma once
#include <cstdint>
#include "../runtime/buffer.h"
#include "matmul.cuh"

// student, teacher and dlogits of one block, all together. At V = 151,936 that is 176 rows in bf16: a product of 128
// rows and more reads the weight once and is not bound by it.
constexpr int64_t LOGIT_BLOCK_BYTES = 256 << 20;
constexpr int64_t LOGIT_BLOCK_MIN_ROWS = 16;
constexpr int64_t LOGIT_PACK = 32;  // 64 bytes of bf16

// What a loss sees: rows row0 ... row0 + rows - 1 of all
struct LogitBlock {
    int64_t row0, rows, V;
    Rows<const float> logits;   // [rows,V]
    Rows<const float> teacher;  // [rows,V], or null
    Rows<floatX> dlogits;       // [rows,V] to be written, every element; null: the loss is only evaluated
};

// The second model's last hidden states and head; hidden null: there is none
struct LogitTeacher {
    const floatX* hidden = nullptr;  // [R,C]
    const floatX* weight = nullptr;  // [V,C]
    int64_t C = 0;                   // of the teacher
};

struct LogitInputs {
    const floatX* hidden;  // [R,C]
    const floatX* weight;  // [V,C]
    int64_t R, C, V;
    LogitTeacher teacher = {};
};

struct LogitScratch {
    int64_t max_rows = 0;           // of a block; 0: as many as the budget has room for
    Buffer<float> logits, teacher;  // [rows of a block, stride]
    Buffer<floatX> dlogits;         // the same
};

inline int64_t logit_stride(int64_t V) { return CEIL_DIV(V, LOGIT_PACK) * LOGIT_PACK; }

// Rows of a block; at least LOGIT_BLOCK_MIN_ROWS (or R), whatever the budget
inline int64_t logit_block_rows(int64_t R, int64_t V, bool teacher, bool training, int64_t max_rows = 0) {
    int64_t row = logit_stride(V) * (int64_t)(sizeof(float) * (teacher ? 2 : 1) + (training ? sizeof(floatX) : 0));
    int64_t rows = LOGIT_BLOCK_BYTES / row / LOGIT_BLOCK_MIN_ROWS * LOGIT_BLOCK_MIN_ROWS;
    rows = rows > LOGIT_BLOCK_MIN_ROWS ? rows : LOGIT_BLOCK_MIN_ROWS;
    if (max_rows > 0 && max_rows < rows) rows = max_rows;
    return R < rows ? R : rows;
}

// Room for R rows: lines of the memory plan. Without it, or for more rows, lm_head_logits allocates what it lacks.
inline void logit_scratch_allocate(LogitScratch& s, int64_t R, int64_t V, bool teacher, bool training, Device dev) {
    size_t n = logit_block_rows(R, V, teacher, training, s.max_rows) * logit_stride(V);
    s.logits.allocate(n, "logits of some tokens", "", dev);
    if (teacher) s.teacher.allocate(n, "the teacher's logits of some tokens", "", dev);
    if (training) s.dlogits.allocate(n, "gradients of the logits of some tokens", "", dev);
}

inline void lm_head_logits_check(const LogitInputs& in) {
    const int64_t R = in.R, C = in.C, V = in.V;
    if (R < 0 || C < 1 || V < 1 || R > INT32_MAX || C > INT32_MAX || V > INT32_MAX)
        fail("lm_head_logits: bad shape: R %lld, C %lld, V %lld (each must be below 2^31)", (long long)R, (long long)C,
             (long long)V);
    if (in.teacher.hidden && (in.teacher.C < 1 || in.teacher.C > INT32_MAX))
        fail("lm_head_logits: bad shape: the teacher's C is %lld (must be in 1 ... 2^31 - 1)", (long long)in.teacher.C);
}

// dhidden: [R,C], =, or null: loss(block) is only evaluated; dweight: [V,C], +=, or null. loss is called with a
// LogitBlock for some rows after the others, in order. On a device it launches on dev.stream.
template <class Loss>
void lm_head_logits(floatX* dhidden, float* dweight, const LogitInputs& in, LogitScratch& s, Device dev,
                    const Loss& loss) {
    NVTX_RANGE("lm_head_logits");
    lm_head_logits_check(in);
    const int64_t R = in.R, C = in.C, V = in.V, stride = logit_stride(V), teacher_C = in.teacher.C;
    const bool teacher = in.teacher.hidden != nullptr, training = dhidden != nullptr;
    const int64_t block = logit_block_rows(R, V, teacher, training, s.max_rows);
    s.logits.reserve(block * stride, "logits of some tokens", "", dev);
    if (teacher) s.teacher.reserve(block * stride, "the teacher's logits of some tokens", "", dev);
    if (training) s.dlogits.reserve(block * stride, "gradients of the logits of some tokens", "", dev);
    const Rows<float> logits = {s.logits.data, stride}, teacher_logits = {s.teacher.data, stride};
    const Rows<const floatX> weight = {in.weight, C}, dlogits = {s.dlogits.data, stride};
    for (int64_t r0 = 0; r0 < R; r0 += block) {
        const int64_t rows = R - r0 < block ? R - r0 : block;
        const Rows<const floatX> hidden = {in.hidden + r0 * C, C};
        matmul_nt(logits, hidden, weight, nullptr, rows, V, C, dev);
        LogitBlock b = {r0, rows, V, {logits.p, stride}, {}, {}};
        if (teacher) {
            matmul_nt(teacher_logits, {in.teacher.hidden + r0 * teacher_C, teacher_C}, {in.teacher.weight, teacher_C},
                      nullptr, rows, V, teacher_C, dev);
            b.teacher = {teacher_logits.p, stride};
        }
        if (training) b.dlogits = {s.dlogits.data, stride};
        loss(b);
        if (!training) continue;
        matmul_nn(Rows<floatX>{dhidden + r0 * C, C}, dlogits, weight, rows, V, C, false, dev);
        if (dweight) matmul_tn({dweight, C}, dlogits, hidden, rows, V, C, dev);
    }
}
