// Problems and examples of files and tasks, checked against the lengths that the run allows.
#pragma once
#include "../data/overlong_rows.h"
#include "../data/tasks/tasks.h"
#include "../rewards/rewards.h"
#include "curriculum.cuh"
#include "memory.cuh"

// A prompt of n tokens that completions are to be sampled for; source, line: where it stands
inline void check_prompt_length(const Session& s, int n, const std::string& source, int line) {
    if (n == 0) fail("%s:%d: the prompt is empty", source.c_str(), line);
    if (n > s.o.max_prompt_length)
        fail("%s:%d: the prompt has %d tokens, --max_prompt_length is %d; raise it or leave the row out",
             source.c_str(), line, n, s.o.max_prompt_length);
    if (n + s.o.max_completion_length > s.m.config.max_position_embeddings)
        fail(
            "%s:%d: %d prompt tokens and --max_completion_length %d exceed the model's context of %d; lower it or "
            "leave the row out",
            source.c_str(), line, n, s.o.max_completion_length, s.m.config.max_position_embeddings);
}

// Says what of the flags about prompts does not reach a row: of messages, or (learnt_whole) of text alone
inline void note_prompt_flags(const Options& o, const PromptConfig& c, const nlohmann::ordered_json& messages,
                              bool graded, bool learnt_whole = false) {
    const bool styled = c.style.ask || *c.style.system, chat = use_chat(c);
    if (learnt_whole) {
        const char* flag = styled                       ? "prompt_style"
                           : !o.prompt_template.empty() ? "prompt_template"
                           : !o.system_prompt.empty()   ? "system_prompt"
                           : o.prompt_given != "none"   ? "prompt_given"
                                                        : nullptr;
        if (flag) note_once(format("note: rows of text are learnt as they stand; --%s is for those that ask", flag));
        return;
    }
    if (!o.system_prompt.empty() && !chat)
        note_once("note: --system_prompt is a message of the chat template, and none is in use; prompts go without it");
    if (messages.is_null()) return;
    if (!system_message(c).empty() && has_system_message(messages))
        note_once(format("note: rows with a system message of their own keep it; --%s is for the others",
                         styled ? "prompt_style" : "system_prompt"));
    if (graded && !styled && c.prompt_template.empty())
        note_once("note: rows of messages are asked as they stand; they say themselves in what form to answer");
}

// what load_problems() and load_sft() are to read for --prompt_given; empty: nothing
inline std::string given_option(const Options& o) { return o.prompt_given == "none" ? "" : o.prompt_given; }

// of whatever length
inline Prompt session_prompt(const Session& s, const Problem& problem) {
    Prompt p = make_prompt(s.tok, problem, s.prompt);
    note_prompt_flags(s.o, s.prompt, problem.messages, true);
    return p;
}

inline Prompt checked_prompt(const Session& s, const Problem& problem) {
    Prompt p = session_prompt(s, problem);
    check_prompt_length(s, (int)p.tokens.size(), problem.source, problem.line);
    return p;
}

inline std::vector<Prompt> make_prompts(const Session& s, const std::vector<Problem>& problems) {
    std::vector<Prompt> out;
    Progress progress("tokenizing", "row", (int64_t)problems.size());
    for (const Problem& p : problems) out.push_back(checked_prompt(s, p)), progress.add();
    return out;
}

// The task, if problems are to come from one. A model of the user's own gets one only when asked to.
inline TaskSet session_task(const Options& o) {
    const TaskSet task = o.command == COMMAND_EVAL ? find_tasks(o.task)[0] : find_task(o.task);
    const bool evaluates = o.command == COMMAND_EVAL;
    if (!o.model.empty() && (evaluates ? o.eval_data : o.train_data).empty() && !o.given("task"))
        fail_usage("name a data set with --%s, or take made-up problems with --task %s",
                   evaluates ? "eval_data" : "train_data", task.name.c_str());
    if (!evaluates && o.train_data.empty()) check_trainable(task);
    return task;
}

// what the grader makes of a gold answer
inline GoldRead gold_read(const std::string& gold) {
    if (answer_parses(gold)) return GoldRead::as_answer;
    const ParsedAnswer a = parse_answer(gold);
    return a.root < 0 ? GoldRead::not_at_all : is_wordy(a) ? GoldRead::by_words : GoldRead::by_spelling;
}

// how the problems of a file are read; graded: each needs a gold answer that can be read
inline ProblemReading problem_reading(const Session& s, bool graded = true) {
    ProblemReading how;
    how.gold_needed = graded;
    how.gold_read = gold_read;
    how.seed = s.o.seed;
    how.given = given_option(s.o);
    return how;
}

