// Files: atomic writing, safetensors and config.json. Round trips, golden vectors, and files made to do harm.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <cmath>
#include "../formats/hf_config.h"
#include "../formats/safetensors.h"
#include "../runtime/file_io.h"
#include "../runtime/rng.h"
#include "file_test.h"
#include "safetensors_test.h"

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

// ----------------------------------------------------------------------------------------------------------------
// safetensors

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
        {"name with escapes", st_bytes("{\"a\\n\\u001b[2J\":1}", ""), "tensor 'a\\n\\x1B[2J'"},
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
        {qwen25_json, R"({"use_sliding_window":true,"sliding_window":32767})", "sliding window"},  // layers 21 to 23
        {qwen25_json, R"({"use_sliding_window":true,"sliding_window":"x"})", "sliding_window is not an integer"},
        {qwen3_json, R"({"use_sliding_window":true,"layer_types":["full_attention","sliding_attention"],
            "sliding_window":4096})",
         "sliding window"},
        {qwen25_json, R"({"layer_types":"full_attention"})", "layer_types is not a list"},
        {qwen25_json, R"({"layer_types":["full_attention","linear_attention"]})", "layer_types holds another type"},
        {qwen25_json, R"({"use_sliding_window":1})", "use_sliding_window is neither true nor false"},
        {qwen25_json, R"({"layer_types":["full_attention","sliding_attention"]})", "layer_types"},  // of what length?
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
    nlohmann::json absent = nlohmann::json::parse(qwen25_json);
    // a window of 4096, but in no layer
    absent.erase("sliding_window"), absent.erase("max_window_layers"), absent["use_sliding_window"] = true;
    EXPECT_NO_THROW(config_from_json(absent.dump(), "x"));
    absent["num_hidden_layers"] = 29;
    expect_has(error_of([&] { config_from_json(absent.dump(), "x"); }), "sliding window");
    absent["sliding_window"] = nullptr;
    EXPECT_NO_THROW(config_from_json(absent.dump(), "x"));
}

TEST(HfConfig, AcceptsOtherWordsForWhatItComputes) {
    const std::pair<const char*, const char*> cases[] = {
        {qwen25_json, R"({"hidden_act":"swish"})"},
        {qwen25_json, R"({"use_sliding_window":true})"},  // 32768 tokens of 32768
        {qwen25_json, R"({"use_sliding_window":true,"sliding_window":4096,"max_window_layers":24})"},
        {qwen25_json, R"({"use_sliding_window":true,"sliding_window":4096,"layer_types":["full_attention"]})"},
        {qwen25_json, R"({"use_sliding_window":true,"layer_types":["full_attention","sliding_attention"]})"},
        {qwen3_json, R"({"use_sliding_window":true,"layer_types":["full_attention"]})"},
    };
    for (const auto& [base, patch] : cases) {
        nlohmann::json j = nlohmann::json::parse(base), plain = j;
        j.merge_patch(nlohmann::json::parse(patch));
        SCOPED_TRACE(patch);
        expect_same(config_from_json(j.dump(), "x"), config_from_json(plain.dump(), "x"));
    }
}
