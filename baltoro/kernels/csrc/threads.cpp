#include "threads.h"

#ifndef _WIN32
#include <pthread.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

namespace baltoro {

namespace {

constexpr auto kLookout = std::chrono::microseconds(100);  // longer than torch's small operators between our calls

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Looks at a condition for a while before a sleep.
template <class Condition>
bool soon(Condition condition) {
  const auto give_up = std::chrono::steady_clock::now() + kLookout;
  do {
    for (int i = 0; i < 64; ++i) {
      if (condition()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < give_up);
  return false;
}

// A call is open while there may be work left in it. Who enters an open call finds its work unchanged until he leaves;
// nobody waits for those who have not entered: a sleeping thread may take longer to wake than the work takes.
class Pool {
 public:
  void run(int threads, int64_t count, void (*work)(void*, int64_t), void* context) {
    const std::unique_lock<std::mutex> alone(in_use_, std::try_to_lock);
    const int helpers = static_cast<int>(std::min<int64_t>(threads, count)) - 1;
    if (!alone.owns_lock() || helpers <= 0) {
      for (int64_t i = 0; i < count; ++i) work(context, i);
      return;
    }
    for (; started_ < helpers; ++started_) std::thread(&Pool::help, this, started_, state_.load() / kCall).detach();
    work_ = work, context_ = context, count_ = count, helpers_ = helpers;
    next_.store(0, std::memory_order_relaxed);
    {
      const std::lock_guard<std::mutex> lock(sleep_);  // nobody falls asleep between a look at state_ and the wait
      state_.store((state_.load(std::memory_order_relaxed) / kCall + 1) * kCall + kOpen, std::memory_order_release);
    }
    wake_.notify_all();
    take();
    state_.fetch_sub(kOpen, std::memory_order_relaxed);
    while (state_.load(std::memory_order_acquire) % kCall > 0) relax();
  }

 private:
  // state_: the number of the call, how many are inside, and whether it is open
  static constexpr uint64_t kOpen = 1, kInside = 2, kCall = 1 << 16;

  void take() {
    for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) work_(context_, i);
  }

  bool is_new(uint64_t seen) const {
    const uint64_t state = state_.load(std::memory_order_acquire);
    return state % kInside == kOpen && state / kCall != seen;
  }

  void help(int number, uint64_t seen) {
    while (true) {
      if (!soon([&] { return is_new(seen); })) {
        std::unique_lock<std::mutex> lock(sleep_);
        wake_.wait(lock, [&] { return is_new(seen); });
      }
      uint64_t state = state_.load(std::memory_order_relaxed);
      while (state % kInside == kOpen &&
             !state_.compare_exchange_weak(state, state + kInside, std::memory_order_acquire)) {
      }
      if (state % kInside != kOpen) continue;  // closed meanwhile
      seen = state / kCall;
      if (number < helpers_) take();
      state_.fetch_sub(kInside, std::memory_order_release);
    }
  }

  std::mutex in_use_, sleep_;
  std::condition_variable wake_;
  std::atomic<uint64_t> state_{0};
  std::atomic<int64_t> next_{0};
  void (*work_)(void*, int64_t) = nullptr;
  void* context_ = nullptr;
  int64_t count_ = 0;
  int helpers_ = 0, started_ = 0;
};

// Never destroyed: its threads may still sleep in it when the process ends.
Pool* pool = new Pool;

#ifndef _WIN32
// A forked child has none of the threads, and perhaps a locked mutex.
const int forked = pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
#endif

}  // namespace

void parallel(int threads, int64_t count, void (*work)(void*, int64_t), void* context) {
  pool->run(threads, count, work, context);
}

}  // namespace baltoro
