// Tests of tokenizer.h, formats/tokenizer_file.h, data/chat_template.h and runtime/unicode.h. The oracle tests read
// ../shared/tokenizer/qwen3 (made by Hugging Face's tokenizers and Jinja2, see its README); the others need nothing but
// this file. Expected words and ids of the small vocabularies are worked out by hand from the regular expressions and
// the merge list.
#include <gtest/gtest.h>
#include <functional>
#include <random>
#include <unistd.h>
#include "../data/chat_template.h"
#include "../formats/tokenizer_file.h"

using Json = nlohmann::ordered_json;
static const std::string kQwen3 = "../shared/tokenizer/qwen3";
static constexpr const char* kChatMLTemplate =
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + "
    "'\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

struct TempDir {
    std::filesystem::path path;
    TempDir() {
        static int count = 0;
        path = std::filesystem::temp_directory_path() / format("test_tokenizer_%d_%d", (int)getpid(), count++);
        std::filesystem::create_directories(path);
    }
    ~TempDir() { std::filesystem::remove_all(path); }
    void write(const char* name, const std::string& text) const {
        std::ofstream(path / name, std::ios::binary) << text;
    }
};

template <class F>
static std::string error_of(F f) {
    try {
        f();
    } catch (const Error& e) { return e.what(); }
    return "";
}
#define EXPECT_FAILS(statement, words)                                \
    {                                                                 \
        std::string message = error_of([&] { statement; });           \
        EXPECT_NE(message.find(words), std::string::npos) << message; \
        EXPECT_EQ(message.find('\n'), std::string::npos) << message;  \
    }

static std::vector<int> encode(const Tokenizer& t, std::string_view text, bool special = true, bool bos = false) {
    std::vector<int> ids;
    tokenizer_encode(t, text, ids, special, bos);
    return ids;
}

static std::vector<std::string> words(PreTokenizer kind, const std::string& text) {
    std::vector<size_t> ends;
    pretokenize(kind, text, ends);
    std::vector<std::string> out;
    size_t begin = 0;
    for (size_t end : ends) out.push_back(text.substr(begin, end - begin)), begin = end;
    return out;
}
using Words = std::vector<std::string>;

// the 256 bytes (id = byte), then what the merges make in order
static Tokenizer small_tokenizer(const std::string& pre, const std::vector<std::string>& merges) {
    std::vector<std::string> tokens;
    for (int b = 0; b < 256; b++) tokens.push_back(byte_chars_encode(std::string(1, (char)b)));
    for (std::string m : merges) {
        m.erase(m.find(' '), 1);
        if (std::find(tokens.begin(), tokens.end(), m) == tokens.end()) tokens.push_back(m);
    }
    return tokenizer_from_parts(tokens, merges, {}, pre, -1, -1, -1, false, "");
}

static std::vector<Json> json_lines(const std::string& path) {
    std::vector<Json> rows;
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);) {
        if (!line.empty()) rows.push_back(Json::parse(line));
    }
    return rows;
}

// ---- Unicode --------------------------------------------------------------------------------------------------------

TEST(Utf8, LossyReplacesMaximalParts) {
    EXPECT_EQ(utf8_lossy("a\xFF"
                         "b"),
              "a\uFFFDb");
    EXPECT_EQ(utf8_lossy("\xE4\xB8"), "\uFFFD");  // truncated: one
    EXPECT_EQ(utf8_lossy("\xE4\xB8"
                         "x"),
              "\uFFFDx");
    EXPECT_EQ(utf8_lossy("\xC0\x80"), "\uFFFD\uFFFD");                      // overlong
    EXPECT_EQ(utf8_lossy("\xED\xA0\x80"), "\uFFFD\uFFFD\uFFFD");            // surrogate
    EXPECT_EQ(utf8_lossy("\xF4\x90\x80\x80"), "\uFFFD\uFFFD\uFFFD\uFFFD");  // above U+10FFFF
    EXPECT_EQ(utf8_lossy("\xF0\x9F\x98\x80"), "\xF0\x9F\x98\x80");
    EXPECT_FALSE(utf8_is_valid("12345678\xC3"));
    EXPECT_TRUE(utf8_is_valid("12345678\xC3\xA9"));
}

TEST(Utf8, StreamEqualsWhole) {
    std::mt19937 rng(7);
    const char bytes[] = "a\xC3\xA9\xE4\xB8\xAD\xF0\x9F\x98\x80\xFF\xED\xA0";
    for (int round = 0; round < 2000; round++) {
        std::string text, streamed;
        Utf8Streamer streamer;
        for (int n = (int)(rng() % 12); n-- > 0;) {
            std::string part;
            for (int k = (int)(rng() % 3); k-- > 0;) part += bytes[rng() % (sizeof bytes - 1)];
            text += part;
            streamed += utf8_stream_push(streamer, part);
            ASSERT_TRUE(utf8_is_valid(streamed));
            ASSERT_LE(streamer.pending.size(), 3u);
        }
        streamed += utf8_stream_flush(streamer);
        ASSERT_EQ(streamed, utf8_lossy(text));
    }
    Utf8Streamer streamer;
    EXPECT_EQ(utf8_stream_push(streamer, "x\xF0\x9F"), "x");
    EXPECT_EQ(utf8_stream_push(streamer, "\x98"), "");
    EXPECT_EQ(utf8_stream_push(streamer, "\x80y"), "\xF0\x9F\x98\x80y");
    EXPECT_EQ(utf8_stream_push(streamer, "\xE4"), "");
    EXPECT_EQ(utf8_stream_flush(streamer), "\uFFFD");
}

