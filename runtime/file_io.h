// Files: read-only maps, whole-file reads, atomic writes, JSONL logs.
// A file appears under its name complete or not at all: write beside it, fsync, rename, fsync the folder. The trap is
// that a full disk may show only at fsync or close (delayed allocation, quotas, network mounts), so each is checked.
// Linux/POSIX. A map of a file that someone truncates meanwhile raises SIGBUS: do not edit a model while it is in use.
#pragma once
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <string>
#include "error.h"

// what to do about errno e when a file cannot be created or written
inline const char* write_advice(int e) {
    switch (e) {
        case ENOSPC:
        case EDQUOT:
            return "free some space or choose another folder";
        case EFBIG:
            return "raise the limit on file sizes (ulimit -f) or choose another file system";
        case EACCES:
        case EPERM:
        case EROFS:
            return "choose a folder you may write to";
        case ENOENT:
        case ENOTDIR:
            return "create its folder first";
        default:
            return "choose another path";
    }
}

// overflow-safe a * b for sizes that a file claims; false on overflow
inline bool mul_u64(uint64_t a, uint64_t b, uint64_t* product) { return !__builtin_mul_overflow(a, b, product); }

// ----------------------------------------------------------------------------------------------------------------
// reading

// Opens an existing regular file for reading; fails on folders, pipes and devices. The caller closes the descriptor.
inline int open_regular(const std::string& path, uint64_t* size) {
    int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // O_NONBLOCK: a pipe must not hang the program
    if (fd < 0) fail("cannot open %s: %s; check the path", path.c_str(), strerror(errno));
    struct stat st;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        close(fd);
        fail("cannot read %s: it is %s; give a file", path.c_str(), S_ISDIR(st.st_mode) ? "a folder" : "not a file");
    }
    *size = (uint64_t)st.st_size;
    return fd;
}

// data [size] bytes, read-only, valid as long as the object lives; moving the object does not move the bytes.
struct MappedFile {
    std::string path;
    const uint8_t* data = nullptr;
    uint64_t size = 0;

    MappedFile() = default;
    explicit MappedFile(const std::string& path_) : path(path_) {
        int fd = open_regular(path, &size);
        if (size > 0) {  // mmap refuses length 0
            void* p = mmap(nullptr, (size_t)size, PROT_READ, MAP_PRIVATE, fd, 0);
            if (p == MAP_FAILED) {
                int e = errno;
                close(fd);
                fail("cannot map %s (%llu bytes): %s; free some address space", path.c_str(), (unsigned long long)size,
                     strerror(e));
            }
            data = (const uint8_t*)p;
        }
        close(fd);
    }
    ~MappedFile() {
        if (data) munmap((void*)data, (size_t)size);
    }
    MappedFile(MappedFile&& other) noexcept { swap(other); }
    MappedFile& operator=(MappedFile&& other) noexcept {
        swap(other);
        return *this;
    }
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;
    void swap(MappedFile& other) {
        std::swap(path, other.path);
        std::swap(data, other.data);
        std::swap(size, other.size);
    }
};

// Whole file as a string. Refuses more than max_bytes, so that a wrong path does not fill the memory.
inline std::string read_file(const std::string& path, uint64_t max_bytes = 4ull << 30) {
    uint64_t size = 0;
    int fd = open_regular(path, &size);
    std::string text;
    int error = 0;
    if (size <= max_bytes) {
        text.resize((size_t)size);
        size_t got = 0;
        while (got < text.size()) {
            ssize_t n = read(fd, &text[got], text.size() - got);
            if (n < 0 && errno == EINTR) continue;
            if (n < 0) error = errno;
            if (n <= 0) break;  // 0: the file shrank since fstat
            got += (size_t)n;
        }
        text.resize(got);
    }
    close(fd);
    if (size > max_bytes)
        fail("%s has %llu bytes, more than the %llu this file may have; is it the right file?", path.c_str(),
             (unsigned long long)size, (unsigned long long)max_bytes);
    if (error) fail("cannot read %s: %s; check the disk", path.c_str(), strerror(error));
    return text;
}

inline bool file_exists(const std::string& path) {
    struct stat st;
    return stat(path.c_str(), &st) == 0 && S_ISREG(st.st_mode);
}

