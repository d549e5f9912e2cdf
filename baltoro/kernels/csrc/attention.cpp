// Attention over whole batches: which queries meet which keys, on which thread. The arithmetic is a Target's.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels.h"
#include "threads.h"

namespace baltoro {

namespace {

constexpr int64_t kGroup = 2 * kPanel;  // queries that go together
constexpr int64_t kPiece = 512;         // cached rows of one task: a fixed number, whatever the threads
constexpr float kNothing = -3.0e38f;    // a peak below every score

uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// Up to 32 queries, `stride` numbers apart, as a bf16 matrix.
struct Queries {
  std::vector<uint16_t> room;

  Matrix pack(const float* from, int64_t count, int64_t width, int64_t stride) {
    Matrix packed{Format::kBf16, count, width, 0, nullptr, nullptr};
    room.assign(panels(packed) * panel_bytes(packed) / 2, 0);
    for (int64_t q = 0; q < count; ++q)
      for (int64_t i = 0; i < width; ++i)
        room[q / kPanel * (panel_bytes(packed) / 2) + i / 2 * 2 * kPanel + q % kPanel * 2 + i % 2] =
            to_bf16(from[q * stride + i]);
    packed.data = reinterpret_cast<const uint8_t*>(room.data());
    return packed;
  }
};

void forget(Attended& state, int64_t queries) {
  std::fill(state.peak, state.peak + kGroup, kNothing);
  std::fill(state.sum, state.sum + kGroup, 0.0f);
  std::fill(state.mixed, state.mixed + queries * state.width, 0.0f);
}

}  // namespace

void mla_decode(const Target& target, const float* q, const uint16_t* cache, const int64_t* slots, const int64_t* edges,
                float scale, float* context, int64_t B, int64_t H, int64_t C, int64_t R, int threads) {
  struct Task {
    int64_t sequence, first_head, begin, end;
  };
  std::vector<Task> tasks;  // of a sequence and its heads: one behind the other, by position
  for (int64_t b = 0; b < B; ++b)
    for (int64_t head = 0; head < H; head += kGroup)
      for (int64_t begin = edges[b]; begin < edges[b + 1]; begin += kPiece)
        tasks.push_back({b, head, begin, std::min(begin + kPiece, edges[b + 1])});
  const int64_t count = static_cast<int64_t>(tasks.size()), room = kGroup * (C + 2);
  thread_local std::vector<float> parts;  // peaks, sums and mixtures of every task
  parts.resize(std::max<size_t>(parts.size(), count * room));
  float* const first_part = parts.data();  // the caller's, for all threads

  auto state_of = [=](int64_t task) {
    float* at = first_part + task * room;
    return Attended{at, at + kGroup, at + 2 * kGroup, C};
  };
  auto look = [&](int64_t i) {
    thread_local Queries queries;
    const Task& task = tasks[i];
    const int64_t heads = std::min(kGroup, H - task.first_head);
    const Matrix packed = queries.pack(q + (task.sequence * H + task.first_head) * (C + R), heads, C + R, C + R);
    Attended state = state_of(i);
    forget(state, heads);
    target.attend(packed, {cache, cache, C + R, C + R, slots}, task.begin, task.end, INT64_MAX / 2, scale, state);
  };
  parallel_for(threads, count, look);

  auto join = [&](int64_t index) {
    const int64_t b = index / H, head = index % H, lane = head % kGroup;
    float* to = context + index * C;
    std::fill(to, to + C, 0.0f);
    float peak = kNothing, sum = 0.0f;
    int64_t first = 0;
    while (tasks[first].sequence != b || tasks[first].first_head != head - lane) ++first;
    int64_t last = first;
    for (; last < count && tasks[last].sequence == b && tasks[last].first_head == head - lane; ++last)
      peak = std::max(peak, state_of(last).peak[lane]);
    for (int64_t task = first; task < last; ++task) {
      const Attended state = state_of(task);
      const float share = std::exp(state.peak[lane] - peak);
      sum += share * state.sum[lane];
      for (int64_t c = 0; c < C; ++c) to[c] += share * state.mixed[lane * C + c];
    }
    for (int64_t c = 0; c < C; ++c) to[c] /= sum;
  };
  parallel_for(threads, B * H, join);
}

void causal_attention(const Target& target, const float* q, const uint16_t* k, const uint16_t* v, float scale,
                      float* out, int64_t T, int64_t S, int64_t H, int64_t K, int64_t V, int threads) {
  const int64_t past = S - T, blocks = (T + kGroup - 1) / kGroup;
  auto work = [&](int64_t index) {
    thread_local Queries queries;
    thread_local std::vector<float> room;
    room.resize(std::max<size_t>(room.size(), kGroup * (V + 2)));
    // The longest blocks first, so that the threads end together
    const int64_t head = index % H, first = (blocks - 1 - index / H) * kGroup, count = std::min(kGroup, T - first);
    const Matrix packed = queries.pack(q + (first * H + head) * K, count, K, H * K);
    Attended state{room.data(), room.data() + kGroup, room.data() + 2 * kGroup, V};
    forget(state, count);
    target.attend(packed, {k + head * K, v + head * V, H * K, H * V, nullptr}, 0, past + first + count, past + first,
                  scale, state);
    for (int64_t t = 0; t < count; ++t)
      for (int64_t c = 0; c < V; ++c) out[((first + t) * H + head) * V + c] = state.mixed[t * V + c] / state.sum[t];
  };
  parallel_for(threads, blocks * H, work);
}

}  // namespace baltoro
