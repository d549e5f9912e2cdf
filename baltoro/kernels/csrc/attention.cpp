// Attention over whole batches: which queries meet which keys, on which thread. The arithmetic is a Target's.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "around.h"
#include "latents.h"
#include "threads.h"

namespace baltoro {

namespace {

constexpr int64_t kGroup = 2 * kPanel;   // queries that go together
constexpr int64_t kTogether = 256;       // rows that all groups of queries meet while they are in a core's own cache
constexpr int64_t kSmallestPiece = 512;  // cached rows of one task, at least
constexpr int64_t kMostPieces = 32;      // of a sequence: every piece has a mixture of its own to be written and read
constexpr int64_t kBlock = 4 * kGroup;   // queries of a task in prefill
constexpr float kNothing = -3.0e38f;     // a peak below every score

// Of a matrix of at most 32 packed queries, in numbers.
int64_t query_room(int64_t width) { return kGroup * ((width + 3) / 4 * 4); }

template <class Number>
Number* room_for(std::vector<Number>& room, int64_t count) {
  room.resize(std::max<size_t>(room.size(), count));
  return room.data();
}

// 64-byte aligned room for the arranged values of `rows` rows
uint8_t* arranged_room(std::vector<uint8_t>& room, int64_t rows, int64_t width) {
  uint8_t* at = room_for(room, (rows + 31) / 32 * 32 * width * 2 + 63);
  return at + (64 - reinterpret_cast<uintptr_t>(at) % 64) % 64;
}

// Up to 32 queries, `stride` numbers apart, as a bf16 matrix in `room`. Their width is even.
Matrix pack_queries(const Target& target, const float* from, int64_t count, int64_t width, int64_t stride,
                    uint16_t* room) {
  thread_local std::vector<uint16_t> plain_room;
  uint16_t* const plain = room_for(plain_room, kGroup * width);
  target.round_rows(from, stride, count, width, plain, width);
  const Matrix packed{Format::kBf16, count, width, 0, reinterpret_cast<const uint8_t*>(room), nullptr};
  const int64_t panel = panel_bytes(packed) / 2;
  if (count % kPanel || width % 4) std::fill(room, room + panels(packed) * panel, uint16_t{0});
  for (int64_t q = 0; q < count; ++q) {
    uint16_t* to = room + q / kPanel * panel + q % kPanel * 2;
    for (int64_t i = 0; i < width; i += 2) std::memcpy(to + i * kPanel, plain + q * width + i, 4);
  }
  return packed;
}

// Peaks, sums and mixtures of 32 queries, in numbers; as an Attended.
int64_t state_room(int64_t width) { return kGroup * (width + 2); }
Attended state_at(float* room, int64_t width) { return {room, room + kGroup, room + 2 * kGroup, width}; }

void forget(const Attended& state, int64_t queries) {
  std::fill(state.peak, state.peak + kGroup, kNothing);
  std::fill(state.sum, state.sum + kGroup, 0.0f);
  std::fill(state.mixed, state.mixed + queries * state.width, 0.0f);
}

// Queries [first, first + count) of one head, q(., K) and out(., V) `stride` and `out_stride` numbers apart, to keys
// 0 .. past + their own number.
void attend_block(const Target& target, const float* q, int64_t stride, const KeyRows& rows, int64_t past, float scale,
                  float* out, int64_t out_stride, int64_t first, int64_t count, int64_t K, int64_t V) {
  thread_local std::vector<uint16_t> queries_room;
  thread_local std::vector<uint8_t> values_room;
  thread_local std::vector<float> states_room;
  const int64_t groups = (count + kGroup - 1) / kGroup;
  uint16_t* const queries = room_for(queries_room, groups * query_room(K));
  float* const states = room_for(states_room, groups * state_room(V));
  Matrix packed[kBlock / kGroup];
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t from = first + g * kGroup, some = std::min(kGroup, first + count - from);
    packed[g] = pack_queries(target, q + from * stride, some, K, stride, queries + g * query_room(K));
    forget(state_at(states + g * state_room(V), V), some);
  }
  const int64_t seen = past + first + count;
  for (int64_t begin = 0; begin < seen; begin += kTogether) {
    const int64_t next = begin + kTogether, ahead = std::max<int64_t>(0, std::min(next + kTogether, seen) - next);
    KeyRows some = rows;
    if (target.arrange && !rows.arranged) {
      uint8_t* const values = arranged_room(values_room, kTogether, V);
      target.arrange(rows, begin, std::min(next, seen), V, values);
      some.arranged = values, some.arranged_from = begin;
    }
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t before = past + first + g * kGroup, end = std::min(next, before + packed[g].outputs);
      some.ahead = next + ahead * g / groups, some.ahead_end = next + ahead * (g + 1) / groups;
      Attended state = state_at(states + g * state_room(V), V);
      if (begin < end) target.attend(packed[g], some, begin, end, before, scale, state);
    }
  }
  for (int64_t t = 0; t < count; ++t) {
    const Attended state = state_at(states + t / kGroup * state_room(V), V);
    const float* mixed = state.mixed + t % kGroup * V;
    for (int64_t c = 0; c < V; ++c) out[(first + t) * out_stride + c] = mixed[c] / state.sum[t % kGroup];
  }
}

}  // namespace

