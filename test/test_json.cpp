// Tests of runtime/json.h, the reader of all JSON from outside, and of runtime/printable.h.
#include "../runtime/json.h"
#include "file_test.h"

template <class J>
class JsonReader : public testing::Test {};
typedef testing::Types<nlohmann::json, nlohmann::ordered_json> BothKinds;
TYPED_TEST_SUITE(JsonReader, BothKinds);

static std::string nested(const std::string& open, const std::string& close, int n) {
    std::string s;
    for (int i = 0; i < n; i++) s += open;
    s += "1";
    for (int i = 0; i < n; i++) s += close;
    return s;
}

TYPED_TEST(JsonReader, GivesWhatNlohmannsOwnParserGives) {
    const char* texts[] = {"1",
                           " [ ] ",
                           "{}",
                           "null",
                           "\"\\u00e9\\ud83d\\ude00\\n\\u0000\"",
                           "{\"b\": [1, {\"a\": 2}, [[]], {}], \"a\": {\"b\": true, \"a\": null}, \"\": -0.0}",
                           "\xEF\xBB\xBF[1e2, 0.1, -7, 5e-324]",
                           "[[1, 2], [3, {\"x\": [4]}], 5]"};
    for (const char* text : texts) EXPECT_EQ(json_parse<TypeParam>(text, "x").dump(), TypeParam::parse(text).dump());
}

TYPED_TEST(JsonReader, RefusesInOneLine) {
    struct {
        std::string text, says;
    } cases[] = {
        {"", "x.json: not valid JSON at byte 1"},
        {"{\"a\":1", "x.json: not valid JSON at byte 7"},
        {"{\"a\": secret}", "not valid JSON at byte 7"},
        {"[1] [2]", "not valid JSON at byte 5"},
        {"{\"a\":1,}", "not valid JSON at byte 8"},
        {"{'a':1}", "not valid JSON at byte 2"},
        {"[1] // note", "not valid JSON at byte 5"},
        {"[NaN]", "not valid JSON"},
        {"[Infinity]", "not valid JSON"},
        {"[-Infinity]", "not valid JSON"},
        {"[1e999]", "byte 6: a number beyond the range of a double"},
        {"[\"\xff\"]", "byte 3: a string is not valid UTF-8"},
        {"{\"\xed\xa0\x80\":1}", "a string is not valid UTF-8"},
        {"[\"\\ud800\"]", "not valid JSON"},
        {std::string("[\"a\0\"]", 6), "not valid JSON at byte 4"},
        {"{\"a\\u0000b\":1}", "x.json: the key 'a\\x00b' holds a NUL"},
        {"{\"a\":1,\"b\":{\"a\":1},\"a\":2}", "x.json: the key 'a' appears twice"},
        {"[{\"b\":0,\"\\u0062\":1}]", "x.json: the key 'b' appears twice"},
        {nested("[", "]", 65), "x.json: the JSON is nested deeper than 64 levels"},
        {std::string(1000000, '['), "nested deeper"},
        {nested("[", "]", 1000000), "nested deeper"},
        {nested("{\"a\":", "}", 1000000), "nested deeper"},
        {nested("[{\"a\":", "}]", 1000000), "nested deeper"},
    };
    for (const auto& c : cases) {
        const std::string message = error_of([&] { json_parse<TypeParam>(c.text, "x.json"); });
        expect_has(message, c.says);
        EXPECT_EQ(message.find("secret"), std::string::npos) << message;
    }
    EXPECT_EQ(json_parse<TypeParam>(nested("[", "]", 64), "x").dump(), nested("[", "]", 64));
    EXPECT_EQ(json_parse<TypeParam>(nested("{\"a\":", "}", 64), "x").dump(), nested("{\"a\":", "}", 64));
    expect_has(error_of([] { json_parse<TypeParam>("[1, 2]", "x", {64, 5}); }), "6 bytes, more than the 5");
    expect_has(error_of([] { json_parse<TypeParam>("[[1]]", "x", {1, 5}); }), "deeper than 1 levels");
}

// exact within 64 bits, else double
TYPED_TEST(JsonReader, WholeNumbers) {
    TypeParam j = json_parse<TypeParam>(
        "[9007199254740993, -9223372036854775808, 18446744073709551615, 18446744073709551616, 1.0, 1e3]", "x");
    EXPECT_EQ(j[0].template get<int64_t>(), 9007199254740993);
    EXPECT_EQ(j[1].template get<int64_t>(), INT64_MIN);
    EXPECT_EQ(j[2].template get<uint64_t>(), UINT64_MAX);
    EXPECT_TRUE(j[2].is_number_integer());
    for (int i : {3, 4, 5}) EXPECT_TRUE(j[i].is_number_float()) << i;
    EXPECT_EQ(j[3].template get<double>(), 18446744073709551616.0);
}

// nlohmann's own insertion into an ordered object searches it: 10^5 keys were 10^10 comparisons
TEST(JsonReaderOrder, ManyKeys) {
    std::string text = "{\"k\": 0";
    for (int i = 0; i < 100000; i++) text += format(", \"k%d\": %d", i, i);
    const auto j = json_parse<nlohmann::ordered_json>(text + "}", "x");
    EXPECT_EQ(j.size(), 100001u);
    EXPECT_EQ(j["k99999"], 99999);
    expect_has(error_of([&] { json_parse<nlohmann::ordered_json>(text + ", \"k5\": 0}", "x"); }),
               "the key 'k5' appears twice");
}

TEST(JsonReaderOrder, OfTheText) {
    EXPECT_EQ(json_parse<nlohmann::ordered_json>("{\"b\":{\"z\":1,\"a\":2},\"a\":[]}", "x").dump(),
              "{\"b\":{\"z\":1,\"a\":2},\"a\":[]}");
}

TEST(Printable, ControlsAreEscaped) {
    EXPECT_EQ(escape_controls("a\n\t\r\x1b[2J\x7f\\n"), "a\\n\\t\\x0D\\x1B[2J\\x7F\\n");
    EXPECT_EQ(escape_controls("a\n\tb\r", "\n\t"), "a\n\tb\\x0D");
    EXPECT_EQ(escape_controls("\u00e9 \u4e2d \U0001F600 \u200d"), "\u00e9 \u4e2d \U0001F600 \u200d");
    EXPECT_EQ(escape_controls("\u0080\u009b31m\u00a0"), "\\x80\\x9B31m\u00a0");
    EXPECT_EQ(escape_controls("\u202A\u202E\u2066\u2069\u200F\u2028"), "\\u202A\\u202E\\u2066\\u2069\\u200F\\u2028");
    EXPECT_EQ(escape_controls("\x9b"
                              "2J\xff\xe4\xb8"),
              "\\x9B2J\\xFF\\xE4\\xB8");  // no UTF-8: an 8-bit terminal's CSI
    EXPECT_EQ(escape_controls(std::string("a\0b", 3)), "a\\x00b");
    EXPECT_EQ(printable("\u00e9\u00e9\u00e9", 5), "\u00e9\u00e9...");  // not cut inside a character
    EXPECT_EQ(printable("abc", 3), "abc");
    EXPECT_EQ(printable("\xbf\xbf\xbf", 2), "...");
    EXPECT_EQ(shown("a\n'"), "'a\\n''");
    EXPECT_EQ(shown(std::string(81, 'x')), "'" + std::string(80, 'x') + "...'");
}
