// Data as commands take it: what cannot be used is refused in one line, rows that are too long, curricula, formats, sets.
#include "cli.h"

TEST(BadData, Problems) {
    std::string row = "{\"prompt\": \"1+1\", \"answer\": \"it is 2 #### 2\"}\n";
    auto refuse = [](const std::string& path, const Args& parts, const Args& more = {}) {
        std::string out = fresh("never");
        refused(1,
                Args{"grpo", "--model", trained, "--train_data", path, "--max_steps", "1", "--output_dir", out} +
                    (more.empty() ? Args{"--max_completion_length", "16"} : more),
                parts);
        EXPECT_FALSE(fs::exists(out));
    };
    std::string missing = fresh("none.jsonl");
    refuse(missing, {missing, "No such file"});
    refuse(root, {root, "folder"});
    refuse(jsonl("empty", ""), {"empty.jsonl", "no rows"});
    refuse(jsonl("blank", "\n \n"), {"blank.jsonl", "no rows"});
    refuse(jsonl("broken", row + "{\"question\": \"2+2\", \"answer\n" + row), {"broken.jsonl:2", "not valid JSON"});
    refuse(jsonl("array", row + row + "[1]\n"), {"array.jsonl:3", "not an object"});
    refuse(jsonl("utf8", row + "{\"question\": \"\xC3\x28\", \"answer\": \"#### 1\"}\n"), {"utf8.jsonl:2", "UTF-8"});
    refuse(jsonl("fields", "{\"input\": \"a\", \"output\": \"b\"}\n"), {"fields.jsonl:1", "`question`", "input"});
    refuse(jsonl("nogold", row + "{\"question\": \"a\"}\n"), {"nogold.jsonl:2", "`answer`"});
    refuse(jsonl("nohash", row + "{\"question\": \"a\", \"answer\": \"1+1=2\"}\n"), {"nohash.jsonl:2", "####"});
    refuse(jsonl("words", row + "{\"question\": \"a\", \"answer\": \"so #### abc\"}\n"), {"words.jsonl:2", "abc"});
    refuse(jsonl("none", row + "{\"question\": \"a\", \"answer\": \"so ####\"}\n"), {"none.jsonl:2"});
    refuse(jsonl("few", row), {"1 problems", "--prompts_per_step"});
    std::string chat = "{\"prompt\": [{\"role\": \"user\", \"content\": \"1+1?\"}], \"answer\": \"2\"}\n";
    refuse(jsonl("chat", chat), {"chat.jsonl:1", "no chat template"});
    refuse(jsonl("roles", "{\"prompt\": [{\"role\": \"user\"}], \"answer\": \"2\"}\n"), {"roles.jsonl:1", "content"});
    std::string length = std::string(40, '1');
    refuse(
        jsonl("long", "{\"prompt\": \"1\", \"answer\": \"2\"}\n{\"prompt\": \"" + length + "\", \"answer\": \"2\"}\n"),
        {"long.jsonl:2", "40 tokens", "--max_prompt_length is 16"},
        {"--max_prompt_length", "16", "--max_completion_length", "16", "--overlong_rows", "error"});
    const std::string context = jsonl("context", "{\"prompt\": \"" + length + "\", \"answer\": \"2\"}\n");
    refuse(context, {"context.jsonl:1", "40", "--max_completion_length 100", "128"},
           {"--max_completion_length", "100", "--overlong_rows", "error"});
    refuse(context, {"context.jsonl: all 1 rows are longer than the model's context of 128 less", "--overlong_rows"},
           {"--max_completion_length", "100"});
    std::string out = fresh("never");
    refused(1, grpo(out, {"--eval_data", missing}), {missing});
    EXPECT_FALSE(fs::exists(out));
}

TEST(BadData, Examples) {
    auto refuse = [](const std::string& path, const Args& parts, const Args& more = {}) {
        std::string out = fresh("never");
        refused(1, Args{"sft", "--model", base, "--train_data", path, "--max_steps", "1", "--output_dir", out} + more,
                parts);
        EXPECT_FALSE(fs::exists(out));
    };
    std::string row = "{\"prompt\": \"1+1\", \"completion\": \"2\"}\n";
    refuse(jsonl("empty", ""), {"empty.jsonl", "no rows"});
    refuse(jsonl("broken", row + "nonsense\n"), {"broken.jsonl:2", "not valid JSON"});
    refuse(jsonl("half", row + "{\"prompt\": \"1\"}\n"), {"half.jsonl:2", "`completion`"});
    refuse(jsonl("void", row + "{\"prompt\": \"1\", \"completion\": \"\"}\n"),
           {"void.jsonl:2", "`completion`", "empty"});
    refuse(jsonl("long", row + "{\"text\": \"" + std::string(50, 'a') + "\"}\n"),
           {"long.jsonl:2", "51 tokens", "--max_length is 20"}, {"--max_length", "20", "--overlong_rows", "error"});
    refuse(jsonl("chat", row + "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", "
                               "\"content\": \"b\"}]}\n"),
           {"chat.jsonl:2", "no chat template"});
    refuse(jsonl("context", row + "{\"text\": \"" + std::string(200, 'a') + "\"}\n"), {"context.jsonl:2", "201", "128"},
           {"--overlong_rows", "error"});
    refused(2, grpo(fresh("never"), {"--overlong_rows", "wrap"}), {"--overlong_rows wrap", "rows of text"});
}

