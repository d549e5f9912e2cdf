// AVX2 with FMA: x86-64 since 2013.
#include <immintrin.h>

#include "../kernels.h"

namespace baltoro::avx2 {

struct F16 {
  __m256 a, b;

  static F16 set(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
  static F16 load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
  static F16 load_bf16(const uint16_t* from) { return {widened(from), widened(from + 8)}; }
  static void store(float* to, F16 values) {
    _mm256_storeu_ps(to, values.a);
    _mm256_storeu_ps(to + 8, values.b);
  }

 private:
  static __m256 widened(const uint16_t* from) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
};

static inline F16 operator+(F16 x, F16 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
static inline F16 operator-(F16 x, F16 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
static inline F16 operator*(F16 x, F16 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
static inline F16 operator/(F16 x, F16 y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
static inline F16 min(F16 x, F16 y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
static inline F16 max(F16 x, F16 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }

struct I16 {
  __m256i a, b;

  static I16 set(int32_t value) { return {_mm256_set1_epi32(value), _mm256_set1_epi32(value)}; }
};

static inline F16 to_float(I16 x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
static inline I16 nearest(F16 x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
static inline F16 power_of_two(I16 n) {
  const __m256i bias = _mm256_set1_epi32(127);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n.a, bias), 23)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n.b, bias), 23))};
}

struct Bytes {
  __m256i a, b;

  static Bytes load(const uint8_t* from) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)),
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 32))};
  }
};

static inline Bytes low_halves(Bytes w) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(w.a, mask), _mm256_and_si256(w.b, mask)};
}
static inline Bytes high_halves(Bytes w) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(_mm256_srli_epi16(w.a, 4), mask), _mm256_and_si256(_mm256_srli_epi16(w.b, 4), mask)};
}
static inline Bytes either(Bytes v, Bytes w) { return {_mm256_or_si256(v.a, w.a), _mm256_or_si256(v.b, w.b)}; }
static inline uint32_t folded(Bytes w) {
  alignas(32) uint32_t words[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(words), _mm256_or_si256(w.a, w.b));
  return words[0] | words[1] | words[2] | words[3] | words[4] | words[5] | words[6] | words[7];
}
static inline void prefetch(const uint8_t* from) { _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T0); }
static inline void prefetch_far(const uint8_t* from) { prefetch(from); }
static constexpr bool kReadsAhead = false;

static inline __m256i four_bytes(const void* from) {
  int32_t value;
  __builtin_memcpy(&value, from, 4);
  return _mm256_set1_epi32(value);
}

// Without VNNI a product of bytes goes through sums of two in 16 bits, which must not saturate: 15 * 127 * 2 cannot;
// 255 * 127 * 2 could, so that 8-bit weights are made signed again and give their sign to the input (127 * 127 * 2).
static constexpr int32_t kInt8Offset = 0;

static inline __m256i four_products(__m256i sum, __m256i unsigned_bytes, __m256i signed_bytes) {
  const __m256i twos = _mm256_maddubs_epi16(unsigned_bytes, signed_bytes);
  return _mm256_add_epi32(sum, _mm256_madd_epi16(twos, _mm256_set1_epi16(1)));
}
static inline I16 dot_int8(I16 sum, Bytes w, const int8_t* x) {
  const __m256i inputs = four_bytes(x), offset = _mm256_set1_epi8(static_cast<char>(0x80));
  const __m256i a = _mm256_xor_si256(w.a, offset), b = _mm256_xor_si256(w.b, offset);
  return {four_products(sum.a, _mm256_abs_epi8(a), _mm256_sign_epi8(inputs, a)),
          four_products(sum.b, _mm256_abs_epi8(b), _mm256_sign_epi8(inputs, b))};
}

// 15 * 127 * 2 is an eighth of what 16 bits hold: products of 32 inputs are added up there before they are widened.
static constexpr int64_t kInt4Run = 32;

struct Int4Sum {
  __m256i a, b;  // 32 int16

