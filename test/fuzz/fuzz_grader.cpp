// A gold answer and a completion, in any bytes. Nothing is thrown; an answer that can be read is right when it is
// given; two answers that say what kind they are by themselves (no letter of a choice) are judged alike both ways;
// rewards lie in their range.
#include <set>
#include "../../rewards/rewards.h"
#include "fuzz.h"

static int fuzz_grader(const uint8_t* data, size_t size) {
    FuzzFiles in = fuzz_files(data, size, "completion");
    const std::string &gold = in["gold"], &completion = in["completion"];
    const ExtractedAnswer lenient = extract_answer(completion), strict = extract_answer(completion, false);
    fuzz_require((lenient.rule == AnswerRule::none) == lenient.text.empty(), "an answer has a rule and a text");
    fuzz_require(strict.rule == AnswerRule::none || strict.text == lenient.text, "a lenient rule comes last");
    std::string boxed, hash;
    strict_boxed(completion, boxed), strict_hash(completion, hash);
    fuzz_require(extract_choice(completion).size() <= 1, "a choice is a letter");
    for (const std::string& text : std::set<std::string>{gold, completion, lenient.text, boxed, hash}) {
        const Verdict same = grade(text, text);
        fuzz_require(same != Verdict::wrong, "an answer equals itself: " + text);
        fuzz_require((same == Verdict::unparsable) == (grade(text, "1") == Verdict::unparsable),
                     "whether a gold answer can be read is its own affair: " + text);
    }
    const Verdict there = grade(gold, completion), back = grade(completion, gold);
    if (choice_letter(parse_answer(gold), false) == 0 && choice_letter(parse_answer(completion), false) == 0)
        fuzz_require((there == Verdict::correct) == (back == Verdict::correct),
                     "equality has two directions: " + gold + " | " + completion);
    for (const bool finished : {true, false}) {
        const RewardInput input{gold, completion, gold, finished, (int)(size % 100), 64};
        for (const RewardEntry& reward : reward_table()) {
            const float r = reward.fn(input);
            fuzz_require(r >= -1.0f && r <= 1.1f, std::string("a reward is in its range: ") + reward.name);
        }
    }
    return 0;
}
FUZZ_TARGET(grader)
