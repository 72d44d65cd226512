// What is trained on: a prompt, and the completion that follows it where one is given; and which of them a step takes.
#pragma once
#include <functional>
#include <set>
#include <string>
#include <utility>
#include <vector>
#include "prompts.h"

struct Example {
    Prompt prompt;
    std::vector<int> completion;  // the end token included; empty: none is given
    // [begin, end) of the completion that are learnt, ascending; empty: all of it. A prompt is before the first
    std::vector<std::pair<int, int>> learnt = {};
};

// the learnt tokens of an example; the first token of a text without a prompt has nothing before it
inline int64_t completion_tokens(const Example& e) {
    if (e.learnt.empty()) return (int64_t)e.completion.size() - (e.prompt.tokens.empty() ? 1 : 0);
    int64_t n = 0;
    for (const auto& [begin, end] : e.learnt) n += end - begin;
    return n;
}

// leaves at most n tokens of its completion
inline void example_cut(Example& e, int64_t n) {
    n = std::min((int64_t)e.completion.size(), std::max(n, (int64_t)0));
    e.completion.resize((size_t)n);
    if (e.learnt.empty()) return;
    while (!e.learnt.empty() && e.learnt.back().first >= n) e.learnt.pop_back();
    if (e.learnt.empty()) e.completion.clear();
    else e.learnt.back().second = std::min(e.learnt.back().second, (int)n);
}

// what an example asks
inline std::shared_ptr<const Problem> example_problem(const SftExample& e) {
    Problem p;
    p.question = e.prompt;
    p.bare = e.bare;
    p.given = e.given;
    p.source = e.source;
    p.line = e.line;
    if (!e.messages.is_null())
        p.messages = nlohmann::ordered_json(e.messages.begin(), e.messages.begin() + e.prompt_messages);
    for (const auto& message : p.messages)
        if (message_has_role(message, "user")) p.question = message["content"].get<std::string>();
    return std::make_shared<const Problem>(std::move(p));
}

// The rendering of messages that others follow: as it is before a question, whose own length two of them tell
inline std::string rendered_before_a_question(const std::string& where, const PromptConfig& c,
                                              nlohmann::ordered_json messages, const nlohmann::ordered_json& tools) {
    std::string text[2];
    for (std::string& t : text) {
        messages.push_back({{"role", "user"}, {"content", "?"}});
        t = chat_render_row(where, c.chat, messages, tools, false, c.enable_thinking);
    }
    return text[0].substr(0, 2 * text[0].size() - text[1].size());
}

// Where the answers lie in `all`, the rendering of the whole conversation: [begin, end) for each message of the assistant
// from `first` on. An answer begins where a prompt of what is before it ends, and ends where the next message begins.
// The trap: a template may show an answer in another way once others follow (Qwen3's drops the reasoning, and writes an
// empty one into the last). What cannot be found, or has lost some of its text, is refused.
inline std::vector<std::pair<size_t, size_t>> answers_in_rendering(const std::string& where, const PromptConfig& c,
                                                                   const nlohmann::ordered_json& messages,
                                                                   const nlohmann::ordered_json& tools, size_t first,
                                                                   const std::string& all) {
    std::vector<std::pair<size_t, size_t>> answers;
    auto first_of = [&](size_t n) { return nlohmann::ordered_json(messages.begin(), messages.begin() + n); };
    auto begins_all = [&](const std::string& text) { return all.compare(0, text.size(), text) == 0; };
    for (size_t i = std::max(first, (size_t)1); i < messages.size(); i++) {
        if (!message_has_role(messages[i], "assistant")) continue;
        std::string before = chat_render_row(where, c.chat, first_of(i), tools, true, c.enable_thinking);
        if (!begins_all(before)) before = chat_render_row(where, c.chat, first_of(i), tools, true, -1);
        std::string until = all;
        const bool others_follow = i + 1 < messages.size();
        if (others_follow) {
            until = chat_render_row(where, c.chat, first_of(i + 1), tools, false, c.enable_thinking);
            if (!begins_all(until)) until = rendered_before_a_question(where, c, first_of(i + 1), tools);
        }
        bool whole = begins_all(before) && begins_all(until) && before.size() < until.size();
        for (const char* key : {"content", "reasoning_content"}) {
            const nlohmann::ordered_json* text = jinja_get(messages[i], key);
            if (whole && others_follow && text && text->is_string())
                whole = until.find(python_strip(text->get<std::string>()), before.size()) != until.npos;
        }
        if (!whole)
            fail(
                "%s: the chat template shows message %zu, an answer, in another way once others follow (Qwen3's drops "
                "its reasoning), so that it cannot be learnt as it was given; make a row of each answer, or leave "
                "--assistant_only_loss out",
                where.c_str(), i + 1);
        answers.push_back({before.size(), until.size()});
    }
    return answers;
}

