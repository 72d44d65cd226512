// Repeated token n-grams of a completion (Yeo et al. 2025, arXiv 2502.03373, appendix C.2): the share that came before.
//   1 - distinct n-grams / n-grams      0 for fewer than n tokens
#pragma once
#include <algorithm>
#include <vector>

inline double repeated_ngram_share(const std::vector<int>& tokens, int n) {
    const int count = (int)tokens.size() - n + 1;
    if (count < 1) return 0.0;
    std::vector<int> starts(count);
    for (int i = 0; i < count; i++) starts[i] = i;
    const int* t = tokens.data();
    std::sort(starts.begin(), starts.end(),
              [&](int a, int b) { return std::lexicographical_compare(t + a, t + a + n, t + b, t + b + n); });
    int distinct = 1;
    for (int i = 1; i < count; i++) distinct += !std::equal(t + starts[i], t + starts[i] + n, t + starts[i - 1]);
    return 1.0 - (double)distinct / (double)count;
}
