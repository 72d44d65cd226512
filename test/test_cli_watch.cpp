// What a run says of itself before and beside its numbers: warnings, the first prompt with its ids, and the cards of models.
#include "../runtime/error.h"
#include "cli.h"

// names and steps of a folder's warnings.jsonl: "truncated 0, too_hard 3"
static std::string warned(const std::string& out) {
    std::string text;
    for (const json& line : read_lines(out + "/warnings.jsonl"))
        text += (text.empty() ? "" : ", ") + line["warning"].get<std::string>() + " " + line["step"].dump();
    return text;
}

static int times(const std::string& text, const std::string& part) {
    int n = 0;
    for (size_t at = 0; (at = text.find(part, at)) != text.npos; at += part.size()) n++;
    return n;
}

// ---------------------------------------------------------------------------------------------------------------------
// warnings

TEST(Warnings, CompletionsThatAreCutOffNameTheFlagBeforeTheFirstStep) {
    const std::string out = fresh("cut");
    const Outcome r =
        good({"--max_completion_length", "4", "--cold_start_loss", "3", "--max_steps", "2", "--prompts_per_step", "2",
              "--num_generations", "8", "--eval_n", "8", "--eval_samples", "2", "--output_dir", out});
    const size_t at = r.err.find("warning: ");  // a line of progress may stand before it
    ASSERT_NE(at, std::string::npos) << r.err;
    EXPECT_EQ(r.err.find("warning: in the evaluation before training "), at) << r.err;
    for (const char* part : {"% of the completions were cut off at --max_completion_length 4, and count as wrong",
                             "give more, such as --max_completion_length 8\n"})
        EXPECT_NE(r.err.find(part), std::string::npos) << r.err;
    EXPECT_EQ(times(r.err, "warning: "), 1) << "told once: " << r.err;
    EXPECT_EQ(warned(out), "truncated 0");
    EXPECT_EQ("warning: " + read_lines(out + "/warnings.jsonl").at(0)["text"].get<std::string>(),
              r.err.substr(at, r.err.find('\n', at) - at));
}

// told apart by what is wrong with them
TEST(Warnings, StepsWithoutASignal) {
    const std::string own = root + "/nothing.sh";
    write_text(own, "#!/bin/sh\nwhile read line; do echo 0.25; done\n");
    fs::permissions(own, fs::perms::owner_all);
    std::string out = fresh("constant");
    Outcome r = good(grpo(out, {"--reward_funcs", own, "--max_steps", "4", "--logging_steps", "4"}));
    EXPECT_EQ(times(r.err, "warning: every completion got the same reward, so nothing is learnt (mean reward 0.25)"), 1)
        << r.err;
    EXPECT_EQ(warned(out), "constant_reward 3");
    out = fresh("wrong");
    std::string wrong;
    for (int i = 0; i < 32; i++) wrong += json{{"prompt", format("%d+0=?\n", i % 9)}, {"answer", "777"}}.dump() + "\n";
    r = good(grpo(out, {"--train_data", jsonl("wrong", wrong), "--max_steps", "4"}));
    EXPECT_EQ(times(r.err, "all samples of every prompt are wrong, so nothing is learnt"), 1) << r.err;
    EXPECT_EQ(warned(out), "too_hard 3");
}

TEST(Warnings, AHealthyRunHasNone) {
    const std::string out = fresh("healthy");
    const Outcome r = good(grpo(out, {"--weights", "int4:g32", "--max_steps", "6", "--eval_data", problems}));
    EXPECT_EQ(r.err.find("warning: "), std::string::npos) << r.err;
    EXPECT_EQ(read_text(out + "/warnings.jsonl"), "");
}

// A model whose end of a text is that of a chat's turn or not, with a chat template beside it or not. Its tokenizer has a merge, which
// that of the embedded model has not.
static std::string chat_model(bool ends_turns, bool with_template) {
    const std::string m = model_copy();
    json config = read_json(m + "/config.json"), tokenizer = read_json(m + "/tokenizer.json");
    json settings = read_json(m + "/tokenizer_config.json");
    tokenizer["model"]["vocab"]["ab"] = 259;
    tokenizer["model"]["merges"].push_back("a b");
    Tensors t = tiny_tensors();
    auto& [shape, values] = t["model.embed_tokens.weight"];
    config["vocab_size"] = shape[0] = 260, config["max_position_embeddings"] = 512;
    values.resize(260 * 32, 0.01f);
    if (!ends_turns) config["eos_token_id"] = 256, settings["eos_token"] = "<|endoftext|>";
    if (with_template)
        settings["chat_template"] =
            "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + "
            "'<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' "
            "}}{% endif %}";
    write_safetensors(m + "/model.safetensors", t);
    write_text(m + "/config.json", config.dump());
    write_text(m + "/tokenizer.json", tokenizer.dump());
    write_text(m + "/tokenizer_config.json", settings.dump());
    return m;
}