// the text of a conversation as tokens: a prompt up to its first answer, and from there on answers, which are learnt, and
// what is between them
inline void encode_answers(const Tokenizer& tok, const std::string& all,
                           const std::vector<std::pair<size_t, size_t>>& answers, Example& out) {
    out.prompt.text = all.substr(0, answers[0].first);
    append_tokens(tok, out.prompt.text, out.prompt.tokens);
    for (size_t i = 0; i < answers.size(); i++) {
        const size_t at = i ? answers[i - 1].second : answers[0].first;
        append_tokens(tok, all.substr(at, answers[i].first - at), out.completion);
        const int begin = (int)out.completion.size();
        append_tokens(tok, all.substr(answers[i].first, answers[i].second - answers[i].first), out.completion);
        out.learnt.push_back({begin, (int)out.completion.size()});
    }
}

// Plain text is followed by the token `end` (-1: none); a conversation is rendered by the chat template, and the tokens
// after the prompt's own rendering are the completion. every_answer: of rows of messages each answer is learnt.
inline Example make_example(const Tokenizer& tok, const SftExample& e, const PromptConfig& c, int end,
                            bool every_answer = false) {
    Example out;
    const bool chat = use_chat(c);
    const std::shared_ptr<const Problem> problem = example_problem(e);
    out.prompt.problem = problem;
    if (e.messages.is_null() && (!chat || e.prompt.empty())) {
        if (!e.prompt.empty()) out.prompt.text = problem_text(c, *problem, chat);
        tokenizer_encode(tok, out.prompt.text, out.prompt.tokens, true, true);
        append_tokens(tok, (c.style.ask && !e.prompt.empty() ? " " : "") + e.completion,
                      out.completion);  // as the shots
        const bool brings_bos = tok.add_bos && !out.completion.empty() && out.completion[0] == tok.bos;
        if (out.prompt.text.empty() && brings_bos) out.prompt.tokens.clear();
        if (end >= 0) out.completion.push_back(end);
        return out;
    }
    if (!chat)
        fail("%s:%d: the example is a list of messages, but no chat template is in use; give a model that has one",
             e.source.c_str(), e.line);
    nlohmann::ordered_json messages = e.messages;
    int given = e.prompt_messages, first_learnt = e.first_learnt;
    if (messages.is_null()) {
        messages = prompt_messages(problem_text(c, *problem, chat), c);
        given = (int)messages.size();
        messages.push_back({{"role", "assistant"}, {"content", e.completion}});
    } else if (ask_row_messages(messages, *problem, c, given)) {
        given++, first_learnt++;
    }
    const std::string where = format("%s:%d", e.source.c_str(), e.line);
    const nlohmann::ordered_json tools = rendered_tools(e.tools, c);
    const std::string all = chat_render_row(where, c.chat, messages, tools, false, c.enable_thinking);
    if (every_answer && !e.messages.is_null()) {
        encode_answers(tok, all, answers_in_rendering(where, c, messages, tools, (size_t)first_learnt, all), out);
        return out;
    }
    nlohmann::ordered_json before(messages.begin(), messages.begin() + given);
    out.prompt.text = chat_render_row(where, c.chat, before, tools, true, c.enable_thinking);
    if (all.compare(0, out.prompt.text.size(), out.prompt.text) != 0)
        fail(
            "%s:%d: the chat template renders the prompt differently once the answer follows; give prompt and "
            "completion as text instead",
            e.source.c_str(), e.line);
    append_tokens(tok, out.prompt.text, out.prompt.tokens);
    append_tokens(tok, all.substr(out.prompt.text.size()), out.completion);
    return out;
}

