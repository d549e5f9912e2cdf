// What training multiplies with, in AVX-512 BF16: training.h has the contract and the two layouts.
//
// A tile is 8 rows by up to three registers of columns, 24 sums that stay in registers. Of `panels` a tile takes whole
// rows of the sum's dimension, 64 bytes after 64; a number pair of a left factor goes to all lanes.

static constexpr int64_t kTile = 8, kWide = 16;  // rows of a tile, columns of a register
static constexpr int64_t kDepth = 96;            // pairs of an outer product taken at once: both factors' in the cache

static inline int64_t least_of(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t up_to(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

static inline __m512i both(const uint16_t* pair) { return _mm512_set1_epi32(four_bytes(pair)); }
static inline __m512 add_dots(__m512 sum, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}
static inline __m512 wide(const uint16_t* from) { return F16::load_bf16(from).v; }
static inline void narrow(uint16_t* to, __m512 values) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(values));
}
static inline __m512i halves(__m256i low, __m256i high) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
}
static inline __m512i side_by_side(const uint16_t* low, const uint16_t* high) {  // 16 numbers of each; null: zeros
  const __m256i none = _mm256_setzero_si256();
  return halves(low ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(low)) : none,
                high ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(high)) : none);
}
static inline __m512i side_by_side(__m512 low, __m512 high) {
  return halves((__m256i)_mm512_cvtneps_pbh(low), (__m256i)_mm512_cvtneps_pbh(high));
}

