// Folders that appear whole or not at all, as files do (file_io.h): filled beside their place, flushed, renamed. Beside
// a folder NAME there may be
//   NAME.train_qrl-new    while it is written
//   NAME.train_qrl-old    what it replaces, between two renames
//   NAME.train_qrl-gone   while it is deleted
// A death leaves them there, and repair_folders sees to them: the old one gets its name back if the new one has not got
// it yet. No other names are touched, and no folder that somebody else has written into (written.h). Also here: the lock of a
// run's folder, and its checkpoints by number.
#pragma once
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string>
#include <utility>
#include <vector>
#include "error.h"
#include "file_io.h"
#include "written.h"

static constexpr const char *FOLDER_NEW = ".train_qrl-new", *FOLDER_OLD = ".train_qrl-old",
                            *FOLDER_GONE = ".train_qrl-gone";

inline bool is_folder(const std::string& path) {
    struct stat st;
    return stat(path.c_str(), &st) == 0 && S_ISDIR(st.st_mode);
}

inline std::string parent_folder(const std::string& path) {
    const size_t slash = path.find_last_of('/');
    return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

inline void rename_folder(const std::string& from, const std::string& to) {
    if (rename(from.c_str(), to.c_str()) != 0)
        fail("cannot rename %s to %s: %s; %s", from.c_str(), to.c_str(), strerror(errno), write_advice(errno));
}

// what a death has left of replacing or deleting `dir`
inline void repair_folder(const std::string& dir) {
    std::error_code ec;
    const std::string old = dir + FOLDER_OLD;
    if (is_folder(old) && !is_folder(dir)) {
        rename_folder(old, dir);
        sync_folder(parent_folder(dir));
    }
    for (const char* suffix : {FOLDER_NEW, FOLDER_OLD, FOLDER_GONE}) std::filesystem::remove_all(dir + suffix, ec);
}

// the same for every folder in `parent`, and for the files that a killed process was writing there
inline void repair_folders(const std::string& parent) {
    std::error_code ec;
    std::vector<std::string> found;
    for (const auto& entry : std::filesystem::directory_iterator(parent, ec)) {
        const std::string name = entry.path().filename().string();
        const size_t file = name.rfind(FILE_NEW);
        if (file != name.npos && name.find_first_not_of("0123456789", file + strlen(FILE_NEW)) == name.npos)
            unlink(entry.path().c_str());
        for (const std::string suffix : {FOLDER_NEW, FOLDER_OLD, FOLDER_GONE})
            if (name.size() > suffix.size() && name.compare(name.size() - suffix.size(), suffix.size(), suffix) == 0)
                found.push_back(name.substr(0, name.size() - suffix.size()));
    }
    for (const std::string& name : found) repair_folder(parent + "/" + name);
}

// Held while a folder NAME.train_qrl-new is written, by its descriptor, so that another process that writes the same does not
// take it for what a death has left
struct WritingLock {
    int fd = -1;
    WritingLock(const std::string& dir, const std::string& temp) {
        fd = open(temp.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) return;
        close(fd);
        fail("another process is writing %s; wait for its end or name another folder", dir.c_str());
    }
    ~WritingLock() {
        if (fd >= 0) close(fd);
    }
    WritingLock(const WritingLock&) = delete;
    WritingLock& operator=(const WritingLock&) = delete;
};

// Runs fill(folder) for a folder that gets the name dir when it is complete and on the disk, in place of one that was
// there and that this program wrote. Behind a symbolic link it is written where that points to.
inline void replace_folder(const std::string& name, const std::function<void(const std::string&)>& fill) {
    namespace fs = std::filesystem;
    const std::string dir = behind_links(name), temp = dir + FOLDER_NEW, old = dir + FOLDER_OLD;
    std::error_code ec;
    { WritingLock other(dir, temp); }
    repair_folder(dir);
    check_replaceable(dir);
    if (!fs::create_directories(temp, ec)) fail("cannot create %s: %s", temp.c_str(), ec.message().c_str());
    WritingLock lock(dir, temp);
    try {
        fill(temp);
        mark_written(temp, WrittenKind::model, names_within(temp));
        sync_folder(temp);
    } catch (...) {
        fs::remove_all(temp, ec);
        throw;
    }
    const bool replaces = fs::exists(dir);
    if (replaces) rename_folder(dir, old);
    try {
        rename_folder(temp, dir);
    } catch (...) {
        if (replaces) rename(old.c_str(), dir.c_str());
        fs::remove_all(temp, ec);
        throw;
    }
    sync_folder(parent_folder(dir));
    fs::remove_all(old, ec);
}

// Deletes a folder that this program wrote, whose name is gone before its first file is. The name of what it did not
// write there, for which the folder is left alone; "": none
inline std::string discard_folder(const std::string& dir) {
    std::error_code ec;
    if (!is_folder(dir)) return "";
    const std::string other = not_written_here(dir), gone = dir + FOLDER_GONE;
    if (!other.empty()) return other;
    std::filesystem::remove_all(gone, ec);
    rename_folder(dir, gone);
    sync_folder(parent_folder(dir));
    std::filesystem::remove_all(gone, ec);
    return "";
}

// bytes of the files in a folder
inline uint64_t folder_bytes(const std::string& dir) {
    uint64_t bytes = 0;
    std::error_code ec;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(dir, ec))
        if (entry.is_regular_file(ec)) bytes += entry.file_size(ec);
    return bytes;
}

