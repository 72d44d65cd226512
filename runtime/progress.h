// What long work says of itself while it runs: what is done, how fast, how long the rest takes.
//   on a terminal   one line at the bottom, drawn anew five times a second; what is printed goes above it
//     grpo [#####.......] step 41/80, 0.5 s a step, 20 s left | sampling 312/512 completions
//   elsewhere       whole lines on standard error: the first when it is clear that the work takes longer, then one a minute
//     evaluating 527/1280 completions, 2 min left
// A Progress lives as long as its work. One that is made within another's life is shown behind it, whoever made it: the
// command says that it evaluates, the rollout below that it reads prompts, and neither hands the other anything. What is
// a part of some work (ProgressKind::part) is shown only within one.
//
// A thread paints, so that the line also lives while one product takes a minute. Counting costs a lock that nobody else
// holds and a look at the clock: some 50 ns.
//
// The trap: standard output and standard error go through functions here while the line is shown, for printf must clear
// it first and bring it back. What a child process writes to the terminal by itself goes behind it.
#pragma once
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>
#include "error.h"
#include "stop.h"

// seconds since some fixed moment; never goes back
inline double wall_seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// 950 -> "950", 1234567 -> "1.2M", 999999 -> "1.0M", 0.25 -> "0.25"; from 1e18 on "1.0e+18"
inline std::string human_count(double v) {
    if (!std::isfinite(v)) return format("%g", v);
    if (std::fabs(v) < 999.5) return std::fabs(v) < 10 && v != std::floor(v) ? format("%.2g", v) : format("%.0f", v);
    static const char units[] = "kMGTP";
    for (int i = 0; units[i]; i++) {
        v /= 1000;
        if (std::fabs(v) < 999.95) return format("%.1f%c", v, units[i]);
    }
    return format("%.1e", v * 1e15);
}

// "40 s", "38 min", "2.5 h"
inline std::string duration_text(double seconds) {
    if (seconds < 90.0) return format("%.0f s", seconds);
    return seconds < 5400.0 ? format("%.0f min", seconds / 60.0) : format("%.1f h", seconds / 3600.0);
}

// ---------------------------------------------------------------------------------------------------------------------
// counting; times are seconds of one clock, which the caller reads

// Seconds that a unit of work takes, of late rather than on average: at time t behind the beginning, what happened at
// time s weighs (s/t)^2, whatever the scale of the work, so that half of the weight lies in the last fifth of the time
struct Pace {
    double begin = 0.0, latest = 0.0;  // when it began, and when work was last done
    double seconds = 0.0, work = 0.0;  // weighted
    double last = 0.0;                 // work that came at once: a step, the tokens of a micro-batch
    void see(double done, double now) {
        const double before = latest - begin, since = now - begin;
        const double keep = since > 0.0 ? before * before / (since * since) : 1.0;
        seconds = seconds * keep + now - latest;
        work = work * keep + done;
        latest = now, last = done;
    }
    void pause(double how_long) { begin += how_long, latest += how_long; }
    double each() const { return work > 0.0 ? seconds / work : 0.0; }
};

enum class ProgressKind {
    work,   // something by itself
    steps,  // the same, of which each step prints a line; the one at work is shown: "step 41/80" while 40 are done
    part    // of the work that it is made within
};

struct ProgressCount {
    std::string what;
    const char* unit;       // one of them
    int64_t total;          // 0: nobody knows
    ProgressKind kind;      //
    double begun;           // when
    int64_t done = 0;       //
    double amount = 0.0;    // what time is measured by, if not by units: tokens, bytes; so far
    double all = 0.0;       // in the end
    const char* rate = "";  // its unit in a rate; "": rates are of units
    double later = 0.0;     // seconds of what comes besides, such as evaluations
    Pace pace;
    double next;  // when a line may be said where there is no terminal
    bool spoke = false;

    ProgressCount(const std::string& name, const char* of, int64_t n, ProgressKind k, double now)
        : what(name), unit(of), total(n), kind(k), begun(now), next(now + (k == ProgressKind::steps ? 60.0 : 10.0)) {
        pace.begin = pace.latest = now;
    }

    // what another run has done, whose pace says nothing
    void from(int64_t n, double now) {
        pace = Pace();
        pace.begin = pace.latest = now;
        done = n;
    }
    void to(int64_t n, double now) {
        if (all == 0.0 && n > done) pace.see((double)(n - done), now);
        done = n;
    }
    // What is measured first begins the clock: an evaluation reads its prompts once, which is not to be multiplied by the
    // tokens to come
    void measure(double so_far, double in_the_end, const char* of, double now) {
        if (all == 0.0) pace.begin = pace.latest = now;
        else if (so_far > amount) pace.see(so_far - amount, now);
        amount = so_far, all = in_the_end, rate = of;
    }