  static Int4Sum zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
};

static inline Int4Sum dot_int4(Int4Sum sum, Bytes w, const int8_t* x) {
  const __m256i inputs = four_bytes(x);
  return {_mm256_add_epi16(sum.a, _mm256_maddubs_epi16(w.a, inputs)),
          _mm256_add_epi16(sum.b, _mm256_maddubs_epi16(w.b, inputs))};
}
static inline I16 operator+(I16 x, Int4Sum sum) {
  const __m256i ones = _mm256_set1_epi16(1);
  return {_mm256_add_epi32(x.a, _mm256_madd_epi16(sum.a, ones)), _mm256_add_epi32(x.b, _mm256_madd_epi16(sum.b, ones))};
}

// 4 inputs of 16 outputs as pairs of bf16. TINY: 2^-120 times too small, see pairs_fp8.
template <bool TINY>
struct Pairs {
  __m256i first[2], second[2];  // inputs 0 and 1 of outputs 0-7 and 8-15, inputs 2 and 3
};

static inline Pairs<false> pairs_bf16(const uint8_t* from) {
  const Bytes first = Bytes::load(from), second = Bytes::load(from + 64);
  return {{first.a, first.b}, {second.a, second.b}};
}

// With exponent and mantissa moved into the place of a bf16 number's, an e4m3 number (bias 7) becomes the one that is
// 2^120 times smaller (bias 127), subnormals included. A NaN would become 480: there are none among weights.
static inline Pairs<true> pairs_fp8(const uint8_t* from) {
  const Bytes bytes = Bytes::load(from);  // of four outputs each: 8 bytes of inputs 0 and 1, 8 of 2 and 3
  const __m256i zero = _mm256_setzero_si256(), kept = _mm256_set1_epi16(static_cast<short>(0x87F0));
  auto moved = [&](__m256i upper) { return _mm256_and_si256(_mm256_srai_epi16(upper, 4), kept); };
  return {{moved(_mm256_unpacklo_epi8(zero, bytes.a)), moved(_mm256_unpacklo_epi8(zero, bytes.b))},
          {moved(_mm256_unpackhi_epi8(zero, bytes.a)), moved(_mm256_unpackhi_epi8(zero, bytes.b))}};
}

// While fp8 weights are multiplied, subnormal numbers must count, whatever the thread was told
// (torch.set_flush_denormal).
struct Fp8Mode {
  const unsigned before = _mm_getcsr();

  Fp8Mode() { _mm_setcsr(before & ~0x8040u); }
  ~Fp8Mode() { _mm_setcsr(before); }
  Fp8Mode(const Fp8Mode&) = delete;
};

static inline __m256 first_floats(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
static inline __m256 second_floats(__m256i pairs) {
  return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xFFFF0000))));
}

template <bool TINY, int T>
static inline void dot_two(F16 (&sum)[T], const __m256i (&pairs)[2], const uint16_t* const (&x)[T], int64_t at) {
  F16 one = {first_floats(pairs[0]), first_floats(pairs[1])}, two = {second_floats(pairs[0]), second_floats(pairs[1])};
  if (TINY) one = one * F16::set(0x1p120f), two = two * F16::set(0x1p120f);
  for (int t = 0; t < T; ++t) {
    const __m256i inputs = four_bytes(x[t] + at);
    const __m256 first = first_floats(inputs), second = second_floats(inputs);
    sum[t] = {_mm256_fmadd_ps(one.a, first, sum[t].a), _mm256_fmadd_ps(one.b, first, sum[t].b)};
    sum[t] = {_mm256_fmadd_ps(two.a, second, sum[t].a), _mm256_fmadd_ps(two.b, second, sum[t].b)};
  }
}