// 2^x with a relative error below 2^-20, for any x but infinities
static inline __m512 power_of_two(__m512 x) {
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 r = _mm512_sub_ps(x, whole);
  __m512 e = _mm512_set1_ps(1.33952315e-3f);
  e = _mm512_fmadd_ps(e, r, _mm512_set1_ps(9.61793720e-3f));
  e = _mm512_fmadd_ps(e, r, _mm512_set1_ps(5.55033250e-2f));
  e = _mm512_fmadd_ps(e, r, _mm512_set1_ps(2.40226507e-1f));
  e = _mm512_fmadd_ps(e, r, _mm512_set1_ps(6.93147181e-1f));
  e = _mm512_fmadd_ps(e, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(e, whole);
}

constexpr float kLog2OfE = 1.44269504f;

// With a relative error below 2^-13, of what bf16 numbers are made; a division takes as long as all the rest.
static inline __m512 sigmoid(__m512 x) {
  const __m512 other = power_of_two(_mm512_mul_ps(x, _mm512_set1_ps(-kLog2OfE)));
  return _mm512_rcp14_ps(_mm512_add_ps(_mm512_set1_ps(1.0f), other));
}

// Where a product's rows go: float32 or bf16, or float32 added to `onto`, which may be the same place.
struct To {
  void* y;
  int64_t stride;
  bool is_bf16;
  const float* onto = nullptr;
  int64_t onto_stride = 0;

  void store(int64_t row, int64_t column, __m512 sum) const {
    if (is_bf16) return narrow(static_cast<uint16_t*>(y) + row * stride + column, sum);
    if (onto) sum = _mm512_add_ps(sum, _mm512_loadu_ps(onto + row * onto_stride + column));
    _mm512_storeu_ps(static_cast<float*>(y) + row * stride + column, sum);
  }
};

template <int WIDTH>
static inline void rows_tile(const uint16_t* a, int64_t stride, int64_t inputs, const uint16_t* w, int64_t panel,
                             const To& to, int64_t row, int64_t column, int64_t rows) {
  __m512 sum[kTile][WIDTH];
  for (int r = 0; r < kTile; ++r)
    for (int j = 0; j < WIDTH; ++j) sum[r][j] = _mm512_setzero_ps();
  const uint16_t *first = a, *second = a + 3 * stride, *third = a + 6 * stride;
  const uint16_t* const end = a + inputs;
#pragma GCC unroll 4
  for (; first < end; first += 2, second += 2, third += 2, w += 2 * kWide) {
    __m512i b[WIDTH];
    for (int j = 0; j < WIDTH; ++j) b[j] = _mm512_loadu_si512(w + j * panel);
#define BALTORO_ROW(r, from) \
  for (int j = 0; j < WIDTH; ++j) sum[r][j] = add_dots(sum[r][j], both(from), b[j]);
    BALTORO_ROW(0, first)
    BALTORO_ROW(1, first + stride)
    BALTORO_ROW(2, first + 2 * stride)
    BALTORO_ROW(3, second)
    BALTORO_ROW(4, second + stride)
    BALTORO_ROW(5, second + 2 * stride)
    BALTORO_ROW(6, third)
    BALTORO_ROW(7, third + stride)
#undef BALTORO_ROW
  }
  for (int r = 0; r < kTile; ++r)
    if (r < rows)
      for (int j = 0; j < WIDTH; ++j) to.store(row + r, column + j * kWide, sum[r][j]);
}

template <int WIDTH>
static inline void outer_tile(const uint16_t* a, int64_t a_width, const uint16_t* b, int64_t b_width, int64_t pairs,
                              float* c, int64_t stride) {
  __m512 sum[kTile][WIDTH];
  for (int r = 0; r < kTile; ++r)
    for (int j = 0; j < WIDTH; ++j) sum[r][j] = _mm512_loadu_ps(c + r * stride + j * kWide);
#pragma GCC unroll 2
  for (int64_t k = 0; k < pairs; ++k, a += 2 * a_width, b += 2 * b_width) {
    __m512i right[WIDTH];
    for (int j = 0; j < WIDTH; ++j) right[j] = _mm512_loadu_si512(b + j * 2 * kWide);
    for (int r = 0; r < kTile; ++r)
      for (int j = 0; j < WIDTH; ++j) sum[r][j] = add_dots(sum[r][j], both(a + 2 * r), right[j]);
  }
  for (int r = 0; r < kTile; ++r)
    for (int j = 0; j < WIDTH; ++j) _mm512_storeu_ps(c + r * stride + j * kWide, sum[r][j]);
}

// Registers of the next tile: never one alone where there were four
static inline int next_width(int64_t registers) { return registers == 4 ? 2 : registers < 3 ? registers : 3; }

// Up to kTrainRows rows of a(rows, inputs) times panels of `panel` numbers each. room: (kTile, inputs)
static inline void rows_block(const uint16_t* a, int64_t stride, int64_t rows, int64_t inputs, const uint16_t* w,
                              int64_t panel, int64_t outputs, const To& to, uint16_t* room) {
  const int64_t whole = rows / kTile * kTile, left = rows - whole;
  for (int64_t r = 0; left > 0 && r < kTile; ++r) {
    if (r < left)
      __builtin_memcpy(room + r * inputs, a + (whole + r) * stride, inputs * 2);
    else
      __builtin_memset(room + r * inputs, 0, inputs * 2);
  }
  for (int64_t at = 0, width; at < outputs / kWide; at += width) {
    width = next_width(outputs / kWide - at);
    const uint16_t* from = w + at * panel;
    for (int64_t row = 0; row < rows; row += kTile) {
      const bool direct = row < whole;
      const uint16_t* x = direct ? a + row * stride : room;
      const int64_t step = direct ? stride : inputs, count = direct ? kTile : left;
      if (width == 3)
        rows_tile<3>(x, step, inputs, from, panel, to, row, at * kWide, count);
      else if (width == 2)
        rows_tile<2>(x, step, inputs, from, panel, to, row, at * kWide, count);
      else
        rows_tile<1>(x, step, inputs, from, panel, to, row, at * kWide, count);
    }
  }
}

// c(rows, columns) += a^T b over `pairs` pairs of rows; rows is a multiple of kTile, columns of kWide.
static inline void outer_block(const uint16_t* a, int64_t a_width, const uint16_t* b, int64_t b_width, int64_t pairs,
                               float* c, int64_t stride, int64_t rows, int64_t columns) {
  for (int64_t k = 0; k < pairs; k += kDepth) {
    const int64_t some = least_of(kDepth, pairs - k);
    for (int64_t at = 0, width; at < columns; at += width * kWide) {
      width = next_width((columns - at) / kWide);
      const uint16_t* right = b + (k * b_width + at) * 2;
      for (int64_t r = 0; r < rows; r += kTile) {
        const uint16_t* left = a + (k * a_width + r) * 2;
        float* to = c + r * stride + at;
        if (width == 3)
          outer_tile<3>(left, a_width, right, b_width, some, to, stride);
        else if (width == 2)
          outer_tile<2>(left, a_width, right, b_width, some, to, stride);
        else
          outer_tile<1>(left, a_width, right, b_width, some, to, stride);
      }
    }
  }
}

// Rows [0, rows) as pairs: to[ceil(rows / 2)][width][2], row i being at x + i * stride.
static inline void to_pairs(const uint16_t* x, int64_t stride, int64_t rows, int64_t width, uint16_t* to) {
  for (int64_t row = 0; row < rows; row += 2, to += 2 * width) {
    const uint16_t *low = x + row * stride, *high = row + 1 < rows ? low + stride : nullptr;
    for (int64_t c = 0; c < width; c += kWide)
      _mm512_storeu_si512(to + 2 * c, side_by_side(low + c, high ? high + c : nullptr));
  }
}

namespace training {

static void pack(const float* w, int64_t O, int64_t I, uint16_t* panels, int64_t begin, int64_t end) {
  (void)O;
  for (int64_t o = begin; o < end; o += kWide)
    for (int64_t i = 0; i < I; i += 32) {  // 16 outputs of up to 16 pairs, turned
      WordLanes words[kRows];
      const bool whole = i + 32 <= I;
      for (int64_t r = 0; r < kWide; ++r) {
        const float* from = w + (o + r) * I + i;
        const __m512 second = whole ? _mm512_loadu_ps(from + kWide) : _mm512_setzero_ps();
        words[r] = (WordLanes)(__m512i)_mm512_cvtne2ps_pbh(second, _mm512_loadu_ps(from));
      }
      transpose(words);
      for (int64_t k = 0; k < (whole ? 16 : 8); ++k)
        _mm512_storeu_si512(panels + o * I + (i / 2 + k) * 2 * kWide, (__m512i)words[k]);
    }
}

static void pack_back(const float* w, int64_t O, int64_t I, uint16_t* panels, int64_t all, int64_t offset,
                      int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += kWide)
    for (int64_t o = 0; o < O; o += 2)
      _mm512_storeu_si512(panels + i * all + (offset + o) * kWide,
                          side_by_side(_mm512_loadu_ps(w + o * I + i), _mm512_loadu_ps(w + (o + 1) * I + i)));
}

static void round(const float* from, uint16_t* to, int64_t count) {
  for (int64_t i = 0; i < count; i += kWide) narrow(to + i, _mm512_loadu_ps(from + i));
}

static void pairs(const uint16_t* x, int64_t stride, int64_t T, int64_t width, uint16_t* to, int64_t begin,
                  int64_t end) {
  to_pairs(x + begin * stride, stride, least_of(end, T) - begin, width, to + begin * width);
}

static void product(const RowsProduct& p, int64_t first, uint16_t* room) {
  const int64_t rows = least_of(kTrainRows, p.T - first);
  To to{p.y, p.y_stride, p.is_bf16};
  if (p.is_bf16) {
    to.y = static_cast<uint16_t*>(p.y) + first * p.y_stride;
  } else {
    to.y = static_cast<float*>(p.y) + first * p.y_stride;
    if (p.onto) to.onto = p.onto + first * p.outputs, to.onto_stride = p.outputs;
  }
  rows_block(p.x + first * p.stride, p.stride, rows, p.inputs, p.w, p.inputs * kWide, p.outputs, to, room);
}

static void outer(const Outer& p) {
  outer_block(p.a + (p.begin / 2 * p.a_width + p.a_column) * 2, p.a_width, p.b + p.begin * p.b_width, p.b_width,
              (p.end - p.begin + 1) / 2, p.c, p.c_stride, p.rows, p.columns);
}

static void norm(const NormRows& p, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    const float* x = p.x + t * p.stride;
    __m512 squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < p.width; i += kWide) {
      const __m512 v = _mm512_loadu_ps(x + i);
      squares = _mm512_fmadd_ps(v, v, squares);
    }
    const float scale = 1.0f / __builtin_sqrtf(_mm512_reduce_add_ps(squares) / static_cast<float>(p.width) + p.eps);
    p.scales[t] = scale;
    for (int64_t i = 0; i < p.width; i += kWide) {
      const __m512 y =
          _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(x + i), _mm512_set1_ps(scale)), _mm512_loadu_ps(p.weight + i));
      narrow(p.y + t * p.width + i, y);
      if (p.wide) _mm512_storeu_ps(p.wide + t * p.width + i, y);
    }
  }
}