TEST(Unicode, Nfc) {
    EXPECT_EQ(nfc("e\u0301"), "\u00E9");
    EXPECT_EQ(nfc("\u212B"), "\u00C5");               // singleton
    EXPECT_EQ(nfc("\u0958"), "\u0915\u093C");         // composition exclusion
    EXPECT_EQ(nfc("a\u0315\u0300"), "\u00E0\u0315");  // reordered, then composed
    EXPECT_EQ(nfc("\u1100\u1161\u11A8"), "\uAC01");   // Hangul
    EXPECT_EQ(nfc("\uAC00\u11A7"), "\uAC00\u11A7");   // no final consonant, though just before the first
    EXPECT_FALSE(nfc_needed("plain \u00E9 \u4E2D \uAC01"));
    for (const char* s : {"e\u0301", "\u212B", "\u0958", "\u1100\u1161", "\u09C7\u09BE"})
        EXPECT_TRUE(nfc_needed(s)) << s;
    std::string marks = "a";  // utf8proc's own sorting would take minutes here
    for (int i = 0; i < 200000; i++) marks += i % 2 ? "\u0316" : "\u0301";
    EXPECT_EQ(nfc(marks).size(), marks.size() - 1);
}

TEST(Unicode, QuickCheckNeverMisses) {
    int changed = 0;
    for (int c = 0x80; c < 0x110000; c++) {
        if (c >= 0xD800 && c < 0xE000) continue;
        std::string s;
        utf8_append(s, c);
        if (nfc(s) == s) continue;
        changed++;
        ASSERT_TRUE(nfc_needed(s)) << std::hex << c;
    }
    EXPECT_GT(changed, 1000);  // about 1,100 code points are not NFC
}

// ---- words ----------------------------------------------------------------------------------------------------------

TEST(PreTokenizer, Qwen2) {
    auto split = [](const std::string& s) { return words(PreTokenizer::qwen2, s); };
    EXPECT_EQ(split("Hello world"), (Words{"Hello", " world"}));
    EXPECT_EQ(split("it's WE'LL o'clock"), (Words{"it", "'s", " WE", "'LL", " o", "'clock"}));
    EXPECT_EQ(split("x = 123.50"), (Words{"x", " =", " ", "1", "2", "3", ".", "5", "0"}));
    EXPECT_EQ(split("a  b   c"), (Words{"a", " ", " b", "  ", " c"}));
    EXPECT_EQ(split("end.\n\nNew"), (Words{"end", ".\n\n", "New"}));
    EXPECT_EQ(split("a \n \n b"), (Words{"a", " \n \n", " b"}));
    EXPECT_EQ(split("a  "), (Words{"a", "  "}));
    EXPECT_EQ(split("\tx\r\ny"), (Words{"\tx", "\r\n", "y"}));
    EXPECT_EQ(split("$\\boxed{7}$"), (Words{"$\\", "boxed", "{", "7", "}$"}));
    EXPECT_EQ(split(u8"caf\u00E9 \u4E2D\u6587\u3002"), (Words{"caf\u00E9", " \u4E2D\u6587", "\u3002"}));
    EXPECT_EQ(split("\u00A0x\u2003 \u00BD"), (Words{"\u00A0x", "\u2003", " ", "\u00BD"}));
    EXPECT_EQ(split("'\u017Fx"), (Words{"'\u017F", "x"}));  // folds to 's
    EXPECT_EQ(split(""), Words{});
}

TEST(PreTokenizer, Llama3TakesThreeDigits) {
    EXPECT_EQ(words(PreTokenizer::llama3, "12345 7"), (Words{"123", "45", " ", "7"}));
    EXPECT_EQ(words(PreTokenizer::llama3, "I'M.\n x"), (Words{"I", "'M", ".\n", " x"}));
}

TEST(PreTokenizer, Gpt2) {
    auto split = [](const std::string& s) { return words(PreTokenizer::gpt2, s); };
    EXPECT_EQ(split("it's IT'S"), (Words{"it", "'s", " IT", "'", "S"}));
    EXPECT_EQ(split("x = 123"), (Words{"x", " =", " 123"}));
    EXPECT_EQ(split("a \n\n b"), (Words{"a", " \n\n", " b"}));
    EXPECT_EQ(split("\tx"), (Words{"\t", "x"}));
    EXPECT_EQ(split("a\n"), (Words{"a", "\n"}));
}

TEST(PreTokenizer, SmolLMCutsDigitsFirst) {
    auto split = [](const std::string& s) { return words(PreTokenizer::smollm, s); };
    EXPECT_EQ(split("x = 12"), (Words{"x", " =", " ", "1", "2"}));
    EXPECT_EQ(split("a  1"), (Words{"a", "  ", "1"}));  // the blanks end their piece, so both stay together
    EXPECT_EQ(split("a  b"), (Words{"a", " ", " b"}));
    EXPECT_EQ(split("7's \u00B2x"), (Words{"7", "'s", " ", "\u00B2", "x"}));
}

