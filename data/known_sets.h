// Sets that data/download fetches, by name: --eval_data gsm8k is data/sets/gsm8k/test.jsonl below the current folder.
// The trap: the names and files are those of data/download, which test_data_sets compares.
#pragma once
#include <filesystem>
#include <string>
#include <vector>
#include "../runtime/error.h"
#include "../runtime/file_io.h"
#include "../runtime/folders.h"
#include "../runtime/nearest.h"
#include "../runtime/printable.h"
#include "../runtime/words.h"

struct KnownSet {
    const char* name;
    const char* file;           // to evaluate on
    const char* train;          // to train on; null: none is published
    const char* hub = nullptr;  // what the hub calls it, where it is known and trained on
};

inline constexpr const char* KNOWN_SETS_FOLDER = "data/sets";

inline constexpr KnownSet known_sets[] = {
    {"gsm8k", "test.jsonl", "train.jsonl", "openai/gsm8k"},
    {"gsm-hard", "gsmhardv2.jsonl", nullptr},
    {"svamp", "SVAMP.json", nullptr},
    {"math-500", "test.jsonl", nullptr},
    {"aime24", "test.jsonl", nullptr},
    {"aime25", "test.jsonl", nullptr},
    {"amc23", "test.jsonl", nullptr},
    {"minerva", "test.jsonl", nullptr},
    {"olympiadbench", "test.jsonl", nullptr},
    {"gpqa", "gpqa_diamond.jsonl", nullptr},
};

inline const KnownSet* find_known_set(const std::string& name) {
    for (const KnownSet& set : known_sets)
        if (name == set.name) return &set;
    return nullptr;
}

// The file behind a name of known_sets, a folder of one or a path. flag: of the option, for messages; train: to train
// on. A file of the user's own wins over a name.
inline std::string find_data_set(const std::string& name, const char* flag = "eval_data", bool train = false) {
    if (name.empty() || file_exists(name)) return name;
    const bool folder = is_folder(name) && !find_known_set(name);
    const std::string short_name = folder ? std::filesystem::path(name + "/.").parent_path().filename().string() : name;
    const KnownSet* set = find_known_set(short_name);
    if (!set) {
        if (folder || name.find_first_of("/.") != std::string::npos)
            return name;  // a path, of which reading says what is wrong
        std::vector<std::string> names;
        for (const KnownSet& known : known_sets) names.push_back(known.name);
        fail_usage("--%s %s: there is no such file, and data/download knows no such set, but %s%s", flag,
                   printable(name).c_str(), join_words(names).c_str(), did_you_mean(name, names).c_str());
    }
    if (train && !set->train)
        fail_usage("--%s %s: the set has no training problems; it is for evaluation", flag, printable(name).c_str());
    const std::string path =
        (folder ? name : std::string(KNOWN_SETS_FOLDER) + "/" + set->name) + "/" + (train ? set->train : set->file);
    if (!file_exists(path))
        fail_usage("--%s %s: %s is not there; data/download %s fetches it", flag, printable(name).c_str(),
                   printable(path).c_str(), set->name);
    return path;
}

// A short name for tables: that of the folder where the file is a known set's, or is called after its part of a set;
// else the file's own. gsm8k/test.jsonl is gsm8k, svamp/SVAMP.json svamp, foo.jsonl foo
inline std::string data_set_name(const std::string& path) {
    const std::filesystem::path file(path);
    const std::string stem = file.stem(), folder = file.parent_path().filename();
    if (find_known_set(folder)) return folder;
    for (const char* part : {"test", "train", "validation", "valid", "val", "dev", "data", "main"})
        if (stem == part && !folder.empty() && folder != "." && folder != "..") return folder;
    return stem;
}
