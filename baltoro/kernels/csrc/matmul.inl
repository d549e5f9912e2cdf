// The body of matmul_fp8, written once. A target file defines in its own namespace, before including this,
//
//   struct Vec        a register of Vec::lanes floats, with
//     zero()  load(const float*)  decode(const uint8_t*)  scaled(w, float)  fma(a, b, sum)  total(v)
//   kTokens           tokens held in registers at once
//
// and gets a static matmul_fp8. Everything is `static` or in that namespace, and no standard header's inline
// functions are used: the linker could otherwise pick an AVX-512 copy of one for the scalar target.

static constexpr int64_t kBlock = 128;  // weights per side of a block that shares a scale
static constexpr int kRows = 4;         // outputs held in registers at once; divides kBlock, so they share their scales

// One step along the inputs: Vec::lanes weights of every row against the same inputs of every token.
template <int ROWS, int TOKENS>
static inline void step(const float* x, int64_t x_stride, const uint8_t* w, int64_t w_stride, float scale,
                        Vec (&sum)[ROWS][TOKENS]) {
  Vec weights[ROWS];
  for (int r = 0; r < ROWS; ++r) weights[r] = Vec::scaled(Vec::decode(w + r * w_stride), scale);
  for (int t = 0; t < TOKENS; ++t) {
    const Vec inputs = Vec::load(x + t * x_stride);
    for (int r = 0; r < ROWS; ++r) sum[r][t] = Vec::fma(weights[r], inputs, sum[r][t]);
  }
}

// ROWS outputs of TOKENS tokens. Each of the sums sees its products in the same order for any ROWS and TOKENS,
// which is why a token's result does not depend on its company.
template <int ROWS, int TOKENS>
static void tile(const float* x, const uint8_t* w, const float* scale, float* y, int64_t O, int64_t I) {
  Vec sum[ROWS][TOKENS];
  for (int r = 0; r < ROWS; ++r)
    for (int t = 0; t < TOKENS; ++t) sum[r][t] = Vec::zero();

  for (int64_t start = 0; start < I; start += kBlock) {
    const float block_scale = scale[start / kBlock];
    const int64_t end = start + kBlock < I ? start + kBlock : I;
    int64_t i = start;
    for (; i + Vec::lanes <= end; i += Vec::lanes) step<ROWS, TOKENS>(x + i, I, w + i, I, block_scale, sum);
    if (i < end) {  // the last few inputs, filled up with zeros: 0 * 0 changes no sum
      float last_x[TOKENS * Vec::lanes] = {};
      uint8_t last_w[ROWS * Vec::lanes] = {};
      for (int64_t k = i; k < end; ++k) {
        for (int t = 0; t < TOKENS; ++t) last_x[t * Vec::lanes + (k - i)] = x[t * I + k];
        for (int r = 0; r < ROWS; ++r) last_w[r * Vec::lanes + (k - i)] = w[r * I + k];
      }
      step<ROWS, TOKENS>(last_x, Vec::lanes, last_w, Vec::lanes, block_scale, sum);
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int t = 0; t < TOKENS; ++t) y[t * O + r] = Vec::total(sum[r][t]);
}

template <int ROWS>
static void rows(const float* x, const uint8_t* w, const float* scale, float* y, int64_t T, int64_t O, int64_t I) {
  int64_t t = 0;
  for (; t + kTokens <= T; t += kTokens) tile<ROWS, kTokens>(x + t * I, w, scale, y + t * O, O, I);
  for (; t < T; ++t) tile<ROWS, 1>(x + t * I, w, scale, y + t * O, O, I);
}

static void matmul_fp8(const float* x, const uint8_t* w, const float* scale, float* y, int64_t T, int64_t O,
                       int64_t I) {
  static_assert(kBlock % kRows == 0 && kBlock % Vec::lanes == 0, "a tile must not straddle two blocks");
  const int64_t scale_stride = (I + kBlock - 1) / kBlock;
  int64_t o = 0;
  for (; o + kRows <= O; o += kRows) rows<kRows>(x, w + o * I, scale + o / kBlock * scale_stride, y + o, T, O, I);
  for (; o < O; ++o) rows<1>(x, w + o * I, scale + o / kBlock * scale_stride, y + o, T, O, I);
}
