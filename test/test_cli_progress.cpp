// The progress line as a terminal and a pipe get it.
#include <sys/ioctl.h>
#include <termios.h>
#include "cli.h"

struct TerminalSetting {
    int columns = 80;
    std::map<std::string, std::string> variables = {{"TERM", "xterm"}};
    const char* input = nullptr;   // a file that is standard input
    const char* output = nullptr;  // a file that is standard output; "": it is closed
    bool interrupt = false;        // Ctrl-C when the line is there for the first time
    double seconds = 60;           // then it is killed
};

static void become_program(const Args& args, const std::string& terminal, const TerminalSetting& setting) {
    setsid();
    const int fd = open(terminal.c_str(), O_RDWR);
    ioctl(fd, TIOCSCTTY, 0);
    struct winsize size = {50, (unsigned short)setting.columns, 0, 0};
    ioctl(fd, TIOCSWINSZ, &size);
    for (int to : {0, 1, 2}) dup2(fd, to);
    if (fd > 2) close(fd);
    if (setting.input) dup2(open(setting.input, O_RDONLY), 0);
    if (setting.output && *setting.output) dup2(open(setting.output, O_WRONLY | O_CREAT | O_TRUNC, 0644), 1);
    else if (setting.output) close(1);
    signal(SIGINT, SIG_DFL);
    setenv("OMP_WAIT_POLICY", "passive", 0);
    setenv("OMP_NUM_THREADS", "2", 0);
    unsetenv("TERM"), unsetenv("NO_COLOR"), unsetenv("COLUMNS");
    for (const auto& [name, value] : setting.variables) setenv(name.c_str(), value.c_str(), 1);
    exec_program(args);
}

// Runs the program on a terminal; out: the bytes that the terminal got
static Outcome run_on_terminal(const Args& args, const TerminalSetting& setting = {}) {
    Outcome r;
    const int master = posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0 || grantpt(master) || unlockpt(master)) return r;
    const std::string terminal = ptsname(master);
    const pid_t pid = fork();
    if (pid == 0) become_program(args, terminal, setting);
    const auto start = std::chrono::steady_clock::now();
    bool interrupted = !setting.interrupt;
    int status = 0;
    for (bool ended = false; !ended;) {
        ended = waitpid(pid, &status, WNOHANG) == pid;  // before the last look at what it left
        struct pollfd p = {master, POLLIN, 0};
        char buffer[65536];
        while (poll(&p, 1, 5) > 0 && p.revents & POLLIN) {
            const ssize_t n = read(master, buffer, sizeof(buffer));
            if (n <= 0) break;
            r.out.append(buffer, (size_t)n);
        }
        if (!interrupted && r.out.find("| rewards") != r.out.npos) interrupted = write(master, "\x03", 1) == 1;
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        if (seconds > setting.seconds * slowness() && !r.timed_out) kill(pid, SIGKILL), r.timed_out = true;
    }
    close(master);
    r.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return r;
}

// What a terminal without an edge shows of these bytes, line by line; painted: the lines that were drawn to be replaced.
// Of escapes it knows one
static std::vector<std::string> shown_lines(const std::string& bytes, std::vector<std::string>& painted) {
    std::vector<std::string> lines = {""};
    size_t column = 0;
    for (size_t i = 0; i < bytes.size(); i++) {
        std::string& line = lines.back();
        if (bytes[i] == '\r') {
            column = 0;
        } else if (bytes[i] == '\n') {
            lines.emplace_back(), column = 0;
        } else if (bytes.compare(i, 3, "\033[K") == 0) {
            line.resize(column);
            if (!line.empty()) painted.push_back(line);
            i += 2;
        } else {
            EXPECT_NE(bytes[i], '\033') << "an escape other than the clearing of a line: " << bytes.substr(i + 1, 8);
            line.resize(std::max(line.size(), column + 1), ' ');
            line[column++] = bytes[i];
        }
    }
    return lines;
}

// steps that take a fifth of a second on any machine, for their reward sleeps; it is the same for all, which is warned of
// at the third step
static Args watched(const std::string& out, const std::string& steps = "6") {
    static std::string reward;
    if (reward.empty()) {
        reward = fresh("slow");
        write_text(reward, "#!/bin/sh\nwhile read -r line; do sleep 0.03; echo 1; done\n");
        fs::permissions(reward, fs::perms::owner_all);
    }
    return grpo(out,
                {"--max_steps", steps, "--prompts_per_step", "2", "--num_generations", "4", "--reward_funcs", reward});
}

// of the console: without its times
static std::vector<std::string> steps_of(const std::vector<std::string>& lines) {
    std::vector<std::string> steps;
    for (const std::string& line : lines)
        if (line.find("step ") != line.npos && line.find(" | reward ") != line.npos)
            steps.push_back(line.substr(0, line.find(" | len ")));
    return steps;
}