TEST(PreTokenizer, WordsCoverTheTextInLinearTime) {
    for (PreTokenizer kind : {PreTokenizer::qwen2, PreTokenizer::llama3, PreTokenizer::gpt2, PreTokenizer::smollm}) {
        for (const char* unit : {" ", "\n", " \n", "a", "1", "!", "'s", "\u00A0", "e\u0301", "1 a"}) {
            std::string text, joined;
            while (text.size() < 300000) text += unit;
            for (const std::string& w : words(kind, text)) {
                ASSERT_FALSE(w.empty());
                joined += w;
            }
            ASSERT_EQ(joined, text);
        }
    }
}

// ---- byte pair encoding
// -----------------------------------------------------------------------------------------------

TEST(ByteChars, AreABijection) {
    EXPECT_EQ(byte_chars_encode(" \n\x7F\xAD"), "\u0120\u010A\u0121\u0143");
    std::string bytes;
    for (int b = 0; b < 256; b++) {
        std::string one(1, (char)b);
        ASSERT_TRUE(byte_chars_decode(byte_chars_encode(one), bytes));
        ASSERT_EQ(bytes, one);
    }
    EXPECT_FALSE(byte_chars_decode("\u4E2D", bytes));
    EXPECT_EQ(bytes, "\u4E2D");
}

TEST(Bpe, LowestRankFirstLeftmostOnTies) {
    // ids: ab 256, bc 257, abc 258, aa 259
    Tokenizer t = small_tokenizer("gpt-2", {"b c", "a b", "a bc", "a a"});
    int bc = 256, ab = 257, abc = 258, aa = 259;
    EXPECT_EQ(encode(t, "abc"), (std::vector<int>{abc}));  // b c first, though a b is further left
    EXPECT_EQ(encode(t, "abd"), (std::vector<int>{ab, 'd'}));
    EXPECT_EQ(encode(t, "bcab"), (std::vector<int>{bc, ab}));
    EXPECT_EQ(encode(t, "aaa"), (std::vector<int>{aa, 'a'}));
    EXPECT_EQ(encode(t, "aaaa"), (std::vector<int>{aa, aa}));
    EXPECT_EQ(tokenizer_decode(t, encode(t, "abc aab\xC3\xA9")), "abc aab\xC3\xA9");
}

TEST(Bpe, TokenThatItsMergesDoNotReach) {
    // "abc" is in the vocabulary, but b c comes first and there is no merge of a and bc
    std::vector<std::string> merges = {"b c", "a b", "ab c"};
    Tokenizer t = small_tokenizer("gpt-2", merges);
    EXPECT_EQ(encode(t, "abc"), (std::vector<int>{'a', 256}));
    Tokenizer llama = small_tokenizer("llama-bpe", merges);  // ignore_merges: a token is taken whole
    EXPECT_EQ(encode(llama, "abc"), (std::vector<int>{258}));
    EXPECT_EQ(encode(llama, "abcd"), (std::vector<int>{'a', 256, 'd'}));
}

TEST(Bpe, LongWordsEqualShortOnesAndAreFast) {
    Tokenizer t =
        small_tokenizer("gpt-2", {"a b", "b a", "ab a", "a a", "ab ab", "aa b", "aba aba", "b b", "c a", "bb ca"});
    std::mt19937 rng(3);
    for (int round = 0; round < 3000; round++) {
        std::vector<int> list;
        for (int n = 1 + (int)(rng() % 64); n-- > 0;) list.push_back("abc"[rng() % (round % 2 ? 3 : 2)]);
        std::vector<int> array = list;
        array.resize((size_t)bpe_short(t, array.data(), (int)array.size()));
        bpe_long(t, list);
        ASSERT_EQ(array, list);
    }
    std::vector<int> ids = encode(t, std::string(1 << 20, 'a'));
    EXPECT_EQ(ids, std::vector<int>(1 << 19, tokenizer_id(t, "aa")));
}

