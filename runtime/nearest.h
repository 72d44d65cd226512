// The nearest name to a misspelt one, for error messages that end in "did you mean ...?".
// Distance: optimal string alignment (insert, delete, replace, swap of neighbours; each costs 1), with case ignored and
// '-' equal to '_'. The trap: a bad suggestion is worse than none, so a name further than a third of its length is not
// near.
#pragma once
#include <algorithm>
#include <cctype>
#include <string>
#include <vector>

// Edits that turn a into b. Time and memory |a| x |b|: callers clip what the user typed (nearest() does).
inline int edit_distance(const std::string& a, const std::string& b) {
    auto fold = [](char c) { return c == '-' ? '_' : (char)std::tolower((unsigned char)c); };
    size_t n = a.size(), m = b.size(), stride = m + 1;
    std::vector<int> d((n + 1) * stride);  // (n+1, m+1): d[i][j] between the first i of a and the first j of b
    for (size_t i = 0; i <= n; i++) d[i * stride] = (int)i;
    for (size_t j = 0; j <= m; j++) d[j] = (int)j;
    for (size_t i = 1; i <= n; i++) {
        for (size_t j = 1; j <= m; j++) {
            bool same = fold(a[i - 1]) == fold(b[j - 1]);
            int best = d[(i - 1) * stride + j - 1] + (same ? 0 : 1);
            best = std::min(best, d[(i - 1) * stride + j] + 1);
            best = std::min(best, d[i * stride + j - 1] + 1);
            if (i > 1 && j > 1 && fold(a[i - 1]) == fold(b[j - 2]) && fold(a[i - 2]) == fold(b[j - 1]))
                best = std::min(best, d[(i - 2) * stride + j - 2] + 1);
            d[i * stride + j] = best;
        }
    }
    return d[n * stride + m];
}

// The candidate closest to name, the first of equals; "" when none is near.
inline std::string nearest(const std::string& name, const std::vector<std::string>& candidates) {
    if (name.empty() || name.size() > 64) return "";
    std::string best;
    int best_distance = 0;
    for (const std::string& c : candidates) {
        int distance = edit_distance(name, c);
        int limit = std::max(1, (int)std::min(name.size(), c.size()) / 3);
        if (distance <= limit && (best.empty() || distance < best_distance)) {
            best = c;
            best_distance = distance;
        }
    }
    return best;
}

// "; did you mean X?" or "", to be put behind an error message. `prefix` is what stands before a name, such as "--".
inline std::string did_you_mean(const std::string& name, const std::vector<std::string>& candidates,
                                const char* prefix = "") {
    std::string near = nearest(name, candidates);
    return near.empty() ? "" : "; did you mean " + (prefix + near) + "?";
}
