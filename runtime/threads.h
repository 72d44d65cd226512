// OpenMP's threads.
#pragma once
#include <unistd.h>
#include <cstdlib>

// A thread that spins at a barrier is fastest as long as the machine is otherwise idle. With one other program on two
// cores it holds the core that the thread it waits for would need: measured 1.3k tokens/s spinning and 24k sleeping,
// against 45k and 38k on an idle machine. So threads sleep unless the user says otherwise. libgomp reads the variable
// when it is loaded, which is why the program starts itself again.
inline void threads_sleep_at_barriers(char** argv) {
#if defined(_OPENMP) && defined(__linux__)
    if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT")) return;
    setenv("OMP_WAIT_POLICY", "passive", 1);
    execv("/proc/self/exe", argv);  // returns only if it failed: then the threads spin, and all else is the same
#else
    (void)argv;
#endif
}
