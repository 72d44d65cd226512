// A program of the user's that answers lines: started once, asked one line at a time, ended with the run.
//
//   standard input   a request, one line         standard output   its answer, one line, and nothing else
//   standard error   told on, the first ERROR_LINES of them; the last one is quoted when the program fails
//
// One request is open at a time, so that a crash, a hang or a line too many belongs to one request for certain. Both
// directions and standard error go through one poll(): a program that writes before it reads, or floods its standard
// error, fills no pipe that somebody waits for.
//
// The program has a process group of its own: Ctrl-C in a terminal reaches the run alone, and a kill reaches whatever
// the program has started. If the run dies by SIGKILL the kernel kills the program (PR_SET_PDEATHSIG). It gets no file
// of the run's, and Python's output is not held back (PYTHONUNBUFFERED).
//
// The trap: between fork() and execve() of a program with threads only what is safe in a signal handler may be called.
#pragma once
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>
#if defined(__linux__)
#include <sys/prctl.h>
#endif
#include "../runtime/error.h"
#include "../runtime/printable.h"
#include "../runtime/stop.h"

extern char** environ;

struct ProcessLimits {
    double timeout = 30.0;      // seconds for an answer
    uint64_t memory = 0;        // bytes of address space; 0: no limit
    size_t answer = 64u << 10;  // bytes of an answer
    double goodbye = 1.0;       // seconds to end by itself once its input is closed
};

struct ChildProcess {
    static constexpr int ERROR_LINES = 100;
    std::string name, path;
    ProcessLimits limits;
    pid_t pid = -1;                   // -1: it does not run
    int in = -1, out = -1, err = -1;  // our ends
    std::string answers;              // read and not yet taken
    std::string error_line, last_error;
    int error_lines = 0;  // told, of all that were started

    ChildProcess() = default;
    ChildProcess(const ChildProcess&) = delete;
    ChildProcess& operator=(const ChildProcess&) = delete;
    ~ChildProcess();
};

inline double process_clock() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// ---------------------------------------------------------------------------------------------------------------------
// starting

struct ProcessPipes {
    int in[2] = {-1, -1}, out[2] = {-1, -1}, err[2] = {-1, -1}, failure[2] = {-1, -1};
    ProcessPipes() {
        for (int* p : {in, out, err, failure})
            if (pipe2(p, O_CLOEXEC) != 0) {
                const int e = errno;
                close_all();
                fail("no pipe to a reward program: %s; raise the limit on open files (ulimit -n)", strerror(e));
            }
    }
    ~ProcessPipes() { close_all(); }
    void close_all() {
        for (int* p : {in, out, err, failure}) close_one(p[0]), close_one(p[1]);
    }
    static void close_one(int& fd) {
        if (fd >= 0) ::close(fd);
        fd = -1;
    }
    static int take(int& fd) {
        fcntl(fd, F_SETFL, O_NONBLOCK);
        return std::exchange(fd, -1);
    }
};