    bool known() const { return total > 0 || all > 0.0; }
    double share() const {  // done, of 1
        const double s = total > 0 ? (double)done / (double)total : all > 0.0 ? amount / all : 0.0;
        return std::min(std::max(s, 0.0), 1.0);
    }
    // -1: not known yet. What is at work is taken to be as far as the time since the last says, if it is as much
    double left(double now) const {
        const double rest = all > 0.0 ? all - amount : (double)(total - done), each = pace.each();
        const double enough = kind == ProgressKind::steps ? 0.0 : 5.0;
        if (!known() || each == 0.0 || now - pace.begin < enough) return -1.0;
        return std::max(each * rest - std::min(now - pace.latest, each * pace.last), 0.0) + later;
    }
};

// " step 41/80", " 312/512 completions", " 312 rows"; "": nothing can be said yet
inline std::string progress_count_text(const ProgressCount& p, bool with_unit = true) {
    if (p.total <= 0 && p.done == 0 && p.kind != ProgressKind::steps) return "";
    const std::string of = p.total > 0 ? format("/%lld", (long long)p.total) : "";
    if (p.kind == ProgressKind::steps) {
        const int64_t at = p.total > 0 ? std::min(p.done + 1, std::max(p.total, p.done)) : p.done + 1;
        return format(" %s %lld%s", p.unit, (long long)at, of.c_str());
    }
    const bool one = (p.total > 0 ? p.total : p.done) == 1;
    return format(" %lld%s", (long long)p.done, of.c_str()) +
           (with_unit ? format(" %s%s", p.unit, one ? "" : "s") : "");
}

// ", 0.5 s a step", ", 46.8k tok/s"; "": not known
inline std::string progress_rate_text(const ProgressCount& p, double now) {
    const bool of_units = p.all > 0.0 && !*p.rate;
    const double since = now - p.begun, each = of_units ? p.done > 0 ? since / (double)p.done : 0.0 : p.pace.each();
    if (each <= 0.0) return "";
    if (each > 0.1) return format(", %.1f s a %s", each, *p.rate ? p.rate : p.unit);
    return ", " + human_count(1.0 / each) + (*p.rate ? format(" %s/s", p.rate) : format(" %ss/s", p.unit));
}

inline std::string progress_left_text(const ProgressCount& p, double now) {
    const double left = p.left(now);
    return left >= 0.5 ? ", " + duration_text(left) + " left" : "";
}

// The line for work and what is within it, the outermost first. columns: that it may take; 0: all, and no bar
inline std::string progress_text(const std::vector<const ProgressCount*>& stack, double now, int columns) {
    const ProgressCount& top = *stack[0];
    auto within = [&](size_t from, bool whole) {
        std::string s;
        for (size_t i = std::max<size_t>(from, 1); i < stack.size(); i++)
            s += " |" + (stack[i]->what.empty() ? "" : " " + stack[i]->what) + progress_count_text(*stack[i], whole) +
                 (whole ? progress_left_text(*stack[i], now) : "");
        return s;
    };
    const std::string count = progress_count_text(top), left = progress_left_text(top, now);
    if (columns == 0) return top.what + count + left + within(1, true);
    auto fits = [&](const std::string& s) { return (int)s.size() <= columns; };
    const int least = 8, most = 24;
    for (const std::string& rest :
         {count + progress_rate_text(top, now) + left + within(1, true), count + left + within(1, true)}) {
        const int room = columns - (int)(top.what.size() + rest.size()) - 3;  // a space and two brackets
        if (!top.known() && fits(top.what + rest)) return top.what + rest;
        if (!top.known() || room < least) continue;
        const int width = std::min(room, most), full = (int)(width * top.share());
        return top.what + " [" + std::string(full, '#') + std::string(width - full, '.') + "]" + rest;
    }
    const std::string percent = top.known() ? format(" %.0f%%", std::floor(100.0 * top.share())) : "";
    for (const std::string& s :
         {top.what + percent + count + left + within(1, true), top.what + count + left + within(1, false),
          top.what + count + left + within(stack.size() - 1, false), top.what + count + within(stack.size() - 1, false),
          top.what + count + left})
        if (fits(s)) return s;
    return (top.what + count).substr(0, (size_t)std::max(columns, 0));
}

