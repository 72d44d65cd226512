// Replays inputs where there is no libFuzzer: fuzz_NAME FILE_OR_FOLDER... runs the target on each file. An exception
// ends it as it would end the program that has a fuzzer.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int main(int argc, char** argv) {
    namespace fs = std::filesystem;
    std::vector<std::string> files;
    for (int i = 1; i < argc; i++) {
        if (argv[i][0] == '-') continue;  // an option of libFuzzer's
        if (!fs::is_directory(argv[i])) files.push_back(argv[i]);
        else
            for (const fs::directory_entry& e : fs::directory_iterator(argv[i])) files.push_back(e.path().string());
    }
    std::sort(files.begin(), files.end());
    for (const std::string& path : files) {
        std::ifstream in(path, std::ios::binary);
        const std::string bytes{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
        fprintf(stderr, "%s\n", path.c_str());
        LLVMFuzzerTestOneInput((const uint8_t*)bytes.data(), bytes.size());
    }
    fprintf(stderr, "Done %zu runs\n", files.size());
}