TEST(ByteLevel, IdsAreBytes) {
    Tokenizer t = tokenizer_byte_level();
    EXPECT_EQ(tokenizer_vocab_size(t), 259);
    EXPECT_EQ(t.eos, (std::vector<int>{258}));
    EXPECT_EQ(t.pad, 256);
    EXPECT_EQ(t.chat_text, "");
    EXPECT_TRUE(tokenizer_is_special(t, 257) && tokenizer_is_eos(t, 258) && !tokenizer_is_special(t, 32));
    EXPECT_EQ(tokenizer_id(t, "<|im_start|>"), 257);
    std::string all;
    std::vector<int> expected;
    for (int c = 1; c < 0x2000; c += 3) utf8_append(all, c);
    for (char b : all) expected.push_back((unsigned char)b);
    EXPECT_EQ(encode(t, all), expected);
    EXPECT_EQ(tokenizer_decode(t, expected), all);
    EXPECT_EQ(encode(t, "<|im_start|>a<|im_end|>"), (std::vector<int>{257, 'a', 258}));
    EXPECT_EQ(encode(t, "<|im_end|>", false).size(), 10u);
    EXPECT_EQ(tokenizer_decode(t, {257, 'a', 258}, true), "a");
    EXPECT_EQ(tokenizer_decode(t, {'a', -1, 259, 1 << 30, 0xE4}), "a\uFFFD");  // ids that are no tokens give nothing
    EXPECT_EQ(encode(t, "a\xFF"), (std::vector<int>{'a', 0xEF, 0xBF, 0xBD}));
    Json messages = {{{"role", "user"}, {"content", "hi"}}};
    std::string text = chat_render(ChatTemplate::chatml, messages, nullptr, true, -1);
    EXPECT_EQ(text, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
    EXPECT_EQ(encode(t, text)[0], 257);
}

// ---- files ----------------------------------------------------------------------------------------------------------

// a tokenizer.json with every kind of added token; returned so that a test can break it
static Json small_tokenizer_json() {
    Json vocab = Json::object();
    for (int b = 0; b < 256; b++) vocab[byte_chars_encode(std::string(1, (char)b))] = b;
    vocab["ab"] = 256;
    Json added = Json::array();
    auto add = [&](int id, const char* content, const char* property, bool special) {
        Json a = {{"id", id}, {"content", content}, {"special", special}, {"normalized", false}};
        if (property) a[property] = true;
        added.push_back(a);
    };
    add(257, "<s>", nullptr, true);
    add(258, "<l>", "lstrip", false);
    add(259, "<r>", "rstrip", false);
    add(260, "ww", "single_word", false);
    add(261, "e\u0301!", "normalized", false);
    add(262, "<s>>", nullptr, false);
    Json first = {
        {"type", "Split"}, {"pattern", {{"Regex", kQwen2Regex}}}, {"behavior", "Isolated"}, {"invert", false}};
    Json second = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
    Json model = {{"type", "BPE"}, {"vocab", vocab}, {"merges", Json::array({Json::array({"a", "b"})})}};
    return {{"added_tokens", added},
            {"normalizer", {{"type", "NFC"}}},
            {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", Json::array({first, second})}}},
            {"model", model}};
}

TEST(AddedTokens, Properties) {
    TempDir dir;
    dir.write("tokenizer.json", small_tokenizer_json().dump());
    Tokenizer t;
    tokenizer_load(t, dir.path.string());
    EXPECT_EQ(encode(t, "ab<s>ab"), (std::vector<int>{256, 257, 256}));
    EXPECT_EQ(encode(t, "<s>>"), (std::vector<int>{262}));  // the longest
    EXPECT_EQ(encode(t, "a \n<l> b"), (std::vector<int>{'a', 258, ' ', 'b'}));
    EXPECT_EQ(encode(t, "a <r>\u00A0\nb"), (std::vector<int>{'a', ' ', 259, 'b'}));
    EXPECT_EQ(encode(t, "ww ww1 (ww)"), (std::vector<int>{260, ' ', 'w', 'w', '1', ' ', '(', 260, ')'}));
    EXPECT_EQ(encode(t, "\u00E9!"), (std::vector<int>{261}));  // found in the normalized text
    EXPECT_EQ(encode(t, "e\u0301!"), (std::vector<int>{261}));
    EXPECT_EQ(encode(t, "<s><l>", false), (std::vector<int>{'<', 's', '>', 258}));  // only special ones are passed over
    EXPECT_EQ(tokenizer_decode(t, {257, 258, 'a'}, true), "<l>a");
    EXPECT_EQ(chat_template_detect(t.chat_text), ChatTemplate::none);
}

TEST(Files, SaveAndLoadGiveTheSameTokenizer) {
    std::vector<std::string> texts = {"ab<s>ab a <r> b<l>", "caf\u00E9 e\u0301! ww 12", "<|im_start|>user\nx<|im_end|>",
                                      ""};
    TempDir source, target;
    source.write("tokenizer.json", small_tokenizer_json().dump());
    source.write("tokenizer_config.json",
                 R"({"eos_token": {"content": "<s>"}, "pad_token": "<pad>", "bos_token": "<s>", "model_max_length": 77,
                     "chat_template": "{{ 1 }}", "add_bos_token": true})");
    Tokenizer loaded, again;
    tokenizer_load(loaded, (source.path / "tokenizer.json").string());
    EXPECT_EQ(loaded.pad, 263);  // a new token gets the next id
    EXPECT_EQ(loaded.chat_text, "{{ 1 }}");
    EXPECT_FAILS(chat_render(chat_template_detect(loaded.chat_text), Json::array(), nullptr, true, -1), "chat template");
    EXPECT_EQ(encode(loaded, "ab", true, true), (std::vector<int>{257, 256}));
    EXPECT_EQ(encode(loaded, "ab"), (std::vector<int>{256}));
    for (const Tokenizer& t : {loaded, tokenizer_byte_level(), small_tokenizer("smollm", {"a b"}),
                               small_tokenizer("llama-bpe", {"a b", "ab a"}), small_tokenizer("gpt-2", {})}) {
        tokenizer_save(t, (target.path / "deep/er").string());
        tokenizer_load(again, (target.path / "deep/er").string());
        EXPECT_EQ(again.text, t.text);
        EXPECT_EQ(again.flags, t.flags);
        EXPECT_EQ(again.merges, t.merges);
        EXPECT_EQ(again.eos, t.eos);
        EXPECT_EQ(std::vector<int>({again.bos, again.pad, again.add_bos, (int)again.pre}),
                  std::vector<int>({t.bos, t.pad, t.add_bos, (int)t.pre}));
        EXPECT_EQ(again.model_max_length, t.model_max_length);
        EXPECT_EQ(again.chat_text, t.chat_text);
        for (const std::string& text : texts) {
            EXPECT_EQ(encode(again, text), encode(t, text));
            EXPECT_EQ(encode(again, text, false, true), encode(t, text, false, true));
        }
    }
}

TEST(Files, VocabAndMerges) {
    TempDir dir;
    dir.write("vocab.json", small_tokenizer_json()["model"]["vocab"].dump());
    dir.write("merges.txt", "#version: 0.2\na b\r\n");
    Tokenizer t;
    tokenizer_load(t, dir.path.string());
    EXPECT_EQ(t.pre, PreTokenizer::qwen2);
    EXPECT_EQ(encode(t, "ab<|endoftext|>"), (std::vector<int>{256, 257}));
    EXPECT_EQ(t.eos, (std::vector<int>{257}));
    dir.write("tokenizer_config.json",
              R"({"tokenizer_class": "GPT2Tokenizer", "eos_token": "<e>", "added_tokens_decoder":
              {"300": {"content": "<x>", "special": false}, "301": {"content": "<e>", "special": true}}})");
    dir.write("generation_config.json", R"({"eos_token_id": [301, 300, 999999]})");
    dir.write("chat_template.jinja", kChatMLTemplate);
    for (const char* name : {"vocab.json", "merges.txt", "tokenizer_config.json", "chat_template.jinja", ""}) {
        tokenizer_load(t, (dir.path / name).string());
        EXPECT_EQ(t.pre, PreTokenizer::gpt2);
        EXPECT_EQ(t.eos, (std::vector<int>{301, 300}));
        EXPECT_EQ(chat_template_detect(t.chat_text), ChatTemplate::chatml);
        EXPECT_EQ(encode(t, "ab<x><e>"), (std::vector<int>{256, 300, 301}));
        EXPECT_EQ(tokenizer_decode(t, {300, 301, 280}, true), "<x>");  // 257..299: holes
    }
    TempDir saved;  // the holes must not renumber the added tokens
    tokenizer_save(t, saved.path.string());
    tokenizer_load(t, saved.path.string());
    EXPECT_EQ(encode(t, "<x><e>"), (std::vector<int>{300, 301}));
    dir.write("tokenizer_config.json", R"({"tokenizer_class": "LlamaTokenizer"})");
    EXPECT_FAILS(tokenizer_load(t, dir.path.string()), "LlamaTokenizer");
}

