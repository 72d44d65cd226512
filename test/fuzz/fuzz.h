// What the fuzz targets share. A target is one function of bytes in fuzz_NAME.cpp,
//   int fuzz_NAME(const uint8_t* data, size_t size)
// which gives them to a reader and checks what the file's first lines promise. FUZZ_TARGET(NAME) at the end makes it
// LLVMFuzzerTestOneInput, or, in test_fuzz_corpus.cpp, a row of fuzz_targets().
//   make fuzz                libFuzzer (clang++), or where there is none driver.cpp, which replays the corpus alone
//   AFL++                    its driver takes the same entry point (AFL_USE_ASAN=1 AFL_USE_UBSAN=1 in the environment):
//     make build/fuzz/fuzz_gguf FUZZ_BUILD="afl-clang-fast++ -fsanitize=fuzzer" FUZZ_SANITIZE=
//     afl-fuzz -i test/fuzz/corpus/gguf -o build/fuzz/afl -- build/fuzz/fuzz_gguf
//
// The only exception that may leave a reader is Error, with a message of one line. A reader of several files gets them
// from one input: a line "=== NAME" begins the file NAME, and the newline before it belongs to no file. Files lie in
// a folder of their own in memory (/dev/shm, or where TMPDIR says), which goes away with the process.
#pragma once
#include <time.h>
#include <unistd.h>
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>
#include "../../runtime/error.h"

typedef int (*FuzzTarget)(const uint8_t*, size_t);
#ifdef FUZZ_TARGETS_IN_TEST
inline std::map<std::string, FuzzTarget>& fuzz_targets() {
    static std::map<std::string, FuzzTarget> targets;
    return targets;
}
#define FUZZ_TARGET(NAME) static const bool fuzz_has_##NAME = fuzz_targets().emplace(#NAME, fuzz_##NAME).second;
#else
#define FUZZ_TARGET(NAME) \
    extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) { return fuzz_##NAME(data, size); }
#endif

// A promise that an input broke. No Error, so that nothing catches it
struct FuzzFinding : std::logic_error {
    using std::logic_error::logic_error;
};

inline void fuzz_require(bool kept, const std::string& promise) {
    if (!kept) throw FuzzFinding(promise);
}

// false: f threw an Error, whose message is one short line
template <class F>
inline bool fuzz_accepts(F f) {
    try {
        f();
        return true;
    } catch (const Error& e) {
        const std::string what = e.what();
        static const bool shows = getenv("FUZZ_SHOW");  // why a seed is refused
        if (shows) fprintf(stderr, "refused: %s\n", what.c_str());
        fuzz_require(!what.empty() && what.size() < 2000, "a message is neither empty nor long: " + what);
        for (unsigned char c : what) fuzz_require(c >= 0x20 && c != 0x7F, "a message is one line: " + what);
        fuzz_require(e.exit_code == 1 || e.exit_code == 2, "a program exits with 1 or 2");
        return false;
    }
}

// How many times slower than an optimized program without sanitizers this one may be: 8 times without optimization (no
// inlining), 6 times under AddressSanitizer (with UBSan), and what TEST_SLOWNESS says
inline double fuzz_slowness() {
#if defined(__has_feature)
#define FUZZ_HAS_FEATURE(NAME) __has_feature(NAME)
#else
#define FUZZ_HAS_FEATURE(NAME) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || FUZZ_HAS_FEATURE(address_sanitizer)
    double slowness = 6;
#else
    double slowness = 1;
#endif
#if !defined(__OPTIMIZE__)
    slowness *= 8;
#endif
    const char* more = getenv("TEST_SLOWNESS");
    return more ? std::max(atof(more), 1.0) * slowness : slowness;
}

// The processor time that f takes, in milliseconds of this thread: other processes do not count
template <class F>
inline double fuzz_milliseconds(F f) {
    auto now = [] {
        struct timespec t;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
        return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
    };
    const double start = now();
    f();
    return now() - start;
}

typedef std::map<std::string, std::string> FuzzFiles;

// The files of an input by name; what stands before the first "=== NAME" is the file `first`
inline FuzzFiles fuzz_files(const uint8_t* data, size_t size, const std::string& first) {
    const std::string text((const char*)data, size), mark = "=== ";
    FuzzFiles files;
    std::string name = first;
    for (size_t begin = 0, at = 0; at <= size;) {
        const size_t head = at == 0 && text.compare(0, 4, mark) == 0 ? 0 : text.find("\n" + mark, at);
        const size_t end = head == std::string::npos ? size : head;
        if (end > 0 || head != 0) files[name] = text.substr(begin, end - begin);
        if (head == std::string::npos) break;
        const size_t from = end + (text[end] == '\n') + mark.size();
        const size_t line = std::min(text.find('\n', from), size);
        name = text.substr(from, line - from);
        begin = std::min(line + 1, size);
        at = std::min(line, size);
    }
    return files;
}

// A folder of this process in memory
struct FuzzFolder {
    std::string path;
    FuzzFolder() {
        static int number = 0;
        const bool memory = !getenv("TMPDIR") && std::filesystem::is_directory("/dev/shm");
        const std::string parent = memory ? "/dev/shm" : std::filesystem::temp_directory_path().string();
        path = parent + format("/fuzz_%ld_%d", (long)getpid(), number++);
        std::filesystem::create_directories(path);
    }
    ~FuzzFolder() {
        std::error_code ec;
        std::filesystem::remove_all(path, ec);
    }
    FuzzFolder(const FuzzFolder&) = delete;
    FuzzFolder& operator=(const FuzzFolder&) = delete;
    std::string operator/(const std::string& name) const { return path + "/" + name; }
    void put(const std::string& name, const std::string& bytes) const {
        std::ofstream(path + "/" + name, std::ios::binary) << bytes;
    }
    // each of `names` as the input has it, or not there
    void put(const FuzzFiles& files, const std::vector<std::string>& names) const {
        for (const std::string& name : names) {
            const auto file = files.find(name);
            if (file != files.end()) put(name, file->second);
            else unlink((path + "/" + name).c_str());
        }
    }
};
