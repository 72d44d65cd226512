// JSONL data sets: one JSON object a line. Problems (a question and its gold answer) for GRPO and evaluation, examples
// (prompt and completion) for supervised fine-tuning. The shape of a row is found by its fields, so GSM8K's files
// (github.com/openai/grade-school-math), TRL's "prompt-only", "prompt-completion", "language modeling" and
// conversational types, and MATH's problem/solution rows work as they are.
// The trap: a gold answer that is wrong or empty is not an error anyone sees later, only a reward that never comes. So
// a row whose answer cannot be found stops the run with its line.
#pragma once
#include <unistd.h>
#include <cerrno>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>
#include "../runtime/error.h"
#include "../runtime/file_io.h"
#include "../runtime/json.h"
#include "../runtime/rng.h"
#include "../runtime/unicode.h"

static constexpr size_t DATASET_MAX_LINE = 64u << 20;  // bytes

struct Problem {
    std::string question;             // the text; for messages, the content of the last user message
    nlohmann::ordered_json messages;  // [{role, content}, ...], or null for plain text
    std::string gold;                 // empty only where none is needed
    bool bare = false;                // a `question` or `problem` that does not say how to answer
    std::string source;               // path of the file
    int line = 0;                     // from 1
    // what the row says of it; empty: nothing
    std::string id, subject, level;
    std::string reward_funcs;                           // a reward of its own, as in --reward_funcs
    std::shared_ptr<const nlohmann::ordered_json> row;  // all of its fields, where they were asked for
};

// Plain text: `completion` is learnt after `prompt` (empty prompt: all of it is learnt). Conversation: messages[i] is
// learnt for i >= prompt_messages, given those before.
struct SftExample {
    std::string prompt, completion;
    bool bare = false;                // as in Problem
    nlohmann::ordered_json messages;  // [{role, content}, ...], or null for plain text
    int prompt_messages = 0;
    std::string source;
    int line = 0;
};

// ---------------------------------------------------------------------------------------------------------------------
// lines

// Offset of the first character that is not well-formed UTF-8, or -1
inline int64_t utf8_error_offset(const std::string& s) {
    int length;
    for (size_t i = 0; i < s.size(); i += (size_t)length)
        if (utf8_step(s.data(), i, s.size(), &length) < 0) return (int64_t)i;
    return -1;
}

// Reads a file line by line in blocks of 256 KiB.
struct LineReader {
    std::string path;
    int fd = -1;
    int64_t number = 0;  // of the line that next() gave last, from 1
    std::string block;
    size_t at = 0;
    bool ended = false;

    explicit LineReader(const std::string& path_) : path(path_) {
        uint64_t size = 0;
        fd = open_regular(path, &size);
    }
    LineReader(const std::string& name, int fd_) : path(name), fd(fd_) {}  // closed at the end
    ~LineReader() {
        if (fd >= 0) ::close(fd);
    }
    LineReader(const LineReader&) = delete;
    LineReader& operator=(const LineReader&) = delete;

