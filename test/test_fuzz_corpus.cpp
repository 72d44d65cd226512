// Every fuzz target on every file of its corpus: what was found once stays found, under any compiler.
#define FUZZ_TARGETS_IN_TEST
#include <gtest/gtest.h>
#include <filesystem>
#include "fuzz/fuzz_chat.cpp"
#include "fuzz/fuzz_checkpoint.cpp"
#include "fuzz/fuzz_config.cpp"
#include "fuzz/fuzz_containers.cpp"
#include "fuzz/fuzz_dataset.cpp"
#include "fuzz/fuzz_gguf.cpp"
#include "fuzz/fuzz_grader.cpp"
#include "fuzz/fuzz_options.cpp"
#include "fuzz/fuzz_resume.cpp"
#include "fuzz/fuzz_safetensors.cpp"
#include "fuzz/fuzz_tokenizer.cpp"

namespace fs = std::filesystem;

static const std::string fuzz_corpus = "test/fuzz/corpus/";

TEST(FuzzCorpus, EveryTargetIsHereAndHasACorpus) {
    size_t sources = 0, folders = 0;
    for (const fs::directory_entry& e : fs::directory_iterator("test/fuzz"))
        sources += e.path().filename().string().compare(0, 5, "fuzz_") == 0;
    for (const fs::directory_entry& e : fs::directory_iterator(fuzz_corpus)) folders += e.is_directory();
    EXPECT_EQ(sources, fuzz_targets().size());
    EXPECT_EQ(folders, fuzz_targets().size());
    for (const auto& [name, target] : fuzz_targets()) EXPECT_FALSE(fs::is_empty(fuzz_corpus + name)) << name;
}

struct FuzzCorpus : testing::TestWithParam<std::string> {};

TEST_P(FuzzCorpus, Replays) {
    for (const fs::directory_entry& e : fs::directory_iterator(fuzz_corpus + GetParam())) {
        SCOPED_TRACE(e.path().string());
        const std::string bytes = read_file(e.path().string());
        try {
            fuzz_targets().at(GetParam())((const uint8_t*)bytes.data(), bytes.size());
        } catch (const std::exception& error) { ADD_FAILURE() << error.what(); }
    }
}

static std::vector<std::string> fuzz_names() {
    std::vector<std::string> names;
    for (const auto& [name, target] : fuzz_targets()) names.push_back(name);
    return names;
}
INSTANTIATE_TEST_SUITE_P(Targets, FuzzCorpus, testing::ValuesIn(fuzz_names()),
                         [](const testing::TestParamInfo<std::string>& target) { return target.param; });
