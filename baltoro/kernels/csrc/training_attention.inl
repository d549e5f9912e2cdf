// Causal attention of one document's head with its gradient: whole rows of scores, 48 queries at a time.

namespace training {

// Queries at a time: fewer see fewer keys in vain, more share a gradient's sums.
static constexpr int64_t kQueryRows = kTrainRows, kSomeQueries = kTrainRows / 2;

// One head's share of a document, and where its numbers lie.
struct HeadRows {
  const TrainAttention& p;
  int64_t begin, length, padded, h, key, value;  // first token, tokens, tokens up to a multiple of 16

  HeadRows(const TrainAttention& p, int64_t b, int64_t h)
      : p(p),
        begin(p.edges[b]),
        length(p.edges[b + 1] - begin),
        padded(up_to(length, kWide)),
        h(h),
        key(p.N + p.R),
        value(p.V) {}
  const uint16_t* query(int64_t t) const { return p.q + ((begin + t) * p.H + h) * key; }
  const uint16_t* nope(int64_t t) const { return p.kv + ((begin + t) * p.H + h) * (p.N + p.V); }
  const uint16_t* rotary(int64_t t) const { return p.k_pe + (begin + t) * p.R; }
  const uint16_t* values(int64_t t) const { return nope(t) + p.N; }
  int64_t seen(int64_t queries) const { return least_of(up_to(queries, kWide), padded); }
};

static inline uint16_t* taken(uint8_t*& room, int64_t numbers) {
  uint16_t* mine = reinterpret_cast<uint16_t*>(room);
  room += up_to(numbers * 2, 64);
  return mine;
}
static inline float* taken_floats(uint8_t*& room, int64_t numbers) {
  return reinterpret_cast<float*>(taken(room, 2 * numbers));
}

// Columns [at, at + width) of panels (width of all, tokens): 16 tokens are a panel, each of them a lane.
template <class Row>
static void tokens_as_columns(const HeadRows& rows, int64_t width, int64_t at, int64_t all, uint16_t* to, Row row) {
  for (int64_t t = 0; t < rows.padded; t += kWide)
    for (int64_t i = 0; i < width; i += 32) {
      WordLanes words[kRows];
      const int64_t count = least_of(width - i, 32) / 2;
      const __mmask16 some = static_cast<__mmask16>((1u << count) - 1);
      for (int64_t r = 0; r < kWide; ++r)
        words[r] = t + r < rows.length ? (WordLanes)_mm512_maskz_loadu_epi32(some, row(t + r) + i) : WordLanes{};
      transpose(words);
      for (int64_t k = 0; k < count; ++k)
        _mm512_storeu_si512(to + t * all + (at + i + 2 * k) * kWide, (__m512i)words[k]);
    }
}

// Columns [at, at + width) of panels (tokens, width of all): two tokens side by side.
template <class Row>
static void tokens_as_rows(const HeadRows& rows, int64_t width, int64_t at, uint16_t* to, Row row) {
  for (int64_t t = 0; t < rows.padded; t += 2)
    for (int64_t i = 0; i < width; i += kWide)
      _mm512_storeu_si512(
          to + (at + i) * rows.padded + t * kWide,
          side_by_side(t < rows.length ? row(t) + i : nullptr, t + 1 < rows.length ? row(t + 1) + i : nullptr));
}

static void keys_as_columns(const HeadRows& rows, uint16_t* to) {
  tokens_as_columns(rows, rows.p.N, 0, rows.key, to, [&](int64_t t) { return rows.nope(t); });
  tokens_as_columns(rows, rows.p.R, rows.p.N, rows.key, to, [&](int64_t t) { return rows.rotary(t); });
}

// exp(scale (score - the largest)) of the first `visible` of `seen` scores, zeros behind them; their sum, and the
// largest scaled score. `scale` is positive.
static inline float weigh(const float* scores, int64_t visible, int64_t seen, float scale, uint16_t* weights,
                          float& peak) {
  const int64_t whole = visible / kWide * kWide;
  const __mmask16 some = static_cast<__mmask16>((1u << (visible - whole)) - 1);
  const __m512 hidden = _mm512_set1_ps(kHidden), factor = _mm512_set1_ps(scale * kLog2OfE);
  __m512 peaks = hidden, sum = _mm512_setzero_ps();
  for (int64_t s = 0; s < whole; s += kWide) peaks = _mm512_max_ps(peaks, _mm512_loadu_ps(scores + s));
  if (some) peaks = _mm512_max_ps(peaks, _mm512_mask_loadu_ps(hidden, some, scores + whole));
  const float highest = _mm512_reduce_max_ps(peaks);
  const __m512 top = _mm512_mul_ps(_mm512_set1_ps(highest), factor);
  for (int64_t s = 0; s < whole; s += kWide) {
    const __m512 weight = power_of_two(_mm512_fmsub_ps(_mm512_loadu_ps(scores + s), factor, top));
    sum = _mm512_add_ps(sum, weight);
    narrow(weights + s, weight);
  }
  for (int64_t s = whole; s < seen; s += kWide) {
    const __mmask16 here = s == whole ? some : 0;
    const __m512 score = _mm512_mask_loadu_ps(_mm512_setzero_ps(), here, scores + s);
    const __m512 weight = _mm512_maskz_mov_ps(here, power_of_two(_mm512_fmsub_ps(score, factor, top)));
    sum = _mm512_add_ps(sum, weight);
    narrow(weights + s, weight);
  }
  peak = highest * scale;
  return _mm512_reduce_add_ps(sum);
}

static void attend(const TrainAttention& p, int64_t b, int64_t h, uint8_t* room) {
  const HeadRows rows(p, b, h);
  const int64_t S = rows.padded, V = p.V;
  uint16_t *keys = taken(room, S * rows.key), *values = taken(room, S * V), *weights = taken(room, kQueryRows * S);
  float *scores = taken_floats(room, kQueryRows * S), *mixed = taken_floats(room, kQueryRows * V);
  uint16_t* spare = taken(room, kTile * (S + rows.key));
  keys_as_columns(rows, keys);
  tokens_as_rows(rows, V, 0, values, [&](int64_t t) { return rows.values(t); });
  float largest = kHidden;
  for (int64_t first = 0; first < rows.length; first += kSomeQueries) {
    const int64_t count = least_of(kSomeQueries, rows.length - first), seen = rows.seen(first + kSomeQueries);
    float sums[kSomeQueries];
    rows_block(rows.query(first), p.H * rows.key, count, rows.key, keys, rows.key * kWide, seen, To{scores, S, false},
               spare);
    for (int64_t r = 0; r < count; ++r) {
      float peak;
      sums[r] = weigh(scores + r * S, first + r + 1, seen, p.scale, weights + r * S, peak);
      p.lse[(rows.begin + first + r) * p.H + h] = peak + __builtin_logf(sums[r]);
      if (!(peak <= largest)) largest = peak;  // a NaN is told, too
    }
    rows_block(weights, S, count, seen, values, S * kWide, V, To{mixed, V, false}, spare);
    for (int64_t r = 0; r < count; ++r)
      for (int64_t i = 0; i < V; i += kWide)
        narrow(p.context + ((rows.begin + first + r) * p.H + h) * V + i,
               _mm512_mul_ps(_mm512_loadu_ps(mixed + r * V + i), _mm512_set1_ps(1.0f / sums[r])));
  }
  p.peaks[b * p.H + h] = largest;
}

static float dot_rows_of(const uint16_t* a, const uint16_t* b, int64_t width) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < width; i += kWide) sum = _mm512_fmadd_ps(wide(a + i), wide(b + i), sum);
  return _mm512_reduce_add_ps(sum);
}