// Is a line to be said now, where there is no terminal? By the innermost that is more than a part
inline bool progress_due(const std::vector<ProgressCount*>& stack, double now) {
    size_t at = stack.size() - 1;
    while (at > 0 && stack[at]->kind == ProgressKind::part) at--;
    const ProgressCount& p = *stack[at];
    if (now < p.next) return false;
    if (p.kind == ProgressKind::work && !p.spoke) {
        double left = -1.0;
        for (size_t i = at; i < stack.size(); i++) left = std::max(left, stack[i]->left(now));
        if (left >= 0.0 ? left <= 20.0 : now - p.begun < 60.0) return false;
    }
    for (ProgressCount* each : stack) each->next = now + 60.0;
    stack[at]->spoke = true;
    return true;
}

// ---------------------------------------------------------------------------------------------------------------------
// the terminal

inline bool progress_is_terminal(int fd) {
    const char* term = getenv("TERM");
    return term && *term && strcmp(term, "dumb") != 0 && isatty(fd);
}

// On standard error; not beside a standard output that goes through a pipe, for `| tee` prints to the same terminal
// whenever it wants
inline bool progress_has_terminal() {
#if defined(__GLIBC__)
    struct stat out;
    const bool piped = fstat(STDOUT_FILENO, &out) == 0 && (S_ISFIFO(out.st_mode) || S_ISSOCK(out.st_mode));
    return progress_is_terminal(STDERR_FILENO) && !piped;
#else
    return false;  // there is no fopencookie
#endif
}

inline int progress_columns() {
    struct winsize size;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
    const char* text = getenv("COLUMNS");
    const int columns = text ? atoi(text) : 0;
    return columns > 0 ? columns : 80;
}

inline const std::thread::id progress_thread = std::this_thread::get_id();  // the main one

struct ProgressScreen {
    std::mutex lock;  // of all here, and of every count in the stack
    std::condition_variable wake;
    std::thread painter;
    std::vector<ProgressCount*> stack;
    bool silent = false;  // another rank tells
    bool terminal = false, caught = false, ended = false;
    std::string line;     // that was drawn last
    bool inside = false;  // something else has begun a line there
};

// never destroyed: what is left in stdout's buffer is printed behind all destructors
inline ProgressScreen& progress_screen() {
    static ProgressScreen* screen = new ProgressScreen;
    return *screen;
}

// what cannot be written is given up: nothing here is a result
inline size_t progress_write(int fd, const char* text, size_t n) {
    size_t at = 0;
    while (at < n) {
        const ssize_t wrote = write(fd, text + at, n - at);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote <= 0) break;
        at += (size_t)wrote;
    }
    return at;
}

// the next three: with the lock
inline void progress_clear() {
    if (stop_line) progress_write(STDERR_FILENO, "\r\033[K", 4);
    stop_line = 0;
}

// what the stack says now, unless it stands there
inline void progress_show(ProgressScreen& s, double now) {
    const pid_t foreground = tcgetpgrp(STDERR_FILENO);  // -1: no terminal of a shell's
    if (s.stack.empty() || s.inside || (foreground >= 0 && foreground != getpgrp())) return;
    const std::vector<const ProgressCount*> stack(s.stack.begin(), s.stack.end());
    const std::string text =
        "\r" + progress_text(stack, now, progress_columns() - 1) + "\033[K";  // a full line may wrap
    if (text == s.line && stop_line) return;
    s.line = text;
    stop_line = 1;
    progress_write(STDERR_FILENO, text.data(), text.size());
}

inline void progress_tell(ProgressScreen& s, double now) {
    if (s.terminal) return progress_show(s, now);
    if (!progress_due(s.stack, now)) return;
    const std::string text = progress_text({s.stack.begin(), s.stack.end()}, now, 0) + "\n";
    progress_write(STDERR_FILENO, text.data(), text.size());
}

// printf's way to a terminal; cookie: the descriptor
inline ssize_t progress_print(void* cookie, const char* text, size_t n) {
    ProgressScreen& s = progress_screen();
    std::lock_guard<std::mutex> hold(s.lock);
    const bool had = stop_line;
    progress_clear();
    const size_t wrote = progress_write((int)(intptr_t)cookie, text, n);
    if (wrote > 0) s.inside = text[wrote - 1] != '\n';
    if (had) progress_show(s, wall_seconds());
    return (ssize_t)wrote;
}

