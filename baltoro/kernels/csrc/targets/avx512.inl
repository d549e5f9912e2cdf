// 16 lanes of AVX-512 with VNNI, BF16 and VBMI, for the targets avx512 and amx.
struct F16 {
  __m512 v;

  static F16 set(float value) { return {_mm512_set1_ps(value)}; }
  static F16 load(const float* from) { return {_mm512_loadu_ps(from)}; }
  static F16 load_bf16(const uint16_t* from) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
  }
  static void store(float* to, F16 values) { _mm512_storeu_ps(to, values.v); }
};

static inline F16 operator+(F16 a, F16 b) { return {_mm512_add_ps(a.v, b.v)}; }
static inline F16 operator-(F16 a, F16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
static inline F16 operator*(F16 a, F16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
static inline F16 operator/(F16 a, F16 b) { return {_mm512_div_ps(a.v, b.v)}; }
static inline F16 min(F16 a, F16 b) { return {_mm512_min_ps(a.v, b.v)}; }
static inline F16 max(F16 a, F16 b) { return {_mm512_max_ps(a.v, b.v)}; }

struct I16 {
  __m512i v;

  static I16 set(int32_t value) { return {_mm512_set1_epi32(value)}; }
  static I16 zero() { return set(0); }
};

static inline I16 operator+(I16 x, I16 y) { return {_mm512_add_epi32(x.v, y.v)}; }
static inline F16 to_float(I16 x) { return {_mm512_cvtepi32_ps(x.v)}; }
static inline I16 nearest(F16 x) { return {_mm512_cvtps_epi32(x.v)}; }
static inline F16 power_of_two(I16 n) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n.v, _mm512_set1_epi32(127)), 23))};
}

struct Bytes {
  __m512i v;

  static Bytes load(const uint8_t* from) { return {_mm512_loadu_si512(from)}; }
};

static inline Bytes low_halves(Bytes b) { return {_mm512_and_si512(b.v, _mm512_set1_epi8(15))}; }
static inline Bytes high_halves(Bytes b) { return {_mm512_and_si512(_mm512_srli_epi16(b.v, 4), _mm512_set1_epi8(15))}; }
static inline Bytes either(Bytes a, Bytes b) { return {_mm512_or_si512(a.v, b.v)}; }
static inline uint32_t folded(Bytes b) { return static_cast<uint32_t>(_mm512_reduce_or_epi32(b.v)); }
static inline void prefetch(const uint8_t* from) { _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T0); }

// Zen 4 follows streams of integer weights better alone, and its first cache is hindered by what comes too early
static const bool kReadsAhead = __builtin_cpu_is("amd");
static inline void prefetch_far(const uint8_t* from) {
  if (!kReadsAhead) return prefetch(from);
  _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T1);
}

static inline int32_t four_bytes(const void* from) {
  int32_t value;
  __builtin_memcpy(&value, from, 4);
  return value;
}

static constexpr int32_t kInt8Offset = 128;

static inline I16 dot_int8(I16 sum, Bytes w, const int8_t* x) {
  return {_mm512_dpbusd_epi32(sum.v, w.v, _mm512_set1_epi32(four_bytes(x)))};
}
static inline I16 dot_int4(I16 sum, Bytes w, const int8_t* x) { return dot_int8(sum, w, x); }

using Int4Sum = I16;
static constexpr int64_t kInt4Run = 0;

struct Pairs {
  __m512i first, second;  // inputs 0 and 1 of all outputs, inputs 2 and 3
};

static inline Pairs pairs_bf16(const uint8_t* from) {
  return {_mm512_loadu_si512(from), _mm512_loadu_si512(from + 64)};
}

// The two bytes of the bf16 number that equals an e4m3 one, for each of its 128 magnitudes; subnormals and the NaN too.
struct Table {
  alignas(64) uint8_t low[128], high[128];
};

static constexpr Table make_table() {
  Table table{};
  for (int magnitude = 0; magnitude < 128; ++magnitude) {
    int exponent = magnitude >> 3, mantissa = magnitude & 7, bits = 0;
    if (magnitude == 127) {
      bits = 0x7FC0;
    } else if (exponent > 0) {
      bits = (exponent + 120) << 7 | mantissa << 4;
    } else if (mantissa > 0) {  // mantissa * 2^-9
      exponent = 121;
      while (mantissa < 8) mantissa <<= 1, --exponent;
      bits = exponent << 7 | (mantissa & 7) << 4;
    }
    table.low[magnitude] = static_cast<uint8_t>(bits & 255);
    table.high[magnitude] = static_cast<uint8_t>(bits >> 8);
  }
  return table;
}

