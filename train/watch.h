// Warnings for a run that learns nothing, or breaks, without an error: a table of conditions, what a run's steps and
// evaluations are held against it with, and what is told. Each condition is told once, when it has held for its number of steps
// in a row, and again only after it was away for WATCH_AWAY steps: as a line on standard error, and into warnings.jsonl,
//   {"step":12,"warning":"truncated","text":"..."}
//
// Limits are meant for what nobody wants in any run, and not for what is worth a look: a warning that a healthy run gets
// is read once and never again. docs/training.md has the table, which a test compares.
//
// The trap: a run that is resumed goes on with what it has seen, so all of it is in a Watch, which the run state holds. A
// cause comes before its effects: completions that are cut off have no answers, and groups without one are all wrong.
#pragma once
#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>
#include "../runtime/comm.h"
#include "../runtime/json.h"
#include "../runtime/run_dir.h"

// ---------------------------------------------------------------------------------------------------------------------
// the table

static constexpr int WATCH_AWAY = 10;    // steps without it, after which a condition may be told again
static constexpr int WATCH_FEW = 16;     // fewer completions than these are no evidence: shares of 0.9 come by chance
static constexpr int WATCH_WINDOW = 10;  // steps of a window of rewards or losses
static constexpr int WATCH_FIRST = 3;    // steps whose mean entropy is what the run began with
static constexpr double WATCH_RIGHT = 0.9;   // of completions, from which on a policy may be as sure as it likes
static constexpr double WATCH_ERRORS = 4.0;  // standard errors of a difference of windows: 1 in 30,000 by chance

enum class Warning {
    truncated,
    unreadable,
    undeclared,
    too_hard,
    too_easy,
    constant_reward,
    equal_groups,
    no_flips,
    entropy_collapse,
    entropy_growth,
    kl_growth,
    reward_collapse,
    loss_rising,
    not_finite,
    nothing_to_learn,
    template_missing,
    template_of_base,
    bos_doubled,
    count
};
static constexpr int WARNINGS = (int)Warning::count;

struct WarningRow {
    const char* name;
    double limit, factor;   // what they limit: see the condition
    int steps;              // in a row until it is told; of an evaluation at once
    const char* condition;  // {limit}, {factor}, {steps}, {percent}: of limit; {part}: of factor, in percent
};

// clang-format off
inline constexpr WarningRow warning_rows[WARNINGS] = {
    // runs with long thoughts begin with a half cut off and learn (DeepScaleR, 42 %); beyond four fifths the reward is the limit's
    {"truncated", 0.8, 0, 1, "{percent} % of the completions or more are cut off"},
    // a model that answers at all is read in most completions: GSM8K by a 0.5B model, 98 %
    {"unreadable", 0.05, 0, 3, "an answer of any form is found in less than {percent} % of the completions, in {steps} steps or an evaluation"},
    {"undeclared", 0.05, 0, 3, "a reward reads declared answers (\\boxed or ####), and less than {percent} % of the completions have one, in {steps} steps or an evaluation"},
    // one step of few prompts may be so by chance, three are the problems
    {"too_hard", 0, 0, 3, "no completion has an advantage and none is right, in {steps} steps"},
    {"too_easy", 0, 0, 3, "no completion has an advantage and all are right, in {steps} steps"},
    {"constant_reward", 0, 0, 3, "no reward says right or wrong, and every completion got the same, in {steps} steps"},
    {"equal_groups", 0, 0, 3, "no completion has an advantage, though rewards differ from prompt to prompt, in {steps} steps"},
    // in int4 a useful step flips 0.01 % of the codes or more; a step at warm-up's first rates may flip none
    {"no_flips", 0, 0, 10, "no code of a quantized weight has changed, in {steps} steps"},
    // the embedded policy goes from 0.08 to 0.03 nats while it learns; what is below 0.01 samples one text
    {"entropy_collapse", 0.01, 0.05, 3, "entropy below {limit} nats a token or {part} % of the first steps', while less than 90 % are right, in {steps} steps"},
    // policies of language models have 0.1 to 1 nat a token; noise begins above
    {"entropy_growth", 1.0, 5.0, 3, "entropy above {limit} nat a token and {factor} times the first steps', in {steps} steps"},
    // a policy e times less likely at every token than where it began is another model
    {"kl_growth", 1.0, 10.0, 3, "KL above {limit} nat a token, or above 0.1 and {factor} times its mean so far, in {steps} steps"},
    // half of what was gained over the lowest reward, outside of the noise of both windows
    {"reward_collapse", 0, 0.5, 1, "the reward of 10 steps has lost {part} % of the best 10 steps' lead over the lowest, by 4 standard errors or more"},
    // batches differ, which the errors have; a rise by half is none of theirs
    {"loss_rising", 0, 1.5, 1, "the loss of 10 steps is {factor} times the lowest of 10 steps, by 4 standard errors or more (sft, distill)"},
    // five end the run
    {"not_finite", 0, 0, 2, "loss or gradient not finite, in {steps} steps"},
    {"nothing_to_learn", 0, 0, 3, "no token to learn, in {steps} steps (distill: every sample of the teacher was left out)"},
    // known before the first step
    {"template_missing", 0, 0, 1, "the model ends its turns with a chat's token, and prompts have no chat template"},
    {"template_of_base", 0, 0, 1, "prompts have a chat template whose end of a turn is none of the model's end tokens"},
    {"bos_doubled", 0, 0, 1, "the first prompt begins with two BOS tokens"},
};
// clang-format on

