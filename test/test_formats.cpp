// Files: atomic writing, safetensors, GGUF and config.json. Round trips, golden vectors, and files made to do harm.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <cmath>
#include <filesystem>
#include <fstream>
#include "../formats/gguf.h"
#include "../formats/hf_config.h"
#include "../formats/safetensors.h"
#include "../runtime/file_io.h"
#include "../runtime/rng.h"

namespace fs = std::filesystem;

// an empty folder for one test
struct TempDir {
    std::string path;
    TempDir() {
        static int n = 0;
        path = (fs::temp_directory_path() / format("test_formats_%ld_%d", (long)getpid(), n++)).string();
        fs::remove_all(path);
        fs::create_directory(path);
    }
    ~TempDir() { fs::remove_all(path); }
    std::string operator/(const std::string& name) const { return path + "/" + name; }
    size_t count() const { return (size_t)std::distance(fs::directory_iterator(path), fs::directory_iterator()); }
};

static void put(const std::string& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

// The message of the Error that f throws; "" if it throws none. Every message is one short line and exits with 1.
template <class F>
static std::string error_of(F f) {
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

static void expect_has(const std::string& text, const std::string& part) {
    EXPECT_NE(text.find(part), std::string::npos) << "expected '" << part << "' in: " << text;
}

// No file of this process may grow beyond `bytes` while this lives: a full disk for a test without root. It raises
// EFBIG where a full disk raises ENOSPC.
struct DiskLimit {
    rlimit old;
    sighandler_t handler;
    explicit DiskLimit(rlim_t bytes) {
        handler = signal(SIGXFSZ, SIG_IGN);
        getrlimit(RLIMIT_FSIZE, &old);
        rlimit now = old;
        now.rlim_cur = bytes;
        setrlimit(RLIMIT_FSIZE, &now);
    }
    ~DiskLimit() {
        setrlimit(RLIMIT_FSIZE, &old);
        signal(SIGXFSZ, handler);
    }
};

// ----------------------------------------------------------------------------------------------------------------
// runtime/file_io.h

TEST(FileIo, ReadsAndMaps) {
    TempDir dir;
    std::string text("one\0two\n", 8);
    put(dir / "a", text);
    put(dir / "empty", "");
    EXPECT_EQ(read_file(dir / "a"), text);
    EXPECT_EQ(read_file(dir / "empty"), "");
    MappedFile m(dir / "a"), e(dir / "empty");
    EXPECT_EQ(std::string((const char*)m.data, m.size), text);
    EXPECT_EQ(e.size, 0u);
    const uint8_t* at = m.data;
    MappedFile moved = std::move(m);
    EXPECT_EQ(moved.data, at);
    EXPECT_EQ(m.data, nullptr);

    expect_has(error_of([&] { read_file(dir / "none"); }), "No such file");
    expect_has(error_of([&] { read_file(dir.path); }), "a folder");
    expect_has(error_of([&] { MappedFile x(dir.path); }), "a folder");
    expect_has(error_of([&] { read_file("/dev/zero"); }), "not a file");
    expect_has(error_of([&] { read_file(dir / "a", 7); }), "8 bytes, more than the 7");
}

TEST(FileIo, AtomicFileAppearsAtCommit) {
    TempDir dir;
    put(dir / "a", "old");
    std::string big(1 << 20, 'x');
    {
        AtomicFile f(dir / "a");
        f.write("new ");
        f.write(big);
        EXPECT_EQ(read_file(dir / "a"), "old");
        EXPECT_EQ(dir.count(), 2u);
    }
    EXPECT_EQ(read_file(dir / "a"), "old");  // no commit
    EXPECT_EQ(dir.count(), 1u);
    {
        AtomicFile f(dir / "a");
        f.write("new ");
        f.write(big);
        f.write("!");
        f.commit();
        EXPECT_EQ(f.written, big.size() + 5);
        expect_has(error_of([&] { f.write("more"); }), "already complete");
    }
    EXPECT_EQ(read_file(dir / "a"), "new " + big + "!");
    EXPECT_EQ(dir.count(), 1u);
    write_file_atomic(dir / "b", "");
    EXPECT_EQ(read_file(dir / "b"), "");

    expect_has(error_of([&] { AtomicFile f(dir / "none/a"); }), "create its folder first");
    expect_has(error_of([&] { AtomicFile f(dir.path); }), "it is a folder");
    expect_has(error_of([&] { AtomicFile f("/dev/null"); }), "a device");
}

TEST(FileIo, FullDiskLeavesNothingHalfWritten) {
    TempDir dir;
    put(dir / "a", "old");
    std::string small(100000, 's'), big(1 << 20, 'b');  // buffered until commit, and written through
    for (const std::string& text : {small, big}) {
        std::string what;
        {
            DiskLimit limit(65536);
            what = error_of([&] { write_file_atomic(dir / "a", text); });
        }
        expect_has(what, dir / "a");
        expect_has(what, "File too large");
        expect_has(what, std::to_string(text.size()));
        expect_has(what, "ulimit");
        EXPECT_EQ(read_file(dir / "a"), "old");
        EXPECT_EQ(dir.count(), 1u);
    }
    expect_has(write_advice(ENOSPC), "free some space");
}

TEST(FileIo, AppendFile) {
    TempDir dir;
    {
        AppendFile f(dir / "log");
        f.line("{\"a\":1}");
        f.line("");
        expect_has(error_of([&] { f.line("a\nb"); }), "newline");
        f.close();
        expect_has(error_of([&] { f.line("late"); }), "not open");
    }
    EXPECT_EQ(read_file(dir / "log"), "{\"a\":1}\n\n");
    std::ofstream(dir / "log", std::ios::app) << "{\"torn\":";
    {
        AppendFile f(dir / "log"), g;
        g = std::move(f);
        g.line("{\"b\":2}");
    }
    EXPECT_EQ(read_file(dir / "log"), "{\"a\":1}\n\n{\"b\":2}\n");

    put(dir / "torn", std::string(10000, 'x'));  // no newline in more than one block
    { AppendFile f(dir / "torn"); }
    EXPECT_EQ(read_file(dir / "torn"), "");
    put(dir / "long", "kept\n" + std::string(10000, 'x'));
    { AppendFile f(dir / "long"); }
    EXPECT_EQ(read_file(dir / "long"), "kept\n");

    expect_has(error_of([&] { AppendFile f(dir / "none/log"); }), "create its folder first");
}

TEST(FileIo, AppendFileOnFullDisk) {
    if (!fs::exists("/dev/full")) GTEST_SKIP() << "needs /dev/full";
    AppendFile full("/dev/full");
    std::string what = error_of([&] { full.line("{}"); });
    expect_has(what, "cannot append 3 bytes to /dev/full: No space left on device");
    expect_has(what, "free some space");

    TempDir dir;
    AppendFile f(dir / "log");
    f.line(std::string(99, 'a'));
    {
        DiskLimit limit(150);  // the second line fits in half
        expect_has(error_of([&] { f.line(std::string(99, 'b')); }), "the lines before it are whole");
    }
    EXPECT_EQ(fs::file_size(dir / "log"), 100u);
    f.line("c");
    EXPECT_EQ(read_file(dir / "log"), std::string(99, 'a') + "\nc\n");
}

TEST(FileIo, JsonFromOutside) {
    EXPECT_EQ(json_parse("{\"a\": [1, {\"a\": 2}]}", "x")["a"][1]["a"], 2);
    expect_has(error_of([] { json_parse("{\"a\":1,\"a\":2}", "x.json"); }), "x.json: the key 'a' appears twice");
    expect_has(error_of([] { json_parse("{\"a\":1", "x.json"); }), "x.json: not valid JSON at byte");
    expect_has(error_of([] { json_parse("", "x.json"); }), "not valid JSON");
    expect_has(error_of([] { json_parse("{\"\xff\":1}", "x.json"); }), "not valid JSON");
    expect_has(error_of([] { json_parse(std::string(1000000, '['), "x.json"); }), "nested deeper");
    expect_has(error_of([] { json_parse("[1e999]", "x.json"); }), "cannot read the JSON");
    EXPECT_EQ(shown("a\n\x1b'\xff"), "'a\\x0A\\x1B'\\xFF'");
}

// ----------------------------------------------------------------------------------------------------------------
// safetensors

static std::string little(uint64_t v, int bytes) {
    std::string s;
    for (int i = 0; i < bytes; i++) s += (char)(v >> (8 * i));
    return s;
}

static std::string st_bytes(const std::string& header, const std::string& data) {
    return little(header.size(), 8) + header + data;
}

// parses a heap copy of exactly these bytes, so that a sanitizer sees every read beyond them
static std::map<std::string, StTensor> st_parse_text(const std::string& text) {
    std::vector<uint8_t> copy(text.begin(), text.end());
    copy.shrink_to_fit();
    std::map<std::string, StTensor> tensors;
    std::map<std::string, std::string> metadata;
    st_parse(copy.data(), copy.size(), "x.safetensors", &tensors, &metadata);
    for (auto& [name, t] : tensors) {
        std::vector<float> values((size_t)t.count);
        if (t.dtype == "F32" || t.dtype == "F16" || t.dtype == "BF16") st_read_float(t, values.data());
        else EXPECT_LE(t.data + t.bytes, copy.data() + copy.size());
    }
    return tensors;
}

static std::vector<float> st_values(const std::map<std::string, StTensor>& tensors, const std::string& name) {
    const StTensor* t = st_find(tensors, name);
    if (!t) return {};
    std::vector<float> v((size_t)t->count);
    st_read_float(*t, v.data());
    return v;
}

TEST(Safetensors, RoundTripOfEveryNumberType) {
    TempDir dir;
    // 1/3 rounds in every narrow type; 1.00390625 = 1 + 2^-8 is a tie in bf16 (to even: 1), exact in fp16
    std::vector<float> x = {0, -0.0f, 1.0f / 3, 1.00390625f, -65504, 1e-7f, 3.0e38f, 7};
    std::vector<double> d = {1.0 / 3, -2};
    std::vector<int64_t> ids = {-1, 1ll << 40};
    uint16_t raw[3] = {0x3F80, 0xC000, 0x7F80};
    st_write(dir / "m.safetensors", {
                                        st_from_float("f32", "F32", {2, 4}, x.data()),
                                        st_from_float("bf16", "BF16", {8}, x.data()),
                                        st_from_float("f16", "F16", {4, 2}, x.data()),
                                        st_from_callback("callback", "F32", {3},
                                                         [](int64_t first, int64_t n, float* b) {
                                                             for (int64_t i = 0; i < n; i++)
                                                                 b[i] = (float)(first + i) / 2;
                                                         }),
                                        st_from_bytes("raw", "BF16", {3, 1}, raw),
                                        st_from_bytes("f64", "F64", {2}, d.data()),
                                        st_from_bytes("ids", "I64", {2}, ids.data()),
                                        st_from_bytes("fp4", "F4", {4}, "\x12\x34"),
                                        st_from_float("scalar", "F32", {}, &x[7]),
                                        st_from_float("nothing", "F32", {0, 5}, nullptr),
                                    });
    EXPECT_EQ(dir.count(), 1u);
    SafetensorsFile f = st_open(dir / "m.safetensors");
    EXPECT_EQ(f.tensors.size(), 10u);
    EXPECT_EQ(f.metadata.at("format"), "pt");
    uint64_t n;
    memcpy(&n, f.file.data, 8);
    EXPECT_EQ(n % 8, 0u);

    std::vector<float> y = st_values(f.tensors, "f32");
    EXPECT_EQ(memcmp(y.data(), x.data(), sizeof(float) * 8), 0);
    std::vector<float> bf = st_values(f.tensors, "bf16"), h = st_values(f.tensors, "f16");
    for (int i = 0; i < 8; i++) {
        EXPECT_EQ(bf[i], bf16_bits_to_float(float_to_bf16_bits(x[i])));
        EXPECT_EQ(h[i], fp16_bits_to_float(float_to_fp16_bits(x[i])));
    }
    EXPECT_EQ(bf[3], 1.0f);
    EXPECT_EQ(h[3], 1.00390625f);
    EXPECT_EQ(h[6], INFINITY);
    EXPECT_EQ(st_values(f.tensors, "callback"), (std::vector<float>{0, 0.5f, 1}));
    EXPECT_EQ(st_values(f.tensors, "raw"), (std::vector<float>{1, -2, INFINITY}));
    EXPECT_EQ(st_values(f.tensors, "f64"), (std::vector<float>{1.0f / 3, -2}));
    EXPECT_EQ(st_values(f.tensors, "scalar"), (std::vector<float>{7}));
    EXPECT_EQ(f.tensors.at("ids").bytes, 16u);
    EXPECT_EQ(memcmp(f.tensors.at("ids").data, ids.data(), 16), 0);
    EXPECT_EQ(memcmp(f.tensors.at("fp4").data, "\x12\x34", 2), 0);
    EXPECT_EQ(f.tensors.at("nothing").count, 0);

    const StTensor& t = st_require(f.tensors, "f32", {2, 4}, "m");
    float part[3];
    st_read_float(t, part, 5, 3);
    EXPECT_EQ(memcmp(part, &x[5], sizeof(part)), 0);
    expect_has(error_of([&] { st_read_float(t, part, 6, 3); }), "elements 6 to 9 of tensor 'f32', which has 8");
    expect_has(error_of([&] { st_read_float(f.tensors.at("ids"), part); }), "tensor 'ids' is I64");
    expect_has(error_of([&] { st_require(f.tensors, "f32", {4, 2}, "m"); }), "has shape [2, 4], but config.json asks");
    expect_has(error_of([&] { st_require(f.tensors, "g", {1}, "m"); }), "m: tensor g is missing");
}

TEST(Safetensors, LargeTensorsAreStreamed) {
    TempDir dir;
    const int64_t n = (1 << 20) * 2 + 12345;  // three calls of the callback
    std::vector<int64_t> sizes;
    st_write(dir / "m.safetensors", {st_from_callback("w", "F32", {n}, [&](int64_t first, int64_t k, float* b) {
                 sizes.push_back(k);
                 for (int64_t i = 0; i < k; i++) b[i] = (float)(first + i);
             })});
    EXPECT_EQ(sizes, (std::vector<int64_t>{1 << 20, 1 << 20, 12345}));
    SafetensorsFile f = st_open(dir / "m.safetensors");
    std::vector<float> v = st_values(f.tensors, "w");
    int64_t wrong = 0;
    for (int64_t i = 0; i < n; i++) wrong += v[i] != (float)i;
    EXPECT_EQ(wrong, 0);
}

TEST(Safetensors, UnpaddedHeaderMisalignsItsData) {
    std::string header =
        "{\"b\":{\"shape\":[2],\"dtype\":\"F32\",\"data_offsets\":[2,10]},"
        "\"a\":{\"dtype\":\"BF16\",\"shape\":[1],\"data_offsets\":[0,2]}}";
    if (header.size() % 2 == 0) header.insert(1, " ");
    float two[2] = {1.5f, -3};
    std::string data("\x80\x3f", 2);
    data.append((const char*)two, 8);
    TempDir dir;
    put(dir / "m", st_bytes(header, data));
    SafetensorsFile f = st_open(dir / "m");
    EXPECT_EQ(st_values(f.tensors, "a"), (std::vector<float>{1}));
    EXPECT_EQ(st_values(f.tensors, "b"), (std::vector<float>{1.5f, -3}));
    EXPECT_EQ(st_parse_text(st_bytes("{}", "")).size(), 0u);
}

TEST(Safetensors, HostileFiles) {
    auto one = [](const std::string& info, const std::string& data = std::string(8, 0)) {
        return st_bytes("{\"w\":" + info + "}", data);
    };
    auto two = [](int b0, int e0, int b1, int e1) {
        return st_bytes(format("{\"v\":{\"dtype\":\"U8\",\"shape\":[%d],\"data_offsets\":[%d,%d]},"
                               "\"w\":{\"dtype\":\"U8\",\"shape\":[%d],\"data_offsets\":[%d,%d]}}",
                               e0 - b0, b0, e0, e1 - b1, b1, e1),
                        std::string(8, 0));
    };
    struct {
        const char* what;
        std::string file, message;
    } cases[] = {
        {"empty", "", "0 bytes are too few"},
        {"short", "1234567", "7 bytes are too few"},
        {"huge header", little(UINT64_MAX, 8) + "{}", "header of 18446744073709551615 bytes"},
        {"over the cap", little(100000001, 8) + "{}", "header of 100000001 bytes"},
        {"zero header", little(0, 8) + "{}", "header of 0 bytes"},
        {"header beyond the file", little(3, 8) + "{}", "header of 3 bytes in a file of 10"},
        {"no brace", st_bytes(" {}", ""), "does not begin with '{'"},
        {"not JSON", st_bytes("{]", ""), "not valid JSON at byte 2"},
        {"not UTF-8", st_bytes("{\"\xff\":1}", ""), "not valid JSON"},
        {"bottomless", st_bytes("{\"w\":" + std::string(100000, '['), ""), "nested deeper"},
        {"entry no object", one("[]"), "tensor 'w' needs dtype, shape"},
        {"no dtype", one("{\"shape\":[1],\"data_offsets\":[0,8]}"), "tensor 'w' needs dtype, shape"},
        {"no shape", one("{\"dtype\":\"F32\",\"data_offsets\":[0,8]}"), "tensor 'w' needs dtype, shape"},
        {"one offset", one("{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8]}"), "two data_offsets"},
        {"unknown dtype", one("{\"dtype\":\"F128\",\"shape\":[1],\"data_offsets\":[0,8]}"), "unknown dtype 'F128'"},
        {"negative shape", one("{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}"), "not a size"},
        {"fractional shape", one("{\"dtype\":\"F32\",\"shape\":[2.0],\"data_offsets\":[0,8]}"), "not a size"},
        {"shape above int64", one("{\"dtype\":\"U8\",\"shape\":[9223372036854775808],\"data_offsets\":[0,8]}"),
         "not a size"},
        {"product wraps to 2", one("{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296,2],\"data_offsets\":[0,8]}"),
         "tensor 'w': no file can hold a F32 of shape [4294967296, 4294967296, 2]"},
        {"bits wrap", one("{\"dtype\":\"F32\",\"shape\":[1152921504606846976],\"data_offsets\":[0,8]}"), "no file"},
        {"half a byte", one("{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,2]}"), "no file can hold"},
        {"bytes differ", one("{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}"),
         "needs 12 bytes, the header gives it 8"},
        {"negative offset", one("{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[-8,0]}"), "not an offset"},
        {"backwards", one("{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}"), "lies at bytes 8 to 0"},
        {"beyond the end", one("{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]}"),
         "lies at bytes 0 to 16 of 8"},
        {"far beyond",
         one("{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[18446744073709551614,"
             "18446744073709551615]}"),
         "truncated or damaged"},
        {"same name twice",
         st_bytes("{\"w\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
                  "\"w\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[4,8]}}",
                  std::string(8, 0)),
         "'w' appears twice"},
        {"overlap", two(0, 5, 4, 8), "tensor 'w' overlaps"},
        {"same place", two(0, 8, 0, 8), "overlaps"},
        {"hole", two(0, 3, 4, 8), "tensor 'w' leaves a hole"},
        {"hole at the start", two(1, 4, 4, 8), "tensor 'v' leaves a hole"},
        {"unused tail", two(0, 3, 3, 7), "1 bytes behind the last tensor"},
        {"metadata of numbers", st_bytes("{\"__metadata__\":{\"a\":1}}", ""), "__metadata__ 'a' is not a string"},
        {"metadata no object", st_bytes("{\"__metadata__\":1}", ""), "__metadata__ is not an object"},
        {"name with escapes", st_bytes("{\"a\\n\\u001b[2J\":1}", ""), "tensor 'a\\x0A\\x1B[2J'"},
        {"long name", st_bytes("{\"" + std::string(5000, 'n') + "\":1}", ""), "nnn...'"},
    };
    for (auto& c : cases) {
        std::string what = error_of([&] { st_parse_text(c.file); });
        EXPECT_NE(what.find(c.message), std::string::npos) << c.what << ": " << what;
        EXPECT_EQ(what.find("x.safetensors: "), 0u) << c.what << ": " << what;
    }
}

TEST(Safetensors, TruncatedOrAlteredFilesAreRefusedOrHarmless) {
    TempDir dir;
    std::vector<float> x(10, 1.5f);
    st_write(dir / "m", {st_from_float("model.embed", "F32", {5, 2}, x.data()),
                         st_from_float("model.norm", "BF16", {10}, x.data())});
    std::string good = read_file(dir / "m");
    EXPECT_EQ(st_parse_text(good).size(), 2u);
    for (size_t n = 0; n < good.size(); n++) {
        std::string cut = good.substr(0, n);
        EXPECT_NE(error_of([&] { st_parse_text(cut); }), "") << n;
    }
    EXPECT_NE(error_of([&] { st_parse_text(good + "x"); }), "");
    int refused = 0;
    for (uint32_t i = 0; i < 3000; i++) {
        std::string bad = good;
        Philox4 r = rng_bits(1, 99, i, 0, 0);
        for (int k = 0; k < 1 + (int)(i % 3); k++) bad[r.x[k] % 200] = (char)(r.x[3] >> (8 * k));
        refused += error_of([&] { st_parse_text(bad); }) != "";
    }
    EXPECT_GT(refused, 1500);
}

TEST(Safetensors, Shards) {
    TempDir dir;
    std::vector<float> x(100);
    for (int i = 0; i < 100; i++) x[i] = (float)i;
    std::vector<StWriteTensor> tensors;
    for (int i = 0; i < 5; i++) tensors.push_back(st_from_float(format("t%d", i), "F32", {10}, &x[10 * i]));
    tensors.push_back(st_from_float("big", "F32", {50}, &x[50]));

    st_write_folder(dir.path, tensors);
    EXPECT_TRUE(fs::exists(dir / "model.safetensors"));
    EXPECT_EQ(dir.count(), 1u);
    SafetensorsSet set = st_open_folder(dir.path);
    EXPECT_EQ(st_values(set.tensors, "t3")[9], 39);

    st_write_folder(dir.path, tensors, 80);  // two small ones fill a shard; big does not fit into any
    EXPECT_FALSE(fs::exists(dir / "model.safetensors"));
    EXPECT_EQ(dir.count(), 5u);
    auto index = nlohmann::json::parse(read_file(dir / "model.safetensors.index.json"));
    EXPECT_EQ(index["metadata"]["total_size"], 400);
    EXPECT_EQ(index["weight_map"]["t1"], "model-00001-of-00004.safetensors");
    EXPECT_EQ(index["weight_map"]["t4"], "model-00003-of-00004.safetensors");
    EXPECT_EQ(index["weight_map"]["big"], "model-00004-of-00004.safetensors");
    set = st_open_folder(dir.path);
    EXPECT_EQ(set.tensors.size(), 6u);
    EXPECT_EQ(set.files.size(), 4u);
    EXPECT_EQ(set.metadata.at("format"), "pt");
    EXPECT_EQ(st_values(set.tensors, "big"), std::vector<float>(x.begin() + 50, x.end()));
    EXPECT_EQ(st_values(set.tensors, "t4"), std::vector<float>(x.begin() + 40, x.begin() + 50));

    // each change to a good set of shards, and what is said about it
    std::string index_path = dir / "model.safetensors.index.json", good = read_file(index_path);
    auto with = [&](const char* tensor, const nlohmann::json& file) {
        nlohmann::json j = nlohmann::json::parse(good);
        j["weight_map"][tensor] = file;
        put(index_path, j.dump());
        return error_of([&] { st_open_folder(dir.path); });
    };
    expect_has(with("t0", "../model-00001-of-00004.safetensors"), "tensor 't0' is said to be in '../model");
    expect_has(with("t0", "/etc/passwd"), "not a file name");
    expect_has(with("t0", ".."), "not a file name");
    expect_has(with("t0", "sub/x.safetensors"), "not a file name");
    expect_has(with("t0", ""), "not a file name");
    expect_has(with("t0", 7), "not a file name");
    expect_has(with("t0", std::string("a\0b", 3)), "not a file name");
    expect_has(with("t0", "none.safetensors"), "the shard 'none.safetensors' is missing");
    expect_has(with("t0", "model-00002-of-00004.safetensors"), "tensor 't0' is not in");
    expect_has(with("extra", "model-00002-of-00004.safetensors"), "tensor 'extra' is not in");
    for (const char* text : {"[]", "{}", "{\"weight_map\":[]}"}) {
        put(index_path, text);
        expect_has(error_of([&] { st_open_folder(dir.path); }), "weight_map is missing");
    }
    put(index_path, "{\"weight_map\":{}}");
    expect_has(error_of([&] { st_open_folder(dir.path); }), "weight_map is empty");
    fs::copy_file(dir / "model-00001-of-00004.safetensors", dir / "copy.safetensors");
    expect_has(with("t0", "copy.safetensors"), "is in");
    fs::resize_file(dir / "model-00002-of-00004.safetensors", 100);
    put(index_path, good);
    expect_has(error_of([&] { st_open_folder(dir.path); }), "model-00002-of-00004.safetensors");
    fs::remove(dir / "model-00003-of-00004.safetensors");
    expect_has(error_of([&] { st_open_folder(dir.path); }), "'model-00003-of-00004.safetensors' is missing");

    st_write_folder(dir.path, tensors);  // a stale index must not outlive its shards
    EXPECT_FALSE(fs::exists(index_path));
    EXPECT_EQ(st_open_folder(dir.path).tensors.size(), 6u);
    TempDir empty;
    expect_has(error_of([&] { st_open_folder(empty.path); }), "neither model.safetensors nor");
    put(empty / "pytorch_model.bin", "x");
    expect_has(error_of([&] { st_open_folder(empty.path); }), "convert its pytorch_model.bin");
}

TEST(Safetensors, AFailedWriteLeavesTheOldModel) {
    TempDir dir;
    std::vector<float> x(40000, 1);
    std::vector<StWriteTensor> tensors = {st_from_float("a", "F32", {40000}, x.data()),
                                          st_from_float("b", "F32", {40000}, x.data())};
    st_write_folder(dir.path, {tensors[0]});
    for (uint64_t shard : {(uint64_t)0, (uint64_t)160000}) {
        std::string what;
        {
            DiskLimit limit(100000);
            what = error_of([&] { st_write_folder(dir.path, tensors, shard); });
        }
        expect_has(what, "File too large");
        EXPECT_EQ(dir.count(), 1u);
        EXPECT_EQ(st_open_folder(dir.path).tensors.size(), 1u);
    }
    auto broken = st_from_callback("c", "F32", {1}, [](int64_t, int64_t, float*) { fail("no value for c"); });
    expect_has(error_of([&] { st_write_folder(dir.path, {tensors[0], broken}, 160000); }), "no value for c");
    EXPECT_EQ(dir.count(), 1u);

    std::string out = dir / "x";
    expect_has(error_of([&] { st_write(out, {tensors[0], tensors[0]}); }), "'a' is taken");
    expect_has(error_of([&] { st_write(out, {st_from_bytes("q", "INT4", {1}, "")}); }), "tensor 'q' of dtype 'INT4'");
    expect_has(error_of([&] { st_write(out, {st_from_bytes("q", "F4", {3}, "")}); }), "tensor 'q' of dtype 'F4'");
    expect_has(error_of([&] { st_write(out, {st_from_bytes("q", "U8", {-1}, "")}); }), "shape [-1]");
    expect_has(error_of([&] { st_write(out, {st_from_float("q", "I8", {1}, x.data())}); }), "not as 'I8'");
    expect_has(error_of([&] { st_write(out, {st_from_bytes("\xff", "U8", {1}, "x")}); }), "not UTF-8");
    EXPECT_FALSE(fs::exists(out));
}

// ----------------------------------------------------------------------------------------------------------------
// GGUF

// A GGUF file under construction. Strings are u64 length + bytes; offsets are given by the caller.
struct GgufBuilder {
    uint32_t version = 3;
    std::string kv, infos, data;
    uint64_t n_kv = 0, n_tensors = 0;
    static std::string str(const std::string& s) { return little(s.size(), 8) + s; }
    GgufBuilder& raw(const std::string& key, uint32_t type, const std::string& bytes) {
        kv += str(key) + little(type, 4) + bytes;
        n_kv++;
        return *this;
    }
    GgufBuilder& u32(const std::string& key, uint32_t v) { return raw(key, GGUF_U32, little(v, 4)); }
    GgufBuilder& f32(const std::string& key, float v) { return raw(key, GGUF_F32, little(float_bits(v), 4)); }
    GgufBuilder& text(const std::string& key, const std::string& v) { return raw(key, GGUF_STRING, str(v)); }
    GgufBuilder& texts(const std::string& key, const std::vector<std::string>& v) {
        std::string s = little(GGUF_STRING, 4) + little(v.size(), 8);
        for (auto& x : v) s += str(x);
        return raw(key, GGUF_ARRAY, s);
    }
    GgufBuilder& ints(const std::string& key, const std::vector<int>& v) {
        std::string s = little(GGUF_I32, 4) + little(v.size(), 8);
        for (int x : v) s += little((uint32_t)x, 4);
        return raw(key, GGUF_ARRAY, s);
    }
    GgufBuilder& info(const std::string& name, const std::vector<uint64_t>& dims, uint32_t type, uint64_t offset) {
        infos += str(name) + little(dims.size(), 4);
        for (uint64_t d : dims) infos += little(d, 8);
        infos += little(type, 4) + little(offset, 8);
        n_tensors++;
        return *this;
    }
    // shape as in Hugging Face
    GgufBuilder& f32s(const std::string& name, std::vector<uint64_t> shape, const std::vector<float>& v) {
        data.resize((data.size() + 31) / 32 * 32);
        info(name, std::vector<uint64_t>(shape.rbegin(), shape.rend()), 0, data.size());
        data.append((const char*)v.data(), v.size() * 4);
        return *this;
    }
    std::string bytes(uint64_t alignment = 32) const {
        std::string s = "GGUF" + little(version, 4) + little(n_tensors, 8) + little(n_kv, 8) + kv + infos;
        s.resize((s.size() + alignment - 1) / alignment * alignment);
        return s + data;
    }
};

// parses a heap copy of exactly these bytes and touches everything that it promises
static GgufFile gguf_parse_text(const std::string& text, std::vector<uint8_t>* keep = nullptr) {
    std::vector<uint8_t> own;
    std::vector<uint8_t>& copy = keep ? *keep : own;
    copy.assign(text.begin(), text.end());
    copy.shrink_to_fit();
    GgufFile f;
    f.path = "x.gguf";
    gguf_parse(copy.data(), copy.size(), &f);
    for (auto& [name, t] : f.tensors) {
        std::vector<float> values((size_t)t.count);
        if (t.type->read) gguf_read_float(t, values.data());
    }
    for (auto& [key, v] : f.values) {
        if (v.type == GGUF_ARRAY && v.element == GGUF_STRING) gguf_strings(f, key);
        if (v.type == GGUF_ARRAY && v.element == GGUF_I32) gguf_ints(f, key);
        if (v.type == GGUF_STRING) gguf_string(f, key, "");
    }
    return f;
}

static std::string unhex(const std::string& hex) {
    std::string s;
    for (size_t i = 0; i + 1 < hex.size(); i += 2) s += (char)std::stoi(hex.substr(i, 2), nullptr, 16);
    return s;
}

static nlohmann::json golden() { return nlohmann::json::parse(read_file("test/golden/gguf_blocks.json")); }

TEST(Gguf, EveryBlockTypeEqualsGgufPyBitForBit) {
    nlohmann::json types = golden()["types"];
    EXPECT_EQ(types.size(), 13u);
    for (auto& [name, g] : types.items()) {
        std::string blocks = unhex(g["blocks"]), values = unhex(g["values"]);  // values: big-endian
        uint64_t n = values.size() / 4;
        std::string bytes = GgufBuilder().info("w", {n}, g["type"].get<uint32_t>(), 0).bytes() + blocks;
        std::vector<uint8_t> keep;
        GgufFile f = gguf_parse_text(bytes, &keep);
        const GgufTensor* t = gguf_find(f, "w");
        ASSERT_NE(t, nullptr);
        EXPECT_EQ(name, t->type->name);
        EXPECT_EQ(t->bytes, blocks.size());
        std::vector<float> out(n);
        gguf_read_float(*t, out.data());
        int wrong = 0;
        for (uint64_t i = 0; i < n; i++) {
            uint32_t want = 0;
            for (int k = 0; k < 4; k++) want = want << 8 | (uint8_t)values[4 * i + k];
            wrong += float_bits(out[i]) != want;
        }
        EXPECT_EQ(wrong, 0) << name;
        if (t->type->block > 1) {  // a later block alone
            int64_t b = t->type->block;
            std::vector<float> part((size_t)b);
            gguf_read_float(*t, part.data(), b, b);
            EXPECT_EQ(memcmp(part.data(), &out[b], b * 4), 0) << name;
            expect_has(error_of([&] { gguf_read_float(*t, part.data(), 1, b); }), "not whole blocks");
        }
        expect_has(error_of([&] { gguf_read_float(*t, out.data(), 0, (int64_t)n + 1); }),
                   "x.gguf: tensor 'w': elements");
    }
}

TEST(Gguf, Q2_0) {  // gguf-py has no Q2_0; by its formula, w = d * (q - 1), value j at bits 2 (j % 4) of byte j / 4
    std::string block = little(float_to_fp16_bits(0.5f), 2);
    for (int j = 0; j < 16; j++) block += (char)(j == 1 ? 0xE4 : 0x55);  // 0xE4: 0, 1, 2, 3;  0x55: all 1
    float y[64];
    gguf_block_q2_0((const uint8_t*)block.data(), y);
    for (int j = 0; j < 64; j++) EXPECT_EQ(y[j], j == 4 ? -0.5f : j == 6 ? 0.5f : j == 7 ? 1.0f : 0.0f) << j;
}

TEST(Gguf, MetadataOfEveryType) {
    for (uint32_t version : {2u, 3u}) {
        GgufBuilder b;
        b.version = version;
        b.raw("u8", GGUF_U8, little(200, 1)).raw("i8", GGUF_I8, little(200, 1)).raw("u16", GGUF_U16, little(60000, 2));
        b.raw("i16", GGUF_I16, little(60000, 2)).u32("u32", 4000000000u).raw("i32", GGUF_I32, little(4000000000u, 4));
        b.raw("u64", GGUF_U64, little(1ull << 40, 8)).raw("i64", GGUF_I64, little(UINT64_MAX, 8));
        b.raw("big", GGUF_U64, little(UINT64_MAX, 8)).raw("yes", GGUF_BOOL, little(1, 1)).f32("f32", 0.25f);
        double d = 1.0 / 3;
        b.raw("f64", GGUF_F64, std::string((const char*)&d, 8)).text("text", "a\nb").texts("texts", {"x", "", "yz"});
        b.ints("ints", {-1, 5})
            .raw("none", GGUF_ARRAY, little(GGUF_U8, 4) + little(0, 8))
            .f32s("t", {2, 3}, {0, 1, 2, 3, 4, 5});
        TempDir dir;
        put(dir / "m.gguf", b.bytes());
        GgufFile f = gguf_open(dir / "m.gguf");
        EXPECT_EQ(f.version, version);
        EXPECT_EQ(gguf_int(f, "u8", 0), 200);
        EXPECT_EQ(gguf_int(f, "i8", 0), -56);
        EXPECT_EQ(gguf_int(f, "u16", 0), 60000);
        EXPECT_EQ(gguf_int(f, "i16", 0), -5536);
        EXPECT_EQ(gguf_int(f, "u32", 0), 4000000000ll);
        EXPECT_EQ(gguf_int(f, "i32", 0), -294967296);
        EXPECT_EQ(gguf_int(f, "u64", 0), 1ll << 40);
        EXPECT_EQ(gguf_int(f, "i64", 0), -1);
        EXPECT_EQ(gguf_int(f, "yes", 0), 1);
        EXPECT_EQ(gguf_int(f, "absent", -7), -7);
        EXPECT_EQ(gguf_float(f, "f32", 0), 0.25);
        EXPECT_EQ(gguf_float(f, "f64", 0), d);
        EXPECT_EQ(gguf_string(f, "text", ""), "a\nb");
        EXPECT_EQ(gguf_strings(f, "texts"), (std::vector<std::string>{"x", "", "yz"}));
        EXPECT_EQ(gguf_ints(f, "ints"), (std::vector<int>{-1, 5}));
        EXPECT_TRUE(gguf_ints(f, "none").empty());
        EXPECT_TRUE(gguf_strings(f, "absent").empty());
        EXPECT_EQ(f.tensors.at("t").shape, (std::vector<int64_t>{2, 3}));  // the file has 3, 2
        std::vector<float> v(6);
        gguf_read_float(f.tensors.at("t"), v.data());
        EXPECT_EQ(v[5], 5);
        expect_has(error_of([&] { gguf_int(f, "big", 0); }), "key 'big' is not an integer");
        expect_has(error_of([&] { gguf_int(f, "f32", 0); }), "not an integer");
        expect_has(error_of([&] { gguf_int(f, "text", 0); }), "not an integer");
        expect_has(error_of([&] { gguf_float(f, "u32", 0); }), "not a floating-point");
        expect_has(error_of([&] { gguf_string(f, "u32", ""); }), "not a string");
        expect_has(error_of([&] { gguf_strings(f, "ints"); }), "not an array of strings");
        expect_has(error_of([&] { gguf_ints(f, "texts"); }), "not an array of 32-bit integers");
        expect_has(error_of([&] { gguf_ints(f, "u32"); }), "not an array");
    }
}

TEST(Gguf, HostileFiles) {
    auto header = [](uint64_t n_tensors, uint64_t n_kv, const std::string& rest) {
        return "GGUF" + little(3, 4) + little(n_tensors, 8) + little(n_kv, 8) + rest;
    };
    auto pad = std::string(64, 0);
    auto tensor = [&](std::vector<uint64_t> dims, uint32_t type, uint64_t offset) {
        return GgufBuilder().info("w", dims, type, offset).bytes() + std::string(4096, 0);
    };
    auto array = [&](uint32_t element, uint64_t n) {
        return GgufBuilder().raw("k", GGUF_ARRAY, little(element, 4) + little(n, 8)).bytes() + pad;
    };
    struct {
        const char* what;
        std::string file, message;
    } cases[] = {
        {"empty", "", "does not begin with GGUF"},
        {"other", "PK\3\4....", "does not begin with GGUF"},
        {"only the magic", "GGUF", "the version needs 4 bytes where 0 are left"},
        {"version 1", "GGUF" + little(1, 4) + pad, "GGUF version 1"},
        {"version 4", "GGUF" + little(4, 4) + pad, "GGUF version 4; 2 and 3"},
        {"big-endian", "GGUF" + std::string("\0\0\0\3", 4) + pad, "big-endian"},
        {"absurd n_tensors", header(UINT64_MAX, 0, pad), "18446744073709551615 tensors do not fit"},
        {"absurd n_kv", header(0, UINT64_MAX, pad), "18446744073709551615 keys"},
        {"more keys than bytes", header(0, 5, pad), "5 keys and 0 tensors do not fit"},
        {"long key", header(0, 1, little(UINT64_MAX, 8) + pad), "a key is a name of 18446744073709551615 bytes"},
        {"key beyond the end", header(0, 1, little(1000, 8) + pad), "a key needs 1000 bytes where 64 are left"},
        {"unknown value type", GgufBuilder().raw("k", 13, "").bytes() + pad, "key 'k' has the unknown type 13"},
        {"long string", GgufBuilder().raw("k", GGUF_STRING, little(UINT64_MAX - 7, 8)).bytes() + pad, "key 'k' needs"},
        {"same key twice", GgufBuilder().u32("k", 1).u32("k", 2).bytes() + pad, "key 'k' appears twice"},
        {"array of u8", array(GGUF_U8, UINT64_MAX), "key 'k' needs 18446744073709551615 bytes"},
        {"array wraps", array(GGUF_F64, (1ull << 61) + 1), "key 'k' needs 18446744073709551615 bytes"},
        {"array of strings", array(GGUF_STRING, UINT64_MAX), "key 'k' needs 8 bytes"},
        {"array of arrays", array(GGUF_ARRAY, 1), "array of type 9, which is not supported"},
        {"array of 99", array(99, 1), "array of type 99"},
        {"alignment 0", GgufBuilder().u32("general.alignment", 0).bytes() + pad, "power of two"},
        {"alignment 24", GgufBuilder().u32("general.alignment", 24).bytes() + pad, "power of two"},
        {"alignment 2^31", GgufBuilder().u32("general.alignment", 1u << 31).bytes() + pad, "power of two"},
        {"alignment as text", GgufBuilder().text("general.alignment", "32").bytes() + pad, "power of two"},
        {"long tensor name", GgufBuilder().info(std::string(64, 'n'), {1}, 0, 0).bytes() + pad, "a name of 64 bytes"},
        {"five dimensions", tensor({1, 1, 1, 1, 1}, 0, 0), "tensor 'w' has 5 dimensions"},
        {"4 Gi dimensions", header(1, 0, GgufBuilder::str("w") + little(UINT32_MAX, 4) + pad), "4294967295 dimensions"},
        {"dimension 0", tensor({4, 0}, 0, 0), "impossible dimension 0"},
        {"dimension 2^63", tensor({1ull << 63}, 0, 0), "impossible dimension 9223372036854775808"},
        {"product wraps", tensor({1ull << 32, 1ull << 32}, 0, 0), "impossible dimension"},
        {"product near 2^63", tensor({1ull << 31, 1ull << 30}, 0, 0), "impossible dimension"},
        {"unknown type", tensor({32}, 5, 0), "tensor 'w' has the unknown type 5"},
        {"broken block", tensor({33}, 8, 0), "rows of 33 values, but Q8_0 comes in blocks of 32"},
        {"short rows", tensor({16, 2}, 2, 0), "rows of 16 values, but Q4_0"},
        {"misaligned", tensor({4}, 0, 8), "offset 8, which is no multiple of 32"},
        {"beyond the end", tensor({1025}, 0, 0), "tensor 'w' needs 4100 bytes at offset 0 of 4096"},
        {"offset beyond", tensor({1}, 0, 4128), "at offset 4128 of 4096"},
        {"offset wraps", tensor({8}, 0, UINT64_MAX - 31), "truncated"},
        {"same tensor twice", GgufBuilder().info("w", {1}, 0, 0).info("w", {1}, 0, 32).bytes() + pad,
         "'w' appears twice"},
        {"overlap", GgufBuilder().info("v", {16}, 0, 0).info("w", {8}, 0, 32).bytes() + pad, "tensor 'w' overlaps"},
        {"infos cut off", header(1, 0, GgufBuilder::str("name") + little(1, 4) + little(8, 8)),
         "tensor 'name' needs 4 bytes where 0 are left"},
    };
    for (auto& c : cases) {
        std::string what = error_of([&] { gguf_parse_text(c.file); });
        EXPECT_NE(what.find(c.message), std::string::npos) << c.what << ": " << what;
        EXPECT_EQ(what.find("x.gguf: "), 0u) << c.what << ": " << what;
    }
    // a type that can be listed but not read
    std::vector<uint8_t> keep;
    GgufFile f = gguf_parse_text(tensor({32}, 39, 0), &keep);
    float y[32];
    expect_has(error_of([&] { gguf_read_float(f.tensors.at("w"), y); }), "has type MXFP4, which cannot be read");
}

static GgufBuilder small_llama() {
    GgufBuilder b;
    b.text("general.architecture", "llama").u32("llama.embedding_length", 8).u32("llama.feed_forward_length", 16);
    b.u32("llama.block_count", 1).u32("llama.attention.head_count", 2).u32("llama.attention.head_count_kv", 1);
    b.u32("llama.context_length", 64).u32("llama.rope.dimension_count", 4);
    b.f32("llama.attention.layer_norm_rms_epsilon", 1e-5f).f32("llama.rope.freq_base", 100000);
    b.text("tokenizer.ggml.model", "gpt2").text("tokenizer.ggml.pre", "smollm");
    b.texts("tokenizer.ggml.tokens", {"<e>", "a", "b", "ab"}).ints("tokenizer.ggml.token_type", {3, 1, 1, 1});
    b.texts("tokenizer.ggml.merges", {"a b"})
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 0);
    b.raw("tokenizer.ggml.add_bos_token", GGUF_BOOL, little(1, 1)).text("tokenizer.chat_template", "{{ x }}");
    std::vector<float> rows(8 * 8);
    for (int i = 0; i < 64; i++) rows[i] = (float)(i / 8);  // every row holds its number
    b.f32s("token_embd.weight", {5, 8}, std::vector<float>(40, 1)).f32s("blk.0.attn_q.weight", {8, 8}, rows);
    b.f32s("blk.0.attn_k.weight", {4, 8}, std::vector<float>(rows.begin(), rows.begin() + 32));
    b.f32s("blk.0.attn_v.weight", {4, 8}, std::vector<float>(rows.begin(), rows.begin() + 32));
    return b;
}

TEST(Gguf, TruncatedOrAlteredFilesAreRefusedOrHarmless) {
    std::string good = small_llama().bytes();
    EXPECT_EQ(gguf_parse_text(good).tensors.size(), 4u);
    for (size_t n = 0; n < good.size(); n++) {
        std::string cut = good.substr(0, n);
        EXPECT_NE(error_of([&] { gguf_parse_text(cut); }), "") << n;
    }
    size_t header = good.size() - small_llama().data.size();
    int refused = 0;
    for (uint32_t i = 0; i < 5000; i++) {
        std::string bad = good;
        Philox4 r = rng_bits(2, 99, i, 0, 0);
        for (int k = 0; k < 1 + (int)(i % 3); k++) bad[r.x[k] % header] = (char)(r.x[3] >> (8 * k));
        refused += error_of([&] {
                       std::vector<uint8_t> keep;
                       GgufFile f = gguf_parse_text(bad, &keep);
                       config_from_gguf(f);
                       gguf_tokenizer(f);
                   }) != "";
    }
    EXPECT_GT(refused, 2000);
}

TEST(Gguf, Names) {
    const char* pairs[][2] = {
        {"token_embd.weight", "model.embed_tokens.weight"},
        {"output_norm.weight", "model.norm.weight"},
        {"output.weight", "lm_head.weight"},
        {"blk.0.attn_q.weight", "model.layers.0.self_attn.q_proj.weight"},
        {"blk.27.attn_k.bias", "model.layers.27.self_attn.k_proj.bias"},
        {"blk.3.attn_k_norm.weight", "model.layers.3.self_attn.k_norm.weight"},
        {"blk.3.attn_norm.weight", "model.layers.3.input_layernorm.weight"},
        {"blk.3.ffn_norm.weight", "model.layers.3.post_attention_layernorm.weight"},
        {"blk.123.attn_output.weight", "model.layers.123.self_attn.o_proj.weight"},
        {"blk.3.ffn_down.weight", "model.layers.3.mlp.down_proj.weight"},
    };
    for (auto& p : pairs) {
        EXPECT_EQ(gguf_to_hf_name(p[0]), p[1]);
        EXPECT_EQ(hf_to_gguf_name(p[1]), p[0]);
    }
    for (const char* name :
         {"", "blk.", "blk..attn_q.weight", "blk.x.attn_q.weight", "blk.1", "blk.1.", "rope_freqs.weight",
          "blk.-1.attn_q.weight", "blk.99999999999.attn_q.weight", "blk.1.ssm_a"})
        EXPECT_EQ(gguf_to_hf_name(name), "") << name;
}

TEST(Gguf, UnpermuteUndoesLlamaCppsPermute) {
    // llama.cpp: w.reshape(n_head, 2, HD / 2, cols).swapaxes(1, 2); of one head with rows 0..5 it makes 0 3 1 4 2 5
    std::vector<float> head = {0, 3, 1, 4, 2, 5};
    gguf_unpermute_rows(head.data(), 1, 6, 1);
    EXPECT_EQ(head, (std::vector<float>{0, 1, 2, 3, 4, 5}));

    const int heads = 3, hd = 8, cols = 5;
    std::vector<float> w(heads * hd * cols), p(w.size());
    for (size_t i = 0; i < w.size(); i++) w[i] = (float)i;
    for (int h = 0; h < heads; h++)
        for (int s = 0; s < 2; s++)
            for (int i = 0; i < hd / 2; i++)  // [h][s][i] of the reshape goes to [h][i][s]
                for (int c = 0; c < cols; c++)
                    p[((h * hd / 2 + i) * 2 + s) * cols + c] = w[((h * 2 + s) * hd / 2 + i) * cols + c];
    EXPECT_NE(p, w);
    gguf_unpermute_rows(p.data(), heads, heads * hd, cols);
    EXPECT_EQ(p, w);
    expect_has(error_of([&] { gguf_unpermute_rows(p.data(), 5, 24, 1); }), "24 rows");
    expect_has(error_of([&] { gguf_unpermute_rows(p.data(), 0, 24, 1); }), "0 heads");
}

TEST(Gguf, ConfigParametersAndTokenizer) {
    std::vector<uint8_t> keep;
    GgufFile f = gguf_parse_text(small_llama().bytes(), &keep);
    ModelConfig c = config_from_gguf(f);
    EXPECT_EQ(c.model_type, "llama");
    EXPECT_EQ(c.vocab_size, 5);  // of the embedding, not of the tokenizer
    EXPECT_EQ(c.hidden_size, 8);
    EXPECT_EQ(c.intermediate_size, 16);
    EXPECT_EQ(c.num_attention_heads, 2);
    EXPECT_EQ(c.num_key_value_heads, 1);
    EXPECT_EQ(c.head_dim, 4);
    EXPECT_EQ(c.max_position_embeddings, 64);
    EXPECT_EQ(c.rope_theta, 100000.0f);
    EXPECT_EQ(c.rms_norm_eps, 1e-5f);
    EXPECT_TRUE(c.tie_word_embeddings);
    EXPECT_FALSE(c.qkv_bias || c.qk_norm);
    EXPECT_EQ(c.eos_token_ids, std::vector<int>{0});
    EXPECT_EQ(c.bos_token_id, 1);
    EXPECT_EQ(c.pad_token_id, -1);

    std::vector<float> q(64), k(32), v(32);
    gguf_read_parameter(f, c, "model.layers.0.self_attn.q_proj.weight", {8, 8}, q.data());
    gguf_read_parameter(f, c, "model.layers.0.self_attn.k_proj.weight", {4, 8}, k.data());
    gguf_read_parameter(f, c, "model.layers.0.self_attn.v_proj.weight", {4, 8}, v.data());
    const int order[8] = {0, 2, 1, 3, 4, 6, 5, 7};  // the row of the file that becomes row r, two heads of four
    for (int r = 0; r < 8; r++) EXPECT_EQ(q[r * 8 + 7], order[r]);
    for (int r = 0; r < 4; r++) EXPECT_EQ(k[r * 8], order[r]);
    for (int r = 0; r < 4; r++) EXPECT_EQ(v[r * 8], r);  // v has no rotary embedding
    expect_has(error_of([&] { gguf_read_parameter(f, c, "model.norm.weight", {8}, v.data()); }),
               "tensor output_norm.weight (model.norm.weight) is missing");
    expect_has(error_of([&] {
                   gguf_read_parameter(f, c, "model.layers.0.self_attn.v_proj.weight", {8, 4}, v.data());
               }),
               "tensor blk.0.attn_v.weight has shape 4 8, but the metadata ask for 8 4");

    GgufTokenizerParts t = gguf_tokenizer(f);
    EXPECT_EQ(t.model, "gpt2");
    EXPECT_EQ(t.pre, "smollm");
    EXPECT_EQ(t.tokens, (std::vector<std::string>{"<e>", "a", "b", "ab"}));
    EXPECT_EQ(t.token_type, (std::vector<int>{3, 1, 1, 1}));
    EXPECT_EQ(t.merges, (std::vector<std::string>{"a b"}));
    EXPECT_EQ(t.chat_template, "{{ x }}");
    EXPECT_EQ(t.bos_token_id, 1);
    EXPECT_EQ(t.eos_token_id, 0);
    EXPECT_EQ(t.pad_token_id, -1);
    EXPECT_TRUE(t.add_bos);
    EXPECT_FALSE(t.add_space_prefix);

    // the same tensors as qwen2 keep their rows
    GgufBuilder b = small_llama();
    std::string bytes = b.f32s("blk.0.attn_q.bias", {8}, std::vector<float>(8, 0)).bytes();
    for (size_t at = bytes.find("llama"); at != std::string::npos; at = bytes.find("llama"))
        bytes.replace(at, 5, "qwen2");
    std::vector<uint8_t> keep2;
    GgufFile g = gguf_parse_text(bytes, &keep2);
    c = config_from_gguf(g);
    EXPECT_TRUE(c.qkv_bias);
    gguf_read_parameter(g, c, "model.layers.0.self_attn.q_proj.weight", {8, 8}, q.data());
    for (int r = 0; r < 8; r++) EXPECT_EQ(q[r * 8], r);
}

TEST(Gguf, RopeFrequencies) {
    std::vector<float> divisors = golden()["llama3_rope_divisors"];
    ASSERT_EQ(divisors.size(), 32u);
    GgufBuilder base;  // Llama-3.2-1B but for its size
    base.text("general.architecture", "llama").u32("llama.embedding_length", 128).u32("llama.feed_forward_length", 16);
    base.u32("llama.block_count", 1).u32("llama.attention.head_count", 2).u32("llama.context_length", 131072);
    base.f32("llama.rope.freq_base", 500000).f32s("token_embd.weight", {2, 128}, std::vector<float>(256, 0));
    auto config = [&](const std::vector<float>& d) {
        GgufBuilder b = base;
        std::vector<uint8_t> keep;
        GgufFile f = gguf_parse_text(b.f32s("rope_freqs.weight", {d.size()}, d).bytes(), &keep);
        return config_from_gguf(f);
    };
    ModelConfig c = config(divisors);
    EXPECT_EQ(c.rope_scaling, RopeScaling::llama3);
    EXPECT_EQ(c.factor, 32);
    EXPECT_EQ(c.low_freq_factor, 1);
    EXPECT_EQ(c.high_freq_factor, 4);
    EXPECT_EQ(c.original_max_position_embeddings, 8192);
    EXPECT_EQ(c.num_key_value_heads, 2);
    EXPECT_EQ(config(std::vector<float>(32, 1)).rope_scaling, RopeScaling::none);
    std::vector<float> other = divisors;
    other[15] *= 1.01f;
    expect_has(error_of([&] { config(other); }), "is not llama3 scaling");
    other[15] = NAN;
    expect_has(error_of([&] { config(other); }), "is not llama3 scaling");
    expect_has(error_of([&] { config(std::vector<float>(31, 1)); }), "head_dim 64 needs 32");
}

TEST(Gguf, UnsupportedModelsAreRefused) {
    auto what = [](GgufBuilder b) {
        return error_of([&] {
            std::vector<uint8_t> keep;
            GgufFile f = gguf_parse_text(b.bytes(), &keep);
            config_from_gguf(f);
            gguf_tokenizer(f);
        });
    };
    EXPECT_EQ(what(small_llama()), "");
    expect_has(what(GgufBuilder()), "architecture '' is not supported; qwen2, qwen3 and llama are");
    expect_has(what(GgufBuilder().text("general.architecture", "gemma")), "architecture 'gemma'");
    expect_has(what(GgufBuilder().text("general.architecture", "llama")), "key 'llama.embedding_length' is missing");
    expect_has(what(small_llama().u32("llama.attention.key_length", 0)), "'llama.attention.key_length'");
    expect_has(what(small_llama().u32("llama.attention.key_length", 6)), "rope.dimension_count differs");
    expect_has(what(small_llama().u32("llama.attention.value_length", 6)), "value_length differs");
    expect_has(what(small_llama().u32("llama.expert_count", 8)), "experts");
    expect_has(what(small_llama().u32("llama.attention.sliding_window", 32)), "sliding window of 32");
    expect_has(what(small_llama().text("llama.rope.scaling.type", "yarn")), "rope scaling of type 'yarn'");
    expect_has(what(small_llama().f32s("blk.0.attn_q.bias", {8}, std::vector<float>(8))),
               "blk.0.attn_q.bias is a bias");
    expect_has(what(small_llama().f32s("blk.0.attn_output.bias", {8}, std::vector<float>(8))), "attn_output.bias");
    expect_has(what(small_llama().u32("tokenizer.ggml.padding_token_id", 5)), "padding_token_id is 5, outside");
    expect_has(what(small_llama().u32("tokenizer.ggml.padding_token_id", 4)), "padding_token_id is 4, but there are 4");
    GgufBuilder b = small_llama();
    size_t at = b.kv.find("token_type") + 10 + 4 + 4;  // behind the name, its type and the element type
    b.kv = b.kv.substr(0, at) + little(3, 8) + b.kv.substr(at + 8 + 4);
    expect_has(what(b), "4 tokens but 3 token types");
}

// ----------------------------------------------------------------------------------------------------------------
// config.json

static const char* qwen25_json = R"({"architectures":["Qwen2ForCausalLM"],"attention_dropout":0.0,"bos_token_id":151643,
"eos_token_id":151645,"hidden_act":"silu","hidden_size":896,"initializer_range":0.02,"intermediate_size":4864,
"max_position_embeddings":32768,"max_window_layers":21,"model_type":"qwen2","num_attention_heads":14,
"num_hidden_layers":24,"num_key_value_heads":2,"rms_norm_eps":1e-06,"rope_theta":1000000.0,"sliding_window":32768,
"tie_word_embeddings":true,"torch_dtype":"bfloat16","transformers_version":"4.43.1","use_cache":true,
"use_sliding_window":false,"vocab_size":151936})";