// the problems of one set to evaluate on: a file, or a name of known_sets
inline std::vector<Problem> held_out_set(const Session& s, const std::string& name, bool keep_rows) {
    ProblemReading how = problem_reading(s);
    how.keep_rows = keep_rows;
    how.gold_read_needed = GoldRead::by_spelling;  // a published set keeps its number of problems
    std::vector<Problem> problems = load_problems(find_data_set(name), how);
    note_duplicates(name, problems);
    return problems;
}

// The problems of one set, the first `most` of them (0: all); name: a file, a name of known_sets, or empty for `task`'s.
// keep_rows: with all fields of their rows; available: how many there are
inline std::vector<Prompt> eval_set_prompts(const Session& s, const std::string& name, const std::string& task,
                                            int most, bool keep_rows = false, int* available = nullptr) {
    std::vector<Problem> problems;
    if (name.empty()) {
        const TaskSet set = find_task(task);
        problems = task_problems(set, task_seed(s.o.seed, true),
                                 std::max(set.task->held_out, (uint32_t)std::max(most, 0)), true);
    } else {
        problems = held_out_set(s, name, keep_rows);
    }
    if (available) *available = (int)problems.size();
    if (most > 0 && (int)problems.size() > most) problems.resize(most);
    return make_prompts(s, problems);
}

// held-out problems: --eval_data, else the task's when that is what is trained on; empty otherwise
inline std::vector<Prompt> eval_prompts(const Session& s, int most, bool keep_rows = false) {
    if (s.o.eval_data.empty() && !s.o.train_data.empty()) return {};
    return eval_set_prompts(s, s.o.eval_data, s.o.task, most, keep_rows);
}

// What the training data's prompts, and its prompts and completions together, may have
inline RowLimit prompt_limit(const Session& s) {
    const int context = s.m.config.max_position_embeddings - s.o.max_completion_length;
    if (context < s.o.max_prompt_length)
        return {context, format("the model's context of %d less --max_completion_length %d",
                                s.m.config.max_position_embeddings, s.o.max_completion_length)};
    return {s.o.max_prompt_length, format("--max_prompt_length %d", s.o.max_prompt_length)};
}

inline RowLimit example_limit(const Session& s) {
    if (s.m.config.max_position_embeddings < s.o.max_length)
        return {s.m.config.max_position_embeddings,
                format("the model's context of %d", s.m.config.max_position_embeddings)};
    return {s.o.max_length, format("--max_length %d", s.o.max_length)};
}

// what is trained on: problems without their solutions. graded: each needs a gold answer; keep_rows: with their rows
inline std::vector<Example> training_prompts(const Session& s, bool graded = true, bool keep_rows = false) {
    std::vector<Example> out;
    const TaskSet task = find_task(s.o.task);
    ProblemReading how = problem_reading(s, graded);
    how.keep_rows = keep_rows;
    how.own_rewards = s.o.command == COMMAND_GRPO;
    const Curriculum curriculum = curriculum_parse(s.o.curriculum);
    const std::string evaluation = curriculum_file(curriculum);
    if (evaluation.empty()) how.pass_rate = curriculum.source;
    std::vector<Problem> problems = s.o.train_data.empty()
                                        ? task_problems(task, task_seed(s.o.seed, false), task.task->train, false)
                                        : load_problems(s.o.train_data, how);
    if (!evaluation.empty())
        take_pass_rates(problems, evaluated_pass_rates(evaluation, data_set_name(s.o.train_data)), s.o.train_data,
                        evaluation);
    if (curriculum.on()) curriculum_choose(curriculum, problems, s.o.train_data);
    OverlongRows overlong;
    overlong.how = overlong_of(s.o.overlong_rows);
    if (overlong.how == Overlong::wrap)
        fail_usage("--overlong_rows wrap is for rows of text, whose completion is all there is, and not for prompts");
    const RowLimit most = prompt_limit(s);
    Progress progress("tokenizing", "row", (int64_t)problems.size());
    for (const Problem& p : problems) {
        progress.add();
        Prompt prompt = overlong.how == Overlong::error ? checked_prompt(s, p) : session_prompt(s, p);
        if (fit_prompt(overlong, s.tok, p, s.prompt, most, prompt)) out.push_back({prompt, {}});
    }
    say_overlong(overlong, s.o.train_data.empty() ? s.o.task : s.o.train_data);
    return out;
}

