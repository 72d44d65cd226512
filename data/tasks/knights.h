// Knights and Knaves (Smullyan): knights tell the truth, knaves lie, and each of the islanders says one thing.
//
//   question  T: F is a knave. F: T and B differ. B: T is a knight. Who is a knight?
//   solution  KKK: T lies            the islanders in order, K a knight and N a knave, case after case,
//             KKN: T lies            and the first who says what such a one does not
//             KNK: F tells the truth
//             KNN: B tells the truth
//             NKK: B lies
//             NKN: fits
//             #### F
//
// Level l has l + 1 islanders, called by letters. Exactly one case fits, and somebody is a knight in it. Nothing is to be calculated and
// much to be kept in mind: the search is 2^(l+1) cases at most.
#pragma once
#include "task_problem.h"

struct KnightsClaim {
    int about, other;  // islanders; other -1: the claim is about one alone
    bool positive;     // is a knight, or the two are of the same kind
};

inline bool knights_claim_holds(const KnightsClaim& c, int knights) {
    const int about = knights >> c.about & 1;
    return (c.other < 0 ? about : about == (knights >> c.other & 1)) == c.positive;
}

// the first who says what such a one does not; -1: the case fits. knights: a bit for each, set for a knight
inline int knights_offender(const std::vector<KnightsClaim>& claims, int knights) {
    for (int i = 0; i < (int)claims.size(); i++)
        if (knights_claim_holds(claims[i], knights) != (bool)(knights >> i & 1)) return i;
    return -1;
}

inline TaskProblem knights_problem(TaskRandom& random, int level) {
    const int n = level + 1, cases = 1 << n;
    std::vector<char> name;
    for (char c = 'A'; c <= 'Z'; c++) name.push_back(c);
    random.shuffle(name);
    for (;;) {
        std::vector<KnightsClaim> claims;
        for (int i = 0; i < n; i++) {
            KnightsClaim c = {random.between(0, n - 2), -1, random.between(0, 1) == 1};
            c.about += c.about >= i;  // nobody speaks of himself alone
            if (random.between(0, 1)) {
                c.other = random.between(0, n - 2);
                c.other += c.other >= c.about;
                if (c.other < c.about) std::swap(c.other, c.about);
            }
            claims.push_back(c);
        }
        TaskProblem p;
        int fitting = 0, answer = 0;
        for (int i = 0; i < cases; i++) {  // in order KKK, KKN, ... : the last islander changes first
            int knights = 0;
            std::string kinds;
            for (int j = 0; j < n; j++) {
                const bool knight = !(i >> (n - 1 - j) & 1);
                knights |= knight << j;
                kinds += knight ? 'K' : 'N';
            }
            const int offender = knights_offender(claims, knights);
            if (offender < 0) fitting++, answer = knights;
            if (offender >= 0 && fitting) continue;  // the search is over
            p.solution += offender < 0 ? kinds + ": fits\n"
                                       : format("%s: %c %s\n", kinds.c_str(), name[offender],
                                                knights >> offender & 1 ? "lies" : "tells the truth");
        }
        if (fitting != 1 || answer == 0) continue;
        for (int i = 0; i < n; i++) {
            const KnightsClaim& c = claims[i];
            p.question += c.other < 0
                              ? format("%c: %c is a %s. ", name[i], name[c.about], c.positive ? "knight" : "knave")
                              : format("%c: %c and %c %s. ", name[i], name[c.about], name[c.other],
                                       c.positive ? "are alike" : "differ");
            if (answer >> i & 1) p.gold += (p.gold.empty() ? "" : ", ") + std::string(1, name[i]);
        }
        p.question += "Who is a knight?\n";
        return p;
    }
}