// ----------------------------------------------------------------------------------------------------------------
// writing

// The names in a folder, on the disk
inline void sync_folder(const std::string& folder) {
    const int dir = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0) return;  // a folder one may write but not list
    const int e = fsync(dir) != 0 ? errno : 0;
    close(dir);
    if (e != 0 && e != EINVAL)  // EINVAL: a file system without fsync
        fail("%s is written, but cannot be flushed: %s; check the disk", folder.c_str(), strerror(e));
}

// path, or what it points to through any number of links, which need not be there
inline std::string behind_links(std::string path) {
    namespace fs = std::filesystem;
    for (int links = 0; fs::is_symlink(fs::symlink_status(path)); links++) {
        if (links == 40) fail("%s: too many symbolic links, one behind the other; give another path", path.c_str());
        path = (fs::path(path).parent_path() / fs::read_symlink(path)).string();
    }
    return path;
}

static constexpr const char* FILE_NEW = ".train_qrl-new.";  // and the process id: a file that is being written

// A file that appears at commit(), where its path is a symbolic link at what that points to. Until then the bytes are in
// path.train_qrl-new.<pid>; without a commit the destructor removes them. write() collects small pieces into 256 KiB. One
// writer per path and process.
struct AtomicFile {
    std::string path, temp;
    int fd = -1;
    uint64_t written = 0;  // bytes accepted by write()
    std::string pending;
    bool temp_exists = false;

    explicit AtomicFile(const std::string& name)
        : path(behind_links(name)), temp(path + format("%s%ld", FILE_NEW, (long)getpid())) {
        struct stat st;
        if (lstat(path.c_str(), &st) == 0 && !S_ISREG(st.st_mode))
            fail("cannot write %s: it is %s, which a rename would replace; choose another path", path.c_str(),
                 S_ISDIR(st.st_mode) ? "a folder" : "a device or a pipe");
        unlink(temp.c_str());  // left by a killed process that had the same pid
        fd = open(temp.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd < 0) fail("cannot create %s: %s; %s", path.c_str(), strerror(errno), write_advice(errno));
        temp_exists = true;
    }
    ~AtomicFile() {
        if (fd >= 0) close(fd);
        if (temp_exists) unlink(temp.c_str());
    }
    AtomicFile(const AtomicFile&) = delete;
    AtomicFile& operator=(const AtomicFile&) = delete;

    [[noreturn]] void broken(int e) {
        fail("cannot write %s: %s at about byte %llu; %s (no half-written file was left)", path.c_str(), strerror(e),
             (unsigned long long)written, write_advice(e));
    }
    void write_through(const char* p, size_t n) {
        while (n > 0) {
            ssize_t k = ::write(fd, p, n < (1u << 30) ? n : (1u << 30));
            if (k < 0 && errno == EINTR) continue;
            if (k <= 0) broken(k < 0 ? errno : ENOSPC);
            p += k;
            n -= (size_t)k;
        }
    }
    void write(const void* bytes, size_t n) {
        if (fd < 0) fail("cannot write %s: it is already complete", path.c_str());
        written += n;
        if (pending.size() + n < (256u << 10)) {
            pending.append((const char*)bytes, n);
            return;
        }
        write_through(pending.data(), pending.size());
        pending.clear();
        write_through((const char*)bytes, n);
    }
    void write(const std::string& text) { write(text.data(), text.size()); }

    // All bytes on the disk and the descriptor closed, the name not yet given: several files can be made ready before
    // the first one becomes visible.
    void finish() {
        if (fd < 0) return;
        write_through(pending.data(), pending.size());
        pending.clear();
        if (fsync(fd) != 0 && errno != EINVAL) broken(errno);  // EINVAL: a file system without fsync
        int closed = close(fd);
        fd = -1;
        if (closed != 0) broken(errno);
    }
    // finish, then give the file its name
    void commit() {
        finish();
        if (rename(temp.c_str(), path.c_str()) != 0) broken(errno);
        temp_exists = false;
        const size_t slash = path.rfind('/');
        sync_folder(slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash));
    }
};