static const char* qwen3_json = R"({"architectures":["Qwen3ForCausalLM"],"attention_bias":false,"bos_token_id":null,
"dtype":"float32","eos_token_id":[151645,151643],"head_dim":128,"hidden_act":"silu","hidden_size":1024,
"intermediate_size":3072,"layer_types":["full_attention","full_attention"],"max_position_embeddings":40960,
"model_type":"qwen3","num_attention_heads":16,"num_hidden_layers":28,"num_key_value_heads":8,"pad_token_id":151643,
"rms_norm_eps":1e-06,"rope_parameters":{"rope_theta":1000000,"rope_type":"default"},"sliding_window":null,
"tie_word_embeddings":true,"use_sliding_window":false,"vocab_size":151936})";

static const char* llama32_json = R"({"attention_bias":false,"bos_token_id":128000,"eos_token_id":128001,"head_dim":64,
"hidden_act":"silu","hidden_size":2048,"intermediate_size":8192,"max_position_embeddings":131072,"mlp_bias":false,
"model_type":"llama","num_attention_heads":32,"num_hidden_layers":16,"num_key_value_heads":8,"pretraining_tp":1,
"rms_norm_eps":1e-05,"rope_scaling":{"factor":32.0,"high_freq_factor":4.0,"low_freq_factor":1.0,
"original_max_position_embeddings":8192,"rope_type":"llama3"},"rope_theta":500000.0,"tie_word_embeddings":true,
"torch_dtype":"bfloat16","vocab_size":128256})";

