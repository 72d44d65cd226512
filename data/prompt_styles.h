// Ways to ask, after which published numbers can be repeated: what stands around a question, worked examples before it,
// and the texts that end a completion.
//
//   boxed               Qwen2.5-Math's and open-r1's: a system message that asks for \boxed{}
//   lm_eval_gsm8k       lm-eval's gsm8k (version 3): "Question: ...\nAnswer:" after 5 examples of the training set.
//                       lm-eval draws them anew for each question, by Python's generator; here they are the first ones
//   lm_eval_gsm8k_cot   lm-eval's gsm8k_cot (version 3): "Q: ...\nA:" after the 8 examples of Wei et al. 2022 (arXiv
//                       2201.11903), which end in "The answer is 6."
// The trap: an example that is the question itself gives its answer away, so such a one is passed over.
#pragma once
#include <string>
#include <vector>
#include "overlap.h"

struct Shot {
    std::string question, answer;
};

struct PromptStyle {
    const char* name;
    const char* ask;           // before the question; null: the question says how it is to be answered
    const char* answer;        // after it
    const char* stop_strings;  // as in --stop_strings
    const char* system;        // the system message
    int shots;                 // examples, unless --num_fewshot says another number
};

inline constexpr PromptStyle prompt_styles[] = {
    {"auto", nullptr, nullptr, "", "", 0},
    {"boxed", nullptr, nullptr, "", "Please reason step by step, and put your final answer within \\boxed{}.", 0},
    {"lm_eval_gsm8k", "Question: ", "\nAnswer:", "Question:,</s>,<|im_end|>", "", 5},
    {"lm_eval_gsm8k_cot", "Q: ", "\nA:", "Q:,</s>,<|im_end|>", "", 8},
};

inline const PromptStyle& find_prompt_style(const std::string& name) {
    for (const PromptStyle& style : prompt_styles)
        if (name == style.name) return style;
    fail_usage("--prompt_style: no style %s", shown(name).c_str());
}

// The examples of Wei et al. 2022, table 20, as lm-eval's gsm8k_cot has them
inline const std::vector<Shot>& chain_of_thought_shots() {
    static const std::vector<Shot> shots = {
        {"There are 15 trees in the grove. Grove workers will plant trees in the grove today. After they are done, "
         "there "
         "will be 21 trees. How many trees did the grove workers plant today?",
         "There are 15 trees originally. Then there were 21 trees after some more were planted. So there must have "
         "been "
         "21 - 15 = 6. The answer is 6."},
        {"If there are 3 cars in the parking lot and 2 more cars arrive, how many cars are in the parking lot?",
         "There are originally 3 cars. 2 more cars arrive. 3 + 2 = 5. The answer is 5."},
        {"Leah had 32 chocolates and her sister had 42. If they ate 35, how many pieces do they have left in total?",
         "Originally, Leah had 32 chocolates. Her sister had 42. So in total they had 32 + 42 = 74. After eating 35, "
         "they "
         "had 74 - 35 = 39. The answer is 39."},
        {"Jason had 20 lollipops. He gave Denny some lollipops. Now Jason has 12 lollipops. How many lollipops did "
         "Jason "
         "give to Denny?",
         "Jason started with 20 lollipops. Then he had 12 after giving some to Denny. So he gave Denny 20 - 12 = 8. "
         "The "
         "answer is 8."},
        {"Shawn has five toys. For Christmas, he got two toys each from his mom and dad. How many toys does he have "
         "now?",
         "Shawn started with 5 toys. If he got 2 toys each from his mom and dad, then that is 4 more toys. 5 + 4 = 9. "
         "The "
         "answer is 9."},
        {"There were nine computers in the server room. Five more computers were installed each day, from monday to "
         "thursday. How many computers are now in the server room?",
         "There were originally 9 computers. For each of 4 days, 5 more computers were added. So 5 * 4 = 20 computers "
         "were added. 9 + 20 is 29. The answer is 29."},
        {"Michael had 58 golf balls. On tuesday, he lost 23 golf balls. On wednesday, he lost 2 more. How many golf "
         "balls "
         "did he have at the end of wednesday?",
         "Michael started with 58 golf balls. After losing 23 on tuesday, he had 58 - 23 = 35. After losing 2 more, he "
         "had 35 - 2 = 33 golf balls. The answer is 33."},
        {"Olivia has $23. She bought five bagels for $3 each. How much money does she have left?",
         "Olivia had 23 dollars. 5 bagels for 3 dollars each will be 5 x 3 = 15 dollars. So she has 23 - 15 dollars "
         "left. "
         "23 - 15 is 8. The answer is 8."},
    };
    return shots;
}

// The first examples of a file: n, and one to take the place of one that is asked. Fails where there are fewer than n.
inline std::vector<Shot> load_shots(const std::string& path, int n) {
    std::vector<Shot> shots;
    for (const SftExample& e : load_sft(path)) {
        if ((int)shots.size() > n) break;
        if (e.prompt.empty() || !e.messages.is_null())
            fail("%s:%d: --fewshot_data takes rows of a question and its worked answer, such as GSM8K's", path.c_str(),
                 e.line);
        shots.push_back({e.prompt, e.completion});
    }
    if ((int)shots.size() < n)
        fail("%s has %zu examples, and --num_fewshot asks for %d", path.c_str(), shots.size(), n);
    return shots;
}

// The question after n examples, as lm-eval joins them; asked: the question itself
inline std::string few_shot_text(const PromptStyle& style, const std::vector<Shot>& shots, int n,
                                 const std::string& question, const std::string& asked) {
    const std::string same = normalized_question(asked);
    std::string text;
    for (const Shot& shot : shots) {
        if (n == 0) break;
        if (normalized_question(shot.question) == same) continue;
        text += style.ask + shot.question + style.answer + " " + shot.answer + "\n\n";
        n--;
    }
    return text + style.ask + question + style.answer;
}

// What is asked for: "the final answer", or what the row's gold answer is
inline std::string answer_words(const Problem& p) {
    const std::string unit = p.unit.empty() ? "" : " in " + p.unit;
    if (p.choice) return "the letter of the right option";
    return p.several ? "all final answers" + unit + ", separated by commas," : "the final answer" + unit;
}

// What a bare question is followed by, so that the answer comes in a form the `exact` reward can read
constexpr const char* ANSWER_INSTRUCTION =
    "\nThink step by step, then give the final answer alone on the last line after ####.";

// the same where the row says more of its answer
inline std::string hash_instruction(const Problem& p) {
    if (!p.choice && !p.several && p.unit.empty()) return ANSWER_INSTRUCTION;
    return (p.choice ? "\n\n" : "\n") + ("Think step by step, then give " + answer_words(p)) +
           " alone on the last line after ####.";
}

// after a question of which the system message says that its answer is to be boxed
inline std::string boxed_instruction(const Problem& p) {
    if (p.choice) return "\n\nPut the letter of the right option within \\boxed{}.";
    if (p.several || !p.unit.empty()) return "\nPut " + answer_words(p) + " within \\boxed{}.";
    return "";
}
