// The run's folder: what is refused, what is replaced, that a full disk leaves whole lines; stopping; short numbers.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <filesystem>
#include <fstream>
#include <limits>
#include <set>
#include <vector>
#include "../runtime/run_dir.h"
#include "../runtime/stop.h"

namespace fs = std::filesystem;
typedef nlohmann::ordered_json json;

struct TempFolder {
    std::string path;
    TempFolder() {
        path = (fs::temp_directory_path() / format("test_run_dir_%ld", (long)getpid())).string();
        fs::remove_all(path);
        fs::create_directories(path);
    }
    ~TempFolder() { fs::remove_all(path); }
};

template <typename Call>
static std::string error_of(Call call) {
    try {
        call();
    } catch (const Error& e) {
        EXPECT_EQ(e.exit_code, 1) << e.what();
        EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos) << e.what();
        return e.what();
    }
    return "";
}

TEST(RunDir, WritesWhatItPromises) {
    TempFolder t;
    std::string path = t.path + "/a/b";  // parents are made
    RunDir run = open_run_dir(path, {false, true}, json{{"seed", 1}});
    double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
    log_metrics(run, json{{"step", 1}, {"loss", nan}, {"a", -inf}, {"b", 0.5}});
    EXPECT_EQ(read_file(path + "/metrics.jsonl"),
              "{\"step\":1,\"loss\":null,\"a\":null,\"b\":0.5}\n");  // at once, in order
    log_completion(run, json{{"completion", "a\n\xC3\xA9\xC3"}});    // cut inside a character
    EXPECT_EQ(read_file(path + "/completions.jsonl"), "{\"completion\":\"a\\n\xC3\xA9\xEF\xBF\xBD\"}\n");
    EXPECT_FALSE(fs::exists(path + "/summary.json"));
    close_run_dir(run, json{{"steps", 1}});
    EXPECT_EQ(json::parse(read_file(path + "/summary.json")), (json{{"steps", 1}}));
    EXPECT_EQ(json::parse(read_file(path + "/config.json")), (json{{"seed", 1}}));
    int files = 0;
    for (const auto& entry : fs::directory_iterator(path)) files += entry.is_regular_file();
    EXPECT_EQ(files, 6);  // with the lock and the mark, and nothing temporary
}

TEST(RunDir, CompletionsAreOptional) {
    TempFolder t;
    RunDir run = open_run_dir(t.path, {false, false}, json::object());
    log_completion(run, json{{"x", 1}});
    close_run_dir(run, json::object());
    EXPECT_FALSE(fs::exists(t.path + "/completions.jsonl"));
}

TEST(RunDir, RefusesAnotherRun) {
    TempFolder t;
    std::ofstream(t.path + "/notes.txt") << "mine";
    {
        RunDir run = open_run_dir(t.path, {false, true}, json{{"run", 1}});
        log_metrics(run, json{{"step", 1}});
    }
    std::string e = error_of([&] { open_run_dir(t.path, {false, true}, json{{"run", 2}}); });
    EXPECT_NE(e.find("already holds a run"), std::string::npos) << e;
    EXPECT_NE(e.find("--overwrite_output_dir"), std::string::npos) << e;
    EXPECT_EQ(json::parse(read_file(t.path + "/config.json"))["run"], 1);  // untouched
    fs::create_directory(t.path + "/checkpoint-5");
    RunDir run = open_run_dir(t.path, {true, true}, json{{"run", 2}});
    EXPECT_EQ(read_file(t.path + "/metrics.jsonl"), "");
    EXPECT_EQ(json::parse(read_file(t.path + "/config.json"))["run"], 2);
    EXPECT_TRUE(fs::exists(t.path + "/checkpoint-5"));
    EXPECT_TRUE(fs::exists(t.path + "/notes.txt"));
    TempFolder other;  // a checkpoint alone is a run, too
    fs::create_directory(other.path + "/checkpoint-5");
    EXPECT_NE(error_of([&] {
                  open_run_dir(other.path, {false, true}, json::object());
              }).find("checkpoint-5"),
              std::string::npos);
}