TEST(Progress, StepsScrollAboveTheLineAtEveryWidth) {
    std::stringstream piped(good(watched(fresh("piped"))).out);
    std::vector<std::string> expected;
    for (std::string line; std::getline(piped, line);) expected.push_back(line);
    expected = steps_of(expected);
    ASSERT_EQ(expected.size(), 6u);
    for (const auto& [columns, no_color] : {std::pair(200, false), {80, true}, {40, false}, {20, false}}) {
        TerminalSetting setting;
        setting.columns = columns;
        if (no_color) setting.variables["NO_COLOR"] = "1";
        const Outcome r = run_on_terminal(watched(fresh("terminal")), setting);
        ASSERT_EQ(r.status, 0) << r.out;
        std::vector<std::string> painted;
        const std::vector<std::string> lines = shown_lines(r.out, painted);
        EXPECT_EQ(steps_of(lines), expected) << columns;
        bool of_steps = false;
        for (const std::string& line : painted) {
            EXPECT_LT((int)line.size(), columns) << line;
            of_steps |= line.rfind("grpo ", 0) == 0 && line.find("step ") != line.npos;
        }
        EXPECT_TRUE(of_steps) << columns << "\n" << r.out;
        EXPECT_EQ(std::count_if(lines.begin(), lines.end(),
                                [](const std::string& line) {
                                    return line.rfind("warning: every completion got the same reward", 0) == 0;
                                }),
                  1);
        for (const std::string& line : lines) {
            EXPECT_NE(line.rfind("grpo ", 0), 0u) << "left behind: " << line;
            EXPECT_EQ(line.find("[#"), line.npos) << "left behind: " << line;
        }
        EXPECT_EQ(lines.back(), "");
    }
}

TEST(Progress, CtrlCClearsTheLineFirst) {
    TerminalSetting setting;
    setting.interrupt = true;
    const Outcome r = run_on_terminal(watched(fresh("stopped"), "1000"), setting);
    EXPECT_EQ(r.status, 130) << r.out;
    std::vector<std::string> painted;
    const std::vector<std::string> lines = shown_lines(r.out, painted);
    EXPECT_NE(std::find(lines.begin(), lines.end(), "stopping; once more to leave at once"), lines.end()) << r.out;
    for (const std::string& line : lines) EXPECT_EQ(line.find("^C"), line.npos) << line;
}

// neither a carriage return nor an escape
TEST(Progress, PipesAndDumbTerminalsGetLines) {
    const Outcome piped = good(watched(fresh("piped")));
    for (char c : piped.out + piped.err) EXPECT_TRUE(c == '\n' || (c >= ' ' && c < 127)) << (int)c;
    EXPECT_EQ((piped.out + piped.err).find("| rewards"), std::string::npos);
    for (const std::map<std::string, std::string>& variables :
         {std::map<std::string, std::string>{{"TERM", "dumb"}}, std::map<std::string, std::string>{}}) {
        TerminalSetting setting;
        setting.variables = variables;
        const Outcome r = run_on_terminal(watched(fresh("dumb"), "3"), setting);
        EXPECT_EQ(r.status, 0) << r.out;
        EXPECT_EQ(r.out.find('\033'), std::string::npos);
        EXPECT_EQ(r.out.find("\r\r"), std::string::npos);
    }
}

TEST(Progress, StepsEndInWhatIsLeft) {
    RunSetting setting;
    setting.when = [](const Outcome& r) { return r.out.find("step     3/5000") != std::string::npos; };
    const Outcome r = run(watched(fresh("left"), "5000"), setting);
    EXPECT_EQ(r.status, 130) << r.err;
    EXPECT_NE(r.out.find(" left\n"), std::string::npos) << r.out;
}

TEST(Progress, AClosedStandardOutputIsNoReasonToStop) {
    TerminalSetting setting;
    setting.output = "";
    const Outcome r = run_on_terminal(watched(fresh("closed")), setting);
    EXPECT_EQ(r.status, 0) << r.out;
    std::vector<std::string> painted;
    for (const std::string& line : shown_lines(r.out, painted)) {
        const bool of_a_step = line.rfind("warning: ", 0) != 0 && line.find("step ") != line.npos;
        EXPECT_FALSE(of_a_step) << line;
    }
    EXPECT_FALSE(painted.empty());
}

// results go to a file whole, and the line to the terminal
TEST(Progress, DataIsReadAndTokenizedInSight) {
    std::string rows;  // so many that no machine is done before the line appears
    for (int i = 0; i < 200000; i++)
        rows += R"({"prompt": "What is )" + std::to_string(i) +
                R"( and nothing more?", "completion": "it"})"
                "\n";
    const std::string input = jsonl("many", rows);
    const Outcome r =
        run_on_terminal({"sft", "--train_data", input, "--max_steps", "0", "--output_dir", fresh("read")});
    EXPECT_EQ(r.status, 0) << r.out;
    std::vector<std::string> painted;
    shown_lines(r.out, painted);
    const std::string file = "reading " + std::filesystem::path(input).filename().string() + " [";
    for (const std::string& begin : {file, std::string("tokenizing [")})
        EXPECT_TRUE(std::any_of(painted.begin(), painted.end(), [&](const std::string& line) {
            return line.rfind(begin, 0) == 0;
        })) << begin;
}

TEST(Progress, ResultsAreLeftAlone) {
    std::string rows;  // so many that no machine is done before the line appears
    for (int i = 0; i < 100000; i++)
        rows += R"({"gold": "\\frac{)" + std::to_string(i) + R"(}{7}", "prediction": "x^2+\\sqrt{)" +
                std::to_string(i) + "}\"}\n";
    const std::string input = jsonl("rows", rows), output = fresh("graded");
    TerminalSetting setting;
    setting.input = input.c_str(), setting.output = output.c_str();
    const Outcome r = run_on_terminal({"grade"}, setting);
    EXPECT_EQ(r.status, 0) << r.out;
    EXPECT_EQ(read_lines(output).size(), 100000u);
    std::vector<std::string> painted;
    const std::vector<std::string> lines = shown_lines(r.out, painted);
    ASSERT_EQ(lines.size(), 2u) << r.out;
    EXPECT_EQ(lines[0].rfind("graded 100000: ", 0), 0u) << lines[0];
    for (const std::string& line : painted) EXPECT_EQ(line.rfind("grade [", 0), 0u) << line;
    EXPECT_FALSE(painted.empty());
}
