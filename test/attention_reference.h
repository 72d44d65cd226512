// Attention restated in float64, for the tests of the CPU loops and of the kernels.
#pragma once
#include <algorithm>
#include "operator_test.h"

// softmax(q k^T / sqrt(HD)) v and its derivative, with the whole matrix of probabilities. q, dout: (T,NH,HD); k, v:
// (T,NKV,HD); starts: (sequences+1)
struct AttentionReference {
    std::vector<double> out, lse, dq, dk, dv;
    AttentionReference(const std::vector<floatX>& q, const std::vector<floatX>& k, const std::vector<floatX>& v,
                       const std::vector<floatX>& dout, const std::vector<int>& starts, int64_t NH, int64_t NKV,
                       int64_t HD) {
        const int64_t T = starts.back(), group = NH / NKV;
        out.assign(T * NH * HD, 0), dq = out, lse.assign(T * NH, 0);
        dk.assign(T * NKV * HD, 0), dv = dk;
        for (size_t s = 0; s + 1 < starts.size(); s++)
            for (int64_t t = starts[s]; t < starts[s + 1]; t++)
                for (int64_t h = 0; h < NH; h++) {
                    const int64_t at = (t * NH + h) * HD, n = t - starts[s] + 1;
                    std::vector<double> p(n), dp(n);
                    double largest = -1e300, sum = 0, mean = 0;
                    auto key = [&](int64_t j) { return ((starts[s] + j) * NKV + h / group) * HD; };
                    for (int64_t j = 0; j < n; j++) {
                        for (int64_t d = 0; d < HD; d++) p[j] += (double)(float)q[at + d] * (float)k[key(j) + d];
                        p[j] /= std::sqrt((double)HD);
                        largest = std::max(largest, p[j]);
                    }
                    for (double& e : p) sum += e = std::exp(e - largest);
                    lse[t * NH + h] = largest + std::log(sum);
                    for (int64_t j = 0; j < n; j++) {
                        p[j] /= sum;
                        for (int64_t d = 0; d < HD; d++) {
                            out[at + d] += p[j] * (float)v[key(j) + d];
                            dv[key(j) + d] += p[j] * (float)dout[at + d];
                            dp[j] += (double)(float)dout[at + d] * (float)v[key(j) + d];
                        }
                        mean += p[j] * dp[j];
                    }
                    for (int64_t j = 0; j < n; j++)
                        for (int64_t d = 0; d < HD; d++) {
                            double ds = p[j] * (dp[j] - mean) / std::sqrt((double)HD);
                            dq[at + d] += ds * (float)k[key(j) + d];
                            dk[key(j) + d] += ds * (float)q[at + d];
                        }
                }
    }
};