inline const WarningRow& warning_row(Warning w) { return warning_rows[(int)w]; }

// the condition with its numbers
inline std::string warning_condition(const WarningRow& r) {
    std::string text = r.condition;
    const std::pair<const char*, std::string> places[] = {{"{limit}", format("%g", r.limit)},
                                                          {"{factor}", format("%g", r.factor)},
                                                          {"{steps}", format("%d", r.steps)},
                                                          {"{percent}", format("%g", 100 * r.limit)},
                                                          {"{part}", format("%g", 100 * r.factor)}};
    for (const auto& [place, value] : places)
        for (size_t at; (at = text.find(place)) != text.npos;) text.replace(at, std::string(place).size(), value);
    return text;
}

// ---------------------------------------------------------------------------------------------------------------------
// what is watched

// A step, as far as it is known. NaN: it is not, and what asks for it stays as it was
struct WatchedStep {
    int64_t step = 0;            // from 1
    double loss = NAN;           // of a supervised objective, which is to fall
    double learning_rate = 0.0;  // of the step
    bool skipped = false;        // loss or gradient were not finite
    bool empty = false;          // there was nothing to learn from
    double flip_rate = NAN;      // of codes
    int completions = 0;         // that were sampled; the rest is of them
    double clipped = NAN;        // share that was cut off
    double ended_length = NAN;   // mean tokens of those that were not
    double reward = NAN;         // mean
    double reward_error = NAN;   // its standard error, over prompts
    double reward_low = NAN, reward_high = NAN;
    double signal = NAN;             // share with an advantage other than 0
    double right = NAN;              // share that a reward of right and wrong calls right
    double answered = NAN;           // share in which an answer of any form is found, where a reward reads answers
    double declared = NAN;           // share that declares one, where a reward reads declared answers
    double lenient = NAN;            // share that is right wherever the answer stands, where none is right otherwise
    double entropy = NAN, kl = NAN;  // nats a token
};

// an evaluation on held-out problems
struct WatchedEvaluation {
    std::string when;  // "the evaluation before training"
    int completions = 0;
    double clipped = NAN, ended_length = NAN, answered = NAN, declared = NAN, lenient = NAN;  // as of a step
};

// what the advice depends on
struct WatchContext {
    int max_completion_length = 0;
    int most_completion_length = 0;          // that the model's context has room for; 0: unknown
    const char* cut_off = "count as wrong";  // what becomes of completions that are cut off
    bool reads_declared = false;             // rewards read declared answers alone
    bool chat_template_off = false;          // prompts go without the template that the tokenizer has
    bool rewarded = false;                   // --reward_funcs pays them
};

struct ToldWarning {
    int64_t step = 0;
    Warning warning = Warning::count;
    std::string text;
};

struct WatchMark {
    int64_t since = 0;               // the step from which on it has held
    int64_t in_a_row = 0, away = 0;  // steps with it, and without it since it was told
    bool told = false;
};

// mean and its squared standard error, of steps
struct WatchWindow {
    int64_t n = 0;
    double sum = 0.0, squares = 0.0, error2 = 0.0;  // error2: sum of the squares of steps' own errors
    double mean() const { return n ? sum / (double)n : 0.0; }
    double own_error2() const { return error2 / ((double)n * (double)n); }
    double spread_error2() const {
        const double m = mean(), k = (double)n;
        return n > 1 ? std::max(squares - k * m * m, 0.0) / (k - 1.0) / k : 0.0;
    }
};

