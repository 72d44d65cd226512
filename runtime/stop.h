// Stopping in order: a signal sets a flag, which the training loop asks between steps and within; it then saves and leaves.
//   SIGINT, SIGTERM   the second one leaves at once, with 130
//   SIGHUP            the terminal or the connection is gone
// SIGPIPE is ignored where results are files: that nobody reads standard output any more (`| head`) does not end a run
// (standard_files.h).
// A signal that the parent ignores stays ignored: SIGHUP under nohup, SIGINT of a job in the background.
#pragma once
#include <signal.h>
#include <unistd.h>
#include <cerrno>
#include <cstring>
#include <initializer_list>

inline volatile sig_atomic_t stop_signal = 0;  // the signal that asked the run to stop, or 0
inline volatile sig_atomic_t stop_line = 0;    // a line of progress.h is on the terminal, and is to be cleared first

// only calls that are allowed in a signal handler
extern "C" inline void stop_handler(int signal_number) {
    const bool asked_by_hand = signal_number == SIGINT || signal_number == SIGTERM;
    int saved = errno;
    const size_t skip = stop_line && asked_by_hand ? 1 : 0;  // the ^C that the terminal shows goes with the line
    if (skip && write(2, "\r\033[K", 4) < 0) errno = 0;
    if (skip) stop_line = 0;
    if (stop_signal != 0 && asked_by_hand) _exit(130);
    if (stop_signal == 0) {
        stop_signal = signal_number;
        static const char text[] = "\nstopping; once more to leave at once\n";
        if (asked_by_hand && write(2, text + skip, sizeof(text) - 1 - skip) < 0)
            errno = 0;  // no terminal: nothing to tell
    }
    errno = saved;
}

// SIGXFSZ is turned into an error of write(), so that a file size limit gives a message.
inline void install_stop_handler() {
    for (int s : {SIGINT, SIGTERM, SIGHUP}) {
        struct sigaction old, act;
        if (sigaction(s, nullptr, &old) == 0 && old.sa_handler == SIG_IGN) continue;
        memset(&act, 0, sizeof(act));
        act.sa_handler = stop_handler;
        act.sa_flags = SA_RESTART;
        sigemptyset(&act.sa_mask);
        sigaction(s, &act, nullptr);
    }
    signal(SIGXFSZ, SIG_IGN);
}

inline bool stop_requested() { return stop_signal != 0; }
// what a stopped run exits with: 128 + signal, as shells expect (130 after Ctrl-C)
inline int stop_exit_code() { return 128 + (int)stop_signal; }