TEST(Files, BosFromThePostProcessor) {
    Json j = small_tokenizer_json();
    Json single = Json::array({{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}}, {{"Sequence", {{"id", "A"}}}}});
    j["post_processor"] = {{"type", "TemplateProcessing"}, {"single", single}};
    TempDir dir;
    dir.write("tokenizer.json", j.dump());
    Tokenizer t;
    tokenizer_load(t, dir.path.string());
    EXPECT_TRUE(t.add_bos);
    EXPECT_EQ(encode(t, "a", true, true), (std::vector<int>{257, 'a'}));
    std::reverse(j["post_processor"]["single"].begin(), j["post_processor"]["single"].end());
    dir.write("tokenizer.json", j.dump());
    EXPECT_FAILS(tokenizer_load(t, dir.path.string()), "'<s>'");  // after the text: not supported, so not ignored
}

TEST(Files, HostileFilesGiveOneLine) {
    Tokenizer t = tokenizer_byte_level();
    auto refused = [&](const char* words_of_error, const std::function<void(Json&)>& change) {
        Json j = small_tokenizer_json();
        change(j);
        TempDir dir;
        dir.write("tokenizer.json", j.dump());
        EXPECT_FAILS(tokenizer_load(t, dir.path.string()), words_of_error);
        EXPECT_EQ(tokenizer_vocab_size(t), 259);  // untouched by a failed load
    };
    refused("both have id 97", [](Json& j) { j["model"]["vocab"]["ab"] = 97; });
    refused("outside 0..", [](Json& j) { j["model"]["vocab"]["ab"] = 4000000000u; });
    refused("outside 0..", [](Json& j) { j["model"]["vocab"]["ab"] = 18446744073709551615u; });
    refused("outside 0..", [](Json& j) { j["model"]["vocab"]["ab"] = -3; });
    refused("not an integer", [](Json& j) { j["model"]["vocab"]["ab"] = "x"; });
    refused("not an integer", [](Json& j) { j["model"]["vocab"]["ab"] = 1.5; });
    refused("is empty", [](Json& j) { j["model"]["vocab"][""] = 300; });
    refused("must be an object", [](Json& j) { j["model"]["vocab"] = Json::array({1, 2}); });
    refused("needs token 'ba'", [](Json& j) { j["model"]["merges"].push_back("b a"); });
    refused("needs token 'xyz'", [](Json& j) { j["model"]["merges"].push_back("xyz a"); });
    refused("not two tokens", [](Json& j) { j["model"]["merges"].push_back("a\nb"); });
    refused("not two tokens", [](Json& j) { j["model"]["merges"].push_back("a b "); });
    refused("merge 1 is neither", [](Json& j) { j["model"]["merges"].push_back(7); });
    refused("must be a list", [](Json& j) { j["model"]["merges"] = "a b"; });
    refused("model type 'Unigram'", [](Json& j) { j["model"]["type"] = "Unigram"; });
    refused("no \"model\"", [](Json& j) { j["model"] = 3; });
    refused("byte_fallback", [](Json& j) { j["model"]["byte_fallback"] = true; });
    refused("both have id 97", [](Json& j) { j["added_tokens"][0]["id"] = 97; });
    refused("two ids, 257 and 400", [](Json& j) { j["added_tokens"].push_back({{"id", 400}, {"content", "<s>"}}); });
    refused("without content", [](Json& j) { j["added_tokens"].push_back(5); });
    refused("outside 0..", [](Json& j) { j["added_tokens"][0]["id"] = 1 << 30; });
    refused("unknown normalizer 'Lowercase'", [](Json& j) { j["normalizer"]["type"] = "Lowercase"; });
    refused("no ByteLevel", [](Json& j) { j["pre_tokenizer"] = nullptr; });
    refused("unknown pre-tokenizer step 'Metaspace'", [](Json& j) { j["pre_tokenizer"] = {{"type", "Metaspace"}}; });
    refused("unknown pre-tokenizer \\w+",
            [](Json& j) { j["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "\\w+"; });
    refused("post-processor 'Bert'", [](Json& j) { j["post_processor"] = {{"type", "Bert"}}; });
    refused("not a byte-level", [](Json& j) { j["model"] = {{"vocab", {{"a", 0}}}, {"merges", Json::array()}}; });

    TempDir dir;
    EXPECT_FAILS(tokenizer_load(t, dir.path.string()), "neither tokenizer.json nor vocab.json");
    EXPECT_FAILS(tokenizer_load(t, (dir.path / "missing").string()), "no such file");
    for (std::string text :
         {std::string("{\"a\": "), std::string(100000, '['), std::string("\xFF\n\x01"), std::string()}) {
        dir.write("tokenizer.json", text);
        EXPECT_FAILS(tokenizer_load(t, dir.path.string()), "not valid JSON");
    }
    dir.write("tokenizer.json", "[]");
    EXPECT_FAILS(tokenizer_load(t, dir.path.string()), "a JSON object is expected");
}

TEST(FromParts, GgufTypesAndRefusals) {
    std::vector<std::string> tokens = {"<|endoftext|>"};  // special tokens first, as in SmolLM2
    std::vector<int> type = {3};
    for (int b = 0; b < 256; b++) tokens.push_back(byte_chars_encode(std::string(1, (char)b))), type.push_back(1);
    for (const char* s : {"ab", "<think>", "[PAD1]"}) tokens.push_back(s);
    for (int v : {1, 4, 5}) type.push_back(v);
    auto make = [&](const std::string& pre, std::vector<std::string> merges = {"a b"}, int eos = 0, bool bos = false) {
        return tokenizer_from_parts(tokens, merges, type, pre, eos, -1, 0, bos, "");
    };
    Tokenizer t = make("qwen2");
    EXPECT_TRUE(t.use_nfc && t.pre == PreTokenizer::qwen2);
    EXPECT_EQ(encode(t, "ab<think><|endoftext|>[PAD1]").size(), 3 + 6u);
    EXPECT_EQ(tokenizer_decode(t, {257, 258, 0}, true), "ab<think>");
    EXPECT_EQ(tokenizer_id(t, "[PAD1]"), -1);
    TempDir dir;
    tokenizer_save(t, dir.path.string());
    Tokenizer again;
    tokenizer_load(again, dir.path.string());
    EXPECT_EQ(encode(again, "ab<think><|endoftext|>"), (std::vector<int>{257, 258, 0}));
    EXPECT_FAILS(make("tekken"), "unknown pre-tokenizer 'tekken'");
    EXPECT_FAILS(make("gpt-2", {"a b", "q\u0120 z"}), "lacks");
    EXPECT_FAILS(make("gpt-2", {"ab"}), "not two tokens");
    EXPECT_FAILS(make("gpt-2", {}, 5000), "eos token has id 5000");
    EXPECT_FAILS(make("gpt-2", {}, 0, true), "no bos token");
    tokens[5] = "\xFF\xFE";
    EXPECT_FAILS(make("gpt-2"), "not valid UTF-8");
    tokens[5] = tokens[6];
    EXPECT_FAILS(make("gpt-2"), "two ids");
    type.pop_back();
    EXPECT_FAILS(make("gpt-2"), "token types");
}

// ---- chat templates -------------------------------------------------------------------------------------------------

TEST(Chat, PythonJson) {
    Json j =
        Json::parse(R"({"z": 1, "a": [1.0, 1e-5, 0.0001, 1e16, 123456789012345.0, -0.0, 1.5e300, 0.1, 1e22, 5e-324],
                             "t": "\u00e9\u0001\u007f\"\\/\n\t\b\f\r", "n": [null, true, false, [], {}, -7, 18446744073709551615]})");
    EXPECT_EQ(python_json(j),
              "{\"z\": 1, \"a\": [1.0, 1e-05, 0.0001, 1e+16, 123456789012345.0, -0.0, 1.5e+300, 0.1, 1e+22, 5e-324], "
              "\"t\": \"\u00e9\\u0001\x7f\\\"\\\\/\\n\\t\\b\\f\\r\", "
              "\"n\": [null, true, false, [], {}, -7, 18446744073709551615]}");
    Json deep = 1;
    for (int i = 0; i < 300; i++) deep = Json::array({deep});
    EXPECT_FAILS(python_json(deep), "nested");
}

TEST(Chat, DefaultsOfTheFamilies) {
    Json user = Json::parse(R"([{"role": "user", "content": "hi"}])");
    auto with = [&](ChatTemplate kind) { return chat_render(kind, user, nullptr, false, -1); };
    std::string turn = "<|im_start|>user\nhi<|im_end|>\n";
    EXPECT_EQ(with(ChatTemplate::chatml), turn);
    EXPECT_EQ(with(ChatTemplate::qwen3), turn);
    EXPECT_EQ(
        with(ChatTemplate::smollm2),
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n" + turn);
    EXPECT_EQ(with(ChatTemplate::qwen2), "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" + turn);
    EXPECT_EQ(
        with(ChatTemplate::qwen2_5),
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n" + turn);
    EXPECT_EQ(chat_render(ChatTemplate::llama3, Json::parse(R"([{"role": "user", "content": " hi\n\u3000"}])"), nullptr,
                          true, -1),
              "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
              "<|start_header_id|>assistant<|end_header_id|>\n\n");
}

TEST(Chat, Qwen25ToolCalls) {
    Json messages = Json::parse(R"([{"role": "system", "content": "S"}, {"role": "user", "content": "q"},
        {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1.0}}},
                                                              {"name": "g", "arguments": "{}"}]},
        {"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}, {"role": "assistant", "content": "done"}])");
    EXPECT_EQ(chat_render(ChatTemplate::qwen2_5, messages, Json::parse(R"([{"n": "f"}])"), true, -1),
              std::string("<|im_start|>system\nS\n\n") + kToolsHead + "\n{\"n\": \"f\"}" + kToolsTail +
                  "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<tool_call>\n{\"name\": \"f\", \"arguments\": "
                  "{\"x\": 1.0}}\n</tool_call>\n<tool_call>\n{\"name\": \"g\", \"arguments\": \"{}\"}\n</tool_call>"
                  "<|im_end|>\n<|im_start|>user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n"
                  "</tool_response><|im_end|>\n<|im_start|>assistant\ndone<|im_end|>\n<|im_start|>assistant\n");
}

TEST(Chat, Qwen3DropsEarlierReasoning) {
    Json messages = Json::parse(
        R"([{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>\nr\n</think>\n\nb"}])");
    auto qwen3 = [&](bool prompt, int thinking) {
        return chat_render(ChatTemplate::qwen3, messages, nullptr, prompt, thinking);
    };
    std::string a = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n";
    EXPECT_EQ(qwen3(false, -1), a + "<think>\nr\n</think>\n\nb<|im_end|>\n");
    messages.push_back({{"role", "user"}, {"content", "c"}});
    std::string c = a + "b<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n";
    EXPECT_EQ(qwen3(true, -1), c);
    EXPECT_EQ(qwen3(true, 1), c);
    EXPECT_EQ(qwen3(true, 0), c + "<think>\n\n</think>\n\n");
    Json alone = Json::parse(R"([{"role": "assistant", "content": "x"}])");  // no question at all: no reasoning block
    EXPECT_EQ(chat_render(ChatTemplate::qwen3, alone, nullptr, false, -1), "<|im_start|>assistant\nx<|im_end|>\n");
    messages[2]["content"] = "<tool_response>5</tool_response>";  // no new question: the reasoning stays
    EXPECT_NE(qwen3(true, -1).find("<think>\nr\n</think>"), std::string::npos);
    EXPECT_NE(chat_render(ChatTemplate::qwen3_instruct, messages, nullptr, true, 0).find("<think>\nr\n</think>\n\nb"),
              std::string::npos);
}

