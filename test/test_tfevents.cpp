// TensorBoard event files: byte for byte what TensorBoard's own messages and writer give, and read back by a parser of
// their own; what a run that goes on keeps of them. With TensorBoard's own reader: test/check_events.py.
#include <limits>
#include <set>
#include "../formats/tfevents.h"
#include "file_test.h"
#include "tfevents_reader.h"

typedef nlohmann::ordered_json json;

// ---------------------------------------------------------------------------------------------------------------------
// checksums, numbers, messages

TEST(Tfevents, Crc32cOfTheRfc) {  // RFC 3720, appendix B.4, and the check value of the CRC catalogues
    std::string up, down;
    for (int i = 0; i < 32; i++) up += (char)i, down += (char)(31 - i);
    const std::string zeros(32, '\0'), ones(32, '\xFF');
    const std::string read = little(0xC001, 2) + std::string(14, '\0') +
                             std::string("\x14\0\0\0\0\0\4\0\0\0\0\x14\0\0\0\x18", 16) +
                             std::string("\x28\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0", 16);  // an iSCSI read command
    for (const auto& [text, crc] : std::initializer_list<std::pair<std::string, uint32_t>>{{zeros, 0x8A9136AA},
                                                                                           {ones, 0x62A8AB43},
                                                                                           {up, 0x46DD794E},
                                                                                           {down, 0x113FDB5C},
                                                                                           {read, 0xD9963A56},
                                                                                           {"123456789", 0xE3069283},
                                                                                           {"", 0}})
        EXPECT_EQ(crc32c(text.data(), text.size()), crc) << text.size();
}

static std::string varint(uint64_t v) {
    std::string s;
    pb_varint(s, v);
    return s;
}

TEST(Tfevents, VarintsAtTheirEdges) {
    EXPECT_EQ(varint(0), std::string(1, '\0'));
    EXPECT_EQ(varint(127), "\x7F");
    EXPECT_EQ(varint(128), "\x80\x01");
    EXPECT_EQ(varint(16383), "\xFF\x7F");
    EXPECT_EQ(varint(16384), "\x80\x80\x01");
    EXPECT_EQ(varint(~0ull), std::string(9, '\xFF') + "\x01");
    for (int shift = 0; shift < 64; shift++)
        for (uint64_t v : {(1ull << shift) - 1, 1ull << shift, ~(1ull << shift)}) {
            const std::string s = varint(v);
            uint64_t at = 0, back = 0;
            EXPECT_TRUE(pb_get_varint((const uint8_t*)s.data(), s.size(), &at, &back));
            EXPECT_EQ(back, v);
            EXPECT_EQ(at, s.size());
            at = 0;  // cut short
            EXPECT_FALSE(pb_get_varint((const uint8_t*)s.data(), s.size() - 1, &at, &back));
        }
    uint64_t at = 0, v = 0;
    const std::string endless(20, '\x80');
    EXPECT_FALSE(pb_get_varint((const uint8_t*)endless.data(), endless.size(), &at, &v));
}

static constexpr double WALL = 1700000000.25;

TEST(Tfevents, BytesOfTensorBoardsOwnWriter) {  // test/make_golden_events.py, the same events in the same order
    const std::string path = "test/golden/events.tfevents";
    const std::string golden = read_file(path);
    const std::string events[] = {
        event_version(WALL),
        event_session(WALL, 0, SessionStatus::start),
        event_hparams_start(WALL, 0, {{"learning_rate", 3e-4}}),
        event_text(WALL, 0, "configuration", "| a | b |\n| --- | --- |\n| \xC3\xA9 | `x|y` |\n"),
        event_scalars(WALL, 1, {{"loss", 0.1}, {"rewards/exact/mean", 0}, {"num_tokens", 1000000000}}),
        event_scalars(WALL, 300, {{"reward a/b c:\xC3\xA9\"\n", -1.5e-42}}),
        event_session(WALL, 300, SessionStatus::checkpoint, "out/checkpoint-300"),
        event_hparams_end(WALL, 1ll << 40)};
    std::string all;
    for (const std::string& event : events) {
        const std::string record = tfrecord(event);
        EXPECT_EQ(golden.substr(all.size(), record.size()), record) << "at byte " << all.size();
        all += record;
    }
    EXPECT_EQ(golden.size(), all.size());

    const std::vector<EventRecord> records = event_records(path);
    ASSERT_EQ(records.size(), 8u);
    const int64_t steps[] = {0, 0, 0, 0, 1, 300, 300, 1ll << 40};
    for (int i = 0; i < 8; i++) {
        EXPECT_EQ(records[i].step, steps[i]);
        EXPECT_EQ(records[i].status, i == 1   ? SessionStatus::start
                                     : i == 6 ? SessionStatus::checkpoint
                                              : SessionStatus::none);
    }
    EXPECT_EQ(records[7].end, golden.size());
}

