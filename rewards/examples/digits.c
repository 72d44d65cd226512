/* A reward of one's own in C: the share of the answer's digits that are right, each in its place.
 *
 * The number after the last #### of a completion that ended by itself, against the gold answer, from the units up: 841 for 831
 * is 2/3. Digits too many count as wrong ones; a wrong sign is 0. Where the gold answer is no whole number the reward does not apply.
 *
 *   cc -O2 -shared -fPIC -I rewards rewards/examples/digits.c -o digits.so
 *   ./train_qrl --reward_funcs ./digits.so
 */
#include <string.h>
#include "train_qrl_reward.h"

/* the digits of a whole number within blanks; 0: it is none */
static size_t digits_of(const char* s, const char* end, const char** first, int* negative) {
    while (s < end && (*s == ' ' || *s == '\n')) s++;
    while (end > s && (end[-1] == ' ' || end[-1] == '\n' || end[-1] == '.')) end--;
    *negative = s < end && *s == '-';
    s += *negative;
    *first = s;
    for (const char* p = s; p < end; p++)
        if (*p < '0' || *p > '9') return 0;
    return (size_t)(end - s);
}

/* behind the last ####; null: there is none */
static const char* declared(TrainQrlText t) {
    for (size_t i = t.bytes; i >= 4; i--)
        if (memcmp(t.text + i - 4, "####", 4) == 0) return t.text + i;
    return NULL;
}

static double reward(const TrainQrlRewardInput* in) {
    const char *gold, *said, *answer = declared(in->completion);
    int gold_negative, said_negative;
    size_t n = digits_of(in->gold.text, in->gold.text + in->gold.bytes, &gold, &gold_negative), m, same = 0;
    if (n == 0) return TRAIN_QRL_REWARD_NONE;
    if (!answer || !in->finished) return 0.0;
    m = digits_of(answer, in->completion.text + in->completion.bytes, &said, &said_negative);
    if (m == 0 || said_negative != gold_negative) return 0.0;
    for (size_t i = 1; i <= n && i <= m; i++) same += gold[n - i] == said[m - i];
    return (double)same / (double)(n > m ? n : m);
}

int train_qrl_reward_abi(void) { return TRAIN_QRL_REWARD_ABI; }

int train_qrl_reward(const TrainQrlRewardInput* in, size_t n, double* out) {
    for (size_t i = 0; i < n; i++) out[i] = reward(&in[i]);
    return 0;
}