// rows that are too long are left out of training, or cut, and counted; held-out ones are refused
TEST(OverlongRows, AreLeftOutOrCutAndSaid) {
    std::string rows, text, longest(60, '7');
    for (int i = 0; i < 8; i++) rows += "{\"prompt\": \"" + std::to_string(i) + "\", \"answer\": \"2\"}\n";
    const std::string held_out = jsonl("held", "{\"prompt\": \"" + longest + "=\", \"answer\": \"2\"}\n");
    const std::string asked = jsonl("long", rows + "{\"prompt\": \"" + longest + "\", \"answer\": \"2\"}\n");
    const Args few = {"--train_data", asked, "--max_prompt_length", "16", "--max_completion_length", "4"};
    Outcome r = good(grpo(fresh("drop"), few));
    EXPECT_NE(r.err.find("1 of 9 rows are longer than --max_prompt_length 16 allows and are left out"),
              std::string::npos)
        << r.err;
    EXPECT_NE(r.out.find("8 training prompts"), std::string::npos) << r.out;
    r = good(grpo(fresh("cut"), few + Args{"--overlong_rows", "truncate"}));
    EXPECT_NE(r.err.find("1 of 9 rows are longer than --max_prompt_length 16 allows and are cut"), std::string::npos)
        << r.err;
    EXPECT_NE(r.out.find("9 training prompts"), std::string::npos) << r.out;
    refused(1, grpo(fresh("never"), {"--max_prompt_length", "16", "--eval_data", held_out}),
            {"held.jsonl:1", "61 tokens"});
    text = jsonl("text", "{\"text\": \"ab\"}\n{\"text\": \"" + longest + "\"}\n");
    for (const auto& [how, examples] : {std::pair("drop", 1), {"truncate", 2}, {"wrap", 5}}) {
        r = good({"sft", "--model", base, "--train_data", text, "--max_length", "16", "--overlong_rows", how,
                  "--max_steps", "1", "--output_dir", fresh("sft")});
        EXPECT_NE(r.out.find("data        " + std::to_string(examples) + " examples"), std::string::npos)
            << how << r.out;
        EXPECT_NE(r.err.find(std::string("(--overlong_rows ") + how + "); the first: "), std::string::npos) << r.err;
    }
}