static void norm_gradient(const NormGradient& p, int64_t piece) {
  float* partial = p.partial + piece * p.width;
  __builtin_memset(partial, 0, p.width * 4);
  for (int64_t t = piece * kNormRows; t < least_of((piece + 1) * kNormRows, p.T); ++t) {
    const float *x = p.x + t * p.stride, *dy = p.dy + t * p.width;
    const __m512 scale = _mm512_set1_ps(p.scales[t]);
    __m512 along = _mm512_setzero_ps();
    for (int64_t i = 0; i < p.width; i += kWide) {
      const __m512 slope = _mm512_mul_ps(_mm512_loadu_ps(dy + i), _mm512_loadu_ps(x + i));
      along = _mm512_fmadd_ps(slope, _mm512_loadu_ps(p.weight + i), along);
      _mm512_storeu_ps(partial + i, _mm512_fmadd_ps(slope, scale, _mm512_loadu_ps(partial + i)));
    }
    const float s = p.scales[t], back = _mm512_reduce_add_ps(along) * s * s * s / static_cast<float>(p.width);
    for (int64_t i = 0; i < p.width; i += kWide) {
      const __m512 straight =
          _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(dy + i), _mm512_loadu_ps(p.weight + i)), scale);
      __m512 dx = _mm512_fnmadd_ps(_mm512_loadu_ps(x + i), _mm512_set1_ps(back), straight);
      if (p.onto) dx = _mm512_add_ps(dx, _mm512_loadu_ps(p.onto + t * p.width + i));
      if (p.wide)
        _mm512_storeu_ps(p.wide + t * p.width + i, dx);
      else
        narrow(p.dx + t * p.dx_stride + i, dx);
    }
  }
}