TEST(Warnings, TemplatesThatAreMissingOrOfABaseModel) {
    auto told = [](const std::string& m, const Args& more = {}) {
        const Outcome r = good(Args{"eval", "--model", m, "--eval_data", problems, "--eval_n", "2", "--eval_samples",
                                    "0", "--max_completion_length", "4", "--output_dir", fresh("eval")} +
                               more);
        return r.err;
    };
    EXPECT_EQ(told(chat_model(true, true)), "");
    EXPECT_EQ(told(chat_model(false, false)), "");
    EXPECT_NE(told(chat_model(true, true), {"--chat_template", "off"}).find("give --chat_template auto"),
              std::string::npos);
    EXPECT_NE(told(chat_model(true, false)).find("its tokenizer brings none; give --tokenizer"), std::string::npos);
    const std::string of_base = told(chat_model(false, true));
    EXPECT_NE(of_base.find("a base model, which knows no chat"), std::string::npos) << of_base;
    EXPECT_NE(of_base.find("--chat_template off"), std::string::npos) << of_base;
    EXPECT_EQ(told(chat_model(true, false), {"--prompt_template", "<|im_start|>user\n{prompt}<|im_end|>\n"}), "")
        << "a template by hand";
}

TEST(Warnings, TwoBeginnings) {
    const std::string m = model_copy();
    json tokens = read_json(m + "/tokenizer_config.json");
    const std::string bos = "<|endoftext|>";
    tokens["bos_token"] = bos;
    write_text(m + "/tokenizer_config.json", tokens.dump());
    for (int n : {1, 2}) {
        std::string out = fresh("eval"), text = bos;
        if (n == 2) text += bos;
        const Outcome r =
            good({"eval", "--model", m, "--eval_data", problems, "--eval_n", "2", "--eval_samples", "0",
                  "--max_completion_length", "4", "--prompt_template", text + "{prompt}", "--output_dir", out});
        EXPECT_EQ(r.err.find("begins with two BOS tokens") != std::string::npos, n == 2) << r.err;
        EXPECT_EQ(warned(out), n == 2 ? "bos_doubled 0" : "");
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// the first prompt

TEST(FirstPrompt, IsShownAsTheModelGetsIt) {
    Outcome r = good(grpo(fresh("run"), {"--max_steps", "1"}));
    EXPECT_NE(r.out.find("\nfirst prompt \"0+0=?\\n\"  6 ids: 48 43 48 61 63 10\n"), std::string::npos) << r.out;
    r = good({"sft", "--model", trained, "--train_data", sums, "--max_steps", "1", "--output_dir", fresh("sft")});
    EXPECT_NE(r.out.find("\nfirst prompt \"0+0=?\\n\"  6 ids: "), std::string::npos) << r.out;
    EXPECT_NE(r.out.find("\nlearnt of it \"#### 0"), std::string::npos) << r.out;
    const std::string rows = jsonl(
        "long",
        json{{"prompt", std::string(80, 'a') + "\u001b[2J" + std::string(80, 'b')}, {"answer", "1"}}.dump() + "\n");
    r = good({"eval", "--model", chat_model(true, true), "--eval_data", rows, "--eval_samples", "0",
              "--max_prompt_length", "512", "--max_completion_length", "4", "--output_dir", fresh("eval")});
    const size_t at = r.out.find("\nfirst prompt \"<|im_start|>user\\naaaa");
    ASSERT_NE(at, std::string::npos) << r.out;
    const std::string shown = r.out.substr(at, r.out.find("\n\n", at) - at);
    EXPECT_NE(shown.find(" [...] "), std::string::npos) << shown;
    EXPECT_NE(shown.find("<|im_end|>\\n<|im_start|>assistant\\n\"\n             "), std::string::npos) << shown;
    EXPECT_EQ(shown.find('\x1b'), std::string::npos);
}

// ---------------------------------------------------------------------------------------------------------------------
// cards

// what stands between the first ``` after a heading and the next
static std::string block(const std::string& card, const std::string& heading) {
    const size_t at = card.find("\n## " + heading + "\n"), begin = card.find("```\n", at) + 4;
    EXPECT_NE(at, card.npos) << card;
    return card.substr(begin, card.find("\n```", begin) - begin);
}

static void rerun(std::string command, const std::string& out) {
    const size_t name = command.find("./train_qrl");
    ASSERT_EQ(name, 0u) << command;
    command.replace(0, 11, "\"$PROGRAM\"");
    const size_t steps = command.find("--max_steps 2");
    ASSERT_NE(steps, command.npos) << command;
    command.replace(steps, 13, "--max_steps 1 --output_dir '" + out + "'");
    const std::string script = fresh("again.sh");
    write_text(script, "set -e\nPROGRAM='" + fs::absolute(program()).string() + "'\n" + command + "\n");
    const int status = system(("bash '" + script + "' >'" + script + ".log' 2>&1").c_str());
    EXPECT_EQ(WEXITSTATUS(status), 0) << command << "\n" << read_text(script + ".log");
}

TEST(Card, OfACheckpointSaysWhatItIsAndHowItWasMade) {
    const std::string out = fresh("run"), again = fresh("again");
    good(grpo(out, {"--weights", "int4:g32", "--eval_data", problems, "--eval_n", "8", "--save_steps", "1", "--beta",
                    "0.04", "--threads", "1"}));
    const std::string card = read_text(out + "/checkpoint-2/README.md"),
                      first = read_text(out + "/checkpoint-1/README.md");
    EXPECT_EQ(card.rfind("---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- train_qrl\n- grpo\n"
                         "- reinforcement-learning\n- quantization-aware-training\n---\n\n# ",
                         0),
              0u)
        << card;
    for (const std::string& part : Args{"after 2 steps of grpo", "`" + trained + "`", "`" + problems + "`, 100 prompts",
                                        "8 problems that were held out", "int4:g32:sym      4.500 bits a weight",
                                        "| before training | at step 2 |", "\n| pass@1 | ", "\n| greedy | ",
                                        "95 % interval", "from_pretrained", "do not say under which licence", "adamw"})
        EXPECT_NE(card.find(part), card.npos) << part << "\n" << card;
    const json evaluated = read_json(out + "/summary.json")["eval"]["after"];
    EXPECT_NE(card.find(format(" %.1f %% [%.1f, %.1f]", 100 * number(evaluated, "greedy"),
                               100 * evaluated["greedy_interval"][0].get<double>(),
                               100 * evaluated["greedy_interval"][1].get<double>())),
              card.npos)
        << card;
    EXPECT_NE(first.find("after 1 step of grpo"), first.npos);
    EXPECT_NE(first.find("| before training |\n"), first.npos) << "what comes later is not known yet\n" << first;
    const std::string command = block(card, "The command");
    for (const char* flag : {"--beta 0.04", "--weights int4:g32", "--max_steps 2"})
        EXPECT_NE(command.find(flag), command.npos) << command;
    for (const char* flag : {"--threads", "--output_dir", "--save_steps"})
        EXPECT_EQ(command.find(flag), command.npos) << command;
    rerun(command, again);
    EXPECT_EQ(learning_curve(again).at(0).size(), learning_curve(out).at(0).size());
    json a = json::parse(learning_curve(again).at(0)), b = json::parse(learning_curve(out).at(0));
    for (const char* key : {"reward", "loss", "entropy", "kl", "grad_norm"}) EXPECT_EQ(a[key], b[key]) << key;
    EXPECT_EQ(read_json(out + "/checkpoint-2/.train_qrl")["files"].dump().find("README.md") != std::string::npos, true);
    good(grpo(out, {"--overwrite_output_dir", "true", "--max_steps", "1"}));
    good({"generate", "--model", out + "/checkpoint-1", "--prompt", "1+1=?\n", "--max_completion_length", "4"});
}

// names that would be markup, metadata, or a command
TEST(Card, HostileNamesStayNames) {
    const std::string name = "a\n---\nlicense: evil\n`$(touch owned)` '\"|\\ <b>*x*";
    const std::string folder = fresh("hostile") + name, data = root + "/d " + name + ".jsonl", out = fresh("run");
    fs::create_directories(fs::path(folder).parent_path());
    fs::copy(trained, folder, fs::copy_options::recursive);
    write_text(folder + "/README.md", "---\nlicense: \"mit\\nbase_model: x\"\nbase_model: [a, b]\n---\n# theirs\n");
    write_text(folder + "/SOURCE",
               "# f: https://h/own er/na`me/resolve/1/f revision 1, fetched 2026-01-01, licence: see its page\n");
    fs::create_directories(fs::path(data).parent_path());
    fs::copy(problems, data);
    good(grpo(out, {"--model", folder, "--train_data", data}));
    const std::string card = read_text(out + "/checkpoint-2/README.md");
    EXPECT_EQ(card.rfind("---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- train_qrl\n- grpo\n"
                         "- reinforcement-learning\n---\n\n# ",
                         0),
              0u)
        << card;
    EXPECT_EQ(times(card, "\n---\n"), 1) << card;
    EXPECT_EQ(card.find("\nlicense"), card.npos) << card;
    EXPECT_EQ(card.find("\n`$(touch"), card.npos) << card;
    rerun(block(card, "The command"), fresh("again"));
    EXPECT_FALSE(fs::exists("owned"));
}

TEST(Card, NamesTheBaseAndItsLicenceWhereFilesSaySo) {
    const std::string m = model_copy(), out = fresh("run");
    write_text(m + "/SOURCE",
               "# config.json: https://huggingface.co/Qwen/Qwen2.5-0.5B/resolve/abc/config.json revision abc, fetched "
               "2026-01-01, licence: apache-2.0\n");
    const Args quantize = {"quantize", "--model", m, "--weights", "int8:channel", "--ptq", "rtn"};
    good(quantize + Args{"--output_dir", out});
    const std::string card = read_text(out + "/checkpoint-0/README.md");
    EXPECT_EQ(card.rfind("---\nbase_model: Qwen/Qwen2.5-0.5B\nlicense: apache-2.0\nlibrary_name: transformers\n", 0),
              0u)
        << card;
    for (const char* part : {"rounded by `rtn`", "int8:channel:sym", "which its files give as `apache-2.0`"})
        EXPECT_NE(card.find(part), card.npos) << part << card;
    // and of what is made of that
    const std::string exported = fresh("export");
    good({"export", "--model", out + "/checkpoint-0", "--format", "hf", "--output_dir", exported});
    const std::string next = read_text(exported + "/README.md");
    EXPECT_EQ(next.rfind("---\nbase_model: Qwen/Qwen2.5-0.5B\nlicense: apache-2.0\n", 0), 0u) << next;
    EXPECT_NE(next.find("The card of what it was made of:"), next.npos) << next;
    EXPECT_NE(next.find("rounded by `rtn`"), next.npos) << next;
    good({"generate", "--model", exported, "--prompt", "1", "--max_completion_length", "2"});
}

TEST(Card, SaysWhichFlagsWereChangedOnTheWay) {
    const std::string out = fresh("run");
    good(grpo(out, {"--save_steps", "1", "--lr_scheduler_type", "constant"}));
    good({"grpo", "--output_dir", out, "--resume_from_checkpoint", "last", "--max_steps", "3", "--learning_rate",
          "0.002", "--threads", "1"});
    const std::string card = read_text(out + "/checkpoint-3/README.md");
    EXPECT_NE(card.find("- from step 2 on `--learning_rate 0.002`, before `0.001`\n"), card.npos) << card;
    EXPECT_EQ(times(card, "- from step "), 1) << "a longer run at the same rate is the same run\n" << card;
    EXPECT_EQ(read_text(out + "/checkpoint-2/README.md").find("- from step "), std::string::npos);
}

TEST(Card, OfAnAdapterAndOfWhatIsMerged) {
    const std::string out = fresh("run");
    good(grpo(out, {"--weights", "int4:g32", "--lora_r", "4", "--merge_adapter", "true"}));
    const std::string card = read_text(out + "/checkpoint-2/README.md"),
                      merged = read_text(out + "/checkpoint-2-merged/README.md");
    EXPECT_NE(card.find("library_name: peft\n"), card.npos) << card;
    EXPECT_NE(card.find("AutoPeftModelForCausalLM"), card.npos) << card;
    EXPECT_NE(card.find("adapters of rank 4"), card.npos) << card;
    EXPECT_NE(merged.find("library_name: transformers\n"), merged.npos) << merged;
    EXPECT_NE(merged.find("are merged here"), merged.npos) << merged;
}