// The same for the embedded model, whose tokens are bytes: each problem is made up when it is drawn. Making all 100,000
// beforehand takes longer than the first steps.
inline TrainingData embedded_training_prompts(const Session& s, int64_t per_step) {
    const TaskSet task = find_task(s.o.task);
    auto prompt = [&s](const Problem& p) { return Example{checked_prompt(s, p), {}}; };
    Problem longest = task_problem(task, task_seed(s.o.seed, false), 0, false);
    longest.question = std::string(task.longest().question, '0');
    TrainingData d;
    d.count = task.task->train;
    d.per_step = per_step;
    d.seed = s.o.seed;
    d.longest = d.longest_prompt = (int64_t)prompt(longest).prompt.tokens.size();
    d.example = [&s, task, prompt](int64_t i) {
        return prompt(task_problem(task, task_seed(s.o.seed, false), (uint32_t)i, false));
    };
    return d;
}

// Held-out problems that are trained on, too, are refused unless --allow_overlap. Those of the task never are: its
// generator keeps them apart.
inline void check_overlap(const Session& s, const TrainingData& d, const std::vector<Prompt>& held_out) {
    const Options& o = s.o;
    if (o.train_data.empty() || held_out.empty()) return;
    QuestionIndex trained;
    for (int64_t i = 0; i < d.count; i++) trained.add(*d.example(i).prompt.problem);
    Overlap both;
    for (const Prompt& p : held_out) find_overlap(both, trained, *p.problem);
    if (both.count == 0) return;
    const std::string text = format("%d of the %zu held-out problems are trained on, too; the first: %s", both.count,
                                    held_out.size(), both.first.c_str());
    if (!o.allow_overlap)
        fail("%s. Give other --eval_data or leave them out of --train_data; --allow_overlap true goes on all the same",
             text.c_str());
    note_once("note: " + escape_controls(text));
}

// The example as tokens, of whatever length. every_answer: of a conversation, and not the last alone
inline Example session_example(const Session& s, const SftExample& e, bool every_answer = false) {
    const std::vector<int>& ends = s.m.config.eos_token_ids;
    Example out = make_example(s.tok, e, s.prompt, ends.empty() ? -1 : ends[0], every_answer);
    note_prompt_flags(s.o, s.prompt, e.messages, false, e.messages.is_null() && e.prompt.empty());
    if (completion_tokens(out) <= 0)
        fail("%s:%d: the completion is empty, there is nothing to learn", e.source.c_str(), e.line);
    return out;
}

// The same, or an error where it is longer than it may be
inline Example checked_example(const Session& s, const SftExample& e, bool every_answer = false) {
    Example out = session_example(s, e, every_answer);
    const int n = (int)(out.prompt.tokens.size() + out.completion.size());
    auto at_most = [&](int most, const char* of, bool can_be_raised) {
        if (n > most)
            fail("%s:%d: the example has %d tokens, %s is %d; %sleave the row out", e.source.c_str(), e.line, n, of,
                 most, can_be_raised ? "raise it or " : "");
    };
    at_most(s.o.max_length, "--max_length", true);
    at_most(s.m.config.max_position_embeddings, "the model's context", false);
    return out;
}

// what is trained on: problems with their solutions. sampled: in some steps completions are sampled for the prompts
inline TrainingData training_examples(const Session& s, int64_t per_step, bool sampled = false) {
    std::vector<Example> all;
    OverlongRows overlong;
    overlong.how = overlong_of(s.o.overlong_rows);
    const RowLimit most = example_limit(s), most_asked = prompt_limit(s);
    auto add = [&](const SftExample& e) {
        const bool refuses = overlong.how == Overlong::error;
        Example x =
            refuses ? checked_example(s, e, s.o.assistant_only_loss) : session_example(s, e, s.o.assistant_only_loss);
        const int64_t asked = (int64_t)x.prompt.tokens.size();
        if (sampled && refuses) check_prompt_length(s, (int)asked, e.source, e.line);
        if (sampled && asked > most_asked.tokens) {  // what is sampled for it would have no room
            overlong.rows++, overlong.left_out++;
            return overlong.found(e.source, e.line, asked, most_asked);
        }
        add_fitting(overlong, all, std::move(x), e.source, e.line, most);
    };
    const TaskSet task = find_task(s.o.task);
    std::vector<SftExample> rows;
    if (!s.o.train_data.empty()) rows = load_sft(s.o.train_data, given_option(s.o));
    Progress progress("tokenizing", "row", rows.empty() ? (int64_t)task.task->train : (int64_t)rows.size());
    for (const SftExample& e : rows) add(e), progress.add();
    if (s.o.train_data.empty())
        for (uint32_t i = 0; i < task.task->train; i++) {
            add(task_example(task, task_seed(s.o.seed, false), i, false));
            progress.add();
            if (!all.empty()) all.back().prompt.problem = nullptr;  // of 100,000: 60 MB that nobody asks for
        }
    say_overlong(overlong, s.o.train_data.empty() ? s.o.task : s.o.train_data);
    return training_data(std::move(all), per_step, s.o.seed);
}
