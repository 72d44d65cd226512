// The table of options: parser, errors, config files, and what it prints.
#include <gtest/gtest.h>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <sys/stat.h>
#include <unistd.h>
#include "../runtime/options.h"

typedef std::vector<std::string> Args;

// the error of a command line, which must be one line and exit with 2; "" when it is accepted
static std::string usage_error(const Args& args) {
    try {
        parse_options(args);
    } catch (const Error& e) {
        std::string what = e.what();
        EXPECT_EQ(e.exit_code, 2) << what;
        EXPECT_EQ(what.find('\n'), std::string::npos) << what;
        return what;
    }
    return "";
}

static void expect_error(const Args& args, const Args& parts) {
    std::string what = usage_error(args);
    EXPECT_NE(what, "") << "accepted: " << join_words(args, " ");
    for (const std::string& part : parts) EXPECT_NE(what.find(part), std::string::npos) << what << "\nlacks: " << part;
}

struct ConfigFile {
    std::string path;
    explicit ConfigFile(const std::string& text) {
        path = (std::filesystem::temp_directory_path() / format("test_options_%ld.json", (long)getpid())).string();
        std::ofstream(path, std::ios::binary) << text;
    }
    ~ConfigFile() { std::filesystem::remove(path); }
};

TEST(Nearest, DistancesAreEdits) {
    EXPECT_EQ(edit_distance("", ""), 0);
    EXPECT_EQ(edit_distance("", "abc"), 3);
    EXPECT_EQ(edit_distance("kitten", "sitting"), 3);
    EXPECT_EQ(edit_distance("beta", "btea"), 1);                    // a swap is one edit
    EXPECT_EQ(edit_distance("Learning-Rate", "learning_rate"), 0);  // case and dashes are free
    EXPECT_EQ(edit_distance("saturday", "sunday"), edit_distance("sunday", "saturday"));
}

TEST(Nearest, SuggestsOnlyWhatIsNear) {
    std::vector<std::string> names = {"epsilon", "epsilon_high", "beta"};
    EXPECT_EQ(nearest("epsilom", names), "epsilon");
    EXPECT_EQ(nearest("epsilon-hihg", names), "epsilon_high");
    EXPECT_EQ(nearest("zzzz", names), "");
    EXPECT_EQ(nearest("", names), "");
    EXPECT_EQ(nearest(std::string(100000, 'x'), names), "");
    EXPECT_EQ(did_you_mean("bata", names, "--"), "; did you mean --beta?");
}

TEST(Options, EveryRowIsSound) {
    Options defaults;
    std::set<std::string> names;
    for (int i = 0; i < OPTION_ROWS; i++) {
        const OptionRow& r = option_rows[i];
        if (!r.name) {
            EXPECT_EQ(option_field(defaults, i), nullptr);
            continue;
        }
        SCOPED_TRACE(r.name);
        EXPECT_TRUE(names.insert(r.name).second);
        EXPECT_NE(r.commands, 0u);
        EXPECT_STRNE(r.help, "");
        EXPECT_EQ(option_index(r.name), i);
        if (is_interval(r.allowed)) {
            EXPECT_TRUE(r.type == OPTION_INT || r.type == OPTION_DOUBLE);
            EXPECT_TRUE(std::isfinite(parse_interval(r.allowed).high)) << "a number without an end";
            const Interval range = parse_interval(r.allowed);  // a float, where one is made of it, is neither 0 nor inf
            EXPECT_TRUE(!range.low_open || range.low != 0.0) << "so small a number is 0 as a float";
        } else {
            EXPECT_TRUE(r.type != OPTION_INT && r.type != OPTION_DOUBLE) << "a number without a range";
        }
        if (r.allowed[0] && !is_interval(r.allowed)) {
            EXPECT_EQ(r.type, OPTION_STRING);
            EXPECT_GE(allowed_words(r.allowed).size(), 1u);
        }
        if (!option_is_set(defaults, i)) continue;
        Options o;
        EXPECT_NO_THROW(set_option(o, i, option_text(defaults, i), r.name));  // the default passes its own check
        EXPECT_EQ(option_text(o, i), option_text(defaults, i));
    }
    for (int c = 0; c < COMMAND_COUNT; c++) EXPECT_FALSE(rows_for(1u << c).empty());
}