// problems in the order of their pass rates, from an evaluation of them or from a field
TEST(Curriculum, OfAnEvaluationAndOfAField) {
    const std::string rated = fresh("evaluation"), out = fresh("easy");
    good({"eval", "--model", trained, "--eval_data", problems, "--eval_samples", "4", "--eval_greedy", "false",
          "--max_completion_length", "16", "--output_dir", rated});
    std::map<std::string, double> rate;  // by prompt
    for (const json& row : read_lines(rated + "/completions.jsonl"))
        rate[row["prompt"]] += row["strict"].get<bool>() ? 0.25 : 0.0;
    good(grpo(out, {"--curriculum", rated + ":by=easy_first"}));
    std::vector<double> asked;
    for (const json& row : read_lines(out + "/completions.jsonl")) asked.push_back(rate.at(row["prompt"]));
    EXPECT_TRUE(std::is_sorted(asked.rbegin(), asked.rend()));
    EXPECT_GT(asked.front(), 0.0);
    // those between the bounds alone
    const int between =
        (int)std::count_if(rate.begin(), rate.end(), [](const auto& r) { return r.second > 0.1 && r.second < 0.9; });
    ASSERT_GE(between, 8);
    const Outcome bounded = good(grpo(fresh("bounded"), {"--curriculum", rated + "/:min=0.1:max=0.9"}));
    EXPECT_NE(bounded.out.find("data        " + std::to_string(between) + " training prompts"), std::string::npos)
        << bounded.out;
    EXPECT_NE(bounded.err.find(std::to_string(100 - between) + " of 100 problems have a pass rate outside"),
              std::string::npos);
    // an evaluation of other problems, without samples, and what no row has
    const std::string other = jsonl("other", "{\"prompt\": \"9+9+9=?\\n\", \"answer\": \"27\"}\n");
    refused(1, grpo(out, {"--train_data", other, "--curriculum", rated}), {"none of the 1 problems is in", rated});
    const std::string greedy = fresh("evaluation");
    good({"eval", "--model", trained, "--eval_data", problems, "--eval_samples", "0", "--eval_n", "2",
          "--max_completion_length", "4", "--output_dir", greedy});
    refused(1, grpo(out, {"--curriculum", greedy}), {"no sampled completions", "--eval_samples"});
    refused(1, grpo(out, {"--curriculum", "pass_rate"}), {":1: --curriculum pass_rate", "no such field"});
    refused(2, grpo(out, {"--curriculum", rated, "--shuffle_dataset", "false"}), {"--curriculum", "--shuffle_dataset"});
    // a run that goes on takes the same, and refuses an evaluation that has changed
    const Args four = {"--curriculum", rated, "--max_steps", "4", "--save_steps", "2"};
    const std::string whole = fresh("whole"), branch = fresh("branch");
    good(grpo(whole, four));
    good({"grpo", "--resume_from_checkpoint", whole + "/checkpoint-2", "--output_dir", branch});
    const std::vector<std::string> all = learning_curve(whole), rest = learning_curve(branch);
    EXPECT_EQ(rest, std::vector<std::string>(all.begin() + 2, all.end()));
    write_text(rated + "/completions.jsonl", read_text(greedy + "/completions.jsonl"));
    refused(1, {"grpo", "--resume_from_checkpoint", whole + "/checkpoint-2", "--output_dir", fresh("never")},
            {"curriculum", "has changed"});
}

TEST(ShuffleDataset, FalseTakesTheRowsAsTheyStand) {
    const std::string out = fresh("run");
    good(grpo(out, {"--shuffle_dataset", "false", "--max_steps", "1"}));
    std::string prompts, rows;
    for (const json& row : read_lines(out + "/completions.jsonl")) prompts += row.value("prompt", "");
    for (int b = 0; b < 8; b++)
        for (int sample = 0; sample < 8; sample++) rows += "0+" + std::to_string(b) + "=?\n";
    EXPECT_EQ(prompts, rows);
}

// A micro-batch grows to the longest sequence that can come, before the memory is planned, and the start says so
TEST(MicroBatch, HoldsTheLongestSequence) {
    auto said = [](const Outcome& r, int from, int to) {
        const std::string line = "note        --micro_batch_tokens " + std::to_string(from) + " is raised to " +
                                 std::to_string(to) + ", the tokens of the longest sequence\n";
        EXPECT_NE(r.out.find(line), std::string::npos) << line << r.out;
    };
    const Args small = {"--micro_batch_tokens", "16"};
    // 6 tokens of a prompt and 32 sampled ones
    const std::string out = fresh("grpo");
    const Args sampled = grpo(out, {"--max_completion_length", "32"});
    said(good(sampled + small), 16, 38);
    EXPECT_EQ(read_json(out + "/config.json")["micro_batch_tokens"], 38);
    said(good(sampled + Args{"--micro_batch_tokens", "37", "--plan", "--overwrite_output_dir"}), 37, 38);
    EXPECT_EQ(good(sampled + Args{"--micro_batch_tokens", "38", "--plan", "--overwrite_output_dir"}).out.find("raised"),
              std::string::npos);
    // the longest row: 6 tokens, "#### 18" and the end
    said(good(Args{"sft", "--model", base, "--train_data", sums, "--max_steps", "2", "--output_dir", fresh("sft"),
                   "--micro_batch_tokens", "4"}),
         4, 14);
    // held-out texts are measured in the same memory
    const std::string text = fresh("text.txt");
    write_text(text, std::string(300, 'x'));
    said(good(Args{"distill", "--model", base, "--weights", "int4:g32", "--train_data", sums, "--max_steps", "1",
                   "--output_dir", fresh("distill"), "--eval_text", text, "--eval_text_length", "60"} +
              small),
         16, 60);
    const Args measured = {"eval", "--model", base, "--eval_text", text};
    said(good(measured + Args{"--eval_text_length", "60", "--output_dir", fresh("eval")} + small), 16, 60);
    said(good(measured + Args{"--output_dir", fresh("eval")} + small), 16, 128);  // 512, but the context has 128
    refused(2, measured + Args{"--eval_text_length", "129", "--output_dir", fresh("never")},
            {"--eval_text_length 129", "context is 128"});
    const Args rounded = {"quantize", "--model",      base,        "--weights",
                          "int4:g32", "--train_data", sums,        "--calibration_samples",
                          "2",        "--output_dir", fresh("ptq")};
    said(good(rounded + small), 16, 128);
    refused(2, rounded + Args{"--calibration_length", "129", "--overwrite_output_dir"},
            {"--calibration_length 129", "context is 128"});
    said(good(Args{"distill", "--model", base, "--weights", "int4:g32", "--train_data", sums, "--max_steps", "1",
                   "--output_dir", fresh("on_policy"), "--lmbda", "1", "--max_completion_length", "50"} +
              small),
         16, 56);
}