TEST(RunDir, GoesOnBehindAStep) {
    TempFolder t;
    std::ofstream(t.path + "/config.json") << "{}";
    std::ofstream(t.path + "/summary.json") << "{}";
    std::ofstream(t.path + "/metrics.jsonl") << "{\"step\":1}\n{\"step\":2}\n{\"step\":4}\n{\"step\":5";
    std::ofstream(t.path + "/completions.jsonl") << "{\"step\":2,\"x\":1}\n{\"step\":2,\"x\":2}\n{\"step\":3}\n";
    RunDirSetting setting;
    setting.completions = true, setting.resume_step = 2;
    {
        RunDir run = open_run_dir(t.path, setting, json{{"run", 2}});
        EXPECT_EQ(read_file(t.path + "/metrics.jsonl"), "{\"step\":1}\n{\"step\":2}\n");
        EXPECT_EQ(read_file(t.path + "/completions.jsonl"), "{\"step\":2,\"x\":1}\n{\"step\":2,\"x\":2}\n");
        EXPECT_FALSE(fs::exists(t.path + "/summary.json"));
        log_metrics(run, json{{"step", 3}});
    }
    setting.resume_step = 7;  // a torn line is no line
    std::ofstream(t.path + "/metrics.jsonl", std::ios::app) << "{\"step\":4";
    open_run_dir(t.path, setting, json{{"run", 2}});
    EXPECT_EQ(read_file(t.path + "/metrics.jsonl"), "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n");
    std::ofstream(t.path + "/metrics.jsonl") << "loss 3\n";
    EXPECT_NE(error_of([&] { open_run_dir(t.path, setting, json::object()); }).find("has no step"), std::string::npos);
}

TEST(Folders, AppearWholeAndAreRepaired) {
    TempFolder t;
    const std::string dir = t.path + "/m";
    auto write = [](const std::string& text) {
        return [text](const std::string& to) { std::ofstream(to + "/x") << text; };
    };
    replace_folder(dir, write("1"));
    replace_folder(dir, write("2"));
    EXPECT_EQ(read_file(dir + "/x"), "2");
    EXPECT_THROW(replace_folder(dir, [](const std::string&) { fail("full"); }), Error);
    EXPECT_EQ(read_file(dir + "/x"), "2");
    // a death between two renames
    fs::rename(dir, dir + ".train_qrl-old");
    fs::create_directories(dir + ".train_qrl-new");
    fs::create_directories(t.path + "/other.train_qrl-gone");
    fs::create_directories(t.path + "/mine.old");
    repair_folders(t.path);
    EXPECT_EQ(read_file(dir + "/x"), "2");
    discard_folder(dir);
    discard_folder(dir);  // there is none
    std::set<std::string> left;
    for (const auto& entry : fs::directory_iterator(t.path)) left.insert(entry.path().filename());
    EXPECT_EQ(left, std::set<std::string>{"mine.old"});
}

TEST(Folders, ReplaceOnlyWhatWasWrittenThere) {
    TempFolder t;
    const std::string dir = t.path + "/m";
    auto write = [](const std::string& to) {
        fs::create_directory(to + "/sub");
        std::ofstream(to + "/sub/x") << "1";
    };
    fs::create_directory(dir);
    replace_folder(dir, write);  // an empty one holds nothing
    replace_folder(dir, write);
    std::ofstream(dir + "/sub/notes.txt") << "mine";
    for (const std::string& e :
         {error_of([&] { replace_folder(dir, write); }), error_of([&] { check_replaceable(dir); })}) {
        EXPECT_NE(e.find(dir + " holds 'sub/notes.txt', which this program did not write there"), std::string::npos)
            << e;
    }
    EXPECT_EQ(discard_folder(dir), "sub/notes.txt");
    EXPECT_EQ(read_file(dir + "/sub/notes.txt"), "mine");
    EXPECT_FALSE(fs::exists(dir + FOLDER_NEW));
    fs::remove(dir + "/sub/notes.txt");
    fs::create_directory(dir + "/empty");  // of somebody else, too
    EXPECT_EQ(discard_folder(dir), "empty/");
    fs::remove(dir + "/empty");
    EXPECT_EQ(discard_folder(dir), "");
    EXPECT_FALSE(fs::exists(dir));
    // another's folder, and one of a run
    fs::create_directory(dir);
    std::ofstream(dir + "/x") << "mine";
    EXPECT_NE(error_of([&] { replace_folder(dir, write); }).find("did not write"), std::string::npos);
    mark_written(dir, WrittenKind::run, {"x"});
    EXPECT_NE(error_of([&] { replace_folder(dir, write); }).find("did not write"), std::string::npos);
    EXPECT_EQ(read_file(dir + "/x"), "mine");
}