// Of two queries: weights and score gradients, the former as pairs, the latter as pairs and as rows.
struct TwoQueries {
  const float *scores[2], *slopes[2];  // unscaled scores, and gradients of the weights
  float lse[2], along[2];
  int64_t visible[2];  // 0: there is no such query

  void gradients(int64_t seen, float scale, uint16_t* weights, uint16_t* pairs, uint16_t* const (&rows)[2]) const {
    const __m512 factor = _mm512_set1_ps(scale * kLog2OfE), slope_factor = _mm512_set1_ps(scale);
    __m512 sums[2], less[2];
    for (int i = 0; i < 2; ++i) {
      sums[i] = _mm512_set1_ps(lse[i] * kLog2OfE);
      less[i] = _mm512_set1_ps(along[i] * scale);
    }
    for (int64_t s = 0; s < seen; s += kWide) {
      __m512 weight[2], slope[2];
      for (int i = 0; i < 2; ++i) {
        weight[i] = power_of_two(_mm512_fmsub_ps(_mm512_loadu_ps(scores[i] + s), factor, sums[i]));
        slope[i] = _mm512_mul_ps(_mm512_fmsub_ps(_mm512_loadu_ps(slopes[i] + s), slope_factor, less[i]), weight[i]);
        if (s + kWide > visible[i]) {
          const int64_t left = visible[i] - s;
          const __mmask16 some = left > 0 ? static_cast<__mmask16>((1u << left) - 1) : 0;
          weight[i] = _mm512_maskz_mov_ps(some, weight[i]), slope[i] = _mm512_maskz_mov_ps(some, slope[i]);
        }
      }
      _mm512_storeu_si512(weights + 2 * s, side_by_side(weight[0], weight[1]));
      const __m256i low = (__m256i)_mm512_cvtneps_pbh(slope[0]), high = (__m256i)_mm512_cvtneps_pbh(slope[1]);
      _mm512_storeu_si512(pairs + 2 * s, halves(low, high));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(rows[0] + s), low);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(rows[1] + s), high);
    }
  }
};

