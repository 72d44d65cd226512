// Rows of data files: one JSON object a line (JSONL), or a JSON list of objects (SVAMP.json), told by the first
// character. Reading is by the line, so that a file may be larger than memory, and every message opens with file and
// line.
// The trap: a list on one line is a row number away from its place; messages then say which row.
#pragma once
#include <unistd.h>
#include <cerrno>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>
#include "../runtime/error.h"
#include "../runtime/file_io.h"
#include "../runtime/json.h"
#include "../runtime/progress.h"
#include "../runtime/unicode.h"

static constexpr size_t DATASET_MAX_LINE = 64u << 20;  // bytes

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
    uint64_t size = 0, bytes = 0;  // of the file, and of these what is read

    explicit LineReader(const std::string& path_) : path(path_) { fd = open_regular(path, &size); }
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
        bytes += (uint64_t)n;
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

// A row with nothing in it to ask or to learn. Few of them in a file are left out, where it is read for that
struct UnusableRow : Error {
    UnusableRow(const DatasetRow& row, const std::string& why) : Error(1, row.where + ": " + why) {}
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
    if (trim_field(s).empty()) throw UnusableRow(row, format("`%s` is empty", name));
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

// it says nothing and calls nothing
inline bool is_empty_message(const nlohmann::ordered_json& message) {
    auto calls = message.find("tool_calls");
    return trim_field(message["content"].get_ref<const std::string&>()).empty() &&
           (calls == message.end() || calls->empty());
}

// Cuts the text of JSON lists into their objects. A list may follow another, as in files that were joined.
struct ListSplitter {
    std::string path;
    int64_t rows = 0, line = 0;  // objects so far, and the line where the open one begins
    int64_t list_line = 0;       // where the open list begins; 0: none is open
    std::string text;            // of the open object
    int depth = 0;               // braces and brackets that are open in it
    bool in_string = false, escaped = false;
    enum {
        first,
        row,
        separator
    } wanted = first;  // inside of a list: an object or its end, an object, a comma or the end

    [[noreturn]] void refuse(int64_t number, const std::string& why) const {
        fail("%s:%lld: %s", path.c_str(), (long long)number, why.c_str());
    }
    // the text ends with c, the next character of the open object; true: it is complete
    bool ends_object(char c) {
        if (escaped) escaped = false;
        else if (in_string && c == '\\') escaped = true;
        else if (c == '"') in_string = !in_string;
        else if (!in_string && (c == '{' || c == '[')) depth++;
        else if (!in_string && (c == '}' || c == ']')) depth--;
        return depth == 0;
    }
    // a character between objects; number: of its line
    void between(char c, int64_t number) {
        if (strchr(" \t\r\n", c) && c) return;
        if (list_line == 0) {
            if (c != '[') refuse(number, "text after the end of the list; a file is JSON lines or one JSON list");
            list_line = number, wanted = first;
        } else if (c == ']' && wanted != row) {
            list_line = 0;
        } else if (c == ',' && wanted == separator) {
            wanted = row;
        } else if (c == '{' && wanted != separator) {
            rows++, line = number, depth = 1, text = "{";
        } else {
            const char* expected = wanted == separator ? "a comma or the end of the list" : "an object";
            refuse(number, format("%s where %s is expected, after row %lld of the list",
                                  shown(std::string(1, c)).c_str(), expected, (long long)rows));
        }
    }
    template <typename Object>  // object(): `text` is one
    void take(const std::string& piece, int64_t number, Object object) {
        size_t i = 0;
        while (depth == 0 && piece.compare(i, 3, "\xEF\xBB\xBF") == 0) i += 3;
        for (; i < piece.size(); i++) {
            if (depth == 0) {
                between(piece[i], number);
                continue;
            }
            text += piece[i];
            if (!ends_object(piece[i])) continue;
            object();
            wanted = separator;
        }
        if (depth > 0) text += '\n';
        if (text.size() > DATASET_MAX_LINE)
            refuse(line, format("the object is longer than %zu MiB", DATASET_MAX_LINE >> 20));
    }
    void end() const {
        if (depth > 0) refuse(line, "the object that begins here is not closed; is the file cut off?");
        if (list_line > 0) refuse(list_line, "the list that begins here is not closed; is the file cut off?");
    }
};

// Calls use(row, line) for every line that is not blank, or for every object of the lists that the file is. Byte order
// marks, also those of files that were joined, and CR before the line's end are dropped. kind: part, if the caller tells
// how far it is
template <typename Use>
inline void for_each_row(const std::string& path, Use use, ProgressKind kind = ProgressKind::work) {
    LineReader reader(path);
    Progress progress("reading " + std::filesystem::path(path).filename().string(), "row", 0, kind);
    ListSplitter list;
    list.path = path;
    std::string line;
    bool any = false, is_list = false;
    auto row = [&](const std::string& text, const std::string& where, int64_t number) {
        use(DatasetRow{parse_row(text, where), where}, (int)number);
        any = true;
        progress.add();
        progress.measure((double)reader.bytes, (double)reader.size, "B");
    };
    while (reader.next(&line)) {
        if (reader.number > INT_MAX) fail("%s has more than %d lines", path.c_str(), INT_MAX);
        size_t bom = 0;
        while (line.compare(bom, 3, "\xEF\xBB\xBF") == 0) bom += 3;
        const size_t begin = line.find_first_not_of(" \t\r", bom);
        if (!any && begin != std::string::npos && line[begin] == '[') is_list = true;
        if (is_list) {
            list.take(line, reader.number, [&] {
                row(list.text, format("%s:%lld, row %lld", path.c_str(), (long long)list.line, (long long)list.rows),
                    list.line);
            });
            continue;
        }
        if (begin == std::string::npos) continue;
        if (bom > 0) line.replace(0, bom, bom, ' ');  // keeps the columns of messages right
        row(line, path + ":" + std::to_string(reader.number), reader.number);
    }
    list.end();
    if (!any) fail("%s holds no rows; JSON lines, or a JSON list of objects, are expected", path.c_str());
}