    // the next line without its end; false after the last
    bool next(std::string* line) {
        line->clear();
        bool any = false;
        for (;;) {
            if (at == block.size()) {
                if (!fill()) break;
            }
            any = true;
            size_t end = block.find('\n', at), stop = end == std::string::npos ? block.size() : end;
            if (line->size() + (stop - at) > DATASET_MAX_LINE)
                fail("%s:%lld: the line is longer than %zu MiB; one JSON object a line is expected", path.c_str(),
                     (long long)number + 1, DATASET_MAX_LINE >> 20);
            line->append(block, at, stop - at);
            at = stop;
            if (end != std::string::npos) {
                at++;
                break;
            }
        }
        if (any) number++;
        return any;
    }
    bool fill() {
        if (ended) return false;
        block.resize(256u << 10);
        at = 0;
        ssize_t n;
        do n = ::read(fd, &block[0], block.size());
        while (n < 0 && errno == EINTR);
        if (n < 0) fail("cannot read %s: %s; check the disk", path.c_str(), strerror(errno));
        block.resize((size_t)n);
        ended = n == 0;
        return n > 0;
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// rows

inline std::string trim_field(const std::string& s) {
    size_t a = s.find_first_not_of(" \t\r\n"), b = s.find_last_not_of(" \t\r\n");
    return a == std::string::npos ? "" : s.substr(a, b - a + 1);
}

struct DatasetRow {
    nlohmann::ordered_json object;
    std::string where;  // "file.jsonl:12", opens every message
};

inline nlohmann::ordered_json parse_row(const std::string& line, const std::string& where) {
    nlohmann::ordered_json row = json_parse<nlohmann::ordered_json>(line, where);
    if (!row.is_object())
        fail("%s: the line holds %s, not an object; one JSON object a line is expected", where.c_str(),
             row.type_name());
    return row;
}

// the names of a row's fields, for messages
inline std::string row_fields(const DatasetRow& row) {
    std::string s;
    int n = 0;
    for (const auto& item : row.object.items()) {
        if (n++ == 12) return s + ", ...";
        s += (n > 1 ? ", " : "") + shown(item.key());
    }
    return s.empty() ? "none" : s;
}

// the first of the names that the row has and that is not null; nullptr when it has none
inline const char* first_field(const DatasetRow& row, const std::vector<const char*>& names) {
    for (const char* name : names) {
        auto at = row.object.find(name);
        if (at != row.object.end() && !at->is_null()) return name;
    }
    return nullptr;
}

// a field that must be text with something in it
inline std::string text_field(const DatasetRow& row, const char* name) {
    const nlohmann::ordered_json& v = row.object.at(name);
    if (!v.is_string()) fail("%s: `%s` is %s, not text", row.where.c_str(), name, v.type_name());
    std::string s = v.get<std::string>();
    if (trim_field(s).empty()) fail("%s: `%s` is empty", row.where.c_str(), name);
    return s;
}

// a field that must be a list of messages; other keys of a message (name, tool_calls) are kept
inline nlohmann::ordered_json messages_field(const DatasetRow& row, const char* name) {
    const nlohmann::ordered_json& v = row.object.at(name);
    if (!v.is_array()) fail("%s: `%s` is %s, not a list of messages", row.where.c_str(), name, v.type_name());
    if (v.empty()) fail("%s: `%s` has no messages", row.where.c_str(), name);
    for (size_t i = 0; i < v.size(); i++)
        for (const char* key : {"role", "content"})
            if (!v[i].is_object() || !v[i].contains(key) || !v[i][key].is_string())
                fail("%s: message %zu of `%s` has no text `%s`", row.where.c_str(), i + 1, name, key);
    return v;
}

inline bool message_has_role(const nlohmann::ordered_json& message, const char* role) {
    return message["role"].get_ref<const std::string&>() == role;
}

// What stands in the braces of the last \boxed{...} of s, trimmed. false: there is none, or it is not closed.
inline bool gold_in_box(const std::string& s, std::string* inside) {
    size_t at = s.rfind("\\boxed{");
    if (at == std::string::npos) return false;
    size_t begin = at + strlen("\\boxed{");
    int depth = 1;
    for (size_t i = begin; i < s.size(); i++) {
        if (s[i] == '\\') i++;  // \{ and \} are text
        else if (s[i] == '{') depth++;
        else if (s[i] == '}' && --depth == 0) {
            *inside = trim_field(s.substr(begin, i - begin));
            return true;
        }
    }
    return false;
}

// The gold answer in field `name`: a number as it is; of a text what follows the last ####, else what the last \boxed{}
// holds, else the whole. `worked`: the text is a solution, so that the whole of it cannot be the answer.
inline std::string gold_field(const DatasetRow& row, const char* name, bool worked) {
    const nlohmann::ordered_json& v = row.object.at(name);
    if (v.is_number_float() && std::fabs(v.get<double>()) >= 9007199254740992.0)  // 2^53: digits may be lost
        fail("%s: the number in `%s` is too large to be exact; write it as text, in quotes", row.where.c_str(), name);
    if (v.is_number()) return v.dump();
    std::string text = text_field(row, name), gold = trim_field(text);
    size_t hashes = text.rfind("####");
    bool found = hashes != std::string::npos;
    if (found) {
        std::string rest = trim_field(text.substr(hashes + 4));
        gold = trim_field(rest.substr(0, rest.find('\n')));
        if (worked && !gold.empty() && gold.find_first_of("0123456789") == std::string::npos)
            fail("%s: the final answer '%s' after #### in `%s` is not a number; a text answer goes with `prompt`",
                 row.where.c_str(), shown(gold).c_str(), name);
    } else {
        found = gold_in_box(text, &gold);
    }
    if (worked && !found)
        fail(
            "%s: no final answer in `%s`: a worked solution ends in #### ANSWER or holds \\boxed{ANSWER} (an answer "
            "without its solution goes with `prompt`)",
            row.where.c_str(), name);
    if (gold.empty()) fail("%s: the final answer in `%s` is empty", row.where.c_str(), name);
    return gold;
}

// Calls use(row, line) for every line that is not blank. Byte order marks, also those of files that were joined, and CR
// before the line's end are dropped.
template <typename Use>
inline void for_each_row(const std::string& path, Use use) {
    LineReader reader(path);
    std::string line;
    bool any = false;
    while (reader.next(&line)) {
        if (reader.number > INT_MAX) fail("%s has more than %d lines", path.c_str(), INT_MAX);
        size_t bom = 0;
        while (line.compare(bom, 3, "\xEF\xBB\xBF") == 0) bom += 3;
        if (line.find_first_not_of(" \t\r", bom) == std::string::npos) continue;
        if (bom > 0) line.replace(0, bom, bom, ' ');  // keeps the columns of messages right
        DatasetRow row;
        row.where = path + ":" + std::to_string(reader.number);
        row.object = parse_row(line, row.where);
        use(row, (int)reader.number);
        any = true;
    }
    if (!any) fail("%s holds no rows; one JSON object a line is expected", path.c_str());
}

// ---------------------------------------------------------------------------------------------------------------------
// problems

// gold_needed: a row without an answer is an error
inline Problem parse_problem(const DatasetRow& row, bool gold_needed) {
    Problem p;
    const char* prompt = first_field(row, {"question", "prompt", "problem"});
    if (!prompt)
        fail("%s: no `question`, `prompt` or `problem`; the row has: %s", row.where.c_str(), row_fields(row).c_str());
    bool math = strcmp(prompt, "problem") == 0, gsm8k = strcmp(prompt, "question") == 0;
    if (strcmp(prompt, "prompt") == 0 && !row.object.at(prompt).is_string()) {
        p.messages = messages_field(row, prompt);
        if (message_has_role(p.messages.back(), "assistant"))
            fail("%s: `prompt` ends with a message of the assistant, whose turn it is", row.where.c_str());
        for (const auto& message : p.messages)
            if (message_has_role(message, "user")) p.question = message["content"].get<std::string>();
        if (trim_field(p.question).empty()) fail("%s: `prompt` has no text of the user", row.where.c_str());
    } else {
        p.question = text_field(row, prompt);
    }
    const char* gold = gsm8k  ? first_field(row, {"answer"})
                       : math ? first_field(row, {"answer", "solution"})
                              : first_field(row, {"answer", "solution", "ground_truth", "label"});
    p.bare = gsm8k || math;
    if (!gold && !gold_needed) return p;
    if (!gold)
        fail("%s: no %s beside `%s`; the row has: %s", row.where.c_str(),
             gsm8k  ? "`answer`"
             : math ? "`answer` or `solution`"
                    : "`answer`, `solution`, `ground_truth` or `label`",
             prompt, row_fields(row).c_str());
    p.gold = gold_field(row, gold, gsm8k || (math && strcmp(gold, "solution") == 0));
    return p;
}

// {"question", "answer": "... #### 72"}           GSM8K
// {"prompt": text or messages, "answer" | "solution" | "ground_truth" | "label"}   TRL
// {"problem", "answer" | "solution": "... \boxed{72}"}   MATH
// keep_rows: with all fields of each row
inline std::vector<Problem> load_problems(const std::string& path, bool gold_needed = true, bool keep_rows = false) {
    std::vector<Problem> problems;
    for_each_row(path, [&](const DatasetRow& row, int line) {
        Problem p = parse_problem(row, gold_needed);
        if (first_field(row, {"reward_funcs"})) p.reward_funcs = text_field(row, "reward_funcs");
        if (keep_rows) p.row = std::make_shared<nlohmann::ordered_json>(row.object);
        p.source = path;
        p.line = line;
        problems.push_back(std::move(p));
    });
    return problems;
}

// ---------------------------------------------------------------------------------------------------------------------
// examples for supervised fine-tuning

inline SftExample parse_sft(const DatasetRow& row) {
    SftExample e;
    const char* kind = first_field(row, {"messages", "prompt", "question", "problem", "text"});
    std::string name = kind ? kind : "";
    if (name == "messages") {
        e.messages = messages_field(row, kind);
        e.prompt_messages = (int)e.messages.size() - 1;
        if (!message_has_role(e.messages.back(), "assistant"))
            fail("%s: the last of `messages` is not of the assistant; that is the one to learn", row.where.c_str());
        if (e.prompt_messages == 0) fail("%s: `messages` holds an answer to nothing", row.where.c_str());
    } else if (name == "prompt") {
        const char* completion = first_field(row, {"completion"});
        if (!completion)
            fail("%s: no `completion` beside `prompt`; the row has: %s", row.where.c_str(), row_fields(row).c_str());
        bool text = row.object.at(kind).is_string();
        if (text != row.object.at(completion).is_string())
            fail("%s: `prompt` and `completion` must both be text or both be messages", row.where.c_str());
        if (text) {
            e.prompt = text_field(row, kind);
            e.completion = text_field(row, completion);
        } else {
            e.messages = messages_field(row, kind);
            e.prompt_messages = (int)e.messages.size();
            for (const auto& message : messages_field(row, completion)) e.messages.push_back(message);
            if (!message_has_role(e.messages[(size_t)e.prompt_messages], "assistant"))
                fail("%s: `completion` does not begin with a message of the assistant", row.where.c_str());
        }
    } else if (name == "question" || name == "problem") {
        const char* answer = first_field(row, {name == "question" ? "answer" : "solution"});
        if (!answer)
            fail("%s: no `%s` beside `%s`; the row has: %s", row.where.c_str(),
                 name == "question" ? "answer" : "solution", kind, row_fields(row).c_str());
        e.prompt = text_field(row, kind);
        e.completion = text_field(row, answer);
        e.bare = true;
    } else if (name == "text") {
        e.completion = text_field(row, kind);
    } else {
        fail("%s: no `messages`, `prompt`, `question`, `problem` or `text`; the row has: %s", row.where.c_str(),
             row_fields(row).c_str());
    }
    return e;
}

// {"prompt", "completion"}: both text or both messages; {"question", "answer"}; {"problem", "solution"}; {"messages"},
// of which the last one is learnt; {"text"}, learnt from its first token on
inline std::vector<SftExample> load_sft(const std::string& path) {
    std::vector<SftExample> examples;
    for_each_row(path, [&](const DatasetRow& row, int line) {
        SftExample e = parse_sft(row);
        e.source = path;
        e.line = line;
        examples.push_back(std::move(e));
    });
    return examples;
}

// ---------------------------------------------------------------------------------------------------------------------
// order

// Uniform in [0, n), n >= 1, without bias: Lemire 2019 (arXiv 1805.10941), multiply and reject. Draw (epoch, index,
// try).
inline uint32_t shuffle_draw(uint64_t seed, uint32_t epoch, uint32_t index, uint32_t n,
                             RngStream stream = RNG_SHUFFLE) {
    uint32_t reject = (uint32_t)(-n) % n;  // 2^32 mod n
    for (uint32_t attempt = 0;; attempt++) {
        Philox4 r = rng_bits(seed, stream, epoch, index, attempt);
        for (uint32_t bits : r.x) {
            uint64_t product = (uint64_t)bits * n;
            if ((uint32_t)product >= reject) return (uint32_t)(product >> 32);
        }
    }
}

// The order of rows 0..n-1 in an epoch, n ints: a Fisher-Yates permutation that depends on (n, seed, epoch) and the
// stream alone.
inline std::vector<int> epoch_order(int n, uint64_t seed, uint32_t epoch, RngStream stream = RNG_SHUFFLE) {
    if (n < 0) fail("epoch_order: %d rows", n);
    std::vector<int> order((size_t)n);
    std::iota(order.begin(), order.end(), 0);
    for (int i = n - 1; i > 0; i--)
        std::swap(order[(size_t)i], order[shuffle_draw(seed, epoch, (uint32_t)i, (uint32_t)i + 1, stream)]);
    return order;
}