static void attend_gradient(const TrainAttention& p, int64_t b, int64_t h, uint8_t* room) {
  const HeadRows rows(p, b, h);
  const int64_t S = rows.padded, W = rows.key, V = p.V;
  uint16_t *keys = taken(room, S * W), *key_rows = taken(room, S * W), *values = taken(room, S * V);
  uint16_t *weights = taken(room, kQueryRows * S), *pairs = taken(room, kQueryRows * S),
           *slopes = taken(room, kQueryRows * S);
  uint16_t *queries = taken(room, kQueryRows * W), *contexts = taken(room, kQueryRows * V);
  float *scores = taken_floats(room, kQueryRows * S), *dweights = taken_floats(room, kQueryRows * S);
  float *dkeys = taken_floats(room, S * W), *dvalues = taken_floats(room, S * V);
  uint16_t* spare = taken(room, kTile * (S + W));
  keys_as_columns(rows, keys);
  tokens_as_columns(rows, V, 0, V, values, [&](int64_t t) { return rows.values(t); });
  tokens_as_rows(rows, p.N, 0, key_rows, [&](int64_t t) { return rows.nope(t); });
  tokens_as_rows(rows, p.R, p.N, key_rows, [&](int64_t t) { return rows.rotary(t); });
  __builtin_memset(dkeys, 0, S * W * 4);
  __builtin_memset(dvalues, 0, S * V * 4);
  for (int64_t first = 0; first < rows.length; first += kQueryRows) {
    const int64_t count = least_of(kQueryRows, rows.length - first), seen = rows.seen(first + kQueryRows);
    const int64_t at = (rows.begin + first) * p.H + h;  // of (T, H)
    for (int64_t half = 0; half < count; half += kSomeQueries) {
      const int64_t some = least_of(kSomeQueries, count - half), own = rows.seen(first + half + kSomeQueries);
      const int64_t from = at + half * p.H;
      float *these = scores + half * S, *those = dweights + half * S;
      rows_block(p.q + from * W, p.H * W, some, W, keys, W * kWide, own, To{these, S, false}, spare);
      rows_block(p.dcontext + from * V, p.H * V, some, V, values, V * kWide, own, To{those, S, false}, spare);
      for (int64_t r = half; r < half + some; r += 2) {
        TwoQueries two;
        for (int64_t i = 0; i < 2; ++i) {
          const bool here = r + i < count;
          const int64_t row = here ? r + i : r, token = at + row * p.H;
          two.scores[i] = scores + row * S, two.slopes[i] = dweights + row * S;
          two.lse[i] = p.lse[token];
          two.along[i] = dot_rows_of(p.dcontext + token * V, p.context + token * V, V);
          two.visible[i] = here ? first + row + 1 : 0;
        }
        two.gradients(own, p.scale, weights + r * S, pairs + r * S, {slopes + r * S, slopes + (r + 1) * S});
        __builtin_memset(weights + r * S + 2 * own, 0, (seen - own) * 4);
        __builtin_memset(pairs + r * S + 2 * own, 0, (seen - own) * 4);
      }
      rows_block(slopes + half * S, S, some, own, key_rows, S * kWide, W, To{p.dq + from * W, p.H * W, true}, spare);
    }
    to_pairs(p.q + at * W, p.H * W, count, W, queries);
    to_pairs(p.dcontext + at * V, p.H * V, count, V, contexts);
    outer_block(weights, S, contexts, V, (count + 1) / 2, dvalues, V, seen, V);
    outer_block(pairs, S, queries, W, (count + 1) / 2, dkeys, W, seen, W);
  }
  for (int64_t t = 0; t < rows.length; ++t) {
    const int64_t token = (rows.begin + t) * p.H + h;
    uint16_t* to = p.dkv + token * (p.N + V);
    for (int64_t i = 0; i < p.N; i += kWide) narrow(to + i, _mm512_loadu_ps(dkeys + t * W + i));
    for (int64_t i = 0; i < V; i += kWide) narrow(to + p.N + i, _mm512_loadu_ps(dvalues + t * V + i));
    __builtin_memcpy(p.dk_pe + token * p.R, dkeys + t * W + p.N, p.R * 4);
  }
}

static void sum_heads(const float* x, int64_t H, int64_t R, uint16_t* to, int64_t stride, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t)
    for (int64_t i = 0; i < R; i += kWide) {
      __m512 sum = _mm512_loadu_ps(x + t * H * R + i);
      for (int64_t h = 1; h < H; ++h) sum = _mm512_add_ps(sum, _mm512_loadu_ps(x + (t * H + h) * R + i));
      narrow(to + t * stride + i, sum);
    }
}

}  // namespace training