TEST(Folders, OneProcessWritesIt) {
    TempFolder t;
    const std::string dir = t.path + "/m";
    std::string e;
    replace_folder(dir, [&](const std::string& to) {
        std::ofstream(to + "/x") << "first";
        e = error_of([&] { replace_folder(dir, [](const std::string&) {}); });
    });
    EXPECT_NE(e.find("another process is writing " + dir), std::string::npos) << e;
    EXPECT_EQ(read_file(dir + "/x"), "first");
}

TEST(Folders, WrittenBehindLinks) {
    TempFolder t;
    const std::string real = t.path + "/real", link = t.path + "/link", broken = t.path + "/broken";
    fs::create_directories(t.path + "/disk");
    fs::create_directory_symlink("real", link);  // relative to where it stands
    fs::create_directory_symlink(t.path + "/disk/none", broken);
    auto write = [](const std::string& to) { std::ofstream(to + "/x") << "1"; };
    fs::create_directory(real);
    replace_folder(link, write);
    replace_folder(link, write);
    replace_folder(broken, write);
    write_file_atomic(link + "/x", "2");
    EXPECT_TRUE(fs::is_symlink(link) && fs::is_symlink(broken));
    EXPECT_EQ(read_file(real + "/x"), "2");
    EXPECT_EQ(read_file(t.path + "/disk/none/x"), "1");
    fs::create_symlink("real/x", t.path + "/file");
    write_file_atomic(t.path + "/file", "3");
    EXPECT_TRUE(fs::is_symlink(t.path + "/file"));
    EXPECT_EQ(read_file(real + "/x"), "3");
    // a link within a folder is deleted, not what it points to
    fs::create_directory_symlink(t.path + "/disk", real + "/sub");
    mark_written(real, WrittenKind::model, {"x", "sub"});
    EXPECT_EQ(discard_folder(real), "");
    EXPECT_TRUE(fs::exists(t.path + "/disk/none/x"));
    fs::create_symlink("round", t.path + "/round");
    EXPECT_NE(error_of([&] { behind_links(t.path + "/round"); }).find("too many symbolic links"), std::string::npos);
}

TEST(RunDir, ReplacesOnlyWhatARunWrote) {
    TempFolder t;
    std::ofstream(t.path + "/config.json") << "{}";  // a model's
    const std::string e = error_of([&] { open_run_dir(t.path, {true}, json::object()); });
    EXPECT_NE(e.find("/config.json was not written by a run of this program"), std::string::npos) << e;
    EXPECT_EQ(read_file(t.path + "/config.json"), "{}");
    TempFolder other;
    { RunDir run = open_run_dir(other.path, {}, json::object()); }
    fs::create_directory(other.path + "/checkpoint-7");
    std::ofstream(other.path + "/checkpoint-7/mine") << "mine";
    EXPECT_NE(error_of([&] { open_run_dir(other.path, {true}, json::object()); }).find("checkpoint-7 holds 'mine'"),
              std::string::npos);
    fs::remove(other.path + "/checkpoint-7/mine");
    fs::create_directory(other.path + "/checkpoint-7-merged");  // of an adapter's checkpoint
    std::ofstream(other.path + "/checkpoint-7-merged/mine") << "mine";
    EXPECT_NE(error_of([&] { open_run_dir(other.path, {true}, json::object()); }).find("7-merged holds 'mine'"),
              std::string::npos);
    fs::remove_all(other.path + "/checkpoint-7");
    std::ofstream(other.path + "/summary.json.train_qrl-new.4711") << "torn";  // of a killed process
    open_run_dir(other.path, {true}, json::object());
    EXPECT_FALSE(fs::exists(other.path + "/summary.json.train_qrl-new.4711"));
}

TEST(Folders, CheckpointsByNumber) {
    TempFolder t;
    for (const char* name : {"checkpoint-12", "checkpoint-3", "checkpoint-3-merged", "checkpoint-", "checkpoint-x",
                             "checkpoint-99999999999999999999"})
        fs::create_directories(t.path + "/" + name);
    std::ofstream(t.path + "/checkpoint-5") << "a file";
    EXPECT_EQ(checkpoint_steps(t.path), (std::vector<int64_t>{3, 12}));
}

