// Training's functions piece by piece to threads. Pieces never add to the same numbers, so threads change no bits.
#include <algorithm>
#include <string>
#include <vector>

#include "threads.h"
#include "training_calls.h"

namespace baltoro {

#ifdef BALTORO_X86
namespace avx512 {
extern const Training kTraining;
}
#endif
#ifdef BALTORO_AMX
namespace amx {
extern const Training kTraining;
}
#endif

const Training* training_of(const std::string& target) {
#ifdef BALTORO_X86
  if (target == "avx512") return &avx512::kTraining;
#endif
#ifdef BALTORO_AMX
  if (target == "amx") return &amx::kTraining;
#endif
  (void)target;
  return nullptr;
}

namespace {

constexpr int64_t kPieceRows = 128;  // rows of what is done number by number

// A thread's room, 64-byte aligned, kept from call to call.
uint8_t* room_of(int64_t bytes) {
  thread_local std::vector<uint8_t> room;
  if (static_cast<int64_t>(room.size()) < bytes + 64) room.resize(bytes + 64);
  return room.data() + (64 - reinterpret_cast<uintptr_t>(room.data()) % 64) % 64;
}

uint16_t* kept(std::vector<uint16_t>& numbers, int64_t count) {
  if (static_cast<int64_t>(numbers.size()) < count) numbers.resize(count);
  return numbers.data();
}

template <class Work>
void by_rows(int threads, int64_t T, int64_t piece, const Work& work) {
  auto one = [&](int64_t i) { work(i * piece, std::min((i + 1) * piece, T)); };
  parallel_for(threads, (T + piece - 1) / piece, one);
}

}  // namespace

void train_pack(const Training& t, const float* w, uint16_t* panels, int64_t E, int64_t O, int64_t I, int threads) {
  auto work = [&](int64_t i) {
    const int64_t e = i / (O / 16), o = i % (O / 16) * 16;
    t.pack(w + e * O * I, O, I, panels + e * O * I, o, o + 16);
  };
  parallel_for(threads, E * (O / 16), work);
}

void train_pack_back(const Training& t, const float* w, uint16_t* panels, int64_t E, int64_t O, int64_t I, int64_t all,
                     int64_t offset, int threads) {
  auto work = [&](int64_t i) {
    const int64_t e = i / (I / 16), at = i % (I / 16) * 16;
    t.pack_back(w + e * O * I, O, I, panels + e * all * I, all, offset, at, at + 16);
  };
  parallel_for(threads, E * (I / 16), work);
}

void train_round(const Training& t, const float* from, uint16_t* to, int64_t count, int threads) {
  by_rows(threads, count, 16384, [&](int64_t begin, int64_t end) { t.round(from + begin, to + begin, end - begin); });
}

void train_product(const Training& t, const RowsProduct& p, int threads) {
  by_rows(threads, p.T, kTrainRows,
          [&](int64_t begin, int64_t) { t.product(p, begin, reinterpret_cast<uint16_t*>(room_of(p.inputs * 16))); });
}

void train_outer(const Training& t, const uint16_t* a, const uint16_t* b, float* c, int64_t T, int64_t O, int64_t I,
                 int threads) {
  thread_local std::vector<uint16_t> a_room, b_room;
  const int64_t even = (T + 1) / 2 * 2;
  uint16_t *const left = kept(a_room, even * O), *const right = kept(b_room, even * I);
  by_rows(threads, T, kPieceRows, [&](int64_t begin, int64_t end) {
    t.pairs(a, O, T, O, left, begin, end);
    t.pairs(b, I, T, I, right, begin, end);
  });
  by_rows(threads, O, kOuterRows, [&](int64_t begin, int64_t end) {
    t.outer({left, right, O, I, 0, even, c + begin * I, end - begin, I, I, begin});
  });
}

void train_norm(const Training& t, const NormRows& p, int threads) {
  by_rows(threads, p.T, kPieceRows, [&](int64_t begin, int64_t end) { t.norm(p, begin, end); });
}

void train_norm_gradient(const Training& t, NormGradient p, float* dweight, int threads) {
  thread_local std::vector<float> room;
  const int64_t pieces = (p.T + kNormRows - 1) / kNormRows;
  room.resize(std::max<size_t>(room.size(), pieces * p.width));
  p.partial = room.data();
  by_rows(threads, pieces, 1, [&](int64_t piece, int64_t) { t.norm_gradient(p, piece); });
  for (int64_t piece = 0; piece < pieces; ++piece)
    for (int64_t i = 0; i < p.width; ++i) dweight[i] += p.partial[piece * p.width + i];
}

void train_turn(const Training& t, uint16_t* x, const float* cos, const float* sin, int64_t T, int64_t H, int64_t R,
                int64_t stride, int64_t head_stride, float sign, int threads) {
  by_rows(threads, T, kPieceRows,
          [&](int64_t begin, int64_t end) { t.turn(x, cos, sin, H, R, stride, head_stride, sign, begin, end); });
}

void train_sum_heads(const Training& t, const float* x, uint16_t* to, int64_t T, int64_t H, int64_t R, int64_t stride,
                     int threads) {
  by_rows(threads, T, kPieceRows, [&](int64_t begin, int64_t end) { t.sum_heads(x, H, R, to, stride, begin, end); });
}

void train_attend(const Training& t, const TrainAttention& p, bool gradient, int threads) {
  int64_t longest = 0;
  for (int64_t b = 0; b < p.B; ++b) longest = std::max(longest, p.edges[b + 1] - p.edges[b]);
  const int64_t S = (longest + 15) / 16 * 16, W = p.N + p.R;
  const int64_t each = S * (8 * W + 8 * p.V) + kTrainRows * (S * 14 + 4 * W + 8 * p.V) + 16 * (S + W) + 64 * 16;
  auto work = [&](int64_t i) { (gradient ? t.attend_gradient : t.attend)(p, i / p.H, i % p.H, room_of(each)); };
  parallel_for(threads, p.B * p.H, work);
}

Grouped group_by_expert(const int64_t* chosen, int64_t T, int64_t K, int64_t E, int64_t* places, int64_t* tokens,
                        int64_t* pieces, int64_t* bounds) {
  std::vector<int64_t> counts(E, 0);
  for (int64_t i = 0; i < T * K; ++i) ++counts[chosen[i]];
  Grouped all{0, 0};
  for (int64_t e = 0; e < E; ++e) {
    bounds[2 * e] = all.places, bounds[2 * e + 1] = all.places + counts[e];
    for (int64_t first = 0; first < counts[e]; first += kTrainRows, ++all.pieces) {
      int64_t* piece = pieces + 3 * all.pieces;
      piece[0] = e, piece[1] = all.places + first, piece[2] = std::min(kTrainRows, counts[e] - first);
    }
    all.places += (counts[e] + 1) / 2 * 2;
    counts[e] = bounds[2 * e];  // from here on the next free place
  }
  for (int64_t i = 0; i < T * K; ++i) {
    places[i] = counts[chosen[i]]++;
    tokens[places[i]] = i / K;
  }
  return all;
}

void train_experts(const Training& t, const TrainExperts& p, const MixedRows& rows, int threads) {
  auto work = [&](int64_t piece) {
    t.experts(p, piece, room_of(kTrainRows * 2 * (p.D + p.F) + 16 * (p.D + p.F) + 64 * 4));
  };
  parallel_for(threads, p.num_pieces, work);
  by_rows(threads, rows.T, kPieceRows, [&](int64_t begin, int64_t end) {
    t.gather(rows.onto, p.y, rows.places, rows.weights, rows.K, p.D, rows.to, begin, end);
  });
}

void train_experts_gradient(const Training& t, TrainExperts p, const MixedRows& rows, const int64_t* bounds, int64_t E,
                            float* dweights, float* dgate, float* dup, float* ddown, int threads) {
  thread_local std::vector<uint16_t> pair_room;
  thread_local std::vector<float> weight_room;
  const int64_t D = p.D, F = p.F, pairs = rows.T * rows.K;
  p.x_pairs = kept(pair_room, p.P * (2 * D + 3 * F));
  p.dy_pairs = p.x_pairs + p.P * D, p.hidden_pairs = p.dy_pairs + p.P * D, p.inner_pairs = p.hidden_pairs + p.P * 2 * F;
  weight_room.resize(std::max<size_t>(weight_room.size(), 2 * p.P));
  float *const by_place = weight_room.data(), *const slopes = by_place + p.P;
  for (int64_t i = 0; i < pairs; ++i) by_place[rows.places[i]] = rows.weights ? rows.weights[i] : 1.0f;
  p.weights = by_place, p.dweights = slopes;
  auto work = [&](int64_t piece) {
    t.experts_gradient(p, piece, room_of(kTrainRows * (4 * D + 10 * F) + 16 * (D + 2 * F) + 64 * 6));
  };
  parallel_for(threads, p.num_pieces, work);
  for (int64_t i = 0; dweights && i < pairs; ++i) dweights[i] = slopes[rows.places[i]];
  by_rows(threads, rows.T, kPieceRows, [&](int64_t begin, int64_t end) {
    t.gather(rows.onto, p.y, rows.places, nullptr, rows.K, D, rows.to, begin, end);
  });
  const int64_t narrow = (F + kOuterRows - 1) / kOuterRows, broad = (D + kOuterRows - 1) / kOuterRows;
  auto weigh = [&](int64_t index) {
    const int64_t e = index / (2 * narrow + broad), block = index % (2 * narrow + broad);
    Outer one{nullptr, nullptr, 0, 0, bounds[2 * e], bounds[2 * e + 1], nullptr, 0, 0, 0, 0};
    if (block < 2 * narrow) {
      const int64_t row = block % narrow * kOuterRows;
      one.a = p.hidden_pairs, one.a_width = 2 * F, one.a_column = row + (block < narrow ? 0 : F);
      one.b = p.x_pairs, one.b_width = one.columns = one.c_stride = D;
      one.c = (block < narrow ? dgate : dup) + (e * F + row) * D, one.rows = std::min(kOuterRows, F - row);
    } else {
      const int64_t row = (block - 2 * narrow) * kOuterRows;
      one.a = p.dy_pairs, one.a_width = D, one.a_column = row;
      one.b = p.inner_pairs, one.b_width = one.columns = one.c_stride = F;
      one.c = ddown + (e * D + row) * F, one.rows = std::min(kOuterRows, D - row);
    }
    t.outer(one);
  };
  parallel_for(threads, E * (2 * narrow + broad), weigh);
}

void train_route_gradient(const Training& t, RouteGradient p, float* dw, int threads) {
  thread_local std::vector<float> room;
  const int64_t pieces = (p.T + kNormRows - 1) / kNormRows, size = p.E * p.D;
  room.resize(std::max<size_t>(room.size(), pieces * size));
  p.partial = room.data();
  by_rows(threads, pieces, 1, [&](int64_t piece, int64_t) { t.route_gradient(p, piece); });
  for (int64_t piece = 0; piece < pieces; ++piece)
    for (int64_t i = 0; i < size; ++i) dw[i] += p.partial[piece * size + i];
}

void train_loss(const Training& t, LossRows p, float* dhead, int threads) {
  thread_local std::vector<uint16_t> slope_room, x_room;
  p.dlogits = kept(slope_room, kLossBlock * p.V);
  uint16_t* const x_pairs = kept(x_room, kLossBlock * p.D);
  for (p.block = 0; p.block < p.rows; p.block += kLossBlock) {
    const int64_t count = std::min(kLossBlock, p.rows - p.block);
    auto work = [&](int64_t i) {
      const int64_t first = p.block + i * kLossRows, end = std::min(first + kLossRows, p.block + count);
      t.loss(p, first, end, room_of(kLossRows * p.V * 6 + 16 * (p.D + 512) + 64 * 4));
    };
    parallel_for(threads, (count + kLossRows - 1) / kLossRows, work);
    t.pairs(p.x + p.block * p.D, p.D, count, p.D, x_pairs, 0, count);
    by_rows(threads, p.V, kOuterRows, [&](int64_t begin, int64_t end) {
      t.outer({p.dlogits, x_pairs, p.V, p.D, 0, count, dhead + begin * p.D, end - begin, p.D, p.D, begin});
    });
  }
}

}  // namespace baltoro