TEST(Chat, BadMessagesGiveOneLine) {
    auto render = [](ChatTemplate kind, const char* text) { chat_render(kind, Json::parse(text), nullptr, true, -1); };
    for (ChatTemplate kind : {ChatTemplate::chatml, ChatTemplate::qwen2_5, ChatTemplate::qwen3, ChatTemplate::llama3}) {
        EXPECT_FAILS(render(kind, R"([{"content": "x"}])"), "messages[0]: \"role\" is missing");
        EXPECT_FAILS(render(kind, R"([{"role": 5}])"), "messages[0]: \"role\" must be text");
        EXPECT_FAILS(render(kind, R"([3])"), "messages[0]");
        EXPECT_FAILS(render(kind, R"({"role": "user"})"), "must be a list");
    }
    EXPECT_FAILS(render(ChatTemplate::qwen2_5, R"([{"role": "user", "content": [1]}])"), "\"content\" must be text");
    EXPECT_FAILS(render(ChatTemplate::qwen3, "[]"), "empty");
    EXPECT_FAILS(
        render(ChatTemplate::qwen3, R"([{"role": "assistant", "content": "x", "tool_calls": [{"name": "f"}]}])"),
        "arguments");
    EXPECT_FAILS(render(ChatTemplate::none, "[]"), "no chat template");
}