// Once. A standard file that is no terminal stays as it is
inline void progress_catch_output() {
#if defined(__GLIBC__)
    for (FILE** file : {&stdout, &stderr}) {
        const int fd = file == &stdout ? STDOUT_FILENO : STDERR_FILENO;
        if (!isatty(fd)) continue;
        fflush(*file);
        cookie_io_functions_t functions = {nullptr, progress_print, nullptr, nullptr};
        FILE* through = fopencookie((void*)(intptr_t)fd, "w", functions);
        if (!through) continue;
        setvbuf(through, nullptr, fd == STDOUT_FILENO ? _IOLBF : _IONBF, fd == STDOUT_FILENO ? BUFSIZ : 0);
        *file = through;
    }
#endif
}

inline void progress_paint() {
    ProgressScreen& s = progress_screen();
    std::unique_lock<std::mutex> hold(s.lock);
    const auto pause = std::chrono::milliseconds(s.terminal ? 200 : 1000);
    while (!s.wake.wait_for(hold, pause, [&s] { return s.ended; })) progress_tell(s, wall_seconds());
}

inline void progress_start(ProgressScreen& s) {
    sigset_t all, before;  // signals are the main thread's, whose waits they end
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    try {
        s.painter = std::thread(progress_paint);
    } catch (const std::system_error&) {  // a limit on threads: the work goes on and says nothing
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

// ---------------------------------------------------------------------------------------------------------------------
// what work makes

// This process says nothing of its progress from now on
inline void progress_silence() { progress_screen().silent = true; }

struct Progress {
    // total 0: not known. Other threads than the main one count, and nothing is shown of it
    Progress(const std::string& what, const char* unit, int64_t total, ProgressKind kind = ProgressKind::work)
        : count(what, unit, total, kind, wall_seconds()) {
        ProgressScreen& s = progress_screen();
        if (s.silent || std::this_thread::get_id() != progress_thread) return;
        std::lock_guard<std::mutex> hold(s.lock);
        if (kind == ProgressKind::part && s.stack.empty()) return;
        s.stack.push_back(&count);
        entered = true;
        if (s.stack.size() > 1) return;
        s.terminal = progress_has_terminal(), s.ended = false;
        if (s.terminal && !s.caught) progress_catch_output(), s.caught = true;
        progress_start(s);
    }
    Progress(const Progress&) = delete;
    Progress& operator=(const Progress&) = delete;

    ~Progress() {
        if (!entered) return;
        ProgressScreen& s = progress_screen();
        {
            std::lock_guard<std::mutex> hold(s.lock);
            s.stack.pop_back();
            const double took = wall_seconds() - count.begun;  // which says nothing of the pace of what it was within
            if (count.kind != ProgressKind::part)
                for (ProgressCount* outer : s.stack) outer->pace.pause(took);
            if (!s.stack.empty()) return;
            s.ended = true;
            progress_clear();
        }
        s.wake.notify_one();
        if (s.painter.joinable()) s.painter.join();
    }

    // n are done already, and not by this: the clock begins here
    void from(int64_t n) {
        std::lock_guard<std::mutex> hold(progress_screen().lock);
        count.from(n, wall_seconds());
    }
    void to(int64_t n) {
        std::lock_guard<std::mutex> hold(progress_screen().lock);
        count.to(n, wall_seconds());
    }
    void add(int64_t n = 1) {
        std::lock_guard<std::mutex> hold(progress_screen().lock);
        count.to(count.done + n, wall_seconds());
    }
    // the units that there are to do, where work brings more of it
    void of(int64_t total) {
        std::lock_guard<std::mutex> hold(progress_screen().lock);
        count.total = total;
    }
    // Time is measured by this and not by units; all: what it will be in the end, as far as one knows
    void measure(double amount, double all, const char* rate = "") {
        std::lock_guard<std::mutex> hold(progress_screen().lock);
        count.measure(amount, all, rate, wall_seconds());
    }
    // seconds that other work will take before the end
    void later(double seconds) {
        std::lock_guard<std::mutex> hold(progress_screen().lock);
        count.later = seconds;
    }
    // a line of its own says how far it is
    void spoke() {
        std::lock_guard<std::mutex> hold(progress_screen().lock);
        count.next = wall_seconds() + 60.0;
    }
    // ", 20 s left", for such a line
    std::string left() {
        std::lock_guard<std::mutex> hold(progress_screen().lock);
        return progress_left_text(count, wall_seconds());
    }

private:
    ProgressCount count;
    bool entered = false;
};
