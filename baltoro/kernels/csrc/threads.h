// Threads for one kernel call at a time.
#pragma once
#include <cstdint>

namespace baltoro {

// Calls work(context, i) once for every i in [0, count), on up to `threads` threads, the calling one among them;
// returns when all are done. Which thread takes which i is left to chance: results must not depend on it. Between
// calls the threads look out for the next for some microseconds, then sleep. A call that comes while another runs
// (from another thread) does its work alone. `work` must not throw.
void parallel(int threads, int64_t count, void (*work)(void* context, int64_t index), void* context);

template <class Work>
static inline void parallel_for(int threads, int64_t count, Work& work) {
  parallel(threads, count, [](void* context, int64_t index) { (*static_cast<Work*>(context))(index); }, &work);
}

}  // namespace baltoro