TEST(Chat, DetectionAcceptsSpellingsAndRefusesChanges) {
    EXPECT_EQ(chat_template_detect(""), ChatTemplate::none);
    EXPECT_EQ(chat_template_detect("{{ messages }}"), ChatTemplate::unknown);
    EXPECT_EQ(chat_template_detect(kChatMLTemplate), ChatTemplate::chatml);
    std::string chatml = kChatMLTemplate;
    // the same program: a real newline in the literal, other quotes, white space control, a comment
    EXPECT_EQ(chat_template_detect(
                  "{#- ChatML -#}\n{%- for message in messages %}\n    {{- \"<|im_start|>\" + message.role + "
                  "'\n' + message['content'] + '<|im_end|>' + '\\n' }}\n{%- endfor -%}\n"
                  "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"),
              ChatTemplate::chatml);
    // other programs: an unstripped newline, another role marker, another separator
    EXPECT_EQ(chat_template_detect("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + "
                                   "message['content'] + '<|im_end|>' + '\\n'}}\n{% endfor %}"
                                   "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"),
              ChatTemplate::unknown);
    for (const char* part : {"message['role'] + '\\n'", "<|im_end|>", "assistant"}) {
        std::string changed = chatml;
        changed.replace(changed.find(part), std::string(part).size(), "message['role'] + ' '");
        EXPECT_EQ(chat_template_detect(changed), ChatTemplate::unknown) << changed;
    }
    std::string system =
        "{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI "
        "assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}";
    std::string smollm = chatml;
    smollm.insert(smollm.find("%}") + 2, system);
    EXPECT_EQ(chat_template_detect(smollm), ChatTemplate::smollm2);
    smollm.replace(smollm.find("SmolLM"), 6, "Somebody");
    EXPECT_EQ(chat_template_detect(smollm), ChatTemplate::unknown);
    for (const char* broken : {"{%", "{{ '", "{{ 'a\\", "{#", "{{-", "{", "-%}"}) chat_template_detect(broken);
}