static void turn(uint16_t* x, const float* cos, const float* sin, int64_t H, int64_t R, int64_t stride,
                 int64_t head_stride, float sign, int64_t begin, int64_t end) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int32_t>(0xFFFF0000));
  for (int64_t t = begin; t < end; ++t)
    for (int64_t i = 0; i < R / 2; i += kWide) {
      const __mmask16 some = static_cast<__mmask16>((1u << least_of(R / 2 - i, kWide)) - 1);
      const __m512 c = _mm512_maskz_loadu_ps(some, cos + t * (R / 2) + i);
      const __m512 s = _mm512_mul_ps(_mm512_maskz_loadu_ps(some, sin + t * (R / 2) + i), _mm512_set1_ps(sign));
      for (int64_t h = 0; h < H; ++h) {
        uint16_t* at = x + t * stride + h * head_stride + 2 * i;
        const __m512i words = _mm512_maskz_loadu_epi32(some, at);
        const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
        const __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(words, upper));
        const __m512 first = _mm512_fmsub_ps(even, c, _mm512_mul_ps(odd, s));
        _mm512_mask_storeu_epi32(at, some, side_by_side(first, _mm512_fmadd_ps(even, s, _mm512_mul_ps(odd, c))));
      }
    }
}

// to(T, D) = onto(T, D), or nothing, plus the rows `places` (T, K) of y, times `weights` (T, K) where there are any
static void gather(const float* onto, const float* y, const int64_t* places, const float* weights, int64_t K, int64_t D,
                   float* to, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t)
    for (int64_t i = 0; i < D; i += kWide) {
      __m512 sum = onto ? _mm512_loadu_ps(onto + t * D + i) : _mm512_setzero_ps();
      for (int64_t k = 0; k < K; ++k) {
        const __m512 weight = _mm512_set1_ps(weights ? weights[t * K + k] : 1.0f);
        sum = _mm512_fmadd_ps(_mm512_loadu_ps(y + places[t * K + k] * D + i), weight, sum);
      }
      _mm512_storeu_ps(to + t * D + i, sum);
    }
}

}  // namespace training
