// The pairs of docs/methods.md, through the program: every pair that composes trains two steps and is resumed after the
// first, with the bits of the run that was not; every other is refused by name.
#include <set>
#include "../formats/safetensors.h"
#include "cli.h"

// A system of the page: the command that trains with it, what comes before, and its flags
struct System {
    std::string name, before, command;
    std::map<std::string, std::string> flags;
};

static std::vector<std::string> split(const std::string& text, const std::string& at) {
    std::vector<std::string> parts(1);
    for (size_t i = 0; i < text.size();)
        if (text.compare(i, at.size(), at) == 0) parts.emplace_back(), i += at.size();
        else parts.back() += text[i++];
    for (std::string& p : parts) {
        const size_t a = p.find_first_not_of(" `"), b = p.find_last_not_of(" `");
        p = a == p.npos ? "" : p.substr(a, b - a + 1);
    }
    return parts;
}

// the rows of the table behind the first line that begins with `title`, without its two head lines
static std::vector<std::vector<std::string>> table_of(const std::string& title) {
    std::vector<std::vector<std::string>> rows;
    std::ifstream page("docs/methods.md");
    std::string line;
    for (bool there = false; std::getline(page, line);) {
        if (line.rfind(title, 0) == 0) there = true;
        else if (there && line.rfind("|", 0) == 0) rows.push_back(split(line.substr(1, line.rfind('|') - 1), "|"));
        else if (there && !rows.empty()) break;
    }
    if (rows.size() < 3) ADD_FAILURE() << "docs/methods.md has no table behind " << title;
    else rows.erase(rows.begin() + 1);
    return rows;
}

static std::map<std::string, std::string> flags_of(const std::string& text) {
    std::map<std::string, std::string> flags;
    std::stringstream words(text);
    for (std::string word, flag; words >> word;)
        if (word.rfind("--", 0) == 0) flags[flag = word];
        else flags[flag] += (flags[flag].empty() ? "" : " ") + word;
    return flags;
}

static std::vector<System> systems() {
    std::vector<System> list;
    auto rows = table_of("## Flags");
    for (size_t i = 1; i < rows.size(); i++) {
        System s;
        s.name = rows[i][0];
        std::string text = rows[i][1];
        const size_t then = text.find(", then ");
        if (then != text.npos) s.before = text.substr(0, then), text = text.substr(then + 7);
        const size_t space = text.find(' ');
        s.command = text.substr(0, space);
        if (space != text.npos) s.flags = flags_of(text.substr(space));
        list.push_back(s);
    }
    return list;
}

// The flags of both; false: they want another value of one. --methods are joined
static bool join_flags(const System& a, const System& b, std::map<std::string, std::string>* flags) {
    *flags = a.flags;
    for (const auto& [flag, value] : b.flags) {
        std::string& now = (*flags)[flag];
        if (now.empty() || now == value) now = value;
        else if (flag == "--methods") now += "+" + value;
        else return false;
    }
    flags->insert({"--weights", a.before.empty() && b.before.empty() ? "int4:g16:asym" : ""});
    if ((*flags)["--weights"].empty()) flags->erase("--weights");
    return true;
}

struct PairRun {
    std::string command, model;
    Args flags;
};

static PairRun pair_run(const System& a, const System& b, const std::map<std::string, std::string>& flags) {
    PairRun p;
    p.command = a.command == "sft" ? b.command : a.command;
    p.model = trained;
    for (const auto& [flag, value] : flags) p.flags = p.flags + Args{flag, value};
    if (p.command == "distill") p.flags = p.flags + Args{"--teacher", trained};
    return p;
}

static std::string start_of(const System& s) {
    static std::map<std::string, std::string> made;
    if (s.before.empty()) return trained;
    std::string& folder = made[s.before];
    if (!folder.empty()) return folder;
    const std::string out = fresh("start");
    Args args;
    for (const std::string& word : split(s.before, " ")) args.push_back(word);
    good(args + Args{"--model", trained, "--train_data", sums, "--calibration_samples", "8", "--calibration_length",
                     "32", "--output_dir", out});
    return folder = out + "/checkpoint-0";
}