TEST(BadData, StandardInput) {
    auto input = [](const std::string& text) {
        RunSetting s;
        s.input = text;
        return s;
    };
    refused(1, {"tokenize"}, {"standard input:2", "JSON"}, input("{\"text\": \"a\"}\nb\n"));
    refused(1, {"tokenize"}, {"standard input:1", "text"}, input("{\"txt\": \"a\"}\n"));
    refused(1, {"tokenize", "--decode"}, {"standard input:1", "ids"}, input("{\"text\": \"a\"}\n"));
    refused(1, {"tokenize", "--decode"}, {"standard input:1", "259", "token id"}, input("{\"ids\": [1, 259]}\n"));
    refused(1, {"tokenize", "--decode"}, {"standard input:1", "token id"}, input("{\"ids\": [-1]}\n"));
    refused(1, {"tokenize", "--decode"}, {"standard input:1", "token id"}, input("{\"ids\": [1.5]}\n"));
    refused(1, {"tokenize", "--model", base}, {"standard input:1", "chat template"},
            input("{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n"));
    refused(1, {"logprobs", "--model", base}, {"standard input:1", "259"}, input("{\"ids\": [1, 259]}\n"));
    refused(1, {"logprobs", "--model", base}, {"standard input:1", "200", "128"},
            input("{\"text\": \"" + std::string(200, 'a') + "\"}\n"));
    refused(1, {"generate", "--model", base, "--max_completion_length", "8"}, {"standard input", "empty"}, input(""));
    refused(1, {"generate", "--model", base}, {"standard input: more than 64 MiB"}, input(std::string(65 << 20, '1')));
    refused(1, {"generate", "--model", base, "--max_completion_length", "8"}, {"200", "128"},
            input(std::string(200, 'a')));
}

TEST(Grpo, DataFormats) {
    std::string gsm8k, trl, instruction = "the final answer alone on the last line";
    for (int i = 0; i < 8; i++) {
        std::string sum = std::to_string(i) + "+1";
        gsm8k += json{{"question", sum + "?"}, {"answer", "It is.\n#### " + std::to_string(i + 1)}}.dump() + "\n";
        trl += json{{"prompt", sum + "=?\n"}, {"solution", "\\boxed{" + std::to_string(i + 1) + "}"}}.dump() + "\n";
    }
    Args small = {"--max_steps",        "1", "--max_completion_length", "8",
                  "--prompts_per_step", "8", "--num_generations",       "2"};
    auto args = [&](const std::string& data, const std::string& out) {
        return Args{"grpo", "--model", trained, "--train_data", data, "--output_dir", out} + small;
    };
    std::string out = fresh("gsm8k");
    good(args(jsonl("gsm8k", gsm8k), out));
    std::vector<json> rows = read_lines(out + "/completions.jsonl");
    ASSERT_EQ(rows.size(), 16u);
    std::string prompt = rows[0].value("prompt", ""), gold = rows[0].value("gold", "");
    EXPECT_NE(prompt.find(instruction), std::string::npos) << prompt;
    EXPECT_EQ(std::to_string(prompt[0] - '0' + 1), gold) << prompt;
    EXPECT_FALSE(read_json(out + "/summary.json")["eval"].contains("before"));  // nothing held out was given

    out = fresh("template");
    good(args(jsonl("gsm8k", gsm8k), out) + Args{"--prompt_template", "Q: {question}\nA:"});
    prompt = read_lines(out + "/completions.jsonl").at(0).value("prompt", "");
    EXPECT_EQ(prompt.rfind("Q: ", 0), 0u);
    EXPECT_EQ(prompt.substr(prompt.size() - 3), "\nA:");

    out = fresh("trl");
    good(args(jsonl("trl", trl), out) + Args{"--eval_data", problems, "--eval_n", "3", "--allow_overlap", "true"});
    prompt = read_lines(out + "/completions.jsonl").at(0).value("prompt", "");
    EXPECT_EQ(prompt.size(), 6u) << prompt;
    EXPECT_EQ(prompt.substr(3), "=?\n");
    json summary = read_json(out + "/summary.json");
    EXPECT_EQ(summary["eval"]["n"], 3);
    number(summary["eval"]["before"], "pass@1");
    number(summary["eval"]["after"], "pass@1");
}

