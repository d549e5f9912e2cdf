// Small models' plain float32 weights, for a few tokens.
#include <algorithm>
#include <vector>

#include "around.h"
#include "threads.h"

namespace baltoro {

namespace {

constexpr int64_t kStripe = 64;            // outputs that a thread makes at once
constexpr int64_t kWorthThreads = 524288;  // multiplications; below it a thread's awakening costs more than the work

float* room_for(std::vector<float>& room, int64_t count) {
  room.resize(std::max<size_t>(room.size(), count));
  return room.data();
}

}  // namespace

void dense_mla_step(const Target& target, const float* kv_b, const float* q, const Dense& cache, const int64_t* edges,
                    float scale, float* out, int64_t B, int64_t H, int64_t N, int64_t V, int64_t C, int64_t R,
                    int threads) {
  auto work = [&](int64_t index) {
    thread_local std::vector<float> room;
    const int64_t b = index / H, h = index % H, seen = edges[b + 1] - edges[b];
    float* query = room_for(room, 2 * C + R + seen);
    float *context = query + C + R, *scores = context + C;
    const Dense keys{kv_b + h * (N + V) * C, C, nullptr, false},
        values{kv_b + (h * (N + V) + N) * C, C, nullptr, false};
    const Dense rows{cache.data, cache.stride, cache.rows + edges[b], cache.is_bf16};
    target.mix_rows(keys, N, q + index * (N + R), C, query);
    std::copy(q + index * (N + R) + N, q + (index + 1) * (N + R), query + C);
    target.dots(rows, 0, seen, C + R, query, 0, 1, scores, 0);
    target.softmax(scores, seen, scale);
    target.mix_rows(rows, seen, scores, C, context);
    target.dots(values, 0, V, C, context, 0, 1, out + index * V, 0);
  };
  parallel_for(edges[B] * H * C < kWorthThreads ? 1 : threads, B * H, work);
}

void dense_linear(const Target& target, const float* w, const float* x, float* y, int64_t T, int64_t I, int64_t O,
                  int threads) {
  auto work = [&](int64_t stripe) {
    const int64_t begin = stripe * kStripe, end = std::min(begin + kStripe, O);
    target.dots({w, I, nullptr, false}, begin, end, I, x, I, T, y, O);
  };
  parallel_for(T * I * O < kWorthThreads ? 1 : threads, T ? (O + kStripe - 1) / kStripe : 0, work);
}

void dense_experts(const Target& target, const float* gate, const float* up, const float* down, const float* x,
                   const int64_t* experts, const float* weights, float* y, int64_t T, int64_t K, int64_t D, int64_t F,
                   int threads) {
  thread_local std::vector<float> room;
  thread_local std::vector<int64_t> by_expert;  // (T, K) choices of each token, in the order of their experts
  float* const hidden = room_for(room, T * K * F);
  by_expert.resize(T * K);
  for (int64_t t = 0; t < T; ++t) {
    int64_t* own = by_expert.data() + t * K;
    for (int64_t k = 0; k < K; ++k) own[k] = t * K + k;
    std::stable_sort(own, own + K, [experts](int64_t a, int64_t b) { return experts[a] < experts[b]; });
  }
  const int64_t* const order = by_expert.data();
  threads = T * K * D * F < kWorthThreads ? 1 : threads;

  const int64_t narrow = (F + kStripe - 1) / kStripe;
  auto enter = [&, hidden](int64_t index) {
    const int64_t pair = index / narrow, begin = index % narrow * kStripe, end = std::min(begin + kStripe, F);
    const int64_t from = experts[pair] * F * D;
    const float* own = x + pair / K * D;
    float wide[kStripe];
    target.dots({gate + from, D, nullptr, false}, begin, end, D, own, D, 1, hidden + pair * F, F);
    target.dots({up + from + begin * D, D, nullptr, false}, 0, end - begin, D, own, D, 1, wide, kStripe);
    target.gate_rows(hidden + pair * F + begin, wide, hidden + pair * F + begin, end - begin);
  };
  parallel_for(threads, T * K * narrow, enter);

  const int64_t stripes = (D + kStripe - 1) / kStripe;
  auto leave = [&, hidden, order](int64_t index) {
    const int64_t t = index / stripes, begin = index % stripes * kStripe, end = std::min(begin + kStripe, D);
    float term[kStripe], *to = y + t * D + begin;
    std::fill(to, to + (end - begin), 0.0f);
    for (int64_t k = 0; k < K; ++k) {
      const int64_t pair = order[t * K + k];
      const float* from = down + (experts[pair] * D + begin) * F;
      target.dots({from, F, nullptr, false}, 0, end - begin, F, hidden + pair * F, F, 1, term, kStripe);
      for (int64_t d = 0; d < end - begin; ++d) to[d] += weights[pair] * term[d];
    }
  };
  parallel_for(threads, T * stripes, leave);
}

}  // namespace baltoro
