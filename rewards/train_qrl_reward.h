/* A reward of your own as a shared library, for C or anything that speaks its ABI:
 *
 *   cc -O2 -shared -fPIC -I rewards my_reward.c -o my_reward.so
 *   ./train_qrl --reward_funcs ./my_reward.so
 *
 * The library runs inside the program, with all of its rights: where it crashes, the run ends. Texts are UTF-8, end in a NUL
 * and may hold others, which is why each has its number of bytes. They are valid until train_qrl_reward returns. */
#ifndef TRAIN_QRL_REWARD_H
#define TRAIN_QRL_REWARD_H
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TRAIN_QRL_REWARD_ABI 1

/* a reward that does not apply to a completion: left out of sums, means and deviations */
#define TRAIN_QRL_REWARD_NONE (-1.7976931348623157e308)

typedef struct {
    const char* text;
    size_t bytes;
} TrainQrlText;

typedef struct {
    TrainQrlText prompt, completion, gold;
    TrainQrlText row; /* the fields of the problem's row as a JSON object; no bytes: it comes from no file */
    int finished;     /* 1: ended by itself, 0: cut off at max_tokens */
    int tokens;       /* of the completion */
    int max_tokens;   /* it could have had so many */
} TrainQrlRewardInput;

/* TRAIN_QRL_REWARD_ABI of the header it was compiled with */
int train_qrl_reward_abi(void);

/* out [n]: the rewards of n completions, in [-1e9, 1e9] or TRAIN_QRL_REWARD_NONE. 0: done; anything else: it failed, which
 * ends the run or pays 0 for all n, as on_error says. Called by one thread at a time */
int train_qrl_reward(const TrainQrlRewardInput* in, size_t n, double* out);

/* Where the library has them: before the first call and after the last one; open returns 0 if all is well */
int train_qrl_reward_open(void);
void train_qrl_reward_close(void);

#ifdef __cplusplus
}
#endif
#endif
