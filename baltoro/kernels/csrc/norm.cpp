// Norms, rotation, and what a token leaves in the latent cache.
#include <algorithm>
#include <cstring>
#include <vector>

#include "around.h"
#include "threads.h"

namespace baltoro {

namespace {

constexpr int64_t kWorthThreads = 32768;  // numbers; below it a thread's awakening costs more than the work

int threads_for(int64_t numbers, int threads) { return numbers < kWorthThreads ? 1 : threads; }

void turn(float* x, const float* cos, const float* sin, int64_t R) {
  for (int64_t i = 0; i < R / 2; ++i) {
    const float even = x[2 * i], odd = x[2 * i + 1];
    x[2 * i] = even * cos[i] - odd * sin[i];
    x[2 * i + 1] = even * sin[i] + odd * cos[i];
  }
}

uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

}  // namespace

void rms_norm(const Target& target, const float* x, int64_t stride, const float* added, const float* weight, float eps,
              float* sum, float* y, int64_t T, int64_t D, int threads) {
  auto work = [&](int64_t t) {
    if (added)
      target.normalize(x + t * stride, added + t * D, weight, eps, sum + t * D, y + t * D, D);
    else
      target.normalize(x + t * stride, nullptr, weight, eps, nullptr, y + t * D, D);
  };
  parallel_for(threads_for(T * D, threads), T, work);
}

void rotate(float* x, const float* cos, const float* sin, int64_t T, int64_t H, int64_t R, int64_t stride,
            int64_t head_stride, int threads) {
  auto work = [&](int64_t t) {
    for (int64_t h = 0; h < H; ++h) turn(x + t * stride + h * head_stride, cos + t * R / 2, sin + t * R / 2, R);
  };
  parallel_for(threads_for(T * H * R, threads), T, work);
}

void write_latents(const Target& target, const float* x, const float* weight, float eps, const float* cos,
                   const float* sin, void* cache, bool is_bf16, const int64_t* slots, int64_t T, int64_t C, int64_t R,
                   int threads) {
  auto work = [&](int64_t t) {
    thread_local std::vector<float> row;
    const int64_t width = C + R;
    row.resize(width);
    target.normalize(x + t * width, nullptr, weight, eps, nullptr, row.data(), C);
    std::copy(x + t * width + C, x + (t + 1) * width, row.data() + C);
    turn(row.data() + C, cos + t * R / 2, sin + t * R / 2, R);
    if (is_bf16)
      std::transform(row.begin(), row.end(), static_cast<uint16_t*>(cache) + slots[t] * width, to_bf16);
    else
      std::copy(row.begin(), row.end(), static_cast<float*>(cache) + slots[t] * width);
  };
  parallel_for(threads_for(T * (C + R), threads), T, work);
}

}  // namespace baltoro