// in the child: becomes the program, or tells errno through the pipe `failure`
[[noreturn]] inline void process_become(const ProcessPipes& p, const char* path, char** argv, char** env, pid_t parent,
                                        uint64_t memory) {
    setpgid(0, 0);
#if defined(__linux__)
    prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
    if (getppid() != parent) _exit(127);
    for (int s = 1; s < 32; s++) signal(s, SIG_DFL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    dup2(p.in[0], 0), dup2(p.out[1], 1), dup2(p.err[1], 2);
    dup2(p.failure[1], 3), fcntl(3, F_SETFD, FD_CLOEXEC);
#if defined(SYS_close_range)
    if (syscall(SYS_close_range, 4, ~0u, 0) != 0)
#endif
        for (int fd = 4; fd < 4096; fd++) close(fd);
    if (memory) {
        const struct rlimit limit = {(rlim_t)memory, (rlim_t)memory};
        setrlimit(RLIMIT_AS, &limit);
    }
    execve(path, argv, env);
    const int e = errno;
    if (write(3, &e, sizeof(e)) < 0) _exit(126);
    _exit(127);
}

// what to do about errno e of execve
inline const char* exec_advice(int e) {
    switch (e) {
        case EACCES:
            return "it may not be executed: chmod +x, or its folder's file system is mounted noexec";
        case ENOEXEC:
            return "it is neither a program nor does its first line say which runs it, as #!/usr/bin/env python3 does";
        case ENOENT:
            return "the program that its first line (#!) names is not there";
        case ENOMEM:
            return "raise its memory=";
        default:
            return "try it in a shell";
    }
}

inline void process_start(ChildProcess& c) {
    ProcessPipes p;
    std::string path = c.path;
    char* argv[] = {&path[0], nullptr};
    std::vector<char*> env;
    std::string unbuffered = "PYTHONUNBUFFERED=1";
    for (char** e = environ; e && *e; e++)
        if (strncmp(*e, "PYTHONUNBUFFERED=", 17) != 0) env.push_back(*e);
    env.push_back(&unbuffered[0]);
    env.push_back(nullptr);
    const pid_t parent = getpid(), pid = fork();
    if (pid == 0) process_become(p, path.c_str(), argv, env.data(), parent, c.limits.memory);
    if (pid < 0) fail("cannot start %s: %s", c.path.c_str(), strerror(errno));
    setpgid(pid, pid);  // both do, so that it is done before either needs it
    ProcessPipes::close_one(p.failure[1]);
    int e = 0;
    ssize_t n;
    do n = read(p.failure[0], &e, sizeof(e));
    while (n < 0 && errno == EINTR);
    if (n == (ssize_t)sizeof(e)) {
        while (waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {}
        fail("cannot start %s: %s; %s", c.path.c_str(), strerror(e), exec_advice(e));
    }
    c.pid = pid;
    c.in = ProcessPipes::take(p.in[1]), c.out = ProcessPipes::take(p.out[0]), c.err = ProcessPipes::take(p.err[0]);
    c.answers.clear(), c.error_line.clear(), c.last_error.clear();
}

// ---------------------------------------------------------------------------------------------------------------------
// reading

// Appends what is there, at most a block; false: the other end is closed
inline bool pipe_read(int fd, std::string& to) {
    char block[64 << 10];
    ssize_t n;
    do n = read(fd, block, sizeof(block));
    while (n < 0 && errno == EINTR);
    if (n > 0) to.append(block, (size_t)n);
    return n > 0 || (n < 0 && errno == EAGAIN);
}

inline void process_tell_error_line(ChildProcess& c) {
    static constexpr size_t most = 300;  // bytes of a line that are kept
    std::string line = c.error_line.substr(0, most);
    c.error_line.clear();
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.pop_back();
    if (line.empty()) return;
    c.last_error = line;
    if (c.error_lines == ChildProcess::ERROR_LINES)
        fprintf(stderr, "%s: further lines of its standard error are not shown\n", c.name.c_str());
    if (c.error_lines++ >= ChildProcess::ERROR_LINES) return;
    fprintf(stderr, "%s: %s\n", c.name.c_str(), printable(line, most).c_str());
}

// what is on its standard error now
inline void process_read_errors(ChildProcess& c) {
    std::string text;
    if (c.err < 0) return;
    if (!pipe_read(c.err, text)) ProcessPipes::close_one(c.err);
    for (size_t at = 0; at < text.size();) {
        const size_t end = std::min(text.find('\n', at), text.size());
        if (c.error_line.size() < 4096) c.error_line.append(text, at, end - at);
        if (end < text.size()) process_tell_error_line(c);
        at = end + 1;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// ending

// has it ended? It stays to be waited for, so that its process group cannot be another's yet
inline bool process_has_ended(const ChildProcess& c, siginfo_t* info) {
    memset(info, 0, sizeof(*info));
    return c.pid < 0 || (waitid(P_PID, (id_t)c.pid, info, WEXITED | WNOHANG | WNOWAIT) == 0 && info->si_pid == c.pid);
}

// until it has ended, at most `seconds`
inline bool process_wait(ChildProcess& c, double seconds, siginfo_t* info) {
    const double start = process_clock();
    while (!process_has_ended(c, info)) {
        if (process_clock() - start > seconds) return false;
        process_read_errors(c);
        struct pollfd p = {c.err, POLLIN, 0};
        poll(&p, 1, 5);
    }
    return true;
}

// Its input ends, and if it has not ended then it is killed with all of its group
inline void process_end(ChildProcess& c, bool gentle) {
    if (c.pid < 0) return;
    siginfo_t info;
    ProcessPipes::close_one(c.in);
    if (gentle) process_wait(c, c.limits.goodbye, &info);
    kill(-c.pid, SIGKILL);
    kill(c.pid, SIGKILL);
    while (waitpid(c.pid, nullptr, 0) < 0 && errno == EINTR) {}
    c.pid = -1;
    for (int i = 0; i < 16; i++) process_read_errors(c);  // what is left in the pipe, at most
    process_tell_error_line(c);
    ProcessPipes::close_one(c.out), ProcessPipes::close_one(c.err);
}

inline ChildProcess::~ChildProcess() { process_end(*this, !stop_requested()); }

inline std::string process_last_error(const ChildProcess& c) {
    return c.last_error.empty() ? "" : format(", after the line %s", shown(c.last_error).c_str());
}

// how it ended, where it has closed its output
inline std::string process_end_text(ChildProcess& c) {
    siginfo_t info;
    const bool ended = process_wait(c, c.limits.goodbye, &info);
    for (int i = 0; i < 16; i++) process_read_errors(c);
    process_tell_error_line(c);
    std::string text = "it closed its standard output";
    if (ended && info.si_code == CLD_EXITED) text = format("it ended with exit status %d", info.si_status);
    else if (ended) text = format("it was ended by signal %d (%s)", info.si_status, strsignal(info.si_status));
    return text + process_last_error(c);
}

// ---------------------------------------------------------------------------------------------------------------------
// asking

struct ProcessReply {
    // line: the answer; ended: it did, or gave none in time, which may not happen again; rubbish: it does not keep to one
    // line a request, so that what it prints from here on belongs to nothing
    enum Kind { line, stopped, ended, rubbish } kind;
    std::string text;  // the line, or what went wrong
};

// A write to a program that has ended is an error of write(), whatever SIGPIPE does in this run
struct NoPipeSignal {
    sigset_t pipe, before;
    bool pending;
    NoPipeSignal() {
        sigset_t now;
        sigemptyset(&pipe), sigaddset(&pipe, SIGPIPE), sigemptyset(&now);
        sigpending(&now);
        pending = sigismember(&now, SIGPIPE) == 1;
        pthread_sigmask(SIG_BLOCK, &pipe, &before);
    }
    ~NoPipeSignal() {
        const struct timespec at_once = {0, 0};
        while (!pending && sigtimedwait(&pipe, nullptr, &at_once) < 0 && errno == EINTR) {}
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
    }
};

// Has it read all that was sent? Else what it printed is no answer to that, but a line too many after the one before. The
// line's end may be left to read.
inline bool process_has_read(const ChildProcess& c) {
    int unread = 0;
    return ioctl(c.in, FIONREAD, &unread) != 0 || unread <= 1;
}

// the answer, once its line is there; false: not yet
inline bool process_take_line(ChildProcess& c, bool sent, ProcessReply* reply) {
    const size_t end = c.answers.find('\n');
    if (std::min(end, c.answers.size()) > c.limits.answer)
        *reply = {ProcessReply::rubbish, format("it printed a line of more than %zu KiB", c.limits.answer >> 10)};
    else if (end == std::string::npos) return false;
    else if (!sent || !process_has_read(c))
        *reply = {ProcessReply::rubbish, format("it printed %s before it had read what it was asked",
                                                shown(c.answers.substr(0, end)).c_str())};
    else if (end + 1 < c.answers.size())
        *reply = {ProcessReply::rubbish,
                  format("it printed more than one line, %s and then %s", shown(c.answers.substr(0, end)).c_str(),
                         shown(c.answers.substr(end + 1, 200)).c_str())};
    else *reply = {ProcessReply::line, c.answers.substr(0, end)};
    c.answers.clear();
    return true;
}

// Sends a line (without its end) and waits for the one that comes back
inline ProcessReply process_ask(ChildProcess& c, const std::string& request) {
    const NoPipeSignal no_signal;
    const std::string text = request + "\n";
    const double deadline = process_clock() + c.limits.timeout;
    bool open = pipe_read(c.out, c.answers);  // what nobody asked for
    if (!c.answers.empty())
        return {ProcessReply::rubbish, format("it had printed %s, which nobody asked for", shown(c.answers).c_str())};
    ProcessReply reply;
    for (size_t sent = 0;;) {
        if (stop_requested()) return {ProcessReply::stopped, ""};
        if (process_take_line(c, sent == text.size(), &reply)) return reply;
        if (!open) return {ProcessReply::ended, process_end_text(c)};
        const double left = deadline - process_clock();
        if (left <= 0.0)
            return {ProcessReply::ended, format("it gave no answer within %g s%s%s", c.limits.timeout,
                                                sent < text.size() ? " and does not read what it is asked" : "",
                                                process_last_error(c).c_str())};
        struct pollfd p[3] = {{sent < text.size() ? c.in : -1, POLLOUT, 0}, {c.out, POLLIN, 0}, {c.err, POLLIN, 0}};
        if (poll(p, 3, (int)std::min(left * 1000.0 + 1.0, 100.0)) < 0) continue;
        if (p[2].revents) process_read_errors(c);
        if (p[1].revents) open = pipe_read(c.out, c.answers);
        if (!p[0].revents) continue;
        const ssize_t n = write(c.in, text.data() + sent, text.size() - sent);
        if (n > 0) sent += (size_t)n;
        if (n < 0 && errno == EPIPE) {  // it reads no more: what it still prints, or how it ended, tells
            ProcessPipes::close_one(c.in);
        }
    }
}