// Training examples by number, and the order of a run: each epoch is a permutation of its own, cut into steps
struct TrainingData {
    int64_t count = 0;
    std::function<Example(int64_t)> example;  // the index-th, 0 <= index < count
    int64_t per_step = 1;
    bool whole_steps = false;  // leave out what an epoch's last step lacks to be as large as the others
    bool shuffled = true;
    std::vector<double> weights;     // [count] likelier to come early in an epoch; empty: all alike
    std::vector<double> difficulty;  // [count] an epoch's order is ascending in it; empty: in nothing
    uint64_t seed = 0;
    int64_t longest_prompt = 0, longest = 0;  // tokens; longest: with the completion that is given

    int64_t steps_per_epoch() const { return whole_steps ? count / per_step : (count + per_step - 1) / per_step; }
};

// all of them, in an order of the epoch's, or of what else the stream counts
inline std::vector<int> data_order(const TrainingData& d, uint32_t epoch, RngStream stream = RNG_SHUFFLE) {
    return d.weights.empty() ? epoch_order((int)d.count, d.seed, epoch, stream)
                             : weighted_order(d.weights, d.seed, epoch, stream);
}

// which examples a step takes; it counts from 0 and runs on over the epochs
inline std::vector<int64_t> training_indices(const TrainingData& d, int64_t step) {
    const int64_t epoch = step / d.steps_per_epoch(), first = step % d.steps_per_epoch() * d.per_step;
    std::vector<int> order;
    if (d.shuffled) order = data_order(d, (uint32_t)epoch);
    // what whole steps leave out is another part in each epoch, and not always the hardest
    if (d.shuffled && d.whole_steps) order.resize((size_t)(d.steps_per_epoch() * d.per_step));
    if (!d.difficulty.empty())
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return d.difficulty[a] < d.difficulty[b]; });
    std::vector<int64_t> indices;
    for (int64_t i = first; i < std::min(first + d.per_step, d.count); i++)
        indices.push_back(d.shuffled ? order[i] : i);
    return indices;
}

inline std::vector<Example> training_batch(const TrainingData& d, int64_t step) {
    std::vector<Example> batch;
    for (int64_t i : training_indices(d, step)) batch.push_back(d.example(i));
    return batch;
}

// Examples in place of a step's own: n of them from the first-th on, in an order of the step's in which its own are left
// out; fewer at its end. They depend on the seed and the step alone, and what later steps take is not moved. Where rows
// have a difficulty, those that are nearest to the step's own come first.
inline std::vector<Example> further_examples(const TrainingData& d, int64_t step, int64_t first, int64_t n) {
    const std::vector<int64_t> own = training_indices(d, step);
    const std::set<int64_t> left_out(own.begin(), own.end());
    std::vector<Example> examples;
    int64_t at = 0;
    std::vector<int> order = data_order(d, (uint32_t)step, RNG_REDRAW);
    if (!d.difficulty.empty()) {
        const double here = d.difficulty[own[own.size() / 2]];
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
            return std::fabs(d.difficulty[a] - here) < std::fabs(d.difficulty[b] - here);
        });
    }
    for (int i : order) {
        if (left_out.count(i) || at++ < first) continue;
        if ((int64_t)examples.size() == n) break;
        examples.push_back(d.example(i));
    }
    return examples;
}

inline TrainingData training_data(std::vector<Example> examples, int64_t per_step, uint64_t seed) {
    TrainingData d;
    d.count = (int64_t)examples.size();
    for (const Example& e : examples) {
        const int64_t prompt = (int64_t)e.prompt.tokens.size();
        d.longest_prompt = std::max(d.longest_prompt, prompt);
        d.longest = std::max(d.longest, prompt + (int64_t)e.completion.size());
    }
    d.example = [examples = std::move(examples)](int64_t i) { return examples[i]; };
    d.per_step = per_step;
    d.seed = seed;
    return d;
}