void mla_decode(const Target& target, const float* q, const uint16_t* cache, const int64_t* slots, const int64_t* edges,
                float scale, float* context, int64_t B, int64_t H, int64_t C, int64_t R, int threads) {
  struct Task {
    int64_t sequence, begin, end;
  };
  // By position, one sequence behind the other. How a sequence is divided depends on nothing but its length.
  thread_local std::vector<Task> task_room;
  thread_local std::vector<int64_t> first_room;  // (B + 1,)
  thread_local std::vector<uint16_t> queries_room;
  thread_local std::vector<float> states_room;
  task_room.clear(), first_room.assign(1, 0);
  for (int64_t b = 0; b < B; ++b) {
    const int64_t seen = edges[b + 1] - edges[b];
    const int64_t piece =
        std::max<int64_t>(1, (seen + kMostPieces * kSmallestPiece - 1) / (kMostPieces * kSmallestPiece)) *
        kSmallestPiece;
    for (int64_t begin = edges[b]; begin < edges[b + 1]; begin += piece)
      task_room.push_back({b, begin, std::min(begin + piece, edges[b + 1])});
    first_room.push_back(static_cast<int64_t>(task_room.size()));
  }
  const int64_t width = C + R, groups = (H + kGroup - 1) / kGroup, count = static_cast<int64_t>(task_room.size());
  uint16_t* const queries = room_for(queries_room, B * groups * query_room(width));
  float* const states = room_for(states_room, count * groups * state_room(C));
  const Task* const tasks = task_room.data();
  const int64_t* const first = first_room.data();

  auto heads_of = [=](int64_t group) { return std::min(kGroup, H - group * kGroup); };
  auto pack = [=, &target](int64_t index) {
    const int64_t b = index / groups, g = index % groups;
    pack_queries(target, q + (b * H + g * kGroup) * width, heads_of(g), width, width,
                 queries + index * query_room(width));
  };
  parallel_for(threads, B * groups, pack);

  auto state_of = [=](int64_t task, int64_t g) { return state_at(states + (task * groups + g) * state_room(C), C); };
  auto look = [=, &target](int64_t i) {
    thread_local std::vector<uint8_t> values_room;
    const Task& task = tasks[i];
    for (int64_t g = 0; g < groups; ++g) forget(state_of(i, g), heads_of(g));
    for (int64_t begin = task.begin; begin < task.end; begin += kTogether) {
      // What this thread meets next: more of this piece, or likely one for each thread farther on
      Task next{0, begin + kTogether, task.end};
      if (next.begin >= task.end) next = i + threads < count ? tasks[i + threads] : Task{0, 0, 0};
      next.end = std::min(next.end, next.begin + kTogether);
      const int64_t end = std::min(begin + kTogether, task.end), ahead = next.end - next.begin;
      KeyRows rows{cache, cache, width, width, slots};
      if (target.arrange) {
        uint8_t* const values = arranged_room(values_room, kTogether, C);
        target.arrange(rows, begin, end, C, values);
        rows.arranged = values, rows.arranged_from = begin;
      }
      for (int64_t g = 0; g < groups; ++g) {
        const uint16_t* packed = queries + (task.sequence * groups + g) * query_room(width);
        const Matrix some{Format::kBf16, heads_of(g), width, 0, reinterpret_cast<const uint8_t*>(packed), nullptr};
        rows.ahead = next.begin + ahead * g / groups, rows.ahead_end = next.begin + ahead * (g + 1) / groups;
        Attended state = state_of(i, g);
        target.attend(some, rows, begin, end, INT64_MAX / 2, scale, state);
      }
    }
  };
  parallel_for(threads, count, look);

  auto join = [=](int64_t index) {
    const int64_t b = index / H, g = index % H / kGroup, lane = index % H % kGroup;
    float* to = context + index * C;
    std::fill(to, to + C, 0.0f);
    float peak = kNothing, sum = 0.0f;
    for (int64_t task = first[b]; task < first[b + 1]; ++task) peak = std::max(peak, state_of(task, g).peak[lane]);
    for (int64_t task = first[b]; task < first[b + 1]; ++task) {
      const Attended state = state_of(task, g);
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
  const int64_t blocks = (T + kBlock - 1) / kBlock;
  auto work = [=, &target](int64_t index) {
    // The longest blocks first, so that the threads end together
    const int64_t head = index % H, first = (blocks - 1 - index / H) * kBlock;
    attend_block(target, q + head * K, H * K, {k + head * K, v + head * V, H * K, H * V, nullptr}, S - T, scale,
                 out + head * V, H * V, first, std::min(kBlock, T - first), K, V);
  };
  parallel_for(threads, blocks * H, work);
}

void mla_prefill(const Target& target, const Matrix& keys, const Matrix& values, const float* q, const uint16_t* cache,
                 const int64_t* slots, float scale, float* out, int64_t T, int64_t S, int64_t H, int64_t R,
                 int threads) {
  thread_local std::vector<uint16_t> key_room;
  thread_local std::vector<uint8_t> value_room;
  const int64_t N = keys.outputs, V = values.outputs, K = N + R, blocks = (T + kBlock - 1) / kBlock;
  const Latents latents(target, keys, values, cache, slots, S, R, threads);
  // As few heads at once as give every thread some blocks
  const int64_t together = std::clamp<int64_t>((4 * threads + blocks - 1) / blocks, 1, H);
  uint16_t* const k = room_for(key_room, together * S * K);
  uint16_t* const v = reinterpret_cast<uint16_t*>(arranged_room(value_room, together * latents.value_rows(), V));
  const int64_t head_values = latents.value_rows() * V;
  for (int64_t head = 0; head < H; head += together) {
    const int64_t some = std::min(together, H - head);
    latents.expand(head, some, k, v, threads);
    auto work = [=, &target](int64_t index) {
      const int64_t h = index % some, first = (blocks - 1 - index / some) * kBlock;
      KeyRows rows{k + h * S * K, v + h * head_values, K, V, nullptr};
      if (target.arrange) rows.arranged = reinterpret_cast<const uint8_t*>(rows.values), rows.values = nullptr;
      attend_block(target, q + (head + h) * K, H * K, rows, S - T, scale, out + (head + h) * V, H * V, first,
                   std::min(kBlock, T - first), K, V);
    };
    parallel_for(threads, blocks * some, work);
  }
}

}  // namespace baltoro