TEST(Tfevents, EachNumberIsAPoint) {
    const float inf = std::numeric_limits<float>::infinity();
    const json j = {{"step", 7},      {"loss", -0.25},        {"zero", 0},   {"big", 3e38},       {"beyond", 1e39},
                    {"nan", NAN},     {"infinite", -inf},     {"no", false}, {"text", "1"},       {"null", nullptr},
                    {"list", {1, 2}}, {"nested", {{"a", 1}}}, {"", 1},       {"bad \xFF/byte", 2}};
    const std::vector<EventPoint> points = event_points(event_scalars(WALL, 7, j));
    const std::vector<EventPoint> expected = {{7, "loss", -0.25f, "", ""},
                                              {7, "zero", 0.0f, "", ""},
                                              {7, "big", 3e38f, "", ""},
                                              {7, "", 1.0f, "", ""},
                                              {7, "bad \xEF\xBF\xBD/byte", 2.0f, "", ""}};
    EXPECT_EQ(points, expected);
    EXPECT_EQ(event_scalars(WALL, 7, {{"step", 7}, {"nan", NAN}}), "");
    EXPECT_EQ(event_points(event_scalars(WALL, 0, {{"a", 1}}))[0].step, 0);
}

TEST(Tfevents, ATextIsATensorOfTheTextPlugin) {
    const std::vector<EventPoint> points = event_points(event_text(WALL, 3, "samples", "a\n\xE2\x82"));  // cut short
    EXPECT_EQ(points, (std::vector<EventPoint>{{3, "samples", 0.0f, "a\n\xEF\xBF\xBD", "text"}}));
}

// ---------------------------------------------------------------------------------------------------------------------
// a run that goes on

static RunDir begin_run(const std::string& path, int64_t resume_step = -1, bool again = false, bool events = true) {
    RunDirSetting setting;
    setting.resume_step = resume_step, setting.events = events, setting.overwrite = true;
    RunDir run = open_run_dir(path, setting, json::object());
    begin_events(run, resume_step, again);
    return run;
}

static void log_steps(RunDir& run, int64_t from, int64_t to) {
    for (int64_t step = from; step <= to; step++) log_event_scalars(run, step, {{"loss", (double)step}});
}

// the steps of "loss", and of other tags with their names
static std::string steps_in(const std::string& folder) {
    std::string text;
    for (const EventPoint& p : event_points_in(folder))
        text += format(" %lld%s", (long long)p.step, p.tag == "loss" ? "" : p.tag.c_str());
    return text;
}

TEST(Tfevents, WhatIsBehindTheCheckpointIsCut) {
    TempDir t;
    {
        RunDir run = begin_run(t.path);
        log_event_scalars(run, 0, {{"eval", 1}});
        log_steps(run, 1, 4);
        log_event_checkpoint(run, 4, "x");
        log_event_scalars(run, 4, {{"eval", 2}});  // after the last step, as it seemed
        log_steps(run, 5, 6);
    }
    const std::string first = event_files(t.path)[0];
    {  // a death in the middle of a record, as after a power loss
        std::ofstream file(t / first, std::ios::app | std::ios::binary);
        file << tfrecord(event_scalars(WALL, 7, {{"loss", 7}})).substr(0, 30);
    }
    {
        RunDir run = begin_run(t.path, 4);
        EXPECT_EQ(steps_in(t.path), " 0eval 1 2 3 4");
        log_steps(run, 5, 5);
    }
    const std::vector<std::string> two = event_files(t.path);
    ASSERT_EQ(two.size(), 2u);
    EXPECT_EQ(two[0], first);
    EXPECT_EQ(steps_in(t.path), " 0eval 1 2 3 4 5");
    // it begins with the version and START, which says from which step on TensorBoard is to forget
    const std::vector<EventRecord> records = event_records(t / two[1]);
    EXPECT_EQ(records[1].status, SessionStatus::start);
    EXPECT_EQ(records[1].step, 5);
    EXPECT_EQ(event_fields(read_file(t / two[1]).substr(12, 24)).find(3)->second, "brain.Event:2");
    {  // from the same checkpoint once more: the second file is of no use
        RunDir run = begin_run(t.path, 4);
        EXPECT_EQ(steps_in(t.path), " 0eval 1 2 3 4");
        EXPECT_EQ(event_files(t.path).size(), 2u);
        log_steps(run, 5, 8);
        log_event_checkpoint(run, 8, "x");
        log_steps(run, 9, 9);
    }
    {  // which then gets a checkpoint of its own; nothing is reported from there on, but that behind it is cut
        RunDir run = begin_run(t.path, 8, false, false);
        log_steps(run, 9, 9);
    }
    EXPECT_EQ(steps_in(t.path), " 0eval 1 2 3 4 5 6 7 8");
}