// All that has been seen. It is part of the run's state
struct Watch {
    WatchMark marks[WARNINGS];
    WatchWindow entropy;                                 // of the first steps
    WatchWindow kl;                                      // of the steps so far, but for those that are told of
    WatchWindow reward, best_reward, loss, lowest_loss;  // of the present window, and of the best
    double least_reward = INFINITY;                      // of any completion
    std::vector<ToldWarning> told;
};

// ---------------------------------------------------------------------------------------------------------------------
// saved and loaded

inline nlohmann::ordered_json watch_to_json(const Watch& w) {
    nlohmann::ordered_json j = nlohmann::ordered_json::object();
    for (int i = 0; i < WARNINGS; i++) {
        const WatchMark& m = w.marks[i];
        if (m.in_a_row || m.told) j["marks"][warning_rows[i].name] = {m.since, m.in_a_row, m.away, m.told ? 1 : 0};
    }
    auto window = [&](const char* name, const WatchWindow& x) {
        if (x.n) j[name] = {x.n, x.sum, x.squares, x.error2};
    };
    window("entropy", w.entropy), window("kl", w.kl), window("reward", w.reward);
    window("best_reward", w.best_reward), window("loss", w.loss), window("lowest_loss", w.lowest_loss);
    if (std::isfinite(w.least_reward)) j["least_reward"] = w.least_reward;
    for (const ToldWarning& t : w.told)
        j["told"].push_back({{"step", t.step}, {"warning", warning_row(t.warning).name}, {"text", t.text}});
    return j;
}

// where: the file, for messages. What an earlier version did not have is as at the start
inline Watch watch_from_json(const nlohmann::ordered_json& j, const std::string& where) {
    auto damaged = [&](const char* key) {
        fail("%s: `watch`: %s is of another kind; the file is damaged", where.c_str(), key);
    };
    auto numbers = [&](const nlohmann::ordered_json& v, size_t n, const char* key) {
        bool good = v.is_array() && v.size() == n;
        for (const auto& x : v) good = good && x.is_number();
        if (!good) damaged(key);
    };
    auto number_of = [](const std::string& name) {
        int i = 0;
        while (i < WARNINGS && name != warning_rows[i].name) i++;
        return i;
    };
    Watch w;
    if (!j.is_object()) damaged("it");
    auto part = [&](const char* key) { return j.contains(key) ? j[key] : nlohmann::ordered_json(); };
    const nlohmann::ordered_json marks = part("marks");
    for (const auto& item : marks.items()) {
        const int i = number_of(item.key());
        numbers(item.value(), 4, "marks");
        if (i == WARNINGS) continue;  // of another version
        const std::vector<double> x = item.value();
        w.marks[i] = {(int64_t)x[0], (int64_t)x[1], (int64_t)x[2], x[3] != 0.0};
    }
    auto window = [&](const char* key, WatchWindow& to) {
        if (!j.contains(key)) return;
        numbers(j[key], 4, key);
        const std::vector<double> x = j[key];
        to = {(int64_t)x[0], x[1], x[2], x[3]};
    };
    window("entropy", w.entropy), window("kl", w.kl), window("reward", w.reward);
    window("best_reward", w.best_reward), window("loss", w.loss), window("lowest_loss", w.lowest_loss);
    if (j.contains("least_reward")) {
        if (!j["least_reward"].is_number()) damaged("least_reward");
        w.least_reward = j["least_reward"];
    }
    for (const auto& t : part("told")) {
        if (!t.is_object() || !t.contains("step") || !t["step"].is_number_integer() || !t.contains("warning") ||
            !t["warning"].is_string() || !t.contains("text") || !t["text"].is_string())
            damaged("told");
        const int i = number_of(t["warning"]);
        if (i < WARNINGS) w.told.push_back({t["step"], (Warning)i, t["text"]});
    }
    return w;
}

// ---------------------------------------------------------------------------------------------------------------------
// the conditions

// "--max_completion_length 400", or what else can be done
inline std::string longer_advice(const WatchContext& c) {
    const int most = c.most_completion_length, twice = 2 * c.max_completion_length;
    if (most > 0 && most <= c.max_completion_length)
        return "the model's context has room for no more, so ask for shorter answers";
    return format("give more, such as --max_completion_length %d", most > 0 ? std::min(twice, most) : twice);
}

