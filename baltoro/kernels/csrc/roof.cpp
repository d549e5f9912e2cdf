// The roofs that kernels are measured against, on all threads at once.
#include <atomic>
#include <chrono>

#include "kernels.h"
#include "threads.h"

namespace baltoro {

namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

volatile uint32_t sink;  // what was computed is used

}  // namespace

double read_roof(const Target& target, const uint8_t* from, int64_t bytes, int threads) {
  const int64_t share = bytes / threads / 512 * 512;
  auto work = [&](int64_t i) { sink = target.read_all(from + i * share, share); };
  const auto start = std::chrono::steady_clock::now();
  parallel_for(threads, threads, work);
  return static_cast<double>(share) * threads / seconds_since(start);
}

double multiply_roof(const Target& target, Format format, int threads) {
  alignas(64) static const uint8_t weights[128] = {1, 2, 3};
  alignas(64) static const int8_t inputs[96] = {1, 2, 3};
  double best = 0;
  for (int64_t rounds = 1000, again = 0; again < 8; ++again) {
    std::atomic<int64_t> products = 0;
    auto work = [&](int64_t) {
      uint32_t used = 0;
      products += target.multiply(format, rounds, weights, inputs, used);
      sink = used;
    };
    const auto start = std::chrono::steady_clock::now();
    parallel_for(threads, threads, work);
    const double seconds = seconds_since(start), rate = static_cast<double>(products) * 2 / seconds;
    if (seconds < 0.02)
      rounds *= 4, again = -1;
    else if (rate > best)
      best = rate;
  }
  return best;
}

}  // namespace baltoro
