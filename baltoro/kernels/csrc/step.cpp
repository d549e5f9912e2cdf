// Decoding steps whole: absorbed attention with the products around it, and small models' plain weights.
#include <algorithm>
#include <chrono>
#include <vector>

#include "around.h"
#include "threads.h"

namespace baltoro {

namespace {

constexpr int64_t kStripe = 64;            // outputs that a thread makes at once
constexpr int64_t kWorthThreads = 524288;  // multiplications; below it a thread's awakening costs more than the work

// The caller's room, kept from call to call: at least `count` floats.
float* room_for(std::vector<float>& room, int64_t count) {
  room.resize(std::max<size_t>(room.size(), count));
  return room.data();
}

}  // namespace

void mla_step(const Target& target, const Matrix& absorbed_keys, const Matrix& values, const float* q,
              const uint16_t* cache, const int64_t* slots, const int64_t* edges, float scale, float* out, int64_t B,
              int64_t H, int64_t R, int threads) {
  thread_local std::vector<float> narrow_room, latent_room, query_room;
  const int64_t N = absorbed_keys.inputs, C = absorbed_keys.outputs, rows = B * H;
  float* const narrow = room_for(narrow_room, rows * N);
  float* const latent = room_for(latent_room, rows * C);  // later the mixtures
  float* const query = room_for(query_room, rows * (C + R));
  for (int64_t i = 0; i < rows; ++i) std::copy(q + i * (N + R), q + i * (N + R) + N, narrow + i * N);
  matmul_each(target, absorbed_keys, narrow, latent, B, H, threads);
  for (int64_t i = 0; i < rows; ++i) {
    std::copy(latent + i * C, latent + (i + 1) * C, query + i * (C + R));
    std::copy(q + i * (N + R) + N, q + (i + 1) * (N + R), query + i * (C + R) + C);
  }
  mla_decode(target, query, cache, slots, edges, scale, latent, B, H, C, R, threads);
  matmul_each(target, values, latent, out, B, H, threads);
}

void attention_step(const Target& target, const AttentionWeights& w, const float* x, const float* cos, const float* sin,
                    uint16_t* cache, const int64_t* write_slots, const int64_t* slots, const int64_t* edges,
                    float scale, float* y, int64_t B, int64_t H, int64_t R, int threads) {
  thread_local std::vector<float> compressed_room, query_room, latent_room, value_room;
  const int64_t C = w.absorbed_keys.outputs, width = w.absorbed_keys.inputs + R, V = w.values.outputs;
  float* const q = room_for(query_room, B * H * width);
  if (w.q_a.data) {
    const int64_t L = w.q_a.outputs;
    float* const compressed = room_for(compressed_room, B * L);
    matmul(target, w.q_a, x, compressed, B, threads);
    rms_norm(target, compressed, L, nullptr, w.q_norm, w.eps, nullptr, compressed, B, L, threads);
    matmul(target, w.q_b, compressed, q, B, threads);
  } else {
    matmul(target, w.q_b, x, q, B, threads);
  }
  rotate(q + width - R, cos, sin, B, H, R, H * width, width, threads);
  float* const latent = room_for(latent_room, B * (C + R));
  matmul(target, w.kv_a, x, latent, B, threads);
  write_latents(target, latent, w.kv_norm, w.eps, cos, sin, cache, true, write_slots, B, C, R, threads);
  float* const mixed = room_for(value_room, B * H * V);
  mla_step(target, w.absorbed_keys, w.values, q, cache, slots, edges, scale, mixed, B, H, R, threads);
  matmul(target, w.output, mixed, y, B, threads);
}

bool mixture_step(const Target& target, const MixtureWeights& w, const float* h, const float* x, float* weights,
                  int64_t* chosen, float* y, double& seconds, int64_t T, int threads) {
  thread_local std::vector<float> routed_room, shared_room;
  const int64_t D = w.gate.inputs, K = w.choice.chosen;
  float* const routed = room_for(routed_room, T * D);
  route(target, w.router, w.bias, w.choice, h, weights, chosen, T, D, w.experts, threads);
  if (!within(chosen, T * K, w.here)) return false;
  const auto began = std::chrono::steady_clock::now();
  experts(target, w.gate, w.up, w.down, h, chosen, weights, routed, T, K, w.here, threads);
  seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  float* shared = nullptr;
  if (w.shared_gate.data) {
    thread_local std::vector<int64_t> zeros;
    thread_local std::vector<float> ones;
    zeros.resize(std::max<size_t>(zeros.size(), T), 0), ones.resize(std::max<size_t>(ones.size(), T), 1.0f);
    shared = room_for(shared_room, T * D);
    experts(target, w.shared_gate, w.shared_up, w.shared_down, h, zeros.data(), ones.data(), shared, T, 1, 1, threads);
  }
  for (int64_t i = 0; i < T * D; ++i) y[i] = x[i] + (shared ? routed[i] + shared[i] : routed[i]);
  return true;
}

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

bool within(const int64_t* numbers, int64_t count, int64_t end) {
  return std::all_of(numbers, numbers + count, [end](int64_t number) { return number >= 0 && number < end; });
}

}  // namespace baltoro