static void expect_same(const ModelConfig& a, const ModelConfig& b) {
    EXPECT_EQ(a.model_type, b.model_type);
    EXPECT_EQ(a.vocab_size, b.vocab_size);
    EXPECT_EQ(a.hidden_size, b.hidden_size);
    EXPECT_EQ(a.intermediate_size, b.intermediate_size);
    EXPECT_EQ(a.num_hidden_layers, b.num_hidden_layers);
    EXPECT_EQ(a.num_attention_heads, b.num_attention_heads);
    EXPECT_EQ(a.num_key_value_heads, b.num_key_value_heads);
    EXPECT_EQ(a.head_dim, b.head_dim);
    EXPECT_EQ(a.max_position_embeddings, b.max_position_embeddings);
    EXPECT_EQ(a.rms_norm_eps, b.rms_norm_eps);
    EXPECT_EQ(a.rope_theta, b.rope_theta);
    EXPECT_EQ(a.tie_word_embeddings, b.tie_word_embeddings);
    EXPECT_EQ(a.qkv_bias, b.qkv_bias);
    EXPECT_EQ(a.qk_norm, b.qk_norm);
    EXPECT_EQ(a.rope_scaling, b.rope_scaling);
    EXPECT_EQ(a.factor, b.factor);
    EXPECT_EQ(a.low_freq_factor, b.low_freq_factor);
    EXPECT_EQ(a.high_freq_factor, b.high_freq_factor);
    EXPECT_EQ(a.original_max_position_embeddings, b.original_max_position_embeddings);
    EXPECT_EQ(a.eos_token_ids, b.eos_token_ids);
    EXPECT_EQ(a.bos_token_id, b.bos_token_id);
    EXPECT_EQ(a.pad_token_id, b.pad_token_id);
    EXPECT_EQ(a.torch_dtype, b.torch_dtype);
}

