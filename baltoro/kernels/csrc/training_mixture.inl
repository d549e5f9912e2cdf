// Gated experts and the head with its cross-entropy, with their gradients.

namespace training {

static void experts(const TrainExperts& p, int64_t piece, uint8_t* room) {
  const int64_t *own = p.pieces + 3 * piece, e = own[0], first = own[1], count = own[2], D = p.D, F = p.F;
  uint16_t *x = taken(room, kTrainRows * D), *inner = taken(room, kTrainRows * F),
           *spare = taken(room, kTile * (D + F));
  uint16_t *gates = p.gates + first * F, *ups = p.ups + first * F;
  for (int64_t r = 0; r < count; ++r) __builtin_memcpy(x + r * D, p.x + p.tokens[first + r] * D, D * 2);
  rows_block(x, D, count, D, p.gate + e * D * F, D * kWide, F, To{gates, F, true}, spare);
  rows_block(x, D, count, D, p.up + e * D * F, D * kWide, F, To{ups, F, true}, spare);
  for (int64_t i = 0; i < count * F; i += kWide) {
    const __m512 gate = wide(gates + i);
    narrow(inner + i, _mm512_mul_ps(_mm512_mul_ps(gate, sigmoid(gate)), wide(ups + i)));
  }
  rows_block(inner, F, count, F, p.down + e * D * F, F * kWide, D, To{p.y + first * D, D, false}, spare);
}

static void experts_gradient(const TrainExperts& p, int64_t piece, uint8_t* room) {
  const int64_t *own = p.pieces + 3 * piece, e = own[0], first = own[1], count = own[2], D = p.D, F = p.F;
  uint16_t *x = taken(room, kTrainRows * D), *dy = taken(room, kTrainRows * D);
  uint16_t *hidden = taken(room, kTrainRows * 2 * F), *inner = taken(room, kTrainRows * F);
  float* dinner = taken_floats(room, kTrainRows * F);
  uint16_t* spare = taken(room, kTile * (D + 2 * F));
  for (int64_t r = 0; r < count; ++r) {
    __builtin_memcpy(x + r * D, p.x + p.tokens[first + r] * D, D * 2);
    __builtin_memcpy(dy + r * D, p.dy + p.tokens[first + r] * D, D * 2);
  }
  rows_block(dy, D, count, D, p.from_output + e * D * F, D * kWide, F, To{dinner, F, false}, spare);
  for (int64_t r = 0; r < count; ++r) {
    const __m512 weight = _mm512_set1_ps(p.weights[first + r]), one = _mm512_set1_ps(1.0f);
    const uint16_t *gates = p.gates + (first + r) * F, *ups = p.ups + (first + r) * F;
    __m512 dweight = _mm512_setzero_ps();
    for (int64_t i = 0; i < F; i += kWide) {
      const __m512 gate = wide(gates + i), up = wide(ups + i), s = sigmoid(gate), silu = _mm512_mul_ps(gate, s);
      const __m512 activation = _mm512_mul_ps(silu, up), back = _mm512_loadu_ps(dinner + r * F + i);
      const __m512 d = _mm512_mul_ps(back, weight);
      const __m512 slope = _mm512_fmadd_ps(silu, _mm512_sub_ps(one, s), s);  // of silu
      dweight = _mm512_fmadd_ps(back, activation, dweight);
      narrow(hidden + r * 2 * F + i, _mm512_mul_ps(_mm512_mul_ps(d, up), slope));
      narrow(hidden + r * 2 * F + F + i, _mm512_mul_ps(d, silu));
      narrow(inner + r * F + i, _mm512_mul_ps(activation, weight));
    }
    p.dweights[first + r] = _mm512_reduce_add_ps(dweight);
  }
  rows_block(hidden, 2 * F, count, 2 * F, p.from_hidden + e * 2 * F * D, 2 * F * kWide, D,
             To{p.y + first * D, D, false}, spare);
  to_pairs(x, D, count, D, p.x_pairs + first * D);
  to_pairs(dy, D, count, D, p.dy_pairs + first * D);
  to_pairs(hidden, 2 * F, count, 2 * F, p.hidden_pairs + first * 2 * F);
  to_pairs(inner, F, count, F, p.inner_pairs + first * F);
}

// w_k = factor s_k / sum s, or factor s_k, with s_k = sigmoid(x w_k)
static void route_gradient(const RouteGradient& p, int64_t piece) {
  float* partial = p.partial + piece * p.E * p.D;
  __builtin_memset(partial, 0, p.E * p.D * 4);
  for (int64_t t = piece * kNormRows; t < least_of((piece + 1) * kNormRows, p.T); ++t) {
    const int64_t* chosen = p.chosen + t * p.K;
    const float *x = p.x + t * p.D, *dweights = p.dweights + t * p.K;
    float* dx = p.dx + t * p.D;
    float total = 1e-20f, along = 0.0f;
    auto score = [&](int64_t k) {
      __m512 sum = _mm512_setzero_ps();
      for (int64_t i = 0; i < p.D; i += kWide)
        sum = _mm512_fmadd_ps(_mm512_loadu_ps(x + i), _mm512_loadu_ps(p.w + chosen[k] * p.D + i), sum);
      return 1.0f / (1.0f + __builtin_expf(-_mm512_reduce_add_ps(sum)));
    };
    for (int64_t k = 0; p.normalized && k < p.K; ++k) {
      const float s = score(k);
      total += s, along += s * dweights[k];
    }
    for (int64_t k = 0; k < p.K; ++k) {
      const float s = score(k), slope = p.normalized ? (dweights[k] - along / total) / total : dweights[k];
      const __m512 dlogit = _mm512_set1_ps(p.factor * slope * s * (1.0f - s));
      const float* w = p.w + chosen[k] * p.D;
      float* dw = partial + chosen[k] * p.D;
      for (int64_t i = 0; i < p.D; i += kWide) {
        _mm512_storeu_ps(dx + i, _mm512_fmadd_ps(dlogit, _mm512_loadu_ps(w + i), _mm512_loadu_ps(dx + i)));
        _mm512_storeu_ps(dw + i, _mm512_fmadd_ps(dlogit, _mm512_loadu_ps(x + i), _mm512_loadu_ps(dw + i)));
      }
    }
  }
}

// Rows [first, end), at most kLossRows: their losses, gradients towards x, and the logits' as pairs.
static void loss(const LossRows& p, int64_t first, int64_t end, uint8_t* room) {
  constexpr int64_t kSome = 512;  // of the vocabulary, whose part of the head stays in the cache
  const int64_t count = end - first, V = p.V, D = p.D;
  float* logits = taken_floats(room, kLossRows * V);
  uint16_t *slopes = taken(room, kLossRows * V), *spare = taken(room, kTile * (D + kSome));
  rows_block(p.x + first * D, D, count, D, p.w, D * kWide, V, To{logits, V, false}, spare);
  for (int64_t r = 0; r < count; ++r) {
    float* row = logits + r * V;
    const int64_t target = p.targets[first + r];
    const float wanted = row[target];
    __m512 peaks = _mm512_loadu_ps(row), sums = _mm512_setzero_ps();
    for (int64_t v = kWide; v < V; v += kWide) peaks = _mm512_max_ps(peaks, _mm512_loadu_ps(row + v));
    const float peak = _mm512_reduce_max_ps(peaks);
    for (int64_t v = 0; v < V; v += kWide) {
      const __m512 below = _mm512_sub_ps(_mm512_loadu_ps(row + v), _mm512_set1_ps(peak));
      const __m512 e = power_of_two(_mm512_mul_ps(below, _mm512_set1_ps(kLog2OfE)));
      sums = _mm512_add_ps(sums, e);
      _mm512_storeu_ps(row + v, e);
    }
    const float sum = _mm512_reduce_add_ps(sums);
    p.losses[first + r] = peak - wanted + __builtin_logf(sum);
    const float own = row[target] / sum - 1.0f;
    for (int64_t v = 0; v < V; v += kWide)
      narrow(slopes + r * V + v, _mm512_mul_ps(_mm512_loadu_ps(row + v), _mm512_set1_ps(1.0f / sum)));
    slopes[r * V + target] = rounded_to_bf16(own);
  }
  to_pairs(slopes, V, count, V, p.dlogits + (first - p.block) * V);
  for (int64_t v = 0; v < V; v += kSome) {
    float* to = p.dx + first * D;
    rows_block(slopes + v, V, count, least_of(kSome, V - v), p.w_back + v * kWide, V * kWide, D,
               To{to, D, false, v > 0 ? to : nullptr, D}, spare);
  }
}

}  // namespace training
