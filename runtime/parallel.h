// Which work is worth more than one thread.
#pragma once
#include <cstdint>

// For `if` of an OpenMP region. work: about the nanoseconds that one thread needs on a CPU of today, whose cache holds the
// operands. A region costs 1 to 2 us while the other threads are awake and some 10 when they have to be woken: a decode step
// of the embedded model has 60 regions, most of them smaller than that. Results do not depend on it.
// One thread or all of them: libgomp ends the threads that a smaller team leaves out and starts them again for the next.
inline bool worth_threads(int64_t work) { return work > 5000; }