inline std::string truncated_text(double clipped, double ended_length, const WatchContext& c) {
    std::string text = format("%.0f%% of the completions were cut off at --max_completion_length %d, and %s",
                              100 * clipped, c.max_completion_length, c.cut_off);
    if (ended_length > 0.0) text += format("; those that ended have %.0f tokens on average", ended_length);
    return text + "; " + longer_advice(c);
}

inline std::string unreadable_text(double answered, const WatchContext& c) {
    return format(
               "an answer could be read in %.0f%% of the completions, and none can be right without; see "
               "completions.jsonl",
               100 * answered) +
           (c.chat_template_off ? " (prompts go without the chat template: --chat_template auto)" : "") +
           "; --prompt_style boxed or --prompt_template asks for an answer, and sft first teaches to give one";
}

inline std::string undeclared_text(double declared, double lenient, const WatchContext& c) {
    return format(
               "%.0f%% of the completions declare their answer (\\boxed{...} or a last line #### ...), which is all "
               "that "
               "strict grading reads",
               100 * declared) +
           (lenient > 0.0 ? format(", though %.0f%% are right where it is taken wherever it stands", 100 * lenient)
                          : "") +
           (c.chat_template_off ? "; prompts go without the chat template (--chat_template auto)" : "") +
           "; --prompt_style boxed or --prompt_template asks for the form, and sft first teaches it" +
           (c.rewarded ? "; --reward_funcs accuracy takes any" : "");
}

// Told now? The condition holds (on) or not at this step
inline bool watch_mark(Watch& w, Warning warning, int64_t step, bool on) {
    WatchMark& m = w.marks[(int)warning];
    if (!on) {
        m.in_a_row = 0;
        if (m.told && ++m.away >= WATCH_AWAY) m = WatchMark();
        return false;
    }
    if (m.in_a_row++ == 0) m.since = step;
    m.away = 0;
    if (m.told || m.in_a_row < warning_row(warning).steps) return false;
    return m.told = true;
}

inline void window_add(WatchWindow& x, double value, double error) {
    x.n++;
    x.sum += value, x.squares += value * value, x.error2 += error * error;
}

// What is told at a step; text(): asked only then
template <class Text>
void watch_hold(Watch& w, std::vector<ToldWarning>& now, Warning warning, int64_t step, bool on, const Text& text) {
    if (!watch_mark(w, warning, step, on)) return;
    const int64_t since = w.marks[(int)warning].since;
    now.push_back({step, warning, text() + (since == step ? "" : format(" (since step %lld)", (long long)since))});
}

// Completions: whether they end, and whether their answers can be read. True: that explains why none is right
inline bool watch_completions(Watch& w, std::vector<ToldWarning>& now, const WatchedStep& s, const WatchContext& c) {
    const bool many = s.completions >= WATCH_FEW;
    const bool cut = s.clipped >= warning_row(Warning::truncated).limit;
    if (many && !std::isnan(s.clipped))
        watch_hold(w, now, Warning::truncated, s.step, cut,
                   [&] { return truncated_text(s.clipped, s.ended_length, c); });
    const bool unread = !cut && s.answered < warning_row(Warning::unreadable).limit;
    if (!std::isnan(s.answered))
        watch_hold(w, now, Warning::unreadable, s.step, unread, [&] { return unreadable_text(s.answered, c); });
    const bool undeclared = !cut && !unread && c.reads_declared && s.declared < warning_row(Warning::undeclared).limit;
    if (!std::isnan(s.declared))
        watch_hold(w, now, Warning::undeclared, s.step, undeclared,
                   [&] { return undeclared_text(s.declared, s.lenient, c); });
    return cut || unread || undeclared;
}

// Steps without an advantage, by what they have in common. explained: it is said already why none is right
inline void watch_signal(Watch& w, std::vector<ToldWarning>& now, const WatchedStep& s, bool explained) {
    if (std::isnan(s.signal)) return;
    const bool none = s.signal == 0.0, judged = !std::isnan(s.right), same = s.reward_low == s.reward_high;
    const bool hard = none && judged && s.right == 0.0, easy = none && judged && s.right == 1.0;
    const std::string nothing = format("so nothing is learnt (mean reward %.3g)", s.reward);
    watch_hold(w, now, Warning::too_hard, s.step, hard && !explained, [&] {
        return "all samples of every prompt are wrong, " + nothing +
               ": take easier problems or a better model, sft first, more --num_generations, or --dynamic_sampling";
    });
    watch_hold(w, now, Warning::too_easy, s.step, easy, [&] {
        return "all samples of every prompt are right, " + nothing +
               ": take harder problems, or --dynamic_sampling, which draws others in place of these";
    });
    watch_hold(w, now, Warning::constant_reward, s.step, none && !judged && same, [&] {
        return "every completion got the same reward, " + nothing +
               ": look at what --reward_funcs computes, and at completions.jsonl";
    });
    watch_hold(w, now, Warning::equal_groups, s.step, none && !hard && !easy && (judged || !same), [&] {
        return "all samples of every prompt got the same reward, " + nothing +
               ": raise --num_generations or --temperature, or take a reward that tells more of them apart; see "
               "completions.jsonl";
    });
}

