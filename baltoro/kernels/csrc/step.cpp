// A model's forward in one call, and its parts: with no interpreter between them, which others may use meanwhile.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "around.h"

namespace baltoro {

namespace {

// The caller's room, kept from call to call: at least `count` numbers.
template <class T>
T* room_for(std::vector<T>& room, int64_t count) {
  room.resize(std::max<size_t>(room.size(), count));
  return room.data();
}

// Turned queries q(T, H, N + R) to what each of them attends to: out(T, H, V).
void attend(const Target& target, const AttentionWeights& w, const float* q, const Rows& rows, const uint16_t* cache,
            float scale, float* out, int64_t H, int64_t R, int threads) {
  thread_local std::vector<float> query_room, value_room;
  const int64_t width = H * (w.absorbed_keys.inputs + R), V = H * w.values.outputs, B = rows.num_decoding;
  if (B == rows.T)
    return mla_step(target, w.absorbed_keys, w.values, q, cache, rows.slots, rows.edges, scale, out, B, H, R, threads);
  for (int64_t i = 0; i < rows.num_chunks; ++i) {
    const Chunk& chunk = rows.chunks[i];
    mla_prefill(target, w.keys, w.values, q + chunk.first * width, cache, rows.chunk_slots + chunk.begin, scale,
                out + chunk.first * V, chunk.tokens, chunk.seen, H, R, threads);
  }
  if (B == 0) return;
  float *const queries = room_for(query_room, B * width), *const values = room_for(value_room, B * V);
  for (int64_t b = 0; b < B; ++b) std::copy_n(q + rows.decoding[b] * width, width, queries + b * width);
  mla_step(target, w.absorbed_keys, w.values, queries, cache, rows.slots, rows.edges, scale, values, B, H, R, threads);
  for (int64_t b = 0; b < B; ++b) std::copy_n(values + b * V, V, out + rows.decoding[b] * V);
}

float to_float(const Dense& rows, int64_t row, int64_t column) {
  const int64_t at = row * rows.stride + column;
  if (!rows.is_bf16) return static_cast<const float*>(rows.data)[at];
  const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(rows.data)[at]) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
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

void attention_step(const Target& target, const AttentionWeights& w, const float* x, const Rows& rows, uint16_t* cache,
                    float scale, float* y, int64_t H, int64_t R, int threads) {
  thread_local std::vector<float> compressed_room, query_room, latent_room, mixed_room;
  const int64_t T = rows.T, C = w.absorbed_keys.outputs, width = w.absorbed_keys.inputs + R, V = w.values.outputs;
  float* const q = room_for(query_room, T * H * width);
  if (w.q_a.data) {
    const int64_t L = w.q_a.outputs;
    float* const compressed = room_for(compressed_room, T * L);
    matmul(target, w.q_a, x, compressed, T, threads);
    rms_norm(target, compressed, L, nullptr, w.q_norm, w.eps, nullptr, compressed, T, L, threads);
    matmul(target, w.q_b, compressed, q, T, threads);
  } else {
    matmul(target, w.q_b, x, q, T, threads);
  }
  rotate(q + width - R, rows.cos, rows.sin, T, H, R, H * width, width, threads);
  float* const latent = room_for(latent_room, T * (C + R));
  matmul(target, w.kv_a, x, latent, T, threads);
  write_latents(target, latent, w.kv_norm, w.eps, rows.cos, rows.sin, cache, true, rows.write_slots, T, C, R, threads);
  float* const mixed = room_for(mixed_room, T * H * V);
  attend(target, w, q, rows, cache, scale, mixed, H, R, threads);
  matmul(target, w.output, mixed, y, T, threads);
}

bool mixture_step(const Target& target, const MixtureWeights& w, const float* h, const float* x, float* weights,
                  int64_t* chosen, float* y, double& seconds, int64_t T, int threads) {
  thread_local std::vector<float> routed_room, shared_room;
  const int64_t D = w.gate.data ? w.gate.inputs : w.shared_gate.inputs, K = w.choice.chosen;
  float *routed = nullptr, *shared = nullptr;
  if (w.gate.data) {
    routed = room_for(routed_room, T * D);
    route(target, w.router, w.bias, w.choice, h, weights, chosen, T, D, w.experts, threads);
    if (!within(chosen, T * K, w.here)) return false;
    const auto began = std::chrono::steady_clock::now();
    experts(target, w.gate, w.up, w.down, h, chosen, weights, routed, T, K, w.here, threads);
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  }
  if (w.shared_gate.data) {
    thread_local std::vector<int64_t> zeros;
    thread_local std::vector<float> ones;
    zeros.resize(std::max<size_t>(zeros.size(), T), 0), ones.resize(std::max<size_t>(ones.size(), T), 1.0f);
    shared = room_for(shared_room, T * D);
    experts(target, w.shared_gate, w.shared_up, w.shared_down, h, zeros.data(), ones.data(), shared, T, 1, 1, threads);
  }
  if (routed && shared)
    for (int64_t i = 0; i < T * D; ++i) routed[i] += shared[i];
  const float* const added = routed ? routed : shared;
  for (int64_t i = 0; i < T * D; ++i) y[i] = x[i] + added[i];
  return true;
}

bool forward(const Target& target, const ModelWeights& w, const int64_t* ids, const Rows& rows, uint16_t* cache,
             int64_t layer_numbers, const int64_t* wanted, int64_t count, float* logits, int threads) {
  thread_local std::vector<float> state_room, normed_room, added_room, weight_room;
  thread_local std::vector<int64_t> chosen_room;
  const int64_t T = rows.T, D = w.embedding.stride;
  float *const x = room_for(state_room, T * D), *const h = room_for(normed_room, std::max(T, count) * D),
               *const added = room_for(added_room, T * D);
  for (int64_t t = 0; t < T; ++t)
    for (int64_t d = 0; d < D; ++d) x[t * D + d] = to_float(w.embedding, ids[t], d);
  for (size_t i = 0; i < w.layers.size(); ++i) {
    const LayerWeights& layer = w.layers[i];
    const int64_t K = layer.mixture.choice.chosen;
    rms_norm(target, x, D, nullptr, layer.input_norm, w.eps, nullptr, h, T, D, threads);
    attention_step(target, layer.attention, h, rows, cache + i * layer_numbers, w.scale, added, w.heads, w.rotary,
                   threads);
    rms_norm(target, x, D, added, layer.post_norm, w.eps, x, h, T, D, threads);
    double seconds;
    if (!mixture_step(target, layer.mixture, h, x, room_for(weight_room, T * K), room_for(chosen_room, T * K), x,
                      seconds, T, threads))
      return false;
  }
  for (int64_t i = 0; i < count; ++i) {
    const float* const row = x + (wanted ? wanted[i] : i) * D;
    target.normalize(row, nullptr, w.norm, w.eps, nullptr, h + i * D, D);
  }
  matmul(target, w.head, h, logits, count, threads);
  return true;
}

bool within(const int64_t* numbers, int64_t count, int64_t end) {
  return std::all_of(numbers, numbers + count, [end](int64_t number) { return number >= 0 && number < end; });
}

}  // namespace baltoro