TEST(Tfevents, NumbersThatComeAgainAreCut) {
    TempDir t;
    {
        RunDir run = begin_run(t.path);
        log_steps(run, 1, 3);
        log_event_scalars(run, 4, {{"flips", 1}});
        log_event_checkpoint(run, 4, "x");  // stopped before the numbers of the step were logged
        log_steps(run, 4, 4);
        log_event_checkpoint(run, 4, "x");  // the death that comes here leaves the checkpoint that was there
    }
    {
        RunDir run = begin_run(t.path, 4, true);
        EXPECT_EQ(steps_in(t.path), " 1 2 3 4flips");
        EXPECT_EQ(event_records(t / run.events_name)[1].step, 4);
        log_steps(run, 4, 4);
        log_event_checkpoint(run, 4, "x");
        log_steps(run, 5, 5);
    }
    begin_run(t.path, 4);  // and this is of the second
    EXPECT_EQ(steps_in(t.path), " 1 2 3 4flips 4");
}

TEST(Tfevents, WithoutTheCheckpointsRecordTheStepCounts) {
    TempDir t;
    {
        RunDir run = begin_run(t.path);
        log_steps(run, 1, 6);
    }
    begin_run(t.path, 4);
    EXPECT_EQ(steps_in(t.path), " 1 2 3 4");
    // a byte that is wrong: no reader comes beyond it
    const std::string name = event_files(t.path)[0];
    std::string bytes = read_file(t / name);
    bytes[event_records(t / name)[3].end + 14] ^= 1;
    put(t / name, bytes);
    begin_run(t.path, 4);
    EXPECT_EQ(steps_in(t.path), " 1 2");
}

TEST(Tfevents, FilesThatAreNotOurs) {
    TempDir t;
    { RunDir run = begin_run(t.path); }
    const std::string own = event_files(t.path)[0], other = "events.out.tfevents.0000000001.train_qrl";
    put(t / other, "mine");
    put(t / "events.out.tfevents.1700000000.host.1.0", "mine, too");
    fs::create_symlink("nowhere", t / "events.out.tfevents.0000000002.train_qrl");
    EXPECT_EQ(event_files(t.path).size(), 2u);
    { RunDir run = begin_run(t.path, 0); }  // cuts what is its own, and nothing else
    EXPECT_EQ(read_file(t / other), "mine");
    expect_has(error_of([&] { begin_run(t.path); }), other + " was not written by a run of this program");
    fs::remove(t / other);
    { RunDir run = begin_run(t.path); }
    const std::vector<std::string> left = event_files(t.path);
    ASSERT_EQ(left.size(), 1u);
    EXPECT_GT(left[0], own);  // a TensorBoard that is running has the old one open
    EXPECT_EQ(read_file(t / "events.out.tfevents.1700000000.host.1.0"), "mine, too");
    EXPECT_EQ(run_in_folder(t.path), "config.json");
    for (const char* name : run_dir_files) fs::remove(t / name);
    EXPECT_EQ(run_in_folder(t.path), left[0]);
}

// how many there are in these bytes, which end where their block of memory does
static size_t records_in(const std::string& bytes) {
    const std::vector<uint8_t> exact(bytes.begin(), bytes.end());
    return event_records(exact.data(), exact.size()).size();
}

TEST(Tfevents, DamagedBytesAreRead) {
    const std::string golden = read_file("test/golden/events.tfevents");
    const size_t whole = records_in(golden);
    for (size_t i = 0; i < golden.size(); i++) {
        std::string bytes = golden;
        bytes[i] ^= 0x80;
        EXPECT_LT(records_in(bytes), whole) << i;
        EXPECT_LT(records_in(golden.substr(0, i)), whole) << i;
    }
    // with the right checksums, as nobody writes them
    for (size_t i = 0; i < 4000; i++) {
        std::string message = event_session(WALL, 300, SessionStatus::checkpoint, "out");
        message[i % message.size()] = (char)(i * 37);
        EXPECT_LE(records_in(tfrecord(message)), 1u);
    }
    const std::string length = little(~0ull, 8);
    EXPECT_EQ(records_in(length + little(masked_crc32c(length.data(), 8), 4) + "1234567890"), 0u);
    EXPECT_EQ(records_in(""), 0u);
}