// Entropy and KL of the policy
inline void watch_policy(Watch& w, std::vector<ToldWarning>& now, const WatchedStep& s) {
    const double good = std::isnan(s.right) ? s.reward : s.right;
    if (std::isfinite(s.entropy) && w.entropy.n < WATCH_FIRST) {
        window_add(w.entropy, s.entropy, 0.0);
    } else if (std::isfinite(s.entropy)) {
        const double first = w.entropy.mean();
        const WarningRow &low = warning_row(Warning::entropy_collapse), &high = warning_row(Warning::entropy_growth);
        watch_hold(w, now, Warning::entropy_collapse, s.step,
                   (s.entropy < low.limit || s.entropy < low.factor * first) && good < WATCH_RIGHT, [&] {
                       return format(
                           "the policy's entropy is down to %.4f nats a token (%.3f in the first steps) at a "
                           "reward of %.3g, so that samples hardly differ and nothing more is found: give "
                           "--entropy_coef, --epsilon_high 0.28, a higher --temperature or a lower "
                           "--learning_rate",
                           s.entropy, first, s.reward);
                   });
        watch_hold(w, now, Warning::entropy_growth, s.step, s.entropy > high.limit && s.entropy > high.factor * first,
                   [&] {
                       return format(
                           "the policy's entropy has grown to %.2f nats a token (%.3f in the first steps), so "
                           "that its texts turn into noise: lower --learning_rate or --entropy_coef, or give "
                           "--beta 0.01",
                           s.entropy, first);
                   });
    }
    if (!std::isfinite(s.kl)) return;
    const WarningRow& row = warning_row(Warning::kl_growth);
    const bool grown = w.kl.n >= WATCH_WINDOW && s.kl > 0.1 && s.kl > row.factor * w.kl.mean();
    const bool far = s.kl > row.limit || grown;
    const double before = w.kl.mean();
    if (!far) window_add(w.kl, s.kl, 0.0);
    watch_hold(w, now, Warning::kl_growth, s.step, far, [&] {
        return format(
            "the policy is %.2f nats a token of KL away from its reference (%.3g so far): lower "
            "--learning_rate, or raise --beta",
            s.kl, before);
    });
}

// A window of rewards or of a loss that is to fall is full: against the best one
inline void watch_windows(Watch& w, std::vector<ToldWarning>& now, const WatchedStep& s) {
    auto apart = [](double difference, double error2) { return difference > WATCH_ERRORS * std::sqrt(error2); };
    if (std::isfinite(s.reward) && std::isfinite(s.reward_error)) {
        window_add(w.reward, s.reward, s.reward_error);
        w.least_reward = std::min(w.least_reward, s.reward_low);
    }
    if (w.reward.n == WATCH_WINDOW) {
        const WatchWindow &is = w.reward, &was = w.best_reward;
        const double lost = was.mean() - is.mean();
        const bool fell = was.n &&
                          lost > warning_row(Warning::reward_collapse).factor * (was.mean() - w.least_reward) &&
                          apart(lost, is.own_error2() + was.own_error2());
        watch_hold(w, now, Warning::reward_collapse, s.step, fell, [&] {
            return format(
                "the reward has fallen to %.3g over the last %d steps, from %.3g in its best %d: lower "
                "--learning_rate, give --beta 0.01, or go on from an earlier checkpoint",
                is.mean(), WATCH_WINDOW, was.mean(), WATCH_WINDOW);
        });
        if (!was.n || is.mean() > was.mean()) w.best_reward = is;
        w.reward = WatchWindow();
    }
    if (std::isfinite(s.loss) && !s.empty) window_add(w.loss, s.loss, 0.0);
    if (w.loss.n < WATCH_WINDOW) return;
    const WatchWindow &is = w.loss, &was = w.lowest_loss;
    const double more = is.mean() - was.mean();
    const bool rose = was.n && is.mean() > warning_row(Warning::loss_rising).factor * was.mean() &&
                      apart(more, is.spread_error2() + was.spread_error2());
    watch_hold(w, now, Warning::loss_rising, s.step, rose, [&] {
        return format(
            "the loss has risen to %.4g over the last %d steps, from %.4g in its lowest %d: lower "
            "--learning_rate, or give --warmup_steps",
            is.mean(), WATCH_WINDOW, was.mean(), WATCH_WINDOW);
    });
    if (!was.n || is.mean() < was.mean()) w.lowest_loss = is;
    w.loss = WatchWindow();
}