inline void write_file_atomic(const std::string& path, const std::string& text) {
    AtomicFile file(path);
    file.write(text);
    file.commit();
}

// A log with one record a line, or of records that say themselves where they end. Every record is one write(), so a killed
// run leaves whole ones; one that the disk has no room for is taken back. A last line without its newline (power loss) is
// cut off when the log is reopened. One writer.
struct AppendFile {
    std::string path;
    int fd = -1;
    uint64_t size = 0;     // bytes of complete records
    bool regular = false;  // a terminal or a pipe cannot be truncated

    AppendFile() = default;
    explicit AppendFile(const std::string& path_, bool lines = true) : path(path_) {
        fd = open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
        if (fd < 0) fail("cannot open %s for appending: %s; %s", path.c_str(), strerror(errno), write_advice(errno));
        struct stat st;
        regular = fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
        if (!regular) return;
        size = (uint64_t)st.st_size;
        if (!lines) return;
        char block[4096];
        uint64_t end = size;  // just behind the last newline
        while (end > 0) {
            uint64_t begin = end > sizeof(block) ? end - sizeof(block) : 0;
            ssize_t n = pread(fd, block, (size_t)(end - begin), (off_t)begin);
            if (n != (ssize_t)(end - begin)) close_and_fail("cannot read", n < 0 ? errno : EIO);
            while (n > 0 && block[n - 1] != '\n') n--;
            end = begin + (uint64_t)n;
            if (n > 0) break;
        }
        if (end < size && ftruncate(fd, (off_t)end) != 0) close_and_fail("cannot cut the torn last line of", errno);
        size = end;
    }
    ~AppendFile() {
        if (fd >= 0) ::close(fd);
    }
    AppendFile(AppendFile&& other) noexcept { swap(other); }
    AppendFile& operator=(AppendFile&& other) noexcept {
        swap(other);
        return *this;
    }
    AppendFile(const AppendFile&) = delete;
    AppendFile& operator=(const AppendFile&) = delete;
    void swap(AppendFile& other) {
        std::swap(path, other.path);
        std::swap(fd, other.fd);
        std::swap(size, other.size);
        std::swap(regular, other.regular);
    }

    // text without its newline
    void line(const std::string& text) {
        if (text.find('\n') != std::string::npos)
            fail("a record for %s contains a newline; write it as one JSON line", path.c_str());
        append(text + "\n", "line");
    }
    // what: "line" or "record"
    void append(const std::string& record, const char* what = "record") {
        if (fd < 0) fail("cannot append to %s: it is not open", path.c_str());
        ssize_t n;
        do n = ::write(fd, record.data(), record.size());
        while (n < 0 && errno == EINTR);
        if (n == (ssize_t)record.size()) {
            size += (uint64_t)n;
            return;
        }
        int e = errno;
        if (n >= 0) {  // a short write has no reason; that of the rest has
            ssize_t rest;
            do rest = ::write(fd, record.data() + n, record.size() - (size_t)n);
            while (rest < 0 && errno == EINTR);
            e = rest < 0 ? errno : ENOSPC;
            if (rest > 0) n += rest;
        }
        bool undone = !regular || n <= 0 || ftruncate(fd, (off_t)size) == 0;
        fail("cannot append %llu bytes to %s: %s; %s (%s)", (unsigned long long)record.size(), path.c_str(),
             strerror(e), write_advice(e),
             (undone ? format("the %ss before it are whole", what) : format("its last %s is torn", what)).c_str());
    }
    // on the disk, not only in the page cache
    void sync() {
        if (fd >= 0 && fsync(fd) != 0 && errno != EINVAL && errno != EROFS)
            fail("cannot flush %s: %s; %s", path.c_str(), strerror(errno), write_advice(errno));
    }
    void close() {
        if (fd < 0) return;
        sync();
        int closed = ::close(fd);
        fd = -1;
        if (closed != 0) fail("cannot close %s: %s; %s", path.c_str(), strerror(errno), write_advice(errno));
    }
    [[noreturn]] void close_and_fail(const char* what, int e) {
        ::close(fd);
        fd = -1;
        fail("%s %s: %s; check the disk", what, path.c_str(), strerror(e));
    }
};