// what is trained on and held out at once, by every command that has both
TEST(DataSets, OverlapIsRefusedUnlessAsked) {
    const std::string out = fresh("overlap"), other = jsonl("other", "{\"prompt\": \"20+1=?\", \"answer\": \"21\"}\n"),
                      first = "3 of the 3 held-out problems are trained on, too; the first: " + problems + ":1 is ";
    const Args sets = {"--eval_data", problems, "--eval_n", "3", "--max_completion_length", "8", "--output_dir", out},
               grpo_args = {"grpo", "--model", trained, "--train_data", problems},
               sft_args = {"sft", "--model", trained, "--train_data", sums, "--max_steps", "0"},
               distill_args = {"distill",      "--model", trained,    "--teacher", trained,
                               "--train_data", problems,  "--seq_kd", "true"};
    refused(1, grpo_args + sets, {first + problems + ":1, '0+0=?", "--allow_overlap true"});
    refused(1, sft_args + sets, {first + sums + ":1"});
    refused(1, distill_args + sets, {first + problems + ":1"});
    EXPECT_FALSE(fs::exists(out));
    Outcome r = good(sft_args + sets + Args{"--allow_overlap", "true"});
    EXPECT_NE(r.err.find("note: " + first), std::string::npos) << r.err;
    r = good(sft_args + Args{"--eval_data", other, "--max_completion_length", "8", "--output_dir", fresh("apart")});
    EXPECT_EQ(r.err.find("held-out problems are trained on"), std::string::npos) << r.err;
}

TEST(DataSets, NamesGoldsAndStyles) {
    const std::string out = fresh("styles"),
                      shots = jsonl("shots",
                                    "{\"question\": \"1+1=?\", \"answer\": \"#### 2\"}\n"
                                    "{\"question\": \"2+2=?\", \"answer\": \"#### 4\"}\n"),
                      set = jsonl("set", "{\"question\": \"3+3=?\", \"answer\": \"#### 6\"}\n"),
                      empty = jsonl("empty", "{\"question\": \"3+3=?\", \"answer\": \"()\"}\n"),
                      no_gold = jsonl("no_gold", "{\"question\": \"3+3=?\"}\n");
    const Args eval = {"eval", "--model", trained, "--max_completion_length", "8", "--output_dir", out, "--eval_data"};
    refused(2, eval + Args{"gsm8k"},
            {"--eval_data gsm8k: data/sets/gsm8k/test.jsonl is not there", "data/download gsm8k"});
    refused(2, eval + Args{"gsm9k"}, {"did you mean gsm8k?"});
    refused(1, eval + Args{empty},
            {empty + ":1: the gold answer '()' cannot be read as an answer; so it is with 1 of the 1"});
    refused(1, eval + Args{no_gold}, {no_gold + ":1: no `answer`", "what is graded needs its answer"});
    const Args few = eval + Args{set, "--prompt_style", "lm_eval_gsm8k", "--fewshot_data", shots};
    refused(1, few, {shots + " has 2 examples, and --num_fewshot asks for 5"});
    const Outcome r = good(few + Args{"--num_fewshot", "2"});
    EXPECT_EQ(read_lines(out + "/completions.jsonl").at(0).value("prompt", ""),
              "Question: 1+1=?\nAnswer: #### 2\n\nQuestion: 2+2=?\nAnswer: #### 4\n\nQuestion: 3+3=?\nAnswer:");
    EXPECT_EQ(read_json(out + "/config.json").value("stop_strings", ""), "Question:,</s>,<|im_end|>");
    refused(2, eval + Args{set, "--num_fewshot", "2"}, {"--num_fewshot belongs to --prompt_style lm_eval_gsm8k"});
    refused(2, eval + Args{set, "--prompt_style", "boxed", "--prompt_template", "{prompt}"}, {"brings its own"});
    refused(2, eval + Args{set, "--prompt_style", "boxed", "--system_prompt", "x"}, {"brings its own"});
    refused(2, eval + Args{set, "--prompt_style", "lm_eval_gsm8k_cot", "--num_fewshot", "9"}, {"has 8 examples"});
    refused(1, eval + Args{set, "--prompt_given", "plan"}, {set + ":1: --prompt_given plan: the row has no `plan`"});
}