TEST(Options, ArgumentsBesideFlagsAreOfCompareAlone) {
    const Options o = parse_options(Args{"compare", "a", "--margin", "2", "b,c", "--pairs=all", "d"});
    EXPECT_EQ(o.command, COMMAND_COMPARE);
    EXPECT_EQ(o.arguments, (Args{"a", "b,c", "d"}));
    EXPECT_EQ(o.margin, 2.0);
    EXPECT_EQ(options_to_json(o)["arguments"].size(), 3u);
    EXPECT_FALSE(options_to_json(parse_options(Args{})).contains("arguments"));
    expect_error({"compare"}, {"two evaluations"});
    expect_error({"compare", "a"}, {"two evaluations"});
    expect_error({"compare", "a", "b", "-c"}, {"unexpected argument '-c'"});
    expect_error({"eval", "a", "--no_such_flag", "1"}, {"unexpected argument 'a'"});
    expect_error({"compare", "a", "b", "--model", "m"}, {"not used by compare"});
    const ConfigFile config(R"({"command": "compare", "arguments": ["x", "y"], "margin": 3})");
    EXPECT_EQ(parse_options(Args{"--config", config.path}).arguments, (Args{"x", "y"}));
    EXPECT_EQ(parse_options(Args{"compare", "p", "q", "--config", config.path}).arguments, (Args{"p", "q"}));
    const ConfigFile other(R"({"command": "eval", "arguments": ["x", "y"]})");
    expect_error({"--config", other.path}, {"arguments is unknown"});
}

TEST(Options, DefaultsAreTrls) {
    Options o = parse_options(Args{});
    EXPECT_EQ(o.command, COMMAND_GRPO);
    EXPECT_EQ(o.action, OPTIONS_RUN);
    EXPECT_EQ(o.learning_rate, 1e-6);
    EXPECT_EQ(o.num_generations, 8);
    EXPECT_EQ(o.loss_type, "dapo");
    EXPECT_EQ(o.beta, 0.0);
    EXPECT_EQ(o.epsilon_high, o.epsilon);
    EXPECT_FALSE(o.given("epsilon_high"));
    EXPECT_EQ(parse_options(Args{"--epsilon", "0.1"}).epsilon_high, 0.1);
    EXPECT_EQ(parse_options(Args{"--epsilon", "0.1", "--epsilon_high", "0.28"}).epsilon_high, 0.28);
}

TEST(Options, ReadsBothForms) {
    Options o = parse_options(Args{"sft", "--learning_rate=5e-6", "--max_steps", "-1", "--gradient_checkpointing",
                                   "--train_data", "", "--seed", "18446744073709551615", "--system_prompt=--a=b",
                                   "--quantize_layers", "q, down"});
    EXPECT_EQ(o.command, COMMAND_SFT);
    EXPECT_EQ(o.learning_rate, 5e-6);
    EXPECT_EQ(o.max_steps, -1);
    EXPECT_TRUE(o.gradient_checkpointing);
    EXPECT_EQ(o.seed, UINT64_MAX);
    EXPECT_EQ(o.system_prompt, "--a=b");
    EXPECT_TRUE(o.given("train_data"));
    EXPECT_FALSE(o.given("model"));
    EXPECT_THROW(o.given("no_such_option"), Error);
    EXPECT_TRUE(list_has(o.quantize_layers, "down"));
    EXPECT_FALSE(list_has(o.quantize_layers, "up"));
    EXPECT_TRUE(list_has("all", "up"));
    EXPECT_TRUE(parse_options(Args{"--gradient_checkpointing", "--seed", "1"}).gradient_checkpointing);
    std::string program = "train_qrl", command = "eval";
    char* argv[] = {&program[0], &command[0], nullptr};
    EXPECT_EQ(parse_options(2, argv).command, COMMAND_EVAL);
    EXPECT_EQ(parse_options(0, argv + 2).command, COMMAND_GRPO);
}