TEST(HfConfig, ReadsBothDialects) {
    ModelConfig a = config_from_json(qwen25_json, "a"), b = config_from_json(qwen3_json, "b"),
                c = config_from_json(llama32_json, "c");
    EXPECT_EQ(a.head_dim, 64);
    EXPECT_TRUE(a.qkv_bias && !a.qk_norm && a.tie_word_embeddings);
    EXPECT_EQ(a.rope_theta, 1e6f);
    EXPECT_EQ(a.rms_norm_eps, 1e-6f);
    EXPECT_EQ(a.eos_token_ids, std::vector<int>{151645});
    EXPECT_EQ(a.bos_token_id, 151643);
    EXPECT_EQ(a.pad_token_id, -1);
    EXPECT_EQ(a.torch_dtype, "bfloat16");
    EXPECT_EQ(b.head_dim, 128);
    EXPECT_TRUE(!b.qkv_bias && b.qk_norm);
    EXPECT_EQ(b.rope_theta, 1e6f);
    EXPECT_EQ(b.rope_scaling, RopeScaling::none);
    EXPECT_EQ(b.eos_token_ids, (std::vector<int>{151645, 151643}));
    EXPECT_EQ(b.bos_token_id, -1);
    EXPECT_EQ(b.pad_token_id, 151643);
    EXPECT_EQ(b.torch_dtype, "float32");
    EXPECT_EQ(c.rope_scaling, RopeScaling::llama3);
    EXPECT_EQ(c.factor, 32);
    EXPECT_EQ(c.low_freq_factor, 1);
    EXPECT_EQ(c.high_freq_factor, 4);
    EXPECT_EQ(c.original_max_position_embeddings, 8192);
    EXPECT_EQ(c.rope_theta, 500000);

    nlohmann::json five = nlohmann::json::parse(llama32_json);  // the same model in the 5.x dialect
    five["rope_parameters"] = five["rope_scaling"];
    five["rope_parameters"]["rope_theta"] = five["rope_theta"];
    five["dtype"] = five["torch_dtype"];
    for (const char* key : {"rope_scaling", "rope_theta", "torch_dtype"}) five.erase(key);
    expect_same(config_from_json(five.dump(), "five"), c);
}

