// What Python may call of training: whole products, attention, experts and the loss, on `threads` threads. Weights'
// gradients are added to what is there.
#pragma once
#include <string>

#include "training.h"

namespace baltoro {

// Null where a target has none of this: torch does it.
const Training* training_of(const std::string& target);

// Panels of a stack w(E, O, I), for y = x w^T, and of w itself, for x's gradient: each matrix's inputs are `all` wide,
// of which w's O begin at `offset`.
void train_pack(const Training& t, const float* w, uint16_t* panels, int64_t E, int64_t O, int64_t I, int threads);
void train_pack_back(const Training& t, const float* w, uint16_t* panels, int64_t E, int64_t O, int64_t I, int64_t all,
                     int64_t offset, int threads);

void train_round(const Training& t, const float* from, uint16_t* to, int64_t count, int threads);
void train_product(const Training& t, const RowsProduct& p, int threads);

// c(O, I) += a(T, O)^T b(T, I)
void train_outer(const Training& t, const uint16_t* a, const uint16_t* b, float* c, int64_t T, int64_t O, int64_t I,
                 int threads);

void train_norm(const Training& t, const NormRows& p, int threads);
void train_norm_gradient(const Training& t, NormGradient p, float* dweight, int threads);

// The pairs (2 i, 2 i + 1) of x(T, H, R) bf16 turned in place, by the negative angles where sign is -1
void train_turn(const Training& t, uint16_t* x, const float* cos, const float* sin, int64_t T, int64_t H, int64_t R,
                int64_t stride, int64_t head_stride, float sign, int threads);

// to(T, R) bf16, rows `stride` apart = the sum over heads of x(T, H, R)
void train_sum_heads(const Training& t, const float* x, uint16_t* to, int64_t T, int64_t H, int64_t R, int64_t stride,
                     int threads);

void train_attend(const Training& t, const TrainAttention& p, bool gradient, int threads);

// chosen(T, K) grouped: places(T, K), tokens(places,), pieces(., 3) and bounds(E, 2), see TrainExperts. There is room
// for T K + E places and T K / kTrainRows + E pieces.
struct Grouped {
  int64_t places, pieces;
};
Grouped group_by_expert(const int64_t* chosen, int64_t T, int64_t K, int64_t E, int64_t* places, int64_t* tokens,
                        int64_t* pieces, int64_t* bounds);

// to(T, D) = onto(T, D), or nothing, plus each token's K rows, by weight
struct MixedRows {
  const int64_t* places;  // (T, K)
  const float* weights;   // (T, K), or null: ones
  int64_t T, K;
  const float* onto;
  float* to;
};
void train_experts(const Training& t, const TrainExperts& p, const MixedRows& rows, int threads);

// rows.to: x's gradient. dweights(T, K), or null.
void train_experts_gradient(const Training& t, TrainExperts p, const MixedRows& rows, const int64_t* bounds, int64_t E,
                            float* dweights, float* dgate, float* dup, float* ddown, int threads);

void train_route_gradient(const Training& t, RouteGradient p, float* dw, int threads);

void train_loss(const Training& t, LossRows p, float* dhead, int threads);

}  // namespace baltoro