static constexpr Table kTable = make_table();

static inline Pairs pairs_fp8(const uint8_t* from) {
  const __m512i bytes = _mm512_loadu_si512(from);
  // The lookups read the lower seven bits of each byte, the sign is put back into the upper half.
  const __m512i low =
      _mm512_permutex2var_epi8(_mm512_load_si512(kTable.low), bytes, _mm512_load_si512(kTable.low + 64));
  __m512i high = _mm512_permutex2var_epi8(_mm512_load_si512(kTable.high), bytes, _mm512_load_si512(kTable.high + 64));
  high =
      _mm512_ternarylogic_epi32(high, bytes, _mm512_set1_epi8(static_cast<char>(0x80)), 0xF8);  // high | bytes & 0x80
  return {_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)};
}

// Each token's inputs are fetched once for both panels
template <class Weights, int P, int T>
static inline void dot_panels(F16 (&sum)[P][T], const uint8_t* const (&from)[P], const uint16_t* const (&x)[T],
                              int64_t at) {
  Pairs w[P];
  for (int p = 0; p < P; ++p) w[p] = Weights::load(from[p]);
  for (int t = 0; t < T; ++t) {
    const __m512bh first = (__m512bh)_mm512_set1_epi32(four_bytes(x[t] + at));
    const __m512bh second = (__m512bh)_mm512_set1_epi32(four_bytes(x[t] + at + 2));
    for (int p = 0; p < P; ++p) {
      const __m512 half = _mm512_dpbf16_ps(sum[p][t].v, (__m512bh)w[p].first, first);
      sum[p][t].v = _mm512_dpbf16_ps(half, (__m512bh)w[p].second, second);
    }
  }
}

struct Fp8Mode {
  Fp8Mode() {}
};

struct Rows {
  __m512i even, odd;  // columns 8 l .. 8 l + 3 of lane l and the next four, of both rows in turn
};

static inline Rows two_rows(const uint16_t* a, const uint16_t* b) {
  const __m512i first = _mm512_loadu_si512(a), second = _mm512_loadu_si512(b);
  return {_mm512_unpacklo_epi16(first, second), _mm512_unpackhi_epi16(first, second)};
}
static inline void dot_rows(F16 (&sum)[2], Rows rows, const uint16_t* pair) {
  const __m512bh weights = (__m512bh)_mm512_set1_epi32(four_bytes(pair));
  sum[0].v = _mm512_dpbf16_ps(sum[0].v, (__m512bh)rows.even, weights);
  sum[1].v = _mm512_dpbf16_ps(sum[1].v, (__m512bh)rows.odd, weights);
}
static inline void in_order(F16 (&sum)[2]) {
  const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512 first = _mm512_permutex2var_ps(sum[0].v, low, sum[1].v);
  sum[1].v = _mm512_permutex2var_ps(sum[0].v, _mm512_add_epi32(low, _mm512_set1_epi32(8)), sum[1].v);
  sum[0].v = first;
}
static inline void store_pairs(uint16_t* to, F16 first, F16 second) {
  const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(first.v));
  const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(second.v));
  _mm512_storeu_si512(to, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}

// What roofs are measured with: products an output of one instruction, and sums that fit into the registers
static inline I16 densest_int8(I16 sum, Bytes w, const int8_t* x) { return dot_int8(sum, w, x); }
static inline F16 densest_floats(F16 sum, F16 a, F16 b) {
  return {_mm512_dpbf16_ps(sum.v, (__m512bh)_mm512_castps_si512(a.v), (__m512bh)_mm512_castps_si512(b.v))};
}
static constexpr int kDensestInts = 4, kDensestFloats = 2, kRoofSums = 12;

static constexpr int kTokens = 6,
                     kPairTokens = 6;  // 12 sums in all 32 registers; with fp8 another 12, 4 weights and 4 tables
static constexpr int kQueries = 8;     // 16 sums, 2 rows; divides K2's 32 heads a panel pair
