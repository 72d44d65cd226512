// Standard input, output and error, which may be closed, full, or read by nobody any more (`| head`). Closed ones are
// opened on /dev/null, or else the next file that the program opens gets their number, and what is printed lands in it. What
// cannot be printed never ends a run, whose results are files; of the commands whose result is what they print it is the
// failure.
#pragma once
#include <fcntl.h>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>
#include "error.h"

// before any other file is opened
inline void open_standard_files() {
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0 && errno == EBADF && open("/dev/null", O_RDWR) != fd)
            _Exit(1);  // the lowest is free
}

// what went wrong with standard output just now, for a message; "": nothing
inline std::string output_error() {
    errno = 0;
    if (fflush(stdout) == 0 && !ferror(stdout)) return "";
    return std::string("standard output cannot be written") + (errno ? ": " : "") + (errno ? strerror(errno) : "");
}

// standard output holds the results of this command, and all of them are to be there
inline void flush_result() {
    const std::string error = output_error();
    if (!error.empty()) fail("%s; what it got is not complete", error.c_str());
}

// a line of the result; the work ends with the first that cannot be written
inline void print_result(const std::string& line) {
    if (printf("%s\n", line.c_str()) < 0 || ferror(stdout)) flush_result();
}

// Flushes the report of a run. Says once where to look instead if it cannot be written. results: a path, or ""
inline void flush_report(const std::string& results) {
    static bool said = false;
    const std::string error = output_error();
    if (error.empty() || said) return;
    said = true;
    fprintf(stderr, "note: %s; the run goes on%s%s\n", error.c_str(), results.empty() ? "" : ", its results are in ",
            results.c_str());
}