template <bool TINY, int T>
static inline void dot_pairs(F16 (&sum)[T], const Pairs<TINY>& w, const uint16_t* const (&x)[T], int64_t at) {
  dot_two<TINY>(sum, w.first, x, at);
  dot_two<TINY>(sum, w.second, x, at + 2);
}
template <class Weights, int P, int T>
static inline void dot_panels(F16 (&sum)[P][T], const uint8_t* const (&from)[P], const uint16_t* const (&x)[T],
                              int64_t at) {
  for (int p = 0; p < P; ++p) dot_pairs(sum[p], Weights::load(from[p]), x, at);
}

struct Rows {
  __m256i even[2], odd[2];  // columns 8 l .. 8 l + 3 of lane l (two registers of two lanes) and the next four
};

static inline Rows two_rows(const uint16_t* a, const uint16_t* b) {
  const Bytes first = Bytes::load(reinterpret_cast<const uint8_t*>(a));
  const Bytes second = Bytes::load(reinterpret_cast<const uint8_t*>(b));
  return {{_mm256_unpacklo_epi16(first.a, second.a), _mm256_unpacklo_epi16(first.b, second.b)},
          {_mm256_unpackhi_epi16(first.a, second.a), _mm256_unpackhi_epi16(first.b, second.b)}};
}
static inline void dot_rows(F16 (&sum)[2], const Rows& rows, const uint16_t* pair) {
  const __m256i inputs = four_bytes(pair);
  const __m256 first = first_floats(inputs), second = second_floats(inputs);
  auto add = [&](__m256 to, __m256i two) {
    return _mm256_fmadd_ps(second_floats(two), second, _mm256_fmadd_ps(first_floats(two), first, to));
  };
  sum[0] = {add(sum[0].a, rows.even[0]), add(sum[0].b, rows.even[1])};
  sum[1] = {add(sum[1].a, rows.odd[0]), add(sum[1].b, rows.odd[1])};
}
static inline void in_order(F16 (&sum)[2]) {
  const F16 even = sum[0], odd = sum[1];
  sum[0] = {_mm256_permute2f128_ps(even.a, odd.a, 0x20), _mm256_permute2f128_ps(even.a, odd.a, 0x31)};
  sum[1] = {_mm256_permute2f128_ps(even.b, odd.b, 0x20), _mm256_permute2f128_ps(even.b, odd.b, 0x31)};
}
static inline __m256i rounded(__m256 x) {  // of numbers that are no NaNs, to bf16 in the upper halves
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  return _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd);
}
static inline void store_pairs(uint16_t* to, F16 first, F16 second) {
  const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xFFFF0000));
  __m256i* at = reinterpret_cast<__m256i*>(to);
  _mm256_storeu_si256(
      at, _mm256_or_si256(_mm256_srli_epi32(rounded(first.a), 16), _mm256_and_si256(rounded(second.a), upper)));
  _mm256_storeu_si256(
      at + 1, _mm256_or_si256(_mm256_srli_epi32(rounded(first.b), 16), _mm256_and_si256(rounded(second.b), upper)));
}

// What roofs are measured with: products an output of one instruction, and sums that fit into the registers
static inline I16 densest_int8(I16 sum, Bytes w, const int8_t* x) {
  const __m256i inputs = four_bytes(x);
  return {four_products(sum.a, w.a, inputs), four_products(sum.b, w.b, inputs)};
}
static inline F16 densest_floats(F16 sum, F16 x, F16 y) {
  return {_mm256_fmadd_ps(x.a, y.a, sum.a), _mm256_fmadd_ps(x.b, y.b, sum.b)};
}
static constexpr int kDensestInts = 4, kDensestFloats = 1, kRoofSums = 5;

static constexpr int kTokens = 4, kPairTokens = 2;  // 8 of 16 registers for sums
static constexpr int kQueries = 2;

#include "../attention.inl"
#include "../dense.inl"
#include "../pack.inl"
#include "../roof.inl"

extern const Target kernels = {"avx2",     1,        prepare,   product,  gated,     weighted,
                               round_rows, nullptr,  attend,    pack,     read_all,  multiply,
                               dots,       mix_rows, normalize, sigmoids, gate_rows, softmax};

}  // namespace baltoro::avx2