static Args training(const PairRun& p, const std::string& out) {
    return Args{p.command, "--model",
                p.model,   "--train_data",
                sums,      "--max_steps",
                "2",       "--save_steps",
                "1",       "--per_device_train_batch_size",
                "6",       "--learning_rate",
                "0.01",    "--output_dir",
                out} +
           p.flags;
}

// the model's files of a checkpoint, and all that the run resumes from but times
static std::map<std::string, std::string> bits_of(const std::string& checkpoint) {
    std::map<std::string, std::string> bits;
    for (const auto& entry : fs::directory_iterator(checkpoint))
        if (entry.path().extension() == ".safetensors") bits[entry.path().filename()] = read_text(entry.path());
    return bits;
}

static void expect_composes(const std::string& what, const PairRun& p) {
    const std::string whole = fresh("whole"), rest = fresh("rest");
    const Outcome r = run(training(p, whole));
    ASSERT_EQ(r.status, 0) << what << shown_run(training(p, whole), r);
    for (const json& row : read_lines(whole + "/metrics.jsonl"))
        EXPECT_TRUE(std::isfinite(number(row, "loss"))) << what;
    fs::copy(whole, rest, fs::copy_options::recursive);
    fs::remove_all(rest + "/checkpoint-2");
    fs::remove(rest + "/summary.json");
    const Args again = {p.command, "--output_dir", rest, "--resume_from_checkpoint", "last"};
    const Outcome resumed = run(again);
    ASSERT_EQ(resumed.status, 0) << what << shown_run(again, resumed);
    const auto a = bits_of(whole + "/checkpoint-2"), b = bits_of(rest + "/checkpoint-2");
    EXPECT_FALSE(a.empty()) << what;
    for (const auto& [name, text] : a)
        EXPECT_TRUE(b.count(name) && b.at(name) == text) << what << ": " << name << " is not that of the run in one go";
    EXPECT_EQ(learning_curve(whole), learning_curve(rest)) << what;
    fs::remove_all(whole), fs::remove_all(rest);
}

// one line that names both, by name or by one of their flags
static void expect_refused(const std::string& what, const PairRun& p, const System& a, const System& b) {
    const Args args = training(p, fresh("refused"));
    const Outcome r = run(args);
    EXPECT_EQ(r.status, 2) << what << shown_run(args, r);
    EXPECT_EQ(std::count(r.err.begin(), r.err.end(), '\n'), 1) << what << shown_run(args, r);
    for (const System* s : {&a, &b}) {
        bool named = r.err.find(s->name) != r.err.npos;
        for (const auto& [flag, value] : s->flags) named |= flag != "--methods" && r.err.find(flag) != r.err.npos;
        EXPECT_TRUE(named) << what << ": " << s->name << " is not named\n" << shown_run(args, r);
    }
}

TEST(MethodPairs, AreAsThePageSays) {
    const std::vector<System> all = systems();
    const auto matrix = table_of("## Pairs");
    ASSERT_EQ(matrix.size(), all.size() + 1);  // a head
    std::set<std::string> reasons, used;
    std::string page = read_text("docs/methods.md");
    for (size_t at = page.find("\n- **"); at != page.npos; at = page.find("\n- **", at + 1))
        reasons.insert(page.substr(at + 5, 1));
    int composing = 0, refusing = 0;
    for (size_t i = 0; i < all.size(); i++)
        for (size_t k = 0; k < i; k++) {
            const System &a = all[i], &b = all[k];
            const std::string what = a.name + " and " + b.name, cell = matrix[i + 1][k + 1];
            ASSERT_EQ(matrix[i + 1][0], a.name);
            ASSERT_EQ(matrix[0][k + 1], b.name);
            std::map<std::string, std::string> flags;
            const bool joined = join_flags(a, b, &flags);
            EXPECT_EQ(joined, cell != "=") << what << ": two values of one flag or not";
            if (!joined) continue;
            PairRun p = pair_run(a, b, flags);
            if (!a.before.empty() || !b.before.empty()) p.model = start_of(a.before.empty() ? b : a);
            if (cell == "+") expect_composes(what, p), composing++;
            else expect_refused(what, p, a, b), used.insert(cell), refusing++;
        }
    EXPECT_GT(composing, 20);
    EXPECT_GT(refusing, 5);
    for (const std::string& r : used) EXPECT_TRUE(reasons.count(r)) << "no reason is given for " << r;
    for (const std::string& r : reasons) EXPECT_TRUE(used.count(r)) << "no pair has the reason " << r;
}