TEST(HfConfig, RoundTrip) {
    for (const char* text : {qwen25_json, qwen3_json, llama32_json}) {
        ModelConfig c = config_from_json(text, "in");
        std::string out = config_to_json(c);
        expect_same(config_from_json(out, "out"), c);
        nlohmann::json j = nlohmann::json::parse(out), in = nlohmann::json::parse(text);
        EXPECT_EQ(j["rms_norm_eps"], in["rms_norm_eps"]);  // 1e-06, not the float's 9.99999997e-07
        EXPECT_EQ(j["eos_token_id"], in["eos_token_id"]);
        EXPECT_TRUE(j.contains("torch_dtype") && j.contains("rope_theta") && j.contains("rope_scaling"));
        EXPECT_FALSE(j.contains("dtype") || j.contains("rope_parameters"));
    }
    EXPECT_EQ(shortest_decimal(0.1f), 0.1);
    EXPECT_EQ((float)shortest_decimal(1.0f / 3), 1.0f / 3);
}

TEST(HfConfig, LoadAddsTheStopTokensOfGenerationConfig) {
    TempDir dir;
    expect_has(error_of([&] { config_load(dir.path); }), "has no config.json");
    put(dir / "config.json", qwen25_json);
    EXPECT_EQ(config_load(dir.path).eos_token_ids, std::vector<int>{151645});
    put(dir / "generation_config.json", "{\"eos_token_id\":[151645,151643],\"temperature\":0.7}");
    EXPECT_EQ(config_load(dir.path).eos_token_ids, (std::vector<int>{151645, 151643}));
    put(dir / "generation_config.json", "{\"eos_token_id\":999999}");
    expect_has(error_of([&] { config_load(dir.path); }), "generation_config.json: eos_token_id 999999 is outside");
    put(dir / "generation_config.json", "[]");
    expect_has(error_of([&] { config_load(dir.path); }), "not a JSON object");
}

