// Whole matrices packed on several threads. The arithmetic is a Target's.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "kernels.h"
#include "threads.h"

namespace baltoro {

constexpr int64_t kTogether = 8;  // panels: the height of a block of fp8, and short enough for each thread to have some

static bool finite(const Numbers& from, const Matrix& to) {
  if (from.type != Numbers::kBlockFp8) return true;
  const int64_t count = ((to.outputs + 127) / 128) * ((to.inputs + 127) / 128);
  return std::all_of(from.scales, from.scales + count, [](float scale) { return std::isfinite(scale); });
}

bool pack(const Target& target, const Numbers& from, const Matrix& to, uint8_t* data, uint8_t* scales, int threads) {
  if (!finite(from, to)) return false;
  std::atomic<bool> good{true};
  auto work = [&](int64_t stripe) {
    thread_local std::vector<float> room;
    room.resize(std::max<size_t>(room.size(), packing_room(to) + kPanel));
    float* aligned = room.data() + (-reinterpret_cast<uintptr_t>(room.data()) & 63) / sizeof(float);
    const int64_t begin = stripe * kTogether, end = std::min(begin + kTogether, panels(to));
    if (!target.pack(from, to, data, scales, begin, end, aligned)) good.store(false, std::memory_order_relaxed);
  };
  parallel_for(threads, (panels(to) + kTogether - 1) / kTogether, work);
  return good;
}

}  // namespace baltoro