// A method without anything to act on says what to add
TEST(MethodPairs, WithNothingToActOnAreRefused) {
    const Args sft = {"sft", "--model", trained, "--train_data", sums, "--output_dir", fresh("out")};
    for (const char* method : {"cage", "dampen", "freeze", "efqat", "e2e_qp", "uaq"}) {
        refused(2, sft + Args{"--methods", method}, {std::string("--methods ") + method, "add --weights"});
        refused(2, sft + Args{"--methods", method, "--lora_r", "4", "--weights", "nf4:g16"},
                {std::string("--methods ") + method, "adapter"});
    }
    refused(2, sft + Args{"--methods", "freeze", "--weights", "int4:g16"}, {"freeze", "--qat_scale static"});
    refused(2, sft + Args{"--methods", "freeze", "--weights", "nf4:g16", "--qat_scale", "static"},
            {"freeze", "int format"});
    refused(2, sft + Args{"--methods", "roste"}, {"--methods roste", "--weights"});
}

// rounding_noise: the weights that are saved differ from those of the start by whole cells of one grid
TEST(RoundingNoise, WeightsChangeByWholeCells) {
    const std::string out = fresh("out");
    const Args sft = {"sft", "--model",     trained, "--train_data",    sums,  "--output_dir",
                      out,   "--max_steps", "3",     "--learning_rate", "0.02"};
    good(sft + Args{"--methods", "rounding_noise:bits=4:scope=tensor"});
    const SafetensorsSet before = st_open_folder(trained), after = st_open_folder(out + "/checkpoint-3");
    int linears = 0;
    for (const auto& [name, tensor] : before.tensors) {
        if (name.find("_proj.weight") == std::string::npos) continue;
        linears++;
        const int64_t n = tensor.count;
        std::vector<float> a(n), b(n);
        st_read_float(tensor, a.data()), st_read_float(st_require(after.tensors, name, tensor.shape, out), b.data());
        float most = 0.0f, cell = INFINITY;  // the smallest change, about 2 most / 15 as the scale's 16 bits have it
        for (const float w : a) most = std::max(most, std::fabs(w));
        for (int64_t i = 0; i < n; i++)
            if (std::fabs(b[i] - a[i]) > 0.01f * most) cell = std::min(cell, std::fabs(b[i] - a[i]));
        EXPECT_NEAR(cell, 2.0f * most / 15.0f, 0.02f * most) << name;
        if (bf16_build) cell = 2.0f * most / 15.0f;  // Q(W) is rounded to bf16: a change is off by up to 0.06 of a cell
        int64_t moved = 0;
        for (int64_t i = 0; i < n; i++) {
            const double cells = ((double)b[i] - a[i]) / (double)cell;
            ASSERT_NEAR(cells, std::rint(cells), bf16_build ? 0.15 : 1e-3) << name << " " << i;
            moved += std::fabs(cells) > 0.5;
        }
        EXPECT_GT(moved, 0) << name;
        EXPECT_LT(moved, n) << name;
    }
    EXPECT_GT(linears, 6);
    refused(2, sft + Args{"--methods", "rounding_noise", "--weights", "int4:g16", "--overwrite_output_dir"},
            {"rounding_noise", "leave --weights out"});
    refused(
        2, sft + Args{"--methods", "rounding_noise", "--lora_r", "4", "--weights", "nf4:g16", "--overwrite_output_dir"},
        {"rounding_noise", "adapter"});
}