TEST(HfConfig, RefusesWhatItCannotCompute) {
    struct {
        const char *base, *patch, *message;
    } cases[] = {
        // patch: a JSON merge patch; null removes a key
        {qwen25_json, R"({"model_type":null})", "model_type is missing"},
        {qwen25_json, R"({"model_type":"gpt2"})", "model_type 'gpt2' is not supported; qwen2, qwen3 and llama are"},
        {qwen25_json, R"({"model_type":7})", "model_type is not a string"},
        {qwen25_json, R"({"vocab_size":null})", "vocab_size is missing"},
        {qwen25_json, R"({"hidden_size":null})", "hidden_size is missing"},
        {qwen25_json, R"({"intermediate_size":null})", "intermediate_size is missing"},
        {qwen25_json, R"({"num_hidden_layers":null})", "num_hidden_layers is missing"},
        {qwen25_json, R"({"num_attention_heads":null})", "num_attention_heads is missing"},
        {qwen25_json, R"({"max_position_embeddings":null})", "max_position_embeddings is missing"},
        {qwen25_json, R"({"vocab_size":0})", "vocab_size is 0; 1 to 4194304"},
        {qwen25_json, R"({"vocab_size":-5})", "vocab_size is -5"},
        {qwen25_json, R"({"vocab_size":2147483647})", "vocab_size is 2147483647"},
        {qwen25_json, R"({"vocab_size":99999999999})", "vocab_size is not an integer that fits"},
        {qwen25_json, R"({"vocab_size":1.5})", "vocab_size is not an integer"},
        {qwen25_json, R"({"vocab_size":"9"})", "vocab_size is not an integer"},
        {qwen25_json, R"({"hidden_size":1000006})", "hidden_size is 1000006"},
        {qwen25_json, R"({"num_hidden_layers":100000})", "num_hidden_layers is 100000"},
        {qwen25_json, R"({"num_attention_heads":0})", "not a multiple of num_attention_heads 0"},
        {qwen25_json, R"({"num_attention_heads":13})", "hidden_size 896 is not a multiple of num_attention_heads 13"},
        {qwen25_json, R"({"num_key_value_heads":4})",
         "num_attention_heads 14 is not a multiple of num_key_value_heads 4"},
        {qwen25_json, R"({"num_key_value_heads":0})", "num_key_value_heads is 0"},
        {qwen25_json, R"({"head_dim":63})", "head_dim is 63; rotary embeddings need an even one"},
        {qwen25_json, R"({"head_dim":0})", "head_dim is 0"},
        {qwen25_json, R"({"rms_norm_eps":0})", "rms_norm_eps is 0"},
        {qwen25_json, R"({"rms_norm_eps":"x"})", "rms_norm_eps is not a number"},
        {qwen25_json, R"({"rope_theta":0.5})", "rope_theta is 0.5"},
        {qwen25_json, R"({"hidden_act":"gelu"})", "hidden_act is 'gelu'; only silu"},
        {qwen25_json, R"({"use_sliding_window":true})", "use_sliding_window is true"},
        {qwen25_json, R"({"use_sliding_window":1})", "use_sliding_window is neither true nor false"},
        {qwen25_json, R"({"layer_types":["full_attention","sliding_attention"]})", "layer_types"},
        {qwen25_json, R"({"eos_token_id":151936})", "eos_token_id 151936 is outside the vocabulary of 151936"},
        {qwen25_json, R"({"eos_token_id":[-1]})", "eos_token_id -1 is outside"},
        {qwen25_json, R"({"eos_token_id":{"a":1}})", "eos_token_id is not an integer"},
        {qwen25_json, R"({"pad_token_id":200000})", "token id 200000 is outside"},
        {qwen25_json, R"({"rope_scaling":{"type":"linear","factor":2}})", "rope scaling of type 'linear'"},
        {qwen25_json, R"({"rope_scaling":{"rope_type":"yarn","factor":4.0}})", "type 'yarn' is not supported"},
        {qwen25_json, R"({"rope_scaling":7})", "rope_scaling is not an object"},
        {qwen25_json, R"({"partial_rotary_factor":0.5})", "partial_rotary_factor is not 1"},
        {qwen3_json, R"({"rope_parameters":{"partial_rotary_factor":0.25}})", "partial_rotary_factor is not 1"},
        {qwen3_json, R"({"rope_parameters":{"full_attention":{"rope_type":"default"}}})", "between layer types"},
        {qwen3_json, R"({"attention_bias":true})", "attention_bias puts a bias on o_proj"},
        {llama32_json, R"({"attention_bias":true})", "attention_bias puts a bias on o_proj"},
        {llama32_json, R"({"mlp_bias":true})", "mlp_bias is true"},
        {llama32_json, R"({"rope_scaling":{"factor":null}})", "rope_scaling of type llama3 lacks factor"},
        {llama32_json, R"({"rope_scaling":{"factor":0.5}})", "llama3 rope scaling needs factor >= 1"},
        {llama32_json, R"({"rope_scaling":{"low_freq_factor":4.0}})", "low_freq_factor < high_freq_factor"},
        {llama32_json, R"({"rope_scaling":{"original_max_position_embeddings":-1}})", "llama3 rope scaling needs"},
    };
    for (auto& c : cases) {
        nlohmann::json j = nlohmann::json::parse(c.base);
        j.merge_patch(nlohmann::json::parse(c.patch));
        std::string what = error_of([&] { config_from_json(j.dump(), "dir/config.json"); });
        EXPECT_NE(what.find(c.message), std::string::npos) << c.patch << ": " << what;
        EXPECT_EQ(what.find("dir/config.json: "), 0u) << what;
    }
    expect_has(error_of([] { config_from_json("[1]", "x"); }), "x: not a JSON object");
    expect_has(error_of([] { config_from_json("{\"a\"", "x"); }), "x: not valid JSON");
    nlohmann::json harmless = nlohmann::json::parse(qwen25_json);
    harmless.merge_patch(nlohmann::json::parse(R"({"attention_bias":true,"rope_scaling":{"type":"default"}})"));
    EXPECT_EQ(config_from_json(harmless.dump(), "x").rope_theta, 1e6f);  // qwen2 has its biases either way
}
