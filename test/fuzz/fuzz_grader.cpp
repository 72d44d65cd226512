// A gold answer and a completion, in any bytes. Nothing is thrown; an answer that can be read is right when it is
// given; two answers that say what kind they are by themselves (no letter of a choice) are judged alike both ways;
// rewards lie in their range; and no comparison takes more than 10 ms of an optimized program, whatever the bytes
// (FUZZ_SHOW: says at the end how long the slowest took).
#include <set>
#include "../../rewards/rewards.h"
#include "fuzz.h"

// The slowest comparison so far
struct SlowestGrade {
    double milliseconds = 0.0;
    std::string gold, prediction;
    long count = 0;
    ~SlowestGrade() {
        if (!getenv("FUZZ_SHOW") || count == 0) return;
        fprintf(stderr, "grade: %ld calls, the slowest took %.2f ms (this build may be %.0f times slow): %s | %s\n",
                count, milliseconds, fuzz_slowness(), printable(gold, 400).c_str(), printable(prediction, 400).c_str());
    }
};

static Verdict timed_grade(const std::string& gold, const std::string& prediction) {
    static SlowestGrade slowest;
    Verdict verdict = Verdict::wrong;
    double milliseconds = 1e9;
    for (int again = 0; again < 3 && milliseconds > 1.0; again++)  // a page fault or a table made once is not it
        milliseconds = std::min(milliseconds, fuzz_milliseconds([&] { verdict = grade(gold, prediction); }));
    slowest.count++;
    if (milliseconds > slowest.milliseconds)
        slowest.milliseconds = milliseconds, slowest.gold = gold, slowest.prediction = prediction;
    fuzz_require(milliseconds < 10.0 * fuzz_slowness(),
                 format("%.1f ms to grade ", milliseconds) + gold + " | " + prediction);
    return verdict;
}

// Where the two directions differ: "6 m" in a formula is no 6 if it is the gold answer, and is if it is the prediction; a
// list may repeat an item in the prediction, but not leave one out of the gold answer's
static bool has_direction(const std::string& text) {
    const ParsedAnswer a = parse_answer(text);
    for (const AnswerToken& token : a.tokens)
        if (token.weak) return true;
    for (const AnswerNode& node : a.nodes)
        if (node.kind == ',') return true;
    return false;
}

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
        const Verdict same = timed_grade(text, text);
        fuzz_require(same != Verdict::wrong, "an answer equals itself: " + text);
        fuzz_require((same == Verdict::unparsable) == (timed_grade(text, "1") == Verdict::unparsable),
                     "whether a gold answer can be read is its own affair: " + text);
    }
    const Verdict there = timed_grade(gold, completion), back = timed_grade(completion, gold);
    if (choice_letter(parse_answer(gold), false) == 0 && choice_letter(parse_answer(completion), false) == 0 &&
        !has_direction(gold) && !has_direction(completion))
        fuzz_require((there == Verdict::correct) == (back == Verdict::correct),
                     "equality has two directions: " + gold + " | " + completion);
    for (const bool finished : {true, false}) {
        const std::vector<int> tokens(size % 100);
        const RewardInput alone{gold, completion, gold, finished, tokens, 64};
        const RewardInput group[] = {alone, {gold, gold, gold, finished, tokens, 64}, alone};
        for (const RewardEntry& reward : reward_table()) {
            const Settings settings = settings_of(reward.name, reward.settings, "reward_funcs");
            float r[3] = {};
            if (reward.fn.one) r[0] = reward.fn.one(alone, settings);
            else reward.fn.group(r, group, 3, settings);
            for (float x : r)
                fuzz_require(x >= -1.0f && x <= 1.1f, std::string("a reward is in its range: ") + reward.name);
            if (reward.fn.group) fuzz_require(r[0] == r[2], "equal completions are paid the same");
        }
    }
    return 0;
}
FUZZ_TARGET(grader)
