// What lies around the packed products: rows of plain numbers, norms, sigmoids. Written once, with product.inl's
// primitives; only with + - * / of 16 lanes, never a fused multiplication, so that every target gives the same bits.

static inline F16 loaded(const float* from) { return F16::load(from); }
static inline F16 loaded(const uint16_t* from) { return F16::load_bf16(from); }

// The first `count` of 16 numbers, zeros behind them.
template <class Number>
static inline F16 loaded(const Number* from, int64_t count) {
  if (count >= kPanel) return loaded(from);
  Number all[kPanel] = {};
  for (int64_t o = 0; o < count; ++o) all[o] = from[o];
  return loaded(all);
}

static inline float added(F16 sum) {
  float lanes[kPanel];
  F16::store(lanes, sum);
  for (int half = kPanel / 2; half > 0; half /= 2)
    for (int o = 0; o < half; ++o) lanes[o] += lanes[o + half];
  return lanes[0];
}

template <int OUTPUTS, int TOKENS, class Number>
static inline void dot_tile(const Number* const (&rows)[OUTPUTS], int64_t inputs, const float* x, int64_t stride,
                            float* y, int64_t y_stride) {
  F16 sum[TOKENS][OUTPUTS];
  for (int t = 0; t < TOKENS; ++t)
    for (int o = 0; o < OUTPUTS; ++o) sum[t][o] = F16::set(0.0f);
  int64_t i = 0;
  for (; i + kPanel <= inputs; i += kPanel)
    for (int o = 0; o < OUTPUTS; ++o) {
      const F16 w = loaded(rows[o] + i);
      for (int t = 0; t < TOKENS; ++t) sum[t][o] = sum[t][o] + w * F16::load(x + t * stride + i);
    }
  if (i < inputs)
    for (int o = 0; o < OUTPUTS; ++o) {
      const F16 w = loaded(rows[o] + i, inputs - i);
      for (int t = 0; t < TOKENS; ++t) sum[t][o] = sum[t][o] + w * loaded(x + t * stride + i, inputs - i);
    }
  for (int t = 0; t < TOKENS; ++t)
    for (int o = 0; o < OUTPUTS; ++o) y[t * y_stride + o] = added(sum[t][o]);
}

template <int OUTPUTS, class Number>
static inline void dot_block(const Dense& w, int64_t first, int64_t inputs, const float* x, int64_t stride,
                             int64_t tokens, float* y, int64_t y_stride) {
  const Number* rows[OUTPUTS];
  for (int o = 0; o < OUTPUTS; ++o)
    rows[o] = static_cast<const Number*>(w.data) + (w.rows ? w.rows[first + o] : first + o) * w.stride;
  int64_t t = 0;
  for (; t + 2 <= tokens; t += 2)
    dot_tile<OUTPUTS, 2, Number>(rows, inputs, x + t * stride, stride, y + t * y_stride + first, y_stride);
  for (; t < tokens; ++t)
    dot_tile<OUTPUTS, 1, Number>(rows, inputs, x + t * stride, stride, y + t * y_stride + first, y_stride);
}

template <class Number>
static void dots_of(const Dense& w, int64_t begin, int64_t end, int64_t inputs, const float* x, int64_t stride,
                    int64_t tokens, float* y, int64_t y_stride) {
  int64_t o = begin;
  for (; o + 4 <= end; o += 4) dot_block<4, Number>(w, o, inputs, x, stride, tokens, y, y_stride);
  for (; o < end; ++o) dot_block<1, Number>(w, o, inputs, x, stride, tokens, y, y_stride);
}

static void dots(const Dense& w, int64_t begin, int64_t end, int64_t inputs, const float* x, int64_t stride,
                 int64_t tokens, float* y, int64_t y_stride) {
  if (w.is_bf16)
    dots_of<uint16_t>(w, begin, end, inputs, x, stride, tokens, y, y_stride);
  else
    dots_of<float>(w, begin, end, inputs, x, stride, tokens, y, y_stride);
}

template <class Number>
static void mix_of(const Dense& w, int64_t count, const float* weights, int64_t columns, float* y) {
  for (int64_t c = 0; c < columns; c += 4 * kPanel) {
    F16 sum[4] = {F16::set(0.0f), F16::set(0.0f), F16::set(0.0f), F16::set(0.0f)};
    for (int64_t i = 0; i < count; ++i) {
      const Number* row = static_cast<const Number*>(w.data) + (w.rows ? w.rows[i] : i) * w.stride;
      const F16 weight = F16::set(weights[i]);
      for (int64_t b = 0; b < 4 && c + b * kPanel < columns; ++b)
        sum[b] = sum[b] + weight * loaded(row + c + b * kPanel, columns - c - b * kPanel);
    }
    for (int64_t b = 0; b < 4 && c + b * kPanel < columns; ++b)
      store(y + c + b * kPanel, sum[b], columns - c - b * kPanel);
  }
}

static void mix_rows(const Dense& w, int64_t count, const float* weights, int64_t columns, float* y) {
  if (w.is_bf16)
    mix_of<uint16_t>(w, count, weights, columns, y);
  else
    mix_of<float>(w, count, weights, columns, y);
}

static void normalize(const float* x, const float* added_to_x, const float* weight, float eps, float* sum, float* y,
                      int64_t width) {
  F16 squares[4] = {F16::set(0.0f), F16::set(0.0f), F16::set(0.0f), F16::set(0.0f)};
  for (int64_t i = 0, block = 0; i < width; i += kPanel, ++block) {
    F16 value = loaded(x + i, width - i);
    if (added_to_x) {
      value = value + loaded(added_to_x + i, width - i);
      store(sum + i, value, width - i);
    }
    squares[block % 4] = squares[block % 4] + value * value;
  }
  const float total = added((squares[0] + squares[1]) + (squares[2] + squares[3]));
  const F16 inverse = F16::set(1.0f / __builtin_sqrtf(total / static_cast<float>(width) + eps));
  const float* from = added_to_x ? sum : x;
  for (int64_t i = 0; i < width; i += kPanel)
    store(y + i, loaded(weight + i, width - i) * (loaded(from + i, width - i) * inverse), width - i);
}

static void sigmoids(float* x, int64_t count) {
  for (int64_t i = 0; i < count; i += kPanel) {
    const F16 one = F16::set(1.0f), value = loaded(x + i, count - i);
    store(x + i, one / (one + exponential(F16::set(0.0f) - value)), count - i);
  }
}

static void gate_rows(const float* gate, const float* up, float* y, int64_t count) {
  for (int64_t i = 0; i < count; i += kPanel)
    store(y + i, silu(loaded(gate + i, count - i)) * loaded(up + i, count - i), count - i);
}

static void softmax(float* x, int64_t count, float scale) {
  float peak = x[0] * scale;  // a NaN among the scores reaches the sum anyway
  for (int64_t i = 1; i < count; ++i) peak = x[i] * scale > peak ? x[i] * scale : peak;
  F16 sum = F16::set(0.0f);
  for (int64_t i = 0; i < count; i += kPanel) {
    const F16 value = exponential(loaded(x + i, count - i) * F16::set(scale) - F16::set(peak));
    store(x + i, value, count - i);
    sum = sum + loaded(x + i, count - i);  // what lies behind `count` counts nothing
  }
  const float total = added(sum);
  for (int64_t i = 0; i < count; ++i) x[i] /= total;
}