// What of a run without an error is wrong with its updates
inline void watch_updates(Watch& w, std::vector<ToldWarning>& now, const WatchedStep& s) {
    watch_hold(w, now, Warning::not_finite, s.step, s.skipped && !s.empty, [&] {
        return format(
            "for %d steps the loss or the gradient was not finite, so they were skipped; %d in a row end the "
            "run: lower --learning_rate, or check the data and the rewards",
            warning_row(Warning::not_finite).steps, 5);
    });
    watch_hold(w, now, Warning::nothing_to_learn, s.step, s.empty, [&] {
        return format(
            "for %d steps there was no token to learn: every completion was left out; see completions.jsonl, "
            "and the options that leave some out (--seq_kd_correct)",
            warning_row(Warning::nothing_to_learn).steps);
    });
    if (std::isnan(s.flip_rate) || s.skipped || s.learning_rate == 0.0) return;
    watch_hold(w, now, Warning::no_flips, s.step, s.flip_rate == 0.0, [&] {
        return format(
            "for %d steps no code has flipped: the quantized model stands still, since a step of "
            "--learning_rate %.1e is small against a cell of its grid; raise it, or take --rounding stochastic "
            "or --qat_scale learned",
            warning_row(Warning::no_flips).steps, s.learning_rate);
    });
}

// What is to be told after a step, which w has seen then
inline std::vector<ToldWarning> watch_step(Watch& w, const WatchedStep& s, const WatchContext& c) {
    std::vector<ToldWarning> now;
    const bool explained = s.completions > 0 && watch_completions(w, now, s, c);
    watch_signal(w, now, s, explained);
    watch_policy(w, now, s);
    watch_windows(w, now, s);
    watch_updates(w, now, s);
    w.told.insert(w.told.end(), now.begin(), now.end());
    return now;
}

// What is told once, if it was not yet: something that is known before the first step, or that an evaluation shows
inline void watch_once(Watch& w, std::vector<ToldWarning>& now, int64_t step, Warning warning,
                       const std::string& text) {
    WatchMark& m = w.marks[(int)warning];
    if (m.told) return;
    m.told = true, m.since = step;
    now.push_back({step, warning, text});
    w.told.push_back(now.back());
}

// After an evaluation at a step. A condition that steps have told of, or an earlier evaluation, is not told again
inline std::vector<ToldWarning> watch_evaluation(Watch& w, int64_t step, const WatchedEvaluation& e,
                                                 const WatchContext& c) {
    std::vector<ToldWarning> now;
    if (e.completions < WATCH_FEW) return now;
    const std::string in = "in " + e.when + " ";
    if (e.clipped >= warning_row(Warning::truncated).limit)
        watch_once(w, now, step, Warning::truncated, in + truncated_text(e.clipped, e.ended_length, c));
    else if (e.answered < warning_row(Warning::unreadable).limit)
        watch_once(w, now, step, Warning::unreadable, in + unreadable_text(e.answered, c));
    else if (c.reads_declared && e.declared < warning_row(Warning::undeclared).limit)
        watch_once(w, now, step, Warning::undeclared, in + undeclared_text(e.declared, e.lenient, c));
    return now;
}

// ---------------------------------------------------------------------------------------------------------------------
// told

inline std::string warning_line(const ToldWarning& t) {
    nlohmann::ordered_json j;
    j["step"] = t.step;
    j["warning"] = warning_row(t.warning).name;
    j["text"] = t.text;
    return json_line(j);
}

// On standard error, by the first rank, and into the run's folder, if there is one
inline void tell_warnings(const std::vector<ToldWarning>& now, RunDir* run) {
    for (const ToldWarning& t : now) {
        if (world_rank() == 0) fprintf(stderr, "warning: %s\n", t.text.c_str());
        if (run && run->warnings.fd >= 0) run->warnings.line(warning_line(t));
    }
}