TEST(Options, ErrorsSayWhatToDo) {
    expect_error({"--lerning_rate", "1"}, {"--lerning_rate", "did you mean --learning_rate?"});
    expect_error({"--learning-rate", "1"}, {"did you mean --learning_rate?"});
    expect_error({"--xyzzy"}, {"--xyzzy is unknown"});
    EXPECT_EQ(usage_error({"--xyzzy"}).find("did you mean"), std::string::npos);
    expect_error({"eval", "--beta", "1"}, {"--beta", "not used by eval", "only by grpo"});
    expect_error({"--num_generations"}, {"--num_generations needs a value", "[2, 1024]"});
    expect_error({"--model", "--seed", "1"}, {"--model needs a value", "--model=VALUE"});
    expect_error({"--num_generations", "1"}, {"--num_generations 1", "out of range", "[2, 1024]"});
    expect_error({"--num_generations", "8x"}, {"8x", "not an integer", "[2, 1024]"});
    expect_error({"--num_generations", "8.0"}, {"not an integer"});
    expect_error({"--num_generations", ""}, {"not an integer"});
    expect_error({"--num_generations", " 8"}, {"not an integer"});
    expect_error({"--num_generations", "99999999999999999999"}, {"out of range"});
    expect_error({"--save_steps", "3000000000"}, {"out of range", "[0, 1000000000]"});
    expect_error({"--learning_rate", "1e-6 "}, {"not a number"});
    expect_error({"--learning_rate", "0,1"}, {"not a number"});
    expect_error({"--learning_rate", "nan"}, {"not a number"});
    expect_error({"--max_grad_norm", "inf"}, {"not a number"});
    expect_error({"--max_grad_norm", "1e999"}, {"not a number"});
    expect_error({"--top_p", "0"}, {"out of range", "[1e-06, 1]"});
    expect_error({"--adam_beta2", "1"}, {"out of range", "[0, 1)"});
    expect_error({"--seed", "-1"}, {"--seed -1", "18446744073709551615"});
    expect_error({"--seed", "18446744073709551616"}, {"not an integer"});
    expect_error({"--loss_type", "dpao"}, {"grpo, dr_grpo, bnpo, dapo", "did you mean dapo?"});
    expect_error({"--loss_type", ""}, {"not one of"});
    expect_error({"--quantize_layers", "q,gat"}, {"'gat' is not one of", "did you mean gate?"});
    expect_error({"--quantize_layers", "q,,k"}, {"'' is not one of"});
    expect_error({"--quantize_layers", "q,k,q"}, {"'q' is listed twice"});
    expect_error({"--log_completions", "yes"}, {"--log_completions yes", "not true or false"});
    expect_error({"--seed", "1", "--seed=1"}, {"--seed is given twice"});
    expect_error({"evla"}, {"unknown command 'evla'", "did you mean eval?"});
    expect_error({"grpo", "stray"}, {"unexpected argument 'stray'"});
    expect_error({"grpo", "-seed", "1"}, {"unexpected argument '-seed'"});
    expect_error({"--"}, {"unexpected argument '--'"});
    expect_error({"--=1"}, {"is unknown"});
    expect_error({""}, {"unknown command ''"});
    expect_error({"--temperature", "0"}, {"--temperature 0", "greedy"});
    expect_error({"--temperature", "1e-45"}, {"--temperature 1e-45", "0.0001", "0 is greedy"});  // a denormal float
    expect_error({"eval", "--temperature", "0.00009"}, {"--temperature 9e-05", "0.0001"});
    EXPECT_EQ(usage_error({"--temperature", "0.0001"}), "");
    EXPECT_EQ(usage_error({"eval", "--temperature", "0"}), "");
    expect_error({"--loss_type", "a\nb\x01\xFF"}, {"a\\nb"});          // still one line
    expect_error({"--" + std::string(1 << 20, 'x')}, {"is unknown"});  // and a short one
    EXPECT_LT(usage_error({"--" + std::string(1 << 20, 'x')}).size(), 1000u);
}

TEST(Options, WhereARunCanBeWatched) {
    EXPECT_TRUE(reports_to(parse_options(Args{}), "tensorboard"));
    EXPECT_TRUE(reports_to(parse_options(Args{}), "html"));
    const Options html = parse_options(Args{"sft", "--report_to", "html"});
    EXPECT_TRUE(reports_to(html, "html"));
    EXPECT_FALSE(reports_to(html, "tensorboard"));
    EXPECT_FALSE(reports_to(parse_options(Args{"--report_to", "none"}), "tensorboard"));
    expect_error({"--report_to", "none,html"}, {"none stands alone"});
    expect_error({"--report_to", "wandb"}, {"'wandb' is not one of tensorboard, html, none"});
    expect_error({"eval", "--report_to", "none"}, {"not used by eval, only by grpo, sft, distill"});
}