// bytes that the user may still write into an existing folder or, if there is none yet, its nearest parent; -1: unknown
inline double free_bytes(std::string folder) {
    std::error_code ec;
    while (!is_folder(folder) && folder != "." && folder != "/") folder = parent_folder(folder);
    const std::filesystem::space_info space = std::filesystem::space(folder, ec);
    return ec ? -1.0 : (double)space.available;
}

// ---------------------------------------------------------------------------------------------------------------------
// one run a folder

// Held from the moment it is made; the system lets go of it when the process ends, however it ends
struct FolderLock {
    int fd = -1;
    FolderLock() = default;
    // Fails if another process holds the folder's. Where the file system knows no locks there is none.
    explicit FolderLock(const std::string& folder) {
        const std::string path = folder + "/.lock";
        fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
        if (fd < 0) fail("cannot create %s: %s; %s", path.c_str(), strerror(errno), write_advice(errno));
        if (flock(fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) return;
        close(fd);
        fail("another run is writing into %s; wait for its end or choose another --output_dir", folder.c_str());
    }
    ~FolderLock() {
        if (fd >= 0) close(fd);
    }
    FolderLock(FolderLock&& other) noexcept { std::swap(fd, other.fd); }
    FolderLock& operator=(FolderLock&& other) noexcept {
        std::swap(fd, other.fd);
        return *this;
    }
    FolderLock(const FolderLock&) = delete;
    FolderLock& operator=(const FolderLock&) = delete;
};

// ---------------------------------------------------------------------------------------------------------------------
// checkpoints of a run, which are folders checkpoint-STEP

inline std::string checkpoint_folder(const std::string& run, int64_t step) {
    return format("%s/checkpoint-%lld", run.c_str(), (long long)step);
}

// the steps in ascending order
inline std::vector<int64_t> checkpoint_steps(const std::string& run) {
    std::vector<int64_t> steps;
    std::error_code ec;
    const std::string prefix = "checkpoint-";
    for (const auto& entry : std::filesystem::directory_iterator(run, ec)) {
        const std::string name = entry.path().filename().string();
        const std::string digits = name.compare(0, prefix.size(), prefix) == 0 ? name.substr(prefix.size()) : "";
        if (digits.empty() || digits.size() > 18 || digits.find_first_not_of("0123456789") != digits.npos) continue;
        if (entry.is_directory(ec)) steps.push_back(std::stoll(digits));
    }
    std::sort(steps.begin(), steps.end());
    return steps;
}
