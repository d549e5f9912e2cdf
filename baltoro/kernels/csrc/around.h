// What Python may call besides the products: routing, norms, rotation, the latent cache, and small models' plain
// float32 weights. Every result has the same bits on every target, on any number of threads and in any company.
#pragma once
#include "kernels.h"

namespace baltoro {

// How a router chooses. groups > 1: only experts of the `kept_groups` best groups, by their two highest scores.
struct Choice {
  int64_t chosen, groups, kept_groups;
  bool normalized;  // weights of a token sum to `factor`
  float factor;
};

// experts(T, K) and weights(T, K): the K best of sigmoid(x w^T) + bias, best first, of equals the lower number;
// weights are of the sigmoids alone. w(E, D) as it is. A NaN is better than all numbers, and reaches the weights.
void route(const Target& target, const Dense& w, const float* bias, const Choice& choice, const float* x,
           float* weights, int64_t* experts, int64_t T, int64_t D, int64_t E, int threads);

// y(T, D) = weight * s / sqrt(mean(s^2) + eps) of s = x, or of s = x + added, which goes to `sum`. Rows of x begin
// `stride` numbers apart.
void rms_norm(const Target& target, const float* x, int64_t stride, const float* added, const float* weight, float eps,
              float* sum, float* y, int64_t T, int64_t D, int threads);

// Turns the pairs (2 i, 2 i + 1) of x(T, H, R) in place by the angles of cos and sin (T, R / 2). Tokens begin `stride`
// numbers apart, heads `head_stride`.
void rotate(float* x, const float* cos, const float* sin, int64_t T, int64_t H, int64_t R, int64_t stride,
            int64_t head_stride, int threads);

// Row slots[t] of the cache(., C + R), bf16 or float32, from the projection x(T, C + R): its first C numbers normed,
// the others turned.
void write_latents(const Target& target, const float* x, const float* weight, float eps, const float* cos,
                   const float* sin, void* cache, bool is_bf16, const int64_t* slots, int64_t T, int64_t C, int64_t R,
                   int threads);

// Absorbed attention with everything around it: values(B, H, V) of turned queries q(B, H, N + R). Packed stacks of H
// matrices, absorbed_keys (C, N) and values (V, C); the rest is mla_decode's.
void mla_step(const Target& target, const Matrix& absorbed_keys, const Matrix& values, const float* q,
              const uint16_t* cache, const int64_t* slots, const int64_t* edges, float scale, float* out, int64_t B,
              int64_t H, int64_t R, int threads);

// The same of plain weights kv_b(H, N + V, C) float32, and a cache of either type; sums in float32.
void dense_mla_step(const Target& target, const float* kv_b, const float* q, const Dense& cache, const int64_t* edges,
                    float scale, float* out, int64_t B, int64_t H, int64_t N, int64_t V, int64_t C, int64_t R,
                    int threads);

// Expanded attention of T new tokens of one sequence to the S rows of the cache (., C + R) that it has, row s being
// slots[s]: causal_attention of the keys and values that the packed stacks keys (N, C) and values (V, C) make of them,
// a few heads at a time. q(T, H, N + R) turned; out(T, H, V). keys and values are of one format and group.
void mla_prefill(const Target& target, const Matrix& keys, const Matrix& values, const float* q, const uint16_t* cache,
                 const int64_t* slots, float scale, float* out, int64_t T, int64_t S, int64_t H, int64_t R,
                 int threads);

// New tokens of one prompt: rows first .. first + tokens of a forward, which attend to slots begin .. begin + seen.
struct Chunk {
  int64_t first, tokens, begin, seen;
};

// The rows of a forward through the cache, and what each attends to. Row decoding[b] attends absorbed to
// slots[edges[b]] .. slots[edges[b + 1] - 1], itself the last; rows of chunks attend expanded. Where all are decoding
// they are in order.
struct Rows {
  int64_t T;
  const float *cos, *sin;      // (T, R / 2)
  const int64_t* write_slots;  // (T,)
  const int64_t *decoding, *slots, *edges;
  int64_t num_decoding;
  const Chunk* chunks;
  int64_t num_chunks;
  const int64_t* chunk_slots;
};

// All matrices of a layer's attention, packed. q_a.data null: one product q_b makes the queries, without a norm.
struct AttentionWeights {
  Matrix q_a, q_b, kv_a, keys, absorbed_keys, values, output;
  const float *q_norm, *kv_norm;
  float eps;
};

// T tokens through a layer's attention: y(T, D) from the normed x(T, D). Writes their rows of the cache, then attends
// as mla_step and mla_prefill do.
void attention_step(const Target& target, const AttentionWeights& w, const float* x, const Rows& rows, uint16_t* cache,
                    float scale, float* y, int64_t H, int64_t R, int threads);

// A layer's experts, packed. shared_gate.data null: there is no shared expert. gate.data null: there is no router, and
// what is shared is a dense layer.
struct MixtureWeights {
  Dense router;
  const float* bias;
  Choice choice;
  int64_t experts, here;  // the router knows, and the stacks hold: the first of them
  Matrix gate, up, down, shared_gate, shared_up, shared_down;
};

// y(T, D) = x + routed experts + shared expert of h(T, D); who was chosen goes to weights(T, K) and chosen(T, K).
// `seconds`: of the routed experts. False where one was chosen that is not here; y is then not written.
bool mixture_step(const Target& target, const MixtureWeights& w, const float* h, const float* x, float* weights,
                  int64_t* chosen, float* y, double& seconds, int64_t T, int threads);

struct LayerWeights {
  const float *input_norm, *post_norm;
  AttentionWeights attention;
  MixtureWeights mixture;
};

// A whole model. The embedding's rows are as they are, everything else that is large is packed.
struct ModelWeights {
  Dense embedding;  // (V, D)
  std::vector<LayerWeights> layers;
  const float* norm;
  Matrix head;
  float eps, scale;
  int64_t heads, rotary;
};

// logits(count, V) behind the rows `wanted` of a forward, or behind its first `count` where there is no list. A layer's
// part of the cache begins `layer_numbers` after the last one's. False as mixture_step: then some of the cache's rows
// are written, and no logits.
bool forward(const Target& target, const ModelWeights& w, const int64_t* ids, const Rows& rows, uint16_t* cache,
             int64_t layer_numbers, const int64_t* wanted, int64_t count, float* logits, int threads);

// y(T, O) = x(T, I) w^T of a plain weight, for a few tokens.
void dense_linear(const Target& target, const float* w, const float* x, float* y, int64_t T, int64_t I, int64_t O,
                  int threads);

// experts() of plain stacks: gate and up (E, F, D), down (E, D, F) float32, for a few tokens.
void dense_experts(const Target& target, const float* gate, const float* up, const float* down, const float* x,
                   const int64_t* experts, const float* weights, float* y, int64_t T, int64_t K, int64_t D, int64_t F,
                   int threads);

// Whether all numbers lie in [0, end).
bool within(const int64_t* numbers, int64_t count, int64_t end);

}  // namespace baltoro