// ---- the oracle -----------------------------------------------------------------------------------------------------

static const Tokenizer& qwen3_tokenizer() {
    static const Tokenizer tokenizer = [] {
        Tokenizer t;
        tokenizer_load(t, kQwen3);
        return t;
    }();
    return tokenizer;
}
#define NEEDS_QWEN3()                                                                   \
    if (!std::filesystem::exists(kQwen3 + "/vocab.json")) {                             \
        GTEST_SKIP() << "needs " << kQwen3 << " (the Qwen3 vocabulary and its oracle)"; \
    }

TEST(Qwen3Oracle, Facts) {
    NEEDS_QWEN3();
    const Tokenizer& t = qwen3_tokenizer();
    EXPECT_EQ(tokenizer_vocab_size(t), 151669);
    EXPECT_EQ(t.merges.size(), 151387u);
    EXPECT_EQ(t.eos, (std::vector<int>{151645}));
    EXPECT_EQ(t.pad, 151643);
    EXPECT_FALSE(t.add_bos);
    EXPECT_EQ(chat_template_detect(t.chat_text), ChatTemplate::qwen3);
    EXPECT_TRUE(tokenizer_is_special(t, 151656));
    EXPECT_FALSE(tokenizer_is_special(t, tokenizer_id(t, "<think>")));
    int special = 0;
    for (int id = 0; id < tokenizer_vocab_size(t); id++) special += tokenizer_is_special(t, id);
    EXPECT_EQ(special, 14);
}

TEST(Qwen3Oracle, EncodeAndDecode) {
    NEEDS_QWEN3();
    const Tokenizer& t = qwen3_tokenizer();
    std::vector<Json> rows = json_lines(kQwen3 + "/oracle.jsonl");
    ASSERT_GT(rows.size(), 400u);
    for (const Json& row : rows) {
        std::string text = row["text"], decoded = row.value("decoded", text);
        std::vector<int> ids = row["ids"];
        EXPECT_EQ(encode(t, text), ids) << row.dump();
        EXPECT_EQ(tokenizer_decode(t, ids), decoded) << row.dump();
        EXPECT_EQ(tokenizer_decode(t, ids, true), row.value("decoded_skip_special", decoded)) << row.dump();
        std::string streamed;
        Utf8Streamer streamer;
        for (int id : ids) streamed += utf8_stream_push(streamer, tokenizer_token_bytes(t, id));
        EXPECT_EQ(streamed + utf8_stream_flush(streamer), decoded);
    }
}

TEST(Qwen3Oracle, Chats) {
    NEEDS_QWEN3();
    const Tokenizer& t = qwen3_tokenizer();
    const ChatTemplate kind = chat_template_detect(t.chat_text);
    std::vector<Json> rows = json_lines(kQwen3 + "/chat-oracle.jsonl");
    ASSERT_GT(rows.size(), 20u);
    for (const Json& row : rows) {
        int thinking = row.contains("enable_thinking") ? (int)row["enable_thinking"].get<bool>() : -1;
        Json tools = row.contains("tools") ? row["tools"] : Json();
        std::string text = chat_render(kind, row["messages"], tools, row["add_generation_prompt"], thinking);
        EXPECT_EQ(text, row["expected"].get<std::string>()) << row["name"];
        EXPECT_EQ(encode(t, text), row["ids"].get<std::vector<int>>()) << row["name"];
    }
}

TEST(Qwen3Oracle, SavedFolderIsTheSameTokenizer) {
    NEEDS_QWEN3();
    TempDir dir;
    tokenizer_save(qwen3_tokenizer(), dir.path.string());
    Tokenizer t;
    tokenizer_load(t, dir.path.string());
    EXPECT_EQ(t.text, qwen3_tokenizer().text);
    EXPECT_EQ(t.flags, qwen3_tokenizer().flags);
    EXPECT_EQ(chat_template_detect(t.chat_text), ChatTemplate::qwen3);
    for (const Json& row : json_lines(kQwen3 + "/oracle.jsonl"))
        EXPECT_EQ(encode(t, row["text"].get<std::string>()), row["ids"].get<std::vector<int>>());
}