TEST(Folders, AreLockedOnce) {
    TempFolder t;
    {
        FolderLock lock(t.path);
        EXPECT_NE(error_of([&] { FolderLock again(t.path); }).find("another run"), std::string::npos);
    }
    FolderLock after(t.path);
}

TEST(RunDir, RefusesWhatIsNoFolder) {
    TempFolder t;
    std::ofstream(t.path + "/file") << "x";
    for (const char* name : {"/file", "/file/below"}) {
        std::string e = error_of([&] { open_run_dir(t.path + name, {true, true}, json::object()); });
        EXPECT_NE(e.find("/file is a file"), std::string::npos) << e;
    }
    EXPECT_NE(error_of([&] { open_run_dir("", {false, true}, json::object()); }), "");
    EXPECT_NE(error_of([&] { open_run_dir("/proc/no/such", {false, true}, json::object()); }), "");
    EXPECT_EQ(read_file(t.path + "/file"), "x");
}

TEST(RunDir, AFullDiskLeavesWholeLines) {
    TempFolder t;
    RunDir run = open_run_dir(t.path, {false, true}, json::object());
    log_metrics(run, json{{"step", 1}});
    install_stop_handler();  // ignores SIGXFSZ
    struct rlimit old, small;
    ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old), 0);
    small = old;
    small.rlim_cur = 20;  // room for one line and half of the next
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
    std::string e = error_of([&] { log_metrics(run, json{{"step", 2}, {"loss", 0.5}}); });
    std::string late = error_of([&] { close_run_dir(run, json{{"text", std::string(100, 'x')}}); });
    setrlimit(RLIMIT_FSIZE, &old);
    EXPECT_NE(e.find("metrics.jsonl"), std::string::npos) << e;
    EXPECT_EQ(read_file(t.path + "/metrics.jsonl"), "{\"step\":1}\n");
    EXPECT_NE(late.find("summary.json"), std::string::npos) << late;
    EXPECT_FALSE(fs::exists(t.path + "/summary.json"));
}

TEST(StopDeathTest, TheFirstSignalAsksTheSecondLeaves) {
    // which starts the binary again, without what it was started by
    testing::FLAGS_gtest_death_test_style = getenv("LAUNCHER") ? "fast" : "threadsafe";
    EXPECT_EXIT(
        {
            for (int s : {SIGINT, SIGTERM}) signal(s, SIG_DFL);  // whatever this test was started from
            install_stop_handler();
            if (stop_requested()) _exit(1);
            raise(SIGTERM);
            if (!stop_requested() || stop_exit_code() != 143) _exit(2);
            raise(SIGINT);
            _exit(3);
        },
        testing::ExitedWithCode(130), "stopping; once more");
}

TEST(StopDeathTest, AnIgnoredSignalStaysIgnored) {
    EXPECT_EXIT(
        {
            signal(SIGINT, SIG_IGN);
            install_stop_handler();
            raise(SIGINT);
            _exit(stop_requested() ? 1 : 42);
        },
        testing::ExitedWithCode(42), "");
}

TEST(Measures, AreSane) {
    double a = wall_seconds();
    std::vector<char> block(64u << 20, 1);
    asm volatile("" : : "r"(block.data()) : "memory");  // clang leaves out what nobody reads
    EXPECT_GE(peak_rss_bytes(), block.size());
    EXPECT_LT(peak_rss_bytes(), (size_t)1 << 40);
    EXPECT_GT(wall_seconds(), a);
}

TEST(Measures, HumanCount) {
    struct {
        double v;
        const char* text;
    } cases[] = {
        {0, "0"},          {0.25, "0.25"},      {1, "1"},
        {950, "950"},      {999.4, "999"},      {999.6, "1.0k"},
        {1000, "1.0k"},    {999949, "999.9k"},  {999999, "1.0M"},
        {1234567, "1.2M"}, {-1234567, "-1.2M"}, {7.6e9, "7.6G"},
        {1e18, "1.0e+18"}, {1.5e15, "1.5P"},    {INFINITY, "inf"},
    };
    for (const auto& c : cases) EXPECT_EQ(human_count(c.v), c.text);
}