TEST(Options, HelpAndVersionWin) {
    EXPECT_EQ(parse_options(Args{"--nonsense", "--help"}).action, OPTIONS_HELP);
    EXPECT_EQ(parse_options(Args{"sft", "-h"}).command, COMMAND_SFT);
    EXPECT_EQ(parse_options(Args{"help", "eval"}).action, OPTIONS_HELP);
    EXPECT_EQ(parse_options(Args{"help", "eval"}).command, COMMAND_EVAL);
    EXPECT_EQ(options_answer(parse_options(Args{"--version"})), "train_qrl " TRAIN_QRL_VERSION "\n");
    EXPECT_EQ(options_answer(parse_options(Args{"help", "markdown"})), options_markdown());
    for (int c = 0; c < COMMAND_COUNT; c++) {
        std::string help = options_answer(parse_options(Args{"help", command_rows[c].name}));
        for (int i = 0; i < OPTION_ROWS; i++) {
            if (!option_rows[i].name) continue;
            bool shown = help.find("\n  --" + std::string(option_rows[i].name) + " ") != std::string::npos;
            EXPECT_EQ(shown, (option_rows[i].commands >> c & 1) != 0) << option_rows[i].name << command_rows[c].name;
        }
    }
}

TEST(Options, PrintTellsWhatIsNotDefault) {
    std::string s = options_print(parse_options(Args{"--learning_rate", "5e-6", "--system_prompt", "a\nb"}));
    EXPECT_NE(s.find("\n* learning_rate                5e-06  (default 1e-06)\n"), std::string::npos) << s;
    EXPECT_NE(s.find("\n* system_prompt                a\\nb  (default \"\")\n"), std::string::npos) << s;
    EXPECT_EQ(s.find("weight_decay"), std::string::npos) << s;
    EXPECT_NE(s.find(" others are at their defaults; grpo --help tells of them\n"), std::string::npos) << s;
    EXPECT_EQ(options_print(parse_options(Args{})).find("\n* "), std::string::npos);
}

TEST(Config, FileThenCommandLine) {
    ConfigFile f(
        "{\"beta\": 0.04, \"loss_type\": \"bnpo\", \"seed\": 18446744073709551615, \"epsilon_high\": null,\n"
        " \"log_completions\": false, \"num_generations\": 4}");
    Options o = parse_options(Args{"--num_generations", "16", "--config", f.path});
    EXPECT_EQ(o.beta, 0.04);
    EXPECT_EQ(o.loss_type, "bnpo");
    EXPECT_EQ(o.seed, UINT64_MAX);
    EXPECT_FALSE(o.log_completions);
    EXPECT_EQ(o.num_generations, 16);
    EXPECT_EQ(o.epsilon_high, 0.2);
    EXPECT_TRUE(o.given("beta"));
    EXPECT_FALSE(o.given("epsilon_high"));
}

TEST(Config, AWrittenConfigGivesTheSameOptions) {
    for (const Args& args :
         {Args{"grpo", "--epsilon", "0.1", "--learning_rate", "0.1", "--seed", "9223372036854775809"},
          Args{"sft", "--system_prompt", "\"\\ \n\xC3\xA9", "--gradient_checkpointing"}, Args{"eval"}}) {
        Options o = parse_options(args);
        ConfigFile f(options_to_json(o).dump(2));
        Options again = parse_options(Args{"--config", f.path});
        again.config = "";
        EXPECT_EQ(options_print(again), options_print(o));
        EXPECT_EQ(options_to_json(again), options_to_json(o));
    }
    EXPECT_FALSE(options_to_json(parse_options(Args{"eval"})).contains("beta"));
}

// what a run took without being given it is neither given by its config.json nor forgotten, unless it was changed there
TEST(Config, OfARunKeepsWhatWasGiven) {
    Options o = parse_options(Args{"grpo", "--task", "arithmetic", "--epsilon", "0.1"});
    o.set_default("learning_rate", o.learning_rate, 0.5);  // as the embedded model does
    nlohmann::ordered_json j = options_to_json(o);
    add_given(j, o);
    ConfigFile f(j.dump());
    Options again = parse_options(Args{"--config", f.path, "--epsilon", "0.3"});
    EXPECT_TRUE(again.given("task") && again.given("epsilon"));
    for (const char* name : {"learning_rate", "beta", "seed", "epsilon_high"}) EXPECT_FALSE(again.given(name)) << name;
    EXPECT_EQ(again.learning_rate, 0.5);
    EXPECT_EQ(again.epsilon_high, 0.3);  // which follows epsilon
    again.set_default("learning_rate", again.learning_rate, 0.7);
    EXPECT_EQ(again.learning_rate, 0.5);
    j["learning_rate"] = 0.25, j["beta"] = 0.5;
    ConfigFile changed(j.dump());
    again = parse_options(Args{"--config", changed.path});
    EXPECT_TRUE(again.given("learning_rate") && again.given("beta"));
    EXPECT_EQ(again.learning_rate, 0.25);
    j["learning_rate"] = 1e-6;  // back to the table's default
    ConfigFile back(j.dump());
    EXPECT_TRUE(parse_options(Args{"--config", back.path}).given("learning_rate"));
    j["given"] = "task";
    ConfigFile broken(j.dump());
    EXPECT_THROW(parse_options(Args{"--config", broken.path}), Error);
}

