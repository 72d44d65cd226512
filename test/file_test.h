// What tests of files need: a folder that goes away, messages of errors, little-endian numbers.
#pragma once
#include <gtest/gtest.h>
#include <unistd.h>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include "../runtime/error.h"

namespace fs = std::filesystem;

// an empty folder for one test
struct TempDir {
    std::string path;
    TempDir() {
        static int n = 0;
        path = (fs::temp_directory_path() / format("test_files_%ld_%d", (long)getpid(), n++)).string();
        fs::remove_all(path);
        fs::create_directory(path);
    }
    ~TempDir() { fs::remove_all(path); }
    std::string operator/(const std::string& name) const { return path + "/" + name; }
    size_t count() const { return (size_t)std::distance(fs::directory_iterator(path), fs::directory_iterator()); }
};

inline void put(const std::string& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

// The message of the Error that f throws; "" if it throws none. Every message is one short line and exits with 1.
template <class F>
inline std::string error_of(F f) {
    try {
        f();
    } catch (const Error& e) {
        std::string what = e.what();
        EXPECT_EQ(e.exit_code, 1) << what;
        EXPECT_EQ(what.find('\n'), std::string::npos) << what;
        EXPECT_LT(what.size(), 600u) << what;
        return what;
    }
    return "";
}

inline void expect_has(const std::string& text, const std::string& part) {
    EXPECT_NE(text.find(part), std::string::npos) << "expected '" << part << "' in: " << text;
}

inline std::string little(uint64_t v, int bytes) {
    std::string s;
    for (int i = 0; i < bytes; i++) s += (char)(v >> (8 * i));
    return s;
}
