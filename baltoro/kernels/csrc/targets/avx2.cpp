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
static inline I16 dot_int4(I16 sum, Bytes w, const int8_t* x) {
  const __m256i inputs = four_bytes(x);
  return {four_products(sum.a, w.a, inputs), four_products(sum.b, w.b, inputs)};
}

struct Pairs {
  __m256i first[2], second[2];  // bf16 inputs 0 and 1 of outputs 0-7 and 8-15, inputs 2 and 3
};

static inline Pairs pairs_bf16(const uint8_t* from) {
  const Bytes first = Bytes::load(from), second = Bytes::load(from + 64);
  return {{first.a, first.b}, {second.a, second.b}};
}

// e4m3 bytes to bf16, through half floats and floats, all exactly. With exponent and mantissa moved up by seven bits
// an e4m3 number is the half float that is 2^8 times smaller (bias 15 instead of 7), subnormals included.
static inline __m256i widened_fp8(__m128i bytes) {  // 16 bytes -> 16 bf16
  const __m256i half = _mm256_and_si256(_mm256_slli_epi16(_mm256_cvtepi8_epi16(bytes), 7),
                                        _mm256_set1_epi16(static_cast<short>(0xBF80)));
  const __m256i all_ones = _mm256_set1_epi16(0x3F80);
  const __m256i nan = _mm256_cmpeq_epi16(_mm256_and_si256(half, all_ones), all_ones);  // S.1111.111, not 480
  const __m256i made = _mm256_or_si256(half, nan);
  const __m256 up = _mm256_set1_ps(256.0f);
  const __m256i low = _mm256_castps_si256(_mm256_mul_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(made)), up));
  const __m256i high = _mm256_castps_si256(_mm256_mul_ps(_mm256_cvtph_ps(_mm256_extracti128_si256(made, 1)), up));
  const __m256i packed = _mm256_packus_epi32(_mm256_srli_epi32(low, 16), _mm256_srli_epi32(high, 16));
  return _mm256_permute4x64_epi64(packed, 0xD8);
}

static inline Pairs pairs_fp8(const uint8_t* from) {
  const __m128i* lanes = reinterpret_cast<const __m128i*>(from);  // each: 8 bytes of inputs 0 and 1, 8 of 2 and 3
  const __m128i a = _mm_loadu_si128(lanes), b = _mm_loadu_si128(lanes + 1);
  const __m128i c = _mm_loadu_si128(lanes + 2), d = _mm_loadu_si128(lanes + 3);
  return {{widened_fp8(_mm_unpacklo_epi64(a, b)), widened_fp8(_mm_unpacklo_epi64(c, d))},
          {widened_fp8(_mm_unpackhi_epi64(a, b)), widened_fp8(_mm_unpackhi_epi64(c, d))}};
}

static inline __m256 two_products(__m256 sum, __m256i pairs, const uint16_t* x) {
  const __m256i inputs = four_bytes(x), upper = _mm256_set1_epi32(static_cast<int>(0xFFFF0000));
  sum = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)),
                        _mm256_castsi256_ps(_mm256_slli_epi32(inputs, 16)), sum);
  return _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_and_si256(pairs, upper)),
                         _mm256_castsi256_ps(_mm256_and_si256(inputs, upper)), sum);
}

static inline F16 dot_pairs(F16 sum, const Pairs& w, const uint16_t* x) {
  return {two_products(two_products(sum.a, w.first[0], x), w.second[0], x + 2),
          two_products(two_products(sum.b, w.first[1], x), w.second[1], x + 2)};
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
  sum[0] = {two_products(sum[0].a, rows.even[0], pair), two_products(sum[0].b, rows.even[1], pair)};
  sum[1] = {two_products(sum[1].a, rows.odd[0], pair), two_products(sum[1].b, rows.odd[1], pair)};
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

static constexpr int kTokens = 2;  // 8 of 16 registers for sums
static constexpr int kQueries = 2;

#include "../attention.inl"
#include "../roof.inl"

extern const Target kernels = {"avx2", prepare,  product,        gated,          weighted,
                               attend, read_all, multiply_bytes, multiply_floats};

}  // namespace baltoro::avx2
