// What this program may replace or delete: only what it wrote. A folder that it writes gets a file .train_qrl with its kind
// and the names of what was written into it; a folder without one, or with a file that is not listed there, holds somebody
// else's work and is refused. Symbolic links: what a path points to is replaced, never the link, so that a folder which
// stands on another disk stays there; what is deleted is never what a link within points to.
#pragma once
#include <algorithm>
#include <filesystem>
#include <set>
#include <string>
#include <vector>
#include "file_io.h"
#include "json.h"

static constexpr const char* WRITTEN_MARK = ".train_qrl";

enum class WrittenKind { model, run };  // replaced as a whole; file by file

inline const char* written_kind_name(WrittenKind kind) { return kind == WrittenKind::model ? "model" : "run"; }

// names: relative to the folder
inline void mark_written(const std::string& folder, WrittenKind kind, const std::set<std::string>& names) {
    nlohmann::ordered_json j;
    j["about"] = "train_qrl wrote these files and replaces no others";
    j["kind"] = written_kind_name(kind);
    j["files"] = names;
    write_file_atomic(folder + "/" + WRITTEN_MARK, j.dump(1) + "\n");
}

// what the mark of a folder lists; nothing without a mark of that kind
inline std::set<std::string> written_names(const std::string& folder, WrittenKind kind) {
    const std::string path = folder + "/" + WRITTEN_MARK;
    std::set<std::string> names;
    if (!file_exists(path)) return names;
    const nlohmann::json j = json_parse(read_file(path, 64 << 20), path);
    if (!j.is_object() || !j.contains("kind") || j["kind"] != written_kind_name(kind) || !j.contains("files") ||
        !j["files"].is_array())
        return names;
    for (const auto& name : j["files"])
        if (name.is_string()) names.insert(name.get<std::string>());
    return names;
}

// all in a folder, the mark excepted: relative names, those of folders end in /
inline std::set<std::string> names_within(const std::string& folder) {
    namespace fs = std::filesystem;
    std::set<std::string> names;
    for (const auto& entry : fs::recursive_directory_iterator(folder)) {
        const std::string name = entry.path().lexically_relative(folder).string();
        if (name != WRITTEN_MARK) names.insert(name + (fs::is_directory(entry.symlink_status()) ? "/" : ""));
    }
    return names;
}

// The first thing in a folder that is not listed as written into it as a model; "": all is, and it may be replaced
inline std::string not_written_here(const std::string& folder) {
    const std::set<std::string> written = written_names(folder, WrittenKind::model);
    for (const std::string& name : names_within(folder))
        if (!written.count(name)) return name;
    return "";
}

// Fails if there is something at path that a model's folder must not replace
inline void check_replaceable(const std::string& path) {
    namespace fs = std::filesystem;
    if (!fs::exists(path)) return;
    if (!fs::is_directory(path)) fail("%s is a file, where a folder is to be written; name another", path.c_str());
    const std::string other = not_written_here(path);
    if (!other.empty())
        fail(
            "%s holds %s, which this program did not write there, so it is not replaced; move it, or name another "
            "folder",
            path.c_str(), shown(other).c_str());
}

// whether a file or folder is `folder` or lies within it
inline bool lies_within(const std::string& path, const std::string& folder) {
    namespace fs = std::filesystem;
    std::error_code ec;
    const fs::path inner = fs::weakly_canonical(path, ec), outer = fs::weakly_canonical(folder, ec);
    return std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end()).first == outer.end();
}
