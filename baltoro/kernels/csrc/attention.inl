// Attention of up to two panels of queries to rows of keys and values, written once. To product.inl's primitives a
// target adds
//
//   Rows    32 neighbouring columns of two rows   two_rows(const uint16_t*, const uint16_t*)
//   dot_rows(F16 (&sum)[2], Rows, const uint16_t* pair)   plus first row times pair[0] plus second row times pair[1]
//   in_order(F16 (&sum)[2])                               the 32 sums by their columns
//   store_pairs(uint16_t*, F16, F16)                      16 pairs of bf16

#include "product.inl"

static constexpr int kColumns = 32;     // of values, held in registers for kQueries queries at once
static constexpr int64_t kChunk = 512;  // keys whose scores are made at once
static constexpr int64_t kLanes = 2 * kPanel;

// sum over keys of weight(key, query) * value(key), for QUERIES queries and 32 columns. weights: pairs of keys x
// kLanes.
template <int QUERIES>
static inline void mix(const uint16_t* weights, const uint16_t* const* values, int64_t column, int64_t pairs, float* to,
                       int64_t stride, const float* scale) {
  F16 sum[QUERIES][2];
  for (int q = 0; q < QUERIES; ++q) sum[q][0] = sum[q][1] = F16::set(0.0f);
  for (int64_t i = 0; i < pairs; ++i) {
    const Rows rows = two_rows(values[2 * i] + column, values[2 * i + 1] + column);
    for (int q = 0; q < QUERIES; ++q) dot_rows(sum[q], rows, weights + (i * kLanes + q) * 2);
  }
  for (int q = 0; q < QUERIES; ++q) {
    in_order(sum[q]);
    float* at = to + q * stride + column;
    F16::store(at, F16::load(at) * F16::set(scale[q]) + sum[q][0]);
    F16::store(at + kPanel, F16::load(at + kPanel) * F16::set(scale[q]) + sum[q][1]);
  }
}

static void attend(const Matrix& queries, const KeyRows& rows, int64_t begin, int64_t end, int64_t past, float scale,
                   Attended& state) {
  const int64_t lanes = queries.outputs, row_bytes = rows.stride * 2;
  const Inputs inputs{reinterpret_cast<uint8_t*>(const_cast<uint16_t*>(rows.keys)), nullptr, nullptr, row_bytes, 0, 1};
  alignas(64) float scores[kChunk * kLanes];
  alignas(64) uint16_t weights[kChunk * kLanes];
  alignas(64) float shrink[kLanes];
  Token tokens[kChunk];
  const uint16_t* values[kChunk];

  for (int64_t start = begin; start < end; start += kChunk) {
    const int64_t count = end - start < kChunk ? end - start : kChunk;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t slot = rows.slots ? rows.slots[start + i] : start + i;
      tokens[i] = {static_cast<int32_t>(slot), static_cast<int32_t>(i), 1.0f};
      values[i] = rows.values + slot * rows.value_stride;
    }
    all_panels<ScatteredBf16>(queries, inputs, tokens, count, 0, panels(queries), nullptr,
                              Replace{scores, kLanes, queries.outputs});
    for (int64_t i = past + 1 - start > 0 ? past + 1 - start : 0; i < count; ++i)  // query l sees keys 0 .. past + l
      for (int64_t l = 0; l < lanes && l < start + i - past; ++l) scores[i * kLanes + l] = -3.0e38f;

    const int64_t pairs = (count + 1) / 2;
    if (count % 2) values[count] = values[count - 1];  // weighs nothing
    for (int64_t p = 0; p < panels(queries); ++p) {
      const F16 factor = F16::set(scale), before = F16::load(state.peak + p * kPanel);
      F16 peak = before;
      for (int64_t i = 0; i < count; ++i) peak = max(peak, F16::load(scores + i * kLanes + p * kPanel) * factor);
      const F16 less = exponential(before - peak);
      F16 sum = F16::load(state.sum + p * kPanel) * less;
      for (int64_t i = 0; i < pairs; ++i) {
        const float* at = scores + 2 * i * kLanes + p * kPanel;
        const F16 one = exponential(F16::load(at) * factor - peak);
        const F16 two = 2 * i + 1 < count ? exponential(F16::load(at + kLanes) * factor - peak) : F16::set(0.0f);
        sum = sum + one + two;
        store_pairs(weights + (i * kLanes + p * kPanel) * 2, one, two);
      }
      F16::store(state.peak + p * kPanel, peak);
      F16::store(state.sum + p * kPanel, sum);
      F16::store(shrink + p * kPanel, less);
    }
    for (int64_t column = 0; column < state.width; column += kColumns) {
      int64_t q = 0;
      for (; q + kQueries <= lanes; q += kQueries)
        mix<kQueries>(weights + q * 2, values, column, pairs, state.mixed + q * state.width, state.width, shrink + q);
      for (; q < lanes; ++q)
        mix<1>(weights + q * 2, values, column, pairs, state.mixed + q * state.width, state.width, shrink + q);
    }
  }
}