TEST(Config, ErrorsNameTheFile) {
    struct {
        const char *text, *part;
    } cases[] = {
        {"{\"bata\": 1}", "key bata is unknown; did you mean beta?"},
        {"{\"max_length\": 8}", "key max_length is not used by grpo, only by sft"},
        {"{\"beta\": \"1\"}", "key beta: not a number"},
        {"{\"loss_type\": 1}", "key loss_type: not a string"},
        {"{\"log_completions\": 1}", "key log_completions: not true or false"},
        {"{\"num_generations\": 1}", "num_generations 1: out of range; allowed: [2, 1024]"},
        {"{\"num_generations\": 2.5}", "num_generations 2.5: not an integer"},
        {"{\"beta\": [1]}", "key beta: not a number"},
        {"{\"beta\": {\"x\": {}}}", "key beta: not a number"},
        {"{\"beta\": {\"x\": [[1]]}}", "key beta: not a number"},
        {"{\"beta\": 1, \"beta\": 1}", "the key 'beta' appears twice"},
        {"{\"beta\": 1e999}", ":1:14: not JSON: a number beyond the range of a double"},
        {"{\"config\": \"x\"}", "cannot name another"},
        {"{\"command\": \"sft\"}", "is for command sft, but the command line says grpo"},
        {"{\"command\": \"nope\"}", "unknown command 'nope'"},
        {"[1]", "not a JSON object"},
        {"{\n\"beta\": }", ":2:9: not JSON"},
        {"", ":1:1: not JSON"},
        {"{\"loss_type\": \"\xFF\"}", "not JSON"},
    };
    for (const auto& c : cases) {
        SCOPED_TRACE(c.text);
        ConfigFile f(c.text);
        expect_error({"grpo", "--config", f.path}, {f.path, c.part});
    }
    expect_error({"--config", "/nonexistent/x.json"}, {"--config: cannot open /nonexistent/x.json"});
    expect_error({"--config", "/"}, {"--config: cannot read /"});
    const std::string pipe = std::filesystem::temp_directory_path() / format("test_options_%ld.pipe", (long)getpid());
    ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);  // an ifstream of it waits for a writer
    expect_error({"--config", pipe}, {"not a file"});
    std::filesystem::remove(pipe);
    expect_error({"--config="}, {"needs a file name"});
    ConfigFile big("{\"model\": \"" + std::string(1 << 20, 'x') + "\"}");
    expect_error({"--config", big.path}, {"more than the 1048576"});
    ConfigFile deep("{\"beta\": " + std::string(1000000, '['));
    expect_error({"--config", deep.path}, {"nested deeper than 64 levels"});
}

TEST(Markdown, HasARowForEveryOption) {
    std::string table = options_markdown();
    int rows = 0, options = 0;
    std::istringstream lines(table);
    for (std::string line; std::getline(lines, line); rows++) {
        int bars = 0;
        for (size_t i = 0; i < line.size(); i++) bars += line[i] == '|' && (i == 0 || line[i - 1] != '\\');
        EXPECT_EQ(bars, 6) << line;
    }
    for (const OptionRow& r : option_rows) options += r.name != nullptr;
    EXPECT_EQ(rows, options + 2);
}

TEST(Markdown, ThePageHasTheTable) {
    std::ifstream in("docs/flags.md");
    if (!in) GTEST_SKIP() << "needs docs/flags.md in the current folder";
    std::stringstream text;
    text << in.rdbuf();
    EXPECT_NE(text.str().find(options_markdown()), std::string::npos)
        << "docs/flags.md differs from the table of options; put the output of ./train_qrl help markdown there";
}
