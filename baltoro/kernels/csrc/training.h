// Products, attention, experts and the loss with their gradients, for training small models in bfloat16.
//
// Numbers that are multiplied are bf16, sums are float32. Two layouts serve every product, [][2] being two bf16 numbers
// of neighbouring rows (the sum's dimension) side by side:
//
//   panels  of a right factor B(K, N):  [N / 16][K / 2][16][2]
//   pairs   of rows X(T, n):            [T / 2][n][2], an odd last row beside zeros
//
// Every width is a multiple of 16. Sums have one fixed order, whatever the number of threads. Each function does one
// piece of a call, which training.cpp gives to threads; `room` is a thread's own.
#pragma once
#include <cstdint>

namespace baltoro {

constexpr int64_t kTrainRows = 48;   // rows of a piece of a product
constexpr int64_t kLossRows = 24;    // the same of logits, which are long
constexpr int64_t kOuterRows = 32;   // rows of a piece of a weight's gradient
constexpr int64_t kNormRows = 256;   // rows whose weight gradients are added up together
constexpr int64_t kLossBlock = 240;  // rows whose logits' gradients are kept at once
constexpr float kHidden = -3.0e38f;  // a score that is not seen

struct RowsProduct {  // y(T, O) = x(T, I) w, or onto + x w
  const uint16_t* x;
  int64_t stride, T, inputs;
  const uint16_t* w;  // panels (I, O)
  int64_t outputs;
  const float* onto;  // (T, O), may be y itself; null: nothing
  void* y;            // float32 or bf16
  int64_t y_stride;
  bool is_bf16;
};

struct NormRows {  // of the last `width` numbers' norm; rows of x begin `stride` numbers apart
  const float *x, *weight;
  int64_t stride, T, width;
  float eps;
  uint16_t* y;    // (T, width) bf16
  float* wide;    // (T, width) the same in float32, or null
  float* scales;  // (T,) 1 / rms
};

struct NormGradient {
  const float *dy, *x, *weight, *scales;
  int64_t stride, T, width;
  const float* onto;  // (T, width) that dx is added to, or null
  float* wide;        // (T, width) the sum; or null
  uint16_t* dx;       // rows of bf16, dx_stride apart, where `wide` is null
  int64_t dx_stride;
  float* partial;  // (ceil(T / kNormRows), width) of the weight's gradient
};

struct TrainAttention {           // one document after the other, all heads
  const uint16_t *q, *kv, *k_pe;  // (T, H, N + R) turned; (T, H, N + V); (T, R) turned
  const int64_t* edges;           // (B + 1,)
  int64_t B, H, N, R, V;
  float scale;
  uint16_t* context;  // (T, H, V)
  float* lse;         // (T, H) log of the sum of exp(scaled scores)
  float* peaks;       // (B, H) largest scaled score
  const uint16_t* dcontext;
  uint16_t *dq, *dkv;
  float* dk_pe;  // (T, H, R): of each head
};

// Pairs of a token and one of its experts, grouped by expert, each expert's from an even place on. `tokens`: (P,) whose
// row a place is, -1: nobody's. Pieces: (., 3) expert, first place, places (at most kTrainRows).
struct TrainExperts {
  const int64_t *tokens, *pieces;
  int64_t P, num_pieces, D, F;
  const uint16_t *gate, *up, *down;                           // panels of stacks: (D, F), (D, F), (F, D)
  const uint16_t *from_hidden, *from_output;                  // panels of (2 F, D) and (D, F), for gradients
  const uint16_t* x;                                          // (T, D)
  uint16_t *gates, *ups;                                      // (P, F) before silu
  float* y;                                                   // (P, D) of each place, or of its gradient towards x
  const uint16_t* dy;                                         // (T, D)
  const float* weights;                                       // (P,)
  float* dweights;                                            // (P,)
  uint16_t *x_pairs, *dy_pairs, *hidden_pairs, *inner_pairs;  // pairs of x, dy, [dgate dup] and weight * silu(gate) up
};

// Of what routing.cpp chose: x(T, D), weights and gradients float32. Rows of a piece add up their own part of dw.
struct RouteGradient {
  const float *x, *w, *dweights;  // (T, D), (E, D), (T, K)
  const int64_t* chosen;          // (T, K)
  int64_t T, K, D, E;
  bool normalized;
  float factor;
  float* dx;       // (T, D), added to
  float* partial;  // (ceil(T / kNormRows), E, D)
};

struct Outer {  // c(O, I) += a^T b for rows of pairs [begin, end)
  const uint16_t *a, *b;
  int64_t a_width, b_width, begin, end;
  float* c;
  int64_t rows, columns, c_stride;  // rows of c from a's column `a_column` on
  int64_t a_column;
};

struct LossRows {
  const uint16_t* x;  // (rows, D)
  const int64_t* targets;
  int64_t rows, D, V;
  const uint16_t *w, *w_back;  // panels (D, V) and (V, D)
  float* losses;               // (rows,)
  float* dx;                   // (rows, D)
  uint16_t* dlogits;           // pairs of the rows from `block` on
  int64_t block;
};

struct Training {
  // bf16 panels of w(O, I) float32 for y = x w^T, outputs [begin, end), and of w itself for its gradient, inputs
  void (*pack)(const float* w, int64_t O, int64_t I, uint16_t* panels, int64_t begin, int64_t end);
  void (*pack_back)(const float* w, int64_t O, int64_t I, uint16_t* panels, int64_t all, int64_t offset, int64_t begin,
                    int64_t end);
  void (*round)(const float* from, uint16_t* to, int64_t count);
  void (*pairs)(const uint16_t* x, int64_t stride, int64_t T, int64_t width, uint16_t* to, int64_t begin, int64_t end);
  void (*product)(const RowsProduct& p, int64_t first, uint16_t* room);
  void (*outer)(const Outer& p);
  void (*norm)(const NormRows& p, int64_t begin, int64_t end);
  void (*norm_gradient)(const NormGradient& p, int64_t piece);
  void (*turn)(uint16_t* x, const float* cos, const float* sin, int64_t H, int64_t R, int64_t stride,
               int64_t head_stride, float sign, int64_t begin, int64_t end);
  void (*attend)(const TrainAttention& p, int64_t b, int64_t h, uint8_t* room);
  void (*attend_gradient)(const TrainAttention& p, int64_t b, int64_t h, uint8_t* room);
  void (*experts)(const TrainExperts& p, int64_t piece, uint8_t* room);
  void (*experts_gradient)(const TrainExperts& p, int64_t piece, uint8_t* room);
  void (*loss)(const LossRows& p, int64_t first, int64_t end, uint8_t* room);
  void (*route_gradient)(const RouteGradient& p, int64_t piece);
  // to(T, R) bf16, rows `stride` apart = the sum over heads of x(T, H, R)
  void (*sum_heads)(const float* x, int64_t H, int64_t R, uint16_t* to, int64_t stride, int64_t begin, int64_t end);
  // to(T, D) = onto(T, D) + weights(T, K) times the rows places(T, K) of y; no onto: zeros, no weights: ones
  void (*gather)(const float* onto, const float* y, const int64_t* places, const float* weights, int64_t K, int64_t D,
                 float* to, int64_t begin, int64_t end);
};

}  // namespace baltoro
