// GRPO's page against the program: every key that a run logs is in the table of docs/grpo.md, and every option of the page is
// one of the program's.
#include <regex>
#include <set>
#include <sstream>
#include "../runtime/options.h"
#include "cli.h"

static std::string page() { return read_text("docs/grpo.md"); }

// the rows of the table behind this heading: the first cell of each
static std::vector<std::string> first_cells(const std::string& heading) {
    std::vector<std::string> cells;
    std::istringstream lines(page());
    std::string line;
    bool inside = false;
    while (std::getline(lines, line)) {
        if (line.rfind("## ", 0) == 0) inside = line == "## " + heading;
        if (inside && line.rfind("| `", 0) == 0) cells.push_back(line.substr(2, line.find(" |", 2) - 2));
    }
    return cells;
}

static std::vector<std::string> quoted(const std::string& cell) {
    std::vector<std::string> names;
    for (size_t at = 0; (at = cell.find('`', at)) != std::string::npos;) {
        const size_t end = cell.find('`', at + 1);
        names.push_back(cell.substr(at + 1, end - at - 1));
        at = end + 1;
    }
    return names;
}

// a name without a slash belongs to the folder of the cell's first
static std::set<std::string> keys_of_page() {
    std::set<std::string> keys;
    for (const std::string& cell : first_cells("Keys of metrics.jsonl")) {
        const std::vector<std::string> names = quoted(cell);
        const std::string folder = names[0].substr(0, names[0].rfind('/') + 1);
        for (const std::string& name : names) keys.insert(name.find('/') == std::string::npos ? folder + name : name);
    }
    return keys;
}

TEST(GrpoPage, EveryKeyOfMetricsIsInItsTable) {
    const std::set<std::string> keys = keys_of_page();
    std::set<std::string> logged;
    const std::vector<Args> runs = {
        {"--weights",
         "int4:g16",
         "--dynamic_sampling",
         "--dynamic_sampling_max_batches",
         "2",
         "--beta",
         "0.1",
         "--entropy_coef",
         "0.01",
         "--off_policy_mask_threshold",
         "0.5",
         "--num_iterations",
         "2",
         "--eval_data",
         problems,
         "--eval_n",
         "2",
         "--eval_steps",
         "1",
         "--methods",
         "dampen"},
        {"--weights", "none", "--rollout_weights", "int4:g16", "--loss_type", "vespo", "--rollout_staleness", "1",
         "--noise_sigma_start", "0.01", "--noise_num_stages", "2"},
        {"--loss_type", "cispo", "--reward_funcs", "exact,format"}};
    for (const Args& more : runs) {
        const std::string out = fresh("keys");
        good(grpo(out, Args{"--max_steps", "2", "--prompts_per_step", "4"} + more));
        for (const json& row : read_lines(out + "/metrics.jsonl"))
            for (const auto& item : row.items()) logged.insert(item.key());
    }
    EXPECT_GT(logged.size(), 75u);
    for (std::string key : logged) {
        key = std::regex_replace(key, std::regex("^(eval_)?rewards/[a-z]+/"), "$1rewards/NAME/");
        EXPECT_TRUE(keys.count(key)) << key << " is logged and not in docs/grpo.md";
    }
}

TEST(GrpoPage, ItsOptionsAreTheProgramS) {
    int seen = 0;
    for (const std::string& cell : first_cells("Names elsewhere"))
        for (const std::string& name : quoted(cell)) {
            if (name[0] == '_') continue;  // an ending of the name before it
            EXPECT_GE(option_index(name), 0) << name;
            seen++;
        }
    EXPECT_GT(seen, 40);
}
